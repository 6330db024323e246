"""Randomness as a function: what happens to a sample depends on (seed, view, sample index) and on nothing else.

No generator is advanced, so neither batch order nor worker nor process nor a resumed run can change a view, and
a teacher's stored output always belongs to the image that the student sees.
"""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.errors import as_whole, check_flags

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # splitmix64's increment, as a signed 64-bit number


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a training image.

    padding: pixels of black border on each side before a random crop back to the original size, as in torchvision's
        RandomCrop. flip: mirror left and right with probability one half.
    scale: the least and the greatest share of the area that a random resized crop keeps, as in torchvision's
        RandomResizedCrop; (1, 1) means no such crop. Only for images that are decoded one by one (image folders).
    Raises ValueError for values out of range.
    """

    padding: int = 0
    flip: bool = False
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        check_flags(flip=self.flip)
        object.__setattr__(self, "padding", as_whole(0, padding=self.padding))
        if (
            not isinstance(self.scale, tuple | list)
            or len(self.scale) != 2
            or not all(isinstance(one, int | float) for one in self.scale)
            or not 0 < self.scale[0] <= self.scale[1] <= 1
        ):
            raise ValueError(f"scale is two shares of the area, 0 < least <= greatest <= 1; got {self.scale!r}.")
        object.__setattr__(self, "flip", bool(self.flip))  # equal settings must have equal fingerprints
        object.__setattr__(self, "scale", (float(self.scale[0]), float(self.scale[1])))

    @property
    def resizes(self) -> bool:
        """Whether a random resized crop belongs to it."""
        return self.scale != (1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, the same before and after JSON."""
        return {"padding": self.padding, "flip": self.flip, "scale": list(self.scale)}


NO_AUGMENTATION = Augmentation()


def random_bits(indices: Tensor, *key: str | SupportsIndex) -> Tensor:
    """63 pseudo-random bits for each sample index, a pure function of the index and the key.

    indices: int64, any shape. key: strings and whole numbers. Returns int64 of the same shape, in [0, 2^63). The
    mixing is splitmix64's.
    """
    # NumPy's and torch's 3 have another repr than Python's, and must name the same view.
    plain = tuple(part if isinstance(part, str) else int(operator.index(part)) for part in key)
    offset = int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=8).digest(), "big", signed=True)
    return _mix(_mix(indices * GOLDEN + offset)) & 0x7FFFFFFFFFFFFFFF


def seed_for(seed: int, *key: str | SupportsIndex) -> int:
    """A generator's seed that differs with each key: torch's generators on a CPU look at 32 bits of it alone."""
    return int(random_bits(torch.tensor(0), "seed", seed, *key)) & 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    # torch has no unsigned 64-bit arithmetic: products wrap as wanted, right shifts must lose the sign by a mask.
    x = (x ^ ((x >> 30) & (2**34 - 1))) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return x ^ ((x >> 31) & (2**33 - 1))


def permutation(indices: Tensor, *key: str | SupportsIndex) -> Tensor:
    """The positions 0..N-1 in an order that depends on the sample indices and the key alone."""
    return torch.argsort(random_bits(indices, "order", *key))


def augment(images: Tensor, indices: Tensor, augmentation: Augmentation, seed: int, view: int) -> Tensor:
    """Crop and flip a whole batch at once.

    images: uint8, B x C x H x W. indices: int64, B. Returns uint8 of the same shape.
    Raises ValueError for an augmentation that only works on images decoded one by one.
    """
    if augmentation.resizes:
        raise ValueError("Images in memory can be cropped and flipped, not resized: use Augmentation(padding=, flip=).")
    if not augmentation.padding and not augmentation.flip:
        return images
    batch, channels, height, width = images.shape
    bits = random_bits(indices, "augment", seed, view)
    reach = 2 * augmentation.padding + 1
    down, right, mirror = bits % reach, (bits >> 20) % reach, (bits >> 40) & 1
    columns = torch.arange(width, device=images.device).expand(batch, width)
    if augmentation.flip:
        columns = torch.where(mirror[:, None] == 1, width - 1 - columns, columns)
    columns = columns + right[:, None]
    rows = torch.arange(height, device=images.device) + down[:, None]
    padded = F.pad(images, [augmentation.padding] * 4)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    pixels = pixels.reshape(batch, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, pixels).view(images.shape)
