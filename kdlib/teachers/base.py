"""What a teacher is: a callable with outputs for a batch. It never learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from kdlib import devices
from kdlib.data import Augmentation, IndexedDataset
from kdlib.hooks import ModelOutput


class Teacher(Protocol):
    """What `fit` and `Distiller` need of a teacher. Inherit it and write `__call__`; the rest has a default.

    views: for how many augmented views of each image it has outputs; None: for any.
    """

    views: int | None = None

    def __call__(self, batch: Any, layers: Sequence[str] | None = None) -> ModelOutput:
        """The output for a batch, with these layers as features; default, those of `activate`."""
        ...

    def activate(self, layers: Sequence[str], config: devices.DeviceConfig) -> AbstractContextManager[Any]:
        """A context in which the teacher is called many times, with these layers, on this device."""
        return nullcontext(self)

    @property
    def fingerprint(self) -> str | None:
        """What differs when the outputs would differ, a sha256 of weights for instance; None: not known."""
        return None

    def check_compatible(self, dataset: IndexedDataset, augmentation: Augmentation, seed: int) -> None:
        """Raise ValueError unless it has outputs for these images."""
        _ = dataset, augmentation, seed  # any images will do


class FunctionTeacher(Teacher):
    """A function from a batch to logits, or to a `ModelOutput`, as a teacher: a service, say, that is asked by name."""

    def __init__(self, function: Callable[[Any], Tensor | ModelOutput]) -> None:
        self.function = function
        self.views = getattr(function, "views", None)

    def __call__(self, batch: Any, layers: Sequence[str] | None = None) -> ModelOutput:
        try:
            with without_gradient():
                output = self.function(batch)
        except Exception as error:
            error.add_note(f"kdlib called the teacher's function with the whole batch, a {type(batch).__name__}.")
            raise
        if isinstance(output, Tensor):
            output = ModelOutput(output)
        if not isinstance(output, ModelOutput):
            raise ValueError(
                f"The teacher's function returned a {type(output).__name__}; expected a tensor of logits or a "
                "kdlib.hooks.ModelOutput."
            )
        missing = [name for name in layers or () if name not in output.features]
        if missing:
            raise ValueError(
                f"The teacher's function gives no features of {missing}. Return ModelOutput(logits, {{name: tensor}}), "
                "or choose a method that looks at logits alone."
            )
        return output


@contextmanager
def without_gradient() -> Iterator[None]:
    """no_grad, also for autocast: with torch 2.6 a student of these weights would get the casts, without a gradient."""
    # Not inference_mode: its tensors cannot be saved for the student's backward pass.
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
