"""What the exercises of lesson 05 state, against the library; test_lessons has what holds for every lesson."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import code_grading
from course.grading import Outcome, grade_question
from course.lessons import lesson05
from kdlib import losses, methods, verdict
from kdlib.hooks import ModelOutput

JOINT = lesson05.JOINT


def batch(images: int = 7, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    student, teacher = (size * torch.randn(images, classes, generator=generator) for size in (1.0, 3.0))
    return student, teacher, torch.randint(classes, (images,), generator=generator)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_joint_loss_agrees_with_its_twins(alpha: float) -> None:
    s, t, y = batch()
    loss = lesson05.joint_loss(s, t, y, 3.0, alpha)
    torch.testing.assert_close(loss, alpha * F.cross_entropy(s, y) + (1 - alpha) * losses.kd(s, t, 3.0))
    torch.testing.assert_close(loss, sum(methods.Logit(3.0, alpha)(ModelOutput(s), ModelOutput(t), y).values()))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_of_the_lesson_has_the_value_and_gradient_of_its_twins(
    functions_of: Callable[..., dict[str, Any]], alpha: float
) -> None:
    s, t, y = batch()
    s.requires_grad_()
    mine = functions_of("05", "distillation_loss")["distillation_loss"](s, t, y, 3.0, alpha)
    twin = sum(methods.Logit(3.0, alpha)(ModelOutput(s), ModelOutput(t), y).values())
    assert isinstance(twin, Tensor)
    torch.testing.assert_close(mine, twin)
    torch.testing.assert_close(*(torch.autograd.grad(loss, s)[0] for loss in (mine, twin)))


def with_kl_div(s: Tensor, t: Tensor, y: Tensor, temperature: float, alpha: float) -> Tensor:
    log_q, log_p = F.log_softmax(s / temperature, dim=1), F.log_softmax(t / temperature, dim=1)
    soft = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
    return alpha * F.cross_entropy(s, y) + (1 - alpha) * soft


def one_image_at_a_time(s: Tensor, t: Tensor, y: Tensor, temperature: float, alpha: float) -> Tensor:
    total = torch.zeros(())
    for one, other, label in zip(s, t, y, strict=True):
        log_q, log_p = (x / temperature - torch.logsumexp(x / temperature, 0) for x in (one, other))
        total = total - alpha * torch.log_softmax(one, 0)[label]
        total = total + (1 - alpha) * temperature**2 * (log_p.exp() * (log_p - log_q)).sum()
    return total / len(s)


@pytest.mark.parametrize("answer", [with_kl_div, one_image_at_a_time])
def test_other_right_answers_pass(answer: Callable[..., Any]) -> None:
    assert code_grading.grade_code(JOINT, answer).outcome is Outcome.CORRECT


def test_raising_missing_and_hollow_answers_are_told_apart() -> None:
    def raising(*_: Any) -> None:
        raise ValueError("no")

    def detached(*given: Any) -> Tensor:
        return lesson05.joint_loss(*given).detach()

    def without_return(s: Tensor, t: Tensor, y: Tensor, temperature: float, alpha: float) -> None:
        lesson05.joint_loss(s, t, y, temperature, alpha)

    def fixed_setting(s: Tensor, t: Tensor, y: Tensor, temperature: float, alpha: float) -> Tensor:
        return lesson05.joint_loss(s, t, y, 2.0, 0.25)

    assert code_grading.grade_code(JOINT, raising).outcome is Outcome.ERROR
    assert code_grading.grade_code(JOINT, ...).outcome is Outcome.NOT_ATTEMPTED
    assert code_grading.grade_code(JOINT, detached).mistake == "gradient"
    assert code_grading.grade_code(JOINT, without_return).mistake == "no return"
    assert code_grading.grade_code(JOINT, fixed_setting).outcome is Outcome.WRONG


def test_the_prediction_follows_the_verdict() -> None:
    base = [0.80, 0.81, 0.79, 0.80, 0.82]
    steps = {"a": [0.02, 0.03, 0.02, 0.03, 0.02], "c": [0.02, -0.03, 0.02, -0.03, 0.01]}
    steps["b"] = [-step for step in steps["a"]]
    for letter, gains in steps.items():
        found = verdict.compare([score + gain for score, gain in zip(base, gains, strict=True)], base)
        assert grade_question(lesson05.HOT, letter, found).outcome is Outcome.CORRECT
        other = next(one for one in steps if one != letter)
        assert grade_question(lesson05.HOT, other, found).outcome is Outcome.WRONG
    for measured in ("T = 20", None, ..., math.nan, 0.01):  # a number alone has no interval
        assert grade_question(lesson05.HOT, "a", measured).outcome is Outcome.ERROR


def with_the_library(
    s: nn.Module, t: nn.Module, x: Tensor, y: Tensor, rate: float, temperature: float, alpha: float
) -> Tensor:
    optimizer = torch.optim.SGD(s.parameters(), lr=rate)
    with torch.no_grad():
        answers = t.eval()(x)
    terms = methods.Logit(temperature=temperature, alpha=alpha)(ModelOutput(s(x)), ModelOutput(answers), y)
    optimizer.zero_grad()
    sum(terms.values()).backward()
    optimizer.step()
    return s(x)


def by_hand(s: nn.Module, t: nn.Module, x: Tensor, y: Tensor, rate: float, temperature: float, alpha: float) -> Tensor:
    """Without an optimiser, and with gradients through a teacher that learns nothing from them."""
    t.eval()
    logits = s(x)
    loss = alpha * F.cross_entropy(logits, y) + (1 - alpha) * losses.kd(logits, t(x), temperature)
    for parameter, slope in zip(s.parameters(), torch.autograd.grad(loss, list(s.parameters())), strict=True):
        parameter.data -= rate * slope
    return s(x).detach()


def zeroed_first(
    s: nn.Module, t: nn.Module, x: Tensor, y: Tensor, rate: float, temperature: float, alpha: float
) -> Tensor:
    s.zero_grad()
    t.requires_grad_(False).eval()
    optimizer = torch.optim.SGD(s.parameters(), lr=rate)
    lesson05.joint_loss(s(x), t(x), y, temperature, alpha).backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        return s(x)


@pytest.mark.parametrize("answer", [with_the_library, by_hand, zeroed_first])
def test_a_training_step_may_be_written_in_several_ways(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson05.TRAIN_STEP, answer)
    assert found.outcome is Outcome.CORRECT, found


@pytest.mark.slow
def test_wrong_training_steps_are_told_apart() -> None:
    def forgotten_backward(
        s: nn.Module, t: nn.Module, x: Tensor, y: Tensor, rate: float, temperature: float, a: float
    ) -> Tensor:
        optimizer = torch.optim.SGD(s.parameters(), lr=rate)
        optimizer.zero_grad()
        lesson05.joint_loss(s(x), t.eval()(x), y, temperature, a)
        optimizer.step()
        return s(x)

    def detached(s: nn.Module, t: nn.Module, x: Tensor, y: Tensor, rate: float, temperature: float, a: float) -> Tensor:
        lesson05.joint_loss(s(x).detach(), t.eval()(x).detach(), y, temperature, a).backward()
        return s(x)

    def without_return(*given: Any) -> None:
        with_the_library(*given)

    for answer, mistake, words in (
        (forgotten_backward, "no step", "loss.backward()"),
        (zeroed_too_late, "no step", "zero_grad() stands between"),
        (without_return, "no return", "return"),
    ):
        found = code_grading.grade_code(lesson05.TRAIN_STEP, answer)
        assert found.mistake == mistake
        assert words in " ".join(found.text.split()), found
    assert code_grading.grade_code(lesson05.TRAIN_STEP, detached).outcome is Outcome.ERROR


def test_two_softmaxes() -> None:
    twice = torch.eye(10)[0].softmax(dim=0)
    assert twice[0].item() == pytest.approx(math.e / (math.e + 9))
    assert twice[0].item() == pytest.approx(0.232, abs=5e-4)
    assert twice[1].item() == pytest.approx(0.085, abs=5e-4)
    assert -twice[0].log().item() == pytest.approx(1.46, abs=5e-3)


def test_the_recipe_from_elsewhere() -> None:
    s, t, y = batch()
    alpha = lesson05.TRANSLATE.answer_key.value
    other_loss = 0.9 * losses.kd(s, t, 4.0) / 16 + 0.1 * F.cross_entropy(s, y)
    loss = lesson05.joint_loss(s, t, y, 4.0, alpha)
    more, other, truth = batch(9)
    again = 0.9 * losses.kd(more, other, 4.0) / 16 + 0.1 * F.cross_entropy(more, truth)
    torch.testing.assert_close(loss / other_loss, lesson05.joint_loss(more, other, truth, 4.0, alpha) / again)
    for value in (0.1, 0.9, 0.36, 0.3077):
        assert grade_question(lesson05.TRANSLATE, value).outcome is Outcome.WRONG
    wrong = grade_question(lesson05.TRANSLATE, 0.1).text
    assert "forgets that kdlib's soft loss carries T^2" in wrong
    assert "0.64" not in wrong  # a question, unlike a prediction, can be tried again
    assert grade_question(lesson05.TRANSLATE, 16 / 25).outcome is Outcome.CORRECT
    assert grade_question(lesson05.TRANSLATE, "0.64").outcome is Outcome.ERROR


@pytest.mark.parametrize(("answer", "right"), [(0.64, True), (16 / 25, True), (0.63, False), (0.65, False)])
def test_a_weight_that_can_be_worked_out_is_not_taken_by_a_neighbour(answer: float, right: bool) -> None:
    """At 0.63 the ratio of the two weights is 9.4 and not 9."""
    assert (grade_question(lesson05.TRANSLATE, answer).outcome is Outcome.CORRECT) == right


def soft(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    return losses.kd(s, t, temperature)


def by_softmax(s: Tensor, t: Tensor, temperature: float, *, student: bool = False) -> Tensor:
    """The divergence with the logarithm of the teacher's softmax, or of the student's alone."""
    log_q, log_p = F.log_softmax(s / temperature, dim=1), F.log_softmax(t / temperature, dim=1)
    if student:
        log_q = log_q.exp().log()
    else:
        log_p = log_p.exp().log()
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


CE = F.cross_entropy
WRONG: list[tuple[Callable[..., Any], str]] = [
    (lambda s, z, y, t, a: 0.5 * (CE(s, y) + soft(s, z, t)), "half of the sum"),
    (lambda s, z, y, t, a: CE(s, y) + soft(s, z, t), "both parts have the weight 1"),
    (lambda s, z, y, t, a: (1 - a) * CE(s, y) + a * soft(s, z, t), "changed places"),
    (lambda s, z, y, t, a: a * CE(s, y) + (1 - a) * soft(s, z, t) / t**2, "T^2 is missing"),
    (lambda s, z, y, t, a: a * CE(s, y) + (1 - a) * soft(s, z, t) / t, "T once"),
    (lambda s, z, y, t, a: a * CE(s / t, y) + (1 - a) * soft(s, z, t), "no division"),
    (lambda s, z, y, t, a: a * CE(z, y) + (1 - a) * soft(s, z, t), "student that has to learn"),
    (lambda s, z, y, t, a: a * CE(s, F.one_hot(y, s.shape[1])) + (1 - a) * soft(s, z, t), ".float()"),
    (lambda s, z, y, t, a: -a * s.log_softmax(1)[:, y].mean() + (1 - a) * soft(s, z, t), "[:, labels]"),
    (lambda s, z, y, t, a: a * CE(s, y) + (1 - a) * t**2 * lesson05._without_keepdim(s, z, t), "keepdim"),
    (lambda s, z, y, t, a: a * CE(s, y) + (1 - a) * soft(z, s, t), "swapped"),
    (lambda s, z, y, t, a: a * CE(s.softmax(1), y) + (1 - a) * soft(s, z, t), "softmax too many"),
    (lambda s, z, y, t, a: a * CE(s, y) + (1 - a) * soft(s.softmax(1), z.softmax(1), t), "softmax too many"),
    (lambda s, z, y, t, a: a * CE(s, y), "it is missing"),
    (lambda s, z, y, t, a: (1 - a) * soft(s, z, t), "labels do not come in"),
    (lambda s, z, y, t, a: a * CE(s, y) + (1 - a) * t**2 * by_softmax(s, z, t, student=True), "a student that is sure"),
    (lambda s, z, y, t, a: a * CE(s, y) + (1 - a) * t**2 * by_softmax(s, z, t), "0 times log 0 is NaN"),
    (lambda s, z, y, t, a: a * CE(s, y) + (1 - a) * by_softmax(s, z, t), "NaN for a teacher that is sure"),
    (lambda s, z, y, t, a: (a * CE(s, y) + (1 - a) * soft(s, z, t)).item(), "gradient"),
]


def test_an_error_that_two_mistakes_can_raise_is_not_taken_for_the_other_one() -> None:
    """Labels as if they were one-hot do not fit beside B x C either: there is no keepdim to add."""
    found = code_grading.grade_code(
        JOINT, lambda s, z, y, t, a: -a * (s.log_softmax(1) * y).sum(1).mean() + (1 - a) * soft(s, z, t)
    )
    assert found.outcome is Outcome.ERROR
    assert "keepdim" not in found.text


def test_cross_entropy_with_its_arguments_swapped_is_no_matter_of_types() -> None:
    found = code_grading.grade_code(JOINT, lambda s, z, y, t, a: a * CE(y, s) + (1 - a) * soft(s, z, t))
    assert found.outcome is Outcome.ERROR
    assert "the logits first, the labels second" in found.text
    assert ".float()" not in found.text


@pytest.mark.slow
@pytest.mark.parametrize("logits", [lambda s, z: (s, s), lambda s, z: (z, z), lambda s, z: (s, s.detach())])
def test_the_same_logits_on_both_sides_are_named(logits: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    def same(s: Tensor, z: Tensor, y: Tensor, t: float, a: float) -> Tensor:
        first, second = logits(s, z)
        return a * CE(s, y) + (1 - a) * losses.kd(first, second, t)

    for spec, answer in ((JOINT, same), (lesson05.TRAIN_STEP, step_with(same))):
        found = " ".join(code_grading.grade_code(spec, answer).text.split())
        assert "The soft part is 0" in found
        assert "the same logits on both sides" in found


@pytest.mark.parametrize(("answer", "words"), WRONG)
def test_wrong_losses_are_refused_and_named(answer: Callable[..., Any], words: str) -> None:
    found = code_grading.grade_code(JOINT, answer)
    assert found.outcome in (Outcome.WRONG, Outcome.ERROR)
    assert words in " ".join(found.text.split()), found


def step_with(loss: Callable[..., Any], *, mode: bool = False, zero: bool = True) -> Callable[..., Any]:
    def step(s: nn.Module, t: nn.Module, x: Tensor, y: Tensor, rate: float, temperature: float, a: float) -> Tensor:
        t.train(mode)
        optimizer = torch.optim.SGD(s.parameters(), lr=rate)
        with torch.no_grad():
            answers = t(x)
        if zero:
            optimizer.zero_grad()
        loss(s(x), answers, y, temperature, a).backward()
        optimizer.step()
        return s(x)

    return step


def zeroed_too_late(
    s: nn.Module, t: nn.Module, x: Tensor, y: Tensor, rate: float, temperature: float, a: float
) -> Tensor:
    optimizer = torch.optim.SGD(s.parameters(), lr=rate)
    lesson05.joint_loss(s(x), t.eval()(x), y, temperature, a).backward()
    optimizer.zero_grad()
    optimizer.step()
    return s(x)


STEPS: list[tuple[Callable[..., Any], str]] = [
    (zeroed_too_late, "zero_grad() stands between backward() and step()"),
    (step_with(lesson05.joint_loss, mode=True, zero=False), "in training mode, and gradients of an earlier step"),
    (step_with(lesson05.joint_loss, mode=True), "training mode"),
    (step_with(lesson05.joint_loss, zero=False), "zero_grad"),
    (step_with(lambda s, z, y, t, a: a * CE(z, y) + (1 - a) * soft(s, z, t)), "No label reaches"),
    (step_with(lambda s, z, y, t, a: (1 - a) * CE(s, y) + a * soft(s, z, t)), "changed places"),
    (step_with(lambda s, z, y, t, a: a * CE(s, y) + (1 - a) * soft(s, z, t) / t**2), "T^2 is missing"),
    (step_with(lambda s, z, y, t, a: a * CE(s, y) + (1 - a) * t**2 * soft(s, z, t)), "twice"),
    (step_with(lambda s, z, y, t, a: CE(s, y)), "plain training"),
    (step_with(lambda s, z, y, t, a: a * CE(s, y)), "it is missing"),
    (step_with(lambda s, z, y, t, a: -lesson05.joint_loss(s, z, y, t, a)), "minus sign"),
    (step_with(lambda s, z, y, t, a: a * CE(s, y) + (1 - a) * soft(s, z, t).detach()), "detached"),
]


def trains_its_teacher(
    s: nn.Module, t: nn.Module, x: Tensor, y: Tensor, rate: float, temperature: float, a: float
) -> Tensor:
    optimizer = torch.optim.SGD([*s.parameters(), *t.parameters()], lr=rate)
    optimizer.zero_grad()
    lesson05.joint_loss(s(x), t.eval()(x), y, temperature, a).backward()
    optimizer.step()
    return s(x)


def asks_again_in_train_mode(s: nn.Module, t: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    logits = with_the_library(s, t, x, *rest)
    t.train()(x)  # moves the statistics of batch norm
    return logits


def steps_with_a_copy(s: nn.Module, *rest: Any) -> Tensor:
    return with_the_library(copy.deepcopy(s), *rest)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (trains_its_teacher, "also changed the teacher: only the student's parameters belong in the optimiser"),
        (asks_again_in_train_mode, "also changed the teacher"),
        (steps_with_a_copy, "not those of a copy"),
    ],
)
def test_a_step_is_judged_by_what_it_leaves_behind_as_well(answer: Callable[..., Any], words: str) -> None:
    found = code_grading.grade_code(lesson05.TRAIN_STEP, answer)
    assert found.outcome is Outcome.WRONG
    assert "The logits are right" in found.text
    assert words in " ".join(found.text.split()), found


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "words"), STEPS)
def test_wrong_steps_are_refused_and_named(answer: Callable[..., Any], words: str) -> None:
    found = code_grading.grade_code(lesson05.TRAIN_STEP, answer)
    assert found.outcome is Outcome.WRONG
    assert words in " ".join(found.text.split()), found
