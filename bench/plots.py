"""`python -m bench.plots`: writes the plots and tables of docs/scaling.md from bench/scale.json and bench/results.json.

Each table stands between two comments with its name. The table of a part that was not measured stays as it is.
"""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style

ROOT = Path(__file__).parent.parent
DOC = ROOT / "docs" / "scaling.md"
MEASURED = ROOT / "bench" / "scale.json"
# From `make bench`: its rows of workers with one slot, whose teardowns sleep.
BENCH = ROOT / "bench" / "results.json"
SLEEPER = re.compile(r"5 ms teardown, (\d+) x 1 slots")
Part = dict[str, Any]

# The arithmetic's load of a process or server: above it, requests wait for each other noticeably.
BUSY = 0.6
# The cores of one control database in the arithmetic.
CORES = 16
# A typical real teardown.
TEARDOWN_SECONDS = 0.05
SLOTS = 32
RATES = (100, 1_000, 10_000, 100_000)


def main() -> None:
    """Write the tables and draw the plots of all parts that were measured."""
    parts = json.loads(MEASURED.read_text())
    doc = DOC.read_text()
    for name, describe in TABLES.items():
        if name in parts:
            doc = _between(doc, name, f"{describe(parts[name])}\n\n{_source(parts[name])}")
    if "costs" in parts:
        doc = _between(doc, "arithmetic", _arithmetic(parts["costs"]["a_delete"]))
    bench = json.loads(BENCH.read_text())
    rates = {int(found[1]): row["median"] for row in bench["rows"] if (found := SLEEPER.fullmatch(row["measure"]))}
    doc = _between(doc, "processes", _processes(bench, rates))
    _write(_plot_processes(rates), DOC.parent / "scaling-processes.svg")
    DOC.write_text(doc)
    for name, draw in PLOTS.items():
        if name in parts:
            _write(draw(parts[name]), DOC.parent / f"scaling-{name}.svg")


def _between(doc: str, name: str, table: str) -> str:
    new, found = re.subn(
        rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", lambda _: f"{table}\n", doc, flags=re.DOTALL
    )
    if not found:
        sys.exit(f"plots: {DOC.name} has no <!-- {name} --> ... <!-- /{name} -->")
    return new


# -- tables ----------------------------------------------------------------------------------------------------------


def _claims(part: Part) -> str:
    rows = [
        [
            *(f"{row[name]:,}" for name in ("pending", "finished", "database_mb")),
            *_costs(row["claim"]),
            *_costs(row["after_checkpoint"]),
        ]
        for row in part["rows"]
    ]
    slots = _slots(part["rows"][0]["claim"])
    heads = ["pending", "finished", "database, MB", *slots, *(f"{head}, right after a checkpoint" for head in slots)]
    return (
        _table(heads, rows)
        + _ratio("The last row divided by the first", part["last_to_first_claim"])
        + _ratio("The same right after a checkpoint", part["last_to_first_after_checkpoint"])
    )


def _churn(part: Part) -> str:
    first = part["first_claims"]
    minutes = sum(interval["seconds"] for interval in part["intervals"]) / 60
    names = {"before": "before", "held": "at the end, still open", "after": "closed, and vacuumed"}
    rows = [[words, *_costs(first[name])] for name, words in names.items()]
    return (
        f"In {minutes:.3g} minutes {part['jobs']:,.0f} jobs were drained, and as many were added. In the last "
        f"{part['seconds'] / 60:.3g} minutes a snapshot was open: it kept {part['dead_rows']:,} dead rows. At the end "
        f"the worker's own claims cost {part['last_to_before']:.2f} times what they had before. A claim by a worker "
        "that has just started, and so begins at the front:\n\n" + _table(["snapshot", *_slots(first["before"])], rows)
    )


def _tenants(part: Part) -> str:
    sides = [part["one"], part["many"]]
    rows = [[f"{side['tenants']:,}", f"{side['backends']}", *_costs(side["claim"])] for side in sides]
    return _table(["tenants", "backends", *_slots(part["one"]["claim"])], rows) + _ratio(
        "Many divided by one", part["many_to_one"]
    )


def _memory(part: Part) -> str:
    rows = [[f"{row['pending']:,}", f"{row['drained']:,}", f"{row['rss_mb']:.1f}"] for row in part["rows"]]
    return (
        _table(["pending", "drained", "resident, MB"], rows)
        + f"\n\nThe last row divided by the first: {part['last_to_first']:.2f}."
    )


def _costs_table(part: Part) -> str:
    cost = part["a_delete"]
    rows = [
        ["processor time, API", f"{cost['api_cpu_ms']:.2f} ms"],
        ["processor time, worker", f"{cost['worker_cpu_ms']:.2f} ms"],
        ["processor time, PostgreSQL", f"{cost['postgresql_cpu_ms']:.2f} ms"],
        ["statements, each a round trip", f"{cost['statements']:.2f}"],
        ["write-ahead log", f"{cost['wal_bytes']:,.0f} bytes"],
    ]
    whole = _whole(cost)
    largest = max(CPU, key=lambda name: cost[name])
    return (
        _table([f"a delete, of {part['deletes']:,}", ""], rows)
        + f"\n\nSo two cores that do all of it reach at most {2000 / whole:,.0f} deletes a second. The first part "
        f"that needs cores of its own is {CPU[largest]}: "
        f"it takes {100 * cost[largest] / whole:.0f} % of the processor time."
    )


