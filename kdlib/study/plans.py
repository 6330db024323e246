"""Which runs make up a study: the trials that tune the settings of each method, and the plans of runs that follow."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdlib import files
from kdlib.errors import as_whole, unknown_name
from kdlib.study import method_specs
from kdlib.study.method_specs import (
    BATCH_SIZE,
    METHODS,
    SGD,
    SHARED_SPACES,
    TRIALS_PER_METHOD,
    MethodSpec,
    Settings,
    TeacherKind,
)

ALPHAS = (0.0, 0.1, 0.5, 0.9, 1.0)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
TUNING_SEEDS = (1000, 1001)  # far from the seeds of the studies, whose images and weights they must not share
FINGERPRINT_LENGTH = 16  # of a run's, in hexadecimal digits
TRIALS = "choose"  # the kind of the files that hold trials

Row = Mapping[str, str]
RunKey = tuple[str, str, str]


@dataclass(frozen=True)
class Budget:
    """What all runs of a study share, so that they differ by method and seed alone.

    images: training images, drawn anew by each seed, equally many of each class; None takes all. views: augmented
    views of each image that the epochs go through in turn, and for which the teacher's outputs are stored. optimizer:
    "sgd" or "adamw".
    Raises ValueError for numbers below one, and for an optimiser whose settings nobody knows where to search for.
    """

    data: str = "fashion-mnist"
    student: str = "resnet8"
    teacher: str = "resnet20-fashion"
    images: int | None = 10_000
    epochs: int = 15
    views: int = 5
    optimizer: str = SGD
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("images", "epochs", "views"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_whole(**{name: value}))
        if self.optimizer not in SHARED_SPACES:
            raise unknown_name("optimizer of a study", self.optimizer, SHARED_SPACES)

    @classmethod
    def from_row(cls, row: Row, device: str = "auto", precision: str = "auto") -> Budget:
        """The budget of the run that a row is the result of."""
        images, epochs, views = (int(row[name]) for name in ("images", "epochs", "views"))
        data, student, teacher, optimizer = (row[name] for name in ("data", "student", "teacher", "optimizer"))
        return cls(data, student, teacher, images, epochs, views, optimizer, device, precision)

    @property
    def batch_size(self) -> int:
        """Images in a training batch: 128, or a quarter of it where an epoch would have fewer than 40 steps.

        A network needs some hundred steps to learn anything, and few images in large batches do not give them.
        """
        return BATCH_SIZE if self.images is None or self.images >= 40 * BATCH_SIZE else BATCH_SIZE // 4

    def path(self, kind: str, folder: Path) -> Path:
        """The CSV file in `folder` that holds the runs of this kind and budget."""
        teacher = Path(self.teacher).name.removesuffix(".safetensors")
        optimizer = "" if self.optimizer == SGD else f"-{self.optimizer}"
        name = f"{kind}-{self.student}-{teacher}-{self.images or 'all'}{optimizer}.csv"
        if sys.platform != "win32" and (folder / name).exists():  # timm:NAME, begun by an older kdlib
            return folder / name
        return folder / re.sub(r'[<>:"/\\|?*]', "-", name)  # Windows allows none of these in a name


@dataclass(frozen=True)
class TunedSettings:
    """The settings of a method, the budget that they were tuned on, and their score on its validation split.

    at_edge: those with the least or the largest value that was tried: with more trials they might lie beyond.
    """

    settings: Settings
    tuned_on: str = "defaults"
    score: float | None = None
    at_edge: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunConfig:
    """One run. study: the kind of study; method: the name in its row; excluded_class: one that the student never sees.

    tuned_on: where its settings come from.
    """

    study: str
    method: str
    spec: MethodSpec
    settings: Settings
    seed: int
    excluded_class: int | None = None
    tuned_on: str = "defaults"

    @classmethod
    def from_row(cls, row: Row) -> RunConfig:
        """The run that a row is the result of."""
        excluded = int(row["excluded_class"]) if row["excluded_class"] else None
        spec, settings = method_specs.find(row["spec"]), Settings.from_row(row)
        return cls(row["study"], row["method"], spec, settings, int(row["seed"]), excluded, row["tuned_on"])

    def to_row(self, budget: Budget) -> dict[str, Any]:
        """The columns that say what is run."""
        shared = {name: value for name, value in asdict(budget).items() if name not in ("device", "precision")}
        own = {"study": self.study, "method": self.method, "spec": self.spec.name, "seed": self.seed}
        own |= {"excluded_class": self.excluded_class, "tuned_on": self.tuned_on}
        return {**shared, **own, **asdict(self.settings)}

    @property
    def key(self) -> RunKey:
        """What names a run in its file, as text: method, seed, excluded class."""
        return self.method, str(self.seed), "" if self.excluded_class is None else str(self.excluded_class)

    def fingerprint(self, budget: Budget, inputs: str) -> str:
        """A hash of everything that was set; inputs: the fingerprint of the data and of the teacher's weights.

        The machine is left out: another one may go on with a study.
        """
        shared = {
            name: value for name, value in asdict(budget).items() if name not in ("teacher", "device", "precision")
        }
        if budget.optimizer == SGD:
            del shared["optimizer"]  # the hash of rows that were made when there was no other
        own = (self.method, self.spec.name, asdict(self.settings), int(self.seed), self.excluded_class)
        return files.fingerprint([], shared, own, inputs)[:FINGERPRINT_LENGTH]


def row_key(row: Row) -> RunKey:
    """`RunConfig.key` of the run that a row is the result of."""
    return row["method"], row["seed"], row["excluded_class"]


# --- plans


@dataclass(frozen=True)
class Variant:
    """One method of a plan: the name in its rows, how it is made, and what is set beside its tuned settings."""

    name: str
    spec: MethodSpec
    changes: Mapping[str, float] = field(default_factory=dict)


Tuned = Mapping[str, TunedSettings]  # by name of the spec


@dataclass(frozen=True)
class Plan:
    """A plan of runs.

    kind: of the file that they go to. tuned: the methods to tune settings for. variants: the methods to run, given
    what is tuned. excludes_classes: whether each run leaves out a class. chooses_methods: whether what is tuned decides
    which methods are run.
    """

    kind: str
    tuned: tuple[MethodSpec, ...]
    variants: Callable[[Tuned], list[Variant]]
    excludes_classes: bool = False
    chooses_methods: bool = False

    def run_configs(
        self,
        variants: Sequence[Variant],
        seeds: Iterable[int],
        tuned: Tuned,
        excluded_classes: Sequence[int] = (),
        optimizer: str = SGD,
    ) -> list[RunConfig]:
        """The runs of these variants, all of a seed together: a study that was stopped holds whole pairs, but for the
        seeds under way.

        tuned: where a method is missing, its start settings with this optimiser. excluded_classes: for a plan that
        excludes classes, one after the other.
        """
        return [
            self._run_config(variant, seed, tuned, excluded, optimizer)
            for excluded in (excluded_classes if self.excludes_classes else (None,))
            for seed in seeds
            for variant in variants
        ]

    def _run_config(
        self, variant: Variant, seed: int, tuned: Tuned, excluded_class: int | None, optimizer: str
    ) -> RunConfig:
        found = tuned.get(variant.spec.name) or TunedSettings(variant.spec.start_with(optimizer))
        settings = replace(found.settings, **variant.changes)  # type: ignore[arg-type]
        return RunConfig(self.kind, variant.name, variant.spec, settings, seed, excluded_class, found.tuned_on)


def _named(*names: str) -> tuple[MethodSpec, ...]:
    return tuple(method_specs.find(name) for name in names)


def _is_control(spec: MethodSpec) -> bool:
    """Whether its teacher is one that should not help; label smoothing is a control too, and belongs to FULL."""
    return spec.family == "control" and spec.teacher is not TeacherKind.NONE


FULL = tuple(spec for spec in METHODS.values() if spec.teacher in (TeacherKind.NONE, TeacherKind.REFERENCE))
CONTROLS = tuple(spec for spec in METHODS.values() if _is_control(spec))


def _variants(specs: Iterable[MethodSpec]) -> list[Variant]:
    return [Variant(spec.name, spec) for spec in specs]


def _full(tuned: Tuned) -> list[Variant]:
    return _variants(FULL)


def _controls(tuned: Tuned) -> list[Variant]:
    return _variants(CONTROLS)


def _short(tuned: Tuned) -> list[Variant]:
    best = [_best_of_family(family, tuned) for family in ("logit", "feature", "relation", "combination")]
    first, last = _named("hard", "label-smoothing", "kd"), _named("shuffled")
    return _variants(dict.fromkeys([*first, *best, *last]))  # kd may be the best logit method


def _best_of_family(family: str, tuned: Tuned) -> MethodSpec:
    """The method of a family with the best validation score, its first if nothing is tuned; ValueError if none has."""
    members = [spec for spec in FULL if spec.family == family]
    if not tuned:
        return members[0]
    scores = {spec: found.score for spec in members if (found := tuned.get(spec.name)) and found.score is not None}
    if not scores:
        names = ", ".join(spec.name for spec in members)
        raise ValueError(
            f"There are no trials of the {family} methods ({names}) from which to take the best. Give the file of "
            "trials of the full plan with --choices, or --defaults."
        )
    return max(scores, key=lambda spec: scores[spec])


def _kd_variant(alpha: float, temperature: float) -> Variant:
    changes = {"alpha": alpha, "temperature": temperature}
    return Variant(f"kd alpha={alpha:g} T={temperature:g}", METHODS["kd"], changes)


def _grid(tuned: Tuned) -> list[Variant]:
    mixed = [_kd_variant(alpha, temperature) for alpha in ALPHAS if alpha < 1 for temperature in TEMPERATURES]
    # With alpha 1 the teacher plays no part, so one run stands for every T.
    return [*mixed, Variant("kd alpha=1", METHODS["kd"], {"alpha": 1.0})]


def _missing_class(tuned: Tuned) -> list[Variant]:
    # Hard labels never name the class, so alpha 0 is where soft labels can teach it; alpha 0.1 shows what they cost.
    return [Variant("hard", METHODS["hard"]), _kd_variant(0, 4), _kd_variant(0, 16), _kd_variant(0.1, 4)]


PLANS = {
    "full": Plan("methods", FULL, _full),
    "short": Plan("methods", (*FULL, *_named("shuffled")), _short, chooses_methods=True),
    "controls": Plan("methods", CONTROLS, _controls),
    "grid": Plan("grid", _named("kd"), _grid),
    "missing-class": Plan("missing-class", _named("hard", "kd"), _missing_class, excludes_classes=True),
}


def find(name: str) -> Plan:
    """The plan of this name; ValueError, with near matches, if there is none."""
    if name not in PLANS:
        raise unknown_name("plan of runs", name, PLANS)
    return PLANS[name]


def of_methods(names: Sequence[str]) -> Plan:
    """The plan of these methods of the study and of hard labels, which all are compared with.

    Raises ValueError, with near matches, for a method that there is not.
    """
    specs = tuple(method_specs.find(name) for name in dict.fromkeys(("hard", *names)))
    return Plan("methods", specs, lambda tuned: _variants(specs))


# --- trials, on the validation split; the test set plays no part in them


def first_trials(specs: Iterable[MethodSpec], seeds: Sequence[int], optimizer: str = SGD) -> list[RunConfig]:
    """The first sample of each method's settings."""
    return _trials({spec: spec.first_settings(optimizer) for spec in specs}, seeds)


