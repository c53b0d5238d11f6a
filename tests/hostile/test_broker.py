"""Whoever may write to the broker causes extra wake-ups at worst: workers obey none of it, and go on working."""

import base64
import bz2
import json
import os
import pickle
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.app.control import Control
from kombu import Connection

from outbox.doorbell import BELL, DRAIN, OBSERVE, QUEUE, SWEEP
from tests.support.api import create, until
from tests.support.processes import System, client
from tests.support.witness import eventually

AMQP = os.environ.get("TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")
REPLIES, CALLED = "stolen-replies", "called-back"
MEGABYTES = 1 << 20
JOB_SECONDS = 30  # far more than a job takes, far less than until the next sweep


class Bomb:
    """Pickled: whoever reads it writes a file."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.where,)


def envelope(task: object = DRAIN, body: object = ([], {}, {}), **words: Any) -> dict[str, Any]:
    """One message as Kombu stores it on Redis."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"lang": "py", "task": task, "id": str(uuid.uuid4()), "argsrepr": "", "kwargsrepr": "", "retries": 0}
    return {
        "body": base64.b64encode(raw).decode(),
        "content-encoding": words.pop("encoding", "utf-8"),
        "content-type": words.pop("content_type", "application/json"),
        "headers": headers | words,
        "properties": {
            "correlation_id": headers["id"],
            "reply_to": REPLIES,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }


def signature(task: str = "called.back") -> dict[str, Any]:
    return {"task": task, "args": [], "kwargs": {}, "options": {"queue": CALLED}, "subtask_type": None}


def hostile_messages(trap: Path) -> list[dict[str, Any]]:
    """Well-formed envelopes with harmful contents."""
    call = signature()
    embed = {"callbacks": [call], "errbacks": [call], "chain": [call], "chord": call}
    far = (datetime.now(UTC) + timedelta(days=3650)).isoformat()
    bomb = bz2.compress(bytes(8 * MEGABYTES)) * 50
    return [
        envelope("os.system", (["touch", str(trap)], {}, {})),
        envelope("celery.starmap", ([call, [[]]], {}, {})),
        envelope("celery.backend_cleanup"),
        *(envelope(name, body) for name in (["a", "list"], {"a": 1}, 7, None, "x" * 100_000) for body in ([], "x")),
        *(envelope(task, ([1, {"a": [2] * 1000}], {"who": "me"}, embed)) for task in (DRAIN, OBSERVE, SWEEP)),
        envelope(DRAIN, ([], {}, embed), reply_to=REPLIES, ignore_result=False, link_error=call, root_id=[]),
        envelope(DRAIN, b"{not json"),
        envelope(DRAIN, timelimit=[1e-9, 1e-9], shadow="x" * 10_000, replaced_task_nesting="no"),
        envelope(DRAIN, expires="not a time", retries="many", stamped_headers=[{}], group=3),
        *(envelope(DRAIN, eta=eta) for eta in ("0001-01-01T00:00:00", "9999-12-31T23:59:59", "soon", 5, [])),
        *(envelope(SWEEP, eta=far) for _ in range(1000)),
        envelope(DRAIN, pickle.dumps(Bomb(trap)), content_type="application/x-python-serialize", encoding="binary"),
        envelope(DRAIN, b"!!python/object/apply:os.system []", content_type="application/x-yaml"),
        *(envelope(DRAIN, bomb, compression=kind) for kind in ("bzip2", "application/x-bz2")),
        *(envelope(DRAIN, b"x", compression=kind) for kind in ("zlib", "lzma", "nothing", 5)),
    ]


def order_workers_about(url: str) -> None:
    """Every order of Celery's remote control that stops, changes or reads a worker."""
    with Celery("hostile", broker=url, set_as_current=False) as app:
        control: Control = app.control
        control.revoke(str(uuid.uuid4()), terminate=True)
        for task in (DRAIN, SWEEP):
            control.rate_limit(task, "1/h")
            control.time_limit(task, soft=0.001, hard=0.001)
        control.pool_shrink(64)
        control.autoscale(0, 0)
        control.cancel_consumer(QUEUE)
        control.add_consumer("hostile")
        control.enable_events()
        control.pool_restart(reload=True)
        inspect = control.inspect(timeout=0.3)
        assert [inspect.conf(), inspect.registered()] == [None, None]
        control.shutdown()
        control.heartbeat()


@pytest.fixture
def broker(env: dict[str, str]) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(env["DEPROVISIONER_BROKER_URL"]) as made:
        made.flushdb()
        limit = made.config_get("proto-max-bulk-len")
        made.config_set("proto-max-bulk-len", 512 * MEGABYTES)  # what servers have that nobody has configured
        yield made
        made.flushdb()
        made.config_set(*limit.popitem())


class Watched:
    """A worker beside an API: whether it still does jobs, and how large it has been."""

    def __init__(self, system: System, token: str, **env: str) -> None:
        self.broker_url = (system.env | env)["DEPROVISIONER_BROKER_URL"]
        self.acme = client(system.api(**env), token)
        self.worker = system.worker(**{"DEPROVISIONER_SWEEP_SECONDS": "600"} | env).container._container
        self._does_a_job()
        self.peak = self._peak()

    def still_works(self, after: str) -> None:
        """The same process does a new job, and was at no moment much larger than it was at the start."""
        self._does_a_job()
        assert self.worker.status == "running", f"{after}: {self.log()[-3000:]}"
        grown = self._peak() - self.peak
        assert grown < 96, f"{after}: {grown} MB more"

    def log(self) -> str:
        return self.worker.logs().decode(errors="replace")

    def _does_a_job(self) -> None:
        made = until(self.acme, create(self.acme, "redis"), "active", JOB_SECONDS)
        assert self.acme.delete(f"/v1/resources/{made['id']}").status_code == 202
        until(self.acme, made, "deleted", JOB_SECONDS)

    def _peak(self) -> int:
        """The most memory that the worker has had, in megabytes."""
        status = Path(f"/proc/{self.worker.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) >> 10  # type: ignore[index]


@pytest.fixture
def watched(system: System, tenant: str, broker: "redis.Redis") -> Iterator[Watched]:
    made = Watched(system, tenant)
    yield made
    made.acme.close()


def drained(broker: "redis.Redis") -> bool:
    return not broker.exists(QUEUE)


def test_workers_obey_nothing_that_a_message_says(watched: Watched, broker: "redis.Redis", tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    broker.lpush(QUEUE, *(json.dumps(each) for each in hostile_messages(trap)))
    eventually(lambda: drained(broker), what="every message is taken")
    watched.still_works("messages")
    order_workers_about(watched.broker_url)
    watched.still_works("orders")
    assert not trap.exists()
    assert not broker.exists(REPLIES, CALLED, "hostile", "celery"), "no worker has sent a message"
    refused = [line for line in watched.log().splitlines() if "message_refused" in line]
    assert len(refused) == 1, "one line a minute"


def test_garbage_at_the_broker_stops_no_worker(watched: Watched, broker: "redis.Redis") -> None:
    missing: list[Any] = [{}, [], 7, None, "x", {"headers": []}, {"properties": 1}, {"body": 1, "properties": {}}]
    missing += [{**envelope(), "headers": wrong} for wrong in ([], 5, "x", None, {"compression": {}})]
    missing += [{**envelope(), "properties": wrong} for wrong in ([], 5, None, {"delivery_tag": None})]
    garbage = [b"", b"\xff\x00", b"[" * 100_000, b"9" * 10_000, *(json.dumps(each).encode() for each in missing)]
    for each in garbage:
        broker.lpush(QUEUE, each)
    watched.still_works("garbage")
    for each in (b"x" * 10 * MEGABYTES, json.dumps(envelope(DRAIN, b"x" * 7 * MEGABYTES))):
        broker.lpush(QUEUE, each)
    watched.still_works("ten megabytes")
    eventually(lambda: drained(broker), what="everything is taken")


def test_whatever_stands_at_the_doorbells_keys_a_wake_up_is_heard(watched: Watched, broker: "redis.Redis") -> None:
    """The worker sweeps once in ten minutes, so only a wake-up makes it work."""
    for spoil in (
        lambda key: broker.set(key, "x"),
        lambda key: broker.lpush(key, "x"),
        lambda key: broker.zadd(key, {b"x" * 10 * MEGABYTES: -1}),
    ):
        for key in (BELL, f"{BELL}:redis-main", f"{BELL}:pg-main"):
            broker.delete(key)
            spoil(key)
        watched.still_works("another type at the doorbell")
    for start in range(0, 1_000_000, 100_000):
        broker.eval("for n = 1, 100000 do redis.call('ZADD', KEYS[1], n % 3 - 1, ARGV[1] + n) end", 1, BELL, start)
    watched.still_works("a million members")
    eventually(lambda: broker.zcard(BELL) <= 1, what="they were one wake-up")
    for key in (QUEUE, f"_kombu.binding.{QUEUE}"):
        broker.delete(key)
        broker.set(key, "x")
    watched.still_works("another type at Celery's keys")


@pytest.fixture
def rabbitmq() -> Iterator[Connection]:
    """A connection to a RabbitMQ of this machine, whose queue of ours is empty."""
    with Connection(AMQP, connect_timeout=2) as made:
        try:
            made.connect()
        except (OSError, *made.connection_errors) as error:
            pytest.skip(f"no RabbitMQ at {AMQP} (TEST_AMQP_URL names another): {error!r}")
        made.default_channel.queue_delete(QUEUE)
        yield made
        made.default_channel.queue_delete(QUEUE)


def test_a_hostile_client_of_rabbitmq_stops_no_worker(
    system: System, tenant: str, rabbitmq: Connection, tmp_path: Path
) -> None:
    trap, channel = tmp_path / "trap", rabbitmq.default_channel
    # A client that deletes the queue takes wake-ups away, and a sweep finds the work.
    watched = Watched(system, tenant, DEPROVISIONER_BROKER_URL=AMQP, DEPROVISIONER_SWEEP_SECONDS="2")

    def publish(body: bytes, **words: Any) -> None:
        channel.basic_publish(channel.prepare_message(body, **words), exchange="", routing_key=QUEUE)

    try:
        for each in hostile_messages(trap):
            kind, encoding, headers = (each[name] for name in ("content-type", "content-encoding", "headers"))
            properties = {"reply_to": REPLIES, "correlation_id": "c"}
            publish(
                base64.b64decode(each["body"]),
                content_type=kind,
                content_encoding=encoding,
                headers=headers,
                properties=properties,
            )
        for body in (b"", b"\xff\x00", b"x" * 10 * MEGABYTES):
            publish(body)
        watched.still_works("messages")
        order_workers_about(AMQP)
        watched.still_works("orders")
        channel.queue_delete(QUEUE)
        watched.still_works("its queue was deleted")
        assert not trap.exists()
    finally:
        watched.acme.close()
