"""What a tiny classifier of sentences learns from a pretrained encoder with a few labels.

    python -m course.experiments.sentences

10 or 50 definitions of each kind have labels; the other training definitions are read without. The teacher is a head on
the embeddings of a pretrained encoder, trained on the few labels. The student, a bag of pieces of words, learns from
the few labels, from the teacher's answers to all training definitions, or from all labels.

Each way of training a student has the same number of trials: six learning rates, each with six temperatures (of soft
answers) or six amounts of label smoothing (of hard ones); the teacher tries six weight decays. The control, soft
answers of another sentence, takes the settings of soft answers. The validation definitions choose, with a seed that no
run has. A seed decides which definitions have labels, and so the teacher, and the student's initial weights and
batches. The test definitions are read once, at the end of each run.

Stopped at any moment, the same command goes on with what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from course import language
from course.experiments.command import called, run_command
from course.experiments.rows import accuracy, make_missing, versions
from course.language import TinyClassifier
from kdlib import losses
from kdlib.data import data_dir
from kdlib.data.augment import permutation
from kdlib.errors import check_whole
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, holds

STEPS, BATCH = 100, 512
BUDGETS, EVERY = (10, 50), 900  # labels of each kind; the last is all that there are
RATES = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
TEMPERATURES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
SMOOTHING = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
DECAYS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SEEDS, TUNING_SEED = 5, 1_000  # the second is none of the first
TEACHER = "teacher"
FEW, HARD, SOFT = "few labels", "teacher's hard answers", "teacher's soft answers"
SHUFFLED, ALL = "soft answers of another sentence", "all labels"
WAYS = (TEACHER, FEW, HARD, SOFT, SHUFFLED, ALL)
SETTINGS = ("learning_rate", "temperature", "label_smoothing", "weight_decay")
_KEY_COLUMNS = ("way", "labels_per_kind", *SETTINGS, "seed")
_PROCESS_COLUMNS = ("seconds", "threads", "kdlib", "torch")
TRIAL_COLUMNS = (*_KEY_COLUMNS, "validation_accuracy", *_PROCESS_COLUMNS)
COLUMNS = (*_KEY_COLUMNS, "test_accuracy", "agreement", *_PROCESS_COLUMNS)


@dataclass(frozen=True)
class Run:
    """A teacher or a student: which way, with how many labels of each kind, which settings, which seed."""

    way: str
    budget: int
    seed: int
    rate: float | None = None
    temperature: float | None = None
    smoothing: float | None = None
    decay: float | None = None

    def columns(self) -> dict[str, Any]:
        """What the row says of the settings; a setting that the way does not have is None."""
        settings = (self.rate, self.temperature, self.smoothing, self.decay)
        shared = {"way": self.way, "labels_per_kind": self.budget}
        return shared | dict(zip(SETTINGS, settings, strict=True)) | {"seed": self.seed}


def grid(way: str, budget: int, seed: int) -> list[Run]:
    """The settings that a way tries."""
    if way == TEACHER:
        return [Run(way, budget, seed, decay=decay) for decay in DECAYS]
    if way == SHUFFLED:
        return []  # it takes the settings of soft answers
    if way == SOFT:
        return [Run(way, budget, seed, rate, temperature=t) for rate, t in product(RATES, TEMPERATURES)]
    return [Run(way, budget, seed, rate, smoothing=amount) for rate, amount in product(RATES, SMOOTHING)]


def arms() -> list[tuple[str, int]]:
    """The ways with their numbers of labels, in the order of the table."""
    return [*((way, budget) for budget in BUDGETS for way in WAYS if way != ALL), (ALL, EVERY)]


def labelled(budget: int, seed: int) -> Tensor:
    """The numbers of the training definitions that have a label: so many of each kind, chosen by the seed."""
    labels = language.load_definitions().train.labels
    order = permutation(torch.arange(len(labels)), "labelled", seed)
    return torch.cat([order[labels[order] == kind][:budget] for kind in range(len(language.KINDS))])


@lru_cache(maxsize=32)
def fit_teacher(budget: int, seed: int, decay: float) -> nn.Linear:
    """The teacher's head, from the embeddings of the definitions that have labels."""
    train, chosen = language.load_definitions().train, labelled(budget, seed)
    return language.fit_head(train.embeddings[chosen], train.labels[chosen], decay)


@lru_cache(maxsize=1)
def train_bags() -> Tensor:
    """The training definitions as the student reads them."""
    return language.bags(language.load_definitions().train.texts)


def fit_student(
    loss: Callable[[Tensor, Tensor], Tensor], rate: float, seed: int = 0, numbers: Tensor | None = None
) -> TinyClassifier:
    """Train a student; AdamW, and a learning rate that rises and falls.

    loss: of the student's logits and of the numbers of the training definitions that they are for. numbers: of those
    that it reads; default: all.
    """
    inputs = train_bags()
    numbers = torch.arange(len(inputs)) if numbers is None else numbers
    student = language.build_classifier(seed)
    optimizer = torch.optim.AdamW(student.parameters(), rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS)
    for batch in language.random_batches({"labels": numbers[:, None]}, BATCH, STEPS, seed):
        chosen = batch["labels"][:, 0]
        value = loss(student(inputs[chosen]), chosen)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return student.eval().requires_grad_(False)


