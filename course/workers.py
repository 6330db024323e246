"""Runs in several processes at a time. Whatever ends them, no process goes on, and what is finished is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from kdlib.workers import first_completed, process_pool, start_worker

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
    with process_pool(workers, start_worker, threads) as executor:
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
