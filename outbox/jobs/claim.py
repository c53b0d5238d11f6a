"""pending -> running: a worker claims jobs, reads back claims whose answer was lost, and keeps them by heartbeat."""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox import rewinds, settings
from outbox.db import prepared
from outbox.errors import Busy, ClaimLost
from outbox.events import Event
from outbox.jobs._sql import _EVENT, _OURS, _event, _still_ours
from outbox.rows import Claim, Json
from outbox.states import JobKind, Step

# `other.claimed_by IS NOT NULL` means running (a CHECK). With `state = 'running'` the planner would use the index of
# leases while few jobs run, and read all its dead entries once for each job.
_CLAIMS = """
    SELECT job.id, job.kind, job.resource_id, job.backend, job.fence, job.attempts, job.max_attempts,
           job.step, coalesce(job.started_step = 'destroy', job.step IS NULL AND job.started_fence IS NOT NULL)
               AS destroying,
           job.started_fence, job.forced_fence, job.available_at, job.lane, resources.tenant, resources.generation,
           resources.adopted, resources.activated_at IS NOT NULL AS activated, resources.manifest,
           breakers.backend IS NOT NULL AS probing,
           EXISTS (SELECT FROM outbox AS other
                    WHERE other.resource_id = job.resource_id AND other.id <> job.id
                      AND other.claimed_by IS NOT NULL) AS contended
      FROM job
      JOIN resources ON resources.id = job.resource_id
      LEFT JOIN breakers ON breakers.backend = job.backend
     ORDER BY job.lane, job.available_at, job.id"""

# A trigger gives each job its lane as it is enqueued. Claims begin with that of restores, which no hold stops.
RESTORES = -1
# The others are 0 to 4.
LANES = 5
# No transaction that enqueues takes longer, but by accident: a job is due from its transaction's beginning on.
LATE = "interval '10 s'"
# From this lane on are the jobs of tenants that have many waiting; these get at most half of the slots of a backend.
CROWDED = 2
# By backend, in the caller's order: jobs that wait for one backend cost the others nothing. Of a backend lane by lane:
# one scan of the index for each, that begins behind the last job which the worker claimed of it.
# A half-open breaker lets one worker claim one job, the probe, and then none for the time of a lease. Probes come
# first: otherwise the slots could run out after the breaker's row was updated and before its job was claimed.
# The outer WHERE leaves out `held_by IS NULL`: with it, the planner might look the ids up in the index of pending jobs.
_CLAIM = prepared(f"""
    WITH served AS (
        SELECT asked.*, EXISTS (SELECT FROM holds
                                 WHERE released_at IS NULL AND cause = 'operator'
                                   AND (scope = 'global' OR (scope = 'backend' AND subject = asked.backend)
                                        OR (scope = 'kind' AND subject = asked.kind))) AS held
          FROM unnest(CAST(:backends AS text[]), CAST(:kinds AS text[]), CAST(:rooms AS int[]),
                      CAST(:crowd_rooms AS int[]), CAST(:since AS text[]), CAST(:after AS text[]),
                      CAST(:drained AS text[]))
               WITH ORDINALITY AS asked (backend, kind, room, crowd_room, since, after, drained, place)
         WHERE {rewinds.GOES_ON_AT.format("asked.backend")}
    ), probe AS (
        UPDATE breakers SET retry_at = now() + :lease
         WHERE backend = ANY(ARRAY(
               SELECT breakers.backend FROM breakers JOIN served USING (backend)
                WHERE retry_at <= now()
                  AND EXISTS (SELECT FROM generate_series({RESTORES}, {LANES - 1}) AS asked (lane)
                               CROSS JOIN LATERAL (
                                     SELECT FROM outbox
                                      WHERE state = 'pending' AND held_by IS NULL AND outbox.backend = breakers.backend
                                        AND outbox.lane = asked.lane AND available_at <= now()
                                      ORDER BY available_at LIMIT 1) AS due
                               WHERE NOT served.held OR asked.lane = {RESTORES})
                LIMIT :slots
                  FOR UPDATE OF breakers SKIP LOCKED))
     RETURNING backend
    ), job AS (
        UPDATE outbox
           SET state = 'running', fence = fence + 1, attempts = attempts + 1,
               claimed_by = :actor, lease_expires_at = now() + :lease
         WHERE state = 'pending' AND id = ANY(ARRAY(
               SELECT due.id
                 FROM (SELECT served.backend, CASE WHEN probe.backend IS NULL THEN served.room ELSE 1 END AS room,
                              CASE WHEN probe.backend IS NULL THEN served.crowd_room ELSE 1 END AS crowd_room,
                              CAST(since AS timestamptz[]) AS since, CAST(after AS bigint[]) AS after,
                              CAST(drained AS boolean[]) AS drained, served.held
                         FROM served
                         LEFT JOIN probe ON probe.backend = served.backend
                         LEFT JOIN breakers ON breakers.backend = served.backend
                        WHERE breakers.backend IS NULL OR probe.backend IS NOT NULL
                        ORDER BY probe.backend IS NULL, served.place) AS open
                CROSS JOIN LATERAL (
                      SELECT here.id
                        FROM unnest(CAST(:parts AS boolean[])) AS part (crowded)
                       CROSS JOIN LATERAL (
                             SELECT next.id
                               FROM (SELECT lane, after,
                                            CASE WHEN drained THEN now() - {LATE} ELSE since END AS since
                                       FROM unnest(CAST(:lanes AS int[]), open.since, open.after, open.drained)
                                            AS asked (lane, since, after, drained)) AS asked
                              CROSS JOIN LATERAL (
                                    SELECT id FROM outbox
                                     WHERE state = 'pending' AND held_by IS NULL AND outbox.backend = open.backend
                                       AND outbox.lane = asked.lane
                                       AND available_at <= now() AND (available_at, id) > (asked.since, asked.after)
                                     ORDER BY available_at, id
                                     LIMIT open.room
                                       FOR UPDATE SKIP LOCKED) AS next
                              WHERE (asked.lane >= {CROWDED}) = part.crowded
                                AND (NOT open.held OR asked.lane = {RESTORES})
                              LIMIT CASE WHEN part.crowded THEN open.crowd_room ELSE open.room END) AS here
                       LIMIT open.room) AS due
                LIMIT :slots))
     RETURNING *
    ), noted AS ({_EVENT}
    )
    {_CLAIMS}""")


