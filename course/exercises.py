"""The exercises of the lessons: check an answer, ask for a hint, see the solution, look at what is done.

    from course import exercises

    q = exercises.load("04")
    q                                    # the list; q.soft_loss alone shows one exercise

    def soft_loss(student_logits, teacher_logits, temperature):
        ...

    q.soft_loss.check(soft_loss)         # a function to write
    q.law.check("b")                     # a question
    q.gradient.predict(2)                # a prediction, made before an experiment
    q.gradient.check()                   # and compared with its result afterwards

Everything is printed as plain text and nothing raises: an unfilled notebook runs to its end and prints "Not attempted
yet". Progress is stored in a local file: see `course.progress_file`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Any

from course import code_grading, lessons, progress_file
from course.grading import INVALID, Feedback, Outcome, grade_question, wrap
from course.specs import CodeSpec, ExerciseSpec, LessonSpec, MultipleChoice, Numeric, QuestionSpec
from kdlib.errors import unknown_name

SEVERAL = "Several values stand in the brackets, where one is expected. A decimal number has a point: 0.5, and not 0,5."


class Exercise:
    """One exercise; displaying it prints its question.

    check(answer) says whether the answer is correct, hint() gives one more hint each time, and only solution() reveals
    the answer. grade(answer) returns what check prints, and stores nothing.
    """

    def __init__(self, lesson: str, spec: ExerciseSpec) -> None:
        self._lesson, self._spec, self._hints = lesson, spec, 0

    name = property(lambda self: self._spec.name, doc="The attribute of the lesson under which the exercise is found.")
    title = property(lambda self: self._spec.title, doc="What the exercise is about.")
    kind = property(lambda self: self._spec.kind, doc="Code, question, figure or prediction.")
    difficulty = property(lambda self: self._spec.difficulty, doc="Easy, medium or hard.")
    minutes = property(lambda self: self._spec.minutes, doc="How many minutes to plan for it.")

    def __repr__(self) -> str:
        head = f"{self.title}\n{self.kind}, {self.difficulty}, about {self.minutes} minutes"
        return wrap(f"{head}\n\n{self._spec.question}\n\n{self._details()}")

    def grade(self, answer: Any = ...) -> Feedback:
        """Grade an answer and return the feedback; nothing is printed or stored."""
        raise NotImplementedError

    def check(self, answer: Any = ..., *more: Any) -> None:
        """Grade an answer and print the feedback: not attempted, wrong, error or correct."""
        feedback = Feedback(Outcome.ERROR, SEVERAL, opening=INVALID) if more else self.grade(answer)
        print(feedback)
        state = self._progress_state(feedback.outcome)
        problem = progress_file.save(self._lesson, self.name, state) if state else ""
        if problem:
            print(wrap(problem))

    def hint(self) -> None:
        """Print the next hint."""
        hints = self._spec.hints
        self._hints = min(self._hints + 1, len(hints))
        print(wrap(f"Hint {self._hints} of {len(hints)}. {hints[self._hints - 1]}"))

    def solution(self) -> None:
        """Print the solution."""
        print(self._solution())

    def _details(self) -> str:
        raise NotImplementedError

    def _solution(self) -> str:
        raise NotImplementedError

    def _progress_state(self, outcome: Outcome) -> str:
        return {Outcome.CORRECT: "done", Outcome.WRONG: "tried", Outcome.ERROR: "tried"}.get(outcome, "")


class CodeExercise(Exercise):
    """A function to write: check(function)."""

    _spec: CodeSpec

    @property
    def stub(self) -> str:
        """The unfilled function as it stands in the notebook."""
        return self._spec.stub

    def grade(self, answer: Any = ...) -> Feedback:
        """Try a function on several inputs and return the feedback."""
        return code_grading.grade_code(self._spec, answer)

    def _details(self) -> str:
        return f"Example:\n    {code_grading.format_example(self._spec)}"

    def _solution(self) -> str:
        source = inspect.getsource(self._spec.reference)
        body = ast.parse(source).body[0].body[0].lineno  # type: ignore[attr-defined]
        # The stub's first line: the type hints of the reference need imports that the notebook lacks.
        lines = [self._spec.stub.splitlines()[0], *source.splitlines()[body - 1 :]]
        code = "\n".join(f"    {line}".rstrip() for line in lines)
        return f"Solution:\n\n{code}\n\n{wrap(self._spec.insight)}".rstrip()


class Question(Exercise):
    """A question with options: check("b")."""

    _spec: QuestionSpec

    def grade(self, answer: Any = ...) -> Feedback:
        """Compare an answer with the correct one and return the feedback."""
        return grade_question(self._spec, answer)

    def _details(self) -> str:
        return self._spec.answer_key.prompt()

    def _solution(self) -> str:
        key = self._spec.answer_key
        if isinstance(key, Numeric):
            return wrap(f"Solution: {key.value:g}\n\n{self._spec.insight}").rstrip()
        letter = key.correct_letter()
        return wrap(f"Solution: {letter}\n\n{key.explanations(letter)}\n\n{self._spec.insight}").rstrip()


class Prediction(Question):
    """A prediction: predict(answer) before an experiment, check() or check(measured) afterwards."""

    def __init__(self, lesson: str, spec: ExerciseSpec) -> None:
        super().__init__(lesson, spec)
        self._prediction: Any = ...

    def predict(self, answer: Any = ..., *more: Any) -> None:
        """Record a prediction, which check() compares later; until then it may be changed."""
        if more:
            print(wrap(f"This is not a prediction yet. {SEVERAL}"))
            return
        if grade_question(self._spec, answer).outcome is Outcome.NOT_ATTEMPTED:
            print("Not attempted yet. Put your prediction in place of the dots: a wrong one costs nothing.")
            return
        prediction, how = self._spec.answer_key.parse(answer)
        if prediction is None:
            print(wrap(f"This is not a prediction yet. {how}"))
            return
        self._prediction = prediction
        shown = f"{prediction:g}" if isinstance(prediction, float) else prediction
        print(f"Noted: {shown}. Now run the experiment; check() compares.")

    def grade(self, measured: Any = ...) -> Feedback:
        """Compare the prediction with what was measured, or with the known answer, and return the feedback."""
        return grade_question(self._spec, self._prediction, measured)

    def _solution(self) -> str:
        key = self._spec.answer_key
        reasons = ""
        if isinstance(key, MultipleChoice) and key.from_measurement is None:
            reasons = f"\n\n{key.explanations(key.correct_letter())}"
        return wrap(f"Solution: run it and compare with check().{reasons}\n\n{self._spec.insight}")

    def _progress_state(self, outcome: Outcome) -> str:
        # Predicting counts, also when the prediction was wrong.
        return "done" if outcome in (Outcome.CORRECT, Outcome.WRONG) else ""


class Lesson:
    """The exercises of one lesson as attributes; displaying it prints the list."""

    def __init__(self, spec: LessonSpec) -> None:
        self._number, self._title = spec.number, spec.title
        self._exercises = {exercise.name: _make_exercise(spec.number, exercise) for exercise in spec.exercises}

    def __getattr__(self, name: str) -> Exercise:
        exercises = self.__dict__.get("_exercises", {})
        if name in exercises:
            return exercises[name]
        if name.startswith("_"):  # looked up by Python and IPython themselves
            raise AttributeError(name)
        raise AttributeError(str(unknown_name(f"exercise of lesson {self._number}", name, exercises)))

    def __dir__(self) -> list[str]:
        return [*self._exercises, "progress"]

    def __iter__(self) -> Iterator[Exercise]:
        return iter(self._exercises.values())

    def __repr__(self) -> str:
        minutes = sum(exercise.minutes for exercise in self)
        head = f"Lesson {self._number}, {self._title}: {len(self._exercises)} exercises, about {minutes} minutes"
        rows = [[e.name, e.kind, e.difficulty, f"{e.minutes} min", e.title] for e in self]
        return "\n".join([head, *_align_columns(rows)])

    def progress(self) -> None:
        """Print which exercises of this lesson are done."""
        progress(self._number)


def _make_exercise(lesson: str, spec: CodeSpec | QuestionSpec) -> Exercise:
    if isinstance(spec, CodeSpec):
        return CodeExercise(lesson, spec)
    return Prediction(lesson, spec) if spec.is_prediction else Question(lesson, spec)


def list_lessons() -> list[str]:
    """The lessons that have exercises, as "00", "01", ..."""
    names = (module.name for module in pkgutil.iter_modules(lessons.__path__))
    return sorted(name.removeprefix("lesson") for name in names if name.startswith("lesson"))


def load(lesson: str | int) -> Lesson:
    """The exercises of a lesson: load("04"). In one session it is always the same object, with its predictions.

    Raises ValueError for a lesson that has none.
    """
    number = str(lesson).zfill(2)
    if number not in list_lessons():
        raise unknown_name("lesson with exercises", lesson, list_lessons())
    return _load(number)


@cache
def _load(number: str) -> Lesson:
    return Lesson(importlib.import_module(f"course.lessons.lesson{number}").EXERCISES)


def progress(lesson: str | int | None = None) -> None:
    """Print which exercises are done, of one lesson or of all, without times or names of people."""
    chosen = [load(lesson)] if lesson is not None else [load(number) for number in list_lessons()]
    saved, problem = progress_file.read()
    labels = {"done": "done", "tried": "tried, not right yet"}
    done = total = 0
    for one in chosen:
        states = {exercise.name: saved.get(f"{one._number}.{exercise.name}", "") for exercise in one}
        finished = sum(state == "done" for state in states.values())
        print(f"Lesson {one._number}, {one._title}: {finished} of {len(states)} done")
        rows = [[e.name, e.kind, f"{e.minutes} min", labels.get(states[e.name], "not attempted")] for e in one]
        print("\n".join(_align_columns(rows)))
        done, total = done + finished, total + len(states)
    if len(chosen) > 1:
        print(f"All lessons: {done} of {total} done")
    if problem:
        print(wrap(problem))


def _align_columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
