"""The datasets are the same on every machine, a view belongs to (seed, view, index), and bad files are named."""

from __future__ import annotations

import contextlib
import gc
import gzip
import hashlib
import io
import multiprocessing
import os
import pickle
import re
import sys
import urllib.error
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_blocks import MemoryBlocks
from PIL import EpsImagePlugin, Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import nn
from torchvision import datasets as torchvision_sets
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import pil_to_tensor

from kdlib import data, evaluation, methods, models, train
from kdlib.data import NO_AUGMENTATION, Augmentation, DataModule, InMemoryDataset, LazyDataset, datasets, own, sources
from kdlib.data.augment import permutation
from kdlib.data.decode import FORMATS, upright
from kdlib.data.sources import IMAGENET_MEAN, IMAGENET_STD
from kdlib.ensembles import ConfidenceEnsemble
from kdlib.files import fingerprint
from kdlib.teachers import CachedTeacher, Ensemble

SHIPPED = Path(data.__file__).parents[2] / "data"


def bytes_of(images: torch.Tensor, mean: tuple, std: tuple) -> torch.Tensor:
    """The pixels 0..255 behind normalized images."""
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return ((images * scale + shift) * 255).round().to(torch.uint8)


def by_index(batches) -> dict[int, list]:
    return {int(i): image.tolist() for b in batches for i, image in zip(b.indices, b.images, strict=True)}


# --- Fashion-MNIST


@pytest.fixture(scope="module")
def raw() -> dict[str, np.ndarray]:
    """The four files, read without kdlib."""

    def read(name: str, offset: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((SHIPPED / name).read_bytes()), np.uint8, offset=offset)

    return {
        "images": read("train-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28),
        "labels": read("train-labels-idx1-ubyte.gz", 8),
        "test images": read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28),
        "test labels": read("t10k-labels-idx1-ubyte.gz", 8),
    }


def test_the_splits_are_55000_5000_and_10000(fashion: DataModule):
    assert [len(s) for s in (fashion.train, fashion.validation, fashion.test)] == [55_000, 5_000, 10_000]
    assert (fashion.num_classes, fashion.in_channels, fashion.image_size) == (10, 1, 28)
    assert fashion.classes[0] == "T-shirt/top"
    assert fashion.classes[9] == "Ankle boot"
    assert fashion.augmentation == Augmentation(padding=2, flip=True)
    for split in (fashion.train, fashion.validation, fashion.test):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == split.indices.dtype == torch.int64


def test_train_and_validation_are_disjoint_and_the_same_on_every_machine(fashion: DataModule):
    both = torch.cat([fashion.train.indices, fashion.validation.indices])
    assert both.sort().values.tolist() == list(range(60_000))
    held_out = fashion.validation.indices.numpy().astype("<i8").tobytes()
    assert hashlib.sha256(held_out).hexdigest() == "9cd19b9d9f2acebd81ac24fb4b7615fd5d2985a2ffa7aad72d5ec08f9bad7101"
    assert fashion.validation.indices[:5].tolist() == [5, 9, 17, 72, 97]


def test_every_image_is_the_files_own(fashion: DataModule, raw: dict[str, np.ndarray]):
    for split in (fashion.train, fashion.validation):
        assert np.array_equal(split.images.numpy(), raw["images"][split.indices.numpy()])
        assert np.array_equal(split.labels.numpy(), raw["labels"][split.indices.numpy()])
    assert np.array_equal(fashion.test.images.numpy(), raw["test images"])
    assert np.array_equal(fashion.test.labels.numpy(), raw["test labels"])
    assert fashion.test.indices.tolist() == list(range(10_000))


def test_class_counts(fashion: DataModule):
    held_out = torch.bincount(fashion.validation.labels)
    assert held_out.tolist() == [502, 501, 530, 501, 488, 518, 489, 525, 440, 506]
    assert (torch.bincount(fashion.train.labels) + held_out).tolist() == [6_000] * 10
    assert torch.bincount(fashion.test.labels).tolist() == [1_000] * 10


def test_mean_and_std_are_those_of_the_training_images(fashion: DataModule, raw: dict[str, np.ndarray]):
    total = squares = 0.0
    for chunk in np.split(raw["images"].reshape(-1), 60):  # a little at a time: all at once as floats takes 0.4 GB
        pixels = chunk.astype(np.float32)
        total += float(pixels.sum(dtype=np.float64))
        squares += float(np.dot(pixels, pixels))
    mean = total / raw["images"].size / 255
    std = (squares / raw["images"].size / 255**2 - mean**2) ** 0.5
    assert fashion.train.mean == (pytest.approx(mean, abs=1e-4),)
    assert fashion.train.std == (pytest.approx(std, abs=1e-4),)
    assert fashion.test.mean == fashion.train.mean  # the test set is not looked at, not even for its mean
    assert fashion.test.std == fashion.train.std


def test_loading_again_gives_the_same_images_without_reading_again(monkeypatch):
    images = data.load("fashion-mnist").train.images  # not the fixture's: other tests may have pushed that out
    monkeypatch.setattr(sources, "read_verified", lambda name: pytest.fail("read again"))
    assert data.load("fashion-mnist").train.images is images


def test_what_is_written_into_labels_is_not_there_when_loaded_again():
    first = data.load("fashion-mnist")
    kept = {part: (getattr(first, part).labels.clone(), getattr(first, part).indices.clone()) for part in PARTS}
    unchanged = first.train.fingerprint
    for part in PARTS:
        getattr(first, part).labels[:1_000] = 0
        getattr(first, part).indices.add_(1)
    again = data.load("fashion-mnist")
    for part in PARTS:
        assert torch.equal(getattr(again, part).labels, kept[part][0])
        assert torch.equal(getattr(again, part).indices, kept[part][1])
    assert again.train.fingerprint == unchanged
    changed = data.load("fashion-mnist").train
    changed.labels[:1_000] = 0  # before anybody has asked for the fingerprint
    assert changed.fingerprint != unchanged


# --- subset and exclude_class


def imbalanced() -> DataModule:
    """50 images: 2 of class 0, 8 of class 1, 40 of class 2."""
    labels = torch.tensor([0] * 2 + [1] * 8 + [2] * 40)
    images = torch.zeros(50, 1, 2, 2, dtype=torch.uint8)
    split = InMemoryDataset(images, labels, 7 * torch.arange(50), (0.5,), (0.5,))
    none = [split.select(torch.arange(0)) for _ in range(2)]
    return DataModule("imbalanced", ("a", "b", "c"), split, *none, NO_AUGMENTATION, 2)


def test_a_subset_is_balanced_and_nested(fashion: DataModule):
    larger = fashion.subset(1_003)
    counts = torch.bincount(larger.train.labels)
    assert counts.sum() == 1_003
    assert set(counts.tolist()) == {100, 101}
    smaller = fashion.subset(250)
    assert torch.bincount(smaller.train.labels).tolist() == [25] * 10
    assert set(smaller.train.indices.tolist()) < set(larger.train.indices.tolist())
    assert larger.subset(250).train.indices.tolist() == smaller.train.indices.tolist()
    assert smaller.train.indices.tolist() == sorted(smaller.train.indices.tolist())


def test_a_subset_is_deterministic_and_keeps_the_rest(fashion: DataModule):
    small = fashion.subset(1_000)
    assert fingerprint([small.train.indices]) == "cb642120ee8b11c96516fa01e518b35cae704e0ce61f4ff19bca1c60756d39af"
    assert small.train.indices.tolist() != fashion.subset(1_000, seed=1).train.indices.tolist()
    assert small.validation is fashion.validation
    assert small.test is fashion.test
    positions = torch.searchsorted(fashion.train.indices, small.train.indices)
    assert torch.equal(small.train.images, fashion.train.images[positions])
    assert torch.equal(small.train.labels, fashion.train.labels[positions])


def test_a_subset_is_balanced_as_far_as_the_rare_classes_go():
    counts = {
        n: torch.bincount(imbalanced().subset(n).train.labels, minlength=3).tolist() for n in (1, 3, 6, 12, 30, 50)
    }
    assert sum(counts[1]) == 1
    del counts[1]
    assert counts == {3: [1, 1, 1], 6: [2, 2, 2], 12: [2, 5, 5], 30: [2, 8, 20], 50: [2, 8, 40]}


@pytest.mark.parametrize("seed", range(5))
def test_a_subset_takes_turns_between_the_classes_in_the_order_of_the_seed(seed: int) -> None:
    labels = torch.randint(0, 40, (1_000,), generator=torch.Generator().manual_seed(seed)).square() // 40
    split = InMemoryDataset(torch.zeros(1_000, 1, 1, 1, dtype=torch.uint8), labels, torch.arange(1_000), (0.5,), (0.5,))
    none = split.select(torch.arange(0))
    source = DataModule("skewed", tuple(map(str, range(40))), split, none, replace(none), NO_AUGMENTATION, 1)
    earlier = [0] * 40
    turns = []
    for position in permutation(split.indices, "take", seed).tolist():
        label = int(labels[position])
        turns.append((earlier[label], len(turns), position))
        earlier[label] += 1
    expected = [position for _, _, position in sorted(turns)]
    for count in (1, 37, 500, 999, 1_000):
        assert source.subset(count, seed).train.indices.tolist() == sorted(expected[:count])


