"""The schematic of distillation, in which the parts that a lesson is about have their colours."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from course.plots.theme import BASELINE, DISTILLED, FEATURES, INK, LOGITS, OTHER, RELATIONS, TEACHER, blank, style
from kdlib.errors import unknown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {  # the role whose colour a part has when it is lit
    "data": OTHER,
    "labels": BASELINE,
    "teacher": TEACHER,
    "student": DISTILLED,
    "projector": FEATURES,
    "feature loss": FEATURES,
    "relation loss": RELATIONS,
    "temperature": LOGITS,
    "soft loss": LOGITS,
    "hard loss": BASELINE,
}
TEACHING = {"teacher", "feature loss", "relation loss", "soft loss"}  # the student is distilled where one is lit
_EVERY_FAMILY = ("data", "labels", "teacher", "student", "hard loss")
FAMILIES = {  # what a family of distillation needs; the labels teach beside each
    "logits": (*_EVERY_FAMILY, "temperature", "soft loss"),
    "features": (*_EVERY_FAMILY, "projector", "feature loss"),
    "relations": (*_EVERY_FAMILY, "relation loss"),
}
PALE_EDGE, PALE_FILL, PALE_TEXT = "#D2D2D2", "#F3F3F3", "#6B6B6B"
SIZE = (700, 316)  # hundredths of an inch
LAYERS, LOGITS_X = (230, 308, 386), 492  # x of the layers and of the logits, in both networks
TEACHER_Y, STUDENT_Y, LOSS_Y = 262, 86, 174
TEACHER_LAYER, STUDENT_LAYER = (26, 54), (16, 34)  # width and height
BARS = (0.25, 0.55, 1.0, 0.38, 0.18)  # relative heights of the logits


def schematic(active: str | Collection[str] | None = None) -> Figure:
    """Data, teacher, student and the losses between them; the active parts in their colours, the others pale.

    active: "logits", "features" or "relations" for what that family needs; a part, or several, by their names in PARTS;
    None for all. Raises ValueError, with near matches, for an unknown part.
    """
    lit = _check(active)
    width, height = SIZE
    fig = blank(width / 100, height / 100)
    fig.set_layout_engine("none")
    with style():
        axes = fig.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.axis("off")
        drawing = _Drawing(axes, lit)
        drawing.data()
        drawing.network("teacher", "frozen", TEACHER_Y, TEACHER_LAYER)
        drawing.network("student", "trained", STUDENT_Y, STUDENT_LAYER)
        drawing.losses()
    return fig


def schematic_alt(active: str | Collection[str] | None = None) -> str:
    """What `schematic` shows, in words. Raises ValueError, with near matches, for an unknown part."""
    lit = _check(active)
    structure = (
        "Schematic of distillation. Data goes into a frozen teacher, above, and a smaller student, below. Between the "
        "two are, from left to right, a feature loss with a projector after the student's layer, a relation loss, and "
        "a soft loss on the logits divided by a temperature. A hard loss compares the student's logits with the labels."
    )
    named = [part for part in PARTS if part in lit]
    if len(named) == len(PARTS):
        return f"{structure} All parts are lit."
    return f"{structure} Lit: {', '.join(named) or 'nothing'}. All other parts are pale."


def _check(active: str | Collection[str] | None) -> set[str]:
    if active is None:
        return set(PARTS)
    if isinstance(active, str):
        active = FAMILIES.get(active, (active,))
    for part in sorted(active):
        if part not in PARTS:
            raise unknown_name("part of the schematic", part, [*FAMILIES, *PARTS])
    return set(active)


def _tint(colour: str, share: float) -> tuple[float, float, float]:
    """A colour mixed with white; share: how much of the colour is left."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (1 - share * (1 - channel) for channel in channels)
    return red, green, blue


