"""Lesson 04: softened logits at any temperature, beside T = 1."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from course import plots
from course.explorers.base import CONTROL_STYLE, Explorer
from course.explorers.teacher_outputs import TeacherOutputs, teacher_outputs
from kdlib.losses import soften

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

MAX_LOGITS = 10  # that can be typed
MAX_LOGIT = 1e4
TEMPERATURES = 2.0 ** np.linspace(-3, 6, 73)
TICKS = (0.125, 0.5, 1, 2, 4, 8, 16, 64)


@dataclass(frozen=True)
class Softened:
    """Probabilities at a temperature, their entropy, and the gradient of the soft loss.

    entropy: nats. effective_classes: exp(entropy), the number of equally likely classes with the same entropy.
    gradient: with respect to the logits of a student whose logits are all equal, with the factor T^2; gradient_without:
    without that factor.
    """

    probabilities: tuple[float, ...]
    entropy: float
    effective_classes: float
    gradient: tuple[float, ...]
    gradient_without: tuple[float, ...]

    @property
    def norm(self) -> float:
        """The norm of the gradient with T^2."""
        return float(np.linalg.norm(self.gradient))

    @property
    def norm_without(self) -> float:
        """The norm of the gradient without T^2."""
        return float(np.linalg.norm(self.gradient_without))


class Temperature(Explorer):
    """The teacher's probabilities for a picture of the validation split, or for typed logits, at any temperature.

    logits: a text, or numbers; if given, they are shown instead of the picture. The gradient is that of an untrained
    student (equal logits, q = 1/C): T (q - p) with the factor T^2, (q - p) / T without.
    """

    name = "Temperature"
    alt = (
        "From left to right: the picture; its class probabilities at the chosen temperature and at T = 1; the "
        "effective number of classes against T, rising from 1 to all; the length of the soft loss's gradient against "
        "T, with the factor T squared and without it."
    )
    size = (10.2, 3.3)

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        last = len(self._outputs) - 1
        hint = "instead of a picture: 4, 2, 0, -1"
        shape = {"base": 2, "min": -3, "max": 6, "step": 0.25, "value": 4.0, "readout_format": ".3g"}
        return {
            "picture": widgets.IntSlider(value=0, min=0, max=last, description="Picture", **CONTROL_STYLE),
            "temperature": widgets.FloatLogSlider(description="Temperature T", **shape, **CONTROL_STYLE),
            "logits": widgets.Text(description="Logits", placeholder=hint, continuous_update=False, **CONTROL_STYLE),
        }

    def _assign(self, values: dict[str, Any]) -> None:
        """Numbers as the text that shows them."""
        logits = values.get("logits")
        if isinstance(logits, Iterable) and not isinstance(logits, str):
            values = values | {"logits": ", ".join(f"{float(value):g}" for value in logits)}
        super()._assign(values)

    def inputs(self) -> tuple[tuple[float, ...], float]:
        text = self.state["logits"].strip()
        logits = parse_logits(text) if text else tuple(self._outputs.logits[self.state["picture"]].tolist())
        return logits, self.state["temperature"]

    @staticmethod
    @lru_cache(maxsize=4096)
    def compute(logits: tuple[float, ...], temperature: float) -> Softened:
        """Probabilities, entropy, effective number of classes and gradients for logits at a temperature."""
        p = soften(torch.tensor(logits, dtype=torch.float64), temperature)
        entropy = float(_entropy(p))
        without = (1 / len(logits) - p) / temperature
        gradient = without * temperature**2
        return Softened(
            tuple(p.tolist()), entropy, float(np.exp(entropy)), tuple(gradient.tolist()), tuple(without.tolist())
        )

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        self._axes = figure.subplots(1, 4, width_ratios=(0.7, 1.25, 1.3, 1.3))
        parts = [self._build_image(), self._build_bars(), self._build_effective_classes(), self._build_gradient()]
        cached = [artist for artists, _ in parts for artist in artists]
        return cached, [artist for _, artists in parts for artist in artists]

    def _build_image(self) -> tuple[list[Artist], list[Artist]]:
        axes = self._axes[0]
        axes.axis("off")
        self._title = axes.set_title("", loc="center")
        self._image = axes.imshow(self._outputs.images[0].numpy(), cmap="gray", vmin=0, vmax=255)
        self._typed = axes.text(0.5, 0.5, "", ha="center", va="center", transform=axes.transAxes)
        return [self._image, self._typed, self._title], []

    def _build_bars(self) -> tuple[list[Artist], list[Artist]]:
        axes, names = self._axes[1], self._outputs.classes
        empty = {"T = 1": [0.0] * MAX_LOGITS, "chosen T": [0.0] * MAX_LOGITS}
        roles = (plots.TEACHER.variant(1), plots.TEACHER)
        bars = plots.probability_bars(axes, names, empty, roles, above=True)
        self._bars_at_one, self._bars = bars["T = 1"], bars["chosen T"]
        return [axes.yaxis, *self._bars_at_one], [*self._bars]

    def _build_effective_classes(self) -> tuple[list[Artist], list[Artist]]:
        axes = self._axes[2]
        axes.set(xscale="log", ylim=(0, MAX_LOGITS + 0.5), yticks=range(0, MAX_LOGITS + 1, 2))
        axes.set(title="Effective classes", ylabel="exp(entropy), in classes")
        self._effective, self._marker = self._curve(axes, plots.TEACHER, "")
        _, self._marker_at_one = self._curve(axes, plots.TEACHER.variant(1), "")
        _format_temperature_axis(axes)
        return [self._effective, self._marker_at_one], [self._marker]

    def _build_gradient(self) -> tuple[list[Artist], list[Artist]]:
        axes = self._axes[3]
        axes.set(xscale="log", yscale="log", ylim=(1e-5, 1e3))
        axes.set(title="Gradient of the soft loss", ylabel="length of the gradient (no unit)")
        self._with, self._with_marker = self._curve(axes, plots.LOGITS, "with T²")
        self._without, self._without_marker = self._curve(axes, plots.LOGITS.variant(1), "without")
        _format_temperature_axis(axes)
        plots.legend(axes, loc="lower left")
        return [self._with, self._without], [self._with_marker, self._without_marker]

    @staticmethod
    def _curve(axes: Any, role: plots.Role, label: str) -> tuple[Any, Any]:
        """A line over all temperatures, and a marker on it."""
        nothing_yet = np.full_like(TEMPERATURES, np.nan)
        (line,) = axes.plot(TEMPERATURES, nothing_yet, **role.line(label, marker=""))
        (marker,) = axes.plot([1.0], [np.nan], **role.line("", linestyle="", markersize=9))
        return line, marker

    def update(self, result: Softened) -> None:
        logits, temperature = self.inputs()
        source = (logits, self._is_typed, self.state["picture"])
        self.draw_cached(source, lambda: self._update_cached(logits))
        for number, patch in enumerate(self._bars):
            patch.set_width(result.probabilities[number] if number < len(logits) else 0.0)
        self._marker.set_data([temperature], [result.effective_classes])
        self._with_marker.set_data([temperature], [result.norm or np.nan])  # a logarithmic axis cannot show zero
        self._without_marker.set_data([temperature], [result.norm_without or np.nan])

    def _update_cached(self, logits: tuple[float, ...]) -> None:
        """All that does not depend on the temperature: the image, the probabilities at T = 1, and the curves."""
        position, names, at_one = self.state["picture"], self._names(len(logits)), self.compute(logits, 1.0)
        self._image.set_data(self._outputs.images[position].numpy())
        self._image.set_visible(not self._is_typed)
        typed = ["typed logits:", *(f"{logit:g}" for logit in logits)] if self._is_typed else []
        self._typed.set_text("\n".join(typed))
        self._title.set_text("" if self._is_typed else self._outputs.classes[self._outputs.labels[position]])
        for number, patch in enumerate(self._bars_at_one):
            patch.set_width(at_one.probabilities[number] if number < len(logits) else 0.0)
        self._axes[1].set_ylim(len(names) - 0.5, -0.5)
        self._axes[1].set_yticks(range(len(names)), names)
        self._marker_at_one.set_data([1.0], [at_one.effective_classes])
        for line, values in zip((self._effective, self._with, self._without), compute_curves(logits), strict=True):
            line.set_ydata(values)

    @property
    def _is_typed(self) -> bool:
        return bool(self.state["logits"].strip())

    def _names(self, count: int) -> tuple[str, ...]:
        return tuple(f"class {number}" for number in range(count)) if self._is_typed else self._outputs.classes

    def describe_lines(self, result: Softened) -> list[str]:
        logits, temperature = self.inputs()
        at_one, names = self.compute(logits, 1.0), self._names(len(logits))
        position = self.state["picture"]
        label = self._outputs.classes[self._outputs.labels[position]]
        source = "Typed logits" if self._is_typed else f"Validation picture {position} ({label})"
        order = sorted(range(len(names)), key=lambda number: -logits[number])[:5]
        shares = (f"{names[i]} {result.probabilities[i]:.3f} ({at_one.probabilities[i]:.3f})" for i in order)
        return [
            f"{source} at T = {temperature:.3g}; in brackets at T = 1. Probabilities: {', '.join(shares)}.",
            f"Entropy {result.entropy:.3f} nats ({at_one.entropy:.3f}), effective number of classes "
            f"{result.effective_classes:.2f} ({at_one.effective_classes:.2f}) of {len(names)}.",
            f"Length of the soft loss's gradient for a student with equal logits: {result.norm:.4g} with T² "
            f"({at_one.norm:.4g}), {result.norm_without:.4g} without ({at_one.norm_without:.4g}).",
        ]

    @property
    def _outputs(self) -> TeacherOutputs:
        return teacher_outputs()


def parse_logits(text: str) -> tuple[float, ...]:
    """The logits in a text such as "4, 2, -1.5"; raises ValueError with what is wrong."""
    words = [word for word in re.split(r"[,;\s\[\]()]+", text) if word]
    try:
        logits = tuple(float(word) for word in words)
    except ValueError:
        wrong = next(word for word in words if not _is_number(word))
        raise ValueError(f'"{wrong}" is not a number. Type logits such as 4, 2, 0, or nothing for a picture.') from None
    if not 2 <= len(logits) <= MAX_LOGITS:
        raise ValueError(f"These are {len(logits)} logits; 2 to {MAX_LOGITS} can be shown.")
    if not all(abs(value) <= MAX_LOGIT for value in logits):  # also refuses NaN
        raise ValueError(f"Logits lie between {-MAX_LOGIT:,.0f} and {MAX_LOGIT:,.0f} here.")
    return logits


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=256)
def compute_curves(logits: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At each of TEMPERATURES: effective number of classes, norm of the gradient with T^2, and without."""
    z, temperature = torch.tensor(logits, dtype=torch.float64), torch.from_numpy(TEMPERATURES)[:, None]
    p = torch.softmax(z / temperature, dim=1)
    without = torch.linalg.vector_norm((1 / len(logits) - p) / temperature, dim=1).numpy()
    without = np.where(without > 0, without, np.nan)
    return np.exp(_entropy(p).numpy()), without * TEMPERATURES**2, without


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(dim=-1)


def _format_temperature_axis(axes: Any) -> None:
    axes.set_xticks(TICKS, [f"{value:g}" for value in TICKS], fontsize=8)
    axes.minorticks_off()
    axes.set(xlim=(0.11, 72), xlabel="temperature T (no unit)")
    axes.axvline(1, color=plots.NEUTRAL.colour, linestyle=plots.NEUTRAL.linestyle, linewidth=1)
