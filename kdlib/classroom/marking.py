"""Marks a function that a learner wrote: by what it gives for several inputs, not by how it is written.

The outputs are compared with the reference's, and where they differ with those of the known wrong answers, so that the
verdict can name the mistake. Every call gets fresh copies: a function that changes its arguments spoils nothing.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdlib.classroom import sandbox
from kdlib.classroom.questions import UNREADABLE, Case, Code, Mistake, Outcome, Verdict
from kdlib.classroom.sandbox import Trial

RELATIVE, ABSOLUTE = 1e-3, 1e-5  # single precision leaves about four good digits of a divergence times T^2
STUB = 12  # bytes of bytecode: enough for "pass", for "..." and for "loss = None; return loss"
NEXT_STEPS = {
    NameError: "A name is misspelt, or the cell that makes it has not been run.",
    AttributeError: "Look at what kind of object stands before the dot: print(type(...)).",
    IndexError: "An index or a dimension does not exist: print the shapes. In a B x C tensor, dim=1 are the classes.",
    KeyError: "This key does not exist: print the keys.",
    ZeroDivisionError: "Something you divide by is 0: print it before that line.",
    RecursionError: "The function calls itself without end.",
    NotImplementedError: "This operation does not exist for numbers of this type: try .float().",
    RuntimeError: "Print the shapes just before that line: print(tensor.shape).",
    TypeError: "Compare the arguments with the example in the question.",
}
IMPORTS = {
    "math": "import math",
    "scipy": "import scipy.stats",
    "stats": "from scipy import stats",
    "np": "import numpy as np",
    "torch": "import torch",
    "nn": "from torch import nn",
    "F": "import torch.nn.functional as F",
}


@dataclass
class _Attempt:
    """One case, the learner's call on it and what should have come out."""

    case: Case
    trial: Trial
    expected: Any
    changed: tuple[str, ...]

    @property
    def right(self) -> bool:
        return alike(self.trial.value, self.expected)


def mark(spec: Code, answer: Any) -> Verdict:
    """The verdict on a learner's function; it raises nothing but the learner's own KeyboardInterrupt."""
    try:
        return _mark(spec, answer)
    except Exception as error:  # such as a tensor of an exotic kind: the lesson goes on
        said = f"Your answer could not be read ({type(error).__name__}). {NEXT_STEPS[TypeError]}"
        return Verdict(Outcome.ERROR, said)


def _mark(spec: Code, answer: Any) -> Verdict:
    if answer is None or answer is ...:
        how = f"Write the function, then .check({spec.name}). If you are stuck, .hint() helps."
        return Verdict(Outcome.NOT_ATTEMPTED, how)
    if not callable(answer):
        how = f"Give the function itself, by its name and without brackets: .check({spec.name})."
        return Verdict(Outcome.ERROR, how, opening=UNREADABLE)
    attempts: list[_Attempt] = []
    for case in spec.cases():
        attempt = _attempt(spec, answer, case)
        verdict = _stopped_short(spec, answer, attempt, first=not attempts)
        if verdict is not None:
            if attempt.case.note and not all(earlier.right for earlier in attempts):
                verdict = _wrong(spec, attempts)  # the special case is not the first thing to mend
            return _with_prints(verdict, attempt.trial)
        attempts.append(attempt)
    if all(attempt.right for attempt in attempts):
        return _with_prints(_correct(spec, answer, attempts), attempts[0].trial)
    return _with_prints(_wrong(spec, attempts), attempts[0].trial)


def alike(given: Any, expected: Any, *, mistaken: bool = False) -> bool:
    """Whether two results are the same numbers in the same shape.

    Counts must agree exactly. mistaken: any of inf, -inf and NaN counts as any other, because which of them a wrong
    formula gives depends on how it is written.
    """
    a, b = _numbers(given), _numbers(expected)
    if a is None or b is None or a.shape != b.shape:
        return False
    if mistaken:
        a, b = (torch.where(x.isfinite(), x, torch.inf) for x in (a, b))
    whole = isinstance(expected, int) or (isinstance(expected, Tensor) and not expected.is_floating_point())
    return torch.allclose(a, b, rtol=1e-9 if whole else RELATIVE, atol=0.0 if whole else ABSOLUTE)


def _numbers(value: Any) -> Tensor | None:
    """A result as a float64 tensor, or None if it is something else."""
    try:
        if isinstance(value, Tensor):
            return value.detach().to("cpu", torch.float64)
        if isinstance(value, (int, float)) or type(value).__module__ == "numpy":
            return torch.as_tensor(value, dtype=torch.float64)
    except Exception:
        return None
    return None


