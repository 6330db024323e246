"""Lesson 00: right and wrong answers to its two functions, beyond the lists in the exercises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import code_grading
from course.grading import Outcome
from course.lessons.lesson00 import ACCURACY, COUNT
from course.specs import CodeSpec
from kdlib import measure

Answer = Callable[..., Any]

# -------------------- how many parameters


def counted_in_a_loop(model: nn.Module) -> Any:
    count = 0
    for _, parameter in model.named_parameters():
        size = 1
        for side in parameter.shape:
            size *= side
        count += size
    return count


def of_each_layer(model: nn.Module) -> Any:
    return sum(p.numel() for module in model.modules() for p in module.parameters(recurse=False))


RIGHT_COUNTS: tuple[Answer, ...] = (
    lambda model: sum(p.nelement() for p in model.parameters()),
    lambda model: sum(math.prod(p.shape) for p in model.parameters()),
    lambda model: np.sum([p.detach().numpy().size for p in model.parameters()]),
    lambda model: sum(np.prod(p.shape) for p in model.parameters()),
    lambda model: sum(p.flatten().shape[0] for p in model.parameters()),
    lambda model: sum(p.size().numel() for p in model.parameters()),
    lambda model: torch.tensor([p.numel() for p in model.parameters()]).sum(),
    lambda model: sum(torch.ones_like(p).sum() for p in model.parameters()),
    lambda model: len(nn.utils.parameters_to_vector(model.parameters())),
    lambda model: float(sum(map(torch.numel, model.parameters()))),
    counted_in_a_loop,
    of_each_layer,
    measure.count_parameters,
)
WRONG_COUNTS: tuple[Answer, ...] = (
    lambda model: sum(p.numel() for module in model.modules() for p in module.parameters()),  # each layer twice
    lambda model: sum(p.numel() for layer in model.children() for p in layer.parameters()),  # nothing of one layer
    lambda model: sum(m.weight.numel() + m.out_features for m in model.modules() if isinstance(m, nn.Linear)),
    lambda model: sum(p.numel() for name, p in model.named_parameters() if "weight" in name),
    lambda model: sum(p.numel() for name, p in model.named_parameters() if "bias" in name),
    lambda model: sum(p.shape[0] * p.shape[-1] for p in model.parameters()),
    lambda model: sum(sum(p.shape) for p in model.parameters()),
    lambda model: sum(p.ndim for p in model.parameters()),
    lambda model: sum(int((p != 0).sum()) for p in model.parameters()),  # zeros are parameters, too
    lambda model: sum(p.unique().numel() for p in model.parameters()),
    lambda model: max(p.numel() for p in model.parameters()),
    lambda model: math.prod(p.numel() for p in model.parameters()),
    lambda model: sum(b.numel() for b in model.buffers()),
    lambda model: [p.numel() for p in model.parameters()],
    lambda model: model.parameters(),
    lambda model: sum(p.numel() for p in model.parameters()) / 1e6,
    lambda model: sum(p.numel() for p in model.parameters()) + 1,
    lambda model: 8,
)

# -------------------- the accuracy


def with_numpy(logits: Tensor, labels: Tensor) -> Any:
    return np.mean(np.argmax(logits.numpy(), axis=1) == labels.numpy())


def by_hand(logits: Tensor, labels: Tensor) -> Any:
    right = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        right += row.index(max(row)) == label
    return right / len(labels)


def of_classes(logits: Tensor, labels: Tensor) -> Any:
    """Balanced: the mean over the classes that occur."""
    right = logits.argmax(1) == labels
    return torch.stack([right[labels == label].float().mean() for label in labels.unique()]).mean()


RIGHT_SHARES: tuple[Answer, ...] = (
    lambda logits, labels: (logits.topk(1, dim=1).indices.squeeze(1) == labels).float().mean(),
    lambda logits, labels: (logits.max(dim=-1).indices == labels).double().mean().item(),
    lambda logits, labels: (logits.argsort(dim=1)[:, -1] == labels).sum() / len(labels),
    lambda logits, labels: (logits.softmax(dim=1).argmax(1) == labels).sum().item() / labels.numel(),
    lambda logits, labels: torch.eq(F.log_softmax(logits, 1).argmax(-1), labels).to(torch.float32).mean(),
    lambda logits, labels: 1 - (logits.argmax(1) != labels).float().mean(),
    lambda logits, labels: F.one_hot(logits.argmax(1), logits.shape[1])[range(len(labels)), labels].float().mean(),
    lambda logits, labels: np.float32((logits.argmax(1) == labels).float().mean()),
    lambda logits, labels: torch.tensor([z.argmax() == y for z, y in zip(logits, labels, strict=True)]).float().mean(),
    lambda logits, labels: torch.count_nonzero(logits.argmax(1) == labels).div(labels.shape[0]).item(),
    with_numpy,
    by_hand,
)
WRONG_SHARES: tuple[Answer, ...] = (
    of_classes,
    lambda z, y: (z.topk(2, dim=1).indices == y[:, None]).any(1).float().mean(),
    lambda z, y: z.softmax(1)[range(len(y)), y].mean(),  # the mean probability of the right class
    lambda z, y: z[range(len(y)), y].mean(),
    lambda z, y: (z[range(len(y)), y] > 0).float().mean(),
    lambda z, y: (z.softmax(1)[range(len(y)), y] > 0.5).float().mean(),
    lambda z, y: (z.abs().argmax(1) == y).float().mean(),
    lambda z, y: (z.softmax(0).argmax(1) == y).float().mean(),
    lambda z, y: (z[:, 1:].argmax(1) + 1 == y).float().mean(),
    lambda z, y: (z.argmax(1) + 1 == y).float().mean(),
    lambda z, y: ((z[:, 1] > z[:, 0]).long() == y).float().mean(),
    lambda z, y: (z.argmax(1) == y).sum() / z.shape[1],
    lambda z, y: (z.argmax(1) == y).sum() / z.numel(),
    lambda z, y: (z.argmax(1) == y).float(),
    lambda z, y: (z.argmax(1) == y).tolist(),
    lambda z, y: bool((z.argmax(1) == y).all()),
    lambda z, y: round(float((z.argmax(1) == y).float().mean()), 1),
    lambda z, y: float(np.median((z.argmax(1) == y).numpy())),
    lambda z, y: (z.argmax(1) == y.flip(0)).float().mean(),
    lambda z, y: (z.argmax(1)[:, None] == y).float().mean(),  # every image with every label
    lambda z, y: (y == y.mode().values).float().mean(),
    lambda z, y: F.cross_entropy(z, y),
    lambda z, y: 2 / 3,
)


def cases(count: tuple[Answer, ...], share: tuple[Answer, ...]) -> list[tuple[CodeSpec, Answer]]:
    return [*((COUNT, answer) for answer in count), *((ACCURACY, answer) for answer in share)]


@pytest.mark.parametrize(("spec", "answer"), cases(RIGHT_COUNTS, RIGHT_SHARES))
def test_right_answers_pass_however_they_are_written(spec: CodeSpec, answer: Answer) -> None:
    found = code_grading.grade_code(spec, answer)
    assert found.outcome is Outcome.CORRECT, found


@pytest.mark.parametrize(("spec", "answer"), cases(WRONG_COUNTS, WRONG_SHARES))
def test_wrong_answers_do_not_pass(spec: CodeSpec, answer: Answer) -> None:
    found = code_grading.grade_code(spec, answer)
    assert found.outcome in (Outcome.WRONG, Outcome.ERROR), found


@pytest.mark.parametrize("spec", [COUNT, ACCURACY])
@pytest.mark.parametrize("change", [float, np.float64, np.asarray, torch.tensor])
def test_a_number_is_right_in_any_form(spec: CodeSpec, change: Callable[[Any], Any]) -> None:
    graded = code_grading.grade_code(spec, lambda *given: change(spec.reference(*given)))
    assert graded.outcome is Outcome.CORRECT, graded
