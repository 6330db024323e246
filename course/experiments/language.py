"""What a small language model learns from a large one: seven ways, on surnames.

    python -m course.experiments.language

Ways differ in the names that the student reads (real ones, the teacher's, or its own) and in the loss at each letter
(the letter that follows, forward KL or reverse KL). Each way makes the same number of steps, with batches of the same
size. Its learning rate is the best of the same six, by the nats of the validation names, with a seed that no run has.
The runs of a seed share the student's initial weights. The test names are read once, at the end of each run.

Stopped at any moment, the same command goes on with what is missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from course import language
from course.experiments.command import called, run_command
from course.experiments.rows import make_missing, versions
from course.language import NameModel
from course.language.networks import STUDENT_WIDTH
from course.language.surnames import Batch
from kdlib import losses
from kdlib.data import data_dir
from kdlib.errors import check_whole
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, holds

STEPS, BATCH = 500, 128
RATES = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
SEEDS, TUNING_SEED = 5, 1_000  # the second is none of the first
DRAWN = 4_000  # names drawn from teacher and student to measure with
POSITIONS = 10  # tokens of which the divergence is kept one by one; few names are longer
DIRECTIONS, WHAT, LETTERS = ("forward", "reverse"), ("by_position", "per_token"), ("teacher", "own")
_KEY_COLUMNS = ("way", "student_width", "steps", "batch_size", "learning_rate", "seed")
_PROCESS_COLUMNS = ("seconds", "threads", "kdlib", "torch")
TRIAL_COLUMNS = (*_KEY_COLUMNS, "validation_nats", *_PROCESS_COLUMNS)
COLUMNS = (
    *_KEY_COLUMNS,
    *("test_nats", "forward_kl", "reverse_kl", "teacher_nats", "in_list", "distinct"),
    *(f"{direction}_{what}_{letters}" for direction in DIRECTIONS for what in WHAT for letters in LETTERS),
    *_PROCESS_COLUMNS,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # the student's logits, the teacher's, and the labels of a batch


# --- losses of a batch: logits B x L x tokens, labels B x L


def hard_labels(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy with the letters that follow; the teacher has no part in it."""
    return F.cross_entropy(student.flatten(0, 1), labels.flatten(), ignore_index=language.HIDDEN)


def forward_kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The mean of KL(teacher || student) over the tokens, without padding."""
    counts = labels != language.HIDDEN
    return losses.kd(student[counts], teacher[counts], 1.0)


def reverse_kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The mean of KL(student || teacher) over the tokens, without padding."""
    return forward_kl(teacher, student, labels)


# --- ways


@dataclass(frozen=True)
class Way:
    """One way of teaching. names: those that the student reads, "real", "teacher's" or "own". loss: at each token."""

    names: str
    loss: Loss


HARD, SEQUENCE = "hard labels", "sequence-level"
FORWARD, REVERSE, FORWARD_TEACHERS = "forward KL, real names", "reverse KL, real names", "forward KL, teacher's names"
FORWARD_OWN, REVERSE_OWN = "forward KL, own names", "reverse KL, own names"
WAYS = {
    HARD: Way("real", hard_labels),
    SEQUENCE: Way("teacher's", hard_labels),
    FORWARD: Way("real", forward_kl),
    REVERSE: Way("real", reverse_kl),
    FORWARD_TEACHERS: Way("teacher's", forward_kl),
    FORWARD_OWN: Way("own", forward_kl),
    REVERSE_OWN: Way("own", reverse_kl),
}


@lru_cache(maxsize=1)
def real_names() -> Batch:
    """The training names as tokens."""
    return language.batch_of(language.load_surnames().train)


@lru_cache(maxsize=1)
def teachers_names() -> Batch:
    """As many names drawn from the teacher."""
    return language.draw(language.load_teacher(), len(language.load_surnames().train), seed=1)


def batches_for(names: str, student: NameModel, steps: int, seed: int) -> Iterator[Batch]:
    """The batches of a run; its own names are drawn from the student as it is at each step."""
    if names == "own":
        generator = torch.Generator().manual_seed(seed)
        return (language.draw(student, BATCH, generator) for _ in range(steps))
    return language.random_batches(real_names() if names == "real" else teachers_names(), BATCH, steps, seed)


