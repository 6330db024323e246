"""What all patients of the clinic share: pictures, networks, batches, and the loop that trains.

The task is small so that a patient trains in a second: Fashion-MNIST at 14 x 14 pixels, 300 labelled pictures, two
perceptrons. The teacher has seen 10,000 pictures. Random numbers come from torch's own generator, which whoever runs a
script seeds, so that two runs of one seed have the same initial weights and the same order of pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import data

Batch = tuple[Tensor, Tensor, Tensor]  # pictures, labels, and the numbers of the samples
Terms = dict[str, Tensor]

EPOCHS, BATCH_SIZE, LEARNING_RATE = 20, 25, 0.05
SIDE, CLASSES = 14, 10
STUDENT_WIDTH, TEACHER_WIDTH = 24, 256
TAUGHT, LABELLED, JUDGED = 10_000, 300, 2_000  # pictures of the teacher, of a student, and for validation
PIECES, FEWEST = 8, 6  # places of a shelf, and how many are taken at least
SHELVES_A_BATCH = 4
NO_PIECE = -100  # the label of an empty place, which cross-entropy leaves out by itself


class Net(nn.Module):
    """A perceptron with two hidden layers, batch norm and dropout; B x 1 x 14 x 14, or shelves of such pictures."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        first, second = (
            nn.Sequential(nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
            for inputs in (SIDE * SIDE, width)
        )
        self.body, self.middle = nn.Sequential(first, nn.Dropout(dropout)), second
        self.head = nn.Linear(width, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """What the last hidden layer gives, N x width."""
        return self.middle(self.body(images.reshape(-1, SIDE * SIDE)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, one row for each picture; for shelves B x 8 x 10."""
        logits = self.head(self.features(images))
        return logits if images.ndim == 4 else logits.reshape(*images.shape[:2], CLASSES)


@functools.cache
def pictures(split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Some pictures of Fashion-MNIST, normalised and halved in size, and their labels."""
    whole = getattr(data.load("fashion-mnist"), split)
    some = whole.select(torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))[:count])
    return F.avg_pool2d(data.normalized_images(some), 2), torch.as_tensor(some.labels)


def labelled() -> tuple[Tensor, Tensor]:
    """The pictures that a student learns from."""
    return tuple(part[-LABELLED:] for part in pictures("train", TAUGHT, 0))  # type: ignore[return-value]


@functools.cache
def _trained_teacher() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Net(TEACHER_WIDTH, dropout=0.2)
        optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9)
        images, labels = pictures("train", TAUGHT, 0)
        order = [some for _ in range(4) for some in torch.randperm(len(labels)).split(100)]
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(order))
        for some in order:
            optimizer.zero_grad()
            F.cross_entropy(network(images[some]), labels[some]).backward()
            optimizer.step()
            decay.step()
    return network.state_dict()


def new_teacher() -> Net:
    """The trained teacher; in train mode, in which PyTorch hands out every network."""
    weights = _trained_teacher()
    network = Net(TEACHER_WIDTH, dropout=0.2)
    network.load_state_dict(weights)
    return network


def new_student() -> Net:
    """An untrained student in train mode."""
    return Net(STUDENT_WIDTH)


class Loader:
    """Batches of the labelled pictures, in another order each time if `shuffle`; with `shelves`, rows of pictures.

    A shelf has eight places, of which six to eight are taken. The others hold an empty picture, and their label is
    -100.
    """

    def __init__(self, shuffle: bool = True, shelves: bool = False) -> None:
        images, labels = labelled()
        self.shuffle, self.size = shuffle, BATCH_SIZE
        if shelves:
            images, labels = _shelves(images, labels)
            self.size = SHELVES_A_BATCH
        self.images, self.labels = images, labels
        # Of its own, so that dropout does not change the order of the pictures.
        self._generator = torch.Generator().manual_seed(torch.initial_seed())

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.images)
        order = torch.randperm(count, generator=self._generator) if self.shuffle else torch.arange(count)
        for some in order.split(self.size):
            yield self.images[some], self.labels[some], some


def _shelves(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The pictures in rows of six to eight, the rest of each row left empty."""
    generator, rows, start = torch.Generator().manual_seed(3), [], 0
    while start < len(images):
        taken = int(torch.randint(FEWEST, PIECES + 1, (1,), generator=generator))
        rows.append(range(start, min(start + taken, len(images))))
        start += taken
    shelves = torch.zeros(len(rows), PIECES, *images.shape[1:])
    names = torch.full((len(rows), PIECES), NO_PIECE)
    for number, row in enumerate(rows):
        shelves[number, : len(row)], names[number, : len(row)] = images[row], labels[row]
    return shelves, names


def accuracy(network: nn.Module) -> float:
    """The share of the validation pictures that a network gets right, in eval mode; its mode stays as it was."""
    images, labels = pictures("validation", JUDGED, 1)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    with torch.no_grad():
        right = (network(images).argmax(dim=1) == labels).float().mean().item()
    for module, mode in modes.items():
        module.training = mode
    return right


# -------------------- training


@dataclass
class Course:
    """What a training left. terms: by name, the mean of each epoch. accuracies: after each epoch, of validation.

    teacher: the teacher's accuracy after each epoch, empty without one. student: the trained network.
    """

    student: nn.Module
    terms: dict[str, list[float]] = field(default_factory=dict)
    accuracies: list[float] = field(default_factory=list)
    teacher: list[float] = field(default_factory=list)


def fit(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[Batch], Mapping[str, Tensor]],
    loader: Loader,
    teacher: nn.Module | None = None,
    epochs: int = EPOCHS,
) -> Course:
    """Train: in each step the terms are added up, and the learning rate falls to 0 along a line.

    Modes are left as they are: whoever writes a script sets them.
    """
    course = Course(student)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * len(loader))
    for _ in range(epochs):
        sums: dict[str, float] = {}
        for batch in loader:
            terms = step(batch)
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item() / len(loader)
        for name, value in sums.items():
            course.terms.setdefault(name, []).append(value)
        course.accuracies.append(accuracy(student))
        if teacher is not None:
            course.teacher.append(accuracy(teacher))
    return course


def hard_labels(seed: int, shelves: bool = False) -> Course:
    """The same student without a teacher: the control beside every patient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new_teacher()  # draws the random numbers that a script's teacher draws
        student = new_student()

        def step(batch: Batch) -> Any:
            images, labels, _ = batch
            return {"hard": F.cross_entropy(student(images).reshape(-1, CLASSES), labels.flatten())}

        optimizer = torch.optim.SGD(student.parameters(), LEARNING_RATE, momentum=0.9)
        return fit(student, optimizer, step, Loader(shelves=shelves))
