"""The look of all figures: colour roles, style, figures with alt text below them.

Each colour has one meaning, in figures and explorers alike:

    TEACHER     green        the teacher, and what it gives: its probabilities, features, decision boundary
    BASELINE    vermilion    hard labels, and the student that learns from nothing else; what distillation is compared
                             with, and verdicts in its favour
    DISTILLED   blue         a distilled student, whatever taught it, or taught by a combination; verdicts in its favour
    LOGITS      orange       the first family of distillation: soft labels and their loss
    FEATURES    purple       the second family: layers, projections and their losses
    RELATIONS   light blue   the third family: relations between layers or samples, and their losses
    NEUTRAL     grey         references, guides and controls, inconclusive verdicts
    OTHER       black        what has no part in distillation; INK, the same black, marks what is selected
    ALERT       dark red     what is wrong or out of bounds: wrong labels, limits of a device

Words in the colour of a role have its `Role.ink`, a darker tone where the colour itself is too pale for small text (its
contrast to white is below the 4.5 : 1 of WCAG). LOGITS and RELATIONS are also too pale for markers and bars (below
3 : 1), so these have an edge in INK, and a line without markers has the darker tone.

Where one meaning is needed twice in a figure (T = 1 beside T = 4, two feature losses), `Role.variant` keeps the colour
and changes line style, marker and hatch. Heat maps use cividis, and for gains vermilion to white to blue.

The colours are those of Okabe and Ito, which people with any colour vision can distinguish; line style, marker and
hatch repeat what colour says. Figures are made without pyplot, so there is no current figure and nothing to close.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

# matplotlib and IPython are imported where they are used: a lesson without a figure does not wait for them.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from PIL.Image import Image as Picture

DPI = 90  # pixels of the page per inch
PIXEL_RATIO = 2  # pixels of the image per pixel of the page, so that text is crisp on a fine screen and in print
PALETTE_SIZES = (128, 256)  # a PNG can name 256 colours by a byte, and has fewer bytes with fewer colours
UNSEEN = 16  # of 255 steps: no colour moves further where the smaller palette is taken
INK = "#222222"
ALERT = "#B00020"
# The tones in which words are readable, by the colour of the role; and the colours whose markers need an edge.
INKS = {"#009E73": "#00775A", "#D55E00": "#B04E00", "#E69F00": "#8A5F00", "#CC79A7": "#8F5575", "#56B4E9": "#346C8C"}
EDGED = ("#E69F00", "#56B4E9")


@dataclass(frozen=True)
class Role:
    """What a colour stands for, and the line style, marker and hatch that say the same without colour.

    open: whether the marker is drawn without a filling. ink: the colour for words.
    """

    label: str
    colour: str
    linestyle: str
    marker: str
    hatch: str
    open: bool = False

    @property
    def ink(self) -> str:
        """The colour for words, of at least 4.5 : 1 on white: the role's own, or a darker tone of it."""
        return INKS.get(self.colour, self.colour)

    def line(self, label: str | None = None, **options: Any) -> dict[str, Any]:
        """Arguments for `axes.plot`; the label is the role's own unless another is given."""
        look: dict[str, Any] = {
            "color": self.colour,
            "linestyle": self.linestyle,
            "marker": self.marker,
            "linewidth": 2,
        }
        look["markersize"] = 9 if self.marker == "*" else 6  # a star fills less of its box
        look |= {"markerfacecolor": "white"} if self.open else {}
        if self.colour in EDGED:
            look |= {"markeredgecolor": INK, "markeredgewidth": 0.5}
            look["color"] = self.ink if options.get("marker") == "" else self.colour
        return {**look, "label": self.label if label is None else label, **options}

    def bar(self, label: str | None = None, **options: Any) -> dict[str, Any]:
        """Arguments for `axes.bar` and `axes.barh`."""
        look = {"color": self.colour, "hatch": self.hatch, "edgecolor": "white", "linewidth": 0}
        look |= {"edgecolor": INK, "linewidth": 0.8} if self.colour in EDGED else {}
        return {**look, "label": self.label if label is None else label, **options}

    def variant(self, number: int) -> Role:
        """The same meaning once more in one figure: the same colour, another line style, marker and hatch.

        Variant 0 is the role itself; the first eight differ from each other.
        """
        if number == 0:
            return self
        linestyles, markers, hatches = (
            [look for look in looks if look != own][(number - 1) % (len(looks) - 1)]
            for own, looks in ((self.linestyle, LINESTYLES), (self.marker, MARKERS), (self.hatch, HATCHES))
        )
        return replace(self, linestyle=linestyles, marker=markers, hatch=hatches, open=number % 2 == 1)


LINESTYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
HATCHES = ("", "\\\\", "oo", "++", "**")

TEACHER = Role("teacher", "#009E73", "-.", "^", "")
BASELINE = Role("hard labels", "#D55E00", "--", "s", "//")
DISTILLED = Role("distilled", "#0072B2", "-", "o", "..")
LOGITS = Role("logits", "#E69F00", "-", "P", "")
FEATURES = Role("features", "#CC79A7", "--", "X", "xx")
RELATIONS = Role("relations", "#56B4E9", "-.", "v", "--")
NEUTRAL = Role("reference", "#6E6E6E", ":", "D", "")
OTHER = Role("other", INK, "-", "*", "")
ROLES = (TEACHER, BASELINE, DISTILLED, LOGITS, FEATURES, RELATIONS, NEUTRAL, OTHER)
NAMED = ("white", ALERT, *(role.colour for role in ROLES), *INKS.values())  # those that `reduce_colours` keeps

STYLE: dict[Any, Any] = {
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

# matplotlib's settings are those of the whole process, and JupyterLab moves controls in another thread than cells run
# in: a thread that entered `style()` while another is inside would take the course's look for the settings before.
# Who also needs an explorer's lock takes that one first.
_LOCK = threading.RLock()


@contextmanager
def style() -> Iterator[None]:
    """Inside the block new axes and texts have the course's look; afterwards matplotlib's settings are as before.

    One thread at a time is inside, and others wait: so do not move an explorer's controls inside the block.
    """
    from cycler import cycler
    from matplotlib import rc_context

    unnamed = (OTHER, NEUTRAL, OTHER.variant(1), NEUTRAL.variant(1))  # lines that were given no role
    cycle = cycler(color=[role.colour for role in unnamed], linestyle=[role.linestyle for role in unnamed])
    with _LOCK, rc_context({**STYLE, "axes.prop_cycle": cycle}):
        yield


def figure(width: float = 7.0, height: float = 3.4, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure in the course's look, and its axes: one, or an array as `Figure.subplots` returns it.

    width and height: inches of 90 pixels. options: passed to `Figure.subplots` (sharex, width_ratios, ...).
    """
    fig = blank(width, height)
    with style():
        return fig, fig.subplots(rows, columns, **options)


def blank(width: float, height: float) -> Figure:
    """A figure in the course's look without axes; add them inside `style()`. width and height: inches."""
    from matplotlib.figure import Figure

    with style():
        return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def show(fig: Figure, *, alt: str) -> None:
    """Display a figure in the notebook, and its alt text in a line below it that opens by a click or a key.

    The text says what can be seen and what follows from it. A screen reader finds it below the image: JupyterLab and
    nbconvert give the image none, though it is also stored in the output's metadata (image/png, alt) for who reads it.
    Raises ValueError for a missing text, a figure without axes and an axis without a label.
    """
    alt = normalize_alt(alt)
    check_labels(fig)
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:  # a plain Python session cannot display images
        print(alt)
        return
    data = {"image/png": base64.b64encode(png(fig)).decode(), "text/plain": alt}
    width = round(DPI * fig.get_size_inches()[0])  # without a height, so that a narrow page shrinks both
    display(data, metadata={"image/png": {"alt": alt, "width": width}}, raw=True)
    # Without text/plain: a terminal has printed the text already.
    described = f"<details><summary>What the figure shows</summary><p>{html.escape(alt)}</p></details>"
    display({"text/html": described}, raw=True)


def png(fig: Figure) -> bytes:
    """The figure as a PNG file at twice the resolution of the page; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    with style():  # matplotlib makes most ticks only here
        fig.savefig(buffer, format="png", dpi=PIXEL_RATIO * DPI, metadata={"Software": None})
    return reduce_colours(buffer.getvalue())


def reduce_colours(image: bytes) -> bytes:
    """The same PNG image in about half of the bytes, in 128 colours where that cannot be seen, else in 256.

    White, the colours of the roles and their inks stay as they are. Any other colour may move by a few of 255 steps,
    and one that is rare in an image of many soft colours by up to 25.
    """
    from PIL import Image
    from scipy.cluster.vq import vq

    original = Image.open(io.BytesIO(image)).convert("RGB")
    colours, numbers, counts = np.unique(
        np.asarray(original).astype(np.int64) @ (1 << 16, 1 << 8, 1), return_inverse=True, return_counts=True
    )
    colours = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(float)
    for size in PALETTE_SIZES:
        palette = colours if len(colours) <= size else np.round(_palette(original, colours, counts, size))
        nearest = vq(colours, palette)[0]
        if np.abs(palette[nearest] - colours).max() <= UNSEEN:
            break
    reduced = Image.frombytes("P", original.size, nearest.astype(np.uint8)[numbers.ravel()].tobytes())
    reduced.putpalette(palette.astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    reduced.save(buffer, "png", compress_level=9)
    return buffer.getvalue()


def _palette(image: Picture, colours: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """Colours for an image (size, 3), by k-means; colours, counts: the image's own, and how many pixels each."""
    from PIL import Image, ImageColor
    from scipy.cluster.vq import vq

    named = [ImageColor.getrgb(colour) for colour in NAMED]
    palette = np.array(named, float)
    # Neither cut is enough alone: the first leaves a small text no colour of its own (green titles became blue beside a
    # blue heat map), the second leaves few to a soft gradient, which shows bands. So k-means starts from both.
    for method in (Image.Quantize.MEDIANCUT, Image.Quantize.MAXCOVERAGE):
        part = (size - len(named)) // 2
        cut = image.quantize(part, method=method, dither=Image.Dither.NONE).getpalette() or []
        palette = np.append(palette, np.reshape(cut[: 3 * part], (-1, 3)), axis=0)
    weights = np.sqrt(counts)  # between each colour alike and each pixel alike
    for _ in range(8):
        nearest = vq(colours, palette)[0]
        totals = np.bincount(nearest, weights, len(palette))
        moving = totals > 0
        moving[: len(named)] = False
        for channel in range(3):
            sums = np.bincount(nearest, weights * colours[:, channel], len(palette))
            palette[moving, channel] = sums[moving] / totals[moving]
    return palette


def normalize_alt(alt: str) -> str:
    """The alt text in one line; raises ValueError for an empty one."""
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(
            "The figure has no alt text. Say in a sentence what can be seen in it: "
            'plots.show(fig, alt="The loss falls until epoch 10 and rises afterwards.")'
        )
    return " ".join(alt.split())


def check_labels(fig: Figure) -> None:
    """Raise ValueError for a figure without axes, and for an axis with numbers but without a label."""
    if not fig.axes:
        raise ValueError("The figure is empty: draw into the axes that plots.figure() returned with it.")
    for number, axes in enumerate(fig.axes, start=1):
        if not (axes.get_visible() and axes.axison):
            continue
        sides = {"x": (axes.xaxis, fig.get_supxlabel()), "y": (axes.yaxis, fig.get_supylabel())}
        for side, (axis, common) in sides.items():
            if _has_tick_labels(axis) and not axis.get_label_text().strip() and not common.strip():
                raise ValueError(
                    f"The {side} axis of plot {number} has no label. Say what it shows and in which unit, as in "
                    f"axes.set_{side}label('loss (nats)'); axes.axis('off') hides axes that mean nothing."
                )


def _has_tick_labels(axis: Any) -> bool:
    """Whether an axis shows tick labels; the inner axes of a shared one do not."""
    parameters = axis.get_tick_params()
    sides = ("labelleft", "labelright", "labelbottom", "labeltop")
    return axis.get_visible() and len(axis.get_majorticklocs()) > 0 and any(parameters.get(side) for side in sides)


def legend(axes: Axes, **options: Any) -> Legend:
    """The axes' legend in the course's look."""
    with style():
        return axes.legend(**{"handlelength": 2.5, **options})


def roles_for(names: Sequence[str]) -> dict[str, Role]:
    """The role of each network: by its name where a role has that label, else a variant of the distilled student's."""
    by_label = {role.label: role for role in ROLES}
    variants = itertools.count(1 if DISTILLED.label in names else 0)
    return {name: by_label.get(name) or DISTILLED.variant(next(variants)) for name in names}
