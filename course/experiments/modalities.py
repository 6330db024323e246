"""What pairs without labels are worth: a teacher that sees one modality, a student that sees another, few labels.

    python -m course.experiments.modalities            the arms and controls: data/results/modalities.csv
    python -m course.experiments.modalities --grid     labels x wrong pairs x temperature: modalities-grid.csv

There are five splits of the data, a run of each arm in each of them. In the five, each person is tested once, by
networks that have seen nothing of this person. All runs of a split share the labels that may be seen, the teacher, and
the students' initial weights. Every arm makes the same number of steps. Each run tries the same learning rates (and
those with a weight that nobody knows, features and relations, two weights), takes the one that is best on the
validation persons, and reads the test persons once. The cells of the grid take over the rate of "pairs" in their split.

Stopped at any moment, the same command goes on with what is missing.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from course.experiments.command import called, run_command
from course.experiments.rows import make_missing, versions
from kdlib import train
from kdlib.adapters import Adapter
from kdlib.data import PairedBatches, PairedData, PairedDataset, data_dir, labelled_cross_entropy, load_paired
from kdlib.errors import check_whole
from kdlib.methods import Feature, HardLabels, Logit, Method, Relation
from kdlib.recipes import Recipe
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, holds, to_text

STEPS, BATCH, LABELLED = 200, 64, 32
RATES = (0.003, 0.01, 0.03)
PER_CLASS = 2
ALL = 0  # labels per class: all of them
TEMPERATURE, ALPHA = 2.0, 0.5
EVERYBODY, FIRST_HALF, SECOND_HALF = PERSONS = ("everybody", "first half", "second half")  # of the training persons
COLUMNS = (
    *("data", "teacher_field", "student_field", "arm", "labels", "shuffled", "temperature", "split", "steps"),
    *("learning_rate", "weight", "validation_accuracy", "test_accuracy", "by_person", "seconds", "kdlib", "torch"),
)


# --- networks


def summary(windows: Tensor) -> Tensor:
    """Describes windows by 18 numbers an axis: level, spread, ends, speed, and how fast it swings.

    Shapes: B x A x 100 (A axes) -> B x 18 A: mean, standard deviation, least, largest, mean step, 12 frequencies up to
    3 Hz, and the product with the next axis. Nothing is learned here: with two labels a class there is not much to
    learn it from.
    """
    mean = windows.mean(2)
    centred = windows - mean[..., None]
    spectrum = torch.fft.rfft(centred, dim=2).abs()[..., 1:13] / windows.shape[2]
    steps = (windows[..., 1:] - windows[..., :-1]).abs().mean(2)
    together = (centred * centred.roll(1, 1)).mean(2)
    parts = (mean, centred.std(2), windows.amin(2), windows.amax(2), steps, spectrum.log1p().flatten(1), together)
    return torch.cat(parts, 1)


@lru_cache(maxsize=10)
def described(name: str, split: int = 0) -> PairedData:
    """A data set whose windows are replaced by their summaries; what is no window stays as it is."""

    def describe(part: PairedDataset) -> PairedDataset:
        inputs = {field: summary(one) if one.ndim == 3 else one for field, one in part.inputs.items()}
        return replace(part, inputs=inputs)

    data = load_paired(name, split)
    train_part, validation, test = map(describe, (data.train, data.validation, data.test))
    return replace(data, train=train_part, validation=validation, test=test)


def network(data: PairedData, field: str, seed: int = 0, width: int = 32) -> nn.Sequential:
    """A fresh network for one modality: two hidden layers of 32 numbers ("hidden"), and a classifier."""
    inputs = data.train.inputs[field].shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        hidden = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        return nn.Sequential(OrderedDict(hidden=hidden, classifier=nn.Linear(width, data.num_classes)))


# --- the arms


@dataclass(frozen=True)
class Pair:
    """Which modality teaches and which is taught."""

    data: str
    teacher_field: str
    student_field: str

    def __str__(self) -> str:
        return f"{self.teacher_field} -> {self.student_field}"


PAIRS = (
    Pair("shoulder-exercises", "accelerometer", "gyroscope"),
    Pair("shoulder-exercises", "gyroscope", "accelerometer"),
    Pair("digit-views", "pixels", "zernike"),
)


@dataclass(frozen=True)
class Arm:
    """One way of training a student.

    labels: of each class that may be seen, or ALL. taught: by "logits", "features" or "relations" of the teacher, by
    "itself" (a student that was trained on the few labels), or by "nobody". shuffled: share of wrong pairs. alpha: the
    weight of the labels, in a sum with logits. persons, teacher_persons: whose windows student and teacher learn: one
    of PERSONS.
    """

    name: str
    labels: int = PER_CLASS
    taught: str = "logits"
    shuffled: float = 0.0
    temperature: float = TEMPERATURE
    alpha: float = ALPHA
    smoothing: float = 0.0
    persons: str = EVERYBODY
    teacher_persons: str = EVERYBODY

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights to try of a term that has no usual one."""
        return {"features": (1.0, 10.0), "relations": (10.0, 100.0)}.get(self.taught, (1.0,))

    def method(self, weight: float) -> Method:
        """What the student is trained by."""
        if self.smoothing:
            return HardLabels(self.smoothing)
        labels = HardLabels(hard=labelled_cross_entropy)
        if self.taught == "features":
            return labels + weight * Feature({"hidden": "hidden"})
        if self.taught == "relations":
            return labels + weight * Relation({"hidden": "hidden"}, "rkd_distance")
        if self.taught == "nobody":
            return labels
        return Logit(self.temperature, self.alpha, hard=labelled_cross_entropy)


