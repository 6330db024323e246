"""Each loss alone, forward and backward, beside the matrix products that it cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from rounds import Row, at_most
from torch import Tensor
from torch.utils.benchmark import Timer

from kdlib import losses
from kdlib.losses._common import in_a_row, inner

BATCH = 128
Tensors = Sequence[Tensor]


def grams(student: Tensors, teacher: Tensors) -> list[Tensor]:
    """The B x B products of each layer with itself."""
    return [inner(in_a_row(x), in_a_row(x)) for x in (*student, *teacher)]


def wide_grams(student: Tensors, teacher: Tensors) -> list[Tensor]:
    """The same in float64."""
    return grams([x.double() for x in student], [x.double() for x in teacher])


def triplets(student: Tensors, teacher: Tensors) -> list[Tensor]:
    """For each sample, the B x B products of the differences from it: what the cosines of all triplets take."""
    differences = [x - x[:, None] for (x,) in (student, teacher)]
    return [inner(x, x) for x in differences]


def flows(student: Tensors, teacher: Tensors) -> list[Tensor]:
    """The products between the channels of two layers, pooled to one size."""
    pooled = [(F.adaptive_avg_pool2d(a, b.shape[2:]), b) for a, b in (student, teacher)]
    return [inner(a.flatten(2), b.flatten(2)) for a, b in pooled]


# What is measured: the loss, its products, the shapes of the student's and of the teacher's tensors.
EMBEDDING = ([(512,)], [(512,)])
MAPS = ([(64, 7, 7)], [(256, 4, 4)])
PAIR = ([(64, 14, 14), (128, 7, 7)], [(64, 14, 14), (128, 7, 7)])
LAYERS = ([(16, 28, 28), (32, 14, 14), (64, 7, 7)], [(64, 14, 14), (128, 7, 7), (256, 4, 4)])
CASES: dict[str, tuple[Callable, Callable, tuple[list, list], bool]] = {
    "rkd_distance": (losses.rkd_distance, wide_grams, EMBEDDING, False),
    "rkd_angle": (losses.rkd_angle, triplets, EMBEDDING, False),
    "similarity": (losses.similarity, grams, MAPS, False),
    "correlation_congruence": (losses.correlation_congruence, grams, EMBEDDING, False),
    "fsp": (losses.fsp, flows, PAIR, True),
    "layer_correlation": (losses.layer_correlation, grams, LAYERS, True),
    "layer_information": (losses.layer_information, grams, LAYERS, True),
}


def seconds(
    compute: Callable[[Tensors, Tensors], list[Tensor]], student: Tensors, teacher: Tensors, full: bool
) -> float:
    """The median time of one forward pass, and one backward pass from gradients that are not all the same."""
    gradients = [torch.randn_like(output) for output in compute(student, teacher)]

    def step() -> None:
        for tensor in student:
            tensor.grad = None
        outputs = [(o, g) for o, g in zip(compute(student, teacher), gradients, strict=True) if o.requires_grad]
        torch.autograd.backward(*zip(*outputs, strict=True))

    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=0.5 if full else 0.2).median


def _drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    drawn = torch.randn(BATCH, *shape, generator=generator)
    return drawn.to(memory_format=torch.channels_last) if len(shape) == 3 else drawn  # as the networks give them


def run(full: bool) -> Iterator[Row]:
    """One row a loss."""
    generator = torch.Generator().manual_seed(0)
    for name, (loss, products, shapes, several) in CASES.items():
        student, teacher = ([_drawn(shape, generator) for shape in s] for s in shapes)
        for tensor in student:
            tensor.requires_grad_()
        arguments = (student, teacher) if several else (student[0], teacher[0])
        least = seconds(products, student, teacher, full)
        whole = seconds(lambda s, t, loss=loss, given=arguments: [loss(*given)], student, teacher, full)
        detail = f"{1e3 * whole:.2f} ms, its products {1e3 * least:.2f} ms"
        yield at_most(f"{name} against its products", whole / least, 1.5, detail)
