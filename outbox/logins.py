"""Who still tries to log in to what is in quarantine, as far as its server tells: counted by workers, shown to people.

A worker takes a turn at a resource, asks the server, and adds what is new. A server's log is short and rolls over: what
was counted before stays counted.
"""

import datetime as dt
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from outbox import rewinds
from outbox.rows import Json

# A server is asked no more often. Redis adds an attempt to an older one's group for as long.
EVERY = dt.timedelta(seconds=60)
ADDRESSES = 20  # are kept, the latest first


@dataclass(frozen=True)
class LoginAttempts:
    """The attempts since a resource was deleted; `last_at` by its server's clock, None where there were none.

    `addresses` are where the latest came from. `looked_at`: when a worker last asked the server.
    """

    count: int
    last_at: dt.datetime | None
    addresses: list[str]
    looked_at: dt.datetime

    def __str__(self) -> str:
        if self.last_at is None:
            return f"none seen until {_at(self.looked_at)}"
        return f"{self.count}, the last {_at(self.last_at)}, from {', '.join(self.addresses) or 'where is not known'}"


@dataclass(frozen=True)
class Turn:
    """A worker's turn to ask a server for the attempts after `since`; `addresses` and `groups` as they are kept."""

    resource_id: uuid.UUID
    backend: str
    manifest: Json
    since: dt.datetime
    looked_at: dt.datetime
    addresses: list[str]
    groups: dict[str, int]


# The guard of the UPDATE gives each turn to one worker: the others wait for the row, and find it looked at. `last_at`
# is never before the DELETE: a row from before a restore begins anew.
_TAKE = text(f"""
    WITH due AS (
        SELECT outbox.resource_id, deleted_at
          FROM outbox
          JOIN resources ON resources.id = outbox.resource_id
          LEFT JOIN login_attempts AS kept ON kept.resource_id = outbox.resource_id
         WHERE outbox.backend = ANY(CAST(:backends AS text[])) AND step IN ('snapshot', 'wait') AND finished_at IS NULL
           AND status = 'deleting' AND manifest IS NOT NULL AND coalesce(looked_at <= now() - :every, true)
           AND {rewinds.GOES_ON}
         ORDER BY looked_at NULLS FIRST, outbox.id
         LIMIT :batch
    ), taken AS (
        INSERT INTO login_attempts AS kept (resource_id, count, last_at, addresses, groups)
        SELECT resource_id, 0, deleted_at, '[]', '{{}}' FROM due ORDER BY resource_id
            ON CONFLICT (resource_id) DO UPDATE
           SET looked_at = now(),
               count = CASE WHEN kept.last_at < EXCLUDED.last_at THEN 0 ELSE kept.count END,
               addresses = CASE WHEN kept.last_at < EXCLUDED.last_at THEN '[]' ELSE kept.addresses END,
               last_at = greatest(kept.last_at, EXCLUDED.last_at)
         WHERE kept.looked_at <= now() - :every
     RETURNING kept.*
    )
    SELECT taken.resource_id, backend, manifest, last_at AS since, looked_at, addresses, groups
      FROM taken JOIN resources ON resources.id = resource_id
     ORDER BY backend, taken.resource_id""")


def take(db: Connection, backends: Sequence[str], *, batch: int) -> list[Turn]:
    """At most `batch` turns at resources of these backends that are in quarantine, those first that waited longest."""
    rows = db.execute(_TAKE, {"backends": list(backends), "batch": batch, "every": EVERY})
    return [Turn(**row._mapping) for row in rows]


_RECORD = text("""
    UPDATE login_attempts
       SET count = count + :more, last_at = greatest(last_at, :last_at), addresses = CAST(:addresses AS jsonb),
           groups = CAST(:groups AS jsonb)
     WHERE resource_id = :resource_id AND looked_at = :looked_at""")


def record(
    db: Connection,
    turn: Turn,
    *,
    count: int,
    last_at: dt.datetime,
    addresses: Sequence[str],
    groups: Mapping[str, int],
) -> None:
    """Add the attempts that the server showed in this turn. Of a group that has grown, only its growth is added.

    Nothing is added where another worker has had a turn since.
    """
    # A group that is smaller than before is another one: the server was started anew.
    known = sum(before for name, before in turn.groups.items() if before <= groups.get(name, 0))
    db.execute(
        _RECORD,
        {
            "resource_id": turn.resource_id,
            "looked_at": turn.looked_at,
            "more": max(0, count - known),
            "last_at": last_at,
            "addresses": json.dumps([*dict.fromkeys([*addresses, *turn.addresses])][:ADDRESSES]),
            "groups": json.dumps(dict(groups)),
        },
    )


_OF = text("""
    SELECT count AS attempts, CASE WHEN count > 0 THEN last_at END AS last_at, addresses, looked_at
      FROM login_attempts JOIN resources ON resources.id = resource_id
     WHERE resource_id = :id AND deleted_at <= last_at""")


def of(db: Connection, resource_id: uuid.UUID) -> LoginAttempts | None:
    """The attempts at this resource; None where no worker has asked its server since it was deleted."""
    row = db.execute(_OF, {"id": resource_id}).one_or_none()
    return None if row is None else LoginAttempts(row.attempts, row.last_at, row.addresses, row.looked_at)


def _at(time: dt.datetime) -> str:
    return time.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
