"""Random search and TPE, replayed on a map whose every point was trained before: no training, so no excuse.

    python -m course.experiments.search_replay

The study's grid has the accuracies of a ResNet-8 for 25 settings (5 weights alpha, 5 temperatures) and five seeds. A
search is replayed on it: what a trial would give is looked up, the validation accuracy in one seed. The search then
takes the best of what it saw. What that choice is worth is looked up too: the mean of the same setting in the *other*
seeds, which share the validation images but neither training images, nor their order, nor initial weights.

Of random search (each setting at most once) all expectations are exact, by counting. Orders of TPE (optuna's, with the
startup trials of `kdlib.search`) are drawn and stored, a row an order. TPE may ask for a setting again; the answer is
known then and costs nothing, so only new settings count. Both rules are in favour of TPE.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import comb
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from course import older_search
from course.experiments.command import called, run_command
from kdlib import study
from kdlib.data import data_dir
from kdlib.errors import check_whole
from kdlib.search.storage import load_optuna
from kdlib.search.trials import STARTUP_TRIALS
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, SessionLog, library_versions, read_rows, to_text

COMMAND = "python -m course.experiments.search_replay"
LONGEST = 20  # settings in a stored order: to the last few TPE comes only after a hundred repetitions
MOST_ASKED = 300  # times before an order is taken as it is
RANDOM, TPE = "random search", "TPE"
SAMPLERS = (RANDOM, TPE)
DEFAULT = (0.1, 4.0)  # alpha and T
COLUMNS = (
    *("study", "data", "student", "teacher", "images", "epochs", "sampler", "seed", "repetition"),
    *("asked", "order", "kdlib", "optuna", "seconds", "error"),
)


@dataclass(frozen=True, eq=False)
class SettingsMap:
    """What each setting gave in each seed, in per cent.

    settings: (alpha, T), row by row of the map. validation, test: seeds x settings.
    """

    settings: tuple[tuple[float, float], ...]
    seeds: tuple[int, ...]
    validation: np.ndarray
    test: np.ndarray
    budget: dict[str, str]

    @property
    def alphas(self) -> tuple[float, ...]:
        """Weights of the hard labels, rising."""
        return tuple(sorted({alpha for alpha, _ in self.settings}))

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures, rising."""
        return tuple(sorted({temperature for _, temperature in self.settings}))

    @property
    def default(self) -> int:
        """The position of T 4, alpha 0.1, the setting that nobody searched."""
        return self.settings.index(DEFAULT)

    def promised(self, seed: int) -> np.ndarray:
        """The validation accuracy of each setting in the seed that the search sees."""
        return self.validation[self.seeds.index(seed)]

    def kept(self, seed: int, *, test: bool = False) -> np.ndarray:
        """The mean of each setting in all other seeds, on the validation or the test images."""
        others = [place for place, other in enumerate(self.seeds) if other != seed]
        return (self.test if test else self.validation)[others].mean(0)


def load_map(folder: str | Path | None = None) -> SettingsMap:
    """The stored grid; FileNotFoundError, with the command that makes it, if it is missing."""
    grid = study.results("grid", folder=folder or older_search.folder())
    settings = tuple((alpha, temperature) for alpha in grid.alphas for temperature in grid.temperatures)
    runs = [grid.runs(grid.grid[one]) for one in settings]
    seeds = tuple(sorted(runs[0]))

    def table(metric: str) -> np.ndarray:
        return np.array([[100 * float(of_setting[seed][metric]) for of_setting in runs] for seed in seeds])

    return SettingsMap(settings, seeds, table("validation_accuracy"), table("test_accuracy"), grid.budget)


# --- the two ways to search


def random_order(seed: int, repetition: int, count: int) -> list[int]:
    """All settings in random order."""
    return np.random.default_rng([seed, repetition]).permutation(count).tolist()


def tpe_order(
    values: Sequence[float], shape: tuple[int, int], seed: int, length: int = LONGEST
) -> tuple[list[int], int]:
    """The settings in the order in which optuna's TPE first asks for them, and how often it asked.

    values: what each setting gives, row by row of a map of this shape, whose rows and columns are ordered quantities.
    """
    optuna = load_optuna()
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    trials = optuna.create_study(direction="maximize", sampler=sampler)
    order: dict[int, None] = {}
    asked = 0
    while len(order) < min(length, len(values)) and asked < MOST_ASKED:
        trial = trials.ask()
        row, column = (
            trial.suggest_int(name, 0, size - 1) for name, size in zip(("row", "column"), shape, strict=True)
        )
        setting = row * shape[1] + column
        trials.tell(trial, values[setting])
        order.setdefault(setting)
        asked += 1
    return list(order), asked


# --- what a search promises, and what of it is kept


def best_so_far(values: np.ndarray, order: Sequence[int]) -> list[int]:
    """The best setting after each trial; of equals, the first."""
    best = [order[0]]
    for setting in order[1:]:
        best.append(setting if values[setting] > values[best[-1]] else best[-1])
    return best


def random_search(values: np.ndarray, worth: np.ndarray, trials: int) -> tuple[float, float]:
    """What the best of so many random settings promises, and what it is worth: exact expectations.

    Of n out of N settings the k-th best is the best one in C(N - k, n - 1) of C(N, n) cases. Of equally good ones the
    first that was tried is taken, which is any of them equally often.
    """
    ranked = np.argsort(-values, kind="stable")
    count = len(values)
    shares = np.array([comb(count - rank, trials - 1) for rank in range(1, count + 1)]) / comb(count, trials)
    worth = np.array([worth[values == value].mean() for value in values])
    return float(shares @ values[ranked]), float(shares @ worth[ranked])