def test_a_subset_of_all_and_of_too_many(fashion: DataModule):
    assert fashion.subset(None) is fashion
    assert fashion.subset(55_000).train.fingerprint == fashion.train.fingerprint
    for count in (0, -1, 55_001):
        with pytest.raises(ValueError, match=f"has 55,000 training images; there is no subset of {count:,}"):
            fashion.subset(count)


def test_a_class_is_excluded(fashion: DataModule):
    lacking = fashion.exclude_class(3)
    for part in ("train", "validation"):
        before, after = getattr(fashion, part), getattr(lacking, part)
        assert len(after) == len(before) - int((before.labels == 3).sum())
        assert 3 not in after.labels.tolist()
        assert torch.equal(after.indices, before.indices[before.labels != 3])
    assert lacking.test is fashion.test  # the missing class is what the test is about
    assert lacking.num_classes == 10
    for label in (-1, 10):
        with pytest.raises(ValueError, match=f"classes 0 to 9; there is no class {label}"):
            fashion.exclude_class(label)


# --- broken files


@pytest.fixture
def copied(tmp_path: Path, monkeypatch) -> Path:
    """A data folder of links to the shipped files, to be broken one at a time."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in sources.FASHION_FILES:
        (folder / name).symlink_to(SHIPPED / name)
    monkeypatch.setenv("KDLIB_DATA", str(folder))
    return folder


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()  # the link, not the shipped file
    path.write_bytes(content)


def test_the_folder_is_set_by_the_environment(copied: Path, monkeypatch, tmp_path: Path):
    assert data.data_dir() == copied
    monkeypatch.delenv("KDLIB_DATA")
    assert data.data_dir() == SHIPPED
    monkeypatch.setenv("KDLIB_DATA", "")
    assert data.data_dir() == SHIPPED
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "site" / "kdlib" / "data" / "sources.py"))
    monkeypatch.chdir(tmp_path)
    assert data.data_dir() == tmp_path / "data"  # an installed package has no data beside it
    (tmp_path / "site" / "data").mkdir(parents=True)  # of another package
    assert data.data_dir() == tmp_path / "data"


def test_a_missing_file(copied: Path):
    name = "train-images-idx3-ubyte.gz"
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match="is missing") as caught:
        data.load("fashion-mnist")
    for part in (str(copied / name), f"git checkout -- data/{name}", "KDLIB_DATA"):
        assert part in str(caught.value)


def test_a_truncated_file_and_an_altered_one(copied: Path):
    name = "t10k-labels-idx1-ubyte.gz"
    content = (SHIPPED / name).read_bytes()
    flipped = bytearray(content)
    flipped[2_000] ^= 1
    for bad in (content[:-1], bytes(flipped), b""):
        rewrite(copied / name, bad)
        with pytest.raises(ValueError, match="is truncated or altered") as caught:
            sources.read_verified(name)
        for part in (str(copied / name), f"{len(bad):,} bytes", f"git checkout -- data/{name}"):
            assert part in str(caught.value)
    rewrite(copied / name, content)
    assert len(sources.read_verified(name)) == 10_008


def test_load_verifies_before_it_unpacks(copied: Path):
    name = "train-images-idx3-ubyte.gz"
    rewrite(copied / name, (SHIPPED / name).read_bytes()[:1_000])
    with pytest.raises(ValueError, match="is truncated or altered: 1,000 bytes"):
        data.load("fashion-mnist")


def test_the_shipped_sums_are_those_of_the_shipped_files():
    for name, wanted in sources.FASHION_FILES.items():
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == wanted


def test_parse_idx_by_hand():
    found = sources.parse_idx(b"\x00\x00\x08\x02\x00\x00\x00\x02\x00\x00\x00\x03" + bytes([1, 2, 3, 4, 5, 255]))
    assert found.tolist() == [[1, 2, 3], [4, 5, 255]]
    assert found.dtype == torch.uint8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x08",
        b"\x00\x00\x08\x00",
        b"\x00\x00\x08\x01",
        b"\x00\x00\x08\x01\x00\x00\x00\x00",  # no elements at all
        b"\x00\x00\x08\x01\x00\x00\x00\x02\x01",  # one byte too few
        b"\x00\x00\x08\x01\x00\x00\x00\x02\x01\x02\x03",  # one too many
        b"\x00\x00\x0d\x01\x00\x00\x00\x01\x01",  # floats
        b"\x01\x00\x08\x01\x00\x00\x00\x01\x01",
        b"\x00\x00\x08\x02" + b"\x80\x00\x00\x00" + b"\x00\x00\x00\x02" + b"",  # a size of 2^32 that is not there
        b"\x00\x00\x08\x04" + b"\x00\x01\x00\x00" * 4,  # a product of 2^64, which is 0 in 64 bits
        b"PK\x03\x04 a zip file",
    ],
)
def test_parse_idx_on_bad_input(content: bytes):
    with pytest.raises(ValueError, match="not an idx file of unsigned bytes"):
        sources.parse_idx(content)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fashion-minst", "fashion-mnist"),
        ("cifar-10", "cifar10"),
        ("imagefolder", "imagefolder:PATH"),
        ("imagefolder:", "imagefolder:PATH"),
        ("imagenet", "imagenet:PATH"),
    ],
)
def test_an_unknown_name_lists_near_matches(name: str, near: str):
    with pytest.raises(ValueError, match=f"no dataset named '{name}'. Did you mean .*'{near}'.* Known: "):
        data.load(name)


def test_an_unknown_name_without_a_near_match():
    with pytest.raises(ValueError, match="no dataset named 'xyz'. Known: fashion-mnist, cifar10") as caught:
        data.load("xyz")
    assert "Did you mean" not in str(caught.value)


# --- batches from memory


@pytest.mark.parametrize("kind", ["colour", "folder"])
def test_mean_and_std_are_copied_to_the_device_once(kind: str, request: pytest.FixtureRequest, monkeypatch):
    """A copy of a few numbers waits for all that a GPU has still to do."""
    given = request.getfixturevalue(kind)
    split = getattr(given, "train", given)
    first, tensor = [batch.images for batch in split.iter_batches(8)], torch.tensor

    def without_device(values, **options):
        assert "device" not in options, "numbers were copied again"
        return tensor(values, **options)

    monkeypatch.setattr(torch, "tensor", without_device)
    assert all(map(torch.equal, first, (batch.images for batch in split.iter_batches(8))))


def test_mean_and_std_may_be_lists_or_arrays(colour: InMemoryDataset):
    wanted = torch.cat([batch.images for batch in colour.iter_batches(8)])
    for form in (list, np.array):
        split = replace(colour, mean=form(colour.mean), std=form(colour.std))
        torch.testing.assert_close(torch.cat([batch.images for batch in split.iter_batches(8)]), wanted)


@pytest.fixture(scope="module")
def colour() -> InMemoryDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 6, 8), generator=generator, dtype=torch.uint8)
    return InMemoryDataset(images, torch.arange(30) % 4, torch.arange(100, 130), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_batches_are_normalized_floats_in_channels_last(colour: InMemoryDataset):
    batches = list(colour.iter_batches(8, seed=3, view=2))
    assert [len(b) for b in batches] == [8, 8, 8, 6]
    images = torch.cat([b.images for b in batches])
    shift, scale = torch.tensor(colour.mean).view(3, 1, 1), torch.tensor(colour.std).view(3, 1, 1)
    wanted = (colour.images.double() / 255 - shift) / scale
    assert (images - wanted).abs().max() < 1e-5
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.view == 2
    assert torch.cat([b.labels for b in batches]).tolist() == colour.labels.tolist()
    assert torch.cat([b.indices for b in batches]).tolist() == colour.indices.tolist()


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 1000])
def test_making_several_batches_at_once_changes_none(colour: InMemoryDataset, monkeypatch, chunk_size: int):
    options = {
        "augmentation": Augmentation(padding=1, flip=True),
        "seed": 1,
        "view": 2,
        "sampler": torch.arange(29, -1, -1),
    }
    wanted = [next(colour.iter_batches(8, **{**options, "sampler": part})) for part in options["sampler"].split(8)]
    monkeypatch.setattr(datasets, "CHUNK_SIZE", chunk_size)
    for batch, expected in zip(colour.iter_batches(8, **options), wanted, strict=True):
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.labels, expected.labels)
        assert torch.equal(batch.indices, expected.indices)


@pytest.mark.parametrize("augmentation", [NO_AUGMENTATION, Augmentation(padding=1, flip=True)])
def test_what_travels_to_a_gpu_is_pinned(colour: InMemoryDataset, augmentation: Augmentation, monkeypatch):
    pinned: list[torch.Tensor] = []
    sent: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
        sent.append(tensor)
        return tensor

    monkeypatch.setattr(datasets, "pin_memory", pin)
    monkeypatch.setattr(datasets, "to_device", send)
    next(colour.iter_batches(8, augmentation=augmentation))
    assert len(sent) == 2
    assert {one.untyped_storage().data_ptr() for one in sent} == {one.untyped_storage().data_ptr() for one in pinned}


def test_fashion_training_batches_have_mean_zero_and_std_one(fashion: DataModule):
    images = data.normalized_images(fashion.subset(5_000).train)
    assert images.shape == (5_000, 1, 28, 28)
    assert abs(images.mean().item()) < 0.02
    assert abs(images.std().item() - 1) < 0.02


def test_a_sampler_gives_positions_in_their_order(colour: InMemoryDataset):
    (batch,) = colour.iter_batches(10, sampler=torch.tensor([5, 0, 29]))
    assert batch.indices.tolist() == [105, 100, 129]
    assert batch.labels.tolist() == [1, 0, 1]
    assert torch.equal(bytes_of(batch.images, colour.mean, colour.std), colour.images[[5, 0, 29]])


def test_an_empty_dataset_has_no_batches(colour: InMemoryDataset):
    assert list(colour.select(torch.arange(0)).iter_batches(4)) == []
    assert list(colour.iter_batches(4, sampler=torch.arange(0))) == []


def test_batches_neither_change_the_images_nor_draw_from_the_global_generator(colour: InMemoryDataset):
    before, state = fingerprint([colour.images]), torch.get_rng_state()
    for batch in colour.iter_batches(7, augmentation=Augmentation(padding=2, flip=True), seed=1, view=1):
        batch.images.zero_()
        batch.labels.zero_()
    list(colour.iter_batches(30))
    data.epoch_order(colour, 0, 0)
    assert fingerprint([colour.images]) == before
    assert colour.labels.tolist() == [i % 4 for i in range(30)]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_fingerprint_of_a_view_covers_everything_else_that_the_images_depend_on(colour: InMemoryDataset):
    padded, flipped = Augmentation(padding=2), Augmentation(flip=True)
    fingerprints = {
        data.view_fingerprint(colour, NO_AUGMENTATION, 0),
        data.view_fingerprint(colour, padded, 0),
        data.view_fingerprint(colour, padded, 1),
        data.view_fingerprint(colour, flipped, 0),
        data.view_fingerprint(colour.select(torch.arange(29)), NO_AUGMENTATION, 0),
        data.view_fingerprint(replace(colour, mean=(0.5, 0.4, 0.2)), NO_AUGMENTATION, 0),
    }
    assert len(fingerprints) == 6
    assert data.view_fingerprint(colour, NO_AUGMENTATION, 1) == data.view_fingerprint(
        colour, NO_AUGMENTATION, 0
    )  # nothing is drawn
    assert data.view_fingerprint(colour, padded, np.int64(1)) == data.view_fingerprint(colour, padded, 1)
    (batch,) = colour.iter_batches(30, augmentation=padded, seed=1, view=5)
    assert batch.fingerprint == data.view_fingerprint(colour, padded, 1)
    (batch,) = colour.iter_batches(30, sampler=torch.arange(3), augmentation=padded, seed=1, view=0)
    assert batch.fingerprint == data.view_fingerprint(colour, padded, 1)


def test_fingerprints_see_images_labels_indices_and_scale(colour: InMemoryDataset):
    images = colour.images.clone()
    images[3, 0, 0, 0] += 1
    labels = colour.labels.clone()
    labels[0] = 3
    variants = [
        colour,
        replace(colour, images=images),
        replace(colour, labels=labels),
        replace(colour, indices=colour.indices + 1),
        replace(colour, std=(0.2, 0.3, 0.5)),
        colour.select(torch.arange(29)),
    ]
    assert len({dataset.fingerprint for dataset in variants}) == len(variants)
    assert colour.select(torch.arange(30)).fingerprint == colour.fingerprint


def test_epoch_order_depends_on_seed_epoch_and_indices_alone(colour: InMemoryDataset):
    order = data.epoch_order(colour, 0, 0)
    assert order.sort().values.tolist() == list(range(30))
    assert not torch.equal(order, data.epoch_order(colour, 0, 1))
    assert not torch.equal(order, data.epoch_order(colour, 1, 0))
    even = colour.select(torch.arange(0, 30, 2))
    wanted = [i for i in colour.indices[order].tolist() if i % 2 == 0]
    assert even.indices[data.epoch_order(even, 0, 0)].tolist() == wanted


# --- CIFAR in its true format, a few images


def write_cifar(root: Path, monkeypatch, name: str) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Pickled batches as the University of Toronto ships them; torchvision's checksums are set to theirs."""
    kind = {"cifar10": torchvision_sets.CIFAR10, "cifar100": torchvision_sets.CIFAR100}[name]
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)

    def dump(file: str, content: dict) -> str:
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    truth, sums = {}, {}
    for file, _ in kind.train_list + kind.test_list:
        count = 20 if file == "train" else 4  # 20 training images in all: CIFAR-10 has five files, CIFAR-100 one
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = random.integers(0, 10, count).tolist()
        entry = {
            "data": pixels,
            "labels" if name == "cifar10" else "fine_labels": labels,
            "coarse_labels": [11] * count,
        }
        sums[file], truth[file] = dump(file, entry), (pixels, labels)
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [[file, sums[file]] for file, _ in getattr(kind, part)])
    classes = {kind.meta["key"]: [f"class {i}" for i in range(10)]}
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": dump(kind.meta["filename"], classes)})
    return truth


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_in_its_true_format(tmp_path: Path, monkeypatch, name: str):
    truth = write_cifar(tmp_path, monkeypatch, name)
    found = data.load(name, root=tmp_path, download=False)
    files = [file for file in truth if not file.startswith("test")]
    pixels = np.concatenate([truth[file][0] for file in files])
    labels = [label for file in files for label in truth[file][1]]
    assert [len(found.train), len(found.validation), len(found.test)] == [18, 2, 4]
    assert sorted(found.train.indices.tolist() + found.validation.indices.tolist()) == list(range(20))
    for split in (found.train, found.validation):
        for position, index in enumerate(split.indices.tolist()):
            # A row holds 1,024 red, then green, then blue values, row by row.
            assert split.images[position].tolist() == pixels[index].reshape(3, 32, 32).tolist()
            assert split.labels[position] == labels[index]
    pixels, labels = truth["test_batch" if name == "cifar10" else "test"]
    assert found.test.images.numpy().reshape(4, 3072).tolist() == pixels.tolist()
    assert found.test.labels.tolist() == labels
    assert (found.name, found.image_size, found.in_channels) == (name, 32, 3)
    assert found.classes[:2] == ("class 0", "class 1")
    assert found.augmentation == Augmentation(padding=4, flip=True)
    assert found.train.images.is_contiguous()


