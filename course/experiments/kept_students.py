"""Students whose weights are kept, so that more than their accuracy can be asked for.

    python -m course.experiments.kept_students

Runs of the study (data/results/older-search) once more: same images, settings, seeds and initial weights, five
seeds of hard labels, logits (KD), decoupled logits (DKD) and logits of another image. Each finished student is saved in
half precision, and its row says what the file's weights do in float32, so that anyone who loads them gets the same
numbers. What it answered for each test image is kept beside the rows (`kdlib.study.predictions`). One control has rows
alone: hard labels for six epochs more, which cost what the teacher's outputs for five views cost (and a little more).
The test set is read once for each student, when its training is over.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from course import older_search
from course.experiments.command import called, run_command
from course.experiments.rows import versions
from kdlib import measure, models, study, train
from kdlib.data import data_dir, load
from kdlib.errors import check_whole, unknown_name
from kdlib.study.analysis import Results
from kdlib.study.experiment import Experiment, SeedRunner
from kdlib.study.method_specs import SETTING_NAMES
from kdlib.study.plans import Budget, RunConfig
from kdlib.study.predictions import PredictionsFile
from kdlib.study.report import update_readme
from kdlib.study.runs_file import BUDGET_COLUMNS, RunsFile, SessionLog

LONGER = "hard-longer"  # hard labels, with the cost of the teacher's outputs as further epochs
FURTHER_EPOCHS = 6  # 5 views by a ResNet-20 cost as many MACs as 5.5 epochs of a ResNet-8, three passes each
METHODS = ("hard", "kd", "dkd", "shuffled", LONGER)
ORDER = (("hard", "kd", "dkd", "shuffled"), (LONGER,))  # what is together shares a teacher's outputs
COLUMNS = (
    *("study", *BUDGET_COLUMNS, "method", "spec", "seed", *SETTING_NAMES, "tuned_on", "weights"),
    *("validation_accuracy", "test_accuracy", "teacher_accuracy", "agreement", "calibration_error"),
    *("seconds", "device", "threads", "kdlib", "torch", "error", "fingerprint"),
)


@dataclass(frozen=True)
class KeptRun:
    """One student: the method by which METHODS names it, and the seed."""

    method: str
    seed: int

    @property
    def weights(self) -> str:
        """Its file in the folder of students; "" for a control of which rows are enough."""
        return "" if self.method == LONGER else f"{self.method}/seed-{self.seed}.safetensors"


def wanted(methods: Sequence[str], seeds: int) -> list[KeptRun]:
    """The runs in the order in which they are made: what a comparison needs first comes first.

    Raises ValueError for an unknown method, with near matches.
    """
    for name in methods:
        if name not in METHODS:
            raise unknown_name("method with kept students", name, METHODS)
    return [
        KeptRun(name, seed)
        for together in ORDER
        for seed in range(check_seeds(seeds))
        for name in together
        if name in methods
    ]


def check_seeds(seeds: int) -> int:
    """The number of seeds; ValueError for none, or more than the study has."""
    check_whole(1, 10, seeds=seeds)
    return seeds


@dataclass(frozen=True)
class KeptStudents:
    """A budget, and where its rows (out), its students (students) and the teacher's outputs (cache) go."""

    out: Path
    students: Path
    cache: Path
    budget: Budget = field(default_factory=Budget)

    @property
    def path(self) -> Path:
        """The file of the rows."""
        return self.budget.path("students", self.out)

    @cached_property
    def _study(self) -> Results:
        budget = self.budget
        options = {"student": budget.student, "teacher": budget.teacher, "images": budget.images or 55_000}
        return study.results("methods", folder=older_search.folder(), **options)  # type: ignore[arg-type]

    def config(self, run: KeptRun) -> RunConfig:
        """The run of the study that this one repeats, with the settings that were chosen on validation."""
        name = "hard" if run.method == LONGER else run.method
        return RunConfig.from_row(self._study.runs(name)[run.seed])

    def budget_of(self, run: KeptRun) -> Budget:
        """The budget of a run: that of the study, or with further epochs."""
        epochs = self.budget.epochs + FURTHER_EPOCHS * (run.method == LONGER)
        return replace(self.budget, epochs=epochs)

    def make(self, runs: Iterable[KeptRun], command: str, log: Callable[[str], object] = print) -> list[dict[str, str]]:
        """Train and save what is missing, and return all rows of the file.

        Raises ValueError while another process writes to the file, OSError where a file cannot be written.
        """
        with RunsFile(self.path, COLUMNS, log).open() as file:
            finished = {(row["method"], row["seed"]) for row in file.rows}
            missing = [run for run in runs if (run.method, str(run.seed)) not in finished]
            session = SessionLog(self.path, command, len(file.rows)) if missing else None
            for budget, of_budget in groupby(missing, key=self.budget_of):
                experiment = Experiment(budget, self.cache)
                teacher = train.evaluate(experiment.reference, experiment.data.test, precision="fp32")
                for _, of_seed in groupby(of_budget, key=lambda run: run.seed):
                    together = list(of_seed)
                    with experiment.seed_runner([self.config(run) for run in together], self.path) as runner:
                        for run in together:
                            row = self._row(run, runner, teacher)
                            file.append(row)
                            assert session is not None
                            session.write(len(file.rows))
                            score = row.get("error") or f"{row['test_accuracy']:.2%}"
                            log(f"{run.method}, seed {run.seed}: {score} in {row['seconds']:.0f} s")
            rows = file.rows
            self._complete_answers(rows)
        update_readme(self.out)
        return rows

    def _complete_answers(self, rows: Iterable[dict[str, str]]) -> None:
        """Write what each kept student answers for each test image, where that is not known yet."""
        answers = PredictionsFile(self.path)
        for row in rows:
            if row["weights"] and not row["error"] and answers.predicted(row["fingerprint"]) is None:
                test = load(self.budget.data).test
                logits = train.evaluate(models.load(self.students / row["weights"]), test, precision="fp32").logits
                answers.add(row["fingerprint"], logits.argmax(1), test.labels)

    def _row(self, run: KeptRun, runner: SeedRunner, teacher: train.Metrics) -> dict[str, Any]:
        """Train one student, save it, and say what the saved weights do."""
        experiment, config = runner.experiment, replace(self.config(run), study="students", method=run.method)
        row = config.to_row(experiment.budget) | {"weights": run.weights}
        row |= {"device": str(experiment.device_config), "threads": torch.get_num_threads()}
        row |= versions()
        row["fingerprint"] = experiment.run_fingerprint(config)
        runner.teacher(config.spec.teacher)  # before the clock starts
        started = time.perf_counter()
        try:
            result = runner.fit(config)
        except FloatingPointError as error:
            return row | {"error": str(error), "seconds": round(time.perf_counter() - started, 1)}
        row["seconds"] = round(time.perf_counter() - started, 1)
        student = self._kept(result.student, run)
        return row | measured(student, experiment, teacher)

    def _kept(self, student: nn.Module, run: KeptRun) -> nn.Module:
        """The student as its file holds it; what has no file is returned as it is."""
        if not run.weights:
            return student
        path = self.students / run.weights
        models.save(student, path, half=True, method=run.method, seed=run.seed)
        return models.load(path)


