"""Experiments for claims of which no other rows exist: other pictures, top answers, faults, wrong labels, length.

    python -m course.experiments.claims
    python -m course.experiments.claims --only faults

Each part is described in its own file (claims_pictures, claims_faults, claims_noise, claims_length), with what was
expected before the first run. Runs of one seed share images, their order and the student's initial weights. All arms of
a part have equally many trials on the validation split, with a seed of their own, or take over the settings of the arm
that they are a variant of, or are not tuned. The test set is read once in a run, at the end. Stopped at any moment, the
same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from course.experiments import claims_faults, claims_length, claims_noise, claims_pictures
from course.experiments.claims_common import (
    FASHION,
    STUDENT,
    TEACHER,
    TUNING_SEED,
    Arm,
    Chosen,
    Part,
    Setting,
    fashion,
    logits_of,
)
from course.experiments.command import called, run_command
from course.experiments.rows import accuracy, make_missing, refuse_other_budget, score, versions
from kdlib import devices
from kdlib.data import data_dir
from kdlib.errors import check_whole, unknown_name
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, holds

PARTS = {
    part.name: part
    for part in (
        claims_pictures.PICTURES,
        claims_faults.FAULTS,
        claims_noise.NOISE,
        claims_length.LENGTH,
    )
}
SEEDS = 5
NETWORKS = {"data": FASHION, "student": STUDENT, "teacher": TEACHER}
CONFIG_COLUMNS = ("part", *NETWORKS, "images", "arm", "seed", "epochs", "learning_rate", "temperature", "smoothing")
PROCESS_COLUMNS = ("seconds", "device", "threads", "kdlib", "torch", "error")


def path(part: str, folder: Path, *, trials: bool = False) -> Path:
    """The file of a part's runs, or of its trials."""
    return folder / f"claims-{part}{'-trials' if trials else ''}.csv"


def columns(part: Part, *, trials: bool) -> tuple[str, ...]:
    """The columns of a file; in that of the trials there is nothing of the test set."""
    measured = ("validation_accuracy",) if trials else ("test_accuracy", *part.columns)
    return (*CONFIG_COLUMNS, *measured, *PROCESS_COLUMNS)


def budget_of(part: Part) -> dict[str, Any]:
    """What all runs of a part share."""
    return NETWORKS | {"images": part.images}


@dataclass(frozen=True)
class Run:
    """One arm with one seed and setting."""

    arm: str
    seed: int
    setting: Setting

    def columns(self, part: Part) -> dict[str, Any]:
        """What the row says of the settings."""
        own = {"part": part.name, "arm": self.arm, "seed": self.seed, "epochs": part.arms[self.arm].epochs}
        return budget_of(part) | own | vars(self.setting)

    def is_in(self, rows: Sequence[dict[str, str]], part: Part) -> bool:
        """Whether these rows of a file hold it."""
        return holds(rows, self.columns(part))


def execute(run: Run, part: Part, chosen: Chosen, *, test: bool) -> dict[str, Any]:
    """Train one arm and measure it; the row, with an error in place of accuracies where training diverged."""
    started = time.perf_counter()
    row = run.columns(part) | versions() | {"device": str(devices.resolve()), "threads": torch.get_num_threads()}
    try:
        network = part.arms[run.arm].train(run.seed, run.setting, chosen)
        split: Any = fashion().test if test else fashion().validation
        logits = logits_of(network, split)
        row["test_accuracy" if test else "validation_accuracy"] = accuracy(logits, split.labels)
        if test:
            row |= part.measure(network, logits)
    except FloatingPointError as error:
        row["error"] = str(error)
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def best(rows: Sequence[dict[str, str]], arm: str, settings: Sequence[Setting]) -> Setting:
    """The setting of the best finished trial of an arm; of equals, the first one that was to be tried.

    Raises ValueError where there is none.
    """
    found: dict[Setting, float] = {}
    for row in rows:
        values = (float(row[name]) if row[name] else None for name in ("learning_rate", "temperature", "smoothing"))
        if row["arm"] == arm and row["validation_accuracy"]:
            rate, temperature, smoothing = values
            assert rate is not None
            found[Setting(rate, temperature, smoothing)] = float(row["validation_accuracy"])
    tried = [one for one in settings if one in found]
    if not tried:
        raise ValueError(f"All trials of {arm!r} diverged. Give it smaller learning rates.")
    return max(tried, key=lambda one: found[one])


def run_part(
    part: Part, seeds: int, out: Path, command: str, log: Callable[[str], object] = print
) -> list[dict[str, str]]:
    """A part's trials, then its runs with these many seeds; what is there is not repeated. All rows of its file.

    Raises ValueError for files of another budget, and while another process writes to them.
    """
    check_whole(1, TUNING_SEED, seeds=seeds)
    trials = RunsFile(path(part.name, out, trials=True), columns(part, trials=True), log)
    runs = RunsFile(path(part.name, out), columns(part, trials=False), log)
    chosen: dict[str, Setting] = {}
    with trials.open():
        refuse_other_budget(trials, budget_of(part), advice="Choose another folder with --out.")
        for name, arm in part.arms.items():
            chosen[name] = _choose(name, arm, part, chosen, trials, command, log)
    with runs.open():
        refuse_other_budget(runs, budget_of(part), advice="Choose another folder with --out.")
        for seed in range(seeds):  # one seed after the other: its teachers are trained once
            wanted = [Run(name, seed, setting) for name, setting in chosen.items()]
            _execute(wanted, part, chosen, runs, command, log, test=True)
    return runs.rows


def _choose(
    name: str, arm: Arm, part: Part, chosen: Chosen, trials: RunsFile, command: str, log: Callable[[str], object]
) -> Setting:
    if arm.as_in is not None:
        return chosen[arm.as_in]
    if len(arm.settings) == 1:
        return arm.settings[0]
    wanted = [Run(name, TUNING_SEED, setting) for setting in arm.settings]
    _execute(wanted, part, chosen, trials, command, log, test=False)
    return best(trials.rows, name, arm.settings)


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
        return f"{part.name}: {run.arm}, seed {run.seed}, {run.setting}: {score(row):.2%} in {row['seconds']:.1f} s"

    missing = [run for run in wanted if not run.is_in(file.rows, part)]
    make_missing(file, missing, lambda run: execute(run, part, chosen, test=test), describe, command, log)


def claims(
    only: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(PARTS)}; repeat it for more.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ... Give more to add some.")] = SEEDS,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
) -> None:
    """Put claims to the test for which no other rows exist. Stopped at any moment, the same command goes on."""
    command = called("course.experiments.claims")
    folder = out or data_dir() / "results"
    for name in only or list(PARTS):
        if name not in PARTS:
            raise unknown_name("part", name, PARTS)
    for name in only or list(PARTS):
        run_part(PARTS[name], seeds, folder, command, log=partial(print, flush=True))
        update_readme(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)  # small networks: a second thread costs more than it gives
    run_command(claims=claims)
