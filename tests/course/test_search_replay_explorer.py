"""The explorer that replays searches: values, pictures that change, its error line, its text."""

from __future__ import annotations

import io
import re
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_explorers import named
from test_search_replay import made_replay

from course import explorers, plots
from course.experiments.search_replay import RANDOM, TPE, Replay

pytestmark = pytest.mark.slow  # it draws

widgets = pytest.importorskip("ipywidgets")

VIEW = "application/vnd.jupyter.widget-view+json"
START: dict[str, Any] = {"sampler": TPE, "trials": 4}
MOVES: dict[str, Any] = {"sampler": RANDOM, "trials": 7, "seed": 2, "number": 3}


@pytest.fixture(scope="module")
def replay() -> Replay:
    return made_replay()


@pytest.fixture
def explorer(replay: Replay) -> explorers.SearchReplay:
    return explorers.SearchReplay(replay, **START)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_notebook_gets_a_view_a_picture_and_one_line(explorer: explorers.SearchReplay) -> None:
    bundle, metadata = explorer._repr_mimebundle_()
    assert set(bundle) == {VIEW, "image/png", "text/plain"}
    assert bundle["text/plain"] == "Search replay explorer: sampler = TPE, trials = 4, seed = 0, number = 1"
    assert metadata == {"image/png": {"alt": explorer.alt}}
    assert len(bundle["image/png"]) < 100_000
    assert explorer.image.get_state()["tooltip"] == explorer.alt
    plots.check_labels(explorer.figure)


def test_controls_have_labels_and_work_with_a_keyboard(explorer: explorers.SearchReplay) -> None:
    kinds = {name: type(control).__name__ for name, control in explorer.controls.items()}
    assert kinds == {
        "sampler": "Dropdown",
        "trials": "IntSlider",
        "seed": "SelectionSlider",
        "number": "IntSlider",
    }
    assert set(named(explorer)) == set(explorer.controls)


def test_the_picture_s_name_holds_for_every_setting(explorer: explorers.SearchReplay) -> None:
    """It does not change with the controls, and in some states what was kept is above what was promised."""
    assert not {"lower", "higher", "above", "below"} & set(re.findall(r"\w+", explorer.alt))


@pytest.mark.parametrize("control", MOVES)
def test_moving_a_control_changes_picture_and_text_and_back_again(replay: Replay, control: str) -> None:
    explorer = explorers.SearchReplay(replay, **START)
    before, text, start = explorer.png(), explorer._text.value, explorer.state[control]
    explorer.controls[control].value = MOVES[control]
    assert explorer.error == ""
    assert (pixels(explorer.png()) != pixels(before)).any()
    assert explorer._text.value != text
    explorer.controls[control].value = start
    assert explorer.png() == before
    assert explorer._text.value == text


def test_the_same_state_gives_the_same_picture_however_it_was_reached(replay: Replay) -> None:
    there, fresh = explorers.SearchReplay(replay, **START), explorers.SearchReplay(replay, **MOVES)
    for control, value in MOVES.items():
        there.controls[control].value = value
    assert there.png() == fresh.png()
    assert there.describe() == fresh.describe()


def test_artists_are_changed_in_place(explorer: explorers.SearchReplay) -> None:
    children = [len(axes.get_children()) for axes in explorer.figure.axes]
    explorer.set(**MOVES)
    assert [len(axes.get_children()) for axes in explorer.figure.axes] == children


def test_the_blitted_picture_is_that_of_the_whole_figure(explorer: explorers.SearchReplay) -> None:
    explorer.set(**MOVES)
    quick = pixels(explorer.png()).astype(int)
    for artist in (*explorer._cached_artists, *explorer._live_artists):
        artist.set_animated(False)
    explorer._canvas.draw()
    whole = np.asarray(explorer._canvas.buffer_rgba())[..., :3].astype(int)
    assert (np.abs(quick - whole).max(axis=2) > 40).mean() < 0.01


