"""Did it help? Several seeds, paired: a gain, its interval, and one of three verdicts.

    verdict.compare({0: 0.903, 1: 0.899, 2: 0.901}, {0: 0.890, 1: 0.888, 2: 0.891})
    verdict.table(rows)  # of a study: every method against hard labels

Runs of the same seed share images, order, augmentation and initial weights, so their difference is a matter of the
method. The interval is Student's t interval of the mean difference; the verdict is read off it and off nothing
else: BEATS if all of it lies above zero, LOSES if all of it lies below, INCONCLUSIVE otherwise.

A new test set would give other accuracies as well. `compare_samples` takes what each run made of each test sample, and
its interval holds both scatters: that of the seeds and that of the test samples, and is never narrower than that of the
seeds alone. Teacher and settings stay fixed.

One network against another is `compare_networks`, and `mcnemar` its exact test: they hold the scatter of the test
samples alone, and say nothing of the methods that the two networks were made by.

Several comparisons are corrected by Bonferroni: of m methods each gets an interval at the level 1 - 0.05 / m, so that
with a probability of about 95 % or more all m intervals hold their true gains at once, however the methods depend on
each other (they share a baseline). Holm's procedure rejects a little more often, but no simple intervals go with it: a
method could beat the baseline by Holm while the interval drawn beside it contains zero. Here the picture and the word
cannot contradict each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from kdlib.errors import check_flags, check_kind, check_real, check_whole

if TYPE_CHECKING:
    import pandas as pd

LARGEST = 1e30  # beyond it a result is what is left of a run that diverged, and its square overflows
LEAST_SEEDS = 5  # the study's tables have no verdict on fewer: too few to see whether gains scatter as is assumed

WITHIN = ("data", "student", "teacher", "images", "epochs")


class Verdict(StrEnum):
    """What several paired seeds say."""

    BEATS = "BEATS"
    LOSES = "LOSES"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Comparison:
    """A method against a baseline over paired seeds.

    n: pairs. mean, std: of the differences, method minus baseline (std with n - 1). low, high: the interval of the
    mean. confidence: with which all intervals of the `comparisons` made together hold at once. verdict: read off
    the interval.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float
    confidence: float
    comparisons: int
    verdict: Verdict

    def __str__(self) -> str:
        family = f", one of {self.comparisons}" if self.comparisons > 1 else ""
        interval = f"{100 * self.confidence:g}% interval {self.low:+.4f} to {self.high:+.4f}{family}"
        if not math.isfinite(self.low):
            interval = f"all differences are the same, so there is no interval{family}"
        return f"{self.verdict}: {self.mean:+.4f} ({interval}; {self.n} pairs)"


def few_seeds(count: int) -> str:
    """What a report says of verdicts on so few paired seeds; empty where the study would give a verdict, too."""
    if count >= LEAST_SEEDS:
        return ""
    return (
        f"{count} paired seeds are few: whether gains scatter as the intervals assume (normally) cannot be seen. Take "
        f"BEATS and LOSES as a hint, and run {LEAST_SEEDS} seeds or more for a verdict."
    )


def compare(
    method: Mapping[Any, float] | pd.Series | Sequence[float] | np.ndarray,
    baseline: Mapping[Any, float] | pd.Series | Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    comparisons: int = 1,
    better: str = "higher",
    same_unit: bool = False,
) -> Comparison:
    """Compare two sets of results by their paired differences.

    method, baseline: results by seed, as mappings or pandas Series, paired by their keys; or two sequences of one
    length, paired by position. comparisons: how many such comparisons are made together (the Bonferroni
    correction). better: "higher", or "lower" for errors; it turns the verdict, not the numbers.
    Where all differences are the same, to the digits of 32 bits, there is no spread to judge the mean by: the interval
    is the whole line and the verdict INCONCLUSIVE, whatever the mean. (Now and then two seeds agree to the last of
    10,000 test images.)
    same_unit: whether values that look like percent beside fractions are in one unit all the same.
    Raises ValueError for seeds that only one side has, fewer than two pairs, values that are not finite, percent beside
    fractions, or options out of range; TypeError for a mapping beside a sequence, or for results that are no numbers.
    """
    _check_options(confidence, comparisons, better)
    check_flags(same_unit=same_unit)
    of_method, of_baseline = _paired(method, baseline)
    if not same_unit:
        _refuse_two_units(of_method, of_baseline)
    differences = of_method - of_baseline
    n, mean, std = len(differences), float(differences.mean()), float(differences.std(ddof=1))
    if _is_rounding(std, of_method, of_baseline, np.float32):  # in which most programs compute an accuracy
        std, margin = 0.0, math.inf
    else:
        margin = _quantile(confidence, comparisons, n - 1) * std / math.sqrt(n)
    low, high = mean - margin, mean + margin
    return Comparison(n, mean, std, low, high, confidence, comparisons, _verdict(low, high, better))


