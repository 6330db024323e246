"""The one place that reads data/results for lessons and figures: the files of a budget, checked, as `Results`."""

from __future__ import annotations

from pathlib import Path

from kdlib import data as data_sets
from kdlib._messages import unknown
from kdlib.study.entries import HYPER
from kdlib.study.findings import Results
from kdlib.study.grid import Budget
from kdlib.study.rows import SHARED, authors, parse

COMMANDS = {"methods": "full", "grid": "grid", "missing-class": "missing-class"}  # which list makes which file
_TOLD = (
    "test_accuracy",
    "teacher_accuracy",
    "seconds_per_epoch",
    "extra_parameters",
    "place",
    "threads",
    "note",
    "chosen_on",
)
NEEDED = (*SHARED, "method", "entry", "seed", "left_out", *HYPER, *_TOLD)


def load(
    kind: str,
    *,
    student: str,
    teacher: str,
    images: int,
    left_out: int | None = None,
    baseline: str = "hard",
    folder: str | Path | None = None,
) -> Results:
    """Read the results of a budget; see `kdlib.study.results`."""
    if kind not in COMMANDS:
        raise unknown("kind of results", kind, COMMANDS)
    budget = Budget(student=student, teacher=teacher, images=images)
    folder = data_sets.folder() / "results" if folder is None else Path(folder)
    sources = [budget.file(kind, folder)]
    rows = _read(sources[0], kind, budget)
    if kind == "grid" and baseline == "hard":  # tuned as kd was, which alpha = 1 in the grid is not
        sources.append(budget.file("methods", folder))
        wanted = {("hard", row["seed"]) for row in rows}
        rows += [row for row in _read(sources[1], "methods", budget) if (row["method"], row["seed"]) in wanted]
    if kind == "missing-class":
        rows = _of_class(rows, left_out, sources[0])
    return Results(kind, tuple(rows), baseline, tuple(sources))


def _read(path: Path, kind: str, budget: Budget) -> list[dict[str, str]]:
    command = f"kdlib study {COMMANDS[kind]} --student {budget.student} --teacher {budget.teacher}"
    command += f" --images {budget.images}"
    if not path.is_file():
        others = sorted(one.name for one in path.parent.glob(f"{kind}-*.csv"))
        there = f" Of this kind there are: {', '.join(others)}." if others else ""
        raise FileNotFoundError(f"There is no file {path}.{there} This makes it, in hours: {command}")
    rows = parse(path.read_bytes(), None, path)
    if not rows:
        raise ValueError(f"{path} holds no finished run yet. This goes on with it: {command}")
    lacking = [name for name in NEEDED if name not in rows[0]]
    if lacking:
        raise ValueError(f"{path} has no column {', '.join(lacking)}: it is not a file of finished runs.")
    sessions = authors(path, len(rows))
    made_on = ["" if one is None else one.get("machine", {}).get("processor", "") for one in sessions]
    return [row | {"processor": name} for row, name in zip(rows, made_on, strict=True)]


def _of_class(rows: list[dict[str, str]], left_out: int | None, path: Path) -> list[dict[str, str]]:
    classes = sorted({int(row["left_out"]) for row in rows})
    if left_out is None and len(classes) == 1:
        left_out = classes[0]
    if left_out not in classes:
        raise ValueError(f"{path} leaves out classes {classes}: name one of them, as left_out={classes[0]}.")
    return [row for row in rows if int(row["left_out"]) == left_out]
