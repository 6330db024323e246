"""A patient's script: its text, the text with other lines in it, and what running it gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from course.clinic import ward
from course.clinic.ward import Batch, Course, Loader
from kdlib import doctor
from kdlib.adapters import Adapter

NEEDED = ("student", "teacher", "optimizer", "loader")


class ScriptError(Exception):
    """What is wrong with an edited script, in a sentence for the learner."""


def source(number: int) -> str:
    """The script of a patient as it stands."""
    return (resources.files("course.clinic.scripts") / f"patient{number:02}.py").read_text()


def edited(text: str, changes: Mapping[int, str]) -> str:
    """The script with other text for some lines, numbered from 1.

    A text that begins with a space has its own indentation; all lines of any other get that of the old line.

    Raises ScriptError for a line that does not exist and for what is no text.
    """
    lines = text.splitlines()
    for number, new in changes.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= len(lines):
            raise ScriptError(f"There is no line {number!r}: the script has lines 1 to {len(lines)}.")
        if not isinstance(new, str):
            raise ScriptError(f"The new text of line {number} belongs in quotes.")
        old = lines[number - 1]
        indent = "" if new[:1] == " " else old[: len(old) - len(old.lstrip())]
        lines[number - 1] = "\n".join(indent + part for part in new.splitlines())
    return "\n".join(lines) + "\n"


# What stands in an optimiser's group of weights, and does not decide where its step leads.
OF_NO_STEP = {"params", "initial_lr", "foreach", "fused", "capturable", "differentiable"}
TEMPERATURE = re.compile(r"^T, ALPHA = ([\d.]+)", re.MULTILINE)


def hotter(text: str) -> str | None:
    """The script with twice its temperature; None if the line that sets it was rewritten."""
    changed, count = TEMPERATURE.subn(lambda found: f"T, ALPHA = {2 * float(found[1])}", text)
    return changed if count == 1 else None


@dataclass
class Trainer:
    """What a script made: networks, optimiser and data, and its step, or its loss and the answers that were stored."""

    student: nn.Module
    teacher: nn.Module
    optimizer: torch.optim.Optimizer
    loader: Loader
    temperature: float
    alpha: float
    step: Callable[[Batch], Mapping[str, Tensor]]
    loss: Callable[..., Any] | None = None
    answers: Callable[[Batch], Tensor] | None = None

    def first_gradient(self, logits: float | None = None) -> Tensor:
        """The gradient of the loss on the student for one batch that is always the same.

        At its end stand, of all else that the optimiser holds, the number of weights and the length of their gradient.
        logits: the size that the student's get, with their own signs; None leaves them as they are.
        """
        images, labels, numbers = (part[: self.loader.size] for part in self._everything())
        own = list(self.student.parameters())
        ids = {id(one) for one in own}
        others = [p for group in self.optimizer.param_groups for p in group["params"] if id(p) not in ids]

        def resize(head: nn.Module, features: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            """With the gradient of the output as it was."""
            return None if logits is None else output + (logits * output.sign() - output).detach()

        with torch.random.fork_rng(devices=[]), self.student.get_submodule("head").register_forward_hook(resize):
            torch.manual_seed(0)
            loss = torch.stack(list(self.step((images, labels, numbers)).values())).sum()
        found = torch.autograd.grad(loss, [*own, *others], allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, [*own, *others], strict=True)]
        rest = torch.cat([torch.zeros(1), *(one.flatten() for one in parts[len(own) :])])
        size = torch.tensor([float(rest.numel()), rest.norm().item()])
        return torch.cat([*(one.flatten() for one in parts[: len(own)]), size])

    def steps(self) -> list[dict[str, Any]]:
        """How the optimiser makes a step, group by group: its kind, and the options that decide where a step leads."""
        kind = type(self.optimizer).__name__
        groups = self.optimizer.param_groups
        return [{"kind": kind} | {name: one[name] for name in one.keys() - OF_NO_STEP} for one in groups]

    def _everything(self) -> Batch:
        return self.loader.images, self.loader.labels, torch.arange(len(self.loader.images))

    def fit(self) -> Course:
        """Train as `ward.fit` does."""
        return ward.fit(self.student, self.optimizer, self.step, self.loader, self.teacher)

    def examine(self) -> doctor.Report:
        """What the doctor says, before any training."""
        meant: dict[str, Any] = {"temperature": self.temperature, "alpha": self.alpha, "optimizer": self.optimizer}
        meant |= {"batches": self.loader, "adapter": Adapter(inputs=0, labels=1)}
        if self.loss is not None and self.answers is not None:
            return doctor.examine(student=self.student, teacher=self.answers, loss=self.loss, **meant)
        return doctor.examine(student=self.student, teacher=self.teacher, step=self.step, **meant)


def prepare(text: str, seed: int = 0, name: str = "patient") -> Trainer:
    """Run a script up to its first step; the random numbers of the caller stay as they are.

    Raises ScriptError, with the line, for a script that cannot be run or lacks what a training needs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        names = _run(text, name)
    missing = [one for one in NEEDED if one not in names]
    if "step" not in names and not {"loss", "answers"} <= set(names):
        missing.append("step")
    if missing:
        raise ScriptError(f"The script no longer makes {' and '.join(missing)}.")
    loss, answers = names.get("loss"), names.get("answers")
    step = names.get("step") or _step_of(names["student"], loss, answers)
    made = {one: names[one] for one in NEEDED}
    T, alpha = float(names.get("T", 1.0)), float(names.get("ALPHA", 0.0))  # noqa: N806
    return Trainer(**made, temperature=T, alpha=alpha, step=step, loss=loss, answers=answers)


def _step_of(student: nn.Module, loss: Any, answers: Any) -> Callable[[Batch], Mapping[str, Tensor]]:
    def step(batch: Batch) -> Mapping[str, Tensor]:
        return loss(student(batch[0]), answers(batch), batch[1])

    return step


def _run(text: str, name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": name}
    try:
        exec(compile(text, f"<{name}>", "exec"), names)
    except SyntaxError as error:
        raise ScriptError(f"Line {error.lineno} is not Python: {error.msg}.") from None
    except Exception as error:
        raise ScriptError(explain(error, text, name)) from None
    return names


def explain(error: BaseException, text: str, name: str = "patient") -> str:
    """An exception of a script in a sentence, with the script's own line."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == f"<{name}>":
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f" at line {line}: {text.splitlines()[line - 1].strip()}" if line else ""
    message = str(error).partition("\n")[0]
    return f"{type(error).__name__}{where}\n    {message[:150]}"
