"""Teachers: a frozen network, several of them, their stored outputs, or a function. A teacher never learns."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib import answers, devices, distributed, schemas
from kdlib.adapters import Adapter
from kdlib.data import NO_AUGMENTATION, Augmentation, Batch, IndexedDataset, view_fingerprint
from kdlib.described import describe
from kdlib.errors import (
    INSTEAD_OF_MASKS,
    LARGEST_WHOLE,
    check_flags,
    check_kind,
    check_path,
    check_whole,
    explain_shape_errors,
    unknown_name,
)
from kdlib.files import checksum, fingerprint, lock, write_text
from kdlib.guards import StateGuard, keep_modes, writes_to
from kdlib.hooks import FeatureExtractor, ModelOutput, find_logits, refuse_writes
from kdlib.tasks import MultiLabel, Segmentation, Task


class Teacher(Protocol):
    """What `fit` and `Distiller` need of a teacher. Inherit it and write `__call__`; the rest has a default.

    views: for how many augmented views of each image it has outputs; None: for any.
    """

    views: int | None = None

    def __call__(self, batch: Any, layers: Sequence[str] | None = None) -> ModelOutput:
        """The output for a batch, with these layers as features; default, those of `activate`."""
        ...

    def activate(self, layers: Sequence[str], config: devices.DeviceConfig) -> AbstractContextManager[Any]:
        """A context in which the teacher is called many times, with these layers, on this device."""
        return nullcontext(self)

    @property
    def fingerprint(self) -> str | None:
        """What differs when the outputs would differ, a sha256 of weights for instance; None: not known."""
        return None

    def check_compatible(self, dataset: IndexedDataset, augmentation: Augmentation, seed: int) -> None:
        """Raise ValueError unless it has outputs for these images."""
        _ = dataset, augmentation, seed  # any images will do


@contextmanager
def _without_gradient() -> Iterator[None]:
    """no_grad, also for autocast: with torch 2.6 a student of these weights would get the casts, without a gradient."""
    # Not inference_mode: its tensors cannot be saved for the student's backward pass.
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


class FunctionTeacher(Teacher):
    """A function from a batch to logits, or to a `ModelOutput`, as a teacher: a service, say, that is asked by name."""

    def __init__(self, function: Callable[[Any], Tensor | ModelOutput]) -> None:
        self.function = function
        self.views = getattr(function, "views", None)

    def __call__(self, batch: Any, layers: Sequence[str] | None = None) -> ModelOutput:
        try:
            with _without_gradient():
                output = self.function(batch)
        except Exception as error:
            error.add_note(f"kdlib called the teacher's function with the whole batch, a {type(batch).__name__}.")
            raise
        if isinstance(output, Tensor):
            output = ModelOutput(output)
        if not isinstance(output, ModelOutput):
            raise ValueError(
                f"The teacher's function returned a {type(output).__name__}; expected a tensor of logits or a "
                "kdlib.hooks.ModelOutput."
            )
        missing = [name for name in layers or () if name not in output.features]
        if missing:
            raise ValueError(
                f"The teacher's function gives no features of {missing}. Return ModelOutput(logits, {{name: tensor}}), "
                "or choose a method that looks at logits alone."
            )
        return output


class FrozenTeacher(Teacher):
    """A network as a teacher: in eval mode and without gradient at every call.

    After `activate` it is given back as it was: what was written to its buffers meanwhile is said and put back. A call
    outside leaves it in eval mode: call train() on a network that learns, too, before its own next step. A forward that
    trains is refused. Weights that are written between two calls count from the next one on (in bfloat16 inside
    `activate` only where torch counts the write: not one to p.data).
    read_inputs: from a batch to what the network is called with; default, a batch's images or inputs. read_logits: from
    what it returns to its logits. needs_logits: whether a network that gives none is refused. role: what an error calls
    the network.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        read_inputs: Callable[[Any], Any] | None = None,
        read_logits: Callable[[Any], Any] | None = None,
        needs_logits: bool = True,
        role: str = "teacher",
    ) -> None:
        self.model, self._role = model, role
        self._only_answers = False  # known after the first call: its forward sets no mode
        self._own_readers = read_inputs, read_logits
        self._read_inputs = read_inputs or Adapter().teacher_inputs_of
        self._options: dict[str, Any] = {"read_logits": read_logits, "needs_logits": needs_logits, "layouts": {}}
        self._config: devices.DeviceConfig | None = None
        self._extractor: FeatureExtractor | None = None
        self._guard: StateGuard | None = None
        self._layers: set[nn.Module] | None = None  # whose weights are cast, known after the first call in bfloat16
        # Where these weights lay when they were cast, and how often they had been written to.
        self._written: list[tuple[int, int, int]] = []

    @property
    def reads_logits_itself(self) -> bool:
        """Whether it was made with a read_logits of its own."""
        return self._own_readers[1] is not None

    def with_adapter(self, adapter: Adapter) -> FrozenTeacher:
        """The same network, read as this adapter says where read_inputs and read_logits say nothing."""
        if adapter == Adapter():
            return self
        inputs, logits = self._own_readers
        changed = copy.copy(self)
        changed._read_inputs = inputs or adapter.teacher_inputs_of
        changed._options = {**self._options, "read_logits": logits or adapter.teacher_logits_of, "layouts": {}}
        return changed

    @contextmanager
    def activate(self, layers: Sequence[str], config: devices.DeviceConfig) -> Iterator[FrozenTeacher]:
        """Inside the block the teacher is called on this device; afterwards modes, device and memory are as before."""
        with keep_modes(self.model), config.borrow(self.model):
            try:
                self._guard = StateGuard(self.model, self._role)
                self._config = config
                with FeatureExtractor(self.model, layers, compile=config.compile, **self._options) as self._extractor:
                    yield self
                self._guard.warn_of_changes()
            finally:
                if self._guard is not None:
                    self._guard.restore()
                self._extractor = self._config = self._guard = self._layers = None
                self._written = []

    @property
    def fingerprint(self) -> str:
        """A sha256 of the network's weights and structure."""
        return fingerprint(
            self.model.state_dict(), repr(self.model)
        )  # the text shows strides, activations and the like

    def __call__(self, batch: Any, layers: Sequence[str] | None = None) -> ModelOutput:
        """The network's output. Outside of `activate` the network goes to where its inputs are and into eval mode."""
        self.model.eval()  # at every call: whoever holds the model may have called train() in between
        inputs = self._read_inputs(batch)
        with refuse_writes(self._role, inputs), _without_gradient():
            return self._call(inputs, layers)

    def _call(self, inputs: Any, layers: Sequence[str] | None) -> ModelOutput:
        if self._extractor is not None and self._config is not None and layers in (None, self._extractor.layers):
            with self._config.autocast():
                output = self._answer(inputs, self._extractor, self._config)
            self._check_first_call(self._guard)
            return output
        devices.follow(self.model, inputs)
        guard = None if self._only_answers else StateGuard(self.model, self._role)
        with FeatureExtractor(self.model, layers or (), **self._options) as extractor:
            output = extractor(inputs)
        self._check_first_call(guard)
        return output

    def _answer(self, inputs: Any, extractor: FeatureExtractor, config: devices.DeviceConfig) -> ModelOutput:
        """The network's output inside `activate`: in bfloat16 from the second call on with weights that are cast."""
        if config.bfloat16 and self._layers is None:
            first = FeatureExtractor(self.model, extractor.layers, **self._options)  # not compiled: hooks look on
            with extractor.paused(), config.layers_in_autocast(self.model) as layers, first:
                output = first(inputs)
            self._layers = layers
            return output
        weights = [p for layer in self._layers or () for p in layer._parameters.values() if p is not None]
        written = [(id(p), p.data_ptr(), writes_to(p)) for p in weights]
        if written != self._written:  # at the second call, and after one such as of an average of the student
            extractor.weights = config.cast_weights(self.model, self._layers)
            self._written = written
        return extractor(inputs)

    def _check_first_call(self, guard: StateGuard | None) -> None:
        if guard is not None and not self._only_answers:
            guard.refuse_train_mode()
            self._only_answers = True


