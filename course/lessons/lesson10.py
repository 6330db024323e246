"""Exercises of lesson 10, Which teacher?: what predicts a good one, an order made a number, and many comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Numeric, Option, QuestionSpec

MEASURES = {"accuracy": "a", "size": "b", "confidence": "c", "calibration": "d"}


def _letter_of_taus(taus: Mapping[str, tuple[float, float, float]]) -> str:
    """The letter of the measure whose tau is furthest from zero, among those whose interval leaves zero out; else "e".

    taus: value, low and high by measure. Raises ValueError for other measures than those four.
    """
    if set(taus) != set(MEASURES):
        raise ValueError(f"the taus of {', '.join(MEASURES)} are needed")
    clear = {name: abs(value) for name, (value, low, high) in taus.items() if low > 0 or high < 0}
    return MEASURES[max(clear, key=lambda name: clear[name])] if clear else "e"


BEST = QuestionSpec(
    "best",
    "What makes a good teacher?",
    "prediction",
    "easy",
    2,
    "Several teachers, and for each what its students gained over hard labels. Four numbers are known of a teacher "
    "before it teaches. Put the teachers in order by one of these four numbers, and then in order by the gains. For "
    "which number are the two orders most alike, or most nearly reversed? (Their tau is 1 if they are the same, and -1 "
    "if one is the reverse of the other.) Answer with .predict(...), look at the rows, then call .check(taus).",
    (
        "Some of them have seen fewer pictures, and one was badly taught. Would their students notice?",
        "Two of them are the same network, one of them less confident than the other.",
    ),
    "The letter whose tau is furthest from zero is an answer about these networks, one set of data and one student. "
    "The interval says how far other seeds might move it; of other teachers it knows nothing.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("Its accuracy", ""),
            Option("Its size", ""),
            Option("How confident it is", ""),
            Option("Its calibration error", ""),
            Option("None: for all four, the interval of tau holds zero", ""),
        ),
        from_measurement=_letter_of_taus,
    ),
)


def tau(x: list[float], y: list[float]) -> float:
    """Kendall's tau of two lists of different numbers: agreeing pairs minus disagreeing ones, over all pairs."""
    total, pairs = 0, [(i, j) for j in range(len(x)) for i in range(j)]
    for i, j in pairs:
        product = (x[i] - x[j]) * (y[i] - y[j])
        total += (product > 0) - (product < 0)
    return total / len(pairs)


def _orders() -> list[Case]:
    same, other = (1.0, 2.0, 3.0, 4.0), (2.0, 1.0, 3.0, 4.0)
    accuracy = (93.9, 91.2, 84.1, 88.7, 92.6, 90.3)
    gain = (1.1, 1.3, -0.4, 0.6, 0.9, 0.7)
    skewed = (0.1, 0.2, 0.3, 0.4, 1000.0)
    far = "one number far from all others"
    pairs = (accuracy, gain), (same, other), (same, same[::-1]), ((5.0, -1.0, 2.0), (-3.0, -2.0, -9.0))
    ordinary = [Case(([*x], [*y]), display=f"{[*x]}, {[*y]}") for x, y in pairs]
    x, y = [*skewed], [3.0, 1.0, 2.0, 5.0, 4.0]
    advice = "Only the order counts: compare, do not average."
    return [*ordinary, Case((x, y), far, advice, f"{x}, {y}")]


def _pearson(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    product = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return product / (sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)) ** 0.5


def _ranks(values: list[float]) -> list[float]:
    return [float(sum(other < one for other in values)) for one in values]


def _score(x: list[float], y: list[float], pairs: list[tuple[int, int]]) -> int:
    products = [(x[i] - x[j]) * (y[i] - y[j]) for i, j in pairs]
    return sum((one > 0) - (one < 0) for one in products)


def _all_pairs(count: int) -> list[tuple[int, int]]:
    return list(combinations(range(count), 2))


def _share(x: list[float], y: list[float]) -> float:
    pairs = _all_pairs(len(x))
    return sum((x[i] - x[j]) * (y[i] - y[j]) > 0 for i, j in pairs) / len(pairs)


