"""Teachers: a frozen network, or its stored outputs. A teacher never learns and never changes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib import devices, distributed
from kdlib.data import NO_AUGMENTATION, Augmentation, Batch, IndexedDataset, view_fingerprint
from kdlib.errors import explain_shape_errors
from kdlib.files import fingerprint, write_text
from kdlib.hooks import FeatureExtractor, ModelOutput


class Teacher(Protocol):
    """What the trainer needs of a teacher."""

    views: int | None  # for how many views it has outputs; None: for any

    def activate(self, layers: Sequence[str], config: devices.DeviceConfig) -> Any:
        """A context in which the teacher can be called, and gives these layers as features."""
        ...

    @property
    def fingerprint(self) -> str:
        """A sha256 of the network's weights and structure."""
        ...

    def check_compatible(self, dataset: IndexedDataset, augmentation: Augmentation, seed: int) -> None:
        """Raise ValueError unless it has outputs for these images."""
        ...

    def __call__(self, batch: Batch) -> ModelOutput: ...


class FrozenTeacher:
    """A network as a teacher: in eval mode and without gradient at every call, given back as it was."""

    views = None
    _config: devices.DeviceConfig

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._extractor: FeatureExtractor | None = None

    @contextmanager
    def activate(self, layers: Sequence[str], config: devices.DeviceConfig) -> Iterator[FrozenTeacher]:
        """Inside the block the teacher can be called, on this device; afterwards modes and devices are as before."""
        modes = {module: module.training for module in self.model.modules()}
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        try:
            config.move(self.model)
            self._config = config
            weights = config.cast_weights(self.model)
            with FeatureExtractor(self.model, layers, compile=config.compile, weights=weights) as self._extractor:
                yield self
        finally:
            self._extractor = None
            self.model.to(device)
            for module, training in modes.items():
                module.training = training

    @property
    def fingerprint(self) -> str:
        """A sha256 of the network's weights and structure."""
        return fingerprint(
            self.model.state_dict(), repr(self.model)
        )  # the text shows strides, activations and the like

    def check_compatible(self, dataset: IndexedDataset, augmentation: Augmentation, seed: int) -> None:
        """A live teacher gets the very batch that the student gets, so any images will do."""

    @torch.no_grad()  # not inference_mode: its tensors cannot be saved for the student's backward pass
    def __call__(self, batch: Batch) -> ModelOutput:
        if self._extractor is None:
            raise RuntimeError("A FrozenTeacher is called inside `with teacher.activate(layers, device_config):`.")
        self.model.eval()  # at every call: whoever holds the model may have called train() in between
        with self._config.autocast():
            return self._extractor(batch.images)


