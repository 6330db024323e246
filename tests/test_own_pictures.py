"""Pictures of one's own: a folder with its size in the name, and a study of the methods that one names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from course.capstone import pictures
from kdlib import data, export, models
from kdlib.study import command, plans
from kdlib.study.runs_file import read_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "pictures"
    assert pictures.write(path, scale=60) == {"train": 50, "val": 10, "test": 30}
    return path


def test_the_size_may_stand_in_the_name(folder: Path) -> None:
    named = data.load(f"imagefolder@16:{folder}", num_workers=0)
    given = data.load(f"imagefolder:{folder}", image_size=16, num_workers=0)
    assert named.image_size == 16
    assert named.train.fingerprint == given.train.fingerprint
    assert next(named.train.iter_batches(2)).images.shape == (2, 3, 16, 16)
    assert named.name == f"imagefolder@16:{folder}"
    assert data.load(f"imagefolder@16:{folder}", image_size=64, num_workers=0).image_size == 16


@pytest.mark.parametrize("size", ["", "x", "7", "-32", "4097", "3.5", "²", "9" * 5000])
def test_a_size_that_is_none_is_explained(size: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="names no size of the images.*as in imagefolder@32:PATH"):
        data.load(f"imagefolder@{size}:{folder}")


@pytest.mark.parametrize("name", ["imagefolder@32:", "imagefolder@32", "fashion-mnist@32"])
def test_a_size_alone_is_no_dataset(name: str) -> None:
    with pytest.raises(ValueError, match="imagefolder:PATH|fashion-mnist"):
        data.load(name)


def test_a_folder_that_holds_something_is_not_touched(folder: Path, tmp_path: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="is there already"):
        pictures.write(folder)
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(ValueError, match="scale"):
        pictures.write(tmp_path / "new", scale=0)


def test_the_pictures_are_those_of_fashion_mnist(folder: Path) -> None:
    fashion, own = data.load("fashion-mnist"), data.load(f"imagefolder@28:{folder}", num_workers=0)
    assert len(own.classes) == 10
    from torchvision.transforms.v2.functional import pil_to_tensor

    bag = own.classes.index("bag")
    place = own.test.source.targets.index(bag)
    first = (fashion.test.labels == 8).nonzero()[0, 0]
    assert torch.equal(pil_to_tensor(own.test.source[place][0])[0], fashion.test.images[first, 0])


def test_a_plan_of_ones_own_methods() -> None:
    plan = plans.of_methods(["kd", "shuffled", "kd"])
    assert [variant.name for variant in plan.variants({})] == ["hard", "kd", "shuffled"]
    assert plan.kind == "methods"
    assert [spec.name for spec in plan.tuned] == ["hard", "kd", "shuffled"]
    with pytest.raises(ValueError, match="Did you mean 'shuffled'"):
        plans.of_methods(["shufled"])


@pytest.mark.slow
def test_a_study_of_a_folder_by_methods(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    teacher = tmp_path / "teacher.safetensors"
    models.save(models.build("resnet8", num_classes=10, in_channels=3, image_size=16), teacher)
    arguments = ["--data", f"imagefolder@16:{folder}", "--method", "kd", "--method", "shuffled"]
    arguments += ["--teacher", str(teacher), "--images", "40", "--epochs", "1", "--views", "1", "--seeds", "1"]
    arguments += ["--defaults", "--device", "cpu", "--precision", "fp32", "--quiet"]
    arguments += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", ["kdlib", *arguments])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert not stop.value.code
    rows = read_rows(tmp_path / "out" / "methods-resnet8-teacher-40.csv")
    assert [row["method"] for row in rows] == ["hard", "kd", "shuffled"]
    assert {row["data"] for row in rows} == {f"imagefolder@16:{folder}"}
    noted = json.loads((tmp_path / "out" / "methods-resnet8-teacher-40.json").read_text())["sessions"][0]["command"]
    assert f"imagefolder@16:{folder}" in noted
    assert "All runs are in" in capsys.readouterr().out


def test_an_exports_report_says_on_which_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = export.ExportReport("onnx", "model.onnx", 1, 1, 0.5, 0.5, 1.0, 0.0, 1.0, 1)
    monkeypatch.setattr(export, "export", lambda *given, **named: made)
    fashion, model = data.load("fashion-mnist"), models.build("resnet8", num_classes=10, in_channels=1)
    for validation, split in ((True, "validation"), (False, "test")):
        export.export_all(model, tmp_path / split, ["onnx"], fashion, validation=validation)
        assert json.loads((tmp_path / split / "report.json").read_text())["split"] == split
