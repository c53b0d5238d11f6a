"""All databases and roles of a server that bear a mark of ours, or a name that nothing else can have."""

import re
import uuid
from collections.abc import Iterator
from itertools import groupby, islice
from typing import NamedTuple

from outbox.errors import OutOfService
from outbox.kinds.postgres import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, MarkedObject, mark
from worker.backends.postgres import identity, notes
from worker.backends.postgres.session import STANDBY, Server

# Rows that one FETCH brings: some 100 kB.
PAGE = 500
# Of one mark, so many parts are looked at; a database and a role are two.
PARTS = 20
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_OF_A_RESOURCE = re.compile(r"(?:db|usr)_([0-9a-f]{32})")
_PASSING = re.compile(f"zz_(new|del)_({_UUID})")
_SCRATCH = re.compile(f"zz_scratch_({_UUID})")

# One statement, so one snapshot; WITH HOLD, so that the snapshot ends with it and the server keeps the answer. A mark
# counts at a comment's end, as in `identity`. One that stands elsewhere, or twice, is told too: `since` is from the
# first one on. Customers who own their databases write the comments, so no more than their ends leave the server.
_MARKED = """
    SELECT CASE WHEN pg_catalog.right(description, %(length)s) ~ %(marked)s THEN pg_catalog.right(description, 36)
                WHEN at IS NULL THEN pg_catalog.right(name, 36) END COLLATE "C" AS generation,
           what, oid::pg_catalog.int8, name, open, invalid,
           pg_catalog.left(pg_catalog.substr(description, at), 100) AS since,
           pg_catalog.right(description, 200) AS tail
      FROM (SELECT what, oid, name, open, invalid, description,
                   NULLIF(pg_catalog.strpos(description, %(mark)s), 0) AS at
              FROM (SELECT 'database' AS what, oid, datname AS name, datallowconn AS open,
                           datconnlimit = -2 AS invalid,
                           'pg_catalog.pg_database'::pg_catalog.regclass AS catalog
                      FROM pg_catalog.pg_database
                     UNION ALL
                    SELECT 'role', oid, rolname, rolcanlogin, false, 'pg_catalog.pg_authid'::pg_catalog.regclass
                      FROM pg_catalog.pg_roles) AS object
              LEFT JOIN pg_catalog.pg_shdescription ON objoid = oid AND classoid = catalog) AS object
     WHERE at IS NOT NULL OR name ~ %(passing)s
     ORDER BY 1, what, oid"""


class Part(NamedTuple):
    """A database or a role. `generation`: None where its mark is not one of ours; `invalid`: a DROP of it died.

    `open`: it allows connections, or may log in.
    """

    generation: str | None
    what: str
    oid: int
    name: str
    open: bool
    invalid: bool
    since: str | None  # its comment from its first mark on, cut; None where it has no mark
    tail: str | None  # the end of its comment

    def __str__(self) -> str:
        return f"{self.what} {self.name!r} (OID {self.oid})"


def objects(server: Server) -> Iterator[MarkedObject]:
    """A database and its role are one object; see `worker.backends.objects`. In constant memory.

    No size: the server counts a database's files for it, which takes it half a millisecond and more for each.
    """
    with server.connect(frees=False) as session:
        found = session.cursor("marked", withhold=True)
        found.itersize = PAGE
        with session.transaction():
            with session.cursor() as asked:
                asked.execute("SELECT pg_catalog.pg_is_in_recovery()")
                if asked.fetchone()[0]:  # `connect` has asked too; a pooler may have moved the session since
                    raise OutOfService(STANDBY)
            system_identifier = identity.system_identifier(session)
            found.execute(
                _MARKED,
                {
                    "mark": mark(""),
                    "length": len(mark("")) + 36,
                    "marked": f"^{mark(_UUID)}$",
                    "passing": f"^{_PASSING.pattern}$",
                },
            )
        for _, parts in groupby(map(Part._make, found), key=lambda part: part.generation or (part.what, part.oid)):
            yield _object(system_identifier, list(islice(parts, PARTS)))


