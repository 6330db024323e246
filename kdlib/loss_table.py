"""One row for each loss: its function, what it compares, its projector, and its default settings.

`methods`, the command line and the study all read this table, so a loss that has a row here can be used in all three.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from torch import Tensor, nn

from kdlib import losses
from kdlib.errors import unknown_name
from kdlib.projectors import (
    AttentionProjector,
    ConvProjector,
    GaussianProjector,
    Projector,
    WidthProjector,
    as_map,
    pool_to_smaller,
)

LossFunction = Callable[..., Tensor]
# From projectors, layer names, and the outputs of those layers in student and teacher, what the loss is called with:
# the end of the term's name and the arguments. A generator, so that the operations run in the order of the terms.
Pairing = Callable[
    [nn.ModuleList, Sequence[str], Sequence[Tensor], Sequence[Tensor]], Iterator[tuple[str, tuple[Any, ...]]]
]


class Family(StrEnum):
    """What a loss compares: logits, layers of the two networks, or relations between layers or samples."""

    LOGIT = "logit"
    FEATURE = "feature"
    RELATION = "relation"


def each_projected(
    projectors: nn.ModuleList, names: Sequence[str], student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Each student layer against its teacher layer, through the pair's projector."""
    for projector, name, *pair in zip(projectors, names, student, teacher, strict=True):
        yield f" {name}", projector(*pair)


