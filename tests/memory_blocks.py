"""The memory that torch takes, for tests of what must not be held twice."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class MemoryBlocks(TorchFunctionMode):
    """Inside the block notes the memory in which the results of torch's functions lie: bytes by address."""

    def __init__(self, *known: Tensor) -> None:
        """known: tensors whose memory does not count."""
        super().__init__()
        self._known = {one.untyped_storage().data_ptr() for one in known}
        self.sizes: dict[int, int] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                if storage.data_ptr() not in self._known:
                    self.sizes[storage.data_ptr()] = max(storage.nbytes(), self.sizes.get(storage.data_ptr(), 0))
        return result
