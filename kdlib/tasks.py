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

    def damaged(self, rows: Tensor) -> Tensor:
        """Which rows, N, are no answer: with NaN or infinity, but for classes, not all of them, masked by -inf."""
        rows = rows.flatten(1) if rows.ndim > 1 else rows[:, None]
        found = ~rows.isfinite()
        if not self.has_classes:
            return found.any(1)
        return (found & ~rows.isneginf()).any(1) | rows.isneginf().all(1)

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

    One label of each pixel or token is B x 1 x H x W, or B x L x 1, in both.
    A logit z is written as the pair (0, z), so cross-entropy becomes binary cross-entropy and KL the binary one, with T
    and T^2 as ever. labels: 0 or 1, or a share between; entries equal to ignore_index do not count.
    """

    ignore_index: int = -100

    def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
        flat = self._flat(logits, labels, role)
        if labels is None:
            return _as_pairs(flat), None
        index, row_labels = self._known(labels)
        return _as_pairs(_take(flat, index)), row_labels

    def prepare(
        self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None
    ) -> tuple[ModelOutput, ModelOutput | None, Tensor | None]:
        own_rows = type(self).rows is not MultiLabel.rows  # of a subclass, which may choose other entries
        if labels is None or teacher is None or teacher.logits is None or own_rows:
            return super().prepare(student, teacher, labels)
        flat = self._flat(student.logits, labels, "student")
        index, row_labels = self._known(labels)  # once for both networks: each look waits for the GPU
        teacher_flat = self._flat(teacher.logits, labels, "teacher")
        teacher = replace(teacher, logits=_as_pairs(_take(teacher_flat, index)))
        return replace(student, logits=_as_pairs(_take(flat, index))), teacher, row_labels

    def _flat(self, logits: Tensor, labels: Tensor | None, role: str) -> Tensor:
        """The logits of every entry, B * K; ValueError for shapes that are not those of the task."""
        _check_labels(labels)
        if logits.ndim < 2 or (labels is not None and labels.shape != logits.shape):
            got = "" if labels is None else f" and labels {tuple(labels.shape)}"
            raise ValueError(
                f"The {role} gives logits {tuple(logits.shape)}{got}; several labels at once are batch x labels in "
                "both."
            )
        return logits.flatten()

    def _known(self, labels: Tensor) -> tuple[Tensor | None, Tensor]:
        """The entries that count, None where all do, and the labels of their rows."""
        flat = _whole(labels.flatten())
        counts = flat != self.ignore_index
        index, any_wrong = _which_count(counts, counts & ~((flat >= 0) & (flat <= 1)))
        kept = _take(flat, index)
        if any_wrong:
            raise ValueError(
                f"Labels of several at once lie in [0, 1]; these run from {float(kept.min()):g} "
                f"to {float(kept.max()):g}. What is not known is marked by {self.ignore_index}."
            )
        return index, torch.stack((1 - kept, kept), dim=1) if kept.is_floating_point() else kept.long()

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
class _ClassPerPosition(Task):
    """A class at each of many positions, of which those labelled ignore_index do not count."""

    ignore_index: int = -100

    def _all_rows(self, logits: Tensor, labels: Tensor | None, role: str) -> Tensor:
        """The logits of every position, N x C; ValueError for shapes that are not those of the task."""
        raise NotImplementedError

    def rows(self, logits: Tensor, labels: Tensor | None, role: str = "student") -> tuple[Tensor, Tensor | None]:
        rows = self._all_rows(logits, labels, role)
        if labels is None:
            return rows, None
        index, row_labels = self._labelled(labels)
        return _take(rows, index), row_labels

    def prepare(
        self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None
    ) -> tuple[ModelOutput, ModelOutput | None, Tensor | None]:
        if labels is None or teacher is None or teacher.logits is None:
            return super().prepare(student, teacher, labels)
        given = replace(self, ignore_index=int(self.ignore_index))  # the teacher may have classes without labels
        if type(self).rows is not _ClassPerPosition.rows:  # of a subclass, which may choose other positions
            student, _, row_labels = super().prepare(student, None, labels)
            return student, replace(teacher, logits=given.rows(teacher.logits, labels, "teacher")[0]), row_labels
        rows = self._all_rows(student.logits, labels, "student")
        index, row_labels = self._labelled(labels)  # once for both networks: each look waits for the GPU
        teacher_rows = given._all_rows(teacher.logits, labels, "teacher")
        teacher = replace(teacher, logits=_take(teacher_rows, index))
        return replace(student, logits=_take(rows, index)), teacher, row_labels

    def _labelled(self, labels: Tensor) -> tuple[Tensor | None, Tensor]:
        """The positions that count, None where all do, and their labels."""
        flat, ignore_index = _whole(labels.flatten()), self.ignore_index
        counts = flat != ignore_index
        index, any_wrong = _which_count(counts, counts & (flat < 0))
        kept = _take(flat, index)
        # A loss on the labels that leaves these out would not be enough: the soft loss would count them.
        if any_wrong:
            low = int(kept.min())
            raise ValueError(
                f"There are labels of {low}, which are no class and not the ignored {ignore_index}. If {low} marks "
                f"what does not count, say so: task=tasks.{type(self).__name__}(ignore_index={low})."
            )
        return index, kept


@dataclass(frozen=True)
class Segmentation(_ClassPerPosition):
    """A class for every pixel: logits B x C x H x W (or any positions after C), labels int64, B x H x W.

    Pixels labelled ignore_index do not count: 255 in VOC and Cityscapes. Of more than 255 classes the default is one,
    and `rows` raises ValueError until ignore_index is given.
    """

    ignore_index: int = _Default(255)

    def _all_rows(self, logits: Tensor, labels: Tensor | None, role: str) -> Tensor:
        _check_positions(logits, labels, role, self.ignore_index, classes_last=False)
        if labels is not None and isinstance(self.ignore_index, _Default) and logits.shape[1] > self.ignore_index:
            raise ValueError(
                f"The {role} gives logits of {logits.shape[1]} classes, and class {self.ignore_index} is one of them; "
                "by default pixels with this label do not count. Say which label marks pixels that do not count: "
                f"task=tasks.Segmentation(ignore_index=-1), or ignore_index={self.ignore_index} where it is this one."
            )
        return logits.movedim(1, -1).flatten(0, -2)


@dataclass(frozen=True)
class TokenClassification(_ClassPerPosition):
    """A class for every token: logits B x L x C, labels int64, B x L, as transformers has them.

    Tokens labelled ignore_index, padding above all, do not count; in a batch without labels those do not whose
    "attention_mask" is 0, or "decoder_attention_mask" in a batch with "decoder_input_ids". A mask of other positions
    than the logits', such as of the samples of a sound whose frames are classified, says nothing of them: there padding
    counts, unless labels are made that are ignore_index at it. Of a language model the label is the next token: shift
    the labels, not the logits.
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

    def _all_rows(self, logits: Tensor, labels: Tensor | None, role: str) -> Tensor:
        _check_positions(logits, labels, role, self.ignore_index, classes_last=True)
        return logits.flatten(0, -2)

    def without_labels(self, batch: Any, logits: Tensor) -> Tensor | None:
        _, mask = _mask_of(batch)
        if mask is None or mask.shape != logits.shape[:-1]:
            return None
        counted = int(self.ignore_index == 0)  # any number but the ignored one
        return torch.where(mask.to(logits.device) > 0, counted, self.ignore_index)

    def warn_of_other_mask(self, batch: Any, logits: Tensor) -> bool:
        """Whether the mask of a batch without labels has padding and does not fit the logits; UserWarning if so."""
        name, mask = _mask_of(batch)
        # One of more dimensions says which tokens see each other.
        if mask is None or mask.ndim != 2 or mask.shape == logits.shape[:-1] or bool((mask > 0).all()):
            return False
        warnings.warn(
            f"The batch has no labels, and its {name} of shape {tuple(mask.shape)} does not fit the logits of "
            f"{tuple(logits.shape)}: padded positions count in the losses. To leave them out, give labels that are "
            f"{self.ignore_index} there: Adapter(labels=...).",
            stacklevel=6,  # past the distiller, and what torch puts around its calls
        )
        return True


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


