"""A teacher's stored outputs, by sample and view, and answers that came from elsewhere."""

from __future__ import annotations

import copy
import errno
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib import answers, devices, distributed, schemas
from kdlib.adapters import Adapter
from kdlib.data import (
    NO_AUGMENTATION,
    Augmentation,
    Batch,
    IndexedDataset,
    inference_batch_size,
    view_fingerprint,
)
from kdlib.described import describe
from kdlib.errors import (
    INSTEAD_OF_MASKS,
    LARGEST_WHOLE,
    check_flags,
    check_kind,
    check_path,
    check_whole,
    explain_shape_errors,
)
from kdlib.files import fingerprint
from kdlib.hooks import ModelOutput
from kdlib.teachers import cache_files
from kdlib.teachers.base import Teacher
from kdlib.teachers.ensemble import AnswerTogether
from kdlib.teachers.frozen import FrozenTeacher

HASH_LENGTH = 64  # of a sha256 in hexadecimal, with which a cache's fingerprint begins
LARGE_CACHE = 4e9  # bytes in memory of which a user is told
PROBES = 4  # images of which a teacher is asked again when its stored outputs are opened


class CachedTeacher(Teacher):
    """A teacher's stored outputs, by (sample index, view): a distillation step then costs what a plain step costs.

    That is so while they fit in memory: of a directory that is larger, each step waits for the disk.

        teacher = CachedTeacher.build(model, fashion.train, augmentation=fashion.augmentation, seed=0, views=3)

    Build it with `CachedTeacher.build`, or, from answers that came from elsewhere, with `CachedTeacher.from_logits`. It
    refuses images that it has no outputs for.
    """

    def __init__(
        self,
        metadata: dict[str, Any],
        indices: Tensor,
        stored: Mapping[str, Tensor | np.ndarray],
        *,
        any_view: bool = False,
    ) -> None:
        self.metadata = metadata
        self.class_names: list[tuple[str, ...]] = []
        self._read_indices = Adapter().indices_of
        self._any_view = any_view
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
        batch_size: int | None = None,
        progress: bool = True,
        adapter: Adapter | None = None,
    ) -> CachedTeacher:
        """Run the teacher once on every sample of the dataset in `views` augmented views, and store the outputs.

        layers: names whose outputs are stored too. directory: keep the outputs there as memory-mapped arrays; a
        finished cache in it is opened again instead, and refused when data, teacher, augmentation, seed, views, layers,
        precision or half differ. Under torchrun each process computes its shard, and the directory is one that all of
        them see. half: store in 16 bits (default: only in a directory). batch_size: default, 256 of images up to
        224 x 224 pixels, and fewer of larger ones. adapter: what the network is called with and where its logits are,
        by teacher_inputs and teacher_logits; a `Distiller` with this adapter takes them as they are.
        Raises ValueError for fewer than one view, an empty dataset or a cache of something else.
        """
        _check_build(model, dataset, augmentation, seed, views, layers, directory, half, batch_size, progress, adapter)
        seed, views = int(seed), int(views)  # NumPy's numbers are no JSON
        count = len(dataset)
        if views < 1 or count == 0:
            raise ValueError(f"A cache needs at least one view of one sample; got {views} views of {count}.")
        batch_size = inference_batch_size(dataset, 256) if batch_size is None else int(batch_size)
        config = devices.resolve(device, precision)
        half = directory is not None if half is None else half
        metadata = _metadata(model, dataset, augmentation, seed, views, layers, half, config)
        adapter = adapter or Adapter()
        metadata["teacher"] += _shown_reading(adapter)
        teacher = FrozenTeacher(model, read_inputs=adapter.teacher_inputs_of, read_logits=adapter.teacher_logits_of)
        run = partial(cls._run, teacher, dataset)
        if directory is None:
            cached = cls(metadata, dataset.indices, run(None, metadata, config, batch_size, progress))
        else:
            folder, built = Path(directory), False
            # A second run with this folder waits, and then opens what the first has built.
            with cache_files.building(folder):
                if not (folder / "cache.json").exists():
                    run(folder, metadata, config, batch_size, progress)
                    built = True
                    cached = cls.open(directory, metadata, dataset.indices)
            if not built:
                cached = cls.open(directory, metadata, dataset.indices)
                cached._check_answers(teacher, dataset, config, folder)
        cached.class_names = class_names(model)
        return cached

    @staticmethod
    def _run(
        teacher: FrozenTeacher,
        dataset: IndexedDataset,
        directory: Path | None,
        metadata: dict[str, Any],
        config: devices.DeviceConfig,
        batch_size: int,
        progress: bool,
    ) -> dict[str, Tensor]:
        """Run the teacher on all views, and store the outputs; into files, if there is a directory."""
        count, views, layers, half = len(dataset), metadata["views"], metadata["layers"], metadata["half"]
        augmentation, seed = Augmentation(**metadata["augmentation"]), metadata["seed"]
        stored: dict[str, Tensor] = {}
        shard = distributed.shard(count)
        positions = torch.arange(count)[shard]
        options: dict[str, Any] = {"augmentation": augmentation, "seed": seed, "device": config.device}
        silent = not progress or distributed.rank() > 0
        try:
            with (
                teacher.activate(layers, config),
                tqdm(total=views * len(positions), desc="teacher", unit="img", disable=silent) as bar,
            ):
                for view in range(views):
                    start = shard.start
                    for batch in dataset.iter_batches(batch_size, sampler=positions, view=view, **options):
                        with explain_shape_errors("teacher", batch.images):
                            output = teacher(batch)
                        named = {"": output.logits, **output.features}
                        if not stored:
                            for name, values in named.items():
                                shape = (views, count, *values.shape[1:])
                                stored[name] = cache_files.allocate(directory, name, shape, half)
                            if directory is None:
                                _warn_of_memory(sum(one.nbytes for one in stored.values()))
                        for name, values in named.items():
                            # First: a copy from MPS into 16 bits changes what it copies; and no map is held while a
                            # GPU is waited for.
                            values = values.detach().cpu()
                            _store(stored[name][view, start : start + len(batch)], values, name)
                        start += len(batch)
                        bar.update(len(batch))
        except BaseException:
            stored.clear()  # the error keeps this frame, in a notebook for long: Windows removes no mapped file
            raise
        cache_files.finish(directory, stored, metadata)
        return stored

    @classmethod
    def from_logits(
        cls,
        given: Tensor | np.ndarray | str | Path | Mapping[str, Any],
        indices: Any = None,
        *,
        kind: str = "logits",
        num_classes: int | None = None,
        any_view: bool = False,
    ) -> CachedTeacher:
        """Answers that came from elsewhere: the teacher itself need not be here.

        given: N x C, or a .npy, .npz or .safetensors file that holds "logits" (and "indices", if it likes).
        indices: the number of each answer's sample (whole numbers, N); default, 0 to N - 1. kind: what the answers are:
        "logits", "probabilities" (their logarithms are taken, zeros are said), "log_probabilities", or "top_k": a dict
        of "classes" and "probabilities" (N x k) with num_classes; what the best leave is spread over the others.
        any_view: use them for augmented images as well, which they were not given for. Without it `fit` refuses a
        DataModule that augments, and a Dataset, or a DataLoader of one, a few samples of which differ when they are
        read again; of an IterableDataset, a list of batches, or in a loop of your own nothing can notice it. In a
        loader's batch the samples' numbers are the field "index" of a dict, or what Adapter(indices=...) names.
        Raises ValueError or TypeError for answers that are no such thing, FileNotFoundError.
        """
        if isinstance(given, str | Path):
            tensors = answers.read_file(given)
            indices = tensors.pop("indices", None) if indices is None else indices
            given = tensors if kind == "top_k" else _only(tensors, kind, given)
        if kind == "top_k":
            logits = answers.from_top_k(given, num_classes)
        else:
            logits = answers.to_logits(answers.as_tensor(given, "Answers"), kind)
        if num_classes not in (None, logits.shape[-1]):
            raise ValueError(f"The answers have {logits.shape[-1]} classes, not {num_classes}.")
        checked = answers.check_indices(indices, len(logits))
        metadata: dict[str, Any] = {
            "view_fingerprint": None,
            "teacher": fingerprint([logits, checked], kind),
            "views": None,
            "layers": [],
        }
        stored = {"": logits.unsqueeze(0)}
        return cls(metadata, checked, stored, any_view=any_view)

    @classmethod
    def open(cls, directory: str | Path, metadata: dict[str, Any], indices: Tensor) -> CachedTeacher:
        """Open a finished cache without reading it into memory.

        Raises ValueError if it holds other outputs than these, MemoryError where its files cannot be mapped.
        """
        directory = Path(directory)
        try:
            found = schemas.read_json((directory / "cache.json").read_bytes())
            if not isinstance(found, dict):
                raise ValueError("cache.json describes no cache")
            # The view fingerprint is left out: it is made of data, augmentation and seed, which are there themselves.
            differ = [name for name in metadata if name != "view_fingerprint" and found.get(name) != metadata[name]]
            names = () if differ else ("", *metadata["layers"])
            size = metadata["views"], len(indices)
            stored = {
                name: cache_files.map_file(directory, name, size, metadata["half"], found.get("files"))
                for name in names
            }
        except MemoryError:
            raise
        except Exception as error:  # NumPy trips over a damaged header in many ways
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise MemoryError(
                    f"The files of the cache in {directory} cannot be mapped ({error}), which says nothing against "
                    "them. Raise this process's limit of address space (ulimit -v)."
                ) from error
            raise ValueError(f"The cache in {directory} cannot be read ({error}). Delete the folder.") from error
        if differ:
            same = set(differ) <= {"layers", "precision", "half"}
            why = "It holds them in another form" if same else "Its outputs belong to other images or another teacher"
            raise ValueError(
                f"The cache in {directory} was built with another {', '.join(differ)}. {why}: name a new folder, or "
                "delete this one if nothing else reads it."
            )
        return cls(metadata, indices, stored)

    def _check_answers(
        self, teacher: FrozenTeacher, dataset: IndexedDataset, config: devices.DeviceConfig, directory: Path
    ) -> None:
        """Raise ValueError where the network does not give what is stored: its fingerprint may have left that out.

        Weights and structure are in it, and no attribute with which a forward computes, no buffer outside state_dict.
        """
        first = torch.arange(min(PROBES, len(dataset)))
        options = {"augmentation": Augmentation(**self.metadata["augmentation"]), "seed": self.metadata["seed"]}
        (batch,) = dataset.iter_batches(PROBES, sampler=first, device=config.device, **options)
        with teacher.activate((), config):
            now = teacher(batch).logits.float().cpu()
        stored = self(batch).logits.float().cpu()
        # In 16 bits, and by the kernels for another size of batch, numbers differ by some thousandths of their size.
        if not (now - stored).norm() <= 0.05 * stored.norm():
            raise ValueError(
                f"The cache in {directory} holds other outputs than this teacher gives for the same images, though its "
                "weights and its structure are the same: it computes with something else that was changed, a mean that "
                "is subtracted, say. Name a new folder, or delete this one if nothing else reads it."
            )

    def is_read_by(self, adapter: Adapter) -> bool:
        """Whether the outputs are those of a network that was read as this adapter reads a teacher."""
        return self.fingerprint[HASH_LENGTH:] == _shown_reading(adapter)

    def is_of_inputs(self, adapter: Adapter) -> bool:
        """Whether the network was called with the adapter's teacher_inputs; nothing is known of answers given."""
        if adapter.teacher_inputs is None or self.metadata["view_fingerprint"] is None:
            return True
        reading, wanted = self.fingerprint[HASH_LENGTH:], _shown_reading(replace(adapter, teacher_logits=None))
        return reading == wanted or reading.startswith(f"{wanted}, teacher_logits=")

    def with_adapter(self, adapter: Adapter) -> CachedTeacher:
        """The same outputs, for batches whose samples' numbers are where this adapter says."""
        if adapter.indices is None:
            return self
        changed = copy.copy(self)
        changed._read_indices = adapter.indices_of
        return changed

    @contextmanager
    def activate(self, layers: Sequence[str], config: devices.DeviceConfig) -> Iterator[CachedTeacher]:
        """Inside the block the outputs have these layers and come to this device; ValueError if they are not stored."""
        self._check_layers(layers)
        before = self._layers, self._device
        self._layers, self._device = tuple(layers), config.device
        try:
            yield self
        finally:
            self._layers, self._device = before

    def _check_layers(self, layers: Sequence[str]) -> None:
        missing = [name for name in layers if name not in self._stored]
        if missing:
            stored = ", ".join(name for name in self._stored if name) or "none"
            raise ValueError(
                f"The cache holds no outputs of {missing} (stored layers: {stored}). Build it with "
                f"layers={list(layers)}, or use the teacher itself."
            )

    @property
    def fingerprint(self) -> str:
        """A sha256 of the weights and structure of the network, and how it was read; or of the outputs given."""
        return self.metadata["teacher"]

    @property
    def is_of_samples_as_they_are(self) -> bool:
        """Whether these are answers that came from elsewhere, and nobody said that they serve any view of a sample."""
        return self.metadata["view_fingerprint"] is None and not self._any_view

    def check_compatible(self, dataset: IndexedDataset, augmentation: Augmentation, seed: int) -> None:
        """Raise ValueError unless the outputs were stored for these images under this augmentation and seed."""
        if self.metadata["view_fingerprint"] is None:
            self._check_given(dataset, augmentation)
        elif view_fingerprint(dataset, augmentation, seed) != self.metadata["view_fingerprint"]:
            wanted = {"data": dataset.fingerprint, "augmentation": augmentation.to_dict(), "seed": seed}
            differ = [name for name, value in wanted.items() if self.metadata[name] != value]
            raise ValueError(
                f"The cached outputs were stored for another {' and '.join(differ)}. A teacher's output belongs to the "
                "same view of the same image: build the cache with the data, augmentation and seed of this run."
            )

    def _check_given(self, dataset: IndexedDataset, augmentation: Augmentation) -> None:
        """Answers that came from elsewhere belong to the images as they are."""
        if augmentation != NO_AUGMENTATION and self.is_of_samples_as_they_are:
            raise ValueError(
                "These answers were given for the images as they are, and this training augments them. Train with "
                "augmentation=NO_AUGMENTATION, or accept the mismatch: CachedTeacher.from_logits(..., any_view=True)."
            )
        unknown = int((self._find_rows(dataset.indices) < 0).sum())
        if unknown:
            raise ValueError(
                f"There are no answers for {unknown:,} of the {len(dataset):,} training images. Give answers for all, "
                "or train on a subset: DataModule.subset, or InMemoryDataset.select."
            )

    def _find_rows(self, indices: Tensor) -> Tensor:
        """The rows of these samples; -1 where there is none."""
        return self._rows[indices.clamp(min=-1, max=len(self._rows) - 1)]

    def __call__(self, batch: Any, layers: Sequence[str] | None = None) -> ModelOutput:
        layers = self._layers if layers is None else layers
        self._check_layers(layers)
        view = 0
        if self.metadata["view_fingerprint"] is None:
            indices = _as_indices(self._read_indices(batch))
            rows, known = self._find_rows(indices), True
            if (rows < 0).any():
                few = ", ".join(map(str, indices[rows < 0][:5].tolist()))
                raise ValueError(
                    f"There are no answers for {int((rows < 0).sum())} of the {len(rows)} samples of this batch, such "
                    f"as number {few}. Give answers for all that are trained on."
                )
        else:
            if not isinstance(batch, Batch):
                raise ValueError(
                    "This cache knows its images by dataset and view, and a batch of another loader does not say them. "
                    "Train on the DataModule that it was built for, or give its answers by CachedTeacher.from_logits."
                )
            rows, view = self._find_rows(batch.indices), batch.view
            known = batch.fingerprint == self.metadata["view_fingerprint"] and 0 <= view < (self.views or 1)
        if not known or (rows < 0).any():
            raise ValueError(
                f"The cache has no output for view {view} of these images (it holds {self.views or 1} views of one "
                "dataset under one augmentation and seed). Train with what it was built for."
            )
        outputs = {
            name: _take(values[view], rows, self._device)
            for name, values in self._stored.items()
            if not name or name in layers
        }
        return ModelOutput(outputs.pop(""), outputs)


