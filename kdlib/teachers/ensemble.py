"""Several networks as one teacher, with a weight for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.described import describe
from kdlib.errors import unknown_name
from kdlib.hooks import find_logits
from kdlib.tasks import MultiLabel, Segmentation, Task

MEANS = ("arithmetic", "geometric", "vote")
NO_VOTE = 1e-6  # the share that is spread over all classes, so that the logarithm of a class without a vote is finite


class AnswerTogether(nn.Module):
    """Networks that answer together, each of them for all classes."""

    members: nn.ModuleList


class Ensemble(AnswerTogether):
    """Several networks as one teacher: the mean of their probabilities, of their logits, or their votes.

        teacher = Ensemble([a, b, c], weights=[2, 1, 1], temperatures=[1, 1, 2])

    Its logits are log sum_i w_i softmax(z_i / T_i), so a loss softens the mean afterwards, with its own T; with
    mean="geometric" they are sum_i w_i z_i / T_i. With mean="vote" each network has one vote, w_i, for its best class,
    and the logits are log((1 - e) v_c + e / C) of the shares v of the votes among C classes; e = 1e-6, so that a class
    without a vote has a finite one.
    weights: of at least 0, divided by their sum; default, equal ones. temperatures: above 0, one for each network;
    default, 1; votes do not depend on them. Layers of a member are named "members.0.layer3".
    `ensembles` has teachers whose weights differ from sample to sample, and such that know only some of the classes.
    read_logits: from what a member returns to its logits.
    Shapes: members give logits of the same shape, classes last or, for maps B x C x H x W and volumes, second; of three
    dimensions, second where a `Distiller`, `fit` or `evaluate` is told task="segmentation".
    Raises ValueError for no members, numbers out of range, logits that differ in shape, or a second `Distiller` for
    which the classes lie elsewhere; TypeError for no numbers.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        temperatures: Sequence[float] | None = None,
        *,
        mean: str = "arithmetic",
        read_logits: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        single = isinstance(members, nn.Module) or not isinstance(members, Iterable)
        members = [] if single else list(members)  # a generator can be gone through only once
        if not members or not all(isinstance(one, nn.Module) for one in members):
            raise ValueError("An ensemble has at least one network: Ensemble([first, second]).")
        count = len(members)
        weights = _one_each("weights", weights, count)
        temperatures = _one_each("temperatures", temperatures, count)
        if not all(0 <= one < math.inf for one in weights) or not sum(weights) > 0:
            raise ValueError(f"weights are numbers of at least 0, not all of them 0; got {weights}.")
        if not all(1e-6 <= one <= 1e6 for one in temperatures):  # beyond, logits overflow or all become equal
            raise ValueError(f"temperatures are positive numbers, from 1e-6 to 1e6; got {temperatures}.")
        if mean not in MEANS:
            raise unknown_name("mean", mean, MEANS)
        self.members = nn.ModuleList(members)
        self.weights = [weight / sum(weights) for weight in weights]
        self.temperatures, self.mean = temperatures, mean
        self._read_logits = read_logits or find_logits
        self._segments: bool | None = None  # whether classes are second in three dimensions; None: no task has said it

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Every member's answer to the same inputs, combined."""
        logits: list[Any] = [self._read_logits(member(*args, **kwargs)) for member in self.members]
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in logits]
        if len(set(shapes)) > 1 or not isinstance(logits[0], Tensor):
            raise ValueError(
                f"The members of an ensemble give logits of one shape; got {', '.join(map(str, shapes))}. Members with "
                "other outputs need read_logits, or a module around them."
            )
        if logits[0].ndim < 2:
            raise ValueError(
                f"The members of an ensemble give logits of {shapes[0]}; expected batch x classes, or more dimensions."
            )
        scaled: list[Tensor] = [one.float() / t for one, t in zip(logits, self.temperatures, strict=True)]
        if self.mean == "geometric":
            return torch.stack([w * one for w, one in zip(self.weights, scaled, strict=True)]).sum(0)
        second = scaled[0].ndim > 3 if self._segments is None else self._segments
        classes = 1 if second else -1
        if self.mean == "vote":
            return _votes(scaled, self.weights, classes)
        terms = [
            math.log(w) + one.log_softmax(dim=classes) for w, one in zip(self.weights, scaled, strict=True) if w > 0
        ]
        return torch.stack(terms).logsumexp(0)

    def check_task(self, task: Task) -> None:
        """Read off where the classes are.

        Raises ValueError where the logits of a sample are not one choice among them, and where an earlier task has its
        classes elsewhere: what is trained there would get other answers from now on.
        """
        if self.mean != "geometric" and (isinstance(task, MultiLabel) or not task.has_classes):
            what = "The arithmetic mean of an ensemble is one of softmax probabilities"
            what = "An ensemble votes for one class of a softmax" if self.mean == "vote" else what
            raise ValueError(
                f"{what}, and the outputs of this task are not softened so. Take the weighted mean of the outputs "
                "themselves: Ensemble(..., mean='geometric')."
            )
        segments = isinstance(task, Segmentation)
        if self.mean != "geometric" and self._segments not in (None, segments):
            second, last = "the second dimension of the logits", "the last dimension"
            here, before = (second, last) if segments else (last, second)
            raise ValueError(
                f"This ensemble takes its mean over {before}, where the task that it was given to first has its "
                f"classes; those of {type(task).__name__} are {here}. Make a second Ensemble of the same members."
            )
        self._segments = segments

    @contextmanager
    def lent_to(self, task: Task) -> Iterator[None]:
        """Inside the block the classes are where this task has them, whatever the ensemble is used for elsewhere."""
        before, self._segments = self._segments, None
        try:
            self.check_task(task)
            yield
        finally:
            self._segments = before

    def extra_repr(self) -> str:
        shown = f"weights={self.weights}, temperatures={self.temperatures}, mean={self.mean}"
        return shown + shown_reader(self._read_logits)


def shown_reader(read_logits: Callable[[Any], Any]) -> str:
    """A function that reads logits, as it stands in a repr: a cache is recognized by it. The usual one is not shown."""
    return "" if read_logits is find_logits else f", read_logits={describe(read_logits)}"


def _votes(logits: Sequence[Tensor], weights: Sequence[float], classes: int) -> Tensor:
    """The logarithms of the shares of the votes, where each network votes for its best class.

    NaN is the largest logit and takes the vote: it makes the share of its class NaN, so that a damaged network shows.
    """
    shares = torch.zeros_like(logits[0])
    for weight, one in zip(weights, logits, strict=True):
        largest, best = one.max(dim=classes, keepdim=True)
        shares.scatter_add_(classes, best, torch.full_like(largest, weight).masked_fill(~largest.isfinite(), math.nan))
    return ((1 - NO_VOTE) * shares + NO_VOTE / shares.shape[classes]).log()


def _one_each(name: str, numbers: Any, count: int) -> list[float]:
    """As many numbers as there are networks; default, ones."""
    if numbers is None:
        return [1.0] * count
    numbers = list(numbers) if isinstance(numbers, Iterable) and not isinstance(numbers, str) else numbers
    try:
        found = [float(one) for one in numbers]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} are {count} numbers, one for each network; got {numbers!r}.") from error
    if len(found) != count:
        raise ValueError(f"{name} are {count} numbers, one for each network; got {len(found)}.")
    return found
