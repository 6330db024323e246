"""A slider beside a box that holds its name and its value.

The front end of ipywidgets gives a slider no name that a screen reader could say, and lets it speak the place of a
choice or an exponent instead of the value. Boxes for numbers and lists are named after their description. So each
slider gets such a box in place of its label and its readout; whoever uses one moves the other. The page moves a number
that is typed to the slider's nearest step, and the box then shows it.
"""

from __future__ import annotations

from typing import Any

# On a narrow page the slider goes below its box.
LINE = {"width": "auto", "max_width": "22rem", "flex_flow": "row wrap", "align_items": "center"}
BOX = {"flex": "3 1 0", "width": "auto"}
SLIDER = {"flex": "2 1 0", "width": "auto", "min_width": "3.5rem", "margin": "0 2px 0 6px"}
DIGITS = 4  # of nearly all numbers


def is_slider(control: Any) -> bool:
    """Whether a control has a handle that is moved along a line."""
    return control.has_trait("readout")


def named_slider(widgets: Any, slider: Any) -> Any:
    """A line with a box, named as the slider was, and the slider, which loses its label and readout."""
    is_choice = isinstance(slider, widgets.SelectionSlider)
    box = (_list_for if is_choice else _number_for)(widgets, slider)
    longest = max(map(len, box._options_labels)) if is_choice else DIGITS
    # In rem: the letters, and margins with the arrow of a list; at most what leaves room for a slider.
    width = min(0.4 * (len(box.description) + longest) + (3 if is_choice else 2), 17)
    box.style.description_width = "initial"
    box.layout = {**BOX, "min_width": f"min({width:.1f}rem, 100% - 4px)"}
    slider.description, slider.readout, slider.layout = "", False, SLIDER
    return widgets.HBox([box, slider], layout=LINE)


def _list_for(widgets: Any, slider: Any) -> Any:
    box = widgets.Dropdown(options=slider.options, index=slider.index, description=slider.description)

    def show(_change: Any) -> None:
        if box.options != slider.options:
            box.options = slider.options
        box.index = slider.index

    def move(_change: Any) -> None:
        slider.index = box.index

    slider.observe(show, ["options", "index"])
    box.observe(move, "index")
    return box


def _number_for(widgets: Any, slider: Any) -> Any:
    """The box shows as many digits as the readout did, and the slider keeps all of its own."""
    is_whole = isinstance(slider, widgets.IntSlider)
    kind = widgets.BoundedIntText if is_whole else widgets.BoundedFloatText
    base = getattr(slider, "base", None)  # of a logarithmic slider, whose limits are exponents

    def limit(end: float) -> float:
        return base**end if base else end

    def shown() -> float:
        text = format(slider.value, slider.readout_format)
        return int(text) if is_whole else float(text)

    step = None if base else slider.step  # its own is one of the exponent
    limits = {"min": limit(slider.min), "max": limit(slider.max)}
    box = kind(value=shown(), **limits, step=step, description=slider.description)

    def show(_change: Any) -> None:
        box.max = limit(slider.max)
        box.value = shown()

    def move(_change: Any) -> None:
        if box.value != shown():
            slider.value = box.value

    slider.observe(show, ["max", "value"])
    box.observe(move, "value")
    return box
