"""The command line: what it writes and prints, what it refuses, and that a kill loses nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from kdlib import cli, data, distill, loop, measure, models, train
from kdlib.files import load_tensors

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
    """The command reads 10,000 test images three times; for these tests the first 500 will do."""
    whole, real = data.load("fashion-mnist"), data.load
    few = torch.arange(500)
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


def test_distill_writes_student_history_curves_and_report(finished: tuple[Path, str]) -> None:
    out, _ = finished
    student = models.load(out / "student.safetensors")
    assert student.described["architecture"] == "resnet8"
    history = pd.read_csv(out / "history.csv", index_col="epoch")
    assert list(history.index) == [1, 2]
    assert {"student soft", "student hint layer3", "student fsp layer1-layer2", "baseline hard"} <= set(history)
    with Image.open(out / "curves.png") as picture:
        assert picture.width > 600
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 10
    report = json.loads((out / "report.json").read_text())
    assert report["job"]["method"] == "logit+feature+relation"


def test_the_last_line_is_one_json_object_that_tells_the_truth(finished: tuple[Path, str], small_test_set: Any) -> None:
    out, printed = finished
    report = json.loads(printed.strip().splitlines()[-1])
    assert report == json.loads((out / "report.json").read_text())
    student, teacher = models.load(out / "student.safetensors"), models.load("resnet20-fashion")
    ours, theirs = (train.evaluate(m, small_test_set.test) for m in (student, teacher))
    assert report["student_accuracy"] == pytest.approx(ours.accuracy, abs=0.004)  # bfloat16 or not
    assert report["teacher_accuracy"] == pytest.approx(theirs.accuracy, abs=0.004)
    assert report["agreement"] == pytest.approx(measure.agreement(ours.logits, theirs.logits), abs=0.006)
    assert report["student_parameters"] == measure.parameters(student) == 77_754
    assert report["teacher_parameters"] == measure.parameters(teacher)
    assert 0 < report["baseline_accuracy"] < 1
    assert report["seconds"] > 0


def test_the_table_names_both_students_and_warns_of_one_seed(finished: tuple[Path, str]) -> None:
    _, printed = finished
    assert "resnet8, hard labels " in printed
    assert "resnet8, logit+feature+relation " in printed
    assert "One run, one seed: a hint, not evidence" in printed
    assert "answers for 192 images in 1 view." in printed


def test_baseline_and_student_start_from_the_same_weights(small_test_set: Any, tmp_path: Path) -> None:
    """Distilling by hard labels is the baseline itself: equal in every digit."""
    assert call("distill", *TINY, "--method", "hard", "--out", tmp_path, "--precision", "fp32") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["student_accuracy"] == report["baseline_accuracy"]


def test_no_baseline_leaves_it_out_and_views_0_asks_live(
    small_test_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--no-baseline", "--views", "0", "--epochs", "1", "--json"]
    assert call("distill", *TINY, *options, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.strip().splitlines()[-1])
    assert report["baseline_accuracy"] is None
    assert "hard labels" not in printed
    assert "answers for" not in printed
    assert not any(name.startswith("baseline") for name in pd.read_csv(tmp_path / "history.csv"))


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


def test_a_cache_is_used_again_and_refused_for_another_teacher(
    small_test_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--no-baseline", "--epochs", "1", "--cache", tmp_path / "answers"]
    reports = []
    for run in ("first", "second"):
        assert call("distill", *TINY, *options, "--out", tmp_path / run) == 0
        reports.append(json.loads((tmp_path / run / "report.json").read_text()))
    assert reports[0]["student_accuracy"] == reports[1]["student_accuracy"]
    other = tmp_path / "other.safetensors"
    models.save(models.build("resnet20", num_classes=10, in_channels=1, seed=5), other)
    assert call("distill", *TINY, *options, "--teacher", other, "--out", tmp_path / "third") == 2
    assert "was built for another teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "logti"], "There is no method named 'logti'. Did you mean 'logit'"),
        (["--method", "logit+"], "There is no method named ''"),
        (["--method", "1-2*feature"], "weight '1-2'"),
        (["--student", "resnet81"], "no model named 'resnet81'. Did you mean"),
        (["--teacher", "resnet20-fasion"], "no trained model named 'resnet20-fasion'. Did you mean 'resnet20-fashion'"),
        (["--data", "fashion-mnits"], "no data set named 'fashion-mnits'. Did you mean 'fashion-mnist'"),
        (["--temperature", "0"], "temperature is a positive number"),
        (["--temperature", "nan"], "temperature is a positive number"),
        (["--alpha", "1.5"], "alpha is the weight of the hard-label loss and lies in [0, 1]"),
        (["--images", "0"], "cannot take 0 of them"),
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
    _, described = load_tensors(tmp_path / "model.safetensors")
    assert described["test_accuracy"] == trained["test_accuracy"]
    assert call("evaluate", tmp_path / "model.safetensors", "--teacher", "resnet20-fashion", "--json") == 0
    measured = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert measured["accuracy"] == pytest.approx(trained["test_accuracy"], abs=0.004)
    assert {"agreement", "teacher_accuracy", "calibration_error", "loss", "parameters"} <= measured.keys()
    assert call("evaluate", tmp_path / "model.safetensors") == 0
    assert "accuracy" in capsys.readouterr().out


def test_the_commands_defaults_are_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []
    monkeypatch.setattr(distill, "distill", lambda job, out, **options: jobs.append(job) or sys.exit(0))
    assert call("distill", "--out", tmp_path) == 0
    assert jobs == [distill.Job()]


def test_default_methods_pair_networks_of_different_depth_from_the_end() -> None:
    student, teacher = (models.build(n, num_classes=3) for n in ("resnet8", "resnet18"))
    feature = distill.build_method("feature", student, teacher, distill.Job())
    assert feature.student_layers == ("layer3",)
    assert feature.teacher_layers == ("layer4",)
    relation = distill.build_method("hard + 3*relation", student, teacher, distill.Job())
    assert relation.weights == [1.0, 3.0]
    assert relation.teacher_layers == ("layer2", "layer3", "layer4")
    logit = distill.build_method("logit", student, teacher, distill.Job(temperature=2, alpha=0.5))
    assert (logit.temperature, logit.alpha) == (2, 0.5)


# --- a kill loses nothing ----------------------------------------------------------------------------------------


def start(out: Path, *options: str) -> subprocess.Popen:
    """Train in a process of its own, with a checkpoint every three of twenty steps."""
    command = [
        sys.executable,
        "-m",
        "kdlib",
        "train",
        "--model",
        "article-student",
        "--images",
        "1280",
        "--epochs",
        "2",
    ]
    command += ["--optimizer", "rmsprop", "--learning-rate", "0.001"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--every", "3", "--out", str(out), "--quiet", *options], env=environment)


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_is_never_stopped_to_the_bit(tmp_path: Path) -> None:
    never_stopped, process = start(tmp_path / "whole"), start(tmp_path / "killed")
    checkpoint = tmp_path / "killed" / "checkpoint"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    _, described = load_tensors(checkpoint)
    assert 0 < described["facts"]["step"] < 20
    assert start(tmp_path / "killed", "--resume").wait() == 0
    assert never_stopped.wait() == 0
    whole, resumed = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "killed"))
    assert whole == resumed


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    process = start(tmp_path, "--epochs", "50")
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130


# --- pictures of one's own ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three colours in a folder, 24 pictures to learn from and 12 to test on."""
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
def own_teacher(own_pictures: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that the command trained on these pictures, at a size of its own."""
    out = tmp_path_factory.mktemp("own-teacher")
    options = ["--epochs", "1", "--batch-size", "8", "--size", "32", "--every", "1", "--quiet"]
    assert call("train", "--data", own_pictures, "--model", "resnet8", *options, "--out", out) == 0
    return out / "model.safetensors"


def test_train_takes_the_size_of_pictures_in_a_folder(own_teacher: Path) -> None:
    teacher = models.load(own_teacher)
    assert teacher.described["image_size"] == 32
    assert teacher.described["num_classes"] == 3


def test_a_teacher_of_other_pictures_or_classes_is_refused_before_it_is_asked(
    own_pictures: str, own_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_test_set: Any
) -> None:
    common = ["--data", own_pictures, "--size", "32"]
    other = tmp_path / "five.safetensors"
    models.save(models.build("resnet8", num_classes=5, in_channels=3, image_size=32), other)
    for teacher, said in (
        ("resnet20-fashion", "The teacher cannot take images of 3 x 32 x 32"),
        (other, "teacher gives 5 logits, but"),
    ):
        assert call("distill", *common, "--teacher", teacher, "--student", "resnet8", "--out", tmp_path / "run") == 2
        found = capsys.readouterr()
        assert said in found.err
        assert "asking the teacher" not in found.err
    assert call("evaluate", "resnet20-fashion", *common) == 2
    assert "model cannot take images of 3 x 32 x 32" in capsys.readouterr().err
    two = tmp_path / "two.safetensors"
    models.save(models.build("resnet8", num_classes=2, in_channels=3, image_size=32), two)
    assert call("evaluate", two, *common) == 2
    assert "gives 2 logits, but there are labels up to 2" in capsys.readouterr().err


def test_distill_writes_checkpoints_within_an_epoch(own_pictures: str, own_teacher: Path, tmp_path: Path) -> None:
    steps, save = [], loop.Loop._save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "_save", lambda self: (steps.append(self.step), save(self)))
        options = ["--epochs", "1", "--batch-size", "8", "--size", "32", "--no-baseline", "--quiet"]
        given = ["--data", own_pictures, "--teacher", own_teacher, "--student", "resnet8", "--every", "1"]
        assert call("distill", *given, *options, "--out", tmp_path) == 0
    assert steps == [1, 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "feature", "--layers", "layer3:layer3", "--layers", "layer3:layer2"], "each student layer once"),
        (["--method", "logit", "--layers", "layer3:layer3"], "--layers serves feature and relation"),
        (["--every", "0"], "every"),
    ],
)
def test_layers_that_would_be_ignored_are_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_test_set: Any
) -> None:
    assert call("distill", *TINY, *options, "--out", tmp_path / "run") == 2
    assert said in capsys.readouterr().err


def test_what_could_not_be_saved_is_refused_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_test_set: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", lambda name: torch.nn.Linear(2, 2))
        assert call("train", "--start", "mobilenet_v2-imagenet", "--out", tmp_path / "run") == 2
    assert "was not made by models.build" in capsys.readouterr().err
