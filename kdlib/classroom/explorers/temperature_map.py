"""Lesson 05: what alpha and temperature are worth, with five seeds behind each number."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kdlib import study
from kdlib.classroom import plots
from kdlib.classroom.explorers.base import WIDE, Explorer
from kdlib.study.findings import LOWER, Measured, Results
from kdlib.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Details:
    """One cell of the map: what is shown, its difference from hard labels, and the same quantity of hard labels."""

    shown: Measured
    gain: Measured
    hard: Measured


class TemperatureMap(Explorer):
    """The map of alpha and T, measured: choose a cell and see its seeds, their mean, the interval and the verdict.

    results: a grid of the study, default `study.results("grid")`; nothing is trained here. Raises what that raises.
    """

    name = "Temperature map"
    alt = (
        "Left: a heat map with a row for each alpha and a column for each temperature; each cell holds a mean and half "
        "the width of its interval, framed where hard labels are surely beaten or ahead. Right: the chosen cell's "
        "seeds as points beside those of hard labels, with their mean as a line and its interval as a band."
    )
    size = (10.4, 4.3)

    def __init__(self, results: Results | None = None, **start: Any) -> None:
        self.results = study.results("grid") if results is None else results
        self._drawn = ""  # the metric whose map is drawn
        super().__init__(**start)

    def make(self, widgets: Any) -> dict[str, Any]:
        def slider(values: Iterable[float], start: float, text: str) -> Any:
            options = [(f"{value:g}", value) for value in values]
            value = min((value for _, value in options), key=lambda value: abs(value - start))
            return widgets.SelectionSlider(options=options, value=value, description=text, **WIDE)

        return {
            "metric": widgets.Dropdown(options=list(plots.METRICS), description="Metric", **WIDE),
            "alpha": slider(self.results.alphas, 0.1, "alpha (hard labels)"),
            "temperature": slider(self.results.temperatures, 4.0, "Temperature T"),
        }

    def inputs(self) -> tuple[Results, str, float, float]:
        return self.results, *self.state.values()

    @staticmethod
    @lru_cache(maxsize=1024)
    def compute(results: Results, metric: str, alpha: float, temperature: float) -> Details:
        """What the study says of one cell; ValueError for one that was not run."""
        if (alpha, temperature) not in results.cells:
            raise ValueError(f"alpha {alpha:g} with T {temperature:g} was not run. Choose another cell.")
        cell = plots.map_cells(results, metric)[alpha, temperature]
        value, relative = plots.METRICS[metric]
        hard = results.gain(results.baseline, value) if relative else results.score(results.baseline, value)
        return Details(cell.shown, cell.gain, hard)

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        from matplotlib.patches import Rectangle

        left, self._right = figure.subplots(1, 2, width_ratios=(1.6, 1))
        self._map = plots.CellMap(left, self.results.alphas, self.results.temperatures)
        longest = max((self._explained(metric) for metric in plots.METRICS), key=len)
        self._title = left.set_title(longest, fontsize=9)
        look = {"fill": False, "edgecolor": plots.SECOND.colour, "linewidth": 3.5, "linestyle": "--"}
        self._chosen = left.add_patch(Rectangle((0, 0), 0.9, 0.9, **look))
        return [*self._map.artists, self._title, self._right.yaxis], [self._chosen, *self._build_seeds()]

    def _build_seeds(self) -> list[Artist]:
        from matplotlib.patches import Rectangle

        axes, seeds = self._right, self.results.seeds
        places, empty, look = range(len(seeds)), [0.0] * len(seeds), plots.DISTILLED
        band = {"color": look.colour, "alpha": 0.15, "linewidth": 0, "label": "its interval"}
        self._band = axes.add_patch(Rectangle((-0.5, 0), len(seeds), 0, **band))
        (self._mean,) = axes.plot([-0.5, len(seeds) - 0.5], [0, 0], color=look.colour, label="mean")
        (self._hard,) = axes.plot(places, empty, **{**plots.STUDENT.line(), "linestyle": ""})
        (self._seeds,) = axes.plot(places, empty, **{**look.line("chosen alpha and T"), "linestyle": ""})
        axes.set_xticks(places, [str(seed) for seed in seeds])
        axes.set(xlim=(-0.5, len(seeds) - 0.5), xlabel="seed", ylabel="accuracy (%)")
        plots.legend(axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1)
        return [self._band, self._mean, self._hard, self._seeds]

    def update(self, found: Details) -> None:
        metric, alpha, temperature = self.state.values()
        if metric != self._drawn:
            self._drawn = metric
            self._show_metric(metric)
            self.touched()
        row, column = self._map.places[alpha, temperature]
        self._chosen.set_xy((column - 0.45, row - 0.45))
        for points, measured in ((self._seeds, found.shown), (self._hard, found.hard)):
            points.set_ydata([100 * value for value in measured.by_seed.values()])
        self._mean.set_ydata([100 * found.shown.mean] * 2)
        self._band.set_visible(math.isfinite(found.shown.half))
        if math.isfinite(found.shown.half):
            self._band.set(y=100 * found.shown.low, height=200 * found.shown.half)

    def _show_metric(self, metric: str) -> None:
        """What does not depend on the chosen cell: the map, its title, and the axis of the seeds."""
        cells, relative = plots.map_cells(self.results, metric), plots.METRICS[metric][1]
        self._map.fill(cells, diverging=relative)
        self._title.set_text(self._explained(metric))
        hard = self.compute(self.results, metric, *next(iter(cells))).hard
        values = [100 * x for one in (hard, *(cell.shown for cell in cells.values())) for x in one.by_seed.values()]
        low, high = np.nanmin(values), np.nanmax(values)
        room = 0.08 * (high - low) or 0.1
        self._right.set_ylim(low - room, high + room)
        self._right.set_ylabel(f"{metric} ({self._unit(metric)})")

    def _explained(self, metric: str) -> str:
        return textwrap.fill(plots.explained(self.results, metric), 82)

    def lines(self, found: Details) -> list[str]:
        metric, alpha, temperature = self.state.values()
        shown, relative, count = found.shown, plots.METRICS[metric][1], len(self.results.seeds)
        said = f"{shown.said(relative)} {self._unit(metric)}, the mean (and interval) of {count} seeds; standard "
        said += f"deviation {100 * shown.std:.2f}"
        same = " Alpha 1 is hard labels alone, with kd's own settings: T plays no part." * (alpha == 1)
        cell = f"alpha {alpha:g}, T {temperature:g}: {metric} "
        return [
            cell + (f"has no mean, as {shown.trouble}." if shown.trouble else f"{said}.") + same,
            f"By seed: {_by_seed(shown, relative)}" + ("." if relative else f"; hard labels {_by_seed(found.hard)}."),
            f"{self._verdict(found.gain, metric)} On the whole map: {self._counted(metric)}.",
        ]

    def _verdict(self, gain: Measured, metric: str) -> str:
        if gain.trouble:
            return f"No verdict: {gain.trouble}."
        if not math.isfinite(gain.half):
            return f"{gain.verdict}: every seed differs from hard labels by the same {100 * gain.mean:+.2f} points."
        where = (
            f"the interval of the difference from hard labels, {100 * gain.low:+.2f} to {100 * gain.high:+.2f} points"
        )
        if gain.verdict is Verdict.INCONCLUSIVE:
            return f"INCONCLUSIVE: {where}, holds zero, so these seeds cannot tell the two apart."
        less = ", and less is better" if plots.METRICS[metric][0] in LOWER else ""
        side = "above" if gain.mean > 0 else "below"
        return f"{gain.verdict} hard labels: {where}, lies {side} zero{less}."

    def _counted(self, metric: str) -> str:
        verdicts = [cell.gain.verdict for cell in plots.map_cells(self.results, metric).values()]
        words = {Verdict.BEATS: "beat hard labels", Verdict.LOSES: "lose", Verdict.INCONCLUSIVE: "are inconclusive"}
        parts = [f"{verdicts.count(verdict)} {word}" for verdict, word in words.items()]
        lost = verdicts.count(None)
        together = f"({self.results.comparisons} intervals that hold together with 95 %)"
        none = [f"{lost} have no verdict"] if lost else []
        return f"{', '.join([*parts, *none])} of {len(verdicts)} cells {together}"

    @staticmethod
    def _unit(metric: str) -> str:
        return "points" if plots.METRICS[metric][1] else "%"


def _by_seed(one: Measured, signed: bool = False) -> str:
    form = "+.2f" if signed else ".2f"
    values = one.by_seed.items()
    return ", ".join(f"{seed}: {'none' if math.isnan(x) else format(100 * x, form)}" for seed, x in values)
