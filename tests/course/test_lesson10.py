"""What the exercises of lesson 10 accept and refuse; see also test_lessons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from course import code_grading
from course.experiments import teacher_results
from course.grading import Outcome, grade_question
from course.lessons import lesson10
from kdlib.measure import calibration_error

CLEAR = {"accuracy": (0.7, 0.4, 0.9), "size": (0.1, -0.3, 0.5)}
NONE = {"accuracy": (0.3, -0.1, 0.6), "size": (0.1, -0.3, 0.5)}
REST = {"confidence": (0.0, -0.4, 0.4), "calibration": (-0.2, -0.6, 0.2)}


@pytest.mark.parametrize("sharpness", [0.3, 3.0, 30.0])
def test_the_calibration_error_of_the_lesson_is_that_of_its_twin(
    functions_of: Callable[..., dict[str, Any]], sharpness: float
) -> None:
    generator = torch.Generator().manual_seed(10)
    logits, labels = sharpness * torch.randn(500, 4, generator=generator), torch.randint(4, (500,), generator=generator)
    mine = float(functions_of("10", "calibration_error")["calibration_error"](logits, labels))
    assert mine == pytest.approx(calibration_error(logits, labels), abs=1e-6)


def of_scipy(x: list[float], y: list[float]) -> float:
    return float(stats.kendalltau(x, y).statistic)


def by_signs(x: list[float], y: list[float]) -> float:
    a, b = (np.sign(np.subtract.outer(one, one)) for one in (x, y))
    return float((a * b).sum() / (len(x) * (len(x) - 1)))


def by_counting(x: list[float], y: list[float]) -> float:
    agree = disagree = 0
    for i in range(len(x)):
        for j in range(i):
            if (x[i] < x[j]) == (y[i] < y[j]):
                agree += 1
            else:
                disagree += 1
    return (agree - disagree) / (agree + disagree)


def by_sorting(x: list[float], y: list[float]) -> float:
    y = [value for _, value in sorted(zip(x, y, strict=True))]
    n = len(y)
    inversions = sum(y[i] > y[j] for i in range(n) for j in range(i + 1, n))
    return 1 - 4 * inversions / (n * (n - 1))


@pytest.mark.parametrize("answer", [of_scipy, by_signs, by_counting, by_sorting])
def test_right_answers_pass_however_they_are_written(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson10.TAU, answer)
    assert found.outcome is Outcome.CORRECT, found


@pytest.mark.parametrize("mistake", lesson10.TAU.mistakes, ids=lambda one: one.name)
def test_known_mistakes_are_named(mistake: Any) -> None:
    found = code_grading.grade_code(lesson10.TAU, mistake.function)
    assert found.outcome is Outcome.WRONG
    assert mistake.message in " ".join(str(found).split())


def test_there_are_nine_of_them_and_others_are_wrong_too() -> None:
    assert len(lesson10.TAU.mistakes) >= 8
    for wrong in (lambda x, y: 0.5, lambda x, y: of_scipy(x, x), lambda x, y: abs(of_scipy(x, y))):
        assert code_grading.grade_code(lesson10.TAU, wrong).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("taus", "letter"),
    [
        (CLEAR | REST, "a"),
        (NONE | REST, "e"),
        (NONE | REST | {"size": (-0.6, -0.8, -0.2)}, "b"),
        (CLEAR | REST | {"confidence": (-0.8, -0.9, -0.5)}, "c"),
        (CLEAR | REST | {"calibration": (-0.75, -0.9, -0.1)}, "d"),
    ],
)
def test_the_prediction_is_judged_by_what_was_measured(taus: dict[str, Any], letter: str) -> None:
    for answer in "abcde":
        outcome = grade_question(lesson10.BEST, answer, taus).outcome
        assert outcome is (Outcome.CORRECT if answer == letter else Outcome.WRONG)


@pytest.mark.parametrize("nonsense", [..., {}, CLEAR, 0.7, "accuracy"])
def test_what_are_no_taus_is_not_judged(nonsense: Any) -> None:
    assert grade_question(lesson10.BEST, "a", nonsense).outcome is Outcome.ERROR


def test_one_of_eleven_wins_by_chance_as_often_as_a_simulation_says() -> None:
    wrong = np.random.default_rng(0).random((20_000, 11)) < 0.05
    assert lesson10.FALSE.answer_key.value == pytest.approx(wrong.any(1).mean(), abs=0.01)
    assert grade_question(lesson10.FALSE, 0.43).outcome is Outcome.CORRECT
    for answer in (0.55, 0.05, 0.57, 0.95, 43.1, 0.5):
        assert grade_question(lesson10.FALSE, answer).outcome is Outcome.WRONG


@pytest.mark.slow
def test_what_the_question_on_the_figure_says_of_the_interval() -> None:
    """It holds the tau of many seeds nearly as often as it says, and other teachers may have quite another one."""
    chance = np.random.default_rng(1)
    values, gains = np.arange(6.0), np.array([0.0, 0.4, 0.2, 0.7, 0.5, 0.9])
    truth, *_ = teacher_results.mean_tau(list(values), gains + chance.normal(size=(1500, 6)))
    held = 0
    for _ in range(150):
        _, low, high = teacher_results.mean_tau(list(values), gains + chance.normal(size=(5, 6)))
        held += low <= truth <= high
    assert held > 0.88 * 150
    two_more = np.append(gains, [-9.0, -9.5])
    other, *_ = teacher_results.mean_tau(list(np.append(values, [7.0, 8.0])), two_more + chance.normal(size=(1500, 8)))
    assert other < 0 < truth
    assert grade_question(lesson10.COVERS, "c").outcome is Outcome.CORRECT


def test_single_seeds_have_the_other_sign_as_often_as_the_explanation_says() -> None:
    explained = " ".join(grade_question(lesson10.COVERS, "b").text.split())
    results, student = teacher_results.load(), "article-student"
    names, found = results.teachers(student), {}
    for measure in lesson10.MEASURES:
        values = [results.facts[name].measure(measure) for name in names]
        scores = [[results.arms[student, name].accuracies[seed] for name in names] for seed in range(10)]
        taus = [of_scipy(values, one) for one in scores]
        found[measure] = sum(tau * sum(taus) < 0 for tau in taus)
    assert found == {"accuracy": 2, "size": 5, "confidence": 2, "calibration": 0}
    assert "two of the ten seeds for accuracy and confidence, in five for size, in none for" in explained


def test_one_teacher_can_make_a_small_tau_alone() -> None:
    insight = " ".join(code_grading.grade_code(lesson10.TAU, of_scipy).text.split())
    assert "one teacher of n stands in 2/n of all pairs, and can make a small tau alone" in insight
    results = teacher_results.load()
    assert results.tau("article-student", "accuracy").low > 0
    without = results.tau("article-student", "accuracy", without=["resnet20, epoch 1"])
    assert without.low < without.value < 0 < without.high
    tau_of_far = of_scipy([1.0, 2.0, 3.0, 1e6], [3.0, 2.0, 1.0, 4.0])
    assert tau_of_far == of_scipy([1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 4.0]) == 0.0  # three of six pairs hold the last


def test_tau_is_asked_of_lists_and_shows_them() -> None:
    copied = code_grading.grade_code(lesson10.TAU, lambda x, y: lesson10.tau(x.copy(), y.copy()))
    assert copied.outcome is Outcome.CORRECT
    wrong = code_grading.grade_code(lesson10.TAU, lambda x, y: lesson10.tau(x, y) + 0.1 * (len(x) == 4))
    assert wrong.outcome is Outcome.WRONG
    assert "<tuple>" not in str(wrong)
