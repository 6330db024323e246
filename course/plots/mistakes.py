"""What mistakes in the loss cost: differences from the same teaching without the mistake, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from course.plots.theme import NEUTRAL, OTHER, figure, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course.experiments.logit_mistakes import Cost


def mistakes(costs: Sequence[Cost]) -> Figure:
    """Every mistake with the labels' weight of each panel: seeds, their mean and its interval, around the zero line.

    costs: what `course.experiments.logit_mistakes.costs` gives, the same mistakes for every alpha.
    """
    alphas = list(dict.fromkeys(cost.alpha for cost in costs))
    fig, axes = figure(10, 3.4, columns=len(alphas), sharey=True)
    for panel, (ax, alpha) in enumerate(zip(axes, alphas, strict=True)):
        rows = [cost for cost in costs if cost.alpha == alpha]
        for y, cost in enumerate(rows):
            held = f"mean, interval (95 % for all {cost.comparison.comparisons} together)"
            seeds, mean = ("one seed", held) if y == 0 and panel == len(alphas) - 1 else ("", "")
            look = NEUTRAL.line(seeds, linestyle="", alpha=0.6, markersize=5)
            ax.plot(cost.by_seed, [y] * len(cost.by_seed), **look)
            found = cost.comparison
            margin = [[found.mean - found.low], [found.high - found.mean]]
            marks = {"marker": OTHER.marker, "markersize": 9, "color": OTHER.colour, "capsize": 4, "linewidth": 1.6}
            ax.errorbar([found.mean], [y], xerr=margin, linestyle="", label=mean or None, **marks)
        ax.axvline(0, color=NEUTRAL.colour, linewidth=1.2, zorder=1)
        ax.set_title(f"alpha = {alpha:g}: {'labels and teacher' if alpha else 'the teacher alone'}")
        ax.set(xlabel="change of validation accuracy (points)", ylabel="what was changed" if panel == 0 else "")
        ax.set_yticks(range(len(rows)), [cost.way for cost in rows])
    axes[0].set_ylim(len(costs) / len(alphas) - 0.4, -0.6)  # the first on top; the other panels share this axis
    legend(axes[-1])  # the last panel, whose mistakes cost most, has room
    return fig


def mistakes_alt(costs: Sequence[Cost]) -> str:
    """What `mistakes` shows, in words and numbers."""
    parts = []
    for alpha in dict.fromkeys(cost.alpha for cost in costs):
        rows = [
            f"{cost.way} {cost.comparison.mean:+.1f} ({cost.comparison.low:+.1f} to {cost.comparison.high:+.1f})"
            for cost in costs
            if cost.alpha == alpha
        ]
        parts.append(f"alpha = {alpha:g}: {', '.join(rows)}")
    start = (
        "Change of validation accuracy, in points, by each mistake: mean and interval over the seeds, 95 % for all "
        f"{costs[0].comparison.comparisons} together. "
    )
    return start + ". ".join(parts) + "."
