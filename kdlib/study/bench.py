"""One run of the study: data, teachers and their stored answers, a student, a row.

Each seed has a cache of its own, shared by all methods of that seed. One cache for all seeds would save little: a
ResNet-20 answers 4,000 images/s on two cores, so 10,000 images in 5 views cost 13 s a seed beside some 15 minutes of
training (a ResNet-50 at 450 images/s: 2 minutes). It would cost much: answers belong to the views of one
augmentation seed, and `fit` has one seed for order and views, so all seeds would see the same images in the same
order, and the spread between them would be too small for the claim that is made. A seed here stands for everything
that could have come out otherwise: which images, in which views and order, from which initial weights.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from kdlib import data as data_sets
from kdlib import devices, files, measure, models, train
from kdlib.data import DataSet
from kdlib.methods import HardLabels, Method
from kdlib.study.entries import entry, pairs
from kdlib.study.grid import Budget, Cell
from kdlib.teachers import Cached

GLANCE = 100  # validation images that `fit` looks at after every epoch, where a study needs the last look alone
STAND_IN_SEED = 2000  # of untrained and own-size teachers: one teacher for all seeds, as there is one reference


class Bench:
    """What all runs of one study share."""

    def __init__(self, budget: Budget, folder: Path) -> None:
        """Load data and teacher. folder: scratch space for the answers of teachers and for stand-in teachers.

        Raises what `data.load`, `take` and `models.load` raise; the test set is not read.
        """
        self.whole = data_sets.load(budget.data)
        self.budget = replace(budget, images=budget.images or len(self.whole.train))
        self.whole.take(self.budget.images)  # says now if there are not that many
        self.place = devices.choose(budget.device, budget.precision)
        self.reference = models.load(budget.teacher)
        self.folder = folder
        seen = (self.whole.train.fingerprint, self.whole.validation.fingerprint)
        self.identity = files.digest(self.reference.state_dict(), repr(self.reference), seen)
        self.pairs = partial(pairs, self.student(0), self.reference)

    @property
    def where(self) -> dict[str, str]:
        """Device and precision as the functions of kdlib take them, the same for everything here."""
        return {"device": str(self.place.device), "precision": "bf16" if self.place.bfloat16 else "fp32"}

    def student(self, seed: int) -> nn.Module:
        """A student with the initial weights of this seed."""
        shape = {"num_classes": self.whole.num_classes, "in_channels": self.whole.in_channels}
        return models.build(self.budget.student, **shape, image_size=self.whole.size, seed=seed)

    def method(self, cell: Cell) -> Method:
        """The method of a cell, as yet without projections."""
        return entry(cell.entry).make(cell.settings, self.pairs)

    @cached_property
    def reference_scores(self) -> train.Scores:
        """The reference teacher on the test set: read once for a study, and not before it is asked for."""
        return train.evaluate(self.reference, self.whole.test, **self.where)

    def untrained(self) -> nn.Module:
        """The reference teacher's architecture with fresh weights."""
        described = dict(self.reference.described)
        return models.build(described.pop("architecture"), **described, seed=STAND_IN_SEED).eval()

    def own_size(self) -> nn.Module:
        """A teacher of the student's architecture, taught by hard labels on all training images.

        It is trained once and kept in the scratch folder; trained again, it has the same weights.
        """
        key = files.digest([], self.identity, self.budget.student, self.budget.epochs, self.where)[:12]
        path = self.folder / f"own-size-{key}.safetensors"
        if not path.exists():
            options = {"epochs": self.budget.epochs, "seed": STAND_IN_SEED, **self.where}
            model = self.student(STAND_IN_SEED)
            train.fit(model, self.whole, method=HardLabels(), test=False, progress=False, **options)
            models.save(model, path)
        return models.load(path)

    @contextmanager
    def seat(self, cells: Iterable[Cell], owner: Path) -> Iterator[Seat]:
        """Everything for the runs of one seed; `cells` are all of them, finished ones too.

        owner: the file that the runs go to; it keeps two studies from using one folder. The teachers' answers are
        removed in the end, and after a kill found again.
        """
        cells = list(cells)
        layers = sorted({name for cell in cells for name in self.method(cell).teacher_layers})
        first = cells[0]
        key = files.digest([], str(owner.resolve()), self.identity, self.budget, first.seed, first.left_out, layers)
        folder = self.folder / f"answers-seed{first.seed}-{key[:12]}"
        try:
            yield Seat(self, first.seed, first.left_out, tuple(layers), folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


TEACHERS: dict[str, Callable[[Bench], nn.Module]] = {
    "reference": lambda bench: bench.reference,
    "shuffled": lambda bench: bench.reference,
    "untrained": Bench.untrained,
    "own-size": Bench.own_size,
}


class Seat:
    """The images of one seed and the answers of its teachers, shared by all methods of that seed."""

    def __init__(self, bench: Bench, seed: int, left_out: int | None, layers: tuple[str, ...], folder: Path) -> None:
        self.bench, self.seed, self.left_out, self.layers, self.folder = bench, seed, left_out, layers, folder
        data = bench.whole.take(bench.budget.images, seed=seed)
        self.data: DataSet = data if left_out is None else data.without(left_out)
        self._answers: dict[str, Cached | None] = {"none": None}

    def run(self, cell: Cell, *, test: bool) -> dict[str, Any]:
        """Train one student and return its row; the test set is read once, afterwards, if `test`, else not at all.

        A run whose loss is not finite gives a row too, without accuracies and with the reason as its note: to
        leave out the seeds at which a method fails would be to choose seeds.
        """
        bench, budget = self.bench, self.bench.budget
        teacher = self.teacher(entry(cell.entry).teacher)
        row = cell.row(budget) | {"place": str(bench.place), "threads": torch.get_num_threads()}
        row["digest"] = cell.digest(budget, bench.identity)
        whole = self.data.validation
        data = replace(self.data, validation=whole.select(torch.arange(min(GLANCE, len(whole)))), test=Unread())
        started = time.perf_counter()
        try:
            run = train.fit(
                bench.student(cell.seed),
                data,
                teacher=teacher,
                method=bench.method(cell),
                epochs=budget.epochs,
                recipe=cell.settings.recipe(budget.batch_size),
                views=budget.views,
                seed=cell.seed,
                test=False,  # read below, where its logits are needed as well
                progress=False,
                **bench.where,
            )
            row["validation_accuracy"] = train.evaluate(run.student, whole, **bench.where).accuracy
            row |= self._tested(run) if test else {}
        except FloatingPointError as error:
            return row | {"note": str(error), "seconds": time.perf_counter() - started}
        row["extra_parameters"] = measure.parameters(run.method)
        row["seconds_per_epoch"] = run.seconds / budget.epochs
        return row | {"seconds": time.perf_counter() - started}

    def _tested(self, run: train.Run) -> dict[str, float]:
        theirs, labels = self.bench.reference_scores, self.data.test.labels
        ours = train.evaluate(run.student, self.data.test, **self.bench.where)
        if not torch.isfinite(ours.logits).all():
            raise FloatingPointError("The last step left weights that give no finite logits.")
        found = {
            "test_accuracy": ours.accuracy,
            "teacher_accuracy": theirs.accuracy,
            "agreement": measure.agreement(ours.logits, theirs.logits),
            "calibration_error": measure.calibration_error(ours.logits, labels),
        }
        if self.left_out is not None:
            of_class = labels == self.left_out
            found["left_out_accuracy"] = measure.accuracy(ours.logits[of_class], labels[of_class])
        return found

    def teacher(self, kind: str) -> Cached | None:
        """The stored answers of a kind of teacher, asked when they are first needed."""
        if kind not in self._answers:
            self._answers[kind] = self._shuffled() if kind == "shuffled" else self._asked(kind)
        return self._answers[kind]

    def _asked(self, kind: str) -> Cached:
        return Cached.build(
            TEACHERS[kind](self.bench),
            self.data.train,
            augmentation=self.data.augmentation,
            seed=self.seed,
            views=self.bench.budget.views,
            layers=self.layers if kind == "reference" else (),
            directory=self.folder / kind,
            progress=False,
            **self.bench.where,
        )

    def _shuffled(self) -> Cached:
        """The reference teacher's answers, each given for another image."""
        honest = self.teacher("reference")
        # A cache knows which sample each of its rows answers for: told otherwise, it answers for another one.
        return Cached.open(self.folder / "reference", honest.key, derangement(self.data.train.indices, self.seed))


def derangement(indices: Tensor, seed: int) -> Tensor:
    """The same indices in an order in which none keeps its place, a function of the seed.

    Raises ValueError for fewer than two.
    """
    if len(indices) < 2:
        raise ValueError("One image has no other to be exchanged with.")
    ring = torch.argsort(data_sets.random_bits(indices, "another image", seed))
    mixed = torch.empty_like(indices)
    mixed[ring] = indices[ring.roll(1)]  # each place gets the index of the one before it in a ring
    return mixed


class Unread:
    """Stands for the test set where it must not be read: whatever is asked of it is an error."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(f"The test set was asked for its {name} before training was over.")

    def __len__(self) -> NoReturn:
        raise RuntimeError("The test set was asked for its length before training was over.")
