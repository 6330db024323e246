"""What all explorers share: one figure, one image, labelled controls, a status line, and how a notebook stores them.

A key press must become new pixels within 50 ms. So the whole figure is drawn only once; afterwards the artists that
change are updated in place and drawn over a copy of all the rest (blitting), and the PNG goes straight into one
`widgets.Image`. No output area is cleared and filled again, hence nothing flickers.
"""

from __future__ import annotations

import html
import io
import math
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from course import plots
from course.explorers.named_slider import is_slider, named_slider
from kdlib.errors import unknown_name

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VIEW = "application/vnd.jupyter.widget-view+json"
GRID_COLUMNS = "repeat(auto-fill, minmax(min(22rem, 100%), 1fr))"  # a telephone has less than 22rem
CONTROL_STYLE: dict[str, Any] = {
    "style": {"description_width": "initial"},
    "layout": {"width": "auto", "max_width": "22rem"},
}


class Explorer:
    """A figure with controls. Display it in a cell; `describe()` gives its text equivalent.

    A subclass implements

        make_controls(widgets)   its controls by name
        inputs()                 the arguments of `compute` for the present values of the controls
        compute(...)             pure and cached
        build(figure)            draws everything once and returns the artists that change: cached and live ones
        update(result)           updates the artists, the cached ones by `draw_cached()`
        describe_lines(result)   the text equivalent
        sync_controls()          optional: adapts one control to another

    busy: whether a change is being processed; changes that arrive meanwhile are processed together afterwards.
    An exception in a callback appears in the status line, and the figure keeps showing the settings before.
    """

    name: ClassVar[str] = "Explorer"
    alt: ClassVar[str] = ""  # what the figure shows, whatever the settings
    size: tuple[float, float] = (9.6, 3.3)  # inches of 90 pixels
    # JupyterLab moves controls in another thread than cells run in. One lock for all explorers, as one playground
    # pauses another; whoever holds it may enter `plots.style()`, and never the other way round.
    _lock: ClassVar[Any] = threading.RLock()

    def __init__(self, **initial: Any) -> None:
        widgets = _ipywidgets()
        self.busy = False
        self.error = ""
        self._pending = False
        self._shown: Any = None  # what the cached artists show
        self._background: Any = None  # pixels of all that never changes
        self._cached_background: Any = None  # the same with the cached artists on it
        self.controls: dict[str, Any] = self.make_controls(widgets)
        self._set_controls(initial)
        self.figure = plots.blank(*self.size)
        self._canvas = _canvas(self.figure)
        with plots.style():
            self._cached_artists, self._live_artists = (list(artists) for artists in self.build(self.figure))
            self._canvas.draw()  # the layout engine finds space for the texts once,
        self.figure.set_layout_engine("none")  # and the axes stay there
        self.image, self._text, self._status = _image_widget(widgets, self.alt), widgets.HTML(), widgets.HTML()
        self._refresh()  # an exception is not caught here: there is no earlier picture that could be kept
        controls = [named_slider(widgets, one) if is_slider(one) else one for one in self.controls.values()]
        for control in self.controls.values():
            control.observe(self._on_change, names="value")
        # Columns of one width, as many as the page has room for.
        grid = widgets.GridBox(controls, layout={"grid_template_columns": GRID_COLUMNS})
        self.view = widgets.VBox([grid, self._status, self.image, self._text])

    # What a subclass implements.

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        """The controls by name, each with a description."""
        raise NotImplementedError

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        """Draw everything once; return the artists that `update` changes rarely, and those it changes nearly always.

        The first are cached as pixels. All are drawn in this order, over everything else.
        """
        raise NotImplementedError

    def inputs(self) -> tuple[Any, ...]:
        """The arguments of `compute` for the present values of the controls; raises ValueError for invalid ones."""
        raise NotImplementedError

    compute: Any = None

    def update(self, result: Any) -> None:
        """Update the artists so that they show a result of `compute`."""
        raise NotImplementedError

    def draw_cached(self, shown: Any, draw: Callable[[], None]) -> None:
        """Call `draw`, which changes cached artists, unless they show the same already; shown: what, as a value.

        An interrupted cell may leave them half drawn. So what they show is forgotten before and noted at the end.
        """
        if shown == self._shown:
            return
        self._shown = None
        draw()
        self.invalidate_cache()
        self._shown = shown

    def invalidate_cache(self) -> None:
        """Mark the cached artists as changed, so that they are drawn again."""
        self._cached_background = None

    def describe_lines(self, result: Any) -> list[str]:
        """What the figure shows, in words and numbers."""
        raise NotImplementedError

    def sync_controls(self) -> None:
        """Adapt controls to each other, such as the length of a slider to a choice."""

    # The public interface.

    def set(self, **values: Any) -> None:
        """Set controls from code: explorer.set(temperature=2). Raises ValueError for values that are not possible."""
        with self._lock:
            self.busy = True  # several controls, one update
            try:
                self._set_controls(values)
            finally:
                self.busy = False
                self._on_change()
            if self.error:
                raise ValueError(self.error)

    def describe(self) -> str:
        """The text equivalent of the figure: what it shows now, in words and numbers."""
        with self._lock:
            return "\n".join(self.describe_lines(self.compute(*self.inputs())))

    @property
    def state(self) -> dict[str, Any]:
        """The controls' values by name."""
        return {name: control.value for name, control in self.controls.items()}

    def __repr__(self) -> str:
        values = ", ".join(f"{name} = {_format(value)}" for name, value in self.state.items() if value != "")
        return f"{self.name} explorer: {values}"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Live widgets where there is a kernel, else an image, else a line of text.

        The alt text is in the image's metadata, of which JupyterLab reads the size alone: it never shows it.
        """
        view = self.view._repr_mimebundle_()[VIEW]
        data = {VIEW: view, "image/png": plots.reduce_colours(self.png()), "text/plain": repr(self)}
        return data, {"image/png": {"alt": self.alt}}

    def png(self) -> bytes:
        """The present figure as a PNG file."""
        return bytes(self.image.value)

    # What happens when a control changes.

    def _on_change(self, _change: Any = None) -> None:
        with self._lock:
            if self.busy:
                self._pending = True
                return
            self.busy = True
            try:
                self._refresh()
            except Exception as error:
                # A ValueError has a message for the learner; of any other error the type helps to find the cause.
                self._show_error(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
            else:
                self._show_error("")
            finally:
                self.busy = False

    def _refresh(self) -> None:
        self._pending = True
        while self._pending:
            self._pending = False
            self.sync_controls()
            result = self.compute(*self.inputs())
            with plots.style():  # matplotlib makes ticks when it needs them
                self.update(result)
                self.image.value = self._render()
            text = "<br>".join(html.escape(line) for line in self.describe_lines(result))
            self._text.value = f'<div style="line-height: 1.4">{text}</div>'

    def _render(self) -> bytes:
        if self._background is None:
            for artist in (*self._cached_artists, *self._live_artists):
                artist.set_animated(True)  # leaves it out of what is drawn now
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self.figure.bbox)
        if self._cached_background is None:
            self._cached_background = self._draw_over(self._background, self._cached_artists)
        self._draw_over(self._cached_background, self._live_artists)
        return _encode_png(self._canvas)

    def _draw_over(self, pixels: Any, artists: Iterable[Artist]) -> Any:
        self._canvas.restore_region(pixels)
        for artist in artists:
            self.figure.draw_artist(artist)
        return self._canvas.copy_from_bbox(self.figure.bbox)

    def _show_error(self, error: str) -> None:
        self.error = error
        stop = "" if error.endswith((".", "!", "?")) else "."
        note = f"{stop} The picture still shows the settings before."
        text = f'<div role="alert" style="line-height: 1.4"><b>Not shown.</b> {html.escape(error)}{note}</div>'
        self._status.value = text if error else ""

    def _set_controls(self, values: dict[str, Any]) -> None:
        for name in values:
            if name not in self.controls:
                raise unknown_name(f"control of the {self.name.lower()} explorer", name, self.controls)
        before = self.state
        try:
            self._assign(values)
        except ValueError:
            with suppress(ValueError):  # restores as much as possible
                self._assign(before)
            raise

    def _assign(self, values: dict[str, Any]) -> None:
        """Set controls in their own order: the length of a slider, say, depends on a choice before it."""
        for number, name in enumerate(name for name in self.controls if name in values):
            if number:
                self.sync_controls()
            control, cause = self.controls[name], None
            try:
                control.value = values[name]
            except Exception as error:  # traitlets' own message names neither the control nor what is possible
                cause = error
            if control.value != values[name]:  # a slider takes the nearest value that it has
                raise ValueError(f"{name} cannot be {values[name]!r}: {_allowed_values(control)}.") from cause


class ColourScale:
    """A colour bar whose numbers can be updated in place; matplotlib's own would be rebuilt each time."""

    def __init__(self, axes: Axes, label: str) -> None:
        self.axes = axes
        self.axis = axes.yaxis  # the artist that changes
        axes.imshow(np.linspace(0, 1, 256)[:, None], aspect="auto", origin="lower", extent=(0, 1, 0, 1))
        axes.set(xticks=[], ylabel=label, xlim=(0, 1), ylim=(0, 1))
        axes.grid(visible=False)
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
        self.update(0.001, 0.016)  # the widest numbers, so that the layout leaves space for them

    def update(self, low: float, high: float, label: str = "") -> None:
        """Write the values at the ends and in the middle, and the label unless it stays the same."""
        digits = max(0, 2 - math.floor(math.log10(max(abs(low), abs(high))))) if low or high else 0
        ticks = (low, (low + high) / 2, high)
        self.axes.set_yticks([0, 0.5, 1], [f"{tick:.{min(digits, 4)}f}" for tick in ticks])
        if label:
            self.axes.set_ylabel(label)


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _allowed_values(control: Any) -> str:
    options = getattr(control, "_options_values", None)
    if options is not None:
        return f"choose one of {', '.join(map(str, options))}"
    low, high, base = (getattr(control, name, None) for name in ("min", "max", "base"))
    if low is None:
        return "it is True or False" if isinstance(control.value, bool) else "it is a text"
    return f"it lies between {base**low:g} and {base**high:g}" if base else f"it lies between {low} and {high}"


def _ipywidgets() -> Any:
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError(
            'Explorers need ipywidgets. Install what the lessons use: pip install "kdlib[course]"'
        ) from error
    return ipywidgets


def _canvas(figure: Figure) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return FigureCanvasAgg(figure)


def _image_widget(widgets: Any, alt: str) -> Any:
    """An image widget with the alt text as its title, which screen readers read.

    ipywidgets gives an image no alt text, and uses its tooltip as the title only if there is a description.
    """
    from traitlets import Unicode

    image = widgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
    image.add_traits(description=Unicode("").tag(sync=True))
    image.tooltip = plots.normalize_alt(alt)
    return image


def _encode_png(canvas: Any) -> bytes:
    """The canvas as PNG; higher compression levels take longer and make plots no smaller."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
