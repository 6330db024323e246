"""Exercises of lesson 11, Will it run on the device?: int8 by hand, its speed, memory, and a budget of time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Numeric, Option, QuestionSpec

SAME = 1.2  # up to this ratio two times count as equal: machines that do other work as well measure no better


def _letter_of_speed(ratio: float) -> str:
    """The letter for the time in float32 divided by the time in int8; ValueError for what is no ratio of times."""
    ratio = float(ratio)
    if not 0 < ratio < math.inf:
        raise ValueError("a ratio of two times is a positive number")
    if ratio < 1 / SAME:
        return "a"
    return "b" if ratio <= SAME else "c" if ratio < 3.5 else "d"


FASTER = QuestionSpec(
    "faster",
    "How fast is int8?",
    "prediction",
    "easy",
    2,
    "The ResNet-20 as an ONNX file in float32, and the same network in int8, each weight in a quarter of the bytes. "
    "How does the time of one picture change on your machine, in ONNX Runtime with one thread? Answer with "
    ".predict(...), measure, then call .check(ratio) with the time in float32 divided by the time in int8.",
    (
        "How much of the time is spent on reading weights, how much on arithmetic, and how much on neither?",
        "Does your processor have instructions for products of 8-bit numbers? Does this runtime use them?",
    ),
    "No answer is right on every machine. A quarter of the bytes promises four times the speed only where reading "
    "the weights is what takes the time. The speed of int8 is a property of the file, the runtime and the processor "
    "together.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option("It is slower", ""),
            Option("It is about as fast, within 20 %", ""),
            Option("It is faster, but less than three and a half times", ""),
            Option("It is about four times as fast, or faster still", ""),
        ),
        from_measurement=_letter_of_speed,
    ),
)


def through_int8(values: Tensor, low: float, high: float) -> Tensor:
    """The values after they went through int8, for a range that was seen on calibration pictures."""
    scale = (high - low) / 255
    zero = round(-128 - low / scale)
    q = ((values / scale).round() + zero).clamp(-128, 127)
    return scale * (q - zero)


def _activations() -> list[Case]:
    generator = torch.Generator().manual_seed(11)

    def case(low: float, high: float, stretch: float = 1.0, edge: str = "", advice: str = "") -> Case:
        values = low + (high - low) * torch.rand(40, generator=generator, dtype=torch.double)
        # The zero point shows at the ends alone, where q is clipped: elsewhere it is added and taken off again.
        values[:3] = values.new_tensor([0.0, low, high])
        return Case((values * stretch, low, high), edge, advice)

    beyond = "values beyond the range that was seen"
    clip = "int8 ends at -128 and 127: clip q before you go back."
    example = Case((torch.tensor([-1.0, -0.3, 0.0, 0.5, 1.2]).double(), -1.0, 1.5))
    return [example, case(-0.7, 2.6), case(-0.8, 2.4), case(0.0, 6.0), case(-0.7, 2.6, 1.5, beyond, clip)]


def _with(
    values: Tensor,
    low: float,
    high: float,
    *,
    steps: int = 255,
    ends: tuple[int, int] = (-128, 127),
    whole: Callable[[float], int] = round,
) -> Tensor:
    scale = (high - low) / steps
    zero = whole(ends[0] - low / scale)
    return scale * (((values / scale).round() + zero).clamp(*ends) - zero)


def _only_q(values: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    return ((values / scale).round() + round(-128 - low / scale)).clamp(-128, 127)


def _without_zero(values: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    return scale * (values / scale).round().clamp(-128, 127)


def _broken_zero(values: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    zero = -128 - low / scale
    return scale * ((values / scale + zero).round().clamp(-128, 127) - zero)


def _broken_zero_beside(values: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    zero = -128 - low / scale
    return scale * (((values / scale).round() + zero).clamp(-128, 127) - zero)


def _symmetric(values: Tensor, low: float, high: float) -> Tensor:
    scale = max(-low, high) / 127
    return scale * (values / scale).round().clamp(-127, 127)


def _cut(values: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    zero = round(-128 - low / scale)
    return scale * (((values / scale).trunc() + zero).clamp(-128, 127) - zero)


def _overflows(values: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    zero = round(-128 - low / scale)
    return scale * (((values / scale).round() + zero).clamp(-128, 127).to(torch.int8) - zero)


def _unclipped(values: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    return scale * (values / scale).round()


_WHOLE_ZERO = "Your zero point is cut off and not rounded: round() takes the nearest whole number."

INT8 = CodeSpec(
    "through_int8",
    "Through int8 and back",
    "code",
    "medium",
    8,
    "Write through_int8(values, low, high): what becomes of numbers that are stored in int8. low and high are the "
    "smallest and the largest value that were seen on calibration pictures; they become -128 and 127. So the scale is "
    "(high - low) / 255, and the zero point is the whole number nearest to -128 - low / scale. A value v becomes "
    "q = round(v / scale) + zero, clipped to -128 ... 127, and comes back as scale * (q - zero).",
    (
        "Four lines: scale, zero, q, and the way back. The values stay a tensor of floats all the way.",
        "Python's round() makes zero a whole number; a tensor has .round() and .clamp(-128, 127).",
    ),
    "0 comes back as exactly 0, because the zero point is a whole number: padding and ReLU need that. Values in the "
    "range move by at most half a step. Values beyond it are cut off, which is why calibration pictures must look like "
    "those to come. kdlib's C files use these very numbers.",
    stub="def through_int8(values, low, high):\n    ...  # four lines",
    reference=through_int8,
    cases=_activations,
    mistakes=(
        Mistake(
            "not clipped",
            _unclipped,
            "Values beyond the range come back as if int8 had more than 256 numbers: clip q to -128 ... 127.",
        ),
        Mistake(
            "256 steps",
            lambda v, low, high: _with(v, low, high, steps=256),
            "You divided the range by 256. From -128 to 127 there are 256 numbers, and 255 steps between them.",
        ),
        Mistake(
            "without a zero point",
            _without_zero,
            "Without the zero point only a range around 0 fits. Add zero before you clip, and take it off on the way "
            "back.",
        ),
        Mistake(
            "the way back forgotten",
            _only_q,
            "These are the whole numbers q. The question asks for what they stand for: scale * (q - zero).",
        ),
        Mistake(
            "a broken zero point",
            _broken_zero,
            "Your zero point is not a whole number, so 0 does not come back as 0. Round it.",
        ),
        Mistake(
            "a broken zero point, added after rounding",
            _broken_zero_beside,
            "Your zero point is not a whole number, so q is none either and fits into no int8. Round it.",
        ),
        Mistake(
            "int8 overflows",
            _overflows,
            "Your q is of the type int8, and q - zero does not fit into it, so it wraps around: stay with floats, or "
            ".float() before you take zero off.",
        ),
        Mistake("zero point cut off", lambda v, low, high: _with(v, low, high, whole=int), _WHOLE_ZERO),
        Mistake("zero point rounded down", lambda v, low, high: _with(v, low, high, whole=math.floor), _WHOLE_ZERO),
        Mistake(
            "symmetric",
            _symmetric,
            "This is the symmetric scheme, which suits weights: where values are mostly positive, it wastes nearly "
            "half of the numbers. Use low and high.",
        ),
        Mistake(
            "cut off instead of rounded",
            _cut,
            "You cut the digits off. Round to the nearest whole number: the error halves.",
        ),
        Mistake(
            "from -127",
            lambda v, low, high: _with(v, low, high, steps=254, ends=(-127, 127)),
            "You left -128 out. That is usual for weights; here low becomes -128.",
        ),
    ),
)

MEMORY = QuestionSpec(
    "memory",
    "What would need less RAM?",
    "figure",
    "medium",
    3,
    "Look at the figure of flash and RAM. The student has less than a third of the teacher's weights, and needs the "
    "same RAM. Which change would lower it?",
    (
        "Which numbers change from picture to picture? Only those have to be in RAM.",
        "A map is given up as soon as the last layer has read it. So what counts is the moment when most is held.",
    ),
    "Weights lie in flash and are read from there. RAM is for maps, and its peak is in the first stage, where they "
    "have 28 x 28 pixels: a block holds three of them, 3 x 16 x 28 x 28 bytes, in the teacher as in the student. A "
    "chip with little RAM is served by small pictures, early strides and few channels at the start.",
    answer_key=MultipleChoice(
        (
            Option(
                "Weights of 4 bits instead of 8",
                "That would halve the flash. Weights are constants: they are read from flash, not kept in RAM.",
            ),
            Option(
                "Fewer blocks in each of the three stages",
                "The maps of a block take the place of older ones, so the largest moment stays the same. The student "
                "has a third of the teacher's blocks, and the same RAM.",
            ),
            Option(
                "Half the channels in the first stage",
                "There the maps are largest: 16 channels of 28 x 28 bytes each. Half of them is half of the peak, as "
                "long as no later stage needs more.",
                correct=True,
            ),
            Option(
                "A chip with twice as much flash",
                "Then larger weights would fit. The maps are written anew for each picture, and flash cannot be.",
            ),
        )
    ),
)

BUDGET = QuestionSpec(
    "budget",
    "What is left for the network?",
    "question",
    "easy",
    4,
    "A board runs at 120 MHz and is to look at 10 pictures a second. Reading the camera and scaling the picture take "
    "20 ms of each. How many million instructions may the network take at most, if the board did one in each cycle?",
    (
        "How many milliseconds does one picture have, and how many of them are left?",
        "120 MHz are 120 million cycles a second, or 0.12 million a millisecond.",
    ),
    "(100 - 20) ms x 120,000 cycles = 9.6 million, and the ResNet-8 takes three times as many. So this board cannot do "
    "it, however good its flash is. The other direction is never certain: a network that stays below may still be too "
    "slow, because instructions are not cycles.",
    answer_key=Numeric(
        9.6,
        0.02,
        mistakes=(
            (12.0, "That is the whole time between two pictures. The camera takes 20 ms of it."),
            (2.4, "These are the cycles that camera and scaling take. What is left for the network?"),
            (96.0, "That is what is left in a second, of all ten pictures. How much is it for one?"),
            (9_600.0, "These are thousands. The question asks for millions."),
            (9_600_000.0, "This is the number itself. The question asks for millions."),
            (0.08, "This is what is left of the time, in seconds. How many cycles does the board do in it?"),
        ),
    ),
)

EXERCISES = LessonSpec("11", "Will it run on the device?", (FASTER, INT8, MEMORY, BUDGET))
