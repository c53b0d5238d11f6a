"""Is every promise kept on this installation? Reads, changes nothing, and says what to do.

Each check is one statement that returns what breaks it: `id`, `since` (when it began, NULL where nobody
knows) and `note`. All see one moment of the database.

What it costs: `lease_expired`, `stuck`, `due_long_ago`, `two_at_work` and `breaker_open` read small partial
indexes or tables, the first three the catalog. The rest scan `resources`, `outbox` or `events`, and some probe
or hash another of the three (docs/design.md has figures). A check that takes longer than
STATEMENT_TIMEOUT_SECONDS is `unchecked`, which counts as broken: nobody knows.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from outbox import db as database
from outbox import settings
from outbox.doctor.checks.check import Check
from outbox.doctor.checks.evidence import CHECKPOINT_OVERDUE, EVIDENCE, LATE_DAYS, UNDO_MINUTES
from outbox.doctor.checks.jobs import JOBS
from outbox.doctor.checks.load import LOAD, OVERDUE_MINUTES
from outbox.doctor.checks.resources import RESOURCES
from outbox.doctor.checks.schema import SCHEMA, guards, indexes, wanted
from outbox.rows import Json

Status = Literal["broken", "warning", "unchecked"]

# A sort of some ten million events ends within it; the snapshot must not hold back vacuum for long.
STATEMENT_TIMEOUT_SECONDS = 60
# Behind a migration's lock the doctor gives up: it must not be what a claim queues behind.
LOCK_TIMEOUT_SECONDS = 4
# Enough to see a pattern; the count says how many there are.
SAMPLE = 10


@dataclass(frozen=True)
class Offender:
    """One row that breaks a check."""

    id: str
    since: dt.datetime | None
    note: str | None


@dataclass(frozen=True)
class Finding:
    """What a check found: how many, and the oldest few. `error` where it could not be made."""

    check: Check
    count: int
    sample: Sequence[Offender]
    error: str | None = None

    @property
    def status(self) -> Status:
        """How bad it is."""
        return "unchecked" if self.error else self.check.severity

    @property
    def do(self) -> str:
        """What to do about it."""
        return _TO_BE_CHECKED if self.error else self.check.do


_TO_BE_CHECKED = "what is missing: `deprovisioner migrate`; what takes too long: ask a standby, or a calmer hour"


CHECKS = (*SCHEMA, *RESOURCES, *JOBS, *EVIDENCE, *LOAD)


def examine(db: Connection, *, head: str | None) -> list[Finding]:
    """What is broken or wants a look, in the order of CHECKS; empty when all is well.

    `head` is the newest revision that this version knows. `db` is `db.snapshot()`'s: nothing is written, and all
    checks see the same moment.
    """
    db.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_SECONDS}s'"))
    db.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
    asked = _asked() | {"head": head}
    return [finding for check in CHECKS if (finding := _make(db, check, asked)) is not None]


def _make(db: Connection, check: Check, asked: Json) -> Finding | None:
    found = text(f"""
        SELECT CAST(id AS text) AS id, since, note, count(*) OVER () AS total FROM ({check.sql}) AS found
         ORDER BY since NULLS LAST, found.id LIMIT {SAMPLE}""")
    try:
        with db.begin_nested():  # so that the others go on when this one takes too long or lacks a table
            rows = db.execute(found, asked).all()
    except DBAPIError as error:
        if database.unreachable(error):
            raise
        return Finding(check, 0, [], error=str(error.orig).strip().splitlines()[0])
    if not rows:
        return None
    return Finding(check, rows[0].total, [Offender(row.id, row.since, row.note) for row in rows])


def _asked() -> Json:
    """What the statements take; each picks its own."""
    current = settings.get()
    return {
        "patience": 3 * current.lease + dt.timedelta(seconds=current.sweep_seconds),
        "overdue": dt.timedelta(minutes=OVERDUE_MINUTES),
        "late": dt.timedelta(days=LATE_DAYS),
        "undo": dt.timedelta(minutes=UNDO_MINUTES),
        "unvouched": CHECKPOINT_OVERDUE,
        **wanted("guard", guards()),
        **wanted("index", [w for w in indexes() if w[0] == "index"]),
    }
