"""Contestants measured in turn, so that whatever else the machine does affects all of them alike."""

from __future__ import annotations

import contextlib
import io
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kdlib import files


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, the ratio that counts, and what it should reach."""

    name: str
    ratio: float
    target: str
    reached: bool | None
    detail: str


def at_least(name: str, ratio: float, target: float, detail: str) -> Row:
    """A row whose ratio should be large."""
    return Row(name, ratio, f">= {target:g}", ratio >= target, detail)


def at_most(name: str, ratio: float, target: float, detail: str) -> Row:
    """A row whose ratio should be small."""
    return Row(name, ratio, f"<= {target:g}", ratio <= target, detail)


def medians(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each contestant measures of itself, over `rounds` turns after one to warm up."""
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, measure in contestants.items():
            value = _quietly(measure)
            if turn:
                measured[name].append(value)
    return {name: statistics.median(values) for name, values in measured.items()}


def ratios_to(
    limit: Callable[[], float], contestants: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, float]:
    """The median ratio of each contestant to a limit that is measured directly before and after it.

    For ratios near 1: a machine that changes its pace from one minute to the next moves medians by more than that.
    """
    ratios: dict[str, list[float]] = {name: [] for name in contestants}
    before = limit()
    for _ in range(rounds):
        for name, measure in contestants.items():
            value, after = _quietly(measure), limit()
            ratios[name].append(2 * value / (before + after))
            before = after
    return {name: statistics.median(values) for name, values in ratios.items()}


def _quietly(measure: Callable[[], float]) -> float:
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars run, but are not shown
        return measure()


HEADER = f"{'':46}{'ratio':>9}{'target':>11}"


def line(row: Row) -> str:
    """A row as one line of plain text, below HEADER."""
    verdict = {True: "reached", False: "NOT reached", None: ""}[row.reached]
    return f"{row.name:46}{row.ratio:>9.2f}{row.target:>11}  {verdict:12}{row.detail}"


def markdown(rows: list[Row]) -> str:
    """The rows as a table for README.md."""
    verdicts = {True: "reached", False: "**not reached**", None: ""}
    lines = ["| | ratio | target | | |", "|---|---|---|---|---|"]
    lines += [f"| {r.name} | {r.ratio:.2f} | {r.target} | {verdicts[r.reached]} | {r.detail} |" for r in rows]
    return "\n".join(lines)


def put_in_readme(name: str, text: str) -> None:
    """Write a measured table into README.md, between the comments that bear its name."""
    path = Path(__file__).parent / "README.md"
    before, start, rest = path.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not start or not end:
        raise ValueError(f"{path} has no place for the table {name!r}: <!-- {name} --> ... <!-- end of {name} -->.")
    files.write_text(path, f"{before}{start}\n{text}\n\n{end}{after}")