def test_cifar_altered(tmp_path: Path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, "cifar10")
    with (tmp_path / "cifar-10-batches-py" / "data_batch_3").open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(FileNotFoundError, match="Could not get cifar10 into .*not found or corrupted"):
        data.load("cifar10", root=tmp_path, download=False)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_absent_without_a_network(tmp_path: Path, monkeypatch, name: str):
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision_sets.cifar, "download_and_extract_archive", offline)
    for download, reason in ((False, "not found"), (True, "no route to host")):
        with pytest.raises(FileNotFoundError, match=f"Could not get {name} into .*{reason}") as caught:
            data.load(name, root=tmp_path, download=download)
        for part in (str(tmp_path), "https://www.cs.toronto.edu/~kriz/cifar", "-python.tar.gz on another machine"):
            assert part in str(caught.value)


# --- folders of images


def noise(size: tuple[int, int], seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_folder(root: Path, part: str, count: int, classes: tuple[str, ...] = ("cat", "dog"), first: int = 0) -> None:
    for number in range(count):
        parent = root / part / classes[number % len(classes)]
        parent.mkdir(parents=True, exist_ok=True)
        size = [(24, 24), (40, 22), (20, 37)][number % 3]
        noise(size, first + number).save(parent / f"{number:03}.{'png' if number % 2 else 'jpg'}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    write_folder(root, "train", 20)
    write_folder(root, "val", 6, first=100)
    return root


@pytest.fixture(scope="module")
def folder(tree: Path) -> DataModule:
    return data.load(f"imagefolder:{tree}", image_size=16, num_workers=0)


def test_without_a_test_folder_val_is_the_test_set(folder: DataModule, tree: Path):
    assert [len(s) for s in (folder.train, folder.validation, folder.test)] == [18, 2, 6]
    both = folder.train.indices.tolist() + folder.validation.indices.tolist()
    assert sorted(both) == list(range(20))
    assert folder.test.source.root == tree / "val"
    assert folder.validation.source.root == tree / "train"
    assert folder.classes == ("cat", "dog")
    assert (folder.num_classes, folder.in_channels, folder.image_size) == (2, 3, 16)
    assert folder.train.mean == IMAGENET_MEAN
    assert folder.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert folder.augmentation == Augmentation(flip=True, scale=(0.35, 1.0))


def have_cores(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    """A machine of 64 cores, of which this process may use so many."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)


@pytest.mark.parametrize(
    ("method", "small", "workers"), [("fork", 21, 5), ("forkserver", 21, 0), ("spawn", 21, 0), ("spawn", 20, 5)]
)
def test_workers_decode_where_they_start_quickly_or_have_much_to_do(
    monkeypatch: pytest.MonkeyPatch, tree: Path, method: str, small: int, workers: int
) -> None:
    have_cores(monkeypatch, 6)
    monkeypatch.setattr(sources, "SMALL_FOLDER", small)  # the tree has 20 images to train on
    for chosen, offered in ((method, ["fork"]), (None, [method, "spawn"])):  # set by the program, or the platform's own
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none, chosen=chosen: chosen)
        monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda offered=offered: offered)
        assert data.load(f"imagefolder:{tree}", image_size=16).train.num_workers == workers


def test_with_a_test_folder_val_is_validation(tmp_path: Path):
    for first, (part, count) in enumerate((("train", 6), ("val", 4), ("test", 2))):
        write_folder(tmp_path, part, count, first=first)
    found = data.load(f"imagenet:{tmp_path}", image_size=16, num_workers=0)
    assert [len(s) for s in (found.train, found.validation, found.test)] == [6, 4, 2]
    roots = [s.source.root for s in (found.train, found.validation, found.test)]
    assert roots == [tmp_path / "train", tmp_path / "val", tmp_path / "test"]


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(4, None, 3), (16, None, 8), (16, 4, 3), (8, 8, 0), (2, 8, 0), (1, None, 0)]
)
def test_workers_are_as_many_as_the_cores_that_a_process_may_use(
    monkeypatch: pytest.MonkeyPatch, tree: Path, cores: int, processes: int | None, workers: int
) -> None:
    have_cores(monkeypatch, cores)
    monkeypatch.setattr(sources, "SMALL_FOLDER", 0)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:  # as torchrun says it
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert data.load(f"imagefolder:{tree}", image_size=16).train.num_workers == workers


def test_a_system_that_pins_no_process_to_its_cores_is_asked_how_many_it_has(
    monkeypatch: pytest.MonkeyPatch, tree: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(sources, "SMALL_FOLDER", 0)
    assert data.load(f"imagefolder:{tree}", image_size=16).train.num_workers == 2


def test_with_a_test_folder_and_no_val_validation_is_held_out(tmp_path: Path):
    write_folder(tmp_path, "train", 10)
    write_folder(tmp_path, "test", 2)
    found = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    assert [len(s) for s in (found.train, found.validation, found.test)] == [9, 1, 2]
    assert found.validation.source.root == tmp_path / "train"


def test_a_home_folder_is_found(tree: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tree.parent))
    monkeypatch.setenv("USERPROFILE", str(tree.parent))
    assert len(data.load(f"imagefolder:~/{tree.name}", image_size=16, num_workers=0).test) == 6


@pytest.mark.parametrize(("have", "missing"), [(("train",), "val"), (("val",), "train"), ((), "train")])
def test_a_missing_folder_is_named_with_the_layout(tmp_path: Path, have: tuple[str, ...], missing: str):
    for part in have:
        write_folder(tmp_path, part, 4)
    with pytest.raises(FileNotFoundError, match="does not hold images in class folders") as caught:
        data.load(f"imagefolder:{tmp_path}")
    assert str(tmp_path / missing) in str(caught.value)
    assert f"Expected {tmp_path}/train/CLASS/IMAGE" in str(caught.value)


def test_a_test_folder_without_labels_as_imagenet_has_one(tmp_path: Path):
    for part in ("train", "val"):
        write_folder(tmp_path, part, 4)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="without labels.*away, and .*/val is the test set"):
        data.load(f"imagefolder:{tmp_path}")
    (tmp_path / "test" / "dog").mkdir()  # one with labels, of which a class has no image
    with pytest.raises(FileNotFoundError, match="Expected .*/train/CLASS/IMAGE"):
        data.load(f"imagefolder:{tmp_path}")


def test_a_file_in_the_place_of_a_folder(tmp_path: Path):
    (tmp_path / "train").write_text("not a folder")
    with pytest.raises(FileNotFoundError, match="does not hold images in class folders"):
        data.load(f"imagefolder:{tmp_path}")


def test_a_class_folder_without_images(tmp_path: Path):
    write_folder(tmp_path, "train", 4)
    (tmp_path / "train" / "horse").mkdir()
    (tmp_path / "train" / "horse" / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="does not hold images in class folders.*horse"):
        data.load(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("part", ["val", "test"])
def test_differing_class_folders_are_named(tmp_path: Path, part: str):
    for other in {"train", "val", part}:
        write_folder(tmp_path, other, 4, ("cat", "wolf") if other == part else ("cat", "dog"))
    with pytest.raises(ValueError, match=r"class folders of .* differ: \['dog', 'wolf'\]") as caught:
        data.load(f"imagefolder:{tmp_path}")
    assert str(tmp_path / part) in str(caught.value)


def test_one_training_image_cannot_be_split(tmp_path: Path):
    write_folder(tmp_path, "train", 1, ("cat",))
    write_folder(tmp_path, "val", 1, ("cat",))
    with pytest.raises(ValueError, match="1 image.* hold out"):
        data.load(f"imagefolder:{tmp_path}")


def test_grey_and_palette_and_transparent_images_become_three_channels(tmp_path: Path):
    only = tmp_path / "train" / "only"
    only.mkdir(parents=True)
    flat = {
        "0": Image.new("L", (30, 20), 100),
        "1": Image.new("RGB", (20, 30), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE),
        "2": Image.new("RGBA", (20, 20), (1, 2, 3, 200)),
        "3": Image.new("1", (20, 20), 1),
        "4": Image.new("RGB", (20, 20), (200, 100, 50)),
    }
    for name, image in flat.items():
        image.save(only / f"{name}.png")
    write_folder(tmp_path, "val", 1, ("only",))
    found = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    colours = [[100] * 3, [10, 20, 30], [56, 57, 57], [255] * 3, [200, 100, 50]]  # the transparent one on white
    seen = set()
    for split in (found.train, found.validation):
        (batch,) = split.iter_batches(8)
        assert batch.images.shape[1:] == (3, 16, 16)
        for index, image in zip(batch.indices.tolist(), bytes_of(batch.images, split.mean, split.std), strict=True):
            assert image.flatten(1).unique(dim=1).T.tolist() == [colours[index]]
            seen.add(index)
    assert seen == {0, 1, 2, 3, 4}


def test_evaluation_sees_the_centre_undistorted(tmp_path: Path):
    thirds = Image.new("RGB", (60, 20), (255, 0, 0))
    thirds.paste((0, 255, 0), (20, 0, 40, 20))
    thirds.paste((0, 0, 255), (40, 0, 60, 20))
    for part, image in (("train", thirds), ("val", thirds), ("test", thirds.rotate(90, expand=True))):
        (tmp_path / part / "only").mkdir(parents=True)
        image.save(tmp_path / part / "only" / "a.png")
    found = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    for split in (found.train, found.test):  # 60 x 20 -> 54 x 18 -> the middle 16, inside the green third
        (batch,) = split.iter_batches(1)
        pixels = bytes_of(batch.images, split.mean, split.std)[0]
        assert pixels[:, 2:-2, 2:-2].flatten(1).unique(dim=1).T.tolist() == [[0, 255, 0]]


def test_evaluation_cuts_the_centre_out_of_eight_sevenths_of_the_size(tmp_path: Path):
    ramp = np.repeat(np.arange(36, dtype=np.uint8)[None] * 7, 36, axis=0)
    for part in ("train", "val", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.fromarray(ramp).convert("RGB").save(tmp_path / part / "only" / "a.png")
    found = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    (batch,) = found.test.iter_batches(1)
    row = bytes_of(batch.images, found.test.mean, found.test.std)[0, 0, 8].tolist()
    # 36 pixels to 18, two to one, and the middle 16 of these; where 16 came from 36, a step would be 2.25 pixels.
    assert row == pytest.approx([7 * (2 * place + 0.5) for place in range(1, 17)], abs=1.5)


def test_lazy_batches_are_normalized_floats_in_channels_last(folder: DataModule):
    batches = list(folder.test.iter_batches(4, view=3))
    assert [len(b) for b in batches] == [4, 2]
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.view == 3
    images = torch.cat([b.images for b in batches])
    pixels = (images * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3  # whole numbers of 0..255 again
    assert pixels.round().min() >= 0
    assert pixels.round().max() <= 255
    assert 100 < pixels.mean() < 155
    assert torch.cat([b.labels for b in batches]).tolist() == [0, 0, 0, 1, 1, 1]


AUGMENTATIONS = [Augmentation(flip=True, scale=(0.35, 1.0)), Augmentation(padding=2, flip=True)]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_lazy_view_does_not_depend_on_workers_order_or_subset(folder: DataModule, augmentation: Augmentation):
    train, options = folder.train, {"augmentation": augmentation, "seed": 3, "view": 1}
    wanted = by_index(train.iter_batches(18, **options))
    assert len(wanted) == 18
    order = torch.randperm(18)
    assert by_index(train.iter_batches(5, sampler=order, **options)) == wanted
    assert by_index(replace(train, num_workers=2).iter_batches(4, sampler=order, **options)) == wanted
    some = torch.tensor([17, 2, 9])
    chosen = train.select(some)
    assert chosen.indices.tolist() == train.indices[some].tolist()
    assert chosen.labels.tolist() == train.labels[some].tolist()
    assert by_index(chosen.iter_batches(2, **options)) == {i: wanted[i] for i in chosen.indices.tolist()}
    for change in ({"view": 2}, {"seed": 4}):
        other = by_index(train.iter_batches(18, **{**options, **change}))
        assert sum(other[i] == wanted[i] for i in wanted) <= 3


def test_lazy_evaluation_is_not_augmented(folder: DataModule):
    wanted = by_index(folder.test.iter_batches(3))
    assert by_index(folder.test.iter_batches(6, seed=5, view=7)) == wanted
    augmented = by_index(folder.test.iter_batches(6, augmentation=folder.augmentation))
    assert all(augmented[i] != wanted[i] for i in wanted)


def test_lazy_flips_mirror_about_half(folder: DataModule):
    plain = by_index(folder.train.iter_batches(18))
    mirrored = 0
    for view in range(4):
        for i, image in by_index(
            folder.train.iter_batches(18, augmentation=Augmentation(flip=True), view=view)
        ).items():
            mirror = [[row[::-1] for row in channel] for channel in plain[i]]
            assert image in (plain[i], mirror)
            mirrored += image == mirror
    assert 20 <= mirrored <= 52  # of 72


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lazy_batches_do_not_touch_the_global_generators(folder: DataModule, monkeypatch, num_workers: int):
    # Seeding torch as a whole would set a GPU's generator back with every image, and with it the student's dropout.
    if num_workers == 0:  # workers are processes, whose generators nobody else uses
        monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPU was seeded"))
    split, state = replace(folder.train, num_workers=num_workers).select(torch.arange(4)), torch.get_rng_state()
    assert len(list(split.iter_batches(2, augmentation=folder.augmentation, seed=1, view=1))) == 2
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("batch_size", "started"), [(128, 0), (18, 1), (9, 2), (4, 4), (1, 8)])
def test_no_more_workers_start_than_there_are_full_batches(
    folder: DataModule, monkeypatch, batch_size: int, started: int
):
    found, loader = [], datasets.DataLoader

    def recorded(*args: Any, num_workers: int, **options: Any) -> Any:
        found.append(num_workers)
        return loader(*args, **options)

    monkeypatch.setattr(datasets, "DataLoader", recorded)
    split = replace(folder.train, num_workers=8)
    assert sum(len(batch.labels) for batch in split.iter_batches(batch_size)) == 18
    assert found == [started]


def test_a_lazy_dataset_can_be_sent_to_workers_that_do_not_fork(folder: DataModule):
    # macOS and Windows start workers afresh and send them the dataset as a pickle.
    options = {"augmentation": folder.augmentation, "seed": 1, "view": 1}
    copy = pickle.loads(pickle.dumps(folder.train))
    assert by_index(copy.iter_batches(18, **options)) == by_index(folder.train.iter_batches(18, **options))


def test_lazy_fingerprints_see_files_labels_size_and_choice(folder: DataModule, tree: Path, tmp_path: Path):
    train = folder.train
    again = data.load(f"imagefolder:{tree}", image_size=16, num_workers=2).train
    assert again.fingerprint == train.fingerprint
    assert data.load(f"imagefolder:{tree}", image_size=24, num_workers=0).train.fingerprint != train.fingerprint
    assert train.select(torch.arange(17)).fingerprint != train.fingerprint
    assert replace(train, labels=1 - train.labels).fingerprint != train.fingerprint
    write_folder(tmp_path, "train", 20)
    write_folder(tmp_path, "val", 6, first=100)
    moved = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0).train
    assert moved.fingerprint == train.fingerprint  # the same images elsewhere
    noise((30, 30), 7).save(tmp_path / "train" / "cat" / "002.jpg")
    assert data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0).train.fingerprint != train.fingerprint


def test_views_of_another_size_have_another_fingerprint(tree: Path):
    fingerprints = {
        next(data.load(f"imagefolder:{tree}", image_size=size, num_workers=0).test.iter_batches(1)).fingerprint
        for size in (16, 24)
    }
    assert len(fingerprints) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("content", "num_workers"), [(b"", 0), (b"this is no image", 0), ("half", 0), ("half", 1)])
def test_a_broken_image_is_named(tmp_path: Path, monkeypatch, content: bytes | str, num_workers: int):
    # How long torch waits for a worker that has failed: 5 seconds otherwise.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    write_folder(tmp_path, "train", 4)
    write_folder(tmp_path, "val", 2)
    bad = tmp_path / "val" / "cat" / "000.jpg"
    bad.write_bytes(bad.read_bytes()[:600] if content == "half" else content)
    found = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=num_workers)
    with pytest.raises(OSError, match="cannot be read as an image") as caught:
        list(found.test.iter_batches(2))
    assert str(bad) in str(caught.value)
    assert "Copy it again or remove it" in str(caught.value)
    del caught  # whose traceback holds the worker
    if num_workers:
        gc.collect()


def test_subset_and_exclude_class_of_lazy_datasets(folder: DataModule):
    small = folder.subset(7)
    assert sorted(torch.bincount(small.train.labels).tolist()) == [3, 4]
    assert isinstance(small.train, LazyDataset)
    whole, part = by_index(folder.train.iter_batches(18)), by_index(small.train.iter_batches(18))
    assert part == {i: whole[i] for i in small.train.indices.tolist()}
    assert set(folder.exclude_class(1).train.labels.tolist()) == {0}


def test_an_empty_lazy_dataset_has_no_batches(folder: DataModule):
    with contextlib.closing(folder.test.select(torch.arange(0)).iter_batches(4)) as batches:
        assert list(batches) == []


# --- custom data -------------------------------------------------------------------------------------------


def custom(**changes: Any) -> InMemoryDataset:
    """Six images of 2 x 4 x 5, with one thing wrong."""
    parts = {"images": torch.zeros(6, 2, 4, 5, dtype=torch.uint8), "labels": torch.arange(6) % 3}
    return InMemoryDataset(**{**parts, "indices": torch.arange(6), "mean": (0.5, 0.5), "std": (0.2, 0.2), **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": torch.rand(6, 2, 4, 5)}, TypeError, r"bytes .*got torch.float32.*\(255 \* images\)"),
        ({"images": np.zeros((6, 2, 4, 5), np.uint8)}, TypeError, "got ndarray.*torch.from_numpy"),
        ({"images": torch.zeros(6, 4, 5, 2, dtype=torch.uint8)}, ValueError, r"permute\(0, 3, 1, 2\)"),
        ({"images": torch.zeros(6, 4, 5, dtype=torch.uint8)}, ValueError, "expected N x C x H x W"),
        ({"std": (0.2,)}, ValueError, "mean 2 and std 1 numbers"),
        ({"labels": torch.arange(6, dtype=torch.int32)}, TypeError, r"labels .*int64; got torch.int32.*\.long\(\)"),
        ({"labels": np.arange(6)}, TypeError, "labels .* got ndarray"),
        ({"labels": torch.arange(5)}, ValueError, r"labels have shape \(5,\), but there are 6 images"),
        ({"indices": torch.zeros(6, 1, dtype=torch.int64)}, ValueError, "indices have shape"),
    ],
)
def test_images_and_labels_of_the_wrong_kind_are_refused_with_a_way_out(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    assert len(custom()) == 6
    with pytest.raises(error, match=message):
        custom(**changes)


@pytest.mark.parametrize("labels", [torch.arange(6) % 3 + 1, torch.arange(6) % 3 - 1])
def test_labels_without_a_class_are_refused(labels: torch.Tensor) -> None:
    good = custom()
    other = custom(indices=10 + torch.arange(6))
    whole = DataModule("mine", ("a", "b", "c"), good, other, custom(indices=20 + torch.arange(6)), NO_AUGMENTATION, 5)
    with pytest.raises(ValueError, match="train labels of mine run from .* but 3 classes .* 0 to 2"):
        replace(whole, train=custom(labels=labels))
    with pytest.raises(ValueError, match="validation labels of mine"):
        replace(whole, validation=custom(labels=labels))


def test_a_lazy_dataset_has_its_own_labels(folder: DataModule) -> None:
    turned = replace(folder.train, labels=1 - folder.train.labels)  # two classes, the other way round
    for split in (folder.train, turned):
        batch = next(split.iter_batches(4))
        assert torch.equal(batch.labels, split.labels[:4])
        assert batch.labels.dtype == torch.int64


def test_a_source_that_gives_no_pairs_is_refused(folder: DataModule) -> None:
    source = [{"image": None, "label": 0}] * len(folder.train.source)
    with pytest.raises(ValueError, match="is a dict; expected a pair .image, label."):
        next(replace(folder.train, source=source).iter_batches(2))


# --- nothing wrong in silence


@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4, 4], [0, 0, 0, 0, 0, 0]])
def test_two_samples_of_one_index_are_refused(indices: list[int]) -> None:
    shape = custom().images.shape
    different = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(shape)
    with pytest.raises(ValueError, match=rf"The index {indices[-1]} belongs to several samples"):
        custom(images=different, indices=torch.tensor(indices))


def test_a_sample_may_be_chosen_twice() -> None:
    assert custom().select(torch.tensor([2, 2, 5])).indices.tolist() == [2, 2, 5]


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(ValueError, match="indices are the samples' numbers, from 0 on; got -2"):
        custom(indices=torch.arange(6) - 2)


def module(**splits: InMemoryDataset) -> DataModule:
    parts = {name: custom(indices=10 * number + torch.arange(6)) for number, name in enumerate(PARTS)}
    return DataModule("mine", ("a", "b", "c"), **{**parts, **splits}, augmentation=NO_AUGMENTATION, image_size=5)


PARTS = ("train", "validation", "test")


def test_splits_that_share_images_are_refused() -> None:
    whole = module()
    with pytest.raises(ValueError, match=r"6 image\(s\) of mine are in train and in validation"):
        replace(whole, validation=whole.train)
    with pytest.raises(ValueError, match=r"2 image\(s\) of mine are in train and in validation"):
        module(validation=whole.train.select(torch.tensor([4, 2])))
    for name in ("train", "validation"):
        with pytest.raises(ValueError, match="mine tests on a split that is trained or chosen on"):
            replace(whole, test=getattr(whole, name))


@pytest.mark.parametrize("apart", [0, 9, 19])
def test_splits_are_compared_without_a_copy_of_their_images(monkeypatch: pytest.MonkeyPatch, apart: int) -> None:
    """Two sources that number 100 samples alike, of 20 values each, of which one differs."""
    images = torch.zeros(100, 1, 5, 4, dtype=torch.uint8)
    other = images.clone()
    other.flatten(1)[:, apart] = 1
    parts = {"labels": torch.arange(100) % 3, "indices": torch.arange(100), "mean": (0.5,), "std": (0.2,)}
    splits = {name: InMemoryDataset(some, **parts) for name, some in (("train", images), ("validation", other))}
    monkeypatch.setattr(datasets, "CHUNK_PIXELS", 50)
    with MemoryBlocks(images, other, *(parts[name] for name in ("labels", "indices"))) as memory:
        module(**splits)
    assert max(memory.sizes.values()) < images.nbytes  # 8 bytes of each sample's number, 4 of its middle row
    other[30:90] = 0
    with pytest.raises(ValueError, match=r"60 image\(s\) of mine are in train and in validation"):
        module(**splits)


def test_splits_of_two_sources_may_number_their_samples_alike() -> None:
    other = custom(images=255 - custom().images)
    assert len(module(train=custom(), validation=other).validation) == 6


def test_datasets_of_ones_own_that_overlap_are_refused() -> None:
    images = [(Image.fromarray(np.full((8, 8), 10 * number, np.uint8)), number % 2) for number in range(20)]
    options: dict[str, Any] = {"classes": ("a", "b"), "image_size": 8, "in_channels": 1}
    for name in ("validation", "test"):
        with pytest.raises(ValueError, match=f"images? ?.* of own are in train and in {name}|in train and in {name}"):
            data.from_datasets(images, **{name: images}, **options)
    found = data.from_datasets(images[:10], validation=images[10:14], test=images[14:], **options)
    assert [len(split) for split in (found.train, found.validation, found.test)] == [10, 4, 6]


def test_means_in_arrays_and_tensors_are_numbers() -> None:
    images = [(torch.full((1, 4, 4), 2 * i, dtype=torch.uint8), i % 2) for i in range(100)]
    options: dict[str, Any] = {"classes": ("a", "b"), "image_size": 4, "in_channels": 1}
    made = [
        data.from_datasets(images, mean=kind([0.28604]), std=kind([0.5]), **options).train
        for kind in (tuple, np.array, partial(torch.tensor, dtype=torch.float64))
    ]
    assert {type(value) for one in made for value in (*one.mean, *one.std)} == {float}
    assert len({one.fingerprint for one in made}) == 1
    other = data.from_datasets(images, mean=torch.tensor([0.28601]), std=torch.tensor([0.5]), **options).train
    assert other.fingerprint != made[0].fingerprint


def test_statistics_of_ones_own_images_are_those_of_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (60, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scaled = pixels.double() / 255
    mean, std = own._statistics(pixels)
    assert mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist())
    assert std == pytest.approx(scaled.std(dim=(0, 2, 3)).tolist())
    monkeypatch.setattr(own, "_statistics", lambda images: pytest.fail("they were given"))
    given = [(one, number % 2) for number, one in enumerate(pixels)]
    data.from_datasets(given, classes=("a", "b"), image_size=5, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_datasets_of_ones_own_are_scaled_by_their_training_images_alone() -> None:
    held_out = set(sources.hold_out(100, 10)[1].tolist())  # for the test; they are white, the others black
    images = [(torch.full((1, 4, 4), 255 * (i in held_out), dtype=torch.uint8), i % 2) for i in range(100)]
    options: dict[str, Any] = {"classes": ("a", "b"), "image_size": 4, "in_channels": 1}
    found = data.from_datasets(images, **options)
    assert found.test.images.min() == 255
    assert [split.mean for split in (found.train, found.validation, found.test)] == [(0.0,)] * 3
    assert found.train.std == found.test.std == (0.001,)
    given = data.from_datasets(images, mean=[0.25], std=[0.5], **options)
    assert (given.train.mean, given.test.std) == ((0.25,), (0.5,))


def picture_folder(path: Path, pixels: Any, classes: tuple[str, str] = ("cat", "dog")) -> DataModule:
    """Two images of each class and part, all of one size in bytes."""
    for part in ("train", "val"):
        for number, name in enumerate(classes):
            (path / part / name).mkdir(parents=True)
            for image in range(2):
                value = pixels(part, number, image)
                Image.new("RGB", (16, 16), (value, value, value)).save(path / part / name / f"{image}.bmp")
    return data.load(f"imagefolder:{path}", image_size=16, num_workers=0)


def test_two_folders_with_the_same_names_and_sizes_are_not_the_same_data(tmp_path: Path) -> None:
    first = picture_folder(tmp_path / "a", lambda part, number, image: 10 * number + image)
    same = picture_folder(tmp_path / "b", lambda part, number, image: 10 * number + image)
    other = picture_folder(tmp_path / "c", lambda part, number, image: 10 * number + image + 1)
    assert first.train.fingerprint == same.train.fingerprint  # wherever it lies
    assert first.train.fingerprint != other.train.fingerprint


def test_classes_with_swapped_names_are_not_the_same_data(tmp_path: Path) -> None:
    first = picture_folder(tmp_path / "a", lambda part, number, image: 10)
    swapped = picture_folder(tmp_path / "b", lambda part, number, image: 10, classes=("cow", "dog"))
    assert first.train.fingerprint != swapped.train.fingerprint


def test_a_large_folder_goes_by_names_sizes_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HASHED_WHOLE", 0)
    path = tmp_path / "a"
    before = picture_folder(path, lambda part, number, image: 10).train.fingerprint
    again = data.load(f"imagefolder:{path}", image_size=16, num_workers=0).train.fingerprint
    assert before == again
    for file in (path / "train").rglob("*.bmp"):
        os.utime(file, ns=(1, 1))
    assert data.load(f"imagefolder:{path}", image_size=16, num_workers=0).train.fingerprint != before


def folder_of_files(path: Path, count: int) -> Path:
    """Files that are named as pictures, in two classes with a folder each, of fixed times; and hidden ones."""
    for part in ("train", "val"):
        for folder in ("cat", "cat/deep", "cat/.thumbnails", "dog", "dog/deep", ".hidden"):
            (path / part / folder).mkdir(parents=True)
            for number in range(count if part == "train" else 2):
                file = path / part / folder / f"{number}.png"
                file.write_bytes(f"{part} {folder} {number}".encode())
                os.utime(file, ns=(10**18 + number,) * 2)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a name is UTF-8, or has no backslash")
def test_the_fingerprint_of_a_folder_is_the_same_in_every_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.fsencode(folder_of_files(tmp_path, 2) / "train" / "cat") + b"/caf\xe9 \\1.png"
    Path(os.fsdecode(odd)).write_bytes(b"named in Latin-1, with a backslash")
    os.utime(odd, ns=(10**18,) * 2)
    source = f"imagefolder:{tmp_path}"
    assert (
        data.load(source, image_size=16, num_workers=0).train.fingerprint
        == "79ef82e5d13b9d7b31459d1125cd26f19cff261b1da3661e5e35599c66d250bc"
    )
    monkeypatch.setattr(sources, "HASHED_WHOLE", 0)
    assert (
        data.load(source, image_size=16, num_workers=0).train.fingerprint
        == "2d79c28073f23b0ddc98334448ae2bb4a5fa2e7cd73a545aadcdd79b6068f630"
    )


def test_a_file_of_a_folder_costs_few_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HASHED_WHOLE", 0)
    few, many = (folder_of_files(tmp_path / str(count), count) for count in (10, 60))
    calls: Counter[Path] = Counter()
    for folder in (few, many, few, many):  # the first time modules are loaded
        calls[folder] = 0

        def count(frame: Any, event: str, argument: Any, folder: Path = folder) -> None:
            calls[folder] += event == "call"

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            data.load(f"imagefolder:{folder}", image_size=16, num_workers=0)
        finally:
            sys.setprofile(before)
    # With a Path for each file, visible or hidden, they were more than 40; that is slower than finding the files.
    assert (calls[many] - calls[few]) / (50 * 6) < 20


def test_sixteen_bits_are_scaled_and_an_image_is_turned_as_its_tag_says(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((16, 16), 200 * 257, np.uint16))
    turned = Image.new("RGB", (32, 16), (0, 0, 0))
    turned.paste((255, 255, 255), (0, 0, 16, 16))  # white on the left; turned by 90 degrees it is on top
    exif = Image.Exif()
    exif[0x0112] = 6
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        deep.save(tmp_path / part / "only" / "0.png")
        turned.save(tmp_path / part / "only" / "1.png", exif=exif)
    found = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    (batch,) = found.test.iter_batches(4)
    pixels = bytes_of(batch.images, found.test.mean, found.test.std)
    assert pixels[0].unique().tolist() == [200]
    assert pixels[1][0, 0, 8] > 200 > 50 > pixels[1][0, -1, 8]


def test_what_is_transparent_in_sixteen_bits_is_white_too(tmp_path: Path) -> None:
    values = np.array([[0, 1, 30_000, 60_000]], np.uint16)  # 0 and 1 share their high byte
    Image.fromarray(values).save(tmp_path / "a.png", transparency=0)
    with Image.open(tmp_path / "a.png") as image:
        found = upright(image, "a.png")
    assert np.asarray(found).tolist() == [[255, 0, 117, 234]]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_whose_range_is_not_known_are_refused_with_the_file(tmp_path: Path, mode: str) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        for name in ("a", "b"):
            Image.new(mode, (16, 16), 1).save(tmp_path / part / "only" / f"{name}.tiff")
    found = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    with pytest.raises(ValueError, match=rf"[ab]\.tiff has pixels of mode {mode}.* Save it with 8 or 16 bits"):
        list(found.train.iter_batches(2))


@pytest.mark.parametrize(("largest", "content"), [(65535, "P5"), (4095, "P5"), (1000, "P2")])
def test_sixteen_bits_of_a_portable_graymap_are_scaled_too(tmp_path: Path, largest: int, content: str) -> None:
    pixels = np.linspace(0, largest, 24).round().astype(np.uint16).reshape(4, 6)
    body = pixels.astype(">u2").tobytes() if content == "P5" else " ".join(map(str, pixels.flat)).encode() + b"\n"
    path = tmp_path / "a.pgm"
    path.write_bytes(f"{content}\n6 4\n{largest}\n".encode() + body)
    with Image.open(path) as image:
        found = upright(image, "a.pgm")
    assert found.mode == "L"
    assert np.array_equal(np.asarray(found), np.round(pixels / largest * 65535).astype(int) >> 8)


def test_floats_from_a_transform_are_refused(tmp_path: Path) -> None:
    found = picture_folder(tmp_path, lambda part, number, image: 10)
    floats = replace(found.train, transform=lambda _: lambda image: torch.zeros(3, 16, 16))
    with pytest.raises(TypeError, match=r"images are torch.float32; expected bytes \(torch.uint8\)"):
        list(floats.iter_batches(2))


def test_a_teacher_whose_classes_are_in_another_order_is_refused(tmp_path: Path) -> None:
    pets = picture_folder(tmp_path / "pets", lambda part, number, image: 10 * number + image)
    teacher = models.build("resnet8", num_classes=2, seed=0)
    models.save(teacher, tmp_path / "swapped.safetensors", classes=["dog", "cat"])
    models.save(teacher, tmp_path / "same.safetensors", classes=["cat", "dog"])
    options: dict[str, Any] = {"epochs": 1, "progress": False, "device": "cpu", "precision": "fp32"}
    student = models.build("resnet8", num_classes=2, seed=1)
    train.fit(student, pets, teacher=models.load(tmp_path / "same.safetensors"), **options)
    swapped = models.load(tmp_path / "swapped.safetensors")
    with pytest.raises(
        ValueError, match="same classes in another order .*: its 'dog' stands where the data have 'cat'"
    ):
        train.fit(student, pets, teacher=swapped, **options)
    method = methods.HardLabels() + methods.Feature({"layer3": "layer3"})
    train.fit(student, pets, teacher=swapped, method=method, **options)  # features have no classes
    cache = {"augmentation": pets.augmentation, "seed": 0, "device": "cpu", "precision": "fp32", "progress": False}
    built = [CachedTeacher.build(swapped, pets.train, directory=tmp_path / "cache", **cache) for _ in range(2)]
    among_others: list[Any] = [Ensemble([teacher, swapped]), ConfidenceEnsemble([teacher, swapped]), *built]
    among_others.append(CachedTeacher.build(Ensemble([swapped, teacher]), pets.train, **cache))
    for other in among_others:
        with pytest.raises(ValueError, match="same classes in another order"):
            train.fit(student, pets, teacher=other, views=1, **options)


def test_sixteen_bits_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2000
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        turned = np.asarray(upright(image, "a.png"))
    assert np.array_equal(turned, np.rot90(pixels >> 8, -1))


def with_exif(image: Image.Image, orientation: int, damage: Callable[[bytes], bytes]) -> bytes:
    """A WebP file whose EXIF block, with orientation and resolution, was damaged."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x011A] = 72.0
    file = io.BytesIO()
    image.save(file, "webp", lossless=True, exif=damage(exif.tobytes()))
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_pillow_turns_it(orientation: int) -> None:
    pixels = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    with Image.open(io.BytesIO(with_exif(pixels, orientation, lambda exif: exif))) as image:
        assert np.array_equal(np.asarray(upright(image, "a.webp")), np.asarray(ImageOps.exif_transpose(image)))


def test_tags_that_cannot_be_written_anew_do_not_keep_an_image_from_being_turned() -> None:
    pixels = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    rational, text = b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02"  # the resolution's type: big-endian, as PIL writes it
    file = with_exif(pixels, 6, lambda exif: exif.replace(rational, text))
    with Image.open(io.BytesIO(file)) as image:
        assert np.array_equal(np.asarray(upright(image, "a.webp")), np.rot90(np.asarray(image), -1))


def test_an_image_whose_exif_data_are_damaged_is_used_as_it_is_stored_and_named() -> None:
    pixels = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    file = with_exif(pixels, 6, lambda exif: exif.replace(b"MM\x00*", b"MM\x00\x11"))
    with Image.open(io.BytesIO(file)) as image, pytest.warns(UserWarning, match=r"EXIF data of a\.webp cannot be read"):
        assert np.array_equal(np.asarray(upright(image, "a.webp")), np.asarray(pixels))


@pytest.mark.parametrize(("count", "odd"), [(2, 2), (4, 3)])
def test_a_class_that_only_one_side_has_is_named(blobs: DataModule, count: int, odd: int) -> None:
    model = nn.Linear(1, 1)
    model.classes = (*blobs.classes, "another")[:count]
    name = (*blobs.classes, "another")[odd]
    with pytest.raises(ValueError, match=f"{count} classes, and blobs has 3: {name!r} is in one of them only"):
        evaluation.check_class_names("teacher", model, blobs)


# What lies in a folder of pictures besides pictures that are read once.


def test_files_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path, "train", 4)
    write_folder(tmp_path, "val", 2)
    (tmp_path / "train" / "cat" / "deep").mkdir()
    for name in ("one.heic", "two.GIF", "deep/three.avif", "four"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"a picture")
    with pytest.warns(UserWarning, match=r"4 file\(s\).*\.jpg.*\.webp") as caught:
        found = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    assert str(tmp_path / "train" / "cat") in str(caught[0].message)
    assert len(found.train) + len(found.validation) == 4


def test_hidden_files_and_notes_beside_pictures_need_no_word(tmp_path: Path) -> None:
    write_folder(tmp_path, "train", 4)
    write_folder(tmp_path, "val", 2)
    for name in (".DS_Store", "._one.heic", "README", "README.md", "LICENSE", "boxes.txt", "Thumbs.db", "desktop.ini"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"a note")
    with warnings.catch_warnings(action="error"):
        data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)


def test_hidden_pictures_and_folders_are_left_out(tmp_path: Path) -> None:
    """A Mac writes ._IMG.jpg beside IMG.jpg on other disks, and Jupyter .ipynb_checkpoints."""
    for part, count in (("train", 4), ("val", 2)):
        write_folder(tmp_path, part, count)
    first = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    for part in ("train", "val"):
        (tmp_path / part / "cat" / "._one.jpg").write_bytes(b"no picture")
        for hidden in (tmp_path / part / ".ipynb_checkpoints", tmp_path / part / "cat" / ".thumbnails"):
            hidden.mkdir()
            (hidden / "one.png").write_bytes(b"no picture")
    with warnings.catch_warnings(action="error"):
        found = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    assert found.classes == first.classes
    assert [len(one) for one in (found.train, found.validation, found.test)] == [
        len(one) for one in (first.train, first.validation, first.test)
    ]
    assert found.train.fingerprint == first.train.fingerprint
    assert pickle.loads(pickle.dumps(found.test)).fingerprint == found.test.fingerprint


def test_a_class_with_hidden_pictures_alone_is_refused_with_the_endings_that_are_read(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 2)):
        write_folder(tmp_path, part, count)
    (tmp_path / "train" / "owl").mkdir()
    (tmp_path / "train" / "owl" / "._one.jpg").write_bytes(b"no picture")
    with pytest.raises(FileNotFoundError, match=r"no valid file for the classes owl.*\.png"):
        data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/cat/self", "."),
        ("train/cat/up", "../.."),
        ("train/cat/other", "../../val"),
        ("train/tiger", "cat"),
        ("test", "train"),
        ("test/cat", "../train/cat"),
    ],
)
def test_a_folder_that_is_reached_twice_through_a_link_is_refused(tmp_path: Path, link: str, target: str) -> None:
    write_folder(tmp_path, "train", 4)
    write_folder(tmp_path, "val", 2)
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(target)
    with pytest.raises(ValueError, match="same folder") as caught:
        data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    assert str(tmp_path / link) in str(caught.value)


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", "train", 4)
    write_folder(tmp_path / "elsewhere", "val", 2)
    (tmp_path / "here" / "train").mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "here" / "train" / name).symlink_to(tmp_path / "elsewhere" / "train" / name)
    (tmp_path / "here" / "val").symlink_to(tmp_path / "elsewhere" / "val")
    assert len(data.load(f"imagefolder:{tmp_path / 'here'}", image_size=16, num_workers=0).test) == 2


