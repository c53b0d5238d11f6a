"""The begin and the end of a run. One run of a backend counts: a later one takes the place of an earlier one."""

import datetime as dt
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from outbox import foreign, rewinds
from outbox.errors import Conflict, NotFound, Rewound
from outbox.events import Event
from outbox.reconcile.compare import MOVED, NAMED, PAGE, Counts
from outbox.rows import Json
from outbox.states import Difference

# Workers run one a day for each backend.
EVERY = dt.timedelta(days=1)
# What is younger is no finding. A run that failed is repeated after it, and one that has told nothing for it is dead.
YOUNG = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Run:
    """A run of one backend. Rows and objects that changed after `before` are not compared."""

    backend: str
    number: int
    begun_at: dt.datetime

    @property
    def before(self) -> dt.datetime:
        """What changed later is too young."""
        return self.begun_at - YOUNG

    @property
    def words(self) -> Json:
        """The parameters that name the run in a statement."""
        return {"backend": self.backend, "run": self.number, "before": self.before, "begun_at": self.begun_at}


_KNOWN = text("""
    INSERT INTO reconciliations (backend) SELECT unnest(CAST(:backends AS text[]))
        ON CONFLICT (backend) DO NOTHING""")
_IS_DUE = """now() >= CASE WHEN {0}.ended_at IS NULL THEN {0}.known_since + :young ELSE {0}.ended_at + :every END
           AND coalesce({0}.told_at <= now() - :young, true)"""
_DUE = text(f"""
    SELECT backend FROM reconciliations
     WHERE backend = ANY(CAST(:backends AS text[])) AND {_IS_DUE.format("reconciliations")}
     ORDER BY ended_at NULLS FIRST, backend""")
_TURN = {"young": YOUNG, "every": EVERY}


def due(db: Connection, backends: Sequence[str]) -> list[str]:
    """The backends whose daily run is due, the one that has waited longest first."""
    db.execute(_KNOWN, {"backends": list(backends)})
    return list(db.execute(_DUE, {"backends": list(backends)} | _TURN).scalars())


_BEHIND = "EXISTS (SELECT FROM memories WHERE place = :backend AND behind_since IS NOT NULL)"
_BEGIN = text(f"""
    INSERT INTO reconciliations AS kept (backend, run, actor, incarnation, begun_at, told_at)
    SELECT :backend, 1, :actor, {rewinds.INCARNATION}, now(), now()
     WHERE {rewinds.GOES_ON} AND NOT {_BEHIND}
        ON CONFLICT (backend) DO UPDATE
       SET run = kept.run + 1, actor = excluded.actor, incarnation = excluded.incarnation, begun_at = now(),
           told_at = now()
     WHERE NOT :only_due OR ({_IS_DUE.format("kept")})
 RETURNING run, begun_at""")
_MAY = text(f"SELECT {rewinds.GOES_ON} AS goes_on, {_BEHIND} AS behind")
# What a run that died has left.
_CLEAR = (
    text("DELETE FROM reconciliation_objects WHERE backend = :backend AND run <= :run"),
    text("DELETE FROM reconciliation_items WHERE backend = :backend AND run <= :run"),
)


def begin(db: Connection, backend: str, *, actor: str, only_due: bool = False) -> Run | None:
    """Begin a run; None where `only_due`, and another worker has begun it or it is not due.

    Raises Rewound, or Conflict while it is not known whether this database or the backend went back in time.
    """
    row = db.execute(_BEGIN, {"backend": backend, "actor": actor, "only_due": only_due} | _TURN).one_or_none()
    if row is not None:
        _clear(db, backend, row.run - 1)
        return Run(backend, row.run, row.begun_at)
    _refuse(db, backend)
    return None


def _refuse(db: Connection, backend: str) -> None:
    """Raise what keeps a run from beginning, or from its end."""
    if rewinds.rewound(db):
        raise Rewound
    may = db.execute(_MAY, {"backend": backend}).one()
    if may.behind:
        raise Conflict(
            f"backend {backend!r} went back in time: `deprovisioner recover --backend {backend}` compares it, and lets "
            "jobs start there again"
        )
    if not may.goes_on:
        raise Conflict(
            "the control database was started again, and no worker has compared it with its backends yet: it may have "
            "gone back in time; start a worker, or wait for it"
        )


def _clear(db: Connection, backend: str, number: int) -> None:
    for statement in _CLEAR:
        db.execute(statement, {"backend": backend, "run": number})


_MINE = text(f"""
    SELECT EXISTS (SELECT FROM reconciliations
                    WHERE backend = :backend AND run = :run AND incarnation = {rewinds.INCARNATION}
                      FOR UPDATE)""")