def _attempt(spec: Code, answer: Any, case: Case) -> _Attempt:
    given = copy.deepcopy(case.arguments)
    trial = sandbox.call(answer, given)
    names = list(inspect.signature(spec.reference).parameters)
    pairs = zip(names, given, case.arguments, strict=True)
    changed = tuple(name for name, now, before in pairs if isinstance(before, Tensor) and not torch.equal(now, before))
    return _Attempt(case, trial, spec.reference(*copy.deepcopy(case.arguments)), changed)


def _stopped_short(spec: Code, answer: Any, attempt: _Attempt, *, first: bool) -> Verdict | None:
    """The verdict on a call that gave nothing to compare, or None if it gave something."""
    trial, where_seen = attempt.trial, "" if first else _about(spec, attempt.case)
    if trial.late:
        where = f" It was at {trial.line}." if trial.line else ""
        text = f"Your function was stopped after {sandbox.LIMIT:g} seconds.{where} Does its loop ever end?"
        if not trial.stopped:
            text += (
                " It could not be stopped and runs on in the background: restart the kernel when you have mended it."
            )
        return Verdict(Outcome.ERROR, text + where_seen, "endless")
    # torch raises NotImplementedError as well, with a message, for a type of numbers that it does not know.
    unfinished = type(trial.error) is NotImplementedError and (not trial.error.args or ": raise " in trial.line)
    if unfinished or trial.value is ... or (first and _is_stub(answer, trial)):
        how = f"Write the function {spec.name} and run this cell again. If you are stuck, .hint() helps."
        return Verdict(Outcome.NOT_ATTEMPTED, how)
    if trial.error is not None:
        return _raised(spec, attempt, first=first)
    if trial.value is None:
        how = "its last line needs a return" if first else "each way through it needs a return"
        return Verdict(Outcome.WRONG, f"Your function gives back None: {how}.{where_seen}", "no return")
    problem = _kind_problem(trial.value, attempt.expected)
    return Verdict(Outcome.WRONG, problem + where_seen, "kind") if problem else None


def _about(spec: Code, case: Case) -> str:
    """For which of the inputs something was seen, in a line of its own."""
    return f"\nThis was for {_call(spec, case)}. {case.advice}".rstrip()


def _is_stub(answer: Any, trial: Trial) -> bool:
    """Whether a function that gave None does nothing at all, and so is not filled in."""
    code = getattr(answer, "__code__", None)
    if trial.error is not None or trial.value is not None or code is None:
        return False
    return not code.co_names and len(code.co_code) <= STUB


def _raised(spec: Code, attempt: _Attempt, *, first: bool) -> Verdict:
    error = attempt.trial.error
    where = f" at {attempt.trial.line}" if attempt.trial.line else ""
    if isinstance(error, SystemExit):
        text = f"Your function called exit(){where}. A function ends with return."
        return Verdict(Outcome.ERROR, text, "exit")
    said = _message(error)
    text = f"Your function raised {type(error).__name__}{where}." + (f"\n    {said}" if said else "")
    mistake = next((m for m in spec.mistakes if _raises_the_same(m, attempt)), None)
    if mistake is not None:
        seen = "" if first else f"\nThis was for {_call(spec, attempt.case)}."
        return Verdict(Outcome.ERROR, f"{text}{seen}\n{mistake.message}", mistake.name)
    text += "" if first else _about(spec, attempt.case)
    step = next((step for kind, step in NEXT_STEPS.items() if isinstance(error, kind)), "")
    if type(error) is RuntimeError and not any(word in said for word in ("shape", "size", "dimension", "match")):
        step = ""
    if isinstance(error, NameError) and error.name in IMPORTS:
        step = f"Put {IMPORTS[error.name]} in the first line of the cell."
    elif "ellipsis" in said.lower():
        step = "One ... is still waiting for your code."
    elif "return_types" in said:
        step = "max(dim=...) and min(dim=...) give values and places: take .values."
    elif not attempt.trial.line and isinstance(error, TypeError):
        step = f"It should take these arguments: {', '.join(inspect.signature(spec.reference).parameters)}."
    return Verdict(Outcome.ERROR, f"{text}\n{step or 'Call it yourself with the example to see where.'}")


def _message(error: BaseException | None) -> str:
    try:
        text = str(error)
    except Exception:
        return ""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 160 else line[:157] + "..."


def _raises_the_same(mistake: Mistake, attempt: _Attempt) -> bool:
    try:
        mistake.wrong(*copy.deepcopy(attempt.case.arguments))
    except Exception as error:
        return type(error) is type(attempt.trial.error) and _message(error) == _message(attempt.trial.error)
    return False


