"""The exercises themselves: every solution passes, every known mistake is named, and what is stated is so."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from course import code_grading, exercises, notebooks
from course.grading import Feedback, Outcome, grade_question
from course.lessons import lesson00, lesson01, lesson03, lesson04
from course.specs import CodeSpec, Mistake, Numeric, QuestionSpec
from kdlib import data, losses, measure, models, verdict


def test_every_lesson_has_three_to_five_exercises_of_the_three_kinds() -> None:
    assert {"00", "01", "03", "04"} <= set(exercises.list_lessons())
    for number in exercises.list_lessons():
        lesson = list(exercises.load(number))
        assert 3 <= len(lesson) <= 5
        assert {"code", "prediction", "figure"} <= {exercise.kind for exercise in lesson}
        assert sum(exercise.minutes for exercise in lesson) <= 30


def test_every_lesson_about_a_part_of_distillation_shows_where_it_is() -> None:
    """16 answers questions on all of it, and 18 asks them."""
    shown = {path.stem[:2] for path in notebooks.list_notebooks() if "plots.schematic(" in path.read_text("utf-8")}
    assert shown == {path.stem[:2] for path in notebooks.list_notebooks()} - {"16", "18"}


def test_every_exercise_says_what_it_should() -> None:
    for number in exercises.list_lessons():
        for exercise in exercises.load(number):
            spec = exercise._spec
            assert exercise.difficulty in ("easy", "medium", "hard")
            assert exercise.kind in ("code", "question", "figure", "prediction")
            assert (exercise.kind == "prediction") == getattr(spec, "is_prediction", False)
            assert spec.name.isidentifier()
            assert spec.hints
            assert spec.question[-1] in ".?"
            assert all(len(line) <= 88 or line.startswith("    ") for line in repr(exercise).splitlines())


@pytest.mark.slow
def test_the_solution_as_printed_passes_its_own_check(code: CodeSpec, capsys: pytest.CaptureFixture[str]) -> None:
    exercise = exercises.CodeExercise("00", code)
    exercise.solution()
    block = re.findall(r"^    (.*)$|^$", capsys.readouterr().out, re.MULTILINE)
    namespace = {"torch": torch}  # all that the notebook has to import
    exec("\n".join(block), namespace)
    verdict = code_grading.grade_code(code, namespace[code.name])
    assert verdict.outcome is Outcome.CORRECT, verdict
    assert "remark" not in verdict.text


def test_examples_and_answers_are_judged_where_a_cell_switched_gradients_off(code: CodeSpec) -> None:
    example = code_grading.format_example(code)
    with torch.no_grad():
        assert code_grading.format_example(code) == example
        verdict = code_grading.grade_code(code, lambda *arguments: code.reference(*arguments))
        wrong = code_grading.grade_code(code, lambda *arguments: code.mistakes[0].function(*arguments))
    assert verdict.outcome is Outcome.CORRECT, verdict
    assert wrong.mistake == code.mistakes[0].name, wrong


def test_the_stub_runs_and_is_not_attempted(code: CodeSpec) -> None:
    namespace: dict[str, object] = {}
    exec(code.stub, namespace)
    assert code_grading.grade_code(code, namespace[code.name]).outcome is Outcome.NOT_ATTEMPTED


@pytest.mark.slow
def test_every_known_mistake_is_named(made: tuple[CodeSpec, Mistake]) -> None:
    code, mistake = made
    verdict = code_grading.grade_code(code, lambda *arguments: mistake.function(*arguments))
    assert verdict.outcome in (Outcome.WRONG, Outcome.ERROR)
    assert verdict.mistake == mistake.name, verdict
    assert mistake.message.split(". ")[0] in verdict.text


def test_the_example_alone_is_not_enough(code: CodeSpec) -> None:
    known = code.reference(*code.cases()[0].arguments)
    verdict = code_grading.grade_code(code, lambda *arguments: known)
    assert (verdict.outcome, verdict.mistake) == (Outcome.WRONG, "hard-coded")


def test_inputs_that_are_shown_in_words_are_told_apart(code: CodeSpec) -> None:
    shown = [case.display for case in code.cases() if case.display]
    assert len(set(shown)) == len(shown)


def test_inputs_are_the_same_each_time_and_leave_the_random_numbers_alone(code: CodeSpec) -> None:
    before = torch.get_rng_state()
    first, second = code.cases(), code.cases()
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a.arguments, b.arguments, strict=True):
            if isinstance(x, torch.Tensor):
                assert torch.equal(x, y)
            elif isinstance(x, list):
                pairs = zip(x, y, strict=True)
                assert all(
                    torch.equal(*pair) if isinstance(pair[0], torch.Tensor) else pair[0] == pair[1] for pair in pairs
                )
            elif not isinstance(x, nn.Module):
                assert x == y


MEASURED = {  # 0.1 for all others
    "ahead": {"logits": 0.01, "features": 0.03, "relations": 0.0, "both": 0.02},
    "best": dict.fromkeys(("accuracy", "size", "confidence"), (0.2, -0.3, 0.7)) | {"calibration": (-0.4, -0.5, -0.3)},
    "hot": verdict.compare([0.8, 0.82, 0.81], [0.79, 0.83, 0.8]),
}


def test_every_option_is_explained(question: QuestionSpec) -> None:
    if isinstance(question.answer_key, Numeric):
        assert grade_question(question, question.answer_key.value).outcome is Outcome.CORRECT
        for value, text in question.answer_key.mistakes:
            found = grade_question(question, value)
            assert found.outcome is Outcome.WRONG
            assert text in found.text
        return
    options = question.answer_key.by_letter
    if question.answer_key.from_measurement is None:
        assert sum(option.correct for option in question.answer_key.options) == 1
        assert all(len(option.explanation) > 20 for option in question.answer_key.options)
    measured = MEASURED.get(question.name, 0.1)
    for letter, option in options.items():
        found = grade_question(question, letter, measured)
        assert (found.outcome is Outcome.CORRECT) == (letter == question.answer_key.correct_letter(measured))
        assert option.explanation in found.text
        if found.outcome is Outcome.CORRECT:
            assert all(other.explanation in found.text for other in question.answer_key.options)
        elif not question.is_prediction:  # a wrong answer to a question does not give the right one away
            assert not any(
                other.explanation in found.text for other in question.answer_key.options if other is not option
            )


# What the exercises state, against the library and the shipped teacher.


@pytest.mark.slow
def test_solutions_agree_with_their_twins_in_the_library() -> None:
    generator = torch.Generator().manual_seed(5)
    s, t = (torch.randn(7, 6, generator=generator) * 3 for _ in range(2))
    torch.testing.assert_close(lesson04.soften(s, 3.0), losses.soften(s, 3.0))
    torch.testing.assert_close(lesson04.soft_loss(s, t, 3.0), losses.kd(s, t, 3.0))
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 0])
    assert lesson00.accuracy(s, labels) == pytest.approx(measure.accuracy(s, labels))
    model = models.build("resnet8", num_classes=10, in_channels=1)
    assert lesson00.count_parameters(model) == measure.count_parameters(model)
    p = losses.soften(s, 1.0)
    torch.testing.assert_close(lesson03.entropy(p), torch.distributions.Categorical(p).entropy())


def test_counting_by_hand_agrees_with_torch() -> None:
    for given in ((3, 5, 7, True), (5, 2, 3, False)):
        kernel, inputs, outputs, bias = given
        layer = nn.Conv2d(inputs, outputs, kernel, bias=bias, padding=kernel // 2)
        assert lesson01.conv_parameters(*given) == measure.count_parameters(layer)
        assert lesson01.conv_macs(kernel, inputs, outputs, 6, 9) == measure.macs(layer, (inputs, 6, 9))
        assert lesson01.size_in_bytes(measure.count_parameters(layer), "fp32") == measure.bytes_in_memory(layer)


def test_the_ratio_of_the_resnets() -> None:
    with torch.device("meta"):
        counts = [
            measure.count_parameters(models.build(name, num_classes=1000, in_channels=3, stem="imagenet"))
            for name in ("resnet50", "resnet18")
        ]
    assert counts == [25_557_032, 11_689_512]
    assert lesson01.RESNETS.answer_key.value == pytest.approx(counts[0] / counts[1], rel=1e-3)


@pytest.fixture(scope="module")
def shirts(fashion: data.DataModule) -> torch.Tensor:
    """The shipped teacher's logits for the shirts of the validation split."""
    positions = (fashion.validation.labels == fashion.classes.index("Shirt")).nonzero().flatten()[:256]
    teacher = models.load("resnet20-fashion")
    with torch.no_grad():
        return torch.cat([teacher(batch.images) for batch in fashion.validation.iter_batches(256, sampler=positions)])


