"""A network of whole numbers: int8 weights and activations, int32 sums; what the C code computes, to the bit.

An activation q stands for scale * (q - zero): asymmetric, per tensor (Jacob et al. 2018, arXiv 1712.05877). Weights are
symmetric, with a scale for each output channel (Krishnamoorthi 2018, arXiv 1806.08342). A sum is brought to the scale
of its output by a multiplication and a shift in 64 bits instead of a floating-point factor: these give the same bits on
every processor and at every optimisation level, where a compiler may fuse or reorder floating-point arithmetic, and
need no floating-point unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.export.layers import NO_TENSOR, Layer, Shape, Window, trace

LOWEST, HIGHEST = -128, 127
LARGEST_WEIGHT = 127  # not -128: a symmetric range has no zero point
LARGEST_BIAS = 2**30  # half of int32, the other half is left for the products
MOST_TAPS = LARGEST_BIAS // (LARGEST_WEIGHT * 255)  # products in one sum, so that it cannot overflow
MOST_SHIFT = 62


@dataclass(frozen=True)
class Quantization:
    """An int8 number q stands for scale * (q - zero)."""

    scale: float
    zero: int

    def quantize(self, values: Tensor) -> Tensor:
        """The nearest int8 numbers, clipped to their range."""
        return (values.double() / self.scale).round().add(self.zero).clamp(LOWEST, HIGHEST).to(torch.int8)


@dataclass(frozen=True)
class Step:
    """One operation on whole numbers, from values to the value `output`.

    multiplier, shift: of each output channel (convolution, linear), of each input (addition; one shift), or of the one
    sum (average). low, high: what the output is clipped to.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    window: Window
    low: int
    high: int
    groups: int = 1
    weight: Tensor = NO_TENSOR  # int8, O x I / groups x kernel height x kernel width
    bias: Tensor = NO_TENSOR  # int32, with the zero point of the input in it
    multiplier: tuple[int, ...] = ()
    shift: tuple[int, ...] = ()


@dataclass(frozen=True)
class IntegerNetwork:
    """The steps, the shapes C x H x W and the scales of all values; logits are `logits_scale` times whole numbers."""

    steps: tuple[Step, ...]
    image: str
    logits: str
    shapes: dict[str, Shape]
    quantizations: dict[str, Quantization]
    logits_scale: float

    def quantize(self, images: Tensor) -> Tensor:
        """Normalised images N x C x H x W as int8; raises ValueError for another shape."""
        shape = self.shapes[self.image]
        if tuple(images.shape[1:]) != shape:
            raise ValueError(f"Images of {shape} (C, H, W) are expected, N x C x H x W; got {tuple(images.shape)}.")
        return self.quantizations[self.image].quantize(images)

    def integer_logits(self, images: Tensor) -> Tensor:
        """The int32 logits, N x classes, of int8 images N x C x H x W."""
        values = {self.image: images.double()}  # 53 bits hold every sum exactly, in whatever order it is added up
        for step in self.steps:
            inputs = [values[name] for name in step.inputs]
            if step.kind in ("convolution", "linear"):
                values[step.output] = self._convolve(step, *inputs)
            elif step.kind == "addition":
                values[step.output] = self._add(step, *inputs)
            elif step.kind == "max":
                values[step.output] = self._max(step, *inputs)
            elif step.kind == "average":
                values[step.output] = self._average(step, *inputs)
            else:
                values[step.output] = inputs[0].clamp(step.low, step.high)  # ReLU
        logits = values[self.logits].flatten(1).long()
        if self.steps[-1].kind != "linear":
            logits = logits - self.quantizations[self.logits].zero
        return logits.int()

    def __call__(self, images: Tensor) -> Tensor:
        """The float32 logits, N x classes, of normalised images N x C x H x W."""
        batches = self.quantize(images).split(250)
        return torch.cat([self.integer_logits(batch) for batch in batches]).float() * self.logits_scale

    def _clip(self, step: Step, sums: Tensor) -> Tensor:
        return (sums + self.quantizations[step.output].zero).clamp(step.low, step.high).double()

    def _convolve(self, step: Step, x: Tensor) -> Tensor:
        padded = _pad(x, step.window, self.shapes[step.output], self.quantizations[step.inputs[0]].zero)
        window = step.window
        sums = F.conv2d(
            padded, step.weight.double(), step.bias.double(), window.stride, 0, window.dilation, step.groups
        ).long()
        multiplier, shift = (torch.tensor(numbers)[:, None, None] for numbers in (step.multiplier, step.shift))
        scaled = rescale(sums, multiplier, shift)
        return scaled.double() if step.kind == "linear" else self._clip(step, scaled)

    def _add(self, step: Step, a: Tensor, b: Tensor) -> Tensor:
        zeros = [self.quantizations[name].zero for name in step.inputs]
        first, second = ((x.long() - zero) * m for x, zero, m in zip((a, b), zeros, step.multiplier, strict=True))
        return self._clip(step, rescale(first + second, torch.tensor(1), torch.tensor(step.shift[0])))

    def _max(self, step: Step, x: Tensor) -> Tensor:
        window = step.window
        padded = _pad(x, window, self.shapes[step.output], -math.inf)
        return F.max_pool2d(padded, window.kernel, window.stride, 0, window.dilation)

    def _average(self, step: Step, x: Tensor) -> Tensor:
        window = step.window
        centred = _pad(x - self.quantizations[step.inputs[0]].zero, window, self.shapes[step.output], 0)
        sums = F.avg_pool2d(centred, window.kernel, window.stride, divisor_override=1).long()
        return self._clip(step, rescale(sums, torch.tensor(step.multiplier[0]), torch.tensor(step.shift[0])))


