"""The loop of a search: workers take trials, train them and record them, one worker or several."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm.auto import tqdm

from kdlib.search.space import settings_of
from kdlib.search.trials import COMPLETE, DIVERGED, INFEASIBLE, PRUNED, Assignment, Trials
from kdlib.search.workers import RemoteRunner, Runner, Turns
from kdlib.study.method_specs import MethodSpec
from kdlib.workers import first_completed


def work_off(trials: Trials, runners: list[Runner], bar: ProgressBar, spec: MethodSpec, seed: int) -> None:
    """Train all trials that are left. seed: of the trainings.

    Raises what a training raises; the others are then ended.
    """
    turns = Turns(trials.resume(len(runners)))
    bar.update()
    workers = [Worker(slot, runner, trials, turns, bar, spec, seed) for slot, runner in enumerate(runners)]
    if len(workers) == 1:
        workers[0].work()  # in this thread, where Ctrl-C arrives
        return
    with ThreadPoolExecutor(len(workers)) as executor:
        try:
            pending = {executor.submit(worker.work) for worker in workers}
            while pending:
                ended = first_completed(pending)
                pending -= ended
                for future in ended:
                    future.result()
        except BaseException:
            turns.abort()
            for runner in runners:
                if isinstance(runner, RemoteRunner):
                    runner.end()  # its thread waits for it
            raise


@dataclass
class Worker:
    """Takes a trial, trains it and records it, until there are enough. slot: its number among the workers."""

    slot: int
    runner: Runner
    trials: Trials
    turns: Turns
    bar: ProgressBar
    spec: MethodSpec
    seed: int

    def work(self) -> None:
        """All trials that fall to this worker."""
        while True:
            with self.turns.turn(self.slot):
                start = self.turns.clock(self.slot)
                assignment = self.trials.take(self.slot, start)
                if assignment is None:
                    self.turns.leave(self.slot)
                    return
                self._set_next(assignment, start, assignment.last_report)
            self._train(assignment, start)

    def _train(self, assignment: Assignment, start: float) -> None:
        began = time.perf_counter()

        def report(epoch: int, accuracy: float) -> bool:
            with self.turns.turn(self.slot):
                goes_on = self.trials.report(assignment, epoch, accuracy, time.perf_counter() - began)
                if goes_on:
                    self._set_next(assignment, start, epoch)
                return goes_on

        outcome = self.runner.run(
            assignment.student,
            settings_of(assignment.params, self.spec),
            self.seed,
            reports=self._reports(assignment.last_report),
            report=report,
        )
        with self.turns.turn(self.slot):
            self.trials.finish(assignment, outcome)
            self.bar.update()

    def _reports(self, epoch: int) -> list[int]:
        """The epochs after this one at which a trial may be stopped."""
        return [one for one in self.trials.strategy.reports if one > epoch]

    def _set_next(self, assignment: Assignment, start: float, epoch: int) -> None:
        """This worker acts next at the first report after this epoch, or at the end of the training."""
        acts = (self._reports(epoch) or [self.trials.strategy.epochs])[0]
        self.turns.set_clock(self.slot, start + assignment.epoch_cost * acts)


@dataclass
class ProgressBar:
    """How far a search is: trained trials or cost, the best so far, and how many were stopped."""

    bar: tqdm
    trials: Trials

    def update(self) -> None:
        """Show what there is now."""
        if self.bar.disable:
            return
        rows = self.trials.rows
        done = [row for row in rows if row["state"] in (COMPLETE, PRUNED, DIVERGED)]
        best = max((row["validation_accuracy"] for row in done if row["state"] == COMPLETE), default=None)
        by_cost = self.trials.strategy.budget is not None
        self.bar.n = min(round(sum(row["cost"] for row in done)), self.bar.total) if by_cost else len(done)
        counts = {state: sum(row["state"] == state for row in rows) for state in (PRUNED, DIVERGED, INFEASIBLE)}
        shown = {} if best is None else {"best": f"{best:.1%}"}
        self.bar.set_postfix({**shown, **{state: count for state, count in counts.items() if count}}, refresh=True)


@contextmanager
def progress_bar(trials: Trials, name: str, progress: bool) -> Iterator[ProgressBar]:
    """The bar of a search, in trials, or in epochs where its budget is one of epochs."""
    strategy = trials.strategy
    by_cost = strategy.budget is not None
    total = round(strategy.budget or 0) if by_cost else strategy.count
    unit = "epoch" if by_cost else "trial"
    with tqdm(total=total, desc=name, unit=unit, disable=not progress) as bar:
        yield ProgressBar(bar, trials)
