"""Which known loss on logits a black box is, at which temperature and how large: by its gradient on probes.

A loss of the form a * cross-entropy + w * soft is told by least squares: for each known soft loss and temperature, the
gradient with respect to the student's logits is compared with that of the loss.
"""

# ruff: noqa: N803 (T is the field's name)

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# From logits N x C of student and teacher and temperatures N x 1 to a number for each row.
Known = Callable[[Tensor, Tensor, Tensor], Tensor]

# The residual of the right loss is float32's rounding, that of the nearest wrong one, at any temperature, far more: see
# tests/test_doctor_losses.py.
EXACT = 3e-4
ROUNDING = 3e-6  # of float32, in the gradient of a loss with a softmax
LARGEST = 0.05  # residual that may be put down to rounding: beyond, rounding itself would pass for a loss
TEMPERATURES = torch.logspace(-1, 5, 37, base=2, dtype=torch.float64)  # 0.5 to 32
MOST_VALUES = 4_000_000  # of logits that are looked at at once, 32 MB each time that they are computed with
ZOOMS = 6  # each narrows the step between temperatures tenfold
REFINED = 4  # of the losses that fit best on the grid, how many are fitted more closely


def _log(z: Tensor, t: Tensor | float) -> Tensor:
    return F.log_softmax(z / t, dim=1)


def _p(z: Tensor, t: Tensor | float) -> Tensor:
    return F.softmax(z / t, dim=1)


