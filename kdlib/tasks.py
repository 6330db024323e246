"""What logits and labels mean: one class a sample, several at once, one at each position, or numbers.

A task brings logits of any shape to rows N x C, one row for each decision between classes, so that every loss on logits
serves every task. Positions that do not count are left out, so a mean over rows is a mean over those that do.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdlib.errors import unknown_name
from kdlib.hooks import ModelOutput


@dataclass(frozen=True)
class Task:
    """From logits and labels to rows. Subclass it and write `rows`.

    has_classes: whether a row of logits is one decision between classes.
    """

    has_classes: ClassVar[bool] = True

    def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
        """Logits as N x C, and labels that fit: int64 N, or float N x C (a share of each class); None if unlabelled.

        role: what an error calls the network. Raises ValueError for shapes that are not those of the task.
        """
        raise NotImplementedError

    def without_labels(self, batch: Any, logits: Tensor) -> Tensor | None:
        """What stands in for the labels of a batch that has none, to say which positions count; None: all do."""
        return None

    def precision(self, chosen: str) -> str:
        """The precision to compute in: "auto" is float32 for numbers, which bfloat16 would round to three digits."""
        return "fp32" if chosen == "auto" and not self.has_classes else chosen

    def check_batch(self, batch: Any, labels: Tensor | None) -> None:
        """Raise ValueError for a first batch whose labels are not what the task means by them."""

    def prepare(
        self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None
    ) -> tuple[ModelOutput, ModelOutput | None, Tensor | None]:
        """The outputs of both networks with their logits as rows, and the labels of these rows."""
        rows, row_labels = self.rows(student.logits, labels)
        if teacher is not None and teacher.logits is not None:
            teacher = replace(teacher, logits=self.rows(teacher.logits, labels, "teacher")[0])
        return replace(student, logits=rows), teacher, row_labels


@dataclass(frozen=True)
class Classification(Task):
    """One class for each sample: logits B x C; labels int64, B, or float, B x C, where samples are mixed."""

    def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
        if logits.ndim == 1:
            raise ValueError(
                f"The {role} gives logits of shape {tuple(logits.shape)}; expected batch x classes. Where the data are "
                "samples and no batches, give DataLoader(dataset, batch_size=...). A network with one number for each "
                "sample gives B x 1, with task='multilabel' or 'regression'."
            )
        if logits.ndim != 2:
            raise ValueError(
                f"The {role} gives logits of shape {tuple(logits.shape)}; expected batch x classes. For classes at "
                "every position choose task='segmentation' (B x C x H x W) or 'token-classification' (B x L x C)."
            )
        if logits.shape[1] == 1:
            raise ValueError(
                f"The {role} gives one logit for each sample, and of one class every answer is right. For yes or no "
                "choose task='multilabel' (labels of shape B x 1), or build it with two classes; for a number "
                "task='regression'."
            )
        return logits, labels


@dataclass(frozen=True)
class MultiLabel(Task):
    """Several labels at once, each present or not: logits and labels B x K; the losses are means over B x K.

    A logit z is written as the pair (0, z), so cross-entropy becomes binary cross-entropy and KL the binary one, with T
    and T^2 as ever. labels: 0 or 1, or a share between; entries equal to ignore_index do not count.
    """

    ignore_index: int = -100

    def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
        _check_labels(labels)
        if logits.ndim < 2 or (labels is not None and labels.shape != logits.shape):
            got = "" if labels is None else f" and labels {tuple(labels.shape)}"
            raise ValueError(
                f"The {role} gives logits {tuple(logits.shape)}{got}; several labels at once are batch x labels in "
                "both."
            )
        flat = logits.flatten()
        if labels is None:
            return _as_pairs(flat), None
        flat_labels = labels.flatten()
        counts = flat_labels != self.ignore_index
        wrong = counts & ~((flat_labels >= 0) & (flat_labels <= 1))
        flat, flat_labels, any_wrong = _select(flat, flat_labels, counts, wrong)
        if any_wrong:
            raise ValueError(
                f"Labels of several at once lie in [0, 1]; these run from {float(flat_labels.min()):g} "
                f"to {float(flat_labels.max()):g}. What is not known is marked by {self.ignore_index}."
            )
        if flat_labels.is_floating_point():
            return _as_pairs(flat), torch.stack((1 - flat_labels, flat_labels), dim=1)
        return _as_pairs(flat), flat_labels.long()

    def warn_if_probabilities(self, rows: Tensor, role: str) -> None:
        """UserWarning when all logits, the second column of these rows, lie in [0, 1] as after a sigmoid.

        Eight at least are looked at, and not those that are all 0, as a classifier begins that starts at 0.
        """
        logits = rows[:, 1]
        if len(logits) >= 8 and bool(((logits >= 0) & (logits <= 1)).all()) and bool(logits.any()):
            warnings.warn(
                f"The logits of the {role} look like probabilities: all lie in [0, 1]. Give logits, the numbers before "
                "the sigmoid: the loss applies its own.",
                stacklevel=3,
            )


class _Default(int):
    """A number that nobody gave, to be told from the same number that somebody did."""


@dataclass(frozen=True)
class Segmentation(Task):
    """A class for every pixel: logits B x C x H x W (or any positions after C), labels int64, B x H x W.

    Pixels labelled ignore_index do not count: 255 in VOC and Cityscapes. Of more than 255 classes the default is one,
    and `rows` raises ValueError until ignore_index is given.
    """

    ignore_index: int = _Default(255)

    def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
        positions = (len(logits), *logits.shape[2:])
        _check_positions(logits, labels, positions, role, "batch x classes x positions")
        if labels is not None and isinstance(self.ignore_index, _Default) and logits.shape[1] > self.ignore_index:
            raise ValueError(
                f"The {role} gives logits of {logits.shape[1]} classes, and class {self.ignore_index} is one of them; "
                "by default pixels with this label do not count. Say which label marks pixels that do not count: "
                f"task=tasks.Segmentation(ignore_index=-1), or ignore_index={self.ignore_index} where it is this one."
            )
        return _rows_of_positions(logits.movedim(1, -1), labels, self)

    def prepare(
        self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None
    ) -> tuple[ModelOutput, ModelOutput | None, Tensor | None]:
        student, _, row_labels = super().prepare(student, None, labels)
        if teacher is not None and teacher.logits is not None:
            given = replace(self, ignore_index=int(self.ignore_index))  # the teacher may have classes without labels
            teacher = replace(teacher, logits=given.rows(teacher.logits, labels, "teacher")[0])
        return student, teacher, row_labels


@dataclass(frozen=True)
class TokenClassification(Task):
    """A class for every token: logits B x L x C, labels int64, B x L, as transformers has them.

    Tokens labelled ignore_index, padding above all, do not count; in a batch without labels those do not whose
    "attention_mask" is 0, or "decoder_attention_mask" in a batch with "decoder_input_ids". Of a language model the
    label is the next token: shift the labels, not the logits.
    """

    ignore_index: int = -100

    def check_batch(self, batch: Any, labels: Tensor | None) -> None:
        """ValueError for labels that are the inputs: transformers' causal models shift them inside, a task does not."""
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if not isinstance(ids, Tensor) or not isinstance(labels, Tensor) or ids.shape != labels.shape:
            return
        counts = labels != self.ignore_index
        if bool(counts.any()) and bool((labels == ids.to(labels.device))[counts].all()):
            raise ValueError(
                "The label of each token is the token itself, so the student would learn to copy its input. "
                "DataCollatorForLanguageModeling makes such labels, because transformers' models shift them inside. "
                "Shift them here: Adapter(labels=lambda batch: F.pad(batch['labels'][:, 1:], (0, 1), value=-100))."
            )

    def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
        _check_positions(logits, labels, tuple(logits.shape[:-1]), role, "batch x positions x classes")
        return _rows_of_positions(logits, labels, self)

    def without_labels(self, batch: Any, logits: Tensor) -> Tensor | None:
        fields = batch if isinstance(batch, Mapping) else {}
        # A decoder's logits are of its own tokens, also where the encoder's text is as long.
        mask = fields.get("decoder_attention_mask" if "decoder_input_ids" in fields else "attention_mask")
        if not isinstance(mask, Tensor) or mask.shape != logits.shape[:-1]:
            return None
        counted = int(self.ignore_index == 0)  # any number but the ignored one
        return torch.where(mask.to(logits.device) > 0, counted, self.ignore_index)


