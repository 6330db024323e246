"""The methods of the study: the losses of each, the settings that are tried first, and what is tried after them.

Every method, hard labels included, gets the same number of trials on the validation split: first the learning rates
in LEARNING_RATES with its start settings, then six variations of its own at the best of these rates. Weights are
tried over two or three powers of ten, because nobody knows the scale of a loss beforehand.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import reduce
from typing import Any

from torch import nn

from kdlib import loss_table, methods, models
from kdlib.errors import unknown_name
from kdlib.loss_table import Family
from kdlib.recipes import Recipe

BATCH_SIZE = 128
LEARNING_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)  # for a batch of 128
TRIALS_PER_METHOD = 11
FAMILIES = ("baseline", "control", "logit", "feature", "relation", "combination")
HARD = "hard"  # among the losses of a spec: cross-entropy with the labels, smoothed or not


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters of one run; None for those that its method does not have.

    learning_rate: for a batch of 128. alpha: the weight of the hard labels. beta: of dkd. weight: of the feature or
    relation term. layers: which layers that term compares, a word of `models.pair_layers`.
    """

    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    smoothing: float | None = None
    alpha: float | None = None
    temperature: float | None = None
    beta: float | None = None
    weight: float | None = None
    layers: str | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and name != "layers":  # 10 and the 10.0 of a file are one setting
                object.__setattr__(self, name, float(value))

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Settings:
        """The settings in a row of a CSV file."""
        numbers = {name: float(row[name]) for name in SETTING_NAMES if name != "layers" and row[name] != ""}
        return cls(**numbers, layers=row["layers"] or None)

    def recipe(self, batch_size: int = BATCH_SIZE) -> Recipe:
        """How a run with these settings is trained; all else is the same for every method.

        The learning rate is that of a batch of 128; a smaller one takes it in proportion (Goyal et al. 2017).
        """
        learning_rate = self.learning_rate * batch_size / BATCH_SIZE
        return Recipe(learning_rate=learning_rate, weight_decay=self.weight_decay, batch_size=batch_size)

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value if name == 'layers' else format(value, 'g')}"
            for name, value in asdict(self).items()
            if value is not None
        )


SETTING_NAMES = tuple(setting.name for setting in fields(Settings))
Variations = tuple[tuple[str, Any], ...]  # name and value of what each further trial changes


class TeacherKind(StrEnum):
    """Which network teaches: the study's own, one that should be of no help, or none."""

    NONE = "none"
    REFERENCE = "reference"
    SHUFFLED = "shuffled"  # the reference, with the outputs for another image
    UNTRAINED = "untrained"
    SAME_SIZE = "own-size"  # trained by hard labels, of the student's architecture


@dataclass(frozen=True)
class MethodSpec:
    """One method of the study.

    name: as rows call it. title: as figures and tables call it. family: one of FAMILIES. losses: HARD and names in
    `loss_table.LOSSES`, added up in this order. start: the settings that are tried first, and used where nothing was
    tuned. variations: name and value of what is changed in each further trial. teacher: which network teaches.
    """

    name: str
    title: str
    family: str
    losses: tuple[str, ...]
    start: Settings
    variations: Variations
    teacher: TeacherKind = TeacherKind.REFERENCE

    def first_settings(self) -> list[Settings]:
        """The settings of the first trials: every learning rate."""
        return [replace(self.start, learning_rate=rate) for rate in LEARNING_RATES]

    def further_settings(self, best: Settings) -> list[Settings]:
        """The settings of the further trials: one variation each of the best of the first."""
        return [replace(best, **{name: value}) for name, value in self.variations]

    def make_method(self, settings: Settings, student: nn.Module, teacher: nn.Module) -> methods.Method:
        """The method with these settings, for these two architectures; its projectors are not made yet.

        Raises ValueError for settings without the weight and layers that a feature or relation loss needs.
        """
        return reduce(operator.add, [self._make_term(loss, settings, student, teacher) for loss in self.losses])

    def _make_term(self, loss: str, settings: Settings, student: nn.Module, teacher: nn.Module) -> methods.Method:
        if loss == HARD:
            return methods.HardLabels(settings.smoothing or 0.0)
        spec = loss_table.find(loss)
        options = {option: getattr(settings, option) for option in spec.options}
        if spec.family is Family.LOGIT:
            return methods.create(loss, temperature=settings.temperature, alpha=settings.alpha, **options)
        if settings.weight is None or settings.layers is None:
            raise ValueError(f"{self.name} needs a weight and layers; its settings are {settings}.")
        pairs = models.pair_layers(student, teacher, settings.layers)
        return settings.weight * methods.create(loss, pairs, **options)


def _each(**values: tuple[Any, ...]) -> Variations:
    """One variation for each value of each name: _each(weight=(1, 2), layers=("last",)) gives three."""
    return tuple((name, value) for name, several in values.items() for value in several)


_KD, _KD_VARIATIONS = Settings(alpha=0.1, temperature=4), _each(temperature=(2, 8, 16), alpha=(0, 0.5, 0.9))


