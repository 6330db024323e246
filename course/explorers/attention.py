"""Lesson 06: the attention maps of a teacher's and of students' layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import plots
from course.explorers.base import CONTROL_STYLE, ColourScale, Explorer
from course.explorers.features import ImageSelection, extract_features, select_images
from kdlib import losses, models
from kdlib.data import DataModule

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

ALL_IMAGES = "all pictures"
MAPS, OVERLAY, DIFFERENCES = "maps", "maps over the picture", "differences"
TEACHER = "teacher"
SCALE_LABEL = "attention (norm 1)"
DIFFERENCES_LABEL = f"{SCALE_LABEL};\ngrey: difference,\n0 (white) to the same end"
MAX_STUDENTS = 4  # more do not fit into the figure
Size = tuple[int, int]  # height, width


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The attention maps of some networks for some images.

    maps: (network, layer, size) to N x (height * width), as `losses.attention_map` returns them; where the size is
    smaller than the layer's, its channels were average-pooled first, as the method does. sizes: of each layer.
    """

    maps: dict[tuple[str, str, Size], Tensor]
    sizes: dict[tuple[str, str], Size]


@dataclass(frozen=True, eq=False)
class LayerComparison:
    """A layer of the students compared with a layer of the teacher, for all images.

    maps: network to N x (height * width). loss, cosine: student to N. largest: the end of the colour scale.
    """

    size: Size
    maps: dict[str, Tensor]
    loss: dict[str, Tensor]
    cosine: dict[str, Tensor]
    largest: float


@dataclass(frozen=True, eq=False)
class ImageComparison:
    """The same for one image.

    maps: network to height x width. loss: student to `losses.attention` for this image. cosine: student to the cosine
    between its map and the teacher's, 1 where they are equal. mean_loss, mean_cosine: over all images. largest: the end
    of the colour scale, the same for every image.
    """

    maps: dict[str, np.ndarray]
    loss: dict[str, float]
    cosine: dict[str, float]
    mean_loss: dict[str, float]
    mean_cosine: dict[str, float]
    largest: float


