"""One piece of memory for all values of a network: those that are not needed at the same time share bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALIGNMENT = 4  # bytes, so that a processor may load four numbers at once


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `size` bytes that is needed from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both are needed at some step."""
        return self.first <= other.last and other.first <= self.last


def plan(buffers: Mapping[str, Lifetime]) -> tuple[dict[str, int], int]:
    """The offset of each buffer and the bytes of the whole: the largest first, each at the lowest place that is free.

    Greedy by size, as TensorFlow Lite's planner (Pisarchyk and Lee 2020, arXiv 2001.03288); not always the optimum.
    """
    offsets: dict[str, int] = {}
    for name, buffer in sorted(buffers.items(), key=lambda item: (-item[1].size, item[1].first)):
        offset = 0
        placed = sorted((at, other) for other, at in offsets.items() if buffers[other].overlaps(buffer))
        for start, other in placed:
            if offset + buffer.size <= start:
                break  # it fits into the gap before this one
            offset = max(offset, _aligned(start + buffers[other].size))
        offsets[name] = offset
    total = max((offsets[name] + _aligned(buffer.size) for name, buffer in buffers.items()), default=0)
    return offsets, total


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
