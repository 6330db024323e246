"""What is kept of the students of `kept_students`: rows, weights, and their answers for every test image.

kept = kept_results.load()
kept.right("kd")[0]      # for each test image whether the student with seed 0 was right
kept.model("kd", 0)      # this student
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from kdlib import models
from kdlib.data import data_dir
from kdlib.errors import unknown_name
from kdlib.study import method_specs
from kdlib.study.plans import TRIALS, Budget, mean_trial_scores
from kdlib.study.predictions import PredictionsFile
from kdlib.study.runs_file import read_rows

COMMAND = "python -m course.experiments.kept_students"


@dataclass(frozen=True, eq=False)
class KeptResults:
    """The kept students: rows (texts, by method and seed), their CSV file (path), the folder of weights (students)."""

    rows: Mapping[str, Mapping[int, Mapping[str, str]]]
    path: Path
    students: Path

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order of their first runs."""
        return tuple(self.rows)

    @staticmethod
    def title(method: str) -> str:
        """The method as figures and tables call it."""
        own = {"hard-longer": "hard labels, six epochs more"}
        return method_specs.METHODS[method].title if method in method_specs.METHODS else own.get(method, method)

    def values(self, method: str, column: str = "test_accuracy") -> dict[int, float]:
        """A column of the rows by seed; ValueError, with near matches, for an unknown method."""
        if method not in self.rows:
            raise unknown_name("method with kept students", method, self.rows)
        return {seed: float(row[column]) for seed, row in self.rows[method].items()}

    def answers(self, method: str) -> dict[int, np.ndarray]:
        """By seed, the class that the student gave each test image."""
        return {seed: self._answers(row).numpy().astype(int) for seed, row in self._rows_of(method).items()}

    def right(self, method: str) -> dict[int, np.ndarray]:
        """By seed, whether the student was right on each test image."""
        found = {seed: self._predictions.right(row["fingerprint"]) for seed, row in self._rows_of(method).items()}
        return {seed: right.numpy() for seed, right in found.items() if right is not None}

    def model(self, method: str, seed: int) -> nn.Module:
        """A student, in eval mode; ValueError for a method or seed whose weights were not kept."""
        row = self._rows_of(method).get(seed)
        if row is None or not row["weights"]:
            raise ValueError(f"No student of {method}, seed {seed}, was kept. This makes it: {COMMAND}")
        return models.load(self.students / row["weights"])

    def _rows_of(self, method: str) -> Mapping[int, Mapping[str, str]]:
        self.values(method)
        return self.rows[method]

    def _answers(self, row: Mapping[str, str]) -> Tensor:
        found = self._predictions.predicted(row["fingerprint"])
        if found is None:
            raise ValueError(
                f"The answers of {row['method']}, seed {row['seed']}, are missing. This adds them: {COMMAND}"
            )
        return found

    @cached_property
    def _predictions(self) -> PredictionsFile:
        return PredictionsFile(self.path)


def best_trial(method: str, folder: Path | None = None) -> float:
    """The validation accuracy, mean over the tuning seeds, of the settings that the study chose for a method.

    folder: of the trials, default data/results. Raises ValueError for a method without trials.
    """
    rows = read_rows(Budget().path(TRIALS, folder or data_dir() / "results"))
    scores = mean_trial_scores(row for row in rows if row["method"] == method)
    if not scores:
        raise unknown_name("method with trials", method, {row["method"] for row in rows if row["validation_accuracy"]})
    return max(scores.values())


@lru_cache(maxsize=4)
def load(folder: Path | None = None, students: Path | None = None) -> KeptResults:
    """Read the kept students. folder: of the rows, default data/results; students: of the weights, data/students.

    Raises FileNotFoundError, with the command that makes them, if there are none.
    """
    path = Budget().path("students", folder or data_dir() / "results")
    rows: dict[str, dict[int, Mapping[str, str]]] = {}
    for row in read_rows(path):
        if not row["error"]:
            rows.setdefault(row["method"], {})[int(row["seed"])] = row
    if not rows:
        raise FileNotFoundError(f"There is no student in {path}. This trains them, in about half an hour: {COMMAND}")
    return KeptResults(rows, path, students or data_dir() / "students")
