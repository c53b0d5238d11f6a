"""Looks at a stuck job's backend, which an operator asks for and a worker takes: API and CLI hold no credentials.

A look changes nothing at the backend, moves no job and burns no attempt. What it found is kept, with an event.
"""

import datetime as dt
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import Connection, text

from outbox import advice, jobs
from outbox.errors import NotATeardown, NotObserved
from outbox.events import Event
from outbox.rows import Json, columns, read
from outbox.states import Found

T = TypeVar("T")
# A look asks a server a few questions, each of which gives up after 5 s; a slower one is done again.
TAKEN = dt.timedelta(seconds=30)
# Between a person who waits and a database that is asked six times a second.
POLL_SECONDS = 0.15


@dataclass(frozen=True)
class Observation:
    """A look that was asked for; `found` is None until a worker has looked."""

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
        """In words, what was seen."""
        return "nobody has looked yet" if self.found is None else advice.seen_in_words(self.found, self.seen)


@dataclass(frozen=True)
class Look:
    """A worker's turn to look, until `taken_until`. `manifest` is None where nothing was ever made."""

    id: int
    job_id: int
    backend: str
    manifest: Json | None
    taken_until: dt.datetime


# One open look serves everybody who asks meanwhile.
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
    """Ask for a look, or join the open one; `fence` None is the job's own.

    Raises NotFound, JobNotStuck, FenceMismatch, NotATeardown.
    """
    row = db.execute(_ASK, {"id": job_id, "fence": fence, "actor": actor}).one_or_none()
    if row is None:
        kind = jobs.stuck_or_refuse(db, job_id, fence=fence).kind
        raise NotATeardown(f"job {job_id} is a {kind}: only a teardown is looked at")
    return read(Observation, "look", row)


# By backend, as in a claim. Not while another job of the resource runs: what is absent now may be there when a birth
# has ended. What nobody needs any more, since its job has moved on, goes.
_TAKE = text("""
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
                LIMIT :slots))
     RETURNING *
    )
    SELECT look.id, look.job_id, outbox.backend, manifest, look.taken_until
      FROM look JOIN outbox ON outbox.id = look.job_id JOIN resources ON resources.id = outbox.resource_id
     ORDER BY look.id""")


def take(db: Connection, rooms: Mapping[str, int], *, slots: int) -> list[Look]:
    """At most `slots` looks that were asked for, at most `rooms[backend]` of each backend; again after TAKEN."""
    asked = {"backends": list(rooms), "rooms": list(rooms.values()), "slots": slots, "taken": TAKEN}
    return [Look(**row._mapping) for row in db.execute(_TAKE, asked)]


_WRITES = Event.OBSERVED
# The job's row is locked, so that the event stands before whatever moves it on. An old look is no news: another
# worker may have taken the turn by now.
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


def record(db: Connection, look: Look, *, worker: str, found: Found, seen: Json) -> bool:
    """What the worker saw, with its event; False when the turn was over, or the job has moved on."""
    told = {"id": look.id, "taken_until": look.taken_until, "actor": worker, "found": found, "seen": json.dumps(seen)}
    return db.execute(_RECORD, told).one_or_none() is not None


_READ = text(f"SELECT {columns(Observation, 'look')} FROM observations AS look WHERE id = :id")


def find(db: Connection, observation_id: int) -> Observation | None:
    """The look as it stands; None when its job has moved on before anybody looked."""
    row = db.execute(_READ, {"id": observation_id}).one_or_none()
    return None if row is None else read(Observation, "look", row)


_LAST = text(f"""
    SELECT {columns(Observation, "look")} FROM observations AS look
     WHERE job_id = :id AND fence = :fence AND observed_at IS NOT NULL
     ORDER BY observed_at DESC, id DESC LIMIT 1""")


def last(db: Connection, job_id: int, *, fence: int) -> Observation | None:
    """The last look at this job and fence, however old; None when nobody has looked."""
    row = db.execute(_LAST, {"id": job_id, "fence": fence}).one_or_none()
    return None if row is None else read(Observation, "look", row)


class Run(Protocol):
    """Runs something on a session of its own, as an edge does it."""

    def __call__(self, act: Callable[[Connection], T]) -> T:
        """What `act` returns."""


def look(run: Run, job_id: int, *, actor: str, seconds: float, fence: int | None = None) -> Observation:
    """Ask for a look, and wait for at most `seconds` until a worker has looked.

    Raises NotFound, JobNotStuck, FenceMismatch, NotATeardown, NotObserved.
    """
    return wait_for(run, run(lambda db: ask(db, job_id, actor=actor, fence=fence)), seconds=seconds)


def wait_for(run: Run, asked: Observation, *, seconds: float) -> Observation:
    """Ring, and wait for what was asked, with no transaction open meanwhile. Raises NotObserved."""
    from outbox import doorbell  # noqa: PLC0415 - Celery's 100 ms are not for those who only read

    doorbell.ring_to_observe()
    deadline = time.monotonic() + seconds
    now: Observation | None = asked
    while now is not None and now.found is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        now = run(lambda db: find(db, asked.id))
    if now is None or now.found is None:
        raise NotObserved(
            f"no worker has looked at job {asked.job_id} within {seconds:g} s: start one that serves its backend, "
            "or have two operators force a resolve"
        )
    return now
