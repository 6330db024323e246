"""What each fault of lesson 15's patients did to accuracy, with intervals over seeds.

found = clinic.load()          # of course.experiments
plots.show(plots.fault_effects(found), alt=plots.fault_effects_alt(found))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from course.plots.forest_plot import VERDICT_ROLES
from course.plots.theme import INK, figure
from kdlib.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course.experiments.clinic import Effect


def fault_effects(effects: Sequence[Effect]) -> Figure:
    """A line for each patient that has a fault: as it came, minus as it should be, and the interval."""
    sick = [one for one in effects if one.harm is not None]
    fig, axes = figure(7.5, 0.6 + 0.34 * len(sick))
    for place, one in enumerate(sick):
        assert one.harm is not None
        look = VERDICT_ROLES[one.harm.verdict]
        fill = "white" if one.harm.verdict is Verdict.INCONCLUSIVE else look.colour
        axes.plot([one.harm.low, one.harm.high], [place, place], color=look.colour, linestyle="-", linewidth=2)
        drawn = {"color": look.colour, "marker": look.marker, "markerfacecolor": fill, "markeredgewidth": 1.5}
        axes.plot(one.harm.mean, place, linestyle="", markersize=7, **drawn)
        text = f"  {_accuracies(one)}"
        axes.text(max(one.harm.high, 0.0), place, text, color=INK, fontsize=8, va="center", ha="left")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(sick)), [str(one.patient) for one in sick])
    axes.set(xlabel="as it came, minus as it should be (points of validation accuracy)", ylabel="patient")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.22 * (high - low))
    axes.invert_yaxis()
    return fig


def fault_effects_alt(effects: Sequence[Effect]) -> str:
    """What `fault_effects` shows, in words."""
    parts = [
        f"patient {one.patient}: {one.harm.mean:+.1f} ({one.harm.low:+.1f} to {one.harm.high:+.1f}), {_accuracies(one)}"
        for one in effects
        if one.harm is not None
    ]
    return f"Points of validation accuracy, as it came minus as it should be, and interval. {'; '.join(parts)}."


def _accuracies(one: Effect) -> str:
    return f"{one.came:.1f} %, healthy {one.cured:.1f} %"
