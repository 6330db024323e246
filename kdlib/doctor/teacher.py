"""Checks of the teacher: its mode, its weights, its answers."""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kdlib.doctor.preserve import preserved
from kdlib.doctor.probe import gradient
from kdlib.doctor.report import DOUBT, FAULT, GITHUB, Finding, Skip
from kdlib.doctor.samples import RARE, Mixed, Samples, better, chance_of, samples
from kdlib.doctor.setup import Setup, depends_on_mode
from kdlib.doctor.step import step_taken
from kdlib.errors import few
from kdlib.guards import shared_tensors
from kdlib.losses._common import sum_to_one


def network(setup: Setup) -> nn.Module:
    """The teacher's network; Skip where there is none."""
    if setup.teacher is None:
        raise Skip("no teacher's network was given")
    return setup.teacher


def mode(setup: Setup) -> Finding | None:
    """Is any part of the teacher in train mode when it answers?"""
    teacher, seen = network(setup), setup.observed[0]
    if not seen.modes["teacher"]:
        raise Skip("the teacher's network did not run in a step")
    modules = dict(teacher.named_modules())
    training = [name for name, train in seen.modes["teacher"].items() if train]
    known = [name for name in training if depends_on_mode(modules[name])]
    if not training or not (known or _answers_differ(setup)):
        return None
    what = few(known or [name or "itself" for name in training])
    return Finding(
        "teacher-mode",
        FAULT,
        f"In a step {len(known or training)} part(s) of the teacher run in train mode ({what}).",
        "Its answers depend on the other samples of the batch or on chance, and its batch statistics follow your "
        "data: it is another teacher than the one that you evaluated, and often a worse one.",
        "Call teacher.eval() before training, and see that no train() of a module around it undoes that.",
        story=f"{GITHUB}vrvlive/knowlege-distillation/issues/2",
    )


def _answers_differ(setup: Setup) -> bool:
    """Whether the teacher would answer otherwise in eval mode (dropout by a function, say)."""
    before = setup.observed[0].logits.get("teacher")
    if before is None or setup.teacher is None:
        return False
    with preserved([setup.teacher], (), outer=setup.copies):
        setup.teacher.eval()
        after = setup.observe(setup.batches[0]).logits.get("teacher")
    return after is None or not torch.allclose(before.detach(), after.detach(), rtol=1e-4, atol=1e-5)


def changes(setup: Setup) -> Finding | None:
    """Do the teacher's weights or statistics change in a step?"""
    teacher, taken = network(setup), step_taken(setup)
    shared = shared_tensors(setup.student, teacher) if setup.student is not None and not setup.within_student() else []
    if not taken.teacher_changed and not shared:
        return None
    if shared:
        measured = f"Teacher and student share {len(shared)} tensor(s): {few(shared)}."
    else:
        measured = (
            f"One step changed {len(taken.teacher_changed)} of the teacher's tensors: {few(taken.teacher_changed)}."
        )
    return Finding(
        "teacher-changes",
        FAULT,
        measured,
        "What the student is told then drifts towards what the student says: the loss falls, and the reason is not "
        "that the student has learned.",
        "Give the optimiser the student's parameters only, keep the teacher in eval mode, and copy shared layers.",
        story=f"{GITHUB}huangzongmou/yolov8_Distillation/issues/16",
    )


def gets_gradient(setup: Setup) -> Finding | None:
    """Does gradient reach the teacher, or does the optimiser hold its parameters?"""
    teacher, taken = network(setup), step_taken(setup)
    own = {id(p): name for name, p in teacher.named_parameters()}
    student = {id(p) for p in setup.student.parameters()} if setup.student is not None else set()
    reached = [own[i] for i in taken.leaves if i in own and i not in student]
    held = [own[i] for i in taken.held if i in own and i not in student]
    if not reached and not held:
        return None
    parts = [f"{len(reached)} parameter(s) of the teacher get a gradient"] if reached else []
    parts += [f"{len(held)} of them are in the optimiser"] if held else []
    return Finding(
        "teacher-gradient",
        FAULT if held else DOUBT,
        f"{' and '.join(parts)} ({few(held or reached)}).",
        "A teacher that learns comes to meet the student halfway, and weight decay alone moves one that the optimiser "
        "holds. Without the optimiser the gradient costs memory and time only.",
        "Call the teacher under torch.no_grad(), and build the optimiser from student.parameters().",
        story=f"{GITHUB}garlic-byte/yolov8_distillation/issues/1",
    )


