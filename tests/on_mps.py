"""A stand-in for MPS, where torch lacks some operations: tensors that compute on the CPU, and say that they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MPS = torch.device("mps")


class OnMps(Tensor):
    """A tensor that lies on MPS, as far as `Mps` is concerned."""


class Mps(TorchFunctionMode):
    """Inside the block there is MPS, without these operations. No kernels, no speed, no other limits of it.

    with Mps(torch.cdist) as mps:
        torch.cdist(mps.put(x), mps.put(y))  # NotImplementedError
    """

    def __init__(self, *missing: Callable[..., Any]) -> None:
        super().__init__()
        self._missing = missing

    def put(self, tensor: Tensor) -> Tensor:
        """The tensor on MPS; its gradient comes back."""
        return tensor.as_subclass(OnMps)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = [one for one in args if isinstance(one, OnMps)]
        if function in self._missing and there:
            raise NotImplementedError(f"{function.__name__} on MPS")
        if function == Tensor.device.__get__ and there:  # type: ignore[attr-defined]
            return MPS
        if function == Tensor.to and args[1:] == (MPS,):
            return self.put(args[0])
        result = function(*args, **(kwargs or {}))
        return result.as_subclass(Tensor) if function == Tensor.cpu else result
