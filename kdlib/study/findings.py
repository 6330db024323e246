"""What the rows of a finished study say, for lessons and figures.

    results = study.results("methods", student="resnet8", images=10_000)
    results.gain("kd")  # over hard labels: by seed, mean, interval, verdict

A seed that diverged, or has not been run, is never left out: its method then has no mean and no verdict, and `trouble`
says why. To judge a method by the seeds at which it worked would be to choose seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kdlib import verdict
from kdlib._messages import unknown
from kdlib.study.entries import ENTRIES, FAMILIES, Settings, entry
from kdlib.study.rows import SHARED
from kdlib.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

VALUES = {
    "test_accuracy": "test accuracy",
    "validation_accuracy": "validation accuracy",
    "left_out_accuracy": "test accuracy on the class left out",
    "agreement": "agreement with the teacher",
    "calibration_error": "calibration error",
}
LOWER = ("calibration_error",)  # where less is better


@dataclass(frozen=True)
class Measured:
    """One quantity of one method over the seeds, as fractions (0.01 is one point).

    by_seed: every seed of the study; nan where there is no value. trouble: why there is no mean, interval or verdict,
    or "". std: over the seeds. low, high: the 95 % interval of the mean, the whole line where all seeds agree to the
    last image. comparisons: how many such intervals hold together, this one among them. verdict: None for a plain
    score, and where there is trouble.
    """

    method: str
    title: str
    family: str
    by_seed: Mapping[int, float]
    trouble: str = ""
    mean: float = math.nan
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan
    comparisons: int = 1
    verdict: Verdict | None = None

    @property
    def half(self) -> float:
        """Half the width of the interval; infinite where the seeds have no spread."""
        return (self.high - self.low) / 2

    def said(self, signed: bool = True, unit: str = "") -> str:
        """Mean and interval in hundredths, or the trouble, in words: +0.42 (-0.10 to +0.94)."""
        if self.trouble:
            return self.trouble
        form = (lambda x: f"{100 * x:+.2f}{unit}") if signed else (lambda x: f"{100 * x:.2f}{unit}")
        spread = f"{form(self.low)} to {form(self.high)}" if math.isfinite(self.half) else "all seeds equal"
        return f"{form(self.mean)} ({spread})"

    def __str__(self) -> str:
        if self.verdict is None:
            return f"{self.title}: {self.said(signed=False)}"
        family = f", one of {self.comparisons} intervals" if self.comparisons > 1 else ""
        return f"{self.title}: {self.verdict}, {self.said()}, {len(self.by_seed)} seeds{family}"


@dataclass(frozen=True)
class Cost:
    """What a method costs while it trains; the student it leaves costs the same, whatever the method.

    epoch: time of an epoch relative to hard labels, the median over `n` paired seeds; the teacher's answers are stored
    and not counted. nan where no seed of both ran on one kind of machine. seconds_per_epoch: the median.
    extra_parameters: of projections, thrown away afterwards.
    """

    epoch: float
    seconds_per_epoch: float
    extra_parameters: int
    n: int


@dataclass(frozen=True, eq=False)
class Results:
    """The finished runs of one kind and budget.

    rows: as texts, those that diverged too (no accuracy, a note), each with the "processor" that it was made on, where
    that was noted. baseline: the method that the others are compared with. sources: the files the rows come from.
    """

    kind: str
    rows: tuple[Mapping[str, str], ...]
    baseline: str
    sources: tuple[Path, ...]

    def __post_init__(self) -> None:
        _refuse_mixed(self.rows, self.sources)
        if self.baseline not in self._runs:
            raise unknown(f"baseline in {self.sources[0]}", self.baseline, self._runs)

    @cached_property
    def _runs(self) -> dict[str, dict[int, Mapping[str, str]]]:
        """Rows by method and seed."""
        found: dict[str, dict[int, Mapping[str, str]]] = {}
        for row in sorted(self.rows, key=order):
            found.setdefault(row["method"], {})[int(row["seed"])] = row
        return found

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods beside the baseline, by family."""
        return tuple(name for name in self._runs if name != self.baseline)

    @property
    def comparisons(self) -> int:
        """How many methods are compared with the baseline: each interval is corrected for all of them."""
        return len(self.methods)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that any method has."""
        return tuple(sorted({seed for runs in self._runs.values() for seed in runs}))

    @property
    def budget(self) -> dict[str, str]:
        """Data, student, teacher, images, epochs and views, as texts."""
        return {name: self.rows[0][name] for name in SHARED}

    @property
    def images(self) -> int:
        """Training images of each run."""
        return int(self.rows[0]["images"])

    def runs(self, method: str) -> dict[int, Mapping[str, str]]:
        """The rows of a method by seed; ValueError, with near matches, for a method that is not there."""
        if method not in self._runs:
            raise unknown(f"method in {self.sources[0].name}", method, self._runs)
        return self._runs[method]

    def title(self, method: str) -> str:
        """The method as figures and tables call it."""
        row = next(iter(self.runs(method).values()))
        plain = entry(row["entry"]).title
        return plain if method == row["entry"] else method.replace(row["entry"], plain, 1)

    @staticmethod
    def label(value: str) -> str:
        """A quantity as figures call it; ValueError, with near matches, for an unknown one."""
        if value not in VALUES:
            raise unknown("quantity", value, VALUES)
        return VALUES[value]

    def family(self, method: str) -> str:
        """One of `entries.FAMILIES`."""
        return entry(next(iter(self.runs(method).values()))["entry"]).family

    def settings(self, method: str) -> Settings:
        """The hyper-parameters that were chosen for a method, the same at every seed."""
        return Settings.read(next(iter(self.runs(method).values())))

    def trouble(self, method: str) -> str:
        """Which seeds of a method diverged, with their notes, or have not been run; "" where all is well."""
        runs = self.runs(method)
        lost = [f"seed {seed} diverged ({row['note'] or 'no note'})" for seed, row in runs.items() if _diverged(row)]
        absent = [str(seed) for seed in self.seeds if seed not in runs]
        return "; ".join(lost + ([f"seed {', '.join(absent)} not run"] if absent else []))

    @property
    def troubles(self) -> dict[str, str]:
        """Every method with a seed that diverged or has not been run, and what happened."""
        return {name: said for name in self._runs if (said := self.trouble(name))}

    def score(self, method: str, value: str = "test_accuracy") -> Measured:
        """A quantity of VALUES by seed; the interval is that of the mean, alone."""
        values = self._values(method, value)
        return self._measured(method, values, (values, dict.fromkeys(values, 0.0)), self.trouble(method), 1, None)

    def gain(self, method: str, value: str = "test_accuracy") -> Measured:
        """A quantity minus the baseline's, paired by seed, with a verdict; also for a calibration error, where less
        is better, the difference is method minus baseline."""
        return self._paired(method, value)

    def recovered(self, method: str) -> Measured:
        """The share of the gap between baseline and teacher that a method closes: 0 the baseline, 1 the teacher.

        There is trouble at seeds where the teacher is not ahead of the baseline.
        """
        teacher = self._values(self.baseline, "teacher_accuracy")
        below = [str(s) for s, x in self._values(self.baseline, "test_accuracy").items() if teacher[s] <= x]
        why = f"the teacher is not ahead of the baseline at seed {', '.join(below)}" if below else ""

        def share(ours: float, theirs: float, seed: int) -> float:
            return (ours - theirs) / (teacher[seed] - theirs) if str(seed) not in below else math.nan

        return self._paired(method, "test_accuracy", share, why)

    def cost(self, method: str) -> Cost:
        """What a method costs while it trains, beside hard labels (or the baseline)."""
        ours, theirs = ({s: r for s, r in self.runs(m).items() if not _diverged(r)} for m in (method, self.baseline))
        alike = [s for s in ours if s in theirs and _machine(ours[s]) == _machine(theirs[s])]
        ratios = [float(ours[s]["seconds_per_epoch"]) / float(theirs[s]["seconds_per_epoch"]) for s in alike]
        seconds = [float(row["seconds_per_epoch"]) for row in ours.values()]
        extra = {int(row["extra_parameters"]) for row in ours.values()} or {0}
        return Cost(_median(ratios), _median(seconds), max(extra), len(ratios))

    def table(self, methods: Sequence[str] | None = None) -> pd.DataFrame:
        """The baseline and the methods, default all, a line each: accuracies in %, gains in points, the gap in %."""
        import pandas as pd

        return pd.DataFrame(
            [self._line(name) for name in (self.baseline, *(self.methods if methods is None else methods))]
        )

    def chosen(self, methods: Sequence[str] | None = None) -> pd.DataFrame:
        """The settings of the baseline and the methods, default all, a line each, and where they were chosen."""
        import pandas as pd

        lines = []
        for name in (self.baseline, *(self.methods if methods is None else methods)):
            origin = next(iter(self.runs(name).values()))["chosen_on"]
            lines.append({"method": self.title(name), **asdict(self.settings(name)), "chosen on": origin})
        return pd.DataFrame(lines)

    def __repr__(self) -> str:
        said = f"{len(self.rows)} runs, {len(self._runs)} methods, {len(self.seeds)} seeds"
        return f"{self.kind} ({', '.join(f'{k} {v}' for k, v in self.budget.items())}): {said}"

    def _line(self, name: str) -> dict[str, object]:
        score, cost = self.score(name), self.cost(name)
        line: dict[str, object] = {"method": self.title(name), "family": self.family(name), "seeds": len(self.seeds)}
        line |= {"accuracy": 100 * score.mean, "std": 100 * score.std}
        if name != self.baseline:
            gain, share = self.gain(name), self.recovered(name)
            line |= {"gain": 100 * gain.mean, "low": 100 * gain.low, "high": 100 * gain.high}
            line |= {"verdict": str(gain.verdict or "none"), "gap recovered": 100 * share.mean}
        trouble = self.trouble(name) if name == self.baseline else self.gain(name).trouble
        return line | {"epoch cost": cost.epoch, "extra parameters": cost.extra_parameters, "trouble": trouble}

    def _values(self, method: str, value: str) -> dict[int, float]:
        if value not in (*VALUES, "teacher_accuracy"):
            raise unknown("quantity", value, VALUES)
        runs = self.runs(method)
        if not any(row.get(value) for row in runs.values() if not _diverged(row)) and not self.trouble(method):
            raise ValueError(f"The runs of {method!r} in {self.sources[0].name} hold no {value}.")
        # A run whose last step broke the student may still have a validation accuracy: it diverged all the same.
        there = {seed: row.get(value) for seed, row in runs.items() if not _diverged(row)}
        return {seed: float(there.get(seed) or math.nan) for seed in self.seeds}

    def _paired(
        self, method: str, value: str, pair: Callable[[float, float, int], float] | None = None, trouble: str = ""
    ) -> Measured:
        """By seed the difference from the baseline, or what `pair` makes of both and the seed."""
        ours, theirs = self._values(method, value), self._values(self.baseline, value)
        if pair is None:
            found, sides = {seed: ours[seed] - theirs[seed] for seed in self.seeds}, (ours, theirs)
        else:
            found = {seed: pair(ours[seed], theirs[seed], seed) for seed in self.seeds}
            sides = found, dict.fromkeys(found, 0.0)
        parts = [self.trouble(method), trouble]
        if method != self.baseline and (theirs_too := self.trouble(self.baseline)):
            parts.append(f"{self.title(self.baseline)}: {theirs_too}")
        said, better = "; ".join(filter(None, parts)), "lower" if value in LOWER else "higher"
        return self._measured(method, found, sides, said, self.comparisons, better)

    def _measured(
        self,
        method: str,
        by_seed: Mapping[int, float],
        sides: tuple[Mapping[int, float], Mapping[int, float]],  # whose sizes tell a spread from rounding
        trouble: str,
        comparisons: int,
        better: str | None,
    ) -> Measured:
        who = {"method": method, "title": self.title(method), "family": self.family(method), "by_seed": by_seed}
        if not trouble and len(by_seed) < 2:
            trouble = "one seed says nothing about spread"
        if trouble:
            return Measured(**who, trouble=trouble, comparisons=comparisons)
        found = verdict.compare(*sides, comparisons=max(1, comparisons), better=better or "higher")
        numbers = {name: getattr(found, name) for name in ("mean", "std", "low", "high", "comparisons")}
        return Measured(**who, **numbers, verdict=found.verdict if better else None)

    # The grid of alpha and T.

    @cached_property
    def cells(self) -> dict[tuple[float, float], str]:
        """The methods of a grid by alpha and temperature, those of alpha 1 at every one; ValueError for no grid."""
        if self.kind != "grid":
            raise ValueError(f"{self.sources[0].name} holds no grid of alpha and T: ask for study.results('grid').")
        made = {name: self.settings(name) for name in self._runs}
        found = {(one.alpha, one.temperature): name for name, one in made.items() if one.temperature is not None}
        alone = [(name, t) for (alpha, _), name in found.items() if alpha == 1 for _, t in found]
        return found | {(1.0, temperature): name for name, temperature in alone}

    @property
    def alphas(self) -> tuple[float, ...]:
        """The weights of the hard labels in the grid, rising."""
        return tuple(sorted({alpha for alpha, _ in self.cells}))

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures in the grid, rising."""
        return tuple(sorted({temperature for _, temperature in self.cells}))


