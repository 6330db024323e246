"""What lesson 13 reads of the stored rows: promises and what was kept of them, proxies, and the judged search.

stored_choices()     the settings that the study chose, and what the same settings gave in fresh seeds
load_proxies()       fifteen students, their scores before training and their accuracies after it
load_judged()        one search, and four settings in fifteen fresh seeds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from course.experiments import search_proxy, search_rows
from course.experiments.rows import refuse_diverged
from course.experiments.search_rows import CONTROL, DEFAULTS, FOUND, RANDOM
from kdlib import verdict
from kdlib.data import data_dir
from kdlib.study.method_specs import Settings
from kdlib.study.plans import mean_trial_scores
from kdlib.study.runs_file import read_rows
from kdlib.verdict import Comparison

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 2_000
PROXIES = {  # what a network is ranked by before it is trained
    "macs": "MACs",
    "parameters": "parameters",
    "depth": "layers",
    "relation_score": "relations, trained teacher",
    "relation_score_untrained": "relations, untrained teacher",
}


# --- what choices have promised


def stored_choices(folder: str | Path | None = None) -> pd.DataFrame:
    """For each method of each study: what the best of its trials gave, and what that setting gave in fresh seeds.

    With several tuning seeds a trial is a setting with all of them, and what it gave is their mean.

    Trials and runs share the validation images; the seeds, so training images, order and initial weights, are others.
    Columns: study, method, trials, promised, kept (per cent of the validation images), excess (points), seeds.
    Only methods whose runs have the settings of the best trial. Raises FileNotFoundError for a folder without studies.
    """
    import pandas as pd

    place = Path(folder) if folder is not None else data_dir() / "results"
    made = []
    for path in sorted(place.glob("choose-*.csv")):
        runs_path = path.with_name(path.name.replace("choose-", "methods-", 1))
        finished = [row for row in read_rows(path) if not row["error"] and row.get("validation_accuracy")]
        trials, runs = _by_method(finished), _by_method(read_rows(runs_path))
        for method in trials.keys() & runs.keys():
            scores = mean_trial_scores(trials[method])
            best = max(scores, key=lambda settings: scores[settings], default=None)
            # A mean of the seeds that did not diverge would be one of chosen seeds.
            whole = all(row["validation_accuracy"] for row in runs[method])
            if whole and best is not None and best == Settings.from_row(runs[method][0]):
                promised = 100 * scores[best]
                kept = float(np.mean([100 * float(row["validation_accuracy"]) for row in runs[method]]))
                made.append(
                    {"study": path.stem.removeprefix("choose-"), "method": method, "trials": len(scores)}
                    | {"promised": promised, "kept": kept, "excess": promised - kept, "seeds": len(runs[method])}
                )
    if not made:
        raise FileNotFoundError(f"{place} holds no study with its trials. Run one: kdlib study full")
    return pd.DataFrame(made).sort_values(["study", "method"], ignore_index=True)


def _by_method(rows: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    found: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if "method" in row:
            found.setdefault(row["method"], []).append(row)
    return found


# --- proxies


@dataclass(frozen=True)
class Tau:
    """Kendall's tau of a proxy and the accuracy, with a 95 % bootstrap interval over networks.

    1: the same order, 0: no relation, -1: the opposite order. Tau-b: where one side alone has ties, it ends before
    that (three depths of five networks: 0.845), and the interval of a complete order shows only which were drawn.
    """

    proxy: str
    value: float
    low: float
    high: float
    networks: int

    def __str__(self) -> str:
        return f"{PROXIES.get(self.proxy, self.proxy):28} tau {self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


@dataclass(frozen=True, eq=False)
class Proxies:
    """The students of the experiment; each value is the mean over its seeds.

    accuracies: validation accuracies in per cent, by seed and network.
    """

    students: tuple[str, ...]
    values: Mapping[str, np.ndarray]  # of each proxy, by student
    accuracies: Mapping[int, np.ndarray]
    images: int
    epochs: int

    @cached_property
    def accuracy(self) -> np.ndarray:
        """Of each student, the mean over its seeds."""
        return np.mean(list(self.accuracies.values()), axis=0)

    def tau(self, proxy: str) -> Tau:
        """How well a proxy orders all students; KeyError for an unknown one."""
        return bootstrap_tau(proxy, self.values[proxy], self.accuracy)

    def difference(self, proxy: str) -> tuple[float, float, float]:
        """Tau of a proxy minus tau of the MACs, with its bootstrap interval: the same networks in both."""
        first, second, accuracy = self.values[proxy], self.values["macs"], self.accuracy
        draws = [
            kendall(first[chosen], accuracy[chosen]) - kendall(second[chosen], accuracy[chosen])
            for chosen in _resamples(len(self.students))
        ]
        low, high = np.quantile(draws, (0.025, 0.975))
        return kendall(first, accuracy) - kendall(second, accuracy), float(low), float(high)

    def reliability(self) -> float:
        """Tau of the accuracies in one seed and those in another, the mean over all pairs of seeds.

        A yardstick and no limit: another run has chance of its own, a proxy has none. Raises ValueError for one seed.
        """
        runs = list(self.accuracies.values())
        if len(runs) < 2:
            raise ValueError("One seed cannot be compared with another. Train a second: search_proxy --seeds 2")
        pairs = [kendall(first, second) for place, first in enumerate(runs) for second in runs[place + 1 :]]
        return float(np.mean(pairs))

    def table(self) -> pd.DataFrame:
        """All students, the smallest first."""
        import pandas as pd

        made = pd.DataFrame({"student": self.students, **self.values, "accuracy": self.accuracy})
        return made.sort_values("macs", ignore_index=True)


def bootstrap_tau(name: str, x: np.ndarray, y: np.ndarray) -> Tau:
    """Kendall's tau of two values of the same networks, with its interval."""
    draws = [kendall(x[chosen], y[chosen]) for chosen in _resamples(len(x))]
    low, high = np.quantile(draws, (0.025, 0.975))
    return Tau(name, kendall(x, y), float(low), float(high), len(x))


