"""The shipped ResNet-20 compressed more and more, and not trained any further: where accuracy breaks.

    python -m course.experiments.compression_sweep

A row for each share of zeros, of channels, and number of bits (of weights; activations have 8 where weights are
rounded, with limits from 512 training images), in a CSV file beside that of `compression`. Nothing is left to chance,
so there are no seeds. The test set is read once for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save
from torch import Tensor, nn

from course.experiments.command import called, run_command
from course.experiments.compression import CALIBRATION_IMAGES, DATA, NETWORK
from course.experiments.rows import versions
from kdlib import compress, data, devices, measure, models, train
from kdlib.data import DataModule, data_dir
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, SessionLog

COLUMNS = (
    *("data", "network", "technique", "amount", "bits"),
    *("parameters", "nonzero", "bytes", "zipped_bytes", "macs", "test_accuracy"),
    *("seconds", "device", "threads", "kdlib", "torch"),
)
WHOLE = "resnet20"  # as it was shipped
ZEROS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CHANNELS = (0.25, 0.5)  # with a ratio of 0.75, 4 of 16 channels would be left, and kernels compute 8 at a time
BITS = (8, 6, 5, 4, 3, 2)


def settings() -> list[tuple[str, float | None, int]]:
    """Technique, amount and bits of every row; techniques are named as in `compression`."""
    zeros: list[tuple[str, float | None, int]] = [(f"zeros {100 * share:.0f}", share, 32) for share in ZEROS]
    channels = [("channels" if ratio == 0.5 else f"channels {100 * ratio:.0f}", ratio, 32) for ratio in CHANNELS]
    return [(WHOLE, None, 32), *zeros, *channels, *((f"int{bits}", None, bits) for bits in BITS)]


def compressed(network: nn.Module, technique: str, amount: float | None, bits: int, calibration: Tensor) -> nn.Module:
    """The network with so many zeros, without so many channels, or rounded; raises what `compress` raises."""
    if bits < 32:
        return compress.calibrate(compress.prepare_qat(network, bits), [calibration])
    if amount is None:
        return network
    if technique.startswith("zeros"):
        return compress.finalize(compress.prune_weights(network, amount))
    return compress.prune_channels(network, amount, calibration[:1])


def measured(model: nn.Module, bits: int, fashion: DataModule) -> dict[str, Any]:
    """What a file of the network holds, its MACs, and its accuracy on the test images."""
    plain = compress.finalize(model, keep_activation_rounding=False) if bits < 32 else model
    state: Mapping[str, Tensor] = compress.pack_weights(plain, bits) if bits < 32 else plain.state_dict()
    return {
        "parameters": measure.count_parameters(plain),
        "nonzero": measure.count_nonzero(plain),
        "bytes": len(save({name: tensor.contiguous() for name, tensor in state.items()})),
        "zipped_bytes": measure.zipped_bytes(state),
        "macs": measure.macs(plain, (fashion.in_channels, fashion.image_size, fashion.image_size)),
        "test_accuracy": train.evaluate(model, fashion.test, precision="fp32").accuracy,
    }


def path_in(folder: Path) -> Path:
    """The file of the rows."""
    return folder / f"sweep-compression-{NETWORK}.csv"


def run(folder: Path, fashion: DataModule, command: str, log: Callable[[str], object] = print) -> list[dict[str, str]]:
    """Measure what is missing in the file, and return all its rows.

    Raises ValueError while another process writes to the file, OSError where it cannot be written.
    """
    network = models.load(NETWORK).eval()
    calibration = data.normalized_images(
        fashion.train.select(torch.arange(min(CALIBRATION_IMAGES, len(fashion.train))))
    )
    process = versions() | {"device": str(devices.resolve()), "threads": torch.get_num_threads()}
    with RunsFile(path_in(folder), COLUMNS, log).open() as file:
        session = SessionLog(file.path, command, len(file.rows))
        known = {row["technique"] for row in file.rows}
        for technique, amount, bits in settings():
            if technique in known:
                continue
            started = time.perf_counter()
            row = {"data": DATA, "network": NETWORK, "technique": technique, "amount": amount, "bits": bits}
            row |= measured(compressed(network, technique, amount, bits, calibration).eval(), bits, fashion)
            file.append(row | process | {"seconds": round(time.perf_counter() - started, 1)})
            session.write(len(file.rows))
            log(f"{technique}: {row['test_accuracy']:.2%}, {row['bytes']:,} bytes")
        rows = file.rows
    update_readme(folder)
    return rows


def sweep(
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
) -> None:
    """Compress the shipped ResNet-20 more and more, and measure each network without any further training."""
    command = called("course.experiments.compression_sweep")
    run(out or data_dir() / "results", data.load(DATA), command, log=lambda text: print(text, flush=True))


if __name__ == "__main__":
    run_command(compression_sweep=sweep)
