"""RabbitMQ as a Subject of the conformance suite, with the documented account."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, ClassVar

import amqp

from deprovisioner.sdk import Backend, Json
from deprovisioner.up import servers as embedded
from outbox.kinds.rabbitmq import KIND
from tests.support import accounts, rabbitmq_servers
from tests.support.rabbitmq_servers import RabbitmqServer
from worker.backends.rabbitmq import Rabbitmq

_MESSAGES = 100
_ALL = {"configure": ".*", "write": ".*", "read": ".*"}


@contextmanager
def subject() -> Iterator["Subject"]:
    """On a node of its own."""
    with rabbitmq_servers.running() as server, on(server) as made:
        yield made


@contextmanager
def on(server: RabbitmqServer) -> Iterator["Subject"]:
    """On a node that others use too. What was made by hand is removed again."""
    before = {word: server.names(word) for word in ("vhosts", "users")}
    with ExitStack() as life:
        yield Subject(server, life)
    for word, names in before.items():
        for name in server.names(word) - names - {"deprovisioner:server", "deprovisioner:kept"}:
            server.api("DELETE", word, name)


class Subject:
    """See `deprovisioner.conformance.Subject`."""

    calls = ("worker.backends.rabbitmq.session.Session._call",)
    not_shown: ClassVar[Mapping[str, str]] = {
        "not authoritative": "no node repeats another and lags; that one which is cut off from the majority is not "
        "believed, is shown on a cluster of three (`tests/worker/backends/rabbitmq/test_cluster.py`)",
    }

    def __init__(self, server: RabbitmqServer, life: ExitStack) -> None:
        self.server, self._life = server, life
        self._other: RabbitmqServer | None = None

    def backend(self) -> Backend:
        return Rabbitmq(self.server.service_dsn)

    def dead(self) -> Backend:
        return Rabbitmq(f"http://x:{accounts.PASSWORD}@127.0.0.1:{embedded.free_port()}")

    def secrets(self, credentials: Json) -> list[str]:
        user = self.server.api("GET", "users", credentials["user"])
        hashes = [user["password_hash"]] if user else []
        return [credentials["password"], accounts.PASSWORD, *hashes]

    def bears(self, manifest: Json) -> bool:
        return self.server.bears(manifest)

    def put(self, credentials: Json) -> None:
        with closing(self.server.client(credentials)) as customer:
            channel = customer.channel()
            channel.queue_declare("kept", durable=True, auto_delete=False)
            for n in range(_MESSAGES):
                channel.basic_publish(amqp.Message(str(n), delivery_mode=2), routing_key="kept")

    def has(self, credentials: Json) -> bool:
        with closing(self.server.client(credentials)) as customer:
            found = customer.channel().queue_declare("kept", passive=True)
            return bool(found.message_count == _MESSAGES)

    def can_log_in(self, credentials: Json) -> bool:
        return self.server.can_log_in(credentials)

    @contextmanager
    def session(self, credentials: Json) -> Iterator[Callable[[], None]]:
        customer = self.server.client(credentials)
        channel = customer.channel()

        def use() -> None:
            channel.queue_declare(f"q_{uuid.uuid4().hex}", exclusive=True)

        try:
            yield use
            with suppress(amqp.exceptions.AMQPError, OSError):
                customer.close()
        finally:
            customer.collect()

    def made_by_hand(self) -> tuple[Json, Json]:
        unique = uuid.uuid4().hex
        return self._made(f"or/de%2Frs {unique}", f"app/{unique}")

    def neighbours(self, manifest: Json) -> list[Json]:
        vhost, user = manifest["vhost"], manifest["user"]
        pairs = [
            (f"{vhost}2", f"{user}2"),
            (vhost[:-1], user[:-1]),
            (vhost.upper(), user.upper()),
            (vhost.replace("_", "%", 1).replace("%2F", "/", 1), user.replace("_", "%", 1).replace("/", "%2F", 1)),
        ]
        return [self._made(*names)[1] for names in pairs if names != (vhost, user)]

    def disguises(self) -> Iterator[Callable[[Json], None]]:
        """A vhost made again; a user made again; only a stranger left; marks copied to other names."""
        yield lambda manifest: self._remade("vhosts", manifest["vhost"])
        yield lambda manifest: self._remade("users", manifest["user"])

        def stranger(manifest: Json) -> None:
            self.server.api("DELETE", "vhosts", manifest["vhost"])
            self._remade("users", manifest["user"])

        def copied(manifest: Json) -> None:
            self.destroyed_by_hand(manifest)
            tags = [f"deprovisioner:gen:{manifest['generation']}"]
            self.server.api("PUT", "vhosts", f"copy_{manifest['vhost']}", body={"tags": tags})

        def user_copied(manifest: Json) -> None:
            self.destroyed_by_hand(manifest)
            tags = [f"deprovisioner:gen:{manifest['generation']}"]
            self.server.api("PUT", "users", f"copy_{manifest['user']}", body={"password_hash": "", "tags": tags})

        yield from (stranger, copied, user_copied)

    @contextmanager
    def elsewhere(self) -> Iterator[Backend]:
        if self._other is None:
            self._other = self._life.enter_context(rabbitmq_servers.running(account=False))
            self._other.service_dsn = self._other.account(accounts.NAME)  # the same, in a moment
        yield Rabbitmq(self._other.service_dsn)

    @contextmanager
    def not_authoritative(self) -> Iterator[tuple[Backend, Backend]]:
        raise NotImplementedError(self.not_shown["not authoritative"])
        yield

    def weaker(self) -> Iterator[tuple[str, Backend]]:
        name = f"weak_{uuid.uuid4().hex}"
        yield "administrator", Rabbitmq(self.server.account(name, "policymaker,monitoring,management"))

    def destroyed_by_hand(self, manifest: Json) -> None:
        for word in ("vhost", "user"):
            self.server.api("DELETE", f"{word}s", manifest[word])

    def _made(self, vhost: str, user: str) -> tuple[Json, Json]:
        password = "made-by-hand"
        self.server.api("PUT", "vhosts", vhost, body={})
        self.server.api("DELETE", "permissions", vhost, "witness")
        self.server.api("PUT", "users", user, body={"password": password, "tags": ""})
        self.server.api("PUT", "permissions", vhost, user, body=_ALL)
        credentials = {"vhost": vhost, "user": user, "password": password, "port": self.server.port}
        return KIND.manifest(vhost=vhost, user=user), credentials

    def _remade(self, word: str, name: str) -> None:
        self.server.api("DELETE", word, name)
        body: dict[str, Any] = {"password": "p", "tags": ""} if word == "users" else {}
        self.server.api("PUT", word, name, body=body)
