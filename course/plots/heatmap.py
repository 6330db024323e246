"""What the explorer of alpha and temperature draws: a heat map of the study with texts on its cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from course.plots.charts import diverging_cmap, text_colours
from course.plots.theme import INK
from kdlib.errors import unknown_name
from kdlib.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def heatmap_caption(results: Results, metric: str) -> str:
    """How to read the cells of the heat map."""
    relative = MAP_METRICS[metric][1]
    family = f"; {results.comparisons} hold together" if relative else ""
    excludes = "it excludes 0" if relative else "that of the difference from hard labels excludes 0"
    return f"mean ± half of its 95 % interval{family}; ▲ ▼ and frame: {excludes}"
