"""One search of a student's settings, and what it was worth: fresh paired seeds for each of four settings.

    python -m course.experiments.search_rows --seeds 15

TPE with Hyperband chooses learning rate, weight decay, alpha and temperature for a ResNet-8 (KD, few images) on the
validation split. Random search gets about as many epochs. Then four settings are trained with seeds that no search has
seen, fifteen in the shipped rows (five were INCONCLUSIVE), and tested once each:

    found               the best trial of TPE with Hyperband
    random search       the best trial of random search
    defaults            the method's own: learning rate 0.1, weight decay 0.0005, alpha 0.1, T 4
    defaults, tuned     alpha 0.1 and T 4, with the learning rate and weight decay of `found`

The last one is the control: found against defaults compares two learning rates as well, and what a search of the
*distillation* is worth shows only where these are equal. It is one search of each kind, so the verdicts are about four
settings and not about two ways to search.

Searches and finished runs are kept in a folder (--cache); stopped at any moment, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from course.experiments.command import called, run_command
from course.experiments.rows import versions
from kdlib import data, devices, search
from kdlib.data import DataModule, data_dir
from kdlib.errors import check_whole
from kdlib.search import judging
from kdlib.search.task import TaskRunner
from kdlib.study.method_specs import SETTING_NAMES
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, SessionLog, to_text

DATA, TEACHER, STUDENT, METHOD = "fashion-mnist", "resnet20-fashion", "resnet8", "kd"
FOUND, DEFAULTS, RANDOM, CONTROL = judging.FOUND, "defaults", judging.RANDOM, "defaults, tuned"
COMMAND = "python -m course.experiments.search_rows"
_BUDGET = ("study", "data", "student", "teacher", "images", "epochs", "views", "method")
_SETTINGS = ("learning_rate", "weight_decay", "alpha", "temperature")
_PROCESS = ("seconds", "device", "threads", "kdlib", "torch", "error")
TRIAL_COLUMNS = (*_BUDGET, "search", "trial", "state", *_SETTINGS, "trained_epochs", "validation_accuracy", *_PROCESS)
RUN_COLUMNS = (*_BUDGET, "arm", "seed", *_SETTINGS, "search_cost", "validation_accuracy", "test_accuracy", *_PROCESS)


@dataclass(frozen=True)
class Budget:
    """What the searches and all runs share."""

    images: int = 1_000
    epochs: int = 6
    views: int = 3
    trials: int = 18

    def __post_init__(self) -> None:
        check_whole(10, images=self.images)
        check_whole(epochs=self.epochs, views=self.views, trials=self.trials)

    def path(self, kind: str, folder: Path) -> Path:
        """The file of the trials ("search-trials") or of the judging runs ("search-judged")."""
        return folder / f"{kind}-{STUDENT}-{TEACHER}-{self.images}.csv"

    def columns(self, study: str) -> dict[str, Any]:
        """What every row says."""
        shared = {"images": self.images, "epochs": self.epochs, "views": self.views}
        return {"study": study, "data": DATA, "student": STUDENT, "teacher": TEACHER, "method": METHOD, **shared}


def make(
    budget: Budget,
    out: Path,
    cache: Path,
    seeds: int,
    command: str,
    *,
    images: DataModule | None = None,
    log: Callable[[str], object] = print,
) -> None:
    """Search, judge, and write the rows of both.

    cache: a folder for the searches, which go on in it. images: default, Fashion-MNIST.
    Raises ValueError for a cache of another search, or while another process writes to the files.
    """
    check_whole(2, 1000, seeds=seeds)
    images = data.load(DATA) if images is None else images
    paths = [budget.path(kind, out) for kind in ("search-trials", "search-judged")]
    with RunsFile(paths[0], TRIAL_COLUMNS, log).open() as trials, RunsFile(paths[1], RUN_COLUMNS, log).open() as runs:
        # Before anything is trained: the hours of either file are those of the searches and the judgement together.
        sessions = [SessionLog(file.path, command, len(file.rows)) for file in (trials, runs)]
        trial_rows, run_rows = _train(budget, cache, seeds, images, runs, log)
        _append(trials, sessions[0], ("search", "trial"), trial_rows)
        _append(runs, sessions[1], ("arm", "seed"), run_rows)
    update_readme(out)


def _train(
    budget: Budget, cache: Path, seeds: int, images: DataModule, file: RunsFile, log: Callable[[str], object]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of both searches, and of the runs that judge them. file: of the runs, with those made before."""
    found = search.run(
        images,
        teacher=TEACHER,
        student=STUDENT,
        method=METHOD,
        trials=budget.trials,
        epochs=budget.epochs,
        images=budget.images,
        views=budget.views,
        storage=cache,
        progress=False,
    )
    log(str(found))
    judged = search.judge(found, range(seeds), progress=False)
    log(str(judged))
    trials = [{"search": FOUND, **row} for row in found.rows]
    trials += [{"search": RANDOM, **row} for row in (judged.random.rows if judged.random else ())]
    for row in trials:
        row |= {"trained_epochs": row["epochs"]}
        row |= budget.columns("search-trials")
    arms = {arm.name: arm for arm in judged.arms}
    runs = [
        {**row, **_settings(arms[row["arm"]].settings), "search_cost": arms[row["arm"]].search_cost}
        for row in judged.rows
    ]
    for row in runs:
        if row["arm"] == judging.START:  # of this method they are the defaults of `kdlib distill` as well
            row["arm"] = DEFAULTS
    runs += _control(found, _missing_seeds(file, seeds), cache)
    for row in runs:
        row |= budget.columns("search-judged")
    return trials, runs


