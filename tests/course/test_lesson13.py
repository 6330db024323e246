"""What the exercises and the text of lesson 13 state; see also test_lessons and test_search_replay."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

from course import code_grading, notebooks
from course.experiments import search_proxy, search_results
from course.grading import Outcome, grade_question
from course.lessons import lesson13
from kdlib.data import data_dir


def with_numpy(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
    first, second = promised.numpy(), kept.numpy()
    best = [order[np.argmax(first[order])] for order in orders.numpy()]
    return torch.tensor(np.mean(first[best] - second[best]))


def with_torch(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
    best = orders.gather(1, promised[orders].argmax(1, keepdim=True)).squeeze(1)
    return (promised[best] - kept[best]).mean()


def by_hand(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
    differences = []
    for order in orders:
        best = order[0]
        for trial in order:
            if promised[trial] > promised[best]:
                best = trial
        differences.append(promised[best] - kept[best])
    return sum(differences) / len(differences)


def by_sorting(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
    winners = [sorted(order, key=promised.__getitem__)[-1] for order in orders]
    return sum(promised[one] for one in winners) / len(orders) - sum(kept[one] for one in winners) / len(orders)


@pytest.mark.parametrize("answer", [with_numpy, with_torch, by_hand, by_sorting])
def test_right_answers_pass_however_they_are_written(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson13.FLATTERY, answer)
    assert found.outcome is Outcome.CORRECT, found


def one_number_for_each_search(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
    return [by_hand(promised, kept, [order]) for order in orders]


def what_was_promised(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
    return sum(max(promised[i] for i in order) for order in orders) / len(orders)


def the_luckiest_trial(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
    return sum(max(promised[i] - kept[i] for i in order) for order in orders) / len(orders)


OTHER_WRONG = (one_number_for_each_search, what_was_promised, the_luckiest_trial)


@pytest.mark.parametrize("answer", [*(one.function for one in lesson13.MISTAKES), *OTHER_WRONG])
def test_wrong_answers_do_not_pass(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson13.FLATTERY, lambda *arguments: answer(*arguments))
    assert found.outcome in (Outcome.WRONG, Outcome.ERROR)


def test_the_median_of_all_searches_is_not_called_the_first_one() -> None:
    def median(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
        return statistics.median(one_number_for_each_search(promised, kept, orders))

    def low_median(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
        return torch.tensor(one_number_for_each_search(promised, kept, orders)).median()

    for answer in (median, low_median):
        found = code_grading.grade_code(lesson13.FLATTERY, answer)
        assert found.outcome is Outcome.WRONG
        assert "first search" not in found.text, found


@pytest.mark.parametrize(
    ("difference", "letter"), [(0.9, "a"), (0.31, "a"), (0.2, "b"), (0.04, "c"), (0.0, "c"), (-0.02, "c"), (-0.3, "d")]
)
def test_the_prediction_is_judged_by_what_was_measured(difference: float, letter: str) -> None:
    for answer in "abcd":
        outcome = grade_question(lesson13.BETTER, answer, difference).outcome
        assert outcome is (Outcome.CORRECT if answer == letter else Outcome.WRONG)


@pytest.mark.parametrize("nonsense", [..., float("nan"), float("inf"), 200.0, "better"])
def test_what_is_no_difference_is_not_judged(nonsense: Any) -> None:
    assert grade_question(lesson13.BETTER, "c", nonsense).outcome is Outcome.ERROR


def test_the_cost_of_halving_is_counted() -> None:
    stages = [(27, 0, 1), (9, 1, 3), (3, 3, 9), (1, 9, 27)]
    spent = sum(trials * (end - start) for trials, start, end in stages)
    assert grade_question(lesson13.HALVING, spent).outcome is Outcome.CORRECT
    for wrong in (108, 729, 40, 63, 27, 82):
        assert grade_question(lesson13.HALVING, wrong).outcome is Outcome.WRONG


def test_the_question_on_the_figure_asks_for_the_comparator() -> None:
    outcomes = {letter: grade_question(lesson13.CONTROL, letter).outcome for letter in "abcd"}
    assert [letter for letter, outcome in outcomes.items() if outcome is Outcome.CORRECT] == ["a"]


def lesson_code() -> list[str]:
    notebook = notebooks.read(notebooks.find("13"))
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_the_lesson_scores_relations_as_the_experiment_does() -> None:
    (source,) = [source for source in lesson_code() if source.startswith("def relation_score(")]
    namespace: dict[str, Any] = {"torch": torch}
    exec(source, namespace)
    chance = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(9, 4, 3, 3, generator=chance), torch.randn(9, 8, 3, 3, generator=chance)
    expected = search_proxy.relation_score(student, teacher)
    assert namespace["relation_score"](student, teacher) == pytest.approx(expected, rel=1e-5)


def test_what_the_lesson_says_of_stored_choices() -> None:
    choices = search_results.stored_choices()
    share, mean = (choices["excess"] > 0).mean(), choices["excess"].mean()
    said = f"{len(choices)} choices: {share:.0%} promised too much; the mean of all is {mean:+.2f} points"
    cells = notebooks.read(notebooks.find("13")).cells
    (cell,) = [cell for cell in cells if cell.cell_type == "code" and "stored_choices()" in cell.source]
    assert said in "".join(output.get("text", "") for output in cell.outputs)
    # More than chance would give if half of all choices promised too much.
    assert stats.binomtest(int((choices["excess"] > 0).sum()), len(choices), alternative="greater").pvalue < 0.05
    means = choices.groupby("study")["excess"].mean()
    assert (len(means), (means > 0).sum()) == (7, 6)
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    of_two = sum("2 tuning seeds" in tuned for tuned in _tuned_on(means.index))
    assert (of_two, "in four of these seven lists on two" in prose) == (4, True)


def _tuned_on(lists: Iterable[str]) -> list[str]:
    """How the settings of these lists were chosen, as their rows say it of logits."""
    folder = data_dir() / "results"
    tables = (pd.read_csv(folder / f"methods-{name}.csv") for name in lists)
    return [table.query("method == 'kd'")["tuned_on"].iloc[0] for table in tables]


@pytest.mark.parametrize("change", [float, np.float32, torch.tensor])
def test_a_number_is_right_in_any_form(change: Callable[[float], Any]) -> None:
    graded = code_grading.grade_code(lesson13.FLATTERY, lambda *given: change(lesson13.flattery(*given)))
    assert graded.outcome is Outcome.CORRECT


def test_the_lesson_says_where_tau_ends() -> None:
    text = "\n".join(cell.source for cell in notebooks.read(notebooks.find("13")).cells)
    assert "a complete order then gives $\\pm 0.85$; with three sharing a width $\\pm 0.93$" in text
    assert "-1 if one is the reverse of the other. (This is tau-b" in text
