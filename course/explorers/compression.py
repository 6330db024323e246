"""Lesson 02: a compressed network on four axes, bytes, MACs, time and accuracy, among all others of the experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from course import plots
from course.experiments import compression_results
from course.experiments.compression_results import COSTS, TITLES, TRAININGS, WHOLE, CompressionResults, Gain, Network
from course.explorers.base import CONTROL_STYLE, Explorer

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

BARS = ("bytes", "zipped_bytes", "macs", "time")
BAR_LABELS = ("bytes", "zipped", "MACs", "time")
BARS_END, MOST_BESIDE = 150, 115  # per cent: where their axis ends, and up to where a number has room beside its bar
WORDS = {"bytes": "bytes", "zipped_bytes": "zipped bytes", "macs": "MACs"}


@dataclass(frozen=True)
class Choice:
    """One network, its costs as shares of the whole network's (time None where it was not measured), and its rivals.

    gain: over hard labels, for a distilled network. better: networks that cost at most as much, by the chosen cost, and
    are more accurate, the best first.
    """

    network: Network
    shares: tuple[float | None, ...]
    gain: Gain | None
    better: tuple[Network, ...]


class Compression(Explorer):
    """Choose a way of compressing, a training and a cost: what the network costs, and how right it is, among all.

    results: default `compression_results.load()`, which raises FileNotFoundError if there are none. latency: time of
    one picture by technique, as a share of the whole network's, where it was measured: {"channels": 0.4}.
    """

    name = "Compression"
    alt = (
        "Left: test accuracy of all networks against a cost on a logarithmic axis, squares for hard labels, circles "
        "for distilled networks, diamonds for those not trained further, a triangle for the whole ResNet-20; a dotted "
        "line through those that are best for their cost; a ring marks the chosen one. Right: bars of its bytes, "
        "zipped bytes, MACs and time in per cent of the whole network."
    )
    size = (10.4, 3.9)

    def __init__(
        self, results: CompressionResults | None = None, latency: Mapping[str, float] | None = None, **initial: Any
    ) -> None:
        self.results = compression_results.load() if results is None else results
        self.latency = tuple(sorted((latency or {}).items()))
        self._wanted = ""  # the training that was chosen last
        super().__init__(**initial)

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        ways = [(TITLES[name], name) for name in (WHOLE, *self.results.techniques)]
        costs = [(title, name) for name, title in COSTS.items()]
        training = widgets.Dropdown(options=self._trainings(WHOLE), description="Training", **CONTROL_STYLE)
        self._given = training.value  # what is shown; a value that differs was chosen
        return {
            "way": widgets.SelectionSlider(options=ways, value=WHOLE, description="Way", **CONTROL_STYLE),
            "training": training,
            "cost": widgets.Dropdown(options=costs, value="bytes", description="Cost on the axis", **CONTROL_STYLE),
        }

    def _trainings(self, way: str) -> list[tuple[str, str]]:
        return [(title, name) for name, title in TRAININGS.items() if (way, name) in self.results.by_key]

    def sync_controls(self) -> None:
        """Offer the trainings that were run for the chosen way: the one that was chosen last, else the last of them."""
        control, options = self.controls["training"], self._trainings(self.controls["way"].value)
        if control.value != self._given:  # chosen, and not put here for want of it
            self._wanted = control.value
        if list(control.options) != options:
            control.options = options
        names = [name for _, name in options]
        self._given = self._wanted if self._wanted in names else names[-1]
        control.value = self._given

    def inputs(self) -> tuple[CompressionResults, tuple[tuple[str, float], ...], str, str, str]:
        state = self.state
        return self.results, self.latency, state["way"], state["training"], state["cost"]

    @staticmethod
    @lru_cache(maxsize=256)
    def compute(
        results: CompressionResults, latency: tuple[tuple[str, float], ...], way: str, training: str, cost: str
    ) -> Choice:
        """What the rows say of one network; raises ValueError for one that was not run."""
        if (way, training) not in results.by_key:
            raise ValueError(f"{TITLES[way]}, {TRAININGS[training]}, was not run. Choose another training.")
        network = results.by_key[way, training]
        whole = results.whole
        shares = [getattr(network, name) / getattr(whole, name) for name in BARS[:-1]]
        time = 1.0 if way == WHOLE else dict(latency).get(way)
        gain = next((one for one in results.gains() if one.network == network), None)
        rivals = [one for one in results.by_key.values() if one.cost(cost) <= network.cost(cost)]
        better = sorted((one for one in rivals if one.accuracy > network.accuracy), key=lambda one: -one.accuracy)
        return Choice(network, (*shares, time), gain, tuple(better))

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        self._map, bars = figure.subplots(1, 2, width_ratios=(1.7, 1))
        axes, networks = self._map, list(self.results.by_key.values())
        plots.stretch_accuracy(axes, self.results)
        self._groups = [
            (role, label, [one for one in networks if plots.compression_role(one) == role])
            for role, label in plots.COMPRESSION_ROLES
        ]
        (self._front,) = axes.plot([1], [1], color=plots.INK, linewidth=1, linestyle=":", drawstyle="steps-post")
        self._front.set_label("best for its cost")
        self._points = []
        for role, label, members in self._groups:
            (points,) = axes.plot([1] * len(members), [1] * len(members), **plots.compression_point(role, label))
            self._points.append(points)
        ring = {"marker": "o", "markersize": 15, "markerfacecolor": "none", "markeredgewidth": 2, "linestyle": ""}
        (self._ring,) = axes.plot([1], [1], color=plots.INK, **ring)
        axes.set(xscale="log", xlabel=max(plots.COST_LABELS.values(), key=len))
        self._limit_costs("bytes")
        plots.legend(axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1, handlelength=1.5)
        return [self._front, *self._points, axes.xaxis], [self._ring, *self._build_bars(bars)]

    def _build_bars(self, axes: Any) -> list[Artist]:
        positions = range(len(BARS))
        self._bars = list(axes.barh(positions, [100.0] * len(BARS), 0.6, color=plots.NEUTRAL.colour))
        self._texts = [axes.text(1, y, "", va="center", fontsize=9) for y in positions]
        axes.set_yticks(positions, BAR_LABELS)
        axes.set(xlim=(0, BARS_END), ylim=(len(BARS) - 0.5, -0.5))
        axes.set(xlabel="share of the whole ResNet-20 (%)", ylabel="cost")
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.grid(visible=False, axis="y")
        return [*self._bars, *self._texts]

    def _limit_costs(self, cost: str) -> None:
        values = [one.cost(cost) for one in self.results.by_key.values()]
        self._map.set_xlim(min(values) / 1.4, max(values) * 1.4)
        plots.plain_log_ticks(self._map)

    def update(self, result: Choice) -> None:
        cost, network = self.state["cost"], result.network
        self.draw_cached(cost, lambda: self._update_cached(cost))
        self._ring.set_data([network.cost(cost)], [network.accuracy])
        for bar, text, share in zip(self._bars, self._texts, result.shares, strict=True):
            width = 100 * (share or 0)
            bar.set_width(width)
            text.set_text("not measured" if share is None else f"{width:.0f} %")
            if width <= MOST_BESIDE:
                text.set(x=width + 3, ha="left", color=plots.INK)
            else:  # no room beside the bar, which may end beyond the axis
                text.set(x=min(width, BARS_END) - 3, ha="right", color="white")

    def _update_cached(self, cost: str) -> None:
        for points, (_, _, members) in zip(self._points, self._groups, strict=True):
            points.set_data([one.cost(cost) for one in members], [one.accuracy for one in members])
        front = self.results.front(cost)
        self._front.set_data([one.cost(cost) for one in front], [one.accuracy for one in front])
        self._map.set_xlabel(plots.COST_LABELS[cost])
        self._limit_costs(cost)

    def describe_lines(self, result: Choice) -> list[str]:
        one, whole = result.network, self.results.whole
        count = len(one.accuracies)
        seeds = f", the mean of {count} seeds" if count > 1 else ""
        below = whole.accuracy - one.accuracy
        note = (
            "" if one is whole else f"; {abs(below):.2f} points {'below' if below >= 0 else 'above'} the whole network"
        )
        title = one.title if one is whole else f"{one.title}, {TRAININGS[one.training]}"
        size, zipped, macs, time = result.shares
        assert size is not None
        assert zipped is not None
        assert macs is not None
        timed = "time not measured" if time is None else f"time {time:.0%}"
        costs = f"{one.bytes:,.0f} bytes ({size:.0%}), zipped {one.zipped_bytes:,.0f} ({zipped:.0%}), "
        costs += f"{one.macs / 1e6:.1f} million MACs ({macs:.0%}), {timed}; shares of the whole network."
        return [f"{title}: {one.accuracy:.2f} % of the test images{seeds}{note}.", costs, self._describe_rivals(result)]

    def _describe_rivals(self, result: Choice) -> str:
        gain = ""
        if result.gain is not None:
            found = result.gain.comparison
            gain = (
                f"Over hard labels: {found.mean:+.2f} points ({found.low:+.2f} to {found.high:+.2f}), {found.verdict}. "
            )
        word = WORDS[self.state["cost"]]
        if not result.better:
            return f"{gain}None that has as many {word} or fewer is more accurate."
        best = result.better[0]
        title = best.title if best is self.results.whole else f"{best.title}, {TRAININGS[best.training]}"
        return f"{gain}As many {word} or fewer, and more accurate: {title}, with {best.accuracy:.2f} %."