@dataclass(frozen=True)
class Regression(Task):
    """Numbers and not classes: a heat map, a depth. Outputs and targets stay as they are.

    Cross-entropy and KL mean nothing here: give functions, Logit(loss=F.mse_loss, hard=F.mse_loss).
    """

    has_classes: ClassVar[bool] = False

    def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
        if isinstance(labels, Tensor) and labels.shape != logits.shape and labels.numel() == logits.numel():
            sizes = [[size for size in one.shape if size != 1] for one in (logits, labels)]
            wanted = ", ".join(map(str, (-1, *logits.shape[1:])))
            advice = f"labels.reshape({wanted})" if sizes[0] == sizes[1] else "with axes in the order of the output's"
            raise ValueError(
                f"The {role} gives {tuple(logits.shape)} and the targets are {tuple(labels.shape)}: a loss would "
                f"broadcast them to every pair of samples. Give both one shape, {advice}."
            )
        return logits, labels

    def prepare(
        self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None
    ) -> tuple[ModelOutput, ModelOutput | None, Tensor | None]:
        self.rows(student.logits, labels)
        return student, teacher, labels  # the teacher's numbers are compared with the student's, not with the targets


TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "multilabel": MultiLabel,
    "segmentation": Segmentation,
    "token-classification": TokenClassification,
    "regression": Regression,
}


