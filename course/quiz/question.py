"""What a question of the quiz consists of."""

from __future__ import annotations

from dataclasses import dataclass

from course.specs import MultipleChoice, Option


@dataclass(frozen=True, repr=False)
class QuizQuestion:
    """A question about one lesson, with options of which exactly one is right; every option has an explanation.

    lesson: its number, "05". name: by which the progress file knows it. section: the heading to read again, as it
    stands in the lesson.
    """

    lesson: str
    name: str
    section: str
    question: str
    options: tuple[Option, ...]

    @property
    def key(self) -> MultipleChoice:
        """The options by letter, as the exercises have them."""
        return MultipleChoice(self.options)

    @property
    def correct(self) -> str:
        """The letter of the right option."""
        return self.key.correct_letter()


def right(text: str, because: str) -> Option:
    """The right option, and why it is right."""
    return Option(text, because, correct=True)


def wrong(text: str, because: str) -> Option:
    """A wrong option, and why it is wrong."""
    return Option(text, because)
