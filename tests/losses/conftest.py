"""Every loss with an asymmetric example, for the tests that all losses must pass."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kdlib import losses

torch.set_num_threads(1)


def lin(shape: tuple[int, ...], a: float, b: float) -> Tensor:
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * a + b).reshape(shape)


class Case(NamedTuple):
    """loss(*student, *teacher) is a scalar; minimum is the smallest batch that the loss accepts."""

    name: str
    loss: Callable[..., Tensor]
    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    minimum: int = 1


LABELS = torch.tensor([0, 3, 1, 4])
LOGITS = (2 * lin((4, 5), 0.7, 0.1),), (3 * lin((4, 5), 1.3, 0.4),)
EMBEDDINGS = (lin((4, 6), 0.41, 0.3),), (lin((4, 8), 0.91, 0.7),)
MAPS = (lin((4, 3, 4, 4), 0.11, 0.2),), (1.5 * lin((4, 3, 4, 4), 0.23, 0.5),)
LAYERS = (
    (lin((4, 2, 3, 3), 0.37, 0.1), lin((4, 3, 2, 2), 0.53, 0.9), lin((4, 5), 0.71, 0.4)),
    (lin((4, 3, 3, 3), 0.43, 0.2), lin((4, 6), 0.61, 0.3), lin((4, 4, 1, 2), 1.7, 0.8)),
)
PAIRS = (
    (lin((4, 2, 4, 4), 0.37, 0.1), lin((4, 3, 2, 2), 0.53, 0.9)),
    (lin((4, 2, 6, 6), 0.43, 0.2), lin((4, 3, 3, 3), 0.61, 0.3)),
)


def _labelled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda s, *t: loss(s, *t, LABELS[: len(s)].to(s.device))


CASES = [
    Case("kd", losses.kd, *LOGITS),
    Case("dkd", _labelled(losses.dkd), *LOGITS),
    Case("dist", losses.dist, *LOGITS),
    Case("standardized_kd", losses.standardized_kd, *LOGITS),
    Case("label_smoothing", _labelled(losses.label_smoothing), LOGITS[0], ()),
    Case("hint", losses.hint, *MAPS),
    Case("attention", losses.attention, *MAPS),
    Case("vid", losses.vid, (MAPS[0][0], lin((3,), 1.1, 0.3)), MAPS[1]),
    Case("fsp", lambda a, b, c, d: losses.fsp((a, b), (c, d)), *PAIRS),
    Case("layer_correlation", lambda *x: losses.layer_correlation(x[:3], x[3:]), *LAYERS, 2),
    Case("layer_information", lambda *x: losses.layer_information(x[:3], x[3:]), *LAYERS, 2),
    Case("rkd_distance", losses.rkd_distance, *EMBEDDINGS, 2),
    Case("rkd_angle", losses.rkd_angle, *EMBEDDINGS, 3),
    Case("similarity", losses.similarity, *EMBEDDINGS),
    Case("correlation_congruence", losses.correlation_congruence, *EMBEDDINGS),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param
