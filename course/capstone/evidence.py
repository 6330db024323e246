"""The files that the commands of the capstone have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course.capstone.document import Report

if TYPE_CHECKING:
    from kdlib.study.analysis import Results

ROLES = ("student", "teacher")
CONTROLS = ("label-smoothing", "shuffled", "untrained", "own-size")  # methods of the study that should teach nothing


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    results: the rows of the study. commands: those of its sessions. other_studies: files of methods beside it, on the
    same data. test_images: of the study, None where the answers of its runs were not kept. student: report.json of
    `kdlib distill`; export: report.json of `kdlib export`; cost: the file of `course.capstone cost`.
    """

    results: Results
    commands: tuple[str, ...]
    other_studies: tuple[str, ...]
    test_images: int | None
    has_trials: bool
    student: Mapping[str, Any]
    export: Mapping[str, Any]
    cost: Mapping[str, Any]

    @property
    def controls(self) -> list[str]:
        """The controls among the methods."""
        return [name for name in self.results.methods if name in CONTROLS]

    @property
    def names(self) -> list[str]:
        """All methods, hard labels first."""
        return [self.results.baseline, *self.results.methods]


def read_evidence(report: Report) -> Evidence:
    """Read the files that a report names; ValueError or OSError, with the file, for one that cannot be used."""
    return collect(*(report.file(name) for name in ("study", "student", "export", "cost")))


def collect(study: Path, student: Path, export: Path, cost: Path) -> Evidence:
    """Read the four files; ValueError or OSError, with the file, for one that cannot be used."""
    results, sessions = load_study(study), _sessions(study)
    trials = study.with_name(study.name.replace("methods-", "choose-", 1))
    return Evidence(
        results,
        tuple(dict.fromkeys(session.get("command", "") for session in sessions)),
        tuple(_other_studies(study, results.budget["data"])),
        _test_images(study),
        trials.is_file(),
        _read_json(student, ("job", *(f"{role}_{what}" for role in ROLES for what in ("accuracy", "parameters")))),
        _read_json(export, ("split", "formats")),
        _read_json(cost, ("teacher", "student", "machine")),
    )


def load_study(path: Path) -> Results:
    """The results in a file of `kdlib study`; ValueError or OSError for what is none."""
    from kdlib.study.analysis import load
    from kdlib.study.runs_file import read_rows

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. The report names the CSV file that kdlib study has written.")
    rows = read_rows(path)
    if not rows or not {"student", "teacher", "images", "optimizer", "method"} <= set(rows[0]):
        raise ValueError(f"{path} holds no finished runs of kdlib study.")
    first = rows[0]
    results = load(
        "methods",
        student=first["student"],
        teacher=first["teacher"],
        images=int(first["images"]),
        optimizer=first["optimizer"],
        folder=path.parent,
    )
    if results.sources[0].name != path.name:
        raise ValueError(f"{path} was renamed: its rows belong to {results.sources[0].name}. Give it that name again.")
    return results


def _sessions(study: Path) -> list[dict[str, Any]]:
    from kdlib.study.runs_file import read_sessions

    sessions = read_sessions(study)
    if not sessions:
        raise ValueError(f"{study.with_suffix('.json')} is missing: it says by which command the runs came about.")
    return sessions


def _other_studies(study: Path, data: str) -> list[str]:
    """Further files of methods in the folder whose runs are on the same data."""
    from kdlib.study.runs_file import read_rows

    others = (path for path in sorted(study.parent.glob("methods-*.csv")) if path.name != study.name)
    return [path.name for path in others if any(row.get("data") == data for row in read_rows(path))]


def _test_images(study: Path) -> int | None:
    from kdlib.study.predictions import LABELS, PredictionsFile

    labels = PredictionsFile(study).predicted(LABELS)
    return None if labels is None else len(labels)


def _read_json(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    """A JSON file with these entries at least."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path}, which the report names.") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}).") from error
    missing = [name for name in needed if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: it is not the file that the report needs there.")
    return content
