"""Where the batches of a training come from: kdlib's own datasets, or any loader."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from kdlib import devices, distributed
from kdlib.adapters import Adapter
from kdlib.data import Augmentation, Batch, DataModule, PairedData, epoch_order, inference_batch_size, seed_for
from kdlib.errors import as_whole
from kdlib.evaluation import (
    HardLoss,
    Metrics,
    check_class_names,
    check_classes,
    evaluate,
    is_shard,
    refuse_shard,
    refuse_stacked_batches,
    samplers_of,
    stacks_samples_of_stream,
)
from kdlib.hooks import as_arguments, batch_size_of
from kdlib.recipes import Recipe
from kdlib.tasks import Task
from kdlib.teachers import CachedTeacher, Teacher

MOST_STEPS = 1_000_000_000
PROBES, READS = 4, 3  # samples that are looked at for an augmentation, and how often each is read
NOT_SHARED = (
    "Every process would train on the same samples: an IterableDataset cannot be shared. Give a Dataset with a length, "
    "or start one process."
)


def process_seed(seed: int) -> int:
    """A run's seed in this process: each has a dropout, and a loader's augmentation, of its own."""
    rank = distributed.rank()
    return seed_for(seed, "process", rank) if rank else seed


def count_samples(batch: Any, adapter: Adapter) -> int:
    """How many samples a batch has: by tensors among its inputs or labels, else by lists there; 1 if none says it."""
    inputs = adapter.student_inputs_of(batch)
    found = batch_size_of(inputs)
    if found is None:
        args, kwargs = as_arguments(inputs)
        lists = [len(one) for one in (*args, *kwargs.values()) if isinstance(one, list | tuple)]
        labels = adapter.labels_of(batch)
        # A list may hold a part for each sample, or a tensor of all samples for each of several views or targets.
        each = isinstance(labels, list | tuple) and len(labels) in lists
        found = len(labels) if each else batch_size_of(labels)
        if found is None and lists:
            found = lists[0]
    return found or 1


def full_batches(count: int, batch_size: int) -> tuple[int, int]:
    """How many of `count` images are in each batch, and how many batches an epoch has."""
    # A last batch that is not full is left out: its statistics would be noisier than the others', and each epoch leaves
    # out other images. A dataset smaller than one batch is one batch.
    size = max(1, min(batch_size, count))
    return size, count // size


class IndexedBatches:
    """Batches of a `DataModule`: every sample has an index, so any step of any epoch can be made again."""

    def __init__(
        self,
        data: DataModule,
        *,
        batch_size: int,
        augmentation: Augmentation,
        views: int | None,
        seed: int,
        config: devices.DeviceConfig,
        adapter: Adapter,
    ) -> None:
        count = len(data.train)
        if count < 2:
            raise ValueError(f"{data.name} has {count} training images; at least 2 are needed for batch statistics.")
        self.data, self.augmentation, self.views, self.seed = data, augmentation, views, seed
        self.config, self.adapter = config, adapter
        self.batch_size, self.steps_per_epoch = full_batches(count, batch_size)
        processes = distributed.world_size()
        if self.batch_size % processes or self.batch_size < 2 * processes:
            raise ValueError(
                f"{processes} processes cannot share batches of {self.batch_size} images equally. Choose a batch size "
                f"that is a multiple of {processes} and at least {2 * processes}, and no fewer training images."
            )

    def example(self) -> Batch:
        """Two images."""
        return next(self._iter_batches(0, torch.arange(2)))

    def epoch(self, number: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from step `first` on; of each, this process's shard."""
        order = epoch_order(self.data.train, self.seed, number)
        sampler = order[: self.steps_per_epoch * self.batch_size][first * self.batch_size :]
        return self._iter_batches(number, distributed.shard_batches(sampler, self.batch_size))

    def _iter_batches(self, epoch: int, sampler: Tensor) -> Iterator[Batch]:
        return self.data.train.iter_batches(
            self.batch_size // distributed.world_size(),
            sampler=sampler,
            augmentation=self.augmentation,
            seed=self.seed,
            view=epoch % self.views if self.views else epoch,
            device=self.config.device,
        )

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise ValueError unless the teacher has outputs for these images, this augmentation and as many views."""
        teacher.check_compatible(self.data.train, self.augmentation, self.seed)
        if teacher.views and (self.views is None or self.views > teacher.views):
            raise ValueError(
                f"{self.views or 'More'} views are asked for; the cache holds {teacher.views} of each image."
            )

    def check_logits(self, role: str, logits: Tensor) -> None:
        """Raise ValueError unless there is a logit for each class."""
        check_classes(role, logits, self.data)

    def check_class_names(self, role: str, model: Any) -> None:
        """Raise ValueError for a model whose file names other classes than the data have."""
        check_class_names(role, model, self.data)

    def evaluate(self, model: nn.Module, loss: HardLoss | None, *, sanity_check: bool = False) -> Metrics:
        """How a model does on the validation images; sanity_check: on a few of them."""
        validation = self.data.validation
        few = torch.arange(min(max(2, distributed.world_size()), len(validation)))
        return evaluate(
            model,
            validation.select(few) if sanity_check else validation,
            device=str(self.config.device),
            precision=self.config.precision,
            batch_size=inference_batch_size(validation, training=self.batch_size // distributed.world_size()),
            adapter=self.adapter,
            keep_logits=False,
        )

    def describe(self) -> dict[str, Any]:
        """Data, augmentation and views."""
        return {
            "data": self.data.train.fingerprint,
            "validation": self.data.validation.fingerprint,
            "augmentation": self.augmentation.to_dict(),
            "views": self.views,
        }


class LoaderBatches:
    """Batches of a DataLoader, of a torch Dataset, or of anything that gives them anew each time it is iterated.

    steps_per_epoch: batches of an epoch, needed where `len(data)` says nothing; each epoch begins anew, so of a longer
    stream only its beginning is ever seen, unless it continues or shuffles by itself. batch_size: for a Dataset, which
    is shuffled anew in every epoch, or an IterableDataset, which is taken to give samples and not batches. Raises
    TypeError or ValueError for what cannot be iterated again and again.
    """

    def __init__(
        self,
        data: Any,
        validation: Any,
        *,
        batch_size: int,
        steps_per_epoch: int | None,
        seed: int,
        config: devices.DeviceConfig,
        adapter: Adapter,
        task: Task,
    ) -> None:
        self.config, self.adapter, self.task, self.seed = config, adapter, task, seed
        self._generator = torch.Generator()
        as_loader = partial(_as_loader, batch_size=batch_size, seed=seed)
        self.loader = as_loader(data, "data", generator=self._generator)
        self.validation = None if validation is None else as_loader(validation, "validation", generator=None)
        self.steps_per_epoch = _count_steps(self.loader, steps_per_epoch)
        self._first = self._read_first(self.loader)
        if self._first is None:
            raise ValueError(
                "The training data gives no batch. Give at least one; drop_last may have left it out."
                f"{_hint_for_streams(self.loader)}"
            )
        self._first_validation = None if self.validation is None else self._read_first(self.validation)
        if self.validation is not None and self._first_validation is None:
            raise ValueError(
                "The validation data gives no batch. Give at least one, or leave out validation."
                f"{_hint_for_streams(self.validation)}"
            )
        for given, loader, first in (
            (data, self.loader, self._first),
            (validation, self.validation, self._first_validation),
        ):
            if loader is not given and isinstance(loader, DataLoader):  # one of the caller's stays as it is
                # Only from page-locked memory, which is the CPU's, does a copy to a GPU run beside the computing.
                on_cpu = all(one.device.type == "cpu" for one in devices.tensors_in(first))
                loader.pin_memory = config.device.type == "cuda" and on_cpu
        self.batch_size = count_samples(self._first, adapter) * distributed.world_size()

    def _read_first(self, loader: Iterable[Any]) -> Any:
        """The first batch; None if there is none."""
        with devices.isolate_rng(self.config.device):  # the loader may draw its order from the global generator
            found = [getattr(one, "generator", None) for one in (loader, *samplers_of(loader))]
            states = [(own, own.get_state()) for own in found if isinstance(own, torch.Generator)]
            # Persistent workers are seeded now and never again: by the run's seed, not the caller's random state.
            if getattr(loader, "persistent_workers", False) and getattr(loader, "generator", None) is None:
                devices.seed_rng(process_seed(self.seed), self.config.device)
            try:
                batch = next(iter(loader), None)
            except TypeError as error:
                if "default_collate" not in str(error):
                    raise
                raise TypeError(
                    f"The samples cannot be put together to a batch ({error}). Give the dataset a transform that makes "
                    "tensors of its images, such as torchvision's v2.ToImage() and v2.ToDtype(torch.float32, "
                    "scale=True), or make it a DataModule: data.from_datasets(...)."
                ) from error
            except RuntimeError as error:
                # The second: in a worker process, which puts them together in memory that it shares.
                if not any(text in str(error) for text in ("equal size", "resize storage that is not resizable")):
                    raise
                reason = str(error).splitlines()[-1]  # from a worker process it comes with a traceback
                raise ValueError(
                    f"The samples of a batch differ in size ({reason}). Bring them to one size in the dataset, such as "
                    "by torchvision's v2.Resize and v2.CenterCrop, or pad them in the DataLoader's collate_fn."
                    f"{_hint_for_streams(loader)}"
                ) from error
            for own, state in states:
                own.set_state(state)
        if batch is not None and stacks_samples_of_stream(loader):
            refuse_stacked_batches(self.adapter.student_inputs_of(batch), self.adapter.labels_of(batch), self.task)
        return batch

    def example(self) -> Any:
        """The first batch that was read."""
        return devices.move_batch(self._first, self.config.device)

    def epoch(self, number: int, first: int) -> Iterator[Any]:
        """The batches of an epoch, in the loader's own order; ValueError if there are fewer than it said."""
        self._generator.manual_seed(seed_for(self.seed, "epoch", number))
        for sampler in samplers_of(self.loader):
            if isinstance(sampler, DistributedSampler):
                sampler.set_epoch(number)
        given = 0
        # What is no DataLoader may give the same tensors in each epoch, and a student may write into them as it trains.
        copy = not isinstance(self.loader, DataLoader)
        for batch in islice(self.loader, self.steps_per_epoch):
            given += 1
            if given > first:
                yield devices.move_batch(batch, self.config.device, copy=copy)
        if given < self.steps_per_epoch:
            raise ValueError(
                f"The training data gave {given} batches in epoch {number + 1}; expected {self.steps_per_epoch}. Give "
                "data that can be iterated again and again, and steps_per_epoch=... if their length is not fixed."
            )

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise ValueError for answers to the samples as they are, where these are augmented at random.

        That is seen where a few samples of a Dataset, read again, give a network other inputs. In an IterableDataset, a
        dataset that cannot be read so or a loader of another kind nothing can notice it. For the rest any teacher will
        do: a cache refuses at the first batch what it has no outputs for.
        """
        if isinstance(teacher, CachedTeacher) and teacher.is_of_samples_as_they_are and self._augments():
            raise ValueError(
                "These answers were given for the samples as they are, and this dataset, its collate_fn or a function "
                "of the adapter augments them: the same samples, read again, gave other inputs. Give the training data "
                "without augmentation; or accept the mismatch, CachedTeacher.from_logits(..., any_view=True); or give "
                "the teacher itself, which is asked about every view."
            )

    def _augments(self) -> bool:
        """Whether what a teacher is called with differs when samples are read again; False where nothing can tell."""
        loader = self.loader
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return False
        makes_batches = loader.batch_sampler is not None
        with _isolate_all_rng(self.config.device):
            try:
                positions = range(min(PROBES, len(loader.dataset)))  # type: ignore[arg-type]
                # Where there are worker processes, all is read in one: a file that is opened here would be shared with
                # those of the training, and a dataset's own generator begins anew in each.
                probe = DataLoader(
                    loader.dataset,
                    batch_size=len(positions) if makes_batches else None,
                    sampler=[*positions] * READS,
                    num_workers=min(1, loader.num_workers),
                    collate_fn=loader.collate_fn,
                    worker_init_fn=loader.worker_init_fn,
                    multiprocessing_context=loader.multiprocessing_context,
                )
                # Clones: what is no batch that was put together may be the dataset's own, which it writes into.
                given = [
                    [one.clone() for one in devices.tensors_in(self.adapter.teacher_inputs_of(batch))]
                    for batch in probe
                ]
            except Exception:  # whatever a dataset does not allow; if the training needs it, it says so itself
                return False
        each = len(given) // READS
        first, *others = (given[start : start + each] for start in range(0, len(given), each))
        return not all(_agree(again, first) for again in others)

    def check_logits(self, role: str, logits: Tensor) -> None:
        """A loader does not say how many classes there are; the losses look at the labels."""

    def evaluate(self, model: nn.Module, loss: HardLoss | None, *, sanity_check: bool = False) -> Metrics | None:
        """How a model does on the validation batches; sanity_check: on the first."""
        if self.validation is None:
            return None
        return evaluate(
            model,
            [self._first_validation] if sanity_check else self.validation,
            device=str(self.config.device),
            precision=self.config.precision,
            adapter=self.adapter,
            task=self.task,
            loss=loss,
            keep_logits=False,
        )

    def describe(self) -> dict[str, Any]:
        """How many batches: a loader does not say which."""
        validation = None if self.validation is None else _described(self.validation)
        return {"data": f"{self.steps_per_epoch} batches", "validation": validation, "task": repr(self.task)}


@contextmanager
def _isolate_all_rng(device: torch.device) -> Iterator[None]:
    """As `devices.isolate_rng`, with the generators of NumPy and Python, from which a dataset may draw as well."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with devices.isolate_rng(device):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _agree(again: Any, first: Any) -> bool:
    try:
        torch.testing.assert_close(again, first, equal_nan=True)  # a GPU may round a sum in two ways
    except AssertionError:
        return False
    except RuntimeError:  # nested tensors are not compared
        return True
    return True


