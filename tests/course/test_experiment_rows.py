"""What the experiments' files of rows share: rows that are made where they are missing, budgets, and the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from course.experiments import clinic, modalities, several_teachers
from course.experiments.modalities import PAIRS, TEACHER
from course.experiments.rows import make_missing, refuse_other_budget, score
from course.experiments.several_common import Outcome, Part, Setting, Way
from kdlib.study.report import GAINS_MARKER, RUNS_MARKER
from kdlib.study.runs_file import RunsFile

COLUMNS = ("name", "images", "test_accuracy", "error")


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """A README with places for both tables."""
    path = tmp_path / "README.md"
    path.write_text("\n".join([RUNS_MARKER, RUNS_MARKER, GAINS_MARKER, GAINS_MARKER]))
    return path


def test_rows_are_kept_as_they_are_made(tmp_path: Path) -> None:
    said: list[object] = []

    def make(name: str) -> dict[str, Any]:
        if name == "third":
            raise KeyboardInterrupt
        return {"name": name, "images": 10, **({"test_accuracy": 0.5} if name == "first" else {"error": "nan"})}

    with RunsFile(tmp_path / "some.csv", COLUMNS).open() as file:
        make_missing(file, [], make, str, "nothing", said.append)
        assert not (tmp_path / "some.json").exists()  # no session without a row
        with pytest.raises(KeyboardInterrupt):
            make_missing(
                file,
                ["first", "second", "third"],
                make,
                lambda name, row: f"{name}: {score(row):.1%}",
                "the command",
                said.append,
                workers=1,
            )
        assert [row["name"] for row in file.rows] == ["first", "second"]
        refuse_other_budget(file, {"images": 10})
        with pytest.raises(ValueError, match="holds runs with images 10: runs in one file share one budget. Do this."):
            refuse_other_budget(file, {"images": 20}, "Do this.")
    assert said == ["first: 50.0%", "second: nan%"]
    facts = json.loads((tmp_path / "some.json").read_text())
    assert facts["workers"] == 1
    assert [(one["command"], one["rows"]) for one in facts["sessions"]] == [("the command", [1, 2])]


def test_the_clinic_and_the_modalities_bring_the_tables_up_to_date(
    readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_patient(number: int, arm: str, seed: int) -> dict[str, Any]:
        return {"patient": number, "arm": arm, "seed": seed, "accuracy": 0.5, "seconds": 1.0}

    monkeypatch.setattr(clinic, "run", of_patient)
    clinic.make(tmp_path, 1, "the command of the clinic", log=lambda text: None, numbers=(5,))
    assert "the command of the clinic" in readme.read_text()

    monkeypatch.setattr(modalities, "_work", lambda grid: [(PAIRS[2], TEACHER)])
    monkeypatch.setattr(
        modalities,
        "execute",
        lambda arm, pair, split, rates: modalities.key_of(arm, pair, split) | {"test_accuracy": 0.5, "seconds": 1.0},
    )
    modalities.run_all(tmp_path, "the command of the modalities", splits=1, log=lambda text: None)
    assert "the command of the modalities" in readme.read_text()


def test_rows_hold_accuracies_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    class Split:
        labels = torch.zeros(10, dtype=torch.long)

    class Images:
        test = validation = Split

    right = 7
    logits = torch.zeros(10, 2)
    logits[right:, 1] = 1
    monkeypatch.setattr(several_teachers, "fashion", Images)
    monkeypatch.setattr(several_teachers, "logits_of", lambda *_: logits)
    way = Way(lambda *_: Outcome([torch.nn.Identity()], lambda split: logits), (Setting(0.1),))
    part = Part("own", 10, 1, 1, {"way": way})
    row = several_teachers.execute(several_teachers.Run("way", 0, Setting(0.1)), part, {}, test=True)
    assert (row["test_accuracy"], row["teacher_accuracy"]) == (0.7, 0.7)
