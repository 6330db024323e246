"""Lesson 03: the teacher's view of an image, beside the hard label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course import plots
from course.explorers.base import CONTROL_STYLE, Explorer
from course.explorers.teacher_outputs import teacher_outputs
from kdlib.losses import soften

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

NUM_CLASSES, NUM_SIMILAR = 5, 3  # that are shown
SOFT_TEMPERATURE = 4.0  # beside T = 1
UNSURE = 0.6  # a largest probability below this is called unsure
ALL, WRONG, DOUBTFUL = "all pictures", "the teacher is wrong", "the teacher is unsure"


@dataclass(frozen=True)
class TeacherView:
    """The teacher's answer to one image.

    top: the five most probable classes; plain_probabilities and soft_probabilities: at T = 1 and T = 4. label: the true
    class; rank: its rank in the teacher's order, 1 for the first. similar: the positions in the split of the
    three images with another label whose answers are nearest.
    """

    label: int
    rank: int
    top: tuple[int, ...]
    plain_probabilities: tuple[float, ...]
    soft_probabilities: tuple[float, ...]
    similar: tuple[int, ...]


class TeacherSees(Explorer):
    """An image, the teacher's five most probable classes at T = 1 and T = 4, and the images with similar answers.

    split: "validation" or "test". The teacher's outputs for all of it are computed when the explorer is made. Raises
    ValueError for another split.
    """

    name = "Teacher sees"
    alt = (
        "From left to right: the picture with its label; the five classes that the teacher finds most probable, with "
        "bars for the hard label, for T = 1 and for T = 4; three pictures with another label, those to which the "
        "teacher's answers are nearest."
    )
    size = (10.4, 3.9)

    def __init__(self, split: str = "validation", **initial: Any) -> None:
        self.split = split
        self._outputs = teacher_outputs(split)
        super().__init__(**initial)

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        choices = [ALL, WRONG, DOUBTFUL, *self._outputs.classes]
        last = len(self._outputs) - 1
        return {
            "show": widgets.Dropdown(options=choices, description="Show", **CONTROL_STYLE),
            "picture": widgets.IntSlider(value=0, min=0, max=last, description="Picture", **CONTROL_STYLE),
        }

    def sync_controls(self) -> None:
        count = len(filter_images(self.split, self.state["show"]))
        if not count:
            raise ValueError("There is no such picture in this split.")
        self.controls["picture"].max = count - 1

    def inputs(self) -> tuple[str, int]:
        return self.split, filter_images(self.split, self.state["show"])[self.state["picture"]]

    @staticmethod
    @lru_cache(maxsize=1024)
    def compute(split: str, position: int) -> TeacherView:
        """The teacher's view of the image at this position of the split."""
        outputs = teacher_outputs(split)
        logits, label = outputs.logits[position], int(outputs.labels[position])
        order = logits.argsort(descending=True, stable=True).tolist()
        top = order[:NUM_CLASSES]
        plain, soft = (soften(logits, temperature)[top].tolist() for temperature in (1.0, SOFT_TEMPERATURE))
        distances = (_sqrt_probabilities(split) - _sqrt_probabilities(split)[position]).square().sum(dim=1)
        distances = distances.masked_fill(outputs.labels == label, torch.inf)
        similar = distances.topk(NUM_SIMILAR, largest=False).indices.tolist()
        return TeacherView(label, order.index(label) + 1, tuple(top), tuple(plain), tuple(soft), tuple(similar))

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        axes = figure.subplots(1, 2 + NUM_SIMILAR, width_ratios=(2.1, 2.3, *[0.85] * NUM_SIMILAR))
        self._images, self._titles = [], []
        for one in (axes[0], *axes[2:]):
            one.axis("off")
            self._titles.append(one.set_title("Ankle boot", loc="center"))
            self._images.append(one.imshow(self._outputs.images[0].numpy(), cmap="gray", vmin=0, vmax=255))
        caption = {"ha": "center", "va": "top", "fontsize": 9, "transform": axes[3].transAxes}
        axes[3].text(0.5, -0.12, "nearest answers,\nanother label", **caption)
        return (), (*self._images, *self._titles, *self._build_bars(axes[1]))

    def _build_bars(self, axes: Any) -> list[Artist]:
        longest = sorted(self._outputs.classes, key=len)[-NUM_CLASSES:]
        series = {name: [0.0] * NUM_CLASSES for name in ("hard label", "T = 1", f"T = {SOFT_TEMPERATURE:g}")}
        roles = (plots.BASELINE, plots.TEACHER.variant(1), plots.TEACHER)
        bars = plots.probability_bars(axes, longest, series, roles, above=True)
        axes.set(ylabel="teacher's first five classes", xlim=(0, 1.02))
        self._bars, self._bar_axes = list(bars.values()), axes
        return [axes.yaxis, *(patch for group in self._bars for patch in group)]

    def update(self, result: TeacherView) -> None:
        classes = self._outputs.classes
        _, position = self.inputs()
        for image, title, shown in zip(self._images, self._titles, (position, *result.similar), strict=True):
            image.set_data(self._outputs.images[shown].numpy())
            title.set_text(classes[self._outputs.labels[shown]])
        hard = [float(label == result.label) for label in result.top]
        series = (hard, result.plain_probabilities, result.soft_probabilities)
        for group, widths in zip(self._bars, series, strict=True):
            for patch, width in zip(group, widths, strict=True):
                patch.set_width(width)
        self._bar_axes.set_yticks(range(NUM_CLASSES), [classes[label] for label in result.top])

    def describe_lines(self, result: TeacherView) -> list[str]:
        classes = self._outputs.classes
        _, position = self.inputs()
        number, count = self.state["picture"], len(filter_images(self.split, self.state["show"]))
        verdict = "right" if result.rank == 1 else f"wrong: the label is number {result.rank} of its order"
        rows = zip(result.top, result.plain_probabilities, result.soft_probabilities, strict=True)
        probabilities = ", ".join(f"{classes[label]} {plain:.3f} ({soft:.3f})" for label, plain, soft in rows)
        similar = ", ".join(f"{classes[self._outputs.labels[one]]} (picture {one})" for one in result.similar)
        return [
            f"Picture {position} of the {self.split} split (number {number + 1} of {count}). Hard label: "
            f"{classes[result.label]}, 1 for this class and 0 for all others.",
            f"The teacher is {verdict}. At T = 1 (in brackets at T = {SOFT_TEMPERATURE:g}): {probabilities}.",
            f"Pictures with another label whose answers are nearest: {similar}.",
        ]


@cache
def _sqrt_probabilities(split: str) -> Tensor:
    """Square roots of the soft probabilities; their distance is Hellinger's between two answers."""
    return soften(teacher_outputs(split).logits, SOFT_TEMPERATURE).sqrt()


@cache
def filter_images(split: str, show: str) -> tuple[int, ...]:
    """Positions in the split of the images to show: a class, or all, or where the teacher is wrong or unsure."""
    outputs = teacher_outputs(split)
    if show == ALL:
        return tuple(range(len(outputs)))
    if show == WRONG:
        selected = outputs.logits.argmax(dim=1) != outputs.labels
    elif show == DOUBTFUL:
        selected = soften(outputs.logits, 1.0).amax(dim=1) < UNSURE
    else:
        selected = outputs.labels == outputs.classes.index(show)
    return tuple(selected.nonzero()[:, 0].tolist())
