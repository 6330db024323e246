"""A patient to a learner: look at its script and its curves, name what is wrong, change lines, see whether that helps.

Everything is printed and nothing raises, as for exercises.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from course import code_grading, plots, sandbox
from course.clinic import figure, script, ward
from course.clinic.cases import CASES, DIAGNOSES, Case
from course.clinic.script import ScriptError
from course.clinic.ward import Course
from course.grading import Feedback, Outcome, wrap
from kdlib.doctor import Report

TIME_LIMIT = 60.0  # seconds for running, examining and training a script that was changed
LARGE = 200.0  # logits of a student that is sure and wrong
SAME = 1e-4  # of the length of a gradient: two ways to write one formula differ by less


class Patient:
    """One of the ten; displaying it prints its script with numbered lines.

    train() shows its curves. name("c") names what is wrong; two faults are named together, name("c", "d").
    treat({12: "..."}) runs the script with another line 12. hint() and solution() are there for who is stuck.
    """

    def __init__(self, case: Case) -> None:
        self.case, self._hints = case, 0

    @property
    def source(self) -> str:
        """The script as it came."""
        return script.source(self.case.number)

    @property
    def cured_source(self) -> str:
        """The script as it should be."""
        text = self.source
        for old, new in self.case.cure:
            text = text.replace(old, new)
        return text

    def __repr__(self) -> str:
        lines = self.source.splitlines()
        start = next(number for number, line in enumerate(lines, 1) if line.startswith("T, ALPHA"))
        shown = [lines[0].strip().strip('"').rstrip(), ""]
        shown += [f"{number:2}  {line}".rstrip() for number, line in enumerate(lines, 1) if number >= start]
        return "\n".join([f"Patient {self.case.number}. {shown[0]}", *shown[1:]])

    def course(self, seed: int = 0, cured: bool = False) -> Course:
        """Its training as it came, or as it should be; trained once."""
        return _trained(self.cured_source if cured else self.source, seed)

    def control(self, seed: int = 0) -> Course:
        """The same student on hard labels alone; trained once."""
        return _control(seed, self.case.shelves)

    def train(self) -> None:
        """Train it as it came and show the curves; one run."""
        plots.show(figure.draw(self.course(), self.control()), alt=self.case.seen)

    def examine(self, cured: bool = False) -> Report:
        """What kdlib's doctor says."""
        return script.prepare(self.cured_source if cured else self.source).examine()

    # -------------------- the diagnosis

    def name(self, *letters: Any) -> None:
        """Say what is wrong, by letters of `clinic.diagnoses()`, and print whether that is so."""
        print(self.grade_name(*letters))

    def grade_name(self, *letters: Any) -> Feedback:
        """As `name`, returned."""
        if not letters or any(one is ... for one in letters):
            return Feedback(Outcome.NOT_ATTEMPTED, "Name it by a letter in quotes; .hint() helps.")
        given = {str(one).strip().lower() for letter in letters for one in str(letter).replace(",", " ").split()}
        unknown = sorted(given - set(DIAGNOSES))
        if unknown or not given:
            how = 'Give letters from "a" to "n" in quotes, as in name("c") or name("c", "d").'
            return Feedback(Outcome.ERROR, how, opening="This is no diagnosis yet")
        real = set(self.case.faults) or {"a"}
        if real <= given <= real | set(self.case.also):
            text = f"{self._titles(given)}\n\n{self.case.insight}\n\n{self._stories()}"
            return Feedback(Outcome.CORRECT, text.strip())
        wrong = sorted(given - real)
        parts = [f"{letter}) {DIAGNOSES[letter].title}.\n{self._sign(letter)}" for letter in wrong]
        if given & real:
            parts.insert(0, f"{self._titles(given & real)}: that is right.")
        if not wrong:
            parts.append("And there is another fault.")
        return Feedback(Outcome.WRONG, "\n\n".join(parts), wrong[0] if wrong else "one of two")

    def _sign(self, letter: str) -> str:
        """What to say of a letter that is none of the faults."""
        if letter in self.case.also:
            return f"True, and it follows from another fault: {self.case.also[letter]}"
        return DIAGNOSES[letter].sign

    def _titles(self, letters: set[str]) -> str:
        return "; ".join(f"{letter}) {DIAGNOSES[letter].title}" for letter in sorted(letters))

    def _stories(self) -> str:
        return "\n".join(f"Seen in: {what}.\n    {link}" for what, link in self.case.stories)

    # -------------------- the treatment

    def treat(self, changes: Any = ...) -> None:
        """Run the script with other lines, {number: text}, and print and show what that changes."""
        feedback, course = self._treated(changes)
        print(feedback)
        if course is not None:
            alt = f"The treated patient {self.case.number} beside hard labels alone and itself before the treatment."
            plots.show(figure.draw(course, self.control(), self.course()), alt=alt)

    def grade_treatment(self, changes: Any = ...) -> Feedback:
        """As `treat`, returned, without a figure."""
        return self._treated(changes)[0]

    def _treated(self, changes: Any) -> tuple[Feedback, Course | None]:
        if changes is ... or changes is None:
            text = "Give lines by their numbers, treat({20: '...'}), or none: treat({})."
            return Feedback(Outcome.NOT_ATTEMPTED, text), None
        if not isinstance(changes, Mapping):
            how = "treat() takes lines by their numbers: treat({20: 'soft = ...'})."
            return Feedback(Outcome.ERROR, how, opening="This is no treatment yet"), None
        try:
            text = script.edited(self.source, changes)
        except ScriptError as error:
            return Feedback(Outcome.ERROR, str(error)), None
        result = sandbox.call(_try, [text], TIME_LIMIT)
        trial = result.value
        if result.timed_out:
            feedback = Feedback(Outcome.ERROR, f"It was stopped after {TIME_LIMIT:g} seconds.")
        elif result.error is not None:
            feedback = Feedback(Outcome.ERROR, f"The script ended with {type(result.error).__name__}.")
        elif isinstance(trial, str):
            feedback = Feedback(Outcome.ERROR, trial)
        else:
            feedback = self._judge(trial)
        feedback = code_grading.with_printed_output(feedback, result)
        return feedback, trial.course if isinstance(trial, _Trial) else None

    def _judge(self, trial: _Trial) -> Feedback:
        """By what the doctor finds now, and whether it is the training that the author describes."""
        found = {one.check for one in trial.report.faults}
        left = [letter for letter in self.case.faults if found & set(DIAGNOSES[letter].checks)]
        # A term that became 0 shows in the gradient; one that is 0 because alpha is 0 does no harm.
        expected = _consequences(self.case) | {"term-trivial"}
        new = [one for one in trial.report.faults if one.check not in expected]
        cured = script.prepare(self.cured_source)
        same = _same_gradient(trial.gradient, cured.first_gradient())
        same_large = _same_gradient(trial.large, cured.first_gradient(LARGE))
        # The doctor tries other sizes as well; a mean by the size of these batches it only doubts.
        sizes = any(one.check in DIAGNOSES["d"].checks for one in trial.report.findings)
        if sizes and same and same_large:
            text = "For this task the gradient is right now, but a number is written into the formula: with "
            text += "other sizes, such as more classes or a smaller batch, it would be wrong. Take it from the tensor."
            return Feedback(Outcome.WRONG, text, "written number")
        if left:
            gone = len(self.case.faults) - len(left)
            text = "One fault is gone, the other is not." if gone else "The fault is still there."
            return Feedback(Outcome.WRONG, text, "still there")
        if new:
            text = f"What was wrong is gone, but the doctor finds something else, {new[0].check}.\n\n{new[0].measured}"
            return Feedback(Outcome.WRONG, text, new[0].check)
        if not same:
            text = "The doctor finds no fault, but it is not the training that the first line describes: for the same "
            text += "batch the gradient is another one. Change only what is wrong."
            known = {one.check for one in script.prepare(self.cured_source).examine().findings}
            doubts = [one.measured for one in trial.report.findings if one.check not in known]
            text = "\n\n".join([text, *doubts])
            return Feedback(Outcome.WRONG, text, "another training")
        if not same_large:
            text = "For this batch it is right, but a student that is sure and wrong gets another gradient than it "
            text += "should, or none: a number added to a probability, or a clamp, hides how wrong it is. log_softmax "
            text += "needs neither."
            return Feedback(Outcome.WRONG, text, "large logits")
        if trial.hotter is not None and not _same_gradient(trial.hotter, self._hotter_gradient()):
            text = "At this T the gradient is right now, but a number is written into the formula: at another T the "
            text += "fault is back. Write T."
            return Feedback(Outcome.WRONG, text, "written temperature")
        if trial.shuffles != cured.loader.shuffle:
            text = "Each batch is right, but now the training sees one order in every epoch. Its own loader has to "
            text += "shuffle; where answers are stored, another one need not."
            return Feedback(Outcome.WRONG, text, "order")
        if any(one != cured.steps()[0] for one in trial.steps):
            text = "Each gradient is right, but the optimiser makes another step of it: its kind or its options, such "
            text += "as the learning rate, are others than the author's. Change only what is wrong."
            return Feedback(Outcome.WRONG, text, "another training")
        before, after = (100 * one.accuracies[-1] for one in (self.course(), trial.course))
        text = f"It trains as described. In this one run: {before:.1f} % before, {after:.1f} % now, "
        text += f"{100 * self.control().accuracies[-1]:.1f} % by hard labels alone."
        return Feedback(Outcome.CORRECT, text if self.case.faults else f"Nothing had to be changed. {text}")

    def _hotter_gradient(self) -> Tensor:
        text = script.hotter(self.cured_source)
        assert text is not None  # the scripts set T where `hotter` looks for it
        return script.prepare(text).first_gradient()

    # -------------------- help

    def hint(self) -> None:
        """Print the next hint."""
        hints = self.case.hints
        self._hints = min(self._hints + 1, len(hints))
        print(wrap(f"Hint {self._hints} of {len(hints)}. {hints[self._hints - 1]}"))

    def solution(self) -> None:
        """Print the diagnosis and the lines that change."""
        old, new = (text.splitlines() for text in (self.source, self.cured_source))
        lines = [f"    - {line}" for line in old if line not in new] + [
            f"    + {line}" for line in new if line not in old
        ]
        text = f"{self._titles(set(self.case.faults) or {'a'})}\n\n{self.case.insight}\n\n{self._stories()}"
        print(wrap("\n".join([text, "", *lines]).rstrip()))


