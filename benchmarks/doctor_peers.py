"""What `kdlib.doctor` says of four libraries, each in its default form and then as its options allow it.

make .venv-peers/.ready && .venv-peers/bin/python benchmarks/doctor_peers.py

Student and teacher are the small networks of tests/doctor_setups.py, the teacher trained and, as PyTorch hands out
every network, in train mode; a step is the library's own, up to the loss. Nothing is trained beyond the teacher.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"  # read once, by the import
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import keras  # noqa: E402
import modelopt.torch.distill as mtd  # noqa: E402
import rounds  # noqa: E402
import textbrewer  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from doctor_setups import Case, case  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torchdistill.core.distillation import get_distillation_box  # noqa: E402

from kdlib.doctor import CHECKS, Report, examine  # noqa: E402

SETUPS = 5  # tasks and networks
T = 4.0
PACKAGES = {"torchdistill": "torchdistill", "modelopt": "nvidia-modelopt", "textbrewer": "textbrewer", "keras": "keras"}


def torchdistill(c: Case, alpha: float, eval_mode: bool) -> Report:
    """A DistillationBox with KDLoss, driven as the example script does."""
    logits = dict.fromkeys(("student_module_path", "teacher_module_path"), ".")
    logits |= dict.fromkeys(("student_module_io", "teacher_module_io"), "output")
    kd_loss = {"key": "KDLoss", "kwargs": {**logits, "temperature": T, "alpha": alpha}}
    forward = {"forward_proc": "forward_batch_only", "sequential": []}
    config = {
        "num_epochs": 1,
        "teacher": {**forward, "requires_grad": False},
        "student": {**forward, "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd_loss, "weight": 1.0}}}},
    }
    c.teacher.train(not eval_mode)
    box = get_distillation_box(c.teacher, c.student, {}, config, torch.device("cpu"), None, False, 1.0)
    box.pre_epoch_process(epoch=0)

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        return box.forward_process(batch[0], batch[1], {})

    given = {"student": c.student, "teacher": c.teacher, "optimizer": box.optimizer, "batches": c.batches}
    return examine(step=step, temperature=T, alpha=alpha, **given)


def modelopt(c: Case, reduction: str) -> Report:
    """`mtd.convert` and `compute_kd_loss` in a plain loop; the balancer weighs hard and soft loss by one half."""
    criterion = mtd.LogitsDistillationLoss(temperature=T, reduction=reduction)
    c.teacher.train()
    config = {"teacher_model": c.teacher, "criterion": criterion, "loss_balancer": mtd.StaticLossBalancer()}
    student = mtd.convert(c.student, mode=[("kd_loss", config)])
    student.train()
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], 0.1)

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        return student.compute_kd_loss(student_loss=F.cross_entropy(student(batch[0]), batch[1]))

    # The student holds the teacher, so the doctor is given both by the names under which they run.
    given = {"student": student, "teacher": student.teacher_model, "optimizer": optimizer, "batches": c.batches}
    return examine(step=step, temperature=T, alpha=0.5, **given)


class _WithLabels(nn.Module):
    """A network that takes a batch as TextBrewer hands it on, with the labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.model(images)


def text_brewer(c: Case, **weights: float) -> Report:
    """`GeneralDistiller` inside `with distiller:`; its step is `train_on_batch`, which returns the loss."""
    with tempfile.TemporaryDirectory() as folder:
        distiller = textbrewer.GeneralDistiller(
            textbrewer.TrainingConfig(device="cpu", output_dir=folder),
            textbrewer.DistillationConfig(temperature=T, **weights),
            model_T=_WithLabels(c.teacher.train()),
            model_S=_WithLabels(c.student),
            adaptor_T=lambda batch, logits: {"logits": logits},
            adaptor_S=lambda batch, logits: {"logits": logits, "losses": F.cross_entropy(logits, batch[1])},
        )
        optimizer = torch.optim.SGD(c.student.parameters(), 0.1)
        with distiller:
            given = {"student": c.student, "teacher": c.teacher, "optimizer": optimizer, "batches": c.batches}
            return examine(step=lambda batch: distiller.train_on_batch(batch, {})[0], temperature=T, **given)


