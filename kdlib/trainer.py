"""The loop of one training run; `train.fit` is how to start it."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from kdlib import devices, distributed, models
from kdlib.batches import IndexedBatches, LoaderBatches, count_samples, process_seed
from kdlib.checkpoints import Checkpointer, plain_groups, refuse_unwritable
from kdlib.described import (
    describe,
    describe_source,
    names_in,
    numbers_of,
    own_modules,
    plain_settings,
    set_numbers,
    settings,
    takes,
)
from kdlib.distiller import Distiller
from kdlib.errors import LARGEST_WHOLE, as_whole, few
from kdlib.evaluation import accuracy, has_label, is_judged
from kdlib.files import fingerprint, refuse_extra_state
from kdlib.guards import keep_modes
from kdlib.methods import Method
from kdlib.recipes import Recipe
from kdlib.tasks import NothingCounts
from kdlib.teachers import CachedTeacher, FunctionTeacher
from kdlib.training_log import COLUMNS, LABELLED, TrainingLog

MOST_EPOCHS = 1_000_000_000
MOST_ROUNDED = 0.1  # of what the values of a column, or the outputs, differ by
MOST_OF_INITIAL_WEIGHTS = 0.05  # share of them in an average of weights that is no longer about them
OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
_OPTIMIZER = (
    "optimizer is a function from a list of parameters to a torch optimiser, such as "
    "lambda parameters: torch.optim.AdamW(parameters, 1e-3)"
)


@dataclass
class Trainer:
    """One run of `fit`: its settings, how far it has come, and the steps it takes."""

    distiller: Distiller
    batches: IndexedBatches | LoaderBatches
    epochs: int
    recipe: Recipe
    seed: int
    config: devices.DeviceConfig
    checkpointer: Checkpointer
    progress_bar: tqdm
    make_optimizer: OptimizerFactory | None = None
    accumulation_steps: int = 1
    ema_decay: float | None = None
    on_epoch_end: Callable[[int, nn.Module], None] | None = None
    step: int = 0
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.student, self.method = self.distiller.student, self.distiller.method
        self.steps_per_epoch = self.batches.steps_per_epoch
        self._check_settings()
        self.total_steps = self.steps_per_epoch * self.epochs
        self._warn_of_slow_average()
        self.average: AveragedModel | None = None
        self.resting = _frozen_in_eval_mode(self.student)
        self.log = TrainingLog(self.config.device, self.total_steps, self.checkpointer.diverged)
        # Only a checkpoint holds it, and to hash what a teacher or a function of the user's holds may take seconds.
        self.run = {} if self.checkpointer.path is None else self._describe_run()
        self._warned = False
        self._warned_of_student = False
        self._begun = {} if self.checkpointer.path is None else plain_settings(self.student)

    def _check_settings(self) -> None:
        self.epochs = as_whole(1, MOST_EPOCHS, epochs=self.epochs)
        if self.make_optimizer is not None and not callable(self.make_optimizer):
            raise TypeError(f"{_OPTIMIZER}; got {type(self.make_optimizer).__name__}.")
        if self.on_epoch_end is not None and not callable(self.on_epoch_end):
            raise TypeError(
                "on_epoch_end is a function of the epoch's number and the student; got "
                f"{type(self.on_epoch_end).__name__}."
            )
        if self.on_epoch_end is not None and not takes(self.on_epoch_end, 2):
            raise TypeError(
                "on_epoch_end is called with two arguments, the epoch's number and the student: lambda epoch, student: "
                "print(epoch). The function that was given does not take two."
            )
        unmeasured = not self.distiller.task.has_classes and self.method.hard_loss is None
        if unmeasured and isinstance(self.batches, LoaderBatches) and self.batches.validation is not None:
            raise ValueError(  # now, and not after the first epoch
                "This task has no classes, and the method has no loss on the labels by which the validation data could "
                "be measured. Add HardLabels(hard=F.mse_loss), or leave out validation."
            )
        if self.distiller.teacher is not None:
            self.batches.check_teacher(self.distiller.teacher)
            if self.method.needs_teacher_logits and isinstance(self.batches, IndexedBatches):
                teacher = self.distiller.teacher
                self.batches.check_class_names("teacher", getattr(teacher, "model", teacher))
        every = self.checkpointer.every
        if every is not None and isinstance(self.batches, LoaderBatches):
            raise ValueError(
                "checkpoint_every works on a DataModule, which can begin an epoch in its middle: a loader's "
                "checkpoints are written after each epoch. Leave it out, or make a DataModule: data.from_datasets(...)."
            )
        self.accumulation_steps = as_whole(-LARGEST_WHOLE, gradient_accumulation_steps=self.accumulation_steps)
        if not 1 <= self.accumulation_steps <= self.steps_per_epoch:
            raise ValueError(
                f"gradient_accumulation_steps is a whole number from 1 to the {self.steps_per_epoch} steps of an "
                f"epoch; got {self.accumulation_steps}."
            )
        if every is not None and every % self.accumulation_steps:
            raise ValueError(
                f"A checkpoint holds no half-made gradient: checkpoint_every={every} is no multiple of "
                f"gradient_accumulation_steps={self.accumulation_steps}."
            )
        if self.ema_decay is not None and not (isinstance(self.ema_decay, float | int) and 0 < self.ema_decay < 1):
            raise ValueError(f"ema_decay lies between 0 and 1, 0.999 for instance; got {self.ema_decay!r}.")

    def _warn_of_slow_average(self) -> None:
        updates = math.ceil(self.steps_per_epoch / self.accumulation_steps) * self.epochs
        after_first = updates - 1  # the first takes the weights as they are
        left = 0.0 if self.ema_decay is None or not after_first else self.ema_decay**after_first
        if left > MOST_OF_INITIAL_WEIGHTS:
            warnings.warn(
                f"With ema_decay={self.ema_decay} and {updates} updates the averaged student is still {left:.0%} what "
                "it was after the first of them. Train longer, or take at most "
                f"{MOST_OF_INITIAL_WEIGHTS ** (1 / after_first):.3g}.",
                stacklevel=5,
            )

    @contextmanager
    def prepare(self) -> Iterator[None]:
        """Everything that must be undone afterwards: hooks, random state, devices, the teacher's mode."""
        home = next((p.device for p in self.student.parameters()), torch.device("cpu"))
        with ExitStack() as stack:
            stack.enter_context(devices.isolate_rng(self.config.device))
            devices.seed_rng(process_seed(self.seed), self.config.device)
            stack.enter_context(self.config.borrow(self.student))
            stack.callback(self.method.to, home)
            if self.ema_decay is not None:  # before there are hooks, which a copy would have too
                self.average = self._average_of_student(self.ema_decay)
            stack.enter_context(self.distiller.extractor)
            if self.distiller.teacher is not None and self.method.needs_teacher:
                stack.enter_context(self.distiller.teacher.activate(self.method.teacher_layers, self.config))
            yield

    def _average_of_student(self, decay: float) -> AveragedModel:
        try:
            return AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        except RuntimeError as error:
            raise ValueError(
                f"ema_decay needs a copy of the student, and torch cannot copy this one ({error}). Weights that are "
                "computed from others are such a case: torch.nn.utils.prune.remove makes a pruned one plain, and "
                "torch.nn.utils.parametrizations.weight_norm takes the place of torch.nn.utils.weight_norm."
            ) from error

    def sanity_check(self) -> None:
        """Run both networks on a small batch before anything is trained: sizes must fit, projectors get theirs."""
        example = self.batches.example()
        with self.config.autocast():
            self.distiller.setup(example, self.batches.check_logits)
        self._warn_of_rounded_columns(self.distiller.adapter.student_inputs_of(example))
        self.method.to(self.config.device)
        # As for a method without projectors, so that runs of one seed see one order and one dropout.
        devices.seed_rng(process_seed(self.seed), self.config.device)
        # Each once: a method may hold a layer of the student.
        self.parameters = list(dict.fromkeys([*self.student.parameters(), *self.method.parameters()]))
        learning = [p for p in self.parameters if p.requires_grad]
        if not learning:
            raise ValueError(
                f"Nothing of this {type(self.student).__name__} can learn: it has no parameter that is not frozen. Set "
                "requires_grad_(True) on the layers that are to be trained."
            )
        self._warn_of_sixteen_bits()
        self.frozen = [(name, p) for name, p in self.student.named_parameters() if not p.requires_grad]
        self.model = distributed.data_parallel(self.distiller)
        if self.make_optimizer is None:
            self.optimizer = self.recipe.make_optimizer(self.parameters)
        else:
            self.optimizer = self.make_optimizer(learning)
            if not isinstance(self.optimizer, torch.optim.Optimizer):
                raise TypeError(f"{_OPTIMIZER}; it gave {type(self.optimizer).__name__}.")
            if isinstance(self.optimizer, torch.optim.LBFGS):
                raise ValueError(
                    "LBFGS asks for the loss of a batch again and again, by a closure, and fit computes it once. Take "
                    "another optimiser, or a loop of your own around a Distiller."
                )
            taken = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
            if taken.isdisjoint(map(id, learning)):
                raise ValueError(f"{_OPTIMIZER}; it gave one of other parameters, so that nothing would be trained.")
            left = [n for n, p in self.method.named_parameters() if p.requires_grad and id(p) not in taken]
            if left:
                raise ValueError(
                    f"The optimiser leaves out {', '.join(left)} of the method: take all parameters that the function "
                    "is given, or call requires_grad_(False) on those that are to stay as they are."
                )
        self._check_validation()
        if self.checkpointer.path is not None:
            for part, module in self._modules.items():
                refuse_extra_state({f"{part}/{name}": value for name, value in module.state_dict().items()})
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.options = plain_groups(self.optimizer)  # as it begins: some count in their groups
        if self.checkpointer.path is not None:
            refuse_unwritable(self.options)

    def _check_validation(self) -> None:
        """Evaluate a little of the validation data: what cannot be evaluated is said now, and not after an epoch."""
        with (
            self.distiller.extractor.paused(),
            devices.isolate_rng(self.config.device),
            # What says nothing of the data: no label in the first batch, or initial weights that overflow in eval mode.
            suppress(NothingCounts, FloatingPointError),
        ):
            self.batches.evaluate(self.student, self.method.hard_loss, sanity_check=True)

    @torch.no_grad()
    def _warn_of_rounded_columns(self, inputs: Any) -> None:
        """Of a table whose values bfloat16 does not tell apart, unless the student normalises it first."""
        table = inputs if isinstance(inputs, Tensor) and inputs.ndim == 2 and inputs.is_floating_point() else None
        if not self.config.bfloat16 or table is None or len(table) < 2:
            return
        lost = (table - table.bfloat16()).std(dim=0) / table.std(dim=0)  # none of a column that is constant
        columns = (lost > MOST_ROUNDED).nonzero().flatten().tolist()
        if not columns:
            return
        with keep_modes(self.student):
            self.student.eval()
            exact = self.distiller.extractor(inputs).logits
            with self.config.autocast():
                rounded = self.distiller.extractor(inputs).logits
        if (exact - rounded.to(exact)).std() > MOST_ROUNDED * exact.std(dim=0).mean():
            warnings.warn(
                f"bfloat16 does not tell apart the values in {len(columns)} column(s) of the inputs (number "
                f"{columns[0]} first): they are large beside their differences. Bring each column to mean 0 and "
                "standard deviation 1, or give precision='fp32', to evaluate as well.",
                stacklevel=4,
            )

    def _warn_of_sixteen_bits(self) -> None:
        kinds = (torch.float16, torch.bfloat16)
        short = [name for name, p in self.student.named_parameters() if p.requires_grad and p.dtype in kinds]
        if short:
            warnings.warn(
                f"The student's weights have 16 bits ({few(short)}), in which small steps are rounded away. Call "
                "student.float() first: fit computes in bfloat16 by itself, precision='bf16'.",
                stacklevel=4,
            )

    def fit(self) -> None:
        """All epochs that are left."""
        self.progress_bar.reset(total=self.total_steps * self.batches.batch_size)
        self.progress_bar.update(self.step * self.batches.batch_size)
        while self.step < self.total_steps:
            self._train_epoch(self.step // self.steps_per_epoch)
        if self.average is not None:
            self.student.load_state_dict(self.average.module.state_dict())

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        """One step on a batch; the loss, its terms and the training accuracy, as scalars on the device."""
        with self.config.autocast(), _explain_single_sample():
            losses = self.model(batch)
        if taken := COLUMNS & losses.terms.keys():
            raise ValueError(
                f"A term of the method is called {min(taken)!r}, and so is a column of the history. Give it another "
                "name."
            )
        values = {"loss": losses.total.detach(), **{name: term.detach() for name, term in losses.terms.items()}}
        self.log.check_step(self.step, values, partial(self._parts, batch, losses.rows))
        first, size = self._accumulation_group()
        if self.step == first:
            self.optimizer.zero_grad(set_to_none=True)
            self.distiller.zero_grad(set_to_none=True)  # also what this optimiser leaves alone: the clip counts it
        (losses.total / size if size > 1 else losses.total).backward()
        if self.step == first + size - 1:
            self._update_weights(first + (size - 1) / 2)
        if is_judged(losses.labels, losses.rows, self.distiller.task):  # else only a loss can read them
            values["train_accuracy"] = accuracy(losses.rows, losses.labels)
            values[LABELLED] = has_label(losses.labels).float().sum()
        return values

    def _parts(self, batch: Any, rows: Tensor) -> dict[str, Any]:
        adapter = self.distiller.adapter
        parts = {"inputs": adapter.student_inputs_of(batch), "labels": adapter.labels_of(batch)}
        if not bool(self.distiller.task.damaged(rows).any()):  # else they say no more than the loss
            parts["logits of classes that are masked by -inf (-6e4 is finite)"] = rows
        return parts

    def _accumulation_group(self) -> tuple[int, int]:
        """The first of the steps whose gradients are added up with this one's, and how many they are."""
        epoch_start = self.step - self.step % self.steps_per_epoch
        first = self.step - (self.step - epoch_start) % self.accumulation_steps
        return first, min(self.accumulation_steps, epoch_start + self.steps_per_epoch - first)

    def _update_weights(self, step: float) -> None:
        """By the learning rate of this step: of accumulated gradients the middle one, as of one large batch."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = self.recipe.learning_rate_at(step, self.total_steps, peak)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.student)
            self._copy_constants(self.average.module)

    @torch.no_grad()
    def _copy_constants(self, average: nn.Module) -> None:
        """Of the buffers only the statistics have an average: indices would be rounded, and masks are infinite."""
        kept = dict(average.named_buffers())
        for name, buffer in self.student.named_buffers():
            if name in kept and not name.endswith(("running_mean", "running_var")):
                kept[name].copy_(buffer)

    def _train_epoch(self, epoch: int) -> None:
        started, before = time.perf_counter(), self.seconds
        first = self.step - epoch * self.steps_per_epoch
        self._warn_of_unfrozen()
        self.student.train()
        for name, module in self.student.named_modules():  # by name: SyncBatchNorm replaces modules
            if name in self.resting:
                module.training = False
        self.method.train()
        for batch in self.batches.epoch(epoch, first):
            self.log.append(self.step, count_samples(batch, self.distiller.adapter), self.train_step(batch))
            self.step += 1
            inside = self.step % self.steps_per_epoch  # groups of gradients begin with the epoch, so this does
            due = inside != 0 and self.checkpointer.is_due(inside)
            if due or self.log.is_full:
                self._read_log()
            self.progress_bar.update(self.batches.batch_size)
            self.seconds = before + time.perf_counter() - started
            if due:
                self.log.refuse_non_finite_weights(self.step, self.student, self.method)
                self.save_checkpoint()
        self._read_log()
        self.seconds = before + time.perf_counter() - started  # an accelerator was waited for until now
        self._end_epoch(epoch)

    def _warn_of_unfrozen(self) -> None:
        """Of layers that were frozen when the optimiser was made, and that it does not hold."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        freed = [name for name, p in self.frozen if p.requires_grad and id(p) not in held]
        if freed:
            warnings.warn(
                f"{few(freed)} got requires_grad after the training had begun, and the optimiser does not hold them: "
                "they stay as they are. Unfreeze them before fit, or call fit a second time.",
                stacklevel=5,
            )
            self.frozen = []

    def _read_log(self) -> None:
        loss = self.log.read()
        if loss is not None:
            self.progress_bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def _end_epoch(self, epoch: int) -> None:
        distributed.broadcast_buffers(self.student)
        if self.average is not None:
            distributed.broadcast_buffers(self.average)
        self.log.refuse_non_finite_weights(self.step, self.student, self.method)
        row: dict[str, float] = {"epoch": epoch + 1, "seconds": self.seconds, **self.log.epoch_means()}
        evaluated = self.student if self.average is None else self.average.module
        diverged = f"The validation loss is not finite after epoch {epoch + 1} of {self.epochs}."
        try:
            # Else it would keep the layers of all validation batches; and a loader draws a number each time.
            with self.distiller.extractor.paused(), devices.isolate_rng(self.config.device):
                metrics = self.batches.evaluate(evaluated, self.method.hard_loss)
        except FloatingPointError as error:  # logits that are not finite
            raise self.checkpointer.diverged(diverged) from error
        shown = ""
        if metrics is not None:
            if not math.isfinite(metrics.loss):
                raise self.checkpointer.diverged(diverged)
            row |= {"validation_loss": metrics.loss, "validation_accuracy": metrics.accuracy}
            shown = f", validation {metrics.accuracy:.1%}" if math.isfinite(metrics.accuracy) else ""
        self.rows.append(row)
        if self.on_epoch_end:
            # A callback may use up random numbers, and keep a copy of the student.
            with devices.isolate_rng(self.config.device), self.distiller.extractor.paused():
                self.on_epoch_end(epoch + 1, evaluated)
        self.progress_bar.set_description(f"epoch {epoch + 1}/{self.epochs}{shown}")
        if self.checkpointer.path:
            self.save_checkpoint()

    def _describe_run(self) -> dict[str, Any]:
        """What must be the same for a run to be the same run; it is stored in its checkpoints."""
        options = {
            "gradient_accumulation_steps": self.accumulation_steps if self.accumulation_steps > 1 else None,
            "ema_decay": self.ema_decay,
            "optimizer": "one of the caller's" if self.make_optimizer else None,
        }
        return {
            "student": type(self.student).__name__,
            "structure": fingerprint([], repr(self.student))[:8],  # as it begins: on_epoch_end may change its dropout
            "teacher": self._teacher_fingerprint(),
            "teacher outputs": self._stored_as(),
            "method": repr(self.method),  # without projectors: their sizes may be those of the first batch
            **self.batches.describe(),
            "epochs": self.epochs,
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "precision": str(self.config),
            # A sum is split over the threads, and how it is split decides how it is rounded.
            "threads": torch.get_num_threads() if self.config.device.type == "cpu" else None,
            "settings": self._describe_settings(),
            **options,
        }

    def _describe_settings(self) -> dict[str, str]:
        """What the method's text does not show: attributes, layers, and what functions of the user's compute with."""
        given = {f"adapter.{name}": value for name, value in vars(self.distiller.adapter).items() if value is not None}
        given |= {"optimizer": self.make_optimizer} if self.make_optimizer else {}
        known = self._trained()
        found = self._describe_method() | {name: describe(value, known) for name, value in given.items()}
        teacher = self.distiller.teacher
        if isinstance(teacher, FunctionTeacher) and self.method.needs_teacher:
            found["teacher"] = describe_source(teacher.function)
        return found

    def _describe_method(self) -> dict[str, str]:
        return {
            f"method.{name}": text
            for name, text in settings(self.method, Method, self._trained()).items()
            # Projectors are made at the first step; the others follow from what is given.
            if "projectors." not in name and not name.endswith(("._spec", "._terms", "._soft", "._pairing"))
        }

    def _trained(self) -> dict[int, str]:
        """What is described by its name: its weights are not those of the checkpoint's run, until that is loaded."""
        return names_in(student=self.student, method=self.method)

    def _teacher_fingerprint(self) -> str | None:
        teacher = self.distiller.teacher
        if teacher is None or not self.method.needs_teacher:
            return None
        found = teacher.fingerprint
        if found is None:
            return None
        # A text of another kind may differ at its end alone.
        return (found if re.fullmatch("[0-9a-f]{64}", found) else fingerprint([], found))[:8]

    def _stored_as(self) -> str | None:
        teacher = self.distiller.teacher
        if not isinstance(teacher, CachedTeacher) or not self.method.needs_teacher:
            return None
        half = teacher.metadata.get("half")  # not of outputs that came from elsewhere
        return None if half is None else "in 16 bits" if half else "in 32 bits"

    def save_checkpoint(self) -> None:
        """Write all that is needed to go on from here."""
        numbers = numbers_of(self.method)
        self._warn_of_changes(numbers)
        self._warn_of_changed_student()
        facts = {
            "run": self.run,
            "config": models.find_config(self.student),  # so that models.load can open it
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "sums": distributed.all_reduce_values(self.log.sums),
            "numbers": numbers,
        }
        self.checkpointer.save(self._modules, self.optimizer, self.options, facts, self.config.device)

    def _warn_of_changes(self, kept: Collection[str]) -> None:
        """Say once what the training has changed in a method of the user's own and no checkpoint keeps."""
        now = self._describe_method()
        changed = [name.removeprefix("method.") for name in now if now[name] != self.run["settings"].get(name)]
        own = own_modules(self.method)
        lost = [name for name in changed if name.rpartition(".")[0] in own and name not in kept]
        if lost and not self._warned:
            self._warned = True
            warnings.warn(
                f"The training has changed {few(lost)} of its method, which a checkpoint does not keep: a resumed run "
                "would begin with the first value again. Keep a tensor by register_buffer, and anything else in "
                "attributes that are single numbers or texts.",
                stacklevel=2,
            )

    @property
    def _modules(self) -> dict[str, nn.Module]:
        average = {} if self.average is None else {"average": self.average}
        return {"student": self.student, "method": self.method, **average}

    def _check_position(self, facts: dict[str, Any]) -> None:
        """Raise ValueError for a step that this run does not have, or other rows than one an epoch."""
        step, rows = facts["step"], facts["rows"]
        if step > self.total_steps:
            raise ValueError(f"it was written after step {step}, and the run has {self.total_steps}")
        if len(rows) != step // self.steps_per_epoch:
            raise ValueError(
                f"it has rows of {len(rows)} epochs, and was written in epoch {step // self.steps_per_epoch + 1}"
            )

    def _warn_of_changed_student(self) -> None:
        """Say once what the training, or on_epoch_end, has changed in the student beside its weights and buffers."""
        now = plain_settings(self.student)
        # What was None is noted while it runs, as the shape of a batch; nan is not equal to itself.
        begun = {name: value for name, value in self._begun.items() if value is not None and name in now}
        lost = [name for name, value in begun.items() if repr(now[name]) != repr(value)]
        if lost and not self._warned_of_student:
            self._warned_of_student = True
            warnings.warn(
                f"The training has changed {few(lost)} of its student, which a checkpoint does not keep: a resumed run "
                "would begin with the first value again. Keep what counts in a buffer (register_buffer), and let a "
                "rate follow from it.",
                stacklevel=2,
            )

    def load_checkpoint(self, other_threads: bool = False) -> None:
        """Go on from the checkpoint. other_threads: also with another number of threads than it was written with."""
        run = {**self.run, "threads": None} if other_threads else self.run
        facts = self.checkpointer.load(self._modules, self.optimizer, run, self.config.device, self._check_position)
        self.step, self.seconds, self.rows = facts["step"], facts["seconds"], facts["rows"]
        set_numbers(self.method, facts.get("numbers", {}))  # a checkpoint of before has none
        self.log.sums = facts["sums"] if distributed.rank() == 0 else dict.fromkeys(facts["sums"], 0.0)


@contextmanager
def _explain_single_sample() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "A batch of one sample has no statistics for a BatchNorm layer in train mode. Leave out a last batch that "
            f"is too small, DataLoader(..., drop_last=True), or choose another batch size. ({error})"
        ) from error


def _frozen_in_eval_mode(model: nn.Module) -> set[str]:
    """The names of the modules in eval mode without a parameter that learns, and of those in eval mode inside them.

    Whoever froze them so wants their statistics to stay, too.
    """
    found: set[str] = set()
    for prefix, module in model.named_modules():
        parameters = list(module.parameters())
        if parameters and not module.training and not any(p.requires_grad for p in parameters):
            found.update(name for name, part in module.named_modules(prefix=prefix) if not part.training)
    return found
