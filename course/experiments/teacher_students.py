"""Students of many teachers: small networks on few labelled images, each taught by labels and by one teacher.

    python -m course.experiments.teachers students

Runs of one seed share images, their order and views, and initial weights; only the teacher differs. A teacher's answers
to a seed's views are computed once and stored, so a distilled run costs what a plain one costs.

Choices are made by trials on the validation split with a seed of their own, four for each arm: hard labels choose the
learning rate, which all arms of that student then take, and each teacher chooses its temperature. Label smoothing is
the control without a teacher, and chooses how much. The test set is read once in a run, at the end, and the row keeps
which of its images were answered rightly, so that an interval can cover other test images as well
(`verdict.compare_samples`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from course.experiments.rows import make_missing, refuse_other_budget, score, versions
from course.experiments.teachers import (
    DATA,
    TEACHERS,
    Calibrated,
    load_teacher,
    path_of,
    refuse_another_network,
    teacher_named,
)
from kdlib import data, devices, measure, models, train
from kdlib.data import Augmentation, DataModule, IndexedDataset
from kdlib.errors import check_whole, unknown_name
from kdlib.hooks import ModelOutput
from kdlib.methods import HardLabels, Logit, Method
from kdlib.search.task import pack
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, holds
from kdlib.teachers import CachedTeacher, Teacher

HARD, SMOOTHED = "hard labels", "label smoothing"  # in place of a teacher's name: without one
STUDENTS = ("article-student", "resnet8")
TUNING_SEED = 1000  # none of the runs'
RATES = (0.01, 0.03, 0.1, 0.3)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
SMOOTHINGS = (0.1, 0.2, 0.4, 0.8)
ALPHA = 0.1
BUDGET_COLUMNS = ("data", "images", "epochs", "views", "batch_size")
CONFIG_COLUMNS = (*BUDGET_COLUMNS, "student", "teacher", "seed", "learning_rate", "temperature", "alpha", "smoothing")
PROCESS_COLUMNS = ("seconds", "device", "threads", "kdlib", "torch", "error")
TRIAL_COLUMNS = (*CONFIG_COLUMNS, "validation_accuracy", *PROCESS_COLUMNS)  # nothing of the test set
RUN_COLUMNS = (
    *CONFIG_COLUMNS,
    *("validation_accuracy", "test_accuracy", "calibration_error", "right"),
    *PROCESS_COLUMNS,
)


@dataclass(frozen=True)
class Budget:
    """What all runs of a file share. views: augmented views of each image, gone through in turn."""

    images: int = 2_000
    epochs: int = 8
    views: int = 2
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_whole(10, images=self.images)
        check_whole(1, 1000, epochs=self.epochs, views=self.views)
        check_whole(2, batch_size=self.batch_size)

    def columns(self) -> dict[str, Any]:
        """What a row says of it."""
        return {"data": DATA, **vars(self)}

    def path(self, kind: str, out: Path) -> Path:
        """The file of the runs (kind "teachers-students") or of the trials ("choose-teachers-students")."""
        return out / f"{kind}-{self.images}.csv"


@dataclass(frozen=True)
class Run:
    """One student: of which teacher, if any, on which seed's images, with which settings."""

    student: str
    teacher: str
    seed: int
    learning_rate: float
    temperature: float | None = None
    alpha: float | None = None
    smoothing: float | None = None  # of the labels, where there is no teacher

    def is_in(self, rows: Sequence[dict[str, str]]) -> bool:
        """Whether these rows of a file hold it."""
        return holds(rows, vars(self))


# --- one run


