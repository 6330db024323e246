"""What the rows of `sentences` say: a table of the ways, and paired comparisons over seeds.

    results = sentence_results.load()
    print(results.table())
    for answer in results.answers():
        print(answer)
    print(sentence_results.load_costs())

Accuracies are in per cent, of the test definitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from course.experiments.rows import refuse_twice
from course.experiments.sentences import ALL, BUDGETS, EVERY, FEW, HARD, SHUFFLED, SOFT, TEACHER, arms, path_in
from kdlib import verdict
from kdlib.data import data_dir
from kdlib.errors import unknown_name
from kdlib.study.runs_file import read_rows

if TYPE_CHECKING:
    import pandas as pd

COMMAND = "python -m course.experiments.sentences"
COSTS_COMMAND = "python -m course.experiments.sentence_files"
# Asked before the runs, for each number of labels: soft answers over each of these.
OTHERS = (FEW, HARD, SHUFFLED, TEACHER, ALL)
QUESTIONS = tuple((budget, other) for budget in BUDGETS for other in OTHERS)


@dataclass(frozen=True)
class Taught:
    """The runs of one way with one number of labels: test accuracy and agreement with the teacher, by seed, in %."""

    way: str
    budget: int
    by_seed: Mapping[int, float]
    agreement_by_seed: Mapping[int, float]

    @property
    def accuracy(self) -> float:
        """The mean test accuracy in per cent."""
        return sum(self.by_seed.values()) / len(self.by_seed)

    @property
    def agreement(self) -> float | None:
        """On how many test definitions in a hundred it says what the teacher says; None where no teacher taught."""
        values = self.agreement_by_seed.values()
        return sum(values) / len(values) if values else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean over seeds, of this way alone."""
        zeros = dict.fromkeys(self.by_seed, 0.0)
        found = verdict.compare(self.by_seed, zeros, same_unit=True)
        return found.low, found.high


@dataclass(frozen=True)
class Answer:
    """One of QUESTIONS: the gain in points, paired by seed."""

    budget: int
    other: str
    comparison: verdict.Comparison

    def __str__(self) -> str:
        found = self.comparison
        interval = f"{found.low:+.1f} to {found.high:+.1f}; {found.n} seeds"
        return (
            f"{self.budget} labels a kind, soft answers over {self.other}: "
            f"{found.mean:+.1f} ({interval}) {found.verdict}"
        )


@dataclass(frozen=True)
class SentenceResults:
    """The ways by name and number of labels, in the order of `sentences.arms()`."""

    ways: Mapping[tuple[str, int], Taught]

    def get(self, way: str, budget: int = EVERY) -> Taught:
        """One way; ValueError for one that has no rows."""
        if (way, budget) not in self.ways:
            raise unknown_name("way", f"{way}, {budget}", [f"{name}, {labels}" for name, labels in self.ways])
        return self.ways[way, budget]

    def answers(self) -> list[Answer]:
        """QUESTIONS with their verdicts; the 95 % intervals hold together (Bonferroni)."""
        made = []
        for budget, other in QUESTIONS:
            sides = (self.get(SOFT, budget).by_seed, self.get(other, EVERY if other == ALL else budget).by_seed)
            found = verdict.compare(*sides, comparisons=len(QUESTIONS), same_unit=True)
            made.append(Answer(budget, other, found))
        return made

    def answer(self, budget: int, other: str) -> Answer:
        """The one of QUESTIONS about these two; ValueError where it was not asked."""
        if (budget, other) not in QUESTIONS:
            raise ValueError(f"Nothing was asked of {budget} labels and {other!r}: see QUESTIONS.")
        return self.answers()[QUESTIONS.index((budget, other))]

    def table(self) -> pd.DataFrame:
        """Means over the seeds, in per cent: a row for each way, a column for each number of labels."""
        import pandas as pd

        columns = ("way", "labels a kind", "test accuracy (%)", "as the teacher says (%)")
        rows = [(one.way, one.budget, one.accuracy, one.agreement) for one in self.ways.values()]
        return pd.DataFrame(rows, columns=list(columns))


@dataclass(frozen=True)
class Cost:
    """What a model weighs and how long it takes for a sentence, on one thread."""

    parameters: int
    bytes: int
    milliseconds: float


def summarize(rows: Sequence[Mapping[str, str]]) -> SentenceResults:
    """The rows of the runs by way and number of labels."""
    ways = {}
    for way, budget in arms():
        own = [row for row in rows if (row["way"], row["labels_per_kind"]) == (way, str(budget))]
        refuse_twice(f"{way!r} with {budget} labels", [int(row["seed"]) for row in own])
        columns = [
            {int(row["seed"]): 100 * float(row[name]) for row in own if row[name]}
            for name in ("test_accuracy", "agreement")
        ]
        if own:
            ways[way, budget] = Taught(way, budget, *columns)
    return SentenceResults(ways)


def _rows(path: Path, command: str) -> list[dict[str, str]]:
    rows = read_rows(path)
    if not rows:
        raise FileNotFoundError(f"{path} holds no rows. Make them: {command}")
    return rows


@lru_cache(maxsize=4)
def load(folder: Path | None = None) -> SentenceResults:
    """What the experiment has found; folder: default, data/results.

    Raises FileNotFoundError, with the command that makes the rows, where there are none.
    """
    return summarize(_rows(path_in(folder or data_dir() / "results"), COMMAND))


@lru_cache(maxsize=4)
def load_costs(folder: Path | None = None) -> dict[str, Cost]:
    """What teacher and student cost, by name; raises what `load` raises."""
    rows = _rows((folder or data_dir() / "results") / "sentences-cost.csv", COSTS_COMMAND)
    return {row["model"]: Cost(int(row["parameters"]), int(row["bytes"]), float(row["milliseconds"])) for row in rows}
