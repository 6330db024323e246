"""What every trial of a search trains, and how one of them is trained."""

from __future__ import annotations

import base64
import math
import time
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from kdlib import devices, files, models, train
from kdlib.data import DataModule, IndexedDataset, evenly_spaced
from kdlib.search.space import find_method
from kdlib.study.experiment import ForbiddenDataset
from kdlib.study.method_specs import MethodSpec, Settings, TeacherKind
from kdlib.study.plans import Budget
from kdlib.teachers import CachedTeacher

EPOCH_VALIDATION = 100  # images that `fit` evaluates after each epoch; the accuracy that decides is another one
LEAST_REPORT = 500  # images of the validation split by which a trial is stopped early, or not

Report = Callable[[int, float], bool]  # (epochs, validation accuracy) -> whether to go on


@dataclass(frozen=True)
class Task:
    """What all trials share.

    student: an architecture by name; where width and depth are searched, the one that stands for all of them.
    images: training images, drawn anew by each seed; None takes all of the data. views: augmented views of each image
    for which the teacher's outputs are stored. layers: the choices of layers that any trial may make. stem: how
    torchvision's networks begin, see `models.build`.
    """

    data: DataModule
    teacher: nn.Module | None
    method: str
    student: str
    images: int | None
    epochs: int
    views: int
    layers: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "auto"
    stem: str = "stride2"

    @property
    def spec(self) -> MethodSpec:
        """The method's losses and start settings."""
        return find_method(self.method)

    @property
    def num_images(self) -> int:
        """Training images of each trial."""
        return len(self.data.train) if self.images is None else self.images

    @property
    def batch_size(self) -> int:
        """As in the study: a quarter of 128 where few images would give few steps."""
        return Budget(images=self.num_images).batch_size


@dataclass(frozen=True)
class Outcome:
    """What one training gave. validation_accuracy: on the whole validation split; None if it was stopped or diverged.

    epochs: that it was trained for. error: why it diverged. right: for each test image whether the student was right,
    as `pack` writes it; "" where the test set was not read.
    """

    epochs: int
    seconds: float
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    error: str = ""
    right: str = ""


class _Stopped(Exception):
    """Ends a training whose report was answered by no."""


