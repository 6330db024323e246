"""Methods of distillation: modules that say which layers they look at and return named loss terms.

    Logit(temperature=4, alpha=0.1) + 50 * Feature({"layer3": "layer3"})

A method owns its projectors, so they reach the optimiser, the clipping, the device and the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from kdlib import loss_table, losses
from kdlib.errors import check_real
from kdlib.hooks import ModelOutput
from kdlib.loss_table import Family, LossFunction, LossSpec
from kdlib.losses._common import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE
from kdlib.projectors import Projector, channels_of
from kdlib.tasks import MultiLabel, Task

Terms = dict[str, Tensor]


class Method(nn.Module):
    """What a student is trained by. Subclass it and write `forward`; add methods, scale them by numbers.

    layers: student layer -> teacher layer, by the names of `named_modules()` (see `hooks.FeatureExtractor` for
    modules that run several times). needs_teacher: whether `forward` reads the teacher's output.
    needs_teacher_logits: whether it reads the teacher's logits; if not, the teacher may have none, or other classes.
    trains_logits: whether some term reaches the student's logits; if none does, the classifier keeps its initial
    weights.
    """

    layers: Mapping[str, str] = {}
    needs_teacher = True
    needs_teacher_logits = True
    trains_logits = False

    @property
    def student_layers(self) -> tuple[str, ...]:
        return tuple(self.layers)

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.layers.values()))

    def setup(self, student: ModelOutput, teacher: ModelOutput | None) -> None:
        """Make what depends on the sizes of the layers; called once, with both outputs for a small batch.

        `Distiller` calls it with its example, `fit` with two images of a `DataModule` or with a loader's first batch.
        """

    @property
    def needs_setup(self) -> bool:
        """Whether `setup` has to be called before the first step."""
        return type(self).setup is not Method.setup

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, labels: Any) -> Terms:
        """Named terms, each a scalar; their sum is the loss.

        student, teacher: outputs for the same batch (teacher None if not needed); their logits are N x C, one row for
        each decision between classes (see `tasks`). Logits and features are in float32; `raw` is as the network gave
        it, under autocast in bfloat16: call .float() on what is read there. labels: int64, N, or float, N x C; a dict
        where the batch has one, such as for two heads; None if it has none.
        """
        raise NotImplementedError

    def check_task(self, task: Task) -> None:
        """Raise ValueError for a task whose outputs mean nothing to this method."""

    @property
    def hard_loss(self) -> LossFunction | None:
        """The function of output and labels that takes the place of the cross-entropy; None: there is none."""
        return None

    def check_labels(self, rows: Tensor, labels: Tensor) -> None:
        """Raise ValueError or TypeError for wrong labels of a first batch, given on the CPU: no loss looks on CUDA."""

    def __add__(self, other: Method) -> Method:
        if not isinstance(other, Method):
            return NotImplemented
        return WeightedSum([(1.0, self), (1.0, other)])

    def __mul__(self, weight: float) -> Method:
        if not isinstance(weight, int | float):
            return NotImplemented
        return WeightedSum([(weight, self)])

    __rmul__ = __mul__


class WeightedSum(Method):
    """A weighted sum of methods: the terms of all of them, each times its weight."""

    weights: list[float]
    parts: nn.ModuleList

    def __init__(self, parts: list[tuple[float, Method]]) -> None:
        super().__init__()
        flat: list[tuple[float, Method]] = []
        for weight, part in parts:
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"A method's weight is a number of at least 0; got {weight}.")
            inner = part.weighted if isinstance(part, WeightedSum) else [(1.0, part)]
            flat += [(weight * w, p) for w, p in inner]
        self.weights = [weight for weight, _ in flat]
        self.parts = nn.ModuleList(part for _, part in flat)
        self.needs_teacher = any(part.needs_teacher for _, part in flat)
        self.needs_teacher_logits = any(part.needs_teacher and part.needs_teacher_logits for _, part in flat)
        self.trains_logits = any(part.trains_logits for _, part in flat)

    @property
    def weighted(self) -> list[tuple[float, Method]]:
        """Each method with its weight."""
        return list(zip(self.weights, cast("Iterable[Method]", self.parts), strict=True))

    @property
    def student_layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, part in self.weighted for name in part.student_layers))

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, part in self.weighted for name in part.teacher_layers))

    def setup(self, student: ModelOutput, teacher: ModelOutput | None) -> None:
        for _, part in self.weighted:
            part.setup(student, teacher)

    @property
    def needs_setup(self) -> bool:
        return any(part.needs_setup for _, part in self.weighted)

    def check_task(self, task: Task) -> None:
        for _, part in self.weighted:
            part.check_task(task)

    @property
    def hard_loss(self) -> LossFunction | None:
        return next((part.hard_loss for _, part in self.weighted if part.hard_loss is not None), None)

    def check_labels(self, rows: Tensor, labels: Tensor) -> None:
        for _, part in self.weighted:
            part.check_labels(rows, labels)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None) -> Terms:
        terms: Terms = {}
        for number, (weight, part) in enumerate(self.weighted, start=1):
            for name, term in part(student, teacher, labels).items():
                while name in terms:  # twice, if a part has called a term of its own "name (2)"
                    name = f"{name} ({number})"
                terms[name] = weight * term
        return terms

    def extra_repr(self) -> str:
        return f"weights={self.weights}"


class HardLabels(Method):
    """Plain training: cross-entropy with the labels, smoothed if asked (the control that needs no teacher).

    hard: another loss, a function of the student's output and the labels, for what are no classes. It gets rows N x C
    (see `tasks`): pixels and tokens flattened, ignored ones left out; of several labels the pair (0, z).
    """

    needs_teacher = False
    needs_teacher_logits = False
    trains_logits = True

    def __init__(self, smoothing: float = 0.0, hard: LossFunction | None = None) -> None:
        super().__init__()
        check_real(smoothing=smoothing)
        _check_function(hard)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing lies in [0, 1); got {smoothing}.")
        if smoothing and hard is not None:
            raise ValueError("smoothing belongs to the cross-entropy: leave it out, or smooth within hard.")
        self.smoothing, self.hard = smoothing, hard

    @property
    def hard_loss(self) -> LossFunction | None:
        return self.hard

    def check_task(self, task: Task) -> None:
        _check_hard(self, self.hard, task)

    def check_labels(self, rows: Tensor, labels: Tensor) -> None:
        if self.hard is None:
            losses.label_smoothing(rows, labels, 0.0)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None) -> Terms:
        return {"hard": _hard_loss(self, self.hard, student.logits, labels, self.smoothing)}

    def extra_repr(self) -> str:
        return f"smoothing={self.smoothing}{_shown({'hard': self.hard} if self.hard else {})}"


class Logit(Method):
    """Distillation of output logits: L = alpha * L_hard + (1 - alpha) * L_soft (Hinton et al. 2015).

    temperature: T > 0; L_soft carries T^2 for every loss that has a name. alpha: the weight of the hard-label loss, in
    [0, 1]; other code gives this letter to the soft loss. loss: "kd", "dkd", "dist", "standardized_kd", or a function
    of student and teacher logits, which sees to its own temperature. hard: in place of the cross-entropy, a function
    of the student's output and the labels. Both get rows N x C (see `tasks`): pixels and tokens flattened, ignored ones
    left out; of several labels the pair (0, z). options: further arguments of that loss, such as beta=8 for "dkd"
    (whose own alpha, the weight of its target part, stays 1). A batch without labels needs alpha=0.
    Raises ValueError for values out of range, with near matches for an unknown loss; TypeError for an option that
    the loss does not take.
    """

    trains_logits = True

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 0.1,
        loss: str | LossFunction = "kd",
        hard: LossFunction | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_real(temperature=temperature, alpha=alpha)
        _check_function(hard)
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature is a positive number, 1 or more as a rule; got {temperature}.")
        if isinstance(loss, str) and not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
            raise ValueError(
                f"temperature lies between {LOWEST_TEMPERATURE} and {HIGHEST_TEMPERATURE}: beyond, float32 "
                f"leaves nothing of {loss} but rounding noise; got {temperature}."
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is the weight of the hard-label loss and lies in [0, 1]; got {alpha}.")
        self.temperature, self.alpha, self.loss, self.hard = temperature, alpha, loss, hard
        self.options = options
        self._spec, terms = _resolve(loss, Family.LOGIT, options)
        _, _, self._soft = terms[0]
        if isinstance(loss, str):
            self._soft = partial(self._soft, temperature=temperature)

    @property
    def hard_loss(self) -> LossFunction | None:
        return self.hard

    def check_task(self, task: Task) -> None:
        _check_hard(self, self.hard, task)
        if isinstance(self.loss, str) and not task.has_classes:
            raise ValueError(
                f"{self.loss} compares probabilities of classes, and this task has none: give a function of student "
                "and teacher output, Logit(loss=F.mse_loss, hard=F.mse_loss)."
            )
        if isinstance(task, MultiLabel) and self.loss in ("dkd", "standardized_kd"):
            # dkd splits the other classes, of which a pair has one; a pair's z-scores are -1 and 1, without gradient.
            raise ValueError(f"{self.loss} needs more than the two classes of yes and no. Take 'kd'.")

    def check_labels(self, rows: Tensor, labels: Tensor) -> None:
        if self._spec.needs_labels:
            losses.logits.check_labels(labels, rows, needed_by=_name(self.loss))
        elif self.hard is None:
            losses.label_smoothing(rows, labels, 0.0)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None) -> Terms:
        logits = student.logits, _required(teacher, self).logits
        if self._spec.needs_labels and labels is None:
            raise ValueError(f"{self.loss} looks at the labels, and this batch has none. Give labels, or take 'kd'.")
        soft = self._soft(*logits, labels) if self._spec.needs_labels else self._soft(*logits)
        if labels is None and self.alpha == 0:
            return {"soft": soft}
        hard = _hard_loss(self, self.hard, student.logits, labels)
        # Both terms stand at every alpha: a shortcut at 0 or 1 is where published code lost its T^2.
        return {"hard": self.alpha * hard, "soft": (1 - self.alpha) * soft}

    def extra_repr(self) -> str:
        options = {**({"hard": self.hard} if self.hard else {}), **self.options}
        return f"temperature={self.temperature}, alpha={self.alpha}, loss={_name(self.loss)}{_shown(options)}"


class LayerMethod(Method):
    """What `Feature` and `Relation` share: pairs of layers, a projector for each, and the terms of a loss on them."""

    family: Family
    needs_teacher_logits = False

    def __init__(self, layers: Mapping[str, str], loss: str | LossFunction, **options: Any) -> None:
        super().__init__()
        if not isinstance(layers, Mapping) or not layers:
            raise ValueError(
                f"layers maps student layers to teacher layers, as {{'layer3': 'layer3'}}; got {layers!r}."
            )
        if not all(isinstance(name, str) for pair in layers.items() for name in pair):
            raise TypeError(f"layers maps names to names, as {{'layer3': 'layer3'}}; got {layers!r}.")
        self.layers = dict(layers)
        self.loss = loss
        self.options = options
        self._spec, self._terms = _resolve(loss, self.family, options)
        self._pairing = self._spec.pairing or loss_table.each_projected
        if self._spec.between_layers and len(self.layers) < 2:
            raise ValueError(
                f"{loss} relates the layers of a network to each other: name at least two; got {self.layers}."
            )
        self.projectors = nn.ModuleList()

    def setup(self, student: ModelOutput, teacher: ModelOutput | None) -> None:
        projector = self._spec.projector
        if projector is None:
            return
        features = student.features, _required(teacher, self).features
        pairs = {f"{a} -> {b}": (features[0][a], features[1][b]) for a, b in self.layers.items()}
        if len(self.projectors) and projector.learns:  # a second fit goes on with what the first one learned
            _check_channels(self.projectors, pairs)
            return
        self.projectors = nn.ModuleList([projector(name, *outputs) for name, outputs in pairs.items()])

    @property
    def needs_setup(self) -> bool:
        return self._spec.projector is not None and len(self.projectors) == 0

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None) -> Terms:
        if self.needs_setup:
            raise RuntimeError(
                "The method does not know the sizes of its layers yet. Call method.setup(student_output, "
                "teacher_output) once before the first step, as train.fit does."
            )
        names = list(self.layers)
        features = _required(teacher, self).features
        _check_same_samples(self.layers, student.features, features)
        outputs = [student.features[a] for a in names], [features[b] for b in self.layers.values()]
        return {
            f"{term}{suffix}": weight * function(*inputs)
            for term, weight, function in self._terms
            for suffix, inputs in self._pairing(self.projectors, names, *outputs)
        }


class Feature(LayerMethod):
    """Distillation of intermediate features: a student map is made to look like a teacher map.

    layers: student layer -> teacher layer. loss: "hint" (FitNets, Romero et al. 2015; a learned 1 x 1 projection
    to the teacher's width, where the paper has a larger kernel that fits the sizes, too), "attention" (Zagoruyko and
    Komodakis 2017; needs no projection), "vid" (Ahn et al. 2019; a learned mean and variance), or a function of
    projected student map and teacher map. Where the maps differ in height or width, the larger is average-pooled to
    the smaller; printing a run's method shows the projectors. Padded positions count as the others do. options: further
    arguments of that function.
    Maps are B x C x H x W; channels last are refused where the other layer's map shows them, not where both networks
    have them. A function of one's own gets B x C x H x W of both, as many channels as the teacher has: tokens of both
    networks come as B x C x N x 1, vectors as B x C x 1 x 1, so a cosine over the channels takes dim=1.
    Tokens of which both networks have other numbers are read as square grids of patches, which is wrong for sound and
    text: let an nn.Identity in each network get x.mT[:, :, None], a map of one row, and name these.
    Three dimensions are tokens, B x N x C, but for what is seen to come from 1-D convolutions, see `hooks.is_line`.
    It has no term for the labels: write HardLabels() + Feature(...) or Logit() + Feature(...).
    """

    family = Family.FEATURE

    def __init__(self, layers: Mapping[str, str], loss: str | LossFunction = "hint", **options: Any) -> None:
        super().__init__(layers, loss, **options)

    def extra_repr(self) -> str:
        return f"loss={_name(self.loss)}{_shown(self.options)}"


class Relation(LayerMethod):
    """Distillation of relations, between the layers of one network or between the samples of one batch.

    layers: student layer -> teacher layer, in the networks' order.
    loss, between layers: "fsp" (Yim et al. 2017, for each two neighbours; student maps are projected to the
    teacher's width where these differ), "layer_correlation" (CKA), "layer_information" (matrix-based mutual
    information). Between samples, for each pair of layers: "rkd" (Park et al. 2019, distances plus twice the
    angles), "rkd_distance", "rkd_angle", "similarity" (Tung and Mori 2019), "correlation_congruence" (Peng et al.
    2019), or a function of student and teacher outputs, flattened to B x D. Padded positions count as the others do.
    Outputs with positions first, N x B x C, are turned, unless there are as many positions as samples: which of them
    come first cannot be told then. options: further arguments of that loss.
    It has no term for the labels: write HardLabels() + Relation(...) or Logit() + Relation(...).
    """

    family = Family.RELATION

    def __init__(self, layers: Mapping[str, str], loss: str | LossFunction = "fsp", **options: Any) -> None:
        super().__init__(layers, loss, **options)

    def extra_repr(self) -> str:
        return f"loss={_name(self.loss)}, layers={self.layers}{_shown(self.options)}"


def create(
    loss: str,
    layers: Mapping[str, str] | None = None,
    *,
    temperature: float | None = None,
    alpha: float | None = None,
    **options: Any,
) -> Method:
    """The method of a loss in `loss_table.LOSSES`, by the loss's name alone, with weight 1.

    layers: for features and relations. temperature, alpha: for logit losses; default, those of the loss in
    `loss_table`: what the study's older search chose, but for kd, whose T is 4. options: further arguments of the loss;
    default, the table's too.
    Raises ValueError for settings that belong to another sort of loss, and what the method raises.
    """
    spec = loss_table.find(loss)
    if spec.family is Family.LOGIT:
        if layers:
            raise ValueError(f"{loss} compares logits and takes no layers; got {layers!r}. Leave them out.")
        temperature = spec.temperature if temperature is None else temperature
        alpha = spec.alpha if alpha is None else alpha
        return Logit(temperature, alpha, loss, **{**spec.options, **options})
    if (temperature, alpha) != (None, None):
        raise ValueError(
            f"temperature and alpha belong to losses on logits, such as 'kd'; {loss} takes a weight, and labels a term "
            f"of their own: HardLabels() + 10 * create({loss!r}, layers)."
        )
    kind = Feature if spec.family is Family.FEATURE else Relation
    return kind(layers or {}, loss, **{**spec.options, **options})


def _resolve(
    loss: str | LossFunction, family: Family, options: Mapping[str, Any]
) -> tuple[LossSpec, tuple[tuple[str, float, LossFunction], ...]]:
    """The row of a loss by name, or one made for a function of one's own; and its terms with the options bound."""
    if not callable(loss):
        spec = loss_table.find(loss, family)
        return spec, spec.with_options(loss, options)
    spec = loss_table.custom(loss, family)
    return spec, tuple((term, weight, partial(function, **options)) for term, weight, function in spec.terms)


