"""One training of a ResNet-8 by a ResNet-18, written once for each library as its own documentation shows it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import modelopt.torch.distill as mtd
import textbrewer
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchdistill.core.distillation import get_distillation_box

from kdlib import losses, methods, models, train
from kdlib.data import DataModule
from kdlib.teachers import CachedTeacher

TEMPERATURE = 4.0
ALPHA = 0.1  # the weight of the hard labels
LEARNING_RATE = 0.01
# No decay and no schedule: then every library makes the same update, and `distance_to_definition` can compare them.
SGD = {"lr": LEARNING_RATE, "momentum": 0.9, "nesterov": True}
RECIPE = train.Recipe(learning_rate=LEARNING_RATE, weight_decay=0.0, batch_size=128, schedule="constant")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """A precision, and for the peers a memory format too; kdlib is always in channels_last."""

    title: str
    bfloat16: bool = False
    channels_last: bool = False

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the networks and the peers' losses are computed."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)

    def put(self, what: Any) -> Any:
        """A model or a batch of images in this setting's memory format."""
        return what.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


@dataclass(frozen=True)
class Task:
    """What to train on: for kdlib the data set, for the others its batches, decoded and normalized beforehand."""

    data: DataModule
    setting: Setting
    scratch: Path  # a folder for what a library insists on writing

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """All training batches in memory, not augmented."""
        found = self.data.train.iter_batches(RECIPE.batch_size)
        return [(self.setting.put(batch.images), batch.labels) for batch in found]

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """A student and a teacher; the weights are random, but the same for every contestant."""
        student = models.build("resnet8", num_classes=10, in_channels=1, seed=0)
        teacher = models.build("resnet18", num_classes=10, in_channels=1, seed=1)
        return self.setting.put(student), self.setting.put(teacher)


@dataclass(frozen=True)
class Ready:
    """A training that is set up: the student, and a function that trains one epoch and returns its seconds."""

    student: nn.Module
    epoch: Callable[[], float]


def timed(epoch: Callable[[], object]) -> Callable[[], float]:
    """The function, returning how long it took."""

    def run() -> float:
        started = time.perf_counter()
        epoch()
        return time.perf_counter() - started

    return run


def plain(task: Task) -> Ready:
    """Hard labels alone, in eight lines of PyTorch: the step that distillation is measured by."""
    student, _ = task.networks()
    return _loop(task, student, lambda logits, images, labels: F.cross_entropy(logits.float(), labels))


def definition(task: Task) -> Ready:
    """The distillation step as the formula says it; not timed, the others are checked against it."""
    student, teacher = task.networks()
    teacher.eval()

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(images)
        return ALPHA * F.cross_entropy(logits, labels) + (1 - ALPHA) * losses.kd(logits, teacher_logits, TEMPERATURE)

    return _loop(task, student, loss)


