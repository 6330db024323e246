"""A set-up of any form as one object: what a training step computes, also with other logits put in their place."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from kdlib.adapters import Adapter
from kdlib.described import parameters_of
from kdlib.devices import map_fields, with_items
from kdlib.distiller import Distiller, Losses
from kdlib.doctor.preserve import Copies
from kdlib.doctor.report import Skip
from kdlib.guards import writes_to
from kdlib.hooks import ModelOutput, as_arguments
from kdlib.methods import Logit
from kdlib.teachers import FrozenTeacher, Teacher

Terms = dict[str, Tensor]
ROLES = ("student", "teacher")


@dataclass
class LayerOutput:
    """What a hook of the user's, or of a method, read: a layer's output, and whether it was written over later."""

    role: str
    name: str
    output: Tensor
    version: int

    @property
    def overwritten(self) -> bool:
        """Whether a later operation wrote into it."""
        return writes_to(self.output) != self.version


@dataclass
class Observed:
    """One forward pass of a training step, as it is; modes and inputs are those at the call of each network.

    logits: by role, as the loss received them. rows: of logits, how many the calls of a step's networks gave. inputs:
    by role, the first tensor that the network was called with. modes: by role, the modules that ran, by name, with
    their mode. calls: how often each network was called.
    """

    terms: Terms = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    rows: set[int] = field(default_factory=set)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    modes: dict[str, dict[str, bool]] = field(default_factory=lambda: {role: {} for role in ROLES})
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    layer_outputs: list[LayerOutput] = field(default_factory=list)

    @property
    def total(self) -> Tensor:
        """The loss."""
        return total(self.terms)

    def release_graph(self) -> None:
        """Keep the numbers alone: a graph holds what every layer of the student gave."""
        self.terms = {name: one.detach() for name, one in self.terms.items()}
        self.logits = {role: one.detach() for role, one in self.logits.items()}
        for layer in self.layer_outputs:
            layer.output = layer.output.detach()  # which shares its count of writes


@dataclass
class Setup:
    """What is examined. Subclasses say what a step computes.

    student, teacher: networks; a teacher that is no network is None here, and its answers are known where the step
    shows them. ask: the teacher that gives the answers where that is not the network by itself: one of kdlib's, or a
    function. batches: copies of the user's. temperature, alpha: what the user means; None: not said. meant: "kd" if
    the soft loss is meant to be that. extra: modules beside the student that learn. clipped: the parameters whose
    gradient is clipped. splits: data sets by name.
    """

    student: nn.Module | None
    teacher: nn.Module | None
    batches: list[Any]
    adapter: Adapter
    ask: Teacher | None = None
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    temperature: float | None = None
    alpha: float | None = None
    meant: str | None = None
    extra: nn.Module | None = None
    clipped: tuple[Tensor, ...] | None = None
    splits: Mapping[str, Any] | None = None
    observed: list[Observed] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)  # what several checks need and one has computed
    copies: Copies | None = None  # of all that a step may change, from the beginning of the examination
    first_leaves: dict[int, Tensor] = field(default_factory=dict)  # that a gradient reached in the first pass
    unfinished: Observed | None = None  # a pass that ended in an error

    def forward(self, batch: Any, logits: Mapping[str, Tensor]) -> Terms:
        """The terms of the loss of a batch, with these logits in place of those of the networks."""
        raise NotImplementedError

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Those that are there, by role."""
        for role, network in (("student", self.student), ("teacher", self.teacher)):
            if network is not None:
                yield role, network

    def within_student(self) -> set[nn.Module]:
        """The teacher's modules where the student holds its teacher, as in modelopt; else none."""
        if self.student is None or self.teacher is None or self.teacher not in set(self.student.modules()):
            return set()
        return set(self.teacher.modules())

    def losses(self, batch: Any, **logits: Tensor) -> Terms:
        """As `forward`, with the same random numbers at every call."""
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        return self.forward(batch, logits)

    def observe(self, batch: Any) -> Observed:
        """Run one forward pass as it stands and keep what is seen of it."""
        seen = self.unfinished = Observed(labels=self._labels(batch))
        with ExitStack() as stack:
            for role, network in self.networks():
                not_its_own = self.within_student() if role == "student" else set()
                stack.enter_context(_watch(role, network, seen, not_its_own))
            stack.enter_context(self._watch_loss(seen))
            seen.terms = self.losses(batch)
        self.unfinished = None
        return seen

    def _labels(self, batch: Any) -> Tensor | None:
        try:
            found = self.adapter.labels_of(batch)
        except ValueError:  # a step may read its batch in its own way
            return None
        return found if isinstance(found, Tensor) else None

    def answers(self, batch: Any, pictures: Tensor) -> Tensor:
        """What the teacher says of a batch with other pictures: its logits."""
        assert self.teacher is not None
        if self.ask is None:
            logits: Tensor = self.adapter.teacher_logits_of(self.teacher(pictures))
            return logits
        with _called_with(self.teacher, pictures):
            return self.ask(batch).logits

    @contextmanager
    def _watch_loss(self, seen: Observed) -> Iterator[None]:
        """Keep the logits, and where they differ from the batch's the labels, as the loss receives them."""
        raise NotImplementedError

    def modules(self) -> list[nn.Module]:
        """All that a step may change."""
        return [one for one in (self.student, self.teacher, self.extra) if one is not None]

    def responds(self) -> tuple[Any, int, int]:
        """A few rows of a batch for probes, how many, and the number of classes; Skip where none can be made."""
        seen = self.observed[0]
        if any(seen.logits.get(role) is None for role in ROLES):
            missing = next(role for role in ROLES if seen.logits.get(role) is None)
            raise Skip(f"the {missing}'s logits do not pass through a network or loss that was given")
        if seen.logits["student"].ndim != 2:
            raise Skip("probes are made for logits of batch x classes")
        teachers, students = (seen.logits[role].shape[1:] for role in ("teacher", "student"))
        if teachers != students:
            raise Skip(other_classes(teachers, students))
        rows = min(PROBE_ROWS, len(seen.logits["student"]))
        return self.cut(rows), rows, seen.logits["student"].shape[1]

    def with_other_labels(self, batch: Any) -> Any:
        """The batch with each label moved to the next sample; as it is where its labels are not seen in it."""
        labels = self._labels(batch)
        try:
            return _map(batch, lambda x: x.roll(1, 0) if x is labels and x.ndim else x)
        except Skip:
            return batch

    def cut(self, rows: int) -> Any:
        """The first rows of the first batch."""
        whole = len(self.observed[0].logits["student"])
        return take(self.batches[0], whole, rows) if rows < whole else self.batches[0]


