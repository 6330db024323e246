"""Losses on output logits: what the teacher thinks of every class, not only of the right one.

Logits are B x C: B samples, C classes, before any softmax. Every loss is a mean over the batch.
"""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import as_floats, centred_unit, check_number, check_temperature, rescaled, shape, sum_to_one

_NO_LABEL = torch.iinfo(torch.int64).min  # torch's own -100 is left out of a mean in silence


def soften(logits: Tensor, temperature: float) -> Tensor:
    """Class probabilities softmax(logits / T), the flatter the higher the temperature T.

    Shapes: logits (..., C), classes last; the probabilities have the same shape and sum to 1 over the
        classes.
    Raises: TypeError or ValueError if T is not a number from 1e-20 to 1e20, or if the logits are no floats.
    Paper: Hinton, Vinyals, Dean 2015, arXiv:1503.02531.
    """
    (logits,) = as_floats(logits=logits)
    check_number("temperature", temperature)
    if not 1e-20 <= temperature <= 1e20:
        raise ValueError(f"temperature must lie between 1e-20 and 1e20, got {temperature}: the logits would overflow")
    return F.softmax(logits / temperature, dim=-1)


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Knowledge distillation: the KL divergence from the teacher's softened probabilities to the student's.

    T^2 * mean_b sum_c p_t (log p_t - log p_s) with p = softmax(logits / T). The gradient with respect to
    the student's logits is T * (p_s - p_t) / B.

    Shapes: both B x C, with C >= 2.
    Scale: nats times T^2. The factor keeps the gradient at about the same size as T grows: for large T
        the loss of zero-mean logits tends to mean_b ||s - t||^2 / (2 C), whatever T is. In float32 its value is
        rounded to about 1e-7 T^2, and so can be that far below 0 where both nearly agree.
    Masks: a class that is -inf in both has no logarithm, and gives NaN: leave its column out, or mask it by -6e4.
    Gradient: flows to the teacher's logits too if they carry one; nothing is detached here, so compute
        them under torch.no_grad().
    Raises: ValueError for shapes that differ, are not B x C or have fewer than two classes, and for T
        outside 0.001 .. 1000, of float64 0.001 .. 1e6; TypeError for what is not a float tensor.
    Paper: Hinton, Vinyals, Dean 2015, arXiv:1503.02531.
    Published code disagrees: some leaves out T^2; some uses reduction="mean", which divides by B * C and
        so makes the loss C times too small; some feeds probabilities where logits belong, a softmax too
        many.
    """
    student, teacher = _logit_pair(student_logits, teacher_logits)
    check_temperature(temperature, student.dtype)
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return _kl(log_student, log_teacher) * temperature**2


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled distillation: kd split into "is it the target?" and "which of the others?", weighted apart.

    T^2 * (alpha * TCKD + beta * NCKD). TCKD is the KL divergence of (p_target, 1 - p_target), NCKD that
    of the other classes' probabilities among themselves. They make up kd / T^2 = TCKD + mean_b (1 -
    p_target) NCKD_b, p_target being the teacher's: kd mutes NCKD exactly where the teacher is sure, and
    dkd does not.

    Shapes: logits B x C with C >= 3; labels B, class indices (int64).
    Scale: nats times T^2, as in kd. Gradient: not detached from the teacher, as in kd.
    Raises: as kd; ValueError for fewer than three classes, for labels of another length or out of range
        (CUDA stops the program instead), and for weights that are negative or not finite; TypeError for labels
        not int64.
    Paper: Zhao et al. 2022, arXiv:2203.08679.
    Published code disagrees: the authors' takes the log of a softmax, which is infinite for a confidently
        wrong student, and hides the target by subtracting 1000 from it; here everything stays in log
        space.
    """
    student, teacher = _logit_pair(student_logits, teacher_logits)
    classes = student.shape[1]
    if classes < 3:
        raise ValueError(f"dkd needs at least 3 classes, got {classes}: a single other class has no split, use kd")
    check_labels(labels, student, needed_by="dkd")
    check_temperature(temperature, student.dtype)
    check_number("alpha", alpha, zero_allowed=True)
    check_number("beta", beta, zero_allowed=True)
    student_target, student_others = _decouple(student / temperature, labels)
    teacher_target, teacher_others = _decouple(teacher / temperature, labels)
    tckd = _kl(student_target, teacher_target)
    nckd = _kl(student_others, teacher_others)
    return (alpha * tckd + beta * nckd) * temperature**2


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    inter: float = 1.0,
    intra: float = 1.0,
) -> Tensor:
    """DIST: the student need not copy the teacher's probabilities, only correlate with them.

    T^2 * (inter * (1 - mean_b r_b) + intra * (1 - mean_c r_c)) with Pearson's correlation r of
    softmax(logits / T): r_b between the two rows of a sample (how it ranks the classes), r_c between the
    two columns of a class (how it ranks the samples). Only the pattern counts: mixing a row with the
    uniform distribution leaves r_b alone. With two classes r_b is 1 or -1 and has no gradient; only intra
    teaches.

    Shapes: both B x C, with C >= 2. Scale: each bracket lies in [0, 2], 0 when perfectly correlated.
    Degenerate: a constant row or column (or a batch of one, whose columns are single numbers) has no
        correlation; it counts as r = 0 without gradient. Constant means a spread below 1e-6 of the
        values, as logits of spread 1 have it near T = 1e6. So does a class that is masked by -inf in both.
    Gradient: not detached from the teacher, as in kd.
    Raises: as kd; ValueError for weights that are negative or not finite.
    Paper: Huang et al. 2022, arXiv:2205.10536.
    Published code disagrees: the authors' adds 1e-8 to the product of the norms, which leaves a gradient
        of up to 1e8 at a constant row.
    """
    student, teacher = _logit_pair(student_logits, teacher_logits)
    check_temperature(temperature, student.dtype)
    check_number("inter", inter, zero_allowed=True)
    check_number("intra", intra, zero_allowed=True)
    p_student = F.softmax(student / temperature, dim=1)
    p_teacher = F.softmax(teacher / temperature, dim=1)
    between_rows = 1 - _correlation(p_student, p_teacher).mean()
    between_columns = 1 - _correlation(p_student.mT, p_teacher.mT).mean()
    return (inter * between_rows + intra * between_columns) * temperature**2


