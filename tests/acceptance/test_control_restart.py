"""A control database that is restarted: jobs go on as soon as it is compared, and wait for no sweep."""

import shutil
import signal
import time
from collections.abc import Iterator

import pytest

from deprovisioner.up import servers as embedded
from deprovisioner.up.servers import Child
from outbox import db as database
from outbox import tokens
from tests.support.api import create, until
from tests.support.processes import System, client
from tests.support.servers import clear_caches, database_dsn, server_folder, use_environment
from tests.support.witness import PgServer, eventually

SWEEP_SECONDS = 60


@pytest.fixture
def control(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    """A cluster of the test's own with a migrated control database, at the address that `env` has from now on."""
    folder, port = server_folder("restarted"), embedded.free_port()
    child = embedded.postgres(folder, "control", port, "secret", {"fsync": "off"})
    root = embedded.postgres_dsn(port, "secret")

    child.spawn()
    try:
        child.wait_until(lambda: embedded.postgres_ready(root))
        PgServer(root, child.log).query("CREATE DATABASE ours")
        env["DEPROVISIONER_DATABASE_URL"] = database_dsn(root, "ours")
        use_environment(monkeypatch, env)
        import migrations

        migrations.upgrade()
        yield child
    finally:
        clear_caches()
        child.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.proof
def test_after_a_restart_of_the_control_database_jobs_wait_for_no_sweep(
    control: Child, system: System, env: dict[str, str]
) -> None:
    root = env["DEPROVISIONER_DATABASE_URL"]
    with database.statement() as session:
        tenant = tokens.create(session, actor="op", role="tenant", tenant="acme", name="t")[1]
    system.env |= env | {"DEPROVISIONER_SWEEP_SECONDS": str(SWEEP_SECONDS)}
    for _ in range(2):
        system.worker()
    with client(system.api(), tenant) as acme:
        made = [until(acme, create(acme, "redis"), "active") for _ in range(4)]
        control.process.send_signal(signal.SIGINT)
        control.process.wait(30)
        control.spawn()
        control.wait_until(lambda: embedded.postgres_ready(root))
        since = time.monotonic()
        for resource in made:
            eventually(lambda it=resource: acme.delete(f"/v1/resources/{it['id']}").status_code == 202)  # type: ignore[misc]
        for resource in made:
            until(acme, resource, "deleted", SWEEP_SECONDS / 3)
        assert time.monotonic() - since < SWEEP_SECONDS / 2
