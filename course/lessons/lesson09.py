"""Exercises of lesson 09, Did it work?: two networks of one method, McNemar's test, power, the winner's curse."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Option, QuestionSpec


def _letter_of_share(share: float) -> str:
    """The letter for the share of pairs that a test calls different; ValueError for what is no share."""
    if isinstance(share, bool) or not 0 <= share <= 1:
        raise ValueError("a share lies between 0 and 1")
    return "a" if share < 0.15 else "b" if share < 0.35 else "c" if share < 0.65 else "d"


TWINS = QuestionSpec(
    "twins",
    "How often does a method beat itself?",
    "prediction",
    "easy",
    2,
    "Students of one method differ by their seed alone. Every two of them, from hard labels both or from logits both, "
    "are put to McNemar's exact test on the same 10,000 test pictures. In what share of these pairs is p below 0.05? "
    "Answer with .predict(...), then call .check(share) with the share that came out.",
    (
        "What does the test take for granted: that two methods are alike, or that two networks are?",
        "Over ten seeds the accuracy of such a student has a standard deviation of 0.4 points.",
    ),
    "The level of 5 % is kept for two networks that are equally good. These are not: another seed gives a network "
    "that really is better or worse on pictures of this kind. The test finds what is there. It was asked about "
    "networks, and it knows nothing of methods.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("In one of twenty or so: that is the level of the test", ""),
            Option("In about a quarter", ""),
            Option("In about half of them", ""),
            Option("In most of them", ""),
        ),
        from_measurement=_letter_of_share,
    ),
)


def mcnemar(first: Tensor, second: Tensor) -> float:
    """The p-value of McNemar's exact test; first, second: whether a network was right, one truth value a picture."""
    from scipy import stats

    first_only = int((first & ~second).sum())
    second_only = int((second & ~first).sum())
    if first_only + second_only == 0:
        return 1.0
    return float(stats.binomtest(first_only, first_only + second_only).pvalue)


def _answers() -> list[Case]:
    def case(both: int, first_only: int, second_only: int, neither: int, edge: str = "", advice: str = "") -> Case:
        counts = (both, first_only, second_only, neither)
        pairs = [(True, True)] * both + [(True, False)] * first_only + [(False, True)] * second_only
        pairs += [(False, False)] * neither
        order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(sum(counts)))
        first, second = torch.tensor(pairs)[order].T
        return Case((first.contiguous(), second.contiguous()), edge, advice)

    same = "networks that are right on the same pictures"
    advice = "Then there is nothing to divide up, and binomtest has no answer: return 1."
    return [
        case(5, 4, 1, 2),
        case(80, 12, 4, 9),
        case(300, 20, 33, 40),
        case(50, 7, 7, 3),
        case(900, 61, 40, 99),
        case(12, 0, 0, 5, same, advice),
    ]


def _split(first: Tensor, second: Tensor) -> tuple[int, int]:
    return int((first & ~second).sum()), int((second & ~first).sum())


def _one_sided(first: Tensor, second: Tensor) -> float:
    a, b = _split(first, second)
    return float(stats.binomtest(a, a + b, alternative="greater").pvalue)


def _of_all_pictures(first: Tensor, second: Tensor) -> float:
    return float(stats.binomtest(_split(first, second)[0], len(first)).pvalue)


def _unpaired(first: Tensor, second: Tensor) -> float:
    a, b = int(first.sum()), int(second.sum())
    return float(stats.binomtest(a, a + b).pvalue)


def _agreements(first: Tensor, second: Tensor) -> float:
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    return float(stats.binomtest(both, both + neither).pvalue)


def _chi_squared(first: Tensor, second: Tensor) -> float:
    a, b = _split(first, second)
    return float(stats.chi2.sf((a - b) ** 2 / (a + b), 1))


def _chi_squared_corrected(first: Tensor, second: Tensor) -> float:
    a, b = _split(first, second)
    return float(stats.chi2.sf(max(0, abs(a - b) - 1) ** 2 / (a + b), 1))


def _share(first: Tensor, second: Tensor) -> float:
    a, b = _split(first, second)
    return a / (a + b)


def _two_samples(first: Tensor, second: Tensor) -> float:
    a, b = int(first.sum()), int(second.sum())
    return float(stats.fisher_exact([[a, len(first) - a], [b, len(second) - b]])[1])


