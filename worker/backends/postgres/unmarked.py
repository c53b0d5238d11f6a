"""All databases of a server that bear no mark of ours; and the size of one object."""

from collections.abc import Iterator

from outbox.errors import OutOfService
from outbox.kinds.postgres import KIND
from outbox.rows import Json
from worker.backends import mark
from worker.backends.fleet import Measured, UnmarkedObject
from worker.backends.postgres import identity
from worker.backends.postgres.session import INSPECT_SECONDS, STANDBY, Server

PAGE = 500
# Names that only the service gives: objects that it is making or destroying, and copies of snapshots.
_PASSING = "^zz_(new|del|scratch)_[0-9a-f-]{36}$"
# The owner is named as the role where it is an ordinary role that owns nothing else, since it dies with its database.
_UNMARKED = """
    SELECT d.oid::pg_catalog.int8, d.datname,
           CASE WHEN NOT r.rolsuper AND r.rolname <> session_user
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_database AS other
                                  WHERE other.datdba = r.oid AND other.oid <> d.oid) THEN r.rolname END,
           CASE WHEN NOT r.rolsuper THEN r.oid::pg_catalog.int8 END
      FROM pg_catalog.pg_database AS d
      JOIN pg_catalog.pg_roles AS r ON r.oid = d.datdba
      LEFT JOIN pg_catalog.pg_shdescription AS c
             ON c.objoid = d.oid AND c.classoid = 'pg_catalog.pg_database'::pg_catalog.regclass
     WHERE NOT d.datistemplate AND d.datconnlimit <> -2 AND d.datname <> pg_catalog.current_database()
       AND d.datname <> ALL(%(never)s) AND d.datname !~ %(passing)s
       AND pg_catalog.strpos(coalesce(c.description, ''), %(mark)s) = 0
     ORDER BY d.oid"""


def unmarked(server: Server) -> Iterator[UnmarkedObject]:
    """Databases that nobody has given us, each with the manifest that would adopt it; in constant memory."""
    with server.connect(frees=False) as session:
        found = session.cursor("unmarked", withhold=True)
        found.itersize = PAGE
        with session.transaction():
            with session.cursor() as asked:
                asked.execute("SELECT pg_catalog.pg_is_in_recovery()")
                if asked.fetchone()[0]:  # as in `objects`
                    raise OutOfService(STANDBY)
            identifier = identity.system_identifier(session)
            found.execute(_UNMARKED, {"never": sorted(server.protected), "passing": _PASSING, "mark": mark("")})
        for oid, name, role, role_oid in found:
            yield UnmarkedObject(
                KIND.manifest(
                    database=name, role=role, oid=oid, role_oid=role and role_oid, system_identifier=identifier
                )
            )


# The size needs CONNECT or the role pg_read_all_stats; the times of others' sessions, and of files, need more.
_MEASURE = """
    SELECT CASE WHEN pg_catalog.has_database_privilege(d.oid, 'CONNECT')
                  OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') THEN pg_catalog.pg_database_size(d.oid) END,
           (SELECT coalesce(max(coalesce(s.state_change, s.backend_start)),
                            CASE WHEN count(*) > 0 THEN pg_catalog.clock_timestamp() END)
              FROM pg_catalog.pg_stat_activity AS s WHERE s.datid = d.oid AND s.backend_type = 'client backend')
      FROM pg_catalog.pg_database AS d
     WHERE d.oid = %(oid)s OR (%(oid)s IS NULL AND d.datname = %(database)s)"""


def measured(server: Server, names: Json) -> Measured:
    """The database's size, and the last activity of a session that is connected to it; no time where there is none.

    The server keeps no time of a database's creation.
    """
    if names.get("oid") is None and names.get("database") is None:
        return Measured()
    with server.connect(seconds=INSPECT_SECONDS, frees=False) as session, session.cursor() as cursor:
        cursor.execute(_MEASURE, {"oid": names.get("oid"), "database": names.get("database")})
        size, used = cursor.fetchone() or (None, None)
        return Measured(size_bytes=size, last_used_at=used)
