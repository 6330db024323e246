"""Training by any method, and evaluation.

result = train.fit(student, fashion, teacher=teacher, method=methods.Logit(temperature=4, alpha=0.1), epochs=3)
result.test_accuracy
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from kdlib import devices, distributed, models, tasks
from kdlib.adapters import Adapter
from kdlib.batches import source
from kdlib.checkpoints import Checkpointer
from kdlib.data import Augmentation, DataModule, inference_batch_size
from kdlib.distiller import Distiller
from kdlib.errors import LARGEST_WHOLE, check_flags, check_kind, check_path, check_whole
from kdlib.evaluation import Metrics, evaluate
from kdlib.methods import HardLabels, Logit, Method
from kdlib.recipes import Recipe
from kdlib.tasks import Classification, Task
from kdlib.teachers import FrozenTeacher, Teacher, class_names
from kdlib.trainer import OptimizerFactory, Trainer


@dataclass(frozen=True)
class Result:
    """What a finished training gives back.

    student: the trained model, in eval mode. method: a copy of the method that was given, with what it learned.
    rows: one dictionary an epoch.
    validation_accuracy: after the last epoch; None without validation data. test_accuracy: of the last weights, read
    once; None if not asked for.
    seconds: of training, over all resumptions. device: with its precision, as "cpu, bfloat16".
    """

    student: nn.Module
    method: Method
    rows: list[dict[str, float]]
    validation_accuracy: float | None
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
    data: DataModule | Dataset | Iterable[Any],
    *,
    validation: Dataset | Iterable[Any] | None = None,
    teacher: nn.Module | Teacher | Callable[[Any], Any] | None = None,
    method: Method | None = None,
    epochs: int = 10,
    recipe: Recipe | None = None,
    optimizer: OptimizerFactory | None = None,
    gradient_accumulation_steps: int = 1,
    ema_decay: float | None = None,
    augmentation: Augmentation | None = None,
    views: int | None = None,
    steps_per_epoch: int | None = None,
    adapter: Adapter | None = None,
    task: str | Task = "classification",
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    other_threads: bool = False,
    test: bool | None = None,
    progress: bool = True,
    on_epoch_end: Callable[[int, nn.Module], None] | None = None,
) -> Result:
    """Train a student, and evaluate it after each epoch.

    All of it is in train mode meanwhile, but for layers that come in eval mode and wholly frozen: their batch
    statistics stay as well. Its weights come back on the device, and in the order in memory, that they had.

    data: a `DataModule`, whose validation split is read after each epoch and whose test split once, at the end; or a
    DataLoader, a torch Dataset, or anything that gives its batches anew in every epoch (`steps_per_epoch` where it does
    not say how many), with `validation` of the same kind, which must end: it is read whole. Each epoch begins anew, so
    of a longer stream only its beginning is ever seen, unless it continues or shuffles by itself.
    teacher: a network, which is run on every batch, a `Teacher` such as stored outputs, or a function from a batch to
    logits. method: default Logit() with a teacher, HardLabels() without. adapter, task: what a batch is, and what
    logits and labels mean, see `Distiller`.
    recipe: optimiser, learning rate over time, weight decay, clipping and batch size; default Recipe(), SGD with a rate
    of 0.1, which suits networks with fresh weights: a trained one wants less, Recipe("adamw", 5e-5) for instance.
    optimizer: a function from a list of parameters to a torch optimiser; it takes the place of the recipe's, whose
    schedule, clipping and batch size still hold. gradient_accumulation_steps: batches whose gradients make one step,
    each with the same weight, however many labelled tokens or samples it has.
    ema_decay: the student that is evaluated and given back is an exponential moving average of the weights.
    augmentation: default, the data's own. views: epochs go through this many augmented views of each image in
    turn; default, as many as a cached teacher holds, else a new view every epoch. Both need a DataModule.
    seed: of order, augmentation and dropout, not of the student's initial weights.
    precision: "fp32", "bf16", or "auto": bfloat16 where the chip has it, and float32 for a task without classes.
    compile: let torch.compile translate the networks first; it takes a minute or so and pays on GPUs. Where batches
    differ in shape it does so three times: for the first two, and then for any.
    checkpoint: a file, written after every epoch and after `on_epoch_end`, and every `checkpoint_every` steps (needs a
    DataModule). It replaces a checkpoint that is there, and no other file. resume: go on from it if it exists: with a
    DataModule where it was written, on a CPU to the bit; with a loader at the next epoch, in whatever order it gives.
    Of a method the file keeps parameters, buffers and attributes of its own that are single numbers or texts; of the
    student weights and buffers alone, and a warning names what else has changed in it.
    other_threads: resume also with another number of CPU threads than before, whose sums are rounded in another order.
    test: whether the test split is read; default, where there is one.
    on_epoch_end: called after each epoch's validation with its number, 1 for the first, and the student, to look at it
    or copy it. To stop early, raise an exception of your own there and catch it around `fit`. An exception costs this
    epoch its checkpoint and leaves `student` as it is, in train mode and, with `ema_decay`, not averaged: keep a copy
    of the student that the function is given.
    Under torchrun, inside `with distributed.process_group():`, the processes share every batch (outside of it each
    trains by itself, and a warning says so); losses that relate the
    samples of a batch then see the shard of one process. A mean over labelled samples, tokens or pixels is taken in
    each process and then averaged: a shard with few of them weighs as much as one with many. One without a labelled
    sample lowers the term; of tokens and pixels at least one has to count in each process.
    Raises ValueError when the pieces do not fit together, `tasks.NothingCounts`, a ValueError, also in the middle of an
    epoch, for a training batch of which no pixel or token counts (in `validation` such a batch is left out): leave it
    out of the data; TypeError for data or a teacher of another kind, OSError where the checkpoint could not be written,
    `errors.DivergedError`, a FloatingPointError, when a loss or a weight is not finite.
    """
    if not torch.is_grad_enabled():
        raise ValueError(
            "Gradients are switched off, so nothing can be trained: call fit outside of torch.no_grad() and "
            "torch.inference_mode(), or torch.set_grad_enabled(True) before it."
        )
    distributed.warn_if_alone()
    check_flags(compile=compile, resume=resume, other_threads=other_threads, progress=progress)
    if test is not None:
        check_flags(test=test)
    check_whole(-LARGEST_WHOLE, seed=seed)
    seed = int(seed)  # NumPy's numbers are no JSON
    if checkpoint is not None:
        check_path(checkpoint=checkpoint)
    check_kind(
        "a kdlib.data.Augmentation, such as Augmentation(flip=True)", Augmentation | None, augmentation=augmentation
    )
    if test and not isinstance(data, DataModule):
        raise ValueError(
            "Only a DataModule has a test split, which fit reads once. Call train.evaluate on your test data."
        )
    check_kind("a kdlib.train.Recipe, such as Recipe('adamw', 1e-3)", Recipe | None, recipe=recipe)
    # A copy: the caller's method keeps no projector of this run, so the same call twice gives the same student.
    if method is None:
        method = Logit() if teacher is not None else HardLabels()
    method = _copy(method, student, teacher)
    check_kind(
        "a kdlib.adapters.Adapter, such as Adapter(inputs='image', labels='species')", Adapter | None, adapter=adapter
    )
    adapter, task, recipe = adapter or Adapter(), tasks.resolve(task), recipe or Recipe()
    if isinstance(data, DataModule) and not isinstance(task, Classification):
        raise ValueError("A DataModule holds images of one class each: task is 'classification'. Give a DataLoader.")
    if isinstance(data, DataModule) and len(data.classes) < 2:
        raise ValueError(
            f"The data have one class, {data.classes[0]!r}, and a classifier needs two. In a folder of images each "
            "class is a folder: PATH/train/CLASS/IMAGE."
        )
    if isinstance(data, DataModule) and test is not False and len(data.test) == 0:
        raise ValueError(f"The test split of {data.name} is empty: give test=False, or data with test samples.")
    precision = task.precision(precision)
    config = devices.resolve(device, precision, compile)
    distiller = Distiller(student, teacher, method, adapter=adapter, task=task, compile=compile, setup_later=True)
    own_views = distiller.teacher.views if distiller.teacher is not None else None
    batches = source(
        data,
        validation,
        recipe=recipe,
        augmentation=augmentation,
        views=own_views if views is None and isinstance(data, DataModule) else views,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        config=config,
        adapter=adapter,
        task=task,
    )
    trainer = Trainer(
        distiller=distiller,
        batches=batches,
        epochs=epochs,
        recipe=recipe,
        seed=seed,
        config=config,
        checkpointer=Checkpointer(None if checkpoint is None else Path(checkpoint), checkpoint_every),
        progress_bar=tqdm(disable=not progress or distributed.rank() > 0, unit="img", unit_scale=True),
        make_optimizer=optimizer,
        accumulation_steps=gradient_accumulation_steps,
        ema_decay=ema_decay,
        on_epoch_end=on_epoch_end,
    )
    if checkpoint is None and (resume or checkpoint_every is not None):
        raise ValueError(
            "resume and checkpoint_every belong to a checkpoint: give checkpoint='runs/student.checkpoint', or leave "
            "them out."
        )
    trainer.checkpointer.check(resume)
    with trainer.progress_bar, trainer.prepare():
        trainer.sanity_check()
        if resume and trainer.checkpointer.exists():
            trainer.load_checkpoint(other_threads)
        trainer.fit()
    if isinstance(data, DataModule):
        _note_images(student, data)
    elif models.find_config(student) is not None and class_names(student):
        del student.classes  # its file's: which ones these batches have is not known
        student.image_size_noted_for = ()  # type: ignore[assignment]  # nor which size their images have
    for trained in (student, method):
        trained.zero_grad()  # the last step's gradients would take as much memory as the weights
    accuracy = None
    if isinstance(data, DataModule) and test is not False:
        accuracy = evaluate(
            student,
            data.test,
            device=device,
            precision=precision,
            batch_size=inference_batch_size(data.test, training=batches.batch_size // distributed.world_size()),
            adapter=adapter,
            keep_logits=False,
        ).accuracy
    last = trainer.rows[-1].get("validation_accuracy")
    return Result(student.eval(), method, trainer.rows, last, accuracy, trainer.seconds, str(trainer.config))


def _note_images(student: nn.Module, data: DataModule) -> None:
    """Say in the student which images it knows now, in place of what its file or its zoo said."""
    names = getattr(student, "classes", None)
    if names is None or class_names(student):  # not where its own code calls something else so
        student.classes = data.classes  # type: ignore[assignment]
    config = models.find_config(student)
    if config is not None:
        student.config = {**config, "image_size": data.image_size}  # type: ignore[assignment]
        student.image_size_noted_for = data.classes  # type: ignore[assignment]
    if models.find_normalization(student) is not None:
        student.normalization = (data.train.mean, data.train.std)  # type: ignore[assignment]


def _copy(method: Method, *networks: Any) -> Method:
    """A copy of the method that holds the very layers and weights of the networks which the method holds."""
    modules = (one.model if isinstance(one, FrozenTeacher) else one for one in networks)
    held = [one for one in modules if isinstance(one, nn.Module)]
    kept = (part for one in held for part in (*one.modules(), *one.parameters(), *one.buffers()))
    try:
        return copy.deepcopy(method, {id(part): part for part in kept})
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"The method, {type(method).__name__}, cannot be copied ({error}), and fit trains a copy of it. Keep what "
            "no copy can have, such as a lock, an open file or an iterator, outside of it."
        ) from error


__all__ = ["Metrics", "Recipe", "Result", "evaluate", "fit"]
