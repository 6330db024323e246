"""Explorers without a browser: values by hand, pictures that change, errors that show, and what a notebook stores."""

from __future__ import annotations

import io
import math
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor

from course import explorers, plots
from course.explorers import base, cost, latency_model, teacher_sees, temperature
from course.explorers import teacher_outputs as outputs_module
from course.explorers.teacher_outputs import teacher_outputs
from kdlib import data, losses, measure, models
from kdlib.data import DataModule

pytestmark = pytest.mark.slow  # it draws

widgets = pytest.importorskip("ipywidgets")

VIEW = "application/vnd.jupyter.widget-view+json"
KEYBOARD = ("IntSlider", "FloatLogSlider", "SelectionSlider", "Dropdown", "Text")  # what a keyboard can work with
NAMES = ["Cost", "TeacherSees", "Temperature"]
MOVES: dict[str, dict[str, Any]] = {  # a control of each, and a value other than the first
    "Cost": {"depth": 56, "width": 64, "resolution": 112, "precision": "int8", "device": "microcontroller, 250 kB"},
    "TeacherSees": {"show": "Shirt", "picture": 2},
    "Temperature": {"picture": 2, "temperature": 8.0, "logits": "4, 2, 0, -1"},
}
EACH_MOVE = [(name, control) for name, moves in MOVES.items() for control in moves]


def timed_networks() -> tuple[latency_model.TimedNetwork, ...]:
    """A machine that takes 0.1 ms per layer and 10 ns per 1,000 MACs."""
    sizes = [latency_model.network_size(*config) for config in latency_model.TIMED_CONFIGS]
    return tuple(latency_model.TimedNetwork(size, 1e-4 * size.layers + 1e-11 * size.macs) for size in sizes)


def make(name: str, **start: Any) -> explorers.Explorer:
    options = {"networks": timed_networks()} if name == "Cost" else {}
    return getattr(explorers, name)(**options, **start)


@pytest.fixture(autouse=True, scope="module")
def few_pictures() -> Iterator[DataModule]:
    """The shipped teacher, but a hundred pictures of each split."""
    whole = data.load("fashion-mnist")
    parts = {part: getattr(whole, part).select(torch.arange(100)) for part in ("validation", "test")}
    small = replace(whole, **parts)
    caches = (
        teacher_outputs,
        teacher_sees._sqrt_probabilities,
        teacher_sees.filter_images,
        explorers.TeacherSees.compute,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs_module.data, "load", lambda name: small)
        for cached in caches:
            cached.cache_clear()
        yield small
    for cached in caches:
        cached.cache_clear()


@pytest.fixture(params=NAMES)
def explorer(request: pytest.FixtureRequest) -> explorers.Explorer:
    return make(request.param)


@pytest.fixture(params=NAMES, scope="module")
def untouched(request: pytest.FixtureRequest) -> explorers.Explorer:
    """One for all tests that only read: building an explorer takes longer than most of them."""
    return make(request.param)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def shown(explorer: explorers.Explorer) -> bytes:
    return bytes(explorer.image.value)


def named(explorer: explorers.Explorer) -> dict[str, Any]:
    """What holds the name of each control for a screen reader: a box beside a slider, or the control itself.

    The front end names every kind of control but sliders after its description.
    """
    (grid,) = (one for one in explorer.view.children if isinstance(one, widgets.GridBox))
    pairs = (one.children if isinstance(one, widgets.HBox) else (one, one) for one in grid.children)
    holders = {id(control): holder for holder, control in pairs}
    found = {name: holders[id(control)] for name, control in explorer.controls.items()}
    for name, holder in found.items():
        assert "Slider" not in type(holder).__name__, name
        assert holder.description.strip(), name
        value = explorer.state[name]
        assert holder.value == (pytest.approx(value, rel=0.01) if isinstance(value, float) else value), name
        assert not holder.disabled
        assert holder.tabbable is not False
    return found


# What all have in common.


def test_a_notebook_gets_a_view_a_picture_and_one_line(untouched: explorers.Explorer) -> None:
    bundle, metadata = untouched._repr_mimebundle_(include=None, exclude=None)
    assert set(bundle) == {VIEW, "image/png", "text/plain"}
    assert bundle[VIEW]["model_id"] == untouched.view.model_id
    assert bundle["text/plain"] == repr(untouched)
    assert "\n" not in repr(untouched)
    assert metadata == {"image/png": {"alt": untouched.alt}}
    assert bundle["image/png"] == plots.reduce_colours(untouched.png())
    assert (pixels(untouched.png()) == pixels(shown(untouched))).all()
    assert len(bundle["image/png"]) < 100_000