def compare_samples(
    method: Mapping[Any, Sequence[float] | np.ndarray],
    baseline: Mapping[Any, Sequence[float] | np.ndarray],
    *,
    confidence: float = 0.95,
    comparisons: int = 1,
    better: str = "higher",
) -> Comparison:
    """Compare two methods by what each of their runs made of each test sample: 1 where it was right, else 0.

    method, baseline: by seed, one value for each of the same test samples in the same order (other values than 0 and 1
    too, such as losses). confidence, comparisons, better: as in `compare`.
    The differences form a table of seeds by samples, whose rows and columns are both drawn from more of their kind: the
    variance of its mean is that of the two-way random effects model, with Satterthwaite's degrees of freedom; but the
    interval is never narrower than that of the seeds alone or of the samples alone, which is needed where seeds are few
    or comparisons many, and the whole line where all seeds have the same mean difference, as in `compare`. (A bootstrap
    over seeds and samples together counts the scatter that belongs to neither about three times, Owen 2007, and gives
    wider intervals than needed; tests/test_verdict.py simulates how often each holds.)
    Raises what `compare` raises, and ValueError for less than two samples or runs with different numbers of them.
    """
    _check_options(confidence, comparisons, better)
    for role, side in {"method": method, "baseline": baseline}.items():
        if not hasattr(side, "keys"):
            raise TypeError(f"The {role}'s results are arrays by seed, as {{0: right}}; got {type(side).__name__}.")
    of_method, of_baseline = _unique(method), _unique(baseline)
    _refuse_unpaired(of_method, of_baseline)
    if len(of_method) < 2:
        raise ValueError(f"{len(of_method)} pairs say nothing about spread; at least two seeds are needed.")
    first, second = (_stacked([side[key] for key in of_method]) for side in (of_method, of_baseline))
    if first.shape != second.shape:
        raise ValueError(
            f"The method has {first.shape[1]:,} test samples and the baseline {second.shape[1]:,}. Evaluate both on "
            "the same samples, in the same order."
        )
    differences = first - second
    mean, std = float(differences.mean()), float(differences.mean(1).std(ddof=1))
    if _is_rounding(std, first, second, np.float64):
        std, margin = 0.0, math.inf
    else:
        margin = _margin_over_both(differences, confidence, comparisons)
    low, high = mean - margin, mean + margin
    return Comparison(len(first), mean, std, low, high, confidence, comparisons, _verdict(low, high, better))


