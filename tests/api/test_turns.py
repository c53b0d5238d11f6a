"""Requests that may wait for a locked row: one at a time for each row, and few in all."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

import pytest

from api import turns
from api.problems import Problem
from outbox import db
from tests.support.witness import eventually


class Rows:
    """Acts that stand still until they are let go, and who is inside one."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.go = threading.Event()

    def act(self, name: str) -> Callable[[], str]:
        def stand() -> str:
            self.inside.append(name)
            self.go.wait(5)
            return name

        return stand


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """With two seats, and a twentieth of the patience."""
    monkeypatch.setattr(turns, "_seats", asyncio.Semaphore(2))
    monkeypatch.setattr(turns, "_turns", WeakValueDictionary())
    monkeypatch.setattr(db, "LOCK_TIMEOUT_MS", 200)
    return Rows()


async def _answer(call: Awaitable[str]) -> str:
    try:
        return await call
    except Problem as problem:
        return f"{problem.status}: {problem.detail}"


async def _is(happened: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, happened)


def test_callers_of_one_row_go_one_after_the_other(rows: Rows) -> None:
    async def story() -> None:
        first = asyncio.create_task(turns.in_turn("row", rows.act("first")))
        await _is(lambda: rows.inside == ["first"])
        second = await _answer(turns.in_turn("row", rows.act("second")))
        assert second == "503: other requests wait for this already; ask again"
        assert rows.inside == ["first"]
        third = asyncio.create_task(_answer(turns.in_turn("row", rows.act("third"))))
        await asyncio.sleep(0)  # until it waits for its turn
        rows.go.set()
        assert await first == "first"
        assert await third == "third", "the turn is free again"

    asyncio.run(story())


def test_few_callers_wait_for_rows_at_once_and_the_next_one_is_busy(rows: Rows) -> None:
    async def story() -> None:
        both = [asyncio.create_task(turns.in_turn(row, rows.act(row))) for row in ("a", "b")]
        await _is(lambda: sorted(rows.inside) == ["a", "b"])
        third = await _answer(turns.in_turn("c", rows.act("c")))
        assert third == "503: too many requests wait for locked rows; ask again"
        rows.go.set()
        assert [await each for each in both] == ["a", "b"]
        assert await _answer(turns.in_turn("c", rows.act("c"))) == "c", "turn and seat are free again"

    asyncio.run(story())