def test_there_is_one_image_and_nothing_that_flickers(untouched: explorers.Explorer) -> None:
    def everything(widget: Any) -> Iterator[Any]:
        yield widget
        for child in getattr(widget, "children", ()):
            yield from everything(child)

    kinds = [type(widget).__mro__ for widget in everything(untouched.view)]
    assert sum(widgets.Image in kind for kind in kinds) == 1
    assert not any(widgets.Output in kind for kind in kinds)


def test_controls_have_labels_and_work_with_a_keyboard(untouched: explorers.Explorer) -> None:
    for name, control in untouched.controls.items():
        assert type(control).__name__ in KEYBOARD, name
        assert not control.disabled
        assert control.tabbable is not False
    assert len(named(untouched)) == len(untouched.controls)


def test_a_slider_and_the_box_of_its_name_move_each_other() -> None:
    explorer = make("Temperature")
    box, slider = named(explorer)["temperature"], explorer.controls["temperature"]
    assert (box.description, box.value, box.min, box.max) == ("Temperature T", 4.0, 0.125, 64.0)
    calls, working = [], explorer.update
    explorer.update = lambda found: (calls.append(1), working(found))
    slider.value = 2**2.25
    assert box.value == 4.76  # as many digits as fit
    assert slider.value == 2**2.25  # all of them
    box.value = 3.3
    assert explorer.state["temperature"] == 3.3
    assert "at T = 3.3;" in explorer.describe()
    explorer.set(temperature=8.0)
    assert box.value == 8.0
    assert len(calls) == 3  # one picture for each
    with pytest.raises(ValueError, match="temperature cannot be"):
        explorer.set(temperature=100.0)
    assert (box.value, slider.value) == (8.0, 8.0)


def test_a_box_ends_where_its_slider_ends() -> None:
    explorer = make("TeacherSees", picture=90)
    box = named(explorer)["picture"]
    assert (box.value, box.max) == (90, 99)
    explorer.set(show=teacher_sees.DOUBTFUL)
    assert box.max == explorer.controls["picture"].max < 90
    assert box.value == explorer.state["picture"]
    explorer.set(show=teacher_sees.ALL, picture=95)
    assert box.value == 95


def test_a_list_and_its_slider_move_each_other() -> None:
    explorer = make("Cost")
    box, slider = named(explorer)["depth"], explorer.controls["depth"]
    assert box.description == "Depth (layers)"
    assert box.options == slider.options
    slider.value = 56
    assert box.value == 56
    box.value = 32
    assert explorer.state["depth"] == 32
    assert "ResNet-32" in explorer.describe()


def test_the_image_has_its_alt_text(untouched: explorers.Explorer) -> None:
    state = untouched.image.get_state()
    # The front end makes the tooltip an image's title only if the image has an (empty) description.
    assert (state["tooltip"], state["description"]) == (untouched.alt, "")
    assert len(untouched.alt) > 80


