"""Lesson 10: a teacher among all others, what is known of it, and what its students got from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from course import plots
from course.experiments import teacher_results
from course.experiments.teacher_results import REFERENCE, STUDENT_TITLES, Arm, Gain, TeacherFacts
from course.experiments.teacher_students import HARD
from course.explorers.base import CONTROL_STYLE, Explorer

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

    from course.experiments.teacher_results import TeacherResults

WORDS = {
    "accuracy": "accuracy",
    "size": "size",
    "confidence": "confidence",
    "calibration": "calibration error",
    "entropy": "entropy at T = 4",
}


@dataclass(frozen=True, eq=False)
class Choice:
    """One teacher of one student, in the order of the chosen measure.

    gain: over hard labels, one of the family of all teachers. over_reference: over the reference teacher, likewise;
    None for the reference itself. rank, count: its place among the teachers by the measure, the largest first.
    """

    facts: TeacherFacts
    gain: Gain
    over_reference: Gain | None
    hard: Arm
    rank: int
    count: int


class Teachers(Explorer):
    """Choose a student and a measure, and walk through the teachers: what the student got from each, seed by seed.

    results: default `teacher_results.load()`, which raises FileNotFoundError if there are none.
    """

    name = "Teachers"
    alt = (
        "Left: the gain of a student over hard labels against a measure of its teacher, a point with its single "
        "interval for each teacher, a ring around the chosen one. Right: test accuracy of each seed, squares on hard "
        "labels joined to circles with the chosen teacher."
    )
    size = (10.4, 3.9)

    def __init__(self, results: TeacherResults | None = None, **initial: Any) -> None:
        self.results = teacher_results.load() if results is None else results
        super().__init__(**initial)

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        students = [(STUDENT_TITLES[name], name) for name in self.results.students]
        measures = [(words, name) for name, words in WORDS.items()]
        first = students[0][1]
        return {
            "teacher": widgets.SelectionSlider(options=self._teachers(first), description="Teacher", **CONTROL_STYLE),
            "student": widgets.Dropdown(options=students, value=first, description="Student", **CONTROL_STYLE),
            "measure": widgets.Dropdown(options=measures, description="Measure on the axis", **CONTROL_STYLE),
        }

    def _teachers(self, student: str) -> list[tuple[str, str]]:
        return [(self.results.facts[name].title, name) for name in self.results.teachers(student)]

    def sync_controls(self) -> None:
        """Offer the teachers that were run for the chosen student; keep the present one, or take the first."""
        control, options = self.controls["teacher"], self._teachers(self.controls["student"].value)
        if list(control.options) == options:
            return
        present, names = control.value, [name for _, name in options]
        control.options = options
        control.value = present if present in names else names[0]

    def _assign(self, values: dict[str, Any]) -> None:
        """The student first: which teachers there are depends on it."""
        super()._assign({name: value for name, value in values.items() if name == "student"})
        self.sync_controls()
        super()._assign({name: value for name, value in values.items() if name != "student"})

    def inputs(self) -> tuple[TeacherResults, str, str, str]:
        state = self.state
        return self.results, state["student"], state["teacher"], state["measure"]

    @staticmethod
    @lru_cache(maxsize=256)
    def compute(results: TeacherResults, student: str, teacher: str, measure: str) -> Choice:
        """What the rows say of one teacher of one student; raises ValueError for one that was not run."""
        names = results.teachers(student)
        family = results.family(student)
        gain = results.gain(student, teacher, comparisons=family)
        over = None
        if teacher != REFERENCE and REFERENCE in names:
            over = results.gain(student, teacher, REFERENCE, comparisons=family - 1)
        value = results.facts[teacher].measure(measure)
        rank = 1 + sum(results.facts[name].measure(measure) > value for name in names)
        return Choice(results.facts[teacher], gain, over, results.arms[student, HARD], rank, len(names))

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        self._map, self._seeds = figure.subplots(1, 2, width_ratios=(1.7, 1))
        everyone = [name for name in teacher_results.TITLES if name in self.results.facts]
        self._points, self._bars = {}, {}
        for name in everyone:
            (bar,) = self._map.plot([1, 1], [0, 0], "-", color=plots.DISTILLED.colour, linewidth=0.8)
            (point,) = self._map.plot([1], [0], **plots.kind_marker(self.results.facts[name].kind, zorder=3))
            self._points[name], self._bars[name] = point, bar
        for kind in dict.fromkeys(self.results.facts[name].kind for name in everyone):
            self._map.plot([], [], **plots.kind_marker(kind, label=plots.KINDS[kind][1]))
        plots.legend(self._map, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1, handlelength=1.2)
        ring = {"marker": "o", "markersize": 17, "markerfacecolor": "none", "markeredgewidth": 2, "linestyle": ""}
        (self._ring,) = self._map.plot([1], [0], color=plots.INK, zorder=5, **ring)
        line = {"color": plots.BASELINE.colour, "linestyle": plots.BASELINE.linestyle, "linewidth": 1.5}
        zero = self._map.axhline(0, zorder=1, **line)
        self._map.set(xlabel=max(plots.MEASURE_LABELS.values(), key=len), ylabel="gain over hard labels (points)")
        self._build_seeds()
        self._move_map(self.results.students[0], "accuracy")  # always the same, as the layout is made for it
        cached = [zero, *self._bars.values(), *self._points.values(), self._map.xaxis, self._map.yaxis]
        return cached, [self._ring, *self._pairs, self._hard, self._taught, self._seeds.yaxis]

    def _build_seeds(self) -> None:
        axes = self._seeds
        arms = [arm for arm in self.results.arms.values() if arm.student in self.results.students]
        self._count = max(len(arm.accuracies) for arm in arms)
        self._pairs = [axes.plot([0, 1], [90, 90], "-", color=plots.INK, linewidth=1, alpha=0.4)[0]
                       for _ in range(self._count)]  # fmt: skip
        (self._hard,) = axes.plot([0] * self._count, [90.0] * self._count, **plots.BASELINE.line(linestyle=""))
        (self._taught,) = axes.plot([1] * self._count, [90.0] * self._count, **plots.DISTILLED.line(linestyle=""))
        axes.set_xticks([0, 1], ["hard labels", "this teacher"])
        axes.set(xlim=(-0.4, 1.4), xlabel="what the student learned from", ylabel="test accuracy (%)")
        axes.grid(visible=False, axis="x")

    def _move_map(self, student: str, measure: str) -> None:
        """Put all points where they belong for a student and a measure."""
        names, values, ends = self.results.teachers(student), [], [0.0]
        for name in self._points:
            point, bar = self._points[name], self._bars[name]
            for artist in (point, bar):
                artist.set_visible(name in names)
            if name in names:
                found = self.results.gain(student, name).comparison
                x = plots.axis_value(self.results.facts[name].measure(measure), measure)
                point.set_data([x], [found.mean])
                bar.set_data([x, x], [found.low, found.high])
                values.append(x)
                ends += [found.low, found.high]
        self._map.set_xscale("linear")
        self._map.set_xlabel(plots.MEASURE_LABELS[measure])
        if measure == "size":
            plots.log_size(self._map)
            self._map.set_xlim(min(values) / 1.6, max(values) * 1.6)
        else:
            room = 0.08 * (max(values) - min(values) or 1.0)
            self._map.set_xlim(min(values) - room, max(values) + room)
        room = 0.08 * (max(ends) - min(ends))
        self._map.set_ylim(min(ends) - room, max(ends) + room)
        arms = [self.results.arms[student, name] for name in (HARD, *names)]
        scores = [value for arm in arms for value in arm.accuracies.values()]
        self._seeds.set_ylim(min(scores) - 0.5, max(scores) + 0.5)

    def update(self, result: Choice) -> None:
        student, measure = self.state["student"], self.state["measure"]
        self.draw_cached((student, measure), lambda: self._move_map(student, measure))
        x = plots.axis_value(result.facts.measure(measure), measure)
        self._ring.set_data([x], [result.gain.comparison.mean])
        seeds = sorted(result.hard.accuracies)
        hard = [result.hard.accuracies[seed] for seed in seeds]
        taught = [result.gain.arm.accuracies[seed] for seed in seeds]
        self._hard.set_data([0] * len(seeds), hard)
        self._taught.set_data([1] * len(seeds), taught)
        for place, line in enumerate(self._pairs):
            shown = place < len(seeds)
            line.set_visible(shown)
            if shown:
                line.set_data([0, 1], [hard[place], taught[place]])

    def describe_lines(self, result: Choice) -> list[str]:
        one, found = result.facts, result.gain.comparison
        facts = (
            f"{one.title}: {one.accuracy:.2f} % of the validation images, {_parameters(one.size)}, mean confidence "
            f"{one.confidence:.1f} %, calibration error {one.calibration:.2f} points, entropy {one.entropy:.2f} nats "
            f"at T = 4; place {result.rank} of {result.count} by {WORDS[self.state['measure']]}, the largest first."
        )
        arm = result.gain.arm
        alone = self.results.gain(arm.student, one.name).comparison
        gain = (
            f"The student ({STUDENT_TITLES[arm.student]}, T = {arm.temperature:g}): {arm.mean:.2f} % of the test "
            f"images, on hard labels {result.hard.mean:.2f} %; gain {found.mean:+.2f} points ({found.low:+.2f} to "
            f"{found.high:+.2f}, one of {found.comparisons}), {found.verdict}. Its bar is the single interval, "
            f"{alone.low:+.2f} to {alone.high:+.2f}."
        )
        return [facts, gain, self._describe_reference(result)]

    def _describe_reference(self, result: Choice) -> str:
        title = teacher_results.TITLES[REFERENCE]
        if result.over_reference is None:
            return "This is the teacher that the others are compared with." if result.facts.name == REFERENCE else ""
        found = result.over_reference.comparison
        return f"Over {title}, as teacher: {found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f}), {found.verdict}."


def _parameters(millions: float) -> str:
    return f"{millions:.1f} million parameters" if millions >= 1 else f"{1e3 * millions:.0f} thousand parameters"
