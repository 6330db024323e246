"""What other libraries compute, as `benchmarks/peers.py` found it: the same losses on the same inputs, and their speed.

print(peers.parity())
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "peers.json"
LIBRARIES = ("torchdistill", "modelopt", "textbrewer", "keras")


@lru_cache(maxsize=2)
def read(path: Path = FILE) -> dict[str, Any]:
    """What was measured. FileNotFoundError, which names the command, where it was not."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there. Run: make bench-peers")
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def parity() -> pd.DataFrame:
    """One row a library: of the losses that it shares with kdlib, how many have the same value, and how many not."""
    import pandas as pd

    rows = {}
    for library in LIBRARIES:
        equal = [row["equal"] for row in read()["parity"] if row["library"].split()[0].rstrip(",") == library]
        rows[library] = {"equal": sum(equal), "different": len(equal) - sum(equal)}
    return pd.DataFrame.from_dict(rows, orient="index")


def kd_factors() -> dict[str, float]:
    """What each library's distillation loss without labels gives on one input, divided by Hinton's T² KL divergence.

    With default settings, but for torchdistill's alpha of 0: its loss has no default, and T² with an alpha above 0.
    """
    found: dict[str, float] = {}
    for row in read()["parity"]:
        if row["loss"] == "kd, alpha 0":
            library = row["library"].split()[0]
            setting = "with alpha = 0" if library == "torchdistill" else "by default"
            found.setdefault(f"{library}, {setting}", row["theirs"] / row["ours"])
    return found
