"""Whether the control database went back in time: workers compare it with what places outside of it remember.

A place is a backend, or the broker. Workers write the highest committed event there, at most once a minute and before
each destruction. A database that lacks an event which a place remembers has gone back: it is rewound. `docs/design.md`,
"A place in time", has the rules.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from outbox.events import Event, quoted
from outbox.memory import NOTE_DIGITS, Memory, Note

# The place that is no backend; no backend can have this name.
BROKER = "(broker)"
# Workers write to a place at most so often, and besides before each destruction.
REMEMBER_SECONDS = 60

# How many of each a place keeps: together less than a memory may have.
ACTS, RESOURCES, RESTORES = 250, 200, 50
# The word of a note that tells of a new resource; the note has the first event of that resource.
REGISTERED = "registered"

# Whether the hold of a rewind is in force.
STANDS_STILL = "EXISTS (SELECT FROM holds WHERE cause = 'rewound' AND released_at IS NULL)"

# One run of one server, one database, one file of a table. Each way to put an older state in its place changes it.
INCARNATION = """concat(extract(epoch FROM pg_postmaster_start_time()), '/',
                          (SELECT oid FROM pg_database WHERE datname = current_database()), '/',
                          pg_relation_filenode('installation'))"""
# True while no rewind is known and this incarnation was compared, or none was yet (a new installation).
GOES_ON = f"""NOT {STANDS_STILL}
           AND NOT EXISTS (SELECT FROM installation
                            WHERE compared_under IS NOT NULL AND compared_under <> {INCARNATION})"""
# The same for one backend: its own memory was compared, and it did not go back in time.
GOES_ON_AT = f"""NOT {STANDS_STILL}
           AND (NOT EXISTS (SELECT FROM installation WHERE compared_under IS NOT NULL)
                OR EXISTS (SELECT FROM memories WHERE place = {{0}} AND compared_under = {INCARNATION}))"""


@dataclass(frozen=True)
class Here:
    """Where the control database is: its highest event, the incarnation that answered, and what is due.

    `moved`: why the server or the database is not the one that was compared last, None where it is. `written` has what
    was last kept at each place, and `servers` where. `asked` are the caller's places, `due` those that want a
    comparison or a new memory.
    """

    installation: uuid.UUID
    epoch: int
    event: int
    hash: str
    incarnation: str
    moved: str | None
    promoted: bool
    settled: bool
    rewound: bool
    written: Mapping[str, tuple[int, int]]
    servers: Mapping[str, str]
    asked: frozenset[str]
    due: frozenset[str]

    def memory(self, *, still: bool = False) -> Memory:
        """The memory of this database that a place is to keep."""
        return Memory(self.installation, self.epoch, self.event, self.hash, still, None)


_MADE = text("INSERT INTO installation (one) VALUES (true) ON CONFLICT (one) DO NOTHING")
_SERVER = f"""
    SELECT {INCARNATION} AS incarnation, CAST(control.system_identifier AS text) AS system_identifier,
           (SELECT oid FROM pg_database WHERE datname = current_database()) AS database_oid,
           CAST(('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)) AS bit(32))::bigint AS timeline
      FROM pg_control_system() AS control"""
_HERE = text(f"""
    SELECT installation.*, server.incarnation, server.system_identifier AS server_is, server.database_oid AS oid_is,
           server.timeline AS timeline_is, coalesce(last.id, 0) AS event,
           coalesce(encode(last.hash, 'hex'), '') AS hash,
           {STANDS_STILL} AS rewound,
           (SELECT coalesce(jsonb_object_agg(place, jsonb_build_array(memories.epoch, memories.event)), '{{}}')
              FROM memories WHERE memories.event IS NOT NULL) AS written,
           (SELECT coalesce(jsonb_object_agg(place, server), '{{}}') FROM memories WHERE server IS NOT NULL) AS servers,
           ARRAY(SELECT asked.place FROM unnest(CAST(:places AS text[])) AS asked (place)
                   LEFT JOIN memories ON memories.place = asked.place
                  WHERE (memories.compared_under = server.incarnation
                         AND compared_at > clock_timestamp() - :every * interval '1 second'
                         AND compared_at <= clock_timestamp()) IS NOT TRUE) AS due  -- a clock may be set back
      FROM installation
     CROSS JOIN ({_SERVER}) AS server
      LEFT JOIN (SELECT id, hash FROM events ORDER BY id DESC LIMIT 1) AS last ON true""")


def here(db: Connection, places: list[str]) -> Here:
    """Where this database is now, and which of `places` are due."""
    asked = {"places": places, "every": REMEMBER_SECONDS}
    row = db.execute(_HERE, asked).one_or_none()
    if row is None:
        db.execute(_MADE)
        row = db.execute(_HERE, asked).one()
    moved = None
    if row.compared_under is not None and row.system_identifier != row.server_is:
        moved = f"its server is {row.server_is}, not {row.system_identifier}, which was compared last"
    elif row.compared_under is not None and row.database_oid != row.oid_is:
        moved = f"it is the database with OID {row.oid_is}, not {row.database_oid}, which was compared last"
    return Here(
        installation=row.id,
        epoch=row.epoch,
        event=row.event,
        hash=row.hash,
        incarnation=row.incarnation,
        moved=moved,
        promoted=row.timeline is not None and row.timeline != row.timeline_is,
        settled=row.compared_under == row.incarnation,
        rewound=row.rewound,
        written={place: (epoch, event) for place, (epoch, event) in row.written.items()},
        servers=row.servers,
        asked=frozenset(places),
        due=frozenset(row.due),
    )


_REWOUND = text(f"SELECT {STANDS_STILL}")


def rewound(db: Connection) -> bool:
    """Whether the database was found to have gone back in time, and no recovery has ended since."""
    return bool(db.execute(_REWOUND).scalar_one())


@dataclass(frozen=True)
class Verdict:
    """What a comparison found: why the database is `rewound`, None where it is not; and which backends are `behind`."""

    rewound: str | None
    behind: Mapping[str, str]


_EVENTS = text("SELECT id, encode(hash, 'hex') AS hash FROM events WHERE id = ANY(:ids)")


def judge(db: Connection, before: Here, found: Mapping[str, Memory | None]) -> Verdict:
    """Compare `found`, the answers of the places, with this database; `before` was read before they were asked."""
    rows = db.execute(_EVENTS, {"ids": [memory.event for memory in found.values() if memory]})
    known: dict[int, str] = {row.id: row.hash for row in rows}
    why = [before.moved] if before.moved else []
    behind: dict[str, str] = {}
    for place, memory in found.items():
        written = before.written.get(place)
        has = memory.least if memory else (0, 0)
        if memory is not None and memory.epoch >= before.epoch:
            if memory.epoch > before.epoch:
                why.append(f"{place} remembers epoch {memory.epoch}, and here it is {before.epoch}")
            elif memory.event and known.get(memory.event) != memory.hash:
                state = "is another one" if memory.event in known else "is missing"
                why.append(f"{place} remembers event {memory.event}, which {state} here (the last is {before.event})")
            elif memory.still:
                why.append(f"{place} was told to keep still: a restore was announced, or a worker noticed a rewind")
        if place != BROKER and written is not None and has < written:
            what = f"epoch {has[0]}, event {has[1]}" if memory else "nothing"
            behind[place] = f"it remembers {what}, but a worker wrote epoch {written[0]}, event {written[1]} there"
    return Verdict("; ".join(why) or None, behind)


_KNOWS = text("SELECT EXISTS (SELECT FROM events WHERE id = :event AND encode(hash, 'hex') = :hash)")


def knows(db: Connection, memory: Memory) -> bool:
    """Whether this database has the event that a place remembers."""
    return bool(db.execute(_KNOWS, {"event": memory.event, "hash": memory.hash}).scalar_one())


# FOR SHARE waits for a recovery that is about to end; then the epoch differs, and nothing is engaged.
_ENGAGE = text(f"""
    WITH engaged AS (
        INSERT INTO holds (scope, subject, cause, reason, actor)
        SELECT 'global', NULL, 'rewound', :reason, :actor
          FROM (SELECT FROM installation
                 WHERE epoch = coalesce(CAST(:epoch AS bigint), epoch)
                   AND (CAST(:incarnation AS text) IS NULL OR :incarnation = {INCARNATION}) FOR SHARE) AS same
            ON CONFLICT (cause) WHERE cause = 'rewound' AND released_at IS NULL DO NOTHING
     RETURNING id
    )
    INSERT INTO events (resource_id, fence, event, actor, reason, detail)
    SELECT installation.id, 0, '{Event.REWOUND}', :actor, :reason, jsonb_build_object('hold', engaged.id)
      FROM engaged CROSS JOIN installation
 RETURNING id""")


def engage(
    db: Connection, *, actor: str, reason: str, epoch: int | None = None, incarnation: str | None = None
) -> bool:
    """Hold everything, restores and provisions too, until a recovery; False when that hold is in force already.

    `epoch` and `incarnation`: of the comparison. Once a recovery has ended, or another server answers, what was found
    before it engages nothing: False as well.
    """
    asked = {"actor": actor, "reason": reason, "epoch": epoch, "incarnation": incarnation}
    return db.execute(_ENGAGE, asked).one_or_none() is not None


def tells(at: Here, found: Mapping[str, Memory | None]) -> bool:
    """Whether these answers are enough to go on under a new incarnation: at least one place remembers something.

    Where no backend that was asked for was ever written to, nothing can: a broker may have lost what it had.
    """
    return any(found.values()) or not at.asked & at.written.keys() - {BROKER}


# Guarded by the incarnation: a database that was replaced meanwhile was not compared.
_COMPARED = text(f"""
    WITH server AS ({_SERVER}
    ), settled AS (
        UPDATE installation
           SET compared_under = server.incarnation, system_identifier = server.system_identifier,
               database_oid = server.database_oid, timeline = server.timeline
          FROM server
         WHERE server.incarnation = :incarnation AND epoch = :epoch
           AND NOT {STANDS_STILL}
     RETURNING compared_under
    ), opened AS (
        DELETE FROM breakers USING settled, memories
         WHERE memories.place = backend AND behind_since IS NOT NULL AND backend = ANY(CAST(:places AS text[]))
    )
    INSERT INTO memories (place, compared_under, compared_at)
    SELECT place, compared_under, clock_timestamp()
      FROM settled CROSS JOIN unnest(CAST(:places AS text[])) AS asked (place)
        ON CONFLICT (place) DO UPDATE
       SET compared_under = excluded.compared_under, compared_at = excluded.compared_at,
           behind_since = NULL, note = NULL
 RETURNING place""")


def settle(db: Connection, at: Here, places: list[str]) -> bool:
    """Record that these places were compared and no event was missing; False where the incarnation or epoch is over.

    A backend that had seemed to go back, and remembers everything now, was another server: its address was wrong.
    """
    asked = {"incarnation": at.incarnation, "epoch": at.epoch, "places": places}
    return bool(db.execute(_COMPARED, asked).all()) or not places


_WRITTEN = text("""
    UPDATE memories
       SET epoch = :epoch, event = :event, remembered_at = clock_timestamp(), server = coalesce(:server, server)
     WHERE place = :place AND (epoch IS NULL OR (epoch, event) < (:epoch, :event))""")


def wrote(db: Connection, place: str, memory: Memory, *, server: str | None = None) -> None:
    """Record what a place has kept, on which server: it must never remember less."""
    db.execute(_WRITTEN, {"place": place, "epoch": memory.epoch, "event": memory.event, "server": server})


_MOVED = text("""
    UPDATE memories SET epoch = :epoch, event = :event, remembered_at = clock_timestamp(), server = :server
     WHERE place = :place AND behind_since IS NULL""")


def moved(db: Connection, place: str, memory: Memory, *, server: str | None) -> None:
    """Record what a backend's new server has kept, for good: what was written to the old one no longer counts.

    Not where the backend went back in time: only a recovery ends that.
    """
    db.execute(_MOVED, {"place": place, "epoch": memory.epoch, "event": memory.event, "server": server})


# No probe may pass the breaker before a recovery. A century, since drivers cannot read infinity.
_BEHIND = text("""
    WITH noted AS (
        INSERT INTO memories (place, behind_since, note) VALUES (:place, now(), :note)
            ON CONFLICT (place) DO UPDATE
           SET behind_since = coalesce(memories.behind_since, now()), note = :note, compared_under = NULL
     RETURNING behind_since
    ), opened AS (
    INSERT INTO breakers (backend, failures, retry_at, reason)
    VALUES (:place, 1, now() + interval '100 years', :reason)
        ON CONFLICT (backend) DO UPDATE SET retry_at = excluded.retry_at, reason = excluded.reason
    )
    SELECT behind_since = now() FROM noted""")


def went_back(db: Connection, place: str, why: str) -> bool:
    """Stop all starts at a backend that went back in time; False where this was known."""
    reason = f"the backend went back in time: {why}; run `deprovisioner recover --backend {place}`"
    return bool(db.execute(_BEHIND, {"place": place, "note": why, "reason": reason}).scalar_one())


# Not `decided` and `rebound`: there is one for each of many resources, and these would crowd out other acts. Of
# resources the newest: after a rewind, only their notes tell whose the unknown objects are.
_NOTES = text(f"""
    SELECT id, left(encode(hash, 'hex'), {NOTE_DIGITS}) AS hash, at, event, resource_id, detail
      FROM (SELECT id, hash, at, event, resource_id, detail
              FROM (SELECT * FROM events WHERE job_id IS NULL AND event NOT IN ({quoted(Event.DECIDED, Event.REBOUND)})
                     ORDER BY id DESC LIMIT :acts) AS acts
             UNION ALL
            SELECT event.id, event.hash, event.at, '{REGISTERED}', event.resource_id,
                   jsonb_strip_nulls(jsonb_build_object(
                       'tenant', tenant, 'kind', made.kind, 'backend', backend, 'name', name,
                       'generation', CASE WHEN adopted THEN generation END))
              FROM (SELECT * FROM resources ORDER BY created_at DESC, id DESC LIMIT :resources) AS made
              JOIN events AS event ON event.resource_id = made.id AND event.seq = 1
             UNION ALL
            SELECT event.id, event.hash, event.at, event.event, event.resource_id, event.detail
              FROM (SELECT * FROM outbox WHERE kind = 'restore' ORDER BY id DESC LIMIT :restores) AS restore
              JOIN LATERAL (SELECT * FROM events WHERE job_id = restore.id ORDER BY id LIMIT 1) AS event ON true
           ) AS note
     ORDER BY id""")


def notes(db: Connection) -> tuple[Note, ...]:
    """The newest events that a recovery must know of, oldest first."""
    rows = db.execute(_NOTES, {"acts": ACTS, "resources": RESOURCES, "restores": RESTORES})
    return tuple(Note(row.id, row.hash, row.at, row.event, row.resource_id, row.detail or {}) for row in rows)
