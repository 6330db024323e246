"""Exercises of lesson 04, What does temperature do?: the softmax, the soft loss, and their limits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Numeric, Option, QuestionSpec


def soften(logits: Tensor, temperature: float) -> Tensor:
    """Class probabilities softmax(logits / T), also for very large logits."""
    scaled = logits / temperature
    shifted = scaled - scaled.amax(dim=1, keepdim=True)
    weights = torch.exp(shifted)
    return weights / weights.sum(dim=1, keepdim=True)


def _logits() -> list[Case]:
    generator = torch.Generator().manual_seed(41)
    shapes = ((4, 3), 4.0), ((3, 3), 0.5), ((1, 5), 2.5), ((6, 10), 8.0), ((2, 4), 1.0)
    random = [Case((2.5 * torch.randn(*shape, generator=generator), t)) for shape, t in shapes]
    large = torch.tensor([[900.0, 898.0, -500.0], [-900.0, -901.0, -1200.0]])
    advice = (
        "exp(900) is larger than any float and exp(-900) is 0. Dividing numerator and denominator by the same number "
        "changes nothing, so subtract something from each row first."
    )
    small = Case((torch.tensor([[2.0, 1.0, 0.0]]), 2.0))
    at_100 = "Divide the logits by T first. exp of a logit far below the largest is 0, and dividing later is too late."
    return [
        small,
        *random,
        Case((large, 1.0), "large logits", advice),
        Case((large, 100.0), "large logits and a high temperature", at_100),
    ]


def _naive(z: Tensor, t: float) -> Tensor:
    return torch.exp(z / t) / torch.exp(z / t).sum(dim=1, keepdim=True)


def _from_weights(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True)


def _root_after_exp(z: Tensor, t: float) -> Tensor:
    return _from_weights(torch.exp(z - z.amax(dim=1, keepdim=True)) ** (1 / t))


def _shifted_by_the_largest(z: Tensor, t: float) -> Tensor:
    return _naive(z - z.max(), t)


SOFTEN = CodeSpec(
    "soften",
    "Softmax with a temperature",
    "code",
    "medium",
    7,
    "Write soften(logits, temperature): q_i = exp(z_i / T) / sum_j exp(z_j / T) for each row, from exp and sum. logits "
    "has a row for each image and a column for each class. It must stay right for logits of 900, whose exp is inf.",
    (
        "Three steps: divide by T, take exp, divide by the sum over the classes (dim=1, keepdim=True).",
        "For large logits: a row of z and the same row minus a number have the same softmax. Which number helps?",
        "Subtract the row's maximum, .max(dim=1, keepdim=True).values: then the largest exp is 1.",
    ),
    "As T grows, the probabilities come closer to each other and the entropy rises, up to log C; as T falls towards 0, "
    "the largest takes everything. Their order never changes.",
    stub="def soften(logits, temperature):\n    ...  # four lines",
    reference=soften,
    cases=_logits,
    mistakes=(
        Mistake(
            "temperature multiplied",
            lambda z, t: soften(z, 1 / t),
            "You multiplied by the temperature: a high T then makes the answer sharper. Divide the logits by T.",
        ),
        Mistake(
            "maximum of the undivided logits",
            lambda z, t: _from_weights(torch.exp(z / t - z.amax(dim=1, keepdim=True))),
            "You took off the largest logit before it was divided by T, so at a high T all weights are near to 0, or "
            "0. Take off the maximum of logits / T.",
        ),
        Mistake(
            "over the batch",
            lambda z, t: torch.softmax(z / t, dim=0),
            "Your columns sum to 1: that is a softmax over the images. Each row, over the classes (dim=1), should.",
        ),
        Mistake(
            "over everything",
            lambda z, t: torch.softmax((z / t).flatten(), dim=0).reshape(z.shape),
            "You divided by the sum over all images. Each row has a sum of its own: sum(dim=1, keepdim=True).",
        ),
        Mistake(
            "temperature ignored",
            lambda z, t: torch.softmax(z, dim=1),
            "The temperature does not come in: your answer is that of T = 1 every time.",
        ),
        Mistake(
            "temperature after the softmax",
            lambda z, t: torch.softmax(z, dim=1) / t,
            "You divided the probabilities by T, so they no longer sum to 1. T divides the logits, before exp.",
        ),
        Mistake(
            "exp forgotten",
            lambda z, t: (z / t) / (z / t).sum(dim=1, keepdim=True),
            "There is no exp: with negative logits these are no probabilities.",
        ),
        Mistake(
            "not divided",
            lambda z, t: torch.exp(z / t),
            "Your rows do not sum to 1: divide by the sum over the classes.",
        ),
        Mistake(
            "sum without keepdim",
            lambda z, t: torch.exp(z / t) / torch.exp(z / t).sum(dim=1),
            "A sum or a maximum over dim=1 has one dimension less, and B numbers do not fit beside B x C: keepdim=True "
            "is missing.",
        ),
        Mistake(
            "softmax twice",
            lambda z, t: torch.softmax(torch.softmax(z / t, dim=1), dim=1),
            "There is a softmax too many: the second one is fed probabilities, where logits belong.",
        ),
        Mistake(
            "divided by the largest",
            lambda z, t: torch.exp(z / t) / torch.exp(z / t).amax(dim=1, keepdim=True),
            "You divided by the largest, so the largest probability is always 1. Divide by the sum over the classes.",
        ),
        Mistake(
            "first choice alone",
            lambda z, t: F.one_hot(z.argmax(dim=1), z.shape[1]).float(),
            "This is the hard label: what the softmax becomes as T goes to 0.",
        ),
        Mistake("logarithm", lambda z, t: torch.log_softmax(z / t, dim=1), "These are the logarithms: apply exp."),
        Mistake(
            "not stable",
            _naive,
            "The formula is right, but for large logits it gives NaN: exp(900) is inf, and exp(-900) is 0. A row minus "
            "a number has the same softmax, so subtract something from each row first.",
        ),
        Mistake(
            "one maximum for all",
            _shifted_by_the_largest,
            "You subtracted the largest logit of all images. A row far below it becomes exp(...) = 0 everywhere, and "
            "0/0 is NaN: subtract each row's own maximum.",
        ),
        Mistake(
            "a root after exp",
            _root_after_exp,
            "A power of 1/T after exp is the same on paper. But exp of a logit far below the largest is 0 in 32 bits, "
            "and a root of 0 is 0, so a high temperature cannot bring the small probabilities back: divide the logits "
            "by T, before exp.",
        ),
    ),
)


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 times the KL divergence from the teacher's softened answers to the student's."""
    log_student = torch.log_softmax(student_logits / temperature, dim=1)
    log_teacher = torch.log_softmax(teacher_logits / temperature, dim=1)
    terms = log_teacher.exp() * (log_teacher - log_student)
    divergence = terms.sum(dim=1).mean()
    return temperature**2 * divergence


