"""A wrong storm of deletes is stopped and taken back whole; the servers themselves say that nothing was destroyed."""

import datetime as dt
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
from sqlalchemy import Connection, text

from tests.support.api import create, until
from tests.support.processes import System, client
from tests.support.servers import BACKENDS, Servers
from tests.support.witness import eventually

UNDO = 'grace = "10m"\nmin_grace = "0s"\n'
# On two cores that run nothing else it takes a fifth of that; the test's machine may be busy.
MOST_SECONDS = 60


def a_customer_writes(credentials: dict[str, Any], word: str) -> None:
    """What the customer keeps in its resource."""
    if "dsn" in credentials:
        with closing(psycopg2.connect(credentials["dsn"])) as session, session, session.cursor() as cursor:
            cursor.execute("CREATE TABLE kept (word text)")
            cursor.execute("INSERT INTO kept VALUES (%s)", (word,))
    else:
        with redis.Redis.from_url(credentials["url"], decode_responses=True) as cache:
            cache.set(f"{credentials['prefix']}kept", word)


def a_customer_reads(credentials: dict[str, Any]) -> str:
    """What a log-in with these credentials finds."""
    if "dsn" in credentials:
        with closing(psycopg2.connect(credentials["dsn"])) as session, session.cursor() as cursor:
            cursor.execute("SELECT word FROM kept")
            return cursor.fetchone()[0]
    with redis.Redis.from_url(credentials["url"], decode_responses=True) as cache:
        return str(cache.get(f"{credentials['prefix']}kept"))


def destroyed(servers: Servers) -> tuple[int, ...]:
    """How many databases PostgreSQL dropped, by its log, and how often Redis removed keys, by its own count."""
    counted = servers.redis.client.info("commandstats")
    asked = ("cmdstat_unlink", "cmdstat_del")
    return (servers.pg.drops().total(), *(counted.get(name, {"calls": 0})["calls"] for name in asked))


def statuses(db: Connection) -> dict[str, int]:
    counted = "SELECT status, count(*) FROM resources WHERE tenant = 'acme' GROUP BY status"
    return {row[0]: row[1] for row in db.execute(text(counted))}


def storm(
    system: System,
    db: Connection,
    servers: Servers,
    tenant: str,
    n: int,
    stop: Callable[[System], None],
) -> float:
    """Delete `n` resources of a tenant, `stop` in the middle, take all back; the seconds that the last part took."""
    with client(system.api(), tenant) as acme, ThreadPoolExecutor(8) as many:
        for _ in range(2):
            system.worker()
        made = [create(acme, kind) for kind in ("postgres", "redis") for _ in range(n // 2)]
        eventually(lambda: statuses(db) == {"active": n}, what="all are active", every=0.2)
        opens = [acme.get(f"/v1/resources/{r['id']}/credentials").json() for r in made]
        list(many.map(a_customer_writes, opens, [r["id"] for r in made]))
        before = destroyed(servers)
        since = db.execute(text("SELECT now()")).scalar_one()
        mixed = made[::2] + made[1::2]

        def delete(resource: dict[str, Any]) -> None:
            answer = acme.delete(f"/v1/resources/{resource['id']}")
            assert answer.status_code == 202, answer.text

        list(many.map(delete, mixed[: n // 2]))
        stop(system)
        list(many.map(delete, mixed[n // 2 :]))
        assert statuses(db) == {"deleting": n}
        running = "SELECT EXISTS (SELECT FROM outbox WHERE state = 'running')"
        eventually(lambda: not db.execute(text(running)).scalar_one(), what="what had started has ended")
        step = "SELECT step, count(*) FROM outbox WHERE kind = 'deprovision' GROUP BY step"
        steps = {row[0]: row[1] for row in db.execute(text(step))}
        assert steps.get("wait"), "some were cut off before the stop"
        assert steps.get("quarantine"), "the others were not"
        seconds = -time.monotonic()
        told = restored(system, since)
        eventually(lambda: statuses(db) == {"active": n}, what="all are given back", every=0.1)
        seconds += time.monotonic()
        assert (told["state"], told["progress"]["done"], told["total"]) == ("succeeded", n, n)
        assert list(many.map(a_customer_reads, opens)) == [r["id"] for r in made]
        again = [acme.get(f"/v1/resources/{r['id']}/credentials").json() for r in made]
        assert again == opens, "the same connection strings, byte for byte"
        for hold in json.loads(system.cli("hold", "list", "--json").stdout)["items"]:
            released = system.cli("hold", "release", str(hold["id"]), "--reason", "all are back")
            assert released.returncode == 0, released.stderr
        ended = "SELECT count(*) FROM outbox WHERE kind = 'deprovision' AND state = 'cancelled'"
        assert db.execute(text(ended)).scalar_one() == n
        until(acme, create(acme), "active")  # a worker that goes on has nothing left to tear down
        assert destroyed(servers) == before
    return seconds


def restored(system: System, since: dt.datetime) -> dict[str, Any]:
    """The bulk restore at a shell: the dry run, then what it previewed."""
    words = ("resources", "restore-all", "--tenant", "acme", "--deleted-since", since.isoformat(), "--reason", "wrong")
    dry = system.cli(*words, "--json")
    assert dry.returncode == 0, dry.stderr
    done = system.cli(*words, "--digest", json.loads(dry.stdout)["digest"], "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def held(system: System) -> None:
    assert system.cli("hold", "set", "--tenant", "acme", "--reason", "wrong deletes").returncode == 0


def braked(_: System) -> None:
    """Its brake stops the storm by itself."""


@pytest.mark.proof
@pytest.mark.parametrize("stop", [held, braked])
def test_two_hundred_wrong_deletes_are_taken_back_and_every_customer_logs_in_as_before(
    system: System,
    db: Connection,
    servers: Servers,
    tenant: str,
    stop: Callable[[System], None],
    record_property: Any,
) -> None:
    limits = UNDO + ('brake = "40/10m"\n' if stop is braked else "")
    backends = BACKENDS.replace("concurrency = 8\n", f"concurrency = 8\n{limits}")
    Path(system.env["DEPROVISIONER_BACKENDS"]).write_text(backends)
    seconds = storm(system, db, servers, tenant, 200, stop)
    print(f"200 wrong deletes, {stop.__name__}: all taken back in {seconds:.1f} s")
    record_property("seconds", seconds)
    assert seconds < MOST_SECONDS


@pytest.mark.parametrize("stop", [held, braked])
def test_wrong_deletes_are_taken_back(
    system: System, db: Connection, servers: Servers, tenant: str, stop: Callable[[System], None]
) -> None:
    limits = UNDO + ('brake = "2/10m"\n' if stop is braked else "")
    backends = BACKENDS.replace("concurrency = 8\n", f"concurrency = 8\n{limits}")
    Path(system.env["DEPROVISIONER_BACKENDS"]).write_text(backends)
    storm(system, db, servers, tenant, 12, stop)