def other_classes(teachers: Sequence[int], students: Sequence[int]) -> str:
    """Why answers of networks with other outputs are not compared."""
    return (
        f"the teacher gives {teachers[-1] if teachers else 'no'} logits and the student {students[-1]}: which of them "
        "belong together only the loss knows; select them by Adapter(teacher_logits=...)"
    )


PROBE_ROWS = 8  # enough for the rows of a probe to differ; a pass of so few costs little


@dataclass(kw_only=True)
class DistillerSetup(Setup):
    """A `Distiller`; logits are put in where its method is called."""

    distiller: Distiller

    def forward(self, batch: Any, logits: Mapping[str, Tensor]) -> Terms:
        def put(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            outputs, labels = dict(zip(ROLES, args, strict=False)), args[2]
            if logits and isinstance(labels, Tensor):  # a sample has many rows, and a probe as few as are put in
                labels = labels[: len(next(iter(logits.values())))]
            return (*(_replaced(outputs[role], logits.get(role)) for role in ROLES), labels)

        handle = self.distiller.method.register_forward_pre_hook(put)
        try:
            return dict(self.distiller(batch).terms)
        finally:
            handle.remove()

    @contextmanager
    def _watch_loss(self, seen: Observed) -> Iterator[None]:
        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
            for role, output in zip(ROLES, args, strict=False):
                if isinstance(output, ModelOutput) and output.logits is not None:
                    seen.logits[role] = output.logits
                if isinstance(output, ModelOutput) and role == "teacher":
                    seen.layer_outputs += [
                        LayerOutput(role, name, x, writes_to(x))
                        for name, x in output.features.items()
                        if not any(layer.role == role and layer.name == name for layer in seen.layer_outputs)
                    ]
            seen.labels = args[2] if isinstance(args[2], Tensor) else None  # of a dict only the loss knows which

        handle = self.distiller.method.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()


@dataclass(kw_only=True)
class LossSetup(Setup):
    """Two networks and a function of (student_logits, teacher_logits) or (student_logits, teacher_logits, labels)."""

    loss: Callable[..., Any]

    @property
    def takes_labels(self) -> bool:
        """Whether the loss is called with the labels."""
        return count_arguments(self.loss, 3) >= 3

    def forward(self, batch: Any, logits: Mapping[str, Tensor]) -> Terms:
        student, teacher = logits.get("student"), logits.get("teacher")
        if student is None:
            assert self.student is not None
            student = _called(self.student, self.adapter.student_inputs_of(batch), self.adapter.logits_of)
        if teacher is None:
            with torch.no_grad():
                teacher = self._answer(batch)
        self._last = {"student": student, "teacher": teacher}
        labels = self.adapter.labels_of(batch)
        return as_terms(self.loss(student, teacher, *([labels] if self.takes_labels else [])))

    def _answer(self, batch: Any) -> Tensor:
        if self.ask is not None:
            return self.ask(batch).logits
        assert self.teacher is not None
        return _called(self.teacher, self.adapter.teacher_inputs_of(batch), self.adapter.teacher_logits_of)

    @contextmanager
    def _watch_loss(self, seen: Observed) -> Iterator[None]:
        yield
        seen.logits, self._last = self._last, {}

    def with_temperature(self, name: str, value: float) -> LossSetup:
        """The same with another argument of the loss."""
        from functools import partial

        changed = copy.copy(self)
        changed.loss = partial(self.loss, **{name: value})
        return changed


@dataclass(kw_only=True)
class StepSetup(Setup):
    """A training step of the user's, from a batch to the loss; logits are put in by hooks on the networks' outputs."""

    step: Callable[[Any], Any]

    def forward(self, batch: Any, logits: Mapping[str, Tensor]) -> Terms:
        with ExitStack() as stack:
            for role, network in self.networks():
                if role in logits:
                    stack.enter_context(_put(network, logits[role], self._read(role)))
            return as_terms(self.step(batch))

    def responds(self) -> tuple[Any, int, int]:
        """As of any set-up, for a step whose networks give a row for each sample of its batch in every call."""
        batch, rows, classes = super().responds()
        if "no probes" not in self.memory:
            self.memory["no probes"] = self._why_no_probes(batch, rows)
        if reason := self.memory["no probes"]:
            raise Skip(reason)
        return batch, rows, classes

    def _why_no_probes(self, batch: Any, rows: int) -> str:
        """Nothing where every call of a network gives as many rows as a probe has."""
        try:
            found = self.observe(batch).rows
        except Exception as error:  # whatever a step of the user's raises for a size that it was not written for
            return f"the step cannot be computed for {rows} samples of a batch ({type(error).__name__})"
        if found == {rows}:
            return ""
        given = " or ".join(map(str, sorted(found))) or "none"
        return (
            f"a probe has a row of logits for each of {rows} samples, and a call of the step's networks gives {given}"
        )

    def _read(self, role: str) -> Callable[[Any], Any]:
        return self.adapter.logits_of if role == "student" else self.adapter.teacher_logits_of

    @contextmanager
    def _watch_loss(self, seen: Observed) -> Iterator[None]:
        handles = []
        for role, network in self.networks():

            def keep(module: nn.Module, args: Any, output: Any, role: str = role) -> None:
                found = self._read(role)(output)
                if isinstance(found, Tensor):
                    seen.logits[role] = found
                    seen.rows.update(found.shape[:1])

            handles.append(network.register_forward_hook(keep))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


# -------------------- terms


def as_terms(found: Any) -> Terms:
    """The terms in what a loss or a step returned: a tensor, a dict of named ones, or a tuple that begins with one.

    Raises TypeError for what is none of these, ValueError for a tensor that is no single number.
    """
    if isinstance(found, Losses):
        return dict(found.terms)
    if isinstance(found, tuple | list) and found:
        return as_terms(found[0])
    if isinstance(found, Mapping):
        tensors = {str(name): one for name, one in found.items() if isinstance(one, Tensor)}
        terms = {name: one for name, one in tensors.items() if one.is_floating_point()}  # others count something
        whole = next((terms[name] for name in ("total", "loss") if name in terms), None)
        parts = {name: one for name, one in terms.items() if one is not whole and one.ndim == 0}
        if whole is not None and parts and _is_sum(whole, parts):
            return parts
        terms = terms if whole is None else {"loss": whole}
    else:
        terms = {"loss": found}
    for name, one in terms.items():
        if not isinstance(one, Tensor):
            raise TypeError(f"A loss or step returns the loss as a tensor with its gradient; got {type(one).__name__}.")
        if one.ndim:
            raise ValueError(
                f"The loss is one number for a batch; {name!r} has shape {tuple(one.shape)}: take its mean."
            )
    if not terms:
        raise TypeError(
            "A loss or step returns the loss, or a dict with its terms; got a dict without a floating-point tensor."
        )
    return terms


def _is_sum(whole: Tensor, parts: Terms) -> bool:
    """Whether the parts add up to the whole; each may have a precision of its own, and the coarsest one decides."""
    added = sum(float(one.detach()) for one in parts.values())
    coarsest = max(torch.finfo(one.dtype).eps for one in (whole, *parts.values()))
    return whole.ndim == 0 and math.isclose(float(whole.detach()), added, rel_tol=max(1e-3, coarsest), abs_tol=1e-8)


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms."""
    first, *others = terms.values()
    for one in others:
        first = first + one
    return first


def called_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """What names the arguments: a module's are those of its forward."""
    return function.forward if isinstance(function, nn.Module) else function


def alpha_of(method: Any) -> float | None:
    """The weight of the labels in a method of kdlib's that has one; one of the user's may call anything alpha."""
    return float(method.alpha) if isinstance(method, Logit) else None


def weighted_parts(method: Any) -> list[tuple[float, Any]]:
    """The weights and methods of a sum; any other method is the only part of one, with weight 1."""
    return getattr(method, "weighted", [(1.0, method)])


def count_arguments(function: Callable[..., Any], default: int) -> int:
    """How many arguments it is called with by position, at least those without a default."""
    try:
        parameters = parameters_of(called_function(function))
    except (TypeError, ValueError):  # a function of C
        return default
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return default
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    third = positional[2].name.lower() if len(positional) > 2 else ""
    return 3 if len(needed) >= 3 or any(word in third for word in ("label", "target", "gt")) else len(needed)


# -------------------- batches


def take(batch: Any, whole: int, rows: int) -> Any:
    """The first `rows` samples of a batch of `whole`; Skip where some part of it cannot be cut."""

    def cut(x: Tensor) -> Tensor:
        return x[:rows] if x.ndim and len(x) == whole else x

    return _map(batch, cut)


def copied(batch: Any) -> Any:
    """The batch with tensors of its own, so that a step that writes into its batch does no harm."""
    try:
        return _map(batch, lambda x: x.detach().clone().requires_grad_(x.requires_grad))
    except Skip:
        return copy.deepcopy(batch)


def mixes_samples(setup: Setup, role: str) -> bool:
    """Whether an input of this network changes when another sample of its batch does: Mixup, CutMix inside a step."""
    if "mixed" not in setup.memory:
        setup.memory["mixed"] = _mixed(setup) if isinstance(setup, StepSetup) else set()
    return role in setup.memory["mixed"]


def _mixed(setup: StepSetup) -> set[str]:
    """The networks of which that is so; half of the samples change places, which keeps the statistics of a batch."""
    batch, labels = setup.batches[0], setup.observed[0].labels
    if labels is None:
        return set()
    number = len(labels)
    some = torch.randperm(number, generator=torch.Generator().manual_seed(0))[: number // 2]

    def moved(x: Tensor) -> Tensor:
        if x.ndim < 2 or len(x) != number:
            return x
        x = x.clone()
        x[some] = x[some].roll(1, 0) if len(some) > 1 else x[some].flip(-1)
        return x

    found = set()
    try:
        seen = [setup.observe(copied(one)).inputs for one in (batch, batch, _map(batch, moved))]
        for role in ROLES:
            shapes = {one[role].shape if role in one else None for one in seen}
            if len(shapes) > 1 or None in shapes or seen[0][role].shape[:1] != (number,):
                continue
            before, again, after = (one[role].float().reshape(number, -1) for one in seen)
            differ = [((before - one).abs().amax(1) > 1e-4 * before.abs().max()).sum() for one in (again, after)]
            # What differs without a change does so by chance of the step's own, and nothing is known of it.
            if not differ[0] and int(differ[1]) > len(some):
                found.add(role)
    except Exception:  # whatever a step raises for a batch that was made up: nothing is known then
        return set()
    return found


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(one, change) for one in value))
    if isinstance(value, tuple | list):
        return type(value)(_map(one, change) for one in value)
    if isinstance(value, Mapping):
        return with_items(value, {name: _map(one, change) for name, one in value.items()})
    if is_dataclass(value) and not isinstance(value, type):
        return map_fields(value, lambda one: _map(one, change))
    if value is None or isinstance(value, str | int | float):
        return value
    raise Skip(f"a batch that holds a {type(value).__name__} cannot be cut into smaller ones")


