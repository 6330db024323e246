"""Relations between layers and between pictures: their matrices, and the losses that compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import losses
from kdlib.classroom.explorers.inside import Pictures, asked

TEACHER = "teacher"
Layers = Sequence[Tensor]


@dataclass(frozen=True)
class Kind:
    """A relation. layers: how many it takes, 2 neighbours, 1, or 0 for all at once.

    matrix: of some layers' outputs. loss: of student's and teacher's outputs. unit: what a number of the matrix is.
    """

    layers: int
    matrix: Callable[[Layers], Tensor]
    loss: Callable[[Layers, Layers], Tensor]
    unit: str
    loss_name: str


def fsp_mean(outputs: Layers) -> Tensor:
    """The FSP matrix of two layers, averaged over the pictures."""
    return losses.fsp_matrix(*outputs).mean(dim=0)


def similarity_matrix(outputs: Layers) -> Tensor:
    """B x B: inner products of the pictures' features, each row scaled to norm 1, as `losses.similarity` has it."""
    (rows,) = (output.flatten(1) for output in outputs)
    return F.normalize(rows @ rows.T, dim=1)


def distance_matrix(outputs: Layers) -> Tensor:
    """B x B: distances of the pictures' features in units of their mean, as `losses.rkd_distance` has it."""
    (rows,) = (output.flatten(1) for output in outputs)
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / (distances.sum() / (len(rows) * (len(rows) - 1)))


RELATIONS = {
    "FSP between two layers": Kind(2, fsp_mean, losses.fsp, "mean product of channels", "fsp"),
    "similarity of pictures": Kind(
        1, similarity_matrix, lambda s, t: losses.similarity(*s, *t), "similarity (rows of norm 1)", "similarity"
    ),
    "distance of pictures": Kind(
        1, distance_matrix, lambda s, t: losses.rkd_distance(*s, *t), "distance / mean distance", "rkd_distance"
    ),
    "correlation of layers": Kind(
        0,
        lambda outputs: losses.layer_relation_matrix(outputs, "correlation"),
        losses.layer_correlation,
        "linear CKA (0 to 1)",
        "layer_correlation",
    ),
    "information of layers": Kind(
        0,
        lambda outputs: losses.layer_relation_matrix(outputs, "information"),
        losses.layer_information,
        "mutual information (bits)",
        "layer_information",
    ),
}
FSP, SIMILARITY, DISTANCE, CORRELATION, INFORMATION = RELATIONS


@dataclass(frozen=True, eq=False)
class Measured:
    """All matrices and losses, found once.

    matrices: (network, moment) to (relation, layers) to a matrix; the teacher's moment is "". losses: of a student at a
    moment, None where its matrix has another size than the teacher's.
    """

    matrices: dict[tuple[str, str], dict[tuple[str, str], np.ndarray]]
    losses: dict[tuple[str, str], dict[tuple[str, str], float | None]]


def places(kind: Kind, layers: Mapping[str, str]) -> list[str]:
    """Where a relation can be looked at: two neighbouring layers, each layer, or all layers, by the student's names."""
    names = list(layers)
    if kind.layers == 1:
        return names
    if len(names) < 2:
        return []
    return [f"{a} to {b}" for a, b in zip(names, names[1:], strict=False)] if kind.layers == 2 else ["all layers"]


def measured(
    teacher: nn.Module,
    films: Mapping[str, Mapping[str, nn.Module]],
    layers: Mapping[str, str],
    chosen: Pictures,
) -> Measured:
    """All relations of a teacher and of students at all moments, and the losses between them."""
    theirs = _outputs(teacher, list(layers.values()), chosen)
    found = Measured({(TEACHER, ""): {what: kind.matrix(x).numpy() for what, kind, x in _views(theirs, layers)}}, {})
    for name, film in films.items():
        for moment, network in film.items():
            ours = _outputs(network, list(layers), chosen)
            matrices, distances = {}, {}
            for (what, kind, x), (_, _, y) in zip(_views(ours, layers), _views(theirs, layers), strict=True):
                matrices[what] = kind.matrix(x).numpy()
                same = matrices[what].shape == found.matrices[TEACHER, ""][what].shape
                distances[what] = kind.loss(x, y).item() if same else None
            found.matrices[name, moment], found.losses[name, moment] = matrices, distances
    return found


def _outputs(network: nn.Module, layers: list[str], chosen: Pictures) -> list[Tensor]:
    """The outputs of these layers for all pictures."""
    parts = [[answer.layers[layer] for layer in layers] for answer in asked(network, layers, chosen)]
    return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]


def _views(outputs: list[Tensor], layers: Mapping[str, str]) -> Iterable[tuple[tuple[str, str], Kind, list[Tensor]]]:
    """Each relation at each place, with the outputs that it takes."""
    for name, kind in RELATIONS.items():
        for number, place in enumerate(places(kind, layers)):
            yield (name, place), kind, outputs[number : number + kind.layers] if kind.layers else outputs
