"""Checks of the loss on logits, as a black box that is given probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from kdlib.described import parameters_of
from kdlib.doctor.known_losses import EXACT, KNOWN, NO_TEMPERATURE, Identified, fit
from kdlib.doctor.probe import (
    IGNORED,
    device_of,
    gradient,
    identified,
    losses_of_probe,
    over_the_batch,
    probes,
    random_logits,
    reacts,
    scaling,
)
from kdlib.doctor.report import DOUBT, FAULT, GITHUB, Finding, Skip
from kdlib.doctor.setup import DistillerSetup, LossSetup, Setup, alpha_of, called_function, total, weighted_parts
from kdlib.doctor.step import gradient_norm
from kdlib.tasks import Classification, TokenClassification

TORCH_IGNORES = -100  # the label that torch's cross-entropy leaves out
NEAR = 2e-3  # relative: a weight is a known factor if it is as near as this; rounding leaves 1e-5


def near(a: float, b: float) -> bool:
    """Whether two weights are equal but for rounding."""
    return math.isclose(a, b, rel_tol=NEAR, abs_tol=1e-9)


def ignored(setup: Setup) -> Finding | None:
    """Does the student's gradient depend on what the teacher says?"""
    made = probes(setup)
    if not _finite(*(one.gradient for one in made)):
        raise Skip("the gradient is not finite")
    if reacts(made) >= IGNORED or _weight_of_soft_is_zero(setup):
        return None
    if _learns_from_layers(setup):
        raise Skip("the loss compares layers, not logits")
    if _reads_more_than_logits(setup):
        raise Skip("the loss reads more of the student's output than its logits")
    return Finding(
        "loss-ignores-teacher",
        FAULT,
        "The gradient with respect to the student's logits changes by less than a hundred-thousandth of itself when "
        "the teacher's logits are exchanged.",
        "Distillation is off: the student learns from its labels alone, or from nothing, and the loss may fall all "
        "the same.",
        "See that the soft loss is called with the student's logits and the teacher's, in this order and not detached.",
        story=f"{GITHUB}labmlai/annotated_deep_learning_paper_implementations/issues/66",
    )


def _weight_of_soft_is_zero(setup: Setup) -> bool:
    """Whether it is meant: kdlib's own methods without a teacher, or with alpha 1."""
    method = setup.extra
    return setup.alpha == 1 or (
        method is not None
        and all(
            weight == 0 or not getattr(part, "needs_teacher_logits", True) or alpha_of(part) == 1
            for weight, part in weighted_parts(method)
        )
    )


def _learns_from_layers(setup: Setup) -> bool:
    return any(layer.role == "teacher" for layer in setup.observed[0].layer_outputs)


def _reads_more_than_logits(setup: Setup) -> bool:
    """Whether the student learns where its logits are replaced: by features that its output holds as well."""
    learning = [p for p in setup.student.parameters() if p.requires_grad] if setup.student is not None else []
    batch, number, classes = setup.responds()
    place = device_of(setup)
    student, teacher = (random_logits(number, classes, seed).to(place) for seed in (1, 2))
    return gradient_norm(total(losses_of_probe(setup, batch, student=student, teacher=teacher)), learning) != 0


