"""Splits of a data set: in memory as bytes, or decoded by workers; both give the same `Batch`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from kdlib.data.augment import NONE, Augmentation, augment, random_bits, shuffled
from kdlib.devices import pinned
from kdlib.files import digest

PREPARED = 1024  # images of a memory split that are augmented and normalised at once


@dataclass(frozen=True)
class Batch:
    """Some samples as the network sees them.

    images: float32, B x C x H x W, normalised. labels: int64, B. indices: int64, B, the sample's place in the
    source, whatever the order or the subset. view: which augmented view of each image this is. origin: a digest
    of everything else the pictures depend on (data, augmentation, seed).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    view: int
    origin: str

    def __len__(self) -> int:
        return len(self.labels)


class Split(Protocol):
    """What `fit`, `evaluate` and the teachers need of a split."""

    labels: Tensor
    indices: Tensor

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """A digest of the data itself."""
        ...

    def select(self, places: Tensor) -> Split:
        """The split with only the samples at these positions."""
        ...

    def batches(
        self,
        batch_size: int,
        *,
        places: Tensor | None = None,
        augmentation: Augmentation = NONE,
        seed: int = 0,
        view: int = 0,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Yield batches of the samples at `places` (all, in order, unless given), on `device`."""
        ...


def epoch_order(split: Split, seed: int, epoch: int) -> Tensor:
    """The order of one training epoch: positions in `split`, a function of seed, epoch and sample indices."""
    return shuffled(split.indices, seed, epoch)


def origin(split: Split, augmentation: Augmentation, seed: int) -> str:
    """The digest that `Batch.origin` carries; unaugmented pictures do not depend on the seed."""
    return digest([], split.fingerprint, augmentation, int(seed) if augmentation != NONE else None)


def _normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str) -> Tensor:
    # The bytes travel and the floats are made where they are used; channels_last is what convolutions like best.
    images = images.to(device, non_blocking=True)
    images = images.to(torch.float32, memory_format=torch.channels_last)
    shift = torch.tensor(mean, device=images.device).mul(255).view(1, -1, 1, 1)
    scale = torch.tensor(std, device=images.device).mul(255).view(1, -1, 1, 1)
    return images.sub_(shift).div_(scale)


@dataclass(frozen=True)
class MemorySplit:
    """A split whose images lie in memory as uint8; augmentation and normalisation run on whole batches.

    images: uint8, N x C x H x W. labels and indices: int64, N. mean, std: per channel, for pixels in [0, 1].
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        if "fingerprint" not in self.__dict__:  # hashing 43 MB once is enough
            value = digest([self.images, self.labels, self.indices], self.mean, self.std)
            self.__dict__["fingerprint"] = value
        return self.__dict__["fingerprint"]

    def select(self, places: Tensor) -> MemorySplit:
        return replace(self, images=self.images[places], labels=self.labels[places], indices=self.indices[places])

    def batches(
        self,
        batch_size: int,
        *,
        places: Tensor | None = None,
        augmentation: Augmentation = NONE,
        seed: int = 0,
        view: int = 0,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        places = torch.arange(len(self)) if places is None else places
        source = origin(self, augmentation, seed)
        # Several small batches are prepared at once: the dozen operations cost little more for 1,000 images than
        # for 100, and each image's view is its own affair.
        together = batch_size * max(1, PREPARED // batch_size)
        for chosen in places.split(together) if len(places) else ():  # torch splits nothing into one empty part
            indices = self.indices[chosen]
            images = augment(pinned(self.images[chosen], device), indices, augmentation, seed, view)
            images = _normalise(images, self.mean, self.std, device)
            labels = pinned(self.labels[chosen], device).to(device, non_blocking=True)
            for parts in zip(
                images.split(batch_size), labels.split(batch_size), indices.split(batch_size), strict=True
            ):
                yield Batch(*parts, view, source)


class _Views(TorchDataset):
    """Decodes one image and augments it with a generator seeded by (seed, view, sample index)."""

    def __init__(self, split: LazySplit, places: Tensor, augmentation: Augmentation, seed: int, view: int) -> None:
        self.split, self.places = split, places
        self.key = ("augment", seed, view)
        self.random = augmentation != NONE
        self.transform = split.transform(augmentation)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        place = int(self.places[position])
        image, label = self._decoded(int(self.split.within[place]))
        index = self.split.indices[place]
        if not self.random:
            return self.transform(image), label, int(index)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            # torch.manual_seed would also set back the GPU's generator, which the student's dropout draws from.
            torch.default_generator.manual_seed(int(random_bits(index, *self.key)))
            return self.transform(image), label, int(index)

    def _decoded(self, number: int) -> tuple[Any, int]:
        try:
            return self.split.source[number]
        except OSError as error:  # PIL often does not say which file it was
            name = self.split.source.samples[number][0] if hasattr(self.split.source, "samples") else f"image {number}"
            raise OSError(f"{name} cannot be read as a picture ({error}). Copy it again or remove it.") from error


@dataclass(frozen=True)
class LazySplit:
    """A split whose images are decoded when they are needed, by worker processes, with torchvision's transforms.

    source: a map-style data set of (PIL image, label). within: int64, N, positions in `source`.
    transform: from an Augmentation to the transform that gives a uint8 tensor C x H x W. identity: text that differs
    when the pictures in `source`, or their size, differ.
    """

    source: Any
    within: Tensor
    labels: Tensor
    indices: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: Callable[[Augmentation], Callable[[Any], Tensor]]
    identity: str
    workers: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        return digest([self.within, self.labels, self.indices], self.identity, self.mean, self.std)

    def select(self, places: Tensor) -> LazySplit:
        return replace(self, within=self.within[places], labels=self.labels[places], indices=self.indices[places])

    def batches(
        self,
        batch_size: int,
        *,
        places: Tensor | None = None,
        augmentation: Augmentation = NONE,
        seed: int = 0,
        view: int = 0,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        places = torch.arange(len(self)) if places is None else places
        source = origin(self, augmentation, seed)
        loader = DataLoader(
            _Views(self, places, augmentation, seed, view),
            batch_size,
            num_workers=self.workers,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator().manual_seed(seed),  # else the loader draws from the global generator
        )
        for images, labels, indices in loader:
            images = _normalise(images, self.mean, self.std, device)
            yield Batch(images, labels.to(device, non_blocking=True), indices, view, source)
