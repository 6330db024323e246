"""One whole training step, taken and undone: what got a gradient, and what changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdlib.doctor.preserve import Copies, gradients_preserved, preserved
from kdlib.doctor.setup import Observed, Setup, copied


@dataclass(frozen=True)
class Step:
    """leaves: the tensors that a gradient reached and that can learn, by identity. held: those in the optimisers.

    norms: of each term's gradient over the student's parameters. values: of each term.
    teacher_changed: the names of the teacher's tensors that differ afterwards.
    """

    leaves: dict[int, Tensor]
    held: dict[int, Tensor]
    norms: dict[str, float]
    values: dict[str, float]
    teacher_changed: list[str]


def step_taken(setup: Setup) -> Step:
    """Forward, backward and a step of the optimisers on the first batch; everything is as before afterwards."""
    if "step" not in setup.memory:
        with preserved(setup.modules(), setup.optimizers, outer=setup.copies) as copies:
            setup.memory["step"] = _take(setup, copies)
    found = setup.memory["step"]
    assert isinstance(found, Step)
    return found


def _take(setup: Setup, copies: Copies) -> Step:
    before = {name: copies.of(tensor) for name, tensor in _tensors(setup.teacher)}
    seen = setup.observe(copied(setup.batches[0]))
    leaves = leaves_of(seen)
    # What the batch brings, or a step makes anew each time, is no parameter although a gradient may reach it.
    learn = {i: leaf for i, leaf in leaves.items() if isinstance(leaf, nn.Parameter) or i in setup.first_leaves}
    trained = [p for p in setup.student.parameters() if p.requires_grad] if setup.student is not None else []
    norms = {name: gradient_norm(term, trained) for name, term in seen.terms.items()}
    if seen.total.requires_grad:
        with gradients_preserved(leaves.values()):  # also of what belongs to no module that was given
            seen.total.backward()
            for optimizer in setup.optimizers:
                optimizer.step()
    changed = [name for name, tensor in _tensors(setup.teacher) if not torch.equal(tensor, before[name])]
    held = {id(p): p for optimizer in setup.optimizers for group in optimizer.param_groups for p in group["params"]}
    return Step(learn, held, norms, {name: float(term) for name, term in seen.terms.items()}, changed)


def _tensors(network: nn.Module | None) -> Iterator[tuple[str, Tensor]]:
    if network is not None:
        yield from network.named_parameters()
        yield from network.named_buffers()


def gradient_norm(term: Tensor, parameters: list[nn.Parameter]) -> float:
    """Of a term's gradient over these parameters; 0 where none reaches them."""
    if not term.requires_grad or not parameters:
        return 0.0
    found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    norms = [g.detach().float().norm() for g in found if g is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def leaves_of(seen: Observed) -> dict[int, Tensor]:
    """All tensors that a gradient of a term reaches, by identity."""
    return {id(leaf): leaf for term in seen.terms.values() for leaf in _leaves_of(term)}


def _leaves_of(loss: Tensor) -> list[Tensor]:
    """The tensors that a backward pass from here would give a gradient."""
    if loss.grad_fn is None:
        return [loss] if loss.requires_grad else []
    found, queue, seen = [], [loss.grad_fn], {loss.grad_fn}
    while queue:
        node = queue.pop()
        if type(node).__name__ == "AccumulateGrad":
            found.append(cast("Any", node).variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
    return found