def class_names(network: Any) -> list[tuple[str, ...]]:
    """The classes that a network's file names, in the order of its logits; of those that answer together, each one's.

    Of a network whose file names none there is nothing in the list; a cache knows what it was built of.
    """
    if isinstance(network, CachedTeacher):
        return network.class_names
    members = network.members if isinstance(network, AnswerTogether) else [network]
    named = [getattr(member, "classes", None) for member in members]
    return [one for one in named if isinstance(one, tuple) and all(isinstance(name, str) for name in one)]


def _shown_reading(adapter: Adapter) -> str:
    """How an adapter reads a teacher, as it stands in a cache's fingerprint; nothing where it says nothing of it."""
    inputs = adapter.inputs if adapter.teacher_inputs is None else adapter.teacher_inputs
    fields = {"teacher_inputs": inputs, "teacher_logits": adapter.teacher_logits}
    return "".join(f", {name}={describe(field)}" for name, field in fields.items() if field is not None)


def _as_indices(found: Any) -> Tensor:
    """The samples' numbers in a batch; ValueError for what torch would take for a mask, or for no number at all."""
    if not isinstance(found, Tensor) or found.is_floating_point() or found.dtype == torch.bool or found.ndim != 1:
        shape = f" of {tuple(found.shape)}" if isinstance(found, Tensor) else ""
        kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"The numbers of a batch's samples are a tensor of whole numbers, one for each (B); got {kind}{shape}. Say "
            "where they are: Adapter(indices=...)."
        )
    return found.cpu().long()


