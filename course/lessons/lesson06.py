"""Exercises of lesson 06, Feature distillation: attention maps, VID, and projections that nobody trains."""

# mypy: disable-error-code="arg-type"
# The reference solutions are shown to learners, so they carry no type comments.

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Option, QuestionSpec


def attention_map(features: Tensor) -> Tensor:
    """Where a layer looks: a row of norm 1 for each image, from B x C x H x W."""
    energy = features.square().mean(dim=1).flatten(1)
    length = energy.norm(dim=1, keepdim=True)
    return energy / length.clamp(min=1e-12)


def _features() -> list[Case]:
    generator = torch.Generator().manual_seed(61)
    shapes = (2, 3, 4, 4), (3, 5, 2, 3), (1, 2, 3, 5), (4, 4, 4, 4)
    random = [Case((torch.randn(*shape, generator=generator),)) for shape in shapes]
    small = torch.tensor([[[[1.0, 0.0], [2.0, 0.0]], [[1.0, 1.0], [0.0, -1.0]]]])
    dead = torch.zeros(2, 3, 2, 2)
    dead[1, 0, 1, 1] = 2.0
    advice = (
        "Its length is 0, and 0/0 is NaN. With length = norm(dim=1, keepdim=True) of the rows, dividing by "
        "length.clamp(min=1e-12) leaves zeros zero."
    )
    faint = 0.03 * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(64))
    limit = "A limit as large as these lengths leaves the rows short. It is there for 0 only: clamp(min=1e-12)."
    return [
        Case((small,)),
        *random,
        Case((dead,), "a layer that answers an image with zeros only", advice),
        Case((faint,), "small activations", limit),
    ]


def _energy(f: Tensor) -> Tensor:
    return f.square().mean(dim=1).flatten(1)


def _plain_unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


ATTENTION = CodeSpec(
    "attention_map",
    "Where does a layer look?",
    "code",
    "medium",
    6,
    "Write attention_map(features): for each image, square the channels and average them (or add them up) at each "
    "position, flatten the positions to a row, and scale the row to norm 1. features is B x C x H x W; the result is "
    "B x (H W). An image that the layer answers with zeros gets a row of zeros.",
    (
        "Three steps: square and average over dim=1; flatten(1); divide each row by its norm.",
        "norm(dim=1, keepdim=True) is the length of each row.",
        "A row of zeros has length 0: clamp(min=1e-12) keeps the division possible.",
    ),
    "The channels are averaged away, so teacher and student may have different widths: no projection is needed. "
    "kdlib.losses.attention_map is the tested twin.",
    stub="def attention_map(features):\n    ...  # three lines",
    reference=attention_map,
    cases=_features,
    grad_arguments=("features",),
    mistakes=(
        Mistake(
            "not scaled",
            _energy,
            "The rows are not scaled: a layer with large numbers would seem to attend more. Divide each by its norm.",
        ),
        Mistake(
            "not scaled, summed",
            lambda f: f.square().sum(dim=1).flatten(1),
            "The rows are not scaled: a layer with large numbers would seem to attend more. Divide each by its norm.",
        ),
        Mistake(
            "sum 1 instead of norm 1",
            lambda f: _energy(f) / _energy(f).sum(dim=1, keepdim=True).clamp(min=1e-12),
            "Your rows sum to 1. The loss wants their Euclidean norm to be 1: divide by .norm(dim=1, keepdim=True).",
        ),
        Mistake(
            "not squared",
            lambda f: _plain_unit(f.mean(dim=1).flatten(1)),
            "The channels are not squared, so positive and negative answers cancel.",
        ),
        Mistake(
            "absolute values",
            lambda f: _plain_unit(f.abs().mean(dim=1).flatten(1)),
            "You took absolute values. The question asks for squares: they give large activations more weight.",
        ),
        Mistake(
            "averaged, then squared",
            lambda f: _plain_unit(f.mean(dim=1).square().flatten(1)),
            "You averaged first and squared then, so positive and negative answers cancel. Square first.",
        ),
        Mistake(
            "over the positions",
            lambda f: _plain_unit(f.square().mean(dim=(2, 3))),
            "You averaged over the positions: what is left says which channels are active. Average over the channels, "
            "dim=1.",
        ),
        Mistake(
            "one norm for all images",
            lambda f: _energy(f) / _energy(f).norm(),
            "You divided by one norm of the whole batch. Each image has a norm of its own: dim=1, keepdim=True.",
        ),
        Mistake(
            "keepdim forgotten",
            lambda f: _energy(f) / _energy(f).norm(dim=1),
            "The norms are a row, and should stand in a column, one for each image: norm(dim=1, keepdim=True), or "
            "[:, None].",
        ),
        Mistake(
            "largest instead of norm",
            lambda f: _energy(f) / _energy(f).amax(dim=1, keepdim=True).clamp(min=1e-12),
            "You divided by the largest value of the row. Divide by its norm, the root of the sum of its squares.",
        ),
        Mistake(
            "not flattened",
            lambda f: attention_map(f).reshape(len(f), *f.shape[2:]),
            "The values are right, but the positions are still in rows and columns: flatten(1) makes B x (H W).",
        ),
        Mistake(
            "zero divided by zero",
            lambda f: _plain_unit(_energy(f)),
            "The formula is right, but a row of zeros has length 0, and 0/0 is NaN: one dead image would ruin the "
            "whole training. Divide by length.clamp(min=1e-12).",
        ),
    ),
)


