"""What the server shows under a manifest's names, and whether it is the manifest's object; no statement here writes."""

from dataclasses import dataclass

from outbox.errors import Refused
from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Same, mark
from worker.backends.postgres.session import INSPECT_SECONDS, Server, Session


@dataclass(frozen=True)
class Database:
    """A row of pg_database."""

    oid: int
    name: str
    comment: str | None
    template: bool


@dataclass(frozen=True)
class Role:
    """A row of pg_roles, with the names of the databases that the role owns."""

    oid: int
    comment: str | None
    superuser: bool
    owns: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """What bears the manifest's names, and what bears its OID. `us`: our own database and role."""

    system_identifier: int
    us: tuple[str, str]
    databases: tuple[Database, ...]
    role: Role | None

    def named(self, name: str) -> Database | None:
        """The database of that name."""
        return next((d for d in self.databases if d.name == name), None)


def inspect(server: Server, manifest: Json) -> Observation:
    """Read the state and judge it; see the Protocol."""
    with server.connect(seconds=INSPECT_SECONDS) as session:
        return judge(read_state(session, manifest), manifest)


def read_state(session: Session, manifest: Json) -> State:
    """The databases and the role of a manifest, as the server shows them now."""
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT oid::bigint, datname, shobj_description(oid, 'pg_database'), datistemplate FROM pg_database
             WHERE datname = ANY(%(names)s) OR oid = %(oid)s""",
            {"names": [manifest["database"], new_name(manifest), dying_name(manifest)], "oid": manifest.get("oid")},
        )
        databases = tuple(Database(*row) for row in cursor)
        cursor.execute(
            """
            SELECT oid::bigint, shobj_description(oid, 'pg_authid'), rolsuper,
                   ARRAY(SELECT datname::text FROM pg_database WHERE datdba = pg_roles.oid)
              FROM pg_roles WHERE rolname = %s""",
            (manifest.get("role"),),
        )
        role = cursor.fetchone()
        cursor.execute("SELECT current_database(), session_user")
        us = cursor.fetchone()
    return State(system_identifier(session), us, databases, Role(*role) if role else None)


def judge(state: State, manifest: Json) -> Observation:
    """Whether the state shows the manifest's object: absent, the same, or a different one."""
    evidence: Json = {
        "system_identifier": state.system_identifier,
        "databases": [f"{d.name} oid={d.oid} comment={d.comment}" for d in state.databases],
        "role": None if state.role is None else f"{manifest['role']} oid={state.role.oid} comment={state.role.comment}",
    }
    if manifest.get("system_identifier") not in (None, state.system_identifier):
        return Different(
            evidence,
            f"this server is {state.system_identifier}, not {manifest['system_identifier']}: the wrong server",
        )
    named = state.named(manifest["database"])
    ours = [d for d in state.databases if is_ours(d, manifest)]
    if state.role is not None and not is_marked(state.role.comment, manifest):
        return Different(evidence, f"role {manifest['role']!r} is not the one that was made for this resource")
    if named is not None and named not in ours and not ours:
        return Different(evidence, f"database {named.name!r} (OID {named.oid}) is not the one of this resource")
    if stray := [d for d in ours if d.name not in (manifest["database"], new_name(manifest), dying_name(manifest))]:
        return Different(evidence, f"the database was renamed to {stray[0].name!r}, and not by deprovisioner")
    if not ours and state.role is None:
        return Absent(evidence)
    return Same(evidence)


def must_be_same(state: State, manifest: Json) -> None:
    """Raises Refused unless the state shows the manifest's object."""
    match judge(state, manifest):
        case Different(why=why):
            raise Refused(why)
        case Absent():
            raise Refused("the object is no longer there")
        case Same():
            return


def must_be_right_server(state: State, manifest: Json) -> None:
    """Raises Refused on another cluster than the manifest's."""
    if manifest.get("system_identifier") not in (None, state.system_identifier):
        raise Refused(
            f"this server is {state.system_identifier}, not {manifest['system_identifier']}: the wrong server"
        )


def must_not_be_protected(server: Server, manifest: Json) -> None:
    """Raises Refused for names that are never adopted or torn down, whatever a manifest says."""
    for name in (manifest["database"], manifest.get("role")):
        if name in server.protected:
            raise Refused(f"{name!r} is protected: it is never adopted or torn down")


def must_be_a_customers(state: State, manifest: Json) -> None:
    """Raises Refused for what this service stands on, PostgreSQL's own roles, superusers and templates."""
    database = state.named(manifest["database"])
    if {manifest["database"], manifest.get("role")} & set(state.us):
        raise Refused("this is the role or database that deprovisioner itself works with")
    if (manifest.get("role") or "").startswith("pg_"):
        raise Refused(f"role {manifest['role']!r} is PostgreSQL's own")
    if state.role is not None and state.role.superuser:
        raise Refused(f"role {manifest['role']!r} is a superuser, so not a customer's")
    if database is not None and database.template:
        raise Refused(f"database {database.name!r} is a template, so not a customer's")


def must_own_nothing_else(state: State, manifest: Json) -> None:
    """Raises Refused for a role that owns another database: to drop the role would take it from its customer."""
    if state.role is not None and (others := set(state.role.owns) - {manifest["database"]}):
        raise Refused(f"role {manifest['role']!r} owns another database too: {sorted(others)[0]!r}")


def is_marked(comment: str | None, manifest: Json) -> bool:
    """Whether a comment ends with the mark of the manifest's generation."""
    return comment is not None and comment.endswith(mark(manifest["generation"]))


def is_ours(database: Database, manifest: Json) -> bool:
    """Whether a database is the manifest's, by OID and mark."""
    if manifest.get("oid") not in (None, database.oid):
        return False
    # Between CREATE and COMMENT a new database has only its name, which holds the generation.
    return is_marked(database.comment, manifest) or database.name == new_name(manifest)


def new_name(manifest: Json) -> str:
    """What a database is called until it is whole."""
    return f"zz_new_{manifest['generation']}"


def dying_name(manifest: Json) -> str:
    """What a database is called in quarantine."""
    return f"zz_del_{manifest['generation']}"


def system_identifier(session: Session) -> int:
    """Which cluster the session is on; a standby has its primary's."""
    with session.cursor() as cursor:
        cursor.execute("SELECT system_identifier FROM pg_control_system()")
        return int(cursor.fetchone()[0])
