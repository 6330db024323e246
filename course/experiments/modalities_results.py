"""What the rows of `modalities` say: accuracies by arm, gains with intervals over splits, and the grid.

    results = modalities_results.load()
    print(results.table())
    for gain in results.gains(PAIRS[0]):
        print(gain)

Accuracies are of test samples, in per cent; gains in points. What has not been run yet is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from course.experiments.modalities import (
    ALL,
    BOTH,
    EVERY,
    FEW,
    HALF_FEW,
    HALF_OTHERS,
    HALF_PAIRS,
    HALVES,
    PAIRED,
    PAIRS,
    PER_CLASS,
    WRONG,
    Pair,
    path_in,
)
from kdlib import verdict
from kdlib.data import data_dir
from kdlib.errors import unknown_name
from kdlib.study.runs_file import read_rows

if TYPE_CHECKING:
    import pandas as pd

COMMAND = "python -m course.experiments.modalities"
QUESTIONS = (  # asked before the runs: a title, an arm, and the arm that it is compared with
    ("pairs over few labels alone", PAIRED, FEW),
    ("pairs over label smoothing", PAIRED, "label smoothing"),
    ("pairs over self-training", PAIRED, "self-training"),
    ("wrong pairs over few labels alone", WRONG, FEW),
    ("few labels and pairs over all labels", PAIRED, EVERY),
    ("all labels and pairs over all labels", BOTH, EVERY),
    ("features over few labels alone", "features", FEW),
    ("relations over few labels alone", "relations", FEW),
    ("student (pairs) over its teacher", PAIRED, "teacher"),
)
LATER = (  # asked after these had been answered: had the teacher told the labels that it had learned?
    ("pairs, a teacher of three others, over few labels alone", HALF_OTHERS, HALF_FEW),
    ("pairs, a teacher of the same three, over few labels alone", HALF_PAIRS, HALF_FEW),
)


@dataclass(frozen=True)
class Scores:
    """One arm: test accuracies in per cent by split, and by split and person where there are persons."""

    arm: str
    by_split: tuple[tuple[int, float], ...]
    by_person: tuple[tuple[int, int, float], ...]

    @property
    def mean(self) -> float:
        """Over the splits."""
        return sum(value for _, value in self.by_split) / len(self.by_split)

    @property
    def units(self) -> dict[int, float]:
        """What was tested: each person, or each split where no persons are known."""
        return {person: value for _, person, value in self.by_person} or dict(self.by_split)

    @property
    def by_network(self) -> dict[int, float]:
        """What intervals are over: splits, each the mean of its persons if there are any.

        The persons of a split share a student, a teacher, labels and a learning rate, so their gains are alike.
        """
        values: dict[int, list[float]] = {}
        for split, _, value in self.by_person:
            values.setdefault(split, []).append(value)
        return {split: sum(those) / len(those) for split, those in values.items()} or dict(self.by_split)


@dataclass(frozen=True)
class Gain:
    """One arm against another, paired by split, in points of accuracy."""

    title: str
    comparison: verdict.Comparison

    def __str__(self) -> str:
        found = self.comparison
        interval = f"{found.low:+.1f} to {found.high:+.1f}; {found.n} splits"
        return f"{self.title}: {found.mean:+.1f} ({interval}) {found.verdict}"


@dataclass(frozen=True)
class ModalityResults:
    """Scores by pair of modalities, arm and labels of each class; `grid` by labels, share of wrong pairs, temperature.

    A value of `grid` has an accuracy in per cent for each split.
    """

    scores: tuple[tuple[tuple[Pair, str, int], Scores], ...]
    grid: tuple[tuple[tuple[int, float, float], tuple[float, ...]], ...] = ()

    def arm(self, pair: Pair, arm: str, labels: int | None = None) -> Scores:
        """One arm's scores; labels: of each class, where an arm was run with several. ValueError if there are none."""
        found = [one for key, one in self.scores if key[:2] == (pair, arm) and labels in (None, key[2])]
        if not found:
            raise unknown_name(f"arm of {pair}", arm, [key[1] for key, _ in self.scores if key[0] == pair])
        return found[0]

    def arms(self, pair: Pair) -> list[str]:
        """The names of a pair's arms, in the order of the rows."""
        return list(dict.fromkeys(key[1] for key, _ in self.scores if key[0] == pair))

    def gains(self, pair: Pair) -> list[Gain]:
        """QUESTIONS whose two arms are there; the intervals of a pair hold together with 95 % (Bonferroni).

        They are over splits: the persons of a split are tested by the same networks.
        """
        return self._answers(pair, QUESTIONS)

    def first(self, pair: Pair) -> Gain:
        """The first of QUESTIONS by itself: its interval has not the width that asking the others costs.

        ValueError if it has not been run with two splits or more.
        """
        found = self._answers(pair, QUESTIONS[:1])
        if not found:
            raise ValueError(f"{QUESTIONS[0][0]!r} has no two splits of {pair}. Make them: {COMMAND}")
        return found[0]

    def later(self, pair: Pair) -> list[Gain]:
        """LATER, as a family of their own, where student and teacher have three training persons each."""
        return self._answers(pair, LATER)

    def _answers(self, pair: Pair, questions: Sequence[tuple[str, str, str]]) -> list[Gain]:
        there = set(self.arms(pair))
        asked = [one for one in questions if {one[1], one[2]} <= there]
        made = []
        for title, arm, other in asked:
            sides = self.arm(pair, arm).by_network, self.arm(pair, other).by_network
            shared = sorted(sides[0].keys() & sides[1].keys())
            if len(shared) > 1:
                first, second = ({split: side[split] for split in shared} for side in sides)
                found = verdict.compare(first, second, comparisons=len(asked), same_unit=True)
                made.append(Gain(title, found))
        return made

    def table(self) -> pd.DataFrame:
        """Mean test accuracy in per cent: a row for each arm but LATER's, a column for each pair of modalities."""
        import pandas as pd

        columns, halves = {}, {arm.name for arm in HALVES}
        for pair in dict.fromkeys(key[0] for key, _ in self.scores):
            columns[str(pair)] = {arm: self.arm(pair, arm).mean for arm in self.arms(pair) if arm not in halves}
        return pd.DataFrame(columns)


