"""The shipped teacher's outputs for a split of Fashion-MNIST: read from a file, or computed once per session."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdlib import data, models
from kdlib.evaluation import evaluate

TEACHER = "resnet20-fashion"
TEACHER_SHA256 = "372901004804f36126a02260d55e648e236e709d415a1f5a6f3e56b46c783713"
ANSWERS = f"{TEACHER}-answers.npy"  # float32, 15,000 x 10: validation, then test
ANSWERS_SHA256 = "78c1802aaed09f4aa19a5fb2989e48666b615556a7972b4e83c99db6a85265f3"
SPLITS = {  # the fingerprint and the rows of each
    "validation": ("84cfac4cad5d52799a2a229b525b44356c83288ad8f23c2284641b47abe6432b", slice(0, 5_000)),
    "test": ("e469c0a8e420857413f0f79c8318e99de23307dc15ddaf09949fb1dd181d4532", slice(5_000, 15_000)),
}


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
    """The teacher's outputs for all images of a split, "validation" or "test".

    They come with the course, computed in float32 on the CPU. Where file, teacher or images are others than those they
    were computed with, they are computed anew, which takes one to five seconds and gives nearly the same numbers on
    every machine. Test images are only shown: nothing is chosen by them. Raises ValueError for another split.
    """
    if split not in SPLITS:
        raise ValueError(f'split is "validation" or "test", not {split!r}: the teacher was trained on the rest.')
    fashion = data.load("fashion-mnist")
    dataset: Any = fashion.validation if split == "validation" else fashion.test
    logits = _shipped_logits(split, dataset)
    if logits is None:
        logits = evaluate(models.load(TEACHER), dataset, device="cpu", precision="fp32").logits
    return TeacherOutputs(dataset.images[:, 0], dataset.labels, logits.double(), fashion.classes)


def _shipped_logits(split: str, dataset: Any) -> Tensor | None:
    """The logits that come with the course, or None if they belong to another teacher or other images."""
    fingerprint, rows = SPLITS[split]
    try:
        weights, answers = ((data.data_dir() / name).read_bytes() for name in (f"{TEACHER}.safetensors", ANSWERS))
    except OSError:
        return None
    sums = [hashlib.sha256(content).hexdigest() for content in (weights, answers)]
    if sums != [TEACHER_SHA256, ANSWERS_SHA256] or dataset.fingerprint != fingerprint:
        return None
    return torch.from_numpy(np.load(io.BytesIO(answers), allow_pickle=False)[rows].copy())
