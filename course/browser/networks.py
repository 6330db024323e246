"""A teacher and its students as ONNX files for the browser, float and int8; made once, found again by the weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kdlib
from kdlib import data, export, measure, models
from kdlib.data import DataModule
from kdlib.files import checksum, fingerprint, load_tensors

SHAPE = (1, 28, 28)  # of Fashion-MNIST's images
CALIBRATION_IMAGES = 512  # training images, from which int8 takes the ranges of the activations


@dataclass(frozen=True)
class Network:
    """One network of the page.

    name: for people, such as "resnet20-fashion". files: "float" and "int8" to its ONNX files. parameters and macs:
    of the float network and one image. test_accuracy: a share, or None where the model's file does not say it.
    """

    name: str
    files: dict[str, Path]
    parameters: int
    macs: int
    test_accuracy: float | None

    def url(self, precision: str) -> str:
        """Where the page finds a file; the name changes with the contents, so that a browser may keep it for ever."""
        plain = re.sub(r"[^\w.-]+", "-", self.name, flags=re.ASCII).strip("-.")
        path = self.files[precision]
        return f"/files/{plain}-{precision}-{checksum(path)[:12]}.onnx"


def open_network(name: str, fashion: DataModule) -> nn.Module:
    """The model of this name or file, in eval mode; ValueError unless it takes 1 x 28 x 28 and gives 10 finite logits.

    Raises what `models.load` raises.
    """
    model = models.load(name)
    wanted = f"The page shows {fashion.name}: a network that takes 1 x 28 x 28 pixels and gives 10 logits"
    classes = getattr(model, "classes", fashion.classes)
    if tuple(classes) != fashion.classes:
        raise ValueError(f"{wanted} is expected; {name} knows other classes ({', '.join(map(str, classes[:3]))}, ...).")
    try:
        with torch.inference_mode():
            logits = model(torch.zeros(2, *SHAPE))
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{wanted} is expected; {name} cannot take such an image ({reason}).") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, fashion.num_classes):
        given = tuple(logits.shape[1:]) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{wanted} is expected; {name} gives {given} for an image.")
    return model


def export_network(name: str, label: str, fashion: DataModule, cache: Path) -> Network:
    """Write a model's two ONNX files into `cache`, unless they are there.

    Raises what `open_network` raises, ImportError without the extra `export`, OSError if `cache` cannot be written.
    """
    model = open_network(name, fashion)
    mark = fingerprint(model.state_dict(), models.find_config(model), kdlib.__version__, CALIBRATION_IMAGES)[:16]
    files = {precision: cache / "networks" / f"{mark}-{precision}.onnx" for precision in ("float", "int8")}
    if not all(path.is_file() for path in files.values()):
        print(f"Writing {label} as ONNX, float and int8, once", flush=True)
        images = data.normalized_images(fashion.train.select(torch.arange(CALIBRATION_IMAGES))).contiguous()
        export.to_onnx(model, files["float"], images[:2])
        export.to_onnx_int8(model, files["int8"], images)
    parameters, macs = measure.count_parameters(model), measure.macs(model, SHAPE)
    return Network(label, files, parameters, macs, _noted_accuracy(name))


def _noted_accuracy(name: str) -> float | None:
    """What the header of a model's file says of its accuracy on the test images."""
    path = Path(name) if models.is_file(name) else data.data_dir() / f"{name}.safetensors"
    facts: dict[str, Any] = load_tensors(path)[1] if path.is_file() else {}
    accuracy = facts.get("test_accuracy")
    return accuracy if isinstance(accuracy, float) and 0 <= accuracy <= 1 else None


def labels_of(names: Sequence[str]) -> list[str]:
    """A short name for each: a file's without its ending, with its folder's where two would be the same."""
    short = [Path(name).stem if models.is_file(name) else name for name in names]
    return [
        f"{Path(name).absolute().parent.name}/{one}" if models.is_file(name) and _is_common(one, short) else one
        for name, one in zip(names, short, strict=True)
    ]


def _is_common(one: str, short: Sequence[str]) -> bool:
    """Whether a file's name says too little: shared with another, or the one that every `kdlib distill` writes."""
    return short.count(one) > 1 or one == "student"
