"""Exercises of lesson 15, Can you find what is wrong?: what accuracy tells, a factor, agreement, two sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Numeric, Option, QuestionSpec

Loss = Callable[[Tensor, Tensor], Tensor]


def _letter_of_count(count: float) -> str:
    """The letter for how many of the nine faults show in the accuracy; ValueError for what is no such number."""
    count = float(count)
    if not 0 <= count <= 9:
        raise ValueError("of nine faults, none to nine can show")
    return "a" if count < 0.5 else "b" if count < 3.5 else "c" if count < 6.5 else "d"


ACCURACY = QuestionSpec(
    "accuracy",
    "What would accuracy have told?",
    "prediction",
    "medium",
    3,
    "Nine of the ten are ill. Suppose that you had not read a line: you train each script with ten seeds, and beside "
    "it, with the same seeds, the script as it should be. For how many of the nine is the sick one clearly worse in "
    "validation accuracy? Answer with .predict(...), look at the figure, then call .check(number).",
    (
        "Which faults weaken the teacher's part, and how much does the teacher's part give here at all?",
        "Two seeds of one script differ by about one point in this task.",
    ),
    "Beside a healthy twin, with ten seeds, most sick patients show; a part that helps little may be spoiled unseen. "
    "But in practice there is no healthy twin. There is one number, and it looks plausible. So do not ask whether a "
    "result looks good. Ask what each part does: what gets a gradient, how large, towards what, and what happens if "
    "the part is taken away.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("For none of them", ""),
            Option("For one, two or three", ""),
            Option("For four, five or six", ""),
            Option("For seven, eight or all nine", ""),
        ),
        from_measurement=_letter_of_count,
    ),
)


def factor(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> float:
    """How many times as long the student's gradient is as that of T^2 times the KL divergence."""
    student = student.clone().requires_grad_()
    (given,) = torch.autograd.grad(loss(student, teacher), student)
    q, p = ((logits / temperature).softmax(dim=1) for logits in (student, teacher))
    wanted = temperature * (q - p) / len(student)
    return (given.norm() / wanted.norm()).item()


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q, log_p = ((logits / temperature).log_softmax(dim=1) for logits in (student, teacher))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


@cache
def mean_over_classes(temperature: float) -> Loss:
    """As patient 3."""
    return lambda s, t: temperature**2 * _kl(s, t, temperature).mean() / s.shape[1]


@cache
def without_t_squared(temperature: float) -> Loss:
    """As patient 7."""
    return lambda s, t: _kl(s, t, temperature).mean()


@cache
def soft_cross_entropy(temperature: float) -> Loss:
    """As patient 5: another value, the same gradient."""

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        targets = (teacher / temperature).softmax(dim=1)
        return -(temperature**2) * (targets * (student / temperature).log_softmax(dim=1)).sum(dim=1).mean()

    return loss


@cache
def summed_over_batch(temperature: float) -> Loss:
    """A sum where a mean over the batch belongs."""
    return lambda s, t: temperature**2 * _kl(s, t, temperature).sum()


@cache
def squared_difference(temperature: float) -> Loss:
    """Logits matched, in place of probabilities: the gradient has another direction than the wanted one."""
    return lambda s, t: ((s - t) / temperature).square().mean()


def _cases() -> list[Case]:
    generator = torch.Generator().manual_seed(15)

    def case(make: Callable[[float], Loss], batch: int, classes: int, temperature: float, name: str) -> Case:
        logits = [2 * torch.randn(batch, classes, generator=generator, dtype=torch.double) for _ in range(2)]
        shown = f"<{name}>, <{batch} x {classes} tensor>, <{batch} x {classes} tensor>, {temperature:g}"
        return Case((make(temperature), *logits, temperature), display=shown)

    return [
        case(mean_over_classes, 6, 10, 4.0, "the loss of patient 3"),
        case(without_t_squared, 5, 7, 2.0, "a loss without T^2"),
        case(soft_cross_entropy, 8, 4, 3.0, "the loss of patient 5"),
        case(summed_over_batch, 3, 5, 1.0, "a loss summed over the batch"),
        case(squared_difference, 4, 6, 2.0, "the squared difference of the softened logits"),
    ]


