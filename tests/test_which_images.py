"""Which images calibrate an int8 network, and teach a teacher of the student's size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdlib import data, export
from kdlib.data import DataModule
from kdlib.study import experiment as module
from kdlib.study.plans import Budget


@pytest.mark.slow
def test_int8_is_calibrated_on_training_images(
    blobs: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), []

    def write(model: nn.Module, path: Path, images: Any) -> Path:
        seen.append(images)
        path.write_bytes(b"x")
        return path

    known = replace(export.FORMATS["onnx-int8"], write=write, load=lambda path: torch.no_grad()(network.forward))
    monkeypatch.setitem(export.FORMATS, "onnx-int8", known)
    export.export(network, tmp_path / "a", "onnx-int8", blobs)
    assert torch.equal(seen[0], data.normalized_images(blobs.train))  # 96, of at most 512


def test_the_teacher_of_the_students_size_learns_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(module.train, "fit", lambda model, images, **_: seen.append(len(images.train)))
    module.Experiment(Budget(images=100), tmp_path).same_size_teacher()
    assert seen == [55_000]
