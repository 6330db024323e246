"""What the playground trains: points in a plane, a teacher, and two students side by side. No figure, no notebook.

training = Training(Settings(noise=0.2))
training.train(600)
training.rows[-1]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.losses import kd, soften

AXIS_LIMIT = 1.35  # the figure shows the plane from minus this to this
MAX_LABELLED, MAX_UNLABELLED = 200, 400  # points of the students
NUM_TEST = 2000
TEACHER_POINTS, TEACHER_HIDDEN, TEACHER_STEPS = 2000, 64, 300
TEACHER_BATCH, TEACHER_LEARNING_RATE, LEARNING_RATE = 128, 0.01, 0.05
LOG_EVERY = 5  # steps from one row of the log to the next
INIT_SCALE = 2.0  # weights begin within +- INIT_SCALE / sqrt(inputs), so large that even the first boundary is curved
GRID_SIDE = 72  # points of the grid on which decisions are drawn

# Data.

PointFunction = Callable[[Tensor, Tensor], Tensor]  # labels and a number in [0, 1) for each -> points without noise


@dataclass(frozen=True)
class Distribution:
    """A data set of points: its number of classes, the curves on which they lie, and the deviation from these."""

    num_classes: int
    points: PointFunction
    std: float


def _moons(labels: Tensor, along: Tensor) -> Tensor:
    angle = math.pi * along
    upper = torch.stack((torch.cos(angle) - 0.5, torch.sin(angle) - 0.25), dim=1)
    return 0.75 * torch.where(labels[:, None] == 0, upper, -upper)


def _circles(labels: Tensor, along: Tensor) -> Tensor:
    radius = 0.4 + 0.5 * labels
    return _from_polar(radius, 2 * math.pi * along)


def _spirals(arms: int, turns: float) -> PointFunction:
    def points(labels: Tensor, along: Tensor) -> Tensor:
        radius = 0.15 + 0.95 * along.sqrt()
        return _from_polar(radius, 2 * math.pi * (labels / arms + turns * radius))

    return points


def _clouds(labels: Tensor, along: Tensor) -> Tensor:
    return _from_polar(torch.full_like(along, 0.7), 2 * math.pi * (labels + 0.5) / 4)


def _from_polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)


DISTRIBUTIONS = {
    "two moons": Distribution(2, _moons, 0.15),
    "circles": Distribution(2, _circles, 0.12),
    "two spirals": Distribution(2, _spirals(2, 0.95), 0.06),
    "three spirals": Distribution(3, _spirals(3, 0.6), 0.05),
    "four clouds": Distribution(4, _clouds, 0.35),
}


@dataclass(frozen=True, eq=False)
class Sample:
    """Points (N x 2), the labels that a network learns, and the true ones."""

    points: Tensor
    labels: Tensor
    true_labels: Tensor

    def __len__(self) -> int:
        return len(self.points)


@cache
def sample_points(data: str, count: int, seed: int) -> Sample:
    """A sample with correct labels, the classes in turn."""
    distribution = DISTRIBUTIONS[data]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % distribution.num_classes
    along = torch.rand(count, generator=generator)
    noise = torch.randn(count, 2, generator=generator)
    return Sample(distribution.points(labels, along) + distribution.std * noise, labels, labels)


@cache
def labelled_sample(data: str, count: int, noise: float, seed: int) -> Sample:
    """The students' sample: the first `count` of MAX_LABELLED points, a share of the labels replaced by wrong ones.

    More points come in addition to the first ones, and more noise changes further labels, so that moving a control back
    restores the same sample.
    """
    sample = sample_points(data, MAX_LABELLED, 3 * seed + 1)
    points, true_labels = sample.points[:count], sample.labels[:count]
    generator = torch.Generator().manual_seed(seed)
    num_classes = DISTRIBUTIONS[data].num_classes
    shift = torch.randint(1, num_classes, (MAX_LABELLED,), generator=generator)[:count]
    order = torch.rand(MAX_LABELLED, generator=generator)[:count].argsort()
    is_wrong = torch.zeros(count, dtype=torch.bool)
    is_wrong[order[: round(noise * count)]] = True
    return Sample(points, torch.where(is_wrong, (true_labels + shift) % num_classes, true_labels), true_labels)


def unlabelled_points(data: str, count: int, seed: int) -> Tensor:
    """Further points of the same data set, without labels."""
    return sample_points(data, MAX_UNLABELLED, 3 * seed + 2).points[:count]


def load_test_sample(data: str) -> Sample:
    """Test points with correct labels, the same for every seed."""
    return sample_points(data, NUM_TEST, 1_000_003)


@cache
def grid(side: int) -> Tensor:
    """The points of a side x side grid over the part of the plane that is shown, row by row from below."""
    ticks = torch.linspace(-AXIS_LIMIT, AXIS_LIMIT, side)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), dim=1)


# Networks.


class BatchedMLP:
    """Several MLPs of one shape, computed in one batch and independent of each other, with Adam.

    sizes: of the layers, inputs first. copies: how many, with equal initial weights (copies x inputs x outputs).
    """

    def __init__(self, sizes: Sequence[int], copies: int, seed: int, learning_rate: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights: list[Tensor] = []  # of a layer and its bias in turn
        for inputs, outputs in zip(sizes, sizes[1:], strict=False):
            bound = INIT_SCALE / math.sqrt(inputs)
            for rows in (inputs, 1):
                initial = (2 * torch.rand(1, rows, outputs, generator=generator) - 1) * bound
                self.weights.append(initial.repeat(copies, 1, 1).requires_grad_())
        self._learning_rate, self._steps = learning_rate, 0
        self._moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in self.weights]

    def __call__(self, points: Tensor) -> Tensor:
        """Logits, copies x N x C."""
        out = points.expand(len(self.weights[0]), -1, -1)
        for index in range(0, len(self.weights), 2):
            out = torch.baddbmm(self.weights[index + 1], torch.tanh(out) if index else out, self.weights[index])
        return out

    def step(self, loss: Tensor) -> None:
        """One step of Adam; torch's own would first import its compiler, which takes seconds."""
        gradients = torch.autograd.grad(loss, self.weights)
        self._steps += 1
        correction_1, correction_2 = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        with torch.no_grad():
            for weight, gradient, (mean, square) in zip(self.weights, gradients, self._moments, strict=True):
                mean.lerp_(gradient, 0.1)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                denominator = (square / correction_2).sqrt_().add_(1e-8)
                weight.addcdiv_(mean, denominator, value=-self._learning_rate / correction_1)


