"""What an exercise is made of: its text, its right answer, the known wrong ones, and the verdict on an answer."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

WIDTH = 88  # characters of a line: a notebook on a small screen, and GitHub, show it unbroken


class Outcome(StrEnum):
    """The four things that a check can find."""

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
UNREADABLE = "This is not an answer yet"
SURPRISE = "Not as predicted"
AGAIN = "Think again, and answer anew; .hint() helps."


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check found: the outcome, what is said about it, and the name of the mistake if it is a known one.

    opening: the first words, where the usual ones of the outcome do not fit.
    """

    outcome: Outcome
    text: str
    mistake: str = ""
    opening: str = ""

    def __str__(self) -> str:
        return fold(f"{self.opening or OPENINGS[self.outcome]}. {self.text}")

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Case:
    """Arguments to try an answer with.

    note: what is special about them, if right answers elsewhere can fail here ("logits far apart"), and advice: what to
    say to those. show: how to write the arguments where they cannot be written out.
    """

    arguments: tuple[Any, ...]
    note: str = ""
    advice: str = ""
    show: str = ""


@dataclass(frozen=True, repr=False)
class Mistake:
    """A known wrong answer: a function that makes it, and what to say to who made it."""

    name: str
    wrong: Callable[..., Any]
    message: str


@dataclass(frozen=True, repr=False)
class Option:
    """One option of a question: its text, why it is right or wrong, and whether it is right."""

    text: str
    why: str
    right: bool = False


@dataclass(frozen=True, repr=False)
class Options:
    """A question with a few options, named a, b, c, ...; exactly one is right.

    judge: for a prediction whose outcome is measured, the letter that a measurement makes right.
    """

    options: tuple[Option, ...]
    judge: Callable[[Any], str] | None = None

    @property
    def by_letter(self) -> dict[str, Option]:
        """The options by their letters."""
        return dict(zip("abcdefgh", self.options, strict=False))

    def listed(self) -> str:
        """The options as they are shown with the question."""
        return "\n".join(f"  {letter}) {option.text}" for letter, option in self.by_letter.items())

    def explained(self, right: str) -> str:
        """Every option with its explanation, the right one marked."""
        mark = {True: "right", False: "wrong"}
        rows = ((f"{x}) {o.text}", mark[x == right], o.why) for x, o in self.by_letter.items())
        return "\n".join(
            f"  {text}\n     {word}: {why}" if why else f"  {text}\n     {word}" for text, word, why in rows
        )

    def right(self, measured: Any = None) -> str:
        """The letter of the right option."""
        if self.judge is not None:
            return self.judge(measured)
        return next(letter for letter, option in self.by_letter.items() if option.right)

    def read(self, answer: Any) -> tuple[str | None, str]:
        """The letter that was answered, or None and how to answer."""
        letter = answer.strip().strip(").").lower() if isinstance(answer, str) else None
        letters = list(self.by_letter)
        if letter in letters:
            return letter, ""
        return None, f"Answer with one letter in quotes, {_either(letters)}; this is {_shown(answer)}."


@dataclass(frozen=True, repr=False)
class Number:
    """A question with a number as its answer.

    tolerance: the share by which an answer may differ. slips: numbers that a known mistake leads to, and what to say.
    """

    value: float
    tolerance: float
    slips: tuple[tuple[float, str], ...] = ()

    def listed(self) -> str:
        """How to answer, as it is shown with the question."""
        return "  Answer with a number."

    def slip(self, given: float) -> str:
        """What to say to an answer that a known mistake leads to, or ""."""
        return next((text for value, text in self.slips if abs(given - value) <= 0.03 * abs(value)), "")

    def read(self, answer: Any) -> tuple[float | None, str]:
        """The number that was answered, or None and how to answer."""
        try:
            number = math.nan if isinstance(answer, (str, bool)) else float(answer)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number, ""
        return None, f"Answer with a number and without quotes, such as 2.5; this is {_shown(answer)}."


@dataclass(frozen=True, repr=False)
class Common:
    """What every exercise has.

    name: how the notebook calls it. minutes: to plan for. difficulty: easy, medium or hard. hints: shown one by one,
    the vaguest first. insight: said after a right answer, and with the solution: what the answer is good for.
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
class Code(Common):
    """A function to write.

    stub: what stands in the notebook. reference: the solution, shown as it stands. cases: makes the inputs, the first
    being the example that is shown. mistakes: known wrong answers. learns: the arguments to which the
    right gradient must come; the others, such as a teacher, may be detached.
    """

    stub: str = field(kw_only=True)
    reference: Callable[..., Any] = field(kw_only=True)
    cases: Callable[[], list[Case]] = field(kw_only=True)
    mistakes: tuple[Mistake, ...] = field(kw_only=True)
    learns: tuple[str, ...] = field(kw_only=True, default=())


@dataclass(frozen=True, repr=False)
class Choice(Common):
    """A question with options; a prediction is answered before something is run and compared afterwards."""

    key: Options | Number = field(kw_only=True)
    predicted: bool = field(kw_only=True, default=False)


@dataclass(frozen=True, repr=False)
class Exercises:
    """The exercises of one lesson, in order."""

    number: str
    title: str
    exercises: tuple[Code | Choice, ...]


def is_blank(answer: Any) -> bool:
    """Whether an answer is still the placeholder: ..., None or an empty text."""
    return answer is ... or answer is None or (isinstance(answer, str) and not answer.strip())


def fold(text: str) -> str:
    """The text in lines of at most 88 characters; lines that begin with four spaces are code and stay."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        code = len(indent) == 4
        more = indent + ("   " if line.lstrip()[1:3] == ") " else "")
        lines += [line] if code else _wrap(line, more)
    return "\n".join(lines)