TAU = CodeSpec(
    "tau",
    "An order made a number",
    "code",
    "medium",
    8,
    "Write tau(x, y), Kendall's tau of two lists of numbers, without ties. Take every pair of places i < j. The pair "
    "agrees if x and y order it the same way, and disagrees if they order it the other way. tau is the number of "
    "agreeing pairs minus that of disagreeing ones, divided by the number of all pairs: 1 for the same order, -1 for "
    "the opposite one.",
    (
        "A pair agrees where (x[i] - x[j]) * (y[i] - y[j]) is above 0.",
        "itertools.combinations(range(len(x)), 2) gives every pair once; n things have n (n - 1) / 2 pairs.",
    ),
    "tau knows only who comes before whom. So it does not matter that sizes run over three powers of ten while "
    "accuracies differ by a few points, and how far off an extreme teacher lies does not matter, as it does for "
    "Pearson's r. Its place in the order does: one teacher of n stands in 2/n of all pairs, and can make a small tau "
    "alone. scipy.stats.kendalltau is the tested twin, which also knows what to do with ties.",
    stub="def tau(x, y):\n    ...  # about six lines",
    reference=tau,
    cases=_orders,
    mistakes=(
        Mistake("pearson", _pearson, "This is Pearson's r, which measures how straight a line is. tau counts pairs."),
        Mistake(
            "spearman",
            lambda x, y: _pearson(_ranks(x), _ranks(y)),
            "This is Spearman's correlation, of ranks. tau counts pairs that agree and pairs that disagree.",
        ),
        Mistake("share", _share, "This is the share of pairs that agree, from 0 to 1. Take off those that disagree."),
        Mistake(
            "not divided",
            lambda x, y: float(_score(x, y, _all_pairs(len(x)))),
            "You counted, and did not divide by the number of pairs.",
        ),
        Mistake(
            "over squares",
            lambda x, y: _score(x, y, _all_pairs(len(x))) / len(x) ** 2,
            "You divided by n squared. Each pair counts once: there are n (n - 1) / 2.",
        ),
        Mistake(
            "half of it",
            lambda x, y: _score(x, y, _all_pairs(len(x))) / (len(x) * (len(x) - 1)),
            "You divided by n (n - 1), which counts each pair twice, and counted it once above.",
        ),
        Mistake(
            "neighbours",
            lambda x, y: _score(x, y, [(i, i + 1) for i in range(len(x) - 1)]) / (len(x) - 1),
            "You compared neighbours only. Every pair counts, near or far.",
        ),
        Mistake(
            "turned round",
            lambda x, y: -_score(x, y, _all_pairs(len(x))) / len(_all_pairs(len(x))),
            "The sign is turned round: pairs that agree count plus one.",
        ),
        Mistake(
            "one order sorted",
            lambda x, y: _score(sorted(x), y, _all_pairs(len(x))) / len(_all_pairs(len(x))),
            "You sorted one list, so its numbers lost their partners. Keep the places together.",
        ),
    ),
)

COVERS = QuestionSpec(
    "covers",
    "What does the interval cover?",
    "figure",
    "medium",
    3,
    "Look at the intervals of tau above the four panels. Each comes from the taus of ten seeds, between the same "
    "teachers. Which surprise would more seeds never show you?",
    (
        "What differs between the ten taus that it was made from, and what is the same in all of them?",
        "Cover one point of a panel with your thumb, in your mind. Is the order still the same?",
    ),
    "An interval covers what was drawn anew when it was made: here the student's images, their order and its initial "
    "weights. The teachers were the same every time, one network of each kind. A statement about teachers in general "
    "would need many teachers, drawn from those that one means. That is why papers that compare four of them can "
    "disagree about what makes a good one.",
    answer_key=MultipleChoice(
        (
            Option("With ten other seeds the mean is a little different", "That is exactly what it covers."),
            Option(
                "In a single seed tau has the other sign",
                "It has in two of the ten seeds for accuracy and confidence, in five for size, in none for the "
                "calibration error. The interval covers seeds.",
            ),
            Option(
                "Two more teachers turn the order round",
                "The teachers were fixed. Nothing in the interval knows of others.",
                correct=True,
            ),
            Option(
                "Other training images for the student change its gain",
                "Each seed draws its own 2,000 images, so their scatter is in the interval.",
            ),
        )
    ),
)

FALSE = QuestionSpec(
    "false",
    "How often does one of eleven win by chance?",
    "question",
    "easy",
    3,
    "You compare eleven teachers with the one you have. Suppose that all twelve are in truth equally good, that each "
    "comparison errs in 5 of 100 cases, and that they err independently. With which probability does at least one of "
    "the eleven comparisons give a verdict that is wrong?",
    (
        "With which probability is a single comparison right? And all eleven?",
        "The complement of 'all eleven are right' is 'at least one is wrong'.",
    ),
    "Nearly every second such study would find a teacher that differs, where none does. Hence Bonferroni: each "
    "interval at 1 - 0.05 / 11, and all of them hold at once with 95 %. (Comparisons with one reference are not "
    "independent, which lowers the number somewhat; Bonferroni holds however they depend.)",
    answer_key=Numeric(
        1 - 0.95**11,
        0.03,
        mistakes=(
            (0.55, "That is 11 x 0.05. It counts the cases twice in which two comparisons err."),
            (0.05, "That is one comparison. There are eleven of them."),
            (0.95**11, "That is the probability that all eleven are right."),
            (0.95, "That is the probability that one comparison is right."),
            (43.1, "In per cent it is right. The answer is a probability, between 0 and 1."),
        ),
    ),
)

EXERCISES = LessonSpec("10", "Which teacher?", (BEST, TAU, COVERS, FALSE))
