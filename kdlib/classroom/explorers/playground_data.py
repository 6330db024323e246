"""Points in a plane for the playground: five data sets, with as many labels wrong as wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

Sampler = Callable[[Tensor, Tensor], Tensor]  # labels, a number in [0, 1) for each -> points without jitter
EDGE = 1.35  # the picture shows this far to each side of 0
MOST, MOST_UNLABELLED = 200, 400  # points of the students
TEST = 2000


@dataclass(frozen=True)
class Kind:
    """A data set: number of classes, where their points lie, and how far from there they are strewn."""

    classes: int
    place: Sampler
    jitter: float


def _moons(labels: Tensor, along: Tensor) -> Tensor:
    angle = math.pi * along
    upper = torch.stack((torch.cos(angle) - 0.5, torch.sin(angle) - 0.25), dim=1)
    return 0.75 * torch.where(labels[:, None] == 0, upper, -upper)


def _circles(labels: Tensor, along: Tensor) -> Tensor:
    radius = 0.4 + 0.5 * labels
    return _round(radius, 2 * math.pi * along)


def _spirals(arms: int, turns: float) -> Sampler:
    def place(labels: Tensor, along: Tensor) -> Tensor:
        radius = 0.15 + 0.95 * along.sqrt()
        return _round(radius, 2 * math.pi * (labels / arms + turns * radius))

    return place


def _clouds(labels: Tensor, along: Tensor) -> Tensor:
    return _round(torch.full_like(along, 0.7), 2 * math.pi * (labels + 0.5) / 4)


def _round(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)


KINDS = {
    "two moons": Kind(2, _moons, 0.15),
    "circles": Kind(2, _circles, 0.12),
    "two spirals": Kind(2, _spirals(2, 0.95), 0.06),
    "three spirals": Kind(3, _spirals(3, 0.6), 0.05),
    "four clouds": Kind(4, _clouds, 0.35),
}


@dataclass(frozen=True, eq=False)
class Sample:
    """Points (N x 2), the labels that are given to a learner, and the true ones."""

    points: Tensor
    labels: Tensor
    truth: Tensor

    def __len__(self) -> int:
        return len(self.points)


@cache
def drawn(name: str, count: int, seed: int) -> Sample:
    """A clean sample, the classes taking turns."""
    kind = KINDS[name]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % kind.classes
    along = torch.rand(count, generator=generator)
    points = kind.place(labels, along) + kind.jitter * torch.randn(count, 2, generator=generator)
    return Sample(points, labels, labels)


@cache
def labelled(name: str, count: int, noise: float, seed: int) -> Sample:
    """What the students get: the first `count` of MOST points, a share of the labels replaced by wrong ones.

    More points are added to those that were there, and more noise spoils further labels: moving a control back brings
    the same sample back. The spoilt ones are spread over the points as evenly as a lottery without replacement allows.
    """
    whole = drawn(name, MOST, 3 * seed + 1)
    points, truth = whole.points[:count], whole.labels[:count]
    generator = torch.Generator().manual_seed(seed)
    classes = KINDS[name].classes
    shift = torch.randint(1, classes, (MOST,), generator=generator)[:count]
    order = torch.rand(MOST, generator=generator)[:count].argsort()
    wrong = torch.zeros(count, dtype=torch.bool)
    wrong[order[: round(noise * count)]] = True
    return Sample(points, torch.where(wrong, (truth + shift) % classes, truth), truth)


def unlabelled(name: str, count: int, seed: int) -> Tensor:
    """More points of the same kind, without labels."""
    return drawn(name, MOST_UNLABELLED, 3 * seed + 2).points[:count]


def test_sample(name: str) -> Sample:
    """Clean points that nobody learns from, the same for every seed."""
    return drawn(name, TEST, 1_000_003)


@cache
def grid(side: int) -> Tensor:
    """Points of a side x side grid over what the picture shows, row by row from below."""
    ticks = torch.linspace(-EDGE, EDGE, side)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), dim=1)