def each_sample_relation(
    projectors: nn.ModuleList, names: Sequence[str], student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Each student layer against its teacher layer as they are: the samples of the batch are related to each other."""
    for name, *pair in zip(names, student, teacher, strict=True):
        yield f" {name}", tuple(pair)


def each_flattened(
    projectors: nn.ModuleList, names: Sequence[str], student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """As `each_sample_relation`, the outputs flattened to B x D; kdlib's own losses do that without a copy."""
    flat = ([output.flatten(1) for output in outputs] for outputs in (student, teacher))
    return each_sample_relation(projectors, names, *flat)


def neighbours(
    projectors: nn.ModuleList, names: Sequence[str], student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Each two successive layers of the student, projected to the teacher's widths, against those of the teacher."""
    student = [as_map(output, name) for output, name in zip(student, names, strict=True)]
    teacher = [as_map(output, "the teacher") for output in teacher]
    for i in range(len(names) - 1):
        pooled = zip(projectors[i : i + 2], pool_to_smaller(*student[i : i + 2]), strict=True)
        yield f" {names[i]}-{names[i + 1]}", ([project(maps) for project, maps in pooled], teacher[i : i + 2])


def all_layers(
    projectors: nn.ModuleList, names: Sequence[str], student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """All layers of the student at once against all of the teacher."""
    yield "", (student, teacher)


@dataclass(frozen=True)
class LossSpec:
    """One row of the table.

    terms: name, weight and function of each term. pairing: what the functions are called with; logit losses have none.
    projector: the module between each pair of layers, made from the pair's name and two example outputs.
    between_layers: whether it relates the layers of a network to each other, and so needs two.
    needs_labels: whether the function takes the labels after the logits.
    weight, layers, temperature, alpha, options: the defaults of the command line, the last three of `methods.create` as
    well, chosen by the study's older search for a ResNet-8 taught by a ResNet-20 with 10,000 images
    (data/results/older-search), except where a comment says otherwise. layers is a word of `models.pair_layers`.
    """

    family: Family
    terms: tuple[tuple[str, float, LossFunction], ...]
    pairing: Pairing | None = None
    projector: type[Projector] | None = None
    between_layers: bool = False
    needs_labels: bool = False
    weight: float = 1.0
    layers: str = "last"
    temperature: float = 4.0
    alpha: float = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, name: str, options: Mapping[str, Any]) -> tuple[tuple[str, float, LossFunction], ...]:
        """The terms with further arguments bound; TypeError for an argument that a function does not take."""
        for _, _, function in self.terms:
            accepted = [n for n, p in inspect.signature(function).parameters.items() if p.default is not p.empty]
            if self.family is Family.LOGIT and "alpha" in accepted:
                accepted.remove("alpha")  # Logit's own is the weight of the labels, so dkd's keeps its default
            for option in options:
                if option not in accepted:
                    raise TypeError(f"{name} takes no option {option!r}. Its options: {', '.join(accepted) or 'none'}.")
        return tuple((term, weight, partial(function, **options)) for term, weight, function in self.terms)


def _logit(function: LossFunction, **settings: Any) -> LossSpec:
    return LossSpec(Family.LOGIT, (("soft", 1.0, function),), **settings)


def _feature(function: LossFunction, projector: type[Projector], **settings: Any) -> LossSpec:
    terms = ((function.__name__, 1.0, function),)
    return LossSpec(Family.FEATURE, terms, each_projected, projector, **settings)


def _relation(*terms: tuple[float, LossFunction], pairing: Pairing = each_sample_relation, **settings: Any) -> LossSpec:
    named = tuple((function.__name__, weight, function) for weight, function in terms)
    return LossSpec(Family.RELATION, named, pairing, between_layers=pairing is not each_sample_relation, **settings)


LOSSES: dict[str, LossSpec] = {
    # T = 4 of the lessons and of `make distill`; the study's older search chose 16; its grid found 2 to 16 alike
    "kd": _logit(losses.kd),
    "dkd": _logit(losses.dkd, needs_labels=True, alpha=0.5, options={"beta": 4.0}),
    "dist": _logit(losses.dist, temperature=2.0, alpha=0.3),
    "standardized_kd": _logit(losses.standardized_kd, temperature=2.0, alpha=0.0),
    "hint": _feature(losses.hint, ConvProjector, weight=10.0),
    "attention": _feature(losses.attention, AttentionProjector, weight=300.0, layers="all"),
    "vid": _feature(losses.vid, GaussianProjector, weight=1.0, layers="late"),
    "fsp": _relation((1.0, losses.fsp), pairing=neighbours, projector=WidthProjector, weight=10.0, layers="all"),
    "layer_correlation": _relation((1.0, losses.layer_correlation), pairing=all_layers, weight=3.0, layers="all"),
    "layer_information": _relation((1.0, losses.layer_information), pairing=all_layers, weight=0.3, layers="all"),
    # the paper's 1 : 2
    "rkd": _relation((1.0, losses.rkd_distance), (2.0, losses.rkd_angle), weight=10.0, layers="embedding"),
    # the shares that they have in rkd
    "rkd_distance": _relation((1.0, losses.rkd_distance), weight=10.0, layers="embedding"),
    "rkd_angle": _relation((1.0, losses.rkd_angle), weight=20.0, layers="embedding"),
    "similarity": _relation((1.0, losses.similarity), weight=3000.0),
    # not in the study: a weight that brings its value, about 0.01, near that of the hard loss
    "correlation_congruence": _relation((1.0, losses.correlation_congruence), weight=100.0, layers="embedding"),
}


def find(name: str, family: Family | None = None) -> LossSpec:
    """The row of this name, of this family if one is given; ValueError, with what there is, if there is none."""
    if isinstance(name, str) and name in LOSSES and family not in (None, LOSSES[name].family):
        kind = LOSSES[name].family
        call = f"Logit(loss={name!r})" if kind is Family.LOGIT else f"{kind.title()}(layers, {name!r})"
        raise ValueError(f"{name!r} is a loss of the family {kind}, and this method takes one of {family}: {call}.")
    options = [known for known, spec in LOSSES.items() if family in (None, spec.family)]
    if name not in options:
        raise unknown_name("loss", name, options)
    return LOSSES[name]


def custom(function: LossFunction, family: Family) -> LossSpec:
    """A row for a function of one's own: features go through a projection, relations get samples as B x D."""
    if family is Family.LOGIT:
        return _logit(function)
    terms = ((getattr(function, "__name__", type(function).__name__), 1.0, function),)
    if family is Family.FEATURE:
        return LossSpec(family, terms, each_projected, ConvProjector)
    return LossSpec(family, terms, each_flattened)