def _only(tensors: Mapping[str, Tensor], kind: str, path: str | Path) -> Tensor:
    """The answers of this kind in a file."""
    for name in (kind, "logits"):
        if name in tensors:
            return tensors[name]
    raise ValueError(f"{path} holds {', '.join(tensors) or 'nothing'}; expected {kind!r}.")


def _check_build(
    model: Any,
    dataset: Any,
    augmentation: Any,
    seed: Any,
    views: Any,
    layers: Any,
    directory: Any,
    half: Any,
    batch_size: Any,
    progress: Any,
    adapter: Any,
) -> None:
    """Raise TypeError or ValueError for arguments of `CachedTeacher.build` of another kind."""
    check_kind("a network, an nn.Module,", nn.Module, model=model)
    if not hasattr(dataset, "iter_batches"):
        raise TypeError(f"A cache is built on a split, data.train; got {type(dataset).__name__}.")
    check_kind("a kdlib.data.Augmentation, such as fashion.augmentation", Augmentation, augmentation=augmentation)
    check_whole(-LARGEST_WHOLE, seed=seed)
    check_whole(-LARGEST_WHOLE, views=views)  # too few are refused below, with the number of samples
    if batch_size is not None:
        check_whole(batch_size=batch_size)
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(isinstance(one, str) for one in layers):
        raise TypeError(f"layers are the names of layers, such as ['layer3']; got {layers!r}.")
    if directory is not None:
        check_path(directory=directory)
    check_flags(progress=progress, half=False if half is None else half)
    check_kind("a kdlib.adapters.Adapter, such as Adapter(teacher_logits='scores')", Adapter | None, adapter=adapter)


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


