"""The losses of a training run: read from the device now and then, averaged over each epoch, and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import devices, distributed
from kdlib.errors import few

# What a row of the history has beside the terms of the method.
COLUMNS = frozenset({"epoch", "seconds", "images", "loss", "train_accuracy", "validation_loss", "validation_accuracy"})
LABELLED = "labels: how many"  # among the values of a step: how many there are, over which its accuracy is a mean


class TrainingLog:
    """Collects the values of each step, and refuses what is not finite.

    To read a value is to wait for an accelerator: there, values are read every 50 steps. On a CPU nothing waits, so a
    loss that is not finite is seen before it reaches the weights.
    total_steps: of the run, for messages. diverged: makes the error from what was seen.
    """

    def __init__(self, device: torch.device, total_steps: int, diverged: Callable[[str], FloatingPointError]) -> None:
        self.checks_every_step = device.type == "cpu"
        self.read_every = 10 if self.checks_every_step else 50
        self.total_steps = total_steps
        self.sums: dict[str, float] = {}  # over the images of this epoch, and under "images: NAME" how many those were
        self._diverged = diverged
        self._pending: list[tuple[int, int, dict[str, Tensor]]] = []

    def check_step(self, step: int, values: dict[str, Tensor], parts: Callable[[], Mapping[str, Any]]) -> None:
        """Refuse a loss that is not finite before the weights are updated, where that costs nothing.

        parts: those of the batch by name, its inputs, labels and masked logits; asked for only where the loss is not
        finite.
        """
        if self.checks_every_step:
            self._refuse_non_finite(step, values, parts)

    def append(self, step: int, images: int, values: dict[str, Tensor]) -> None:
        """Take the values of one step over so many images."""
        self._pending.append((step, images, values))

    @property
    def is_full(self) -> bool:
        """Whether it is time to read."""
        return len(self._pending) >= self.read_every

    def read(self) -> float | None:
        """Bring the pending values to the CPU, at once, and add them up; the last loss, None if nothing is pending."""
        if not self._pending:
            return None
        numbers = iter(torch.stack([one for *_, values in self._pending for one in values.values()]).tolist())
        for step, images, tensors in self._pending:
            values = {name: next(numbers) for name in tensors}  # a batch without labels has fewer
            labelled = values.pop(LABELLED, images)  # tokens and pixels count each
            self._refuse_non_finite(step, values)
            for name, value in values.items():
                count = labelled if name == "train_accuracy" else images
                if count == 0:
                    continue
                # A checkpoint of before has no counts: all its images had every value.
                before = self.sums.get("images", 0.0) if name in self.sums else 0.0
                self.sums[f"images: {name}"] = self.sums.get(f"images: {name}", before) + count
                self.sums[name] = self.sums.get(name, 0.0) + value * count
            self.sums["images"] = self.sums.get("images", 0.0) + images
        self._pending.clear()
        return values["loss"]

    def epoch_means(self) -> dict[str, float]:
        """The means over all images of the epoch and all processes; the next epoch begins with nothing.

        A value that some batches do not have is the mean over the images of the others.
        """
        sums = distributed.all_reduce_values(self.sums)
        self.sums = {}
        names = [name for name in sums if name != "images" and not name.startswith("images: ")]
        return {name: sums[name] / sums.get(f"images: {name}", sums["images"]) for name in names}

    def _refuse_non_finite(
        self, step: int, values: dict[str, Any], parts: Callable[[], Mapping[str, Any]] | None = None
    ) -> None:
        if math.isfinite(values["loss"]):
            return
        terms = {name: float(value) for name, value in values.items() if name not in ("loss", "train_accuracy")}
        shown = ", ".join(f"{name} = {value:.4g}" for name, value in terms.items())
        bad = [name for name, part in (parts() if parts else {}).items() if not _is_finite(part)]
        seen = f" Not finite in this batch: {' and '.join(bad)}." if bad else ""
        raise self._diverged(f"The loss is not finite at step {step} of {self.total_steps}: {shown}.{seen}")

    def refuse_non_finite_weights(self, step: int, *modules: nn.Module) -> None:
        """Refuse weights that are not finite: a finite loss can have a gradient that is not."""
        learned = ((name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad)
        statistics = ((name, b) for module in modules for name, b in module.named_buffers() if "running_" in name)
        bad = [name for name, tensor in chain(learned, statistics) if not bool(tensor.detach().isfinite().all())]
        if bad:
            raise self._diverged(f"After step {step} of {self.total_steps} these are not finite: {few(bad)}.")


def _is_finite(part: Any) -> bool:
    """Whether all numbers in the tensors of a part of a batch are finite."""
    return all(bool(one.isfinite().all()) for one in devices.tensors_in(part))