# -------------------- hooks


def network_of(teacher: Any) -> nn.Module | None:
    """The network of a teacher; None if it has none."""
    if isinstance(teacher, FrozenTeacher):
        return teacher.model
    return teacher if isinstance(teacher, nn.Module) else None


def _called(network: nn.Module, inputs: Any, read: Callable[[Any], Any]) -> Tensor:
    args, kwargs = as_arguments(inputs)
    found = read(network(*args, **kwargs))
    if not isinstance(found, Tensor):
        raise ValueError(
            f"A {type(network).__name__} gave no tensor of logits. Say where they are: Adapter(logits=...)."
        )
    return found


def _replaced(output: Any, logits: Tensor | None) -> Any:
    return output if logits is None or output is None else replace(output, logits=logits)


@contextmanager
def _put(network: nn.Module, logits: Tensor, read: Callable[[Any], Any]) -> Iterator[None]:
    """Whatever the network is called with, these are its logits."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return _with_logits(output, read(output), logits)

    handle = network.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _called_with(network: nn.Module, pictures: Tensor) -> Iterator[None]:
    """The first tensor that the network is called with is this one, whatever the batch holds."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        first = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)

        def put(x: Any) -> Any:
            return pictures if x is first else x

        return tuple(map(put, args)), {name: put(x) for name, x in kwargs.items()}

    handle = network.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _with_logits(output: Any, old: Any, new: Tensor) -> Any:
    """The same output with other logits in it."""
    if output is old:
        return new
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(new if one is old else one for one in output))
    if isinstance(output, tuple | list):
        return type(output)(new if one is old else one for one in output)
    changed = copy.copy(output)
    if isinstance(output, Mapping):
        for name, value in output.items():
            if value is old:
                changed[name] = new
        return changed
    for name, value in vars(output).items():
        if value is old:
            setattr(changed, name, new)
    return changed