def test_where_a_shirts_soft_label_goes(shirts: torch.Tensor, fashion: data.DataModule) -> None:
    mean = dict(zip(fashion.classes, losses.soften(shirts, 4.0).mean(dim=0).tolist(), strict=True))
    rest = 1 - mean["Shirt"]
    tops = [mean[name] for name in ("T-shirt/top", "Pullover", "Coat", "Dress")]
    assert sum(tops) > 0.6 * rest
    assert max(tops) < 0.4 * rest
    assert min(tops) > max(mean[name] for name in ("Sandal", "Sneaker", "Ankle boot", "Bag", "Trouser"))
    assert lesson03.SHIRT.answer_key.correct_letter() == "b"


def test_the_gradient_of_the_soft_loss(shirts: torch.Tensor) -> None:
    """1/T^2 at high temperatures, not near T = 1; and the limit of logit matching."""
    noise = torch.randn(shirts.shape, generator=torch.Generator().manual_seed(6))
    student = 0.5 * shirts + noise

    def size(temperature: float, power: int = 0) -> float:
        s = student.clone().requires_grad_()
        loss = losses.kd(s, shirts, temperature) / temperature ** (2 - power)
        return torch.autograd.grad(loss, s)[0].norm().item()

    key = lesson04.GRADIENT.answer_key
    assert abs(size(20) / size(40) - key.value) < key.tolerance * key.value
    assert size(1) / size(2) < 3
    assert size(40, 2) == pytest.approx(size(80, 2), rel=0.1)
    s, t = (x - x.mean(dim=1, keepdim=True) for x in (student, shirts))
    limit = ((s - t) ** 2).sum(dim=1).mean() / (2 * 10)
    assert losses.kd(s.double(), t.double(), 1e4).item() == pytest.approx(limit.item(), rel=1e-2)
    assert lesson04.LIMIT.answer_key.correct_letter() == "d"


def test_one_run_is_called_a_hint() -> None:
    assert "a hint, not evidence" in lesson00.TWIN.insight
    assert isinstance(grade_question(lesson00.TWIN, "a", 0.01), Feedback)
