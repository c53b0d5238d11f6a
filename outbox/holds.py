"""Holds: stops that an operator or a brake engages, on everything or on one backend, tenant or kind.

A hold takes effect at the next `start`, whose statement reads this table; a teardown that has started goes on to its
end. A job that `start` refused for a hold is parked under it (`outbox.held_by`) until the hold is released: it uses up
no attempt, and does not slow the claims of other jobs.
"""

import datetime as dt
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import IntegrityError

from outbox import acts, settings
from outbox.brakes import TURN
from outbox.errors import AlreadyReleased, BackendRetired, BadRequest, BrakeHit, HasAbandoned, NotFound, Rewound
from outbox.events import Event
from outbox.states import HoldCause, HoldScope


@dataclass(frozen=True)
class Hold:
    """One hold. `subject` is None for the scope `global`, else the name of the backend, tenant or kind."""

    id: int
    scope: HoldScope
    subject: str | None
    cause: HoldCause
    reason: str
    actor: str
    created_at: dt.datetime
    released_at: dt.datetime | None
    released_by: str | None
    release_reason: str | None

    @classmethod
    def read(cls, row: Row[Any]) -> "Hold":
        """The hold of a row."""
        values = {field.name: row._mapping[field.name] for field in fields(cls)}
        return cls(**{**values, "scope": HoldScope(row.scope), "cause": HoldCause(row.cause)})

    @property
    def name(self) -> str:
        """The hold without its reason: tenants read a job's errors, and only operators may read the reason."""
        return f"hold {self.id} on {'everything' if self.subject is None else f'{self.scope} {self.subject}'}"

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


_COLUMNS = ", ".join(field.name for field in fields(Hold))

# Whether a hold in force covers a job: `{0}` is a row with its resource's backend, tenant and kind, `{1}` the job's
# kind. What was deleted by mistake is given back while everything else stands still: only a rewind, and a server that
# moves or is gone, stop restores.
COVERS = """holds.released_at IS NULL
               AND ({1} = 'deprovision' OR (holds.cause = 'operator' AND {1} <> 'restore')
                    OR holds.cause IN ('rewound', 'rebind', 'retired'))
               AND (holds.scope = 'global' OR (holds.scope = 'backend' AND holds.subject = {0}.backend)
                    OR (holds.scope = 'tenant' AND holds.subject = {0}.tenant)
                    OR (holds.scope = 'kind' AND holds.subject = {0}.kind))"""

# The server of a backend is gone; add `AND subject = …`.
RETIRED = "holds.cause = 'retired' AND holds.scope = 'backend' AND holds.released_at IS NULL"

_WHICH = "jsonb_build_object('hold', id, 'scope', scope, 'subject', subject, 'cause', cause)"
_ENGAGED = acts.noted("engaged", f"'{Event.HOLD_ENGAGED}'", actor="actor", reason="reason", detail=_WHICH)
_RELEASED = acts.noted(
    "released", f"'{Event.HOLD_RELEASED}'", actor="released_by", reason="release_reason", detail=_WHICH
)

_INSERT = f"""
        INSERT INTO holds (scope, subject, cause, reason, actor)
        VALUES (:scope, :subject, 'operator', :reason, :actor)
     RETURNING {_COLUMNS}"""
_ENGAGE = text(f"""
    WITH engaged AS ({_INSERT}
    ), {_ENGAGED}
    SELECT {_COLUMNS} FROM engaged""")
_ENGAGE_ALONE = text(_INSERT)

_KNOWN = {
    HoldScope.BACKEND: "SELECT EXISTS (SELECT FROM resources WHERE backend = :subject)",
    HoldScope.TENANT: """SELECT EXISTS (SELECT FROM resources WHERE tenant = :subject)
                             OR EXISTS (SELECT FROM tokens WHERE tenant = :subject)""",
    HoldScope.KIND: "SELECT EXISTS (SELECT FROM resources WHERE kind = :subject)",
}