def contrast(colour: Any, background: Any = "white") -> float:
    """The contrast of two colours after WCAG 2: from 1 to 21."""
    from matplotlib.colors import to_rgb

    channels = np.array([to_rgb(colour), to_rgb(background)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return (high + 0.05) / (low + 0.05)


def test_titles_stand_out_from_white(untouched: explorers.Explorer) -> None:
    for axes in untouched.figure.axes:
        for title in (axes.title, axes._left_title):
            assert contrast(title.get_color()) >= 4.5, title.get_text()


def test_all_axes_are_labelled(untouched: explorers.Explorer) -> None:
    from course import plots

    plots.check_labels(untouched.figure)


@pytest.mark.parametrize(("name", "control"), EACH_MOVE)
def test_moving_a_control_changes_picture_and_text_and_back_again(name: str, control: str) -> None:
    explorer = make(name)
    before, text = shown(explorer), explorer._text.value
    start = explorer.controls[control].value
    explorer.controls[control].value = MOVES[name][control]
    assert explorer.error == ""
    assert (pixels(shown(explorer)) != pixels(before)).any()
    assert explorer._text.value != text
    explorer.controls[control].value = start
    assert shown(explorer) == before
    assert explorer._text.value == text


@pytest.mark.parametrize("name", NAMES)
def test_the_same_state_gives_the_same_picture_however_it_was_reached(name: str) -> None:
    there, fresh = make(name), make(name, **MOVES[name])
    for control, value in MOVES[name].items():
        there.controls[control].value = value
    assert shown(there) == shown(fresh)
    assert there.describe() == fresh.describe()


def test_artists_are_changed_in_place(explorer: explorers.Explorer) -> None:
    moving = [*explorer._cached_artists, *explorer._live_artists]
    children = [len(axes.get_children()) for axes in explorer.figure.axes]
    for control, value in MOVES[type(explorer).__name__].items():
        explorer.controls[control].value = value
    assert [len(axes.get_children()) for axes in explorer.figure.axes] == children
    assert all(
        one is other for one, other in zip(moving, [*explorer._cached_artists, *explorer._live_artists], strict=True)
    )


def test_the_blitted_picture_is_that_of_the_whole_figure(explorer: explorers.Explorer) -> None:
    explorer.set(**MOVES[type(explorer).__name__])
    quick = pixels(shown(explorer)).astype(int)
    for artist in (*explorer._cached_artists, *explorer._live_artists):
        artist.set_animated(False)
    explorer._canvas.draw()
    whole = np.asarray(explorer._canvas.buffer_rgba())[..., :3].astype(int)
    # The order of drawing differs where something lies on top of something else, hence not every pixel is the same.
    assert (np.abs(quick - whole).max(axis=2) > 40).mean() < 0.01


def test_describe_is_the_text_below_the_picture(untouched: explorers.Explorer) -> None:
    text = untouched.describe()
    assert len(text.splitlines()) == 3
    assert untouched._text.value.count("<br>") == 2
    assert not set("<>") & set(text)


def test_an_error_appears_in_the_status_line_and_leaves_again(explorer: explorers.Explorer) -> None:
    control, value = next(iter(MOVES[type(explorer).__name__].items()))
    before, working = shown(explorer), explorer.compute

    def broken(*_: Any) -> None:
        raise KeyError("<b>no such thing</b>")

    explorer.compute = broken
    start = explorer.controls[control].value
    explorer.controls[control].value = value
    assert "KeyError" in explorer._status.value
    assert "&lt;b&gt;no such thing" in explorer._status.value
    assert "still shows the settings before" in explorer._status.value
    assert 'role="alert"' in explorer._status.value
    assert not explorer.busy
    assert shown(explorer) == before
    explorer.compute = working
    explorer.controls[control].value = start
    assert explorer._status.value == ""


def test_changes_during_an_update_are_processed_together_afterwards(explorer: explorers.Explorer) -> None:
    name = type(explorer).__name__
    control, value = next(iter(MOVES[name].items()))
    other, further = list(MOVES[name].items())[1]
    calls, working = [], explorer.update

    def with_another_change(found: Any) -> None:
        calls.append(explorer.busy)
        if len(calls) == 1:  # another control moves before this is finished
            explorer.controls[other].value = further
            explorer._on_change()
        working(found)

    explorer.update = with_another_change
    explorer.controls[control].value = value
    assert calls == [True, True]
    assert not explorer.busy
    assert shown(explorer) == shown(make(name, **{control: value, other: further}))


def test_set_moves_several_controls_for_one_picture(explorer: explorers.Explorer) -> None:
    calls, working = [], explorer.update
    explorer.update = lambda found: (calls.append(1), working(found))
    moves = MOVES[type(explorer).__name__]
    explorer.set(**moves)
    assert len(calls) == 1
    assert explorer.state == {**explorer.state, **moves}


def test_set_moves_what_depends_on_another_control_after_it() -> None:
    """A list makes the slider shorter: what the longer one allows can be set together with the list, in any order."""
    explorer = make("TeacherSees", show=teacher_sees.DOUBTFUL)
    explorer.set(show=teacher_sees.ALL, picture=90)
    assert explorer.state == {"show": teacher_sees.ALL, "picture": 90}
    explorer.set(show=teacher_sees.DOUBTFUL)
    explorer.set(picture=90, show=teacher_sees.ALL)
    assert explorer.state == {"show": teacher_sees.ALL, "picture": 90}
    with pytest.raises(ValueError, match=r"picture cannot be 95: it lies between 0 and \d+\."):
        explorer.set(picture=95, show=teacher_sees.WRONG)
    assert explorer.state == {"show": teacher_sees.ALL, "picture": 90}  # nothing has moved
    explorer.controls["picture"].value = 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            teacher_sees, "filter_images", lambda split, show: tuple(range(30)) if show == teacher_sees.ALL else ()
        )
        explorer.controls["show"].value = "Bag"  # of which there are none: the picture stays, and says why
        assert explorer.error
        explorer.set(show=teacher_sees.ALL)
        assert not explorer.error


def test_a_control_that_another_thread_moves_at_the_end_of_an_update_is_not_lost() -> None:
    """JupyterLab moves controls in another thread than cells run in."""
    explorer = make("Temperature")
    explorer.controls["logits"].value = "none"
    assert explorer.error
    slider = threading.Thread(target=lambda: setattr(explorer.controls["temperature"], "value", 8.0))

    def move(_change: Any) -> None:
        slider.start()
        slider.join(0.5)  # it may have to wait for this update

    explorer.view.children[1].observe(move, names="value")  # the status line, cleared last of all
    explorer.set(logits="")
    slider.join(10)
    assert explorer.state["temperature"] == 8
    assert explorer.png() == make("Temperature", **explorer.state).png()


def test_a_cell_and_a_control_never_draw_at_the_same_time() -> None:
    explorer, at_once, most = make("Temperature"), 0, 0
    has_begun, describe_lines = threading.Event(), explorer.describe_lines

    def slow(result: Any) -> list[str]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        has_begun.set()
        time.sleep(0.2)
        at_once -= 1
        return describe_lines(result)

    explorer.describe_lines = slow
    slider = threading.Thread(target=lambda: setattr(explorer.controls["temperature"], "value", 8.0))
    slider.start()
    assert has_begun.wait(10)
    explorer.set(picture=2)
    slider.join(10)
    assert most == 1
    assert explorer.state == {"picture": 2, "temperature": 8.0, "logits": ""}
    assert explorer.png() == make("Temperature", **explorer.state).png()


def interrupt(explorer: explorers.Explorer, **values: Any) -> None:
    """Set controls in a cell that is interrupted while the picture is drawn."""

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer, "invalidate_cache", stop)
        with pytest.raises(KeyboardInterrupt):
            explorer.set(**values)