def _kind_problem(value: Any, expected: Any) -> str:
    """What is wrong with the kind of a result, or ""."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    wanted = "one number" if not isinstance(expected, Tensor) else f"a tensor of shape {tuple(expected.shape)}"
    if isinstance(expected, Tensor):
        if isinstance(value, Tensor):
            return ""
        if type(value).__module__ == "numpy":
            return f"Your function gives NumPy's {type(value).__name__}, but {wanted} is asked for. Stay with torch."
        if number and expected.ndim == 0:
            return "Your function gives a Python number. Leave out .item() and float(): they cut off the gradient."
        if type(value).__module__ == "torch.return_types":
            return "Your function gives values and places, as max(dim=...) does: take .values or .indices."
        if isinstance(value, (list, tuple)):
            how = "torch.stack" if any(isinstance(one, Tensor) for one in value) else "torch.tensor"
            return f"Your function gives a {type(value).__name__}, but {wanted} is asked for: try {how}."
    elif number or (type(value).__module__ == "numpy" and getattr(value, "size", 0) == 1):
        return ""
    elif isinstance(value, Tensor):
        return "" if value.ndim == 0 else f"Your function gives a tensor of shape {tuple(value.shape)}, not {wanted}."
    return f"Your function gives a {type(value).__name__}, but {wanted} is asked for."


def _correct(spec: Code, answer: Any, attempts: Sequence[_Attempt]) -> Verdict:
    missed = _missed(spec, answer, [attempt.case for attempt in attempts if not attempt.case.note])
    if missed:
        text = f"The values are right, but not the gradient that comes to {' and '.join(missed)}, by which it is to "
        text += "learn. Look for detach(), no_grad(), .item(), .numpy(), torch.tensor() or nn.Parameter() on the way."
        return Verdict(Outcome.WRONG, text, "gradient")
    text = f"Right on all {len(attempts)} inputs. {spec.insight}".rstrip()
    changed = next((attempt.changed for attempt in attempts if attempt.changed), ())
    if changed:
        text += f"\n\nOne remark: your function changes {' and '.join(changed)} in place. The check works on copies,"
        text += " but whoever calls it elsewhere finds their tensor altered: .clone() it first."
    return Verdict(Outcome.CORRECT, text)


def _missed(spec: Code, answer: Any, cases: Sequence[Case]) -> list[str]:
    """The arguments to which another gradient comes than to those of the reference, or none."""
    missed: dict[str, None] = {}
    for case in cases if spec.learns else ():
        pairs = zip(_slopes(answer, spec, case), _slopes(spec.reference, spec, case), strict=True)
        right = [alike(given, expected) for given, expected in pairs]
        missed |= {name: None for name, fine in zip(spec.learns, right, strict=True) if not fine}
    return list(missed)


@torch.enable_grad()  # a lesson may have switched it off
def _slopes(function: Any, spec: Code, case: Case) -> list[Tensor | None]:
    """Gradients of a weighted sum of the result with respect to what learns, None where none comes."""
    given = dict(zip(inspect.signature(spec.reference).parameters, copy.deepcopy(case.arguments), strict=True))
    leaves = [given[name].requires_grad_() for name in spec.learns]
    # Copies, because a leaf refuses to be changed in place.
    value = sandbox.call(function, [one.clone() if isinstance(one, Tensor) else one for one in given.values()]).value
    if not isinstance(value, Tensor) or not value.requires_grad:
        return [None] * len(leaves)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).reshape(value.shape)
    try:
        return list(torch.autograd.grad((value.double() * weights).sum(), leaves, allow_unused=True))
    except RuntimeError:  # something on the way was changed in place
        return [None] * len(leaves)


def _wrong(spec: Code, attempts: Sequence[_Attempt]) -> Verdict:
    """Name the mistake: a known one, or else what the outputs themselves tell."""
    known = _known(spec, attempts)
    if known is not None:
        return known
    others = [attempt.trial.value for attempt in attempts[1:]]
    if attempts[0].right and all(alike(value, attempts[0].trial.value) for value in others):
        text = "It gives the answer to the example whatever it is asked: let it compute from its arguments."
        return Verdict(Outcome.WRONG, text, "hard-coded")
    failed = [attempt for attempt in attempts if not attempt.right]
    shown = next((attempt for attempt in failed if _shape(attempt.trial.value) != _shape(attempt.expected)), None)
    if shown is not None:
        shapes = f"{_shape(shown.trial.value)}, but {_shape(shown.expected)} is asked for"
        return Verdict(Outcome.WRONG, f"For {_call(spec, shown.case)} the shape is {shapes}.", "shape")
    ordinary = [attempt for attempt in failed if not attempt.case.note]
    if not ordinary:
        case = failed[0].case
        text = f"It is right for most inputs, but not for {case.note}. {case.advice}"
        return Verdict(Outcome.WRONG, f"{text}\n{_difference(spec, failed[0])}", case.note)
    unstable = next((attempt for attempt in ordinary if _not_finite(attempt)), None)
    if unstable is not None:
        text = f"It gives inf or NaN where the answer is a plain number.\n{_difference(spec, unstable)}"
        return Verdict(Outcome.WRONG, text, "not finite")
    example, besides = _difference(spec, ordinary[0]), _besides(attempts)
    factor = _factor([attempt for attempt in attempts if not attempt.case.note])
    if factor is not None:
        sign = abs(factor + 1) < 2 * RELATIVE
        text = "Only the sign is wrong" if sign else f"It is always {factor:.4g} times the right answer"
        return Verdict(Outcome.WRONG, f"{text}.\n{example}{besides}", "factor")
    start = "It is right for the example, but not in general." if attempts[0].right else ""
    text = f"{start}\n{example}\nCompare each step with the question, or ask for a .hint().{besides}"
    return Verdict(Outcome.WRONG, text.strip())


def _known(spec: Code, attempts: Sequence[_Attempt]) -> Verdict | None:
    """The verdict that names a known mistake, or None.

    The special cases decide only where the ordinary ones are right: an answer can have a known mistake and be unstable
    besides, and is then told both.
    """
    ordinary = [attempt for attempt in attempts if not attempt.case.note]
    sound = all(attempt.right for attempt in ordinary)
    for mistake in spec.mistakes:
        if not _is_made(mistake, attempts if sound else ordinary):
            continue
        return Verdict(Outcome.WRONG, mistake.message + ("" if sound else _besides(attempts)), mistake.name)
    return None


def _besides(attempts: Sequence[_Attempt]) -> str:
    """What is to be said of a special case where the ordinary ones are wrong already."""
    unstable = [attempt.case for attempt in attempts if attempt.case.note and _not_finite(attempt)]
    return f"\n\nBesides, it gives inf or NaN for {unstable[0].note}. {unstable[0].advice}" if unstable else ""


def _is_made(mistake: Mistake, attempts: Sequence[_Attempt]) -> bool:
    try:
        for attempt in attempts:
            if not alike(attempt.trial.value, mistake.wrong(*copy.deepcopy(attempt.case.arguments)), mistaken=True):
                return False
    except Exception:  # a wrong formula may well fail on some shapes
        return False
    return True


def _not_finite(attempt: _Attempt) -> bool:
    numbers = _numbers(attempt.trial.value)
    return numbers is not None and not bool(numbers.isfinite().all())


def _factor(attempts: Sequence[_Attempt]) -> float | None:
    """The number by which every output differs from the right one, or None."""
    pairs = [(_numbers(attempt.trial.value), _numbers(attempt.expected)) for attempt in attempts]
    if any(number is None for pair in pairs for number in pair):
        return None
    given, right = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))
    total = (right * right).sum()
    factor = float((given * right).sum() / total) if total > 0 else 0.0
    fits = factor != 0.0 and torch.allclose(given, factor * right, rtol=RELATIVE, atol=ABSOLUTE)
    return factor if fits else None


def _shape(value: Any) -> tuple[int, ...]:
    numbers = _numbers(value)
    return () if numbers is None else tuple(numbers.shape)


def _difference(spec: Code, attempt: _Attempt) -> str:
    right, given = written(attempt.expected), written(attempt.trial.value)
    return f"For {_call(spec, attempt.case)} the answer is {right}; yours is {given}."


def _call(spec: Code, case: Case) -> str:
    return f"{spec.name}({case.show or ', '.join(written(argument) for argument in case.arguments)})"


def example(spec: Code) -> str:
    """The first case of an exercise as a call and its right result."""
    case = spec.cases()[0]
    return f"{_call(spec, case)}\n    gives {written(spec.reference(*copy.deepcopy(case.arguments)))}"


def written(value: Any) -> str:
    """A number or a small tensor as one would type it; of a large tensor only the shape."""
    if isinstance(value, Tensor) and value.ndim > 0:
        if value.numel() > 12:
            return f"<{' x '.join(map(str, value.shape))} tensor>"
        rounded = value.detach().double().mul(1e4).round().div(1e4) if value.is_floating_point() else value
        return f"torch.tensor({rounded.tolist()})"
    if isinstance(value, (str, bool)):
        return repr(value)
    numbers = _numbers(value)
    if numbers is None or numbers.numel() != 1:
        return f"<{type(value).__name__}>"
    number = numbers.item()
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:.5g}"


def _with_prints(verdict: Verdict, trial: Trial) -> Verdict:
    """Add what the learner's function printed, so that printing helps to find mistakes."""
    lines = trial.printed.strip("\n").splitlines()
    if not lines or verdict.outcome is Outcome.NOT_ATTEMPTED:
        return verdict
    shown = "\n".join(f"    {line[:120]}" for line in lines[:10]) + ("\n    ..." if len(lines) > 10 else "")
    text = f"{verdict.text}\n\nYour function printed:\n{shown}"
    return Verdict(verdict.outcome, text, verdict.mistake, verdict.opening)
