"""What the playground looks like: three maps of the plane side by side, and two small plots of how it went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from kdlib.classroom import plots
from kdlib.classroom.explorers import playground_data as plane
from kdlib.classroom.explorers.playground_trial import SIDE, Trial

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

CLASSES = (plots.FIRST, plots.THIRD, plots.SECOND, plots.NEUTRAL)  # the colours of the roles are taken
COLOURS = np.array([[int(role.colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for role in CLASSES])
WHO = (
    (plots.TEACHER, "Teacher"),
    (plots.STUDENT, "Student, hard labels only"),
    (plots.DISTILLED, "Student, distilled"),
)
SHOWN = 300  # of the teacher's points
ROOM = 600  # steps, however long a run is
SIZE = (10.4, 3.55)  # inches; the boxes below are left, bottom, width and height in inches too
MAPS = tuple((0.62 + place * 2.46, 0.82, 2.3, 2.3) for place in range(3))
CURVES = ((8.72, 2.06, 1.46, 1.06), (8.72, 0.82, 1.46, 1.06))


class Stage:
    """The artists. `seldom` and `often` say which change; `show` changes them."""

    def __init__(self, figure: Figure) -> None:
        figure.set_layout_engine("none")
        self._panels = [_Panel(_axes(figure, *box), *who) for box, who in zip(MAPS, WHO, strict=True)]
        top = _axes(figure, *CURVES[0])
        self._curves = _Curves(top, _axes(figure, *CURVES[1], sharex=top))
        self._teacher_seen: Any = None
        teacher, *students = self._panels
        _key(figure)
        self.seldom: list[Artist] = [*teacher.artists, top.xaxis, self._curves.bottom.xaxis]
        self.often: list[Artist] = [*(one for panel in students for one in panel.artists), *self._curves.artists]

    def show(self, trial: Trial, steps: int) -> bool:
        """Change the artists; True when seldom ones were changed. The small plots have room for so many steps."""
        now, (teacher, alone, distilled) = trial.now(), self._panels
        changed = self._curves.show(trial, steps)
        if trial.teacher_map is not self._teacher_seen:
            self._teacher_seen, changed = trial.teacher_map, True
            teacher.show_map(trial.teacher_map)
            teacher.show_points(trial.teacher.sample.points[:SHOWN], trial.teacher.sample.labels[:SHOWN])
            teacher.numbers.set_text(f"right {now.teacher:.1%}")
        told = _mixed(trial.soft_labels().numpy())
        wrong = trial.sample.points[trial.sample.labels != trial.sample.truth]
        for panel, probabilities in zip((alone, distilled), trial.maps(), strict=True):
            panel.show_map(probabilities)
            panel.boundary_of_teacher.set_segments(teacher.segments)
            panel.rings.set_data(*wrong.T)
        alone.show_points(trial.sample.points, trial.sample.labels)
        distilled.show_soft(trial.sample.points, told, trial.others)
        alone.numbers.set_text(f"right {now.alone:.1%}, as teacher {now.agree_alone:.1%}")
        distilled.numbers.set_text(f"right {now.distilled:.1%}, as teacher {now.agree_distilled:.1%}")
        return changed


class _Panel:
    """The plane as one of the three sees it."""

    def __init__(self, axes: Any, role: plots.Role, name: str) -> None:
        from matplotlib.collections import LineCollection

        axes.set_title(name, color=role.colour, fontweight="bold", pad=19)
        self.numbers = axes.text(0, 1.02, "right 100.0%, as teacher 100.0%", transform=axes.transAxes, fontsize=9)
        limits = (-plane.EDGE, plane.EDGE)
        axes.set(xlim=limits, ylim=limits, xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        axes.set_xlabel("feature 1 (no unit)")
        first = role is plots.TEACHER
        axes.set_ylabel("feature 2 (no unit)" if first else "")
        axes.tick_params(labelleft=first)
        axes.grid(visible=False)
        options = {"extent": 2 * limits, "origin": "lower", "interpolation": "bilinear", "zorder": 0}
        self._image = axes.imshow(np.ones((SIDE, SIDE, 3)), **options)
        self.boundary_of_teacher = LineCollection([], colors=plots.TEACHER.colour, linestyles="-.", linewidths=2)
        self._boundary = LineCollection([], colors=plots.INK, linewidths=1.8)
        for lines in (self.boundary_of_teacher, self._boundary):
            axes.add_collection(lines)
        size = 4 if first else 6.5
        self._unlabelled = axes.plot([], [], linestyle="", marker=".", markersize=4, color=plots.INK, alpha=0.45)[0]
        self._points = [axes.plot([], [], linestyle="", **_point(role, size))[0] for role in CLASSES]
        self._soft = axes.scatter([], [], s=40, edgecolors=plots.INK, linewidths=0.8)
        self.rings = axes.plot([], [], linestyle="", **RING)[0]
        self.artists: list[Artist] = [self._image, self.boundary_of_teacher, self._boundary, self._unlabelled]
        self.artists += [*self._points, self._soft, self.rings, self.numbers]
        self.segments: list[np.ndarray] = []

    def show_map(self, probabilities: Tensor) -> None:
        values = probabilities.numpy()
        self._image.set_data(_shaded(values))
        self.segments = boundary(values)
        self._boundary.set_segments(self.segments)

    def show_points(self, points: Tensor, labels: Tensor) -> None:
        """Points with a label each."""
        for number, line in enumerate(self._points):
            line.set_data(*points[labels == number].T)

    def show_soft(self, points: Tensor, colours: np.ndarray, others: Tensor) -> None:
        """Points in the colours of soft labels, and small ones without a label."""
        self._soft.set_offsets(points.numpy())
        self._soft.set_facecolors(colours)
        self._unlabelled.set_data(*others.T)


class _Curves:
    """Accuracy and loss against the step."""

    def __init__(self, top: Any, bottom: Any) -> None:
        self.bottom = bottom
        top.set(ylabel="right (%)", ylim=(20, 103), yticks=(25, 50, 75, 100))
        top.tick_params(labelbottom=False)
        bottom.set(yscale="log", ylim=(0.008, 20), yticks=(0.01, 0.1, 1, 10), ylabel="loss (nats)", xlabel="step")
        bottom.set_yticks((0.01, 0.1, 1, 10), ("0.01", "0.1", "1", "10"))
        bottom.minorticks_off()
        self._right = [_line(top, role) for role, _ in WHO]
        self._hard = [_line(bottom, role) for role in (plots.STUDENT, plots.DISTILLED)]
        self._soft = _line(bottom, plots.DISTILLED, linestyle=":")
        self._reach = 0
        self.artists: list[Artist] = [*self._right, *self._hard, self._soft]

    def show(self, trial: Trial, steps: int) -> bool:
        rows = trial.rows
        at = [row.step for row in rows]
        right = ([100 * getattr(row, name) for row in rows] for name in ("teacher", "alone", "distilled"))
        losses = ([getattr(row, name) for row in rows] for name in ("hard_alone", "hard_distilled", "soft"))
        for line, values in zip((*self._right, *self._hard, self._soft), (*right, *losses), strict=True):
            line.set_data(at, values)
        room = min(steps, ROOM)
        reach = max(1, -(-trial.step // room)) * room
        changed, self._reach = reach != self._reach, reach
        if changed:
            self.bottom.set(xlim=(0, reach), xticks=(0, reach // 2, reach))
        return changed


RING = {
    "marker": "o",
    "markersize": 12,
    "markerfacecolor": "none",
    "markeredgecolor": "#B00020",
    "markeredgewidth": 1.6,
}


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float, **options: Any) -> Any:
    across, up = SIZE
    return figure.add_axes((left / across, bottom / up, width / across, height / up), **options)


def _point(role: plots.Role, size: float) -> dict[str, Any]:
    look = {"marker": role.marker, "markersize": size, "markerfacecolor": role.colour}
    return {**look, "markeredgecolor": plots.INK, "markeredgewidth": 0.5 if size < 5 else 0.8}


def _line(axes: Any, role: plots.Role, **more: Any) -> Any:
    return axes.plot([], [], **{**role.line(""), "marker": "", **more})[0]


def _key(figure: Figure) -> None:
    """What the signs mean, below the maps."""
    from matplotlib.lines import Line2D

    signs = {
        "decision boundary": {"color": plots.INK, "linewidth": 1.8},
        "teacher's boundary": {"color": plots.TEACHER.colour, "linestyle": "-.", "linewidth": 2},
        "wrong label": {"linestyle": "", **RING, "markersize": 9},
        "no label": {"linestyle": "", "marker": ".", "color": plots.INK, "alpha": 0.45},
        "soft loss": {"color": plots.DISTILLED.colour, "linestyle": ":", "linewidth": 2},
    }
    handles = [Line2D([], [], **look) for look in signs.values()]
    figure.legend(handles, list(signs), loc="lower left", ncols=len(signs), bbox_to_anchor=(0.05, 0))


def _mixed(probabilities: np.ndarray) -> np.ndarray:
    """A colour for each point: those of the classes in the proportions of their probabilities."""
    return np.clip(probabilities @ COLOURS[: probabilities.shape[-1]], 0, 1)


def _shaded(probabilities: np.ndarray) -> np.ndarray:
    """The same, the lighter the less sure."""
    classes = probabilities.shape[-1]
    sure = (probabilities.max(axis=-1, keepdims=True) - 1 / classes) / (1 - 1 / classes)
    return 1 - (0.08 + 0.5 * sure) * (1 - _mixed(probabilities))


def boundary(probabilities: np.ndarray) -> list[np.ndarray]:
    """Where the likeliest class changes, as lines in the plane."""
    from contourpy import contour_generator

    ticks = np.linspace(-plane.EDGE, plane.EDGE, SIDE)
    classes = probabilities.shape[-1]
    lines: list[np.ndarray] = []
    for number in range(classes - 1):  # between two classes the first of them has drawn the line
        others = np.delete(probabilities, number, axis=-1).max(axis=-1)
        lines += contour_generator(ticks, ticks, probabilities[..., number] - others).lines(0.0)
    return lines
