"""An installation whose control database goes back in time, what happened meanwhile, and what the backends say."""

import datetime as dt
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import redis

from deprovisioner.demo.witnesses import Holding, contents, fill
from tests.support import forked
from tests.support.api import KINDS, until
from tests.support.forked import Fork
from tests.support.processes import client, shell
from tests.support.rewinds import NAME, Control, Way, migrated
from tests.support.servers import BACKENDS, Servers, server_folder
from tests.support.witness import PgServer, eventually

Json = dict[str, Any]

SWEEP = 0.5
# What is not the memory's own table on the server.
_STATEMENT = re.compile(r" LOG: +statement: (.*)")
_MEMORY = "deprovisioner_memory"
_OURS = "deprovisioner:memory:"


class Witnesses:
    """pg-main's own log from a moment on, and Valkey's users, keys and counters as they were then."""

    def __init__(self, servers: Servers) -> None:
        self._pg, self._cache = servers.pg, servers.redis
        self._since = self._pg.log.stat().st_size
        self._before = self._valkey()

    def said(self) -> list[str]:
        """What has been made, altered, cut off or destroyed since, on either backend."""
        with self._pg.log.open("rb") as log:
            log.seek(self._since)
            lines = log.read().decode(errors="replace").splitlines()
        ddl = [found[1] for line in lines if (found := _STATEMENT.search(line)) and _MEMORY not in found[1]]
        now = self._valkey()
        gone = [f"gone or changed: {name} {rules}" for name, rules in self._before.items() if now.get(name) != rules]
        new = [f"new or changed: {name} {rules}" for name, rules in now.items() if self._before.get(name) != rules]
        return ddl + gone + new

    def _valkey(self) -> dict[str, Any]:
        users = [line.split(" ", 2) for line in self._cache.client.execute_command("ACL", "LIST")]
        calls = self._cache.client.info("commandstats").get("cmdstat_acl|deluser", {"calls": 0})["calls"]
        keys = {f"key {key}" for key in self._cache.client.scan_iter(count=1000) if not key.startswith(_OURS)}
        return (
            {f"user {name}": rules for _, name, rules in users if not name.startswith(_OURS)}
            | dict.fromkeys(keys, "")
            | {"ACL DELUSER": calls}
        )


