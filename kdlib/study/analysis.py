"""What the finished runs of a study say, for lessons and figures.

    results = study.results("methods", student="resnet8", images=10_000)
    results.gain("kd")  # over hard labels: by seed, mean, interval, verdict

A seed that diverged, or has not been run, is never left out: its method then has no mean and no verdict, and `problem`
has the reason. To judge a method by the seeds at which it worked would be to choose seeds.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdlib import verdict
from kdlib.data import data_dir
from kdlib.errors import unknown_name
from kdlib.study import method_specs
from kdlib.study.history import HistoryFile
from kdlib.study.method_specs import FAMILIES, METHODS, SETTING_NAMES, MethodSpec, Settings
from kdlib.study.plans import PLANS, Budget, Row
from kdlib.study.predictions import PredictionsFile
from kdlib.study.runs_file import BUDGET_COLUMNS, read_rows, read_sessions, session_of_each_row
from kdlib.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

METRICS = {
    "test_accuracy": "test accuracy",
    "validation_accuracy": "validation accuracy",
    "excluded_class_accuracy": "test accuracy on the excluded class",
    "agreement": "agreement with the teacher",
    "calibration_error": "calibration error",
}
NOT_KNOWN = "not known"
LOWER_IS_BETTER = ("calibration_error",)
PLAN_OF_KIND = {plan.kind: name for name, plan in reversed(PLANS.items())}  # the first plan that makes such a file
_RUN = (*BUDGET_COLUMNS, "method", "spec", "seed", "excluded_class", *SETTING_NAMES, "tuned_on", "device", "threads")
REQUIRED_COLUMNS = (*_RUN, "test_accuracy", "teacher_accuracy", "seconds_per_epoch", "extra_parameters", "error")


def load(
    kind: str,
    *,
    student: str,
    teacher: str,
    images: int,
    optimizer: str = "sgd",
    excluded_class: int | None = None,
    baseline: str = "hard",
    folder: str | Path | None = None,
) -> Results:
    """Read and check the results of a budget; see `kdlib.study.results`."""
    if kind not in PLAN_OF_KIND:
        raise unknown_name("kind of results", kind, PLAN_OF_KIND)
    budget = Budget(student=student, teacher=teacher, images=images, optimizer=optimizer)
    folder = data_dir() / "results" if folder is None else Path(folder)
    sources = [budget.path(kind, folder)]
    rows = _read_runs(sources[0], kind, budget, excluded_class if kind == "missing-class" else None)
    if kind == "grid" and baseline == "hard":  # tuned as kd was, which alpha = 1 in the grid is not
        sources.append(budget.path("methods", folder))
        seeds = {row["seed"] for row in rows}
        hard = [row for row in _read_runs(sources[1], "methods", budget) if row["method"] == "hard"]
        rows += [row for row in hard if row["seed"] in seeds]
    if kind == "missing-class":
        rows = _of_class(rows, excluded_class, sources[0])
    return Results(kind, tuple(rows), baseline, tuple(sources))


def _read_runs(path: Path, kind: str, budget: Budget, excluded_class: int | None = None) -> list[dict[str, str]]:
    """The rows of a file, each with the processor that it was made on.

    Where that is not known it is NOT_KNOWN; without a JSON file all are taken to come from one, whose name is "".
    excluded_class: the one that is asked for, and that the command in an error message excludes.
    """
    command = f"kdlib study {PLAN_OF_KIND[kind]} --student {budget.student} --teacher {budget.teacher}"
    command += f" --images {budget.images}"
    if path.parent.resolve() != (data_dir() / "results").resolve():
        command += f" --out {shlex.quote(str(path.parent))}"
    if budget.optimizer != method_specs.SGD:
        command += f" --optimizer {budget.optimizer}"
    if excluded_class is not None:
        command += f" --left-out {excluded_class}"
    if not path.is_file():
        others = sorted(one.name for one in path.parent.glob(f"{kind}-*.csv"))
        existing = f" Of this kind there are: {', '.join(others)}." if others else ""
        raise FileNotFoundError(f"There is no file {path}.{existing} This makes it, in hours: {command}")
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} holds no finished run yet. This goes on with it: {command}")
    missing = [name for name in REQUIRED_COLUMNS if name not in rows[0]]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}: it is not a file of finished runs, or an older kdlib wrote "
            "it. (Before version 0.2 there was no column optimizer: put it behind views, with sgd in each row.)"
        )
    sessions, unknown = session_of_each_row(path, len(rows)), NOT_KNOWN if read_sessions(path) else ""
    machines = [{"processor": unknown} if one is None else one.get("machine", {}) for one in sessions]
    named = ({name: machine.get(name) or "" for name in ("processor", "gpu")} for machine in machines)
    return [row | names for row, names in zip(rows, named, strict=True)]


def _of_class(rows: list[dict[str, str]], excluded_class: int | None, path: Path) -> list[dict[str, str]]:
    classes = sorted({int(row["excluded_class"]) for row in rows})
    if excluded_class is None and len(classes) == 1:
        excluded_class = classes[0]
    if excluded_class not in classes:
        raise ValueError(f"{path} excludes classes {classes}: name one of them, as excluded_class={classes[0]}.")
    return [row for row in rows if int(row["excluded_class"]) == excluded_class]


@dataclass(frozen=True)
class Estimate:
    """One metric of one method over the seeds, as fractions (0.01 is one point).

    by_seed: every seed of the study; nan where there is no value. problem: why there is no mean, interval or verdict,
    or "". std: over the seeds. low, high: the 95 % interval of the mean, the whole line where all seeds agree to the
    last image. comparisons: how many such intervals hold together, this one among them. verdict: None for a plain
    score, and where there is a problem. over: what the interval is about, "seeds", or "seeds and test images" where
    the answers of each run are known.
    """

    method: str
    title: str
    family: str
    by_seed: Mapping[int, float]
    problem: str = ""
    mean: float = math.nan
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan
    comparisons: int = 1
    verdict: Verdict | None = None
    over: str = "seeds"

    @property
    def half_width(self) -> float:
        """Half the width of the interval; infinite where the seeds have no spread."""
        return (self.high - self.low) / 2

    def format(self, signed: bool = True, unit: str = "") -> str:
        """Mean and interval in hundredths, +0.42 (-0.10 to +0.94), or the problem."""
        if self.problem:
            return self.problem
        mean, low, high = (f"{100 * x:{'+' * signed}.2f}{unit}" for x in (self.mean, self.low, self.high))
        return f"{mean} ({f'{low} to {high}' if math.isfinite(self.half_width) else 'all seeds equal'})"

    def __str__(self) -> str:
        if self.verdict is None:
            return f"{self.title}: {self.format(signed=False)}"
        family = f", one of {self.comparisons} intervals" if self.comparisons > 1 else ""
        return f"{self.title}: {self.verdict}, {self.format()}, {len(self.by_seed)} seeds{family}"


@dataclass(frozen=True)
class Cost:
    """What a method costs while it trains; the student that it leaves costs the same, whatever the method.

    relative_time: time of an epoch relative to hard labels, the median over `num_pairs` paired seeds; the teacher's
    outputs are cached and not counted. nan where no seed of both is known to have run on one kind of machine. With
    several workers a run shares the cores with other runs, and with the teacher's outputs of the next seed: ratios to
    be quoted come from one worker. seconds_per_epoch: the median. extra_parameters: of projectors, thrown away
    afterwards.
    """

    relative_time: float
    seconds_per_epoch: float
    extra_parameters: int
    num_pairs: int


@dataclass(frozen=True)
class MethodRuns:
    """The finished runs of one method, and what is the same at every seed."""

    name: str
    spec: MethodSpec
    settings: Settings
    tuned_on: str
    by_seed: Mapping[int, Row]

    @property
    def title(self) -> str:
        """The method as figures and tables call it."""
        title = self.spec.title
        return title if self.name == self.spec.name else self.name.replace(self.spec.name, title, 1)

    @property
    def order(self) -> tuple[float, ...]:
        """Where the method belongs: by family, then as in the table of methods, by alpha and temperature."""
        soft = [-1.0 if value is None else value for value in (self.settings.alpha, self.settings.temperature)]
        return FAMILIES.index(self.spec.family), list(METHODS).index(self.spec.name), *soft

    @property
    def finite(self) -> dict[int, Row]:
        """The runs that did not diverge."""
        return {seed: row for seed, row in self.by_seed.items() if row["test_accuracy"] != ""}

    def problem(self, seeds: Sequence[int]) -> str:
        """Which of these seeds diverged, with their errors, or have not been run; "" where all is well."""
        finite = self.finite
        diverged = [
            f"seed {seed} diverged ({row['error'] or 'no error noted'})"
            for seed, row in self.by_seed.items()
            if seed not in finite
        ]
        absent = [str(seed) for seed in seeds if seed not in self.by_seed]
        return "; ".join(diverged + ([f"seed {', '.join(absent)} not run"] if absent else []))


def _group(rows: Sequence[Row]) -> dict[str, MethodRuns]:
    """The runs of each method, in the order of figures and tables."""
    by_method: dict[str, dict[int, Row]] = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        by_method.setdefault(row["method"], {})[int(row["seed"])] = row
    groups = []
    for name, by_seed in by_method.items():
        first = next(iter(by_seed.values()))
        spec, settings = method_specs.find(first["spec"]), Settings.from_row(first)
        groups.append(MethodRuns(name, spec, settings, first["tuned_on"], by_seed))
    return {group.name: group for group in sorted(groups, key=lambda group: group.order)}


@dataclass(frozen=True, eq=False)
class Results:
    """The finished runs of one kind and budget.

    rows: as texts, those that diverged too (no accuracy, an error), each with the "processor" that it was made on.
    baseline: the method that the others are compared with. sources: the files that the rows come from.
    Raises ValueError for rows that do not belong together, and for a baseline that is not there.
    """

    kind: str
    rows: tuple[Row, ...]
    baseline: str
    sources: tuple[Path, ...]

    def __post_init__(self) -> None:
        _check_comparable(self.rows, self.sources)
        if self.baseline not in self._groups:
            raise unknown_name(f"baseline in {self.sources[0]}", self.baseline, self._groups)

    @cached_property
    def _groups(self) -> dict[str, MethodRuns]:
        return _group(self.rows)

    def group(self, method: str) -> MethodRuns:
        """All of one method; ValueError, with near matches, for a method that is not there."""
        if method not in self._groups:
            raise unknown_name(f"method in {self.sources[0].name}", method, self._groups)
        return self._groups[method]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods beside the baseline, by family."""
        return tuple(name for name in self._groups if name != self.baseline)

    @property
    def comparisons(self) -> int:
        """How many methods are compared with the baseline: each interval is corrected for all of them."""
        return len(self.methods)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that any method has."""
        return tuple(sorted({seed for group in self._groups.values() for seed in group.by_seed}))

    @property
    def budget(self) -> dict[str, str]:
        """Data, student, teacher, images, epochs, views and optimiser, as texts."""
        return {name: self.rows[0][name] for name in BUDGET_COLUMNS}

    @property
    def images(self) -> int:
        """Training images of each run."""
        return int(self.rows[0]["images"])

    def runs(self, method: str) -> Mapping[int, Row]:
        """The rows of a method by seed."""
        return self.group(method).by_seed

    def title(self, method: str) -> str:
        """The method as figures and tables call it."""
        return self.group(method).title

    @staticmethod
    def label(metric: str) -> str:
        """A metric as figures call it; ValueError, with near matches, for an unknown one."""
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        return METRICS[metric]

    def family(self, method: str) -> str:
        """One of `method_specs.FAMILIES`."""
        return self.group(method).spec.family

    def settings(self, method: str) -> Settings:
        """The hyper-parameters that were tuned for a method, the same at every seed."""
        return self.group(method).settings

    def problem(self, method: str) -> str:
        """Which seeds of a method diverged, with their errors, or have not been run; "" where all is well."""
        return self.group(method).problem(self.seeds)

    @property
    def problems(self) -> dict[str, str]:
        """Every method with a seed that diverged or has not been run, and what happened."""
        return {name: problem for name in self._groups if (problem := self.problem(name))}

    def score(self, method: str, metric: str = "test_accuracy") -> Estimate:
        """A metric of METRICS by seed; the interval is that of the mean, alone."""
        values = self._values(method, metric)
        return self._estimate(method, values, (values, dict.fromkeys(values, 0.0)), self.problem(method), 1, None)

    def gain(self, method: str, metric: str = "test_accuracy") -> Estimate:
        """A metric minus the baseline's, paired by seed, with a verdict; also for a calibration error, where less
        is better, the difference is method minus baseline. The interval of a gain in test accuracy holds the scatter
        of the test images too, where the answers of every run are known."""
        gain = self._paired(method, metric)
        of_method, of_baseline = self.right(method), self.right(self.baseline)
        if metric != "test_accuracy" or gain.problem or not of_method or not of_baseline or method == self.baseline:
            return gain
        return self._over_images(gain, of_method, of_baseline)

    def _over_images(
        self, estimate: Estimate, of_method: Mapping[int, np.ndarray], of_baseline: Mapping[int, np.ndarray]
    ) -> Estimate:
        """With the interval that holds the scatter of the test images, too. of_method, of_baseline: theirs, by seed."""
        found = verdict.compare_samples(of_method, of_baseline, comparisons=max(1, self.comparisons))
        interval = replace(estimate, low=found.low, high=found.high, verdict=found.verdict)
        return replace(interval, over="seeds and test images")

    @cached_property
    def _histories(self) -> list[HistoryFile]:
        return [HistoryFile(path) for path in self.sources]

    @cached_property
    def _predictions(self) -> list[PredictionsFile]:
        found = [PredictionsFile(path) for path in self.sources]
        if len({file.test_set for file in found} - {""}) > 1:
            where = " and ".join(str(file.path) for file in found)
            raise ValueError(f"{where} hold answers for different test images, which cannot be compared.")
        return found

    def right(self, method: str) -> dict[int, np.ndarray]:
        """By seed, for each test image whether the student was right; empty where one seed's answers are not known.

        Two students of one seed are two networks: `verdict.compare_networks(right("kd")[0], right("hard")[0])`.
        """
        found = {}
        for seed, row in self.group(method).by_seed.items():
            answers = [file.right(row.get("fingerprint", "")) for file in self._predictions]
            known = [right.numpy() for right in answers if right is not None]
            if not known:
                return {}
            found[seed] = known[0]
        return found

    def history(self, method: str, column: str = "validation_accuracy") -> dict[int, list[float]]:
        """By seed, a value after each epoch; seeds whose epochs are not known are left out.

        column: one of `history.COLUMNS`. ValueError, with near matches, for another.
        """
        found: dict[int, list[float]] = {}
        for seed, row in self.group(method).by_seed.items():
            for file in self._histories:
                values = file.values(row.get("fingerprint", ""), column)
                if values is not None:
                    found[seed] = values
        return found

    def gap_recovered(self, method: str, teacher_right: Sequence[float] | np.ndarray | None = None) -> Estimate:
        """The share of the gap between baseline and teacher that a method closes: 0 the baseline, 1 the teacher.

        teacher_right: for each test image whether the teacher was right, in the order of `right`. With it, and where
        the answers of every run are known, the interval holds the scatter of the test images, which method, baseline
        and teacher share, beside that of the seeds: the ratio is linearised image by image. Without it the interval is
        over the seeds alone, as if these images were all that there are: too narrow for images in general. The
        estimate's `over` says which.
        Seeds where the teacher is not ahead of the baseline are a problem. Raises ValueError for another number of
        images than the students answered, or another accuracy than this teacher's.
        """
        teacher = self._values(self.baseline, "teacher_accuracy")
        hard = self._values(self.baseline, "test_accuracy")
        behind = [seed for seed, accuracy in hard.items() if teacher[seed] <= accuracy]
        seeds = ", ".join(map(str, behind))
        problem = f"the teacher is not ahead of the baseline at seed {seeds}" if behind else ""

        def share(accuracy: float, baseline: float, seed: int) -> float:
            return math.nan if seed in behind else (accuracy - baseline) / (teacher[seed] - baseline)

        gap = self._paired(method, "test_accuracy", share, problem)
        of_method, of_baseline = self.right(method), self.right(self.baseline)
        if teacher_right is None or gap.problem or not of_method or not of_baseline or method == self.baseline:
            return gap
        linearised = {}
        for seed, value in gap.by_seed.items():
            before = of_baseline[seed].astype(float)
            gained = of_method[seed] - before
            missing = _of_teacher(teacher_right, teacher[seed], len(before)) - before
            moved = gained - gained.mean() - value * (missing - missing.mean())
            linearised[seed] = value + moved / (teacher[seed] - hard[seed])
        return self._over_images(gap, linearised, {seed: np.zeros_like(row) for seed, row in linearised.items()})

    def cost(self, method: str) -> Cost:
        """What a method costs while it trains, beside hard labels (or the baseline)."""
        runs, baseline = self.group(method).finite, self.group(self.baseline).finite
        ratios = [
            float(row["seconds_per_epoch"]) / float(baseline[seed]["seconds_per_epoch"])
            for seed, row in runs.items()
            if seed in baseline and _same_machine(row, baseline[seed])
        ]
        seconds = [float(row["seconds_per_epoch"]) for row in runs.values()]
        extra = [int(row["extra_parameters"]) for row in runs.values()]
        return Cost(_median(ratios), _median(seconds), max(extra, default=0), len(ratios))

    def table(self, methods: Sequence[str] | None = None) -> pd.DataFrame:
        """The baseline and the methods, default all, a row each: accuracies in %, gains in points, the gap in %."""
        import pandas as pd

        return pd.DataFrame([self._table_row(name) for name in self._with_baseline(methods)])

    def settings_table(self, methods: Sequence[str] | None = None) -> pd.DataFrame:
        """The settings of the baseline and the methods, default all, a row each, and where they were tuned."""
        import pandas as pd

        groups = [self.group(name) for name in self._with_baseline(methods)]
        return pd.DataFrame(
            [{"method": group.title, **asdict(group.settings), "tuned on": group.tuned_on} for group in groups]
        )

    def __repr__(self) -> str:
        budget = ", ".join(f"{name} {value}" for name, value in self.budget.items())
        return f"{self.kind} ({budget}): {len(self.rows)} runs, {len(self._groups)} methods, {len(self.seeds)} seeds"

    def _with_baseline(self, methods: Sequence[str] | None) -> tuple[str, ...]:
        return self.baseline, *(self.methods if methods is None else methods)

    def _table_row(self, name: str) -> dict[str, object]:
        score, cost = self.score(name), self.cost(name)
        row: dict[str, object] = {"method": self.title(name), "family": self.family(name), "seeds": len(self.seeds)}
        row |= {"accuracy": 100 * score.mean, "std": 100 * score.std}
        problem = self.problem(name)
        if name != self.baseline:
            gain, share = self.gain(name), self.gap_recovered(name)
            row |= {"gain": 100 * gain.mean, "low": 100 * gain.low, "high": 100 * gain.high}
            row |= {"verdict": str(gain.verdict or "none"), "gap recovered": 100 * share.mean}
            problem = gain.problem
        row |= {"relative time": cost.relative_time, "extra parameters": cost.extra_parameters}
        return row | {"problem": problem}

    def _values(self, method: str, metric: str) -> dict[int, float]:
        if metric not in (*METRICS, "teacher_accuracy"):
            raise unknown_name("metric", metric, METRICS)
        # A run whose last step broke the student may still have a validation accuracy: it diverged all the same.
        texts = {seed: row.get(metric) for seed, row in self.group(method).finite.items()}
        if not any(texts.values()) and not self.problem(method):
            raise ValueError(f"The runs of {method!r} in {self.sources[0].name} hold no {metric}.")
        return {seed: float(texts.get(seed) or math.nan) for seed in self.seeds}

    def _paired(
        self, method: str, metric: str, combine: Callable[[float, float, int], float] | None = None, problem: str = ""
    ) -> Estimate:
        """By seed the difference from the baseline, or what `combine` makes of both and the seed."""
        values, baseline = self._values(method, metric), self._values(self.baseline, metric)
        if combine is None:
            by_seed, sides = {seed: values[seed] - baseline[seed] for seed in self.seeds}, (values, baseline)
        else:
            by_seed = {seed: combine(values[seed], baseline[seed], seed) for seed in self.seeds}
            sides = by_seed, dict.fromkeys(by_seed, 0.0)
        problems = [self.problem(method), problem]
        if method != self.baseline and (of_baseline := self.problem(self.baseline)):
            problems.append(f"{self.title(self.baseline)}: {of_baseline}")
        better = "lower" if metric in LOWER_IS_BETTER else "higher"
        return self._estimate(method, by_seed, sides, "; ".join(filter(None, problems)), self.comparisons, better)

    def _estimate(
        self,
        method: str,
        by_seed: Mapping[int, float],
        sides: tuple[Mapping[int, float], Mapping[int, float]],  # whose sizes distinguish a spread from rounding
        problem: str,
        comparisons: int,
        better: str | None,
    ) -> Estimate:
        if not problem and len(by_seed) < 2:
            problem = "one seed says nothing about spread"
        group = self.group(method)
        estimate = Estimate(method, group.title, group.spec.family, by_seed, problem, comparisons=comparisons)
        if problem:
            return estimate
        # same_unit: shares of the gap to a teacher that is hardly ahead may be 10 and more
        found = verdict.compare(*sides, comparisons=max(1, comparisons), better=better or "higher", same_unit=True)
        interval = replace(estimate, mean=found.mean, std=found.std, low=found.low, high=found.high)
        return replace(interval, comparisons=found.comparisons, verdict=found.verdict if better else None)

    # The grid of alpha and T.

    @cached_property
    def grid(self) -> dict[tuple[float, float], str]:
        """The methods of a grid by alpha and temperature, those of alpha 1 at every one; ValueError for no grid."""
        if self.kind != "grid":
            raise ValueError(
                f"{self.sources[0].name} holds no grid of alpha and T: call study.results('grid', folder=...)."
            )
        found: dict[tuple[float, float], str] = {}
        for name, group in self._groups.items():
            alpha, temperature = group.settings.alpha, group.settings.temperature
            if alpha is not None and temperature is not None:
                found[alpha, temperature] = name
        of_one = [name for (alpha, _), name in found.items() if alpha == 1]  # its T, the tuned one, does nothing
        mixed = {place: name for place, name in found.items() if place[0] != 1}
        return mixed | {(1.0, temperature): name for name in of_one for _, temperature in mixed}

    @property
    def alphas(self) -> tuple[float, ...]:
        """The weights of the hard labels in the grid, rising."""
        return tuple(sorted({alpha for alpha, _ in self.grid}))

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures in the grid, rising."""
        return tuple(sorted({temperature for _, temperature in self.grid}))


