"""A convolutional network as a list of plain layers: traced by torch.fx, batch norm folded, ranges measured.

Only what integer code can compute is accepted (`SUPPORTED`); everything else is a ValueError that names the layer.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kdlib import compress, measure
from kdlib.export._common import refuse_changing_hooks

SUPPORTED = (
    "Conv2d, BatchNorm, ReLU, ReLU6, addition, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, Flatten, Linear, Identity and "
    "Dropout"
)
RELUS = (nn.ReLU, F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_")
RELU6S = (nn.ReLU6, F.relu6)
ADDITIONS = (operator.add, torch.add, "add", "add_", "__add__", "__iadd__")
FLATTENS = (nn.Flatten, torch.flatten, "flatten", "view", "reshape")
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, "contiguous")  # as far as evaluation goes
SHAPES = ("size", getattr, operator.getitem)  # x.size(0) and x.shape[0], as they stand in x.view(x.size(0), -1)
CALIBRATION_BATCH = 100
NO_TENSOR = torch.empty(0)  # of layers without weights

Shape = tuple[int, int, int]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Where a convolution or pooling looks: all (height, width); padding is what stands above and to the left."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)


@dataclass(frozen=True)
class Layer:
    """One layer of floating-point numbers; its value is called `output`, as the node of the traced graph."""

    kind: Literal["convolution", "linear", "addition", "max", "average", "relu"]
    name: str
    inputs: tuple[str, ...]
    output: str
    window: Window = Window()
    weight: Tensor = NO_TENSOR  # O x I / groups x kernel height x kernel width
    bias: Tensor = NO_TENSOR
    groups: int = 1
    low: float | None = None  # what ReLU leaves of the output
    high: float | None = None


@dataclass(frozen=True)
class Traced:
    """The layers in the order of computation, with the shape C x H x W and the range of every value."""

    layers: tuple[Layer, ...]
    image: str
    logits: str
    shapes: dict[str, Shape]
    ranges: dict[str, tuple[float, float]]


def trace(model: nn.Module, images: Tensor) -> Traced:
    """The plain layers of a network, and the ranges of its values on these images, N x C x H x W, normalised.

    The model is copied, not changed. Raises TypeError for what is no module or tensor, ValueError for a network that
    torch.fx cannot trace, that has a layer that is not supported, a forward pre-hook, a forward hook that changes the
    answers, several inputs or outputs, or values that are not finite.
    """
    _check(model, images)
    given = model
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    compress.refuse_activation_rounding(model)
    measure.bytes_in_memory(model)  # refuses lazy layers, which have a hook of torch's own
    _refuse_hooks(model)
    try:
        model = measure.copy_without_hooks(model, "cpu").float()
    except RuntimeError as error:  # of weights that are computed from others, as masks of torch.nn.utils.prune do
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The network cannot be copied ({reason}). If it is pruned, call prune.remove first."
        ) from error
    try:
        traced = fx.GraphModule(model, _ImageTracer().trace(model))
    except Exception as error:  # whatever the user's forward raises when its input is a proxy
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"torch.fx cannot trace this network ({reason}). Its forward may not decide by the values or the shapes of "
            "tensors."
        ) from error
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise ValueError(f"A network with one input, the image, is expected; this one has {len(inputs)}.")
    observed = _observe(traced, images)
    reader = _Reader(traced, observed.shapes)
    layers, logits = reader.read()
    _refuse_other_answers(model, traced, images)
    refuse_changing_hooks(given, images[:2])
    layers = _needed(layers, logits)
    shapes = {}
    for name in (str(inputs[0]), *(layer.output for layer in layers)):
        channels, height, width = (*observed.shapes[name][1:], 1, 1)[:3]
        shapes[name] = (channels, height, width)
    if shapes[logits][1:] != (1, 1) or len(observed.shapes[logits]) not in (2, 4):
        raise ValueError(f"One logit for each class is expected, N x classes; got {observed.shapes[logits]}.")
    return Traced(tuple(layers), str(inputs[0]), logits, shapes, {name: observed.ranges[name] for name in shapes})


class _ImageTracer(fx.Tracer):
    """Calls forward with the image alone: what else it takes has its default, by which it may decide."""

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The function to be traced and what it is called with; other inputs without a default are left in."""
        function, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        image, *others = [proxy.node for proxy in arguments[1:]]  # behind the network
        image.target = image.target.lstrip("*")  # the first of *args is the image, and not a list
        if not all(node.args or node.target.startswith("*") for node in others):
            return function, arguments
        for node in others:
            self.graph.erase_node(node)
        return root_fn, arguments[:2]


