"""check, hint and solution at the point of use: four outcomes, and nothing given away by accident."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from course import code_grading, exercises
from course.grading import Feedback, Outcome
from course.lessons import lesson01, lesson03, lesson04, lesson06, lesson07, lesson08
from course.specs import CodeSpec, MultipleChoice, Numeric

soften, soft_loss = lesson04.soften, lesson04.soft_loss


def grade(answer: Any, name: str = "soft_loss", lesson: str = "04") -> Feedback:
    return getattr(exercises.load(lesson), name).grade(answer)


def text_of(feedback: Feedback) -> str:
    return " ".join(str(feedback).split())


# What is asked.


def questions() -> list[Any]:
    """Every question with a few options and a known answer, of all lessons."""
    specs = [
        pytest.param(spec.answer_key, id=f"{number}-{spec.name}")
        for number in exercises.list_lessons()
        for spec in importlib.import_module(f"course.lessons.lesson{number}").EXERCISES.exercises
        if isinstance(getattr(spec, "answer_key", None), MultipleChoice) and spec.answer_key.from_measurement is None
    ]
    return [one for one in specs if one.id != "00-history"]  # its options are names of columns


@pytest.mark.parametrize("key", questions())
def test_the_right_option_is_not_the_longest(key: MultipleChoice) -> None:
    right = key.by_letter[key.correct_letter()]
    assert len(right.text) < max(len(option.text) for option in key.options)


def test_no_letter_is_right_much_more_often_than_the_others() -> None:
    found = Counter(one.values[0].correct_letter() for one in questions())
    assert max(found.values()) - min(found[letter] for letter in "abcd") <= 2, found


# Not attempted.


def not_implemented(*_: object) -> None:
    raise NotImplementedError


def dots(*_: object) -> object:
    loss = ...
    return loss  # noqa: RET504


@pytest.mark.parametrize("stub", [None, ..., not_implemented, dots, lambda *a: None])
def test_not_attempted_is_one_line_that_names_the_hint(stub: Any) -> None:
    feedback = grade(stub)
    assert feedback.outcome is Outcome.NOT_ATTEMPTED
    assert len(str(feedback).splitlines()) == 1
    assert ".hint()" in str(feedback)


@pytest.mark.slow
def test_a_notebook_that_nobody_filled_in(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> str:
        exercises._load.cache_clear()
        for number in exercises.list_lessons():
            q = exercises.load(number)
            print(q)
            for exercise in q:
                print(exercise)
                if exercise.kind == "prediction":
                    exercise.predict(...)
                    exercise.check(0.5)
                elif exercise.kind == "code":
                    namespace: dict[str, Any] = {}
                    exec(exercise.stub, namespace)
                    exercise.check(namespace[exercise.name])
                else:
                    exercise.check(...)
        exercises.progress()
        return capsys.readouterr().out

    text = run()
    assert text == run()
    every = [exercise for number in exercises.list_lessons() for exercise in exercises.load(number)]
    lines = [line for line in text.splitlines() if line.startswith("Not attempted yet. ")]
    assert len(lines) == sum(1 + (exercise.kind == "prediction") for exercise in every)
    assert all(len(line) <= 88 and line.endswith((".hint() helps.", "costs nothing.")) for line in lines)
    assert text.isascii()
    assert "0x" not in text


# Correct.


def kl_div_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    log_student = torch.log_softmax(student_logits / temperature, dim=1)
    teacher = torch.softmax(teacher_logits / temperature, dim=1)
    return torch.nn.functional.kl_div(log_student, teacher, reduction="batchmean") * temperature**2


class OnMps(Tensor):
    """Refuses float64, which MPS does not have, until it comes to the CPU.

    A class, as an answer is computed in a thread of its own, where the modes of `on_mps` and `second_device` are off.
    """

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.double or (function is Tensor.to and torch.float64 in args):
            raise TypeError("Cannot convert a MPS Tensor to float64")
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result.as_subclass(Tensor) if function is Tensor.cpu else result


def test_an_answer_may_compute_on_mps() -> None:
    def on_mps(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        return kl_div_loss(student_logits.float(), teacher_logits.float(), temperature).as_subclass(OnMps)

    assert grade(on_mps).outcome is Outcome.CORRECT
    assert grade(lambda *given: 2 * on_mps(*given)).outcome is Outcome.WRONG


def test_another_way_is_as_good() -> None:
    assert grade(kl_div_loss).outcome is Outcome.CORRECT
    assert grade(lambda z, t: torch.softmax(z / t, dim=-1), "soften").outcome is Outcome.CORRECT
    numbers = {
        "a 0-d tensor": lambda *a: torch.tensor(lesson01.conv_macs(*a)),
        "a float": lambda *a: float(lesson01.conv_macs(*a)),
        "NumPy": lambda *a: np.int64(lesson01.conv_macs(*a)),
    }
    for name, answer in numbers.items():
        assert grade(answer, "conv_macs", "01").outcome is Outcome.CORRECT, name


def test_a_function_that_changes_its_input_is_right_with_a_remark() -> None:
    def careless(probabilities: Tensor, labels: Tensor) -> Tensor:
        probabilities[torch.arange(len(labels)), labels] = -1.0
        return probabilities.argmax(dim=1)

    for _ in range(2):  # the first check changes nothing for the second
        feedback = grade(careless, "nearest_wrong", "03")
        assert feedback.outcome is Outcome.CORRECT
        assert "changes probabilities in place" in text_of(feedback)
    assert "in place" not in text_of(grade(lesson03.nearest_wrong, "nearest_wrong", "03"))


def test_a_function_that_changes_its_input_and_is_wrong() -> None:
    def careless(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        student /= temperature
        teacher /= temperature
        return soft_loss(student, teacher, 1.0)

    for _ in range(2):
        assert grade(careless).mistake == "T^2 forgotten"
    assert grade(soft_loss).outcome is Outcome.CORRECT


# Wrong, beyond the known mistakes (those are in test_lessons).


def test_a_loss_without_a_gradient() -> None:
    for feedback in (
        grade(lambda *a: soft_loss(*a).detach()),
        grade(lambda *a: torch.tensor(soft_loss(*a).item())),
        grade(torch.no_grad()(soft_loss)),
    ):
        assert (feedback.outcome, feedback.mistake) == (Outcome.WRONG, "gradient")


@pytest.mark.parametrize("same", [lambda s, z, t: kl_div_loss(s, s, t), lambda s, z, t: kl_div_loss(z, z, t)])
def test_the_same_logits_on_both_sides_of_a_loss_are_named(same: Callable[..., Tensor]) -> None:
    feedback = grade(same)
    assert feedback.outcome is Outcome.WRONG
    assert "Your loss is 0 for every input" in text_of(feedback)
    assert "both sides" in text_of(feedback)
    assert "always" not in text_of(feedback)


def test_what_is_zero_but_for_rounding_is_no_multiple_of_the_right_answer() -> None:
    noise = grade(lambda s, z, t: 0 * soft_loss(s, z, t) + 2e-5 * s[0, 0])
    assert "always" not in text_of(noise)


def test_a_small_factor_is_still_named() -> None:
    assert "always 1e-05 times" in text_of(grade(lambda *a: lesson01.size_in_bytes(*a) / 1e5, "size_in_bytes", "01"))


def numpy_loss(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    s, z = student.numpy() / t, teacher.numpy() / t
    logs = [x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (s, z)]
    return torch.tensor(t * t * (np.exp(logs[1]) * (logs[1] - logs[0])).sum(1).mean())


@pytest.mark.parametrize(
    ("number", "name", "answer", "missed"),
    [
        ("04", "soft_loss", numpy_loss, "student_logits"),
        ("04", "soft_loss", lambda *a: torch.tensor(soft_loss(*a).item(), requires_grad=True), "student_logits"),
        ("04", "soft_loss", lambda *a: soft_loss(*a).detach().requires_grad_(), "student_logits"),
        ("04", "soft_loss", lambda s, z, t: soft_loss(s.detach(), torch.nn.Parameter(z), t), "student_logits"),
        (
            "05",
            "joint_loss",
            lambda s, z, y, t, a: a * torch.nn.functional.cross_entropy(s, y) + (1 - a) * soft_loss(s, z, t).item(),
            "student_logits",
        ),
        ("06", "vid_best", lambda p, t: lesson06.vid_best(torch.nn.Parameter(p.detach()), t), "predicted"),
        ("06", "vid_best", lambda p, t: lesson06.vid_best(p.detach(), t), "predicted"),
        ("06", "attention_map", lambda f: lesson06.attention_map(f.detach()), "features"),
        ("07", "fsp_matrix", lambda a, b: lesson07.fsp_matrix(a, b.detach()), "b"),
        ("07", "fsp_matrix", lambda *a: lesson07.fsp_matrix(*a).detach(), "a and b"),
    ],
)
def test_a_gradient_that_does_not_arrive_is_found(number: str, name: str, answer: Any, missed: str) -> None:
    found = grade(answer, name, number)
    assert (found.outcome, found.mistake) == (Outcome.WRONG, "gradient")
    assert f"the gradient that {missed} should receive" in text_of(found)


def test_a_teacher_may_be_detached_and_an_input_changed_in_place() -> None:
    def in_place(s: Tensor, z: Tensor, t: float) -> Tensor:
        s /= t
        return t**2 * soft_loss(s, z.detach() / t, 1.0)

    assert grade(in_place).outcome is Outcome.CORRECT
    assert grade(lambda p, t: lesson06.vid_best(p, t.detach()), "vid_best", "06").outcome is Outcome.CORRECT
    assert grade(lambda s, z, t: soft_loss(s.double(), z.double(), t)).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda loss: loss.item(), "Leave out .item()"),
        (lambda loss: loss.numpy(), "NumPy"),
        (lambda loss: [loss], "try torch.stack"),
        (lambda loss: [0.5], "try torch.tensor"),
        (lambda loss: torch.ones(2, 2).max(dim=1), "take .values or .indices"),
        (lambda loss: "0.3", "gives a str"),
        (lambda loss: {"loss": loss}, "gives a dict"),
        (lambda loss: loss.reshape(1, 1), "the shape is (1, 1), but () is expected"),
        (lambda loss: 3 * loss, "always 3 times the right answer"),
        (lambda loss: loss + 1, "For soft_loss("),
        (lambda loss: loss * torch.nan, "inf or NaN"),
        (lambda loss: loss * 1j, "yours is"),
    ],
)
def test_a_wrong_kind_or_value_is_described(change: Callable[[Tensor], Any], text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about the complex one
        feedback = grade(lambda *a: change(soft_loss(*a)))
    assert feedback.outcome is Outcome.WRONG
    assert text in text_of(feedback)


def test_an_epsilon_in_the_logarithm_is_not_stable_enough() -> None:
    def patched(student: Tensor, teacher: Tensor, t: float) -> Tensor:
        q, p = torch.softmax(student / t, dim=1), torch.softmax(teacher / t, dim=1)
        return t**2 * (p * ((p + 1e-8).log() - (q + 1e-8).log())).sum(dim=1).mean()

    feedback = grade(patched)
    assert feedback.outcome is Outcome.WRONG
    assert "not for a student that is sure and wrong" in text_of(feedback)


def test_a_mistake_and_an_unstable_form_are_both_named() -> None:
    feedback = grade(lambda z, t: torch.exp(z * t) / torch.exp(z * t).sum(dim=1, keepdim=True), "soften")
    assert feedback.mistake == "temperature multiplied"
    assert "Besides, it gives inf or NaN for large logits" in text_of(feedback)
    assert "Besides" not in text_of(grade(lambda z, t: torch.softmax(z * t, dim=1), "soften"))


def test_an_unstable_form_does_not_hide_the_mistake() -> None:
    doubled = grade(lambda z, t: 2 * torch.exp(z / t) / torch.exp(z / t).sum(dim=1, keepdim=True), "soften")
    assert "always 2 times the right answer" in text_of(doubled)
    assert "Besides, it gives inf or NaN for large logits" in text_of(doubled)
    cubed = grade(lambda z, t: torch.exp(z / t) ** 3 / torch.exp(z / t).sum(dim=1, keepdim=True), "soften")
    assert "Compare each step" in text_of(cubed)
    assert "Besides" in text_of(cubed)
    everywhere = grade(lambda z, t: torch.softmax(z / t, dim=1) * torch.where(z > 0.9, torch.nan, 1.0), "soften")
    assert "nan" in text_of(everywhere)  # the example that is shown has what the text says


def test_an_edge_case_that_raises_does_not_hide_the_mistake() -> None:
    for wrong in (lambda c, t, s: math.floor(c / (t - s)), lambda c, t, s: c / (t - s)):
        found = text_of(grade(wrong, "pays_after", "08"))
        assert "The formula is right" not in found
        assert "math.ceil" in found
    right_but = grade(lambda c, t, s: -(-c // (t - s)), "pays_after", "08")
    assert "Then nothing is ever saved: math.inf" in text_of(right_but)


def test_an_edge_case_that_is_right_is_not_accused() -> None:
    """Where the answer is math.inf, an answer of math.inf is no instability."""
    for answer in (
        lambda c, t, s: math.ceil(c / t) if t > s else math.inf,
        lambda c, t, s: math.ceil(c / s) if t > s else math.inf,
        lambda c, t, s: 2 * math.ceil(c / (t - s)) if t > s else math.inf,
        lambda c, t, s: math.floor(c / (t - s)) if t > s else math.inf,
    ):
        found = grade(answer, "pays_after", "08")
        assert found.outcome is Outcome.WRONG
        assert "inf or NaN" not in text_of(found)
    nan = grade(lambda c, t, s: math.ceil(c / t) if t > s else math.nan, "pays_after", "08")
    assert "Besides, it gives inf or NaN for a student that costs as much" in text_of(nan)


@pytest.mark.parametrize(
    "weights",
    [
        lambda z, t: torch.exp(z - z.amax(dim=1, keepdim=True)) ** (1 / t),
        lambda z, t: torch.softmax(z, dim=1) ** (1 / t),
        lambda z, t: torch.softmax(z, dim=1).pow(1 / t),
    ],
)
def test_a_root_taken_after_exp_loses_the_small_ones(weights: Callable[[Tensor, float], Tensor]) -> None:
    def rooted(z: Tensor, t: float) -> Tensor:
        w = weights(z, t)
        return w / w.sum(dim=1, keepdim=True)

    found = grade(rooted, "soften")
    assert (found.outcome, found.mistake) == (Outcome.WRONG, "a root after exp")
    assert "before exp" in text_of(found)
    unshifted = grade(lambda z, t: torch.exp(z) ** (1 / t) / (torch.exp(z) ** (1 / t)).sum(1, keepdim=True), "soften")
    assert "not for large logits" in text_of(unshifted)


def test_an_edge_case_without_a_value_is_reported_with_its_input() -> None:
    def no_else(c: float, t: float, s: float) -> float | None:
        if t > s:
            return lesson08.pays_after(c, t, s)
        return None

    for answer in (no_else, lambda c, t, s: lesson08.pays_after(c, t, s) if t > s else "math.inf"):
        found = text_of(grade(answer, "pays_after", "08"))
        assert "This was for pays_after(1000, 10, 10). Then nothing is ever saved" in found


def test_the_true_class_does_not_win_where_all_others_are_zero() -> None:
    def zeroed(probabilities: Tensor, labels: Tensor) -> Tensor:
        others = probabilities.clone()
        others[torch.arange(len(labels)), labels] = 0
        return others.argmax(dim=1)

    assert "not for a teacher that is completely sure" in text_of(grade(zeroed, "nearest_wrong", "03"))


@pytest.mark.parametrize("order", [lambda log_q, log_p: (log_q, log_p), lambda log_q, log_p: (log_p.exp(), log_q)])
def test_logarithms_in_the_wrong_place_of_kl_div_are_named(order: Callable[..., Any]) -> None:
    def wrong(s: Tensor, z: Tensor, t: float) -> Tensor:
        both = order(torch.log_softmax(s / t, dim=1), torch.log_softmax(z / t, dim=1))
        return t**2 * torch.nn.functional.kl_div(*both, reduction="batchmean")

    def joint(s: Tensor, z: Tensor, y: Tensor, t: float, a: float) -> Tensor:
        return a * torch.nn.functional.cross_entropy(s, y) + (1 - a) * wrong(s, z, t)

    for answer, name, number in ((wrong, "soft_loss", "04"), (joint, "joint_loss", "05")):
        assert grade(answer, name, number).mistake == "logarithms in the wrong place of kl_div"


def test_a_lesson_may_have_switched_gradients_off() -> None:
    with torch.no_grad():
        assert grade(soft_loss).outcome is Outcome.CORRECT
        assert grade(lambda *a: soft_loss(*a).detach()).mistake == "gradient"


def test_torchs_own_not_implemented_is_no_stub() -> None:
    found = grade(lambda p, y: y.softmax(0), "nearest_wrong", "03")
    assert found.outcome is Outcome.ERROR
    assert "not implemented for 'Long'" in text_of(found)
    if "NotImplementedError" in text_of(found):  # torch 2.6 raises a RuntimeError
        assert "try .float()" in text_of(found)

    def stub(probabilities: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def with_message(probabilities: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError("write me")

    for unfinished in (stub, with_message):
        assert grade(unfinished, "nearest_wrong", "03").outcome is Outcome.NOT_ATTEMPTED


def test_a_missing_return_is_not_taken_for_a_stub() -> None:
    def forgetful(logits: Tensor, temperature: float) -> None:
        soften(logits, temperature)

    def short(logits: Tensor, temperature: float) -> None:
        softened = -logits  # noqa: F841 (in Python 3.12 and 3.13 no longer than "loss = None; return loss" in 3.11)

    def pair(logits: Tensor, temperature: float) -> None:
        both = logits, temperature  # noqa: F841

    for answer in (forgetful, short, pair):
        feedback = grade(answer, "soften")
        assert feedback.outcome is Outcome.WRONG
        assert "return" in text_of(feedback)


# Errors.


def test_an_exception_is_reported_with_its_line_and_a_next_step() -> None:
    def broken(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        return student_logits @ teacher_logits

    feedback = grade(broken)
    assert feedback.outcome is Outcome.ERROR
    assert "RuntimeError at line" in text_of(feedback)
    assert "return student_logits @ teacher_logits" in text_of(feedback)
    assert "mat1 and mat2" in text_of(feedback)
    assert "Print the shapes" in text_of(feedback)
    assert "Traceback" not in text_of(feedback)
    assert "File" not in text_of(feedback)


def _adds_to_nothing(logits: Tensor, temperature: float) -> Tensor:
    total += logits / temperature  # noqa: F821, F841
    return total


def test_arguments_in_another_order_are_said_and_not_taken_for_a_mistake() -> None:
    def swapped(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
        return soft_loss(student_logits, teacher_logits, temperature)

    feedback = grade(swapped)
    assert feedback.outcome is Outcome.ERROR
    assert "soft_loss(student_logits, teacher_logits, temperature)" in text_of(feedback)


def test_an_answer_is_right_whatever_the_default_device_is() -> None:
    with torch.device("meta"):  # as torch.set_default_device("cuda") in the first cell of a notebook
        assert grade(soft_loss).outcome is Outcome.CORRECT
        assert "gives" in repr(exercises.load("04").soft_loss)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda z, t: undefined_name, "name is misspelt"),  # noqa: F821
        (_adds_to_nothing, "has no value yet"),
        (lambda z, t: scipy.special.softmax(z / t), "Put import scipy.stats in the first line"),  # noqa: F821
        (lambda z: z, "It should take these arguments: logits, temperature."),
        (lambda z, t: z.sum(dim=7), "dim=1 are the classes"),
        (lambda z, t: z / ... / t, "One ... is still waiting"),
        (lambda z, t: 1 / 0, "divide by is 0"),
        (lambda z, t: input("?"), "Call it yourself with the example"),
        (lambda z, t: exit(), "called exit()"),
        (lambda z, t: (_ for _ in ()).throw(KeyboardInterrupt), "KeyboardInterrupt"),
    ],
)
def test_next_steps(answer: Any, text: str) -> None:
    feedback = grade(answer, "soften")
    assert feedback.outcome is Outcome.ERROR
    assert text in text_of(feedback)


@pytest.mark.parametrize("power", [lambda x, t: x * t ^ 2, lambda x, t: x * (t ^ 2)])
def test_a_caret_is_no_power(power: Callable[[Tensor, float], Tensor]) -> None:
    found = grade(lambda s, z, t: power(kl_div_loss(s, z, t), t))
    assert found.outcome is Outcome.ERROR
    assert "a power is **" in text_of(found)
    assert ".float()" not in text_of(found)


def mcnemar_of_truth_values(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).sum()


def factor_without_gradient(loss: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return torch.autograd.grad(loss(student, teacher), student)[0].norm()


def logits_are_known(s: Tensor, c: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return ((s == t) and (t != y)).float().mean()


@pytest.mark.parametrize(
    ("lesson", "name", "answer", "text"),
    [
        ("09", "mcnemar", mcnemar_of_truth_values, "Truth values cannot be subtracted: .float() first"),
        (
            "16",
            "inherited",
            lambda s, c, t, y: (s == t)[t != y].mean(),
            "mean of truth values or whole numbers needs .float() before it",
        ),
        ("16", "inherited", logits_are_known, "Place by place in tensors it is &, | and ~"),
        ("15", "factor", factor_without_gradient, ".requires_grad_() missing"),
    ],
)
def test_what_torch_says_of_truth_values_and_gradients_gets_advice(
    lesson: str, name: str, answer: Any, text: str
) -> None:
    found = grade(answer, name, lesson)
    assert found.outcome is Outcome.ERROR
    assert text in text_of(found), found
    assert "power" not in text_of(found)


@pytest.mark.parametrize(
    "nearly",
    [
        lambda n, precision: 1.0005 * lesson01.size_in_bytes(n, precision),
        lambda n, precision: lesson01.size_in_bytes(n, precision) + 100 * (n > 1_000),
    ],
    ids=["by a thousandth", "by a hundred"],
)
def test_bytes_are_counted_exactly(nearly: Callable[[int, str], float]) -> None:
    assert grade(nearly, "size_in_bytes", "01").outcome is Outcome.WRONG


def test_bytes_may_be_a_float() -> None:
    found = grade(lambda n, precision: float(lesson01.size_in_bytes(n, precision)), "size_in_bytes", "01")
    assert found.outcome is Outcome.CORRECT


def test_the_next_step_is_taken_with_the_input_that_failed() -> None:
    found = text_of(grade(lambda n, precision: n * int(precision[2:]) / 8, "size_in_bytes", "01"))
    assert "'int8'" in found
    assert "Call it yourself with this input" in found
    assert "with the example" not in found


def test_an_exception_that_cannot_be_printed() -> None:
    class Strange(Exception):
        def __str__(self) -> str:
            raise ValueError

    def broken(*_: object) -> None:
        raise Strange

    assert "Strange" in text_of(grade(broken))


@pytest.mark.slow
def test_an_endless_loop(short_time_limit: None) -> None:
    def endless(z: Tensor, t: float) -> Tensor:
        while t > 0:
            z = z / t
        return z

    feedback = grade(endless, "soften")
    assert feedback.outcome is Outcome.ERROR
    assert "stopped after 0.3 seconds" in text_of(feedback)
    assert "It was at line" in text_of(feedback)


def test_printing_is_shown_in_moderation(capsys: pytest.CaptureFixture[str]) -> None:
    def chatty(z: Tensor, t: float) -> Tensor:
        for row in range(50):
            print("row", row)
        return soften(z, t)

    exercises.load("04").soften.check(chatty)
    out = capsys.readouterr().out
    assert out.startswith("Correct")
    assert "    row 0\n" in out
    assert out.count("row ") < 15


@pytest.mark.parametrize("value", [3, "text", [1], torch.ones(2), np.ones(3)])
def test_something_that_is_no_function(value: Any) -> None:
    feedback = grade(value)
    assert feedback.outcome is Outcome.ERROR
    assert "without brackets" in text_of(feedback)


class Hostile:
    """Raises an error at every access."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError


