"""Lesson 06: its losses against their tested twins, and wrong answers to its exercises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import code_grading
from course.grading import Outcome, grade_question
from course.lessons import lesson06
from course.specs import CodeSpec
from kdlib import losses


@pytest.fixture(scope="module")
def lesson(functions_of: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return functions_of("06")


def maps(seed: int) -> Tensor:
    return torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(seed)).double().requires_grad_()


def test_the_losses_of_the_lesson_have_the_values_and_gradients_of_their_twins(lesson: dict[str, Any]) -> None:
    student, teacher, raw = maps(0), maps(1).detach(), torch.tensor([-1.0, 0.0, 1.0, 3.0]).double()
    lesson["project"] = projection = nn.Conv2d(4, 4, 1, bias=False).double()
    variance = F.softplus(raw)
    pairs = {
        "hint": (lesson["hint"](student, teacher), losses.hint(projection(student), teacher)),
        "attention": (lesson["attention"](student, teacher), losses.attention(student, teacher)),
        "vid": (lesson["vid"](student, variance, teacher), losses.vid(student, raw, teacher)),
    }
    for name, (mine, twin) in pairs.items():
        torch.testing.assert_close(mine, twin, msg=name, rtol=1e-4, atol=1e-9)  # the twin's variance has a floor
        slopes = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (mine, twin)]
        assert (slopes[0] - slopes[1]).norm() < 1e-4 * slopes[1].norm(), name


def test_vid_with_variances_of_one_is_half_a_hint(lesson: dict[str, Any]) -> None:
    student, teacher = maps(0), maps(1)
    torch.testing.assert_close(lesson["vid"](student, torch.ones(4), teacher), losses.hint(student, teacher) / 2)


# Wrong answers, beyond the lists in the exercises, which test_lessons tries: (answer, part of the message).


def energy(f: Tensor) -> Tensor:
    return f.pow(2).mean(1).flatten(1)


def error(p: Tensor, t: Tensor) -> Tensor:
    return ((t - p) ** 2).mean((0, 2, 3))


def loop(same: Callable[[Tensor, Tensor], Any]) -> Callable[[nn.Module, list[Tensor]], int]:
    """Counts the parameters for which nothing among the optimised ones is the same, as many learners write it."""

    def count(method: nn.Module, optimised: list[Tensor]) -> int:
        total = 0
        for parameter in method.parameters():
            if not any(same(parameter, other) for other in optimised):
                total += parameter.numel()
        return total

    return count


def with_in(method: nn.Module, optimised: list[Tensor]) -> int:
    total = 0
    for parameter in method.parameters():
        if parameter in optimised:
            continue
        total += parameter.numel()
    return total


WRONG: list[tuple[CodeSpec, Callable[..., Any], str]] = [
    (lesson06.ATTENTION, lambda f: f.pow(2).sum(1).flatten(1), "Divide each by its norm"),
    (lesson06.ATTENTION, lambda f: F.normalize(energy(f), p=1, dim=1), "sum to 1"),
    (lesson06.ATTENTION, lambda f: F.normalize(f.sum(1).flatten(1), dim=1), "positive and negative answers cancel"),
    (lesson06.ATTENTION, lambda f: F.normalize(f.abs().sum(1).flatten(1), dim=1), "absolute values"),
    (lesson06.ATTENTION, lambda f: F.normalize(f.sum(1).pow(2).flatten(1), dim=1), "Square first"),
    (lesson06.ATTENTION, lambda f: F.normalize(f.pow(2).mean((2, 3)), dim=1), "over the positions"),
    (lesson06.ATTENTION, lambda f: energy(f) / energy(f).norm(), "one norm of the whole batch"),
    (lesson06.ATTENTION, lambda f: energy(f) / energy(f).norm(dim=1), "keepdim=True"),
    (lesson06.ATTENTION, lambda f: energy(f) / energy(f).norm(dim=-1)[:, None], "0/0 is NaN"),
    (lesson06.ATTENTION, lambda f: F.normalize(energy(f), dim=1).view(len(f), *f.shape[2:]), "flatten(1)"),
    (lesson06.ATTENTION, lambda f: energy(f) / energy(f).max(dim=1, keepdim=True).values.clamp(min=1e-9), "largest"),
    (lesson06.ATTENTION, lambda f: energy(f) / energy(f).norm(dim=1)[:, None].clamp(min=0.1), "leaves the rows short"),
    (lesson06.ATTENTION, lambda f: energy(f) / energy(f).norm(dim=1)[:, None].clamp(min=0.01), "leaves the rows short"),
    (lesson06.VID, lambda p, t: 0.5 * (F.mse_loss(p, t).log() + 1), "Each channel has its own"),
    (lesson06.VID, lambda p, t: 0.5 * (((t - p) ** 2).mean((2, 3)).log() + 1).mean(), "over the pictures, too"),
    (lesson06.VID, lambda p, t: 0.5 * (((t - p) ** 2).mean(0).log() + 1).mean(), "over the positions, too"),
    (lesson06.VID, lambda p, t: 0.5 * (((t - p) ** 2).flatten(1).mean(1).log() + 1).mean(), "for each picture"),
    (lesson06.VID, lambda p, t: 0.5 * (error(p, t).sqrt().log() + 1).mean(), "standard deviation"),
    (lesson06.VID, lambda p, t: 0.5 * error(p, t).log().mean(), "e / e"),
    (lesson06.VID, lambda p, t: error(p, t).log().mean() + 1, "half is missing"),
    (lesson06.VID, lambda p, t: 0.5 * error(p, t).log().mean() + 1, "halved the logarithm alone"),
    (lesson06.VID, lambda p, t: 0.5 * (torch.log2(error(p, t)) + 1).mean(), "base 2"),
    (lesson06.VID, lambda p, t: 0.5 * (error(p, t) + 1).mean(), "without it this is a hint"),
    (lesson06.VID, lambda p, t: 0.5 * (error(p, t).log() + 1).sum(), "Take their mean"),
    (lesson06.VID, lambda p, t: 0.5 * (((t - p) ** 2).sum((0, 2, 3)).log() + 1).mean(), "best variance is the mean"),
    (lesson06.VID, lambda p, t: 0.5 * ((t - p).abs().mean((0, 2, 3)).log() + 1).mean(), "mean of squares"),
    (lesson06.VID, lambda p, t: 0.5 * ((t - p).var((0, 2, 3)).log() + 1).mean(), "constant error counts"),
    (lesson06.VID, lambda p, t: 0.5 * (1 - error(p, t).log()).mean(), "upside down"),
    (lesson06.VID, lambda p, t: 0.5 * (error(p, t).log() + 1), "number for each channel"),
    (lesson06.VID, lambda p, t: 0.5 * (error(p, t).log() + 1).mean().item(), "Leave out .item()"),
    (lesson06.FORGOTTEN, with_in, "compare with `is`, or by id()"),
    (lesson06.FORGOTTEN, loop(torch.equal), "You compared values"),
    (lesson06.FORGOTTEN, loop(lambda p, q: p.shape == q.shape), "You compared shapes"),
    (lesson06.FORGOTTEN, lambda m, o: sum(p.numel() for p in m.parameters()), "all parameters of the method"),
    (lesson06.FORGOTTEN, lambda m, o: sum(id(p) not in {id(q) for q in o} for p in m.parameters()), "counted tensors"),
    (lesson06.FORGOTTEN, lambda m, o: sum(p.numel() for p in m.parameters() if any(p is q for q in o)), "are trained"),
    (
        lesson06.FORGOTTEN,
        lambda m, o: sum(
            p.numel() for n, p in m.named_parameters() if "bias" not in n and id(p) not in set(map(id, o))
        ),
        "left out the biases",
    ),
    (lesson06.FORGOTTEN, lambda m, o: any(id(p) not in set(map(id, o)) for p in m.parameters()), "gives a bool"),
]


@pytest.mark.parametrize(("spec", "answer", "part"), WRONG)
def test_a_wrong_answer_gets_the_message_that_names_the_mistake(
    spec: CodeSpec, answer: Callable[..., Any], part: str
) -> None:
    verdict = code_grading.grade_code(spec, answer)
    assert verdict.outcome in (Outcome.WRONG, Outcome.ERROR)
    assert part in " ".join(str(verdict).split()), verdict


RIGHT: list[tuple[CodeSpec, Callable[..., Any]]] = [
    (lesson06.ATTENTION, lambda f: F.normalize(f.square().sum(1).flatten(1), dim=1)),
    (lesson06.ATTENTION, lambda f: energy(f) / energy(f).norm(dim=1)[:, None].clamp(min=1e-8)),
    (lesson06.VID, lambda p, t: (error(p, t).log() / 2 + 0.5).mean()),
    (lesson06.VID, lambda p, t: error(p, t).sqrt().log().mean() + 0.5),  # half a logarithm is that of the root
    (lesson06.FORGOTTEN, loop(lambda p, q: p is q)),
    (lesson06.FORGOTTEN, lambda m, o: sum(p.numel() for p in m.parameters() if id(p) not in [id(q) for q in o])),
    (
        lesson06.FORGOTTEN,
        lambda m, o: sum(p.numel() for p in set(m.parameters()) - set(o)),
    ),  # a tensor's hash is its id
]


@pytest.mark.parametrize(("spec", "answer"), RIGHT)
def test_a_right_answer_written_in_another_way_passes(spec: CodeSpec, answer: Callable[..., Any]) -> None:
    assert code_grading.grade_code(spec, answer).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    "answer",
    [
        lambda f: (energy(f) / energy(f).norm(dim=1, keepdim=True)).nan_to_num(0),
        lambda f: torch.where(energy(f).any(1, keepdim=True), energy(f) / energy(f).norm(dim=1, keepdim=True), 0.0),
        lambda f: energy(f) / energy(f).square().sum(1, keepdim=True).sqrt().clamp(min=1e-12),
    ],
)
def test_a_gradient_that_is_not_finite_is_refused_where_the_map_is_finite(answer: Callable[[Tensor], Tensor]) -> None:
    found = code_grading.grade_code(lesson06.ATTENTION, answer)
    assert (found.outcome, found.mistake) == (Outcome.WRONG, "gradient")
    text = " ".join(str(found).split())
    assert "a layer that answers an image with zeros only" in text
    assert "the gradient that features should receive is not" in text
    assert "length.clamp(min=1e-12)" in text


@pytest.mark.parametrize(
    "answer",
    [
        *(lambda f, small=small: energy(f) / (energy(f).norm(dim=1, keepdim=True) + small) for small in (1e-8, 1e-6)),
        lambda f: energy(f) / (energy(f).square().sum(1, keepdim=True) + 1e-12).sqrt(),
        lambda f: torch.stack([row / row.norm() if row.any() else row for row in energy(f)]),
    ],
)
def test_other_ways_to_keep_zeros_zero_pass(answer: Callable[[Tensor], Tensor]) -> None:
    assert code_grading.grade_code(lesson06.ATTENTION, answer).outcome is Outcome.CORRECT


def test_a_wrong_count_is_told_for_which_of_the_modules() -> None:
    counted_all = code_grading.grade_code(
        lesson06.FORGOTTEN, lambda m, o: lesson06.forgotten(m, o) or sum(p.numel() for p in m.parameters())
    )
    assert "the student's parameters and its own" in counted_all.text
    assert "param_groups" not in counted_all.text  # that is the example, which is right


def test_the_right_option_of_the_figure_is_not_the_longest() -> None:
    options = lesson06.SCALE.answer_key.by_letter
    right = lesson06.SCALE.answer_key.correct_letter()
    assert len(options[right].text) < max(len(option.text) for option in options.values())
    for letter in options:
        assert (grade_question(lesson06.SCALE, letter).outcome is Outcome.CORRECT) == (letter == right)