def _refuse_hooks(model: nn.Module) -> None:
    """Raise ValueError for forward pre-hooks, which torch.fx does not read: nothing of them would be exported."""
    for name, module in model.named_modules():
        own = [hook for hook in module._forward_pre_hooks.values() if not type(hook).__module__.startswith("torch.")]
        if own:  # torch's own compute a weight, as spectral_norm does
            raise ValueError(
                f"{name or 'The network'} has a forward pre-hook, and there is no integer code for a hook. Write what "
                "it does into forward, or remove it."
            )


def _refuse_other_answers(model: nn.Module, traced: fx.GraphModule, images: Tensor) -> None:
    """Raise ValueError if the graph computes something else: torch.fx writes x += y down as x = x + y."""
    few = images[:2].detach().cpu().float()
    with torch.no_grad():
        # In place, either of them would overwrite what the other one is given.
        expected, found = (one(few.clone(memory_format=torch.contiguous_format)) for one in (model, traced))
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
        raise _unsupported("a value that is overwritten (as by x += y) and used elsewhere,")


def _needed(layers: list[Layer], logits: str) -> list[Layer]:
    """The layers that the logits depend on."""
    needed, kept = {logits}, []
    for layer in reversed(layers):
        if layer.output in needed:
            needed.update(layer.inputs)
            kept.append(layer)
    return kept[::-1]


def _check(model: Any, images: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module; got {type(model).__name__}.")
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"calibration is a tensor of normalised images N x C x H x W; got {kind}.")
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"calibration is at least one image, N x C x H x W; got {tuple(images.shape)}.")


