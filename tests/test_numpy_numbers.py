"""NumPy's whole numbers, which come from labels.max() + 1 or a grid of settings, do what Python's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlib import data, losses, measure, models, train
from kdlib.data import Augmentation, DataModule, PairedDataset
from kdlib.recipes import Recipe
from kdlib.teachers import CachedTeacher

WHOLE = (np.int64, np.int32, np.uint8)
CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32", "progress": False}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_training_with_a_checkpoint(kind: type, blobs: DataModule, tmp_path: Path) -> None:
    shape = {"num_classes": kind(blobs.num_classes), "in_channels": kind(1), "image_size": kind(blobs.image_size)}
    student = models.build("resnet8", **shape, seed=kind(3))
    options: dict[str, Any] = {"views": kind(1), "checkpoint_every": kind(1), "gradient_accumulation_steps": kind(1)}
    recipe = Recipe(learning_rate=0.01, batch_size=kind(64))
    path = tmp_path / "c.safetensors"
    train.fit(student, blobs, epochs=kind(1), seed=kind(1), recipe=recipe, checkpoint=path, **options, **CPU)
    same = models.build("resnet8", num_classes=3, in_channels=1, image_size=blobs.image_size, seed=3)
    train.fit(same, blobs, epochs=1, seed=1, recipe=Recipe(learning_rate=0.01, batch_size=64), views=1, **CPU)
    for one, other in zip(student.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
    models.save(student, tmp_path / "m.safetensors", accuracy=np.float32(0.5), epoch=torch.tensor(3))
    assert models.get_config(models.load(tmp_path / "m.safetensors"))["num_classes"] == 3


def test_a_loader_with_a_number_of_steps(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(torch.randn(64, 6), torch.arange(64) % 2), 16)
    path = tmp_path / "c.safetensors"
    train.fit(nn.Linear(6, 2), loader, epochs=1, steps_per_epoch=np.int64(2), checkpoint=path, **CPU)
    assert path.is_file()


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    model = models.build("resnet8", num_classes=2, seed=0)
    with pytest.raises(TypeError, match=r"texts, numbers, lists and dictionaries of them; got \{3\}"):
        models.save(model, tmp_path / "m.safetensors", seeds={3})


@pytest.mark.parametrize("kind", WHOLE)
def test_evaluation_cache_and_latency(kind: type, blobs: DataModule) -> None:
    model = models.build("resnet8", num_classes=3, in_channels=1, seed=0)
    metrics = train.evaluate(model, blobs.test, batch_size=kind(20), device="cpu", precision="fp32")
    assert metrics.accuracy == train.evaluate(model, blobs.test, device="cpu", precision="fp32").accuracy
    options: dict[str, Any] = {"augmentation": blobs.augmentation, "seed": kind(0), "views": kind(1)}
    CachedTeacher.build(model, blobs.train, batch_size=kind(64), **options, **CPU)
    timed = measure.latency(model, (1, 8, 8), batch_size=kind(1), threads=kind(1), min_run_time=0.01)
    assert "1 thread" in str(timed)


@pytest.mark.parametrize("kind", WHOLE)
def test_classes_and_bins_of_a_measure(kind: type) -> None:
    logits, labels = torch.randn(30, 3), torch.arange(30) % 3
    assert measure.accuracy(logits, labels, top_k=kind(2)) == measure.accuracy(logits, labels, top_k=2)
    assert measure.calibration_error(logits, labels, bins=kind(5)) == measure.calibration_error(logits, labels, bins=5)


@pytest.mark.parametrize("kind", WHOLE)
def test_data(kind: type, blobs: DataModule) -> None:
    assert torch.equal(blobs.subset(kind(9)).train.indices, blobs.subset(9).train.indices)
    assert torch.equal(blobs.exclude_class(kind(1)).train.indices, blobs.exclude_class(1).train.indices)
    assert Augmentation(padding=kind(1)) == Augmentation(padding=1)
    paired = PairedDataset({"a": torch.randn(8, 3), "b": torch.randn(8, 3)}, torch.arange(8) % 2, torch.arange(8))
    assert len(list(paired.batches(kind(4), labelled=kind(1), steps=kind(2)))) == 2
    images = [(torch.full((1, 4, 4), 9 * n, dtype=torch.uint8), n % 2) for n in range(8)]
    parts = {"validation": images[4:6], "test": images[6:], "image_size": kind(4), "in_channels": 1}
    assert data.from_datasets(images[:4], classes=("a", "b"), **parts).image_size == 4


def test_the_order_of_a_kernel() -> None:
    rows: tuple[Tensor, Tensor] = (torch.randn(4, 3), torch.randn(4, 3))
    ours, pythons = (losses.correlation_congruence(*rows, order=order) for order in (np.int64(2), 2))
    assert torch.equal(ours, pythons)


@pytest.mark.parametrize(("value", "shown"), [("a", "'a'"), (1.0, "1.0"), (True, "True")])
def test_a_seed_that_is_none_is_told_without_a_bound(value: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"^seed is a whole number; got {shown}\.$"):
        models.build("resnet8", num_classes=2, seed=value)
