"""A small detection set: Fashion-MNIST pieces of several sizes, pasted on dark, noisy canvases.

    train = scenes.draw("train", 4_000)
    scene = train[0]
    scene.canvas, scene.boxes, scene.classes

The pieces are split before they are pasted: those of a test scene come from Fashion-MNIST's test images, and none of
them stands in a training or validation scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib import data
from kdlib.data import InMemoryDataset, random_bits
from kdlib.errors import check_whole, unknown_name
from kdlib.files import fingerprint

SPLITS = ("train", "validation", "test")
SIZE = 64  # pixels of a canvas's side
MOST_PIECES = 4
SIDES = (14, 32)  # pixels of a piece's longer side, from and to
SHORTEST = 6  # pixels of its shorter side
MOST_OVERLAP = 4  # pixels by which two boxes may overlap, in the direction in which they overlap less
LEAST_DISTANCE = 8  # pixels between two centres, in one direction at least: two cells of a map at stride 4
TRIES = 24  # places that are tried for a piece before it is left out
THRESHOLD = 24  # grey level above which a pixel belongs to the piece and not to the black frame around it
DARKEST, NOISE = (0, 24), (16, 56)  # grey levels of a canvas: its darkest, and how far noise goes above it
CHUNK = 500  # scenes that are drawn at once


@dataclass(frozen=True)
class Scene:
    """One scene. canvas: uint8, 1 x H x W. boxes: float32, n x 4, (x0, y0, x1, y1) in pixels. classes: int64, n."""

    canvas: Tensor
    boxes: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Scenes:
    """Scenes in memory.

    canvases: uint8, N x 1 x H x W. boxes: float32, N x K x 4, (x0, y0, x1, y1) in pixels. classes: int64, N x K.
    pieces: int64, N x K, the pieces' positions in the source of their split. A place without a piece has class and
    piece -1. split: where the pieces come from.
    """

    canvases: Tensor
    boxes: Tensor
    classes: Tensor
    pieces: Tensor
    split: str

    def __len__(self) -> int:
        return len(self.canvases)

    def __getitem__(self, number: int) -> Scene:
        """A scene with its pieces alone; IndexError for one that is not there."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"There are {len(self)} scenes; got number {number}.")
        there = self.classes[number] >= 0
        return Scene(self.canvases[number], self.boxes[number][there], self.classes[number][there])

    @property
    def fingerprint(self) -> str:
        """A sha256 of all that the scenes hold."""
        return fingerprint([self.canvases, self.boxes, self.classes])


def class_names() -> tuple[str, ...]:
    """The names of the ten classes, in the order of their numbers."""
    return data.load("fashion-mnist").classes


def draw(split: str, count: int, *, seed: int = 0, first: int = 0) -> Scenes:
    """Draw the scenes number `first` to `first + count - 1` of a split, each a function of (split, seed, number) alone.

    split: "train", "validation" or "test", where the pieces come from. About 2 s for 4,000 scenes.
    Raises ValueError for another split, or numbers that are not whole or out of range.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    check_whole(1, 1_000_000, count=count)
    check_whole(0, 2**31, seed=seed, first=first)
    source = getattr(data.load("fashion-mnist"), split)
    numbers = torch.arange(first, first + count)
    parts = [_draw(source, chunk, split, seed) for chunk in numbers.split(CHUNK)]
    canvases, boxes, classes, pieces = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Scenes(canvases, boxes, classes, pieces, split)


def _draw(source: InMemoryDataset, numbers: Tensor, split: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Canvases, boxes, classes and pieces of the scenes with these numbers."""
    key = ("scene", split, seed)
    slots = numbers[:, None] * MOST_PIECES + torch.arange(MOST_PIECES)
    chosen = random_bits(slots, *key, "piece") % len(source)
    images = source.images[chosen.flatten()].view(*chosen.shape, 28, 28)
    inner = _tight_boxes(images)
    boxes, there = _place(slots, _sizes(slots, inner, key), key)
    there &= torch.arange(MOST_PIECES) < _between(numbers, 1, MOST_PIECES, *key, "count")[:, None]
    canvases = _paste(_backgrounds(numbers, key), images, inner, boxes, there)
    absent = ~there
    return (
        canvases[:, None],
        boxes.float().masked_fill(absent[..., None], 0),
        source.labels[chosen].masked_fill(absent, -1),
        source.indices[chosen].masked_fill(absent, -1),
    )


def _between(indices: Tensor, low: int, high: int | Tensor, *key: str | int) -> Tensor:
    """A whole number from low to high, both included, for each index."""
    return low + random_bits(indices, *key) % (high - low + 1)


