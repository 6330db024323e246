"""What the exercises of lesson 10 accept and refuse; see also test_lessons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from course import article_claims, code_grading, notebooks, plots
from course.experiments import layer_trials, normalized_layers, teacher_results
from course.grading import Outcome, grade_question
from course.lessons import lesson10
from kdlib.data import data_dir
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


# --- features of one length


def trials(place: str, method: str) -> pd.Series:
    """The mean validation accuracy in per cent of each setting, from a file of trials."""
    rows = pd.read_csv(data_dir() / "results" / place).query("method == @method and tuned_on == 'trial'")
    return 100 * rows.groupby(["weight", "layers", "learning_rate", "weight_decay"])["validation_accuracy"].mean()


def test_the_same_settings_are_compared_with_and_without_normalised_features() -> None:
    expected = {}
    for title, teacher in layer_trials.TEACHERS.items():
        file = f"choose-resnet8-{teacher}-10000.csv"
        expected[title] = trials(file, "similarity")
        expected[f"{title}, normalised"] = trials(f"normalized/{file}", "similarity-normalized")
    common = pd.DataFrame(expected).dropna().droplevel([2, 3]).sort_index()
    found = normalized_layers.same_settings("similarity").set_index(["weight", "layers"]).sort_index()
    assert len(found) == 10
    pd.testing.assert_frame_equal(found, common)


def test_each_answer_is_the_mean_difference_of_the_two_lists() -> None:
    def accuracies(teacher: str, method: str) -> pd.Series:
        place = "normalized/" if method.endswith("-normalized") else ""
        rows = pd.read_csv(data_dir() / "results" / f"{place}methods-resnet8-{teacher}-10000.csv")
        return 100 * rows.query("method == @method").set_index("seed")["test_accuracy"]

    sides_of = {title: sides for title, *sides in normalized_layers.QUESTIONS}
    found = [one for method in normalized_layers.METHODS for one in normalized_layers.answers(method)]
    assert [(one.method, one.title) for one in found] == [
        (method, title) for method in normalized_layers.METHODS for title in sides_of
    ]
    for one in found:
        first, second = (
            accuracies(layer_trials.TEACHERS[teacher], one.method + "-normalized" * normalized)
            for teacher, normalized in sides_of[one.title]
        )
        difference = (first - second).dropna()
        assert (one.comparison.n, one.comparison.comparisons) == (5, 6) == (len(difference), 6)
        assert one.comparison.mean == pytest.approx(difference.mean(), abs=1e-6)


def test_what_the_lesson_says_of_layers_is_what_the_rows_say() -> None:
    cells = notebooks.read(notebooks.find("10")).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    lost = {method: article_claims.better_teacher(method) for method in ("kd", "vid", "similarity")}
    assert [str(one.verdict) for one in lost.values()] == ["INCONCLUSIVE", "LOSES", "LOSES"]
    assert f"by {-lost['vid'].mean:.1f} points with VID, by {-lost['similarity'].mean:.1f} with similarity" in prose
    for method, largest in {"vid": 4, "similarity": 40}.items():  # one of similarity's two runs learned nothing
        table = normalized_layers.same_settings(method)
        change = (table["ResNet-20, normalised"] - table["ResNet-20"]).abs().sort_values()
        assert change.iloc[-2] < 0.5
        assert change.iloc[-1] > largest
    table = normalized_layers.same_settings("similarity")
    assert f"down to {table['ResNet-50'].min():.0f} %" in prose
    assert table["ResNet-50, normalised"].min() > 88
    plain, comparator, both = (one.comparison for one in normalized_layers.answers("similarity"))
    vid, vid_comparator, vid_both = (one.comparison for one in normalized_layers.answers("vid"))
    assert [str(one.verdict) for one in (plain, comparator, both)] == ["INCONCLUSIVE", "LOSES", "INCONCLUSIVE"]
    assert [str(one.verdict) for one in (vid, vid_comparator, vid_both)] == ["BEATS", "INCONCLUSIVE", "LOSES"]
    assert f"gains {plain.mean:.2f} points by normalising, INCONCLUSIVE" in prose
    assert f"Its VID BEATS itself by {vid.mean:.2f}" in prose
    assert abs(vid_comparator.mean) < 0.05
    assert f"of VID's {-lost['vid'].mean:.1f} points" in prose
    assert f"still LOSES by {-vid_both.mean:.2f}" in prose
    assert f"of similarity's {-lost['similarity'].mean:.1f} points the {-both.mean:.2f} that are left" in prose
    assert -comparator.mean > plain.mean


@pytest.mark.parametrize(("baseline", "word"), [("hard", "BEATS"), ("label-smoothing", "INCONCLUSIVE")])
def test_features_of_one_length_beat_hard_labels_and_are_not_shown_to_beat_label_smoothing(
    baseline: str, word: str
) -> None:
    def accuracies(name: str, method: str) -> pd.Series:
        rows = pd.read_csv(data_dir() / "results" / name)
        return 100 * rows.query("method == @method").set_index("seed")["test_accuracy"]

    name = "methods-resnet8-resnet50-fashion-v2-10000.csv"
    cells = notebooks.read(notebooks.find("10")).cells
    shown = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    for one in normalized_layers.over(baseline):
        gain = (accuracies(f"normalized/{name}", f"{one.method}-normalized") - accuracies(name, baseline)).mean()
        assert one.comparison.mean == pytest.approx(gain, abs=1e-6)
        assert (one.comparison.n, one.comparison.comparisons, str(one.comparison.verdict)) == (5, 9, word)
        assert str(one) in shown
    with pytest.raises(ValueError, match="hints"):
        normalized_layers.over("hints")


def test_a_method_without_such_runs_is_named() -> None:
    with pytest.raises(ValueError, match="no method named 'hint'"):
        normalized_layers.same_settings("hint")


def test_the_figure_of_the_trials_draws_and_says_what_the_tables_hold() -> None:
    table = pd.DataFrame({"weight": [1.0, 10.0], "A": [80.0, 70.0], "A, normalised": [79.0, 90.0]})
    axes = plots.normalized_trials({"vid": table}).axes[0]
    plain, equal = (line.get_ydata().tolist() for line in axes.lines)
    assert (plain, equal) == ([80.0, 70.0], [79.0, 90.0])
    assert axes.get_title() == "VID, teacher: A"
    assert plots.normalized_trials_alt({"vid": table}).endswith(
        "VID, A: from 70.0 to 80.0 as they are, from 79.0 to 90.0 normalised, which is ahead in 1 of 2."
    )
