"""Teachers: a network that is only asked, or its stored answers. A teacher never learns and never changes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib import devices, distributed
from kdlib._messages import explained
from kdlib.data import NONE, Augmentation, Batch, Split, origin
from kdlib.files import digest, write_text
from kdlib.taps import Answer, Taps


class Teacher(Protocol):
    """What the training loop asks of a teacher."""

    views: int | None  # how many views it has answers for; None: any

    def opened(self, layers: Sequence[str], place: devices.Place) -> Any:
        """A context in which the teacher answers, with these layers."""
        ...

    @property
    def identity(self) -> str:
        """A digest of the network's weights and structure."""
        ...

    def accept(self, split: Split, augmentation: Augmentation, seed: int) -> None:
        """Raise ValueError unless it can answer for these pictures."""
        ...

    def __call__(self, batch: Batch) -> Answer: ...


class Frozen:
    """A network as a teacher: in eval mode and without gradient at every call, given back as it was."""

    views = None
    _place: devices.Place

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._taps: Taps | None = None

    @contextmanager
    def opened(self, layers: Sequence[str], place: devices.Place) -> Iterator[Frozen]:
        """Inside the block the teacher answers from `place`; afterwards modes and devices are as before."""
        modes = {module: module.training for module in self.model.modules()}
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        try:
            place.put(self.model)
            self._place = place
            weights = place.weights(self.model)
            with Taps(self.model, layers, compiled=place.compiled, weights=weights) as self._taps:
                yield self
        finally:
            self._taps = None
            self.model.to(device)
            for module, training in modes.items():
                module.training = training

    @property
    def identity(self) -> str:
        return digest(self.model.state_dict(), repr(self.model))  # the text shows strides, activations and the like

    def accept(self, split: Split, augmentation: Augmentation, seed: int) -> None:
        """A live teacher sees the very batch the student sees, so any pictures will do."""

    @torch.no_grad()  # not inference_mode: its tensors cannot be saved for the student's backward pass
    def __call__(self, batch: Batch) -> Answer:
        if self._taps is None:
            raise RuntimeError("A Frozen teacher answers inside `with teacher.opened(layers, place):`.")
        self.model.eval()  # at every call: whoever holds the model may have called train() in between
        with self._place.autocast():
            return self._taps(batch.images)


class Cached:
    """A teacher's stored answers, by (sample index, view): a distillation step then costs what a plain step costs.

        teacher = Cached.build(model, fashion.train, augmentation=fashion.augmentation, seed=0, views=3)

    Build it with `Cached.build`. It refuses pictures that it has no answers for.
    """

    def __init__(self, key: dict[str, Any], indices: Tensor, stored: dict[str, Tensor]) -> None:
        self.key = key
        self.views = key["views"]
        self._stored = stored
        self._rows = torch.full((int(indices.max()) + 2,), -1)  # -1: not stored, as the last place always says
        self._rows[indices] = torch.arange(len(indices))
        self._layers: tuple[str, ...] = ()
        self._device = torch.device("cpu")

    @classmethod
    def build(
        cls,
        model: nn.Module,
        split: Split,
        *,
        augmentation: Augmentation = NONE,
        seed: int = 0,
        views: int = 1,
        layers: Sequence[str] = (),
        directory: str | Path | None = None,
        half: bool | None = None,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 256,
        progress: bool = True,
    ) -> Cached:
        """Ask the teacher about every sample of `split` in `views` augmented views, once.

        layers: names whose outputs are stored too. directory: keep the answers there as memory-mapped arrays; a
        finished cache in it is opened again instead of asking, and refused when data, teacher, augmentation, seed,
        views, layers or precision differ. Under torchrun each process asks about its part, and the directory is one
        that all of them see. half: store in 16 bits (default: only in a directory).
        Raises ValueError for fewer than one view, an empty split or a cache of something else.
        """
        if views < 1 or len(split) == 0:
            raise ValueError(f"A cache needs at least one view of one sample; got {views} views of {len(split)}.")
        place = devices.choose(device, precision)
        half = directory is not None if half is None else half
        key = _key(model, split, augmentation, seed, views, layers, half, place)
        if directory is not None and (Path(directory) / "cache.json").exists():
            return cls.open(directory, key, split.indices)
        stored: dict[str, Tensor] = {}
        mine = distributed.part(len(split))  # under torchrun each process asks about its part
        places = torch.arange(len(split))[mine]
        asked = {"augmentation": augmentation, "seed": seed, "device": place.device, "places": places}
        teacher = Frozen(model)
        silent = not progress or distributed.rank() > 0
        with (
            teacher.opened(layers, place),
            tqdm(total=views * len(places), desc="asking the teacher", unit="img", disable=silent) as bar,
        ):
            for view in range(views):
                start = mine.start
                for batch in split.batches(batch_size, view=view, **asked):
                    with explained("teacher", batch.images):
                        answer = teacher(batch)
                    for name, values in {"": answer.logits, **answer.layers}.items():
                        if name not in stored:
                            shape = (views, len(split), *values.shape[1:])
                            stored[name] = _allocate(directory, name, shape, half)
                        _store(stored[name][view, start : start + len(batch)], values, name)
                    start += len(batch)
                    bar.update(len(batch))
        _complete(directory, stored, key)
        return cls(key, split.indices, stored)

    @classmethod
    def open(cls, directory: str | Path, key: dict[str, Any], indices: Tensor) -> Cached:
        """Open a finished cache without reading it into memory; ValueError if it answers another question."""
        directory = Path(directory)
        try:
            found = json.loads((directory / "cache.json").read_bytes())
            if not isinstance(found, dict):
                raise ValueError("cache.json describes no cache")
            # The origin is left out: it is a digest of data, augmentation and seed, which are there themselves.
            differ = [what for what in key if what != "origin" and found.get(what) != key[what]]
            names = () if differ else ("", *key["layers"])
            stored = {name: _map(directory, name, (key["views"], len(indices))) for name in names}
        except (OSError, ValueError) as error:
            raise ValueError(f"The cache in {directory} cannot be read ({error}). Delete the folder.") from error
        if differ:
            raise ValueError(
                f"The cache in {directory} was built for another {', '.join(differ)}. Its answers would belong to "
                "other pictures or another teacher: delete the folder or name a new one."
            )
        return cls(key, indices, stored)

    @contextmanager
    def opened(self, layers: Sequence[str], place: devices.Place) -> Iterator[Cached]:
        """Inside the block the answers hold these layers and come to `place`; ValueError if they were not stored."""
        missing = [name for name in layers if name not in self._stored]
        if missing:
            stored = ", ".join(name for name in self._stored if name) or "none"
            raise ValueError(
                f"The cache holds no outputs of {missing} (stored layers: {stored}). Build it with "
                f"layers={list(layers)}, or use the teacher itself."
            )
        before = self._layers, self._device
        self._layers, self._device = tuple(layers), place.device
        try:
            yield self
        finally:
            self._layers, self._device = before

    @property
    def identity(self) -> str:
        return self.key["teacher"]

    def accept(self, split: Split, augmentation: Augmentation, seed: int) -> None:
        if origin(split, augmentation, seed) != self.key["origin"]:
            asked = {"data": split.fingerprint, "augmentation": asdict(augmentation), "seed": seed}
            differ = [what for what, value in asked.items() if self.key[what] != value]
            raise ValueError(
                f"The cached answers were given for another {' and '.join(differ)}. A teacher's answer belongs to the "
                "same view of the same image: build the cache with the data, augmentation and seed of this run."
            )

    def __call__(self, batch: Batch) -> Answer:
        rows = self._rows[batch.indices.clamp(max=len(self._rows) - 1)]
        if batch.origin != self.key["origin"] or not 0 <= batch.view < self.views or (rows < 0).any():
            raise ValueError(
                f"The cache has no answer for view {batch.view} of these pictures (it holds {self.views} views of one "
                "data set under one augmentation and seed). Train with what it was built for."
            )
        answers = {
            name: devices.sent(devices.pinned(values[batch.view, rows], self._device), self._device).to(torch.float32)
            for name, values in self._stored.items()
            if not name or name in self._layers
        }
        return Answer(answers.pop(""), answers)


