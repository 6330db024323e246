"""Part "same": several teachers of the same pictures, against one teacher with the same compute.

A unit of compute is one ResNet-8 of half the width (8, 16, 32) trained on all pictures for EPOCHS passes.
Three members cost three units, and so do one network trained three times as long, three snapshots of one run (each
after a cosine cycle of its own), and two units of specialists with one of the members as their gate. The student is
narrower (4, 8, 16) and has all labels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from course.experiments.rows import accuracy
from course.experiments.several_common import (
    Chosen,
    Given,
    Logits,
    Outcome,
    Part,
    Setting,
    Way,
    fashion,
    fit,
    hard_settings,
    images_of,
    soft_settings,
    teacher_logits,
    thin_resnet,
    train_split_of,
)
from kdlib.data import DataModule, IndexedDataset
from kdlib.ensembles import Specialists
from kdlib.teachers import Ensemble

IMAGES, EPOCHS, STUDENT_EPOCHS, MEMBERS, BATCH = 2_000, 8, 12, 3, 64
WIDTH, STUDENT = 8, 4
GROUPS = ((0, 2, 4, 6), (5, 7, 9), (1, 3, 8))  # tops, shoes, others
ALPHA = 0.1
SINGLE, LONG = "one network", "one network, three times as long"


@lru_cache(maxsize=8)
def member(seed: int, number: int, setting: Setting) -> nn.Module:
    """A network of one unit; members differ in initial weights and in the order of the images."""
    own = 100 * seed + number
    return fit(thin_resnet(WIDTH, own), images_of(seed, IMAGES), setting, EPOCHS, own, batch_size=BATCH)


def members(seed: int, chosen: Chosen) -> tuple[nn.Module, ...]:
    """Three of them."""
    return tuple(member(seed, number, chosen[SINGLE]) for number in range(MEMBERS))


@lru_cache(maxsize=2)
def long(seed: int, setting: Setting) -> nn.Module:
    """One network, three times as long."""
    return fit(
        thin_resnet(WIDTH, 100 * seed), images_of(seed, IMAGES), setting, MEMBERS * EPOCHS, 100 * seed, batch_size=BATCH
    )


@lru_cache(maxsize=2)
def snapshots(seed: int, setting: Setting) -> tuple[nn.Module, ...]:
    """One network after each of three cycles of the learning rate."""
    network, made = thin_resnet(WIDTH, 100 * seed), []
    for cycle in range(MEMBERS):
        fit(network, images_of(seed, IMAGES), setting, EPOCHS, 100 * seed + cycle, batch_size=BATCH)
        made.append(copy.deepcopy(network))
    return tuple(made)


@lru_cache(maxsize=2)
def specialists(seed: int, setting: Setting) -> tuple[nn.Module, ...]:
    """A network for each group of classes, which sees pictures of these classes alone, twice as long."""
    made = []
    for number, group in enumerate(GROUPS):
        own = 100 * seed + 10 + number
        made.append(
            fit(thin_resnet(WIDTH, own, len(group)), _only(seed, group), setting, 2 * EPOCHS, own, batch_size=BATCH)
        )
    return tuple(made)


def _only(seed: int, group: tuple[int, ...]) -> DataModule:
    """The pictures of these classes, numbered by their places in the group."""
    base, numbers = images_of(seed, IMAGES), torch.full((10,), -1)
    numbers[list(group)] = torch.arange(len(group))
    parts = {}
    for name in ("train", "validation", "test"):
        split = getattr(base, name)
        own = split.select(torch.isin(split.labels, torch.tensor(group)).nonzero()[:, 0])
        parts[name] = replace(own, labels=numbers[own.labels])
    return replace(base, classes=tuple(base.classes[one] for one in group), **parts)


def _outcome(seed: int, setting: Setting, teacher: Logits) -> Outcome:
    return Outcome([_student(seed, setting, teacher(train_split_of(seed, IMAGES)))], teacher)


def _of(network: nn.Module) -> Logits:
    return partial(teacher_logits, network)


def _given(networks: Sequence[nn.Module], split: IndexedDataset) -> list[Given]:
    return [Given(teacher_logits(one, split)) for one in networks]


def _student(seed: int, setting: Setting, logits: Tensor | None = None) -> nn.Module:
    return fit(thin_resnet(STUDENT, seed), images_of(seed, IMAGES), setting, STUDENT_EPOCHS, seed, logits, ALPHA, BATCH)


def _best(networks: Sequence[nn.Module], split: IndexedDataset) -> nn.Module:
    return max(networks, key=lambda one: accuracy(teacher_logits(one, split), split.labels))


def taught_by_best(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """A student of the member that is best on the validation split."""
    return _outcome(seed, setting, _of(_best(members(seed, chosen), fashion().validation)))


def taught_by_each(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """Three students, each of one member."""
    made = [_outcome(seed, setting, _of(one)) for one in members(seed, chosen)]
    return Outcome([one.students[0] for one in made])


def ensemble(networks: Sequence[nn.Module], mean: str = "arithmetic") -> Logits:
    """These networks as one teacher."""
    return lambda split: Ensemble(_given(networks, split), mean=mean)(torch.empty(0))


def joined(networks: Sequence[nn.Module], gate: nn.Module | None) -> Logits:
    """These specialists as one teacher."""

    def logits(split: IndexedDataset) -> Tensor:
        gates = [] if gate is None else _given([gate], split)
        return Specialists(_given(networks, split), GROUPS, gate=gates[0] if gates else None)(torch.empty(0))

    return logits


def taught_by_ensemble(seed: int, setting: Setting, chosen: Chosen, mean: str) -> Outcome:
    """A student of the three members together."""
    return _outcome(seed, setting, ensemble(members(seed, chosen), mean))


def taught_by_long(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """A student of one network that was trained three times as long."""
    return _outcome(seed, setting, _of(long(seed, chosen[LONG])))


def taught_by_snapshots(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """A student of three snapshots of one run."""
    return _outcome(seed, setting, ensemble(snapshots(seed, chosen[SINGLE])))


def taught_by_specialists(seed: int, setting: Setting, chosen: Chosen, gated: bool) -> Outcome:
    """A student of specialists, joined as they are or behind a member as their gate."""
    gate = member(seed, 0, chosen[SINGLE]) if gated else None
    return _outcome(seed, setting, joined(specialists(seed, chosen[SINGLE]), gate))


def alone(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """The student on hard labels."""
    return Outcome([_student(seed, setting)])


RATES = hard_settings(0.05, 0.15, 0.5)
SOFT = soft_settings(0.08, 0.2, 0.5, 1.0, 2.0, temperatures=(1.0, 4.0))
HARD = hard_settings(0.03, 0.06, 0.12, 0.2, 0.3, 0.5, 0.8, 1.2, 1.6, 2.0)
PART = Part(
    "same",
    IMAGES,
    EPOCHS,
    STUDENT_EPOCHS,
    {
        SINGLE: Way(lambda seed, setting, _: Outcome([member(seed, 0, setting)]), RATES, trials_only=True),
        LONG: Way(lambda seed, setting, _: Outcome([long(seed, setting)]), RATES, trials_only=True),
        "hard labels": Way(alone, HARD),
        "best single": Way(taught_by_best, SOFT),
        "average single": Way(taught_by_each, as_in="best single"),
        "mean of probabilities": Way(partial(taught_by_ensemble, mean="arithmetic"), SOFT),
        "mean of logits": Way(partial(taught_by_ensemble, mean="geometric"), SOFT),
        "three times as long": Way(taught_by_long, SOFT),
        "snapshots of one run": Way(taught_by_snapshots, SOFT),
        "specialists, joined": Way(partial(taught_by_specialists, gated=False), SOFT),
        "specialists with a gate": Way(partial(taught_by_specialists, gated=True), SOFT),
    },
)
