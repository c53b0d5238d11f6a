"""Runs and findings, as commands and the API show them."""

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox.errors import NotFound
from outbox.queries.pages import Page, decode_cursor, page_of
from outbox.rows import Json
from outbox.states import Difference


@dataclass(frozen=True)
class Reconciliation:
    """A backend's last good run, from `compared_at` to `ended_at`, and what it found by code.

    `objects` and `resources` were compared; `others` are objects that no row knows, on a server that other
    installations use too. `tried_at` and `error` are of the last run; `error` None where that was good.
    """

    backend: str
    compared_at: dt.datetime | None
    ended_at: dt.datetime | None
    objects: int | None
    resources: int | None
    others: int | None
    found: dict[str, int]
    tried_at: dt.datetime | None
    actor: str | None
    error: str | None


_RESULTS = text("""
    SELECT backend, compared_at, ended_at, objects, resources, others,
           (SELECT coalesce(jsonb_object_agg(code, n), '{}')
              FROM (SELECT code, count(*) AS n FROM object_findings AS found
                     WHERE found.backend = kept.backend AND closed_at IS NULL GROUP BY code) AS counted) AS found,
           begun_at AS tried_at, actor, error
      FROM reconciliations AS kept ORDER BY backend""")


def results(db: Connection) -> list[Reconciliation]:
    """What is known of each backend."""
    return [Reconciliation(**row._mapping) for row in db.execute(_RESULTS)]


@dataclass(frozen=True)
class ObjectFinding:
    """A difference. `parts` are what bears the mark, in words. Times and size where they are known, in bytes.

    `resource_id`, with `tenant` and `name`: the row that it is about; None where no row knows the object. `found_at`:
    when a run first found it, `seen_at` last. `adopted_as`: the resource that an operator made of it.
    """

    id: int
    backend: str
    code: Difference
    resource_id: uuid.UUID | None
    tenant: str | None
    name: str | None
    parts: list[str]
    why: str
    size_bytes: int | None
    created_at: dt.datetime | None
    last_used_at: dt.datetime | None
    found_at: dt.datetime
    seen_at: dt.datetime
    closed_at: dt.datetime | None
    adopted_as: uuid.UUID | None


_FINDINGS = """
    SELECT found.id, found.backend, code, resource_id, tenant, name, parts, why, size_bytes, found.created_at,
           last_used_at, found_at, seen_at, closed_at, adopted_as, names
      FROM object_findings AS found LEFT JOIN resources ON resources.id = resource_id"""
_PAGE = text(f"""{_FINDINGS}
     WHERE found.id > :after AND (closed_at IS NULL OR :closed)
       AND (CAST(:backend AS text) IS NULL OR found.backend = :backend)
       AND (CAST(:code AS text) IS NULL OR code = :code)
     ORDER BY found.id LIMIT :limit""")
_CHOSEN = text(f"""{_FINDINGS}
     WHERE found.id = ANY(CAST(:ids AS bigint[])) AND closed_at IS NULL ORDER BY found.id""")


def findings(
    db: Connection,
    *,
    backend: str | None = None,
    code: Difference | None = None,
    closed: bool = False,
    cursor: str | None = None,
    limit: int = 50,
) -> Page:
    """The findings that stand, and with `closed` those that stood; the oldest first. Raises BadCursor."""
    (after,) = (0,) if cursor is None else decode_cursor(cursor, lambda last: (int(last),))
    asked = {"after": after, "closed": closed, "backend": backend, "code": code, "limit": limit + 1}
    return page_of([_read(row) for row in db.execute(_PAGE, asked)], limit, lambda found: [found.id])


def chosen(db: Connection, ids: Sequence[int]) -> list[tuple[ObjectFinding, Json]]:
    """The findings of these ids, each with the manifest that would adopt its object. Raises NotFound."""
    rows = db.execute(_CHOSEN, {"ids": list(ids)}).all()
    if lost := sorted(set(ids) - {row.id for row in rows}):
        raise NotFound(
            f"finding {lost[0]} does not stand: run `deprovisioner reconcile` again, and take the ids from it"
        )
    return [(_read(row), row.names) for row in rows]


def _read(row: Row[Any]) -> ObjectFinding:
    told = {name: value for name, value in row._mapping.items() if name != "names"}
    return ObjectFinding(**told | {"code": Difference(row.code)})


_LEDGER = text("""
    SELECT count(*) AS objects, coalesce(sum(size_bytes), 0) AS bytes,
           count(*) FILTER (WHERE size_bytes IS NULL) AS unsized,
           (SELECT count(*) FROM resources
             WHERE status = 'abandoned' AND (CAST(:backend AS text) IS NULL OR backend = :backend)) AS abandoned
      FROM object_findings
     WHERE closed_at IS NULL AND code IN ('unknown', 'survives')
       AND (CAST(:backend AS text) IS NULL OR backend = :backend)""")


def ledger(db: Connection, *, backend: str | None = None) -> dict[str, int]:
    """What is left behind: objects that no resource manages, their bytes, and how many of them have no known size.

    `abandoned`: how many objects were given up with servers that are gone (`queries.abandoned` lists them).
    """
    row = db.execute(_LEDGER, {"backend": backend}).one()
    return {"objects": row.objects, "bytes": int(row.bytes), "unsized": row.unsized, "abandoned": row.abandoned}
