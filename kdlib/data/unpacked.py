"""Unpacked images in a file that is mapped: processes of one machine share a single copy in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdlib.files import atomic_write


def mapped(
    name: str, sha256: str, shapes: Sequence[tuple[int, ...]], folders: Sequence[Path], unpack: Callable[[], Tensor]
) -> list[Tensor]:
    """Tensors of bytes with these shapes, which lie one after the other in a file of this name.

    The file is looked for in the folders, verified by its sha256, and written to the first that can be written. Where
    none can, the tensors are in this process's own memory. unpack: gives the bytes as a flat tensor. What is written
    into a tensor reaches neither the file nor another process.
    """
    for folder in folders:
        found = _open(folder / name, sha256, shapes)
        if found:
            return found
    content = unpack()
    if hashlib.sha256(content.numpy().data).hexdigest() == sha256:
        for folder in folders:
            found = _open(folder / name, sha256, shapes) or _write(folder / name, content, sha256, shapes)
            if found:
                return found
    sizes = [int(np.prod(shape)) for shape in shapes]
    return [part.view(shape).clone() for part, shape in zip(content.split(sizes), shapes, strict=True)]


def _write(path: Path, content: Tensor, sha256: str, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            file.write(content.numpy().data)
    except OSError:  # no permission, no room, or Windows, where another process has the file mapped
        pass
    return _open(path, sha256, shapes)


def _open(path: Path, sha256: str, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The tensors in a file, or [] if it is not the one that is meant."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return []
        # Read, and not mapped: what is looked at through the map would count as this process's own memory.
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return []
            tensors, start = [], 0
            for shape in shapes:
                # "c" copies on writing. torch warns about arrays that cannot be written.
                array = np.memmap(file, np.uint8, mode="c", offset=start, shape=shape)
                tensors.append(torch.from_numpy(array))
                start += array.size
            return tensors
    except (OSError, ValueError):
        return []