MEANS = ("arithmetic", "geometric", "vote")
HASH_LENGTH = 64  # of a sha256 in hexadecimal, with which a cache's fingerprint begins
LARGE_CACHE = 4e9  # bytes in memory of which a user is told
PROBES = 4  # images of which a teacher is asked again when its stored outputs are opened
NO_VOTE = 1e-6  # the share that is spread over all classes, so that the logarithm of a class without a vote is finite


class AnswerTogether(nn.Module):
    """Networks that answer together, each of them for all classes."""

    members: nn.ModuleList


class Ensemble(AnswerTogether):
    """Several networks as one teacher: the mean of their probabilities, of their logits, or their votes.

        teacher = Ensemble([a, b, c], weights=[2, 1, 1], temperatures=[1, 1, 2])

    Its logits are log sum_i w_i softmax(z_i / T_i), so a loss softens the mean afterwards, with its own T; with
    mean="geometric" they are sum_i w_i z_i / T_i. With mean="vote" each network has one vote, w_i, for its best class,
    and the logits are log((1 - e) v_c + e / C) of the shares v of the votes among C classes; e = 1e-6, so that a class
    without a vote has a finite one.
    weights: of at least 0, divided by their sum; default, equal ones. temperatures: above 0, one for each network;
    default, 1; votes do not depend on them. Layers of a member are named "members.0.layer3".
    `ensembles` has teachers whose weights differ from sample to sample, and such that know only some of the classes.
    read_logits: from what a member returns to its logits.
    Shapes: members give logits of the same shape, classes last or, for maps B x C x H x W and volumes, second; of three
    dimensions, second where a `Distiller`, `fit` or `evaluate` is told task="segmentation".
    Raises ValueError for no members, numbers out of range, logits that differ in shape, or a second `Distiller` for
    which the classes lie elsewhere; TypeError for no numbers.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        temperatures: Sequence[float] | None = None,
        *,
        mean: str = "arithmetic",
        read_logits: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        single = isinstance(members, nn.Module) or not isinstance(members, Iterable)
        members = [] if single else list(members)  # a generator can be gone through only once
        if not members or not all(isinstance(one, nn.Module) for one in members):
            raise ValueError("An ensemble has at least one network: Ensemble([first, second]).")
        count = len(members)
        weights = _one_each("weights", weights, count)
        temperatures = _one_each("temperatures", temperatures, count)
        if not all(0 <= one < math.inf for one in weights) or not sum(weights) > 0:
            raise ValueError(f"weights are numbers of at least 0, not all of them 0; got {weights}.")
        if not all(1e-6 <= one <= 1e6 for one in temperatures):  # beyond, logits overflow or all become equal
            raise ValueError(f"temperatures are positive numbers, from 1e-6 to 1e6; got {temperatures}.")
        if mean not in MEANS:
            raise unknown_name("mean", mean, MEANS)
        self.members = nn.ModuleList(members)
        self.weights = [weight / sum(weights) for weight in weights]
        self.temperatures, self.mean = temperatures, mean
        self._read_logits = read_logits or find_logits
        self._segments: bool | None = None  # whether classes are second in three dimensions; None: no task has said it

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Every member's answer to the same inputs, combined."""
        logits: list[Any] = [self._read_logits(member(*args, **kwargs)) for member in self.members]
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in logits]
        if len(set(shapes)) > 1 or not isinstance(logits[0], Tensor):
            raise ValueError(
                f"The members of an ensemble give logits of one shape; got {', '.join(map(str, shapes))}. Members with "
                "other outputs need read_logits, or a module around them."
            )
        if logits[0].ndim < 2:
            raise ValueError(
                f"The members of an ensemble give logits of {shapes[0]}; expected batch x classes, or more dimensions."
            )
        scaled: list[Tensor] = [one.float() / t for one, t in zip(logits, self.temperatures, strict=True)]
        if self.mean == "geometric":
            return torch.stack([w * one for w, one in zip(self.weights, scaled, strict=True)]).sum(0)
        second = scaled[0].ndim > 3 if self._segments is None else self._segments
        classes = 1 if second else -1
        if self.mean == "vote":
            return _votes(scaled, self.weights, classes)
        terms = [
            math.log(w) + one.log_softmax(dim=classes) for w, one in zip(self.weights, scaled, strict=True) if w > 0
        ]
        return torch.stack(terms).logsumexp(0)

    def check_task(self, task: Task) -> None:
        """Read off where the classes are.

        Raises ValueError where the logits of a sample are not one choice among them, and where an earlier task has its
        classes elsewhere: what is trained there would get other answers from now on.
        """
        if self.mean != "geometric" and (isinstance(task, MultiLabel) or not task.has_classes):
            what = "The arithmetic mean of an ensemble is one of softmax probabilities"
            what = "An ensemble votes for one class of a softmax" if self.mean == "vote" else what
            raise ValueError(
                f"{what}, and the outputs of this task are not softened so. Take the weighted mean of the outputs "
                "themselves: Ensemble(..., mean='geometric')."
            )
        segments = isinstance(task, Segmentation)
        if self.mean != "geometric" and self._segments not in (None, segments):
            second, last = "the second dimension of the logits", "the last dimension"
            here, before = (second, last) if segments else (last, second)
            raise ValueError(
                f"This ensemble takes its mean over {before}, where the task that it was given to first has its "
                f"classes; those of {type(task).__name__} are {here}. Make a second Ensemble of the same members."
            )
        self._segments = segments

    @contextmanager
    def lent_to(self, task: Task) -> Iterator[None]:
        """Inside the block the classes are where this task has them, whatever the ensemble is used for elsewhere."""
        before, self._segments = self._segments, None
        try:
            self.check_task(task)
            yield
        finally:
            self._segments = before

    def extra_repr(self) -> str:
        shown = f"weights={self.weights}, temperatures={self.temperatures}, mean={self.mean}"
        return shown + shown_reader(self._read_logits)