def fit(way: str, rate: float, seed: int = 0, steps: int = STEPS) -> NameModel:
    """Train a student, a GRU of width 10, by one of WAYS; AdamW, and a learning rate that rises and falls."""
    student, teacher, chosen = language.build(STUDENT_WIDTH, seed), language.load_teacher(), WAYS[way]
    optimizer = torch.optim.AdamW(student.parameters(), rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for batch in batches_for(chosen.names, student, steps, seed):
        logits = student(batch["inputs"])
        taught = logits if chosen.loss is hard_labels else language.logits_of(teacher, batch)
        loss = chosen.loss(logits, taught, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return student.eval()


# --- measures


def nats_a_name(model: NameModel, names: Sequence[str]) -> float:
    """The mean of -log probability over names that are given."""
    batch = language.batch_of(names)
    return language.nats(language.logits_of(model, batch), batch["labels"]).double().mean().item()


@lru_cache(maxsize=1)
def _of_teacher() -> tuple[Batch, Tensor]:
    """Names that measure all students, drawn from the teacher, and what it says of them."""
    batch = language.draw(language.load_teacher(), DRAWN, seed=2)
    return batch, language.logits_of(language.load_teacher(), batch)


@lru_cache(maxsize=1)
def _listed() -> frozenset[str]:
    names = language.load_surnames()
    return frozenset(names.train + names.validation + names.test)


def measure(student: NameModel, seed: int) -> dict[str, Any]:
    """What a row says of a trained student; seed: of the names that are drawn from it."""
    theirs, t_on_theirs = _of_teacher()
    s_on_theirs = language.logits_of(student, theirs)
    own = language.draw(student, DRAWN, seed=3 + seed)
    s_on_own, t_on_own = (language.logits_of(model, own) for model in (student, language.load_teacher()))
    names = language.spell(own)
    row: dict[str, Any] = {
        "test_nats": nats_a_name(student, language.load_surnames().test),
        "forward_kl": language.divergence(t_on_theirs, s_on_theirs, theirs["labels"]),
        "reverse_kl": language.divergence(s_on_own, t_on_own, own["labels"]),
        "teacher_nats": language.nats(t_on_own, own["labels"]).double().mean().item(),
        "in_list": sum(name in _listed() for name in names) / DRAWN,
        "distinct": len(set(names)) / DRAWN,
    }
    sides = {"teacher": (t_on_theirs, s_on_theirs, theirs["labels"]), "own": (t_on_own, s_on_own, own["labels"])}
    for letters, (t, s, labels) in sides.items():
        row |= after_letters("forward", letters, language.token_divergence(t, s, labels), labels)
        row |= after_letters("reverse", letters, language.token_divergence(s, t, labels), labels)
    return row


def after_letters(direction: str, letters: str, values: Tensor, labels: Tensor) -> dict[str, Any]:
    """The columns of one direction of the divergence, after letters of the teacher's or of the student's own."""
    positions = language.by_position(values, labels)[:POSITIONS].tolist()
    mean = values.double().sum() / (labels != language.HIDDEN).sum()
    return {
        f"{direction}_by_position_{letters}": " ".join(f"{value:.4f}" for value in positions),
        f"{direction}_per_token_{letters}": mean.item(),
    }


# --- trials and runs


@dataclass(frozen=True)
class Run:
    """One student: which way, at which learning rate, which seed."""

    way: str
    rate: float
    seed: int

    def columns(self) -> dict[str, Any]:
        """What the row says of the settings."""
        shared = {"way": self.way, "student_width": STUDENT_WIDTH, "steps": STEPS, "batch_size": BATCH}
        return shared | {"learning_rate": self.rate, "seed": self.seed}


def execute(run: Run, *, test: bool) -> dict[str, Any]:
    """Train one student; the row has what `measure` finds, or of a trial the nats of the validation names."""
    started = time.perf_counter()
    student = fit(run.way, run.rate, run.seed)
    if test:
        found = measure(student, run.seed)
    else:
        found = {"validation_nats": nats_a_name(student, language.load_surnames().validation)}
    seconds = round(time.perf_counter() - started, 1)
    return run.columns() | found | {"seconds": seconds, "threads": torch.get_num_threads()} | versions()


def best_rate(rows: Sequence[dict[str, str]], way: str) -> float:
    """The learning rate with the fewest nats on validation; ValueError where training diverged at each."""
    own = [row for row in rows if row["way"] == way]
    found = {float(row["learning_rate"]): float(row["validation_nats"]) for row in own}
    finite = {rate: nats for rate, nats in found.items() if math.isfinite(nats)}
    if not finite:
        raise ValueError(f"Trials of {way!r} diverged at every learning rate. Give it smaller ones.")
    return min(finite, key=lambda rate: finite[rate])


def path_in(folder: Path, *, trials: bool = False) -> Path:
    """The file of the runs, or of the trials."""
    return folder / ("language-trials.csv" if trials else "language.csv")


def run_all(seeds: int, out: Path, command: str, log: Callable[[str], object] = print) -> list[dict[str, str]]:
    """Make all trials and runs that are missing; returns the rows of the runs."""
    check_whole(1, TUNING_SEED, seeds=seeds)
    trials, runs = RunsFile(path_in(out, trials=True), TRIAL_COLUMNS, log), RunsFile(path_in(out), COLUMNS, log)
    with trials.open():
        wanted = [Run(way, rate, TUNING_SEED) for way in WAYS for rate in RATES]
        _make(trials, wanted, command, log, "validation_nats")
        rates = {way: best_rate(trials.rows, way) for way in WAYS}
    with runs.open():
        wanted = [Run(way, rates[way], seed) for seed in range(seeds) for way in WAYS]
        _make(runs, wanted, command, log, "test_nats")
    update_readme(out)
    return runs.rows


def _make(file: RunsFile, wanted: Sequence[Run], command: str, log: Callable[[str], object], score: str) -> None:
    def describe(run: Run, row: dict[str, Any]) -> str:
        return f"{run.way}, {run.rate:g}, seed {run.seed}: {row[score]:.2f} nats in {row['seconds']:.1f} s"

    missing = [run for run in wanted if not holds(file.rows, run.columns())]
    make_missing(file, missing, partial(execute, test=score == "test_nats"), describe, command, log)


def language_command(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ... Give more to add some.")] = SEEDS,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
) -> None:
    """Teach small language models in seven ways. Stopped at any moment, the same command goes on."""
    torch.set_num_threads(1)  # for networks this small, several threads mostly wait for each other
    command = called("course.experiments.language")
    run_all(seeds, out or data_dir() / "results", command, log=partial(print, flush=True))


if __name__ == "__main__":
    run_command(language=language_command)
