"""Do several teachers teach better than one? Three parts, paired seeds, a row a run.

    python -m course.experiments.several_teachers
    python -m course.experiments.several_teachers --only own

Parts: "own" (teachers with pictures of their own, one of them bad), "same" (the same pictures, against one teacher with
the same compute) and "mutual" (networks that teach each other, or their next generation). See `several_own`,
`several_same` and `several_mutual`. Runs of one seed share images, their order and the students' initial weights. All
ways of a part have the same number of trials on the validation split, each with two seeds of their own (eight settings
in "own", ten in "same", six in "mutual", three for the teachers of "same"), or take over the settings of the way that
they are a variant of. The test set is read once in a run, at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from course.experiments import several_mutual, several_own, several_same
from course.experiments.command import called, run_command
from course.experiments.rows import accuracy, make_missing, refuse_other_budget, score, versions
from course.experiments.several_common import TUNING_SEEDS, Chosen, Part, Setting, fashion, logits_of
from kdlib import devices
from kdlib.data import data_dir
from kdlib.errors import check_whole, unknown_name
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, holds

PARTS = {part.name: part for part in (several_own.PART, several_same.PART, several_mutual.PART)}
SEEDS = 5
BUDGET_COLUMNS = ("images", "epochs", "student_epochs")
CONFIG_COLUMNS = ("part", "way", "seed", *BUDGET_COLUMNS, "learning_rate", "temperature")
PROCESS_COLUMNS = ("seconds", "device", "threads", "kdlib", "torch", "error")
TRIAL_COLUMNS = (*CONFIG_COLUMNS, "validation_accuracy", *PROCESS_COLUMNS)  # nothing of the test set
RUN_COLUMNS = (*CONFIG_COLUMNS, "test_accuracy", "teacher_accuracy", *PROCESS_COLUMNS)


def path(part: str, folder: Path, *, trials: bool = False) -> Path:
    """The file of a part's runs, or of its trials."""
    return folder / f"several-{part}{'-trials' if trials else ''}.csv"


def budget_of(part: Part) -> dict[str, Any]:
    """The columns that all rows of a part's files share."""
    return {name: getattr(part, name) for name in BUDGET_COLUMNS}


@dataclass(frozen=True)
class Run:
    """One way with one seed and setting."""

    way: str
    seed: int
    setting: Setting

    def columns(self, part: Part) -> dict[str, Any]:
        """What the row says of the settings."""
        return {"part": part.name, "way": self.way, "seed": self.seed} | budget_of(part) | vars(self.setting)

    def is_in(self, rows: Sequence[dict[str, str]], part: Part) -> bool:
        """Whether these rows of a file hold it."""
        return holds(rows, self.columns(part))


def execute(run: Run, part: Part, chosen: Chosen, *, test: bool) -> dict[str, Any]:
    """Train one way and measure it; the row, with an error in place of accuracies where training diverged."""
    started = time.perf_counter()
    row = run.columns(part) | versions() | {"device": str(devices.resolve()), "threads": torch.get_num_threads()}
    try:
        outcome = part.ways[run.way].train(run.seed, run.setting, chosen)
        split = fashion().test if test else fashion().validation
        scores = [accuracy(logits_of(one, split), split.labels) for one in outcome.students]
        row["test_accuracy" if test else "validation_accuracy"] = sum(scores) / len(scores)
        if test and outcome.teacher is not None:
            row["teacher_accuracy"] = accuracy(outcome.teacher(fashion().test), fashion().test.labels)
    except FloatingPointError as error:
        row["error"] = str(error)
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def best(rows: Sequence[dict[str, str]], way: str, settings: Sequence[Setting]) -> Setting:
    """Of these settings the best on the validation split in the mean of its trials, which diverged in none of them.

    Of equals, the one with the smallest rate. Rows of other settings, of an earlier search, do not count.
    Raises ValueError where there is none.
    """
    found: dict[Setting, list[float]] = {}
    for row in rows:
        if row["way"] == way:
            setting = Setting(float(row["learning_rate"]), float(row["temperature"]) if row["temperature"] else None)
            if setting not in settings:
                continue
            found.setdefault(setting, []).append(float(row["validation_accuracy"] or math.nan))
    scores = {setting: mean for setting, some in found.items() if math.isfinite(mean := sum(some) / len(some))}
    if not scores:
        raise ValueError(f"Trials of {way!r} diverged with every setting. Give it smaller learning rates.")
    return min(scores, key=lambda one: (-scores[one], one.learning_rate, one.temperature or 0))


def run_part(
    part: Part, seeds: int, out: Path, command: str, log: Callable[[str], object] = print
) -> list[dict[str, str]]:
    """A part's trials, then its runs with these many seeds; what is there is not repeated. All rows of its file.

    Raises ValueError for files of another budget, and while another process writes to them.
    """
    check_whole(1, min(TUNING_SEEDS), seeds=seeds)
    trials = RunsFile(path(part.name, out, trials=True), TRIAL_COLUMNS, log)
    runs = RunsFile(path(part.name, out), RUN_COLUMNS, log)
    chosen: dict[str, Setting] = {}
    with trials.open():
        refuse_other_budget(trials, budget_of(part), advice="Choose another folder with --out.")
        for name, way in part.ways.items():
            if way.as_in is None:
                wanted = [Run(name, seed, setting) for seed in TUNING_SEEDS for setting in way.settings]
                _execute(wanted, part, chosen, trials, command, log, test=False)
                chosen[name] = best(trials.rows, name, way.settings)
    for name, way in part.ways.items():
        if way.as_in is not None:
            chosen[name] = chosen[way.as_in]
    with runs.open():
        refuse_other_budget(runs, budget_of(part), advice="Choose another folder with --out.")
        for seed in range(seeds):  # one seed after the other: its teachers are trained once
            wanted = [Run(name, seed, chosen[name]) for name, way in part.ways.items() if not way.trials_only]
            _execute(wanted, part, chosen, runs, command, log, test=True)
    return runs.rows


def _execute(
    wanted: Sequence[Run],
    part: Part,
    chosen: Chosen,
    file: RunsFile,
    command: str,
    log: Callable[[str], object],
    *,
    test: bool,
) -> None:
    def describe(run: Run, row: dict[str, Any]) -> str:
        return f"{part.name}: {run.way}, seed {run.seed}, {run.setting}: {score(row):.2%} in {row['seconds']:.1f} s"

    missing = [run for run in wanted if not run.is_in(file.rows, part)]
    make_missing(file, missing, lambda run: execute(run, part, chosen, test=test), describe, command, log)


def several_teachers(
    only: Annotated[list[str] | None, typer.Option(help="own, same or mutual; repeat it for two.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ... Give more to add some.")] = SEEDS,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
) -> None:
    """Teach students by several teachers and by one. Stopped at any moment, the same command goes on."""
    command = called("course.experiments.several_teachers")
    folder = out or data_dir() / "results"
    for name in only or list(PARTS):
        if name not in PARTS:
            raise unknown_name("part", name, PARTS)
    for name in only or list(PARTS):
        run_part(PARTS[name], seeds, folder, command, log=partial(print, flush=True))
        update_readme(folder)


if __name__ == "__main__":
    run_command(several_teachers=several_teachers)