def execute(run: Run, budget: Budget, fashion: DataModule, folder: Path, *, test: bool) -> dict[str, Any]:
    """Train one student and measure it; the row, with an error in place of accuracies where training diverged.

    test: whether the test set is read, once, at the end; a trial reads none.
    """
    started = time.perf_counter()
    subset = fashion.subset(budget.images, seed=run.seed)
    row = budget.columns() | vars(run) | versions()
    row |= {"device": str(devices.resolve()), "threads": torch.get_num_threads()}
    shape: dict[str, Any] = {
        "num_classes": fashion.num_classes,
        "in_channels": fashion.in_channels,
        "image_size": fashion.image_size,
    }
    student = models.build(run.student, **shape, seed=run.seed)
    alone = run.teacher in (HARD, SMOOTHED)
    teacher = None if alone else stored_teacher(run.teacher, run.seed, budget, fashion, folder)
    method: Method = HardLabels(run.smoothing or 0.0)
    if run.temperature is not None:
        method = Logit(temperature=run.temperature, alpha=ALPHA if run.alpha is None else run.alpha)
    few = subset.validation.select(torch.arange(min(100, len(subset.validation))))  # what counts comes at the end
    try:
        train.fit(
            student,
            replace(subset, validation=few),
            teacher=teacher,
            method=method,
            epochs=budget.epochs,
            recipe=train.Recipe(learning_rate=run.learning_rate, batch_size=budget.batch_size),
            views=budget.views,
            seed=run.seed,
            test=False,
            progress=False,
        )
        row["validation_accuracy"] = train.evaluate(student, fashion.validation).accuracy
        if test:
            row |= on_test(student, fashion)
    except FloatingPointError as error:
        row["error"] = str(error)
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def on_test(student: nn.Module, fashion: DataModule) -> dict[str, Any]:
    """Accuracy and calibration error on the test images, and which of them were answered rightly."""
    found, labels = train.evaluate(student, fashion.test), fashion.test.labels
    return {
        "test_accuracy": found.accuracy,
        "calibration_error": measure.calibration_error(found.logits, labels),
        "right": pack(found.logits.argmax(1) == labels),
    }


@lru_cache(maxsize=6)
def _network(name: str, folder: Path) -> nn.Module:
    return load_teacher(teacher_named(name), data.load(DATA), folder)


class Divided(Teacher):
    """A teacher's stored answers, divided by a temperature: what a calibrated teacher would say, without asking it."""

    def __init__(self, stored: CachedTeacher, temperature: float) -> None:
        self.stored, self.temperature, self.views = stored, temperature, stored.views

    def __call__(self, batch: Any, layers: Sequence[str] | None = None) -> ModelOutput:
        output = self.stored(batch, layers)
        return ModelOutput(output.logits / self.temperature, output.features)

    @contextmanager
    def activate(self, layers: Sequence[str], config: devices.DeviceConfig) -> Iterator[Divided]:
        """Inside the block the stored answers come to this device."""
        with self.stored.activate(layers, config):
            yield self

    def check_compatible(self, dataset: IndexedDataset, augmentation: Augmentation, seed: int) -> None:
        """Raise ValueError unless there are answers to these images."""
        self.stored.check_compatible(dataset, augmentation, seed)


def stored_teacher(name: str, seed: int, budget: Budget, fashion: DataModule, folder: Path) -> Teacher:
    """A teacher's answers to the views of one seed's images, computed once and kept in the folder."""
    model = _network(name, folder)
    if isinstance(model, Calibrated):
        plain = next(one.name for one in TEACHERS.values() if one.networks == TEACHERS[name].networks)
        return Divided(_stored(plain, seed, budget, fashion, folder), model.temperature)
    return _stored(name, seed, budget, fashion, folder)


def _stored(name: str, seed: int, budget: Budget, fashion: DataModule, folder: Path) -> CachedTeacher:
    slug = path_of(name, folder).stem
    return CachedTeacher.build(
        _network(name, folder),
        fashion.subset(budget.images, seed=seed).train,
        augmentation=fashion.augmentation,
        seed=seed,
        views=budget.views,
        directory=folder / "answers" / f"{slug}-{budget.images}-{budget.views}-seed{seed}",
        progress=False,
    )


# --- all of them


