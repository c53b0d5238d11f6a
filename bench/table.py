"""The table: one row for each figure, one sample for each round, and the ratios that have a target from issue 5."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARKERS = "<!-- table -->", "<!-- /table -->"


@dataclass(frozen=True)
class Target:
    """The bound that a figure must meet, and the better one it should reach; their order says if lower is better."""

    at_least: float
    reach: float

    def verdict(self, figure: float) -> str:
        """`reached`, `met` or `missed`."""
        sign = 1 if self.reach > self.at_least else -1
        if sign * figure >= sign * self.reach:
            return "reached"
        return "met" if sign * figure >= sign * self.at_least else "missed"

    def __str__(self) -> str:
        sign = ">=" if self.reach > self.at_least else "<="
        return f"{sign} {self.at_least:g} / {self.reach:g}"


@dataclass
class Table:
    """Rows in the order in which they were added."""

    units: dict[str, str] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # what could not be measured, and why

    def add(self, name: str, unit: str, *values: float, target: Target | None = None) -> None:
        """Add samples to the row `name`."""
        self.units[name] = unit
        self.samples.setdefault(name, []).extend(values)
        if target:
            self.targets[name] = target

    def forget(self, about: str, why: str) -> None:
        """Remove every row of the peer `about`, since one of its rounds failed."""
        self.missing[about] = why
        for name in [name for name in self.samples if name.startswith(f"{about}: ")]:
            del self.samples[name]

    def ratio(self, name: str, over: Sequence[str], under: Sequence[str], target: Target | None = None) -> None:
        """Add a row with the ratio of each round. Of several rows, it takes the one with the highest median.

        It adds nothing when a side was not measured.
        """
        best = [max(rows, key=self.median) for rows in (self._measured(over), self._measured(under)) if rows]
        if len(best) == 2:
            above, below = (self.samples[row] for row in best)
            others = len(over) > 1 or len(under) > 1
            title = f"{name} ({' / '.join(best)})" if others else name
            self.add(title, "x", *(a / b for a, b in zip(above, below, strict=True)), target=target)

    def median(self, name: str) -> float:
        """The median of a row's samples."""
        return statistics.median(self.samples[name])

    def rows(self) -> list[dict[str, Any]]:
        """All rows with their samples and verdicts, for JSON."""
        return [self._row(name, values) for name, values in self.samples.items()]

    def text(self) -> str:
        """The table as text, aligned."""
        lines = [("measure", "unit", "median", "min .. max", "target", "")]
        for row in self.rows():
            spread = f"{_figure(row['min'])} .. {_figure(row['max'])}"
            words = (row["measure"], row["unit"], _figure(row["median"]), spread, row["target"], row["verdict"])
            lines.append(tuple(word or "" for word in words))
        widths = [max(len(line[column]) for line in lines) for column in range(6)]
        return "\n".join(_aligned(line, widths).rstrip() for line in lines)

    def _measured(self, rows: Sequence[str]) -> list[str]:
        return [row for row in rows if row in self.samples]

    def _row(self, name: str, values: list[float]) -> dict[str, Any]:
        target, median = self.targets.get(name), self.median(name)
        return {
            "measure": name,
            "unit": self.units[name],
            "median": median,
            "min": min(values),
            "max": max(values),
            "target": str(target) if target else None,
            "verdict": target.verdict(median) if target else None,
            "samples": values,
        }


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    measure, unit, median, spread, target, verdict = line
    return (
        f"{measure:<{widths[0]}}  {unit:<{widths[1]}}  {median:>{widths[2]}}  {spread:>{widths[3]}}  "
        f"{target:<{widths[4]}}  {verdict}"
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def write_between_markers(path: Path, words: str) -> None:
    """Replace the table between the markers by `words`, as a block of code."""
    before, _, rest = path.read_text().partition(MARKERS[0])
    _, found, after = rest.partition(MARKERS[1])
    assert found, f"{path} does not have the markers {MARKERS}"
    path.write_text(f"{before}{MARKERS[0]}\n```\n{words}\n```\n{MARKERS[1]}{after}")
