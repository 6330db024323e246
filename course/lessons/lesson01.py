"""Exercises of lesson 01, Why must models shrink?: parameters, bytes and MACs by hand, and what they do not show."""

from __future__ import annotations

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Numeric, Option, QuestionSpec

BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}


def conv_parameters(kernel: int, inputs: int, outputs: int, bias: bool) -> int:
    """Parameters of a convolution with a square kernel."""
    weights = kernel * kernel * inputs * outputs
    biases = outputs if bias else 0
    return weights + biases


CONV_PARAMETERS = CodeSpec(
    "conv_parameters",
    "Parameters of a convolution",
    "code",
    "easy",
    4,
    "Write conv_parameters(kernel, inputs, outputs, bias): how many parameters has a convolution with a kernel x "
    "kernel window, that many input channels and that many output channels? bias is True or False.",
    (
        "One output channel has a window of its own on every input channel.",
        "Each output channel needs kernel x kernel x inputs weights and, with a bias, one number more.",
    ),
    "The width enters twice, as inputs and as outputs: half the width everywhere is about a quarter of the parameters.",
    stub="def conv_parameters(kernel, inputs, outputs, bias):\n    ...  # three lines",
    reference=conv_parameters,
    cases=lambda: [
        Case(given) for given in ((3, 16, 32, True), (7, 3, 64, False), (1, 64, 24, True), (5, 4, 6, False))
    ],
    mistakes=(
        Mistake(
            "kernel once",
            lambda k, i, o, b: k * i * o + o * b,
            "The window is kernel x kernel, but you counted one side of it only.",
        ),
        Mistake(
            "inputs forgotten",
            lambda k, i, o, b: k * k * o + o * b,
            "Each output channel looks at all input channels, with other weights for each.",
        ),
        Mistake(
            "outputs forgotten",
            lambda k, i, o, b: k * k * i + o * b,
            "These are the weights of a single output channel. Each output channel has its own.",
        ),
        Mistake(
            "bias always",
            lambda k, i, o, b: k * k * i * o + o,
            "You added the bias even where bias is False.",
        ),
        Mistake("bias never", lambda k, i, o, b: k * k * i * o, "Where bias is True, the biases are missing."),
        Mistake(
            "one bias",
            lambda k, i, o, b: k * k * i * o + int(b),
            "There is not one bias for the whole layer: each output channel has one.",
        ),
        Mistake(
            "bias of the inputs",
            lambda k, i, o, b: k * k * i * o + i * b,
            "The bias belongs to the output channels, not to the input channels.",
        ),
        Mistake(
            "bias everywhere",
            lambda k, i, o, b: (k * k * i + i * b) * o,
            "You counted a bias for each pair of channels. Each output channel has one.",
        ),
    ),
)


def size_in_bytes(parameters: int, precision: str) -> int:
    """Bytes that the weights take in a precision; the last one may be half empty."""
    bits = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}
    return (parameters * bits[precision] + 7) // 8