def vid_best(predicted: Tensor, teacher_map: Tensor) -> Tensor:
    """VID with the best variance of each channel put in: half the mean over the channels of log(error) + 1."""
    errors = (teacher_map - predicted).square().mean(dim=(0, 2, 3))
    return (errors.log() + 1).mean() / 2


def _predictions() -> list[Case]:
    generator = torch.Generator().manual_seed(62)
    tiny = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, -1.0]], [[2.0, 4.0]]]])
    shapes = (3, 2, 4, 4), (2, 5, 3, 2), (4, 4, 2, 3), (2, 3, 3, 3)
    random = []
    for shape in shapes:
        scale = torch.linspace(0.3, 3.0, shape[1])[:, None, None]  # channels that differ in what can be predicted
        predicted, errors = (torch.randn(*shape, generator=generator) for _ in range(2))
        random.append(Case((predicted, predicted + scale * (errors + 0.5))))
    return [Case(tiny), *random]


def _errors(predicted: Tensor, teacher: Tensor) -> Tensor:
    return (teacher - predicted).square().mean(dim=(0, 2, 3))


VID = CodeSpec(
    "vid_best",
    "VID with the best variance",
    "code",
    "medium",
    7,
    "The lesson's first formula of VID has a variance v for each channel. For a channel with mean squared error e, the "
    "best v is e itself. Put it in, with means for sums: half the mean, over the channels, of log(e) + 1 is left. "
    "Write vid_best(predicted, teacher_map): the projected student's map and the teacher's, both B x D x H x W; e is "
    "the mean over pictures and positions. The result is one number.",
    (
        "Squared differences, and their mean over all dimensions but the channels: mean(dim=(0, 2, 3)).",
        "errors.log() is the natural logarithm of each channel's error.",
        "Add 1, take the mean over the channels, halve it.",
    ),
    "Halving a channel's error always gains the same, log(2) / 2 for it, whether the error was large or small: VID "
    "asks for progress in each channel, a hint for progress in the loud ones. In training v is learned step by step, "
    "and follows the error. kdlib.losses.vid is the tested loss.",
    stub="def vid_best(predicted, teacher_map):\n    ...  # two or three lines",
    reference=vid_best,
    cases=_predictions,
    grad_arguments=("predicted",),
    mistakes=(
        Mistake(
            "one variance for all",
            lambda p, t: ((t - p).square().mean().log() + 1) / 2,
            "You took one error for all channels. Each channel has its own, and the logarithm comes before the mean.",
        ),
        Mistake(
            "a variance for each image",
            lambda p, t: ((t - p).square().mean(dim=(2, 3)).log() + 1).mean() / 2,
            "You took an error for each picture and channel. The mean is over the pictures, too: dim=(0, 2, 3).",
        ),
        Mistake(
            "a variance for each position",
            lambda p, t: ((t - p).square().mean(dim=(0, 1)).log() + 1).mean() / 2,
            "You took an error for each position. It is one for each channel: dim=(0, 2, 3).",
        ),
        Mistake(
            "a variance for each position and channel",
            lambda p, t: ((t - p).square().mean(dim=0).log() + 1).mean() / 2,
            "You averaged over the pictures only. The mean is over the positions, too: dim=(0, 2, 3).",
        ),
        Mistake(
            "a variance for each image alone",
            lambda p, t: ((t - p).square().mean(dim=(1, 2, 3)).log() + 1).mean() / 2,
            "You have an error for each picture, with the channels averaged. It is one for each channel: "
            "dim=(0, 2, 3).",
        ),
        Mistake(
            "root",
            lambda p, t: (_errors(p, t).sqrt().log() + 1).mean() / 2,
            "You took the root: this is a standard deviation. The formula has the variance.",
        ),
        Mistake(
            "one forgotten",
            lambda p, t: _errors(p, t).log().mean() / 2,
            "The 1 is missing: with v = e the squared error divided by v is e / e.",
        ),
        Mistake(
            "half forgotten",
            lambda p, t: (_errors(p, t).log() + 1).mean(),
            "The half is missing: it stands before both terms of the formula.",
        ),
        Mistake(
            "half of the logarithm only",
            lambda p, t: (_errors(p, t).log() / 2 + 1).mean(),
            "You halved the logarithm alone. The half stands before both terms.",
        ),
        Mistake(
            "logarithm to base 2",
            lambda p, t: (_errors(p, t).log2() + 1).mean() / 2,
            "This is the logarithm to base 2. The formula has the natural one: .log().",
        ),
        Mistake(
            "logarithm to base 10",
            lambda p, t: (_errors(p, t).log10() + 1).mean() / 2,
            "This is the logarithm to base 10. The formula has the natural one: .log().",
        ),
        Mistake(
            "logarithm forgotten",
            lambda p, t: (_errors(p, t) + 1).mean() / 2,
            "The logarithm of the error is missing: without it this is a hint.",
        ),
        Mistake(
            "log of 1 + e",
            lambda p, t: _errors(p, t).log1p().mean() / 2,
            "You took log(1 + e). The 1 stands outside of the logarithm.",
        ),
        Mistake(
            "sum over the channels",
            lambda p, t: (_errors(p, t).log() + 1).sum() / 2,
            "You added up over the channels. Take their mean.",
        ),
        Mistake(
            "sum of squares",
            lambda p, t: ((t - p).square().sum(dim=(0, 2, 3)).log() + 1).mean() / 2,
            "The error is a sum over pictures and positions. The best variance is the mean.",
        ),
        Mistake(
            "absolute errors",
            lambda p, t: ((t - p).abs().mean(dim=(0, 2, 3)).log() + 1).mean() / 2,
            "You averaged absolute differences. A variance is a mean of squares.",
        ),
        Mistake(
            "variance around the mean",
            lambda p, t: ((t - p).var(dim=(0, 2, 3)).log() + 1).mean() / 2,
            "var() takes off the mean of the differences first. Here a constant error counts as well: the mean of the "
            "squares.",
        ),
        Mistake(
            "variance around the mean, biased",
            lambda p, t: ((t - p).var(dim=(0, 2, 3), unbiased=False).log() + 1).mean() / 2,
            "var() takes off the mean of the differences first. Here a constant error counts as well: the mean of the "
            "squares.",
        ),
        Mistake(
            "upside down",
            lambda p, t: (1 - _errors(p, t).log()).mean() / 2,
            "The sign of the logarithm is wrong, as if the error were upside down: a large error has to give a large "
            "loss.",
        ),
        Mistake(
            "channels kept",
            lambda p, t: (_errors(p, t).log() + 1) / 2,
            "You have a number for each channel. The loss is their mean.",
        ),
        Mistake(
            "teacher's variance",
            lambda p, t: (t.square().mean(dim=(0, 2, 3)).log() + 1).mean() / 2,
            "The student does not come in: this is the size of the teacher's channels. Take the difference first.",
        ),
    ),
)


