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
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

import migrations
from outbox import db as database
from outbox import settings, tables
from outbox.audit import CHECKPOINT_EVERY, HEADS, LINKS, SEAL
from outbox.rows import Json

Status = Literal["broken", "warning", "unchecked"]

# A sort of some ten million events ends within it; the snapshot must not hold back vacuum for long.
STATEMENT_TIMEOUT_SECONDS = 60
# Behind a migration's lock the doctor gives up: it must not be what a claim queues behind.
LOCK_TIMEOUT_SECONDS = 4
# Enough to see a pattern; the count says how many there are.
SAMPLE = 10
# A burst drains within it on any installation that keeps up; breakers and backoff pause for less.
OVERDUE_MINUTES = 10
# A late report is worth a look, and not for ever: events cannot be removed.
LATE_DAYS = 7
# What came late is undone by the same worker, at once: what is not undone by now will not be.
UNDO_MINUTES = 10

# Two checkpoints may be missed, by a fleet that is restarted or busy; workers make them hourly.
UNVOUCHED = 3 * CHECKPOINT_EVERY

# The triggers of the migrations; a test compares. Tables, constraints and indexes are known from `tables`.
TRIGGERS = {
    "outbox_final_is_final": "outbox",
    "outbox_fence_never_falls": "outbox",
    "outbox_live_stays": "outbox",
    "resources_deleted_is_final": "resources",
    "resources_live_stays": "resources",
    "events_append_only": "events",
    "holds_released_is_final": "holds",
    "holds_are_kept": "holds",
    "operations_finished_is_final": "operations",
    "events_chained": "events",
    "audit_checkpoints_append_only": "audit_checkpoints",
    "audit_heads_append_only": "audit_heads",
}

# Events that leave no state: they only tell.
ASIDE = ("late", "observed", "proposed")
# The state that each other event leaves its job in; None: the event says so itself.
LEAVES = {
    "enqueued": "pending",
    "claimed": "running",
    "started": "running",
    "completed": "succeeded",
    "activated": "succeeded",
    "retried": "pending",
    "deferred": "pending",
    "stuck": "stuck",
    "rolled_back": "cancelled",
    "swept": None,
    "redriven": "pending",
    "resolved": None,
}
_OUTCOMES = ", ".join(repr(e) for e in LEAVES if e not in ("enqueued", "claimed", "started", "redriven", "resolved"))
_WHEN = [f"WHEN {event!r} THEN " + (repr(state) if state else "detail ->> 'state'") for event, state in LEAVES.items()]
_LEFT_IN = f"CASE event {' '.join(_WHEN)} END"


@dataclass(frozen=True)
class Check:
    """One invariant. `subject` says what the ids are; a `warning` breaks no promise, but wants a look."""

    code: str
    subject: str
    sql: str = field(repr=False)
    means: str
    do: str
    severity: Literal["broken", "warning"] = "broken"


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
_REPORT = "keep the rows as they are and report it; `deprovisioner jobs show ID` tells the job's story"
_BY_HAND = "something wrote past the product (a person, a restore from a backup?); find out who, then "

# Name, table and sort of what the schema must have; of a trigger switched off, it has nothing.
_MISSING = """
    SELECT wanted.name AS id, CAST(NULL AS timestamptz) AS since, concat(sort, ' on ', relation) AS note
      FROM unnest(CAST(:{0}_sorts AS text[]), CAST(:{0}_relations AS text[]), CAST(:{0}_names AS text[]))
           AS wanted (sort, relation, name)
     WHERE NOT CASE sort
           WHEN 'constraint' THEN EXISTS (
                SELECT FROM pg_constraint
                 WHERE conrelid = to_regclass(relation) AND conname = wanted.name AND convalidated)
           WHEN 'trigger' THEN EXISTS (
                SELECT FROM pg_trigger
                 WHERE tgrelid = to_regclass(relation) AND tgname = wanted.name AND tgenabled IN ('O', 'A'))
           ELSE EXISTS (
                SELECT FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
                 WHERE indrelid = to_regclass(relation) AND relname = wanted.name AND indisvalid
                   AND (indisunique OR sort = 'index')) END"""

