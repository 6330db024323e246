"""The explorer that plans experiments: values, pictures that change, its error line, its text."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from PIL import Image
from test_explorers import named

from course import explorers, planning, plots
from course.explorers.planner import IMAGES, SEEDS, SHOWN
from course.planning import Plan

pytestmark = pytest.mark.slow  # it draws

widgets = pytest.importorskip("ipywidgets")

VIEW = "application/vnd.jupyter.widget-view+json"
MOVES = {"gain": 0.8, "spread": 0.5, "seeds": 8, "images": 1_000, "methods": 15, "luck": 3}


@pytest.fixture
def explorer() -> explorers.Planner:
    return explorers.Planner()


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_notebook_gets_a_view_a_picture_and_one_line(explorer: explorers.Planner) -> None:
    bundle, metadata = explorer._repr_mimebundle_()
    assert set(bundle) == {VIEW, "image/png", "text/plain"}
    expected = "gain = 0.5, spread = 0.3, seeds = 5, images = 10000, methods = 1, luck = 1"
    assert bundle["text/plain"] == f"Planner explorer: {expected}"
    assert metadata == {"image/png": {"alt": explorer.alt}}
    assert len(bundle["image/png"]) < 100_000
    assert explorer.image.get_state()["tooltip"] == explorer.alt
    plots.check_labels(explorer.figure)


def test_controls_have_labels_and_work_with_a_keyboard(explorer: explorers.Planner) -> None:
    kinds = {type(control).__name__ for control in explorer.controls.values()}
    assert kinds == {"FloatSlider", "IntSlider", "SelectionSlider"}
    assert set(named(explorer)) == set(explorer.controls)


@pytest.mark.parametrize("control", MOVES)
def test_moving_a_control_changes_picture_and_text_and_back_again(control: str) -> None:
    explorer = explorers.Planner()
    before, text, start = explorer.png(), explorer._text.value, explorer.state[control]
    explorer.controls[control].value = MOVES[control]
    assert explorer.error == ""
    assert (pixels(explorer.png()) != pixels(before)).any()
    assert explorer._text.value != text
    explorer.controls[control].value = start
    assert explorer.png() == before
    assert explorer._text.value == text


def test_the_same_state_gives_the_same_picture_however_it_was_reached(explorer: explorers.Planner) -> None:
    fresh = explorers.Planner(**MOVES)
    for control, value in reversed(MOVES.items()):
        explorer.controls[control].value = value
    assert explorer.png() == fresh.png()
    assert explorer.describe() == fresh.describe()


def test_artists_are_changed_in_place(explorer: explorers.Planner) -> None:
    children = [len(axes.get_children()) for axes in explorer.figure.axes]
    explorer.set(**MOVES)
    assert [len(axes.get_children()) for axes in explorer.figure.axes] == children


def test_the_blitted_picture_is_that_of_the_whole_figure(explorer: explorers.Planner) -> None:
    explorer.set(**MOVES)
    quick = pixels(explorer.png()).astype(int)
    for artist in (*explorer._cached_artists, *explorer._live_artists):
        artist.set_animated(False)
    explorer._canvas.draw()
    whole = np.asarray(explorer._canvas.buffer_rgba())[..., :3].astype(int)
    assert (np.abs(quick - whole).max(axis=2) > 40).mean() < 0.01


def test_the_values_are_those_of_the_simulation() -> None:
    plan = Plan(0.8, 0.5, 8, 1_000, 15)
    found = explorers.Planner.compute(plan, 3)
    assert found.shown is planning.simulate(plan, SHOWN, 3)
    assert found.many.right == planning.power(plan) / 100
    assert found.powers[SEEDS.index(8)] == planning.power(plan)
    assert found.needed is None
    assert explorers.Planner.compute(plan, 3) is found
    assert explorers.Planner.compute(Plan(1.0, 0.3, 5), 1).needed in (3, 4)


def test_intervals_points_and_ring_are_drawn_where_they_are(explorer: explorers.Planner) -> None:
    explorer.set(gain=0.6, seeds=4)
    shown = planning.simulate(Plan(0.6, 0.3, 4), SHOWN, 1)
    segments = np.array(explorer._intervals.get_segments())
    assert segments[:, 0, 0] == pytest.approx(shown.low)
    assert segments[:, 1, 0] == pytest.approx(shown.high)
    assert segments[:, 0, 1] == pytest.approx(np.arange(SHOWN))
    drawn = sum(len(points.get_xdata()) for points in explorer._points)
    assert drawn == SHOWN
    beats = explorer._points[0].get_ydata()
    assert list(beats) == list(np.flatnonzero(shown.low > 0))
    assert list(explorer._truth.get_xdata()) == [0.6, 0.6]
    ring = [float(values[0]) for values in explorer._ring.get_data()]
    assert ring == pytest.approx([4, planning.power(Plan(0.6, 0.3, 4))])


def test_means_beyond_the_axis_are_marked_at_its_ends(explorer: explorers.Planner) -> None:
    plan = {"gain": 2.0, "spread": 1.0, "seeds": 2}
    means = planning.simulate(Plan(*plan.values()), SHOWN, 1).mean
    axes = explorer.figure.axes[0]
    left, right = axes.get_xlim()
    assert (means > right).any()
    explorer.set(**plan)
    points = [x for line in axes.lines if line.get_linestyle() == "None" for x in line.get_xdata()]
    arrows = [x for marks in axes.collections if isinstance(marks, PathCollection) for x, _ in marks.get_offsets()]
    assert len(arrows) == ((means < left) | (means > right)).sum()
    assert len(points) + len(arrows) == SHOWN
    assert all(left < x < right for x in (*points, *arrows))


def test_the_text_has_the_plan_the_counts_and_what_would_do(explorer: explorers.Planner) -> None:
    first, second, third = explorer.describe().splitlines()
    assert first.startswith("True gain 0.5 points, spread 0.3; 5 seeds, 10,000 test pictures, one method: ")
    counts = [int(word) for word in second.replace(",", "").split() if word.isdigit()]
    assert sum(counts[1:4]) == SHOWN == counts[0]
    assert third.startswith("Of 2,000 experiments, ")
    assert "have the right verdict, BEATS. For 80 % it takes " in third
    explorer.set(gain=0.1, images=500)
    assert "20 seeds are not enough for 80 %" in explorer.describe()
    explorer.set(gain=0.0, methods=15)
    assert "have the right verdict, INCONCLUSIVE." in explorer.describe()
    assert "one of 15 such methods would get a verdict in 54% of studies" in explorer.describe()


def test_every_number_of_pictures_can_be_planned(explorer: explorers.Planner) -> None:
    widths = []
    for images in IMAGES:
        explorer.set(images=images)
        found = explorer.compute(*explorer.inputs()).many
        widths.append(float(np.median(found.high - found.low)))
    assert widths == sorted(widths, reverse=True)


def test_an_exception_appears_in_the_status_line_and_leaves_again(explorer: explorers.Planner) -> None:
    before, working = explorer.png(), explorer.compute

    def broken(*_: object) -> None:
        raise KeyError("<b>no such thing</b>")

    explorer.compute = broken
    explorer.controls["seeds"].value = 9
    assert "&lt;b&gt;no such thing" in explorer._status.value
    assert explorer.png() == before
    explorer.compute = working
    explorer.controls["seeds"].value = 5
    assert explorer._status.value == ""


def test_unknown_values_are_refused(explorer: explorers.Planner) -> None:
    with pytest.raises(ValueError, match="images cannot be 3: choose one of 500, 1000"):
        explorer.set(images=3)
    with pytest.raises(ValueError, match="seeds cannot be 1: it lies between 2 and 20"):
        explorer.set(seeds=1)


def test_nothing_trains_when_a_control_moves(explorer: explorers.Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network ran in a callback")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    explorer.set(**MOVES)


def test_one_method_that_gains_nothing_needs_no_correction() -> None:
    text = explorers.Planner(gain=0, spread=0.1, seeds=2, images=500).describe()
    assert "correction" not in text
    assert "correction" in explorers.Planner(gain=0, methods=5).describe()


@pytest.mark.parametrize(("gain", "spread", "seeds", "images"), [(0.9, 0.4, 20, 1000), (0.5, 0.6, 18, 10_000)])
def test_less_than_what_is_wanted_is_not_rounded_up_to_it(gain: float, spread: float, seeds: int, images: int) -> None:
    text = explorers.Planner(gain=gain, spread=spread, seeds=seeds, images=images).describe()
    assert re.search(r"79\.\d% have the right verdict", text)
    assert not re.search(r"they reach 80 ?%", text)