def forgotten(method: nn.Module, optimised: Iterable[Tensor]) -> int:
    """How many of the method's numbers no step of the optimiser will change."""
    known = {id(parameter) for parameter in optimised}
    lost = [p for p in method.parameters() if id(p) not in known]
    return sum(p.numel() for p in lost)


def _optimised() -> list[Case]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(63)
        student = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
        projection = nn.Conv2d(4, 6, 1, bias=False)
        two = nn.ModuleList([nn.Linear(3, 5), nn.Linear(3, 5)])
        gaussian = nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))
        for layer in two:
            nn.init.zeros_(layer.bias)  # the same values in different parameters

    def case(display: str, method: nn.Module, *parts: Any, edge_case: str = "", advice: str = "") -> Case:
        known = [p for part in parts for p in (part.parameters() if isinstance(part, nn.Module) else [part])]
        return Case((method, known), edge_case, advice, display)

    return [
        case('method, optimizer.param_groups[0]["params"]', projection, student),
        case("<a projection>, <the student's parameters and its own>", projection, student, projection),
        case("<two layers>, <the student's parameters and those of the first layer>", two, student, two[0]),
        case(
            "<a convolution and a batch norm>, <the first one's weight and the second one's bias>",
            gaussian,
            gaussian[0].weight,
            gaussian[1].bias,
        ),
        case(
            "<a projection>, <the student's parameters and those of a copy of the projection>",
            projection,
            student,
            copy.deepcopy(projection),
            edge_case="an optimiser that was given a copy of the method",
            advice="The copy learns, the method stays. Equal values are not one parameter: compare by `is` or id().",
        ),
    ]