@dataclass(frozen=True)
class Experiment:
    """A budget, where rows are written (out), and where trained teachers and their answers lie (folder)."""

    budget: Budget
    out: Path
    folder: Path

    def run(
        self,
        teachers: Sequence[str],
        students: Sequence[str],
        seeds: int,
        command: str,
        log: Callable[[str], object] = print,
    ) -> list[dict[str, str]]:
        """Hard labels first, then each teacher in turn: trials, then runs; what is there is not repeated.

        Returns all rows of the file. Raises ValueError for an unknown name, for files of another budget, for a teacher
        that was not trained, and while another process writes to the files.
        """
        check_whole(1, TUNING_SEED, seeds=seeds)
        for name in teachers:
            if name != SMOOTHED:
                refuse_another_network(teacher_named(name), self.folder, self.out)
        for name in students:
            if name not in STUDENTS:
                raise unknown_name("student", name, STUDENTS)
        fashion = data.load(DATA)
        trials = RunsFile(self.budget.path("choose-teachers-students", self.out), TRIAL_COLUMNS, log)
        runs = RunsFile(self.budget.path("teachers-students", self.out), RUN_COLUMNS, log)
        with trials.open(), runs.open():
            for file in (trials, runs):
                refuse_other_budget(file, self.budget.columns())
            for teacher in (HARD, *teachers):
                for student in students:
                    self._run_arm(student, teacher, seeds, fashion, (trials, runs), command, log)
        update_readme(self.out)
        return runs.rows

    def _run_arm(
        self,
        student: str,
        teacher: str,
        seeds: int,
        fashion: DataModule,
        files: tuple[RunsFile, RunsFile],
        command: str,
        log: Callable[[str], object],
    ) -> None:
        trials, runs = files
        tried = [Run(student, HARD, TUNING_SEED, rate) for rate in RATES]
        if teacher != HARD:
            rate = best(trials.rows, tried).learning_rate
            tried = [Run(student, teacher, TUNING_SEED, rate, one, ALPHA) for one in TEMPERATURES]
            if teacher == SMOOTHED:
                tried = [Run(student, SMOOTHED, TUNING_SEED, rate, smoothing=one) for one in SMOOTHINGS]
        self._execute(tried, trials, fashion, command, log, test=False)
        chosen = best(trials.rows, tried)
        self._execute([replace(chosen, seed=seed) for seed in range(seeds)], runs, fashion, command, log, test=True)

    def _execute(
        self,
        wanted: Sequence[Run],
        file: RunsFile,
        fashion: DataModule,
        command: str,
        log: Callable[[str], object],
        *,
        test: bool,
    ) -> None:
        def make(run: Run) -> dict[str, Any]:
            return execute(run, self.budget, fashion, self.folder, test=test)

        def describe(run: Run, row: dict[str, Any]) -> str:
            settings = f"rate {run.learning_rate:g}, T {run.temperature or 0:g}"
            name = f"{run.student} of {run.teacher}, seed {run.seed}, {settings}"
            return f"{name}: {score(row):.2%} in {row['seconds']:.0f} s"

        make_missing(file, [run for run in wanted if not run.is_in(file.rows)], make, describe, command, log)


def best(rows: Sequence[dict[str, str]], tried: Sequence[Run]) -> Run:
    """Of these trials the one with the best validation accuracy in the rows; of equals, that of the smaller setting.

    Rows of other trials, of an earlier learning rate for instance, do not count. Raises ValueError where all diverged.
    """
    scores = {
        run: float(row["validation_accuracy"])
        for row in rows
        for run in tried
        if row["validation_accuracy"] and run.is_in([row])
    }
    if not scores:
        raise ValueError(
            f"All trials of {tried[0].student} of {tried[0].teacher} diverged. Give it smaller learning rates."
        )

    def order(run: Run) -> tuple[float, ...]:
        return -scores[run], run.learning_rate, run.temperature or 0, run.smoothing or 0

    return min(scores, key=order)
