"""Exercises of lesson 05, How do logits teach?: the joint loss, other people's settings, and mistakes in a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Numeric, Option, QuestionSpec
from kdlib.verdict import Verdict


def joint_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    """alpha times the cross-entropy with the labels + (1 - alpha) times T^2 KL(teacher || student)."""
    hard = torch.nn.functional.cross_entropy(student_logits, labels)
    log_q = torch.log_softmax(student_logits / temperature, dim=1)
    log_p = torch.log_softmax(teacher_logits / temperature, dim=1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
    soft = temperature**2 * divergence
    return alpha * hard + (1 - alpha) * soft


_TEACHERS_ZERO = (
    "The teacher's softmax is exactly 0 there, and 0 times log 0 is NaN. Take the teacher's log_softmax too, or "
    "torch.xlogy or F.kl_div, which count this term as 0."
)


def _triples() -> list[Case]:
    generator = torch.Generator().manual_seed(51)

    def case(images: int, classes: int, temperature: float, alpha: float) -> Case:
        student, teacher = (size * torch.randn(images, classes, generator=generator) for size in (1.0, 2.0))
        labels = torch.randint(classes, (images,), generator=generator)
        return Case((student, teacher, labels, temperature, alpha))

    small = torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([1])
    student = torch.tensor([[200.0, -150.0, 0.0], [1.0, 2.0, 400.0]])
    teacher = torch.tensor([[-180.0, 190.0, 0.0], [300.0, 0.0, 1.0]])
    advice = (
        "A softmax that is exactly 0 has no logarithm. Go there in one step: log_softmax, and for the hard part "
        "cross_entropy, which does the same inside."
    )
    # Where both are sure, a NaN does not tell whose softmax it comes from: in a case before it the teacher is not.
    rest = torch.tensor([1, 0]), 1.5, 0.3
    sure_student = Case((student, teacher / 100, *rest), "a student that is sure and wrong", advice)
    both_sure = Case((student, teacher, *rest), "a teacher that is sure", _TEACHERS_ZERO)
    shapes = (4, 3, 4.0, 0.1), (5, 5, 3.0, 0.7), (1, 6, 0.7, 0.4), (6, 10, 6.0, 0.9)
    return [Case((*small, 2.0, 0.25)), *(case(*shape) for shape in shapes), sure_student, both_sure]


def _hard(z: Tensor, y: Tensor, t: float = 1.0) -> Tensor:
    return F.cross_entropy(z / t, y)


def _logs(z: Tensor, t: float) -> Tensor:
    return torch.log_softmax(z / t, dim=1)


def _each(log_q: Tensor, log_p: Tensor) -> Tensor:
    return log_p.exp() * (log_p - log_q)


def _kl(s: Tensor, z: Tensor, t: float) -> Tensor:
    return _each(_logs(s, t), _logs(z, t)).sum(dim=1).mean()


def _soft(s: Tensor, z: Tensor, t: float) -> Tensor:
    return t**2 * _kl(s, z, t)


def _log_of_softmax(s: Tensor, z: Tensor, y: Tensor, t: float, a: float) -> Tensor:
    p, q = torch.softmax(z / t, dim=1), torch.softmax(s / t, dim=1)
    return a * _hard(s, y) + (1 - a) * t**2 * (p * (p.log() - q.log())).sum(dim=1).mean()


def _log_of_teachers_softmax(s: Tensor, z: Tensor, y: Tensor, t: float, a: float) -> Tensor:
    p = torch.softmax(z / t, dim=1)
    return a * _hard(s, y) + (1 - a) * t**2 * (p * (p.log() - _logs(s, t))).sum(dim=1).mean()


def _without_keepdim(s: Tensor, z: Tensor, t: float) -> Tensor:
    log_q, log_p = (x / t - torch.logsumexp(x / t, dim=1) for x in (s, z))
    return _each(log_q, log_p).sum(dim=1).mean()


def _raw_kl_div(first: Tensor, second: Tensor) -> Tensor:
    return F.kl_div(first, second, reduction="batchmean")


_LOGARITHMS = (
    "kl_div takes the student's log-probabilities first, and the teacher's probabilities second. With logarithms in "
    "both it needs log_target=True."
)
_ROLES = "alpha and 1 - alpha have changed places: in this course alpha is the weight of the hard labels."
_NO_T2 = "The factor T^2 is missing: at T = 4 the soft loss is 16 times too small, whatever alpha is."

JOINT = CodeSpec(
    "joint_loss",
    "The joint loss",
    "code",
    "medium",
    8,
    "Write joint_loss(student_logits, teacher_logits, labels, temperature, alpha): alpha times the cross-entropy with "
    "the labels, plus 1 - alpha times the soft loss, which is T^2 times KL(teacher || student), both softened with T, "
    "summed over the classes and averaged over the images. It must stay finite for a student that is sure and wrong, "
    "and for a sure teacher.",
    (
        "Two parts. The hard one knows nothing of T: torch.nn.functional.cross_entropy(student_logits, labels).",
        "The soft one needs torch.log_softmax(... / temperature, dim=1) of both, and the teacher's exp as weights.",
        "Sum over dim=1, then the mean, then times temperature ** 2. Last: alpha * hard + (1 - alpha) * soft.",
    ),
    "kdlib.methods.Logit(temperature, alpha) is its tested form. At alpha = 1 it is plain training, and at alpha = 0 "
    "the labels are not needed at all: unlabelled pictures will do.",
    stub="def joint_loss(student_logits, teacher_logits, labels, temperature, alpha):\n    ...  # five or six lines",
    reference=joint_loss,
    cases=_triples,
    grad_arguments=("student_logits",),
    mistakes=(
        Mistake("alpha swapped", lambda s, z, y, t, a: (1 - a) * _hard(s, y) + a * _soft(s, z, t), _ROLES),
        Mistake("T^2 forgotten", lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * _kl(s, z, t), _NO_T2),
        Mistake(
            "alpha swapped, T^2 forgotten",
            lambda s, z, y, t, a: (1 - a) * _hard(s, y) + a * _kl(s, z, t),
            f"{_ROLES} {_NO_T2}",
        ),
        Mistake(
            "T instead of T^2",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t * _kl(s, z, t),
            "You multiplied by T once. Without a factor the soft gradient shrinks as 1/T^2, so T^2 is needed.",
        ),
        Mistake(
            "T^4",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _soft(s, z, t),
            "T^2 is there twice: losses.kd carries it already.",
        ),
        Mistake(
            "T^2 on both parts",
            lambda s, z, y, t, a: t**2 * (a * _hard(s, y) + (1 - a) * _kl(s, z, t)),
            "T^2 stands in front of both parts. It makes up for what softening takes away, and the hard part is not "
            "softened: multiply the soft part only.",
        ),
        Mistake(
            "teacher in both parts",
            lambda s, z, y, t, a: a * _hard(z, y) + (1 - a) * _soft(s, z, t),
            "The hard part compares the teacher with the labels. It is the student that has to learn them.",
        ),
        Mistake(
            "hard part softened",
            lambda s, z, y, t, a: a * _hard(s, y, t) + (1 - a) * _soft(s, z, t),
            "The hard part is softened too. The labels are met at T = 1, where the student will be used: no division.",
        ),
        Mistake(
            "half of the sum",
            lambda s, z, y, t, a: 0.5 * (_hard(s, y) + _soft(s, z, t)),
            "alpha does not come in: you took half of the sum. The weights are alpha and 1 - alpha.",
        ),
        Mistake(
            "columns for all images",
            lambda s, z, y, t, a: -a * _logs(s, 1)[:, y].mean() + (1 - a) * _soft(s, z, t),
            "[:, labels] takes the columns of all labels for every image. One place in each row is "
            "[torch.arange(len(labels)), labels], which is what cross_entropy does.",
        ),
        Mistake(
            "one-hot labels of whole numbers",
            lambda s, z, y, t, a: a * F.cross_entropy(s, F.one_hot(y, s.shape[1])) + (1 - a) * _soft(s, z, t),
            "one_hot gives whole numbers: .float() is missing after it. Simpler: cross_entropy takes the labels as "
            "they are.",
        ),
        Mistake(
            "arguments of cross_entropy swapped",
            lambda s, z, y, t, a: a * F.cross_entropy(y, s) + (1 - a) * _soft(s, z, t),
            "cross_entropy takes the logits first, the labels second.",
        ),
        Mistake(
            "log-sum-exp without keepdim",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _without_keepdim(s, z, t),
            "A sum over dim=1 has one dimension less, and B numbers do not fit beside B x C: keepdim=True is missing "
            "(or use log_softmax).",
        ),
        Mistake(
            "soft loss for each image",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _each(_logs(s, t), _logs(z, t)).sum(dim=1),
            "The soft part is still a number for each image. Take the mean over the images: a loss is one number.",
        ),
        Mistake(
            "weights forgotten",
            lambda s, z, y, t, a: _hard(s, y) + _soft(s, z, t),
            "alpha does not come in: both parts have the weight 1.",
        ),
        Mistake(
            "soft part not weighted",
            lambda s, z, y, t, a: a * _hard(s, y) + _soft(s, z, t),
            "The soft part has the weight 1. Its weight is 1 - alpha.",
        ),
        Mistake(
            "hard part not weighted",
            lambda s, z, y, t, a: _hard(s, y) + (1 - a) * _soft(s, z, t),
            "The hard part has the weight 1. Its weight is alpha.",
        ),
        Mistake(
            "hard part missing",
            lambda s, z, y, t, a: (1 - a) * _soft(s, z, t),
            "The labels do not come in: alpha times the cross-entropy is missing.",
        ),
        Mistake(
            "soft part missing",
            lambda s, z, y, t, a: a * _hard(s, y),
            "The soft part is 0: it is missing, or it has the same logits on both sides.",
        ),
        Mistake(
            "student and teacher swapped",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * _soft(z, s, t),
            "Student and teacher are swapped in the soft part: KL(student || teacher). The teacher's probabilities are "
            "the weights (kl_div takes the student's logarithms first).",
        ),
        Mistake(
            "mean over the classes",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _each(_logs(s, t), _logs(z, t)).mean(),
            "In the soft part you took the mean over the classes as well, so the soft loss is C times too small. "
            'Sum over the classes, mean over the images (with kl_div: reduction="batchmean").',
        ),
        Mistake(
            "mean over the classes, T^2 forgotten",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * _each(_logs(s, t), _logs(z, t)).mean(),
            f'Sum over the classes and take the mean over the images only (kl_div: reduction="batchmean"). {_NO_T2}',
        ),
        Mistake(
            "sum over the batch",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _each(_logs(s, t), _logs(z, t)).sum(),
            "The soft part is added up over the images, the hard part is their mean: its weight then depends on the "
            "size of the batch. Take the mean in both.",
        ),
        Mistake(
            "softmax twice",
            lambda s, z, y, t, a: (
                a * _hard(s.softmax(dim=1), y) + (1 - a) * _soft(s.softmax(dim=1), z.softmax(dim=1), t)
            ),
            "There is a softmax too many: the loss applies its own, so give it logits and not probabilities.",
        ),
        Mistake(
            "hard part with a softmax too many",
            lambda s, z, y, t, a: a * _hard(s.softmax(dim=1), y) + (1 - a) * _soft(s, z, t),
            "In the hard part there is a softmax too many: cross_entropy applies its own.",
        ),
        Mistake(
            "soft part with a softmax too many",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * _soft(s.softmax(dim=1), z.softmax(dim=1), t),
            "In the soft part there is a softmax too many: it is fed probabilities, where logits belong.",
        ),
        Mistake(
            "cross-entropy",
            lambda s, z, y, t, a: (
                a * _hard(s, y) - (1 - a) * t**2 * (_logs(z, t).exp() * _logs(s, t)).sum(dim=1).mean()
            ),
            "Your soft part is the cross-entropy: the teacher's own log p is missing from the difference. Its gradient "
            "is the same, but it is not 0 when the student agrees with the teacher.",
        ),
        Mistake(
            "only the student softened",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _each(_logs(s, t), _logs(z, 1)).sum(dim=1).mean(),
            "In the soft part only the student's logits are divided by T. Both sides are softened alike.",
        ),
        Mistake(
            "only the teacher softened",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _each(_logs(s, 1), _logs(z, t)).sum(dim=1).mean(),
            "In the soft part only the teacher's logits are divided by T. Both sides are softened alike.",
        ),
        Mistake(
            "nothing softened",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _kl(s, z, 1),
            "T^2 is there, but the logits themselves are not divided by T.",
        ),
        Mistake(
            "logarithms in the wrong place of kl_div",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _raw_kl_div(_logs(s, t), _logs(z, t)),
            _LOGARITHMS,
        ),
        Mistake(
            "no logarithm in kl_div",
            lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _raw_kl_div(_logs(s, t).exp(), _logs(z, t).exp()),
            "kl_div takes the student's log-probabilities first: log_softmax, not softmax.",
        ),
        Mistake(
            "log of the teacher's softmax",
            _log_of_teachers_softmax,
            f"The formula is right, but for a teacher that is sure it gives NaN. {_TEACHERS_ZERO}",
        ),
        Mistake(
            "log of a softmax",
            _log_of_softmax,
            "The formula is right, but for a student that is sure and wrong it gives inf or NaN: its softmax is "
            "exactly 0 there, and that has no logarithm. Go to the logarithm in one step: log_softmax.",
        ),
    ),
)


def _letter_of_verdict(comparison: Any) -> str:
    letters = {Verdict.BEATS: "a", Verdict.LOSES: "b", Verdict.INCONCLUSIVE: "c"}
    return letters[comparison.verdict]


HOT = QuestionSpec(
    "hot",
    "What does T = 20 do?",
    "prediction",
    "medium",
    3,
    "Five students are distilled at T = 4, and five at T = 20; seed by seed they have the same start and the same "
    "pictures in the same order, and alpha = 0.5 and T^2 are there in both. What will the verdict on T = 20 against "
    "T = 4 be, on the validation pictures? Answer with .predict(...), run the cells, then call .check(hotter) with the "
    "comparison.",
    (
        "With T^2 the size of the soft gradient hardly changes. What does change is how far down the list of classes "
        "the student has to listen: lesson 04.",
        "Hinton, Vinyals and Dean found that very small students did best at intermediate temperatures. Is a student "
        "of 7,690 parameters very small here, and is five seeds enough to see it?",
    ),
    "Hinton, Vinyals and Dean (2015) trained on MNIST with 300 or more units in each hidden layer and found all "
    "temperatures above 8 about equally good; with 30 units, 2.5 to 4 did better than higher or lower ones. No theorem "
    "stands behind either: the best temperature depends on student, teacher and data. And whatever the verdict is, "
    "it holds for one teacher, one choice of pictures and five seeds.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("T = 20 is ahead, and the interval excludes 0", ""),
            Option("T = 20 is behind, and the interval excludes 0", ""),
            Option("Five seeds cannot tell: the interval contains 0", ""),
        ),
        from_measurement=_letter_of_verdict,
    ),
)


class _LinearStudent(nn.Linear):
    """A student that keeps the gradients of an earlier step when it is copied, as nn.Module does not."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _LinearStudent:
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and then replaced
            made = type(self)(self.in_features, self.out_features)
        memo[id(self)] = made
        made.load_state_dict(self.state_dict())
        for new, old in zip(made.parameters(), self.parameters(), strict=True):
            new.grad = None if old.grad is None else old.grad.clone()
        return made


