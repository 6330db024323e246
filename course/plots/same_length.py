"""A figure of lesson 10: trials with the teacher's features as they are, and with features of one length.

tables = {method: normalized_layers.same_settings(method) for method in ("similarity", "vid")}
plots.show(plots.normalized_trials(tables), alt=plots.normalized_trials_alt(tables))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from course.plots.theme import FEATURES, INK, RELATIONS, figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TITLES = {"similarity": "similarity", "vid": "VID"}
ROLES = {"similarity": RELATIONS, "vid": FEATURES}
SUFFIX = ", normalised"  # of a column of the tables


def normalized_trials(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """A row for each method, a column for each teacher: validation accuracy of the same settings, by their weight.

    tables: by method, "similarity" or "vid", what `normalized_layers.same_settings` returns.
    """
    teachers = _teachers(tables)
    fig, grid = figure(8.8, 2.7 * len(tables) + 0.5, rows=len(tables), columns=len(teachers), sharey="row",
                       sharex="row", squeeze=False)  # fmt: skip
    for row, (method, table) in zip(grid, tables.items(), strict=True):
        role = ROLES[method]
        for axes, teacher in zip(row, teachers, strict=True):
            plain, equal = table[teacher], table[f"{teacher}{SUFFIX}"]
            axes.vlines(table["weight"], plain, equal, color=INK, linewidth=0.8, zorder=1)
            look = {"linestyle": "", "marker": "o", "markeredgewidth": 1.5}
            axes.plot(table["weight"], plain, **role.line("as they are", markerfacecolor="white", **look))
            axes.plot(table["weight"], equal, **role.line("normalised", **look))
            axes.set(xscale="log", title=f"{TITLES[method]}, teacher: {teacher}", xlabel="weight of the loss")
        row[0].set_ylabel("validation accuracy (%)")
        row[-1].legend(loc="best", fontsize=9, frameon=False)
    return fig


def normalized_trials_alt(tables: Mapping[str, pd.DataFrame]) -> str:
    """What `normalized_trials` shows, in words."""
    parts = []
    for method, table in tables.items():
        for teacher in _teachers(tables):
            plain, equal = table[teacher], table[f"{teacher}{SUFFIX}"]
            ahead = (equal > plain).sum()
            parts.append(
                f"{TITLES[method]}, {teacher}: from {plain.min():.1f} to {plain.max():.1f} as they are, from "
                f"{equal.min():.1f} to {equal.max():.1f} normalised, which is ahead in {ahead} of {len(table)}"
            )
    return f"Validation accuracy in per cent of the same settings with the teacher's features. {'; '.join(parts)}."


def _teachers(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    columns = next(iter(tables.values())).columns
    return [name.removesuffix(SUFFIX) for name in columns if name.endswith(SUFFIX)]
