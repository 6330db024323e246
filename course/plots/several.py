"""Figures of the experiment on several teachers: who taught whom, and what it was worth over one teacher.

own = several_results.load("own")
plots.show(plots.several_ways(own, "best single"), alt=plots.several_ways_alt(own, "best single"))
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from course.plots.forest_plot import VERDICT_ROLES
from course.plots.theme import BASELINE, DISTILLED, NEUTRAL, TEACHER, figure
from kdlib.verdict import Comparison, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course.experiments.several_results import SeveralResults

VERDICT_AT = 130  # points from the numbers in the panel of words, wide enough for -10.00 (-10.00 to +10.00)


def several_ways(results: SeveralResults, baseline: str, ways: Sequence[str] | None = None) -> Figure:
    """Left: accuracy of what taught and of the student, for each way; right: the student's gain over the baseline's."""
    names = _names(results, baseline, ways)
    gains = {gain.way: gain.comparison for gain in results.compare(baseline, names)}
    fig, (left, right, beside) = gain_panels(len(names), 1.6 + 0.34 * len(names))
    for y, name in enumerate(names):
        one = results[name]
        if one.teacher is not None:
            left.plot([one.teacher, one.accuracy], [y, y], "-", color=NEUTRAL.colour, linewidth=1, zorder=1)
            taught_by = "what teaches" if y == _first(results, names) else "_"
            left.plot([one.teacher], [y], **TEACHER.line(taught_by, linestyle=""))
        role = BASELINE if name == baseline else DISTILLED
        label = "student" if y == 1 else "student of the baseline" if name == baseline else "_"
        left.plot([one.accuracy], [y], **role.line(label, linestyle=""))
        if name in gains:
            draw_gain(right, beside, y, gains[name])
    left.set_yticks(range(len(names)), names)
    left.set(xlabel="test accuracy (%)", ylabel="way of teaching")
    right.set_xlabel(describe_gains(f"gain over {baseline!r} (points)", gains.values()))
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return fig


def several_ways_alt(results: SeveralResults, baseline: str, ways: Sequence[str] | None = None) -> str:
    """What `several_ways` shows, in words."""
    names = _names(results, baseline, ways)
    gains = {gain.way: gain.comparison for gain in results.compare(baseline, names)}
    lines = []
    for name in names:
        one = results[name]
        teacher = "" if one.teacher is None else f"teacher {one.teacher:.1f} %, "
        found = gains.get(name)
        gain = "" if found is None else f", {found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f}), {found.verdict}"
        lines.append(f"{name}: {teacher}student {one.accuracy:.1f} %{gain}")
    return f"Accuracies, and gains over {baseline!r} with their intervals. {'; '.join(lines)}."


def _names(results: SeveralResults, baseline: str, ways: Sequence[str] | None) -> list[str]:
    names = list(results.ways if ways is None else ways)
    return [baseline, *(name for name in names if name != baseline)]


def _first(results: SeveralResults, names: Sequence[str]) -> int:
    """The first way that has a teacher: it carries the label."""
    return next(y for y, name in enumerate(names) if results[name].teacher is not None)


def gain_panels(rows: int, height: float) -> tuple[Figure, tuple[Axes, Axes, Axes]]:
    """Three panels with the same rows: for accuracies, for gains with a line at zero, and for the gains in words."""
    fig, (left, right, beside) = figure(9.6, height, columns=3, sharey=True, width_ratios=(0.85, 1, 0.05))
    fig.set_layout_engine("constrained", w_pad=0.09)  # inches: ticks at the ends of two scales stay apart
    left.set_ylim(rows - 0.5, -0.5)
    right.axvline(0, color=BASELINE.colour, linestyle=BASELINE.linestyle, linewidth=1.5, zorder=1)
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    beside.axis("off")  # its words stand beyond it, and the layout leaves them the room that they need
    top: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "fontweight": "bold"}
    for right_by, heading in ((0, "gain (interval)"), (VERDICT_AT, "verdict")):
        beside.annotate(heading, (0, 1), xytext=(right_by, 3), va="bottom", fontsize=9, **top)
    return fig, (left, right, beside)


def draw_gain(axes: Axes, beside: Axes, y: float, found: Comparison) -> None:
    """A gain with its interval in one row of the second panel, and in words in the third."""
    role, unclear = VERDICT_ROLES[found.verdict], found.verdict is Verdict.INCONCLUSIVE
    look: dict[str, Any] = {"color": role.colour, "zorder": 3}
    axes.plot([found.low, found.high], [y, y], "-", linewidth=2, **look)
    fill = "white" if unclear else role.colour
    axes.plot([found.mean], [y], role.marker, markersize=7, markerfacecolor=fill, markeredgewidth=1.5, **look)
    words: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    beside.annotate(f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})", (0, y), xytext=(0, 0), **words)
    words |= {"color": role.ink, "fontweight": "normal" if unclear else "bold"}
    beside.annotate(str(found.verdict), (0, y), xytext=(VERDICT_AT, 0), **words)


def describe_gains(what: str, comparisons: Iterable[Comparison]) -> str:
    """The label of the second panel: what is gained, what the intervals hold, and how many seeds there are."""
    found, what = list(comparisons), textwrap.fill(what, 32)
    counts = sorted({one.n for one in found})
    seeds = f"{' to '.join(map(str, counts[:: len(counts) - 1 or 1]))} seeds"
    if len(found) == 1:
        return f"{what}\n95 % interval, {seeds}"
    return f"{what}\n95 % intervals, {seeds};\nthey hold together for all {len(found)}"
