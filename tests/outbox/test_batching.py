"""Group commit: requests that arrive while a statement runs share the next, and each gets its own answer."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import pytest
from structlog.testing import capture_logs

from outbox.batching import MAX_BATCH, Gate, GroupCommit
from tests.support.witness import eventually


class Statement:
    """An act that blocks until it is released, and records each batch. Even numbers get no answer; 13 fails."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, requests: Sequence[int]) -> list[int | None]:
        self.batches.append(list(requests))
        assert self.released.wait(20)
        if 13 in requests:
            raise RuntimeError("the connection was lost")
        return [number * 10 if number % 2 else None for number in requests]


def submit(statement: Statement, first: int, *numbers: int) -> tuple["Future[int | None]", list["Future[int | None]"]]:
    """The answer to the first, and to those that come while its statement runs."""
    group: GroupCommit[int, int] = GroupCommit("test", statement)
    begun = group.submit(first)
    eventually(lambda: statement.batches, what="the first statement runs")
    return begun, [group.submit(number) for number in numbers]


def test_requests_that_come_while_a_statement_runs_share_the_next() -> None:
    statement = Statement()
    first, others = submit(statement, 1, 2, 3, 4, 5)
    assert not any(answer.done() for answer in (first, *others)), "no answer comes before its statement ends"
    statement.released.set()
    assert [answer.result(20) for answer in (first, *others)] == [10, None, 30, None, 50]
    assert statement.batches == [[1], [2, 3, 4, 5]]


def test_a_failed_batch_leaves_its_requests_unanswered_and_the_next_batch_runs() -> None:
    statement = Statement()
    first, others = submit(statement, 13, 1)
    with capture_logs() as logged:
        statement.released.set()
        assert first.result(20) is None
        assert others[0].result(20) == 10
    assert [(line["event"], line["name"], line["count"]) for line in logged] == [("batch_failed", "test", 1)]


def test_a_log_that_cannot_be_written_does_not_stop_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("outbox.batching.log.warning", full)
    statement = Statement()
    first, others = submit(statement, 13, 1)
    statement.released.set()
    assert first.result(20) is None
    assert others[0].result(20) == 10


def must_not_be_asked() -> int:
    raise AssertionError("the batch has answered")


def do(group: "GroupCommit[int, int]", number: int, alone: Any) -> int:
    return group.do(number, alone=alone)


def do_async(group: "GroupCommit[int, int]", number: int, alone: Any) -> int:
    async def later() -> int:
        return int(alone())

    return asyncio.run(group.do_async(number, alone=later))


@pytest.mark.parametrize("do", [do, do_async])
def test_a_caller_acts_alone_only_when_the_batch_gives_no_answer(do: Any) -> None:
    statement = Statement()
    statement.released.set()
    group: GroupCommit[int, int] = GroupCommit("test", statement)
    assert do(group, 1, must_not_be_asked) == 10
    assert do(group, 2, lambda: 7) == 7, "the batch could not do it"
    assert do(group, 13, lambda: 7) == 7, "the statement failed"


@pytest.mark.parametrize("do", [do, do_async])
def test_a_caller_acts_alone_when_the_connection_hangs(monkeypatch: pytest.MonkeyPatch, do: Any) -> None:
    monkeypatch.setattr("outbox.batching.PATIENCE_SECONDS", 0.1)
    statement = Statement()
    group: GroupCommit[int, int] = GroupCommit("test", statement)
    assert do(group, 1, lambda: 7) == 7
    monkeypatch.setattr("outbox.batching.PATIENCE_SECONDS", 20)
    with ThreadPoolExecutor(1) as callers:
        later = callers.submit(do, group, 3, must_not_be_asked)
        statement.released.set()
        assert later.result(20) == 30, "once the connection answers again, the batch does"


@pytest.mark.parametrize("do", [do, do_async])
def test_what_a_caller_raises_when_it_acts_alone_reaches_it(do: Any) -> None:
    def refused() -> int:
        raise ValueError("the reason")

    statement = Statement()
    statement.released.set()
    with pytest.raises(ValueError, match="the reason"):
        do(GroupCommit("test", statement), 2, refused)


def test_a_batch_waits_at_the_gate_and_carries_what_has_come_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.batching.GATE_SECONDS", 20)
    gate, one, other = Gate(), Statement(), Statement()
    other.released.set()
    begun = GroupCommit("one", one, gate=gate).submit(1)
    eventually(lambda: one.batches, what="the first statement runs")
    group: GroupCommit[int, int] = GroupCommit("other", other, gate=gate)
    answers = [group.submit(number) for number in (1, 3, 5)]
    assert other.batches == []
    one.released.set()
    assert begun.result(20) == 10
    assert [answer.result(20) for answer in answers] == [10, 30, 50]
    assert other.batches == [[1, 3, 5]]


def test_a_statement_that_hangs_does_not_close_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, one, other = Gate(), Statement(), Statement()
    other.released.set()
    GroupCommit("one", one, gate=gate).submit(1)
    eventually(lambda: one.batches, what="the first statement runs")
    monkeypatch.setattr("outbox.batching.PATIENCE_SECONDS", 5)
    assert GroupCommit("other", other, gate=gate).do(1, alone=lambda: 7) == 10
    one.released.set()


def test_a_batch_has_a_bounded_size() -> None:
    statement = Statement()
    _, others = submit(statement, 1, *[1] * (MAX_BATCH + 1))
    statement.released.set()
    assert [answer.result(20) for answer in others] == [10] * (MAX_BATCH + 1)
    assert [len(requests) for requests in statement.batches] == [1, MAX_BATCH, 1]


def test_a_request_cannot_be_cancelled() -> None:
    statement = Statement()
    first, others = submit(statement, 1, 3)
    assert not first.cancel()
    assert not others[0].cancel()
    statement.released.set()
    try:
        assert others[0].result(20) == 30
    except CancelledError:
        pytest.fail("the request was under way")
