"""Simulated experiments: against the formula for the power, and against the students whose answers were kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from course import planning
from course.experiments import kept_results
from course.planning import Plan
from kdlib import data, verdict

MANY_IMAGES = 10**9  # so many that they add nothing


@pytest.mark.parametrize(("gain", "spread", "seeds"), [(0.5, 0.4, 3), (0.5, 0.4, 5), (0.3, 0.4, 10), (-1.0, 0.5, 4)])
@pytest.mark.parametrize("methods", [1, 7])
def test_without_the_scatter_of_images_the_power_is_that_of_the_t_test(
    gain: float, spread: float, seeds: int, methods: int
) -> None:
    found = planning.power(Plan(gain, spread, seeds, MANY_IMAGES, methods))
    t = stats.t.isf(0.025 / methods, seeds - 1)
    exact = 100 * stats.nct.sf(t, seeds - 1, abs(gain) / spread * seeds**0.5)
    assert found == pytest.approx(exact, abs=3.5)  # of 2,000 experiments: three standard deviations


@pytest.mark.parametrize(
    ("seeds", "images"), [(seeds, images) for seeds in (3, 5, 10, 20) for images in (1_000, 10_000)][1:]
)  # with three seeds and 1,000 images intervals hold it more often, those of the library too: see below
def test_intervals_hold_the_true_gain_as_often_as_they_say(seeds: int, images: int) -> None:
    for gain in (0.0, 0.7):
        simulated = planning.simulate(Plan(gain, 0.3, seeds, images))
        assert 0.92 <= simulated.covered <= 0.975
    nothing = planning.simulate(Plan(0.0, 0.3, seeds, images))
    assert nothing.right == nothing.covered  # INCONCLUSIVE is right where zero is inside


def tables(plan: Plan, number: int) -> Iterator[np.ndarray]:
    """Gains by seed and image, as shares, drawn with the plan's own variances."""
    random = np.random.default_rng(3)
    of_image = (planning.SHARED * planning.DISAGREE) ** 0.5
    of_both = ((1 - planning.SHARED) * planning.DISAGREE) ** 0.5
    for _ in range(number):
        of_seeds = plan.gain / 100 + plan.spread / 100 * random.standard_normal((plan.seeds, 1))
        table = of_seeds + of_image * random.standard_normal((1, plan.images))
        yield table + of_both * random.standard_normal((plan.seeds, plan.images))


def intervals_of_the_library(plan: Plan, number: int) -> np.ndarray:
    """The low and the high end in points, number x 2."""
    sides = ((dict(enumerate(table)), dict(enumerate(np.zeros_like(table)))) for table in tables(plan, number))
    found = [verdict.compare_samples(*both) for both in sides]
    return 100 * np.array([(one.low, one.high) for one in found])


def test_with_few_seeds_intervals_hold_the_true_gain_as_often_as_the_librarys() -> None:
    plan = Plan(0.7, 0.3, 3, 1_000)
    low, high = intervals_of_the_library(plan, 1_000).T
    held = np.mean((low <= plan.gain) & (plan.gain <= high))
    assert planning.simulate(plan).covered == pytest.approx(held, abs=0.018)  # three standard deviations


def test_the_interval_is_that_of_the_library() -> None:
    plan = Plan(0.6, 0.3, 5, 2_000)
    low, high = intervals_of_the_library(plan, 60).T
    simulated = planning.simulate(plan)
    for share in (0.1, 0.5):  # narrow ones too, where the seeds happen to lie close together
        expected = np.quantile(simulated.high - simulated.low, share)
        assert np.quantile(high - low, share) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("seeds", "images", "methods"), [(2, 500, 1), (5, 2_000, 1), (5, 2_000, 15)])
