"""Exercises of lesson 17, Distil a language model: reverse KL, a loss with padding, prefixes, a tiny classifier."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Option, QuestionSpec

HIDDEN = -100
CLEAR = 0.5  # nats a name: a single run says no more than that


def _letter_of_difference(nats: float) -> str:
    """The letter for reverse minus forward KL, the teacher's nats of a drawn name; ValueError for what is none."""
    nats = float(nats)
    if not math.isfinite(nats) or abs(nats) > 100:
        raise ValueError("a difference of two means of nats a name lies between -100 and 100")
    return "a" if nats < -CLEAR else "b" if nats <= CLEAR else "c"


SEEKS = QuestionSpec(
    "seeks",
    "What does reverse KL do to the names?",
    "prediction",
    "easy",
    2,
    "Two students of one size learn from the same teacher and the same names, one by forward KL, one by reverse KL at "
    "each letter. Then each draws names of its own, and the teacher says how many nats it needs for them. Answer "
    "with .predict(...), run it, then call .check(nats) with those of reverse KL minus those of forward KL, per name.",
    (
        "Which of the two losses is large where the student gives probability to what the teacher holds for nearly "
        "impossible?",
        "Look at the figure of the two humps: where does each student put what it has?",
    ),
    "Reverse KL weighs by the student's own probabilities, so a letter that the teacher finds absurd costs much. "
    "Forward KL weighs by the teacher's: a student that is too small to follow spreads itself over all of them. Names "
    "drawn from the first look better to the teacher, and real names get less probability. Which of the two you want "
    "depends on what the model is for.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option(f"Fewer nats, by more than {CLEAR:g}: the names are more plausible to the teacher", ""),
            Option(f"About the same, within {CLEAR:g} nats: at each letter both losses vanish at the same point", ""),
            Option(f"More nats, by more than {CLEAR:g}: the names are less plausible to the teacher", ""),
        ),
        from_measurement=_letter_of_difference,
    ),
)


