"""What a claim costs at each backlog, and with many tenants and backends."""

import random
import statistics

from bench.bulk import Bulk
from bench.scale import CLAIM, SLOTS, WARM_UP, Figures, Size, count, serve, tell
from bench.stack import BACKEND, Stack
from outbox import db, jobs


def claim_costs(base: Bulk, size: Size, *, backends: int = 1) -> Figures:
    """For claims of each size in SLOTS: median and 90th percentile of the server's milliseconds, over `samples`."""
    return {str(slots): _claim_cost(base, slots, size.samples, backends) for slots in SLOTS}


def _claim_cost(base: Bulk, slots: int, samples: int, backends: int) -> Figures:
    spent = []
    with db.statement() as session:
        for _ in range(WARM_UP + samples):
            before = base.statements(CLAIM)
            claims = jobs.claim(session, _capacity(backends, slots), slots=slots, worker="bench")
            after = base.statements(CLAIM)
            assert len(claims) == slots, f"{len(claims)} jobs claimed, not {slots}"
            assert after["calls"] == before["calls"] + 1, "another claim ran meanwhile"
            base.finish([claim.id for claim in claims])
            spent.append({name: after[name] - before[name] for name in ("executing", "planning")})
    del spent[:WARM_UP]
    both = sorted(sum(one.values()) for one in spent)
    return {
        "ms": statistics.median(both),
        "p90": both[int(0.9 * (samples - 1))],
        "planning": statistics.median(one["planning"] for one in spent),
    }


def _capacity(backends: int, slots: int) -> dict[str, int]:
    """The capacity that a worker reports: backends in a new order each time, one slot kept for each other backend."""
    names = random.sample(range(backends), backends)
    return {f"{BACKEND}-{name}": max(1, slots - (backends - 1)) for name in names}


def measure_claims(stack: Stack, base: Bulk, size: Size) -> Figures:
    """The cost of a claim at each backlog; the last backlog stands beside a history of finished jobs.

    It is measured without images of whole pages, and again right after a checkpoint, when the first change of a page
    logs the whole page. In a small table this is soon over; in a large table it lasts until the next checkpoint.
    """
    serve(stack, 1)
    base.empty()
    rows = []
    for pending in size.pending:
        base.grow(size.finished if pending == size.pending[-1] else 0, "deleted")
        base.grow(pending + 2 * size.claimed - count(base, "pending"), "deleting")
        base.settle()
        finished, row = count(base, "succeeded"), {}
        for name, images in (("claim", False), ("after_checkpoint", True)):
            base.checkpoint(images=images)
            row[name] = claim_costs(base, size)
            tell(f"{pending:,} pending, {finished:,} finished{', right after a checkpoint' * images}", row[name])
        left = count(base, "pending")
        assert left == pending, f"{left} pending, not {pending}"
        rows.append({"pending": left, "finished": finished, "database_mb": base.megabytes()} | row)
    base.checkpoint(images=False)
    return {"rows": rows} | {
        f"last_to_first_{name}": {slots: rows[-1][name][slots]["ms"] / rows[0][name][slots]["ms"] for slots in costs}
        for name, costs in row.items()
    }


def measure_tenants(stack: Stack, base: Bulk, size: Size) -> Figures:
    """The cost of a claim by a worker that serves many backends and tenants, and by one that serves one of each."""
    found: Figures = {}
    for name, tenants, backends in (("one", 1, 1), ("many", size.tenants, size.backends)):
        serve(stack, backends)
        base.empty()
        base.grow(10 * size.tenants + size.claimed, "deleting", tenants=tenants, backends=backends)
        base.settle()
        served = base.run("SELECT count(DISTINCT tenant), count(DISTINCT backend) FROM resources")[0]
        assert served == (tenants, backends), served
        costs = claim_costs(base, size, backends=backends)
        found[name] = {"tenants": tenants, "backends": backends, "claim": costs}
        tell(f"{tenants:,} tenants, {backends} backends", costs)
    many, one = found["many"]["claim"], found["one"]["claim"]
    return found | {"many_to_one": {slots: many[slots]["ms"] / one[slots]["ms"] for slots in one}}
