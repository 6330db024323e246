"""Where the trials of a method look for its settings: a range for each, and a sample that covers all of them.

The trials of a method are a Latin hypercube sample (McKay, Beckman and Conover 1979): with ten trials the range of each
setting is cut into ten parts, and each part is tried once. The order in which they are tried depends on the setting's
name alone, so all methods try the same pairs of learning rate and weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kdlib.data import permutation

NARROWER = 3  # the second sample has a third of the first one's range
DIGITS = 3  # of a value that is tried: more would be noise in every table


@dataclass(frozen=True)
class LogUniform:
    """Positive numbers whose logarithm is uniform, for what is known to a power of ten or so.

    largest: what makes sense; the range may be widened up to it.
    """

    low: float
    high: float
    largest: float = math.inf

    def at(self, share: float) -> float:
        """The number below which this share of the range lies."""
        return _rounded(self.low * (self.high / self.low) ** share)

    def around(self, best: float) -> LogUniform:
        """A narrower range with `best` in its middle: where `best` lies at an end, it goes beyond that end."""
        factor = (self.high / self.low) ** (1 / (2 * NARROWER))
        return LogUniform(best / factor, min(best * factor, self.largest), self.largest)


@dataclass(frozen=True)
class Uniform:
    """Numbers between two that nothing can lie beyond, such as a weight from 0 to 1."""

    low: float
    high: float

    def at(self, share: float) -> float:
        """The number below which this share of the range lies."""
        return _rounded(self.low + (self.high - self.low) * share)

    def around(self, best: float) -> Uniform:
        """A narrower range about `best`, cut off where this one ends."""
        reach = (self.high - self.low) / (2 * NARROWER)
        return Uniform(max(self.low, best - reach), min(self.high, best + reach))


@dataclass(frozen=True)
class Choice:
    """One of several values without an order."""

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """The values one after the other, each for an equal share."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def around(self, best: Any) -> Choice:
        """The best value alone."""
        return Choice((best,))


Distribution = LogUniform | Uniform | Choice
SearchSpace = Mapping[str, Distribution]  # by name of the setting


def sample(space: SearchSpace, count: int, stage: str) -> list[dict[str, Any]]:
    """`count` points of a space, the same ones on every machine.

    stage: a word; another one gives another order of the parts.
    """
    parts = torch.arange(count)
    order = {name: permutation(parts, "trials", stage, name).tolist() for name in space}
    return [
        {name: distribution.at((order[name][i] + 0.5) / count) for name, distribution in space.items()}
        for i in range(count)
    ]


def narrowed(space: SearchSpace, best: Mapping[str, Any]) -> dict[str, Distribution]:
    """The space around the best point that was found."""
    return {name: distribution.around(best[name]) for name, distribution in space.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
