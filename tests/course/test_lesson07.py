"""Lesson 07: its losses against their tested twins, what it states about CKA and information, and wrong answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from course import code_grading
from course.grading import Outcome, grade_question
from course.lessons import lesson07
from course.specs import CodeSpec
from kdlib import losses


@pytest.fixture(scope="module")
def lesson(functions_of: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return functions_of("07")


def layers(widths: tuple[int, ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sides = (8, 4, 2)
    maps = [torch.randn(6, c, s, s, generator=generator).double() for c, s in zip(widths, sides, strict=True)]
    return [one.relu().requires_grad_() for one in maps]


def test_the_losses_of_the_lesson_have_the_values_and_gradients_of_their_twins(lesson: dict[str, Any]) -> None:
    student, teacher = layers((3, 4, 5), 0), layers((3, 4, 5), 1)
    e, f = student[2].flatten(1), teacher[2].flatten(1)
    pairs = {
        "fsp": (lesson["fsp"](student[1:], teacher[1:]), losses.fsp(student[1:], teacher[1:])),
        "correlation": (
            lesson["layer_loss"](student, teacher, lesson["cka"]),
            losses.layer_correlation(student, teacher),
        ),
        "information": (
            lesson["layer_loss"](student, teacher, lesson["information"]),
            losses.layer_information(student, teacher),
        ),
        "rkd_distance": (lesson["rkd_distance"](e, f), losses.rkd_distance(e, f)),
        "rkd_angle": (lesson["rkd_angle"](e, f), losses.rkd_angle(e, f)),
        "similarity": (lesson["similarity"](student[2], teacher[2]), losses.similarity(student[2], teacher[2])),
    }
    for name, (mine, twin) in pairs.items():
        torch.testing.assert_close(mine, twin, msg=name, rtol=1e-6, atol=1e-9)
        slopes = [torch.autograd.grad(loss, student[2], retain_graph=True)[0] for loss in (mine, twin)]
        assert slopes[1].norm() > 0, name
        assert (slopes[0] - slopes[1]).norm() < 1e-6 * slopes[1].norm(), name


@pytest.mark.parametrize("count", [2, 7, 100])
def test_the_information_of_order_two_is_a_correlation_over_pairs(lesson: dict[str, Any], count: int) -> None:
    """I = log2 of E[kA^2 kB^2] / (E[kA^2] E[kB^2]), over all pairs, a picture's pair with itself included."""
    generator = torch.Generator().manual_seed(count)
    a, b = (torch.randn(count, width, generator=generator).double() for width in (3, 5))
    torch.testing.assert_close(lesson["information"](a, b), lesson["by_pairs"](a, b))
    torch.testing.assert_close(lesson["by_pairs"](a, b), losses.renyi_information(a, b))


def test_a_square_shares_bits_with_its_root_and_no_cka(lesson: dict[str, Any]) -> None:
    x = torch.linspace(-1, 1, 100, dtype=torch.double)[:, None]
    assert abs(losses.linear_cka(x, x**2).item()) < 1e-9
    assert losses.renyi_information(x, x**2).item() == pytest.approx(0.43, abs=0.01)
    mixed = (x**2)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert losses.renyi_information(x, mixed).item() < 0.1


# Wrong answers, beyond the list in the exercise, which test_lessons tries: (answer, part of the message).