def rows(setup: Setup) -> Finding | None:
    """Does each sample of the student learn from the teacher's answer for the same sample?"""
    batch, number, classes = setup.responds()
    if number < 3:
        raise Skip("the batch has fewer than three samples")
    student, teacher = random_logits(number, classes, 1), random_logits(number, classes, 2)
    base = gradient(setup, batch, student, teacher)
    coupling = torch.zeros(number, number)  # of the student's row i with the teacher's row j
    for j in range(number):
        changed = teacher.clone()
        changed[j] = random_logits(1, classes, 100 + j)[0]
        coupling[:, j] = (gradient(setup, batch, student, changed) - base).norm(dim=1)
    if not _finite(base, coupling) or float(coupling.max()) <= IGNORED * float(base.norm()):
        raise Skip("the loss does not react to single answers of the teacher")
    reacts_at_all = coupling.sum(1) > 1e-6 * float(coupling.sum(1).max())  # a clamp may hold some rows fast
    coupling = coupling[reacts_at_all]
    places = torch.arange(number)[reacts_at_all]
    share = coupling[torch.arange(len(places)), places] / coupling.sum(1)
    # Of kd it is 1; of dist, whose columns relate all samples of the batch, at least 0.49 was measured with 8 rows, and
    # of relations between samples 0.35. One answer for all leaves 1/8 on average.
    if float(share.median()) > 0.2:
        return None
    strongest = coupling.argmax(1)
    shift = (strongest - places) % number
    concentrated = bool((coupling.amax(1) > 0.99 * coupling.sum(1)).all())
    if concentrated and len(set(shift.tolist())) == 1:
        seen = f"Every sample learns from the answer for the sample {int(shift[0])} place(s) further on"
    elif concentrated and len(set(strongest.tolist())) == 1:
        seen = f"All samples learn from the answer for sample {int(strongest[0])} alone"
    elif concentrated:
        seen = "Samples learn from the answers for other samples"
    else:
        seen = f"A sample's own answer makes up {float(share.median()):.0%} of what it learns from the batch's answers"
    return Finding(
        "loss-rows",
        FAULT,
        f"{seen} (probes of {number} samples, one answer exchanged at a time).",
        "Soft labels are broadcast, or shifted, over the batch: shapes such as B x C against 1 x C or B x 1 x C fit "
        "each other without an error.",
        "Compare the shapes of both arguments of the loss; they have to be equal, sample by sample.",
        story=f"{GITHUB}haitongli/knowledge-distillation-pytorch/pull/16",
    )


def direction(setup: Setup) -> Finding | None:
    """Is the KL divergence that from the teacher to the student?"""
    found = identified(setup)
    if found.name != "reversed":
        return None
    return Finding(
        "loss-direction",
        FAULT if setup.meant == "kd" else DOUBT,
        f"On asymmetric probes the gradient is that of KL(student || teacher) at T = {found.temperature:.3g}, not of "
        "KL(teacher || student).",
        "The reversed divergence makes the student choose one of the teacher's classes in place of covering all of "
        "them; the dark knowledge is left out.",
        "F.kl_div takes the student's log-probabilities first: F.kl_div(log_p_student, p_teacher). Leave it if a "
        "reversed KL is meant, as in MiniLLM.",
        story=f"{GITHUB}huggingface/trl/issues/3043",
    )


_FORMS = {
    "student probabilities": (
        "loss-probabilities",
        "the student's probabilities stand where F.kl_div takes log-probabilities",
        "Pass F.log_softmax(student / T, dim=1).",
        f"{GITHUB}microsoft/ProDA/issues/20",
    ),
    "student unnormalised": (
        "loss-probabilities",
        "the student's logits stand where F.kl_div takes log-probabilities, without a softmax: nothing holds them back",
        "Pass F.log_softmax(student / T, dim=1).",
        None,
    ),
    "teacher log-probabilities": (
        "loss-probabilities",
        "the teacher's log-probabilities stand where F.kl_div takes probabilities",
        "Pass F.softmax(teacher / T, dim=1), or log_target=True.",
        f"{GITHUB}jongwooko/Pytorch-MiniLM/issues/2",
    ),
    "teacher logits": (
        "loss-probabilities",
        "the teacher's logits stand where probabilities belong",
        "Pass F.softmax(teacher / T, dim=1).",
        None,
    ),
    "student not softened": ("loss-one-sided-temperature", "only the teacher's logits are divided by T", "", None),
    "teacher not softened": ("loss-one-sided-temperature", "only the student's logits are divided by T", "", None),
}


