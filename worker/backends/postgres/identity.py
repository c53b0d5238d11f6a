"""What the server shows under a manifest's names, and whether it is the manifest's object; no statement here writes."""

from collections.abc import Sequence
from dataclasses import dataclass

from outbox.errors import OutOfService, Refused
from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Same, mark
from worker.backends.postgres.session import INSPECT_SECONDS, STANDBY, Server, Session


@dataclass(frozen=True)
class Database:
    """A row of pg_database."""

    oid: int
    name: str
    comment: str | None
    template: bool
    open: bool  # whether it allows connections


@dataclass(frozen=True)
class Role:
    """A row of pg_roles, with the names of the databases that the role owns."""

    oid: int
    name: str
    comment: str | None
    superuser: bool
    login: bool
    owns: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """What bears any of the manifest's names, OIDs or its mark. `us`: our own database and role."""

    system_identifier: int
    us: tuple[str, str]
    databases: tuple[Database, ...]
    roles: tuple[Role, ...]
    role: Role | None  # the manifest's own role; where there is none, what bears its name

    def named(self, name: str) -> Database | None:
        """The database of that name."""
        return next((d for d in self.databases if d.name == name), None)


# One statement, so one snapshot. Absence means that no name, no OID and no mark matches.
_STATE = """
    SELECT pg_catalog.pg_is_in_recovery(),
           (SELECT system_identifier FROM pg_catalog.pg_control_system()),
           pg_catalog.current_database(), session_user,
           (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
                       d.oid::pg_catalog.int8, d.datname, c.description, d.datistemplate, d.datallowconn)
                   ORDER BY d.datname)
              FROM pg_catalog.pg_database AS d
              LEFT JOIN pg_catalog.pg_shdescription AS c
                     ON c.objoid = d.oid AND c.classoid = 'pg_catalog.pg_database'::pg_catalog.regclass
             WHERE d.datname = ANY(%(databases)s) OR d.oid = %(oid)s
                OR pg_catalog.right(c.description, pg_catalog.length(%(mark)s)) = %(mark)s),
           (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
                       r.oid::pg_catalog.int8, r.rolname, c.description, r.rolsuper, r.rolcanlogin,
                       ARRAY(SELECT datname FROM pg_catalog.pg_database WHERE datdba = r.oid)) ORDER BY r.rolname)
              FROM pg_catalog.pg_roles AS r
              LEFT JOIN pg_catalog.pg_shdescription AS c
                     ON c.objoid = r.oid AND c.classoid = 'pg_catalog.pg_authid'::pg_catalog.regclass
             WHERE r.rolname = ANY(%(roles)s) OR r.oid = %(role_oid)s
                OR pg_catalog.right(c.description, pg_catalog.length(%(mark)s)) = %(mark)s)"""


def inspect(server: Server, manifest: Json) -> Observation:
    """Read the state and judge it; see the Protocol."""
    with server.connect(seconds=INSPECT_SECONDS) as session:
        return judge(read_state(session, manifest), manifest)


def read_state(session: Session, manifest: Json) -> State:
    """The databases and roles of a manifest, as the server shows them now. Raises OutOfService on a standby."""
    with session.cursor() as cursor:
        cursor.execute(
            _STATE,
            {
                "databases": [manifest["database"], new_name(manifest), dying_name(manifest)],
                "oid": manifest.get("oid"),
                "roles": [name for name in (manifest.get("role"), dying_name(manifest)) if name],
                "role_oid": manifest.get("role_oid"),
                "mark": mark(manifest["generation"]) if manifest.get("generation") else None,
            },
        )
        standby, identifier, database, user, databases, roles = cursor.fetchone()
    if standby:  # `connect` has asked too; a pooler may have moved the session since
        raise OutOfService(STANDBY)
    found = tuple(
        Role(oid, name, said, superuser, login, tuple(owns)) for oid, name, said, superuser, login, owns in roles or ()
    )
    named = next((r for r in found if r.name == manifest.get("role")), None)
    role = next((r for r in found if is_our_role(r, manifest)), named)
    return State(int(identifier), (database, user), tuple(Database(*row) for row in databases or ()), found, role)


