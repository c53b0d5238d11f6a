"""The objects of an adoption in bulk: checked as a list, then inspected one by one by the workers of their backend."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from outbox import kinds, labels, settings
from outbox.errors import BadRequest, UnknownBackend
from outbox.kinds import text as words
from outbox.rows import Json

# Their rows are some tens of megabytes, and workers inspect them within a quarter of an hour.
MOST = 50_000
MOST_ERRORS = 20
# An inspection takes milliseconds, and at most some time-outs of 5 s. What a worker that died had is inspected again.
TAKEN_SECONDS = 60
AGAIN_SECONDS = 5
_NAME = words()
FIELDS = ("name", "tenant", "external_id", "labels", "protected", "manifest")


def check(backend: str, listed: Iterable[tuple[int, Json]], *, noun: str = "line") -> list[Json]:
    """The objects as they are stored, of `(line, object)` pairs; `noun` is what a message calls a line.

    An object has FIELDS; all but tenant and manifest may be left out. Raises UnknownBackend, and BadRequest that names
    the wrong lines, the first MOST_ERRORS of them.
    """
    kind = kind_of(backend)
    found: list[Json] = []
    wrong: list[str] = []
    first: dict[tuple[str, ...], int] = {}
    for line, given in listed:
        if len(found) + len(wrong) >= MOST:
            raise BadRequest(f"more than {MOST} objects: split the list")
        try:
            one = _checked(kind, given)
        except BadRequest as error:
            wrong.append(f"{noun} {line}: {error}")
            if len(wrong) == MOST_ERRORS:
                wrong.append("and more may follow")
                break
            continue
        for key in _keys(one):
            if (before := first.setdefault(key, line)) != line:
                wrong.append(f"{noun} {line}: {': '.join(key)} is that of {noun} {before} already")
        found.append(one | {"line": line})
    if wrong:
        raise BadRequest("; ".join(wrong[: MOST_ERRORS + 1]))
    return found


def kind_of(backend: str) -> str:
    """The kind of a backend. Raises UnknownBackend."""
    configured = settings.backends()
    if backend not in configured:
        raise UnknownBackend(f"backend {backend!r} is unknown; known: {', '.join(sorted(configured))}")
    return configured[backend].kind


def named(kind: str, manifest: Json) -> Json:
    """Of a manifest the names by which a person knows the object: `{"database": "orders", "role": "orders_app"}`."""
    known = kinds.find(kind)
    own = [field.name for field in known.fields if field.required or field.own] if known else [*manifest]
    return {name: manifest[name] for name in own if manifest.get(name) is not None}


def _checked(kind: str, given: Json) -> Json:
    if unknown := sorted(given.keys() - set(FIELDS)):
        raise BadRequest(f"{unknown[0][:60]!r} is no field of an object; there are {', '.join(FIELDS)}")
    if not isinstance(given.get("manifest"), dict):
        raise BadRequest("manifest: is required")
    if given.get("tenant") in (None, ""):
        raise BadRequest("tenant: is required (`--tenant` says it for all that name none)")
    manifest = kinds.check(kind, given["manifest"])
    name = given.get("name") or next((str(value) for value in manifest.values() if value), "")
    protected = given.get("protected", False)
    if not isinstance(protected, bool):
        raise BadRequest("protected: must be true or false")
    return {
        "kind": kind,
        "name": _word("name", name),
        "tenant": _word("tenant", given.get("tenant")),
        "external_id": labels.check_external_id(given.get("external_id")),
        "labels": labels.check(given.get("labels") or {}),
        "protected": protected,
        "manifest": manifest,
    }


def _word(field: str, value: Any) -> str:
    try:
        return str(_NAME(value))
    except ValueError as error:
        raise BadRequest(f"{field}: {error}") from error


def _keys(one: Json) -> list[tuple[str, ...]]:
    """What no two objects of one list may share: a name on the server, or an external id of a tenant."""
    manifest: Json = one["manifest"]
    keys = [(name, str(value)) for name, value in named(one["kind"], manifest).items()]
    if kinds.find(one["kind"]) is None or not keys:
        keys = [("manifest", json.dumps(manifest, sort_keys=True))]
    external = one["external_id"]
    return [*keys, ("external_id", one["tenant"], external)] if external is not None else list(keys)


@dataclass(frozen=True)
class Candidate:
    """A worker's turn to inspect one object."""

    operation_id: int
    n: int
    backend: str
    kind: str
    manifest: Json