CHECKS = (
    Check(
        "schema_not_at_head",
        "revision",
        """
        SELECT revision AS id, CAST(NULL AS timestamptz) AS since, concat('this version wants ', :head) AS note
          FROM (SELECT coalesce(max(version_num), 'none') AS revision FROM alembic_version) AS at
         WHERE revision <> :head""",
        "the schema is not the one this version was written for; the other checks may mislead",
        "run `deprovisioner migrate` of the newest version that is deployed, and its `doctor`",
    ),
    Check(
        "guard_missing",
        "constraint, unique index or trigger",
        _MISSING.format("guard"),
        "what holds the promises inside the database itself is gone, invalid or switched off",
        "stop the workers, look for what else is broken below, put the guard back as migrations/versions has it",
    ),
    Check(
        "index_missing",
        "index",
        _MISSING.format("index"),
        "an index is gone or invalid: claims, sweeps or listings scan whole tables",
        "CREATE INDEX CONCURRENTLY it again, as migrations/versions has it",
        "warning",
    ),
    Check(
        "deleting_without_job",
        "resource",
        """
        SELECT id, deleted_at AS since, concat(name, ' of ', tenant, ' on ', backend) AS note FROM resources
         WHERE status = 'deleting'
           AND NOT EXISTS (SELECT FROM outbox WHERE resource_id = resources.id AND kind = 'deprovision'
                                                AND state IN ('pending', 'running', 'stuck'))""",
        "the DELETE was accepted, and nothing will ever tear it down: an orphan with working credentials",
        _BY_HAND + "insert its deprovision job and the job's `enqueued` event, in one transaction",
    ),
    Check(
        "provisioning_without_job",
        "resource",
        """
        SELECT id, created_at AS since, concat(name, ' of ', tenant, ' on ', backend) AS note FROM resources
         WHERE status = 'provisioning'
           AND NOT EXISTS (SELECT FROM outbox WHERE resource_id = resources.id AND kind = 'provision'
                                                AND state IN ('pending', 'running', 'stuck'))""",
        "it was asked for, and nothing will ever make it",
        "`deprovisioner resources delete ID`: what there is of it is torn down; then ask for it again",
    ),
    Check(
        "active_without_identity",
        "resource",
        """
        SELECT id, created_at AS since, concat(name, ' of ', tenant, ' on ', backend) AS note FROM resources
         WHERE status = 'active'
           AND (activated_at IS NULL OR manifest ->> 'generation' IS DISTINCT FROM CAST(generation AS text))""",
        "it serves, and no identity is recorded: a DELETE could not tell it from whatever bears its name",
        "take the manifest from the job's `activated` event; do not delete the resource before that",
    ),
    Check(
        "deleted_without_evidence",
        "resource",
        """
        SELECT id, purged_at AS since, concat(name, ' of ', tenant, ' on ', backend) AS note FROM resources
         WHERE status = 'deleted'
           AND NOT EXISTS (SELECT FROM events WHERE resource_id = resources.id AND event IN ('completed', 'resolved')
                              AND (detail ->> 'seen' IS NOT NULL
                                   OR (event = 'resolved' AND detail ->> 'forced' = 'true'
                                       AND detail ->> 'proposed_by' <> detail ->> 'approved_by')))""",
        "it is called deleted, and nobody recorded having seen it gone, nor did two operators: it may still run",
        "look at the backend for the names in its manifest; what bears its generation is an orphan",
    ),
    Check(
        "deprovision_of_undeleted",
        "resource",
        """
        SELECT resources.id, outbox.created_at AS since,
               concat('it is ', status, '; deprovision job ', outbox.id, ' is ', state) AS note
          FROM resources JOIN outbox ON resource_id = resources.id
         WHERE status IN ('provisioning', 'active') AND outbox.kind = 'deprovision' AND state <> 'cancelled'""",
        "a teardown was decided or done for a resource that says it was never deleted; no DELETE can win any more",
        _BY_HAND + "decide by the job's events whether it is deleted, and set status and its times to that",
    ),
    Check(
        "deleted_with_open_job",
        "resource",
        """
        SELECT resources.id, purged_at AS since, concat('deprovision job ', outbox.id, ' is ', state) AS note
          FROM resources JOIN outbox ON resource_id = resources.id
         WHERE status = 'deleted' AND outbox.kind = 'deprovision' AND state IN ('pending', 'running', 'stuck')""",
        "it is called deleted while its teardown is not done",
        _BY_HAND + "set the resource to `deleting`, with `purged_at` NULL: the job sees to the rest",
    ),
    Check(
        "two_jobs",
        "resource",
        """
        SELECT resource_id AS id, min(created_at) AS since,
               concat(kind, ' jobs ', string_agg(CAST(id AS text), ', ' ORDER BY id)) AS note
          FROM outbox WHERE kind IN ('provision', 'deprovision') AND state <> 'cancelled'
         GROUP BY resource_id, kind HAVING count(*) > 1""",
        "two jobs would do the same thing to one resource: the promise `not two` is not kept",
        "stop the workers; put the unique indexes outbox_one_… back, after cancelling the job that never started",
    ),
    Check(
        "two_at_work",
        "resource",
        """
        SELECT resource_id AS id, min(created_at) AS since,
               concat('running jobs ', string_agg(CAST(id AS text), ', ' ORDER BY id)) AS note
          FROM outbox WHERE state = 'running' AND started_fence = fence
         GROUP BY resource_id HAVING count(*) > 1""",
        "two workers act on one resource at once",
        "stop the workers named by `deprovisioner jobs show ID`; " + _REPORT,
    ),
    Check(
        "lease_expired",
        "job",
        """
        SELECT id, lease_expires_at AS since, concat('held by ', claimed_by, ', fence ', fence) AS note
          FROM outbox WHERE state = 'running' AND lease_expires_at < now() - CAST(:patience AS interval)""",
        "its worker died or stands still, and no other has swept it for more than three leases",
        "start a worker, or look why the sweep fails: are workers running, do they reach this database?",
    ),
    Check(
        "never_enqueued",
        "job",
        """
        SELECT id, created_at AS since, concat(kind, ', ', state) AS note FROM outbox
         WHERE NOT EXISTS (SELECT FROM events WHERE job_id = outbox.id AND event = 'enqueued')""",
        "events are missing: who asked for this job is not recorded",
        _BY_HAND + _REPORT,
    ),
    Check(
        "claim_not_recorded",
        "job",
        """
        SELECT id, created_at AS since, concat('fence ', fence, ', ', coalesce(told, 0), ' claims recorded') AS note
          FROM outbox
          LEFT JOIN (SELECT job_id, count(DISTINCT fence) AS told FROM events
                      WHERE event = 'claimed' GROUP BY job_id) AS claims ON job_id = outbox.id
         WHERE coalesce(told, 0) < fence""",
        "events are missing: each of the fences 1 to the job's own has a `claimed` event, and these have not",
        _BY_HAND + _REPORT,
    ),
    Check(
        "last_event_differs",
        "job",
        f"""
        SELECT outbox.id, last.at AS since,
               concat(state, ' at fence ', outbox.fence, '; last event ', event, ' at fence ', last.fence) AS note
          FROM outbox
         CROSS JOIN LATERAL (SELECT * FROM events WHERE job_id = outbox.id AND event NOT IN {ASIDE}
                              ORDER BY id DESC LIMIT 1) AS last
         WHERE state IN ('pending', 'running', 'stuck')
           AND (last.fence <> outbox.fence OR {_LEFT_IN} IS DISTINCT FROM state)""",
        "events are missing: the last one did not leave the job in the state that it is in",
        _BY_HAND + _REPORT,
    ),
    Check(
        "end_not_recorded",
        "job",
        f"""
        SELECT id, finished_at AS since, concat(kind, ', ', state, ' at fence ', fence) AS note FROM outbox
         WHERE state IN ('succeeded', 'cancelled')
           AND NOT EXISTS (SELECT FROM events WHERE job_id = outbox.id AND events.fence = outbox.fence
                                                AND {_LEFT_IN} = outbox.state)""",
        "events are missing: the job is finished, and what finished it is not recorded",
        _BY_HAND + _REPORT,
    ),
    Check(
        "start_without_outcome",
        "job",
        f"""
        SELECT job_id AS id, min(at) AS since,
               concat('again at fence ', string_agg(CAST(fence AS text), ', ' ORDER BY id)) AS note
          FROM (SELECT *, lag(event) OVER (PARTITION BY job_id ORDER BY id) AS before FROM events
                 WHERE event IN ('claimed', 'started', {_OUTCOMES})) AS told
         WHERE event IN ('claimed', 'started') AND before = 'started'
         GROUP BY job_id""",
        "more than one start with no outcome between: what the earlier one did is not known, and it was tried again",
        "compare `deprovisioner jobs show ID` with the backend's own log: was the right thing torn down, once? "
        + _REPORT,
    ),
    Check(
        "claim_without_outcome",
        "job",
        f"""
        SELECT job_id AS id, min(at) AS since,
               concat('again at fence ', string_agg(CAST(fence AS text), ', ' ORDER BY id)) AS note
          FROM (SELECT *, lag(event) OVER (PARTITION BY job_id ORDER BY id) AS before FROM events
                 WHERE event IN ('claimed', 'started', {_OUTCOMES})) AS told
         WHERE event = 'claimed' AND before = 'claimed'
         GROUP BY job_id""",
        "events are missing: a claim was followed by the next with no outcome between (nothing had been started)",
        _BY_HAND + _REPORT,
    ),
    Check(
        "chain_broken",
        "resource",
        f"""
        SELECT resource_id AS id, min(at) AS since,
               concat('at event ', min(seq), ' of its chain: a row was altered, lost or put in') AS note
          FROM ({LINKS.format(which="")}) AS link
         WHERE NOT holds GROUP BY resource_id
         UNION ALL
        SELECT resource_id, min(created_at), concat('no event at all; jobs ', string_agg(CAST(id AS text), ', '))
          FROM outbox WHERE NOT EXISTS (SELECT FROM events WHERE events.resource_id = outbox.resource_id)
         GROUP BY resource_id""",
        "the evidence was tampered with: the hashes of these events no longer follow from what stands in them",
        "whoever may switch triggers off did this, or a restore: compare with a backup and the servers' logs; "
        + _REPORT,
    ),
    Check(
        "checkpoint_broken",
        "resource or checkpoint",
        f"""
        SELECT CAST(told.resource_id AS text) AS id, min(audit_checkpoints.at) AS since,
               concat('checkpoint ', min(audit_checkpoints.id), ' has its event ', min(told.seq),
                      ', and it is not that event any more') AS note
          FROM audit_heads AS told
          JOIN audit_checkpoints ON audit_checkpoints.id = checkpoint_id
          LEFT JOIN events AS event ON event.resource_id = told.resource_id AND event.seq = told.seq
         WHERE event.hash IS DISTINCT FROM told.hash
         GROUP BY told.resource_id
         UNION ALL
        SELECT concat('checkpoint ', id), at, 'its own hash does not follow from its heads and the checkpoint before it'
          FROM (SELECT audit_checkpoints.*, coalesce(body, '') AS body, lag(hash, 1, '') OVER (ORDER BY id) AS before
                  FROM audit_checkpoints
                  LEFT JOIN (SELECT checkpoint_id, {HEADS} AS body FROM audit_heads GROUP BY checkpoint_id) AS kept
                    ON checkpoint_id = id) AS made
         WHERE previous <> before OR hash <> {SEAL.format(row="made")}""",
        "events that a checkpoint vouches for were changed or removed, or a checkpoint was",
        "compare with the `audit_checkpoint` lines in the shipped logs, then with a backup; " + _REPORT,
    ),
    Check(
        "checkpoint_overdue",
        "checkpoint",
        """
        SELECT coalesce(CAST(max(last.id) AS text), 'none') AS id, min(event.at) AS since,
               concat(count(*), ' events since then are in no checkpoint') AS note
          FROM events AS event
          LEFT JOIN (SELECT max(id) AS id, max(events_to) AS events_to FROM audit_checkpoints) AS last ON true
         WHERE event.id > coalesce(last.events_to, 0) AND event.at < now() - CAST(:unvouched AS interval)
           AND NOT EXISTS (SELECT FROM audit_heads AS told
                            WHERE told.resource_id = event.resource_id AND told.seq >= event.seq)
        HAVING count(*) > 0
         UNION ALL
        SELECT CAST(id AS text), at, 'it bears a time that is still to come'
          FROM (SELECT id, at FROM audit_checkpoints ORDER BY id DESC LIMIT 1) AS last WHERE at > now()""",
        f"workers keep the heads of all chains hourly; these events have stood for {UNVOUCHED.seconds // 3600} hours "
        "and could be changed unseen, or the newest checkpoint cannot be true",
        "are workers running, does their log tell why none is made? `deprovisioner audit checkpoint` makes one now; "
        "of one that bears a time to come: whose clock was wrong, or who wrote it?",
        "warning",
    ),
    Check(
        "late_birth_left",
        "resource",
        """
        SELECT resources.id, events.at AS since, concat('job ', job_id, ', made: ', detail ->> 'provisioned') AS note
          FROM events JOIN resources ON resources.id = resource_id
         WHERE event = 'late' AND detail ->> 'provisioned' IS NOT NULL AND status = 'deleted' AND NOT adopted
           AND at < now() - CAST(:undo AS interval)
           AND EXISTS (SELECT FROM events AS gone WHERE gone.resource_id = events.resource_id
                          AND gone.event IN ('completed', 'resolved') AND gone.id < events.id)
           AND NOT EXISTS (SELECT FROM events AS undone WHERE undone.resource_id = events.resource_id
                              AND undone.event = 'late' AND undone.detail ->> 'undone' IS NOT NULL
                              AND undone.id > events.id)""",
        "a worker that had stood still reported what it made after the resource was seen gone, and did not undo it",
        "look at the backend for the names in the note: what bears this resource's generation is an orphan",
    ),
    Check(
        "late",
        "job",
        """
        SELECT job_id AS id, at AS since, concat(actor, ' at fence ', detail ->> 'fence', ': ',
               (SELECT string_agg(word, ', ') FROM jsonb_object_keys(detail) AS word WHERE word <> 'fence')) AS note
          FROM events WHERE event = 'late' AND at > now() - CAST(:late AS interval)""",
        f"a worker reported after its claim was gone (in the last {LATE_DAYS} days); it was kept, not applied",
        "harmless by itself; where it repeats, workers stand still: give them CPU, or a longer lease",
        "warning",
    ),
    Check(
        "stuck",
        "job",
        """
        SELECT outbox.id, last.at AS since, concat(stuck_reason, ': ', left(last_error, 200)) AS note
          FROM outbox
          LEFT JOIN LATERAL (SELECT at FROM events WHERE job_id = outbox.id AND event IN ('stuck', 'swept')
                              ORDER BY id DESC LIMIT 1) AS last ON true
         WHERE state = 'stuck'""",
        "these wait for a person; oldest first",
        "`deprovisioner jobs show ID` tells why, `jobs observe ID` what is there now; then `jobs redrive ID --fence N "
        "--reason …`, or `jobs resolve …` where it did happen",
        "warning",
    ),
    Check(
        "due_long_ago",
        "job",
        """
        SELECT outbox.id, available_at AS since,
               concat(backend, CASE WHEN breakers.backend IS NOT NULL THEN ', whose breaker is open' END) AS note
          FROM outbox LEFT JOIN breakers USING (backend)
         WHERE state = 'pending' AND held_by IS NULL AND available_at < now() - CAST(:overdue AS interval)""",
        f"due for more than {OVERDUE_MINUTES} minutes, and nobody claims them; oldest first",
        "are workers running, do they serve this backend, is its breaker open or a hold on it (below), are there "
        "enough of them?",
        "warning",
    ),
    Check(
        "woken_by_nobody",
        "job",
        """
        SELECT outbox.id, released_at AS since, concat('waits for hold ', held_by, ', which was released') AS note
          FROM outbox LEFT JOIN holds ON holds.id = held_by
         WHERE held_by IS NOT NULL AND (holds.id IS NULL OR released_at < now() - CAST(:overdue AS interval))""",
        f"it waits for a hold that was released more than {OVERDUE_MINUTES} minutes ago: nobody sweeps",
        "start a worker, or look why the sweep fails: are workers running, do they reach this database?",
    ),
    Check(
        "hold_in_force",
        "hold",
        """
        SELECT id, created_at AS since,
               concat(scope, ' ' || subject, ', by ', cause, ' (', actor, '): ', left(reason, 200)) AS note
          FROM holds WHERE released_at IS NULL""",
        "what it covers does not start; its jobs wait, and burn no attempts",
        "when its cause is gone: `deprovisioner hold release ID --reason …`; after a brake, look who asked first",
        "warning",
    ),
    Check(
        "breaker_open",
        "backend",
        """
        SELECT backend AS id, opened_at AS since, concat(failures, ' failures: ', left(reason, 200)) AS note
          FROM breakers""",
        "the backend is out of reach: its jobs wait, and burn no attempts",
        "bring the backend back, or correct its dsn; the next probe that is answered closes the breaker",
        "warning",
    ),
)


