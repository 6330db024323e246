"""The shipped teacher's answers to a split of Fashion-MNIST, asked for once a session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from torch import Tensor

from kdlib import data, models
from kdlib.evaluation import evaluate

TEACHER = "resnet20-fashion"


@dataclass(frozen=True, eq=False)
class Answers:
    """Pictures (uint8, N x H x W), their labels (N), the teacher's logits (float64, N x C), the classes' names."""

    images: Tensor
    labels: Tensor
    logits: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@cache
def answers(split: str = "validation") -> Answers:
    """What the teacher says to all pictures of a split, "validation" or "test": one to five seconds, once.

    In float32 on the CPU, so that the numbers are nearly the same on every machine. Looking at test pictures is no
    choice: nothing is decided by them.
    """
    if split not in ("validation", "test"):
        raise ValueError(f'split is "validation" or "test", not {split!r}: to the rest the teacher was trained.')
    fashion = data.load("fashion-mnist")
    chosen = getattr(fashion, split)
    logits = evaluate(models.load(TEACHER), chosen, device="cpu", precision="fp32").logits
    return Answers(chosen.images[:, 0], chosen.labels, logits.double(), fashion.classes)
