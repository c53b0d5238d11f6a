"""Asking together: what waits for a statement under way shares the next, and each gets its own answer."""

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future

import pytest

from outbox.batching import MAX_BATCH, Gate, GroupCommit
from tests.support.witness import eventually


class BlockedAct:
    """An act that waits in its first call, and remembers what it was asked for at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.asked: list[list[int]] = []

    def __call__(self, asked: Sequence[int]) -> list[int | None]:
        self.asked.append(list(asked))
        assert self.open.wait(20)
        if 13 in asked:
            raise RuntimeError("the connection was lost")
        return [number * 10 if number % 2 else None for number in asked]


def ask(gate: BlockedAct, first: int, *numbers: int) -> tuple["Future[int | None]", list["Future[int | None]"]]:
    """The answer to the first, and to those that come while it is under way."""
    together: GroupCommit[int, int] = GroupCommit("test", gate)
    begun = together.ask(first)
    eventually(lambda: gate.asked, what="the first is under way")
    return begun, [together.ask(number) for number in numbers]


def test_what_comes_while_a_statement_is_under_way_shares_the_next() -> None:
    gate = BlockedAct()
    first, others = ask(gate, 1, 2, 3, 4, 5)
    assert not any(answer.done() for answer in (first, *others)), "nobody is answered before it is done"
    gate.open.set()
    assert [answer.result(20) for answer in (first, *others)] == [10, None, 30, None, 50]
    assert gate.asked == [[1], [2, 3, 4, 5]]


def test_when_a_statement_fails_each_asks_by_itself_and_the_next_goes_on() -> None:
    gate = BlockedAct()
    first, others = ask(gate, 13, 1)
    gate.open.set()
    assert first.result(20) is None
    assert others[0].result(20) == 10


def test_a_log_that_cannot_be_written_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("outbox.batching.log.warning", full)
    gate = BlockedAct()
    first, others = ask(gate, 13, 1)
    gate.open.set()
    assert first.result(20) is None
    assert others[0].result(20) == 10


def test_nobody_waits_for_ever_for_a_connection_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.batching.PATIENCE_SECONDS", 0.1)
    gate = BlockedAct()
    together: GroupCommit[int, int] = GroupCommit("test", gate)
    assert together.wait(1) is None
    gate.open.set()
    assert together.wait(3) == 30, "who comes when it moves again is answered"


def test_who_shares_a_turn_waits_for_it_and_finds_what_has_come_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.batching.TURN_SECONDS", 20)
    turn, one, other = Gate(), BlockedAct(), BlockedAct()
    other.open.set()
    begun = GroupCommit("one", one, gate=turn).ask(1)
    eventually(lambda: one.asked, what="the one is under way")
    together: GroupCommit[int, int] = GroupCommit("other", other, gate=turn)
    asked = [together.ask(number) for number in (1, 3, 5)]
    assert other.asked == []
    one.open.set()
    assert begun.result(20) == 10
    assert [answer.result(20) for answer in asked] == [10, 30, 50]
    assert other.asked == [[1, 3, 5]]


def test_nobody_waits_long_for_a_turn_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.batching.PATIENCE_SECONDS", 5)
    turn, one, other = Gate(), BlockedAct(), BlockedAct()
    other.open.set()
    GroupCommit("one", one, gate=turn).ask(1)
    eventually(lambda: one.asked, what="the one is under way")
    assert GroupCommit("other", other, gate=turn).wait(1) == 10
    one.open.set()


def test_a_statement_is_for_a_bounded_number() -> None:
    gate = BlockedAct()
    _, others = ask(gate, 1, *[1] * (MAX_BATCH + 1))
    gate.open.set()
    assert [answer.result(20) for answer in others] == [10] * (MAX_BATCH + 1)
    assert [len(asked) for asked in gate.asked] == [1, MAX_BATCH, 1]


def test_what_was_asked_for_is_not_taken_back() -> None:
    gate = BlockedAct()
    first, others = ask(gate, 1, 3)
    assert not first.cancel()
    assert not others[0].cancel()
    gate.open.set()
    try:
        assert others[0].result(20) == 30
    except CancelledError:
        pytest.fail("it was under way")