@pytest.mark.parametrize("goes_back", [False, True])
@pytest.mark.parametrize(
    ("name", "rarely", "often"),
    [
        ("Compression", {"cost": "macs"}, {"way": "int8"}),
        ("Cost", {"device": "microcontroller, 250 kB"}, {"depth": 56}),
        ("Teachers", {"measure": "size"}, {"teacher": "resnet50-fashion"}),
        ("Temperature", {"picture": 2}, {"temperature": 8.0}),
        ("TemperatureMap", {"metric": "agreement with the teacher"}, {"temperature": 1.0}),
    ],
)
def test_after_an_interrupted_cell_the_picture_fits_the_controls(
    name: str, rarely: dict[str, Any], often: dict[str, Any], goes_back: bool
) -> None:
    """rarely, often: a control that changes what is cached as pixels, and one that does not."""
    explorer = make(name)
    before = {control: explorer.state[control] for control in rarely}
    interrupt(explorer, **rarely)
    explorer.set(**(before if goes_back else {}), **often)
    assert explorer.png() == make(name, **explorer.state).png()


def test_set_names_the_possible_values(untouched: explorers.Explorer) -> None:
    with pytest.raises(ValueError, match="There is no control of the .* explorer named 'colour'"):
        untouched.set(colour="red")
    control = next(iter(MOVES[type(untouched).__name__]))
    with pytest.raises(ValueError, match=f"{control} cannot be -7: (it lies between|choose one of)"):
        untouched.set(**{control: -7})
    assert not untouched.busy


@pytest.mark.parametrize("slower", [1, 30, 1000])
def test_a_latency_is_never_written_as_a_power_of_ten(slower: int) -> None:
    explorer = explorers.Cost(networks=[replace(one, seconds=slower * one.seconds) for one in timed_networks()])
    for depth in cost.DEPTHS:
        explorer.set(depth=depth)
        assert re.search(r"Latency: about [\d,.]+ ms", explorer.describe())


@pytest.mark.parametrize("temperature", [0.125, 1])
@pytest.mark.parametrize("logits", ["10000, 0", "100, 0, -100"])
def test_no_entropy_is_less_than_nothing(logits: str, temperature: float) -> None:
    assert "-0.0" not in explorers.Temperature(logits=logits, temperature=temperature).describe()


