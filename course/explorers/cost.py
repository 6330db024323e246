"""Lesson 01: the cost of depth, width, resolution and precision, against the budget of a device."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from course import plots
from course.explorers.base import CONTROL_STYLE, Explorer
from course.explorers.latency_model import LatencyModel, NetworkSize, TimedNetwork, network_size, time_networks

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

BITS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}
DEPTHS = (8, 14, 20, 32, 44, 56, 110)
WIDTHS = (4, 8, 16, 32, 64)
RESOLUTIONS = (28, 56, 112, 224)
FRAME_TIME = 1 / 30  # seconds per image of a video with 30 images a second


@dataclass(frozen=True)
class Budget:
    """The limits of a device: MACs per image, bytes of weights, seconds per image; None where none is stated."""

    macs: float | None
    weight_bytes: float | None
    seconds: float | None
    source: str


DEVICES = {
    "phone": Budget(
        600e6,
        None,
        FRAME_TIME,
        'the "mobile setting" of the literature is fewer than 600 million MACs (DARTS, arXiv:1806.09055); 30 pictures '
        "a second are the choice of this course",
    ),
    "microcontroller, 250 kB": Budget(
        60e6,
        250e3,
        None,
        "the rules of the Visual Wake Words challenge: 250 kB, 60 million MACs (arXiv:1906.05721)",
    ),
    "microcontroller, 1 MB flash": Budget(
        None, 1e6, None, "an STM32F746 has 1 MB of flash (and 320 kB of memory; MCUNet, arXiv:2007.10319)"
    ),
    "this machine, 30 pictures/s": Budget(None, None, FRAME_TIME, "30 pictures a second leave 33 ms for each"),
}


@dataclass(frozen=True)
class NetworkCost:
    """The size of a network, bytes of its weights in each precision, estimated seconds, and whether each limit holds.

    fits: "MACs", "weights" and "latency" to True, False, or None where the device states no limit.
    """

    size: NetworkSize
    weight_bytes: dict[str, float]
    seconds: float
    fits: dict[str, bool | None]


class Cost(Explorer):
    """Depth, width, resolution and precision of a thin ResNet; its parameters, MACs, bytes and likely latency.

    The latency is an estimate from five to ten networks, timed when the first such explorer is made (about two
    seconds). networks: timed networks to use instead.
    """

    name = "Cost"
    alt = (
        "Left: latency against MACs on logarithmic axes, with the networks that were timed, estimates for all of the "
        "family and for the chosen one, and what is beyond the limits of the device shaded. Right: bars for the bytes "
        "of its weights in four precisions, the chosen one dark, with the limit of the device."
    )
    size = (9.6, 3.7)

    def __init__(self, networks: Sequence[TimedNetwork] | None = None, **initial: Any) -> None:
        self.networks = tuple(time_networks() if networks is None else networks)
        self.latency_model = LatencyModel.fit(self.networks)
        super().__init__(**initial)

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        def slider(options: Sequence[int], value: int, text: str) -> Any:
            return widgets.SelectionSlider(options=options, value=value, description=text, **CONTROL_STYLE)

        def choice(options: Iterable[str], text: str) -> Any:
            return widgets.Dropdown(options=list(options), description=text, **CONTROL_STYLE)

        return {
            "depth": slider(DEPTHS, 20, "Depth (layers)"),
            "width": slider(WIDTHS, 16, "Width (channels)"),
            "resolution": slider(RESOLUTIONS, 28, "Resolution (pixels)"),
            "precision": choice(BITS, "Precision"),
            "device": choice(DEVICES, "Device"),
        }

    def inputs(self) -> tuple[Any, ...]:
        return *self.state.values(), self.latency_model

    @staticmethod
    @lru_cache(maxsize=4096)
    def compute(
        depth: int, width: int, resolution: int, precision: str, device: str, latency_model: LatencyModel
    ) -> NetworkCost:
        """Size, bytes, estimated latency and whether they fit the device."""
        size = network_size(depth, width, resolution)
        weight_bytes = {name: size.parameters * bits / 8 for name, bits in BITS.items()}
        seconds, budget = latency_model.seconds(size), DEVICES[device]
        limits = {
            "MACs": (size.macs, budget.macs),
            "weights": (weight_bytes[precision], budget.weight_bytes),
            "latency": (seconds, budget.seconds),
        }
        fits = {name: None if limit is None else cost <= limit for name, (cost, limit) in limits.items()}
        return NetworkCost(size, weight_bytes, seconds, fits)

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        sizes = [network_size(*each) for each in itertools.product(DEPTHS, WIDTHS, RESOLUTIONS)]
        family = [size.macs for size in sizes], [1e3 * self.latency_model.seconds(size) for size in sizes]
        timed = [network.size.macs for network in self.networks], [1e3 * one.seconds for one in self.networks]
        pale: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 3.5, "alpha": 0.35, "markeredgewidth": 0}
        left.plot(*family, **plots.NEUTRAL.line("all of the family (estimates)", **pale))
        left.plot(*timed, **plots.NEUTRAL.line("timed on this machine", linestyle=""))
        chosen = plots.OTHER.line("chosen network (estimate)", linestyle="", markersize=12)
        (self._point,) = left.plot([1e6], [1], **chosen)
        limit: dict[str, Any] = {"color": plots.ALERT, "linestyle": "--", "linewidth": 1.8}
        self._limits = [left.axvline(1e6, label="limit of the device", **limit), left.axhline(1, **limit)]
        milliseconds = [*family[1], *timed[1], *(1e3 * one.seconds for one in DEVICES.values() if one.seconds)]
        high = max(milliseconds)
        left.set(xscale="log", yscale="log", xlim=(min(family[0]) / 2, 2 * max(family[0])))
        left.set_ylim(max(min(milliseconds), 1e-6 * high) / 2, 3 * high)
        left.set(xlabel="MACs for one picture", ylabel="latency on this machine (ms)")
        # Above the panel, where no limit crosses it.
        above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "ncols": 2, "fontsize": 8}
        legend = plots.legend(left, columnspacing=1, handletextpad=0.4, **above)
        positions = range(len(BITS))
        self._weights = right.bar(positions, [1e5 for _ in positions], width=0.7)
        text: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 9, "zorder": 4}
        text["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        self._megabytes = [right.text(x, 1e5, "0.00 MB", **text) for x in positions]
        self._limits.append(right.axhline(1e5, **limit))
        right.set_xticks(positions, list(BITS))
        right.set(yscale="log", xlim=(-0.6, len(BITS) - 0.4), ylim=(1e3, 4e8))
        right.set(xlabel="precision of the weights", ylabel="weights (bytes)")
        shade: dict[str, Any] = {"facecolor": plots.ALERT, "alpha": 0.1, "edgecolor": "none", "zorder": 0.5}
        self._beyond = [left.axvspan(1e6, 2e6, **shade), left.axhspan(1, 2, **shade), right.axhspan(1e5, 2e5, **shade)]
        live = (*self._weights, *self._limits, *self._megabytes, self._point, legend)
        return self._beyond, live

    def update(self, result: NetworkCost) -> None:
        self._point.set_data([result.size.macs], [1e3 * result.seconds])
        for bar, text, (name, number) in zip(self._weights, self._megabytes, result.weight_bytes.items(), strict=True):
            bar.set_height(number)
            is_chosen = name == self.state["precision"]
            bar.set_facecolor(plots.INK if is_chosen else "#C4C4C4")
            text.set(text=_format_bytes(number), fontweight="bold" if is_chosen else "normal")
            text.set_position((bar.get_x() + bar.get_width() / 2, self._height_of_text(number)))
        budget = DEVICES[self.state["device"]]
        milliseconds = budget.seconds and 1e3 * budget.seconds
        limits = [budget.macs, milliseconds, budget.weight_bytes]
        self.draw_cached(limits, lambda: self._move_limits(limits))

    def _height_of_text(self, number: float) -> float:
        """Above a bar; above the limit, where that would run through the text."""
        height, limit = 1.15 * number, DEVICES[self.state["device"]].weight_bytes
        crossed = limit is not None and height / 1.15 < limit < 2.2 * height
        return 1.15 * limit if limit is not None and crossed else height

    def _move_limits(self, limits: Sequence[float | None]) -> None:
        """The lines of the limits, and what lies beyond them shaded; both are hidden where there is no limit."""
        for place, (line, area, limit) in enumerate(zip(self._limits, self._beyond, limits, strict=True)):
            for artist in (line, area):
                artist.set_visible(limit is not None)
            if limit is None:
                continue
            if place == 0:
                line.set_xdata([limit, limit])
                area.set(x=limit, width=area.axes.get_xlim()[1] - limit)
            else:
                line.set_ydata([limit, limit])
                area.set(y=limit, height=area.axes.get_ylim()[1] - limit)

    def describe_lines(self, result: NetworkCost) -> list[str]:
        depth, width, resolution, precision, device = self.state.values()
        size, budget = result.size, DEVICES[device]
        is_beyond = size.macs > self.latency_model.largest
        note = " It is larger than all that were timed, so trust it less." if is_beyond else ""
        limits = {
            "MACs": None if budget.macs is None else f"{budget.macs / 1e6:,.0f} million",
            "weights": None if budget.weight_bytes is None else f"{budget.weight_bytes / 1e6:,.2f} MB",
            "latency": None if budget.seconds is None else f"{1e3 * budget.seconds:.0f} ms on this machine",
        }
        verdicts = [_describe_limit(name, limit, result.fits[name]) for name, limit in limits.items()]
        return [
            f"ResNet-{depth}, {width} channels, {resolution} x {resolution} pixels, {precision}: "
            f"{size.parameters:,} parameters, {size.macs / 1e6:,.1f} million MACs, "
            f"{result.weight_bytes[precision] / 1e6:,.3f} MB of weights.",
            f"Latency: about {_milliseconds(result.seconds)} ms for one picture in fp32 on this machine. This is an "
            f"estimate from {len(self.networks)} networks that were timed; for one that it does not know it is off by "
            f"{self.latency_model.error:.0%} (median). Lower precision is counted in bytes only.{note}",
            f"Limits of the device ({device}): {'; '.join(verdicts)}. Source: {budget.source}.",
        ]


def _format_bytes(number: float) -> str:
    return f"{number / 1e6:.3g} MB" if number >= 1e6 else f"{number / 1e3:.3g} kB"


def _describe_limit(name: str, limit: str | None, fits: bool | None) -> str:
    return f"{name}: none named" if limit is None else f"{name}: {'within' if fits else 'OVER'} {limit}"


def _milliseconds(seconds: float) -> str:
    """With three digits, never as a power of ten."""
    return f"{1e3 * seconds:.3g}" if seconds < 0.0995 else f"{1e3 * seconds:,.0f}"