def resolve(task: str | Task) -> Task:
    """A task by its name, or as it is; ValueError for an unknown name, TypeError for what is no task."""
    if isinstance(task, Task):
        return task
    if not isinstance(task, str):
        raise TypeError(f"task is a name ({', '.join(TASKS)}) or a kdlib.tasks.Task; got {type(task).__name__}.")
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    return TASKS[task]()


def _as_pairs(logits: Tensor) -> Tensor:
    return torch.stack((torch.zeros_like(logits), logits), dim=1)


def _check_labels(labels: Any) -> None:
    if not isinstance(labels, Tensor | None):
        raise TypeError(
            f"labels are a tensor; got {type(labels).__name__}. Let the dataset or the DataLoader's collate_fn make "
            "one, or say where they are: Adapter(labels=...)."
        )


def _check_positions(
    logits: Tensor, labels: Tensor | None, positions: tuple[int, ...], role: str, expected: str
) -> None:
    _check_labels(labels)
    if logits.ndim < 3:
        raise ValueError(f"The {role} gives logits of shape {tuple(logits.shape)}; expected {expected}.")
    if labels is not None and tuple(labels.shape) != positions:
        channel = tuple(labels.shape) == (positions[0], 1, *positions[1:])
        advice = "Leave out their channel, Adapter(labels=...)" if channel else "Resize one of them to the other"
        raise ValueError(
            f"The {role} gives logits {tuple(logits.shape)}, {expected}, so labels have shape {positions}; got "
            f"{tuple(labels.shape)}. {advice}."
        )


def _rows_of_positions(
    logits: Tensor, labels: Tensor | None, task: Segmentation | TokenClassification
) -> tuple[Tensor, Tensor | None]:
    """logits: classes last."""
    rows, ignore_index = logits.flatten(0, -2), task.ignore_index
    if labels is None:
        return rows, None
    flat = labels.flatten()
    counts = flat != ignore_index
    rows, kept, any_wrong = _select(rows, flat, counts, counts & (flat < 0))
    # A loss on the labels that leaves these out would not be enough: the soft loss would count them.
    if any_wrong:
        low = int(kept.min())
        raise ValueError(
            f"There are labels of {low}, which are no class and not the ignored {ignore_index}. If {low} marks what "
            f"does not count, say so: task=tasks.{type(task).__name__}(ignore_index={low})."
        )
    return rows, kept


class NothingCounts(ValueError):
    """A batch of which no position counts."""


def _select(rows: Tensor, labels: Tensor, counts: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Those that count, and whether any label of them is wrong; NothingCounts if none does."""
    # One look at the device for all questions. Where all count, nothing is copied.
    number, number_wrong = torch.stack((counts.sum(), wrong.sum())).tolist()
    if number == 0:
        raise NothingCounts(
            "No position of this batch counts: all its labels are the ignored one, or all of it is padding. Leave such "
            "batches out."
        )
    if number < len(labels):
        rows, labels = rows[counts], labels[counts]
    return rows, labels, number_wrong > 0