_TEACHERS_ZERO = (
    "The teacher's softmax is exactly 0 there, and 0 times log 0 is NaN. Take the teacher's log_softmax too, or "
    "torch.xlogy or F.kl_div, which count this term as 0."
)


def _pairs() -> list[Case]:
    generator = torch.Generator().manual_seed(42)

    def pair(images: int, classes: int, temperature: float) -> Case:
        student, teacher = (size * torch.randn(images, classes, generator=generator) for size in (1.0, 2.0))
        return Case((student, teacher, temperature))

    small = Case((torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[3.0, 1.0, 0.0]]), 2.0))
    student = torch.tensor([[200.0, -150.0, 0.0], [1.0, 2.0, 400.0]])
    teacher = torch.tensor([[-180.0, 190.0, 0.0], [300.0, 0.0, 1.0]])
    advice = (
        "A softmax that is exactly 0 has no logarithm, and a small number added to it hides how wrong the student is: "
        "log_softmax goes to the logarithm without that 0."
    )
    # Where both are sure, a NaN does not tell whose softmax it comes from: in a case before it the teacher is not.
    sure_student = Case((student, teacher / 100, 1.5), "a student that is sure and wrong", advice)
    both_sure = Case((student, teacher, 1.5), "a teacher that is sure", _TEACHERS_ZERO)
    ordinary = pair(4, 3, 4.0), pair(5, 5, 3.0), pair(1, 6, 0.7), pair(6, 10, 6.0)
    return [small, *ordinary, sure_student, both_sure]


def _logs(z: Tensor, t: float) -> Tensor:
    return torch.log_softmax(z / t, dim=1)


def _terms(log_s: Tensor, log_t: Tensor) -> Tensor:
    return log_t.exp() * (log_t - log_s)


def _kl(log_s: Tensor, log_t: Tensor) -> Tensor:
    return _terms(log_s, log_t).sum(dim=1).mean()


def _log_of_softmax(s: Tensor, z: Tensor, t: float) -> Tensor:
    p_s, p_t = torch.softmax(s / t, dim=1), torch.softmax(z / t, dim=1)
    return t**2 * (p_t * (p_t.log() - p_s.log())).sum(dim=1).mean()


