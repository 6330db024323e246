"""A heat map of the study over alpha and temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from course.plots.charts import diverging_cmap, text_colours
from course.plots.descriptions import describe_cell, describe_setting, in_brackets
from course.plots.theme import INK, figure
from kdlib.errors import unknown_name
from kdlib.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kdlib.study.analysis import Estimate, Results

Setting = tuple[float, float]  # alpha, temperature
MAP_METRICS = {  # the quantity of the study, and whether its gain over hard labels is shown
    "gain over hard labels": ("test_accuracy", True),
    "accuracy": ("test_accuracy", False),
    "agreement with the teacher": ("agreement", False),
    "calibration error": ("calibration_error", False),
}


@dataclass(frozen=True)
class HeatmapCell:
    """One cell: the quantity that is shown, and its difference from hard labels, paired by seed."""

    value: Estimate
    gain: Estimate

    @property
    def text(self) -> str:
        """Mean and half the interval's width in two lines, with an arrow where the difference is significant."""
        if self.gain.problem:
            return "diverged" if "diverged" in self.gain.problem else "not run"
        signed = "+" if self.value is self.gain else ""
        half = f"±{100 * self.value.half_width:.2f}" if math.isfinite(self.value.half_width) else "all equal"
        return f"{self.arrow}{100 * self.value.mean:{signed}.2f}\n{half}"

    @property
    def arrow(self) -> str:
        """Up where the metric is significantly higher than with hard labels, down where it is lower, else ""."""
        if self.gain.verdict in (None, Verdict.INCONCLUSIVE):
            return ""
        return "▲ " if self.gain.mean > 0 else "▼ "


@lru_cache(maxsize=32)
def heatmap_cells(results: Results, metric: str) -> dict[Setting, HeatmapCell]:
    """The cells by alpha and T; metric: a name in MAP_METRICS. Raises ValueError for an unknown one."""
    if metric not in MAP_METRICS:
        raise unknown_name("metric of the map", metric, MAP_METRICS)
    value, relative = MAP_METRICS[metric]
    gains = {setting: results.gain(name, value) for setting, name in results.grid.items()}
    values = gains if relative else {setting: results.score(name, value) for setting, name in results.grid.items()}
    return {setting: HeatmapCell(values[setting], gain) for setting, gain in gains.items()}


class AnnotatedHeatmap:
    """A heat map over alpha (up) and T (to the right) whose cells hold texts and, where significant, a frame."""

    def __init__(self, axes: Axes, alphas: Sequence[float], temperatures: Sequence[float]) -> None:
        from matplotlib.patches import Rectangle

        self.positions = {(a, t): (i, j) for i, a in enumerate(alphas) for j, t in enumerate(temperatures)}
        self._shape = (len(alphas), len(temperatures))
        self.image = axes.imshow(np.zeros(self._shape), origin="lower", aspect="auto")
        self.texts, self.frames = {}, {}
        for setting, (i, j) in self.positions.items():
            self.frames[setting] = Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.5)
            axes.add_patch(self.frames[setting])
            self.texts[setting] = axes.text(j, i, "", ha="center", va="center", fontsize=8.5, linespacing=1.25)
        axes.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
        axes.set_yticks(range(len(alphas)), [f"{a:g}" for a in alphas])
        axes.set(xlabel="temperature T (no unit)", ylabel="alpha, weight of the hard labels (no unit)")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    @property
    def artists(self) -> list[Any]:
        """The artists that `fill` changes, in the order of drawing."""
        return [self.image, *self.frames.values(), *self.texts.values()]

    def fill(self, cells: dict[Setting, HeatmapCell], diverging: bool) -> None:
        """Show these cells; diverging: 0 is white, values above it blue, values below it vermilion."""
        from matplotlib import colormaps

        values = np.full(self._shape, np.nan)
        for setting, cell in cells.items():
            values[self.positions[setting]] = 100 * cell.value.mean
        cmap = diverging_cmap() if diverging else colormaps["cividis"]
        cmap = cmap.with_extremes(bad="#DDDDDD")
        finite = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
        largest = max(np.abs(finite).max(), 0.01)
        self.image.set(data=np.ma.masked_invalid(values), cmap=cmap)
        limits = (-largest, largest) if diverging else (finite.min(), max(finite.max(), finite.min() + 0.01))
        self.image.set_clim(*limits)
        colours = text_colours(self.image, np.ma.masked_invalid(values))
        for setting, cell in cells.items():
            self.texts[setting].set(text=cell.text, color=colours[self.positions[setting]])
            self.texts[setting].set_fontweight("bold" if cell.arrow else "normal")
            self.frames[setting].set_visible(bool(cell.arrow))


