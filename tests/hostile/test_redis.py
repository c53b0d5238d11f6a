"""What a customer prepares in its namespace, with its own credentials, does not outlive it and harms nobody else."""

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from sqlalchemy import Connection, text

from outbox import credentials, jobs, resources
from outbox.resources import NewResource
from outbox.rows import Json
from tests.support import redis_servers
from tests.support.customers import stored
from tests.support.factories import claims
from tests.support.witness import RedisServer, eventually, slowness
from worker.backends.redis import Redis
from worker.run import Run

SECONDS = 30  # in which a teardown ends


@dataclass
class Customer:
    """Who has a namespace, and the credentials that it was given; what it opens stays open until the test ends."""

    resource: uuid.UUID
    manifest: Json
    opens: Json
    open: ExitStack

    @property
    def prefix(self) -> str:
        return str(self.manifest["prefix"])

    def client(self, **options: Any) -> "redis.Redis":
        made = redis.Redis.from_url(self.opens["url"], **{"socket_timeout": 10, "retry": None} | options)
        self.open.callback(made.close)
        return made

    def held(self, **options: Any) -> "redis.Redis":
        """A client with one connection of its own, which stays."""
        made = self.client(single_connection_client=True, **options)
        made.ping()
        return made

    def raw(self, *commands: bytes) -> socket.socket:
        """A connection that sends these bytes after its AUTH, and reads nothing any more."""
        made = self.open.enter_context(socket.create_connection((self.opens["host"], self.opens["port"]), timeout=10))
        made.sendall(f"AUTH {self.opens['user']} {self.opens['password']}\r\n".encode())
        assert made.recv(100) == b"+OK\r\n"
        with suppress(OSError):  # its buffer is full
            made.settimeout(1)
            made.sendall(b"".join(commands))
        return made

    def keeps(self, act: Callable[[], object], threads: int = 4) -> None:
        """Threads that do something again and again until the test ends, whatever comes of it."""
        ending = threading.Event()

        def on() -> None:
            while not ending.is_set():
                with suppress(redis.RedisError, OSError):
                    act()

        pool = self.open.enter_context(ThreadPoolExecutor(threads))
        self.open.callback(ending.set)
        for _ in range(threads):
            pool.submit(on)

    def refused(self, *command: object) -> None:
        with pytest.raises(redis.ResponseError, match="no permissions"):
            self.client().execute_command(*command)


# -- preparations ------------------------------------------------------------------------------------------------------


def _gen(value: bytes) -> Callable[[Customer], None]:
    return lambda customer: customer.client().set(f"{customer.prefix}gen", value) and None


def _typed(command: str, *words: object) -> Callable[[Customer], None]:
    """The key in which older versions kept the generation, of another type."""
    return lambda customer: customer.client().execute_command(command, f"{customer.prefix}gen", *words) and None


def _many_keys(customer: Customer) -> None:
    client = customer.client()
    for first in range(0, 100_000, 10_000):
        client.mset({f"{customer.prefix}{n}": n for n in range(first, first + 10_000)})


def _odd_names(customer: Customer) -> None:
    prefix = customer.prefix.encode()
    names = [bytes([byte]) for byte in range(256)]
    names += [b"", b"*", b"[a-z]?\\", b"\\*", b"\xff\xfe" * 100, b"n" * 100_000, b"\r\n+OK\r\n", b":gen", b"gen"]
    names += [b"deprovisioner:server", b"deprovisioner:gen:" + prefix, prefix, b"{tag}a", "naïve ☃".encode()]
    customer.client().mset({prefix + name: b"\0" for name in names})


def _every_database(customer: Customer) -> None:
    for database in range(16):
        customer.client(db=database).set(f"{customer.prefix}a", 1)
    customer.client().set(f"{customer.prefix}b", 1)
    customer.client().move(f"{customer.prefix}b", 15)


def _expiring(customer: Customer) -> None:
    pipe = customer.client().pipeline(transaction=False)
    for n in range(5_000):
        pipe.set(f"{customer.prefix}{n}", n, px=1 + n % 1_000)
    pipe.set(f"{customer.prefix}gen", 1, px=50)
    pipe.execute()


def _streams(customer: Customer) -> None:
    client, stream = customer.client(), f"{customer.prefix}s"
    for group in range(10):
        client.xgroup_create(stream, f"g{group}", mkstream=True)
    pipe = client.pipeline()
    for n in range(2_000):
        pipe.xadd(stream, {"n": n})
    pipe.execute()
    for group in range(10):
        client.xreadgroup(f"g{group}", "c", {stream: ">"}, count=100)
    customer.keeps(lambda: customer.client().xreadgroup("g0", "d", {stream: ">"}, block=1_000))


def _big_values(customer: Customer) -> None:
    client = customer.client()
    client.hset(f"{customer.prefix}h", mapping={f"f{n}": n for n in range(50_000)})
    client.rpush(f"{customer.prefix}l", *range(50_000))
    client.setrange(f"{customer.prefix}z", 20_000_000, "x")


