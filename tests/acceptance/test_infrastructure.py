"""Faults of the servers and of the product's processes during a storm of DELETEs.

Every test ends with the same checks (`OwnServers.storm`): by the servers' own logs each accepted DELETE was done once;
no lease is left, no job runs, the doctor finds nothing, and no worker had to be started again.
"""

import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator

import psycopg2
import pytest

from deprovisioner.up import servers as embedded
from outbox import doorbell
from tests.support import small_disk
from tests.support.installation import OwnServers, seconds
from tests.support.processes import Process
from tests.support.servers import Servers
from tests.support.witness import eventually


@pytest.fixture(scope="module")
def own(servers: Servers) -> Iterator[OwnServers]:
    made = OwnServers(servers)
    try:
        made.start()
        yield made
    finally:
        made.stop()


ENDS_CLIENTS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE pid <> pg_backend_pid() AND application_name = 'deprovisioner'"""


# -- the control database ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [pytest.param(signal.SIGINT, id="fast", marks=pytest.mark.proof), pytest.param(signal.SIGQUIT, id="immediate")],
)
def test_every_delete_is_done_once_though_the_control_database_restarts(own: OwnServers, how: signal.Signals) -> None:
    with own.storm():
        own.restart_control(how)


@pytest.mark.proof
def test_every_delete_is_done_once_though_control_connections_are_cut_each_second(own: OwnServers) -> None:
    with own.storm():
        cut = sum(len(own.control.query(ENDS_CLIENTS)) for _ in seconds(4, every=1))
    assert cut > 4


@pytest.mark.proof
def test_every_delete_is_done_once_though_the_control_database_has_no_connection_left(own: OwnServers) -> None:
    with own.storm() as things, contextlib.ExitStack() as hoard:

        def refused() -> bool:
            ours.execute(ENDS_CLIENTS)
            with contextlib.suppress(psycopg2.OperationalError):
                while True:
                    hoard.enter_context(contextlib.closing(psycopg2.connect(own.control.dsn)))
            answer = own.acme.get(f"/v1/resources/{things[0]['id']}")
            return (answer.status_code, answer.headers.get("Retry-After")) == (503, "2")

        keeper = hoard.enter_context(contextlib.closing(psycopg2.connect(own.control.dsn)))
        keeper.autocommit = True
        ours = keeper.cursor()
        eventually(refused, what="the API says so")
        time.sleep(1)


@pytest.mark.proof
def test_every_delete_is_done_once_though_an_old_snapshot_holds_back_vacuum(own: OwnServers) -> None:
    with contextlib.closing(psycopg2.connect(own.control.dsn)) as old:
        old.set_session(isolation_level="REPEATABLE READ")
        old.cursor().execute("SELECT count(*) FROM outbox")
        with own.storm():
            pass
        pid = old.info.backend_pid
        asked = "SELECT state, age(backend_xmin) FROM pg_stat_activity WHERE pid = %s"
        ((state, age),) = own.control.query(asked, pid)
        assert state == "idle in transaction"
        assert age > 50, "the snapshot was too young to hold back vacuum"


@pytest.mark.proof
def test_every_delete_is_done_once_though_the_control_databases_disk_was_full(own: OwnServers) -> None:
    """Its tables are on a tmpfs that a file fills: writes that need a new page fail with 53100. The WAL is not."""
    if own.small_disk is None:
        pytest.skip("this user may not mount a small tmpfs")
    began = own.control_server.log.stat().st_size

    def failures() -> int:
        return own.control_server.log.read_bytes()[began:].count(b"No space left on device")

    with own.storm(), small_disk.full(own.small_disk):
        eventually(lambda: failures() > 5, what="writes fail")
        time.sleep(1)


# -- the broker --------------------------------------------------------------------------------------------------------


@pytest.mark.proof
def test_every_delete_is_done_once_though_the_broker_is_killed_and_comes_back_empty(own: OwnServers) -> None:
    with own.storm():
        own.broker_server.process.kill()
        own.broker_server.process.wait()
        time.sleep(1)
        own.start_server(own.broker_server, lambda: embedded.valkey_ready(own.broker.url))


@pytest.mark.proof
def test_every_delete_is_done_once_though_the_broker_is_flushed_again_and_again(own: OwnServers) -> None:
    with own.storm():
        for _ in seconds(3, every=0.1):
            own.broker.client.flushall()


@pytest.mark.proof
def test_every_delete_is_done_once_though_each_message_comes_twenty_times_more(own: OwnServers) -> None:
    queue, repeated = own.broker.client, set()
    with own.storm():
        for _ in seconds(3, every=0.3):
            for kept in own.kept:
                kept.fork.pause()
            for _ in range(4):  # the first ones go to workers that wait in BRPOP; the rest stay in the queue
                doorbell.celery.sender().send_task(doorbell.DRAIN)
            for message in set(queue.lrange(doorbell.QUEUE, 0, -1)) - repeated:
                queue.lpush(doorbell.QUEUE, *[message] * 20)
                repeated.add(message)
            for kept in own.kept:
                kept.fork.wake()
        assert repeated
        eventually(lambda: queue.llen(doorbell.QUEUE) == 0, what="all are answered")


# -- workers and beat --------------------------------------------------------------------------------------------------


def test_every_delete_is_done_once_though_workers_and_beat_are_killed_all_the_time(own: OwnServers) -> None:
    argv = [sys.executable, "-m", "celery", "-A", "worker.app", "beat", "-s", str(own.folder / "beat")]
    beat = Process("beat", argv, own.env, own.folder / "beat.log")
    try:
        with own.storm():
            for n in seconds(5, every=1.2):
                own.kept[n % 2].fork.kill()
                own.deaths += 1
                if n % 2:
                    beat.kill()
                    beat.start()
            eventually(lambda: sum(kept.deaths for kept in own.kept) == own.deaths)
    finally:
        beat.stop()


# -- a backend ---------------------------------------------------------------------------------------------------------


def test_a_paused_backend_does_not_delay_the_jobs_of_another_backend(own: OwnServers) -> None:
    with own.storm() as things:
        own.signal(own.pg_server, signal.SIGSTOP)
        try:
            others = [thing for thing in things if thing["kind"] == "redis"]
            eventually(lambda: own.status(others) == Counter(deleted=len(others)), what="the other backend's")
            own.claimed_in_time(others)
            assert own.status(things)["deleting"] > 0
        finally:
            own.signal(own.pg_server, signal.SIGCONT)


@pytest.mark.proof
def test_every_delete_is_done_once_though_a_backend_answers_slowly(own: OwnServers) -> None:
    with own.storm():
        for _ in seconds(4, every=0.03):
            own.signal(own.pg_server, signal.SIGSTOP)
            time.sleep(0.2)
            own.signal(own.pg_server, signal.SIGCONT)


@pytest.mark.proof
def test_every_delete_is_done_once_though_a_backend_cuts_connections_during_calls(own: OwnServers) -> None:
    with own.storm():
        cut = sum(len(own.pg.query(ENDS_CLIENTS)) for _ in seconds(4, every=0.1))
    assert cut > 4