def _log_of_teachers_softmax(s: Tensor, z: Tensor, t: float) -> Tensor:
    p = torch.softmax(z / t, dim=1)
    return t**2 * (p * (p.log() - _logs(s, t))).sum(dim=1).mean()


def _without_keepdim(s: Tensor, z: Tensor, t: float) -> Tensor:
    return t**2 * _kl(*(x / t - torch.logsumexp(x / t, dim=1) for x in (s, z)))


def _over_the_batch(s: Tensor, z: Tensor, t: float, power: int) -> Tensor:
    logs = [torch.log_softmax(x / t, dim=0) for x in (s, z)]
    return t**power * _kl(*logs)


_NO_T2 = "The factor T^2 is missing: at T = 4 the soft loss is 16 times too small."
_LOG = (
    "The formula is right, but for a student that is sure and wrong it gives inf or NaN: its softmax is exactly 0 "
    "there, and that has no logarithm. Go to the logarithm in one step: log_softmax."
)
_BATCH = (
    "You took the softmax over the images (dim=0). Probabilities are shared out among the classes of each image: dim=1."
)
_MEAN = (
    "You took the mean over the classes as well, so the loss is C times too small. Sum over the classes, and take the "
    'mean over the images only (with kl_div: reduction="batchmean").'
)

SOFT_LOSS = CodeSpec(
    "soft_loss",
    "The soft loss in six lines",
    "code",
    "hard",
    10,
    "Write soft_loss(student_logits, teacher_logits, temperature): T^2 times KL(teacher || student), both softened "
    "with T: sum_c p_c (log p_c - log q_c) with the teacher's p and the student's q, summed over the classes and "
    "averaged over the images. It must stay finite for a student that is sure and wrong, and for a sure teacher.",
    (
        "You need the logarithms of both softened answers: torch.log_softmax(... / temperature, dim=1).",
        "The teacher's probabilities are the exp of its logarithms.",
        "Sum over dim=1, then take the mean, then multiply by temperature ** 2.",
    ),
    "kdlib.losses.kd is its tested form. Its gradient with respect to the student's logits is T (q - p) / B, so T^2 "
    "turns 1/T from the divergence into T, and at high T the size of the gradient no longer depends on T.",
    stub="def soft_loss(student_logits, teacher_logits, temperature):\n    ...  # six lines",
    reference=soft_loss,
    cases=_pairs,
    grad_arguments=("student_logits",),
    mistakes=(
        Mistake(
            "temperature multiplied",
            lambda s, z, t: t**2 * _kl(_logs(s, 1 / t), _logs(z, 1 / t)),
            "You multiplied the logits by the temperature. T divides them: a high T makes the answers softer.",
        ),
        Mistake("T^2 forgotten", lambda s, z, t: _kl(_logs(s, t), _logs(z, t)), _NO_T2),
        Mistake(
            "T instead of T^2",
            lambda s, z, t: t * _kl(_logs(s, t), _logs(z, t)),
            "You multiplied by T once. The gradient without a factor shrinks as 1/T^2, so T^2 is needed.",
        ),
        Mistake(
            "T^4",
            lambda s, z, t: t**4 * _kl(_logs(s, t), _logs(z, t)),
            "T^2 is there twice. (losses.kd, if you call it, carries it already.)",
        ),
        Mistake(
            "divided by T^2",
            lambda s, z, t: _kl(_logs(s, t), _logs(z, t)) / t**2,
            "You divided by T^2. The factor has to make up for what the high temperature takes away: multiply.",
        ),
        Mistake(
            "the same logits on both sides",
            lambda s, z, t: t**2 * _kl(_logs(z, t), _logs(z, t)),
            "Your loss is 0 for every input. Do the same logits stand on both sides of the divergence? One side is the "
            "student's, the other the teacher's.",
        ),
        Mistake(
            "log of the teacher's softmax",
            _log_of_teachers_softmax,
            f"The formula is right, but for a teacher that is sure it gives NaN. {_TEACHERS_ZERO}",
        ),
        Mistake("log of a softmax", _log_of_softmax, _LOG),
        Mistake("over the batch", lambda s, z, t: _over_the_batch(s, z, t, 2), _BATCH),
        Mistake(
            "everything over the batch",
            lambda s, z, t: t**2 * _terms(*(torch.log_softmax(x / t, dim=0) for x in (s, z))).sum(dim=0).mean(),
            _BATCH,
        ),
        Mistake("over the batch, T^2 forgotten", lambda s, z, t: _over_the_batch(s, z, t, 0), f"{_BATCH} {_NO_T2}"),
        Mistake(
            "student and teacher swapped",
            lambda s, z, t: t**2 * _kl(_logs(z, t), _logs(s, t)),
            "Student and teacher are swapped: KL(student || teacher). The teacher's probabilities are the weights, and "
            "they come first in the difference of the logarithms.",
        ),
        Mistake(
            "swapped, T^2 forgotten",
            lambda s, z, t: _kl(_logs(z, t), _logs(s, t)),
            f"Student and teacher are swapped: the teacher's probabilities are the weights. {_NO_T2}",
        ),
        Mistake(
            "sign",
            lambda s, z, t: -(t**2) * _kl(_logs(s, t), _logs(z, t)),
            "The sign is wrong: a divergence is never negative. It is log p - log q, the teacher's first.",
        ),
        Mistake("mean over the classes", lambda s, z, t: t**2 * _terms(_logs(s, t), _logs(z, t)).mean(), _MEAN),
        Mistake(
            "mean over the classes, T^2 forgotten",
            lambda s, z, t: _terms(_logs(s, t), _logs(z, t)).mean(),
            f"{_MEAN} {_NO_T2}",
        ),
        Mistake(
            "sum over the batch",
            lambda s, z, t: t**2 * _terms(_logs(s, t), _logs(z, t)).sum(),
            "You added up over the images as well, so the loss grows with the batch. Take the mean over the images.",
        ),
        Mistake(
            "not averaged",
            lambda s, z, t: t**2 * _terms(_logs(s, t), _logs(z, t)).sum(dim=1),
            "This is a loss for each image. Take the mean over the images: a loss is one number.",
        ),
        Mistake(
            "softmax twice",
            lambda s, z, t: t**2 * _kl(_logs(_logs(s, t).exp(), t), _logs(_logs(z, t).exp(), t)),
            "You softened twice: the second time it is fed probabilities, where logits belong.",
        ),
        Mistake(
            "softmax twice, once with T",
            lambda s, z, t: t**2 * _kl(_logs(_logs(s, t).exp(), 1), _logs(_logs(z, t).exp(), 1)),
            "There is a softmax too many: the second one is fed probabilities, where logits belong.",
        ),
        Mistake(
            "cross-entropy",
            lambda s, z, t: -(t**2) * (_logs(z, t).exp() * _logs(s, t)).sum(dim=1).mean(),
            "This is the cross-entropy: the teacher's own log p is missing from the difference. Its gradient is the "
            "same, but it is not 0 when the student agrees with the teacher.",
        ),
        Mistake(
            "only the student softened",
            lambda s, z, t: t**2 * _kl(_logs(s, t), _logs(z, 1)),
            "Only the student's logits are divided by T. Both sides are softened alike.",
        ),
        Mistake(
            "only the teacher softened",
            lambda s, z, t: t**2 * _kl(_logs(s, 1), _logs(z, t)),
            "Only the teacher's logits are divided by T. Both sides are softened alike.",
        ),
        Mistake(
            "nothing softened",
            lambda s, z, t: t**2 * _kl(_logs(s, 1), _logs(z, 1)),
            "T^2 is there, but the logits themselves are not divided by T.",
        ),
        Mistake(
            "student's logarithm forgotten",
            lambda s, z, t: t**2 * (_logs(z, t).exp() * (_logs(z, t) - _logs(s, t).exp())).sum(dim=1).mean(),
            "The student comes in with its probabilities, where their logarithms belong (kl_div takes "
            "log-probabilities first).",
        ),
        Mistake(
            "log-sum-exp without keepdim",
            _without_keepdim,
            "A sum over dim=1 has one dimension less, and B numbers do not fit beside B x C: keepdim=True is missing "
            "(or use log_softmax).",
        ),
        Mistake(
            "squared difference of probabilities",
            lambda s, z, t: t**2 * (_logs(z, t).exp() - _logs(s, t).exp()).pow(2).sum(dim=1).mean(),
            "This is the squared difference of the probabilities. The divergence weighs the difference of the "
            "logarithms with the teacher's probabilities.",
        ),
        Mistake(
            "not weighted",
            lambda s, z, t: t**2 * (_logs(z, t) - _logs(s, t)).sum(dim=1).mean(),
            "The teacher's probabilities are missing: they weigh the differences of the logarithms.",
        ),
        Mistake(
            "logarithms in the wrong place of kl_div",
            lambda s, z, t: t**2 * F.kl_div(_logs(s, t), _logs(z, t), reduction="batchmean"),
            "kl_div takes the student's log-probabilities first, and the teacher's probabilities second. With "
            "logarithms in both it needs log_target=True.",
        ),
    ),
)

