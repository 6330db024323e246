"""Answers over three classes as points in a triangle: how they run to the centre as the temperature rises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from course.plots.theme import DISTILLED, INK, NEUTRAL, TEACHER, figure, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CORNERS = np.array([(0.0, 0.0), (1.0, 0.0), (0.5, math.sqrt(3) / 2)])
CENTRE = CORNERS.mean(axis=0)


def shrinking_answers(teacher_logits: Any, student_logits: Any, temperatures: Sequence[float]) -> Figure:
    """Softened answers of a teacher and a student, 3 logits each, at several temperatures.

    Left: in the triangle whose corners are hard labels. Right: their distance from its centre, magnified T times, and
    the points at which they come to rest, the centred logits / 3. A thin line joins the two at the same temperature.
    Raises ValueError for other than three logits.
    """
    logits = {TEACHER: _three(teacher_logits), DISTILLED: _three(student_logits)}
    fig, (left, right) = figure(9, 3.6, columns=2)
    left.plot(*CORNERS[[0, 1, 2, 0]].T, color=INK, linewidth=1)
    for number, (corner, place) in enumerate(zip(CORNERS, ((0, -14), (0, -14), (0, 5)), strict=True)):
        left.annotate(f"class {number}", corner, place, textcoords="offset points", ha="center")
    answers = {role: np.array([softened(z, T) for T in temperatures]) @ CORNERS for role, z in logits.items()}
    scale = np.array(temperatures)[:, None]
    for axes, magnified in ((left, False), (right, True)):
        points = {role: scale * (found - CENTRE) if magnified else found for role, found in answers.items()}
        for one, other in zip(*points.values(), strict=True):
            axes.plot(*zip(one, other, strict=True), color=NEUTRAL.colour, linestyle="-", linewidth=0.7, zorder=1)
        for role, found in points.items():
            name = "teacher" if role is TEACHER else "student"
            axes.plot(*found.T, **role.line(name, linewidth=1.2))
        axes.set_aspect("equal", adjustable="datalim" if magnified else "box")
        axes.grid(visible=False)
    for role, z in logits.items():
        rest = (z - z.mean()) / 3 @ CORNERS
        label = "limit" if role is TEACHER else ""
        right.plot(*rest, **NEUTRAL.line(label, linestyle="", marker="X", markersize=9, zorder=5))
        first, text = answers[role][0], f"T = {temperatures[0]:g}"
        place = (-40, -2) if role is TEACHER else (-33, -3)  # beside the lines
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the side of the triangle does not cross it
        left.annotate(text, first, place, textcoords="offset points", fontsize=9, bbox=box)
        place = (-20, 7) if role is TEACHER else (-33, -3)
        right.annotate(text, temperatures[0] * (first - CENTRE), place, textcoords="offset points", fontsize=9)
    left.set_title("the answers", pad=22)
    right.set_title("their distance from the centre, T times as large")
    _bare(left)
    right.margins(0.2)
    right.set(xlabel="across (T x probability)", ylabel="up (T x probability)")
    legend(right, loc="upper left")
    return fig


def shrinking_answers_alt(temperatures: Sequence[float]) -> str:
    """What `shrinking_answers` shows, in words."""
    ends = f"T = {temperatures[0]:g} to {temperatures[-1]:g}"
    return (
        f"Left: a triangle with a class at each corner; from {ends} the answers of a teacher and of a student run to "
        "its centre, and their distance shrinks. Right: the same seen from the centre and magnified T times: both come "
        "to rest at the centred logits divided by 3, a fixed distance apart."
    )


def softened(logits: np.ndarray, temperature: float) -> np.ndarray:
    """A softmax with a temperature."""
    weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()


def _three(logits: Any) -> np.ndarray:
    values = np.asarray(logits, dtype=float)
    if values.shape != (3,):
        raise ValueError(f"An answer in a triangle has 3 logits; got {values.shape}.")
    return values


def _bare(axes: Axes) -> None:
    """No frame and no ticks: only the triangle has a meaning here."""
    axes.set(xticks=[], yticks=[], ylabel="up (probability)")
    axes.set_xlabel("across (probability)", labelpad=14)
    for spine in axes.spines.values():
        spine.set_visible(False)
