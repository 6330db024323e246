"""Figures of the experiments on claims: accuracy of each arm, and its gain over a baseline; accuracy against passes.

pictures = claims_results.load("pictures")
plots.show(plots.claim_arms(pictures, "labels"), alt=plots.claim_arms_alt(pictures, "labels"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course.plots.several import describe_gains, draw_gain, gain_panels
from course.plots.theme import BASELINE, DISTILLED, Role, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course.experiments.claims_results import ClaimResults


def claim_arms(results: ClaimResults, baseline: str, arms: Sequence[str] | None = None) -> Figure:
    """Left: the accuracy of each seed and the mean, for each arm; right: the gain over the baseline."""
    names = _names(results, baseline, arms)
    gains = {gain.way: gain.comparison for gain in results.compare(baseline, names)}
    fig, (left, right, beside) = gain_panels(len(names), 1.6 + 0.34 * len(names))
    for y, name in enumerate(names):
        role = BASELINE if name == baseline else DISTILLED
        scores = list(results.values(name).values())
        left.plot(scores, [y] * len(scores), "|", color=role.colour, markersize=9)
        left.plot([results.mean(name)], [y], **role.line("_", linestyle=""))
        if name in gains:
            draw_gain(right, beside, y, gains[name])
    left.set_yticks(range(len(names)), names)
    left.set(xlabel="test accuracy (%),\neach seed and the mean", ylabel="what taught")
    right.set_xlabel(describe_gains(f"gain over {baseline!r} (points)", gains.values()))
    return fig


def claim_arms_alt(results: ClaimResults, baseline: str, arms: Sequence[str] | None = None) -> str:
    """What `claim_arms` shows, in words."""
    names = _names(results, baseline, arms)
    gains = {gain.way: gain.comparison for gain in results.compare(baseline, names)}
    lines = []
    for name in names:
        found = gains.get(name)
        gain = "" if found is None else f", {found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f}), {found.verdict}"
        lines.append(f"{name}: {results.mean(name):.1f} %{gain}")
    return f"Accuracies, and gains over {baseline!r} with their intervals. {'; '.join(lines)}."


def claim_lengths(results: ClaimResults, ways: Mapping[str, Role], lengths: Sequence[int]) -> Figure:
    """Accuracy against passes over the images, a line for each way of the part "length": each seed and the mean."""
    from course.experiments.claims_length import name

    fig, axes = figure(7, 3.4)
    for way, role in ways.items():
        axes.plot(lengths, [results.mean(name(way, one)) for one in lengths], **role.line(way))
        for one in lengths:
            scores = list(results.values(name(way, one)).values())
            axes.plot([one] * len(scores), scores, "_", color=role.colour, markersize=9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(lengths), [str(one) for one in lengths])
    axes.set(xlabel="passes over the images; each point is a training of its own", ylabel="test accuracy (%)")
    axes.legend(frameon=False)
    return fig


def claim_lengths_alt(results: ClaimResults, ways: Mapping[str, Role], lengths: Sequence[int]) -> str:
    """What `claim_lengths` shows, in words."""
    from course.experiments.claims_length import name

    lines = [
        f"{way}: {', '.join(f'{results.mean(name(way, one)):.1f} % after {one}' for one in lengths)}" for way in ways
    ]
    return f"Test accuracy against passes over the images. {'; '.join(lines)}."


def _names(results: ClaimResults, baseline: str, arms: Sequence[str] | None) -> list[str]:
    names = list(results.arms if arms is None else arms)
    return [baseline, *(name for name in names if name != baseline)]
