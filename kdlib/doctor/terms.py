"""Checks of the parts of a loss: does each teach the student, and do they do what their names say?"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from kdlib import methods
from kdlib.doctor.probe import IGNORED, device_of, losses_of_probe, random_logits
from kdlib.doctor.report import DOUBT, FAULT, GITHUB, Finding, Skip
from kdlib.doctor.setup import Setup, Terms, alpha_of, weighted_parts
from kdlib.doctor.step import gradient_norm, step_taken

MOST = 100.0  # times the gradient of another term
# For kdlib's own methods, whose terms are on scales of their own: 827 was the largest of the simulation, dist at T = 20
# with a twentieth for the labels.
MOST_OF_OURS = 3000.0
HARD = ("hard", "ce", "cls", "label", "cross_entropy")
SOFT = ("soft", "kd", "kl", "distill", "distillation")


def reach(setup: Setup) -> list[Finding]:
    """Does the gradient of every term reach the student?"""
    taken, findings = step_taken(setup), []
    if not setup.optimizers and setup.student is None:
        raise Skip("no student was given")
    off = switched_off(setup)
    for name, norm in taken.norms.items():
        if name in off:
            continue
        if not math.isfinite(norm):
            findings.append(_not_finite(name, taken.values[name]))
            continue
        if norm > 0:
            continue
        value = taken.values[name]
        if value == 0 and len(taken.norms) > 1:
            continue  # `trivial` says so
        findings.append(
            Finding(
                "term-reach",
                FAULT,
                f"The term {name!r} is {value:.4g} and its gradient on the student's parameters is 0.",
                "It is shown in every curve and teaches nothing: the student's side was computed under no_grad, was "
                "detached, or the loss compares the teacher with itself.",
                "Remove detach() and no_grad() from the student's side, and see that its weights require a gradient.",
                story=f"{GITHUB}Tencent/YOLO-Master/pull/240",
            )
        )
    return findings


def _not_finite(name: str, value: float) -> Finding:
    return Finding(
        "term-reach",
        FAULT,
        f"The term {name!r} is {value:.4g} and its gradient on the student's parameters is not finite.",
        "After one step weights of the student are NaN or infinite.",
        "A root or a norm has no finite gradient at 0, as of the distance of a sample from itself: add a small number "
        "under it, or leave these places out before it. A logarithm of 0, or a division by it, does the same.",
    )


def balance(setup: Setup) -> Finding | None:
    """Is the gradient of one term a hundred times that of another?"""
    taken = step_taken(setup)
    norms = {name: norm for name, norm in taken.norms.items() if norm > 0 and math.isfinite(norm)}
    if len(norms) < 2:
        raise Skip("the loss has no two named terms that reach the student")
    small, large = min(norms, key=norms.__getitem__), max(norms, key=norms.__getitem__)
    ratio = norms[large] / norms[small]
    if ratio <= (MOST_OF_OURS if _all_ours(setup) else MOST):
        return None
    return Finding(
        "term-balance",
        DOUBT,
        f"The gradient of {large!r} on the student's parameters is {ratio:,.0f} times that of {small!r}.",
        f"At this weight {small!r} does not count: the run is one with {large!r} alone.",
        "Choose weights that bring the gradients near each other, or leave the small term out.",
    )


def _all_ours(setup: Setup) -> bool:
    """Whether every part of the method is one of kdlib's, with a loss that has a name."""
    method: Any = setup.extra
    parts = [part for _, part in weighted_parts(method)]
    ours = (methods.HardLabels, methods.Logit, methods.LayerMethod)
    return all(isinstance(part, ours) and isinstance(getattr(part, "loss", ""), str) for part in parts)


