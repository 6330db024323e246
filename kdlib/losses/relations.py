"""Losses on relations: not what the teacher computes, but how its computations relate to each other.

Between layers of one network (fsp, layer_correlation, layer_information), or between the samples of a
batch (rkd_distance, rkd_angle, similarity, correlation_congruence). Only relations are compared, so all
but fsp take students and teachers of any width, without projection. B samples; maps are flattened to
B x D where needed. Teacher tensors are not detached; compute them under no_grad.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import (
    ROUNDING,
    as_floats,
    averaged_to,
    check_number,
    divide,
    in_a_row,
    inner,
    layers_of,
    off_mps,
    rescaled,
    rows_of,
    shape,
    symmetric_gram,
    unit,
)

# Sums of squares below this are about to lose their digits in float32, whose smallest normal number is 1e-38.
UNDERFLOW = 1e-30
# Rows nearer to each other than this share of the largest distance coincide: half of float64's digits, which is what
# is left when a distance is computed as the root of a difference of squares.
COINCIDENT = 1e-7
# Below this share of the largest distance two rows have no direction between them, even if both are next to nothing and
# so keep their digits: the gradient of an angle grows as one over the distance.
DIRECTIONLESS = 1e-8

# -------------------- between layers


def fsp_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Flow of the solution procedure: how the channels of one layer go together with those of another.

    G = F_a F_b^T / (H W). The larger map is average-pooled to the smaller; the paper takes its maximum.

    Shapes: a is B x C_a x H x W, b is B x C_b x H' x W'; the result B x C_a x C_b.
    Scale: a mean over positions, so it grows with both layers' activations but not with the size of the
        maps.
    Raises: ValueError for what is not B x C x H x W, or batches that differ; TypeError for non-floats.
    Paper: Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR.
    """
    a, b = as_floats(a=a, b=b)
    if a.ndim != 4 or b.ndim != 4 or len(a) != len(b):
        raise ValueError(
            f"a {shape(a)} and b {shape(b)} must be two feature maps of one network, "
            "batch x channels x height x width, on the same batch"
        )
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    # Divided before the product, where there are fewer numbers.
    return inner(_pooled(a, height, width) / (height * width), _pooled(b, height, width))


