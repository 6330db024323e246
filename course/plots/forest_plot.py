"""Forest plots of a study: a line with an interval for each method, its gain over hard labels.

    results = study.results("methods", student="resnet8", images=10_000)
    plots.show(plots.forest(results), alt=plots.forest_alt(results))

Accuracies are in %, gains in points. A method without a verdict, because a seed diverged or was not run, keeps its line
with the reason. `results.table()` has all the numbers as text.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from course.plots.descriptions import describe_intervals, describe_setting
from course.plots.theme import BASELINE, DISTILLED, INK, NEUTRAL, Role, figure
from kdlib.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kdlib.study.analysis import Estimate, Results

HEADINGS = {
    "baseline": "Baseline",
    "logit": "Logits",
    "feature": "Features",
    "relation": "Relations",
    "combination": "Combinations",
    "control": "Controls",
}
VERDICT_ROLES = {Verdict.BEATS: DISTILLED, Verdict.LOSES: BASELINE, Verdict.INCONCLUSIVE: NEUTRAL}
NO_VERDICT = Role("no verdict", INK, "", "x", "")
GAIN = "{:+.2f}"  # format of points


def forest(results: Results, methods: Sequence[str] | None = None, value: str = "test_accuracy") -> Figure:
    """Gains over hard labels with their intervals, a line per method, by family; small dots are the seeds.

    methods: those to draw, default all; the intervals stay corrected for all comparisons of the study. value: one of
    `analysis.METRICS`, such as "excluded_class_accuracy".
    Raises ValueError, with near matches, for an unknown method.
    """
    rows = [results.gain(name, value) for name in methods or results.methods]
    name = results.title(results.baseline)
    title = f"Gain over {name}: {describe_setting(results)}"
    fig, axes = _forest_axes(rows, title, replace(BASELINE, label=name))
    axes.set_xlabel(f"gain over {name} (points of {results.label(value)})\n{describe_intervals(results)}")
    return fig


def forest_alt(results: Results, methods: Sequence[str] | None = None, value: str = "test_accuracy") -> str:
    """What `forest` shows, in words."""
    rows = [results.gain(name, value) for name in methods or results.methods]
    title = f"Gain over {results.title(results.baseline)} in points of {results.label(value)}"
    return f"{title}, {describe_setting(results)}. {describe_intervals(results)}. {_describe_verdicts(rows)}"


def _forest_axes(rows: Sequence[Estimate], title: str, baseline: Role) -> tuple[Figure, Axes]:
    """A line for each gain, by family and falling mean, with the numbers beside it; baseline: what 0 stands for."""
    lines = _group_by_family(rows)
    fig, (axes, beside) = figure(9.4, 0.26 * len(lines) + 1.7, columns=2, width_ratios=(1.25, 1), sharey=True)
    beside.axis("off")
    beside.set_xlim(0, 1)
    axes.set_xlim(*_x_limits([row for row in lines if not isinstance(row, str)]))
    for y, row in enumerate(lines):
        if not isinstance(row, str):
            _draw_row(axes, y, row)
            _write_numbers(beside, y, row)
    axes.set_yticks(range(len(lines)), [row if isinstance(row, str) else row.title for row in lines])
    for label, row in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if isinstance(row, str) else "normal")
    axes.set_ylim(len(lines) - 0.4, -0.8)
    axes.set_ylabel("method, by family")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    for x, text in ((0, "gain, points (interval)"), (0.68, "verdict")):
        beside.text(x, -0.05, text, va="center", fontweight="bold", fontsize=9)
    fig.suptitle(title, x=0.01, ha="left", fontsize=10)
    look = {"color": baseline.colour, "linestyle": baseline.linestyle, "linewidth": 1.5, "zorder": 1}
    axes.axvline(0, label=baseline.label, **look)
    _add_legend(fig, axes, rows)
    return fig, axes


def _group_by_family(rows: Iterable[Estimate]) -> list[str | Estimate]:
    """Headings and quantities in the order in which they are drawn; those without a mean come last in their family."""
    rows = list(rows)
    lines: list[str | Estimate] = []
    for family, heading in HEADINGS.items():
        members = [row for row in rows if row.family == family]
        members.sort(key=lambda row: -row.mean if math.isfinite(row.mean) else math.inf)
        lines += [heading, *members] if members else []
    return lines


def _x_limits(rows: Sequence[Estimate]) -> tuple[float, float]:
    """Limits of the x axis that hold most intervals and seeds, and are not stretched by the widest few."""
    bounded = [row for row in rows if math.isfinite(row.half_width)]
    ends = [100 * end for row in bounded for end in (row.low, row.high)]
    most = float(np.quantile(np.abs(ends), 0.85)) if ends else 1.0
    values = [*ends, *(100 * value for row in bounded for value in row.by_seed.values()), 0.0]
    left, right = max(min(values), -1.5 * most), min(max(values), 1.5 * most)
    left, right = min(left, 0.0), max(right, 0.0)
    return left - 0.06 * (right - left + 0.1), right + 0.06 * (right - left + 0.1)


def _draw_row(axes: Axes, y: float, row: Estimate) -> None:
    """Seeds, interval and mean of one quantity; an arrow where something lies beyond the axis, small for a seed."""
    role, (left, right) = _role_of(row), axes.get_xlim()
    left, right = left + 0.02 * (right - left), right - 0.02 * (right - left)  # room for the arrows
    seeds = np.array([100 * value for value in row.by_seed.values()])
    for marker, chosen in ((".", (left <= seeds) & (seeds <= right)), ("<", seeds < left), (">", seeds > right)):
        x = seeds[chosen].clip(left, right)
        axes.plot(x, [y + 0.32] * len(x), marker, color=INK, alpha=0.5, markersize=4, zorder=2)
    if row.problem:
        return
    low, mean, high = 100 * row.low, 100 * row.mean, 100 * row.high
    look: dict[str, Any] = {"color": role.colour, "zorder": 3}
    if math.isfinite(row.half_width) and low < right and high > left:
        axes.plot([max(low, left), min(high, right)], [y] * 2, "-", linewidth=2, **look)
        for is_beyond, end, marker in ((low < left, left, "<"), (high > right, right, ">")):
            if is_beyond:
                axes.plot([end], [y], marker, markersize=7, **look)
    if left <= mean <= right:
        fill = "white" if row.verdict is Verdict.INCONCLUSIVE else role.colour
        axes.plot([mean], [y], role.marker, markersize=7, markerfacecolor=fill, markeredgewidth=1.5, **look)
    else:
        end, marker = (left, "<") if mean < left else (right, ">")
        axes.plot([end], [y], marker, markersize=9, **look)


def _write_numbers(beside: Axes, y: float, row: Estimate) -> None:
    look: dict[str, Any] = {"va": "center", "fontsize": 9}
    if row.problem:
        beside.text(0, y, f"no verdict: {_shorten(row.problem, 46)}", fontstyle="italic", **look)
        return
    beside.text(0, y, _numbers(row), **look)
    weight = "normal" if row.verdict is Verdict.INCONCLUSIVE else "bold"
    beside.text(0.68, y, str(row.verdict), color=_role_of(row).ink, fontweight=weight, **look)


def _add_legend(fig: Figure, axes: Axes, rows: Sequence[Estimate]) -> None:
    for verdict, role in VERDICT_ROLES.items():
        if any(row.verdict is verdict for row in rows):
            fill = "white" if verdict is Verdict.INCONCLUSIVE else role.colour
            axes.plot([], [], **{**role.line(str(verdict)), "linestyle": "-", "markerfacecolor": fill})
    axes.plot([], [], ".", color=INK, alpha=0.5, label="one seed")
    fig.legend(loc="outside lower left", ncols=6, frameon=False, fontsize=9, columnspacing=1.2)


def _role_of(row: Estimate) -> Role:
    return VERDICT_ROLES[row.verdict] if row.verdict else NO_VERDICT


def _numbers(row: Estimate) -> str:
    """Mean and interval of a measured quantity."""
    mean, low, high = (GAIN.format(100 * value) for value in (row.mean, row.low, row.high))
    return f"{mean} ({f'{low} to {high}' if math.isfinite(row.half_width) else 'all seeds equal'})"


def _describe_verdicts(rows: Sequence[Estimate]) -> str:
    """All quantities with their intervals, sorted by verdict."""
    sentences = []
    ordered = [row for row in _group_by_family(rows) if not isinstance(row, str)]
    for verdict in Verdict:
        members = [row for row in ordered if row.verdict is verdict]
        texts = [f"{row.title} {_numbers(row)}" for row in members]
        sentences += [f"{verdict}: {'; '.join(texts)}."] if members else []
    lost = [f"{row.title} ({row.problem})" for row in ordered if row.problem]
    sentences += [f"No verdict: {'; '.join(lost)}."] if lost else []
    return " ".join(sentences)


def _shorten(problem: str, width: int) -> str:
    return textwrap.shorten(re.sub(r" \(.*?\)(?=;|$)", "", problem), width, placeholder=" ...")
