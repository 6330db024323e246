"""The steps of one training run; `train.fit` is its door."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib import checkpoints, devices, distributed, losses
from kdlib._messages import explained
from kdlib.data import Augmentation, Batch, DataSet, epoch_order
from kdlib.evaluation import evaluate, refuse_other_classes
from kdlib.files import digest
from kdlib.methods import Method
from kdlib.recipes import Recipe
from kdlib.taps import Answer, Taps
from kdlib.teachers import Cached, Frozen


@dataclass
class Loop:
    """One run of `fit`: where it stands, and the steps it takes."""

    student: nn.Module
    data: DataSet
    teacher: Frozen | Cached | None
    method: Method
    epochs: int
    recipe: Recipe
    augmentation: Augmentation
    views: int | None
    seed: int
    place: devices.Place
    checkpoint: Path | None
    every: int | None
    bar: tqdm
    on_epoch: Callable[[int, nn.Module], None] | None = None
    step: int = 0
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    unread: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # To read a value is to wait for an accelerator: there, look at the losses only now and then. On a CPU
        # nothing waits, so a loss that is not finite is seen before it reaches the weights.
        self.careful = self.place.device.type == "cpu"
        self.look = 10 if self.careful else 50
        count = len(self.data.train)
        if count < 2:
            raise ValueError(
                f"{self.data.name} has {count} training images; at least 2 are needed for batch statistics."
            )
        if self.epochs < 1 or (self.every is not None and self.every < 1):
            raise ValueError(f"epochs and every are at least 1; got {self.epochs} and {self.every}.")
        if self.method.needs_teacher and self.teacher is None:
            raise ValueError(f"{type(self.method).__name__} needs a teacher: fit(..., teacher=models.load(...)).")
        if isinstance(self.teacher, Frozen) and _share(self.student, self.teacher.model):
            raise ValueError(
                "Student and teacher share weights, so the teacher would learn. Load or build a second model."
            )
        asked = self.checkpoint is not None and self.method.needs_teacher
        self.taught_by = self.teacher.identity[:8] if asked else None
        self.structure = digest([], repr(self.student))[:8]  # as it begins: on_epoch may turn its dropout down
        if self.teacher is not None:
            self.teacher.accept(self.data.train, self.augmentation, self.seed)
            if self.teacher.views and self.views > self.teacher.views:
                raise ValueError(
                    f"{self.views} views are asked for; the cache holds {self.teacher.views} of each image."
                )
        # A last batch that is not full is left out: its statistics would be noisier than the others', and each epoch
        # leaves out other images. A data set smaller than one batch is one batch.
        self.batch_size = min(self.recipe.batch_size, count)
        self.steps_per_epoch = count // self.batch_size
        self.steps = self.steps_per_epoch * self.epochs
        processes = distributed.size()
        if self.batch_size % processes or self.batch_size < 2 * processes:
            raise ValueError(
                f"{processes} processes cannot share batches of {self.batch_size} images equally. Choose a batch size "
                f"that is a multiple of {processes} and at least {2 * processes}, and no fewer training images."
            )

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Everything that must be undone afterwards: hooks, random state, devices, the teacher's mode."""
        home = next((p.device for p in self.student.parameters()), torch.device("cpu"))
        with ExitStack() as stack:
            stack.enter_context(devices.own_randomness(self.place.device))
            torch.manual_seed(self.seed + (distributed.rank() << 40))  # each process its own dropout
            self.place.put(self.student)
            stack.callback(self.student.to, home)
            stack.callback(self.method.to, home)
            layers = self.method.student_layers
            self.taps = stack.enter_context(Taps(self.student, layers, compiled=self.place.compiled))
            if self.teacher is not None and self.method.needs_teacher:
                stack.enter_context(self.teacher.opened(self.method.teacher_layers, self.place))
            yield

    @torch.no_grad()
    def rehearse(self) -> None:
        """Ask both networks about two images before anything is trained: sizes must fit, projections get theirs."""
        batch = next(self._batches(0, torch.arange(2)))
        self.student.eval()  # so that no batch statistic moves
        with explained("student", batch.images), self.place.autocast(), Taps(self.student, self.taps.names) as taps:
            ours = taps(batch.images)
        with explained("teacher", batch.images):
            theirs = self.teacher(batch) if self.method.needs_teacher else None
        for who, answer in {"student": ours, "teacher": theirs}.items():
            if answer is not None:
                refuse_other_classes(who, answer.logits, self.data)
                losses.warn_if_probabilities(answer.logits, who)
        if not self.method.trains_logits and not any(output is ours.logits for output in ours.layers.values()):
            warnings.warn(
                "No term of this method looks at the logits, so the classifier keeps its initial weights. "
                "Add HardLabels() or Logit(...) to it.",
                stacklevel=4,
            )
        self.method.attach(_floats(ours), _floats(theirs) if theirs else None)
        self.method.to(self.place.device)
        self.parameters = [*self.student.parameters(), *self.method.parameters()]
        learner = Learner(self.taps, self.method, self.place)
        self.learner = distributed.in_step(learner, all_used=self.method.trains_logits)
        self.optimizer = self.recipe.make_optimizer(self.parameters)

    def _batches(self, epoch: int, places: Tensor) -> Iterator[Batch]:
        return self.data.train.batches(
            self.batch_size // distributed.size(),
            places=places,
            augmentation=self.augmentation,
            seed=self.seed,
            view=epoch % self.views if self.views else epoch,
            device=self.place.device,
        )

    def run(self) -> None:
        """All epochs that are left."""
        self.bar.reset(total=self.steps * self.batch_size)
        self.bar.update(self.step * self.batch_size)
        while self.step < self.steps:
            self._epoch(self.step // self.steps_per_epoch)

    def _epoch(self, epoch: int) -> None:
        started, before = time.perf_counter(), self.seconds
        done = self.step - epoch * self.steps_per_epoch
        order = epoch_order(self.data.train, self.seed, epoch)
        places = order[: self.steps_per_epoch * self.batch_size][done * self.batch_size :]
        self.student.train()
        self.method.train()
        for batch in self._batches(epoch, distributed.share(places, self.batch_size)):
            self.unread.append((len(batch), self._step(batch)))
            self.step += 1
            due = bool(self.every) and self.step % self.every == 0 and self.step % self.steps_per_epoch != 0
            if due or len(self.unread) >= self.look:
                self._read()
            self.bar.update(self.batch_size)
            self.seconds = before + time.perf_counter() - started
            if due:
                self._refuse_spoilt_weights()
                self._save()
        self._read()
        self._close_epoch(epoch)

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        rate = self.recipe.rate(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        theirs = _floats(self.teacher(batch)) if self.method.needs_teacher else None
        terms, logits = self.learner(batch.images, batch.labels, theirs)
        loss = sum(terms.values())
        values = {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}
        if self.careful:
            self._refuse_non_finite(self.step, values)  # before it reaches the weights
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        values["train_accuracy"] = (logits.argmax(1) == batch.labels).float().mean()
        return values

    def _refuse_non_finite(self, step: int, values: dict[str, Any]) -> None:
        if math.isfinite(values["loss"]):
            return
        terms = {name: float(value) for name, value in values.items() if name not in ("loss", "train_accuracy")}
        shown = ", ".join(f"{name} = {value:.4g}" for name, value in terms.items())
        raise self._diverged(f"The loss is not finite at step {step} of {self.steps}: {shown}.")

    def _diverged(self, what: str) -> FloatingPointError:
        saved = self.checkpoint if self.checkpoint and self.checkpoint.exists() else None
        return FloatingPointError(
            f"{what} "
            + (f"The last good checkpoint is {saved}. " if saved else "No checkpoint was written. ")
            + "Lower the learning rate, clip gradients (Recipe(clip=1)), or use precision='fp32', and start anew."
        )

    def _refuse_spoilt_weights(self) -> None:
        """A finite loss can have a gradient that is not, and a step with it shows in the next loss only."""
        both = (self.student, self.method)
        learned = ((name, p) for part in both for name, p in part.named_parameters() if p.requires_grad)
        statistics = ((name, b) for part in both for name, b in part.named_buffers() if "running_" in name)
        spoilt = [name for name, tensor in chain(learned, statistics) if not bool(tensor.detach().isfinite().all())]
        if spoilt:
            shown = ", ".join(spoilt[:3]) + (", ..." if len(spoilt) > 3 else "")
            raise self._diverged(f"After step {self.step} of {self.steps} these are not finite: {shown}.")

    def _read(self) -> None:
        """Bring the values of the steps since the last look to the CPU, at once, and add them up."""
        if not self.unread:
            return
        names = list(self.unread[0][1])
        table = torch.stack([torch.stack([values[name] for name in names]) for _, values in self.unread]).tolist()
        for place, ((images, _), row) in enumerate(zip(self.unread, table, strict=True)):
            values = dict(zip(names, row, strict=True))
            self._refuse_non_finite(self.step - len(table) + place, values)
            for name, value in {**values, "images": 1}.items():
                self.totals[name] = self.totals.get(name, 0.0) + value * images
        self.unread.clear()
        self.bar.set_postfix(loss=f"{table[-1][0]:.3f}", refresh=False)

    def _close_epoch(self, epoch: int) -> None:
        distributed.align_buffers(self.student)
        self._refuse_spoilt_weights()
        totals = distributed.total(self.totals)
        images = totals.pop("images")
        means = {name: total / images for name, total in totals.items()}
        self.totals = {}
        scores = evaluate(
            self.student,
            self.data.validation,
            device=str(self.place.device),
            precision="bf16" if self.place.bfloat16 else "fp32",
        )
        if not math.isfinite(scores.loss):
            raise self._diverged(f"The validation loss is not finite after epoch {epoch + 1} of {self.epochs}.")
        row = {"epoch": epoch + 1, "seconds": self.seconds, **means}
        row |= {"validation_loss": scores.loss, "validation_accuracy": scores.accuracy}
        self.rows.append(row)
        if self.on_epoch:
            with devices.own_randomness(self.place.device):  # a look may use up random numbers
                self.on_epoch(epoch + 1, self.student)
        self.bar.set_description(f"epoch {epoch + 1}/{self.epochs}, validation {scores.accuracy:.1%}")
        if self.checkpoint:
            self._save()

    def _facts(self) -> dict[str, Any]:
        """What must be the same for a run to be the same run."""
        return {
            "student": type(self.student).__name__,
            "structure": self.structure,
            "teacher": self.taught_by,
            "method": repr(self.method),
            "data": self.data.train.fingerprint,
            "epochs": self.epochs,
            "recipe": asdict(self.recipe),
            "augmentation": asdict(self.augmentation),
            "views": self.views,
            "seed": self.seed,
            "precision": str(self.place),
        }

    def _save(self) -> None:
        facts = {
            "run": self._facts(),
            "described": getattr(self.student, "described", None),  # so that models.load can open it
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "totals": distributed.total(self.totals),
        }
        parts = {"student": self.student, "method": self.method}
        checkpoints.save(self.checkpoint, parts, self.optimizer, facts, self.place.device)

    def found(self) -> bool:
        """Whether there is a checkpoint; ValueError where some processes see one and others do not."""
        there = self.checkpoint is not None and self.checkpoint.exists()
        seen = distributed.total({"there": float(there)})["there"]
        if 0 < seen < distributed.size():
            raise ValueError(
                f"{seen:.0f} of {distributed.size()} processes see the checkpoint {self.checkpoint}: on several "
                "machines it must lie on a disk that all of them share."
            )
        return there

    def load(self) -> None:
        """Go on from the checkpoint."""
        parts = {"student": self.student, "method": self.method}
        facts = checkpoints.load(self.checkpoint, parts, self.optimizer, self._facts(), self.place.device)
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.rows = facts["rows"]
        self.totals = facts["totals"] if distributed.rank() == 0 else dict.fromkeys(facts["totals"], 0.0)


class Learner(nn.Module):
    """Student and method as one module: all that is trained, in one forward pass from images to loss terms."""

    def __init__(self, taps: Taps, method: Method, place: devices.Place) -> None:
        super().__init__()
        self.student, self.method = taps.model, method
        self.taps, self.place = taps, place

    def forward(self, images: Tensor, labels: Tensor, theirs: Answer | None) -> tuple[dict[str, Tensor], Tensor]:
        with self.place.autocast():
            ours = self.taps(images)
        ours = _floats(ours)
        terms = self.method(ours, theirs, labels)
        for name, term in terms.items():
            if term.ndim:
                raise ValueError(
                    f"The term {name!r} of the loss has shape {tuple(term.shape)}; a loss gives one number for a "
                    "batch: take its .mean()."
                )
        return terms, ours.logits.detach()


def _floats(answer: Answer) -> Answer:
    """Losses are computed in float32, whatever the networks ran in."""
    return Answer(answer.logits.float(), {name: output.float() for name, output in answer.layers.items()})


def _share(a: nn.Module, b: nn.Module) -> bool:
    ours = {p.data_ptr() for p in a.parameters() if p.numel()}
    return any(p.data_ptr() in ours for p in b.parameters())