def _settings(settings: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in SETTING_NAMES}


def _missing_seeds(file: RunsFile, seeds: int) -> list[int]:
    """The seeds with which the control is not in the file yet."""
    done = {row["seed"] for row in file.rows if row["arm"] == CONTROL}
    return [seed for seed in range(seeds) if str(seed) not in done]


def _control(found: search.Found, seeds: Iterable[int], cache: Path) -> list[dict[str, Any]]:
    """The default alpha and T with the learning rate and weight decay that were found."""
    best = found.best.settings
    settings = replace(found.task.spec.start, learning_rate=best.learning_rate, weight_decay=best.weight_decay)
    runner = TaskRunner(found.task, cache / "control")
    rows = []
    for seed in seeds:
        outcome = runner.run(found.task.student, settings, seed, test=True)
        rows.append({"arm": CONTROL, "seed": seed, **_settings(settings), "search_cost": found.cost, **vars(outcome)})
    return rows


def _append(file: RunsFile, session: SessionLog, key: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Add the rows that the file has not yet; ValueError for one that it has of another budget or setting."""
    process = versions() | {"device": str(devices.resolve()), "threads": torch.get_num_threads()}
    done = {tuple(row[name] for name in key): row for row in file.rows}
    missing = []
    for row in rows:
        old = done.get(tuple(str(row[name]) for name in key))
        if old is None:
            missing.append(row)
            continue
        for name in (*_BUDGET, *_SETTINGS):
            if name in row and old[name] != to_text(row[name]):
                which = " ".join(old[one] for one in key)
                raise ValueError(
                    f"{file.path} holds {which} with {name} {old[name]}, not {to_text(row[name])}. Choose another "
                    "folder with --out."
                )
    if not missing:
        return
    for row in missing:
        file.append({**row, **process})
    session.write(len(file.rows))


def rows_command(
    seeds: Annotated[int, typer.Option(min=2, help="How many fresh seeds: 0, 1, ...")] = 5,
    images: Annotated[int, typer.Option(min=10, help="Training images of each run.")] = Budget.images,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over them.")] = Budget.epochs,
    trials: Annotated[int, typer.Option(min=1, help="Trials of TPE with Hyperband.")] = Budget.trials,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder in which the searches are kept.")] = Path("runs/search-rows"),
) -> None:
    """Search the settings of a student, and judge what was found.

    Stopped at any moment, the same command goes on with what is missing.
    """
    command = called("course.experiments.search_rows")
    budget = Budget(images, epochs, trials=trials)
    make(budget, out or data_dir() / "results", cache, seeds, command, log=partial(print, flush=True))


if __name__ == "__main__":
    run_command(search_rows=rows_command)