MCNEMAR = CodeSpec(
    "mcnemar",
    "McNemar's test by hand",
    "code",
    "medium",
    8,
    "Write mcnemar(first, second): the p-value of McNemar's exact test of two networks. first and second are tensors "
    "of truth values, one a picture, in the same order: was this network right? Pictures on which both were right, or "
    "both wrong, say nothing about a difference. Count those on which only the first was right, and those on which "
    "only the second was: if the networks are equally good, the first number is that of heads in so many tosses of a "
    "fair coin. scipy.stats.binomtest(heads, tosses).pvalue is the probability of a result that is at least as "
    "unlikely. Without any toss it is 1.",
    (
        "For truth values, `first & ~second` is true where the first was right and the second was not.",
        "`from scipy import stats`. binomtest wants whole numbers of Python: int(...), around a sum.",
        "binomtest(0, 0) is an error, or NaN, so look at the number of tosses before.",
    ),
    "That is all of it: two counts and a coin. The 9,500 pictures on which two networks agree do not enter, and so a "
    "test with 500 that remain can be quite sharp. kdlib.verdict.mcnemar does the same.",
    stub="def mcnemar(first, second):\n    ...  # four or five lines",
    reference=mcnemar,
    cases=_answers,
    mistakes=(
        Mistake(
            "one-sided",
            _one_sided,
            "Your test is one-sided: it asks only whether the first is better. Leave out alternative=...: either of "
            "them could be.",
        ),
        Mistake(
            "all pictures as tosses",
            _of_all_pictures,
            "You counted every picture as a toss. Only those count on which exactly one of the two was right.",
        ),
        Mistake(
            "not paired",
            _unpaired,
            "You counted how often each was right, and lost which pictures these were. Most are the same for both: "
            "look for those where only one was right.",
        ),
        Mistake(
            "two samples",
            _two_samples,
            "This compares two networks on different pictures. Both saw the same ones, which makes the test sharper: "
            "look for pictures on which only one was right.",
        ),
        Mistake(
            "agreements",
            _agreements,
            "You counted the pictures on which both were right, or both wrong. These say nothing; take the others.",
        ),
        Mistake(
            "approximation",
            _chi_squared,
            "This is the approximation by chi-squared. It is close for many tosses; the question asks for the exact "
            "test, binomtest.",
        ),
        Mistake(
            "corrected approximation",
            _chi_squared_corrected,
            "This is the approximation by chi-squared with a continuity correction. The question asks for the exact "
            "test, binomtest.",
        ),
        Mistake(
            "share",
            _share,
            "This is the share of tosses that the first network won. The question asks how probable such a share is: "
            "binomtest(heads, tosses).pvalue.",
        ),
        Mistake(
            "complement",
            lambda first, second: 1 - mcnemar(first, second),
            "You took the p-value from 1. A small p-value speaks for a difference; it is what binomtest gives.",
        ),
    ),
)

REMEDY = QuestionSpec(
    "remedy",
    "What would help most?",
    "figure",
    "medium",
    3,
    "Look at the figure of gains that an experiment finds. You have 1,000 test pictures and five seeds, and you "
    "expect a gain of half a point. What brings you closest to finding it?",
    (
        "Follow the line of 1,000 pictures to the right. Where does it end?",
        "All seeds are tested on the same pictures. What does that do to an error that these pictures cause?",
    ),
    "A sample of test pictures is drawn once, and every seed is measured on it. More seeds average out what is special "
    "about a network, and not what is special about the pictures. So the line falls at first, and then stays.",
    answer_key=MultipleChoice(
        (
            Option(
                "Ten times as many test pictures",
                "Then the line for 10,000 pictures holds: with a few seeds more it comes down to half a point.",
                correct=True,
            ),
            Option(
                "Four times as many seeds, on the same test pictures",
                "The line for 1,000 pictures hardly falls any more: at twenty seeds it is still far above half a "
                "point.",
            ),
            Option(
                "Fourteen more methods beside this one",
                "Then each interval has to be wider, so that all of them hold together.",
            ),
            Option(
                "The best of the five seeds, for both",
                "That is a choice by the test pictures. The best of five is better than its method, by luck.",
            ),
        )
    ),
)

REPORT = QuestionSpec(
    "report",
    "What do you report?",
    "question",
    "medium",
    4,
    "You tried fifteen methods with one seed each, and looked at the test pictures. The best of them is 2.1 points "
    "ahead of hard labels. What do you report?",
    (
        "Which of the fifteen is likely to have been lucky?",
        "What would you have to see that was not used for the choice?",
    ),
    "The choice has used up these numbers. In the stored runs the winner by one seed lost a part of its lead on the "
    "other nine, half of it where there was little to win. How much, one does not know beforehand: it "
    "depends on the noise, and on how close the methods are. Fresh seeds answer it, and choosing on validation "
    "pictures avoids it.",
    answer_key=MultipleChoice(
        (
            Option(
                "2.1 points: it was measured, on pictures that no student has learned from",
                "They were not used for learning, and they were used for choosing. The largest of fifteen measurements "
                "is too large on average.",
            ),
            Option(
                "The mean gain of all fifteen, because it holds no choice",
                "That number is honest, and it answers another question: what a method taken at random gains.",
            ),
            Option(
                "What the chosen method gains with new seeds, and that fifteen were tried",
                "New seeds know nothing of the choice. (A new test set would be better still: the pictures are the "
                "same ones.) And whoever reads it must know how many were tried.",
                correct=True,
            ),
            Option(
                "2.1 points with an interval for one of fifteen comparisons",
                "Such an interval needs several seeds: with one there is no spread. And it corrects how sure you may "
                "be, not the number in its middle.",
            ),
        )
    ),
)

UNMOVED = QuestionSpec(
    "unmoved",
    "What does a temperature leave alone?",
    "question",
    "easy",
    3,
    "A student's logits are divided by one temperature, fitted on validation pictures. Which of its numbers on the "
    "test pictures stay exactly the same?",
    ("Which of them look at the order of the logits alone?",),
    "One temperature repairs how sure a network is, all answers at once and by the same factor. It cannot make a wrong "
    "answer right, and it cannot tell which answers are the wrong ones.",
    answer_key=MultipleChoice(
        (
            Option(
                "Accuracy, and agreement with the teacher",
                "Both look at the largest logit only, and dividing all by one number leaves it the largest.",
                correct=True,
            ),
            Option(
                "Accuracy, and the calibration error",
                "The second compares confidence with accuracy, and confidence moves.",
            ),
            Option(
                "Agreement, and the divergence from the teacher",
                "The divergence compares probabilities, and these move. It can even rise.",
            ),
            Option("None of them", "Two of these numbers know nothing of probabilities."),
        )
    ),
)

EXERCISES = LessonSpec("09", "Did it work?", (TWINS, MCNEMAR, REMEDY, REPORT, UNMOVED))
