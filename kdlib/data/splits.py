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
from kdlib.devices import pinned, sent
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
    images = sent(images, device)
    images = images.to(torch.float32, memory_format=torch.channels_last)
    shift = torch.tensor(mean, device=images.device).mul(255).view(1, -1, 1, 1)
    scale = torch.tensor(std, device=images.device).mul(255).view(1, -1, 1, 1)
    return images.sub_(shift).div_(scale)


def _check_labels(labels: Tensor, indices: Tensor, count: int) -> None:
    for name, values in {"labels": labels, "indices": indices}.items():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        if kind != torch.int64:
            raise TypeError(f"{name} are a tensor of int64; got {kind}. torch.as_tensor(values).long() makes one.")
        if values.shape != (count,):
            raise ValueError(
                f"{name} have shape {tuple(values.shape)}, but there are {count} images: give one number for each."
            )


@dataclass(frozen=True)
class MemorySplit:
    """A split whose images lie in memory as uint8; augmentation and normalisation run on whole batches.

    images: uint8, N x C x H x W. labels and indices: int64, N. mean, std: per channel, for pixels in [0, 1].
    Raises TypeError for tensors of another kind, ValueError for shapes that do not fit each other.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        kind = self.images.dtype if isinstance(self.images, Tensor) else type(self.images).__name__
        if kind != torch.uint8:
            raise TypeError(
                f"images are a tensor of bytes (torch.uint8), 0 to 255; got {kind}. Of floats in [0, 1] "
                "(255 * images).round().to(torch.uint8) makes them, of a NumPy array torch.from_numpy."
            )
        if self.images.ndim != 4 or not self.images.shape[1] == len(self.mean) == len(self.std):
            raise ValueError(
                f"images have shape {tuple(self.images.shape)}, mean {len(self.mean)} and std {len(self.std)} numbers; "
                "expected N x C x H x W with a mean and a std for each of the C channels. Colours that come last are "
                "moved by images.permute(0, 3, 1, 2)."
            )
        _check_labels(self.labels, self.indices, len(self.images))

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
            labels = sent(pinned(self.labels[chosen], device), device)
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
        image = self._decoded(int(self.split.within[place]))
        label, index = int(self.split.labels[place]), self.split.indices[place]
        if not self.random:
            return self.transform(image), label, int(index)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            # torch.manual_seed would also set back the GPU's generator, which the student's dropout draws from.
            torch.default_generator.manual_seed(int(random_bits(index, *self.key)))
            return self.transform(image), label, int(index)

    def _decoded(self, number: int) -> Any:
        """The picture; its label is the split's own affair, which may have been given others than the source has."""
        try:
            sample = self.split.source[number]
        except OSError as error:  # PIL often does not say which file it was
            name = self.split.source.samples[number][0] if hasattr(self.split.source, "samples") else f"image {number}"
            raise OSError(f"{name} cannot be read as a picture ({error}). Copy it again or remove it.") from error
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(
                f"source[{number}] is a {type(sample).__name__}; expected a pair of a picture and its label. Wrap the "
                "source in a data set that gives such pairs."
            )
        return sample[0]


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

    def __post_init__(self) -> None:
        _check_labels(self.labels, self.indices, len(self.within))

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
            yield Batch(images, sent(labels, device), indices, view, source)
