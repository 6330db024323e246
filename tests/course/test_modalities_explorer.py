"""The explorer of modalities: values, pictures that change, its error line, its text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_explorers import named
from test_modalities import write_results

from course import explorers, plots
from course.experiments import modalities_results
from course.experiments.modalities import ALL, SHARES, TEMPERATURES
from course.experiments.modalities_results import ModalityResults

widgets = pytest.importorskip("ipywidgets")

VIEW = "application/vnd.jupyter.widget-view+json"
START = {"labels": 2, "wrong": 0.0, "temperature": 2.0}
MOVES = {"labels": ALL, "wrong": 0.75, "temperature": 8.0}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> ModalityResults:
    folder = tmp_path_factory.mktemp("results")
    write_results(folder)
    return modalities_results.load(folder)


@pytest.fixture
def explorer(results: ModalityResults) -> explorers.Modalities:
    return explorers.Modalities(results)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_notebook_gets_a_view_a_picture_and_one_line(explorer: explorers.Modalities) -> None:
    bundle, metadata = explorer._repr_mimebundle_()
    assert set(bundle) == {VIEW, "image/png", "text/plain"}
    assert bundle["text/plain"] == "Modalities explorer: labels = 2, wrong = 0, temperature = 2"
    assert metadata == {"image/png": {"alt": explorer.alt}}
    assert len(bundle["image/png"]) < 100_000
    assert explorer.image.get_state()["tooltip"] == explorer.alt
    plots.check_labels(explorer.figure)


def test_controls_have_labels_and_work_with_a_keyboard(explorer: explorers.Modalities) -> None:
    kinds = {name: type(control).__name__ for name, control in explorer.controls.items()}
    assert kinds == dict.fromkeys(START, "SelectionSlider")
    assert set(named(explorer)) == set(explorer.controls)
    assert explorer.state == START


@pytest.mark.parametrize("control", MOVES)
def test_moving_a_control_changes_picture_and_text_and_back_again(results: ModalityResults, control: str) -> None:
    explorer = explorers.Modalities(results)
    before, text = explorer.png(), explorer._text.value
    explorer.controls[control].value = MOVES[control]
    assert explorer.error == ""
    assert (pixels(explorer.png()) != pixels(before)).any()
    assert explorer._text.value != text
    explorer.controls[control].value = START[control]
    assert explorer.png() == before
    assert explorer._text.value == text


@pytest.mark.slow
def test_the_same_state_gives_the_same_picture_however_it_was_reached(results: ModalityResults) -> None:
    there, fresh = explorers.Modalities(results), explorers.Modalities(results, **MOVES)
    for control, value in MOVES.items():
        there.controls[control].value = value
    assert there.png() == fresh.png()
    assert there.describe() == fresh.describe()


def test_artists_are_changed_in_place_and_blitting_is_exact(explorer: explorers.Modalities) -> None:
    children = [len(axes.get_children()) for axes in explorer.figure.axes]
    explorer.set(**MOVES)
    assert [len(axes.get_children()) for axes in explorer.figure.axes] == children
    quick = pixels(explorer.png()).astype(int)
    for artist in explorer._live_artists:
        artist.set_animated(False)
    explorer._canvas.draw()
    whole = np.asarray(explorer._canvas.buffer_rgba())[..., :3].astype(int)
    assert (np.abs(quick - whole).max(axis=2) > 40).mean() < 0.01


def test_the_values_are_those_of_the_rows(results: ModalityResults) -> None:
    grid = dict(results.grid)
    found = explorers.Modalities.compute(results, 10, 0.5, 4.0)
    assert found.chosen == grid[10, 0.5, 4.0]
    assert found.by_share == tuple(grid[10, share, 4.0] for share in SHARES)
    assert found.by_temperature == tuple(grid[10, 0.5, one] for one in TEMPERATURES)
    assert found.mean == pytest.approx(sum(found.chosen) / 5)
    assert found.alone == pytest.approx(52)  # ten labels of each class, without a teacher
    assert explorers.Modalities.compute(results, ALL, 0.0, 2.0).alone == pytest.approx(67)
    assert explorers.Modalities.compute(results, 10, 0.5, 4.0) is found


def test_ring_line_and_dots_are_drawn_where_they_are(results: ModalityResults) -> None:
    explorer = explorers.Modalities(results, **MOVES)
    found = explorers.Modalities.compute(results, ALL, 0.75, 8.0)
    for artists, x, cells in (
        (explorer._shares, 75, found.by_share),
        (explorer._temperatures, 8, found.by_temperature),
    ):
        alone, dots, line, chosen = artists
        assert [float(values[0]) for values in chosen.get_data()] == pytest.approx([x, found.mean])
        assert list(line.get_ydata()) == pytest.approx([np.mean(cell) for cell in cells])
        assert list(dots.get_ydata()) == pytest.approx([value for cell in cells for value in cell])
        assert alone.get_ydata()[0] == pytest.approx(found.alone)


def test_the_text_says_mean_range_and_what_the_teacher_is_worth(explorer: explorers.Modalities) -> None:
    explorer.set(labels=10, wrong=0.5, temperature=4)
    first, second = explorer.describe().splitlines()
    assert first.startswith("10 labels a class, 50% of the pairs wrong, T 4: 47.0 % of the test windows")
    assert "the mean of 5 splits (46.0 to 48.0)" in first
    alone = "The same labels alone, at a learning rate of their own: 52.0 %."
    assert second == f"{alone} Difference of the means: -5.0 points."


def test_an_exception_appears_in_the_status_line_and_leaves_again(explorer: explorers.Modalities) -> None:
    before, working = explorer.png(), explorer.compute

    def broken(*_: Any) -> None:
        raise KeyError("<b>no such thing</b>")

    explorer.compute = broken
    explorer.controls["wrong"].value = 1.0
    assert "&lt;b&gt;no such thing" in explorer._status.value
    assert explorer.png() == before
    explorer.compute = working
    explorer.controls["wrong"].value = 0.0
    assert explorer._status.value == ""


def test_what_is_not_there_is_refused(results: ModalityResults, explorer: explorers.Modalities) -> None:
    with pytest.raises(ValueError, match=r"temperature cannot be 3: choose one of 1\.0, 2\.0, 4\.0, 8\.0"):
        explorer.set(temperature=3)
    some = ModalityResults(results.scores, results.grid[:10])
    with pytest.raises(ValueError, match="was not run. Make it: .* --grid"):
        explorers.Modalities(some, labels=10)
    with pytest.raises(ValueError, match="The grid has not been run. Make it: .* --grid"):
        explorers.Modalities(ModalityResults(results.scores))


def test_nothing_trains_when_a_control_moves(explorer: explorers.Modalities, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network ran in a callback")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    explorer.set(**MOVES)


def test_without_rows_the_message_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    modalities_results.load.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"course\.experiments\.modalities"):
        explorers.Modalities()
    modalities_results.load.cache_clear()
