"""The methods of the study: the losses of each, and where its settings are searched for.

Every method, hard labels included, gets the same search on the validation split: FIRST_TRIALS over wide ranges of
learning rate, weight decay and its own settings together, then FURTHER_TRIALS in a narrower space around the best of
these, which goes beyond a range where the best lies at its end. Weights have ranges of three or four powers of ten,
because nobody knows the scale of a loss beforehand. Equally many trials search a space of more settings less closely:
a combination with six settings is at a disadvantage beside hard labels with two.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from functools import reduce

from torch import nn

from kdlib import loss_table, methods, models
from kdlib.errors import unknown_name
from kdlib.loss_table import Family
from kdlib.recipes import Recipe
from kdlib.study.search_space import Choice, LogUniform, SearchSpace, Uniform, narrowed, sample

BATCH_SIZE = 128
FIRST_TRIALS, FURTHER_TRIALS = 10, 5
TRIALS_PER_METHOD = FIRST_TRIALS + FURTHER_TRIALS
FAMILIES = ("baseline", "control", "logit", "feature", "relation", "combination")
SGD, ADAMW = "sgd", "adamw"
HARD = "hard"  # among the losses of a spec: cross-entropy with the labels, smoothed or not


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters of one run; None for those that its method does not have.

    learning_rate: for a batch of 128; its default and that of weight_decay are those of SGD. alpha: the weight of the
    hard labels. beta: of dkd. weight: of the feature or relation term. layers: which layers that term compares, a word
    of `models.pair_layers`.
    """

    learning_rate: float = Recipe(SGD).learning_rate
    weight_decay: float = Recipe(SGD).weight_decay
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

    def recipe(self, batch_size: int = BATCH_SIZE, optimizer: str = SGD) -> Recipe:
        """How a run with these settings is trained; all else is the same for every method.

        The learning rate is that of a batch of 128. With a smaller one SGD takes it in proportion (Goyal et al. 2017),
        AdamW in proportion to the square root (Malladi et al. 2022).
        """
        share = batch_size / BATCH_SIZE
        learning_rate = self.learning_rate * (share if optimizer == SGD else math.sqrt(share))
        return Recipe(optimizer, learning_rate, weight_decay=self.weight_decay, batch_size=batch_size)

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value if name == 'layers' else format(value, 'g')}"
            for name, value in asdict(self).items()
            if value is not None
        )


SETTING_NAMES = tuple(setting.name for setting in fields(Settings))
# Of every method, by optimiser. AdamW's weight decay acts beside the gradient, and is larger for the same effect.
SHARED_SPACES: dict[str, SearchSpace] = {
    SGD: {"learning_rate": LogUniform(0.01, 3), "weight_decay": LogUniform(2e-5, 5e-3)},
    ADAMW: {"learning_rate": LogUniform(2e-4, 2e-2), "weight_decay": LogUniform(1e-3, 1)},
}


class TeacherKind(StrEnum):
    """Which network teaches: the study's own, as it is or with its layers normalised, one of no help, or none."""

    NONE = "none"
    REFERENCE = "reference"
    NORMALIZED = "normalized"  # the reference, each sample's features divided by their root mean square
    SHUFFLED = "shuffled"  # the reference, with the outputs for another image
    UNTRAINED = "untrained"
    SAME_SIZE = "own-size"  # trained by hard labels, of the student's architecture


@dataclass(frozen=True)
class MethodSpec:
    """One method of the study.

    name: as rows call it. title: as figures and tables call it. family: one of FAMILIES. losses: HARD and names in
    `loss_table.LOSSES`, added up in this order. start: the settings that are used where nothing was tuned, with SGD;
    older than the defaults of `kdlib distill`, which a search has chosen, and for five methods others. own_space: where
    its own settings are searched for, beside those of SHARED_SPACES. teacher: which network teaches.
    """

    name: str
    title: str
    family: str
    losses: tuple[str, ...]
    start: Settings
    own_space: SearchSpace = field(hash=False)  # a mapping
    teacher: TeacherKind = TeacherKind.REFERENCE

    def start_with(self, optimizer: str) -> Settings:
        """The settings that are used with this optimiser where nothing was tuned."""
        if optimizer == SGD:
            return self.start
        own = Recipe(optimizer)
        return replace(self.start, learning_rate=own.learning_rate, weight_decay=own.weight_decay)

    def search_space(self, optimizer: str = SGD) -> SearchSpace:
        """Where all of its settings are searched for."""
        return {**SHARED_SPACES[optimizer], **self.own_space}

    def first_settings(self, optimizer: str = SGD) -> list[Settings]:
        """The settings of the first trials, spread over the whole space."""
        return [replace(self.start, **point) for point in sample(self.search_space(optimizer), FIRST_TRIALS, "first")]

    def further_settings(self, best: Settings, optimizer: str = SGD) -> list[Settings]:
        """The settings of the further trials, around the best of the first."""
        near = narrowed(self.search_space(optimizer), asdict(best))
        return [replace(best, **point) for point in sample(near, FURTHER_TRIALS, "further")]

    def at_edge(self, best: Settings, tried: Iterable[Settings], optimizer: str = SGD) -> list[str]:
        """The settings of which `best` has the least or the largest value that was tried, and could be beyond it."""
        space = self.search_space(optimizer)
        values = {name: [getattr(settings, name) for settings in tried] for name in space}
        return [
            name
            for name, distribution in space.items()
            if isinstance(distribution, LogUniform)
            and getattr(best, name) in (min(values[name]), max(values[name]))
            and getattr(best, name) < distribution.largest
        ]

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


