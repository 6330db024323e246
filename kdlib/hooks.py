"""Reads intermediate layers by name through forward hooks, so that no model has to be edited."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized

from kdlib.errors import unknown_name
from kdlib.guards import writes_to

TOKENS, POSITIONS_FIRST, LINE = "B x N x C", "N x B x C", "B x C x L"  # how an output of three dimensions is read
LOGIT_FIELDS = ("logits", "out")
MOST_SHAPES = 2  # of inputs, for each of which a program is compiled
# Of an output with three dimensions these have the channels second, B x C x L.
LINE_LAYERS = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.GroupNorm)
LINE_POOLING = (nn.MaxPool1d, nn.AvgPool1d, nn.LPPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d)


@dataclass  # not frozen: Lightning rebuilds what a module gives by setting the fields
class ModelOutput:
    """What a network gives for a batch: its logits and, by layer name, the outputs of the layers asked for.

    logits: batch first, B x C for a classifier; None where the network gives none, which only methods accept that look
    at its layers alone. raw: what the network returned, as it was and in its dtype, for methods of one's own. An
    `Ensemble` and `Specialists` return their logits alone, and a `ConfidenceEnsemble` and stored answers have no raw: a
    second head is read as a layer there, "members.0.head", or "head" of CachedTeacher.build(..., layers=["head"]).
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    raw: Any = field(default=None, repr=False)

    def float(self) -> ModelOutput:
        """The same in float32: losses are computed in it, whatever the network ran in. `raw` stays as it is."""
        return self._changed(Tensor.float)

    def to(self, device: torch.device) -> ModelOutput:
        """The same on this device. `raw` stays where it is."""
        return self._changed(lambda one: one.to(device))

    def outside_inference(self) -> ModelOutput:
        """The same with copies of what was computed in inference mode, which no backward pass can use."""
        return self._changed(lambda one: one.clone() if one.is_inference() else one)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> ModelOutput:
        logits = self.logits if self.logits is None else change(self.logits)
        return ModelOutput(logits, {name: change(output) for name, output in self.features.items()}, self.raw)


class LayerName(NamedTuple):
    """A layer's name in its parts: `module`, or `module#call`, or `module[item]`, or `module#call[item]`."""

    module: str
    call: int | None
    item: str | None

    @classmethod
    def parse(cls, name: str) -> LayerName:
        """The parts of a name; ValueError where what follows the module's name cannot be read."""
        found = re.fullmatch(r"([^#\[\]]*)(?:#(-?\d+))?(?:\[([^\[\]]+)\])?", name)
        if found is None:
            raise ValueError(
                f"{name!r} names no layer. A layer is written as named_modules() names it; 'name#0' is its first call "
                "of several in a forward pass, 'name[0]' or 'name[key]' one part of an output that is a tuple or dict."
            )
        module, call, item = found.groups()
        return cls(module, None if call is None else int(call), item)


class Captured(NamedTuple):
    """A tensor that a layer gave, and how many writes to it torch had counted then."""

    output: Tensor
    version: int


