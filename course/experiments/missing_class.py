"""What teaches a student a class that it never saw? The missing class with three kinds of soft labels: a row a run.

    python -m course.experiments.missing_class

The student is lesson 03's own, the article's, trained as there: three epochs of AdamW on images as they are. With
--student resnet8, runs repeat those of `kdlib study missing-class --left-out 0` (alpha 0, T 4): same images, order,
views, initial weights and settings. Only what the teacher says is changed:

    soft labels      nothing: the teacher's own answers
    shuffled logit   within each class of labels, the teacher's logits for the missing class are exchanged between the
                     images; all other logits stay where they belong
    class means      every image of a class gets the same soft label, the mean of all soft labels of that class
    hard labels      the same run without a teacher

If pictures teach the class one by one, the shuffled logit must lose it; if the likeness of classes is enough, class
means must keep it. A row has the share of the missing class that is recognised on the test split, as trained and after
a constant was added to its logit, the one that gives the best accuracy for all classes on the validation split.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import Tensor

from course.experiments.command import called, run_command
from course.experiments.rows import refuse_twice, versions
from kdlib import data, losses, measure, train, verdict
from kdlib.data import IndexedDataset, data_dir
from kdlib.errors import check_whole, unknown_name
from kdlib.hooks import ModelOutput
from kdlib.study import method_specs
from kdlib.study.experiment import Experiment, SeedGroup, SeedRunner, derangement
from kdlib.study.method_specs import Settings, TeacherKind
from kdlib.study.plans import Budget, RunConfig
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, SessionLog, holds, read_rows
from kdlib.teachers import CachedTeacher, Teacher

if TYPE_CHECKING:
    import pandas as pd

STUDY, SOFT_RUN, HARD_RUN = "missing-class", "kd alpha=0 T=4", "hard"  # the study's runs that are repeated
SOFT, SHUFFLED, MEANS, HARD = "soft labels", "shuffled logit", "class means", "hard labels"
LABELS = (SOFT, SHUFFLED, MEANS, HARD)
SMALL = "article-student"
BUDGETS = {SMALL: Budget(student=SMALL, epochs=3, views=1), "resnet8": Budget()}
SMALL_RATE = 0.01  # of three that were tried on the validation split the best, for hard and for soft labels
CONSTANTS = torch.arange(0, 50, 0.2)  # as in lesson 03
BUDGET_COLUMNS = ("data", "student", "teacher", "images", "epochs", "views", "excluded_class")
COLUMNS = (
    *(*BUDGET_COLUMNS, "labels", "seed", "learning_rate", "weight_decay", "alpha", "temperature"),
    *("recognised", "others", "constant", "recognised_with", "others_with"),
    *("seconds", "device", "threads", "kdlib", "torch"),
)


# --- what the teacher says


def shuffle_logit(logits: Tensor, labels: Tensor, missing: int, seed: int) -> Tensor:
    """The same logits; those for one class are exchanged between images of the same label, alike in all views.

    logits: V x N x C. labels: N, each at least twice. Raises ValueError for a label that occurs once.
    """
    changed = logits.clone()
    for label in labels.unique():
        places = (labels == label).nonzero()[:, 0]
        changed[:, places, missing] = logits[:, derangement(places, seed), missing]
    return changed


def class_means(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Logits that soften, at this temperature, to the mean soft label of each image's class over all its views.

    logits: V x N x C. labels: N.
    """
    soft = losses.soften(logits, temperature)
    means = torch.zeros_like(logits)
    for label in labels.unique():
        means[:, labels == label] = temperature * soft[:, labels == label].mean(dim=(0, 1)).log()
    return means


