"""A scene with its true boxes, and beside it what each of several detectors finds there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from course.detection.scenes import Scene, class_names
from course.plots import OTHER, Role, figure, roles_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Detections = Mapping[str, Tensor]
LEAST_SCORE = 0.3
SAME_PLACE = 0.6  # intersection over union above which only the more certain of two detections is drawn
PANEL = 2.45  # inches of a panel's side


def scene_figure(scene: Scene, detections: Mapping[str, Detections], *, names: Sequence[str] = ()) -> Figure:
    """The scene once with its true boxes and once for each detector, with class and score of what it finds.

    detections: by the detector's name ("teacher", "hard labels" and "distilled" have their colours, others are variants
    of the last), boxes, scores and labels of this scene as `centers.decode` gives them. What is less certain than
    LEAST_SCORE is not drawn; of several classes at one place the most certain is. names: of the classes.
    Raises ValueError without detections.
    """
    if not detections:
        raise ValueError("There is nothing to draw: give the detections of at least one network, by its name.")
    names = names or class_names()
    roles = roles_for(list(detections))
    fig, panels = figure(PANEL * (1 + len(detections)), PANEL + 0.3, 1, 1 + len(detections), squeeze=False)
    _draw_canvas(panels[0, 0], scene, "true boxes")
    for box, label in zip(scene.boxes.tolist(), scene.classes.tolist(), strict=True):
        _draw_box(panels[0, 0], box, names[label], OTHER, "white")
    for axes, (name, found) in zip(panels[0, 1:], detections.items(), strict=True):
        _draw_canvas(axes, scene, name)
        for box, label, score in _certain(found):
            _draw_box(axes, box, f"{names[label]} {score:.0%}", roles[name], roles[name].colour)
    return fig


def scene_alt(scene: Scene, detections: Mapping[str, Detections], *, names: Sequence[str] = ()) -> str:
    """What `scene_figure` shows, in words."""
    names = names or class_names()
    true = ", ".join(names[label] for label in scene.classes.tolist())
    parts = [f"A scene with {len(scene.classes)} true boxes: {true}"]
    for name, found in detections.items():
        texts = [f"{names[label]} {score:.0%}" for _, label, score in _certain(found)]
        parts.append(f"the {name} network finds {', '.join(texts) or 'nothing'}")
    return f"{'; '.join(parts)}."


def _certain(found: Detections) -> list[tuple[list[float], int, float]]:
    """Box, class and score of what is certain enough; of several classes at one place the most certain."""
    from torchvision.ops import nms

    kept = nms(found["boxes"], found["scores"], SAME_PLACE)
    rows = zip(*(found[name][kept].tolist() for name in ("boxes", "labels", "scores")), strict=True)
    return [row for row in rows if row[2] >= LEAST_SCORE]


def _draw_canvas(axes: Axes, scene: Scene, title: str) -> None:
    height, width = scene.canvas.shape[-2:]
    axes.imshow(scene.canvas[0].numpy(), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    axes.set_title(title, loc="left")
    axes.axis("off")


def _draw_box(axes: Axes, box: Sequence[float], text: str, role: Role, colour: str) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    x0, y0, x1, y1 = box
    outline: dict[str, Any] = {"fill": False, "edgecolor": colour, "linestyle": role.linestyle, "linewidth": 1.8}
    frame = axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **outline))
    if colour != "white":  # a colour alone would not stand out from a dark canvas and a bright piece alike
        frame.set_path_effects([withStroke(linewidth=3.2, foreground="white")])
    width = axes.get_xlim()[1]
    above = y0 > 7  # else the text would leave the canvas, and stands inside its box
    look: dict[str, Any] = {"color": "white", "fontsize": 8, "va": "bottom" if above else "top"}
    look |= {"ha": "left"} if x0 < width / 2 else {"ha": "right"}
    text_artist = axes.text(x0 if x0 < width / 2 else x1, y0 - 0.5 if above else y0 + 0.5, text, **look)
    text_artist.set_path_effects([withStroke(linewidth=2.5, foreground="#222222")])