def fsp(student_pair: Sequence[Tensor], teacher_pair: Sequence[Tensor]) -> Tensor:
    """FSP: the mean squared error between the fsp matrices of the student and of the teacher.

    Shapes: each pair is (first layer, second layer) of one network, B x C x H x W each. The widths of the
        two first layers must agree, and those of the two second layers; heights and widths need not.
    Scale: the fourth power of the activations; the mean is over the batch and all C_a x C_b entries.
    Raises: ValueError for anything but two maps, other batches, or widths that differ (project them
        first); TypeError for what is not a float tensor.
    Paper: Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR.
    Published code disagrees: the paper sums the squares over the matrix where this takes their mean, so
        weights do not carry over.
    """
    for name, pair in (("student_pair", student_pair), ("teacher_pair", teacher_pair)):
        if len(pair) != 2:
            raise ValueError(f"{name} must hold two maps, (first layer, second layer), got {len(pair)}")
    student, teacher = as_floats(student=fsp_matrix(*student_pair), teacher=fsp_matrix(*teacher_pair))
    if len(student) != len(teacher):
        raise ValueError(f"student_pair has batch {len(student)} and teacher_pair {len(teacher)}: use one batch")
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_pair has {student.shape[1]} and {student.shape[2]} channels, teacher_pair "
            f"{teacher.shape[1]} and {teacher.shape[2]}: project the student to the teacher's widths"
        )
    return F.mse_loss(student, teacher)


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Linear centred kernel alignment: how alike two layers see the batch, whatever basis they write it in.

    ||A^T B||_F^2 / (||A^T A||_F ||B^T B||_F) with the mean sample taken off A and B. Computed from the
    B x B Gram matrices, which are small where maps are large.

    Shapes: a is B x D_a, b is B x D_b, or maps, which are flattened; B >= 2. Scale: 0 to 1 (equal up to
        rotation, isotropic scale and offset). Unrelated layers are near 0 only where samples are many more
        than features: random ones of 128 x 1,000 have 0.89.
    Degenerate: samples that are all alike, to 1e-6 of their size, relate to nothing: 0, without gradient.
    Raises: ValueError for fewer than two samples, batches that differ, or no feature dimension; TypeError
        for non-floats.
    Paper: Kornblith et al. 2019, arXiv:1905.00414.
    """
    a, b = rows_of(2, a=a, b=b)
    return _alignment(_direction(a), _direction(b))


def renyi_information(a: Tensor, b: Tensor) -> Tensor:
    """Mutual information of two layers over the batch, in the matrix-based Renyi form with alpha = 2.

    I(A; B) = S(A) + S(B) - S(A o B / tr(A o B)), where S(A) = -log2 tr(A^2) for a kernel matrix A of
    trace 1 and o is the elementwise product. No density is estimated.

    Kernel: Gaussian, exp(-d^2 / w), with w the mean of d^2 over all pairs of different samples. This
        width follows the layer, so a rotation, an offset or a change of scale leaves I alone; and being a
        mean of squares it has no square root, whose gradient would blow up when two samples coincide.

    Shapes: a is B x D_a, b is B x D_b, or maps, which are flattened; B >= 2. Scale: bits, at most log2(B);
        with alpha = 2 it can fall below 0, where two layers tell apart different samples.
    Degenerate: samples that are all alike, to 1e-6 of their size, carry no information: 0, without
        gradient.
    Raises: ValueError for fewer than two samples, batches that differ, or no feature dimension; TypeError
        for non-floats.
    Paper: Sanchez Giraldo et al. 2015, arXiv:1211.2459; for distillation Miles et al. 2021,
        arXiv:2112.00459.
    Published code disagrees: Miles et al. use a linear kernel on normalised features; widths are often
        constants.
    """
    a, b = rows_of(2, a=a, b=b)
    return _shared_information(_squared_kernel(a), _squared_kernel(b))


def layer_relation_matrix(layers: Sequence[Tensor], relation: str | Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The L x L matrix of a relation between all layers of one network on one batch.

    Shapes: L >= 2 maps or embeddings of any widths, the batch first, B >= 2.
    relation: "correlation" (linear_cka), "information" (renyi_information), or a function that takes two
        layers and returns a scalar tensor. Entry [i, j] is relation(layers[i], layers[j]), on the
        relation's scale.
    Raises: ValueError for fewer than two layers or samples, batches that differ, an unknown name, a
        result that is no scalar; TypeError for a tensor in place of the sequence, or layers that are not
        float tensors.
    """
    layers = layers_of("layers", layers)
    if callable(relation):
        rows = [[relation(a, b) for b in layers] for a in layers]
    elif relation in _RELATIONS:
        prepare, compare = _RELATIONS[relation]
        prepared = [prepare(layer) for layer in layers]  # what is kept for the gradient is B x B a layer, not a pair
        rows = []
        for i, a in enumerate(prepared):  # it is symmetric, so each pair is compared once
            rows.append([row[i] for row in rows] + [compare(a, b) for b in prepared[i:]])
    else:
        raise ValueError(f"relation must be one of {', '.join(_RELATIONS)} or a function, got {relation!r}")
    matrix = torch.stack([torch.stack(row) for row in rows])
    if matrix.ndim != 2:
        raise ValueError(f"relation must return a scalar tensor, got shape {shape(matrix)[2:]}")
    return matrix


def layer_correlation(student_layers: Sequence[Tensor], teacher_layers: Sequence[Tensor]) -> Tensor:
    """The student's layers should be as alike among themselves as the teacher's: CKA matrices compared.

    Mean squared difference of layer_relation_matrix(..., "correlation"). Rotating or scaling a layer
    changes nothing, so widths are free and no projection is needed.

    Shapes: L >= 2 layers of the student and L of the teacher, each B x anything, on one batch of B >= 2.
    Scale: 0 to 1; the mean is over all L x L entries. The diagonal is 1 in both matrices and adds nothing, but for
        a layer that answers all samples alike. Where
        features outnumber samples even unrelated layers have relations near 1: see linear_cka.
    Degenerate: a layer that answers all samples alike has relation 0 to every layer, without gradient.
    Raises: ValueError for fewer than two layers or samples, for lengths or batches that differ; TypeError
        for a tensor in place of a sequence, or layers that are not float tensors.
    Paper: CKA is Kornblith et al. 2019, arXiv:1905.00414; the loss is this course's own.
    """
    return _layer_loss(student_layers, teacher_layers, "correlation")


