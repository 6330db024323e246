"""Where datasets come from: the files shipped in data/, torchvision's downloads, folders of images."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlib.data.augment import Augmentation, permutation
from kdlib.data.datasets import InMemoryDataset, LazyDataset, num_cores
from kdlib.data.decode import DAMAGED, FORMATS, upright
from kdlib.data.unpacked import mapped
from kdlib.files import fingerprint

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_FILES = {  # sha256 of the files in Debian's package dataset-fashion-mnist
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
UNPACKED_SHA256 = "9c04ad366d0e0a329a138d55f02a1ecb0908abbb2b176aa3149715c86d37efb0"  # train, validation, test
SMALL_FOLDER = 2_000  # images, some ten seconds of one core for photos
HASHED_WHOLE = 1_000_000_000  # bytes of a folder of images
# The endings of what lies beside pictures and nobody misses.
NO_PICTURES = (".txt", ".md", ".csv", ".json", ".xml", ".html", ".db", ".ini")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def data_dir() -> Path:
    """The folder of the shipped data and weights: $KDLIB_DATA, else data/ beside the package, else ./data."""
    if os.environ.get("KDLIB_DATA"):
        return Path(os.environ["KDLIB_DATA"])
    beside = Path(__file__).resolve().parents[2] / "data"
    # Beside an installed package there may be a folder of this name that is another's.
    return beside if (beside / "SHA256SUMS").is_file() else Path.cwd() / "data"


def verify(name: str) -> Path:
    """The path of one shipped gzip file of Fashion-MNIST, after its sha256 was compared; raises as `verify_file`."""
    fix = f"Restore it with 'git checkout -- data/{name}', or copy it from Debian's package dataset-fashion-mnist."
    return verify_file(name, FASHION_FILES[name], fix)


def verify_file(name: str, sha256: str, fix: str) -> Path:
    """The path of one shipped file, after its sha256 was compared; fix: what an error advises.

    Raises FileNotFoundError when it is missing and ValueError when it is truncated or altered.
    """
    path = data_dir() / name
    if not path.is_file():
        raise FileNotFoundError(
            f"The data file {path} is missing. {fix} If the data lies elsewhere, set KDLIB_DATA to that folder."
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        length = file.tell()
    if found != sha256:
        raise ValueError(
            f"The data file {path} is truncated or altered: {length:,} bytes with sha256 {found[:16]}..., "
            f"expected sha256 {sha256[:16]}.... {fix}"
        )
    return path


def read_verified(name: str) -> bytes:
    """The contents of one shipped gzip file; raises what `verify` raises."""
    return zlib.decompress(verify(name).read_bytes(), wbits=zlib.MAX_WBITS | 16)


def parse_idx(content: bytes) -> Tensor:
    """The uint8 tensor in an idx file (two zero bytes, type 8, number of dimensions, big-endian sizes, bytes)."""
    dimensions = content[3] if len(content) > 3 else 0
    shape = [int.from_bytes(content[4 + 4 * d : 8 + 4 * d], "big") for d in range(dimensions)]
    start = 4 + 4 * dimensions
    if content[:3] != b"\x00\x00\x08" or not 0 < len(content) - start == math.prod(shape):
        raise ValueError("This is not an idx file of unsigned bytes: its header and its length disagree.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)


def hold_out(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Positions (kept, held out): the same `size` of `count` samples are held out on every machine."""
    order = permutation(torch.arange(count), "hold out")
    return order[size:].sort().values, order[:size].sort().values


def in_memory_datasets(
    images: Sequence[Tensor], labels: Sequence[Tensor], validation: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, InMemoryDataset]:
    """Train, validation and test sets of images in memory; (train, test) pairs in, validation held out."""
    whole = InMemoryDataset(images[0], labels[0].long(), torch.arange(len(labels[0])), mean, std)
    kept, held_out = hold_out(len(whole), validation)
    test = InMemoryDataset(images[1], labels[1].long(), torch.arange(len(labels[1])), mean, std)
    return {"train": whole.select(kept), "validation": whole.select(held_out), "test": test}


@lru_cache(maxsize=2)  # checking 86 MB takes some tenths of a second; `load` gives away `with_own_labels`
def fashion_mnist(where: Path) -> dict[str, Any]:
    """Fashion-MNIST (Xiao et al. 2017): 55,000 / 5,000 / 10,000 grey images of 28 x 28 pixels.

    The images are unpacked once, into .unpacked beside the data or else into ~/.cache/kdlib, and mapped from there: all
    processes share one copy.
    """
    for name in FASHION_FILES:
        verify(name)
    train_images, train_labels, test_images, test_labels = FASHION_FILES
    labels = {"train": parse_idx(read_verified(train_labels)), "test": parse_idx(read_verified(test_labels))}
    kept, held_out = hold_out(len(labels["train"]), 5_000)

    def unpack() -> Tensor:
        train, test = (parse_idx(read_verified(name)) for name in (train_images, test_images))
        return torch.cat([train[kept], train[held_out], test]).flatten()

    parts = {
        "train": (labels["train"][kept], kept),
        "validation": (labels["train"][held_out], held_out),
        "test": (labels["test"], torch.arange(len(labels["test"]))),
    }
    shapes = [(len(indices), 1, 28, 28) for _, indices in parts.values()]
    images = mapped("fashion-mnist.bin", UNPACKED_SHA256, shapes, _folders_of_unpacked(where), unpack)
    return {
        "classes": FASHION_CLASSES,
        "augmentation": Augmentation(padding=2, flip=True),
        "image_size": 28,
        **{
            name: InMemoryDataset(part, label.long(), indices, mean=(0.2860,), std=(0.3530,))
            for part, (name, (label, indices)) in zip(images, parts.items(), strict=True)
        },
    }