def _scores(arm: str, rows: Sequence[dict[str, str]]) -> Scores:
    by_split = sorted((int(row["split"]), 100 * float(row["test_accuracy"])) for row in rows)
    parts = [(int(row["split"]), one.split(":")) for row in rows for one in row["by_person"].split()]
    by_person = sorted((split, int(person), 100 * float(value)) for split, (person, value) in parts)
    return Scores(arm, tuple(by_split), tuple(by_person))


def summarize(rows: Sequence[dict[str, str]]) -> tuple[tuple[tuple[Pair, str, int], Scores], ...]:
    """Scores of the rows of the arms, in their order."""
    groups: dict[tuple[Pair, str, int], list[dict[str, str]]] = {}
    for row in rows:
        pair = Pair(row["data"], row["teacher_field"], row["student_field"])
        groups.setdefault((pair, row["arm"], int(row["labels"])), []).append(row)
    return tuple((key, _scores(key[1], group)) for key, group in groups.items())


def summarize_grid(rows: Sequence[dict[str, str]]) -> tuple[tuple[tuple[int, float, float], tuple[float, ...]], ...]:
    """Accuracies of the rows of the grid by cell, in the order of the splits."""
    cells: dict[tuple[int, float, float], list[tuple[int, float]]] = {}
    for row in rows:
        key = int(row["labels"]), float(row["shuffled"]), float(row["temperature"])
        cells.setdefault(key, []).append((int(row["split"]), 100 * float(row["test_accuracy"])))
    return tuple((key, tuple(value for _, value in sorted(cell))) for key, cell in cells.items())


@lru_cache(maxsize=4)
def load(folder: Path | None = None) -> ModalityResults:
    """What the experiment has found so far; folder: default data/results.

    Raises FileNotFoundError, with the command that makes the rows, where there are none.
    """
    folder = folder or data_dir() / "results"
    rows = read_rows(path_in(folder))
    if not rows:
        raise FileNotFoundError(f"{path_in(folder)} holds no finished runs. Make them: {COMMAND}")
    return ModalityResults(summarize(rows), summarize_grid(read_rows(path_in(folder, grid=True))))


__all__ = ["ALL", "PAIRS", "PER_CLASS", "QUESTIONS", "Gain", "ModalityResults", "Scores", "load"]
