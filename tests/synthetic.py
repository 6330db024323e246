"""Plausible rows of a study that nobody has to train for, written in the study's own format."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlib.study import plans
from kdlib.study.plans import Budget, RunConfig, TunedSettings, row_key
from kdlib.study.runs_file import RUN_COLUMNS, RunsFile

TEACHER = 0.9374
GAINS = {  # over hard labels at 10,000 images; invented
    "label-smoothing": 0.001, "kd": 0.012, "dkd": 0.014, "dist": 0.009, "standardized": 0.010, "hint": 0.004,
    "attention": 0.002, "vid": 0.006, "fsp": -0.006, "layer-correlation": 0.001, "layer-information": -0.002,
    "rkd": 0.003, "similarity": 0.005, "kd+hint": 0.013, "kd+fsp": 0.004, "kd+rkd": 0.015, "shuffled": -0.02,
    "untrained": -0.001, "own-size": 0.006,
}  # fmt: skip
NOISE = 0.0015

Score = Callable[[RunConfig, random.Random], float | None]  # None: the run diverged


def score(config: RunConfig, chance: random.Random) -> float | None:
    """A test accuracy: what the seed brings, what the method adds, and chance."""
    settings = config.settings
    seed = 0.885 + 0.002 * random.Random(config.seed).gauss(0, 1)
    if settings.temperature is not None and config.method not in GAINS:
        assert settings.alpha is not None
        soft = (1 - settings.alpha) * (0.015 - 0.004 * abs(settings.temperature - 4) ** 0.5)
        return seed + soft + NOISE * chance.gauss(0, 1)
    return seed + GAINS.get(config.method, 0.0) + NOISE * chance.gauss(0, 1)


def row(config: RunConfig, budget: Budget, value: float | None) -> dict[str, Any]:
    """A whole row; value: the test accuracy, None for a run that diverged."""
    chance, name = random.Random(f"{config.key}"), config.spec.name
    made = config.to_row(budget) | {"device": "cpu, bfloat16", "threads": 1}
    made["fingerprint"] = config.fingerprint(budget, "synthetic")
    if value is None:
        return made | {"error": "The loss is nan (not a number) at step 7.", "seconds": 1.0}
    seconds = 30 + 10 * (name != "hard") + chance.random()
    scores = {"validation_accuracy": value + 0.002, "test_accuracy": value, "teacher_accuracy": TEACHER}
    scores |= {"agreement": value - 0.01 + 0.001 * chance.random(), "calibration_error": 0.05 - value / 100}
    scores["calibration_error"] += 0.003 * chance.random()
    if config.excluded_class is not None:
        scores["excluded_class_accuracy"] = 0.0 if config.method == "hard" else 0.3 + 0.1 * chance.random()
    times = {"seconds": 15 * seconds, "seconds_per_epoch": seconds}
    return made | scores | times | {"extra_parameters": 4096 if "hint" in name else 0}


def write(
    folder: Path,
    plan: str | Sequence[str] = "full",
    *,
    images: int = 10_000,
    seeds: Sequence[int] = range(5),
    score: Score = score,
    skip: Callable[[RunConfig], bool] = lambda config: False,
    tuned: Mapping[str, TunedSettings] | None = None,
    **budget: Any,
) -> Path:
    """Write the file of results that these plans would make, and return its path.

    score: the test accuracy of a run. skip: runs that have not been made.
    """
    shared, tuned = Budget(images=images, **budget), tuned or {}
    for name in [plan] if isinstance(plan, str) else plan:
        one = plans.find(name)
        path = shared.path(one.kind, folder)
        configs = one.run_configs(one.variants(tuned), seeds, tuned, (3,), shared.optimizer)
        with RunsFile(path, RUN_COLUMNS).open() as file:
            finished = {row_key(row) for row in file.rows}
            for config in configs:
                if not skip(config) and config.key not in finished:
                    file.append(row(config, shared, score(config, random.Random(f"{config.key} {images}"))))
    return path
