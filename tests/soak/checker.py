"""The verdict of a soak: from the servers' logs and catalogs, the customers' credentials and the API's answers.

What witnesses what: the log of PostgreSQL, every CREATE and DROP DATABASE that came to its end; the append-only
file of Valkey, every key that was set and removed; the catalogs (pg_database, pg_roles, ACL LIST, SCAN), what is
there now; the customers' own credentials, who can still log in and what is in there.
"""

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from deprovisioner.demo import witnesses
from deprovisioner.demo.witnesses import Holding
from tests.soak.load import Life, Load
from tests.soak.stage import Stage
from tests.soak.strangers import Newcomer, intact
from tests.support import accounts
from tests.support.witness import PgServer
from worker.backends.redis import identity

# What a Redis keeps of the control database: a user and a key.
MEMORY = "deprovisioner:memory:"
_SYSTEM = {"postgres", "template0", "template1", "default", "deprovisioner:", accounts.NAME}

Json = dict[str, Any]


@dataclass
class Verdict:
    """What was found; every list of `broken` names its offenders and must be empty."""

    teardowns: Counter[str] = field(default_factory=Counter)
    broken: dict[str, list[str]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # from the accepted DELETE to gone, sorted
    ended: list[dt.datetime] = field(default_factory=list)  # when each was gone
    facts: dict[str, int] = field(default_factory=dict)


def judge(stage: Stage, load: Load, waited: set[str]) -> Verdict:
    """Everything is quiet: look at what there is, and at what the servers wrote down.

    `waited` are the resources that waited for a person: no measure of how long a teardown takes.
    """
    return _Judge(stage, load, waited)()


class _Judge:
    def __init__(self, stage: Stage, load: Load, waited: set[str]) -> None:
        self.stage = stage
        self.load = load
        self.waited = waited
        self.listed = load.operator.listing("/v1/resources")
        self.by_name: dict[str, list[Json]] = defaultdict(list)
        for resource in self.listed:
            self.by_name[resource["name"]].append(resource)
        self.there = {name: _names_of_postgres(server) for name, server in stage.pg.items()}
        self.there |= {name: _names_of_redis(server.client) for name, server in stage.redis.items()}
        self.done = {name: server.statements() for name, server in stage.pg.items()}
        self.done |= {name: removals(stage.home / name / "appendonlydir") for name in stage.redis}
        self.strange: dict[str, set[str]] = defaultdict(set)  # names that are rightly somebody else's
        for stranger in (*load.newcomers, *load.bystanders):
            self.strange[stranger.backend] |= set(stranger.holding.names.values())

    def __call__(self) -> Verdict:
        found = Verdict()
        found.broken = {
            "lost": list(self._lost()),
            "twice": twice(self.listed, self.done),
            "orphans": list(self._orphans()),
            "newcomers harmed": list(self._harmed(self.load.newcomers)),
            "bystanders harmed": [*self._harmed(self.load.bystanders), *self._astray()],
            "active without object": list(self._births()),
            "DELETEs with two winners": [life.id for life in self.load.lives.values() if life.winners > 1],
            "customers who gave up": self.load.failures,
            "destroyed without their snapshot": sorted(self._wanted_kept() - self._kept()),
            "died by themselves": self.stage.died,
        }
        gone = [r for r in self.listed if r["status"] == "deleted" and r["manifest"] and self._destroyed(r)]
        found.teardowns = Counter(r["kind"] for r in gone)
        found.ended = [dt.datetime.fromisoformat(r["purged_at"]) for r in gone]
        asked = [dt.datetime.fromisoformat(r["deleted_at"]) for r in gone]
        found.seconds = sorted(
            (purged - deleted).total_seconds()
            for deleted, purged, r in zip(asked, found.ended, gone, strict=True)
            if r["id"] not in self.waited
        )
        lives = self.load.lives.values()
        found.facts = {
            "resources": len(self.listed),
            "deleted before anything was made": sum(r["status"] == "deleted" for r in self.listed) - len(gone),
            "unfinished or late births removed": sum(self._destroyed(r) - 1 for r in gone),
            "DELETEs asked": sum(life.asked for life in lives),
            "answers lost and asked again": sum(life.unanswered for life in lives),
            "final snapshots": len(self._kept()),
            "DELETEs taken back": sum(life.undone for life in lives),
            "expired": sum(life.fate == "expires" for life in lives),
            "newcomers": len(self.load.newcomers),
            "said deleted while something was there (late births)": len(self.load.early_words),
            "living at the end": sum(r["status"] == "active" for r in self.listed),
        }
        return found

    # -- what must be gone -------------------------------------------------------------------------------------

    def _lost(self) -> Iterator[str]:
        for life in self.load.lives.values():
            known = self.by_name[life.key]
            if len(known) > 1:
                yield f"{life.key}: one Idempotency-Key made {[r['id'] for r in known]}"
            if not _must_be_gone(life):
                continue
            if not known:
                if life.asked:
                    yield f"{life.id}: the API no longer knows it"
                continue
            resource, signs = known[0], []
            if resource["status"] != "deleted":
                signs.append(f"still {resource['status']}")
            if left := _names(resource) & self.there[life.backend] - self.strange[life.backend]:
                signs.append(f"still on {life.backend}: {sorted(left)}")
            if life.holding and witnesses.contents(life.holding) is not None:
                signs.append("its login still works")
            if signs:
                yield f"{resource['id']}: {'; '.join(signs)}"

    # -- what must be kept -------------------------------------------------------------------------------------

    def _wanted_kept(self) -> set[str]:
        deleted = {resource["id"] for resource in self.listed if resource["status"] == "deleted"}
        return {life.id for life in self.load.lives.values() if life.kept} & deleted

    def _kept(self) -> set[str]:
        """Of which resources the store has a snapshot, by the names of its files: KIND-RESOURCE-GENERATION-FENCE."""
        return {"-".join(file.name.split("-")[1:6]) for file in self.stage.store.glob("*.snapshot")}

    # -- what was done more than once, or to somebody else -----------------------------------------------------

    def _destroyed(self, resource: Json) -> int:
        return _destroyed(self.done[resource["backend"]], resource)

    def _astray(self) -> Iterator[str]:
        ours: dict[str, set[str]] = defaultdict(set)
        for resource in self.listed:
            if resource["status"] == "deleted":
                ours[resource["backend"]] |= _names(resource)
        for backend, done in self.done.items():
            for verb, name in done:
                removed = name if verb == "DROP" else _prefix(name) if verb == "UNLINK" else None
                if removed and removed not in ours[backend]:
                    yield f"{backend}: {verb} {name}, which no deleted resource explains"

    def _harmed(self, strangers: list[Newcomer]) -> Iterator[str]:
        oids = {
            name: {o for (o,) in pg.query("SELECT oid::bigint FROM pg_database")} for name, pg in self.stage.pg.items()
        }
        for it in strangers:
            if not intact(it.holding):
                now = str(witnesses.contents(it.holding))[:80]
                yield f"{it.backend} {it.holding.names} (after {it.resource or 'nobody'}): holds {now}"
            if it.oid and it.oid not in oids[it.backend]:
                yield f"{it.backend} {it.holding.names}: OID {it.oid} is gone"

    # -- what lives --------------------------------------------------------------------------------------------

    def _births(self) -> Iterator[str]:
        for resource in self.listed:
            if resource["status"] == "active" and (missing := _living(resource) - self.there[resource["backend"]]):
                yield f"{resource['id']}: {sorted(missing)} not on {resource['backend']}"
        for life in self.load.lives.values():
            if life.filled and life.holding and not _must_be_gone(life) and not intact(life.holding):
                yield f"{life.id}: its customer finds {str(witnesses.contents(life.holding))[:80]}"

    def _orphans(self) -> Iterator[str]:
        for resource in self.listed:
            if resource["name"] not in self.load.lives:
                yield f"{resource['id']}: a resource that nobody asked for"
        for backend, there in self.there.items():
            explained = _SYSTEM | self.strange[backend]
            for resource in self.listed:
                if resource["backend"] == backend and resource["manifest"]:
                    # What is left of a deleted one is `lost`, and told there.
                    explained |= _names(resource)
            left = sorted(name for name in there - explained if not name.startswith(MEMORY))
            yield from (f"{backend}: {name}" for name in left)


def twice(resources: list[Json], done: dict[str, Counter[tuple[str, str]]]) -> list[str]:
    """What was destroyed more often than once, and than it was made.

    A birth whose worker died is begun anew, and a late one is undone: each of them made what it removed.
    """
    found = []
    for resource in (resource for resource in resources if resource["manifest"]):
        there = done[resource["backend"]]
        times, made = _destroyed(there, resource), _made(there, resource)
        if times > max(1, made):
            found.append(f"{resource['id']}: made {made} times, destroyed {times} times")
    return found


def _made(done: Counter[tuple[str, str]], resource: Json) -> int:
    manifest = resource["manifest"]
    if resource["kind"] == "redis":
        return done["SET", f"{_last_name(resource)}={manifest['generation']}"]
    return done["CREATE", f"zz_new_{manifest['generation']}"]


def _destroyed(done: Counter[tuple[str, str]], resource: Json) -> int:
    """How often anything that bore the resource's names was removed, by the server's own record."""
    manifest = resource["manifest"]
    if resource["kind"] == "redis":
        return done["UNLINK", _last_name(resource)]
    generation = manifest["generation"]
    return sum(done["DROP", name] for name in (f"zz_new_{generation}", f"zz_del_{generation}", manifest["database"]))


def _names_of_postgres(server: PgServer) -> set[str]:
    """Databases and the roles of customers."""
    return server.databases() | {role for role in server.roles() if not role.startswith("pg_")}


def _names_of_redis(client: "redis.Redis") -> set[str]:
    users = {line.split()[1] for line in client.execute_command("ACL", "LIST")}
    users = {name for name in users if not name.startswith(identity.SERVER_USER)}  # it names the server
    return users | {_prefix(key) for key in client.scan_iter(count=1000)}


def removals(folder: Path) -> Counter[tuple[str, str]]:
    """How often each key was removed and each generation set, by the append-only file, which is never rewritten."""
    done: Counter[tuple[str, str]] = Counter()
    for path in sorted(folder.glob("*.incr.aof")):
        with path.open("rb") as file:
            for verb, *words in witnesses._commands(file):  # type: ignore[arg-type]
                if verb.upper() in ("DEL", "UNLINK", "FLUSHDB", "FLUSHALL"):
                    done.update(("UNLINK", key) for key in words or [verb])
                elif verb.upper() == "SET":
                    done["SET", f"{words[0]}={words[1]}"] += 1
    return done


def _must_be_gone(life: Life) -> bool:
    return life.fate == "expires" or life.asked > life.refused


def _names(resource: Json) -> set[str]:
    return Holding(resource["kind"], resource["manifest"], "").all_names if resource["manifest"] else set()


def _last_name(resource: Json) -> str:
    return Holding(resource["kind"], resource["manifest"], "").last_name


def _living(resource: Json) -> set[str]:
    names = resource["manifest"]
    return {names["user"], _last_name(resource)} if resource["kind"] == "redis" else {names["database"], names["role"]}


def _prefix(key: str) -> str:
    return witnesses._prefix(key) or key


def quantile(sorted_: list[float], share: float) -> float:
    """The value below which `share` of them lie; 0 when there is none."""
    return sorted_[min(len(sorted_) - 1, int(share * len(sorted_)))] if sorted_ else 0.0


def timeline(
    ended: Iterable[dt.datetime], struck: list[tuple[float, str, str]], began: dt.datetime, step: int
) -> list[str]:
    """How many were gone in each `step` seconds, with the faults that fell into them."""
    per = Counter(int((at - began).total_seconds()) // step for at in ended)
    faults: dict[int, list[str]] = defaultdict(list)
    for at, kind, _ in struck:
        faults[int(at) // step].append(kind)
    most = max(per.values(), default=1)
    lines = []
    for bucket in range(max([*per, *faults], default=0) + 1):
        at = bucket * step
        bar = "█" * round(24 * per[bucket] / most)
        lines.append(f"{at // 60:>3}:{at % 60:02}  {per[bucket]:>5}  {bar:<24}  {', '.join(faults[bucket])}")
    return lines
