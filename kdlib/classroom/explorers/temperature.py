"""Lesson 04: what temperature makes of logits, beside T = 1."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdlib.classroom import plots
from kdlib.classroom.explorers.answers import Answers, answers
from kdlib.classroom.explorers.base import WIDE, Explorer
from kdlib.losses import soften

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

MOST = 10  # typed logits
LIMIT = 1e4  # of a typed logit
TEMPERATURES = 2.0 ** np.linspace(-3, 6, 73)
TICKS = (0.125, 0.5, 1, 2, 4, 8, 16, 64)


@dataclass(frozen=True)
class Softened:
    """Probabilities at a temperature, what they amount to, and the gradient that they give a student.

    entropy: nats. effective: exp(entropy), the number of equally likely classes that would be as undecided. gradient:
    of the soft loss with respect to the logits of a student whose logits are all equal, with the factor T^2; plain:
    without it.
    """

    probabilities: tuple[float, ...]
    entropy: float
    effective: float
    gradient: tuple[float, ...]
    plain: tuple[float, ...]

    @property
    def pull(self) -> float:
        """The length of the gradient with T^2."""
        return float(np.linalg.norm(self.gradient))

    @property
    def plain_pull(self) -> float:
        """The length of the gradient without T^2."""
        return float(np.linalg.norm(self.plain))


class Temperature(Explorer):
    """The teacher's probabilities for a picture of the validation split, or for typed logits, at any temperature.

    logits: a text, or numbers; where there are some, they are shown instead of the picture. The gradient is that of a
    student which does not know anything yet (equal logits q = 1/C): T (q - p) with the factor T^2, (q - p) / T without.
    """

    name = "Temperature"
    alt = (
        "From left to right: the picture; its class probabilities at the chosen temperature and at T = 1; the "
        "effective number of classes against T, rising from 1 to all; the length of the soft loss's gradient against "
        "T, falling as 1/T squared without the factor T squared and levelling off with it."
    )
    size = (10.2, 3.3)

    def __init__(self, **start: Any) -> None:
        if isinstance(start.get("logits"), Iterable) and not isinstance(start["logits"], str):
            start["logits"] = ", ".join(f"{float(value):g}" for value in start["logits"])
        super().__init__(**start)

    def make(self, widgets: Any) -> dict[str, Any]:
        last = len(answers()) - 1
        hint = "instead of a picture: 4, 2, 0, -1"
        shape = {"base": 2, "min": -3, "max": 6, "step": 0.25, "value": 4.0, "readout_format": ".3g"}
        return {
            "picture": widgets.IntSlider(value=0, min=0, max=last, description="Picture", **WIDE),
            "temperature": widgets.FloatLogSlider(description="Temperature T", **shape, **WIDE),
            "logits": widgets.Text(description="Logits", placeholder=hint, continuous_update=False, **WIDE),
        }

    def inputs(self) -> tuple[tuple[float, ...], float]:
        text = self.state["logits"].strip()
        logits = parsed(text) if text else tuple(self._answers.logits[self.state["picture"]].tolist())
        return logits, self.state["temperature"]

    @staticmethod
    @lru_cache(maxsize=4096)
    def compute(logits: tuple[float, ...], temperature: float) -> Softened:
        """Probabilities, entropy, effective number of classes and gradients for logits at a temperature."""
        p = soften(torch.tensor(logits, dtype=torch.float64), temperature)
        entropy = float(_entropy(p))
        plain = (1 / len(logits) - p) / temperature
        gradient = plain * temperature**2
        return Softened(
            tuple(p.tolist()), entropy, float(np.exp(entropy)), tuple(gradient.tolist()), tuple(plain.tolist())
        )

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        self._axes = figure.subplots(1, 4, width_ratios=(0.7, 1.25, 1.3, 1.3))
        self._drawn: Any = None  # the picture or logits whose curves are drawn
        parts = [self._build_picture(), self._build_bars(), self._build_effective(), self._build_gradient()]
        return [one for seldom, _ in parts for one in seldom], [one for _, often in parts for one in often]

    def _build_picture(self) -> tuple[list[Artist], list[Artist]]:
        axes = self._axes[0]
        axes.axis("off")
        self._title = axes.set_title("", loc="center")
        self._picture = axes.imshow(self._answers.images[0].numpy(), cmap="gray", vmin=0, vmax=255)
        self._typed = axes.text(0.5, 0.5, "", ha="center", va="center", transform=axes.transAxes)
        return [self._picture, self._typed, self._title], []

    def _build_bars(self) -> tuple[list[Artist], list[Artist]]:
        axes, names = self._axes[1], self._answers.classes
        empty = {"T = 1": [0.0] * MOST, "chosen T": [0.0] * MOST}
        self._at_one, self._at_t = plots.probability_bars(axes, names, empty, above=True).values()
        return [axes.yaxis, *self._at_one], [*self._at_t]

    def _build_effective(self) -> tuple[list[Artist], list[Artist]]:
        axes = self._axes[2]
        axes.set(xscale="log", ylim=(0, MOST + 0.5), yticks=range(0, MOST + 1, 2))
        axes.set(title="Effective classes", ylabel="exp(entropy), in classes")
        self._effective, self._mark = self._curve(axes, plots.TEACHER, "")
        _, self._mark_one = self._curve(axes, plots.NEUTRAL, "")
        _temperature_axis(axes)
        return [self._effective, self._mark_one], [self._mark]

    def _build_gradient(self) -> tuple[list[Artist], list[Artist]]:
        axes = self._axes[3]
        axes.set(xscale="log", yscale="log", ylim=(1e-5, 1e3))
        axes.set(title="Gradient of the soft loss", ylabel="length of the gradient (no unit)")
        self._with, self._with_mark = self._curve(axes, plots.FIRST, "with T²")
        self._plain, self._plain_mark = self._curve(axes, plots.THIRD, "without")
        _temperature_axis(axes)
        plots.legend(axes, loc="lower left")
        return [self._with, self._plain], [self._with_mark, self._plain_mark]

    @staticmethod
    def _curve(axes: Any, role: plots.Role, label: str) -> tuple[Any, Any]:
        """A line over all temperatures, and a mark on it."""
        look = role.line(label)
        (line,) = axes.plot(TEMPERATURES, np.full_like(TEMPERATURES, np.nan), **{**look, "marker": ""})
        (mark,) = axes.plot([1.0], [np.nan], **{**look, "linestyle": "", "markersize": 9, "label": ""})
        return line, mark

    def update(self, found: Softened) -> None:
        logits, temperature = self.inputs()
        source = (logits, self._is_typed, self.state["picture"])
        if source != self._drawn:
            self._drawn = source
            self._show_logits(logits)
            self.touched()
        for number, patch in enumerate(self._at_t):
            patch.set_width(found.probabilities[number] if number < len(logits) else 0.0)
        self._mark.set_data([temperature], [found.effective])
        self._with_mark.set_data([temperature], [found.pull or np.nan])  # a logarithmic axis has no place for zero
        self._plain_mark.set_data([temperature], [found.plain_pull or np.nan])

    def _show_logits(self, logits: tuple[float, ...]) -> None:
        """What does not depend on the temperature: the picture, the probabilities at T = 1, and the curves."""
        place, names, one = self.state["picture"], self._names(len(logits)), self.compute(logits, 1.0)
        self._picture.set_data(self._answers.images[place].numpy())
        self._picture.set_visible(not self._is_typed)
        typed = ["typed logits:", *(f"{logit:g}" for logit in logits)] if self._is_typed else []
        self._typed.set_text("\n".join(typed))
        self._title.set_text("" if self._is_typed else self._answers.classes[self._answers.labels[place]])
        for number, patch in enumerate(self._at_one):
            patch.set_width(one.probabilities[number] if number < len(logits) else 0.0)
        self._axes[1].set_ylim(len(names) - 0.5, -0.5)
        self._axes[1].set_yticks(range(len(names)), names)
        self._mark_one.set_data([1.0], [one.effective])
        for line, values in zip((self._effective, self._with, self._plain), curves(logits), strict=True):
            line.set_ydata(values)

    @property
    def _is_typed(self) -> bool:
        return bool(self.state["logits"].strip())

    def _names(self, count: int) -> tuple[str, ...]:
        return tuple(f"class {number}" for number in range(count)) if self._is_typed else self._answers.classes

    def lines(self, found: Softened) -> list[str]:
        logits, temperature = self.inputs()
        one, names = self.compute(logits, 1.0), self._names(len(logits))
        place = self.state["picture"]
        label = self._answers.classes[self._answers.labels[place]]
        source = "Typed logits" if self._is_typed else f"Validation picture {place} ({label})"
        order = sorted(range(len(names)), key=lambda number: -logits[number])[:5]
        shares = ", ".join(f"{names[i]} {found.probabilities[i]:.3f} ({one.probabilities[i]:.3f})" for i in order)
        return [
            f"{source} at T = {temperature:.3g}; in brackets at T = 1. Probabilities: {shares}.",
            f"Entropy {found.entropy:.3f} nats ({one.entropy:.3f}), effective number of classes {found.effective:.2f} "
            f"({one.effective:.2f}) of {len(names)}.",
            f"Length of the soft loss's gradient for a student with equal logits: {found.pull:.4g} with T² "
            f"({one.pull:.4g}), {found.plain_pull:.4g} without ({one.plain_pull:.4g}).",
        ]

    @property
    def _answers(self) -> Answers:
        return answers()


def parsed(text: str) -> tuple[float, ...]:
    """The logits in a text such as "4, 2, -1.5"; ValueError that says what is wrong with it."""
    words = [word for word in re.split(r"[,;\s\[\]()]+", text) if word]
    try:
        logits = tuple(float(word) for word in words)
    except ValueError:
        wrong = next(word for word in words if not _is_number(word))
        raise ValueError(f'"{wrong}" is not a number. Type logits such as 4, 2, 0, or nothing for a picture.') from None
    if not 2 <= len(logits) <= MOST:
        raise ValueError(f"These are {len(logits)} logits; 2 to {MOST} can be shown.")
    if not all(abs(value) <= LIMIT for value in logits):  # this refuses nan too
        raise ValueError(f"Logits lie between {-LIMIT:,.0f} and {LIMIT:,.0f} here.")
    return logits


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=256)
def curves(logits: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At each of TEMPERATURES: effective number of classes, length of the gradient with T^2, and without."""
    z, temperature = torch.tensor(logits, dtype=torch.float64), torch.from_numpy(TEMPERATURES)[:, None]
    p = torch.softmax(z / temperature, dim=1)
    plain = torch.linalg.vector_norm((1 / len(logits) - p) / temperature, dim=1).numpy()
    plain = np.where(plain > 0, plain, np.nan)
    return np.exp(_entropy(p).numpy()), plain * TEMPERATURES**2, plain


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(dim=-1)


def _temperature_axis(axes: Any) -> None:
    axes.set_xticks(TICKS, [f"{value:g}" for value in TICKS], fontsize=8)
    axes.minorticks_off()
    axes.set(xlim=(0.11, 72), xlabel="temperature T (no unit)")
    axes.axvline(1, color=plots.NEUTRAL.colour, linestyle=plots.NEUTRAL.dash, linewidth=1)
