"""Datasets that give whole batches and keep each sample's index: in memory as bytes, or decoded by workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdlib.data.augment import NO_AUGMENTATION, Augmentation, augment, permutation, random_bits
from kdlib.data.decode import unreadable, upright
from kdlib.devices import memory_order, move_maps, pin_memory, to_device
from kdlib.files import fingerprint

CHUNK_SIZE = 1024  # images in memory that are augmented and normalized at once,
CHUNK_PIXELS = 1 << 22  # unless they have more pixels in all their channels: 1,024 of 224 x 224 take a gigabyte


@dataclass(frozen=True)
class Batch:
    """Some samples as the network sees them.

    images: float32, B x C x H x W, normalized. labels: int64, B. indices: int64, B, the sample's position in the
    source, whatever the order or the subset. view: which augmented view of each image this is. fingerprint: of
    everything else that the images depend on (data, augmentation, seed), see `view_fingerprint`.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    view: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with images and labels on this device; indices stay where they are."""
        return replace(self, images=move_maps(self.images, device), labels=to_device(self.labels, device))


class IndexedDataset(Protocol):
    """What `fit`, `evaluate` and teachers need of a dataset: batches, and an index that stays with each sample."""

    @property
    def labels(self) -> Tensor:
        """int64, N."""
        ...

    @property
    def indices(self) -> Tensor:
        """int64, N: the position of each sample in the source."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, for pixels in [0, 1]."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Of each channel, for pixels in [0, 1]."""
        ...

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """A sha256 of the data itself."""
        ...

    def select(self, positions: Tensor) -> IndexedDataset:
        """The dataset with only the samples at these positions."""
        ...

    def iter_batches(
        self,
        batch_size: int,
        *,
        sampler: Tensor | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
        seed: int = 0,
        view: int = 0,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Yield batches on `device`. sampler: positions in the dataset, in order; default, all of them."""
        ...


def epoch_order(dataset: IndexedDataset, seed: int, epoch: int) -> Tensor:
    """The order of one training epoch: positions in the dataset, a function of seed, epoch and sample indices."""
    return permutation(dataset.indices, seed, epoch)


def evenly_spaced(length: int, count: int) -> Tensor:
    """At most `count` of the positions 0 to length - 1, evenly spaced: a folder's samples come class by class."""
    return torch.linspace(0, length - 1, min(count, length), dtype=torch.float64).round().long()


def count_shared(a: IndexedDataset, b: IndexedDataset) -> int:
    """How many samples two splits share: those of one index that are the same image of the same source.

    Splits of different sources number their samples alike, so an index alone says nothing.
    """
    order = b.indices.sort()
    position = torch.searchsorted(order.values, a.indices).clamp(max=len(b) - 1) if len(b) else None
    if position is None or not len(a):
        return 0
    common = (order.values[position] == a.indices).nonzero()[:, 0]
    others = order.indices[position[common]]
    if isinstance(a, InMemoryDataset) and isinstance(b, InMemoryDataset):
        return _count_equal(a.images, common, b.images, others)
    if isinstance(a, LazyDataset) and isinstance(b, LazyDataset) and a.source is b.source:
        return int((a.source_positions[common] == b.source_positions[others]).sum())
    return 0


