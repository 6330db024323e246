"""Programs of users with the types that docstrings promise: `make lint` checks them, nothing runs them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset, random_split

from kdlib import distill, evaluation, methods, verdict
from kdlib.hooks import ModelOutput


class AgeAndKind(methods.Method):
    """Two heads, and labels in a dict."""

    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"age": F.l1_loss(student.raw["age"], labels["age"])}


def wrong_age(output: Tensor, labels: dict[str, Tensor]) -> Tensor:
    return F.l1_loss(output, labels["age"])


def evaluated(network: nn.Module, samples: TensorDataset) -> float:
    half, _ = random_split(samples, [0.5, 0.5])
    evaluation.evaluate(network, half, task="regression", loss=wrong_age)
    return evaluation.evaluate(network, samples).accuracy


def compared(method: dict[int, float], baseline: dict[int, float]) -> verdict.Comparison:
    return verdict.compare(method, baseline)


def job(folder: Path) -> distill.Job:
    teachers = (folder / "first.safetensors", folder / "second.safetensors")
    return distill.Job(teacher=teachers, student=folder / "student.safetensors", cache=folder / "cache")
