"""The detectors that come with the course, and what lesson 11 says of the rows of the experiment."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from course.detection import experiment, gains, scenes, shipped
from course.detection.detector import Detector, predict
from course.detection.experiment import Budget, Run
from kdlib import data

SMALL = Budget(
    4, 6, scenes=24, validation_scenes=8, test_scenes=8, epochs=1, batch_size=8, teacher_scenes=30, teacher_epochs=1
)
METHODS = {"hard": 0.0, "heat map": 0.06, "features": 0.001, "shuffled": -0.02}


def rows_of(seeds: int) -> list[dict[str, str]]:
    made = []
    for seed in range(seeds):
        for number, (method, gain) in enumerate(METHODS.items()):
            ap = 0.5 + 0.01 * seed + gain + 0.002 * ((seed * (number + 1)) % 5)
            row = {"method": method, "seed": str(seed), "test_ap50": str(ap), "test_ap75": str(ap), "test_ap": str(ap)}
            row |= {"learning_rate": "0.008", "weight_decay": "0.001", "alpha": "", "temperature": "", "focus": ""}
            row |= {"weight": "", "teacher_test_ap50": "0.8", "latency_ratio": "3.5", "test_scenes": "1000"}
            made.append(row | ({"alpha": "0.5", "temperature": "2.0", "focus": "1.0"} if method == "heat map" else {}))
    return made


# What the rows say.


def test_the_summary_counts_the_seeds_and_says_what_each_gained() -> None:
    text, strict = gains.summary(rows_of(5)).split("AP75")
    assert "1,000 test scenes, 5 seeds" in text
    (line,) = [line for line in text.splitlines() if line.startswith("heat map  ")]
    assert line.endswith("BEATS")
    assert " +6." in line
    (control,) = [line for line in text.splitlines() if line.startswith("heat map of other scenes")]
    assert control.endswith("LOSES")
    assert strict.count("BEATS") == text.count("BEATS")  # the rows have the same numbers there
    assert "3.5 times as long" in strict
    assert "3 seeds" in gains.summary(rows_of(3))


def test_a_seed_that_is_not_complete_does_not_count() -> None:
    rows = rows_of(4)[:-1]
    assert {row["seed"] for row in gains.complete(rows)} == {"0", "1", "2"}
    assert gains.summary(rows) == gains.summary(rows_of(3))


def test_a_seed_at_which_a_method_diverged_is_said_and_left_out() -> None:
    rows = rows_of(4)
    (lost,) = [row for row in rows if (row["method"], row["seed"]) == ("features", "3")]
    lost |= dict.fromkeys(gains.METRICS, "")
    first, rest = gains.summary(rows).split("\n", 1)
    assert "features, seed 3, diverged" in first
    assert rest == gains.summary(rows_of(3))
    assert "features, seed 3, diverged" in gains.describe(rows)
    alone = [row for row in rows if row["seed"] == "3"]
    assert "features, seed 3, diverged" in gains.summary(alone)
    assert "No seed is complete" in gains.summary(alone)


def test_one_seed_has_no_interval_and_none_has_nothing_to_say() -> None:
    text = gains.summary(rows_of(1))
    assert "1 seed\n" in text
    assert "no interval" in text
    assert "BEATS" not in text
    assert "No seed is complete" in gains.summary([])


def test_rows_are_read_from_their_file(tmp_path: Path) -> None:
    assert gains.read(folder=tmp_path) == []
    rows = rows_of(2)
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (tmp_path / "detection-8-28.csv").write_text("\n".join(lines) + "\n")
    assert gains.read(folder=tmp_path) == rows


# The detectors.


@pytest.mark.slow
def test_they_are_stored_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped.store(SMALL, rows_of(1), tmp_path / "cache", tmp_path / "out")
    assert "distilled: AP50" in capsys.readouterr().out
    canvases = scenes.draw("test", 4).canvases
    teacher = experiment.trained_teacher(SMALL, tmp_path / "cache")
    loaded = shipped.load("teacher", tmp_path / "out")
    assert not loaded.training
    torch.testing.assert_close(predict(loaded, canvases), predict(teacher.model, canvases), atol=0.02, rtol=0.02)
    for name, run in (
        ("hard labels", Run("hard", 0, 0.008)),
        ("distilled", Run("heat map", 0, 0.008, 0.001, 0.5, 2.0, 1.0)),
    ):
        again = experiment.train_student(SMALL, run, teacher).student
        kept = predict(shipped.load(name, tmp_path / "out"), canvases)
        torch.testing.assert_close(kept, predict(again, canvases), atol=0.02, rtol=0.02)


def test_a_run_that_is_not_in_the_rows_cannot_be_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untrained = experiment.TrainedTeacher(Detector(6), experiment.AveragePrecision(0.0, 0.0, 0.0), "")
    monkeypatch.setattr(shipped, "trained_teacher", lambda budget, cache: untrained)
    with pytest.raises(ValueError, match="no run of 'hard' with seed 0"):
        shipped.store(SMALL, [], tmp_path, tmp_path)


def test_the_command_writes_to_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(shipped, "store", lambda *given: told.append(given))
    monkeypatch.setattr(shipped, "read", lambda folder: [str(folder)])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: told.append(count))
    arguments = ["--cache", str(tmp_path), "--results", str(tmp_path / "rows"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["shipped", *arguments])
    shipped.main()
    assert told == [1, (Budget(), [str(tmp_path / "rows")], tmp_path, tmp_path / "out")]


def test_an_unknown_or_a_damaged_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'teacher'"):
        shipped.load("teachers")
    with pytest.raises(FileNotFoundError):
        shipped.load("teacher", tmp_path)
    experiment.files.save_tensors(tmp_path / "teacher.safetensors", Detector(3).state_dict(), {"width": 4})
    with pytest.raises(ValueError, match="git checkout"):
        shipped.load("teacher", tmp_path)
    experiment.files.save_tensors(tmp_path / "teacher.safetensors", Detector(3).state_dict(), {})
    with pytest.raises(ValueError, match="git checkout"):
        shipped.load("teacher", tmp_path)


def test_the_shipped_files_are_those_of_the_readme() -> None:
    readme = (data.data_dir() / "README.md").read_text()
    for name in shipped.NAMES:
        path = shipped.path_of(name)
        assert f"detectors/{path.name}" in readme
        assert hashlib.sha256(path.read_bytes()).hexdigest() in readme


def test_the_shipped_students_have_one_form_and_the_teacher_is_larger() -> None:
    teacher, alone, distilled = (sum(p.numel() for p in shipped.load(name).parameters()) for name in shipped.NAMES)
    assert alone == distilled
    assert teacher > 10 * distilled
