"""What a found setting is worth: fresh paired seeds, against start settings and random search at the same cost."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from kdlib import verdict
from kdlib.errors import LARGEST_WHOLE, as_whole, check_flags, check_kind, check_whole
from kdlib.files import fingerprint
from kdlib.search.engine import Found, prepare, scratch_folder, search
from kdlib.search.storage import load_optuna, open_storage
from kdlib.search.task import TaskRunner, outputs_folder, unpack
from kdlib.search.trials import COMPLETE
from kdlib.search.workers import RemoteRunner, Runner, open_runners
from kdlib.study.method_specs import Settings
from kdlib.verdict import Comparison
from kdlib.workers import first_completed, refuse_without_main_guard

if TYPE_CHECKING:
    import pandas as pd

FOUND, START, RANDOM = "found", "start settings", "random search"
BOTH, SEEDS = "seeds and test images", "seeds alone"  # what the interval of a verdict is over


@dataclass(frozen=True)
class Arm:
    """One side of the judgement. search_cost: epochs that finding its setting took. reported: what its search reported.

    reported is a validation accuracy, None for the start settings.
    """

    name: str
    student: str
    settings: Settings
    search_cost: float
    reported: float | None = None


@dataclass(frozen=True)
class Curse:
    """The winner's curse of an arm: what its search reported for its best trial, beside the mean of fresh seeds.

    Both are accuracies on the validation split. low, high: the 95 % interval of the mean, the whole line where all
    seeds agree to the last image.
    """

    reported: float
    fresh: float
    low: float
    high: float

    @property
    def excess(self) -> float:
        """By how much the report flattered."""
        return self.reported - self.fresh

    def __str__(self) -> str:
        known = math.isfinite(self.low) and math.isfinite(self.high)
        interval = f"{self.low:.2%} to {self.high:.2%}" if known else "no scatter between seeds"
        return (
            f"reported {self.reported:.2%}, fresh seeds {self.fresh:.2%} ({interval}): "
            f"the report was {abs(100 * self.excess):.2f} points too {'high' if self.excess > 0 else 'low'}"
        )


@dataclass(frozen=True)
class Judged:
    """What the runs with fresh seeds say.

    rows: one dictionary a run: arm, seed, validation_accuracy, test_accuracy, epochs, seconds, error, and right, which
    test images the student was right about, packed; see the method `right`. random: the random search that was made for
    comparison; None where the search was one itself.
    """

    found: Found
    arms: tuple[Arm, ...]
    rows: tuple[dict[str, Any], ...]
    random: Found | None
    seconds: float

    @property
    def runs(self) -> pd.DataFrame:
        """All runs as a table; which test images each had right is in `right`."""
        import pandas as pd

        return pd.DataFrame([{name: row[name] for name in row if name != "right"} for row in self.rows])

    def accuracies(self, arm: str, column: str = "test_accuracy") -> dict[int, float]:
        """By seed, of the runs that did not diverge."""
        return {row["seed"]: row[column] for row in self.rows if row["arm"] == arm and not row["error"]}

    def right(self, arm: str) -> dict[int, np.ndarray]:
        """By seed, of the runs that did not diverge, for each test image whether the student was right.

        Empty where the storage holds a run of an older kdlib, which kept no more than its accuracy.
        """
        rows = [row for row in self.rows if row["arm"] == arm and not row["error"]]
        if not all(row.get("right") for row in rows):
            return {}
        return {row["seed"]: unpack(row["right"], len(self.found.task.data.test)) for row in rows}

    def over(self, arm: str) -> str:
        """What the interval of the verdict on this arm is over: seeds and test images, or seeds alone.

        A new test set would give other accuracies, too, which an interval over seeds alone leaves out: it is too narrow
        where test images are few.
        """
        return BOTH if self.right(FOUND) and self.right(arm) else SEEDS

    @property
    def verdicts(self) -> dict[str, Comparison]:
        """The found setting against each other arm, on the test set; the intervals hold together with 95 %.

        They are over seeds and test images together, see `verdict.compare_samples`; with runs of an older kdlib over
        seeds alone, see `over`. An arm is left out where a seed of either diverged, see `diverged`: the seeds at which
        a setting happened to survive are no fair sample. So is one with less than two seeds.
        """
        others = [arm.name for arm in self.arms if arm.name != FOUND]
        made = {}
        for name in others:
            if self.diverged.keys() & {FOUND, name}:
                continue
            ours, theirs = self.accuracies(FOUND), self.accuracies(name)
            both = sorted(ours.keys() & theirs.keys())
            if len(both) < 2:
                continue
            if self.over(name) == BOTH:
                right = ({seed: side[seed] for seed in both} for side in (self.right(FOUND), self.right(name)))
                made[name] = verdict.compare_samples(*right, comparisons=len(others))
            else:
                sides = ({seed: side[seed] for seed in both} for side in (ours, theirs))
                made[name] = verdict.compare(*sides, comparisons=len(others))
        return made

    @property
    def caution(self) -> str:
        """What to think of the verdicts where the seeds are few; empty where they are not, and without verdicts."""
        return verdict.few_seeds(min(one.n for one in self.verdicts.values())) if self.verdicts else ""

    @property
    def curses(self) -> dict[str, Curse]:
        """The winner's curse of each arm whose setting a search has chosen, and which diverged at no seed."""
        made = {}
        for arm in self.arms:
            if arm.name in self.diverged:
                continue
            values = self.accuracies(arm.name, "validation_accuracy")
            if arm.reported is not None and len(values) >= 2:
                fresh = verdict.compare(values, dict.fromkeys(values, 0.0), same_unit=True)
                made[arm.name] = Curse(arm.reported, fresh.mean, fresh.low, fresh.high)
        return made

    @property
    def diverged(self) -> dict[str, list[int]]:
        """By arm, the seeds at which it diverged; they are in no mean, and there is no verdict on such an arm."""
        found = {arm.name: [row["seed"] for row in self.rows if row["arm"] == arm.name and row["error"]]
                 for arm in self.arms}  # fmt: skip
        return {name: seeds for name, seeds in found.items() if seeds}

    def save(self, folder: str | Path) -> None:
        """Write what `Found.save` writes, with the judgement in it, and judged.csv."""
        from kdlib.search.report import write

        write(Path(folder), self.found, self)

    def __str__(self) -> str:
        lines = []
        for arm in self.arms:
            values = list(self.accuracies(arm.name).values())
            mean = f"{np.mean(values):.2%}" if values else "diverged"
            lines.append(f"{arm.name:14} {mean:>8} test, {arm.search_cost:>6,.0f} epochs of search; {arm.student}, "
                         f"{arm.settings}")  # fmt: skip
        lines += [f"found against {name}, over {self.over(name)}: {one}" for name, one in self.verdicts.items()]
        lines += [self.caution] if self.caution else []
        lines += [f"winner's curse, {name}: {curse}" for name, curse in self.curses.items()]
        lines += [f"{name} diverged at seeds {', '.join(map(str, seeds))}" for name, seeds in self.diverged.items()]
        return "\n".join(lines)


