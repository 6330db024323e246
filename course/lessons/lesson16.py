"""Exercises of lesson 16, Which claims hold?: strange pictures, inherited mistakes, the bill, what rows leave open."""

from __future__ import annotations

import torch
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Numeric, Option, QuestionSpec

STRANGE = (25.0, 55.0, 75.0)  # per cent: where one letter ends and the next begins


def _letter_of_accuracy(accuracy: float) -> str:
    """The letter for a student's accuracy in per cent; ValueError for what is no percentage."""
    accuracy = float(accuracy)
    if not 0 <= accuracy <= 100:
        raise ValueError("an accuracy in per cent lies between 0 and 100")
    return "abcd"[sum(accuracy >= limit for limit in STRANGE)]


SHAPES = QuestionSpec(
    "shapes",
    "Clothes from rectangles",
    "prediction",
    "easy",
    2,
    "A student sees 2,000 drawings of rectangles and ellipses, and what a teacher for clothes answers to each. It sees "
    "no piece of clothing and no label. How many of the test pictures, all of clothes, will it name rightly? (Guessing "
    "gives 10 %; with real pictures a student gets about 85.) Answer with .predict(...), then call .check(accuracy).",
    (
        "What must a picture have so that the teacher's answer to it says something? Must it be sure?",
        "An edge is an edge, on a rectangle as on a sleeve. But which classes will the teacher name at all?",
    ),
    "The teacher is a function of pixels, and its answers describe this function wherever it is asked. Pictures with "
    "edges, areas and grey values that occur on clothes ask it where it matters; noise asks it where no picture is.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("Fewer than 25 in 100", ""),
            Option("25 to 55 in 100", ""),
            Option("55 to 75 in 100", ""),
            Option("75 or more in 100", ""),
        ),
        from_measurement=_letter_of_accuracy,
    ),
)


