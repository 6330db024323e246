"""The memory that the C library keeps: what one training step frees, the next one asks for again."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

# glibc's environment variables, which it reads as a process starts; for this process, mallopt's parameters (malloc.h),
# and bytes, the largest first: an older glibc refuses a first threshold above 32 MiB, and one that was refused beside a
# second one that was taken would be worse than none.
_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, (64 * 2**20, 32 * 2**20)),
    "MALLOC_TRIM_THRESHOLD_": (-1, (512 * 2**20,)),
}


def keep_freed_memory() -> None:
    """Let glibc keep up to half a gigabyte of freed memory, in this process and in those that it starts.

    By default it gives most of it back, and gets it again page by page, each filled with zeros by the kernel: two
    trainings of a ResNet-8 side by side, on two cores, took 1.4 times as long. A variable of these, or GLIBC_TUNABLES,
    that is set already stays as it is. Without glibc (macOS, Windows, Alpine) nothing happens.
    """
    # Elsewhere libc_ver opens Python's own file, which from Microsoft's store is an empty one that cannot be opened.
    if (
        sys.platform != "linux"
        or platform.libc_ver()[0] != "glibc"
        or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    ):
        return
    mallopt = ctypes.CDLL(None).mallopt
    for variable, (parameter, sizes) in _SETTINGS.items():
        if variable not in os.environ:
            taken = next((size for size in sizes if mallopt(parameter, size)), None)
            if taken is None:
                return
            os.environ[variable] = str(taken)
