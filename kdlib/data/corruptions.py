"""Damaged pictures, and pictures of nothing: a function of the kind, the severity and the sample index.

    corrupt(images, indices, "noise", severity=2)
    destroy(images, indices, "shuffled pixels")

Every network is shown the same pictures, whatever the order, the batch or the subset. The idea is that of ImageNet-C
(Hendrycks and Dietterich 2019); the operations are torchvision's, and only the noise is drawn here.

Lengths are in pixels of an image that is 28 pixels wide, and grow with the image. The strengths were chosen so that the
shipped ResNet-20 is still right about 80, 60 and 40 % of Fashion-MNIST's validation images (of undamaged ones, about
93 %), as far as a corruption goes so low.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kdlib.data.augment import random_bits
from kdlib.errors import check_whole, unknown_name

SEVERITIES = (1, 2, 3)
STANDARD_SIDE = 28
ONE_PASS = 11  # the widest kernel at 28 pixels: two passes round otherwise, and stored results must stay what they are
CHUNK_SIZE = 500  # images at once: the noise of each pixel passes through 64-bit numbers

# What each strength means is said by the function that takes it.
STRENGTHS: dict[str, tuple[float, float, float]] = {
    "noise": (0.06, 0.09, 0.12),
    "blur": (0.87, 1.2, 1.65),
    "jpeg": (10, 7, 5),  # 80, 78, 62 %: it takes no more; below 5 the encoder's tables are full, and accuracy rises
    "rotation": (16, 21, 25),
    "shift": (5, 7, 9),  # 91, 87, 81 %: to reach 60 %, half of the picture would have to leave it
    "pixelate": (14, 10, 7),
    "contrast": (0.15, 0.25, 0.4),
}


def corrupt(images: Tensor, indices: Tensor, kind: str, severity: int) -> Tensor:
    """The same images, damaged.

    images: uint8, B x C x H x W, with 1 or 3 channels. indices: int64, B, the samples' numbers: a sample's noise,
    and where it is turned or shifted to, depend on its number alone. kind: one of `STRENGTHS`. severity: 1, 2 or 3.
    Returns uint8 of the same shape. Raises TypeError for images that are no bytes, ValueError for another shape, an
    unknown kind or a severity out of range.
    """
    _check(images, indices)
    if not isinstance(kind, str) or kind not in STRENGTHS:
        raise unknown_name("corruption", kind, STRENGTHS)
    check_whole(least=SEVERITIES[0], most=SEVERITIES[-1], severity=severity)
    strength = STRENGTHS[kind][severity - 1]
    parts = zip(images.split(CHUNK_SIZE), indices.split(CHUNK_SIZE), strict=True)
    return torch.cat([_CORRUPTIONS[kind](some, numbers, strength) for some, numbers in parts])


def destroy(images: Tensor, indices: Tensor, kind: str) -> Tensor:
    """Pictures of the same size that show nothing of any class, made of these images.

    images, indices: as for `corrupt`. kind: one of `DESTRUCTIONS`: "shuffled tiles" (a chessboard of 4 x 4 tiles in
    another order: edges and textures remain), "scrambled phases" (the same spectrum, so the same contrast at every
    scale, without edges or shapes) or "shuffled pixels" (the same grey values in any order).
    Returns uint8 of the same shape. Raises what `corrupt` raises.
    """
    _check(images, indices)
    if not isinstance(kind, str) or kind not in DESTRUCTIONS:
        raise unknown_name("kind of picture outside all classes", kind, DESTRUCTIONS)
    parts = zip(images.split(CHUNK_SIZE), indices.split(CHUNK_SIZE), strict=True)
    return torch.cat([DESTRUCTIONS[kind](some, numbers) for some, numbers in parts])


def _check(images: Tensor, indices: Tensor) -> None:
    kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
    if kind != torch.uint8:
        raise TypeError(f"images are a tensor of bytes (torch.uint8), 0 to 255; got {kind}.")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; expected B x C x H x W, not empty, with 1 or 3 channels."
        )
    kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
    if kind != torch.int64:
        raise TypeError(f"indices are a tensor of int64, one number for each image; got {kind}.")
    if indices.shape != images.shape[:1]:
        raise ValueError(f"{tuple(indices.shape)} indices for {len(images)} images: give one number for each image.")


def _pixels(images: Tensor, length: float) -> float:
    """A length, given for an image that is 28 pixels wide, in pixels of these images."""
    return length * min(images.shape[-2:]) / STANDARD_SIDE


def _random(indices: Tensor, count: int, *key: str) -> Tensor:
    """63 random bits for each of `count` numbers of each sample: int64, B x count."""
    return random_bits(random_bits(indices, *key)[:, None] + torch.arange(count), "each", *key)


def _normal(indices: Tensor, count: int, *key: str) -> Tensor:
    """Standard normal numbers for each sample: float32, B x count."""
    # In double before the half is added: in float32 one number in 2**25 would be rounded to 1, and become infinite.
    uniform = ((_random(indices, count, *key) >> 11).double() + 0.5) / 2**52
    return torch.special.ndtri(uniform).float()


def _as_bytes(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


# -------------------- corruptions: images, indices, strength


def _noise(images: Tensor, indices: Tensor, std: float) -> Tensor:
    """Gaussian noise of this standard deviation, white being 1. Severities share their pattern."""
    noise = _normal(indices, images[0].numel(), "noise").view_as(images)
    return _as_bytes(images.float() + 255 * std * noise)


def _blur(images: Tensor, indices: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of `sigma` pixels."""
    from torchvision.transforms.v2 import functional as vision

    sigma = _pixels(images, sigma)
    reach = [min(math.ceil(3 * sigma), side - 1) for side in (images.shape[3], images.shape[2])]
    width, height = (2 * one + 1 for one in reach)
    if max(width, height) <= ONE_PASS:
        return vision.gaussian_blur(images, [width, height], [sigma, sigma])
    # torchvision's work grows with width x height: rows, then columns, are 7 to 15 times as fast at 224 pixels.
    along_rows = vision.gaussian_blur(images.float(), [width, 1], [sigma, sigma])
    return _as_bytes(vision.gaussian_blur(along_rows, [1, height], [sigma, sigma]))