def measured(student: nn.Module, experiment: Experiment, teacher: train.Metrics) -> dict[str, float]:
    """What a student makes of validation and test images, in float32."""
    data = experiment.data
    test = train.evaluate(student, data.test, precision="fp32")
    return {
        "validation_accuracy": train.evaluate(student, data.validation, precision="fp32").accuracy,
        "test_accuracy": test.accuracy,
        "teacher_accuracy": teacher.accuracy,
        "agreement": measure.agreement(test.logits, teacher.logits),
        "calibration_error": measure.calibration_error(test.logits, data.test.labels),
    }


def kept_students(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds of the study: 0, 1, ...")] = 5,
    only: Annotated[list[str] | None, typer.Option(help="One method; repeat it for more. Default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the rows; default: data/results.")] = None,
    students: Annotated[Path | None, typer.Option(help="Folder of the weights; default: data/students.")] = None,
    cache: Annotated[Path, typer.Option(help="Scratch folder for the teacher's outputs.")] = Path("runs/students"),
) -> None:
    """Train the students of the study once more and keep their weights.

    Stopped at any moment, the same command goes on with what is missing.
    """
    command = called("course.experiments.kept_students")
    experiment = KeptStudents(out or data_dir() / "results", students or data_dir() / "students", cache)
    try:
        experiment.make(wanted(only or METHODS, seeds), command, log=partial(print, flush=True))
    except KeyboardInterrupt:
        told = "Stopped. The same command goes on with what is missing, and uses what this one has left in"
        print(f"\n{told} {cache}.", file=sys.stderr)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    run_command(kept_students=kept_students)