@dataclass(frozen=True, eq=False)
class Replay:
    """A map and the stored orders of TPE by (seed, repetition)."""

    map: SettingsMap
    orders: dict[tuple[int, int], tuple[int, ...]]

    @cached_property
    def repetitions(self) -> int:
        """Orders of TPE for each seed."""
        return min(sum(seed == one for one, _ in self.orders) for seed in self.map.seeds)

    def order(self, sampler: str, seed: int, repetition: int) -> tuple[int, ...]:
        """The settings in the order of one search; KeyError for one that is not stored."""
        if sampler == TPE:
            return self.orders[seed, repetition]
        return tuple(random_order(seed, repetition, len(self.map.settings)))

    def curve(self, sampler: str, seed: int, counts: Sequence[int], *, test: bool = False) -> np.ndarray:
        """For each number of trials: what the choice promises and what it is worth, the mean over all orders.

        Returns numbers x 2, per cent of the validation images; with `test`, the worth is that of the test images.
        """
        values, worth = self.map.promised(seed), self.map.kept(seed, test=test)
        if sampler == RANDOM:
            return np.array([random_search(values, worth, count) for count in counts])
        chosen = np.array([self._chosen(seed, repetition, counts) for repetition in range(self.repetitions)])
        return np.stack([values[chosen].mean(0), worth[chosen].mean(0)], 1)

    def _chosen(self, seed: int, repetition: int, counts: Sequence[int]) -> list[int]:
        best = best_so_far(self.map.promised(seed), self.orders[seed, repetition])
        return [best[min(count, len(best)) - 1] for count in counts]

    def mean_curve(self, sampler: str, counts: Sequence[int], *, test: bool = False) -> np.ndarray:
        """The mean of `curve` over the seeds that a search may see."""
        return np.mean([self.curve(sampler, seed, counts, test=test) for seed in self.map.seeds], axis=0)

    def default(self, *, test: bool = False) -> float:
        """The mean of T 4, alpha 0.1 over all seeds, which no search has touched."""
        return float((self.map.test if test else self.map.validation)[:, self.map.default].mean())


# --- rows


def path_of(folder: Path, map: SettingsMap) -> Path:
    """The file of the stored orders."""
    return folder / f"search-replay-{map.budget['student']}-{map.budget['teacher']}-{map.budget['images']}.csv"


def make(map: SettingsMap, out: Path, repetitions: int, command: str, log: Callable[[str], object] = print) -> None:
    """Draw the orders that are missing and store them; ValueError while another process writes to the file."""
    check_whole(1, 100_000, repetitions=repetitions)
    shape = (len(map.alphas), len(map.temperatures))
    versions = {"kdlib": library_versions()["kdlib"], "optuna": load_optuna().__version__}
    with RunsFile(path_of(out, map), COLUMNS, log).open() as file:
        done = {(row["seed"], row["repetition"]) for row in file.rows}
        wanted = [(seed, one) for seed in map.seeds for one in range(repetitions)]
        missing = [pair for pair in wanted if tuple(map_text(pair)) not in done]
        if missing:
            session = SessionLog(file.path, command, len(file.rows))
            for seed, repetition in missing:
                started = time.perf_counter()
                order, asked = tpe_order(map.promised(seed).tolist(), shape, repetition)
                row: dict[str, Any] = {"study": "search-replay", **map.budget, "sampler": TPE, "seed": seed}
                row |= {"repetition": repetition, "asked": asked, "order": " ".join(map_text(order)), **versions}
                file.append(row | {"seconds": round(time.perf_counter() - started, 2)})
            session.write(len(file.rows))
            log(f"{len(missing)} orders of TPE.")
    update_readme(out)


def map_text(values: Sequence[int]) -> list[str]:
    """Whole numbers as they stand in a file."""
    return [to_text(value) for value in values]


@lru_cache(maxsize=4)
def load(folder: Path | None = None, grid_folder: Path | None = None) -> Replay:
    """The map and the stored orders; folders: default data/results.

    Raises FileNotFoundError, with the command that makes them, where there are none.
    """
    map = load_map(grid_folder or folder)
    path = path_of(folder or data_dir() / "results", map)
    orders = {}
    for row in read_rows(path, COLUMNS):
        orders[int(row["seed"]), int(row["repetition"])] = tuple(int(one) for one in row["order"].split())
    if not set(map.seeds) <= {seed for seed, _ in orders}:
        raise FileNotFoundError(f"There are no orders of TPE in {path}. This draws them, in half a minute: {COMMAND}")
    return Replay(map, orders)


def replay(
    repetitions: Annotated[int, typer.Option(min=1, help="Orders of TPE for each seed.")] = 40,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
) -> None:
    """Replay TPE on the stored map and store the orders in which it tried the settings.

    Stopped at any moment, the same command goes on with what is missing.
    """
    command = called("course.experiments.search_replay")
    torch.set_num_threads(1)
    make(load_map(), out or data_dir() / "results", repetitions, command, partial(print, flush=True))


if __name__ == "__main__":
    run_command(search_replay=replay)