def _check_function(hard: Any) -> None:
    if hard is not None and not callable(hard):
        raise TypeError(f"hard is a function of the student's output and the labels, such as F.mse_loss; got {hard!r}.")


def _check_hard(method: Method, hard: LossFunction | None, task: Task) -> None:
    if hard is None and not task.has_classes:
        name = type(method).__name__
        # A loss on logits by its name compares probabilities of classes, and would be refused next.
        both = "loss=F.mse_loss, " if isinstance(method, Logit) and isinstance(method.loss, str) else ""
        raise ValueError(
            f"{name} takes the cross-entropy with the labels, and this task has no classes: give it a function of "
            f"student output and target, {name}({both}hard=F.mse_loss)."
        )
    refuse_binary_cross_entropy("hard", hard, task)


def refuse_binary_cross_entropy(name: str, loss: LossFunction | None, task: Task) -> None:
    """Raise ValueError for this loss, or the focal one, on several labels, whose rows are pairs (0, z).

    name: of the argument.
    """
    while isinstance(loss, partial):  # with a weight, say
        loss = loss.func
    binary = isinstance(loss, nn.BCEWithLogitsLoss) or loss is F.binary_cross_entropy_with_logits
    focal = getattr(loss, "__module__", None) == "torchvision.ops.focal_loss"
    if (binary or focal) and isinstance(task, MultiLabel):  # of the two logits of a pair one is 0: half of the gradient
        raise ValueError(
            f"With several labels leave {name} out: binary cross-entropy is the default. pos_weight=w is "
            f"{name}=nn.CrossEntropyLoss(weight=torch.tensor([1.0, w])) with labels that are floats. Any other loss "
            "takes the logits from the pairs (0, z), and a weight for each of K labels, of which none is ignored, is "
            f"{name}=lambda z, y: F.binary_cross_entropy_with_logits(z[:, 1].view(-1, K), y[:, 1].view(-1, K), "
            "pos_weight=w)."
        )


