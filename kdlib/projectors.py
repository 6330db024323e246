"""What stands between two layers that are compared: pooling to one size, and learned projections to one width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdlib.losses._common import averaged_to


class Projector(nn.Module):
    """What brings a layer of the student and one of the teacher together; made from example outputs of the pair.

    learns: whether it has weights, so that a method that is set up again keeps it. channels: of student and teacher.
    """

    learns = False
    channels: tuple[int, int]

    def __init__(self, pair: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__()


class PoolingProjector(Projector):
    """Brings two maps to the smaller height and width by average pooling; vectors become 1 x 1 maps.

    pair: names the two layers in messages. student, teacher: example outputs of the layers, which set the sizes.
    Raises ValueError for outputs that are neither maps nor vectors.
    """

    def __init__(self, pair: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__(pair, student, teacher)
        student, teacher = as_map(student, pair), as_map(teacher, pair)
        self.pair = pair
        self.channels = (student.shape[1], teacher.shape[1])
        self.size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        self._shapes = " -> ".join(" x ".join(map(str, x.shape[1:])) for x in (student, teacher))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        return tuple(averaged_to(as_map(maps, self.pair), self.size) for maps in (student, teacher))

    def extra_repr(self) -> str:
        return f"{self.pair}: {self._shapes}, compared at {self.size[0]} x {self.size[1]}"


class AttentionProjector(PoolingProjector):
    """Pools two maps for attention transfer; ValueError where 1 x 1 would be left, at which that loss is always 0."""

    def __init__(self, pair: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__(pair, student, teacher)
        if self.size == (1, 1):
            raise ValueError(
                f"attention compares where two layers look, but {pair} would be compared at 1 x 1, and then its loss "
                "is always 0. Name layers with larger maps, or use loss='hint'."
            )


class ConvProjector(PoolingProjector):
    """Pools, and projects the student's channels to the teacher's by a learned 1 x 1 convolution."""

    learns = True

    def __init__(self, pair: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__(pair, student, teacher)
        self.conv = nn.Conv2d(*self.channels, 1, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        student, teacher = super().forward(student, teacher)
        return self.conv(student), teacher


class GaussianProjector(PoolingProjector):
    """Pools, and predicts a Gaussian over the teacher map: its mean from the student, its variance per channel."""

    learns = True

    def __init__(self, pair: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__(pair, student, teacher)
        inputs, outputs = self.channels
        hidden = [nn.Conv2d(inputs, inputs, 1), nn.ReLU(), nn.Conv2d(inputs, inputs, 1), nn.ReLU()]
        self.mean = nn.Sequential(*hidden, nn.Conv2d(inputs, outputs, 1))
        self.raw_variance = nn.Parameter(torch.full((outputs,), math.log(math.expm1(5.0))))  # the authors' start

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        student, teacher = super().forward(student, teacher)
        return self.mean(student), self.raw_variance, teacher


class WidthProjector(Projector):
    """Projects one layer of the student to the teacher's width by a learned 1 x 1 convolution, where the widths differ.

    FSP relates two layers of one network, so this one pools nothing. Arguments as for `PoolingProjector`.
    """

    learns = True

    def __init__(self, pair: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__(pair, student, teacher)
        inputs, outputs = as_map(student, pair).shape[1], as_map(teacher, pair).shape[1]
        self.channels = (inputs, outputs)
        self.conv = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, student: Tensor) -> Tensor:
        return self.conv(student)


def as_map(tensor: Tensor, pair: str) -> Tensor:
    """Maps as they are, vectors as maps of 1 x 1; ValueError, with the names of the layers, for anything else."""
    if tensor.ndim == 2:
        return tensor[:, :, None, None]
    if tensor.ndim == 4:
        return tensor
    raise ValueError(
        f"In {pair} a layer gives {tuple(tensor.shape)}; expected maps B x C x H x W or vectors B x D. "
        "Name another layer."
    )


def pool_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps average-pooled to the smaller height and width, as fsp does it itself.

    A 1 x 1 convolution without bias after pooling gives what it gives before, on a quarter of the positions.
    """
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return averaged_to(a, size), averaged_to(b, size)
