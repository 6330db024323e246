"""Training by any method, and evaluation.

result = train.fit(student, fashion, teacher=teacher, method=methods.Logit(temperature=4, alpha=0.1), epochs=3)
result.test_accuracy
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from kdlib import devices, distributed
from kdlib.checkpoints import Checkpointer
from kdlib.data import Augmentation, DataModule
from kdlib.evaluation import Metrics, evaluate
from kdlib.methods import HardLabels, Logit, Method
from kdlib.recipes import Recipe
from kdlib.teachers import CachedTeacher, FrozenTeacher
from kdlib.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """What a finished training gives back.

    student: the trained model, in eval mode. method: a copy of the method that was given, with what it learned.
    rows: one dictionary an epoch.
    validation_accuracy: after the last epoch. test_accuracy: of the last weights, read once; None if not asked for.
    seconds: of training, over all resumptions. device: with its precision, as "cpu, bfloat16".
    """

    student: nn.Module
    method: Method
    rows: list[dict[str, float]]
    validation_accuracy: float
    test_accuracy: float | None
    seconds: float
    device: str

    @property
    def history(self) -> Any:
        """The rows as a pandas table: one row an epoch, one column a loss term."""
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("epoch")


def fit(
    student: nn.Module,
    data: DataModule,
    *,
    teacher: nn.Module | FrozenTeacher | CachedTeacher | None = None,
    method: Method | None = None,
    epochs: int = 10,
    recipe: Recipe | None = None,
    augmentation: Augmentation | None = None,
    views: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    test: bool = True,
    progress: bool = True,
    on_epoch_end: Callable[[int, nn.Module], None] | None = None,
) -> Result:
    """Train a student on `data.train`, evaluate it on `data.validation` after each epoch and on `data.test` once.

    teacher: a model, which is run on every batch, or stored outputs. method: default Logit() with a teacher,
    HardLabels() without.
    augmentation: default, the data's own. views: epochs go through this many augmented views of each image in
    turn; default, as many as a cached teacher holds, else a new view every epoch.
    seed: of order, augmentation and dropout, not of the student's initial weights.
    compile: let torch.compile translate the networks first; it takes a minute or so and pays on GPUs.
    checkpoint: a file, written after every epoch, and every `checkpoint_every` steps. resume: go on from it if it
    exists.
    on_epoch_end: called after each epoch's validation with its number, 1 for the first, and the student, to look at it
    or copy it.
    Under torchrun, inside `distributed.process_group()`, the processes share every batch; losses that relate the
    samples of a batch then see the shard of one process.
    Raises ValueError when the pieces do not fit together, FloatingPointError when a loss is not finite.
    """
    # A copy: the caller's method keeps no projector of this run, so the same call twice gives the same student.
    method = copy.deepcopy(method) if method else (Logit() if teacher is not None else HardLabels())
    trainer = Trainer(
        student=student,
        data=data,
        teacher=FrozenTeacher(teacher) if isinstance(teacher, nn.Module) else teacher,
        method=method,
        epochs=epochs,
        recipe=recipe or Recipe(),
        augmentation=data.augmentation if augmentation is None else augmentation,
        views=views or (teacher.views if isinstance(teacher, CachedTeacher) else None),
        seed=seed,
        config=devices.resolve(device, precision, compile),
        checkpointer=Checkpointer(Path(checkpoint) if checkpoint else None, checkpoint_every),
        progress_bar=tqdm(disable=not progress or distributed.rank() > 0, unit="img", unit_scale=True),
        on_epoch_end=on_epoch_end,
    )
    with trainer.progress_bar, trainer.prepare():
        trainer.sanity_check()
        if resume and trainer.checkpointer.exists():
            trainer.load_checkpoint()
        trainer.fit()
    for trained in (student, method):
        trained.zero_grad()  # the last step's gradients would take as much memory as the weights
    metrics = evaluate(student, data.test, device=device, precision=precision) if test else None
    accuracy = metrics.accuracy if metrics else None
    last = trainer.rows[-1]["validation_accuracy"]
    return Result(student.eval(), method, trainer.rows, last, accuracy, trainer.seconds, str(trainer.config))


__all__ = ["Metrics", "Recipe", "Result", "evaluate", "fit"]
