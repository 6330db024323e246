"""The exercises of the lessons: check an answer, ask for a hint, see the solution, look at what is done.

    from kdlib.classroom import exercises

    q = exercises.load("04")
    q                                    # the list; q.soft_loss alone shows one exercise

    def soft_loss(student_logits, teacher_logits, temperature):
        ...

    q.soft_loss.check(soft_loss)         # a function to write
    q.law.check("b")                     # a question
    q.gradient.predict(2)                # a prediction: before something is run,
    q.gradient.check()                   # and compared with it afterwards

Everything is printed as plain text, and nothing raises, so a notebook that nobody filled in runs to its end and says
"Not attempted yet". A done exercise is remembered in a local file: see `kdlib.classroom.records`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from kdlib._messages import unknown
from kdlib.classroom import lessons, marking, records
from kdlib.classroom.questions import Choice, Code, Common, Exercises, Number, Options, Outcome, Verdict, fold, grade


class Exercise:
    """One exercise; showing it prints its question.

    check(answer) says whether the answer is right, hint() gives one hint more each time, and solution() is the only
    thing that gives the answer away. review(answer) returns what check prints, and remembers nothing.
    """

    def __init__(self, lesson: str, spec: Common) -> None:
        self._lesson, self._spec, self._hints = lesson, spec, 0

    name = property(lambda self: self._spec.name, doc="How the lesson calls the exercise.")
    title = property(lambda self: self._spec.title, doc="What the exercise is about.")
    kind = property(lambda self: self._spec.kind, doc="Code, question, figure or prediction.")
    difficulty = property(lambda self: self._spec.difficulty, doc="Easy, medium or hard.")
    minutes = property(lambda self: self._spec.minutes, doc="How long it may take.")

    def __repr__(self) -> str:
        head = f"{self.title}\n{self.kind}, {self.difficulty}, about {self.minutes} minutes"
        return fold(f"{head}\n\n{self._spec.question}\n\n{self._details()}")

    def review(self, answer: Any = ...) -> Verdict:
        """Judge an answer and return the verdict; nothing is printed or remembered."""
        raise NotImplementedError

    def check(self, answer: Any = ...) -> None:
        """Judge an answer and print the verdict: not attempted, wrong, error or correct."""
        self._tell(self.review(answer))

    def hint(self) -> None:
        """Print the next hint."""
        hints = self._spec.hints
        self._hints = min(self._hints + 1, len(hints))
        print(fold(f"Hint {self._hints} of {len(hints)}. {hints[self._hints - 1]}"))

    def solution(self) -> None:
        """Print the solution."""
        print(self._solution())

    def _details(self) -> str:
        raise NotImplementedError

    def _solution(self) -> str:
        raise NotImplementedError

    def _tell(self, verdict: Verdict) -> None:
        print(verdict)
        state = self._state(verdict.outcome)
        trouble = records.note(self._lesson, self.name, state) if state else ""
        if trouble:
            print(fold(trouble))

    def _state(self, outcome: Outcome) -> str:
        return {Outcome.CORRECT: "done", Outcome.WRONG: "tried", Outcome.ERROR: "tried"}.get(outcome, "")


class CodeExercise(Exercise):
    """A function to write: check(function)."""

    _spec: Code

    @property
    def stub(self) -> str:
        """The unfilled function, as the notebook should have it."""
        return self._spec.stub

    def review(self, answer: Any = ...) -> Verdict:
        """Try a function on several inputs and return the verdict."""
        return marking.mark(self._spec, answer)

    def _details(self) -> str:
        return f"Example:\n    {marking.example(self._spec)}"

    def _solution(self) -> str:
        source = inspect.getsource(self._spec.reference)
        body = ast.parse(source).body[0].body[0].lineno  # type: ignore[attr-defined]
        # The first line is the stub's: type hints would need imports that the notebook lacks.
        lines = [self._spec.stub.splitlines()[0], *source.splitlines()[body - 1 :]]
        code = "\n".join(f"    {line}".rstrip() for line in lines)
        return f"Solution:\n\n{code}\n\n{fold(self._spec.insight)}".rstrip()


class Question(Exercise):
    """A question with options: check("b")."""

    _spec: Choice

    def review(self, answer: Any = ...) -> Verdict:
        """Compare a letter with the right one and return the verdict."""
        return grade(self._spec, answer)

    def _details(self) -> str:
        return self._spec.key.listed()

    def _solution(self) -> str:
        key = self._spec.key
        if isinstance(key, Number):
            return fold(f"Solution: {key.value:g}\n\n{self._spec.insight}").rstrip()
        right = key.right()
        return fold(f"Solution: {right}\n\n{key.explained(right)}\n\n{self._spec.insight}").rstrip()


class Prediction(Question):
    """A prediction: predict(answer) before something is run, check() or check(measured) afterwards."""

    def __init__(self, lesson: str, spec: Common) -> None:
        super().__init__(lesson, spec)
        self._predicted: Any = ...

    def predict(self, answer: Any = ...) -> None:
        """Note a prediction; it is compared later, by check(), and may be changed until then."""
        blank = grade(self._spec, answer)
        if blank.outcome is Outcome.NOT_ATTEMPTED:
            print("Not attempted yet. Put your prediction in place of the dots: a wrong one costs nothing.")
            return
        given, how = self._spec.key.read(answer)
        if given is None:
            print(fold(f"This is not a prediction yet. {how}"))
            return
        self._predicted = given
        said = f"{given:g}" if isinstance(given, float) else given
        print(f"Noted: {said}. Now run the experiment; check() compares.")

    def review(self, measured: Any = ...) -> Verdict:
        """Compare the prediction with what was measured, or with what is known, and return the verdict."""
        return grade(self._spec, self._predicted, measured)

    def _solution(self) -> str:
        key = self._spec.key
        known = isinstance(key, Options) and key.judge is None
        reasons = f"\n\n{key.explained(key.right())}" if known else ""
        return fold(f"Solution: run it and compare with check().{reasons}\n\n{self._spec.insight}")

    def _state(self, outcome: Outcome) -> str:
        # To have predicted is what counts, not to have been right.
        return "done" if outcome in (Outcome.CORRECT, Outcome.WRONG) else ""


class Lesson:
    """The exercises of one lesson as attributes; showing it prints the list."""

    def __init__(self, spec: Exercises) -> None:
        self._number, self._title = spec.number, spec.title
        self._exercises = {one.name: _exercise(spec.number, one) for one in spec.exercises}

    def __getattr__(self, name: str) -> Exercise:
        found = self.__dict__.get("_exercises", {})
        if name in found:
            return found[name]
        if name.startswith("_"):  # asked for by Python and by IPython itself
            raise AttributeError(name)
        raise AttributeError(str(unknown(f"exercise of lesson {self._number}", name, found)))

    def __dir__(self) -> list[str]:
        return [*self._exercises, "progress"]

    def __iter__(self) -> Any:
        return iter(self._exercises.values())

    def __repr__(self) -> str:
        minutes = sum(exercise.minutes for exercise in self)
        head = f"Lesson {self._number}, {self._title}: {len(self._exercises)} exercises, about {minutes} minutes"
        rows = [[e.name, e.kind, e.difficulty, f"{e.minutes} min", e.title] for e in self]
        return "\n".join([head, *_aligned(rows)])

    def progress(self) -> None:
        """Print which exercises of this lesson are done."""
        progress(self._number)


def _exercise(lesson: str, spec: Code | Choice) -> Exercise:
    if isinstance(spec, Code):
        return CodeExercise(lesson, spec)
    return Prediction(lesson, spec) if spec.predicted else Question(lesson, spec)


def numbers() -> list[str]:
    """The lessons that have exercises, as "00", "01", ..."""
    found = (module.name for module in pkgutil.iter_modules(lessons.__path__))
    return sorted(name.removeprefix("lesson") for name in found if name.startswith("lesson"))


def load(lesson: str | int) -> Lesson:
    """The exercises of a lesson: load("04"). The same lesson, with its predictions, each time in a session.

    Raises ValueError for a lesson that has none.
    """
    number = str(lesson).zfill(2)
    if number not in numbers():
        raise unknown("lesson with exercises", lesson, numbers())
    return _loaded(number)


@cache
def _loaded(number: str) -> Lesson:
    return Lesson(importlib.import_module(f"kdlib.classroom.lessons.lesson{number}").EXERCISES)


def progress(lesson: str | int | None = None) -> None:
    """Print which exercises are done, of one lesson or of all: a table without times or names of people."""
    chosen = [load(lesson)] if lesson is not None else [load(number) for number in numbers()]
    record, trouble = records.read()
    words = {"done": "done", "tried": "tried, not right yet"}
    done = total = 0
    for one in chosen:
        states = {exercise.name: record.get(f"{one._number}.{exercise.name}", "") for exercise in one}
        ready = sum(state == "done" for state in states.values())
        print(f"Lesson {one._number}, {one._title}: {ready} of {len(states)} done")
        rows = [[e.name, e.kind, f"{e.minutes} min", words.get(states[e.name], "not attempted")] for e in one]
        print("\n".join(_aligned(rows)))
        done, total = done + ready, total + len(states)
    if len(chosen) > 1:
        print(f"All lessons: {done} of {total} done")
    if trouble:
        print(fold(trouble))


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