def shown_reader(read_logits: Callable[[Any], Any]) -> str:
    """A function that reads logits, as it stands in a repr: a cache is recognized by it. The usual one is not shown."""
    return "" if read_logits is find_logits else f", read_logits={describe(read_logits)}"


def class_names(network: Any) -> list[tuple[str, ...]]:
    """The classes that a network's file names, in the order of its logits; of those that answer together, each one's.

    Of a network whose file names none there is nothing in the list; a cache knows what it was built of.
    """
    if isinstance(network, CachedTeacher):
        return network.class_names
    members = network.members if isinstance(network, AnswerTogether) else [network]
    named = [getattr(member, "classes", None) for member in members]
    return [one for one in named if isinstance(one, tuple) and all(isinstance(name, str) for name in one)]


def _votes(logits: Sequence[Tensor], weights: Sequence[float], classes: int) -> Tensor:
    """The logarithms of the shares of the votes, where each network votes for its best class.

    NaN is the largest logit and takes the vote: it makes the share of its class NaN, so that a damaged network shows.
    """
    shares = torch.zeros_like(logits[0])
    for weight, one in zip(weights, logits, strict=True):
        largest, best = one.max(dim=classes, keepdim=True)
        shares.scatter_add_(classes, best, torch.full_like(largest, weight).masked_fill(~largest.isfinite(), math.nan))
    return ((1 - NO_VOTE) * shares + NO_VOTE / shares.shape[classes]).log()


