"""Who is no customer: what is made by hand on the backends, under freed names or beside living ones."""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg2
import redis
from psycopg2 import sql
from psycopg2.extensions import make_dsn

from deprovisioner.demo import witnesses
from deprovisioner.demo.witnesses import ROWS, Holding
from tests.soak.stage import Stage

PATIENCE_SECONDS = 90  # for one answer, over restarts of whatever is between


@dataclass
class Newcomer:
    """What somebody made by hand: under the names of a deleted resource, or beside a living one's."""

    backend: str
    holding: Holding
    oid: int = 0
    resource: str = ""  # the deleted resource whose names it bears


def fill(holding: Holding) -> bool:
    """Put data in, as who holds it would; may be said again."""
    with suppress(psycopg2.errors.DuplicateTable):  # the answer was lost, not the table
        witnesses.fill(holding)
    return True


def intact(holding: Holding) -> bool:
    """Whether who holds it can log in and finds all of that."""
    keys = [f"paid {number}".encode() for number in range(ROWS)]
    rows = [(number, f"paid {number}") for number in range(1, ROWS + 1)]
    return witnesses.contents(holding) == (keys if holding.kind == "redis" else rows)


def patiently(act: Callable[[], Any], unless: Callable[[], bool] = lambda: False) -> Any:
    """`act()`, tried over the restarts of its server."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return act()
        except (psycopg2.Error, redis.RedisError):
            if unless():
                return None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def database(stage: Stage, backend: str, name: str, role: str, old: int = 0) -> Newcomer:
    """A database by hand; may be said again. `old` is the OID of the one that had the name before."""
    server = stage.pg[backend]
    dsn = server.dsn
    if role != "postgres":
        dsn = make_dsn(server.dsn, dbname=name, user=role, password=secrets.token_hex(8))
        word = sql.Literal(psycopg2.extensions.parse_dsn(dsn)["password"])
        verb = "ALTER" if role in server.roles() else "CREATE"
        _run(server.dsn, sql.SQL(verb + " ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), word))
    find = "SELECT oid::bigint FROM pg_database WHERE datname = %s AND oid <> %s"
    if not server.query(find, name, old):
        words = (sql.Identifier(name), sql.Identifier(role))
        _run(server.dsn, sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(*words))
    holding = Holding("postgres", {"database": name, "role": role}, make_dsn(dsn, dbname=name))
    fill(holding)
    ((oid,),) = server.query(find, name, old)
    return Newcomer(backend, holding, oid)


def namespace(stage: Stage, backend: str, user: str, prefix: str) -> Newcomer:
    """An ACL user and keys by hand, a key where an older version's generation would be."""
    password, server = secrets.token_hex(8), stage.redis[backend].client
    server.execute_command("ACL", "SETUSER", user, "on", f">{password}", f"~{prefix}*", "+@all", "-@dangerous")
    server.execute_command("ACL", "SAVE")
    server.set(f"{prefix}gen", "a stranger's")
    url = httpx.URL(stage.redis[backend].url).copy_with(username=user, password=password)
    holding = Holding("redis", {"user": user, "prefix": prefix}, str(url))
    witnesses.fill(holding)
    return Newcomer(backend, holding)


def _run(dsn: str, statement: sql.Composable) -> None:
    connection = psycopg2.connect(dsn)
    try:
        connection.autocommit = True
        connection.cursor().execute(statement)
    finally:
        connection.close()
