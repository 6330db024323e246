"""What the exercises and the text of lesson 14 state, against the library; see also test_lessons."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from course import code_grading
from course.grading import Outcome, grade_question
from course.lessons import lesson14
from kdlib import data
from kdlib.data import labelled_cross_entropy
from kdlib.hooks import ModelOutput
from kdlib.methods import Logit


def by_kdlib(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    method = Logit(temperature=temperature, alpha=alpha, hard=labelled_cross_entropy)
    return sum(method(ModelOutput(s), ModelOutput(t), labels).values())  # type: ignore[return-value]


def by_hand(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float, of_softmax: bool = False) -> Tensor:
    total = s.new_zeros(())
    known = [row for row in range(len(labels)) if labels[row] >= 0]
    for row in known:
        total = total - alpha * s[row].log_softmax(0)[labels[row]] / len(known)
    for row in range(len(labels)):
        p, q = ((one[row] / temperature).log_softmax(0) for one in (t, s))
        if of_softmax:
            p, q = ((one[row] / temperature).softmax(0).log() for one in (t, s))
        total = total + (1 - alpha) * temperature**2 * (p.exp() * (p - q)).sum() / len(labels)
    return total


def with_ignore_index(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    count = (labels != -100).sum().clamp_min(1)
    hard = F.cross_entropy(s, labels, ignore_index=-100, reduction="sum") / count
    logs = (F.log_softmax(one / temperature, -1) for one in (s, t))
    soft = F.kl_div(*logs, log_target=True, reduction="batchmean")
    return alpha * hard + (1 - alpha) * soft * temperature * temperature


@pytest.mark.parametrize("answer", [by_kdlib, by_hand, with_ignore_index])
def test_other_right_answers_pass(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson14.LOSS, answer)
    assert found.outcome is Outcome.CORRECT, found


def test_a_logarithm_of_a_softmax_is_refused_for_a_student_that_is_sure_and_wrong() -> None:
    found = code_grading.grade_code(lesson14.LOSS, partial(by_hand, of_softmax=True))
    assert found.outcome is Outcome.WRONG
    assert "log_softmax" in found.text


def test_eleven_wrong_answers_are_told_apart() -> None:
    names = [mistake.name for mistake in lesson14.LOSS.mistakes]
    assert len(set(names)) == len(names) == 11
    for mistake in lesson14.LOSS.mistakes:
        found = code_grading.grade_code(lesson14.LOSS, mistake.function)
        assert found.outcome is Outcome.WRONG, mistake.name
        assert mistake.message[:30] in " ".join(str(found).split()), mistake.name


@pytest.mark.parametrize(
    ("points", "letter"), [(20.0, "a"), (5.1, "a"), (5.0, "b"), (0.0, "b"), (-5.0, "b"), (-5.1, "c"), (-40, "c")]
)
def test_the_prediction_is_judged_by_what_was_measured(points: float, letter: str) -> None:
    for answer in "abc":
        outcome = grade_question(lesson14.WRONG, answer, points).outcome
        assert outcome is (Outcome.CORRECT if answer == letter else Outcome.WRONG)


@pytest.mark.parametrize("nonsense", [..., 101.0, float("nan"), float("inf"), "worse"])
def test_what_is_no_difference_is_not_judged(nonsense: Any) -> None:
    assert grade_question(lesson14.WRONG, "c", nonsense).outcome is Outcome.ERROR


def test_the_share_of_labels_is_that_of_the_data() -> None:
    few = data.load("shoulder-exercises").train.few_labels(2)
    share = 100 * len(few.labelled) / len(few)
    assert lesson14.SHARE.answer_key.value == pytest.approx(share)
    for right in (share, 0.985, 0.99, torch.tensor(0.985)):
        assert grade_question(lesson14.SHARE, right).outcome is Outcome.CORRECT
    for wrong in (0.00985, 0.14, 0.49, 28.6, 99.0, 14, 1.1, 9.85):
        assert grade_question(lesson14.SHARE, wrong).outcome is Outcome.WRONG


@pytest.mark.parametrize("spec", [lesson14.PERSONS, lesson14.CLASSES], ids=["persons", "classes"])
def test_one_option_is_right_and_the_others_say_why_not(spec: Any) -> None:
    right = spec.answer_key.correct_letter()
    for letter in "abcd":
        found = grade_question(spec, letter)
        assert found.outcome is (Outcome.CORRECT if letter == right else Outcome.WRONG)
    texts = [option.text for option in spec.answer_key.options if not option.correct]
    correct = next(option.text for option in spec.answer_key.options if option.correct)
    assert len(correct) <= max(map(len, texts))