def with_long_text(path: Path) -> None:
    notes = PngInfo()
    notes.add_text("note", "a" * 2_000_000, zip=True)
    noise((24, 24), 1).save(path, "PNG", pnginfo=notes)


def with_damaged_header(path: Path) -> None:
    path.write_bytes(b"P6 24 twenty-four 255 " + bytes(24 * 24 * 3))


def with_damaged_pixels(path: Path) -> None:
    path.write_bytes(b"P3 2 1 255 1 2 3 4 5 900 ")


@pytest.mark.parametrize("damage", [with_long_text, with_damaged_header, with_damaged_pixels])
def test_whatever_pil_says_of_a_file_the_file_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_folder(tmp_path, "train", 4)
    write_folder(tmp_path, "val", 2)
    bad = tmp_path / "val" / "cat" / "000.jpg"
    damage(bad)
    found = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    with pytest.raises(OSError, match="cannot be read as an image.*Copy it again or remove it") as caught:
        list(found.test.iter_batches(2))
    assert str(bad) in str(caught.value)


def as_postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n%%EndComments\nshowpage\n")


def as_gif(path: Path) -> None:
    noise((24, 24), 1).save(path, "GIF")


@pytest.mark.parametrize("write", [as_postscript, as_gif])
def test_a_file_of_another_format_is_not_decoded_whatever_its_ending(
    tmp_path: Path, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PIL hands PostScript to Ghostscript, a program that has run what pictures told it to."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript is called"))
    write_folder(tmp_path, "train", 4)
    write_folder(tmp_path, "val", 2)
    write(tmp_path / "val" / "cat" / "000.jpg")
    found = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    words = r"000\.jpg cannot be read as an image \(it is none of JPEG, PNG, .*\)\. Copy it again or remove it"
    with pytest.raises(OSError, match=words):
        list(found.test.iter_batches(2))


