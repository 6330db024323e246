"""ExecuTorch files for phones, in float32 and in int8, computed by XNNPACK, and how they run here.

The file is the one that the Android and iOS runtimes load; here the same engine runs it on this machine's CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.errors import check_path, check_whole
from kdlib.export._common import (
    Predict,
    calibration_sample,
    check_file,
    check_images,
    check_input,
    check_output,
    explain,
    float_copy,
    need,
    quiet,
    refuse_changing_hooks,
    trace,
)
from kdlib.files import atomic_write

PARTITIONER = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
QUANTIZER = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
PT2E = "torchao.quantization.pt2e.quantize_pt2e"
RUNTIME = "executorch.runtime"
POOL = "executorch.extension.pybindings.portable_lib"


def to_executorch(model: nn.Module, path: str | Path, example: Tensor, calibration: Tensor | None = None) -> Path:
    """Write a network to an ExecuTorch file (.pte) for XNNPACK, which takes one image at a time, as a phone does.

    example: normalized images N x C x H x W, of which the first says the shape. calibration: normalized training
    images, of which at most 512 are used; with them the network is quantized to int8 (weights a scale for each
    channel, by torchao's PT2E), without them it stays in float32. The model is left as it was, its mode included.
    What the file answers is not compared with the network: `export` does that.
    Raises ImportError without the extra kdlib[deploy], ValueError for a network, an example or calibration images
    that do not fit and for a forward hook that changes the answers, OSError if the file cannot be written.
    """
    check_path(path=path)
    partitioner, exir = need(PARTITIONER, "executorch.exir", extra="deploy")
    network, images = float_copy(model), check_images("example", example)
    sample = None if calibration is None else calibration_sample(calibration)
    one = images[:1].clone(memory_format=torch.contiguous_format)
    check_output(network, one)
    refuse_changing_hooks(model, one)
    with quiet():
        traced = trace(network, one, dynamic=False)
        with explain(model, "cannot be lowered to XNNPACK", "Replace that layer by one that is known there"):
            if sample is not None:
                traced = torch.export.export(_quantize(traced.module(), sample), (one,))
            lowered = exir.to_edge_transform_and_lower(traced, partitioner=[partitioner.XnnpackPartitioner()])
            content = bytes(lowered.to_executorch().buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


@torch.no_grad()
def _quantize(graph: nn.Module, images: Tensor) -> nn.Module:
    quantizer, pt2e = need(QUANTIZER, PT2E, extra="deploy")
    config = quantizer.get_symmetric_quantization_config(is_per_channel=True)
    prepared = pt2e.prepare_pt2e(graph, quantizer.XNNPACKQuantizer().set_global(config))
    for image in images.split(1):
        prepared(image)
    return pt2e.convert_pt2e(prepared)


def load_executorch(path: str | Path, *, threads: int = 1) -> Predict:
    """A function from normalized images N x C x H x W to logits N x classes that XNNPACK computes, image by image.

    threads: of ExecuTorch's pool, which all its networks in this process share.
    Raises ImportError without the extra kdlib[deploy], FileNotFoundError, and ValueError for a file that is no
    ExecuTorch network of one image; the function raises ValueError for images of another shape.
    """
    check_path(path=path)
    check_whole(threads=threads)
    path = check_file(path)
    runtime, pool = need(RUNTIME, POOL, extra="deploy")
    with quiet():  # XNNPACK looks for files of Arm's, and says on stderr that there are none
        _set_threads(pool, threads)
        method, shape = _open(runtime, path)

    def predict(images: Tensor) -> Tensor:
        batch = check_input(path, images, shape)
        plain = batch.clone(memory_format=torch.contiguous_format)
        return torch.cat([method.execute([image])[0] for image in plain.split(1)])

    return predict


def _open(runtime: Any, path: Path) -> tuple[Any, list[int]]:
    """The file's method, after a first run, and the shape C x H x W of an image."""
    try:
        program = runtime.Runtime.get().load_program(path.read_bytes())
        method = program.load_method("forward")
        method.program = program  # it owns the bytes that the method reads, and a method does not keep it
        if method.metadata.num_inputs() != 1:
            raise ValueError(f"it takes {method.metadata.num_inputs()} inputs")
        sizes = list(method.metadata.input_tensor_meta(0).sizes())
        if len(sizes) != 4 or sizes[0] != 1:
            raise ValueError(f"it takes a tensor of {sizes}")
        method.execute([torch.zeros(sizes)])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is not an ExecuTorch file that can be run on one image ({error}). Export the network again."
        ) from error
    return method, sizes[1:]


def _set_threads(pool: Any, threads: int) -> None:
    # Marked unsafe because no network may be running meanwhile; there is no other way to say it from Python.
    if pool._threadpool_get_thread_count() != threads:
        pool._unsafe_reset_threadpool(threads)