def fresh(setup: Setup) -> Finding | None:
    """Does the teacher look as it was built, never trained or loaded?"""
    evidence = _signs_of_a_fresh_build(network(setup))
    if not evidence:
        return None
    severity, accuracy = FAULT, ""
    try:
        right = samples(setup, "teacher")
        accuracy = f" It is right about {right.accuracy:.1%} of {len(right.labels)} samples."
        if right.above_chance and right.accuracy > 0.5:
            return None
    except Mixed:
        severity, accuracy = DOUBT, " Its accuracy is not known, because the step mixes samples."
    except Skip:
        pass
    return Finding(
        "teacher-fresh",
        severity,
        f"{evidence}.{accuracy}",
        "A network that was never trained teaches its random opinions. The student's own loss on the labels hides it.",
        "Load the teacher's weights, with strict=True, and measure its accuracy before you distil.",
        story=f"{GITHUB}zgcr/SimpleAICV_pytorch_training_examples/issues/23",
    )


def _signs_of_a_fresh_build(teacher: nn.Module) -> str:
    norms = [m for m in teacher.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if norms and all(_untouched(m.running_mean, 0) and _untouched(m.running_var, 1) for m in norms):
        return f"The running statistics of all {len(norms)} batch norms are those of a new one: mean 0, variance 1"
    kinds = (_NormBase, nn.LayerNorm, nn.GroupNorm)
    scaled = [m for m in teacher.modules() if isinstance(m, kinds) and m.weight is not None]
    if scaled and all(_untouched(m.weight, 1) and _untouched(m.bias, 0) for m in scaled):
        return f"The scales and shifts of all {len(scaled)} normalisations are exactly 1 and 0"
    if any(True for _ in teacher.parameters()) and all(not p.any() for p in teacher.parameters()):
        return "All its weights are 0"
    layers = [m for m in teacher.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv1d)]
    if not scaled and layers and all(map(_drawn_uniformly, layers)):
        return "The weights of all its layers are spread evenly between the bounds of torch's initialisation"
    return ""


def _untouched(tensor: Tensor | None, value: float) -> bool:
    return tensor is None or bool((tensor == value).all())


def _drawn_uniformly(layer: nn.Module) -> bool:
    """Whether weights are as nn.Linear and nn.Conv2d draw them: uniform within 1 / sqrt(inputs)."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    bound = 1 / math.sqrt(weight[0].numel())
    scaled = weight.detach().cpu().double().abs().flatten().sort().values / bound
    if scaled[-1] > 1 + 1e-6:
        return False
    # Kolmogorov and Smirnov's distance to the uniform distribution: below 2.2 / sqrt(n) for 9,999 in 10,000 draws.
    steps = torch.arange(1, len(scaled) + 1, dtype=torch.float64) / len(scaled)
    return float((scaled - steps).abs().max()) < 2.2 / math.sqrt(len(scaled))


def worse_than_student(setup: Setup) -> Finding | None:
    """Is the student better than its teacher?"""
    student, teacher = samples(setup, "student"), samples(setup, "teacher")
    if len(student.labels) != len(teacher.labels):
        raise Skip("student and teacher answer to different numbers of samples")
    chance = better(student.right, teacher.right)
    if chance >= 1e-3 or not student.above_chance:
        return None
    return Finding(
        "teacher-worse",
        FAULT,
        f"On {len(student.labels)} samples the student is right about {student.accuracy:.1%} and the teacher about "
        f"{teacher.accuracy:.1%}.",
        "A teacher that knows less holds the student back: they may be swapped, or the teacher was not loaded.",
        "Look at the order of the arguments, and evaluate both networks before you distil.",
        1 - chance,
        f"{GITHUB}keras-team/keras-io/issues/257",
    )


def accuracy(setup: Setup) -> Finding | None:
    """Are the teacher's answers better than chance?"""
    found = samples(setup, "teacher")
    if not found.at_chance:
        return None
    if found.unshuffled:
        raise Skip("nearly all labels name one class of many: give batches from a shuffled loader")
    return Finding(
        "teacher-accuracy",
        FAULT,
        f"The teacher is right about {found.accuracy:.1%} of {len(found.labels)} samples; answers that have nothing to "
        f"do with them would be about {found.chance:.1%}.",
        "Soft labels of other pictures, or of a network that knows nothing, still give a loss that falls.",
        "Evaluate the teacher on these batches by itself: was it loaded, is this its normalisation, are its stored "
        "answers in the order of the samples?",
        1 - RARE,
        f"{GITHUB}haitongli/knowledge-distillation-pytorch/issues/9",
    )


def class_order(setup: Setup) -> Finding | None:
    """Would the teacher, or a student that knows something, be right oftener if its classes were renamed?"""
    found = samples(setup, "teacher")
    if (classes := found.logits.shape[1]) > MOST_CLASSES:
        raise Skip(
            f"there are {classes:,} classes: whether they are renamed is searched among {MOST_CLASSES:,} at most"
        )
    finding = _class_order("teacher", found)
    if finding is None:
        with suppress(Skip):
            finding = _class_order("student", samples(setup, "student"))
    return finding


