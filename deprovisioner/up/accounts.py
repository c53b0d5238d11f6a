"""The service's accounts on the backends that `up` makes: the statements of docs/backends.md."""

from contextlib import closing
from urllib.parse import quote, urlsplit

from psycopg2 import connect, extensions
from redis import Redis

NAME = "deprovisioner_service"
# A test compares these with docs/backends.md, where administrators find them.
POSTGRES = (
    "CREATE ROLE deprovisioner_service LOGIN CREATEDB CREATEROLE PASSWORD 'CHANGE-ME';",
    "CREATE DATABASE deprovisioner_service OWNER deprovisioner_service;",
    "REVOKE ALL ON DATABASE deprovisioner_service FROM PUBLIC;",
    "REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC;",
    "GRANT CONNECT ON DATABASE postgres, template1 TO deprovisioner_service;",
)
# From version 16 on, which `up` runs.
SLOTS = "GRANT pg_use_reserved_connections TO deprovisioner_service WITH INHERIT TRUE;"
REDIS = (
    "ACL SETUSER deprovisioner_service on >CHANGE-ME ~* resetchannels -@all +ping +select +info +config|get "
    "+get +set +type +unlink +scan +eval +watch +unwatch +multi +exec +client|kill +client|setname "
    "+acl|whoami +acl|cat +acl|getuser +acl|setuser +acl|deluser +acl|list +acl|log +acl|users +acl|save "
    "+dump +pexpiretime +memory|usage +restore"
)
MYSQL = (
    "CREATE USER deprovisioner_service IDENTIFIED BY 'CHANGE-ME';",
    "CREATE DATABASE deprovisioner_service;",
    "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON `deprovisioner\\_service`.* TO deprovisioner_service;",
    "GRANT CREATE USER, PROCESS, SHOW DATABASES, CONNECTION ADMIN, SLAVE MONITOR ON *.* TO deprovisioner_service;",
    "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, REFERENCES, INDEX, ALTER, CREATE TEMPORARY "
    "TABLES, LOCK TABLES, CREATE VIEW, SHOW VIEW, CREATE ROUTINE, ALTER ROUTINE, EXECUTE, EVENT, "
    "TRIGGER, DELETE HISTORY ON `dpdb%`.* TO deprovisioner_service WITH GRANT OPTION;",
    "GRANT SELECT ON mysql.db TO deprovisioner_service;",
    "GRANT SELECT ON mysql.tables_priv TO deprovisioner_service;",
    "GRANT SELECT ON mysql.columns_priv TO deprovisioner_service;",
    "GRANT SELECT ON mysql.procs_priv TO deprovisioner_service;",
    "GRANT SELECT ON mysql.global_priv TO deprovisioner_service;",
    "GRANT SELECT ON mysql.roles_mapping TO deprovisioner_service;",
    "GRANT SELECT ON mysql.proc TO deprovisioner_service;",
    "GRANT SELECT ON mysql.event TO deprovisioner_service;",
    "GRANT SELECT ON mysql.innodb_table_stats TO deprovisioner_service;",
)
_SECRET = "CHANGE-ME"  # noqa: S105 - where the documents want a password

# Statements that hand over what workers made and adopted while they were superusers. A database without a mark yet has
# its name; an adopted one stays its customer's.
TAKEOVER = (
    """
SELECT pg_catalog.format('ALTER DATABASE %I OWNER TO deprovisioner_service', d.datname)
  FROM pg_catalog.pg_database AS d JOIN pg_catalog.pg_roles AS r ON r.oid = d.datdba
 WHERE r.rolsuper
   AND (pg_catalog.shobj_description(d.oid, 'pg_database') ~ 'deprovisioner gen=[0-9a-f-]{36}$'
        OR d.datname ~ '^zz_(new|del)_[0-9a-f-]{36}$')
""",
    """
SELECT DISTINCT pg_catalog.format('GRANT %I TO deprovisioner_service WITH ADMIN OPTION', r.rolname)
  FROM pg_catalog.pg_roles AS r LEFT JOIN pg_catalog.pg_database AS d ON d.datdba = r.oid
 WHERE NOT r.rolsuper AND r.rolname <> 'deprovisioner_service'
   AND (pg_catalog.shobj_description(r.oid, 'pg_authid') ~ 'deprovisioner gen=[0-9a-f-]{36}$'
        OR pg_catalog.shobj_description(d.oid, 'pg_database') ~ 'deprovisioner gen=[0-9a-f-]{36}$')
""",
)


def postgres(admin: str, password: str) -> str:
    """Make the role and its database, or give it this password and the documented rights; its DSN.

    What an older `up` made is handed over to it.

    `admin` is the superuser's DSN, as `servers.postgres_dsn` gives it. May be called again.
    """
    with closing(connect(admin)) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            # Hashed here, because the server logs CREATE ROLE with its password.
            verifier = extensions.encrypt_password(password, NAME, session, "scram-sha-256")
            role, database, *rights = POSTGRES
            role = role.replace(_SECRET, verifier)
            cursor.execute("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = %s", (NAME,))
            cursor.execute(role.replace("CREATE ROLE", "ALTER ROLE", 1) if cursor.fetchone() else role)
            cursor.execute("SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s", (NAME,))
            for statement in rights if cursor.fetchone() else (database, *rights):
                cursor.execute(statement)
            cursor.execute(SLOTS)
            for takeover in TAKEOVER:
                cursor.execute(takeover)
                for (handover,) in cursor.fetchall():
                    cursor.execute(handover)
    return urlsplit(_as_service(admin, password))._replace(path=f"/{NAME}").geturl()


def valkey(admin: str, password: str) -> str:
    """Make the user, or give it this password and the documented rights; store it in the aclfile; its URL.

    `admin` is the administrator's URL, as `servers.valkey_url` gives it. May be called again.
    """
    with closing(Redis.from_url(admin)) as client:
        if own := urlsplit(admin).password:  # an older version's administrator had none
            client.execute_command("ACL", "SETUSER", "default", "resetpass", f">{own}")
        client.execute_command(*REDIS.replace(_SECRET, password).split())
        client.execute_command("ACL", "SAVE")
    return _as_service(admin, password)


def _as_service(admin: str, password: str) -> str:
    parts = urlsplit(admin)
    return parts._replace(netloc=f"{NAME}:{quote(password, safe='')}@{parts.hostname}:{parts.port}").geturl()