def _as_loader(data: Any, name: str, *, batch_size: int, generator: torch.Generator | None, seed: int) -> Iterable[Any]:
    """A Dataset in a DataLoader; a loader, or any collection of batches, as it is.

    generator: of a Dataset's order; None keeps the order. seed: of the order that several processes share.
    """
    if isinstance(data, PairedData):
        raise TypeError(
            f"{name} is a whole data set of pairs: give one of its splits and say who sees what, fit(student, "
            "data.train, validation=data.validation, adapter=Adapter(inputs=..., teacher_inputs=...))."
        )
    shared = generator is not None and distributed.world_size() > 1
    if isinstance(data, IterableDataset):
        if shared:
            raise ValueError(NOT_SHARED)
        return DataLoader(data, batch_size, drop_last=generator is not None)
    if isinstance(data, Dataset):
        count = len(data)  # type: ignore[arg-type]  # a map-style dataset has a length
        if count == 0:
            raise ValueError(f"{name} is an empty dataset.")
        if generator is None:
            return DataLoader(data, batch_size)
        processes = distributed.world_size()
        if batch_size % processes or count < processes:
            raise ValueError(
                f"{processes} processes cannot share batches of {batch_size} of the {count} samples of {name} equally. "
                f"Choose a batch size that is a multiple of {processes}, and no fewer samples."
            )
        size = min(batch_size, count) // processes
        if processes > 1:
            sampler: DistributedSampler[Any] = DistributedSampler(data, seed=seed_for(seed, "order"), drop_last=True)
            return DataLoader(data, size, sampler=sampler, drop_last=True)
        return DataLoader(data, size, shuffle=True, generator=generator, drop_last=True)
    parts = isinstance(data, tuple) and all(isinstance(one, Tensor | np.ndarray) for one in data)  # images and labels
    if parts or isinstance(data, Tensor | np.ndarray | str | bytes | dict) or not isinstance(data, Iterable):
        kinds = ["a kdlib DataModule"] * (name == "data") + ["a DataLoader", "a torch Dataset", "or a list of batches"]
        raise TypeError(
            f"{name} is {', '.join(kinds)}; got {type(data).__name__}. A tensor of images and one of labels make "
            "a torch.utils.data.TensorDataset."
        )
    if isinstance(data, Iterator):
        raise TypeError(
            f"{name} is a {type(data).__name__}, which is used up after one epoch. Give a DataLoader, a Dataset or a "
            "list, which give their batches anew each time."
        )
    if shared and isinstance(getattr(data, "dataset", None), IterableDataset):
        raise ValueError(NOT_SHARED)
    if shared and not is_shard(data):
        raise ValueError(
            "Every process would train on the same batches. Give the DataLoader a "
            "torch.utils.data.DistributedSampler, or give its Dataset."
        )
    if generator is None:
        refuse_shard(name, data)
    return data


