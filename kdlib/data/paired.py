"""Data sets of pairs: each sample is there in two modalities, which were recorded together.

shoulder = data.load("shoulder-exercises")
few = shoulder.train.few_labels(2)                  # of each class; the other labels are hidden
batches = few.batches(64, labelled=32)              # pairs, and beside them 32 samples whose labels are known
adapter = Adapter(inputs="gyroscope", teacher_inputs="accelerometer")
method = Logit(temperature=2, alpha=0.5, hard=labelled_cross_entropy)
train.fit(student, batches, validation=shoulder.validation, teacher=teacher, adapter=adapter, method=method)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from kdlib.data.augment import permutation
from kdlib.data.sources import data_dir, verify_file
from kdlib.errors import as_whole, check_real, check_whole, unknown_name
from kdlib.files import load_tensors

HIDDEN = -100  # the label of a sample that may not be seen; also what torch's cross-entropy leaves out
RESERVED = ("labels", "index")
PAIRED_FILES = {  # written by course.experiments.paired_data
    "shoulder-exercises.safetensors": "d1065b8344f9f99a4ed49f162b82666620cb63613780a02eee956a81cdd36275",
    "digit-views.safetensors": "d32fb0c48218959a1976679b37aee0de9c091b59f98662ce045562ca2dc0e432",
}
SPLITS = 5
WINDOW, STEP = 100, 50  # 4 s and 2 s at 25 Hz


def labelled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of those samples whose labels are not hidden; 0 where all are.

    Shapes: logits B x C; labels int64, B. Scale: nats. For HardLabels(hard=...) and Logit(hard=...).
    """
    known = labels != HIDDEN
    if not bool(known.any()):
        return 0.0 * logits.sum()  # keeps the graph, so that backward works
    return F.cross_entropy(logits[known], labels[known])


@dataclass(frozen=True, eq=False)
class PairedDataset(Dataset):
    """Samples in two modalities or more, as a torch Dataset of dicts: one field each, "labels" and "index".

    inputs: by field, float32, N x ...; row i of each belongs to the same moment. labels: int64, N, HIDDEN where they
    may not be seen. groups: int64, N, which samples belong together, such as all of a person; None where nothing is
    known. indices: int64, N, the sample's number in the source, whatever the order or the subset.
    Raises ValueError for fields that have no pair for each sample, TypeError for labels that are no class numbers.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    indices: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) < 2 or set(self.inputs) & set(RESERVED):
            raise ValueError(
                f"inputs are two fields or more, none of them called {' or '.join(RESERVED)}; got "
                f"{', '.join(self.inputs) or 'none'}."
            )
        if not isinstance(self.labels, Tensor) or self.labels.dtype != torch.int64:
            raise TypeError("labels are an int64 tensor of class numbers: write labels.long().")
        parts = {**self.inputs, "labels": self.labels, "indices": self.indices}
        parts |= {} if self.groups is None else {"groups": self.groups}
        lengths = {name: len(one) for name, one in parts.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
            raise ValueError(
                f"The samples are not paired: {shown}. Row i of every field belongs to the same sample; leave out "
                "those that lack a partner."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: Any) -> dict[str, Tensor]:
        """One sample by its position, or several by a tensor of them."""
        return {name: one[positions] for name, one in self.inputs.items()} | {
            "labels": self.labels[positions],
            "index": self.indices[positions],
        }

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[position] for position in range(len(self)))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the modalities."""
        return tuple(self.inputs)

    @property
    def labelled(self) -> Tensor:
        """Positions of the samples whose labels may be seen, int64."""
        return torch.nonzero(self.labels != HIDDEN)[:, 0]

    def select(self, positions: Tensor) -> PairedDataset:
        """The samples at these positions."""
        return PairedDataset(
            {name: one[positions] for name, one in self.inputs.items()},
            self.labels[positions],
            self.indices[positions],
            None if self.groups is None else self.groups[positions],
        )

    def few_labels(self, per_class: int, seed: int = 0) -> PairedDataset:
        """The same samples with all labels hidden but those of `per_class` of each class.

        Fewer labels are contained in more of the same seed. Raises ValueError where a class has not so many.
        """
        check_whole(1, per_class=per_class)
        order = permutation(self.indices, "labels", seed)
        labels = torch.full_like(self.labels, HIDDEN)
        for label in self.labels[self.labelled].unique():
            of_class = order[self.labels[order] == label]
            if len(of_class) < per_class:
                raise ValueError(
                    f"Class {int(label)} has {len(of_class):,} labelled samples; there are not {per_class:,} to keep."
                )
            labels[of_class[:per_class]] = label
        return replace(self, labels=labels)

    def shuffle_pairs(self, field: str, share: float = 1.0, seed: int = 0) -> PairedDataset:
        """The control: a share of the samples get this field from another of them; the rest stays as it is.

        Raises ValueError for an unknown field, or a share that is not from 0 to 1 or of fewer than two samples.
        """
        if field not in self.inputs:
            raise unknown_name("field", field, self.inputs)
        check_real(share=share)
        if not 0 <= share <= 1:
            raise ValueError(f"share lies between 0 and 1; got {share}.")
        chosen = permutation(self.indices, "wrong pairs", seed)[: round(share * len(self))]
        if share > 0 and len(chosen) < 2:
            raise ValueError(
                f"A share of {share:g} of {len(self):,} samples is fewer than two, and one has no other to exchange "
                "with. Give a larger share, or 0."
            )
        mixed = self.inputs[field].clone()
        mixed[chosen] = self.inputs[field][chosen.roll(1)]  # one cycle in random order: none keeps its own
        return replace(self, inputs={**self.inputs, field: mixed})

    def batches(self, batch_size: int, *, labelled: int = 0, steps: int | None = None) -> PairedBatches:
        """Batches in a new order each time they are iterated, see `PairedBatches`."""
        return PairedBatches(self, batch_size, labelled, steps)


