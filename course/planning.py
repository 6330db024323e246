"""What an experiment would show: simulated intervals of a planned comparison, and how often its verdict is right.

    planning.power(planning.Plan(gain=0.5, spread=0.4, seeds=5))  # in how many of 100 experiments the verdict is right

A gain is that of a method over a baseline in points of accuracy. What is measured of it at one seed is the sum of

    the gain, the same in all experiments
    what is special about the two networks of this seed: normal, with the standard deviation `spread`
    what the test images add, because they are a sample: on some images exactly one of the two networks is right

The last part has a share that is the same at every seed, because all seeds are tested on the same images. The interval
is that of `kdlib.verdict.compare_samples`, which holds seeds and test images, and is never narrower than that of the
seeds alone or of the images alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from kdlib.errors import check_whole
from kdlib.verdict import check_confidence

# Of the kept ResNet-8 students by hard labels and by logits, on 10,000 test images; tests/course/test_planning.py.
DISAGREE = 0.054  # the share of images on which exactly one of two networks of a seed is right
SHARED = 0.13  # the part of this variance that belongs to the image, whatever the seed
MANY = 2_000  # experiments behind a power
MOST_SEEDS = 40


@dataclass(frozen=True)
class Plan:
    """A comparison that is planned.

    gain: the true one, in points. spread: over seeds, with as many test images as one likes, in points; 0.2 to 0.5 is
    usual here. methods: how many are compared with the baseline together (the Bonferroni correction).
    Raises ValueError for a spread below 0, fewer than two seeds, 100 images or one method.
    """

    gain: float = 0.5
    spread: float = 0.3
    seeds: int = 5
    images: int = 10_000
    methods: int = 1
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not -100 <= self.gain <= 100 or not 0 <= self.spread <= 100:
            raise ValueError(f"gain and spread are points, the spread from 0; got {self.gain!r} and {self.spread!r}.")
        check_whole(2, MOST_SEEDS, seeds=self.seeds)
        check_whole(100, images=self.images)
        check_whole(1, 1000, methods=self.methods)
        check_confidence(self.confidence)

    @property
    def sign(self) -> int:
        """The right verdict: 1 for BEATS, -1 for LOSES, 0 for INCONCLUSIVE."""
        return int(np.sign(self.gain))


@dataclass(frozen=True, eq=False)
class Simulated:
    """The outcomes of many experiments of one plan, an array each, in points."""

    plan: Plan
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def verdicts(self) -> np.ndarray:
        """1 for BEATS, -1 for LOSES, 0 for INCONCLUSIVE."""
        return (self.low > 0).astype(int) - (self.high < 0).astype(int)

    @property
    def right(self) -> float:
        """The share of experiments with the right verdict."""
        return float((self.verdicts == self.plan.sign).mean())

    @property
    def covered(self) -> float:
        """The share of intervals that hold the true gain."""
        return float(((self.low <= self.plan.gain) & (self.plan.gain <= self.high)).mean())


@lru_cache(maxsize=8)
def _luck(experiments: int, luck: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal numbers: one for each seed of each experiment, and one for each experiment's images."""
    random = np.random.default_rng(luck)
    return random.standard_normal((experiments, MOST_SEEDS)), random.standard_normal(experiments)


@lru_cache(maxsize=4096)
def simulate(plan: Plan, experiments: int = MANY, luck: int = 0) -> Simulated:
    """The outcomes of so many experiments; the same `luck` gives the same ones.

    Two plans of the same luck share it: what differs between them is due to the plans.
    """
    from scipy import stats

    of_seeds, of_images = _luck(experiments, luck)
    image_variance = 1e4 * DISAGREE / plan.images  # in points
    shared, own = SHARED * image_variance, (1 - SHARED) * image_variance
    gains = plan.gain + np.sqrt(plan.spread**2 + own) * of_seeds[:, : plan.seeds]
    mean = gains.mean(1) + np.sqrt(shared) * of_images
    seed_part = gains.var(1, ddof=1) / plan.seeds
    variance = seed_part + shared
    freedom = variance**2 / (seed_part**2 / (plan.seeds - 1))
    tail = (1 - plan.confidence) / (2 * plan.methods)
    seeds_alone = stats.t.isf(tail, plan.seeds - 1) * np.sqrt(seed_part)
    images_alone = stats.norm.isf(tail) * np.sqrt(shared + own / plan.seeds)
    both = stats.t.isf(tail, freedom) * np.sqrt(variance)
    both[seed_part <= own / plan.seeds] = 0  # seeds differ no more than by their images: there is one scatter, not two
    margin = np.maximum(np.maximum(both, seeds_alone), images_alone)
    return Simulated(plan, mean, mean - margin, mean + margin)


def power(plan: Plan) -> float:
    """In how many of 100 experiments of this plan the verdict is right."""
    return 100 * simulate(plan).right


def powers(plan: Plan, seeds: Iterable[int]) -> list[float]:
    """The same with each of these numbers of seeds."""
    return [power(replace(plan, seeds=count)) for count in seeds]


def smallest_gain(plan: Plan, wanted: float = 80) -> float:
    """The gain in points that is found in `wanted` of 100 experiments of this plan, whatever gain the plan has.

    Infinity where a gain of 100 points is not: two seeds and a long list of methods.
    """
    low, high = 0.0, 64.0
    if power(replace(plan, gain=high)) < wanted:
        low, high = high, 100.0
        if power(replace(plan, gain=high)) < wanted:
            return math.inf
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (low, middle) if power(replace(plan, gain=middle)) >= wanted else (middle, high)
    return high


def false_alarm(methods: int) -> float:
    """The chance that at least one of so many methods without any gain gets a verdict, if none is corrected for.

    Each interval alone has 95 %. The methods are taken as independent; those that share a baseline are not quite.
    """
    return 1 - 0.95**methods