SIZE = CodeSpec(
    "size_in_bytes",
    "From parameters to bytes",
    "code",
    "easy",
    4,
    'Write size_in_bytes(parameters, precision): how many bytes do the weights take? precision is "fp32", "fp16", '
    '"bf16", "int8" or "int4"; the number in the name is the number of bits; two int4 share a byte.',
    (
        "A dictionary can hold the bits of each precision. How many bits are a byte?",
        'bits = {"fp32": 32, ...}; then parameters times bits[precision], divided by 8.',
    ),
    "A ResNet-50 takes 102 MB in fp32 and 26 MB in int8; lower precision and fewer parameters multiply.",
    stub="def size_in_bytes(parameters, precision):\n    ...  # two or three lines",
    reference=size_in_bytes,
    cases=lambda: [
        Case(given)
        for given in (
            (1_000, "fp32"),
            (25_557_032, "fp16"),
            (77_754, "bf16"),
            (11_689_512, "int8"),
            (335_000_000, "int4"),
        )
    ],
    mistakes=(
        Mistake("bits", lambda n, p: n * BITS[p], "These are bits. A byte has eight of them."),
        Mistake(
            "upside down",
            lambda n, p: n * 8 / BITS[p],
            "The ratio is upside down: you divided by the bits. Fewer bits are fewer bytes.",
        ),
        Mistake(
            "upside down, of fp32",
            lambda n, p: 4 * n * 32 / BITS[p],
            "The ratio is upside down: with fewer bits the weights take less than in fp32.",
        ),
        Mistake(
            "always four bytes",
            lambda n, p: 4 * n,
            "You take four bytes for every weight. That is fp32; the other precisions need less.",
        ),
        Mistake(
            "bf16 as fp32",
            lambda n, p: n * (32 if p == "bf16" else BITS[p]) / 8,
            "bf16 has the range of fp32 but only 16 bits: two bytes a weight.",
        ),
        Mistake(
            "int4 as a byte",
            lambda n, p: n * max(BITS[p] // 8, 1),
            "Four bits are half a byte: two int4 weights share one.",
        ),
        Mistake(
            "int4 lost",
            lambda n, p: n * (BITS[p] // 8),
            "4 // 8 is 0 in whole numbers. Multiply first and divide afterwards, or divide with /.",
        ),
        Mistake("megabytes", lambda n, p: n * BITS[p] / 8e6, "These are megabytes. The question is about bytes."),
        Mistake(
            "mebibytes",
            lambda n, p: n * BITS[p] / 8 / 2**20,
            "These are mebibytes (2^20 bytes). The question is about bytes.",
        ),
    ),
)


def conv_macs(kernel: int, inputs: int, outputs: int, height: int, width: int) -> int:
    """Multiply-accumulates of a convolution whose output map is height x width."""
    for_one_value = kernel * kernel * inputs
    values = outputs * height * width
    return for_one_value * values


MACS = CodeSpec(
    "conv_macs",
    "MACs of a convolution",
    "code",
    "medium",
    5,
    "Write conv_macs(kernel, inputs, outputs, height, width): how many multiply-accumulates (MACs) does a convolution "
    "need for one image? height and width are those of its output map. A bias is not counted.",
    (
        "How many multiplications does a single number of the output need? How many numbers has the output?",
        "A number needs kernel x kernel x inputs MACs; the output has outputs x height x width numbers.",
    ),
    "The parameters are used again at every place of the map: images of twice the side cost four times the MACs and "
    "not one parameter more.",
    stub="def conv_macs(kernel, inputs, outputs, height, width):\n    ...  # three lines",
    reference=conv_macs,
    cases=lambda: [
        Case(given) for given in ((3, 16, 32, 14, 14), (7, 3, 64, 112, 112), (1, 64, 256, 56, 28), (5, 8, 24, 9, 13))
    ],
    mistakes=(
        Mistake(
            "parameters",
            lambda k, i, o, h, w: k * k * i * o,
            "These are the weights. Each of them is used at every place of the output map.",
        ),
        Mistake(
            "FLOPs",
            lambda k, i, o, h, w: 2 * k * k * i * o * h * w,
            "You counted a multiplication and an addition apart: these are FLOPs. One MAC is both together.",
        ),
        Mistake(
            "inputs forgotten",
            lambda k, i, o, h, w: k * k * o * h * w,
            "Each output number adds up over all input channels.",
        ),
        Mistake(
            "outputs forgotten",
            lambda k, i, o, h, w: k * k * i * h * w,
            "This is one output map. There are as many maps as output channels.",
        ),
        Mistake(
            "kernel once",
            lambda k, i, o, h, w: k * i * o * h * w,
            "The window is kernel x kernel, but you counted one side of it only.",
        ),
        Mistake(
            "square map",
            lambda k, i, o, h, w: k * k * i * o * h * h,
            "You used the height twice. The map need not be square: height x width.",
        ),
        Mistake(
            "bias counted",
            lambda k, i, o, h, w: (k * k * i + 1) * o * h * w,
            "There is one operation too many for each output number: a bias is not counted here.",
        ),
    ),
)

RESNETS = QuestionSpec(
    "resnets",
    "How much larger is ResNet-50?",
    "prediction",
    "medium",
    2,
    "ResNet-18 has 18 layers with weights, ResNet-50 has 50. How many times as many parameters has ResNet-50? Answer "
    "with .predict(...), count both models in the next cell, then call .check(ratio).",
    (
        "If every layer had the same number of parameters, it would be 50 / 18. Do they?",
        "The blocks of ResNet-50 first squeeze the channels with a 1 x 1 convolution. What does that do to the 3 x 3 "
        "one?",
    ),
    "With ImageNet's 1,000 classes ResNet-18 has 11.69 million parameters and ResNet-50 has 25.56 million, 2.19 times "
    "as many; the MACs at 224 x 224 pixels are 1.81 and 4.09 billion, 2.25 times as many. Depth alone says little.",
    is_prediction=True,
    answer_key=Numeric(
        2.186,
        0.15,
        (
            (
                50 / 18,
                "You went by the number of layers. But a ResNet-50 has many 1 x 1 convolutions, which are cheaper than "
                "the 3 x 3 ones of a ResNet-18.",
            ),
            (
                1 / 2.186,
                "This is the other way round: ResNet-18 as a share of ResNet-50. Divide the larger by the smaller.",
            ),
            (18 / 50, "This is the other way round, and by the number of layers: divide the larger by the smaller."),
            ((50 / 18) ** 2, "Parameters grow with the square of the width, but only in proportion to the depth."),
        ),
    ),
)

LATENCY = QuestionSpec(
    "latency",
    "Why do equal MACs take unequal time?",
    "figure",
    "medium",
    4,
    "In the figure of latency against MACs the networks made to be small lie above the dotted line: a MAC takes "
    "longer in them than in a ResNet-50, in some of them several times as long. What explains this best?",
    (
        "A processor does not only calculate. Where do the numbers come from?",
        "A depthwise convolution does few MACs for each number that it reads. What does the processor do meanwhile?",
    ),
    "So count MACs to compare designs, but measure the latency on the device that has to run the model.",
    answer_key=MultipleChoice(
        (
            Option(
                "A MAC of a depthwise convolution takes more computing than one of an ordinary one",
                "A MAC is one multiplication and one addition in every layer. SqueezeNet 1.1 has no depthwise "
                "convolutions, and lies above the line, too.",
            ),
            Option(
                "MACs leave out what is read from memory, and the start of each layer",
                "Where few MACs are done for each number that is moved, the processor waits for the memory (the layer "
                "is memory-bound); many small layers add a fixed cost each.",
                correct=True,
            ),
            Option(
                "Latency is mostly chance, so the differences mean nothing",
                "Single runs do scatter, which is why the median of several is shown, with its spread. These "
                "differences are far beyond it, and come back in every measurement.",
            ),
            Option(
                "MACs are counted for one image, but the latency is that of a whole batch",
                "Both are for one image here. With larger batches latency is still not proportional to MACs.",
            ),
        )
    ),
)

EXERCISES = LessonSpec("01", "Why must models shrink?", (CONV_PARAMETERS, SIZE, MACS, RESNETS, LATENCY))