def engage(db: Connection, scope: HoldScope, subject: str | None, *, actor: str, reason: str) -> Hold:
    """Stop every start in the scope, from now until the hold is released.

    A second hold on the same scope is another hold, with a release of its own. Raises BadRequest for an unknown
    subject, since a hold with a typing error in it would stop nothing.
    """
    if (scope is HoldScope.GLOBAL) != (subject is None):
        raise BadRequest("a hold on everything takes no subject; any other hold names its backend, tenant or kind")
    if subject is not None and not known(db, scope, subject):
        raise BadRequest(f"there is no {scope} {subject!r} here: this hold would stop nothing; check the name")
    asked = {"scope": scope, "subject": subject, "actor": actor, "reason": reason}
    try:
        row = db.execute(_ENGAGE, asked).one()
    except IntegrityError:  # no trigger chains the event (`setting_wrong`), and a stop must work all the same
        row = db.execute(_ENGAGE_ALONE, asked).one()
    return Hold.read(row)


def known(db: Connection, scope: HoldScope, subject: str) -> bool:
    """Whether this backend, tenant or kind exists in the backends file or in a row; if not, it is a typing error."""
    return _configured(scope, subject) or _in_use(db, scope, subject)


def in_use(db: Connection, backend: str) -> bool:
    """Whether a resource, of any status, is on a backend of that name."""
    return _in_use(db, HoldScope.BACKEND, backend)


def _configured(scope: HoldScope, subject: str) -> bool:
    """Whether the backends file has it. An operator must be able to set a hold where there is no backends file."""
    if not settings.get().backends or scope is HoldScope.TENANT:
        return False
    configured = settings.backends()
    return subject in (configured if scope is HoldScope.BACKEND else {config.kind for config in configured.values()})


def _in_use(db: Connection, scope: HoldScope, subject: str) -> bool:
    return bool(db.execute(text(_KNOWN[scope]), {"subject": subject}).scalar_one())


# Of one cause, a backend has one hold in force: a second call joins it.
_ENGAGE_CAUSE = text(f"""
    WITH engaged AS (
        INSERT INTO holds (scope, subject, cause, reason, actor)
        VALUES ('backend', :subject, :cause, :reason, :actor)
            ON CONFLICT (cause, subject) WHERE cause IN ('rebind', 'retired') AND released_at IS NULL DO NOTHING
     RETURNING {_COLUMNS}
    ), {_ENGAGED}
    SELECT {_COLUMNS} FROM engaged""")
_OF_BACKEND = text(f"""
    SELECT {_COLUMNS} FROM holds
     WHERE cause = :cause AND scope = 'backend' AND subject = :subject AND released_at IS NULL""")


def engage_cause(db: Connection, cause: HoldCause, backend: str, *, actor: str, reason: str) -> bool:
    """Stop every start on a backend, restores too, for a rebind or because it is retired; False where it is already."""
    asked = {"cause": cause, "subject": backend, "actor": actor, "reason": reason}
    return db.execute(_ENGAGE_CAUSE, asked).one_or_none() is not None


def of_backend(db: Connection, cause: HoldCause, backend: str) -> Hold | None:
    """The hold of that cause that is in force on a backend."""
    row = db.execute(_OF_BACKEND, {"cause": cause, "subject": backend}).one_or_none()
    return None if row is None else Hold.read(row)


def refuse_retired(db: Connection, backend: str) -> None:
    """Raise BackendRetired where the backend's server is gone."""
    if hold := of_backend(db, HoldCause.RETIRED, backend):
        raise BackendRetired(f"backend {backend!r} is retired, since its server is gone (hold {hold.id})")


# When two workers engage at once, the loser reads the winner's hold. A verdict from before the last release engages
# nothing: it is outdated. The turn comes first: a release that is not committed yet must be waited for, and then read.
_ENGAGE_BRAKE = text(f"""
    SELECT {TURN} FROM (VALUES (:scope, :subject)) AS brake (scope, subject);
    WITH engaged AS (
        INSERT INTO holds (scope, subject, cause, reason, actor)
        SELECT :scope, :subject, 'brake', :reason, :actor
         WHERE NOT EXISTS (SELECT FROM holds
                            WHERE cause = 'brake' AND scope = :scope AND subject = :subject
                              AND released_at > :judged_at)
            ON CONFLICT (scope, subject) WHERE cause = 'brake' AND released_at IS NULL DO NOTHING
     RETURNING {_COLUMNS}
    ), {_ENGAGED}
    SELECT {_COLUMNS}, true AS new FROM engaged
     UNION ALL
    SELECT {_COLUMNS}, false FROM holds
     WHERE cause = 'brake' AND scope = :scope AND subject = :subject AND released_at IS NULL
     LIMIT 1""")


