"""Paths on a command line."""

from __future__ import annotations

from pathlib import Path


def expand_user(path: Path | None) -> Path | None:
    """A path with the ~ that a shell left in it: in quotes, and in some shells behind an equals sign as well."""
    return path and path.expanduser()
