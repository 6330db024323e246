"""What stands between two layers that are compared: pooling to one size, and learned projections to one width."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.losses._common import averaged_to, off_mps


class Projector(nn.Module):
    """What brings a layer of the student and one of the teacher together; made from example outputs of the pair.

    learns: whether it has weights, so that a method that is set up again keeps it. channels: of student and teacher.
    """

    learns = False
    channels: tuple[int, int]

    def __init__(self, pair: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__()


class PoolingProjector(Projector):
    """Brings the outputs of two layers to maps of one height and width, by average pooling the larger to the smaller.

    Maps B x C x H x W, volumes B x C x D x H x W, tokens B x N x C and vectors B x C can be paired with each other, as
    far as their positions correspond: see `Alignment`.
    pair: names the two layers in messages. student, teacher: example outputs of the layers, which set the sizes.
    Raises ValueError for outputs that are none of these, or whose positions do not correspond.
    """

    def __init__(self, pair: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__(pair, student, teacher)
        self.pair = pair
        self.alignment = Alignment.of(pair, student, teacher)
        self.channels = (channels_of(student, pair), channels_of(teacher, pair))
        self.size = self.alignment.size
        self._ndims = student.ndim, teacher.ndim
        self._sides = _sides(student, teacher)
        shown = [x[..., None, None] if x.ndim == 2 else x for x in (student, teacher)]
        self._shapes = " -> ".join(" x ".join(map(str, x.shape[1:])) for x in shown)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        if (student.ndim, teacher.ndim) != self._ndims:
            changed = next(x for x, ndim in zip((student, teacher), self._ndims, strict=True) if x.ndim != ndim)
            raise ValueError(
                f"In {self.pair} a layer gives {tuple(changed.shape)}, and the layers gave {self._shapes} in the "
                "example. Give an example of the same kind as the batches."
            )
        alignment = self.alignment
        if _sides(student, teacher) != self._sides:  # sentences are as long as the longest of their batch
            alignment = Alignment.of(self.pair, student, teacher)
        first, second = alignment.grids
        return self._pool(student, first, alignment.size), self._pool(teacher, second, alignment.size)

    def _pool(self, output: Tensor, grid: tuple[int, ...] | None, size: tuple[int, ...]) -> Tensor:
        maps = as_grid(output, self.pair, grid)
        if maps.ndim == 5:
            size = size if len(size) == 3 else (1, 1, 1)
            if maps.shape[2:] != size:  # MPS does not pool volumes
                near = F.adaptive_avg_pool3d(off_mps(maps), (size[0], size[1], size[2]))
                maps = near.to(maps.device)
            return maps.flatten(2, 3)
        return averaged_to(maps, (size[0], size[1]) if len(size) == 2 else (1, 1))

    def extra_repr(self) -> str:
        return f"{self.pair}: {self._shapes}, compared at {' x '.join(map(str, self.size))}"


class AttentionProjector(PoolingProjector):
    """Pools two maps for attention transfer; ValueError where 1 x 1 would be left, at which that loss is always 0."""

    def __init__(self, pair: str, student: Tensor, teacher: Tensor) -> None:
        super().__init__(pair, student, teacher)
        if math.prod(self.size) == 1:
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
        _refuse_channels_last(student, teacher, pair)
        inputs, outputs = as_map(student, pair).shape[1], as_map(teacher, pair).shape[1]
        self.channels = (inputs, outputs)
        self.conv = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, student: Tensor) -> Tensor:
        return self.conv(student)


class Alignment(NamedTuple):
    """How the positions of two layers correspond.

    grids: of student and teacher, the height and width in which tokens lie; None for what needs no such reading.
    size: the common grid at which they are compared.
    Tokens B x N x C: as many of both are compared one by one; one more on one side is a class token, which is left out.
    Otherwise they are read row by row as a grid in the proportions of the other layer's map, or as a square where it
    has none, a class token before it left out, and pooled like a map; against a vector or a map of 1 x 1 all are
    averaged, however many there are. A map of one row or column has no proportions: it may be a line of frames, or a
    picture pooled in one direction, and is refused.
    """

    grids: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    size: tuple[int, ...]

    @classmethod
    def of(cls, pair: str, student: Tensor, teacher: Tensor) -> Alignment:
        """The correspondence of two example outputs; ValueError where there is none."""
        for output in (student, teacher):
            channels_of(output, pair)
        _refuse_channels_last(student, teacher, pair)
        if student.ndim == teacher.ndim == 3:
            counts = student.shape[1], teacher.shape[1]
            if abs(counts[0] - counts[1]) <= 1:
                line = (min(counts), 1)
                return cls((line, line), line)
        grids = _grid(student, teacher, pair), _grid(teacher, student, pair)
        sizes = [grid or _positions(output) for grid, output in zip(grids, (student, teacher), strict=True)]
        if len(sizes[0]) != len(sizes[1]):
            flat = next((size for size in sizes if math.prod(size) == 1), None)
            if flat is None:
                raise ValueError(
                    f"In {pair} a layer gives a volume and the other a map or tokens: {tuple(student.shape)} and "
                    f"{tuple(teacher.shape)}. Name layers of the same kind."
                )
            sizes = [(1,), (1,)]
        return cls(grids, tuple(min(a, b) for a, b in zip(*sizes, strict=True)))


def channels_of(output: Tensor, pair: str) -> int:
    """The width of a layer's output; ValueError, with the names of the layers, for what is no map, token or vector."""
    if not 2 <= output.ndim <= 5:
        raise ValueError(
            f"In {pair} a layer gives {tuple(output.shape)}; expected maps B x C x H x W, tokens B x N x C, vectors "
            "B x C or volumes B x C x D x H x W. Name another layer."
        )
    return output.shape[-1] if output.ndim == 3 else output.shape[1]


