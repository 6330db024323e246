"""What the exercises and the text of lesson 15 state; see also test_lessons and test_clinic."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from course import code_grading, notebooks
from course.experiments import clinic
from course.grading import Outcome, grade_question
from course.lessons import lesson15
from kdlib import losses
from kdlib.doctor import CHECKS

Loss = Callable[[Tensor, Tensor], Tensor]


def with_kdlib(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> Any:
    lengths = []
    for one in (loss, lambda s, t: losses.kd(s, t, temperature)):
        leaf = student.detach().clone().requires_grad_(True)
        one(leaf, teacher).backward()
        assert leaf.grad is not None
        lengths.append(leaf.grad.norm())
    return float(lengths[0] / lengths[1])


def with_kl_div(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> Any:
    student = student.clone().requires_grad_()
    log_p, q = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    right = F.kl_div(log_p, q, reduction="batchmean") * temperature**2
    given = torch.autograd.grad(loss(student, teacher), student)[0]
    return torch.linalg.norm(given) / torch.linalg.norm(torch.autograd.grad(right, student)[0])


def by_hand(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> Any:
    leaf = student.clone()
    leaf.requires_grad = True
    loss(leaf, teacher).backward()
    difference = torch.softmax(student / temperature, -1) - torch.softmax(teacher / temperature, -1)
    wanted = difference * temperature / student.shape[0]
    assert leaf.grad is not None
    return (leaf.grad.pow(2).sum() / wanted.pow(2).sum()).sqrt().item()


@pytest.mark.parametrize("answer", [with_kdlib, with_kl_div, by_hand])
def test_right_answers_pass_however_they_are_written(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson15.FACTOR, answer)
    assert found.outcome is Outcome.CORRECT, found


def largest_part(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> Any:
    student = student.clone().requires_grad_()
    (given,) = torch.autograd.grad(loss(student, teacher), student)
    return given.abs().max().item()


def one_over_classes(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> Any:
    return 1 / student.shape[1]


def without_return(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> Any:
    with_kdlib(loss, student, teacher, temperature)


def with_a_detached_copy(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> Any:
    return torch.autograd.grad(loss(student.detach(), teacher), student)[0].norm().item()


def comparing(compare: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """What is right only where the two gradients are proportional."""

    def answer(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> Any:
        leaf = student.clone().requires_grad_()
        (given,) = torch.autograd.grad(loss(leaf, teacher), leaf)
        difference = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
        return compare(given, temperature * difference / len(student)).item()

    return answer


OTHER_WRONG = (
    largest_part,
    one_over_classes,
    without_return,
    with_a_detached_copy,
    comparing(lambda given, wanted: (given / wanted).mean()),
    comparing(lambda given, wanted: given[0, 0] / wanted[0, 0]),
    comparing(lambda given, wanted: given.max() / wanted.max()),
    comparing(lambda given, wanted: given.abs().sum() / wanted.abs().sum()),
    comparing(lambda given, wanted: (given * wanted).sum() / wanted.square().sum()),
    comparing(lambda given, wanted: given[0].norm() / wanted[0].norm()),
)


@pytest.mark.slow
@pytest.mark.parametrize("answer", [*(one.function for one in lesson15.MISTAKES), *OTHER_WRONG])
def test_wrong_answers_do_not_pass(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson15.FACTOR, lambda *arguments: answer(*arguments))
    assert found.outcome in (Outcome.WRONG, Outcome.ERROR)


def test_the_factors_are_those_that_the_lesson_names() -> None:
    chance = torch.Generator().manual_seed(2)
    s, t = (2 * torch.randn(6, 10, generator=chance) for _ in range(2))
    made = {
        lesson15.mean_over_classes: 1 / 10,
        lesson15.without_t_squared: 1 / 16,
        lesson15.soft_cross_entropy: 1.0,
        lesson15.summed_over_batch: 6.0,
    }
    for make, wanted in made.items():
        assert lesson15.factor(make(4.0), s, t, 4.0) == pytest.approx(wanted, rel=1e-4)


def test_two_factors_are_multiplied() -> None:
    """By the loss of the question itself: 100 classes, T = 4, batches of 64."""
    s, t = (torch.randn(64, 100, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        log_p, q = (student / 4).log_softmax(1), (teacher / 4).softmax(1)
        return (q * (q.log() - log_p)).mean()  # what nn.KLDivLoss() gives

    times = 1 / lesson15.factor(loss, s, t, 4.0)
    assert times == pytest.approx(1600, rel=1e-3)
    assert grade_question(lesson15.SIZES, times).outcome is Outcome.CORRECT
    for wrong in (100, 16, 400, 102_400, 6_400, 1_024, 116, 1 / 1600):
        assert grade_question(lesson15.SIZES, wrong).outcome is Outcome.WRONG


@pytest.mark.parametrize(("count", "letter"), [(0, "a"), (1, "b"), (3, "b"), (4, "c"), (6, "c"), (7, "d"), (9, "d")])
def test_the_prediction_is_judged_by_what_was_measured(count: int, letter: str) -> None:
    for answer in "abcd":
        outcome = grade_question(lesson15.ACCURACY, answer, count).outcome
        assert outcome is (Outcome.CORRECT if answer == letter else Outcome.WRONG)


@pytest.mark.parametrize("nonsense", [..., float("nan"), 10, -1, "many"])
def test_what_is_no_number_of_faults_is_not_judged(nonsense: Any) -> None:
    assert grade_question(lesson15.ACCURACY, "c", nonsense).outcome is Outcome.ERROR


def test_the_question_on_the_figure_asks_for_what_must_not_change() -> None:
    outcomes = {letter: grade_question(lesson15.AGREEMENT, letter).outcome for letter in "abcd"}
    assert [letter for letter, outcome in outcomes.items() if outcome is Outcome.CORRECT] == ["a"]


def test_what_the_lesson_says_of_the_rows() -> None:
    found = clinic.load()
    harmed = [one.patient for one in found if one.harm is not None and one.harm.verdict == "LOSES"]
    assert {1, 7, 10} <= set(harmed)
    assert len(harmed) < 9
    fine = [one.patient for one in found if one.gain.verdict != "LOSES"]
    assert len(fine) >= 4


def test_the_checklist_names_every_check_of_the_doctor_once() -> None:
    text = (notebooks.NOTEBOOKS_DIR / "checklist.html").read_text()
    named = " ".join(re.findall(r"<small>([^<]*)</small>", text)).split()  # as text, which can be found and copied
    assert sorted(named) == sorted(CHECKS)
    assert text.count("<ul") == text.count('<ul role="list">')  # Safari takes a list without bullets for none
    lesson = notebooks.read(notebooks.find("15"))
    assert any("(checklist.html)" in cell.source for cell in lesson.cells)


def test_the_lesson_gives_nothing_away_before_the_round() -> None:
    """The names of the checks that find a patient's fault stand in collapsed outputs only."""
    for cell in notebooks.read(notebooks.find("15")).cells:
        if cell.cell_type == "code" and "hide-output" not in cell.metadata.get("tags", []):
            text = str(cell.get("outputs", ""))
            for check in ("loss-probabilities", "loss-ignores-teacher", "teacher-mode", "term-reach", "loss-padding"):
                assert check not in text
