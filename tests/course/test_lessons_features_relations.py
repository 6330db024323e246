"""What the exercises of lessons 06 and 07 state, against the library and the shipped teacher; see also test_lessons."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from course import code_grading
from course.grading import Outcome, grade_question
from course.lessons import lesson06, lesson07
from course.specs import CodeSpec
from kdlib import data, losses, methods, models
from kdlib.hooks import FeatureExtractor, ModelOutput


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_solutions_agree_with_their_twins_in_the_library() -> None:
    a, b = maps(5, 4, 6, 6), maps(5, 3, 6, 6, seed=1)
    torch.testing.assert_close(lesson06.attention_map(a), losses.attention_map(a))
    torch.testing.assert_close(lesson07.fsp_matrix(a, b), losses.fsp_matrix(a, b))
    rows = [x.flatten(1) for x in (a, b)]
    torch.testing.assert_close(lesson07.cka_of_tables(*(x @ x.T for x in rows)), losses.linear_cka(*rows))


def double_centred(x: Tensor) -> Tensor:
    """By the matrix H = 1 - 1/B on both sides, flattened."""
    h = torch.eye(len(x)) - 1 / len(x)
    return (h @ x @ h).flatten()


ANSWERS: list[tuple[CodeSpec, Callable[..., Any]]] = [
    (lesson06.ATTENTION, lambda f: nn.functional.normalize(f.pow(2).sum(1).view(len(f), -1), dim=1)),
    (
        lesson06.VID,
        lambda p, t: 0.5 * nn.functional.mse_loss(p, t, reduction="none").mean((0, 2, 3)).log().mean() + 0.5,
    ),
    (
        lesson06.FORGOTTEN,
        lambda m, o: sum(p.numel() for p in m.parameters() if all(p is not q for q in o)),
    ),
    (lesson07.FSP, lambda a, b: torch.einsum("bihw,bjhw->bij", a, b) / (a.shape[2] * a.shape[3])),
    (lesson07.CKA, lambda a, b: nn.functional.cosine_similarity(double_centred(a), double_centred(b), dim=0)),
]


@pytest.mark.parametrize(("spec", "answer"), ANSWERS, ids=lambda one: getattr(one, "name", ""))
def test_other_right_answers_pass(spec: CodeSpec, answer: Callable[..., Any]) -> None:
    verdict = code_grading.grade_code(spec, answer)
    assert verdict.outcome is Outcome.CORRECT, verdict


@pytest.mark.parametrize("spec", [spec for spec, _ in ANSWERS], ids=lambda spec: spec.name)
def test_raising_missing_and_hollow_answers_are_told_apart(spec: CodeSpec) -> None:
    def raising(*_: Any) -> None:
        raise ZeroDivisionError("by hand")

    cases: list[tuple[Any, Outcome, str]] = [
        (..., Outcome.NOT_ATTEMPTED, "Write the function, then"),
        (None, Outcome.NOT_ATTEMPTED, "Write the function, then"),
        (raising, Outcome.ERROR, "by hand"),
        (3, Outcome.ERROR, "by its name and without brackets"),
        (lambda *arguments: print(arguments[0]), Outcome.WRONG, "return"),
        (lambda *arguments: "text", Outcome.WRONG, "gives a str"),
    ]
    for answer, outcome, text in cases:
        verdict = code_grading.grade_code(spec, answer)
        assert verdict.outcome is outcome
        assert text in verdict.text


@pytest.mark.parametrize(
    "spec", [lesson06.ATTENTION, lesson06.VID, lesson07.FSP, lesson07.CKA], ids=lambda spec: spec.name
)
def test_a_result_without_gradient_is_not_enough(spec: CodeSpec) -> None:
    verdict = code_grading.grade_code(spec, lambda *arguments: spec.reference(*arguments).detach())
    assert (verdict.outcome, verdict.mistake) == (Outcome.WRONG, "gradient")


def test_a_parameter_searched_with_in_is_an_error_that_is_named() -> None:
    def search(method: nn.Module, optimised: list[Tensor]) -> int:
        count = 0
        for parameter in method.parameters():
            if parameter not in optimised:
                count += parameter.numel()
        return count

    verdict = code_grading.grade_code(lesson06.FORGOTTEN, search)
    assert (verdict.outcome, verdict.mistake) == (Outcome.ERROR, "`in` compares values")
    assert "compare with `is`, or by id()" in verdict.text


def test_the_best_variance_of_vid_is_the_error_of_the_channel() -> None:
    predicted, teacher = maps(6, 4, 3, 3), maps(6, 4, 3, 3, seed=1) * torch.tensor([0.5, 1.0, 2.0, 4.0])[:, None, None]
    errors = (teacher - predicted).square().mean(dim=(0, 2, 3))
    raw = torch.expm1(errors).log().requires_grad_()  # softplus of it is the error
    loss = losses.vid(predicted, raw, teacher)
    torch.testing.assert_close(loss, lesson06.vid_best(predicted, teacher), rtol=1e-4, atol=0)
    loss.backward()
    torch.testing.assert_close(raw.grad, torch.zeros(4), rtol=0, atol=1e-5)  # no other variance is better nearby
    for factor in (0.7, 1.4):
        assert losses.vid(predicted, torch.expm1(factor * errors).log(), teacher) > loss


def test_forgotten_finds_what_a_loop_of_ones_own_leaves_out() -> None:
    student = nn.Conv2d(1, 4, 3)
    method = methods.Feature({"x": "y"}, loss="hint")
    method.setup(*(ModelOutput(torch.zeros(2, 2), {n: maps(2, c, 4, 4)}) for n, c in (("x", 4), ("y", 6))))
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    assert lesson06.forgotten(method, optimizer.param_groups[0]["params"]) == 24
    optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], 0.1)
    assert lesson06.forgotten(method, optimizer.param_groups[0]["params"]) == 0
    optimizer = torch.optim.SGD([*student.parameters(), *copy.deepcopy(method).parameters()], 0.1)
    assert lesson06.forgotten(method, optimizer.param_groups[0]["params"]) == 24


def test_the_prediction_of_the_fall_is_judged_by_what_was_measured() -> None:
    for ratio, letter in ((1.8, "b"), (1.0, "a"), (0.5, "c")):
        assert grade_question(lesson06.FALL, letter, ratio).outcome is Outcome.CORRECT
        assert grade_question(lesson06.FALL, "abc".replace(letter, "")[0], ratio).outcome is Outcome.WRONG
    assert grade_question(lesson06.FALL, "b", ...).outcome is Outcome.ERROR
    assert grade_question(lesson06.FALL, "b", "much").outcome is Outcome.ERROR


def test_a_forgotten_projection_holds_the_loss_up() -> None:
    """On maps that a student can learn: the same training, with and without the projection."""

    def last(forgotten: bool) -> float:
        torch.manual_seed(0)
        inputs, teacher = maps(64, 3, 4, 4), nn.Conv2d(3, 24, 1)
        student, projection = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 24, 1, bias=False)
        parts = [student] if forgotten else [student, projection]
        optimizer = torch.optim.SGD([p for part in parts for p in part.parameters()], 0.2, momentum=0.9)
        for _ in range(200):
            loss = losses.hint(projection(student(inputs)), teacher(inputs).detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    with torch.random.fork_rng(devices=[]):
        assert lesson06.FALL.answer_key.correct_letter(last(True) / last(False)) == "b"


def test_at_the_same_angle_the_attention_loss_is_sixteen_times_larger_at_a_sixteenth_of_the_positions() -> None:
    """loss = 2 (1 - cosine) / positions, and repeating each position four by four keeps the angle."""
    small = [maps(3, c, 7, 7, seed=c) for c in (4, 6)]
    large = [x.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3) for x in small]
    cosines = [(losses.attention_map(a) * losses.attention_map(b)).sum(dim=1) for a, b in (small, large)]
    torch.testing.assert_close(*cosines)
    found = losses.attention(*small)
    torch.testing.assert_close(found, (2 * (1 - cosines[0]) / 49).mean())
    torch.testing.assert_close(found, 16 * losses.attention(*large))
    assert lesson06.SCALE.answer_key.correct_letter() == "a"


def test_the_bits_of_two_tables_by_hand() -> None:
    groups = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
    a, b = ((one[:, None] == one).double() for one in groups)

    def bits(k: Tensor, other: Tensor) -> float:
        return torch.log2((k**2 * other**2).mean() / ((k**2).mean() * (other**2).mean())).item()

    options = lesson07.BITS.answer_key.by_letter
    right = options[lesson07.BITS.answer_key.correct_letter()]
    assert right.text == f"{bits(a, a):.0f} bit with itself, {bits(a, b):.0f} with B"
    assert lesson07.cka_of_tables(a, b).item() == pytest.approx(0)  # what its insight says
    outside = ~torch.eye(4, dtype=torch.bool)
    assert f"{bits(a[outside], a[outside]):.2f}" == "1.58"


def test_what_stays_when_features_are_rotated_and_scaled() -> None:
    layer, before = maps(6, 5, 3, 3), maps(6, 4, 3, 3, seed=1)
    rotation, _ = torch.linalg.qr(maps(5, 5, seed=2))
    turned = 3 * torch.einsum("dc,bchw->bdhw", rotation, layer)
    torch.testing.assert_close(losses.linear_cka(turned, before), losses.linear_cka(layer, before))
    zero = torch.tensor(0.0)
    for loss in (losses.similarity, losses.rkd_distance, losses.rkd_angle):
        torch.testing.assert_close(loss(turned, layer), zero, atol=1e-6, rtol=0)
    assert losses.fsp((before, turned), (before, layer)) > 0.1
    assert lesson07.ROTATED.answer_key.correct_letter() == "c"
    shifted = layer + 5
    torch.testing.assert_close(losses.linear_cka(shifted, before), losses.linear_cka(layer, before))
    torch.testing.assert_close(losses.rkd_distance(shifted, layer), zero, atol=1e-6, rtol=0)
    assert losses.similarity(shifted, layer) > 1e-3


def test_what_can_be_compared_without_a_projection() -> None:
    student, teacher = ([maps(6, c, 3, 3, seed=c + i) for i in (0, 1)] for c in (4, 16))
    for loss in (losses.layer_correlation, losses.layer_information):
        loss(student, teacher)
    for loss in (losses.similarity, losses.rkd_distance, losses.rkd_angle, losses.correlation_congruence):
        loss(student[0], teacher[0])
    with pytest.raises(ValueError, match="project"):
        losses.fsp(student, teacher)
    with pytest.raises(ValueError, match="project"):
        losses.hint(student[0], teacher[0])


def test_bright_squares_of_the_teachers_similarities(fashion: data.DataModule) -> None:
    labels, count = fashion.validation.labels, 10
    positions = torch.cat([(labels == c).nonzero()[:count, 0] for c in range(10)])
    split = fashion.validation.select(positions)
    with torch.no_grad(), FeatureExtractor(models.load("resnet20-fashion"), ["layer3"]) as extractor:
        answer = extractor(data.normalized_images(split))
    rows = answer.features["layer3"].flatten(1)
    matrix = nn.functional.normalize(rows @ rows.T, dim=1).reshape(10, count, 10, count).mean(dim=(1, 3))
    names = dict(zip(fashion.classes, range(10), strict=True))
    others = matrix[~torch.eye(10, dtype=torch.bool)].mean()
    for one, other in (("Sneaker", "Ankle boot"), ("Coat", "Pullover"), ("Coat", "Shirt")):
        a, b = names[one], names[other]
        assert (matrix[a, b] + matrix[b, a]) / 2 > 1.5 * others
        assert min(matrix[a, a], matrix[b, b]) > max(matrix[a, b], matrix[b, a])
        both = (split.labels == a) | (split.labels == b)
        assert (answer.logits.argmax(dim=1) == split.labels)[both].float().mean() > 0.7
    assert lesson07.BLOCKS.answer_key.correct_letter() == "d"
