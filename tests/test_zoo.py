"""Networks of timm and torchvision: built by name, saved, opened, paired by their stages, trained by a command."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlib import cli, evaluation, models
from kdlib.data import DataModule, InMemoryDataset

timm = pytest.importorskip("timm")
SMALL = "timm:test_resnet.r160_in1k"  # timm's own network for tests


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been downloaded; the networks get random weights."""
    asked: list[str] = []
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            asked.append(name)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    return asked


def test_it_is_timms_network_with_our_classes_and_channels() -> None:
    model = models.build(SMALL, num_classes=7, in_channels=1, seed=3)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    again, other = (models.build(SMALL, num_classes=7, in_channels=1, seed=seed) for seed in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_saved_one_is_opened_again(tmp_path: Path) -> None:
    model = models.build(SMALL, num_classes=3, in_channels=1, seed=0).eval()
    models.save(model, tmp_path / "one.safetensors")
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(models.load(tmp_path / "one.safetensors")(x), model(x))


def test_weights_are_downloaded_when_they_are_asked_for(downloads: list[str]) -> None:
    assert not models.load(SMALL).training
    assert downloads == ["test_resnet.r160_in1k"]
    models.create(SMALL, num_classes=5)
    assert len(downloads) == 1


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(OSError, match=r"Could not get timm's weights for .* \(no route to host\).*check the network"):
        models.load(SMALL)


def test_an_architecture_without_trained_weights_is_no_failed_download() -> None:
    some = {name.partition(".")[0] for name in timm.list_pretrained()}
    bare = next(name for name in timm.list_models("resnet*") if name not in some)
    with pytest.raises(ValueError, match=rf"the architecture {bare}, but no trained weights for it. .*have some: res"):
        models.load(f"timm:{bare}")


def test_one_that_cannot_be_built_without_memory_is_saved_and_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def of_an_older_version(*args: Any, **options: Any) -> Any:
        torch.linspace(0, 0.1, 3)[1].item()  # the rates of stochastic depth, which the meta device refuses
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", of_an_older_version)
    test_a_saved_one_is_opened_again(tmp_path)


def test_its_stages_are_known_and_paired_from_the_end() -> None:
    teacher = models.create("timm:resnet18")
    student = models.build("resnet8", num_classes=10)
    assert models.stage_layers(teacher) == ["layer1", "layer2", "layer3", "layer4"]
    assert models.stage_layers(models.create("timm:convnext_atto")) == [f"stages.{number}" for number in range(4)]
    assert models.pair_layers(student, teacher, "all") == {
        "layer1": "layer2",
        "layer2": "layer3",
        "layer3": "layer4",
    }
    assert models.pair_layers(student, teacher, "embedding") == {"avgpool": "global_pool"}


def test_torchvisions_by_name() -> None:
    assert models.create("torchvision:resnet18", num_classes=4)(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    with pytest.raises(ValueError, match="no classification model of torchvision named 'resnet17'. Did you mean"):
        models.create("torchvision:resnet17")
    with pytest.raises(ValueError, match="take 3 channels; got in_channels=1"):
        models.create("torchvision:resnet18", in_channels=1)
    with pytest.raises(ValueError, match='named "timm:NAME" or "torchvision:NAME"; got'):
        models.create("resnet18")


@pytest.mark.slow
def test_commands_take_it_as_teacher_and_as_student(
    downloads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    common = ["--images", "64", "--epochs", "1", "--batch-size", "32", "--precision", "fp32", "--quiet"]
    monkeypatch.setattr("sys.argv", ["kdlib", "train", "--model", SMALL, "--out", str(teacher), *common])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    command = ["kdlib", "distill", "--teacher", str(teacher / "model.safetensors"), "--student", SMALL]
    monkeypatch.setattr("sys.argv", [*command, "--method", "logit+hint", "--out", str(out), *common])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert (out / "student.safetensors").is_file()
    assert models.load(out / "student.safetensors").config["architecture"] == SMALL
    assert downloads == []


def test_a_teacher_whose_images_were_normalised_otherwise_is_warned_of(downloads: list[str], blobs: DataModule) -> None:
    def coloured(mean: tuple[float, ...], std: tuple[float, ...]) -> DataModule:
        grey = blobs.train
        colours = InMemoryDataset(grey.images.expand(-1, 3, -1, -1).contiguous(), grey.labels, grey.indices, mean, std)
        return replace(blobs, train=colours)

    own = coloured((0.3,) * 3, (0.15,) * 3)
    teacher = models.create(SMALL, pretrained=True, num_classes=3)
    assert teacher.normalization == (teacher.pretrained_cfg["mean"], teacher.pretrained_cfg["std"])
    with pytest.warns(
        UserWarning, match=r"normalised by mean 0.5, 0.5, 0.5 .*blobs have 0.3, 0.3, 0.3.*mean=..., std="
    ):
        evaluation.warn_of_other_images("teacher", teacher, own)
    same = coloured(*teacher.normalization)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation.warn_of_other_images("teacher", teacher, same)
        evaluation.warn_of_other_images("student", models.create(SMALL, num_classes=3), own)  # fresh weights
        evaluation.warn_of_other_images("teacher", teacher, blobs)  # of other channels: the error is another one
