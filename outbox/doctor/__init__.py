"""Checks whether this installation keeps every promise. It only reads, and says what to do.

Each check is one statement that returns the rows that break it: `id`, `since` (when it began, NULL where that is not
known) and `note`. All checks see one moment of the database.

What it costs: the checks of the server and the schema read settings and the catalog. `lease_expired`, `stuck`,
`due_long_ago`, `two_at_work` and `breaker_open` read small partial indexes or tables. The others scan `resources`,
`outbox` or `events`, and some of them also probe or hash another of these three (docs/design.md has figures). A check
that takes longer than STATEMENT_TIMEOUT_SECONDS is `unchecked`, which counts as broken, since its answer is not known.
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
from outbox.doctor.checks.reconcile import RECONCILE
from outbox.doctor.checks.resources import RESOURCES
from outbox.doctor.checks.rewinds import REWINDS
from outbox.doctor.checks.schema import SCHEMA, guards, indexes, wanted
from outbox.doctor.checks.server import SERVER
from outbox.rows import Json

Status = Literal["broken", "warning", "unchecked"]

# Time to sort some ten million events; a longer snapshot would hold back vacuum.
STATEMENT_TIMEOUT_SECONDS = 60
# The doctor gives up waiting for a migration's lock: claims must not queue behind the doctor.
LOCK_TIMEOUT_SECONDS = 4
# Rows shown for each check, enough to see a pattern; the count says how many there are.
SAMPLE = 10


@dataclass(frozen=True)
class Offender:
    """One row that breaks a check."""

    id: str
    since: dt.datetime | None
    note: str | None


@dataclass(frozen=True)
class Finding:
    """What a check found: how many rows, and the oldest of them. `error` is why the check could not run."""

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
        return _UNCHECKED if self.error else self.check.do


_UNCHECKED = (
    "if a table or a column is missing, run `deprovisioner migrate`; if the check takes too long, run the doctor on a "
    "standby or at a quieter time"
)


CHECKS = (*SERVER, *SCHEMA, *RESOURCES, *JOBS, *EVIDENCE, *LOAD, *REWINDS, *RECONCILE)


def examine(db: Connection, *, head: str | None) -> list[Finding]:
    """The checks that found something or could not run, in the order of CHECKS; empty when all is well.

    `head` is the newest revision of the schema that this version knows. `db` must be a snapshot: all checks see the
    same moment.
    """
    db.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_SECONDS}s'"))
    db.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
    asked = _asked() | {"head": head}
    return [finding for check in CHECKS if (finding := _run(db, check, asked)) is not None]


def _run(db: Connection, check: Check, asked: Json) -> Finding | None:
    found = text(f"""
        SELECT CAST(id AS text) AS id, since, note, count(*) OVER () AS total FROM ({check.sql}) AS found
         ORDER BY since NULLS LAST, found.id LIMIT {SAMPLE}""")
    try:
        with db.begin_nested():  # a check that times out or lacks a table must not abort the others
            rows = db.execute(found, asked).all()
    except DBAPIError as error:
        if database.unreachable(error):
            raise
        return Finding(check, 0, [], error=str(error.orig).strip().splitlines()[0])
    if not rows:
        return None
    return Finding(check, rows[0].total, [Offender(row.id, row.since, row.note) for row in rows])


def _asked() -> Json:
    """The parameters of all checks; each statement uses its own."""
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