class _Observer(fx.Interpreter):
    """Runs the network and notes the shape and the lowest and highest number of every value."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.ranges: dict[str, tuple[float, float]] = {}
        self.not_finite = ""  # the first value that is not
        self.extra_traceback = False  # messages here are one sentence

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            low, high = value.min().item(), value.max().item()
            if not (math.isfinite(low) and math.isfinite(high)) and not self.not_finite:
                self.not_finite = n.name
            before = self.ranges.get(n.name, (low, high))
            self.ranges[n.name] = (min(low, before[0]), max(high, before[1]))
            self.shapes[n.name] = tuple(value.shape)
        return value


def _observe(traced: fx.GraphModule, images: Tensor) -> _Observer:
    observer = _Observer(traced)
    with torch.no_grad():
        for batch in images.detach().cpu().float().split(CALIBRATION_BATCH):
            try:
                # In place, an activation would overwrite the batch of the caller.
                observer.run(batch.clone(memory_format=torch.contiguous_format))
            except (RuntimeError, TypeError) as error:
                reason = " ".join(str(error).split())[:200]
                shape = " x ".join(map(str, batch.shape[1:]))
                raise ValueError(f"The network cannot take images of {shape} ({reason}).") from error
            if observer.not_finite:
                raise ValueError(f"The values of {observer.not_finite!r} are not finite on the calibration images.")
    return observer


@dataclass(frozen=True)
class _Value:
    """What a node of the graph stands for: the value of that name; alone: nothing else has seen it so far."""

    name: str
    alone: bool


class _Reader:
    """Goes through the graph and collects the layers, folding into each what follows it."""

    def __init__(self, traced: fx.GraphModule, shapes: dict[str, tuple[int, ...]]) -> None:
        self.graph, self.modules, self.shapes = traced.graph, dict(traced.named_modules()), shapes
        self.values: dict[fx.Node, _Value] = {}
        self.layers: dict[str, Layer] = {}  # by output

    def read(self) -> tuple[list[Layer], str]:
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = _Value(node.name, alone=True)
            elif node.op == "output":
                result = node.args[0]
                if not isinstance(result, fx.Node) or result not in self.values:
                    raise ValueError(f"A network with one output, the logits, is expected; got {result}.")
                name = self.values[result].name
                if name not in self.layers:
                    raise ValueError("The network has no layer: what it gives is its input.")
                return list(self.layers.values()), name
            else:
                self._read_node(node)
        raise ValueError("The network gives nothing back.")

    def _read_node(self, node: fx.Node) -> None:
        name, kind, module = self._described(node)
        where = f"the layer {name!r} ({_text(kind)})"
        if kind in SHAPES and node.name not in self.shapes:
            return  # no tensor; a view that uses it is checked by its own shape
        self._refuse_overwriting(node, where, kind, module)
        if kind in ADDITIONS:
            self._add(node, name)
            return
        if not node.args or not isinstance(node.args[0], fx.Node) or node.args[0] not in self.values:
            raise _unsupported(where)
        source = node.args[0]
        if isinstance(module, nn.Conv2d):
            self._append(node, _convolution(module, name, where, self.values[source].name, node.name))
        elif isinstance(module, nn.Linear):
            if len(self.shapes[source.name]) != 2:
                raise _unsupported(f"{where} on {len(self.shapes[source.name])} dimensions")
            self._append(node, self._linear(module, name, node))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            self._normalize(node, name, where, module)
        elif kind in RELUS or kind in RELU6S:
            self._clamp(node, name, 6.0 if kind in RELU6S else None)
        elif kind in FLATTENS:
            before, after = self.shapes[source.name], self.shapes[node.name]
            if after != (before[0], torch.Size(before[1:]).numel()):
                raise _unsupported(f"{where} to the shape {after}")
            self._alias(node)
        elif kind is F.dropout and _is_on(node):
            raise _unsupported(f"{where} that is on in eval mode (write training=self.training)")
        elif kind in NOTHING:
            self._alias(node)
        else:
            self._pool(node, name, where, kind, module)

    def _described(self, node: fx.Node) -> tuple[str, Any, nn.Module | None]:
        """The name of a node's layer, its kind (a class, a function or a method's name) and its module."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            return str(node.target), type(module), module
        if node.op == "get_attr":
            raise _unsupported(f"the tensor {node.target!r} outside of a layer")
        return node.name, node.target, None

    def _refuse_overwriting(self, node: fx.Node, where: str, kind: Any, module: nn.Module | None) -> None:
        """In place, a layer changes what its source's other users see, which the graph does not show."""
        in_place = getattr(module, "inplace", False) or node.kwargs.get("inplace")
        in_place = in_place or _text(kind).rstrip("_") != _text(kind)
        sources = [source for source in node.args[:1] if isinstance(source, fx.Node)]
        # A dropout or a view before it gives on the memory of a value that others may use.
        shared = any(len(one.users) > 1 or (one in self.values and not self.values[one].alone) for one in sources)
        if in_place and shared:
            raise _unsupported(f"{where} that overwrites a value which is used elsewhere,")

    def _input(self, node: fx.Node) -> tuple[fx.Node, _Value]:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return source, self.values[source]

    def _append(self, node: fx.Node, layer: Layer) -> None:
        self.layers[layer.output] = layer
        self.values[node] = _Value(layer.output, alone=True)

    def _alias(self, node: fx.Node) -> None:
        source, value = self._input(node)
        self.values[node] = _Value(value.name, value.alone and len(source.users) == 1)

    def _foldable(self, node: fx.Node, kinds: tuple[str, ...]) -> Layer | None:
        """The layer that this node alone follows, if it is of these kinds and nothing bounds its output yet."""
        source, value = self._input(node)
        layer = self.layers.get(value.name)
        free = layer is not None and layer.kind in kinds and layer.low is None
        return layer if free and value.alone and len(source.users) == 1 else None

    def _fold(self, node: fx.Node, old: Layer, new: Layer) -> None:
        del self.layers[old.output]
        self._append(node, new)

    def _add(self, node: fx.Node, name: str) -> None:
        where = f"the addition {name!r}"
        if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1 or not all(a in self.values for a in node.args):
            raise _unsupported(f"{where} of something that is no value of the network,")
        for source in node.args:
            self._refuse_flattened(source, where)  # type: ignore[arg-type]  # nodes, as the line above says
        names = [self.values[source].name for source in node.args]  # type: ignore[index]
        if self.shapes[names[0]] != self.shapes[names[1]]:
            raise _unsupported(f"{where} of different shapes, {self.shapes[names[0]]} and {self.shapes[names[1]]},")
        self._append(node, Layer("addition", name, (names[0], names[1]), node.name))

    def _refuse_flattened(self, source: fx.Node, where: str) -> None:
        """What was flattened still lies as a map, which only a linear layer knows."""
        if self.shapes[source.name][1] != self.shapes[self.values[source].name][1]:
            raise _unsupported(f"{where} after flattening")

    def _clamp(self, node: fx.Node, name: str, high: float | None) -> None:
        self._refuse_flattened(self._input(node)[0], f"the activation {name!r}")
        layer = self._foldable(node, ("convolution", "linear", "addition"))
        if layer is not None:
            self._fold(node, layer, replace(layer, output=node.name, low=0.0, high=high))
        else:
            self._append(node, Layer("relu", name, (self._input(node)[1].name,), node.name, low=0.0, high=high))

    def _normalize(self, node: fx.Node, name: str, where: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        """Fold a batch norm into the layer before it; where there is none, it is a 1 x 1 depthwise convolution."""
        self._refuse_flattened(self._input(node)[0], where)
        if module.running_var is None or module.running_mean is None:
            raise _unsupported(f"{where} without running statistics")
        factor = (module.running_var + module.eps).rsqrt() * (module.weight.detach() if module.affine else 1)
        shift = (module.bias.detach() if module.bias is not None else 0) - module.running_mean * factor
        layer = self._foldable(node, ("convolution", "linear"))
        if layer is not None:
            weight, bias = layer.weight * factor[:, None, None, None], layer.bias * factor + shift
            self._fold(node, layer, replace(layer, output=node.name, weight=weight, bias=bias))
            return
        value = self._input(node)[1].name
        weight = factor[:, None, None, None]
        self._append(node, Layer("convolution", name, (value,), node.name, Window(), weight, shift, len(factor)))

    def _linear(self, module: nn.Linear, name: str, node: fx.Node) -> Layer:
        """As a convolution whose kernel is the whole of what was flattened: it needs no copy in another order."""
        value = self._input(node)[1].name
        channels, height, width = (*self.shapes[value][1:], 1, 1)[:3]
        weight = module.weight.detach().reshape(-1, channels, height, width)
        bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach()
        return Layer("linear", name, (value,), node.name, Window(kernel=(height, width)), weight, bias)

    def _pool(self, node: fx.Node, name: str, where: str, kind: Any, module: nn.Module | None) -> None:
        value = self._input(node)[1].name
        options = _pool_options(node, kind, module)
        if options is None:
            raise _unsupported(where)
        height, width = self.shapes[value][2:]
        out_height, out_width = self.shapes[node.name][2:]
        if "output_size" in options:
            if height % out_height or width % out_width:
                raise _unsupported(f"{where} from {height} x {width} to {out_height} x {out_width}, which is uneven,")
            kernel = (height // out_height, width // out_width)
            self._append(node, Layer("average", name, (value,), node.name, Window(kernel, kernel)))
            return
        kernel = _pair(options["kernel_size"])
        stride = _pair(options["stride"]) if options.get("stride") else kernel  # None or ()
        padding = _pair(options["padding"])
        if kind in (nn.MaxPool2d, F.max_pool2d):
            window = Window(kernel, stride, padding, _pair(options["dilation"]))
            self._append(node, Layer("max", name, (value,), node.name, window))
            return
        partial = options["ceil_mode"] or (padding != (0, 0) and not options["count_include_pad"])
        if partial or options.get("divisor_override"):
            raise _unsupported(f"{where} with ceil_mode, count_include_pad=False or divisor_override")
        self._append(node, Layer("average", name, (value,), node.name, Window(kernel, stride, padding)))


def _convolution(module: nn.Conv2d, name: str, where: str, source: str, output: str) -> Layer:
    if module.padding_mode != "zeros":
        raise _unsupported(f"{where} with padding_mode={module.padding_mode!r}")
    kernel, stride, dilation = _pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)
    padding = (0, 0)
    if module.padding == "same":  # if it cannot be shared equally, the larger half stands below and to the right
        padding = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
    elif module.padding != "valid":
        padding = _pair(module.padding)
    weight = module.weight.detach()
    bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach()
    window = Window(kernel, stride, padding, dilation)
    return Layer("convolution", name, (source,), output, window, weight, bias, module.groups)


def _pool_options(node: fx.Node, kind: Any, module: nn.Module | None) -> dict[str, Any] | None:
    """The options of a pooling by name, whether it is a module or a function; None for what is no pooling."""
    names: dict[Any, tuple[str, ...]] = {
        nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
        nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
        nn.AdaptiveAvgPool2d: ("output_size",),
    }
    functions: dict[Any, Callable[..., Any]] = {
        F.max_pool2d: nn.MaxPool2d,
        F.avg_pool2d: nn.AvgPool2d,
        torch._C._nn.avg_pool2d: nn.AvgPool2d,
        F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    }
    if module is not None:
        known = kind in names and not getattr(module, "return_indices", False)
        return {name: getattr(module, name) for name in names[kind]} if known else None
    cls: Any = functions.get(kind)
    if cls is None or node.kwargs.get("return_indices"):
        return None
    defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "count_include_pad": True}
    return defaults | dict(zip(names[cls], node.args[1:], strict=False)) | dict(node.kwargs)


def _pair(value: Any) -> Pair:
    height, width = value if isinstance(value, tuple | list) else (value, value)
    return int(height), int(width)


def _is_on(dropout: fx.Node) -> bool:
    """Whether a call of F.dropout, in a network in eval mode, drops something."""
    options = {"p": 0.5, "training": True} | dict(zip(("p", "training"), dropout.args[1:], strict=False))
    options |= dropout.kwargs
    return bool(options["training"] and options["p"])


def _text(kind: Any) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


def _unsupported(what: str) -> ValueError:
    return ValueError(f"There is no integer code for {what.removesuffix(',')}. Supported are {SUPPORTED}.")
