"""The students whose weights are kept: what is trained, in which order, and that rows and files say the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from course.experiments import kept_results, kept_students
from course.experiments.kept_students import FURTHER_EPOCHS, LONGER, METHODS, KeptRun, KeptStudents, wanted
from kdlib import measure, models, study, train
from kdlib.data import DataModule, data_dir
from kdlib.study.experiment import SeedRunner
from kdlib.study.plans import Budget, RunConfig
from kdlib.study.predictions import PredictionsFile

OLDER = data_dir() / "results" / "older-search"  # whose runs are made once more
ONE_IMAGE = 1.5e-4  # of 10,000: another processor rounds differently, and a near tie may turn


@pytest.fixture(scope="module")
def kept() -> kept_results.KeptResults:
    return kept_results.load()


# -------------------- what is trained


def test_what_a_comparison_needs_first_comes_first() -> None:
    runs = wanted(METHODS, 2)
    assert [run.method for run in runs[:4]] == ["hard", "kd", "dkd", "shuffled"]
    assert [run.seed for run in runs] == [0] * 4 + [1] * 4 + [0, 1]
    assert wanted(["kd"], 1) == [KeptRun("kd", 0)]
    with pytest.raises(ValueError, match="no method with kept students named 'kdd'"):
        wanted(["kdd"], 1)
    with pytest.raises(ValueError, match="seeds"):
        wanted(["kd"], 0)


def test_runs_are_those_of_the_study(tmp_path: Path) -> None:
    experiment, results = KeptStudents(tmp_path, tmp_path, tmp_path), study.results("methods", folder=OLDER)
    for method in ("hard", "kd", "shuffled"):
        config = experiment.config(KeptRun(method, 3))
        assert config == RunConfig.from_row(results.runs(method)[3])
        assert experiment.budget_of(KeptRun(method, 3)) == Budget()
    longer = KeptRun(LONGER, 1)
    assert experiment.config(longer) == RunConfig.from_row(results.runs("hard")[1])
    assert experiment.budget_of(longer) == Budget(epochs=15 + FURTHER_EPOCHS)
    assert longer.weights == ""


@pytest.mark.slow
def test_the_further_epochs_cost_what_the_teachers_outputs_cost() -> None:
    teacher = measure.macs(models.load("resnet20-fashion"), (1, 28, 28))
    student = 3 * measure.macs(models.load("resnet8-fashion"), (1, 28, 28))  # forward, and twice that backward
    assert FURTHER_EPOCHS - 1 < Budget().views * teacher / student <= FURTHER_EPOCHS


@pytest.fixture
def small(fashion: DataModule, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Validation and test are short, and nothing is trained: the students are fresh. Returns the runs asked for."""
    few = {name: getattr(fashion, name).select(torch.arange(200)) for name in ("validation", "test")}
    short = replace(fashion, **few)
    monkeypatch.setattr("kdlib.study.experiment.data.load", lambda name, **options: short)
    monkeypatch.setattr(kept_students, "load", lambda name: short)
    asked: list[RunConfig] = []

    def fit(runner: SeedRunner, config: RunConfig) -> Any:
        asked.append(config)
        if config.seed == 3:
            raise FloatingPointError("it diverged")
        return SimpleNamespace(student=runner.experiment.build_student(config.seed).eval())

    monkeypatch.setattr(SeedRunner, "fit", fit)
    monkeypatch.setattr(SeedRunner, "teacher", lambda *_: None)
    return asked


def make(folder: Path, runs: list[KeptRun]) -> list[dict[str, str]]:
    experiment = KeptStudents(folder / "rows", folder / "students", folder / "cache")
    return experiment.make(runs, "the command", log=lambda text: None)


@pytest.mark.slow
def test_a_row_is_what_the_saved_weights_do(small: list[RunConfig], fashion: DataModule, tmp_path: Path) -> None:
    (row,) = make(tmp_path, [KeptRun("kd", 1)])
    path = tmp_path / "students" / "kd" / "seed-1.safetensors"
    assert path.stat().st_size < 170_000
    test = fashion.test.select(torch.arange(200))
    found = train.evaluate(models.load(path), test, precision="fp32")
    assert float(row["test_accuracy"]) == found.accuracy
    assert float(row["calibration_error"]) == measure.calibration_error(found.logits, test.labels)
    answers = PredictionsFile(tmp_path / "rows" / "students-resnet8-resnet20-fashion-10000.csv")
    assert torch.equal(answers.predicted(row["fingerprint"]).long(), found.logits.argmax(1))