class FeatureExtractor:
    """Calls a model and returns its `ModelOutput`; the hooks are removed when the `with` block ends.

        with FeatureExtractor(model, ["layer1", "layer3"]) as extractor:
            output = extractor(images)

    layers: names as `named_modules()` gives them. Of a module that runs several times in one forward pass, "name#0" is
    the output of its first call, "name#-1" of its last. Of an output that is a tuple or a dict, "name[0]" or
    "name[key]" is one part; a tuple that holds one tensor needs no such choice. An output with positions first,
    N x B x C, is given as B x N x C, unless N = B in the first call, which cannot be told apart. So is that of a layer
    that sees K frames or series of each sample as samples, where it is K * B x B x C by chance: let an nn.Identity in
    the network get x.reshape(B, -1, x.shape[-1]), and name that. One of 1-D convolutions, B x C x L, is given as a map,
    B x C x 1 x L, so that three dimensions are always tokens; see `is_line` for what is seen to be one.
    compile: torch.compile translates the model at the first call, which takes a minute or so, and then only this object
    runs it that way; at a second shape of the inputs it does so again, and at a third for any shape. weights: used by
    this object in place of the model's own of these names.
    read_logits: from what the model returns to its logits; default, see `find_logits`. needs_logits: whether a model
    that gives none is refused. layouts: what is known of three dimensions, by layer, shared with other extractors of
    this model; a call that cannot tell is read as one before it that could.
    Raises ValueError for an unknown layer, with near matches, or a model that was compiled before.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str] = (),
        *,
        compile: bool = False,
        weights: Mapping[str, Tensor] | None = None,
        read_logits: Callable[[Any], Any] | None = None,
        needs_logits: bool = True,
        layouts: dict[str, str] | None = None,
    ) -> None:
        self.model = model
        self.layouts: dict[str, str] = {} if layouts is None else layouts
        self.weights = dict(weights or {})
        # A program for one shape is the fastest. By torch's default a layer whose sizes differ from those of another of
        # its class is compiled for any shape, in the first step already, and there inductor leaves the layout of
        # convolutions as it is (pytorch 102670).
        self._forward: Any = torch.compile(model, dynamic=False) if compile else model
        self._compiled = compile
        self._shapes: set[tuple[Any, ...]] = set()  # of inputs that a program was made for
        self._read_logits = read_logits or find_logits
        self._needs_logits = needs_logits
        self.layers = tuple(dict.fromkeys(layers))
        if self.layers and (hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None):
            raise ValueError(
                f"This {type(model).__name__} is compiled already, and a compiled model ignores new hooks. Give the "
                "model itself, and compile=True to fit."
            )
        modules = dict(model.named_modules(remove_duplicate=False))  # a shared module answers to each of its names
        self._names = {name: LayerName.parse(name) for name in self.layers}
        for name in self._names.values():
            if name.module not in modules or name.module == "":
                raise unknown_name(f"layer in {type(model).__name__}", name.module, [n for n in modules if n])
        self._modules = tuple(dict.fromkeys(name.module for name in self._names.values()))
        self._captured: dict[str, list[Any]] = {}  # of each module, what its calls in this forward pass gave
        self._handles: list[Any] = []
        self._lines: dict[tuple[str, torch.Size], bool] = {}  # what `is_line` said, by layer and size without the batch

    def __enter__(self) -> FeatureExtractor:
        self._lines.clear()
        for name in self._modules:  # by name: a module may have been replaced since, by SyncBatchNorm or an adapter
            self._handles.append(self.model.get_submodule(name).register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._captured.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this block the model is without the hooks: a copy of it has none, and nothing is collected."""
        handles, self._handles = self._handles, []
        self._captured.clear()
        there = [(handle.hooks_dict_ref(), handle.id) for handle in handles]
        removed = [(hooks, key, hooks.pop(key)) for hooks, key in there if hooks]  # none of a layer that was replaced
        try:
            yield
        finally:
            for hooks, key, hook in removed:
                hooks[key] = hook  # the same one: for another a compiled model would be translated anew
            self._handles = handles

    @property
    def active(self) -> bool:
        """Whether the hooks are there, or none are needed."""
        return bool(self._handles) or not self.layers

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._captured.setdefault(name, []).append(_capture(output))

        return hook

    def __call__(self, inputs: Any) -> ModelOutput:
        """The model's output for a batch. inputs: a tensor, or a tuple or dict of the arguments of its forward.

        Raises ValueError when a layer did not run, ran several times and none of its calls was chosen, gives no tensor,
        or when a later layer wrote over its output, and when the model gives no logits, or a tuple in which they cannot
        be told from an embedding; RuntimeError outside the `with` block, unless no layers were asked for.
        """
        if not self.active:
            raise RuntimeError(
                "A FeatureExtractor reads layers only inside its block: with FeatureExtractor(model, layers) as "
                "extractor: ..."
            )
        self._captured.clear()
        args, kwargs = as_arguments(inputs)
        if self._compiled:
            self._note_shapes(inputs)
        # torch.compile cannot translate the switch, and leaves out nested tensors by itself.
        with self._guard_hooks(), nullcontext() if torch.compiler.is_compiling() else plain_encoders():
            if self.weights:
                # `weights` names every tied weight. A layer under two names would be swapped twice: it would keep them.
                raw = functional_call(self._forward, self.weights, args, kwargs, tie_weights=False)
            else:
                raw = self._forward(*args, **kwargs)
        logits = self._read_logits(raw)
        several = _tensors_by_position(raw)
        if logits is None and self._needs_logits and len(several) > 1:
            shapes = ", ".join(str(tuple(one.shape)) for one in several.values())
            choices = " or ".join(f"Adapter(logits={position})" for position in several)
            raise ValueError(
                f"A {type(self.model).__name__} returned a {type(raw).__name__} of tensors {shapes}; which are the "
                f"logits? Say it: {choices}; of a teacher it is teacher_logits."
            )
        number = isinstance(logits, Tensor) and logits.ndim == 0  # such as a loss of its own
        if logits is None and self._needs_logits or not isinstance(logits, Tensor | None) or number:
            kind = "single number" if number else type(raw).__name__
            raise ValueError(
                f"A {type(self.model).__name__} returned a {kind}; expected one tensor of logits, or a "
                "dict or object with 'logits'. Wrap the model in a module whose forward returns its logits, or say "
                "where they are: Adapter(logits=...), of a teacher Adapter(teacher_logits=...)."
            )
        samples = len(logits) if logits is not None else batch_size_of(inputs)
        features = {name: self._feature(name, samples) for name in self.layers}
        for name, output in features.items():
            if logits is not None and logits.requires_grad and not output.requires_grad:
                warnings.warn(
                    f"No gradient comes from the layer {name!r} (frozen layers, or checkpoint(use_reentrant=True)): a "
                    "loss on it trains nothing before it.",
                    stacklevel=2,
                )
        self._captured.clear()
        return ModelOutput(logits, features, raw)  # type: ignore[arg-type]  # None only where nothing reads it

    def _feature(self, name: str, samples: int | None) -> Tensor:
        """What the hook of this layer captured, after the checks that `__call__` promises."""
        parts = self._names[name]
        calls = self._captured.get(parts.module, [])
        if not calls:
            at_random = (
                " Where the network leaves layers out at random while it trains (LayerDrop), build it without: "
                "layerdrop=0, in some networks encoder_layerdrop=0."
            )
            raise ValueError(
                f"The layer {name!r} did not run in the forward pass. Name a layer that does."
                f"{at_random if self.model.training else ''}"
            )
        number = parts.call
        if number is None:
            if len(calls) > 1:
                self._refuse_part(name, calls[-1], samples)
                raise ValueError(
                    f"The layer {name!r} ran {len(calls)} times in one forward pass. Choose one of its calls: "
                    f"{parts.module + '#0'!r} is the first, {parts.module + '#-1'!r} the last."
                )
            number = 0
        if not -len(calls) <= number < len(calls):
            raise ValueError(f"{name!r} asks for call {number} of a layer that ran {len(calls)} time(s), from 0 on.")
        output, version = _choose(name, calls[number], parts.item)
        self._refuse_part(name, Captured(output, version), samples)
        if writes_to(output) != version:
            raise ValueError(
                f"The output of {name!r} was overwritten in place by the layer after it (an inplace ReLU, as a "
                "rule). Name that later layer, or set its inplace to False."
            )
        if output.ndim != 3:
            return output
        layout = self._layout(name, output, samples)
        if layout == POSITIONS_FIRST:  # as torch's recurrent layers and encoders have them
            return output.transpose(0, 1)
        return output[:, :, None] if layout == LINE else output

    def _layout(self, name: str, output: Tensor, samples: int | None) -> str:
        """How three dimensions are read; where equal sizes leave it open, as at an earlier call of this layer.

        Without one, as what such layers give by themselves: a line after 1-D convolutions, else tokens.
        """
        key = (name, output.shape[1:])
        if key not in self._lines:  # it looks through all modules of the layer
            self._lines[key] = is_line(self.model.get_submodule(self._names[name].module), output)
        line = self._lines[key]
        first = samples is not None and len(output) != samples == output.shape[1]
        equal = len(output) == samples == output.shape[1] or output.shape[1] == output.shape[2]
        if equal and not first:
            return self.layouts.get(name, LINE if line else TOKENS)
        self.layouts[name] = found = POSITIONS_FIRST if first else LINE if line else TOKENS
        return found

    def _refuse_part(self, name: str, call: Any, samples: int | None) -> None:
        if not isinstance(call, Captured) or samples is None or samples in call.output.shape[:2]:
            return
        # So that what was laid into the batch becomes a direction of positions.
        maps = "x.unflatten(0, (batch, -1)).transpose(1, 2)"
        by_sample = maps if call.output.ndim > 3 else "x.reshape(batch, -1, x.shape[-1])"
        raise ValueError(
            f"The layer {name!r} gave an output of shape {tuple(call.output.shape)} for {samples} samples. Did it run "
            "on a part of the batch, as under DataParallel? Use torchrun, or one device. Does the network lay frames, "
            f"series or candidates into the batch? Let an nn.Identity in it get {by_sample}, where batch is the number "
            "of samples, and name that."
        )

    def _note_shapes(self, inputs: Any) -> None:
        """Compile for any shape where there are more than MOST_SHAPES: torch gives up after eight programs."""
        if len(self._shapes) > MOST_SHAPES:
            return
        self._shapes.add(_shapes_in(inputs))
        if len(self._shapes) > MOST_SHAPES:
            # Not torch's default, which takes for fixed what did not differ until now, such as the number of samples.
            self._forward = torch.compile(self.model, dynamic=True)

    def _guard_hooks(self) -> AbstractContextManager[Any]:
        """Dynamo assumes that a model's hooks never change, and would run a program that was traced with others."""
        if not self._compiled:
            return nullcontext()
        return torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)