def _mask_of(batch: Any) -> tuple[str, Tensor | None]:
    """The mask of the tokens that are classified, by its name; None if there is none."""
    fields = batch if isinstance(batch, Mapping) else {}
    # A decoder's logits are of its own tokens, also where the encoder's text is as long.
    name = "decoder_attention_mask" if "decoder_input_ids" in fields else "attention_mask"
    mask = fields.get(name)
    return name, mask if isinstance(mask, Tensor) else None


def _check_positions(
    logits: Tensor, labels: Tensor | None, role: str, ignore_index: int, *, classes_last: bool
) -> None:
    """Raise ValueError unless there are positions, several classes at each, and a label for each."""
    _check_labels(labels)
    expected = "batch x positions x classes" if classes_last else "batch x classes x positions"
    if logits.ndim < 3:
        raise ValueError(f"The {role} gives logits of shape {tuple(logits.shape)}; expected {expected}.")
    last, second = tuple(logits.shape[:-1]), (len(logits), *logits.shape[2:])  # positions, by where the classes are
    positions, others = (last, second) if classes_last else (second, last)
    dim = logits.ndim - 1 if classes_last else 1
    if logits.shape[dim] == 1 and (labels is None or tuple(labels.shape) != others):
        raise ValueError(
            f"The {role} gives one logit for each position, and of one class every answer is right. For yes or no "
            f"choose task=tasks.MultiLabel(ignore_index={ignore_index}) with labels of the logits' shape, "
            f"labels.unsqueeze({dim}), or build it with two classes; for a number task='regression'."
        )
    if labels is None or tuple(labels.shape) == positions:
        return
    if tuple(labels.shape) == others:
        place, name = ("second", "segmentation") if classes_last else ("last", "token-classification")
        turned = "1, -1" if classes_last else "-1, 1"
        advice = (
            f"The classes seem to be the {place} dimension of the logits: choose task='{name}', or let the network "
            f"return logits.movedim({turned})"
        )
    elif tuple(labels.shape) == (positions[0], 1, *positions[1:]):
        advice = "Leave out their channel, Adapter(labels=...)"
    elif classes_last and role == "teacher":
        advice = (
            "Losses on logits compare the same positions, and the student's have a label each: a teacher with another "
            "tokenizer cannot teach so"
        )
    elif classes_last:
        advice = (
            "There is one label for each position. Targets of another length, as of CTC, need a loss of your own: "
            "task='regression' gives it the logits and the labels as they are"
        )
    else:
        advice = "Resize one of them to the other"
    raise ValueError(
        f"The {role} gives logits {tuple(logits.shape)}, {expected}, so labels have shape {positions}; got "
        f"{tuple(labels.shape)}. {advice}."
    )


class NothingCounts(ValueError):
    """A batch of which no position counts."""


def _whole(labels: Tensor) -> Tensor:
    """Class numbers as int64: in 8 bits a negative one that is ignored would be a class, -100 the class 156."""
    return labels if labels.is_floating_point() else labels.long()


def _which_count(counts: Tensor, wrong: Tensor) -> tuple[Tensor | None, bool]:
    """The index of those that count, None where all do, and whether any is wrong; NothingCounts if none counts."""
    # One look at the device for all questions. Where all count, nothing is copied.
    number, number_wrong = torch.stack((counts.sum(), wrong.sum())).tolist()
    if number == 0:
        raise NothingCounts(
            "No position of this batch counts: all its labels are the ignored one, or all of it is padding. Leave such "
            "batches out."
        )
    index = None if number == len(counts) else counts.nonzero().flatten()
    return index, number_wrong > 0


def _take(values: Tensor, index: Tensor | None) -> Tensor:
    """Those of this index; all where there is none."""
    # Not by a mask, whose positions torch would look for anew in each tensor, and sort in the backward pass.
    return values if index is None else values.index_select(0, index.to(values.device))
