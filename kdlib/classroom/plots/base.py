"""Figures in one look, roles with fixed colours, texts for those who cannot see, and what lessons draw.

Figures are made without pyplot, so there is no current figure and nothing to close. The colours are those of Okabe and
Ito, which people with any colour vision can tell apart; line style, marker and hatch say the same once more.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

# matplotlib and IPython are imported where they are used: a lesson without a figure does not wait for them.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

DPI = 90  # pixels of the page to an inch
FINE = 2  # pixels of the picture to a pixel of the page, so that text is crisp on a fine screen and in print
INK = "#222222"


@dataclass(frozen=True)
class Role:
    """Who or what is drawn: a name, a colour, and what says the same without colour."""

    label: str
    colour: str
    dash: str
    marker: str
    hatch: str

    def line(self, label: str | None = None, **more: Any) -> dict[str, Any]:
        """Arguments for `axes.plot`; the label is the role's own unless another is given."""
        look = {"color": self.colour, "linestyle": self.dash, "marker": self.marker, "linewidth": 2, "markersize": 6}
        return {**look, "label": self.label if label is None else label, **more}

    def bar(self, label: str | None = None, **more: Any) -> dict[str, Any]:
        """Arguments for `axes.bar` and `axes.barh`."""
        look = {"color": self.colour, "hatch": self.hatch, "edgecolor": "white", "linewidth": 0}
        return {**look, "label": self.label if label is None else label, **more}


TEACHER = Role("teacher", "#009E73", "-.", "^", "")
STUDENT = Role("hard labels", "#D55E00", "--", "s", "//")
DISTILLED = Role("distilled", "#0072B2", "-", "o", "..")
# For what is neither teacher nor student.
NEUTRAL = Role("reference", "#6E6E6E", ":", "D", "xx")
FIRST = Role("first", "#E69F00", "-", "P", "")
SECOND = Role("second", "#CC79A7", "--", "X", "\\\\")
THIRD = Role("third", "#56B4E9", "-.", "v", "--")
CYCLE = (FIRST, SECOND, THIRD, NEUTRAL)

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a figure is the same on every machine
    "font.size": 10,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "image.cmap": "cividis",
}


@contextmanager
def style() -> Iterator[None]:
    """Inside the block new axes and texts take the course's look; afterwards matplotlib's settings are as before."""
    from cycler import cycler
    from matplotlib import rc_context

    cycle = cycler(color=[role.colour for role in CYCLE], linestyle=[role.dash for role in CYCLE])
    with rc_context({**STYLE, "axes.prop_cycle": cycle}):
        yield


def figure(width: float = 7.0, height: float = 3.4, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure in the course's look and its axes: a single one, or an array as `matplotlib` gives it.

    width and height are in inches, 90 pixels each; options go to `Figure.subplots` (sharex, width_ratios, ...).
    """
    fig = blank(width, height)
    with style():
        return fig, fig.subplots(rows, columns, **options)


def blank(width: float, height: float) -> Figure:
    """A figure without axes yet; add them inside `style()`."""
    from matplotlib.figure import Figure

    with style():
        return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def show(fig: Figure, *, alt: str) -> None:
    """Display a figure in the notebook, with the text that a screen reader says in its place.

    The text says what can be seen and what follows from it; it is stored as the output's metadata
    (image/png, alt). Raises ValueError for a missing text, a figure without axes and an axis without a label.
    """
    alt = described(alt)
    _check_labels(fig)
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:  # a plain Python session shows no pictures
        print(alt)
        return
    data = {"image/png": base64.b64encode(png(fig)).decode(), "text/plain": alt}
    width = round(DPI * fig.get_size_inches()[0])  # without a height, so that a narrow page shrinks both
    display(data, metadata={"image/png": {"alt": alt, "width": width}}, raw=True)


def png(fig: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure; twice as fine as `show` shows it."""
    buffer = io.BytesIO()
    with style():  # matplotlib makes most ticks only now
        fig.savefig(buffer, format="png", dpi=FINE * DPI, metadata={"Software": None})
    return few_colours(buffer.getvalue())


def few_colours(picture: bytes) -> bytes:
    """The same picture in 256 colours: about half of the bytes, and no difference that an eye finds."""
    from PIL import Image

    buffer = io.BytesIO()
    many = Image.open(io.BytesIO(picture)).convert("RGB")
    few = many.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(buffer, "png", compress_level=9)
    return buffer.getvalue()


def described(alt: str) -> str:
    """The alt text in one line; ValueError unless there is one."""
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(
            "The figure has no alt text. Say in a sentence what can be seen in it: "
            'plots.show(fig, alt="The loss falls until epoch 10 and rises afterwards.")'
        )
    return " ".join(alt.split())


def _check_labels(fig: Figure) -> None:
    if not fig.axes:
        raise ValueError("The figure is empty: draw into the axes that plots.figure() returned with it.")
    for number, axes in enumerate(fig.axes, start=1):
        if not (axes.get_visible() and axes.axison):
            continue
        sides = {"x": (axes.xaxis, fig.get_supxlabel()), "y": (axes.yaxis, fig.get_supylabel())}
        for side, (axis, common) in sides.items():
            if _has_numbers(axis) and not axis.get_label_text().strip() and not common.strip():
                raise ValueError(
                    f"The {side} axis of plot {number} has no label. Say what it shows and in which unit, as in "
                    f"axes.set_{side}label('loss (nats)'); axes.axis('off') hides axes that mean nothing."
                )


def _has_numbers(axis: Any) -> bool:
    """Whether something is written at the ticks of an axis: the inner ones of a shared axis have nothing."""
    shown = axis.get_tick_params()
    sides = ("labelleft", "labelright", "labelbottom", "labeltop")
    return axis.get_visible() and len(axis.get_majorticklocs()) > 0 and any(shown.get(side) for side in sides)


def probability_bars(
    axes: Axes,
    classes: Sequence[str],
    series: Mapping[str, Any],
    roles: Sequence[Role] = (NEUTRAL, TEACHER, FIRST),
    above: bool = False,
) -> dict[str, BarContainer]:
    """Horizontal bars of class probabilities, one group a class, first class on top.

    series: {"T = 1": C probabilities, "T = 4": ...}, in the order of the roles. above: put the legend where a title
    would be, so that no bar can reach it. Returns the bars by name.
    """
    bars = {}
    thickness = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = np.arange(len(classes)) + (number - (len(series) - 1) / 2) * thickness
        look = roles[number % len(roles)].bar(name)
        bars[name] = axes.barh(places, np.asarray(values, dtype=float), thickness, **look)
    axes.set(xlim=(0, 1), xlabel="probability", ylabel="class")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    if len(series) > 1:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(series), "columnspacing": 1}
        legend(axes, **(place if above else {}))
    return bars