def layer_information(student_layers: Sequence[Tensor], teacher_layers: Sequence[Tensor]) -> Tensor:
    """The student's layers should share as much information among themselves as the teacher's.

    Mean squared difference of layer_relation_matrix(..., "information").

    Shapes: as in layer_correlation.
    Scale: bits squared; the mean is over all L x L entries. The diagonal counts: it compares how much each
        layer tells about itself.
    Degenerate: a layer that answers all samples alike has information 0 with every layer, without
        gradient.
    Raises: as layer_correlation.
    Paper: the information is that of Sanchez Giraldo et al. 2015, arXiv:1211.2459; the loss is this course's own. See
        renyi_information for kernel and width.
    """
    return _layer_loss(student_layers, teacher_layers, "information")


# -------------------- between samples


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distillation by distance: samples far apart for the teacher should be so for the student.

    Huber loss (threshold 1) between pairwise Euclidean distances, each divided by its network's mean
    distance.

    Shapes: B x D_s and B x D_t, or maps, which are flattened; B >= 2. Memory: B x B.
    Scale: distances in units of their mean over the B (B - 1) pairs of different samples; the loss is the
        mean over all B x B entries, the zero diagonal included.
    Degenerate: coinciding rows have distance 0 and no gradient; they do count in the mean. Where all rows
        coincide, to 1e-6 of their size, all distances are 0.
    Raises: ValueError for fewer than two samples, batches that differ, or no feature dimension; TypeError
        for non-floats.
    Paper: Park et al. 2019, arXiv:1904.05068.
    Published code disagrees: the authors' takes distances from the Gram matrix, which has few digits left
        far from the origin, and clamps their squares at 1e-12, so that coinciding rows are 1e-6 apart.
    """
    student, teacher = rows_of(2, student=student, teacher=teacher)
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distillation by angle: three samples should span the same triangle for student and teacher.

    Huber loss (threshold 1) between the cosines of the angles at sample i between samples j and k.

    Shapes: B x D_s and B x D_t, or maps, which are flattened; B >= 3.
    Memory: six tables of B x B x B at the peak; for B = 128 that is 50 MB in float32. On CUDA torch's gradient of a
        matrix of distances takes B x B x D besides (read in its source): pool maps first.
    Precision: in float32 a cosine is off by 3e-7 (few features) to 5e-6 (10,000) times the ratio of its triangle's
        longest side to its shortest, and so may pass 1 between rows that nearly coincide.
    Scale: cosines; the mean is over all B^3 triplets, also the degenerate ones, which contribute 0.
    Degenerate: between rows that coincide, to 1e-6 of the larger one or 1e-8 of the largest distance, there is no
        direction: cosine 0, no gradient.
    Raises: ValueError for fewer than three samples, batches that differ, or no feature dimension;
        TypeError for non-floats.
    Paper: Park et al. 2019, arXiv:1904.05068.
    Published code disagrees: the authors' normalises with an epsilon of 1e-12, which leaves a gradient of
        up to 1e12 at coinciding rows.
    """
    student, teacher = rows_of(3, student=student, teacher=teacher)
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity preserving: inputs that excite the teacher alike should excite the student alike.

    ||G_s - G_t||_F^2 / B^2, where G is the B x B Gram matrix of the flattened features with each row
    scaled to Euclidean norm 1.

    Shapes: B x anything each, B >= 1 (a batch of one gives 0). Scale: at most 4 / B, so a weight in the
        hundreds or thousands is usual. Degenerate: in G the row of an all-zero sample is zero and gets no
        gradient; the sample gets some by the rows of the others.
    Raises: ValueError for batches that differ, or no feature dimension; TypeError for non-floats.
    Paper: Tung, Mori 2019, arXiv:1907.09682.
    Published code disagrees: one library passes the 1 meant as dimension as p, and so normalises by the
        L1 norm.
    """
    student, teacher = rows_of(1, student=student, teacher=teacher)
    student, teacher = (unit(rescaled(inner(one, one), dim=1)) for one in (student, teacher))
    return F.mse_loss(student, teacher)


def correlation_congruence(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Correlation congruence: the Gaussian kernels between the samples of a batch should agree.

    Mean over B x B of the squared difference of exp(-gamma ||x_i - x_j||^2) on unit vectors, where the
    kernel is exp(-2 gamma) * sum_p (2 gamma)^p / p! * (x_i . x_j)^p, its Taylor series cut after
    p = order.

    Shapes: B x anything each, B >= 1 (a batch of one gives 0). Scale: kernel values from 0.23 to 0.95
        with the defaults (below 0 for order 1 with gamma above 0.5, for order 3 above 0.798); the loss is
        small, about 0.01, and wants a large weight. Degenerate: an all-zero sample has inner products 0 and
        no gradient.
    Raises: ValueError for gamma <= 0 or not finite, order below 1 or no integer, batches that differ, or
        no feature dimension; TypeError for what is not a float tensor.
    Paper: Peng et al. 2019, arXiv:1904.01802.
    Published code disagrees: RepDistiller's loss of this name is another one: products of the student's
        distance from the teacher in neighbouring rows.
    """
    student, teacher = rows_of(1, student=student, teacher=teacher)
    check_number("gamma", gamma)
    if isinstance(order, bool) or not isinstance(order, Integral) or order < 1:
        raise ValueError(f"order must be a whole number of at least 1, got {order!r}")
    return F.mse_loss(_taylor_kernel(student, gamma, order), _taylor_kernel(teacher, gamma, order))


