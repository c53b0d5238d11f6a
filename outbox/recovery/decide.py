"""A recovery from its decisions to its end. Each step is one transaction, and may be repeated after a crash."""

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import SQLAlchemyError

from outbox import acts as noted_acts
from outbox import breakers, holds, rewinds, tokens
from outbox.errors import BadRequest, Conflict, DigestMismatch
from outbox.events import Event
from outbox.memory import Memory
from outbox.recovery.acts import By, Item, Look
from outbox.recovery.classes import BY_NAME, HORIZON_MINUTES
from outbox.recovery.survey import TIMEOUT, classes_of, summary
from outbox.rows import Json
from outbox.states import Decision

# Items in one transaction: each takes some milliseconds, and a crash loses no more than these.
BATCH = 100
# The triggers of revision 0013 let this transaction write while everything else stands still.
RECOVERING = text("SET LOCAL deprovisioner.recovering = 'on'")
# Of the advisory lock that one recovery at a time has; the number has no meaning.
_TURN = 4_702_115


@dataclass(frozen=True)
class Wanted:
    """What a person decided: which survey, what becomes of each class, and why.

    `without`: the backends that could not be read, and need not be. `tenant`: whose an object is that no note knows.
    `revoke_before`: all tokens that were made before it are revoked.
    """

    digest: str
    decisions: Mapping[str, Decision]
    reason: str
    backend: str | None = None
    without: frozenset[str] = frozenset()
    tenant: str | None = None
    revoke_before: dt.datetime | None = None


@contextmanager
def one_at_a_time(db: Connection) -> Iterator[None]:
    """Keep other recoveries out meanwhile; `db` stays with this one. Raises Conflict where another one runs."""
    if not db.execute(text("SELECT pg_try_advisory_lock(:turn)"), {"turn": _TURN}).scalar_one():
        raise Conflict("another `deprovisioner recover` is running: wait for its end, then survey again")
    try:
        yield
    finally:
        with suppress(SQLAlchemyError):  # a connection that was lost has left the lock already
            db.execute(text("SELECT pg_advisory_unlock(:turn)"), {"turn": _TURN})


_LAST = text("SELECT * FROM recoveries WHERE digest IS NOT NULL ORDER BY id DESC LIMIT 1 FOR UPDATE")
_ALIVE = text("""
    SELECT id, lease_expires_at FROM outbox
     WHERE state = 'running' AND lease_expires_at > clock_timestamp()
       AND (CAST(:backend AS text) IS NULL OR backend = :backend)
     ORDER BY lease_expires_at DESC LIMIT 1""")
_BEGUN = text("""
    UPDATE recoveries
       SET decisions = CAST(:decisions AS jsonb), without = CAST(:without AS text[]), tenant = :tenant,
           revoke_before = :revoke_before, reason = :reason, decided_by = :actor, begun_at = clock_timestamp()
     WHERE id = :id""")


def begin(db: Connection, wanted: Wanted, *, actor: str) -> Row[Any]:
    """Store the decisions on the last survey, when it still finds exactly what it found; the recovery's row.

    From then on the same command goes on where it stopped. Raises BadRequest for decisions that are missing or wrong,
    DigestMismatch, Conflict.
    """
    db.execute(RECOVERING)
    db.execute(text(TIMEOUT))
    last = db.execute(_LAST).one_or_none()
    if last is None:
        raise BadRequest("there is no survey yet: `deprovisioner recover` makes one")
    if last.digest != wanted.digest or last.backend != wanted.backend:
        where = f" --backend {last.backend}" if last.backend else ""
        raise DigestMismatch(
            f"this is not the digest of the last survey ({last.id}, made by {last.actor}): survey again, with "
            f"`deprovisioner recover{where}`, and decide on what it shows"
        )
    chosen = {name: str(decision) for name, decision in sorted(wanted.decisions.items())}
    if last.begun_at is not None:
        _refuse_other_decisions(last, wanted, chosen)
        return last
    _refuse_incomplete(db, last, wanted)
    _refuse_changed(db, last)
    if last.backend is None:
        rewinds.engage(db, actor=actor, reason=last.verdict or f"recovery {last.id}: {wanted.reason}")
    words = {
        "id": last.id,
        "decisions": json.dumps(chosen),
        "without": sorted(wanted.without),
        "tenant": wanted.tenant,
        "revoke_before": wanted.revoke_before,
        "reason": wanted.reason,
        "actor": actor,
    }
    db.execute(_BEGUN, words)
    return db.execute(_LAST).one()


