"""Which runs make up a study: the lists, and one cell for each method and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdlib import files
from kdlib._messages import unknown
from kdlib.study.entries import BATCH, ENTRIES, Settings, entry

ALPHAS = (0.0, 0.1, 0.5, 0.9, 1.0)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
FULL = tuple(name for name, one in ENTRIES.items() if one.family != "control" or one.teacher == "none")
CONTROLS = tuple(name for name, one in ENTRIES.items() if one.family == "control" and one.teacher != "none")


@dataclass(frozen=True)
class Budget:
    """What all runs of a study share, so that they differ by method and seed alone.

    images: training images, chosen anew by each seed, equally many of each class; None takes all. views: augmented
    views of each image that the epochs go through in turn, and that the teacher is asked about.
    Raises ValueError for numbers below one.
    """

    data: str = "fashion-mnist"
    student: str = "resnet8"
    teacher: str = "resnet20-fashion"
    images: int | None = 10_000
    epochs: int = 15
    views: int = 5
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("images", "epochs", "views"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is a whole number of at least 1; got {value!r}.")

    @property
    def batch_size(self) -> int:
        """Images in a training batch: 128, or a quarter of it where an epoch would have fewer than 40 steps.

        A network needs some hundred steps to learn anything, and few images in large batches do not give them.
        """
        return BATCH if self.images is None or self.images >= 40 * BATCH else BATCH // 4

    def file(self, kind: str, folder: Path) -> Path:
        """The CSV file in `folder` that holds the runs of this kind and budget."""
        teacher = Path(self.teacher).name.removesuffix(".safetensors")
        return folder / f"{kind}-{self.student}-{teacher}-{self.images or 'all'}.csv"


@dataclass(frozen=True)
class Choice:
    """The settings of a method and where they come from: `score` on the validation split, made on `origin`."""

    settings: Settings
    origin: str = "defaults"
    score: float | None = None


@dataclass(frozen=True)
class Line:
    """One method of a list: the name in its rows, the entry it is made by, and what is set beside the choice."""

    name: str
    entry: str
    changes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run. study: the kind of study; method: the name in its row; left_out: a class the student never sees."""

    study: str
    method: str
    entry: str
    settings: Settings
    seed: int
    left_out: int | None = None
    origin: str = "defaults"

    @property
    def key(self) -> tuple[str, str, str]:
        """What names a run in its file, as text: method, seed, class left out."""
        return self.method, str(self.seed), "" if self.left_out is None else str(self.left_out)

    def digest(self, budget: Budget, identity: str) -> str:
        """A digest of everything that was set; `identity` stands for the data and the teacher's weights.

        The machine is left out: another one may go on with a study.
        """
        shared = {
            name: value for name, value in asdict(budget).items() if name not in ("teacher", "device", "precision")
        }
        own = (self.method, self.entry, asdict(self.settings), int(self.seed), self.left_out)
        return files.digest([], shared, own, identity)[:16]

    def row(self, budget: Budget) -> dict[str, Any]:
        """The columns that say what is run."""
        shared = {name: value for name, value in asdict(budget).items() if name not in ("device", "precision")}
        own = {"study": self.study, "method": self.method, "entry": self.entry, "seed": self.seed}
        return {**own, **shared, "left_out": self.left_out, **asdict(self.settings), "chosen_on": self.origin}


def _lines(names: Iterable[str]) -> list[Line]:
    return [Line(name, name) for name in names]


def _best(family: str, choices: Mapping[str, Choice]) -> str:
    """The method of a family with the best validation score, without any choices its first; ValueError if none has."""
    members = [name for name, one in ENTRIES.items() if one.family == family]
    scored = [name for name in members if name in choices and choices[name].score is not None]
    if choices and not scored:
        raise ValueError(
            f"There are no trials of the {family} methods ({', '.join(members)}) from which to take the best. Give the "
            "file of trials of the full list with --choices, or --defaults."
        )
    return max(scored, key=lambda name: choices[name].score) if scored else members[0]


def _full(choices: Mapping[str, Choice]) -> list[Line]:
    return _lines(FULL)


def _controls(choices: Mapping[str, Choice]) -> list[Line]:
    return _lines(CONTROLS)


def _short(choices: Mapping[str, Choice]) -> list[Line]:
    best = [_best(family, choices) for family in ("logit", "feature", "relation", "combination")]
    return _lines(dict.fromkeys(["hard", "label-smoothing", "kd", *best, "shuffled"]))  # kd may be the best logit


def _soft(alpha: float, temperature: float) -> Line:
    return Line(f"kd alpha={alpha:g} T={temperature:g}", "kd", {"alpha": alpha, "temperature": temperature})


def _grid(choices: Mapping[str, Choice]) -> list[Line]:
    mixed = [_soft(alpha, temperature) for alpha in ALPHAS if alpha < 1 for temperature in TEMPERATURES]
    return [*mixed, Line("kd alpha=1", "kd", {"alpha": 1.0})]  # no teacher is heard, so one run stands for every T


def _missing(choices: Mapping[str, Choice]) -> list[Line]:
    # Hard labels never name the class, so alpha 0 is where soft labels can teach it; alpha 0.1 shows what they cost.
    return [Line("hard", "hard"), _soft(0, 4), _soft(0, 16), _soft(0.1, 4)]


@dataclass(frozen=True)
class List:
    """A list of runs: the kind of file they go to, the methods to choose settings for, and the methods to run."""

    kind: str
    tuned: tuple[str, ...]
    lines: Callable[[Mapping[str, Choice]], list[Line]]


LISTS = {
    "full": List("methods", FULL, _full),
    "short": List("methods", (*FULL, "shuffled"), _short),
    "controls": List("methods", CONTROLS, _controls),
    "grid": List("grid", ("kd",), _grid),
    "missing-class": List("missing-class", ("hard", "kd"), _missing),
}


def named(which: str) -> List:
    """The list of this name; ValueError, with near matches, if there is none."""
    if which not in LISTS:
        raise unknown("list of runs", which, LISTS)
    return LISTS[which]


def cells(
    which: str,
    lines: Iterable[Line],
    seeds: Sequence[int],
    choices: Mapping[str, Choice],
    left_out: Sequence[int] = (),
) -> list[Cell]:
    """The cells of these lines of a list, all methods of a seed together: a study that was stopped holds whole pairs.

    choices: by entry; where one is missing, the entry's starting values. left_out: the classes that "missing-class"
    leaves out, one after the other.
    """
    kind, lines = named(which).kind, list(lines)
    classes: Sequence[int | None] = left_out if kind == "missing-class" else (None,)
    made = []
    for label in classes:
        for seed in seeds:
            for line in lines:
                choice = choices.get(line.entry) or Choice(entry(line.entry).start)
                settings = replace(choice.settings, **line.changes)
                made.append(Cell(kind, line.name, line.entry, settings, seed, label, choice.origin))
    return made
