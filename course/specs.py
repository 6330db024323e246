"""What an exercise consists of: its text, its correct answer and the known mistakes. Grading is in `course.grading`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, repr=False)
class Case:
    """Arguments on which a function is tried.

    edge_case: what is special about them, if functions that are correct elsewhere can fail here ("large logits"), and
    advice: what to say then. display: how to print the arguments where they cannot be written out.
    """

    arguments: tuple[Any, ...]
    edge_case: str = ""
    advice: str = ""
    display: str = ""


@dataclass(frozen=True, repr=False)
class Mistake:
    """A known wrong answer: a function that makes it, and the message for whoever made it."""

    name: str
    function: Callable[..., Any]
    message: str


@dataclass(frozen=True, repr=False)
class Option:
    """One option of a question: its text, why it is correct or wrong, and whether it is correct."""

    text: str
    explanation: str
    correct: bool = False


@dataclass(frozen=True, repr=False)
class MultipleChoice:
    """The answer key of a question with a few options, lettered a, b, c, ...; exactly one is correct.

    from_measurement: for a prediction whose outcome is measured, the letter that a measurement makes correct.
    """

    options: tuple[Option, ...]
    from_measurement: Callable[[Any], str] | None = None

    @property
    def by_letter(self) -> dict[str, Option]:
        """The options by their letters."""
        return dict(zip("abcdefgh", self.options, strict=False))

    def prompt(self) -> str:
        """The options as they are shown with the question."""
        return "\n".join(f"  {letter}) {option.text}" for letter, option in self.by_letter.items())

    def explanations(self, correct: str) -> str:
        """Every option with its explanation; correct: the letter of the correct one."""
        rows = []
        for letter, option in self.by_letter.items():
            word = "right" if letter == correct else "wrong"
            reason = f"{word}: {option.explanation}" if option.explanation else word
            rows.append(f"  {letter}) {option.text}\n     {reason}")
        return "\n".join(rows)

    def correct_letter(self, measured: Any = None) -> str:
        """The letter of the correct option."""
        if self.from_measurement is not None:
            return self.from_measurement(measured)
        return next(letter for letter, option in self.by_letter.items() if option.correct)

    def parse(self, answer: Any) -> tuple[str | None, str]:
        """The letter of a learner's answer, or None and how to answer."""
        letter = answer.strip().strip(").").lower() if isinstance(answer, str) else None
        letters = list(self.by_letter)
        if letter in letters:
            return letter, ""
        return None, f"Answer with one letter in quotes, {_alternatives(letters)}; this is {format_answer(answer)}."


@dataclass(frozen=True, repr=False)
class Numeric:
    """The answer key of a question with a number as its answer.

    tolerance: the relative difference that is accepted. mistakes: numbers that a known mistake leads to, with messages.
    """

    value: float
    tolerance: float
    mistakes: tuple[tuple[float, str], ...] = ()

    def prompt(self) -> str:
        """How to answer, as it is shown with the question."""
        return "  Answer with a number."

    def mistake_message(self, answer: float) -> str:
        """The message for an answer that a known mistake leads to, or ""."""
        return next((text for value, text in self.mistakes if abs(answer - value) <= 0.03 * abs(value)), "")

    def parse(self, answer: Any) -> tuple[float | None, str]:
        """The number that a learner answered, or None and how to answer."""
        try:
            number = math.nan if isinstance(answer, (str, bool)) else float(answer)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number, ""
        return None, f"Answer with a number and without quotes, such as 2.5; this is {format_answer(answer)}."


@dataclass(frozen=True, repr=False)
class ExerciseSpec:
    """What every exercise has.

    name: the attribute under which a notebook finds it. minutes: to plan for. difficulty: easy, medium or hard.
    hints: shown one by one, the vaguest first. insight: shown after a correct answer and with the solution: what the
    answer is good for.
    """

    name: str
    title: str
    kind: str
    difficulty: str
    minutes: int
    question: str
    hints: tuple[str, ...]
    insight: str = ""


@dataclass(frozen=True, repr=False)
class CodeSpec(ExerciseSpec):
    """A function to write.

    stub: the unfilled function of the notebook. reference: the solution, whose source is shown. cases: makes the
    inputs; the first is the example that is shown. mistakes: known wrong functions. grad_arguments: the arguments that
    must receive the correct gradient; the others, such as a teacher's logits, may be detached. side_effects: for each
    module among the arguments that has to end up as after the reference, what to say if only that is wrong.
    """

    stub: str = field(kw_only=True)
    reference: Callable[..., Any] = field(kw_only=True)
    cases: Callable[[], list[Case]] = field(kw_only=True)
    mistakes: tuple[Mistake, ...] = field(kw_only=True)
    grad_arguments: tuple[str, ...] = field(kw_only=True, default=())
    side_effects: Mapping[str, str] = field(kw_only=True, default_factory=dict)


@dataclass(frozen=True, repr=False)
class QuestionSpec(ExerciseSpec):
    """A question; a prediction is a question that is answered before an experiment and compared afterwards."""

    answer_key: MultipleChoice | Numeric = field(kw_only=True)
    is_prediction: bool = field(kw_only=True, default=False)


@dataclass(frozen=True, repr=False)
class LessonSpec:
    """The exercises of one lesson, in order."""

    number: str
    title: str
    exercises: tuple[CodeSpec | QuestionSpec, ...]


def is_blank(answer: Any) -> bool:
    """Whether an answer is still the placeholder: ..., None or an empty text."""
    return answer is ... or answer is None or (isinstance(answer, str) and not answer.strip())


def format_answer(answer: Any) -> str:
    """A short text for an answer of any type, also one whose repr fails."""
    short = isinstance(answer, (str, float)) or (isinstance(answer, int) and abs(answer) < 10**12)
    text = repr(answer) if short else ""
    return text if 0 < len(text) <= 22 else f"something of type {type(answer).__name__}"


def _alternatives(letters: list[str]) -> str:
    quoted = [f'"{letter}"' for letter in letters]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"