def test_a_hostile_object_does_not_break_the_lesson() -> None:
    assert grade(lambda *a: Hostile()).outcome in (Outcome.WRONG, Outcome.ERROR)
    assert grade(Hostile(), "law").outcome is Outcome.ERROR


# Questions and predictions.


def test_a_question_at_the_point_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    q = exercises.load("04")
    for answer, opening in ((..., "Not attempted"), ("", "Not attempted"), ("a", "Not right"), (" B) ", "Correct")):
        q.law.check(answer)
        assert capsys.readouterr().out.startswith(opening)
    q.law.check(0, 64)  # a decimal comma
    assert re.match(
        "This is not an answer yet. .*decimal number has a point", " ".join(capsys.readouterr().out.split())
    )
    for answer in ("e", "ab", 2, ["b"], b"b", 10**5000):
        q.law.check(answer)
        assert 'one letter in quotes, "a", "b", "c" or "d"' in capsys.readouterr().out


def test_a_prediction_at_the_point_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    q = exercises.load(0)
    q.twin.check(0.01)
    assert capsys.readouterr().out.startswith("Not attempted yet")
    q.twin.predict("sure")
    assert "not a prediction yet" in capsys.readouterr().out
    q.twin.predict(0, 64)
    assert re.match(
        "This is not a prediction yet. .*decimal number has a point", " ".join(capsys.readouterr().out.split())
    )
    q.twin.predict("a")
    assert capsys.readouterr().out.startswith("Noted: a")
    for measured, opening in (
        (..., "Nothing was measured"),
        ("x", "Nothing to compare"),
        (float("nan"), "Nothing to c"),
    ):
        q.twin.check(measured)
        assert capsys.readouterr().out.startswith(opening)
    for measured, opening in ((0.01, "Correct"), (-0.01, "Not as predicted"), (torch.tensor(0.0), "Not as predicted")):
        exercises.load("00").twin.check(measured)  # the same lesson when it is loaded again
        out = capsys.readouterr().out
        assert out.startswith(opening)
        assert "a hint, not evidence" in " ".join(out.split())