def examine(db: Connection) -> list[Finding]:
    """What is broken or wants a look, in the order of CHECKS; empty when all is well.

    `db` is `db.snapshot()`'s: nothing is written, and all checks see the same moment.
    """
    db.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_SECONDS}s'"))
    db.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
    asked = _asked()
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
        "head": migrations.head(),
        "patience": 3 * current.lease + dt.timedelta(seconds=current.sweep_seconds),
        "overdue": dt.timedelta(minutes=OVERDUE_MINUTES),
        "late": dt.timedelta(days=LATE_DAYS),
        "undo": dt.timedelta(minutes=UNDO_MINUTES),
        "unvouched": UNVOUCHED,
        **_wanted("guard", _guards()),
        **_wanted("index", [w for w in _indexes() if w[0] == "index"]),
    }


def _guards() -> list[tuple[str, str, str]]:
    constraints = [
        ("constraint", table.name, str(constraint.name))
        for table in tables.metadata.tables.values()
        for constraint in table.constraints
    ]
    triggers = [("trigger", table, name) for name, table in TRIGGERS.items()]
    return constraints + triggers + [w for w in _indexes() if w[0] == "unique index"]


def _indexes() -> list[tuple[str, str, str]]:
    return [
        ("unique index" if index.unique else "index", table.name, str(index.name))
        for table in tables.metadata.tables.values()
        for index in table.indexes
    ]


def _wanted(prefix: str, rows: Sequence[tuple[str, str, str]]) -> Json:
    sorts, relations, names = map(list, zip(*rows, strict=True))
    return {f"{prefix}_sorts": sorts, f"{prefix}_relations": relations, f"{prefix}_names": names}
