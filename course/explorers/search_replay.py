"""Lesson 13: random search and TPE on a map that was trained before, a trial at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from course import plots
from course.experiments import search_replay
from course.experiments.search_replay import LONGEST, SAMPLERS, Replay, best_so_far
from course.explorers.base import CONTROL_STYLE, Explorer

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Steps:
    """One search up to a trial. order: the settings that were tried; best: the best after each trial.

    promised, kept: of the best after each trial, in per cent of the validation images: in the seed that the search
    sees, and the mean in the others.
    """

    order: tuple[int, ...]
    best: tuple[int, ...]
    promised: tuple[float, ...]
    kept: tuple[float, ...]
    default: float
    ceiling: float


class SearchReplay(Explorer):
    """Choose a way to search, a seed to search in and an order; then try one setting after the other.

    replay: the map and the stored orders; default `search_replay.load()`, which raises FileNotFoundError if they are
    missing. Nothing is trained here.
    """

    name = "Search replay"
    alt = (
        "Left: a heat map of validation accuracies over alpha and temperature, only the settings tried so far, each "
        "with the number of its trial; a frame marks the best of them. Right: against the trials, a dashed line for "
        "what the best setting promises in the seed of the search, and a solid one for the mean of the same "
        "setting in the other seeds; a dotted line for T 4, alpha 0.1 in the other seeds."
    )
    size = (10.4, 4.2)

    def __init__(self, replay: Replay | None = None, **initial: Any) -> None:
        self.replay = search_replay.load() if replay is None else replay
        super().__init__(**initial)

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        map, last = self.replay.map, self.replay.repetitions
        seeds = [(str(seed), seed) for seed in map.seeds]
        most = min(LONGEST, len(map.settings))
        return {
            "sampler": widgets.Dropdown(options=list(SAMPLERS), description="Search", **CONTROL_STYLE),
            "trials": widgets.IntSlider(min=1, max=most, value=5, description="Trials", **CONTROL_STYLE),
            "seed": widgets.SelectionSlider(options=seeds, description="Seed of the search", **CONTROL_STYLE),
            "number": widgets.IntSlider(min=1, max=last, value=1, description="Another order", **CONTROL_STYLE),
        }

    def inputs(self) -> tuple[Replay, str, int, int, int]:
        state = self.state
        return self.replay, state["sampler"], state["seed"], state["number"], state["trials"]

    @staticmethod
    @lru_cache(maxsize=1024)
    def compute(replay: Replay, sampler: str, seed: int, number: int, trials: int) -> Steps:
        """Follow one search; number: which of the stored orders, from 1."""
        map = replay.map
        order = replay.order(sampler, seed, number - 1)[:trials]
        values, worth = map.promised(seed), map.kept(seed)
        best = best_so_far(values, order)
        promised, kept = (tuple(float(side[one]) for one in best) for side in (values, worth))
        return Steps(order, tuple(best), promised, kept, float(worth[map.default]), float(worth.max()))

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        from matplotlib.patches import Rectangle

        left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
        map = self.replay.map
        self._shape = (len(map.alphas), len(map.temperatures))
        low, high = float(map.validation.min()), float(map.validation.max())
        self._image = left.imshow(np.full(self._shape, high), origin="lower", aspect="auto", vmin=low, vmax=high)
        self._image.set_cmap(self._image.get_cmap().with_extremes(bad="#DDDDDD"))
        figure.colorbar(self._image, ax=left, label="validation accuracy, this seed (%)")
        rows, columns = self._shape
        left.set_xticks(range(columns), [f"{one:g}" for one in map.temperatures])
        left.set_yticks(range(rows), [f"{one:g}" for one in map.alphas])
        left.set(xlabel="temperature T (no unit)", ylabel="alpha, weight of the hard labels (no unit)")
        left.grid(visible=False)
        left.spines[:].set_visible(False)
        cells = [(column, row) for row in range(rows) for column in range(columns)]
        self._numbers = [left.text(x, y, "", ha="center", va="center", fontsize=10) for x, y in cells]
        self._frame = Rectangle((0, 0), 0.96, 0.96, fill=False, edgecolor=plots.INK, linewidth=4)
        left.add_patch(self._frame)
        role = plots.DISTILLED
        (self._promised,) = right.plot([], [], **role.variant(1).line("promised: the seed of the search"))
        (self._kept,) = right.plot([], [], **role.line("kept: the other seeds"))
        (self._default,) = right.plot([0, LONGEST + 1], [low, low], color=plots.INK, linestyle=":", linewidth=1.5)
        self._default.set_label("T 4, alpha 0.1, the other seeds")
        right.set(xlim=(0, self.controls["trials"].max + 1), ylim=(low, high + 0.2))
        right.set(xlabel="trials", ylabel="validation accuracy of the best setting (%)")
        right.xaxis.get_major_locator().set_params(integer=True)
        plots.legend(right, loc="lower right")
        return [], [self._image, *self._numbers, self._frame, self._promised, self._kept, self._default]

    def update(self, result: Steps) -> None:
        map, seed = self.replay.map, self.state["seed"]
        values = map.promised(seed)
        shown = np.full(len(values), np.nan)
        shown[list(result.order)] = values[list(result.order)]
        grid = np.ma.masked_invalid(shown.reshape(self._shape))
        self._image.set_data(grid)
        colours = plots.text_colours(self._image, grid)
        for place, text in enumerate(self._numbers):
            tried = place in result.order
            text.set_text(str(result.order.index(place) + 1) if tried else "")
            if tried:
                text.set_color(colours[divmod(place, self._shape[1])])
        row, column = divmod(result.best[-1], self._shape[1])
        self._frame.set_xy((column - 0.48, row - 0.48))
        trials = range(1, len(result.order) + 1)
        self._promised.set_data(trials, result.promised)
        self._kept.set_data(trials, result.kept)
        self._default.set_ydata([result.default] * 2)

    def describe_lines(self, result: Steps) -> list[str]:
        state = self.state
        alpha, temperature = self.replay.map.settings[result.best[-1]]
        count = len(result.order)
        promised, kept = result.promised[-1], result.kept[-1]
        first = f"{state['sampler']}, seed {state['seed']}, order {state['number']}, {count} trial{'s' * (count > 1)}: "
        return [
            first + f"the best is alpha {alpha:g}, T {temperature:g}.",
            f"It promises {promised:.2f} %. In the other seeds the same setting has {kept:.2f} %, "
            f"{abs(promised - kept):.2f} points {'less' if kept <= promised else 'more'}.",
            f"{self._describe_default(result)} The best of all in these seeds has {result.ceiling:.2f} %, but they "
            "chose it themselves.",
        ]

    def _describe_default(self, result: Steps) -> str:
        if result.best[-1] == self.replay.map.default:
            return "It is T 4, alpha 0.1, the usual setting itself."
        kept = result.kept[-1]
        side = "more" if kept > result.default else "less"
        tried = "which was tried as well" if self.replay.map.default in result.order else "which nobody searched"
        return (
            f"T 4, alpha 0.1, the usual setting, {tried}, has {result.default:.2f} % there: the choice has "
            f"{abs(kept - result.default):.2f} points {side}."
        )
