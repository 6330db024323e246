"""Lesson 05: gains over alpha and temperature, with five seeds behind each number."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from course import older_search, plots
from course.explorers.base import CONTROL_STYLE, Explorer
from kdlib import study
from kdlib.study.analysis import LOWER_IS_BETTER, Estimate, Results
from kdlib.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CellDetails:
    """One cell of the map: the quantity shown, its difference from hard labels, and the quantity of hard labels."""

    value: Estimate
    gain: Estimate
    baseline: Estimate


class TemperatureMap(Explorer):
    """A heat map over alpha and T: choose a cell to see its seeds, their mean, the interval and the verdict.

    results: a grid of the study, default that in data/results/older-search; FileNotFoundError if it is missing. Nothing
    is trained here.
    """

    name = "Temperature map"
    alt = (
        "Left: a heat map with a row for each alpha and a column for each temperature; each cell holds a mean and half "
        "the width of its interval, framed where the interval of the difference from hard labels excludes zero. Right: "
        "the chosen cell's seeds as points beside those of hard labels, with their mean as a line and its interval as "
        "a band."
    )
    size = (10.4, 4.3)

    def __init__(self, results: Results | None = None, **initial: Any) -> None:
        self.results = study.results("grid", folder=older_search.folder()) if results is None else results
        super().__init__(**initial)

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        def slider(values: Iterable[float], default: float, description: str) -> Any:
            options = [(f"{value:g}", value) for value in values]
            value = min((value for _, value in options), key=lambda value: abs(value - default))
            return widgets.SelectionSlider(options=options, value=value, description=description, **CONTROL_STYLE)

        return {
            "metric": widgets.Dropdown(options=list(plots.MAP_METRICS), description="Metric", **CONTROL_STYLE),
            "alpha": slider(self.results.alphas, 0.1, "alpha (hard labels)"),
            "temperature": slider(self.results.temperatures, 4.0, "Temperature T"),
        }

    def inputs(self) -> tuple[Results, str, float, float]:
        return self.results, *self.state.values()

    @staticmethod
    @lru_cache(maxsize=1024)
    def compute(results: Results, metric: str, alpha: float, temperature: float) -> CellDetails:
        """What the study found for one cell; raises ValueError for a cell that was not run."""
        if (alpha, temperature) not in results.grid:
            raise ValueError(f"alpha {alpha:g} with T {temperature:g} was not run. Choose another cell.")
        cell = plots.heatmap_cells(results, metric)[alpha, temperature]
        value, relative = plots.MAP_METRICS[metric]
        baseline = results.gain(results.baseline, value) if relative else results.score(results.baseline, value)
        return CellDetails(cell.value, cell.gain, baseline)

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        from matplotlib.patches import Rectangle

        left, self._right = figure.subplots(1, 2, width_ratios=(1.6, 1))
        self._heatmap = plots.AnnotatedHeatmap(left, self.results.alphas, self.results.temperatures)
        longest = max((self._caption(metric) for metric in plots.MAP_METRICS), key=len)
        self._title = left.set_title(longest, fontsize=9)
        self._selection = Rectangle((0, 0), 0.98, 0.98, fill=False, edgecolor=plots.INK, linewidth=4, clip_on=False)
        left.add_patch(self._selection)
        return [*self._heatmap.artists, self._title, self._right.yaxis], [self._selection, *self._build_seeds()]

    def _build_seeds(self) -> list[Artist]:
        from matplotlib.patches import Rectangle

        axes, seeds = self._right, self.results.seeds
        positions, empty, role = range(len(seeds)), [0.0] * len(seeds), plots.DISTILLED
        self._band = Rectangle(
            (-0.5, 0), len(seeds), 0, color=role.colour, alpha=0.15, linewidth=0, label="its interval"
        )
        axes.add_patch(self._band)
        (self._mean,) = axes.plot([-0.5, len(seeds) - 0.5], [0, 0], color=role.colour, linestyle="-", label="mean")
        (self._baseline,) = axes.plot(positions, empty, **plots.BASELINE.line(linestyle=""))
        (self._seeds,) = axes.plot(positions, empty, **role.line("distilled, chosen cell", linestyle=""))
        axes.set_xticks(positions, [str(seed) for seed in seeds])
        axes.set(xlim=(-0.5, len(seeds) - 0.5), xlabel="seed", ylabel="accuracy (%)")
        plots.legend(axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1)
        return [self._band, self._mean, self._baseline, self._seeds]

    def update(self, result: CellDetails) -> None:
        metric, alpha, temperature = self.state.values()
        self.draw_cached(metric, lambda: self._update_cached(metric))
        row, column = self._heatmap.positions[alpha, temperature]
        self._selection.set_xy((column - 0.49, row - 0.49))
        for points, estimate in ((self._seeds, result.value), (self._baseline, result.baseline)):
            points.set_ydata([100 * value for value in estimate.by_seed.values()])
        self._mean.set_ydata([100 * result.value.mean] * 2)
        self._band.set_visible(math.isfinite(result.value.half_width))
        if math.isfinite(result.value.half_width):
            self._band.set(y=100 * result.value.low, height=200 * result.value.half_width)

    def _update_cached(self, metric: str) -> None:
        """All that does not depend on the chosen cell: the map, its title, and the axis of the seeds."""
        cells, relative = plots.heatmap_cells(self.results, metric), plots.MAP_METRICS[metric][1]
        self._heatmap.fill(cells, diverging=relative)
        self._title.set_text(self._caption(metric))
        baseline = self.compute(self.results, metric, *next(iter(cells))).baseline
        shown = (baseline, *(cell.value for cell in cells.values()))
        values = [100 * value for estimate in shown for value in estimate.by_seed.values()]
        values += [100 * end for one in shown if math.isfinite(one.half_width) for end in (one.low, one.high)]
        low, high = np.nanmin(values), np.nanmax(values)
        margin = 0.08 * (high - low) or 0.1
        self._right.set_ylim(low - margin, high + margin)
        self._right.set_ylabel(f"{metric} ({_unit(metric)})")

    def _caption(self, metric: str) -> str:
        return textwrap.fill(plots.heatmap_caption(self.results, metric), 82)

    def describe_lines(self, result: CellDetails) -> list[str]:
        metric, alpha, temperature = self.state.values()
        value, relative, count = result.value, plots.MAP_METRICS[metric][1], len(self.results.seeds)
        summary = f"{value.format(relative)} {_unit(metric)}, the mean (and interval) of {count} seeds; standard "
        summary += f"deviation {100 * value.std:.2f}"
        note = " Alpha 1 is hard labels alone, with kd's own settings: T plays no part." if alpha == 1 else ""
        cell = f"alpha {alpha:g}, T {temperature:g}: {metric} "
        baseline = "" if relative else f"; hard labels {_format_seeds(result.baseline)}"
        return [
            cell + (f"has no mean, as {value.problem}." if value.problem else f"{summary}.") + note,
            f"By seed: {_format_seeds(value, relative)}{baseline}.",
            f"{self._describe_verdict(result.gain, metric)} On the whole map: {self._describe_counts(metric)}.",
        ]

    def _describe_verdict(self, gain: Estimate, metric: str) -> str:
        if gain.problem:
            return f"No verdict: {gain.problem}."
        if not math.isfinite(gain.half_width):
            return f"{gain.verdict}: every seed differs from hard labels by the same {100 * gain.mean:+.2f} points."
        interval = (
            f"the interval of the difference from hard labels, {100 * gain.low:+.2f} to {100 * gain.high:+.2f} points"
        )
        if gain.verdict is Verdict.INCONCLUSIVE:
            return f"INCONCLUSIVE: {interval}, contains zero, so these seeds cannot distinguish the two."
        note = ", and less is better" if plots.MAP_METRICS[metric][0] in LOWER_IS_BETTER else ""
        side = "above" if gain.mean > 0 else "below"
        against = f"{gain.verdict}{' to' * (gain.verdict is Verdict.LOSES)} hard labels"
        return f"{against}: {interval}, lies {side} zero{note}."

    def _describe_counts(self, metric: str) -> str:
        verdicts = [cell.gain.verdict for cell in plots.heatmap_cells(self.results, metric).values()]
        words = {Verdict.BEATS: "beat hard labels", Verdict.LOSES: "lose", Verdict.INCONCLUSIVE: "are inconclusive"}
        parts = [f"{verdicts.count(verdict)} {word}" for verdict, word in words.items()]
        missing = verdicts.count(None)
        parts += [f"{missing} have no verdict"] if missing else []
        family = f"({self.results.comparisons} intervals that hold together with 95 %)"
        return f"{', '.join(parts)} of {len(verdicts)} cells {family}"


def _unit(metric: str) -> str:
    return "points" if plots.MAP_METRICS[metric][1] else "%"


def _format_seeds(estimate: Estimate, signed: bool = False) -> str:
    form = "+.2f" if signed else ".2f"
    values = estimate.by_seed.items()
    return ", ".join(f"{seed}: {'none' if math.isnan(value) else format(100 * value, form)}" for seed, value in values)
