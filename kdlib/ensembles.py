"""Teachers made of several networks that differ in what they know: weights for each sample, and specialists.

    teacher = ConfidenceEnsemble([a, b, c])                        # weights for each sample, from its label
    teacher = Specialists([tops, shoes], [(0, 2, 4, 6), (5, 7, 9)], gate=generalist)

`teachers.Ensemble` has fixed weights, one for each network.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.adapters import Adapter
from kdlib.errors import check_real, check_whole, unknown_name
from kdlib.hooks import ModelOutput, find_logits
from kdlib.tasks import MultiLabel, Task
from kdlib.teachers import AnswerTogether, FrozenTeacher, shown_reader

BASES = ("labels", "entropy")


def confidence_weights(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """How far each of K networks is relied on for each sample: w_k = (1 - softmax_k(L_k)) / (K - 1).

    L_k is the cross-entropy of network k with the label (CA-MKD); without labels, the entropy of its probabilities. The
    lower it is beside the others', the larger the weight; the weights of a sample sum to 1, and none exceeds
    1 / (K - 1).

    Shapes: logits K x B x C, K >= 2; labels int64, B; the weights are K x B.
    Raises: ValueError for other shapes, and for labels that are no classes (CUDA stops the program).
    Paper: Zhang, Chen, Wang 2022, arXiv:2201.00007.
    """
    if logits.ndim != 3 or len(logits) < 2:
        raise ValueError(
            f"Weights for each sample need logits K x B x C of at least two networks; got {tuple(logits.shape)}."
        )
    # A class that a network leaves out has the logarithm -inf, which would become NaN below. It adds nothing to the
    # entropy, and a network that leaves out the label has no weight.
    log_probabilities = logits.float().log_softmax(dim=2).clamp(min=torch.finfo(torch.float32).min)
    if labels is None:
        loss = -(log_probabilities.exp() * log_probabilities).sum(dim=2)
    else:
        _check_labels(labels, logits)
        own = labels.to(logits.device).long()
        loss = -log_probabilities.gather(2, own.expand(len(logits), -1)[..., None])[..., 0]
    return (1 - loss.softmax(dim=0)) / (len(logits) - 1)


def weighted_mean(logits: Tensor, weights: Tensor, temperature: float = 1.0) -> Tensor:
    """T log sum_k w_k softmax(z_k / T): as logits, the mean of probabilities that were softened at T.

    A loss that softens them at the same T gets this very mean back. Shapes: logits K x B x C, weights K x B (a sample's
    sum to 1); the result is B x C.
    """
    softened = (logits.float() / temperature).log_softmax(dim=2)
    return temperature * (softened + weights.log()[..., None]).logsumexp(dim=0)


class ConfidenceEnsemble(FrozenTeacher):
    """Several networks as one teacher, each relied on more or less from sample to sample (CA-MKD).

        teacher = ConfidenceEnsemble([a, b, c], temperature=4)
        train.fit(student, fashion, teacher=teacher, method=methods.Logit(temperature=4, alpha=0.1))

    Its logits are T log sum_k w_k softmax(z_k / T) with the weights of `confidence_weights`: softened by a loss with
    the same T they are the weighted mean of the networks' softened probabilities, which CA-MKD teaches on its logits.
    (Its term on features, with the same weights, is not here.)
    members: at least two networks whose logits are B x C. temperature: that of the loss. by: "labels", the weights of
    the paper, which read the labels of the batch; "entropy", from the answers alone. adapter: where inputs and labels
    of a batch are, see `Adapter`; default, as the `Distiller` that it teaches in reads them. read_logits: from what a
    member returns to its logits. Layers of a member are named "members.0.layer3". `weights_of` gives the weights
    themselves.
    Raises ValueError for less than two networks, a batch without the labels that it needs, or logits of another shape.
    Paper: Zhang, Chen, Wang 2022, arXiv:2201.00007.
    """

    def __init__(
        self,
        members: Iterable[nn.Module],
        *,
        temperature: float = 1.0,
        by: str = "labels",
        adapter: Adapter | None = None,
        read_logits: Callable[[Any], Any] | None = None,
    ) -> None:
        networks = _networks(members, 2, "ConfidenceEnsemble([first, second])")
        check_real(temperature=temperature)
        if not 1e-3 <= temperature <= 1e3:
            raise ValueError(f"temperature is a positive number, from 0.001 to 1000; got {temperature}.")
        if by not in BASES:
            raise unknown_name("basis of weights", by, BASES)
        if adapter is not None and adapter.teacher_logits is not None:
            raise ValueError(
                "The adapter of a ConfidenceEnsemble says where inputs and labels are; where the logits of its members "
                "are says read_logits. Give read_logits, and leave teacher_logits out."
            )
        self._has_own_adapter, self._adapter = adapter is not None, adapter or Adapter()
        self.temperature, self.by = float(temperature), by
        together = _Together(networks, read_logits or find_logits)
        super().__init__(together, read_inputs=self._adapter.teacher_inputs_of)

    @property
    def fingerprint(self) -> str:
        """What differs when the outputs would differ."""
        return f"{super().fingerprint}, by {self.by} at {self.temperature:g}"

    @property
    def reads_logits_itself(self) -> bool:
        """Always, by its own read_logits: of each network."""
        return True

    def with_adapter(self, adapter: Adapter) -> ConfidenceEnsemble:
        """The same networks, for batches that this adapter reads; itself, if it was given an adapter of its own."""
        if self._has_own_adapter:
            return self
        changed = copy.copy(self)
        changed._adapter, changed._read_inputs = adapter, adapter.teacher_inputs_of
        return changed

    def __call__(self, batch: Any, layers: Sequence[str] | None = None) -> ModelOutput:
        output = super().__call__(batch, layers)
        logits = output.logits.float().transpose(0, 1)
        return ModelOutput(weighted_mean(logits, self._weights(logits, batch), self.temperature), output.features)

    def check_task(self, task: Task) -> None:
        """Raise ValueError for a task in which the logits of a sample are not one choice among classes."""
        _check_task("A ConfidenceEnsemble", task)

    def weights_of(self, batch: Any) -> Tensor:
        """The weights of the networks for each sample of a batch, K x B."""
        logits = super().__call__(batch).logits.float().transpose(0, 1)
        return self._weights(logits, batch)

    def _weights(self, logits: Tensor, batch: Any) -> Tensor:
        if self.by == "entropy":
            return confidence_weights(logits)
        labels = self._adapter.labels_of(batch)
        if labels is None:
            raise ValueError(
                "These weights are read off the labels, and this batch has none. Give labels, say where they are "
                "(adapter=Adapter(labels=...)), or weigh by the answers alone: by='entropy'."
            )
        return confidence_weights(logits, labels)


class Specialists(nn.Module):
    """Networks that each know only some of the classes, as one teacher of all of them.

        Specialists([tops, shoes, others], [(0, 2, 4, 6), (5, 7, 9), (1, 3, 8)])
        Specialists([tops, shoes], [(0, 2, 4, 6), (5, 7, 9)], gate=generalist)

    classes: for each member the classes of its logits, in their order. Without a gate the logits are joined: class c
    has the logit of the member that knows it. Networks that were trained apart have no common zero, so which group a
    sample belongs to is then left to the size of their logits; and every class has to be known to one of them.
    gate: a network with logits for all classes. Then log p(c) = log p_gate(group of c) + log p_member(c | group), where
    the gate's probability of a group is the sum over its classes; a class that no member knows keeps the gate's own
    probability. num_classes: default, one more than the largest class.
    Shapes: a member's logits are B x its classes, the gate's and the result B x C.
    Raises ValueError for classes that two members claim, that nobody knows, or that do not fit a member's logits.
    Paper: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 5, has specialists, each with one class for all others,
    and a generalist that chooses which of them are asked. The product with the gate is ours.
    """

    _flat_classes: Tensor

    def __init__(
        self,
        members: Iterable[nn.Module],
        classes: Sequence[Sequence[int]],
        *,
        gate: nn.Module | None = None,
        num_classes: int | None = None,
        read_logits: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        networks = _networks(members, 1, "Specialists([tops, shoes], [(0, 2), (1, 3)])")
        self.classes = _groups(classes, len(networks))
        known = sorted(one for group in self.classes for one in group)
        self.num_classes = known[-1] + 1 if num_classes is None else num_classes
        check_whole(known[-1] + 1, num_classes=self.num_classes)
        missing = sorted(set(range(self.num_classes)) - set(known))
        if gate is None and missing:
            few = ", ".join(map(str, missing[:5]))
            raise ValueError(
                f"No member knows the classes {few}. Give a member for them, or a gate, which is a network that knows "
                "all classes."
            )
        self.members = nn.ModuleList(networks)
        self.gate = gate
        self._read_logits = read_logits or find_logits
        # The classes of one member after the other, on the device: a list as an index would be copied there each time.
        flat = torch.tensor([one for group in self.classes for one in group])
        self.register_buffer("_flat_classes", flat, persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The joined logits, or with a gate the logarithms of the joint probabilities."""
        answers = [self._answer(number, *args, **kwargs) for number in range(len(self.members))]
        groups = self._flat_classes.to(answers[0].device).split([len(group) for group in self.classes])
        if self.gate is None:
            joined = answers[0].new_zeros(len(answers[0]), self.num_classes)
            for group, answer in zip(groups, answers, strict=True):
                joined[:, group] = answer
            return joined
        gate = self._read_logits(self.gate(*args, **kwargs))
        if not isinstance(gate, Tensor) or gate.shape != (len(answers[0]), self.num_classes):
            raise ValueError(
                f"The gate gives {_shape(gate)}; expected logits of {self.num_classes} classes for each of "
                f"{len(answers[0])} samples."
            )
        joined = gate.float().log_softmax(dim=1)
        for group, answer in zip(groups, answers, strict=True):
            of_group = joined[:, group].logsumexp(dim=1, keepdim=True)
            # Not index_copy, which MPS has only from torch 2.8 on.
            joined = joined.scatter(1, group.expand(len(joined), -1), of_group + answer.log_softmax(dim=1))
        return joined

    def _answer(self, number: int, *args: Any, **kwargs: Any) -> Tensor:
        logits = self._read_logits(self.members[number](*args, **kwargs))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != len(self.classes[number]):
            raise ValueError(
                f"Member {number} gives {_shape(logits)}; it was said to know {len(self.classes[number])} classes, "
                "batch x classes."
            )
        return logits.float()

    def check_task(self, task: Task) -> None:
        """Raise ValueError for a gate, which is a softmax, in a task without one choice among classes."""
        if self.gate is not None:
            _check_task("The gate of Specialists", task)

    def extra_repr(self) -> str:
        return f"classes={self.classes}, num_classes={self.num_classes}{shown_reader(self._read_logits)}"


