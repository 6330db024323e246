"""Exercises of lesson 14, Can one sensor teach another?: wrong pairs, a loss for few labels, persons, classes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Numeric, Option, QuestionSpec

HIDDEN = -100
CLEAR = 5.0  # points: a single run says no more than that


def _letter_of_difference(points: float) -> str:
    """The letter for wrong pairs minus no pairs, in points of accuracy; ValueError for what is no such difference."""
    points = float(points)
    if not -100 <= points <= 100 or math.isnan(points):
        raise ValueError("a difference of two accuracies lies between -100 and 100 points")
    return "a" if points > CLEAR else "b" if points >= -CLEAR else "c"


WRONG = QuestionSpec(
    "wrong",
    "What do wrong pairs do?",
    "prediction",
    "easy",
    2,
    "The same teacher, the same 14 labels, the same loss, but each window of the gyroscope gets its soft labels from "
    "the accelerometer of another window. How does the student do, compared with one that has the 14 labels and no "
    "teacher at all? Answer with .predict(...), run it, then call .check(points) with its accuracy minus that of the "
    "student without a teacher, in points.",
    (
        "Soft labels also keep a student from being too sure, whatever they say. Is that worth something here?",
        "What does the loss ask of a student whose input says nothing about the answer?",
    ),
    "A single run can fall either way, and the learning rate matters: over five splits, with a rate of its own, such a "
    "student shows neither gain nor loss beside one without a teacher (+0.2 points, -9.9 to +10.3). One that is asked "
    "for an answer which its input does not hold can only learn the average answer, and the labels pull against that. "
    "Pairs that were mixed up are the classic mistake in such projects, and no error tells.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option(f"It is better, by more than {CLEAR:g} points: soft labels regularise", ""),
            Option(f"It is about the same, within {CLEAR:g} points", ""),
            Option(f"It is worse, by more than {CLEAR:g} points", ""),
        ),
        from_measurement=_letter_of_difference,
    ),
)


def cross_modal_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    """The loss of a batch of pairs of which few have labels."""
    functional, known = torch.nn.functional, labels != -100
    hard = functional.cross_entropy(student_logits[known], labels[known]) if known.any() else 0.0
    log_student = (student_logits / temperature).log_softmax(1)
    soft = functional.kl_div(log_student, (teacher_logits / temperature).softmax(1), reduction="batchmean")
    return alpha * hard + (1 - alpha) * temperature**2 * soft


Loss = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]


def _parts(s: Tensor, t: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    known = labels != HIDDEN
    hard = F.cross_entropy(s[known], labels[known]) if bool(known.any()) else 0.0 * s.sum()
    soft = F.kl_div((s / temperature).log_softmax(1), (t / temperature).softmax(1), reduction="batchmean")
    return hard, soft


def _summed(hard: Callable[[Tensor, Tensor, Tensor], Tensor] | None, soft_weight: Callable[[float], float]) -> Loss:
    """A loss whose hard part, or whose factor of the soft part, is another one."""

    def loss(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
        right, soft = _parts(s, t, labels, temperature)
        return alpha * (right if hard is None else hard(s, t, labels)) + (1 - alpha) * soft_weight(temperature) * soft

    return loss


def _divided_by_all(s: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(s, labels, ignore_index=HIDDEN, reduction="sum") / len(s)


def _plain(s: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(s, labels, ignore_index=HIDDEN)


def _by_teacher(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(s, torch.where(labels == HIDDEN, t.argmax(1), labels))


def _first_class(s: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(s, labels.clamp_min(0))


def _squared(temperature: float) -> float:
    return temperature**2


def _labelled_only(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    known = labels != HIDDEN
    hard, _ = _parts(s, t, labels, temperature)
    if not bool(known.any()):
        return alpha * hard
    _, soft = _parts(s[known], t[known], labels[known], temperature)
    return alpha * hard + (1 - alpha) * temperature**2 * soft


def _unlabelled_only(guarded: bool) -> Loss:
    """guarded: the soft part of a batch whose labels are all known is 0, and not the mean of nothing."""

    def loss(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
        hidden = labels == HIDDEN
        hard, _ = _parts(s, t, labels, temperature)
        if guarded and not bool(hidden.any()):
            return alpha * hard
        _, soft = _parts(s[hidden], t[hidden], labels[hidden], temperature)
        return alpha * hard + (1 - alpha) * temperature**2 * soft

    return loss


def _swapped_alpha(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    hard, soft = _parts(s, t, labels, temperature)
    return (1 - alpha) * hard + alpha * temperature**2 * soft


def _reversed(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    hard, _ = _parts(s, t, labels, temperature)
    back = F.kl_div((t / temperature).log_softmax(1), (s / temperature).softmax(1), reduction="batchmean")
    return alpha * hard + (1 - alpha) * temperature**2 * back


def _cases() -> list[Case]:
    generator = torch.Generator().manual_seed(14)

    def case(known: list[int], temperature: float, alpha: float, edge: str = "", advice: str = "") -> Case:
        s, t = (2 * torch.randn(len(known), 4, generator=generator, dtype=torch.double) for _ in range(2))
        return Case((s, t, torch.tensor(known), temperature, alpha), edge, advice)

    none = "a batch without any label"
    how = "The mean of no numbers is NaN: where no label is known, the hard part is 0."
    far = [
        torch.tensor(rows, dtype=torch.double)
        for rows in ([[2000.0, -1500.0, 0.0], [1.0, 2.0, 4000.0]], [[-180.0, 190.0, 0.0], [300.0, 0.0, 1.0]])
    ]
    sure, logs = "a student that is sure and wrong", "A softmax that is exactly 0 has no logarithm: use log_softmax."
    return [
        case([2, -100, -100], 2.0, 0.5),
        case([1, -100, 0, -100, -100, 3], 4.0, 0.3),
        case([0, 1, 2, 3], 1.0, 0.9),
        case([-100, -100, -100], 2.0, 0.5, none, how),
        Case((*far, torch.tensor([1, -100]), 1.5, 0.3), sure, logs),
    ]


LOSS = CodeSpec(
    "cross_modal_loss",
    "A loss for few labels",
    "code",
    "medium",
    10,
    "Write cross_modal_loss(student_logits, teacher_logits, labels, temperature, alpha) for a batch of pairs. A label "
    "of -100 is hidden. The hard part is the mean cross-entropy of the samples whose labels are known, and 0 if there "
    "are none. The soft part is the KL divergence of student and teacher at the temperature, over all samples "
    "(reduction='batchmean'), times T squared. Give back alpha times the hard part plus (1 - alpha) times the soft. "
    "It must stay finite for a student that is sure and wrong.",
    (
        "known = labels != -100 picks rows: student_logits[known].",
        "F.cross_entropy for the hard part; F.kl_div takes log-probabilities of the student and probabilities of the "
        "teacher.",
    ),
    "Labels come from a few samples, soft labels from all, in one batch. That is the whole of cross-modal distillation "
    "by logits: the networks differ in what they are given, and the loss does not know it. kdlib writes it as "
    "Logit(temperature=2, alpha=0.5, hard=data.labelled_cross_entropy).",
    stub="def cross_modal_loss(student_logits, teacher_logits, labels, temperature, alpha):\n    ...  # a few lines",
    reference=cross_modal_loss,
    cases=_cases,
    grad_arguments=("student_logits",),
    mistakes=(
        Mistake(
            "divided by all samples",
            _summed(_divided_by_all, _squared),
            "The hard part is the mean over the samples with a label. You divided by the size of the batch, so the few "
            "labels nearly vanish.",
        ),
        Mistake(
            "NaN without labels",
            _summed(_plain, _squared),
            "Right where a label is known. In a batch without any, the mean over no samples is NaN: give 0 there.",
        ),
        Mistake(
            "the teacher's class as a label",
            _summed(_by_teacher, _squared),
            "You put the teacher's class in place of hidden labels. They have no part in the hard loss here.",
        ),
        Mistake(
            "hidden labels as class 0",
            _summed(_first_class, _squared),
            "Hidden samples count as class 0 in your hard part. Leave them out.",
        ),
        Mistake(
            "soft labels of labelled samples only",
            _labelled_only,
            "Your soft part looks at the labelled samples only. The pairs without labels are what it is for.",
        ),
        *(
            Mistake(
                f"soft labels of unlabelled samples only{note}",
                _unlabelled_only(guarded),
                "Your soft part leaves out the samples with a label. The teacher answers all of them.",
            )
            for guarded, note in ((True, ", 0 without any"), (False, ""))
        ),
        Mistake(
            "without T squared",
            _summed(None, lambda _: 1.0),
            "The soft part lacks the factor T squared, so its gradient shrinks as T grows.",
        ),
        Mistake(
            "T instead of T squared",
            _summed(None, lambda temperature: temperature),
            "The factor is T squared; yours is T.",
        ),
        Mistake("alpha swapped", _swapped_alpha, "alpha is the weight of the hard part; you gave it to the soft part."),
        Mistake(
            "KL reversed",
            _reversed,
            "F.kl_div takes the log-probabilities of the student first and the probabilities of the teacher second; "
            "yours are the other way round.",
        ),
    ),
)

PERSONS = QuestionSpec(
    "persons",
    "What do ten persons show?",
    "figure",
    "medium",
    3,
    "Look at the figure of the ten persons. A colleague trains on nine of the ten, tests on the other one, finds 75 % "
    "where you had 65 %, and concludes that his network is better. What does the figure say to that?",
    (
        "How far apart are two neighbouring persons within one curve?",
        "Which differences stay when the person stays the same?",
    ),
    "Compare within persons: the same person with and without pairs. The spread between persons is larger than most "
    "differences between methods, so unpaired numbers from different persons say little. For the same reason windows "
    "of one person must not be on both sides of a split.",
    answer_key=MultipleChoice(
        (
            Option(
                "Nine persons teach a network more than six do, so theirs must be the better one",
                "It may be, but this figure cannot tell: it holds the number of training persons fixed.",
            ),
            Option(
                "Persons differ by more than that within a curve, so it may be the person",
                "Within a curve two persons can lie tens of points apart. Test both networks on the same persons.",
                correct=True,
            ),
            Option(
                "With hundreds of windows for a person, ten points cannot be chance",
                "Windows of one person are much alike. Many of them pin down this person's accuracy, and not that of "
                "the next.",
            ),
            Option(
                "Accuracy is unsuited, because the classes are not equally frequent",
                "Guessing gives about a seventh, and all curves lie far above. This is not what moves them.",
            ),
        )
    ),
)

CLASSES = QuestionSpec(
    "classes",
    "Which loss needs common classes?",
    "question",
    "easy",
    3,
    "Your teacher names 500 sounds. Your student shall tell 7 machines apart by their vibration; you have recordings "
    "of both at once, and 70 labels of machines. Which way of distilling is possible without changing the teacher?",
    (
        "What does each loss compare, and must the two things have the same size?",
        "What does a projection change: the classes, or the number of features?",
    ),
    "Logits of 500 and of 7 classes cannot be compared; layers can be, through a projection, and so can relations "
    "between the samples of a batch. The labels then train the classifier. SoundNet used the teacher's own classes: "
    "its student first learned to answer as the vision networks do, and its features were used afterwards.",
    answer_key=MultipleChoice(
        (
            Option(
                "Logits at a high temperature, which evens out the classes",
                "Temperature softens probabilities over the teacher's 500 sounds. It does not make them machines.",
            ),
            Option(
                "None: teacher and student must have the same classes",
                "Not even for logits: the student may have a second output. Layers come before the classes.",
            ),
            Option(
                "Logits, if the student's 7 classes are padded with 493 zeros",
                "Then class 3 of the machines would be compared with sound 3. The numbers fit, the meaning does not.",
            ),
            Option(
                "Features or relations, with the labels for the classifier",
                "A layer of the student is projected to the teacher's width, or distances between samples are "
                "compared: neither looks at classes.",
                correct=True,
            ),
        )
    ),
)

SHARE = QuestionSpec(
    "share",
    "How many labels are that?",
    "question",
    "easy",
    2,
    "The student sees 2 labels of each of the 7 exercises, and 1,421 pairs in all. Of how many per cent of its windows "
    "does it know the label?",
    ("How many labels are there in all?", "Per cent of the windows, not of the classes."),
    "14 of 1,421, about one window in a hundred: less than a minute of labelled movement. The pairs are nearly an "
    "hour of it, recorded without anybody saying what was done.",
    answer_key=Numeric(
        100 * 14 / 1421,
        0.02,
        mistakes=(
            (14 / 1421, "This is the share itself. The question asks for per cent."),
            (100 * 2 / 1421, "There are two labels of each class, and seven classes."),
            (100 * 7 / 1421, "There are seven classes, and two labels of each."),
            (100 * 2 / 7, "This has nothing of the 1,421 windows in it."),
            (100 - 100 * 14 / 1421, "This is the share without a label."),
        ),
    ),
)

EXERCISES = LessonSpec("14", "Can one sensor teach another?", (WRONG, LOSS, PERSONS, CLASSES, SHARE))