def test_the_formats_that_are_decoded_are_those_of_the_endings_that_are_read(tmp_path: Path) -> None:
    Image.init()
    assert {Image.EXTENSION[ending] for ending in IMG_EXTENSIONS} == set(FORMATS)
    pictures = [noise((24, 24), seed) for seed in range(2)]
    pictures[0].save(tmp_path / "two.jpg", "MPO", save_all=True, append_images=pictures[1:])  # as many phones do
    assert sources._open_image(str(tmp_path / "two.jpg")).size == (24, 24)


def opened(path: Path) -> LazyDataset:
    """One picture, which its source has opened and not read."""
    zero = torch.zeros(1, dtype=torch.int64)
    source = [(Image.open(path), 0)]
    return LazyDataset(source, zero, zero, zero, (0.0,) * 3, (1.0,) * 3, lambda _: pil_to_tensor, "a picture")


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_tiff_that_was_only_opened_is_turned_once(tmp_path: Path, orientation: int) -> None:
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.tiff", exif=exif)
    (batch,) = opened(tmp_path / "a.tiff").iter_batches(1)
    found = bytes_of(batch.images, (0.0,) * 3, (1.0,) * 3)[0].permute(1, 2, 0)
    assert np.array_equal(found, np.rot90(pixels, {1: 0, 3: 2, 6: -1}[orientation]))