def test_starting_with_what_is_impossible_is_an_error() -> None:
    with pytest.raises(ValueError, match="temperature cannot be 1000: it lies between 0.125 and 64"):
        explorers.Temperature(temperature=1000)
    with pytest.raises(ValueError, match='"two" is not a number'):
        explorers.Temperature(logits="1, two")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Cost", (20, 16, 28, "fp32", "phone", latency_model.LatencyModel.fit(timed_networks()))),
        ("TeacherSees", ("validation", 7)),
        ("Temperature", ((3.0, 1.0, 0.0), 4.0)),
    ],
)
def test_compute_is_pure_and_cached(name: str, arguments: tuple) -> None:
    compute = getattr(explorers, name).compute
    first = compute(*arguments)
    assert compute(*arguments) is first
    compute.cache_clear()
    assert compute(*arguments) == first
    state = torch.random.get_rng_state()
    compute.cache_clear()
    compute(*arguments)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_trains_and_no_network_runs_when_a_control_moves(
    explorer: explorers.Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network ran in a callback")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    monkeypatch.setattr(Tensor, "backward", refuse)
    explorer.set(**MOVES[type(explorer).__name__])


def test_without_ipywidgets_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"kdlib\[course\]"):
        explorers.Temperature()


def test_an_explorer_without_alt_text_is_refused() -> None:
    class Mute(explorers.Temperature):
        alt = " "

    with pytest.raises(ValueError, match="no alt text"):
        Mute()


# Temperature.


def test_softened_logits_by_hand() -> None:
    found = explorers.Temperature.compute((math.log(4) * 2, 0.0), 2.0)
    assert found.probabilities == pytest.approx((0.8, 0.2))
    assert found.entropy == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    assert found.effective_classes == pytest.approx(math.exp(found.entropy))
    assert found.gradient == pytest.approx((2 * (0.5 - 0.8), 2 * (0.5 - 0.2)))
    assert found.gradient_without == pytest.approx((-0.15, 0.15))
    assert found.norm == pytest.approx(0.6 * math.sqrt(2))


@pytest.mark.parametrize("t", [0.125, 1.0, 4.0, 64.0])
def test_probabilities_and_gradients_are_those_of_the_losses(t: float) -> None:
    teacher = teacher_outputs().logits[:1]
    found = explorers.Temperature.compute(tuple(teacher[0].tolist()), t)
    student = torch.zeros_like(teacher, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.kd(student, teacher, t), student)
    assert found.probabilities == pytest.approx(losses.soften(teacher, t)[0].tolist())
    assert found.gradient == pytest.approx(gradient[0].tolist(), rel=1e-6, abs=1e-9)
    assert found.gradient_without == pytest.approx((gradient[0] / t**2).tolist(), rel=1e-6, abs=1e-9)
    assert found.norm_without == pytest.approx(float(gradient.norm()) / t**2)


def test_limits_of_temperature() -> None:
    cold, hot = (explorers.Temperature.compute((3.0, 1.0, -2.0), t) for t in (0.125, 64.0))
    assert cold.effective_classes == pytest.approx(1.0, abs=1e-5)
    assert hot.effective_classes == pytest.approx(3.0, abs=0.01)
    mean = 2 / 3
    assert hot.gradient == pytest.approx([(mean - z) / 3 for z in (3.0, 1.0, -2.0)], abs=0.03)  # matching of logits
    equal = explorers.Temperature.compute((1.0, 1.0), 2.0)
    assert (equal.norm, equal.effective_classes) == pytest.approx((0.0, 2.0))


def test_curves_go_through_the_points() -> None:
    logits = (3.0, 1.0, -2.0)
    effective, with_t2, plain = temperature.compute_curves(logits)
    for position in (0, 24, 40, 72):
        found = explorers.Temperature.compute(logits, temperature.TEMPERATURES[position].item())
        expected = (found.effective_classes, found.norm, found.norm_without)
        assert (effective[position], with_t2[position], plain[position]) == pytest.approx(expected)
    assert temperature.TEMPERATURES[24] == 1.0
    flat = temperature.compute_curves((1.0, 1.0))
    assert np.isnan(flat[1]).all()  # a gradient of zero cannot be shown on a logarithmic axis


def test_very_large_logits_stay_finite() -> None:
    explorer = make("Temperature", logits="10000, -10000, 0")
    assert "nan" not in explorer.describe()
    assert "inf" not in explorer.describe()