def standardized_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """kd on z-scores: every row of logits is first brought to mean 0 and standard deviation 1.

    The student is then free in the scale of its logits, which a small model cannot always match.

    Shapes: both B x C, with C >= 3. Scale: nats times T^2, as in kd.
    Degenerate: a constant row (spread below 1e-6 of its values) has z-score 0 and no gradient.
    Gradient: not detached from the teacher, as in kd.
    Raises: as kd; ValueError for fewer than 3 classes.
    Paper: Sun et al. 2024, arXiv:2403.01427.
    Published code disagrees: the paper divides by C in the variance, as here; the authors' code uses
        torch.std, which divides by C - 1 (the same as a temperature larger by sqrt(C / (C - 1))), and
        adds 1e-7 to it.
    """
    student, teacher = _logit_pair(student_logits, teacher_logits)
    classes = student.shape[1]
    if classes < 3:
        raise ValueError(
            f"standardized_kd needs at least 3 classes, got {classes}: the z-scores of two numbers are always -1 and "
            "1, without gradient; use kd"
        )
    scale = math.sqrt(classes)  # a centred row of norm sqrt(C) has standard deviation 1
    return kd(scale * centred_unit(student), scale * centred_unit(teacher), temperature)


def label_smoothing(student_logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with smoothed labels: the control that softens the target without any teacher.

    The target has 1 - smoothing + smoothing / C on the label and smoothing / C on every other class.

    Shapes: logits B x C with C >= 2; labels B, class indices (int64), or B x C, the share of each class
        (floats that sum to 1, as mixup makes them). Scale: nats.
    Raises: ValueError for smoothing outside [0, 1), wrong shapes, labels out of range or shares that do not
        sum to 1 (shares are looked at on the CPU only; CUDA stops the program for a label out of range);
        TypeError for logits that are not floats or labels of another kind.
    Paper: Szegedy et al. 2016, arXiv:1512.00567.
    Published code disagrees: some spreads the smoothing over the C - 1 other classes only.
    """
    (student,) = as_floats(student_logits=student_logits)
    _check_logits("student_logits", student)
    if isinstance(labels, Tensor) and labels.is_floating_point() and labels.ndim > 1:
        labels = _check_shares(labels, student)
    else:
        check_labels(labels, student)
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be in [0, 1), got {smoothing}: 0 is plain cross-entropy, 0.1 is usual")
    return F.cross_entropy(student, labels, label_smoothing=smoothing, ignore_index=_NO_LABEL)


def warn_if_probabilities(logits: Tensor, name: str) -> None:
    """UserWarning when logits look like probabilities: all in [0, 1], every row summing to 1 within 1e-3.

    Of rows that bfloat16 has rounded, as autocast does on a CPU, within 1e-2.

    A softmax on top of a softmax trains without complaint and teaches almost nothing, so the training
    loop calls this once, on its first batch. The losses do not: reading values would make a GPU wait in
    every step.

    Shapes: logits (..., C), classes last; name is what the warning calls them. Raises: TypeError or
        ValueError for what is not a non-empty float tensor.
    """
    (logits,) = as_floats(**{name: logits})
    if (logits >= 0).all() and sum_to_one(logits):  # then none is above 1 by more than rounding either
        warnings.warn(
            f"{name} look like probabilities: all are in [0, 1] and every row sums to 1. "
            "Pass logits, the numbers before the softmax: the loss applies its own.",
            stacklevel=2,
        )


def _kl(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """KL(teacher || student) from log-probabilities, summed over classes, averaged over the batch."""
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def _decouple(scaled_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, any other), B x 2, and of the others among themselves, B x C with 0 at the target.

    Where student and teacher have the same log-probability, 0, the KL divergence has no term and no gradient.
    """
    target = labels[:, None]
    log_p = F.log_softmax(scaled_logits, dim=1)
    # The target gets the probability 0. A boolean mask would leave it out, but make a GPU wait.
    log_p_others = log_p.scatter(1, target, -math.inf).logsumexp(dim=1, keepdim=True)
    log_target = torch.cat([log_p.gather(1, target), log_p_others], dim=1)
    others = F.log_softmax(scaled_logits.scatter(1, target, -math.inf), dim=1)
    return log_target, others.scatter(1, target, 0.0)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of a with the same row of b; 0 where one of them is constant."""
    # Rescaled, because a class that is nowhere likely is no constant one, though the squares of its probabilities would
    # all be 0. Not below 1e-30: the gradients would leave float32.
    a, b = (centred_unit(rescaled(x.masked_fill(x < 1e-30, 0), dim=1)) for x in (a, b))
    return (a * b).sum(dim=1)


def _logit_pair(student_logits: Tensor, teacher_logits: Tensor) -> list[Tensor]:
    student, teacher = as_floats(student_logits=student_logits, teacher_logits=teacher_logits)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_logits {shape(student)} and teacher_logits {shape(teacher)} must have the same shape: "
            "the same batch and the same classes in the same order"
        )
    _check_logits("student_logits and teacher_logits", student)
    return [student, teacher]


def _check_logits(name: str, logits: Tensor) -> None:
    if logits.ndim != 2:
        raise ValueError(
            f"{name} must be batch x classes, got shape {shape(logits)}: "
            "move the classes last and flatten the rest into the batch"
        )
    if logits.shape[1] < 2:
        raise ValueError(f"{name} need at least 2 classes, got 1: write a single logit z as the pair (0, z)")


def check_labels(labels: Tensor, logits: Tensor, needed_by: str | None = None) -> None:
    """Raise ValueError or TypeError unless labels are one class of the logits, B x C, for each row.

    needed_by: the loss that reads them; by default the cross-entropy, whose place another function can take.
    """
    batch, classes = logits.shape
    if not isinstance(labels, Tensor):
        function = ", or a function, hard=lambda z, y: F.cross_entropy(z, y['name']) for a method, loss= for evaluate"
        raise TypeError(
            f"labels must be class indices in a torch.int64 tensor, got {type(labels).__name__}: make one by "
            "torch.tensor. If it holds several labels, say which of them: Adapter(labels=...)"
            f"{'' if needed_by else function}"
        )
    if labels.is_floating_point() and labels.shape == logits.shape:
        raise TypeError(
            "labels hold the share of each class, and this loss needs one class for each sample: class indices in a "
            "torch.int64 tensor. For mixed samples take a loss that looks at all classes alike, such as kd"
        )
    if labels.dtype != torch.int64:
        raise TypeError(
            f"labels must be class indices in a torch.int64 tensor, got {labels.dtype}: call .long() on them"
        )
    if shape(labels) != (batch,):
        raise ValueError(f"labels must have shape ({batch},), one per row of logits, got {shape(labels)}")
    # Not on CUDA: reading values makes every step wait for the device, and an index out of range stops the
    # program there anyway. MPS would leave such a sample out in silence.
    if labels.device.type in ("cpu", "mps") and not 0 <= labels.min() <= labels.max() < classes:
        low, high = labels.min().item(), labels.max().item()
        advice = (
            f": {needed_by} needs the label of every sample. Or take kd, with a hard= that leaves them out"
            if needed_by
            else f", or say so: hard=lambda z, y: F.cross_entropy(z, y, ignore_index={low}, reduction='sum') / "
            "(y >= 0).sum().clamp(min=1) for a method, loss= for evaluate"
        )
        unlabelled = f". If {low} marks samples without a label, leave them out{advice}"
        raise ValueError(
            f"labels must lie in 0 .. {classes - 1}, got values from {low} to {high}{unlabelled if low < 0 else ''}"
        )


def _check_shares(labels: Tensor, logits: Tensor) -> Tensor:
    """The share of each class, in the dtype of the logits."""
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels that are floats hold the share of each class and must have the shape of the logits, "
            f"{shape(logits)}, got {shape(labels)}: class indices are a torch.int64 tensor, call .long() on them"
        )
    if labels.device.type == "cpu" and not (labels.min() >= 0 and sum_to_one(labels)):
        raise ValueError(
            "labels that are floats hold the share of each class: none below 0, and every row sums to 1. For several "
            "labels at once write each logit z as the pair (0, z), as task='multilabel' does"
        )
    return labels.to(logits.dtype)