def rescale(sums: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """sums * multiplier / 2^shift in int64, rounded to the nearest whole number, halves upwards."""
    return (sums * multiplier + (torch.ones_like(shift) << (shift - 1))) >> shift


def _pad(x: Tensor, window: Window, shape: Shape, value: float) -> Tensor:
    """x with as much around it, or cut off below and to the right, as windows without padding need for this shape."""
    sides: list[int] = []
    for axis in (1, 0):  # F.pad begins with the last
        reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        needed = (shape[1 + axis] - 1) * window.stride[axis] + reach
        sides += [window.padding[axis], needed - x.shape[2 + axis] - window.padding[axis]]
    return F.pad(x, sides, value=value)


def quantize(model: nn.Module, calibration: Tensor) -> IntegerNetwork:
    """The network in whole numbers, its scales from the lowest and highest values on the calibration images.

    calibration: normalised images N x C x H x W, some hundreds as they will come. Raises as `layers.trace`, and
    ValueError for a layer that adds up too many products for 32 bits.
    """
    traced = trace(model, calibration)
    quantizations: dict[str, Quantization] = {traced.image: _covering(*traced.ranges[traced.image])}
    steps = []
    logits_scale = 0.0
    for layer in traced.layers:
        source = quantizations[layer.inputs[0]]
        # These choose among values, so they need no scale of their own.
        keeps = layer.kind in ("max", "relu")
        target = source if keeps else _covering(*traced.ranges[layer.output])
        quantizations[layer.output] = target
        if layer.kind == "linear" and layer.output == traced.logits and layer.low is None:
            step, logits_scale = _last_linear(layer, source)
            steps.append(step)
        elif layer.kind in ("linear", "convolution"):  # a hidden linear layer is a convolution over its whole input
            steps.append(_convolution(layer, source, target))
        elif layer.kind == "addition":
            steps.append(_addition(layer, source, quantizations[layer.inputs[1]], target))
        elif layer.kind == "average":
            count = math.prod(layer.window.kernel)
            if count > MOST_TAPS:
                raise _too_many(layer, count)
            multiplier, shift = fixed_point(source.scale / target.scale / count)
            steps.append(_step(layer, target, multiplier=(multiplier,), shift=(shift,)))
        else:
            steps.append(_step(layer, target))
    if steps[-1].kind != "linear":
        logits_scale = quantizations[traced.logits].scale
    return IntegerNetwork(tuple(steps), traced.image, traced.logits, dict(traced.shapes), quantizations, logits_scale)


def fixed_point(factor: float) -> tuple[int, int]:
    """A factor as multiplier / 2^shift, with a multiplier of 31 bits unless the factor is below 2^-32."""
    fraction, exponent = math.frexp(factor)
    shift = min(31 - exponent, MOST_SHIFT)
    multiplier = round(math.ldexp(factor, shift))
    if multiplier == 2**31:  # rounded up to a power of two
        multiplier, shift = 2**30, shift - 1
    if shift < 1:
        raise ValueError(f"A scale has to be changed by {factor:.3g}, more than integer code can do.")
    return multiplier, shift


def _covering(low: float, high: float) -> Quantization:
    """The finest scale whose int8 numbers reach from low to high and hold 0 exactly, which padding and ReLU need."""
    low, high = min(low, 0.0), max(high, 0.0)
    # A value that is always 0 has no range; 1 for it, since a tiny scale could not be reached from that of its sums.
    scale = max((high - low) / (HIGHEST - LOWEST), 1e-30) if high > low else 1.0
    return Quantization(scale, max(LOWEST, min(HIGHEST, round(LOWEST - low / scale))))


def _step(layer: Layer, target: Quantization, kind: str | None = None, **more: object) -> Step:
    low = LOWEST if layer.low is None else target.zero + round(layer.low / target.scale)
    high = HIGHEST if layer.high is None else min(HIGHEST, target.zero + round(layer.high / target.scale))
    kind = kind or layer.kind
    return Step(kind, layer.name, layer.inputs, layer.output, layer.window, low, high, layer.groups, **more)  # type: ignore[arg-type]


def _integer_weights(layer: Layer, source: Quantization) -> tuple[Tensor, Tensor, Tensor]:
    """int8 weights, int32 biases and the float64 scale of each output channel's sums."""
    weight, bias = layer.weight.double(), layer.bias.double()
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError(f"The weights of {layer.name!r} are not finite.")
    taps = weight[0].numel()
    if taps > MOST_TAPS:
        raise _too_many(layer, taps)
    # Where weights are tiny beside the bias, a coarser scale keeps the bias within its 31 bits.
    finest = (bias.abs() / (LARGEST_BIAS * source.scale)).clamp(min=1e-30)
    scales = torch.maximum(weight.abs().flatten(1).amax(1) / LARGEST_WEIGHT, finest)
    whole = (weight / scales[:, None, None, None]).round().clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
    biases = (bias / (scales * source.scale)).round() - source.zero * whole.flatten(1).sum(1)
    return whole.to(torch.int8), biases.to(torch.int32), scales * source.scale


def _convolution(layer: Layer, source: Quantization, target: Quantization) -> Step:
    weight, bias, scales = _integer_weights(layer, source)
    factors = [fixed_point(scale / target.scale) for scale in scales.tolist()]
    multiplier, shift = zip(*factors, strict=True)
    return _step(layer, target, "convolution", weight=weight, bias=bias, multiplier=multiplier, shift=shift)


def _last_linear(layer: Layer, source: Quantization) -> tuple[Step, float]:
    """The classifier: its logits stay in 32 bits, at the coarsest scale of its rows, so that 8 bits make no ties."""
    weight, bias, scales = _integer_weights(layer, source)
    largest = scales.max().item()
    multiplier, shift = zip(*(fixed_point(scale / largest) for scale in scales.tolist()), strict=True)
    target = Quantization(largest, 0)
    return _step(layer, target, weight=weight, bias=bias, multiplier=multiplier, shift=shift), largest


def _addition(layer: Layer, first: Quantization, second: Quantization, target: Quantization) -> Step:
    """Both inputs are brought to the output's scale with one shift, and rounded once."""
    factors = [source.scale / target.scale for source in (first, second)]
    _, exponent = math.frexp(max(factors))
    shift = min(max(20 - exponent, 1), MOST_SHIFT)
    multipliers = tuple(round(math.ldexp(factor, shift)) for factor in factors)
    if max(multipliers) > 2**30:
        raise ValueError(f"The inputs of {layer.name!r} are too large for its output, which integer code cannot add.")
    return _step(layer, target, multiplier=multipliers, shift=(shift,))


def _too_many(layer: Layer, count: int) -> ValueError:
    return ValueError(f"{layer.name!r} adds up {count} products; 32 bits hold {MOST_TAPS} for certain.")
