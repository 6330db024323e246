"""Several runs of one seed at a time, each in a process of its own.

Small networks gain little from several threads, and on a busy machine these mostly wait for each other. On two quiet
cores two processes of one thread trained as many students as one of two; with other work beside them, far more. Rows
are written by one process only, the one that was started.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kdlib.study.bench import Bench, Seat
from kdlib.study.entries import entry
from kdlib.study.grid import Budget, Cell

Row = dict[str, Any]


class Crew:
    """Runs the cells of a seat, `count` at a time; with one, in this process and with all of its threads."""

    def __init__(self, bench: Bench, count: int = 1) -> None:
        self.bench, self.count = bench, count
        self._pool: ProcessPoolExecutor | None = None

    @contextmanager
    def at_work(self) -> Iterator[Crew]:
        """The processes live inside the block; when it is left by an error or Ctrl-C, so do their unfinished runs."""
        if self.count == 1:
            yield self
            return
        threads = max(1, torch.get_num_threads() // self.count)
        others = set(multiprocessing.active_children())  # those of whoever called us are none of our business
        self._pool = ProcessPoolExecutor(
            self.count,
            mp_context=multiprocessing.get_context("spawn"),  # torch's threads do not survive a fork
            initializer=_begin,
            initargs=(self.bench.budget, self.bench.folder, threads),
        )
        try:
            yield self
            self._pool.shutdown()
        finally:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            self._pool.shutdown(cancel_futures=True)

    def rows(self, seat: Seat, cells: Sequence[Cell], *, test: bool) -> Iterator[tuple[Cell, Row]]:
        """Each cell with its row, as they are finished. Raises ChildProcessError when a process was killed."""
        if self._pool is None:
            for cell in cells:
                yield cell, seat.run(cell, test=test)
            return
        for kind in dict.fromkeys(entry(cell.entry).teacher for cell in cells):
            seat.teacher(kind)  # asked here once; the others find the answers on the disk
        place = (seat.seed, seat.left_out, seat.layers, seat.folder)
        try:
            futures: dict[Future[Row], Cell] = {self._pool.submit(_run, place, cell, test): cell for cell in cells}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "A process of the study was killed, perhaps for want of memory. Finished runs are kept: start the same "
                f"command again, with fewer than --workers {self.count} if it happens once more."
            ) from error


_bench: Bench | None = None
_seats: dict[Path, Seat] = {}


def _begin(budget: Budget, folder: Path, threads: int) -> None:
    """Set up a process of the crew."""
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the one that was started sees to the others
    threading.Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(threads)
    _bench = Bench(budget, folder)


def _follow() -> None:
    """End with the process that was started, even when it is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run(place: tuple[int, int | None, tuple[str, ...], Path], cell: Cell, test: bool) -> Row:
    folder = place[-1]
    if folder not in _seats:
        _seats.clear()  # the seeds before it are done
        _seats[folder] = Seat(_bench, *place)
    return _seats[folder].run(cell, test=test)
