"""What was seen of backends and memories is stored, and compared with this database."""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox import rewinds
from outbox.errors import Conflict
from outbox.memory import NOTE_DIGITS, Memory, Note
from outbox.recovery.classes import CLASSES, WITH, ItemClass
from outbox.rows import Json

# As many items of a class as a person reads before deciding.
SAMPLE = 10
# A survey of a million rows takes minutes, and nothing else is written meanwhile.
TIMEOUT = "SET LOCAL statement_timeout = '10min'"


@dataclass(frozen=True)
class Seen:
    """An object that bears a mark of ours. `why`: why it cannot be adopted as it stands, empty where it can."""

    mark: str
    names: Json
    parts: tuple[str, ...]
    resource_id: uuid.UUID | None
    quarantined: bool
    why: str

    @property
    def generation(self) -> str | None:
        """The mark, None where it is no UUID."""
        try:
            return str(uuid.UUID(self.mark))
        except ValueError:
            return None


@dataclass(frozen=True)
class Looked:
    """What a place told. `shared`: other installations use the backend too. `error`: why it could not be read."""

    memory: Memory | None = None
    shared: bool = False
    error: str | None = None


_BEGIN = text("""
    INSERT INTO recoveries (backend, actor, incarnation) VALUES (:backend, :actor, :incarnation) RETURNING id""")
# A new survey replaces the items of an older one, unless an operator has decided about them: those are evidence.
_DROP_OBJECTS = text("DELETE FROM recovery_objects WHERE recovery_id <> :id")
_DROP_ITEMS = text("""
    DELETE FROM recovery_items USING recoveries
     WHERE recovery_id = recoveries.id AND begun_at IS NULL AND recoveries.id <> :id""")


def begin_survey(db: Connection, *, backend: str | None, actor: str) -> tuple[int, uuid.UUID]:
    """A new survey, of all places or of one backend; its id, and the installation's. It supersedes those before it."""
    db.execute(text(TIMEOUT))
    here = rewinds.here(db, [])
    asked = {"backend": backend, "actor": actor, "incarnation": here.incarnation}
    id = int(db.execute(_BEGIN, asked).scalar_one())
    db.execute(_DROP_OBJECTS, {"id": id})
    db.execute(_DROP_ITEMS, {"id": id})
    return id, here.installation


_EXPECTED = text("""
    SELECT backend, count(*) FILTER (WHERE status = 'active') AS active FROM resources
     WHERE status <> 'deleted' GROUP BY backend""")


def expected(db: Connection) -> dict[str, int]:
    """The backends that have resources here, each with the number of those that are active."""
    return {row.backend: row.active for row in db.execute(_EXPECTED)}


_KEEP = text("""
    INSERT INTO recovery_objects (recovery_id, backend, mark, generation, names, parts, resource_id, quarantined, why)
    SELECT :id, :backend, mark, generation, names, parts, resource_id, quarantined, why
      FROM jsonb_to_recordset(CAST(:seen AS jsonb))
           AS seen (mark text, generation uuid, names jsonb, parts text[], resource_id uuid, quarantined boolean,
                    why text)""")


def keep_objects(db: Connection, id: int, backend: str, seen: Sequence[Seen]) -> None:
    """Store a page of what was seen on a backend."""
    rows = [
        vars(one)
        | {"generation": one.generation, "resource_id": None if one.resource_id is None else str(one.resource_id)}
        for one in seen
    ]
    db.execute(_KEEP, {"id": id, "backend": backend, "seen": json.dumps(rows)})


_SEEN = text("SELECT backend, count(*) AS objects FROM recovery_objects WHERE recovery_id = :id GROUP BY backend")
_LOOKED = text("""
    UPDATE recoveries
       SET surveyed = CAST(:surveyed AS text[]), shared = CAST(:shared AS text[]), errors = CAST(:errors AS jsonb),
           notes = CAST(:notes AS jsonb), verdict = :verdict, epoch_seen = :epoch_seen
     WHERE id = :id
 RETURNING *""")
_STORED = text("UPDATE recoveries SET counts = CAST(:counts AS jsonb), digest = :digest WHERE id = :id")


