"""Random set-ups for `kdlib.doctor`: sound ones, and ones with a known fault. A seed decides everything.

Pictures are smooth patterns, one for each class, under noise; teachers learn them in a second.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 12
WORLDS = 20  # data sets, each with a teacher


class Pick:
    """A random choice that a seed and a purpose decide."""

    def __init__(self, *purpose: Any) -> None:
        self._chance = random.Random(repr(purpose))

    def __call__(self, *options: Any) -> Any:
        return self._chance.choice(options)


class Block(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inputs: int, width: int, norm: str, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 3, 2, 1)
        kinds = {"batch": nn.BatchNorm2d(width), "group": nn.GroupNorm(2, width), "none": nn.Identity()}
        self.norm, self.relu = kinds[norm], nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    """Two or three blocks, an average over positions, dropout and a classifier."""

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: tuple[int, ...],
        norm: str = "batch",
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        sizes = (channels, *widths)
        self.blocks = nn.Sequential(*(Block(a, b, norm, **options) for a, b in zip(sizes, widths, strict=False)))
        self.drop, self.fc = nn.Dropout(dropout), nn.Linear(widths[-1], classes)
        self.last: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(self.drop(self.blocks(x).mean((2, 3)))))


@dataclass(frozen=True)
class World:
    """A classification task. images: float, normalised; mean and std bring them back to pixels in [0, 1]."""

    seed: int
    classes: int
    channels: int
    prototypes: Tensor
    noise: float
    mean: float
    std: float

    def pixels(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Pictures in [0, 1] and labels."""
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        labels = torch.randint(self.classes, (count,), generator=generator)
        noise = torch.randn(count, self.channels, SIZE, SIZE, generator=generator)
        return (0.5 + 0.18 * self.prototypes[labels] + self.noise * noise).clamp(0, 1), labels

    def samples(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Normalised pictures and labels."""
        pixels, labels = self.pixels(count, seed)
        return (pixels - self.mean) / self.std, labels

    def batches(self, size: int, count: int, seed: int = 7) -> list[tuple[Tensor, Tensor]]:
        """Pairs of pictures and labels."""
        images, labels = self.samples(size * count, seed)
        return list(zip(images.split(size), labels.split(size), strict=True))


@functools.cache
def world(number: int) -> World:
    """One of `WORLDS` tasks."""
    pick, generator = Pick("world", number), torch.Generator().manual_seed(number)
    classes, channels = pick(3, 4, 5, 8, 10, 10, 12, 16), pick(1, 3)
    coarse = torch.randn(classes, channels, 4, 4, generator=generator)
    prototypes = F.interpolate(coarse, SIZE, mode="bilinear")
    return World(number, classes, channels, prototypes, pick(0.2, 0.3, 0.4), mean=0.5, std=pick(0.25, 0.35))


def train(
    network: nn.Module, task: World, steps: int, seed: int, smoothing: float = 0.0, rate: float = 3e-3
) -> nn.Module:
    """Some steps of Adam; the network comes back in train mode."""
    images, labels = task.samples(2048, 100 + seed)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for _ in range(steps):
        some = torch.randint(len(labels), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(network(images[some]), labels[some], label_smoothing=smoothing).backward()
        optimizer.step()
    return network


def accuracy(network: nn.Module, task: World) -> float:
    """On 500 other samples."""
    images, labels = task.samples(500, 55)
    training = network.training
    network.eval()
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).float().mean().item()
    network.train(training)
    return right


@functools.cache
def _trained(number: int, smoothing: float, seed: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    task, pick = world(number), Pick("teacher", number, seed)
    shape = {
        "widths": pick((16, 24), (12, 16, 24), (24, 32)),
        "norm": pick("batch", "batch", "batch", "none"),
        "dropout": pick(0.0, 0.0, 0.2),
    }
    with torch.random.fork_rng():
        torch.manual_seed(number + 100 * seed)
        network = Net(task.channels, task.classes, **shape)
        steps = pick(60, 100, 200, 400)
        least = 1 / task.classes + 0.35 * (1 - 1 / task.classes)
        for more in range(8):
            train(network, task, steps if more == 0 else 100, more, smoothing)
            if accuracy(network, task) > least:
                break
    return shape, network.state_dict()


def teacher(number: int, smoothing: float = 0.0, seed: int = 0) -> Net:
    """The trained teacher of a task, in eval mode; a new copy each time."""
    shape, state = _trained(number, smoothing, seed)
    task = world(number)
    network = Net(task.channels, task.classes, **shape)
    network.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    return network.eval()


# -------------------- networks of a set-up


@dataclass
class Case:
    """The parts that a set-up is made of; sound as they are."""

    seed: int
    task: World
    student: nn.Module
    teacher: nn.Module
    size: int
    temperature: float
    alpha: float
    pick: Pick

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """512 samples, another draw than the teacher was trained on."""
        return self.task.batches(self.size, 512 // self.size, seed=7 + self.seed)

    def optimizer(self, *modules: nn.Module) -> torch.optim.Optimizer:
        """Over the student, or over these modules."""
        parameters = [p for one in modules or (self.student,) for p in one.parameters()]
        kind = self.pick(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
        return kind(parameters, lr=self.pick(0.1, 0.01, 0.001))

    def soft(self, s: Tensor, t: Tensor) -> Tensor:
        """The reference, written by hand."""
        T = self.temperature
        return F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean") * T**2

    def loss(self, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The whole loss of the reference."""
        return self.alpha * F.cross_entropy(s, y) + (1 - self.alpha) * self.soft(s, t)

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """A training step as people write it."""
        x, y = batch
        with torch.no_grad():
            t = self.teacher(x)
        return self.loss(self.student(x), t, y)

    def arguments(self, form: str | None = None, **changed: Any) -> dict[str, Any]:
        """What `examine` is called with; form: "loss" or "step", at random by default."""
        form = form or self.pick("loss", "step")
        given = {"student": self.student, "teacher": self.teacher, form: getattr(self, form), "batches": self.batches}
        if self.pick(True, False):
            given |= {"temperature": self.temperature, "alpha": self.alpha}
        if "optimizer" not in changed:
            given["optimizer"] = self.optimizer()
        return given | changed


def case(seed: int, **wanted: Any) -> Case:
    """A sound set-up. wanted: a choice that is not left to chance, such as norm="batch", trained=False."""
    pick = Pick("case", seed, wanted.pop("purpose", ""))
    number = wanted.pop("number", None)
    number = pick(*range(WORLDS)) if number is None else number
    task = world(number)
    norm = wanted.pop("norm", pick("batch", "batch", "group", "none"))
    dropout = wanted.pop("dropout", pick(0.0, 0.0, 0.3))
    widths = pick((8, 12), (8, 8, 12), (12, 16))
    student = Net(task.channels, task.classes, widths, norm, dropout)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in student.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        if wanted.pop("trained", pick(False, False, False, True)):
            train(student, task, pick(5, 15, 30), seed, rate=1e-3)
    size, temperature = pick(8, 16, 32, 64, 128), pick(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 20.0)
    alpha = pick(0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9)
    found = Case(seed, task, student.train(), teacher(number), size, temperature, alpha, pick)
    for name, value in wanted.items():
        setattr(found, name, value)
    return found
