"""The command line: what it writes and prints, what it refuses, and that a kill loses nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image

from kdlib import cli, compare, data, distill, export, measure, models, train
from kdlib.cli import Decay, Rate
from kdlib.data import DataModule
from kdlib.doctor import job as examine
from kdlib.files import load_tensors
from kdlib.recipes import OPTIMIZERS, Recipe
from kdlib.run_folder import ASIDE
from kdlib.teachers import Ensemble
from kdlib.trainer import Trainer

TINY = ["--teacher", "resnet20-fashion", "--student", "resnet8", "--images", "192", "--epochs", "2", "--quiet"]


def call(*arguments: Any) -> int:
    """Run the command as a shell would, in this process; the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kdlib", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code or 0


@pytest.fixture(scope="module")
def small_test_set() -> Any:
    """The command reads 10,000 test images three times; for these tests the first 100 will do."""
    whole, real = data.load("fashion-mnist"), data.load
    few = torch.arange(100)
    short = replace(whole, test=whole.test.select(few), validation=whole.validation.select(few))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name, **options: short if name == "fashion-mnist" else real(name, **options))
        yield short


@pytest.fixture(scope="module")
def finished(small_test_set: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One distillation by the command line: its folder and what it printed."""
    out, printed = tmp_path_factory.mktemp("run") / "deep" / "er", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert call("distill", *TINY, "--method", "logit+feature+relation", "--out", out, "--json") == 0
    return out, printed.getvalue()


@pytest.mark.slow
def test_distill_writes_student_history_curves_and_report(finished: tuple[Path, str]) -> None:
    out, _ = finished
    student = models.load(out / "student.safetensors")
    assert student.config["architecture"] == "resnet8"
    history = pd.read_csv(out / "history.csv", index_col="epoch")
    assert list(history.index) == [1, 2]
    assert {"student soft", "student hint layer3", "student fsp layer1-layer2", "baseline hard"} <= set(history)
    with Image.open(out / "curves.png") as image:
        assert image.width > 600
        assert len(image.convert("RGB").getcolors(1_000_000)) > 10
    report = json.loads((out / "report.json").read_text())
    assert report["job"]["method"] == "logit+feature+relation"


@pytest.mark.slow
def test_the_last_line_is_one_json_object_with_what_was_measured(
    finished: tuple[Path, str], small_test_set: Any
) -> None:
    out, printed = finished
    report = json.loads(printed.strip().splitlines()[-1])
    assert report == json.loads((out / "report.json").read_text())
    student, teacher = models.load(out / "student.safetensors"), models.load("resnet20-fashion")
    metrics, teacher_metrics = (train.evaluate(model, small_test_set.test) for model in (student, teacher))
    assert report["student_accuracy"] == pytest.approx(metrics.accuracy, abs=0.011)  # one image: bfloat16 or not
    assert report["teacher_accuracy"] == pytest.approx(teacher_metrics.accuracy, abs=0.011)
    agreement = measure.agreement(metrics.logits, teacher_metrics.logits)
    assert report["agreement"] == pytest.approx(agreement, abs=0.011)
    assert report["student_parameters"] == measure.count_parameters(student) == 77_754
    assert report["teacher_parameters"] == measure.count_parameters(teacher)
    assert 0 < report["baseline_accuracy"] < 1
    assert report["seconds"] > 0


@pytest.mark.slow
def test_the_table_names_both_students_and_warns_of_one_seed(finished: tuple[Path, str]) -> None:
    _, printed = finished
    assert "resnet8, hard labels " in printed
    assert "resnet8, logit+feature+relation " in printed
    assert "One run, one seed: a hint, not evidence" in printed
    assert "is run on 192 images in 1 view." in printed


@pytest.mark.slow
def test_baseline_and_student_start_from_the_same_weights(small_test_set: Any, tmp_path: Path) -> None:
    """Distilling by hard labels is the baseline itself: equal in every digit."""
    assert call("distill", *TINY, "--method", "hard", "--out", tmp_path, "--precision", "fp32") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["student_accuracy"] == report["baseline_accuracy"]
    history = pd.read_csv(tmp_path / "history.csv")
    for column in ("loss", "hard", "validation_loss", "validation_accuracy"):
        assert history[f"student {column}"].tolist() == history[f"baseline {column}"].tolist()


@pytest.mark.slow
def test_no_baseline_leaves_it_out_and_views_0_runs_the_teacher_live(
    small_test_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--no-baseline", "--views", "0", "--epochs", "1", "--json"]
    assert call("distill", *TINY, *options, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.strip().splitlines()[-1])
    assert report["baseline_accuracy"] is None
    assert "hard labels" not in printed
    assert "is run on" not in printed
    assert not any(name.startswith("baseline") for name in pd.read_csv(tmp_path / "history.csv"))


@pytest.mark.slow
def test_training_goes_on_from_given_weights(small_test_set: Any, tmp_path: Path) -> None:
    options = ["--images", 64, "--epochs", 1, "--learning-rate", 1e-9, "--quiet", "--out", tmp_path]
    assert call("train", "--start", "resnet20-fashion", *options) == 0
    before, after = models.load("resnet20-fashion"), models.load(tmp_path / "model.safetensors")
    torch.testing.assert_close(after.fc.weight, before.fc.weight)
    # and from the checkpoint of a run, as if that had been stopped
    options = [*TINY, "--student", tmp_path / "checkpoint", "--no-baseline", "--learning-rate", 1e-9]
    assert call("distill", *options, "--out", tmp_path / "on") == 0
    on = models.load(tmp_path / "on" / "student.safetensors")
    torch.testing.assert_close(on.fc.weight, before.fc.weight)


@pytest.mark.slow
def test_a_cache_is_used_again_and_refused_for_another_teacher(
    small_test_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--no-baseline", "--epochs", "1", "--cache", tmp_path / "outputs"]
    reports = []
    for run in ("first", "second"):
        assert call("distill", *TINY, *options, "--out", tmp_path / run) == 0
        reports.append(json.loads((tmp_path / run / "report.json").read_text()))
    assert reports[0]["student_accuracy"] == reports[1]["student_accuracy"]
    other = tmp_path / "other.safetensors"
    models.save(models.build("resnet20", num_classes=10, in_channels=1, seed=5), other)
    assert call("distill", *TINY, *options, "--teacher", other, "--out", tmp_path / "third") == 2
    assert "was built with another teacher" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["teacher", "student", "method", "cache"])
def test_a_refused_distillation_leaves_the_run_that_it_should_replace(
    wrong: str, small_test_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, cache = tmp_path / "out", tmp_path / "outputs"
    out.mkdir()
    for name in distill.RESULTS:
        (out / name).write_text("of the earlier run")
    if wrong == "cache":  # which holds the outputs of another teacher
        other = tmp_path / "other.safetensors"
        models.save(models.build("resnet8", num_classes=10, in_channels=1, seed=5), other)
        options = ["--no-baseline", "--epochs", 1, "--cache", cache]
        assert call("distill", *TINY, *options, "--teacher", other, "--out", tmp_path / "first") == 0
    options = {"teacher": ["--teacher", "no-such"], "student": ["--student", "no-such"], "method": ["--method", "no"],
               "cache": ["--cache", cache]}[wrong]  # fmt: skip
    assert call("distill", *TINY, *options, "--out", out, "--overwrite") == 2
    assert {name: (out / name).read_text() for name in distill.RESULTS} == dict.fromkeys(
        distill.RESULTS, "of the earlier run"
    )


@pytest.mark.slow
def test_a_student_goes_on_from_the_very_file_that_it_replaces(small_test_set: Any, tmp_path: Path) -> None:
    own = tmp_path / "student.safetensors"
    models.save(models.build("resnet8", num_classes=10, in_channels=1, seed=5), own)
    (tmp_path / "student.checkpoint").write_text("of the earlier run")
    before = models.load(own)
    options = [*TINY, "--student", own, "--epochs", 1, "--learning-rate", 1e-9, "--no-baseline"]
    assert call("distill", *options, "--out", tmp_path, "--overwrite") == 0
    torch.testing.assert_close(models.load(own).fc.weight, before.fc.weight)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "distill"])
def test_a_run_that_begins_with_the_file_it_replaces_can_be_interrupted(
    command: str, small_test_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / {"train": "model.safetensors", "distill": "student.safetensors"}[command]
    models.save(models.build("resnet8", num_classes=10, in_channels=1, seed=5), own)
    options = {
        "train": ["--start", own, "--images", 64, "--batch-size", 32],
        "distill": ["--teacher", own, "--student", own, "--images", 192, "--no-baseline"],
    }[command]
    options += ["--epochs", 3, "--precision", "fp32", "--quiet", "--out", tmp_path]
    train_step, steps = Trainer.train_step, list[int]()

    def interrupted(self: Trainer, batch: Any) -> Any:
        steps.append(self.step)
        if len(steps) == 2 * self.steps_per_epoch:
            raise KeyboardInterrupt
        return train_step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert call(command, *options, "--overwrite") == 130
    assert not own.exists()
    assert call(command, *options, "--resume") == 0
    assert own.exists()
    assert not list(tmp_path.glob(f"{ASIDE}*"))


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [["--precision", "fp16"], ["--smoothing", 5], ["--images", 1], ["--device", "gpu"]])
def test_a_refused_training_leaves_the_run_that_it_should_replace(
    wrong: list[Any], small_test_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    own = tmp_path / "model.safetensors"
    models.save(models.build("resnet8", num_classes=10, in_channels=1, seed=5), own)
    before = own.read_bytes()
    options = ["--start", own, "--images", 64, "--epochs", 1, "--out", tmp_path, "--overwrite", "--quiet"]
    assert call("train", *options, *wrong) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert own.read_bytes() == before


@pytest.mark.slow
def test_a_student_of_other_images_leaves_the_run_that_it_should_replace(
    small_test_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other, out = tmp_path / "other.safetensors", tmp_path / "out"
    models.save(models.build("resnet8", num_classes=10, in_channels=3, seed=0), other)
    out.mkdir()
    (out / "student.safetensors").write_text("of the earlier run")
    options = [*TINY, "--student", other, "--epochs", 1, "--out", out, "--overwrite"]
    assert call("distill", *options) == 2
    assert "The student cannot take images of 1 x 28 x 28" in capsys.readouterr().err
    assert (out / "student.safetensors").read_text() == "of the earlier run"


@pytest.mark.slow
def test_the_seconds_of_a_job_are_of_all_its_sessions(small_test_set: Any, tmp_path: Path) -> None:
    job = distill.Job(student="resnet8", method="hard", images=1024, epochs=6, baseline=False)
    distill.distill(job, tmp_path, progress=False, echo=lambda line: None)
    trained = float(pd.read_csv(tmp_path / "history.csv")["student seconds"].iloc[-1])
    again = distill.distill(job, tmp_path, resume=True, progress=False, echo=lambda line: None)  # nothing is left to do
    assert again.seconds > trained


@pytest.mark.slow
def test_a_job_takes_paths_and_numpy_numbers(small_test_set: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    models.save(models.build("resnet8", num_classes=10, in_channels=1, seed=5), own)
    numbers = {"seed": np.int64(0), "images": np.int64(64), "epochs": np.int64(1), "views": np.int64(1)}
    switches = {"baseline": np.bool_(False), "half": np.bool_(True), "temperature": np.float32(4)}
    job = distill.Job(teacher=[own], student=own, cache=tmp_path / "cache", **numbers, **switches)  # type: ignore[arg-type]
    distill.distill(job, tmp_path / "out", progress=False, echo=lambda line: None)
    told = json.loads((tmp_path / "out" / "report.json").read_text())["job"]
    assert (told["teacher"], told["student"], told["cache"]) == ([str(own)], str(own), str(tmp_path / "cache"))
    assert (told["seed"], told["images"], told["baseline"], told["temperature"]) == (0, 64, False, 4.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["distill", *TINY, "--views", 0, "--cache", "outputs"], "nothing to keep: leave out the cache"),
        (["distill", *TINY, "--method", "hard", "--cache", "outputs"], "'hard' needs no teacher"),
        (["train", "--start", "resnet20-fashion", "--model", "resnet8"], "--start gives the network.*--model asks"),
        (["train", "--start", "resnet20-fashion", "--stem", "imagenet"], "--start gives the network.*--stem asks"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    options: list[Any], message: str, small_test_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert call(*options, "--out", tmp_path / "out") == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.slow
def test_several_teachers_teach_together(small_test_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other.safetensors"
    models.save(models.build("resnet8", num_classes=10, in_channels=1, seed=5), other)
    options = ["--no-baseline", "--epochs", "1", "--teacher", other, "--out", tmp_path / "out"]  # beside that of TINY
    assert call("distill", *TINY, *options) == 0
    printed = capsys.readouterr().out
    assert f"The teachers, resnet20-fashion, {other}, are run on" in printed
    assert "2 teachers together" in printed
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["job"]["teacher"] == ["resnet20-fashion", str(other)]
    ensemble = Ensemble([models.load("resnet20-fashion"), models.load(other)])
    expected = train.evaluate(ensemble, small_test_set.test).accuracy
    assert report["teacher_accuracy"] == pytest.approx(expected, abs=0.011)
    assert report["teacher_parameters"] == measure.count_parameters(ensemble)
    models.save(models.build("resnet8", num_classes=3, in_channels=1, seed=5), other)
    assert call("distill", *TINY, *options, "--overwrite") == 2
    assert "logits of one shape" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "logti"], "There is no method named 'logti'. Did you mean 'logit'"),
        (["--method", "logit+"], "There is no method named ''"),
        (["--method", "1-2*feature"], "weight '1-2'"),
        (["--method", "hard+100*similarty"], "There is no method named 'similarty'. Did you mean 'similarity'"),
        (["--method", "-1*hint"], "A method's weight is a number of at least 0; got -1.0"),
        (["--method", "nan*hint"], "A method's weight is a number of at least 0; got nan"),
        (["--method", "fsp", "--layers", "layer1:layer1"], "fsp relates the layers of a network to each other"),
        (["--student", "resnet81"], "no model named 'resnet81'. Did you mean"),
        (["--teacher", "resnet20-fasion"], "no trained model named 'resnet20-fasion'. Did you mean 'resnet20-fashion'"),
        (["--data", "fashion-mnits"], "no dataset named 'fashion-mnits'. Did you mean 'fashion-mnist'"),
        (["--temperature", "0"], "temperature is a positive number"),
        (["--temperature", "nan"], "temperature is a positive number"),
        (["--alpha", "1.5"], "alpha is the weight of the hard-label loss and lies in [0, 1]"),
        (["--images", "0"], "there is no subset of 0"),
        (["--images", "1"], "1 training images; at least 2"),
        (["--images", "99999"], "has 55,000 training images"),
        (["--optimizer", "adam"], "no optimizer named 'adam'. Did you mean 'adamw'"),
        (["--learning-rate", "-1"], "learning_rate is a positive number"),
        (["--precision", "fp16"], "no precision named 'fp16'"),
        (["--device", "cuda:7"], "no device 'cuda:7'"),
        (["--stem", "big"], "no stem named 'big'"),
        (["--method", "feature", "--layers", "layer3:layer33"], "named 'layer33'. Did you mean 'layer3'"),
        (["--method", "feature", "--layers", "layer3"], "--layers takes pairs STUDENT:TEACHER"),
        (["--teacher", "/nowhere/teacher.safetensors"], "There is no file /nowhere/teacher.safetensors"),
    ],
)
def test_bad_options_end_in_one_sentence_and_exit_code_2(
    small_test_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert call("distill", *TINY, "--out", tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("kdlib: ")
    assert message in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_an_unwritable_folder_is_found_before_training(small_test_set: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("mine")
    assert call("distill", *TINY, "--out", tmp_path / "file" / "out") == 2
    captured = capsys.readouterr()
    assert "Could not write" in captured.err
    assert "learns" not in captured.out
    assert (tmp_path / "file").read_text() == "mine"


def test_missing_data_says_where_it_was_looked_for(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    assert call("evaluate", "resnet20-fashion") == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_train_then_evaluate(small_test_set: Any, tmp_path: Path, capsys: Any) -> None:
    options = ["--model", "article-student", "--optimizer", "rmsprop", "--learning-rate", "0.001", "--half", "--json"]
    assert call("train", *options, "--images", 320, "--epochs", 2, "--quiet", "--out", tmp_path) == 0
    trained = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    _, metadata = load_tensors(tmp_path / "model.safetensors")
    assert metadata["test_accuracy"] == trained["test_accuracy"]
    assert call("evaluate", tmp_path / "model.safetensors", "--teacher", "resnet20-fashion", "--json") == 0
    measured = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert measured["accuracy"] == pytest.approx(trained["test_accuracy"], abs=0.011)
    assert {"teacher_accuracy", "loss", "parameters"} <= measured.keys()
    mine, theirs = (
        train.evaluate(models.load(model), small_test_set.test).logits
        for model in (tmp_path / "model.safetensors", "resnet20-fashion")
    )
    assert measured["agreement"] == pytest.approx(measure.agreement(mine, theirs), abs=0.021)
    calibration = measure.calibration_error(mine, small_test_set.test.labels)
    assert measured["calibration_error"] == pytest.approx(calibration, abs=0.021)
    assert call("evaluate", tmp_path / "model.safetensors") == 0
    assert "accuracy" in capsys.readouterr().out


def test_the_commands_defaults_are_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []
    monkeypatch.setattr(distill, "distill", lambda job, out, **options: jobs.append(job) or sys.exit(0))
    assert call("distill", "--out", tmp_path) == 0
    assert jobs == [distill.Job()]


def options_of(values: dict[str, Any]) -> list[Any]:
    """As a shell would give them; True stands for an option without a value."""
    return [part for name, value in values.items() for part in ([name] if value is True else [name, value])]


RECIPE_OPTIONS = {"--optimizer": "adamw", "--learning-rate": 0.02, "--weight-decay": 0.03, "--batch-size": 64}
RECIPE_OPTIONS |= {"--schedule": "one-cycle", "--clip": 2.5}
RECIPE = Recipe("adamw", 0.02, weight_decay=0.03, batch_size=64, schedule="one-cycle", clip=2.5)


def test_every_option_of_distill_reaches_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"data": "cifar10", "teacher": "resnet20-fashion", "student": "resnet8", "method": "logit+hint"}
    given |= {"images": 700, "epochs": 3, "views": 2, "cache": "kept", "temperature": 3.0, "alpha": 0.2}
    given |= {"image_size": 64, "stem": "stride1", "seed": 7, "device": "cpu", "precision": "fp32"}
    flags = {"compile": True, "half": True, "checkpoint_every": 5, "other_threads": True}
    job = distill.Job(**given, **flags, layers=("layer3:layer3",), baseline=False, recipe=RECIPE)
    default = distill.Job()
    assert [one.name for one in fields(job) if getattr(job, one.name) == getattr(default, one.name)] == []
    written = {f"--{name.replace('_', '-')}": value for name, value in (given | flags).items()} | RECIPE_OPTIONS
    found: list[Any] = []
    monkeypatch.setattr(distill, "distill", lambda *given, **options: found.extend([*given, options]) or sys.exit(0))
    flags_of_the_command = ["--layers", "layer3:layer3", "--no-baseline", "--resume", "--quiet"]
    assert call("distill", *options_of(written), *flags_of_the_command, "--out", tmp_path) == 0
    assert found == [job, tmp_path, {"resume": True, "overwrite": False, "progress": False}]


def test_every_option_of_train_reaches_the_training(
    small_test_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}

    def fit(network: torch.nn.Module, images: DataModule, **options: Any) -> None:
        found.update(options, network=network, images=images)
        sys.exit(0)

    monkeypatch.setattr(train, "fit", fit)
    written = {"--model": "resnet8", "--stem": "stride1", "--images": 300, "--epochs": 3, "--smoothing": 0.2}
    written |= {"--seed": 7, "--device": "cpu", "--precision": "fp32", "--compile": True, "--checkpoint-every": 5}
    written |= {"--other-threads": True, "--quiet": True, "--out": tmp_path}
    assert call("train", *options_of(written | RECIPE_OPTIONS)) == 0
    fresh = models.build("resnet8", num_classes=10, in_channels=1, image_size=28, stem="stride1", seed=7)
    assert models.get_config(found["network"]) == models.get_config(fresh)
    weights = fresh.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in found.pop("network").state_dict().items())
    chosen = small_test_set.subset(300, seed=7)
    assert torch.equal(found.pop("images").train.images, chosen.train.images)
    assert found.pop("method").smoothing == 0.2
    assert found == {
        **{"epochs": 3, "recipe": RECIPE, "seed": 7, "device": "cpu", "precision": "fp32", "compile": True},
        **{"checkpoint": tmp_path / "checkpoint", "checkpoint_every": 5, "resume": False, "other_threads": True},
        "progress": False,
    }


def test_every_option_of_export_reaches_the_files(
    small_test_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(export, "export_all", lambda *given, **options: found.update(options) or sys.exit(0))
    written = {"--images": 30, "--validation": True, "--least-agreement": 0.7, "--overwrite": True, "--out": tmp_path}
    assert call("export", "resnet8-fashion", *options_of(written)) == 0
    assert found == {"images": 30, "validation": True, "least_agreement": 0.7, "overwrite": True}


def test_evaluate_measures_on_the_split_that_is_asked_for(
    small_test_set: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(small_test_set.validation, labels=(small_test_set.validation.labels + 1) % 10)
    apart = replace(small_test_set, validation=wrong)
    monkeypatch.setattr(data, "load", lambda name, **options: apart)
    accuracies = []
    for options in ((), ("--validation",)):
        assert call("evaluate", "resnet20-fashion", *options, "--json") == 0
        accuracies.append(json.loads(capsys.readouterr().out.strip().splitlines()[-1])["accuracy"])
    assert accuracies[0] > 0.85
    assert accuracies[1] < 0.15


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_that_is_named_alone_trains_at_a_rate_and_decay_of_its_own(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = []
    monkeypatch.setattr(distill, "distill", lambda job, out, **options: recipes.append(job.recipe) or sys.exit(0))
    monkeypatch.setattr(examine, "examine_job", lambda job: recipes.append(job.recipe) or sys.exit(0))
    monkeypatch.setattr(train, "fit", lambda *given, recipe, **options: recipes.append(recipe) or sys.exit(0))
    for command in ("distill", "doctor", "train"):
        out = [] if command == "doctor" else ["--out", tmp_path / command]
        assert call(command, "--optimizer", optimizer, *out) == 0
        assert call(command, "--optimizer", optimizer, "--weight-decay", 0, *out) == 0
    assert recipes == [Recipe(optimizer), Recipe(optimizer, weight_decay=0)] * 3


def test_help_names_the_rates_and_decays_of_the_optimizers() -> None:
    for option, name in ((Rate, "learning_rate"), (Decay, "weight_decay")):
        numbers = re.findall(r"\d+\.\d+", option.__metadata__[0].help)
        assert {float(number) for number in numbers} == {getattr(Recipe(kind), name) for kind in OPTIMIZERS}


# --- every kind of method ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def article_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The article's teacher, untrained."""
    path = tmp_path_factory.mktemp("article") / "teacher.safetensors"
    models.save(models.build("article-teacher", num_classes=10, in_channels=1, seed=1), path)
    return path


@pytest.fixture
def tiny_run(small_test_set: Any, article_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of a distillation of 64 images that takes a fraction of a second."""
    parts = {part: getattr(small_test_set, part).select(torch.arange(50)) for part in ("validation", "test")}
    short = replace(small_test_set, **parts)
    monkeypatch.setattr(data, "load", lambda name, **options: short)
    return [
        *("--teacher", article_teacher, "--student", "article-student", "--images", 64, "--epochs", 1),
        *("--batch-size", 32, "--learning-rate", 0.01, "--no-baseline", "--quiet", "--precision", "fp32"),
    ]


METHODS = {
    "hard": ["hard"],
    "logit+rkd": ["hard", "soft", "rkd_distance flatten", "rkd_angle flatten"],
    "hard+100*similarity": ["hard", "similarity pool2"],
    "dkd": ["hard", "soft"],
    "vid": ["hard", "vid pool1", "vid pool2"],
    "label-smoothing + 2*attention": ["hard", "attention pool1", "attention pool2"],
    "fsp+layer-correlation": ["hard", "fsp pool1-pool2", "layer_correlation"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["distill", "train"])
def test_the_history_has_no_empty_lines_on_windows(
    command: str, small_test_set: Any, tmp_path: Path, windows_lines: None
) -> None:
    model = ["--model", "resnet8"] if command == "train" else ["--student", "resnet8", "--no-baseline"]
    size = ["--images", 64, "--epochs", 1, "--batch-size", 32, "--precision", "fp32", "--quiet"]
    assert call(command, *model, *size, "--out", tmp_path) == 0
    written = (tmp_path / "history.csv").read_bytes()
    assert b"\r" not in written
    assert written.count(b"\n") == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_command_trains_by_any_method(tiny_run: list[Any], tmp_path: Path, method: str) -> None:
    assert call("distill", *tiny_run, "--method", method, "--out", tmp_path) == 0
    history = pd.read_csv(tmp_path / "history.csv", index_col="epoch")
    shared = {"seconds", "loss", "train_accuracy", "validation_loss", "validation_accuracy"}
    terms = [name.removeprefix("student ") for name in history if name.removeprefix("student ") not in shared]
    assert terms == METHODS[method]
    assert history.loc[1, "student loss"] == pytest.approx(history.loc[1, [f"student {t}" for t in terms]].sum())
    assert json.loads((tmp_path / "report.json").read_text())["job"]["method"] == method


def test_temperature_alpha_and_layers_reach_the_method(tiny_run: list[Any], tmp_path: Path) -> None:
    jobs, fit = [], train.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "fit", lambda *args, **options: jobs.append(options["method"]) or fit(*args, **options))
        options = ["--temperature", 2, "--alpha", 0.5, "--layers", "pool1:pool3"]
        assert call("distill", *tiny_run, "--method", "dkd+3*hint", *options, "--out", tmp_path) == 0
    (method,) = jobs
    logit, feature = method.parts
    assert (logit.loss, logit.temperature, logit.alpha, method.weights) == ("dkd", 2.0, 0.5, [1.0, 3.0])
    assert feature.layers == {"pool1": "pool3"}


# --- a kill loses nothing ----------------------------------------------------------------------------------------


TRAIN = [
    *("train", "--model", "article-student", "--images", "1280", "--epochs", "2", "--optimizer", "rmsprop"),
    *("--learning-rate", "0.001", "--checkpoint-every", "3", "--quiet"),
]  # twenty steps


@pytest.fixture(scope="module")
def never_stopped(small_test_set: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of the command TRAIN."""
    out = tmp_path_factory.mktemp("whole")
    assert call(*TRAIN, "--out", out) == 0
    return (out / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_comes_to_the_same_bits(
    small_test_set: Any, never_stopped: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_step = Trainer.train_step

    def interrupted(self: Trainer, batch: Any) -> Any:
        if self.step == 5:
            signal.raise_signal(signal.SIGINT)  # what Ctrl-C sends
        return train_step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert call(*TRAIN, "--out", tmp_path) == 130
    assert (
        "The same command with --resume (in place of --overwrite) goes on from the last checkpoint"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "model.safetensors").exists()
    assert load_tensors(tmp_path / "checkpoint")[1]["facts"]["step"] == 3
    assert call(*TRAIN, "--out", tmp_path, "--resume") == 0
    assert (tmp_path / "model.safetensors").read_bytes() == never_stopped


@pytest.mark.parametrize("moment", ["while it loads", "before the first checkpoint", "after it"])
@pytest.mark.parametrize("command", ["train", "distill"])
def test_an_interrupted_run_with_overwrite_is_resumed_only_where_there_is_something_of_it(
    command: str,
    moment: str,
    tiny_run: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    earlier = ("checkpoint", "history.csv") if command == "train" else ("student.checkpoint", "report.json")
    for name in earlier:
        (tmp_path / name).write_text("earlier")
    train_step, steps, load = Trainer.train_step, list[int](), data.load_images

    def interrupted(self: Trainer, batch: Any) -> Any:
        steps.append(self.step)
        if moment != "while it loads" and len(steps) == (2 if moment == "before the first checkpoint" else 3):
            raise KeyboardInterrupt
        return train_step(self, batch)

    def loaded(*args: Any, **options: Any) -> DataModule:
        if moment == "while it loads":
            raise KeyboardInterrupt
        return load(*args, **options)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    monkeypatch.setattr(data, "load_images", loaded)
    options = tiny_run
    if command == "train":
        options = ["--model", "article-student", "--images", 64, "--batch-size", 32, "--precision", "fp32", "--quiet"]
    assert call(command, *options, "--epochs", 2, "--overwrite", "--out", tmp_path) == 130
    told = capsys.readouterr().err
    if moment == "after it":
        assert "with --resume (in place of --overwrite) goes on from the last checkpoint" in told
    else:
        assert f"{tmp_path} holds what it held before. The same command, with --overwrite, starts again" in told
        assert "--resume" not in told
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(earlier, "earlier")


# Another validation split would make it another run, which --resume refuses.
DIES_AT_STEP_14 = """
import os, signal, sys, torch
from dataclasses import replace
from kdlib import cli, data
from kdlib.trainer import Trainer
train_step = Trainer.train_step
def dying(self, batch):
    if self.step == 14:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", 9))
    return train_step(self, batch)
Trainer.train_step = dying
whole, few = data.load("fashion-mnist"), torch.arange(100)
short = replace(whole, test=whole.test.select(few), validation=whole.validation.select(few))
data.load = lambda name, **options: short
cli.main()
"""


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_is_never_stopped_to_the_bit(
    small_test_set: Any, never_stopped: bytes, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", DIES_AT_STEP_14, *TRAIN, "--out", str(tmp_path)]
    killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == (-signal.SIGKILL if os.name == "posix" else 9)
    assert not (tmp_path / "model.safetensors").exists()
    assert load_tensors(tmp_path / "checkpoint")[1]["facts"]["step"] == 13  # three steps into the second epoch
    assert call(*TRAIN, "--out", tmp_path, "--resume") == 0
    assert (tmp_path / "model.safetensors").read_bytes() == never_stopped


# --- custom images -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three colours in a folder, 24 images to learn from and 12 to test on."""
    root, chance = tmp_path_factory.mktemp("own"), torch.Generator().manual_seed(0)
    for part, count in (("train", 8), ("val", 4)):
        for kind, name in enumerate(("blue", "green", "red")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 120, (40, 40, 3), generator=chance, dtype=torch.uint8)
                pixels[..., kind] += 120
                Image.fromarray(pixels.numpy()).save(root / part / name / f"{number}.png")
    return f"imagefolder:{root}"


@pytest.fixture(scope="module")
def own_teacher(own_images: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that the command trained on these images, at a size of its own."""
    out = tmp_path_factory.mktemp("own-teacher")
    options = ["--epochs", "1", "--batch-size", "8", "--image-size", "32", "--checkpoint-every", "1", "--quiet"]
    assert call("train", "--data", own_images, "--model", "resnet8", *options, "--out", out) == 0
    return out / "model.safetensors"


@pytest.mark.slow
def test_a_home_folder_that_the_shell_left_as_it_was(
    tiny_run: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert call("distill", *tiny_run, "--out", "~/student") == 0
    assert (tmp_path / "student" / "student.safetensors").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("command", ["train", "distill", "compare", "export", "study", "search"])
def test_every_command_writes_into_the_home_folder_that_it_is_given(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    needed = {"compare": ["a", "b"], "export": ["resnet20-fashion"]}.get(command, [])
    parsed = typer.main.get_command(cli.app).commands[command]  # type: ignore[attr-defined]
    assert parsed.make_context(command, [*needed, "--out", "~/x"]).params["out"] == tmp_path / "x"


def test_train_takes_the_image_size_for_a_folder(own_teacher: Path) -> None:
    teacher = models.load(own_teacher)
    assert teacher.config["image_size"] == 32
    assert teacher.config["num_classes"] == 3


@pytest.mark.slow
def test_a_teacher_of_other_images_or_classes_is_refused_before_it_is_run(
    own_images: str, own_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_test_set: Any
) -> None:
    common = ["--data", own_images, "--image-size", "32"]
    other = tmp_path / "five.safetensors"
    models.save(models.build("resnet8", num_classes=5, in_channels=3, image_size=32), other)
    for teacher, message in (
        ("resnet20-fashion", "The teacher cannot take images of 3 x 32 x 32"),
        (other, "teacher gives 5 logits, but"),
    ):
        assert call("distill", *common, "--teacher", teacher, "--student", "resnet8", "--out", tmp_path / "run") == 2
        found = capsys.readouterr()
        assert message in found.err
        assert "is run on" not in found.out
        assert "img/s" not in found.err  # no progress bar of the teacher
    assert call("evaluate", "resnet20-fashion", *common) == 2
    assert "model cannot take images of 3 x 32 x 32" in capsys.readouterr().err
    two = tmp_path / "two.safetensors"
    models.save(models.build("resnet8", num_classes=2, in_channels=3, image_size=32), two)
    assert call("evaluate", two, *common) == 2
    assert "gives 2 logits, but there are labels up to 2" in capsys.readouterr().err


@pytest.mark.slow
def test_a_student_file_of_other_classes_is_refused_before_the_teacher_is_run(
    own_images: str, own_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "five.safetensors"
    models.save(models.build("resnet8", num_classes=5, in_channels=3, image_size=32), other)
    options = ["--data", own_images, "--image-size", "32", "--teacher", own_teacher, "--cache", tmp_path / "outputs"]
    assert call("distill", *options, "--student", other, "--out", tmp_path / "run") == 2
    found = capsys.readouterr()
    assert "student gives 5 logits, but" in found.err
    assert "are run on" not in found.out
    assert "is run on" not in found.out
    assert not (tmp_path / "outputs").exists()


def test_the_home_folder_that_the_shell_left_in_an_option_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert distill.Job(cache="~/outputs").cache == "/home/somebody/outputs"
    assert distill.Job(cache=Path("~/outputs")).cache == "/home/somebody/outputs"


@pytest.mark.slow
def test_distill_writes_checkpoints_within_an_epoch(own_images: str, own_teacher: Path, tmp_path: Path) -> None:
    steps, save = [], Trainer.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_checkpoint", lambda self: (steps.append(self.step), save(self)))
        options = ["--epochs", "1", "--batch-size", "8", "--image-size", "32", "--no-baseline", "--quiet"]
        given = ["--data", own_images, "--teacher", own_teacher, "--student", "resnet8", "--checkpoint-every", "1"]
        assert call("distill", *given, *options, "--out", tmp_path) == 0
    assert steps == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "feature", "--layers", "layer3:layer3", "--layers", "layer3:layer2"], "each student layer once"),
        (["--method", "logit", "--layers", "layer3:layer3"], "--layers is for feature and relation losses"),
        (["--method", "hint", "--temperature", "2"], "--temperature and --alpha are for logit losses"),
        (["--method", "hard+fsp", "--alpha", "0"], "--temperature and --alpha are for logit losses"),
        (["--checkpoint-every", "0"], "--checkpoint-every"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_test_set: Any
) -> None:
    assert call("distill", *TINY, *options, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err


def test_what_could_not_be_saved_is_refused_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_test_set: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", lambda name: torch.nn.Linear(2, 2))
        assert call("train", "--start", "mobilenet_v2-imagenet", "--out", tmp_path / "run") == 2
    assert "was not made by models.build" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "words"),
    [(["red", "green", "blue"], "same classes in another order"), (["a", "b", "c", "d", "e"], "other classes")],
)
@pytest.mark.parametrize("role", ["model", "teacher"])
def test_evaluate_refuses_a_model_of_other_classes(
    own_images: str, own_teacher: Path, tmp_path: Path, capsys: Any, classes: list[str], words: str, role: str
) -> None:
    wrong = tmp_path / "wrong.safetensors"
    models.save(models.build("resnet8", num_classes=len(classes), in_channels=3, seed=0), wrong, classes=classes)
    given = [wrong] if role == "model" else [own_teacher, "--teacher", wrong]
    assert call("evaluate", *given, "--data", own_images, "--image-size", 32) == 2
    said = capsys.readouterr().err
    assert f"The {role} was trained with" in said
    assert words in said


def test_the_folder_of_a_job_may_be_a_text(small_test_set: Any, tmp_path: Path) -> None:
    job = distill.Job(teacher="resnet20-fashion", student="resnet8", images=64, epochs=1, baseline=False)
    distill.distill(job, str(tmp_path / "run"), progress=False, echo=lambda line: None)
    assert (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize(
    ("options", "views"), [([], None), (["--views", "1"], 1), (["--cache", "kept"], 1), (["--views", "2"], 2)]
)
def test_large_images_are_seen_anew_in_every_epoch_unless_views_are_stored(
    own_images: str, own_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], views: Any
) -> None:
    """One random part of each image for all epochs would be little to learn from."""
    asked = []

    def stop(*given: Any, **options: Any) -> None:
        asked.append((options["views"], type(options["teacher"]).__name__))
        raise ValueError("far enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "fit", stop)
    job = ["--data", own_images, "--image-size", "32", "--teacher", str(own_teacher), "--student", "resnet8"]
    assert call("distill", *job, "--no-baseline", *options, "--out", tmp_path / "run") == 2
    assert asked == [(views, "CifarResNet" if views is None else "CachedTeacher")]


def test_images_in_memory_are_stored_in_one_view(own_images: str) -> None:
    """Which data these are a job knows by their name."""
    for name, lazy in (("fashion-mnist", False), (own_images, True)):
        assert isinstance(data.load_images(name, image_size=32).train, data.LazyDataset) == lazy
        assert distill.Job(data=name).views == (0 if lazy else 1)


@pytest.mark.slow
def test_half_writes_16_bits(small_test_set: Any, tmp_path: Path) -> None:
    options = ["--images", 192, "--epochs", 1, "--quiet"]
    runs = {
        "model.safetensors": ["train", "--model", "article-student", "--learning-rate", "0.001", *options],
        "student.safetensors": ["distill", *TINY, "--no-baseline", "--epochs", 1],
    }
    for name, command in runs.items():
        for half, kind in ((["--half"], torch.float16), ([], torch.float32)):
            out = tmp_path / f"{name} {kind}"
            assert call(*command, *half, "--out", out) == 0
            assert {t.dtype for t in load_tensors(out / name)[0].values() if t.is_floating_point()} == {kind}


@pytest.mark.slow
def test_a_report_is_about_the_student_in_16_bits_that_is_written(small_test_set: Any, tmp_path: Path) -> None:
    options = ["--no-baseline", "--epochs", 1, "--half", "--precision", "fp32"]
    assert call("distill", *TINY, *options, "--out", tmp_path) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    test = data.load("fashion-mnist").test
    found = train.evaluate(models.load(tmp_path / "student.safetensors"), test, device="cpu", precision="fp32")
    assert report["student_accuracy"] == found.accuracy
    error = measure.calibration_error(found.logits, test.labels)
    assert report["student_calibration_error"] == pytest.approx(error, rel=1e-6)


@pytest.mark.slow
def test_a_file_says_how_its_images_were_normalised_and_one_of_another_size_is_warned_of(
    own_images: str, own_teacher: Path, tmp_path: Path
) -> None:
    _, facts = load_tensors(own_teacher)
    assert (facts["mean"], facts["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with pytest.warns(UserWarning, match="trained on images of 32 pixels a side, and those .* have 48.*imagefolder@32"):
        assert call("evaluate", own_teacher, "--data", own_images, "--image-size", 48) == 0
    loaded = data.load_images(own_images, image_size=48)
    with pytest.warns(UserWarning, match="The network was trained on images of 32 pixels a side"):
        export.export(models.load(own_teacher), tmp_path / "net.c", "c", loaded, least_agreement=0)
    with pytest.warns(UserWarning, match="The network 'own' was trained on images of 32 pixels a side"):
        compare.compare({"own": models.load(own_teacher), "other": models.build("resnet8", num_classes=3)}, loaded)


@pytest.mark.slow
def test_a_model_that_is_trained_further_has_the_size_of_its_new_images(
    own_images: str, own_teacher: Path, tmp_path: Path
) -> None:
    options = ["--data", own_images, "--image-size", 48]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The .* was trained on images of")
        further = ["--start", own_teacher, "--epochs", 1, "--batch-size", 8, "--quiet", "--out", tmp_path]
        assert call("train", *further, *options) == 0
        assert call("evaluate", tmp_path / "model.safetensors", *options) == 0


@pytest.mark.slow
def test_a_c_file_is_run_on_images_of_all_classes(own_images: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder has them class by class."""
    from kdlib import microcontroller

    seen = []

    def run(file: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
        seen.extend(labels.tolist())
        raise ValueError("far enough")

    monkeypatch.setattr(microcontroller, "run_on_cortex_m4", run)
    assert call("device", "net.c", "--data", own_images, "--image-size", 32, "--images", 3) == 2
    assert seen == [0, 1, 2]
