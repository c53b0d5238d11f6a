"""What is done to the product and its servers: one fault after another, dealt from a shuffled deck."""

import random
import signal
import time
from collections.abc import Callable

import psycopg2

from outbox import doorbell
from tests.soak.stage import APIS, LEASE_SECONDS, POSTGRES, REDIS, WORKERS, Stage

EVERY_SECONDS = (3.0, 5.0)
_HUNT_SECONDS = 1.5  # how long to wait for a moment that may not come
_END_DROPS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE query ILIKE 'DROP DATABASE%' AND state = 'active' AND application_name = 'deprovisioner'"""
_END_ALL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IS NOT NULL AND pid <> pg_backend_pid()"
)


class Faults:
    """`struck` is what was done: seconds since `began`, the kind, whom it met."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.random = random.Random(f"{seed}-faults")
        self.began = time.monotonic()
        self.struck: list[tuple[float, str, str]] = []
        self._deck: list[tuple[str, Callable[[], str]]] = []
        self._next = self.began + EVERY_SECONDS[1]

    def tick(self) -> None:
        """Strike when it is time."""
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + self.random.uniform(*EVERY_SECONDS)
        if not self._deck:
            self._deck = self._kinds()
            self.random.shuffle(self._deck)
        kind, strike = self._deck.pop()
        at = now - self.began
        try:
            met = strike()
        except Exception as error:  # noqa: BLE001 - its victim was away just then: told, and no reason to end
            met = f"nobody: {str(error).splitlines()[0]}"
        self.struck.append((at, kind, met))

    def _kinds(self) -> list[tuple[str, Callable[[], str]]]:
        stage = self.stage
        return [
            ("worker killed", lambda: self._send(self._a("worker", WORKERS), signal.SIGKILL)),
            ("worker stood still past its lease", lambda: self._still(self._a("worker", WORKERS), LEASE_SECONDS + 2)),
            ("beat killed", lambda: self._send("beat", signal.SIGKILL)),
            ("API killed", lambda: self._send(self._a("api", APIS), signal.SIGKILL)),
            ("control PostgreSQL restarted fast", lambda: self._send("control", signal.SIGINT)),
            ("control PostgreSQL restarted immediate", lambda: self._send("control", signal.SIGQUIT)),
            ("control connections cut", lambda: f"{len(stage.control.query(_END_ALL))} connections"),
            ("backend PostgreSQL restarted fast", lambda: self._send(self._one(POSTGRES), signal.SIGINT)),
            ("backend PostgreSQL restarted immediate", lambda: self._send(self._one(POSTGRES), signal.SIGQUIT)),
            ("connections cut in DROP", self._cut_drops),
            ("backend PostgreSQL stood still", lambda: self._still(self._one(POSTGRES), self.random.uniform(2, 5))),
            ("backend Valkey restarted", lambda: self._send(self._one(REDIS), signal.SIGTERM)),
            ("backend Valkey killed", lambda: self._send(self._one(REDIS), signal.SIGKILL)),
            ("backend Valkey stood still", lambda: self._still(self._one(REDIS), self.random.uniform(2, 6))),
            ("broker killed", lambda: self._send("broker", signal.SIGKILL)),
            ("broker emptied", lambda: f"FLUSHALL {stage.broker.client.flushall()}"),
            ("doorbell rung a hundredfold", self._ring),
        ]

    def _a(self, part: str, count: int) -> str:
        return self._one([f"{part}-{number}" for number in range(count)])

    def _one(self, names: list[str] | tuple[str, ...]) -> str:
        up = [name for name in names if self.stage.is_up(name)]
        return self.random.choice(up or list(names))

    def _send(self, name: str, number: signal.Signals) -> str:
        self.stage.send(name, number)
        return name

    def _still(self, name: str, seconds: float) -> str:
        self.stage.stand_still(name, seconds)
        return f"{name} for {seconds:.1f} s"

    def _cut_drops(self) -> str:
        name = self._one(POSTGRES)
        connection = psycopg2.connect(self.stage.pg[name].dsn)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                deadline = time.monotonic() + _HUNT_SECONDS
                while time.monotonic() < deadline:
                    cursor.execute(_END_DROPS)
                    if cursor.rowcount:
                        return f"{name}, {cursor.rowcount} of them"
        finally:
            connection.close()
        return f"{name}, none of them: no DROP came by"

    def _ring(self) -> str:
        for task in (doorbell.DRAIN, doorbell.SWEEP) * 50:
            doorbell.celery.sender().send_task(task, ignore_result=True)
        return "all workers"