def test_a_number_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    q = exercises.load("01")
    q.resnets.predict(50 / 18)
    q.resnets.check()
    out = " ".join(capsys.readouterr().out.split())
    assert "You went by the number of layers" in out
    q.resnets.predict(2)
    q.resnets.check(25_557_032 / 11_689_512)
    assert "Correct. You predicted 2; it is 2.19." in capsys.readouterr().out
    q.resnets.check(11_689_512 / 25_557_032)
    assert "which way round" in capsys.readouterr().out
    for nonsense in ("2", True, float("inf"), torch.ones(2), 10**400):
        q.resnets.predict(nonsense)
        assert "Answer with a number" in capsys.readouterr().out


# Hints, solutions and what must not be given away.


def test_hints_come_one_by_one_and_the_last_stays(capsys: pytest.CaptureFixture[str]) -> None:
    q = exercises.load("04")
    seen = []
    for _ in range(5):
        q.soft_loss.hint()
        seen.append(capsys.readouterr().out)
    assert [text[:11] for text in seen] == ["Hint 1 of 3", "Hint 2 of 3", *["Hint 3 of 3"] * 3]


def secrets(spec: Any) -> list[str]:
    if isinstance(spec, CodeSpec):
        lines = [" ".join(line.split()) for line in inspect.getsource(spec.reference).splitlines()]
        body = lines[next(number for number, line in enumerate(lines) if line.startswith('"""')) + 1 :]
        return [line for line in body if len(line) > 12]
    return [option.explanation for option in getattr(spec.answer_key, "options", ()) if option.explanation]


