"""Exercises of lesson 08, Distil a ResNet: intervals of paired seeds, what an interval permits to say, the bill."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from scipy import stats
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Option, QuestionSpec

KINDS = ("logits", "features", "relations", "both")


def _letter_of_largest(gains: Mapping[str, float]) -> str:
    """The letter of the kind with the largest mean gain; ValueError where one was not measured."""
    if not all(math.isfinite(gains[kind]) for kind in KINDS):
        raise ValueError("a gain is missing")
    return "abcd"[max(range(len(KINDS)), key=lambda index: float(gains[KINDS[index]]))]


AHEAD = QuestionSpec(
    "ahead",
    "Which teaching gains most?",
    "prediction",
    "easy",
    3,
    "Ten seeds, equal budgets, settings chosen on the validation split: which kind of teaching has the largest mean "
    "gain over hard labels in the study of this pair? Answer with .predict(...), read the study, then call "
    ".check(gains) with the four mean gains.",
    (
        "What can 155 steps make of ten softened numbers for each picture, and what of maps with thousands?",
        "Two kinds together say more, and have more settings to choose with the same eleven trials. It may be close.",
    ),
    "The question was only about the largest mean, and a mean is not a verdict: kinds a tenth of a point apart may "
    "change places with other seeds. With other budgets the order is different, as the study of the smaller student "
    "shows.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("Logits", ""),
            Option("Features", ""),
            Option("Relations", ""),
            Option("Logits and one of the others together", ""),
        ),
        from_measurement=_letter_of_largest,
    ),
)


def half_width(ours: Tensor, theirs: Tensor) -> float:
    """Half of the 95 % interval of the mean gain, for accuracies paired by seed."""
    from scipy import stats

    gains = ours - theirs
    t = stats.t.ppf(0.975, len(gains) - 1)
    return float(t * gains.std() / len(gains) ** 0.5)


def _accuracies() -> list[Case]:
    generator = torch.Generator().manual_seed(81)

    def case(seeds: int, gain: float, apart: float, together: float) -> Case:
        shared = together * torch.randn(seeds, generator=generator, dtype=torch.double)
        noise = apart * torch.randn(2, seeds, generator=generator, dtype=torch.double)
        return Case((84 + gain + shared + noise[0], 84 + shared + noise[1]))

    example = torch.tensor([85.0, 86.0, 84.0]).double(), torch.tensor([83.0, 85.0, 81.0]).double()
    return [Case(example), case(5, 1.0, 0.3, 1.0), case(10, 0.2, 0.5, 2.0), case(5, -1.0, 1.0, 0.1), case(2, 1, 1, 1)]


def _half(gains: Tensor, quantile: float = 0.975, freedom: int = -1, correction: int = 1) -> Tensor:
    return stats.t.ppf(quantile, len(gains) + freedom) * gains.std(correction=correction) / len(gains) ** 0.5


INTERVAL = CodeSpec(
    "half_width",
    "An interval by hand",
    "code",
    "medium",
    8,
    "Write half_width(ours, theirs): half the width of the 95 % interval of the mean gain. ours and theirs are tensors "
    "with one accuracy for each seed, paired: place 0 of both is the same seed. The interval is the mean of the gains "
    "plus and minus t s / sqrt(n), with the standard deviation s of the n gains, and t the 0.975 quantile of Student's "
    "distribution (a statistician's pen name): scipy.stats.t.ppf(0.975, n - 1).",
    (
        "First take the gains, seed by seed. Everything after that is about this one tensor.",
        "`from scipy import stats`, then stats.t.ppf(0.975, n - 1) is t: 2.78 for five seeds.",
        "gains.std() divides by n - 1, as it should.",
    ),
    "Pairing takes out what both students of a seed share: the same pictures and the same start. With five seeds t is "
    "2.78 instead of the 1.96 that is right for many. Where m methods are compared at once, the study takes the "
    "quantile 1 - 0.025 / m instead of 0.975.",
    stub="def half_width(ours, theirs):\n    ...  # three lines",
    reference=half_width,
    cases=_accuracies,
    mistakes=(
        Mistake(
            "not paired",
            lambda a, b: stats.t.ppf(0.975, len(a) - 1) * ((a.var() + b.var()) / len(a)) ** 0.5,
            "You added the variances of the two, as if their seeds had nothing in common. Subtract seed by seed, and "
            "take the standard deviation of the gains.",
        ),
        Mistake(
            "two groups",
            lambda a, b: stats.t.ppf(0.975, 2 * len(a) - 2) * ((a.var() + b.var()) / len(a)) ** 0.5,
            "This is the interval of two groups that have nothing in common, with 2n - 2 degrees of freedom. The seeds "
            "are paired: subtract seed by seed, and take the standard deviation of the n gains, and n - 1.",
        ),
        Mistake(
            "normal quantile",
            lambda a, b: stats.norm.ppf(0.975) * (a - b).std() / len(a) ** 0.5,
            "You took 1.96, which is right for many seeds. For few, the standard deviation itself is uncertain: "
            "stats.t.ppf(0.975, n - 1).",
        ),
        Mistake(
            "without the root of n",
            lambda a, b: _half(a - b) * len(a) ** 0.5,
            "This is how far a single seed lies off. The mean of n seeds is more certain: divide by sqrt(n).",
        ),
        Mistake(
            "divided by n",
            lambda a, b: _half(a - b) / len(a) ** 0.5,
            "You divided by n. The standard deviation of a mean shrinks with the root of n.",
        ),
        Mistake(
            "biased deviation",
            lambda a, b: _half(a - b, correction=0),
            "Your standard deviation divides by n. Divide by n - 1, as a tensor's .std() does when you leave it "
            "alone (NumPy's needs ddof=1): the mean was taken from the same numbers.",
        ),
        Mistake(
            "one-sided",
            lambda a, b: _half(a - b, quantile=0.95),
            "The 0.95 quantile leaves 5 % on each side. For 95 % in the middle it is 0.975.",
        ),
        Mistake(
            "degrees of freedom",
            lambda a, b: _half(a - b, freedom=0),
            "The degrees of freedom are n - 1: one is used up by the mean.",
        ),
        Mistake(
            "degrees of freedom of two groups",
            lambda a, b: _half(a - b, freedom=len(a) - 2),
            "2n - 2 degrees of freedom are those of two groups that have nothing in common. There are n gains: n - 1.",
        ),
        Mistake(
            "whole width",
            lambda a, b: 2 * _half(a - b),
            "This is the whole width. The question asks for half of it: the number after the plus-minus.",
        ),
        Mistake(
            "variance",
            lambda a, b: _half(a - b) * (a - b).std(),
            "You took the variance. Take its root, the standard deviation.",
        ),
    ),
)

STRADDLES = QuestionSpec(
    "straddles",
    "What may you say?",
    "figure",
    "medium",
    3,
    "Look at the study's figure of gains. Suppose that a method's mean gain is +0.4 points and its interval goes from "
    "-0.3 to +1.1. Which sentence may you write about it?",
    (
        "The interval holds the gains that the seeds do not contradict. Is zero among them? Is one point?",
        "Absence of evidence is not evidence of absence.",
    ),
    "The verdict INCONCLUSIVE is about the evidence and not about the method. More seeds make the interval narrower: "
    "for a single comparison thirteen instead of five halve it, and from there on it takes four times as many.",
    answer_key=MultipleChoice(
        (
            Option(
                "It helps, by 0.4 points, with an error of 0.7 at most",
                "Zero lies in the interval: it would be no surprise if the method did nothing.",
            ),
            Option(
                "It does not help: zero lies in its interval",
                "Gains of up to 1.1 points lie in the interval, too: the seeds did not exclude them.",
            ),
            Option(
                "No gain is shown, but one of a point is possible",
                "That is all the interval says, and it is worth saying, with the number of seeds.",
                correct=True,
            ),
            Option(
                "It helps with a probability of 95 %",
                "The 95 % belong to the procedure: of many such intervals 95 % hold their true gain. Of this one it "
                "says nothing like that.",
            ),
        )
    ),
)


def pays_after(training: int, teacher: int, student: int) -> float:
    """How many pictures the student must answer before its training has paid off in MACs."""
    import math

    saved = teacher - student
    return math.ceil(training / saved) if saved > 0 else math.inf


def _bills() -> list[Case]:
    dearer = "a student that costs as much as its teacher, or more"
    advice = "Then nothing is ever saved: math.inf."
    return [
        Case((1000, 30, 10)),
        Case((1001, 30, 10)),
        Case((1020, 30, 10)),
        Case((2_700_000_000_000, 290_000_000, 122_000_000)),
        Case((500, 7, 4)),
        Case((1000, 10, 10), dearer, advice),
        Case((1000, 10, 30), dearer, advice),
    ]


PAYS = CodeSpec(
    "pays_after",
    "When has it paid off?",
    "code",
    "easy",
    5,
    "Distilling costs MACs before it saves any. Write pays_after(training, teacher, student): the least whole number "
    "of pictures after which the student has saved at least what its training cost. training is the MACs of the whole "
    "training, teacher and student are the MACs of one picture. If the student saves nothing, the answer is math.inf.",
    (
        "What does the student save with each picture?",
        "math.ceil rounds up to a whole number: after 50.1 pictures means after 51.",
    ),
    "For a network that answers millions of pictures a day the training is soon forgotten. For one that answers a "
    "thousand in its life it never pays; then the reason for the student must be another: latency, memory, battery.",
    stub="def pays_after(training, teacher, student):\n    ...  # two or three lines",
    reference=pays_after,
    cases=_bills,
    mistakes=(
        Mistake(
            "rounded down",
            lambda c, t, s: math.floor(c / (t - s)) if t > s else math.inf,
            "You rounded down: after that many pictures a little is still owed. math.ceil rounds up.",
        ),
        Mistake(
            "rounded to the nearest",
            lambda c, t, s: round(c / (t - s)) if t > s else math.inf,
            "You rounded to the nearest number: after 50.1 pictures a little is still owed. math.ceil rounds up.",
        ),
        Mistake(
            "one more",
            lambda c, t, s: c // (t - s) + 1 if t > s else math.inf,
            "Where the division leaves no remainder, you count one picture too many. math.ceil rounds up where needed.",
        ),
        Mistake(
            "not rounded",
            lambda c, t, s: c / (t - s) if t > s else math.inf,
            "The question asks for a whole number: math.ceil.",
        ),
        Mistake(
            "the student's cost",
            lambda c, t, s: math.ceil(c / s),
            "You divided by what the student costs. Divide by what it saves: teacher minus student.",
        ),
        Mistake(
            "the teacher's cost",
            lambda c, t, s: math.ceil(c / t),
            "You divided by what the teacher costs. The student is not free: divide by teacher minus student.",
        ),
        Mistake(
            "a ratio",
            lambda c, t, s: math.ceil(c / (t / s)),
            "The ratio teacher / student says how many times cheaper a picture is, and has no MACs in it. What is "
            "saved with each picture is the difference.",
        ),
        Mistake(
            "a negative number of pictures",
            lambda c, t, s: math.ceil(c / (t - s)) if t != s else math.inf,
            "It is right for a student that is cheaper. For one that is dearer than its teacher you get a negative "
            "number of pictures: the answer is math.inf.",
        ),
        Mistake(
            "divided by zero",
            lambda c, t, s: math.ceil(c / (t - s)),
            "The formula is right where the student is cheaper. Where it is not, nothing is ever saved: math.inf.",
        ),
    ),
)

CHOOSE = QuestionSpec(
    "choose",
    "Choose, and defend it",
    "question",
    "medium",
    5,
    "You are to shrink a classifier that runs at another company: for each picture you send, it answers with its "
    "probabilities, and nothing else. You have a thousand labelled pictures, a few hours on one machine, and the study "
    "of this lesson. Which plan can you defend before your team?",
    (
        "What does each method need from the teacher? Cross out what cannot be done at all.",
        "And which of the rest is judged fairly: over seeds, against a student without a teacher that was tuned as "
        "well, and by pictures that chose nothing?",
    ),
    "log p is the logits up to a number that is the same for all classes, and softmax does not notice it: so a "
    "temperature can be applied to probabilities afterwards. (If the service rounds them, small ones become 0 and "
    "their logarithm is infinite: limit them from below.) Features and relations need a teacher you can open.",
    answer_key=MultipleChoice(
        (
            Option(
                "Features, with settings by validation and ten seeds against hard labels",
                "The teacher's layers are out of your reach; all you get are probabilities.",
            ),
            Option(
                "Try every method once on the test pictures, and take the best",
                "The best of many single runs is partly the luckiest, and the test pictures have then chosen it: their "
                "accuracy says too much.",
            ),
            Option(
                "Label smoothing: it costs no answers, and with a small CNN the study finds it as good as logits",
                "There (in data/results, not in this lesson) the two are not told apart, which does not mean equal. "
                "With 1,000 pictures logits are ahead of it: for the ResNet-8 by "
                "1.05 points, for the ResNet-18 by 1.6. It is good as a control.",
            ),
            Option(
                "Logits from log-probabilities, tuned by validation, ten seeds against hard labels",
                "It can be done with what you get, and it is judged as the study judges.",
                correct=True,
            ),
        )
    ),
)

EXERCISES = LessonSpec("08", "Distil a ResNet", (AHEAD, INTERVAL, STRADDLES, PAYS, CHOOSE))
