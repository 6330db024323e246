"""Boxes as maps, and back: for each class a heat map of centres, and at each centre a width, a height and an offset.

Zhou et al. 2019, "Objects as points", arXiv:1904.07850. A map of a detector has C + 4 channels: C of the heat map, one
for each class; width and height; the offset of the centre in its cell, in x and in y; all in cells of STRIDE pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.errors import check_whole

STRIDE = 4  # pixels of a cell's side
BOX_CHANNELS = 4
NUM_CLASSES = 10
MIN_OVERLAP = 0.7  # intersection over union that a box moved by the Gaussian's radius still has
TOP_K = 20


def encode(boxes: Tensor, classes: Tensor, size: int) -> Tensor:
    """The maps that a perfect detector would give, its heat as shares in [0, 1]: N x (C + 4) x H x W.

    boxes: float32, N x K x 4, (x0, y0, x1, y1) in pixels. classes: int64, N x K, -1 where there is no box. size: pixels
    of a canvas's side. Raises ValueError for shapes that do not fit, classes or centres out of range.
    """
    _check_boxes(boxes, classes, size)
    cells = size // STRIDE
    there = classes >= 0
    centers = (boxes[..., :2] + boxes[..., 2:]) / (2 * STRIDE)
    extent = (boxes[..., 2:] - boxes[..., :2]) / STRIDE
    at = centers.floor().clamp(max=cells - 1)
    heat = torch.zeros(len(boxes), NUM_CLASSES, cells, cells)
    bumps = _gaussians(at, extent, cells) * there[..., None, None]
    channel = classes.clamp(min=0)[..., None, None].expand_as(bumps)
    heat.scatter_reduce_(1, channel, bumps, "amax")  # where two of a class are near, the higher counts
    values = torch.zeros(len(boxes), BOX_CHANNELS, cells, cells)
    scene, piece = there.nonzero(as_tuple=True)
    x, y = at[scene, piece].long().unbind(1)
    values[scene, :, y, x] = torch.cat((extent, centers - at), dim=2)[scene, piece]
    return torch.cat((heat, values), dim=1)


@torch.no_grad()
def decode(output: Tensor, top_k: int = TOP_K) -> list[dict[str, Tensor]]:
    """The `top_k` detections of each scene, best first, as torchmetrics takes them: boxes, scores and labels.

    output: N x (C + 4) x H x W, its heat as logits. A detection is a cell whose heat is the highest of its 3 x 3
    neighbours: the maximum takes the place of non-maximum suppression. boxes: float32, k x 4, (x0, y0, x1, y1) in
    pixels, cut at the canvas; scores: in [0, 1]. Raises ValueError for another shape.
    """
    check_whole(top_k=top_k)
    if output.ndim != 4 or output.shape[1] != NUM_CLASSES + BOX_CHANNELS:
        raise ValueError(
            f"A detector's output is N x {NUM_CLASSES + BOX_CHANNELS} x H x W, a channel for each class and four for "
            f"the box; got {tuple(output.shape)}."
        )
    output = output.float()
    heat, values = output[:, :NUM_CLASSES].sigmoid(), output[:, NUM_CLASSES:]
    peaks = torch.where(heat == F.max_pool2d(heat, 3, 1, 1), heat, 0.0)
    height, width = heat.shape[2:]
    scores, places = peaks.flatten(1).topk(min(top_k, peaks[0].numel()))
    cells = places % (height * width)
    found = values.flatten(2).gather(2, cells[:, None].expand(-1, BOX_CHANNELS, -1))
    half = found[:, :2].clamp(min=0) / 2
    corner = torch.stack((cells % width, cells // width), dim=1)  # x, y
    center = corner + found[:, 2:]
    limits = torch.tensor([width, height]).view(1, 2, 1)
    boxes = STRIDE * torch.cat([torch.minimum(edge.clamp(min=0), limits) for edge in (center - half, center + half)], 1)
    parts = zip(boxes.transpose(1, 2), scores, places // (height * width), strict=True)
    return [{"boxes": box, "scores": score, "labels": label} for box, score, label in parts]


def _gaussians(centers: Tensor, extent: Tensor, cells: int) -> Tensor:
    """A bump of height 1 at each centre, as wide as suits the box: N x K x H x W."""
    deviation = (2 * _radius(extent) + 1) / 6
    grid = torch.arange(cells, dtype=torch.float32)
    dx, dy = (grid - centers[..., axis, None] for axis in (0, 1))
    squares = dy[..., :, None] ** 2 + dx[..., None, :] ** 2
    return torch.exp(-squares / (2 * deviation[..., None, None] ** 2))


def _radius(extent: Tensor) -> Tensor:
    """How far both corners of a box may move together while MIN_OVERLAP holds; the least of three cases.

    Law and Deng 2018, CornerNet, arXiv:1808.01244: one corner moves out and one in, both in, or both out. Published
    code divides by 2 where the quadratic formula divides by 2a; the roots here are those of the formula.
    """
    total, area = extent.sum(-1), extent.prod(-1)
    cases = (
        (1.0, -total, area * (1 - MIN_OVERLAP) / (1 + MIN_OVERLAP)),
        (4.0, -2 * total, area * (1 - MIN_OVERLAP)),
        (4 * MIN_OVERLAP, 2 * MIN_OVERLAP * total, (MIN_OVERLAP - 1) * area),
    )
    roots = []
    for a, b, c in cases:
        root = (b**2 - 4 * a * c).clamp(min=0).sqrt()
        roots.append((-b - root if a != cases[2][0] else -b + root) / (2 * a))
    return torch.stack(roots).amin(0).clamp(min=0)


def _check_boxes(boxes: Tensor, classes: Tensor, size: int) -> None:
    check_whole(STRIDE, 4096, size=size)
    if size % STRIDE:
        raise ValueError(f"A canvas's side is a multiple of {STRIDE} pixels; got {size}.")
    if boxes.ndim != 3 or boxes.shape[2] != 4 or classes.shape != boxes.shape[:2]:
        raise ValueError(
            f"boxes are N x K x 4 and classes N x K; got {tuple(boxes.shape)} and {tuple(classes.shape)}. Fill scenes "
            "with fewer boxes up by class -1."
        )
    there = classes >= 0
    if bool(there.any()) and int(classes.max()) >= NUM_CLASSES:
        raise ValueError(f"Classes run from 0 to {NUM_CLASSES - 1}, or are -1; got {int(classes.max())}.")
    inside = (boxes >= 0) & (boxes <= size)
    ordered = boxes[..., :2] < boxes[..., 2:]
    if not bool(((inside.all(2) & ordered.all(2)) | ~there).all()):
        raise ValueError(
            f"A box is (x0, y0, x1, y1) with x0 < x1 and y0 < y1, within 0 and {size} pixels; at least one is not."
        )
