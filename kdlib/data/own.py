"""A `DataModule` from datasets of one's own: samples are decoded once and kept in memory as bytes."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdlib.data.datasets import InMemoryDataset
from kdlib.data.decode import unreadable, upright
from kdlib.data.sources import hold_out

LARGEST = 4e9  # bytes of one split; more belongs into folders, which are decoded as they are needed
STATISTICS = 2_000  # images of which mean and standard deviation are taken


def read_datasets(
    train: Any,
    validation: Any,
    test: Any,
    *,
    num_classes: int,
    image_size: int,
    in_channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> dict[str, InMemoryDataset]:
    """Train, validation and test splits of datasets of (image, label); see `data.from_datasets`."""
    for what, given in {"mean": mean, "std": std}.items():
        if given is None:
            continue
        numbers = isinstance(given, Sequence | np.ndarray | Tensor) and not isinstance(given, str)
        if not numbers or len(given) != in_channels:
            raise ValueError(f"{what} has a number for each channel, {in_channels}; got {given!r}.")
        if not all(math.isfinite(float(one)) for one in given):
            raise ValueError(f"{what} has finite numbers; got {given!r}.")
    if std is not None and min(std) <= 0:
        raise ValueError(f"std divides the pixels, so its numbers are above 0; got {std!r}.")
    read = {
        name: _read(name, given, image_size, in_channels) for name, given in _given(train, validation, test).items()
    }
    for name, (_, found) in read.items():
        if found.min() < 0 or found.max() >= num_classes:
            raise ValueError(
                f"The {name} labels run from {int(found.min())} to {int(found.max())}, and {num_classes} classes are "
                f"named: labels are numbers from 0 to {num_classes - 1}."
            )
    unscaled = (0.0,) * in_channels, (1.0,) * in_channels  # until it is known which are the training images
    splits = {
        name: InMemoryDataset(images, labels, torch.arange(len(labels)), *unscaled)
        for name, (images, labels) in read.items()
    }
    del read
    positions = torch.arange(len(splits["train"]))  # of the training samples that are left
    tenth = max(1, len(positions) // 10)
    for name in ("test", "validation"):
        if name not in splits:  # a tenth of the training samples, the same on every machine
            if len(positions) < 10:
                missing = " and no ".join(one for one in ("test", "validation") if one not in splits)
                raise ValueError(
                    f"There is no {missing} dataset, and of {len(positions)} samples no tenth can be held out: give "
                    f"{'both' if 'and' in missing else 'one'}."
                )
            kept, held_out = hold_out(len(positions), tenth)
            splits[name], positions = splits["train"].select(positions[held_out]), positions[kept]
    if len(positions) < len(splits["train"]):  # once, as it copies the images
        splits["train"] = splits["train"].select(positions)
    if mean is None or std is None:
        shares = _statistics(splits["train"].images)
        mean, std = shares[0] if mean is None else mean, shares[1] if std is None else std
    # Python's numbers, since their text is in fingerprints.
    means, stds = tuple(map(float, mean)), tuple(map(float, std))
    return {name: replace(split, mean=means, std=stds) for name, split in splits.items()}


def _given(train: Any, validation: Any, test: Any) -> dict[str, Any]:
    return (
        {"train": train}
        | ({} if validation is None else {"validation": validation})
        | ({} if test is None else {"test": test})
    )


def _read(name: str, dataset: Any, image_size: int, in_channels: int) -> tuple[Tensor, Tensor]:
    from PIL.Image import DecompressionBombError

    stream = getattr(type(dataset), "__getitem__", None) is Dataset.__getitem__  # which only raises
    if stream or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"{name} is a dataset with a length, of pairs (image, label), that gives a sample by its number; got a "
            f"{type(dataset).__name__}."
        )
    count = len(dataset)
    if count == 0:
        raise ValueError(f"The {name} dataset is empty.")
    size = count * in_channels * image_size**2
    if size > LARGEST:
        raise ValueError(
            f"The {name} images take {size / 1e9:.0f} GB in memory. Lay them out as PATH/train/CLASS/IMAGE: "
            "data.load('imagefolder:PATH') decodes them as they are needed."
        )
    images = torch.empty(count, in_channels, image_size, image_size, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    transform = _transform(image_size, in_channels)
    for number in range(count):
        try:
            sample = dataset[number]
        except (OSError, SyntaxError, EOFError, DecompressionBombError) as error:
            raise unreadable(f"{name}[{number}]", error) from error
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(f"{name}[{number}] is a {type(sample).__name__}; expected a pair (image, label).")
        images[number] = _decoded(sample[0], f"{name}[{number}]", transform, in_channels)
        labels[number] = _label(sample[1], f"{name}[{number}]")
    return images, labels


def _label(label: Any, where: str) -> int:
    if isinstance(label, Tensor) and label.numel() == 1 and not label.is_floating_point():
        label = label.item()
    try:
        return operator.index(label)
    except TypeError:
        raise TypeError(f"The label of {where} is {label!r}; expected a class's number, from 0 on.") from None


def _decoded(image: Any, where: str, transform: Any, in_channels: int) -> Tensor:
    from PIL import Image

    if isinstance(image, Image.Image):
        # torchvision reads a palette's numbers as grey and the channels of CMYK or HSV as colours; PIL converts them.
        return transform(upright(image, where).convert("RGB" if in_channels == 3 else "L"))
    kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
    if kind != torch.uint8:
        raise TypeError(
            f"{where} is {kind}; expected a PIL image or a tensor of bytes (torch.uint8), C x H x W. Leave the "
            "conversion to floats and the normalization out of the dataset's transform: they happen here."
        )
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"{where} is a tensor of {tuple(image.shape)}; expected C x H x W with 1 channel, grey, or 3, colours. "
            "Colours that come last are moved by image.permute(2, 0, 1)."
        )
    return transform(image)


def _transform(size: int, channels: int) -> Any:
    from torchvision.transforms import v2

    if channels not in (1, 3):
        raise ValueError(f"in_channels is 1 for grey or 3 for colour images; got {channels}.")
    colours = v2.RGB() if channels == 3 else v2.Grayscale()
    return v2.Compose([v2.ToImage(), colours, v2.Resize(size, antialias=True), v2.CenterCrop(size)])


def _statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1], over evenly spaced images."""
    few = images[:: max(1, len(images) // STATISTICS)]
    # From counts of the 256 values: a copy in float64 has eight times the bytes of the images.
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack(
        [few[:, channel].flatten().bincount(minlength=256) for channel in range(few.shape[1])]
    ).double()
    total = counts.sum(dim=1)
    mean = counts @ levels / total
    std = ((counts * (levels - mean[:, None]).square()).sum(dim=1) / (total - 1)).sqrt()
    return mean.tolist(), std.clamp(min=1e-3).tolist()
