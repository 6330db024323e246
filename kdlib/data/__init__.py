"""Datasets with a train, a validation and a test split, the same on every machine.

fashion = data.load("fashion-mnist")
small = fashion.subset(10_000)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from kdlib.data import sources
from kdlib.data.augment import NO_AUGMENTATION, Augmentation, augment, permutation, random_bits, seed_for
from kdlib.data.datasets import (
    Batch,
    IndexedDataset,
    InMemoryDataset,
    LazyDataset,
    epoch_order,
    evenly_spaced,
    inference_batch_size,
    refuse_shared,
    view_fingerprint,
)
from kdlib.data.own import read_datasets
from kdlib.data.paired import (
    HIDDEN,
    PAIRED_LOADERS,
    PairedBatches,
    PairedData,
    PairedDataset,
    labelled_cross_entropy,
    load_paired,
)
from kdlib.data.sources import data_dir
from kdlib.errors import as_whole, unknown_name

__all__ = [
    "HIDDEN",
    "NO_AUGMENTATION",
    "Augmentation",
    "Batch",
    "DataModule",
    "InMemoryDataset",
    "IndexedDataset",
    "LazyDataset",
    "PairedBatches",
    "PairedData",
    "PairedDataset",
    "augment",
    "data_dir",
    "epoch_order",
    "evenly_spaced",
    "from_datasets",
    "inference_batch_size",
    "labelled_cross_entropy",
    "list_datasets",
    "load",
    "load_images",
    "load_paired",
    "normalized_images",
    "random_bits",
    "seed_for",
    "view_fingerprint",
]

SMALLEST_IMAGE, LARGEST_IMAGE = 8, 4096  # pixels of a side


IMAGE_DATASETS = ("fashion-mnist", "cifar10", "cifar100", "imagefolder:PATH", "imagenet:PATH")


@dataclass(frozen=True)
class DataModule:
    """Three splits of one source, the names of its classes and the augmentation that suits it.

    train, validation and test are disjoint; choices are made on validation, test is read once at the end.
    image_size: pixels of a side. Raises ValueError for labels of train or validation without a class, and where these
    two share an image that has the same index in both; the test split is not read, so see to it yourself.
    """

    name: str
    classes: tuple[str, ...]
    train: IndexedDataset
    validation: IndexedDataset
    test: IndexedDataset
    augmentation: Augmentation
    image_size: int

    def __post_init__(self) -> None:
        for part, split in {"train": self.train, "validation": self.validation}.items():  # the test set is not read
            low, high = (int(split.labels.min()), int(split.labels.max())) if len(split) else (0, 0)
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"The {part} labels of {self.name} run from {low} to {high}, but {self.num_classes} classes are "
                    f"named: labels are numbers from 0 to {self.num_classes - 1}."
                )
        if self.test is self.train or self.test is self.validation:
            raise ValueError(f"{self.name} tests on a split that is trained or chosen on. Give samples of their own.")
        refuse_shared(self.name, {"train": self.train, "validation": self.validation})

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        return len(self.train.mean)

    def subset(self, count: int | None, seed: int = 0) -> DataModule:
        """The same data with `count` training images, equally many of each class as far as they go.

        Smaller subsets are contained in larger ones of the same seed. None keeps all images. Raises ValueError unless
        1 <= count <= the number of training images.
        """
        if count is None:
            return self
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise TypeError(f"count is a whole number of training images, or None for all; got {count!r}.")
        count = int(count)
        if not 1 <= count <= len(self.train):
            raise ValueError(f"{self.name} has {len(self.train):,} training images; there is no subset of {count:,}.")
        order = permutation(self.train.indices, "take", seed)
        labels = self.train.labels[order]
        by_class = labels.sort(stable=True)
        begins = torch.searchsorted(by_class.values, by_class.values)  # where the images of its class begin there
        rank = torch.empty_like(labels)  # each image's rank among those of its own class
        rank[by_class.indices] = torch.arange(len(labels)) - begins
        chosen = order[torch.argsort(rank, stable=True)[:count]].sort().values
        return replace(self, train=self.train.select(chosen))

    def exclude_class(self, label: int) -> DataModule:
        """The same data whose training and validation splits lack one class (Hinton's missing class)."""
        if isinstance(label, bool) or not isinstance(label, Integral):
            raise TypeError(f"label is the number of a class; got {label!r}.")
        if not 0 <= label < self.num_classes:
            raise ValueError(f"{self.name} has classes 0 to {self.num_classes - 1}; there is no class {label}.")
        keep = {part: getattr(self, part) for part in ("train", "validation")}
        return replace(self, **{part: s.select(torch.nonzero(s.labels != label)[:, 0]) for part, s in keep.items()})


def list_datasets() -> list[str]:
    """The names that `load` knows; PATH stands for a folder."""
    return [*IMAGE_DATASETS, *PAIRED_LOADERS]


@overload
def load(  # type: ignore[overload-overlap]  # a name that is known only at run time counts as one of images
    name: Literal["shoulder-exercises", "digit-views"],
    *,
    root: str | Path | None = None,
    download: bool = True,
    image_size: int = 224,
    num_workers: int | None = None,
) -> PairedData: ...
@overload
def load(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = True,
    image_size: int = 224,
    num_workers: int | None = None,
) -> DataModule: ...
def load(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = True,
    image_size: int = 224,
    num_workers: int | None = None,
) -> DataModule | PairedData:
    """Load a dataset by name: of images, or of pairs of two modalities ("shoulder-exercises", "digit-views").

    name: one of `list_datasets()`. root: where CIFAR is kept (default ~/.cache/kdlib), downloaded there if `download`.
    image_size: pixels of a side, and num_workers: decoding processes, for image folders; default, one for each core
    but one of those that this process may use, eight at most, where they start quickly or the folder is large; those of
    torchrun, of a study and of a search share the cores. On macOS, on Windows and from Python 3.14 on each of them runs
    your script's first lines again: put what trains under `if __name__ == "__main__":`, or give 0. The size may
    stand in the name, as in "imagefolder@32:PATH": then every command and every row of results carries it along. A
    folder's images are trained on in random crops, and evaluated as ImageNet is: with the shorter side at 8/7 of the
    size, the centre is kept.
    What a caller writes into labels, or into pairs, is not there when they are loaded again. The images of
    Fashion-MNIST are shared by all who load them in this process: change a copy.
    Raises ValueError for an unknown name, FileNotFoundError for missing files, ValueError for altered ones.
    """
    kind, _, path = str(name).partition(":")
    if kind.startswith(("imagefolder", "imagenet")):
        image_size = as_whole(SMALLEST_IMAGE, LARGEST_IMAGE, image_size=image_size)
        num_workers = None if num_workers is None else as_whole(0, num_workers=num_workers)
    kind, at, size = kind.partition("@")
    if name in PAIRED_LOADERS:
        return load_paired(name)
    if name == "fashion-mnist":
        parts = sources.with_own_labels(sources.fashion_mnist(sources.data_dir()))
    elif name in sources.CIFAR_STATISTICS:
        parts = sources.cifar(name, root, download)
    elif kind in ("imagefolder", "imagenet") and path:
        parts = sources.image_folder(path, _size_in_name(name, size) if at else image_size, num_workers)
    else:
        raise unknown_name("dataset", name, list_datasets())
    return DataModule(name=name, **parts)


def _size_in_name(name: str, text: str) -> int:
    """The pixels of a side in "imagefolder@32:PATH"; ValueError for what is no such number."""
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and SMALLEST_IMAGE <= int(text) <= LARGEST_IMAGE):
        raise ValueError(
            f"{name} names no size of the images. Between @ and : stand the pixels of a side, a whole number from "
            f"{SMALLEST_IMAGE} to {LARGEST_IMAGE}, as in imagefolder@32:PATH."
        )
    return int(text)


