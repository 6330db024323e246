"""Lesson 01: wrong answers to its exercises, and what it states about depthwise convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from course import code_grading
from course.grading import Outcome, grade_question
from course.lessons import lesson01
from course.specs import CodeSpec
from kdlib import measure

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "int4": 0.5}


def rounded_up(parameters: int, precision: str) -> int:
    return parameters * max(int(BYTES[precision]), 1)


def two_of_three(parameters: int, precision: str) -> float:
    return parameters * {"fp32": 4, "fp16": 2, "bf16": 4, "int8": 1, "int4": 0.5}[precision]


# Wrong answers, beyond the lists in the exercises, which test_lessons tries: (answer, part of the message).
WRONG: list[tuple[CodeSpec, Callable[..., Any], str]] = [
    (lesson01.CONV_PARAMETERS, lambda k, i, o, b: k**2 * i * o, "the biases are missing"),
    (lesson01.CONV_PARAMETERS, lambda k, i, o, b: k**2 * i * o + o, "even where bias is False"),
    (lesson01.CONV_PARAMETERS, lambda k, i, o, b: k**2 * i * o + b, "each output channel has one"),
    (lesson01.CONV_PARAMETERS, lambda k, i, o, b: k**2 * i * o + (i if b else 0), "belongs to the output channels"),
    (lesson01.CONV_PARAMETERS, lambda k, i, o, b: k * i * o + (o if b else 0), "one side of it only"),
    (lesson01.CONV_PARAMETERS, lambda k, i, o, b: k**2 * o + (o if b else 0), "looks at all input channels"),
    (lesson01.CONV_PARAMETERS, lambda k, i, o, b: (k**2 * i + (i if b else 0)) * o, "for each pair of channels"),
    (lesson01.CONV_PARAMETERS, lambda k, i, o, b: k**2 * i + (o if b else 0), "a single output channel"),
    (lesson01.CONV_PARAMETERS, lambda k, i, o, b: 4_640, "for every input"),
    (lesson01.SIZE, lambda n, p: n * int(p[-2:]) if p[-1] != "8" and p != "int4" else n * int(p[-1]), "bits"),
    (lesson01.SIZE, lambda n, p: 4 * n, "fp32"),
    (lesson01.SIZE, rounded_up, "half a byte"),
    (lesson01.SIZE, lambda n, p: n * int(BYTES[p]), "0 in whole numbers"),
    (lesson01.SIZE, two_of_three, "bf16 has the range of fp32"),
    (lesson01.SIZE, lambda n, p: n * BYTES[p] / 1e6, "megabytes"),
    (lesson01.SIZE, lambda n, p: n * BYTES[p] / 1024**2, "mebibytes"),
    (lesson01.SIZE, lambda n, p: n / BYTES[p], "upside down"),
    (lesson01.SIZE, lambda n, p: 4 * n * 4 / BYTES[p], "upside down"),
    (lesson01.MACS, lambda k, i, o, h, w: k * k * i * o, "These are the weights"),
    (lesson01.MACS, lambda k, i, o, h, w: 2 * k * k * i * o * h * w, "FLOPs"),
    (lesson01.MACS, lambda k, i, o, h, w: k * k * o * h * w, "over all input channels"),
    (lesson01.MACS, lambda k, i, o, h, w: k * k * i * h * w, "as many maps as output channels"),
    (lesson01.MACS, lambda k, i, o, h, w: k * i * o * h * w, "one side of it only"),
    (lesson01.MACS, lambda k, i, o, h, w: k * k * i * o * h**2, "the height twice"),
    (lesson01.MACS, lambda k, i, o, h, w: k * k * i * o * h * w + o * h * w, "a bias is not counted"),
]


@pytest.mark.parametrize(("spec", "answer", "part"), WRONG)
def test_a_wrong_answer_gets_the_message_that_names_the_mistake(
    spec: CodeSpec, answer: Callable[..., Any], part: str
) -> None:
    verdict = code_grading.grade_code(spec, answer)
    assert verdict.outcome in (Outcome.WRONG, Outcome.ERROR)
    assert part in " ".join(str(verdict).split()), verdict


RIGHT: list[tuple[CodeSpec, Callable[..., Any]]] = [
    (lesson01.CONV_PARAMETERS, lambda k, i, o, b: (k * k * i + b) * o),
    (lesson01.SIZE, lambda n, p: n * BYTES[p]),
    (lesson01.SIZE, lambda n, p: n * int("".join(filter(str.isdigit, p.replace("bf", "")))) / 8),
    (lesson01.MACS, lambda k, i, o, h, w: lesson01.conv_parameters(k, i, o, False) * h * w),
]


@pytest.mark.parametrize(("spec", "answer"), RIGHT)
def test_a_right_answer_written_in_another_way_passes(spec: CodeSpec, answer: Callable[..., Any]) -> None:
    assert code_grading.grade_code(spec, answer).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("guess", "part"),
    [(50 / 18, "by the number of layers"), (1 / 2.19, "the other way round"), (0.36, "the other way round")],
)
def test_a_guess_of_the_resnets_that_follows_from_a_mistake_is_named(guess: float, part: str) -> None:
    verdict = grade_question(lesson01.RESNETS, guess, 2.186)
    assert verdict.outcome is Outcome.WRONG
    assert part in verdict.text


def test_the_right_option_about_latency_is_not_the_longest() -> None:
    options = lesson01.LATENCY.answer_key.by_letter
    right = lesson01.LATENCY.answer_key.correct_letter()
    assert len(options[right].text) < max(len(option.text) for option in options.values())
    for letter in options:
        assert (grade_question(lesson01.LATENCY, letter).outcome is Outcome.CORRECT) == (letter == right)


def test_a_depthwise_convolution_does_few_macs_for_each_number_that_it_moves() -> None:
    ordinary, depthwise = (nn.Conv2d(256, 256, 3, padding=1, groups=groups) for groups in (1, 256))
    macs = [measure.macs(layer, (256, 28, 28)) for layer in (ordinary, depthwise)]
    assert macs[0] == 256 * macs[1]
    moved = [2 * 256 * 28 * 28 + measure.count_parameters(layer) for layer in (ordinary, depthwise)]
    assert macs[0] / moved[0] > 400
    assert macs[1] / moved[1] < 5
