"""The unpacked images are a file that all processes map: the same images, verified, and never in anybody's way."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from kdlib import data
from kdlib.data import sources

SHIPPED = Path(__file__).resolve().parents[1] / "data"
FILE = Path(".unpacked") / "fashion-mnist.bin"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of one's own, and a home: nothing is unpacked yet."""
    place = tmp_path / "data"
    place.mkdir()
    for name in sources.FASHION_FILES:
        (place / name).symlink_to(SHIPPED / name)
    monkeypatch.setenv("KDLIB_DATA", str(place))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    sources.fashion_mnist.cache_clear()
    yield place
    sources.fashion_mnist.cache_clear()


def load_again() -> data.DataModule:
    sources.fashion_mnist.cache_clear()
    return data.load("fashion-mnist")


def plain() -> dict[str, data.InMemoryDataset]:
    """The splits as they are without any file."""
    train, train_labels, test, test_labels = (
        sources.parse_idx(sources.read_verified(name)) for name in sources.FASHION_FILES
    )
    pairs = ((train[:, None], test[:, None]), (train_labels, test_labels))
    return sources.in_memory_datasets(*pairs, validation=5_000, mean=(0.2860,), std=(0.3530,))


def assert_same(module: data.DataModule) -> None:
    for name, wanted in plain().items():
        split = getattr(module, name)
        for part in ("images", "labels", "indices"):
            assert torch.equal(getattr(split, part), getattr(wanted, part)), (name, part)
        assert (split.mean, split.std, split.fingerprint) == (wanted.mean, wanted.std, wanted.fingerprint)


@pytest.mark.slow
def test_the_images_are_mapped_and_the_same(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(load_again())
        again = load_again()
    assert_same(again)
    assert [path.name for path in (folder / ".unpacked").iterdir()] == ["fashion-mnist.bin"]
    content = (folder / FILE).read_bytes()
    assert len(content) == 70_000 * 784
    assert hashlib.sha256(content).hexdigest() == sources.UNPACKED_SHA256
    if sys.platform == "linux":
        assert str(folder / FILE) in Path("/proc/self/maps").read_text()


@pytest.mark.slow
def test_a_second_start_unpacks_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_again()
    opened = sources.parse_idx

    def small(content: bytes) -> torch.Tensor:
        assert len(content) < 100_000, "unpacked again"
        return opened(content)

    monkeypatch.setattr(sources, "parse_idx", small)
    assert len(load_again().train) == 55_000


@pytest.mark.slow
def test_what_a_program_changes_reaches_nobody_else(folder: Path) -> None:
    first = load_again()
    before = (folder / FILE).read_bytes()
    first.validation.images[:] = 0  # copied on writing
    assert (folder / FILE).read_bytes() == before
    assert_same(load_again())


@pytest.mark.slow
def test_each_split_has_a_storage_of_its_own(folder: Path) -> None:
    """A copy of the validation split is not a copy of all images."""
    load_again()
    for split, count in ((load_again().validation, 5_000), (load_again().test, 10_000)):
        assert split.images.untyped_storage().nbytes() == count * 784


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "a folder", "longer"])
def test_a_damaged_copy_is_never_used(folder: Path, damage: str) -> None:
    load_again()
    path = folder / FILE
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    else:
        content[1_000_000] ^= damage == "flipped"
        size = {"truncated": 1_000_000, "empty": 0}.get(damage, len(content))
        path.write_bytes(bytes(content[:size]) + b"x" * (damage == "longer"))
    assert_same(load_again())
    if damage != "a folder":
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sources.UNPACKED_SHA256  # mended


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_in_its_place_does_not_hang(folder: Path) -> None:
    (folder / ".unpacked").mkdir()
    os.mkfifo(folder / FILE)
    assert len(load_again().train) == 55_000


def test_the_packed_files_are_verified_all_the_same(folder: Path) -> None:
    load_again()
    name = "train-images-idx3-ubyte.gz"
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_again()
    (folder / name).write_bytes((SHIPPED / name).read_bytes()[:1_000])
    with pytest.raises(ValueError, match="is truncated or altered: 1,000 bytes"):
        load_again()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_leaves_it_to_the_users_own(folder: Path, tmp_path: Path) -> None:
    (folder / ".unpacked").write_text("")  # no folder can be made here, whoever asks
    assert_same(load_again())
    assert (tmp_path / "home" / ".cache" / "kdlib" / "fashion-mnist.bin").is_file()


@pytest.mark.slow
def test_no_place_at_all_is_no_error(folder: Path, tmp_path: Path) -> None:
    (folder / ".unpacked").write_text("")
    (tmp_path / "home").write_text("")
    assert_same(load_again())


@pytest.mark.slow
def test_a_copy_of_other_contents_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unpacked is what is expected, or it is not written."""
    monkeypatch.setattr(sources, "UNPACKED_SHA256", "0" * 64)
    assert_same(load_again())
    assert not (folder / FILE).exists()


@pytest.mark.slow
def test_processes_that_start_together(folder: Path) -> None:
    code = "from kdlib import data; d = data.load('fashion-mnist'); print(d.train.fingerprint, d.test.fingerprint)"
    command = [sys.executable, "-c", code]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate(timeout=300)[0] for process in several}
    assert [process.returncode for process in several] == [0] * 4
    whole = plain()
    assert said == {f"{whole['train'].fingerprint} {whole['test'].fingerprint}\n"}
    assert [path.name for path in (folder / ".unpacked").iterdir()] == ["fashion-mnist.bin"]