def _jpeg(images: Tensor, indices: Tensor, quality: float) -> Tensor:
    """Compressed as JPEG with this quality and read again."""
    from torchvision.transforms.v2 import functional as vision

    return vision.jpeg(images, int(quality))


def _rotation(images: Tensor, indices: Tensor, degrees: float) -> Tensor:
    """Turned by this angle, every other sample to the left; the corners are black."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as vision

    left = random_bits(indices, "rotation") % 2 == 0
    bilinear = InterpolationMode.BILINEAR
    one, other = (vision.rotate(images, angle, interpolation=bilinear, fill=0) for angle in (degrees, -degrees))
    return torch.where(left[:, None, None, None], one, other)


def _shift(images: Tensor, indices: Tensor, distance: float) -> Tensor:
    """Moved by so many pixels up, down, left or right; what it leaves is black."""
    step = round(_pixels(images, distance))
    direction = random_bits(indices, "shift") % 4
    moved = torch.zeros_like(images)
    for number, (axis, sign) in enumerate([(2, 1), (2, -1), (3, 1), (3, -1)]):
        chosen = direction == number
        length = images.shape[axis] - step
        if length <= 0:
            continue
        source, target = (0, step) if sign > 0 else (step, 0)
        part = torch.zeros_like(images[chosen])
        part.narrow(axis, target, length).copy_(images[chosen].narrow(axis, source, length))
        moved[chosen] = part
    return moved


def _pixelate(images: Tensor, indices: Tensor, side: float) -> Tensor:
    """Reduced to so many pixels of a side and enlarged again without smoothing."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as vision

    height, width = images.shape[-2:]
    small = [max(1, round(side * one / min(height, width))) for one in (height, width)]
    reduced = vision.resize(images, small, InterpolationMode.BILINEAR, antialias=True)
    return vision.resize(reduced, [height, width], InterpolationMode.NEAREST_EXACT)


def _contrast(images: Tensor, indices: Tensor, share: float) -> Tensor:
    """Less contrast: blended with the image's mean grey, which gets this share, in the background too."""
    from torchvision.transforms.v2 import functional as vision

    return vision.adjust_contrast(images, 1 - share)


_CORRUPTIONS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "rotation": _rotation,
    "shift": _shift,
    "pixelate": _pixelate,
    "contrast": _contrast,
}


# -------------------- pictures outside all classes: images, indices


def _shuffled_tiles(images: Tensor, indices: Tensor) -> Tensor:
    """Tiles, four a side, in another order; what a side has beyond a multiple of four stays at its place."""
    rows, columns = (min(4, side) for side in images.shape[-2:])
    height, width = images.shape[-2] // rows, images.shape[-1] // columns
    batch, channels = images.shape[:2]
    inner = images[..., : rows * height, : columns * width]
    tiles = inner.reshape(batch, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
    tiles = tiles.reshape(batch, rows * columns, channels, height, width)
    order = _random(indices, rows * columns, "tiles").argsort(1)
    mixed = tiles.gather(1, order[:, :, None, None, None].expand_as(tiles))
    mixed = mixed.view(batch, rows, columns, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    result = images.clone()
    result[..., : rows * height, : columns * width] = mixed.reshape_as(inner)
    return result


def _scrambled_phases(images: Tensor, indices: Tensor) -> Tensor:
    """The spectrum of the image with the phases of noise; the channels are turned by the same phases."""
    height, width = images.shape[-2:]
    noise = _normal(indices, height * width, "phases").view(-1, 1, height, width)
    phases = torch.fft.rfft2(noise)
    phases = phases / phases.abs().clamp_min(1e-12)
    phases[..., 0, 0] = 1  # the mean stays
    return _as_bytes(torch.fft.irfft2(torch.fft.rfft2(images.float()) * phases, s=(height, width)))


def _shuffled_pixels(images: Tensor, indices: Tensor) -> Tensor:
    """Pixels in another order, all channels of a pixel together."""
    order = _random(indices, images.shape[-2] * images.shape[-1], "pixels").argsort(1)
    flat = images.flatten(2)
    return flat.gather(2, order[:, None, :].expand_as(flat)).view_as(images)


DESTRUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "shuffled tiles": _shuffled_tiles,
    "scrambled phases": _scrambled_phases,
    "shuffled pixels": _shuffled_pixels,
}