TEACHER = Arm("teacher", labels=ALL, taught="nobody")
FEW, PAIRED, WRONG, EVERY, BOTH = "few labels", "pairs", "wrong pairs", "all labels", "all labels and pairs"
ARMS = (
    Arm(FEW, taught="nobody"),
    Arm(PAIRED),
    Arm(WRONG, shuffled=1.0),
    Arm(EVERY, labels=ALL, taught="nobody"),
    Arm(BOTH, labels=ALL),
    Arm("label smoothing", taught="nobody", smoothing=0.1),
    Arm("self-training", taught="itself"),
    Arm("pairs without labels", alpha=0.0),
    Arm("features", taught="features"),
    Arm("relations", taught="relations"),
)
HALF_FEW, HALF_PAIRS, HALF_OTHERS = "three persons", "three persons, pairs", "three persons, pairs, teacher of others"
HALVES = (  # is a teacher that has not learned these very windows worth as much?
    Arm(HALF_FEW, taught="nobody", persons=SECOND_HALF),
    Arm(HALF_PAIRS, persons=SECOND_HALF, teacher_persons=SECOND_HALF),
    Arm(HALF_OTHERS, persons=SECOND_HALF, teacher_persons=FIRST_HALF),
)
SHARES, TEMPERATURES, LABELS = (0.0, 0.25, 0.5, 0.75, 1.0), (1.0, 2.0, 4.0, 8.0), (PER_CLASS, 10, ALL)
GRID = tuple(
    Arm("grid", labels=labels, shuffled=share, temperature=temperature)
    for labels, share, temperature in product(LABELS, SHARES, TEMPERATURES)
)


# --- one run


