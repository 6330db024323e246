"""Files that are either complete or absent, and that never run code when they are opened.

Everything is written to a temporary name in the same folder and renamed, so a crash, a full disk or a kill
leaves the previous file as it was. Tensors are stored as safetensors with their metadata in the header.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on failure it is removed.

    Raises OSError with the reason and what to do when the folder cannot be written or the disk is full; what
    stood at `path` before is then unchanged.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("r+b") as written:  # Windows does not flush a file that is open for reading only
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files private; results are meant to be shared
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, FileExistsError):  # by mkdir: "File exists" would puzzle who asked for this file
            reason = f"{path.parent} is not a folder"
        raise OSError(
            error.errno,
            f"Could not write {path}: {reason}. Whatever stood there before is unchanged. "
            "Free some space, or choose a folder you may write to",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def ensure_writable(path: str | Path) -> None:
    """Make a folder and prove that it can be written to; OSError, with the reason, if it cannot."""
    with atomic_write(Path(path) / ".writable"):
        pass
    (Path(path) / ".writable").unlink(missing_ok=True)  # another process may have removed it


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, completely or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata to one safetensors file, completely or not at all."""
    # Two names may share one storage (tied weights), and channels_last is a stride that the format cannot hold.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            save_file(plain, temporary, metadata={"kdlib": json.dumps(metadata)})
        except SafetensorError as error:  # safetensors hides the operating system's error in its text
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = json.loads((file.metadata() or {}).get("kdlib", "{}"))
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
