"""Data sets with a train, a validation and a test split, the same on every machine.

fashion = data.load("fashion-mnist")
small = fashion.take(10_000)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kdlib._messages import unknown
from kdlib.data import sources
from kdlib.data.augment import NONE, Augmentation, augment, random_bits, shuffled
from kdlib.data.sources import folder
from kdlib.data.splits import Batch, LazySplit, MemorySplit, Split, epoch_order, origin

__all__ = [
    "NONE",
    "Augmentation",
    "Batch",
    "DataSet",
    "LazySplit",
    "MemorySplit",
    "Split",
    "augment",
    "epoch_order",
    "folder",
    "load",
    "names",
    "origin",
    "random_bits",
]


@dataclass(frozen=True)
class DataSet:
    """Three splits of one source, the names of its classes and the augmentation that suits it.

    train, validation and test are disjoint; choices are made on validation, test is read once at the end.
    size: pixels of a side. Raises ValueError for labels without a class.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    augmentation: Augmentation
    size: int

    def __post_init__(self) -> None:
        for part, split in {"train": self.train, "validation": self.validation}.items():  # the test set is not read
            low, high = (int(split.labels.min()), int(split.labels.max())) if len(split) else (0, 0)
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"The {part} labels of {self.name} run from {low} to {high}, but {self.num_classes} classes are "
                    f"named: labels are numbers from 0 to {self.num_classes - 1}."
                )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        return len(self.train.mean)

    def take(self, count: int | None, seed: int = 0) -> DataSet:
        """The same data set with `count` training images, equally many of each class as far as they go.

        Smaller takes are contained in larger ones of the same seed. None takes all. Raises ValueError unless
        1 <= count <= the number of training images.
        """
        if count is None:
            return self
        if not 1 <= count <= len(self.train):
            raise ValueError(f"{self.name} has {len(self.train):,} training images; cannot take {count:,} of them.")
        order = shuffled(self.train.indices, "take", seed)
        labels = self.train.labels[order]
        rank = torch.empty_like(labels)  # each image's place among those of its own class
        for label in labels.unique():
            same = labels == label
            rank[same] = torch.arange(int(same.sum()))
        chosen = order[torch.argsort(rank, stable=True)[:count]].sort().values
        return replace(self, train=self.train.select(chosen))

    def without(self, label: int) -> DataSet:
        """The same data set whose training and validation splits lack one class (Hinton's missing class)."""
        if not 0 <= label < self.num_classes:
            raise ValueError(f"{self.name} has classes 0 to {self.num_classes - 1}; there is no class {label}.")
        keep = {part: getattr(self, part) for part in ("train", "validation")}
        return replace(self, **{part: s.select(torch.nonzero(s.labels != label)[:, 0]) for part, s in keep.items()})


def names() -> list[str]:
    """The names that `load` knows; PATH stands for a folder."""
    return ["fashion-mnist", "cifar10", "cifar100", "imagefolder:PATH", "imagenet:PATH"]


def load(
    name: str, *, root: str | Path | None = None, download: bool = True, size: int = 224, workers: int | None = None
) -> DataSet:
    """Load a data set by name.

    name: one of `names()`. root: where CIFAR is kept (default ~/.cache/kdlib), downloaded there if `download`.
    size: pixels of a side, and workers: decoding processes, for image folders.
    Raises ValueError for an unknown name, FileNotFoundError for missing files, ValueError for altered ones.
    """
    kind, _, path = str(name).partition(":")
    if name == "fashion-mnist":
        parts = sources.fashion_mnist(sources.folder())
    elif name in sources.CIFAR_STATISTICS:
        parts = sources.cifar(name, root, download)
    elif kind in ("imagefolder", "imagenet") and path:
        parts = sources.image_folder(path, size, workers)
    else:
        raise unknown("data set", name, names())
    return DataSet(name=name, **parts)


def normalised(split: MemorySplit | LazySplit) -> Tensor:
    """All images of a small split as the network sees them: float32, N x C x H x W, not augmented."""
    return torch.cat([batch.images for batch in split.batches(1_000)])
