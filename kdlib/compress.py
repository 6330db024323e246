"""Three ways to make a network smaller: set weights to zero, remove channels, keep weights in few bits.

    sparse = compress.prune_weights(model, 0.9)               # 90 % zeros, which stay while it is trained
    narrow = compress.prune_channels(model, 0.5, images[:1])  # a narrower network
    coarse = compress.prepare_qat(model, bits=4)              # rounds weights and activations while it is trained
    train.fit(coarse, data, teacher=model)
    compress.finalize(coarse)                                 # what was held by masks or rounding, as plain weights

Every function gives a new network and leaves the given one as it was. Distillation is not in here: each result is an
nn.Module with the layers' names of before, which `train.fit` trains with or without a teacher.

What is simulated: masks save neither memory nor time. Rounding (`quantize_weights`, `prepare_qat`) computes in floats
that take few values, so it shows the accuracy of integers and none of their speed; `pack_weights` shows their bytes.
What really runs in integers: int8, by `quantize_pt2e` here, or as an ONNX file of `kdlib.export`. For 4 bits and less
no common processor has such instructions.

Why a parametrization with torch's own fake quantization and not torchao's: its QAT replaces linear and embedding layers
only, no convolution, and its PT2E quantizer for x86 is fixed at 8 bits. A parametrization shows the whole rule in five
lines, works for both kinds of layer at any number of bits, and keeps the names of the layers.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import platform
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from kdlib import devices, models
from kdlib.adapters import Adapter
from kdlib.errors import check_flags, check_kind, check_real, check_whole, explain_shape_errors, few
from kdlib.losses._common import off_mps

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose first dimension counts their outputs
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MOST_BITS = 8
LARGEST_WIDTH = 1_000_000
HAIR = 1e-7  # of a ratio: more than float32 rounds it, too little to keep one of LARGEST_WIDTH channels
NOT_FOLLOWED = "a form that torch-pruning cannot follow. Prune the part of it that ends in one layer."
SMALLEST_STEP = torch.finfo(torch.float32).tiny  # a channel of zeros has a step, too


class Mask(nn.Module):
    """Keeps weights at zero: a parametrization that multiplies them by 0 or 1, and so their gradient."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its zeros."""
        return weight * self.mask


class WeightRounding(nn.Module):
    """Rounds weights to few bits: a parametrization with one step for each output channel.

    The values are whole multiples of a step, from -n to n with n = 2^(bits - 1) - 1, and the largest weight of a
    channel is n steps. The gradient passes as if nothing were rounded (straight-through, Bengio et al. 2013).
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight, in floats."""
        return _round(weight, self.bits)

    def extra_repr(self) -> str:
        """The bits, so that a checkpoint of another number of them is refused."""
        return f"bits={self.bits}"


