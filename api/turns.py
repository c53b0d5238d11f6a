"""Requests that may wait for a locked row: one at a time for each row, and few in all.

Such a request keeps a thread and a connection. The others wait in the event loop, which keeps nothing.
"""

import asyncio
from collections.abc import Callable, Hashable
from typing import TypeVar
from weakref import WeakValueDictionary

from fastapi.concurrency import run_in_threadpool

from api.problems import busy
from outbox import db

T = TypeVar("T")
LOCK_WAITERS = 8
_seats = asyncio.Semaphore(LOCK_WAITERS)
_turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()


async def in_turn(row: Hashable, act: Callable[[], T]) -> T:
    """Run `act` in a thread when no other request waits for `row`. Raises 503 `busy` where that takes too long."""
    turn = _turns.setdefault(row, asyncio.Lock())
    await _acquire(turn, "other requests wait for this already; ask again")
    try:
        await _acquire(_seats, "too many requests wait for locked rows; ask again")
        try:
            return await run_in_threadpool(act)
        finally:
            _seats.release()
    finally:
        turn.release()


async def _acquire(lock: asyncio.Lock | asyncio.Semaphore, detail: str) -> None:
    try:
        async with asyncio.timeout(db.LOCK_TIMEOUT_MS / 1000):
            await lock.acquire()
    except TimeoutError as error:
        raise busy(detail) from error