def _left(method: nn.Module, optimised: Iterable[Tensor], same: Callable[[Tensor, Tensor], bool]) -> list[Tensor]:
    known = list(optimised)
    return [p for p in method.parameters() if not any(same(p, q) for q in known)]


def _left_out(parameter: Tensor, optimised: Iterable[Tensor]) -> bool:
    return not any(parameter is other for other in optimised)


def _numbers(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


FORGOTTEN = CodeSpec(
    "forgotten",
    "Why does the loss fall so little?",
    "code",
    "hard",
    8,
    "A feature loss that falls too little: often the projection was never given to the optimiser. Write "
    "forgotten(method, optimised): how many numbers in the method's parameters no step of the optimiser will change. "
    "method is a module; optimised are the parameters that the optimiser was given: the student's too, beside those of "
    "the method. In the example the method is a projection of 6 x 4 numbers, and the optimiser has the student alone.",
    (
        "Go through method.parameters() and look for each of them among the optimised ones.",
        "`p in optimised` compares values, which fails on tensors. Use `is`, or id(), to find the very same one.",
        "known = {id(p) for p in optimised}; then add up p.numel() of those whose id is not in it.",
    ),
    "Always worth a line before a long training. In kdlib a method is a module and train.fit gives its parameters to "
    "the optimiser; in a loop of your own it is up to you.",
    stub="def forgotten(method, optimised):\n    ...  # three lines",
    reference=forgotten,
    cases=_optimised,
    mistakes=(
        Mistake(
            "totals subtracted",
            lambda m, o: _numbers(m.parameters()) - _numbers(o),
            "These are totals, the student's parameters included. Count those of the method that the optimiser lacks.",
        ),
        Mistake(
            "parameters instead of numbers",
            lambda m, o: len(_left(m, o, lambda p, q: p is q)),
            "You counted tensors. Each of them holds many numbers: add up p.numel().",
        ),
        Mistake(
            "the trained ones",
            lambda m, o: _numbers(m.parameters()) - forgotten(m, o),
            "These are the numbers that are trained. The question asks for those that are not.",
        ),
        Mistake(
            "all of them",
            lambda m, o: _numbers(m.parameters()),
            "You counted all parameters of the method. Leave out those that the optimiser has.",
        ),
        Mistake(
            "`in` compares values",
            lambda m, o: sum(p.numel() for p in m.parameters() if p not in list(o)),
            "`p in optimised` asks whether p == q for each q, and for tensors that is a tensor of answers. Look for "
            "the very same parameter: compare with `is`, or by id().",
        ),
        Mistake(
            "biases left out",
            lambda m, o: _numbers(p for p in _left(m, o, lambda p, q: p is q) if p.ndim > 1),
            "You counted weights and left out the biases. They are parameters, too: go through method.parameters().",
        ),
        Mistake(
            "biases left out by name",
            lambda m, o: sum(p.numel() for name, p in m.named_parameters() if "bias" not in name and _left_out(p, o)),
            "You counted weights and left out the biases. They are parameters, too: go through method.parameters().",
        ),
        Mistake(
            "equal values",
            lambda m, o: _numbers(_left(m, o, lambda p, q: p.shape == q.shape and bool((p == q).all()))),
            "You compared values. A copy of a parameter has the same values, but when it learns, the parameter does "
            "not. Compare with `is`, or by id().",
        ),
        Mistake(
            "equal shapes",
            lambda m, o: _numbers(_left(m, o, lambda p, q: p.shape == q.shape)),
            "You compared shapes. Two parameters of one shape are still two: compare with `is`, or by id().",
        ),
        Mistake(
            "the other way round",
            lambda m, o: _numbers(q for q in o if not any(q is p for p in m.parameters())),
            "You counted what the optimiser has and the method has not: the student's parameters.",
        ),
        Mistake(
            "yes or no",
            lambda m, o: int(forgotten(m, o) > 0),
            "You say whether something was forgotten. The question is how many numbers: add up p.numel().",
        ),
    ),
)


def _letter_of_ratio(ratio: Any) -> str:
    value = float(ratio)
    return "b" if value > 1.1 else "c" if value < 0.9 else "a"


FALL = QuestionSpec(
    "fall",
    "A projection that nobody trains",
    "prediction",
    "medium",
    3,
    "The same student learns from the same teacher by a hint, twice: once the projection is given to the optimiser, "
    "once it is forgotten and keeps its random start. How far does the hint loss fall without it? Answer with "
    ".predict(...), run both, then call .check(ratio) with the last loss of the run that forgot it, divided by the "
    "last loss of the other (means over the last ten steps).",
    (
        "The student's own layers are trained in both runs. What can they make up for?",
        "What the projection gives is a fixed mixture of the student's channels.",
    ),
    "The loss falls in both runs, because the student bends itself to what the projection happens to want: so nothing "
    "looks broken.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("About as far: the student makes up for it, within a tenth", ""),
            Option("Less far: it ends more than a tenth higher", ""),
            Option("Further: with fewer numbers to train it ends more than a tenth lower", ""),
        ),
        from_measurement=_letter_of_ratio,
    ),
)