_TAKE = text("""
    UPDATE adoptions SET taken_until = now() + :taken * interval '1 second'
      FROM (SELECT waiting.operation_id, waiting.n, running.filter ->> 'backend' AS backend
              FROM operations AS running
             CROSS JOIN LATERAL (
                   SELECT operation_id, n FROM adoptions
                    WHERE operation_id = running.id AND inspected_at IS NULL
                      AND (taken_until IS NULL OR taken_until <= now())
                    ORDER BY n LIMIT :batch
                      FOR UPDATE SKIP LOCKED) AS waiting
             WHERE running.finished_at IS NULL AND running.kind = 'adopt_preview'
               AND running.filter ->> 'backend' = ANY(:backends)
             LIMIT :batch) AS taken
     WHERE adoptions.operation_id = taken.operation_id AND adoptions.n = taken.n
 RETURNING adoptions.operation_id, adoptions.n, backend, asked ->> 'kind' AS kind,
           asked -> 'manifest' AS manifest""")


def take(db: Connection, backends: Sequence[str], *, batch: int) -> list[Candidate]:
    """At most `batch` objects of these backends that wait for an inspection; they are this worker's for a while."""
    asked = {"backends": list(backends), "batch": batch, "taken": TAKEN_SECONDS}
    return [Candidate(**row._mapping) for row in db.execute(_TAKE, asked)]


_LATER = text("""
    UPDATE adoptions SET taken_until = now() + :again * interval '1 second'
     WHERE operation_id = :id AND n = :n AND inspected_at IS NULL""")


def later(db: Connection, one: Candidate) -> None:
    """The backend could not be asked: another turn comes in some seconds."""
    db.execute(_LATER, {"id": one.operation_id, "n": one.n, "again": AGAIN_SECONDS})


# An external id that another resource of the tenant has is found here, and again as the object is adopted.
_RECORD = text("""
    WITH inspected AS (
        UPDATE adoptions
           SET asked = CASE WHEN CAST(:pinned AS jsonb) IS NULL THEN asked
                            ELSE jsonb_set(asked, '{manifest}', CAST(:pinned AS jsonb)) END,
               inspected_at = now(), inspected_by = :worker, findings = CAST(:findings AS jsonb) || coalesce((
                   SELECT jsonb_agg(jsonb_build_object('code', 'refused', 'mend', '', 'what',
                          'another resource of the tenant has this external_id: ' || resources.id))
                     FROM resources
                    WHERE tenant = asked ->> 'tenant' AND external_id = asked ->> 'external_id'
                      AND status NOT IN ('deleted', 'released')), '[]')
         WHERE operation_id = :id AND n = :n AND inspected_at IS NULL
     RETURNING operation_id, n, findings
    )
    UPDATE operation_items AS item
       SET outcome = CASE WHEN jsonb_array_length(findings) = 0 THEN 'adoptable' ELSE 'refused' END
      FROM inspected
     WHERE item.operation_id = inspected.operation_id AND item.n = inspected.n AND outcome IS NULL""")


def record(
    db: Connection, one: Candidate, findings: Sequence[Json], *, worker: str, pinned: Json | None = None
) -> None:
    """Store what an inspection found (`code`, `what`, `mend`); nothing found means that it can be adopted.

    `pinned` is the manifest of the object that was inspected: the adoption takes that one, and none of the same name.
    """
    asked = {"id": one.operation_id, "n": one.n, "worker": worker, "findings": json.dumps(list(findings))}
    db.execute(_RECORD, asked | {"pinned": None if pinned is None else json.dumps(pinned)})
