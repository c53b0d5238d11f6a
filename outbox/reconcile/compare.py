"""What a run has read of a backend, and which of it may differ from the rows: page by page, in constant memory."""

import datetime as dt
import json
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from outbox.errors import Conflict
from outbox.rows import Json
from outbox.states import Difference

if TYPE_CHECKING:
    from outbox.reconcile.runs import Run

# Objects or rows that one statement compares: some 100 ms, far below the statement's timeout.
PAGE = 5_000
# Items that are inspected between two statements. Each is a sign of life of the run.
BATCH = 50


@dataclass(frozen=True)
class Seen:
    """An object as its server shows it. `mark` None: it bears none of ours. Sizes in bytes, each where it is known."""

    mark: str | None
    names: Json
    parts: tuple[str, ...]
    resource_id: uuid.UUID | None = None
    quarantined: bool = False
    contradictory: bool = False
    why: str = ""
    size_bytes: int | None = None
    created_at: dt.datetime | None = None
    last_used_at: dt.datetime | None = None

    @property
    def generation(self) -> uuid.UUID | None:
        """The mark, None where it is no UUID."""
        try:
            return uuid.UUID(self.mark or "")
        except ValueError:
            return None


@dataclass(frozen=True)
class Counts:
    """How many marked objects and living resources were compared. `others`: objects that may be of others.

    `young`: differences that are too young to be told.
    """

    objects: int
    resources: int
    others: int = 0
    young: int = 0


# Whoever writes to a run says by it that the run lives; and writes nothing where a later run has begun.
_MINE = """mine AS (
        UPDATE reconciliations SET told_at = now() WHERE backend = :backend AND run = :run RETURNING backend, run)"""
_OBJECT = "names, parts, why, size_bytes, created_at, last_used_at, quarantined, contradictory"
_JUDGED = _OBJECT.replace("why", "coalesce(kept, why)")
_KEEP = text(f"""
    WITH {_MINE}
    INSERT INTO reconciliation_objects (backend, run, mark, generation, resource_id, {_OBJECT})
    SELECT backend, run, mark, generation, resource_id, {_OBJECT}
      FROM mine CROSS JOIN jsonb_to_recordset(CAST(:seen AS jsonb))
           AS seen (mark text, generation uuid, resource_id uuid, names jsonb, parts text[], why text,
                    size_bytes bigint, created_at timestamptz, last_used_at timestamptz, quarantined boolean,
                    contradictory boolean)""")


def keep(db: Connection, run: "Run", seen: Sequence[Seen]) -> None:
    """Store a page of what was seen on the backend. Raises Conflict where a later run has begun."""
    rows = [vars(one) | {"generation": one.generation} for one in seen]
    if db.execute(_KEEP, run.words | {"seen": json.dumps(rows, default=str)}).rowcount != len(rows):
        raise Conflict(_SUPERSEDED)


_SUPERSEDED = "another run of this backend has begun: this one ends, and stores nothing"

# Whether a row {0} has not changed since {1}, and no job of it is under way. {1} is `before`, an hour ago: a difference
# is told; or `begun_at`: what was read of it is not out of date, so that a difference can be counted as a young one.
_SETTLED = """(greatest({0}.created_at, {0}.activated_at, {0}.purged_at) < :{1}
                AND NOT EXISTS (SELECT FROM outbox WHERE outbox.resource_id = {0}.id
                                   AND (outbox.state IN ('pending', 'running') OR finished_at >= :{1})))"""
# Whether the row of an item, or of an object that no row knew, has changed since it was compared. A job that is
# enqueued changes its row.
MOVED = """CASE WHEN {0}.resource_id IS NULL
                THEN EXISTS (SELECT FROM resources
                              WHERE resources.generation = {0}.generation AND resources.status <> 'deleted')
                     OR EXISTS (SELECT FROM resources
                                 WHERE resources.generation = {0}.generation AND resources.status = 'deleted')
                ELSE NOT EXISTS (SELECT FROM resources
                                  WHERE id = {0}.resource_id AND resources.version = {0}.version) END"""
# Whether a living resource of the backend has the object's name.
NAMED = """EXISTS (SELECT FROM resources
                    WHERE resources.backend = :backend AND resources.status NOT IN ('deleted', 'released', 'abandoned')
                      AND resources.manifest ->> CAST(:field AS text) = {0}.names ->> CAST(:field AS text))"""
_OLD_ENOUGH = "coalesce({0}.created_at < :{1}, true)"

