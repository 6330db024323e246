"""Methods of distillation: modules that say which layers they look at and return named loss terms.

    Logit(temperature=4, alpha=0.1) + 50 * Feature({"layer3": "layer3"})

A method owns its projections, so they reach the optimiser, the clipping, the device and the checkpoint.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from kdlib import losses
from kdlib._messages import unknown
from kdlib.connectors import Gaussian, Project, Resize, as_map, smaller
from kdlib.taps import Answer

Terms = dict[str, Tensor]


class Method(nn.Module):
    """What a student is trained by. Subclass it and write `forward`; add methods, scale them by numbers.

    layers: student layer -> teacher layer, by the names of `named_modules()`. needs_teacher: whether `forward`
    reads the teacher's answer. trains_logits: whether some term reaches the student's logits; if none does, the
    classifier keeps its initial weights.
    """

    layers: Mapping[str, str] = {}
    needs_teacher = True
    trains_logits = False

    @property
    def student_layers(self) -> tuple[str, ...]:
        return tuple(self.layers)

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.layers.values()))

    def attach(self, student: Answer, teacher: Answer | None) -> None:
        """Make what depends on the sizes of the layers; called once, with both answers to a small batch.

        In a loop of your own: call it before the optimiser is made, then `.to(device)`.
        """

    def forward(self, student: Answer, teacher: Answer | None, labels: Tensor) -> Terms:
        """Named terms, each a scalar; their sum is the loss.

        student, teacher: answers to the same batch (teacher None if not needed). labels: int64, B.
        """
        raise NotImplementedError

    def __add__(self, other: Method) -> Method:
        if not isinstance(other, Method):
            return NotImplemented
        return Sum([(1.0, self), (1.0, other)])

    def __mul__(self, weight: float) -> Method:
        if not isinstance(weight, int | float):
            return NotImplemented
        return Sum([(weight, self)])

    __rmul__ = __mul__


class Sum(Method):
    """A weighted sum of methods: the terms of all of them, each times its weight."""

    def __init__(self, parts: list[tuple[float, Method]]) -> None:
        super().__init__()
        flat: list[tuple[float, Method]] = []
        for weight, part in parts:
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"A method's weight is a number of at least 0; got {weight}.")
            inner = zip(part.weights, part.parts, strict=True) if isinstance(part, Sum) else [(1.0, part)]
            flat += [(weight * w, p) for w, p in inner]
        self.weights = [weight for weight, _ in flat]
        self.parts = nn.ModuleList(part for _, part in flat)

    @property
    def needs_teacher(self) -> bool:
        return any(part.needs_teacher for part in self.parts)

    @property
    def trains_logits(self) -> bool:
        return any(part.trains_logits for part in self.parts)

    @property
    def student_layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.student_layers))

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.teacher_layers))

    def attach(self, student: Answer, teacher: Answer | None) -> None:
        for part in self.parts:
            part.attach(student, teacher)

    def forward(self, student: Answer, teacher: Answer | None, labels: Tensor) -> Terms:
        terms: Terms = {}
        for number, (weight, part) in enumerate(zip(self.weights, self.parts, strict=True), start=1):
            for name, term in part(student, teacher, labels).items():
                while name in terms:  # twice, if a part has called a term of its own "name (2)"
                    name = f"{name} ({number})"
                terms[name] = weight * term
        return terms

    def extra_repr(self) -> str:
        return f"weights={self.weights}"


class HardLabels(Method):
    """Plain training: cross-entropy with the labels, smoothed if asked (the control that needs no teacher)."""

    needs_teacher = False
    trains_logits = True

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing lies in [0, 1); got {smoothing}.")
        self.smoothing = smoothing

    def forward(self, student: Answer, teacher: Answer | None, labels: Tensor) -> Terms:
        return {"hard": losses.label_smoothing(student.logits, labels, self.smoothing)}

    def extra_repr(self) -> str:
        return f"smoothing={self.smoothing}"


class Logit(Method):
    """Distillation of output logits: L = alpha * L_hard + (1 - alpha) * L_soft (Hinton et al. 2015).

    temperature: T > 0; L_soft always carries T^2. alpha: the weight of the hard-label loss, in [0, 1]; other code
    gives this letter to the soft loss. loss: "kd", "dkd", "dist", "standardized_kd", or a function of student and
    teacher logits, which sees to its own temperature. options: further arguments of that loss, such as beta=8 for
    "dkd" (whose own alpha, the weight of its target part, stays 1).
    Raises ValueError for values out of range, with near matches for an unknown loss; TypeError for an option that
    the loss does not take.
    """

    trains_logits = True
    known = ("kd", "dkd", "dist", "standardized_kd")

    def __init__(
        self, temperature: float = 4.0, alpha: float = 0.1, loss: str | Callable[..., Tensor] = "kd", **options: Any
    ) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature is a positive number, 1 or more as a rule; got {temperature}.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is the weight of the hard-label loss and lies in [0, 1]; got {alpha}.")
        self.temperature, self.alpha, self.loss = temperature, alpha, loss
        self.options = options
        self._soft = _chosen(loss, self.known, options)
        if isinstance(loss, str):
            self._soft = partial(self._soft, temperature=temperature)

    def forward(self, student: Answer, teacher: Answer | None, labels: Tensor) -> Terms:
        pair = (student.logits, teacher.logits)
        soft = self._soft(*pair, labels) if self.loss == "dkd" else self._soft(*pair)
        hard = losses.label_smoothing(student.logits, labels, 0.0)
        # Both terms stand at every alpha: a shortcut at 0 or 1 is where published code lost its T^2.
        return {"hard": self.alpha * hard, "soft": (1 - self.alpha) * soft}

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, alpha={self.alpha}, loss={_name(self.loss)}{_said(self.options)}"


class Feature(Method):
    """Distillation of intermediate features: a student map is made to look like a teacher map.

    layers: student layer -> teacher layer. loss: "hint" (FitNets, Romero et al. 2015; a learned 1 x 1 projection
    to the teacher's width), "attention" (Zagoruyko and Komodakis 2017; needs no projection), "vid" (Ahn et al.
    2019; a learned mean and variance), or a function of projected student map and teacher map. Where the maps
    differ in height or width, the larger is average-pooled to the smaller; printing a run's method shows what was put
    in. options: further arguments of that function.
    It has no term for the labels: write HardLabels() + Feature(...) or Logit() + Feature(...).
    """

    known = ("hint", "attention", "vid")

    def __init__(self, layers: Mapping[str, str], loss: str | Callable[..., Tensor] = "hint", **options: Any) -> None:
        super().__init__()
        self.layers = _mapping(layers)
        self.loss = loss
        self.options = options
        self._compare = _chosen(loss, self.known, options)
        self.connectors = nn.ModuleList()

    def attach(self, student: Answer, teacher: Answer | None) -> None:
        if len(self.connectors) and self.loss != "attention":  # a second fit goes on with what the first one learned
            channels = _channels(self.layers, student, teacher)
            _refuse_others(self.layers, [connector.channels for connector in self.connectors], channels)
            return
        kind = Resize if self.loss == "attention" else Gaussian if self.loss == "vid" else Project
        made = [kind(f"{a} -> {b}", student.layers[a], teacher.layers[b]) for a, b in self.layers.items()]
        for connector in made:
            if self.loss == "attention" and connector.size == (1, 1):
                raise ValueError(
                    f"attention compares where two layers look, but {connector.title} would be compared at 1 x 1, and "
                    "then its loss is always 0. Name layers with larger maps, or use loss='hint'."
                )
        self.connectors = nn.ModuleList(made)

    def forward(self, student: Answer, teacher: Answer | None, labels: Tensor) -> Terms:
        _check_attached(self.connectors)
        terms: Terms = {}
        for place, (ours, theirs) in enumerate(self.layers.items()):
            inputs = self.connectors[place](student.layers[ours], teacher.layers[theirs])
            terms[f"{_name(self.loss)} {ours}"] = self._compare(*inputs)
        return terms

    def extra_repr(self) -> str:
        return f"loss={_name(self.loss)}{_said(self.options)}"


class Relation(Method):
    """Distillation of relations, between the layers of one network or between the samples of one batch.

    layers: student layer -> teacher layer, in the networks' order.
    loss, between layers: "fsp" (Yim et al. 2017, for each two neighbours; student maps are projected to the
    teacher's width where these differ), "layer_correlation" (CKA), "layer_information" (matrix-based mutual
    information). Between samples, for each pair of layers: "rkd" (Park et al. 2019, distances plus twice the
    angles), "rkd_distance", "rkd_angle", "similarity" (Tung and Mori 2019), "correlation_congruence" (Peng et al.
    2019), or a function of student and teacher outputs, flattened to B x D. options: further arguments of that loss.
    It has no term for the labels: write HardLabels() + Relation(...) or Logit() + Relation(...).
    """

    between_layers = ("fsp", "layer_correlation", "layer_information")
    between_samples = ("rkd", "rkd_distance", "rkd_angle", "similarity", "correlation_congruence")
    known = between_layers + between_samples

    def __init__(self, layers: Mapping[str, str], loss: str | Callable[..., Tensor] = "fsp", **options: Any) -> None:
        super().__init__()
        self.layers = _mapping(layers)
        self.loss = loss
        if loss in self.between_layers and len(self.layers) < 2:
            raise ValueError(
                f"{loss} relates the layers of a network to each other: name at least two; got {self.layers}."
            )
        parts = [(loss, 1.0)]
        if loss == "rkd":
            parts = [("rkd_distance", 1.0), ("rkd_angle", 2.0)]  # the paper's 1 : 2
        self.options = options
        self._compare = {_name(part): (weight, _chosen(part, self.known, options)) for part, weight in parts}
        self.connectors = nn.ModuleList()

    def attach(self, student: Answer, teacher: Answer | None) -> None:
        if self.loss != "fsp":
            return
        channels = _channels(self.layers, student, teacher)
        if len(self.connectors):
            _refuse_others(self.layers, self._channels, channels)
            return
        self._channels = channels
        self.connectors.extend(nn.Identity() if a == b else nn.Conv2d(a, b, 1, bias=False) for a, b in channels)

    def forward(self, student: Answer, teacher: Answer | None, labels: Tensor) -> Terms:
        names = list(self.layers)
        ours = [student.layers[name] for name in names]
        theirs = [teacher.layers[name] for name in self.layers.values()]
        if self.loss == "fsp":
            _check_attached(self.connectors)
            ours = [as_map(output, name) for output, name in zip(ours, names, strict=True)]
            theirs = [as_map(output, "the teacher") for output in theirs]
        if callable(self.loss):  # a function of one's own gets B x D; ours flatten, without a copy where they can
            ours, theirs = ([output.flatten(1) for output in outputs] for outputs in (ours, theirs))
        terms: Terms = {}
        for loss, (weight, compare) in self._compare.items():
            if self.loss == "fsp":
                for i in range(len(names) - 1):
                    ahead = zip(self.connectors[i : i + 2], smaller(*ours[i : i + 2]), strict=True)
                    projected = [project(pooled) for project, pooled in ahead]
                    terms[f"fsp {names[i]}-{names[i + 1]}"] = compare(projected, theirs[i : i + 2])
            elif self.loss in self.between_layers:
                terms[loss] = compare(ours, theirs)
            else:
                for i, name in enumerate(names):
                    terms[f"{loss} {name}"] = weight * compare(ours[i], theirs[i])
        return terms

    def extra_repr(self) -> str:
        return f"loss={_name(self.loss)}, layers={self.layers}{_said(self.options)}"


def _mapping(layers: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(layers, Mapping) or not layers:
        raise ValueError(f"layers maps student layers to teacher layers, as {{'layer3': 'layer3'}}; got {layers!r}.")
    return dict(layers)


def _check_attached(connectors: nn.ModuleList) -> None:
    if len(connectors) == 0:
        raise RuntimeError(
            "The method does not know the sizes of its layers yet. Call method.attach(student_answer, teacher_answer) "
            "once before the first step, as train.fit does."
        )


def _channels(layers: Mapping[str, str], student: Answer, teacher: Answer) -> list[tuple[int, int]]:
    """Of each pair of layers, the student's and the teacher's."""
    pairs = [(f"{a} -> {b}", student.layers[a], teacher.layers[b]) for a, b in layers.items()]
    return [(as_map(ours, title).shape[1], as_map(theirs, title).shape[1]) for title, ours, theirs in pairs]


def _refuse_others(layers: Mapping[str, str], before: list[tuple[int, int]], now: list[tuple[int, int]]) -> None:
    for (a, b), made_for, given in zip(layers.items(), before, now, strict=True):
        if given != made_for:
            raise ValueError(
                f"What this method has learned compares {a} -> {b} with {made_for[0]} -> {made_for[1]} channels; these "
                f"networks have {given[0]} -> {given[1]}. Take networks like those of its first run, or a new method."
            )


def _chosen(
    loss: str | Callable[..., Tensor], known: tuple[str, ...], options: dict[str, Any]
) -> Callable[..., Tensor]:
    if callable(loss):
        return partial(loss, **options)
    if loss not in known:
        raise unknown("loss", loss, known)
    function = getattr(losses, loss)
    accepted = [name for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty]
    for name in options:
        if name not in accepted:
            raise TypeError(f"{loss} takes no option {name!r}. Its options: {', '.join(accepted) or 'none'}.")
    return partial(function, **options)


def _said(options: dict[str, Any]) -> str:
    """Options as they stand in a repr, by which a run is known again: no address of a function in it."""
    return "".join(f", {name}={_name(one) if callable(one) else one}" for name, one in options.items())


def _name(loss: str | Callable[..., Tensor]) -> str:
    return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
