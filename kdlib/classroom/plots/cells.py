"""The map of alpha and temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kdlib._messages import unknown
from kdlib.classroom.plots.base import DISTILLED, INK, STUDENT, figure, readable_on
from kdlib.classroom.plots.words import at, listed, setting
from kdlib.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kdlib.study.findings import Measured, Results

METRICS = {  # what is shown, and whether it is the gain over hard labels
    "gain over hard labels": ("test_accuracy", True),
    "accuracy": ("test_accuracy", False),
    "agreement with the teacher": ("agreement", False),
    "calibration error": ("calibration_error", False),
}


@dataclass(frozen=True)
class MapCell:
    """One cell of the map: what is shown, and its difference from hard labels, paired by seed."""

    shown: Measured
    gain: Measured

    @property
    def text(self) -> str:
        """Mean and half the interval's width, in two lines, with a mark where hard labels are beaten or win."""
        if self.gain.trouble:
            return "diverged" if "diverged" in self.gain.trouble else "not run"
        signed = "+" if self.shown is self.gain else ""
        half = f"±{100 * self.shown.half:.2f}" if math.isfinite(self.shown.half) else "all equal"
        return f"{self.mark}{100 * self.shown.mean:{signed}.2f}\n{half}"

    @property
    def mark(self) -> str:
        """An arrow up where the metric is higher than with hard labels, down where lower, as far as that is sure."""
        if self.gain.verdict in (None, Verdict.INCONCLUSIVE):
            return ""
        return "▲ " if self.gain.mean > 0 else "▼ "


@lru_cache(maxsize=32)
def map_cells(results: Results, metric: str) -> dict[tuple[float, float], MapCell]:
    """The cells of the map by alpha and T; metric: a name in METRICS. Raises ValueError for another one."""
    if metric not in METRICS:
        raise unknown("metric of the map", metric, METRICS)
    value, relative = METRICS[metric]
    gains = {place: results.gain(name, value) for place, name in results.cells.items()}
    scores = gains if relative else {place: results.score(name, value) for place, name in results.cells.items()}
    return {place: MapCell(scores[place], gain) for place, gain in gains.items()}


class CellMap:
    """A heat map over alpha (up) and T (to the right) whose cells hold texts and, where that is sure, a frame."""

    def __init__(self, axes: Axes, alphas: Sequence[float], temperatures: Sequence[float]) -> None:
        from matplotlib.patches import Rectangle

        self.places = {(a, t): (i, j) for i, a in enumerate(alphas) for j, t in enumerate(temperatures)}
        self.image = axes.imshow(np.zeros((len(alphas), len(temperatures))), origin="lower", aspect="auto")
        self.texts, self.frames = {}, {}
        for place, (i, j) in self.places.items():
            self.frames[place] = Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=2)
            axes.add_patch(self.frames[place])
            self.texts[place] = axes.text(j, i, "", ha="center", va="center", fontsize=8.5, linespacing=1.25)
        axes.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
        axes.set_yticks(range(len(alphas)), [f"{a:g}" for a in alphas])
        axes.set(xlabel="temperature T (no unit)", ylabel="alpha, weight of the hard labels (no unit)")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    @property
    def artists(self) -> list[Any]:
        """What `fill` changes, in the order of drawing."""
        return [self.image, *self.frames.values(), *self.texts.values()]

    def fill(self, cells: dict[tuple[float, float], MapCell], diverging: bool) -> None:
        """Show these cells; diverging: zero is white, above it blue, below it orange."""
        from matplotlib import colormaps
        from matplotlib.colors import LinearSegmentedColormap

        values = np.full(self.image.get_array().shape, np.nan)
        for place, cell in cells.items():
            values[self.places[place]] = 100 * cell.shown.mean
        ends = (STUDENT.colour, "#FFFFFF", DISTILLED.colour)
        cmap = LinearSegmentedColormap.from_list("gain", ends) if diverging else colormaps["cividis"]
        cmap = cmap.with_extremes(bad="#DDDDDD")
        finite = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
        most = max(np.abs(finite).max(), 0.01)
        self.image.set(data=np.ma.masked_invalid(values), cmap=cmap)
        self.image.set_clim(*((-most, most) if diverging else (finite.min(), max(finite.max(), finite.min() + 0.01))))
        light = readable_on(self.image, np.ma.masked_invalid(values))
        for place, cell in cells.items():
            self.texts[place].set(text=cell.text, color=light[self.places[place]])
            self.texts[place].set_fontweight("bold" if cell.mark else "normal")
            self.frames[place].set_visible(bool(cell.mark))


def temperature_map(results: Results, metric: str = "gain over hard labels") -> Figure:
    """The mean of a metric over alpha and T, with half the width of its interval.

    metric: a name in METRICS. A frame and an arrow mark the cells whose difference from hard labels has an interval
    that excludes zero. Raises ValueError for results that are no grid.
    """
    fig, axes = figure(7.4, 4.8)
    picture = CellMap(axes, results.alphas, results.temperatures)
    picture.fill(map_cells(results, metric), METRICS[metric][1])
    lines = (f"{metric.capitalize()}: {setting(results)}", explained(results, metric))
    fig.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9)
    unit = "points" if METRICS[metric][1] else "%"
    fig.colorbar(picture.image, ax=axes, label=f"{metric} ({unit})")
    return fig


def temperature_map_alt(results: Results, metric: str = "gain over hard labels") -> str:
    """What `temperature_map` shows, in words."""
    cells = map_cells(results, metric)
    whole = {place: cell for place, cell in cells.items() if not cell.gain.trouble}
    unit = "points" if METRICS[metric][1] else "%"
    said = [f"Heat map of the mean {metric} in {unit} over alpha and T, {setting(results)}"]
    if whole:
        for word, choose in (("highest", max), ("lowest", min)):
            place = choose(whole, key=lambda place: whole[place].shown.mean)
            said.append(f"The {word} is {whole[place].shown.said(METRICS[metric][1])} at {at(place)}")
    for word, mark in (("above", "▲ "), ("below", "▼ ")):
        places = [at(place) for place, cell in cells.items() if cell.mark == mark]
        count = f"{len(places)} of {len(cells)} cells{listed(places)}"
        said.append(f"{word.capitalize()} hard labels, with an interval of the difference that excludes zero: {count}")
    lost = [f"{at(place)}: {cell.gain.trouble}" for place, cell in cells.items() if cell.gain.trouble]
    return ". ".join([*said, f"No verdict{listed(lost)}"] if lost else said) + "."


def explained(results: Results, metric: str) -> str:
    """How to read the cells of the map."""
    excludes = "it excludes 0" if METRICS[metric][1] else "that of the difference from hard labels excludes 0"
    family = f"; {results.comparisons} hold together" if METRICS[metric][1] else ""
    return f"mean ± half of its 95 % interval{family}; ▲ ▼ and frame: {excludes}"
