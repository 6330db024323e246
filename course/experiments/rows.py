"""What the experiments' files of rows share: how rows are made where they are missing, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from course.workers import in_processes
from kdlib.study.runs_file import RunsFile, SessionLog, library_versions, to_text
from kdlib.workers import threads_of_a_worker

Item = TypeVar("Item")
Row = dict[str, Any]


def versions() -> dict[str, str]:
    """The columns that say which kdlib and which torch a row comes from."""
    return {name: version for name, version in library_versions().items() if name in ("kdlib", "torch")}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of right answers, in double precision: in float32 0.8036 is 0.803600013."""
    return (logits.argmax(dim=1) == labels).double().mean().item()


def score(row: Row) -> float:
    """The accuracy of a new row: on the test images, else on the validation split; nan where training diverged."""
    for name in ("test_accuracy", "validation_accuracy"):
        if name in row:
            return float(row[name])
    return math.nan


def make_missing(
    file: RunsFile,
    missing: Sequence[Item],
    make: Callable[[Item], Row],
    describe: Callable[[Item, Row], str],
    command: str,
    log: Callable[[str], object],
    *,
    workers: int | None = None,
) -> None:
    """Make a row for each item, append it to the open file as soon as it is there, note the session, and log a line.

    describe: that line. workers: processes at a time, for experiments that have a choice; in more than one, `make` must
    be a function that pickle takes.
    """
    if not missing:
        return
    session = SessionLog(file.path, command, len(file.rows))
    if workers is not None:
        session.facts["workers"] = workers
    made: Iterator[tuple[Item, Row]]
    if workers is None or workers == 1:
        made = ((one, make(one)) for one in missing)
    else:
        made = in_processes(make, missing, workers, threads=threads_of_a_worker(workers))
    for one, row in made:
        file.append(row)
        session.write(len(file.rows))
        log(describe(one, row))


def refuse_other_budget(
    file: RunsFile,
    budget: Mapping[str, Any],
    advice: str = "Give the same options, or choose another folder with --out.",
) -> None:
    """Raise ValueError for a file that has a row of another budget.

    budget: its columns. advice: what to do, where it cannot be chosen by options.
    """
    for row in file.rows:
        differ = [name for name, value in budget.items() if row[name] != to_text(value)]
        if differ:
            raise ValueError(
                f"{file.path} holds runs with {', '.join(f'{name} {row[name]}' for name in differ)}: runs in one file "
                f"share one budget. {advice}"
            )


def refuse_diverged(name: str, diverged: Mapping[int, str]) -> None:
    """Raise ValueError, with seeds and error, where there are any: to judge by the others would be to choose seeds.

    name: of what was trained, as the sentence begins. diverged: errors by seed.
    """
    if diverged:
        seeds = f"seed{'s' * (len(diverged) > 1)} {', '.join(map(str, diverged))}"
        raise ValueError(
            f"{name} diverged at {seeds}: {next(iter(diverged.values())).rstrip('.') or 'no error noted'}. The other "
            "seeds alone give no mean and no verdict. Run all of its seeds anew, with a smaller learning rate."
        )


def refuse_twice(name: str, seeds: Sequence[int]) -> None:
    """Raise ValueError where a seed is there twice, as after a row was lost and made anew with another setting."""
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(
            f"{name} has more than one row for seed {twice[0]}, perhaps with different settings. Keep one of them in "
            "the file, or run all of its seeds anew."
        )
