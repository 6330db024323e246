"""Do layers teach better when no picture's features are longer than another's? Two methods, two teachers.

    print(normalized_layers.same_settings("similarity"))
    for answer in normalized_layers.answers("similarity"):
        print(answer)
    for answer in normalized_layers.over("hard"):
        print(answer)

In the embedding of resnet50-fashion-v2 the features of a bag are nearly three times as long as most. The study's
methods "similarity-normalized" and "vid-normalized" divide the teacher's features of each picture by their root mean
square. Their runs are in data/results/normalized and were made by

    kdlib study --method METHOD --teacher TEACHER --images 10000 --epochs 15 --views 5 --seeds 5

with --out. The runs with the features as they are stand in data/results, with the same seeds and the same search.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from course.experiments.layer_trials import TEACHERS, trials_of, tried_in_all
from kdlib import study, verdict
from kdlib.data import data_dir
from kdlib.errors import unknown_name
from kdlib.study.runs_file import read_rows

if TYPE_CHECKING:
    import pandas as pd

METHODS = {"similarity": "similarity-normalized", "vid": "vid-normalized"}
SMALL, LARGE = TEACHERS
# Asked before any of these runs had read the test images: a title, a teacher and whether its features are normalised,
# and those that it is compared with.
QUESTIONS = (
    ("ResNet-50, normalised over as they are", (LARGE, True), (LARGE, False)),
    ("ResNet-20, normalised over as they are", (SMALL, True), (SMALL, False)),
    ("both normalised, ResNet-50 over ResNet-20", (LARGE, True), (SMALL, True)),
)


@dataclass(frozen=True)
class Answer:
    """A question about one method: the difference in points, paired by seed, over seeds and test images."""

    method: str
    title: str
    comparison: verdict.Comparison

    def __str__(self) -> str:
        found = self.comparison
        return f"{self.method}, {self.title}: {found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f}) {found.verdict}"


def folder() -> Path:
    """Of the runs with normalised features."""
    return data_dir() / "results" / "normalized"


def same_settings(method: str) -> pd.DataFrame:
    """The settings that a method tried with both teachers, normalised and not, the smallest weight first.

    Columns: weight, layers, and the mean validation accuracy (%) by teacher, as it is and normalised. Raises ValueError
    for a method that is none of METHODS.
    """
    sources = {}
    for title, teacher in TEACHERS.items():
        sources[title] = (trials_of(teacher, data_dir() / "results"), method)
        sources[f"{title}, normalised"] = (trials_of(teacher, folder()), _normalized(method))
    return tried_in_all(sources)


@lru_cache(maxsize=8)
def right(method: str, teacher: str, *, normalized: bool) -> dict[int, np.ndarray]:
    """By seed, 100 for each test image that the student answers rightly, else 0; empty where there are no such runs.

    teacher: one of TEACHERS' titles.
    """
    name = _normalized(method) if normalized else method
    place = folder() if normalized else data_dir() / "results"
    rows = read_rows(place / f"methods-resnet8-{TEACHERS[teacher]}-10000.csv")
    if not any(row["method"] == name for row in rows):
        return {}
    found = study.results(
        "methods", student="resnet8", teacher=TEACHERS[teacher], images=10_000, baseline=name, folder=place
    ).right(name)
    return {seed: 100.0 * values for seed, values in found.items()}


def answers(method: str) -> list[Answer]:
    """Those of QUESTIONS whose runs there are, for one method, with their verdicts.

    The 95 % intervals hold together with those of the other method (Bonferroni).
    """
    found = []
    for title, *sides in QUESTIONS:
        one, other = (right(method, teacher, normalized=normalized) for teacher, normalized in sides)
        shared = sorted(one.keys() & other.keys())
        if shared:
            pairs = ({seed: side[seed] for seed in shared} for side in (one, other))
            comparison = verdict.compare_samples(*pairs, comparisons=len(METHODS) * len(QUESTIONS))
            found.append(Answer(method, title, comparison))
    return found


def over(baseline: str) -> list[Answer]:
    """Each method with the ResNet-50's normalised features over hard labels, or another method of that teacher's list.

    Asked after QUESTIONS were answered; one family with all that the list compares with this baseline. Raises
    ValueError for a baseline that was not run.
    """
    of_list = study.results("methods", student="resnet8", teacher=TEACHERS[LARGE], images=10_000, baseline=baseline)
    without = {seed: 100.0 * values for seed, values in of_list.right(baseline).items()}
    found = []
    for method in METHODS:
        taught = right(method, LARGE, normalized=True)
        comparison = verdict.compare_samples(taught, without, comparisons=of_list.comparisons + len(METHODS))
        found.append(Answer(method, f"{LARGE}, normalised over {of_list.title(baseline)}", comparison))
    return found


def _normalized(method: str) -> str:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    return METHODS[method]
