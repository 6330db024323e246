"""The study behind every number the lessons quote: which runs there are, and each run as a row of a CSV file.

    results = study.results("methods", student="resnet8", images=10_000)
    print(results.gain("kd"))

entries   the methods, their hyper-parameters and the trials by which these are chosen: a table
grid      which runs make up a study
rows      CSV files that survive a kill, and the JSON file beside each that says how it came about
bench     one run: data, teachers, a student, a row
workers   several runs at a time, each in a process of its own
choose    hyper-parameters by trials on the validation split, equally many for each method
run       a whole study: go on with what is missing
findings  what finished rows say: accuracies, gains with verdicts, the gap recovered, costs
stored    the files of a budget, read and checked
readme    the table of runs in data/results/README.md
command   `kdlib study` and `python -m kdlib.study`
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdlib.study.findings import Results

__all__ = ["results"]


def results(
    kind: str = "methods",
    *,
    student: str = "resnet8",
    teacher: str = "resnet20-fashion",
    images: int = 10_000,
    left_out: int | None = None,
    baseline: str = "hard",
    folder: str | Path | None = None,
) -> Results:
    """What the study of this kind and budget has found, for lessons: see `findings.Results`.

    kind: "methods", "grid" or "missing-class"; the grid takes its hard labels from the methods of the same budget.
    left_out: the class that was never seen, if the file has several. folder: default data/results.
    Raises FileNotFoundError, with the command that makes the file; ValueError for rows that do not belong together,
    and for a baseline that is not there.
    """
    from kdlib.study.stored import load  # reading needs torch; the command's help does not

    return load(
        kind, student=student, teacher=teacher, images=images, left_out=left_out, baseline=baseline, folder=folder
    )