def token_kl(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Forward KL for each token that is no padding, averaged over them."""
    counts = labels != -100
    log_student, log_teacher = (logits[counts].log_softmax(-1) for logits in (student_logits, teacher_logits))
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean()


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _per_token(s: Tensor, t: Tensor) -> Tensor:
    log_s, log_t = s.log_softmax(-1), t.log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def _padding_counted(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return _per_token(s, t).mean()


def _padding_divides(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return _per_token(s, t).masked_fill(labels == HIDDEN, 0).mean()


def _per_name(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return _per_token(s, t).masked_fill(labels == HIDDEN, 0).sum() / len(labels)


def _mean_of_means(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    counts = labels != HIDDEN
    return (_per_token(s, t).masked_fill(~counts, 0).sum(1) / counts.sum(1)).mean()


def _reversed(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return token_kl(t, s, labels)


def _over_vocabulary(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return token_kl(s, t, labels) / s.shape[-1]


def _cross_entropy(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    counts = labels != HIDDEN
    return -(t[counts].softmax(-1) * s[counts].log_softmax(-1)).sum(-1).mean()


def _over_positions(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    counts = labels != HIDDEN
    log_s, log_t = s.log_softmax(1), t.log_softmax(1)
    return (log_t.exp() * (log_t - log_s))[counts].sum(-1).mean()


def _cases() -> list[Case]:
    generator = torch.Generator().manual_seed(17)

    def case(lengths: list[int], edge: str = "", advice: str = "", scale: float = 2.0) -> Case:
        shape = (len(lengths), max(lengths), 3)
        s, t = (scale * torch.randn(shape, generator=generator, dtype=torch.double) for _ in range(2))
        labels = torch.randint(3, shape[:2], generator=generator)
        for row, length in enumerate(lengths):
            labels[row, length:] = HIDDEN
        return Case((s, t, labels), edge, advice)

    logs = "A softmax that is exactly 0 has no logarithm: use log_softmax."
    return [
        case([2, 1]),
        case([4, 2, 1]),
        case([3, 3]),
        case([1, 5, 2, 3]),
        case([3, 1], "a student that is sure and wrong", logs, scale=2_000.0),
    ]


LOSS = CodeSpec(
    "token_kl",
    "A loss for names of different lengths",
    "code",
    "medium",
    8,
    "Write token_kl(student_logits, teacher_logits, labels): forward KL, KL(teacher || student), of each token; its "
    "mean over the tokens that are no padding. Logits are names x tokens x vocabulary; labels are names x tokens, and "
    "-100 at padding. It is in nats, and must stay finite for a student that is sure and wrong.",
    (
        "counts = labels != -100 picks tokens: student_logits[counts] is a table with a row for each of them.",
        "With the logarithms of both (log_softmax over the vocabulary): teacher.exp() * (teacher - student), summed "
        "over the vocabulary.",
    ),
    "Each token is a classification with the vocabulary as its classes, so it is the loss of lesson 05 with T = 1, and "
    "padding left out: losses.kd(student_logits[counts], teacher_logits[counts], 1.0). In kdlib's loop the task "
    "'token-classification' leaves padding out by its labels.",
    stub="def token_kl(student_logits, teacher_logits, labels):\n    ...  # a few lines",
    reference=token_kl,
    cases=_cases,
    grad_arguments=("student_logits",),
    mistakes=(
        Mistake(
            "padding counted",
            _padding_counted,
            "Padding counts in your mean. What a model says behind the end of a name is nothing that it should learn.",
        ),
        Mistake(
            "divided by padding too",
            _padding_divides,
            "Your sum leaves padding out, and your divisor counts it: the loss depends on how long the longest name of "
            "the batch is.",
        ),
        Mistake(
            "divided by the names",
            _per_name,
            "You divided by the number of names. The mean here is over tokens, so that batches of long and of short "
            "names weigh alike.",
        ),
        Mistake(
            "mean of the names' means",
            _mean_of_means,
            "You took the mean of each name first, so the letters of short names weigh more than those of long ones. "
            "Take one mean over all tokens.",
        ),
        Mistake(
            "KL reversed",
            _reversed,
            "This is KL(student || teacher), reverse KL. Forward KL weighs by the teacher's probabilities.",
        ),
        Mistake(
            "divided by the vocabulary",
            _over_vocabulary,
            "Sum over the vocabulary; you took a mean over it, so the loss is too small by the number of tokens in it.",
        ),
        Mistake(
            "cross-entropy",
            _cross_entropy,
            "This is the cross-entropy with the teacher's probabilities. Its gradient is right, but it is not 0 where "
            "both agree: the teacher's own entropy is to be taken away.",
        ),
        Mistake(
            "softmax over positions",
            _over_positions,
            "Your softmax runs over the tokens of a name. Probabilities sum to 1 over the vocabulary, the last "
            "dimension.",
        ),
    ),
)

LETTERS = QuestionSpec(
    "letters",
    "What does the figure of the letters show?",
    "figure",
    "medium",
    3,
    "Look at the left panel of the figure of the letters: the student taught by forward KL on real names. Why are the "
    "two curves equal at the first token and apart at later ones?",
    (
        "What stands before the first letter in either case?",
        "Both curves compare the same two networks. What differs is what they have read.",
    ),
    "Before the first letter nothing has been drawn, so there is nothing to differ in. Later each model leads to "
    "beginnings of its own kind. Exposure bias would put the curve after the student's own letters above the other. "
    "Here it lies below: after what it wrote itself, this student is nearer to the teacher.",
    answer_key=MultipleChoice(
        (
            Option(
                "The teacher is less accurate at later letters, since few of its names are so long",
                "The teacher is the same network in both curves, and its accuracy does not enter: the divergence is "
                "from it, whatever it says.",
            ),
            Option(
                "Later letters come after others, and the student draws other ones than the teacher does",
                "Only what was read before differs between the curves, and before the first letter nothing was read.",
                correct=True,
            ),
            Option(
                "The student was trained on first letters more often, since every name has one and only some have ten",
                "That would move both curves alike: both are of the same student, at the same token.",
            ),
            Option(
                "The divergence of later tokens adds up that of all earlier ones, and the student's errors are larger",
                "Each point is the divergence at one token alone. Nothing is added up in this figure.",
            ),
        )
    ),
)

CONFIG = QuestionSpec(
    "config",
    "Which way is that in TRL?",
    "question",
    "easy",
    2,
    "Somebody trains with TRL's GKDTrainer and sets lmbda=1.0 and beta=0.0. Which row of this lesson's table is that?",
    (
        "lmbda is the share of batches that the student draws itself.",
        "beta = 0 is the divergence that weighs by the teacher's probabilities.",
    ),
    "lmbda says whose text is read, beta which way the divergence is taken: the choices of this lesson. seq_kd=True "
    "puts text of the teacher's in place of the data.",
    answer_key=MultipleChoice(
        (
            Option(
                "reverse KL, real names",
                "lmbda = 1 draws all batches from the student, so no real names are read; and beta = 0 is forward KL.",
            ),
            Option(
                "reverse KL, own names",
                "The student's own names are right for lmbda = 1. beta = 1 would be reverse KL.",
            ),
            Option(
                "forward KL, real names",
                "Forward KL is right for beta = 0. Real names would be lmbda = 0.",
            ),
            Option(
                "forward KL, own names",
                "lmbda = 1: all batches are the student's own. beta = 0: weighed by the teacher's probabilities.",
                correct=True,
            ),
        )
    ),
)

LEAST, MOST = 0.25, 0.5  # of the gap: a single run says no more than on which side of these it lies


def _letter_of_share(share: float) -> str:
    """The letter for the share of the gap between few labels and teacher; ValueError for what is none."""
    share = float(share)
    if not math.isfinite(share) or abs(share) > 5:
        raise ValueError("the share of a gap is a number about 0 to 1: (taught - few) / (teacher - few)")
    return "a" if share < LEAST else "b" if share <= MOST else "c"


CLOSES = QuestionSpec(
    "closes",
    "How much does the student get from unlabelled sentences?",
    "prediction",
    "easy",
    2,
    "The teacher, a pretrained encoder with a head, has seen 100 labels. So has a tiny student, which is far behind. A "
    "second student of that kind sees no label at all: it learns the teacher's soft answers to 9,000 sentences. How "
    "much of the gap between the first student and the teacher does it close? Answer with .predict(...), run it, then "
    "call .check(share) with (taught - few) / (teacher - few).",
    (
        "What do the teacher's mistakes cost, and what do 8,900 more sentences bring?",
        "The first student has seen few of the words of the validation sentences. Where could it learn of the others?",
    ),
    "The teacher's answers are right about two times in three, and there are ninety times as many of them as labels. "
    "What limits the student with 100 labels is that it has met so few words. The encoder has met them all, in its "
    "pretraining, and passes on which of them belong together.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("Less than a quarter: the teacher knows no more labels than the student does", ""),
            Option("A quarter to a half: many more sentences, but a third of the answers to them are wrong", ""),
            Option("More than a half: it lacks words, and the answers come with 9,000 sentences", ""),
        ),
        from_measurement=_letter_of_share,
    ),
)

EXERCISES = LessonSpec("17", "Distil a language model", (SEEKS, LOSS, LETTERS, CONFIG, CLOSES))
