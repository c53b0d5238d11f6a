"""All schemas and users of a server that bear a mark of ours; all schemas that bear none; where an object is now."""

import re
import uuid
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any, NamedTuple

from outbox.kinds.mysql import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, MarkedObject, Observation, Same, mark
from worker.backends.fleet import Measured, UnmarkedObject
from worker.backends.mysql import identity, registry
from worker.backends.mysql.create import PREFIX
from worker.backends.mysql.names import literal
from worker.backends.mysql.session import INSPECT_SECONDS, NEVER_SCHEMAS, Server, Session

PARTS = 20  # of one mark, so many parts are looked at; a schema, a user and its role are three
_OF_A_RESOURCE = re.compile(rf"(?:{PREFIX})?([0-9a-f]{{32}})")
_MARKED = """
    SELECT p.generation, p.what, p.name, p.host, o.`database`, o.user, o.closed IS NOT NULL
      FROM (SELECT CONVERT(SUBSTRING(SCHEMA_COMMENT, LOCATE({mark}, SCHEMA_COMMENT) + {length}) USING utf8mb4)
                   COLLATE utf8mb4_bin AS generation, 'schema' AS what, SCHEMA_NAME AS name, '' AS host
              FROM information_schema.SCHEMATA WHERE SCHEMA_COMMENT LIKE {like}
             UNION ALL
            SELECT SUBSTRING(Role, {length} + 1), 'user', User, Host
              FROM mysql.roles_mapping WHERE Role LIKE {like} AND Admin_option = 'N'
             UNION ALL
            SELECT SUBSTRING(User, {length} + 1), 'role', User, ''
              FROM mysql.global_priv WHERE Host = '' AND User LIKE {like}) AS p
      LEFT JOIN {records} AS o ON o.generation = p.generation
     ORDER BY p.generation, p.what, p.name, p.host"""
_NO_RECORDS = "(SELECT '' AS generation, NULL AS `database`, NULL AS user, NULL AS closed)"
# Sizes are InnoDB's own statistics: to count files takes the server half a millisecond for each.
_UNMARKED = """
    SELECT s.SCHEMA_NAME, t.size, g.users, g.user
      FROM information_schema.SCHEMATA AS s
      LEFT JOIN (SELECT database_name, SUM(clustered_index_size + sum_of_other_index_sizes) * @@innodb_page_size AS size
                   FROM mysql.innodb_table_stats GROUP BY database_name) AS t
             ON BINARY t.database_name = BINARY s.SCHEMA_NAME
      LEFT JOIN (SELECT REPLACE(REPLACE(REPLACE(Db, '\\\\_', '_'), '\\\\%', '%'), '\\\\\\\\', '\\\\') AS name,
                        COUNT(DISTINCT User) AS users, MIN(User) AS user
                   FROM mysql.db WHERE Host <> '' AND User <> {me} GROUP BY 1) AS g
             ON BINARY g.name = BINARY s.SCHEMA_NAME
      LEFT JOIN {records} AS o ON BINARY o.`database` = BINARY s.SCHEMA_NAME
     WHERE s.SCHEMA_NAME NOT IN ({never}) AND s.SCHEMA_COMMENT NOT LIKE {like} AND o.generation IS NULL"""


class _Part(NamedTuple):
    generation: str
    what: str
    name: str
    host: str
    database: str | None  # as the service has recorded it
    user: str | None
    closed: bool

    def __str__(self) -> str:
        return f"{self.what} {self.name!r}" + (f" at {self.host!r}" if self.host else "")


def objects(server: Server) -> Iterator[MarkedObject]:
    """A schema with its user and its role are one object; see `worker.backends.objects`. In constant memory."""
    with server.connect() as session:
        here = registry.server_id(session)
        statement = _filled(_MARKED, session, here)
        for generation, parts in groupby(map(_part, session.stream(statement)), key=lambda part: part.generation):
            yield _object(here, generation, list(islice(parts, PARTS)))
        session.must_be_writable_primary()


def _part(row: tuple[Any, ...]) -> _Part:
    return _Part._make((*row[:-1], bool(row[-1])))


def _filled(statement: str, session: Session, here: str | None) -> str:
    words = {
        "mark": literal(mark("")),
        "length": str(len(mark(""))),
        "me": literal(session.server.address.user),
        "like": literal(f"%{mark('')}%"),
        "records": _NO_RECORDS if here is None else f"{session.own}.objects",
        "never": ", ".join(map(literal, sorted(NEVER_SCHEMAS | {session.server.address.schema}))),
    }
    for name, value in words.items():
        statement = statement.replace(f"{{{name}}}", value)
    return statement


def _object(here: str | None, generation: str, parts: list[_Part]) -> MarkedObject:
    schemas = [part.name for part in parts if part.what == "schema"]
    users = sorted({part.name for part in parts if part.what == "user"})
    first = parts[0]
    against = list(_contradictions(generation, schemas, users, first))
    names = KIND.manifest(
        database=schemas[0] if len(schemas) == 1 else first.database or "",
        user=users[0] if len(users) == 1 else first.user,
        generation=generation,
        server=here,
    )
    names["database"] = names["database"] or None
    held = _OF_A_RESOURCE.fullmatch(names["database"] or names["user"] or "")
    why = "; ".join(against)
    if not why and names["database"] is None:
        why = "no schema bears its mark: a provision or a destruction of it was not finished, or is under way"
    if not why and first.closed:
        why = IN_QUARANTINE
    return MarkedObject(
        generation=generation,
        names=names,
        parts=tuple(map(str, parts)),
        resource_id=uuid.UUID(held[1]) if held else None,
        quarantined=first.closed,
        contradictory=bool(against),
        why=why,
    )


def _contradictions(generation: str, schemas: list[str], users: list[str], recorded: _Part) -> Iterator[str]:
    if not identity.MARK.fullmatch(mark(generation)):
        yield "its mark is not one as we write it"
    for what, found, own in (("schema", schemas, recorded.database), ("user", users, recorded.user)):
        if len(found) > 1:
            yield f"several {what}s bear this mark ({', '.join(map(repr, found[:3]))}): one of them may be a copy"
        elif found and own is not None and found[0] != own:
            yield f"{what} {found[0]!r} bears this mark, and {own!r} is recorded as the resource's"


def unmarked(server: Server) -> Iterator[UnmarkedObject]:
    """See `worker.backends.fleet.unmarked`; a schema's user is told where one user alone has rights on it."""
    with server.connect() as session:
        here = registry.server_id(session)
        for name, size, users, user in session.stream(_filled(_UNMARKED, session, here)):
            names = {"database": name, "user": user if users == 1 else None}
            yield UnmarkedObject(names, size_bytes=None if size is None else int(size))


def measured(server: Server, names: Json) -> Measured:
    """See `worker.backends.fleet.measured`: InnoDB's own statistics; nothing of tables of other engines."""
    with server.connect(seconds=INSPECT_SECONDS) as session:
        ((size,),) = session.ask(
            """SELECT SUM(clustered_index_size + sum_of_other_index_sizes) * @@innodb_page_size
                 FROM mysql.innodb_table_stats WHERE BINARY database_name = %s""",
            names["database"],
        )
    return Measured(size_bytes=None if size is None else int(size))


def locate(server: Server, manifest: Json) -> Observation:
    """See `worker.backends.fleet.locate`: by name and marks, on whatever server the manifest was made."""
    with server.connect() as session:
        here = manifest | {"server": registry.server_id(session)}
        seen = identity.judge(identity.read_state(session, here), here)
    return Same(seen.seen | {"manifest": here}) if isinstance(seen, Same) else seen