def _key(
    model: nn.Module,
    split: Split,
    augmentation: Augmentation,
    seed: int,
    views: int,
    layers: Sequence[str],
    half: bool,
    place: devices.Place,
) -> dict[str, Any]:
    """Everything that stored answers depend on."""
    return {
        "origin": origin(split, augmentation, seed),
        "data": split.fingerprint,
        "augmentation": asdict(augmentation),
        "seed": seed,
        "views": views,
        "teacher": Frozen(model).identity,
        "layers": list(layers),
        "half": half,
        "precision": "bfloat16" if place.bfloat16 else "float32",
    }


def _file(directory: str | Path, name: str) -> Path:
    return Path(directory) / (f"layer-{name}.npy" if name else "logits.npy")  # a layer may be called "logits"


def _complete(directory: str | Path | None, stored: dict[str, Tensor], key: dict[str, Any]) -> None:
    """Put together what the processes have asked."""
    if directory is None:
        for values in stored.values():
            distributed.add(values)
        return
    distributed.wait()
    if distributed.rank() == 0:
        write_text(Path(directory) / "cache.json", json.dumps(key, indent=1))  # last: it says "complete"
    distributed.wait()


def _allocate(directory: str | Path | None, name: str, shape: tuple[int, ...], half: bool) -> Tensor:
    if directory is None:
        empty = torch.empty if distributed.size() == 1 else torch.zeros  # the parts of several are added up
        return empty(shape, dtype=torch.float16 if half else torch.float32)
    path = _file(directory, name)
    if distributed.rank() > 0:
        distributed.wait()
        return torch.from_numpy(np.lib.format.open_memmap(path, "r+"))
    array = _create(path, shape, np.dtype(np.float16 if half else np.float32))
    distributed.wait()
    return torch.from_numpy(array)


def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        _reserve(path)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        size = math.prod(shape) * dtype.itemsize / 1e6
        raise OSError(
            error.errno,
            f"Could not write {path} ({size:,.0f} MB): {error.strerror}. Free some space or choose another folder",
        ) from error
    return array


def _reserve(path: Path) -> None:
    # A new memory map is a hole: on a full disk the first write to it would kill the process, without a message.
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _store(place: Tensor, values: Tensor, name: str) -> None:
    place.copy_(values)
    if torch.isfinite(place).all():
        return
    what = f"The teacher's {f'outputs of {name!r}' if name else 'logits'}"
    if torch.isfinite(values).all():
        raise ValueError(f"{what} are too large for 16 bits. Build the cache with half=False.")
    raise ValueError(f"{what} are not finite. Evaluate the teacher: its weights may be damaged.")


def _map(directory: Path, name: str, size: tuple[int, int]) -> Tensor:
    path = _file(directory, name)
    # "c": writes stay in memory, so nothing that a loss does can alter the file. Unlike np.load it opens no pickle.
    array = np.lib.format.open_memmap(path, "c")
    if array.shape[:2] != size:
        raise ValueError(f"{path.name} holds {array.shape}, not {size[0]} views of {size[1]} samples")
    return torch.from_numpy(array)
