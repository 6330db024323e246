"""Where the older list with 10,000 images lies, with the grid of alpha and T that rests on it."""

from __future__ import annotations

from pathlib import Path

from kdlib.data import data_dir


def folder() -> Path:
    """The folder of the rows whose settings an older search chose: eleven trials of each method, with one seed."""
    return data_dir() / "results" / "older-search"
