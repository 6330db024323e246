"""What is compared: networks by name and run, checked before the slow work."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import nn

from kdlib import evaluation
from kdlib.data import DataModule

Runs = dict[Hashable, nn.Module]
TEACHER = "teacher"  # how tables call it, so no student may have this name
LONGEST_NAME = 60


def read(students: Any) -> dict[str, Runs]:
    """The networks by name and run, the baseline first.

    Raises TypeError for what is no network, ValueError for fewer than two entries, names that cannot stand in a table,
    runs that are not paired with the baseline's, or the same network twice in an entry.
    """
    if not isinstance(students, Mapping):
        raise TypeError(
            "students are networks by name, the baseline first, as {'hard labels': [m0, m1], 'distilled': [n0, n1]}; "
            f"got {type(students).__name__}."
        )
    if len(students) < 2:
        raise ValueError(f"{len(students)} students cannot be compared: give two or more, the baseline first.")
    entries: dict[str, Runs] = {}
    for name, value in students.items():
        label = _check_name(name)
        if label in entries:
            raise ValueError(f"Two students are called {label!r}. Give each a name of its own.")
        entries[label] = _runs(label, value)
    _refuse_unpaired(entries)
    return entries


def _check_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"The name of a student is a text, as 'distilled'; got {name!r}.")
    label = name.strip()
    if not label or not label.isprintable() or len(label) > LONGEST_NAME:
        raise ValueError(f"The name of a student is one line of 1 to {LONGEST_NAME} characters; got {name[:80]!r}.")
    if label.lower() == TEACHER:
        raise ValueError(f"A student is called {name!r}, as the tables call the teacher. Give it another name.")
    return label


def _runs(name: str, value: Any) -> Runs:
    if isinstance(value, nn.ModuleList | nn.ModuleDict):
        value = dict(value.items()) if isinstance(value, nn.ModuleDict) else list(value)
    if isinstance(value, nn.Module):
        return {0: value}
    if not isinstance(value, Mapping | list | tuple):
        raise TypeError(
            f"{name!r} is a network, a list of networks or {{seed: network}}; got {type(value).__name__}. "
            "models.load opens a file."
        )
    runs: Runs = dict(value.items() if isinstance(value, Mapping) else enumerate(value))
    if not runs:
        raise ValueError(f"{name!r} has no network. Give one network, or one for each seed.")
    for run, model in runs.items():
        if not isinstance(model, nn.Module):
            raise TypeError(f"Run {run} of {name!r} is a network, an nn.Module; got {type(model).__name__}.")
    for (run, model), (other, same) in combinations(runs.items(), 2):
        if model is same:
            raise ValueError(
                f"Runs {run} and {other} of {name!r} are one and the same network: two seeds are two networks."
            )
    return runs


def _refuse_unpaired(entries: Mapping[str, Runs]) -> None:
    (baseline, first), *others = entries.items()
    if all(len(runs) == 1 for runs in entries.values()):
        return
    for name, runs in others:
        lacking = {
            name: [str(run) for run in first if run not in runs],
            baseline: [str(run) for run in runs if run not in first],
        }
        parts = [f"{who!r} lacks {', '.join(which)}" for who, which in lacking.items() if which]
        if parts:
            raise ValueError(
                f"The runs are not paired: {' and '.join(parts)}. Every student needs the same seeds, and files the "
                "same names: train what is missing, or leave it out."
            )


def check(
    entries: Mapping[str, Runs], teacher: nn.Module | None, data: DataModule, device: str, precision: str
) -> None:
    """Raise ValueError for a network of other images or classes than the data; two images tell.

    FloatingPointError for one whose logits are not finite.
    """
    for part in ("validation", "test"):
        if len(getattr(data, part)) < 2:
            raise ValueError(
                f"{data.name} has {len(getattr(data, part))} {part} images: students are compared on the test images, "
                "and their temperatures are fitted on the validation images."
            )
    few = data.validation.select(torch.arange(2))
    everyone = [(role(name, run, runs), model) for name, runs in entries.items() for run, model in runs.items()]
    for called, model in [*everyone, *([(TEACHER, teacher)] if teacher is not None else [])]:
        evaluation.check_class_names(called, model, data)
        evaluation.warn_of_other_images(called, model, data)
        logits = evaluation.evaluate(model, few, device=device, precision=precision, role=called).logits
        evaluation.check_classes(called, logits, data)


def role(name: str, run: Hashable, runs: Mapping[Hashable, Any]) -> str:
    """What an error calls a network."""
    return f"network {name!r}" if len(runs) == 1 else f"network {name!r}, run {run}"