def test_the_picture_is_of_the_validation_split(few_pictures: DataModule) -> None:
    explorer = make("Temperature", picture=4)
    assert (explorer._image.get_array() == few_pictures.validation.images[4, 0].numpy()).all()
    label = few_pictures.classes[few_pictures.validation.labels[4]]
    assert f"Validation picture 4 ({label})" in explorer.describe()
    assert explorer.controls["picture"].max == 99


def test_typed_logits_take_the_place_of_the_picture() -> None:
    explorer = make("Temperature", logits=[4, 2.5, 0])
    assert explorer.state["logits"] == "4, 2.5, 0"
    assert explorer.describe().startswith("Typed logits at T = 4")
    assert not explorer._image.get_visible()
    assert [tick.get_text() for tick in explorer._axes[1].get_yticklabels()] == ["class 0", "class 1", "class 2"]
    explorer.set(logits=[1, 0.5])
    assert explorer.state["logits"] == "1, 0.5"
    explorer.set(logits="")
    assert explorer._image.get_visible()
    assert explorer._axes[1].get_yticklabels()[9].get_text() == "Ankle boot"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1, x, 2", '"x" is not a number'),
        ("1", "1 logits; 2 to 10"),
        (" ".join("12345678901"), "11 logits"),
        ("1, nan", "between"),
        ("1, 1e5", "between -10,000 and 10,000"),
    ],
)
def test_invalid_logits_are_an_error_in_the_status_line(text: str, message: str) -> None:
    explorer = make("Temperature")
    explorer.controls["logits"].value = text
    assert message in explorer.error
    with pytest.raises(ValueError, match="Logits|logits"):
        explorer.describe()
    explorer.controls["logits"].value = "[1; 2 3]"
    assert explorer.error == ""


def test_the_slider_reaches_the_temperatures_that_lessons_use() -> None:
    explorer = make("Temperature")
    for t in (0.125, 0.5, 1, 2, 4, 8, 16, 64):
        explorer.set(temperature=t)
        assert explorer.controls["temperature"].value == t


# What the teacher sees.


def test_what_the_teacher_sees_by_hand(few_pictures: DataModule) -> None:
    model = models.load("resnet20-fashion")
    with torch.inference_mode():
        logits = model(data.normalized_images(few_pictures.validation)).double()
    labels = few_pictures.validation.labels
    found = explorers.TeacherSees.compute("validation", 7)
    one, soft = (torch.softmax(logits[7] / t, dim=0) for t in (1, 4))
    assert list(found.top) == one.argsort(descending=True)[:5].tolist()
    assert found.plain_probabilities == pytest.approx(one[list(found.top)].tolist(), abs=1e-4)
    assert found.soft_probabilities == pytest.approx(soft[list(found.top)].tolist(), abs=1e-4)
    assert found.label == labels[7]
    assert found.rank == 1 + int((one > one[labels[7]]).sum())


def test_the_nearest_pictures_have_another_label_and_are_nearest() -> None:
    found = explorers.TeacherSees.compute("validation", 7)
    labels, p = teacher_outputs().labels, torch.softmax(teacher_outputs().logits / 4, dim=1)
    gaps = (p.sqrt() - p[7].sqrt()).norm(dim=1)
    others = [position for position in gaps.argsort().tolist() if labels[position] != labels[7]]
    assert list(found.similar) == others[:3]


def test_pictures_are_chosen_by_class_and_by_mistake() -> None:
    labels, logits = teacher_outputs().labels, teacher_outputs().logits
    shirts = teacher_sees.filter_images("validation", "Shirt")
    assert shirts == tuple((labels == 6).nonzero()[:, 0].tolist())
    wrong = teacher_sees.filter_images("validation", teacher_sees.WRONG)
    assert wrong == tuple((logits.argmax(dim=1) != labels).nonzero()[:, 0].tolist())
    doubtful = teacher_sees.filter_images("validation", teacher_sees.DOUBTFUL)
    assert all(torch.softmax(logits[position], dim=0).max() < 0.6 for position in doubtful)


def test_the_slider_ends_with_the_pictures_that_were_chosen() -> None:
    explorer = make("TeacherSees", picture=90)
    explorer.controls["show"].value = teacher_sees.WRONG
    count = len(teacher_sees.filter_images("validation", teacher_sees.WRONG))
    assert 0 < count < 90
    assert explorer.controls["picture"].max == count - 1
    assert explorer.state["picture"] == count - 1
    assert f"number {count} of {count}" in explorer.describe()
    assert "The teacher is wrong: the label is number" in explorer.describe()
    assert shown(explorer) == shown(make("TeacherSees", show=teacher_sees.WRONG, picture=count - 1))
    explorer.controls["show"].value = teacher_sees.ALL
    assert explorer.controls["picture"].max == 99