class TaskRunner:
    """Trains the students of one task in this process. cache: a folder for the teacher's outputs."""

    def __init__(self, task: Task, cache: Path) -> None:
        self.task, self.cache = task, cache
        config = devices.resolve(task.device, task.precision)
        self.device_options: dict[str, Any] = {
            "device": str(config.device),
            "precision": config.precision,
        }
        self._seed: int | None = None
        self._data = task.data
        self._outputs: CachedTeacher | None = None

    def prepare(self, seed: int) -> None:
        """Draw the images of a seed, and store the teacher's outputs for them, unless another process has done so."""
        if seed == self._seed:
            return
        task = self.task
        self._data = task.data.subset(task.images, seed=seed)
        self._outputs = None
        if task.teacher is not None and task.spec.teacher is not TeacherKind.NONE:
            self._outputs = CachedTeacher.build(
                task.teacher,
                self._data.train,
                augmentation=self._data.augmentation,
                seed=seed,
                views=task.views,
                layers=self._teacher_layers(),
                directory=outputs_folder(self.cache, self.task, seed),
                progress=False,
                **self.device_options,
            )
        self._seed = seed

    def close(self) -> None:
        """Let go of the teacher's outputs, since Windows removes no file that is mapped; `prepare` opens them anew."""
        self._seed, self._outputs = None, None

    def _teacher_layers(self) -> tuple[str, ...]:
        """The layers of the teacher that any trial may look at; all students of a search have the same stages."""
        task = self.task
        assert task.teacher is not None
        student = self.build_student(task.student, 0)
        starts = [replace(task.spec.start, layers=word) for word in task.layers] or [task.spec.start]
        methods = [task.spec.make_method(start, student, task.teacher) for start in starts]
        return tuple(sorted({layer for method in methods for layer in method.teacher_layers}))

    def build_student(self, student: str, seed: int) -> nn.Module:
        """A student with the initial weights of this seed."""
        return build_student(self.task.data, student, seed, self.task.stem)

    def run(
        self,
        student: str,
        settings: Settings,
        seed: int,
        *,
        reports: Collection[int] = (),
        report: Report | None = None,
        test: bool = False,
    ) -> Outcome:
        """Train one student. reports: the epochs after which `report` is asked whether to go on.

        test: read the test set, once, afterwards; otherwise it cannot be read at all.
        """
        self.prepare(seed)
        task, validation = self.task, self._data.validation
        network = self.build_student(student, seed)
        few = validation.select(evenly_spaced(len(validation), EPOCH_VALIDATION))
        reported = validation.select(evenly_spaced(len(validation), max(LEAST_REPORT, task.num_images // 2)))
        started, done = time.perf_counter(), 0

        def after_epoch(epoch: int, model: nn.Module) -> None:
            nonlocal done
            done = epoch
            if report is None or epoch not in reports:
                return
            accuracy = train.evaluate(model, reported, **self.device_options).accuracy
            if not report(epoch, accuracy):
                raise _Stopped

        try:
            result = train.fit(
                network,
                replace(self._data, validation=few, test=cast(IndexedDataset, ForbiddenDataset())),
                teacher=self._outputs,
                method=task.spec.make_method(settings, network, cast(nn.Module, task.teacher)),
                epochs=task.epochs,
                recipe=settings.recipe(task.batch_size),
                views=task.views,
                seed=seed,
                test=False,
                progress=False,
                on_epoch_end=after_epoch,
                **self.device_options,
            )
            accuracy = train.evaluate(result.student, validation, **self.device_options).accuracy
            tested = train.evaluate(result.student, self._data.test, **self.device_options) if test else None
        except _Stopped:
            return Outcome(done, time.perf_counter() - started)
        except FloatingPointError as error:
            return Outcome(min(done + 1, task.epochs), time.perf_counter() - started, error=str(error))
        outcome = Outcome(task.epochs, time.perf_counter() - started, accuracy)
        if tested is None:
            return outcome
        right = pack(tested.logits.argmax(1) == self._data.test.labels)
        return replace(outcome, test_accuracy=tested.accuracy, right=right)


def pack(right: Tensor) -> str:
    """Yes or no for each image as a short text: bits, zlib, base64; at most 1.7 kB for 10,000 images."""
    return base64.b64encode(zlib.compress(np.packbits(right.cpu().numpy()).tobytes(), 9)).decode()


def unpack(text: str, count: int) -> np.ndarray:
    """The way back from `pack`: `count` zeros and ones. Raises ValueError for a text that is not of so many images."""
    try:
        bits = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
    except (ValueError, zlib.error) as error:
        raise ValueError(
            f"Which images a student was right about cannot be read ({error}): the text is damaged. Restore the file "
            "that holds it."
        ) from error
    if len(bits) != math.ceil(count / 8):
        raise ValueError(
            f"What a student was right about is {8 * len(bits)} bits long, which does not fit {count} test images. Are "
            "they those of the run? If so, the text is damaged: restore the file that holds it."
        )
    return np.unpackbits(bits, count=count)


def build_student(data: DataModule, student: str, seed: int, stem: str) -> nn.Module:
    """A network of this architecture for these data, with the initial weights of a seed."""
    return models.build(
        student,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
        stem=stem,
        seed=seed,
    )


def outputs_folder(cache: Path, task: Task, seed: int) -> Path:
    """Where the teacher's outputs for the images of a seed are stored.

    What they depend on is in the name: a search that was killed leaves them, and the next one may be another.
    """
    parts = (task.images, task.views, task.layers, task.student, task.device, task.precision, seed)
    key = files.fingerprint([], task.data.train.fingerprint, teacher_fingerprint(task.teacher), parts)[:12]
    return cache / f"seed{seed}-{key}"


def teacher_fingerprint(teacher: nn.Module | None) -> str | None:
    """A short hash of a teacher's weights and structure; None for no teacher."""
    return None if teacher is None else files.fingerprint(teacher.state_dict(), repr(teacher))[:12]