def judge(state: State, manifest: Json) -> Observation:
    """Whether the state shows the manifest's object: absent (nothing matches), the same, or a different one."""
    evidence: Json = {
        "system_identifier": state.system_identifier,
        "databases": [f"{d.name} oid={d.oid} comment={d.comment}" for d in state.databases],
        "role": None if state.role is None else _shown(state.role),
    }
    if others := [_shown(r) for r in state.roles if r != state.role]:
        evidence["other_roles"] = others
    comments = [d.comment for d in state.databases] + [r.comment for r in state.roles]
    marked = any(is_marked(comment, manifest) for comment in comments)
    if manifest.get("system_identifier") not in (None, state.system_identifier):
        wrong = f"this server is {state.system_identifier}, not {manifest['system_identifier']}: the wrong server"
        return Different(evidence, wrong, marked)
    if why := _foreign_database(state, manifest) or _foreign_role(state, manifest):
        return Different(evidence, why, marked)
    if not state.databases and not state.roles:
        return Absent(evidence)
    if state.role is not None and manifest.get("role_oid") is None:
        evidence["completes"] = {"role_oid": state.role.oid}
    return Same(evidence)


def _shown(role: Role) -> str:
    return f"{role.name} oid={role.oid} comment={role.comment}"


def _foreign_database(state: State, manifest: Json) -> str | None:
    ours = [d for d in state.databases if is_ours(d, manifest)]
    names = (manifest["database"], new_name(manifest), dying_name(manifest))
    return _foreign(_DATABASE, state.databases, ours, names, manifest.get("oid"), manifest)


def _foreign_role(state: State, manifest: Json) -> str | None:
    ours = [r for r in state.roles if is_our_role(r, manifest)]
    names = (manifest.get("role"), dying_name(manifest))
    return _foreign(_ROLE, state.roles, ours, names, manifest.get("role_oid"), manifest)


# A check that an operator makes pass lets the next attempt destroy the object, which may be in use.
_ASK_ITS_OWNER = "find its owner; only when the owner says that it may go,"


@dataclass(frozen=True)
class _Words:
    kind: str
    copied: str
    other: str


_DATABASE = _Words("database", "a restored dump makes", "the one of this resource")
_ROLE = _Words("role", "a restored dump of roles makes", "the one that was made for this resource")


def _foreign(
    words: _Words,
    seen: Sequence[Database | Role],
    ours: Sequence[Database | Role],
    names: tuple[str | None, ...],
    oid: int | None,
    manifest: Json,
) -> str | None:
    """What matches the manifest in part, in words. `names`: those that it may have, its own first; `oid`: recorded."""
    for found in seen:
        what = f"{words.kind} {found.name!r} (OID {found.oid})"
        if found in ours:
            if found.name not in names:
                return (
                    f"the {words.kind} was renamed to {found.name!r}, and not by deprovisioner:"
                    f" {_ASK_ITS_OWNER} rename it back to {names[0]!r}, then re-drive"
                )
        elif found.oid == oid:
            return (
                f"{what} has the recorded OID, but its comment does not end with this resource's mark any more:"
                f" {_ASK_ITS_OWNER} name it {names[0]!r} and end its comment with '{mark(manifest['generation'])}',"
                " then re-drive"
            )
        elif is_marked(found.comment, manifest):
            return (
                f"{what} bears this resource's mark, and is not the one that was made for it (OID {oid}):"
                f" a copy, as {words.copied}; find the owner of the copy, and remove the mark from its comment only"
                " when the owner agrees"
            )
        elif not ours:
            return f"{what} is not {words.other}"
    return None


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


def must_be_our_role(session: Session, manifest: Json, name: str) -> Role:
    """The role of that name, asked after it was changed by name. Raises Refused unless it is the manifest's."""
    for role in read_state(session, manifest).roles:
        if role.name == name and is_our_role(role, manifest):
            return role
    raise Refused(f"role {manifest['role']!r} is no longer the one of this resource")


def must_be_our_database(session: Session, manifest: Json, name: str) -> Database:
    """The database of that name, asked after it was changed by name. Raises Refused unless it is the manifest's."""
    database = read_state(session, manifest).named(name)
    if database is None or not is_ours(database, manifest):
        raise Refused(f"database {manifest['database']!r} is no longer the one of this resource")
    return database


def is_marked(comment: str | None, manifest: Json) -> bool:
    """Whether a comment ends with the mark of the manifest's generation."""
    return bool(comment and manifest.get("generation") and comment.endswith(mark(manifest["generation"])))


def is_our_role(role: Role, manifest: Json) -> bool:
    """Whether a role is the manifest's, by OID and mark."""
    return manifest.get("role_oid") in (None, role.oid) and is_marked(role.comment, manifest)


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
    """What a database in quarantine is called, and a role from the moment its destruction starts."""
    return f"zz_del_{manifest['generation']}"


def system_identifier(session: Session) -> int:
    """Which cluster the session is on; a standby has its primary's."""
    with session.cursor() as cursor:
        cursor.execute("SELECT system_identifier FROM pg_catalog.pg_control_system()")
        return int(cursor.fetchone()[0])
