"""What the rows of `language` say: a table of the ways, and paired comparisons over seeds.

    results = language_results.load()
    print(results.table())
    for answer in results.answers():
        print(answer)

Nats are of a whole name; fewer are better in every column of nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from course.experiments.language import (
    DIRECTIONS,
    FORWARD,
    FORWARD_OWN,
    FORWARD_TEACHERS,
    HARD,
    LETTERS,
    REVERSE,
    REVERSE_OWN,
    SEQUENCE,
    WAYS,
    path_in,
)
from course.experiments.rows import refuse_twice
from kdlib import verdict
from kdlib.data import data_dir
from kdlib.errors import unknown_name
from kdlib.study.runs_file import read_rows

if TYPE_CHECKING:
    import pandas as pd

COMMAND = "python -m course.experiments.language"
HEADINGS = {  # of the table, by measure; in nats, and in per cent what says so
    "test_nats": "test nats",
    "forward_kl": "KL(T||S)",
    "reverse_kl": "KL(S||T)",
    "teacher_nats": "teacher's nats of its names",
    "forward_excess": "KL(T||S) after own letters (%)",
    "reverse_excess": "KL(S||T) after own letters (%)",
    "in_list": "its names in the list (%)",
    "distinct": "distinct (%)",
}
QUESTIONS = (  # asked before the runs: a title, a way, the way that it is compared with, and the measure
    ("forward KL over hard labels", FORWARD, HARD, "test_nats"),
    ("sequence-level over hard labels", SEQUENCE, HARD, "test_nats"),
    ("forward KL over hard labels", FORWARD, HARD, "forward_kl"),
    ("sequence-level over hard labels", SEQUENCE, HARD, "forward_kl"),
    ("teacher's names over real names, forward KL", FORWARD_TEACHERS, FORWARD, "forward_kl"),
    ("reverse KL over forward KL", REVERSE, FORWARD, "test_nats"),
    ("reverse KL over forward KL", REVERSE, FORWARD, "teacher_nats"),
    ("own names over real names, forward KL", FORWARD_OWN, FORWARD, "reverse_kl"),
    ("own names over real names, reverse KL", REVERSE_OWN, REVERSE, "reverse_kl"),
    ("own names over real names, forward KL", FORWARD_OWN, FORWARD, "forward_excess"),
)


@dataclass(frozen=True)
class Taught:
    """The students of one way: each measure by seed, and divergences at each position.

    after: the mean divergence at each position, by direction and by who drew the letters before, "teacher" or "own".
    """

    way: str
    learning_rate: float
    by_seed: Mapping[str, Mapping[int, float]]
    after: Mapping[tuple[str, str], tuple[float, ...]]

    def mean(self, measure: str) -> float:
        """Of a measure, over the seeds; ValueError for an unknown one."""
        if measure not in self.by_seed:
            raise unknown_name("measure", measure, self.by_seed)
        values = self.by_seed[measure].values()
        return sum(values) / len(values)


@dataclass(frozen=True)
class Answer:
    """One of QUESTIONS: the difference of a measure, paired by seed; fewer nats, or per cent of excess, are better."""

    title: str
    measure: str
    comparison: verdict.Comparison

    def __str__(self) -> str:
        found = self.comparison
        interval = f"{found.low:+.2f} to {found.high:+.2f}; {found.n} seeds"
        return f"{self.title}, {HEADINGS[self.measure]}: {found.mean:+.2f} ({interval}) {found.verdict}"


@dataclass(frozen=True)
class LanguageResults:
    """The ways by name, in the order of `language.WAYS`."""

    ways: Mapping[str, Taught]

    def __getitem__(self, way: str) -> Taught:
        if way not in self.ways:
            raise unknown_name("way", way, self.ways)
        return self.ways[way]

    def answers(self) -> list[Answer]:
        """QUESTIONS with their verdicts; the 95 % intervals hold together (Bonferroni)."""
        made = []
        for title, way, other, measure in QUESTIONS:
            sides = (self[name].by_seed[measure] for name in (way, other))
            found = verdict.compare(*sides, comparisons=len(QUESTIONS), better="lower", same_unit=True)
            made.append(Answer(title, measure, found))
        return made

    def answer(self, way: str, other: str, measure: str) -> Answer:
        """The one of QUESTIONS that compares these two; ValueError where it was not asked."""
        numbers = {question[1:]: number for number, question in enumerate(QUESTIONS)}
        if (way, other, measure) not in numbers:
            raise ValueError(f"Nothing was asked of {way!r}, {other!r} and {measure!r}: see QUESTIONS.")
        return self.answers()[numbers[way, other, measure]]

    def table(self) -> pd.DataFrame:
        """Means over the seeds: a row for each way, a column for each measure."""
        import pandas as pd

        rows = {way: {name: one.mean(key) for key, name in HEADINGS.items()} for way, one in self.ways.items()}
        return pd.DataFrame.from_dict(rows, orient="index")


def _measures(row: Mapping[str, str]) -> dict[str, float]:
    """The numbers of a row by measure, shares in per cent."""
    found = {name: float(row[name]) for name in ("test_nats", "forward_kl", "reverse_kl", "teacher_nats")}
    shares = {"in_list": float(row["in_list"]), "distinct": float(row["distinct"])}
    for direction in DIRECTIONS:
        own, teachers = (float(row[f"{direction}_per_token_{letters}"]) for letters in ("own", "teacher"))
        shares[f"{direction}_excess"] = own / teachers - 1
    return found | {name: 100 * value for name, value in shares.items()}


def _means(texts: Sequence[str]) -> tuple[float, ...]:
    columns = zip(*([float(value) for value in text.split()] for text in texts), strict=True)
    return tuple(sum(column) / len(texts) for column in columns)


def _taught(way: str, rows: Sequence[Mapping[str, str]]) -> Taught:
    refuse_twice(repr(way), [int(row["seed"]) for row in rows])
    by_seed: dict[str, dict[int, float]] = {name: {} for name in HEADINGS}
    for row in rows:
        for name, value in _measures(row).items():
            by_seed[name][int(row["seed"])] = value
    after = {
        (direction, letters): _means([row[f"{direction}_by_position_{letters}"] for row in rows])
        for direction, letters in product(DIRECTIONS, LETTERS)
    }
    return Taught(way, float(rows[0]["learning_rate"]), by_seed, after)


def summarize(rows: Sequence[Mapping[str, str]]) -> LanguageResults:
    """The rows of the runs by way."""
    groups = {way: [row for row in rows if row["way"] == way] for way in WAYS}
    return LanguageResults({way: _taught(way, group) for way, group in groups.items() if group})


@lru_cache(maxsize=4)
def load(folder: Path | None = None) -> LanguageResults:
    """What the experiment has found; folder: default, data/results.

    Raises FileNotFoundError, with the command that makes the rows, where there are none.
    """
    path = path_in(folder or data_dir() / "results")
    rows = read_rows(path)
    if not rows:
        raise FileNotFoundError(f"{path} holds no finished runs. Make them: {COMMAND}")
    return summarize(rows)
