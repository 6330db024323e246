"""Exercises of lesson 12, Do several teachers teach better?: a bad teacher, weights, votes by hand, two matrices."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Numeric, Option, QuestionSpec


def _letter_of_gain(points: float) -> str:
    """The letter for the points that the mean is above the best single teacher; ValueError for no number of points."""
    points = float(points)
    if not math.isfinite(points) or abs(points) > 100:
        raise ValueError("a difference of two accuracies lies between -100 and 100 points")
    if points <= -5:
        return "a"
    return "b" if points < -0.5 else "c" if points <= 0.5 else "d"


BAD = QuestionSpec(
    "bad",
    "One bad teacher among five",
    "prediction",
    "easy",
    2,
    "Five teachers have learned 1,000 pictures each; one of them from labels of which 80 % were drawn at random. How "
    "many of the validation pictures does the mean of all five probabilities get right, beside the best single "
    "teacher? Answer with .predict(...), measure, then call .check(points) with the mean's accuracy minus the best "
    "one's, in points (hundredths).",
    (
        "What does a network say that has been told contradictory things about everything: something wrong, or little?",
        "A mean of probabilities listens more to whoever is sure. Who will be sure here?",
    ),
    "Labels drawn at random point in all directions, so the network that learned them is unsure, and its probabilities "
    "are flat. In a mean of probabilities a flat answer says little. (A teacher that is wrong and sure is another "
    "matter: the lesson tries one, too.)",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("At least 5 points fewer", ""),
            Option("A little fewer", ""),
            Option("As many, within half a point", ""),
            Option("More than half a point more", ""),
        ),
        from_measurement=_letter_of_gain,
    ),
)


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """How far each teacher is relied on for each sample."""
    log_probabilities = logits.log_softmax(dim=2)
    loss = -log_probabilities[:, torch.arange(len(labels)), labels]
    return (1 - loss.softmax(dim=0)) / (len(logits) - 1)


def _given() -> list[Case]:
    generator = torch.Generator().manual_seed(12)

    def case(teachers: int, samples: int, classes: int, scale: float = 2.0, edge: str = "", advice: str = "") -> Case:
        logits = scale * torch.randn(teachers, samples, classes, generator=generator, dtype=torch.double)
        return Case((logits, torch.randint(0, classes, (samples,), generator=generator)), edge, advice)

    large = "large logits"
    stable = (
        "exp of a large number is infinite, of a logit as of a loss. Take F.cross_entropy or F.log_softmax for the "
        "losses, and .softmax(dim=0) of them, which takes off the largest first."
    )
    example = torch.tensor([[[2.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]], [[0.0, 0.0, 0.0]]]).double()
    return [
        Case((example, torch.tensor([0]))),
        case(3, 6, 4),
        case(5, 4, 10),
        case(2, 3, 3),
        case(3, 4, 4, 900.0, large, stable),
    ]


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(one, labels, reduction="none") for one in logits])


def _entropies(logits: Tensor) -> Tensor:
    return -(logits.softmax(dim=2) * logits.log_softmax(dim=2)).sum(dim=2)


CONFIDENCE = CodeSpec(
    "confidence",
    "How far to rely on each teacher",
    "code",
    "medium",
    8,
    "Write confidence(logits, labels) for logits of K teachers, K x B x C, and labels, B: the weights K x B of "
    "CA-MKD. The loss of teacher k for a sample is its cross-entropy with the label. Take the softmax of these losses "
    "over the teachers, subtract it from 1, and divide by K - 1. It must stay right for large logits.",
    (
        "Three lines: the losses (K x B), their softmax over the teachers, and the weights.",
        "F.cross_entropy(one, labels, reduction='none') gives the losses of one teacher; torch.stack joins them.",
    ),
    "The weights of a sample sum to 1, because K shares that sum to 1 are each subtracted from 1, which leaves K - 1. "
    "None exceeds 1 / (K - 1): with three teachers even a perfect one gets half of the weight at most. This corrects "
    "the plain mean gently, and does not choose the best. kdlib has it as ensembles.confidence_weights.",
    stub="def confidence(logits, labels):\n    ...  # three lines",
    reference=confidence,
    cases=_given,
    mistakes=(
        Mistake(
            "not subtracted from 1",
            lambda logits, labels: _losses(logits, labels).softmax(dim=0),
            "This gives the largest weight to the teacher with the largest loss. Subtract the softmax from 1.",
        ),
        Mistake(
            "not divided",
            lambda logits, labels: 1 - _losses(logits, labels).softmax(dim=0),
            "The weights of a sample sum to K - 1. Divide by it, so that they sum to 1.",
        ),
        Mistake(
            "divided by K",
            lambda logits, labels: (1 - _losses(logits, labels).softmax(dim=0)) / len(logits),
            "You divided by K. Then the weights of a sample sum to less than 1: divide by K - 1.",
        ),
        Mistake(
            "over the samples",
            lambda logits, labels: (1 - _losses(logits, labels).softmax(dim=1)) / (len(logits) - 1),
            "Your softmax runs over the samples. Teachers compete for each sample: take it over dimension 0.",
        ),
        Mistake(
            "one weight for all samples",
            lambda logits, labels: ((1 - _losses(logits, labels).mean(dim=1).softmax(dim=0)) / (len(logits) - 1))[
                :, None
            ].expand(-1, len(labels)),
            "You averaged the losses over the batch. Each sample has weights of its own: reduction='none'.",
        ),
        Mistake(
            "one weight for each teacher",
            lambda logits, labels: (1 - _losses(logits, labels).mean(dim=1).softmax(dim=0)) / (len(logits) - 1),
            "You averaged the losses over the batch. Each sample has weights of its own: reduction='none'.",
        ),
        Mistake(
            "the softmax of minus the loss",
            lambda logits, labels: (-_losses(logits, labels)).softmax(dim=0),
            "A softmax of the negative losses is another rule, which can give one teacher all the weight. CA-MKD takes "
            "1 minus the softmax of the losses, divided by K - 1.",
        ),
        Mistake(
            "entropy instead of the label",
            lambda logits, labels: (1 - _entropies(logits).softmax(dim=0)) / (len(logits) - 1),
            "This is the entropy of the teachers, which does not know the label: whoever is sure gets weight, right or "
            "wrong. Take the cross-entropy with the label.",
        ),
        Mistake(
            "the probability instead of the loss",
            lambda logits, labels: (1 - (-_losses(logits, labels)).exp().softmax(dim=0)) / (len(logits) - 1),
            "You took the softmax of the label's probabilities. It is taken of the losses, their negative logarithms.",
        ),
    ),
)

COUNTED = QuestionSpec(
    "counted",
    "Count the votes, then don't",
    "question",
    "easy",
    3,
    "Three teachers look at a picture that is a shirt or a coat. Their probabilities for the shirt are 0.9, 0.4 and "
    "0.45. The vote says coat, two to one. What is the mean of their probabilities for the shirt?",
    (
        "No logarithm and no temperature is needed.",
        "Add the three numbers, and divide.",
    ),
    "(0.9 + 0.4 + 0.45) / 3 = 0.583: the mean says shirt. Two teachers lean a little to the other side, one is sure, "
    "and a vote throws away how sure they are. With shares of votes as soft labels the student would be told 0.33. The "
    "mean of logits multiplies odds: the cube root of 9 x 2/3 x 9/11 is 1.7, which is a probability of 0.63.",
    answer_key=Numeric(
        7 / 12,
        0.01,
        mistakes=(
            (1 / 3, "This is the share of the votes. The mean of the probabilities keeps how sure each of them is."),
            (5 / 12, "This is the mean for the coat."),
            (0.6295, "This is the mean of the logits, turned into a probability. The question is simpler than that."),
            (1.75, "This is the sum. Divide it by the number of teachers."),
            (0.45, "This is the median, the one in the middle."),
            (0.545, "This is the geometric mean of the three, before the coat's is brought beside it."),
            (58.33, "This is in per cent; give the probability, between 0 and 1."),
        ),
    ),
)

MATRICES = QuestionSpec(
    "matrices",
    "What is there to average?",
    "figure",
    "medium",
    3,
    "Look at the figure with two matrices. Both groups are averaged in the same way. Why does the mean lift one group "
    "more than the other?",
    (
        "An average can only mend what its members do not all do alike.",
        "Compare the numbers beside the diagonal. How often would a second opinion be another one?",
    ),
    "Where two networks agree on nearly everything, they also share most of their mistakes, and a mistake that all "
    "share survives every average. Networks that learned from other pictures agree less, because they miss different "
    "things. A good ensemble needs members that are good and that err apart; neither alone is enough.",
    answer_key=MultipleChoice(
        (
            Option(
                "The members of that group are better one by one",
                "In both groups each has learned 1,000 pictures and is about as good. Good members do not lift a mean.",
            ),
            Option(
                "A mean of probabilities suits unsure networks and harms sure ones",
                "It listens more to whoever is sure, in both groups. Without disagreement there is nothing to gain by "
                "any mean.",
            ),
            Option(
                "Three members of the same pictures are too few for a mean to work",
                "More members of the same kind would agree as much, and add little. Both groups have three here.",
            ),
            Option(
                "Its members agree less, so that their mistakes can cancel",
                "What all of them get wrong in the same way, no mean can mend; what only one gets wrong, the others "
                "outvote. Members that learned from different pictures err apart more often.",
                correct=True,
            ),
        )
    ),
)

EXERCISES = LessonSpec("12", "Do several teachers teach better?", (BAD, CONFIDENCE, COUNTED, MATRICES))