@pytest.mark.slow
def test_what_is_finished_is_not_repeated_and_missing_answers_are_added(small: list[RunConfig], tmp_path: Path) -> None:
    make(tmp_path, [KeptRun("hard", 0)])
    answers = tmp_path / "rows" / "students-resnet8-resnet20-fashion-10000.predictions.safetensors"
    answers.unlink()
    small.clear()
    rows = make(tmp_path, [KeptRun("hard", 0), KeptRun(LONGER, 0), KeptRun("hard", 3)])
    assert [(config.method, config.seed) for config in small] == [(LONGER, 0), ("hard", 3)]
    assert [(row["method"], row["epochs"], row["weights"]) for row in rows] == [
        ("hard", "15", "hard/seed-0.safetensors"),
        (LONGER, "21", ""),
        ("hard", "15", "hard/seed-3.safetensors"),
    ]
    assert (rows[-1]["error"], rows[-1]["test_accuracy"]) == ("it diverged", "")
    assert not (tmp_path / "students" / LONGER).exists()
    assert answers.exists()
    facts = json.loads((tmp_path / "rows" / "students-resnet8-resnet20-fashion-10000.json").read_text())
    assert [session["rows"] for session in facts["sessions"]] == [[1, 1], [2, 3]]
    kept = kept_results.load(tmp_path / "rows", tmp_path / "students")
    assert kept.methods == ("hard", LONGER)  # a run that diverged is no student
    with pytest.raises(ValueError, match="No student of hard, seed 3, was kept"):
        kept.model("hard", 3)


# -------------------- what is shipped


def test_students_of_both_methods_are_kept_with_the_answers_of_their_rows(
    kept: kept_results.KeptResults, fashion: DataModule
) -> None:
    labels = fashion.test.labels.numpy()
    seeds = list(kept.values("hard"))
    assert seeds == list(kept.values("kd")) == list(range(len(seeds)))
    assert len(seeds) >= 4
    assert 0 in kept.values("shuffled")
    for method in ("hard", "kd", "shuffled"):
        for seed, answers in kept.answers(method).items():
            assert (answers == labels).mean() == pytest.approx(kept.values(method)[seed], abs=1e-12)
            assert np.array_equal(kept.right(method)[seed], answers == labels)


def test_the_rows_are_those_of_the_study_up_to_rounding(kept: kept_results.KeptResults) -> None:
    """Same settings, and on the same kind of machine nearly the same numbers; half precision turns a few answers."""
    results = study.results("methods", folder=OLDER)
    for method in ("hard", "kd", "shuffled"):
        for seed, accuracy in kept.values(method).items():
            row = results.runs(method)[seed]
            assert kept.rows[method][seed]["fingerprint"] == row["fingerprint"]
            assert accuracy == pytest.approx(float(row["test_accuracy"]), abs=0.015)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "seed"), [("hard", 0), ("kd", 3)])
def test_the_shipped_weights_give_the_rows(
    method: str, seed: int, kept: kept_results.KeptResults, fashion: DataModule
) -> None:
    found = train.evaluate(kept.model(method, seed), fashion.test, precision="fp32")
    row = kept.rows[method][seed]
    assert found.accuracy == pytest.approx(float(row["test_accuracy"]), abs=ONE_IMAGE)
    error = measure.calibration_error(found.logits, fashion.test.labels)
    assert error == pytest.approx(float(row["calibration_error"]), abs=1e-3)


@pytest.mark.slow
def test_every_shipped_file_gives_the_kept_answers(kept: kept_results.KeptResults, fashion: DataModule) -> None:
    some = fashion.test.select(torch.arange(0, 10_000, 50))
    for method in ("hard", "kd", "shuffled"):
        for seed, answers in kept.answers(method).items():
            found = train.evaluate(kept.model(method, seed), some, precision="fp32").logits.argmax(1).numpy()
            assert (found == answers[::50]).mean() >= 0.995


def test_missing_students_and_names_are_explained(kept: kept_results.KeptResults, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m course\.experiments\.kept_students"):
        kept_results.load(tmp_path)
    with pytest.raises(ValueError, match="no method with kept students named 'kdd'"):
        kept.values("kdd")
    with pytest.raises(ValueError, match="seed 9, was kept"):
        kept.model("hard", 9)
    with pytest.raises(ValueError, match="no method with trials named 'harder'"):
        kept_results.best_trial("harder")


def test_the_best_trial_is_that_of_the_study() -> None:
    facts = json.loads((data_dir() / "results" / "choose-resnet8-resnet20-fashion-10000.json").read_text())
    chosen = facts["chosen"]["kd"]["validation_accuracy"]
    assert kept_results.best_trial("kd") == chosen
