"""The rights that a teardown needs on an object that others made: checked before the object is adopted."""

from outbox.errors import Refused
from worker.backends.postgres.identity import Database, Role
from worker.backends.postgres.session import Session

# From here on, a membership has the options ADMIN, INHERIT and SET, and CREATEROLE alone changes no role.
_OPTIONS = 160000
LACKS = "the service's account lacks rights that the teardown of this object needs"


def must_suffice(session: Session, database: Database, role: Role | None) -> None:
    """Raises Refused that ends with the statements which give the missing rights, all in one line to run."""
    if statements := missing(session, database, role):
        raise Refused(f"{LACKS}; when its owner agrees, run as a superuser, then re-drive: {'; '.join(statements)};")


def missing(session: Session, database: Database, role: Role | None) -> list[str]:
    """The statements that give the missing rights."""
    options = session.server_version >= _OPTIONS
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT me.rolname, me.rolsuper, me.rolcreatedb, me.rolcreaterole, me.rolinherit,
                   owner.oid::pg_catalog.int8, owner.rolname, owner.rolsuper
              FROM pg_catalog.pg_roles AS me, pg_catalog.pg_database AS d
              JOIN pg_catalog.pg_roles AS owner ON owner.oid = d.datdba
             WHERE me.rolname = current_user AND d.oid = %s""",
            (database.oid,),
        )
        name, superuser, createdb, createrole, inherits, owner, owner_name, owner_is_superuser = cursor.fetchone()
    if superuser:
        return []
    me, found = quoted(name), []
    if not createdb:  # to rename the database
        found.append(f"ALTER ROLE {me} CREATEDB")
    granted: list[int] = []
    if role is not None:
        if not createrole:
            found.append(f"ALTER ROLE {me} CREATEROLE")
        if not _holds(session, role.oid, admin=options):
            granted.append(role.oid)
            how = " WITH ADMIN TRUE, INHERIT TRUE, SET TRUE" if options else ""
            found.append(f"GRANT {quoted(role.name)} TO {me}{how}")
        if not options and _replicates(session, role):
            found.append(f"ALTER ROLE {quoted(role.name)} NOREPLICATION")
    how = " WITH INHERIT TRUE, SET TRUE" if options else ""
    if owner not in granted and not _holds(session, owner):
        if owner_is_superuser:  # its rights are too many to give
            found.append(f"ALTER DATABASE {quoted(database.name)} OWNER TO {me}")
        else:
            granted.append(owner)
            found.append(f"GRANT {quoted(owner_name)} TO {me}{how}")
    if _others_may_connect(session, database, granted):
        found.append(f"GRANT pg_signal_backend TO {me}{how}")
    if not options and not inherits and any(statement.startswith("GRANT") for statement in found):
        found.append(f"ALTER ROLE {me} INHERIT")
    return found


def _holds(session: Session, role: int, *, admin: bool = False) -> bool:
    """Whether our account has a role's rights, may become that role and, where asked, may change it."""
    modes = ["USAGE", "SET" if session.server_version >= _OPTIONS else "MEMBER"]
    modes += ["USAGE WITH ADMIN OPTION"] if admin else []
    with session.cursor() as cursor:
        cursor.execute(
            "SELECT pg_catalog.bool_and(pg_catalog.pg_has_role(%s::pg_catalog.oid, mode))"
            " FROM pg_catalog.unnest(%s) AS mode",
            (role, modes),
        )
        return bool(cursor.fetchone()[0])


def _replicates(session: Session, role: Role) -> bool:
    with session.cursor() as cursor:
        cursor.execute("SELECT rolreplication FROM pg_catalog.pg_roles WHERE oid = %s", (role.oid,))
        return bool(cursor.fetchone()[0])


def _others_may_connect(session: Session, database: Database, granted: list[int]) -> bool:
    """Whether a role can have a session in the database that our account could not end. Superusers can anyway."""
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT NOT pg_catalog.pg_has_role('pg_signal_backend', 'USAGE') AND EXISTS (
                SELECT FROM pg_catalog.pg_roles
                 WHERE rolcanlogin AND NOT rolsuper AND oid <> ALL(%s::pg_catalog.oid[])
                   AND pg_catalog.has_database_privilege(oid, %s::pg_catalog.oid, 'CONNECT')
                   AND NOT pg_catalog.pg_has_role(oid, 'USAGE'))""",
            (granted, database.oid),
        )
        return bool(cursor.fetchone()[0])


def quoted(name: str) -> str:
    """An identifier that can be pasted; what is not printable is escaped."""
    if name.isprintable():
        return '"' + name.replace('"', '""') + '"'
    doubled = name.replace("\\", "\\\\").replace('"', '""')
    return 'U&"' + "".join(c if c.isprintable() else f"\\+{ord(c):06x}" for c in doubled) + '"'
