"""Exercises of lesson 04: right answers in several ways, and wrong ones as learners write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from course import code_grading
from course.grading import Outcome, grade_question
from course.lessons import lesson04
from course.specs import CodeSpec, MultipleChoice
from kdlib import losses

SOFTEN, SOFT_LOSS = lesson04.SOFTEN, lesson04.SOFT_LOSS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_loss_of_the_lesson_has_the_value_and_gradient_of_its_twin(
    functions_of: Callable[..., dict[str, Any]], temperature: float
) -> None:
    lesson, generator = functions_of("04", "distillation_loss"), torch.Generator().manual_seed(4)
    student = torch.randn(7, 5, generator=generator).double().requires_grad_()
    teacher = 3 * torch.randn(7, 5, generator=generator).double()
    mine, twin = (loss(student, teacher, temperature) for loss in (lesson["distillation_loss"], losses.kd))
    torch.testing.assert_close(mine, twin)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (mine, twin)))


def row_by_row(z: Tensor, t: float) -> Tensor:
    return torch.stack([torch.exp(row / t - torch.logsumexp(row / t, 0)) for row in z])


def shifted_first(z: Tensor, t: float) -> Tensor:
    weights = ((z - z.max(dim=-1, keepdim=True)[0]) / t).exp()
    return weights / weights.sum(-1)[:, None]


def with_kl_div(s: Tensor, z: Tensor, t: float) -> Tensor:
    return F.kl_div((s / t).log_softmax(1), (z / t).softmax(1), reduction="batchmean") * t * t


def with_xlogy(s: Tensor, z: Tensor, t: float) -> Tensor:
    p = (z / t).softmax(1)
    return t**2 * (torch.xlogy(p, p) - p * (s / t).log_softmax(1)).sum(1).mean()


def by_hand(s: Tensor, z: Tensor, t: float) -> Tensor:
    log_q = s / t - torch.logsumexp(s / t, 1, keepdim=True)
    log_p = z / t - torch.logsumexp(z / t, 1, keepdim=True)
    return (t**2 / len(s)) * (torch.exp(log_p) * (log_p - log_q)).sum()


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        (SOFTEN, row_by_row),
        (SOFTEN, shifted_first),
        (SOFTEN, lambda z, t: torch.softmax(z / t, -1)),
        (SOFT_LOSS, with_kl_div),
        (SOFT_LOSS, with_xlogy),
        (SOFT_LOSS, by_hand),
    ],
)
def test_right_answers_pass(spec: CodeSpec, answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(spec, answer)
    assert found.outcome is Outcome.CORRECT, found


def log(z: Tensor, t: float) -> Tensor:
    return (z / t).log_softmax(dim=1)


def weighed(z: Tensor, t: float, differences: Tensor) -> Tensor:
    return ((z / t).softmax(dim=1) * differences).sum(dim=1).mean()


WRONG: list[tuple[CodeSpec, Callable[..., Any], str]] = [
    (SOFTEN, lambda z, t: (z * t).softmax(1), "Divide the logits by T"),
    (SOFTEN, lambda z, t: (z / t).softmax(0), "over the classes"),
    (SOFTEN, lambda z, t: z.softmax(1), "does not come in"),
    (SOFTEN, lambda z, t: z.softmax(1) / t, "no longer sum to 1"),
    (SOFTEN, lambda z, t: (z / t).exp() / (z / t).exp().sum(dim=1), "keepdim=True"),
    (SOFTEN, lambda z, t: (z / t - (z / t).max(dim=1).values).exp(), "keepdim=True"),
    (SOFTEN, lambda z, t: (z / t).exp() / (z / t).exp().sum(), "sum of its own"),
    (SOFTEN, lambda z, t: (z / t).exp() / (z / t).exp().sum(dim=1, keepdim=True), "exp(900) is inf"),
    (SOFTEN, lambda z, t: (z / t).exp(), "do not sum to 1"),
    (SOFTEN, lambda z, t: (z / t).log_softmax(1), "apply exp"),
    (SOFTEN, lambda z, t: (z / t).softmax(1).softmax(1), "a softmax too many"),
    (SOFTEN, lambda z, t: F.one_hot(z.argmax(1), z.shape[1]).float(), "hard label"),
    (SOFTEN, lambda z, t: (z / t - (z / t).max(dim=1, keepdim=True)).softmax(1), "take .values"),
    (SOFTEN, lambda z, t: [row.softmax(0) for row in z / t], "torch.stack"),
    (SOFT_LOSS, lambda s, z, t: with_kl_div(s, z, t) / t**2, "T^2 is missing"),
    (SOFT_LOSS, lambda s, z, t: with_kl_div(s, z, t) / t, "multiplied by T once"),
    (SOFT_LOSS, lambda s, z, t: with_kl_div(z, s, t), "swapped"),
    (SOFT_LOSS, lambda s, z, t: 0.5 * with_kl_div(s, z, t), "0.5 times"),
    (SOFT_LOSS, lambda s, z, t: -with_kl_div(s, z, t), "sign is wrong"),
    (SOFT_LOSS, lambda s, z, t: t**2 * F.kl_div(log(s, t), log(z, t).exp()), "C times too small"),
    (SOFT_LOSS, lambda s, z, t: t**2 * F.kl_div(log(s, t), log(z, t), reduction="batchmean"), "log_target=True"),
    (SOFT_LOSS, lambda s, z, t: t**2 * F.kl_div(log(s, t), log(z, t).exp(), reduction="sum"), "grows with the batch"),
    (SOFT_LOSS, lambda s, z, t: t**2 * (log(z, t).exp() * (log(z, t) - log(s, t))).sum(1), "loss for each image"),
    (SOFT_LOSS, lambda s, z, t: -(t**2) * (log(z, t).exp() * log(s, t)).sum(1).mean(), "cross-entropy"),
    (SOFT_LOSS, lambda s, z, t: with_kl_div(s / t, z / t, 1.0) * t, "multiplied by T once"),
    (SOFT_LOSS, lambda s, z, t: with_kl_div(s, z, 1.0) * t**2, "not divided by T"),
    (SOFT_LOSS, lambda s, z, t: t**2 * (log(z, t) - log(s, t)).sum(1).mean(), "probabilities are missing"),
    (SOFT_LOSS, lambda s, z, t: t**2 * ((s / t).softmax(1) - (z / t).softmax(1)).pow(2).sum(1).mean(), "squared"),
    (SOFT_LOSS, lambda s, z, t: t**2 * weighed(z, t, log(z, t) - (s / t).softmax(1).log()), "a student that is sure"),
    (SOFT_LOSS, lambda s, z, t: t**2 * weighed(z, t, (z / t).softmax(1).log() - log(s, t)), "0 times log 0 is NaN"),
    (SOFT_LOSS, lambda s, z, t: weighed(z, t, (z / t).softmax(1).log() - log(s, t)), "NaN for a teacher that is sure"),
    (SOFT_LOSS, lambda s, z, t: with_kl_div(s, z, t).item(), "cut off the gradient"),
    (SOFT_LOSS, lambda s, z, t: with_kl_div(s.detach(), z, t), "gradient"),
]


@pytest.mark.filterwarnings("ignore:reduction")  # kl_div's own advice, which a learner sees as well
@pytest.mark.parametrize(("spec", "answer", "words"), WRONG)
def test_wrong_answers_are_refused_and_named(spec: CodeSpec, answer: Callable[..., Any], words: str) -> None:
    found = code_grading.grade_code(spec, answer)
    assert found.outcome in (Outcome.WRONG, Outcome.ERROR)
    assert words in " ".join(found.text.split()), found


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.25, "other way round"), (0.5, "other way round"), (2.0, "1/T"), (8.0, "1/T^3")]
)
def test_predictions_of_the_gradient_are_answered(ratio: float, words: str) -> None:
    found = grade_question(lesson04.GRADIENT, ratio, 4.3)
    assert found.outcome is Outcome.WRONG
    assert words in " ".join(found.text.split()), found
    assert grade_question(lesson04.GRADIENT, 4, 4.3).outcome is Outcome.CORRECT


@pytest.mark.parametrize("question", [lesson04.LAW, lesson04.LIMIT])
def test_the_right_option_is_not_the_longest(question: Any) -> None:
    assert isinstance(question.answer_key, MultipleChoice)
    lengths = {option.text: len(option.text) for option in question.answer_key.options}
    right = next(option.text for option in question.answer_key.options if option.correct)
    assert max(lengths, key=lambda text: lengths[text]) != right
    for letter in question.answer_key.by_letter:
        outcome = grade_question(question, letter).outcome
        assert outcome is (Outcome.CORRECT if letter == question.answer_key.correct_letter() else Outcome.WRONG)
