"""Where to compute and with how many bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdlib import distributed
from kdlib._messages import unknown

PRECISIONS = ("auto", "fp32", "bf16")
CONVERTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # what autocast runs in bfloat16, of the usual layers


@dataclass(frozen=True)
class Place:
    """A device, whether the networks run in bfloat16 there, and whether torch.compile translates them first.

    Losses are computed in float32 in any case.
    """

    device: torch.device
    bfloat16: bool
    compiled: bool = False

    def autocast(self) -> contextlib.AbstractContextManager:
        if not self.bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """What autocast would make of a model's convolutions and linear layers at every call, made once.

        For a model that does not change, `torch.func.functional_call(model, weights, ...)` then gives the same
        answers, to the bit, without converting the weights each time (a sixth of a ResNet-18's time on a CPU).
        """
        if not self.bfloat16:
            return {}
        found: dict[str, Tensor] = {}
        converted: dict[int, Tensor] = {}  # a weight that two layers share is one tensor afterwards, too
        for name, module in model.named_modules():
            if type(module) in CONVERTED:  # a subclass may do more with its weights than multiply by them
                for own, parameter in module.named_parameters(recurse=False):
                    if own in ("weight", "bias"):  # not the parts from which weight_norm makes a weight
                        if id(parameter) not in converted:
                            converted[id(parameter)] = parameter.detach().to(torch.bfloat16)
                        found[f"{name}.{own}".lstrip(".")] = converted[id(parameter)]
        return found

    def put(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in the memory order that convolutions run fastest in."""
        return model.to(self.device, memory_format=torch.channels_last)

    def put_images(self, images: Tensor) -> Tensor:
        return sent(images, self.device).to(memory_format=torch.channels_last)

    def __str__(self) -> str:
        return f"{self.device}, {'bfloat16' if self.bfloat16 else 'float32'}{', compiled' * self.compiled}"


def pinned(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor in page-locked memory if it is on its way to a GPU: only then does a copy run beside the computing."""
    return tensor.pin_memory() if torch.device(device).type == "cuda" else tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device. To a GPU the copy may still run when this returns; torch keeps what it reads from.

    Elsewhere it would not: on MPS a source that is freed before the copy has run is read all the same.
    """
    device = torch.device(device)
    return tensor.to(device, non_blocking=device.type == "cuda")


@contextlib.contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """What happens inside leaves the random states outside, of the CPU and of this device, as they were."""
    kept = random_states(device)
    try:
        yield
    finally:
        set_random_states(kept, device)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The random states that a computation on this device draws from, by kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what `random_states` gave; a kind that this device has not is passed over."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def choose(device: str = "auto", precision: str = "auto", compiled: bool = False) -> Place:
    """The place for these wishes: "auto" takes CUDA, then MPS, then the CPU, and bfloat16 where the chip has it.

    Several processes share a training on CUDA or on the CPU: there is nothing that adds up gradients between MPS.
    Raises ValueError for an unknown precision and for a device that this machine does not have.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = [*["cuda"][:cards], *["mps"][: torch.backends.mps.is_available() and distributed.size() == 1], "cpu"]
    chosen = _named(available[0] if device == "auto" else str(device))
    if chosen is not None and chosen.type == "mps" and distributed.size() > 1:
        raise ValueError("Several processes cannot share a training on MPS: start one, or give --device cpu.")
    if chosen is None or chosen.type not in available or (chosen.type == "cuda" and (chosen.index or 0) >= cards):
        shown = ", ".join([f"cuda:{card}" for card in range(cards)] + [kind for kind in available if kind != "cuda"])
        raise ValueError(f"This machine has no device {str(device)!r} that torch can use. It has: {shown}.")
    return Place(chosen, has_bfloat16(chosen) if precision == "auto" else precision == "bf16", compiled)


def _named(device: str) -> torch.device | None:
    try:
        return torch.device(device)
    except RuntimeError:  # torch knows no such kind of device
        return None


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: in the chip itself, not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Private names of torch: absent on some builds, and there is no public question for these instructions.
        asks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(ask() for ask in asks if ask is not None)
    return False
