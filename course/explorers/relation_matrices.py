"""Relations between layers and between images: their matrices, and the losses that compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.explorers.features import ImageSelection, extract_features
from kdlib import losses

TEACHER = "teacher"
Features = Sequence[Tensor]  # of one or several layers


@dataclass(frozen=True)
class Relation:
    """A relation: its matrix, and the loss that compares a student's with a teacher's.

    num_layers: 2 for neighbouring layers, 1 for a single layer, 0 for all layers at once. matrix: of the features of
    these layers. loss: of the student's and the teacher's features. unit: of the numbers in the matrix.
    """

    num_layers: int
    matrix: Callable[[Features], Tensor]
    loss: Callable[[Features, Features], Tensor]
    unit: str
    loss_name: str


def mean_fsp_matrix(features: Features) -> Tensor:
    """The FSP matrix of two layers, averaged over the images."""
    first, second = features
    return losses.fsp_matrix(first, second).mean(dim=0)


def similarity_matrix(features: Features) -> Tensor:
    """B x B: inner products of the images' features, each row scaled to norm 1, as in `losses.similarity`."""
    (rows,) = (layer.flatten(1) for layer in features)
    return F.normalize(rows @ rows.T, dim=1)


def distance_matrix(features: Features) -> Tensor:
    """B x B: distances of the images' features, divided by their mean, as in `losses.rkd_distance`."""
    (rows,) = (layer.flatten(1) for layer in features)
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / (distances.sum() / (len(rows) * (len(rows) - 1)))


RELATIONS = {
    "FSP between two layers": Relation(2, mean_fsp_matrix, losses.fsp, "mean product of channels", "fsp"),
    "similarity of pictures": Relation(
        1,
        similarity_matrix,
        lambda student, teacher: losses.similarity(*student, *teacher),
        "similarity (rows of norm 1)",
        "similarity",
    ),
    "distance of pictures": Relation(
        1,
        distance_matrix,
        lambda student, teacher: losses.rkd_distance(*student, *teacher),
        "distance / mean distance",
        "rkd_distance",
    ),
    "correlation of layers": Relation(
        0,
        lambda features: losses.layer_relation_matrix(features, "correlation"),
        losses.layer_correlation,
        "linear CKA (0 to 1)",
        "layer_correlation",
    ),
    "information of layers": Relation(
        0,
        lambda features: losses.layer_relation_matrix(features, "information"),
        losses.layer_information,
        "mutual information (bits)",
        "layer_information",
    ),
}
FSP, SIMILARITY, DISTANCE, CORRELATION, INFORMATION = RELATIONS


@dataclass(frozen=True, eq=False)
class RelationResults:
    """All matrices and losses, computed once.

    matrices: (network, snapshot) to (relation, layers) to a matrix; the teacher's snapshot is "". losses: the same for
    students; None where the matrices of student and teacher have different sizes.
    """

    matrices: dict[tuple[str, str], dict[tuple[str, str], np.ndarray]]
    losses: dict[tuple[str, str], dict[tuple[str, str], float | None]]


def layer_choices(relation: Relation, layer_pairs: Mapping[str, str]) -> list[str]:
    """The layers for which a relation can be computed: neighbours, single layers, or all; by the student's names."""
    names = list(layer_pairs)
    if relation.num_layers == 1:
        return names
    if len(names) < 2:
        return []
    if relation.num_layers == 2:
        return [f"{first} to {second}" for first, second in zip(names, names[1:], strict=False)]
    return ["all layers"]


def compute_relations(
    teacher: nn.Module,
    students: Mapping[str, Mapping[str, nn.Module]],
    layer_pairs: Mapping[str, str],
    selection: ImageSelection,
) -> RelationResults:
    """All relations of a teacher and of all snapshots of students, and the losses between them."""
    teacher_features = _extract(teacher, list(layer_pairs.values()), selection)
    teacher_matrices = {
        key: relation.matrix(features).numpy() for key, relation, features in _select(teacher_features, layer_pairs)
    }
    results = RelationResults({(TEACHER, ""): teacher_matrices}, {})
    for name, snapshots in students.items():
        for snapshot, network in snapshots.items():
            student_features = _extract(network, list(layer_pairs), selection)
            matrices: dict[tuple[str, str], np.ndarray] = {}
            values: dict[tuple[str, str], float | None] = {}
            pairs = zip(_select(student_features, layer_pairs), _select(teacher_features, layer_pairs), strict=True)
            for (key, relation, student_layers), (_, _, teacher_layers) in pairs:
                matrices[key] = relation.matrix(student_layers).numpy()
                comparable = matrices[key].shape == teacher_matrices[key].shape
                values[key] = relation.loss(student_layers, teacher_layers).item() if comparable else None
            results.matrices[name, snapshot], results.losses[name, snapshot] = matrices, values
    return results


def _extract(network: nn.Module, layers: list[str], selection: ImageSelection) -> list[Tensor]:
    """The features of these layers for all images."""
    outputs = extract_features(network, layers, selection.batches)
    batches = [[output.features[layer] for layer in layers] for output in outputs]
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def _select(
    features: list[Tensor], layer_pairs: Mapping[str, str]
) -> Iterable[tuple[tuple[str, str], Relation, list[Tensor]]]:
    """Each relation with each choice of layers: its key, the relation, and the features that it takes."""
    for name, relation in RELATIONS.items():
        for index, layers in enumerate(layer_choices(relation, layer_pairs)):
            count = relation.num_layers
            yield (name, layers), relation, features[index : index + count] if count else features