GRADIENT = QuestionSpec(
    "gradient",
    "What is left of the gradient?",
    "prediction",
    "medium",
    3,
    "Take the soft loss without the factor T^2, and double a high temperature, from T = 20 to T = 40. How many times "
    "smaller does its gradient with respect to the student's logits become? Answer with .predict(...), measure it in "
    "the next cell, then call .check(ratio).",
    (
        "The gradient is (q - p) / T, with q and p softened. Two things in it change with T.",
        "At high T, q - p is itself nearly proportional to 1 / T.",
    ),
    "The gradient is (q - p) / T. At high T, exp(x) is nearly 1 + x, so q - p is nearly (difference of the centred "
    "logits) / (C T): together 1/T^2, a factor of 4 when T doubles. The larger the logits, the higher T must be for "
    "this; what was measured may differ a little from 4. T^2 makes up for it.",
    is_prediction=True,
    answer_key=Numeric(
        4.0,
        0.15,
        (
            (2.0, "You counted the 1/T that comes from dividing the logits; but q - p itself shrinks as 1/T too."),
            (1.0, "That would be so with the factor T^2, which was left out here."),
            (0.25, "That is the other way round: the question is how many times smaller, a number above 1."),
            (0.5, "That is the other way round, and counts one of the two factors 1/T."),
            (8.0, "That would be 1/T^3. There are two factors 1/T: one from z / T, one from q - p."),
            (16.0, "That would be 1/T^4. There are two factors 1/T: one from z / T, one from q - p."),
        ),
    ),
)

