"""Answers to labelled samples, and the tests that say whether a difference in accuracy can be chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdlib.doctor.report import Skip
from kdlib.doctor.setup import DistillerSetup, Setup, mixes_samples, other_classes


class Mixed(Skip):
    """Each input is made of several samples, so no label is that of an answer."""


# A sound set-up goes through some ten of these tests, so a false alarm comes once in ten thousand of them.
RARE = 1e-5
# The least of a teacher: this share of the way from chance to perfect. The weakest of the simulation had 0.35 of it,
# and from here 256 samples tell 3 classes from chance at RARE (0.50 against 0.33) in nine set-ups of ten, 512 always.
LEAST = 0.25
MOST_OF_ONE = 0.9  # of the labels: where one class has as many, answers to it alone say little of a teacher


@dataclass(frozen=True)
class Samples:
    """Logits N x C and the labels (int64, N) of all samples whose label names a class.

    batches: the number of the batch in which each came. named: of all samples that were looked at, which these are.
    """

    logits: Tensor
    labels: Tensor
    batches: Tensor
    named: Tensor

    @property
    def right(self) -> Tensor:
        """Which samples have their largest logit at the label."""
        return self.logits.argmax(1) == self.labels

    @property
    def accuracy(self) -> float:
        """The share of these."""
        return float(self.right.double().mean())

    @property
    def chance(self) -> float:
        """What answers that have nothing to do with the labels would reach: as frequent, in any order."""
        return chance_of(self.logits.argmax(1), self.labels)

    @property
    def unshuffled(self) -> bool:
        """Whether nearly all labels name one class, and most classes have no label: as of folders read in order.

        Of few classes one may be as rare in a shuffled set.
        """
        counts = torch.bincount(self.labels)
        few = 2 * int((counts > 0).sum()) < self.logits.shape[1]
        return few and int(counts.max()) >= MOST_OF_ONE * len(self.labels)

    @property
    def at_chance(self) -> bool:
        """Whether a teacher that had learned anything would hardly ever be right so seldom."""
        from scipy.stats import binom

        least = self.chance + LEAST * (1 - self.chance)
        return bool(binom.cdf(int(self.right.sum()), len(self.labels), least) < RARE)

    @property
    def above_chance(self) -> bool:
        """Whether chance would hardly ever be right so often."""
        from scipy.stats import binom

        return bool(binom.sf(int(self.right.sum()) - 1, len(self.labels), self.chance) < RARE)


def samples(setup: Setup, role: str) -> Samples:
    """What the teacher or the student answers; Skip where that cannot be compared with labels."""
    if isinstance(setup, DistillerSetup):
        _skip_what_is_no_answer(setup, role)
    found = [seen for seen in setup.observed if seen.logits.get(role) is not None]
    if not found:
        raise Skip(f"the {role}'s logits are not seen")
    kept = []
    for number, seen in enumerate(found):
        logits, labels = seen.logits[role].detach().float().cpu(), seen.labels
        if labels is None or labels.is_floating_point() or labels.ndim != 1 or logits.ndim != 2:
            raise Skip("there are no labels that name one class for each row of logits")
        own = seen.logits.get("student")
        if role == "teacher" and own is not None and own.ndim == 2 and own.shape[1] != logits.shape[1]:
            raise Skip(other_classes(logits.shape[1:], own.shape[1:]))
        if logits.shape[1] < 2:
            raise Skip(f"the {role} gives one logit for each sample, and no label is the place of one among several")
        labels = labels.cpu().long()
        if len(labels) != len(logits):
            raise Skip(f"there are {len(labels)} labels for {len(logits)} rows of the {role}'s logits")
        named = (labels >= 0) & (labels < logits.shape[1])
        kept.append((logits[named], labels[named], torch.full((int(named.sum()),), number), named))
    logits, labels, batches, named = (torch.cat(parts) for parts in zip(*kept, strict=True))
    if not len(labels):
        raise Skip("no label names one of the classes")
    if not logits.isfinite().all():
        raise Skip(f"the {role}'s logits are not finite")
    if bool((labels == labels[0]).all()):
        raise Skip("all labels name one class, which no answers tell from chance: give batches from a shuffled loader")
    if mixes_samples(setup, role):
        raise Mixed(f"the step makes each of the {role}'s inputs of several samples, as Mixup does")
    return Samples(logits, labels, batches, named)


def _skip_what_is_no_answer(setup: DistillerSetup, role: str) -> None:
    """Skip where the outputs are no classes, or nobody takes them for those of the labels: of features, embeddings."""
    method = setup.distiller.method
    if not setup.distiller.task.has_classes:
        raise Skip("the task has no classes")
    if role == "teacher" and not method.needs_teacher_logits:
        raise Skip("the method does not read the teacher's logits, which may be of other classes")
    if role == "student" and not method.trains_logits:
        raise Skip("the method does not train the student's logits")


def chance_of(answers: Tensor, labels: Tensor) -> float:
    """How often answers as frequent as these, in any order, would be right."""
    classes = int(max(answers.max(), labels.max())) + 1
    given, answered = (torch.bincount(one, minlength=classes) / len(one) for one in (labels, answers))
    return float((given * answered).sum())


def better(other: Tensor, right: Tensor) -> float:
    """How probable it is by chance alone that `other` is right so much oftener than `right`: the exact sign test."""
    from scipy.stats import binom

    wins, losses = int((other & ~right).sum()), int((right & ~other).sum())
    return float(binom.sf(wins - 1, wins + losses, 0.5)) if wins + losses else 1.0
