"""What the parts of the experiment on claims share: pictures, settings, arms, and how a student is taught.

All students are the article's small CNN (20,490 parameters), which has no batch norm: what it meets at the test depends
on its weights alone, and not on statistics of the pictures that taught it. Its teacher is the shipped ResNet-8, or
a copy of it that was tampered with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import data, models, train
from kdlib.data import NO_AUGMENTATION, DataModule, InMemoryDataset
from kdlib.data.augment import seed_for
from kdlib.methods import HardLabels, Logit, Method
from kdlib.teachers import CachedTeacher

FASHION, TEACHER, STUDENT = "fashion-mnist", "resnet8-fashion", "article-student"
TUNING_SEED = 1000  # none of the runs'
IMAGES, EPOCHS, BATCH = 2_000, 8, 64
WEIGHT_DECAY = 5e-4
CHECKED = 100  # validation images that `fit` looks at after each epoch; nothing is chosen by them


@dataclass(frozen=True)
class Setting:
    """What is chosen on the validation split for each arm: the peak learning rate, and T or the smoothing if any."""

    learning_rate: float
    temperature: float | None = None
    smoothing: float | None = None


def hard_settings(*rates: float) -> tuple[Setting, ...]:
    """The rates alone."""
    return tuple(Setting(rate) for rate in rates)


def soft_settings(*rates: float, temperatures: tuple[float, ...] = (1.0, 4.0)) -> tuple[Setting, ...]:
    """Every temperature with every rate."""
    return tuple(Setting(rate, temperature) for temperature in temperatures for rate in rates)


HARD = hard_settings(0.002, 0.005)  # two trials for every arm
SOFT = soft_settings(0.002, 0.005, temperatures=(4.0,))

Chosen = Mapping[str, Setting]  # by arm
Measured = dict[str, Any]  # columns of a row


@dataclass(frozen=True)
class Arm:
    """One way to teach a student, or to make a teacher.

    train: from a seed, the arm's setting and the settings chosen so far to a network. settings: what is tried on the
    validation split; a single one is taken as it is, none means those of the arm `as_in`. epochs: passes over the
    pictures.
    """

    train: Callable[[int, Setting, Chosen], nn.Module]
    settings: tuple[Setting, ...] = ()
    as_in: str | None = None
    epochs: int = EPOCHS


@dataclass(frozen=True)
class Part:
    """One question: its arms by name, the training images of each, and what is measured beside accuracy (columns)."""

    name: str
    arms: Mapping[str, Arm]
    images: int = IMAGES
    columns: tuple[str, ...] = ()
    measure: Callable[[nn.Module, Tensor], Measured] = field(default=lambda network, logits: {})


@lru_cache(maxsize=1)
def fashion() -> DataModule:
    """All images."""
    return data.load(FASHION)


@lru_cache(maxsize=8)
def images_of(seed: int, count: int = IMAGES) -> InMemoryDataset:
    """The training images of a seed, equally many of each class."""
    split = fashion().subset(count, seed=seed).train
    assert isinstance(split, InMemoryDataset)
    return split


@lru_cache(maxsize=4)
def other_images_of(seed: int) -> InMemoryDataset:
    """As many training images, none of which is among those of `images_of`."""
    more = images_of(seed, 2 * IMAGES)
    return more.select((~torch.isin(more.indices, images_of(seed).indices)).nonzero()[:, 0])


def pictures(images: Tensor) -> InMemoryDataset:
    """Pictures of anything, as a training split: uint8, N x 1 x 28 x 28; their labels, all 0, mean nothing."""
    split = images_of(0)
    none = torch.zeros(len(images), dtype=torch.long)
    return InMemoryDataset(images, none, torch.arange(len(images)), split.mean, split.std)


def generator(seed: int, *key: str) -> torch.Generator:
    """A stream of random numbers for each seed and purpose."""
    return torch.Generator().manual_seed(seed_for(seed, *key))


@lru_cache(maxsize=1)
def teacher() -> nn.Module:
    """The shipped ResNet-8."""
    return models.load(TEACHER).eval()


@torch.no_grad()
def logits_of(network: nn.Module, split: InMemoryDataset) -> Tensor:
    """The network's logits for a split, N x 10, in the precision that training has on this machine."""
    return train.evaluate(network, split).logits


def new_student(seed: int) -> nn.Module:
    """The article's student with the initial weights of a seed."""
    return models.build(STUDENT, num_classes=10, in_channels=1, image_size=28, seed=seed)


def fit(
    network: nn.Module,
    split: InMemoryDataset,
    setting: Setting,
    seed: int,
    *,
    answers: Tensor | CachedTeacher | None = None,
    alpha: float = 0.0,
    epochs: int = EPOCHS,
) -> nn.Module:
    """Train by the split's labels or, where a teacher's answers (logits N x 10) are given, by them.

    alpha: the weight of the labels beside answers. Raises FloatingPointError where training diverges.
    """
    method: Method = HardLabels(setting.smoothing or 0.0)
    if isinstance(answers, Tensor):
        answers = CachedTeacher.from_logits(answers, split.indices)
    if answers is not None:
        method = Logit(temperature=setting.temperature or 1.0, alpha=alpha)
    base = fashion()
    train.fit(
        network,
        replace(base, train=split, validation=base.validation.select(torch.arange(CHECKED))),
        teacher=answers,
        method=method,
        epochs=epochs,
        recipe=train.Recipe("adamw", setting.learning_rate, weight_decay=WEIGHT_DECAY, batch_size=BATCH),
        augmentation=NO_AUGMENTATION,
        seed=seed,
        test=False,
        progress=False,
    )
    return network


def taught(
    seed: int,
    setting: Setting,
    split: InMemoryDataset,
    answers: Tensor | CachedTeacher | None = None,
    *,
    alpha: float = 0.0,
    epochs: int = EPOCHS,
) -> nn.Module:
    """The student of a seed, taught by labels or by answers."""
    return fit(new_student(seed), split, setting, seed, answers=answers, alpha=alpha, epochs=epochs)


def by_class(logits: Tensor, labels: Tensor) -> str:
    """The share of right answers in each class, as one text: a column of a row."""
    right = (logits.argmax(dim=1) == labels).double()
    return " ".join(f"{right[labels == one].mean().item():.4f}" for one in range(10))