def _one_each(name: str, numbers: Any, count: int) -> list[float]:
    """As many numbers as there are networks; default, ones."""
    if numbers is None:
        return [1.0] * count
    numbers = list(numbers) if isinstance(numbers, Iterable) and not isinstance(numbers, str) else numbers
    try:
        found = [float(one) for one in numbers]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} are {count} numbers, one for each network; got {numbers!r}.") from error
    if len(found) != count:
        raise ValueError(f"{name} are {count} numbers, one for each network; got {len(found)}.")
    return found


def inference_batch_size(dataset: IndexedDataset, most: int = 250, *, training: int = 1) -> int:
    """How many images of a split a network is given at once where it does not learn.

    `most` of images up to 224 x 224 pixels; of larger ones as many as hold the same number of pixels, at least one.
    training: how many it was given in a training, which have fitted: no fewer than that, though no more than `most`.
    """
    if len(dataset) == 0:
        return most
    # A batch size of 2, so that the one image that is looked at starts no worker process.
    images = next(iter(dataset.select(torch.arange(1)).iter_batches(2))).images
    pixels = max(224 * 224, images.shape[2:].numel())
    return max(1, most * 224 * 224 // pixels, min(most, training))


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
            with _building(folder):  # a second run with this folder waits, and then opens what the first has built
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
                                stored[name] = _allocate(directory, name, shape, half)
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
        _finish(directory, stored, metadata)
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
        any_view: use them for augmented images as well, which they were not given for. In a loader's batch the samples'
        numbers are the field "index" of a dict, or what Adapter(indices=...) names.
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
            stored = {name: _map(directory, name, size, metadata["half"], found.get("files")) for name in names}
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
        if augmentation != NO_AUGMENTATION and not self._any_view:
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


def as_teacher(teacher: Any, adapter: Adapter, *, needs_logits: bool = True) -> Teacher | None:
    """A network, a function or a teacher, as a teacher.

    needs_logits: whether its logits are read. Raises TypeError for anything else, and ValueError where the adapter says
    how to read the logits of a network and there is none.
    """
    if isinstance(teacher, nn.Module):
        return FrozenTeacher(teacher, needs_logits=needs_logits).with_adapter(adapter)
    if teacher is not None and needs_logits and adapter.teacher_logits is not None:
        _refuse_to_read(teacher, adapter)
    if isinstance(teacher, CachedTeacher) and not teacher.is_of_inputs(adapter):
        raise ValueError(
            "Adapter(teacher_inputs=...) says what the teacher is called with, and these outputs were stored for other "
            "inputs. Build the cache with it: CachedTeacher.build(..., adapter=...). Or leave teacher_inputs out, if "
            "the stored ones are meant."
        )
    if hasattr(type(teacher), "with_adapter"):
        return teacher.with_adapter(adapter)
    if teacher is None or _is_teacher(teacher):
        return teacher
    if callable(teacher) and not isinstance(teacher, type):
        return FunctionTeacher(teacher)
    raise TypeError(
        f"A teacher is a network (nn.Module), a kdlib.teachers.Teacher, or a function from a batch to logits; got "
        f"{teacher if isinstance(teacher, type) else type(teacher).__name__}."
    )


def _refuse_to_read(teacher: Any, adapter: Adapter) -> None:
    """Raise ValueError for a teacher that gives its logits itself, unless they were read by this adapter already."""
    if isinstance(teacher, CachedTeacher) and teacher.is_read_by(adapter):
        return
    if isinstance(teacher, FrozenTeacher) and not teacher.reads_logits_itself:
        return
    raise ValueError(
        "Adapter(teacher_logits=...) says how to read what a network returns, and this teacher gives its logits "
        "itself. Bring them to the student's classes and order where they come from, and leave teacher_logits out: "
        "CachedTeacher.from_logits(answers[:, order]), a function that returns answers[:, order], "
        "ConfidenceEnsemble(..., read_logits=...). Or build the cache with it: CachedTeacher.build(..., adapter=...)."
    )


def _shown_reading(adapter: Adapter) -> str:
    """How an adapter reads a teacher, as it stands in a cache's fingerprint; nothing where it says nothing of it."""
    inputs = adapter.inputs if adapter.teacher_inputs is None else adapter.teacher_inputs
    fields = {"teacher_inputs": inputs, "teacher_logits": adapter.teacher_logits}
    return "".join(f", {name}={describe(field)}" for name, field in fields.items() if field is not None)


def _is_teacher(teacher: Any) -> bool:
    # Not isinstance: of a protocol that reads every property, and a fingerprint takes seconds.
    return all(hasattr(type(teacher), name) for name in ("__call__", "activate", "check_compatible"))


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


def _file(directory: str | Path, name: str) -> Path:
    return Path(directory) / (f"layer-{name}.npy" if name else "logits.npy")  # a layer may be called "logits"


@contextmanager
def _building(directory: Path) -> Iterator[None]:
    """Only one job at a time builds a cache in this folder; the first of its processes holds the lock for all.

    It removes what this build, if it failed, or an earlier one that was killed, left unfinished.
    """
    busy = f"Another run is building the cache in {directory}: this one waits, and then uses it."
    main = distributed.rank() == 0
    with lock(directory / ".lock", busy, wait=True) if main else nullcontext():
        distributed.barrier()
        try:
            yield
        finally:
            if main:
                _remove_unfinished(directory)
        distributed.barrier()


def _finish(directory: Path | None, stored: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Bring together the outputs of all processes."""
    if directory is None:
        for values in stored.values():
            distributed.all_reduce(values)
        return
    names = list(stored)
    stored.clear()  # closes the files: Windows renames no open one
    distributed.barrier()
    if distributed.rank() == 0:
        files = {}
        for name in names:
            path = _file(directory, name)
            os.replace(_unfinished(path), path)
            files[path.name] = checksum(path)
        # Last: it says "complete".
        write_text(directory / "cache.json", json.dumps({**metadata, "files": files}, indent=1))
    distributed.barrier()


def _unfinished(path: Path) -> Path:
    """Where a file lies while it is built: a finished one may be mapped by another run, and is never written to."""
    return path.with_name(f"unfinished-{path.name}")


def _remove_unfinished(directory: Path) -> None:
    for path in directory.glob(_unfinished(directory / "*.npy").name):
        with suppress(OSError):  # Windows removes no file that is still mapped
            path.unlink()


def _warn_of_memory(size: int) -> None:
    """Tell of stored outputs of many bytes: the system grants more than there is, and kills who fills it."""
    if size > LARGE_CACHE:
        warnings.warn(
            f"The stored outputs take {size / 1e9:,.0f} GB of memory, in each process. If there is less, keep them in "
            "a directory (--cache), or ask the teacher live (--views 0).",
            stacklevel=2,
        )


def _allocate(directory: str | Path | None, name: str, shape: tuple[int, ...], half: bool) -> Tensor:
    if directory is None:
        empty = torch.empty if distributed.world_size() == 1 else torch.zeros  # the shards of several are added up
        return empty(shape, dtype=torch.float16 if half else torch.float32)
    path = _file(directory, name)
    if distributed.rank() > 0:
        distributed.barrier()
        return torch.from_numpy(np.lib.format.open_memmap(_unfinished(path), "r+"))
    array = _create(path, shape, np.dtype(np.float16 if half else np.float32))
    distributed.barrier()
    return torch.from_numpy(array)


def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    unfinished = _unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(unfinished, "w+", dtype, shape)  # and closed: the error of a full disk keeps no map
        _reserve(unfinished)
        array = np.lib.format.open_memmap(unfinished, "r+")
    except OSError as error:
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
    del target  # it maps a file, and the error keeps this frame
    what = f"The teacher's {f'outputs of {name!r}' if name else 'logits'}"
    if torch.isfinite(values).all():
        raise ValueError(
            f"{what} are too large for 16 bits. Build the cache without --cache, in memory, or with half=False."
        )
    advice = "Evaluate the teacher: its weights may be damaged."
    only_masks = not name and not bool((values.isnan() | values.isposinf()).any())
    raise ValueError(f"{what} are not finite. {INSTEAD_OF_MASKS if only_masks else advice}")


def _map(directory: Path, name: str, size: tuple[int, int], half: bool, checksums: Any) -> np.ndarray:
    """The outputs in a file, after their form and a checksum were compared with what was written."""
    path = _file(directory, name)
    # "r": a writable map counts in full as memory, and a cache may be larger than that. Not a tensor: writing to one
    # that is mapped so would kill the process; NumPy refuses. Unlike np.load it opens no pickle.
    array = np.lib.format.open_memmap(path, "r")
    if array.shape[:2] != size or array.dtype != (np.float16 if half else np.float32):
        raise ValueError(
            f"{path.name} holds {array.shape} of {array.dtype}, not {size[0]} views of {size[1]} samples in "
            f"{16 if half else 32} bits"
        )
    if not isinstance(checksums, dict) or checksums.get(path.name) != checksum(path):
        raise ValueError(f"{path.name} is not what was written: its checksum differs")
    return array


def _take(values: Tensor | np.ndarray, rows: Tensor, device: torch.device) -> Tensor:
    """A copy of these rows in float32 on the device; it can be written to, as the file of a map cannot."""
    taken = values[rows] if isinstance(values, Tensor) else torch.from_numpy(values[rows.numpy()])
    return devices.to_device(devices.pin_memory(taken, device), device).float()