# A generation is of one living resource at most. Of deleted ones, the last of this backend counts.
_OBJECTS = text(f"""
    WITH {_MINE}, page AS MATERIALIZED (
        SELECT object.* FROM mine JOIN reconciliation_objects AS object USING (backend, run)
         WHERE n > :after ORDER BY n LIMIT :page
    ), judged AS (
        SELECT page.*, coalesce(live.id, gone.id) AS row_id, coalesce(live.version, gone.version) AS version,
               coalesce(live.manifest, gone.manifest) AS manifest,
               CASE WHEN live.status IN ('released', 'abandoned') THEN
                    concat('its resource is ', live.status, ', and keeps the mark: remove the object by hand')
                END AS kept,
               CASE WHEN mark IS NULL THEN
                         CASE WHEN {_OLD_ENOUGH.format("page", "begun_at")} AND NOT {NAMED.format("page")}
                              THEN 'unmarked' END
                    WHEN live.id IS NOT NULL AND live.status IN ('released', 'abandoned') THEN
                         CASE WHEN {_SETTLED.format("live", "begun_at")} THEN 'survives' END
                    WHEN live.id IS NOT NULL THEN
                         CASE WHEN live.backend = :backend AND live.status = 'active'
                               AND {_SETTLED.format("live", "begun_at")}
                               AND (quarantined OR contradictory
                                    OR EXISTS (SELECT FROM jsonb_each_text(page.names) AS has
                                                 JOIN jsonb_each_text(live.manifest) AS wants USING (key)
                                                WHERE has.value IS DISTINCT FROM wants.value
                                                  AND wants.value IS NOT NULL)) THEN 'differs' END
                    WHEN gone.id IS NOT NULL THEN CASE WHEN {_SETTLED.format("gone", "begun_at")} THEN 'survives' END
                    WHEN NOT {_OLD_ENOUGH.format("page", "begun_at")} THEN NULL
                    WHEN :shared AND NOT mark = ANY(CAST(:noted AS text[]))
                         AND NOT coalesce(CAST(page.resource_id AS text) = ANY(CAST(:noted AS text[])), false)
                         THEN 'others'
                    ELSE 'unknown' END AS code
          FROM page
          LEFT JOIN LATERAL (SELECT * FROM resources
                              WHERE resources.generation = page.generation AND status <> 'deleted') AS live ON true
          LEFT JOIN LATERAL (SELECT * FROM resources
                              WHERE resources.generation = page.generation AND status = 'deleted'
                              ORDER BY resources.backend = :backend DESC, purged_at DESC LIMIT 1) AS gone
                 ON live.id IS NULL
    ), told AS (
        SELECT *, CASE WHEN row_id IS NULL THEN {_OLD_ENOUGH.format("judged", "before")}
                       ELSE EXISTS (SELECT FROM resources AS own
                                     WHERE own.id = row_id AND {_SETTLED.format("own", "before")}) END AS old
          FROM judged WHERE code IS NOT NULL
    ), stored AS (
        INSERT INTO reconciliation_items (backend, run, code, key, generation, resource_id, version, manifest,
                                          {_OBJECT})
        SELECT backend, run, code,
               CASE WHEN code = 'differs' THEN CAST(row_id AS text)
                    WHEN mark IS NULL THEN encode(sha256(convert_to(CAST(names AS text), 'UTF8')), 'hex')
                    WHEN generation IS NULL THEN concat(mark, ' ', parts[1])
                    ELSE mark END,
               generation, row_id, version, manifest, {_JUDGED}
          FROM told WHERE old AND code <> 'others'
    )
    SELECT (SELECT count(*) FROM mine) AS mine, (SELECT max(n) FROM page) AS last,
           count(*) FILTER (WHERE old AND code = 'others') AS others,
           count(*) FILTER (WHERE old AND code = 'unknown') AS unknown,
           count(*) FILTER (WHERE NOT old AND code NOT IN ('others', 'unmarked')) AS young
      FROM told""")
_ROWS = text(f"""
    WITH {_MINE}, page AS MATERIALIZED (
        SELECT * FROM resources WHERE backend = :backend AND status = 'active' AND id > :after ORDER BY id LIMIT :page
    ), told AS (
        SELECT page.*, {_SETTLED.format("page", "before")} AS old FROM page
         WHERE {_SETTLED.format("page", "begun_at")}
           AND NOT EXISTS (SELECT FROM reconciliation_objects AS object
                            WHERE object.backend = :backend AND object.run = :run
                              AND object.generation = page.generation)
    ), stored AS (
        INSERT INTO reconciliation_items (backend, run, code, key, generation, resource_id, version, manifest,
                                          names, parts, why, quarantined, contradictory)
        SELECT mine.backend, run, 'missing', CAST(told.id AS text), told.generation, told.id, version, manifest,
               manifest, '{{}}', '', false, false
          FROM mine CROSS JOIN told WHERE old
    )
    SELECT (SELECT count(*) FROM mine) AS mine, (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last,
           (SELECT count(*) FROM told WHERE NOT old) AS young""")
