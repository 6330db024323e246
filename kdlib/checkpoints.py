"""The state of a training run in one safetensors file: weights, optimiser, position, history, random state.

One file, replaced as a whole, so that a kill between two files cannot mix two moments; and no pickle.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kdlib import devices, distributed, files, models, schemas
from kdlib.errors import DivergedError, as_whole


@dataclass(frozen=True)
class Checkpointer:
    """Writes and reads the checkpoint of a run. path: None writes none. every: steps between two, beside one an epoch.

    Raises ValueError for less than one step.
    """

    path: Path | None
    every: int | None = None
    holds_this_run: bool = field(default=False, init=False)  # and not an earlier one

    def __post_init__(self) -> None:
        if self.every is not None:
            object.__setattr__(self, "every", as_whole(checkpoint_every=self.every))

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint belongs after this step."""
        return self.every is not None and step % self.every == 0

    def exists(self) -> bool:
        """Whether there is a checkpoint; ValueError where some processes see one and others do not."""
        there = self.path is not None and self.path.exists()
        seen = distributed.all_reduce_values({"there": float(there)})["there"]
        if 0 < seen < distributed.world_size():
            raise ValueError(
                f"{seen:.0f} of {distributed.world_size()} processes see the checkpoint {self.path}: on several "
                "machines it must lie on a disk that all of them share."
            )
        return there

    def check(self, resume: bool) -> None:
        """Before anything is trained: OSError where it could not be written, ValueError where it would replace a file.

        A checkpoint of an earlier run is replaced, as its name says; another file, such as a model's, is not.
        """
        if self.path is None or distributed.rank() > 0:
            return
        if self.path.is_dir():
            raise IsADirectoryError(
                errno.EISDIR, f"Could not write {self.path}: it is a folder. Name a file in it, such as run.checkpoint"
            )
        files.refuse_unwritable(self.path.parent)
        if self.path.exists() and not resume and not _is_checkpoint(self.path):
            raise ValueError(
                f"{self.path} is there and is no checkpoint of a run, which would replace it. Name another file, or "
                "remove this one."
            )

    def diverged(self, what: str) -> DivergedError:
        """The error for a training that went wrong, with the last good checkpoint and what to do."""
        saved = self.path if self.holds_this_run and self.path and self.path.exists() else None
        advice = (
            "First see that all inputs and labels are finite (tensor.isfinite().all()). Lower the learning rate, clip "
            "gradients (Recipe(clip=1)), or use precision='fp32' if they are, and start anew."
        )
        checkpoint = f"The last good checkpoint is {saved}." if saved else "No checkpoint was written."
        return DivergedError(what, f"{checkpoint} {advice}")

    def save(
        self,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        options: list[dict[str, Any]],
        facts: dict[str, Any],
        device: torch.device,
    ) -> None:
        """Write modules, optimiser, JSON facts and random states; the checkpoint before stays until this is complete.

        modules: by name; "student" is the one that `models.load` opens. options: the `plain_groups` of the optimiser
        before its first step.
        Under torchrun every process calls it, to give its random state; the first one writes. Without a path nothing
        is written.
        """
        if self.path is None:
            return
        rng_states = _gather_rng_states(device)
        object.__setattr__(self, "holds_this_run", True)
        if distributed.rank() > 0:
            return
        tensors = {f"{part}/{name}": t for part, module in modules.items() for name, t in module.state_dict().items()}
        tensors |= rng_states
        state = optimizer.state_dict()
        scalars: dict[str, Any] = {}  # what an optimiser keeps beside tensors, such as None for an unused buffer
        for parameter, values in state["state"].items():
            for name, value in values.items():
                key = f"optimizer/{parameter}/{name}"
                (tensors if isinstance(value, Tensor) else scalars)[key] = _outline(value, key, tensors)
        metadata = {"facts": facts, "scalars": scalars, "param_groups": plain_groups(optimizer), "options": options}
        files.save_tensors(self.path, tensors, metadata)

    def load(
        self,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        run: dict[str, Any],
        device: torch.device,
        check: Callable[[dict[str, Any]], None] = lambda facts: None,
    ) -> dict[str, Any]:
        """Restore a saved state and return its facts.

        run: what the saved run must have been (facts["run"]). check: raises ValueError for facts that cannot be. Raises
        ValueError, everything unchanged, for a file that is truncated, not a checkpoint, or of another run.
        """
        if self.path is None:
            raise ValueError("There is no path to load a checkpoint from: give fit(..., checkpoint=FILE).")
        tensors, metadata = files.load_tensors(self.path)
        if "facts" not in metadata:
            raise ValueError(
                f"{self.path} holds weights, not the state of a training run. Give the checkpoint that fit wrote."
            )
        facts = metadata["facts"]
        # A process that was not there when the checkpoint was written keeps the state of its seed.
        found = {kind: tensors.get(f"random/{kind}/{distributed.rank()}") for kind in ("cpu", "cuda", "mps")}
        rng_states = {kind: state for kind, state in found.items() if state is not None}
        with self._explained():
            schemas.check("it", metadata, schemas.CHECKPOINT)
            schemas.check("it", facts, schemas.FACTS)
        self._refuse_other_run(facts["run"], run, fits=_same_sizes(modules, tensors))
        for part, module in modules.items():
            models.check_fit(module.state_dict(), _under(tensors, f"{part}/"), self.path)
        with self._explained():
            state = _optimizer_state(tensors, metadata["scalars"])
            check(facts)
            groups, own = metadata["param_groups"], plain_groups(optimizer)
            schemas.check_optimizer(optimizer, state, groups, metadata.get("options", groups), own)
            for kind, random_state in devices.get_rng_states(device).items():
                if kind in rng_states:
                    schemas.check_random_state(kind, rng_states[kind], random_state)
        # Nothing was changed so far, and from here on nothing can fail.
        for part, module in modules.items():
            module.load_state_dict(_under(tensors, f"{part}/"))
        now = optimizer.state_dict()["param_groups"]
        groups = [{n: _like(v, own.get(n)) for n, v in one.items()} for one, own in zip(groups, now, strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        devices.set_rng_states(rng_states, device)
        object.__setattr__(self, "holds_this_run", True)
        return facts

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of which file an entry is wrong."""
        try:
            yield
        except ValueError as error:
            raise ValueError(
                f"{self.path} is not a checkpoint that can be gone on from: {error}. Restore it, or choose another one "
                "to start anew."
            ) from error

    def _refuse_other_run(self, saved: Mapping[str, Any], run: Mapping[str, Any], *, fits: bool) -> None:
        # A file of an older version says less; and other sizes are explained better by the loading of the weights.
        known = [name for name in run if name in saved and (name != "structure" or fits)]
        differ = [name for name in known if saved[name] != run[name]]
        for name in ("threads", "teacher outputs"):  # on a GPU, or the user does not mind; from a network that is run
            if None in (saved.get(name), run.get(name)):
                differ = [one for one in differ if one != name]
        if _kind_of_device(saved.get("precision")) == _kind_of_device(run.get("precision")):
            differ = [name for name in differ if name != "precision"]
        if differ == ["threads"]:
            raise ValueError(
                f"{self.path} was written with {saved['threads']} threads, and now torch computes with "
                f"{run['threads']}: sums are then rounded in another order, and the run is no longer the same to the "
                f"bit. Call torch.set_num_threads({saved['threads']}) first, or set OMP_NUM_THREADS="
                f"{saved['threads']}; or go on all the same with other_threads=True (--other-threads)."
            )
        if differ == ["structure"]:
            raise ValueError(
                f"{self.path} belongs to a student with the same weights but other strides, activations or rates of "
                "dropout. Build the student that was saved, or choose another checkpoint to start anew."
            )
        if differ:
            was, now = _differing(saved, run, differ)
            raise ValueError(
                f"{self.path} belongs to another run: it was {was}, now it is {now}. Resume with the same settings, or "
                "choose another checkpoint to start anew."
            )


def trained_seconds(path: Path) -> float:
    """How long the run of a checkpoint has trained; 0 where there is none that can be read."""
    facts = _facts_of(path)
    seconds = facts.get("seconds") if isinstance(facts, dict) else None
    return seconds if isinstance(seconds, float) else 0.0


def _kind_of_device(precision: Any) -> str:
    """A device and its precision without the device's number: which GPU of a machine it is does not matter."""
    return re.sub(r":\d+", "", str(precision), count=1)


def _is_checkpoint(path: Path) -> bool:
    return _facts_of(path) is not None


def _facts_of(path: Path) -> Any:
    """What the header of a checkpoint says of its run, without the weights; None where there is none to be read."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = schemas.read_json((file.metadata() or {}).get("kdlib", "{}"))
    except (SafetensorError, ValueError, OSError):
        return None
    return metadata.get("facts") if isinstance(metadata, dict) else None


def plain_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The groups of an optimiser as its state has them, with numbers in place of tensors of one number."""
    groups = optimizer.state_dict()["param_groups"]
    return [{name: _plain(value) for name, value in group.items()} for group in groups]


def refuse_unwritable(groups: list[dict[str, Any]]) -> None:
    """Raise TypeError for what an optimiser's groups hold and no file can, before an epoch is lost by it."""
    for group in groups:
        for name, value in group.items():
            if not files.is_description(value):
                raise TypeError(
                    f"The optimiser's option {name!r} is a {type(value).__name__}, which no checkpoint can hold. "
                    "Take a number or a text, keep it outside of the optimiser's groups, or leave out the checkpoint."
                )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _like(value: Any, own: Any) -> Any:
    """A saved value of a group, as a tensor where the optimiser keeps one."""
    if isinstance(value, list) and isinstance(own, tuple | list) and len(value) == len(own):
        return type(own)(_like(one, other) for one, other in zip(value, own, strict=True))
    return torch.full_like(own, value) if isinstance(own, Tensor) else value


def _outline(value: Any, key: str, tensors: dict[str, Tensor], listed: bool = False) -> Any:
    """What an optimiser keeps, with names in place of the tensors in its lists; these are put among `tensors`."""
    if isinstance(value, list | tuple):
        return [_outline(one, f"{key}/{number}", tensors, listed=True) for number, one in enumerate(value)]
    if not listed or not isinstance(value, Tensor):
        return value
    tensors[f"listed/{key}"] = value
    return {"tensor": f"listed/{key}"}


def _filled_in(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `_outline`; ValueError for a tensor that is not there."""
    if isinstance(value, list):
        return [_filled_in(one, tensors) for one in value]
    if not isinstance(value, dict) or value.keys() != {"tensor"}:
        return value
    found = tensors.get(str(value["tensor"]))
    if found is None:
        raise ValueError(f"its optimiser's {value['tensor']!r} is not there")
    return found


def _optimizer_state(tensors: dict[str, Tensor], scalars: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**_under(tensors, "optimizer/"), **_under(scalars, "optimizer/")}.items():
        parameter, _, name = key.partition("/")
        if not (parameter.isascii() and parameter.isdigit() and name):
            raise ValueError(f"'optimizer/{key}' names no parameter of an optimiser")
        state.setdefault(int(parameter), {})[name] = _filled_in(value, tensors)
    return state


def _differing(
    saved: Mapping[str, Any], run: Mapping[str, Any], names: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What differs in two runs, of dictionaries only those entries."""
    was, now = {name: saved[name] for name in names}, {name: run[name] for name in names}
    for name in names:
        if isinstance(was[name], dict) and isinstance(now[name], dict):
            keys = {k for k in {*was[name], *now[name]} if was[name].get(k) != now[name].get(k)}
            was[name], now[name] = ({k: one[k] for k in sorted(keys & one.keys())} for one in (was[name], now[name]))
    return was, now


def _same_sizes(modules: Mapping[str, nn.Module], tensors: dict[str, Tensor]) -> bool:
    sizes = {
        f"{part}/{name}": tuple(t.shape) for part, module in modules.items() for name, t in module.state_dict().items()
    }
    return all(name in tensors and tuple(tensors[name].shape) == size for name, size in sizes.items())


def _gather_rng_states(device: torch.device) -> dict[str, Tensor]:
    """Every process's states, by kind and rank."""
    states = devices.get_rng_states(device).items()
    return {f"random/{kind}/{r}": one for kind, s in states for r, one in enumerate(distributed.all_gather(s))}


def _under(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
