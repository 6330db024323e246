"""Three trained detectors that come with the course: a teacher, and two students of the experiment's seed 0.

    teacher = shipped.load("teacher")

The students have the same initial weights, scenes and order; one learned from the labels alone, the other also from the
teacher's heat map. They are trained anew, with the settings of the experiment's rows, by

    python -m course.detection.shipped --cache runs/detection
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import astuple, fields
from pathlib import Path

import torch

from course.detection.detector import Detector
from course.detection.experiment import Budget, Run, evaluate, train_student, trained_teacher
from course.detection.gains import read
from kdlib import files
from kdlib.data import data_dir
from kdlib.errors import exit_in_a_sentence, unknown_name

STUDENTS = {"hard labels": "hard", "distilled": "heat map"}  # by the method of each
NAMES = ("teacher", *STUDENTS)


def default_folder() -> Path:
    """Where they are: data/detectors."""
    return data_dir() / "detectors"


def path_of(name: str, folder: Path | None = None) -> Path:
    """The file of a detector; ValueError for a name that is not in NAMES."""
    if name not in NAMES:
        raise unknown_name("detector", name, NAMES)
    return (folder or default_folder()) / f"{name.replace(' ', '-')}.safetensors"


def load(name: str, folder: Path | None = None) -> Detector:
    """One of NAMES, in eval mode. Raises ValueError for another name or a damaged file, FileNotFoundError for none."""
    path = path_of(name, folder)
    tensors, metadata = files.load_tensors(path)
    try:
        model = Detector(metadata.get("width"))  # type: ignore[arg-type]  # which refuses what is no whole number
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold a detector of its width. Restore that file alone: git checkout -- '{path}'."
        ) from error
    return model.eval()


def store(budget: Budget, rows: list[dict[str, str]], cache: Path, folder: Path) -> None:
    """Train the two students as seed 0 of the rows says, and write them and the teacher in half precision.

    Raises ValueError where the rows hold no such run.
    """
    teacher = trained_teacher(budget, cache)
    _save(path_of("teacher", folder), teacher.model, budget.teacher_width, {"test": astuple(teacher.test)})
    for name, method in STUDENTS.items():
        run = _run_of_seed_0(rows, method)
        model = train_student(budget, run, teacher).student
        test = evaluate(model, budget.draw("test"))
        _save(path_of(name, folder), model, budget.student_width, {"run": astuple(run), "test": astuple(test)})
        print(f"{name}: AP50 {test.ap50:.1%} on the test scenes", flush=True)


def _run_of_seed_0(rows: list[dict[str, str]], method: str) -> Run:
    found = [row for row in rows if row["method"] == method and row["seed"] == "0"]
    if not found:
        raise ValueError(f"The rows hold no run of {method!r} with seed 0: run python -m course.detection first.")
    numbers = {field.name: _number(found[0], field.name) for field in fields(Run)[2:]}
    return Run(method, 0, **{name: value for name, value in numbers.items() if value is not None})


def _number(row: Mapping[str, str], name: str) -> float | None:
    return float(row[name]) if row[name] else None


def _save(path: Path, model: torch.nn.Module, width: int, facts: Mapping[str, object]) -> None:
    halves = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.save_tensors(path, halves, {"width": width, **facts})


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser("python -m course.detection.shipped", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("runs/detection"), help="where the teacher is, or comes to")
    parser.add_argument("--results", type=Path, help="folder of the experiment's rows; default: data/results")
    parser.add_argument("--out", type=Path, help="default: data/detectors")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the experiment's workers: another count gives other weights
    with exit_in_a_sentence():
        store(Budget(), read(folder=options.results), options.cache, options.out or default_folder())


if __name__ == "__main__":
    main()
