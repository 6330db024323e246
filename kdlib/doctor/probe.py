"""Probes: logits that are put in place of the networks', and the gradients that a loss then has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdlib.doctor.known_losses import EXACT, Identified, Probe, fit, identify
from kdlib.doctor.report import Skip
from kdlib.doctor.setup import Setup, Terms, total

SPREAD = 2.0  # standard deviation of a probe's logits: softmax is then far from flat and from one-hot


def random_logits(rows: int, classes: int, seed: int, scale: float = SPREAD) -> Tensor:
    """Logits of which no two rows or classes are alike, each row with an offset of its own."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, generator=generator)
    return logits + torch.randn(rows, 1, generator=generator)


def gradient(setup: Setup, batch: Any, student: Tensor, teacher: Tensor) -> Tensor:
    """Of the loss with respect to the student's logits; zeros where they have no part in it."""
    place = device_of(setup)
    leaf = student.to(place).clone().requires_grad_()
    loss = total(losses_of_probe(setup, batch, student=leaf, teacher=teacher.to(place)))
    if not loss.requires_grad:
        return torch.zeros_like(student)
    (found,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    return torch.zeros_like(student) if found is None else found.detach().cpu()


def losses_of_probe(setup: Setup, batch: Any, **logits: Tensor) -> Terms:
    """The losses with these logits in place of the networks'; Skip where they cannot be computed with them."""
    try:
        return setup.losses(batch, **logits)
    except Skip:
        raise
    except Exception as error:  # whatever a loss of the user's raises for logits that it was not written for
        raise Skip(f"the loss cannot be computed with other logits ({type(error).__name__}: {error})") from None


def device_of(setup: Setup) -> torch.device:
    """Where the loss is computed."""
    return setup.observed[0].logits["student"].device


def labels_of(setup: Setup, rows: int) -> Tensor | None:
    """Class numbers of the first rows; None where the batch has none, or one of them names no class."""
    labels, classes = setup.observed[0].labels, setup.observed[0].logits["student"].shape[1]
    if labels is None or labels.ndim != 1 or labels.is_floating_point() or len(labels) < rows:
        return None
    first = labels[:rows].cpu().long()
    return first if bool(((first >= 0) & (first < classes)).all()) else None


def probes(setup: Setup, rows: int | None = None, classes: int | None = None) -> list[Probe]:
    """Two logits of the student, each with two of the teacher."""
    batch, most, given = setup.responds()
    rows, classes = rows or most, classes or given
    if rows != most:
        batch = setup.cut(rows)
    found = []
    for seed in (1, 2):
        student = random_logits(rows, classes, seed)
        for other in (11, 12):
            teacher = random_logits(rows, classes, seed * other)
            found.append(Probe(student, teacher, gradient(setup, batch, student, teacher)))
    return found


def identified(setup: Setup) -> Identified:
    """What the loss on logits is; Skip where it is none of those known here."""
    if "identified" not in setup.memory:
        setup.memory["identified"] = _identify(setup)
    found = setup.memory["identified"]
    if isinstance(found, Skip):
        raise found
    return found


def _identify(setup: Setup) -> Identified | Skip:
    try:
        made = probes(setup)
    except Skip as reason:
        return reason
    if not all(bool(one.gradient.isfinite().all()) for one in made):
        return Skip("the loss has no finite gradient on a probe")
    if reacts(made) < IGNORED:
        return Skip("the student's gradient does not depend on the teacher's logits")
    found = identify(made, labels_of(setup, len(made[0].student)), setup.temperature)
    return found or Skip("the loss on logits is none of those known here")


def over_the_batch(setup: Setup) -> Identified | None:
    """The divergence that the loss is if each class is taken for a sample, as where a softmax runs over the batch."""
    if setup.responds()[2] < 2:  # a score for each sample, whose softmax can run over nothing else
        return None
    made = [Probe(one.student.T, one.teacher.T, one.gradient.T) for one in probes(setup)]
    if not all(bool(one.gradient.isfinite().all()) for one in made) or reacts(made) < IGNORED:
        return None
    found = identify(made, None)
    return found if found is not None and found.name in ("kd", "reversed", "js") else None


IGNORED = 1e-5  # of the gradient: float32's rounding, amplified in a loss of several steps, leaves some 1e-6


def reacts(made: list[Probe]) -> float:
    """By how much of itself the student's gradient changes with the teacher's logits, at most."""
    pairs = zip(made[::2], made[1::2], strict=True)
    return max(float((a.gradient - b.gradient).norm() / a.gradient.norm().clamp(min=1e-30)) for a, b in pairs)


def scaling(setup: Setup, *, rows: int | None = None, classes: int | None = None) -> float:
    """The weight of the same known loss for other sizes, divided by that for the sizes given; Skip if it has none."""
    base = identified(setup)
    try:
        made = probes(setup, rows, classes)
    except Skip:
        raise
    except Exception as error:  # whatever a loss of the user's raises for sizes that it was not written for
        raise Skip(f"the loss cannot be computed for other sizes ({type(error).__name__})") from None
    found = fit(base.name, base.temperature, made)
    if found.residual > 10 * EXACT or base.weight == 0:
        raise Skip("for other sizes the loss is another one")
    return found.weight / base.weight