N = F.normalize
WRONG: list[tuple[CodeSpec, Callable[..., Any], str]] = [
    (lesson07.FSP, lambda a, b: a.flatten(2) @ b.flatten(2).mT, "added up over the positions"),
    (lesson07.FSP, lambda a, b: (b.flatten(2) @ a.flatten(2).mT) / a[0, 0].numel(), "layers are exchanged"),
    (lesson07.FSP, lambda a, b: torch.einsum("bihw,bjhw->ij", a, b) / a[0, 0].numel() / len(a), "averaged over the im"),
    (lesson07.FSP, lambda a, b: torch.einsum("bihw,bjhw->bij", a, b) / a.shape[1], "number of channels"),
    (lesson07.FSP, lambda a, b: torch.einsum("bihw,bjhw->bij", a, b) / a.shape[-1], "width only"),
    (lesson07.FSP, lambda a, b: N(a.flatten(2), dim=-1) @ N(b.flatten(2), dim=-1).mT, "these are cosines"),
    (lesson07.FSP, lambda a, b: torch.einsum("bi,bj->bij", a.mean((2, 3)), b.mean((2, 3))), "averaged each channel fi"),
    (lesson07.FSP, lambda a, b: a.flatten(2) @ b.flatten(2), "shapes"),
    (lesson07.CKA, lambda a, b: F.cosine_similarity(a.flatten(), b.flatten(), dim=0), "not centred"),
    (lesson07.CKA, lambda a, b: cosine(*(x - x.mean(1) - x.mean(0) + x.mean() for x in (a, b))), "[:, None]"),
    (lesson07.CKA, lambda a, b: torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1], "one mean for all"),
    (lesson07.CKA, lambda a, b: cosine(a - a.mean(1)[:, None], b - b.mean(1)[:, None]), "one side only"),
    (lesson07.CKA, lambda a, b: cosine(*(centred(x) - x.mean() for x in (a, b))), "taken off twice"),
    (lesson07.CKA, lambda a, b: cosine(*(centred(x) - 2 * x.mean() for x in (a, b))), "sign of the last mean"),
    (lesson07.CKA, lambda a, b: cosine(*(centred(x).fill_diagonal_(0) for x in (a, b))), "diagonal to zero"),
    (lesson07.CKA, lambda a, b: cosine(*(centred(x.fill_diagonal_(0)) for x in (a, b))), "before centring"),
    (lesson07.CKA, lambda a, b: torch.trace(centred(a) @ centred(b)), "divides it by both norms"),
    (lesson07.CKA, lambda a, b: F.cosine_similarity(centred(a), centred(b)), "a cosine for each picture"),
    (lesson07.CKA, lambda a, b: F.cosine_similarity(centred(a), centred(b), dim=0).mean(), "a cosine for each row"),
    (lesson07.CKA, lambda a, b: 1 - cosine(centred(a), centred(b)), "this is a distance"),
    (lesson07.CKA, lambda a, b: cosine(centred(a), centred(b)) ** 2, "squared the cosine"),
    (lesson07.CKA, lambda a, b: cosine(centred(a), centred(b)) ** -1, "upside down"),
    (lesson07.CKA, lambda a, b: cosine(centred(a), centred(b)).item(), "Leave out .item()"),
]


def centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=0) - x.mean(dim=1)[:, None] + x.mean()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / a.square().sum().sqrt() / b.square().sum().sqrt()


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "answer", "part"), WRONG)
def test_a_wrong_answer_gets_the_message_that_names_the_mistake(
    spec: CodeSpec, answer: Callable[..., Any], part: str
) -> None:
    verdict = code_grading.grade_code(spec, answer)
    assert verdict.outcome in (Outcome.WRONG, Outcome.ERROR)
    assert part in " ".join(str(verdict).split()), verdict


RIGHT: list[tuple[CodeSpec, Callable[..., Any]]] = [
    (lesson07.FSP, lambda a, b: (a.flatten(2)[:, :, None] * b.flatten(2)[:, None]).mean(dim=-1)),
    (lesson07.FSP, lambda a, b: torch.bmm(a.flatten(2), b.flatten(2).permute(0, 2, 1)) / a[0, 0].numel()),
    (lesson07.CKA, lambda a, b: cosine(centred(a), centred(b))),
    (lesson07.CKA, lambda a, b: torch.trace(centred(a) @ centred(b)) / (centred(a).norm() * centred(b).norm())),
]


@pytest.mark.parametrize(("spec", "answer"), RIGHT)
def test_a_right_answer_written_in_another_way_passes(spec: CodeSpec, answer: Callable[..., Any]) -> None:
    assert code_grading.grade_code(spec, answer).outcome is Outcome.CORRECT


def test_the_right_option_is_not_the_longest() -> None:
    for spec in (lesson07.ROTATED, lesson07.BITS, lesson07.BLOCKS):
        options = spec.answer_key.by_letter
        right = options[spec.answer_key.correct_letter()]
        assert len(right.text) < max(len(option.text) for option in options.values()), spec.name
        for letter in options:
            outcome = grade_question(spec, letter).outcome
            assert (outcome is Outcome.CORRECT) == (letter == spec.answer_key.correct_letter())