def _wrap(line: str, indent: str) -> list[str]:
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, **options) or [""]


def grade(spec: Choice, answer: Any, measured: Any = None) -> Verdict:
    """The verdict on the answer to a question or a prediction; it raises nothing."""
    try:
        return _grade(spec, answer, measured)
    except Exception as error:  # an object that cannot even be looked at
        return Verdict(Outcome.ERROR, f"It cannot be read ({type(error).__name__}).", opening=UNREADABLE)


def _grade(spec: Choice, answer: Any, measured: Any) -> Verdict:
    if is_blank(answer):
        how = ".predict(...) comes first" if spec.predicted else "Put your answer in place of the dots"
        return Verdict(Outcome.NOT_ATTEMPTED, f"{how}. If you are stuck, .hint() helps.")
    given, how = spec.key.read(answer)
    if given is None:
        return Verdict(Outcome.ERROR, how, opening=UNREADABLE)
    if isinstance(spec.key, Number):
        if not spec.predicted:
            return _grade_quantity(spec.key, given, spec.insight)
        return _grade_number(spec.key, given, measured, spec.insight)
    if spec.predicted:
        return _grade_prediction(spec, spec.key, given, measured)
    right, chosen = spec.key.right(), spec.key.by_letter[given]
    if given == right:
        text = f"{given}) {chosen.text}\n\n{spec.key.explained(right)}"
        return Verdict(Outcome.CORRECT, f"{text}\n\n{spec.insight}" if spec.insight else text)
    return Verdict(Outcome.WRONG, f"{given}) {chosen.text}\n\n{chosen.why}\n\n{AGAIN}", chosen.text)


def _grade_quantity(key: Number, given: float, insight: str) -> Verdict:
    """The verdict on a number that can be worked out: a wrong answer is not told the right one."""
    if abs(given - key.value) <= key.tolerance * abs(key.value):
        return Verdict(Outcome.CORRECT, f"{given:.4g} is right.\n\n{insight}".rstrip())
    slip = key.slip(given)
    return Verdict(Outcome.WRONG, f"It is not {given:.4g}. {slip}".rstrip() + f"\n\n{AGAIN}", slip)


def _grade_prediction(spec: Choice, key: Options, given: str, measured: Any) -> Verdict:
    if key.judge is not None and is_blank(measured):
        how = "Run the experiment of the lesson first, then give check() what it measured."
        return Verdict(Outcome.ERROR, how, opening="Nothing was measured yet")
    try:
        lost = isinstance(measured, float) and math.isnan(measured)  # a comparison with it would choose any option
        right = None if lost else key.right(measured)
    except Exception:
        right = None
    if right is None:
        return _not_measured(measured)
    options = key.by_letter
    if given == right:
        text = f"You predicted {given}) {options[given].text}, and so it is."
    else:
        text = f"You predicted {given}) {options[given].text}. What happens is {right}) {options[right].text}."
        text += " A surprise is worth more than a hit: say in a sentence why you expected the other."
    reasons = f"\n\n{key.explained(right)}" if any(option.why for option in key.options) else ""
    text = f"{text}{reasons}\n\n{spec.insight}".rstrip()
    if given == right:
        return Verdict(Outcome.CORRECT, text)
    return Verdict(Outcome.WRONG, text, options[given].text, SURPRISE)


def _not_measured(measured: Any) -> Verdict:
    how = f"check() takes what the lesson hands it, in the cell where it stands; this is {_shown(measured)}."
    return Verdict(Outcome.ERROR, how, opening="Nothing to compare with")


def _grade_number(key: Number, given: float, measured: Any, insight: str) -> Verdict:
    truth = key.value
    if not is_blank(measured):
        found, _ = key.read(measured)
        if found is None:
            return _not_measured(measured)
        if abs(found - truth) > 0.5 * abs(truth):
            how = f"{found:.3g} was measured, which is far off. How was it computed: which way round is the ratio?"
            return Verdict(Outcome.ERROR, how, opening="Nothing to compare with")
        truth = found
    said = f"You predicted {given:.4g}; it is {truth:.3g}."
    if abs(given - truth) <= key.tolerance * abs(truth):
        return Verdict(Outcome.CORRECT, f"{said}\n\n{insight}".rstrip())
    slip = key.slip(given)
    return Verdict(Outcome.WRONG, f"{said} {slip}".rstrip() + f"\n\n{insight}".rstrip(), slip, SURPRISE)


def _either(letters: list[str]) -> str:
    quoted = [f'"{letter}"' for letter in letters]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _shown(answer: Any) -> str:
    """A short text for a value of any kind, also one whose repr fails."""
    short = isinstance(answer, (str, float)) or (isinstance(answer, int) and abs(answer) < 10**12)
    text = repr(answer) if short else ""
    return text if 0 < len(text) <= 22 else f"something of type {type(answer).__name__}"
