"""Lesson 07: relations between layers and between images, in the teacher and in students during their training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from course import plots
from course.explorers.base import CONTROL_STYLE, ColourScale, Explorer
from course.explorers.features import select_images
from course.explorers.relation_matrices import (
    RELATIONS,
    TEACHER,
    Relation,
    RelationResults,
    compute_relations,
    layer_choices,
)
from kdlib import models
from kdlib.data import DataModule

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

MAX_CELLS = 64  # of a side that are drawn
MAX_ANNOTATED = 6  # layers up to which the numbers are written into the cells
NO_LOSS = "matrices of different sizes:\nno distance without a projection"


@dataclass(frozen=True, eq=False)
class RelationView:
    """The matrices of the teacher and of one snapshot of a student, the ends of their colour scale, and the losses.

    losses: by student, one per snapshot; None where the matrices have different sizes.
    """

    teacher: np.ndarray
    student: np.ndarray
    low: float
    high: float
    losses: dict[str, list[float | None]]


class Relations(Explorer):
    """Relations inside a teacher and inside snapshots of students, and the losses between them.

        snapshots = explorers.Snapshots(student)  # begins with the student before training
        train.fit(student, fashion, teacher=teacher, method=method, epochs=5, on_epoch_end=snapshots)
        explorers.Relations(teacher, snapshots)

    students: networks by snapshot, {"epoch 0": network, "epoch 1": network}, a single one included ({"trained":
    network}), or several such dictionaries by name, {"hard labels": snapshots, "distilled": others}, with the same
    snapshots. layer_pairs: student layer to teacher layer (default: the stages, paired from the end). dataset: default
    Fashion-MNIST. per_class: images of each class in its validation split.
    Everything is computed when the explorer is made. FSP matrices of networks with different widths are drawn each in
    its own size; then there is no loss, because the projection that it would need belongs to a method.
    Raises ValueError for students that are not given in this form.
    """

    name = "Relations"
    alt = (
        "Left: a heat map of the teacher's relations, between the channels of two layers, between pictures sorted by "
        "class, or between layers. Middle: the same for the chosen snapshot of the student, in the same "
        "colours. Right: the loss between the two, by snapshot, a line for each student."
    )
    size = (11.0, 3.6)

    def __init__(
        self,
        teacher: nn.Module,
        students: Mapping[str, nn.Module] | Mapping[str, Mapping[str, nn.Module]],
        *,
        layer_pairs: Mapping[str, str] | None = None,
        dataset: DataModule | None = None,
        per_class: int = 5,
        **initial: Any,
    ) -> None:
        self.students = _students_by_name(students)
        self.snapshots = list(next(iter(self.students.values())))
        first = next(iter(next(iter(self.students.values())).values()))
        self.layer_pairs = dict(models.pair_layers(first, teacher, "all") if layer_pairs is None else layer_pairs)
        self.selection = select_images(dataset, per_class)
        self.results = compute_relations(teacher, self.students, self.layer_pairs, self.selection)
        shapes = [[matrix.shape for matrix in matrices.values()] for matrices in self.results.matrices.values()]
        same_layers = all(student == teacher for student, teacher in self.layer_pairs.items())
        self._same_axes = same_layers and all(each == shapes[0] for each in shapes)
        super().__init__(**initial)

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        def dropdown(options: Iterable[str], description: str, value: str | None = None) -> Any:
            options = list(options)
            return widgets.Dropdown(
                options=options, value=value or options[0], description=description, **CONTROL_STYLE
            )

        relations = [name for name, relation in RELATIONS.items() if layer_choices(relation, self.layer_pairs)]
        return {
            "relation": dropdown(relations, "Relation"),
            "layers": dropdown(layer_choices(RELATIONS[relations[0]], self.layer_pairs), "Layers"),
            "student": dropdown(self.students, "Student", list(self.students)[-1]),
            "snapshot": widgets.SelectionSlider(
                options=self.snapshots, value=self.snapshots[-1], description="Snapshot", **CONTROL_STYLE
            ),
        }

    def sync_controls(self) -> None:
        options = layer_choices(RELATIONS[self.state["relation"]], self.layer_pairs)
        control, pending = self.controls["layers"], self._pending
        if list(control.options) != options:
            control.options = options  # selects the first of them
            self._pending = pending  # that change needs no further update

    def inputs(self) -> tuple[Any, ...]:
        return self.results, *self.state.values()

    @staticmethod
    @lru_cache(maxsize=64)
    def compute(results: RelationResults, relation: str, layers: str, student: str, snapshot: str) -> RelationView:
        """What to draw; the matrices and losses were computed before."""
        key = (relation, layers)
        teacher = results.matrices[TEACHER, ""][key]
        matrices = [teacher, *(each[key] for (name, _), each in results.matrices.items() if name == student)]
        low, high = _colour_limits(RELATIONS[relation], matrices)
        losses: dict[str, list[float | None]] = {name: [] for name, _ in results.losses}
        for (name, _), values in results.losses.items():
            losses[name].append(values[key])
        return RelationView(teacher, results.matrices[student, snapshot][key], low, high, losses)

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        # The second and the fifth keep neighbours apart: a matrix of another size needs its own numbers.
        ratios = (1.0, 0.02 if self._same_axes else 0.25, 1.0, 0.05, 0.05, 0.85)
        left, gap, right, bar, space, trend = figure.subplots(1, 6, width_ratios=ratios)
        for axes in (gap, space):
            axes.axis("off")
        self._axes = (left, right, trend)
        self._roles = plots.roles_for(list(self.students))
        self._maps = [axes.imshow(np.zeros((2, 2)), aspect="auto", interpolation="nearest") for axes in (left, right)]
        look = {"fontweight": "bold", "color": plots.TEACHER.ink}
        self._titles = [axes.set_title(TEACHER, **look) for axes in (left, right)]
        self._numbers = [self._make_numbers(axes) for axes in (left, right)]
        self._separators = [self._make_separators(axes) for axes in (left, right)]
        for axes in (left, right):
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
        self._label_classes()
        self._scale = ColourScale(bar, max((relation.unit for relation in RELATIONS.values()), key=len))
        self._build_trend(trend)
        axis_artists = [left.xaxis, left.yaxis, right.xaxis, right.yaxis, trend.yaxis]
        teacher, student = ([self._maps[i], *self._numbers[i], *self._separators[i]] for i in (0, 1))
        cached = [*teacher, *axis_artists, self._scale.axis, *self._trends.values(), self._no_loss]
        return cached, [*student, self._titles[1], self._marker]

    def _make_numbers(self, axes: Any) -> list[Any]:
        """Texts for the numbers of a matrix of layers."""
        count = len(self.layer_pairs) if len(self.layer_pairs) <= MAX_ANNOTATED else 0
        look = {"ha": "center", "va": "center", "fontsize": 9}
        return [axes.text(column, row, "", **look) for row in range(count) for column in range(count)]

    def _make_separators(self, axes: Any) -> list[Artist]:
        """White lines between the classes."""
        ends, last = np.flatnonzero(np.diff(self.selection.labels)) + 0.5, len(self.selection) - 0.5
        look = {"color": "white", "linewidth": 0.6}
        return [axes.hlines(ends, -0.5, last, **look), axes.vlines(ends, -0.5, last, **look)]

    def _build_trend(self, axes: Any) -> None:
        steps, self._trends = range(len(self.snapshots)), {}
        for name in self.students:
            (self._trends[name],) = axes.plot(steps, [0.0 for _ in steps], **self._roles[name].line(name))
        (self._marker,) = axes.plot([0], [0], marker="o", markersize=14, fillstyle="none", color=plots.INK)
        centred = {"ha": "center", "va": "center", "transform": axes.transAxes, "fontsize": 9}
        self._no_loss = axes.text(0.5, 0.5, NO_LOSS, **centred)
        axes.set(xlabel="snapshot of the training", ylabel="loss", xlim=(-0.5, len(self.snapshots) - 0.5))
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))
        ticks = steps[:: max(1, len(self.snapshots) // 6)]
        axes.set_xticks(ticks, [self.snapshots[step] for step in ticks], rotation=40, ha="right")
        plots.legend(axes, loc="lower left", bbox_to_anchor=(-0.05, 1.05), ncols=2, columnspacing=1)

    def update(self, result: RelationView) -> None:
        _, relation, layers, student, snapshot = self.inputs()
        drawn = (relation, layers, student)
        self.draw_cached(drawn, lambda: self._update_cached(result, RELATIONS[relation], layers))
        self._show_matrix(1, result.student, result, RELATIONS[relation])
        self._titles[1].set(text=f"{student}, {snapshot}", color=self._roles[student].ink)
        step = self.snapshots.index(snapshot)
        value = result.losses[student][step]
        self._marker.set_data([step], [np.nan if value is None else value])

    def _update_cached(self, result: RelationView, relation: Relation, layers: str) -> None:
        """All that is the same for every snapshot: the teacher's matrix, labels, colour bar, lines of the losses."""
        self._show_matrix(0, result.teacher, result, relation)
        for axes, matrix in zip(self._axes, (result.teacher, result.student), strict=False):
            axes.set(xlim=(-0.5, matrix.shape[1] - 0.5), ylim=(matrix.shape[0] - 0.5, -0.5))
        for line in (line for lines in self._separators for line in lines):
            line.set_visible(relation.num_layers == 1)
        if relation.num_layers == 1:
            self._label_classes()
        else:
            self._label_layers(relation, layers, result)
        self._scale.update(result.low, result.high, relation.unit)
        for name, line in self._trends.items():
            line.set_ydata([np.nan if value is None else value for value in result.losses[name]])
        known = [value for values in result.losses.values() for value in values if value is not None]
        self._no_loss.set_visible(not known)
        self._axes[2].yaxis.set_visible(bool(known))
        self._axes[2].set(ylim=(0, 1.1 * max(known, default=0) or 1), ylabel=f"loss: {relation.loss_name}")

    def _show_matrix(self, side: int, matrix: np.ndarray, result: RelationView, relation: Relation) -> None:
        image, numbers = self._maps[side], self._numbers[side]
        image.set_data(_downsample(matrix))
        image.set_extent((-0.5, matrix.shape[1] - 0.5, matrix.shape[0] - 0.5, -0.5))
        image.set_clim(result.low, result.high)
        annotated = relation.num_layers == 0
        for text in numbers:
            text.set_visible(annotated)
        if annotated and numbers:
            colours = plots.text_colours(image, matrix)
            for text, value, colour in zip(numbers, matrix.flat, colours.flat, strict=True):
                text.set(text=f"{value:.2f}", color=colour)

    def _label_classes(self) -> None:
        """The classes' names: the longest labels, so that the layout leaves space for them when the figure is built."""
        labels = np.asarray(self.selection.labels)
        classes = list(dict.fromkeys(self.selection.labels))
        centres = [float(np.flatnonzero(labels == label).mean()) for label in classes]
        names, blank = [self.selection.classes[label] for label in classes], [""] * len(classes)
        for side, axes in enumerate(self._axes[:2]):
            axes.set_xticks(centres, blank)
            axes.set_yticks(centres, blank if side else names, fontsize=8)
            axes.tick_params(labelleft=side == 0)
            axes.set(xlabel="picture, in the same order", ylabel="" if side else "picture, sorted by class")

    def _label_layers(self, relation: Relation, layers: str, result: RelationView) -> None:
        """Names of layers, or the numbers of their channels; on the right only where they differ from the left."""
        names = list(self.layer_pairs.values()), list(self.layer_pairs)
        for side, (axes, matrix) in enumerate(zip(self._axes, (result.teacher, result.student), strict=False)):
            row, column = "layer", "layer"
            ticks = [list(range(count)) for count in matrix.shape]
            tick_labels = [names[side]] * 2
            if relation.num_layers == 2:
                index = layer_choices(relation, self.layer_pairs).index(layers)
                row, column = (f"channel of {names[side][index + offset]}" for offset in (0, 1))
                ticks = [sorted({0, n // 4, n // 2, 3 * n // 4, n - 1}) for n in matrix.shape]
                tick_labels = [list(map(str, numbers)) for numbers in ticks]
            omit = side == 1 and self._same_axes
            axes.set_xticks(ticks[1], tick_labels[1], fontsize=8)
            axes.set_yticks(ticks[0], [""] * len(tick_labels[0]) if omit else tick_labels[0], fontsize=8)
            axes.tick_params(labelleft=not omit)
            axes.set(xlabel=column, ylabel="" if omit else row)

    def describe_lines(self, result: RelationView) -> list[str]:
        _, relation, layers, student, snapshot = self.inputs()
        shapes = [" x ".join(map(str, matrix.shape)) for matrix in (result.teacher, result.student)]
        sizes = shapes[0] if shapes[0] == shapes[1] else f"{shapes[0]} for the teacher, {shapes[1]} for the student"
        blocks = ", drawn in blocks" if max(*result.teacher.shape, *result.student.shape) > MAX_CELLS else ""
        where = f" ({layers})" if RELATIONS[relation].num_layers else ""
        return [
            f"{relation}{where}, {sizes}{blocks}, on {len(self.selection)} validation pictures: the teacher and "
            f"{student}, {snapshot}.",
            self._describe_losses(result, student, self.snapshots.index(snapshot), RELATIONS[relation].loss_name),
            f"Teacher: {_format_range(result.teacher)}. Student: {_format_range(result.student)}.",
        ]

    def _describe_losses(self, result: RelationView, student: str, step: int, loss: str) -> str:
        value = result.losses[student][step]
        if value is None:
            return (
                "The matrices have different sizes, so there is no loss without a projection; each is drawn in its "
                "own size."
            )
        trends = (  # of the students whose matrices have the teacher's size
            f"{name} {values[0]:.3g} to {values[-1]:.3g}"
            for name, values in result.losses.items()
            if values[0] is not None and values[-1] is not None
        )
        ends = f"; from {self.snapshots[0]} to {self.snapshots[-1]}: {', '.join(trends)}"
        return f"losses.{loss} between the two: {value:.3g}{ends if len(self.snapshots) > 1 else ''}."


def _colour_limits(relation: Relation, matrices: Sequence[np.ndarray]) -> tuple[float, float]:
    """The ends of a colour scale for the teacher and all snapshots; a few large cells must not darken the rest."""
    if relation.unit.endswith("(0 to 1)"):
        return 0.0, 1.0
    low = min(float(np.quantile(matrix, 0.01)) for matrix in matrices)
    high = max(float(np.quantile(matrix, 0.99)) for matrix in matrices)
    return (low, high) if high > low else (low, low + 1.0)


def _downsample(matrix: np.ndarray) -> np.ndarray:
    """The matrix with at most 64 cells a side, each the mean of several; more would be smaller than a pixel."""
    rows, columns = (min(MAX_CELLS, side) for side in matrix.shape)
    return F.adaptive_avg_pool2d(torch.from_numpy(matrix)[None, None], (rows, columns))[0, 0].numpy()


def _format_range(matrix: np.ndarray) -> str:
    return f"{matrix.min():.3g} to {matrix.max():.3g}, mean {matrix.mean():.3g}"


def _students_by_name(students: Mapping[str, Any]) -> dict[str, dict[str, nn.Module]]:
    """Students by name, each with its networks by snapshot."""
    if students and all(isinstance(network, nn.Module) for network in students.values()):
        students = {"student": students}
    by_name = {name: dict(snapshots) for name, snapshots in students.items() if isinstance(snapshots, Mapping)}
    networks = [network for snapshots in by_name.values() for network in snapshots.values()]
    complete = len(by_name) == len(students) and all(by_name.values())
    if not networks or not complete or not all(isinstance(network, nn.Module) for network in networks):
        raise ValueError(
            'Relations takes networks by snapshot, {"epoch 0": network, "epoch 1": network}, or several such '
            'dictionaries by name, {"distilled": {"epoch 0": network}}.'
        )
    expected = list(next(iter(by_name.values())))
    for name, snapshots in by_name.items():
        if list(snapshots) != expected:
            raise ValueError(
                f"The snapshots of {name} are {', '.join(snapshots)}; expected {', '.join(expected)} as before."
            )
    return by_name