# -------------------- the machinery


def _pooled(f: Tensor, height: int, width: int) -> Tensor:
    """The map averaged down to height x width, flattened."""
    return averaged_to(f, (height, width)).flatten(2)


def _linear_gram(layer: Tensor) -> Tensor:
    """B x B inner products of the centred samples, scaled to trace 1; all zero if only rounding is left.

    No relation here depends on the scale. The mean is taken off before the product: far from the origin,
    the product of the raw samples would have no digits left for their differences.
    """
    rows = in_a_row(layer)
    # No gradient goes through the mean: it would be zero, for nothing that follows changes when all samples move
    # together. To know that saves a quarter of the time.
    mean = rows.detach().mean(dim=0)
    centred = rows - mean
    gram = symmetric_gram(centred)
    spread = gram.trace()
    size = spread + len(rows) * mean.square().sum()  # sum of squares of the raw rows, by Pythagoras
    return divide(gram, spread, ROUNDING**2 * size + UNDERFLOW)


def _gaussian_gram(layer: Tensor) -> Tensor:
    """B x B Gaussian kernel; its diagonal is 1. Squared distances need no root, so inner products will do."""
    gram = _linear_gram(layer)
    power = gram.diagonal()
    squared = power[:, None] + power - 2 * gram
    pairs = len(gram) * (len(gram) - 1)
    return torch.exp(-divide(squared, squared.sum() / pairs))


def _direction(layer: Tensor) -> Tensor:
    """The linear kernel matrix seen as a vector of norm 1."""
    return unit(_linear_gram(layer).flatten())


def _alignment(a: Tensor, b: Tensor) -> Tensor:
    """The cosine between two kernel matrices, given as `_direction`: for centred linear kernels this is CKA."""
    return (a * b).sum()


def _squared_kernel(layer: Tensor) -> tuple[Tensor, Tensor]:
    """The squares of the entries of the Gaussian kernel matrix, and its entropy."""
    squares = _gaussian_gram(layer).square()
    return squares, _entropy(squares)


