"""The snapshot of a namespace: every type, every expiry, any bytes; and values too large to be fetched together."""

import time
import uuid
from typing import Any

import pytest
import redis

from outbox.errors import Refused, Transient
from tests.support.snapshots import Sink
from tests.support.witness import RedisServer
from worker.backends import always
from worker.backends.redis import Redis, snapshot


@pytest.fixture(params=["valkey9", "redis7"])
def server(request: pytest.FixtureRequest, servers: Any) -> RedisServer:
    return servers.redis if request.param == "valkey9" else request.getfixturevalue("redis7")


def filled(server: RedisServer, prefix: str) -> dict[bytes, Any]:
    """Keys of every type in two databases; what each holds."""
    p = prefix.encode()
    with redis.Redis.from_url(server.url) as client:
        client.set(p + b"text", "x")
        client.set(p + b"\xff\x00 any bytes", b"\x00\xff")
        client.set(p + b"soon", "x", pxat=int(time.time() * 1000) + 3_600_000)
        client.rpush(p + b"list", *range(1000))
        client.sadd(p + b"set", *(f"member {i}" for i in range(2000)))
        client.hset(p + b"hash", mapping={f"field {i}": i for i in range(2000)})
        client.zadd(p + b"sorted", {f"member {i}": i for i in range(500)})
        client.xadd(p + b"stream", {"a": 1})
        client.xgroup_create(p + b"stream", "group")
    with redis.Redis.from_url(server.url, db=3) as client:
        client.set(p + b"elsewhere", "y")
    return contents(server, p)


def contents(server: RedisServer, prefix: bytes) -> dict[bytes, Any]:
    found: dict[bytes, Any] = {}
    reads = {
        b"string": lambda c, k: c.get(k),
        b"list": lambda c, k: c.lrange(k, 0, -1),
        b"set": lambda c, k: c.smembers(k),
        b"hash": lambda c, k: c.hgetall(k),
        b"zset": lambda c, k: c.zrange(k, 0, -1, withscores=True),
        b"stream": lambda c, k: (c.xrange(k), c.xinfo_groups(k)),
    }
    for db in (0, 3):
        with redis.Redis.from_url(server.url, db=db) as client:
            for key in client.scan_iter(match=prefix + b"*"):
                found[key.removeprefix(prefix)] = (db, client.pexpiretime(key), reads[client.type(key)](client, key))
    return found


def provisioned(backend: Redis) -> tuple[dict[str, Any], dict[str, Any]]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials), plan.credentials


def test_a_namespace_is_restored_with_its_types_and_expiries(server: RedisServer) -> None:
    backend = Redis(server.service_dsn)
    made, _ = provisioned(backend)
    held = filled(server, made["prefix"])
    backend.quarantine(made)
    sink = Sink()
    source = backend.snapshot(made, sink.write, always)
    assert source["keys"] == len(held) == 9
    assert backend.verify_snapshot(made, sink.read, source, always) == {"keys": 9}
    assert server.client.keys("deprovisioner:scratch:*") == []
    assert contents(server, made["prefix"].encode()) == held, "a proof leaves its source as it was"
    new, credentials = provisioned(backend)
    sink.place = 0
    backend.restore_snapshot(new, credentials, sink.read, always)
    assert contents(server, new["prefix"].encode()) == held
    for one in (made, new):
        backend.teardown(one, 1)


def test_a_record_that_the_server_does_not_take_is_no_proof(server: RedisServer) -> None:
    backend = Redis(server.service_dsn)
    made, _ = provisioned(backend)
    filled(server, made["prefix"])
    backend.quarantine(made)
    sink = Sink()
    source = backend.snapshot(made, sink.write, always)
    whole = bytes(sink.data)
    sink.data[-1] ^= 1  # the checksum of the last value
    with pytest.raises(Transient, match="does not take the record"):
        backend.verify_snapshot(made, sink.read, source, always)
    sink.data, sink.place = bytearray(whole[:-1]), 0
    with pytest.raises(Transient):
        backend.verify_snapshot(made, sink.read, source, always)
    sink.data, sink.place = bytearray(whole), 0
    with pytest.raises(Transient, match="has 9 keys of 10"):
        backend.verify_snapshot(made, sink.read, source | {"keys": 10}, always)
    sink.place = 0
    with pytest.raises(Transient, match="differs"):
        backend.verify_snapshot(made, sink.read, source | {"sum": source["sum"] ^ 1}, always)
    assert server.client.keys("deprovisioner:scratch:*") == []
    backend.teardown(made, 1)


def test_a_namespace_that_is_in_use_is_not_taken(server: RedisServer) -> None:
    backend = Redis(server.service_dsn)
    made, _ = provisioned(backend)
    with pytest.raises(Transient, match="not in quarantine"):
        backend.snapshot(made, Sink().write, always)
    backend.teardown(made, 1)
    with pytest.raises(Refused):
        backend.snapshot(made, Sink().write, always)


def test_large_values_are_fetched_one_by_one(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "BATCH_BYTES", 1 << 20)
    sizes: list[int] = []
    honest = snapshot._fetched

    def counted(there: Any, database: int, names: list[bytes]) -> Any:
        sizes.append(len(names))
        return honest(there, database, names)

    monkeypatch.setattr(snapshot, "_fetched", counted)
    backend = Redis(server.service_dsn)
    made, _ = provisioned(backend)
    for i in range(5):
        server.client.set(f"{made['prefix']}{i}", b"x" * 900_000)
    backend.quarantine(made)
    sink = Sink()
    source = backend.snapshot(made, sink.write, always)
    assert sizes == [1] * 5
    backend.verify_snapshot(made, sink.read, source, always)
    backend.teardown(made, 1)
