"""What the exercises and the text of lesson 12 state, against the library; see also test_lessons."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import code_grading, notebooks
from course.grading import Outcome, grade_question
from course.lessons import lesson12
from kdlib.ensembles import ConfidenceEnsemble, confidence_weights
from kdlib.teachers import Ensemble


def random_logits(*shape: int) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_the_reference_is_the_librarys() -> None:
    logits, labels = random_logits(4, 6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    torch.testing.assert_close(lesson12.confidence(logits, labels), confidence_weights(logits, labels))


def stacked(logits: Tensor, labels: Tensor) -> Tensor:
    costs = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in logits])
    return (1 - torch.softmax(costs, 0)) / (logits.shape[0] - 1)


def in_a_loop(logits: Tensor, labels: Tensor) -> Tensor:
    count = len(logits)
    weights = torch.zeros(logits.shape[:2], dtype=logits.dtype)
    for sample, label in enumerate(labels):
        loss = -logits[:, sample].log_softmax(dim=1)[:, label]
        weights[:, sample] = (1 - loss.softmax(dim=0)) / (count - 1)
    return weights


def flattened(logits: Tensor, labels: Tensor) -> Tensor:
    teachers, samples, classes = logits.shape
    costs = F.cross_entropy(logits.reshape(-1, classes), labels.repeat(teachers), reduction="none")
    return (1 - costs.view(teachers, samples).softmax(0)) / (teachers - 1)


@pytest.mark.parametrize("answer", [stacked, in_a_loop, flattened, confidence_weights])
def test_other_right_answers_pass(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson12.CONFIDENCE, answer)
    assert found.outcome is Outcome.CORRECT, found


def without_log_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    shares = logits.exp() / logits.exp().sum(dim=2, keepdim=True)
    loss = -shares[:, torch.arange(len(labels)), labels].log()
    return (1 - loss.softmax(dim=0)) / (len(logits) - 1)


def equal(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.full(logits.shape[:2], 1 / len(logits), dtype=logits.dtype)


@pytest.mark.parametrize("answer", [without_log_softmax, equal, lambda logits, labels: stacked(logits, labels).T])
def test_other_wrong_answers_do_not(answer: Callable[..., Any]) -> None:
    assert code_grading.grade_code(lesson12.CONFIDENCE, answer).outcome is not Outcome.CORRECT


def softmax_by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    loss = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in logits])
    return (1 - loss.exp() / loss.exp().sum(dim=0)) / (len(logits) - 1)


@pytest.mark.parametrize("answer", [softmax_by_hand, without_log_softmax])
def test_large_logits_are_asked_for_and_the_cause_is_named(answer: Callable[..., Any]) -> None:
    assert "large logits" in lesson12.CONFIDENCE.question
    found = code_grading.grade_code(lesson12.CONFIDENCE, answer)
    assert found.outcome is Outcome.WRONG
    text = " ".join(found.text.split())
    assert "cross_entropy" in text
    assert "softmax(dim=0)" in text


@pytest.mark.parametrize("mistake", lesson12.CONFIDENCE.mistakes, ids=lambda one: one.name)
def test_each_known_mistake_is_named(mistake: Any) -> None:
    found = code_grading.grade_code(lesson12.CONFIDENCE, mistake.function)
    assert found.outcome is Outcome.WRONG
    assert mistake.message in " ".join(str(found).split())


@pytest.mark.parametrize(
    ("points", "letter"),
    [
        (-20, "a"),
        (-5, "a"),
        (-2, "b"),
        (-0.5, "c"),
        (0, "c"),
        (0.5, "c"),
        (0.6, "d"),
        (3.0, "d"),
        (torch.tensor(1.0), "d"),
    ],
)
def test_the_prediction_is_judged_by_what_was_measured(points: Any, letter: str) -> None:
    for answer in "abcd":
        outcome = grade_question(lesson12.BAD, answer, points).outcome
        assert outcome is (Outcome.CORRECT if answer == letter else Outcome.WRONG)


@pytest.mark.parametrize("nonsense", [..., float("nan"), 250.0, "better"])
def test_what_is_no_difference_is_not_judged(nonsense: Any) -> None:
    assert grade_question(lesson12.BAD, "c", nonsense).outcome is Outcome.ERROR


class Given(nn.Module):
    def __init__(self, shirt: float) -> None:
        super().__init__()
        self.logits = torch.tensor([[shirt, 1 - shirt]]).log()

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


def test_the_numbers_of_the_vote_are_those_of_the_library() -> None:
    said = {
        mean: Ensemble([Given(one) for one in (0.9, 0.4, 0.45)], mean=mean)(torch.zeros(1)).softmax(dim=1)[0, 0].item()
        for mean in ("arithmetic", "geometric", "vote")
    }
    assert lesson12.COUNTED.answer_key.value == pytest.approx(said["arithmetic"])
    mistakes = [value for value, _ in lesson12.COUNTED.answer_key.mistakes]
    assert said["vote"] == pytest.approx(mistakes[0], abs=1e-4)
    assert said["geometric"] == pytest.approx(mistakes[2], abs=1e-3)
    assert said["geometric"] / (1 - said["geometric"]) == pytest.approx(1.7, abs=0.01)
    assert math.prod((0.9, 0.4, 0.45)) ** (1 / 3) == pytest.approx(mistakes[5], abs=1e-3)
    assert grade_question(lesson12.COUNTED, 0.583).outcome is Outcome.CORRECT
    for wrong in (*mistakes, 0.5, 0.6):
        assert grade_question(lesson12.COUNTED, wrong).outcome is Outcome.WRONG


def lesson_code() -> list[str]:
    notebook = notebooks.read(notebooks.find("12"))
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def defined(name: str) -> Callable[..., Any]:
    (source,) = [source for source in lesson_code() if f"def {name}(" in source and "..." not in source]
    namespace: dict[str, Any] = {"F": F, "torch": torch, "nn": nn}
    exec(source[source.index(f"def {name}(") :].split("\n\n\n")[0], namespace)
    return namespace[name]


def test_the_three_rules_of_the_lesson_are_the_librarys() -> None:
    logits = random_logits(3, 6, 4)
    networks = [Fixed(one) for one in logits]
    for name, mean in {"of_probabilities": "arithmetic", "of_logits": "geometric", "of_votes": "vote"}.items():
        expected = Ensemble(networks, mean=mean)(logits).softmax(dim=1)
        torch.testing.assert_close(defined(name)(logits), expected, atol=1e-5, rtol=1e-5)


class Fixed(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


def test_what_the_lesson_says_of_confidence() -> None:
    logits, labels = random_logits(3, 50, 4), torch.arange(50) % 4
    weights = ConfidenceEnsemble([Fixed(one) for one in logits]).weights_of((logits, labels))
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(50))
    assert weights.max() <= 0.5


def test_the_matrices_exercise_rests_on_this() -> None:
    """Members that agree on everything gain nothing by a mean, whatever their quality."""
    one = random_logits(20, 5)
    together = Ensemble([Fixed(one), Fixed(one), Fixed(one)])(one)
    assert torch.equal(together.argmax(dim=1), one.argmax(dim=1))
