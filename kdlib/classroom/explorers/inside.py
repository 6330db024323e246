"""What explorers that look inside networks need: some pictures, the layers' outputs for them, and snapshots."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from kdlib import data, devices
from kdlib.classroom import plots
from kdlib.data import Batch, DataSet
from kdlib.taps import Answer
from kdlib.teachers import Frozen

ROLES = {role.label: role for role in (plots.TEACHER, plots.STUDENT, plots.DISTILLED)}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Some pictures of the validation split, sorted by class.

    batches: as networks see them. shown: N x H x W, or N x H x W x 3, in [0, 1]. labels: of each picture. places: in
    the split. classes: their names.
    """

    batches: tuple[Batch, ...]
    shown: np.ndarray
    labels: tuple[int, ...]
    places: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def of_class(self, name: str | None = None) -> tuple[int, ...]:
        """The numbers of the pictures of a class, or of all."""
        every = range(len(self))
        return tuple(i for i in every if name is None or self.classes[self.labels[i]] == name)


def pictures(dataset: DataSet | None, per_class: int) -> Pictures:
    """The first pictures of each class in the validation split of a data set, Fashion-MNIST unless another is given.

    Raises ValueError where not even one of each class is asked for.
    """
    if per_class < 1:
        raise ValueError(f"per_class is at least 1; got {per_class}.")
    dataset = data.load("fashion-mnist") if dataset is None else dataset
    split = dataset.validation
    places = torch.cat([(split.labels == c).nonzero()[:per_class, 0] for c in range(dataset.num_classes)])
    batches = tuple(split.batches(100, places=places))
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (split.mean, split.std))
    shown = (torch.cat([batch.images for batch in batches]) * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    shown = shown[..., 0] if shown.shape[-1] == 1 else shown
    return Pictures(batches, shown, tuple(split.labels[places].tolist()), tuple(places.tolist()), dataset.classes)


def asked(model: nn.Module, layers: Sequence[str], chosen: Pictures) -> Iterator[Answer]:
    """What a network says to the pictures, batch by batch, in eval mode and float32 on the CPU.

    The network comes back as it was. Raises ValueError for an unknown layer, and for a network that cannot take these
    pictures.
    """
    frozen = Frozen(model)
    with frozen.opened(layers, devices.choose("cpu", "fp32")):
        for batch in chosen.batches:
            try:
                yield frozen(batch)
            except RuntimeError as error:
                shape = " x ".join(map(str, batch.images.shape[1:]))
                raise ValueError(f"A {type(model).__name__} cannot take pictures of {shape}: {error}.") from error


def role(name: str, number: int) -> plots.Role:
    """How a network is drawn: its own role where its name has one, else one of those for what has none."""
    return ROLES.get(name, plots.CYCLE[number % len(plots.CYCLE)])


class Snapshots(dict[str, nn.Module]):
    """A network at several moments of its training, by name: a dictionary that fills itself.

        film = explorers.Snapshots(student)           # keeps "epoch 0", before training
        film.take(3)                                  # keeps a copy of the student as it is now, as "epoch 3"

    The copies do not change when the student is trained on.
    """

    def __init__(self, student: nn.Module, unit: str = "epoch") -> None:
        super().__init__()
        self.student, self.unit = student, unit
        self._blank = copy.deepcopy(student).cpu()  # now: later, hooks of the training would be copied as well
        self.take(0)

    def take(self, moment: int) -> None:
        """Keep a copy of the student as it is now, under the name "epoch 3" for moment 3."""
        self(moment, self.student)

    def __call__(self, moment: int, student: nn.Module) -> None:
        """The same for a training loop that calls back with the number of the epoch and the student."""
        kept = copy.deepcopy(self._blank)
        kept.load_state_dict(student.state_dict())
        self[f"{self.unit} {moment}"] = kept.eval()


class Scale:
    """A colour bar whose numbers change in place: matplotlib's own would be made anew each time."""

    def __init__(self, axes: Any, label: str) -> None:
        self.axes = axes
        self.axis = axes.yaxis  # the artist that changes
        axes.imshow(np.linspace(0, 1, 256)[:, None], aspect="auto", origin="lower", extent=(0, 1, 0, 1))
        axes.set(xticks=[], ylabel=label, xlim=(0, 1), ylim=(0, 1))
        axes.grid(visible=False)
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
        self.show(0.001, 0.016)  # the widest numbers, so that there is room for them

    def show(self, low: float, high: float, label: str = "") -> None:
        """Write the values at the ends and in the middle, and if it changes what they are."""
        digits = max(0, 2 - math.floor(math.log10(max(abs(low), abs(high))))) if low or high else 0
        ticks = (low, (low + high) / 2, high)
        self.axes.set_yticks([0, 0.5, 1], [f"{tick:.{min(digits, 4)}f}" for tick in ticks])
        if label:
            self.axes.set_ylabel(label)
