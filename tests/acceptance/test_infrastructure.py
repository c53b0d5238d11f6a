"""What the servers and the processes of an installation can suffer in the middle of a storm of DELETEs.

Every case ends alike (`Ground.storm`): each accepted DELETE done once, by the servers' own word, no lease, nothing
running, a clean doctor, and no worker started again by hand.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator

import psycopg2
import pytest

from deprovisioner.up import servers as embedded
from outbox import doorbell
from tests.support.installation import Ground, seconds
from tests.support.processes import Process
from tests.support.servers import Servers
from tests.support.witness import eventually


@pytest.fixture(scope="module")
def ground(servers: Servers) -> Iterator[Ground]:
    made = Ground(servers)
    try:
        made.start()
        yield made
    finally:
        made.stop()


ENDS_CLIENTS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE pid <> pg_backend_pid() AND application_name = 'deprovisioner'"""


# -- the control database ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_the_control_database_is_shut_down_and_started_again(ground: Ground, how: signal.Signals) -> None:
    with ground.storm():
        ground.restart_control(how)


def test_every_connection_to_the_control_database_is_cut_once_a_second(ground: Ground) -> None:
    with ground.storm():
        cut = sum(len(ground.control.query(ENDS_CLIENTS)) for _ in seconds(4, every=1))
    assert cut > 4


def test_the_control_database_has_no_connection_left(ground: Ground) -> None:
    with ground.storm() as things, contextlib.ExitStack() as hoard:

        def refused() -> bool:
            ours.execute(ENDS_CLIENTS)
            with contextlib.suppress(psycopg2.OperationalError):
                while True:
                    hoard.enter_context(contextlib.closing(psycopg2.connect(ground.control.dsn)))
            answer = ground.acme.get(f"/v1/resources/{things[0]['id']}")
            return (answer.status_code, answer.headers.get("Retry-After")) == (503, "2")

        keeper = hoard.enter_context(contextlib.closing(psycopg2.connect(ground.control.dsn)))
        keeper.autocommit = True
        ours = keeper.cursor()
        eventually(refused, what="the API says so")
        time.sleep(1)


def test_an_old_snapshot_holds_back_vacuum(ground: Ground) -> None:
    with contextlib.closing(psycopg2.connect(ground.control.dsn)) as old:
        old.set_session(isolation_level="REPEATABLE READ")
        old.cursor().execute("SELECT count(*) FROM outbox")
        with ground.storm():
            pass
        pid = old.info.backend_pid
        asked = "SELECT state, age(backend_xmin) FROM pg_stat_activity WHERE pid = %s"
        ((state, age),) = ground.control.query(asked, pid)
        assert state == "idle in transaction"
        assert age > 50, "everything happened while nothing could be vacuumed"


def test_the_control_databases_disk_is_full(ground: Ground) -> None:
    """Its tables lie on a tmpfs that a ballast fills: what needs one more page fails with 53100. The WAL has room."""
    if ground.small_disk is None:
        pytest.skip("this user may not mount a small tmpfs")
    ballast = ground.small_disk / "ballast"
    began = ground.control_server.log.stat().st_size

    def failures() -> int:
        return ground.control_server.log.read_bytes()[began:].count(b"No space left on device")

    with ground.storm():
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(ground.small_disk).free)
        try:
            eventually(lambda: failures() > 5, what="writes fail")
            time.sleep(1)
        finally:
            ballast.unlink()


# -- the broker --------------------------------------------------------------------------------------------------------


def test_the_broker_is_killed_and_comes_back_empty(ground: Ground) -> None:
    with ground.storm():
        ground.broker_server.process.kill()
        ground.broker_server.process.wait()
        time.sleep(1)
        ground.start_server(ground.broker_server, lambda: embedded.valkey_ready(ground.broker.url))


def test_the_broker_forgets_everything_again_and_again(ground: Ground) -> None:
    with ground.storm():
        for _ in seconds(3, every=0.1):
            ground.broker.client.flushall()


def test_each_message_comes_twenty_times_more(ground: Ground) -> None:
    queue, messages = ground.broker.client, 0
    with ground.storm():
        for _ in seconds(3, every=0.3):
            for kept in ground.kept:
                kept.fork.pause()
            for _ in range(4):  # one each for those who wait in BRPOP; what follows lies in the queue
                doorbell.celery.sender().send_task(doorbell.DRAIN)
            for message in queue.lrange(doorbell.QUEUE, 0, -1):
                messages = queue.lpush(doorbell.QUEUE, *[message] * 20)
            for kept in ground.kept:
                kept.fork.wake()
        assert messages > 20
        eventually(lambda: queue.llen(doorbell.QUEUE) == 0, what="all are answered")


# -- workers and beat --------------------------------------------------------------------------------------------------


def test_workers_and_beat_are_killed_all_the_time(ground: Ground) -> None:
    argv = [sys.executable, "-m", "celery", "-A", "worker.app", "beat", "-s", str(ground.folder / "beat")]
    beat = Process("beat", argv, ground.env, ground.folder / "beat.log")
    try:
        with ground.storm():
            for n in seconds(5, every=1.2):
                ground.kept[n % 2].fork.kill()
                ground.deaths += 1
                if n % 2:
                    beat.kill()
                    beat.start()
            eventually(lambda: sum(kept.deaths for kept in ground.kept) == ground.deaths)
    finally:
        beat.stop()


# -- a backend ---------------------------------------------------------------------------------------------------------


def test_a_backend_that_stands_still_keeps_nobody_elses_jobs_waiting(ground: Ground) -> None:
    with ground.storm() as things:
        ground.signal(ground.pg_server, signal.SIGSTOP)
        try:
            others = [thing for thing in things if thing["kind"] == "redis"]
            eventually(lambda: ground.status(others) == Counter(deleted=len(others)), what="the other backend's")
            ground.claimed_in_time(others)
            assert ground.status(things)["deleting"] > 0
        finally:
            ground.signal(ground.pg_server, signal.SIGCONT)


def test_a_backend_that_answers_slowly(ground: Ground) -> None:
    with ground.storm():
        for _ in seconds(4, every=0.03):
            ground.signal(ground.pg_server, signal.SIGSTOP)
            time.sleep(0.2)
            ground.signal(ground.pg_server, signal.SIGCONT)


def test_a_backend_that_hangs_up_in_the_middle_of_a_call(ground: Ground) -> None:
    with ground.storm():
        cut = sum(len(ground.pg.query(ENDS_CLIENTS)) for _ in seconds(4, every=0.1))
    assert cut > 4
