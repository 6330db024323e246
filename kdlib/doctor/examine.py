"""Examines a set-up: runs every check that can be made with what was given."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import devices
from kdlib.adapters import Adapter
from kdlib.data import Batch, DataModule
from kdlib.distiller import Distiller
from kdlib.doctor import calibration, data, loss, student, teacher, terms
from kdlib.doctor.data import as_splits
from kdlib.doctor.preserve import preserved
from kdlib.doctor.report import FAULT, Finding, Report, Skip
from kdlib.doctor.setup import (
    DistillerSetup,
    LossSetup,
    Observed,
    Setup,
    StepSetup,
    alpha_of,
    copied,
    network_of,
)
from kdlib.doctor.step import leaves_of
from kdlib.errors import check_kind, check_real, unknown_name
from kdlib.evaluation import samplers_of
from kdlib.hooks import batch_size_of
from kdlib.teachers import as_teacher

Check = Callable[[Setup], Finding | list[Finding] | None]

# From the ground up: as a rule it is the finding of a later check that may be due to an earlier one (see `_EXPLAINS`).
CHECKS: dict[str, Check] = {
    "teacher-mode": teacher.mode,
    "teacher-changes": teacher.changes,
    "teacher-gradient": teacher.gets_gradient,
    "teacher-fresh": teacher.fresh,
    "class-order": teacher.class_order,
    "normalisation": data.normalisation,
    "teacher-pairing": data.pairing,
    "teacher-accuracy": teacher.accuracy,
    "teacher-worse": teacher.worse_than_student,
    "teacher-smoothing": calibration.smoothing,
    "probabilities": teacher.probabilities,
    "same-view": data.same_view,
    "splits": data.splits,
    "student-mode": student.mode,
    "student-gradient": student.gradient,
    "optimizer-parameters": student.optimizer,
    "clipping": student.clipping,
    "feature-overwritten": student.layer_outputs,
    "loss-ignores-teacher": loss.ignored,
    "loss-rows": loss.rows,
    "loss-probabilities": loss.probabilities,
    "loss-softmax-twice": loss.softmax_twice,
    "loss-direction": loss.direction,
    "loss-one-sided-temperature": loss.one_sided,
    "loss-reduction": loss.reduction,
    "loss-temperature": loss.temperature_squared,
    "loss-at-rest": loss.at_rest,
    "loss-extremes": loss.extremes,
    "loss-half-precision": loss.half_precision,
    "loss-padding": loss.padding,
    "alpha-roles": loss.alpha,
    "term-names": terms.names,
    "term-reach": terms.reach,
    "term-trivial": terms.trivial,
    "term-balance": terms.balance,
}

SAMPLES = 512  # enough to tell a teacher of 15 % above chance from none in 100 classes
MOST_BATCHES = 64
MOST_BYTES = 2**29  # of both networks' logits, which are kept: 512 samples of 131,072 classes in float32
MOST_SECONDS = 20.0  # for the answers of a large teacher; what was collected by then has to do

_HOW = (
    "examine(distiller, batches), examine(student=..., teacher=..., loss=..., batches=...) or "
    "examine(student=..., teacher=..., step=..., batches=...)"
)


def examine(
    distiller: Distiller | None = None,
    batches: Iterable[Any] | DataModule | None = None,
    *,
    student: nn.Module | None = None,
    teacher: Any = None,
    loss: Callable[..., Any] | None = None,
    step: Callable[[Any], Any] | None = None,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    temperature: float | None = None,
    alpha: float | None = None,
    meant: str | None = None,
    clipped: Iterable[Tensor] | None = None,
    data: DataModule | Mapping[str, Any] | None = None,
    adapter: Adapter | None = None,
) -> Report:
    """Look for the mistakes of distillation that let a loss fall and mean nothing; nothing is trained or changed.

        examine(distiller, loader, optimizer=optimizer)
        examine(student=student, teacher=teacher, loss=my_loss, batches=loader, optimizer=optimizer, temperature=4)
        examine(student=student, teacher=teacher, step=my_step, batches=loader, optimizer=optimizer)

    distiller: a `Distiller`, in the mode in which it is trained. loss: a function of (student_logits, teacher_logits)
    or (student_logits, teacher_logits, labels). step: a function of a batch that calls both networks and returns the
    loss before its backward(). Either may return a dict of named terms, which are then looked at one by one. teacher: a
    network or, for a loss, a `Teacher` or a function from a batch to logits.
    batches: a list or a loader of two or more; about 512 samples are looked at, fewer where their logits fill 512 MB,
    on the student's device (a step moves its batch itself). A `DataModule` gives its own, not augmented. optimizer: one
    or several, as they will be used.
    temperature, alpha: what is meant, alpha being the weight of the labels. meant: "kd" makes a reversed divergence a
    fault, which is a doubt otherwise. clipped: the parameters that go to clip_grad_norm_. data: a `DataModule`, or
    splits by name, which must not share samples. adapter: see `Adapter`.

    Networks, optimisers with the parameters in them, batches and random numbers come back as they were; what else a
    step changes (buffers of a module beside the networks, a counter) does not. On a CPU it takes seconds, and at most
    about a minute with a large teacher. A check that cannot be made says so in `Report.skipped`.
    Raises TypeError or ValueError for what cannot be examined: none or several of the three forms, no batch, a step
    that returns no loss with a gradient.
    """
    started = time.perf_counter()
    _check_form(distiller, student, teacher, loss, step)
    if isinstance(batches, DataModule):
        data = batches if data is None else data
        batches = _Repeated(batches)
    adapter_ = adapter or (distiller.adapter if distiller is not None else Adapter())
    check_kind("a kdlib.adapters.Adapter", Adapter, adapter=adapter_)
    setup = _setup(distiller, student, teacher, loss, step, adapter_)
    _read_intent(setup, distiller, temperature, alpha, meant)
    setup.optimizers = _optimizers(optimizer)
    setup.clipped = _parameters(clipped)
    setup.splits = None if data is None else as_splits(data)
    collected = _collect(batches)
    if step is None:  # a step moves its batch itself
        collected = _beside(setup.student, collected)
    with preserved(setup.modules(), setup.optimizers) as setup.copies, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a warning would say is for a check to say
        first = _observe_first(setup, collected)
        if isinstance(first, Finding):
            reason = "the step ends in an error, see feature-overwritten"
            others = {name: reason for name in CHECKS if name != first.check}
            return Report((first,), (), others, 0, time.perf_counter() - started)
        _observe_more(setup, collected)
        return _run(setup, started)


def _run(setup: Setup, started: float) -> Report:
    findings: list[Finding] = []
    passed, skipped = [], {}
    for name, check in CHECKS.items():
        try:
            found = check(setup)
        except Skip as reason:
            skipped[name] = str(reason)
            continue
        listed = found if isinstance(found, list) else [found] if found is not None else []
        findings += listed
        if not listed:
            passed.append(name)
    kept = _without_consequences(findings)
    ordered = sorted(kept, key=lambda one: one.severity != FAULT)
    labelled = sum(len(seen.labels) for seen in setup.observed if seen.labels is not None and seen.labels.ndim)
    return Report(tuple(ordered), tuple(passed), skipped, labelled, time.perf_counter() - started)


# What a finding explains is not said twice.
_EXPLAINS = {
    "teacher-mode": ("normalisation", "teacher-smoothing"),
    "probabilities": ("teacher-smoothing",),
    "same-view": ("teacher-accuracy", "teacher-pairing"),
    "teacher-fresh": ("teacher-accuracy", "class-order", "normalisation", "teacher-pairing", "teacher-smoothing"),
    "class-order": ("teacher-accuracy", "teacher-worse"),
    "teacher-pairing": ("teacher-accuracy", "teacher-worse", "class-order"),
    "normalisation": ("teacher-accuracy", "class-order", "teacher-smoothing"),
    "teacher-accuracy": ("teacher-smoothing", "teacher-worse"),
    "student-gradient": ("term-reach", "loss-ignores-teacher", "loss-rows"),
    "loss-ignores-teacher": ("term-names",),
    "loss-probabilities": ("loss-at-rest",),
    "loss-one-sided-temperature": ("loss-at-rest",),
    "loss-softmax-twice": ("loss-at-rest",),
}


def _without_consequences(findings: list[Finding]) -> list[Finding]:
    explained = {name for one in findings for name in _EXPLAINS.get(one.check, ())}
    return [one for one in findings if one.check not in explained]


# -------------------- what was given


def _check_form(distiller: Any, student: Any, teacher: Any, loss: Any, step: Any) -> None:
    """Raise TypeError or ValueError unless one of the three forms was given, and wholly."""
    forms = [distiller is not None, loss is not None, step is not None]
    if sum(forms) != 1:
        raise ValueError(f"Give one of a distiller, a loss and a step: {_HOW}.")
    if distiller is not None:
        if not isinstance(distiller, Distiller):
            kind = type(distiller).__name__
            raise TypeError(f"The first argument is a kdlib.distiller.Distiller; got {kind}. Otherwise: {_HOW}.")
        if student is not None or teacher is not None:
            raise ValueError("A distiller has its student and its teacher: leave out student= and teacher=.")
        return
    for name, value in {"loss": loss, "step": step}.items():
        if value is not None and (not callable(value) or isinstance(value, type)):
            raise TypeError(f"{name} is a function; got {value!r}.")
    check_kind("an nn.Module, the network that learns,", nn.Module, student=student)
    if loss is not None and (not callable(teacher) or isinstance(teacher, type)):
        raise TypeError(f"teacher is an nn.Module, or a function from a batch to logits; got {type(teacher).__name__}.")
    if step is not None and not isinstance(teacher, nn.Module | None):
        raise TypeError(
            "For a step the teacher is the nn.Module that the step calls, or None where there is none; got "
            f"{type(teacher).__name__}."
        )
    if isinstance(teacher, nn.Module) and teacher is student:
        raise ValueError("student and teacher are the same network: give two.")


def _setup(distiller: Distiller | None, student: Any, teacher: Any, loss: Any, step: Any, adapter: Adapter) -> Setup:
    if distiller is not None:
        ask = distiller.teacher if distiller.method.needs_teacher else None
        extra = distiller.method
        return DistillerSetup(distiller.student, network_of(ask), [], adapter, ask, extra=extra, distiller=distiller)
    if loss is not None:
        module = loss if isinstance(loss, nn.Module) else None
        ask = None if isinstance(teacher, nn.Module) else as_teacher(teacher, adapter)
        return LossSetup(student, network_of(teacher), [], adapter, ask, extra=module, loss=loss)
    return StepSetup(student, teacher, [], adapter, step=step)


def _read_intent(
    setup: Setup, distiller: Distiller | None, temperature: float | None, alpha: float | None, meant: str | None
) -> None:
    check_real(**{k: v for k, v in {"temperature": temperature, "alpha": alpha}.items() if v is not None})
    if temperature is not None and not 0 < temperature < 1e6:
        raise ValueError(f"temperature is a positive number; got {temperature}.")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the weight of the hard-label loss and lies in [0, 1]; got {alpha}.")
    if meant not in (None, "kd"):
        raise unknown_name("meaning of the soft loss", meant, ["kd"])
    # Only of a method that stands alone: in a sum its weights are multiplied.
    own = alpha_of(distiller.method) if distiller is not None else None
    setup.temperature = temperature
    setup.alpha = own if alpha is None else alpha
    setup.meant = meant


def _optimizers(given: Any) -> tuple[torch.optim.Optimizer, ...]:
    if given is None:
        return ()
    listed = (given,) if isinstance(given, torch.optim.Optimizer) else given
    wrong = "optimizer is a torch.optim.Optimizer, or several; got "
    if isinstance(listed, str | Mapping) or not isinstance(listed, Iterable):
        raise TypeError(f"{wrong}{type(given).__name__}.")
    found = tuple(listed)
    for one in found:
        if not isinstance(one, torch.optim.Optimizer):
            raise TypeError(f"{wrong}{type(one).__name__}.")
        if isinstance(one, torch.optim.LBFGS):
            raise ValueError(
                "LBFGS asks for the loss of a batch again and again, by a closure, and a step is tried once here. "
                "Leave out the optimizer."
            )
    return found


def _parameters(given: Any) -> tuple[Tensor, ...] | None:
    if given is None:
        return None
    if isinstance(given, Tensor):
        return (given,)
    found = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (None,)
    if not all(isinstance(one, Tensor) for one in found):
        raise TypeError("clipped is what clip_grad_norm_ is called with, parameters: student.parameters().")
    return found


class _Repeated:
    """The training batches of a `DataModule`, not augmented."""

    def __init__(self, module: DataModule) -> None:
        self._module = module

    def __iter__(self) -> Iterator[Batch]:
        count = len(self._module.train)
        generator = torch.Generator().manual_seed(0)
        some = torch.randperm(count, generator=generator)[: max(SAMPLES, 2)]
        return self._module.train.iter_batches(min(128, max(2, count // 2)), sampler=some)


def _collect(batches: Any) -> list[Any]:
    """Copies of the first batches, as many as are needed for `SAMPLES` samples and at least two if there are."""
    if batches is None or isinstance(batches, str | Tensor | Mapping) or not isinstance(batches, Iterable):
        kind = type(batches).__name__
        raise TypeError(
            f"batches is a list of batches, or a loader; got {kind}: examine(..., batches=[next(iter(loader))])."
        )
    if isinstance(batches, Iterator):
        raise TypeError(
            "batches is an iterator, which would be used up here: give the loader itself, or a list of some batches."
        )
    found: list[Any] = []
    with preserved((), (), _generators(batches)):  # a loader that shuffles draws random numbers
        samples = 0
        for batch in islice(batches, MOST_BATCHES):
            found.append(copied(batch))
            samples += batch_size_of(_tensors(batch)) or 1
            if samples >= SAMPLES and len(found) > 1:
                break
    if not found:
        raise ValueError("There is no batch: give a list of two, or a loader that has some.")
    return found


def _generators(loader: Any) -> list[torch.Generator]:
    """Those that a loader and its samplers draw from, where these are not the global ones."""
    found = [getattr(owner, "generator", None) for owner in (loader, *samplers_of(loader))]
    return [one for one in found if isinstance(one, torch.Generator)]


def _beside(student: nn.Module | None, batches: list[Any]) -> list[Any]:
    """The batches on the student's device; as they are where that is the CPU, or its weights are nowhere."""
    first = None if student is None else next(student.parameters(), None)
    if first is None or first.device.type in ("cpu", "meta"):
        return batches
    return [devices.move_batch(batch, first.device) for batch in batches]


