"""A selection of validation images, and the outputs of a network's layers for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kdlib import data, devices
from kdlib.data import Batch, DataModule
from kdlib.hooks import ModelOutput
from kdlib.teachers import FrozenTeacher


@dataclass(frozen=True, eq=False)
class ImageSelection:
    """Some images of the validation split, sorted by class.

    batches: normalised, as networks take them. images: N x H x W, or N x H x W x 3, in [0, 1], to be displayed. labels:
    N. positions: N, in the split. classes: their names.
    """

    batches: tuple[Batch, ...]
    images: np.ndarray
    labels: tuple[int, ...]
    positions: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def of_class(self, name: str | None = None) -> tuple[int, ...]:
        """The numbers, within the selection, of the images of a class, or of all."""
        return tuple(i for i, label in enumerate(self.labels) if name is None or self.classes[label] == name)


def select_images(dataset: DataModule | None, per_class: int) -> ImageSelection:
    """The first images of each class in the validation split; dataset: default Fashion-MNIST.

    Raises ValueError for per_class below 1.
    """
    if per_class < 1:
        raise ValueError(f"per_class is at least 1; got {per_class}.")
    dataset = data.load("fashion-mnist") if dataset is None else dataset
    split = dataset.validation
    positions = torch.cat([(split.labels == c).nonzero()[:per_class, 0] for c in range(dataset.num_classes)])
    batches = tuple(split.iter_batches(100, sampler=positions))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (split.mean, split.std))
    images = (torch.cat([batch.images for batch in batches]) * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    images = images[..., 0] if images.shape[-1] == 1 else images
    labels = tuple(split.labels[positions].tolist())
    return ImageSelection(batches, images, labels, tuple(positions.tolist()), dataset.classes)


def extract_features(model: nn.Module, layers: Sequence[str], batches: Sequence[Batch]) -> Iterator[ModelOutput]:
    """A network's logits and layer outputs, batch by batch, in eval mode and float32 on the CPU.

    The network itself does not change. Raises ValueError for an unknown layer, and for a network that cannot take these
    images.
    """
    frozen = FrozenTeacher(model)
    with frozen.activate(layers, devices.resolve("cpu", "fp32")):
        for batch in batches:
            try:
                yield frozen(batch)
            except RuntimeError as error:
                shape = " x ".join(map(str, batch.images.shape[1:]))
                raise ValueError(f"A {type(model).__name__} cannot take pictures of {shape}: {error}.") from error