def engage_brake(db: Connection, hit: BrakeHit, *, actor: str) -> tuple[Hold, bool] | None:
    """Engage a brake's hold; returns it and whether it is new, or None when its hold was released after the hit."""
    asked = vars(hit) | {"actor": actor, "reason": str(hit)}
    row = db.execute(_ENGAGE_BRAKE, asked).one_or_none()
    return None if row is None else (Hold.read(row), row.new)


# By the turn and the clock, each verdict of a brake has seen the release, or is from before `released_at`. Only a
# recovery ends the hold of a rewind; a trigger says the same.
_RELEASE = text(f"""
    SELECT {TURN} FROM holds WHERE id = :id AND cause = 'brake';
    SELECT FROM holds WHERE id = :id AND cause = 'retired' FOR NO KEY UPDATE;
    WITH released AS (
        UPDATE holds SET released_at = clock_timestamp(), released_by = :actor, release_reason = :reason
         WHERE id = :id AND released_at IS NULL AND cause <> 'rewound'
           AND NOT (cause = 'retired'
                    AND EXISTS (SELECT FROM resources WHERE backend = subject AND status = 'abandoned'))
     RETURNING {_COLUMNS}
    ), {_RELEASED}
    SELECT {_COLUMNS} FROM released""")
_FIND = text(f"SELECT {_COLUMNS} FROM holds WHERE id = :id")


def release(db: Connection, hold_id: int, *, actor: str, reason: str) -> Hold:
    """End a hold; `jobs.wake` then wakes the jobs that are parked under it.

    Raises NotFound, AlreadyReleased; Rewound for the hold of a rewind, which only a recovery ends; and HasAbandoned for
    a backend that is retired for good.
    """
    row = db.execute(_RELEASE, {"id": hold_id, "actor": actor, "reason": reason}).one_or_none()
    if row is not None:
        return Hold.read(row)
    before = db.execute(_FIND, {"id": hold_id}).one_or_none()
    if before is None:
        raise NotFound(f"there is no hold {hold_id}")
    if before.released_at is None and before.cause == HoldCause.RETIRED:
        raise HasAbandoned(f"objects of backend {before.subject!r} were abandoned, so it stays retired for good")
    if before.released_at is None:
        raise Rewound
    raise AlreadyReleased(f"hold {hold_id} was released by {before.released_by}: {before.release_reason}")


_END_REWIND = text(f"""
    WITH released AS (
        UPDATE holds SET released_at = clock_timestamp(), released_by = :actor, release_reason = :reason
         WHERE cause = 'rewound' AND released_at IS NULL
     RETURNING {_COLUMNS}
    ), {_RELEASED}
    SELECT {_COLUMNS} FROM released""")


def end_rewind(db: Connection, *, actor: str, reason: str) -> Hold | None:
    """End the hold of a rewind, None where there is none; a trigger demands this transaction's event `recovered`."""
    row = db.execute(_END_REWIND, {"actor": actor, "reason": reason}).one_or_none()
    return None if row is None else Hold.read(row)


_OVER = text(f"""
    SELECT {_COLUMNS} FROM holds
     WHERE EXISTS (SELECT FROM outbox JOIN resources ON resources.id = outbox.resource_id
                    WHERE outbox.id = :id AND {COVERS.format("resources", "outbox.kind")})
     ORDER BY id""")


def over(db: Connection, job_id: int) -> list[Hold]:
    """The holds in force that cover a job, oldest first."""
    return [Hold.read(row) for row in db.execute(_OVER, {"id": job_id})]
