"""Whatever ends a command, it ends in one sentence and exit code 2; the traceback is there on request."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from course import capstone
from kdlib import cli, environment, models
from kdlib.study import command


def call(*arguments: Any, main: Callable[[], None] = cli.main) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kdlib", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code or 0


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert "Traceback" not in "".join(lines)
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder of 2 classes, 12 pictures each."""
    for part in ("train", "val"):
        for name in ("cats", "dogs"):
            place = tmp_path / "pictures" / part / name
            place.mkdir(parents=True)
            for number in range(12):
                pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "pictures"


def train(folder: Path, out: Path) -> int:
    return call(
        *("train", "--data", f"imagefolder:{folder}", "--image-size", 16, "--model", "resnet8", "--epochs", 1),
        *("--batch-size", 4, "--device", "cpu", "--quiet", "--out", out),
    )


def bomb(path: Path) -> None:
    """A picture of a few hundred bytes that says it is 30,000 pixels wide and high."""
    Image.new("L", (1, 1)).save(path)
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[12 + len(header) + 4 :])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "bomb"])
def test_a_broken_picture_is_named_in_one_sentence(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "train" / "cats" / "3.png"
    if kind == "bomb":
        bomb(path)
    else:
        path.write_bytes({"truncated": path.read_bytes()[:-300], "text": b"no picture", "empty": b""}[kind])
    assert train(folder, tmp_path / "out") == 2
    assert f"3.png {'is too large' if kind == 'bomb' else 'cannot be read as an image'}" in said(capsys)


def test_more_views_than_any_memory_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for views in (10**12, 10**17):
        arguments = ["--images", 64, "--epochs", 1, "--views", views, "--quiet", "--device", "cpu"]
        assert (
            call("distill", "--student", "resnet8", "--teacher", "resnet20-fashion", *arguments, "--out", tmp_path) == 2
        )
        captured = capsys.readouterr()
        assert "memory" in captured.err
        assert "Traceback" not in captured.err
        assert len(captured.err.strip().splitlines()) == 1


class Killed(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1)


class Deep(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> torch.Tensor:
        raise KeyError("colour")


def raising(error: BaseException) -> Callable[..., Any]:
    def check(*given: Any, **options: Any) -> Any:
        raise error

    return check


NO_SHARED_MEMORY = RuntimeError(
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\n"
    "RuntimeError: unable to allocate shared memory(shm) for file </torch_12_34_0>: No space left on device (28)\n"
)
BUS_ERROR = RuntimeError(
    "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit."
)
KINDS: dict[str, tuple[Callable[..., Any], str]] = {
    "a killed worker": (lambda: list(DataLoader(Killed(), num_workers=1)), "worker.*killed.*memory"),
    "no shared memory": (raising(NO_SHARED_MEMORY), "Shared memory.*No space left.*smaller batch.*--shm-size"),
    "a page of shared memory missing": (raising(BUS_ERROR), "Shared memory.*Bus error.*smaller batch.*--shm-size"),
    "a bug in a worker": (lambda: list(DataLoader(Deep(), num_workers=1)), "KeyError.*colour.*KDLIB_TRACEBACK=1"),
    "no memory": (raising(MemoryError()), "memory"),
    "no memory for an array": (lambda: np.empty((10**6, 10**9)), "memory.*PiB"),
    "no memory for a tensor": (lambda: torch.empty(10**15), "memory"),
    "more than can be counted": (lambda: torch.empty(10**12, 10**12), "memory"),
    "no memory on a GPU": (raising(torch.OutOfMemoryError("CUDA out of memory: 2.00 GiB")), "memory.*2.00 GiB"),
    "too deep": (raising(RecursionError("maximum recursion depth exceeded")), "RecursionError.*KDLIB_TRACEBACK=1"),
    "a bug": (raising(AttributeError("'NoneType' object has no attribute 'x'")), "AttributeError.*KDLIB_TRACEBACK=1"),
    "another bug": (raising(RuntimeError("mat1 and mat2\nshapes")), "RuntimeError: mat1 and mat2 shapes"),
    "no package": (raising(ImportError('Run: pip install "kdlib[timm]".')), r"kdlib\[timm\]"),
    "an error without words": (raising(RuntimeError()), "RuntimeError.*KDLIB_TRACEBACK=1"),
    "a bomb": (raising(Image.DecompressionBombError("Image size exceeds limit")), "too large.*decoded"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_error_is_one_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, words = KINDS[name]
    monkeypatch.setattr(environment, "check", lambda *_: run())
    assert call("check") == 2
    line = said(capsys)
    assert line.startswith("kdlib: ")
    import re

    assert re.search(words, line), line


LOST_PEER = "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:30514"
NO_DOWNLOAD = "Could not get cifar10 (<urlopen error [Errno 104] Connection reset by peer>). Try again."


@pytest.mark.parametrize(
    ("processes", "error", "of_a_peer"),
    [
        ("2", RuntimeError(LOST_PEER), True),
        ("2", OSError(NO_DOWNLOAD), False),
        ("1", RuntimeError(LOST_PEER), False),
        (None, OSError(NO_DOWNLOAD), False),
        (None, RuntimeError(LOST_PEER), False),
    ],
)
def test_a_lost_connection_is_that_of_a_process_of_the_training_only_where_there_are_others(
    processes: str | None,
    error: Exception,
    of_a_peer: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if processes is not None:  # as torchrun does
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(environment, "check", raising(error))
    assert call("check") == 2
    line = said(capsys)
    assert ("Another process of this training" in line) == of_a_peer
    assert ("--resume" in line) == of_a_peer
    assert str(error) in line


def test_a_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(environment, "check", raising(AttributeError("deep inside")))
    monkeypatch.setenv("KDLIB_TRACEBACK", "1")
    assert call("check") == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "in check" in shown
    assert shown.splitlines()[-1].startswith("kdlib: ")


def test_an_error_that_is_meant_for_users_speaks_of_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", "no-such-model") == 2
    assert "KDLIB_TRACEBACK" not in said(capsys)


def test_the_command_of_the_study_ends_the_same_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdlib.study import plans

    monkeypatch.setattr(plans, "find", raising(AttributeError("deep inside")))
    assert call("--dry", main=command.main) == 2
    assert "AttributeError: deep inside" in said(capsys)


def test_a_name_is_not_opened_as_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", models.list_pretrained()[0], "--device", "gpu") == 2
    assert "no device 'gpu'" in said(capsys)


@pytest.mark.slow
def test_a_name_that_the_encoding_of_the_output_lacks_ends_no_command(tmp_path: Path) -> None:
    """On Windows stdout has the encoding cp1252 where it is redirected or piped."""
    place = tmp_path / "данные"
    shutil.copytree(Path(capstone.__file__).parent / "example", place)
    (place / "SHA256SUMS").write_text("")
    environ = {**os.environ, "KDLIB_DATA": str(place), "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    for module, *rest in (("kdlib", "check"), ("course.capstone", "check", str(place / "report.md"))):
        command = [sys.executable, "-m", module, *rest]
        done = subprocess.run(command, capture_output=True, env=environ, timeout=300)
        assert r"\u0434\u0430\u043d\u043d\u044b\u0435" in done.stdout.decode("cp1252"), done.stderr.decode("cp1252")
        assert not done.stderr
