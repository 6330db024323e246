"""Does a network's relation to the teacher, before any training, say how good a student it becomes? A row a network.

    python -m course.experiments.search_proxy

Fifteen thin ResNets, of five widths and three depths, are distilled (KD, T 4, alpha 0.1) with the same few images and
epochs. Before its training each gets a score that needs one batch: how alike are the relations between images in its
features and in the teacher's? This is one half of DisWOT's proxy (Dong et al. 2023, arXiv:2303.15678), which adds
semantic maps; that paper takes an untrained teacher, so the score is there for a trained and an untrained one.

The other columns are the comparators, MACs and parameters: a score that ranks networks no better than their size has
said nothing about the teacher. The learning rate is that of the study's older search for a ResNet-8, alpha and T the
usual ones; none was tuned for these networks. Nothing is chosen here, so the validation split is enough, and the test
set is not read.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn

from course.experiments.command import called, run_command
from course.experiments.rows import refuse_other_budget, versions
from kdlib import data, devices, losses, measure, models, train
from kdlib.data import DataModule, data_dir
from kdlib.errors import check_whole
from kdlib.hooks import FeatureExtractor
from kdlib.methods import Logit
from kdlib.study.method_specs import Settings
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, SessionLog
from kdlib.teachers import CachedTeacher

DATA, TEACHER, TEACHER_FORM = "fashion-mnist", "resnet20-fashion", "resnet20"
WIDTHS, DEPTHS = (4, 6, 8, 12, 16), (8, 14, 20)
UNTRAINED_SEED = 1_000
LAYER = "layer3"  # the last maps, in the students as in the teacher
BATCH_SIZE = 32
EPOCH_VALIDATION = 100  # images after each epoch; what counts is evaluated at the end
SETTINGS = Settings(learning_rate=1.0, weight_decay=5e-4, alpha=0.1, temperature=4)
BUDGET_COLUMNS = ("data", "teacher", "images", "epochs", "views")
COLUMNS = (
    *(*BUDGET_COLUMNS, "student", "width", "depth", "seed", "learning_rate", "weight_decay", "alpha", "temperature"),
    *("parameters", "macs", "relation_score", "relation_score_untrained", "validation_accuracy"),
    *("seconds", "device", "threads", "kdlib", "torch", "error"),
)


@dataclass(frozen=True)
class Budget:
    """What all runs share. batch: images of the batch that gives the score."""

    images: int = 1_000
    epochs: int = 6
    views: int = 3
    batch: int = 256

    def __post_init__(self) -> None:
        check_whole(10, images=self.images)
        check_whole(2, batch=self.batch)
        check_whole(epochs=self.epochs, views=self.views)

    def path(self, folder: Path) -> Path:
        """The file of the rows."""
        return folder / f"proxy-{TEACHER}-{self.images}.csv"


@dataclass(frozen=True)
class Network:
    """One form of student: channels of its first stage, and layers."""

    width: int
    depth: int

    @property
    def name(self) -> str:
        """As `models.build` knows it."""
        return f"resnet{self.depth}w{self.width}"

    def build(self, images: DataModule, seed: int) -> nn.Module:
        """With the initial weights of a seed."""
        return models.build(self.name, num_classes=images.num_classes, in_channels=images.in_channels, seed=seed)


def networks() -> list[Network]:
    """All fifteen, those with the fewest MACs first."""
    return sorted(
        (Network(width, depth) for width in WIDTHS for depth in DEPTHS), key=lambda one: one.width**2 * (one.depth - 2)
    )


# --- the score


def relation_score(student: Tensor, teacher: Tensor) -> float:
    """How alike two networks find the images of a batch: minus the distance of their relation matrices, 0 at best.

    student, teacher: features, B x anything. A relation matrix has the inner products of all pairs of images, its rows
    scaled to length 1; the distance is that of Frobenius.
    """
    return -float(losses.similarity(student, teacher).sqrt()) * len(student)


def features(model: nn.Module, images: Tensor, *, trained: bool) -> Tensor:
    """The last maps of a batch; of an untrained network with the statistics of this batch, since it has no others."""
    model = copy.deepcopy(model).train(not trained)
    with torch.no_grad(), FeatureExtractor(model, [LAYER]) as extractor:
        return extractor(images).features[LAYER]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of networks before any training; arrays are seeds x networks, a seed being one set of initial weights."""

    networks: tuple[Network, ...]
    macs: np.ndarray  # by network
    trained_teacher: np.ndarray
    untrained_teacher: np.ndarray

    @property
    def depth(self) -> np.ndarray:
        """Layers of each network."""
        return np.array([one.depth for one in self.networks], dtype=float)


def score_all(teacher: nn.Module, images: DataModule, batch: int = 256, seeds: int = 2) -> Scores:
    """Score all fifteen networks with the first training images; takes seconds, and trains nothing.

    teacher: a trained ResNet-20. seeds: sets of initial weights, of the students and of the untrained teacher.
    """
    check_whole(2, len(images.train), batch=batch)
    check_whole(seeds=seeds)
    pictures = data.normalized_images(images.train.select(torch.arange(batch)))
    wanted, forms = features(teacher, pictures, trained=True), networks()
    shape = (images.in_channels, images.image_size, images.image_size)
    trained, untrained = [], []
    for seed in range(seeds):
        fresh = models.build(TEACHER_FORM, num_classes=images.num_classes, in_channels=images.in_channels, seed=seed)
        other = features(fresh, pictures, trained=False)
        own = [features(one.build(images, 100 + seed), pictures, trained=False) for one in forms]
        trained.append([relation_score(one, wanted) for one in own])
        untrained.append([relation_score(one, other) for one in own])
    macs = [measure.macs(one.build(images, 0), shape) for one in forms]
    return Scores(tuple(forms), np.array(macs, dtype=float), np.array(trained), np.array(untrained))