def temperature_map(results: Results, metric: str = "gain over hard labels") -> Figure:
    """The mean of a metric over alpha and T, with half the width of its interval.

    metric: a name in MAP_METRICS. A frame and an arrow mark the cells whose difference from hard labels has an interval
    that excludes zero. Raises ValueError for results that are no grid, and for an unknown metric.
    """
    fig, axes = figure(7.4, 4.8)
    heatmap = AnnotatedHeatmap(axes, results.alphas, results.temperatures)
    heatmap.fill(heatmap_cells(results, metric), MAP_METRICS[metric][1])
    title = (f"{metric.capitalize()}: {describe_setting(results)}", heatmap_caption(results, metric))
    fig.suptitle("\n".join(title), x=0.01, ha="left", fontsize=9)
    unit = "points" if MAP_METRICS[metric][1] else "%"
    fig.colorbar(heatmap.image, ax=axes, label=f"{metric} ({unit})")
    return fig


def temperature_map_alt(results: Results, metric: str = "gain over hard labels") -> str:
    """What `temperature_map` shows, in words."""
    cells = heatmap_cells(results, metric)
    valid = {setting: cell for setting, cell in cells.items() if not cell.gain.problem}
    unit = "points" if MAP_METRICS[metric][1] else "%"
    sentences = [f"Heat map of the mean {metric} in {unit} over alpha and T, {describe_setting(results)}"]
    if valid:
        means = {setting: cell.value.mean for setting, cell in valid.items()}
        extremes = {"highest": max(means, key=means.__getitem__), "lowest": min(means, key=means.__getitem__)}
        for word, setting in extremes.items():
            value = valid[setting].value.format(MAP_METRICS[metric][1])
            sentences.append(f"The {word} is {value} at {describe_cell(setting)}")
    for word, arrow in (("above", "▲ "), ("below", "▼ ")):
        settings = [describe_cell(setting) for setting, cell in cells.items() if cell.arrow == arrow]
        count = f"{len(settings)} of {len(cells)} cells{in_brackets(settings)}"
        sentences.append(
            f"{word.capitalize()} hard labels, with an interval of the difference that excludes zero: {count}"
        )
    texts = [
        f"{describe_cell(setting)}: {' '.join(cell.text.removeprefix(cell.arrow).split())}"
        for setting, cell in valid.items()
    ]
    sentences.append(f"The cells, {_describe_numbers(results, metric)}: {'; '.join(texts)}")
    lost = [f"{describe_cell(setting)}: {cell.gain.problem}" for setting, cell in cells.items() if cell.gain.problem]
    if lost:
        sentences.append(f"No verdict{in_brackets(lost)}")
    return ". ".join(sentences) + "."


def heatmap_caption(results: Results, metric: str) -> str:
    """How to read the cells of the heat map."""
    excludes = "it excludes 0" if MAP_METRICS[metric][1] else "that of the difference from hard labels excludes 0"
    return f"{_describe_numbers(results, metric)}; ▲ ▼ and frame: {excludes}"


def _describe_numbers(results: Results, metric: str) -> str:
    family = f"; {results.comparisons} hold together" if MAP_METRICS[metric][1] else ""
    return f"mean ± half of its 95 % interval{family}"