def train_step(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor,
    rate: float,
    temperature: float,
    alpha: float,
) -> Tensor:
    """One step of joint training by SGD; returns the student's logits after it."""
    optimizer = torch.optim.SGD(student.parameters(), lr=rate)
    teacher.eval()
    with torch.no_grad():
        answers = teacher(images)
    logits = student(images)
    hard = torch.nn.functional.cross_entropy(logits, labels)
    log_q = torch.log_softmax(logits / temperature, dim=1)
    log_p = torch.log_softmax(answers / temperature, dim=1)
    soft = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
    loss = alpha * hard + (1 - alpha) * soft
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return student(images)


def _steps() -> list[Case]:
    generator = torch.Generator().manual_seed(52)

    def fill(module: nn.Module) -> nn.Module:
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        return module

    def case(images: int, rate: float, temperature: float, alpha: float) -> Case:
        with torch.random.fork_rng(devices=[]):
            student = fill(_LinearStudent(4, 3))
            teacher = fill(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)))
        teacher[1].running_mean = torch.randn(5, generator=generator)  # type: ignore[index]
        for parameter in student.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        batch = torch.randn(images, 4, generator=generator)
        labels = torch.randint(3, (images,), generator=generator)
        shown = f"student, teacher, images, labels, {rate}, {temperature}, {alpha}"
        return Case((student, teacher.train(), batch, labels, rate, temperature, alpha), display=shown)

    # The first step of any optimiser imports torch's compiler, which can take longer than the check allows.
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).step()
    return [case(3, 0.5, 2.0, 0.5), case(6, 0.1, 4.0, 0.3), case(8, 0.2, 3.0, 0.8), case(5, 0.3, 1.5, 0.1)]


