"""Rights of a dying role that `DROP OWNED` leaves, because it revokes them as another role than the one that gave them.

PostgreSQL takes the first role that could grant the right: the dying role itself, where it has the grant option and is
older than the owner. And it leaves what a third role has granted. So these are revoked as whoever granted them.
"""

from itertools import groupby

from psycopg2 import sql

from worker.backends.postgres.session import Session

_OPTIONS = 160000  # from here on, a membership says whether its member may become the role
_LEFT = """
    WITH left_over AS (
        SELECT classid::pg_catalog.regclass::pg_catalog.text AS catalog, objid FROM pg_catalog.pg_shdepend
         WHERE refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND refobjid = %(oid)s AND deptype = 'a'
           AND dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    ), object (what, acl) AS (
        SELECT 'TABLE ' || oid::pg_catalog.regclass, relacl
          FROM pg_catalog.pg_class JOIN left_over ON catalog = 'pg_class' AND objid = oid
         UNION ALL
        SELECT 'TABLE ' || attrelid::pg_catalog.regclass, attacl
          FROM pg_catalog.pg_attribute JOIN left_over ON catalog = 'pg_class' AND objid = attrelid
         UNION ALL
        SELECT 'ROUTINE ' || oid::pg_catalog.regprocedure, proacl
          FROM pg_catalog.pg_proc JOIN left_over ON catalog = 'pg_proc' AND objid = oid
         UNION ALL
        SELECT 'TYPE ' || oid::pg_catalog.regtype, typacl
          FROM pg_catalog.pg_type JOIN left_over ON catalog = 'pg_type' AND objid = oid
         UNION ALL
        SELECT 'SCHEMA ' || pg_catalog.quote_ident(nspname), nspacl
          FROM pg_catalog.pg_namespace JOIN left_over ON catalog = 'pg_namespace' AND objid = oid
         UNION ALL
        SELECT 'LARGE OBJECT ' || oid, lomacl
          FROM pg_catalog.pg_largeobject_metadata JOIN left_over ON catalog = 'pg_largeobject' AND objid = oid
    )
    SELECT DISTINCT rolname, 'REVOKE ALL ON ' || what || ' FROM '
           || (SELECT pg_catalog.quote_ident(rolname) FROM pg_catalog.pg_roles WHERE oid = %(oid)s) || ' CASCADE'
      FROM object, pg_catalog.aclexplode(acl) AS granted JOIN pg_catalog.pg_roles AS r ON r.oid = grantor
     WHERE grantee = %(oid)s AND pg_catalog.pg_has_role(grantor, %(become)s)
     ORDER BY 1, 2"""


def revoke_left(session: Session, oid: int) -> None:
    """Revoke them in this database, inside a transaction; rights of roles that this account cannot become stay."""
    become = "SET" if session.server_version >= _OPTIONS else "MEMBER"
    with session.cursor() as cursor:
        cursor.execute(_LEFT, {"oid": oid, "become": become})
        left = cursor.fetchall()
    for grantor, rows in groupby(left, key=lambda row: row[0]):
        statements = [statement for _, statement in rows]
        with session.cursor() as cursor:
            cursor.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(grantor)))
            cursor.execute("; ".join(statements))
            cursor.execute("RESET ROLE")
        session.executed.append(f"REVOKE as {grantor!r}, who had granted it: {len(statements)}")