def _consequences(case: Case) -> set[str]:
    """Checks that find a fault of this patient a second time."""
    return case.checks | ({"teacher-changes"} if case.checks & {"teacher-mode", "teacher-gradient"} else set())


@dataclass(frozen=True)
class _Trial:
    """What a changed script does.

    gradient: the first one. large: the same for a student's logits of +-LARGE. hotter: the same at twice the
    temperature, if the script still sets it where it did. steps: what `Trainer.steps` says of the optimiser.
    """

    report: Report
    gradient: Tensor
    large: Tensor
    hotter: Tensor | None
    shuffles: bool
    steps: list[dict[str, Any]]
    course: Course


def _try(text: str) -> str | _Trial:
    """What is wrong with a script, or else what it does."""
    try:
        trainer = script.prepare(text)
        report, gradient, large = trainer.examine(), trainer.first_gradient(), trainer.first_gradient(LARGE)
        other = script.hotter(text)
        hotter = None if other is None else script.prepare(other).first_gradient()
        shuffles, steps = trainer.loader.shuffle, trainer.steps()
        return _Trial(report, gradient, large, hotter, shuffles, steps, script.prepare(text).fit())
    except ScriptError as error:
        return str(error)
    except Exception as error:
        return script.explain(error, text)


def _same_gradient(given: Tensor, wanted: Tensor) -> bool:
    return given.shape == wanted.shape and bool((given - wanted).norm() <= SAME * wanted.norm())


@functools.cache
def _trained(text: str, seed: int) -> Course:
    return script.prepare(text, seed).fit()


@functools.cache
def _control(seed: int, shelves: bool) -> Course:
    return ward.hard_labels(seed, shelves)


@functools.cache
def patient(number: int) -> Patient:
    """One of the ten; ValueError for another number."""
    if number not in CASES:
        raise ValueError(f"The clinic has patients 1 to {len(CASES)}; got {number!r}.")
    return Patient(CASES[number])


def patients() -> list[Patient]:
    """All ten, from easy to hard."""
    return [patient(number) for number in CASES]


def diagnoses() -> None:
    """Print the faults to choose from."""
    print("\n".join(f"{letter})  {one.title}" for letter, one in DIAGNOSES.items()))
