"""Feedback on an answer: its outcome and a text. Questions and predictions are graded here, code in `code_grading`."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from course.specs import MultipleChoice, Numeric, QuestionSpec, format_answer, is_blank

WIDTH = 88  # characters of a line: a notebook on a small screen, and GitHub, show it unbroken


class Outcome(StrEnum):
    """The four possible outcomes of a check."""

    NOT_ATTEMPTED = "not attempted"
    WRONG = "wrong"
    ERROR = "error"
    CORRECT = "correct"


OPENINGS = {
    Outcome.NOT_ATTEMPTED: "Not attempted yet",
    Outcome.WRONG: "Not right yet",
    Outcome.ERROR: "Error",
    Outcome.CORRECT: "Correct",
}
INVALID = "This is not an answer yet"
NOT_AS_PREDICTED = "Not as predicted"
TRY_AGAIN = "Think again, and answer again; .hint() helps."


@dataclass(frozen=True, repr=False)
class Feedback:
    """The result of grading an answer: the outcome, the text for the learner, and the mistake's name if it is known.

    opening: the first words, where the usual ones of the outcome do not fit.
    """

    outcome: Outcome
    text: str
    mistake: str = ""
    opening: str = ""

    def __str__(self) -> str:
        text = f"{self.opening or OPENINGS[self.outcome]}. {self.text}"
        # One line, because an unfilled notebook prints it a dozen times.
        return text if self.outcome is Outcome.NOT_ATTEMPTED else wrap(text)

    __repr__ = __str__


def wrap(text: str) -> str:
    """The text in lines of at most 88 characters; lines that begin with four spaces are code and stay."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        is_code = len(indent) == 4
        further = indent + ("   " if line.lstrip()[1:3] == ") " else "")
        lines += [line] if is_code else _wrap_line(line, further)
    return "\n".join(lines)


def _wrap_line(line: str, indent: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


def grade_question(spec: QuestionSpec, answer: Any, measured: Any = None) -> Feedback:
    """Feedback on the answer to a question or a prediction; raises nothing.

    measured: for a prediction, what the experiment gave.
    """
    try:
        return _grade(spec, answer, measured)
    except Exception as error:  # such as an object whose attributes raise
        return Feedback(Outcome.ERROR, f"It cannot be read ({type(error).__name__}).", opening=INVALID)


def _grade(spec: QuestionSpec, answer: Any, measured: Any) -> Feedback:
    if is_blank(answer):
        if spec.is_prediction:
            return Feedback(Outcome.NOT_ATTEMPTED, ".predict(...) comes first. If you are stuck, .hint() helps.")
        return Feedback(Outcome.NOT_ATTEMPTED, "Put your answer in place of the dots; .hint() helps.")
    key = spec.answer_key
    if isinstance(key, Numeric):
        number, how = key.parse(answer)
        if number is None:
            return Feedback(Outcome.ERROR, how, opening=INVALID)
        if spec.is_prediction:
            return _grade_predicted_number(key, number, measured, spec.insight)
        return _grade_number(key, number, spec.insight)
    letter, how = key.parse(answer)
    if letter is None:
        return Feedback(Outcome.ERROR, how, opening=INVALID)
    if spec.is_prediction:
        return _grade_predicted_option(spec, key, letter, measured)
    return _grade_option(spec, key, letter)


def _grade_option(spec: QuestionSpec, key: MultipleChoice, letter: str) -> Feedback:
    correct, chosen = key.correct_letter(), key.by_letter[letter]
    if letter == correct:
        text = f"{letter}) {chosen.text}\n\n{key.explanations(correct)}"
        return Feedback(Outcome.CORRECT, f"{text}\n\n{spec.insight}".rstrip())
    return Feedback(Outcome.WRONG, f"{letter}) {chosen.text}\n\n{chosen.explanation}\n\n{TRY_AGAIN}", chosen.text)


def _grade_number(key: Numeric, answer: float, insight: str) -> Feedback:
    """Feedback on a number that can be worked out; a wrong answer does not reveal the correct one."""
    if abs(answer - key.value) <= key.tolerance * abs(key.value):
        return Feedback(Outcome.CORRECT, f"{answer:.4g} is right.\n\n{insight}".rstrip())
    mistake = key.mistake_message(answer)
    return Feedback(Outcome.WRONG, f"It is not {answer:.4g}. {mistake}".rstrip() + f"\n\n{TRY_AGAIN}", mistake)


def _grade_predicted_option(spec: QuestionSpec, key: MultipleChoice, letter: str, measured: Any) -> Feedback:
    if key.from_measurement is not None and is_blank(measured):
        how = "Run the experiment of the lesson first, then give check() what it measured."
        return Feedback(Outcome.ERROR, how, opening="Nothing was measured yet")
    try:
        is_nan = isinstance(measured, float) and math.isnan(measured)  # compared with it, any option would do
        correct = None if is_nan else key.correct_letter(measured)
    except Exception:
        correct = None
    if correct is None:
        return _invalid_measurement(measured)
    options = key.by_letter
    if letter == correct:
        text = f"You predicted {letter}) {options[letter].text}, and so it is."
    else:
        text = f"You predicted {letter}) {options[letter].text}. What happens is {correct}) {options[correct].text}."
        text += " A surprise is worth more than a hit: say in a sentence why you expected the other."
    reasons = f"\n\n{key.explanations(correct)}" if any(option.explanation for option in key.options) else ""
    text = f"{text}{reasons}\n\n{spec.insight}".rstrip()
    if letter == correct:
        return Feedback(Outcome.CORRECT, text)
    return Feedback(Outcome.WRONG, text, options[letter].text, NOT_AS_PREDICTED)


def _invalid_measurement(measured: Any) -> Feedback:
    how = f"check() takes what the lesson hands it, in the cell where it stands; this is {format_answer(measured)}."
    return Feedback(Outcome.ERROR, how, opening="Nothing to compare with")


def _grade_predicted_number(key: Numeric, answer: float, measured: Any, insight: str) -> Feedback:
    truth = key.value
    if not is_blank(measured):
        number, _ = key.parse(measured)
        if number is None:
            return _invalid_measurement(measured)
        if abs(number - truth) > 0.5 * abs(truth):
            how = f"{number:.3g} was measured, which is far off. How was it computed: which way round is the ratio?"
            return Feedback(Outcome.ERROR, how, opening="Nothing to compare with")
        truth = number
    result = f"You predicted {answer:.4g}; it is {truth:.3g}."
    if abs(answer - truth) <= key.tolerance * abs(truth):
        return Feedback(Outcome.CORRECT, f"{result}\n\n{insight}".rstrip())
    mistake = key.mistake_message(answer)
    text = f"{result} {mistake}".rstrip() + f"\n\n{insight}".rstrip()
    return Feedback(Outcome.WRONG, text, mistake, NOT_AS_PREDICTED)