def _check_task(who: str, task: Task) -> None:
    if isinstance(task, MultiLabel) or not task.has_classes:
        raise ValueError(
            f"{who} works on softmax probabilities, and the outputs of this task are not softened so. Take the "
            "weighted mean of the outputs themselves: teachers.Ensemble(..., mean='geometric')."
        )


class _Together(AnswerTogether):
    """Networks side by side: their logits as B x K x C."""

    def __init__(self, members: Sequence[nn.Module], read_logits: Callable[[Any], Any]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._read_logits = read_logits

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        logits = [self._read_logits(member(*args, **kwargs)) for member in self.members]
        shapes = [_shape(one) for one in logits]
        if len(set(shapes)) > 1 or not isinstance(logits[0], Tensor) or logits[0].ndim != 2:
            raise ValueError(
                f"Weights for each sample need members with logits of one shape, batch x classes; got "
                f"{', '.join(shapes)}. Where are they? Give read_logits."
            )
        return torch.stack([one.float() for one in logits], dim=1)

    def extra_repr(self) -> str:
        return shown_reader(self._read_logits).removeprefix(", ")


def _networks(members: Any, least: int, example: str) -> list[nn.Module]:
    single = isinstance(members, nn.Module) or not isinstance(members, Iterable)
    networks = [] if single else list(members)
    if len(networks) < least or not all(isinstance(one, nn.Module) for one in networks):
        count = "two networks" if least == 2 else "one network"
        raise ValueError(f"{example.partition('(')[0]} has at least {count}: {example}.")
    return networks


def _groups(classes: Any, count: int) -> tuple[tuple[int, ...], ...]:
    """The classes of each member; ValueError unless they are whole numbers, for each of them, and nobody's twice."""
    try:
        groups = [list(group) for group in classes]
    except TypeError as error:
        raise TypeError(f"classes are those of each member, such as [(0, 2), (1, 3)]; got {classes!r}.") from error
    if len(groups) != count or not all(groups):
        raise ValueError(f"classes say for each of {count} members which it knows, at least one; got {classes!r}.")
    for one in (one for group in groups for one in group):
        check_whole(0, classes=one)
    flat = [int(one) for group in groups for one in group]
    twice = sorted(one for one, times in Counter(flat).items() if times > 1)
    if twice:
        raise ValueError(f"Each class belongs to one member; {twice[0]} is named more than once.")
    return tuple(tuple(int(one) for one in group) for group in groups)


def _check_labels(labels: Any, logits: Tensor) -> None:
    count, classes = logits.shape[1:]
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
    if not whole or labels.shape != (count,):
        raise ValueError(f"Labels are {count} numbers of classes, one for each sample; got {_shape(labels)}.")
    if labels.device.type in ("cpu", "mps") and count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"Labels are classes from 0 to {classes - 1}; these run from {int(labels.min())} to {int(labels.max())}."
        )


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