def _kl(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    return (log_teacher.exp() * (log_teacher - log_student)).sum(1)


def _js(s: Tensor, t: Tensor, T: Tensor) -> Tensor:
    a, b = _log(s, T), _log(t, T)
    mean = torch.logsumexp(torch.stack([a, b]), 0) - torch.log(torch.tensor(2.0))
    return (_kl(mean, a) + _kl(mean, b)) / 2


# Where there is a temperature, each is multiplied by T^2 when it is used.
KNOWN: dict[str, Known] = {
    "kd": lambda s, t, T: _kl(_log(s, T), _log(t, T)),
    "reversed": lambda s, t, T: _kl(_log(t, T), _log(s, T)),
    "js": _js,
    "mse of logits": lambda s, t, T: (s - t).square().sum(1),
    "mse of probabilities": lambda s, t, T: (_p(s, T) - _p(t, T)).square().sum(1),
    "student probabilities": lambda s, t, T: -(_p(t, T) * _p(s, T)).sum(1),
    "student unnormalised": lambda s, t, T: -(_p(t, T) * s / T).sum(1),
    "teacher log-probabilities": lambda s, t, T: -(_log(t, T) * _log(s, T)).sum(1),
    "teacher logits": lambda s, t, T: -(t / T * _log(s, T)).sum(1),
    "student softmax twice": lambda s, t, T: _kl(_log(_p(s, 1), T), _log(t, T)),
    "teacher softmax twice": lambda s, t, T: _kl(_log(s, T), _log(_p(t, 1), T)),
    "both softmax twice": lambda s, t, T: _kl(_log(_p(s, 1), T), _log(_p(t, 1), T)),
    "student softened softmax twice": lambda s, t, T: _kl(_log(_p(s, T), 1), _log(t, T)),
    "teacher softened softmax twice": lambda s, t, T: _kl(_log(s, T), _log(_p(t, T), 1)),
    "both softened softmax twice": lambda s, t, T: _kl(_log(_p(s, T), 1), _log(_p(t, T), 1)),
    "student not softened": lambda s, t, T: _kl(_log(s, 1), _log(t, T)),
    "teacher not softened": lambda s, t, T: _kl(_log(s, T), _log(t, 1)),
}
NO_TEMPERATURE = ("mse of logits",)
# Losses in which what depends on the teacher is the same; the first of each group is searched for.
LIKE = {
    "kd": ("student unnormalised", "student not softened"),
    "student softened softmax twice": ("student probabilities", "mse of probabilities"),
}
LIKE_KD_AT_1 = "teacher not softened"
OTHERS = (*LIKE["kd"], *LIKE["student softened softmax twice"], LIKE_KD_AT_1)


@dataclass(frozen=True)
class Probe:
    """Logits of both networks and the gradient of the loss with respect to the student's, each B x C."""

    student: Tensor
    teacher: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Identified:
    """What a loss is. name: in KNOWN. weight: of that loss as a mean over the batch of sums over classes, with T^2.

    hard: the weight of a cross-entropy with the labels beside it, a mean over the batch; None where something else
    stands beside it. residual: what is left of the gradient, as a share.
    """

    name: str
    temperature: float
    weight: float
    hard: float | None
    residual: float


def identify(probes: Sequence[Probe], labels: Tensor | None, temperature: float | None = None) -> Identified | None:
    """The known loss that explains these gradients; None if none does. temperature: tried before others.

    probes: pairs with the same student's logits and different teachers', all with the same labels. First comes what the
    two of a pair differ by, which no loss on the labels has a part in; then what stands beside it.
    """
    fits = [_on_grid(name, probes, temperature) for name in KNOWN if name not in OTHERS]
    fits.sort(key=_residual)
    refined = [_refined(one, probes) for one in fits[:REFINED]]
    # Where rounding may hide which of several it is, it is the most usual: KNOWN begins with that.
    alike = [one for one in refined if one.residual <= _rounding(probes)]
    best = min(alike, key=lambda one: list(KNOWN).index(one.name)) if alike else min(refined, key=_residual)
    if best.name == "student softmax twice" and abs(best.temperature - 1) < 1e-3:  # then it is the same
        best = replace(best, name="student softened softmax twice")
    if best.residual > _exact(probes):
        return None
    soft = best.weight * _gradients(best.name, _tensor(best.temperature), probes)
    everything = torch.stack([one.gradient for one in probes]).double()
    rounding = ROUNDING * float(everything.norm() / soft.norm().clamp(min=1e-300))
    for one in _variants(best, probes, labels):
        if one.residual < max(EXACT, rounding):
            return one
    # With something else beside it the losses of a group cannot be told apart; of its own kd is by far the most usual.
    return None if best.name == "student softened softmax twice" else replace(best, hard=None)


def _variants(best: Identified, probes: Sequence[Probe], labels: Tensor | None) -> Iterator[Identified]:
    """The losses whose differences are those of `best`, with what stands beside them."""
    yield _with_hard(best, probes, labels)
    for name in LIKE.get(best.name, ()):
        yield _with_hard(fit(name, best.temperature, probes), probes, labels)
    if best.name == "kd" and abs(best.temperature - 1) < 1e-3:  # of the teacher; the student's may be any
        grid, width = TEMPERATURES, 1 / 6
        for _ in range(ZOOMS):
            tried = [_with_hard(fit(LIKE_KD_AT_1, T, probes), probes, labels) for T in grid.tolist()]
            nearest = min(tried, key=lambda one: one.residual)
            grid = nearest.temperature * 2 ** torch.linspace(-width, width, 17, dtype=torch.float64)
            width /= 6
        yield nearest


def fit(name: str, temperature: float, probes: Sequence[Probe]) -> Identified:
    """The weight with which this loss explains best what the probes of each pair differ by."""
    return _fits(name, _tensor(temperature), probes)[0]


def _tensor(temperature: float) -> Tensor:
    return torch.tensor([temperature], dtype=torch.float64)


def _residual(one: Identified) -> float:
    return one.residual


def _exact(probes: Sequence[Probe]) -> float:
    """The largest residual with which a loss counts as explained."""
    return min(LARGEST, max(EXACT, _rounding(probes)))


def _rounding(probes: Sequence[Probe]) -> float:
    """The largest residual that rounding can leave in the differences, which may be small beside the gradients."""
    gradients = torch.stack([one.gradient for one in probes]).double()
    differences = gradients[::2] - gradients[1::2]
    return ROUNDING * float(gradients.norm() / differences.norm().clamp(min=1e-300))


def _on_grid(name: str, probes: Sequence[Probe], temperature: float | None) -> Identified:
    if name in NO_TEMPERATURE:
        return fit(name, 1.0, probes)
    given = [] if temperature is None else [temperature]
    fits = _fits(name, torch.cat([torch.tensor([1.0, *given], dtype=torch.float64), TEMPERATURES]), probes)
    return min(fits, key=lambda one: one.residual)


def _refined(start: Identified, probes: Sequence[Probe]) -> Identified:
    """The temperature near that of `start` with the least residual."""
    best, width = start, 1 / 6  # the grid's step, in powers of 2
    if start.name in NO_TEMPERATURE:
        return best
    for _ in range(ZOOMS):
        if best.residual < ROUNDING:
            break
        near = best.temperature * 2 ** torch.linspace(-width, width, 21, dtype=torch.float64)
        best = min([best, *_fits(start.name, near, probes)], key=lambda one: one.residual)
        width /= 8
    return best


def _fits(name: str, grid: Tensor, probes: Sequence[Probe]) -> list[Identified]:
    """For each temperature the best weight, by what the probes of each pair differ by."""
    values = sum(one.gradient.numel() for one in probes)
    if len(grid) > 1 and len(grid) * values > MOST_VALUES:  # many classes: some temperatures at a time
        some = max(1, MOST_VALUES // values)
        return [one for part in grid.split(some) for one in _fits(name, part, probes)]
    soft = _gradients(name, grid, probes)  # temperatures x probes x B x C
    target = torch.stack([one.gradient for one in probes]).double()
    a, b = (soft[:, ::2] - soft[:, 1::2]).flatten(1), (target[::2] - target[1::2]).flatten()
    weights = (a @ b) / a.square().sum(1).clamp(min=1e-300)
    residuals = (weights[:, None] * a - b).norm(dim=1) / b.norm().clamp(min=1e-300)
    rows = zip(grid.tolist(), weights.tolist(), residuals.tolist(), strict=True)
    return [Identified(name, T, weight, None, residual) for T, weight, residual in rows]


def _with_hard(found: Identified, probes: Sequence[Probe], labels: Tensor | None) -> Identified:
    """The weight of the cross-entropy that stands beside it, and what is left, as a share of the soft part."""
    soft = found.weight * _gradients(found.name, _tensor(found.temperature), probes)[0]
    rest = torch.stack([one.gradient for one in probes]).double() - soft
    weight = 0.0
    if labels is not None:
        hard = torch.stack([cross_entropy_gradient(one.student, labels) for one in probes])
        weight = float((hard * rest).sum() / hard.square().sum())
        rest = rest - weight * hard
    return replace(found, hard=weight, residual=float(rest.norm() / soft.norm().clamp(min=1e-300)))


def _gradients(name: str, grid: Tensor, probes: Sequence[Probe]) -> Tensor:
    """Of a known loss as a mean over the batch, for each temperature and probe."""
    student = torch.stack([one.student for one in probes]).double()
    teacher = torch.stack([one.teacher for one in probes]).double()
    count, number, rows, classes = len(grid), *student.shape
    temperatures = grid.repeat_interleave(number * rows)[:, None]
    leaf = student.flatten(0, 1).repeat(count, 1).requires_grad_()
    with torch.enable_grad():
        values = KNOWN[name](leaf, teacher.flatten(0, 1).repeat(count, 1), temperatures)
        if name not in NO_TEMPERATURE:
            values = values * temperatures[:, 0] ** 2
        (found,) = torch.autograd.grad(values.sum() / rows, leaf)
    return found.view(count, number, rows, classes)


def cross_entropy_gradient(student: Tensor, labels: Tensor) -> Tensor:
    """Of the mean over the batch."""
    student = student.double()
    return (F.softmax(student, dim=1) - F.one_hot(labels, student.shape[1])) / len(student)
