"""The customers of a soak: they make, use and delete, all at once and again and again; and who comes after them.

The ledger holds what customers know: what they asked for and what they were told. Nothing here reads the product's
tables.
"""

import datetime as dt
import itertools
import queue
import random
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from deprovisioner.demo.witnesses import Holding
from tests.soak.stage import POSTGRES, REDIS, TENANTS, Stage
from tests.soak.strangers import PATIENCE_SECONDS, Newcomer, database, fill, namespace, patiently
from tests.support.processes import client

THREADS_A_TENANT = 2
BATCH = 6  # born together
POOL = 6  # alive at once for each thread, beside a batch
STAY = 2  # of each thread, alive at the end
STORM = (1, 1, 2, 3, 5)  # DELETEs at once
EARLY, EXPIRING = 0.12, 0.06  # deleted in the middle of the birth; never deleted, but with an expires_at
UNDONE = 0.2  # of the DELETEs of what lives: taken back
KEPT = 0.1  # of the others: with a final snapshot
REUSED = 0.06  # whose names are taken by somebody else as soon as they are free
BIRTH_SECONDS = 20  # then the DELETE comes all the same
_NUMBERS = itertools.count()

Json = dict[str, Any]


@dataclass
class Life:
    """One resource, as its customer knows it."""

    key: str
    kind: str
    backend: str
    tenant: str
    fate: str  # stays, deleted, early, expires
    id: str = ""
    holding: Holding | None = None
    asked: int = 0  # DELETEs sent
    winners: int = 0  # of them answered 202
    unanswered: int = 0
    refused: int = 0
    undone: int = 0  # DELETEs that were taken back
    kept: bool = False  # its DELETE asked for a snapshot
    filled: bool = False


class Unanswered(Exception):
    """Nobody answered, in all this time."""