def _kd_control(name: str, title: str, teacher: TeacherKind) -> MethodSpec:
    """A control: the method is kd, tuned as kd is, and the teacher is one that should not help."""
    return MethodSpec(name, title, "control", ("kd",), _KD, _KD_VARIATIONS, teacher)


_SPECS = (
    MethodSpec(
        "hard",
        "hard labels",
        "baseline",
        (HARD,),
        Settings(),
        _each(weight_decay=(5e-5, 1e-4, 2e-4, 1e-3, 2e-3, 4e-3)),
        TeacherKind.NONE,
    ),
    MethodSpec(
        "label-smoothing",
        "label smoothing",
        "control",
        (HARD,),
        Settings(smoothing=0.1),
        _each(smoothing=(0.02, 0.05, 0.15, 0.2, 0.3, 0.4)),
        TeacherKind.NONE,
    ),
    # logits
    MethodSpec("kd", "logits (KD)", "logit", ("kd",), _KD, _KD_VARIATIONS),
    MethodSpec(
        "dkd",
        "decoupled logits (DKD)",
        "logit",
        ("dkd",),
        Settings(alpha=0.5, temperature=4, beta=4),
        _each(beta=(1, 2, 8), temperature=(2, 8), alpha=(0.1,)),
    ),
    MethodSpec(
        "dist",
        "correlated logits (DIST)",
        "logit",
        ("dist",),
        Settings(alpha=0.3, temperature=1),
        _each(temperature=(2, 4, 8), alpha=(0.1, 0.2, 0.5)),
    ),
    MethodSpec(
        "standardized",
        "standardized logits",
        "logit",
        ("standardized_kd",),
        Settings(alpha=0.1, temperature=2),
        _each(temperature=(0.5, 1, 4), alpha=(0, 0.3, 0.5)),
    ),
    # features
    MethodSpec(
        "hint",
        "hint (FitNets)",
        "feature",
        (HARD, "hint"),
        Settings(weight=10, layers="last"),
        _each(weight=(1, 3, 30, 100), layers=("late", "all")),
    ),
    MethodSpec(
        "attention",
        "attention maps",
        "feature",
        (HARD, "attention"),
        Settings(weight=1000, layers="all"),
        _each(weight=(100, 300, 3000, 10000), layers=("last", "late")),
    ),
    MethodSpec(
        "vid",
        "variational (VID)",
        "feature",
        (HARD, "vid"),
        Settings(weight=1, layers="late"),
        _each(weight=(0.1, 0.3, 3, 10), layers=("last", "all")),
    ),
    # relations
    MethodSpec(
        "fsp",
        "flow between layers (FSP)",
        "relation",
        (HARD, "fsp"),
        Settings(weight=10, layers="all"),
        _each(weight=(0.1, 1, 100, 1000, 10000), layers=("late",)),
    ),
    MethodSpec(
        "layer-correlation",
        "correlation of layers (CKA)",
        "relation",
        (HARD, "layer_correlation"),
        Settings(weight=10, layers="all"),
        _each(weight=(0.3, 1, 3, 30, 100, 300)),
    ),
    MethodSpec(
        "layer-information",
        "information between layers",
        "relation",
        (HARD, "layer_information"),
        Settings(weight=0.3, layers="all"),
        _each(weight=(0.01, 0.03, 0.1, 1, 3, 10)),
    ),
    MethodSpec(
        "rkd",
        "distances and angles (RKD)",
        "relation",
        (HARD, "rkd"),
        Settings(weight=10, layers="embedding"),
        _each(weight=(0.3, 1, 3, 30, 100, 300)),
    ),
    MethodSpec(
        "similarity",
        "similarities of samples (SP)",
        "relation",
        (HARD, "similarity"),
        Settings(weight=3000, layers="last"),
        _each(weight=(100, 300, 1000, 10000, 30000), layers=("embedding",)),
    ),
    # combinations
    MethodSpec(
        "kd+hint",
        "logits + hint",
        "combination",
        ("kd", "hint"),
        replace(_KD, weight=10, layers="last"),
        _each(weight=(1, 30, 100), temperature=(8,), alpha=(0.5,), layers=("late",)),
    ),
    MethodSpec(
        "kd+fsp",
        "logits + FSP",
        "combination",
        ("kd", "fsp"),
        replace(_KD, weight=10, layers="all"),
        _each(weight=(1, 100, 1000), temperature=(8,), alpha=(0.5,), layers=("late",)),
    ),
    MethodSpec(
        "kd+rkd",
        "logits + RKD",
        "combination",
        ("kd", "rkd"),
        replace(_KD, weight=10, layers="embedding"),
        _each(weight=(1, 30, 100), temperature=(2, 8), alpha=(0.5,)),
    ),
    _kd_control("shuffled", "logits of another image", TeacherKind.SHUFFLED),
    _kd_control("untrained", "untrained teacher", TeacherKind.UNTRAINED),
    _kd_control("own-size", "teacher of the student's size", TeacherKind.SAME_SIZE),
)
METHODS: dict[str, MethodSpec] = {spec.name: spec for spec in _SPECS}


def find(name: str) -> MethodSpec:
    """The method of this name; ValueError, with near matches, if there is none."""
    if name not in METHODS:
        raise unknown_name("method of the study", name, METHODS)
    return METHODS[name]