class Attention(Explorer):
    """Attention maps, the mean over the channels of their squares, of a teacher and up to four students.

        explorers.Attention({"teacher": teacher, "hard labels": baseline, "distilled": student})

    networks: one is called "teacher"; the students have the same stages (`models.stage_layers`). dataset: default
    Fashion-MNIST. per_class: images of each class in its validation split. Features are extracted once, when the
    explorer is made. Maps have norm 1 and the size at which the loss compares them.
    Raises ValueError for networks that cannot be compared.
    """

    name = "Attention"
    alt = (
        "From left to right: the picture; the attention map of the teacher's layer; for each student the attention map "
        "of its layer, or its difference from the teacher's, with the cosine between the two. Bright squares of a map "
        "are positions where the layer has large activations; dark squares of a difference are far from the teacher's."
    )

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        dataset: DataModule | None = None,
        per_class: int = 20,
        **initial: Any,
    ) -> None:
        self.students = _student_names(networks)
        teacher, first_student = networks[TEACHER], networks[self.students[0]]
        self._stages = {name: models.stage_layers(network) for name, network in networks.items()}
        self._layer_pairs = models.pair_layers(first_student, teacher, "all")
        self.selection = select_images(dataset, per_class)
        self.attention_maps = compute_attention_maps(networks, self._stages, self.selection)
        self._check_sizes()
        self.size = (1.6 + 1.75 * (1 + len(networks)), 2.6)
        super().__init__(**initial)

    def _check_sizes(self) -> None:
        """ValueError unless a stage has maps of one size in all students, which are compared side by side."""
        sizes, first = self.attention_maps.sizes, self.students[0]
        for name in self.students[1:]:
            for layer in self._stages[first]:
                own, other = sizes[first, layer], sizes[name, layer]
                if own != other:
                    raise ValueError(
                        f"The students' maps must have the same sizes: at {layer} {first} has {own[0]} x {own[1]}, and "
                        f"{name} {other[0]} x {other[1]}. Show them in explorers of their own."
                    )

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        def dropdown(options: Iterable[str], description: str, value: str) -> Any:
            return widgets.Dropdown(options=list(options), value=value, description=description, **CONTROL_STYLE)

        student_layer, teacher_layer = list(self._layer_pairs.items())[-1]
        last = len(self.selection) - 1
        return {
            "show": dropdown((ALL_IMAGES, *self.selection.classes), "Show", ALL_IMAGES),
            "picture": widgets.IntSlider(value=0, min=0, max=last, description="Picture", **CONTROL_STYLE),
            "student_layer": dropdown(self._stages[self.students[0]], "Students' layer", student_layer),
            "teacher_layer": dropdown(self._stages[TEACHER], "Teacher's layer", teacher_layer),
            "draw": dropdown((MAPS, OVERLAY, DIFFERENCES), "Draw", MAPS),
        }

    def sync_controls(self) -> None:
        self.controls["picture"].max = len(self._shown_images()) - 1

    def _shown_images(self) -> tuple[int, ...]:
        show = self.state["show"]
        numbers = self.selection.of_class(None if show == ALL_IMAGES else show)
        if not numbers:
            raise ValueError("There is no picture of this class in the validation split.")
        return numbers

    def inputs(self) -> tuple[AttentionMaps, int, str, str]:
        image = self._shown_images()[self.state["picture"]]
        return self.attention_maps, image, self.state["student_layer"], self.state["teacher_layer"]

    @staticmethod
    @lru_cache(maxsize=64)
    def compute(maps: AttentionMaps, image: int, student_layer: str, teacher_layer: str) -> ImageComparison:
        """The maps for one image of the selection, and the distance of each student's map from the teacher's."""
        layers = compare_layers(maps, student_layer, teacher_layer)
        return ImageComparison(
            maps={name: rows[image].reshape(layers.size).numpy() for name, rows in layers.maps.items()},
            loss={name: loss[image].item() for name, loss in layers.loss.items()},
            cosine={name: cosine[image].item() for name, cosine in layers.cosine.items()},
            mean_loss={name: loss.mean().item() for name, loss in layers.loss.items()},
            mean_cosine={name: cosine.mean().item() for name, cosine in layers.cosine.items()},
            largest=layers.largest,
        )

    def means(self) -> dict[str, dict[str, tuple[float, float]]]:
        """For each student and each of its stages: mean attention loss and mean cosine with the teacher's stage."""
        stages = {layer: self.compute(self.attention_maps, 0, layer, pair) for layer, pair in self._layer_pairs.items()}
        return {
            name: {layer: (stage.mean_loss[name], stage.mean_cosine[name]) for layer, stage in stages.items()}
            for name in self.students
        }

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        names = [TEACHER, *self.students]
        roles = plots.roles_for(names)
        first, *others, last = figure.subplots(1, len(names) + 2, width_ratios=(*[1.0] * (len(names) + 1), 0.08))
        blank, (height, width) = self.selection.images[0], self.selection.images.shape[1:3]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        self._title = first.set_title(max(self.selection.classes, key=len), loc="center")
        self._images, self._maps, self._captions = [first.imshow(blank, cmap="gray", vmin=0, vmax=1)], {}, {}
        for name, axes in zip(names, others, strict=True):
            axes.set_title(name, loc="center", fontweight="bold", color=roles[name].ink)
            self._images.append(axes.imshow(blank, cmap="gray", vmin=0, vmax=1))
            self._maps[name] = axes.imshow(np.zeros((2, 2)), extent=extent, cmap="cividis", interpolation="nearest")
            caption = {"ha": "center", "va": "top", "fontsize": 9, "transform": axes.transAxes}
            self._captions[name] = axes.text(0.5, -0.04, "layer1\ncosine 0.999", **caption)
        for axes in (first, *others):
            axes.axis("off")
        self._scale = ColourScale(last, DIFFERENCES_LABEL)  # the widest, so that the layout leaves space
        last.set_box_aspect(1 / 0.08)
        return (), (*self._images, *self._maps.values(), *self._captions.values(), self._title, self._scale.axis)

    def update(self, result: ImageComparison) -> None:
        _, number, student_layer, teacher_layer = self.inputs()
        for image in self._images:
            image.set_data(self.selection.images[number])
        self._title.set_text(self.selection.classes[self.selection.labels[number]])
        overlay, differences = (self.state["draw"] == kind for kind in (OVERLAY, DIFFERENCES))
        for name, image in self._maps.items():
            values = result.maps[name]
            if differences and name != TEACHER:
                values = np.abs(values - result.maps[TEACHER])
            image.set_data(values)
            image.set_clim(0, result.largest)
            # White is the same; the colours of a map would show a difference of 0 as a layer that does not answer.
            image.set_cmap("Greys" if differences and name != TEACHER else "cividis")
            # Always an array: matplotlib cannot change from an array back to a number.
            image.set_alpha(0.85 * np.clip(values / result.largest, 0, 1) if overlay else np.ones(values.shape))
            cosine = f"\ncosine {result.cosine[name]:.3f}" if name in result.cosine else ""
            layer = teacher_layer if name == TEACHER else student_layer
            drawn = "|difference|, " if differences and name != TEACHER else ""
            self._captions[name].set_text(f"{drawn}{layer}{cosine}")
        self._scale.update(0, result.largest, DIFFERENCES_LABEL if differences else SCALE_LABEL)

    def describe_lines(self, result: ImageComparison) -> list[str]:
        _, image, student_layer, teacher_layer = self.inputs()
        label = self.selection.classes[self.selection.labels[image]]
        size = " x ".join(map(str, result.maps[TEACHER].shape))
        number, count = self.state["picture"] + 1, len(self._shown_images())
        return [
            f"Validation picture {self.selection.positions[image]} ({label}; number {number} of {count}). "
            f"{student_layer} of the students and {teacher_layer} of the teacher, compared at {size}.",
            f"This picture: {_format_distances(result.loss, result.cosine)}.",
            f"Mean over all {len(self.selection)} pictures: {_format_distances(result.mean_loss, result.mean_cosine)}.",
        ]