Step = Callable[[nn.Module, nn.Module, Tensor, Tensor, float, float, float], Tensor]


def _step(
    loss: Callable[[Tensor, Tensor, Tensor, float, float], Tensor] = joint_loss,
    *,
    eval_mode: bool = True,
    zero: bool = True,
    sign: float = 1.0,
    returned_before: bool = False,
) -> Step:
    """A training step with one mistake: in its loss, or in what is done around it."""

    def step(s: nn.Module, t: nn.Module, x: Tensor, y: Tensor, rate: float, temperature: float, alpha: float) -> Tensor:
        optimizer = torch.optim.SGD(s.parameters(), lr=rate)
        with torch.no_grad():
            answers = t.eval()(x) if eval_mode else t.train()(x)
        logits = s(x)
        if zero:
            optimizer.zero_grad()
        (sign * loss(logits, answers, y, temperature, alpha)).backward()
        optimizer.step()
        return logits if returned_before else s(x)

    return step


def _step_before_backward(
    s: nn.Module, t: nn.Module, x: Tensor, y: Tensor, rate: float, temperature: float, alpha: float
) -> Tensor:
    torch.optim.SGD(s.parameters(), lr=rate).step()
    return s(x)


TRAIN_STEP = CodeSpec(
    "train_step",
    "One whole training step",
    "code",
    "hard",
    8,
    "Write train_step(student, teacher, images, labels, rate, temperature, alpha): one step of joint training, with "
    "torch.optim.SGD(student.parameters(), lr=rate) and the joint loss of this lesson. Take nothing for granted: the "
    "teacher may be in training mode, and the student may hold gradients of an earlier step. Return the student's "
    "logits for the same images after the step, so that the check can see what it did.",
    (
        "In this order: the teacher's answers, the student's logits, the loss, the gradients, the step.",
        "teacher.eval(), and with torch.no_grad(): around the teacher's answers. optimizer.zero_grad() comes before "
        "loss.backward(), optimizer.step() after it.",
        "The loss may be called: distillation_loss(student(images), answers, labels, temperature, alpha).",
    ),
    "These lines are what kdlib.distiller.Distiller and train.fit do at every step.",
    stub="def train_step(student, teacher, images, labels, rate, temperature, alpha):\n    ...  # about ten lines",
    reference=train_step,
    cases=_steps,
    side_effects={
        "student": "The logits are right, but the student that was given has not made this one step: change its own "
        "parameters, and not those of a copy.",
        "teacher": "The logits are right, but your step also changed the teacher: only the student's parameters belong "
        "in the optimiser, and the teacher stays in eval mode.",
    },
    mistakes=(
        Mistake(
            "teacher in training mode",
            _step(eval_mode=False),
            "The teacher answered in training mode: its batch norm used this batch's mean and variance. teacher.eval() "
            "comes first.",
        ),
        Mistake(
            "old gradients",
            _step(zero=False),
            "Gradients of an earlier step were added to those of this one: optimizer.zero_grad() before backward().",
        ),
        Mistake(
            "training mode and old gradients",
            _step(eval_mode=False, zero=False),
            "The teacher answered in training mode, and gradients of an earlier step were added: teacher.eval() first, "
            "and optimizer.zero_grad() before backward().",
        ),
        Mistake(
            "no step",
            _step(returned_before=True),
            "The logits are those before the step: loss.backward() or optimizer.step() is missing, zero_grad() stands "
            "between backward() and step() and leaves no gradient, or the student has to be asked again after it, "
            "return student(images).",
        ),
        Mistake(
            "step before the gradients",
            _step_before_backward,
            "This step used the gradients of an earlier one: loss.backward() has to come before optimizer.step().",
        ),
        Mistake(
            "hard loss of the teacher",
            _step(lambda s, z, y, t, a: (1 - a) * _soft(s, z, t) + a * _hard(z, y)),
            "No label reaches the student. If your hard loss compares the teacher's answers with the labels, it is a "
            "number without a gradient: it is the student that has to learn them.",
        ),
        Mistake("alpha swapped", _step(lambda s, z, y, t, a: (1 - a) * _hard(s, y) + a * _soft(s, z, t)), _ROLES),
        Mistake("T^2 forgotten", _step(lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * _kl(s, z, t)), _NO_T2),
        Mistake(
            "weights forgotten",
            _step(lambda s, z, y, t, a: _hard(s, y) + _soft(s, z, t)),
            "alpha does not come in: both parts have the weight 1.",
        ),
        Mistake(
            "no teacher",
            _step(lambda s, z, y, t, a: a * _hard(s, y)),
            "The soft part is 0 or without a gradient: it is missing, detached, or has the same logits on both sides.",
        ),
        Mistake(
            "labels alone",
            _step(lambda s, z, y, t, a: _hard(s, y)),
            "This is plain training: the soft loss, and both weights, are missing.",
        ),
        Mistake(
            "teacher alone",
            _step(lambda s, z, y, t, a: _soft(s, z, t)),
            "The labels play no part, and the soft loss has the weight 1: alpha times the hard loss is missing.",
        ),
        Mistake(
            "student and teacher swapped",
            _step(lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * _soft(z, s, t)),
            "Student and teacher are swapped in the soft part: KL(student || teacher). kdlib's losses take the student "
            "first.",
        ),
        Mistake(
            "mean over the classes",
            _step(lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _each(_logs(s, t), _logs(z, t)).mean()),
            "In the soft part you took the mean over the classes as well. Sum over the classes, mean over the images.",
        ),
        Mistake(
            "T^4",
            _step(lambda s, z, y, t, a: a * _hard(s, y) + (1 - a) * t**2 * _soft(s, z, t)),
            "T^2 is there twice: losses.kd carries it already.",
        ),
        Mistake(
            "softmax twice",
            _step(lambda s, z, y, t, a: joint_loss(s.softmax(dim=1), z.softmax(dim=1), y, t, a)),
            "There is a softmax too many: the losses take logits.",
        ),
        Mistake(
            "hard part softened",
            _step(lambda s, z, y, t, a: a * _hard(s, y, t) + (1 - a) * _soft(s, z, t)),
            "The hard part is softened too. The labels are met at T = 1: no division there.",
        ),
        Mistake(
            "up instead of down",
            _step(sign=-1.0),
            "The step goes up the loss instead of down: look for a minus sign.",
        ),
    ),
)