def load_images(name: str, *, image_size: int = 224) -> DataModule:
    """Load a dataset of images by name, for what works on images alone, such as the command line.

    Raises what `load` raises, and ValueError for a data set of pairs.
    """
    if name in PAIRED_LOADERS:
        raise ValueError(
            f"{name} holds pairs of two modalities, and this works on images: choose {', '.join(IMAGE_DATASETS)}. In "
            f"Python, train.fit takes data.load({name!r}).train with an Adapter(inputs=..., teacher_inputs=...)."
        )
    return load(name, image_size=image_size)


def from_datasets(
    train: Any,
    *,
    classes: Sequence[str],
    image_size: int,
    validation: Any = None,
    test: Any = None,
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: Augmentation = NO_AUGMENTATION,
    name: str = "own",
) -> DataModule:
    """A `DataModule` from datasets of one's own; their images are decoded once and kept in memory as bytes.

    train, validation, test: datasets of (image, label): PIL images or uint8 tensors C x H x W, and class numbers.
    Without validation or test, a tenth of the training samples is held out for it. image_size: the shorter side is
    resized to it and the centre cut out. in_channels: 1 for grey, 3 for colour. mean, std: of each channel, for pixels
    in [0, 1]; default, of some 2,000 training images, none of those held out. augmentation: may shift and flip.
    Raises TypeError for images that are no bytes, ValueError for labels without a class, or more images than fit.
    """
    if isinstance(classes, str) or not hasattr(classes, "__len__") or len(classes) < 2:
        raise ValueError(f"classes are the names of at least 2 classes; got {classes!r}.")
    if isinstance(image_size, bool) or not isinstance(image_size, Integral) or image_size < 1:
        raise ValueError(f"image_size is a whole number of pixels, the side of a square; got {image_size!r}.")
    image_size = int(image_size)
    splits = read_datasets(
        train,
        validation,
        test,
        num_classes=len(classes),
        image_size=image_size,
        in_channels=in_channels,
        mean=mean,
        std=std,
    )
    refuse_shared(name, splits)
    return DataModule(name, tuple(classes), **splits, augmentation=augmentation, image_size=image_size)


def normalized_images(dataset: IndexedDataset) -> Tensor:
    """All images of a small dataset as the network sees them: float32, N x C x H x W, not augmented."""
    return torch.cat([batch.images for batch in dataset.iter_batches(1_000)])
