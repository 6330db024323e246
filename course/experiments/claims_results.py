"""What the rows of the experiments on claims say: accuracies by arm, what else was measured, and paired comparisons.

    pictures = claims_results.load("pictures")
    print(pictures.table(["labels", "noise"]))
    for gain in pictures.compare("labels"):
        print(gain)

All numbers are of the test images, in per cent; gains are in points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from course.experiments import claims
from course.experiments.rows import refuse_twice
from course.experiments.several_results import Gain
from kdlib import verdict
from kdlib.data import data_dir
from kdlib.errors import unknown_name
from kdlib.study.runs_file import read_rows

if TYPE_CHECKING:
    import pandas as pd

ACCURACY, VALIDATION = "test_accuracy", "validation_accuracy"


@dataclass(frozen=True)
class ClaimResults:
    """The runs of one part: by arm and seed, the row of the file, as texts."""

    part: str
    arms: Mapping[str, Mapping[int, Mapping[str, str]]]

    def __str__(self) -> str:
        first = next(iter(self.arms.values()))
        images = {row["images"] for row in first.values()}
        return f"{self.part}: {', '.join(images)} pictures, {len(self.arms)} arms, {len(first)} seeds"

    def rows(self, arm: str) -> Mapping[int, Mapping[str, str]]:
        """The rows of an arm by seed.

        Raises ValueError for an arm that was not run, and for one of which a seed diverged: to judge it by the others
        would be to choose seeds.
        """
        if arm not in self.arms:
            raise unknown_name(f'arm in the part "{self.part}"', arm, self.arms)
        failed = [seed for seed, row in self.arms[arm].items() if not row[ACCURACY]]
        if failed:
            raise ValueError(f"{arm!r} has no accuracy for seed {failed[0]}: {self.arms[arm][failed[0]]['error']}.")
        return self.arms[arm]

    def values(self, arm: str, column: str = ACCURACY) -> dict[int, float]:
        """What was measured, by seed, in per cent. Raises ValueError for a column that is not there."""
        rows = self.rows(arm)
        if not all(row.get(column) for row in rows.values()):
            raise unknown_name(
                f'column in the part "{self.part}"', column, (ACCURACY, *claims.PARTS[self.part].columns)
            )
        return {seed: 100 * float(row[column]) for seed, row in rows.items()}

    def mean(self, arm: str, column: str = ACCURACY) -> float:
        """The mean over the seeds, in per cent."""
        values = self.values(arm, column)
        return sum(values.values()) / len(values)

    def by_class(self, arm: str) -> list[float]:
        """The accuracy in each class, in per cent, as the mean over the seeds."""
        rows = [list(map(float, row["by_class"].split())) for row in self.rows(arm).values()]
        return [100 * sum(values) / len(rows) for values in zip(*rows, strict=True)]

    def settings(self, arm: str) -> str:
        """What was chosen for it on the validation split."""
        return _setting(next(iter(self.rows(arm).values())))

    def gain(self, arm: str, baseline: str, column: str = ACCURACY, *, comparisons: int = 1) -> Gain:
        """One arm against another with the same seeds, in points.

        comparisons: how many intervals are to hold together. Of other columns than accuracies less is better.
        """
        better = "higher" if column == ACCURACY else "lower"
        sides = (self.values(arm, column), self.values(baseline, column))
        found = verdict.compare(*sides, comparisons=comparisons, better=better, same_unit=True)
        return Gain(arm, baseline, found)

    def gain_over_gain(self, pair: Sequence[str], other: Sequence[str], *, comparisons: int = 1) -> Gain:
        """How much more one arm gains over its baseline than another over its own, seed by seed, in points.

        pair, other: an arm and its baseline each. That one gain has a verdict and the other has none does not say it.
        """
        gains = []
        for arm, baseline in (pair, other):
            without = self.values(baseline)
            gains.append({seed: accuracy - without[seed] for seed, accuracy in self.values(arm).items()})
        found = verdict.compare(*gains, comparisons=comparisons, same_unit=True)
        return Gain(f"gain of {pair[0]}", f"gain of {other[0]}", found)

    def compare(self, baseline: str, arms: Sequence[str] | None = None, column: str = ACCURACY) -> list[Gain]:
        """Each of these arms (default: all) against one; the 95 % intervals hold together (Bonferroni)."""
        chosen = [name for name in (self.arms if arms is None else arms) if name != baseline]
        return [self.gain(name, baseline, column, comparisons=len(chosen)) for name in chosen]

    def table(self, arms: Sequence[str] | None = None, columns: Sequence[str] = (ACCURACY,)) -> pd.DataFrame:
        """One row an arm: the means of these columns, the standard deviation of the first, and the seeds."""
        import pandas as pd

        rows = {}
        for name in self.arms if arms is None else arms:
            means = {column: self.mean(name, column) for column in columns}
            first = pd.Series(self.values(name, columns[0]))
            rows[name] = {**means, "std": first.std(), "seeds": len(first)}
        return pd.DataFrame.from_dict(rows, orient="index")


def trials(part: str, arm: str, folder: Path | None = None) -> dict[str, float]:
    """The validation accuracy, in per cent, of each setting that was tried for an arm; one run each."""
    rows = [row for row in read_rows(_path(part, folder, trials=True)) if row["arm"] == arm and row[VALIDATION]]
    return {_setting(row): 100 * float(row[VALIDATION]) for row in rows}


def _setting(row: Mapping[str, str]) -> str:
    names = ("learning_rate", "temperature", "smoothing")
    return ", ".join(f"{name.replace('_', ' ')} {float(row[name]):g}" for name in names if row[name])


def _path(part: str, folder: Path | None, *, trials: bool = False) -> Path:
    if part not in claims.PARTS:
        raise unknown_name("part", part, claims.PARTS)
    path = claims.path(part, folder or data_dir() / "results", trials=trials)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there. Run: python -m course.experiments.claims --only {part}")
    return path


@lru_cache(maxsize=8)
def load(part: str, folder: Path | None = None) -> ClaimResults:
    """The runs of a part: "pictures", "faults", "noise" or "length".

    folder: default, data/results. A seed of which an arm is still to be run is left out with all its arms. Raises
    ValueError for another part, FileNotFoundError, which names the command, where nothing was run.
    """
    every = read_rows(_path(part, folder))
    for arm in dict.fromkeys(row["arm"] for row in every):
        refuse_twice(repr(arm), [int(row["seed"]) for row in every if row["arm"] == arm])
    rows = {(row["arm"], int(row["seed"])): row for row in every}
    names = [name for name in claims.PARTS[part].arms if any(name == arm for arm, _ in rows)]
    seeds = sorted(seed for seed in {seed for _, seed in rows} if all((name, seed) in rows for name in names))
    return ClaimResults(part, {name: {seed: rows[name, seed] for seed in seeds} for name in names})
