"""A network as a teacher: frozen, and called live."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from kdlib import devices
from kdlib.adapters import Adapter
from kdlib.files import fingerprint
from kdlib.guards import StateGuard, keep_modes, writes_to
from kdlib.hooks import FeatureExtractor, ModelOutput, refuse_writes
from kdlib.teachers.base import Teacher, without_gradient


class FrozenTeacher(Teacher):
    """A network as a teacher: in eval mode and without gradient at every call.

    After `activate` it is given back as it was: what was written to its buffers meanwhile is said and put back. A call
    outside leaves it in eval mode: call train() on a network that learns, too, before its own next step. A forward that
    trains is refused. Weights that are written between two calls count from the next one on (in bfloat16 inside
    `activate` only where torch counts the write: not one to p.data).
    read_inputs: from a batch to what the network is called with; default, a batch's images or inputs. read_logits: from
    what it returns to its logits. needs_logits: whether a network that gives none is refused. role: what an error calls
    the network.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        read_inputs: Callable[[Any], Any] | None = None,
        read_logits: Callable[[Any], Any] | None = None,
        needs_logits: bool = True,
        role: str = "teacher",
    ) -> None:
        self.model, self._role = model, role
        self._only_answers = False  # known after the first call: its forward sets no mode
        self._own_readers = read_inputs, read_logits
        self._read_inputs = read_inputs or Adapter().teacher_inputs_of
        self._options: dict[str, Any] = {"read_logits": read_logits, "needs_logits": needs_logits, "layouts": {}}
        self._config: devices.DeviceConfig | None = None
        self._extractor: FeatureExtractor | None = None
        self._guard: StateGuard | None = None
        self._layers: set[nn.Module] | None = None  # whose weights are cast, known after the first call in bfloat16
        # Where these weights lay when they were cast, and how often they had been written to.
        self._written: list[tuple[int, int, int]] = []

    @property
    def reads_logits_itself(self) -> bool:
        """Whether it was made with a read_logits of its own."""
        return self._own_readers[1] is not None

    def with_adapter(self, adapter: Adapter) -> FrozenTeacher:
        """The same network, read as this adapter says where read_inputs and read_logits say nothing."""
        if adapter == Adapter():
            return self
        inputs, logits = self._own_readers
        changed = copy.copy(self)
        changed._read_inputs = inputs or adapter.teacher_inputs_of
        changed._options = {**self._options, "read_logits": logits or adapter.teacher_logits_of, "layouts": {}}
        return changed

    @contextmanager
    def activate(self, layers: Sequence[str], config: devices.DeviceConfig) -> Iterator[FrozenTeacher]:
        """Inside the block the teacher is called on this device; afterwards modes, device and memory are as before."""
        with keep_modes(self.model), config.borrow(self.model):
            try:
                self._guard = StateGuard(self.model, self._role)
                self._config = config
                with FeatureExtractor(self.model, layers, compile=config.compile, **self._options) as self._extractor:
                    yield self
                self._guard.warn_of_changes()
            finally:
                if self._guard is not None:
                    self._guard.restore()
                self._extractor = self._config = self._guard = self._layers = None
                self._written = []

    @property
    def fingerprint(self) -> str:
        """A sha256 of the network's weights and structure."""
        return fingerprint(
            self.model.state_dict(), repr(self.model)
        )  # the text shows strides, activations and the like

    def __call__(self, batch: Any, layers: Sequence[str] | None = None) -> ModelOutput:
        """The network's output. Outside of `activate` the network goes to where its inputs are and into eval mode."""
        self.model.eval()  # at every call: whoever holds the model may have called train() in between
        inputs = self._read_inputs(batch)
        with refuse_writes(self._role, inputs), without_gradient():
            return self._call(inputs, layers)

    def _call(self, inputs: Any, layers: Sequence[str] | None) -> ModelOutput:
        if self._extractor is not None and self._config is not None and layers in (None, self._extractor.layers):
            with self._config.autocast():
                output = self._answer(inputs, self._extractor, self._config)
            self._check_first_call(self._guard)
            return output
        devices.follow(self.model, inputs)
        guard = None if self._only_answers else StateGuard(self.model, self._role)
        with FeatureExtractor(self.model, layers or (), **self._options) as extractor:
            output = extractor(inputs)
        self._check_first_call(guard)
        return output

    def _answer(self, inputs: Any, extractor: FeatureExtractor, config: devices.DeviceConfig) -> ModelOutput:
        """The network's output inside `activate`: in bfloat16 from the second call on with weights that are cast."""
        if config.bfloat16 and self._layers is None:
            first = FeatureExtractor(self.model, extractor.layers, **self._options)  # not compiled: hooks look on
            with extractor.paused(), config.layers_in_autocast(self.model) as layers, first:
                output = first(inputs)
            self._layers = layers
            return output
        weights = [p for layer in self._layers or () for p in layer._parameters.values() if p is not None]
        written = [(id(p), p.data_ptr(), writes_to(p)) for p in weights]
        if written != self._written:  # at the second call, and after one such as of an average of the student
            extractor.weights = config.cast_weights(self.model, self._layers)
            self._written = written
        return extractor(inputs)

    def _check_first_call(self, guard: StateGuard | None) -> None:
        if guard is not None and not self._only_answers:
            guard.refuse_train_mode()
            self._only_answers = True
