"""Adopt a database that exists with its role, tell beforehand what would be refused, and let go of one again."""

import uuid
from collections.abc import Callable, Iterator
from functools import partial

from psycopg2 import sql

from outbox.errors import Refused
from outbox.kinds.postgres import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, Finding, mark
from worker.backends.postgres import identity, notes, rights
from worker.backends.postgres.identity import Database, Role, State
from worker.backends.postgres.session import INSPECT_SECONDS, Server, Session


def adopt(server: Server, manifest: Json, generation: uuid.UUID) -> Json:
    """Mark database and role with the generation, in one transaction; see the Protocol."""
    identity.must_not_be_protected(server, manifest)
    manifest = {"generation": str(generation)} | manifest
    with server.connect() as session:
        session.lock(manifest["database"], manifest.get("role"))
        state = identity.read_state(session, manifest)
        for check in _checks(session, state, manifest, mark(str(generation))):
            check()
        database = _must_be_there(state, manifest)
        rights.must_suffice(session, database, state.role)
        adopted = KIND.manifest(
            database=database.name,
            role=manifest.get("role"),
            oid=database.oid,
            role_oid=None if state.role is None else state.role.oid,
            system_identifier=state.system_identifier,
            generation=str(generation),
        )
        with session.transaction():
            _mark(session, "DATABASE", database.name, database.comment, generation)
            if state.role is not None:
                _mark(session, "ROLE", state.role.name, state.role.comment, generation)
            # The comments were made by name: they must stand on what was looked at.
            identity.must_be_same(identity.read_state(session, adopted), adopted)
    return adopted


def adoptable(server: Server, manifest: Json) -> list[Finding]:
    """See `worker.backends.fleet`; the same checks as an adoption's, each of them."""
    manifest = manifest | {"generation": manifest.get("generation") or str(uuid.uuid4())}
    found: list[Finding] = []
    with server.connect(seconds=INSPECT_SECONDS) as session:
        state = identity.read_state(session, manifest)
        checks: list[Callable[[], object]] = [partial(identity.must_not_be_protected, server, manifest)]
        for check in (*checks, *_checks(session, state, manifest, mark(manifest["generation"]))):
            try:
                check()
            except Refused as error:
                code = "not_there" if isinstance(error, _NotThere) else "refused"
                found.append(Finding(code, str(error), ""))
        database = state.named(manifest["database"])
        if database is not None and (missing := rights.missing(session, database, state.role)):
            found.append(Finding("right_missing", rights.LACKS, "; ".join(missing) + ";"))
    return found


def pinned(server: Server, manifest: Json) -> Json:
    """See `worker.backends.fleet`: by OID, what was made again is another object."""
    with server.connect(seconds=INSPECT_SECONDS) as session:
        state = identity.read_state(session, manifest)
    database = state.named(manifest["database"])
    role = next((role for role in state.roles if role.name == manifest.get("role")), None)
    seen = {
        "oid": None if database is None else database.oid,
        "role_oid": None if role is None else role.oid,
        "system_identifier": state.system_identifier,
    }
    return manifest | {name: value for name, value in seen.items() if manifest.get(name) is None}


class _NotThere(Refused):
    """The database or the role does not exist."""


def _checks(session: Session, state: State, manifest: Json, own: str) -> Iterator[Callable[[], object]]:
    """What must be true of the object, beside the account's rights; each raises Refused. `own`: its own mark."""
    yield partial(identity.must_be_right_server, state, manifest)
    if manifest.get("system_identifier") not in (None, state.system_identifier):
        return  # on a wrong server no other check means anything
    yield partial(identity.must_be_a_customers, state, manifest)
    yield partial(identity.must_own_nothing_else, state, manifest)
    yield partial(_must_not_be_in_quarantine, state, manifest)
    yield partial(_must_be_there, state, manifest)
    yield partial(_must_bear_no_other_mark, state, manifest, own)
    yield partial(_must_be_used_nowhere_else, session, state, manifest)


def _must_be_there(state: State, manifest: Json) -> Database:
    database = state.named(manifest["database"])
    if database is None:
        raise _NotThere(f"there is no database {manifest['database']!r} to adopt")
    if manifest.get("oid") not in (None, database.oid):
        raise Refused(f"database {database.name!r} has OID {database.oid}, not {manifest['oid']}")
    if manifest.get("role") and state.role is None:
        raise _NotThere(f"there is no role {manifest['role']!r} to adopt")
    if state.role is not None and manifest.get("role_oid") not in (None, state.role.oid):
        raise Refused(f"role {state.role.name!r} has OID {state.role.oid}, not {manifest['role_oid']}")
    return database