def _open_multi(customer: Customer) -> None:
    for _ in range(20):
        pipe = customer.held().connection
        pipe.send_command("MULTI")
        pipe.send_command("SET", f"{customer.prefix}late", 1)
        assert [pipe.read_response(), pipe.read_response()] == [b"OK", b"QUEUED"]


def _watching(customer: Customer) -> None:
    for _ in range(20):
        customer.held().execute_command("WATCH", f"{customer.prefix}gen", f"{customer.prefix}a")


def _blocked(customer: Customer) -> None:
    for n in range(50):
        customer.held().connection.send_command("BLPOP" if n % 2 else "BZPOPMIN", f"{customer.prefix}{n}", 0)


def _subscribed(customer: Customer) -> None:
    for n in range(20):
        listener = customer.client().pubsub()
        customer.open.callback(listener.close)
        listener.subscribe(f"{customer.prefix}{n}", f"{customer.prefix}all")
        listener.psubscribe(f"{customer.prefix}*")
        listener.get_message(timeout=5)


def _spam(customer: Customer) -> None:
    _subscribed(customer)
    client = customer.client()
    customer.keeps(lambda: client.publish(f"{customer.prefix}all", "x" * 10_000))


def _hundreds_of_connections(customer: Customer) -> None:
    for _ in range(200):
        customer.held().set(f"{customer.prefix}a", 1)


def _reconnecting(customer: Customer) -> None:
    def once() -> None:
        with redis.Redis.from_url(customer.opens["url"], retry=None, socket_timeout=5) as client:
            client.set(f"{customer.prefix}{uuid.uuid4()}", 1)
        time.sleep(0.02)

    customer.keeps(once)


def _writing(customer: Customer) -> None:
    client = customer.client()
    customer.keeps(lambda: client.mset({f"{customer.prefix}{uuid.uuid4()}": "x" * 100 for _ in range(100)}))


def _reads_nothing(customer: Customer) -> None:
    customer.client().set(f"{customer.prefix}a", "x" * 1_000_000)
    for _ in range(5):
        customer.raw(f"GET {customer.prefix}a\r\n".encode() * 20)


def _half_a_command(customer: Customer) -> None:
    for _ in range(20):
        customer.raw(b"*3\r\n$3\r\nSET\r\n$5\r\n")


def _reply_off(customer: Customer) -> None:
    customer.raw(b"CLIENT REPLY OFF\r\n", *(f"SET {customer.prefix}{n} 1\r\n".encode() for n in range(10_000)))
    eventually(lambda: customer.client().exists(f"{customer.prefix}9999"), within=10)


def _scripts(customer: Customer) -> None:
    loop = "redis.call('SET', KEYS[1], 1) while true do end"
    for verb in ("EVAL", "EVAL_RO"):
        customer.refused(verb, loop, 1, f"{customer.prefix}a")
    customer.refused("SCRIPT", "LOAD", loop)
    customer.refused("EVALSHA", "0" * 40, 0)


def _functions(customer: Customer) -> None:
    customer.refused("FUNCTION", "LOAD", "#!lua name=x\nredis.register_function('x', function() while true do end end)")
    customer.refused("FCALL", "x", 0)
    customer.refused("FUNCTION", "FLUSH")


def _spying(customer: Customer) -> None:
    client = customer.held()
    for command in ("CLIENT TRACKING ON BCAST", "CLIENT NO-EVICT ON", "MONITOR", "CLIENT LIST", "PUBSUB CHANNELS"):
        customer.refused(*command.split())
    assert client.ping()


def _other_names(customer: Customer) -> None:
    client, key = customer.client(), f"{customer.prefix}a"
    client.set(key, 1)
    for command in ("RENAME", "RENAMENX", "COPY", "LMOVE"):
        for other in (f"deprovisioner:gen:{customer.prefix}", customer.prefix[:-1], "other:a", "deprovisioner:server"):
            more = ("LEFT", "LEFT") if command == "LMOVE" else ()
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(command, key, other, *more)


def _itself_again(customer: Customer) -> None:
    """It would give itself another password, or come back under another user."""
    customer.refused("ACL", "SETUSER", customer.manifest["user"], ">mine")
    customer.refused("ACL", "SETUSER", "mine", "on", "nopass", "+@all", "~*")
    customer.refused("CONFIG", "SET", "requirepass", "")