def _resamples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b; 0 where all values of one side are equal."""
    a, b = (np.sign(side[:, None] - side[None, :]) for side in (x, y))
    untied = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / untied) if untied else 0.0


@lru_cache(maxsize=4)
def load_proxies(folder: Path | None = None, images: int = search_proxy.Budget.images) -> Proxies:
    """The students and the seeds with which all of them were run.

    Raises FileNotFoundError, with the command that trains them, for less than four students.
    """
    path = search_proxy.Budget(images).path(folder or data_dir() / "results")
    rows = [row for row in read_rows(path) if not row["error"]]
    by_key = {(row["student"], int(row["seed"])): row for row in rows}
    students = list(dict.fromkeys(row["student"] for row in rows))
    every = sorted({int(row["seed"]) for row in rows})
    seeds = [seed for seed in every if all((student, seed) in by_key for student in students)]
    if len(students) < 4 or not seeds:
        option = f" --images {images}" if images != search_proxy.Budget.images else ""
        raise FileNotFoundError(
            f"There are not enough networks in {path}. This trains them, in about ten minutes: "
            f"python -m course.experiments.search_proxy{option}"
        )

    def column(name: str, seed: int) -> np.ndarray:
        return np.array([float(by_key[student, seed][name]) for student in students])

    values = {name: np.mean([column(name, seed) for seed in seeds], axis=0) for name in (*PROXIES, "width")}
    accuracies = {seed: 100 * column("validation_accuracy", seed) for seed in seeds}
    return Proxies(tuple(students), values, accuracies, images, int(rows[0]["epochs"]))


# --- the judged search

ARMS = {  # as the lesson calls them
    FOUND: "TPE with Hyperband",
    RANDOM: "random search",
    CONTROL: "alpha 0.1, T 4, found rate and decay",
    DEFAULTS: "all defaults",
}


@dataclass(frozen=True, eq=False)
class JudgedSearch:
    """The stored search: its trials, and what four settings gave in fresh seeds, as rows of texts."""

    trials: tuple[Mapping[str, str], ...]
    runs: tuple[Mapping[str, str], ...]

    def accuracies(self, arm: str, column: str = "test_accuracy") -> dict[int, float]:
        """Per cent by seed; ValueError, with the seeds, where some diverged."""
        diverged = {
            int(row["seed"]): row.get("error", "") for row in self.runs if row["arm"] == arm and not row[column]
        }
        refuse_diverged(ARMS[arm], diverged)
        return {int(row["seed"]): 100 * float(row[column]) for row in self.runs if row["arm"] == arm and row[column]}

    @property
    def arms(self) -> tuple[str, ...]:
        """Those that were run, in the order of ARMS."""
        return tuple(arm for arm in ARMS if any(row["arm"] == arm for row in self.runs))

    def gain(self, other: str) -> Comparison:
        """The found setting minus another, in points of test accuracy; the intervals of all hold together."""
        ours, theirs = self.accuracies(FOUND), self.accuracies(other)
        return verdict.compare(ours, theirs, comparisons=len(self.arms) - 1, same_unit=True)

    def settings(self, arm: str) -> dict[str, float]:
        """Learning rate, weight decay, alpha and temperature of an arm."""
        row = next(row for row in self.runs if row["arm"] == arm)
        return {name: float(row[name]) for name in ("learning_rate", "weight_decay", "alpha", "temperature")}

    def promised(self, arm: str) -> float:
        """The validation accuracy by which a search has chosen, in per cent; ValueError for an arm without a search."""
        values = [float(row["validation_accuracy"]) for row in self._trials_of(arm) if row["validation_accuracy"]]
        if not values:
            raise ValueError(f"{arm} was not chosen by a search, so it promises nothing.")
        return 100 * max(values)

    def cost(self, arm: str) -> int:
        """Epochs that a search has trained."""
        return sum(int(row["trained_epochs"]) for row in self._trials_of(arm))

    def count(self, arm: str) -> int:
        """Trials of a search."""
        return len(self._trials_of(arm))

    def _trials_of(self, arm: str) -> list[Mapping[str, str]]:
        return [row for row in self.trials if row["search"] == arm]

    def summary(self) -> str:
        """A line an arm: its settings and its accuracies."""
        lines = [f"{'':37}{'rate':>7}{'alpha':>7}{'T':>6}{'test accuracy':>16}"]
        for arm in self.arms:
            settings, values = self.settings(arm), list(self.accuracies(arm).values())
            row = (
                f"{ARMS[arm]:37}{settings['learning_rate']:7.2f}{settings['alpha']:7.2f}{settings['temperature']:6.1f}"
            )
            lines.append(f"{row}{np.mean(values):9.2f} ± {np.std(values, ddof=1):.2f}")
        return "\n".join(lines)

    def verdicts(self) -> str:
        """A line for each comparison."""
        lines = []
        for arm in self.arms:
            if arm != FOUND:
                one = self.gain(arm)
                lines.append(f"found - {ARMS[arm]:37}{one.mean:+.2f} ({one.low:+.2f} to {one.high:+.2f}) {one.verdict}")
        return "\n".join(lines)


@lru_cache(maxsize=4)
def load_judged(folder: Path | None = None, images: int = search_rows.Budget.images) -> JudgedSearch:
    """The stored search; FileNotFoundError, with the command that makes it, where it is missing."""
    place, budget = folder or data_dir() / "results", search_rows.Budget(images)
    trials, runs = (read_rows(budget.path(kind, place)) for kind in ("search-trials", "search-judged"))
    found = JudgedSearch(tuple(trials), tuple(runs))
    if not trials or len(found.arms) < 2:
        option = f" --images {images}" if images != search_rows.Budget.images else ""
        raise FileNotFoundError(
            f"There is no judged search in {place}. This makes it, in about a quarter of an hour: "
            f"{search_rows.COMMAND}{option}"
        )
    return found
