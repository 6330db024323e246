"""Charts that several lessons draw: bars of probabilities, class matrices, images in rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from course.plots.theme import BASELINE, DISTILLED, NEUTRAL, TEACHER, Role, figure, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


def probability_bars(
    axes: Axes,
    classes: Sequence[str],
    series: Mapping[str, Any],
    roles: Sequence[Role] = (TEACHER, TEACHER.variant(1), NEUTRAL),
    above: bool = False,
) -> dict[str, BarContainer]:
    """Horizontal bars of class probabilities, a group per class, the first class on top. Returns the bars by name.

    series: {"T = 1": C probabilities, "T = 4": ...}, in the order of the roles. above: put the legend where a title
    would be, so that no bar can reach it.
    """
    bars = {}
    thickness = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        positions = np.arange(len(classes)) + (number - (len(series) - 1) / 2) * thickness
        look = roles[number % len(roles)].bar(name)
        bars[name] = axes.barh(positions, np.asarray(values, dtype=float), thickness, **look)
    axes.set(xlim=(0, 1), xlabel="probability", ylabel="class")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    if len(series) > 1:
        position = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(series), "columnspacing": 1}
        legend(axes, **(position if above else {}))
    return bars


def class_matrix(
    axes: Axes,
    matrix: Any,
    classes: Sequence[str],
    *,
    label: str,
    rows: str = "true class",
    columns: str = "predicted class",
    low: float | None = None,
    high: float | None = None,
    number: str = "{:.2f}",
    cmap: str | Colormap = "cividis",
) -> AxesImage:
    """A heat map of a C x C matrix with the class names at its sides and, up to 12 classes, a number in each cell.

    label: what the colour means, with its unit. low, high: the ends of the colour scale (default: the smallest and the
    largest value); cells beyond them keep their number. cmap: the colours, such as `diverging_cmap()` where the middle
    of the scale means that nothing changed. Ten classes need about 7 x 6 inches.
    Raises ValueError for a matrix of another size.
    """
    values = np.asarray(matrix, dtype=float)
    if values.shape != (len(classes), len(classes)):
        raise ValueError(
            f"{len(classes)} classes need a matrix of {len(classes)} x {len(classes)}, got {values.shape}."
        )
    image = axes.imshow(values, vmin=low, vmax=high, cmap=cmap)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel=columns, ylabel=rows)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    if len(classes) <= 12:
        colours = text_colours(image, values)
        for (row, column), value in np.ndenumerate(values):
            look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": colours[row, column]}
            axes.text(column, row, number.format(value), **look)
    return image


def diverging_cmap() -> Colormap:
    """White in the middle, the distilled student's blue above it, and the baseline's vermilion below."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("gain", (BASELINE.colour, "#FFFFFF", DISTILLED.colour))


def text_colours(image: AxesImage, values: Any) -> np.ndarray:
    """Black or white for each cell of a heat map of these values: whichever has more contrast to it, by WCAG 2.2."""
    rgb = np.asarray(image.cmap(image.norm(values)))[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return np.where(1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05, "white", "black")


def pictures(images: Any, captions: Sequence[str] = (), columns: int = 5, size: float = 1.3) -> Figure:
    """A figure with small grey images in rows, a caption above each.

    images: N x H x W or N x 1 x H x W, uint8 or normalised numbers. size: inches of a side.
    Raises ValueError for another shape, and for captions that are neither none nor one per image.
    """
    images = np.asarray(images)
    images = images[:, 0] if images.ndim == 4 else images
    if images.ndim != 3 or len(images) == 0 or len(captions) not in (0, len(images)):
        raise ValueError(
            f"pictures needs N x H x W or N x 1 x H x W images and a caption for each or for none; got images of shape "
            f"{images.shape} and {len(captions)} captions."
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    fig, grid = figure(size * columns, (size + 0.25) * rows, rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    low, high = (0, 255) if images.dtype == np.uint8 else (images.min(), images.max())
    for number, (axes, image) in enumerate(zip(grid.flat, images, strict=False)):
        axes.imshow(image, cmap="gray", vmin=low, vmax=high)
        if captions:
            axes.set_title(captions[number], fontsize=9, loc="center")
    return fig
