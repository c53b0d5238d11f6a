"""An object's life: provision or adopt, quarantine, release, teardown; repeated, raced, and with too few rights."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from deprovisioner.conformance.objects import Make, works
from deprovisioner.conformance.properties import shows
from deprovisioner.conformance.subject import Subject
from deprovisioner.sdk import (
    Absent,
    Backend,
    ClaimLost,
    Json,
    Refused,
    Same,
    Transient,
    objects,
    pinned,
    prove,
)


@shows("provision twice")
def test_a_provision_that_is_repeated_makes_no_second_object(subject: Subject, backend: Backend) -> None:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    first = backend.provision(plan.manifest, plan.credentials)
    subject.put(plan.credentials)
    assert subject.backend().provision(plan.manifest, plan.credentials) == first
    assert backend.provision(first, plan.credentials) == first
    assert subject.has(plan.credentials), "the repetition changed nothing"
    subject.destroyed_by_hand(first)
    assert isinstance(backend.inspect(first), Absent), "there was one object"
    assert not subject.bears(first)


@shows("adopt")
def test_an_existing_object_is_adopted_as_it_is_for_one_generation(subject: Subject, backend: Backend) -> None:
    given, credentials = subject.made_by_hand()
    subject.put(credentials)
    generation = uuid.uuid4()
    manifest = backend.adopt(pinned(backend, given), generation)
    assert manifest["generation"] == str(generation)
    assert isinstance(backend.inspect(manifest), Same)
    assert backend.adopt(given, generation) == manifest, "an adoption may be repeated"
    assert backend.adopt(manifest, generation) == manifest
    with pytest.raises(Refused):
        backend.adopt(given, uuid.uuid4())
    assert subject.has(credentials)
    backend.quarantine(manifest)
    assert not subject.can_log_in(credentials)
    backend.release(manifest)
    assert subject.has(credentials)
    backend.teardown(manifest, 1)
    assert isinstance(backend.inspect(manifest), Absent)
    assert not subject.bears(manifest)
    with pytest.raises(Refused):
        backend.adopt(given, uuid.uuid4())


@shows("destroy repeated")
def test_a_teardown_ends_open_sessions_and_is_repeated(subject: Subject, backend: Backend, make: Make) -> None:
    made = make()
    subject.put(made.credentials)
    with subject.session(made.credentials) as use:
        assert works(use)
        backend.teardown(made.manifest, 1)
        assert not works(use)
    for fence in (1, 2):
        assert isinstance(backend.inspect(made.manifest), Absent)
        assert not subject.bears(made.manifest)
        backend.teardown(made.manifest, fence)
    assert not subject.can_log_in(made.credentials)


@shows("destroy repeated")
def test_an_object_in_quarantine_is_torn_down(subject: Subject, backend: Backend, make: Make) -> None:
    made = make()
    subject.put(made.credentials)
    for _ in range(2):
        backend.quarantine(made.manifest)
    backend.teardown(made.manifest, 1)
    assert isinstance(backend.inspect(made.manifest), Absent)
    assert not subject.bears(made.manifest)


@shows("two teardowns at once")
def test_two_teardowns_at_once_end_with_one_object_gone(subject: Subject, backend: Backend, make: Make) -> None:
    made, bystander = make(), make()
    for one in (made, bystander):
        subject.put(one.credentials)
    both = threading.Barrier(2)

    def tear_down(fence: int) -> bool:
        mine = subject.backend()
        both.wait(60)
        with suppress(Transient):  # the other one was in its way: the job is tried again
            mine.teardown(made.manifest, fence)
            return True
        return False

    with ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(tear_down, (1, 2)))
    assert any(ended), "one of them comes to its end"
    assert isinstance(backend.inspect(made.manifest), Absent)
    assert not subject.bears(made.manifest)
    assert subject.has(bystander.credentials)


@shows("quarantine and release")
def test_a_quarantine_cuts_a_live_client_and_a_release_gives_all_back(
    subject: Subject, backend: Backend, make: Make
) -> None:
    made = make()
    subject.put(made.credentials)
    with subject.session(made.credentials) as use:
        assert works(use)
        for _ in range(2):
            backend.quarantine(made.manifest)
        assert not works(use)
    assert not subject.can_log_in(made.credentials)
    assert isinstance(backend.inspect(made.manifest), Same), "it is still there"
    assert subject.bears(made.manifest)
    for _ in range(2):
        backend.release(made.manifest)
    assert subject.has(made.credentials)


@shows("quarantine and release")
def test_a_login_proves_a_release_and_nothing_else_does(subject: Subject, backend: Backend, make: Make) -> None:
    if not hasattr(backend, "prove"):
        pytest.skip("the kind has no `prove`: that the object is there is enough")
    made = make()
    backend.quarantine(made.manifest)
    for proven in (made.credentials, None):
        with pytest.raises(Transient):
            prove(backend, made.manifest, proven)
    backend.release(made.manifest)
    for proven in (made.credentials, None):
        assert prove(backend, made.manifest, proven)
    with pytest.raises(Transient) as failed:
        prove(backend, made.manifest, spoiled(made.credentials, subject.secrets(made.credentials)))
    assert "a-wrong-one" not in str(failed.value)


@shows("lost claim")
@pytest.mark.parametrize("verb", ["quarantine", "release"])
def test_a_worker_whose_claim_is_lost_neither_closes_nor_opens(
    subject: Subject, backend: Backend, make: Make, verb: str
) -> None:
    made = make()
    if verb == "release":
        backend.quarantine(made.manifest)
    before = backend.inspect(made.manifest)

    def lost() -> None:
        raise ClaimLost("another worker has it")

    with pytest.raises(ClaimLost):
        getattr(backend, verb)(made.manifest, lost)
    assert backend.inspect(made.manifest) == before
    assert subject.can_log_in(made.credentials) == (verb == "quarantine")


@shows("least rights")
def test_an_account_that_lacks_a_documented_right_is_refused_and_destroys_nothing_by_halves(
    subject: Subject, backend: Backend, make: Make
) -> None:
    tried = 0
    for right, weak in subject.weaker():
        tried += 1
        made = make()
        refused = _lives(subject, weak, made.manifest)
        assert refused, f"no verb misses {right}: it is not needed, or not checked"
        if subject.bears(made.manifest):
            assert isinstance(backend.inspect(made.manifest), Same), f"half destroyed without {right}"
            backend.teardown(made.manifest, 2)
        assert isinstance(backend.inspect(made.manifest), Absent)
        assert not subject.bears(made.manifest)
    assert tried, "`weaker` gives at least one account"


def _lives(subject: Subject, weak: Backend, manifest: Json) -> list[str]:
    """Every verb with too few rights: the messages of those that are refused. Any other error fails the test."""

    def provision() -> None:
        plan = weak.plan(uuid.uuid4(), uuid.uuid4())
        try:
            weak.provision(plan.manifest, plan.credentials)
        finally:
            subject.backend().teardown(plan.manifest, 1)

    def adopt() -> None:
        given, _ = subject.made_by_hand()
        try:
            weak.adopt(given, uuid.uuid4())
        finally:
            subject.destroyed_by_hand(given)

    verbs: tuple[Callable[[], Any], ...] = (
        provision,
        *([] if "adopt" in subject.not_shown else [adopt]),
        *([lambda: list(objects(weak))] if hasattr(weak, "objects") else []),
        lambda: weak.inspect(manifest),
        lambda: weak.quarantine(manifest),
        lambda: weak.release(manifest),
        lambda: weak.teardown(manifest, 1),
    )
    refused = []
    for act in verbs:
        try:
            act()
        except Refused as error:
            refused.append(str(error))
    return refused


def spoiled(credentials: Any, secrets: list[str]) -> Any:
    """The credentials with another text for each secret, wherever it stands."""
    if isinstance(credentials, dict):
        return {name: spoiled(value, secrets) for name, value in credentials.items()}
    if isinstance(credentials, list):
        return [spoiled(value, secrets) for value in credentials]
    if isinstance(credentials, str):
        for secret in secrets:
            credentials = credentials.replace(secret, "a-wrong-one")
    return credentials
