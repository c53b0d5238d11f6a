"""A job's attempts, made from its events: which step each worked on, and how it ended."""

import datetime as dt
import uuid

import pytest

from outbox.queries.attempts import attempt_of, attempts
from outbox.rows import Evidence
from outbox.states import Step


def events(*told: tuple[int, str]) -> list[Evidence]:
    at, resource = dt.datetime(2030, 1, 1, tzinfo=dt.UTC), uuid.uuid4()
    return [
        Evidence(id, at, 1, resource, fence, event, "token:1:op" if event == "cancelled" else "w", "why", None)
        for id, (fence, event) in enumerate(told)
    ]


QUARANTINE = [(1, "claimed"), (1, "started"), (1, "retried"), (2, "claimed"), (2, "started"), (2, "quarantined")]
SNAPSHOT = [(3, "claimed"), (3, "started"), (3, "snapshot_verified")]
DESTROY = [(4, "claimed"), (4, "deferred"), (5, "claimed"), (5, "started"), (5, "completed")]


@pytest.mark.parametrize(
    ("told", "now", "steps"),
    [
        ([], Step.QUARANTINE, []),
        (QUARANTINE[:4], Step.QUARANTINE, ["quarantine", "quarantine"]),
        (QUARANTINE, Step.WAIT, ["quarantine", "quarantine"]),
        (QUARANTINE + SNAPSHOT[:2], Step.SNAPSHOT, ["quarantine", "quarantine", "snapshot"]),
        (QUARANTINE + SNAPSHOT, Step.WAIT, ["quarantine", "quarantine", "snapshot"]),
        (QUARANTINE + DESTROY[:2], Step.WAIT, ["quarantine", "quarantine", "destroy"]),
        (QUARANTINE + SNAPSHOT + DESTROY, Step.DESTROY, ["quarantine"] * 2 + ["snapshot"] + ["destroy"] * 2),
        (DESTROY, Step.DESTROY, ["destroy", "destroy"]),
        (DESTROY, None, [None, None]),
    ],
)
def test_each_attempt_has_the_step_that_it_worked_on(
    told: list[tuple[int, str]], now: Step | None, steps: list[str | None]
) -> None:
    found = [attempt_of(course) for course in attempts(events(*told), now)]
    assert [attempt.step for attempt in found] == steps


@pytest.mark.parametrize(
    ("told", "outcomes"),
    [
        ([(0, "enqueued"), (0, "cancelled")], []),
        ([(1, "claimed"), (1, "started"), (1, "cancelled")], [("cancelled", None)]),
        ([(1, "claimed"), (1, "started"), (1, "quarantined"), (1, "cancelled")], [("quarantined", "why")]),
        ([(1, "claimed"), (1, "started"), (1, "stuck"), (1, "cancelled")], [("stuck", "why")]),
    ],
    ids=["never claimed", "running", "waiting", "stuck"],
)
def test_a_restore_ends_the_attempt_that_ran_and_is_none_itself(
    told: list[tuple[int, str]], outcomes: list[tuple[str, str | None]]
) -> None:
    found = [attempt_of(course) for course in attempts(events(*told), Step.QUARANTINE)]
    assert [(attempt.outcome, attempt.error) for attempt in found] == outcomes
    assert {attempt.worker for attempt in found} <= {"w"}