class Teacher:
    """A network with two large hidden layers, trained on many correct labels; always the same for a data set."""

    def __init__(self, data: str) -> None:
        self.step = 0
        self.sample = sample_points(data, TEACHER_POINTS, 2_000_003)
        sizes = (2, TEACHER_HIDDEN, TEACHER_HIDDEN, DISTRIBUTIONS[data].num_classes)
        self._network = BatchedMLP(sizes, 1, 0, TEACHER_LEARNING_RATE)
        self._generator = torch.Generator().manual_seed(0)

    @property
    def is_trained(self) -> bool:
        return self.step >= TEACHER_STEPS

    @torch.no_grad()
    def __call__(self, points: Tensor) -> Tensor:
        """Logits, N x C."""
        return self._network(points)[0]

    def train_step(self) -> None:
        """One step on a random batch."""
        batch = torch.randint(TEACHER_POINTS, (TEACHER_BATCH,), generator=self._generator)
        logits = self._network(self.sample.points[batch])[0]
        self._network.step(F.cross_entropy(logits, self.sample.labels[batch]))
        self.step += 1


@cache
def get_teacher(data: str) -> Teacher:
    """The teacher of a data set, shared by all playgrounds of a session: it is trained once."""
    return Teacher(data)


# Training.


@dataclass(frozen=True)
class Settings:
    """The values of the controls. alpha: weight of the hard labels. hidden: hidden units of the students.

    argmax: whether the taught student gets the teacher's best class of each point as a label, without T, in place of
    its soft label: the control that tells corrected labels from soft ones.
    """

    data: str = "two moons"
    temperature: float = 4.0
    alpha: float = 0.1
    hidden: int = 8
    points: int = 30
    noise: float = 0.2
    unlabelled: int = 0
    seed: int = 0
    argmax: bool = False


@dataclass(frozen=True)
class LogRow:
    """The state after a number of steps: shares of the test points, and losses in nats.

    baseline: the student on hard labels. agreement: with the teacher. hard_loss: cross-entropy with the labels that
    both students have. soft_loss: T^2 times the divergence from the teacher on the distilled student's points, or the
    cross-entropy with its best classes where these are the labels.
    """

    step: int
    teacher_accuracy: float
    baseline_accuracy: float
    distilled_accuracy: float
    baseline_agreement: float
    distilled_agreement: float
    baseline_hard_loss: float
    distilled_hard_loss: float
    soft_loss: float