@lru_cache(maxsize=16)
def compare_layers(maps: AttentionMaps, student_layer: str, teacher_layer: str) -> LayerComparison:
    """All maps of a layer of the students, and their distances from those of a layer of the teacher.

    Raises ValueError for maps of a single position.
    """
    students = [name for name, layer in maps.sizes if name != TEACHER and layer == student_layer]
    size = _smaller(maps.sizes[students[0], student_layer], maps.sizes[TEACHER, teacher_layer])
    if size == (1, 1):
        raise ValueError("At 1 x 1 there is only one position to attend to: choose layers with larger maps.")
    teacher = maps.maps[TEACHER, teacher_layer, size]
    rows = {TEACHER: teacher, **{name: maps.maps[name, student_layer, size] for name in students}}
    return LayerComparison(
        size,
        rows,
        loss={name: (rows[name] - teacher).square().mean(dim=1) for name in students},
        cosine={name: (rows[name] * teacher).sum(dim=1) for name in students},
        largest=max(float(each.flatten().quantile(0.99)) for each in rows.values()) or 1.0,
    )


def compute_attention_maps(
    networks: Mapping[str, nn.Module], stages: Mapping[str, list[str]], selection: ImageSelection
) -> AttentionMaps:
    """The attention maps of all stages of all networks, at every size at which two of them are compared."""
    one_image = replace(selection.batches[0], images=selection.batches[0].images[:1])
    sizes: dict[tuple[str, str], Size] = {}
    for name, network in networks.items():
        for output in extract_features(network, stages[name], [one_image]):
            sizes |= {(name, layer): _size_of(layer, features) for layer, features in output.features.items()}
    maps: dict[tuple[str, str, Size], list[Tensor]] = {}
    for name, network in networks.items():
        for output in extract_features(network, stages[name], selection.batches):
            for layer, features in output.features.items():
                for size in {_smaller(sizes[name, layer], other) for other in sizes.values()}:
                    pooled = F.adaptive_avg_pool2d(features, size)
                    maps.setdefault((name, layer, size), []).append(losses.attention_map(pooled))
    return AttentionMaps({key: torch.cat(parts) for key, parts in maps.items()}, sizes)


def _format_distances(loss_by_name: Mapping[str, float], cosine_by_name: Mapping[str, float]) -> str:
    texts = (
        f"{name}: attention loss {loss:.3g}, cosine {cosine_by_name[name]:.3f}" for name, loss in loss_by_name.items()
    )
    return "; ".join(texts)


def _size_of(layer: str, features: Tensor) -> Size:
    if features.ndim != 4:
        raise ValueError(f"{layer} gives {tuple(features.shape)}: attention needs maps, batch x channels x H x W.")
    return features.shape[2], features.shape[3]


def _smaller(a: Size, b: Size) -> Size:
    return min(a[0], b[0]), min(a[1], b[1])


def _student_names(networks: Mapping[str, nn.Module]) -> tuple[str, ...]:
    names = tuple(name for name in networks if name != TEACHER)
    if TEACHER not in networks or not 1 <= len(names) <= MAX_STUDENTS:
        raise ValueError(
            f'Attention compares a network called "teacher" with 1 to {MAX_STUDENTS} students; got '
            f"{', '.join(networks) or 'none'}."
        )
    stages = {name: models.stage_layers(networks[name]) for name in names}
    for name in names[1:]:
        if stages[name] != stages[names[0]]:
            raise ValueError(
                f"The students must have the same stages: {names[0]} has {', '.join(stages[names[0]])}, but {name} has "
                f"{', '.join(stages[name])}. Show them in explorers of their own."
            )
    return names
