"""What is not as it should be on a server: rights, doors, connection slots, settings; with statements that mend it."""

from collections.abc import Iterator

from worker.backends import Finding
from worker.backends.postgres import memory
from worker.backends.postgres.rights import quoted
from worker.backends.postgres.session import INSPECT_SECONDS, Server, Session

OLDEST = 150000  # the oldest version that tests run on
_RESERVES = 160000  # the first version that keeps connection slots for others than superusers
# A worker runs some four jobs of a backend at once; a job has up to three sessions, and there is more than one worker.
SESSIONS = 20
# Predefined roles that reach the server's files and programs, or every database's rows; a teardown needs none of them.
POWERS = (
    "pg_execute_server_program",
    "pg_read_server_files",
    "pg_write_server_files",
    "pg_read_all_data",
    "pg_write_all_data",
)
# What each setting must be, and what happens otherwise.
SETTINGS = {
    "fsync": ("on", "a crash can destroy the cluster"),
    "full_page_writes": ("on", "a crash can destroy pages"),
    "zero_damaged_pages": ("off", "damaged rows vanish without an error"),
    "ignore_checksum_failure": ("off", "damaged rows are read without an error"),
    "data_sync_retry": ("off", "a failed write can be taken for done"),
    "password_encryption": ("scram-sha-256", "customers' passwords are stored as MD5 hashes, which open the server"),
}
_NEW_ACCOUNT = (
    "CREATE ROLE deprovisioner_service LOGIN CREATEDB CREATEROLE PASSWORD '…'; then hand over what this one made, and "
    "change the dsn (docs/backends.md)"
)


def check(server: Server) -> list[Finding]:
    """See `worker.backends.check`; changes nothing."""
    with server.connect(seconds=INSPECT_SECONDS) as session:
        return [*_version(session), *_rights(session), *_doors(session), *_slots(session), *_settings(session)]


def _version(session: Session) -> Iterator[Finding]:
    if session.server_version < OLDEST:
        version = f"PostgreSQL {session.server_version // 10000}"
        yield Finding("version_old", f"the server is {version}; tests run on 15 and later", "upgrade the server")


def _rights(session: Session) -> Iterator[Finding]:
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT rolname, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, rolconnlimit
              FROM pg_catalog.pg_roles WHERE rolname = current_user"""
        )
        name, superuser, createdb, createrole, replication, bypasses, limit = cursor.fetchone()
        cursor.execute(
            """
            SELECT rolname FROM pg_catalog.pg_roles
             WHERE (rolname = ANY(%s) OR rolsuper) AND rolname <> current_user
               AND pg_catalog.pg_has_role(oid, 'MEMBER')
             ORDER BY rolname""",
            (list(POWERS),),
        )
        powers = [power for (power,) in cursor]
    me = quoted(name)
    if superuser:
        yield Finding("rights_too_many", f"the service logs in as the superuser {name!r}", _NEW_ACCOUNT)
        return
    for has, right in ((createdb, "CREATEDB"), (createrole, "CREATEROLE")):
        if not has:
            yield Finding("rights_too_few", f"the service's role has no {right}", f"ALTER ROLE {me} {right}")
    for has, right in ((replication, "REPLICATION"), (bypasses, "BYPASSRLS")):
        if has:
            yield Finding("rights_too_many", f"the service's role has {right}", f"ALTER ROLE {me} NO{right}")
    for power in powers:
        what = f"the service's role is a member of {power!r}"
        yield Finding("rights_too_many", what, f"REVOKE {quoted(power)} FROM {me}")
    if 0 <= limit < SESSIONS:
        what = f"the service's role may have {limit} sessions; its workers need {SESSIONS} or more"
        yield Finding("slots_too_few", what, f"ALTER ROLE {me} CONNECTION LIMIT -1")
    if missing := memory.missing_right(session):
        yield Finding("rights_too_few", *missing)


def _doors(session: Session) -> Iterator[Finding]:
    """Databases that are no customer's, which every customer's role may enter because PUBLIC may."""
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT d.datname, current_user
              FROM pg_catalog.pg_database AS d,
                   pg_catalog.aclexplode(COALESCE(d.datacl, pg_catalog.acldefault('d', d.datdba))) AS right_
             WHERE right_.grantee = 0 AND right_.privilege_type = 'CONNECT' AND d.datallowconn
               AND d.datname IN (pg_catalog.current_database(), 'postgres', 'template1')
             ORDER BY d.datname"""
        )
        for database, me in cursor.fetchall():
            what = f"every role may connect to the database {database!r}"
            mend = f"REVOKE CONNECT ON DATABASE {quoted(database)} FROM PUBLIC; "
            yield Finding("public_connect", what, f"{mend}GRANT CONNECT ON DATABASE {quoted(database)} TO {quoted(me)}")
        cursor.execute(
            """
            SELECT pg_catalog.current_database()
              FROM pg_catalog.pg_namespace,
                   pg_catalog.aclexplode(COALESCE(nspacl, pg_catalog.acldefault('n', nspowner))) AS right_
             WHERE nspname = 'public' AND right_.grantee = 0 AND right_.privilege_type = 'CREATE'"""
        )
        for (database,) in cursor.fetchall():
            what = f"every role may create objects in the schema `public` of {database!r}"
            yield Finding(
                "public_create", what, f"REVOKE CREATE ON SCHEMA public FROM PUBLIC  -- in {quoted(database)}"
            )


def _slots(session: Session) -> Iterator[Finding]:
    """Connections that customers cannot take; version 15 keeps some for superusers alone."""
    if session.server_version < _RESERVES:
        return
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT pg_catalog.current_setting('reserved_connections')::pg_catalog.int4, current_user,
                   pg_catalog.pg_has_role('pg_use_reserved_connections', 'USAGE')"""
        )
        reserved, me, may_use = cursor.fetchone()
    if reserved == 0:
        what = "customers' sessions can take every connection slot, and leave none for a teardown"
        yield Finding("slots_too_few", what, "ALTER SYSTEM SET reserved_connections = 5  -- then restart the server")
    elif not may_use:
        what = "connection slots are reserved, and the service's role may not use them"
        grant = f"GRANT pg_use_reserved_connections TO {quoted(me)} WITH INHERIT TRUE"
        yield Finding("slots_too_few", what, grant)


def _settings(session: Session) -> Iterator[Finding]:
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT name, setting FROM pg_catalog.pg_settings
             WHERE name = ANY(%s)
               AND pg_catalog.current_setting('deprovisioner.throwaway', true) IS DISTINCT FROM 'on'
             ORDER BY name""",
            (list(SETTINGS),),
        )
        found = cursor.fetchall()
    for name, value in found:
        wanted, why = SETTINGS[name]
        if value != wanted:
            mend = f"ALTER SYSTEM SET {name} = '{wanted}'; SELECT pg_reload_conf()"
            yield Finding("setting_unsafe", f"{name} is {value}: {why}", mend)
