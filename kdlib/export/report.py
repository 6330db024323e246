"""What an exported network is worth: its bytes, its accuracy, how far it agrees with the float network, its speed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import compress, evaluation, measure
from kdlib.data import IndexedDataset
from kdlib.errors import check_flags, check_path, check_real
from kdlib.export._common import Predict, check_file, float_copy, refuse_changing_hooks
from kdlib.guards import eval_mode

BATCH = 250  # images at once
LEAST_AGREEMENT = 0.95
LARGEST_DIFFERENCE = 1e-3  # of float32 logits, by another order of the same additions
ROUNDS = 5


@dataclass(frozen=True)
class ExportReport:
    """How an exported file compares with the float network in PyTorch, on the same images.

    bytes: of the file; zipped_bytes: of the file compressed by zlib, as it travels. accuracy, float_accuracy: of the
    file and of the float network, in [0, 1]. agreement: share of images on which both choose the same class.
    largest_difference: of two logits. latency_ratio: time of the file for one image, in one thread, divided by that of
    the float network in eager PyTorch in the same run; below 1 is faster. images: how many were compared.
    """

    format: str
    path: str
    bytes: int
    zipped_bytes: int
    accuracy: float
    float_accuracy: float
    agreement: float
    largest_difference: float
    latency_ratio: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def check(
    predict: Predict,
    model: nn.Module,
    dataset: IndexedDataset,
    *,
    format: str,
    path: str | Path,
    quantized: bool,
    least_agreement: float = LEAST_AGREEMENT,
    seconds: float = 0.1,
) -> ExportReport:
    """Compare an exported network with the one it was made from, and refuse it if they differ.

    predict: what `load_onnx` and its like give. model: the float network. dataset: a validation or test split; its
    labels decide nothing. quantized: whether the file computes in integers; then both networks must choose the same
    class for a share of at least `least_agreement` of the images, otherwise no two logits may differ by more than
    0.001, or by a thousandth of the largest logit. seconds: for which each of the two is timed in each of five turns.
    Raises ValueError for an export that is refused or cannot be run on these images, for a forward hook that changes
    the network's answers, and what `evaluate` raises.
    """
    check_path(path=path)
    check_flags(quantized=quantized)
    check_real(least_agreement=least_agreement, seconds=seconds)
    if not 0 <= least_agreement <= 1:
        raise ValueError(f"least_agreement is a share, from 0 to 1; got {least_agreement}.")
    if not 0 < seconds <= measure.MAX_SECONDS:
        raise ValueError(f"seconds is a time above 0 and up to {measure.MAX_SECONDS}; got {seconds}.")
    content = check_file(path).read_bytes()
    network = float_copy(model)
    expected = evaluation.evaluate(network, dataset, device="cpu", precision="fp32", batch_size=BATCH, role="network")
    refuse_changing_hooks(model, next(iter(dataset.iter_batches(BATCH))).images)
    logits = _outputs(predict, dataset, expected.logits, path)
    difference = (logits - expected.logits).abs().max().item()
    agreement = measure.agreement(logits, expected.logits)
    _refuse_other_answers(format, expected.logits, difference, agreement, quantized, least_agreement)
    image = next(iter(dataset.iter_batches(1))).images
    return ExportReport(
        format=format,
        path=str(path),
        bytes=len(content),
        zipped_bytes=len(zlib.compress(content, 9)),
        accuracy=measure.accuracy(logits, dataset.labels),
        float_accuracy=expected.accuracy,
        agreement=agreement,
        largest_difference=difference,
        latency_ratio=latency_ratio(predict, float_copy(model), image, seconds),
        images=len(logits),
    )


def _outputs(predict: Predict, dataset: IndexedDataset, expected: Tensor, path: str | Path) -> Tensor:
    """The exported network's logits for all images; ValueError where it fails or gives something else."""
    try:
        logits = torch.cat([predict(batch.images).float() for batch in dataset.iter_batches(BATCH)])
    except Exception as error:  # each runtime has its own
        raise ValueError(f"{path} was refused: it fails on images that the network takes ({error}).") from error
    if logits.shape != expected.shape:
        raise ValueError(
            f"{path} was refused: it gives logits of {tuple(logits.shape)}, the network {tuple(expected.shape)}."
        )
    bad = int((~logits.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"{path} was refused: its logits are not finite for {bad:,} of {len(logits):,} images.")
    return logits


def _refuse_other_answers(
    format: str, expected: Tensor, difference: float, agreement: float, quantized: bool, least_agreement: float
) -> None:
    allowed = LARGEST_DIFFERENCE * max(1.0, expected.abs().max().item())
    if not quantized and difference > allowed:
        raise ValueError(
            f"The {format} export was refused and not kept: its logits differ by up to {difference:.3g} from the "
            f"network's, and {allowed:.3g} is allowed. A layer may depend on the batch or on chance: look at forward."
        )
    if quantized and agreement < least_agreement:
        processor = ""
        if "onnx" in format and compress.sums_overflow():
            processor = " Or this processor is the cause: it has no VNNI and may compute wrong sums of int8 products."
        raise ValueError(
            f"The {format} export was refused and not kept: it chooses the network's class for {agreement:.1%} of "
            f"{len(expected):,} images, and {least_agreement:.1%} is asked for. Calibrate on training images, "
            f"normalized as for the network; ask for less, by least_agreement; or export in float.{processor}"
        )


def latency_ratio(predict: Predict, model: nn.Module, image: Tensor, seconds: float = 0.1) -> float:
    """Time of `predict` for a batch divided by the model's in eager PyTorch, in one thread; below 1 is faster.

    Both are warmed up and timed in turns, so that whatever else the machine does strikes both; medians are compared.
    Networks, of which `predict` may be one, are timed in eval mode, and are in their own modes afterwards.
    image: a batch 1 x C x H x W. seconds: for each of the two in each turn.
    """
    from torch.utils.benchmark import Timer

    image = image.clone(memory_format=torch.contiguous_format)
    timers = [Timer("run(image)", globals={"run": run, "image": image}, num_threads=1) for run in (predict, model)]
    times: list[list[float]] = [[], []]
    with ExitStack() as stack, torch.inference_mode():
        for network in (predict, model):
            if isinstance(network, nn.Module):
                stack.enter_context(eval_mode(network))
        for timer in timers:
            timer.timeit(3)
        for _ in range(ROUNDS):
            for timer, measured in zip(timers, times, strict=True):
                measured.append(timer.blocked_autorange(min_run_time=seconds).median)
    exported, eager = (median(measured) for measured in times)
    return exported / eager if eager else math.nan


def table(reports: Sequence[ExportReport]) -> str:
    """The reports as lines of text, one a format."""
    names = ("format", "bytes", "zipped", "accuracy", "agreement", "latency ratio")
    rows = [
        (
            one.format,
            f"{one.bytes:,}",
            f"{one.zipped_bytes:,}",
            f"{one.accuracy:.4f}",
            f"{one.agreement:.4f}",
            f"{one.latency_ratio:.2f}",
        )
        for one in reports
    ]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    first, *others = widths
    return "\n".join(
        "  ".join([f"{row[0]:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], others, strict=True))])
        for row in (names, *rows)
    )
