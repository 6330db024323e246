"""Lesson 09: plan an experiment, and see what it would have shown, forty times over."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from course import planning, plots
from course.explorers.base import CONTROL_STYLE, Explorer
from course.planning import Plan, Simulated

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

SHOWN = 40  # experiments in the left panel
GAINS, ARROW = (-2.0, 3.0), 0.05  # points: the axis of the left panel, and the room for an arrow at its ends
SEEDS = tuple(range(2, 21))
IMAGES = (500, 1_000, 2_000, 5_000, 10_000, 50_000)
WANTED = 80  # of 100 experiments: the usual aim
VERDICTS = ((1, "BEATS", plots.DISTILLED), (0, "INCONCLUSIVE", plots.NEUTRAL), (-1, "LOSES", plots.BASELINE))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the planner shows: the experiments drawn, many more, the power by seeds, and the seeds that would do."""

    plan: Plan
    shown: Simulated
    many: Simulated
    powers: tuple[float, ...]
    needed: int | None


class Planner(Explorer):
    """Choose gain, spread, seeds, test pictures and methods: forty simulated experiments, and the power by seeds."""

    name = "Planner"
    alt = (
        "Left: forty intervals below each other, one for each simulated experiment, blue circles where the verdict is "
        "BEATS, grey diamonds for INCONCLUSIVE, orange-red squares for LOSES; a solid line at zero, a dotted one at "
        "the true gain, triangles at the ends of the axis for means beyond it. Right: a line, the experiments "
        "of 100 with the right verdict against the number of seeds, with a ring at the chosen one and a dashed line "
        "at 80; it rises where there is a gain."
    )
    size = (10.4, 4.2)

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        def slider(kind: str, description: str, low: float, high: float, step: float, value: float) -> Any:
            options = {"min": low, "max": high, "step": step, "value": value, "description": description}
            return getattr(widgets, kind)(**options, **CONTROL_STYLE)

        images = [(f"{count:,}", count) for count in IMAGES]
        return {
            "gain": slider("FloatSlider", "True gain (points)", 0, 2, 0.1, 0.5),
            "spread": slider("FloatSlider", "Spread", 0.1, 1, 0.1, 0.3),
            "seeds": slider("IntSlider", "Seeds", SEEDS[0], SEEDS[-1], 1, 5),
            "images": widgets.SelectionSlider(
                options=images, value=10_000, description="Test pictures", **CONTROL_STYLE
            ),
            "methods": slider("IntSlider", "Methods compared", 1, 20, 1, 1),
            "luck": slider("IntSlider", "Another forty", 1, 20, 1, 1),
        }

    def inputs(self) -> tuple[Plan, int]:
        state = self.state
        plan = Plan(
            round(state["gain"], 6), round(state["spread"], 6), state["seeds"], state["images"], state["methods"]
        )
        return plan, state["luck"]

    @staticmethod
    @lru_cache(maxsize=256)
    def compute(plan: Plan, luck: int) -> Outcome:
        """Simulate a plan; luck: which forty experiments are shown."""
        powers = tuple(planning.powers(plan, SEEDS))
        needed = next((count for count, one in zip(SEEDS, powers, strict=True) if one >= WANTED), None)
        return Outcome(plan, planning.simulate(plan, SHOWN, luck), planning.simulate(plan), powers, needed)

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        from matplotlib.collections import LineCollection

        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        left.axvline(0, color=plots.INK, linewidth=1)
        (self._truth,) = left.plot([0, 0], [-1, SHOWN], color=plots.INK, linestyle=":", linewidth=1.5)
        self._truth.set_label("true gain")
        self._intervals = LineCollection([], linewidths=1.5)
        left.add_collection(self._intervals)
        self._points = []
        for _, label, role in VERDICTS:
            look = role.line(label, linestyle="", markersize=4)
            (points,) = left.plot([], [], **look)
            self._points.append(points)
        # At the ends of the axis, for means beyond it.
        self._beyond = [left.scatter([], [], s=30, marker=marker) for marker in ("<", ">")]
        left.set(xlim=GAINS, ylim=(SHOWN, -1), xlabel="gain (points of accuracy)", ylabel="experiment")
        plots.legend(left, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, columnspacing=1, handlelength=1.2)
        right.axhline(WANTED, color=plots.INK, linestyle="--", linewidth=1)
        (self._power,) = right.plot(SEEDS, [0] * len(SEEDS), color=plots.INK, marker=".", linewidth=1.5)
        ring = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgewidth": 2, "linestyle": ""}
        (self._ring,) = right.plot([SEEDS[0]], [0], color=plots.INK, **ring)
        right.set(xlim=(1, 21), ylim=(-3, 103), xlabel="seeds", ylabel="right verdicts (of 100 experiments)")
        right.set_xticks([2, 5, 10, 15, 20])
        return [], [self._intervals, *self._points, *self._beyond, self._truth, self._power, self._ring]

    def update(self, result: Outcome) -> None:
        shown, rows = result.shown, np.arange(SHOWN)
        ends = np.stack([np.stack([shown.low, rows], 1), np.stack([shown.high, rows], 1)], 1)
        by_verdict = {value: role.colour for value, _, role in VERDICTS}
        colours = np.array([by_verdict[int(value)] for value in shown.verdicts])
        self._intervals.set_segments(list(ends))
        self._intervals.set_color(colours.tolist())
        beyond = (shown.mean < GAINS[0], shown.mean > GAINS[1])
        for points, (value, _, _) in zip(self._points, VERDICTS, strict=True):
            chosen = (shown.verdicts == value) & ~beyond[0] & ~beyond[1]
            points.set_data(shown.mean[chosen], rows[chosen])
        for arrows, chosen, end in zip(self._beyond, beyond, (GAINS[0] + ARROW, GAINS[1] - ARROW), strict=True):
            arrows.set_offsets(np.stack([np.full(chosen.sum(), end), rows[chosen]], 1))
            arrows.set_facecolor(colours[chosen].tolist())
        self._truth.set_xdata([result.plan.gain] * 2)
        self._power.set_ydata(result.powers)
        self._ring.set_data([result.plan.seeds], [result.powers[SEEDS.index(result.plan.seeds)]])

    def describe_lines(self, result: Outcome) -> list[str]:
        plan, shown = result.plan, result.shown
        methods = f"{plan.methods} methods" if plan.methods > 1 else "one method"
        width = float(np.median(result.many.high - result.many.low)) / 2
        counts = ", ".join(f"{int((shown.verdicts == value).sum())} {label}" for value, label, _ in VERDICTS)
        held = round(shown.covered * SHOWN)
        first = f"True gain {plan.gain:g} points, spread {plan.spread:g}; {plan.seeds} seeds, {plan.images:,} test "
        first += f"pictures, {methods}: half of the intervals are narrower than ±{width:.2f} points."
        return [
            first,
            f"The {SHOWN} experiments drawn: {counts}; {held} intervals hold the true gain.",
            f"Of {planning.MANY:,} experiments, {_format_power(100 * result.many.right)}% have the right verdict, "
            f"{'BEATS' if plan.sign else 'INCONCLUSIVE'}. {self._describe_needed(result)}",
        ]

    def _describe_needed(self, result: Outcome) -> str:
        plan = result.plan
        if plan.sign == 0:
            if plan.methods == 1:
                return "A 95 % interval is made to be wrong in about 5 % of studies."
            chance = planning.false_alarm(plan.methods)
            what = f"one of {plan.methods} such methods"
            alone = f"Without a correction for several methods, {what} would get a verdict in {chance:.0%} of studies"
            return f"{alone} if they were independent, and in fewer where they share a baseline."
        if result.needed is not None:
            return f"For {WANTED} % it takes {result.needed} seeds."
        more = planning.power(replace(plan, seeds=SEEDS[-1]))
        return f"{SEEDS[-1]} seeds are not enough for {WANTED} %: they reach {_format_power(more)} %."


def _format_power(percent: float) -> str:
    """Without decimals, but for what is below the wanted share and would be rounded up to it."""
    return f"{math.floor(10 * percent) / 10:.1f}" if WANTED - 0.5 <= percent < WANTED else f"{percent:.0f}"
