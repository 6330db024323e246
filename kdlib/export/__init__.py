"""Networks as files that run without PyTorch: ONNX, ExecuTorch and C, each compared with the float network first.

report = export.export(student, "student.onnx", "onnx-int8", fashion)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from kdlib import data as datasets
from kdlib import evaluation, files
from kdlib.data import DataModule, IndexedDataset, evenly_spaced
from kdlib.errors import check_flags, check_kind, check_path, check_whole, unknown_name
from kdlib.export._common import CALIBRATION_IMAGES, Predict, float_copy
from kdlib.export.c_code import load_c, to_c
from kdlib.export.executorch import load_executorch, to_executorch
from kdlib.export.onnx import load_onnx, to_onnx, to_onnx_int8
from kdlib.export.report import LEAST_AGREEMENT, ExportReport, check, latency_ratio, table
from kdlib.run_folder import claim, remove_earlier

__all__ = [
    "FORMATS",
    "ExportReport",
    "Format",
    "check",
    "export",
    "export_all",
    "latency_ratio",
    "load_c",
    "load_executorch",
    "load_onnx",
    "table",
    "to_c",
    "to_executorch",
    "to_onnx",
    "to_onnx_int8",
]


@dataclass(frozen=True)
class Format:
    """How a network is written and read again.

    file: its name in a folder. quantized: whether it computes in integers. write: from a network, a path and
    calibration images. load: from a path to a function from images to logits.
    """

    file: str
    quantized: bool
    write: Callable[[nn.Module, Path, Tensor], Path]
    load: Callable[[Path], Predict]


FORMATS = {
    "onnx": Format("model.onnx", False, lambda model, path, images: to_onnx(model, path, images[:1]), load_onnx),
    "onnx-int8": Format("model-int8.onnx", True, to_onnx_int8, load_onnx),
    "executorch": Format(
        "model.pte", False, lambda model, path, images: to_executorch(model, path, images[:1]), load_executorch
    ),
    "executorch-int8": Format(
        "model-int8.pte",
        True,
        lambda model, path, images: to_executorch(model, path, images[:1], images),
        load_executorch,
    ),
    "c": Format("model.c", True, to_c, load_c),
}


def export(
    model: nn.Module,
    path: str | Path,
    format: str,
    data: DataModule,
    *,
    validation: bool = False,
    images: int | None = None,
    least_agreement: float = LEAST_AGREEMENT,
) -> ExportReport:
    """Write a network to a file of another format, after it was compared with the network; what differs is not kept.

    format: one of FORMATS. data: int8 is calibrated on at most 512 of its training images, balanced over classes, and
    the file is compared on its test images, or its validation images; images: at most so many, None for all.
    least_agreement: the share of images for which an int8 file must choose the network's class. The model is left as
    it was.
    Raises ValueError for an unknown format, a network or data that do not fit and an export that is refused (whatever
    stood at `path` is unchanged), ImportError, naming the extra, for a missing package, OSError if the file cannot be
    written.
    """
    known = _find_format(format)
    check_path(path=path)
    check_kind("an nn.Module", nn.Module, model=model)
    check_kind("a DataModule, such as data.load('fashion-mnist')", DataModule, data=data)
    check_flags(validation=validation)
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Give the name of a file in it, such as {path / known.file}.")
    files.refuse_unwritable(path.parent)  # now rather than after the export
    split = _checked_images(data, validation, images)
    _check_network(model, data, split)
    with TemporaryDirectory(prefix="kdlib-", ignore_cleanup_errors=True) as folder:  # a library in use stays on Windows
        made = known.write(model, Path(folder) / known.file, _calibration_images(data))
        report = check(
            known.load(made),
            model,
            split,
            format=format,
            path=made,
            quantized=known.quantized,
            least_agreement=least_agreement,
        )
        with files.atomic_write(path) as temporary:
            shutil.copyfile(made, temporary)
    return replace(report, path=str(path))


def export_all(
    model: nn.Module,
    out: str | Path,
    formats: Sequence[str],
    data: DataModule,
    *,
    validation: bool = False,
    images: int | None = None,
    least_agreement: float = LEAST_AGREEMENT,
    overwrite: bool = False,
) -> list[ExportReport]:
    """Write a network in several formats to a folder, and report.json with what was measured.

    "images" in it says what the files are called with: pixels in [0, 1], less the mean of each channel, divided by std.
    An export that is refused ends this with a ValueError; those before it are kept, and are in report.json.
    With `overwrite` a file of an earlier run stays until its successor is made, and the others until all are.
    Raises what `export` raises, and ValueError for a folder that holds an earlier run, unless `overwrite`.
    """
    if isinstance(formats, str):
        raise TypeError(f"formats is a list of names; got the text {formats!r}: give [{formats!r}].")
    known = {name: _find_format(name) for name in formats}  # each once
    check_flags(overwrite=overwrite)
    check_path(out=out)
    if not known:
        raise ValueError(f"formats are empty: give one or more of {', '.join(FORMATS)}.")
    reports: list[ExportReport] = []
    results = [*(one.file for one in FORMATS.values()), "report.json"]
    with claim(out, () if overwrite else results, resume=None, overwrite=False) as folder:
        for name, one in known.items():
            reports.append(
                export(
                    model,
                    folder / one.file,
                    name,
                    data,
                    validation=validation,
                    images=images,
                    least_agreement=least_agreement,
                )
            )
            split = "validation" if validation else "test"
            images_are = {"image_size": data.image_size, "mean": list(data.train.mean), "std": list(data.train.std)}
            content = {"split": split, "images": images_are, "formats": [report.to_dict() for report in reports]}
            files.write_text(folder / "report.json", json.dumps(content, indent=2) + "\n")
        remove_earlier(folder, [one.file for name, one in FORMATS.items() if name not in known])
    return reports


def _find_format(name: str) -> Format:
    if not isinstance(name, str) or name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    return FORMATS[name]


def _checked_images(data: DataModule, validation: bool, images: int | None) -> IndexedDataset:
    """The split that an export is compared on, or so many of its images, evenly spaced."""
    split = data.validation if validation else data.test
    if images is None:
        return split
    check_whole(images=images)
    return split.select(evenly_spaced(len(split), images))


def _check_network(model: nn.Module, data: DataModule, split: IndexedDataset) -> None:
    """Raise ValueError for a network of other images or classes, before the slow work."""
    evaluation.check_class_names("network", model, data)
    evaluation.warn_of_other_images("network", model, data)
    few = split.select(torch.arange(min(2, len(split))))
    metrics = evaluation.evaluate(float_copy(model), few, device="cpu", precision="fp32", role="network")
    evaluation.check_classes("network", metrics.logits, data)


def _calibration_images(data: DataModule) -> Tensor:
    return datasets.normalized_images(data.subset(min(CALIBRATION_IMAGES, len(data.train))).train)
