"""The rounds of `make bench`: the parts of a round and their sizes, the rows they add, and the ratios between rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench import costs, measures, peers, real
from bench.measures import CLIENTS, DRAINERS, SHARERS
from bench.stack import Stack
from bench.table import Table, Target
from outbox.batching import MAX_BATCH


@dataclass(frozen=True)
class Size:
    """The size of each measure in a round."""

    rounds: int
    idle: int  # DELETEs, sent one at a time
    deletes: int  # DELETEs, sent by CLIENTS at once
    floor: int  # DELETEs by pgbench; it drains half as many jobs
    jobs: int  # in a drain, ours and the peers'
    fleets: tuple[tuple[int, int], ...]  # of each drain: worker processes, and slots in each
    sleepers: tuple[tuple[int, int], ...]  # the same, for teardowns that sleep
    sleeps: int  # jobs whose teardown sleeps: so many for each process, up to four processes
    real: int  # databases, and as many namespaces
    counted: int  # jobs whose costs are counted
    every_wait: bool  # whether the idle latency of each peer is measured, or only PgQueuer's


FULL = Size(
    rounds=3,
    idle=80,
    deletes=3200,
    floor=4800,
    jobs=5000,
    fleets=((1, 8), (2, 32), (2, 128)),
    sleepers=((1, 1), (2, 1), (4, 1), (8, 1), (1, 4), (4, 4)),
    sleeps=400,
    real=40,
    counted=300,
    every_wait=True,
)
QUICK = Size(
    rounds=1,
    idle=30,
    deletes=800,
    floor=1600,
    jobs=800,
    fleets=((1, 8), (2, 32)),
    sleepers=((1, 1), (4, 1)),
    sleeps=200,
    real=40,
    counted=100,
    every_wait=False,
)

DRAIN = "drain, {} x {} slots"
SLEEPERS = f"{measures.SLEEP_MS} ms teardown, {{}} x {{}} slots"
DELETE_FLOOR = f"pgbench: the DELETE's statement, {CLIENTS} clients"
DRAIN_FLOOR = f"pgbench: claim, start, complete, {DRAINERS} clients"
SHARED_DRAIN_FLOOR = f"pgbench: claim, start, complete of {MAX_BATCH} at a time, {SHARERS} clients"
DELETE = f"DELETE endpoint, {CLIENTS} clients, 2 processes"
IDLE = "idle: commit to start, {}"
PEER_DRAIN, PEER_IDLE = "{}: drain, 2 processes", "{}: idle: commit to start, {}"
COSTS = {
    "round trips": "",
    "commits": "",
    "WAL bytes": "B",
    "dead tuples": "",
    "PostgreSQL CPU ms": "ms",
    "our CPU ms": "ms",
}
WHOLE, LOOP = "{} dropped: the whole job", "{} dropped: a bare loop"


# -- a round ---------------------------------------------------------------------------------------------------------

Step = Callable[[str, Callable[[], Any]], Any]


def measure(running: Stack, size: Size, parts: list[str]) -> Table:
    """Run all rounds, each with these parts; return the table of their figures."""
    table = Table()
    for number in range(1, size.rounds + 1):

        def step(what: str, act: Callable[[], Any], round_number: int = number) -> Any:
            began = time.monotonic()
            print(f"bench: round {round_number}/{size.rounds}: {what} ...", end="", flush=True)
            got = act()
            print(f" {time.monotonic() - began:.1f} s", flush=True)
            return got

        for part in parts:
            PARTS[part](running, size, table, step)
    return table


def _api(running: Stack, size: Size, table: Table, step: Step) -> None:
    floor = step("the DELETE's floor", lambda: measures.delete_floor(running, size.floor))
    with running.api(2) as api:
        # At its first request an API process creates its engine; meanwhile new connections go to the other processes.
        step("the API warms up", lambda: measures.deletes(running, api, CLIENTS))
        got = step(f"{CLIENTS} clients DELETE", lambda: measures.deletes(running, api, size.deletes))
    table.add(DELETE_FLOOR, "/s", floor)
    table.add(DELETE, "/s", got["rate"])
    for name in ("p50", "p99"):
        table.add(f"{DELETE}: {name}", "ms", got[name])
    table.add(f"{DELETE}: connections of the busier process", "share", got["busiest"])
    table.add(f"{DELETE}: CPU of the load itself", "cores", got["load"])


def _idle(running: Stack, size: Size, table: Table, step: Step) -> None:
    with running.api(1):
        got = step(f"{size.idle} DELETEs, one at a time", lambda: measures.idle(running, size.idle))
    for name in ("p50", "p99"):
        table.add(IDLE.format(name), "ms", got[name])
        table.add(f"idle: answer to start, {name}", "ms", got[f"answer {name}"])


def _drain(running: Stack, size: Size, table: Table, step: Step) -> None:
    floor = step("the drain's floor", lambda: measures.drain_floor(running, size.floor // 2))
    table.add(DRAIN_FLOOR, "/s", floor)
    shared = step("the drain's floor, shared", lambda: measures.shared_drain_floor(running, size.jobs))
    table.add(SHARED_DRAIN_FLOOR, "jobs/s", shared)
    for processes, slots in size.fleets:
        name = DRAIN.format(processes, slots)

        def drain(processes: int = processes, slots: int = slots) -> measures.Figures:
            return measures.drain(running, size.jobs, processes=processes, slots=slots)

        got = step(f"{name}, {size.jobs} jobs", drain)
        table.add(name, "jobs/s", got["rate"])
        table.add(f"{name}: commits", "/job", got["commits"])
        table.add(f"{name}: WAL fsyncs", "/job", got["fsyncs"])


def _processes(running: Stack, size: Size, table: Table, step: Step) -> None:
    for processes, slots in size.sleepers:
        name, jobs = SLEEPERS.format(processes, slots), size.sleeps * min(processes, 4)

        def sleep(processes: int = processes, slots: int = slots, jobs: int = jobs) -> float:
            return measures.sleepers(running, jobs, processes=processes, slots=slots)

        table.add(name, "jobs/s", step(f"{name}, {jobs} jobs", sleep))


def _real(running: Stack, size: Size, table: Table, step: Step) -> None:
    with running.real_backends():
        for what, act in ((_databases(size), real.databases), (_namespaces(size), real.namespaces)):
            # They take turns in going first: the second one finds a warm server.
            first = "loop" if len(table.samples.get(LOOP.format(what), ())) % 2 == 0 else "whole"
            got = step(f"{what}, twice", lambda act=act, first=first: act(running, size.real, first=first))
            table.add(WHOLE.format(what), "s", got["whole"])
            table.add(LOOP.format(what), "s", got["loop"])


def _list(running: Stack, size: Size, table: Table, step: Step) -> None:  # noqa: ARG001 - every part takes it
    took = step("deprovisioner jobs list", lambda: measures.listing(running))
    table.add("deprovisioner jobs list", "s", *took, target=Target(0.5, 0.25))


def _costs(running: Stack, size: Size, table: Table, step: Step) -> None:
    """Costs are counted, not timed, so one round is enough."""
    if any(name.startswith("a job, ") for name in table.samples):
        return
    got = step(f"what {size.counted} jobs cost", lambda: costs.costs(running, size.counted))
    for what in ("one by one", "drain"):
        for name, unit in COSTS.items():
            table.add(f"a job, {what}: {name}", unit, got[what][name])


def _peers(running: Stack, size: Size, table: Table, step: Step) -> None:
    if reason := peers.available():
        table.missing["peers"] = reason
        return
    for peer in peers.PEERS:
        if peer.name in table.missing:
            continue
        try:
            rate, waits = _peer(running, size, peer, step)
        except peers.PeerFailed as failed:  # our own figures are kept
            print(f"\nbench: {failed}")
            table.forget(peer.name, str(failed).splitlines()[0])
            continue
        table.add(PEER_DRAIN.format(peer.name), "jobs/s", rate)
        for name, wait in waits.items():
            table.add(PEER_IDLE.format(peer.name, name), "ms", wait)


def _peer(running: Stack, size: Size, peer: Any, step: Step) -> tuple[float, dict[str, float]]:
    servers = running.dsn, running.broker_url
    rate = step(f"{peer.name} drains", lambda: peers.drain(peer, *servers, size.jobs, 2))
    if not size.every_wait and peer.name != "PgQueuer":
        return rate, {}
    waits = step(f"{peer.name}, {size.idle} jobs one at a time", lambda: peers.latency(peer, *servers, size.idle))
    return rate, waits


# Parts that are compared follow each other directly, since the machine's load changes during a round.
PARTS = {
    "api": _api,
    "idle": _idle,
    "drain": _drain,
    "peers": _peers,
    "processes": _processes,
    "real": _real,
    "list": _list,
    "costs": _costs,
}


def _databases(size: Size) -> str:
    return f"{size.real} databases"


def _namespaces(size: Size) -> str:
    return f"{size.real} namespaces of {real.KEYS:,} keys"


# -- ratios ----------------------------------------------------------------------------------------------------------


def compare(table: Table, size: Size) -> None:
    """Add the ratios that issue 5 names. A ratio is taken within a round, between figures of that round."""
    table.ratio("DELETE endpoint / pgbench", [DELETE], [DELETE_FLOOR], Target(0.4, 0.6))
    table.ratio("DELETE endpoint, p99 / p50", [f"{DELETE}: p99"], [f"{DELETE}: p50"], Target(4, 3))
    fleets = [DRAIN.format(*fleet) for fleet in size.fleets]
    for fleet in fleets:
        table.ratio(f"{fleet} / pgbench", [fleet], [DRAIN_FLOOR])
    table.ratio(f"drain / pgbench, {MAX_BATCH} at a time", fleets, [SHARED_DRAIN_FLOOR])
    if not peers.available():
        rates = {peer.name: PEER_DRAIN.format(peer.name) for peer in peers.PEERS}
        pgqueuer = [row for name, row in rates.items() if name.startswith("PgQueuer")]
        table.ratio(f"pgbench, {MAX_BATCH} at a time / PgQueuer at its best", [SHARED_DRAIN_FLOOR], pgqueuer)
        table.ratio("drain / PgQueuer at its best", fleets, pgqueuer, Target(0.5, 1.0))
        named = [rates[name] for name in ("Chancy", "DBOS", "Procrastinate", "Celery on Redis")]
        best = "the best of Chancy, DBOS, Procrastinate, Celery"
        table.ratio(f"pgbench, {MAX_BATCH} at a time / {best}", [SHARED_DRAIN_FLOOR], named)
        table.ratio(f"drain / {best}", fleets, named, Target(1.5, 3))
        for name in ("PgQueuer, one by one", "awa-pg"):
            table.ratio(f"drain / {name}", fleets, [rates[name]])
        for name, target in (("p50", Target(1.5, 1.0)), ("p99", Target(2.5, 1.5))):
            theirs = PEER_IDLE.format("PgQueuer", name)
            table.ratio(f"idle: commit to start, {name} / PgQueuer", [IDLE.format(name)], [theirs], target)
    # With one slot a worker mostly waits for its teardown. With four slots the two cores are already busy: no target.
    for slots, target in ((1, Target(3.2, 3.8)), (4, None)):
        four, one = SLEEPERS.format(4, slots), SLEEPERS.format(1, slots)
        table.ratio(f"{four} / 1 x {slots}", [four], [one], target)
    for what in (_databases(size), _namespaces(size)):
        name = f"{what}, the whole job / a bare loop"
        table.ratio(name, [WHOLE.format(what)], [LOOP.format(what)], Target(1.5, 1.2))