def of_persons(dataset: PairedDataset, persons: str) -> PairedDataset:
    """The windows of one of PERSONS; the halves have no person in common. Raises ValueError where none are known."""
    if persons == EVERYBODY:
        return dataset
    if dataset.groups is None:
        raise ValueError("The persons of this data set are not known, so it has no halves.")
    known = dataset.groups.unique()
    chosen = known[: len(known) // 2] if persons == FIRST_HALF else known[len(known) // 2 :]
    return dataset.select(torch.isin(dataset.groups, chosen).nonzero()[:, 0])


def batches_for(arm: Arm, dataset: PairedDataset, split: int, field: str) -> PairedBatches:
    """The batches of an arm; field: the teacher's, which wrong pairs get from another sample."""
    if arm.labels == ALL:
        seen = dataset
    else:
        seen = dataset.few_labels(arm.labels, seed=split)
        if arm.taught == "nobody":
            return seen.select(seen.labelled).batches(LABELLED, steps=STEPS)
    seen = seen.shuffle_pairs(field, arm.shuffled, seed=split)
    if arm.labels == ALL or (arm.alpha == 0 and arm.taught == "logits"):
        return seen.batches(BATCH + LABELLED, steps=STEPS)
    return seen.batches(BATCH, labelled=LABELLED, steps=STEPS)


def fit(
    arm: Arm, pair: Pair, split: int, rate: float, weight: float = 1.0, teacher: nn.Module | None = None
) -> nn.Module:
    """Train one student; teacher: what teaches it, if anything does."""
    data = described(pair.data, split)
    student = network(data, pair.student_field, seed=split)
    teacher_field = pair.student_field if arm.taught == "itself" else pair.teacher_field
    train.fit(
        student,
        batches_for(arm, of_persons(data.train, arm.persons), split, pair.teacher_field),
        teacher=teacher,
        method=arm.method(weight),
        adapter=Adapter(inputs=pair.student_field, teacher_inputs=teacher_field),
        recipe=Recipe("adamw", rate, weight_decay=0.01),
        epochs=1,
        seed=split,
        device="cpu",
        precision="fp32",
        progress=False,
    )
    return student


@torch.no_grad()
def right(model: nn.Module, dataset: PairedDataset, field: str) -> Tensor:
    """Which samples of a split a model classifies rightly: bool, N."""
    return model(dataset.inputs[field]).argmax(1) == dataset.labels


def best_of_trials(
    arm: Arm, pair: Pair, split: int, rates: Sequence[float], teacher: nn.Module | None
) -> tuple[nn.Module, float, float, float]:
    """The student that is best on validation, of equals the first; its rate, weight and validation accuracy."""
    validation = described(pair.data, split).validation
    found: list[tuple[nn.Module, float, float, float]] = []
    for rate, weight in product(rates, arm.weights):
        student = fit(arm, pair, split, rate, weight, teacher)
        accuracy = right(student, validation, pair.student_field).double().mean().item()
        found.append((student, rate, weight, accuracy))
    return max(found, key=lambda one: one[3])


@lru_cache(maxsize=8)
def teacher_for(pair: Pair, split: int, persons: str = EVERYBODY) -> tuple[nn.Module, float, float, float]:
    """The teacher of a split, with all labels of its modality: model, rate, weight, validation accuracy."""
    own = Pair(pair.data, pair.teacher_field, pair.teacher_field)
    return best_of_trials(replace(TEACHER, persons=persons), own, split, RATES, None)


@lru_cache(maxsize=4)
def few_label_student(pair: Pair, split: int) -> nn.Module:
    """The student on few labels, which teaches in self-training."""
    return best_of_trials(ARMS[0], pair, split, RATES, None)[0]


def execute(arm: Arm, pair: Pair, split: int, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """Train by one arm in one split, and read the test samples once; the row of the table."""
    started = time.perf_counter()
    field = pair.student_field
    if arm is TEACHER:
        field = pair.teacher_field
        model, rate, weight, validation = teacher_for(pair, split)
    else:
        by_teacher = arm.taught in ("logits", "features", "relations")
        teacher = teacher_for(pair, split, arm.teacher_persons)[0] if by_teacher else None
        teacher = few_label_student(pair, split) if arm.taught == "itself" else teacher
        model, rate, weight, validation = best_of_trials(arm, pair, split, rates, teacher)
    test = described(pair.data, split).test
    correct = right(model, test, field).double()
    persons = (
        {} if test.groups is None else {int(one): correct[test.groups == one].mean() for one in test.groups.unique()}
    )
    return {
        **key_of(arm, pair, split),
        "learning_rate": rate,
        "weight": weight,
        "validation_accuracy": round(validation, 6),
        "test_accuracy": round(correct.mean().item(), 6),
        "by_person": " ".join(f"{person}:{accuracy:.6f}" for person, accuracy in persons.items()),
        "seconds": round(time.perf_counter() - started, 1),
        **versions(),
    }


def key_of(arm: Arm, pair: Pair, split: int) -> dict[str, Any]:
    """The columns that tell runs apart."""
    own = {"arm": arm.name, "labels": arm.labels, "shuffled": arm.shuffled, "temperature": arm.temperature}
    return {**vars(pair), **own, "split": split, "steps": STEPS}


# --- all of them


def path_in(folder: Path, *, grid: bool = False) -> Path:
    """The file of the runs."""
    return folder / ("modalities-grid.csv" if grid else "modalities.csv")


def run_all(
    folder: Path, command: str, *, grid: bool = False, splits: int = 5, log: Callable[[str], object] = print
) -> list[dict[str, str]]:
    """Execute the runs that are missing; returns all rows of the file.

    Raises ValueError for a number of splits that there is not, and for a grid whose rates are not known yet.
    """
    check_whole(1, 5, splits=splits)
    file = RunsFile(path_in(folder, grid=grid), COLUMNS, log)
    with file.open():
        wanted = [(arm, pair, split) for split in range(splits) for pair, arm in _work(grid)]
        missing = [one for one in wanted if not _is_in(one, file.rows)]
        rates = rates_of_pairs(folder) if grid and missing else {}

        def make(one: tuple[Arm, Pair, int]) -> dict[str, Any]:
            arm, pair, split = one
            return execute(arm, pair, split, (rates[split],) if grid else RATES)

        make_missing(file, missing, make, _describe, command, log)
    update_readme(folder)
    return file.rows


def _describe(one: tuple[Arm, Pair, int], row: dict[str, Any]) -> str:
    arm, pair, split = one
    name = f"split {split}, {pair}, {arm.name} {arm.labels} {arm.shuffled:g} {arm.temperature:g}"
    return f"{name}: {row['test_accuracy']:.1%} in {row['seconds']:.0f} s"


def _work(grid: bool) -> list[tuple[Pair, Arm]]:
    if grid:
        return [(PAIRS[0], arm) for arm in GRID]
    first = [TEACHER, *ARMS, Arm(FEW, labels=10, taught="nobody")]  # the last for the grid, to compare with
    short = [arm for arm in ARMS if arm.name in (FEW, PAIRED, WRONG, EVERY, BOTH)]  # of the digits, which need no more
    arms = dict(zip(PAIRS, (first, [TEACHER, *ARMS], [TEACHER, *short]), strict=True))
    return [(pair, arm) for pair in PAIRS for arm in arms[pair]] + [(PAIRS[0], arm) for arm in HALVES]


def _is_in(one: tuple[Arm, Pair, int], rows: Sequence[dict[str, str]]) -> bool:
    return holds(rows, key_of(*one))


def rates_of_pairs(folder: Path) -> dict[int, float]:
    """By split, the learning rate of the arm "pairs" from accelerometer to gyroscope.

    Raises ValueError while one is missing.
    """
    from kdlib.study.runs_file import read_rows

    wanted = {name: to_text(value) for name, value in vars(PAIRS[0]).items()} | {"arm": PAIRED}
    rows = [row for row in read_rows(path_in(folder)) if wanted.items() <= row.items()]
    rates = {int(row["split"]): float(row["learning_rate"]) for row in rows}
    if len(rates) < 5:
        raise ValueError(
            f"{path_in(folder)} does not hold the five splits of {PAIRED!r} yet, whose learning rates the grid takes "
            f"over. Run python -m course.experiments.modalities --out {folder} first."
        )
    return rates


def modalities(
    grid: Annotated[bool, typer.Option("--grid", help="Labels x wrong pairs x temperature.")] = False,
    splits: Annotated[int, typer.Option(min=1, max=5, help="How many of the five splits.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
) -> None:
    """Train students of one modality by teachers of another, and the controls."""
    command = called("course.experiments.modalities")
    torch.set_num_threads(1)  # the networks are too small to gain by more
    run_all(out or data_dir() / "results", command, grid=grid, splits=splits, log=partial(print, flush=True))


if __name__ == "__main__":
    run_command(modalities=modalities)