def _loop(task: Task, student: nn.Module, loss_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Ready:
    batches = task.batches()
    optimizer = torch.optim.SGD(student.parameters(), **SGD)

    def epoch() -> None:
        student.train()
        for images, labels in batches:
            with task.setting.autocast():
                logits = student(images)
            loss = loss_of(logits, images, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return Ready(student, timed(epoch))


def kdlib_live(task: Task) -> Ready:
    """`train.fit` with the teacher itself."""
    student, teacher = task.networks()
    return _fit(task, student, teacher)


def kdlib_cached(task: Task) -> Ready:
    """`train.fit` with the teacher's stored logits, which are stored before the clock starts."""
    student, teacher = task.networks()
    split, augmentation = task.data.train, task.data.augmentation
    precision = _precision(task)
    stored = CachedTeacher.build(
        teacher, split, augmentation=augmentation, device="cpu", precision=precision, progress=False
    )
    return _fit(task, student, stored)


def _fit(task: Task, student: nn.Module, teacher: nn.Module | CachedTeacher) -> Ready:
    def epoch() -> float:
        run = train.fit(
            student,
            task.data,
            teacher=teacher,
            method=methods.Logit(temperature=TEMPERATURE, alpha=ALPHA),
            epochs=1,
            recipe=RECIPE,
            device="cpu",
            precision=_precision(task),
            test=False,
        )
        return run.seconds  # of the training loop: no other contestant validates

    return Ready(student, epoch)


def _precision(task: Task) -> str:
    return "bf16" if task.setting.bfloat16 else "fp32"


def torchdistill(task: Task) -> Ready:
    """A DistillationBox with KDLoss, set up as configs/sample/ilsvrc2012/kd does and driven as its examples do."""
    student, teacher = task.networks()
    batches = task.batches()
    teacher.eval()  # neither the box nor the example script does it
    logits = dict.fromkeys(("student_module_path", "teacher_module_path"), ".")
    logits |= dict.fromkeys(("student_module_io", "teacher_module_io"), "output")
    kd_loss = {"key": "KDLoss", "kwargs": {**logits, "temperature": TEMPERATURE, "alpha": ALPHA}}
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": kd_loss, "weight": 1.0}}},
        },
    }
    box = get_distillation_box(teacher, student, {}, config, CPU, None, False, 1.0)

    def epoch() -> None:
        box.pre_epoch_process(epoch=0)
        for images, labels in batches:
            with task.setting.autocast():
                loss = box.forward_process(images, labels, {})
            box.post_forward_process(loss=loss)
        box.post_epoch_process()

    return Ready(student, timed(epoch))


def modelopt(task: Task) -> Ready:
    """`mtd.convert` and `compute_kd_loss` in a plain loop, as the guide to distillation shows it."""
    student, teacher = task.networks()
    batches = task.batches()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "weights do not sum to 1.0": meant, the hard labels get the rest
        balancer = mtd.StaticLossBalancer(kd_loss_weight=1 - ALPHA)
    criterion = mtd.LogitsDistillationLoss(temperature=TEMPERATURE, reduction="batchmean")
    config = {"teacher_model": teacher, "criterion": criterion, "loss_balancer": balancer}
    student = mtd.convert(student, mode=[("kd_loss", config)])
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], **SGD)

    def epoch() -> None:
        student.train()
        for images, labels in batches:
            optimizer.zero_grad()
            with task.setting.autocast():
                hard = F.cross_entropy(student(images), labels)
                loss = student.compute_kd_loss(student_loss=hard)
            loss.backward()
            optimizer.step()

    return Ready(student, timed(epoch))


class _WholeBatch(nn.Module):
    """A network that takes a batch as TextBrewer hands it on, with the labels."""

    def __init__(self, model: nn.Module, setting: Setting) -> None:
        super().__init__()
        self.model, self.setting = model, setting

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with self.setting.autocast():
            return self.model(images)


def text_brewer(task: Task) -> Ready:
    """`GeneralDistiller.train`, as the README's quick start shows it."""
    student, teacher = task.networks()
    batches = task.batches()
    training = textbrewer.TrainingConfig(device="cpu", output_dir=str(task.scratch))  # a checkpoint an epoch
    # Its "ce" lacks the T^2, so the weight carries it.
    weights = {"kd_loss_weight": (1 - ALPHA) * TEMPERATURE**2, "hard_label_weight": ALPHA}
    distillation = textbrewer.DistillationConfig(temperature=TEMPERATURE, **weights)
    distiller = textbrewer.GeneralDistiller(
        train_config=training,
        distill_config=distillation,
        model_T=_WholeBatch(teacher, task.setting),
        model_S=_WholeBatch(student, task.setting),
        adaptor_T=lambda batch, logits: {"logits": logits.float()},
        adaptor_S=lambda batch, logits: {
            "logits": logits.float(),
            "losses": F.cross_entropy(logits.float(), batch[1]),
        },
    )
    optimizer = torch.optim.SGD(student.parameters(), **SGD)

    def epoch() -> None:
        with distiller:
            distiller.train(optimizer, batches, num_epochs=1, callback=None)

    return Ready(student, timed(epoch))