def further_trials(
    specs: Iterable[MethodSpec], seeds: Sequence[int], rows: Sequence[Row], optimizer: str = SGD
) -> list[RunConfig]:
    """The second sample of each method's settings, around those that did best in the first trials in `rows`.

    Where all of these diverged, around those with the smallest learning rate.
    """
    return _trials({spec: _further_settings(spec, rows, optimizer) for spec in specs}, seeds)


def _further_settings(spec: MethodSpec, rows: Sequence[Row], optimizer: str) -> list[Settings]:
    """The same for one method: the settings of its second sample."""
    first = spec.first_settings(optimizer)
    means = _mean_scores(spec, first, rows)
    slowest = min(first, key=lambda settings: settings.learning_rate)
    best = max(means, key=lambda settings: means[settings]) if means else slowest
    return spec.further_settings(best, optimizer)


def best_settings(
    rows: Sequence[Row], specs: Iterable[MethodSpec] | None = None, seeds: Iterable[int] | None = None
) -> dict[str, TunedSettings]:
    """The best settings of each method by mean validation accuracy over the tuning seeds, by the method's name.

    rows: finished trials. specs: default, all methods in the rows. seeds: the tuning seeds, exactly those that each
    method must have; default, those that it has. A trial that diverged counts as one and is never the best; of equal
    ones the first trial is taken, whatever the order of the rows.
    Raises ValueError for a method whose trials are not complete, come from another search, or all diverged.
    """
    if specs is None:
        specs = [method_specs.find(name) for name in dict.fromkeys(row["method"] for row in rows)]
    return {
        spec.name: _best_settings(spec, [row for row in rows if row["method"] == spec.name], seeds) for spec in specs
    }