class Training:
    """Two students from the same weights, which see the same points at every step; only their targets differ.

    The baseline learns from the labels of its points. The distilled student minimises alpha times the same loss plus
    (1 - alpha) times the soft loss on these points and on unlabelled ones, if there are any. `train` first trains the
    teacher.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.reset()

    def reset(self) -> None:
        """Both students from their initial weights, at step 0."""
        self.step = 0
        self.rows: list[LogRow] = []
        num_classes, seed = DISTRIBUTIONS[self.settings.data].num_classes, self.settings.seed
        self._students = BatchedMLP((2, self.settings.hidden, num_classes), 2, seed, LEARNING_RATE)
        self._load_samples()

    def _load_samples(self) -> None:
        settings = self.settings
        self.sample = labelled_sample(settings.data, settings.points, settings.noise, settings.seed)
        self.unlabelled = unlabelled_points(settings.data, settings.unlabelled, settings.seed)
        self._distillation_points = torch.cat((self.sample.points, self.unlabelled))
        self.test = load_test_sample(settings.data)
        self._clear_teacher_outputs()

    def _clear_teacher_outputs(self) -> None:
        """Forget the cached outputs, which change while the teacher is trained."""
        for name in ("_teacher_logits", "teacher_map"):
            self.__dict__.pop(name, None)
        self._teacher_step = self.teacher.step

    def _follow_teacher(self) -> None:
        """Another training may have trained the shared teacher since its outputs were cached."""
        if self._teacher_step != self.teacher.step:
            self._clear_teacher_outputs()

    def update_settings(self, settings: Settings) -> None:
        """Continue with other settings.

        Another data set, size or seed resets the students; other points, labels or unlabelled points replace those
        before, and the students continue; temperature, alpha and argmax change the loss.
        """
        before, self.settings = self.settings, settings
        loss = {name: getattr(settings, name) for name in ("temperature", "alpha", "argmax")}
        if settings == replace(before, **loss):
            return
        same = replace(before, points=settings.points, noise=settings.noise, unlabelled=settings.unlabelled)
        if settings == replace(same, **loss):
            self._load_samples()
        else:
            self.reset()

    @property
    def teacher(self) -> Teacher:
        return get_teacher(self.settings.data)

    @cached_property
    def _teacher_logits(self) -> Tensor:
        """For the labelled, the unlabelled and the test points."""
        return self.teacher(torch.cat((self._distillation_points, self.test.points)))

    def train(self, steps: int) -> None:
        """Train the students for a number of steps; the teacher first, if it is not trained yet."""
        while not self.teacher.is_trained:
            self.train_teacher(1)
        self._follow_teacher()
        for _ in range(steps):
            if not self.rows:
                self.rows.append(self.evaluate())
            self._train_step()
            self.step += 1
            if self.step % LOG_EVERY == 0:
                self.rows.append(self.evaluate())

    def train_teacher(self, steps: int) -> None:
        """Train the teacher for a number of steps, or fewer if it is then trained."""
        for _ in range(steps):
            if not self.teacher.is_trained:
                self.teacher.train_step()
        self._clear_teacher_outputs()

    def _losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy of the baseline and of the distilled student, and the soft loss of the latter."""
        count = len(self.sample)
        baseline, distilled = self._students(self._distillation_points)
        answers = self._teacher_logits[: len(self._distillation_points)]
        if self.settings.argmax:
            soft = F.cross_entropy(distilled, answers.argmax(dim=1))
        else:
            soft = kd(distilled, answers, self.settings.temperature)
        labels = self.sample.labels
        return F.cross_entropy(baseline[:count], labels), F.cross_entropy(distilled[:count], labels), soft

    def _train_step(self) -> None:
        """One step of both students, on all their points."""
        baseline, hard, soft = self._losses()
        alpha = self.settings.alpha
        self._students.step(baseline + alpha * hard + (1 - alpha) * soft)

    @torch.no_grad()
    def evaluate(self) -> LogRow:
        """The present accuracies, agreements and losses."""
        self._follow_teacher()
        teacher = self._teacher_logits[len(self._distillation_points) :].argmax(dim=1)
        predictions = torch.stack((teacher, *self._students(self.test.points).argmax(dim=2)))
        accuracies = (predictions == self.test.labels).double().mean(dim=1).tolist()
        agreements = (predictions[1:] == teacher).double().mean(dim=1).tolist()
        return LogRow(self.step, *accuracies, *agreements, *map(float, self._losses()))

    @cached_property
    def teacher_map(self) -> Tensor:
        """The teacher's probabilities on the grid: GRID_SIDE x GRID_SIDE x classes."""
        return self.teacher(grid(GRID_SIDE)).softmax(dim=1).unflatten(0, (GRID_SIDE, GRID_SIDE))

    @torch.no_grad()
    def student_maps(self) -> Tensor:
        """The same for the baseline and the distilled student: 2 x GRID_SIDE x GRID_SIDE x classes."""
        return self._students(grid(GRID_SIDE)).softmax(dim=2).unflatten(1, (GRID_SIDE, GRID_SIDE))

    def soft_labels(self) -> Tensor:
        """What the teacher tells of the labelled points: soft labels at the present temperature, or its best class."""
        answers = self._teacher_logits[: len(self.sample)]
        if self.settings.argmax:
            return F.one_hot(answers.argmax(dim=1), answers.shape[1]).to(answers.dtype)
        return soften(answers, self.settings.temperature)


@lru_cache(maxsize=64)
def run_playground(steps: int, settings: Settings) -> tuple[LogRow, ...]:
    """The log of a whole training with constant settings: a row every five steps."""
    training = Training(settings)
    training.train(steps)
    return tuple(training.rows)