@pytest.mark.slow
def test_only_solution_gives_the_solution_away(capsys: pytest.CaptureFixture[str]) -> None:
    for number in exercises.list_lessons():
        q = exercises.load(number)
        for exercise in q:
            hidden = secrets(exercise._spec)
            shown = [repr(q), repr(exercise), exercise.__doc__, str(vars(exercise)), str(dir(exercise))]
            shown += [repr(getattr(exercise, name)) for name in dir(exercise) if not name.startswith("_")]
            for answer in (..., 5, "z", lambda *a: 1 / 0, lambda *a: 7, lambda: None):
                shown.append(str(exercise.grade(answer)))
            text = " ".join(" ".join(shown).split())
            assert not [secret for secret in hidden if secret in text], exercise.name
            exercise.solution()
            solution = " ".join(capsys.readouterr().out.split())
            assert all(" ".join(secret.split()) in solution for secret in hidden), exercise.name
            assert len(solution) > 40


def test_the_solution_of_a_question_with_a_number_is_the_number(capsys: pytest.CaptureFixture[str]) -> None:
    exercises.load("05").translate.solution()
    assert "Solution: 0.64" in capsys.readouterr().out


def test_public_names_are_few() -> None:
    names = [name for name in dir(exercises.load("04").soft_loss) if not name.startswith("_")]
    assert names == ["check", "difficulty", "grade", "hint", "kind", "minutes", "name", "solution", "stub", "title"]
    assert dir(exercises.load("04")) == sorted(["soften", "soft_loss", "gradient", "law", "limit", "progress"])


