"""Runs in several processes at a time. Whatever ends them, no process goes on, and what is finished is kept."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

from kdlib.study.experiment import exit_with_parent, first_completed

Item = TypeVar("Item")
Row = TypeVar("Row")


def in_processes(
    function: Callable[[Item], Row], items: Iterable[Item], workers: int, *, threads: int = 1
) -> Iterator[tuple[Item, Row]]:
    """Yield each item with what the function makes of it in another process, in the order in which they end.

    workers: processes at a time. threads: of torch in each of them. At an error or Ctrl-C the items that have ended
    well are yielded first; then, and also when the loop is left, the processes are ended and nothing is begun any more.
    Raises what the function raises.
    """
    others = set(multiprocessing.active_children())  # processes of the caller, which are left alone
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    executor = ProcessPoolExecutor(workers, context, _start_worker, (threads,))
    try:
        running = {executor.submit(function, item): item for item in items}
        while running:
            try:
                finished = first_completed(running)
            except KeyboardInterrupt:  # which may come while a run ends
                for future in [one for one in running if one.done() and one.exception() is None]:
                    yield running[future], future.result()
                raise
            for future in sorted(finished, key=lambda one: one.exception() is not None):
                yield running.pop(future), future.result()
        executor.shutdown()
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        executor.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers
    exit_with_parent()
    torch.set_num_threads(threads)
