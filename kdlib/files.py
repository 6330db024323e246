"""Files that are either complete or absent, and that never run code when they are opened.

Everything is written to a temporary name in the same folder and renamed, so a crash, a full disk or a kill
leaves the previous file as it was. Tensors are stored as safetensors with their metadata in the header.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdlib import schemas
from kdlib.errors import few

# A folder may be shared by several machines, whose processes are not ours.
HOST = re.sub(r"\W", "_", platform.node()) or "host"


def sweep(path: Path) -> None:
    """Remove what killed processes left beside a file: the temporary files of those that are no more."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{HOST}-*.tmp"):
        owner = left.name.removeprefix(f".{path.name}.{HOST}-").partition(".")[0]
        if owner.isdigit() and not is_alive(int(owner)):
            with suppress(OSError):  # on Windows another program may have it open; what is left stays
                left.unlink()


def visible(folder: Path, pattern: str) -> list[Path]:
    """What a folder holds of this pattern, by name, without hidden names unless the pattern is one.

    macOS writes a ._NAME beside each file on a disk or in an archive that has no place for what it notes of it.
    """
    return sorted(path for path in folder.glob(pattern) if pattern.startswith(".") or not path.name.startswith("."))


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there."""
    if sys.platform == "win32":  # where os.kill would end it
        import ctypes

        query_limited_information, access_denied, still_active = 0x1000, 5, 259  # by their names in Windows' headers
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        handle = kernel.OpenProcess(query_limited_information, False, process)
        if not handle:
            return ctypes.get_last_error() == access_denied  # of another user
        exit_code = ctypes.c_uint32(still_active)
        kernel.GetExitCodeProcess(handle, ctypes.byref(exit_code))  # one that has ended may be held open by another
        kernel.CloseHandle(handle)
        return exit_code.value == still_active
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)  # there is no way to ask for it but to set it
    os.umask(mask)
    return mask


UMASK = _umask()  # once, while there is one thread: in between, another thread's files would be open to all


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on failure it is removed.

    A link stays, and the file that it points to is written. Raises OSError with the reason and what to do when the
    folder cannot be written or the disk is full; what stood at `path` before is then unchanged.
    """
    path = Path(path)
    if path.is_symlink():  # not replaced; the temporary file lies on the disk that it points to
        path = Path(os.path.realpath(path))
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():  # root could replace /dev/null by a file
            raise OSError(errno.EINVAL, "it is a device or a pipe")
        sweep(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.{HOST}-{os.getpid()}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("r+b") as written:  # Windows does not flush a file that is open for reading only
            os.fsync(written.fileno())
        with suppress(OSError):  # where a mount sets owner and mode for all files, none can be changed
            os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp makes files private; results are as shared as other files
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, FileExistsError):  # by mkdir: "File exists" would puzzle who asked for this file
            reason = f"{path.parent} is not a folder"
        advice = "Free some space, or choose a folder you may write to"
        if path.is_dir():
            reason, advice = "it is a folder", "Name a file in it"
        if isinstance(error, PermissionError) and temporary is not None:  # by Windows, of a table that is open in Excel
            advice += ", or close the program that has it open"
        raise OSError(
            error.errno, f"Could not write {path}: {reason}. Whatever stood there before is unchanged. {advice}"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def lock(path: str | Path, busy: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file inside the block; it is released when the process ends, however it ends.

    busy: what to say if another process holds it: by default as the OSError that is raised, with `wait` on stderr,
    once, before this one waits ("" says nothing). Where the file system has no locks, or the folder cannot be written,
    nothing is held.
    """
    handle = _acquire(Path(path), busy, wait)
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):  # Windows does not remove an open file
                Path(path).unlink(missing_ok=True)
            os.close(handle)


def _acquire(path: Path, busy: str, wait: bool) -> int | None:
    said = False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            _lock_file(handle, wait=wait and said)
        except (BlockingIOError, PermissionError) as error:
            os.close(handle)
            if not wait:
                raise OSError(errno.EBUSY, busy) from error
            if busy and not said:
                print(busy, file=sys.stderr)
            said = True
            continue
        except OSError as error:
            os.close(handle)
            if wait and error.errno == errno.EDEADLK:  # Windows gives up after ten seconds; it is held all the same
                continue
            return None  # no locks here
        # Who held it before has removed the file: then this lock is one on a file that nobody else will find. Windows
        # removes no file that anybody holds, and some of its file systems cannot tell whether two files are one.
        if sys.platform == "win32" or (path.exists() and _same_file(handle, path)):
            return handle
        os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def _lock_file(handle: int, *, wait: bool) -> None:
    """Raise BlockingIOError or PermissionError if another process holds it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def checksum(path: str | Path) -> str:
    """A hash of a file's size and contents; of a large file, of 64 MB of it in evenly spaced blocks."""
    path, block = Path(path), 1 << 16
    size = path.stat().st_size
    starts = range(0, size, block)
    step = max(1, len(starts) // 1024)
    sha = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for start in (*starts[::step], max(0, size - block)):
            file.seek(start)
            sha.update(file.read(block))
    return sha.hexdigest()


def ensure_writable(path: str | Path) -> None:
    """Make a folder and prove that it can be written to; OSError, with the reason, if it cannot."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as proof:  # it has no name, so a kill leaves nothing
            proof.write(b"x")
    except OSError as error:
        # By mkdir: "File exists" would puzzle who asked for a folder.
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror or error
        raise OSError(
            error.errno, f"Could not write to {path}: {reason}. Free some space, or choose a folder you may write to"
        ) from error


def refuse_unwritable(path: str | Path) -> None:
    """Raise OSError, with the reason, for a folder that could not be made or written to; nothing is written."""
    there = Path(path).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"Could not write to {path}: {there} is not a folder. Choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"Could not write to {path}: {there} may not be written to. Choose another")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with its line ends as they are, completely or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata to one safetensors file, completely or not at all.

    Raises ValueError for what is no tensor.
    """
    refuse_extra_state(tensors)
    # Two names may share one storage (tied weights), and channels_last is a stride that the format cannot hold.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            save_file(plain, temporary, metadata={"kdlib": json.dumps(metadata, default=_plain_number)})
        except SafetensorError as error:  # safetensors hides the operating system's error in its text
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def is_description(value: Any) -> bool:
    """Whether `save_tensors` can write this beside its tensors."""
    try:
        json.dumps(value, default=_plain_number)
    except (TypeError, ValueError, RuntimeError):  # of no JSON; of one that holds itself; of tensors of several numbers
        return False
    return True


def _plain_number(value: Any) -> Any:
    """What JSON can hold of a number of NumPy's or a tensor of one; TypeError, which names it, for anything else."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"A description holds texts, numbers, lists and dictionaries of them; got {value!r}.")


def refuse_extra_state(tensors: Mapping[str, Any]) -> None:
    """Raise ValueError where a module's state holds what is no tensor, and so has no place in a file of them."""
    others = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"A file of weights and a checkpoint hold tensors only, and {few(others)} is none: a module gives it by "
            "get_extra_state. Keep it in a buffer (register_buffer), or leave it out of the module's state."
        )


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: the tensors on the CPU, and the metadata ({} in a file of another program).

    Raises FileNotFoundError, or ValueError for a truncated file, a pickle or anything else that is not
    safetensors. Nothing in the file is executed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the path, or train the model first.")
    try:
        with safe_open(path, framework="pt") as file:
            # Copies: Windows replaces no file that is mapped, and an optimiser keeps what it is given.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = schemas.read_json((file.metadata() or {}).get("kdlib", "{}"))
            schemas.check("its description", metadata, {})
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}). It may be truncated, or written by torch.save: "
            "pickles are not opened because they can run code. Copy it again; or give a pickle the ending .pt and "
            "convert it with safetensors.torch.save_file(torch.load('x.pt', weights_only=True), 'x.safetensors')."
        ) from error
    return tensors, metadata


def fingerprint(tensors: Mapping[str, Tensor] | list[Tensor], *more: object) -> str:
    """A sha256 over the values, names and types of tensors and the text of `more`, addresses in memory left out."""
    named = tensors.items() if isinstance(tensors, Mapping) else enumerate(tensors)
    sha = hashlib.sha256()
    for name, tensor in named:
        if not isinstance(tensor, Tensor):  # what a module's get_extra_state gives
            sha.update(f"{name} {_text(tensor)}".encode())
            continue
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # reshape before view: a zero-dimensional tensor (BatchNorm's counter) has no last dimension to view
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    sha.update(_text(more).encode())
    return sha.hexdigest()


def _text(value: object) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # of a function, say: the next process has another
