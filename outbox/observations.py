"""Observations: an operator asks for one, and a worker inspects the backend of the stuck job for it.

Only workers can reach a backend. An inspection changes nothing there, moves no job and uses up no attempt. What the
worker found is stored with an event.
"""

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from outbox import advice, jobs, rewinds
from outbox.errors import NotATeardown
from outbox.events import Event
from outbox.rows import Json, columns, read
from outbox.states import Found

# An inspection is a few queries, each of which times out after 5 s. One that takes longer is given to another worker.
TAKEN = dt.timedelta(seconds=30)


@dataclass(frozen=True)
class Observation:
    """An inspection that an operator asked for; `found` is None until a worker has made it."""

    id: int
    job_id: int
    fence: int
    asked_by: str
    asked_at: dt.datetime
    observed_at: dt.datetime | None
    observed_by: str | None
    found: Found | None
    seen: Json | None

    @property
    def means(self) -> str:
        """What the worker found, in words."""
        return "no worker has inspected it yet" if self.found is None else advice.seen_in_words(self.found, self.seen)


@dataclass(frozen=True)
class Inspection:
    """A worker's turn to inspect, until `taken_until`. `manifest` is None where no object was ever made."""

    id: int
    job_id: int
    backend: str
    manifest: Json | None
    taken_until: dt.datetime


# An open observation serves all operators who ask for the same.
_ASK = text(f"""
    WITH job AS (
        SELECT id, fence FROM outbox
         WHERE id = :id AND fence = COALESCE(:fence, fence) AND state = 'stuck' AND kind = 'deprovision'
    )
    INSERT INTO observations AS look (job_id, fence, asked_by)
    SELECT id, fence, :actor FROM job
        ON CONFLICT (job_id, fence) WHERE observed_at IS NULL DO UPDATE SET asked_by = look.asked_by
 RETURNING {columns(Observation, "look")}""")


def ask(db: Connection, job_id: int, *, actor: str, fence: int | None = None) -> Observation:
    """Ask for an observation, or join the open one; `fence` None is the job's own.

    Raises NotFound, JobNotStuck, FenceMismatch, NotATeardown.
    """
    row = db.execute(_ASK, {"id": job_id, "fence": fence, "actor": actor}).one_or_none()
    if row is None:
        kind = jobs.stuck_or_refuse(db, job_id, fence=fence).kind
        raise NotATeardown(f"job {job_id} is a {kind}; only the backend of a teardown can be inspected")
    return read(Observation, "look", row)


# By backend, as in a claim. Not while another job of the resource runs: a provision that is under way may make the
# object that is absent now. Open observations whose job has moved on are deleted.
_TAKE = text(f"""
    WITH gone AS (
        DELETE FROM observations WHERE id = ANY(ARRAY(
               SELECT look.id FROM observations AS look JOIN outbox ON outbox.id = look.job_id
                WHERE observed_at IS NULL AND (state <> 'stuck' OR outbox.fence <> look.fence)
                LIMIT :slots
                  FOR UPDATE OF look SKIP LOCKED))
    ), look AS (
        UPDATE observations
           SET taken_until = now() + :taken
         WHERE observed_at IS NULL AND (taken_until IS NULL OR taken_until <= now()) AND id = ANY(ARRAY(
               SELECT asked.id
                 FROM unnest(CAST(:backends AS text[]), CAST(:rooms AS int[])) AS served (backend, room)
                CROSS JOIN LATERAL (
                      SELECT look.id FROM observations AS look JOIN outbox ON outbox.id = look.job_id
                       WHERE observed_at IS NULL AND (taken_until IS NULL OR taken_until <= now())
                         AND outbox.backend = served.backend AND state = 'stuck' AND outbox.fence = look.fence
                         AND NOT EXISTS (SELECT FROM outbox AS other
                                          WHERE other.resource_id = outbox.resource_id AND other.id <> outbox.id
                                            AND other.claimed_by IS NOT NULL)
                       ORDER BY look.id
                       LIMIT served.room
                         FOR UPDATE OF look SKIP LOCKED) AS asked
                WHERE {rewinds.GOES_ON_AT.format("served.backend")}
                LIMIT :slots))
     RETURNING *
    )
    SELECT look.id, look.job_id, outbox.backend, manifest, look.taken_until
      FROM look JOIN outbox ON outbox.id = look.job_id JOIN resources ON resources.id = outbox.resource_id
     ORDER BY look.id""")


def take(db: Connection, capacity: Mapping[str, int], *, slots: int) -> list[Inspection]:
    """At most `slots` inspections, at most `capacity[backend]` of each backend. After TAKEN they are free again."""
    asked = {"backends": list(capacity), "rooms": list(capacity.values()), "slots": slots, "taken": TAKEN}
    return [Inspection(**row._mapping) for row in db.execute(_TAKE, asked)]


_WRITES = Event.OBSERVED
# The job's row is locked, so that this event comes before the event that moves the job on. A worker whose turn is over
# writes nothing: another worker may have the turn.
_RECORD = text(f"""
    WITH job AS (
        SELECT outbox.id, resource_id, outbox.fence FROM outbox JOIN observations ON job_id = outbox.id
         WHERE observations.id = :id AND state = 'stuck' AND outbox.fence = observations.fence
           FOR NO KEY UPDATE OF outbox
    ), look AS (
        UPDATE observations
           SET observed_at = now(), observed_by = :actor, found = :found, seen = CAST(:seen AS jsonb)
          FROM job
         WHERE observations.id = :id AND observed_at IS NULL AND taken_until = :taken_until AND taken_until > now()
     RETURNING observations.*
    )
    INSERT INTO events (job_id, resource_id, fence, event, actor, detail)
    SELECT job.id, job.resource_id, job.fence, '{_WRITES}', :actor, jsonb_build_object('found', found, 'seen', seen)
      FROM job JOIN look ON job_id = job.id
 RETURNING id""")


def record(db: Connection, inspection: Inspection, *, worker: str, found: Found, seen: Json) -> bool:
    """Store what the worker found, with its event. False when its turn was over, or the job has moved on."""
    mine = {"id": inspection.id, "taken_until": inspection.taken_until, "actor": worker}
    return db.execute(_RECORD, mine | {"found": found, "seen": json.dumps(seen)}).one_or_none() is not None


_READ = text(f"SELECT {columns(Observation, 'look')} FROM observations AS look WHERE id = :id")


def find(db: Connection, observation_id: int) -> Observation | None:
    """The observation as it is now; None when it was deleted, since its job has moved on."""
    row = db.execute(_READ, {"id": observation_id}).one_or_none()
    return None if row is None else read(Observation, "look", row)


_LAST = text(f"""
    SELECT {columns(Observation, "look")} FROM observations AS look
     WHERE job_id = :id AND fence = :fence AND observed_at IS NOT NULL
     ORDER BY observed_at DESC, id DESC LIMIT 1""")


def last(db: Connection, job_id: int, *, fence: int) -> Observation | None:
    """The last observation of this job at this fence, of any age; None when no worker has made one."""
    row = db.execute(_LAST, {"id": job_id, "fence": fence}).one_or_none()
    return None if row is None else read(Observation, "look", row)
