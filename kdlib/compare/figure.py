"""The report as one figure, without pyplot and its global state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kdlib import looks
from kdlib.compare.networks import TEACHER
from kdlib.compare.tables import ALL
from kdlib.compare.text import MOST_CLASSES, extreme_classes
from kdlib.data.corruptions import SEVERITIES, STRENGTHS
from kdlib.looks import Look

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kdlib.compare.report import Report


def draw(report: Report) -> Figure:
    """All that there is, each in its panel."""
    from matplotlib.figure import Figure

    panels: dict[str, Callable[[Axes, Report, dict[str, Look]], None]] = {"A": _accuracy, "C": _calibration}
    if report.has_teacher:
        panels["B"] = _fidelity
    top = "AABBCC" if report.has_teacher else "AAACCC"
    panels["D"] = _classes
    rows = [top, "DDDDDD"]
    if len(report.robustness):
        panels |= {"E": _robustness, "F": _outside}
        rows = [top, "DDEEEE", "DDFFFF"]
    styles = {report.baseline: looks.BASELINE}
    styles |= {name: looks.other(number) for number, name in enumerate(report.networks[1:])}
    styles |= {TEACHER: looks.TEACHER}
    figure = Figure(figsize=(13, 3.4 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplot_mosaic("\n".join(rows))
    for letter, panel in panels.items():
        panel(axes[letter], report, styles)
        axes[letter].grid(alpha=0.25)
        axes[letter].set_axisbelow(True)
        axes[letter].spines[["top", "right"]].set_visible(False)
    handles = [_handle(_short(name, 40), styles[name]) for name in _shown(report)]
    columns = max(1, min(4, 80 // (6 + max(len(handle.get_label()) for handle in handles))))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def _handle(name: str, look: Look) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look.colour, marker=look.marker, linestyle="none", label=name)


def _short(name: str, most: int) -> str:
    """A name that is not too long, and that matplotlib neither reads as mathematics nor leaves out."""
    shown = name if len(name) <= most else f"{name[: most - 3]}..."
    return shown.replace("$", r"\$").lstrip("_") or "-"


def _about(report: Report) -> str:
    return "test images" if report.seeds == 1 else "seeds and test images"


def _interval(axes: Axes, x: float, y: float, low: float, high: float, look: Look) -> None:
    """A point with its interval along x; an interval without end is left out."""
    finite = math.isfinite(low) and math.isfinite(high)
    ends = [[max(0.0, x - low)], [max(0.0, high - x)]] if finite else None
    axes.errorbar([x], [y], xerr=ends, color=look.colour, marker=look.marker, capsize=3, linestyle="none", markersize=6)


def _accuracy(axes: Axes, report: Report, styles: dict[str, Look]) -> None:
    rows = report.accuracy.to_dict("records")
    for number, row in enumerate(rows):
        low, high = 100 * row["value_low"], 100 * row["value_high"]
        _interval(axes, 100 * row["value"], -number, low, high, styles[row["network"]])
    axes.set_yticks([])
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.set(xlabel=f"test accuracy (%), interval over\n{_about(report)}", title="Accuracy")


def _fidelity(axes: Axes, report: Report, styles: dict[str, Look]) -> None:
    table = report.fidelity[report.fidelity["measure"] != "KL to the teacher"]
    measures = list(dict.fromkeys(table["measure"]))
    for row in table.to_dict("records"):
        x = measures.index(row["measure"]) + _offset(report.networks, row["network"])
        axes.bar([x], [100 * row["value"]], 0.8 / len(report.networks), color=styles[row["network"]].colour)
        axes.annotate(f"{100 * row['value']:.1f}", (x, 100 * row["value"]), ha="center", va="bottom", fontsize=8)
    names = {"agreement": "same answer\nas the teacher", "repeated mistakes": "its mistakes\nrepeated"}
    axes.set_xticks(range(len(measures)), [names[one] for one in measures])
    axes.set_ylim(0, 108)
    axes.set(ylabel="share of test images, or of\nthe teacher's mistakes (%)", title="Fidelity to the teacher")


def _offset(names: Sequence[str], name: str) -> float:
    """Where a network stands beside the others at one tick."""
    return (names.index(name) - (len(names) - 1) / 2) * 0.8 / len(names)


def _shown(report: Report) -> list[str]:
    return [*report.networks, *([TEACHER] if report.has_teacher else [])]


def _calibration(axes: Axes, report: Report, styles: dict[str, Look]) -> None:
    table = report.calibration
    for name, look in styles.items():
        rows = table[table["network"] == name].set_index("measure")["value"]
        if len(rows):
            values = [100 * rows["calibration error"], 100 * rows["calibration error, temperature-scaled"]]
            axes.plot([0, 1], values, color=look.colour, linestyle=look.linestyle, marker=look.marker)
    axes.set_xticks([0, 1], ["as trained", "after one\ntemperature"])
    axes.set_xlim(-0.3, 1.3)
    axes.set_ylim(bottom=0)
    axes.set(ylabel="calibration error (%)", title="Calibration")


def _classes(axes: Axes, report: Report, styles: dict[str, Look]) -> None:
    table = report.classes[report.classes["network"].isin(report.networks[1:])]
    rows = table.to_dict("records")
    shortened = table["class"].nunique() > MOST_CLASSES
    if shortened:
        rows = extreme_classes(rows)
    names = list(dict.fromkeys(row["class"] for row in rows))
    for row in rows:
        y = -names.index(row["class"]) - _offset(report.networks[1:], row["network"])
        _interval(axes, 100 * row["gain"], y, 100 * row["low"], 100 * row["high"], styles[row["network"]])
    axes.axvline(0, color=styles[report.baseline].colour, linewidth=1.2)
    axes.set_yticks([-number for number in range(len(names))], [_short(name, 20) for name in names])
    family = int(table["family"].max()) if len(table) else 0
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, -100), min(right, 100))  # an interval of few images and seeds may be wider than can be
    no_scatter = "\n(none where all runs are equal)" * any(not math.isfinite(low) for low in table["low"])
    axes.set(
        xlabel=f"gain in accuracy (points) over\n{_short(report.baseline, 24)},\n"
        f"interval over {_about(report)}, one of {family}{no_scatter}",
        title="The largest gains and losses" if shortened else "Gains and losses by class",
    )


def _robustness(axes: Axes, report: Report, styles: dict[str, Look]) -> None:
    table = report.robustness[report.robustness["corruption"] != ALL]
    means = report.robustness[(report.robustness["corruption"] == ALL) & (report.robustness["measure"] == "accuracy")]
    width = 0.22  # of a severity
    shown = _shown(report)
    for name in shown:
        colour, linestyle, marker = styles[name]
        for number, kind in enumerate(STRENGTHS):
            rows = table[(table["network"] == name) & (table["corruption"] == kind)].sort_values("severity")
            x = [number + width * (severity - 2) for severity in rows["severity"]]
            line: dict[str, Any] = {"color": colour, "linestyle": linestyle, "marker": marker}
            axes.plot(x, 100 * rows["value"], **line, markersize=4, linewidth=1)
        mean = means[means["network"] == name]["value"].iloc[0]
        x_of_mean = len(STRENGTHS) + _offset(shown, name)
        axes.plot([x_of_mean], [100 * mean], color=colour, marker=marker, markersize=8, linestyle="none")
    axes.axvline(len(STRENGTHS) - 0.5, color="0.7", linewidth=1)
    axes.set_xticks(range(len(STRENGTHS) + 1), [*STRENGTHS, "mean of all"])
    axes.set_ylim(0, 100)
    axes.set(ylabel="accuracy (%)", title=f"Robustness: each corruption at {len(SEVERITIES)} severities")


def _outside(axes: Axes, report: Report, styles: dict[str, Look]) -> None:
    table: pd.DataFrame = report.outside[report.outside["measure"] == "confidence, temperature-scaled"]
    kinds = list(dict.fromkeys(table["pictures"]))
    shown = _shown(report)
    for row in table.to_dict("records"):
        x = kinds.index(row["pictures"]) + _offset(shown, row["network"])
        axes.bar([x], [100 * row["value"]], 0.8 / len(shown), color=styles[row["network"]].colour)
    for row in report.outside[report.outside["measure"] == "AUROC"].to_dict("records"):
        x = kinds.index(row["pictures"]) + _offset(shown, row["network"])
        colour = _readable_on(styles[row["network"]].colour)
        axes.annotate(f"{row['value']:.2f}", (x, 3), ha="center", color=colour, fontsize=8, rotation=90)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylim(0, 100)
    axes.set(
        ylabel="mean confidence after\nthe temperature (%)",
        title="Confidence in pictures of nothing (in the bars: AUROC, test images against them)",
    )


def _readable_on(colour: str) -> str:
    """White or black: what stands out more from this colour, by the contrast of WCAG."""
    from matplotlib.colors import to_rgb

    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "white" if luminance < math.sqrt(1.05 * 0.05) - 0.05 else "black"
