"""A worker killed before and after each call that a verb makes, and another that resumes: the same end as without."""

import uuid
from collections.abc import Callable, Mapping

import pytest

from deprovisioner.conformance import kills
from deprovisioner.conformance.kills import Moment
from deprovisioner.conformance.properties import shows
from deprovisioner.conformance.subject import Subject
from deprovisioner.sdk import Absent, Backend, Different, Json, Same

MOMENTS: tuple[Moment, ...] = ("before", "after")
# In the short form: at the first call, in the middle, at the last.
SHORT: tuple[tuple[float, Moment], ...] = ((0.0, "after"), (0.5, "before"), (0.5, "after"), (1.0, "before"))
ABANDONED = "provision, then teardown"
VERBS = ("provision", "quarantine", "release", "teardown", ABANDONED, "adopt")


@pytest.fixture(scope="module")
def calls(subject: Subject) -> dict[str, list[str]]:
    """By verb, the calls of a life in which no process is killed."""
    return Life(subject, {}).calls


@shows("killed and resumed")
def test_killed_at_the_first_the_middle_and_the_last_call_and_resumed(
    subject: Subject, calls: dict[str, list[str]]
) -> None:
    for place, moment in SHORT:
        Life(subject, {verb: (1 + round(place * (len(names) - 1)), moment) for verb, names in calls.items()})


@shows("killed and resumed")
@pytest.mark.proof
def test_killed_at_each_call_and_resumed(
    subject: Subject, calls: dict[str, list[str]], request: pytest.FixtureRequest
) -> None:
    for nth in range(1, max(map(len, calls.values())) + 1):
        for moment in MOMENTS:
            Life(subject, {verb: (nth, moment) for verb, names in calls.items() if nth <= len(names)})
    request.node.user_properties.append(("kills", len(MOMENTS) * sum(map(len, calls.values()))))


class Life:
    """Each verb once: killed at the call that `deaths` says, before or after it, then resumed. All verbs for none."""

    def __init__(self, subject: Subject, deaths: Mapping[str, tuple[int, Moment]]) -> None:
        self._subject, self._deaths = subject, deaths
        self.calls: dict[str, list[str]] = {}
        try:
            if any(self._is_due(verb) for verb in VERBS[:4]):
                self._whole()
            if self._is_due(ABANDONED):
                self._abandoned()
            if self._is_due("adopt") and "adopt" not in subject.not_shown:
                self._adopted()
        except BaseException as error:
            so_far = {verb: len(names) for verb, names in self.calls.items()}
            error.add_note(f"killed at (verb: the call, when): {dict(deaths)}; calls so far: {so_far}")
            raise

    def _is_due(self, verb: str) -> bool:
        return not self._deaths or verb in self._deaths

    def _killed(self, verb: str, act: Callable[[Backend], object]) -> Backend:
        """Do it in a process that is killed; the backend that resumes."""
        nth, moment = self._deaths.get(verb, (0, "before"))
        self.calls[verb] = kills.run(self._subject, act, nth, moment)
        assert self.calls[verb], f"{verb} makes none of the calls in `calls`: nothing is killed"
        return self._subject.backend()

    def _whole(self) -> None:
        subject = self._subject
        plan = subject.backend().plan(uuid.uuid4(), uuid.uuid4())
        backend = subject.backend()
        if self._is_due("provision"):
            backend = self._killed("provision", lambda backend: backend.provision(**vars(plan)))
            self._is_there(backend, plan.manifest)
        manifest = backend.provision(plan.manifest, plan.credentials)
        subject.put(plan.credentials)
        if self._is_due("quarantine"):
            backend = self._killed("quarantine", lambda backend: backend.quarantine(manifest))
            assert self._is_there(backend, manifest)
            backend.quarantine(manifest)
            assert not subject.can_log_in(plan.credentials)
        if self._is_due("release"):
            backend.quarantine(manifest)
            backend = self._killed("release", lambda backend: backend.release(manifest))
            assert self._is_there(backend, manifest)
            backend.release(manifest)
            assert subject.has(plan.credentials)
        if self._is_due("teardown"):
            backend = self._killed("teardown", lambda backend: backend.teardown(manifest, 1))
        self._ends(backend, manifest)
        assert not subject.can_log_in(plan.credentials)

    def _abandoned(self) -> None:
        plan = self._subject.backend().plan(uuid.uuid4(), uuid.uuid4())
        backend = self._killed(ABANDONED, lambda backend: backend.provision(**vars(plan)))
        self._ends(backend, plan.manifest)

    def _adopted(self) -> None:
        (given, credentials), generation = self._subject.made_by_hand(), uuid.uuid4()
        self._subject.put(credentials)
        backend = self._killed("adopt", lambda backend: backend.adopt(given, generation))
        adopted = backend.adopt(given, generation)
        assert self._is_there(backend, adopted)
        assert self._subject.has(credentials)
        self._ends(backend, adopted)

    def _is_there(self, backend: Backend, manifest: Json) -> bool:
        """After a death, absent means that nothing is left, and what is left is the manifest's own."""
        seen = backend.inspect(manifest)
        assert not isinstance(seen, Different), seen
        if isinstance(seen, Absent):
            assert not self._subject.bears(manifest), "absent, and something is left"
        return isinstance(seen, Same)

    def _ends(self, backend: Backend, manifest: Json) -> None:
        if self._is_there(backend, manifest):
            backend.teardown(manifest, 2)
        assert isinstance(backend.inspect(manifest), Absent)
        assert not self._subject.bears(manifest)
