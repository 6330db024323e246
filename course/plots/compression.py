"""Figures of the experiment on compression: accuracy against cost, and what distillation adds to each way.

results = compression_results.load()
plots.show(plots.pareto(results), alt=plots.pareto_alt(results))
plots.show(plots.compression_gains(results.gains()), alt=plots.compression_gains_alt(results.gains()))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from course.plots.several import describe_gains, draw_gain, gain_panels
from course.plots.theme import BASELINE, DISTILLED, INK, NEUTRAL, TEACHER, Role, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course.experiments.compression_results import CompressionResults, Gain, Network

TRAINING_ROLES = {"raw": NEUTRAL, "hard labels": BASELINE, "kd": DISTILLED}
COMPRESSION_ROLES = (
    (TEACHER, "before compression"),
    (BASELINE, "hard labels"),
    (DISTILLED, "distilled"),
    (NEUTRAL, "no further training"),
)
LETTER, LINE = 0.0155, 0.04  # width of a letter and height of a text, as shares of the axes
ACCURACY_TICKS = (10, 30, 50, 70, 80, 85, 88, 90, 92, 94, 96, 98)
COST_LABELS = {
    "bytes": "bytes of the file (logarithmic)",
    "zipped_bytes": "bytes of the zipped file (logarithmic)",
    "macs": "MACs for a picture (logarithmic)",
}


def compression_role(network: Network) -> Role:
    """The colour and marker of a network: the whole one is the teacher, the others go by their training."""
    return TEACHER if network.technique == "resnet20" else TRAINING_ROLES[network.training]


def compression_point(role: Role, label: str) -> dict[str, Any]:
    """Arguments for `axes.plot`: larger squares lie under smaller circles, so that neither hides the other."""
    depth = (NEUTRAL, BASELINE, DISTILLED, TEACHER).index(role)
    size = {"markersize": 9} if role is BASELINE else {}
    return role.line(label, linestyle="", zorder=3 + depth, **size)


def stretch_accuracy(axes: Axes, results: CompressionResults) -> None:
    """Give the y axis a scale on which half as many errors are always as far up: logarithmic in 100 % - accuracy."""
    axes.set_yscale("function", functions=(_height, _accuracy))
    high = max(one.accuracy for one in results.by_key.values())
    low = min(one.accuracy for one in results.by_key.values())
    axes.set_ylim(max(0.0, low - 6), _accuracy(_height(high) + 0.14))
    axes.set_yticks([tick for tick in ACCURACY_TICKS if low - 6 <= tick <= high + 1])
    axes.set_ylabel("test accuracy (%), stretched towards 100")


def _height(accuracy: Any) -> Any:
    return -np.log10(np.maximum(100 - np.asarray(accuracy, dtype=float), 1e-3))


def _accuracy(height: Any) -> Any:
    return 100 - 10 ** -np.asarray(height, dtype=float)


def pareto(results: CompressionResults, costs: Sequence[str] = ("bytes", "macs")) -> Figure:
    """Accuracy against each of these costs, trainings of one technique joined, and the best for their cost as a line.

    costs: names in compression_results.COSTS. Raises ValueError for an unknown cost.
    """
    fig, axes = figure(5.2 * len(costs), 5.2, columns=len(costs), sharey=True, squeeze=False)
    for ax, cost in zip(axes[0], costs, strict=True):
        draw_pareto(ax, results, cost)
        ax.label_outer()
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=9)
    return fig


def draw_pareto(axes: Axes, results: CompressionResults, cost: str) -> None:
    """Accuracy against one cost, into axes that are there."""
    front = results.front(cost)
    line: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": ":", "label": "best for its cost", "alpha": 0.7}
    stretch_accuracy(axes, results)
    axes.step([one.cost(cost) for one in front], [one.accuracy for one in front], where="post", **line)
    best: list[Network] = []
    for name in (results.whole.technique, *results.techniques):
        members = sorted((one for key, one in results.by_key.items() if key[0] == name), key=lambda one: one.accuracy)
        heights = [members[0].accuracy, members[-1].accuracy]
        axes.plot([members[0].cost(cost)] * 2, heights, "-", color=INK, linewidth=1, alpha=0.35)
        best.append(members[-1])
    _draw_points(axes, list(results.by_key.values()), cost)
    axes.set(xscale="log", xlabel=COST_LABELS[cost])
    costs = [one.cost(cost) for one in results.by_key.values()]
    axes.set_xlim(min(costs) / 1.25, max(costs) * (max(costs) / min(costs)) ** 0.3)  # room for the texts
    plain_log_ticks(axes)
    named = [one for one in best if cost != "macs" or one.macs != results.whole.macs or one is results.whole]
    _write_labels(axes, results, named, cost)


def _draw_points(axes: Axes, networks: Sequence[Network], cost: str) -> None:
    for role, label in COMPRESSION_ROLES:
        members = [one for one in networks if compression_role(one) == role]
        if members:
            look = compression_point(role, label) | {"markeredgecolor": "white", "markeredgewidth": 0.5}
            axes.plot([one.cost(cost) for one in members], [one.accuracy for one in members], **look)


def plain_log_ticks(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 of each decade, as 50 k or 2 M."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def _write_labels(axes: Axes, results: CompressionResults, networks: Sequence[Network], cost: str) -> None:
    """A technique's name near its best point, where it covers neither a point nor another name."""
    low, high = (float(_height(end)) for end in axes.get_ylim())
    left, right = (math.log10(end) for end in axes.get_xlim())

    def place(one: Network) -> tuple[float, float]:
        across = (math.log10(one.cost(cost)) - left) / (right - left)
        return across, (float(_height(one.accuracy)) - low) / (high - low)

    taken = [(x - 0.012, y - 0.016, x + 0.012, y + 0.016) for x, y in map(place, results.by_key.values())]
    for one in sorted(networks, key=lambda one: -one.accuracy):
        x, y = place(one)
        width, line = LETTER * len(one.title), {"arrowstyle": "-", "color": INK, "alpha": 0.3, "linewidth": 0.7}
        for dx, dy in _around(width):
            box = (x + dx, y + dy - LINE / 2, x + dx + width, y + dy + LINE / 2)
            inside = box[0] >= 0 and box[2] <= 1 and box[1] >= 0 and box[3] <= 1
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                look: dict[str, Any] = {"textcoords": "axes fraction", "fontsize": 8, "va": "center"}
                look["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
                look |= {"arrowprops": line} if abs(dx) + abs(dy) > 0.12 and abs(dy) > 0.03 else {}
                # LETTER is wide for most letters: a text on the left ends at its point.
                across, end = (box[2], "right") if dx + width < 0 else (box[0], "left")
                axes.annotate(one.title, (one.cost(cost), one.accuracy), xytext=(across, y + dy), ha=end, **look)
                break


def _around(width: float) -> Iterator[tuple[float, float]]:
    """Where a text may begin, from its point: at its sides, above and below, then further away."""
    yield from ((0.02, 0.0), (-width - 0.02, 0.0), (-width / 2, 0.04), (-width / 2, -0.04))
    for step in range(1, 16):
        for dy in (step * LINE / 2, -step * LINE / 2):
            yield from ((0.025, dy), (-width - 0.025, dy))


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def pareto_alt(results: CompressionResults, costs: Sequence[str] = ("bytes", "macs")) -> str:
    """What `pareto` shows, in words."""
    parts = []
    others = {key: one for key, one in results.by_key.items() if not any(one in results.front(cost) for cost in costs)}
    for cost in costs:
        names = [f"{_name(one)} {one.accuracy:.1f} %" for one in results.front(cost)[::-1]]
        parts.append(f"Nothing is better at its {_COST_WORDS[cost]}, from dear to cheap: {', '.join(names)}.")
    if others:
        parts.append(f"The others: {', '.join(f'{_name(one)} {one.accuracy:.1f} %' for one in others.values())}.")
    return f"Test accuracy against {' and '.join(_COST_WORDS[cost] for cost in costs)}. {' '.join(parts)}"


_COST_WORDS = {"bytes": "bytes", "zipped_bytes": "zipped bytes", "macs": "MACs"}


def _name(one: Network) -> str:
    how = {"raw": "not trained further", "kd": "distilled"}.get(one.training, one.training)
    return one.title if one.technique == "resnet20" else f"{one.title} ({how})"


def compression_gains(gains: Sequence[Gain]) -> Figure:
    """On the left the accuracy of both trainings of each technique, on the right the gain with its interval."""
    fig, (left, right, beside) = gain_panels(len(gains), 0.36 * max(3, len(gains)) + 1.7)
    for y, gain in enumerate(gains):
        pair = [gain.baseline.accuracy, gain.network.accuracy]
        left.plot(pair, [y, y], "-", color=INK, linewidth=1, alpha=0.4)
        for value, role in zip(pair, (BASELINE, DISTILLED), strict=True):
            left.plot([value], [y], **role.line("" if y else None, linestyle=""))
        draw_gain(right, beside, y, gain.comparison)
    left.set_yticks(range(len(gains)), [gain.title for gain in gains])
    left.set(xlabel="test accuracy (%)", ylabel="way of compressing")
    what = "gain of the teacher over hard labels (points)"
    right.set_xlabel(describe_gains(what, [gain.comparison for gain in gains]))
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return fig


def compression_gains_alt(gains: Sequence[Gain]) -> str:
    """What `compression_gains` shows, in words."""
    lines = [
        f"{gain.title}: hard labels {gain.baseline.accuracy:.1f} %, distilled {gain.network.accuracy:.1f} %, gain "
        f"{gain.comparison.mean:+.2f} ({gain.comparison.low:+.2f} to {gain.comparison.high:+.2f}), "
        f"{gain.comparison.verdict}, {gain.comparison.n} seeds"
        for gain in gains
    ]
    return f"Accuracy on hard labels and distilled, and the gain with its interval. {'; '.join(lines)}."
