from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from kdlib import data
from kdlib.data import NONE, DataSet, MemorySplit

ROOT = Path(__file__).resolve().parents[1]
ORDER = (ROOT / "notebooks", ROOT / "tests" / "browser")

torch.set_num_threads(1)  # the tests' networks are too small to gain by threads, and lose by waiting for them


def pytest_configure() -> None:
    """Hear Ctrl-C, which a job that a script started in the background ignores: some tests send it to themselves."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def room(item: pytest.Item) -> int:
    """Where a test lives: 0 for what is fast, 1 for what is marked slow, 2 for the lessons, 3 for the browser."""
    slow = int(item.get_closest_marker("slow") is not None)
    return next((number for number, folder in enumerate(ORDER, 2) if item.path.is_relative_to(folder)), slow)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is fast comes first."""
    items.sort(key=room)


@pytest.fixture(scope="session")
def fashion() -> DataSet:
    return data.load("fashion-mnist")


@pytest.fixture(scope="session")
def blobs() -> DataSet:
    """A small learnable data set: 3 classes of 8 x 8 images, each bright in a corner of its own, with noise."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int, start: int) -> MemorySplit:
        labels = torch.arange(count) % 3
        images = torch.randint(0, 120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        for place, label in enumerate(labels.tolist()):
            row, column = divmod(label, 2)
            images[place, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 60
        return MemorySplit(images, labels, torch.arange(start, start + count), (0.3,), (0.15,))

    parts = {"train": split(96, 0), "validation": split(30, 96), "test": split(30, 126)}
    return DataSet("blobs", ("a", "b", "c"), **parts, augmentation=data.Augmentation(crop=1), size=8)


@pytest.fixture
def plain() -> data.Augmentation:
    return NONE
