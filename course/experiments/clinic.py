"""The patients of lesson 15, each as it came and as it should be, and the same student on hard labels alone.

    python -m course.experiments.clinic

Ten seeds; the accuracy is that of 2,000 validation pictures of Fashion-MNIST, which choose nothing here. A run takes
half a second. The rows are data/results/clinic.csv; stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from course import clinic
from course.clinic import ward
from course.experiments.command import called, run_command
from course.experiments.rows import make_missing
from kdlib import verdict
from kdlib.data import data_dir
from kdlib.errors import check_whole
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, read_rows

CAME, CURED, CONTROL = "as it came", "cured", "hard labels"
COLUMNS = ("patient", "arm", "seed", "accuracy", "teacher_before", "teacher_after", "largest_term", "seconds", "torch")
STATES = (CAME, CURED, CONTROL)


def path_in(folder: Path) -> Path:
    """Where the rows are."""
    return folder / "clinic.csv"


def run(number: int, arm: str, seed: int) -> dict[str, Any]:
    """One training as a row."""
    started, one = time.perf_counter(), clinic.patient(number)
    course = one.control(seed) if arm == CONTROL else one.course(seed, cured=arm == CURED)
    return {
        "patient": number,
        "arm": arm,
        "seed": seed,
        "accuracy": course.accuracies[-1],
        "teacher_before": ward.accuracy(ward.new_teacher()),
        "teacher_after": course.teacher[-1] if course.teacher else "",
        "largest_term": max(abs(values[-1]) for values in course.terms.values()),
        "seconds": time.perf_counter() - started,
        "torch": torch.__version__,
    }


def arms(number: int) -> tuple[str, ...]:
    """Those of one patient; a healthy one has nothing to cure."""
    return STATES if clinic.CASES[number].faults else (CAME, CONTROL)


def make(
    out: Path, seeds: int, command: str, log: Callable[[str], object] = print, numbers: tuple[int, ...] = ()
) -> list[dict[str, str]]:
    """Run what is missing and return all rows; numbers: default, all patients."""
    check_whole(1, 1000, seeds=seeds)
    with RunsFile(path_in(out), COLUMNS, log).open() as file:
        done = {(row["patient"], row["arm"], row["seed"]) for row in file.rows}
        wanted = [(n, arm, seed) for seed in range(seeds) for n in numbers or tuple(clinic.CASES) for arm in arms(n)]
        missing = [one for one in wanted if tuple(map(str, one)) not in done]
        make_missing(file, missing, lambda one: run(*one), _describe, command, log)
        rows = file.rows
    update_readme(out)
    return rows


def _describe(one: tuple[int, str, int], row: dict[str, Any]) -> str:
    number, arm, seed = one
    return f"patient {number}, {arm}, seed {seed}: {row['accuracy']:.1%} in {row['seconds']:.1f} s"


# -------------------- what the rows say


@dataclass(frozen=True)
class Effect:
    """One patient. Accuracies are means over seeds in per cent, comparisons in points and paired by seed.

    harm: as it came, minus cured; None for the healthy one. gain: as it came, minus hard labels alone.
    """

    patient: int
    came: float
    cured: float
    control: float
    harm: verdict.Comparison | None
    gain: verdict.Comparison

    def __str__(self) -> str:
        parts = [f"patient {self.patient:2}: {self.came:.1f} %"]
        if self.harm is not None:
            parts.append(f"cured {self.cured:.1f} %, {_points(self.harm)}")
        return ", ".join([*parts, f"hard labels {self.control:.1f} %"])


def _points(found: verdict.Comparison) -> str:
    words = {"BEATS": "the fault helps", "LOSES": "the fault harms"}
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f}) {words.get(found.verdict, 'inconclusive')}"


def effects(rows: list[dict[str, str]]) -> list[Effect]:
    """All patients; the intervals of all faults hold together with 95 % confidence, and so do all gains."""
    found: dict[tuple[int, str], dict[int, float]] = {}
    for row in rows:
        found.setdefault((int(row["patient"]), row["arm"]), {})[int(row["seed"])] = 100 * float(row["accuracy"])
    made = []
    sick, all_patients = sum(bool(case.faults) for case in clinic.CASES.values()), len(clinic.CASES)
    for number in sorted({number for number, _ in found}):
        healthy = (number, CURED) not in found
        sides = [found[number, CAME], found[number, CAME if healthy else CURED], found[number, CONTROL]]
        shared = sorted(set.intersection(*(set(side) for side in sides)))  # a stopped command leaves a seed half done
        came, cured, control = ({seed: side[seed] for seed in shared} for side in sides)
        harm = None if healthy else verdict.compare(came, cured, comparisons=sick, same_unit=True)
        gain = verdict.compare(came, control, comparisons=all_patients, same_unit=True)
        made.append(Effect(number, _mean(came), _mean(cured), _mean(control), harm, gain))
    return made


def _mean(accuracies: dict[int, float]) -> float:
    return sum(accuracies.values()) / len(accuracies)


@lru_cache(maxsize=1)
def load() -> list[Effect]:
    """What the shipped rows say."""
    return effects(read_rows(path_in(data_dir() / "results"), COLUMNS))


# -------------------- the command


def experiment(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ... Give more to add some.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
) -> None:
    """Train the ten patients as they came and as they should be.

    Stopped at any moment, the same command goes on with what is missing.
    """
    torch.set_num_threads(1)
    command = called("course.experiments.clinic")
    rows = make(out or data_dir() / "results", seeds, command, log=partial(print, flush=True))
    print("\n".join(map(str, effects(rows))))


if __name__ == "__main__":
    run_command(clinic=experiment)
