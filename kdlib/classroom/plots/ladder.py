"""Methods below each other, with intervals: gains over hard labels, and the gap to the teacher recovered.

    results = study.results("methods", student="resnet8", images=10_000)
    plots.show(plots.forest(results), alt=plots.forest_alt(results))

Accuracies are in %, gains in points. A method without a verdict, because a seed diverged or was not run, keeps its
place and says so. `results.table()` has all the numbers as text.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kdlib.classroom.plots.base import DISTILLED, INK, NEUTRAL, STUDENT, TEACHER, Role, figure
from kdlib.classroom.plots.words import setting, together
from kdlib.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kdlib.study.findings import Measured, Results

HEADINGS = {
    "baseline": "Baseline",
    "logit": "Logits",
    "feature": "Features",
    "relation": "Relations",
    "combination": "Combinations",
    "control": "Controls",
}
# Blue is where distillation is ahead, orange where hard labels are: the colours of those two everywhere.
LOOKS = {Verdict.BEATS: DISTILLED, Verdict.LOSES: STUDENT, Verdict.INCONCLUSIVE: NEUTRAL}
NO_VERDICT = Role("no verdict", INK, "", "x", "")


def forest(results: Results, methods: Sequence[str] | None = None, value: str = "test_accuracy") -> Figure:
    """Gains over hard labels with their intervals, a line a method, by family; small dots are the seeds.

    methods: those to be drawn, default all; the intervals stay corrected for all that the study compared. value: one of
    `findings.VALUES`, such as "left_out_accuracy".
    Raises ValueError, with near matches, for a method that is not there.
    """
    found = [results.gain(name, value) for name in methods or results.methods]
    name = results.title(results.baseline)
    title = f"Gain over {name}: {setting(results)}"
    axes = _ladder(found, title, "gain, points (interval)", "{:+.2f}", {0: replace(STUDENT, label=name)})
    axes.set_xlabel(f"gain over {name} (points of {results.label(value)})\n{together(results)}")
    return axes.figure


def forest_alt(results: Results, methods: Sequence[str] | None = None, value: str = "test_accuracy") -> str:
    """What `forest` shows, in words."""
    found = [results.gain(name, value) for name in methods or results.methods]
    said = f"Gain over {results.title(results.baseline)} in points of {results.label(value)}, {setting(results)}"
    return f"{said}. {together(results)}. {_verdicts(found)}"


def gap_recovered(results: Results, methods: Sequence[str] | None = None) -> Figure:
    """The share of the gap between hard labels (0 %) and the teacher (100 %) that each method closes, as `forest`."""
    found = [results.recovered(name) for name in methods or results.methods]
    name = results.title(results.baseline)
    lines = {0: replace(STUDENT, label=name), 100: TEACHER}
    axes = _ladder(found, f"Gap recovered: {setting(results)}", "share, % (interval)", "{:+.1f}", lines)
    axes.set_xlabel(f"share of the gap from {name} (0 %) to the teacher (100 %)\n{together(results)}")
    return axes.figure


def gap_recovered_alt(results: Results, methods: Sequence[str] | None = None) -> str:
    """What `gap_recovered` shows, in words."""
    found = [results.recovered(name) for name in methods or results.methods]
    name = results.title(results.baseline)
    share = f"Share in % of the gap from {name} (0) to the teacher (100), {setting(results)}"
    return f"{share}. {together(results)}. {_verdicts(found)}"


def _ladder(found: Sequence[Measured], title: str, column: str, number: str, marks: dict[float, Role]) -> Axes:
    """A line for each measured quantity, by family and falling mean, with the numbers beside it; returns the axes.

    column: the heading of the numbers. number: their format. marks: places on the x axis that mean something.
    """
    lines = _grouped(found)
    fig, (axes, beside) = figure(9.4, 0.26 * len(lines) + 1.7, columns=2, width_ratios=(1.25, 1), sharey=True)
    beside.axis("off")
    beside.set_xlim(0, 1)
    axes.set_xlim(*_range([one for one in lines if not isinstance(one, str)], marks))
    for place, one in enumerate(lines):
        if not isinstance(one, str):
            _rung(axes, place, one)
            _words(beside, place, one, number)
    axes.set_yticks(range(len(lines)), [one if isinstance(one, str) else one.title for one in lines])
    for label, one in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if isinstance(one, str) else "normal")
    axes.set_ylim(len(lines) - 0.4, -0.8)
    axes.set_ylabel("method, by family")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    for place, text in ((0, column), (0.68, "verdict")):
        beside.text(place, -0.05, text, va="center", fontweight="bold", fontsize=9)
    fig.suptitle(title, x=0.01, ha="left", fontsize=10)
    for place, role in marks.items():
        look = {"color": role.colour, "linestyle": role.dash, "linewidth": 1.5, "zorder": 1}
        axes.axvline(place, label=role.label, **look)
    _key(axes, found)
    return axes


def _grouped(found: Iterable[Measured]) -> list[Any]:
    """Headings and quantities in the order in which they are drawn; those without a mean come last in their family."""
    found, lines = list(found), []
    for family, heading in HEADINGS.items():
        own = [one for one in found if one.family == family]
        own.sort(key=lambda one: -one.mean if math.isfinite(one.mean) else math.inf)
        lines += [heading, *own] if own else []
    return lines


def _range(found: Sequence[Measured], marks: Iterable[float]) -> tuple[float, float]:
    """Limits of the x axis that hold most intervals and seeds, and are not stretched by the widest few."""
    sure = [one for one in found if math.isfinite(one.half)]
    ends = [100 * end for one in sure for end in (one.low, one.high)]
    most = np.quantile(np.abs(ends), 0.85) if ends else 1.0
    seen = [*ends, *(100 * value for one in sure for value in one.by_seed.values()), 0.0]
    left, right = max(min(seen), -1.5 * most), min(max(seen), 1.5 * most)
    left, right = min(left, *marks, 0.0), max(right, *marks, 0.0)
    return left - 0.06 * (right - left + 0.1), right + 0.06 * (right - left + 0.1)


def _rung(axes: Axes, place: int, one: Measured) -> None:
    """Seeds, interval and mean of one quantity; an arrow where something lies beyond the axis, small for a seed."""
    role, (left, right) = _look(one), axes.get_xlim()
    left, right = left + 0.02 * (right - left), right - 0.02 * (right - left)  # room for the arrows
    seeds = np.array([100 * value for value in one.by_seed.values()])
    for marker, chosen in ((".", (left <= seeds) & (seeds <= right)), ("<", seeds < left), (">", seeds > right)):
        at = seeds[chosen].clip(left, right)
        axes.plot(at, [place + 0.32] * len(at), marker, color=INK, alpha=0.5, markersize=4, zorder=2)
    if one.trouble:
        return
    low, mean, high = 100 * one.low, 100 * one.mean, 100 * one.high
    look = {"color": role.colour, "zorder": 3}
    if math.isfinite(one.half) and low < right and high > left:
        axes.plot([max(low, left), min(high, right)], [place] * 2, "-", linewidth=2, **look)
        for beyond, end, marker in ((low < left, left, "<"), (high > right, right, ">")):
            if beyond:
                axes.plot([end], [place], marker, markersize=7, **look)
    if left <= mean <= right:
        fill = "white" if one.verdict is Verdict.INCONCLUSIVE else role.colour
        axes.plot([mean], [place], role.marker, markersize=7, markerfacecolor=fill, markeredgewidth=1.5, **look)
    else:
        end, marker = (left, "<") if mean < left else (right, ">")
        axes.plot([end], [place], marker, markersize=9, **look)


def _words(beside: Axes, place: int, one: Measured, number: str) -> None:
    look = {"va": "center", "fontsize": 9}
    if one.trouble:
        beside.text(0, place, f"no verdict: {_brief(one.trouble, 46)}", fontstyle="italic", **look)
        return
    low, high = (number.format(100 * value) for value in (one.low, one.high))
    spread = f"{low} to {high}" if math.isfinite(one.half) else "all seeds equal"
    beside.text(0, place, f"{number.format(100 * one.mean)}  ({spread})", **look)
    bold = "normal" if one.verdict is Verdict.INCONCLUSIVE else "bold"
    beside.text(0.68, place, str(one.verdict), color=_look(one).colour, fontweight=bold, **look)


def _key(axes: Axes, found: Sequence[Measured]) -> None:
    for verdict, role in LOOKS.items():
        if any(one.verdict is verdict for one in found):
            fill = "white" if verdict is Verdict.INCONCLUSIVE else role.colour
            axes.plot([], [], **{**role.line(str(verdict)), "linestyle": "-", "markerfacecolor": fill})
    axes.plot([], [], ".", color=INK, alpha=0.5, label="one seed")
    axes.figure.legend(loc="outside lower left", ncols=6, frameon=False, fontsize=9, columnspacing=1.2)


def _look(one: Measured) -> Role:
    return LOOKS[one.verdict] if one.verdict else NO_VERDICT


def _verdicts(found: Sequence[Measured]) -> str:
    """All quantities, sorted by verdict; the interval is named where it excludes zero."""
    parts, lines = [], [one for one in _grouped(found) if not isinstance(one, str)]
    for verdict in Verdict:
        sure = verdict is not Verdict.INCONCLUSIVE
        own = [
            f"{one.title} {one.said() if sure else f'{100 * one.mean:+.2f}'}" for one in lines if one.verdict is verdict
        ]
        parts += [f"{verdict}: {'; '.join(own)}."] if own else []
    lost = [f"{one.title} ({one.trouble})" for one in lines if one.trouble]
    return " ".join([*parts, f"No verdict: {'; '.join(lost)}."] if lost else parts)


def _brief(trouble: str, width: int) -> str:
    return textwrap.shorten(re.sub(r" \(.*?\)(?=;|$)", "", trouble), width, placeholder=" ...")