def claim(
    db: Connection,
    capacity: Mapping[str, int],
    *,
    slots: int,
    worker: str,
    cursors: Mapping[tuple[str, int], Claim] | None = None,
    drained: Container[tuple[str, int]] = (),
    crowd: Mapping[str, int] | None = None,
    first: int = 0,
) -> list[Claim]:
    """pending -> running: at most `slots` due jobs, at most `capacity[backend]` of each, in the order of `capacity`.

    Of each backend lane by lane, beginning with `first`; of its lanes from CROWDED on at most `crowd[backend]` jobs.
    Claims only restores of a backend under an operator's hold on everything, on it or on its kind; `start` refuses a
    job under a hold on its tenant or a brake's hold. Of a backend and lane in `cursors`, claims only jobs after that
    claim; of one in `drained`, only jobs that became due lately.
    """
    configured = settings.backends()
    lanes = lanes_from(first)
    last = [[(cursors or {}).get((name, lane)) for lane in lanes] for name in capacity]
    rows = db.execute(
        _CLAIM,
        _event(Event.CLAIMED, worker)
        | {
            "backends": list(capacity),
            "kinds": [configured[name].kind if name in configured else None for name in capacity],
            "rooms": list(capacity.values()),
            "crowd_rooms": list((capacity if crowd is None else crowd).values()),
            "parts": [first >= CROWDED, first < CROWDED],
            "lanes": lanes,
            "since": [
                _array(claim.available_at.isoformat() if claim else "-infinity" for claim in each) for each in last
            ],
            "after": [_array(str(claim.id) if claim else "0" for claim in each) for each in last],
            "drained": [_array("t" if (name, lane) in drained else "f" for lane in lanes) for name in capacity],
            "slots": slots,
            "lease": settings.get().lease,
        },
    )
    return _claims(rows)


def lanes_from(first: int) -> list[int]:
    """The lanes in the order in which a claim goes through them that begins with `first`."""
    return [RESTORES, *range(first, LANES), *range(first)[::-1]]


def _array(values: Iterable[str]) -> str:
    return f"{{{','.join(values)}}}"


_CLAIMED_BEFORE = text(f"""
    WITH job AS (
        SELECT * FROM outbox
         WHERE state = 'running' AND claimed_by = :worker AND lease_expires_at > now()
           AND started_fence IS DISTINCT FROM fence
           AND (id, fence) NOT IN (SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:fences AS bigint[])))
         LIMIT :slots
    )
    {_CLAIMS}""")


def claimed_before(db: Connection, held: Sequence[Claim], *, slots: int, worker: str) -> list[Claim]:
    """No arrow: at most `slots` claims that this worker has and does not know of, because their answer was lost.

    Call it only while no other process claims under the name `worker`: two must never act under one fence.
    """
    ids, fences = [c.id for c in held], [c.fence for c in held]
    return _claims(db.execute(_CLAIMED_BEFORE, {"worker": worker, "ids": ids, "fences": fences, "slots": slots}))


def _claims(rows: Iterable[Row[Any]]) -> list[Claim]:
    return [
        Claim(**{**row._mapping, "kind": JobKind(row.kind), "step": None if row.step is None else Step(row.step)})
        for row in rows
    ]


_EXTEND = f"""
    WITH {_OURS}
    UPDATE outbox
       SET lease_expires_at = now() + :lease, progress = coalesce(CAST(ours.detail AS jsonb), progress)
      FROM ours WHERE outbox.id = ours.id
 RETURNING"""
_HEARTBEAT = prepared(f"{_EXTEND} outbox.id")


def heartbeat(db: Connection, claims: Sequence[Claim], progress: Mapping[int, Json] | None = None) -> set[int]:
    """Extend the leases of these claims in one statement; returns the ids of the jobs that are still ours.

    `progress`: by job, how far its verb has come: `{done, total, what}`.
    """
    told = progress or {}
    asked = [(claim, {"fence": claim.fence, **told[claim.id]} if claim.id in told else None) for claim in claims]
    rows = db.execute(_HEARTBEAT, _still_ours(asked) | {"lease": settings.get().lease})
    return set(rows.scalars())


_STILL = text(f"""{_EXTEND} {rewinds.STANDS_STILL} AS rewound,
           {rewinds.GOES_ON_AT.format("outbox.backend")} AS goes_on""")


def still(db: Connection, claim: Claim) -> None:
    """Extend the lease of a claim that is about to change something on its backend, in the middle of a step.

    Raises ClaimLost where the claim is lost, or the database went back in time; and Busy until its backend is compared.
    """
    row = db.execute(_STILL, _still_ours([(claim, None)]) | {"lease": settings.get().lease}).one_or_none()
    if row is None:
        raise ClaimLost(f"job {claim.id}: the claim with fence {claim.fence} is lost")
    if row.rewound:
        raise ClaimLost(f"job {claim.id}: the control database went back in time; run `deprovisioner recover`")
    if not row.goes_on:
        raise Busy(f"job {claim.id}: backend {claim.backend!r} is not compared yet with what it remembers")
