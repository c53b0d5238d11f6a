"""The last survey, and what was decided about it, as commands and the API show it."""

import datetime as dt
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox.recovery.survey import SAMPLE
from outbox.rows import Json


@dataclass(frozen=True)
class Survey:
    """A survey: what it found by class, the first items of each, and what has become of it.

    `verdict`: why the places say that the database is rewound; None where they do not. `errors`: the backends that
    could not be read, and why. `refused`: how many items of each class a decision could not be carried out for.
    """

    id: int
    backend: str | None
    actor: str
    created_at: dt.datetime
    verdict: str | None
    surveyed: list[str]
    shared: list[str]
    errors: dict[str, str]
    counts: dict[str, int]
    samples: dict[str, list[Json]]
    digest: str
    decisions: dict[str, str] | None
    reason: str | None
    decided_by: str | None
    begun_at: dt.datetime | None
    finished_at: dt.datetime | None
    waiting: dict[str, int]
    refused: dict[str, int]


_LAST = text("SELECT * FROM recoveries WHERE digest IS NOT NULL ORDER BY id DESC LIMIT 1")
_SAMPLE = text(f"""
    SELECT class, key, backend, job_id, resource_id, detail, decision, said FROM recovery_items
     WHERE recovery_id = :id AND n <= {SAMPLE} ORDER BY class, n""")
_LEFT = text("""
    SELECT class, count(*) FILTER (WHERE decision IS NULL) AS waiting, count(*) FILTER (WHERE refused) AS refused
      FROM recovery_items WHERE recovery_id = :id GROUP BY class""")
_DERIVED = ("samples", "waiting", "refused")


def last(db: Connection) -> Survey | None:
    """The last survey that has ended, None where there was none; `db` should be a snapshot."""
    row = db.execute(_LAST).one_or_none()
    if row is None:
        return None
    samples: dict[str, list[Json]] = {}
    for item in db.execute(_SAMPLE, {"id": row.id}):
        samples.setdefault(item[0], []).append(_as_json(item))
    left = db.execute(_LEFT, {"id": row.id}).all()
    return Survey(
        **{one.name: row._mapping[one.name] for one in fields(Survey) if one.name not in _DERIVED},
        samples=samples,
        waiting={one[0]: one.waiting for one in left if one.waiting},
        refused={one[0]: one.refused for one in left if one.refused},
    )


# What acts need; a manifest of a third party's kind may hold secrets, and `parts` says what is there.
_NOT_SHOWN = ("manifest", "names")


def _as_json(item: Row[Any]) -> Json:
    named = {name: item._mapping[name] for name in ("key", "backend", "job_id", "resource_id", "decision", "said")}
    return named | {"detail": {name: value for name, value in item.detail.items() if name not in _NOT_SHOWN}}


_REFUSED = text("""
    SELECT class, key, backend, job_id, resource_id, detail, decision, said FROM recovery_items
     WHERE recovery_id = :id AND refused ORDER BY class, n LIMIT :limit""")


def refusals(db: Connection, id: int, *, limit: int = 100) -> list[Json]:
    """The first items that a decision could not be carried out for, each with its class and why."""
    return [_as_json(row) | {"class": row[0]} for row in db.execute(_REFUSED, {"id": id, "limit": limit})]


_STATE = text("""
    SELECT hold.id IS NOT NULL AS rewound, hold.created_at AS since, hold.reason, announced_at, epoch
      FROM (SELECT) AS always
      LEFT JOIN installation ON true
      LEFT JOIN holds AS hold ON hold.cause = 'rewound' AND hold.released_at IS NULL""")


def state(db: Connection) -> Json:
    """Whether the database is rewound, since when and why, and its epoch."""
    return dict(db.execute(_STATE).one()._mapping)