def judge(
    found: Found,
    seeds: Iterable[int] = range(5),
    *,
    workers: int | None = None,
    random_search: bool = True,
    progress: bool = True,
) -> Judged:
    """Train the found setting, the start settings and the best of random search with fresh paired seeds, and test them.

    The start settings are those of the study where nothing was tuned (kd: T 4, alpha 0.1), for the same student; where
    the student was searched, for the largest network within the limits. For some methods, attention for instance, they
    are not the defaults of `kdlib distill`, which the study's older search has chosen. Random search trains whole
    trials, without Hyperband, until it has cost as much as the search, its last trial included: it gets a little more
    rather than less.
    seeds: of images, order, views and initial weights, the same for all arms; not the one that the search trained with.
    workers: default, as many as the search had. random_search: False leaves that arm out.
    The same call goes on with what a killed one has left in the search's storage. Each run reads the test set once.
    Raises ValueError for seeds that are no fresh ones, and what `run` raises.
    """
    refuse_without_main_guard("search.judge")
    check_kind("what search.run has returned", Found, found=found)
    check_flags(progress=progress, random_search=random_search)
    seeds = _check_seeds(seeds, found.tuning_seed)
    workers = found.workers if workers is None else workers
    check_whole(workers=workers)
    started = time.perf_counter()
    arms = [
        Arm(FOUND, found.best.student, found.best.settings, found.cost, found.best.validation_accuracy),
        Arm(START, found.task.student, found.task.spec.start, 0.0),
    ]
    random = None
    if random_search and not (found.strategy.sampler == "random" and found.strategy.pruner is None):
        random = _random_search(found, workers, progress)
        if random.count(COMPLETE):  # else all of its trials diverged, and it has found nothing
            best = random.best
            arms.append(Arm(RANDOM, best.student, best.settings, random.cost, best.validation_accuracy))
    rows = _run_all(found, arms, seeds, workers, progress)
    return Judged(found, tuple(arms), tuple(rows), random, time.perf_counter() - started)


