"""A worker's pool whose teardowns wait, and what the database says of it."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, text

from outbox import observations
from tests.support.factories import a_job
from tests.support.shelf import Shelf
from worker.pool import Pool, ServedBackend


@contextmanager
def pool(concurrency: dict[str, int], *, slots: int, sweep_seconds: float = 60, worker: str = "w1") -> Iterator[Pool]:
    """A pool whose teardowns all wait until the block ends."""
    released = threading.Event()
    served = {name: ServedBackend(Shelf(does=lambda: wait_for(released)), most) for name, most in concurrency.items()}
    made = Pool(served, worker=worker, slots=slots, lease_seconds=0.3, sweep_seconds=sweep_seconds)
    try:
        yield made
    finally:
        made.stop()
        released.set()
        assert made.join(20)


def wait_for(event: threading.Event) -> None:
    assert event.wait(30)


def running(db: Connection) -> dict[str, int]:
    """How many jobs of each backend are running."""
    counted = db.execute(text("SELECT backend, count(*) FROM outbox WHERE state = 'running' GROUP BY 1"))
    return dict(counted.all())


def wanted(db: Connection, *, backend: str = "pg-main") -> int:
    """An inspection of a stuck job that an operator waits for."""
    return observations.ask(db, a_job(db, state="stuck", backend=backend), actor="op").id


def fails(*_: Any, **__: Any) -> Any:
    """Takes the place of a function."""
    raise RuntimeError("a bug")


def failures(logged: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names under which the log tells of failures."""
    return {line["event"] for line in logged if line["event"].endswith(("_failed", "_not_recorded"))}
