"""Two or more trained students side by side: one report of what they get right, and of how far that can be trusted.

    report = compare.compare({"hard labels": [m0, m1], "distilled": [n0, n1]}, fashion, teacher=teacher)
    print(report)
    report.save("runs/compare")  # report.md, report.json, report.png

The first entry is the baseline. With one network each, the report is about these NETWORKS on these images; with several
seeds each, paired, it is about what made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kdlib import measure
from kdlib.compare import networks, outputs, tables
from kdlib.compare.report import FILES, Report
from kdlib.data import DataModule
from kdlib.errors import check_flags, check_kind
from kdlib.verdict import check_confidence

__all__ = ["FILES", "Report", "compare"]


def compare(
    students: Mapping[str, nn.Module | Sequence[nn.Module] | Mapping[Any, nn.Module]],
    data: DataModule,
    *,
    teacher: nn.Module | None = None,
    images: int | None = None,
    corruptions: bool = True,
    confidence: float = 0.95,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> Report:
    """Compare trained networks on a test set, which is read once; each of them comes back as it was.

    students: by name, the baseline first, a network, or its runs as a list or as {seed: network}: runs are paired with
    those of the baseline by position or by key. teacher: for fidelity. images: at most so many test images, evenly
    spaced; default, all. corruptions: also damaged pictures and pictures of nothing, 24 more for each image.
    confidence: of the intervals of the gains in each table together (but for what `compare.tables` names); that of
    an accuracy itself holds alone. The temperature of each network is fitted on validation images.
    Raises TypeError for what is no network, ValueError for fewer than two entries, runs that are not paired, the same
    network twice in an entry, or networks of other images or classes; FloatingPointError for damaged weights.
    """
    entries = networks.read(students)
    check_kind("a DataModule, such as data.load('fashion-mnist')", DataModule, data=data)
    check_kind("an nn.Module, such as models.load('resnet20-fashion')", nn.Module | None, teacher=teacher)
    check_flags(corruptions=corruptions, progress=progress)
    check_confidence(confidence)
    if corruptions and data.in_channels not in (1, 3):
        raise ValueError(
            f"{data.name} has {data.in_channels} channels, and only images with 1 or 3 channels can be damaged: give "
            "corruptions=False."
        )
    networks.check(entries, teacher, data, device, precision)
    test = outputs.choose(data.test, images)
    everyone = {(name, run): model for name, runs in entries.items() for run, model in runs.items()}
    if teacher is not None:
        everyone[(networks.TEACHER, "")] = teacher
    answers = outputs.collect(
        everyone, data, test, corruptions=corruptions, device=device, precision=precision, progress=progress
    )
    of_teacher = answers.pop((networks.TEACHER, ""), None)
    by_name = {name: {run: answers[name, run] for run in runs} for name, runs in entries.items()}
    return Report(
        data=data.name,
        images=len(test.labels),
        all_images=len(data.test),
        runs={name: tuple(map(str, runs)) for name, runs in entries.items()},
        parameters={name: _parameters(next(iter(runs.values()))) for name, runs in entries.items()},
        confidence=float(confidence),
        has_teacher=teacher is not None,
        same=outputs.find_same(by_name),
        **tables.make(by_name, of_teacher, test.labels, data.classes, confidence),
    )


def _parameters(network: nn.Module) -> int | None:
    try:
        return measure.count_parameters(network)
    except measure.UncountableError:
        return None