def probabilities(setup: Setup) -> Finding | None:
    """Does the loss get logits, log-probabilities and probabilities where they belong?"""
    try:
        found = identified(setup)
    except Skip:
        if (over := over_the_batch(setup)) is None:
            raise
        return Finding(
            "loss-probabilities",
            FAULT,
            f"The gradient on probes is that of a KL divergence whose softmax runs over the batch, and not over the "
            f"classes (T = {over.temperature:.3g}).",
            "It compares, class by class, which sample of a batch has most of it: a class that the student prefers for "
            "all samples costs nothing, and the same sample has another target in another batch.",
            "Take the softmax over the classes: F.log_softmax(student / T, dim=1), F.softmax(teacher / T, dim=1).",
        )
    form = _FORMS.get(found.name)
    if form is None or form[0] != "loss-probabilities":
        return None
    return Finding(
        "loss-probabilities",
        FAULT,
        f"The gradient on probes is that of a loss in which {form[1]} (T = {found.temperature:.3g}).",
        "It is no divergence: it is not 0 where student and teacher agree, may be negative, and pulls the student "
        "away from the teacher's probabilities.",
        form[2],
        story=form[3],
    )


def one_sided(setup: Setup) -> Finding | None:
    """Are both networks' logits divided by T?"""
    found = identified(setup)
    form = _FORMS.get(found.name)
    if form is None or form[0] != "loss-one-sided-temperature" or near(found.temperature, 1):
        return None
    return Finding(
        "loss-one-sided-temperature",
        FAULT,
        f"The gradient on probes is that of a KL divergence in which {form[1]} (T = {found.temperature:.3g}).",
        "The student's own probabilities then have to be as flat as the softened ones, and at test time they are.",
        "Divide the logits of both networks by the same T.",
    )


def softmax_twice(setup: Setup) -> Finding | None:
    """Does the loss take the softmax of a softmax?"""
    found = identified(setup)
    if "twice" not in found.name:
        return None
    who = "student and teacher" if "both" in found.name else found.name.split()[0]
    return Finding(
        "loss-softmax-twice",
        FAULT,
        f"The gradient on probes is that of a KL divergence of the softmax of a softmax ({who}).",
        "Probabilities lie within 1 of each other, so a second softmax makes all classes nearly equal: the loss is "
        "small at once and teaches almost nothing.",
        "Give the loss logits, the numbers before any softmax.",
    )


def reduction(setup: Setup) -> list[Finding]:
    """Is the loss a sum over classes and a mean over the batch?"""
    if "reduction" not in setup.memory:
        setup.memory["reduction"] = _reduction(setup)
    found: list[Finding] = setup.memory["reduction"]
    return found


