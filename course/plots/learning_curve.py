"""Accuracy against the number of training images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from course.plots.descriptions import describe_networks
from course.plots.theme import BASELINE, DISTILLED, FEATURES, LOGITS, NEUTRAL, RELATIONS, TEACHER, Role, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kdlib.study.analysis import Estimate, Results

MAX_METHODS = 8  # lines that can be distinguished
FAMILY_ROLES = {
    "baseline": BASELINE,
    "logit": LOGITS,
    "feature": FEATURES,
    "relation": RELATIONS,
    "combination": DISTILLED,
    "control": NEUTRAL,
}


def accuracy_against_images(several: Sequence[Results], methods: Sequence[str] | None = None) -> Figure:
    """Accuracy, and the gain over hard labels, against the number of training images; means with intervals.

    several: results of the same student and teacher, one for each number of images. methods: those to draw beside hard
    labels, default all that every result has, at most eight. The intervals of the accuracies are each for one mean;
    those of the gains are paired by seed and hold together within one number of images.
    Raises ValueError for results that do not belong together, too many methods, or a method that is not in all.
    """
    several, names = _check(several, methods)
    fig, (left, right) = figure(10.4, 4.6, columns=2)
    base = several[0].baseline
    for number, (name, role) in enumerate(method_roles(several[0], [base, *names]).items()):
        shift = 1.035 ** (number - len(names) / 2)  # so that the intervals do not overlap
        _draw_line(left, several, [results.score(name) for results in several], role, shift)
        if name != base:
            _draw_line(right, several, [results.gain(name) for results in several], replace(role, label=""), shift)
    teacher = float(next(iter(several[-1].runs(base).values()))["teacher_accuracy"] or "nan")
    left.axhline(100 * teacher, color=TEACHER.colour, linestyle=TEACHER.linestyle, label="teacher")
    right.axhline(0, color=BASELINE.colour, linestyle=BASELINE.linestyle)
    title = several[0].title(base)
    for axes, label in (
        (left, "test accuracy (%), intervals over seeds"),
        (right, f"gain over {title} (points), paired"),
    ):
        counts = [results.images for results in several]
        axes.set(xscale="log", xlabel="training images", ylabel=label, xlim=(0.7 * counts[0], 1.45 * counts[-1]))
        ticks = [f"{count:,}{epochs}" for count, epochs in zip(counts, _epochs(several, "\n"), strict=True)]
        axes.set_xticks(counts, ticks)
        axes.minorticks_off()
    with_problem = any(results.problem(name) for results in several for name in (base, *names))
    held = "95 % intervals; those of the gains hold together for one number of images"
    note = "no mean where a seed diverged or was not run" if with_problem else held
    fig.suptitle(f"{describe_networks(several[0])}; {note}", x=0.01, ha="left", fontsize=10)
    fig.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=9, handlelength=3)
    return fig


def accuracy_against_images_alt(several: Sequence[Results], methods: Sequence[str] | None = None) -> str:
    """What `accuracy_against_images` shows, in words."""
    several, names = _check(several, methods)
    networks = describe_networks(several[0])
    sentences = [f"Test accuracy in % and the gain in points (interval) against training images, {networks}"]
    for results, epochs in zip(several, _epochs(several, ", "), strict=True):
        base = results.score(results.baseline)
        scores = [f"{base.title} {base.problem or f'{100 * base.mean:.2f}'}"]
        for name in names:
            gain = results.gain(name)
            text = f"{100 * results.score(name).mean:.2f}, {gain.verdict} with a gain of {gain.format()}"
            scores.append(f"{results.title(name)} {gain.problem or text}")
        sentences.append(f"{results.images:,} images{epochs}: {'; '.join(scores)}")
    return ". ".join(sentences) + "."


def _epochs(several: Sequence[Results], separator: str) -> list[str]:
    """The number of epochs of each result if they differ; else empty texts."""
    texts = [f"{separator}{results.budget['epochs']} epochs" for results in several]
    return texts if len(set(texts)) > 1 else [""] * len(texts)


def _check(several: Sequence[Results], methods: Sequence[str] | None) -> tuple[list[Results], list[str]]:
    """The results by number of images, and the methods that all of them have."""
    several = sorted(several, key=lambda results: results.images)
    if not several or len({results.images for results in several}) < len(several):
        raise ValueError("Give results of different numbers of images: [study.results(images=n) for n in (1000, ...)].")
    for name in ("data", "student", "teacher", "optimizer"):
        if len({results.budget[name] for results in several}) > 1:
            raise ValueError(f"The results are of different {name}s, so one axis of images cannot hold them.")
    shared = [name for name in several[0].methods if all(name in results.methods for results in several)]
    names = shared if methods is None else list(methods)
    for results in several:
        for name in names:
            results.runs(name)  # raises, with the known names
    if len(names) > MAX_METHODS:
        raise ValueError(f"{len(names)} methods are too many lines to distinguish: choose at most {MAX_METHODS}.")
    return several, names


def method_roles(results: Results, names: Sequence[str]) -> dict[str, Role]:
    """The role of each method's family; further methods of a family get its variants."""
    variants: Counter[str] = Counter()
    roles = {}
    for name in names:
        family = "baseline" if name == results.baseline else results.family(name)
        roles[name] = replace(FAMILY_ROLES[family].variant(variants[family]), label=results.title(name))
        variants[family] += 1
    return roles


def _draw_line(axes: Axes, several: Sequence[Results], rows: Sequence[Estimate], role: Role, shift: float) -> None:
    x = np.array([results.images for results in several]) * shift
    mean = np.array([100 * row.mean for row in rows])
    half = np.array([100 * row.half_width if math.isfinite(row.half_width) else np.nan for row in rows])
    axes.errorbar(x, mean, half, capsize=3, elinewidth=1.2, **{**role.line(), "linewidth": 1.3})
