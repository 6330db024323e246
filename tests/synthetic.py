"""Plausible rows of a study that nobody has to train for, written in the study's own format."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlib.study import grid
from kdlib.study.grid import Budget, Cell, Choice
from kdlib.study.rows import COLUMNS, Table

TEACHER = 0.9374
GAINS = {  # over hard labels at 10,000 images; invented
    "label-smoothing": 0.001, "kd": 0.012, "dkd": 0.014, "dist": 0.009, "standardized": 0.010, "hint": 0.004,
    "attention": 0.002, "vid": 0.006, "fsp": -0.006, "layer-correlation": 0.001, "layer-information": -0.002,
    "rkd": 0.003, "similarity": 0.005, "kd+hint": 0.013, "kd+fsp": 0.004, "kd+rkd": 0.015, "shuffled": -0.02,
    "untrained": -0.001, "own-size": 0.006,
}  # fmt: skip
NOISE = 0.0015

Score = Callable[[Cell, random.Random], float | None]  # None: the run diverged


def score(cell: Cell, chance: random.Random) -> float | None:
    """A test accuracy: what the seed brings, what the method adds, and chance."""
    seed = 0.885 + 0.002 * random.Random(cell.seed).gauss(0, 1)
    if cell.settings.temperature is not None and cell.method not in GAINS:
        soft = (1 - cell.settings.alpha) * (0.015 - 0.004 * abs(cell.settings.temperature - 4) ** 0.5)
        return seed + soft + NOISE * chance.gauss(0, 1)
    return seed + GAINS.get(cell.method, 0.0) + NOISE * chance.gauss(0, 1)


def row(cell: Cell, budget: Budget, value: float | None) -> dict[str, Any]:
    """A whole row; value: the test accuracy, None for a run that diverged."""
    chance = random.Random(f"{cell.key}")
    made = cell.row(budget) | {"place": "cpu, bfloat16", "threads": 1, "digest": cell.digest(budget, "synthetic")}
    if value is None:
        return made | {"note": "The loss is nan (not a number) at step 7.", "seconds": 1.0}
    seconds = 30 + 10 * (cell.entry != "hard") + chance.random()
    scores = {"validation_accuracy": value + 0.002, "test_accuracy": value, "teacher_accuracy": TEACHER}
    scores |= {"agreement": value - 0.01 + 0.001 * chance.random(), "calibration_error": 0.05 - value / 100}
    scores["calibration_error"] += 0.003 * chance.random()
    if cell.left_out is not None:
        scores["left_out_accuracy"] = 0.0 if cell.method == "hard" else 0.3 + 0.1 * chance.random()
    times = {"seconds": 15 * seconds, "seconds_per_epoch": seconds}
    return made | scores | times | {"extra_parameters": 4096 if "hint" in cell.entry else 0}


def write(
    folder: Path,
    which: str | Sequence[str] = "full",
    *,
    images: int = 10_000,
    seeds: Sequence[int] = range(5),
    score: Score = score,
    skip: Callable[[Cell], bool] = lambda cell: False,
    choices: Mapping[str, Choice] | None = None,
    **budget: Any,
) -> Path:
    """Write the file of results that these lists would make, and return its path.

    score: the test accuracy of a cell. skip: cells that have not been run.
    """
    shared = Budget(images=images, **budget)
    for name in [which] if isinstance(which, str) else which:
        one = grid.named(name)
        path = shared.file(one.kind, folder)
        cells = grid.cells(name, one.lines(choices or {}), seeds, choices or {}, left_out=(3,))
        with Table(path, COLUMNS).opened() as table:
            there = {(r["method"], r["seed"], r["left_out"]) for r in table.rows}
            for cell in cells:
                if not skip(cell) and cell.key not in there:
                    table.append(row(cell, shared, score(cell, random.Random(f"{cell.key} {images}"))))
    return path
