"""Lesson 14: a student of another modality, by labels that it may see, wrong pairs, and temperature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from course import plots
from course.experiments import modalities_results
from course.experiments.modalities import ALL, EVERY, FEW, LABELS, PAIRS, SHARES, TEMPERATURES
from course.experiments.modalities_results import ModalityResults
from course.explorers.base import CONTROL_STYLE, Explorer

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COUNT_TITLES = {labels: "all labels" if labels == ALL else f"{labels} labels a class" for labels in LABELS}


@dataclass(frozen=True)
class Cell:
    """One cell of the grid, and the lines through it: accuracies in per cent, one for each split.

    alone: with the same labels and without a teacher, the mean.
    """

    chosen: tuple[float, ...]
    by_share: tuple[tuple[float, ...], ...]
    by_temperature: tuple[tuple[float, ...], ...]
    alone: float

    @property
    def mean(self) -> float:
        """Of the chosen cell."""
        return mean(self.chosen)


def mean(values: tuple[float, ...]) -> float:
    """The mean of some accuracies."""
    return sum(values) / len(values)


class Modalities(Explorer):
    """Choose how many labels the student sees, how many pairs are wrong, and the temperature.

    results: default `modalities_results.load()`, which raises FileNotFoundError if there are none; ValueError where the
    grid is not there.
    """

    name = "Modalities"
    alt = (
        "Test accuracy of a student of the gyroscope, taught by the accelerometer. Left against the share of wrong "
        "pairs, right against the temperature: a line for the mean, small points for the five splits, a ring around "
        "the chosen setting, and a dashed line for the same labels without a teacher."
    )
    size = (9.6, 3.5)

    def __init__(self, results: ModalityResults | None = None, **initial: Any) -> None:
        self.results = modalities_results.load() if results is None else results
        if not self.results.grid:
            raise ValueError(f"The grid has not been run. Make it: {modalities_results.COMMAND} --grid")
        super().__init__(**initial)

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        counts = [(title, labels) for labels, title in COUNT_TITLES.items()]
        shares = [(f"{share:.0%}", share) for share in SHARES]
        temperatures = [(f"{temperature:g}", temperature) for temperature in TEMPERATURES]
        return {
            "labels": widgets.SelectionSlider(options=counts, description="Labels", **CONTROL_STYLE),
            "wrong": widgets.SelectionSlider(options=shares, description="Wrong pairs", **CONTROL_STYLE),
            "temperature": widgets.SelectionSlider(
                options=temperatures, value=2.0, description="Temperature", **CONTROL_STYLE
            ),
        }

    def inputs(self) -> tuple[ModalityResults, int, float, float]:
        state = self.state
        return self.results, state["labels"], state["wrong"], state["temperature"]

    @staticmethod
    @lru_cache(maxsize=256)
    def compute(results: ModalityResults, labels: int, wrong: float, temperature: float) -> Cell:
        """What the rows say of one cell; raises ValueError for one that was not run."""
        grid = dict(results.grid)
        try:
            by_share = tuple(grid[labels, share, temperature] for share in SHARES)
            by_temperature = tuple(grid[labels, wrong, one] for one in TEMPERATURES)
        except KeyError as error:
            raise ValueError(f"The cell {error} was not run. Make it: {modalities_results.COMMAND} --grid") from error
        alone = results.arm(PAIRS[0], EVERY if labels == ALL else FEW, labels).mean
        return Cell(grid[labels, wrong, temperature], by_share, by_temperature, alone)

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        left, right = figure.subplots(1, 2, sharey=True)
        values = [value for _, cell in self.results.grid for value in cell]
        left.set(ylim=(min(0, *values), max(values) + 5), xlim=(-6, 106))
        self._shares = self._draw(left, [100 * share for share in SHARES])
        left.set(xlabel="pairs that are wrong (%)", ylabel="test accuracy (%)")
        right.set_xscale("log", base=2)
        self._temperatures = self._draw(right, list(TEMPERATURES))
        right.set(xlabel="temperature (logarithmic)", xlim=(0.85, 9.4))
        right.set_xticks(TEMPERATURES, [f"{one:g}" for one in TEMPERATURES])
        plots.legend(left, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1)
        return [], [*self._shares, *self._temperatures]

    def _draw(self, axes: Axes, x: list[float]) -> list[Any]:
        alone = axes.axhline(50, color=plots.BASELINE.colour, linestyle="--", label="these labels alone")
        splits = len(self.results.grid[0][1])
        (dots,) = axes.plot(
            [one for one in x for _ in range(splits)], [50.0] * (len(x) * splits), ".", color=plots.INK, alpha=0.4,
            label="one split",
        )  # fmt: skip
        (line,) = axes.plot(x, [50.0] * len(x), **plots.DISTILLED.line("labels and pairs"))
        ring: dict[str, Any] = {"markersize": 14, "markerfacecolor": "none", "markeredgewidth": 2}
        (chosen,) = axes.plot([x[0]], [50.0], "o", color=plots.INK, **ring)
        return [alone, dots, line, chosen]

    def update(self, result: Cell) -> None:
        for artists, cells, x in (
            (self._shares, result.by_share, 100 * self.state["wrong"]),
            (self._temperatures, result.by_temperature, self.state["temperature"]),
        ):
            alone, dots, line, chosen = artists
            alone.set_ydata([result.alone] * 2)
            dots.set_ydata([value for cell in cells for value in cell])
            line.set_ydata([mean(cell) for cell in cells])
            chosen.set_data([x], [result.mean])

    def describe_lines(self, result: Cell) -> list[str]:
        state = self.state
        title = COUNT_TITLES[state["labels"]]
        ends = f"{min(result.chosen):.1f} to {max(result.chosen):.1f}"
        first = (
            f"{title}, {state['wrong']:.0%} of the pairs wrong, T {state['temperature']:g}: {result.mean:.1f} % of the "
            f"test windows, the mean of {len(result.chosen)} splits ({ends})."
        )
        difference = result.mean - result.alone
        second = (
            f"The same labels alone, at a learning rate of their own: {result.alone:.1f} %. Difference of the means: "
            f"{difference:+.1f} points."
        )
        return [first, second]
