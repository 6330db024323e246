"""`make bench`: what distillation costs beside a plain training step, as a table, in results.json and README.md."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import loss_costs
import scale
import steps
import torch
import torchvision
from rounds import markdown, put_in_readme, table

from kdlib import devices, files


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Measure everything, print the table, write the file."""
    rows = [*steps.run(), *loss_costs.run(), *scale.run()]
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "place": str(devices.choose()),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
    print(table(rows))
    path = Path(__file__).parent / "results.json"
    files.write_text(path, json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    put_in_readme("bench", markdown(rows))
    print(f"Written to {path} and README.md beside it")


if __name__ == "__main__":
    main()
