"""The one training loop, for every method.

run = train.fit(student, fashion, teacher=teacher, method=methods.Logit(temperature=4, alpha=0.1), epochs=3)
run.test_accuracy
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
from kdlib.data import Augmentation, DataSet
from kdlib.evaluation import Scores, evaluate
from kdlib.loop import Loop
from kdlib.methods import HardLabels, Logit, Method
from kdlib.recipes import Recipe
from kdlib.teachers import Cached, Frozen


@dataclass(frozen=True)
class Run:
    """What a finished training gives back.

    student: the trained model, in eval mode. method: a copy of the method that was given, with what it learned.
    rows: one dictionary an epoch.
    validation_accuracy: after the last epoch. test_accuracy: of the last weights, read once; None if not asked for.
    seconds: of training, over all resumptions. place: device and precision.
    """

    student: nn.Module
    method: Method
    rows: list[dict[str, float]]
    validation_accuracy: float
    test_accuracy: float | None
    seconds: float
    place: str

    @property
    def history(self) -> Any:
        """The rows as a pandas table: one row an epoch, one column a loss term."""
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("epoch")


def fit(
    student: nn.Module,
    data: DataSet,
    *,
    teacher: nn.Module | Frozen | Cached | None = None,
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
    every: int | None = None,
    resume: bool = False,
    test: bool = True,
    progress: bool = True,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
) -> Run:
    """Train a student on `data.train`, look at `data.validation` after each epoch and at `data.test` once.

    teacher: a model (asked live), or stored answers. method: default Logit() with a teacher, HardLabels() without.
    augmentation: default, the data set's own. views: epochs go through this many augmented views of each image in
    turn; default, as many as a cached teacher holds, else a new view every epoch.
    seed: of order, augmentation and dropout, not of the student's initial weights.
    compile: let torch.compile translate the networks first; it takes a minute or so and pays on GPUs.
    checkpoint: a file, written after every epoch, or every `every` steps; resume: go on from it if it exists.
    on_epoch: called after each epoch's validation with its number, 1 for the first, and the student, to look at it or
    copy it.
    Under torchrun, inside `distributed.together()`, the processes share every batch; losses that relate the samples of
    a batch then see the share of one process.
    Raises ValueError when the pieces do not fit together, FloatingPointError when a loss is not finite.
    """
    # A copy: the caller's method keeps no projection of this run, so the same call twice gives the same student.
    method = copy.deepcopy(method) if method else (Logit() if teacher is not None else HardLabels())
    loop = Loop(
        student=student,
        data=data,
        teacher=Frozen(teacher) if isinstance(teacher, nn.Module) else teacher,
        method=method,
        epochs=epochs,
        recipe=recipe or Recipe(),
        augmentation=data.augmentation if augmentation is None else augmentation,
        views=views or (teacher.views if isinstance(teacher, Cached) else None),
        seed=seed,
        place=devices.choose(device, precision, compile),
        checkpoint=Path(checkpoint) if checkpoint else None,
        every=every,
        bar=tqdm(disable=not progress or distributed.rank() > 0, unit="img", unit_scale=True),
        on_epoch=on_epoch,
    )
    with loop.bar, loop.opened():
        loop.rehearse()
        if resume and loop.found():
            loop.load()
        loop.run()
    for trained in (student, method):
        trained.zero_grad()  # the last step's gradients would take as much memory as the weights, as long as the run
    scores = evaluate(student, data.test, device=device, precision=precision) if test else None
    accuracy = scores.accuracy if scores else None
    last = loop.rows[-1]["validation_accuracy"]
    return Run(student.eval(), method, loop.rows, last, accuracy, loop.seconds, str(loop.place))


__all__ = ["Recipe", "Run", "Scores", "evaluate", "fit"]