@dataclass(frozen=True, eq=False)
class PairedBatches:
    """Batches of a `PairedDataset` in random order, with some more samples whose labels are known.

    batch_size: samples of all of the set in a batch. labelled: further samples in each batch, drawn with replacement
    from those whose labels may be seen; where labels are few, most batches would hold none of them. steps: batches of
    an epoch; default, as many as are full. The order is drawn from torch's generator, which `train.fit` seeds.
    Raises ValueError for a batch larger than the set (without steps), or labelled samples where all labels are hidden.
    """

    dataset: PairedDataset
    batch_size: int
    labelled: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", as_whole(batch_size=self.batch_size))
        object.__setattr__(self, "labelled", as_whole(0, labelled=self.labelled))
        if self.steps is not None:
            object.__setattr__(self, "steps", as_whole(steps=self.steps))
        elif len(self.dataset) < self.batch_size:
            raise ValueError(
                f"There are {len(self.dataset):,} samples, less than one batch of {self.batch_size:,}. Take smaller "
                "batches, or say how many steps an epoch has, and samples come again."
            )
        if self.labelled and len(self.dataset.labelled) == 0:
            raise ValueError("All labels are hidden: there are no labelled samples to add. Leave out labelled.")

    def __len__(self) -> int:
        return len(self.dataset) // self.batch_size if self.steps is None else self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        count, known = len(self.dataset), self.dataset.labelled
        needed = len(self) * self.batch_size
        order = torch.cat([torch.randperm(count) for _ in range(math.ceil(needed / count))])
        for chosen in order[:needed].split(self.batch_size):
            if self.labelled:
                chosen = torch.cat((chosen, known[torch.randint(len(known), (self.labelled,))]))
            yield self.dataset[chosen]