def inherited(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    """How many more of the teacher's mistakes the student repeats than a control does, as a share of these mistakes."""
    wrong = teacher != labels
    if not wrong.any():
        return 0.0
    repeated = [(one == teacher)[wrong].double().mean() for one in (student, control)]
    return float(repeated[0] - repeated[1])


def _answers() -> list[Case]:
    generator = torch.Generator().manual_seed(16)

    def case(size: int, classes: int, wrong: float, edge: str = "", advice: str = "") -> Case:
        labels = torch.randint(classes, (size,), generator=generator)

        def mistaken(right: Tensor, share: float) -> Tensor:
            shift = torch.randint(1, classes, (size,), generator=generator)
            there = torch.rand(size, generator=generator) < share
            return torch.where(there, (right + shift) % classes, right)

        teacher = mistaken(labels, wrong)
        return Case((mistaken(teacher, 0.3), mistaken(labels, 0.4), teacher, labels), edge, advice)

    student, control, *rest = case(90, 6, 0.3).arguments
    none = "a teacher without a mistake"
    example = Case(tuple(map(torch.tensor, ([0, 1, 1, 0], [0, 1, 2, 2], [0, 1, 1, 1], [0, 1, 2, 2]))))
    return [
        example,
        case(60, 4, 0.3),
        case(200, 10, 0.2),
        Case((control, student, *rest)),  # exchanged, so that the answer is negative
        case(40, 5, 0.0, none, "There is nothing to repeat then: give 0.0 back before you divide."),
    ]


def _agreement(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    return ((student == teacher).double().mean() - (control == teacher).double().mean()).item()


def _without_control(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    wrong = teacher != labels
    return (student == teacher)[wrong].double().mean().item() if wrong.any() else 0.0


def _any_mistake(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    wrong = teacher != labels
    if not wrong.any():
        return 0.0
    return ((student != labels)[wrong].double().mean() - (control != labels)[wrong].double().mean()).item()


def _of_all(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    wrong = teacher != labels
    return ((wrong & (student == teacher)).double().mean() - (wrong & (control == teacher)).double().mean()).item()


def _swapped(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    return -inherited(student, control, teacher, labels)


def _where_right(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    right = teacher == labels
    return ((student == teacher)[right].double().mean() - (control == teacher)[right].double().mean()).item()


def _of_own_mistakes(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    shares = []
    for one in (student, control):
        wrong = one != labels
        shares.append((one == teacher)[wrong].double().mean().item() if wrong.any() else 0.0)
    return shares[0] - shares[1]


def _in_percent(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    return 100 * inherited(student, control, teacher, labels)


INHERITED = CodeSpec(
    "inherited",
    "What was inherited?",
    "code",
    "medium",
    8,
    "Write inherited(student, control, teacher, labels). All four are classes of the same pictures: what a student of "
    "the teacher answers, what a control that never met the teacher answers, the teacher's answers, and the truth. Of "
    "the pictures that the teacher gets wrong, which share does the student answer with the very same class? Give back "
    "this share less that of the control; 0.0 if the teacher makes no mistake.",
    (
        "First a mask of the pictures that the teacher gets wrong. Everything else happens within it.",
        "(student == teacher)[wrong].double().mean() is one share; the control's is made in the same way.",
    ),
    "Without the control the number looks frightening and says little: some pictures mislead everybody. In lesson 09 "
    "students by hard labels repeat nearly two thirds of the mistakes of a teacher that they never met. And a student "
    "that is more accurate makes other mistakes, so the difference alone does not prove that any was handed down.",
    stub="def inherited(student, control, teacher, labels):\n    ...  # about five lines",
    reference=inherited,
    cases=_answers,
    mistakes=(
        Mistake(
            "agreement on all pictures",
            _agreement,
            "This is agreement on all pictures. Most of it is that all are right; ask only where the teacher is wrong.",
        ),
        Mistake(
            "without the control",
            _without_control,
            "This is the student's share alone. Some pictures mislead everybody: take the control's share off.",
        ),
        Mistake(
            "any mistake",
            _any_mistake,
            "You counted pictures on which the student is wrong in any way. Repeating a mistake is to give the same "
            "wrong class: compare with the teacher, not with the labels.",
        ),
        Mistake(
            "divided by all pictures",
            _of_all,
            "You divided by the number of all pictures. The share is of the teacher's mistakes.",
        ),
        Mistake("the wrong way round", _swapped, "The sign is turned: it is the student's share less the control's."),
        Mistake(
            "where the teacher is right",
            _where_right,
            "Your mask holds the pictures that the teacher gets right. The question is about the others.",
        ),
        Mistake(
            "of each one's own mistakes",
            _of_own_mistakes,
            "You took the mistakes of the student and of the control. Both are to be asked about the teacher's, so "
            "that they are asked about the same pictures.",
        ),
        Mistake("in per cent", _in_percent, "This is in per cent. A share lies between -1 and 1 here."),
    ),
)

BILL = QuestionSpec(
    "bill",
    "The teacher's answers on the bill",
    "question",
    "easy",
    4,
    "A training step costs about three times the multiplications of a forward pass: one forward, two backward. The "
    "student has 1.0 million MACs for a picture, the teacher 9.3 million, and it is asked once about each picture; its "
    "answers are stored. How many passes of the student over its pictures cost as much as these answers?",
    (
        "What does one pass of the student cost for each picture, and what does the answer cost?",
        "The answer is one forward pass of the teacher. A pass of training is three forward passes of the student.",
    ),
    "9.3 / (3 x 1.0) = 3.1, and 3.0 with the exact counts. So stored answers are cheap beside a long training, and "
    "dear beside a short one. Each new augmented view of a picture is asked about anew. And somebody trained the "
    "teacher: whether that belongs on your bill depends on what else it is used for.",
    answer_key=Numeric(
        3.05,
        0.025,  # 3.02 by the exact counts that the lesson prints, 3.1 by the rounded ones
        mistakes=(
            (9.3, "That is the ratio of two forward passes. A pass of training costs three of the student's."),
            (27.9, "You multiplied by three. The three belong to the student's pass of training, so they divide."),
            (
                0.3226,
                "You divided the other way round. How many times does a pass of the student fit into the answers?",
            ),
            (4.65, "You counted two forward passes for a step. Backward costs about two, so a step costs three."),
            (1.0, "Look at the sizes: the answer of the teacher costs more than a forward pass of the student."),
        ),
    ),
)

ROWS = QuestionSpec(
    "rows",
    "What does the figure not say?",
    "figure",
    "medium",
    3,
    "Look at the figure with the pictures of something else. The intervals come from several seeds. Which of these "
    "does the figure leave open?",
    (
        "What was different from seed to seed, and what was the same for all?",
        "An interval covers what was varied. The rows of the digits and of the made pictures have the same 2,000 "
        "pictures with every seed.",
    ),
    "A seed stands for the initial weights, the order, and for most rows also for the pictures. The set of digits is "
    "one set, and the teacher is one network. Whatever was not varied is not in the interval: a statement about "
    "digits as such, or about teachers as such, would need other sets of digits and other teachers.",
    answer_key=MultipleChoice(
        (
            Option(
                "Whether noise teaches less than labels",
                "It does, by tens of points, and the interval is far from 0.",
            ),
            Option(
                "Whether digits lose with another set of digits, too",
                "All seeds have the same digits, so the interval knows nothing of other sets.",
                correct=True,
            ),
            Option(
                "Whether digits lose with another order of the pictures, too",
                "The order differs from seed to seed, so what it does is part of the scatter and of the interval.",
            ),
            Option(
                "Whether digits lose with other initial weights, too",
                "They differ from seed to seed too, and are part of the scatter.",
            ),
        )
    ),
)

EXERCISES = LessonSpec("16", "Which claims hold?", (SHAPES, INHERITED, BILL, ROWS))
