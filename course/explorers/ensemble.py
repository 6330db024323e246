"""Lesson 12: several teachers and a picture: weights, temperature, their common answer, and their disagreement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course import plots
from course.explorers.base import CONTROL_STYLE, Explorer
from kdlib import losses
from kdlib.data import IndexedDataset, InMemoryDataset
from kdlib.ensembles import confidence_weights, weighted_mean
from kdlib.teachers import NO_VOTE

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

WAYS = ("mean of probabilities", "mean of logits", "vote", "confidence by entropy", "confidence by labels")
LOOKS = (plots.TEACHER, plots.TEACHER.variant(1), plots.TEACHER.variant(2), plots.TEACHER.variant(3))


@dataclass(frozen=True, eq=False)
class Answers:
    """Logits K x N x C of K teachers for N pictures, the most disputed first, and what belongs to the pictures."""

    logits: Tensor
    labels: Tensor
    images: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Common:
    """What the teachers say: to one picture each (K x C) and together (C), and of all pictures three numbers each.

    uncertainty: the mean entropy of the teachers; disagreement: the entropy of the mean of their probabilities minus
    that; both in nats, N. right: whether the common answer is, N.
    """

    each: Tensor
    together: Tensor
    uncertainty: Tensor
    disagreement: Tensor
    right: Tensor


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats over the last dimension."""
    return torch.special.entr(probabilities).sum(dim=-1)


def common_logits(logits: Tensor, labels: Tensor, way: str, weights: Tensor, temperature: float = 1.0) -> Tensor:
    """The teachers' common logits; weights sum to 1. Confidence is multiplied by them.

    temperature: by confidence the mean is of probabilities that were softened at it, as in `ConfidenceEnsemble`; the
    other ways combine the teachers first, as `teachers.Ensemble` does, and what comes out is softened.
    """
    fixed = weights[:, None].expand(-1, logits.shape[1])
    if way == "mean of logits":
        return (weights[:, None, None] * logits).sum(dim=0)
    if way == "vote":
        best = torch.nn.functional.one_hot(logits.argmax(dim=2), logits.shape[2])
        shares = (weights[:, None, None] * best).sum(dim=0)
        return ((1 - NO_VOTE) * shares + NO_VOTE / logits.shape[2]).log()
    if way.startswith("confidence"):
        fixed = fixed * confidence_weights(logits, labels if way.endswith("labels") else None)
        # Where all that is left is a teacher without any confidence, its weight is all that there is.
        fixed = torch.where(fixed.sum(dim=0) > 0, fixed, weights[:, None])
        return weighted_mean(logits, fixed / fixed.sum(dim=0), temperature)
    return weighted_mean(logits, fixed)