def _hint_for_streams(loader: Iterable[Any]) -> str:
    """What else to do where batches of a stream may have been taken for samples; nothing for other loaders."""
    if not stacks_samples_of_stream(loader):
        return ""
    return " If the stream gives batches already, give DataLoader(stream, batch_size=None)."


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader of an IterableDataset
        return None


def _described(loader: Iterable[Any]) -> str:
    """What a loader says of how much it gives."""
    batches, samples = _length(loader), _length(getattr(loader, "dataset", ()))
    return f"{'some' if batches is None else batches} batches" + (f" of {samples} samples" if samples else "")


def _count_steps(loader: Iterable[Any], wanted: int | None) -> int:
    count = _length(loader)
    if wanted is not None:
        steps = as_whole(1, MOST_STEPS, steps_per_epoch=wanted)
        if count is not None and steps > count:
            raise ValueError(
                f"The training data gives {count} batches in an epoch; expected {steps} by steps_per_epoch. Leave it "
                "out, or give a loader that goes on."
            )
        return steps
    if count is None:
        raise ValueError(
            "The training data does not say how many batches it has, which the learning rate over time depends on: "
            "give steps_per_epoch=... Each epoch begins anew, so of a longer stream only its beginning is ever seen, "
            "unless it continues or shuffles by itself."
        )
    if count == 0:
        raise ValueError("The training data gives no batch. Give at least one; drop_last may have left it out.")
    return count