@contextmanager
def plain_encoders() -> Iterator[None]:
    """Without torch's fused encoders, which call no hooks, know no autocast on a CPU, and give zeros at padding."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def is_line(layer: nn.Module, output: Tensor) -> bool:
    """Whether the output of a layer is B x C x L, as 1-D convolutions give it, and not tokens, B x N x C.

    It is where the layer is a 1-D convolution, normalisation or pooling. Of a block the last layer inside it with
    weights says it, if it has as many channels as the second dimension of the output: one of these, or, where the third
    dimension is another, a layer norm or a linear layer, if a layer norm and a 1-D convolution inside the block have as
    many, too. An activation alone, or a function, cannot be seen to give one: name the layer before it, or let it give
    x.unsqueeze(2).
    """
    if output.ndim != 3 or isinstance(layer, LINE_LAYERS + LINE_POOLING):
        return output.ndim == 3
    weighted = [
        one
        for name, one in layer.named_modules()
        # Of a layer with weight_norm, say, the weights lie in a module within it.
        if (is_parametrized(one) or list(one.parameters(recurse=False))) and "parametrizations" not in name.split(".")
    ]
    kinds = (*LINE_LAYERS, nn.LayerNorm, nn.Linear)
    as_wide = [one for one in weighted if isinstance(one, kinds) and _width(one) == output.shape[1]]
    if not as_wide or as_wide[-1] is not weighted[-1]:
        return False
    if isinstance(as_wide[-1], LINE_LAYERS):
        return True
    # These have the channels last, so the block turns its output after them. A linear layer over tokens is as wide as
    # there are tokens, and so may be a convolution over them, but their layer norms are not.
    return (
        output.shape[1] != output.shape[2]
        and any(isinstance(one, nn.LayerNorm) for one in as_wide)
        and any(isinstance(one, nn.Conv1d | nn.ConvTranspose1d) for one in as_wide)
    )


def _width(layer: nn.Module) -> int | None:
    """How many channels a layer gives, as far as its attributes say it."""
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1]
    names = ("out_channels", "num_features", "num_channels", "out_features")
    return next((getattr(layer, name) for name in names if hasattr(layer, name)), None)


@contextmanager
def refuse_writes(role: str, inputs: Any) -> Iterator[None]:
    """ValueError after the block if the network, by its role, has written into the tensors that it was given."""
    args, kwargs = as_arguments(inputs)
    given = [(one, writes_to(one)) for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    yield
    if any(writes_to(one) != count for one, count in given):
        raise ValueError(
            f"The {role} writes into its inputs (x.sub_(mean), say, or x[mask] = 0), so whatever is given them next "
            "would see others. Let its forward begin with x = x.clone(), or write x = x - mean."
        )


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called: by a dict's keyword arguments, a tuple's or list's positional ones, or one argument."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def _shapes_in(inputs: Any) -> tuple[Any, ...]:
    """The shapes of all tensors in a model's inputs, nested as these are."""
    if isinstance(inputs, Tensor):
        return tuple(inputs.shape)
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple | list) else ()
    return tuple(map(_shapes_in, parts))