def test_the_bars_are_the_numbers_and_the_hard_label_stands_beside_them() -> None:
    explorer = make("TeacherSees", show=teacher_sees.WRONG)
    found = explorer.compute(*explorer.inputs())
    hard, one, soft = ([patch.get_width() for patch in group] for group in explorer._bars)
    assert hard == [float(which == found.label) for which in found.top]
    assert one == list(found.plain_probabilities)
    assert soft == list(found.soft_probabilities)
    names = [tick.get_text() for tick in explorer._bar_axes.get_yticklabels()]
    assert names == [teacher_outputs().classes[which] for which in found.top]


def test_the_test_split_can_be_looked_at_and_the_training_split_not(few_pictures: DataModule) -> None:
    explorer = explorers.TeacherSees("test", picture=3)
    assert (explorer._images[0].get_array() == few_pictures.test.images[3, 0].numpy()).all()
    assert "Picture 3 of the test split" in explorer.describe()
    with pytest.raises(ValueError, match='"validation" or "test"'):
        explorers.TeacherSees("train")


def test_a_choice_without_pictures_is_an_error_in_the_status_line(monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = make("TeacherSees")
    monkeypatch.setattr(teacher_sees, "filter_images", lambda split, show: () if show == "Bag" else (1, 2))
    explorer.controls["show"].value = "Bag"
    assert "no such picture" in explorer.error


def test_the_teachers_outputs_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher_outputs()
    monkeypatch.setattr(outputs_module, "evaluate", None)
    make("TeacherSees")
    make("Temperature")


# Cost.


@pytest.mark.parametrize(("depth", "width", "resolution"), [(8, 16, 28), (20, 4, 56), (14, 32, 112), (56, 8, 28)])
def test_counted_costs_are_those_of_the_network(depth: int, width: int, resolution: int) -> None:
    model = latency_model.build_network(depth, width)
    counted = latency_model.network_size(depth, width, resolution)
    assert counted.parameters == measure.count_parameters(model)
    assert counted.macs == measure.macs(model, (1, resolution, resolution))
    assert counted.layers == sum(isinstance(one, torch.nn.Conv2d) for one in model.modules())


def test_the_network_of_usual_width_is_the_librarys() -> None:
    library = models.build("resnet20", num_classes=10, in_channels=1)
    shapes = {name: tensor.shape for name, tensor in library.state_dict().items()}
    assert {name: tensor.shape for name, tensor in latency_model.build_network(20, 16).state_dict().items()} == shapes
    assert latency_model.network_size(20, 16, 28).parameters == 272_186


def test_numbers_that_a_network_writes_are_those_of_its_convolutions() -> None:
    written = []
    model = latency_model.build_network(8, 4)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: written.append(out.numel()))
    model(torch.zeros(1, 1, 30, 30))
    assert latency_model.network_size(8, 4, 30).activations == sum(written)


def test_the_estimate_finds_the_law_behind_the_points() -> None:
    found = latency_model.LatencyModel.fit(timed_networks())
    assert found.costs == pytest.approx((1e-4, 1e-11, 0.0), rel=1e-6, abs=1e-15)
    assert found.error == pytest.approx(0.0, abs=1e-6)
    wanted = latency_model.network_size(110, 64, 224)
    assert found.seconds(wanted) == pytest.approx(1e-4 * wanted.layers + 1e-11 * wanted.macs)


def test_the_error_is_that_of_networks_left_out() -> None:
    noisy = [
        replace(one, seconds=one.seconds * (1.3 if number % 2 else 0.8)) for number, one in enumerate(timed_networks())
    ]
    found = latency_model.LatencyModel.fit(noisy)
    assert 0.05 < found.error < 1
    assert all(share >= 0 for share in found.costs)