def _store(target: Tensor, values: Tensor, name: str) -> None:
    target.copy_(values)
    if torch.isfinite(target).all():
        return
    del target  # it maps a file, and the error keeps this frame
    what = f"The teacher's {f'outputs of {name!r}' if name else 'logits'}"
    if torch.isfinite(values).all():
        raise ValueError(
            f"{what} are too large for 16 bits. Build the cache without --cache, in memory, or with half=False."
        )
    advice = "Evaluate the teacher: its weights may be damaged."
    only_masks = not name and not bool((values.isnan() | values.isposinf()).any())
    raise ValueError(f"{what} are not finite. {INSTEAD_OF_MASKS if only_masks else advice}")


def _warn_of_memory(size: int) -> None:
    """Tell of stored outputs of many bytes: the system grants more than there is, and kills who fills it."""
    if size > LARGE_CACHE:
        warnings.warn(
            f"The stored outputs take {size / 1e9:,.0f} GB of memory, in each process. If there is less, keep them in "
            "a directory (--cache), or ask the teacher live (--views 0).",
            stacklevel=2,
        )


def _take(values: Tensor | np.ndarray, rows: Tensor, device: torch.device) -> Tensor:
    """A copy of these rows in float32 on the device; it can be written to, as the file of a map cannot."""
    taken = values[rows] if isinstance(values, Tensor) else torch.from_numpy(values[rows.numpy()])
    return devices.to_device(devices.pin_memory(taken, device), device).float()