def end_survey(db: Connection, id: int, looked: Mapping[str, Looked]) -> None:
    """Compare, and store the items by class with their digest. `looked` is by place.

    Raises Conflict where the server was replaced or started again meanwhile.
    """
    db.execute(text(TIMEOUT))
    here = rewinds.here(db, [])
    survey = db.execute(text("SELECT * FROM recoveries WHERE id = :id"), {"id": id}).one()
    _refuse_other_run(here, survey)
    backends = {place: one for place, one in looked.items() if place != rewinds.BROKER}
    errors = {place: one.error for place, one in backends.items() if one.error}
    objects = {row.backend: row.objects for row in db.execute(_SEEN, {"id": id})}
    for place, active in expected(db).items():
        if survey.backend not in (None, place) or place in errors:
            continue
        if place not in backends:
            errors[place] = "it is not in the backends file of this command"
        elif active and not objects.get(place):
            errors[place] = f"it shows no object of ours, and {active} are active here: is it the right server?"
    memories = {place: one.memory for place, one in looked.items() if place not in errors}
    told = {
        "id": id,
        "surveyed": sorted(backends.keys() - errors.keys()),
        "shared": sorted(place for place, one in backends.items() if one.shared),
        "errors": json.dumps(errors),
        "notes": json.dumps([] if survey.backend else _lost(db, here.epoch, memories)),
        "verdict": rewinds.judge(db, here, memories).rewound,
        "epoch_seen": max((memory.epoch for memory in memories.values() if memory), default=0),
    }
    survey = db.execute(_LOOKED, told).one()
    for one in classes_of(survey):
        db.execute(text(_store(one)), {"id": id, "class": one.name})
    counts, digest = summary(db, survey, stored=True)
    db.execute(_STORED, {"id": id, "counts": json.dumps(counts), "digest": digest})


def _refuse_other_run(here: rewinds.Here, survey: Row[Any]) -> None:
    if here.incarnation != survey.incarnation:
        raise Conflict(
            "the control database was started again, or replaced, since the survey began: survey again "
            "(`deprovisioner recover`)"
        )


def classes_of(survey: Row[Any]) -> list[ItemClass]:
    """The classes that a survey has: all of them, or those of a backend that went back in time."""
    return [one for one in CLASSES if one.of_backend or survey.backend is None]


_HASHES = text(f"SELECT id, left(encode(hash, 'hex'), {NOTE_DIGITS}) AS hash FROM events WHERE id = ANY(:ids)")


def _lost(db: Connection, epoch: int, memories: Mapping[str, Memory | None]) -> list[Json]:
    """What places have noted in this epoch, and this database does not have."""
    noted: dict[tuple[int, str, str], Note] = {}  # an event may have two notes: of a create, and of itself
    for memory in memories.values():
        if memory is not None and memory.epoch >= epoch:
            noted |= {(note.event, note.hash[:NOTE_DIGITS], note.what): note for note in memory.notes or ()}
    rows = db.execute(_HASHES, {"ids": [event for event, _, _ in noted]})
    known = {(row.id, row.hash) for row in rows}
    return [noted[key].as_json() for key in sorted(noted) if key[:2] not in known]


def _store(one: ItemClass) -> str:
    return f"""
    INSERT INTO recovery_items (recovery_id, class, n, key, backend, job_id, fence, resource_id, detail)
    {WITH}
    SELECT :id, :class, row_number() OVER (ORDER BY key), item.* FROM ({one.rows}) AS item"""


# Two sums of hashes with different seeds, as for bulk work: the order of items does not matter.
_SUMS = """count(*) AS items, coalesce(sum(CAST(hashtextextended(key, 0) AS numeric)), 0) AS first,
           coalesce(sum(CAST(hashtextextended(key, 1) AS numeric)), 0) AS second"""
_OF_ITEMS = f"SELECT {_SUMS} FROM recovery_items WHERE recovery_id = :id AND class = :class"


def summary(db: Connection, survey: Row[Any], *, stored: bool) -> tuple[dict[str, int], str]:
    """The counts by class and the digest: of the stored items, or of what their queries find now."""
    counts: dict[str, int] = {}
    sums = []
    for one in classes_of(survey):
        query = _OF_ITEMS if stored else f"{WITH} SELECT {_SUMS} FROM ({one.rows}) AS item"
        row = db.execute(text(query), {"id": survey.id, "class": one.name}).one()
        counts[one.name] = row.items
        sums.append([one.name, row.items, str(row.first), str(row.second)])
    content = json.dumps([survey.backend, sorted(survey.surveyed), sorted(survey.errors), sums])
    return counts, f"{sum(counts.values())}-{hashlib.sha256(content.encode()).hexdigest()}"