def _shared_information(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    return a[1] + b[1] - _entropy(a[0] * b[0])


def _entropy(squares: Tensor) -> Tensor:
    """-log2 tr((K / B)^2) of a kernel matrix with a diagonal of ones: the trace is the mean of the squares."""
    return -squares.mean().log2()


_RELATIONS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any, Any], Tensor]]] = {
    "correlation": (_direction, _alignment),
    "information": (_squared_kernel, _shared_information),
}


def _layer_loss(student_layers: Sequence[Tensor], teacher_layers: Sequence[Tensor], relation: str) -> Tensor:
    student = layers_of("student_layers", student_layers)
    teacher = layers_of("teacher_layers", teacher_layers)
    if len(student) != len(teacher):
        raise ValueError(
            f"student_layers has {len(student)} layers and teacher_layers {len(teacher)}: choose equally many"
        )
    if len(student[0]) != len(teacher[0]):
        raise ValueError(
            f"student_layers has batch {len(student[0])} and teacher_layers {len(teacher[0])}: use one batch"
        )
    return F.mse_loss(layer_relation_matrix(student, relation), layer_relation_matrix(teacher, relation))


def _relative_distances(rows: Tensor) -> Tensor:
    """B x B distances in units of their mean off the diagonal."""
    distances = _distances(rows)
    mean = distances.sum() / (len(rows) * (len(rows) - 1))
    return divide(distances, mean, noise=ROUNDING * torch.linalg.vector_norm(rows, dim=1).mean())


def _squared_distances(rows: Tensor) -> Tensor:
    """B x B squared distances, in float64, by |x|^2 + |y|^2 - 2 x.y on the rows less their mean.

    That takes a tenth of the time of all differences; but in float32 it loses all digits far from the origin.
    """
    wide = off_mps(rows).double()  # MPS has no float64
    centred = wide - wide.mean(dim=0)
    gram = inner(centred, centred)
    power = gram.diagonal()
    return power[:, None] + power - 2 * gram


def _distances(rows: Tensor) -> Tensor:
    """B x B Euclidean distances; where only rounding is left of one, distance and gradient are zero."""
    squared = _squared_distances(rows)
    coincide = squared <= COINCIDENT**2 * squared.detach().amax()
    # The root is taken of 1 where it would be taken of 0, so that its infinite slope is never multiplied by 0.
    # First the dtype: the backward pass of one copy that changes both would ask MPS for float64.
    return squared.masked_fill(coincide, 1.0).sqrt().masked_fill(coincide, 0.0).to(rows.dtype).to(rows.device)


def _cosines(rows: Tensor) -> Tensor:
    """B x B x B: entry [i, j, k] is the cosine of the angle at sample i between samples j and k."""
    # By differences: an angle between near samples needs more digits of their distance than a Gram matrix has.
    rows = rescaled(rows, dim=(0, 1))
    near = off_mps(rows)  # before 2026 torch.cdist had no gradient on MPS
    squared = torch.cdist(near, near, compute_mode="donot_use_mm_for_euclid_dist").square().to(rows)
    size = rows.square().sum(dim=1)
    noise = ROUNDING**2 * torch.maximum(size[:, None], size) + DIRECTIONLESS**2 * squared.detach().amax()
    # Divided by an infinite length, cosine and gradient are zero. At length 0 the root has an infinite slope.
    inverse = squared.masked_fill(squared <= noise, math.inf).rsqrt()
    law = (squared[:, :, None] + squared[:, None, :]).sub_(squared)  # of cosines: a^2 + b^2 - c^2 = 2 a b cos
    return law * (inverse / 2)[:, :, None] * inverse[:, None, :]


def _taylor_kernel(rows: Tensor, gamma: float, order: int) -> Tensor:
    """B x B Gaussian kernel between unit vectors, as a power series of their cosines."""
    rows = unit(rows)
    cosines = symmetric_gram(rows)
    kernel = torch.zeros_like(cosines)
    for p in range(order, -1, -1):  # Horner's scheme
        kernel = kernel * cosines + (2 * gamma) ** p / math.factorial(p)
    return math.exp(-2 * gamma) * kernel