def class_matrix(
    axes: Axes,
    matrix: Any,
    classes: Sequence[str],
    *,
    label: str,
    rows: str = "true class",
    columns: str = "answered class",
    low: float | None = None,
    high: float | None = None,
    number: str = "{:.2f}",
) -> AxesImage:
    """A heat map of a C x C matrix with the class names at its sides and, up to 12 classes, a number in each cell.

    label: what the colour means, with its unit. low and high end the colour scale (default: the smallest and the
    largest value); cells beyond keep their number. It needs about 7 x 6 inches for ten classes.
    """
    values = np.asarray(matrix, dtype=float)
    if values.shape != (len(classes), len(classes)):
        raise ValueError(
            f"{len(classes)} classes need a matrix of {len(classes)} x {len(classes)}, got {values.shape}."
        )
    picture = axes.imshow(values, vmin=low, vmax=high, cmap="cividis")
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel=columns, ylabel=rows)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(picture, ax=axes, label=label, shrink=0.9)
    if len(classes) <= 12:
        colours = readable_on(picture, values)
        for (row, column), value in np.ndenumerate(values):
            look = {"ha": "center", "va": "center", "fontsize": 8, "color": colours[row, column]}
            axes.text(column, row, number.format(value), **look)
    return picture


def readable_on(picture: AxesImage, values: Any) -> np.ndarray:
    """The colour, dark or white, in which a text can be read on each cell of a heat map of these values."""
    light = picture.cmap(picture.norm(values))[..., :3] @ (0.299, 0.587, 0.114)
    return np.where(light < 0.5, "white", INK)


def pictures(images: Any, captions: Sequence[str] = (), columns: int = 5, size: float = 1.3) -> Figure:
    """A figure with small grey pictures in rows, a caption over each.

    images: N x H x W or N x 1 x H x W, bytes or normalised numbers. size: inches of a side.
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


def loglog(
    axes: Axes, x: Any, series: Mapping[str, Any], *, xlabel: str, ylabel: str, roles: Sequence[Role] = CYCLE
) -> dict[str, Line2D]:
    """Lines on two logarithmic axes, a role each. Returns them by name."""
    x = np.asarray(x, dtype=float)
    every = max(1, len(x) // 8)  # a marker on each of a hundred points would hide the line
    lines = {}
    for number, (name, values) in enumerate(series.items()):
        look = roles[number % len(roles)].line(name, markevery=every)
        (lines[name],) = axes.plot(x, np.asarray(values, dtype=float), **look)
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    if len(series) > 1:
        legend(axes)
    return lines


def legend(axes: Axes, **options: Any) -> Any:
    """The axes' legend in the course's look."""
    with style():
        return axes.legend(**{"handlelength": 2.5, **options})