DOUBLE = QuestionSpec(
    "double",
    "Twice through the softmax",
    "figure",
    "medium",
    3,
    "Look at the figure of one and of two softmaxes. After the second one no bar is longer than about 0.23, however "
    "sure the network is. How long can a bar become with two classes instead of ten?",
    (
        "What is the largest, and what the smallest number that the first softmax can hand to the second?",
        "With ten classes it was e / (e + 9), where e is exp(1) and each 1 of the 9 is exp(0).",
    ),
    "e / (e + 1) = 0.731: the second softmax gets a 1 and zeros at best, which is not far apart. So with ten classes "
    "the cross-entropy of a network that is completely right still is log((e + 9) / e) = 1.46 instead of 0. A loss "
    "that stops falling there should make you look for a softmax in the model.",
    answer_key=Numeric(
        math.e / (math.e + 1),
        0.01,
        (
            (0.5, "The second softmax gets a 1 and a 0 at best, not two equal numbers."),
            (1.0, "That is what the first softmax can give. The second gets this 1 and a 0."),
            (math.e / (math.e + 9), "That is for ten classes: e / (e + 9)."),
            (1 / (math.e + 1), "That is the shorter of the two bars."),
        ),
    ),
)

TRANSLATE = QuestionSpec(
    "translate",
    "A recipe from elsewhere",
    "question",
    "hard",
    5,
    "In somebody's repository the loss is alpha * KL + (1 - alpha) * CE, with alpha = 0.9 and T = 4. The KL divergence "
    "is that of the softened answers, CE the cross-entropy with the labels, and there is no T^2. Which alpha makes "
    "methods.Logit(temperature=4, alpha=...) the same loss, up to a constant factor?",
    (
        "In this course: alpha * CE + (1 - alpha) * 16 * KL. What counts is the ratio of the two weights.",
        "There the weight of KL is 9 times that of CE. So 16 * (1 - alpha) = 9 * alpha.",
    ),
    "16 (1 - alpha) = 9 alpha gives alpha = 16/25 = 0.64. The same letter, and 0.9, 0.1 or 0.64: before you copy a "
    "setting, read which part the letter weighs, and whether T^2 is there.",
    answer_key=Numeric(
        0.64,
        0.005,
        (
            (0.1, "That turns the roles of alpha, but forgets that kdlib's soft loss carries T^2 = 16."),
            (0.9, "The letter is the same, its role is not: there alpha weighs the soft part, here the hard one."),
            (0.36, "That is the weight of the soft part. alpha is the weight of the hard one: the rest."),
            (0.3077, "You used T = 4 once: 4 (1 - alpha) = 9 alpha. kdlib's factor is T^2 = 16."),
        ),
    ),
)

EXERCISES = LessonSpec("05", "How do logits teach?", (JOINT, HOT, TRAIN_STEP, DOUBLE, TRANSLATE))
