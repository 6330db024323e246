"""Lesson 07: relations between layers and between pictures, in the teacher and in students as they learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kdlib.classroom import plots
from kdlib.classroom.explorers.base import WIDE, Explorer
from kdlib.classroom.explorers.inside import Scale, pictures, role
from kdlib.classroom.explorers.related import RELATIONS, TEACHER, Kind, Measured, measured, places
from kdlib.data import DataSet
from kdlib.study.entries import pairs

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

MOST = 64  # cells of a side that are drawn
WRITTEN = 6  # layers up to which the numbers are written into the cells
NO_DISTANCE = "matrices of different sizes:\nno distance without a projection"


@dataclass(frozen=True, eq=False)
class Related:
    """The teacher's matrix, a student's at a moment, the ends of their colour scale, and the losses.

    losses: by student, one a moment; None where the matrices have different sizes.
    """

    teacher: np.ndarray
    student: np.ndarray
    low: float
    high: float
    losses: dict[str, list[float | None]]


class Relations(Explorer):
    """Relations inside a teacher and inside students at several moments of their training, and how far they are apart.

        film = explorers.Snapshots(student)  # begins with the student as it is before training
        train.fit(student, fashion, teacher=teacher, method=method, epochs=5, on_epoch=film)
        explorers.Relations(teacher, film)

    A single network is a film as well: {"trained": student}.

    students: a dictionary of networks by moment, or several of them by name, {"hard labels": film, "distilled": other},
    of the same moments. layers: student layer to teacher layer (default: the stages, paired from the end). per_class:
    pictures of each class in the validation split of the data set (Fashion-MNIST unless another is given).
    Everything is found when the explorer is made. FSP matrices of networks with other widths are drawn each in its own
    size; then there is no loss, because the projection that would make one belongs to a method.
    """

    name = "Relations"
    alt = (
        "Left: a heat map of the teacher's relations, between the channels of two layers, between pictures sorted by "
        "class, or between layers. Middle: the same for the student at the chosen moment of its training, in the same "
        "colours. Right: the loss between the two, by moment, a line for each student."
    )
    size = (11.0, 3.6)

    def __init__(
        self,
        teacher: nn.Module,
        students: Mapping[str, nn.Module] | Mapping[str, Mapping[str, nn.Module]],
        *,
        layers: Mapping[str, str] | None = None,
        dataset: DataSet | None = None,
        per_class: int = 5,
        **start: Any,
    ) -> None:
        self.films = _films(students)
        self.moments = list(next(iter(self.films.values())))
        first = next(iter(next(iter(self.films.values())).values()))
        self.layers = dict(pairs(first, teacher, "all") if layers is None else layers)
        self.pictures = pictures(dataset, per_class)
        self.measured = measured(teacher, self.films, self.layers, self.pictures)
        shapes = [[matrix.shape for matrix in each.values()] for each in self.measured.matrices.values()]
        self._alike = all(a == b for a, b in self.layers.items()) and all(each == shapes[0] for each in shapes)
        super().__init__(**start)

    def make(self, widgets: Any) -> dict[str, Any]:
        def choice(options: Iterable[str], text: str, value: str | None = None) -> Any:
            options = list(options)
            return widgets.Dropdown(options=options, value=value or options[0], description=text, **WIDE)

        relations = [name for name, kind in RELATIONS.items() if places(kind, self.layers)]
        moments = {"options": self.moments, "value": self.moments[-1], "description": "Moment"}
        return {
            "relation": choice(relations, "Relation"),
            "where": choice(places(RELATIONS[relations[0]], self.layers), "Layers"),
            "student": choice(self.films, "Student", list(self.films)[-1]),
            "moment": widgets.SelectionSlider(**moments, **WIDE),
        }

    def settle(self) -> None:
        options = places(RELATIONS[self.state["relation"]], self.layers)
        control, again = self.controls["where"], self._again
        if list(control.options) != options:
            control.options = options  # the first of them is chosen
            self._again = again  # that was no change that would have to be worked on again

    def inputs(self) -> tuple[Any, ...]:
        return self.measured, *self.state.values()

    @staticmethod
    @lru_cache(maxsize=64)
    def compute(found: Measured, relation: str, layers: str, student: str, moment: str) -> Related:
        """What to draw: everything was measured before, so this only looks it up."""
        what = (relation, layers)
        teacher = found.matrices[TEACHER, ""][what]
        every = [teacher, *(one[what] for (name, _), one in found.matrices.items() if name == student)]
        low, high = _ends(RELATIONS[relation], every)
        names = dict.fromkeys(name for name, _ in found.losses)
        each = {name: [one[what] for (owner, _), one in found.losses.items() if owner == name] for name in names}
        return Related(teacher, found.matrices[student, moment][what], low, high, each)

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        # The second and the fifth keep neighbours apart: a matrix of another size needs numbers of its own.
        ratios = (1.0, 0.02 if self._alike else 0.25, 1.0, 0.05, 0.05, 0.85)
        left, gap, right, bar, space, trend = figure.subplots(1, 6, width_ratios=ratios)
        for axes in (gap, space):
            axes.axis("off")
        self._axes, self._drawn = (left, right, trend), None
        self._maps = [axes.imshow(np.zeros((2, 2)), aspect="auto", interpolation="nearest") for axes in (left, right)]
        look = {"fontweight": "bold", "color": plots.TEACHER.colour}
        self._titles = [axes.set_title(TEACHER, **look) for axes in (left, right)]
        self._numbers = [self._cells(axes) for axes in (left, right)]
        self._edges = [self._lines_between(axes) for axes in (left, right)]
        for axes in (left, right):
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
        self._name_classes()
        self._scale = Scale(bar, max((kind.unit for kind in RELATIONS.values()), key=len))
        self._build_trend(trend)
        sides = [left.xaxis, left.yaxis, right.xaxis, right.yaxis, trend.yaxis]
        first, second = ([self._maps[i], *self._numbers[i], *self._edges[i]] for i in (0, 1))
        return [*first, *sides, self._scale.axis, *self._trends.values(), self._none], [
            *second,
            self._titles[1],
            self._mark,
        ]

    def _cells(self, axes: Any) -> list[Artist]:
        """Places for the numbers of a matrix of layers."""
        count = len(self.layers) if len(self.layers) <= WRITTEN else 0
        look = {"ha": "center", "va": "center", "fontsize": 9}
        return [axes.text(column, row, "", **look) for row in range(count) for column in range(count)]

    def _lines_between(self, axes: Any) -> list[Artist]:
        """White lines between the classes."""
        ends, last = np.flatnonzero(np.diff(self.pictures.labels)) + 0.5, len(self.pictures) - 0.5
        look = {"color": "white", "linewidth": 0.6}
        return [axes.hlines(ends, -0.5, last, **look), axes.vlines(ends, -0.5, last, **look)]

    def _build_trend(self, axes: Any) -> None:
        moments, self._trends = range(len(self.moments)), {}
        for number, name in enumerate(self.films):
            (self._trends[name],) = axes.plot(moments, [0.0 for _ in moments], **role(name, number).line(name))
        (self._mark,) = axes.plot([0], [0], marker="o", markersize=14, fillstyle="none", color=plots.INK)
        middle = {"ha": "center", "va": "center", "transform": axes.transAxes, "fontsize": 9}
        self._none = axes.text(0.5, 0.5, NO_DISTANCE, **middle)
        axes.set(xlabel="moment of the training", ylabel="loss", xlim=(-0.5, len(self.moments) - 0.5))
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))
        shown = moments[:: max(1, len(self.moments) // 6)]
        axes.set_xticks(shown, [self.moments[place] for place in shown], rotation=40, ha="right")
        plots.legend(axes, loc="lower left", bbox_to_anchor=(-0.05, 1.05), ncols=2, columnspacing=1)

    def update(self, found: Related) -> None:
        _, relation, layers, student, moment = self.inputs()
        if (relation, layers, student) != self._drawn:
            self._drawn = (relation, layers, student)
            self._show_frame(found, RELATIONS[relation], layers)
            self.touched()
        self._show_matrix(1, found.student, found, RELATIONS[relation])
        colour = role(student, list(self.films).index(student)).colour
        self._titles[1].set(text=f"{student}, {moment}", color=colour)
        place = self.moments.index(moment)
        value = found.losses[student][place]
        self._mark.set_data([place], [np.nan if value is None else value])

    def _show_frame(self, found: Related, kind: Kind, layers: str) -> None:
        """All that is the same at every moment: the teacher's matrix, names, colour bar, lines of the losses."""
        self._show_matrix(0, found.teacher, found, kind)
        for axes, matrix in zip(self._axes, (found.teacher, found.student), strict=False):
            axes.set(xlim=(-0.5, matrix.shape[1] - 0.5), ylim=(matrix.shape[0] - 0.5, -0.5))
        for line in (line for lines in self._edges for line in lines):
            line.set_visible(kind.layers == 1)
        if kind.layers == 1:
            self._name_classes()
        else:
            self._name_layers(kind, layers, found)
        self._scale.show(found.low, found.high, kind.unit)
        for name, line in self._trends.items():
            line.set_ydata([np.nan if value is None else value for value in found.losses[name]])
        known = [value for each in found.losses.values() for value in each if value is not None]
        self._none.set_visible(not known)
        self._axes[2].yaxis.set_visible(bool(known))
        self._axes[2].set(ylim=(0, 1.1 * max(known, default=0) or 1), ylabel=f"loss: {kind.loss_name}")

    def _show_matrix(self, side: int, matrix: np.ndarray, found: Related, kind: Kind) -> None:
        image, cells = self._maps[side], self._numbers[side]
        image.set_data(_drawable(matrix))
        image.set_extent((-0.5, matrix.shape[1] - 0.5, matrix.shape[0] - 0.5, -0.5))
        image.set_clim(found.low, found.high)
        for cell in cells:
            cell.set_visible(kind.layers == 0)
        if kind.layers == 0 and cells:
            light = image.cmap(image.norm(matrix))[..., :3] @ (0.299, 0.587, 0.114)
            for cell, value, bright in zip(cells, matrix.flat, light.flat, strict=True):
                cell.set(text=f"{value:.2f}", color="white" if bright < 0.5 else plots.INK)

    def _name_classes(self) -> None:
        """The classes' names: the longest texts, so that the figure finds room for them when it is built."""
        labels = np.asarray(self.pictures.labels)
        kinds = list(dict.fromkeys(self.pictures.labels))
        centres = [float(np.flatnonzero(labels == kind).mean()) for kind in kinds]
        names, blank = [self.pictures.classes[kind] for kind in kinds], [""] * len(kinds)
        for number, axes in enumerate(self._axes[:2]):
            axes.set_xticks(centres, blank)
            axes.set_yticks(centres, blank if number else names, fontsize=8)
            axes.tick_params(labelleft=number == 0)
            axes.set(xlabel="picture, in the same order", ylabel="" if number else "picture, sorted by class")

    def _name_layers(self, kind: Kind, layers: str, found: Related) -> None:
        """Names of layers, or the numbers of their channels; on the right not again what stands on the left."""
        names = list(self.layers.values()), list(self.layers)
        for number, (axes, matrix) in enumerate(zip(self._axes, (found.teacher, found.student), strict=False)):
            row, column, marks = "layer", "layer", [names[number]] * 2
            places_ = [range(count) for count in matrix.shape]
            if kind.layers == 2:
                place = places(kind, self.layers).index(layers)
                row, column = (f"channel of {names[number][place + next_]}" for next_ in (0, 1))
                places_ = [sorted({0, n // 4, n // 2, 3 * n // 4, n - 1}) for n in matrix.shape]
                marks = [list(map(str, one)) for one in places_]
            again = number == 1 and self._alike
            axes.set_xticks(places_[1], marks[1], fontsize=8)
            axes.set_yticks(places_[0], [""] * len(marks[0]) if again else marks[0], fontsize=8)
            axes.tick_params(labelleft=not again)
            axes.set(xlabel=column, ylabel="" if again else row)

    def lines(self, found: Related) -> list[str]:
        _, relation, layers, student, moment = self.inputs()
        shapes = [" x ".join(map(str, matrix.shape)) for matrix in (found.teacher, found.student)]
        sizes = shapes[0] if shapes[0] == shapes[1] else f"{shapes[0]} for the teacher, {shapes[1]} for the student"
        blocks = ", drawn in blocks" if max(*found.teacher.shape, *found.student.shape) > MOST else ""
        where = f" ({layers})" if RELATIONS[relation].layers else ""
        place = self.moments.index(moment)
        return [
            f"{relation}{where}, {sizes}{blocks}, on {len(self.pictures)} validation pictures: the teacher and "
            f"{student}, {moment}.",
            self._compared(found, student, place, RELATIONS[relation].loss_name),
            f"Teacher: {_range(found.teacher)}. Student: {_range(found.student)}.",
        ]

    def _compared(self, found: Related, student: str, place: int, loss: str) -> str:
        now = found.losses[student][place]
        if now is None:
            return (
                "The matrices have different sizes, so there is no loss without a projection; each is drawn in its "
                "own size."
            )
        each = (f"{name} {values[0]:.3g} to {values[-1]:.3g}" for name, values in found.losses.items())
        ends = f"; from {self.moments[0]} to {self.moments[-1]}: {', '.join(each)}" if len(self.moments) > 1 else ""
        return f"losses.{loss} between the two: {now:.3g}{ends}."


def _ends(kind: Kind, matrices: Sequence[np.ndarray]) -> tuple[float, float]:
    """The ends of a colour scale for the teacher and all moments: no single large cell may darken the rest."""
    if kind.unit.endswith("(0 to 1)"):
        return 0.0, 1.0
    low = min(float(np.quantile(matrix, 0.01)) for matrix in matrices)
    high = max(float(np.quantile(matrix, 0.99)) for matrix in matrices)
    return (low, high) if high > low else (low, low + 1.0)


def _drawable(matrix: np.ndarray) -> np.ndarray:
    """The matrix with at most 64 cells a side, each the mean of several: finer ones have no pixels of their own."""
    sides = [min(MOST, side) for side in matrix.shape]
    return F.adaptive_avg_pool2d(torch.from_numpy(matrix)[None, None], sides)[0, 0].numpy()


def _range(matrix: np.ndarray) -> str:
    return f"{matrix.min():.3g} to {matrix.max():.3g}, mean {matrix.mean():.3g}"


def _films(students: Mapping[str, Any]) -> dict[str, dict[str, nn.Module]]:
    """Students by name, each with its networks by moment."""
    if students and all(isinstance(one, nn.Module) for one in students.values()):
        students = {"student": students}
    films = {name: dict(film) for name, film in students.items() if isinstance(film, Mapping)}
    kept = [network for film in films.values() for network in film.values()]
    complete = len(films) == len(students) and all(films.values())
    if not kept or not complete or not all(isinstance(network, nn.Module) for network in kept):
        raise ValueError(
            'Relations takes networks by moment, {"epoch 0": network, "epoch 1": network}, or several such '
            'dictionaries by name, {"distilled": {"epoch 0": network}}.'
        )
    moments = list(next(iter(films.values())))
    for name, film in films.items():
        if list(film) != moments:
            raise ValueError(f"The moments of {name} are {', '.join(film)}; expected {', '.join(moments)} as before.")
    return films
