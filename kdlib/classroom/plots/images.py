"""Accuracy against the number of training images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kdlib.classroom.plots.base import DISTILLED, FIRST, NEUTRAL, SECOND, STUDENT, TEACHER, THIRD, Role, figure
from kdlib.classroom.plots.words import who

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kdlib.study.findings import Measured, Results

MOST = 8  # lines that can be told apart


def accuracy_against_images(several: Sequence[Results], methods: Sequence[str] | None = None) -> Figure:
    """Accuracy, and the gain over hard labels, against the number of training images; a mean and interval each.

    several: results of the same student and teacher, one for each number of images. methods: those to be drawn beside
    hard labels, default all that are in each of them, at most eight. The intervals of the accuracies are of each mean
    alone, those of the gains are paired by seed and hold together within one number of images.
    Raises ValueError for results that do not belong together, too many methods, or a method that is not in all.
    """
    several, names = _budgets(several, methods)
    fig, (left, right) = figure(10.4, 4.6, columns=2)
    base = several[0].baseline
    for number, (name, role) in enumerate(_roles(several[0], [base, *names]).items()):
        shift = 1.035 ** (number - len(names) / 2)  # beside each other, not on top
        _against(left, several, [one.score(name) for one in several], role, shift)
        if name != base:
            _against(right, several, [one.gain(name) for one in several], replace(role, label=""), shift)
    teacher = float(next(iter(several[-1].runs(base).values()))["teacher_accuracy"] or "nan")
    left.axhline(100 * teacher, color=TEACHER.colour, linestyle=TEACHER.dash, label="teacher")
    right.axhline(0, color=STUDENT.colour, linestyle=STUDENT.dash)
    name = several[0].title(base)
    for axes, label in (
        (left, "test accuracy (%), interval of each mean"),
        (right, f"gain over {name} (points), paired"),
    ):
        counts = [one.images for one in several]
        axes.set(xscale="log", xlabel="training images", ylabel=label, xlim=(0.7 * counts[0], 1.45 * counts[-1]))
        axes.set_xticks(
            counts, [f"{count:,}{epochs}" for count, epochs in zip(counts, _epochs(several, "\n"), strict=True)]
        )
        axes.minorticks_off()
    with_trouble = any(one.trouble(name) for one in several for name in (base, *names))
    note = "no mean where a seed diverged or was not run" if with_trouble else "95 % intervals"
    fig.suptitle(f"{who(several[0])}; {note}", x=0.01, ha="left", fontsize=10)
    fig.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=9, handlelength=3)
    return fig


def accuracy_against_images_alt(several: Sequence[Results], methods: Sequence[str] | None = None) -> str:
    """What `accuracy_against_images` shows, in words."""
    several, names = _budgets(several, methods)
    parts = [f"Test accuracy in % and the gain in points (interval) against training images, {who(several[0])}"]
    for one, epochs in zip(several, _epochs(several, ", "), strict=True):
        first = one.score(one.baseline)
        scores = [f"{first.title} {first.trouble or f'{100 * first.mean:.2f}'}"]
        for name in names:
            gain = one.gain(name)
            said = f"{100 * one.score(name).mean:.2f}, {gain.verdict} with a gain of {gain.said()}"
            scores.append(f"{one.title(name)} {gain.trouble or said}")
        parts.append(f"{one.images:,} images{epochs}: {'; '.join(scores)}")
    return ". ".join(parts) + "."


def _epochs(several: Sequence[Results], before: str) -> list[str]:
    """How many epochs each has, where they differ in it; else nothing."""
    said = [f"{before}{one.budget['epochs']} epochs" for one in several]
    return said if len(set(said)) > 1 else [""] * len(said)


def _budgets(several: Sequence[Results], methods: Sequence[str] | None) -> tuple[list[Results], list[str]]:
    """The results by number of images, and the methods that all of them have."""
    several = sorted(several, key=lambda one: one.images)
    if not several or len({one.images for one in several}) < len(several):
        raise ValueError("Give results of different numbers of images: [study.results(images=n) for n in (1000, ...)].")
    for name in ("data", "student", "teacher"):
        if len({one.budget[name] for one in several}) > 1:
            raise ValueError(f"The results are of different {name}s, so one axis of images cannot hold them.")
    shared = [name for name in several[0].methods if all(name in one.methods for one in several)]
    names = shared if methods is None else list(methods)
    for one in several:
        for name in names:
            one.runs(name)  # says which are there
    if len(names) > MOST:
        raise ValueError(f"{len(names)} methods are too many lines to tell apart: choose at most {MOST}.")
    return several, names


def _roles(results: Results, names: Sequence[str]) -> dict[str, Role]:
    """A look for each method: hard labels keep theirs, controls are grey, and the first other method is blue."""
    taught = iter((DISTILLED, FIRST, SECOND, THIRD, *(replace(TEACHER, dash=":", marker=m) for m in "<>*p")))
    controls = iter([replace(NEUTRAL, dash=dash, marker=m) for dash, m in ((":", "D"), ("--", "d"), ("-.", "h"))] * 3)
    roles = {}
    for name in names:
        own = STUDENT if name == results.baseline else next(controls if results.family(name) == "control" else taught)
        roles[name] = replace(own, label=results.title(name))
    return roles


def _against(axes: Axes, several: Sequence[Results], found: Sequence[Measured], role: Role, shift: float) -> None:
    x = np.array([one.images for one in several]) * shift
    mean = np.array([100 * one.mean for one in found])
    half = np.array([100 * one.half if math.isfinite(one.half) else np.nan for one in found])
    axes.errorbar(x, mean, half, capsize=3, elinewidth=1.2, **{**role.line(), "linewidth": 1.3})
