"""Behind PgBouncer in transaction mode: many clients, few server connections, and each thing still dropped once."""

import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, text

from deprovisioner.up import servers as embedded
from deprovisioner.up import users as system_users
from deprovisioner.up.servers import Child
from outbox import db as database
from tests.support.api import KINDS, at_once, create, until
from tests.support.processes import System, client
from tests.support.servers import BACKENDS, Servers

# Debian puts it where only root's PATH looks.
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="no program `pgbouncer` on this machine")

SERVER_CONNECTIONS = 3
# As docs/scaling.md has it, but for the addresses.
CONFIG = """
[databases]
* = host=127.0.0.1 port={server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
admin_users = {role}
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 400
ignore_startup_parameters = {ignored}
"""
# A pooler drops what the service says of its own session, so its role says it. docs/scaling.md has these lines.
ROLE_SETTINGS = database.PINS | {"synchronous_commit": "on", "search_path": "public, pg_temp"}


@dataclass
class Pooled:
    """The product behind a pooler; `role` is what it logs in as."""

    system: System
    dsn: str
    role: str
    pooler: Child

    def ask(self, statement: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """One statement through the pooler; of the database `pgbouncer`, one to the pooler itself."""
        connection = psycopg2.connect(self.dsn, **({"dbname": database} if database else {}))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall()
        finally:
            connection.close()

    def left(self) -> list[tuple[Any, ...]]:
        """What is left in each of the server's sessions: advisory locks, prepared statements, settings."""
        with ExitStack() as opened:  # transactions at the same time: each has a session of its own
            sessions = [opened.enter_context(closing(psycopg2.connect(self.dsn))) for _ in range(SERVER_CONNECTIONS)]
            cursors = [session.cursor() for session in sessions]
            for cursor in cursors:
                cursor.execute("""
                    SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
                           (SELECT count(*) FROM pg_prepared_statements),
                           (SELECT array_agg(name || ' = ' || setting) FROM pg_settings
                             WHERE source = 'session' AND setting <> reset_val AND name <> 'application_name')""")
            return [cursor.fetchone() for cursor in cursors]  # type: ignore[misc]


@pytest.fixture
def pooled(
    request: pytest.FixtureRequest, env: dict[str, str], servers: Servers, folder: Path, tmp_path: Path
) -> Iterator[Pooled]:
    """A role as an operator makes it, a pooler before the control database, no process yet."""
    role, port, name = (
        f"pooled_{uuid.uuid4().hex}",
        embedded.free_port(),
        env["DEPROVISIONER_DATABASE_URL"].rsplit("/")[-1],
    )
    direct = System(env, tmp_path)
    made = direct.cli("migrate", "--service-role", role, DEPROVISIONER_SERVICE_PASSWORD="secret")
    assert made.returncode == 0, made.stderr
    for setting, value in ROLE_SETTINGS.items():
        quoted = value if setting == "search_path" else f"'{value}'"
        servers.control.query(f"ALTER ROLE {role} SET {setting} = {quoted}")
    users, config = folder / "users.txt", folder / "pgbouncer.ini"
    users.write_text(f'"{role}" "secret"\n')
    server = psycopg2.extensions.parse_dsn(env["DEPROVISIONER_DATABASE_URL"])["port"]
    words = {"server": server, "port": port, "users": users, "role": role, "size": SERVER_CONNECTIONS}
    config.write_text(CONFIG.format(ignored=getattr(request, "param", "options"), **words))
    account = system_users.of_server(folder, "pgbouncer", config)  # it will not run as root
    if account:
        for file in (users, config):
            os.chown(file, account.uid, account.gid)
    pooler = Child("pgbouncer", [str(PGBOUNCER), config], folder / "pgbouncer.log", user=account)
    pooler.spawn()
    pooler.wait_until(lambda: not embedded.port_is_free("127.0.0.1", port))
    backends = tmp_path / "braked.toml"  # with a brake, a start is a transaction of several statements and a lock
    backends.write_text(BACKENDS.replace("concurrency = 8", 'concurrency = 8\nbrake = "1000/1h"', 1))
    dsn = f"postgresql://{role}:secret@127.0.0.1:{port}/{name}"
    ours = {
        "DEPROVISIONER_DATABASE_URL": dsn,
        "DEPROVISIONER_BACKENDS": str(backends),
        "DEPROVISIONER_PREPARED_STATEMENTS": "false",
    }
    system = System(env | ours, tmp_path)
    yield Pooled(system, dsn, role, pooler)
    system.stop()
    pooler.stop()
    servers.control.query(f"DROP OWNED BY {role}", database=name)
    servers.control.query(f"DROP ROLE {role}")


def test_behind_a_pooler_in_transaction_mode_a_storm_of_deletes_drops_each_once(
    pooled: Pooled, db: Connection, servers: Servers, tenant: str
) -> None:
    urls = [pooled.system.api() for _ in range(2)]
    for _ in range(2):
        pooled.system.worker()
    kinds = [kind for kind in KINDS for _ in range(8)]
    with client(urls[0], tenant) as first, client(urls[1], tenant) as second:
        alive = [until(first, resource, "active") for resource in [create(first, kind) for kind in kinds]]
        logged = servers.pg.log.stat().st_size

        def everything(number: int) -> Any:
            api = (first, second)[number % 2]
            return [api.delete(f"/v1/resources/{resource['id']}") for resource in alive]

        answers = [answer for caller in at_once(16, everything) for answer in caller]  # type: ignore[union-attr]
        assert Counter(answer.status_code for answer in answers) == {202: len(alive), 200: 15 * len(alive)}
        (served,) = pooled.ask("SELECT count(*) FROM pg_stat_activity WHERE usename = current_user")[0]
        asking = sum(row[2] + row[3] for row in pooled.ask("SHOW POOLS", database="pgbouncer") if row[1] == pooled.role)
        assert served <= SERVER_CONNECTIONS < asking, f"{asking} connections shared {served}"
        for resource in alive:
            until(first, resource, "deleted")
    manifests = {kind: [r["manifest"] for r in alive if r["kind"] == kind] for kind in KINDS}
    assert [servers.pg.drops_of(manifest) for manifest in manifests["postgres"]] == [1] * 8
    assert sum(servers.pg.drops(logged).values()) == 8, "nothing else was dropped"
    assert not any(servers.pg.bears(manifest) for manifest in manifests["postgres"])
    assert not any(servers.redis.bears(manifest) for manifest in manifests["redis"])
    starts = text(
        "SELECT count(*) FROM events JOIN outbox ON outbox.id = job_id WHERE event = 'started' AND kind = 'deprovision'"
    )
    assert db.execute(starts).scalar_one() == len(alive)
    for words in (("doctor",), ("audit", "checkpoint"), ("audit", "export", "--since", "1d"), ("jobs", "list")):
        done = pooled.system.cli(*words)  # snapshots, and timeouts of their own
        assert done.returncode == 0, done.stdout + done.stderr
    assert pooled.left() == [(0, 0, None)] * SERVER_CONNECTIONS


def test_settings_that_a_pooler_drops_are_set_on_the_role(pooled: Pooled) -> None:
    for setting, value in ROLE_SETTINGS.items():
        assert pooled.ask(f"SHOW {setting}") == [(value,)]


@pytest.mark.parametrize("pooled", ["extra_float_digits"], indirect=True)
def test_a_pooler_that_refuses_the_session_s_settings_is_named_when_a_command_starts(pooled: Pooled) -> None:
    refused = pooled.system.cli("jobs", "list")
    assert refused.returncode == 1
    assert "unsupported startup parameter" in refused.stderr
