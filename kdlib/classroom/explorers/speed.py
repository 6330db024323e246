"""How large a thin ResNet is, by counting, and how fast one of any size is likely to be, from a few that were timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from kdlib import measure, models

CLASSES, CHANNELS = 10, 1  # as in Fashion-MNIST
# Depth, width, pixels. Small ones first: where the machine is slow, the last ones are left out.
TIMED = (
    (8, 16, 28),
    (20, 4, 28),
    (20, 16, 28),
    (8, 32, 56),
    (56, 8, 28),
    (20, 32, 28),
    (8, 8, 112),
    (32, 16, 56),
    (20, 64, 28),
    (8, 16, 224),
)
SECONDS = 2.0  # for all of them together
FEWEST = 5


@dataclass(frozen=True)
class Size:
    """What a network costs on paper: parameters, multiply-accumulates for a picture, layers, numbers it writes."""

    parameters: int
    macs: int
    layers: int
    numbers: int


@dataclass(frozen=True)
class Timed:
    """A network that was timed: its size, and the median seconds for one picture."""

    size: Size
    seconds: float


def network(depth: int, width: int) -> nn.Module:
    """`models.CifarResNet` with `width` channels in its first stage instead of 16."""
    model = models.CifarResNet(depth, CLASSES, CHANNELS)
    blocks = (depth - 2) // 6
    model.conv1 = nn.Conv2d(CHANNELS, width, 3, 1, 1, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    model.layer1 = model._stage(width, width, 1, blocks)
    model.layer2 = model._stage(width, 2 * width, 2, blocks)
    model.layer3 = model._stage(2 * width, 4 * width, 2, blocks)
    model.fc = nn.Linear(4 * width, CLASSES)
    return model


def convolutions(depth: int, width: int, resolution: int) -> list[tuple[int, int, int, int]]:
    """The network's convolutions: kernel, channels in, channels out, pixels of a side of what comes out."""
    found = [(3, CHANNELS, width, resolution)]
    inputs, side = width, resolution
    for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        side = -(-side // stride)
        for _ in range((depth - 2) // 6):
            found += [(3, inputs, outputs, side), (3, outputs, outputs, side)]
            if inputs != outputs:
                found.append((1, inputs, outputs, side))  # the shortcut
            inputs = outputs
    return found


@cache
def size(depth: int, width: int, resolution: int) -> Size:
    """Counted without building the network, so in no time; `measure` counts the same on the network itself."""
    layers = convolutions(depth, width, resolution)
    weights = sum(k * k * i * o for k, i, o, _ in layers)
    norms = sum(2 * o for _, _, o, _ in layers)
    last = 4 * width * CLASSES
    return Size(
        parameters=weights + norms + last + CLASSES,
        macs=sum(k * k * i * o * side**2 for k, i, o, side in layers) + last,
        layers=len(layers),
        numbers=sum(o * side**2 for _, _, o, side in layers),
    )


@cache
def timed() -> tuple[Timed, ...]:
    """Some networks, timed on this machine once a session: one picture, float32, torch's number of threads."""
    found: list[Timed] = []
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):  # the weights do not matter, and the learner's random numbers stay
        for depth, width, resolution in TIMED:
            if len(found) >= FEWEST and time.perf_counter() - start > SECONDS:
                break
            shape = (CHANNELS, resolution, resolution)
            seconds = measure.latency(network(depth, width), shape, min_run_time=0.05).median
            found.append(Timed(size(depth, width, resolution), seconds))
    return tuple(found)


@dataclass(frozen=True)
class Speed:
    """Seconds for a picture as a sum: so much a layer, so much a MAC, so much a number that is written.

    error: how far the same estimate is off, as a share of the truth, for a network that it was not fitted to (the
    median over the networks that were timed). largest: the most MACs among them.
    """

    costs: tuple[float, float, float]
    error: float
    largest: int

    @classmethod
    def fitted(cls, points: Sequence[Timed]) -> Speed:
        """From networks that were timed, leaving each of them out once to see how good the estimate is."""
        misses = []
        for left_out in points:
            costs = _costs([point for point in points if point is not left_out])
            misses.append(abs(_seconds(costs, left_out.size) / left_out.seconds - 1))
        return cls(_costs(points), statistics.median(misses), max(point.size.macs for point in points))

    def seconds(self, wanted: Size) -> float:
        """The estimate for a network."""
        return _seconds(self.costs, wanted)


def _seconds(costs: Sequence[float], wanted: Size) -> float:
    return sum(cost * amount for cost, amount in zip(costs, _amounts(wanted), strict=True))


def _amounts(wanted: Size) -> tuple[int, int, int]:
    return wanted.layers, wanted.macs, wanted.numbers


def _costs(points: Sequence[Timed]) -> tuple[float, float, float]:
    """No cost is below zero, and each network counts alike: the errors are relative."""
    import numpy as np
    from scipy.optimize import nnls

    rows = np.array([_amounts(point.size) for point in points], dtype=float)
    rows /= np.array([[point.seconds] for point in points])
    scale = rows.max(axis=0)
    found, _ = nnls(rows / scale, np.ones(len(points)))
    layer, mac, number = (found / scale).tolist()
    return layer, mac, number
