"""A backend's server moves, by each way that operators have: what is refused before, and deletes that work after."""

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, text

from tests.support import accounts, moves
from tests.support.moves import Clusters, clusters
from tests.support.processes import System, client
from tests.support.redis_servers import running
from tests.support.servers import OLD_POSTGRES_PROGRAMS
from tests.support.witness import PgServer, RedisServer, eventually
from worker.backends import Different
from worker.backends.redis import Redis

GONE = "shut down, its disk is wiped: CHG-42"


@pytest.fixture
def fleet() -> Iterator[Clusters]:
    with clusters() as made:
        yield made


class Platform:
    """The product on a backend whose server moves: its API, its workers, and a person at a shell."""

    def __init__(self, system: System, db: Connection, token: str) -> None:
        self.system, self.db = system, db
        self.acme = client(system.api(), token)

    def on(self, server: PgServer) -> None:
        """Workers, and the shell, have this address from now on."""
        for worker in self.system.workers:
            worker.teardown()
        self.system.env["PG_MAIN_DSN"] = server.service_dsn
        self.system.worker()

    def off(self) -> None:
        for worker in self.system.workers:
            worker.teardown()

    def born(self, n: int) -> list[dict[str, Any]]:
        """New databases, each with a row of its customer's."""
        made = []
        for _ in range(n):
            new = {"kind": "postgres", "backend": "pg-main", "name": "orders"}
            made.append(self.acme.post("/v1/resources", json=new).json()["resource"]["id"])
        eventually(lambda: all(self.shown(id)["status"] == "active" for id in made))
        for id in made:
            dsn = self.acme.get(f"/v1/resources/{id}/credentials").json()["dsn"]
            connection = psycopg2.connect(dsn)
            connection.cursor().execute("CREATE TABLE kept AS SELECT 7 AS n")
            connection.commit()
            connection.close()
        return [self.shown(id) for id in made]

    def shown(self, id: str) -> dict[str, Any]:
        return self.acme.get(f"/v1/resources/{id}").json()

    def deleted(self, id: str) -> int:
        return self.acme.delete(f"/v1/resources/{id}").json()["job"]["id"]

    def job(self, id: int) -> Any:
        return self.db.execute(text("SELECT * FROM outbox WHERE id = :id"), {"id": id}).one()

    def ended(self, id: int) -> tuple[str, str | None]:
        """The job's state and its last error, once an attempt has ended."""
        job = eventually(lambda: (row := self.job(id)).attempts and row.state != "running" and row)
        return job.state, job.last_error

    def memory(self) -> Any:
        return self.db.execute(text("SELECT * FROM memories WHERE place = 'pg-main'")).one_or_none()

    def remembered(self) -> None:
        eventually(lambda: (row := self.memory()) is not None and row.event is not None)

    def rebind(self, *words: str) -> dict[str, Any]:
        answer = self.system.cli("backends", "rebind", "pg-main", "--json", *words)
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    def rebound(self) -> dict[str, Any]:
        """The dry run, and the real run of it."""
        seen = self.rebind("--dry-run")
        return self.rebind("--digest", seen["digest"], "--old-server", GONE, "--reason", "moved")


@pytest.fixture
def platform(system: System, db: Connection, tenant: str) -> Iterator[Platform]:
    made = Platform(system, db, tenant)
    with made.acme:
        yield made


def login(server: PgServer, platform: Platform, resource: dict[str, Any]) -> int:
    """What the customer reads in its database on this server, with the password that it was given before the move."""
    old = platform.acme.get(f"/v1/resources/{resource['id']}/credentials").json()["dsn"]
    port = server.dsn.rsplit(":", 1)[1].split("/")[0]
    with psycopg2.connect(old, port=port) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT n FROM kept")
        return cursor.fetchone()[0]


