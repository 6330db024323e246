"""The study behind every number the lessons quote: which runs there are, and each run as a row of a CSV file.

    results = study.results("methods", student="resnet8", images=10_000)
    print(results.gain("kd"))

method_specs  the methods: their losses, and where their settings are searched for
search_space  ranges of settings, and a sample that covers them
plans         which runs make up a study: trials that tune the settings, and the plans of runs
experiment    how runs are made: data, teachers, a student, a row; several at a time
runs_file     CSV files that survive a kill, and the JSON file beside each that says how it came about
history       what each run measured after each epoch, beside its CSV file
predictions   what each run's student answered for each test image, beside its CSV file
runner        a whole study: go on with what is missing, plan it, repeat one run
analysis      what finished runs say: accuracies, gains with verdicts, the gap recovered, costs
report        the tables in data/results/README.md
command       `kdlib study` and `python -m kdlib.study`
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdlib.study.analysis import Results

__all__ = ["results"]


def results(
    kind: str = "methods",
    *,
    student: str = "resnet8",
    teacher: str = "resnet20-fashion",
    images: int = 10_000,
    optimizer: str = "sgd",
    excluded_class: int | None = None,
    baseline: str = "hard",
    folder: str | Path | None = None,
) -> Results:
    """What the study of this kind and budget has found, for lessons: see `analysis.Results`.

    kind: "methods", "grid" or "missing-class"; the grid takes its hard labels from the methods of the same budget.
    excluded_class: the class that was never seen, if the file has several. folder: default data/results.
    Raises FileNotFoundError, with the command that makes the file; ValueError for rows that do not belong together,
    and for a baseline that is not there.
    """
    from kdlib.study.analysis import load  # reading needs torch; the command's help does not

    return load(
        kind,
        student=student,
        teacher=teacher,
        images=images,
        optimizer=optimizer,
        excluded_class=excluded_class,
        baseline=baseline,
        folder=folder,
    )
