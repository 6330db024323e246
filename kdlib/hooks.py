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

from kdlib.errors import unknown_name


@dataclass(frozen=True)
class ModelOutput:
    """What a network gives for a batch: its logits (B x C) and, by layer name, the outputs of the layers asked for."""

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def float(self) -> ModelOutput:
        """The same in float32: losses are computed in it, whatever the network ran in."""
        return ModelOutput(self.logits.float(), {name: output.float() for name, output in self.features.items()})


class FeatureExtractor:
    """Calls a model and returns its `ModelOutput`; the hooks are removed when the `with` block ends.

        with FeatureExtractor(model, ["layer1", "layer3"]) as extractor:
            output = extractor(images)

    A layer that runs several times in one forward pass gives its last output. compile: torch.compile translates
    the model at the first call, which takes a minute or so, and then only this object runs it that way. weights: used
    by this object in place of the model's own of these names.
    Raises ValueError for an unknown layer, with near matches, or a model that was compiled before.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str] = (),
        *,
        compile: bool = False,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.weights = dict(weights or {})
        # One size of batch is all that training sees, so a program for that size is the fastest.
        self._forward: Any = torch.compile(model, dynamic=False) if compile else model
        self._compiled = compile
        self.layers = tuple(dict.fromkeys(layers))
        if self.layers and (hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None):
            raise ValueError(
                f"This {type(model).__name__} is compiled already, and a compiled model ignores new hooks. Give the "
                "model itself, and compile=True to fit."
            )
        modules = dict(model.named_modules())
        for name in self.layers:
            if name not in modules or name == "":
                raise unknown_name(f"layer in {type(model).__name__}", name, [n for n in modules if n])
        self._modules = {name: modules[name] for name in self.layers}
        self._captured: dict[str, tuple[Tensor, int]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> FeatureExtractor:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._captured.clear()

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"The layer {name!r} returns a {type(output).__name__}, not a tensor. Name a layer inside it, "
                    "one that returns a single tensor."
                )
            self._captured[name] = (output, _version(output))

        return hook

    def __call__(self, images: Tensor) -> ModelOutput:
        """The model's output for a batch of images.

        Raises ValueError when a layer did not run, when a later layer wrote over its output, or when the model
        does not return one B x C tensor; RuntimeError outside the `with` block, unless no layers were asked for.
        """
        if self.layers and not self._handles:
            raise RuntimeError(
                "A FeatureExtractor reads layers only inside its block: with FeatureExtractor(model, layers) as "
                "extractor: ..."
            )
        self._captured.clear()
        with self._guard_hooks():
            logits = functional_call(self._forward, self.weights, (images,)) if self.weights else self._forward(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"A {type(self.model).__name__} returned {got}; expected one tensor of logits, batch x classes. Wrap "
                "the model in a module whose forward returns its logits."
            )
        return ModelOutput(logits, {name: self._feature(name, logits) for name in self.layers})

    def _feature(self, name: str, logits: Tensor) -> Tensor:
        """What the hook of this layer captured, after the checks that `__call__` promises."""
        if name not in self._captured:
            raise ValueError(f"The layer {name!r} did not run in the forward pass. Name a layer that does.")
        output, version = self._captured[name]
        if len(logits) not in output.shape:
            raise ValueError(
                f"The layer {name!r} gave an output of shape {tuple(output.shape)} for {len(logits)} samples: it "
                "ran on a part of the batch (under DataParallel, for instance). Use torchrun, or one device."
            )
        if logits.requires_grad and not output.requires_grad:
            warnings.warn(
                f"No gradient comes from the layer {name!r} (frozen layers, or checkpoint(use_reentrant=True)): a "
                "loss on it trains nothing before it.",
                stacklevel=3,
            )
        if _version(output) != version:
            raise ValueError(
                f"The output of {name!r} was overwritten in place by the layer after it (an inplace ReLU, as a "
                "rule). Name that later layer, or set its inplace to False."
            )
        return output

    def _guard_hooks(self) -> AbstractContextManager[Any]:
        """Dynamo assumes that a model's hooks never change, and would run a program that was traced with others."""
        if not self._compiled:
            return nullcontext()
        return torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)


def _version(output: Tensor) -> int:
    # torch counts the writes to a tensor, but not in inference mode, where asking is an error
    return 0 if output.is_inference() else output._version