def _object(system_identifier: int, parts: list[Part]) -> MarkedObject:
    generation = parts[0].generation or (parts[0].since or "").removeprefix(mark(""))
    against = list(_contradictions(parts))
    database, role = (_sole([part for part in parts if part.what == what]) for what in ("database", "role"))
    held = {found[1] for part in parts if (found := _OF_A_RESOURCE.fullmatch(part.name))}
    resource = held.pop() if len(held) == 1 else None
    quarantined = any(_quarantined(part, generation) for part in parts)
    why = against or list(_obstacles(database, role, quarantined=quarantined))
    return MarkedObject(
        generation=generation,
        names=_names(system_identifier, generation, database, role, resource),
        parts=tuple(map(str, parts)),
        resource_id=uuid.UUID(resource) if resource else None,
        quarantined=quarantined,
        contradictory=bool(against),
        why="; ".join(why),
    )


def _sole(parts: list[Part]) -> Part | None:
    """The one, None where there are several to choose from."""
    return parts[0] if len(parts) == 1 else None


def _names(
    system_identifier: int, generation: str, database: Part | None, role: Part | None, resource: str | None
) -> Json:
    """A manifest; a database or role under a passing name has the name that it had before, where the other shows it."""

    def name(part: Part | None, own: str) -> str | None:
        if part is None or not _PASSING.fullmatch(part.name):
            return part and part.name
        return f"{own}_{resource}" if resource else None

    values: Json = {
        "database": name(database, "db"),
        "role": name(role, "usr"),
        "oid": database and database.oid,
        "role_oid": role and role.oid,
        "system_identifier": system_identifier,
        "generation": generation,
    }
    return {field.name: values[field.name] for field in KIND.fields}


def _contradictions(parts: list[Part]) -> Iterator[str]:
    for what in ("database", "role"):
        if len(alike := [repr(part.name) for part in parts if part.what == what]) > 1:
            yield f"several {what}s bear this mark ({', '.join(alike[:3])}): one of them may be a copy"
    for part in parts:
        if part.generation is None:
            yield f"the comment of {part} has our mark, and does not end with one as we write it"
        elif part.since is not None and part.since != mark(part.generation):
            yield f"the comment of {part} has more than one mark"
        passing = _PASSING.fullmatch(part.name)
        if passing and passing[2] != part.generation:
            yield f"{part} has a name of another generation than its mark's"
        elif passing and part.since is None and (passing[1], part.what) != ("new", "database"):
            yield f"{part} has a name that only deprovisioner gives, and no mark"


def _obstacles(database: Part | None, role: Part | None, *, quarantined: bool) -> Iterator[str]:
    """Why one whole object could not be adopted, or not as the customer left it."""
    for part in filter(None, (database, role)):
        if scratch := _SCRATCH.fullmatch(part.name):
            yield f"a copy by which a snapshot of {scratch[1]} is proven: the next attempt removes it"
            return
    if database is None:
        yield "no database bears its mark: a provision or a destruction of it was not finished, or is under way"
    elif database.name.startswith("zz_new_"):
        yield "its provision was not finished, or is under way; the database holds nothing"
    elif database.invalid:
        yield "DROP DATABASE was begun, so the database cannot be entered any more"
    elif quarantined:
        yield IN_QUARANTINE
    elif role is None and _OF_A_RESOURCE.fullmatch(database.name):
        yield "no role bears its mark, though its database was made with one: find that role first"
    else:
        for part in filter(None, (database, role)):
            if not part.open and _OF_A_RESOURCE.fullmatch(part.name):
                yield f"{part} is closed, as one is whose destruction has begun"


def _quarantined(part: Part, generation: str) -> bool:
    if part.what == "database" and part.name == f"zz_del_{generation}" and not part.invalid:
        return True
    if not (part.tail or "").endswith(f"] {mark(generation)}"):  # else each object would need expressions of its own
        return False
    both = (notes.LOGIN, notes.CONNECTIONS)
    return any(notes.before(part.tail, {"generation": generation}, clauses) for clauses in both)