def _reduction(setup: Setup) -> list[Finding]:
    base, findings = identified(setup), []
    _, number, classes = setup.responds()
    by_rows = by_classes = None
    if number >= 4:
        by_rows = scaling(setup, rows=number // 2)
    try:
        by_classes = scaling(setup, classes=2 * classes)
    except Skip:  # the loss knows its number of classes
        by_classes = None
    if base.name not in ("kd", "reversed", "js"):
        by_classes = None  # a mean over classes is usual for squared errors
    wanted = _expected(setup, base)
    if by_rows is not None and near(by_rows, (number // 2) / number):
        findings.append(_sum(setup, wanted))
    told = by_classes is not None and near(by_classes, 0.5)
    guessed = by_classes is None and base.name == "kd" and near(base.weight * classes, wanted)
    guessed = guessed and not _scaled_as_a_whole(setup, base, base.weight)
    if told or guessed:
        findings.append(
            Finding(
                "loss-reduction",
                FAULT,
                f"With twice the classes the soft loss is half as large: it is divided by the number of classes "
                f"({classes} times too small here)."
                if told
                else f"The soft loss is {base.weight:.4g} times the KL divergence, and {classes} classes times that is "
                f"{base.weight * classes:.4g}: it is divided by the number of classes.",
                "The labels then rule, and the temperature and alpha of a paper mean nothing here: what looks like "
                "distillation is nearly plain training.",
                'Use reduction="batchmean", or .sum(dim=1).mean(): "mean" divides by batch and classes.',
                1.0 if told else 0.99,
                f"{GITHUB}HikariTJU/LD/issues/74",
            )
        )
        if not told and _may_be_chosen(setup, base):
            findings[-1] = _in_doubt(setup, findings[-1])
    return findings


def _sum(setup: Setup, wanted: float) -> Finding:
    """What is said of a sum over the batch: it may be divided by the number of its samples, written as a number."""
    number, whole = len(setup.observed[0].logits["student"]), _weight_of_whole_batches(setup)
    if near(whole, wanted):
        return Finding(
            "loss-reduction",
            DOUBT,
            "With half the samples the gradient of a sample stays the same: the sum over the batch is divided by a "
            f"fixed number, {number}, as many as the first batch has.",
            "Of batches of this size it is the mean. In a smaller one, as the last of an epoch may be, the soft loss "
            "counts less.",
            'Use F.kl_div(..., reduction="batchmean"). Leave it if all batches have this size (drop_last=True).',
        )
    times = whole / wanted if wanted else number
    return Finding(
        "loss-reduction",
        FAULT,
        f"With half the samples the gradient of a sample stays the same: the loss is a sum over the batch, {times:.4g} "
        "times that of a mean.",
        "Beside a hard loss that is a mean, the soft one rules; and the step grows with the batch.",
        'Use F.kl_div(..., reduction="batchmean").',
    )


def _weight_of_whole_batches(setup: Setup) -> float:
    """The weight of the soft loss for as many samples as the first batch has, by which a sum is told from a mean."""
    base, whole = identified(setup), len(setup.observed[0].logits["student"])
    try:
        return base.weight * scaling(setup, rows=whole)
    except Skip:  # it cannot be computed for so many: a sum, as it grows from half of a few to these
        return base.weight / setup.responds()[1] * whole


def _expected(setup: Setup, base: Identified) -> float:
    """The weight that the soft loss should have: 1 - alpha, by what was said or by the hard loss beside it, or 1."""
    if setup.alpha is not None:
        return 1 - setup.alpha
    hard = base.hard
    return 1 - hard if hard is not None and 0 < hard < 1 and not near(hard, 1) else 1.0


def _scaled_as_a_whole(setup: Setup, base: Identified, weight: float) -> bool:
    """Whether hard and soft loss have the ratio that alpha says: together they may be divided, to accumulate."""
    alpha, hard = setup.alpha, base.hard
    return alpha is not None and hard is not None and alpha * hard > 0 and near(weight * alpha, hard * (1 - alpha))


def _may_be_chosen(setup: Setup, base: Identified, usual: bool = True) -> bool:
    """Whether the weight of the soft loss may be meant. usual: whether it is that of the most usual mistake.

    It may where no alpha was said and the hard loss's own weight tells none, and where a third term may have a share.
    """
    hard, alpha = base.hard, setup.alpha
    if alpha is None:
        return hard is None or not NEAR < hard < 1 - NEAR or _reads_more_than_logits(setup)
    if hard is not None and alpha > NEAR:
        within_network = abs(hard) <= NEAR  # the hard loss: it is what the student learns from beside its logits
        if within_network or (usual and near(hard, alpha)):
            return False
    return _reads_more_than_logits(setup)


def _in_doubt(setup: Setup, finding: Finding) -> Finding:
    """A finding that rests on a weight alone, which may have been chosen."""
    leave = "Leave it if this weight was chosen" + (
        "." if setup.alpha is not None else ", or say alpha: examine(..., alpha=...)."
    )
    return replace(finding, severity=DOUBT, change=f"{finding.change} {leave}")


def _has_another_temperature(setup: Setup, base: Identified, said: float) -> bool:
    """Whether the gradient is not that at the temperature that was said; near it, or high, two may be the same."""
    if base.name not in ("kd", "reversed", "js") or math.isclose(base.temperature, said, rel_tol=0.01):
        return False
    return fit(base.name, said, probes(setup)).residual > EXACT


def temperature_squared(setup: Setup) -> Finding | None:
    """Has the soft loss the temperature that was said, and T^2, so that its gradient is as large at every one?"""
    base = identified(setup)
    said = setup.temperature
    if said is not None and _has_another_temperature(setup, base, said):
        return Finding(
            "loss-temperature",
            FAULT,
            f"You say temperature = {said:g}; on probes the gradient is that of a loss at T = {base.temperature:.3g}.",
            "The logits of both networks are divided by another number than you mean, or by none: what a paper says "
            "of its temperature does not hold here.",
            "Divide the logits of both networks by T, or say the temperature that the loss has.",
        )
    if base.name in NO_TEMPERATURE or base.name not in KNOWN or near(base.temperature, 1):
        raise Skip("the loss has no temperature, or T is 1")
    power = _power_of_temperature(setup, base)
    if power is None:
        power = _power_by_weight(setup, base)
        sure = 0.99
    else:
        sure = 1.0
    if power is None or abs(power) < 0.05:
        return None
    T, by_weight = base.temperature, sure < 1
    named = {-2: "T^2 is left out", -1: "it is multiplied by T in place of T^2", 2: "T^2 is there twice"}
    finding = Finding(
        "loss-temperature",
        FAULT,
        f"At T = {T:.3g} the gradient of the soft loss is {T**power:.3g} times that of the usual one: "
        f"{named.get(round(power), f'it has a factor T^{power:.2f} too much')}.",
        "The gradient of a softened KL divergence falls with 1/T^2. Without the factor a higher temperature is a "
        "smaller weight, alpha means something else at every T, and at T = 4 the soft labels count a sixteenth.",
        "Multiply the soft loss by T ** 2, on every path and at every alpha.",
        sure,
        f"{GITHUB}IntelLabs/distiller/issues/122",
    )
    chosen = by_weight and _may_be_chosen(setup, base, usual=power == -2)
    return _in_doubt(setup, finding) if chosen else finding


def _power_of_temperature(setup: Setup, base: Identified) -> float | None:
    """How the weight grows with T, beside T^2, where the loss has an argument for it; None where it has none."""
    if not isinstance(setup, LossSetup):
        return None
    name = temperature_argument(setup.loss)
    if name is None:
        return None
    weights = []
    for T in (base.temperature, 2 * base.temperature):
        made = probes(setup.with_temperature(name, T))
        found = fit(base.name, T, made)
        if found.residual > EXACT:
            return None
        weights.append(found.weight)
    return math.log2(abs(weights[1] / weights[0])) if weights[0] else None


def temperature_argument(loss: Callable[..., object]) -> str | None:
    """The name of the argument of a loss that is its temperature."""
    try:
        names = [one.name for one in parameters_of(called_function(loss))]
    except (TypeError, ValueError):
        return None
    # The first two are the logits, whatever they are called.
    return next((name for name in names[2:] if name == "T" or name.lower() in ("temperature", "temp", "tau")), None)


def _power_by_weight(setup: Setup, base: Identified) -> float | None:
    """By the weight alone: is it, but for a power of T, what it should be beside the hard loss?"""
    if base.name not in ("kd", "reversed", "js"):
        return None
    T, weight = base.temperature, _without_sizes(setup, base)
    if _scaled_as_a_whole(setup, base, weight):
        return 0.0
    wanted = _expected(setup, base)
    if near(weight, wanted):
        return 0.0
    return next((float(power) for power in (-2, -1, 2) if near(weight, wanted * T**power)), None)


def _without_sizes(setup: Setup, base: Identified) -> float:
    """The weight of the soft loss without the factors that `reduction` names."""
    weight = base.weight
    for finding in reduction(setup):
        _, number, classes = setup.responds()
        if "fixed number" in finding.measured:
            weight = _weight_of_whole_batches(setup)
        else:
            weight = weight / number if "sum over the batch" in finding.measured else weight * classes
    return weight


def alpha(setup: Setup) -> Finding | None:
    """Have alpha and 1 - alpha their roles?"""
    if setup.alpha is None:
        raise Skip("alpha, the weight of the hard loss, was not said: examine(..., alpha=...)")
    base = identified(setup)
    if base.hard is None:
        raise Skip("beside the soft loss stands another than the cross-entropy with the labels")
    a = setup.alpha
    if near(a, 0.5) or base.name not in ("kd", "reversed", "js"):
        return None
    if near(base.hard, a) or not near(base.hard, 1 - a):
        return None
    return Finding(
        "alpha-roles",
        FAULT,
        f"You say alpha = {a:g}, the weight of the labels; measured are {base.hard:.4g} for the cross-entropy with the "
        f"labels and {base.weight:.4g} for the soft loss.",
        "Half of the published code gives this letter to the soft loss. With the roles swapped, a setting of 0.1 "
        "trains nine tenths on the labels.",
        "Write alpha * hard + (1 - alpha) * soft, or say alpha = the other number.",
    )


def at_rest(setup: Setup) -> Finding | None:
    """Is a pure loss on logits at its least where the student says what the teacher says?"""
    if not isinstance(setup, LossSetup) or setup.takes_labels or len(setup.observed[0].terms) > 1:
        raise Skip("the loss has other parts than one on both networks' logits")
    batch, number, classes = setup.responds()
    logits, other = random_logits(number, classes, 1), random_logits(number, classes, 2)
    there, away = gradient(setup, batch, logits, logits), gradient(setup, batch, logits, other)
    if not _finite(there):
        return Finding(
            "loss-at-rest",
            FAULT,
            "Where student and teacher agree, the gradient is not finite.",
            "A student that has learned a sample well would destroy its weights on it.",
            "Square a norm, or add a small number under the root.",
        )
    share = float(there.norm() / away.norm().clamp(min=1e-30))
    if share < 1e-3:
        return None
    same_class = gradient(setup, batch, logits, _of_the_same_class(other))
    if float((same_class - away).norm()) <= IGNORED * float(away.norm()):
        raise Skip("the loss reads the teacher's class alone, so no answer of a student is at rest")
    values = [_value(setup, batch, logits, one) for one in (logits, other)]
    negative = f", and it is {min(values):.3g} there or nearby" if min(values) < 0 else ""
    return Finding(
        "loss-at-rest",
        FAULT,
        f"Where student and teacher agree, the gradient is still {share:.2g} times as large as elsewhere{negative}.",
        "A divergence is 0, with gradient 0, where both say the same, and never below. This loss pulls a perfect "
        "student away from its teacher.",
        "Give F.kl_div log-probabilities of the student and probabilities of the teacher (or log_target=True).",
        story=f"{GITHUB}jongwooko/Pytorch-MiniLM/issues/2",
    )


def _of_the_same_class(logits: Tensor) -> Tensor:
    """Other logits with the largest one of each row in the same place."""
    others = random_logits(len(logits), logits.shape[1], 4)
    rows, wanted, largest = torch.arange(len(others)), logits.argmax(1), others.argmax(1)
    swapped = others.clone()
    swapped[rows, wanted], swapped[rows, largest] = others[rows, largest], others[rows, wanted]
    return swapped


def _value(setup: Setup, batch: object, student: Tensor, teacher: Tensor) -> float:
    place = device_of(setup)
    return float(total(losses_of_probe(setup, batch, student=student.to(place), teacher=teacher.to(place))))


def extremes(setup: Setup) -> Finding | None:
    """Are loss and gradient finite for logits of +-200 and +-10,000, as a confidently wrong student gives?"""
    if isinstance(setup, DistillerSetup) and not setup.distiller.task.has_classes:
        raise Skip("the task has no classes, so how large its numbers may be is not known")
    batch, number, classes = setup.responds()
    usual = random_logits(number, classes, 1)
    if not _finite(gradient(setup, batch, usual, random_logits(number, classes, 2))):
        bad, scale = "the gradient", 1.0
    else:
        for scale in (200.0, 1e4):
            signs = torch.where(random_logits(number, classes, 3) > 0, scale, -scale)
            others = signs.roll(1, dims=1)
            value, slope = _value(setup, batch, signs, others), gradient(setup, batch, signs, others)
            if not math.isfinite(value) or not _finite(slope):
                bad = "the loss" if not math.isfinite(value) else "the gradient of a finite loss"
                break
        else:
            return None
    size = "of ordinary size" if scale == 1 else f"of +-{scale:,.0f}"
    return Finding(
        "loss-extremes",
        FAULT,
        f"For logits {size} {bad} is not finite.",
        "One confidently wrong sample, or a few steps at a high learning rate, and every weight is NaN.",
        "Compute log_softmax, never log(softmax), and let F.kl_div take log_target=True.",
        story=f"{GITHUB}yzd-v/cls_KD/issues/13",
    )


def half_precision(setup: Setup) -> Finding | None:
    """Is the loss finite in 16 bits, as it gets its logits under autocast?"""
    if not isinstance(setup, LossSetup):
        raise Skip("a loss is tried in 16 bits only where it is given as a function")
    batch, number, classes = setup.responds()
    # Logits of +-30 are usual for a trained network, and make probabilities that are 0 in 16 bits.
    student, teacher = (random_logits(number, classes, seed, scale=12.0).half() for seed in (1, 2))
    if not _finite(gradient(setup, batch, student.float(), teacher.float())):
        raise Skip("it is not finite in 32 bits either")
    try:
        found = gradient(setup, batch, student, teacher)
        equal = gradient(setup, batch, student, student)
    except Exception as error:  # torch has no half-precision form of some functions on a CPU
        raise Skip(f"it cannot be computed in 16 bits here ({type(error).__name__})") from None
    if _finite(found) and (_finite(equal) or not _finite(gradient(setup, batch, student.float(), student.float()))):
        return None
    return Finding(
        "loss-half-precision",
        DOUBT,
        "With logits in float16 the gradient is not finite; in float32 it is.",
        "An epsilon of 1e-8 is 0 in float16, and squares beyond 65,504 are infinite: under autocast the run ends in "
        "NaN.",
        "Call .float() on both networks' logits at the beginning of the loss.",
        story=f"{GITHUB}lightonai/pylate/issues/239",
    )


def padding(setup: Setup) -> Finding | None:
    """Do positions that the attention mask, or where there is none the label, leaves out stay out of the soft loss?"""
    labels, student = setup.observed[0].labels, setup.observed[0].logits.get("student")
    if student is not None and "teacher" in setup.observed[0].logits and _task_leaves_out(setup, len(student)):
        return None
    if labels is None or student is None or labels.is_floating_point() or "teacher" not in setup.observed[0].logits:
        raise Skip("there are no labels that could say which positions count")
    mask = _attention_mask(setup, labels)
    # The labels of masked-language modelling leave out tokens too, and of those the soft loss may read all.
    apart = labels < 0 if mask is None else mask == 0
    if not bool(apart.any()) or bool(apart.all()):
        raise Skip(
            "in the first batch no label, and no attention mask of theirs, tells positions that count from others"
        )
    if student.shape[: labels.ndim] != labels.shape:
        raise Skip("logits and labels have different positions")
    classes = student.shape[-1]
    generator = torch.Generator().manual_seed(1)
    logits = [torch.randn(*student.shape[:-1], classes, generator=generator) for _ in range(2)]
    found = gradient(setup, setup.batches[0], *logits)
    found, apart = found.abs(), apart.cpu()
    if found.ndim > labels.ndim:  # else there is one logit for each label
        found = found.flatten(labels.ndim).amax(-1)
    # Of a language model position i answers to label i + 1, and the last to none: it may shift inside of the loss.
    before_next = torch.cat([apart[:, 1:], torch.ones_like(apart[:, :1])], 1) if labels.ndim == 2 else apart
    there, counted = float(found[apart].max()), float(found[~apart].max())
    if any(float(found[one].max()) <= 1e-6 * float(found[~one].max()) for one in (apart, before_next) if not one.all()):
        return None
    # A sample or token without a label may be meant to learn from the teacher: of samples padding has torch's number,
    # and of tokens it stands at the end. Labels with one logit each may be several of a sample, of which some are not
    # known.
    if mask is not None:
        padding = True
    elif 1 < labels.ndim < student.ndim:
        padding = not bool((apart[..., :-1] & ~apart[..., 1:]).any())
    else:
        one_each = isinstance(setup, DistillerSetup) and isinstance(setup.distiller.task, Classification)
        padding = not one_each and bool((labels.cpu()[apart] == TORCH_IGNORES).all())
    which, kept = ("label is below 0", "labels != -100") if mask is None else ("attention mask is 0", "mask > 0")
    how = f"Select the positions that count before the loss: logits[{kept}]."
    left_out = _left_out_by(setup) if isinstance(setup, DistillerSetup) else None
    if mask is not None and left_out is not None:
        how = f"Give them the label that the task leaves out: labels.masked_fill(mask == 0, {left_out})."
    return Finding(
        "loss-padding",
        FAULT if padding else DOUBT,
        f"Positions whose {which} get a gradient, {there / counted:.0%} of what the others get at most.",
        "Padding is learned as if it were text: a worse perplexity, and comparisons of methods whose order is "
        "reversed.",
        how + ("" if padding else " Leave it if these only lack a label, and are to learn from the teacher."),
        story=f"{GITHUB}peremartra/optipfair/issues/34",
    )


def _attention_mask(setup: Setup, labels: Tensor) -> Tensor | None:
    """The first batch's, one number for each label; None where it has none, or one that leaves out no position.

    That of another text (of an encoder's, padded to the length of the labels) leaves out positions with a label while
    the labels leave out others.
    """
    batch, own = setup.batches[0], labels
    if not isinstance(batch, Mapping):
        return None
    if isinstance(setup, DistillerSetup) and isinstance(setup.distiller.task, TokenClassification):
        own = setup.adapter.labels_of(batch)  # of which the task has made rows
    mask = batch.get("decoder_attention_mask" if "decoder_input_ids" in batch else "attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != own.shape or not bool((mask == 0).any()):
        return None
    of_another = bool((own < 0).any()) and bool((own[mask == 0] >= 0).any())
    return None if of_another or mask.numel() != labels.numel() else mask.reshape(labels.shape)


def _left_out_by(setup: DistillerSetup) -> int | None:
    """The label of what a Distiller's task leaves out."""
    return getattr(setup.distiller.task, "ignore_index", None)


def _task_leaves_out(setup: Setup, rows: int) -> bool:
    """Whether a Distiller's task gives its loss these rows alone, without those whose label does not count."""
    if not isinstance(setup, DistillerSetup):
        return False
    labels, ignored = setup.adapter.labels_of(setup.batches[0]), _left_out_by(setup)
    if ignored is None or not isinstance(labels, Tensor):
        return False
    counted = int((labels != ignored).sum())
    return rows == counted < labels.numel()


def _finite(*tensors: Tensor) -> bool:
    return all(bool(one.isfinite().all()) for one in tensors)