def _must_not_be_in_quarantine(state: State, manifest: Json) -> None:
    if _in_quarantine(state, manifest):
        raise Refused(f"database {manifest['database']!r} cannot be adopted: {IN_QUARANTINE}")


def _in_quarantine(state: State, manifest: Json) -> bool:
    away, database = state.named(identity.dying_name(manifest)), state.named(manifest["database"])
    return bool(
        (away is not None and identity.is_marked(away.comment, manifest))
        or (database is not None and notes.before(database.comment, manifest, notes.CONNECTIONS))
        or (state.role is not None and notes.before(state.role.comment, manifest, notes.LOGIN))
    )


def _must_bear_no_other_mark(state: State, manifest: Json, own: str) -> None:
    """Also a role that several databases share: it belongs to the one that was adopted first."""
    for what, found in (("database", state.named(manifest["database"])), ("role", state.role)):
        comment = "" if found is None else found.comment or ""
        if "deprovisioner gen=" in comment and not comment.endswith(own):
            raise Refused(f"{what} {manifest[what]!r} belongs to another resource already")


# Rights on another database, and rights and objects inside it. Every role has what PUBLIC has: that is no dependency.
_ELSEWHERE = """
    SELECT DISTINCT d.datname
      FROM pg_catalog.pg_shdepend AS s
      JOIN pg_catalog.pg_database AS d
        ON d.oid = CASE WHEN s.dbid = 0 THEN s.objid ELSE s.dbid END
     WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND s.refobjid = %s
       AND (s.dbid <> 0 OR s.classid = 'pg_catalog.pg_database'::pg_catalog.regclass) AND d.datname <> %s
     ORDER BY 1 LIMIT 3"""


def _must_be_used_nowhere_else(session: Session, state: State, manifest: Json) -> None:
    """The role dies with the database: an application that uses it in another database would lose that one too."""
    if state.role is None:
        return
    with session.cursor() as cursor:
        cursor.execute(_ELSEWHERE, (state.role.oid, manifest["database"]))
        others = [name for (name,) in cursor]
    if others:
        raise Refused(
            f"role {manifest['role']!r} has rights or objects in other databases too ({', '.join(map(repr, others))}): "
            "a teardown would take it from them; adopt the database without `role`, or, when the role's owner agrees, "
            f"run there DROP OWNED BY {rights.quoted(manifest['role'])} and revoke its rights on the database"
        )


def _mark(session: Session, what: str, name: str, comment: str | None, generation: uuid.UUID) -> None:
    ours = mark(str(generation))
    if not (comment and comment.endswith(ours)):
        _comment(session, what, name, f"{comment} {ours}" if comment else ours)


def _comment(session: Session, what: str, name: str, words: str | None) -> None:
    session.execute(f"COMMENT ON {what} {{name}} IS {{words}}", name=name, words=sql.Literal(words))


def unmark(server: Server, manifest: Json) -> Json:
    """Make the comments of database and role what they were before the mark; see `worker.backends.fleet`."""
    ours, taken = mark(manifest["generation"]), []
    with server.connect() as session:
        session.lock(manifest["database"], manifest.get("role"))
        state = identity.read_state(session, manifest)
        identity.must_be_right_server(state, manifest)
        if _in_quarantine(state, manifest):
            raise Refused(f"database {manifest['database']!r} is in quarantine: restore it before you release it")
        marked: list[tuple[str, Database | Role, bool, str | None]] = [
            ("DATABASE", d, identity.is_ours(d, manifest), manifest["database"]) for d in state.databases
        ]
        marked += [("ROLE", r, identity.is_our_role(r, manifest), manifest.get("role")) for r in state.roles]
        with session.transaction():
            for what, found, is_ours, name in marked:
                if not identity.is_marked(found.comment, manifest):
                    continue
                if not is_ours or found.name != name:
                    raise Refused(
                        f"{what.lower()} {found.name!r} bears this resource's mark, and is not {name!r} as it was "
                        "recorded: it was renamed, or is a copy; find its owner first"
                    )
                before = (found.comment or "").removesuffix(ours).removesuffix(" ")
                _comment(session, what, found.name, before or None)
                taken.append(f"{what.lower()} {found.name}")
            _must_have_been_ours(state, identity.read_state(session, manifest))
    return {"unmarked": taken}


def _must_have_been_ours(before: State, after: State) -> None:
    """The comments were taken by name: what bears the names must be what bore them when the marks were read."""
    for was, now in ((before.databases, after.databases), (before.roles, after.roles)):
        oids = {found.name: found.oid for found in now}
        if any(oids.get(found.name, found.oid) != found.oid for found in was):
            raise Refused("another object has taken the name of this one meanwhile; nothing was changed")
