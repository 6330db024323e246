"""Reads intermediate layers by name through forward hooks, so that no model has to be edited."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdlib._messages import unknown


@dataclass(frozen=True)
class Answer:
    """What a network says about a batch: its logits (B x C) and the outputs of the layers that were asked for."""

    logits: Tensor
    layers: Mapping[str, Tensor] = field(default_factory=dict)


class Taps:
    """Calls a model and returns its `Answer`; the hooks go when the `with` block ends.

        with Taps(model, ["layer1", "layer3"]) as taps:
            answer = taps(images)

    A layer that runs several times in one forward pass gives its last output. compiled: torch.compile translates
    the model at the first call, which takes a minute or so, and then only this object runs it that way. weights: used
    by this object in place of the model's own of these names.
    Raises ValueError for an unknown layer, with near matches, or a model that was compiled before.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str] = (),
        *,
        compiled: bool = False,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.weights = dict(weights or {})
        # One size of batch is all that training sees, so a program for that size is the fastest.
        self._run = torch.compile(model, dynamic=False) if compiled else model
        self._compiled = compiled
        self.names = tuple(dict.fromkeys(layers))
        if self.names and (hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None):
            raise ValueError(
                f"This {type(model).__name__} is compiled already, and a compiled model passes over new hooks. Give "
                "the model itself, and compile=True to fit."
            )
        known = dict(model.named_modules())
        for name in self.names:
            if name not in known or name == "":
                raise unknown(f"layer in {type(model).__name__}", name, [n for n in known if n])
        self._modules = {name: known[name] for name in self.names}
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"The layer {name!r} returns a {type(output).__name__}, not a tensor. Tap a layer inside it, "
                    "one that returns a single tensor."
                )
            self._seen[name] = (output, _version(output))

        return hook

    def __call__(self, images: Tensor) -> Answer:
        """The model's answer to a batch of images.

        Raises ValueError when a layer did not run, when a later layer wrote over its output, or when the model
        does not return one B x C tensor; RuntimeError outside the `with` block, unless no layers were asked for.
        """
        if self.names and not self._handles:
            raise RuntimeError("Taps read layers only inside their block: with Taps(model, layers) as taps: ...")
        self._seen.clear()
        with self._hooks_noticed():
            logits = functional_call(self._run, self.weights, (images,)) if self.weights else self._run(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"A {type(self.model).__name__} returned {got}; expected one tensor of logits, batch x classes. Wrap "
                "the model in a module whose forward returns its logits."
            )
        for name in self.names:
            if name not in self._seen:
                raise ValueError(f"The layer {name!r} did not run in the forward pass. Tap a layer that does.")
            output, version = self._seen[name]
            if len(logits) not in output.shape:
                raise ValueError(
                    f"The layer {name!r} gave an output of shape {tuple(output.shape)} for {len(logits)} samples: it "
                    "ran on a part of the batch (under DataParallel, for instance). Use torchrun, or one device."
                )
            if logits.requires_grad and not output.requires_grad:
                warnings.warn(
                    f"No gradient comes from the layer {name!r} (frozen layers, or checkpoint(use_reentrant=True)): a "
                    "loss on it trains nothing before it.",
                    stacklevel=2,
                )
            if _version(output) != version:
                raise ValueError(
                    f"The output of {name!r} was overwritten in place by the layer after it (an inplace ReLU, as a "
                    "rule). Tap that later layer, or set its inplace to False."
                )
        return Answer(logits, {name: self._seen[name][0] for name in self.names})

    def _hooks_noticed(self) -> AbstractContextManager[Any]:
        """Dynamo takes a model's hooks for fixed, and would run a program that was traced with others."""
        if not self._compiled:
            return nullcontext()
        return torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)


def _version(output: Tensor) -> int:
    # torch counts the writes to a tensor, but not in inference mode, where it refuses the question
    return 0 if output.is_inference() else output._version
