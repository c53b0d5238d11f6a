"""The reference provisioner as a Subject of the conformance suite."""

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import httpx

from deprovisioner.sdk import Backend, Json
from deprovisioner.up import servers as embedded
from outbox.kinds.webhook import KIND
from tests.support.provisioners import SECRET, Served
from worker.backends.webhook import Webhook


@contextmanager
def subject() -> Iterator["Subject"]:
    """On a provisioner of its own."""
    with _served() as served:
        yield Subject(served)


@contextmanager
def _served() -> Iterator[Served]:
    served = Served()
    try:
        yield served
    finally:
        served.stop()
        shutil.rmtree(served.notebooks.file.parent)


class Subject:
    """See `deprovisioner.conformance.Subject`."""

    calls = ("worker.backends.webhook.client.Client.send",)
    not_shown: ClassVar[Mapping[str, str]] = {
        "not authoritative": "the protocol knows one provisioner, and no replicas of it",
        "least rights": "a provisioner has one secret, which opens all that it declares",
    }

    def __init__(self, served: Served) -> None:
        self._served = served

    def backend(self) -> Backend:
        return Webhook(self._served.dsn())

    def dead(self) -> Backend:
        return Webhook(f"http://127.0.0.1:{embedded.free_port()}/?secret={SECRET}")

    def secrets(self, credentials: Json) -> list[str]:
        return [credentials["password"], SECRET.removeprefix("whsec_")]

    def bears(self, manifest: Json) -> bool:
        asked = "SELECT count(*) FROM notebooks WHERE external = ? OR generation = ?"
        return self._served.query(asked, manifest["external"], manifest["generation"]) != [(0,)]

    def put(self, credentials: Json) -> None:
        with self._customer(credentials) as customer:
            customer.put(credentials["user"], content="kept").raise_for_status()

    def has(self, credentials: Json) -> bool:
        with self._customer(credentials) as customer:
            answer = customer.get(credentials["user"])
        return (answer.status_code, answer.text) == (200, "kept")

    def can_log_in(self, credentials: Json) -> bool:
        with self._customer(credentials) as customer:
            return customer.get(credentials["user"]).status_code == 200

    @contextmanager
    def session(self, credentials: Json) -> Iterator[Callable[[], None]]:
        with self._customer(credentials) as customer:
            yield lambda: customer.get(credentials["user"]).raise_for_status() and None

    def made_by_hand(self) -> tuple[Json, Json]:
        external = f"orders_{uuid.uuid4().hex}"
        return KIND.manifest(external=external), self._by_hand(external)

    def disguises(self) -> Iterator[Callable[[Json], None]]:
        """A notebook under another name, and one whose name another resource has."""

        def by_hand(change: str) -> Callable[[Json], None]:
            asked = f"UPDATE notebooks SET {change} WHERE external = ?"
            return lambda manifest: self._served.query(asked, str(uuid.uuid4()), manifest["external"]) and None

        yield from (by_hand("external = ?"), by_hand("generation = ?"))

    def neighbours(self, manifest: Json) -> list[Json]:
        near = (f"{manifest['external']}x", f"x{manifest['external']}", manifest["external"].replace("_", "x", 1))
        return [self._by_hand(one) for one in near]

    @contextmanager
    def elsewhere(self) -> Iterator[Backend]:
        with _served() as other:
            yield Webhook(other.dsn())

    def not_authoritative(self) -> None:
        raise AssertionError(self.not_shown["not authoritative"])

    def weaker(self) -> None:
        raise AssertionError(self.not_shown["least rights"])

    def destroyed_by_hand(self, manifest: Json) -> None:
        self._served.query("DELETE FROM notebooks WHERE external = ?", manifest["external"])

    def _by_hand(self, external: str) -> Json:
        return {"user": external, "password": self._served.by_hand(external)}

    def _customer(self, credentials: Json) -> httpx.Client:
        login = (credentials["user"], credentials["password"])
        return httpx.Client(base_url=f"{self._served.url}/notebooks", auth=login)