class ActivationRounding(nn.Module):
    """Rounds what goes into a layer to 2^bits values, equal steps apart and zero among them (Jacob et al. 2018).

    They span what was seen: in train mode the limits follow the batches as a moving average. Before the first batch
    nothing is rounded. Under autocast the results are rounded once more, to bfloat16: measure an accuracy in float32.
    """

    low: Tensor
    high: Tensor

    def __init__(self, bits: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.bits, self.momentum = bits, momentum
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The rounded values, in the shape and kind of `x`; the gradient passes between the limits."""
        if self.training:
            self._follow(x.detach())
        elif not bool(self.high > self.low):  # not asked in train mode: a GPU answers when all its work is done
            return x
        near, low, high = (off_mps(tensor) for tensor in (x, self.low, self.high))  # no fake quantization on MPS
        largest = 2**self.bits - 1
        step = ((high - low) / largest).clamp(min=SMALLEST_STEP)
        zero = (-low / step).round().clamp(0, largest).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(near, step, zero, 0, largest).to(x.device)

    @torch.no_grad()
    def _follow(self, values: Tensor) -> None:
        low, high = torch.aminmax(values)
        # Zero stays within the limits: padding and ReLU give it exactly.
        low, high = low.float().clamp(max=0), high.float().clamp(min=0)
        known = self.high > self.low
        self.low.copy_(torch.where(known, self.low.lerp(low, self.momentum), low))
        self.high.copy_(torch.where(known, self.high.lerp(high, self.momentum), high))

    def extra_repr(self) -> str:
        """The bits."""
        return f"bits={self.bits}"


def refuse_activation_rounding(model: nn.Module) -> None:
    """Raise ValueError for a network whose activations are rounded in floats: it is neither rounded anew nor exported.

    Raises TypeError for what is no nn.Module.
    """
    check_kind("a torch.nn.Module", nn.Module, model=model)
    if any(isinstance(one, ActivationRounding) for one in model.modules()):
        raise ValueError(
            "This network rounds its activations already: call compress.finalize(model, "
            "keep_activation_rounding=False) first. Its weights stay rounded."
        )


# --- zeros


def prune_weights(model: nn.Module, amount: float) -> nn.Module:
    """A copy in which the smallest weights of all convolutions and linear layers together are zero, and stay so.

    amount: the share of these weights, between 0 and 1; chosen by magnitude over all layers at once (torch's
    global_unstructured with L1). Masks hold the zeros while the copy is trained, until `finalize`; biases and
    normalisation are left alone, and so are transposed convolutions, which a UserWarning names. Han et al. 2015
    (Learning both weights and connections, arXiv 1506.02626) prune layer by layer and in rounds, with training between
    them.
    Raises ValueError for a share that takes nothing or everything, and for a network that is masked or rounded already.
    """
    _check_share(amount=amount)
    layers = _layers(model)
    total = sum(layer.weight.numel() for layer in layers.values())
    if not 0 < round(amount * total) < total:
        raise ValueError(
            f"amount={amount} of {total} weights are {round(amount * total)}: some must go and some must stay."
        )
    _warn_of_transposed(model)
    copied = copy.deepcopy(model)
    # The choice is made on another copy: what torch.nn.utils.prune leaves behind cannot be copied after a forward pass.
    # It reads no channels_last either.
    scratch = _layers(copy.deepcopy(model).to(memory_format=torch.contiguous_format))  # type: ignore[call-overload,unused-ignore]
    prune.global_unstructured(
        [(layer, "weight") for layer in scratch.values()], pruning_method=prune.L1Unstructured, amount=float(amount)
    )
    for name, layer in scratch.items():
        parametrize.register_parametrization(copied.get_submodule(name), "weight", Mask(layer.weight_mask.detach()))
    return copied


# --- channels


def prune_channels(model: nn.Module, ratio: float, example: Tensor, *, round_to: int = 8) -> nn.Module:
    """A copy from which whole channels are removed, so that it is smaller and faster without any special kernel.

    ratio: the share of the channels of every layer that goes; those with the smallest norm over all layers that they
    run through (DepGraph, Fang et al. 2023, arXiv 2301.12900; torch-pruning). example: one batch of inputs. round_to:
    what is left of each width is rounded down to a multiple of this, because kernels compute that many channels at a
    time; a layer that is no wider stays as it is. Of a grouped convolution each group is rounded by itself, and so are
    the layers that share its channels: 32 channels in 4 groups stay with round_to=8. The layer that is called last
    keeps its outputs. Where a layer's channels are read in parts, as by chunk, more of them may go: a warning says so.
    `models.build` cannot build such a network again: save it with safetensors.torch.save_model.
    Raises ValueError for a ratio that leaves a layer no channel or takes nothing away, for an example that does not
    fit, for layers that are not called in eval mode (heads that only training uses), for a network that puts channels
    in another order (by a permute before it flattens, or a channel shuffle), and for a masked or rounded network;
    ImportError without torch-pruning. Heads of attention that are written by hand are not known as such: do not remove
    channels from them.
    """
    _check_share(ratio=ratio)
    check_whole(1, LARGEST_WIDTH, round_to=round_to)
    check_kind("a batch of inputs, a tensor such as images[:1]", Tensor, example=example)
    layers = _layers(model)
    share = float(ratio) - HAIR  # torch-pruning computes int(width * (1 - share)), and 160 * (1 - 0.8) is 31.999...
    copied = copy.deepcopy(model)
    example = devices.to_device(example, next(copied.parameters()).device)
    modes = {module: module.training for module in copied.modules()}
    flags = {name: parameter.requires_grad for name, parameter in copied.named_parameters()}
    copied.eval().requires_grad_(True)  # the dependencies of layers are read off the graph of the gradients
    last, outputs = _call_order(copied, example)
    pruning = _torch_pruning()
    with torch.enable_grad(), _explain_pruning():
        pruner = pruning.pruner.BasePruner(
            copied,
            example,
            importance=pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            ignored_layers=[copied.get_submodule(last)],
            round_to=round_to,
        )
        narrowed = _narrowed_layers(pruner)
    for name, layer in layers.items():
        width = layer.weight.shape[0]
        left = int(width * (1 - share))
        if name in narrowed and width > round_to > left:
            raise ValueError(
                f"ratio={ratio} leaves {left} of the {width} channels of {name}, and no multiple of round_to={round_to}"
                f" is so small. Take a smaller ratio{', or a smaller round_to' if round_to > 1 else ''}."
            )
    with torch.enable_grad(), _explain_pruning():
        misread = _misread_layers(pruner, example)
        pruner.step()
    groups = max((one.groups for one in layers.values() if 1 < getattr(one, "groups", 1) < one.in_channels), default=1)
    for name in narrowed & layers.keys():
        width = layers[name].weight.shape[0]
        _warn_of_fewer(name, width, copied.get_submodule(name), int(width * (1 - share)), groups * round_to)
    _check_narrower(model, copied, outputs, example, ratio, round_to)
    if misread:
        raise ValueError(
            f"The channels of {few(misread)} are put in another order before they are read, as by a permute or a "
            f"channel shuffle: {NOT_FOLLOWED}"
        )
    for name, parameter in copied.named_parameters():
        parameter.requires_grad_(flags[name])
        parameter.grad = None
    for module, training in modes.items():
        module.training = training
    if models.find_config(copied) is not None:
        del copied.config  # it describes the network of before
    return copied


def _warn_of_fewer(name: str, width: int, layer: Any, left: int, rounding: int) -> None:
    """Say where more channels are gone than the ratio says and rounding explains, by less than so many."""
    after = layer.weight.shape[0]
    if after <= left - rounding:
        warnings.warn(
            f"{after} of the {width} channels of {name} are left, and not {left}, as the ratio says: they are read in "
            "parts (by chunk, split or as a part of what was joined), and those of all parts go together. Take a "
            "smaller ratio to keep more.",
            stacklevel=3,
        )


def _call_order(model: nn.Module, example: Tensor) -> tuple[str, torch.Size]:
    """The layer that is called last, and the shape of the output; ValueError for layers that are not called."""
    called: list[str] = []
    layers = {name: one for name, one in model.named_modules() if isinstance(one, (*LAYERS, *TRANSPOSED))}
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output, name=name: called.append(name))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad(), explain_shape_errors("model", example):
            output = model(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor) or not called:
        raise TypeError(
            f"Channels are removed from a network that gives one tensor; this one gives a {type(output).__name__}."
        )
    idle = [name for name in layers if name not in called]
    if idle:
        raise ValueError(
            f"The layers {few(idle)} are not called in eval mode, as heads that only training uses: they would stay as "
            "wide as they are, and may not fit the others any more. Remove them first."
        )
    return called[-1], output.shape


def _narrowed_layers(pruner: Any) -> set[str]:
    """The layers whose outputs torch-pruning may remove: not those that are added to the outputs of the last one."""
    names = {module: name for name, module in pruner.model.named_modules()}
    groups = pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types)
    return {
        names[dependency.target.module]
        for group in groups
        for dependency, _ in group
        if dependency.target.module in names and pruner.DG.is_out_channel_pruning_fn(dependency.handler)
    }


@torch.no_grad()
def _misread_layers(pruner: Any, example: Tensor) -> list[str]:
    """The layers that torch-pruning is about to narrow, and whose channels are read in another order than it thinks.

    It takes a permute, for instance, for an operation that leaves the channels where they are. A network computes the
    same in whatever order the channels of a layer are, if all that reads them has the same order: try another one.
    """
    inputs = example
    if example.is_floating_point():  # an example of zeros would hide a difference
        inputs = torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    expected = pruner.model(inputs)
    limit = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max()  # sums in another order differ by less

    def differs() -> bool:
        return bool((pruner.model(inputs) - expected).abs().max() > limit)

    if differs():  # it draws random numbers, also in eval mode: nothing can be told by its output
        return []
    groups = list(pruner.step(interactive=True))  # which says what would be removed
    pruner.current_step = 0
    names = {module: name for name, module in pruner.model.named_modules()}
    orders = {names[group[0].dep.target.module]: _other_order(pruner, group) for group in groups}

    def change_the_output(layers: Iterable[str]) -> bool:
        kept = [(tensor, tensor.clone()) for layer in layers for tensor, _, _ in orders[layer]]
        for layer in layers:
            for tensor, dim, order in orders[layer]:
                tensor.copy_(tensor.index_select(dim, order))
        found = differs()
        for tensor, values in kept:
            tensor.copy_(values)
        return found

    if not change_the_output(orders):
        return []
    return [layer for layer in orders if change_the_output([layer])] or list(orders)


def _other_order(pruner: Any, group: Any) -> list[tuple[Tensor, int, Tensor]]:
    """Neighbouring channels in each other's place: the tensors to be reordered, along which dimension, and how.

    Only in the first half of the channels, or a network that turns their order round would compute the same.
    """
    root, graph = group[0].dep, pruner.DG
    grouped = (pruner.in_channel_groups, pruner.out_channel_groups)
    parts = max(counts.get(dep.target.module, 1) for dep, _ in group for counts in grouped)
    width = graph.get_out_channels(root.target.module)
    size = width // parts  # no channel leaves its group of a grouped layer
    if size < 2:
        return []
    first = [one for one in range(width) if one % size % 2 == 0 and one % size + 1 < max(2, size // 2)]
    halves = [graph.get_pruning_group(root.target.module, root.handler, [one + i for one in first]) for i in (0, 1)]
    members = [[(id(dep.target.module), dep.handler, len(channels)) for dep, channels in half] for half in halves]
    if members[0] != members[1]:  # neighbours that lie in two layers, as behind a concatenation
        return []
    changes = []
    for (dep, ones), (_, others) in zip(*halves, strict=True):
        if set(ones) & set(others):  # neighbours that are removed together have no places to change
            return []
        places = dict(zip([*ones, *others], [*others, *ones], strict=True))
        for tensor, dim in _along_channels(dep, graph):
            order = [places.get(one, one) for one in range(tensor.shape[dim])]
            changes.append((tensor, dim, torch.tensor(order, device=tensor.device)))
    return changes


def _along_channels(dependency: Any, graph: Any) -> list[tuple[Tensor, int]]:
    """The tensors that torch-pruning shortens in a layer, each with the dimension that counts its channels."""
    layer = dependency.target.module
    if isinstance(layer, nn.Parameter):
        return [(layer, dependency.target.pruning_dim)]
    inputs = not graph.is_out_channel_pruning_fn(dependency.handler)
    turned = isinstance(layer, nn.Embedding) or getattr(layer, "transposed", False)  # inputs x outputs
    if getattr(layer, "groups", 1) == getattr(layer, "out_channels", 0) > 1:  # depthwise: its inputs are its outputs
        inputs = turned = False
    tensors = [getattr(layer, name, None) for name in ("weight", "bias", "running_mean", "running_var")]
    return [
        (one, int(one.ndim > 1 and inputs != turned))
        for one in tensors
        # A number alone, as the weight of most PReLU, is of all channels.
        if isinstance(one, Tensor) and one.ndim > inputs and one.numel() > 1
    ]


def _check_narrower(
    before: nn.Module, after: nn.Module, outputs: torch.Size, example: Tensor, ratio: float, round_to: int
) -> None:
    sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in (before, after)]
    if sizes[1] >= sizes[0]:
        raise ValueError(
            f"ratio={ratio} takes no channel away: no layer, nor group of a grouped one, is wider than "
            f"round_to={round_to}, or the ratio is too small. Take a larger ratio, or a smaller round_to."
        )
    with torch.no_grad(), _explain_pruning():
        found = after(example).shape
    if found != outputs:
        raise ValueError(
            f"Without these channels the network gives {tuple(found)} instead of {tuple(outputs)}: it has several "
            f"outputs, or {NOT_FOLLOWED}"
        )


@contextmanager
def _explain_pruning() -> Iterator[None]:
    """ValueError for what torch-pruning makes of layers that it does not know: errors of many kinds."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"No channels can be removed ({reason}): the network has {NOT_FOLLOWED}") from error


# --- few bits


def quantize_weights(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose convolutions and linear layers have weights rounded to the nearest of 2^bits - 1 values a channel.

    bits: 2 to 8. After training, without any data; activations stay as they are. Simulated: the weights are floats that
    take few values, so an error is at most half a step, the channel's largest weight / (2^(bits - 1) - 1) / 2.
    Transposed convolutions stay as they are; a UserWarning names them.
    Training the copy moves the weights off these values again: a network is rounded after it was distilled, or
    distilled as `prepare_qat` makes it.
    Raises ValueError for another number of bits, and for a masked or rounded network.
    """
    check_whole(2, MOST_BITS, bits=bits)
    _layers(model)
    _warn_of_transposed(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for layer in _layers(copied).values():
            layer.weight.copy_(_round(layer.weight, bits))
    return copied


def prepare_qat(model: nn.Module, bits: int, activation_bits: int = 8) -> nn.Module:
    """A copy that rounds its weights, and what goes into each layer, at every step: quantization-aware training.

    bits: of weights, a step for each output channel; activation_bits: of the inputs of each layer, whose limits are
    followed in train mode (or set by `calibrate`). Both 2 to 8. `fit` trains it as any network, with a teacher or
    without; the gradient passes the rounding unchanged (Jacob et al. 2018, arXiv 1712.05877). Simulated in floats, see
    the top of this file. Batch norm is not folded first: with a step for each channel, folding multiplies
    weights and step alike. A masked network keeps its zeros. Transposed convolutions are not rounded; a UserWarning
    names them.
    Raises ValueError for other numbers of bits, and for a network that rounds already.
    """
    check_whole(2, MOST_BITS, bits=bits, activation_bits=activation_bits)
    refuse_activation_rounding(model)
    _layers(model, masks=True)
    _warn_of_transposed(model)
    copied = copy.deepcopy(model)
    for layer in _layers(copied, masks=True).values():
        home = layer.weight.device
        parametrize.register_parametrization(layer, "weight", WeightRounding(bits))
        layer.add_module("input_rounding", ActivationRounding(activation_bits).to(home).train(layer.training))
        layer.register_forward_pre_hook(_round_input, with_kwargs=True)
    return copied


def calibrate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """A copy of what `prepare_qat` made whose limits of activations come from these batches, nothing else changed.

    batches: inputs, or what a loader gives (inputs, labels). Raises ValueError for no batch, or a network that rounds
    no activations.
    """
    check_kind("a torch.nn.Module", nn.Module, model=model)
    copied = copy.deepcopy(model)
    roundings = [module for module in copied.modules() if isinstance(module, ActivationRounding)]
    if not roundings:
        raise ValueError("This network rounds no activations: calibrate what prepare_qat(model, bits) gives.")
    modes = {module: module.training for module in copied.modules()}
    home = next(copied.parameters()).device
    copied.eval()
    for rounding in roundings:
        rounding.low.zero_()
        rounding.high.zero_()
        rounding.train()
    with torch.no_grad():
        count = 0
        for count, batch in enumerate(batches, start=1):  # noqa: B007 (how many there were)
            inputs = _inputs(batch)
            first = next(devices.tensors_in(inputs), None)
            if first is not None and first.device != home:
                inputs = devices.move_batch(inputs, home)
            with explain_shape_errors("model", inputs):
                copied(inputs)
    if not count:
        raise ValueError("There is no batch to calibrate with: give some hundred images, in batches.")
    for module, training in modes.items():
        module.training = training
    return copied


def finalize(model: nn.Module, *, keep_activation_rounding: bool = True) -> nn.Module:
    """A copy in which masks and rounding of weights are gone and their results are the weights.

    A masked network is then an ordinary one, which `models.save` writes. keep_activation_rounding: of a network made by
    `prepare_qat`, the rounding of activations is a part of it; False removes it, for an export that finds limits of its
    own. Whoever trains the result fills zeros and leaves the rounded values.
    Raises ValueError for a network with nothing to make permanent.
    """
    check_flags(keep_activation_rounding=keep_activation_rounding)
    check_kind("a torch.nn.Module", nn.Module, model=model)
    removes = not keep_activation_rounding and any(isinstance(one, ActivationRounding) for one in model.modules())
    if not removes and not any(holds_weight(layer) for layer in model.modules()):
        raise ValueError(
            "There is nothing to make permanent: this network has no masks and rounds no weights, or was made "
            "permanent before."
        )
    copied = copy.deepcopy(model)
    for layer in list(copied.modules()):
        if holds_weight(layer):
            _own_class(layer)
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        if hasattr(layer, "input_rounding") and not keep_activation_rounding:
            del layer.input_rounding
            hooks = layer._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is _round_input]:
                del hooks[key], layer._forward_pre_hooks_with_kwargs[key]
    return copied


def pack_weights(model: nn.Module, bits: int) -> dict[str, Tensor]:
    """The network's state with its weights as integers of so many bits, one after the other: what a file would hold.

    For each convolution and linear layer NAME.weight.packed (uint8) and NAME.weight.step (float32, one a channel) take
    the place of NAME.weight; everything else is as in the state_dict, transposed convolutions too, which a UserWarning
    names. bits: 2 to 8. Give it what `quantize_weights` or `finalize` made, or the weights are rounded here.
    `unpack_weights` reads it.
    """
    import numpy as np

    check_whole(2, MOST_BITS, bits=bits)
    layers, state = _layers(model), dict(model.state_dict())
    _warn_of_transposed(model)
    for layer in layers.values():
        step = _steps(layer.weight, bits)
        numbers = (layer.weight.detach().float() / _per_channel(step, layer.weight)).round() + _largest(bits)
        digits = np.unpackbits(numbers.to(torch.uint8).reshape(-1, 1).cpu().numpy(), axis=1)[:, 8 - bits :]
        key, *others = _all_names(model, layer)
        for one in (key, *others):
            del state[one]
        state[f"{key}.packed"] = torch.from_numpy(np.packbits(digits)).to(step.device)
        state[f"{key}.step"] = step
    return state


def unpack_weights(model: nn.Module, state: dict[str, Tensor], bits: int) -> nn.Module:
    """A copy of a network of this form with the weights that `pack_weights` has packed.

    Raises ValueError where the state was packed from another form of network or with another number of bits.
    """
    import numpy as np

    check_whole(2, MOST_BITS, bits=bits)
    copied, state = copy.deepcopy(model), dict(state)
    for name, layer in _layers(copied).items():
        count = layer.weight.numel()
        key, *others = _all_names(copied, layer)
        packed, step = state.pop(f"{key}.packed", None), state.pop(f"{key}.step", None)
        sizes = (math.ceil(count * bits / 8), len(layer.weight))
        if packed is None or step is None or (len(packed), len(step)) != sizes:
            raise ValueError(
                f"The state holds no {tuple(layer.weight.shape)} weights of {bits} bits for {name}: it was packed from "
                "another network, or with another number of bits."
            )
        digits = np.unpackbits(packed.cpu().numpy())[: count * bits].reshape(-1, bits)
        numbers = torch.from_numpy(np.packbits(digits, axis=1) >> (8 - bits)).reshape(layer.weight.shape)
        weight = (numbers.float() - _largest(bits)) * _per_channel(step.cpu(), layer.weight)
        state |= dict.fromkeys((key, *others), weight)
    try:
        copied.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"The state belongs to another network ({error}). Unpack it into one of its form.") from error
    return copied


def _largest(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _steps(weight: Tensor, bits: int) -> Tensor:
    """The step of each output channel, N float32: its largest weight is a whole number of them."""
    return (weight.detach().float().abs().flatten(1).amax(1) / _largest(bits)).clamp(min=SMALLEST_STEP)


def _per_channel(step: Tensor, weight: Tensor) -> Tensor:
    return step.reshape(-1, *[1] * (weight.ndim - 1))


def _round(weight: Tensor, bits: int) -> Tensor:
    near = off_mps(weight)  # no fake quantization on MPS
    largest, step = _largest(bits), _steps(near, bits)
    zero = torch.zeros(len(step), device=near.device)  # of whole numbers torch reads the range, and waits for the GPU
    return torch.fake_quantize_per_channel_affine(near, step, zero, 0, -largest, largest).to(weight.device)


def _round_input(
    layer: Any, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    if not inputs:  # torch calls the first argument of its layers so
        return inputs, {**named, "input": layer.input_rounding(named["input"])}
    return (layer.input_rounding(inputs[0]), *inputs[1:]), named


# --- integers that really run


class CompiledNetwork(nn.Module):
    """A translated network, for inference only: called like the one it was made from.

    It computes on the CPU, and its logits lie where its inputs do. It shows no parameters, because its weights are
    integers inside the program; train() and eval() change nothing.
    """

    weights_in_program = True  # kdlib.measure refuses to count them

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.__dict__["program"] = program  # not a submodule: an exported graph refuses train() and eval()
        self.compiled: set[torch.Size] = set()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits; a shape of inputs that is new is compiled first."""
        import torch._inductor.config as inductor

        program: Any = self.__dict__["program"]
        # Freezing folds the rounding of weights into the program; without it, it would be slower than float32. As an
        # option of torch.compile it comes too late: torch 2.13 then cannot run onednn::qconv_prepack.
        with inductor.patch(freezing=True), nullcontext() if x.shape in self.compiled else _quiet():
            logits = program(x.cpu().contiguous())
        self.compiled.add(x.shape)
        return logits.to(x.device)


def quantize_pt2e(model: nn.Module, calibration: Iterable[Any]) -> nn.Module:
    """The network in 8-bit integers for x86 processors, translated by torch.compile: smaller and really faster.

    calibration: batches of inputs, or of what a loader gives; some hundred images of one size set the limits of
    activations. torchao's PT2E (export, calibrate, convert) with the quantizer for inductor on x86, in eval mode.
    The result takes any number of samples, but the first call with each number compiles a program for it, which takes
    up to half a minute: keep to a few numbers, and leave these calls out of a timing. torch compiles eight of them;
    with others the result is the same, and slow.
    Activations have 8 bits, on an x86 processor without VNNI only 7: it would compute wrong sums with 8. So call it on
    the machine that the result is for, or on one like it.
    Raises OSError without a C++ compiler (an int8 ONNX file by kdlib.export needs none), ImportError without torchao,
    ValueError for no batch, inputs that do not fit and networks that cannot be exported.
    """
    refuse_activation_rounding(model)
    _layers(model)
    _check_compiler()
    batches = [_inputs(batch).cpu().contiguous() for batch in calibration]
    if not batches:
        raise ValueError("There is no batch to calibrate with: give some hundred images, in batches.")
    example = batches[0] if len(batches[0]) > 1 else torch.cat([batches[0]] * 2)  # export takes 1 for a constant
    copied = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    with torch.no_grad(), explain_shape_errors("model", example):
        copied(example)
    with _quiet():
        steps, quantizers = _torchao()
        try:
            exported = torch.export.export(copied, (example,), dynamic_shapes=({0: torch.export.Dim("samples")},))
        except Exception as error:  # torch.export fails in many ways
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"torch.export cannot read this {type(model).__name__} ({reason}).") from error
        quantizer = quantizers.X86InductorQuantizer()
        config = quantizers.get_default_x86_inductor_quantization_config(reduce_range=sums_overflow())
        quantizer.set_global(config)
        prepared = steps.prepare_pt2e(exported.module(), quantizer)
        with torch.no_grad():
            for batch in batches:
                prepared(batch)
        converted = steps.convert_pt2e(prepared)
    # For each number of samples a program of its own: one for all of them fails in torch 2.13, in the order of memory.
    return CompiledNetwork(torch.compile(converted, dynamic=False))


def _check_compiler() -> None:
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX") or default
    if shutil.which(name.split()[0]) is None:
        raise OSError(
            f"torch.compile needs a C++ compiler, and there is no {name} here. Install one, or write an int8 ONNX file "
            "by kdlib.export, which ONNX Runtime runs without any compiler."
        )


def sums_overflow() -> bool:
    """Whether this is an x86 processor without VNNI, which adds two products of 8-bit integers in 16 bits."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 knows no AVX-VNNI
    return not (torch.cpu._is_vnni_supported() or capabilities.get("avx_vnni", False))


# --- what is shared


def _layers(model: nn.Module, *, masks: bool = False) -> dict[str, Any]:
    """The layers with weights to be compressed, by name; masks: whether these may be masked.

    Raises TypeError for what is no network, ValueError for one without such layers, with an nn.MultiheadAttention, with
    weights that are held already, shared or not finite.
    """
    check_kind("a torch.nn.Module", nn.Module, model=model)
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            raise ValueError(
                f"{name or 'The network'} is an nn.MultiheadAttention, which keeps three layers in one parameter: they "
                "would stay as they are, and channels would be taken from its heads at random. Write queries, keys and "
                "values as an nn.Linear each, as transformers does, or compress the parts around it."
            )
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    if not layers:
        raise ValueError(
            f"This {type(model).__name__} has no convolution and no linear layer, so there is nothing to compress."
        )
    weights = {}
    for name, layer in layers.items():
        if nn.parameter.is_lazy(layer.weight) or layer.weight.device.type == "meta":
            raise ValueError(f"The weights of {name or 'this layer'} are not there yet. Run one batch, or load them.")
        _check_free(name, layer, masks)
        if not bool(layer.weight.isfinite().all()):
            raise ValueError(f"The weights of {name or 'this layer'} are not finite. Load or train the network anew.")
        held = parametrize.is_parametrized(layer, "weight")
        parts: Any = layer
        weights[name] = parts.parametrizations.weight.original if held else parts.weight
    owners = Counter(id(one) for module in model.modules() for one in module._parameters.values())
    for name, weight in weights.items():
        if owners[id(weight)] > 1:
            raise ValueError(
                f"{name or 'This layer'} and another layer, an embedding perhaps, share their weights, and compression "
                "would part them. Give each its own."
            )
    return layers


def _warn_of_transposed(model: nn.Module) -> None:
    """Say which layers are left out: of a transposed convolution the first dimension counts the inputs."""
    names = [name for name, module in model.named_modules() if isinstance(module, TRANSPOSED)]
    if names:
        warnings.warn(
            f"The transposed convolutions {few(names)} stay as they are: only other convolutions and linear layers are "
            "compressed.",
            stacklevel=3,
        )


def _all_names(model: nn.Module, layer: nn.Module) -> list[str]:
    """The names of a layer's weight in the state: several where one layer is called by several names."""
    return [
        f"{name}.weight".lstrip(".")  # a layer alone has no name
        for name, module in model.named_modules(remove_duplicate=False)
        if module is layer
    ]


def _check_free(name: str, layer: Any, masks: bool) -> None:
    kinds = [type(one) for one in layer.parametrizations.weight] if parametrize.is_parametrized(layer, "weight") else []
    plain = kinds or "weight" in layer._parameters  # where prune and the older weight_norm and spectral_norm leave none
    if set(kinds) <= ({Mask} if masks else set()) and plain:
        return
    if set(kinds) <= {Mask, WeightRounding} and kinds:
        done = "masked" if WeightRounding not in kinds else "rounded"
        raise ValueError(
            f"The weights of {name or 'this layer'} are {done} already: call compress.finalize on the network first."
        )
    raise ValueError(
        f"The weights of {name or 'this layer'} are computed from others (by pruning or a normalisation of torch's). "
        "Make them plain first: prune.remove, remove_weight_norm, or parametrize.remove_parametrizations."
    )


def holds_weight(layer: Any) -> bool:
    """Whether the layer's weight is a result of this file's masks or rounding."""
    if not isinstance(layer, LAYERS) or not parametrize.is_parametrized(layer, "weight"):
        return False
    steps: Any = layer.parametrizations["weight"]  # type: ignore[index]
    return all(isinstance(one, Mask | WeightRounding) for one in steps)


def _own_class(layer: nn.Module) -> None:
    """Give a copied layer a class of its own.

    torch makes a class with the property "weight" for each parametrized layer, and a copy shares it: to remove the
    parametrization of the copy would take the weight of the given network away.
    """
    shared = type(layer)
    members = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, members)


def _check_share(**values: Any) -> None:
    check_real(**values)
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} is a share between 0 and 1, such as 0.5; got {value!r}.")


def _inputs(batch: Any) -> Any:
    return batch if isinstance(batch, Tensor) else Adapter().student_inputs_of(batch)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torchao and torch log and warn of at import, export and compilation, for their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError(
            'prune_channels needs the package torch-pruning. Run: pip install "kdlib[compress]".'
        ) from error
    return torch_pruning


def _torchao() -> tuple[Any, Any]:
    try:
        from torchao.quantization.pt2e import quantize_pt2e as steps
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as quantizers
    except ImportError as error:
        raise ImportError('quantize_pt2e needs the package torchao. Run: pip install "kdlib[compress]".') from error
    return steps, quantizers
