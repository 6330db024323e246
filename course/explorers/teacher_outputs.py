"""The shipped teacher's outputs for a split of Fashion-MNIST, computed once per session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from kdlib import data, models
from kdlib.evaluation import evaluate

TEACHER = "resnet20-fashion"


@dataclass(frozen=True, eq=False)
class TeacherOutputs:
    """Images (uint8, N x H x W), their labels (N), the teacher's logits (float64, N x C), the names of the classes."""

    images: Tensor
    labels: Tensor
    logits: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@cache
def teacher_outputs(split: str = "validation") -> TeacherOutputs:
    """The teacher's outputs for all images of a split, "validation" or "test"; takes one to five seconds, once.

    They are computed in float32 on the CPU, so that the numbers are nearly the same on every machine. Test images are
    only shown: nothing is chosen by them. Raises ValueError for another split.
    """
    if split not in ("validation", "test"):
        raise ValueError(f'split is "validation" or "test", not {split!r}: the teacher was trained on the rest.')
    fashion = data.load("fashion-mnist")
    dataset: Any = fashion.validation if split == "validation" else fashion.test
    logits = evaluate(models.load(TEACHER), dataset, device="cpu", precision="fp32").logits
    return TeacherOutputs(dataset.images[:, 0], dataset.labels, logits.double(), fashion.classes)