def _with(
    scale: Callable[[float, int], float] = lambda temperature, batch: 1.0, soften: bool = True, flip: bool = False
) -> Callable[..., float]:
    """The wrong function whose reference gradient has another size, or is made of probabilities at T = 1."""

    def wrong(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> float:
        student = student.clone().requires_grad_()
        (given,) = torch.autograd.grad(loss(student, teacher), student)
        q, p = ((logits / (temperature if soften else 1.0)).softmax(dim=1) for logits in (student, teacher))
        wanted = temperature * (q - p) / len(student) * scale(temperature, len(student))
        ratio = (given.norm() / wanted.norm()).item()
        return 1 / ratio if flip else ratio

    return wrong


def _of_values(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> float:
    return (loss(student, teacher) / (temperature**2 * _kl(student, teacher, temperature).mean())).item()


def _of_the_teacher(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> float:
    teacher = teacher.clone().requires_grad_()
    (given,) = torch.autograd.grad(loss(student, teacher), teacher)
    q, p = ((logits / temperature).softmax(dim=1) for logits in (student, teacher))
    return (given.norm() / (temperature * (q - p) / len(student)).norm()).item()


MISTAKES = (
    Mistake(
        "values",
        _of_values,
        "You compared the values of the losses. A constant, such as the teacher's entropy, changes the value and "
        "teaches nothing: compare gradients.",
    ),
    Mistake("upside down", _with(flip=True), "The ratio is upside down: given, divided by wanted."),
    Mistake(
        "no batch",
        _with(lambda temperature, batch: batch),
        "The wanted gradient lacks the mean over the batch: divide it by len(student).",
    ),
    Mistake(
        "no T",
        _with(lambda temperature, batch: 1 / temperature),
        "The wanted gradient lacks its factor T: T^2 from the loss, times 1 / T from dividing the logits.",
    ),
    Mistake(
        "T squared",
        _with(lambda temperature, batch: temperature),
        "The wanted gradient has T^2. One T is lost again where the logits are divided by T.",
    ),
    Mistake(
        "not softened",
        _with(soften=False),
        "The probabilities of the wanted gradient are those at temperature T: divide the logits first.",
    ),
    Mistake(
        "teacher's gradient",
        _of_the_teacher,
        "You took the gradient for the teacher's logits. It is the student that learns.",
    ),
    Mistake(
        "squared lengths",
        lambda loss, s, t, temperature: factor(loss, s, t, temperature) ** 2,
        "You compared squared lengths. The length of a tensor is its norm().",
    ),
)

FACTOR = CodeSpec(
    "factor",
    "How much too small?",
    "code",
    "hard",
    9,
    "Write factor(loss, student, teacher, temperature): how many times as long the gradient of a soft loss is as it "
    "should be. loss is a function of student's and teacher's logits (B x C); take its gradient for the student's. "
    "The right one is that of T^2 times the KL divergence, mean over the batch. By lesson 04 it is T * (q - p) / B, "
    "where p and q are the probabilities of teacher and student at temperature T. Return one number, given.norm() / "
    "wanted.norm().",
    (
        "student.clone().requires_grad_() is a copy that gets a gradient, and torch.autograd.grad(value, copy) gives "
        "a tuple with it.",
        "q is (student / temperature).softmax(dim=1), p the same of the teacher.",
    ),
    "You have examined a loss without reading it. 1/C says that the mean ran over the classes, 1/T^2 that T^2 is "
    "missing, B that the batch was summed, and 1 that it is sound whatever its value looks like. The doctor does this "
    "on logits of its own making, and changes C, T and B to see which of them it is.",
    stub="def factor(loss, student, teacher, temperature):\n    ...  # five lines",
    reference=factor,
    cases=_cases,
    mistakes=MISTAKES,
)

AGREEMENT = QuestionSpec(
    "agreement",
    "A soft loss of nearly 0",
    "figure",
    "easy",
    2,
    "Look at the curves of patient 10. Of all patients it has the soft term that comes nearest to 0 by learning. "
    "What in the figure says that this is no success?",
    (
        "A small divergence says that two networks agree. On what, it does not say.",
        "Which curve of the right panel should be a straight line, whatever the student does?",
    ),
    "Measure what must not change. A teacher is a constant: its accuracy, its answers to one batch and its weights are "
    "the same before and after a step. To check that costs one line.",
    answer_key=MultipleChoice(
        (
            Option(
                "Its teacher's accuracy fell in the first epoch",
                "The teacher moved. It came to meet the student, which is why they agree so well, on something that "
                "is mostly wrong.",
                correct=True,
            ),
            Option(
                "The term of the labels does not reach 0",
                "It has a tenth of the weight, and pictures that it has not learned. In healthy patients it stays "
                "above 0 as well.",
            ),
            Option(
                "The soft term fell so fast that the learning rate must be too large",
                "A rate that is too large makes curves rough or rising. Here both networks move, so it falls fast.",
            ),
            Option(
                "The student's accuracy has stopped rising, so the training was too long",
                "That of healthy students has stopped as well. What it has learned by then is the question.",
            ),
        )
    ),
)

SIZES = QuestionSpec(
    "sizes",
    "Two factors at once",
    "question",
    "easy",
    3,
    "A script for 100 classes has T = 4 and batches of 64. Its soft loss is nn.KLDivLoss() with its default, "
    "reduction='mean', and T^2 is left out. How many times too small is the gradient of the soft loss?",
    (
        "'mean' divides by all numbers of the matrix. Which part of that is right?",
        "Two factors that have nothing to do with each other are multiplied.",
    ),
    "100 times by the mean over classes, 16 times by the missing T^2, and nothing by the batch, whose mean is meant. "
    "With alpha = 0.1 the soft loss then has less than a hundredth of the weight of the labels, and the paper that "
    "follows will say that distillation does not help.",
    answer_key=Numeric(
        1600.0,
        0.01,
        mistakes=(
            (100.0, "That is the mean over the classes. And the missing T^2?"),
            (16.0, "That is the missing T^2. And the mean over the classes?"),
            (400.0, "T is squared: 4 x 4 = 16, not 4."),
            (102_400.0, "The mean over the batch is meant, so the 64 do no harm."),
            (6_400.0, "The mean over the batch is meant, so the 64 do no harm; and T^2 is missing, too."),
            (1_024.0, "64 is the size of the batch, whose mean is right. How many classes are there?"),
            (116.0, "Two factors are multiplied, not added."),
        ),
    ),
)

EXERCISES = LessonSpec("15", "Can you find what is wrong?", (ACCURACY, FACTOR, AGREEMENT, SIZES))
