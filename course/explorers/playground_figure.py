"""The figure of the playground: three maps of the plane side by side, and two small plots of the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from course import plots
from course.explorers.playground_training import AXIS_LIMIT, GRID_SIDE, Training

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Data classes have no role of their own (see `plots.theme`), so they have colours that no role has.
CLASS_COLOURS = ("#F2C800", "#7B5CC4", "#8A5A2B", "#8E9AA6")
CLASS_MARKERS = ("P", "v", "X", "D")
CLASS_RGB = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in CLASS_COLOURS])
NETWORKS = (
    (plots.TEACHER, "Teacher"),
    (plots.BASELINE, "Student, hard labels only"),
    (plots.DISTILLED, "Student, distilled"),
)
TEACHER_POINTS_SHOWN = 300
MAX_STEPS_SHOWN = 600  # of the small plots at first, however long a run is
SIZE = (10.4, 3.55)  # inches; the boxes below are left, bottom, width and height in inches, too
MAP_BOXES = tuple((0.62 + index * 2.46, 0.82, 2.3, 2.3) for index in range(3))
CURVE_BOXES = ((8.72, 2.06, 1.46, 1.06), (8.72, 0.82, 1.46, 1.06))
RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 12,
    "markerfacecolor": "none",
    "markeredgecolor": plots.ALERT,
    "markeredgewidth": 1.6,
}
UNLABELLED: dict[str, Any] = {"marker": ".", "markersize": 4, "color": plots.INK, "alpha": 0.45}


class PlaygroundFigure:
    """The artists of the playground: `cached_artists` change rarely, `live_artists` nearly always."""

    def __init__(self, figure: Figure) -> None:
        figure.set_layout_engine("none")
        self.panels = [
            _DecisionMap(_add_axes(figure, box), role, title)
            for box, (role, title) in zip(MAP_BOXES, NETWORKS, strict=True)
        ]
        top = _add_axes(figure, CURVE_BOXES[0])
        self.curves = _Curves(top, _add_axes(figure, CURVE_BOXES[1], sharex=top))
        self._shown_teacher_map: Tensor | None = None
        teacher, *students = self.panels
        self._legend = _Legend(figure)
        self.cached_artists: list[Artist] = [*teacher.artists, top.xaxis, self.curves.bottom.xaxis]
        self.cached_artists.append(self._legend.artist)
        self.live_artists: list[Artist] = [
            *(artist for panel in students for artist in panel.artists),
            *self.curves.artists,
        ]

    def update(self, training: Training, steps: int, invalidate_cache: Callable[[], None]) -> None:
        """Update the artists. steps: of one run, for the x axis of the plots. invalidate_cache: if cached ones changed.

        As a cell may be interrupted anywhere, what cached artists show is forgotten before they change, and noted last.
        """
        row, (teacher, baseline, distilled) = training.evaluate(), self.panels
        self.curves.update(training, steps, invalidate_cache)
        self._legend.update(len(training.unlabelled) > 0, invalidate_cache)
        if training.teacher_map is not self._shown_teacher_map:
            self._shown_teacher_map, sample = None, training.teacher.sample
            teacher.show_map(training.teacher_map)
            teacher.show_points(sample.points[:TEACHER_POINTS_SHOWN], sample.labels[:TEACHER_POINTS_SHOWN])
            teacher.numbers.set_text(f"right {row.teacher_accuracy:.1%}")
            invalidate_cache()
            self._shown_teacher_map = training.teacher_map
        soft_colours = mix_colours(training.soft_labels().numpy())
        wrong = training.sample.points[training.sample.labels != training.sample.true_labels]
        for panel, probabilities in zip((baseline, distilled), training.student_maps(), strict=True):
            panel.show_map(probabilities)
            panel.teacher_boundary.set_segments(teacher.segments)
            panel.rings.set_data(*wrong.T)
        baseline.show_points(training.sample.points, training.sample.labels)
        distilled.show_soft_points(training.sample.points, soft_colours, training.unlabelled)
        for panel, accuracy, agreement in (
            (baseline, row.baseline_accuracy, row.baseline_agreement),
            (distilled, row.distilled_accuracy, row.distilled_agreement),
        ):
            panel.numbers.set_text(f"right {accuracy:.1%}, as teacher {agreement:.1%}")


class _DecisionMap:
    """The plane as one of the networks classifies it."""

    def __init__(self, axes: Axes, role: plots.Role, title: str) -> None:
        from matplotlib.collections import LineCollection

        axes.set_title(title, color=role.ink, fontweight="bold", pad=19)
        self.numbers = axes.text(0, 1.02, "right 100.0%, as teacher 100.0%", transform=axes.transAxes, fontsize=9)
        limits = (-AXIS_LIMIT, AXIS_LIMIT)
        axes.set(xlim=limits, ylim=limits, xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        axes.set_xlabel("feature 1 (no unit)")
        is_teacher = role is plots.TEACHER
        axes.set_ylabel("feature 2 (no unit)" if is_teacher else "")
        axes.tick_params(labelleft=is_teacher)
        axes.grid(visible=False)
        self.image = axes.imshow(
            np.ones((GRID_SIDE, GRID_SIDE, 3)),
            extent=(*limits, *limits),
            origin="lower",
            interpolation="bilinear",
            zorder=0,
        )
        self.teacher_boundary = LineCollection([], colors=plots.TEACHER.colour, linestyles="-.", linewidths=2)
        self._boundary = LineCollection([], colors=plots.INK, linewidths=1.8)
        for lines in (self.teacher_boundary, self._boundary):
            axes.add_collection(lines)
        size = 4 if is_teacher else 6.5
        (self._unlabelled,) = axes.plot([], [], linestyle="", **UNLABELLED)
        looks = zip(CLASS_COLOURS, CLASS_MARKERS, strict=True)
        self._points = [
            axes.plot([], [], linestyle="", **_point_style(colour, marker, size))[0] for colour, marker in looks
        ]
        self._soft_points = axes.scatter([], [], s=40, edgecolors=plots.INK, linewidths=0.8)
        (self.rings,) = axes.plot([], [], linestyle="", **RING)
        self.artists: list[Artist] = [self.image, self.teacher_boundary, self._boundary, self._unlabelled]
        self.artists += [*self._points, self._soft_points, self.rings, self.numbers]
        self.segments: list[np.ndarray] = []

    def show_map(self, probabilities: Tensor) -> None:
        values = probabilities.numpy()
        self.image.set_data(shade(values))
        self.segments = decision_boundary(values)
        self._boundary.set_segments(self.segments)

    def show_points(self, points: Tensor, labels: Tensor) -> None:
        """Points with a hard label each."""
        for label, line in enumerate(self._points):
            line.set_data(*points[labels == label].T)

    def show_soft_points(self, points: Tensor, colours: np.ndarray, unlabelled: Tensor) -> None:
        """Points in the colours of their soft labels, and small ones without a label."""
        self._soft_points.set_offsets(points.numpy())
        self._soft_points.set_facecolor([tuple(colour) for colour in colours.tolist()])
        self._unlabelled.set_data(*unlabelled.T)


class _Curves:
    """Accuracy and loss against the step."""

    def __init__(self, top: Axes, bottom: Axes) -> None:
        self.bottom = bottom
        top.set(ylabel="right (%)", ylim=(20, 103), yticks=(25, 50, 75, 100))
        top.tick_params(labelbottom=False)
        bottom.set(yscale="log", ylim=(0.008, 20), yticks=(0.01, 0.1, 1, 10), ylabel="loss (nats)", xlabel="step")
        bottom.set_yticks((0.01, 0.1, 1, 10), ("0.01", "0.1", "1", "10"))
        bottom.minorticks_off()
        self.accuracies = [_add_line(top, role) for role, _ in NETWORKS]
        self._hard_losses = [_add_line(bottom, role) for role in (plots.BASELINE, plots.DISTILLED)]
        self._soft_loss = _add_line(bottom, plots.DISTILLED, linestyle=":")
        self._last_step = 0
        self.artists: list[Artist] = [*self.accuracies, *self._hard_losses, self._soft_loss]

    def update(self, training: Training, steps: int, invalidate_cache: Callable[[], None]) -> None:
        """Update the lines, and the x axis, which is cached."""
        rows = training.rows
        x = [row.step for row in rows]
        networks = ("teacher", "baseline", "distilled")
        series = [[100 * getattr(row, f"{name}_accuracy") for row in rows] for name in networks]
        losses = ("baseline_hard_loss", "distilled_hard_loss", "soft_loss")
        series += [[getattr(row, name) for row in rows] for name in losses]
        for line, values in zip((*self.accuracies, *self._hard_losses, self._soft_loss), series, strict=True):
            line.set_data(x, values)
        width = min(steps, MAX_STEPS_SHOWN)
        last_step = max(1, -(-training.step // width)) * width
        if last_step != self._last_step:
            self._last_step = 0
            self.bottom.set(xlim=(0, last_step), xticks=(0, last_step // 2, last_step))
            invalidate_cache()
            self._last_step = last_step


class _Legend:
    """What the symbols mean, below the maps."""

    def __init__(self, figure: Figure) -> None:
        from matplotlib.lines import Line2D

        symbols: dict[str, dict[str, Any]] = {
            "decision boundary": {"color": plots.INK, "linewidth": 1.8},
            "teacher's boundary": {"color": plots.TEACHER.colour, "linestyle": "-.", "linewidth": 2},
            "wrong label": {"linestyle": "", **RING, "markersize": 9},
            "soft loss": {"color": plots.DISTILLED.colour, "linestyle": ":", "linewidth": 2},
            "no label": {"linestyle": "", **UNLABELLED},  # the last, as it is not always shown
        }
        handles = [Line2D([], [], **look) for look in symbols.values()]
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.05, 0)}
        self.artist = figure.legend(handles, list(symbols), ncols=len(symbols), **place)
        self._no_label = (self.artist.get_lines()[-1], self.artist.get_texts()[-1])
        self._names_unlabelled: bool | None = None

    def update(self, unlabelled: bool, invalidate_cache: Callable[[], None]) -> None:
        """Show the entry "no label" where there are such points; the legend is cached."""
        if unlabelled != self._names_unlabelled:
            self._names_unlabelled = None
            for artist in self._no_label:
                artist.set_visible(unlabelled)
            invalidate_cache()
            self._names_unlabelled = unlabelled


def _add_axes(figure: Figure, box: tuple[float, float, float, float], **options: Any) -> Axes:
    left, bottom, width, height = box
    across, up = SIZE
    return figure.add_axes((left / across, bottom / up, width / across, height / up), **options)


def _point_style(colour: str, marker: str, size: float) -> dict[str, Any]:
    look = {"marker": marker, "markersize": size, "markerfacecolor": colour}
    return {**look, "markeredgecolor": plots.INK, "markeredgewidth": 0.5 if size < 5 else 0.8}


def _add_line(axes: Axes, role: plots.Role, **options: Any) -> Any:
    return axes.plot([], [], **{**role.line(""), "marker": "", **options})[0]


def mix_colours(probabilities: np.ndarray) -> np.ndarray:
    """The colours of the classes, mixed in the proportions of their probabilities."""
    return np.clip(probabilities @ CLASS_RGB[: probabilities.shape[-1]], 0, 1)


def shade(probabilities: np.ndarray) -> np.ndarray:
    """The same, the lighter the less certain."""
    num_classes = probabilities.shape[-1]
    certainty = (probabilities.max(axis=-1, keepdims=True) - 1 / num_classes) / (1 - 1 / num_classes)
    return 1 - (0.08 + 0.5 * certainty) * (1 - mix_colours(probabilities))


def decision_boundary(probabilities: np.ndarray) -> list[np.ndarray]:
    """Where the most probable class changes, as lines in the plane."""
    from contourpy import contour_generator

    ticks = np.linspace(-AXIS_LIMIT, AXIS_LIMIT, GRID_SIDE)
    lines: list[Any] = []
    for label in range(probabilities.shape[-1] - 1):  # the boundary of two classes is drawn for the first of them
        others = np.delete(probabilities, label, axis=-1).max(axis=-1)
        lines += contour_generator(ticks, ticks, probabilities[..., label] - others).lines(0.0)
    return lines
