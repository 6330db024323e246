"""Checks of the student, of what learns beside it, and of the optimiser."""

from __future__ import annotations

from kdlib.doctor.report import DOUBT, FAULT, GITHUB, Finding, Skip
from kdlib.doctor.setup import Setup, depends_on_mode, named_parameters
from kdlib.doctor.step import step_taken
from kdlib.errors import few


def mode(setup: Setup) -> Finding | None:
    """Are the student's batch norms and dropouts in train mode?"""
    if setup.student is None:
        raise Skip("no student's network was given")
    seen = setup.observed[0].modes["student"]
    modules = dict(setup.student.named_modules())
    parts = [name for name in seen if depends_on_mode(modules[name])]
    frozen = [name for name in parts if not seen[name]]
    if not frozen:
        return None
    # A student wholly in eval mode was left so; where its other layers train these may be frozen on purpose.
    others = [name for name in seen if name not in parts and not list(modules[name].children())]
    on_purpose = len(frozen) < len(parts) or any(seen[name] for name in others)
    return Finding(
        "student-mode",
        DOUBT if on_purpose else FAULT,
        f"{len(frozen)} of {len(parts)} batch norms and dropouts of the student run in eval mode ({few(frozen)}).",
        "Batch statistics stay what they were, so a fresh student is not normalised at all, and dropout is off.",
        "Call student.train() at the beginning of every epoch: an evaluation in between leaves it in eval mode."
        + (" Leave it if they are frozen on purpose." if on_purpose else ""),
        story=f"{GITHUB}SforAiDl/KD_Lib",
    )


def gradient(setup: Setup) -> Finding | None:
    """Does any gradient reach the student?"""
    if setup.student is None:
        raise Skip("no student's network was given")
    taken = step_taken(setup)
    if any(id(p) in taken.leaves for p in setup.student.parameters()):
        return None
    return Finding(
        "student-gradient",
        FAULT,
        "No gradient of the loss reaches a parameter of the student.",
        "Nothing is learned, whatever the loss does.",
        "Remove no_grad() and detach() around the student, and see that its parameters require a gradient.",
        story=f"{GITHUB}Syencil/mobile-yolov5-pruning-distillation/issues/83",
    )


def optimizer(setup: Setup) -> list[Finding]:
    """Does the optimiser hold everything that gets a gradient, projections above all?"""
    if not setup.optimizers:
        raise Skip("no optimiser was given: examine(..., optimizer=...)")
    taken, names = step_taken(setup), named_parameters(setup)
    teacher = {id(p) for p in setup.teacher.parameters()} if setup.teacher is not None else set()
    student = {id(p) for p in setup.student.parameters()} if setup.student is not None else set()
    missing = [i for i in taken.leaves if i not in taken.held and i not in teacher]
    findings = []
    for own, what in ((False, "beside the student's"), (True, "of the student")):
        some = [i for i in missing if (i in student) == own]
        if not some:
            continue
        shown = ", ".join(names.get(i, f"one of {tuple(taken.leaves[i].shape)}") for i in some[:3])
        none_is_held = not any(i in taken.held for i in student)
        findings.append(
            Finding(
                "optimizer-parameters",
                FAULT if not own or none_is_held else DOUBT,
                f"{len(some)} parameter(s) {what} get a gradient, and the optimiser does not hold them ({shown}).",
                "They keep their random initial values: a projection that never learns makes the student "
                "imitate noise, "
                "and the loss falls all the same."
                if not own
                else "They stay as they are, although every step computes their gradient.",
                "Build the optimiser from all that learns: torch.optim.SGD(distiller.parameters(), ...)."
                if not own
                else "Add them to the optimiser, or set requires_grad to False if they are to stay.",
                story=f"{GITHUB}roymiles/Simple-Recipe-Distillation/issues/1",
            )
        )
    return findings


def clipping(setup: Setup) -> Finding | None:
    """Is the gradient of all that learns clipped together?"""
    if setup.clipped is None:
        raise Skip("what is clipped was not said: examine(..., clipped=parameters)")
    taken, names = step_taken(setup), named_parameters(setup)
    clipped = {id(p) for p in setup.clipped}
    teacher = {id(p) for p in setup.teacher.parameters()} if setup.teacher is not None else set()
    free = [i for i in taken.leaves if i not in clipped and i not in teacher]
    if not free:
        return None
    shown = ", ".join(names.get(i, f"one of {tuple(taken.leaves[i].shape)}") for i in free[:3])
    return Finding(
        "clipping",
        FAULT,
        f"{len(free)} parameter(s) get a gradient that is not clipped with the rest ({shown}).",
        "A published study had to be corrected for it: projections that may jump while the student may not change "
        "what a method gains.",
        "Clip all of them in one call: clip_grad_norm_(distiller.parameters(), norm).",
    )


def layer_outputs(setup: Setup) -> list[Finding]:
    """Is the output of a layer that is compared written over by the operation after it?"""
    read = setup.observed[0].layer_outputs
    if not read:
        raise Skip("no layer is read by a hook")
    findings, said = [], set()
    for layer in read:
        if layer.overwritten and (layer.role, layer.name) not in said:
            said.add((layer.role, layer.name))
            findings.append(overwritten(layer.role, layer.name))
    return findings


def overwritten(role: str, name: str) -> Finding:
    """The finding for a layer whose output does not last."""
    return Finding(
        "feature-overwritten",
        FAULT,
        f"After the {role}'s layer {name!r} had given its output, a later operation wrote into it.",
        "What is compared is the output of the layer after it, an in-place ReLU as a rule: the negative half is lost, "
        "and nothing says so.",
        "Read the later layer, set its inplace to False, or keep output.clone().",
    )