@dataclass(frozen=True, eq=False)
class PairedData:
    """Three splits of a data set of pairs, and the names of its classes; groups such as persons lie in one split each.

    Choices are made on validation; test is read once at the end. `train.fit` takes a split, or its `batches`.
    """

    name: str
    classes: tuple[str, ...]
    train: PairedDataset
    validation: PairedDataset
    test: PairedDataset

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the modalities."""
        return self.train.fields


def load_paired(name: str, split: int = 0) -> PairedData:
    """A shipped data set of pairs, in one of five splits; split 0 is that of `data.load`.

    The five test sets have no sample, and of "shoulder-exercises" no person, in common, and together hold all.
    Raises ValueError for an unknown name, split or an altered file, FileNotFoundError for a missing one.
    """
    if name not in PAIRED_LOADERS:
        raise unknown_name("data set of pairs", name, PAIRED_LOADERS)
    check_whole(0, SPLITS - 1, split=split)
    return copy.deepcopy(PAIRED_LOADERS[name](data_dir(), split))  # the caller may write into it


@lru_cache(maxsize=SPLITS)  # `where` tells folders apart
def _shoulder_exercises(where: Path, split: int) -> PairedData:
    """Seven exercises of ten persons with a smartwatch (Burns et al. 2018): windows of 4 s, one every 2 s, at 25 Hz.

    "accelerometer" and "gyroscope": 3 axes x 100. Split by person: 6 train, 2 validation, 2 test.
    """
    tensors, facts = _read("shoulder-exercises.safetensors")
    recordings = tensors["recordings"].float() * torch.tensor(facts["steps"])
    cut = [one.unfold(0, WINDOW, STEP) for one in recordings.split(tensors["lengths"].tolist())]  # windows x 6 x 100
    counts = torch.tensor([len(one) for one in cut])
    windows = torch.cat(cut)
    labels, persons = (tensors[name].long().repeat_interleave(counts) for name in ("labels", "persons"))
    everyone = persons.unique()
    turned = everyone.roll(-2 * split)  # two are tested in each split, the next two are for validation
    rows = {
        part: torch.nonzero(torch.isin(persons, chosen))[:, 0]
        for part, chosen in {"test": turned[:2], "validation": turned[2:4], "train": turned[4:]}.items()
    }
    seen = windows[rows["train"]]
    scaled = (windows - seen.mean((0, 2), keepdim=True)) / seen.std((0, 2), keepdim=True)
    inputs = {"accelerometer": scaled[:, :3], "gyroscope": scaled[:, 3:]}
    return _split("shoulder-exercises", facts, inputs, labels, persons, rows)


@lru_cache(maxsize=SPLITS)
def _digit_views(where: Path, split: int) -> PairedData:
    """2,000 handwritten digits, each described twice (UCI multiple features): coarse pixels and Zernike moments."""
    tensors, facts = _read("digit-views.safetensors")
    labels = tensors["labels"].long()
    order = permutation(torch.arange(len(labels)), "split")
    fifths = order.view(SPLITS, -1).roll(-split, 0)
    rows = {"test": fifths[0], "validation": fifths[1], "train": fifths[2:].flatten()}
    rows = {part: chosen.sort().values for part, chosen in rows.items()}
    inputs = {}
    for name in ("pixels", "zernike"):
        values = tensors[name].float()
        seen = values[rows["train"]]
        inputs[name] = (values - seen.mean(0)) / seen.std(0).clamp_min(1e-3)  # some pixels never change
    return _split("digit-views", facts, inputs, labels, None, rows)


def _split(
    name: str,
    facts: Mapping[str, Any],
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    groups: Tensor | None,
    rows: Mapping[str, Tensor],
) -> PairedData:
    whole = PairedDataset(
        {key: one.contiguous() for key, one in inputs.items()}, labels, torch.arange(len(labels)), groups
    )
    return PairedData(name, tuple(facts["classes"]), **{part: whole.select(chosen) for part, chosen in rows.items()})


def _read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_tensors(verify_file(name, PAIRED_FILES[name], f"Restore it with 'git checkout -- data/{name}'."))


PAIRED_LOADERS = {"shoulder-exercises": _shoulder_exercises, "digit-views": _digit_views}