def _count_equal(a: Tensor, first: Tensor, b: Tensor, second: Tensor) -> int:
    """How many of the pairs of images a[first] and b[second] are equal; they may be whole splits."""
    if a.shape[1:] != b.shape[1:]:
        return 0
    middle = slice(a.shape[2] // 2, a.shape[2] // 2 + 1)  # this row tells most images apart, borders do not
    alike = (a[:, :, middle][first] == b[:, :, middle][second]).flatten(1).all(dim=1)
    chunk = max(1, CHUNK_PIXELS // max(1, a[:1].numel()))
    pairs = zip(first[alike].split(chunk), second[alike].split(chunk), strict=True)
    return sum(int((a[some] == b[others]).flatten(1).all(dim=1).sum()) for some, others in pairs)


def refuse_shared(name: str, splits: Mapping[str, IndexedDataset]) -> None:
    """Raise ValueError where two splits share samples. Reads the images that have one index in both."""
    for first, second in combinations(splits, 2):
        shared = count_shared(splits[first], splits[second])
        if shared:
            raise ValueError(
                f"{shared} image(s) of {name} are in {first} and in {second}: what is measured there would say too "
                "much. Split the samples so that each is in one part only."
            )


def view_fingerprint(dataset: IndexedDataset, augmentation: Augmentation, seed: int) -> str:
    """What `Batch.fingerprint` carries; images that are not augmented do not depend on the seed."""
    return fingerprint([], dataset.fingerprint, augmentation, int(seed) if augmentation != NO_AUGMENTATION else None)


def _normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str) -> Tensor:
    if images.dtype != torch.uint8:  # floats would be divided by 255 once more
        raise TypeError(
            f"The images are {images.dtype}; expected bytes (torch.uint8), 0 to 255, which are normalized here by mean "
            "and std. End the transform with v2.ToDtype(torch.uint8, scale=True), or train on a DataLoader of your own."
        )
    # The bytes travel and the floats are made where they are used.
    images = to_device(images, device)
    images = images.to(torch.float32, memory_format=memory_order(device))
    return images.sub_(_of_channels(images.device, *mean)).div_(_of_channels(images.device, *std))


@lru_cache
def _of_channels(device: torch.device, *values: float) -> Tensor:
    """A number of each channel, for pixels in 0 to 255; kept, as every copy from here to a GPU waits for the GPU."""
    return torch.tensor(values, dtype=torch.float32, device=device).mul(255).view(1, -1, 1, 1)


def _check_indices(indices: Tensor, samples: Tensor) -> None:
    """Raise ValueError for a negative index, or one that stands for two different samples.

    samples: what tells them apart, images or positions in a source; a sample may be there twice.
    """
    if len(indices) == 0:
        return
    if int(indices.min()) < 0:
        raise ValueError(f"indices are the samples' numbers, from 0 on; got {int(indices.min())}.")
    order = indices.sort()
    again = (order.values[1:] == order.values[:-1]).nonzero()[:, 0]
    first, second = order.indices[again], order.indices[again + 1]
    differ = (samples[first] != samples[second]).flatten(1 if samples.ndim > 1 else 0)
    twice = first[differ.any(dim=1) if differ.ndim > 1 else differ]
    if len(twice):
        raise ValueError(
            f"The index {int(indices[twice[0]])} belongs to several samples, so one image would get another's stored "
            "outputs and views. Give each sample a number of its own."
        )


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
class InMemoryDataset:
    """Images in memory as uint8; augmentation and normalization run on whole batches.

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
        _check_indices(self.indices, self.images)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        if "fingerprint" not in self.__dict__:  # hashing 43 MB once is enough
            self.__dict__["fingerprint"] = fingerprint([self.images, self.labels, self.indices], self.mean, self.std)
        return self.__dict__["fingerprint"]

    def select(self, positions: Tensor) -> InMemoryDataset:
        """The dataset with only the samples at these positions."""
        chosen = {name: getattr(self, name)[positions] for name in ("images", "labels", "indices")}
        return replace(self, **chosen)

    def iter_batches(
        self,
        batch_size: int,
        *,
        sampler: Tensor | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
        seed: int = 0,
        view: int = 0,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        positions = torch.arange(len(self)) if sampler is None else sampler
        shared = view_fingerprint(self, augmentation, seed)
        # Several small batches are made at once: the dozen operations cost little more for 1,000 images than for 100,
        # and an image's view does not depend on its neighbours.
        at_once = min(CHUNK_SIZE, CHUNK_PIXELS // max(1, self.images[:1].numel()))
        chunk = batch_size * max(1, at_once // batch_size)
        for chosen in positions.split(chunk) if len(positions) else ():  # torch splits nothing into one empty part
            indices = self.indices[chosen]
            images = pin_memory(augment(self.images[chosen], indices, augmentation, seed, view), device)
            images = _normalize(images, self.mean, self.std, device)
            labels = to_device(pin_memory(self.labels[chosen], device), device)
            for parts in zip(
                images.split(batch_size), labels.split(batch_size), indices.split(batch_size), strict=True
            ):
                yield Batch(*parts, view, shared)


class _ViewDataset(Dataset):
    """Decodes one image and augments it with a generator seeded by (seed, view, sample index)."""

    def __init__(
        self, dataset: LazyDataset, positions: Tensor, augmentation: Augmentation, seed: int, view: int
    ) -> None:
        self.dataset, self.positions = dataset, positions
        self.key = ("augment", seed, view)
        self.random = augmentation != NO_AUGMENTATION
        self.transform = dataset.transform(augmentation)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> tuple[Tensor, int, int]:
        position = int(self.positions[number])
        image = self._decode(int(self.dataset.source_positions[position]))
        label, index = int(self.dataset.labels[position]), self.dataset.indices[position]
        if not self.random:
            return self.transform(image), label, int(index)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            # torch.manual_seed would also set back the GPU's generator, which the student's dropout draws from.
            torch.default_generator.manual_seed(int(random_bits(index, *self.key)))
            return self.transform(image), label, int(index)

    def _decode(self, number: int) -> Any:
        """The image of the source; labels come from the dataset, which may have others than the source."""
        from PIL.Image import DecompressionBombError

        try:
            sample = self.dataset.source[number]
        except (OSError, SyntaxError, EOFError, DecompressionBombError) as error:
            # PIL often does not say which file it was.
            name = (
                self.dataset.source.samples[number][0] if hasattr(self.dataset.source, "samples") else f"image {number}"
            )
            raise unreadable(name, error) from error
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(
                f"source[{number}] is a {type(sample).__name__}; expected a pair (image, label). Wrap the "
                "source in a Dataset that gives such pairs."
            )
        return upright(sample[0], f"image {number}")


@dataclass(frozen=True)
class LazyDataset:
    """Images that are decoded when they are needed, by worker processes, with torchvision's transforms.

    source: a map-style Dataset of (PIL image, label). source_positions: int64, N, where the samples are in `source`.
    transform: from an Augmentation to the transform that gives a uint8 tensor C x H x W. source_fingerprint: text
    that differs when the images in `source`, or their size, differ. num_workers: decoding processes, at most.
    """

    source: Any
    source_positions: Tensor
    labels: Tensor
    indices: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: Callable[[Augmentation], Callable[[Any], Tensor]]
    source_fingerprint: str
    num_workers: int = 0

    def __post_init__(self) -> None:
        _check_labels(self.labels, self.indices, len(self.source_positions))
        _check_indices(self.indices, self.source_positions)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            [self.source_positions, self.labels, self.indices], self.source_fingerprint, self.mean, self.std
        )

    def select(self, positions: Tensor) -> LazyDataset:
        """The dataset with only the samples at these positions."""
        chosen = {name: getattr(self, name)[positions] for name in ("source_positions", "labels", "indices")}
        return replace(self, **chosen)

    def iter_batches(
        self,
        batch_size: int,
        *,
        sampler: Tensor | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
        seed: int = 0,
        view: int = 0,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        positions = torch.arange(len(self)) if sampler is None else sampler
        shared = view_fingerprint(self, augmentation, seed)
        loader = DataLoader(
            _ViewDataset(self, positions, augmentation, seed, view),
            batch_size,
            num_workers=min(self.num_workers, len(positions) // batch_size),  # they start anew for each loader
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator().manual_seed(seed),  # else the loader draws from the global generator
        )
        for images, labels, indices in loader:
            images = _normalize(images, self.mean, self.std, device)
            yield Batch(images, to_device(labels, device), indices, view, shared)


def num_cores() -> int:
    """The cores that this process may use: those it is pinned to, shared with what torchrun started beside it."""
    pinned = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    cores = len(os.sched_getaffinity(0)) if pinned else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def inference_batch_size(dataset: IndexedDataset, most: int = 250, *, training: int = 1) -> int:
    """How many images of a split a network is given at once where it does not learn.

    `most` of images up to 224 x 224 pixels; of larger ones as many as hold the same number of pixels, at least one.
    training: how many it was given in a training, which have fitted: no fewer than that, though no more than `most`.
    """
    if len(dataset) == 0:
        return most
    # A batch size of 2, so that the one image that is looked at starts no worker process.
    images = next(iter(dataset.select(torch.arange(1)).iter_batches(2))).images
    pixels = max(224 * 224, images.shape[2:].numel())
    return max(1, most * 224 * 224 // pixels, min(most, training))
