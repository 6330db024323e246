"""What the rows of the experiment on several teachers say: accuracies of students and teachers, and paired comparisons.

    own = several_results.load("own")
    print(own.table(["best single", "mean of probabilities"]))
    for gain in own.compare("best single"):
        print(gain)

Accuracies are of the test images, in per cent; gains in points. A way of which a seed diverged has no mean and no gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from course.experiments import several_teachers
from course.experiments.rows import refuse_diverged, refuse_twice
from kdlib import verdict
from kdlib.data import data_dir
from kdlib.errors import unknown_name
from kdlib.study.runs_file import read_rows

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Taught:
    """One way: its students' accuracies by seed, and the mean accuracy of what taught them (None: nothing did).

    seeds: of `accuracies`, in the same order. diverged: the seeds that have none, with their errors.
    """

    way: str
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    teacher: float | None
    diverged: tuple[tuple[int, str], ...] = ()

    @property
    def by_seed(self) -> dict[int, float]:
        """The accuracies by seed. Raises ValueError where a seed diverged."""
        refuse_diverged(repr(self.way), dict(self.diverged))
        return dict(zip(self.seeds, self.accuracies, strict=True))

    @property
    def accuracy(self) -> float:
        """The mean over the seeds. Raises ValueError where one diverged."""
        return sum(self.by_seed.values()) / len(self.seeds)


@dataclass(frozen=True)
class Gain:
    """One way against another with the same seeds, in points."""

    way: str
    baseline: str
    comparison: verdict.Comparison

    def __str__(self) -> str:
        found = self.comparison
        interval = f"{found.low:+.2f} to {found.high:+.2f}; {found.n} seeds"
        return f"{self.way}, over {self.baseline}: {found.mean:+.2f} ({interval}) {found.verdict}"


@dataclass(frozen=True)
class SeveralResults:
    """The runs of one part, by way."""

    part: str
    ways: dict[str, Taught]

    def __getitem__(self, way: str) -> Taught:
        if way not in self.ways:
            raise unknown_name(f'way in the part "{self.part}"', way, self.ways)
        return self.ways[way]

    def compare(
        self, baseline: str, ways: Sequence[str] | None = None, *, comparisons: int | None = None
    ) -> list[Gain]:
        """Each of these ways (default: all) against one; the 95 % intervals hold together (Bonferroni).

        comparisons: how many intervals hold together, where others are read beside these; default, these.
        Raises ValueError for a way that was not run, or of which a seed diverged, and for less than two shared seeds.
        """
        chosen = [name for name in (self.ways if ways is None else ways) if name != baseline]
        return [self._gain(name, baseline, comparisons or len(chosen)) for name in chosen]

    def _gain(self, way: str, baseline: str, comparisons: int) -> Gain:
        one, other = (self[name].by_seed for name in (way, baseline))
        shared = sorted(one.keys() & other.keys())
        sides = [{seed: side[seed] for seed in shared} for side in (one, other)]
        return Gain(way, baseline, verdict.compare(*sides, comparisons=comparisons, same_unit=True))

    def table(self, ways: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a way: the accuracy of what taught, of the student, its standard deviation, and the seeds.

        Raises ValueError for a way that was not run, or of which a seed diverged.
        """
        import pandas as pd

        rows = {}
        for name in self.ways if ways is None else ways:
            one = self[name]
            scores = pd.Series(one.accuracies)
            rows[name] = {
                "teacher": one.teacher,
                "student": one.accuracy,
                "std": scores.std(),
                "seeds": len(one.seeds),
            }
        return pd.DataFrame.from_dict(rows, orient="index")


@lru_cache(maxsize=8)
def load(part: str, folder: Path | None = None) -> SeveralResults:
    """The runs of a part: "own", "same" or "mutual".

    folder: default, data/results. Raises ValueError for another part, FileNotFoundError, which names the command, where
    nothing was run.
    """
    if part not in several_teachers.PARTS:
        raise unknown_name("part", part, several_teachers.PARTS)
    path = several_teachers.path(part, folder or data_dir() / "results")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there. Run: python -m course.experiments.several_teachers --only {part}"
        )
    groups: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(path):
        groups.setdefault(row["way"], []).append(row)
    return SeveralResults(part, {way: _taught(way, rows) for way, rows in groups.items()})


def _taught(way: str, rows: list[dict[str, str]]) -> Taught:
    rows = sorted(rows, key=lambda row: int(row["seed"]))
    refuse_twice(repr(way), [int(row["seed"]) for row in rows])
    finished = [row for row in rows if row["test_accuracy"]]
    teachers = [100 * float(row["teacher_accuracy"]) for row in rows if row["teacher_accuracy"]]
    return Taught(
        way,
        tuple(int(row["seed"]) for row in finished),
        tuple(100 * float(row["test_accuracy"]) for row in finished),
        sum(teachers) / len(teachers) if teachers else None,
        tuple((int(row["seed"]), row["error"]) for row in rows if not row["test_accuracy"]),
    )
