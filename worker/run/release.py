"""A release: the mark is taken off the object, which stays as it is otherwise."""

from typing import TYPE_CHECKING

from outbox import jobs
from outbox.errors import Refused
from outbox.events import Event, emit
from worker.backends import Absent, Different, Same
from worker.run.provision import AttemptsSpent

if TYPE_CHECKING:
    from worker.run import Run


def release(run: "Run") -> None:
    """Carry a release to its outcome. Raises what stops it, which `Run` turns into a transition."""
    claim = run.claim
    if claim.attempts > claim.max_attempts:
        raise AttemptsSpent("its worker died in every attempt")
    assert claim.manifest is not None  # noqa: S101 - it was active
    match run.backend.inspect(claim.manifest):
        case Absent(seen=seen):
            done = {"absent": seen}  # it bears no mark any more
        case Different(why=why) if claim.started_fence is None:
            raise Refused(why)
        case Same(seen=seen) | Different(seen=seen):  # without its mark, where an attempt died after it took it off
            run.record(jobs.start, seen={name: value for name, value in seen.items() if name != "completes"})
            run.started = True
            done = run.backend.unmark(claim.manifest)
    run.close_breaker()
    run.record(jobs.let_go, seen=done)
    emit(Event.RELEASED, run.log)