class _Drawing:
    """Draws the parts; each patch has the name of its part as its gid."""

    def __init__(self, axes: Axes, lit: set[str]) -> None:
        self.axes, self.lit = axes, lit
        self.roles = dict(PARTS)
        if "hard loss" in lit and not lit & TEACHING:
            self.roles["student"] = BASELINE  # nothing but hard labels teaches it

    def edge(self, part: str) -> Any:
        return self.roles[part].colour if part in self.lit else PALE_EDGE

    def fill(self, part: str, share: float = 0.16) -> Any:
        return _tint(self.roles[part].colour, share) if part in self.lit else PALE_FILL

    def solid(self, part: str) -> Any:
        return self.roles[part].colour if part in self.lit else "#E2E2E2"

    def text(self, part: str, x: float, y: float, text: str, **options: Any) -> None:
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "zorder": 5}
        look |= {"color": INK, "fontweight": "bold"} if part in self.lit else {"color": PALE_TEXT}
        self.axes.text(x, y, text, **{**look, **options})

    def box(self, part: str, x: float, y: float, width: float, height: float, **options: Any) -> None:
        """A rounded box around its centre."""
        from matplotlib.patches import FancyBboxPatch

        radius = options.pop("radius", 6)
        look = {
            "facecolor": self.fill(part),
            "edgecolor": self.edge(part),
            "linewidth": self.linewidth(part),
            "zorder": 3,
        }
        corner = (x - width / 2 + radius, y - height / 2 + radius)
        width, height = width - 2 * radius, height - 2 * radius
        rounded = f"round,pad={radius},rounding_size={radius}"
        self.axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=rounded, gid=part, **{**look, **options}))

    def linewidth(self, part: str) -> float:
        return 1.8 if part in self.lit else 1.0

    def arrow(self, points: list[tuple[float, float]], *parts: str) -> None:
        """An arrow through points; lit, in the first part's colour, if all of these parts are."""
        lit = all(part in self.lit for part in parts)
        shade = self.roles[parts[0]].colour if lit else PALE_EDGE
        zorder = 3 if lit else 2
        xs, ys = zip(*points, strict=True)
        self.axes.plot(xs, ys, "-", color=shade, linewidth=1.6 if lit else 1.0, zorder=zorder, solid_capstyle="round")
        head = {"arrowstyle": "-|>,head_length=0.42,head_width=0.2", "color": shade, "linewidth": 0.5}
        head |= {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 12}
        self.axes.annotate("", points[-1], points[-2], arrowprops=head, zorder=zorder)

    def data(self) -> None:
        from matplotlib.patches import Rectangle

        x, y = 46, LOSS_Y
        for shift in (10, 5, 0):
            self.box("data", x + shift, y + shift, 44, 44, radius=4, facecolor="white")
        for row in range(4):
            for column in range(4):
                shade = self.solid("data") if (row + 2 * column) % 3 else self.fill("data", 0.3)
                corner = (x - 16 + 8 * column, y - 16 + 8 * row)
                self.axes.add_patch(Rectangle(corner, 7, 7, facecolor=shade, zorder=4, gid="data"))
        self.text("data", x + 4, y - 34, "data")
        for name, target in (("teacher", TEACHER_Y), ("student", STUDENT_Y)):
            self.arrow([(86, y), (100, y), (100, target), (122, target)], "data", name)

    def network(self, part: str, state: str, y: float, layer: tuple[float, float]) -> None:
        from matplotlib.patches import Rectangle

        width, height = layer
        self.box(part, 338, y, 428, height + 26, radius=9, zorder=1)
        self.text(part, 168, y + 7, part, fontsize=10.5)
        self.text(part, 168, y - 9, state, fontsize=7.5, fontweight="normal")
        for x in LAYERS:
            self.box(part, x, y, width, height, radius=3, facecolor=self.solid(part), linewidth=0, zorder=4)
        starts = [x + width / 2 + 4 for x in LAYERS]
        ends = [*(x - width / 2 - 4 for x in LAYERS[1:]), LOGITS_X - 28]
        for start, end in zip(starts, ends, strict=True):
            self.arrow([(start, y), (end, y)], part)
        for number, share in enumerate(BARS):
            corner = (LOGITS_X - 20 + 8.5 * number, y - 0.3 * height)
            bar = Rectangle(corner, 6, 0.6 * height * share, facecolor=self.solid(part), zorder=4, gid=part)
            self.axes.add_patch(bar)
        self.text(part, LOGITS_X + 38, y, "logits", fontsize=7.5, fontweight="normal", rotation=90)

    def losses(self) -> None:
        feature, _, relation = LAYERS
        top, bottom = TEACHER_Y - TEACHER_LAYER[1] / 2, STUDENT_Y + STUDENT_LAYER[1] / 2
        for part, x, width in (
            ("feature loss", feature, 102),
            ("relation loss", relation, 102),
            ("soft loss", LOGITS_X, 84),
        ):
            inset = 9 if x == LOGITS_X else 0  # the bars of the logits are lower than a layer
            self.arrow([(x, top + inset - 2), (x, LOSS_Y + 15)], part, "teacher")
            self.arrow([(x, bottom - inset / 2 + 2), (x, LOSS_Y - 15)], part, "student")
            self.box(part, x, LOSS_Y, width, 28, radius=10)
            self.text(part, x, LOSS_Y, part)
        low, high = bottom + 26, top - 26
        self.projector(feature, low)
        for y in (low, high):
            self.temperature(LOGITS_X, y)
        self.text("temperature", LOGITS_X + 14, high, "temperature", ha="left", fontsize=8)
        self.hard_loss()

    def projector(self, x: float, y: float) -> None:
        from matplotlib.patches import Polygon

        corners = [(x - 11, y - 7), (x + 11, y - 7), (x + 19, y + 7), (x - 19, y + 7)]
        look = {"facecolor": self.fill("projector", 0.45), "edgecolor": self.edge("projector")}
        self.axes.add_patch(
            Polygon(
                corners, linewidth=self.linewidth("projector"), zorder=4, gid="projector", joinstyle="round", **look
            )
        )
        self.text("projector", x + 25, y, "projector", ha="left", fontsize=8)

    def temperature(self, x: float, y: float) -> None:
        from matplotlib.patches import Circle

        look = {"facecolor": self.fill("temperature", 0.45), "edgecolor": self.edge("temperature")}
        self.axes.add_patch(
            Circle((x, y), 9.5, linewidth=self.linewidth("temperature"), zorder=4, gid="temperature", **look)
        )
        self.text("temperature", x, y - 0.5, "T", fontsize=8, style="italic")

    def hard_loss(self) -> None:
        x, y = 632, STUDENT_Y
        self.box("hard loss", x, y, 84, 28, radius=10)
        self.text("hard loss", x, y, "hard loss")
        self.arrow([(554, y), (x - 43, y)], "hard loss", "student")
        self.box("labels", 50, 24, 62, 24, radius=8)
        self.text("labels", 50, 24, "labels")
        self.arrow([(82, 24), (x, 24), (x, y - 15)], "hard loss", "labels")