def refused_then_rebound(platform: Platform, new: PgServer, oids_stay: bool) -> None:
    """Three customers whose server has moved to `new`; the workers are on it already."""
    kept, second, first = (platform.shown(id) for id in platform.ids)
    job = platform.deleted(first["id"])
    stuck = eventually(lambda: (row := platform.job(job)).state == "stuck" and row)
    assert stuck.stuck_reason == "refused"
    assert "the wrong server" in stuck.last_error
    seen = platform.rebind("--dry-run")
    assert seen["counts"] == {"rebind": 3, "bound": 0, "unmade": 0, "differs": 0, "missing": 0}
    fields = {name for item in seen["items"] for name in item["changes"]}
    assert fields == ({"system_identifier"} if oids_stay else {"system_identifier", "oid", "role_oid"})
    before = platform.db.execute(text("SELECT count(*) FROM events WHERE event = 'rebound'")).scalar_one()
    assert before == 0, "a dry run changes nothing"
    done = platform.rebind("--digest", seen["digest"], "--old-server", GONE, "--reason", "moved")
    assert (done["rebound"], done["memory_unwritten"]) == (3, None)
    identifier = new.query("SELECT system_identifier FROM pg_control_system()")[0][0]
    for resource in (kept, second, first):
        now = platform.shown(resource["id"])["manifest"]
        oid = new.query("SELECT oid::int8 FROM pg_database WHERE datname = %s", resource["manifest"]["database"])
        assert (now["system_identifier"], now["oid"]) == (identifier, oid[0][0])
        event = platform.db.execute(
            text("SELECT actor, reason, detail FROM events WHERE resource_id = :id AND event = 'rebound'"),
            {"id": resource["id"]},
        ).one()
        assert event.actor.startswith("cli:")
        assert event.reason == "moved"
        assert (event.detail["digest"], event.detail["old_server"]) == (seen["digest"], GONE)
        assert event.detail["was"]["manifest"]["oid"] == resource["manifest"]["oid"]
    since = new.log.stat().st_size
    again = platform.system.cli("jobs", "redrive", str(job), "--fence", str(stuck.fence), "--reason", "rebound")
    assert again.returncode == 0, again.stderr
    assert platform.ended(job) == ("succeeded", None)
    platform.deleted(second["id"])
    eventually(lambda: platform.shown(second["id"])["status"] == "deleted")
    dropped = {f"zz_del_{one['manifest']['generation']}": 1 for one in (first, second)}
    assert new.drops(since) == dropped
    assert login(new, platform, kept) == 7
    assert platform.memory().server.startswith(str(identifier))
    rebound_at = platform.db.execute(text("SELECT max(at) FROM events WHERE event = 'rebound'")).scalar_one()
    assert platform.memory().remembered_at > rebound_at
    assert platform.db.execute(text("SELECT count(*) FROM holds WHERE released_at IS NULL")).scalar_one() == 0
    assert platform.db.execute(text("SELECT count(*) FROM breakers")).scalar_one() == 0
    doctor = platform.system.cli("doctor")
    assert doctor.returncode == 0, doctor.stdout


@pytest.mark.proof
def test_after_pg_upgrade_from_15_to_18_and_a_rebind_deletes_drop_what_they_dropped_before(
    fleet: Clusters, platform: Platform
) -> None:
    if not (OLD_POSTGRES_PROGRAMS / "pg_upgrade").exists():
        pytest.skip(f"no PostgreSQL 15 in {OLD_POSTGRES_PROGRAMS}")
    old = fleet.start("old", OLD_POSTGRES_PROGRAMS)
    accounts.postgres(old.dsn)
    platform.on(old)
    platform.ids = [one["id"] for one in platform.born(3)]
    platform.remembered()
    platform.off()
    moves.forget_column_versions(old)
    fleet.start("new")
    fleet.stop("new")
    fleet.stop("old")
    done = fleet.upgrade("old", "new")
    assert done.returncode == 0, done.stdout + done.stderr
    new = fleet.start("new")
    assert new.query("SHOW server_version_num")[0][0] >= "180000"
    for resource in map(platform.shown, platform.ids):
        accounts.allow(new, resource["manifest"]["role"])  # from 16 on, the account needs more on a role than before
    platform.on(new)
    refused_then_rebound(platform, new, oids_stay=True)


@pytest.mark.proof
def test_after_a_dump_and_a_restore_and_a_rebind_deletes_drop_the_restored_databases(
    fleet: Clusters, platform: Platform
) -> None:
    old = fleet.start("old")
    accounts.postgres(old.dsn)
    platform.on(old)
    platform.ids = [one["id"] for one in platform.born(3)]
    platform.remembered()
    platform.off()
    new = fleet.start("new")
    new.query("CREATE DATABASE shifts_the_oids")
    moves.dump_and_restore(old, new)
    fleet.stop("old")
    platform.on(new)
    refused_then_rebound(platform, new, oids_stay=False)


