"""Figure of the tiny classifier of sentences in lesson 17: what each way of teaching is worth.

results = sentence_results.load()
plots.show(plots.sentence_ways(results), alt=plots.sentence_ways_alt(results))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.plots.theme import BASELINE, DISTILLED, NEUTRAL, TEACHER, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course.experiments.sentence_results import SentenceResults, Taught

ROLES_OF_WAYS = {
    "teacher": TEACHER,
    "few labels": BASELINE,
    "teacher's hard answers": DISTILLED.variant(1),
    "teacher's soft answers": DISTILLED,
    "soft answers of another sentence": NEUTRAL,
    "all labels": BASELINE.variant(1),
}


def _panels(results: SentenceResults) -> dict[int, list[Taught]]:
    """The ways of each number of labels, with that of all labels at the end of each."""
    everything = [one for (way, _), one in results.ways.items() if way == "all labels"]
    budgets = dict.fromkeys(budget for way, budget in results.ways if way != "all labels")
    return {
        budget: [one for (way, labels), one in results.ways.items() if labels == budget] + everything
        for budget in budgets
    }


def sentence_ways(results: SentenceResults) -> Figure:
    """Test accuracy of each way with its interval over seeds: a panel for each number of labels."""
    panels = _panels(results)
    fig, grid = figure(8.4, 3.2, columns=len(panels), sharex=True, sharey=True)
    for axes, (budget, ways) in zip(grid, panels.items(), strict=True):
        for y, one in enumerate(ways):
            role = ROLES_OF_WAYS[one.way]
            axes.plot(one.interval, [y, y], "-", color=role.colour, linewidth=2, solid_capstyle="butt")
            axes.plot([one.accuracy], [y], **role.line("_", linestyle=""))
        axes.axvline(10, color=NEUTRAL.colour, linestyle=":", linewidth=1)
        axes.set_title(f"{budget} labels of each kind")
        axes.set(xlabel="test accuracy (%)", xlim=(0, 90))
        axes.grid(visible=False, axis="y")
    grid[0].set_yticks(range(len(ways)), [one.way for one in ways])
    grid[0].set(ylabel="what taught", ylim=(len(ways) - 0.5, -0.5))
    grid[0].annotate("guessing", (10, 0), xytext=(3, 0), textcoords="offset points", va="center", color=NEUTRAL.ink)
    return fig


def sentence_ways_alt(results: SentenceResults) -> str:
    """What `sentence_ways` shows, in words."""
    parts = []
    for budget, ways in _panels(results).items():
        said = "; ".join(
            f"{one.way} {one.accuracy:.1f} ({one.interval[0]:.1f} to {one.interval[1]:.1f})" for one in ways
        )
        parts.append(f"With {budget} labels of each kind: {said}.")
    return f"Test accuracies in per cent with intervals over seeds. {' '.join(parts)}"
