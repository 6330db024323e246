"""The article's setting, ResNet-50 to ResNet-18 on ImageNet at T = 2 and alpha = 0.5: the command of README and lesson.

ImageNet and torchvision's weights cannot be had here, so a small folder in ImageNet's layout stands for the one, and a
file of random weights, where torchvision keeps its downloads, for the other. The command is the same.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kdlib import cli, models

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    *("--images", "100", "--epochs", "1", "--image-size", "32", "--batch-size", "50", "--learning-rate", "0.01"),
    *("--quiet", "--json"),
]
SOURCES = {"README": ROOT / "README.md", "lesson 08": ROOT / "notebooks" / "08_distil_a_resnet.ipynb"}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand classes, each a folder named by its synset, with images of several shapes."""
    root = tmp_path_factory.mktemp("imagenet")
    for part, count in (("train", 2), ("val", 1)):
        for label in range(1000):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (40 + label % 3, 36 + number)
                Image.new("RGB", shape, (label % 256, label // 4, 80)).save(folder / f"{number}.JPEG")
    return root


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of torchvision's downloads, with the weights of an untrained ResNet-50 in it."""
    from torchvision import models as zoo

    home = tmp_path_factory.mktemp("torch")
    path = home / "hub" / "checkpoints" / Path(zoo.get_model_weights("resnet50").DEFAULT.url).name
    path.parent.mkdir(parents=True)
    torch.save(zoo.resnet50().state_dict(), path)
    return home


def command(source: str, folder: Path) -> list[str]:
    """What follows `kdlib` in the command with imagenet:PATH, the same wherever it stands, with a folder for PATH."""
    text = SOURCES[source].read_text(encoding="utf-8")
    if SOURCES[source].suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    lines = [
        line for line in text.replace("\\\n", " ").splitlines() if "imagenet:PATH" in line and "kdlib distill" in line
    ]
    first, *others = [shlex.split(line.partition("kdlib ")[2], comments=True) for line in lines]
    assert all(other == first for other in others)
    return [part.replace("PATH", str(folder)) for part in first]


@pytest.mark.parametrize("source", SOURCES)
def test_the_command_has_the_articles_settings(source: str) -> None:
    options = command(source, Path("somewhere"))
    assert options == command("README", Path("somewhere"))  # the one that is run below
    pairs = dict(zip(options[1::2], options[2::2], strict=True))
    wanted = {"--teacher": "resnet50-imagenet", "--student": "resnet18", "--temperature": "2", "--alpha": "0.5"}
    assert wanted.items() <= pairs.items()


def check_report(report: dict[str, Any], student: Path) -> None:
    assert report["job"]["temperature"] == 2.0
    assert report["job"]["alpha"] == 0.5
    assert report["teacher_parameters"] == 25_557_032
    assert report["student_parameters"] == 11_689_512
    assert models.load(student)(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


@pytest.mark.slow
def test_the_command_distils(
    imagenet: Path, torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    # what comes last counts
    monkeypatch.setattr(sys, "argv", ["kdlib", *command("README", imagenet), *SMALL, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    check_report(report, tmp_path / "student.safetensors")
    assert 0 <= report["baseline_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun on Windows has no gloo by default")
def test_the_command_distils_under_torchrun(imagenet: Path, torch_home: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = [*command("README", imagenet), *SMALL, "--no-baseline", "--out", str(tmp_path)]
    environment = os.environ | {"TORCH_HOME": str(torch_home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    full = [sys.executable, *launcher, "-m", "kdlib", *options]
    done = subprocess.run(full, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    check_report(json.loads(done.stdout.splitlines()[-1]), tmp_path / "student.safetensors")
