"""Files are complete or absent, say why they could not be written, and run no code when they are opened."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pickle
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kdlib import files


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def no_large_files() -> Iterator[None]:
    """The kernel refuses files over 4,096 bytes: a real failure in the middle of writing, as on a full disk.

    No longer than the call that is tested: pytest's own output may go to a file that is larger already.
    """
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


# --- atomic_write


def test_hidden_files_are_found_by_their_own_name_alone(tmp_path: Path):
    for name in ("b.csv", "._b.csv", "a.csv", ".a.csv", "c.txt"):
        (tmp_path / name).touch()
    assert files.visible(tmp_path, "*.csv") == [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert files.visible(tmp_path, ".a.csv") == [tmp_path / ".a.csv"]
    assert files.visible(tmp_path / "nowhere", "*") == []


def test_atomic_write_makes_folders_and_leaves_only_the_file(tmp_path: Path):
    path = tmp_path / "a" / "b" / "c.txt"
    files.write_text(path, "grüße\n")
    assert path.read_bytes() == "grüße\n".encode()
    assert entries(path.parent) == ["c.txt"]
    files.write_text(str(path), "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_mount_on_which_no_mode_can_be_changed_is_written_to(tmp_path: Path, monkeypatch, code: int):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))  # a share of Azure or Windows, whose files are all of one owner

    monkeypatch.setattr(os, "chmod", refuse)
    files.write_text(tmp_path / "result.txt", "text")
    assert (tmp_path / "result.txt").read_text() == "text"
    assert entries(tmp_path) == ["result.txt"]


def test_text_is_the_same_bytes_on_every_system(tmp_path: Path, windows_lines: None):
    files.write_text(tmp_path / "a.csv", "a,b\n1,2\n")
    assert (tmp_path / "a.csv").read_bytes() == b"a,b\n1,2\n"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_points_to_is_written_and_the_link_stays(there: bool, tmp_path: Path):
    disk, link = tmp_path / "disk", tmp_path / "folder" / "result.txt"
    disk.mkdir()
    link.parent.mkdir()
    link.symlink_to(Path("..") / "disk" / "real.txt")
    if there:
        (disk / "real.txt").write_text("old")
    with files.atomic_write(link) as temporary:
        assert temporary.parent == disk  # a rename is only atomic within one file system
        temporary.write_text("new")
    assert link.is_symlink()
    assert (disk / "real.txt").read_text() == link.read_text() == "new"
    assert entries(disk) == ["real.txt"]
    assert entries(link.parent) == ["result.txt"]


def test_the_target_keeps_its_old_content_until_the_body_has_ended(tmp_path: Path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with files.atomic_write(path) as temporary:
        assert temporary.parent == path.parent  # a rename is only atomic within one file system
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), OSError(errno.EIO, "boom")])
def test_a_failure_leaves_the_old_content_and_no_temporary_file(tmp_path: Path, error: BaseException):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with files.atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["result.txt"]


def test_what_is_renamed_has_reached_the_disk_through_a_writable_handle(tmp_path: Path, monkeypatch):
    # Windows refuses to flush a handle that was opened for reading.
    fcntl = pytest.importorskip("fcntl")
    modes, steps = [], []

    def fsync(handle: int) -> None:
        steps.append("fsync")
        modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)

    def rename(old: Path, new: Path, real=os.replace) -> None:
        steps.append("rename")
        real(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    files.write_text(tmp_path / "a.txt", "text")
    assert steps == ["fsync", "rename"]
    assert modes[0] in (os.O_RDWR, os.O_WRONLY)
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path):
    (tmp_path / "taken").write_text("I am a file")
    for path in (tmp_path / "taken" / "a.txt", tmp_path / "taken" / "deeper" / "a.txt"):
        with pytest.raises(OSError, match="choose a folder you may write to") as caught:
            files.write_text(path, "text")
        assert str(path) in str(caught.value)
        assert "not a folder" in str(caught.value) or "Not a directory" in str(caught.value)
        assert "File exists" not in str(caught.value)
    assert (tmp_path / "taken").read_text() == "I am a file"


def test_a_folder_in_the_place_of_the_file_stays(tmp_path: Path):
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="Could not write .*taken: it is a folder.*Name a file in it"):
        files.write_text(tmp_path / "taken", "text")
    assert entries(tmp_path) == ["taken"]
    assert entries(tmp_path / "taken") == ["inside"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_an_operating_system_error_names_path_reason_and_remedy(tmp_path: Path, monkeypatch, code: int):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Free some space, or choose a folder") as caught:
        files.write_text(path, "new")
    assert caught.value.errno == code
    assert str(path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert "unchanged" in str(caught.value)
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["result.txt"]


def test_a_file_that_another_program_has_open_is_to_be_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Access is denied")  # Windows, of a table that is open in Excel

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Access is denied.* close the program that has it open"):
        files.write_text(tmp_path / "history.csv", "new")
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(OSError, match="choose a folder you may write to$"):  # no program is in the way of a folder
        files.write_text(tmp_path / "history.csv", "new")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk(tmp_path: Path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left on device") as caught, files.atomic_write(path):
        Path("/dev/full").write_text("text")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["result.txt"]


def test_text_that_does_not_fit(tmp_path: Path):
    path = tmp_path / "history.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="Could not write .*history.csv: File too large") as caught, no_large_files():
        files.write_text(path, "x" * 10_000)
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["history.csv"]


def test_tensors_that_do_not_fit(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    files.save_tensors(path, {"a": torch.ones(3)}, {"step": 1})
    with (
        pytest.raises(OSError, match="Could not write .*model.safetensors.*Free some space") as caught,
        no_large_files(),
    ):
        files.save_tensors(path, {"a": torch.ones(3_000)}, {"step": 2})
    assert caught.value.errno == errno.EFBIG  # safetensors hides the number in its text
    assert "None" not in str(caught.value)
    tensors, metadata = files.load_tensors(path)
    assert (metadata, tensors["a"].tolist()) == ({"step": 1}, [1, 1, 1])
    assert entries(tmp_path) == ["model.safetensors"]


# --- tensors


def hard_tensors() -> dict[str, torch.Tensor]:
    whole = torch.arange(24.0).view(2, 3, 4)
    return {
        "counter": torch.tensor(7),
        "nothing": torch.empty(0, 3),
        "truth": torch.tensor([True, False]),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "brain": torch.tensor([1.5, -3.0e38, float("inf"), float("nan")], dtype=torch.bfloat16),
        "half": torch.tensor([1.5, 6.1e-5], dtype=torch.float16),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "whole": whole,
        "part": whole[:, 1],
        "same": whole,
        "turned": whole.transpose(0, 2),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "trained": torch.nn.Parameter(torch.randn(3)),
    }


def test_tensors_come_back_exactly(tmp_path: Path):
    wanted = hard_tensors()
    assert not wanted["last"].is_contiguous()
    metadata = {"architecture": "resnet18", "accuracy": 0.931, "list": [1, None, "ü"]}
    files.save_tensors(tmp_path / "t.safetensors", wanted, metadata)
    found, text = files.load_tensors(tmp_path / "t.safetensors")
    assert text == metadata
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].nan_to_num(), tensor.detach().nan_to_num()), name
    assert torch.isnan(found["brain"]).tolist() == [False, False, False, True]
    assert entries(tmp_path) == ["t.safetensors"]


def test_tensors_that_shared_memory_do_not_share_it_afterwards(tmp_path: Path):
    files.save_tensors(tmp_path / "t.safetensors", hard_tensors(), {})
    found, _ = files.load_tensors(tmp_path / "t.safetensors")
    found["whole"].zero_()
    assert torch.equal(found["same"], torch.arange(24.0).view(2, 3, 4))


def test_changing_what_was_read_does_not_change_the_file(tmp_path: Path):
    files.save_tensors(tmp_path / "t.safetensors", {"a": torch.arange(4.0)}, {})
    files.load_tensors(tmp_path / "t.safetensors")[0]["a"].zero_()
    assert files.load_tensors(tmp_path / "t.safetensors")[0]["a"].tolist() == [0, 1, 2, 3]


def test_metadata_that_is_not_json_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "t.safetensors"
    files.save_tensors(path, {"a": torch.ones(1)}, {"fine": 1})
    with pytest.raises(TypeError):
        files.save_tensors(path, {"a": torch.zeros(1)}, {"bad": object()})
    assert files.load_tensors(path)[1] == {"fine": 1}
    assert entries(tmp_path) == ["t.safetensors"]


def test_a_safetensors_file_of_another_program_has_empty_metadata(tmp_path: Path):
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    for name in ("plain", "other"):
        tensors, metadata = files.load_tensors(tmp_path / f"{name}.safetensors")
        assert metadata == {}
        assert tensors["a"].tolist() == [1, 1]


def test_the_header_is_plain_json_that_other_tools_can_read(tmp_path: Path):
    files.save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)}, {"step": 3})
    content = (tmp_path / "t.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["a"]["shape"] == [2]
    assert json.loads(header["__metadata__"]["kdlib"]) == {"step": 3}


def assert_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="is not a readable safetensors file") as caught:
        files.load_tensors(path)
    text = str(caught.value)
    assert str(path) in text
    assert "truncated" in text
    assert "weights_only=True" in text


def test_every_truncation_is_refused(tmp_path: Path):
    path = tmp_path / "t.safetensors"
    files.save_tensors(path, {"a": torch.arange(8.0), "b": torch.ones(2)}, {"step": 1})
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 60, len(content) - 32, len(content) - 1):
        path.write_bytes(content[:length])
        assert_refused(path)
    path.write_bytes(content + b"\x00")
    assert_refused(path)


@pytest.mark.parametrize("text", ["", "epoch,loss\n1,0.5\n", "{}", "\x00" * 100])
def test_other_files_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "t.safetensors"
    path.write_text(text)
    assert_refused(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_refused_and_its_code_does_not_run(tmp_path: Path, legacy: bool):
    path, mark = tmp_path / "t.safetensors", tmp_path / "ran"
    torch.save({"a": Trap(mark)}, path, _use_new_zipfile_serialization=not legacy)
    assert_refused(path)
    assert not mark.exists()
    torch.load(path.rename(tmp_path / "t.pt"), weights_only=False)  # the trap works: it is the reading that was safe
    assert mark.exists()


def test_a_bare_pickle_is_refused_and_its_code_does_not_run(tmp_path: Path):
    path, mark = tmp_path / "t.safetensors", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Trap(mark)))
    assert_refused(path)
    assert not mark.exists()


def test_a_missing_file_and_a_folder(tmp_path: Path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no file .* Check the path"):
            files.load_tensors(path)


# --- fingerprint


def test_fingerprint_by_hand():
    import hashlib

    tensor = torch.tensor([1, 258], dtype=torch.int16)
    content = b"a torch.int16 (2,)" + bytes([1, 0, 2, 1]) + b"('more', 3)"
    assert files.fingerprint({"a": tensor}, "more", 3) == hashlib.sha256(content).hexdigest()


def test_fingerprint_differs_when_anything_that_matters_differs():
    base = torch.arange(6.0).view(2, 3)
    changed = base.clone()
    changed[1, 2] = 5.0000005
    variants = [
        files.fingerprint({"a": base}),
        files.fingerprint({"b": base}),
        files.fingerprint({"a": changed}),
        files.fingerprint({"a": base.view(3, 2)}),
        files.fingerprint({"a": base.view(6)}),
        files.fingerprint({"a": base.double()}),
        files.fingerprint({"a": base.view(torch.int32)}),
        files.fingerprint({"a": base}, "more"),
        files.fingerprint({"a": base}, None),
        files.fingerprint({"a": base, "b": changed}),
        files.fingerprint({"b": changed, "a": base}),
        files.fingerprint({"a": changed, "b": base}),
        files.fingerprint([base, changed]),
        files.fingerprint([changed, base]),
        files.fingerprint([base]),
        files.fingerprint([]),
        files.fingerprint([torch.tensor(0.0)]),
        files.fingerprint([torch.tensor(-0.0)]),
        files.fingerprint([torch.zeros(1)]),
        files.fingerprint([torch.zeros(0)]),
    ]
    assert len(set(variants)) == len(variants)


def test_fingerprint_ignores_strides_and_gradients():
    images = torch.randn(2, 3, 4, 5)
    assert files.fingerprint([images]) == files.fingerprint([images.to(memory_format=torch.channels_last)])
    assert files.fingerprint([images]) == files.fingerprint([images.clone().requires_grad_()])
    assert files.fingerprint([images[::2]]) == files.fingerprint([images[::2].contiguous()])
    assert files.fingerprint([images.mT]) == files.fingerprint([images.mT.contiguous()])


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.integers(0, 255), min_size=1, max_size=20), position=st.integers(0, 19), by=st.integers(1, 255)
)
def test_fingerprint_sees_any_single_byte(values: list[int], position: int, by: int):
    tensor = torch.tensor(values, dtype=torch.uint8)
    other = tensor.clone()
    other[position % len(values)] += by
    assert files.fingerprint([tensor]) == files.fingerprint([tensor.clone()])
    assert files.fingerprint([tensor]) != files.fingerprint([other])


def test_a_lock_is_waited_for_longer_than_windows_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [PermissionError(errno.EACCES, "held"), OSError(errno.EDEADLK, "ten tries"), None]

    def pretend(handle: int, *, wait: bool) -> None:
        if (error := answers.pop(0)) is not None:
            raise error

    monkeypatch.setattr(files, "_lock_file", pretend)
    handle = files._acquire(tmp_path / ".lock", "busy", True)
    assert handle is not None
    os.close(handle)
    assert not answers


def test_a_lock_is_held_where_windows_cannot_tell_files_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def locking(handle: int, mode: int, count: int) -> None:
        tries.append(mode)
        assert len(tries) < 4, "it would try for ever"

    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="win32", stderr=sys.stderr))
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_LOCK=1, LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(os.path, "samestat", lambda *pair: False)
    with files.lock(tmp_path / ".lock", "busy"):
        assert len(tries) == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_what_was_read_does_not_hold_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.save_tensors(path, {"w": torch.zeros(100_000)}, {})
    tensors, _ = files.load_tensors(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert tensors["w"].sum() == 0


def test_windows_says_which_processes_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exit_codes, errors, opened = {10: 259, 20: 1}, {30: 5, 40: 87}, []  # at work, ended; of another user, none

    def open_process(access: int, inherit: bool, process: int) -> int | None:
        assert access == 0x1000  # to ask, and not to end it
        if process not in exit_codes:
            monkeypatch.setattr(ctypes, "get_last_error", lambda: errors[process], raising=False)
            return None
        opened.append(process)
        return process

    def exit_code(handle: int, code: Any) -> None:
        code._obj.value = exit_codes[handle]

    kernel = SimpleNamespace(OpenProcess=open_process, GetExitCodeProcess=exit_code, CloseHandle=opened.remove)
    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="win32", stderr=sys.stderr))
    monkeypatch.setattr(ctypes, "WinDLL", lambda name, **options: kernel, raising=False)
    monkeypatch.setattr(os, "kill", lambda *given: pytest.fail("there it ends a process"))
    assert [files.is_alive(process) for process in (10, 20, 30, 40)] == [True, False, True, False]
    assert not opened
    for process in (10, 20):
        (tmp_path / f".a.txt.{files.HOST}-{process}.x.tmp").touch()
    files.sweep(tmp_path / "a.txt")
    assert entries(tmp_path) == [f".a.txt.{files.HOST}-10.x.tmp"]


def test_what_cannot_be_swept_costs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows another program may have it open, one that looks for viruses, say."""
    left = tmp_path / f".a.txt.{files.HOST}-12345.x.tmp"
    left.touch()
    unlink = Path.unlink

    def refuse(path: Path, **options: Any) -> None:
        if path == left:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        unlink(path, **options)

    monkeypatch.setattr(files, "is_alive", lambda process: False)
    monkeypatch.setattr(Path, "unlink", refuse)
    files.write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows is asked in another way")
def test_the_file_of_a_process_of_another_user_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / f".a.txt.{files.HOST}-12345.x.tmp"
    left.write_text("being written")

    def kill(process: int, signal: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "kill", kill)
    files.sweep(tmp_path / "a.txt")
    assert left.exists()


def test_a_temporary_file_bears_the_name_of_this_machine(tmp_path: Path) -> None:
    """In a folder that several machines share, none sweeps the files of another's processes."""
    name = re.sub(r"\W", "_", platform.node())
    with files.atomic_write(tmp_path / "a.txt") as temporary:
        assert temporary.name.startswith(f".a.txt.{name}-{os.getpid()}.")


@pytest.mark.slow
def test_the_checksum_of_a_large_file_sees_its_end(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    with path.open("wb") as file:
        file.truncate(2050 * 65_536)  # no bytes are stored for it; every other block is read
    before = files.checksum(path)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert files.checksum(path) != before