def _tensors(batch: Any) -> Any:
    return batch.images if isinstance(batch, Batch) else batch


def _observe_first(setup: Setup, collected: list[Any]) -> Observed | Finding:
    """One pass as it stands; a finding where a layer that is read was written over and the step ends with it."""
    setup.batches = collected
    try:
        first = setup.observe(collected[0])
    except ValueError as error:
        if "overwritten in place" in str(error):
            name = str(error).partition("output of '")[2].partition("'")[0]
            role = "teacher" if setup.unfinished is not None and setup.unfinished.calls["student"] == 0 else "student"
            return student.overwritten(role, name)
        raise
    _refuse_own_backward(setup)
    setup.observed, setup.first_leaves = [first], leaves_of(first)
    first.release_graph()
    return first


def _refuse_own_backward(setup: Setup) -> None:
    """Raise ValueError for a step that has done its backward pass itself."""
    if setup.student is not None and any(p.grad is not None for p in setup.student.parameters()):
        raise ValueError(
            "The step has already called backward(), so its loss has no gradient left. Give a function "
            "that returns the "
            "loss before loss.backward()."
        )


def _observe_more(setup: Setup, collected: list[Any]) -> None:
    """The other batches, for the checks that count answers."""
    started = time.perf_counter()
    for batch in collected[1:]:
        kept = sum(logits.nbytes for seen in setup.observed for logits in seen.logits.values())
        if kept >= MOST_BYTES or time.perf_counter() - started > MOST_SECONDS:
            return
        seen = setup.observe(batch)
        seen.layer_outputs = []
        seen.release_graph()
        setup.observed.append(seen)
