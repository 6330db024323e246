"""Lesson 03: what the teacher sees in a picture, beside the hard label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdlib.classroom import plots
from kdlib.classroom.explorers.answers import answers
from kdlib.classroom.explorers.base import WIDE, Explorer
from kdlib.losses import soften

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

TOP, NEAR = 5, 3
SOFT = 4.0  # the temperature beside 1
UNSURE = 0.6  # a largest probability below this is called unsure
ALL, WRONG, DOUBTFUL = "all pictures", "the teacher is wrong", "the teacher is unsure"


@dataclass(frozen=True)
class Seen:
    """What the teacher says to one picture.

    top: the five most probable classes; at_one and soft: their probabilities at T = 1 and T = 4. label: the true class;
    rank: its place in the teacher's order, 1 for the first. near: the places in the split of the three pictures with
    another label to which the teacher gives the most similar answers.
    """

    label: int
    rank: int
    top: tuple[int, ...]
    at_one: tuple[float, ...]
    soft: tuple[float, ...]
    near: tuple[int, ...]


class TeacherSees(Explorer):
    """A picture, the teacher's five most probable classes at T = 1 and T = 4, and the pictures it takes for similar.

    split: "validation" or "test". The teacher's answers to all of it are computed when the explorer is made.
    """

    name = "Teacher sees"
    alt = (
        "From left to right: the picture with its label; the five classes that the teacher finds most probable, with "
        "bars for the hard label, for T = 1 and for T = 4; three pictures with another label, to which the teacher "
        "gives nearly the same answer."
    )
    size = (9.6, 3.3)

    def __init__(self, split: str = "validation", **start: Any) -> None:
        self.split = split
        self._answers = answers(split)
        super().__init__(**start)

    def make(self, widgets: Any) -> dict[str, Any]:
        choices = [ALL, WRONG, DOUBTFUL, *self._answers.classes]
        last = len(self._answers) - 1
        return {
            "show": widgets.Dropdown(options=choices, description="Show", **WIDE),
            "picture": widgets.IntSlider(value=0, min=0, max=last, description="Picture", **WIDE),
        }

    def settle(self) -> None:
        found = len(chosen(self.split, self.state["show"]))
        if not found:
            raise ValueError("There is no such picture in this split.")
        self.controls["picture"].max = found - 1

    def inputs(self) -> tuple[str, int]:
        return self.split, chosen(self.split, self.state["show"])[self.state["picture"]]

    @staticmethod
    @lru_cache(maxsize=1024)
    def compute(split: str, place: int) -> Seen:
        """What the teacher says to the picture at this place of the split."""
        logits, labels = answers(split).logits, answers(split).labels
        mine, label = logits[place], int(labels[place])
        order = mine.argsort(descending=True, stable=True).tolist()
        top = order[:TOP]
        one, soft = (soften(mine, temperature)[top].tolist() for temperature in (1.0, SOFT))
        gaps = (_roots(split) - _roots(split)[place]).square().sum(dim=1)
        gaps = gaps.masked_fill(labels == label, torch.inf)
        near = gaps.topk(NEAR, largest=False).indices.tolist()
        return Seen(label, order.index(label) + 1, tuple(top), tuple(one), tuple(soft), tuple(near))

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        axes = figure.subplots(1, 2 + NEAR, width_ratios=(1.2, 2.6, *[0.75] * NEAR))
        self._pictures, self._titles = [], []
        for one in (axes[0], *axes[2:]):
            one.axis("off")
            self._titles.append(one.set_title("Ankle boot", loc="center"))
            self._pictures.append(one.imshow(self._answers.images[0].numpy(), cmap="gray", vmin=0, vmax=255))
        below = {"ha": "center", "va": "top", "fontsize": 9, "transform": axes[3].transAxes}
        axes[3].text(0.5, -0.12, "nearly the same answer,\nanother label", **below)
        return (), (*self._pictures, *self._titles, *self._build_bars(axes[1]))

    def _build_bars(self, axes: Any) -> list[Artist]:
        longest = sorted(self._answers.classes, key=len)[-TOP:]
        names = ("hard label", "T = 1", f"T = {SOFT:g}")
        roles = (plots.NEUTRAL, plots.FIRST, plots.TEACHER)
        bars = plots.probability_bars(axes, longest, {name: [0.0] * TOP for name in names}, roles, above=True)
        axes.set(ylabel="teacher's first five classes", xlim=(0, 1.02))
        self._bars, self._bar_axes = list(bars.values()), axes
        return [axes.yaxis, *(patch for group in self._bars for patch in group)]

    def update(self, found: Seen) -> None:
        classes = self._answers.classes
        _, place = self.inputs()
        for picture, title, where in zip(self._pictures, self._titles, (place, *found.near), strict=True):
            picture.set_data(self._answers.images[where].numpy())
            title.set_text(classes[self._answers.labels[where]])
        hard = [float(one == found.label) for one in found.top]
        for group, widths in zip(self._bars, (hard, found.at_one, found.soft), strict=True):
            for patch, width in zip(group, widths, strict=True):
                patch.set_width(width)
        self._bar_axes.set_yticks(range(TOP), [classes[one] for one in found.top])

    def lines(self, found: Seen) -> list[str]:
        classes = self._answers.classes
        _, place = self.inputs()
        number, count = self.state["picture"], len(chosen(self.split, self.state["show"]))
        said = "right" if found.rank == 1 else f"wrong: the label is number {found.rank} of its order"
        shares = ", ".join(
            f"{classes[one]} {p:.3f} ({q:.3f})" for one, p, q in zip(found.top, found.at_one, found.soft, strict=True)
        )
        near = ", ".join(f"{classes[self._answers.labels[one]]} (picture {one})" for one in found.near)
        return [
            f"Picture {place} of the {self.split} split (number {number + 1} of {count}). Hard label: "
            f"{classes[found.label]}, 1 for this class and 0 for all others.",
            f"The teacher is {said}. At T = 1 (in brackets at T = {SOFT:g}): {shares}.",
            f"Pictures with another label and nearly the same answer: {near}.",
        ]


@cache
def _roots(split: str) -> Tensor:
    """Square roots of the soft probabilities: their distance (Hellinger's) says how far two answers are apart."""
    return soften(answers(split).logits, SOFT).sqrt()


@cache
def chosen(split: str, show: str) -> tuple[int, ...]:
    """Places in the split of the pictures that are to be shown: a class, or what the teacher makes of them."""
    said = answers(split)
    if show == ALL:
        return tuple(range(len(said)))
    if show == WRONG:
        wanted = said.logits.argmax(dim=1) != said.labels
    elif show == DOUBTFUL:
        wanted = soften(said.logits, 1.0).amax(dim=1) < UNSURE
    else:
        wanted = said.labels == said.classes.index(show)
    return tuple(wanted.nonzero()[:, 0].tolist())
