"""What the exercises of lesson 17 state, against the library and other right answers; see also test_lessons."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lesson_rules import Lesson
from torch import Tensor

from course import code_grading, notebooks
from course.experiments import language as experiment
from course.experiments import language_results, sentence_results, sentences
from course.grading import Outcome, grade_question
from course.lessons import lesson17
from kdlib import losses
from kdlib.data import data_dir
from kdlib.distiller import Distiller
from kdlib.methods import Logit
from kdlib.study.runs_file import read_rows
from kdlib.verdict import Verdict


def by_kdlib(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    counts = labels != -100
    return losses.kd(s[counts], t[counts], 1.0)


def by_hand(s: Tensor, t: Tensor, labels: Tensor, of_softmax: bool = False) -> Tensor:
    total, tokens = s.new_zeros(()), 0
    for row in range(len(labels)):
        for place in range(labels.shape[1]):
            if labels[row, place] != -100:
                p, q = (one[row, place].log_softmax(0) for one in (t, s))
                if of_softmax:
                    p, q = (one[row, place].softmax(0).log() for one in (t, s))
                total, tokens = total + (p.exp() * (p - q)).sum(), tokens + 1
    return total / tokens


def by_torch(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    mask = labels.ne(-100)
    each = F.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    return (each * mask).sum() / mask.sum()


@pytest.mark.parametrize("answer", [by_kdlib, by_hand, by_torch])
def test_other_right_answers_pass(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson17.LOSS, answer)
    assert found.outcome is Outcome.CORRECT, found


def test_a_logarithm_of_a_softmax_is_refused_for_a_student_that_is_sure_and_wrong() -> None:
    found = code_grading.grade_code(lesson17.LOSS, partial(by_hand, of_softmax=True))
    assert found.outcome is Outcome.WRONG
    assert "log_softmax" in found.text


def test_eight_wrong_answers_are_told_apart() -> None:
    names = [mistake.name for mistake in lesson17.LOSS.mistakes]
    assert len(set(names)) == len(names) == 8
    for mistake in lesson17.LOSS.mistakes:
        found = code_grading.grade_code(lesson17.LOSS, mistake.function)
        assert found.outcome is Outcome.WRONG, mistake.name
        assert mistake.message[:30] in " ".join(str(found).split()), mistake.name


def test_the_solution_is_the_loss_of_the_experiment_and_of_kdlibs_loop() -> None:
    s, t, labels = (part.float() if part.is_floating_point() else part for part in lesson17._cases()[1].arguments)
    value = lesson17.token_kl(s, t, labels)
    torch.testing.assert_close(experiment.forward_kl(s, t, labels), value)
    torch.testing.assert_close(experiment.reverse_kl(s, t, labels), lesson17.token_kl(t, s, labels))
    answers = {True: s, False: t}
    networks = {}
    for key, logits in answers.items():
        networks[key] = torch.nn.Linear(1, 1)
        networks[key].forward = lambda _, logits=logits: logits  # type: ignore[method-assign, misc]
    distiller = Distiller(networks[True], networks[False], Logit(1.0, alpha=0.0), task="token-classification")
    torch.testing.assert_close(distiller({"inputs": torch.zeros(1), "labels": labels}).total, value)


@pytest.mark.parametrize(("nats", "letter"), [(-2.0, "a"), (-0.51, "a"), (-0.5, "b"), (0.5, "b"), (0.51, "c")])
def test_the_prediction_is_judged_by_what_was_measured(nats: float, letter: str) -> None:
    for answer in "abc":
        outcome = grade_question(lesson17.SEEKS, answer, nats).outcome
        assert outcome is (Outcome.CORRECT if answer == letter else Outcome.WRONG)


@pytest.mark.parametrize("nonsense", [..., 101.0, float("nan"), float("inf"), "fewer"])
def test_what_is_no_difference_is_not_judged(nonsense: Any) -> None:
    assert grade_question(lesson17.SEEKS, "a", nonsense).outcome is Outcome.ERROR


@pytest.mark.parametrize("spec", [lesson17.LETTERS, lesson17.CONFIG], ids=["letters", "config"])
def test_one_option_is_right_and_not_the_longest(spec: Any) -> None:
    right = spec.answer_key.correct_letter()
    for letter in "abcd":
        found = grade_question(spec, letter)
        assert found.outcome is (Outcome.CORRECT if letter == right else Outcome.WRONG)
    texts = [option.text for option in spec.answer_key.options if not option.correct]
    correct = next(option.text for option in spec.answer_key.options if option.correct)
    assert len(correct) <= max(map(len, texts))


# --- the text, against the rows


@pytest.fixture(scope="module")
def prose() -> str:
    return " ".join("\n".join(Lesson.read(notebooks.find("17")).prose).split())


def test_the_numbers_of_the_text_are_those_of_the_rows(prose: str) -> None:
    rows = language_results.load()
    forward, own, best = (rows[way] for way in (experiment.FORWARD, experiment.FORWARD_OWN, experiment.REVERSE_OWN))
    on_own, on_teachers = ([one.after["forward", side][9] for one in (forward, own)] for side in ("own", "teacher"))
    gains = [
        -rows.answer(way, other, "reverse_kl").comparison.mean
        for way, other in ((experiment.FORWARD_OWN, experiment.FORWARD), (experiment.REVERSE_OWN, experiment.REVERSE))
    ]
    for text in (
        f"own names is: {best.mean('reverse_kl'):.2f}, where forward KL on real names has "
        f"{forward.mean('reverse_kl'):.2f}. By KL(T||S) the same student is last, with {best.mean('forward_kl'):.2f}.",
        f"by {gains[0]:.2f} nats with forward KL and by {gains[1]:.2f} with reverse KL on average",
        f"the divergence is {-forward.mean('forward_excess'):.0f} % lower there with forward KL on real names",
        f"falls from {on_own[0]:.2f} to {on_own[1]:.2f} nats after the student's own letters, and *rises* from "
        f"{on_teachers[0]:.2f} to {on_teachers[1]:.2f} after the teacher's",
        "(0.08 was best for the two ways with hard labels, 0.16 for the five others.",
    ):
        assert text in prose, text


def test_what_the_text_says_of_the_table_is_so(prose: str) -> None:
    rows = language_results.load()
    means = rows.table()
    best = {name: means[name].idxmin() for name in means}
    forward_kl = (experiment.FORWARD, experiment.FORWARD_TEACHERS)
    assert {best["test nats"], best["KL(T||S)"]} <= set(forward_kl)
    assert best["KL(S||T)"] == means["KL(T||S)"].idxmax() == experiment.REVERSE_OWN
    assert (means["KL(T||S) after own letters (%)"] < 0).all()
    assert (means["KL(S||T) after own letters (%)"] < 0).all()
    assert (means["distinct (%)"] > 99).all()
    for way, one in rows.ways.items():
        assert one.learning_rate == (0.08 if way in (experiment.HARD, experiment.SEQUENCE) else 0.16), way
    trials = read_rows(experiment.path_in(data_dir() / "results", trials=True))
    for way, one in rows.ways.items():
        nats = {float(row["learning_rate"]): float(row["validation_nats"]) for row in trials if row["way"] == way}
        assert min(nats[0.32], nats[0.64]) > nats[one.learning_rate] == min(nats.values()), way


def test_the_verdicts_of_the_text_are_those_of_the_rows() -> None:
    said = {
        (experiment.FORWARD, experiment.HARD, "test_nats"): Verdict.BEATS,
        (experiment.SEQUENCE, experiment.HARD, "test_nats"): Verdict.INCONCLUSIVE,
        (experiment.SEQUENCE, experiment.HARD, "forward_kl"): Verdict.INCONCLUSIVE,
        (experiment.FORWARD_TEACHERS, experiment.FORWARD, "forward_kl"): Verdict.INCONCLUSIVE,
        (experiment.REVERSE, experiment.FORWARD, "test_nats"): Verdict.LOSES,
        (experiment.REVERSE, experiment.FORWARD, "teacher_nats"): Verdict.BEATS,
        (experiment.FORWARD_OWN, experiment.FORWARD, "reverse_kl"): Verdict.INCONCLUSIVE,
        (experiment.REVERSE_OWN, experiment.REVERSE, "reverse_kl"): Verdict.INCONCLUSIVE,
        (experiment.FORWARD_OWN, experiment.FORWARD, "forward_excess"): Verdict.BEATS,
    }
    answers = language_results.load()
    assert {key: answers.answer(*key).comparison.verdict for key in said} == said
    gain = -answers.answer(experiment.FORWARD, experiment.HARD, "test_nats").comparison.mean
    assert gain == pytest.approx(0.2, abs=0.05)  # "a fifth of a nat"


def test_the_students_of_the_lesson_have_the_rates_of_the_rows() -> None:
    code = "\n".join(cell.source for cell in Lesson.read(notebooks.find("17")).code)
    rates = dict(re.findall(r'experiment\.fit\("([^"]+)", rate=([\d.]+)\)', code))
    assert len(rates) == 4
    assert all(float(rate) == language_results.load()[way].learning_rate for way, rate in rates.items())


# --- the tiny classifier


@pytest.mark.parametrize(
    ("share", "letter"), [(-0.1, "a"), (0.24, "a"), (0.25, "b"), (0.5, "b"), (0.51, "c"), (0.8, "c"), (1.2, "c")]
)
def test_the_second_prediction_is_judged_by_the_gap(share: float, letter: str) -> None:
    for answer in "abc":
        outcome = grade_question(lesson17.CLOSES, answer, share).outcome
        assert outcome is (Outcome.CORRECT if answer == letter else Outcome.WRONG)


@pytest.mark.parametrize("nonsense", [..., 28.3, float("nan"), float("inf"), "most"])
def test_what_is_no_share_of_a_gap_is_not_judged(nonsense: Any) -> None:
    assert grade_question(lesson17.CLOSES, "c", nonsense).outcome is Outcome.ERROR


def test_the_numbers_of_the_classifier_in_the_text_are_those_of_the_rows(prose: str) -> None:
    rows = sentence_results.load()
    gain = {key: rows.answer(*key).comparison.mean for key in sentence_results.QUESTIONS}
    soft = {budget: rows.get(sentences.SOFT, budget) for budget in sentences.BUDGETS}
    hard = rows.get(sentences.HARD, 10)
    assert soft[10].agreement is not None
    assert hard.agreement is not None
    for text in (
        f"BEAT the few labels by {gain[10, sentences.FEW]:.1f} points with 10 labels a kind, and by "
        f"{gain[50, sentences.FEW]:.1f} with 50. With 50 the student is {-gain[50, sentences.ALL]:.1f} points behind",
        f"LOSES to its teacher by {-gain[50, sentences.TEACHER]:.1f}.",
        f"Taught with all labels it has {rows.get(sentences.ALL).accuracy:.1f} %, less than the teacher's "
        f"{rows.get(sentences.TEACHER, 50).accuracy:.1f} % with 500",
        f"{gain[10, sentences.HARD]:.1f} points with 10 labels a kind, {gain[50, sentences.HARD]:.1f} with 50, both",
        f"({soft[10].agreement:.1f} % against {hard.agreement:.1f} % with 10 labels a kind)",
        f"with 500 labels {soft[50].accuracy:.1f} % in place of {rows.get(sentences.FEW, 50).accuracy:.1f} %",
    ):
        assert text in prose, text
    assert rows.get(sentences.SHUFFLED, 10).accuracy == pytest.approx(10, abs=0.5)
    costs = sentence_results.load_costs()
    assert 300 < costs["teacher"].parameters / costs["student"].parameters < 400  # "a three-hundredth"


def test_the_verdicts_on_the_classifier_are_those_of_the_rows() -> None:
    said = {
        sentences.FEW: Verdict.BEATS,
        sentences.HARD: Verdict.INCONCLUSIVE,
        sentences.SHUFFLED: Verdict.BEATS,
        sentences.TEACHER: Verdict.LOSES,
        sentences.ALL: Verdict.LOSES,
    }
    for answer in sentence_results.load().answers():
        assert answer.comparison.verdict is said[answer.other], answer


def test_the_classifiers_of_the_lesson_have_the_settings_of_the_rows(prose: str) -> None:
    code = "\n".join(cell.source for cell in Lesson.read(notebooks.find("17")).code)
    trials = read_rows(sentences.path_in(data_dir() / "results", trials=True))
    teacher, few, soft = (
        sentences.best(trials, way, 10, 0) for way in (sentences.TEACHER, sentences.FEW, sentences.SOFT)
    )
    assert few.smoothing == 0
    for text in (
        f"train.labels[chosen], decay={teacher.decay:g})",
        f"sentences.hard_loss(train.labels), rate={few.rate:g}, numbers=chosen",
        f"sentences.soft_loss(answers, temperature={soft.temperature:g}), rate={soft.rate:g})",
    ):
        assert text in code, text
    ends = {
        (way, budget): run
        for way, budget in sentences.arms()
        if (run := sentences.best(trials, way, budget, 0)).rate in (min(sentences.RATES), max(sentences.RATES))
        or run.smoothing == max(sentences.SMOOTHING)
        or run.temperature in (min(sentences.TEMPERATURES), max(sentences.TEMPERATURES))
    }
    assert set(ends) == {(sentences.FEW, 50), (sentences.ALL, sentences.EVERY)}
    assert "few labels the largest rate with 50 labels a kind, all labels the strongest smoothing" in prose
