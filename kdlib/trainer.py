"""The loop of one training run; `train.fit` is how to start it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib import devices, distributed, losses
from kdlib.checkpoints import Checkpointer
from kdlib.data import Augmentation, Batch, DataModule, epoch_order
from kdlib.distiller import Distiller
from kdlib.errors import explain_shape_errors
from kdlib.evaluation import check_classes, evaluate
from kdlib.files import fingerprint
from kdlib.hooks import FeatureExtractor, ModelOutput
from kdlib.methods import Method
from kdlib.recipes import Recipe
from kdlib.teachers import CachedTeacher, FrozenTeacher
from kdlib.training_log import TrainingLog


@dataclass
class Trainer:
    """One run of `fit`: its settings, how far it has come, and the steps it takes."""

    student: nn.Module
    data: DataModule
    teacher: FrozenTeacher | CachedTeacher | None
    method: Method
    epochs: int
    recipe: Recipe
    augmentation: Augmentation
    views: int | None
    seed: int
    config: devices.DeviceConfig
    checkpointer: Checkpointer
    progress_bar: tqdm
    on_epoch_end: Callable[[int, nn.Module], None] | None = None
    step: int = 0
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.data.train)
        # A last batch that is not full is left out: its statistics would be noisier than the others', and each epoch
        # leaves out other images. A dataset smaller than one batch is one batch.
        self.batch_size = min(self.recipe.batch_size, count)
        self._check_settings(count)
        self.steps_per_epoch = count // self.batch_size
        self.total_steps = self.steps_per_epoch * self.epochs
        self.log = TrainingLog(self.config.device, self.total_steps, self.checkpointer.diverged)
        self.run = self._describe_run()

    def _check_settings(self, count: int) -> None:
        if count < 2:
            raise ValueError(
                f"{self.data.name} has {count} training images; at least 2 are needed for batch statistics."
            )
        if self.epochs < 1:
            raise ValueError(f"epochs is at least 1; got {self.epochs}.")
        if self.method.needs_teacher and self.teacher is None:
            raise ValueError(f"{type(self.method).__name__} needs a teacher: fit(..., teacher=models.load(...)).")
        if isinstance(self.teacher, FrozenTeacher) and _share_weights(self.student, self.teacher.model):
            raise ValueError(
                "Student and teacher share weights, so the teacher would learn. Load or build a second model."
            )
        if self.teacher is not None:
            self.teacher.check_compatible(self.data.train, self.augmentation, self.seed)
            if self.teacher.views and self.views > self.teacher.views:
                raise ValueError(
                    f"{self.views} views are asked for; the cache holds {self.teacher.views} of each image."
                )
        processes = distributed.world_size()
        if self.batch_size % processes or self.batch_size < 2 * processes:
            raise ValueError(
                f"{processes} processes cannot share batches of {self.batch_size} images equally. Choose a batch size "
                f"that is a multiple of {processes} and at least {2 * processes}, and no fewer training images."
            )

    @contextmanager
    def prepare(self) -> Iterator[None]:
        """Everything that must be undone afterwards: hooks, random state, devices, the teacher's mode."""
        home = next((p.device for p in self.student.parameters()), torch.device("cpu"))
        with ExitStack() as stack:
            stack.enter_context(devices.isolate_rng(self.config.device))
            torch.manual_seed(self.seed + (distributed.rank() << 40))  # each process its own dropout
            self.config.move(self.student)
            stack.callback(self.student.to, home)
            stack.callback(self.method.to, home)
            extractor = FeatureExtractor(self.student, self.method.student_layers, compile=self.config.compile)
            self.extractor = stack.enter_context(extractor)
            if self.teacher is not None and self.method.needs_teacher:
                stack.enter_context(self.teacher.activate(self.method.teacher_layers, self.config))
            yield

    @torch.no_grad()
    def sanity_check(self) -> None:
        """Run both networks on two images before anything is trained: sizes must fit, projectors get theirs."""
        batch = next(self._iter_batches(0, torch.arange(2)))
        self.student.eval()  # so that no batch statistic moves
        uncompiled = FeatureExtractor(self.student, self.extractor.layers)
        with explain_shape_errors("student", batch.images), self.config.autocast(), uncompiled as extractor:
            output = extractor(batch.images)
        with explain_shape_errors("teacher", batch.images):
            teacher_output = self._teacher_output(batch)
        for role, given in {"student": output, "teacher": teacher_output}.items():
            if given is not None:
                check_classes(role, given.logits, self.data)
                losses.warn_if_probabilities(given.logits, role)
        if not self.method.trains_logits and not any(feature is output.logits for feature in output.features.values()):
            warnings.warn(
                "No term of this method looks at the logits, so the classifier keeps its initial weights. "
                "Add HardLabels() or Logit(...) to it.",
                stacklevel=4,
            )
        self.method.setup(output.float(), teacher_output)
        self.method.to(self.config.device)
        self.parameters = [*self.student.parameters(), *self.method.parameters()]
        distiller = Distiller(self.extractor, self.method, self.config)
        self.distiller = distributed.data_parallel(distiller, all_used=self.method.trains_logits)
        self.optimizer = self.recipe.make_optimizer(self.parameters)

    def _teacher_output(self, batch: Batch) -> ModelOutput | None:
        if self.teacher is None or not self.method.needs_teacher:
            return None
        return self.teacher(batch).float()

    def fit(self) -> None:
        """All epochs that are left."""
        self.progress_bar.reset(total=self.total_steps * self.batch_size)
        self.progress_bar.update(self.step * self.batch_size)
        while self.step < self.total_steps:
            self._train_epoch(self.step // self.steps_per_epoch)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One step on a batch; the loss, its terms and the training accuracy, as scalars on the device."""
        learning_rate = self.recipe.learning_rate_at(self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        teacher_output = self._teacher_output(batch)
        terms, logits = self.distiller(batch.images, batch.labels, teacher_output)
        loss = sum(terms.values())
        values = {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}
        self.log.check_step(self.step, values)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        values["train_accuracy"] = (logits.argmax(1) == batch.labels).float().mean()
        return values

    def _train_epoch(self, epoch: int) -> None:
        started, before = time.perf_counter(), self.seconds
        done = self.step - epoch * self.steps_per_epoch
        order = epoch_order(self.data.train, self.seed, epoch)
        sampler = order[: self.steps_per_epoch * self.batch_size][done * self.batch_size :]
        self.student.train()
        self.method.train()
        for batch in self._iter_batches(epoch, distributed.shard_batches(sampler, self.batch_size)):
            self.log.append(self.step, len(batch), self.train_step(batch))
            self.step += 1
            due = self.checkpointer.is_due(self.step) and self.step % self.steps_per_epoch != 0
            if due or self.log.is_full:
                self._read_log()
            self.progress_bar.update(self.batch_size)
            self.seconds = before + time.perf_counter() - started
            if due:
                self.log.refuse_non_finite_weights(self.step, self.student, self.method)
                self.save_checkpoint()
        self._read_log()
        self._end_epoch(epoch)

    def _iter_batches(self, epoch: int, sampler: Tensor) -> Iterator[Batch]:
        return self.data.train.iter_batches(
            self.batch_size // distributed.world_size(),
            sampler=sampler,
            augmentation=self.augmentation,
            seed=self.seed,
            view=epoch % self.views if self.views else epoch,
            device=self.config.device,
        )

    def _read_log(self) -> None:
        loss = self.log.read()
        if loss is not None:
            self.progress_bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def _end_epoch(self, epoch: int) -> None:
        distributed.broadcast_buffers(self.student)
        self.log.refuse_non_finite_weights(self.step, self.student, self.method)
        means = self.log.epoch_means()
        precision = "bf16" if self.config.bfloat16 else "fp32"
        metrics = evaluate(self.student, self.data.validation, device=str(self.config.device), precision=precision)
        if not math.isfinite(metrics.loss):
            raise self.checkpointer.diverged(
                f"The validation loss is not finite after epoch {epoch + 1} of {self.epochs}."
            )
        row = {"epoch": epoch + 1, "seconds": self.seconds, **means}
        row |= {"validation_loss": metrics.loss, "validation_accuracy": metrics.accuracy}
        self.rows.append(row)
        if self.on_epoch_end:
            with devices.isolate_rng(self.config.device):  # a callback may use up random numbers
                self.on_epoch_end(epoch + 1, self.student)
        self.progress_bar.set_description(f"epoch {epoch + 1}/{self.epochs}, validation {metrics.accuracy:.1%}")
        if self.checkpointer.path:
            self.save_checkpoint()

    def _describe_run(self) -> dict[str, Any]:
        """What must be the same for a run to be the same run; it is stored in its checkpoints."""
        return {
            "student": type(self.student).__name__,
            "structure": fingerprint([], repr(self.student))[:8],  # as it begins: on_epoch_end may change its dropout
            "teacher": self._teacher_fingerprint(),
            "method": repr(self.method),
            "data": self.data.train.fingerprint,
            "epochs": self.epochs,
            "recipe": asdict(self.recipe),
            "augmentation": self.augmentation.to_dict(),
            "views": self.views,
            "seed": self.seed,
            "precision": str(self.config),
        }

    def _teacher_fingerprint(self) -> str | None:
        if self.teacher is None or self.checkpointer.path is None or not self.method.needs_teacher:
            return None  # to hash the weights of a large teacher takes a second
        return self.teacher.fingerprint[:8]

    def save_checkpoint(self) -> None:
        """Write all that is needed to go on from here."""
        config = getattr(self.student, "config", None)  # other libraries keep objects under this name
        facts = {
            "run": {**self.run, "method": repr(self.method)},  # which now shows its projectors
            "config": config if isinstance(config, dict) else None,  # so that models.load can open it
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "sums": distributed.all_reduce_values(self.log.sums),
        }
        self.checkpointer.save(self.student, self.method, self.optimizer, facts, self.config.device)

    def load_checkpoint(self) -> None:
        """Go on from the checkpoint."""
        run = {**self.run, "method": repr(self.method)}
        facts = self.checkpointer.load(self.student, self.method, self.optimizer, run, self.config.device)
        self.step, self.seconds, self.rows = facts["step"], facts["seconds"], facts["rows"]
        self.log.sums = facts["sums"] if distributed.rank() == 0 else dict.fromkeys(facts["sums"], 0.0)


def _share_weights(a: nn.Module, b: nn.Module) -> bool:
    pointers = {p.data_ptr() for p in a.parameters() if p.numel()}
    return any(p.data_ptr() in pointers for p in b.parameters())
