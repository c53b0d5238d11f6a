"""Valkey 9 and Redis 7 as Subjects of the conformance suite, with the documented account."""

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import redis

from deprovisioner.sdk import Backend, Json
from deprovisioner.up import servers as embedded
from outbox.kinds.redis import KIND
from tests.support import accounts, redis_servers
from tests.support.servers import OLD_REDIS_PROGRAM, server_folder, serving_old_redis, serving_redis
from tests.support.witness import RedisServer
from worker.backends.redis import Redis

_KEYS = 1200  # more than one batch of a SCAN


@contextmanager
def subject() -> Iterator["Subject"]:
    """On a Valkey of its own, from the wheel."""
    with serving_redis() as server, on(server) as made:
        yield made


@contextmanager
def subject7() -> Iterator["Subject"]:
    """On a Redis 7 of its own."""
    with serving_old_redis() as server, on(server, OLD_REDIS_PROGRAM) as made:
        yield made


@contextmanager
def on(server: RedisServer, program: Path | None = None) -> Iterator["Subject"]:
    """On a server that others use too; `program`: its version's. What was made by hand is removed again."""
    users, keys = server.users(), server.keys("")
    with ExitStack() as life:
        yield Subject(server, program, life)
    if others := {user for user in server.users() - users if not user.startswith("deprovisioner:")}:
        server.client.acl_deluser(*others)
    if left := [key for key in server.keys("") - keys if not key.startswith("deprovisioner:server")]:
        server.client.delete(*left)


class Subject:
    """See `deprovisioner.conformance.Subject`."""

    calls = ("redis.Redis.execute_command", "redis.client.Pipeline.execute")
    not_shown: ClassVar[Mapping[str, str]] = {}

    def __init__(self, server: RedisServer, program: Path | None, life: ExitStack) -> None:
        self.server, self._program, self._life = server, program, life
        self._other: RedisServer | None = None

    def backend(self) -> Backend:
        return Redis(self.server.service_dsn)

    def dead(self) -> Backend:
        return Redis(f"redis://x:{accounts.PASSWORD}@127.0.0.1:{embedded.free_port()}/0")

    def secrets(self, credentials: Json) -> list[str]:
        return [credentials["password"], accounts.PASSWORD]

    def bears(self, manifest: Json) -> bool:
        return self.server.bears(manifest)

    def put(self, credentials: Json) -> None:
        with redis.Redis.from_url(credentials["url"]) as customer:
            customer.mset(dict.fromkeys(_keys(credentials), 1))

    def has(self, credentials: Json) -> bool:
        with redis.Redis.from_url(credentials["url"]) as customer:
            return customer.mget(_keys(credentials)) == [b"1"] * _KEYS

    def can_log_in(self, credentials: Json) -> bool:
        try:
            with redis.Redis.from_url(credentials["url"]) as customer:
                customer.ping()
        except redis.AuthenticationError:
            return False
        return True

    @contextmanager
    def session(self, credentials: Json) -> Iterator[Callable[[], None]]:
        with redis.Redis.from_url(credentials["url"], single_connection_client=True, retry=None) as customer:
            yield lambda: customer.set(f"{credentials['prefix']}late", 1)

    def made_by_hand(self) -> tuple[Json, Json]:
        unique = uuid.uuid4().hex
        return self._made(f"app_{unique}", f"or[ds]?_{unique}:")

    def neighbours(self, manifest: Json) -> list[Json]:
        user, prefix = manifest["user"], manifest["prefix"]
        near = {f"x{prefix}", f"{prefix[:-1]}x:", prefix.replace("[ds]", "d").replace("?", "x", 1)} - {prefix}
        return [self._made(f"{user}{n}", one)[1] for n, one in enumerate(near)]

    def disguises(self) -> Iterator[Callable[[Json], None]]:
        """A user copied to another name, a user made again, keys left alone, a generation key that is none."""
        client = self.server.client

        def copied(manifest: Json) -> None:
            mark = f"&deprovisioner:gen:{manifest['generation']}"
            client.execute_command("ACL", "SETUSER", f"copy_{manifest['user']}", "resetchannels", mark)
            client.acl_deluser(manifest["user"])
            client.delete(_generation_key(manifest))

        def made_again(manifest: Json) -> None:
            client.acl_deluser(manifest["user"])
            client.execute_command("ACL", "SETUSER", manifest["user"], "on", ">p")
            client.delete(_generation_key(manifest))

        def left(manifest: Json) -> None:
            client.acl_deluser(manifest["user"])
            client.rename(_generation_key(manifest), f"{manifest['prefix']}other")

        def overwritten(manifest: Json) -> None:
            client.delete(_generation_key(manifest))
            client.rpush(_generation_key(manifest), 1)

        yield from (copied, made_again, left, overwritten)

    @contextmanager
    def elsewhere(self) -> Iterator[Backend]:
        if self._other is None:
            self._other = self._life.enter_context(serving_redis(self._program))
        yield Redis(self._other.service_dsn)

    @contextmanager
    def not_authoritative(self) -> Iterator[tuple[Backend, Backend]]:
        folder, program = server_folder("replica"), "redis" if self._program else "valkey"
        with (
            redis_servers.running(program, folder / "a") as primary,
            redis_servers.running(program, folder / "b") as replica,
        ):
            services = [accounts.valkey(server.url) for server in (primary, replica)]
            redis_servers.replicate(replica, primary)
            replica.client.replicaof("127.0.0.1", embedded.free_port())  # it hears no more from its primary
            yield Redis(services[0]), Redis(services[1])
        shutil.rmtree(folder)

    def weaker(self) -> Iterator[tuple[str, Backend]]:
        (statement,) = accounts.documented("redis")
        for right in ("+acl|setuser", "+acl|getuser", "+get"):
            assert f" {right} " in statement
            name = f"weak_{uuid.uuid4().hex}"
            lacking = statement.replace(accounts.NAME, name).replace("CHANGE-ME", "p").replace(f" {right} ", " ")
            self.server.client.execute_command(*lacking.split())
            yield right, Redis(self.server.url.replace("redis://", f"redis://{name}:p@"))
            self.server.client.acl_deluser(name)

    def destroyed_by_hand(self, manifest: Json) -> None:
        self.server.client.acl_deluser(manifest["user"])
        keys = self.server.keys(manifest["prefix"]) | self.server.keys(_generation_key(manifest))
        self.server.client.delete(_generation_key(manifest), *keys)

    def _made(self, user: str, prefix: str) -> tuple[Json, Json]:
        escaped = "".join(f"\\{c}" if c in "*?[]^\\" else c for c in prefix)
        rules = ("on", ">made-by-hand", f"~{escaped}*", "resetchannels", "+@string", "+@list", "+del", "+ping")
        self.server.client.execute_command("ACL", "SETUSER", user, *rules)
        where = urlsplit(self.server.url)
        url = f"redis://{user}:made-by-hand@{where.hostname}:{where.port}/0"
        credentials = {"url": url, "user": user, "password": "made-by-hand", "prefix": prefix}
        return KIND.manifest(user=user, prefix=prefix), credentials


def _keys(credentials: Json) -> list[str]:
    return [f"{credentials['prefix']}k{n}" for n in range(_KEYS)]


def _generation_key(manifest: Json) -> str:
    return f"deprovisioner:gen:{manifest['prefix']}"
