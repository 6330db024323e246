"""The numbers of the report, as pandas tables: a row for each student and measure, with interval and verdict.

Columns that all tables but `pairs` and `each_run` share: network, measure, value (the mean over runs and images), std
(over runs; NaN for one), gain (value minus the baseline's), low, high (its interval), covers (what that interval is
about), family (how many intervals hold together), better ("higher", "lower" or ""), verdict. The baseline and the
teacher have no gain.

One table is one family, but for the two rows of `robustness` that sum it up, for each kind of scatter in `uncertainty`,
and for each run in `pairs`. The interval of an accuracy itself (value_low, value_high) belongs to none: each holds
alone. What each test image has a value of its own for is compared over seeds and images together; what only a whole
test set has (calibration error, AUROC) over seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib import measure, verdict
from kdlib.compare.networks import TEACHER
from kdlib.compare.outputs import CONDITIONS, Outputs, log_odds
from kdlib.data.corruptions import DESTRUCTIONS
from kdlib.verdict import Comparison

if TYPE_CHECKING:
    import pandas as pd

Students = Mapping[str, Mapping[Hashable, Outputs]]
Values = Mapping[Hashable, Any]  # by run: an array with a value for each image, or one number

SHARED = ("network", "measure", "value", "std", "gain", "low", "high", "covers", "family", "better", "verdict")
ONE_NETWORK, BOTH, SEEDS = "test images", "seeds and test images", "seeds"
ALL = "all"  # in place of a corruption: the mean over all of them


def make(
    students: Students, teacher: Outputs | None, labels: Tensor, classes: Sequence[str], confidence: float
) -> dict[str, pd.DataFrame]:
    """All tables, by the names that the report has for them; empty where there is no teacher or no corruption."""
    maker = _Maker(students, teacher, labels, confidence)
    return {
        "accuracy": maker.accuracy(),
        "uncertainty": maker.uncertainty(),
        "pairs": maker.pairs(),
        "fidelity": maker.fidelity(),
        "calibration": maker.calibration(),
        "classes": maker.classes(classes),
        "robustness": maker.robustness(),
        "outside": maker.outside(),
        "each_run": maker.runs(),
    }


@dataclass(frozen=True)
class Measure:
    """Something that every network has a value of.

    of: an array with a value for each image, or, with `whole`, one number of the whole test set. better: "higher",
    "lower", or "" for what is neither better nor worse. keys: further columns, such as the class. teacher: whether the
    teacher has one, too.
    """

    name: str
    of: Callable[[Outputs], Any]
    better: str = "higher"
    keys: tuple[tuple[str, Any], ...] = ()
    teacher: bool = True
    whole: bool = False


@dataclass(frozen=True)
class _Maker:
    students: Students
    teacher: Outputs | None
    labels: Tensor
    confidence: float

    @property
    def baseline(self) -> str:
        return next(iter(self.students))

    @property
    def others(self) -> list[str]:
        return list(self.students)[1:]

    @property
    def seeds(self) -> int:
        return len(self.students[self.baseline])

    def right(self, outputs: Outputs, at: Tensor | slice = slice(None)) -> np.ndarray:
        """1 for each image that it is right about, else 0; of all images, or of those at these positions."""
        return (outputs.answers[at] == self.labels[at]).numpy().astype(float)

    # --- the tables

    def accuracy(self) -> pd.DataFrame:
        rows = self._rows([Measure("accuracy", self.right)])
        for row in rows:
            runs = {"": self.teacher} if row["network"] == TEACHER else self.students[row["network"]]
            values = [self.right(one) for one in runs.values() if one is not None]
            row["value_low"], row["value_high"] = _own_interval(values, self.confidence)
        return _frame(rows, (), ("value_low", "value_high"))

    def uncertainty(self) -> pd.DataFrame:
        """The gain in accuracy with the scatter of the images alone, of the seeds alone, and of both."""
        rows = []
        for name in self.others if self.seeds > 1 else ():
            mine, base = (
                {run: self.right(one) for run, one in self.students[who].items()} for who in (name, self.baseline)
            )
            options: dict[str, Any] = {"confidence": self.confidence, "comparisons": len(self.others)}
            of_images = verdict.compare_networks(
                *(np.mean(list(side.values()), axis=0) for side in (mine, base)), **options
            )
            of_seeds = verdict.compare(
                *({run: float(values.mean()) for run, values in side.items()} for side in (mine, base)), **options
            )
            of_both = verdict.compare_samples(mine, base, **options)
            means = [float(values.mean()) for values in mine.values()]
            value, std = float(np.mean(means)), float(np.std(means, ddof=1))
            for covers, found in ((ONE_NETWORK, of_images), (SEEDS, of_seeds), (BOTH, of_both)):
                rows.append(_row(name, "accuracy", value, std, "higher", found, covers))
        return _frame(rows)

    def pairs(self) -> pd.DataFrame:
        """Each run against the baseline's of the same seed, by the test images alone, with McNemar's exact test."""
        import pandas as pd

        rows = []
        for name in self.others:
            for (run, one), (base_run, base) in self._paired(name):
                right = [self.right(side) for side in (one, base)]
                options: dict[str, Any] = {"confidence": self.confidence, "comparisons": len(self.others)}
                found, test = verdict.compare_networks(*right, **options), verdict.mcnemar(*right)
                seed = str(run) if run == base_run else f"{run} / {base_run}"
                rows.append(
                    {
                        **{"network": name, "run": seed, "value": float(right[0].mean()), "gain": found.mean},
                        **{"low": found.low, "high": found.high, "family": found.comparisons},
                        **{"only_network": test.first_only, "only_baseline": test.second_only, "p": test.p},
                        "verdict": str(found.verdict),
                    }
                )
        return pd.DataFrame(rows)

    def fidelity(self) -> pd.DataFrame:
        teacher = self.teacher
        if teacher is None:
            return _frame([])
        answers, log_teacher = teacher.answers, F.log_softmax(teacher.logits.double(), 1)
        wrong = (answers != self.labels).numpy()

        def agrees(one: Outputs) -> np.ndarray:
            return (one.answers == answers).numpy().astype(float)

        def divergence(one: Outputs) -> np.ndarray:
            log_student = F.log_softmax(one.logits.double(), 1)
            return (log_teacher.exp() * (log_teacher - log_student)).sum(1).numpy()

        measures = [
            Measure("agreement", agrees, teacher=False),
            Measure("KL to the teacher", divergence, "lower", teacher=False),
        ]
        if wrong.sum() >= 2:
            measures.append(Measure("repeated mistakes", lambda one: agrees(one)[wrong], "lower", teacher=False))
        return _frame(self._rows(measures))

    def calibration(self) -> pd.DataFrame:
        def nll(logits: Tensor) -> np.ndarray:
            return F.cross_entropy(logits.double(), self.labels, reduction="none").numpy()

        def error(logits: Tensor) -> float:
            return measure.calibration_error(logits, self.labels)

        return _frame(
            self._rows(
                [
                    Measure("calibration error", lambda one: error(one.logits), "lower", whole=True),
                    Measure(
                        "calibration error, temperature-scaled",
                        lambda one: error(one.temperature_scaled),
                        "lower",
                        whole=True,
                    ),
                    Measure("NLL", lambda one: nll(one.logits), "lower"),
                    Measure("NLL, temperature-scaled", lambda one: nll(one.temperature_scaled), "lower"),
                    Measure("temperature", lambda one: one.temperature, "", whole=True),
                ]
            )
        )

    def classes(self, names: Sequence[str]) -> pd.DataFrame:
        measures = []
        positions = self.labels.argsort(stable=True).split(self.labels.bincount(minlength=len(names)).tolist())
        of_name = Counter(names)
        for number, (name, chosen) in enumerate(zip(names, positions, strict=True)):
            if len(chosen) >= 2:
                shown = name if of_name[name] == 1 else f"{name} ({number})"  # ImageNet has two cranes
                keys = (("class", shown), ("images", len(chosen)))
                measures.append(Measure("accuracy", partial(self.right, at=chosen), keys=keys))
        return _frame(self._rows(measures), ("class", "images"))

    def robustness(self) -> pd.DataFrame:
        keys = ("corruption", "severity")
        if not self._corrupted:
            return _frame([], keys)

        def mean(one: Outputs) -> np.ndarray:
            return np.mean([one.corrupted[condition] for condition in CONDITIONS], axis=0)

        whole = ((keys[0], ALL), (keys[1], 0))
        rows = self._rows(
            [
                Measure("accuracy", mean, keys=whole),
                Measure("accuracy lost", lambda one: self.right(one) - mean(one), "lower", keys=whole),
            ]
        )
        each = [
            Measure(
                "accuracy",
                partial(_right_under, condition),
                keys=tuple(zip(keys, condition, strict=True)),
            )
            for condition in CONDITIONS
        ]
        return _frame([*rows, *self._rows(each)], keys)

    def outside(self) -> pd.DataFrame:
        if not self._corrupted:
            return _frame([], ("pictures",))

        clean = (("pictures", "test images"),)
        measures = [
            Measure("confidence", lambda one: _confidence(one.logits), "", clean),
            Measure("confidence, temperature-scaled", lambda one: _confidence(one.temperature_scaled), "", clean),
        ]
        for kind in DESTRUCTIONS:
            keys = (("pictures", kind),)
            measures += [
                Measure("confidence", partial(_confidence_outside, kind, 0), "lower", keys),
                Measure("confidence, temperature-scaled", partial(_confidence_outside, kind, 1), "lower", keys),
                Measure("AUROC", partial(_auroc, kind), keys=keys, whole=True),
            ]
        return _frame(self._rows(measures), ("pictures",))

    def runs(self) -> pd.DataFrame:
        """A row for each run: the headline numbers without any statistics."""
        import pandas as pd

        rows = []
        for name, runs in self.students.items():
            rows += [{"network": name, "run": str(run), **self._numbers(one)} for run, one in runs.items()]
        if self.teacher is not None:
            rows.append({"network": TEACHER, "run": "", **self._numbers(self.teacher, teacher=True)})
        return pd.DataFrame(rows)

    def _numbers(self, one: Outputs, teacher: bool = False) -> dict[str, float]:
        row = {"accuracy": float(self.right(one).mean())}
        if self.teacher is not None:
            said = (one.logits, self.teacher.logits)
            row["agreement"] = math.nan if teacher else measure.agreement(*said)
            row["repeated mistakes"] = math.nan if teacher else measure.repeated_mistakes(*said, self.labels)
        row["temperature"] = one.temperature
        row["calibration error"] = measure.calibration_error(one.logits, self.labels)
        row["calibration error, temperature-scaled"] = measure.calibration_error(one.temperature_scaled, self.labels)
        row["NLL, temperature-scaled"] = float(F.cross_entropy(one.temperature_scaled.double(), self.labels))
        if self._corrupted:
            row["corrupted accuracy"] = float(np.mean(list(one.corrupted.values())))
        return row

    # --- how a measure becomes rows

    @property
    def _corrupted(self) -> bool:
        return bool(next(iter(self.students[self.baseline].values())).corrupted)

    def _paired(self, name: str) -> list[tuple[tuple[Hashable, Outputs], tuple[Hashable, Outputs]]]:
        mine, base = self.students[name], self.students[self.baseline]
        if len(mine) == 1:
            return [(next(iter(mine.items())), next(iter(base.items())))]
        return [((run, mine[run]), (run, base[run])) for run in base]

    def _rows(self, measures: Sequence[Measure]) -> list[dict[str, Any]]:
        """The rows of measures whose intervals are one family."""
        family = len(self.others) * sum(bool(one.better) and self._has_interval(one) for one in measures)
        return [row for one in measures for row in self._rows_of(one, family)]

    def _has_interval(self, one: Measure) -> bool:
        return self.seeds > 1 or not one.whole

    def _rows_of(self, one: Measure, family: int) -> list[dict[str, Any]]:
        values: dict[str, Values] = {
            name: {run: one.of(outputs) for run, outputs in runs.items()} for name, runs in self.students.items()
        }
        rows = []
        for name, mine in values.items():
            found, covers = None, ""
            if name != self.baseline and one.better and self._has_interval(one):
                found, covers = self._judge(mine, values[self.baseline], one, family)
            means = [float(np.mean(value)) for value in mine.values()]
            spread = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
            row = _row(name, one.name, float(np.mean(means)), spread, one.better, found, covers)
            if name != self.baseline and found is None and one.better:
                row["gain"] = means[0] - float(np.mean(list(values[self.baseline].values())))
            rows.append(dict(one.keys) | row)
        if self.teacher is not None and one.teacher:
            value = float(np.mean(one.of(self.teacher)))
            rows.append(dict(one.keys) | _row(TEACHER, one.name, value, math.nan, one.better, None, ""))
        return rows

    def _judge(self, mine: Values, base: Values, one: Measure, family: int) -> tuple[Comparison, str]:
        """A comparison, and what its interval covers."""
        options: dict[str, Any] = {"confidence": self.confidence, "comparisons": family, "better": one.better}
        if self.seeds == 1:
            (first,), (second,) = mine.values(), base.values()
            return verdict.compare_networks(first, second, **options), ONE_NETWORK
        if one.whole:
            return verdict.compare(mine, base, **options, same_unit=True), SEEDS
        return verdict.compare_samples(mine, base, **options), BOTH


def _row(
    name: str, what: str, value: float, std: float, better: str, found: Comparison | None, covers: str
) -> dict[str, Any]:
    return {
        "network": name,
        "measure": what,
        "value": value,
        "std": std,
        "gain": found.mean if found else math.nan,
        "low": found.low if found else math.nan,
        "high": found.high if found else math.nan,
        "covers": covers,
        "family": found.comparisons if found else 0,
        "better": better,
        "verdict": str(found.verdict) if found else "",
    }


def _frame(rows: Sequence[Mapping[str, Any]], first: Sequence[str] = (), last: Sequence[str] = ()) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=[*first, *SHARED, *last])


def _own_interval(values: Sequence[np.ndarray], confidence: float) -> tuple[float, float]:
    """The interval of an accuracy itself: over images for one network (Wilson 1927), over both for several."""
    from scipy import stats

    if len(values) == 1:
        found = stats.binomtest(int(values[0].sum()), len(values[0])).proportion_ci(confidence, method="wilson")
        return float(found.low), float(found.high)
    of_runs = dict(enumerate(values))
    interval = verdict.compare_samples(
        of_runs, {run: np.zeros_like(one) for run, one in of_runs.items()}, confidence=confidence
    )
    return max(0.0, interval.low), min(1.0, interval.high)


def _right_under(condition: tuple[str, int], one: Outputs) -> np.ndarray:
    return one.corrupted[condition].astype(float)


def _confidence(logits: Tensor) -> np.ndarray:
    return F.softmax(logits.double(), 1).amax(1).numpy()


def _confidence_outside(kind: str, temperature_scaled: int, one: Outputs) -> np.ndarray:
    return one.outside[kind][:, temperature_scaled]


def _auroc(kind: str, one: Outputs) -> float:
    """The probability that a test image gets more confidence than a picture of nothing; ties count one half."""
    from torchmetrics.functional.classification import binary_auroc

    inside, outside = log_odds(one.temperature_scaled), torch.from_numpy(one.outside[kind][:, 2])
    # Of their order alone, in [0, 1]: torchmetrics would take numbers beyond that for logits, and round them to 1.
    ranks = torch.unique(torch.cat([inside, outside]), return_inverse=True)[1].double()
    scores = ranks / ranks.max().clamp(min=1)
    truth = torch.cat([torch.ones(len(inside), dtype=torch.int64), torch.zeros(len(outside), dtype=torch.int64)])
    return float(binary_auroc(scores, truth))