def _refuse_other_decisions(last: Row[Any], wanted: Wanted, chosen: dict[str, str]) -> None:
    """Raise Conflict where the same recovery was begun with other decisions."""
    before = (last.decisions, frozenset(last.without), last.tenant, last.revoke_before)
    if before != (chosen, wanted.without, wanted.tenant, wanted.revoke_before):
        said = " ".join(f"--decide {name}={decision}" for name, decision in last.decisions.items())
        raise Conflict(
            f"recovery {last.id} was begun by {last.decided_by} with other decisions ({said or 'none'}, --without "
            f"{last.without}, --tenant {last.tenant}, --revoke-tokens-before {last.revoke_before}): repeat "
            "the command with these, or run `deprovisioner recover` for a new survey; what is done stays done"
        )


def _refuse_incomplete(db: Connection, last: Row[Any], wanted: Wanted) -> None:
    """Raise BadRequest for a class without a decision, a decision that a class does not take, or a backend unread."""
    known = {one.name: one for one in classes_of(last)}
    if unknown := sorted(wanted.decisions.keys() - known.keys()):
        raise BadRequest(f"--decide {unknown[0]}: this survey has no such class; it has {', '.join(known)}")
    for name, decision in wanted.decisions.items():
        if decision not in known[name].does:
            raise BadRequest(f"--decide {name}={decision}: it takes {' or '.join(known[name].does)}")
    if missing := [name for name, count in last.counts.items() if count and name not in wanted.decisions]:
        raise BadRequest(f"these classes have items, and no decision (--decide CLASS=DECISION): {', '.join(missing)}")
    if unread := sorted(last.errors.keys() - wanted.without):
        raise BadRequest(
            f"backend {unread[0]!r} could not be read: {last.errors[unread[0]]}; repair that and survey again, or "
            f"leave its objects uncompared with --without {unread[0]}"
        )
    if needless := sorted(wanted.without - last.errors.keys()):
        raise BadRequest(
            f"--without {needless[0]}: this backend was read, so it is part of the recovery; leave the option out"
        )
    if wanted.decisions.get("unknown_objects") == Decision.CONFIRM and wanted.tenant is None:
        nameless = db.execute(_NAMELESS, {"id": last.id}).scalar_one()
        if nameless:
            raise BadRequest(
                f"no note names the tenant of {nameless} unknown objects: name it with --tenant, or leave them "
                "(--decide unknown_objects=leave)"
            )


_NAMELESS = text("""
    SELECT count(*) FROM recovery_items
     WHERE recovery_id = :id AND class = 'unknown_objects' AND detail ->> 'tenant' IS NULL AND detail ->> 'why' = ''""")
_AGE = text("SELECT :at < clock_timestamp() - :minutes * interval '1 minute'")


def _refuse_changed(db: Connection, last: Row[Any]) -> None:
    """Raise DigestMismatch or Conflict where what was shown is not what would be decided on."""
    here = rewinds.here(db, [])
    if last.backend is not None and here.rewound:
        raise Conflict(
            "the control database itself went back in time: run `deprovisioner recover` without --backend first; it "
            "compares all backends"
        )
    if here.incarnation != last.incarnation:
        raise Conflict("the control database was started again, or replaced, since the survey: survey again")
    if db.execute(_AGE, {"at": last.created_at, "minutes": HORIZON_MINUTES}).scalar_one():
        raise DigestMismatch(f"the survey is older than {HORIZON_MINUTES} minutes: survey again")
    alive = db.execute(_ALIVE, {"backend": last.backend}).one_or_none()
    if alive is not None:
        raise Conflict(
            f"job {alive.id} is still running, under a lease until {alive.lease_expires_at}: wait for its end, then "
            "survey again"
        )
    counts, digest = summary(db, last, stored=False)
    if digest != last.digest:
        changed = [
            f"{name}: {before}, now {counts[name]}" for name, before in last.counts.items() if before != counts[name]
        ]
        what = "; ".join(changed) or "the counts are the same, the items are not, or a job has moved on"
        raise DigestMismatch(f"this is not what the survey found ({what}): survey again")


