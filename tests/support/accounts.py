"""The service's accounts on backends: made by the very statements that docs/backends.md documents."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import redis

from tests.support.witness import PgServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "backends.md"
NAME, PASSWORD = "deprovisioner_service", "service-secret"
_BLOCK = r"<!-- account: {kind} -->\n```\w*\n(.*?)```"


def documented(kind: str) -> list[str]:
    """The statements of the document that make the account of this kind of backend, one a line."""
    found = re.search(_BLOCK.format(kind=kind), DOCUMENT.read_text(), re.DOTALL)
    assert found, f"docs/backends.md has no block `account: {kind}`"
    return found[1].strip().splitlines()


def postgres(dsn: str) -> str:
    """Make the documented role and its database on a server, as the superuser of `dsn`; the service's DSN."""
    connection = psycopg2.connect(dsn)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            slots = documented("slots") if connection.server_version >= 160000 else []
            for statement in (*documented("postgres"), *slots):
                cursor.execute(statement.replace("CHANGE-ME", PASSWORD))
    finally:
        connection.close()
    return in_its_database(as_service(dsn))


def fresh(server: PgServer, name: str, *, lacking: str = "") -> str:
    """Another account with the documented rights but for one, in the database of the first; its DSN."""
    role = documented("postgres")[0]
    assert lacking in role
    server.query(role.replace(NAME, name).replace("CHANGE-ME", PASSWORD).replace(f" {lacking} ", " "))
    server.query(f"GRANT CONNECT ON DATABASE {NAME}, postgres TO {name}")
    return in_its_database(as_service(server.dsn).replace(f"//{NAME}:", f"//{name}:"))


@contextmanager
def customers_in_postgres(server: PgServer) -> Iterator[None]:
    """Customers may log in to the database `postgres`, as where CONNECT was never taken from PUBLIC."""
    server.query("GRANT CONNECT ON DATABASE postgres TO PUBLIC")
    try:
        yield
    finally:
        server.query("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")


def allow(server: PgServer, role: str) -> None:
    """Give the service's account the documented rights on a role that it did not make, and on what the role owns."""
    found = re.search(r"^\| the role, .*?\| `(.*?)` \| `(.*?)`", DOCUMENT.read_text(), re.MULTILINE)
    assert found, "docs/backends.md has no row of rights on an adopted role"
    new, old = found.groups()
    is_new = int(server.query("SHOW server_version_num")[0][0]) >= 160000
    server.query((new if is_new else old).replace('"role"', f'"{role}"'))


def adoptable(server: PgServer, database: str, role: str | None = None) -> None:
    """Make a database that the service's account may adopt, owned by this role or by the account itself.

    Only its owner may connect, so that the account needs no right on the sessions of others.
    """
    if role:
        allow(server, role)
    server.query(f'CREATE DATABASE "{database}" OWNER "{role or NAME}"')
    server.query(f'REVOKE CONNECT ON DATABASE "{database}" FROM PUBLIC')


def valkey(url: str) -> str:
    """Make the documented user on a server, as the administrator of `url`; the service's URL."""
    with redis.Redis.from_url(url) as client:
        for command in documented("redis"):
            client.execute_command(*command.replace("CHANGE-ME", PASSWORD).split())
        if client.config_get("aclfile").get("aclfile"):
            client.acl_save()
    return as_service(url)


def in_its_database(dsn: str) -> str:
    """The DSN with the service's own database."""
    return urlsplit(dsn)._replace(path=f"/{NAME}").geturl()


def as_service(url: str) -> str:
    """The address of a server with the service's account instead of the one in `url`."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{NAME}:{PASSWORD}@{parts.hostname}:{parts.port}").geturl()
