"""What a network held before it was used, so that it can be given back the same, and whoever wrote to it is named."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kdlib.errors import few


@contextmanager
def keep_modes(model: nn.Module) -> Iterator[None]:
    """After the block each module is in the train or eval mode that it had before, also after an exception."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module's own mode again, also of one that was frozen by hand.

    A frozen TorchScript network has no mode, and that of a torch.export program is fixed: it refuses eval().
    """
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    if len(modes) == len(list(model.modules())):
        with suppress(NotImplementedError):
            model.eval()
    try:
        for module in modes:  # also those behind a part that refuses eval(), which ends the walk through the others
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class StateGuard:
    """Remembers what a network's state_dict holds: buffers by value, parameters by torch's count of writes to them.

    Buffers are small, weights are not: a copy of them could take as much memory as there is. Buffers that are not
    persistent, such as a cache of positions, are no part of the state and may change. role: what an error calls it.
    """

    def __init__(self, model: nn.Module, role: str = "teacher") -> None:
        self._model, self._role = model, role
        self._buffers: list[tuple[str, nn.Module, str, Tensor, Tensor]] = []
        for path, module in model.named_modules():
            for name, tensor in module._buffers.items():
                if tensor is not None and name not in module._non_persistent_buffers_set:
                    full = f"{path}.{name}".lstrip(".")
                    self._buffers.append((full, module, name, tensor, tensor.detach().clone()))
        self._parameters = {name: (p, writes_to(p)) for name, p in model.named_parameters()}

    def _changed_buffers(self) -> dict[str, nn.Module]:
        """Name and module of each persistent buffer that holds something else than before."""
        found = {}
        for full, module, name, _, copy in self._buffers:
            there = name in module._buffers  # TorchScript's have no get
            if not _equal(module._buffers[name] if there else None, copy):
                found[full] = module
        return found

    def _changed_parameters(self) -> list[str]:
        now = dict(self._model.named_parameters())
        return [n for n, (p, version) in self._parameters.items() if now.get(n) is not p or writes_to(p) != version]

    @torch.no_grad()
    def restore(self) -> None:
        """Put back all buffers, to the bit and as the same tensors."""
        for _, module, name, tensor, copy in self._buffers:
            if not _equal(tensor, copy):
                tensor.copy_(copy)
            module._buffers[name] = tensor

    def refuse_train_mode(self) -> None:
        """After a call: raise ValueError, the buffers as they were, if the forward ran a part in train mode."""
        # Running statistics move in train mode only, also where the mode was set back.
        moved = [name for name, module in self._changed_buffers().items() if isinstance(module, _NormBase)]
        modes = [name or "itself" for name, module in self._model.named_modules() if module.training]
        if not moved and (not modes or self._role != "teacher"):  # Monte Carlo dropout of a student may be meant
            return
        self.restore()
        self._model.eval()
        raise ValueError(
            f"The {self._role}'s forward runs a part of it in train mode ({few(modes or moved)}): its answers would "
            "depend on chance or on the other samples of a batch, and batch statistics would move. Remove the call of "
            "train() from its forward; it is always asked in eval mode."
        )

    def warn_of_changes(self) -> None:
        """Say what was written to a teacher while it was used; whether it mattered only its owner can say."""
        if self._role != "teacher":
            return
        for kind, names, after in (
            ("buffers", list(self._changed_buffers()), "They are restored"),
            ("parameters", self._changed_parameters(), "They cannot be restored"),
        ):
            if names:
                warnings.warn(
                    f"While the teacher was used, something wrote to its {kind} {few(names)}: its own forward, or a "
                    f"callback. {after}, but its answers may have changed in between.",
                    stacklevel=2,
                )


def shared_tensors(student: nn.Module, teacher: nn.Module) -> list[str]:
    """The names of the teacher's parameters and buffers whose memory is the student's as well."""
    own = {place for _, tensor in _state(student) if (place := _place(tensor)) is not None}
    return [name for name, tensor in _state(teacher) if _place(tensor) in own]


def writes_to(tensor: Tensor) -> int:
    """How often torch has counted a write to a tensor."""
    # It does not count in inference mode, where asking is an error.
    return 0 if tensor.is_inference() else tensor._version


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _place(tensor: Tensor) -> Any:
    """Where a tensor's numbers lie, also of a part of another tensor; None where there are none."""
    if nn.parameter.is_lazy(tensor) or tensor.numel() == 0 or tensor.device.type == "meta":
        return None
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # one that holds others, quantized or of several machines, has none
        return tensor.data_ptr() or ("the tensor itself", id(tensor))


def _equal(now: Tensor | None, copy: Tensor) -> bool:
    # By value: torch does not count what batch norm writes to its running statistics.
    if now is None or (now.shape, now.dtype, now.device) != (copy.shape, copy.dtype, copy.device):
        return False
    if now.device.type == "meta" or torch.equal(now, copy):
        return True
    return now.is_floating_point() and torch.allclose(now, copy, rtol=0, atol=0, equal_nan=True)
