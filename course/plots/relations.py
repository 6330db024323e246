"""Relations in figures: matrices of several networks, their differences, and the triangle of three pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from course.plots.theme import NEUTRAL, blank, figure, roles_for, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAP_STEPS = 12  # colours of a map: the PNG of a noisy one is small enough for a notebook
DIFFERENCES = "Greys"  # a colour map of its own: these are no relations, and dark is far from the teacher's


def relation_maps(
    matrices: Mapping[str, Any],
    *,
    label: str,
    high: float,
    rows: str,
    columns: str,
    classes: Sequence[str] = (),
    differences: bool = False,
    far: float | None = None,
) -> Figure:
    """Relation matrices of several networks side by side, in one colour scale; the teacher's is the first.

    matrices: by the network's name, each N x M. label, high: of the colour scale, which begins at 0. rows, columns:
    labels of the axes. classes: the names, for N pictures sorted by class with equally many of each. differences: below
    each network but the first, |its matrix - the first one's|. far: the end of their scale (default: high).
    Raises ValueError for matrices of different sizes.
    """
    values = {name: np.asarray(matrix, dtype=float) for name, matrix in matrices.items()}
    if len({matrix.shape for matrix in values.values()}) != 1:
        shapes = ", ".join(f"{name} {matrix.shape}" for name, matrix in values.items())
        raise ValueError(f"One figure compares matrices of one size; these are {shapes}.")
    panels, lines = len(values), 2 if differences else 1
    wide, tall, left, below = (2.3, 2.2, 1.5, 1.0) if classes else (2.5, 1.8, 0.9, 0.5)
    fig = blank(wide * panels + left, tall * lines + below)
    with style():
        axes = fig.subplots(lines, panels, squeeze=False)
        first = next(iter(values.values()))
        for column, (name, matrix) in enumerate(values.items()):
            image = _draw(axes[0][column], matrix, high, "cividis")
            axes[0][column].set_title(name)
            _label(axes[0][column], matrix.shape, "" if column else rows, "" if differences else columns, classes)
            if differences and column:
                distance = _draw(axes[1][column], abs(matrix - first), high if far is None else far, DIFFERENCES)
                axes[1][column].set_title("|student - teacher|")
                _label(axes[1][column], matrix.shape, "", columns, classes)
        fig.colorbar(image, ax=axes[0], label=label)
        if differences:
            axes[1][0].axis("off")
            note = "Below each student:\nhow far each cell is\nfrom the teacher's.\nWhite is the same."
            axes[1][0].text(0.5, 0.5, note, ha="center", va="center", fontsize=9, transform=axes[1][0].transAxes)
            fig.colorbar(distance, ax=axes[1], label="difference")
    return fig


def _draw(ax: Any, matrix: np.ndarray, high: float, colours: str) -> Any:
    steps = np.round(matrix / high * MAP_STEPS) * high / MAP_STEPS
    ax.grid(visible=False)
    return ax.imshow(steps, vmin=0, vmax=high, cmap=colours, aspect="auto", interpolation="nearest")


def _label(ax: Any, shape: tuple[int, ...], rows: str, columns: str, classes: Sequence[str]) -> None:
    """Label the axes that have a name; the others have ticks alone, at the same places."""
    ax.set(xlabel=columns, ylabel=rows)
    if classes:
        each = shape[0] // len(classes)
        centres = np.arange(len(classes)) * each + (each - 1) / 2
        ax.set_xticks(centres, classes, rotation=90, fontsize=8)
        ax.set_yticks(centres, classes, fontsize=8)
    ax.tick_params(labelleft=bool(rows), labelbottom=bool(columns))


def triangles(embeddings: Mapping[str, Any], which: Sequence[int], images: Any, names: Sequence[str]) -> Figure:
    """The triangle that three pictures make in each network: its sides and angles are what RKD compares.

    embeddings: by the network's name, N x D; sides are distances in units of the mean distance of all N. which: three
    of the N. images: their pictures, 3 x H x W. names: their classes.
    Raises ValueError for other than three pictures.
    """
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    if not len(which) == len(images) == len(names) == 3:
        raise ValueError(f"A triangle has three pictures; got {len(which)}, {len(images)} images, {len(names)} names.")
    corners = {name: _corners(np.asarray(rows, dtype=float), which) for name, rows in embeddings.items()}
    roles = roles_for(list(corners)) | {name: NEUTRAL for name in corners if "untrained" in name}
    fig, axes = figure(3.9 * len(corners), 3.6, columns=len(corners), squeeze=False)
    lowest = min(points.min() for points in corners.values()) - 0.35
    farthest = max(points.max() for points in corners.values()) + 0.35
    for ax, (name, points) in zip(axes[0], corners.items(), strict=True):
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9.5}
        ax.plot(*points[[0, 1, 2, 0]].T, **{**roles[name].line(""), "marker": "", "linestyle": "-"})
        centre = points.mean(axis=0)
        for corner in range(3):
            here, there, other = (points[(corner + step) % 3] for step in range(3))
            side = f"{np.linalg.norm(there - here):.2f}"
            ax.text(*_step((here + there) / 2, centre, -0.14), side, color=roles[name].ink, **look)
            ax.text(*_step(here, centre, 0.3), f"{_degrees(there - here, other - here):.0f}°", **look)
            picture = OffsetImage(np.asarray(images[corner], dtype=float), cmap="Greys", zoom=0.95)
            frame = {"edgecolor": roles[name].colour}
            x, y = _step(here, centre, -0.2)
            ax.add_artist(AnnotationBbox(picture, (x, y), pad=0.1, bboxprops=frame))
        ax.set_title(name, color=roles[name].ink, fontweight="bold")
        ax.set(xlim=(lowest, farthest), ylim=(-0.35, farthest), aspect="equal")
        ax.axis("off")
    return fig


def _step(start: np.ndarray, towards: np.ndarray, length: float) -> np.ndarray:
    way = towards - start
    moved: np.ndarray = start + length * way / max(float(np.linalg.norm(way)), 1e-9)
    return moved


def triangles_alt(embeddings: Mapping[str, Any], which: Sequence[int], names: Sequence[str]) -> str:
    """The sides and angles of `triangles` in words."""
    sentences = []
    for name, rows in embeddings.items():
        points = _corners(np.asarray(rows, dtype=float), which)
        parts = []
        for corner in range(3):
            here, there, other = (points[(corner + step) % 3] for step in range(3))
            side = f"{names[corner]} to {names[(corner + 1) % 3]} {np.linalg.norm(there - here):.2f}"
            parts.append(f"{side}, angle at {names[corner]} {_degrees(there - here, other - here):.0f} degrees")
        sentences.append(f"{name}: {'; '.join(parts)}.")
    return "The triangle of three pictures, sides in units of the mean distance. " + " ".join(sentences)


def _corners(rows: np.ndarray, which: Sequence[int]) -> np.ndarray:
    """Three points of the plane with the relative distances of three rows, 3 x 2; the first two on a level."""
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    apart = apart / (apart.sum() / (len(rows) * (len(rows) - 1)))
    i, j, k = which
    base, left, right = apart[i, j], apart[i, k], apart[j, k]
    x = (base**2 + left**2 - right**2) / (2 * max(base, 1e-9))
    return np.array([[0.0, 0.0], [base, 0.0], [x, np.sqrt(max(left**2 - x**2, 0.0))]])


def _degrees(a: np.ndarray, b: np.ndarray) -> float:
    cosine = a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12)  # 0 where two pictures coincide
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
