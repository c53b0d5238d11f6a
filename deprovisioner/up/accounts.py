"""The service's accounts on the backends that `up` makes: the statements of docs/production.md."""

from collections.abc import Iterator
from contextlib import closing
from urllib.parse import quote, urlsplit

from psycopg2 import connect, extensions, sql
from redis import Redis

NAME = "deprovisioner_service"
# A test compares both with docs/production.md, where administrators find them.
POSTGRES = "CREATE ROLE deprovisioner_service LOGIN CREATEDB CREATEROLE PASSWORD 'CHANGE-ME';"
REDIS = (
    "ACL SETUSER deprovisioner_service on >CHANGE-ME ~* &* -@all +ping +hello +auth +select +role +info +config|get "
    "+get +set +persist +exists +type +del +unlink +scan +eval +evalsha +watch +unwatch +multi +exec +discard "
    "+client|kill +client|list +client|setname "
    "+acl|whoami +acl|getuser +acl|setuser +acl|deluser +acl|list +acl|users +acl|save"
)
_SECRET = "CHANGE-ME"  # noqa: S105 - where the documents want a password

# What the service made while it logged in as the superuser. A new database has only its name at first.
_OLD_DATABASES = r"""
    SELECT d.datname, r.rolname, r.rolsuper
      FROM pg_catalog.pg_database AS d
      JOIN pg_catalog.pg_roles AS r ON r.oid = d.datdba
     WHERE pg_catalog.shobj_description(d.oid, 'pg_database') ~ 'deprovisioner gen=[0-9a-f-]{36}$'
        OR d.datname ~ '^zz_(new|del)_[0-9a-f-]{36}$'"""
_OLD_ROLES = """
    SELECT rolname FROM pg_catalog.pg_roles
     WHERE pg_catalog.shobj_description(oid, 'pg_authid') ~ 'deprovisioner gen=[0-9a-f-]{36}$' AND NOT rolsuper"""


def postgres(admin: str, password: str) -> str:
    """Make the role, or give it this password and the documented rights; hand it what an older `up` made; its DSN.

    `admin` is the superuser's DSN, as `servers.postgres_dsn` gives it. May be called again.
    """
    with closing(connect(admin)) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            # Hashed here, because the server logs CREATE ROLE with its password.
            verifier = extensions.encrypt_password(password, NAME, session, "scram-sha-256")
            statement = POSTGRES.replace(_SECRET, verifier)
            cursor.execute("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = %s", (NAME,))
            cursor.execute(statement.replace("CREATE ROLE", "ALTER ROLE", 1) if cursor.fetchone() else statement)
            for handover in _handovers(cursor):
                cursor.execute(handover)
    return _as_service(admin, password)


def _handovers(cursor: extensions.cursor) -> Iterator[sql.Composed]:
    """The statements that let the service tear down what it made as superuser, and what it adopted."""
    service = sql.Identifier(NAME)
    cursor.execute(_OLD_DATABASES)
    databases = cursor.fetchall()
    cursor.execute(_OLD_ROLES)
    roles = {role for (role,) in cursor.fetchall()}
    for database, owner, superuser in databases:
        if superuser:
            yield sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(database), service)
        elif owner != NAME:  # an adopted one stays its customer's
            roles.add(owner)
    for role in sorted(roles):
        yield sql.SQL("GRANT {} TO {} WITH ADMIN TRUE, INHERIT TRUE, SET TRUE").format(sql.Identifier(role), service)


def valkey(admin: str, password: str) -> str:
    """Make the user, or give it this password and the documented rights; store it in the aclfile; its URL.

    `admin` is the administrator's URL, as `servers.valkey_url` gives it. May be called again.
    """
    with closing(Redis.from_url(admin)) as client:
        client.execute_command(*REDIS.replace(_SECRET, password).split())
        client.execute_command("ACL", "SAVE")
    return _as_service(admin, password)


def _as_service(admin: str, password: str) -> str:
    parts = urlsplit(admin)
    return parts._replace(netloc=f"{NAME}:{quote(password, safe='')}@{parts.hostname}:{parts.port}").geturl()
