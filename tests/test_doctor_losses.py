"""What a black box is told to be, and that no other known loss is near it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from kdlib.doctor import known_losses
from kdlib.doctor.known_losses import EXACT, KNOWN, LIKE, NO_TEMPERATURE, OTHERS, Probe, fit, identify
from kdlib.doctor.probe import random_logits

ROWS = 8


def made(name: str, temperature: float, weight: float, hard: float, classes: int, labels: Tensor) -> list[Probe]:
    """Probes of weight * loss + hard * cross-entropy, in float32."""
    found = []
    for seed, other in itertools.product((1, 2), (11, 12)):
        student, teacher = random_logits(ROWS, classes, seed), random_logits(ROWS, classes, seed * other)
        leaf = student.clone().requires_grad_()
        loss = KNOWN[name](leaf, teacher, torch.full((ROWS, 1), temperature)).mean()
        loss = loss if name in NO_TEMPERATURE else loss * temperature**2
        beside = known_losses.cross_entropy_gradient(student, labels).float()
        gradient = weight * torch.autograd.grad(loss, leaf)[0] + hard * beside
        found.append(Probe(student, teacher, gradient))
    return found


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize(("temperature", "hard"), [(1.7, 0.0), (4.0, 0.1), (9.0, 0.9)])
def test_a_loss_is_told_with_its_temperature_and_its_weights(name: str, temperature: float, hard: float) -> None:
    classes = 7
    labels = torch.arange(ROWS) % classes
    found = identify(made(name, temperature, 1 - hard, hard, classes, labels), labels)
    assert found is not None
    assert found.name == name
    assert found.hard == pytest.approx(hard, abs=2e-3)
    assert found.weight == pytest.approx(1 - hard, rel=2e-3)
    if name not in NO_TEMPERATURE:
        assert found.temperature == pytest.approx(temperature, rel=1e-3)


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1e-4), (4.0, 1.2e-5), (16.0, 1e-4), (32.0, 0.01)])
def test_what_rounding_cannot_tell_from_kd_is_kd(temperature: float, weight: float) -> None:
    """With two classes a teacher of two softmaxes is near kd, and beside a large hard loss rounding hides the rest."""
    labels = torch.arange(ROWS) % 2
    found = identify(made("kd", temperature, weight, 1.0, 2, labels), labels)
    assert found is not None
    assert found.name == "kd"


def test_no_two_known_losses_are_near_each_other() -> None:
    """At no temperature of the grid does another loss explain what the teacher changes, a hundred times over EXACT."""
    alike = {frozenset((first, other)) for first, others in LIKE.items() for other in others}
    alike |= {frozenset(pair) for group in LIKE.values() for pair in itertools.combinations(group, 2)}
    searched = [name for name in KNOWN if name not in OTHERS]
    labels = torch.arange(ROWS) % 7
    for truth in searched:
        probes = made(truth, 4.0, 1.0, 0.0, 7, labels)
        for other in searched:
            if other == truth or frozenset((truth, other)) in alike:
                continue
            best = min(
                fit(other, t, probes).residual for t in (1.0, 1.5, 2.0, 3.0, 3.5, 4.0, 4.5, 6.0, 8.0, 16.0, 32.0)
            )
            assert best > 30 * EXACT, (truth, other, best)


def test_what_is_none_of_them_is_not_named() -> None:
    labels = torch.arange(ROWS) % 7
    generator = torch.Generator().manual_seed(0)
    probes = [
        Probe(one.student, one.teacher, torch.randn(ROWS, 7, generator=generator))
        for one in made("kd", 4.0, 1.0, 0.0, 7, labels)
    ]
    assert identify(probes, labels) is None