_COUNTS = text("""
    SELECT (SELECT count(*) FROM reconciliation_objects
             WHERE backend = :backend AND run = :run AND mark IS NOT NULL) AS objects,
           count(*) FILTER (WHERE status NOT IN ('deleted', 'released', 'abandoned')) AS resources, count(*) AS rows,
           count(*) FILTER (WHERE status = 'active' AND activated_at < :before) AS active
      FROM resources WHERE backend = :backend""")


def compare(
    db: Connection, run: "Run", *, shared: bool, noted: Collection[str], field: str | None, page: int = PAGE
) -> Counts:
    """Find what may differ between the rows and the objects that were kept; each statement is short.

    `shared`: other installations use the server too, so that an object without a row is ours only where `noted` has its
    mark or its resource. `field` as for `conclude`. Raises Conflict where one of the two sides is empty, which it can
    only be by mistake: an answer with nothing in it is no finding.
    """
    found = db.execute(_COUNTS, run.words).one()
    if found.active and not found.objects:
        raise Conflict(
            f"the backend shows no object of ours, and {found.active} resources are active there: is it the right "
            "server, and the right account?"
        )
    counts = Counts(found.objects, found.resources)
    asked = run.words | {"page": page, "shared": shared, "noted": list(noted), "field": field}
    unknown, after = 0, 0
    while (row := _paged(db, _OBJECTS, asked | {"after": after})).last is not None:
        after, unknown = row.last, unknown + row.unknown
        counts = replace(counts, others=counts.others + row.others, young=counts.young + row.young)
    if unknown and not found.rows:
        raise Conflict(
            f"the backend shows {unknown} objects with our mark, and this database has no resource there: is it the "
            "right control database?"
        )
    last = uuid.UUID(int=0)
    while (row := _paged(db, _ROWS, asked | {"after": last})).last is not None:
        last = row.last
        counts = replace(counts, young=counts.young + row.young)
    return counts


def _paged(db: Connection, statement: Any, asked: Json) -> Any:
    row = db.execute(statement, asked).one()
    if not row.mine:
        raise Conflict(_SUPERSEDED)
    return row


@dataclass(frozen=True)
class Item:
    """What may be a finding. `manifest` is its row's, None where no row knows it; `names` as the server shows them."""

    n: int
    code: Difference
    manifest: Json | None
    names: Json
    quarantined: bool
    contradictory: bool
    size_bytes: int | None
    created_at: dt.datetime | None
    last_used_at: dt.datetime | None
    why: str


_WAITING = text("""
    SELECT n, code, manifest, names, quarantined, contradictory, size_bytes, created_at, last_used_at, why
      FROM reconciliation_items WHERE backend = :backend AND run = :run AND n > :after
     ORDER BY n LIMIT :batch""")


def waiting(db: Connection, run: "Run", after: int) -> list[Item]:
    """The next items that are to be inspected, after this number."""
    rows = db.execute(_WAITING, run.words | {"after": after, "batch": BATCH})
    return [Item(**{**row._mapping, "code": Difference(row.code)}) for row in rows]


@dataclass(frozen=True)
class Looked:
    """What an inspection has said of an item: whether it stands, as which difference, and why."""

    n: int
    stands: bool
    code: Difference
    why: str = ""
    size_bytes: int | None = None
    created_at: dt.datetime | None = None
    last_used_at: dt.datetime | None = None


_LOOKED = text(f"""
    WITH {_MINE}
    UPDATE reconciliation_items AS item
       SET stands = seen.stands, code = seen.code, why = seen.why, size_bytes = seen.size_bytes,
           created_at = seen.created_at, last_used_at = seen.last_used_at
      FROM mine CROSS JOIN jsonb_to_recordset(CAST(:seen AS jsonb))
           AS seen (n bigint, stands boolean, code text, why text, size_bytes bigint, created_at timestamptz,
                    last_used_at timestamptz)
     WHERE item.n = seen.n""")


def looked(db: Connection, run: "Run", seen: Sequence[Looked]) -> None:
    """Store what inspections have said. Raises Conflict where a later run has begun."""
    asked = run.words | {"seen": json.dumps([vars(one) for one in seen], default=str)}
    if db.execute(_LOOKED, asked).rowcount != len(seen):
        raise Conflict(_SUPERSEDED)
