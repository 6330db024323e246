"""Lesson 06: where the layers of teacher and students look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import losses, models
from kdlib.classroom.explorers.base import WIDE, Explorer
from kdlib.classroom.explorers.inside import Pictures, Scale, asked, pictures, role
from kdlib.data import DataSet
from kdlib.study.entries import pairs

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

ALL = "all pictures"
MAP, OVER = "maps", "maps over the picture"
TEACHER = "teacher"
MOST = 4  # students that find room
Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Looks:
    """The attention maps of some networks for some pictures.

    maps: network, layer and height x width to N x (height width), as `losses.attention_map` gives them; where the size
    is smaller than the layer's, its channels were average-pooled first, as the method does it. sizes: of each layer.
    """

    maps: dict[tuple[str, str, Size], Tensor]
    sizes: dict[tuple[str, str], Size]


@dataclass(frozen=True, eq=False)
class Compared:
    """The same as `Looked`, for all pictures: N x (height width) maps, N losses and cosines."""

    size: Size
    maps: dict[str, Tensor]
    loss: dict[str, Tensor]
    cosine: dict[str, Tensor]
    largest: float


@dataclass(frozen=True, eq=False)
class Looked:
    """Maps for one picture, height x width, by network; of each student what it differs by from the teacher's.

    loss: `losses.attention` for this picture; cosine: of the angle between the two maps, 1 where they are the same.
    mean_loss, mean_cosine: over all pictures. largest: the end of the colour scale, the same for every picture.
    """

    maps: dict[str, np.ndarray]
    loss: dict[str, float]
    cosine: dict[str, float]
    mean_loss: dict[str, float]
    mean_cosine: dict[str, float]
    largest: float


class Attention(Explorer):
    """Where a layer looks: its channels' squares, averaged at each position, for a teacher and up to four students.

        explorers.Attention({"teacher": teacher, "hard labels": twin, "distilled": student})

    networks: one is called "teacher"; the students have the same stages (`models.stages`). per_class: pictures of each
    class in the validation split of the data set (Fashion-MNIST unless another is given). Each network is asked once,
    when the explorer is made. Maps have norm 1 and are drawn at the size at which the loss compares them.
    """

    name = "Attention"
    alt = (
        "From left to right: the picture; the attention map of the teacher's layer; for each student the attention map "
        "of its layer, with the cosine between its map and the teacher's. Bright squares are positions where the layer "
        "answers strongly."
    )

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        dataset: DataSet | None = None,
        per_class: int = 20,
        **start: Any,
    ) -> None:
        self.students = _students(networks)
        teacher, first = networks[TEACHER], networks[self.students[0]]
        self._stages = {name: models.stages(network) for name, network in networks.items()}
        self._pairs = pairs(first, teacher, "all")
        self.pictures = pictures(dataset, per_class)
        self.looks = looked(networks, self._stages, self.pictures)
        self.size = (1.6 + 1.75 * (1 + len(networks)), 2.6)
        super().__init__(**start)

    def make(self, widgets: Any) -> dict[str, Any]:
        def choice(options: Iterable[str], text: str, value: str) -> Any:
            return widgets.Dropdown(options=list(options), value=value, description=text, **WIDE)

        ours, theirs = list(self._pairs.items())[-1]
        last = len(self.pictures) - 1
        return {
            "show": choice((ALL, *self.pictures.classes), "Show", ALL),
            "picture": widgets.IntSlider(value=0, min=0, max=last, description="Picture", **WIDE),
            "student_layer": choice(self._stages[self.students[0]], "Students' layer", ours),
            "teacher_layer": choice(self._stages[TEACHER], "Teacher's layer", theirs),
            "draw": choice((MAP, OVER), "Draw", MAP),
        }

    def settle(self) -> None:
        self.controls["picture"].max = len(self._chosen()) - 1

    def _chosen(self) -> tuple[int, ...]:
        show = self.state["show"]
        found = self.pictures.of_class(None if show == ALL else show)
        if not found:
            raise ValueError("There is no picture of this class in the validation split.")
        return found

    def inputs(self) -> tuple[Looks, int, str, str]:
        return (
            self.looks,
            self._chosen()[self.state["picture"]],
            self.state["student_layer"],
            self.state["teacher_layer"],
        )

    @staticmethod
    @lru_cache(maxsize=64)
    def compute(looks: Looks, picture: int, ours: str, theirs: str) -> Looked:
        """The maps for the picture of this number, and how far each student's is from the teacher's."""
        found = compared(looks, ours, theirs)
        return Looked(
            maps={name: maps[picture].reshape(found.size).numpy() for name, maps in found.maps.items()},
            loss={name: loss[picture].item() for name, loss in found.loss.items()},
            cosine={name: cosine[picture].item() for name, cosine in found.cosine.items()},
            mean_loss={name: loss.mean().item() for name, loss in found.loss.items()},
            mean_cosine={name: cosine.mean().item() for name, cosine in found.cosine.items()},
            largest=found.largest,
        )

    def means(self) -> dict[str, dict[str, tuple[float, float]]]:
        """For each student and each of its stages: mean attention loss and mean cosine to the teacher's stage."""
        found = {ours: self.compute(self.looks, 0, ours, theirs) for ours, theirs in self._pairs.items()}
        return {
            name: {ours: (one.mean_loss[name], one.mean_cosine[name]) for ours, one in found.items()}
            for name in self.students
        }

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        names = [TEACHER, *self.students]
        first, *others, last = figure.subplots(1, len(names) + 2, width_ratios=(*[1.0] * (len(names) + 1), 0.08))
        blank, (height, width) = self.pictures.shown[0], self.pictures.shown.shape[1:3]
        edges = (-0.5, width - 0.5, height - 0.5, -0.5)
        self._title = first.set_title(max(self.pictures.classes, key=len), loc="center")
        self._pictures, self._maps, self._below = [first.imshow(blank, cmap="gray", vmin=0, vmax=1)], {}, {}
        for number, (name, axes) in enumerate(zip(names, others, strict=True)):
            look = {"fontweight": "bold", "color": role(name, number).colour}
            axes.set_title(name, loc="center", **look)
            self._pictures.append(axes.imshow(blank, cmap="gray", vmin=0, vmax=1))
            self._maps[name] = axes.imshow(np.zeros((2, 2)), extent=edges, cmap="cividis", interpolation="nearest")
            where = {"ha": "center", "va": "top", "fontsize": 9, "transform": axes.transAxes}
            self._below[name] = axes.text(0.5, -0.04, "layer1\ncosine 0.999", **where)
        for axes in (first, *others):
            axes.axis("off")
        self._scale = Scale(last, "attention (norm 1)")
        last.set_box_aspect(1 / 0.08)
        return (), (*self._pictures, *self._maps.values(), *self._below.values(), self._title, self._scale.axis)

    def update(self, found: Looked) -> None:
        _, picture, ours, theirs = self.inputs()
        for image in self._pictures:
            image.set_data(self.pictures.shown[picture])
        self._title.set_text(self.pictures.classes[self.pictures.labels[picture]])
        over = self.state["draw"] == OVER
        for name, image in self._maps.items():
            image.set_data(found.maps[name])
            image.set_clim(0, found.largest)
            # Always an array: matplotlib cannot go back from one to a number.
            image.set_alpha(
                np.clip(found.maps[name] / found.largest, 0, 1) * 0.85 if over else np.ones(found.maps[name].shape)
            )
            cosine = f"\ncosine {found.cosine[name]:.3f}" if name in found.cosine else ""
            self._below[name].set_text(f"{theirs if name == TEACHER else ours}{cosine}")
        self._scale.show(0, found.largest)

    def lines(self, found: Looked) -> list[str]:
        _, picture, ours, theirs = self.inputs()
        kind = self.pictures.classes[self.pictures.labels[picture]]
        size = " x ".join(map(str, found.maps[TEACHER].shape))
        number, count = self.state["picture"] + 1, len(self._chosen())
        return [
            f"Validation picture {self.pictures.places[picture]} ({kind}; number {number} of {count}). {ours} of the "
            f"students and {theirs} of the teacher, compared at {size}.",
            f"This picture: {_told(found.loss, found.cosine)}.",
            f"Mean over all {len(self.pictures)} pictures: {_told(found.mean_loss, found.mean_cosine)}.",
        ]


