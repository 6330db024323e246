"""ONNX files, in float32 and in int8, and how ONNX Runtime runs them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import measure
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

INPUT, OUTPUT = "images", "logits"
CALIBRATION_BATCH = 64
LARGEST = 2**31 - 2**24  # bytes of weights: one ONNX file holds less than 2 GB


def to_onnx(model: nn.Module, path: str | Path, example: Tensor) -> Path:
    """Write a network to an ONNX file in float32, for batches of any size, and nothing to the screen.

    example: normalized images N x C x H x W, of which the first says the shape. The input is called "images", the
    output "logits". The model is left as it was, its mode included. What the file answers is not compared with the
    network: `export` does that.
    Raises ImportError without the extra kdlib[export], ValueError for a network or an example that does not fit or
    that ONNX cannot express, and for a forward hook that changes the answers, OSError if the file cannot be written.
    """
    check_path(path=path)
    need("onnx", "onnxscript", extra="export")
    network, images = float_copy(model), check_images("example", example)
    if measure.bytes_in_memory(network) > LARGEST:
        raise ValueError("The network's weights take 2 GB or more, too much for one ONNX file. Take a smaller one.")
    check_output(network, images[:1])
    refuse_changing_hooks(model, images[:1])
    two = images[:1].repeat(2, 1, 1, 1)  # torch.export takes a batch of one for a constant
    with quiet():
        traced = trace(network, two, dynamic=True)
        with explain(model, "cannot be written as ONNX", "Replace that layer by one that is known there"):
            program = torch.onnx.export(
                traced, (two,), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
            )
            proto = program.model_proto  # type: ignore[union-attr]  # only torch's old exporter gives None
    _forget_origin(proto)
    with atomic_write(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return Path(path)


def _forget_origin(proto: Any) -> None:
    """Remove notes for debugging: the paths of this machine's files and lines of source, 60 kB of a ResNet-20."""
    graph = proto.graph
    parts = (graph.node, graph.initializer, graph.value_info, graph.input, graph.output, proto.functions)
    for part in [proto, graph, *(one for group in parts for one in group)]:
        part.ClearField("metadata_props")


def to_onnx_int8(model: nn.Module, path: str | Path, calibration: Tensor) -> Path:
    """Write a network to an ONNX file whose weights and activations are int8, by ONNX Runtime's static quantization.

    calibration: normalized training images N x C x H x W, of which at most 512 say how large activations become.
    Weights are signed, a scale for each channel (Krishnamoorthi 2018, arXiv 1806.08342), activations unsigned (QDQ,
    U8S8). Processors with VNNI or of Arm add such products exactly; older x86 ones may saturate, so check there once
    more.
    Raises what `to_onnx` raises, and ValueError for calibration images that are none.
    """
    check_path(path=path)
    need("onnxruntime", extra="export")
    images = calibration_sample(calibration)
    with TemporaryDirectory() as folder:
        plain, prepared, quantized = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "quantized"))
        to_onnx(model, plain, images[:1])
        with (
            quiet(),
            explain(model, "cannot be quantized by ONNX Runtime", "Replace that layer by one that is known there"),
        ):
            _quantize(plain, prepared, quantized, images)
        with atomic_write(path) as temporary:
            shutil.copyfile(quantized, temporary)
    return Path(path)


def _quantize(plain: Path, prepared: Path, quantized: Path, images: Tensor) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        """The images in batches, as ONNX Runtime asks for them."""

        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(CALIBRATION_BATCH))

        def get_next(self) -> dict[str, Any] | None:
            """The next batch; None after the last."""
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    quant_pre_process(str(plain), str(prepared))  # folds batch normalization into the convolutions before it
    quantize_static(
        str(prepared),
        str(quantized),
        Batches(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def load_onnx(path: str | Path, *, threads: int = 1) -> Predict:
    """A function from normalized images N x C x H x W to logits N x classes that ONNX Runtime computes on the CPU.

    Raises ImportError without the extra kdlib[export], FileNotFoundError, and ValueError for a file that is no ONNX
    network of images; the function raises ValueError for images of another shape.
    """
    check_path(path=path)
    check_whole(threads=threads)
    path = check_file(path)
    (runtime,) = need("onnxruntime", extra="export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    try:
        with quiet():
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class of error for each way in which a file can be broken
        reason = str(error).partition("\n")[0].rpartition(" : ")[2].rstrip(".")
        raise ValueError(f"{path} is not an ONNX file that can be run ({reason}). Export the network again.") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        shown = ", ".join(f"{one.name}: {one.type} {one.shape}" for one in inputs)
        raise ValueError(f"{path} takes {shown}; expected one batch of images, tensor(float) N x C x H x W.")
    name, shape = inputs[0].name, inputs[0].shape[1:]
    output = session.get_outputs()[0].name

    def predict(images: Tensor) -> Tensor:
        batch = check_input(path, images, shape)
        return torch.from_numpy(session.run([output], {name: batch.numpy()})[0])

    return predict