# What changed since the comparison is not known: it is neither found, nor does it end an older finding.
_MOVED = text(f"""
    UPDATE reconciliation_items AS item SET stands = NULL
     WHERE backend = :backend AND run = :run AND stands
       AND CASE WHEN code = 'unmarked' THEN {NAMED.format("item")} ELSE {MOVED.format("item")} END""")
_CLOSE = text("""
    UPDATE object_findings AS found SET closed_at = now()
     WHERE backend = :backend AND closed_at IS NULL AND code = ANY(CAST(:codes AS text[]))
       AND NOT EXISTS (SELECT FROM reconciliation_items AS item
                        WHERE item.backend = :backend AND item.run = :run AND item.code = found.code
                          AND item.key = found.key AND stands IS DISTINCT FROM false)""")
_SHOWN = "resource_id, names, parts, why, size_bytes, created_at, last_used_at"
_STORE = text(f"""
    WITH page AS MATERIALIZED (
        SELECT DISTINCT ON (code, key) backend, code, key, {_SHOWN} FROM reconciliation_items
         WHERE backend = :backend AND run = :run AND stands AND (code, key) > (:code, :key)
         ORDER BY code, key LIMIT :page
    ), stored AS (
        INSERT INTO object_findings (backend, code, key, {_SHOWN}) SELECT backend, code, key, {_SHOWN} FROM page
            ON CONFLICT (backend, code, key) WHERE closed_at IS NULL DO UPDATE
           SET seen_at = now(), resource_id = excluded.resource_id, names = excluded.names, parts = excluded.parts,
               why = excluded.why, size_bytes = excluded.size_bytes, created_at = excluded.created_at,
               last_used_at = excluded.last_used_at
    )
    SELECT code, key FROM page ORDER BY code DESC, key DESC LIMIT 1""")
_ENDED = text("""
    UPDATE reconciliations
       SET told_at = now(), compared_at = begun_at, ended_at = now(), error = :error, objects = :objects,
           resources = :resources, others = :others
     WHERE backend = :backend AND run = :run""")


def conclude(
    db: Connection,
    run: Run,
    counts: Counts,
    codes: Sequence[Difference],
    *,
    field: str | None,
    error: str | None = None,
) -> None:
    """Store what stands as findings, and close those of `codes` that do not stand any more; `db` is a transaction.

    `field`: the manifest's name of an object, by which an unmarked one may have got a row. `error`: what could not be
    inspected. Raises Rewound, Conflict.
    """
    asked = run.words | {"codes": list(codes), "field": field}
    mine = db.execute(_MINE, asked).scalar_one()
    _refuse(db, run.backend)
    if not mine:
        raise Conflict(
            "another run of this backend has begun, or the control database was started again: nothing was stored"
        )
    for statement in (_MOVED, _CLOSE):
        db.execute(statement, asked)
    last = {"code": "", "key": ""}
    while (row := db.execute(_STORE, asked | last | {"page": PAGE}).one_or_none()) is not None:
        last = {"code": row.code, "key": row.key}
    db.execute(_ENDED, asked | vars(counts) | {"error": None if error is None else foreign.line(error)})
    _clear(db, run.backend, run.number)


_FAILED = text("""
    UPDATE reconciliations SET told_at = now(), error = :error WHERE backend = :backend AND run = :run""")


def fail(db: Connection, run: Run, error: str) -> None:
    """Store why a run failed. The findings of the last good one stay."""
    db.execute(_FAILED, run.words | {"error": foreign.line(error)})
    _clear(db, run.backend, run.number)


_ADOPTED = text("""
    UPDATE object_findings SET closed_at = now(), adopted_as = :resource WHERE id = :id AND closed_at IS NULL
 RETURNING id""")
_NOTED = text(f"""
    INSERT INTO events (resource_id, fence, event, actor, reason, detail)
    VALUES (:resource, 0, '{Event.DECIDED}', :actor, :reason, CAST(:detail AS jsonb))""")


def adopted(db: Connection, id: int, resource_id: uuid.UUID, *, actor: str, reason: str, detail: Json) -> None:
    """Close a finding whose object was just registered as a resource, with the event of who decided that, and why.

    Raises NotFound where it is closed already.
    """
    if db.execute(_ADOPTED, {"id": id, "resource": resource_id}).one_or_none() is None:
        raise NotFound(f"finding {id} does not stand any more: run `deprovisioner reconcile` again")
    said = json.dumps({"finding": id} | detail)
    db.execute(_NOTED, {"resource": resource_id, "actor": actor, "reason": reason, "detail": said})