def _check_comparable(rows: Sequence[Row], sources: Sequence[Path]) -> None:
    """Raise ValueError for rows of several budgets, a run that is there twice, or a method with several settings."""
    where = " and ".join(map(str, sources))
    for name in (*BUDGET_COLUMNS, "device", "tuned_on"):
        values = sorted({row[name] for row in rows})
        if len(values) > 1:
            what = "settings that were tuned on" if name == "tuned_on" else name
            raise ValueError(f"{where} hold runs of {what} {' and '.join(values)}, which cannot be compared.")
    seen: set[tuple[str, str]] = set()
    first: dict[str, Settings] = {}
    for row in rows:
        method, seed, settings = row["method"], row["seed"], Settings.from_row(row)
        if (method, seed) in seen:
            raise ValueError(f"{where}: there are several runs of {method}, seed {seed}. Keep one of them.")
        seen.add((method, seed))
        if first.setdefault(method, settings) != settings:
            raise ValueError(f"{where}: {method} was run with {first[method]} and with {settings}.")


def _of_teacher(right: Sequence[float] | np.ndarray, accuracy: float, num_images: int) -> np.ndarray:
    """What a teacher got right, as numbers; ValueError unless it has this accuracy, to rounding, on so many images."""
    found = np.asarray(right, dtype=float)
    if found.shape != (num_images,):
        raise ValueError(
            f"teacher_right has the shape {found.shape}; expected one value for each of the {num_images:,} test images."
        )
    if abs(found.mean() - accuracy) > max(0.005, 2 / num_images):  # other rounding turns a few answers
        raise ValueError(
            f"teacher_right has an accuracy of {found.mean():.2%}, and the teacher of these runs {accuracy:.2%}. Give "
            "the answers of this teacher to the test images of the study."
        )
    return found


def _same_machine(one: Row, other: Row) -> bool:
    """Whether two runs are known to come from one kind of machine."""
    known = NOT_KNOWN not in (one.get("processor"), other.get("processor"))
    names = ["device", "threads", "processor", *(["gpu"] if one["device"].startswith("cuda") else [])]
    return known and all(one.get(name) == other.get(name) for name in names)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan
