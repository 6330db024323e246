"""The one training loop, for every method.

run = train.fit(student, fashion, teacher=teacher, method=methods.Logit(temperature=4, alpha=0.1), epochs=3)
run.test_accuracy
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib import checkpoints, devices, losses
from kdlib.data import Augmentation, Batch, DataSet, Split, epoch_order
from kdlib.methods import HardLabels, Logit, Method
from kdlib.recipes import Recipe
from kdlib.taps import Answer, Taps
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


@dataclass(frozen=True)
class Scores:
    """How a model does on a split: accuracy in [0, 1], mean cross-entropy in nats, and its logits (N x C)."""

    accuracy: float
    loss: float
    logits: Tensor = field(repr=False)


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
    checkpoint: str | Path | None = None,
    every: int | None = None,
    resume: bool = False,
    test: bool = True,
    progress: bool = True,
) -> Run:
    """Train a student on `data.train`, look at `data.validation` after each epoch and at `data.test` once.

    teacher: a model (asked live), or stored answers. method: default Logit() with a teacher, HardLabels() without.
    augmentation: default, the data set's own. views: epochs go through this many augmented views of each image in
    turn; default, as many as a cached teacher holds, else a new view every epoch.
    seed: of order, augmentation and dropout, not of the student's initial weights.
    checkpoint: a file, written after every epoch, or every `every` steps; resume: go on from it if it exists.
    Raises ValueError when the pieces do not fit together, FloatingPointError when a loss is not finite.
    """
    # A copy: the caller's method keeps no projection of this run, so the same call twice gives the same student.
    method = copy.deepcopy(method) if method else (Logit() if teacher is not None else HardLabels())
    loop = _Loop(
        student=student,
        data=data,
        teacher=Frozen(teacher) if isinstance(teacher, nn.Module) else teacher,
        method=method,
        epochs=epochs,
        recipe=recipe or Recipe(),
        augmentation=data.augmentation if augmentation is None else augmentation,
        views=views or (teacher.views if isinstance(teacher, Cached) else None),
        seed=seed,
        place=devices.choose(device, precision),
        checkpoint=Path(checkpoint) if checkpoint else None,
        every=every,
        bar=tqdm(disable=not progress, unit="img", unit_scale=True),
    )
    with loop.bar, loop.opened():
        loop.rehearse()
        if resume and checkpoint and Path(checkpoint).exists():
            loop.load()
        loop.run()
    scores = evaluate(student, data.test, device=device, precision=precision) if test else None
    accuracy = scores.accuracy if scores else None
    last = loop.rows[-1]["validation_accuracy"]
    return Run(student.eval(), method, loop.rows, last, accuracy, loop.seconds, str(loop.place))


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, *, device: str = "auto", precision: str = "auto", batch_size: int = 500
) -> Scores:
    """Accuracy, loss and logits of a model on a whole split, unaugmented; the model comes back as it was.

    Raises ValueError for an empty split.
    """
    if len(split) == 0:
        raise ValueError("The split is empty: there is nothing to evaluate on.")
    place = devices.choose(device, precision)
    teacher = Frozen(model)  # the same promise is wanted here: eval mode, no gradient, given back unchanged
    with teacher.opened((), place):
        answers = [teacher(b).logits.float().cpu() for b in split.batches(batch_size, device=place.device)]
    logits = torch.cat(answers)
    accuracy = (logits.argmax(1) == split.labels).double().mean().item()
    return Scores(accuracy, F.cross_entropy(logits, split.labels).item(), logits)


@dataclass
class _Loop:
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
    step: int = 0
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    unread: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # To read a value is to wait for an accelerator: there, look at the losses only now and then.
        self.look = 1 if self.place.device.type == "cpu" else 50
        count, size = len(self.data.train), self.recipe.batch_size
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
        if self.teacher is not None:
            self.teacher.accept(self.data.train, self.augmentation, self.seed)
            if self.teacher.views and self.views > self.teacher.views:
                raise ValueError(
                    f"{self.views} views are asked for; the cache holds {self.teacher.views} of each image."
                )
        # A last batch that is not full is left out: its statistics would be noisier than the others', and each epoch
        # leaves out other images. A data set smaller than one batch is one batch.
        self.steps_per_epoch = max(1, count // size)
        self.steps = self.steps_per_epoch * self.epochs

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Everything that must be undone afterwards: hooks, random state, devices, the teacher's mode."""
        home = next((p.device for p in self.student.parameters()), torch.device("cpu"))
        devices_with_state = [self.place.device] if self.place.device.type == "cuda" else []
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=devices_with_state))
            torch.manual_seed(self.seed)
            self.place.put(self.student)
            stack.callback(self.student.to, home)
            stack.callback(self.method.to, home)
            self.taps = stack.enter_context(Taps(self.student, self.method.student_layers))
            if self.teacher is not None and self.method.needs_teacher:
                stack.enter_context(self.teacher.opened(self.method.teacher_layers, self.place))
            yield

    @torch.no_grad()
    def rehearse(self) -> None:
        """Ask both networks about two images before anything is trained: sizes must fit, projections get theirs."""
        batch = next(self._batches(0, torch.arange(2)))
        self.student.eval()  # so that no batch statistic moves
        with _explained("student", batch), self.place.autocast():
            ours = self.taps(batch.images)
        with _explained("teacher", batch):
            theirs = self.teacher(batch) if self.method.needs_teacher else None
        classes = self.data.num_classes
        for who, answer in {"student": ours, "teacher": theirs}.items():
            if answer is not None and answer.logits.shape[1] != classes:
                raise ValueError(
                    f"The {who} gives {answer.logits.shape[1]} logits, but {self.data.name} has {classes} classes. "
                    f"Build it with num_classes={classes}."
                )
            if answer is not None:
                losses.warn_if_probabilities(answer.logits, who)
        if not self.method.trains_logits:
            warnings.warn(
                "No term of this method looks at the logits, so the classifier keeps its initial weights. "
                "Add HardLabels() or Logit(...) to it.",
                stacklevel=4,
            )
        self.method.attach(_floats(ours), _floats(theirs) if theirs else None)
        self.method.to(self.place.device)
        self.parameters = [*self.student.parameters(), *self.method.parameters()]
        self.optimizer = self.recipe.make_optimizer(self.parameters)

    def _batches(self, epoch: int, places: Tensor) -> Iterator[Batch]:
        return self.data.train.batches(
            self.recipe.batch_size,
            places=places,
            augmentation=self.augmentation,
            seed=self.seed,
            view=epoch % self.views if self.views else epoch,
            device=self.place.device,
        )

    def run(self) -> None:
        """All epochs that are left."""
        self.bar.reset(total=self.steps * self.recipe.batch_size)
        self.bar.update(self.step * self.recipe.batch_size)
        while self.step < self.steps:
            self._epoch(self.step // self.steps_per_epoch)

    def _epoch(self, epoch: int) -> None:
        started, before = time.perf_counter(), self.seconds
        done = self.step - epoch * self.steps_per_epoch
        order = epoch_order(self.data.train, self.seed, epoch)
        places = order[: self.steps_per_epoch * self.recipe.batch_size][done * self.recipe.batch_size :]
        self.student.train()
        self.method.train()
        for batch in self._batches(epoch, places):
            self.unread.append((len(batch), self._step(batch)))
            self.step += 1
            due = bool(self.every) and self.step % self.every == 0 and self.step % self.steps_per_epoch != 0
            if due or len(self.unread) >= self.look:
                self._read()
            self.bar.update(len(batch))
            self.seconds = before + time.perf_counter() - started
            if due:
                self._save()
        self._read()
        self._close_epoch(epoch)

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        rate = self.recipe.rate(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        theirs = self.teacher(batch) if self.method.needs_teacher else None
        with self.place.autocast():
            ours = self.taps(batch.images)
        ours = _floats(ours)
        terms = self.method(ours, _floats(theirs) if theirs else None, batch.labels)
        loss = sum(terms.values())
        values = {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}
        if self.look == 1:
            self._refuse_non_finite(self.step, values)  # before it reaches the weights
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        values["train_accuracy"] = (ours.logits.detach().argmax(1) == batch.labels).float().mean()
        return values

    def _refuse_non_finite(self, step: int, values: dict[str, Any]) -> None:
        if math.isfinite(values["loss"]):
            return
        terms = {name: float(value) for name, value in values.items() if name not in ("loss", "train_accuracy")}
        saved = self.checkpoint if self.checkpoint and self.checkpoint.exists() else None
        raise FloatingPointError(
            f"The loss is not finite at step {step} of {self.steps}: "
            + ", ".join(f"{name} = {value:.4g}" for name, value in terms.items())
            + ". "
            + (f"The last good checkpoint is {saved}. " if saved else "No checkpoint was written. ")
            + "Lower the learning rate, clip gradients (Recipe(clip=1)), or use precision='fp32'."
        )

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
        images = self.totals.pop("images")
        means = {name: total / images for name, total in self.totals.items()}
        self.totals = {}
        scores = evaluate(
            self.student,
            self.data.validation,
            device=str(self.place.device),
            precision="bf16" if self.place.bfloat16 else "fp32",
        )
        row = {"epoch": epoch + 1, "seconds": self.seconds, **means}
        row |= {"validation_loss": scores.loss, "validation_accuracy": scores.accuracy}
        self.rows.append(row)
        self.bar.set_description(f"epoch {epoch + 1}/{self.epochs}, validation {scores.accuracy:.1%}")
        if self.checkpoint:
            self._save()

    def _facts(self) -> dict[str, Any]:
        """What must be the same for a run to be the same run."""
        return {
            "student": type(self.student).__name__,
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
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "totals": self.totals,
        }
        checkpoints.save(self.checkpoint, {"student": self.student, "method": self.method}, self.optimizer, facts)

    def load(self) -> None:
        """Go on from the checkpoint."""
        parts = {"student": self.student, "method": self.method}
        facts = checkpoints.load(self.checkpoint, parts, self.optimizer, self._facts())
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.rows, self.totals = facts["rows"], facts["totals"]


@contextmanager
def _explained(who: str, batch: Batch) -> Iterator[None]:
    """Say what torch's complaint about a shape means here."""
    try:
        yield
    except RuntimeError as error:
        channels, height, width = batch.images.shape[1:]
        raise ValueError(
            f"The {who} cannot take images of {channels} x {height} x {width} ({error}). Build it with "
            f"in_channels={channels} and a stem for this size."
        ) from error


def _floats(answer: Answer) -> Answer:
    """Losses are computed in float32, whatever the networks ran in."""
    return Answer(answer.logits.float(), {name: output.float() for name, output in answer.layers.items()})


def _share(a: nn.Module, b: nn.Module) -> bool:
    ours = {p.data_ptr() for p in a.parameters() if p.numel()}
    return any(p.data_ptr() in ours for p in b.parameters())


__all__ = ["Recipe", "Run", "Scores", "evaluate", "fit"]
