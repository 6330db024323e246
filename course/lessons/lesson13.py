"""Exercises of lesson 13, Let the machine search: who searches better, promises, the cost of halving, a control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Numeric, Option, QuestionSpec

SAME = 0.05  # points of accuracy; the seeds of one setting differ by seven times as much


def _letter_of_search(difference: float) -> str:
    """The letter for what TPE's choices are worth, minus random search's, in points; ValueError for no difference."""
    difference = float(difference)
    if not -100 <= difference <= 100:
        raise ValueError("a difference of two accuracies lies between -100 and 100 points")
    if difference < -SAME:
        return "d"
    return "c" if difference <= SAME else "b" if difference < 0.3 else "a"


BETTER = QuestionSpec(
    "better",
    "Who searches better?",
    "prediction",
    "easy",
    2,
    "Both searches may try 10 of 25 settings, in one seed, and take the best. The same setting is then looked up in "
    "the other seeds. How much better are the choices of TPE, on average? Answer with .predict(...), look at the "
    "curves, then call .check(points) with TPE's accuracy minus that of random search, in points.",
    (
        "The accuracies of good settings lie within tenths of a point. How far apart are two seeds of one setting?",
        "With 10 of 25 settings, random search has seen two in five of all there are, and two of the best five.",
    ),
    "TPE looks where accuracies were high. On this map many settings are almost equally good, and the seed decides "
    "which of them looks best: a search that follows the accuracies follows the seed. Where settings differ by much "
    "more than seeds do, and where there are many more of them than trials, a model has something to learn. Here it "
    "has not.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("By 0.3 points or more", ""),
            Option("By 0.05 to 0.3 points", ""),
            Option("Neither is better by more than 0.05 points", ""),
            Option("They are worse by more than 0.05 points", ""),
        ),
        from_measurement=_letter_of_search,
    ),
)


def flattery(promised: Tensor, kept: Tensor, orders: Tensor) -> float:
    """By how much the best trial of a search promises more than it keeps, the mean over searches."""
    gaps = []
    for order in orders:
        best = max(order, key=lambda trial: promised[trial])
        gaps.append(promised[best] - kept[best])
    return torch.stack(gaps).mean().item()


Choose = Callable[[Tensor, Tensor, Tensor], Any]  # the setting that a search is said to find


def _choosing(choose: Choose) -> Callable[..., Any]:
    """The wrong function that takes another setting of each search than the one with the best promise."""

    def wrong(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
        chosen = [choose(promised, kept, order) for order in orders]
        return sum(promised[one] - kept[one] for one in chosen) / len(orders)

    return wrong


def _both_best(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
    return sum(max(promised[i] for i in order) - max(kept[i] for i in order) for order in orders) / len(orders)


def _all_trials(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
    return sum(sum(promised[i] - kept[i] for i in order) / len(order) for order in orders) / len(orders)


def _median(promised: Tensor, kept: Tensor, orders: Tensor) -> Any:
    return torch.tensor([flattery(promised, kept, orders[i : i + 1]) for i in range(len(orders))]).median().item()


MISTAKES = (
    Mistake(
        "both best",
        _both_best,
        "You subtracted the best that was kept by any trial. Nobody knows which trial that is: look up `kept` for the "
        "trial with the best promise.",
    ),
    Mistake(
        "chosen by kept",
        _choosing(lambda promised, kept, order: max(order, key=lambda i: kept[i])),
        "You chose the trial by `kept`. A search sees `promised` alone.",
    ),
    Mistake("all trials", _all_trials, "You took the mean over all trials of a search. Only the best of them is kept."),
    Mistake(
        "last trial",
        _choosing(lambda promised, kept, order: order[-1]),
        "You took the last trial of each search. The best may have come earlier.",
    ),
    Mistake(
        "worst",
        _choosing(lambda promised, kept, order: min(order, key=lambda i: promised[i])),
        "You took the trial with the lowest promise.",
    ),
    Mistake(
        "whole map",
        _choosing(lambda promised, kept, order: max(range(len(promised)), key=lambda i: promised[i])),
        "You took the best of the whole map. A search knows only the trials in its order.",
    ),
    Mistake(
        "position",
        _choosing(lambda promised, kept, order: max(range(len(order)), key=lambda i: promised[order[i]])),
        "You used the position in the order as the number of the setting: order[position] is the setting.",
    ),
    Mistake(
        "sign",
        lambda promised, kept, orders: -flattery(promised, kept, orders),
        "The sign is the other way round: what was promised, minus what was kept.",
    ),
    Mistake(
        "sum",
        lambda promised, kept, orders: flattery(promised, kept, orders) * len(orders),
        "This is the sum over all searches. Divide by their number.",
    ),
    Mistake(
        "median",
        _median,
        "You took the median over the searches. Take their mean.",
    ),
    Mistake(
        "one search",
        lambda promised, kept, orders: flattery(promised, kept, orders[:1]),
        "This is the first search alone. Take the mean over all of them.",
    ),
)


def _cases() -> list[Case]:
    generator = torch.Generator().manual_seed(17)  # the first search is not the median of all, either

    def case(settings: int, searches: int, trials: int, edge_case: str = "", advice: str = "") -> Case:
        promised, kept = (91 + torch.randn(settings, generator=generator) for _ in range(2))
        orders = torch.stack([torch.randperm(settings, generator=generator)[:trials] for _ in range(searches)])
        return Case((promised, kept, orders), edge_case, advice)

    promised, kept = torch.tensor([91.0, 92.0, 91.5, 90.0]), torch.tensor([91.2, 91.1, 91.4, 90.1])
    return [
        Case((promised, kept, torch.tensor([[0, 1, 2], [3, 2, 0]]))),
        case(25, 7, 6),
        case(12, 5, 1, "searches of one trial", "What is the best of one?"),
        case(9, 3, 9),
    ]


FLATTERY = CodeSpec(
    "flattery",
    "What a promise is worth",
    "code",
    "medium",
    8,
    "promised[i] is the accuracy of setting i in the seed that a search sees, kept[i] its mean in the other seeds. "
    "Each row of orders is one search: the numbers of the settings that it tries. Return by how much the best trial of "
    "a search promises more than it keeps, the mean over all searches.",
    (
        "For one search: which of its trials has the highest promise? What are its two numbers?",
        "max(order, key=lambda trial: promised[trial]) gives that trial. Collect promised minus kept, take the mean.",
    ),
    "That is the winner's curse, measured. It needs a second look at the same setting, with seeds that took no part in "
    "the choice; no amount of care within the first seed gives it.",
    stub="def flattery(promised, kept, orders):\n    ...  # five lines",
    reference=flattery,
    cases=_cases,
    mistakes=MISTAKES,
)

HALVING = QuestionSpec(
    "halving",
    "What does halving cost?",
    "question",
    "easy",
    4,
    "Successive halving, with a third of the trials going on each time: 27 trials are trained for 1 epoch, the best 9 "
    "of them go on to epoch 3, the best 3 of these to epoch 9, and the best one to epoch 27. A trial that goes on "
    "keeps what it has learned. How many epochs are trained in all?",
    (
        "How many epochs are added in each stage, and for how many trials?",
        "From epoch 1 to epoch 3 it is two more epochs, for 9 trials.",
    ),
    "27 + 9 x 2 + 3 x 6 + 1 x 18 = 81 epochs, as many as three whole trials take, and 27 settings had a look. The "
    "price: who is slow at first is gone, and a large temperature or a small learning rate may just be slow.",
    answer_key=Numeric(
        81,
        0.001,
        mistakes=(
            (108, "That starts each stage from the beginning. A trial that goes on keeps what it has learned."),
            (729, "That is the cost of 27 whole trials, without any stopping."),
            (40, "That is the number of stages that trials begin. Each stage has more than one epoch."),
            (63, "The last stage is missing: the best trial goes from epoch 9 to epoch 27."),
        ),
    ),
)

CONTROL = QuestionSpec(
    "control",
    "What is missing?",
    "figure",
    "medium",
    4,
    "A paper scores fifteen students with an untrained teacher. The score orders them as their accuracies after "
    "distillation do, tau +0.6 (0.3 to 0.8), and the paper concludes: the teacher tells which student will learn well "
    "from it. Look at the right panel of the figure of scores. What would you ask for first?",
    (
        "What grows from left to right in that panel, and does the score grow with it?",
        "Larger students are more accurate as a rule. What has the teacher to do with that?",
    ),
    "A proxy is worth what it adds to the simplest one. Size needs no teacher, no batch and no seconds. The rule is an "
    "old one: before a cause is named, ask what else would give the same picture, and run that.",
    answer_key=MultipleChoice(
        (
            Option(
                "The same tau for MACs alone",
                "If size alone orders the networks as well, then the score need not know anything of the teacher.",
                correct=True,
            ),
            Option(
                "Accuracies after more epochs",
                "Useful, and it may change the order. It would not say whether the score knows more than size.",
            ),
            Option(
                "A larger batch for the score",
                "It would make the score less noisy. What the score measures stays the same.",
            ),
            Option(
                "A p-value for each tau",
                "The intervals say more than that already: whether tau is zero is not the question here.",
            ),
        )
    ),
)

EXERCISES = LessonSpec("13", "Let the machine search", (BETTER, FLATTERY, HALVING, CONTROL))
