"""`make bench`: what distillation costs beside a plain training step.

Each row is printed as soon as it is measured. --full takes more rounds and larger data, and writes results.json and the
table in README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import any_loop
import loss_costs
import scale
import steps
import torch
import torchvision
from rounds import HEADER, Row, line, markdown, put_in_readme

from kdlib import devices, files


def _processor() -> str:
    with contextlib.suppress(OSError):
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure(full: bool) -> Iterator[Row]:
    """All rows, one after the other."""
    for part in (steps, any_loop, loss_costs, scale):
        yield from part.run(full)


def main() -> None:
    """Measure everything and print it; with --full, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the long measurement, which writes the files")
    full = parser.parse_args().full
    started, rows = time.perf_counter(), []
    print(HEADER, flush=True)
    for row in measure(full):
        print(line(row), flush=True)
        rows.append(row)
    print(f"{time.perf_counter() - started:.0f} s on {devices.resolve()}")
    if not full:
        return
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(devices.resolve()),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
    path = Path(__file__).parent / "results.json"
    files.write_text(path, json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    put_in_readme("bench", markdown(rows))
    print(f"Written to {path} and README.md beside it")


if __name__ == "__main__":
    main()