# The teardowns of a group run beside each other, and beside an honest neighbour's.
PREPARATIONS: dict[str, dict[str, Callable[[Customer], None]]] = {
    "the key in which older versions kept the generation": {
        "60 MB": _gen(b"x" * 60_000_000),
        "NUL and escapes": _gen(b"a\0\xff\xed\xa0\x80\r\n\x1b[2J"),
        "another's": _gen(str(uuid.uuid4()).encode()),
        "a list": _typed("RPUSH", *range(1_000)),
        "a set": _typed("SADD", 1, 2),
        "a sorted set": _typed("ZADD", 1, "a"),
        "a hash": _typed("HSET", "f", "v"),
        "a stream": _typed("XADD", "*", "f", "v"),
    },
    "100,000 keys": {"100,000": _many_keys},
    "keys": {
        "odd names": _odd_names,
        "every database": _every_database,
        "expiring": _expiring,
        "streams": _streams,
        "big values": _big_values,
    },
    "connections": {
        "MULTI": _open_multi,
        "WATCH": _watching,
        "blocked": _blocked,
        "subscribed": _subscribed,
        "200": _hundreds_of_connections,
        "reads nothing": _reads_nothing,
        "half a command": _half_a_command,
        "reply off": _reply_off,
    },
    "never at rest": {"spam": _spam, "reconnecting": _reconnecting, "writing": _writing},
    "what is not allowed": {
        "scripts": _scripts,
        "functions": _functions,
        "spying": _spying,
        "other names": _other_names,
        "itself again": _itself_again,
    },
}


# -- the test ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["valkey", pytest.param("redis", marks=pytest.mark.proof)])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_servers.running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def namespace(db: Connection, own: RedisServer) -> Iterator[Callable[[], Customer]]:
    """Makes a resource through outbox and runner, with the service's documented account."""
    with ExitStack() as open_:

        def make() -> Customer:
            new = NewResource(tenant="acme", kind="redis", backend="redis-main", name="n", manifest=None)
            resources.register(db, new, actor="me")
            (claim,) = claims(db, backend="redis-main")
            Run(claim, Redis(own.service_dsn), worker="w")()
            resource, sealed = resources.find(db, claim.resource_id)
            assert resource.manifest is not None
            assert sealed is not None
            return Customer(resource.id, resource.manifest, credentials.unseal(sealed), open_)

        yield make


def _are_gone(own: RedisServer, customers: Sequence[Customer]) -> None:
    """By the server's own word: no login, connection or user, no key in any database, none that says whose it was."""
    users = {customer.manifest["user"] for customer in customers}
    assert not users & own.users()
    assert [client for client in own.client.client_list() if client["user"] in users] == []
    for name in own.client.info("keyspace"):
        with redis.Redis.from_url(f"{own.url.removesuffix('/0')}/{name.removeprefix('db')}") as there:
            keys = list(there.scan_iter(count=10_000))
        assert [key for key in keys if any(customer.prefix.encode() in key for customer in customers)] == []
    for customer in customers:
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(customer.opens["url"], retry=None).ping()


def _torn_down(db: Connection, own: RedisServer, *customers: Customer) -> None:
    """Their teardowns run beside each other, and each ends in time."""
    before = stored(db)
    for customer in customers:
        jobs.enqueue(db, customer.resource, actor="me")
    began, backend, patience = time.monotonic(), Redis(own.service_dsn), SECONDS * slowness()
    with ThreadPoolExecutor(len(customers)) as pool:
        while due := claims(db, len(customers), backend="redis-main"):
            assert time.monotonic() - began < patience
            for ended in [pool.submit(Run(claim, backend, worker="w")) for claim in due]:
                ended.result()
            db.execute(text("UPDATE outbox SET available_at = now() WHERE state = 'pending'"))
    assert time.monotonic() - began < patience
    ends = db.execute(text("SELECT state, attempts, last_error FROM outbox WHERE kind = 'deprovision'")).all()
    assert [end.state for end in ends] == ["succeeded"] * len(customers), ends
    assert stored(db) - before < 64_000, "of all together"
    _are_gone(own, customers)


@pytest.mark.parametrize("group", PREPARATIONS)
def test_what_customers_prepare_does_not_outlive_them(
    db: Connection, own: RedisServer, namespace: Callable[[], Customer], group: str
) -> None:
    neighbour, bystander = namespace(), namespace()
    for honest in (neighbour, bystander):
        honest.client().mset({f"{honest.prefix}{n}": n for n in range(100)})
    attackers = []
    for prepare in PREPARATIONS[group].values():
        attackers.append(namespace())
        prepare(attackers[-1])
    _torn_down(db, own, neighbour, *attackers)
    assert bystander.client().mget([f"{bystander.prefix}{n}" for n in range(100)]) == [b"%d" % n for n in range(100)]
    Redis(own.service_dsn).teardown(bystander.manifest, 1)


@contextmanager
def _memory_ends(own: RedisServer) -> Iterator[None]:
    own.client.config_set("maxmemory", int(own.client.info("memory")["used_memory"]) + 10_000_000)
    try:
        yield
    finally:
        own.client.config_set("maxmemory", 0)


def test_a_customer_that_fills_the_memory_does_not_keep_its_access(
    db: Connection, own: RedisServer, namespace: Callable[[], Customer]
) -> None:
    attacker, neighbour = namespace(), namespace()
    with _memory_ends(own):
        client = attacker.client()
        fill = (client.set(f"{attacker.prefix}{n}", "x" * 100_000) for n in range(1_000))
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            list(fill)
        attacker.keeps(lambda: client.set(f"{attacker.prefix}{uuid.uuid4()}", "x" * 10_000))
        _torn_down(db, own, attacker, neighbour)
        assert own.client.set("there is room again", 1)
    own.client.delete("there is room again")