_ALPHA: SearchSpace = {"alpha": Uniform(0, 0.95)}
_KD = Settings(alpha=0.1, temperature=4)
_KD_SPACE: SearchSpace = {**_ALPHA, "temperature": LogUniform(1, 20)}


def _layers(*names: str) -> SearchSpace:
    return {"layers": Choice(names)}


def _weight(low: float, high: float) -> SearchSpace:
    return {"weight": LogUniform(low, high)}


def _kd_control(name: str, title: str, teacher: TeacherKind) -> MethodSpec:
    """A control: the method is kd, tuned as kd is, and the teacher is one that should not help."""
    return MethodSpec(name, title, "control", ("kd",), _KD, _KD_SPACE, teacher)


_SPECS = (
    MethodSpec(
        "hard",
        "hard labels",
        "baseline",
        (HARD,),
        Settings(),
        {},
        TeacherKind.NONE,
    ),
    MethodSpec(
        "label-smoothing",
        "label smoothing",
        "control",
        (HARD,),
        Settings(smoothing=0.1),
        {"smoothing": LogUniform(0.01, 0.5, largest=0.9)},
        TeacherKind.NONE,
    ),
    # logits
    MethodSpec("kd", "logits (KD)", "logit", ("kd",), _KD, _KD_SPACE),
    MethodSpec(
        "dkd",
        "decoupled logits (DKD)",
        "logit",
        ("dkd",),
        Settings(alpha=0.5, temperature=4, beta=4),
        {**_ALPHA, "temperature": LogUniform(1, 12), "beta": LogUniform(0.5, 16)},
    ),
    MethodSpec(
        "dist",
        "correlated logits (DIST)",
        "logit",
        ("dist",),
        Settings(alpha=0.3, temperature=1),
        {**_ALPHA, "temperature": LogUniform(0.5, 8)},
    ),
    MethodSpec(
        "standardized",
        "standardized logits",
        "logit",
        ("standardized_kd",),
        Settings(alpha=0.1, temperature=2),
        {**_ALPHA, "temperature": LogUniform(0.5, 8)},
    ),
    # features
    MethodSpec(
        "hint",
        "hint (FitNets)",
        "feature",
        (HARD, "hint"),
        Settings(weight=10, layers="last"),
        {**_weight(0.3, 300), **_layers("last", "late", "all")},
    ),
    MethodSpec(
        "attention",
        "attention maps",
        "feature",
        (HARD, "attention"),
        Settings(weight=1000, layers="all"),
        {**_weight(30, 30_000), **_layers("last", "late", "all")},
    ),
    MethodSpec(
        "vid",
        "variational (VID)",
        "feature",
        (HARD, "vid"),
        Settings(weight=1, layers="late"),
        {**_weight(0.03, 30), **_layers("last", "late", "all")},
    ),
    MethodSpec(
        "vid-normalized",
        "VID, teacher's features normalised",
        "feature",
        (HARD, "vid"),
        Settings(weight=1, layers="late"),
        {**_weight(0.03, 30), **_layers("last", "late", "all")},
        TeacherKind.NORMALIZED,
    ),
    # relations
    MethodSpec(
        "fsp",
        "flow between layers (FSP)",
        "relation",
        (HARD, "fsp"),
        Settings(weight=10, layers="all"),
        {**_weight(0.1, 10_000), **_layers("late", "all")},
    ),
    MethodSpec(
        "layer-correlation",
        "correlation of layers (CKA)",
        "relation",
        (HARD, "layer_correlation"),
        Settings(weight=10, layers="all"),
        _weight(0.1, 300),
    ),
    MethodSpec(
        "layer-information",
        "information between layers",
        "relation",
        (HARD, "layer_information"),
        Settings(weight=0.3, layers="all"),
        _weight(0.003, 30),
    ),
    MethodSpec(
        "rkd",
        "distances and angles (RKD)",
        "relation",
        (HARD, "rkd"),
        Settings(weight=10, layers="embedding"),
        _weight(0.1, 1000),
    ),
    MethodSpec(
        "similarity",
        "similarities of samples (SP)",
        "relation",
        (HARD, "similarity"),
        Settings(weight=3000, layers="last"),
        {**_weight(30, 100_000), **_layers("last", "embedding")},
    ),
    MethodSpec(
        "similarity-normalized",
        "SP, teacher's features normalised",
        "relation",
        (HARD, "similarity"),
        Settings(weight=3000, layers="last"),
        {**_weight(30, 100_000), **_layers("last", "embedding")},
        TeacherKind.NORMALIZED,
    ),
    # combinations
    MethodSpec(
        "kd+hint",
        "logits + hint",
        "combination",
        ("kd", "hint"),
        replace(_KD, weight=10, layers="last"),
        {**_KD_SPACE, **_weight(0.3, 300), **_layers("last", "late")},
    ),
    MethodSpec(
        "kd+fsp",
        "logits + FSP",
        "combination",
        ("kd", "fsp"),
        replace(_KD, weight=10, layers="all"),
        {**_KD_SPACE, **_weight(0.1, 10_000), **_layers("late", "all")},
    ),
    MethodSpec(
        "kd+rkd",
        "logits + RKD",
        "combination",
        ("kd", "rkd"),
        replace(_KD, weight=10, layers="embedding"),
        {**_KD_SPACE, **_weight(0.1, 1000)},
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
