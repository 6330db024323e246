"""The state of a training run in one safetensors file: weights, optimiser, position, history, random state.

One file, replaced as a whole, so that a kill between two files cannot mix two moments; and no pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import devices, distributed, files, models


def save(
    path: Path,
    parts: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
    device: torch.device,
) -> None:
    """Write modules, optimiser, JSON facts and random states; the checkpoint before stays until this one is complete.

    Under torchrun every process calls it, to give its random state; the first one writes.
    """
    random = _random_states(device)
    if distributed.rank() > 0:
        return
    tensors = {f"{part}/{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    tensors |= random
    state = optimizer.state_dict()
    numbers: dict[str, Any] = {}  # what an optimiser keeps beside tensors, such as None for an unused buffer
    for parameter, values in state["state"].items():
        for name, value in values.items():
            place = f"optimizer/{parameter}/{name}"
            (tensors if isinstance(value, Tensor) else numbers)[place] = value
    described = {"facts": facts, "numbers": numbers, "groups": state["param_groups"]}
    files.save_tensors(path, tensors, described)


def load(
    path: Path,
    parts: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    run: dict[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Put a saved state back and return its facts.

    run: what the saved run must have been (facts["run"]). Raises ValueError, everything unchanged, for a file that
    is truncated, not a checkpoint, or of another run.
    """
    tensors, described = files.load_tensors(path)
    if "facts" not in described:
        raise ValueError(f"{path} holds weights, not the state of a training run. Give the checkpoint that fit wrote.")
    facts = described["facts"]
    saved = facts["run"]
    # A file of an older version says less; and what differs in its sizes is told better by what puts them back.
    known = [name for name in run if name in saved and (name != "structure" or _same_sizes(parts, tensors))]
    differ = [name for name in known if saved[name] != run[name]]
    if differ == ["structure"]:
        raise ValueError(
            f"{path} belongs to a student with the same weights but other strides, activations or rates of dropout. "
            "Build the student that was saved, or choose another checkpoint to start anew."
        )
    if differ:
        was = {name: saved[name] for name in differ}
        now = {name: run[name] for name in differ}
        raise ValueError(
            f"{path} belongs to another run: it was {was}, now it is {now}. Resume with the same settings, or choose "
            "another checkpoint to start anew."
        )
    for part, module in parts.items():
        models.restore(module, _under(tensors, f"{part}/"), path)
    state: dict[int, dict[str, Any]] = {}
    for place, value in {**_under(tensors, "optimizer/"), **_under(described["numbers"], "optimizer/")}.items():
        parameter, name = place.split("/", 1)
        state.setdefault(int(parameter), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": described["groups"]})
    # A process that was not there when the checkpoint was written keeps the state of its seed.
    mine = {kind: tensors.get(f"random/{kind}/{distributed.rank()}") for kind in ("cpu", "cuda", "mps")}
    devices.set_random_states({kind: state for kind, state in mine.items() if state is not None}, device)
    return facts


def _same_sizes(parts: dict[str, nn.Module], tensors: dict[str, Tensor]) -> bool:
    ours = {
        f"{part}/{name}": tuple(t.shape) for part, module in parts.items() for name, t in module.state_dict().items()
    }
    return all(name in tensors and tuple(tensors[name].shape) == size for name, size in ours.items())


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Every process's states, by kind and rank."""
    states = devices.random_states(device).items()
    return {f"random/{kind}/{r}": one for kind, s in states for r, one in enumerate(distributed.gather(s))}


def _under(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
