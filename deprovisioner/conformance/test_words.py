"""What a backend says: evidence, errors, log lines, manifests."""

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deprovisioner.conformance.objects import Make
from deprovisioner.conformance.properties import shows
from deprovisioner.conformance.subject import Subject
from deprovisioner.conformance.test_life import spoiled
from deprovisioner.conformance.verbs import acting_verbs, every_verb
from deprovisioner.sdk import Backend, BackendError, Json, objects, prove
from outbox import foreign
from worker.intake import MANIFEST, Intake

# Characters of JSON. A worker cuts what is longer than `foreign.EVIDENCE`; a customer must not decide how much is read.
RAW = 4 * foreign.EVIDENCE


@shows("secrets")
def test_no_error_no_log_line_and_no_evidence_shows_a_secret(
    subject: Subject, backend: Backend, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = make()
    secrets = subject.secrets(made.credentials)
    assert secrets, "`secrets` names at least one"
    assert min(map(len, secrets)) > 3, "a shorter one stands in many a text"
    wrong = spoiled(made.credentials, secrets)
    stranger = made.manifest | {"generation": str(uuid.uuid4())}
    acts = [
        *every_verb(subject.dead(), made.manifest, made.credentials),
        lambda: prove(backend, made.manifest, wrong),
        lambda: backend.provision(stranger, made.credentials),
        lambda: backend.adopt(stranger, uuid.uuid4()),
        *(lambda act=act: act(stranger) for act in acting_verbs(backend)),
        lambda: backend.inspect(made.manifest),
        *([lambda: list(objects(backend))] if hasattr(backend, "objects") else []),
        lambda: backend.teardown(made.manifest, 1),
    ]
    if "wrong server" not in subject.not_shown:
        with subject.elsewhere() as other:
            plan = backend.plan(uuid.uuid4(), uuid.uuid4())
            secrets += subject.secrets(plan.credentials)
            said = [*_said(lambda: other.provision(plan.manifest, plan.credentials))]
    else:
        said = []
    said += [json.dumps(made.manifest), *(word for act in acts for word in _said(act)), *caplog.messages]
    assert [text for text in said if any(secret in text for secret in secrets)] == []


def _said(act: Callable[[], Any]) -> Iterator[str]:
    """What a verb returned, or its error and those behind it, as texts."""
    try:
        yield repr(act())
    except BackendError as error:
        behind: BaseException | None = error
        while behind is not None:
            yield f"{behind} {behind!r}"
            behind = behind.__cause__ or behind.__context__


@shows("bounded evidence")
def test_evidence_errors_and_manifests_are_bounded_and_can_be_stored(
    subject: Subject, backend: Backend, make: Make
) -> None:
    made = make()
    getattr(subject, "flood", subject.put)(made.credentials)
    stranger = made.manifest | {"generation": str(uuid.uuid4())}
    door = Intake(backend)
    assert _length(made.manifest) <= MANIFEST
    for manifest in (made.manifest, stranger):
        _is_bounded(backend.inspect(manifest), RAW)
        _is_bounded(door.inspect(manifest), foreign.EVIDENCE)
    for act in acting_verbs(backend):
        with pytest.raises(BackendError) as refused:
            act(stranger)
        assert len(str(refused.value)) <= RAW
    for act in acting_verbs(door):
        with pytest.raises(BackendError) as refused:
            act(stranger)
        assert len(str(refused.value)) <= foreign.LINE + 50, "and a note of how long it was"
        assert str(refused.value).isprintable()
    if hasattr(backend, "objects"):
        for one in backend.objects():
            assert _length(one.names) <= MANIFEST
            assert _length([one.parts, one.why]) <= RAW
    for tearing, limit in ((backend, RAW), (door, foreign.EVIDENCE)):
        evidence = tearing.teardown(made.manifest, 1)
        assert _length(evidence) <= limit


def _is_bounded(seen: Any, limit: int) -> None:
    assert _length(seen.seen) <= limit
    assert len(getattr(seen, "why", "")) <= limit


def _length(value: Json | list[Any]) -> int:
    """Characters of JSON. Raises where it is not JSON, or PostgreSQL could not store it."""
    written = json.dumps(value, allow_nan=False)
    assert "\\u0000" not in written
    return len(written)
