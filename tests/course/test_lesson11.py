"""What the exercises and the text of lesson 11 state, against the library; see also test_lessons."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from course import code_grading, notebooks, scratch
from course.grading import Outcome, grade_question
from course.lessons import lesson11
from kdlib import models
from kdlib.export import arena as memory
from kdlib.export import c_code, integer


def numbers(count: int, seed: int) -> Tensor:
    return 4 * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.5), (0.0, 6.0), (-0.01, 3.0), (-5.0, 0.0)])
def test_the_way_through_int8_is_that_of_the_c_files(low: float, high: float) -> None:
    values = numbers(200, 1)
    scale = (high - low) / 255
    twin = integer.Quantization(scale, round(-128 - low / scale))
    there_and_back = scale * (twin.quantize(values).double() - twin.zero)
    torch.testing.assert_close(lesson11.through_int8(values, low, high), there_and_back)
    inside = values.clamp(low + scale, high - scale)
    assert (lesson11.through_int8(inside, low, high) - inside).abs().max() <= scale / 2 + 1e-12
    assert lesson11.through_int8(torch.zeros(1), low, high).item() == 0


def with_torch(values: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-128 - low / scale), -128, 127)


def unsigned(values: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    zero = round(-low / scale)
    return scale * (torch.clamp(torch.round(values / scale) + zero, 0, 255) - zero)


def stored_in_bytes(values: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    zero = int(torch.tensor(-128 - low / scale).round())
    q = (torch.round(values / scale) + zero).clamp(-128, 127).to(torch.int8)
    return (q.float() - zero) * scale


def stored_without_room(values: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    zero = round(-128 - low / scale)
    q = (torch.round(values / scale) + zero).clamp(-128, 127).to(torch.int8)
    return (q - zero) * scale


def test_int8_that_wraps_around_is_named() -> None:
    found = code_grading.grade_code(lesson11.INT8, stored_without_room)
    assert (found.outcome, found.mistake) == (Outcome.WRONG, "int8 overflows")


@pytest.mark.parametrize("answer", [with_torch, unsigned, stored_in_bytes])
def test_other_right_answers_pass(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson11.INT8, answer)
    assert found.outcome is Outcome.CORRECT, found


@pytest.mark.parametrize(("whole", "words"), [(int, "cut off"), (math.floor, "cut off"), (math.ceil, "")])
def test_the_zero_point_is_the_nearest_whole_number(whole: Callable[[float], int], words: str) -> None:
    def answer(values: Tensor, low: float, high: float) -> Tensor:
        scale = (high - low) / 255
        zero = whole(-128 - low / scale)
        return scale * (((values / scale).round() + zero).clamp(-128, 127) - zero)

    found = code_grading.grade_code(lesson11.INT8, answer)
    assert found.outcome is Outcome.WRONG
    assert "clip" not in found.text  # it does
    assert words in found.text


def test_pythons_round_of_a_tensor_is_told_what_to_do() -> None:
    def answer(values: Tensor, low: float, high: float) -> Tensor:
        return round(values / ((high - low) / 255))  # type: ignore[call-overload]

    found = code_grading.grade_code(lesson11.INT8, answer)
    assert found.outcome is Outcome.ERROR
    assert "tensor.round()" in found.text


@pytest.mark.parametrize(
    ("ratio", "letter"), [(0.5, "a"), (0.8, "a"), (0.9, "b"), (1.0, "b"), (1.8, "c"), (2.2, "c"), (4.0, "d"), (9, "d")]
)
def test_the_prediction_is_judged_by_what_was_measured(ratio: float, letter: str) -> None:
    for answer in "abcd":
        outcome = grade_question(lesson11.FASTER, answer, ratio).outcome
        assert outcome is (Outcome.CORRECT if answer == letter else Outcome.WRONG)


@pytest.mark.parametrize("nonsense", [..., 0.0, -2.0, float("nan"), float("inf"), "fast"])
def test_what_is_no_ratio_is_not_judged(nonsense: Any) -> None:
    assert grade_question(lesson11.FASTER, "c", nonsense).outcome is Outcome.ERROR


def test_the_budget_is_what_is_left_of_a_picture() -> None:
    left = (1 / 10 - 0.020) * 120e6 / 1e6
    assert lesson11.BUDGET.answer_key.value == pytest.approx(left)
    assert grade_question(lesson11.BUDGET, 9.6).outcome is Outcome.CORRECT
    for wrong in (12, 2.4, 96, 9600, 9.6e6, 0.08, 4.0):
        assert grade_question(lesson11.BUDGET, wrong).outcome is Outcome.WRONG


def arena(model: nn.Module) -> int:
    network = integer.quantize(model.eval(), torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(2)))
    return memory.plan(c_code.lifetimes(network))[1]


@pytest.mark.slow
def test_what_lowers_the_ram_and_what_does_not() -> None:
    """What the question on the figure rests on."""
    shape = {"num_classes": 10, "in_channels": 1, "seed": 0}
    deep, shallow = (arena(models.build(name, **shape)) for name in ("resnet20", "resnet8"))
    assert deep == shallow
    assert deep == 3 * 16 * 28 * 28 + 16 * 9

    class Narrow(nn.Module):  # the first stage of a ResNet-8 with half its channels
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
            self.block = models.BasicBlock(8, 8, 1)
            self.rest = nn.Sequential(models.BasicBlock(8, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.last = nn.Linear(32, 10)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.rest(self.block(self.first(images))))

    assert arena(Narrow()) < 0.6 * deep


def lesson_code() -> list[str]:
    notebook = notebooks.read(notebooks.find("11"))
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_the_lesson_folds_batch_norm_as_torch_does() -> None:
    (source,) = [source for source in lesson_code() if source.startswith("def fold(")]
    namespace: dict[str, Any] = {"F": F, "torch": torch}
    exec(source, namespace)
    conv, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.uniform_(0.5, 2, generator=torch.Generator().manual_seed(4))
    weight, bias = namespace["fold"](conv, norm)
    expected = fuse_conv_bn_weights(
        conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    torch.testing.assert_close((weight, bias), tuple(one.detach() for one in expected))
    images = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(F.conv2d(images, weight, bias), norm(conv(images)).detach(), atol=1e-5, rtol=1e-5)


def test_what_a_lesson_writes_is_in_one_folder_of_its_own() -> None:
    folder = scratch.folder()
    assert folder.is_dir()
    assert scratch.folder() == folder
    assert Path.cwd() not in folder.parents
    (folder / "file.onnx").write_bytes(b"1")
    assert (scratch.folder() / "file.onnx").read_bytes() == b"1"


def test_a_large_difference_is_shown_in_numbers() -> None:
    def stored(values: Tensor, low: float, high: float) -> Tensor:
        scale = (high - low) / 255
        zero = round(-128 - low / scale)
        return scale * (((values / scale).round() + zero).clamp(-128, 127).to(torch.int8) - zero)

    graded = code_grading.grade_code(lesson11.INT8, stored)
    assert graded.outcome is Outcome.WRONG
    assert "yours is <" not in str(graded)