SCALE = QuestionSpec(
    "scale",
    "Which layer has most to learn?",
    "figure",
    "easy",
    4,
    "Look at the figure of the attention loss by layer, for the student on hard labels. At layer3, with maps of 7 x 7, "
    "it is many times the loss at layer1, with maps of 28 x 28. What follows about the two layers?",
    (
        "Each map is a row of norm 1, and the loss is a mean over its positions. How many are there?",
        "For two rows of norm 1 the squared distance is 2 (1 - cosine), whatever their length. Then it is divided.",
    ),
    "One weight for all layers gives the coarse one 16 times the weight. Look at the cosines, in the explorer's "
    "text, to say where teacher and student look at different places; and choose the layer on validation images.",
    answer_key=MultipleChoice(
        (
            Option(
                "Little: the number of positions is part of the loss",
                "The loss is 2 (1 - cosine) divided by the positions: 49 against 784. 784 / 49 = 16, so at the same "
                "angle the loss at 7 x 7 is 16 times as large. The angle itself says how far the two look at different "
                "places.",
                correct=True,
            ),
            Option(
                "The student looks at the wrong places at layer3, and at the right ones at layer1",
                "The loss alone does not say so: two layers with the same angle between their maps already differ by a "
                "factor of 16.",
            ),
            Option(
                "layer3 has more channels, and each adds to the loss",
                "The channels are averaged away before anything is compared, and the map is scaled to norm 1.",
            ),
            Option(
                "The teacher's layer3 has larger activations",
                "Each map is scaled to norm 1, so the size of the activations does not come in.",
            ),
        )
    ),
)

EXERCISES = LessonSpec("06", "How do features teach?", (ATTENTION, VID, FORGOTTEN, FALL, SCALE))