def source(
    data: Any,
    validation: Any,
    *,
    recipe: Recipe,
    augmentation: Augmentation | None,
    views: int | None,
    steps_per_epoch: int | None,
    seed: int,
    config: devices.DeviceConfig,
    adapter: Adapter,
    task: Task,
) -> IndexedBatches | LoaderBatches:
    """Where the batches come from; ValueError for what only a `DataModule` can do, asked of another kind of data."""
    views = None if views is None else as_whole(views=views)
    if isinstance(data, DataModule):
        if validation is not None or steps_per_epoch is not None:
            raise ValueError(
                "A DataModule has its own validation split and length: leave out validation, steps_per_epoch."
            )
        return IndexedBatches(
            data,
            batch_size=recipe.batch_size,
            augmentation=data.augmentation if augmentation is None else augmentation,
            views=views,
            seed=seed,
            config=config,
            adapter=adapter,
        )
    for name, value in {"augmentation": augmentation, "views": views}.items():
        if value is not None:
            raise ValueError(
                f"{name} works on a DataModule, whose samples have an index: a loader augments as it likes, and shows "
                "each batch once. Leave it out, or make a DataModule: data.from_datasets(...)."
            )
    return LoaderBatches(
        data,
        validation,
        batch_size=recipe.batch_size,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        config=config,
        adapter=adapter,
        task=task,
    )
