"""What happens in the playground, step by step: a teacher, then two students side by side. No picture, no notebook.

trial = Trial(Settings(noise=0.2))
trial.advance(600)
trial.rows[-1]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.classroom.explorers import playground_data as plane
from kdlib.losses import kd, soften

TEACHER_POINTS, TEACHER_HIDDEN, TEACHER_STEPS = 2000, 64, 300
TEACHER_BATCH, TEACHER_RATE, RATE = 128, 0.01, 0.05
EVERY = 5  # steps from one row of the table to the next
START = 2.0  # weights begin within +- START / sqrt(inputs): wide enough for the plane to be bent from the first step
SIDE = 72  # of the grid on which decisions are drawn


@dataclass(frozen=True)
class Settings:
    """What the controls say. alpha is the weight of the hard labels, hidden the student's number of hidden units."""

    data: str = "two moons"
    temperature: float = 4.0
    alpha: float = 0.1
    hidden: int = 8
    points: int = 30
    noise: float = 0.2
    unlabelled: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """Where the two students are after a number of steps: shares of the clean test points, and losses in nats.

    hard_alone and hard_distilled: cross-entropy on the labels that both have. soft: T^2 times the divergence from the
    teacher on the points that the distilled student has.
    """

    step: int
    teacher: float
    alone: float
    distilled: float
    agree_alone: float
    agree_distilled: float
    hard_alone: float
    hard_distilled: float
    soft: float


class Nets:
    """Networks of one shape, computed at once and independent of each other: weights are copies x inputs x outputs."""

    def __init__(self, sizes: Sequence[int], copies: int, seed: int, rate: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights: list[Tensor] = []
        for inputs, outputs in zip(sizes, sizes[1:], strict=False):
            bound = START / math.sqrt(inputs)
            for rows in (inputs, 1):
                start = (2 * torch.rand(1, rows, outputs, generator=generator) - 1) * bound
                self.weights.append(start.repeat(copies, 1, 1).requires_grad_())
        self._rate, self._steps = rate, 0
        self._means = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in self.weights]

    def __call__(self, points: Tensor) -> Tensor:
        """Logits, copies x N x C."""
        out = points.expand(len(self.weights[0]), -1, -1)
        for place in range(0, len(self.weights), 2):
            out = torch.baddbmm(self.weights[place + 1], torch.tanh(out) if place else out, self.weights[place])
        return out

    def improve(self, loss: Tensor) -> None:
        """One step of Adam down the loss; torch's own would first load its compiler, which takes seconds."""
        gradients = torch.autograd.grad(loss, self.weights)
        self._steps += 1
        first, second = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        with torch.no_grad():
            for weight, gradient, (mean, square) in zip(self.weights, gradients, self._means, strict=True):
                mean.lerp_(gradient, 0.1)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                weight.addcdiv_(mean, (square / second).sqrt_().add_(1e-8), value=-self._rate / first)


class Teacher:
    """Two layers of many hidden units, and many clean points; always the same for a data set."""

    def __init__(self, data: str) -> None:
        self.step = 0
        self.sample = plane.drawn(data, TEACHER_POINTS, 2_000_003)
        sizes = (2, TEACHER_HIDDEN, TEACHER_HIDDEN, plane.KINDS[data].classes)
        self._nets = Nets(sizes, 1, 0, TEACHER_RATE)
        self._lots = torch.Generator().manual_seed(0)

    @property
    def ready(self) -> bool:
        return self.step >= TEACHER_STEPS

    @torch.no_grad()
    def __call__(self, points: Tensor) -> Tensor:
        """Logits, N x C."""
        return self._nets(points)[0]

    def advance(self) -> None:
        """One step on a batch."""
        batch = torch.randint(TEACHER_POINTS, (TEACHER_BATCH,), generator=self._lots)
        logits = self._nets(self.sample.points[batch])[0]
        self._nets.improve(F.cross_entropy(logits, self.sample.labels[batch]))
        self.step += 1


@cache
def teacher_of(data: str) -> Teacher:
    """The teacher of a data set; once it has learnt, everybody who asks gets it ready."""
    return Teacher(data)


