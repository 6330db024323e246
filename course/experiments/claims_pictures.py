"""Part "pictures": what must a student see, and what must a teacher say?

Seen: the teacher's answers to 2,000 pictures of something else, without a label or a picture of the data: handwritten
digits, drawn shapes, noise, pictures made by descending into the teacher (Yin and others 2020, DeepInversion), and
tiles of the real pictures in another order. Beside them the real pictures, with the teacher's answers and with labels.

Said: the real pictures, and less and less of the teacher's answer, as a service might give it: all ten probabilities,
the best three, the best one with its probability, the best class alone.

Expected before the first run: real pictures with answers come out where labels do, within a point; tiles lose some
5 points, made pictures and digits 10 to 25; drawn shapes do better than digits; noise teaches nothing (below 30 %). The
best three answers are worth as much as all ten; the best class alone is worth what labels are, because the teacher is
right about its training images nearly always.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from course.experiments.claims_common import (
    IMAGES,
    Arm,
    Chosen,
    Part,
    Setting,
    generator,
    hard_settings,
    images_of,
    logits_of,
    pictures,
    soft_settings,
    taught,
    teacher,
)
from kdlib import devices
from kdlib.data import InMemoryDataset, data_dir
from kdlib.data.corruptions import destroy
from kdlib.teachers import CachedTeacher

HARD = hard_settings(0.001, 0.002, 0.003, 0.005, 0.01, 0.014, 0.02, 0.03)  # eight trials for every arm
SOFT = soft_settings(0.0025, 0.005, 0.01, 0.02)
SIDE = 28
SHAPES = 6  # on a drawn picture
STEPS, AT_ONCE = 20, 250  # of making pictures out of the teacher


@lru_cache(maxsize=1)
def digits() -> Tensor:
    """Handwritten digits of the shipped set (2,000 of 16 x 15 pixels), enlarged; uint8, N x 1 x 28 x 28."""
    small = load_file(data_dir() / "digit-views.safetensors")["pixels"][:IMAGES].float().view(-1, 1, 16, 15)
    large = F.interpolate(small, size=(24, 22), mode="bilinear", align_corners=False)
    return _bytes(F.pad(large, (3, 3, 2, 2)) * (255 / 6))


def noise(seed: int, count: int = IMAGES) -> Tensor:
    """Pixels that know nothing of each other."""
    return torch.randint(256, (count, 1, SIDE, SIDE), generator=generator(seed, "noise"), dtype=torch.uint8)


def shapes(seed: int, count: int = IMAGES) -> Tensor:
    """Rectangles and ellipses of any size, angle and grey value, one over the other, on black."""
    stream = generator(seed, "shapes")
    ys, xs = torch.meshgrid(torch.arange(SIDE) - 13.5, torch.arange(SIDE) - 13.5, indexing="ij")
    image = torch.zeros(count, SIDE, SIDE)
    for _ in range(SHAPES):
        centre_x, centre_y, wide, high, angle, grey, kind, there = torch.rand(8, count, 1, 1, generator=stream)
        x, y = xs - 20 * (centre_x - 0.5), ys - 20 * (centre_y - 0.5)
        turned = angle * torch.pi
        u = (x * turned.cos() + y * turned.sin()).abs() / (2 + 9 * wide)
        v = (y * turned.cos() - x * turned.sin()).abs() / (2 + 9 * high)
        inside = torch.where(kind < 0.5, torch.maximum(u, v), u.square() + v.square()) < 1
        image = torch.where(inside & (there < 0.6), 255 * grey, image)
    return _bytes(image.unsqueeze(1))


def tiles(seed: int, count: int = IMAGES) -> Tensor:
    """The real pictures of a seed in 4 x 4 tiles, shuffled."""
    split = images_of(seed, count)
    return destroy(split.images, split.indices, "shuffled tiles")


@lru_cache(maxsize=1)
def made(count: int = IMAGES, steps: int = STEPS) -> Tensor:
    """Pictures made by descending into the teacher: of a given class, with inputs of batch norm as it knows them.

    Nothing of the data is looked at: labels are drawn, and means and variances are those stored in the teacher.
    Made once, for all seeds. Returns uint8, N x 1 x 28 x 28.
    """
    parts = [
        _descend(number, min(AT_ONCE, count - start), steps) for number, start in enumerate(range(0, count, AT_ONCE))
    ]
    split = images_of(0)
    return _bytes((torch.cat(parts) * split.std[0] + split.mean[0]) * 255)


def _descend(number: int, count: int, steps: int) -> Tensor:
    network, stream = copy.deepcopy(teacher()).requires_grad_(False), generator(number, "made")
    wanted = torch.randint(10, (count,), generator=stream)
    images = (0.5 * torch.randn(count, 1, SIDE, SIDE, generator=stream)).requires_grad_()
    low, high = _range()
    gaps: list[Tensor] = []

    def compare(layer: nn.BatchNorm2d, given: tuple[Tensor]) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        values = given[0].float()
        mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3))
        gaps.append((mean - layer.running_mean).square().mean() + (variance - layer.running_var).square().mean())

    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(compare) for layer in norms]
    optimizer, config = torch.optim.Adam([images], lr=0.15), devices.resolve()
    for _ in range(steps):
        gaps.clear()
        with config.autocast():
            logits = network(images)
        loss = F.cross_entropy(logits.float(), wanted) + sum(gaps) + 0.2 * _roughness(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            images.clamp_(low, high)
    for hook in hooks:
        hook.remove()
    return images.detach()


def _range() -> tuple[float, float]:
    split = images_of(0)
    return -split.mean[0] / split.std[0], (1 - split.mean[0]) / split.std[0]


def _roughness(images: Tensor) -> Tensor:
    return (images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()) / 2


def _bytes(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


def _whole(split: InMemoryDataset) -> CachedTeacher:
    return CachedTeacher.from_logits(logits_of(teacher(), split), split.indices)


def by_answers(seed: int, setting: Setting, _: Chosen, source: Callable[[int], Tensor]) -> nn.Module:
    """A student of the teacher's answers to these pictures."""
    split = pictures(source(seed))
    return taught(seed, setting, split, _whole(split))