class Caller:
    """Someone with a token, who asks again, at the other API process, until there is an answer."""

    def __init__(self, urls: list[str], token: str, told: Counter[str]) -> None:
        # No certificates: to load them is most of what a client costs, and this is plain HTTP.
        self._turn = itertools.cycle([client(url, token, verify=False) for url in urls])
        self.told = told
        self.unanswered = 0

    def ask(self, method: str, path: str, **words: Any) -> httpx.Response:
        """The first answer that is not a 5xx."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = next(self._turn).request(method, path, **words)
            except httpx.HTTPError as error:
                self.told[type(error).__name__] += 1
            else:
                self.told[str(answer.status_code)] += 1
                if answer.status_code < 500:
                    return answer
            self.unanswered += 1
            time.sleep(0.2)
        raise Unanswered(f"{method} {path}: no answer in {PATIENCE_SECONDS} s")

    def listing(self, path: str, **filters: Any) -> list[Json]:
        """All pages."""
        found: list[Json] = []
        cursor: str | None = None
        while True:
            words = filters | {"limit": 200} | ({"cursor": cursor} if cursor else {})
            page = self.ask("GET", path, params=words).raise_for_status().json()
            found += page["items"]
            if (cursor := page["next_cursor"]) is None:
                return found


class Load:
    """All customers. `begin`, then `end`; the ledger is what they know."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.seed = seed
        self.lives: dict[str, Life] = {}
        self.newcomers: list[Newcomer] = []
        self.bystanders: list[Newcomer] = []
        self.told: Counter[str] = Counter()
        self.failures: list[str] = []
        self.early_words: list[str] = []  # "deleted", said while the server still had it
        self.over = threading.Event()
        self._freed: queue.SimpleQueue[tuple[Life, bool]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.operator = Caller(stage.urls, stage.operator, self.told)
        self.protected: list[Life] = []

    # -- what must never be touched ----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Bystanders: living resources, one of each backend protected; and look-alikes made by hand."""
        boss = Customer(self, TENANTS[0], random.Random(f"{self.seed}-bystanders"))
        stays = [boss.bear(backend, "stays", protected=n == 0) for backend in (*POSTGRES, *REDIS) for n in range(2)]
        while waiting := [life for life in stays if not life.holding]:
            boss.use(waiting)
        self.protected = stays[::2]
        for life in self.protected:
            names = life.holding.names  # type: ignore[union-attr]
            if life.kind == "postgres":
                for name in (names["database"][:-1], f"zz_del_{uuid.uuid4()}", f"zz_new_{uuid.uuid4()}"):
                    self.bystanders.append(database(self.stage, life.backend, name, f"{name}_app"[-60:]))
            else:
                for prefix in (names["prefix"][:-2] + ":", names["prefix"][:-1] + "x:", f"{uuid.uuid4()}:"):
                    self.bystanders.append(namespace(self.stage, life.backend, f"by_{prefix[:-1]}", prefix))

    # -- customers ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Let them all loose."""
        jobs: list[Callable[[], None]] = [self._newcomers] * 2
        for number, tenant in enumerate(TENANTS * THREADS_A_TENANT):
            jobs.append(Customer(self, tenant, random.Random(f"{self.seed}-{number}")).live)
        self._threads = [threading.Thread(target=self._guarded, args=(job,), daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Tell them that it is over; `ended` says when they are done."""
        self.over.set()

    @property
    def ended(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - a customer who gave up is a finding, whatever it was
            self.failures.append(f"{type(error).__name__}: {error}")

    def freed(self, life: Life, *, eager: bool) -> None:
        """The life's names will be free: soon, or (`eager`) from the moment the teardown has renamed it away."""
        self._freed.put((life, eager))

    # -- newcomers ---------------------------------------------------------------------------------------------

    def _newcomers(self) -> None:
        """Take freed names, as somebody would who knows nothing of the product."""
        while True:
            try:
                life, eager = self._freed.get(timeout=0.5)
            except queue.Empty:
                if self.over.is_set():
                    return
                continue
            if eager or self._wait_deleted(life):
                self._take_names(life, eager=eager)

    def _take_names(self, life: Life, *, eager: bool) -> None:
        stage, backend, names = self.stage, life.backend, life.holding.names  # type: ignore[union-attr]
        witness = stage.redis[backend] if life.kind == "redis" else stage.pg[backend]
        if not eager and patiently(lambda: witness.bears(names)):
            self.early_words.append(life.id)
        if life.kind == "redis":
            made = patiently(lambda: namespace(stage, backend, names["user"], names["prefix"]))
        else:
            role = "postgres" if eager else names["role"]
            made = patiently(lambda: database(stage, backend, names["database"], role, names["oid"]))
        made.resource = life.id
        self.newcomers.append(made)

    def _wait_deleted(self, life: Life) -> bool:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if self.operator.ask("GET", f"/v1/resources/{life.id}").json()["status"] == "deleted":
                return True
            time.sleep(0.1)
        return False


class Customer:
    """One thread of a tenant: bears a batch, uses it, deletes the oldest of what it has."""

    def __init__(self, load: Load, tenant: str, dice: random.Random) -> None:
        self.load = load
        self.tenant = tenant
        self.dice = dice
        self.caller = Caller(load.stage.urls, load.stage.tokens[tenant], load.told)
        self.others = [Caller(load.stage.urls, load.stage.tokens[tenant], load.told) for _ in range(max(STORM))]

    def live(self) -> None:
        pool: deque[Life] = deque()
        with ThreadPoolExecutor(len(self.others)) as storm:
            while not self.load.over.is_set():
                batch = [self.bear(self.dice.choice(POSTGRES + REDIS), self._fate()) for _ in range(BATCH)]
                for life in [life for life in batch if life.fate == "early"]:
                    self.delete(life, storm)
                pool.extend(self.use([life for life in batch if life.fate != "early"]))
                while len(pool) > POOL:
                    life = pool.popleft()
                    if life.filled and self.dice.random() < UNDONE:
                        self.take_back(life, storm)
                        pool.append(life)
                    else:
                        self.delete(life, storm)
                if self.load.protected and self.tenant == TENANTS[0]:
                    self.delete(self.dice.choice(self.load.protected), storm)
            for life in list(pool)[STAY:]:
                self.delete(life, storm)

    def bear(self, backend: str, fate: str, **words: Any) -> Life:
        kind = "postgres" if backend in POSTGRES else "redis"
        life = Life(f"soak-{next(_NUMBERS)}", kind, backend, self.tenant, fate)
        self.load.lives[life.key] = life
        body = {"kind": kind, "backend": backend, "name": life.key} | words
        if fate == "expires":
            body["expires_at"] = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=6)).isoformat()
        answer = self.caller.ask("POST", "/v1/resources", json=body, headers={"Idempotency-Key": life.key})
        if answer.status_code == 202:
            life.id = answer.json()["resource"]["id"]
        elif fate != "expires":  # a time that has passed before anybody answered
            raise Unanswered(f"POST {body}: {answer.status_code} {answer.text}")
        return life

    def use(self, batch: list[Life]) -> list[Life]:
        """Wait until they live, and put data in; what a customer may delete later."""
        waiting = {life.id: life for life in batch if life.id}
        deadline = time.monotonic() + BIRTH_SECONDS
        while any(life.fate != "expires" for life in waiting.values()) and time.monotonic() < deadline:
            time.sleep(0.15)
            words = {"status": "active", "limit": 50}
            for seen in self.caller.ask("GET", "/v1/resources", params=words).json()["items"]:
                if (life := waiting.pop(seen["id"], None)) is None:
                    continue
                secret = self.caller.ask("GET", f"/v1/resources/{life.id}/credentials").json()
                url = secret.get("dsn") or secret.get("url")
                if url:  # it may have expired meanwhile
                    life.holding = Holding(life.kind, seen["manifest"], url, life.id)
                    life.filled = patiently(
                        lambda it=life.holding: fill(it), unless=lambda mortal=life.fate == "expires": mortal
                    )
            if self.load.over.is_set():
                break
        return [life for life in batch if life.fate != "expires"]

    def delete(self, life: Life, storm: ThreadPoolExecutor) -> None:
        """Several at once; each is repeated until it is answered."""
        reused = life.holding is not None and life.fate == "deleted" and self.dice.random() < REUSED
        eager = reused and life.kind == "postgres" and self.dice.random() < 0.3
        life.kept = life.filled and self.dice.random() < KEPT
        times = self.dice.choice(STORM)
        list(storm.map(lambda caller: self._delete(life, caller), self.others[:times]))
        if reused:
            self.load.freed(life, eager=eager)

    def take_back(self, life: Life, storm: ThreadPoolExecutor) -> None:
        """A DELETE with a grace, and its restore. A DELETE that arrives late has the key of one that was taken back."""
        life.undone += 1
        key = {"Idempotency-Key": f"{life.key}-{life.undone}"}
        path, times = f"/v1/resources/{life.id}", self.dice.choice(STORM)
        asked = [*storm.map(lambda caller: caller.ask("DELETE", f"{path}?grace=1h", headers=key), self.others[:times])]
        time.sleep(self.dice.uniform(0, 1))  # the restore comes at any step
        asked.append(self.caller.ask("POST", f"{path}/restore", json={"reason": "soak"}, headers=key))
        for answer in asked:
            # Where its last restore is still on its way, a DELETE is refused.
            if answer.status_code not in (200, 202) and answer.json()["code"] != "restoring":
                raise Unanswered(f"{life.id} was not taken back: {answer.status_code} {answer.text}")

    def _delete(self, life: Life, caller: Caller) -> None:
        before = caller.unanswered
        life.asked += 1
        how = {"snapshot": "required" if life.kept else "off"}
        answer = caller.ask("DELETE", f"/v1/resources/{life.id}", params=how)
        life.winners += answer.status_code == 202
        life.refused += answer.status_code not in (200, 202)
        life.unanswered += caller.unanswered - before

    def _fate(self) -> str:
        dice = self.dice.random()
        return "early" if dice < EARLY else "expires" if dice < EARLY + EXPIRING else "deleted"