def with_own_labels(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The same parts, whose labels and indices the caller may write into; the images are shared.

    The datasets are new ones, so that their fingerprints are those of what they hold then.
    """
    return {
        name: replace(part, labels=part.labels.clone(), indices=part.indices.clone())
        if isinstance(part, InMemoryDataset)
        else part
        for name, part in parts.items()
    }


def _folders_of_unpacked(where: Path) -> list[Path]:
    """Where unpacked images may lie: beside the data, so that all users share them, or in the user's own cache."""
    try:
        return [where / ".unpacked", Path.home() / ".cache" / "kdlib"]
    except RuntimeError:  # a user without a home folder
        return [where / ".unpacked"]


def cifar(name: str, root: str | Path | None, download: bool) -> dict[str, Any]:
    """CIFAR-10 or CIFAR-100 through torchvision: 45,000 / 5,000 / 10,000 colour images of 32 x 32 pixels."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root = Path(root).expanduser() if root else Path.home() / ".cache" / "kdlib"
    try:
        parts = [kind(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"Could not get {name} into {root} ({error}). It is downloaded once from {kind.url}: check the network, "
            f"or fetch {kind.filename} on another machine and put it there."
        ) from error
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
    labels = [torch.tensor(part.targets) for part in parts]
    mean, std = CIFAR_STATISTICS[name]
    return {
        "classes": tuple(parts[0].classes),
        "augmentation": Augmentation(padding=4, flip=True),
        "image_size": 32,
        **in_memory_datasets(images, labels, validation=len(labels[0]) // 10, mean=mean, std=std),
    }


def image_transform(size: int) -> Callable[[Augmentation], Callable[[Any], Tensor]]:
    """From an Augmentation to torchvision's transforms that give uint8 tensors of 3 x size x size."""
    return partial(_image_steps, size)  # no closure: workers that do not fork get it as a pickle


def _image_steps(size: int, augmentation: Augmentation) -> Callable[[Any], Tensor]:
    from torchvision.transforms import v2

    if augmentation.resizes:
        steps = [v2.RandomResizedCrop(size, scale=augmentation.scale, antialias=True)]
    else:
        # ImageNet's evaluation protocol: the shorter side at 256/224 of the size, then the centre.
        steps = [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)]
    if augmentation.padding:
        steps.append(v2.RandomCrop(size, padding=augmentation.padding))
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose([v2.PILToTensor(), v2.RGB(), *steps])