# --- one run


@dataclass(frozen=True)
class SeedRuns:
    """All that the runs of one seed share: images, the teacher's outputs, and its features of the batch."""

    budget: Budget
    images: DataModule
    seed: int
    teacher: CachedTeacher
    batch: Tensor
    teacher_features: Tensor
    untrained_features: Tensor

    @classmethod
    def prepare(cls, budget: Budget, seed: int, images: DataModule, teacher: nn.Module) -> SeedRuns:
        """Draw the images of a seed and ask the teacher."""
        subset = images.subset(budget.images, seed=seed)
        outputs = CachedTeacher.build(
            teacher,
            subset.train,
            augmentation=subset.augmentation,
            seed=seed,
            views=budget.views,
            progress=False,
        )
        batch = data.normalized_images(subset.train.select(torch.arange(min(budget.batch, budget.images))))
        fresh = models.build(
            TEACHER_FORM,
            num_classes=images.num_classes,
            in_channels=images.in_channels,
            seed=UNTRAINED_SEED + seed,  # of its own: the student of the same form is another network
        )
        maps = features(teacher, batch, trained=True), features(fresh, batch, trained=False)
        return cls(budget, subset, seed, outputs, batch, *maps)

    def run(self, network: Network) -> dict[str, Any]:
        """Score a network, then distil it; the row, with an error in place of the accuracy where training diverged."""
        started = time.perf_counter()
        student = network.build(self.images, self.seed)
        own = features(student, self.batch, trained=False)
        row = {"data": DATA, "teacher": TEACHER, **budget_columns(self.budget), **vars(network)}
        row |= {"student": network.name, "seed": self.seed, **vars(SETTINGS)}
        row |= {"parameters": measure.count_parameters(student), "macs": measure.macs(student, self._shape)}
        row["relation_score"] = relation_score(own, self.teacher_features)
        row["relation_score_untrained"] = relation_score(own, self.untrained_features)
        row |= versions() | {"device": str(devices.resolve()), "threads": torch.get_num_threads()}
        try:
            row["validation_accuracy"] = self._accuracy(student)
        except FloatingPointError as error:
            row["error"] = str(error)
        return row | {"seconds": round(time.perf_counter() - started, 1)}

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.images.in_channels, self.images.image_size, self.images.image_size

    def _accuracy(self, student: nn.Module) -> float:
        few = self.images.validation.select(torch.arange(min(EPOCH_VALIDATION, len(self.images.validation))))
        result = train.fit(
            student,
            replace(self.images, validation=few),
            teacher=self.teacher,
            method=Logit(temperature=SETTINGS.temperature or 1.0, alpha=SETTINGS.alpha or 0.0),
            epochs=self.budget.epochs,
            recipe=SETTINGS.recipe(BATCH_SIZE),
            seed=self.seed,
            test=False,
            progress=False,
        )
        return train.evaluate(result.student, self.images.validation).accuracy


def budget_columns(budget: Budget) -> dict[str, int]:
    """The columns that say how long was trained, and with what."""
    return {name: getattr(budget, name) for name in BUDGET_COLUMNS if hasattr(budget, name)}


# --- all of them


def make(
    budget: Budget,
    out: Path,
    seeds: int,
    command: str,
    *,
    wanted: Iterable[Network] | None = None,
    images: DataModule | None = None,
    log: Callable[[str], object] = print,
) -> list[dict[str, str]]:
    """Run what is missing and return all rows of the file.

    wanted: default, all networks. images: default, Fashion-MNIST.
    Raises ValueError for a file of another budget, or while another process writes to it.
    """
    check_whole(1, 1000, seeds=seeds)
    forms = list(networks() if wanted is None else wanted)
    with RunsFile(budget.path(out), COLUMNS, log).open() as file:
        refuse_other_budget(file, budget_columns(budget))
        done = {(row["student"], row["seed"]) for row in file.rows}
        missing = [(seed, one) for seed in range(seeds) for one in forms if (one.name, str(seed)) not in done]
        if missing:
            images = data.load(DATA) if images is None else images
            teacher = models.load(TEACHER)
            session = SessionLog(file.path, command, len(file.rows))
            for seed in dict.fromkeys(seed for seed, _ in missing):
                runs = SeedRuns.prepare(budget, seed, images, teacher)
                for one in (form for other, form in missing if other == seed):
                    row = runs.run(one)
                    file.append(row)
                    session.write(len(file.rows))
                    score = row.get("error") or f"{row['validation_accuracy']:.2%}"
                    log(f"{one.name}, seed {seed}: {score} in {row['seconds']:.0f} s")
        rows = file.rows
    update_readme(out)
    return rows


def proxy(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ... Give more to add some.")] = 2,
    images: Annotated[int, typer.Option(min=10, help="Training images of each run.")] = Budget.images,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over them.")] = Budget.epochs,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
) -> None:
    """Score fifteen students before their training, and distil them.

    Stopped at any moment, the same command goes on with what is missing.
    """
    command = called("course.experiments.search_proxy")
    make(Budget(images, epochs), out or data_dir() / "results", seeds, command, log=partial(print, flush=True))


if __name__ == "__main__":
    run_command(search_proxy=proxy)
