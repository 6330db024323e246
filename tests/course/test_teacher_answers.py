"""The teacher's answers that come with the course: those that it gives, used only where nothing else is meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from course.explorers import teacher_outputs as module
from course.explorers.teacher_outputs import ANSWERS, TEACHER, teacher_outputs
from kdlib import data, models
from kdlib.evaluation import Metrics

SHIPPED = Path(__file__).resolve().parents[2] / "data"


class AskedError(Exception):
    """The teacher was asked."""


def ask(*_: object, **__: object) -> Metrics:
    raise AskedError


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    teacher_outputs.cache_clear()
    yield
    teacher_outputs.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of links to what is shipped; asking the teacher is an error."""
    place = tmp_path / "data"
    place.mkdir()
    for path in SHIPPED.iterdir():
        (place / path.name).symlink_to(path)
    monkeypatch.setenv("KDLIB_DATA", str(place))
    monkeypatch.setattr(module, "evaluate", ask)
    return place


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_shipped_answers_are_those_of_the_teacher(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "evaluate", ask)
    shipped = teacher_outputs(split)
    dataset = getattr(data.load("fashion-mnist"), split)
    some = torch.arange(0, len(dataset), 50)
    images = next(dataset.select(some).iter_batches(len(some))).images
    with torch.no_grad():
        computed = models.load(TEACHER)(images)
    assert shipped.logits.dtype == torch.float64
    torch.testing.assert_close(shipped.logits[some], computed.double(), rtol=1e-4, atol=1e-4)
    assert torch.equal(shipped.labels, dataset.labels)
    assert torch.equal(shipped.images, dataset.images[:, 0])


def test_an_unaltered_folder_needs_no_teacher(folder: Path) -> None:
    assert len(teacher_outputs()) == 5_000
    assert len(teacher_outputs("test")) == 10_000


@pytest.mark.parametrize("what", ["missing", "altered", "another teacher", "a folder"])
def test_otherwise_the_teacher_is_asked(folder: Path, what: str) -> None:
    path = folder / (f"{TEACHER}.safetensors" if what == "another teacher" else ANSWERS)
    content = bytearray(path.read_bytes())
    path.unlink()
    if what == "a folder":
        path.mkdir()
    elif what != "missing":
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(AskedError):
        teacher_outputs()


def test_other_pictures_are_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data.load("fashion-mnist")
    turned = replace(whole, validation=whole.validation.select(torch.arange(5_000).flip(0)))
    monkeypatch.setattr(module.data, "load", lambda name: turned)
    with pytest.raises(AskedError):
        teacher_outputs()


def test_the_answers_are_not_listed_as_a_model() -> None:
    assert [name for name in models.list_pretrained() if "answers" in name] == []