def image_folder(path: str | Path, image_size: int, num_workers: int | None) -> dict[str, Any]:
    """Images in ImageNet's layout: PATH/train/CLASS/*, PATH/val/CLASS/* and, if there is one, PATH/test/CLASS/*.

    Without a test folder, val is the test set and a tenth of train (at most 10,000 images) is held out for
    validation, so that choices are never made on the test set. Raises FileNotFoundError for another layout, and
    ValueError for classes that differ and for a folder that is reached twice.
    """
    path = Path(path).expanduser()  # the shell does not see the ~ in imagefolder:~/pictures
    _refuse_reached_twice(path / part for part in ("train", "val", "test"))
    train = _open_folder(path, "train")
    last = "test" if (path / "test").is_dir() else "val"
    test = _open_folder(path, last)
    num_workers = _default_workers(len(train)) if num_workers is None else num_workers
    splits = {
        "train": _lazy_dataset(train, image_size, num_workers),
        "test": _lazy_dataset(test, image_size, num_workers),
    }
    if last == "test" and (path / "val").is_dir():
        splits["validation"] = _lazy_dataset(_open_folder(path, "val"), image_size, num_workers)
    elif len(train) < 2:
        raise ValueError(f"{train.root} holds 1 image: too few to hold out a tenth for validation.")
    else:
        kept, held_out = hold_out(len(splits["train"]), min(10_000, max(1, len(splits["train"]) // 10)))
        splits["validation"] = splits["train"].select(held_out)
        splits["train"] = splits["train"].select(kept)
    for part in (test, splits["validation"].source):
        if part.classes != train.classes:
            raise ValueError(
                f"The class folders of {part.root} and {train.root} differ: "
                f"{sorted(set(part.classes) ^ set(train.classes))[:5]}. Each class needs a folder in both."
            )
    augmentation = Augmentation(flip=True, scale=(0.35, 1.0))
    return {"classes": tuple(train.classes), "augmentation": augmentation, "image_size": image_size, **splits}


def _open_folder(path: Path, part: str) -> Any:
    from kdlib.data.image_folder import VisibleImageFolder

    try:
        images = VisibleImageFolder(path / part, loader=_open_image)
    except (FileNotFoundError, NotADirectoryError) as error:
        way_out = f"Expected {path}/train/CLASS/IMAGE and {path}/val/CLASS/IMAGE, as ImageNet is laid out."
        folders = any(one.is_dir() for one in (path / part).glob("*"))
        if part == "test" and not folders and (path / "val").is_dir():
            way_out = (
                f"Test images without labels cannot be used: move that folder away, and {path}/val is the test set."
            )
        raise FileNotFoundError(f"{path / part} does not hold images in class folders ({error}). {way_out}") from error
    _warn_of_unread(path / part, images.classes)
    return images


def _refuse_reached_twice(roots: Iterable[Path]) -> None:
    """Raise ValueError where links lead to one folder by two paths: its pictures would count twice, or in two parts."""
    reached: dict[str, str] = {}
    for root in roots:
        for folder, _, _ in os.walk(root, followlinks=True):  # as ImageFolder does
            real = os.path.realpath(folder)
            if real in reached:
                raise ValueError(
                    f"{folder} and {reached[real]} are the same folder, through a link: its pictures would count more "
                    "than once, or be in two parts. Each folder may be reached by one path only: remove the link."
                )
            reached[real] = folder


def _warn_of_unread(root: Path, classes: Sequence[str]) -> None:
    """Warn of files in the class folders whose endings are not read, but for hidden ones and notes beside pictures."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    from kdlib.data.image_folder import is_hidden

    known = (*IMG_EXTENSIONS, *NO_PICTURES)
    left_out = [
        Path(folder, name)
        for one in classes
        for folder, _, names in os.walk(root / one, followlinks=True)
        for name in names
        if not name.startswith(("README", "LICENSE"))
        and not name.lower().endswith(known)
        and not is_hidden(os.path.join(folder, name), root)
    ]
    if left_out:
        warnings.warn(
            f"{len(left_out):,} file(s) in the class folders of {root} are left out, as {min(left_out)}: only files "
            f"that end in {', '.join(IMG_EXTENSIONS)} are read. Convert them, or move them elsewhere.",
            stacklevel=2,
        )


def _default_workers(num_images: int) -> int:
    """One for each of `num_cores` but one, eight at most; none for a small folder where each begins by importing torch.

    For every pass that takes longer than to decode a small folder; only a fork (Linux, before Python 3.14) has it all.
    """
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if method != "fork" and num_images < SMALL_FOLDER:
        return 0
    return min(8, num_cores() - 1)


def _open_image(path: str) -> Any:
    """As torchvision's own loader, but what is not 8 bits a channel, upright and opaque is not flattened in silence.

    Raises OSError for a damaged file and for one that is none of FORMATS, and ValueError as `upright` does.
    """
    from PIL import Image, UnidentifiedImageError

    with Path(path).open("rb") as file:
        try:
            image = Image.open(file, formats=FORMATS)
            image.load()
        except UnidentifiedImageError as error:
            raise OSError(f"it is none of {', '.join(FORMATS)}, whatever its name") from error
        except DAMAGED as error:
            raise OSError(f"{error}") from error
        return upright(image, path).convert("RGB")


def _files_fingerprint(source: Any) -> str:
    """What differs when a folder's images, their names or its classes differ.

    Contents, as far as that takes a second or two; of a larger folder each file's name, size and time of change, so
    that a copy of it counts as another.
    """
    # All by text: to make a Path of each file takes longer than to ask for its size.
    root = os.path.join(source.root, "")
    files = [(path, os.stat(path)) for path, _ in source.samples]
    names = [path.removeprefix(root).replace(os.sep, "/") for path, _ in files]
    if sum(status.st_size for _, status in files) > HASHED_WHOLE:
        return fingerprint([], source.classes, names, [(status.st_size, status.st_mtime_ns) for _, status in files])
    sha = hashlib.sha256()
    for path, status in files:
        sha.update(f"{status.st_size} ".encode())
        with open(path, "rb") as file:
            sha.update(file.read())
    return fingerprint([], source.classes, names, sha.hexdigest())


def _lazy_dataset(source: Any, image_size: int, num_workers: int) -> LazyDataset:
    everything = torch.arange(len(source))
    return LazyDataset(
        source,
        source_positions=everything,
        labels=torch.tensor(source.targets),
        indices=everything,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        transform=image_transform(image_size),
        # Outputs for 224 pixels are not those for 160.
        source_fingerprint=f"{image_size} {_files_fingerprint(source)}",
        num_workers=num_workers,
    )