def test_the_values_are_those_of_the_map(replay: Replay) -> None:
    found = explorers.SearchReplay.compute(replay, TPE, 2, 3, 5)
    values, worth = replay.map.promised(2), replay.map.kept(2)
    assert found.order == replay.orders[2, 2][:5]
    best = max(found.order, key=lambda one: values[one])
    assert found.best[-1] == best
    assert (found.promised[-1], found.kept[-1]) == pytest.approx((values[best], worth[best]))
    assert found.default == pytest.approx(worth[replay.map.default])
    assert explorers.SearchReplay.compute(replay, TPE, 2, 3, 5) is found


def test_one_more_trial_keeps_all_that_was_before(replay: Replay) -> None:
    few, more = (explorers.SearchReplay.compute(replay, RANDOM, 1, 2, trials) for trials in (4, 5))
    assert more.order[:4] == few.order
    assert more.promised[:4] == few.promised
    assert all(second >= first for first, second in zip(more.promised, more.promised[1:], strict=False))


def test_what_was_tried_is_drawn_and_nothing_else(replay: Replay) -> None:
    explorer = explorers.SearchReplay(replay, **MOVES)
    shown = explorer.compute(*explorer.inputs())
    assert [text.get_text() for text in explorer._numbers] == [
        str(shown.order.index(place) + 1) if place in shown.order else "" for place in range(9)
    ]
    assert np.ma.getmaskarray(explorer._image.get_array()).sum() == 9 - 7
    assert list(explorer._kept.get_ydata()) == list(shown.kept)
    column, row = (value + 0.48 for value in explorer._frame.get_xy())
    assert round(row) * 3 + round(column) == shown.best[-1]


def test_the_text_says_what_the_picture_shows(replay: Replay) -> None:
    explorer = explorers.SearchReplay(replay, sampler=TPE, trials=1)
    setting = replay.map.settings[replay.orders[0, 0][0]]
    first, second, third = explorer.describe().splitlines()
    assert first == f"TPE, seed 0, order 1, 1 trial: the best is alpha {setting[0]:g}, T {setting[1]:g}."
    steps = explorer.compute(*explorer.inputs())
    assert f"It promises {steps.promised[0]:.2f} %" in second
    assert f"has {steps.default:.2f} % there" in third


def test_an_error_is_told_and_the_picture_stays(
    explorer: explorers.SearchReplay, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = explorer.png()

    def broken(*_: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(type(explorer), "compute", staticmethod(broken))
    explorer.controls["trials"].value = 6
    assert explorer.error == "RuntimeError: injected"
    assert "injected" in explorer._status.value
    assert explorer.png() == before


def test_a_value_that_is_not_there_is_refused(explorer: explorers.SearchReplay) -> None:
    for values in ({"sampler": "grid"}, {"trials": 99}, {"seed": 17}, {"orders": 1}):
        with pytest.raises(ValueError, match="cannot be|control of the search replay explorer"):
            explorer.set(**values)


def test_the_shipped_searches_are_shown_without_any_argument() -> None:
    explorer = explorers.SearchReplay(trials=6)
    assert "order 1, 6 trials:" in explorer.describe()
    assert explorer.controls["number"].max == 40


def test_what_is_said_of_the_usual_setting_is_true(replay: Replay) -> None:
    said = set()
    for number, seed in product((1, 2, 3), (0, 1, 2)):
        for trials in (1, 3, 8):
            explorer = explorers.SearchReplay(replay, sampler=RANDOM, seed=seed, number=number, trials=trials)
            result = explorer.compute(*explorer.inputs())
            usual, text = replay.map.default, explorer.describe()
            expected = (
                "the usual setting itself"
                if result.best[-1] == usual
                else "which was tried as well"
                if usual in result.order
                else "which nobody searched"
            )
            assert expected in text
            said.add(expected)
    assert len(said) == 3