class Changed(Teacher):
    """Stored answers after a change that sees all of them: `change` maps logits V x N x C and labels N to logits."""

    def __init__(
        self,
        stored: CachedTeacher,
        dataset: IndexedDataset,
        augmentation: data.Augmentation,
        seed: int,
        change: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.stored, self.views = stored, stored.views
        options: dict[str, Any] = {"augmentation": augmentation, "seed": seed}
        batches = [next(dataset.iter_batches(len(dataset), view=view, **options)) for view in range(stored.views or 1)]
        self._answers = change(torch.stack([stored(batch).logits for batch in batches]), batches[0].labels)
        self._rows = torch.full((int(dataset.indices.max()) + 1,), -1)
        self._rows[batches[0].indices] = torch.arange(len(dataset))

    def __call__(self, batch: Any, layers: Sequence[str] | None = None) -> ModelOutput:
        rows = self._rows[batch.indices.cpu()]
        return ModelOutput(self._answers[batch.view, rows].to(batch.images.device), {})

    def check_compatible(self, dataset: IndexedDataset, augmentation: data.Augmentation, seed: int) -> None:
        """Raise ValueError unless there are answers to these images."""
        self.stored.check_compatible(dataset, augmentation, seed)


# --- what is measured


def with_constant(logits: Tensor, missing: int, constant: float) -> Tensor:
    """The logits (N x C), a constant added to those of one class."""
    changed = logits.clone()
    changed[:, missing] += constant
    return changed


def best_constant(logits: Tensor, labels: Tensor, missing: int) -> float:
    """The constant with the best accuracy over all classes, of equals the smallest. logits: N x C. labels: N."""
    scores = [measure.accuracy(with_constant(logits, missing, b), labels) for b in CONSTANTS.tolist()]
    return CONSTANTS[scores.index(max(scores))].item()


def shares(logits: Tensor, labels: Tensor, missing: int) -> tuple[float, float]:
    """Which share of the missing class, and of all other images, is recognised."""
    is_missing = labels == missing
    return tuple(measure.accuracy(logits[mask], labels[mask]) for mask in (is_missing, ~is_missing))  # type: ignore[return-value]


# --- runs


@contextmanager
def _seed_runner(experiment: Experiment, seed: int, missing: int) -> Iterator[SeedRunner]:
    outputs = experiment.cache / f"{experiment.budget.student}-missing-{missing}-seed{seed}"
    try:
        with closing(SeedRunner(experiment, SeedGroup(seed, missing, (), outputs))) as runner:
            if experiment.budget.student == SMALL:
                runner.data = replace(runner.data, augmentation=data.NO_AUGMENTATION)
            yield runner
    finally:
        shutil.rmtree(outputs, ignore_errors=True)


def teacher_for(labels: str, runner: SeedRunner, config: RunConfig) -> Teacher | None:
    """The teacher that gives this kind of labels for the images of a seed; None for hard labels."""
    if labels == HARD:
        return None
    stored = runner.teacher(TeacherKind.REFERENCE)
    assert stored is not None
    assert config.excluded_class is not None
    if labels == SOFT:
        return stored
    change: Callable[[Tensor, Tensor], Tensor] = partial(shuffle_logit, missing=config.excluded_class, seed=config.seed)
    if labels == MEANS:
        change = partial(class_means, temperature=config.settings.temperature or 1.0)
    return Changed(stored, runner.data.train, runner.data.augmentation, config.seed, change)


def recipe_of(config: RunConfig, budget: Budget) -> train.Recipe:
    """How a student is trained."""
    if budget.student == SMALL:
        settings = config.settings
        return train.Recipe("adamw", settings.learning_rate, weight_decay=settings.weight_decay)
    return config.settings.recipe(budget.batch_size, budget.optimizer)


def execute(labels: str, runner: SeedRunner, config: RunConfig) -> dict[str, Any]:
    """Train one student and measure it; the test set is read once, at the end."""
    experiment = runner.experiment
    missing = config.excluded_class
    assert missing is not None
    teacher = teacher_for(labels, runner, config)
    started = time.perf_counter()
    few = runner.data.validation.select(torch.arange(min(100, len(runner.data.validation))))
    result = train.fit(
        experiment.build_student(config.seed),
        replace(runner.data, validation=few),
        teacher=teacher,
        method=experiment.make_method(config),
        epochs=experiment.budget.epochs,
        recipe=recipe_of(config, experiment.budget),
        augmentation=runner.data.augmentation,
        views=experiment.budget.views,
        seed=config.seed,
        test=False,
        progress=False,
        **experiment.device_options,
    )
    validation, test = experiment.data.validation, experiment.data.test
    found = train.evaluate(result.student, validation, **experiment.device_options).logits
    constant = best_constant(found, validation.labels, missing)
    logits = train.evaluate(result.student, test, **experiment.device_options).logits
    recognised, others = shares(logits, test.labels, missing)
    recognised_with, others_with = shares(with_constant(logits, missing, constant), test.labels, missing)
    return columns_of(labels, config, experiment.budget) | {
        "recognised": recognised,
        "others": others,
        "constant": round(constant, 1),
        "recognised_with": recognised_with,
        "others_with": others_with,
        "seconds": round(time.perf_counter() - started, 1),
        "device": str(experiment.device_config),
        "threads": torch.get_num_threads(),
        **versions(),
    }


def columns_of(labels: str, config: RunConfig, budget: Budget) -> dict[str, Any]:
    """What a row says of its settings."""
    row = config.to_row(budget)
    wanted = (*BUDGET_COLUMNS, "seed", "learning_rate", "weight_decay", "alpha", "temperature")
    return {"labels": labels} | {name: row[name] for name in wanted}


def run(
    budget: Budget,
    missing: int,
    seeds: int,
    labels: Sequence[str],
    *,
    source: Path,
    out: Path,
    cache: Path,
    command: str,
    log: Callable[[str], object] = print,
) -> list[dict[str, str]]:
    """All runs that are missing, one kind of labels after the other within a seed; returns all rows of the file.

    source: the folder with the study's rows, whose settings are taken. Raises FileNotFoundError or ValueError where
    these lack a seed, ValueError for unknown labels and while another process writes to the file.
    """
    check_whole(seeds=seeds)
    unknown = [name for name in labels if name not in LABELS]
    if unknown:
        raise ValueError(f"There are no labels {unknown[0]!r}; there are: {', '.join(LABELS)}.")
    small = budget.student == SMALL
    configs = small_configs(missing, seeds) if small else study_configs(budget.path(STUDY, source), missing, seeds)
    experiment = Experiment(budget, cache)
    file = RunsFile(budget.path("missing-class-labels", out), COLUMNS, log)
    with file.open():
        session: SessionLog | None = None
        for seed in range(seeds):
            wanted = {kind: configs[HARD_RUN if kind == HARD else SOFT_RUN][seed] for kind in labels}
            left = {kind: one for kind, one in wanted.items() if not _is_there(kind, one, budget, file.rows)}
            if not left:
                continue
            session = session or SessionLog(file.path, command, len(file.rows))
            with _seed_runner(experiment, seed, missing) as runner:
                for kind, config in left.items():
                    row = execute(kind, runner, config)
                    file.append(row)
                    session.write(len(file.rows))
                    shown = f"{row['recognised']:.1%}, {row['recognised_with']:.1%} with {row['constant']:g}"
                    log(f"{kind}, seed {seed}: {shown} in {row['seconds']:.0f} s")
    update_readme(out)
    return file.rows


def _is_there(labels: str, config: RunConfig, budget: Budget, rows: Sequence[dict[str, str]]) -> bool:
    return holds(rows, columns_of(labels, config, budget))


def study_configs(path: Path, missing: int, seeds: int) -> dict[str, dict[int, RunConfig]]:
    """The study's runs that are repeated here, by method and seed; ValueError where some are not there."""
    rows = [row for row in read_rows(path) if row["excluded_class"] == str(missing)]
    found = {
        name: {int(row["seed"]): RunConfig.from_row(row) for row in rows if row["method"] == name}
        for name in (SOFT_RUN, HARD_RUN)
    }
    lacking = [seed for seed in range(seeds) if not all(seed in runs for runs in found.values())]
    if lacking:
        raise ValueError(
            f"{path} has no runs of class {missing} with seed {lacking[0]}. This makes them: kdlib study {STUDY} "
            f"--left-out {missing} --seeds {seeds}"
        )
    return found


def small_configs(missing: int, seeds: int) -> dict[str, dict[int, RunConfig]]:
    """The runs of lesson 03's own student, by method and seed."""
    kinds = {
        SOFT_RUN: ("kd", Settings(learning_rate=SMALL_RATE, alpha=0.0, temperature=4.0)),
        HARD_RUN: ("hard", Settings(learning_rate=SMALL_RATE)),
    }
    return {
        name: {
            seed: RunConfig(STUDY, name, method_specs.find(spec), settings, seed, missing, "lesson 03")
            for seed in range(seeds)
        }
        for name, (spec, settings) in kinds.items()
    }


# --- what the rows say


def load(student: str = SMALL, folder: Path | None = None, missing: int = 0) -> list[dict[str, str]]:
    """The finished runs of a student without one class; FileNotFoundError if there are none."""
    path = BUDGETS[student].path("missing-class-labels", folder or data_dir() / "results")
    rows = of_class(read_rows(path), missing)
    if not rows:
        which = f"--left-out {missing}" + (f" --student {student}" if student != SMALL else "")
        raise FileNotFoundError(
            f"There are no runs without class {missing} in {path}. This makes them: python -m {__name__} {which}"
        )
    return rows


def of_class(rows: Sequence[dict[str, str]], missing: int) -> list[dict[str, str]]:
    """The runs that never saw this class: a file holds those of all."""
    return [row for row in rows if row["excluded_class"] == str(missing)]


SHARES = {  # a column of the table, and that of the rows
    "as trained": "recognised",
    "with a constant": "recognised_with",
    "others, as trained": "others",
    "others, with it": "others_with",
}


def table(rows: Sequence[dict[str, str]]) -> pd.DataFrame:
    """Per cent recognised, without and with the constant, of the missing class and of the others.

    rows: of one missing class. Means and 95 % intervals over seeds, each for itself.
    """
    import pandas as pd

    made = []
    for labels in dict.fromkeys(row["labels"] for row in rows):
        own = [row for row in rows if row["labels"] == labels]
        refuse_twice(repr(labels), [int(row["seed"]) for row in own])
        line: dict[str, Any] = {"labels": labels, "seeds": len(own)}
        for name, column in SHARES.items():
            line |= {name: interval([100 * float(row[column]) for row in own])}
        made.append(line)
    return pd.DataFrame(made).set_index("labels")


def interval(values: Sequence[float]) -> str:
    """A mean and its 95 % interval, as text."""
    mean = sum(values) / len(values)
    if len(values) < 2 or max(values) == min(values):
        return f"{mean:.1f}"
    found = verdict.compare(values, [0.0] * len(values), same_unit=True)
    return f"{mean:.1f} ± {found.high - mean:.1f}"


def missing_class(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ...")] = 5,
    missing: Annotated[int, typer.Option("--left-out", help="The class that the student never sees.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="A kind of labels; repeat it for more; default: all.")] = None,
    student: Annotated[
        list[str] | None, typer.Option(help="article-student or resnet8; repeat it; default: the first.")
    ] = None,
    source: Annotated[Path | None, typer.Option(help="Folder with the study's rows; default: data/results.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
    cache: Annotated[Path, typer.Option(help="Scratch folder for the teacher's outputs.")] = Path("runs/missing-class"),
) -> None:
    """Train students of a missing class on three kinds of soft labels; started again, it goes on."""
    results = data_dir() / "results"
    command = called("course.experiments.missing_class")
    for name in student or [SMALL]:
        if name not in BUDGETS:
            raise unknown_name("student", name, BUDGETS)
        rows = run(
            BUDGETS[name],
            missing,
            seeds,
            only or LABELS,
            source=source or results,
            out=out or results,
            cache=cache,
            command=command,
            log=lambda text: print(text, flush=True),
        )
        print(table(of_class(rows, missing)))


if __name__ == "__main__":
    run_command(missing_class=missing_class)