def _best_settings(spec: MethodSpec, rows: Sequence[Row], seeds: Iterable[int] | None) -> TunedSettings:
    """The same for one method, from its own trials."""
    tried = list(dict.fromkeys(Settings.from_row(row) for row in rows))
    found = sorted({int(row["seed"]) for row in rows})
    expected = found if seeds is None else sorted(seeds)
    # Two trials may train alike (a network of two stages has no third layer), but never have the same settings.
    if len(tried) != TRIALS_PER_METHOD or len(rows) != TRIALS_PER_METHOD * len(found) or found != expected:
        counts = (
            f"{len(rows)} runs of {len(tried)} settings with seeds {found}, expected {TRIALS_PER_METHOD} settings with "
            f"each of the seeds {expected}"
        )
        of_this_search = {settings for optimizer in SHARED_SPACES for settings in spec.first_settings(optimizer)}
        if tried and of_this_search.isdisjoint(tried):
            raise ValueError(
                f"The trials of {spec.name!r} come from another search than this kdlib makes, perhaps from an older "
                f"kdlib: {counts}. They cannot be finished: tune anew with `kdlib study full --out FOLDER`, and give "
                "--choices the file of trials that it writes there."
            )
        raise ValueError(
            f"The trials of {spec.name!r} are not complete: {counts}. Start the command that made them again to "
            "finish them; if they were made with other tuning seeds, choose another folder with --out."
        )
    optimizers = sorted({row["optimizer"] for row in rows})
    if len(optimizers) > 1 or optimizers[0] not in SHARED_SPACES:
        raise ValueError(
            f"The trials of {spec.name!r} were made with the optimizer {' and '.join(map(repr, optimizers))}; expected "
            f"one of {', '.join(SHARED_SPACES)} for all. Restore the file of trials, or tune anew."
        )
    # Of equal ones the first trial is taken, not the first row: several workers end in any order.
    planned = [*spec.first_settings(optimizers[0]), *_further_settings(spec, rows, optimizers[0])]
    means = _mean_scores(spec, [*planned, *tried], rows)
    if not means:
        raise ValueError(
            f"Every trial of {spec.name!r} diverged; the errors in the trials' file say how. This student cannot be "
            "trained by it with these settings: leave the method out, or extend its search space."
        )
    best = max(means, key=lambda settings: means[settings])
    at_edge = spec.at_edge(best, tried, optimizers[0])
    return TunedSettings(best, tuning_label(rows[0], len(found)), means[best], tuple(at_edge))


