"""What the exercises and the text of lesson 09 state, against the library and the rows; see also test_lessons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from course import code_grading, notebooks, planning
from course.experiments import kept_results
from course.grading import Outcome, grade_question
from course.lessons import lesson09
from kdlib import compare, measure, study, verdict
from kdlib.data import DataModule

# -------------------- McNemar's test


def rights(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator) < 0.8, torch.rand(count, generator=generator) < 0.7


@pytest.mark.parametrize("seed", range(4))
def test_the_solution_is_the_librarys_test(seed: int) -> None:
    first, second = rights(150, seed)
    assert lesson09.mcnemar(first, second) == pytest.approx(verdict.mcnemar(first.numpy(), second.numpy()).p)
    assert lesson09.mcnemar(first, second) == pytest.approx(lesson09.mcnemar(second, first))
    assert lesson09.mcnemar(first, first) == 1.0


def by_differences(first: Tensor, second: Tensor) -> float:
    difference = first.int() - second.int()
    tosses = int((difference != 0).sum())
    return float(stats.binomtest(int((difference == 1).sum()), tosses).pvalue) if tosses else 1.0


def by_hand(first: Tensor, second: Tensor) -> float:
    a, b = int((first > second).sum()), int((first < second).sum())
    tail = sum(stats.binom.pmf(k, a + b, 0.5) for k in range(min(a, b) + 1))
    return float(min(1.0, 2 * tail))


def with_numpy(first: Tensor, second: Tensor) -> Any:
    a, b = first.numpy(), second.numpy()
    table = np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]])
    tosses = int(table[0, 1] + table[1, 0])
    return np.float64(1.0) if tosses == 0 else stats.binomtest(int(table[0, 1]), tosses).pvalue


def of_the_other_one(first: Tensor, second: Tensor) -> Tensor:
    tosses = int((first ^ second).sum())
    won = int((second & ~first).sum())
    return torch.tensor(stats.binomtest(won, tosses, 0.5, "two-sided").pvalue if tosses else 1.0)


@pytest.mark.parametrize("answer", [by_differences, by_hand, with_numpy, of_the_other_one])
def test_other_right_answers_pass(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson09.MCNEMAR, answer)
    assert found.outcome is Outcome.CORRECT, found


def without_the_edge(first: Tensor, second: Tensor) -> float:
    a, b = int((first & ~second).sum()), int((second & ~first).sum())
    return float(stats.binomtest(a, a + b).pvalue)


def nan_at_the_edge(first: Tensor, second: Tensor) -> float:
    a, b = int((first & ~second).sum()), int((second & ~first).sum())
    return float(stats.binomtest(a, a + b).pvalue) if a + b else float("nan")


def half_the_tosses(first: Tensor, second: Tensor) -> float:
    a, b = int((first & ~second).sum()), int((second & ~first).sum())
    return float(stats.binomtest(a, a + b).pvalue) / 2 if a + b else 1.0


def the_difference(first: Tensor, second: Tensor) -> float:
    return float(first.double().mean() - second.double().mean())


def a_t_test(first: Tensor, second: Tensor) -> float:
    return float(stats.ttest_rel(first.double(), second.double()).pvalue)


@pytest.mark.parametrize("answer", [without_the_edge, nan_at_the_edge, half_the_tosses, the_difference, a_t_test])
def test_other_wrong_answers_do_not(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson09.MCNEMAR, answer)
    assert found.outcome in (Outcome.WRONG, Outcome.ERROR)


def test_who_forgets_the_edge_is_told_so() -> None:
    found = code_grading.grade_code(lesson09.MCNEMAR, nan_at_the_edge)
    assert "right on the same pictures" in found.text


def test_who_forgets_the_edge_alone_is_not_called_one_sided() -> None:
    """binomtest(0, 0) is the same in a test with two sides and in one with one: an error, or NaN since scipy 1.18."""
    found = code_grading.grade_code(lesson09.MCNEMAR, without_the_edge)
    assert found.outcome in (Outcome.ERROR, Outcome.WRONG)
    assert "binomtest has no answer: return 1" in found.text
    assert "one-sided" not in found.text


# -------------------- questions


@pytest.mark.parametrize(
    ("share", "letter"), [(0, "a"), (0.1, "a"), (0.2, "b"), (0.3, "b"), (0.4, "c"), (0.6, "c"), (0.7, "d"), (1.0, "d")]
)
def test_the_prediction_is_judged_by_what_was_counted(share: float, letter: str) -> None:
    for answer in "abcd":
        outcome = grade_question(lesson09.TWINS, answer, share).outcome
        assert outcome is (Outcome.CORRECT if answer == letter else Outcome.WRONG)


@pytest.mark.parametrize("nonsense", [..., -0.1, 7, float("nan"), "many", True])
def test_what_is_no_share_is_not_judged(nonsense: Any) -> None:
    assert grade_question(lesson09.TWINS, "b", nonsense).outcome is Outcome.ERROR


def test_more_pictures_help_where_more_seeds_do_not() -> None:
    plan = planning.Plan(spread=0.4, seeds=5, images=1_000)
    found = {
        "images": planning.smallest_gain(replace(plan, images=10_000)),
        "seeds": planning.smallest_gain(replace(plan, seeds=20)),
        "methods": planning.smallest_gain(replace(plan, methods=15)),
        "now": planning.smallest_gain(plan),
    }
    assert found["images"] == min(found.values())
    assert found["images"] < 0.8  # not far above half a point
    assert found["seeds"] > 0.8  # "still far above half a point"
    assert found["methods"] > found["now"]
    assert planning.smallest_gain(planning.Plan(spread=0.4, seeds=10)) <= 0.5  # "with a few seeds more"
    assert lesson09.REMEDY.answer_key.correct_letter() == "a"


@pytest.mark.slow
def test_a_temperature_moves_probabilities_and_no_answers() -> None:
    generator = torch.Generator().manual_seed(1)
    student = 3 * torch.randn(400, 10, generator=generator)
    teacher = student + 0.3 * torch.randn(400, 10, generator=generator)
    labels = torch.randint(10, (400,), generator=generator)
    hot = student / 2.5

    def divergence(logits: Tensor) -> float:
        return float(F.kl_div(logits.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean"))

    assert measure.accuracy(hot, labels) == measure.accuracy(student, labels)
    assert measure.agreement(hot, teacher) == measure.agreement(student, teacher)
    assert divergence(hot) > divergence(student)  # "it can even rise"
    assert measure.calibration_error(hot, labels) != measure.calibration_error(student, labels)
    assert lesson09.UNMOVED.answer_key.correct_letter() == "a"


# -------------------- what the text says of the stored runs


def lesson_code() -> list[str]:
    notebook = notebooks.read(notebooks.find("09"))
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def functions(name: str) -> dict[str, Any]:
    (source,) = [source for source in lesson_code() if f"def {name}(" in source]
    namespace: dict[str, Any] = {"np": np, "stats": stats, "combinations": combinations, "torch": torch}
    exec(source[source.index(f"def {name}(") :].split("\n\n\n")[0], namespace)
    return namespace


def test_the_lessons_power_is_that_of_its_simulations() -> None:
    power = functions("power")["power"]
    for seeds in (3, 5, 10):
        plan = planning.Plan(0.5, 0.4, seeds, 10**9)
        assert 100 * power(0.5, 0.4, seeds) == pytest.approx(planning.power(plan), abs=3.5)


def test_the_winners_curse_is_what_the_lesson_says() -> None:
    curse, results = functions("curse")["curse"], study.results("methods")
    groups = {
        "all": [name for name in results.methods if results.family(name) != "control"],
        "nothing": ["label-smoothing", "shuffled", "layer-correlation", "layer-information"],
    }
    assert len(groups["all"]) == 15
    for group in groups.values():
        gains = np.array([list(results.gain(name).by_seed.values()) for name in group])
        by_hand = []
        for seed in range(10):
            best = max(range(len(group)), key=lambda row: gains[row][seed])
            by_hand.append((gains[best][seed], np.mean([gains[best][other] for other in range(10) if other != seed])))
        assert curse(gains, 1) == pytest.approx(np.mean(by_hand, axis=0))
        lost = [np.subtract(*curse(gains, count)) for count in (1, 3, 5)]
        assert lost == sorted(lost, reverse=True)
        assert lost[-1] > 0
    for name in groups["nothing"]:
        assert results.gain(name).verdict == verdict.Verdict.INCONCLUSIVE


def test_two_methods_differ_in_single_seeds_and_not_over_ten() -> None:
    results = study.results("methods")
    dkd, dist = (results.right(name) for name in ("dkd", "dist"))
    for seed, ahead in ((1, 1), (5, -1)):
        assert ahead * (dkd[seed].mean() - dist[seed].mean()) > 0.004
        assert verdict.mcnemar(dkd[seed], dist[seed]).p < 0.05
    found = verdict.compare_samples(dkd, dist)
    assert found.verdict == verdict.Verdict.INCONCLUSIVE
    assert round(100 * abs(found.mean), 1) == 0.1


def test_one_comparison_and_one_of_seven_differ_for_label_smoothing() -> None:
    wide = study.results("methods", images=55_000)
    sides = [wide.score(name).by_seed for name in ("label-smoothing", "hard")]
    assert verdict.compare(*sides).verdict == verdict.Verdict.BEATS
    assert verdict.compare(*sides, comparisons=wide.comparisons).verdict == verdict.Verdict.INCONCLUSIVE


def test_most_methods_were_better_in_the_trials_that_chose_their_settings() -> None:
    results = study.results("methods")
    names = ("hard", *results.methods)
    lost = [kept_results.best_trial(name) - results.score(name, "validation_accuracy").mean for name in names]
    assert np.mean(np.array(lost) > 0) > 0.75
    assert np.mean(lost) > 0.001


def test_networks_of_one_method_differ_more_often_than_the_level_says() -> None:
    kept, tests = kept_results.load(), []
    for method in ("hard", "kd"):
        right = kept.right(method)
        tests += [verdict.mcnemar(right[a], right[b]).p for a, b in combinations(right, 2)]
    assert np.mean(np.array(tests) < 0.05) > 0.2  # the level promises one in twenty


def test_half_a_point_is_enough_for_mcnemar_and_many_pairs_of_seeds_are_that_far_apart() -> None:
    right = [one for method in ("hard", "kd") for one in kept_results.load().right(method).values()]
    for first, second in combinations(right, 2):
        if abs(first.mean() - second.mean()) >= 0.0051:
            assert verdict.mcnemar(first, second).p < 0.05
    for method in ("hard", "kd"):
        scores = study.results("methods").score(method).by_seed.values()
        assert sum(abs(a - b) >= 0.005 for a, b in combinations(scores, 2)) > 45 / 5


@pytest.mark.slow
def test_kdlib_compare_agrees_with_the_rows(fashion: DataModule) -> None:
    kept = kept_results.load()
    names = {"hard labels": "hard", "distilled": "kd"}
    networks = {title: {0: kept.model(name, 0)} for title, name in names.items()}
    report = compare.compare(networks, fashion, corruptions=False, precision="fp32", progress=False)
    found = report.each_run.set_index("network")
    for title, name in names.items():
        assert found.loc[title, "accuracy"] == pytest.approx(kept.values(name)[0], abs=1.5e-4)
        expected = kept.values(name, "calibration_error")[0]
        assert found.loc[title, "calibration error"] == pytest.approx(expected, abs=1e-3)
    test = verdict.mcnemar(kept.right("kd")[0], kept.right("hard")[0])
    pair = report.pairs.iloc[0]
    assert abs(pair["only_network"] - test.first_only) <= 2
    assert abs(pair["only_baseline"] - test.second_only) <= 2
