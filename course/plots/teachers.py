"""Figures of the study on teachers: what each was worth to its students, and against what that was held.

results = teacher_results.load()
plots.show(plots.teacher_gains(results), alt=plots.teacher_gains_alt(results))
plots.show(plots.gain_against(results, "article-student"), alt=plots.gain_against_alt(results, "article-student"))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from course.plots.forest_plot import VERDICT_ROLES
from course.plots.theme import BASELINE, DISTILLED, figure
from kdlib.verdict import Comparison, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course.experiments.teacher_results import TeacherResults

KINDS = {  # marker and words for each kind of teacher
    "all images": ("s", "55,000 images, or shipped"),
    "calibrated": ("P", "the same, calibrated"),
    "fewer images": ("o", "10,000 images"),
    "assistant": ("X", "taught by another one"),
    "badly taught": ("<", "10,000 images, badly taught"),
    "ensemble": ("*", "ensemble"),
    "stopped early": ("v", "stopped early"),
    "smoothed": ("D", "label smoothing"),
}
STUDENT_WORDS = {"resnet8": "ResNet-8", "article-student": "the article's student"}
MEASURE_LABELS = {
    "accuracy": "validation accuracy (%)",
    "size": "parameters (logarithmic)",
    "confidence": "mean confidence (%)",
    "calibration": "calibration error (points)",
    "entropy": "entropy at T = 4 (nats)",
}
MEASURE_WORDS = {
    "accuracy": "accuracy",
    "size": "size",
    "confidence": "confidence",
    "calibration": "calibration error",
    "entropy": "entropy",
}


def kind_marker(kind: str, **options: Any) -> dict[str, Any]:
    """Arguments for `axes.plot`: a point in the colour of distilled students, its marker that of the kind."""
    marker = KINDS[kind][0]
    look = {"color": DISTILLED.colour, "marker": marker, "linestyle": "", "markersize": 11 if marker == "*" else 7}
    return {**look, **options}


def teacher_gains(results: TeacherResults, over: str = "hard labels") -> Figure:
    """A line for each teacher, the least accurate first, and a column for each student: gain, interval, verdict."""
    names = _by_accuracy(results, over)
    students = results.students
    fig, columns = figure(
        4.8 + 2.4 * len(students), 0.33 * len(names) + 1.6, columns=len(students), sharey=True, squeeze=False
    )
    for axes, student in zip(columns[0], students, strict=True):
        found = {gain.arm.teacher: gain.comparison for gain in results.gains(student, over)}
        for y, name in enumerate(names):
            if name in found:
                _draw_interval(axes, y, found[name])
            else:
                words = results.why_left_out(student, name)
                axes.text(0.01, y, words, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.axvline(0, color=BASELINE.colour, linestyle=BASELINE.linestyle, linewidth=1.5, zorder=1)
        what = _title(results, over)
        family = f"95 % intervals, which hold together for all {results.family(student) - (over != 'hard labels')}"
        axes.set(title=f"student: {STUDENT_WORDS[student]}", xlabel=f"gain over {what} (points)\n{family}")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    columns[0][0].set_yticks(range(len(names)), [_title(results, name) for name in names])
    columns[0][0].set(ylabel="teacher, the least accurate first", ylim=(len(names) - 0.5, -0.5))
    for verdict, role in VERDICT_ROLES.items():
        columns[0][-1].plot([], [], **_verdict_look(verdict), label=str(verdict), linestyle="-", color=role.colour)
    fig.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return fig


def _by_accuracy(results: TeacherResults, over: str) -> list[str]:
    """The teachers of which there are runs, the least accurate first; those that were not measured come last."""
    run = [name for student in results.students for name in results.tried(student) if name != over]
    known = results.facts
    return sorted(dict.fromkeys(run), key=lambda name: known[name].accuracy if name in known else math.inf)


def _verdict_look(verdict: Verdict) -> dict[str, Any]:
    role = VERDICT_ROLES[verdict]
    fill = "white" if verdict is Verdict.INCONCLUSIVE else role.colour
    return {"marker": role.marker, "markersize": 7, "markerfacecolor": fill, "markeredgewidth": 1.5}


def _draw_interval(axes: Axes, y: float, found: Comparison) -> None:
    colour = VERDICT_ROLES[found.verdict].colour
    axes.plot([found.low, found.high], [y, y], "-", linewidth=2, color=colour, zorder=3)
    axes.plot([found.mean], [y], color=colour, zorder=3, **_verdict_look(found.verdict))


def _title(results: TeacherResults, teacher: str) -> str:
    return next(arm.title for (_, name), arm in results.arms.items() if name == teacher)


def teacher_gains_alt(results: TeacherResults, over: str = "hard labels") -> str:
    """What `teacher_gains` shows, in words."""
    what = _title(results, over)
    parts = [f"{STUDENT_WORDS[one]}: {'; '.join(map(str, results.gains(one, over)))}" for one in results.students]
    return f"Gains over {what} in points, with intervals. {'. '.join(parts)}."


def gain_against(
    results: TeacherResults, student: str, measures: Sequence[str] = ("accuracy", "size", "confidence", "calibration")
) -> Figure:
    """What each teacher was worth to a student, against each of these measures of the teacher.

    The intervals are those of single gains, not of a family: here the question is an order, not a verdict.
    """
    fig, grid = figure(9.6, 2.9 * math.ceil(len(measures) / 2), rows=math.ceil(len(measures) / 2), columns=2,
                       sharey=True, squeeze=False)  # fmt: skip
    for axes, measure in zip(grid.flat, measures, strict=False):
        draw_gains_against(axes, results, student, measure)
        found = results.tau(student, measure)
        axes.set_title(f"tau {found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})", fontsize=10, loc="left")
    for axes in grid.flat[len(measures) :]:
        axes.axis("off")
    for row in grid:
        row[0].set_ylabel("gain over hard labels (points)")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return fig


def draw_gains_against(axes: Axes, results: TeacherResults, student: str, measure: str) -> None:
    """Gains against one measure, into axes that are there, with an interval for each."""
    drawn = set()
    for name in results.teachers(student):
        one, found = results.facts[name], results.gain(student, name).comparison
        x = axis_value(one.measure(measure), measure)
        axes.plot([x, x], [found.low, found.high], "-", color=DISTILLED.colour, linewidth=0.8)
        label = None if one.kind in drawn else KINDS[one.kind][1]
        axes.plot([x], [found.mean], **kind_marker(one.kind, label=label, zorder=3))
        drawn.add(one.kind)
    axes.axhline(0, color=BASELINE.colour, linestyle=BASELINE.linestyle, linewidth=1.5, zorder=1)
    axes.set_xlabel(MEASURE_LABELS[measure])
    if measure == "size":
        log_size(axes)


def axis_value(value: float, measure: str) -> float:
    """Where a measure lies on its axis: sizes, which are in millions, as numbers of parameters."""
    return 1e6 * value if measure == "size" else value


def log_size(axes: Axes) -> None:
    """A logarithmic axis of parameters, with ticks such as 100 k and 10 M."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def gain_against_alt(
    results: TeacherResults, student: str, measures: Sequence[str] = ("accuracy", "size", "confidence", "calibration")
) -> str:
    """What `gain_against` shows, in words."""
    taus = [f"{MEASURE_WORDS[one]}: {str(results.tau(student, one)).partition(': ')[2]}" for one in measures]
    return f"The gain of {STUDENT_WORDS[student]} against measures of its teacher. {'; '.join(taus)}."