def _refuse_channels_last(student: Tensor, teacher: Tensor, pair: str) -> None:
    """Raise ValueError where a map has the other's proportions, a vector's being 1 : 1, only if channels come last."""
    for output, other in ((student, teacher), (teacher, student)):
        if output.ndim != 4 or other.ndim not in (2, 4):
            continue
        height, width = _positions(other)
        as_first = output.shape[2] * width / (output.shape[3] * height)  # 1 where the proportions are the same
        if not 0.8 < as_first < 1.25 and output.shape[1] * width == output.shape[2] * height:
            raise ValueError(
                f"In {pair} a layer gives {tuple(output.shape)}, which looks like B x H x W x C (channels last, as in "
                "a Swin); expected B x C x H x W. Name a layer that gives that ('permute' in torchvision's Swin), or "
                "wrap the network so that an nn.Identity gets x.permute(0, 3, 1, 2), and name that."
            )


def _sides(*outputs: Tensor) -> list[tuple[int, ...]]:
    """How many tokens there are, or how many positions in each direction of a map."""
    return [output.shape[1:2] if output.ndim == 3 else output.shape[2:] for output in outputs]


def _positions(output: Tensor) -> tuple[int, ...]:
    return tuple(output.shape[2:]) or (1, 1)


def _grid(tokens: Tensor, other: Tensor, pair: str) -> tuple[int, int] | None:
    """The height and width in which tokens lie: those or the proportions of a map, else a square.

    Against one position a line of them all: a sentence has no class token where its length happens to be a square's.
    """
    if tokens.ndim != 3:
        return None
    count = tokens.shape[1]
    if math.prod(*_sides(other)) == 1:
        return count, 1
    if other.ndim == 4 and other.shape[2] * other.shape[3] in (count, count - 1):
        return other.shape[2], other.shape[3]
    if other.ndim == 4 and 1 in other.shape[2:] and math.prod(other.shape[2:]) > 1:
        raise ValueError(
            f"In {pair} {count} tokens of one network are compared with {tuple(other.shape)} of the other, and they "
            "are no grid of the map's proportions: a single row or column has none. Let an nn.Identity in the network "
            "with the tokens get them as a map, without a class token, and name that: x.mT[:, :, None] where they are "
            "frames of a line, x.mT.unflatten(2, (height, width)) where they are patches of a picture."
        )
    height, width = other.shape[2:] if other.ndim == 4 else (1, 1)
    for positions in (count, count - 1):  # without and with a class token
        rows = math.isqrt(positions * height // width)
        if rows and positions % rows == 0 and rows * width == positions // rows * height:
            return rows, positions // rows
    wanted = "square grid" if height == width else "grid of the map's proportions"
    raise ValueError(
        f"In {pair} {count} tokens of one network are compared with {tuple(other.shape)} of the other, and they are no "
        f"{wanted}, with or without a class token. Name layers whose positions correspond, or a method without "
        "positions, such as Relation(loss='similarity')."
    )


def as_grid(output: Tensor, pair: str, grid: tuple[int, ...] | None) -> Tensor:
    """The output with its channels second and two or three dimensions of positions.

    grid: in which tokens lie; tokens before it, a class token, are left out.
    """
    if output.ndim == 5:
        return output
    if output.ndim == 3 and grid is not None:
        tokens = output[:, output.shape[1] - math.prod(grid) :]
        return tokens.mT.unflatten(2, grid)
    return as_map(output, pair)


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