def trivial(setup: Setup) -> list[Finding]:
    """Is a term at its least from the beginning: constant features, or maps of one position?"""
    taken, findings = step_taken(setup), []
    off = switched_off(setup)
    if len(taken.norms) > 1:
        for name, value in taken.values.items():
            if abs(value) < 1e-12 and taken.norms[name] < 1e-12 and name not in off:
                findings.append(_trivial(f"The term {name!r} is {value:g}, and so is its gradient on the student."))
    for layer in setup.observed[0].layer_outputs:
        what = _collapsed(layer.output)
        if what and not any(repr(layer.name) in one.measured for one in findings):
            findings.append(_trivial(f"The {layer.role}'s layer {layer.name!r} {what}."))
    if not findings and len(taken.norms) == 1 and not setup.observed[0].layer_outputs:
        raise Skip("no term has a name of its own, and no layer is read by a hook")
    return findings


def _trivial(measured: str) -> Finding:
    return Finding(
        "term-trivial",
        FAULT,
        measured,
        "A loss on it is at its least without learning anything: attention at 1 x 1 is always 1, dead or constant "
        "features can be copied by a bias.",
        "Name a layer whose output differs from sample to sample and, for attention, has more than one position.",
    )


def _collapsed(output: Tensor) -> str:
    values = output.detach().float()
    if values.ndim < 2 or len(values) < 2:
        return ""
    if not values.any():
        return "gives nothing but zeros"
    spread = float((values - values.mean(0, keepdim=True)).abs().max())
    if spread <= 1e-6 * float(values.abs().max()):
        return "gives the same output for every sample"
    return ""


def names(setup: Setup) -> list[Finding]:
    """Does the term called hard look at the labels only, and the one called soft at the teacher?"""
    taken = step_taken(setup)
    if len(taken.norms) < 2:
        raise Skip("the loss has no two named terms")
    batch, rows, classes = setup.responds()
    hard = [name for name in taken.norms if name.lower() in HARD]
    soft = [name for name in taken.norms if name.lower() in SOFT]
    if not hard and not soft:
        raise Skip("no term is called hard or soft")
    student = random_logits(rows, classes, 1).to(device_of(setup))
    teacher, other = (random_logits(rows, classes, seed).to(student) for seed in (2, 3))
    first = losses_of_probe(setup, batch, student=student, teacher=teacher)
    answered = losses_of_probe(setup, batch, student=student, teacher=other)
    labelled = losses_of_probe(setup, setup.with_other_labels(batch), student=student, teacher=teacher)

    def moves(name: str, changed: Terms) -> bool:
        return abs(float(first[name] - changed[name])) > IGNORED * max(abs(float(first[name])), 1e-12)

    # Distillation of layers may be called soft as well: it teaches the student although its logits are replaced. A loss
    # on the labels does so too where the network itself computes it.
    learning = [p for p in setup.student.parameters() if p.requires_grad] if setup.student is not None else []
    off = switched_off(setup)
    following = [name for name in hard if moves(name, answered)]
    still = [
        name
        for name in soft
        if name not in off
        and not moves(name, answered)
        and (moves(name, labelled) or gradient_norm(first[name], learning) == 0)
    ]
    if not following and not still:
        return []
    swapped = bool(following and still)
    wrong = [f"{name!r} follows the teacher" for name in following] + [f"{name!r} does not" for name in still]
    return [
        Finding(
            "term-names",
            FAULT if swapped else DOUBT,
            f"When the teacher's logits are exchanged: {', '.join(wrong)}.",
            "The names of the terms are what curves, weights and alpha go by: with the names swapped, alpha has the "
            "other role.",
            "Exchange the two terms, or their names."
            if swapped
            else "See that the term is computed from what its name says. Leave it if the name means something else.",
        )
    ]


def switched_off(setup: Setup) -> set[str]:
    """Terms of kdlib's own methods whose weight is 0 by their settings."""
    method: Any = setup.extra
    found: set[str] = set()
    for number, (weight, part) in enumerate(weighted_parts(method), start=1):
        alpha = alpha_of(part)
        if alpha in (0, 1):
            name = "hard" if alpha == 0 else "soft"
            numbered = f"{name} ({number})"  # the name in a sum, where an earlier part has one of that name
            found.add(numbered if numbered in step_taken(setup).norms else name)
        if weight == 0:
            found |= set(step_taken(setup).norms)  # whose names are not known one by one
    return found