class CachedTeacher:
    """A teacher's stored outputs, by (sample index, view): a distillation step then costs what a plain step costs.

        teacher = CachedTeacher.build(model, fashion.train, augmentation=fashion.augmentation, seed=0, views=3)

    Build it with `CachedTeacher.build`. It refuses images that it has no outputs for.
    """

    def __init__(self, metadata: dict[str, Any], indices: Tensor, stored: dict[str, Tensor]) -> None:
        self.metadata = metadata
        self.views = metadata["views"]
        self._stored = stored
        self._rows = torch.full((int(indices.max()) + 2,), -1)  # -1: not stored, as the last entry always says
        self._rows[indices] = torch.arange(len(indices))
        self._layers: tuple[str, ...] = ()
        self._device = torch.device("cpu")

    @classmethod
    def build(
        cls,
        model: nn.Module,
        dataset: IndexedDataset,
        *,
        augmentation: Augmentation = NO_AUGMENTATION,
        seed: int = 0,
        views: int = 1,
        layers: Sequence[str] = (),
        directory: str | Path | None = None,
        half: bool | None = None,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 256,
        progress: bool = True,
    ) -> CachedTeacher:
        """Run the teacher once on every sample of the dataset in `views` augmented views, and store the outputs.

        layers: names whose outputs are stored too. directory: keep the outputs there as memory-mapped arrays; a
        finished cache in it is opened again instead, and refused when data, teacher, augmentation, seed, views, layers
        or precision differ. Under torchrun each process computes its shard, and the directory is one that all of them
        see. half: store in 16 bits (default: only in a directory).
        Raises ValueError for fewer than one view, an empty dataset or a cache of something else.
        """
        count = len(dataset)
        if views < 1 or count == 0:
            raise ValueError(f"A cache needs at least one view of one sample; got {views} views of {count}.")
        config = devices.resolve(device, precision)
        half = directory is not None if half is None else half
        metadata = _metadata(model, dataset, augmentation, seed, views, layers, half, config)
        if directory is not None and (Path(directory) / "cache.json").exists():
            return cls.open(directory, metadata, dataset.indices)
        stored: dict[str, Tensor] = {}
        shard = distributed.shard(count)
        positions = torch.arange(count)[shard]
        options: dict[str, Any] = {"augmentation": augmentation, "seed": seed, "device": config.device}
        teacher = FrozenTeacher(model)
        silent = not progress or distributed.rank() > 0
        with (
            teacher.activate(layers, config),
            tqdm(total=views * len(positions), desc="teacher", unit="img", disable=silent) as bar,
        ):
            for view in range(views):
                start = shard.start
                for batch in dataset.iter_batches(batch_size, sampler=positions, view=view, **options):
                    with explain_shape_errors("teacher", batch.images):
                        output = teacher(batch)
                    for name, values in {"": output.logits, **output.features}.items():
                        if name not in stored:
                            shape = (views, count, *values.shape[1:])
                            stored[name] = _allocate(directory, name, shape, half)
                        _store(stored[name][view, start : start + len(batch)], values, name)
                    start += len(batch)
                    bar.update(len(batch))
        _finish(directory, stored, metadata)
        return cls(metadata, dataset.indices, stored)

    @classmethod
    def open(cls, directory: str | Path, metadata: dict[str, Any], indices: Tensor) -> CachedTeacher:
        """Open a finished cache without reading it into memory; ValueError if it holds other outputs than these."""
        directory = Path(directory)
        try:
            found = json.loads((directory / "cache.json").read_bytes())
            if not isinstance(found, dict):
                raise ValueError("cache.json describes no cache")
            # The view fingerprint is left out: it is made of data, augmentation and seed, which are there themselves.
            differ = [name for name in metadata if name != "view_fingerprint" and found.get(name) != metadata[name]]
            names = () if differ else ("", *metadata["layers"])
            stored = {name: _map(directory, name, (metadata["views"], len(indices))) for name in names}
        except (OSError, ValueError) as error:
            raise ValueError(f"The cache in {directory} cannot be read ({error}). Delete the folder.") from error
        if differ:
            raise ValueError(
                f"The cache in {directory} was built for another {', '.join(differ)}. Its outputs would belong to "
                "other images or another teacher: delete the folder or name a new one."
            )
        return cls(metadata, indices, stored)

    @contextmanager
    def activate(self, layers: Sequence[str], config: devices.DeviceConfig) -> Iterator[CachedTeacher]:
        """Inside the block the outputs have these layers and come to this device; ValueError if they are not stored."""
        missing = [name for name in layers if name not in self._stored]
        if missing:
            stored = ", ".join(name for name in self._stored if name) or "none"
            raise ValueError(
                f"The cache holds no outputs of {missing} (stored layers: {stored}). Build it with "
                f"layers={list(layers)}, or use the teacher itself."
            )
        before = self._layers, self._device
        self._layers, self._device = tuple(layers), config.device
        try:
            yield self
        finally:
            self._layers, self._device = before

    @property
    def fingerprint(self) -> str:
        """A sha256 of the weights and structure of the network whose outputs these are."""
        return self.metadata["teacher"]

    def check_compatible(self, dataset: IndexedDataset, augmentation: Augmentation, seed: int) -> None:
        """Raise ValueError unless the outputs were stored for these images under this augmentation and seed."""
        if view_fingerprint(dataset, augmentation, seed) != self.metadata["view_fingerprint"]:
            wanted = {"data": dataset.fingerprint, "augmentation": augmentation.to_dict(), "seed": seed}
            differ = [name for name, value in wanted.items() if self.metadata[name] != value]
            raise ValueError(
                f"The cached outputs were stored for another {' and '.join(differ)}. A teacher's output belongs to the "
                "same view of the same image: build the cache with the data, augmentation and seed of this run."
            )

    def __call__(self, batch: Batch) -> ModelOutput:
        rows = self._rows[batch.indices.clamp(max=len(self._rows) - 1)]
        known = batch.fingerprint == self.metadata["view_fingerprint"] and 0 <= batch.view < self.views
        if not known or (rows < 0).any():
            raise ValueError(
                f"The cache has no output for view {batch.view} of these images (it holds {self.views} views of one "
                "dataset under one augmentation and seed). Train with what it was built for."
            )
        outputs = {
            name: devices.to_device(devices.pin_memory(values[batch.view, rows], self._device), self._device).float()
            for name, values in self._stored.items()
            if not name or name in self._layers
        }
        return ModelOutput(outputs.pop(""), outputs)


def _metadata(
    model: nn.Module,
    dataset: IndexedDataset,
    augmentation: Augmentation,
    seed: int,
    views: int,
    layers: Sequence[str],
    half: bool,
    config: devices.DeviceConfig,
) -> dict[str, Any]:
    """Everything that stored outputs depend on."""
    return {
        "view_fingerprint": view_fingerprint(dataset, augmentation, seed),
        "data": dataset.fingerprint,
        "augmentation": augmentation.to_dict(),
        "seed": seed,
        "views": views,
        "teacher": FrozenTeacher(model).fingerprint,
        "layers": list(layers),
        "half": half,
        "precision": "bfloat16" if config.bfloat16 else "float32",
    }


def _file(directory: str | Path, name: str) -> Path:
    return Path(directory) / (f"layer-{name}.npy" if name else "logits.npy")  # a layer may be called "logits"


def _finish(directory: str | Path | None, stored: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Bring together the outputs of all processes."""
    if directory is None:
        for values in stored.values():
            distributed.all_reduce(values)
        return
    distributed.barrier()
    if distributed.rank() == 0:
        write_text(Path(directory) / "cache.json", json.dumps(metadata, indent=1))  # last: it says "complete"
    distributed.barrier()


def _allocate(directory: str | Path | None, name: str, shape: tuple[int, ...], half: bool) -> Tensor:
    if directory is None:
        empty = torch.empty if distributed.world_size() == 1 else torch.zeros  # the shards of several are added up
        return empty(shape, dtype=torch.float16 if half else torch.float32)
    path = _file(directory, name)
    if distributed.rank() > 0:
        distributed.barrier()
        return torch.from_numpy(np.lib.format.open_memmap(path, "r+"))
    array = _create(path, shape, np.dtype(np.float16 if half else np.float32))
    distributed.barrier()
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


def _store(target: Tensor, values: Tensor, name: str) -> None:
    target.copy_(values)
    if torch.isfinite(target).all():
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
