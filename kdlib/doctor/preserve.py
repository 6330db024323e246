"""Gives back networks, optimisers and random numbers exactly as they were before an examination."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlib import devices


@contextmanager
def preserved(
    modules: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    generators: Sequence[torch.Generator] = (),
    outer: Copies | None = None,
) -> Iterator[Copies]:
    """Whatever the block does to weights, buffers, modes, gradients, optimisers and random numbers is undone.

    Of a module that was not given only the parameters in the optimisers are known. What a training step keeps elsewhere
    (a queue of features, a counter) is not known here and stays changed. outer: the copies of a block around this one;
    what has not changed since is not copied again.
    """
    copies = Copies(outer)
    networks: list[_Network | _Parameters] = [_Network(module, copies) for module in modules]
    networks.append(_Parameters(_held_beside(modules, optimizers), copies))
    states = [_OptimizerState(optimizer, copies) for optimizer in optimizers]  # before anything changes: it may fail
    for network in networks:  # after all were read: two may share parameters
        network.clear_gradients()
    chance = random.getstate(), np.random.get_state()
    own_chance = [(generator, generator.get_state()) for generator in generators]
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    mps = torch.backends.mps.is_available()  # fork_rng does not know it, and torch.manual_seed seeds it
    try:
        with torch.random.fork_rng(gpus), devices.isolate_rng(torch.device("mps")) if mps else nullcontext():
            yield copies
    finally:
        random.setstate(chance[0])
        np.random.set_state(chance[1])
        for generator, before in own_chance:
            generator.set_state(before)
        for network in networks:
            network.restore()
        for state in states:
            state.restore()


@contextmanager
def gradients_preserved(tensors: Iterable[Tensor]) -> Iterator[None]:
    """The block begins with no gradient of these tensors; afterwards they have the one that they had before."""
    before = [(one, one.grad) for one in tensors]
    for one, _ in before:
        one.grad = None
    try:
        yield
    finally:
        for one, gradient in before:
            one.grad = gradient


class Copies:
    """The values of tensors at the beginning of a block: a network may take half of the memory, so each is copied once.

    outer: those of a block around this one.
    """

    def __init__(self, outer: Copies | None = None) -> None:
        self._values: dict[Tensor, Tensor] = {} if outer is None else dict(outer._values)

    def of(self, tensor: Tensor) -> Tensor:
        """The values that a tensor has now; they are for reading alone."""
        values = self._values.get(tensor)
        if values is None or not _same(tensor, values):
            values = self._values[tensor] = tensor.detach().clone()
        return values


class _Network:
    """Tensors, modes and gradients of a module."""

    def __init__(self, module: nn.Module, copies: Copies) -> None:
        self._module, self._home = module, _device_of(module)
        self._modes = {one: one.training for one in module.modules()}
        self._buffers = [
            (one, name, tensor, None if tensor is None else copies.of(tensor))
            for one in module.modules()
            for name, tensor in one._buffers.items()
        ]
        self._parameters = [
            (one, name, p, copies.of(p), p.requires_grad, p.grad)
            for one in module.modules()
            for name, p in one._parameters.items()
            if p is not None and not nn.parameter.is_lazy(p)
        ]

    def clear_gradients(self) -> None:
        """So that what was accumulated is not added to."""
        for _, _, p, _, _, _ in self._parameters:
            p.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, as the same tensors and where they lay: a teacher follows its batch."""
        if self._home is not None and _device_of(self._module) != self._home:
            self._module.to(self._home)
        for module, training in self._modes.items():
            module.training = training
        for module, name, tensor, values in self._buffers:
            if tensor is not None and values is not None:
                _copy_back(tensor, values)
            module._buffers[name] = tensor
        for module, name, p, values, requires_grad, gradient in self._parameters:
            _copy_back(p, values)
            p.requires_grad_(requires_grad)
            p.grad = gradient
            module._parameters[name] = p


def _held_beside(modules: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    """The parameters in the optimisers that are none of the modules'."""
    known = {p for module in modules for p in module.parameters()}
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    return [p for p in dict.fromkeys(held) if p not in known and not nn.parameter.is_lazy(p)]


class _Parameters:
    """Values and gradients of parameters whose module is not known."""

    def __init__(self, parameters: Iterable[Tensor], copies: Copies) -> None:
        self._parameters = [(p, copies.of(p), p.grad) for p in parameters]

    def clear_gradients(self) -> None:
        """So that what was accumulated is not added to."""
        for p, _, _ in self._parameters:
            p.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for p, values, gradient in self._parameters:
            _copy_back(p, values)
            p.grad = gradient


class _OptimizerState:
    """The settings of an optimiser's groups, and what it remembers of each parameter."""

    def __init__(self, optimizer: torch.optim.Optimizer, copies: Copies) -> None:
        self._optimizer = optimizer
        self._groups = [{k: copy.copy(v) for k, v in group.items()} for group in optimizer.param_groups]
        self._states = {
            p: {k: (v, copies.of(v) if isinstance(v, Tensor) else copy.deepcopy(v)) for k, v in state.items()}
            for p, state in optimizer.state.items()
        }
        # A scheduler counts the steps of the optimiser by these.
        self._counts = {k: v for k, v in vars(optimizer).items() if isinstance(v, bool | int)}

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for group, before in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.clear()
            group.update(before)
        self._optimizer.state.clear()
        for p, state in self._states.items():
            self._optimizer.state[p] = {k: _restored(now, before) for k, (now, before) in state.items()}
        for name in [k for k, v in vars(self._optimizer).items() if isinstance(v, bool | int)]:
            if name not in self._counts:
                delattr(self._optimizer, name)
        vars(self._optimizer).update(self._counts)


def _restored(now: Any, before: Any) -> Any:
    if isinstance(now, Tensor):
        now.copy_(before)
        return now
    return before


def _device_of(module: nn.Module) -> torch.device | None:
    return next((p.device for p in module.parameters()), None)


def _copy_back(tensor: Tensor, values: Tensor) -> None:
    if not _same(tensor, values):
        tensor.copy_(values)


def _same(tensor: Tensor, values: Tensor) -> bool:
    if (tensor.shape, tensor.dtype, tensor.device) != (values.shape, values.dtype, values.device):
        return False
    return tensor.device.type == "meta" or torch.equal(tensor, values)