class Trial:
    """Two students from the same weights who see the same points at every step; only what they are told differs.

    alone learns the labels of its points; distilled learns alpha times the same and (1 - alpha) times what the teacher
    says of these points, and of others without labels where there are some. `advance` first lets the teacher learn.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.restart()

    def restart(self) -> None:
        """Both students anew, from the same weights, at step 0."""
        self.step = 0
        self.rows: list[Row] = []
        classes, seed = plane.KINDS[self.settings.data].classes, self.settings.seed
        self._nets = Nets((2, self.settings.hidden, classes), 2, seed, RATE)
        self._sample_anew()

    def _sample_anew(self) -> None:
        now = self.settings
        self.sample = plane.labelled(now.data, now.points, now.noise, now.seed)
        self.others = plane.unlabelled(now.data, now.unlabelled, now.seed)
        self._heard = torch.cat((self.sample.points, self.others))
        self.test = plane.test_sample(now.data)
        self._forget()

    def _forget(self) -> None:
        """What the teacher says changes while it learns, and is kept afterwards."""
        for name in ("_told", "teacher_map"):
            self.__dict__.pop(name, None)

    def follow(self, settings: Settings) -> None:
        """Go on with other settings.

        Other data, another size or another seed start anew; other points, labels or unlabelled points take the place
        of those before, and the students go on; temperature and alpha change the loss.
        """
        before, self.settings = self.settings, settings
        if settings == replace(before, temperature=settings.temperature, alpha=settings.alpha):
            return
        same = replace(before, points=settings.points, noise=settings.noise, unlabelled=settings.unlabelled)
        if settings == replace(same, temperature=settings.temperature, alpha=settings.alpha):
            self._sample_anew()
        else:
            self.restart()

    @property
    def teacher(self) -> Teacher:
        return teacher_of(self.settings.data)

    @cached_property
    def _told(self) -> Tensor:
        """The teacher's logits for the labelled, the unlabelled and the test points."""
        return self.teacher(torch.cat((self._heard, self.test.points)))

    def advance(self, steps: int) -> None:
        """So many steps of the students, once the teacher has learnt all its own."""
        while not self.teacher.ready:
            self.teach(1)
        for _ in range(steps):
            if not self.rows:
                self.rows.append(self.now())
            self._learn()
            self.step += 1
            if self.step % EVERY == 0:
                self.rows.append(self.now())

    def teach(self, steps: int) -> None:
        """So many steps of the teacher, or fewer when it is ready."""
        for _ in range(steps):
            if not self.teacher.ready:
                self.teacher.advance()
        self._forget()

    def _losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy of the student alone and of the distilled one, and the soft loss of the latter."""
        labelled = len(self.sample)
        alone, distilled = self._nets(self._heard)
        hard = (F.cross_entropy(one[:labelled], self.sample.labels) for one in (alone, distilled))
        return *hard, kd(distilled, self._told[: len(self._heard)], self.settings.temperature)

    def _learn(self) -> None:
        """One step of both, on all their points."""
        alone, hard, soft = self._losses()
        alpha = self.settings.alpha
        self._nets.improve(alone + alpha * hard + (1 - alpha) * soft)

    @torch.no_grad()
    def now(self) -> Row:
        """How good everybody is at this moment."""
        said = self._told[len(self._heard) :].argmax(dim=1)
        answers = torch.stack((said, *self._nets(self.test.points).argmax(dim=2)))
        right = (answers == self.test.labels).double().mean(dim=1).tolist()
        agree = (answers[1:] == said).double().mean(dim=1).tolist()
        return Row(self.step, *right, *agree, *map(float, self._losses()))

    @cached_property
    def teacher_map(self) -> Tensor:
        """The teacher's probabilities on the grid: SIDE x SIDE x classes."""
        return self.teacher(plane.grid(SIDE)).softmax(dim=1).unflatten(0, (SIDE, SIDE))

    @torch.no_grad()
    def maps(self) -> Tensor:
        """The same of the student alone and of the distilled one: 2 x SIDE x SIDE x classes."""
        return self._nets(plane.grid(SIDE)).softmax(dim=2).unflatten(1, (SIDE, SIDE))

    def soft_labels(self) -> Tensor:
        """What the distilled student is told of its labelled points, at the temperature."""
        return soften(self._told[: len(self.sample)], self.settings.temperature)


@lru_cache(maxsize=64)
def after(steps: int, settings: Settings) -> tuple[Row, ...]:
    """The rows of a trial of so many steps with settings that stay as they are."""
    trial = Trial(settings)
    trial.advance(steps)
    return tuple(trial.rows)