def batch_size_of(inputs: Any) -> int | None:
    """The first dimension of the first tensor among a model's inputs; None if there is no tensor."""
    args, kwargs = as_arguments(inputs)
    return next((len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim), None)


def find_logits(output: Any) -> Tensor | None:
    """The logits in what a model returned: a tensor itself, the field "logits" or "out", or of a tuple its first part.

    These names are those of transformers and of torchvision's segmentation networks. None where there are no logits,
    and where tensors of a tuple differ in their classes: which are the logits, and which an embedding, cannot be seen.
    """
    return _logits_and_place(output)[0]


def where_logits_are(output: Any) -> str:
    """How a function of `output` reads the logits that `find_logits` finds in it: "output.logits", say."""
    return _logits_and_place(output)[1]


def _logits_and_place(output: Any) -> tuple[Tensor | None, str]:
    """What `find_logits` and `where_logits_are` say."""
    if isinstance(output, Tensor):
        return output, "output"
    for name in LOGIT_FIELDS:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            is_key = isinstance(output, Mapping) and getattr(output, name, None) is not found
            return found, f"output[{name!r}]" if is_key else f"output.{name}"
    tensors = _tensors_by_position(output)
    if 0 not in tensors:
        return None, "output"
    widths = [one.shape[1 if one.ndim > 3 else -1] for one in tensors.values()]
    if any(width != widths[0] for width in widths):
        return None, "output"
    return tensors[0], "output[0]"  # auxiliary heads have the same classes


