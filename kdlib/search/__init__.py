"""Let the machine search the settings of a method, and the student itself, and then say what that was worth.

    found = search.run(fashion, teacher="resnet20-fashion", student="resnet8", method="kd", images=1_000)
    judged = search.judge(found)  # fresh seeds: the found setting against start settings and random search
    print(judged)

The search chooses by one run of each trial, on the validation split, so the best of many is flattered by luck: the
winner's curse. What it is worth shows with fresh paired seeds on the test set, beside the start settings and beside
plain random search that was given the same training cost. `judge` makes these runs.

The search itself is optuna's (TPE, Hyperband, constraints, storage, importance). What is done here: trials that are the
same for the same seed, also with several workers and after a kill; networks beyond a limit that are never trained.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdlib.search.engine import Best, Found, run
    from kdlib.search.judging import Curse, Judged, judge
    from kdlib.search.space import Choice, LogUniform, Uniform, Whole, default_space

_PARTS = {
    "engine": ("Best", "Found", "run"),
    "judging": ("Curse", "Judged", "judge"),
    "space": ("Choice", "LogUniform", "Uniform", "Whole", "default_space"),
}


def __getattr__(name: str) -> Any:
    """What a part offers, when it is first asked for: `kdlib --help` would wait for torch otherwise."""
    for part, names in _PARTS.items():
        if name in names:
            return getattr(import_module(f"kdlib.search.{part}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Best",
    "Choice",
    "Curse",
    "Found",
    "Judged",
    "LogUniform",
    "Uniform",
    "Whole",
    "default_space",
    "judge",
    "run",
]
