"""What each run measured after each of its epochs, in a file beside the CSV file of the runs, for curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdlib import files
from kdlib.errors import unknown_name

COLUMNS = ("loss", "validation_loss", "validation_accuracy")


class HistoryFile:
    """The epochs of the runs of a CSV file: under a run's fingerprint one row an epoch, with the values of COLUMNS."""

    def __init__(self, runs_path: Path) -> None:
        """runs_path: the CSV file, which need not exist. Raises ValueError for a damaged file beside it."""
        self.path = runs_path.with_suffix(".history.safetensors")
        self._tensors: dict[str, Tensor] = files.load_tensors(self.path)[0] if self.path.exists() else {}
        if any(tensor.ndim != 2 or tensor.shape[1] != len(COLUMNS) for tensor in self._tensors.values()):
            raise ValueError(
                f"{self.path} does not hold {', '.join(COLUMNS)} for each epoch of each run. Restore it, or move it "
                "away: the runs themselves are in the CSV file beside it."
            )

    def add(self, fingerprint: str, epochs: Sequence[Mapping[str, float]]) -> None:
        """Write the epochs of one more run, rows as `train.Result.rows` has them."""
        values = [[epoch[name] for name in COLUMNS] for epoch in epochs]
        self._tensors |= {fingerprint: torch.tensor(values, dtype=torch.float64)}
        files.save_tensors(self.path, self._tensors, {})

    def values(self, fingerprint: str, column: str) -> list[float] | None:
        """A column of a run, from the first epoch to the last; None for a run whose epochs are not known.

        Raises ValueError, with near matches, for a column that is not in COLUMNS.
        """
        if column not in COLUMNS:
            raise unknown_name("column of the history", column, COLUMNS)
        epochs = self._tensors.get(fingerprint)
        return None if epochs is None else epochs[:, COLUMNS.index(column)].tolist()