def _tensors_by_position(output: Any) -> dict[int, Tensor]:
    """The tensors in a tuple or list that could be logits: those of two or more dimensions."""
    parts = enumerate(output) if isinstance(output, tuple | list) else ()
    return {position: part for position, part in parts if isinstance(part, Tensor) and part.ndim > 1}


def _capture(output: Any) -> Any:
    """What a layer gave, with each tensor in it as `Captured`."""
    if isinstance(output, Tensor):
        return Captured(output, writes_to(output))
    if isinstance(output, Mapping):
        return {key: _capture(value) for key, value in output.items() if isinstance(value, Tensor)}
    if isinstance(output, tuple | list):
        return [_capture(value) if isinstance(value, Tensor) else None for value in output]
    return output


def _choose(name: str, output: Any, item: str | None) -> Captured:
    """The tensor that `item` chooses in what `_capture` gave; ValueError, with the choices, where that is not one."""
    if isinstance(output, Captured):
        if item is not None:
            raise ValueError(f"The layer of {name!r} returns a tensor, not a tuple or dict. Name it without [{item}].")
        return output
    if not isinstance(output, dict | list):
        raise ValueError(
            f"The layer {name!r} returns a {type(output).__name__}, not a tensor. Name a layer inside it, one that "
            "returns a tensor."
        )
    pairs = output.items() if isinstance(output, dict) else enumerate(output)
    choices = {str(key): value for key, value in pairs if value is not None}
    if item is None and len(choices) == 1 and isinstance(output, list):
        return next(iter(choices.values()))
    if item is None or item not in choices:
        kind, layer = "dict" if isinstance(output, dict) else "tuple", name.partition("[")[0]
        shown = ", ".join(repr(f"{layer}[{key}]") for key in choices) or "none; name a layer inside it"
        raise ValueError(f"The layer of {name!r} returns a {kind}, not a tensor. Choose one of its tensors: {shown}.")
    return choices[item]