class Ensemble(Explorer):
    """Choose a picture, weights, a way of combining and a temperature: what the teachers say, alone and together.

    teachers: two to four names with logits N x C for the pictures of the dataset. Pictures are sorted by disagreement,
    the most disputed first. Raises ValueError for other shapes.
    """

    name = "Ensemble"
    alt = (
        "Left: the picture. Middle: for each class a bar of the teachers' common probability and a mark for each "
        "teacher. Right: every picture as a point, the teachers' mean entropy to the right and their disagreement "
        "upwards, crosses where the common answer is wrong; a ring marks the chosen picture."
    )
    size = (10.4, 4.0)

    def __init__(
        self, teachers: Mapping[str, Tensor], dataset: IndexedDataset, classes: Iterable[str], **initial: Any
    ) -> None:
        self.answers = _answers(teachers, dataset, tuple(classes))
        super().__init__(**initial)

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        last = len(self.answers.labels) - 1
        ways = [(way, way) for way in WAYS]
        controls = {
            "picture": widgets.IntSlider(0, 0, last, description="Picture", **CONTROL_STYLE),
            "way": widgets.Dropdown(options=ways, value=WAYS[0], description="Combine by", **CONTROL_STYLE),
            "temperature": widgets.FloatLogSlider(
                1.0, min=-1, max=1, step=0.1, description="Temperature", **CONTROL_STYLE
            ),
        }
        for number, name in enumerate(self.answers.names, start=1):
            controls[f"weight_{number}"] = widgets.FloatSlider(
                1.0, min=0, max=3, step=0.25, description=f"Weight of {name}", **CONTROL_STYLE
            )
        return controls

    def inputs(self) -> tuple[Answers, int, str, float, tuple[float, ...]]:
        state = self.state
        weights = tuple(value for name, value in state.items() if name.startswith("weight"))
        return self.answers, state["picture"], state["way"], state["temperature"], weights

    @staticmethod
    @lru_cache(maxsize=256)
    def compute(answers: Answers, picture: int, way: str, temperature: float, weights: tuple[float, ...]) -> Common:
        """What the teachers say, alone and together; raises ValueError where all weights are 0."""
        if not sum(weights) > 0:
            raise ValueError("All weights are 0, so nobody is asked. Give one teacher a weight.")
        shares = torch.tensor(weights) / sum(weights)
        together = common_logits(answers.logits, answers.labels, way, shares, temperature)
        plain = answers.logits.softmax(dim=2)
        uncertainty = (shares[:, None] * entropy(plain)).sum(dim=0)
        total = entropy((shares[:, None, None] * plain).sum(dim=0))
        return Common(
            losses.soften(answers.logits[:, picture], temperature),
            losses.soften(together[picture], temperature),
            uncertainty,
            (total - uncertainty).clamp(min=0),
            together.argmax(dim=1) == answers.labels,
        )

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        left, middle, right = figure.subplots(1, 3, width_ratios=(0.8, 1.5, 1.5))
        left.axis("off")
        self._picture = left.imshow(self.answers.images[0].numpy(), cmap="gray", vmin=0, vmax=255)
        classes = self.answers.classes
        bars = plots.probability_bars(middle, classes, {"together": [1.0] * len(classes)}, roles=[plots.LOGITS])
        self._bars = list(bars["together"])
        middle.set_xlim(0, 1.03)  # room for the mark of a member that is certain
        self._marks = []
        for name, look in zip(self.answers.names, LOOKS, strict=False):
            (marks,) = middle.plot([0.0] * len(classes), range(len(classes)), **look.line(name, linestyle=""))
            self._marks.append(marks)
        handles, labels = middle.get_legend_handles_labels()
        plots.legend(middle, handles=handles, labels=labels, loc="lower left", bbox_to_anchor=(-0.3, 1), ncols=2)
        count, most = len(self.answers.labels), float(torch.tensor(len(self.answers.names)).log())
        alone = {"linestyle": "", "alpha": 0.5, "markersize": 3}
        (self._right,) = right.plot([0.0] * count, [0.0] * count, color=plots.NEUTRAL.colour, marker="o", **alone)
        wrong = {**alone, "markersize": 5, "alpha": 0.9}
        (self._wrong,) = right.plot([0.0] * count, [0.0] * count, color=plots.ALERT, marker="x", **wrong)
        ring = {"marker": "o", "markersize": 14, "markerfacecolor": "none", "markeredgewidth": 2, "linestyle": ""}
        (self._ring,) = right.plot([0.0], [0.0], color=plots.INK, **ring)
        self._right.set_label("right")
        self._wrong.set_label("wrong together")
        right.set(xlim=(-0.05, 1.03 * math.log(len(classes))), ylim=(-0.03, 1.03 * most))
        right.set(xlabel="mean entropy of the teachers (nats)", ylabel="disagreement (nats)")
        plots.legend(right, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1)
        return [], [self._picture, *self._bars, *self._marks, self._right, self._wrong, self._ring]

    def update(self, result: Common) -> None:
        picture = self.state["picture"]
        self._picture.set_data(self.answers.images[picture].numpy())
        for bar, share in zip(self._bars, result.together.tolist(), strict=True):
            bar.set_width(share)
        for marks, shares in zip(self._marks, result.each.tolist(), strict=True):
            marks.set_xdata(shares)
        x, y, right = (one.numpy() for one in (result.uncertainty, result.disagreement, result.right))
        self._right.set_data(x[right], y[right])
        self._wrong.set_data(x[~right], y[~right])
        self._ring.set_data([float(x[picture])], [float(y[picture])])

    def describe_lines(self, result: Common) -> list[str]:
        answers, picture = self.answers, self.state["picture"]
        names = (*answers.names, "together")
        said = [
            f"{name}: {answers.classes[int(row.argmax())]} {float(row.max()):.2f}"
            for name, row in zip(names, (*result.each, result.together), strict=True)
        ]
        word = "right" if bool(result.right[picture]) else "wrong"
        own = (answers.logits.argmax(dim=2) == answers.labels).float().mean(dim=1)
        alone = ", ".join(f"{name} {float(share):.1%}" for name, share in zip(answers.names, own, strict=True))
        way = self.state["way"]
        how = "Softened first, then combined" if way.startswith("confidence") else "Combined first, then softened"
        return [
            f"Number {picture + 1} of {len(answers.labels)}, {answers.classes[int(answers.labels[picture])]}. {how}. "
            f"At T = {self.state['temperature']:.2f} {'; '.join(said)}, {word}.",
            f"Disagreement {float(result.disagreement[picture]):.2f} nats, mean entropy "
            f"{float(result.uncertainty[picture]):.2f}.",
            f"Of all pictures right: together {float(result.right.float().mean()):.1%}; alone {alone}.",
        ]


def _answers(teachers: Mapping[str, Tensor], dataset: IndexedDataset, classes: tuple[str, ...]) -> Answers:
    if not 2 <= len(teachers) <= len(LOOKS):
        raise ValueError(f"The explorer shows two to {len(LOOKS)} teachers; got {len(teachers)}.")
    shape = (len(dataset), len(classes))
    for name, one in teachers.items():
        if tuple(one.shape) != shape:
            raise ValueError(f"{name} has logits of {tuple(one.shape)}; the pictures and classes ask for {shape}.")
    if not isinstance(dataset, InMemoryDataset):
        raise ValueError("The explorer shows images in memory: a split of data.load('fashion-mnist'), say.")
    logits = torch.stack([one.float() for one in teachers.values()])
    probabilities = logits.softmax(dim=2)
    disagreement = entropy(probabilities.mean(dim=0)) - entropy(probabilities).mean(dim=0)
    order = disagreement.argsort(descending=True, stable=True)
    images = dataset.images[order, 0]
    return Answers(logits[:, order], dataset.labels[order], images, classes, tuple(teachers))
