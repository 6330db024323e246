"""The methods of the study: how each is made, where its hyper-parameters start, and what is tried beside that.

Every method, hard labels included, gets the same number of trials on the validation split: first the learning rates
in RATES with its starting values, then six other values of its own at the best of these rates. Weights are tried
over two or three powers of ten, because nobody knows the scale of a loss beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import nn

from kdlib import methods, models
from kdlib._messages import unknown
from kdlib.recipes import Recipe

BATCH = 128
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)  # for a batch of 128
TRIALS = 11
FAMILIES = ("baseline", "control", "logit", "feature", "relation", "combination")

Pairs = Callable[[str], dict[str, str]]


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters of one run; None for those that its method does not have.

    learning_rate: for a batch of 128. alpha: the weight of the hard labels. beta: of dkd. weight: of the feature or
    relation term. layers: which layers that term looks at, see `pairs`.
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
    def read(cls, row: Mapping[str, str]) -> Settings:
        """The settings in a row of a CSV file."""
        texts = {name: row[name] for name in HYPER if row[name] != ""}
        return cls(**{name: text if name == "layers" else float(text) for name, text in texts.items()})

    def recipe(self, batch_size: int = BATCH) -> Recipe:
        """How a run with these settings is trained; all else is the same for every method.

        The learning rate is that of a batch of 128; a smaller one takes it in proportion (Goyal et al. 2017).
        """
        rate = self.learning_rate * batch_size / BATCH
        return Recipe(learning_rate=rate, weight_decay=self.weight_decay, batch_size=batch_size)

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value if name == 'layers' else format(value, 'g')}"
            for name, value in asdict(self).items()
            if value is not None
        )


HYPER = tuple(part.name for part in fields(Settings))


@dataclass(frozen=True)
class Entry:
    """One method of the study.

    title: as figures and tables call it. family: one of FAMILIES. make: the method, from settings and `pairs`.
    start: the settings that are tried first, and used where nothing was chosen. others: what is changed in the
    further trials. teacher: who answers, a name that `bench` knows ("none": nobody).
    """

    title: str
    family: str
    make: Callable[[Settings, Pairs], methods.Method]
    start: Settings = field(default_factory=Settings)
    others: tuple[Mapping[str, Any], ...] = ()
    teacher: str = "reference"


def pairs(student: nn.Module, teacher: nn.Module, where: str) -> dict[str, str]:
    """Which layers of the student are compared with which of the teacher.

    where: "last" stage, "late" (the last two), "all" stages, or "embedding" (the vector before the classifier).
    Networks of different depth are paired from the end, where the maps mean most. Raises ValueError for another word.
    """
    ours, theirs = models.stages(student), models.stages(teacher)
    paired = list(zip(reversed(ours), reversed(theirs), strict=False))[::-1]
    embedding = [(models.embedding(student), models.embedding(teacher))]
    known = {"last": paired[-1:], "late": paired[-2:], "all": paired, "embedding": embedding}
    if where not in known:
        raise unknown("choice of layers", where, known)
    return dict(known[where])


def _hard(settings: Settings, pairs: Pairs) -> methods.Method:
    return methods.HardLabels(settings.smoothing or 0.0)


def _logit(loss: str) -> Callable[[Settings, Pairs], methods.Method]:
    def make(settings: Settings, pairs: Pairs) -> methods.Method:
        options = {} if settings.beta is None else {"beta": settings.beta}
        return methods.Logit(settings.temperature, settings.alpha, loss, **options)

    return make


def _with(
    family: type[methods.Method], loss: str, base: Callable[[Settings, Pairs], methods.Method] = _hard
) -> Callable[[Settings, Pairs], methods.Method]:
    def make(settings: Settings, pairs: Pairs) -> methods.Method:
        return base(settings, pairs) + settings.weight * family(pairs(settings.layers), loss)

    return make


def _each(**values: Any) -> tuple[dict[str, Any], ...]:
    """One change for each value of each name: _each(weight=(1, 2), layers=("last",)) gives three."""
    return tuple({name: value} for name, several in values.items() for value in several)


Feature, Relation = methods.Feature, methods.Relation
_KD, _KD_OTHERS = Settings(alpha=0.1, temperature=4), _each(temperature=(2, 8, 16), alpha=(0, 0.5, 0.9))


def _both(weight: float, layers: str) -> Settings:
    return Settings(alpha=0.1, temperature=4, weight=weight, layers=layers)


ENTRIES: dict[str, Entry] = {
    "hard": Entry(
        "hard labels", "baseline", _hard, Settings(), _each(weight_decay=(5e-5, 1e-4, 2e-4, 1e-3, 2e-3, 4e-3)), "none"
    ),
    "label-smoothing": Entry(
        "label smoothing",
        "control",
        _hard,
        Settings(smoothing=0.1),
        _each(smoothing=(0.02, 0.05, 0.15, 0.2, 0.3, 0.4)),
        "none",
    ),
    # logits
    "kd": Entry("logits (KD)", "logit", _logit("kd"), _KD, _KD_OTHERS),
    "dkd": Entry(
        "decoupled logits (DKD)",
        "logit",
        _logit("dkd"),
        Settings(alpha=0.5, temperature=4, beta=4),
        _each(beta=(1, 2, 8), temperature=(2, 8), alpha=(0.1,)),
    ),
    "dist": Entry(
        "correlated logits (DIST)",
        "logit",
        _logit("dist"),
        Settings(alpha=0.3, temperature=1),
        _each(temperature=(2, 4, 8), alpha=(0.1, 0.2, 0.5)),
    ),
    "standardized": Entry(
        "standardized logits",
        "logit",
        _logit("standardized_kd"),
        Settings(alpha=0.1, temperature=2),
        _each(temperature=(0.5, 1, 4), alpha=(0, 0.3, 0.5)),
    ),
    # features
    "hint": Entry(
        "hint (FitNets)",
        "feature",
        _with(Feature, "hint"),
        Settings(weight=10, layers="last"),
        _each(weight=(1, 3, 30, 100), layers=("late", "all")),
    ),
    "attention": Entry(
        "attention maps",
        "feature",
        _with(Feature, "attention"),
        Settings(weight=1000, layers="all"),
        _each(weight=(100, 300, 3000, 10000), layers=("last", "late")),
    ),
    "vid": Entry(
        "variational (VID)",
        "feature",
        _with(Feature, "vid"),
        Settings(weight=1, layers="late"),
        _each(weight=(0.1, 0.3, 3, 10), layers=("last", "all")),
    ),
    # relations
    "fsp": Entry(
        "flow between layers (FSP)",
        "relation",
        _with(Relation, "fsp"),
        Settings(weight=10, layers="all"),
        _each(weight=(0.1, 1, 100, 1000, 10000), layers=("late",)),
    ),
    "layer-correlation": Entry(
        "correlation of layers (CKA)",
        "relation",
        _with(Relation, "layer_correlation"),
        Settings(weight=10, layers="all"),
        _each(weight=(0.3, 1, 3, 30, 100, 300)),
    ),
    "layer-information": Entry(
        "information between layers",
        "relation",
        _with(Relation, "layer_information"),
        Settings(weight=0.3, layers="all"),
        _each(weight=(0.01, 0.03, 0.1, 1, 3, 10)),
    ),
    "rkd": Entry(
        "distances and angles (RKD)",
        "relation",
        _with(Relation, "rkd"),
        Settings(weight=10, layers="embedding"),
        _each(weight=(0.3, 1, 3, 30, 100, 300)),
    ),
    "similarity": Entry(
        "similarities of samples (SP)",
        "relation",
        _with(Relation, "similarity"),
        Settings(weight=3000, layers="last"),
        _each(weight=(100, 300, 1000, 10000, 30000), layers=("embedding",)),
    ),
    # combinations
    "kd+hint": Entry(
        "logits + hint",
        "combination",
        _with(Feature, "hint", _logit("kd")),
        _both(10, "last"),
        _each(weight=(1, 30, 100), temperature=(8,), alpha=(0.5,), layers=("late",)),
    ),
    "kd+fsp": Entry(
        "logits + FSP",
        "combination",
        _with(Relation, "fsp", _logit("kd")),
        _both(10, "all"),
        _each(weight=(1, 100, 1000), temperature=(8,), alpha=(0.5,), layers=("late",)),
    ),
    "kd+rkd": Entry(
        "logits + RKD",
        "combination",
        _with(Relation, "rkd", _logit("kd")),
        _both(10, "embedding"),
        _each(weight=(1, 30, 100), temperature=(2, 8), alpha=(0.5,)),
    ),
    # controls: the method is kd, tuned as kd is, and the teacher is one that should not help
    "shuffled": Entry("logits of another image", "control", _logit("kd"), _KD, _KD_OTHERS, "shuffled"),
    "untrained": Entry("untrained teacher", "control", _logit("kd"), _KD, _KD_OTHERS, "untrained"),
    "own-size": Entry("teacher of the student's size", "control", _logit("kd"), _KD, _KD_OTHERS, "own-size"),
}


def entry(name: str) -> Entry:
    """The entry of this name; ValueError, with near matches, if there is none."""
    if name not in ENTRIES:
        raise unknown("method of the study", name, ENTRIES)
    return ENTRIES[name]
