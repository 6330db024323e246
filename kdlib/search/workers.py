"""Several trainings at a time, each in a process of its own, in an order that does not depend on how fast they are."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from kdlib import devices
from kdlib.search.task import Outcome, Report, Task, TaskRunner
from kdlib.study.method_specs import Settings
from kdlib.workers import share_cores, start_worker, threads_of_a_worker

SECONDS_TO_END = 10


class Runner(Protocol):
    """Trains students: `TaskRunner` in this process, `RemoteRunner` in another."""

    def run(
        self,
        student: str,
        settings: Settings,
        seed: int,
        *,
        reports: Collection[int] = (),
        report: Report | None = None,
        test: bool = False,
    ) -> Outcome:
        """As `TaskRunner.run`."""
        ...


class Turns:
    """Lets threads act one at a time, by a clock of their own: what they have trained so far.

    Which trial a search tries next depends on what it knows by then. With wall clocks that would be another thing on
    every run; here a thread acts only when no other one can act at an earlier time, so it always is the same.
    (This is a conservative simulation of events, Chandy and Misra 1979. It costs little where trainings go as their
    clocks say: a thread waits only for those that are behind.)
    """

    def __init__(self, clocks: Sequence[float]) -> None:
        self._next = dict(enumerate(clocks))
        self._changed = threading.Condition()
        self._aborted = False

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait for this thread's turn, and hold it inside the block; ChildProcessError if another one failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._is_next(number))
            if self._aborted:
                raise ChildProcessError("Another training of this search has failed.")
            yield
            self._changed.notify_all()

    def _is_next(self, number: int) -> bool:
        return min(self._next, key=lambda one: (self._next[one], one)) == number

    def clock(self, number: int) -> float:
        """The time of a thread's present or next turn."""
        return self._next[number]

    def set_clock(self, number: int, time: float) -> None:
        """Say when a thread acts next; called in its turn."""
        self._next[number] = time

    def leave(self, number: int) -> None:
        """Nobody waits for this thread any more; called in its turn."""
        del self._next[number]

    def abort(self) -> None:
        """End all waiting."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()


class RemoteRunner:
    """A `TaskRunner` in a process of its own, the one of this number among so many.

    Raises ChildProcessError when that process ends.
    """

    def __init__(self, task: bytes, cache: Path, threads: int, number: int, workers: int) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._connection, other = context.Pipe()
        # No daemon: these may start no processes, and images of a folder are decoded by some.
        self.process: BaseProcess = context.Process(target=_serve, args=(other, cache, threads, number, workers))
        self.process.start()
        try:
            other.close()  # so that the end of the process is the end of the connection
            with _explain_its_end():
                self._connection.send_bytes(task)
        except BaseException:  # Ctrl-C too, which may reach this process alone: nobody else knows of the other one yet
            self.end()
            raise

    def run(
        self,
        student: str,
        settings: Settings,
        seed: int,
        *,
        reports: Collection[int] = (),
        report: Report | None = None,
        test: bool = False,
    ) -> Outcome:
        """As `TaskRunner.run`; `report` is called in this process."""
        with _explain_its_end():
            self._connection.send((student, settings, seed, tuple(reports) if report else (), test))
            while True:
                kind, value = self._connection.recv()
                if kind == "report" and report is not None:
                    self._connection.send(report(*value))
                elif kind == "error":
                    raise value
                else:
                    return value

    def end(self, *, now: bool = True) -> None:
        """End the process, whatever it does; or, if it has nothing to do, let it end by itself."""
        if not now:
            with suppress(OSError):
                self._connection.send(None)
            self.process.join(SECONDS_TO_END)
        self.process.terminate()
        self.process.join()
        self._connection.close()


@contextmanager
def _explain_its_end() -> Iterator[None]:
    """ChildProcessError, with what to do, where the process at the other end of a connection has ended."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise ChildProcessError(
            "A process of the search has ended, perhaps because memory ran out. Finished trials are kept: start "
            "the same search again (without --overwrite), with fewer workers if it happens once more."
        ) from error


def _cannot_be_sent(error: Exception) -> ValueError:
    return ValueError(
        f"This teacher or these data cannot be sent to other processes ({error}). Take workers=1, or define their "
        "classes and functions in a module."
    )


@contextmanager
def open_runners(task: Task, cache: Path, workers: int) -> Iterator[list[Runner]]:
    """As many runners as workers; one works in this process, with all of its threads.

    Several share threads and cores, and take one GPU after the other unless the task's device has a number.
    Raises ValueError for a task that cannot be sent to another process.
    """
    if workers == 1:
        with closing(TaskRunner(task, cache)) as here:
            yield [here]
        return
    try:
        packed = pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise _cannot_be_sent(error) from error
    runners: list[RemoteRunner] = []
    threads = threads_of_a_worker(workers)
    try:
        for number in range(workers):
            runners.append(RemoteRunner(packed, cache, threads, number, workers))
        del packed  # it holds all images and the teacher, and this frame stays until the search has ended
        yield list(runners)
        for runner in runners:
            runner.end(now=False)
    finally:
        for runner in runners:
            runner.end()


def _serve(connection: Connection, cache: Path, threads: int, number: int, workers: int) -> None:
    """What a process of the search does: it trains what it is sent."""
    start_worker(threads)
    try:
        task = pickle.loads(connection.recv_bytes())  # from the process that has started this one
    except Exception as error:  # a class of a notebook's cell is in no module, which only its reader notices
        connection.recv()
        connection.send(("error", _cannot_be_sent(error)))
        return
    devices.take_gpu(task.device, number)
    runner = TaskRunner(replace(task, data=share_cores(task.data, workers)), cache)

    def report(epoch: int, accuracy: float) -> bool:
        connection.send(("report", (epoch, accuracy)))
        return connection.recv()

    while True:
        job = connection.recv()
        if job is None:
            return
        student, settings, seed, reports, test = job
        try:
            outcome: Any = ("outcome", runner.run(student, settings, seed, reports=reports, report=report, test=test))
        except Exception as error:
            outcome = ("error", error)
        connection.send(outcome)