def test_no_interval_is_narrower_than_that_of_the_images_alone(seeds: int, images: int, methods: int) -> None:
    simulated = planning.simulate(Plan(0.5, 0.1, seeds, images, methods))
    variance = planning.DISAGREE * (planning.SHARED + (1 - planning.SHARED) / seeds) / images
    of_images = 100 * stats.norm.isf(0.025 / methods) * variance**0.5
    assert ((simulated.high - simulated.low) / 2).min() >= of_images * (1 - 1e-9)  # but for rounding


def test_more_seeds_and_images_help_and_more_methods_do_not() -> None:
    plan = Plan(0.5, 0.3, 5)
    seeds = planning.powers(plan, range(2, 16))
    assert seeds == sorted(seeds)
    assert planning.power(plan) > planning.power(replace(plan, images=1_000))
    assert planning.power(plan) > planning.power(replace(plan, methods=15))


def test_more_seeds_do_not_make_up_for_few_images() -> None:
    few = Plan(spread=0.3, seeds=40, images=1_000)
    assert planning.smallest_gain(few) > 0.7
    assert planning.smallest_gain(replace(few, seeds=5)) < 2 * planning.smallest_gain(few)
    assert planning.smallest_gain(replace(few, images=10_000)) < 0.4


def test_the_smallest_gain_is_found_as_often_as_was_wanted() -> None:
    plan = Plan(spread=0.3, seeds=6)
    gain = planning.smallest_gain(plan)
    assert planning.power(replace(plan, gain=gain)) == pytest.approx(80, abs=1)
    assert planning.smallest_gain(plan, wanted=90) > gain


def test_a_plan_that_finds_no_gain_often_enough_says_so() -> None:
    assert planning.smallest_gain(Plan(spread=1, seeds=2, methods=20)) == math.inf
    most = Plan(spread=0.4, seeds=2, methods=15)
    assert planning.power(replace(most, gain=planning.smallest_gain(most))) == pytest.approx(80, abs=1)


def test_the_same_luck_gives_the_same_experiments() -> None:
    plan = Plan()
    assert planning.simulate(plan, 40, 1) is planning.simulate(plan, 40, 1)
    one, other = planning.simulate(plan, 40, 1), planning.simulate(plan, 40, 2)
    assert not np.array_equal(one.mean, other.mean)
    shifted = planning.simulate(replace(plan, gain=1.5), 40, 1)
    assert shifted.mean == pytest.approx(one.mean + 1.0)


def test_false_alarms_add_up() -> None:
    assert planning.false_alarm(1) == pytest.approx(0.05)
    assert planning.false_alarm(19) == pytest.approx(1 - 0.95**19)
    counts = [
        (np.abs(stats.norm.rvs(size=15, random_state=number)) > stats.norm.isf(0.025)).any() for number in range(2_000)
    ]
    assert np.mean(counts) == pytest.approx(planning.false_alarm(15), abs=0.04)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seeds": 1}, "seeds"),
        ({"images": 10}, "images"),
        ({"methods": 0}, "methods"),
        ({"spread": -0.1}, "spread"),
        ({"gain": float("nan")}, "gain"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_what_is_no_plan_is_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Plan(**options)  # type: ignore[arg-type]


def test_the_scatter_of_images_is_that_of_the_kept_students(fashion: data.DataModule) -> None:
    """Mean squares of the table of seeds by test images, for students by logits against those by hard labels."""
    kept = kept_results.load()
    sides = [kept.right(name) for name in ("kd", "hard")]
    table = np.stack([sides[0][seed].astype(float) - sides[1][seed] for seed in sorted(sides[0])])
    seeds, images = table.shape
    assert images == len(fashion.test)
    disagree = (table != 0).mean()
    of_images = table.mean(0)
    rest = table - table.mean(1, keepdims=True) - of_images + table.mean()
    error = (rest**2).sum() / ((seeds - 1) * (images - 1))
    shared = (seeds * ((of_images - table.mean()) ** 2).sum() / (images - 1) - error) / seeds
    assert disagree == pytest.approx(planning.DISAGREE, abs=0.004)
    assert shared / (shared + error) == pytest.approx(planning.SHARED, abs=0.05)
