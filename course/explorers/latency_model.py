"""The size of a thin ResNet, by counting, and its likely latency, from a few networks that are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from kdlib import measure, models

NUM_CLASSES, CHANNELS = 10, 1  # as in Fashion-MNIST
# Depth, width, resolution. Small networks first: on a slow machine the last ones are left out.
TIMED_CONFIGS = (
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
TIME_BUDGET = 2.0  # seconds for all of them together
MIN_TIMED = 5


@dataclass(frozen=True)
class NetworkSize:
    """The size of a network: parameters, and for one image MACs, convolutions and activations that are written."""

    parameters: int
    macs: int
    layers: int
    activations: int


@dataclass(frozen=True)
class TimedNetwork:
    """A network that was timed: its size and the median seconds for one image."""

    size: NetworkSize
    seconds: float


def build_network(depth: int, width: int) -> nn.Module:
    """`models.CifarResNet` with `width` channels in its first stage instead of 16."""
    return models.CifarResNet(depth, NUM_CLASSES, CHANNELS, (width, width, 2 * width, 4 * width))


def convolutions(depth: int, width: int, resolution: int) -> list[tuple[int, int, int, int]]:
    """The network's convolutions: kernel size, input channels, output channels, side of the output map in pixels."""
    layers = [(3, CHANNELS, width, resolution)]
    inputs, side = width, resolution
    for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        side = -(-side // stride)
        for _ in range((depth - 2) // 6):
            layers += [(3, inputs, outputs, side), (3, outputs, outputs, side)]
            if inputs != outputs:
                layers.append((1, inputs, outputs, side))  # the shortcut
            inputs = outputs
    return layers


@cache
def network_size(depth: int, width: int, resolution: int) -> NetworkSize:
    """The size, counted without building the network; `measure` counts the same on the network itself."""
    layers = convolutions(depth, width, resolution)
    weights = sum(k * k * i * o for k, i, o, _ in layers)
    norms = sum(2 * o for _, _, o, _ in layers)
    classifier = 4 * width * NUM_CLASSES
    return NetworkSize(
        parameters=weights + norms + classifier + NUM_CLASSES,
        macs=sum(k * k * i * o * side**2 for k, i, o, side in layers) + classifier,
        layers=len(layers),
        activations=sum(o * side**2 for _, _, o, side in layers),
    )


@cache
def time_networks() -> tuple[TimedNetwork, ...]:
    """Some networks, timed on this machine once per session: one image, float32, torch's number of threads."""
    timed: list[TimedNetwork] = []
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):  # the learner's random numbers do not change
        for depth, width, resolution in TIMED_CONFIGS:
            if len(timed) >= MIN_TIMED and time.perf_counter() - start > TIME_BUDGET:
                break
            shape = (CHANNELS, resolution, resolution)
            seconds = measure.latency(build_network(depth, width), shape, min_run_time=0.05).median
            timed.append(TimedNetwork(network_size(depth, width, resolution), seconds))
    return tuple(timed)


@dataclass(frozen=True)
class LatencyModel:
    """Seconds for one image as a sum: a cost per layer, per MAC, and per activation that is written.

    error: the relative error of the estimate for a network that it was not fitted to (the median over the networks that
    were timed). largest: the most MACs among them.
    """

    costs: tuple[float, float, float]
    error: float
    largest: int

    @classmethod
    def fit(cls, networks: Sequence[TimedNetwork]) -> LatencyModel:
        """Fit to networks that were timed; each of them is left out once to find the error."""
        errors = []
        for left_out in networks:
            costs = _fit_costs([network for network in networks if network is not left_out])
            errors.append(abs(_seconds(costs, left_out.size) / left_out.seconds - 1))
        return cls(_fit_costs(networks), statistics.median(errors), max(network.size.macs for network in networks))

    def seconds(self, size: NetworkSize) -> float:
        """The estimated latency of a network of this size."""
        return _seconds(self.costs, size)


def _seconds(costs: Sequence[float], size: NetworkSize) -> float:
    return sum(cost * amount for cost, amount in zip(costs, _amounts(size), strict=True))


def _amounts(size: NetworkSize) -> tuple[int, int, int]:
    return size.layers, size.macs, size.activations


def _fit_costs(networks: Sequence[TimedNetwork]) -> tuple[float, float, float]:
    """Least squares of the relative errors, so that each network has the same weight; no cost is negative."""
    import numpy as np
    from scipy.optimize import nnls

    rows = np.array([_amounts(network.size) for network in networks], dtype=float)
    rows /= np.array([[network.seconds] for network in networks])
    scale = rows.max(axis=0)
    scaled, _ = nnls(rows / scale, np.ones(len(networks)))
    layer, mac, activation = (scaled / scale).tolist()
    return layer, mac, activation
