"""The table of gains in data/results/README.md: what each method was worth at every budget that was run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kdlib.study.findings import Measured, Results, order
from kdlib.study.rows import parse
from kdlib.study.stored import load
from kdlib.verdict import Verdict

MARKS = {Verdict.BEATS: "**", Verdict.LOSES: "*", Verdict.INCONCLUSIVE: ""}  # bold, italic, plain


def gains_table(folder: Path) -> str:
    """A column for each budget, a line for each method that any of them has, in Markdown.

    Gains over hard labels in points of test accuracy, with half of the interval, in bold where they BEAT hard labels
    and in italics where they LOSE to them. Raises ValueError for a file that cannot be read.
    """
    budgets = _budgets(folder)
    if not budgets:
        return "No method has been run yet."
    first = {name: next(iter(one.runs(name).values())) for one in budgets for name in one.methods}
    titles = {name: one.title(name) for one in budgets for name in one.methods}
    lines = [
        ["student", *(one.budget["student"] for one in budgets)],
        ["---", *["--:"] * len(budgets)],
        ["teacher", *(one.budget["teacher"] for one in budgets)],
        ["training images", *(f"{one.images:,}" for one in budgets)],
        ["epochs", *(one.budget["epochs"] for one in budgets)],
        ["seeds", *(str(len(one.seeds)) for one in budgets)],
        ["hard labels, %", *(_score(one.score(one.baseline)) for one in budgets)],
    ]
    for name in sorted(first, key=lambda name: order(first[name])):
        lines.append([titles[name], *(_gain(one, name) for one in budgets)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _budgets(folder: Path) -> Sequence[Results]:
    """The finished runs of every file of methods, by student, teacher and number of images."""
    found = []
    for path in folder.glob("methods-*.csv"):
        if rows := parse(path.read_bytes(), None, path):
            shared = {name: rows[0][name] for name in ("student", "teacher")}
            found.append(load("methods", **shared, images=int(rows[0]["images"]), folder=folder))
    return sorted(found, key=lambda one: (*(_natural(one.budget[n]) for n in ("student", "teacher")), one.images))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts resnet8 before resnet18."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _score(measured: Measured) -> str:
    return "no mean" if measured.trouble else f"{100 * measured.mean:.2f}"


def _gain(results: Results, name: str) -> str:
    if name not in results.methods:
        return ""
    gain = results.gain(name)
    if gain.trouble or gain.verdict is None:
        return "no mean"
    mark = MARKS[gain.verdict]
    return f"{mark}{100 * gain.mean:+.2f} ± {100 * gain.half:.2f}{mark}"
