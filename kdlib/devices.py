"""Where to compute and with how many bits."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections import UserDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import distributed
from kdlib.errors import unknown_name

PRECISIONS = ("auto", "fp32", "bf16")
AUTOCAST_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # what autocast runs in bfloat16, of the usual layers

NARROWER = {torch.float64: torch.float32, torch.complex128: torch.complex64}


@dataclass(frozen=True)
class DeviceConfig:
    """A device, whether networks run in bfloat16 there, and whether torch.compile translates them first.

    Losses are computed in float32 in any case.
    """

    device: torch.device
    bfloat16: bool
    compile: bool = False

    @property
    def precision(self) -> str:
        """The word of PRECISIONS that resolves to this."""
        return "bf16" if self.bfloat16 else "fp32"

    def autocast(self) -> contextlib.AbstractContextManager:
        """torch.autocast to bfloat16, or nothing in float32."""
        if not self.bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @contextlib.contextmanager
    def layers_in_autocast(self, model: nn.Module) -> Iterator[set[nn.Module]]:
        """The convolutions and linear layers that run in bfloat16 inside the block; to be read after it.

        Not among them: one that does not run, and one that the network runs with autocast switched off, as some do for
        exact logits.
        """
        inside: set[nn.Module] = set()
        outside: set[nn.Module] = set()
        kind = self.device.type

        def note(layer: nn.Module, args: Any) -> None:
            cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
            (inside if cast else outside).add(layer)

        layers = (module for module in model.modules() if type(module) in AUTOCAST_LAYERS)
        handles = [layer.register_forward_pre_hook(note) for layer in layers]
        try:
            yield inside
        finally:
            for handle in handles:
                handle.remove()
            inside.difference_update(outside)

    def cast_weights(self, model: nn.Module, layers: Collection[nn.Module] | None = None) -> dict[str, Tensor]:
        """What autocast would make of a model's convolutions and linear layers at every call, made once.

        Until the weights change, `torch.func.functional_call(model, weights, ...)` then gives the same outputs, to the
        bit, without converting the weights each time (a sixth of a ResNet-18's time on a CPU).
        layers: those whose weights are cast; default, all, for a model that nowhere leaves autocast.
        """
        if not self.bfloat16:
            return {}
        weights: dict[str, Tensor] = {}
        converted: dict[int, Tensor] = {}  # a weight that two layers share is one tensor afterwards, too
        chosen = {module for module in model.modules() if type(module) in AUTOCAST_LAYERS}
        if layers is not None:
            chosen &= set(layers)
        others = (module for module in model.modules() if module not in chosen)
        kept = {id(p) for module in others for p in module.parameters(recurse=False)}  # an embedding's, for instance
        for name, module in model.named_modules():
            if module in chosen:  # a subclass may do more with its weights than multiply by them
                for own, parameter in module.named_parameters(recurse=False):
                    # Not the parts from which weight_norm makes a weight, and none that stays float32 elsewhere; and
                    # autocast leaves float64 alone.
                    if own in ("weight", "bias") and id(parameter) not in kept and parameter.dtype != torch.float64:
                        if id(parameter) not in converted:
                            converted[id(parameter)] = parameter.detach().to(torch.bfloat16)
                        weights[f"{name}.{own}".lstrip(".")] = converted[id(parameter)]
        return weights

    def move(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in the `memory_order` there."""
        if any(one.ndim == 5 for one in (*model.parameters(), *model.buffers())):  # volumes have no such order
            return model.to(self.device)
        return model.to(self.device, memory_format=memory_order(self.device))  # type: ignore[call-overload]  # torch's stub lacks it

    @contextlib.contextmanager
    def borrow(self, model: nn.Module) -> Iterator[None]:
        """Inside the block the model is on the device, as `move` does it; afterwards where and as it lay before."""
        home = next((p.device for p in model.parameters()), torch.device("cpu"))
        # Kept, not made anew at the end: that leaves holes in memory as large as the weights.
        orders = (torch.contiguous_format, torch.channels_last)  # what is expanded stays as it is made
        before = {
            name: t.data
            for name, t in _tensors(model)
            if t.ndim == 4 and any(t.is_contiguous(memory_format=order) for order in orders)
        }
        try:
            self.move(model)
            yield
        finally:
            model.to(home)
            for name, tensor in _tensors(model):
                kept = before.get(name, tensor.data)
                if kept.shape == tensor.shape and kept.stride() != tensor.stride():
                    # Not contiguous(): it leaves the strides of a kernel of one pixel, and convolutions go by them.
                    tensor.data = kept.to(tensor).copy_(tensor.data)

    def move_images(self, images: Tensor) -> Tensor:
        """The images on the device, in the same memory order."""
        return move_maps(images, self.device)

    def __str__(self) -> str:
        return f"{self.device}, {'bfloat16' if self.bfloat16 else 'float32'}{', compiled' * self.compile}"


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def pin_memory(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor in page-locked memory if it goes to a GPU: only then does a copy run beside the computing."""
    return tensor.pin_memory() if torch.device(device).type == "cuda" else tensor


def memory_order(device: torch.device | str) -> torch.memory_format:
    """How images, maps and kernels lie in memory: channels last, in which convolutions run fastest, but not on MPS.

    There the gradients of batch normalisation and of average pooling fail in that order, or are wrong, and nothing says
    so (pytorch issues 175189 and 175190).
    """
    return torch.contiguous_format if torch.device(device).type == "mps" else torch.channels_last


def has_float64(device: torch.device | str) -> bool:
    """Whether tensors of float64 can lie there: not on MPS."""
    return torch.device(device).type != "mps"


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device, float64 and complex128 as their 32-bit kinds where the device has none.

    To a GPU the copy may still run when this returns; torch keeps what it reads from. Elsewhere it would not: on MPS a
    source that is freed before the copy has run is read all the same.
    """
    device = torch.device(device)
    if tensor.dtype in NARROWER and not has_float64(device):  # as of labels that a dataset gives as Python's floats
        tensor = tensor.to(NARROWER[tensor.dtype])
    return tensor.to(device, non_blocking=device.type == "cuda")


def move_maps(maps: Tensor, device: torch.device | str) -> Tensor:
    """Maps or images, B x C x H x W, on the device and in the `memory_order` there."""
    # Not contiguous(): maps of one channel count as such in either order, and keep their strides, by which kernels go.
    return to_device(maps, device).to(memory_format=memory_order(device))


def move_batch(batch: Any, device: torch.device | str, *, copy: bool = False) -> Any:
    """A batch with all its tensors on the device, maps in the `memory_order` there.

    batch: a tensor, a tuple, list, dict or dataclass of them, one in the other, or an object with a method `to`. copy:
    whether a tensor that is there already is copied; what an object's own `to` gives is not.
    """
    if isinstance(batch, Tensor):
        moved = move_maps(batch, device) if batch.ndim == 4 else to_device(batch, device)
        return moved.clone() if copy and moved is batch else moved
    if isinstance(batch, Mapping):  # a dict, or transformers' BatchEncoding
        return with_items(batch, {name: move_batch(value, device, copy=copy) for name, value in batch.items()})
    if callable(getattr(batch, "to", None)):  # also a PackedSequence, a tuple whose sizes stay on the CPU
        return batch.to(device)
    if isinstance(batch, tuple | list):
        parts = [move_batch(value, device, copy=copy) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if is_dataclass(batch) and not isinstance(batch, type):
        return map_fields(batch, partial(move_batch, device=device, copy=copy))
    return batch


def with_items(mapping: Mapping[str, Any], items: dict[str, Any]) -> Mapping[str, Any]:
    """A copy of the same class, whose methods and attributes may be used, with these items; else a dict of them.

    Of another mapping a shallow copy may share its items with the user's, which must stay as they are.
    """
    if not isinstance(mapping, dict | UserDict):
        return items
    try:
        changed: Any = copy.copy(mapping)
        if getattr(mapping, "__dict__", None) is mapping:  # its items are its attributes
            changed.__dict__ = changed
        for name, value in items.items():
            changed[name] = value
    except Exception:  # whatever a class of the user's raises when it is copied, or written to
        return items
    return changed


def map_fields(instance: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a dataclass's instance with each field, and each other tensor, changed; __post_init__ does not run."""
    changed = copy.copy(instance)
    attributes = getattr(changed, "__dict__", {})
    for name in list(attributes):
        if isinstance(getattr(type(instance), name, None), cached_property):
            del attributes[name]  # computed again, from what is changed
    others = [name for name, value in attributes.items() if isinstance(value, Tensor)]
    for name in dict.fromkeys([one.name for one in fields(instance)] + others):
        if hasattr(instance, name):  # a field that is no argument may have no value yet
            object.__setattr__(changed, name, change(getattr(instance, name)))  # it may be frozen
    return changed


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a batch or a model's inputs, however deep they lie in dicts, tuples, lists and dataclasses."""
    if isinstance(value, Tensor):
        yield value
        return
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, tuple | list):
        parts = value
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, one.name, None) for one in fields(value)]  # one that is no argument may have no value
    for part in parts:
        yield from tensors_in(part)


def follow(model: nn.Module, inputs: Any) -> None:
    """Move a model to where its inputs are; nothing to do where it is there."""
    first, parameter = next(tensors_in(inputs), None), next(model.parameters(), None)
    if first is None or parameter is None or parameter.device == first.device:
        return
    if not any(one.is_meta for one in model.parameters()):  # else accelerate brings weights and inputs together
        model.to(first.device)


@contextlib.contextmanager
def isolate_rng(device: torch.device) -> Iterator[None]:
    """What happens inside leaves the random states outside, of the CPU and of this device, as they were."""
    states = get_rng_states(device)
    try:
        yield
    finally:
        set_rng_states(states, device)


def get_rng_states(device: torch.device) -> dict[str, Tensor]:
    """The random states that a computation on this device draws from, by kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `get_rng_states` gave; a kind that this device does not have is ignored."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def seed_rng(seed: int, device: torch.device) -> None:
    """Seed what `get_rng_states` keeps; torch.manual_seed would seed all other devices, too."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def resolve(device: str = "auto", precision: str = "auto", compile: bool = False) -> DeviceConfig:
    """The device and precision to use: "auto" takes CUDA, then MPS, then the CPU, and bfloat16 where the chip has it.

    The environment variable KDLIB_DEVICE says what "auto" takes instead: on "cpu" the notebooks were executed. Several
    processes share a training on CUDA or on the CPU: nothing adds up gradients between MPS devices. In "fp32" the
    convolutions of a newer CUDA card round what they multiply to three digits (TF32), unless
    torch.backends.cudnn.allow_tf32 is False.
    Raises ValueError for an unknown precision, for a device that this machine does not have, and among several
    processes for another GPU than this one's. UserWarning for torch.compile on MPS.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    several = distributed.world_size() > 1
    mps = torch.backends.mps.is_available() and not several
    available = ["cuda"] * (gpus > 0) + ["mps"] * mps + ["cpu"]
    default = os.environ.get("KDLIB_DEVICE") or "auto"
    device = default if device == "auto" else str(device)
    chosen = _parse(available[0] if device == "auto" else device)
    if chosen is not None and chosen.type == "mps" and several:
        raise ValueError("Several processes cannot share a training on MPS: start one, or give --device cpu.")
    if chosen is None or chosen.type not in available or (chosen.type == "cuda" and (chosen.index or 0) >= gpus):
        shown = ", ".join([f"cuda:{gpu}" for gpu in range(gpus)] + [kind for kind in available if kind != "cuda"])
        whose = " (KDLIB_DEVICE)" if device == default else ""
        raise ValueError(f"This machine has no device {device!r}{whose} that torch can use. It has: {shown}.")
    # Its own has a number, too: what process_group set, and a training loop may say it so.
    if several and chosen.type == "cuda" and chosen.index not in (None, torch.cuda.current_device()):
        raise ValueError(
            f"Under torchrun each process takes a GPU of its own, so not all of them can take {device!r}: give "
            "--device cuda."
        )
    if compile and chosen.type == "mps":
        warnings.warn(
            "torch.compile is a prototype on MPS: it can fail in the backward pass, and its numbers can be wrong. "
            "Leave compile out.",
            stacklevel=3,
        )
    return DeviceConfig(chosen, supports_bfloat16(chosen) if precision == "auto" else precision == "bf16", compile)


def take_gpu(device: str, number: int) -> None:
    """In one of several processes: let "cuda" without a number, and so "auto", be the GPU of this process's number.

    More processes than GPUs share them in turn. Rows and fingerprints say "cuda", whichever GPU it is.
    """
    chosen = resolve(device, "fp32").device  # not "auto": to ask GPU 0 for bfloat16 takes memory there
    if chosen.type == "cuda" and chosen.index is None:
        torch.cuda.set_device(number % torch.cuda.device_count())


def _parse(device: str) -> torch.device | None:
    try:
        return torch.device(device)
    except RuntimeError:  # torch knows no such kind of device
        return None


def supports_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: in the chip itself, not emulated."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # of several cards, this one is asked
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Private names of torch: absent on some builds, and there is no public question for these instructions.
        asks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(ask() for ask in asks if ask is not None)
    return False
