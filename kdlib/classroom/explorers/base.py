"""What all explorers share: one figure, one image, labelled controls, a status line, and how a notebook stores them.

A key press must become new pixels in a twentieth of a second. So the figure is drawn whole only once; afterwards the
artists that change are changed in place and drawn on a copy of all the rest, and the PNG goes straight into one
`widgets.Image`: no output area is cleared and filled again, hence nothing flickers.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from kdlib._messages import unknown
from kdlib.classroom import plots

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

VIEW = "application/vnd.jupyter.widget-view+json"
WIDE = {"style": {"description_width": "initial"}, "layout": {"width": "22rem"}}  # for every control


class Explorer:
    """A figure with controls. Show it in a cell; `describe()` says the same in words.

    A subclass gives `make(widgets)` (its controls by name), `build(figure)` (draws once and returns the artists that
    change, those that seldom do apart), `inputs()` (the arguments of `compute` for the present settings),
    `compute(...)` (pure and cached), `update(found)` (changes the artists, and calls `touched()` when it changed one
    of the seldom ones) and `lines(found)` (the text). `settle()` may adapt one control to another.

    busy is True while a change is being worked on; changes that arrive meanwhile are worked on together afterwards.
    An exception does not get lost: it appears in the status line, and the picture stays as it was.
    """

    name: ClassVar[str] = "Explorer"
    alt: ClassVar[str] = ""  # what can be seen in the picture, whatever the settings
    size: ClassVar[tuple[float, float]] = (9.6, 3.3)  # inches of 90 pixels

    def __init__(self, **start: Any) -> None:
        widgets = _ipywidgets()
        self.busy = False
        self.error = ""
        self._again = False
        self._ground: Any = None  # pixels: what never changes,
        self._middle: Any = None  # and with what seldom does
        self.controls: dict[str, Any] = self.make(widgets)
        self._move(start)
        self.figure = plots.blank(*self.size)
        self._canvas = _canvas(self.figure)
        with plots.style():
            self._seldom, self._often = (list(artists) for artists in self.build(self.figure))
            self._canvas.draw()  # finds room for the texts, as they are now,
        self.figure.set_layout_engine("none")  # and they stay there
        self.image, self._text, self._status = _image(widgets, self.alt), widgets.HTML(), widgets.HTML()
        self._work()  # here an exception is not caught: there is no picture yet that could be kept
        for control in self.controls.values():
            control.observe(self._changed, names="value")
        row = widgets.HBox(list(self.controls.values()), layout={"flex_flow": "row wrap"})
        self.view = widgets.VBox([row, self._status, self.image, self._text])

    # What a subclass gives.

    def make(self, widgets: Any) -> dict[str, Any]:
        """The controls by name, each with a description."""
        raise NotImplementedError

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        """Draw everything once, and return the artists that `update` changes: seldom, and nearly every time.

        They are drawn in this order, on top of all the rest.
        """
        raise NotImplementedError

    def inputs(self) -> tuple[Any, ...]:
        """The arguments of `compute` for the controls as they are; ValueError for what makes no sense."""
        raise NotImplementedError

    compute: Any = None

    def update(self, found: Any) -> None:
        """Change the artists so that they show what `compute` found."""
        raise NotImplementedError

    def touched(self) -> None:
        """Say that artists of the first kind, which seldom change, have been changed."""
        self._middle = None

    def lines(self, found: Any) -> list[str]:
        """What the picture shows, in words and numbers."""
        raise NotImplementedError

    def settle(self) -> None:
        """Adapt controls to each other, such as the length of a slider to a choice."""

    # What everybody uses.

    def set(self, **values: Any) -> None:
        """Move controls from code: explorer.set(temperature=2). ValueError for what cannot be shown."""
        self.busy = True  # several controls, one new picture
        try:
            self._move(values)
        finally:
            self.busy = False
            self._changed()
        if self.error:
            raise ValueError(self.error)

    def describe(self) -> str:
        """The text equivalent of the picture: what it shows now, in words and numbers."""
        return "\n".join(self.lines(self.compute(*self.inputs())))

    @property
    def state(self) -> dict[str, Any]:
        """The controls' values by name."""
        return {name: control.value for name, control in self.controls.items()}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} = {self._said(value)}" for name, value in self.state.items() if value != "")
        return f"{self.name} explorer: {shown}"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Live widgets where there is a kernel, else a picture with its alt text, else a line of text."""
        view = self.view._repr_mimebundle_()[VIEW]
        data = {VIEW: view, "image/png": plots.few_colours(self.png()), "text/plain": repr(self)}
        return data, {"image/png": {"alt": self.alt}}

    def png(self) -> bytes:
        """The picture as it is now, as a PNG file."""
        return bytes(self.image.value)

    # What happens when a control is moved.

    def _changed(self, _change: Any = None) -> None:
        if self.busy:
            self._again = True
            return
        self.busy = True
        try:
            self._work()
        except Exception as error:
            # A ValueError is ours and says what to do; the name of any other helps to find the mistake.
            text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            self._say(text)
        else:
            self._say("")
        finally:
            self.busy = False

    def _work(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            self.settle()
            found = self.compute(*self.inputs())
            with plots.style():  # matplotlib makes ticks when it needs them
                self.update(found)
                self.image.value = self._painted()
            text = "<br>".join(html.escape(line) for line in self.lines(found))
            self._text.value = f'<div style="line-height: 1.4">{text}</div>'

    def _painted(self) -> bytes:
        if self._ground is None:
            for artist in (*self._seldom, *self._often):
                artist.set_animated(True)  # left out of what is drawn now
            self._canvas.draw()
            self._ground = self._canvas.copy_from_bbox(self.figure.bbox)
        if self._middle is None:
            self._middle = self._on_top_of(self._ground, self._seldom)
        self._on_top_of(self._middle, self._often)
        return _encoded(self._canvas)

    def _on_top_of(self, pixels: Any, artists: Iterable[Artist]) -> Any:
        self._canvas.restore_region(pixels)
        for artist in artists:
            self.figure.draw_artist(artist)
        return self._canvas.copy_from_bbox(self.figure.bbox)

    def _say(self, error: str) -> None:
        self.error = error
        stop = "" if error.endswith((".", "!", "?")) else "."
        kept = f"{stop} The picture still shows the settings before."
        text = f'<div role="alert" style="line-height: 1.4"><b>Not shown.</b> {html.escape(error)}{kept}</div>'
        self._status.value = text if error else ""

    def _move(self, values: dict[str, Any]) -> None:
        for name in values:
            if name not in self.controls:
                raise unknown(f"control of the {self.name.lower()} explorer", name, self.controls)
        before = self.state
        try:
            self._put(values)
        except ValueError:
            with suppress(ValueError):  # as far as possible
                self._put(before)
            raise

    def _put(self, values: dict[str, Any]) -> None:
        """Move controls from above to below: the length of a slider, say, depends on a list above it."""
        for place, name in enumerate(name for name in self.controls if name in values):
            if place:
                self.settle()
            control, reason = self.controls[name], None
            try:
                control.value = values[name]
            except Exception as error:  # traitlets' own message names neither the control nor a way out
                reason = error
            if control.value != values[name]:  # a slider takes the nearest value that it has
                raise ValueError(f"{name} cannot be {values[name]!r}: {_allowed(control)}.") from reason

    @staticmethod
    def _said(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)


def _allowed(control: Any) -> str:
    options = getattr(control, "_options_values", None)
    if options is not None:
        return f"choose one of {', '.join(map(str, options))}"
    low, high, base = (getattr(control, name, None) for name in ("min", "max", "base"))
    if low is None:
        return "it is a text"
    return f"it lies between {base**low:g} and {base**high:g}" if base else f"it lies between {low} and {high}"


def _ipywidgets() -> Any:
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError(
            "Explorers need ipywidgets. Install what the lessons use: pip install 'kdlib[course]'"
        ) from error
    return ipywidgets


def _canvas(figure: Figure) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return FigureCanvasAgg(figure)


def _image(widgets: Any, alt: str) -> Any:
    """An image widget with the alt text as its title, which is what a screen reader says.

    ipywidgets gives an image no alt text, and takes its tooltip as the title only where there is a description.
    """
    from traitlets import Unicode

    image = widgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
    image.add_traits(description=Unicode("").tag(sync=True))
    image.tooltip = plots.described(alt)
    return image


def _encoded(canvas: Any) -> bytes:
    """What is on the canvas as PNG; higher levels take longer, and make plots no smaller."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