class _Network(keras.Model):
    """A network of PyTorch as a Keras model: what a Distiller asks of one is that it can be called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if training is not None:
            self.network.train(training)
        return self.network(inputs)


def keras_distiller(c: Case, loss: Any) -> Report:
    """`Distiller.compute_loss`, which `fit` minimises; its optimiser is Keras', of which the doctor knows nothing."""
    options = {} if loss is None else {"loss": loss}
    soft = keras.distillation.LogitsDistillation(temperature=T, **options)
    teacher, student = _Network(c.teacher), _Network(c.student)
    distiller = keras.distillation.Distiller(teacher, student, soft)
    distiller.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        return distiller.compute_loss(batch[0], batch[1], distiller(batch[0], training=True))

    given = {"student": c.student, "teacher": c.teacher, "batches": c.batches}
    return examine(step=step, temperature=T, alpha=0.5, **given)


def soft_loss(c: Case, loss: Callable[[Tensor, Tensor], Tensor]) -> Report:
    """The soft loss by itself, as a function of student's and teacher's logits."""
    return examine(student=c.student, teacher=c.teacher.eval(), loss=loss, batches=c.batches, temperature=T)


def modelopt_loss(c: Case, **options: str) -> Report:
    """`LogitsDistillationLoss` by itself: in a step it reads its logits before the doctor can put others in place."""
    criterion = mtd.LogitsDistillationLoss(temperature=T, **options)
    return soft_loss(c, lambda student, teacher: criterion(student, teacher))


def keras_loss(c: Case, **options: Any) -> Report:
    """`LogitsDistillation` by itself."""
    term = keras.distillation.LogitsDistillation(temperature=T, **options)
    return soft_loss(c, lambda student, teacher: term.compute_loss(teacher, student))


@dataclass(frozen=True)
class Form:
    """One way to use a library."""

    library: str
    what: str
    run: Callable[[Case], Report]


FORMS = (
    Form("torchdistill", "default, alpha 0.5", lambda c: torchdistill(c, 0.5, eval_mode=False)),
    Form("torchdistill", "default, alpha 0", lambda c: torchdistill(c, 0.0, eval_mode=False)),
    Form("torchdistill", "alpha 0.5, `teacher.eval()`", lambda c: torchdistill(c, 0.5, eval_mode=True)),
    Form("modelopt", "default, the step", lambda c: modelopt(c, "mean")),
    Form("modelopt", "default, the soft loss", lambda c: modelopt_loss(c)),
    Form("modelopt", '`reduction="batchmean"`, the soft loss', lambda c: modelopt_loss(c, reduction="batchmean")),
    Form("textbrewer", "default", lambda c: text_brewer(c)),
    Form("textbrewer", "`hard_label_weight=1`", lambda c: text_brewer(c, hard_label_weight=1)),
    Form(
        "textbrewer",
        "the same, T^2 in `kd_loss_weight`",
        lambda c: text_brewer(c, hard_label_weight=1, kd_loss_weight=T**2),
    ),
    Form("keras", "default, the step", lambda c: keras_distiller(c, None)),
    Form("keras", "default, the soft loss", lambda c: keras_loss(c)),
    Form("keras", "`loss=KLDivergence()`, the step", lambda c: keras_distiller(c, keras.losses.KLDivergence())),
    Form("keras", "`loss=KLDivergence()`, the soft loss", lambda c: keras_loss(c, loss=keras.losses.KLDivergence())),
)


def row(form: Form) -> str:
    """How often each check said something, over several set-ups."""
    counts: dict[str, int] = {}
    made: set[str] = set()  # in at least one set-up
    for seed in range(SETUPS):
        c = case(seed, norm="batch", dropout=0.0, temperature=T)
        report = form.run(c)
        for one in report.findings:
            name = one.check if one.severity == "fault" else f"{one.check} (doubt)"
            counts[name] = counts.get(name, 0) + 1
        made |= set(CHECKS) - set(report.skipped)
    found = ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda one: -one[1]))
    return f"| {form.library} | {form.what} | {found or 'nothing'} | {len(made)} | {len(set(CHECKS) - made)} |"


def main() -> None:
    """Print the table and put it into benchmarks/README.md."""
    torch.set_num_threads(1)
    header = f"| library | form | found in {SETUPS} set-ups | checks made | not possible |\n|---|---|---|---|---|"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = []
        for form in FORMS:
            rows.append(row(form))
            print(rows[-1], flush=True)
    print(", ".join(f"{name} {version(package)}" for name, package in PACKAGES.items()))
    rounds.put_in_readme("doctor peers", "\n".join([header, *rows]))


if __name__ == "__main__":
    main()