def _tight_boxes(images: Tensor) -> Tensor:
    """The box (x0, y0, x1, y1) around the pixels of each piece, N x K x 4; the whole image where none is bright."""
    bright = images > THRESHOLD
    bright = bright | ~bright.flatten(2).any(2)[..., None, None]
    columns, rows = bright.any(2).long(), bright.any(3).long()
    sides = columns.shape[-1]
    x0, y0 = columns.argmax(2), rows.argmax(2)
    x1, y1 = sides - columns.flip(2).argmax(2), sides - rows.flip(2).argmax(2)
    return torch.stack((x0, y0, x1, y1), dim=2)


def _sizes(slots: Tensor, inner: Tensor, key: tuple[str | int, ...]) -> Tensor:
    """Width and height of each piece on the canvas, whole pixels, N x K x 2; its own proportions are kept."""
    extent = (inner[..., 2:] - inner[..., :2]).double()
    longer = _between(slots, *SIDES, *key, "side")
    scaled = longer[..., None] * extent / extent.amax(2, keepdim=True)
    return scaled.round().long().clamp(min=SHORTEST)


def _place(slots: Tensor, sizes: Tensor, key: tuple[str | int, ...]) -> tuple[Tensor, Tensor]:
    """Boxes, int64, N x K x 4, and whether a place was found for each; of the tries the first that fits is taken."""
    boxes = torch.zeros(*sizes.shape[:2], 4, dtype=torch.int64)
    there = torch.zeros(sizes.shape[:2], dtype=torch.bool)
    for slot in range(MOST_PIECES):
        indices, size = slots[:, slot], sizes[:, slot]
        for attempt in range(TRIES):
            corner = torch.stack(
                [_between(indices, 0, SIZE - size[:, axis], *key, "xy"[axis], attempt) for axis in (0, 1)], dim=1
            )
            box = torch.cat((corner, corner + size), dim=1)
            fits = (_fit(box[:, None], boxes[:, :slot]) | ~there[:, :slot]).all(1) & ~there[:, slot]
            boxes[:, slot] = torch.where(fits[:, None], box, boxes[:, slot])
            there[:, slot] |= fits
    return boxes, there


def _fit(box: Tensor, others: Tensor) -> Tensor:
    """Whether a box overlaps each of the others by little, and their centres are apart; N x K."""
    overlap = torch.minimum(box[..., 2:], others[..., 2:]) - torch.maximum(box[..., :2], others[..., :2])
    distance = ((box[..., :2] + box[..., 2:]) - (others[..., :2] + others[..., 2:])).abs() / 2
    return (overlap.amin(2) <= MOST_OVERLAP) & (distance.amax(2) >= LEAST_DISTANCE)


def _backgrounds(numbers: Tensor, key: tuple[str | int, ...]) -> Tensor:
    """Canvases without pieces, int64, N x H x W: a dark level of its own, and noise of a strength of its own."""
    darkest = _between(numbers, *DARKEST, *key, "darkest")
    strength = _between(numbers, *NOISE, *key, "noise")
    pixels = numbers[:, None, None] * SIZE**2 + torch.arange(SIZE**2).view(SIZE, SIZE)
    return darkest[:, None, None] + random_bits(pixels, *key, "pixel") % strength[:, None, None]


def _paste(canvases: Tensor, images: Tensor, inner: Tensor, boxes: Tensor, there: Tensor) -> Tensor:
    """The canvases, uint8, with the pieces on them, a later one over an earlier one.

    images: the pieces, N x K x 28 x 28. inner, boxes: where a piece lies in its image and on the canvas.
    """
    pixels = torch.arange(SIZE) + 0.5  # centres
    for slot in range(MOST_PIECES):
        source, target = inner[:, slot].float(), boxes[:, slot].float()
        shares = (pixels - target[:, :2, None]) / (target[:, 2:] - target[:, :2]).clamp(min=1)[..., None]  # N x 2 x P
        places = source[:, :2, None] + shares * (source[:, 2:] - source[:, :2])[..., None]
        places = places * 2 / images.shape[-1] - 1
        x, y = (places[:, axis] for axis in (0, 1))
        grid = torch.stack((x[:, None, :].expand(-1, SIZE, -1), y[:, :, None].expand(-1, -1, SIZE)), dim=3)
        piece = F.grid_sample(images[:, slot, None].float(), grid, align_corners=False)[:, 0]
        within = (shares >= 0) & (shares < 1)
        visible = within[:, 1, :, None] & within[:, 0, None, :] & (piece > THRESHOLD) & there[:, slot, None, None]
        canvases = torch.where(visible, piece.round().long(), canvases)
    return canvases.to(torch.uint8)