def test_budgets_by_hand() -> None:
    compute, found = explorers.Cost.compute, latency_model.LatencyModel((0.0, 1e-9, 0.0), 0.1, 10**12)
    size = latency_model.network_size(20, 16, 28)
    phone = compute(20, 16, 28, "fp32", "phone", found)
    assert phone.weight_bytes == pytest.approx(
        {name: 272_186 * size for name, size in {"fp32": 4, "bf16": 2, "int8": 1, "int4": 0.5}.items()}
    )
    assert phone.seconds == pytest.approx(size.macs * 1e-9)
    assert phone.fits == {"MACs": True, "weights": None, "latency": size.macs * 1e-9 <= 1 / 30}
    small = compute(20, 16, 28, "int8", "microcontroller, 250 kB", found)
    assert small.fits == {"MACs": True, "weights": False, "latency": None}  # 272 kB
    assert compute(20, 16, 28, "int4", "microcontroller, 250 kB", found).fits["weights"]
    assert compute(110, 64, 224, "int4", "phone", found).fits["MACs"] is False


def test_the_text_names_limits_estimates_and_sources() -> None:
    explorer = make("Cost", depth=110, width=64, resolution=224, device="microcontroller, 250 kB")
    text = explorer.describe()
    assert "an estimate from 10 networks" in text
    assert "larger than all that were timed" in text
    assert "MACs: OVER 60 million; weights: OVER 0.25 MB; latency: none named" in text
    assert "arXiv:1906.05721" in text
    explorer.set(depth=8, width=4, resolution=28)
    assert "MACs: within 60 million; weights: within 0.25 MB" in explorer.describe()
    assert "larger than all" not in explorer.describe()
    assert all(budget.source for budget in cost.DEVICES.values())


def test_limits_move_with_the_device() -> None:
    explorer = make("Cost", device="microcontroller, 1 MB flash")
    macs, milliseconds, weights = explorer._limits
    assert [line.get_visible() for line in explorer._limits] == [False, False, True]
    assert list(weights.get_ydata()) == [1e6, 1e6]
    explorer.set(device="phone")
    assert list(macs.get_xdata()) == [600e6, 600e6]
    assert list(milliseconds.get_ydata()) == pytest.approx([100 / 3, 100 / 3])
    assert not weights.get_visible()


def test_what_is_beyond_a_limit_is_shaded_and_the_whole_family_is_drawn() -> None:
    explorer = make("Cost", device="phone", precision="int8")
    macs, milliseconds, weights = explorer._beyond
    assert (macs.get_x(), milliseconds.get_y()) == (600e6, pytest.approx(100 / 3))
    assert macs.get_x() + macs.get_width() == pytest.approx(macs.axes.get_xlim()[1])
    assert [area.get_visible() for area in explorer._beyond] == [True, True, False]
    family = explorer.figure.axes[0].lines[0].get_xdata()
    assert len(family) == len(cost.DEPTHS) * len(cost.WIDTHS) * len(cost.RESOLUTIONS)
    size = latency_model.network_size(20, 16, 28)
    assert size.macs in family
    heights = dict(zip(cost.BITS, (bar.get_height() for bar in explorer._weights), strict=True))
    assert heights == pytest.approx({name: size.parameters * bits / 8 for name, bits in cost.BITS.items()})
    dark = [bar.get_facecolor()[:3] == to_rgb(plots.INK) for bar in explorer._weights]
    assert dark == [name == "int8" for name in cost.BITS]
    assert [text.get_text() for text in explorer._megabytes] == ["1.09 MB", "544 kB", "272 kB", "136 kB"]


def test_networks_are_timed_once_and_the_learners_random_numbers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def latency(model: torch.nn.Module, shape: tuple, min_run_time: float) -> Any:
        calls.append(shape)
        return measure.Latency(0.01, 0.0, (0.01,), 1, 1)

    monkeypatch.setattr(measure, "latency", latency)
    monkeypatch.setattr(latency_model, "TIME_BUDGET", math.inf)
    latency_model.time_networks.cache_clear()
    state = torch.random.get_rng_state()
    explorer = explorers.Cost()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert latency_model.time_networks() == explorer.networks
    assert len(calls) == len(latency_model.TIMED_CONFIGS)
    monkeypatch.setattr(latency_model, "TIME_BUDGET", -1.0)  # a slow machine
    latency_model.time_networks.cache_clear()
    assert len(latency_model.time_networks()) == latency_model.MIN_TIMED
    latency_model.time_networks.cache_clear()


def test_explorers_use_neither_pyplot_nor_output_areas() -> None:
    """The rule against pyplot, Output, interact and clear_output, checked in the code itself."""
    folder = __import__("pathlib").Path(base.__file__).parent
    text = "\n".join(path.read_text().partition('"""\n\nfrom')[2] for path in folder.glob("*.py"))
    for word in ("pyplot", "widgets.Output", "interact(", "clear_output", "backward("):
        assert word not in text, word
