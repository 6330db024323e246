"""A folder for the files that a lesson writes; it is gone when the notebook's kernel ends.

out = scratch.folder()
"""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory


@functools.cache
def _temporary() -> TemporaryDirectory[str]:
    # A library that was loaded from there cannot be removed on Windows.
    return TemporaryDirectory(prefix="kdlib-lesson-", ignore_cleanup_errors=True)


def folder() -> Path:
    """This process's scratch folder, always the same one."""
    return Path(_temporary().name)