def quarantined(platform: Platform, id: str) -> None:
    """A delete with a grace, so that the database is cut off, and not destroyed."""
    assert platform.acme.delete(f"/v1/resources/{id}", params={"grace": "1h"}).status_code == 202
    where = {"id": id}
    step = text("SELECT step FROM outbox WHERE resource_id = :id AND kind = 'deprovision'")
    eventually(lambda: platform.db.execute(step, where).scalar_one() == "wait")


@pytest.mark.proof
def test_a_database_in_quarantine_is_not_in_a_dump_and_pg_upgrade_refuses_it(
    fleet: Clusters, platform: Platform
) -> None:
    old = fleet.start("old")
    accounts.postgres(old.dsn)
    platform.on(old)
    kept, cut = platform.born(2)
    quarantined(platform, cut["id"])
    platform.off()
    new = fleet.start("new")
    moves.dump_and_restore(old, new)
    platform.on(new)
    seen = platform.rebind("--dry-run")
    verdicts = {item["resource_id"]: (item["verdict"], item["why"]) for item in seen["items"]}
    assert verdicts[kept["id"]][0] == "rebind"
    assert verdicts[cut["id"]][0] == "differs", "its role is there, and its database is not"
    assert "no database bears the mark" in verdicts[cut["id"]][1]
    if not (OLD_POSTGRES_PROGRAMS / "pg_upgrade").exists():
        return
    fleet.start("target")
    fleet.stop("target")
    fleet.stop("old")
    refused = fleet.upgrade("old", "target")
    assert refused.returncode == 1
    assert "datallowconn" in refused.stdout, refused.stdout


@pytest.mark.proof
def test_after_a_promotion_every_object_is_bound_already_and_a_delete_drops_it(
    fleet: Clusters, platform: Platform
) -> None:
    old = fleet.start("old")
    accounts.postgres(old.dsn)
    platform.on(old)
    (one,) = platform.born(1)
    platform.off()
    copy = [
        str(moves.NEW / "pg_basebackup"),
        "-d",
        old.dsn,
        "-D",
        str(fleet.home / "standby"),
        "-R",
        "-c",
        "fast",
        "-N",
    ]
    subprocess.run(copy, check=True, capture_output=True, timeout=120)
    standby = fleet.start("standby")
    fleet.stop("old")
    standby.query("SELECT pg_promote()")
    platform.on(standby)
    assert platform.rebind("--dry-run")["counts"]["bound"] == 1
    platform.deleted(one["id"])
    eventually(lambda: platform.shown(one["id"])["status"] == "deleted")
    assert standby.drops() == {f"zz_del_{one['manifest']['generation']}": 1}


# -- Redis -------------------------------------------------------------------------------------------------------------


def namespace(server: RedisServer) -> dict[str, Any]:
    backend = Redis(server.service_dsn)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials)


def test_a_redis_from_its_rdb_file_and_its_aclfile_is_the_same_server_and_one_with_users_alone_is_rebound(
    folder: Path,
) -> None:
    with running("valkey", folder / "old") as old:
        made = namespace(old)
        old.client.set(f"{made['prefix']}kept", "7")
        old.client.save()
        users = old.client.execute_command("ACL", "LIST")
        for name in ("dump.rdb", "users.acl"):
            (folder / "copy").mkdir(exist_ok=True)
            shutil.copy(folder / "old" / name, folder / "copy" / name)
        (folder / "rdb").mkdir()
        shutil.copy(folder / "old" / "dump.rdb", folder / "rdb" / "dump.rdb")
    with running("valkey", folder / "copy") as copy:
        elsewhere = Redis(copy.service_dsn)
        assert elsewhere.locate(made).seen["manifest"] == made
        elsewhere.teardown(made, 1)
        assert not copy.bears(made)
    with running("valkey", folder / "rdb") as new:
        own = f"deprovisioner:server:{uuid.uuid4()}"
        new.client.execute_command("ACL", "SETUSER", own, "reset")
        (line,) = (line for line in users if line.split()[1] == made["user"])
        new.client.execute_command("ACL", "SETUSER", *line.split()[1:])
        moved = Redis(new.service_dsn)
        assert isinstance(moved.inspect(made), Different)
        found = moved.locate(made).seen["manifest"]
        assert found == made | {"server": own.rpartition(":")[2]}
        moved.teardown(found, 1)
        assert not new.bears(made)
