"""Who owns what a dropped role leaves in other databases: a role that can do nothing.

If the service's own account took these objects over, a customer's function or view would run with its rights.
"""

from psycopg2 import errors as sqlstates
from psycopg2 import sql

from outbox.errors import Refused
from worker.backends.postgres.session import Session

_MAY = ("rolcanlogin", "rolsuper", "rolcreatedb", "rolcreaterole", "rolreplication", "rolbypassrls")
# What the role owns in this database, and what it owns in none, such as a database.
_OWNED = """
    FROM pg_catalog.pg_shdepend
   WHERE refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND refobjid = %(oid)s AND deptype = 'o'
     AND dbid IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))"""
# What runs with the rights of its owner, whoever calls it.
_RUNS_AS_OWNER = """
    SELECT 'ALTER ROUTINE ' || oid::pg_catalog.regprocedure || ' SECURITY INVOKER'
      FROM pg_catalog.pg_proc WHERE proowner = %(oid)s AND prosecdef
     UNION ALL
    SELECT 'ALTER VIEW ' || oid::pg_catalog.regclass || ' SET (security_invoker = true)'
      FROM pg_catalog.pg_class WHERE relowner = %(oid)s AND relkind = 'v'
     UNION ALL
    SELECT 'DROP RULE ' || pg_catalog.quote_ident(rulename) || ' ON ' || c.oid::pg_catalog.regclass
      FROM pg_catalog.pg_rewrite JOIN pg_catalog.pg_class AS c ON c.oid = ev_class
     WHERE relowner = %(oid)s AND ev_type <> '1'"""

# One transaction locks each large object that it removes, and the server's lock table is shared.
LARGE_OBJECTS = 1000


def drop_large_objects(session: Session, oid: int) -> None:
    """Remove the role's large objects in this database, one that is no customer's: none there can use them."""
    while _has_large_objects(session, oid):
        session.execute(
            "SELECT pg_catalog.lo_unlink(oid) FROM (SELECT oid FROM pg_catalog.pg_largeobject_metadata"
            " WHERE lomowner = {role} LIMIT {batch}) AS batch",
            role=sql.Literal(oid),
            batch=sql.Literal(LARGE_OBJECTS),
        )


def _has_large_objects(session: Session, oid: int) -> bool:
    with session.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_catalog.pg_largeobject_metadata WHERE lomowner = %s LIMIT 1", (oid,))
        return cursor.fetchone() is not None


def hand_over(session: Session, role: str, oid: int) -> None:
    """Give what the role owns here to the heir, with code that can run only with its caller's rights.

    Inside a transaction. Raises Refused where the heir's name belongs to a role that can do something.
    """
    with session.cursor() as cursor:
        cursor.execute(f"SELECT EXISTS (SELECT {_OWNED})", {"oid": oid})
        if not cursor.fetchone()[0]:
            return
        cursor.execute(_RUNS_AS_OWNER, {"oid": oid})
        neutralised = [statement for (statement,) in cursor]
    heir = _heir(session)
    _run(session, neutralised, "functions, views and rules that lost their owner's rights")
    # A new owner of a function needs CREATE on its schema, of a publication CREATE on the database: until the REVOKE.
    if lent := _places(session, oid):
        session.lock(heir)  # of two grants on one object at a time, the server refuses one
    _run(session, [f"GRANT CREATE ON {place} TO {heir}" for place in lent], f"GRANT CREATE TO {heir}")
    session.execute("REASSIGN OWNED BY {role} TO {heir}", role=role, heir=heir)
    _run(session, [f"REVOKE CREATE ON {place} FROM {heir}" for place in lent], f"REVOKE CREATE FROM {heir}")


def _run(session: Session, statements: list[str], told: str) -> None:
    """All in one message, and one line of evidence: a customer decides how many there are."""
    if statements:
        with session.cursor() as cursor:
            cursor.execute("; ".join(statements))
        session.executed.append(f"{told}: {len(statements)}")


def _heir(session: Session) -> str:
    """The name of this account's heir, which is made where there is none, and was just seen to have no rights."""
    with session.cursor() as cursor:
        cursor.execute("SELECT oid::pg_catalog.int8 FROM pg_catalog.pg_roles WHERE rolname = current_user")
        heir = f"deprovisioner_nobody_{cursor.fetchone()[0]}"
        cursor.execute("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = %s", (heir,))
        missing = cursor.fetchone() is None
    if missing:
        session.execute("SAVEPOINT heir")
        try:
            session.execute("CREATE ROLE {heir} NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT", heir=heir)
            session.execute("GRANT {heir} TO CURRENT_USER", heir=heir)  # without it, nothing can be handed over
        except (sqlstates.DuplicateObject, sqlstates.UniqueViolation):  # another worker has made it meanwhile
            session.execute("ROLLBACK TO SAVEPOINT heir")
    _must_be_powerless(session, heir)
    return heir


def _must_be_powerless(session: Session, heir: str) -> None:
    with session.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT {", ".join(_MAY)},
                   ARRAY(SELECT roleid::pg_catalog.regrole::pg_catalog.text
                           FROM pg_catalog.pg_auth_members WHERE member = r.oid),
                   ARRAY(SELECT m.member::pg_catalog.regrole::pg_catalog.text
                           FROM pg_catalog.pg_auth_members AS m
                          WHERE roleid = r.oid
                            AND m.member <> (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user))
              FROM pg_catalog.pg_roles AS r WHERE rolname = %s""",
            (heir,),
        )
        *may, member_of, members = cursor.fetchone()
    too_much = [name for name, has in zip(_MAY, may, strict=True) if has]
    too_much += [f"a membership in {name}" for name in member_of] + [f"the member {name}" for name in members]
    if too_much:
        raise Refused(
            f"role {heir!r} takes over what dropped roles own elsewhere, so it must be able to do nothing;"
            f" it has {', '.join(too_much)}: take that away"
        )


def _places(session: Session, oid: int) -> list[str]:
    """The database and the schemas that a new owner needs CREATE on, where this account may lend that."""
    with session.cursor() as cursor:
        cursor.execute(
            f"""
            WITH owned AS (
                SELECT classid::pg_catalog.regclass::pg_catalog.text AS kind, classid, objid, objsubid {_OWNED})
            SELECT 'DATABASE ' || pg_catalog.quote_ident(pg_catalog.current_database())
             WHERE EXISTS (SELECT FROM owned WHERE kind = 'pg_publication')
               AND pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE WITH GRANT OPTION')
             UNION ALL
            SELECT 'SCHEMA ' || pg_catalog.quote_ident(nspname) FROM pg_catalog.pg_namespace
             WHERE pg_catalog.has_schema_privilege(oid, 'CREATE WITH GRANT OPTION')
               AND nspname IN (SELECT (pg_catalog.pg_identify_object(classid, objid, objsubid)).schema FROM owned
                                WHERE kind NOT IN ('pg_class', 'pg_type', 'pg_namespace', 'pg_largeobject'))""",
            {"oid": oid},
        )
        return [place for (place,) in cursor]
