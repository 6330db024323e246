"""What stands between two layers that are compared: pooling to one size, and learned projections to one width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdlib.losses._common import averaged_to


class Resize(nn.Module):
    """Brings two maps to the smaller one's height and width by average pooling; vectors become 1 x 1 maps."""

    def __init__(self, title: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        student, teacher = as_map(student, title), as_map(teacher, title)
        self.title = title
        self.channels = (student.shape[1], teacher.shape[1])
        self.size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        self._shapes = " -> ".join(" x ".join(map(str, x.shape[1:])) for x in (student, teacher))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        return tuple(averaged_to(as_map(maps, self.title), self.size) for maps in (student, teacher))

    def extra_repr(self) -> str:
        return f"{self.title}: {self._shapes}, compared at {self.size[0]} x {self.size[1]}"


class Project(Resize):
    """Resizes, and projects the student's channels to the teacher's by a learned 1 x 1 convolution."""

    def __init__(self, title: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__(title, student, teacher)
        self.project = nn.Conv2d(*self.channels, 1, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        student, teacher = super().forward(student, teacher)
        return self.project(student), teacher


class Gaussian(Resize):
    """Resizes, and predicts a Gaussian over the teacher map: its mean from the student, its variance per channel."""

    def __init__(self, title: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__(title, student, teacher)
        ours, theirs = self.channels
        self.mean = nn.Sequential(
            nn.Conv2d(ours, ours, 1), nn.ReLU(), nn.Conv2d(ours, ours, 1), nn.ReLU(), nn.Conv2d(ours, theirs, 1)
        )
        self.raw_variance = nn.Parameter(torch.full((theirs,), math.log(math.expm1(5.0))))  # the authors' start

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        student, teacher = super().forward(student, teacher)
        return self.mean(student), self.raw_variance, teacher


def as_map(tensor: Tensor, title: str) -> Tensor:
    """Maps as they are, vectors as maps of 1 x 1; ValueError, with the title of the layers, for anything else."""
    if tensor.ndim == 2:
        return tensor[:, :, None, None]
    if tensor.ndim == 4:
        return tensor
    raise ValueError(
        f"In {title} a layer gives {tuple(tensor.shape)}; expected maps B x C x H x W or vectors B x D. "
        "Name another layer."
    )


def smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps average-pooled to the smaller height and width, as fsp does it itself.

    A 1 x 1 convolution without bias after pooling gives what it gives before, on a quarter of the positions.
    """
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return averaged_to(a, size), averaged_to(b, size)