@lru_cache(maxsize=16)
def compared(looks: Looks, ours: str, theirs: str) -> Compared:
    """All maps of a layer of the students, and how far they are from those of a layer of the teacher."""
    students = [name for name, layer in looks.sizes if name != TEACHER and layer == ours]
    size = _smaller(looks.sizes[students[0], ours], looks.sizes[TEACHER, theirs])
    if size == (1, 1):
        raise ValueError("At 1 x 1 there is only one place to look at: choose layers with larger maps.")
    teacher = looks.maps[TEACHER, theirs, size]
    maps = {TEACHER: teacher, **{name: looks.maps[name, ours, size] for name in students}}
    return Compared(
        size,
        maps,
        loss={name: (maps[name] - teacher).square().mean(dim=1) for name in students},
        cosine={name: (maps[name] * teacher).sum(dim=1) for name in students},
        largest=max(float(each.flatten().quantile(0.99)) for each in maps.values()) or 1.0,
    )


def looked(networks: Mapping[str, nn.Module], stages: Mapping[str, list[str]], chosen: Pictures) -> Looks:
    """The attention maps of all stages of all networks, at every size at which two of them are compared."""
    one = replace(chosen.batches[0], images=chosen.batches[0].images[:1])
    sizes: dict[tuple[str, str], Size] = {}
    for name, network in networks.items():
        for answer in asked(network, stages[name], replace(chosen, batches=(one,))):
            sizes |= {(name, layer): _size(layer, output) for layer, output in answer.layers.items()}
    maps: dict[tuple[str, str, Size], list[Tensor]] = {}
    for name, network in networks.items():
        for answer in asked(network, stages[name], chosen):
            for layer, output in answer.layers.items():
                for size in {_smaller(sizes[name, layer], other) for other in sizes.values()}:
                    pooled = F.adaptive_avg_pool2d(output, size)
                    maps.setdefault((name, layer, size), []).append(losses.attention_map(pooled))
    return Looks({key: torch.cat(parts) for key, parts in maps.items()}, sizes)