LAW = QuestionSpec(
    "law",
    "Where does the law end?",
    "figure",
    "hard",
    4,
    "In the figure, the gradient times T^2 is drawn as a ratio to its limit. At high T it is nearly 1: without the "
    "factor, the gradient follows the law 1/T^2. Further left, at T = 16 and below, it leaves the law. Why?",
    (
        "The law comes from exp(x) being nearly 1 + x. When is that so?",
        "x is z / T here. How large are a trained teacher's logits?",
    ),
    "So T^2 keeps the gradients of both losses in proportion when T is changed at high temperatures; at low ones "
    "their proportion still moves.",
    answer_key=MultipleChoice(
        (
            Option(
                "Rounding errors are larger at low temperatures",
                "In 64 bits, as computed here, they are about one part in 10^16, far below what is seen in the figure.",
            ),
            Option(
                "The law needs z / T to be small, and at low T it is large",
                "exp(x) is nearly 1 + x only for small x. A trained teacher's logits often lie ten and more apart: "
                "divided by 1 they saturate the softmax, divided by 40 they do not.",
                correct=True,
            ),
            Option(
                "The factor T^2 is too small there to have an effect",
                "The factor only undoes what T does to the gradient; the question is why the gradient leaves the law.",
            ),
            Option(
                "The batch is too small for an average over all of its images",
                "It is computed from the same images at every T; more images would move the curve, not bend it.",
            ),
        )
    ),
)

LIMIT = QuestionSpec(
    "limit",
    "The limit of high temperature",
    "question",
    "medium",
    3,
    "One image, three classes: the teacher's logits are 3, -1, -2, the student's 1, -1, 0. What does the soft loss "
    "with its factor T^2 tend to as T grows without bound?",
    (
        "The divergence goes to 0 as 1/T^2. What does a product with T^2 do then?",
        "Both rows have mean 0, so the formula of the lesson needs no centring: differences, squares, their sum.",
    ),
    "So distillation at a high temperature is the older idea of matching logits. At a low temperature very negative "
    "logits, which may be mostly noise, count for less.",
    answer_key=MultipleChoice(
        (
            Option(
                "To 0: both answers become uniform, so there is nothing left to tell apart",
                "The divergence alone does go to 0, as 1/T^2; but T^2 grows just as fast.",
            ),
            Option(
                "To infinity, because the factor T^2 grows without bound",
                "T^2 does, but the divergence shrinks as 1/T^2; the product settles.",
            ),
            Option(
                "To 8/3: the squared distance of the logits, divided by C",
                "The squared distance is 8, and C is 3, but a half is missing: for close answers a divergence is half "
                "a sum of squares.",
            ),
            Option(
                "To 4/3: the squared distance of the logits, divided by 2C",
                "That is logit matching: T^2 KL tends to ||s - t||^2 / (2C) of centred logits, as these are: 8/6; for "
                "several images to their mean.",
                correct=True,
            ),
        )
    ),
)

EXERCISES = LessonSpec("04", "What does temperature do?", (SOFTEN, SOFT_LOSS, GRADIENT, LAW, LIMIT))
