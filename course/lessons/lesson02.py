"""Exercises of lesson 02, Try three ways to compress: rounding, a short fine-tuning, the map, and bytes of few bits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Numeric, Option, QuestionSpec

CLEARLY = 2.0  # points of accuracy; less is the scatter of one pair of runs on 2,000 pictures


def _letter_of_gain(gain: Any) -> str:
    """The letter for the teacher's gain over hard labels in points; ValueError for what is no number of points."""
    points = float(gain)
    if not math.isfinite(points) or abs(points) > 100:
        raise ValueError("a gain lies between -100 and 100 points")
    return "a" if points > CLEARLY else "c" if points < -CLEARLY else "b"


SHORT = QuestionSpec(
    "short",
    "A teacher for eight seconds",
    "prediction",
    "medium",
    3,
    "Half of the channels were removed, and the network is trained again: four epochs of 2,000 pictures, from the same "
    "weights, once by hard labels and once by the logits of the network as it was before (T = 4, alpha = 0.1). Which "
    "of the two gets more of 2,000 validation pictures right? Answer with .predict(...), run both, then call "
    ".check(gain) with the points by which the distilled one is ahead.",
    (
        "The teacher has seen all 55,000 pictures, the labels speak of 2,000. And how many steps are there?",
        "The weights that are left know the clothes already. What is lost must be found again in 60 steps.",
    ),
    "One pair of runs, judged by 2,000 pictures: a standard error of about 0.7 points for each accuracy. Whatever "
    "came out, it is a hint about this budget and no more. The rows with five seeds later in the lesson are "
    "judged by five times as many pictures, with rates chosen for each training.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("The distilled one, by more than two points", ""),
            Option("Neither: they are within two points", ""),
            Option("The one on hard labels, by more than two points", ""),
        ),
        from_measurement=_letter_of_gain,
    ),
)


def round_weights(weight: Tensor, bits: int) -> Tensor:
    """A weight whose every filter takes at most 2^bits - 1 values: whole multiples of a step of its own."""
    largest = 2 ** (bits - 1) - 1
    filters = weight.flatten(1)
    step = filters.abs().amax(dim=1, keepdim=True) / largest
    step = step.clamp(min=1e-12)
    return ((filters / step).round() * step).reshape(weight.shape)