def hard_loss(labels: Tensor, smoothing: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss by one kind for each training definition, the label or the teacher's most probable one."""
    return lambda logits, numbers: F.cross_entropy(logits, labels[numbers], label_smoothing=smoothing)


def soft_loss(answers: Tensor, temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss by a teacher's logits for each training definition."""
    return lambda logits, numbers: losses.kd(logits, answers[numbers], temperature)


def fit(run: Run, decay: float) -> nn.Module:
    """The teacher or the student of a run; decay: that of the teacher."""
    if run.way == TEACHER:
        assert run.decay is not None
        return fit_teacher(run.budget, run.seed, run.decay)
    train = language.load_definitions().train
    assert run.rate is not None
    if run.way in (FEW, ALL):
        assert run.smoothing is not None
        numbers = labelled(run.budget, run.seed) if run.way == FEW else None
        return fit_student(hard_loss(train.labels, run.smoothing), run.rate, run.seed, numbers)
    answers = fit_teacher(run.budget, run.seed, decay)(train.embeddings)
    if run.way == HARD:
        assert run.smoothing is not None
        return fit_student(hard_loss(answers.argmax(1), run.smoothing), run.rate, run.seed)
    assert run.temperature is not None
    if run.way == SHUFFLED:
        answers = answers[permutation(torch.arange(len(answers)), "another sentence", run.seed)]
    return fit_student(soft_loss(answers, run.temperature), run.rate, run.seed)


def logits_of(model: nn.Module, part: language.Part) -> Tensor:
    """What a teacher's head or a student says of a split."""
    return model(language.bags(part.texts) if isinstance(model, TinyClassifier) else part.embeddings)


def execute(run: Run, *, test: bool, decay: float = 0.0) -> dict[str, Any]:
    """Train once; the row has the test accuracy, and the agreement with the teacher, or of a trial the validation's."""
    started = time.perf_counter()
    model = fit(run, decay)
    definitions = language.load_definitions()
    if test:
        logits = logits_of(model, definitions.test)
        taught = FEW != run.way != ALL
        teacher = logits_of(fit_teacher(run.budget, run.seed, decay), definitions.test) if taught else None
        found = {
            "test_accuracy": accuracy(logits, definitions.test.labels),
            "agreement": None if teacher is None else accuracy(logits, teacher.argmax(1)),
        }
    else:
        validation = definitions.validation
        found = {"validation_accuracy": accuracy(logits_of(model, validation), validation.labels)}
    seconds = round(time.perf_counter() - started, 2)
    return run.columns() | found | {"seconds": seconds, "threads": torch.get_num_threads()} | versions()


def best(rows: Sequence[dict[str, str]], way: str, budget: int, seed: int) -> Run:
    """The run of this seed with the settings that were best on validation; of equal ones, the first of the grid."""
    tried = SOFT if way == SHUFFLED else way
    own = [row for row in rows if (row["way"], row["labels_per_kind"]) == (tried, str(budget))]
    found = max(own, key=lambda row: float(row["validation_accuracy"]))
    return Run(way, budget, seed, *(float(found[name]) if found[name] else None for name in SETTINGS))


def path_in(folder: Path, *, trials: bool = False) -> Path:
    """The file of the runs, or of the trials."""
    return folder / ("sentences-trials.csv" if trials else "sentences.csv")


def run_all(seeds: int, out: Path, command: str, log: Callable[[str], object] = print) -> list[dict[str, str]]:
    """Make all trials and runs that are missing; returns the rows of the runs."""
    check_whole(1, TUNING_SEED, seeds=seeds)
    trials, runs = RunsFile(path_in(out, trials=True), TRIAL_COLUMNS, log), RunsFile(path_in(out), COLUMNS, log)
    with trials.open():
        teachers, students = ([arm for arm in arms() if (arm[0] == TEACHER) is first] for first in (True, False))
        _make(trials, [run for arm in teachers for run in grid(*arm, TUNING_SEED)], {}, command, log)
        decays = {budget: best(trials.rows, way, budget, 0).decay or 0.0 for way, budget in teachers}
        _make(trials, [run for arm in students for run in grid(*arm, TUNING_SEED)], decays, command, log)
        wanted = [best(trials.rows, *arm, seed) for seed in range(seeds) for arm in arms()]
    with runs.open():
        _make(runs, wanted, decays, command, log)
    update_readme(out)
    return runs.rows


def _make(
    file: RunsFile, wanted: Sequence[Run], decays: Mapping[int, float], command: str, log: Callable[[str], object]
) -> None:
    score = "test_accuracy" if "test_accuracy" in file.columns else "validation_accuracy"

    def make(run: Run) -> dict[str, Any]:
        return execute(run, test=score == "test_accuracy", decay=decays.get(run.budget, 0.0))

    def describe(run: Run, row: dict[str, Any]) -> str:
        settings = " ".join(f"{name} {row[name]:g}" for name in SETTINGS if row[name] is not None)
        return f"{run.way}, {run.budget} a kind, {settings}, seed {run.seed}: {100 * row[score]:.1f} %"

    missing = [run for run in wanted if not holds(file.rows, run.columns())]
    make_missing(file, missing, make, describe, command, log)


def sentences_command(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ... Give more to add some.")] = SEEDS,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
) -> None:
    """Teach a tiny classifier of sentences in five ways. Stopped at any moment, the same command goes on."""
    torch.set_num_threads(1)  # for networks this small, several threads mostly wait for each other
    command = called("course.experiments.sentences")
    run_all(seeds, out or data_dir() / "results", command, log=partial(print, flush=True))


if __name__ == "__main__":
    run_command(sentences=sentences_command)