class Installation:
    """The product's processes, as a person starts them in production, and its callers."""

    def __init__(self, servers: Servers, control: Control, broker: int = 0) -> None:
        self.servers, self.control, self.folder = servers, control, control.folder
        self.broker = redis.Redis.from_url(servers.broker.url, db=broker)
        (self.folder / "backends.toml").write_text(BACKENDS)
        self.env = {
            "DEPROVISIONER_DATABASE_URL": control.service_dsn,
            "DEPROVISIONER_BROKER_URL": servers.broker.url.removesuffix("/0") + f"/{broker}",
            "DEPROVISIONER_BACKENDS": str(self.folder / "backends.toml"),
            "DEPROVISIONER_CREDENTIALS_KEY": "QqzGw4kG3n6pTgU3aYQ1n8cYqH1m3C5v0b7xJ2r9d0E=",
            "DEPROVISIONER_LEASE_SECONDS": "15",
            "DEPROVISIONER_SWEEP_SECONDS": str(SWEEP),
            "DEPROVISIONER_BACKOFF_BASE_SECONDS": "0.2",
            "PG_MAIN_DSN": servers.pg.service_dsn,
            "REDIS_MAIN_URL": servers.redis.service_dsn,
        }
        self.workers: list[Fork] = []
        self.env["DEPROVISIONER_OPERATOR_TOKEN"] = self.token("operator", name="boss")[1]
        self.api, self.url = forked.api(self.env, self.folder / "api.log")
        self.boss = client(self.url, self.env["DEPROVISIONER_OPERATOR_TOKEN"])
        self.acme = client(self.url, self.token("tenant", tenant="acme")[1])
        self.bulk = client(self.url, self.token("tenant", tenant="bulk")[1])

    def stop(self) -> None:
        for caller in (self.boss, self.acme, self.bulk):
            caller.close()
        for process in (*self.workers, self.api):
            process.kill()

    # -- a person at a shell, and callers ----------------------------------------------------------------------

    def cli(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return shell(self.env, *words)

    def does(self, *words: str) -> Json:
        """What a command says in JSON; it must succeed."""
        done = self.cli(*words, "--json")
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return json.loads(done.stdout)

    def token(self, role: str, **more: str) -> tuple[int, str]:
        """A new token: its id, and the secret."""
        options = [word for name, value in more.items() for word in (f"--{name}", value)]
        made = self.does("token", "create", "--role", role, *options)
        return made["id"], made["token"]

    def create(self, caller: httpx.Client, kind: str) -> Json:
        answer = caller.post("/v1/resources", json={"kind": kind, "backend": KINDS[kind], "name": "orders"})
        assert answer.status_code == 202, answer.text
        return answer.json()["resource"]

    def active(self, caller: httpx.Client, *kinds: str) -> list[Json]:
        """New resources, provisioned, each with something of the customer's in it."""
        made = [until(caller, one, "active") for one in [self.create(caller, kind) for kind in kinds]]
        for one in made:
            fill(self.holding(caller, one))
        return made

    def holding(self, caller: httpx.Client, resource: Json) -> Holding:
        """The customer's login."""
        login = caller.get(f"/v1/resources/{resource['id']}/credentials").json()
        return Holding(resource["kind"], resource["manifest"], login.get("dsn") or login["url"], resource["id"])

    def delete(self, caller: httpx.Client, resource: Json, grace: str) -> Json:
        answer = caller.delete(f"/v1/resources/{resource['id']}?grace={grace}")
        assert answer.status_code == 202, answer.text
        return answer.json()["job"]

    def waits(self, job: Json) -> None:
        """Until the object is in quarantine, and its teardown waits for the end of the grace."""
        url = f"/v1/jobs/{job['id']}"
        eventually(lambda: self.boss.get(url).json()["step"] in ("wait", "destroy"), what="it is in quarantine")
        eventually(lambda: self.boss.get(url).json()["state"] == "pending", what="it waits")

    def ask(self, path: str, **body: Any) -> Json:
        answer = self.boss.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    # -- workers -----------------------------------------------------------------------------------------------

    def start_worker(self, **env: str) -> Fork:
        log = self.folder / f"worker-{len(self.workers)}.log"
        worker = Fork("worker", self.env | env, log)
        self.workers.append(worker)
        eventually(lambda: "worker_ready" in worker.tail() or worker.exitcode is not None, what="the worker is ready")
        assert worker.exitcode is None, worker.tail()
        return worker

    def remembered(self) -> None:
        """A worker starts, and has all places remember it all, its notes too: else that takes a minute."""
        asked = "SELECT every(event >= %s) FROM memories"
        ((last,),) = self.control.server.query("SELECT max(id) FROM events")
        self.start_worker()
        eventually(lambda: self.control.server.query(asked, last) == [(True,)], what="all places remember")

    def end_workers(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait(60)
        self.workers.clear()

    def sweeps(self, times: int) -> None:
        """Until each worker has swept so often, or more: a sweep commits six times, and its server counts late."""
        asked = f"SELECT xact_commit FROM pg_stat_database WHERE datname = '{NAME}'"
        server = PgServer(self.control.root, self.control.child.log)  # its own commits are another database's
        wanted = server.query(asked)[0][0] + 6 * times * len(self.workers)
        eventually(lambda: server.query(asked)[0][0] > wanted, what="the workers sweep", every=0.1)

    def api_reads(self) -> bool:
        """Whether the API answers reads: the control database is back."""
        return self.boss.get("/v1/holds").status_code == 200

    # -- holds -------------------------------------------------------------------------------------------------

    def rewound(self) -> Json | None:
        """The hold of a rewind, if one is in force."""
        answer = self.boss.get("/v1/holds")
        held = [hold for hold in answer.json().get("items", ()) if hold["cause"] == "rewound"]
        return held[0] if held else None


class Story:
    """What happens before the moment to which the database goes back, and after it."""

    def __init__(self, its: Installation) -> None:
        self.its = its

    def begin(self) -> None:
        """Until that moment. At its end no worker runs on, so that nothing of what is due happens before."""
        its = self.its
        self.lifted, self.protected, self.restored, self.gone, self.purged, self.kept = its.active(
            its.acme, "postgres", "redis", "postgres", "postgres", "redis", "postgres"
        )
        self.left = its.active(its.bulk, "redis", "redis", "postgres")
        self.revoked, self.secret = its.token("operator", name="left the company")
        jobs = [its.delete(its.acme, one, "1h") for one in (self.restored, self.purged)]
        for job in jobs:
            its.waits(job)
        for worker in its.workers:
            worker.pause()
        soon = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)).isoformat()
        for one in (self.lifted, self.protected):
            self._change(one, expires_at=soon)
        its.ask(f"/v1/resources/{self.restored['id']}/purge", reason="it must go at once")
        seen = its.ask("/v1/tenants/bulk/offboard", reason="contract ended")
        self.operation = its.ask(
            "/v1/tenants/bulk/offboard",
            reason="contract ended",
            dry_run=False,
            expected_count=seen["count"],
            digest=seen["digest"],
        )

    def go_on(self) -> None:
        """What the restored database will not know. The last of it is a destruction."""
        its = self.its
        its.does("operations", "stop", str(self.operation["operation"]["id"]), "--reason", "the contract goes on")
        self._change(self.lifted, expires_at=None)
        self._change(self.protected, protected=True)
        its.ask(f"/v1/resources/{self.restored['id']}/restore", reason="a mistake")
        for worker in its.workers:
            worker.wake()
        until(its.acme, self.restored, "active")
        self.hold = its.ask("/v1/holds", scope="tenant", subject="bulk", reason="fraud case 8")
        self.made = its.active(its.acme, "postgres", "redis")
        its.does("token", "revoke", str(self.revoked), "--reason", "left the company")
        its.ask(f"/v1/resources/{self.purged['id']}/purge", reason="asked for by the customer")
        its.delete(its.acme, self.gone, "0s")
        for one in (self.purged, self.gone):
            until(its.acme, one, "deleted")
        living = [(its.acme, one) for one in (self.lifted, self.protected, self.restored, self.kept, *self.made)]
        living += [(its.bulk, one) for one in self.left]
        self.living = [its.holding(caller, one) for caller, one in living]
        self.contents = [contents(one) for one in self.living]
        assert None not in self.contents

    def _change(self, resource: Json, **fields: Any) -> None:
        answer = self.its.acme.patch(f"/v1/resources/{resource['id']}", json=fields)
        assert answer.is_success, answer.text

    def lost(self) -> list[str]:
        """Customers whose resource nobody deleted in the end, and who cannot log in, or miss something."""
        wrong = [one for one, had in zip(self.living, self.contents, strict=True) if contents(one) != had]
        names = {one["id"]: name for name, one in vars(self).items() if isinstance(one, dict) and "id" in one}
        return [f"{names.get(one.id, 'made since, or left alone')}: {one.kind} {one.id}" for one in wrong]

    def until(self, way: Way) -> "Story":
        """All of it, up to the moment before the database goes back."""
        self.begin()
        way.keep(self.its.control)
        self.go_on()
        return self


Install = Callable[..., Installation]


@contextmanager
def template() -> Iterator[Path]:
    """The files of a migrated control cluster, from which each installation's are copied."""
    folder = server_folder("rewinds")
    try:
        yield migrated(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def installing(servers: Servers, template: Path) -> Iterator[Install]:
    """Makes installations whose control database will go back by a way; all are ended with the block."""
    made: list[Installation] = []
    controls: list[Control] = []

    def install(way: Way, workers: int = 2) -> Installation:
        controls.append(Control(server_folder("rewind"), template))
        way.prepare(controls[-1])
        made.append(Installation(servers, controls[-1], broker=len(made)))
        for _ in range(workers):
            made[-1].start_worker()
        return made[-1]

    try:
        yield install
    finally:
        for one in made:
            one.stop()
        for control in controls:
            control.stop()
            shutil.rmtree(control.folder, ignore_errors=True)
