"""Figures of the experiment on several teachers: who taught whom, and what it was worth over one teacher.

own = several_results.load("own")
plots.show(plots.several_ways(own, "best single"), alt=plots.several_ways_alt(own, "best single"))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from course.plots.forest_plot import VERDICT_ROLES
from course.plots.theme import BASELINE, DISTILLED, NEUTRAL, TEACHER, figure
from kdlib.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course.experiments.several_results import Gain, SeveralResults


def several_ways(results: SeveralResults, baseline: str, ways: Sequence[str] | None = None) -> Figure:
    """Left: accuracy of what taught and of the student, for each way; right: the student's gain over the baseline's."""
    names = _names(results, baseline, ways)
    gains = {gain.way: gain for gain in results.compare(baseline, names)}
    fig, (left, right) = figure(9.6, 1.5 + 0.34 * len(names), columns=2, sharey=True, width_ratios=(1, 1.15))
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
            _draw_interval(right, y, gains[name])
    left.set_yticks(range(len(names)), names)
    left.set(xlabel="test accuracy (%)", ylabel="way of teaching", ylim=(len(names) - 0.5, -0.5))
    right.axvline(0, color=BASELINE.colour, linestyle=BASELINE.linestyle, linewidth=1.5, zorder=1)
    right.set_xlabel(f"gain over {baseline!r} (points)\n95 % intervals, which hold together for all {len(gains)}")
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    low, high = right.get_xlim()
    right.set_xlim(low, high + 1.35 * (high - low))  # room for the words
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


def _draw_interval(axes: Axes, y: float, gain: Gain) -> None:
    found = gain.comparison
    role = VERDICT_ROLES[found.verdict]
    unclear = found.verdict is Verdict.INCONCLUSIVE
    look: dict[str, Any] = {"color": role.colour, "zorder": 3}
    axes.plot([found.low, found.high], [y, y], "-", linewidth=2, **look)
    fill = "white" if unclear else role.colour
    axes.plot([found.mean], [y], role.marker, markersize=7, markerfacecolor=fill, markeredgewidth=1.5, **look)
    axes.annotate(
        f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})  {found.verdict}",
        (found.high, y),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=role.ink,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # where it lies on the line at zero
        fontweight="normal" if unclear else "bold",
    )