MOST_CLASSES = 4_000  # a table of all pairs of them has 64 MB, and the search in it takes seconds
# How far from chance to perfect the answers are once renamed. A student after a few steps confuses some classes so
# thoroughly that renaming them gains a little; a teacher has to be one (see `samples.LEAST`).
RENAMED = {"teacher": 0.25, "student": 0.5}


def _class_order(role: str, found: Samples) -> Finding | None:
    answers = torch.zeros_like(found.labels)
    half = torch.arange(len(found.labels)) % 2 == 0
    changed: set[tuple[int, int]] = set()
    for fitted, judged in ((half, ~half), (~half, half)):  # what was fitted to a sample does not judge it
        order = _best_order(found.logits[fitted], found.labels[fitted])
        answers[judged] = order[found.logits[judged].argmax(1)]
        moved = {(i, int(j)) for i, j in enumerate(order) if i != j}
        changed = moved if fitted is half else changed & moved
    renamed = answers == found.labels
    chance, after = better(renamed, found.right), float(renamed.double().mean())
    # A network that says one class for everything is right more often where that is renamed to the commonest.
    by_chance = chance_of(answers, found.labels)
    enough = by_chance + RENAMED[role] * (1 - by_chance)
    if chance >= RARE or not changed or after < enough:
        return None
    shown = ", ".join(f"{a} -> {b}" for a, b in sorted(changed)[:4])
    return Finding(
        "class-order",
        FAULT,
        f"The {role} is right about {found.accuracy:.1%} of {len(found.labels)} samples, and about "
        f"{after:.1%} if its classes are renamed ({shown}{', ...' if len(changed) > 4 else ''}; "
        "found on one half of the samples, counted on the other).",
        "The teacher's class 3 is not your class 3: hard and soft labels pull in different directions, and the "
        "average of the two looks like slow learning.",
        "Compare the lists of classes (the order of folders, class_to_idx, id2label), and permute the teacher's "
        "logits.",
        1 - chance,
        f"{GITHUB}neuralmagic/sparseml/pull/1399",
    )


def _best_order(logits: Tensor, labels: Tensor) -> Tensor:
    """For each class of the answers the label that it stands for, so that most are right; itself where nothing says."""
    from scipy.optimize import linear_sum_assignment

    classes = logits.shape[1]
    counts = torch.zeros(classes, classes)
    counts.index_put_((logits.argmax(1), labels), torch.ones(len(labels)), accumulate=True)
    counts += 0.5 * torch.eye(classes)
    return torch.as_tensor(linear_sum_assignment(counts.numpy(), maximize=True)[1])


def probabilities(setup: Setup) -> list[Finding]:
    """Do the networks give probabilities where the loss takes logits?"""
    findings = []
    for role in ("student", "teacher"):
        logits = setup.observed[0].logits.get(role)
        if logits is None or logits.ndim < 2:
            continue
        logits = logits.detach().float()
        classes = [dim for dim in {1, logits.ndim - 1} if logits.shape[dim] > 1]  # of tokens they are last
        summed = [dim for dim in classes if sum_to_one(logits, dim)]
        if not summed or not bool((logits >= 0).all()):
            continue
        softened = _softened(setup, role, summed[0])
        if softened or softened is None:
            findings.append(
                Finding(
                    "probabilities",
                    FAULT if softened else DOUBT,
                    f"All outputs of the {role} lie in [0, 1] and those of a sample sum to 1, and "
                    + (
                        "the loss takes their softmax."
                        if softened
                        else "whether the loss takes their softmax is not known."
                    ),
                    "Probabilities of a softmax lie between 1/e and e of each other after a second one: nearly flat "
                    "at every temperature. The loss falls to a small number at once and teaches almost nothing.",
                    f"Take the {role}'s output before its last softmax."
                    + ("" if softened else " Leave it if the loss takes the logarithm of these."),
                )
            )
    if not any(setup.observed[0].logits.get(role) is not None for role in ("student", "teacher")):
        raise Skip("no logits are seen")
    return findings


def _softened(setup: Setup, role: str, dim: int) -> bool | None:
    """Whether the loss does not change when a number is added to all logits of a row, as under a softmax.

    None where the step cannot be computed with other logits than its own.
    """
    seen = setup.observed[0].logits
    if len(seen) < 2:  # of one network alone nothing is measured, and a loss that takes a softmax is the usual one
        return True
    generator = torch.Generator().manual_seed(1)
    made = {one: 2 * torch.randn(logits.shape, generator=generator) for one, logits in seen.items()}
    offsets = torch.randn(made[role].sum(dim, keepdim=True).shape, generator=generator)
    try:
        before = gradient(setup, setup.batches[0], **made)
        after = gradient(setup, setup.batches[0], **made | {role: made[role] + offsets})
    except Exception:  # whatever a step raises whose calls have different numbers of rows
        return None
    return bool((before - after).norm() <= 1e-3 * before.norm())
