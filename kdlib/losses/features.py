"""Losses on intermediate feature maps: the student imitates what the teacher sees on the way to its answer.

Maps are B x C x H x W: B samples, C channels, H x W positions. Nothing here resizes or projects: that
takes learned parameters, which belong to a method. Teacher tensors are not detached; compute them under
no_grad.
"""

import torch.nn.functional as F
from torch import Tensor

from ._common import as_floats, rescaled, shape, unit

# Keeps the variance in vid away from zero, where log(variance) and 1 / variance blow up; 1e-5 is what the
# code published with the paper takes.
VARIANCE_FLOOR = 1e-5


def hint(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """FitNets' hint: the mean squared error between the projected student map and the teacher map.

    Shapes: equal, B x C x H x W or any other that starts with the batch; a student of another width goes
        through a learned 1x1 convolution first.
    Scale: reduction "mean", over all elements, batch, channels and positions alike; so the value grows
        with the square of the teacher's activations, but not with the size of the map.
    Raises: ValueError for shapes that differ, or have no dimension besides the batch; TypeError for
        non-floats.
    Paper: Romero et al. 2015, arXiv:1412.6550, eq. 3.
    Published code disagrees: the paper sums over the map and halves; libraries take the mean.
    """
    student, teacher = as_floats(student_map=student_map, teacher_map=teacher_map)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_map {shape(student)} and teacher_map {shape(teacher)} must have the same shape: "
            "project the channels with a 1x1 convolution and pool the larger map first"
        )
    if student.ndim < 2:
        raise ValueError(f"student_map and teacher_map must be batch x features, got shape {shape(student)}")
    return F.mse_loss(student, teacher)


def attention_map(f: Tensor) -> Tensor:
    """Where a layer looks: the mean of the squared channels at every position, scaled to norm 1.

    Shapes: f is B x C x H x W, the result B x (H W). Scale: each row has Euclidean norm 1; it does not
        depend on the scale, sign or order of the channels, nor on their number. The row of an all-zero
        map is zero.
    Raises: ValueError for what is not B x C x H x W; TypeError for what is not a float tensor.
    Paper: Zagoruyko, Komodakis 2017, arXiv:1612.03928.
    """
    (f,) = as_floats(f=f)
    _check_maps(f=f)
    return unit(rescaled(f.square().mean(dim=1).flatten(1), dim=1))


def attention(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Attention transfer: the student looks where the teacher looks.

    mean((attention_map(student) - attention_map(teacher))^2), over the batch and all positions. No
    projection is needed, because the channels are averaged away.

    Shapes: B x C x H x W, equal but for C. Scale: two maps of norm 1 give at most 2 / (H W), so a weight
        in the hundreds or thousands is usual. Degenerate: an all-zero map is finite and gets no gradient.
    Raises: ValueError for maps that differ in B, H or W or are not B x C x H x W; TypeError for
        non-floats.
    Paper: Zagoruyko, Komodakis 2017, arXiv:1612.03928.
    Published code disagrees: this is the authors' code; their paper has half the norm of the difference,
        neither squared nor divided by the number of positions.
    """
    student, teacher = as_floats(student_map=student_map, teacher_map=teacher_map)
    _check_maps(student_map=student, teacher_map=teacher)
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"student_map {shape(student)} and teacher_map {shape(teacher)} must agree in batch, height and "
            "width: pool the larger map first"
        )
    return F.mse_loss(attention_map(student), attention_map(teacher))


def vid(predicted_mean: Tensor, raw_variance: Tensor, teacher_map: Tensor) -> Tensor:
    """Variational information distillation: the teacher's map must be predictable from the student's.

    mean of (log v + (teacher - mean)^2 / v) / 2 with one learned variance v = softplus(raw_variance) +
    1e-5 per channel: channels that the student cannot predict get a large v and stop mattering.

    Shapes: predicted_mean and teacher_map equal, B x C x H x W or B x C; raw_variance C, any real
        numbers.
    Scale: nats per element, without the constant log(2 pi) / 2; negative when the fit is tight.
    Raises: ValueError for shapes that do not fit; TypeError for what is not a float tensor.
    Paper: Ahn et al. 2019, arXiv:1904.05835, which sums over channels and positions; their code takes the mean, as
        here.
    Published code disagrees: log(1 + exp x) overflows at x = 89 in float32, softplus does not; one
        library keeps the variance where the optimiser cannot see it, so register raw_variance as a
        parameter.
    """
    mean, raw, teacher = as_floats(predicted_mean=predicted_mean, raw_variance=raw_variance, teacher_map=teacher_map)
    if mean.shape != teacher.shape or teacher.ndim < 2:
        raise ValueError(
            f"predicted_mean {shape(mean)} and teacher_map {shape(teacher)} must have the same shape, "
            "batch x channels x ...: project the student to the teacher's channels first"
        )
    channels = teacher.shape[1]
    if shape(raw) != (channels,):
        raise ValueError(f"raw_variance must have shape ({channels},), one per channel, got {shape(raw)}")
    variance = F.softplus(raw) + VARIANCE_FLOOR
    # First the mean of each channel, whose elements share one v: maps divided by v would be kept for the gradient.
    squared = (teacher - mean).square().mean(dim=(0, *range(2, teacher.ndim)))
    return (variance.log() + squared / variance).mean() / 2


def _check_maps(**maps: Tensor) -> None:
    for name, tensor in maps.items():
        if tensor.ndim != 4:
            raise ValueError(f"{name} must be batch x channels x height x width, got shape {shape(tensor)}")
