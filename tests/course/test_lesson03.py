"""Exercises of lesson 03: right answers in several ways, and wrong ones as learners write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from course import code_grading, notebooks
from course.grading import Outcome, grade_question
from course.lessons import lesson03
from course.specs import CodeSpec
from kdlib import study, verdict

SIMILARITY, NEAREST, ENTROPY = lesson03.SIMILARITY, lesson03.NEAREST, lesson03.ENTROPY


def with_a_loop(p: Tensor, y: Tensor) -> Tensor:
    total, count = torch.zeros(p.shape[1], p.shape[1]), torch.zeros(p.shape[1])
    for row, label in zip(p, y, strict=True):
        total[label] += row
        count[label] += 1
    return total / count[:, None]


def by_sorting(p: Tensor, y: Tensor) -> Tensor:
    best = p.argsort(dim=1, descending=True)
    return torch.where(best[:, 0] == y, best[:, 1], best[:, 0])


def by_masking(p: Tensor, y: Tensor) -> Tensor:
    return p.masked_fill(F.one_hot(y, p.shape[1]).bool(), -torch.inf).argmax(dim=1)


def by_loop(p: Tensor) -> Tensor:
    return torch.stack([-sum((q * q.log() for q in row if q > 0), torch.tensor(0.0)) for row in p])


RIGHT: list[tuple[CodeSpec, Callable[..., Any]]] = [
    (SIMILARITY, with_a_loop),
    (SIMILARITY, lambda p, y: (F.one_hot(y).float().T @ p) / torch.bincount(y)[:, None]),
    (SIMILARITY, lambda p, y: torch.stack([(p * (y == c)[:, None]).sum(0) / (y == c).sum() for c in y.unique()])),
    (NEAREST, by_sorting),
    (NEAREST, by_masking),
    (NEAREST, lambda p, y: (p - 2 * F.one_hot(y, p.shape[1])).argmax(-1)),
    (ENTROPY, by_loop),
    (ENTROPY, lambda p: torch.special.entr(p).sum(dim=1)),
    (ENTROPY, lambda p: -(p * p.clamp_min(1e-30).log()).sum(dim=-1)),
    (ENTROPY, lambda p: torch.distributions.Categorical(p).entropy()),
]


@pytest.mark.parametrize(("spec", "answer"), RIGHT)
def test_right_answers_pass(spec: CodeSpec, answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(spec, answer)
    assert found.outcome is Outcome.CORRECT, found


def rows_named(p: Tensor, y: Tensor) -> Tensor:
    others = p.clone()
    others[y] = 0
    return others.argmax(dim=1)


def zeroed(p: Tensor, y: Tensor) -> Tensor:
    others = p.clone()
    others[torch.arange(len(y)), y] = 0
    return others.argmax(dim=1)


def columns_named(p: Tensor, y: Tensor) -> Tensor:
    p = p.clone()
    p[:, y] = -1
    return p.argmax(1)


def with_max(p: Tensor, y: Tensor) -> Any:
    p = p.clone()
    p[range(len(y)), y] = -1
    return p.max(dim=1)


WRONG: list[tuple[CodeSpec, Callable[..., Any], str]] = [
    (SIMILARITY, lambda p, y: F.one_hot(y).T @ p / torch.bincount(y)[:, None], ".float()"),
    (SIMILARITY, lambda p, y: F.one_hot(y).float().T @ p, "larger numbers. Take the mean"),
    (SIMILARITY, lambda p, y: F.one_hot(y).float().T @ p / len(p), "number of all images"),
    (SIMILARITY, lambda p, y: torch.stack([p[y == c].mean(0) for c in range(p.shape[1])], dim=1), "exchanged"),
    (SIMILARITY, lambda p, y: torch.stack([p[p.argmax(1) == c].mean(0) for c in range(p.shape[1])]), "true class"),
    (SIMILARITY, lambda p, y: torch.stack([p[y == c].mean() for c in range(p.shape[1])]), "dim=0"),
    (SIMILARITY, lambda p, y: torch.stack([p[y == c].mean(0, keepdim=True) for c in range(p.shape[1])]), "keepdim"),
    (SIMILARITY, lambda p, y: torch.stack([p[y == c].sum(0) for c in range(p.shape[1])]), "Take the mean"),
    (SIMILARITY, lambda p, y: [p[y == c].mean(0) for c in range(p.shape[1])], "torch.stack"),
    (SIMILARITY, lambda p, y: torch.stack([p[:, c].mean().expand(p.shape[1]) for c in range(p.shape[1])]), "column"),
    (SIMILARITY, lambda p, y: torch.stack([p[y[c]] for c in range(p.shape[1])]), "single rows by number"),
    (SIMILARITY, lambda p, y: torch.stack([p[y == 0].mean(0)] * p.shape[1]), "has to use c"),
    (NEAREST, lambda p, y: p.argsort(dim=1, descending=True)[:, 1], "second place"),
    (NEAREST, lambda p, y: p.argmax(dim=1), "first choice"),
    (NEAREST, columns_named, "whole columns"),
    (NEAREST, lambda p, y: lesson03._whole_rows(p, y), "whole rows"),
    (NEAREST, rows_named, ""),  # zeros in whole rows: no message names it, and it must not pass
    (NEAREST, zeroed, "completely sure"),
    (NEAREST, with_max, ".values or .indices"),
    (NEAREST, lambda p, y: by_masking(p, y)[:, None], "leave out keepdim"),
    (NEAREST, lambda p, y: p.masked_fill(F.one_hot(y, p.shape[1]).bool(), -1).argmax(), "dim=1"),
    (
        NEAREST,
        lambda p, y: p.masked_fill(F.one_hot(y, p.shape[1]).bool(), -1).max(dim=1).values,
        "argmax instead of max",
    ),
    (NEAREST, lambda p, y: p.argmin(dim=1), "farthest"),
    (NEAREST, lambda p, y: (p * F.one_hot(y, p.shape[1])).argmax(dim=1), "other way round"),
    (ENTROPY, lambda p: -(p * p.log()).sum(dim=1), "NaN"),
    (ENTROPY, lambda p: (p * p.clamp_min(1e-30).log()).sum(dim=1), "sign"),
    (ENTROPY, lambda p: -(p * p.clamp_min(1e-30).log2()).sum(dim=1), "log2"),
    (ENTROPY, lambda p: torch.special.entr(p).mean(dim=1), "mean over the classes"),
    (ENTROPY, lambda p: torch.special.entr(p).sum(dim=0), "dimension 1"),
    (ENTROPY, lambda p: torch.special.entr(p).sum(), "dim=1"),
    (ENTROPY, lambda p: torch.special.entr(p).sum(dim=1, keepdim=True), "keepdim"),
    (ENTROPY, lambda p: torch.special.entr(p), "Add them up"),
    (ENTROPY, lambda p: -p.log().sum(dim=1), "weighted"),
    (ENTROPY, lambda p: torch.special.entr(p.softmax(dim=1)).sum(dim=1), "softmax of probabilities"),
    (ENTROPY, lambda p: torch.special.entr(p).sum(dim=1).exp(), "effective number"),
    (ENTROPY, lambda p: 1 - p.pow(2).sum(dim=1), "Gini"),
    (ENTROPY, lambda p: torch.special.entr(p).sum(dim=1).mean(), "own entropy"),
]


@pytest.mark.parametrize(("spec", "answer", "words"), WRONG)
def test_wrong_answers_are_refused_and_named(spec: CodeSpec, answer: Callable[..., Any], words: str) -> None:
    found = code_grading.grade_code(spec, answer)
    assert found.outcome in (Outcome.WRONG, Outcome.ERROR)
    assert words in " ".join(found.text.split()), found


def test_every_letter_of_the_question_on_the_controls() -> None:
    for letter in "abcd":
        outcome = grade_question(lesson03.MISSING, letter).outcome
        assert outcome is (Outcome.CORRECT if letter == "c" else Outcome.WRONG)


def test_the_nine_other_classes_gain_on_the_test_split(capsys: pytest.CaptureFixture[str]) -> None:
    """The settings were chosen on the validation split, so a gain there is flattered."""
    cells = notebooks.read(notebooks.find("03")).cells
    (source,) = [cell.source for cell in cells if cell.source.startswith('larger = study.results("missing-class"')]
    exec(source, {"study": study, "verdict": verdict, "missing": 0})
    title, *gains = capsys.readouterr().out.splitlines()[-4:]
    assert title == "Gain on the nine other classes (test split, points):"
    assert ["BEATS" in line and "one of 3" in line for line in gains] == [True] * 3
    assert [line.partition("BEATS: ")[2][:7] for line in gains] == ["+1.0956", "+0.9556", "+1.0667"]