def _weights() -> list[Case]:
    generator = torch.Generator().manual_seed(21)

    def case(bits: int, *shape: int, apart: bool = True) -> Case:
        weight = torch.randn(*shape, generator=generator)
        if apart:  # filters of very different size, as those of a trained network are
            weight *= torch.logspace(-1, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        return Case((weight, bits))

    tiny = torch.tensor([[0.9, -0.4, 0.1], [-6.0, 2.5, 0.7]])
    dead = torch.randn(3, 2, 2, 2, generator=generator)
    dead[1] = 0
    faint = 0.003 * torch.randn(3, 4, generator=torch.Generator().manual_seed(22))
    limit = "A limit as large as a step rounds small filters away. It is there for 0 only: clamp(min=1e-12)."
    advice = "Its step is 0, and 0/0 is NaN. Dividing by step.clamp(min=1e-12) leaves zeros zero."
    return [
        Case((tiny, 3)),
        case(4, 5, 3, 3, 3),
        case(2, 4, 2, 3, 3),
        case(8, 6, 7),
        case(3, 3, 4, 1, 5),
        Case((dead, 4), "a filter of zeros only", advice),
        Case((faint, 8), "small filters", limit),
    ]


def _rounded(filters: Tensor, step: Tensor, shape: torch.Size) -> Tensor:
    return ((filters / step.clamp(min=1e-12)).round() * step).reshape(shape)


def _steps(w: Tensor, largest: int) -> Tensor:
    return w.flatten(1).abs().amax(dim=1, keepdim=True) / largest


ROUND = CodeSpec(
    "round_weights",
    "Few values for each filter",
    "code",
    "medium",
    8,
    "Write round_weights(weight, bits): round every filter to whole multiples of a step of its own, from -n to n with "
    "n = 2^(bits - 1) - 1, where the largest absolute weight of the filter is exactly n steps. weight is a "
    "tensor whose first dimension counts the filters (out x in x height x width, or out x in); the result has its "
    "shape, and floats. A filter of zeros stays a filter of zeros.",
    (
        "weight.flatten(1) has a row for each filter, whatever the shape. Its largest absolute value is "
        ".abs().amax(dim=1, keepdim=True).",
        "step = that / n; then divide by the step, .round(), multiply by the step, and .reshape(weight.shape).",
        "A filter of zeros has a step of 0: step.clamp(min=1e-12) keeps the division possible.",
    ),
    "compress.quantize_weights does this for every layer. Only the whole numbers and a step for each filter "
    "have to be stored. Such a step costs four bytes, and keeps small filters from being rounded away.",
    stub="def round_weights(weight, bits):\n    ...  # four or five lines",
    reference=round_weights,
    cases=_weights,
    mistakes=(
        Mistake(
            "one step for all filters",
            lambda w, b: _rounded(w.flatten(1), w.abs().max() / (2 ** (b - 1) - 1), w.shape),
            "You took one step for the whole tensor, so that small filters are rounded to zero. Each filter has a step "
            "of its own: amax(dim=1, keepdim=True) of weight.flatten(1).",
        ),
        Mistake(
            "a step for each input",
            lambda w, b: _rounded(w.flatten(1), w.flatten(1).abs().amax(0, keepdim=True) / (2 ** (b - 1) - 1), w.shape),
            "You took the largest over the filters. Each filter has a step: the largest over its own weights, dim=1.",
        ),
        Mistake(
            "twice too many values",
            lambda w, b: _rounded(w.flatten(1), _steps(w, 2**b - 1), w.shape),
            "Your n is 2^bits - 1, which leaves no bit for the sign. It is 2^(bits - 1) - 1 on either side of zero.",
        ),
        Mistake(
            "one value too many",
            lambda w, b: _rounded(w.flatten(1), _steps(w, 2 ** (b - 1)), w.shape),
            "Your n is 2^(bits - 1). With zero and both signs these are 2^bits + 1 values: subtract 1.",
        ),
        Mistake(
            "not scaled back",
            lambda w, b: (w.flatten(1) / _steps(w, 2 ** (b - 1) - 1).clamp(min=1e-12)).round().reshape(w.shape),
            "These are the whole numbers that would be stored. Multiply them by the step again.",
        ),
        Mistake(
            "rounded down",
            lambda w, b: (
                (w.flatten(1) / _steps(w, 2 ** (b - 1) - 1).clamp(min=1e-12)).floor() * _steps(w, 2 ** (b - 1) - 1)
            ).reshape(w.shape),
            "You rounded down, which shifts every weight by half a step on average. Round to the nearest: .round().",
        ),
        Mistake(
            "cut off",
            lambda w, b: (
                (w.flatten(1) / _steps(w, 2 ** (b - 1) - 1).clamp(min=1e-12)).trunc() * _steps(w, 2 ** (b - 1) - 1)
            ).reshape(w.shape),
            "You cut off what follows the point, which makes every weight smaller. Round to the nearest: .round().",
        ),
        Mistake(
            "sign forgotten",
            lambda w, b: _rounded(
                w.flatten(1), w.flatten(1).amax(dim=1, keepdim=True).abs() / (2 ** (b - 1) - 1), w.shape
            ),
            "You took the largest weight with its sign. A filter's largest one may be negative: .abs() comes first.",
        ),
        Mistake(
            "not in the shape of the weight",
            lambda w, b: round_weights(w, b).flatten(1),
            "The values are right, but the filters are still rows: .reshape(weight.shape) brings the shape back.",
        ),
        Mistake(
            "zero divided by zero",
            lambda w, b: ((w.flatten(1) / _steps(w, 2 ** (b - 1) - 1)).round() * _steps(w, 2 ** (b - 1) - 1)).reshape(
                w.shape
            ),
            "The formula is right, but a filter of zeros has a step of 0, and 0/0 is NaN. Divide by "
            "step.clamp(min=1e-12).",
        ),
    ),
)

LINES = QuestionSpec(
    "lines",
    "Why do they stand in one line?",
    "figure",
    "medium",
    4,
    "Look at the map of all networks. On the left, those with zeros stand in one vertical line with the whole network, "
    "and those with few bits move to the left. On the right, both stand in that line. What follows?",
    (
        "What does the file hold in the place of a weight that is zero, and what in the place of one of 4 bits?",
        "MACs are counted from the shapes of the layers. Which of the ways changes a shape?",
    ),
    "The file grows with the number of weights times their bits, the MACs with the shapes of the layers alone. Zeros "
    "change neither, bits the first, channels both. Neither axis is time: that has to be measured.",
    answer_key=MultipleChoice(
        (
            Option(
                "Zeros and few bits make a network slower than it was",
                "There is no time in this figure. MACs that stay the same say that no operation was saved, not that "
                "any was added.",
            ),
            Option(
                "Zeros save nothing, because neither of the two costs falls with them",
                "The zipped file does become smaller, as you measured; and hardware or kernels that leave out zeros "
                "exist. The figure shows neither of them.",
            ),
            Option(
                "Few bits are better than zeros, because they lie further to the left at the same MACs",
                "At 2 bits without further training the network is lost. To be better it must be as accurate, too.",
            ),
            Option(
                "A stored zero takes as many bytes as any float; few bits save bytes, and no MACs",
                "The file has four bytes for each float, be it zero or not, and fewer for one of few bits. MACs are "
                "counted from the shapes of the layers, which neither zeros nor bits change.",
                correct=True,
            ),
        )
    ),
)

BYTES = QuestionSpec(
    "bytes_of_bits",
    "How much smaller is it really?",
    "question",
    "easy",
    4,
    "A convolution of 16 filters, each 3 x 3 on 16 channels, has 16 * 16 * 9 weights, and no bias. In float32 each "
    "takes 4 bytes. In 2 bits the file holds the whole numbers, packed, and one float32 step for each filter. How many "
    "times smaller is it in 2 bits?",
    (
        "Four weights of 2 bits fit into one byte.",
        "16 steps of 4 bytes come on top. Then divide what it was by what it is.",
    ),
    "14.4 instead of 16: the steps cost a tenth. In a layer with 64 channels they cost less than a thirtieth. And the "
    "file of a whole network also holds the numbers of batch norm, in float32: that is why the ResNet-20 in 2 "
    "bits is only 11 or 12 times smaller.",
    answer_key=Numeric(
        9216 / 640,
        0.01,
        (
            (
                16.0,
                "These are the weights alone. Each of the 16 filters has a step of 4 bytes as well.",
            ),
            (640 / 9216, "You turned it over: divide what it was in float32 by what it is in 2 bits."),
            (4.0, "Four times is what 8 bits would give. These are 2 bits."),
        ),
    ),
)

EXERCISES = LessonSpec("02", "Try three ways to compress", (SHORT, ROUND, LINES, BYTES))