def _hard_loss(
    method: Method, hard: LossFunction | None, output: Tensor, labels: Tensor | None, smoothing: float = 0.0
) -> Tensor:
    if labels is None:
        raise ValueError(
            f"{type(method).__name__} has a loss on the labels, and this batch has none. Give labels, or distil by the "
            "teacher alone: Logit(alpha=0)."
        )
    return losses.label_smoothing(output, labels, smoothing) if hard is None else hard(output, labels)


def _required(teacher: ModelOutput | None, method: Method) -> ModelOutput:
    if teacher is None:
        raise ValueError(
            f"{type(method).__name__} compares the student with its teacher, but there is no output of a teacher. Give "
            "fit a teacher, or call the method with both outputs."
        )
    return teacher


def _check_same_samples(
    layers: Mapping[str, str], student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
) -> None:
    """Raise ValueError where two layers saw different numbers of samples, which a loss might broadcast."""
    for name, other in layers.items():
        sizes = [len(one) if one.ndim else 1 for one in (student[name], teacher[other])]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"In {name} -> {other} the student has {sizes[0]} samples and the teacher {sizes[1]}: both must be "
                "given the same samples in the same order. Do inputs and teacher_inputs of the batch belong together?"
            )


def _check_channels(projectors: nn.ModuleList, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Raise ValueError unless the projectors were made for layers of these widths."""
    for projector, (name, outputs) in zip(projectors, pairs.items(), strict=True):
        channels = tuple(channels_of(output, name) for output in outputs)
        before = cast("Projector", projector).channels
        if channels != before:
            raise ValueError(
                f"What this method has learned compares {name} with {before[0]} -> {before[1]} channels; these "
                f"networks have {channels[0]} -> {channels[1]}. Take networks like those of its first run, or a new "
                "method."
            )


def _shown(options: Mapping[str, Any]) -> str:
    """Options as they stand in a repr, by which a run is recognized: no address of a function in it."""
    return "".join(f", {name}={_name(one) if callable(one) else one}" for name, one in options.items())


def _name(loss: str | LossFunction) -> str:
    return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
