from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from kdlib import data
from kdlib.data import DataModule, InMemoryDataset
from kdlib.files import lock

ROOT = Path(__file__).resolve().parents[1]
ORDER = (ROOT / "notebooks", ROOT / "tests" / "browser")

hypothesis.settings.register_profile("kdlib", deadline=None)  # a busy machine is no defect
hypothesis.settings.load_profile("kdlib")
torch.set_num_threads(1)  # the tests' networks are too small to gain by threads, and lose by waiting for them


def pytest_configure() -> None:
    """Restore Ctrl-C, which a job that a script starts in the background ignores: some tests send it to a process."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup() -> None:
    """Before a test and its fixtures: networks without a seed are the same in whatever order tests run."""
    torch.manual_seed(0)


def stage(item: pytest.Item) -> int:
    """When a test runs: 0 for the fast ones, 1 for those marked slow, 2 for the lessons, 3 for the browser."""
    slow = int(item.get_closest_marker("slow") is not None)
    return next((number for number, folder in enumerate(ORDER, 2) if item.path.is_relative_to(folder)), slow)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests come first."""
    items.sort(key=stage)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """made_once("name", fill): a folder of this name that `fill` has filled, once for all workers of xdist.

    What takes seconds to make would otherwise be made by each worker, and again after tests of other files have run
    in between. No test may change what is in it. (With pytest 9.2, `--dist loadgroup` of xdist 3.8 keeps no group in
    one worker: https://github.com/pytest-dev/pytest-xdist/issues/1386.)
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # each worker has a folder of its own in there

    def make(name: str, fill: Callable[[Path], Any]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with lock(shared / f"{name}.lock", "", wait=True):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture
def windows_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines end as on Windows: pandas asks os.linesep, and a text file that is opened without `newline` translates."""
    opened = Path.open

    def translating(path: Path, mode: str = "r", buffering: int = -1, encoding: str | None = None,
                    errors: str | None = None, newline: str | None = None) -> Any:  # fmt: skip
        if newline is None and "b" not in mode and "r" not in mode:
            newline = "\r\n"
        return opened(path, mode, buffering, encoding, errors, newline)

    monkeypatch.setattr(os, "linesep", "\r\n")
    monkeypatch.setattr(Path, "open", translating)


@pytest.fixture(scope="session")
def fashion() -> DataModule:
    return data.load("fashion-mnist")


@pytest.fixture(scope="session")
def blobs() -> DataModule:
    """A small learnable dataset: 3 classes of 8 x 8 images, each bright in another corner, with noise."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int, start: int) -> InMemoryDataset:
        labels = torch.arange(count) % 3
        images = torch.randint(0, 120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        for position, label in enumerate(labels.tolist()):
            row, column = divmod(label, 2)
            images[position, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 60
        return InMemoryDataset(images, labels, torch.arange(start, start + count), (0.3,), (0.15,))

    parts = {"train": split(96, 0), "validation": split(30, 96), "test": split(30, 126)}
    return DataModule("blobs", ("a", "b", "c"), **parts, augmentation=data.Augmentation(padding=1), image_size=8)