@contextmanager
def _watch(role: str, network: nn.Module, seen: Observed, left_out: set[nn.Module]) -> Iterator[None]:
    """Keep the mode of every module that runs, the network's inputs, and what other hooks read."""
    handles = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.calls[role] += 1
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if tensors:
            seen.inputs.setdefault(role, tensors[0].detach())

    handles.append(network.register_forward_pre_hook(before, with_kwargs=True))
    for name, module in network.named_modules():
        if module in left_out:
            continue

        def after(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            seen.modes[role][name] = module.training
            # `network` itself is read for its logits.
            if name and isinstance(output, Tensor) and _is_read(module):
                seen.layer_outputs.append(LayerOutput(role, name, output, writes_to(output)))

        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_read(module: nn.Module) -> bool:
    """Whether a hook looks at a module's output that is none of the doctor's."""
    return any(getattr(hook, "__module__", None) != __name__ for hook in module._forward_hooks.values())


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a part of a network answers otherwise in train mode: batch norm and dropout, as a rule."""
    if isinstance(module, _NormBase):
        return module.track_running_stats
    return isinstance(module, _DropoutNd) and module.p > 0


def named_parameters(setup: Setup) -> dict[int, str]:
    """Names of all parameters that are known, by identity, with their role in front."""
    roles: Sequence[tuple[str, nn.Module | None]] = (
        ("student", setup.student),
        ("teacher", setup.teacher),
        ("method", setup.extra),
    )
    return {id(p): f"{role} {name}" for role, one in roles if one is not None for name, p in one.named_parameters()}
