"""Asking, answering, and the report by lesson."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from course import progress_file
from course.grading import wrap
from course.quiz.beyond import BEYOND
from course.quiz.foundations import FOUNDATIONS
from course.quiz.question import QuizQuestion
from course.quiz.teaching import TEACHING
from course.specs import is_blank
from kdlib.errors import unknown_name

QUESTIONS: tuple[QuizQuestion, ...] = (*FOUNDATIONS, *TEACHING, *BEYOND)
GROUP = "quiz"  # before the names of the questions, in the progress file
RIGHT, WRONG = "done", "tried"  # the states of the progress file
VIEW = "application/vnd.jupyter.widget-view+json"


class Quiz:
    """The questions and what has been answered; displayed in a notebook it has controls.

    Questions are numbered from 1. The first answer to a question counts; `again()` asks for the wrong ones anew.
    """

    def __init__(self, questions: Sequence[QuizQuestion] = QUESTIONS) -> None:
        self.questions = tuple(questions)
        saved, self.problem = progress_file.read()
        self.states = {one.name: saved.get(f"{GROUP}.{one.name}", "") for one in self.questions}
        self._round: set[str] = set()  # answered since it was loaded, or since again()

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[QuizQuestion]:
        return iter(self.questions)

    def question(self, number: int) -> QuizQuestion:
        """The question of this number, from 1; ValueError for another one."""
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= len(self):
            raise ValueError(f"The questions are numbered from 1 to {len(self)}; there is no question {number!r}.")
        return self.questions[number - 1]

    def text(self, number: int) -> str:
        """A question with its options, as plain text."""
        one = self.question(number)
        title = lesson_title(one.lesson)
        head = f"Question {number} of {len(self)}, lesson {one.lesson}{', ' * bool(title)}{title}"
        return wrap(f"{head}\n\n{one.question}\n\n{one.key.prompt()}")

    def ask(self, number: int | None = None) -> None:
        """Print a question; without a number the next one that is not right yet."""
        chosen = self.next_number() if number is None else number
        if number is None and not chosen:
            print("No question is open. .report() shows what was right, and .again() asks the wrong ones once more.")
            return
        print(self.text(chosen))

    def next_number(self, after: int = 0) -> int:
        """The number of the next question after this one that is not right and not answered yet, else 0."""
        order = [*range(after + 1, len(self) + 1), *range(1, after + 1)]
        open_ones = (n for n in order if self.states[self.questions[n - 1].name] != RIGHT)
        return next((n for n in open_ones if self.questions[n - 1].name not in self._round), 0)

    def answer(self, number: int, letter: Any = ...) -> None:
        """Print whether an answer is right, and why each option is right or wrong."""
        print(self.grade(number, letter))

    def grade(self, number: int, letter: Any = ...) -> str:
        """What `answer` prints; the first answer to a question is kept."""
        one = self.question(number)
        if is_blank(letter):
            return 'Not attempted yet. Put a letter in quotes in place of the dots, such as "b".'
        chosen, how = one.key.parse(letter)
        if chosen is None:
            return wrap(f"This is not an answer yet. {how}")
        note = self.keep(number, chosen)
        verdict = "Right" if chosen == one.correct else "Wrong"
        text = f"{verdict}: {chosen}) {one.key.by_letter[chosen].text}\n\n{one.key.explanations(one.correct)}"
        read = f"Read again: {self.where(one)}." if chosen != one.correct else ""
        return wrap("\n\n".join(filter(None, (text, read, note))))

    def keep(self, number: int, letter: str) -> str:
        """Store an answer, unless another one counts already; returns "", or a sentence for the learner."""
        one = self.question(number)
        if one.name in self._round or self.states[one.name] == RIGHT:
            return "(Your first answer counts; this one is not stored.)"
        self._round.add(one.name)
        self.states[one.name] = RIGHT if letter == one.correct else WRONG
        return progress_file.save(GROUP, one.name, self.states[one.name])

    def again(self) -> None:
        """Let the questions that were answered wrongly be answered once more; sleep over it first."""
        self._round.clear()
        count = list(self.states.values()).count(WRONG)
        print(f"{count} question{'s' * (count != 1)} to answer once more.")

    def forget(self) -> None:
        """Begin anew: forget the answers to these questions, in the progress file too."""
        problem = progress_file.forget(GROUP, self.states)
        self._round.clear()
        self.states = dict.fromkeys(self.states, "")
        print(problem or f"The answers to {len(self)} questions are forgotten.")

    @staticmethod
    def where(one: QuizQuestion) -> str:
        """What to read again, in words."""
        section = f', section "{one.section}"' if one.section else ""
        return f"lesson {one.lesson}{section}"

    def summary(self) -> str:
        """How many questions are right, wrong and open, in one line."""
        states = list(self.states.values())
        right, wrong = states.count(RIGHT), states.count(WRONG)
        return f"{right} of {len(self)} right, {wrong} wrong, {len(self) - right - wrong} open"

    def report_text(self, again: str = ".again()") -> str:
        """What `report` prints."""
        lines = [f"Quiz: {self.summary()}"]
        for number in dict.fromkeys(one.lesson for one in self.questions):
            own = [one for one in self.questions if one.lesson == number]
            right = sum(self.states[one.name] == RIGHT for one in own)
            lines.append(f"  {number}  {lesson_title(number):42}  {right} of {len(own)} right")
            lines += [
                f'        read again: "{one.section or lesson_title(number) or "lesson " + number}"'
                for one in own
                if self._failed(one)
            ]
        weak = list(dict.fromkeys(one.lesson for one in self.questions if self._failed(one)))
        if weak:
            lines.append(f"Read again: lesson{'s' * (len(weak) > 1)} {', '.join(weak)}. Then {again} asks once more.")
        return "\n".join([*lines, *([self.problem] if self.problem else [])])

    def report(self, again: str = ".again()") -> None:
        """Print how many questions are right, lesson by lesson, and which sections to read again.

        again: what asks the wrong ones once more.
        """
        print(self.report_text(again))

    def _failed(self, one: QuizQuestion) -> bool:
        return self.states[one.name] == WRONG

    def __repr__(self) -> str:
        number = self.next_number()
        one = min(7, len(self))
        head = f"Quiz: {self.summary()}. q.ask({one}) shows question {one}, q.answer({one}, ...) answers it."
        return f"{head}\n\n{self.text(number)}" if number else head

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Controls where there is ipywidgets and a kernel, and plain text everywhere."""
        try:
            from course.quiz.widget import Controls
        except ImportError:
            return {"text/plain": repr(self)}
        controls = Controls(self)
        return {VIEW: controls.view._repr_mimebundle_()[VIEW], "text/plain": repr(self)}


def load(*lessons: str | int) -> Quiz:
    """The quiz, or its questions about some lessons: load("05"), load("00", "03").

    Raises ValueError for a lesson without questions.
    """
    known = dict.fromkeys(one.lesson for one in QUESTIONS)
    numbers = {str(lesson).zfill(2): lesson for lesson in lessons}
    for number, lesson in numbers.items():
        if number not in known:
            raise unknown_name("lesson with questions", lesson, known)
    return Quiz([one for one in QUESTIONS if one.lesson in numbers or not numbers])


@cache
def lesson_title(number: str) -> str:
    """The title of a lesson, "" where the lessons are not: they are in the repository, not in the package."""
    for path in (Path(__file__).parents[2] / "notebooks").glob(f"{number}_*.ipynb"):
        first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
        text = first if isinstance(first, str) else "".join(first)
        return text.splitlines()[0].lstrip("# ")
    return ""