def _check_seeds(seeds: Iterable[int], tuning_seed: int) -> list[int]:
    if isinstance(seeds, str | bytes) or not isinstance(seeds, Iterable):
        raise TypeError(f"seeds are whole numbers, such as range(5); got {seeds!r}.")
    given = [as_whole(0, LARGEST_WHOLE, seed=seed) for seed in seeds]
    if len(set(given)) < max(2, len(given)):
        raise ValueError(f"To judge takes at least two different seeds, five as a rule; got {given}.")
    if tuning_seed in given:
        raise ValueError(
            f"Seed {tuning_seed} is the one that the search has chosen by, so it would flatter. Take others, range(5)."
        )
    return given


def _random_search(found: Found, workers: int, progress: bool) -> Found:
    """Random search with whole trials, at the cost of the search.

    Beside a search that was at random itself it has draws of its own, and a name of its own in the storage: there an
    older kdlib may have left trials with the search's draws.
    """
    name, stream = (f"another {RANDOM}", "another ") if found.strategy.sampler == "random" else (RANDOM, "")
    strategy = replace(found.strategy, sampler="random", pruner=None, count=None, budget=found.cost, stream=stream)
    return search(
        found.task,
        found.space,
        strategy,
        found.limits,
        found.storage,
        workers=workers,
        progress=progress,
        name=name,
        latencies=found.latencies,
    )


def _run_all(found: Found, arms: Sequence[Arm], seeds: Sequence[int], workers: int, progress: bool) -> list[dict]:
    """Train every arm with every seed; rows that an earlier call has left are taken as they are."""
    with (
        open_storage(found.storage) as (store, _),
        scratch_folder(found.storage) as cache,
        open_runners(found.task, cache, workers) as runners,
        tqdm(total=len(arms) * len(seeds), desc="judge", unit="run", disable=not progress) as bar,
    ):
        study = load_optuna().create_study(study_name="judged", storage=store, load_if_exists=True)
        done = Stored(study, found.task.data.test.fingerprint)
        rows = []
        for seed in seeds:
            missing = [arm for arm in arms if done.find(arm, seed) is None]
            if missing:
                prepare(found.task, cache, runners, seed)
                _train(missing, seed, runners, done, bar)
                for runner in runners:  # Windows removes no mapped file; what other processes map goes with `cache`
                    if isinstance(runner, TaskRunner):
                        runner.close()
                shutil.rmtree(outputs_folder(cache, found.task, seed), ignore_errors=True)
            bar.update(len(arms) - len(missing))
            rows += [{"arm": arm.name, "seed": seed, **(done.find(arm, seed) or {})} for arm in arms]
    return rows


class Stored:
    """The judging runs in the storage of a search, by what was trained, and by the test set that judged it."""

    def __init__(self, study: Any, test: str) -> None:
        """study: optuna's. test: the fingerprint of the test set."""
        self.study, self.test = study, test

    def find(self, arm: Arm, seed: int) -> Mapping[str, Any] | None:
        """The result of a run; None if it has not been made."""
        return self.study.user_attrs.get(self._key(arm, seed))

    def add(self, arm: Arm, seed: int, result: Mapping[str, Any]) -> None:
        """Keep the result of a run."""
        self.study.set_user_attr(self._key(arm, seed), dict(result))

    def _key(self, arm: Arm, seed: int) -> str:
        # By the setting and not by the arm: a search with more trials may find another one.
        return f"seed {seed}, {fingerprint([], arm.student, asdict(arm.settings), self.test)[:16]}"


def _train(arms: Sequence[Arm], seed: int, runners: list[Runner], done: Stored, bar: tqdm) -> None:
    """Train these arms, as many at a time as there are runners, and keep what came of them."""
    free: SimpleQueue[Runner] = SimpleQueue()
    for runner in runners:
        free.put(runner)

    def train(arm: Arm) -> dict[str, Any]:
        runner = free.get()
        try:
            return asdict(runner.run(arm.student, arm.settings, seed, test=True))
        finally:
            free.put(runner)

    if len(runners) == 1:
        for arm in arms:
            done.add(arm, seed, train(arm))  # in this thread, where Ctrl-C arrives
            bar.update()
        return
    with ThreadPoolExecutor(len(runners)) as executor:
        pending: dict[Future[dict[str, Any]], Arm] = {}
        try:
            pending = {executor.submit(train, arm): arm for arm in arms}
            while pending:
                for future in first_completed(pending):
                    done.add(pending[future], seed, future.result())
                    del pending[future]
                    bar.update()
        except BaseException as error:  # Ctrl-C, or a worker that was killed: what has not begun is not waited for
            executor.shutdown(wait=False, cancel_futures=True)
            for runner in runners:
                if isinstance(runner, RemoteRunner):
                    runner.end()  # its thread waits for it
            if isinstance(error, KeyboardInterrupt):  # which may come while an arm ends: what is trained is kept
                for future, arm in pending.items():
                    if future.done() and not future.cancelled() and future.exception() is None:
                        done.add(arm, seed, future.result())
            raise
