"""Processes that work beside this one: what they share, how they are waited for, and that none of them goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch

from kdlib.data import DataModule, IndexedDataset, LazyDataset
from kdlib.data.datasets import num_cores

SPAWN = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork

T = TypeVar("T")


# --- in the process that starts others


def refuse_without_main_guard(call: str) -> None:
    """Raise RuntimeError in a process that is being started, and for this runs the user's script from its beginning.

    call: what the script has called.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            f"Each process that a script starts runs the script anew, as this one does. Put the call of {call} below a "
            'line `if __name__ == "__main__":`.'
        )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch inside the block: with another number sums are rounded differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_of_a_worker(num_workers: int) -> int:
    """Threads of torch that each of so many processes has: an equal share of those that this one has."""
    return max(1, torch.get_num_threads() // num_workers)


def share_cores(module: DataModule, num_workers: int) -> DataModule:
    """The data for one of so many processes, which share the cores that decode images: one each, at least."""
    most = max(1, num_cores() // num_workers - 1)

    def share(split: IndexedDataset) -> IndexedDataset:
        if not isinstance(split, LazyDataset):
            return split
        return replace(split, num_workers=min(split.num_workers, most))

    return replace(module, train=share(module.train), validation=share(module.validation), test=share(module.test))


@contextmanager
def process_pool(num_workers: int, start: Callable[..., object], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of so many processes, which end with the block; where an error or Ctrl-C ends it, amid what they do.

    start: called with the arguments in each process as it begins; it calls `start_worker`.
    """
    others = set(multiprocessing.active_children())  # processes of the caller, which are left alone
    executor = ProcessPoolExecutor(num_workers, mp_context=SPAWN, initializer=start, initargs=arguments)
    try:
        yield executor
        executor.shutdown()
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        executor.shutdown(cancel_futures=True)


def first_completed(futures: Collection[Future[T]]) -> set[Future[T]]:
    """Wait until one of these has ended, and return those that have; Ctrl-C ends the waiting."""
    while True:
        # Short waits: before Python 3.14, Windows holds Ctrl-C back until a wait has ended.
        done, _ = wait(futures, timeout=0.1, return_when=FIRST_COMPLETED)
        if done:
            return done


# --- in each of them


def start_worker(threads: int) -> None:
    """Let this process work with so many threads of torch, until the one that has started it ends it, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers
    exit_with_parent()
    torch.set_num_threads(threads)


def exit_with_parent() -> None:
    """Let this worker process end with the process that started it, even when that is killed."""
    threading.Thread(target=_wait_for_end_of_parent, daemon=True).start()


def _wait_for_end_of_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