def _told(losses_: Mapping[str, float], cosines: Mapping[str, float]) -> str:
    each = (f"{name}: attention loss {loss:.3g}, cosine {cosines[name]:.3f}" for name, loss in losses_.items())
    return "; ".join(each)


def _size(layer: str, output: Tensor) -> Size:
    if output.ndim != 4:
        raise ValueError(f"{layer} gives {tuple(output.shape)}: attention needs maps, batch x channels x H x W.")
    return output.shape[2], output.shape[3]


def _smaller(a: Size, b: Size) -> Size:
    return min(a[0], b[0]), min(a[1], b[1])


def _students(networks: Mapping[str, nn.Module]) -> tuple[str, ...]:
    names = tuple(name for name in networks if name != TEACHER)
    if TEACHER not in networks or not 1 <= len(names) <= MOST:
        raise ValueError(
            f'Attention compares a network called "teacher" with 1 to {MOST} students; got '
            f"{', '.join(networks) or 'none'}."
        )
    stages = {name: models.stages(networks[name]) for name in names}
    for name in names[1:]:
        if stages[name] != stages[names[0]]:
            raise ValueError(
                f"The students must have the same stages: {names[0]} has {', '.join(stages[names[0]])}, but {name} has "
                f"{', '.join(stages[name])}. Show them in explorers of their own."
            )
    return names
