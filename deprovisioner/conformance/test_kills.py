"""A worker killed before and after each call that a verb makes, and another that resumes: the same end as without."""

import uuid
from collections.abc import Callable, Mapping

import pytest

from deprovisioner.conformance import kills
from deprovisioner.conformance.kills import Moment
from deprovisioner.conformance.properties import shows
from deprovisioner.conformance.subject import Subject
from deprovisioner.sdk import Absent, Backend, Different, Same

MOMENTS: tuple[Moment, ...] = ("before", "after")


@pytest.fixture(scope="module")
def calls(subject: Subject) -> dict[str, list[str]]:
    """By verb, the calls of a life in which no process is killed."""
    return lived(subject, {})


@shows("killed and resumed")
def test_killed_at_the_first_the_middle_and_the_last_call_and_resumed(
    subject: Subject, calls: dict[str, list[str]]
) -> None:
    deaths: tuple[tuple[Moment, float], ...] = (("after", 0.0), ("before", 0.5), ("after", 0.5), ("before", 1.0))
    for moment, place in deaths:
        lived(subject, {verb: (1 + round(place * (len(names) - 1)), moment) for verb, names in calls.items()})


@shows("killed and resumed")
@pytest.mark.proof
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_each_call_and_resumed(
    subject: Subject,
    calls: dict[str, list[str]],
    moment: Moment,
    record_property: Callable[[str, object], None],
) -> None:
    for nth in range(1, max(map(len, calls.values())) + 1):
        lived(subject, {verb: (nth, moment) for verb, names in calls.items() if nth <= len(names)})
    record_property("calls", {verb: len(names) for verb, names in calls.items()})


def lived(subject: Subject, deaths: Mapping[str, tuple[int, Moment]]) -> dict[str, list[str]]:
    """Every verb once, killed at the call that `deaths` says, and resumed; what each had called by then."""
    made: dict[str, list[str]] = {}

    def killed(verb: str, act: Callable[[Backend], object]) -> Backend:
        nth, moment = deaths.get(verb, (0, "before"))
        made[verb] = kills.run(subject, act, nth, moment)
        assert made[verb], f"{verb} makes none of the calls in `calls`: nothing is killed"
        return subject.backend()

    plan = subject.backend().plan(uuid.uuid4(), uuid.uuid4())
    backend = killed("provision", lambda backend: backend.provision(plan.manifest, plan.credentials))
    _is_told_rightly(subject, backend, plan.manifest)
    manifest = backend.provision(plan.manifest, plan.credentials)
    subject.put(plan.credentials)
    assert subject.has(plan.credentials)

    backend = killed("quarantine", lambda backend: backend.quarantine(manifest))
    assert isinstance(backend.inspect(manifest), Same)
    backend.quarantine(manifest)
    assert not subject.can_log_in(plan.credentials)

    backend = killed("release", lambda backend: backend.release(manifest))
    assert isinstance(backend.inspect(manifest), Same)
    backend.release(manifest)
    assert subject.has(plan.credentials)

    backend = killed("teardown", lambda backend: backend.teardown(manifest, 1))
    _ends(subject, backend, manifest)
    assert not subject.can_log_in(plan.credentials)

    abandoned = backend.plan(uuid.uuid4(), uuid.uuid4())
    backend = killed("provision, then teardown", lambda backend: backend.provision(**vars(abandoned)))
    _ends(subject, backend, abandoned.manifest)

    if "adopt" not in subject.not_shown:
        (given, credentials), generation = subject.made_by_hand(), uuid.uuid4()
        subject.put(credentials)
        backend = killed("adopt", lambda backend: backend.adopt(given, generation))
        adopted = backend.adopt(given, generation)
        assert isinstance(backend.inspect(adopted), Same)
        assert subject.has(credentials)
        _ends(subject, backend, adopted)
    return made


def _is_told_rightly(subject: Subject, backend: Backend, manifest: dict[str, object]) -> bool:
    """After a death, absent means that nothing is left, and what is left is the manifest's own."""
    seen = backend.inspect(manifest)
    assert not isinstance(seen, Different), seen
    if isinstance(seen, Absent):
        assert not subject.bears(manifest), "absent, and something is left"
    return isinstance(seen, Same)


def _ends(subject: Subject, backend: Backend, manifest: dict[str, object]) -> None:
    if _is_told_rightly(subject, backend, manifest):
        backend.teardown(manifest, 2)
    assert isinstance(backend.inspect(manifest), Absent)
    assert not subject.bears(manifest)