def _processes(bench: Part, rates: dict[int, float]) -> str:
    rows = [[str(processes), f"{rate:,.0f}", f"{rate / rates[1]:.2f}"] for processes, rate in rates.items()]
    text = (
        f"{bench['at'][:10]}, {bench['postgresql']}, {bench['machine']}, load {bench['load_at_start']:.1f} as it began"
    )
    return _table(["worker processes", "teardowns/s", "times one process"], rows) + f"\n\n_{text}._"


CPU = {"api_cpu_ms": "the API", "worker_cpu_ms": "the worker", "postgresql_cpu_ms": "PostgreSQL"}


def _whole(cost: Part) -> float:
    return sum(float(cost[name]) for name in CPU)


def _arithmetic(cost: Part) -> str:
    rows = []
    for rate in RATES:
        busy = {name: rate * cost[name] / 1000 / BUSY for name in CPU}  # cores
        rows.append(
            [
                f"{rate:,}",
                _up(busy["api_cpu_ms"]),
                _up(max(busy["worker_cpu_ms"], rate * TEARDOWN_SECONDS / SLOTS / BUSY)),
                _up(rate * TEARDOWN_SECONDS),
                _up(busy["postgresql_cpu_ms"]),
                _up(busy["postgresql_cpu_ms"] / CORES),
                f"{rate * cost['wal_bytes'] / 1e6:,.1f}",
                f"{rate * 86_400 * cost['wal_bytes'] / 1e12:,.2f}",
            ]
        )
    heads = ["deletes/s", "API processes", "worker processes", "teardowns at once", "cores of PostgreSQL"]
    return _table([*heads, f"control databases of {CORES} cores", "log, MB/s", "log, TB a day"], rows)


def _up(value: float) -> str:
    return f"{max(1, math.ceil(value)):,}"


def _slots(costs: Part) -> list[str]:
    return [f"claim of {slots}, ms" for slots in costs]


def _costs(costs: Part) -> list[str]:
    return [f"{cost['ms']:.3f}" for cost in costs.values()]


def _ratio(what: str, ratios: Part) -> str:
    text = ", ".join(f"{ratio:.2f} for {slots}" for slots, ratio in ratios.items())
    return f"\n\n{what}: {text}."


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _source(part: Part) -> str:
    return (
        f"_{part['at'][:10]}, deprovisioner {part['deprovisioner']}, PostgreSQL {part['postgresql']} with "
        f"{part['shared_buffers']} of buffers, {part['machine']}._"
    )


TABLES = {"claims": _claims, "churn": _churn, "tenants": _tenants, "memory": _memory, "costs": _costs_table}

# -- plots -----------------------------------------------------------------------------------------------------------

_STYLE = Style(
    background="white",
    plot_background="white",
    colors=("#1f5fa8", "#c2571a", "#8db4de", "#e6aa84"),
    font_family="sans-serif",
    guide_stroke_color="#ddd",
    major_guide_stroke_color="#ddd",
)


def _chart(title: str, x: str, y: str = "ms a claim", **words: Any) -> pygal.XY:
    return pygal.XY(
        title=title,
        x_title=x,
        y_title=y,
        width=800,
        height=380,
        style=_STYLE,
        legend_at_bottom=True,
        dots_size=3,
        js=[],
        include_x_axis=True,
        **words,
    )


def _plot_claims(part: Part) -> pygal.XY:
    rows = part["rows"]
    ticks = [math.log10(row["pending"]) for row in rows]
    chart = _chart(
        "What a claim costs at a backlog", "pending jobs", x_labels=ticks, x_value_formatter=lambda x: f"{10**x:,.0f}"
    )
    for name, words in (("claim", ""), ("after_checkpoint", ", right after a checkpoint")):
        for slots in rows[0][name]:
            points = [(x, row[name][slots]["ms"]) for x, row in zip(ticks, rows, strict=True)]
            chart.add(f"{slots} at a time{words}", points)
    return chart


def _plot_churn(part: Part) -> pygal.XY:
    chart = _chart("What a worker's claims cost under churn", "minutes since a snapshot was opened and kept")
    before = [interval for interval in part["intervals"] if not interval["held"]]
    at, lines = -sum(interval["seconds"] for interval in before), {False: [], True: []}
    for interval in part["intervals"]:
        lines[interval["held"]].append(((at + interval["seconds"] / 2) / 60, interval["ms"]))
        at += interval["seconds"]
    chart.add("before", lines[False])
    chart.add("snapshot held", lines[True])
    return chart


def _plot_processes(rates: dict[int, float]) -> pygal.XY:
    chart = _chart("Workers of one slot, a teardown of 5 ms, two cores", "worker processes", "teardowns/s")
    chart.add("measured", [(0, 0), *rates.items()])
    chart.add("linear growth", [(0, 0), *((processes, processes * rates[1]) for processes in rates)])
    return chart


PLOTS = {"claims": _plot_claims, "churn": _plot_churn}


def _write(chart: pygal.XY, file: Path) -> None:
    chart.uuid = file.stem  # a random one would change the file at every run
    drawn = chart.render(is_unicode=True)
    file.write_text(re.sub(r"<!--.*?-->|<script.*?</script>", "", drawn, flags=re.DOTALL) + "\n")


if __name__ == "__main__":
    main()