def with_lost_end(path: Path) -> None:
    noise((24, 24), 1).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("damage", [with_lost_end, with_damaged_pixels])
def test_a_damaged_picture_that_was_only_opened_is_named(
    tmp_path: Path, damage: Callable[[Path], None], recwarn: pytest.WarningsRecorder
) -> None:
    damage(tmp_path / "a.png")
    with pytest.raises(OSError, match=r"^image 0 cannot be read as an image \(.*\)\. Copy it again or remove it\.$"):
        list(opened(tmp_path / "a.png").iter_batches(1))
    assert not [one for one in recwarn if "EXIF" in str(one.message)]


def test_a_picture_that_is_too_large_is_not_called_damaged(
    folder: DataModule, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    words = r"too large to be decoded safely \(.*\)\. Remove it from the data, or scale it down\.$"
    with pytest.raises(OSError, match=rf"^{re.escape(str(tree))}.*\.jpg is {words}"):
        list(folder.test.iter_batches(2))
    with pytest.raises(OSError, match=rf"^train\[0\] is {words}"):
        data.from_datasets(torchvision_sets.ImageFolder(tree / "train"), classes=("cat", "dog"), image_size=16)


def test_a_damaged_picture_is_named_where_the_dataset_reads_it(tmp_path: Path) -> None:
    write_folder(tmp_path, "train", 4)
    with_lost_end(tmp_path / "train" / "cat" / "001.jpg")
    source = torchvision_sets.ImageFolder(tmp_path / "train")
    with pytest.raises(OSError, match=r"^train\[1\] cannot be read as an image .* Copy it again or remove it\.$"):
        data.from_datasets(source, classes=("cat", "dog"), image_size=16)


def test_an_error_of_a_transform_is_not_called_a_damaged_picture(folder: DataModule) -> None:
    def broken(image: Any) -> Any:
        raise ValueError("my own mistake")

    with pytest.raises(ValueError, match="^my own mistake$"):
        list(replace(folder.test, transform=lambda augmentation: broken).iter_batches(2))


def test_a_random_crop_keeps_the_share_of_the_area_that_was_asked_for(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        for number in range(2):
            Image.fromarray(ramp).save(tmp_path / part / "only" / f"{number}.png")
    found = data.load(f"imagefolder:{tmp_path}", image_size=32, num_workers=0)
    for view in range(8):
        (batch,) = found.test.iter_batches(2, augmentation=Augmentation(scale=(0.9, 1.0)), view=view)
        for image in bytes_of(batch.images, found.test.mean, found.test.std):
            assert int(image.max()) - int(image.min()) > 180  # nine tenths of the picture, at most 4:3 in shape


def test_a_mean_of_ones_own_leaves_the_deviation_to_the_images() -> None:
    images = [(torch.full((1, 4, 4), 255 * (i % 2), dtype=torch.uint8), i % 2) for i in range(40)]
    options: dict[str, Any] = {"classes": ("a", "b"), "image_size": 4, "in_channels": 1}
    measured = data.from_datasets(images, **options).train
    mean_given = data.from_datasets(images, mean=[0.1], **options).train
    std_given = data.from_datasets(images, std=[0.1], **options).train
    assert measured.mean[0] == pytest.approx(0.5, abs=0.1)
    assert (mean_given.mean, mean_given.std) == ((0.1,), measured.std)
    assert (std_given.mean, std_given.std) == (measured.mean, (0.1,))


def test_mean_and_deviation_are_those_of_images_from_the_whole_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large set some are taken, evenly spaced: its samples may lie there class by class."""
    monkeypatch.setattr("kdlib.data.own.STATISTICS", 10)
    images = [(torch.full((1, 2, 2), 255 * (i >= 50), dtype=torch.uint8), int(i >= 50)) for i in range(100)]
    found = data.from_datasets(images, classes=("a", "b"), image_size=2, in_channels=1)
    assert found.train.mean[0] == pytest.approx(0.5, abs=0.15)


def test_labels_below_zero_are_refused_in_the_test_set_too() -> None:
    images = [(torch.full((1, 2, 2), i, dtype=torch.uint8), i % 2) for i in range(40)]
    other = [(image, label - 1) for image, label in images]
    with pytest.raises(ValueError, match="The test labels run from -1 to 0, and 2 classes"):
        data.from_datasets(images, test=other, classes=("a", "b"), image_size=2, in_channels=1)


def test_a_folder_is_decoded_by_as_many_workers_as_were_asked_for(tree: Path) -> None:
    found = data.load(f"imagefolder:{tree}", image_size=16, num_workers=3)
    assert [split.num_workers for split in (found.train, found.validation, found.test)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("cifar10", ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
        ("cifar100", ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))),
    ],
)
def test_cifar_has_the_scale_of_its_own_and_is_found_in_the_home_folder(
    tmp_path: Path, monkeypatch, name: str, scale: tuple[tuple[float, ...], ...]
) -> None:
    write_cifar(tmp_path, monkeypatch, name)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    monkeypatch.setenv("USERPROFILE", str(tmp_path.parent))
    found = data.load(name, root=f"~/{tmp_path.name}", download=False)
    for split in (found.train, found.validation, found.test):
        assert (split.mean, split.std) == scale


def test_splits_of_a_folder_that_share_images_are_refused(folder: DataModule) -> None:
    with pytest.raises(ValueError, match=r"3 image\(s\) of imagefolder:.* are in train and in validation"):
        replace(folder, validation=folder.train.select(torch.tensor([1, 4, 2])))


def test_splits_of_other_sizes_may_number_their_samples_alike() -> None:
    other = custom(images=torch.zeros(6, 2, 5, 4, dtype=torch.uint8))
    assert len(module(train=custom(), validation=other).validation) == 6


def test_datasets_of_ones_own_have_the_name_and_the_augmentation_that_were_given() -> None:
    images = [(torch.full((1, 4, 4), i, dtype=torch.uint8), i % 2) for i in range(20)]
    options: dict[str, Any] = {"classes": ("a", "b"), "image_size": 4, "in_channels": 1}
    found = data.from_datasets(images, augmentation=Augmentation(padding=1, flip=True), name="mine", **options)
    assert (found.name, found.augmentation) == ("mine", Augmentation(padding=1, flip=True))
    assert data.from_datasets(images, **options).augmentation == NO_AUGMENTATION


def test_a_command_gets_folders_of_the_size_it_asks_for(tree: Path) -> None:
    assert data.load_images(f"imagefolder:{tree}", image_size=24).image_size == 24