_LOCK = text("SELECT * FROM recoveries WHERE id = :id FOR UPDATE")
_WAITING = """
    SELECT n, key, backend, job_id, fence, resource_id, detail FROM recovery_items
     WHERE recovery_id = :id AND class = :class AND decision IS NULL
       AND (CAST(:looked AS bigint[]) IS NULL OR n = ANY(CAST(:looked AS bigint[])))
     ORDER BY n LIMIT :batch"""
_DECIDED = text("""
    UPDATE recovery_items SET decision = :decision, refused = said.why IS NOT NULL, said = said.why
      FROM unnest(CAST(:ns AS bigint[]), CAST(:whys AS text[])) AS said (n, why)
     WHERE recovery_id = :id AND class = :class AND recovery_items.n = said.n""")


def waiting(db: Connection, id: int, name: str) -> Sequence[Item]:
    """The next items of a class that wait, at most a batch of them."""
    return db.execute(text(_WAITING), {"id": id, "class": name, "looked": None, "batch": BATCH}).all()


def step(db: Connection, id: int, name: str, looks: Mapping[int, Look] | None = None) -> int:
    """Carry out the decision on the next batch of a class; returns how many items that were, 0 at the class's end.

    `looks`: only the items that were just inspected. Each item is done once, with its event.
    """
    db.execute(RECOVERING)
    recovery = db.execute(_LOCK, {"id": id}).one()
    looked = None if looks is None else list(looks)
    items = db.execute(text(_WAITING), {"id": id, "class": name, "looked": looked, "batch": BATCH}).all()
    if not items:
        return 0
    decision = Decision(recovery.decisions[name])
    by = By(id, recovery.decided_by, recovery.reason, recovery.tenant, looks or {})
    refused = BY_NAME[name].does[decision][1](db, by, items)
    said = {"ns": [item.n for item in items], "whys": [refused.get(item.n) for item in items]}
    db.execute(_DECIDED, {"id": id, "class": name, "decision": decision} | said)
    _note(db, by, name, decision, items, refused)
    return len(items)


# Sorted by chain, as all statements that lock several chains.
_NOTED = text(f"""
    INSERT INTO events (resource_id, fence, event, actor, reason, detail)
    SELECT chain, 0, '{Event.DECIDED}', :actor, :reason, CAST(detail AS jsonb)
      FROM (SELECT coalesce(resource_id, installation.id) AS chain, detail, nth
              FROM unnest(CAST(:resources AS uuid[]), CAST(:details AS text[]))
                   WITH ORDINALITY AS item (resource_id, detail, nth) CROSS JOIN installation) AS item
     ORDER BY chain, nth""")


def _note(
    db: Connection, by: By, name: str, decision: Decision, items: Sequence[Item], refused: Mapping[int, str]
) -> None:
    """An event for each item, in its resource's chain; where it has none in the installation's, with what it was."""
    details = []
    for item in items:
        said: Json = {"recovery": by.recovery, "class": name, "decision": decision, "key": item.key}
        if item.n in refused:
            said["refused"] = refused[item.n]
        details.append(json.dumps(said | ({} if item.resource_id else {"item": item.detail})))
    chains = [item.resource_id for item in items]
    db.execute(_NOTED, {"actor": by.actor, "reason": by.reason, "resources": chains, "details": details})


_TOKENS = text("""
    SELECT id FROM tokens WHERE revoked_at IS NULL AND created_at < :before ORDER BY id LIMIT :batch""")


def revoke_tokens(db: Connection, id: int) -> int:
    """Revoke the next tokens that were made before the moment that was decided; returns how many."""
    recovery = db.execute(_LOCK, {"id": id}).one()
    if recovery.revoke_before is None:
        return 0
    found = db.execute(_TOKENS, {"before": recovery.revoke_before, "batch": BATCH}).scalars().all()
    for token in found:
        tokens.revoke(db, token, actor=recovery.decided_by, reason=f"recovery {id}: {recovery.reason}")
    return len(found)


