"""The files of a cache: built by one job at a time, complete or not there, and mapped into memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdlib import distributed
from kdlib.files import checksum, lock, write_text


@contextmanager
def building(directory: Path) -> Iterator[None]:
    """Only one job at a time builds a cache in this folder; the first of its processes holds the lock for all.

    It removes what this build, if it failed, or an earlier one that was killed, left unfinished.
    """
    busy = f"Another run is building the cache in {directory}: this one waits, and then uses it."
    main = distributed.rank() == 0
    with lock(directory / ".lock", busy, wait=True) if main else nullcontext():
        distributed.barrier()
        try:
            yield
        finally:
            if main:
                _remove_unfinished(directory)
        distributed.barrier()


def allocate(directory: str | Path | None, name: str, shape: tuple[int, ...], half: bool) -> Tensor:
    """Room for outputs of this shape: in memory, or in a file of the directory that all processes write to."""
    if directory is None:
        empty = torch.empty if distributed.world_size() == 1 else torch.zeros  # the shards of several are added up
        return empty(shape, dtype=torch.float16 if half else torch.float32)
    path = _file(directory, name)
    if distributed.rank() > 0:
        distributed.barrier()
        return torch.from_numpy(np.lib.format.open_memmap(_unfinished(path), "r+"))
    array = _create(path, shape, np.dtype(np.float16 if half else np.float32))
    distributed.barrier()
    return torch.from_numpy(array)


def finish(directory: Path | None, stored: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Bring together the outputs of all processes."""
    if directory is None:
        for values in stored.values():
            distributed.all_reduce(values)
        return
    names = list(stored)
    stored.clear()  # closes the files: Windows renames no open one
    distributed.barrier()
    if distributed.rank() == 0:
        files = {}
        for name in names:
            path = _file(directory, name)
            os.replace(_unfinished(path), path)
            files[path.name] = checksum(path)
        # Last: it says "complete".
        write_text(directory / "cache.json", json.dumps({**metadata, "files": files}, indent=1))
    distributed.barrier()


def map_file(directory: Path, name: str, size: tuple[int, int], half: bool, checksums: Any) -> np.ndarray:
    """The outputs in a file, after their form and a checksum were compared with what was written."""
    path = _file(directory, name)
    # "r": a writable map counts in full as memory, and a cache may be larger than that. Not a tensor: writing to one
    # that is mapped so would kill the process; NumPy refuses. Unlike np.load it opens no pickle.
    array = np.lib.format.open_memmap(path, "r")
    if array.shape[:2] != size or array.dtype != (np.float16 if half else np.float32):
        raise ValueError(
            f"{path.name} holds {array.shape} of {array.dtype}, not {size[0]} views of {size[1]} samples in "
            f"{16 if half else 32} bits"
        )
    if not isinstance(checksums, dict) or checksums.get(path.name) != checksum(path):
        raise ValueError(f"{path.name} is not what was written: its checksum differs")
    return array


def _file(directory: str | Path, name: str) -> Path:
    return Path(directory) / (f"layer-{name}.npy" if name else "logits.npy")  # a layer may be called "logits"


def _unfinished(path: Path) -> Path:
    """Where a file lies while it is built: a finished one may be mapped by another run, and is never written to."""
    return path.with_name(f"unfinished-{path.name}")


def _remove_unfinished(directory: Path) -> None:
    for path in directory.glob(_unfinished(directory / "*.npy").name):
        with suppress(OSError):  # Windows removes no file that is still mapped
            path.unlink()


def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    unfinished = _unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(unfinished, "w+", dtype, shape)  # and closed: the error of a full disk keeps no map
        _reserve(unfinished)
        array = np.lib.format.open_memmap(unfinished, "r+")
    except OSError as error:
        size = math.prod(shape) * dtype.itemsize / 1e6
        raise OSError(
            error.errno,
            f"Could not write {path} ({size:,.0f} MB): {error.strerror}. Free some space or choose another folder",
        ) from error
    return array


def _reserve(path: Path) -> None:
    # A new memory map is a hole: on a full disk the first write to it would kill the process, without a message.
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
