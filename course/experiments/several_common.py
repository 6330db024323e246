"""What the three parts of the experiment on several teachers share: settings, ways, and what a run leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kdlib import data, devices, models, train
from kdlib.data import NO_AUGMENTATION, DataModule, IndexedDataset, InMemoryDataset
from kdlib.methods import HardLabels, Logit, Method
from kdlib.teachers import CachedTeacher

TUNING_SEEDS = (1000, 1001)  # none of the runs'
FASHION = "fashion-mnist"


@dataclass(frozen=True)
class Setting:
    """What is chosen on the validation split for each way: the peak learning rate and, with a teacher, T."""

    learning_rate: float
    temperature: float | None = None


def soft_settings(*rates: float, temperatures: Sequence[float] = (1.0, 2.0, 4.0)) -> tuple[Setting, ...]:
    """Every temperature with every rate."""
    return tuple(Setting(rate, temperature) for temperature in temperatures for rate in rates)


def hard_settings(*rates: float) -> tuple[Setting, ...]:
    """The rates alone."""
    return tuple(Setting(rate) for rate in rates)


Logits = Callable[[IndexedDataset], Tensor]


@dataclass(frozen=True)
class Outcome:
    """What one run leaves: its students, whose accuracies are averaged, and the answers of what taught them, if any."""

    students: Sequence[nn.Module]
    teacher: Logits | None = None


Chosen = Mapping[str, Setting]  # by way


@dataclass(frozen=True)
class Way:
    """One way of teaching.

    train: from a seed, its own setting and the settings chosen so far to an outcome. settings: what is tried; none for
    a way that takes over those of `as_in`. trials_only: a teacher, which is tuned and then used by other ways.
    """

    train: Callable[[int, Setting, Chosen], Outcome]
    settings: tuple[Setting, ...] = ()
    as_in: str | None = None
    trials_only: bool = False


@dataclass(frozen=True)
class Part:
    """One question: its ways by name, training images, passes of a teacher and of a student over them."""

    name: str
    images: int
    epochs: int
    student_epochs: int
    ways: Mapping[str, Way]


@lru_cache(maxsize=1)
def fashion() -> DataModule:
    """All images."""
    return data.load(FASHION)


@lru_cache(maxsize=2)
def images_of(seed: int, count: int) -> DataModule:
    """The training images of a seed; the validation split is a few images that `fit` may look at."""
    few = fashion().validation.select(torch.arange(100))
    return replace(fashion().subset(count, seed=seed), validation=few)


def train_split_of(seed: int, count: int) -> InMemoryDataset:
    """The training images alone."""
    split = images_of(seed, count).train
    assert isinstance(split, InMemoryDataset)
    return split


def with_train(base: DataModule, train_split: InMemoryDataset) -> DataModule:
    """The same data with another training split."""
    return replace(base, train=train_split)


def mlp(width: int, seed: int) -> nn.Sequential:
    """A network with one hidden layer."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


def thin_resnet(width: int, seed: int, classes: int = 10) -> nn.Module:
    """A ResNet-8 whose stages have this width, twice and four times as much."""
    return models.build(f"resnet8w{width}", num_classes=classes, in_channels=1, seed=seed)


def fit(
    network: nn.Module,
    images: DataModule,
    setting: Setting,
    epochs: int,
    seed: int,
    logits: Tensor | None = None,
    alpha: float = 0.0,
    batch_size: int = 128,
) -> nn.Module:
    """Train by hard labels or, where a teacher's logits for the training images are given, by them."""
    teacher: CachedTeacher | None = None
    method: Method = HardLabels()
    if logits is not None:
        teacher = CachedTeacher.from_logits(logits, images.train.indices)
        method = Logit(temperature=setting.temperature or 1.0, alpha=alpha)
    train.fit(
        network,
        images,
        teacher=teacher,
        method=method,
        epochs=epochs,
        recipe=train.Recipe(learning_rate=setting.learning_rate, batch_size=batch_size),
        augmentation=NO_AUGMENTATION,
        seed=seed,
        test=False,
        progress=False,
    )
    return network


@torch.no_grad()
def logits_of(network: nn.Module, split: IndexedDataset) -> Tensor:
    """The network's logits for a split, in the precision that training has on this machine.

    (`train.evaluate` refuses a specialist, which has fewer logits than the split has classes.)
    """
    config = devices.resolve()
    config.move(network.eval())
    with config.autocast():
        parts = [network(batch.images) for batch in split.iter_batches(500, device=config.device)]
    return torch.cat(parts).float().cpu()


class Given(nn.Module):
    """A network that answers with what it was given: answers that are known can be combined as networks are."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


_kept: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()


def teacher_logits(network: nn.Module, split: IndexedDataset) -> Tensor:
    """The same, kept as long as the network lives: many students ask one teacher."""
    kept = _kept.setdefault(network, {})
    if split.fingerprint not in kept:
        kept[split.fingerprint] = logits_of(network, split)
    return kept[split.fingerprint]
