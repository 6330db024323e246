"""Copies of a student at several steps of its training."""

from __future__ import annotations

import copy

from torch import nn


class Snapshots(dict[str, nn.Module]):
    """Copies of a student by name, "epoch 0" before training and "epoch 3" after the third epoch.

        snapshots = explorers.Snapshots(student)      # keeps "epoch 0"
        train.fit(student, fashion, ..., on_epoch_end=snapshots)
        snapshots.add(3)                              # in a loop of one's own: keeps the student as it is now

    unit: the first word of the names, such as "step". The copies do not change when the student is trained further.
    """

    def __init__(self, student: nn.Module, unit: str = "epoch") -> None:
        super().__init__()
        self.student, self.unit = student, unit
        self._template = copy.deepcopy(student).cpu()  # later copies would include the hooks of a training
        self.add(0)

    def add(self, step: int) -> None:
        """Keep a copy of the student as it is now."""
        self(step, self.student)

    def __call__(self, step: int, student: nn.Module) -> None:
        """Keep a copy of a student; this is the signature of `on_epoch_end`."""
        snapshot = copy.deepcopy(self._template)
        snapshot.load_state_dict(student.state_dict())
        self[f"{self.unit} {step}"] = snapshot.eval()
