"""Exercises of lesson 06, Feature distillation: attention maps, projections, and what goes wrong with them."""

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
    advice = "Its length is 0, and 0/0 is NaN. Dividing by length.clamp(min=1e-12) leaves zeros zero."
    return [Case((small,)), *random, Case((dead,), "a layer that answers an image with zeros only", advice)]


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


def hint_loss(student_map: Tensor, teacher_map: Tensor, weight: Tensor) -> Tensor:
    """The student's map, pooled to the teacher's size and projected to its width, against the teacher's."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(student_map, teacher_map.shape[2:])
    projected = torch.einsum("dc,bchw->bdhw", weight, pooled)
    return (projected - teacher_map).square().mean()


def _maps() -> list[Case]:
    generator = torch.Generator().manual_seed(62)

    def case(images: int, student_width: int, teacher_width: int, side: int, smaller: int) -> Case:
        student = torch.randn(images, student_width, side, side, generator=generator)
        teacher = torch.randn(images, teacher_width, smaller, smaller, generator=generator)
        return Case((student, teacher, torch.randn(teacher_width, student_width, generator=generator)))

    tiny = torch.ones(1, 1, 2, 2), torch.tensor([[[[1.0]], [[4.0]]]]), torch.tensor([[2.0], [3.0]])
    oblong = torch.randn(2, 3, 9, 4, generator=generator), torch.randn(2, 4, 3, 2, generator=generator)
    square = case(2, 3, 4, 4, 2), case(3, 2, 5, 6, 2), case(2, 3, 3, 4, 4), case(1, 2, 3, 4, 2)
    return [Case(tiny), *square, Case((*oblong, torch.randn(4, 3, generator=generator)))]


def _hint(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    shrink: Callable[..., Tensor] = nn.functional.adaptive_avg_pool2d,
) -> Tensor:
    """The difference between the projected student's map and the teacher's."""
    return torch.einsum("dc,bchw->bdhw", weight, shrink(student, teacher.shape[2:])) - teacher


HINT = CodeSpec(
    "hint_loss",
    "Matching sizes with a projection",
    "code",
    "medium",
    7,
    "Write hint_loss(student_map, teacher_map, weight): pool the student's map to the teacher's height and width by "
    "averaging, project it to the teacher's channels, and give the mean squared error over all elements. student_map "
    "is B x C x H x W, teacher_map B x D x h x w, and weight D x C: output channel d is the sum over c of weight[d, c] "
    "times channel c, at each position. That is a 1 x 1 convolution.",
    (
        "torch.nn.functional.adaptive_avg_pool2d(student_map, (h, w)) averages down to h x w.",
        'torch.einsum("dc,bchw->bdhw", weight, pooled) is the projection.',
        "The mean squared error: difference, square, mean().",
    ),
    "This is FitNets' hint. weight is learned together with the student, and lets it have another width.",
    stub="def hint_loss(student_map, teacher_map, weight):\n    ...  # three lines",
    reference=hint_loss,
    cases=_maps,
    grad_arguments=("student_map", "weight"),
    mistakes=(
        Mistake(
            "sum instead of mean",
            lambda s, t, w: _hint(s, t, w).square().sum(),
            "You added up the squares, so the loss grows with the batch and the map. Take the mean.",
        ),
        Mistake(
            "mean over the images only",
            lambda s, t, w: _hint(s, t, w).square().sum(dim=(1, 2, 3)).mean(),
            "You averaged over the images only, so the loss grows with the size of the map. Take the mean over all.",
        ),
        Mistake(
            "root",
            lambda s, t, w: _hint(s, t, w).square().mean().sqrt(),
            "You took the root. The mean squared error has none, and a root has an infinite slope at 0.",
        ),
        Mistake(
            "absolute differences",
            lambda s, t, w: _hint(s, t, w).abs().mean(),
            "You averaged absolute differences. The question asks for squares.",
        ),
        Mistake(
            "largest instead of mean",
            lambda s, t, w: _hint(s, t, w, nn.functional.adaptive_max_pool2d).square().mean(),
            "You pooled by taking the largest. Average: adaptive_avg_pool2d.",
        ),
        Mistake(
            "positions left out",
            lambda s, t, w: _hint(s, t, w, nn.functional.interpolate).square().mean(),
            "You kept some positions and dropped the others. Pooling averages all of them.",
        ),
        Mistake(
            "teacher left out",
            lambda s, t, w: (_hint(s, t, w) + t).square().mean(),
            "The teacher's map does not come in: this is the size of the projected student.",
        ),
        Mistake(
            "ReLU after the projection",
            lambda s, t, w: ((_hint(s, t, w) + t).relu() - t).square().mean(),
            "There is a ReLU after the projection. It is a plain 1 x 1 convolution here, which may give negative "
            "numbers.",
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

    def case(method: nn.Module, *parts: Any, edge_case: str = "", advice: str = "") -> Case:
        known = [p for part in parts for p in (part.parameters() if isinstance(part, nn.Module) else [part])]
        display = 'method, optimizer.param_groups[0]["params"]'
        return Case((method, known), edge_case, advice, display)

    return [
        case(projection, student),
        case(projection, student, projection),
        case(two, student, two[0]),
        case(gaussian, gaussian[0].weight, gaussian[1].bias),
        case(
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
        "`p in optimised` compares values, which fails on tensors. Use `is`, or compare id(), to find the very same "
        "parameter.",
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
    "hard",
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
                "The student looks at the wrong places at layer3, and at the right ones at layer1",
                "The loss alone does not say so: two layers with the same angle between their maps already differ by a "
                "factor of 16.",
            ),
            Option(
                "Little: the number of positions is part of the loss",
                "The loss is 2 (1 - cosine) divided by the positions: 49 against 784. 784 / 49 = 16, so at the same "
                "angle the loss at 7 x 7 is 16 times as large. The angle itself says how far the two look at different "
                "places.",
                correct=True,
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

EXERCISES = LessonSpec("06", "How do features teach?", (ATTENTION, HINT, FORGOTTEN, FALL, SCALE))
