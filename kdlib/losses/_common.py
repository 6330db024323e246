"""What all losses share: checks of the arguments, and operations that stay finite on degenerate input."""

import functools
import math
from collections.abc import Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

# Differences below this share of what was subtracted are rounding noise: some eight units in the last place
# of float32. Dividing by such a difference would give a meaningless direction and a gradient of 1e7 or more.
ROUNDING = 1e-6
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.001, 1000


def as_floats(**tensors: Tensor) -> list[Tensor]:
    """The tensors in one dtype, float32 or better, after naming any that is no batch of real numbers.

    Half precision has too few digits for the sums and logarithms in a loss, so float16 and bfloat16 are
    converted up; float64 stays float64. Raises TypeError (no tensor, no floats) and ValueError (empty).
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}: use torch.as_tensor")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must hold floating-point numbers, got {tensor.dtype}: call .float() on it")
        if tensor.numel() == 0:
            raise ValueError(f"{name} is empty, shape {shape(tensor)}: a batch needs at least one sample")
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors.values()), torch.float32)
    return [tensor.to(dtype) for tensor in tensors.values()]


def sum_to_one(values: Tensor, dim: int = -1) -> bool:
    """Whether all sums along dim are 1 within 1e-3; within 1e-2 for numbers of bfloat16, whose rounding adds up."""
    values = values if values.dtype == torch.float64 else values.float()
    rounded = torch.equal(values, values.bfloat16().to(values.dtype))  # in whatever dtype they come
    return bool(((values.sum(dim) - 1).abs() <= (1e-2 if rounded else 1e-3)).all())


def check_number(name: str, value: float, *, zero_allowed: bool = False) -> None:
    """Refuse whatever is not a finite number above zero (or, on request, zero itself)."""
    if not isinstance(value, Real):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a plain number, got {kind}: convert it before training")
    large_enough = value >= 0 if zero_allowed else value > 0
    if not (large_enough and value < math.inf):
        bound = "at least 0" if zero_allowed else "above 0"
        raise ValueError(f"{name} must be finite and {bound}, got {value}")


def check_temperature(value: float, dtype: torch.dtype) -> None:
    """Refuse a temperature whose square, or whose flat probabilities, logits of this dtype cannot bear.

    Beyond these bounds the loss is zero, not finite, or mostly rounding noise: for logits of spread 1, kd in float32
    is off by one or two per cent at T = 1,000 and by more than itself at 10,000.
    """
    check_number("temperature", value)
    highest = HIGHEST_TEMPERATURE * (1000 if dtype == torch.float64 else 1)
    if not LOWEST_TEMPERATURE <= value <= highest:
        raise ValueError(
            f"temperature must lie between {LOWEST_TEMPERATURE} and {highest}, got {value}: beyond, rounding leaves "
            "nothing of the loss"
        )


def rows_of(minimum: int, **tensors: Tensor) -> list[Tensor]:
    """The tensors as B x D in one float dtype, if they hold one batch of at least `minimum` samples."""
    floats = as_floats(**tensors)
    _check_batches(minimum, tensors)
    return [in_a_row(tensor) for tensor in floats]


def in_a_row(tensor: Tensor) -> Tensor:
    """B x D: the numbers of each sample, in the order of memory, so that nothing is copied.

    For relations between samples, which do not mind an order that all samples share.
    """
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.flatten(1)


def layers_of(name: str, layers: Sequence[Tensor]) -> list[Tensor]:
    """The layers in one float dtype, in their own shapes, if there are two or more on one batch."""
    if isinstance(layers, Tensor):
        raise TypeError(f"{name} must be a sequence with one tensor per layer, got a single tensor")
    if len(layers) < 2:
        raise ValueError(f"{name} needs at least 2 layers to relate, got {len(layers)}")
    named = {f"{name}[{i}]": layer for i, layer in enumerate(layers)}
    floats = as_floats(**named)
    _check_batches(2, named)
    return floats


def _check_batches(minimum: int, tensors: dict[str, Tensor]) -> None:
    first, reference = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            raise ValueError(f"{name} must be batch x features, got shape {shape(tensor)}")
        if len(tensor) != len(reference):
            raise ValueError(
                f"{first} {shape(reference)} and {name} {shape(tensor)} must hold the same batch of samples"
            )
        if len(tensor) < minimum:
            raise ValueError(
                f"{name} has {len(tensor)} sample(s), relations need at least {minimum}: leave out a last batch that "
                "is too small, DataLoader(..., drop_last=True)"
            )


def shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape as a plain tuple, which reads better in a message than torch.Size."""
    return tuple(tensor.shape)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """a b^T over the last dimension, in the precision of its arguments even under autocast.

    Autocast would compute this product in half precision, although the losses promise float32.
    """
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.mT


def symmetric_gram(rows: Tensor) -> Tensor:
    """rows rows^T, whose gradient takes one matrix product instead of two.

    Only for what treats the matrix and its transpose alike: then its gradient G is symmetric, and what reaches
    the rows is (G + G^T) rows = 2 G rows.
    """
    half = inner(rows, rows.detach())
    return 2 * half - half.detach()  # the value of half, twice its gradient


def divide(x: Tensor, size: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """x / size, but exactly zero, with zero gradient, wherever size does not rise above noise.

    Dividing by infinity does both at once; adding a small epsilon to size instead would leave a gradient
    of 1 / epsilon behind.
    """
    return x / size.masked_fill(size <= noise, math.inf)


def unit(x: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """Vectors along the last dimension scaled to Euclidean norm 1; those not above noise become zero."""
    return divide(x, torch.linalg.vector_norm(x, dim=-1, keepdim=True), noise)


def rescaled(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """x over its largest absolute value along `dim`, taken as a constant and rounded down to a power of two.

    For what does not depend on the scale but squares its numbers, which leave float32 above 1e19 and below 1e-19. A
    power of two changes no digit. Zeros stay zero.
    """
    return divide(x, x.detach().abs().amax(dim, keepdim=True).log2().floor().exp2())


def centred_unit(x: Tensor) -> Tensor:
    """The rows of a matrix less their mean, scaled to norm 1; a constant row becomes zero.

    The inner product of two such rows is Pearson's correlation.
    """
    size = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return unit(x - x.mean(dim=1, keepdim=True), noise=ROUNDING * size)


def off_mps(tensor: Tensor) -> Tensor:
    """The tensor, on the CPU if it is on MPS: for the few operations that torch does not have there.

    Bring results back by `.to(device)` alone: of one `.to` that changes the dtype, too, the backward pass fails on MPS.
    """
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def averaged_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps B x C x H x W, average-pooled to `size`; as they are where that is their size."""
    if tuple(maps.shape[2:]) == tuple(size):  # torch would spend time on pooling by 1
        return maps
    if maps.device.type == "mps":
        if any(side % wanted for side, wanted in zip(maps.shape[2:], size, strict=True)):
            return F.adaptive_avg_pool2d(maps.cpu(), size).to(maps.device)  # MPS pools only where the sizes divide
        # It takes maps with channels last, as of tokens, for others, and so do gradients (pytorch 174345 and 175190).
        maps = maps.clone(memory_format=torch.contiguous_format)
    return F.adaptive_avg_pool2d(maps, size)