_LEFT = text("""
    SELECT class, count(*) AS left FROM recovery_items WHERE recovery_id = :id AND decision IS NULL GROUP BY class""")
_TOLD = text("""
    SELECT class, decision, count(*) AS items, count(*) FILTER (WHERE refused) AS refused FROM recovery_items
     WHERE recovery_id = :id GROUP BY class, decision ORDER BY class""")
# Later than any that a place remembers: the database may be from before an earlier recovery.
_NEXT_EPOCH = text("UPDATE installation SET epoch = :epoch, announced_at = NULL")
_UNCOMPARED = text("UPDATE memories SET compared_under = NULL WHERE place = ANY(CAST(:places AS text[]))")
# A recovery accepts a place that has less than workers wrote there before it.
_FORWARD = text("""
    UPDATE memories
       SET behind_since = NULL, note = NULL, epoch = NULL, event = NULL
     WHERE place = ANY(CAST(:places AS text[])) AND behind_since IS NOT NULL
 RETURNING place""")
_COMPARED_THERE = text("""
    UPDATE memories SET compared_under = installation.compared_under, compared_at = clock_timestamp()
      FROM installation WHERE place = :place AND installation.compared_under = :incarnation""")
_FINISHED = text("UPDATE recoveries SET finished_at = clock_timestamp() WHERE id = :id")


def finish(db: Connection, id: int) -> None:
    """End a recovery: its event, a new epoch, and the hold's release, or the backend's; nothing may start before.

    Does nothing when it has ended. Raises Conflict while items wait, or after the server was started again.
    """
    db.execute(RECOVERING)
    recovery = db.execute(_LOCK, {"id": id}).one()
    if recovery.finished_at is not None:
        return
    if left := db.execute(_LEFT, {"id": id}).all():
        raise Conflict(f"recovery {id} is not done: {', '.join(f'{row.left} of {row[0]}' for row in left)}")
    places = [*recovery.surveyed, rewinds.BROKER]
    here = rewinds.here(db, places)
    if here.incarnation != recovery.incarnation:
        raise Conflict("the control database was started again, or replaced, since the survey: survey again")
    told = [dict(row._mapping) for row in db.execute(_TOLD, {"id": id})]
    detail: Json = {"recovery": id, "decided": told, "without": recovery.without, "survey_by": recovery.actor}
    if recovery.backend is not None:
        detail["backend"] = recovery.backend
    who = {"actor": recovery.decided_by, "reason": recovery.reason}
    epoch = here.epoch if recovery.backend else max(here.epoch, recovery.epoch_seen) + 1
    noted_acts.note(db, Event.RECOVERED, **who, detail=detail | {"epoch": epoch})
    went_back = db.execute(
        _FORWARD, {"places": [recovery.backend] if recovery.backend else recovery.surveyed}
    ).scalars()
    for backend in went_back.all():
        breakers.close(db, backend)
    if recovery.backend is not None:
        db.execute(_COMPARED_THERE, {"place": recovery.backend, "incarnation": here.incarnation})
    else:
        # The epoch before the hold, as a worker that engages the hold locks them.
        db.execute(_NEXT_EPOCH, {"epoch": epoch})
        holds.end_rewind(db, actor=recovery.decided_by, reason=f"recovery {id}: {recovery.reason}")
        db.execute(_UNCOMPARED, {"places": recovery.without})
        rewinds.settle(db, replace(here, epoch=epoch), places)
    db.execute(_FINISHED, {"id": id})


def memory(db: Connection, *, still: bool = False) -> Memory:
    """Where this database is now, as places are to keep it."""
    return replace(rewinds.here(db, []).memory(still=still), notes=rewinds.notes(db))


_ANNOUNCED = text("UPDATE installation SET announced_at = coalesce(announced_at, clock_timestamp())")


def announce(db: Connection, *, actor: str, reason: str) -> None:
    """Engage the hold of a rewind before a planned restore; where it is in force, only the announcement is noted."""
    db.execute(RECOVERING)
    rewinds.here(db, [])  # makes the installation's row, where there is none yet
    rewinds.engage(db, actor=actor, reason=f"a restore was announced: {reason}")
    db.execute(_ANNOUNCED)
    noted_acts.note(db, Event.ANNOUNCED, actor=actor, reason=reason, detail={})
