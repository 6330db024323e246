"""What a batch is: which of its parts are the student's inputs, the teacher's inputs and the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdlib.data import Batch
from kdlib.errors import may_be_of_shape
from kdlib.hooks import find_logits, where_logits_are

LABEL_FIELDS = ("labels", "label")
Field = str | int | Callable[[Any], Any]  # a key, a position, or a function of the batch


@dataclass(frozen=True)
class Adapter:
    """How to read a batch and what a network returns; a field that is left out has a default.

        Adapter(inputs="table", teacher_inputs="image", labels="species")

    inputs: of the student. Default: of a pair (inputs, labels) the first; of a dict all that is neither label nor
    index nor named by teacher_inputs, as keyword arguments, or as it is if that is one field. teacher_inputs: default,
    the student's.
    labels: default, the second of a pair, or the field "labels" or "label" of a dict, and neither is an input unless
    another one is named; a batch may have none.
    indices: the sample's numbers (int64, B), which stored outputs are found by; default, the field "index" of a dict.
    Each of these is a key of a dict, a position in a tuple, or a function of the batch. A function is called several
    times for a batch, for the teacher anew: it must give the same each time and leave the batch as it is, so augment in
    the dataset or in the loader's collate_fn. Inputs that are a dict are a network's keyword arguments, a tuple or
    list its positional ones: a list of images as one argument is inputs=lambda batch: (batch[0],).
    logits, teacher_logits: a key, a position, or a function of what the network returned; default,
    `hooks.find_logits`, which refuses a tuple of an embedding and logits: logits=1.
    """

    inputs: Field | None = None
    teacher_inputs: Field | None = None
    labels: Field | None = None
    indices: Field | None = None
    logits: Field | None = None
    teacher_logits: Field | None = None

    def __post_init__(self) -> None:
        for name, given in vars(self).items():
            if isinstance(given, bool) or not (given is None or isinstance(given, str | int) or callable(given)):
                raise TypeError(
                    f"Adapter({name}=...) is a key, a position or a function of the batch; got {given!r}. Several "
                    f"fields at once are a function: lambda batch: (batch['a'], batch['b'])."
                )

    def student_inputs_of(self, batch: Any) -> Any:
        """What the student is called with; ValueError where a batch does not say it by itself."""
        if self.inputs is not None:
            return _field(batch, self.inputs, "inputs")
        if isinstance(batch, Batch):
            return batch.images
        if isinstance(batch, Mapping):
            fields = {name: value for name, value in batch.items() if name not in self._other_fields}
            if not fields:
                raise ValueError(f"The batch has the fields {list(batch)} and none of them is an input. {_HOW}")
            return next(iter(fields.values())) if len(fields) == 1 else fields
        if isinstance(batch, tuple | list):
            if not 1 <= len(batch) <= 2:
                raise ValueError(f"The batch has {len(batch)} parts; expected a pair (inputs, labels). {_HOW}")
            return batch[0]
        return batch

    def teacher_inputs_of(self, batch: Any) -> Any:
        """What the teacher is called with."""
        if self.teacher_inputs is not None:
            return _field(batch, self.teacher_inputs, "teacher_inputs")
        return self.student_inputs_of(batch)

    def labels_of(self, batch: Any) -> Any:
        """The labels; None where the batch has none."""
        if self.labels is not None:
            return _field(batch, self.labels, "labels")
        if isinstance(batch, Batch):
            return batch.labels
        if isinstance(batch, Mapping):
            return next((batch[name] for name in LABEL_FIELDS if name in batch), None)
        return batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None

    def indices_of(self, batch: Any) -> Tensor:
        """The samples' numbers; ValueError where the batch has none."""
        if isinstance(batch, Batch):
            return batch.indices
        if self.indices is None and not (isinstance(batch, Mapping) and "index" in batch):
            raise ValueError(
                "Stored outputs are found by the samples' numbers, and the batch does not say them. Let the dataset "
                "give them too, and name them: Adapter(inputs=0, labels=1, indices=2)."
            )
        return _field(batch, "index" if self.indices is None else self.indices, "indices")

    def logits_of(self, output: Any) -> Any:
        """The logits in what the student returned; ValueError where the adapter's own function fails."""
        return _logits(output, self.logits, "logits")

    def teacher_logits_of(self, output: Any) -> Any:
        """The logits in what the teacher returned; ValueError where the adapter's own function fails."""
        return _logits(output, self.teacher_logits, "teacher_logits")

    @property
    def _other_fields(self) -> set[str]:
        """Fields of a dict that are not inputs of the student."""
        named = {name for name in (self.labels, self.indices, self.teacher_inputs) if isinstance(name, str)}
        return {"index", *named, *(LABEL_FIELDS if self.labels is None or callable(self.labels) else ())}


_HOW = "Say which are the inputs: Adapter(inputs=..., labels=...), each a key, a position or a function of the batch."


def _logits(output: Any, field: Field | None, role: str) -> Any:
    if field is None:
        return find_logits(output)
    try:
        return _field(output, field, role)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        if not may_be_of_shape(error):
            raise
        place = where_logits_are(output)
        # A ValueError: what else comes from the call of a network is explained by the network's inputs.
        raise ValueError(
            f"The function of Adapter({role}=...) failed ({type(error).__name__}: {error}). It is called with what the "
            f"network returned, a {type(output).__name__}{'' if place == 'output' else f'; its logits are {place}'}."
        ) from error


def _field(values: Any, field: Field, role: str) -> Any:
    """The part of a batch or of an output that a field names; ValueError, with what there is, where it is missing."""
    if not isinstance(field, str | int):
        return field(values)
    if isinstance(field, str) and not isinstance(values, Mapping):
        found = getattr(values, field, None)
        if found is not None and not callable(found):  # "index" and "count" are methods of every tuple
            return found
    try:
        if isinstance(values, Tensor):  # its part number 0 is a sample
            raise TypeError
        return values[field]
    except (KeyError, IndexError, TypeError) as error:
        if isinstance(values, Mapping):
            there = f"a dict with {', '.join(map(repr, values))}"
        elif isinstance(values, tuple | list):
            there = f"a {type(values).__name__} of {len(values)}"
        else:
            there = f"a {type(values).__name__}"
        raise ValueError(f"Adapter({role}={field!r}) is not in what was given: {there}.") from error