def compare_networks(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    comparisons: int = 1,
    better: str = "higher",
) -> Comparison:
    """Compare two networks by what each made of the same test samples: 1 where it was right, else 0.

    first, second: one value for each sample, in the same order; the difference is first minus second. confidence,
    comparisons, better: as in `compare`. The interval covers the choice of the test samples and nothing else: another
    seed gives another network. Of zeros and ones it is the adjusted Wald interval of Bonett and Price (2012), which is
    also right where the two hardly ever differ: at 95 % one sample is added to each kind that differs, and for a higher
    confidence, as a family's intervals have it, a quarter of the squared quantile. Of other values, such as losses, it
    is Student's t interval.
    Raises ValueError for less than two samples, other numbers of them, values that are not finite, or options out of
    range.
    """
    _check_options(confidence, comparisons, better)
    values = _of_same_samples(first, second)
    if not all(np.isin(side, (0, 1)).all() for side in values):
        return compare(
            *values, confidence=confidence, comparisons=comparisons, better=better, same_unit=True
        )  # losses of 0.01 and of 5 are in one unit
    from scipy import stats

    n, differences = len(values[0]), values[0] - values[1]
    quantile = float(stats.norm.isf((1 - confidence) / (2 * comparisons)))
    added = max(1.0, quantile**2 / 4)
    gained, lost = (float((differences == sign).sum()) + added for sign in (1, -1))
    size = n + 2 * added
    share, middle = (gained + lost) / size, (gained - lost) / size
    margin = quantile * math.sqrt((share - middle**2) / size)
    mean, std = float(differences.mean()), float(differences.std(ddof=1))
    low, high = max(-1.0, float(middle - margin)), min(1.0, float(middle + margin))
    return Comparison(n, mean, std, low, high, confidence, comparisons, _verdict(low, high, better))


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two networks on the same test samples.

    first_only, second_only: samples on which that one alone was right. p: the probability of a split that is at least
    so uneven, if each of these samples could as well have fallen to the other; 1 where there are none.
    """

    first_only: int
    second_only: int
    p: float

    def __str__(self) -> str:
        return f"only the first right: {self.first_only}, only the second: {self.second_only}, p = {self.p:.3g}"


def mcnemar(first_right: Sequence[float] | np.ndarray, second_right: Sequence[float] | np.ndarray) -> McNemar:
    """McNemar's exact test (1947): are two networks equally often right on images such as these?

    first_right, second_right: True or 1 where a network was right on a test sample, in the same order. Samples on which
    both were right, or both wrong, say nothing; the others are a binomial test of one half.
    A small p says that the two *networks* differ. It says nothing of two methods of training, of which each gives
    another network for every seed (Dietterich 1998): that is what `compare_samples` is for.
    Raises ValueError for other values than 0 and 1, or rows of different length.
    """
    from scipy import stats

    sides = _of_same_samples(first_right, second_right)
    if not all(np.isin(side, (0, 1)).all() for side in sides):
        raise ValueError("Some values are neither 0 nor 1. Give for each sample whether a network was right.")
    first_only, second_only = (int((sides[0] - sides[1] == sign).sum()) for sign in (1, -1))
    discordant = first_only + second_only
    p = float(stats.binomtest(first_only, discordant).pvalue) if discordant else 1.0
    return McNemar(first_only, second_only, p)


def _of_same_samples(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    """What two networks made of the same test samples, as numbers."""
    for side in (first, second):
        try:
            np.asarray(side, dtype=float)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"A network's answers are numbers, one for each test sample, as [1, 0, 1]; got {type(side).__name__}."
            ) from error
    one, other = (_stacked([side])[0] for side in (first, second))
    if one.shape != other.shape:
        raise ValueError(
            f"The first network has {len(one):,} test samples and the second {len(other):,}. Evaluate both on the same "
            "samples, in the same order."
        )
    return one, other


def _is_rounding(std: float, first: np.ndarray, second: np.ndarray, digits: type[np.floating]) -> bool:
    """Whether all seeds agree: equal differences of rounded numbers still differ by a few units in the last place."""
    return bool(std <= 4 * np.finfo(digits).eps * max(np.abs(first).max(), np.abs(second).max()))


def _margin_over_both(differences: np.ndarray, confidence: float, comparisons: int) -> float:
    """Half the interval of the mean of a table of seeds by samples, both of them random; the seeds have a scatter."""
    from scipy import stats

    seeds, samples = differences.shape
    mean, of_seeds, of_samples = differences.mean(), differences.mean(1), differences.mean(0)
    rest = differences - of_seeds[:, None] - of_samples + mean
    # Mean squares and their degrees of freedom.
    a, free_a = samples * float(((of_seeds - mean) ** 2).sum()) / (seeds - 1), seeds - 1
    b, free_b = seeds * float(((of_samples - mean) ** 2).sum()) / (samples - 1), samples - 1
    e, free_e = float((rest**2).sum()) / ((seeds - 1) * (samples - 1)), (seeds - 1) * (samples - 1)
    # Never narrower than by the seeds alone or the samples alone: where a scatter comes out small by chance, the
    # degrees of freedom of the sum jump up, and few seeds would miss far too often, in a large family most.
    found, total = [(a, float(free_a)), (b, float(free_b))], a + b - e
    if total > max(a, b):  # else one of the two scatters is estimated as less than none, and taken as none
        found.append((total, total**2 / (a**2 / free_a + b**2 / free_b + e**2 / free_e)))
    tail = (1 - confidence) / (2 * comparisons)
    return max(float(stats.t.isf(tail, free)) * math.sqrt(square / (seeds * samples)) for square, free in found)


def _stacked(runs: Sequence[Any]) -> np.ndarray:
    arrays = [np.asarray(run, dtype=float) for run in runs]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1 or len(shapes[0]) != 1 or shapes[0][0] < 2:
        raise ValueError(
            f"Each run has one value for each test sample, two at least, in a row; got shapes {shapes}. Evaluate all "
            "runs on the same samples."
        )
    stacked = np.stack(arrays)
    if not (np.abs(stacked) <= LARGEST).all():
        raise ValueError("Some values of test samples are not finite numbers. Did those runs diverge?")
    return stacked


def table(
    rows: pd.DataFrame,
    *,
    baseline: str = "hard",
    value: str = "test_accuracy",
    by: str = "method",
    pair: str = "seed",
    within: Sequence[str] | None = None,
    comparisons: int | None = None,
    confidence: float = 0.95,
    better: str = "higher",
    same_unit: bool = False,
) -> pd.DataFrame:
    """Every method of a study against its baseline: one row a method, in the order of the rows.

    rows: finished runs, with columns `by` (the method), `pair` (the seed) and `value`. within: columns whose values
    must be the same for two runs to be compared; default, those of data, student, teacher, images and epochs that
    there are. comparisons: the size of the family that shares one level; default, the methods beside the baseline
    in the same group. A table made of a few chosen methods of a larger study must give the number of all.
    Columns: `within`, `by`, n, score, baseline_score (means of `value`), gain (the mean difference), std (of the
    differences), low, high, comparisons, verdict.
    Raises ValueError for missing columns, a run that is there twice, or a baseline or seeds that are not there.
    """
    import pandas as pd

    check_kind("a table of finished runs, a pandas DataFrame", pd.DataFrame, rows=rows)
    check_kind("a name", str, baseline=baseline, value=value, by=by, pair=pair)
    if within is not None and (isinstance(within, str) or not isinstance(within, Sequence)):
        raise TypeError(f"within are names of columns, such as ['data', 'student']; got {within!r}.")
    check_flags(same_unit=same_unit)
    _check_options(confidence, 1 if comparisons is None else comparisons, better)
    groups = [name for name in WITHIN if name in rows.columns] if within is None else list(within)
    missing = [name for name in (by, pair, value, *groups) if name not in rows.columns]
    if missing:
        raise ValueError(f"The rows have no column {', '.join(missing)}; they have {', '.join(rows.columns)}.")
    if len(rows) == 0:
        raise ValueError("There are no rows to compare: run the study first.")
    made = []
    for key, group in rows.groupby(groups, sort=False, dropna=False) if groups else [((), rows)]:
        shared = dict(zip(groups, key, strict=True))
        results = _by_method(group, by, pair, value, shared)
        if baseline not in results:
            raise ValueError(
                f"The baseline {baseline!r} is not among the methods {list(results)}{_format_group(shared)}."
            )
        others = [name for name in results if name != baseline]
        family = len(others) if comparisons is None else comparisons
        for name in others:
            try:
                found = compare(
                    results[name],
                    results[baseline],
                    confidence=confidence,
                    comparisons=family,
                    better=better,
                    same_unit=same_unit,
                )
            except ValueError as error:
                raise ValueError(
                    f"{name} cannot be compared with {baseline}{_format_group(shared)}: {error}"
                ) from error
            made.append({**shared, by: name, **_scores(results[name], results[baseline]), **_columns(found)})
    names = [*groups, by, "n", "score", "baseline_score", "gain", "std", "low", "high", "comparisons", "verdict"]
    return pd.DataFrame(made, columns=names)


def check_confidence(confidence: float) -> None:
    """Raise TypeError or ValueError unless it lies between 0 and 1."""
    check_real(confidence=confidence)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, as 0.95; got {confidence!r}.")


def _check_options(confidence: float, comparisons: int, better: str) -> None:
    check_confidence(confidence)
    check_whole(1, 1_000_000, comparisons=comparisons)
    if not isinstance(better, str) or better not in ("higher", "lower"):
        raise ValueError(f"better is 'higher' or 'lower'; got {better!r}.")


def _paired(method: Any, baseline: Any) -> tuple[np.ndarray, np.ndarray]:
    for role, side in {"method": method, "baseline": baseline}.items():
        if isinstance(side, str | bytes) or not (hasattr(side, "keys") or isinstance(side, Iterable)):
            raise TypeError(f"The {role}'s results are numbers by seed, as {{0: 0.893}}; got {type(side).__name__}.")
    keyed = [hasattr(side, "keys") for side in (method, baseline)]  # mappings and pandas Series
    if keyed[0] != keyed[1]:
        raise TypeError(
            "One side has seeds and the other has none, so they cannot be paired. Give two mappings seed -> result, "
            "or two sequences in the same order."
        )
    sides: list[dict[Hashable, float]]
    if not keyed[0]:
        sides = [dict(enumerate(side)) for side in (method, baseline)]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(
                f"{len(sides[0])} results of the method and {len(sides[1])} of the baseline cannot be paired by "
                "position. Give mappings seed -> result to see which are missing."
            )
    else:
        sides = [_unique(side) for side in (method, baseline)]
    of_method, of_baseline = sides
    _refuse_unpaired(of_method, of_baseline)
    n = len(of_method)
    if n < 2:
        raise ValueError(f"{n} pairs say nothing about spread; at least two seeds are needed, five are usual.")
    for role, side in {"method": of_method, "baseline": of_baseline}.items():
        for key, value in side.items():
            if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
                raise TypeError(f"The {role}'s result for {key} is {value!r}; expected a number, such as 0.893.")
        bad = [key for key, value in side.items() if not abs(value) <= LARGEST]
        if bad:
            raise ValueError(
                f"The {role}'s result is not a finite number for {_listed(bad)}. Did those runs diverge? (What is "
                f"beyond {LARGEST:g} counts as infinite.)"
            )
    first, second = (np.array([float(side[key]) for key in of_method]) for side in sides)
    return first, second


def _refuse_two_units(of_method: np.ndarray, of_baseline: np.ndarray) -> None:
    """Raise ValueError where some results look like fractions in [0, 1] and the others like percent."""
    values = np.concatenate((of_method, of_baseline))
    fractions, percent = values[values <= 1], values[values > 1]
    if len(fractions) == 0 or len(percent) == 0 or values.min() < 0 or values.max() > 100:
        return
    small, large = fractions.mean(), percent.mean()
    # A loss of 0.05 beside one of 2.3 and 0.5 s beside 5 s are no mistake; 90 beside 0.9 or 0.1 (chance) is.
    if percent.min() >= 5 and (50 * small <= large <= 200 * small or large >= max(10, 20 * small)):
        raise ValueError(
            f"Some results lie in [0, 1], with a mean of {small:.3g}, and others above, with a mean of {large:.3g}: "
            "they look like fractions and percent. Bring them to one unit; or, if they are in one, say so by "
            "same_unit=True."
        )


def _unique(side: Any) -> dict[Hashable, float]:
    twice = sorted((key for key, times in Counter(side.keys()).items() if times > 1), key=str)
    if twice:
        raise ValueError(f"There are several results for seed {_listed(twice)}. Give one run a seed.")
    return dict(side.items())


def _refuse_unpaired(of_method: Mapping[Hashable, float], of_baseline: Mapping[Hashable, float]) -> None:
    lacking = {
        "method": [key for key in of_baseline if key not in of_method],
        "baseline": [key for key in of_method if key not in of_baseline],
    }
    parts = [f"the {role} lacks {_listed(keys)}" for role, keys in lacking.items() if keys]
    if parts:
        raise ValueError(f"The seeds are not paired: {' and '.join(parts)}. Run what is missing, or leave it out.")


def _listed(keys: Iterable[Hashable]) -> str:
    return ", ".join(map(str, keys))


def _format_group(shared: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{name} {value}' for name, value in shared.items())})" if shared else ""


@lru_cache
def _quantile(confidence: float, comparisons: int, freedom: int) -> float:
    from scipy import stats  # loading it takes a second, which importing kdlib.verdict should not

    return float(stats.t.isf((1 - confidence) / (2 * comparisons), freedom))


def _verdict(low: float, high: float, better: str) -> Verdict:
    if low <= 0 <= high:
        return Verdict.INCONCLUSIVE
    return Verdict.BEATS if (low > 0) == (better == "higher") else Verdict.LOSES


def _by_method(
    group: pd.DataFrame, by: str, pair: str, value: str, shared: Mapping[str, Any]
) -> dict[str, dict[Hashable, float]]:
    twice = group[group.duplicated([by, pair])]
    if len(twice):
        one = twice.iloc[0]
        raise ValueError(
            f"There are several rows of {one[by]}, {pair} {one[pair]}{_format_group(shared)}. Choose one study, or "
            "name the column that tells them apart in `within`."
        )
    return {str(name): dict(zip(part[pair], part[value], strict=True)) for name, part in group.groupby(by, sort=False)}


def _scores(method: Mapping[Hashable, float], baseline: Mapping[Hashable, float]) -> dict[str, float]:
    return {"score": float(np.mean(list(method.values()))), "baseline_score": float(np.mean(list(baseline.values())))}


def _columns(found: Comparison) -> dict[str, Any]:
    numbers = {name: getattr(found, name) for name in ("n", "std", "low", "high", "comparisons")}
    return {**numbers, "gain": found.mean, "verdict": str(found.verdict)}