def tuning_label(budget: Mapping[str, object], num_seeds: int) -> str:
    """How the rows of a study name the trials that their settings come from: by budget and number of tuning seeds."""
    label = f"{budget['student']}, {budget['images']} images, {budget['epochs']} epochs"
    return label + (f", {num_seeds} tuning seeds" if num_seeds > 1 else "")


def _trials(tried: Mapping[MethodSpec, Sequence[Settings]], seeds: Iterable[int]) -> list[RunConfig]:
    return [
        RunConfig(TRIALS, spec.name, spec, settings, seed, tuned_on="trial")
        for seed in seeds
        for spec, several in tried.items()
        for settings in several
    ]


def mean_trial_scores(rows: Iterable[Row]) -> dict[Settings, float]:
    """From the trials of one method, the mean validation accuracy over the tuning seeds of each of the settings.

    Settings that some seed has not, or with which one diverged, are left out: they cannot have been chosen.
    """
    texts: dict[Settings, list[str]] = {}
    seeds: set[str] = set()
    for row in rows:
        texts.setdefault(Settings.from_row(row), []).append(row["validation_accuracy"])
        seeds.add(row["seed"])
    complete = {settings: found for settings, found in texts.items() if len(found) == len(seeds) and all(found)}
    return {settings: math.fsum(map(float, found)) / len(found) for settings, found in complete.items()}


def _mean_scores(spec: MethodSpec, tried: Sequence[Settings], rows: Iterable[Row]) -> dict[Settings, float]:
    """The same of those of one method's settings that were tried, in that order: of equal ones the first is taken."""
    scores = mean_trial_scores(row for row in rows if row["method"] == spec.name)
    return {settings: scores[settings] for settings in tried if settings in scores}
