"""Lesson 01: what depth, width, resolution and precision cost, against what a device can afford."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kdlib.classroom import plots
from kdlib.classroom.explorers.base import WIDE, Explorer
from kdlib.classroom.explorers.speed import Size, Speed, Timed, size, timed

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

BITS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}
DEPTHS = (8, 14, 20, 32, 44, 56, 110)
WIDTHS = (4, 8, 16, 32, 64)
RESOLUTIONS = (28, 56, 112, 224)
FRAME = 1 / 30  # seconds: what a film of 30 pictures a second leaves for each


@dataclass(frozen=True)
class Budget:
    """What a device allows: MACs for a picture, bytes of weights, seconds for a picture; None where none is named."""

    macs: float | None
    weights: float | None
    seconds: float | None
    source: str


DEVICES = {
    "phone": Budget(
        600e6,
        None,
        FRAME,
        'the "mobile setting" of the literature is fewer than 600 million MACs (DARTS, arXiv:1806.09055); 30 pictures '
        "a second are our wish",
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
    "this machine, 30 pictures/s": Budget(None, None, FRAME, "30 pictures a second leave 33 ms for each"),
}


@dataclass(frozen=True)
class Costs:
    """What was found: the size, bytes of weights in each precision, estimated seconds, and whether each budget holds.

    fits: "MACs", "weights" and "latency" to True, False or None where the device names no limit.
    """

    size: Size
    weights: dict[str, float]
    seconds: float
    fits: dict[str, bool | None]


class Cost(Explorer):
    """Depth, width, resolution and precision of a thin ResNet; its parameters, MACs, bytes and likely latency.

    The latency is an estimate from five to ten networks, timed when the first such explorer is made (about two
    seconds); `points` gives other ones.
    """

    name = "Cost"
    alt = (
        "Left: latency against MACs on logarithmic axes, with the networks that were timed, an estimate for the chosen "
        "one, and the device's limits as lines. Right: bytes of its weights in four precisions, the chosen one marked, "
        "with the device's limit."
    )
    size = (9.0, 3.5)

    def __init__(self, points: Sequence[Timed] | None = None, **start: Any) -> None:
        self.points = tuple(timed() if points is None else points)
        self.speed = Speed.fitted(self.points)
        super().__init__(**start)

    def make(self, widgets: Any) -> dict[str, Any]:
        def slider(options: Sequence[int], value: int, text: str) -> Any:
            return widgets.SelectionSlider(options=options, value=value, description=text, **WIDE)

        def choice(options: Iterable[str], text: str) -> Any:
            return widgets.Dropdown(options=list(options), description=text, **WIDE)

        return {
            "depth": slider(DEPTHS, 20, "Depth (layers)"),
            "width": slider(WIDTHS, 16, "Width (channels)"),
            "resolution": slider(RESOLUTIONS, 28, "Resolution (pixels)"),
            "precision": choice(BITS, "Precision"),
            "device": choice(DEVICES, "Device"),
        }

    def inputs(self) -> tuple[Any, ...]:
        return *self.state.values(), self.speed

    @staticmethod
    @lru_cache(maxsize=4096)
    def compute(depth: int, width: int, resolution: int, precision: str, device: str, speed: Speed) -> Costs:
        """Size, bytes, estimated latency and whether they fit the device."""
        counted = size(depth, width, resolution)
        weights = {name: counted.parameters * bits / 8 for name, bits in BITS.items()}
        seconds, budget = speed.seconds(counted), DEVICES[device]
        pairs = {
            "MACs": (counted.macs, budget.macs),
            "weights": (weights[precision], budget.weights),
            "latency": (seconds, budget.seconds),
        }
        fits = {name: None if limit is None else cost <= limit for name, (cost, limit) in pairs.items()}
        return Costs(counted, weights, seconds, fits)

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        macs, milliseconds = zip(*((point.size.macs, 1e3 * point.seconds) for point in self.points), strict=True)
        left.plot(macs, milliseconds, **{**plots.NEUTRAL.line("timed on this machine"), "linestyle": ""})
        chosen = {**plots.FIRST.line("chosen network (estimate)"), "linestyle": "", "markersize": 11}
        (self._point,) = left.plot([1e6], [1], **chosen)
        limit = {"color": plots.SECOND.colour, "linestyle": "--", "linewidth": 2}
        self._limits = [left.axvline(1e6, label="limit of the device", **limit), left.axhline(1, **limit)]
        left.set(xscale="log", yscale="log", xlim=(3e5, 3e11), ylim=(0.05, 2e5))
        left.set(xlabel="MACs for one picture", ylabel="latency on this machine (ms)")
        key = plots.legend(left, loc="upper left", frameon=True)
        places = range(len(BITS))
        (self._weights,) = right.plot(places, [1e5 for _ in places], **plots.NEUTRAL.line())
        (self._weight,) = right.plot([0], [1e5], **chosen)
        self._limits.append(right.axhline(1e5, **limit))
        right.set_xticks(places, list(BITS))
        right.set(yscale="log", xlim=(-0.4, len(BITS) - 0.6), ylim=(1e3, 1e9))
        right.set(xlabel="precision of the weights", ylabel="weights (bytes)")
        return (), (*self._limits, self._weights, self._point, self._weight, key)

    def update(self, found: Costs) -> None:
        self._point.set_data([found.size.macs], [1e3 * found.seconds])
        self._weights.set_ydata(list(found.weights.values()))
        precision = self.state["precision"]
        self._weight.set_data([list(BITS).index(precision)], [found.weights[precision]])
        budget = DEVICES[self.state["device"]]
        macs, milliseconds, weights = self._limits
        limits = (
            (macs, budget.macs),
            (milliseconds, budget.seconds and 1e3 * budget.seconds),
            (weights, budget.weights),
        )
        for line, limit in limits:
            line.set_visible(limit is not None)
            if limit is not None:
                (line.set_xdata if line is macs else line.set_ydata)([limit, limit])

    def lines(self, found: Costs) -> list[str]:
        depth, width, resolution, precision, device = self.state.values()
        counted, budget = found.size, DEVICES[device]
        beyond = " It is larger than all that were timed, so trust it less." * (counted.macs > self.speed.largest)
        verdicts = [
            self._verdict("MACs", found, budget.macs and f"{budget.macs / 1e6:,.0f} million"),
            self._verdict("weights", found, budget.weights and f"{budget.weights / 1e6:,.2f} MB"),
            self._verdict("latency", found, budget.seconds and f"{1e3 * budget.seconds:.0f} ms on this machine"),
        ]
        return [
            f"ResNet-{depth}, {width} channels, {resolution} x {resolution} pixels, {precision}: "
            f"{counted.parameters:,} parameters, {counted.macs / 1e6:,.1f} million MACs, "
            f"{found.weights[precision] / 1e6:,.3f} MB of weights.",
            f"Latency: about {1e3 * found.seconds:,.3g} ms for one picture in fp32 on this machine. This is an "
            f"estimate from {len(self.points)} networks that were timed; for one that it does not know it is off by "
            f"{self.speed.error:.0%} (median). Lower precision is counted in bytes only.{beyond}",
            f"Limits of the device ({device}): {'; '.join(verdicts)}. Source: {budget.source}.",
        ]

    @staticmethod
    def _verdict(name: str, found: Costs, limit: str | None) -> str:
        if limit is None:
            return f"{name}: none named"
        return f"{name}: {'within' if found.fits[name] else 'OVER'} {limit}"
