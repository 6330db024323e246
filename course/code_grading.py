"""Grades a function that a learner wrote: by what it returns for several inputs, not by how it is written.

The outputs are compared with those of the reference and, where they differ, with those of the known mistakes, so that
the feedback can name the mistake. Every call gets fresh copies: a function that changes its arguments harms nothing.
"""

from __future__ import annotations

import copy
import dis
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from course import sandbox
from course.grading import INVALID, Feedback, Outcome
from course.sandbox import CallResult
from course.specs import Case, CodeSpec, Mistake
from kdlib.described import parameters_of

RTOL, ATOL = 1e-3, 1e-5  # single precision leaves about four good digits of a divergence times T^2
# Of bytecode: all that "pass", "..." and "loss = None; return loss" come to, whatever the version of Python.
IDLE = (
    *("RESUME", "NOP", "LOAD_CONST", "LOAD_COMMON_CONSTANT", "LOAD_SMALL_INT", "LOAD_FAST", "STORE_FAST", "POP_TOP"),
    "RETURN_",
)
NEXT_STEPS = {
    UnboundLocalError: "Inside the function this name has no value yet when it is read: set it there first, above.",
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
IMPORT_HINTS = {
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
    """One case, the result of the learner's function on it, and what should have come out.

    changed: the tensors among the arguments that the function changed in place. deviating: the modules among
    `CodeSpec.side_effects` that it leaves in another state than the reference does.
    """

    case: Case
    result: CallResult
    expected: Any
    changed: tuple[str, ...]
    deviating: tuple[str, ...]

    @property
    def correct(self) -> bool:
        return values_match(self.result.value, self.expected)


def grade_code(spec: CodeSpec, answer: Any) -> Feedback:
    """Feedback on a learner's function; raises nothing but the learner's own KeyboardInterrupt."""
    try:
        # A learner's default device may be a GPU, where random inputs would be others, and a cell may have switched
        # gradients off, which the answer, in a thread of its own, would have and the reference would not.
        with torch.device("cpu"), torch.enable_grad():
            return _grade(spec, answer)
    except Exception as error:  # such as a tensor of an exotic kind: the lesson goes on
        text = f"Your answer could not be read ({type(error).__name__}). {NEXT_STEPS[TypeError]}"
        return Feedback(Outcome.ERROR, text)


def _grade(spec: CodeSpec, answer: Any) -> Feedback:
    if answer is None or answer is ...:
        return Feedback(Outcome.NOT_ATTEMPTED, f"Write the function, then .check({spec.name}); .hint() helps.")
    if not callable(answer):
        how = f"Give the function itself, by its name and without brackets: .check({spec.name})."
        return Feedback(Outcome.ERROR, how, opening=INVALID)
    if order := _other_order(spec, answer):
        return Feedback(Outcome.ERROR, f"Your function is called by position: {spec.name}({order}). Keep this order.")
    attempts: list[_Attempt] = []
    for case in spec.cases():
        attempt = _try_case(spec, answer, case)
        feedback = _feedback_without_value(spec, answer, attempt, attempts)
        if feedback is not None:
            if attempt.case.edge_case and not all(earlier.correct for earlier in attempts):
                feedback = _wrong(spec, attempts)  # the edge case is not the first thing to correct
            return with_printed_output(feedback, attempt.result)
        attempts.append(attempt)
    if all(attempt.correct for attempt in attempts):
        return with_printed_output(_correct(spec, answer, attempts), attempts[0].result)
    return with_printed_output(_wrong(spec, attempts), attempts[0].result)


def _other_order(spec: CodeSpec, answer: Any) -> str:
    """The arguments in their order, where the answer has the same ones in another; else nothing."""
    wanted = list(inspect.signature(spec.reference).parameters)
    try:
        given = [one.name for one in parameters_of(answer)]
    except (TypeError, ValueError):
        return ""
    return ", ".join(wanted) if given != wanted and sorted(given) == sorted(wanted) else ""


def values_match(given: Any, expected: Any, *, any_nonfinite: bool = False) -> bool:
    """Whether two results are the same numbers in the same shape; integers must agree exactly.

    any_nonfinite: inf, -inf and NaN count as equal, because which of them a wrong formula gives depends on how it is
    written.
    """
    a, b = _as_float64(given), _as_float64(expected)
    if a is None or b is None or a.shape != b.shape:
        return False
    if any_nonfinite:
        a, b = (torch.where(x.isfinite(), x, torch.inf) for x in (a, b))
    exact = isinstance(expected, int) or (isinstance(expected, Tensor) and not expected.is_floating_point())
    return torch.allclose(a, b, rtol=1e-9 if exact else RTOL, atol=0.0 if exact else ATOL)


def _gradients_match(given: Tensor | None, expected: Tensor | None) -> bool:
    """Whether two gradients are the same, by the length of their difference: beside a zero the others count."""
    a, b = _as_float64(given), _as_float64(expected)
    if a is None or b is None or a.shape != b.shape:
        return False
    return bool((a - b).norm() <= RTOL * b.norm() + ATOL)


def _as_float64(value: Any) -> Tensor | None:
    """A real number, array or tensor as a float64 tensor, or None if it is something else."""
    try:
        if isinstance(value, Tensor):
            return None if value.is_complex() else value.detach().cpu().double()  # in this order: MPS has no float64
        if isinstance(value, (int, float)) or type(value).__module__ == "numpy":
            return torch.as_tensor(value, dtype=torch.float64)
    except Exception:
        return None
    return None


def _try_case(spec: CodeSpec, answer: Any, case: Case) -> _Attempt:
    names = list(inspect.signature(spec.reference).parameters)
    before = dict(zip(names, case.arguments, strict=True))
    given, wanted = copy.deepcopy(before), copy.deepcopy(before)
    result, expected = sandbox.call(answer, list(given.values())), spec.reference(*wanted.values())
    tensors = [name for name in names if isinstance(before[name], Tensor)]
    changed = tuple(name for name in tensors if not torch.equal(given[name], before[name]))
    deviating = tuple(name for name in spec.side_effects if not _states_match(given[name], wanted[name]))
    return _Attempt(case, result, expected, changed, deviating)


def _states_match(given: nn.Module, expected: nn.Module) -> bool:
    """Whether two modules have the same parameters and buffers."""
    mine, theirs = given.state_dict(), expected.state_dict()
    return mine.keys() == theirs.keys() and all(values_match(mine[name], theirs[name]) for name in theirs)


def _feedback_without_value(
    spec: CodeSpec, answer: Any, attempt: _Attempt, earlier: Sequence[_Attempt]
) -> Feedback | None:
    """Feedback on a call that returned nothing to compare, or None if it returned something."""
    first = not earlier
    result, input_note = attempt.result, "" if first else _for_input(spec, attempt.case)
    if result.timed_out:
        where = f" It was at {result.location}." if result.location else ""
        text = f"Your function was stopped after {sandbox.TIME_LIMIT:g} seconds.{where} Does its loop ever end?"
        if not result.stopped:
            text += " It could not be stopped and runs on in the background: restart the kernel when it is corrected."
        return Feedback(Outcome.ERROR, text + input_note, "endless")
    # torch raises NotImplementedError as well, with a message, for a type of numbers that it does not know.
    unfinished = False
    if result.error is not None and type(result.error) is NotImplementedError:
        unfinished = not result.error.args or ": raise " in result.location
    if unfinished or result.value is ... or (first and _is_stub(answer, result)):
        return Feedback(Outcome.NOT_ATTEMPTED, f"Write {spec.name} and run this cell again; .hint() helps.")
    if result.error is not None:
        return _error_feedback(spec, attempt, earlier)
    if result.value is None:
        how = "its last line needs a return" if first else "each way through it needs a return"
        return Feedback(Outcome.WRONG, f"Your function gives back None: {how}.{input_note}", "no return")
    problem = _type_problem(result.value, attempt.expected)
    return Feedback(Outcome.WRONG, problem + input_note, "kind") if problem else None


def _for_input(spec: CodeSpec, case: Case) -> str:
    """The input on which something went wrong, in a line of its own."""
    return f"\nThis was for {_format_call(spec, case)}. {case.advice}".rstrip()


def _is_stub(answer: Any, result: CallResult) -> bool:
    """Whether a function that returned None does nothing at all, and so is not filled in."""
    code = getattr(inspect.unwrap(answer), "__code__", None)
    if result.error is not None or result.value is not None or code is None:
        return False
    return all(one.opname.startswith(IDLE) for one in dis.get_instructions(code))


def _error_feedback(spec: CodeSpec, attempt: _Attempt, earlier: Sequence[_Attempt]) -> Feedback:
    error = attempt.result.error
    where = f" at {attempt.result.location}" if attempt.result.location else ""
    if isinstance(error, SystemExit):
        text = f"Your function called exit(){where}. A function ends with return."
        return Feedback(Outcome.ERROR, text, "exit")
    message = _error_message(error)
    text = f"Your function raised {type(error).__name__}{where}." + (f"\n    {message}" if message else "")
    # The error alone does not tell: another mistake can fail on this input in the same way.
    matching = (m for m in spec.mistakes if _raises_same_error(m, attempt) and _matches_mistake(m, earlier))
    mistake = next(matching, None)
    if mistake is not None:
        input_note = f"\nThis was for {_format_call(spec, attempt.case)}." if earlier else ""
        return Feedback(Outcome.ERROR, f"{text}{input_note}\n{mistake.message}", mistake.name)
    text += _for_input(spec, attempt.case) if earlier else ""
    step = next((step for kind, step in NEXT_STEPS.items() if isinstance(error, kind)), "")
    if type(error) is RuntimeError and not any(word in message for word in ("shape", "size", "dimension", "match")):
        step = ""
    if isinstance(error, NameError) and error.name in IMPORT_HINTS:
        step = f"Put {IMPORT_HINTS[error.name]} in the first line of the cell."
    elif "ellipsis" in message.lower():
        step = "One ... is still waiting for your code."
    elif "__round__" in message or "round()" in message:
        step = "Python's round() is for one number. A tensor has a method: tensor.round()."
    elif "bool tensor" in message:
        step = "Truth values cannot be subtracted: .float() first, or combine them with &, | and ~."
    elif "infer output dtype" in message:
        step = "A mean of truth values or whole numbers needs .float() before it."
    elif "ambiguous" in message:
        step = "if, and, or and not want one truth value. Place by place in tensors it is &, | and ~, with brackets "
        step += "around each comparison; .any() or .all() makes one of many."
    elif "require grad" in message:
        step = "Nothing that should learn is on the way to this value: was it computed under no_grad(), detached, or "
        step += "is .requires_grad_() missing?"
    elif "bitwise_xor" in message or "for ^" in message:
        step = "In Python a power is **, and ^ is something else."
    elif "return_types" in message:
        step = "max(dim=...) and min(dim=...) give values and indices: take .values."
    elif not attempt.result.location and isinstance(error, TypeError):
        step = f"It should take these arguments: {', '.join(inspect.signature(spec.reference).parameters)}."
    step = step or f"Call it yourself with {'this input' if earlier else 'the example'} to see where."
    return Feedback(Outcome.ERROR, f"{text}\n{step}")


def _error_message(error: BaseException | None) -> str:
    try:
        text = str(error)
    except Exception:
        return ""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 160 else line[:157] + "..."


def _raises_same_error(mistake: Mistake, attempt: _Attempt) -> bool:
    try:
        mistake.function(*copy.deepcopy(attempt.case.arguments))
    except Exception as error:
        actual = attempt.result.error
        return type(error) is type(actual) and _error_message(error) == _error_message(actual)
    return False


def _type_problem(value: Any, expected: Any) -> str:
    """What is wrong with the type of a result, or ""."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    wanted = "one number" if not isinstance(expected, Tensor) else f"a tensor of shape {tuple(expected.shape)}"
    if isinstance(expected, Tensor):
        if isinstance(value, Tensor):
            return ""
        if type(value).__module__ == "numpy":
            return f"Your function gives NumPy's {type(value).__name__}, but {wanted} is expected. Stay with torch."
        if is_number and expected.ndim == 0:
            return "Your function gives a Python number. Leave out .item() and float(): they cut off the gradient."
        if type(value).__module__ == "torch.return_types":
            return "Your function gives values and indices, as max(dim=...) does: take .values or .indices."
        if isinstance(value, (list, tuple)):
            how = "torch.stack" if any(isinstance(one, Tensor) for one in value) else "torch.tensor"
            return f"Your function gives a {type(value).__name__}, but {wanted} is expected: try {how}."
    elif is_number or (type(value).__module__ == "numpy" and getattr(value, "size", 0) == 1):
        return ""
    elif isinstance(value, Tensor):
        return "" if value.ndim == 0 else f"Your function gives a tensor of shape {tuple(value.shape)}, not {wanted}."
    return f"Your function gives a {type(value).__name__}, but {wanted} is expected."


def _correct(spec: CodeSpec, answer: Any, attempts: Sequence[_Attempt]) -> Feedback:
    problem = _gradient_problem(spec, answer, [attempt.case for attempt in attempts])
    if problem:
        return Feedback(Outcome.WRONG, problem, "gradient")
    deviating = next((name for attempt in attempts for name in attempt.deviating), "")
    if deviating:
        return Feedback(Outcome.WRONG, spec.side_effects[deviating], "side effect")
    text = f"Right on all {len(attempts)} inputs. {spec.insight}".rstrip()
    changed = next((attempt.changed for attempt in attempts if attempt.changed), ())
    if changed:
        text += f"\n\nOne remark: your function changes {' and '.join(changed)} in place. The check works on copies,"
        text += " but other callers get a changed tensor: .clone() it first."
    return Feedback(Outcome.CORRECT, text)


def _gradient_problem(spec: CodeSpec, answer: Any, cases: Sequence[Case]) -> str:
    """What is wrong with the gradients of a function whose values are right, or ""."""
    for case in cases if spec.grad_arguments else ():
        given, expected = (_gradients(function, spec, case) for function in (answer, spec.reference))
        triples = zip(spec.grad_arguments, given, expected, strict=True)
        missed = [name for name, mine, theirs in triples if not _gradients_match(mine, theirs)]
        if not missed:
            continue
        which = f"the gradient that {' and '.join(missed)} should receive"
        where = case.edge_case or _format_call(spec, case)
        if not all(one is None or bool(one.isfinite().all()) for one in given):
            text = f"The values are finite, but for {where}, {which} is not. What where() or nan_to_num() takes out of "
            text += "a value stays in its gradient, and the root of 0 has an infinite one."
        elif case.edge_case:
            text = f"The values are right, but for {where}, {which} is another."
        else:
            text = f"The values are right, but not {which}. "
            text += "Look for detach(), no_grad(), .item(), .numpy(), torch.tensor() or nn.Parameter() on the way."
        return f"{text} {case.advice}".rstrip()
    return ""


def _gradients(function: Any, spec: CodeSpec, case: Case) -> list[Tensor | None]:
    """Gradients of a weighted sum of the result with respect to `grad_arguments`; None where there is none."""
    given = dict(zip(inspect.signature(spec.reference).parameters, copy.deepcopy(case.arguments), strict=True))
    leaves = [given[name].requires_grad_() for name in spec.grad_arguments]
    # Copies, because a leaf refuses to be changed in place.
    value = sandbox.call(function, [one.clone() if isinstance(one, Tensor) else one for one in given.values()]).value
    if not isinstance(value, Tensor) or not value.requires_grad:
        return [None] * len(leaves)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).reshape(value.shape)
    try:
        return list(torch.autograd.grad((value.cpu().double() * weights).sum(), leaves, allow_unused=True))
    except RuntimeError:  # something on the way was changed in place
        return [None] * len(leaves)


def _wrong(spec: CodeSpec, attempts: Sequence[_Attempt]) -> Feedback:
    """Feedback that names the mistake: a known one, or else what the outputs show."""
    known = _known_mistake(spec, attempts)
    if known is not None:
        return known
    others = [attempt.result.value for attempt in attempts[1:]]
    if attempts[0].correct and all(values_match(value, attempts[0].result.value) for value in others):
        text = "It gives the answer to the example for every input: let it compute from its arguments."
        return Feedback(Outcome.WRONG, text, "hard-coded")
    failed = [attempt for attempt in attempts if not attempt.correct]
    for attempt in failed:
        shape, expected = _shape_of(attempt.result.value), _shape_of(attempt.expected)
        if shape != expected:
            text = f"For {_format_call(spec, attempt.case)} the shape is {shape}, but {expected} is expected."
            return Feedback(Outcome.WRONG, text, "shape")
    ordinary = [attempt for attempt in failed if not attempt.case.edge_case]
    if not ordinary:
        case = failed[0].case
        text = f"It is right for most inputs, but not for {case.edge_case}. {case.advice}"
        return Feedback(Outcome.WRONG, f"{text}\n{_describe_difference(spec, failed[0])}", case.edge_case)
    unstable = next((attempt for attempt in ordinary if _not_finite(attempt)), None)
    if unstable is not None:
        text = f"It gives inf or NaN where the answer is a plain number.\n{_describe_difference(spec, unstable)}"
        return Feedback(Outcome.WRONG, text, "not finite")
    difference, unstable_note = _describe_difference(spec, ordinary[0]), _unstable_note(attempts)
    factor = _constant_factor([attempt for attempt in attempts if not attempt.case.edge_case])
    if factor is not None:
        sign = abs(factor + 1) < 2 * RTOL
        text = "Only the sign is wrong" if sign else f"It is always {factor:.4g} times the right answer"
        return Feedback(Outcome.WRONG, f"{text}.\n{difference}{unstable_note}", "factor")
    start = "It is right for the example, but not in general." if attempts[0].correct else ""
    text = f"{start}\n{difference}\nCompare each step with the question, or ask for a .hint().{unstable_note}"
    return Feedback(Outcome.WRONG, text.strip())


def _known_mistake(spec: CodeSpec, attempts: Sequence[_Attempt]) -> Feedback | None:
    """Feedback that names a known mistake, or None.

    Edge cases decide only where the ordinary cases are correct: a function can make a known mistake and be unstable as
    well, and then the feedback names both.
    """
    ordinary = [attempt for attempt in attempts if not attempt.case.edge_case]
    ordinary_correct = all(attempt.correct for attempt in ordinary)
    for mistake in spec.mistakes:
        if _matches_mistake(mistake, attempts if ordinary_correct else ordinary):
            note = "" if ordinary_correct else _unstable_note(attempts)
            return Feedback(Outcome.WRONG, mistake.message + note, mistake.name)
    return None


def _unstable_note(attempts: Sequence[_Attempt]) -> str:
    """What to add about an edge case where ordinary cases are wrong already."""
    # An edge case may ask for inf: what is right there is no instability.
    wrong = [attempt for attempt in attempts if attempt.case.edge_case and not attempt.correct]
    unstable = [attempt.case for attempt in wrong if _not_finite(attempt)]
    return f"\n\nBesides, it gives inf or NaN for {unstable[0].edge_case}. {unstable[0].advice}" if unstable else ""


def _matches_mistake(mistake: Mistake, attempts: Sequence[_Attempt]) -> bool:
    try:
        for attempt in attempts:
            wrong = mistake.function(*copy.deepcopy(attempt.case.arguments))
            if not values_match(attempt.result.value, wrong, any_nonfinite=True):
                return False
    except Exception:  # a wrong formula may well fail on some shapes
        return False
    return True


def _not_finite(attempt: _Attempt) -> bool:
    numbers = _as_float64(attempt.result.value)
    return numbers is not None and not bool(numbers.isfinite().all())


def _constant_factor(attempts: Sequence[_Attempt]) -> float | None:
    """The factor between every output and the correct one, or None."""
    outputs, targets = [], []
    for attempt in attempts:
        output, target = _as_float64(attempt.result.value), _as_float64(attempt.expected)
        if output is None or target is None:
            return None
        outputs.append(output.flatten())
        targets.append(target.flatten())
    given, correct = torch.cat(outputs), torch.cat(targets)
    total = (correct * correct).sum()
    factor = float((given * correct).sum() / total) if total > 0 else 0.0
    # The outputs are scaled back, since those near 0 are within ATOL of any small multiple of the correct ones.
    fits = factor != 0.0 and torch.allclose(given / factor, correct, rtol=RTOL, atol=ATOL)
    return factor if fits else None


def _shape_of(value: Any) -> tuple[int, ...]:
    numbers = _as_float64(value)
    return () if numbers is None else tuple(numbers.shape)


def _describe_difference(spec: CodeSpec, attempt: _Attempt) -> str:
    right, found = (_as_float64(value) for value in (attempt.expected, attempt.result.value))
    if right is not None and found is not None and right.shape == found.shape and right.numel() > 12:
        place = int((right - found).abs().nan_to_num(torch.inf, torch.inf).argmax())
        index = ", ".join(str(int(one)) for one in torch.unravel_index(torch.tensor(place), right.shape))
        values = (format_value(one.flatten()[place]) for one in (right, found))
        return "For {} the answer at [{}] is {}; yours is {}.".format(_format_call(spec, attempt.case), index, *values)
    expected, given = format_value(attempt.expected), format_value(attempt.result.value)
    return f"For {_format_call(spec, attempt.case)} the answer is {expected}; yours is {given}."


def _format_call(spec: CodeSpec, case: Case) -> str:
    return f"{spec.name}({case.display or ', '.join(format_value(argument) for argument in case.arguments)})"


def format_example(spec: CodeSpec) -> str:
    """The first case of an exercise as a call with its correct result."""
    with torch.device("cpu"), torch.enable_grad():  # as in grade_code
        case = spec.cases()[0]
        value = spec.reference(*copy.deepcopy(case.arguments))
        return f"{_format_call(spec, case)}\n    gives {format_value(value)}"


def format_value(value: Any) -> str:
    """A number or a small tensor as code; of a large tensor only the shape."""
    if isinstance(value, Tensor) and value.ndim > 0:
        if value.numel() > 12:
            return f"<{' x '.join(map(str, value.shape))} tensor>"
        rounded = value.detach().cpu().double().mul(1e4).round().div(1e4) if value.is_floating_point() else value
        return f"torch.tensor({rounded.tolist()})"
    if isinstance(value, (str, bool)):
        return repr(value)
    numbers = _as_float64(value)
    if numbers is None or numbers.numel() != 1:
        return f"<{type(value).__name__}>"
    number = float(numbers)
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:.5g}"


def with_printed_output(feedback: Feedback, result: CallResult) -> Feedback:
    """The feedback, and below it what the learner's code printed, so that printing helps to find mistakes."""
    lines = result.printed.strip("\n").splitlines()
    if not lines or feedback.outcome is Outcome.NOT_ATTEMPTED:
        return feedback
    output = "\n".join(f"    {line[:120]}" for line in lines[:10]) + ("\n    ..." if len(lines) > 10 else "")
    text = f"{feedback.text}\n\nIt printed:\n{output}"
    return Feedback(feedback.outcome, text, feedback.mistake, feedback.opening)
