"""`kdlib doctor`: what it prints, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlib import cli, data, distill, models
from kdlib.doctor.job import examine_job

JOB = ["doctor", "--teacher", "resnet20-fashion", "--student", "resnet8", "--images", "128", "--device", "cpu"]


def call(*arguments: Any) -> int:
    """Run the command as a shell would, in this process; the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kdlib", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code or 0


@pytest.fixture(autouse=True)
def few_images(fashion: Any) -> Any:
    """For these tests 128 training images will do, and the first 50 of the others."""
    real = data.load_images
    some = torch.arange(50)
    parts = {part: getattr(fashion, part).select(some) for part in ("validation", "test")}
    short = replace(fashion, train=fashion.train.select(torch.arange(128)), **parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            data, "load_images", lambda name, **options: short if name == "fashion-mnist" else real(name, **options)
        )
        yield short


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """A teacher that was never trained."""
    path = tmp_path / "teacher.safetensors"
    models.save(models.build("resnet8", num_classes=10, in_channels=1, seed=1), path)
    return path


@pytest.mark.slow
def test_a_sound_job_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*JOB, "--method", "logit+hint", "--clip", "1") == 0
    assert "Nothing found" in capsys.readouterr().out


@pytest.mark.slow
def test_a_fault_ends_with_1_and_is_in_the_json(untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*JOB[:1], "--teacher", untrained, *JOB[3:], "--json") == 1
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert report["sound"] is False
    assert "teacher-fresh" in {one["check"] for one in report["findings"]}


@pytest.mark.slow
def test_nothing_is_written_and_nothing_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = distill.Job(teacher="resnet20-fashion", student="resnet8", method="hard", images=64, device="cpu")
    report = examine_job(job)
    assert report.sound
    assert "teacher-accuracy" in report.skipped  # hard labels have no teacher
    assert list(tmp_path.iterdir()) == []


def test_the_commands_defaults_are_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdlib.doctor import job as jobs

    seen = []
    monkeypatch.setattr(jobs, "examine_job", lambda job: seen.append(job) or sys.exit(0))
    assert call("doctor") == 0
    assert seen == [distill.Job()]


BAD: dict[str, tuple[list[str], str]] = {  # and what the sentence says of it
    "an unknown teacher": (["--teacher", "resnet21-fashion"], "trained model named 'resnet21-fashion'"),
    "an empty teacher": (["--teacher", ""], "trained model named ''"),
    "a folder as teacher": (["--teacher", "/tmp"], "trained model named '/tmp'"),
    "a text as teacher": (["--teacher", __file__], "is not a readable safetensors file"),
    "an unknown student": (["--student", "resnet7000"], "no model named 'resnet7000'"),
    "an unknown method": (["--method", "logitt"], "no method named 'logitt'"),
    "no method": (["--method", ""], "no method named ''"),
    "a weight below zero": (["--method", "-1*hint"], "weight .* at least 0; got -1"),
    "a temperature of nothing": (["--temperature", "0"], "temperature .* got 0"),
    "a temperature that is NaN": (["--temperature", "nan"], "temperature .* got nan"),
    "an alpha of two": (["--alpha", "2"], "alpha .* got 2"),
    "a layer that is not there": (
        ["--method", "hint", "--layers", "layer9:layer3"],
        "no layer in CifarResNet named 'layer9'",
    ),
    "half a pair of layers": (["--method", "hint", "--layers", "layer3"], "STUDENT:TEACHER.* got layer3"),
    "data that do not exist": (["--data", "imagefolder:/nowhere"], "/nowhere/train does not hold"),
    "unknown data": (["--data", "fashion"], "no dataset named 'fashion'"),
    "no images": (["--images", "0"], "no subset of 0"),
    "more images than there are": (["--images", "100000000"], "no subset of 100,000,000"),
    "a batch of one": (["--batch-size", "1"], "batch_size .* got 1"),
    "a rate of NaN": (["--learning-rate", "nan"], "learning_rate .* got nan"),
    "an unknown optimiser": (["--optimizer", "adamm"], "no optimizer named 'adamm'"),
    "a clip below zero": (["--clip", "-1"], "clip .* got -1"),
    "a device of another world": (["--device", "meta"], "no device 'meta'"),
    "a number that is a text": (["--images", "many"], "'--images'"),
    "an option that does not exist": (["--epochs", "3"], "No such option: --epochs"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_users_mistake_ends_with_2_in_a_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, text = BAD[name]
    assert call(*JOB, *options) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert re.search(text, shown.err)
    assert len(shown.err) < 2500
