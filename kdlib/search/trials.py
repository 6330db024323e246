"""The trials of one search, as optuna keeps them: which comes next, what was reported, which is the best.

A trial is in one of five states: complete; pruned, stopped early by Hyperband; diverged; infeasible, its network beyond
a limit and never trained; or running. To optuna a diverged trial is a pruned one with a violated constraint, and so is
an infeasible one: the sampler learns from both where not to look, whatever a trial reported before it diverged.

Each trial has a sampler of its own, seeded by the search's seed and the trial's number. So nothing of the sampler has
to be stored, and a search that was killed goes on with the trials that it would have had, but for a kill in one of two
instants. Between a report and the pruner's answer: that trial goes on to its next report. Between two of the settings
that a trial is given: those that are not stored yet are drawn as the first ones were.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdlib import files
from kdlib.search.limits import CostTable, Limits
from kdlib.search.space import Params, Space, student_of, suggest
from kdlib.search.storage import load_optuna
from kdlib.search.task import Outcome

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

SAMPLERS = ("tpe", "random")
PRUNERS = ("hyperband",)
REDUCTION = 3  # of Hyperband: a third goes on
STARTUP_TRIALS = 5  # at random, before TPE; optuna's own 10 would use up most of a short search
MOST_INFEASIBLE = 2_000  # in a row
STALE_SECONDS = 24 * 3600  # after which a trial of another machine is taken for lost, and run by this one
ANY_SLOT = -1
COMPLETE, PRUNED, DIVERGED, INFEASIBLE, RUNNING = "complete", "pruned", "diverged", "infeasible", "running"


@dataclass(frozen=True)
class Strategy:
    """How trials are chosen and stopped. count: trials that are trained; budget: the cost after which none begins.

    A search has one of the two. seed: of the sampler, not of the trainings. stream: of two searches with the same
    sampler and seed, where they must not draw the same settings.
    """

    sampler: str
    pruner: str | None
    seed: int
    epochs: int
    count: int | None = None
    budget: float | None = None
    stream: str = ""

    def make_sampler(self, number: int) -> Any:
        """The sampler of the trial with this number."""
        samplers = load_optuna().samplers
        seed = zlib.crc32(f"{self.stream}{self.sampler} {self.seed} {number}".encode())
        if self.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=seed)

    def make_pruner(self) -> Any:
        """Hyperband (Li et al. 2018) over epochs, or nothing that prunes."""
        pruners = load_optuna().pruners
        if self.pruner is None:
            return pruners.NopPruner()
        return pruners.HyperbandPruner(min_resource=1, max_resource=self.epochs, reduction_factor=REDUCTION)

    @property
    def reports(self) -> tuple[int, ...]:
        """The epochs after which a trial may be stopped; at all others its accuracy would not be looked at."""
        if self.pruner is None:
            return ()
        found, epoch = [], 1
        while epoch < self.epochs:
            found.append(epoch)
            epoch *= REDUCTION
        return tuple(found)


@dataclass(frozen=True)
class Assignment:
    """A trial to be trained.

    epoch_cost: in epochs of the task's student. last_report: the last epoch that was reported.
    """

    trial: optuna.Trial
    student: str
    params: Params
    epoch_cost: float
    last_report: int = 0


def differences(before: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """In which settings an earlier search is another one than that with this identity, as far as both name them."""
    now = {name: value for name, value in json.loads(json.dumps(identity)).items() if name in before}
    return [f"{name} {before[name]} (now {value})" for name, value in now.items() if before[name] != value]


def check_identity(before: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> None:
    """Raise ValueError for a search that is another one than that which a storage holds; before: None for none."""
    if differ := differences(before or {}, identity):
        raise ValueError(
            f"The search in this place was made with {', '.join(differ)}. Give the same settings to go on with it, or "
            "choose another folder; where --storage was given, another storage."
        )


class Trials:
    """The trials of one search in a storage."""

    def __init__(
        self,
        name: str,
        storage: BaseStorage,
        strategy: Strategy,
        space: Space,
        student: str,
        costs: CostTable,
        limits: Limits,
        identity: Mapping[str, Any],
        *,
        shared: bool = False,
    ) -> None:
        """Open the study of this name, or begin it.

        identity: what makes it this search and no other; what a stored one differs in is named by a ValueError.
        shared: whether other machines work on it.
        """
        self._optuna = load_optuna()
        self.strategy, self.student = strategy, student
        self.costs, self.limits = costs, limits
        self._reference = costs[student].macs
        self.study = self._optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=strategy.make_sampler(0),
            pruner=strategy.make_pruner(),
            direction="maximize",
            load_if_exists=True,
        )
        if "identity" not in self.study.user_attrs:
            self.study.set_user_attr("identity", json.loads(json.dumps(identity)))
        check_identity(self.study.user_attrs["identity"], identity)
        # A sampler draws one setting after the other, so what it draws for each depends on their order.
        if "order" not in self.study.user_attrs:
            self.study.set_user_attr("order", list(space))
        self.space = {setting: space[setting] for setting in self.study.user_attrs["order"]}
        self._shared = shared
        self._interrupted: list[tuple[int, FrozenTrial]] = []  # with the slots that they had

    # --- one trial after the other

    def take(self, slot: int, clock: float) -> Assignment | None:
        """The next trial to train, None when there are enough.

        slot, clock: of the worker, kept with the trial so that a killed search can go on as it would have.
        """
        while (interrupted := self._take_interrupted(slot)) is not None:
            self.study.sampler = self.strategy.make_sampler(interrupted.number)
            trial = self._optuna.Trial(self.study, interrupted._trial_id)  # it keeps its number and what it was given
            if (assignment := self._assign(trial, slot, clock, interrupted.last_step or 0)) is not None:
                return assignment
        if not self._wants_more():
            return None
        for _ in range(MOST_INFEASIBLE):
            trial = self.study.ask()  # first: beside other machines only a trial that exists has a number of its own
            self.study.sampler = self.strategy.make_sampler(trial.number)
            if (assignment := self._assign(trial, slot, clock)) is not None:
                return assignment
        raise ValueError(
            f"{MOST_INFEASIBLE:,} networks in a row were beyond the limit. Allow more, or leave large ones out of the "
            "space."
        )

    def _assign(self, trial: optuna.Trial, slot: int, clock: float, last_report: int = 0) -> Assignment | None:
        """Settle what a trial trains; None, and the trial is closed, if its network is beyond a limit."""
        trial.set_user_attr("start", [slot, clock, time.time(), files.HOST, os.getpid()])
        params = suggest(trial, self.space)
        student = student_of(params, self.student)
        cost = self.costs[student]
        for name, violation in self.limits.violations(cost).items():
            if name not in trial.constraints:
                trial.set_constraint(name, violation)
        if not self.limits.allows(cost):
            self._tell(trial, INFEASIBLE, None, 0, 0.0)
            return None
        return Assignment(trial, student, params, cost.macs / self._reference, last_report)

    def report(self, assignment: Assignment, epoch: int, accuracy: float, seconds: float) -> bool:
        """Whether a trial goes on after its accuracy at an epoch; if not, it is closed."""
        trial = assignment.trial
        trial.report(accuracy, epoch)
        if trial.should_prune():
            self._tell(trial, PRUNED, None, epoch, seconds)
            return False
        return True

    def finish(self, assignment: Assignment, outcome: Outcome) -> None:
        """Record what a training gave; one that was stopped is recorded already."""
        if outcome.error:
            if DIVERGED not in assignment.trial.constraints:  # else a kill came between this line and the next
                assignment.trial.set_constraint(DIVERGED, 1.0)
            self._tell(assignment.trial, DIVERGED, None, outcome.epochs, outcome.seconds, outcome.error)
        elif outcome.validation_accuracy is not None:
            self._tell(assignment.trial, COMPLETE, outcome.validation_accuracy, outcome.epochs, outcome.seconds)

    def _tell(
        self, trial: optuna.Trial, state: str, value: float | None, epochs: int, seconds: float, error: str = ""
    ) -> None:
        trial.set_user_attr("result", {"state": state, "epochs": epochs, "seconds": seconds, "error": error})
        states = self._optuna.trial.TrialState
        self.study.tell(trial, value, state=states.COMPLETE if state == COMPLETE else states.PRUNED)

    # --- all trials

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a trial: its number, state, accuracy, network, costs, times and settings."""
        return [self._row(trial) for trial in self.study.get_trials(deepcopy=False)]

    def _row(self, trial: FrozenTrial) -> dict[str, Any]:
        result = trial.user_attrs.get("result", {})
        student = student_of(trial.params, self.student)
        cost = self.costs[student] if set(trial.params) >= set(self.space) else None
        epochs = result.get("epochs", trial.last_step or 0)
        return {
            "trial": trial.number,
            "state": result.get("state", RUNNING) if trial.state.is_finished() else RUNNING,
            "validation_accuracy": trial.value if result.get("state") == COMPLETE else None,
            "last_report": trial.intermediate_values[trial.last_step] if trial.last_step else None,
            "epochs": epochs,
            "cost": epochs * cost.macs / self._reference if cost else 0.0,
            "seconds": result.get("seconds", 0.0),
            "student": student,
            "macs": cost.macs if cost else None,
            "latency": cost.latency if cost else None,
            **trial.params,
            "error": result.get("error", ""),
        }

    def planned_cost(self) -> float:
        """What all trials cost, in epochs of the task's student, as if those that run went to their end."""
        return sum(self._planned_cost(row) for row in self.rows)

    def _planned_cost(self, row: Mapping[str, Any]) -> float:
        if row["state"] != RUNNING:
            return row["cost"]
        return self.strategy.epochs * (row["macs"] or self._reference) / self._reference

    def _wants_more(self) -> bool:
        if self.strategy.budget is not None:
            return self.planned_cost() < self.strategy.budget
        trained = sum(row["state"] != INFEASIBLE for row in self.rows)
        return trained < (self.strategy.count or 0)

    # --- going on after a kill

    def resume(self, workers: int) -> list[float]:
        """Find the trials that a kill has interrupted; for each worker the time at which it acts next."""
        clocks, used = [0.0] * workers, set()
        for trial in self.study.get_trials(deepcopy=False):
            slot, start = trial.user_attrs.get("start", [0, 0.0])[:2]
            finished = trial.state.is_finished()
            if slot < workers:
                used.add(slot)
                clocks[slot] = max(clocks[slot], start + (self._time_of(trial) if finished else 0.0))
            if not finished and not self._runs_elsewhere(trial):
                taken = {one for one, _ in self._interrupted}
                self._interrupted.append((slot if slot < workers and slot not in taken else ANY_SLOT, trial))
        # A worker that there was not before begins beside the others, who would wait for one that begins at 0.
        first = min((clocks[slot] for slot in used), default=0.0)
        return [clock if slot in used else first for slot, clock in enumerate(clocks)]

    def _time_of(self, trial: FrozenTrial) -> float:
        """For how long a finished trial had its worker, by the search's clock, to the same rounding."""
        row = self._row(trial)
        if row["state"] == INFEASIBLE:
            return 0.0
        epochs = row["epochs"]
        if row["state"] == DIVERGED:  # its end was seen at the turn of its next report, or of its last epoch
            later = (report for report in self.strategy.reports if report > (trial.last_step or 0))
            epochs = next(later, self.strategy.epochs)
        return row["macs"] / self._reference * epochs

    def _runs_elsewhere(self, trial: FrozenTrial) -> bool:
        """Whether a process that may still be alive trains it; without other machines, there is none but this one."""
        if not self._shared or "start" not in trial.user_attrs:
            return False
        _, _, started, host, process = trial.user_attrs["start"]
        # This process trains nothing when it begins: a notebook that was interrupted and called again.
        dead = host == files.HOST and (process == os.getpid() or not files.is_alive(process))
        return not dead and time.time() - started < STALE_SECONDS

    def _take_interrupted(self, slot: int) -> FrozenTrial | None:
        for one in (slot, ANY_SLOT):
            for pair in self._interrupted:
                if pair[0] == one:
                    self._interrupted.remove(pair)
                    return pair[1]
        return None