def test_unknown_names_list_near_ones() -> None:
    with pytest.raises(ValueError, match="Known: 00, 01"):
        exercises.load("77")
    with pytest.raises(AttributeError, match="Did you mean 'soft_loss'"):
        _ = exercises.load("04").softloss
    assert not hasattr(exercises.load("04"), "_repr_html_")


def test_a_check_does_not_depend_on_earlier_ones(short_time_limit: None) -> None:
    first = str(grade(soft_loss))
    grade(lambda *a: a[0].zero_())
    grade(lambda *a: [0 for _ in iter(int, 1)])
    assert str(grade(soft_loss)) == first


# Numbers, words and prints of the feedback.


def test_a_prediction_is_judged_by_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    q = exercises.load("01")
    q.resnets.predict(1.7)
    q.resnets.check(1.7)  # on this machine it came out otherwise than the known answer
    assert "Correct. You predicted 1.7; it is 1.7." in capsys.readouterr().out
    q.resnets.predict(25_557_032 / 11_689_512)
    q.resnets.check(1.7)
    assert "You predicted 2.186; it is 1.7." in " ".join(capsys.readouterr().out.split())


def test_a_number_near_no_known_mistake_is_told_no_mistake() -> None:
    key = Numeric(10.0, 0.02, ((5.0, "You halved it."), (20.0, "You doubled it.")))
    assert [key.mistake_message(answer) for answer in (5.1, 5.5, 19.5, 23.0)] == [
        "You halved it.", "", "You doubled it.", ""
    ]  # fmt: skip


