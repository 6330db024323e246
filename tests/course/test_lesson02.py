"""Lesson 02's exercises: right answers written in several ways, wrong ones named, and what they state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from course import code_grading, exercises
from course.grading import Outcome, grade_question
from course.lessons import lesson02
from kdlib import compress, models


def by_loop(weight: Tensor, bits: int) -> Tensor:
    largest = 2 ** (bits - 1) - 1
    result = torch.zeros_like(weight)
    for number, one in enumerate(weight):
        step = one.abs().max() / largest
        if step > 0:
            result[number] = (one / step).round() * step
    return result


def by_numpy(weight: Tensor, bits: int) -> Tensor:
    rows = weight.numpy().reshape(len(weight), -1)
    step = np.maximum(np.abs(rows).max(1, keepdims=True) / (2 ** (bits - 1) - 1), 1e-30)
    return torch.from_numpy((np.rint(rows / step) * step).reshape(weight.shape))


def by_torch(weight: Tensor, bits: int) -> Tensor:
    n = 2 ** (bits - 1) - 1
    scale = (weight.flatten(1).norm(p=float("inf"), dim=1) / n).clamp(min=1e-12)
    zero = torch.zeros(len(weight), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -n, n)


def by_nan_to_num(weight: Tensor, bits: int) -> Tensor:
    axes = tuple(range(1, weight.ndim))
    step = weight.abs().amax(dim=axes, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.nan_to_num(torch.round(weight / step) * step)


@pytest.mark.parametrize("answer", [by_loop, by_numpy, by_torch, by_nan_to_num])
def test_rounding_may_be_written_in_many_ways(answer: Callable[..., Tensor]) -> None:
    assert code_grading.grade_code(lesson02.ROUND, answer).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("answer", "mistake"),
    [
        (lambda w, b: by_loop(w[None], b)[0], "one step for all filters"),
        (lambda w, b: by_torch(w, b + 1), "twice too many values"),
        (lambda w, b: by_loop(w, b) / w.flatten(1).abs().amax(1).reshape(-1, *[1] * (w.ndim - 1)), None),
    ],
)
def test_wrong_answers_in_other_forms_are_wrong_too(answer: Callable[..., Tensor], mistake: str | None) -> None:
    found = code_grading.grade_code(lesson02.ROUND, answer)
    assert found.outcome is Outcome.WRONG
    if mistake:
        assert found.mistake == mistake


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_solution_agrees_with_the_library(bits: int) -> None:
    network = models.build("resnet8", num_classes=10, in_channels=1, seed=0)
    weight = network.layer2[0].conv1.weight.detach()
    twin = compress.quantize_weights(network, bits).layer2[0].conv1.weight
    found = lesson02.round_weights(weight, bits)
    torch.testing.assert_close(found, twin)
    assert all(len(one.unique()) <= 2**bits - 1 for one in found)


def test_the_bytes_are_those_of_the_library() -> None:
    layer = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, bias=False))
    state = compress.pack_weights(layer, 2)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    whole = layer[0].weight.numel() * 4
    assert lesson02.BYTES.answer_key.value == pytest.approx(whole / size)
    assert grade_question(lesson02.BYTES, 14.4).outcome is Outcome.CORRECT
    assert "step" in grade_question(lesson02.BYTES, 16).text


@pytest.mark.parametrize(("gain", "letter"), [(3.2, "a"), (0.4, "b"), (-1.9, "b"), (-2.1, "c")])
def test_the_measurement_decides_the_prediction(gain: float, letter: str) -> None:
    for answer in "abc":
        found = grade_question(lesson02.SHORT, answer, gain)
        assert (found.outcome is Outcome.CORRECT) == (answer == letter)


@pytest.mark.parametrize("gain", [float("nan"), 300.0, "much"])
def test_what_is_no_gain_is_an_error(gain: object) -> None:
    assert grade_question(lesson02.SHORT, "a", gain).outcome is Outcome.ERROR


def test_a_limit_that_ruins_small_filters_is_refused() -> None:
    def limited(weight: Tensor, bits: int) -> Tensor:
        rows = weight.flatten(1)
        step = (rows.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp(min=1e-3)
        return ((rows / step).round() * step).reshape(weight.shape)

    found = exercises.load("02").round_weights.grade(limited)
    assert found.outcome is Outcome.WRONG
    assert "clamp(min=1e-12)" in str(found)