def _refuse_mixed(rows: Sequence[Mapping[str, str]], sources: Sequence[Path]) -> None:
    """Raise ValueError for rows of several budgets, a run that is there twice, or a method with several settings."""
    where = " and ".join(map(str, sources))
    for name in (*SHARED, "place", "chosen_on"):
        found = sorted({row[name] for row in rows})
        if len(found) > 1:
            said = "settings that were chosen on" if name == "chosen_on" else name
            raise ValueError(f"{where} hold runs of {said} {' and '.join(found)}, which cannot be compared.")
    seen: set[tuple[str, str]] = set()
    settings: dict[str, Settings] = {}
    for row in rows:
        key, method = (row["method"], row["seed"]), row["method"]
        if key in seen:
            raise ValueError(f"{where}: there are several runs of {method}, seed {row['seed']}. Keep one of them.")
        seen.add(key)
        if settings.setdefault(method, Settings.read(row)) != Settings.read(row):
            raise ValueError(f"{where}: {method} was run with {settings[method]} and with {Settings.read(row)}.")


def order(row: Mapping[str, str]) -> tuple[float, ...]:
    """Where a row belongs: by family, then as in the table of entries, alpha, temperature and seed."""
    family = FAMILIES.index(entry(row["entry"]).family)
    soft = [float(row[name] or -1) for name in ("alpha", "temperature")]
    return family, list(ENTRIES).index(row["entry"]), *soft, int(row["seed"])


def _diverged(row: Mapping[str, str]) -> bool:
    return row["test_accuracy"] == ""


def _machine(row: Mapping[str, str]) -> tuple[str, str, str]:
    return row["place"], row["threads"], row.get("processor", "")


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan
