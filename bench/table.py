"""The one table: a row a figure, a sample a round, and the ratios that issue 5 sets a target for."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARKERS = "<!-- table -->", "<!-- /table -->"


@dataclass(frozen=True)
class Target:
    """What a figure must show, and what it should reach for; lower is better where `reach` is the lower."""

    at_least: float
    reach: float

    def verdict(self, figure: float) -> str:
        """In a word."""
        sign = 1 if self.reach > self.at_least else -1
        if sign * figure >= sign * self.reach:
            return "reached"
        return "met" if sign * figure >= sign * self.at_least else "missed"

    def __str__(self) -> str:
        sign = ">=" if self.reach > self.at_least else "<="
        return f"{sign} {self.at_least:g} / {self.reach:g}"


@dataclass
class Table:
    """Rows in the order they came."""

    units: dict[str, str] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # what could not be measured, and why

    def add(self, name: str, unit: str, *values: float, target: Target | None = None) -> None:
        """More samples of the row `name`."""
        self.units[name] = unit
        self.samples.setdefault(name, []).extend(values)
        if target:
            self.targets[name] = target

    def forget(self, about: str, why: str) -> None:
        """Every row of `about` goes: a round of it is missing."""
        self.missing[about] = why
        for name in [name for name in self.samples if name.startswith(f"{about}: ")]:
            del self.samples[name]

    def ratio(self, name: str, over: Sequence[str], under: Sequence[str], target: Target | None = None) -> None:
        """A row of each round's own ratio; of several rows, that with the highest median. None measured: none."""
        best = [max(rows, key=self.median) for rows in (self._measured(over), self._measured(under)) if rows]
        if len(best) == 2:
            above, below = (self.samples[row] for row in best)
            others = len(over) > 1 or len(under) > 1
            told = f"{name} ({' / '.join(best)})" if others else name
            self.add(told, "x", *(a / b for a, b in zip(above, below, strict=True)), target=target)

    def median(self, name: str) -> float:
        """Of the row's samples."""
        return statistics.median(self.samples[name])

    def rows(self) -> list[dict[str, Any]]:
        """Everything about each row, for JSON."""
        return [self._row(name, values) for name, values in self.samples.items()]

    def text(self) -> str:
        """The table as it is printed."""
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
    """Put `words` where the last table is, as a block of code."""
    before, _, rest = path.read_text().partition(MARKERS[0])
    _, found, after = rest.partition(MARKERS[1])
    assert found, f"{path} has not the markers {MARKERS}"
    path.write_text(f"{before}{MARKERS[0]}\n```\n{words}\n```\n{MARKERS[1]}{after}")