def real(seed: int, setting: Setting, _: Chosen) -> nn.Module:
    """A student of the teacher's answers to the real pictures."""
    return taught(seed, setting, images_of(seed), _whole(images_of(seed)))


def by_labels(seed: int, setting: Setting, _: Chosen) -> nn.Module:
    """A student of the labels."""
    return taught(seed, setting, images_of(seed))


def by_best(seed: int, setting: Setting, _: Chosen, k: int) -> nn.Module:
    """A student of the k best classes of each answer and their probabilities; the rest is spread evenly."""
    split = images_of(seed)
    best = logits_of(teacher(), split).softmax(1).topk(k)
    answers = {"classes": best.indices, "probabilities": best.values}
    return taught(seed, setting, split, CachedTeacher.from_logits(answers, split.indices, kind="top_k", num_classes=10))


def by_class_alone(seed: int, setting: Setting, _: Chosen) -> nn.Module:
    """A student of the class that the teacher names, taken as a label."""
    split = images_of(seed)
    said = InMemoryDataset(split.images, logits_of(teacher(), split).argmax(1), split.indices, split.mean, split.std)
    return taught(seed, setting, said)


LABELS, REAL, BEST = "labels", "real pictures", "best class alone"
PICTURES = Part(
    "pictures",
    {
        LABELS: Arm(by_labels, HARD),
        REAL: Arm(real, SOFT),
        "best three": Arm(partial(by_best, k=3), SOFT),
        "best one": Arm(partial(by_best, k=1), SOFT),
        BEST: Arm(by_class_alone, HARD),
        "tiles of real pictures": Arm(partial(by_answers, source=tiles), SOFT),
        "drawn shapes": Arm(partial(by_answers, source=shapes), SOFT),
        "handwritten digits": Arm(partial(by_answers, source=lambda seed: digits()), SOFT),
        "noise": Arm(partial(by_answers, source=noise), SOFT),
        "made by the teacher": Arm(partial(by_answers, source=lambda seed: made()), SOFT),
    },
)