def test_what_is_printed_belongs_to_the_example() -> None:
    def loud(z: Tensor, t: float) -> Tensor:
        print("T =", t, "classes =", z.shape[1])
        return soften(z, t)

    z, t = lesson04.SOFTEN.cases()[0].arguments
    for answer in (loud, lambda z, t: 3 * loud(z, t)):
        printed = [line for line in str(grade(answer, "soften")).splitlines() if "classes =" in line]
        assert printed == [f"    T = {t} classes = {z.shape[1]}"]


def test_a_wrong_constant_is_not_called_the_answer_to_the_example() -> None:
    found = grade(lambda s, z, t: 0 * s.sum() + 5)
    assert (found.outcome, found.mistake) == (Outcome.WRONG, "")
    assert "for every input" not in text_of(found)


def test_only_the_opposite_is_called_a_wrong_sign() -> None:
    right = lesson01.size_in_bytes
    assert "Only the sign is wrong" in text_of(grade(lambda *a: -right(*a), "size_in_bytes", "01"))
    found = text_of(grade(lambda *a: -3 * right(*a), "size_in_bytes", "01"))
    assert "always -3 times the right answer" in found
    assert "Only the sign" not in found


@pytest.mark.parametrize(("value", "shown"), [(7.0, "7"), (math.nan, "nan")])
def test_in_a_large_result_the_place_and_both_numbers_are_right(value: float, shown: str) -> None:
    case = next(case for case in lesson04.SOFTEN.cases() if case.arguments[0].numel() > 12 and not case.edge_case)

    def wrong_at_one_place(z: Tensor, t: float) -> Tensor:
        result = soften(z, t).clone()
        if z.shape == case.arguments[0].shape:
            result[2, 3] = value
        return result

    right = code_grading.format_value(soften(*case.arguments)[2, 3])
    assert f"the answer at [2, 3] is {right}; yours is {shown}." in text_of(grade(wrong_at_one_place, "soften"))


@pytest.mark.parametrize("name", code_grading.IMPORT_HINTS)
def test_the_import_that_is_advised_gives_that_name(name: str) -> None:
    full = {"stats": "scipy.stats", "np": "numpy", "nn": "torch.nn", "F": "torch.nn.functional"}.get(name, name)
    namespace: dict[str, Any] = {}
    exec(code_grading.IMPORT_HINTS[name], namespace)
    assert namespace[name] is importlib.import_module(full)


@pytest.mark.slow
def test_a_function_that_cannot_be_stopped_is_said_to_run_on(short_time_limit: None) -> None:
    def sleepy(z: Tensor, t: float) -> Tensor:
        time.sleep(1.5)
        return soften(z, t)

    assert "runs on in the background: restart the kernel" in text_of(grade(sleepy, "soften"))
