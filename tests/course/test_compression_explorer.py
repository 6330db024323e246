"""The explorer of compressed networks: values, pictures that change, its error line, its text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from test_compression_results import write_sweep, write_trained
from test_explorers import named

from course import explorers, plots
from course.experiments import compression_results
from course.experiments.compression import HARD, KD, RAW
from course.experiments.compression_results import CompressionResults

pytestmark = pytest.mark.slow  # it draws

widgets = pytest.importorskip("ipywidgets")

VIEW = "application/vnd.jupyter.widget-view+json"
MOVES = {"way": "channels", "training": HARD, "cost": "macs"}
START = {"way": "int2", "training": KD}
LATENCY = {"channels": 0.4, "int8": 0.5}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> CompressionResults:
    folder = tmp_path_factory.mktemp("results")
    write_sweep(folder)
    write_trained(folder, ["channels", "int2", "resnet8"])
    return compression_results.load(folder)


@pytest.fixture
def explorer(results: CompressionResults) -> explorers.Compression:
    return explorers.Compression(results, LATENCY, **START)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_notebook_gets_a_view_a_picture_and_one_line(explorer: explorers.Compression) -> None:
    bundle, metadata = explorer._repr_mimebundle_()
    assert set(bundle) == {VIEW, "image/png", "text/plain"}
    assert bundle["text/plain"] == "Compression explorer: way = int2, training = kd, cost = bytes"
    assert metadata == {"image/png": {"alt": explorer.alt}}
    assert len(bundle["image/png"]) < 100_000
    assert explorer.image.get_state()["tooltip"] == explorer.alt
    plots.check_labels(explorer.figure)


def test_controls_have_labels_and_work_with_a_keyboard(explorer: explorers.Compression) -> None:
    kinds = {name: type(control).__name__ for name, control in explorer.controls.items()}
    assert kinds == {"way": "SelectionSlider", "training": "Dropdown", "cost": "Dropdown"}
    assert set(named(explorer)) == set(explorer.controls)


@pytest.mark.parametrize("control", MOVES)
def test_moving_a_control_changes_picture_and_text_and_back_again(results: CompressionResults, control: str) -> None:
    explorer = explorers.Compression(results, LATENCY, **START)
    before, text, start = explorer.png(), explorer._text.value, explorer.state[control]
    explorer.controls[control].value = MOVES[control]
    assert explorer.error == ""
    assert (pixels(explorer.png()) != pixels(before)).any()
    assert explorer._text.value != text
    explorer.controls[control].value = start
    assert explorer.png() == before
    assert explorer._text.value == text


def test_the_same_state_gives_the_same_picture_however_it_was_reached(results: CompressionResults) -> None:
    there, fresh = explorers.Compression(results, LATENCY, **START), explorers.Compression(results, LATENCY, **MOVES)
    for control, value in MOVES.items():
        there.controls[control].value = value
    assert there.png() == fresh.png()
    assert there.describe() == fresh.describe()


def test_artists_are_changed_in_place(explorer: explorers.Compression) -> None:
    children = [len(axes.get_children()) for axes in explorer.figure.axes]
    explorer.set(**MOVES)
    assert [len(axes.get_children()) for axes in explorer.figure.axes] == children


def test_the_blitted_picture_is_that_of_the_whole_figure(explorer: explorers.Compression) -> None:
    explorer.set(**MOVES)
    quick = pixels(explorer.png()).astype(int)
    for artist in (*explorer._cached_artists, *explorer._live_artists):
        artist.set_animated(False)
    explorer._canvas.draw()
    whole = np.asarray(explorer._canvas.buffer_rgba())[..., :3].astype(int)
    assert (np.abs(quick - whole).max(axis=2) > 40).mean() < 0.01


def test_the_values_are_those_of_the_rows(results: CompressionResults) -> None:
    found = explorers.Compression.compute(results, tuple(LATENCY.items()), "channels", KD, "bytes")
    one = results.by_key["channels", KD]
    assert found.network is one
    shares = [one.bytes / results.whole.bytes, one.zipped_bytes / results.whole.zipped_bytes]
    assert found.shares == pytest.approx((*shares, one.macs / results.whole.macs, 0.4))
    assert found.gain in results.gains()
    assert all(other.bytes <= one.bytes and other.accuracy > one.accuracy for other in found.better)
    assert explorers.Compression.compute(results, tuple(LATENCY.items()), "channels", KD, "bytes") is found
    raw = explorers.Compression.compute(results, (), "channels", RAW, "bytes")
    assert (raw.gain, raw.shares[-1]) == (None, None)


def test_ring_and_bars_are_drawn_where_they_are(results: CompressionResults) -> None:
    explorer = explorers.Compression(results, LATENCY, **MOVES)
    one = results.by_key["channels", HARD]
    assert [float(values[0]) for values in explorer._ring.get_data()] == pytest.approx([one.macs, one.accuracy])
    widths = [bar.get_width() for bar in explorer._bars]
    whole = results.whole
    shares = [one.bytes / whole.bytes, one.zipped_bytes / whole.zipped_bytes, one.macs / whole.macs, 0.4]
    assert widths == pytest.approx([100 * share for share in shares])
    assert explorer._texts[3].get_text() == "40 %"
    explorer.set(way="resnet8")
    assert (explorer._bars[3].get_width(), explorer._texts[3].get_text()) == (0, "not measured")
    left, right = explorer._map.get_xlim()
    assert all(left < other.macs < right for other in results.by_key.values())


@pytest.mark.parametrize("share", [0.01, 0.99, 1.15, 1.2, 1.3, 1.5, 1.7, 30.0])
def test_a_number_lies_beside_its_bar_or_on_it_and_within_the_axes(results: CompressionResults, share: float) -> None:
    explorer = explorers.Compression(results, {"channels": share}, way="channels")
    axes = explorer.figure.axes[1]
    bar, text = axes.patches[-1], axes.texts[-1]
    assert text.get_text() == f"{100 * share:.0f} %"
    first, last = axes.transData.inverted().transform(text.get_window_extent())[:, 0]
    left, right = axes.get_xlim()
    assert left < first < last < right
    is_on_the_bar = last < bar.get_width()
    assert is_on_the_bar or bar.get_width() < first
    colours = np.array([to_rgb(one) for one in (text.get_color(), bar.get_facecolor() if is_on_the_bar else "white")])
    assert np.abs(np.diff(colours, axis=0)).min() > 0.5


def test_the_text_has_all_four_scales_and_the_verdict(explorer: explorers.Compression) -> None:
    explorer.set(way="channels", training=KD)
    first, second, third = explorer.describe().splitlines()
    assert explorer._text.value.count("<br>") == 2
    assert "half of channels removed, distilled: " in first
    assert "the mean of 5 seeds" in first
    assert "points below the whole network" in first
    assert "7.8 million MACs (25%), time 40%" in second
    assert third.startswith("Over hard labels: +0.")
    assert "BEATS" in third
    explorer.set(way="resnet20", training=RAW)
    assert "points below" not in explorer.describe()
    assert "None that has as many bytes or fewer is more accurate." in explorer.describe()


def test_only_trainings_that_were_run_can_be_chosen(explorer: explorers.Compression) -> None:
    explorer.controls["way"].value = "int6"
    assert (explorer.state["training"], explorer.error) == (RAW, "")
    assert explorer.describe().startswith("6 bits, no further training: ")
    with pytest.raises(ValueError, match="training cannot be 'kd': choose one of raw"):
        explorer.set(training=KD)
    explorer.controls["way"].value = "resnet8"
    assert explorer.state["training"] == KD
    assert [name for _, name in explorer.controls["training"].options] == [HARD, KD]
    explorer.set(way="channels", training=RAW)
    assert explorer.state == {"way": "channels", "training": RAW, "cost": "bytes"}


def test_a_training_that_was_chosen_comes_back_where_it_was_run(results: CompressionResults) -> None:
    """Else a walk along the ways would end at networks that were not trained further, beside distilled ones."""
    explorer = explorers.Compression(results, LATENCY, way="channels", training=HARD)
    way = explorer.controls["way"]
    seen = []
    for name in ("int6", "int4", "int2", "int6", "channels"):
        way.value = name
        seen.append(explorer.state["training"])
    assert seen == [RAW, RAW, HARD, RAW, HARD]
    explorer.controls["training"].value = RAW
    for name in ("int6", "int2"):
        way.value = name
    assert explorer.state["training"] == RAW


def test_until_one_is_chosen_the_last_training_is_shown(results: CompressionResults) -> None:
    explorer = explorers.Compression(results)
    seen = []
    for name in ("channels", "int6", "int2", "resnet20", "channels"):
        explorer.controls["way"].value = name
        seen.append(explorer.state["training"])
    assert seen == [KD, RAW, KD, RAW, KD]


def test_a_training_that_is_given_at_the_start_is_chosen(results: CompressionResults) -> None:
    explorer = explorers.Compression(results, way="channels", training=RAW)
    assert explorer.state["training"] == RAW
    explorer.controls["way"].value = "int2"
    assert explorer.state["training"] == RAW


def test_what_was_not_run_is_named(results: CompressionResults) -> None:
    with pytest.raises(ValueError, match="6 bits, distilled, was not run. Choose another training"):
        explorers.Compression.compute(results, (), "int6", KD, "bytes")


def test_an_exception_appears_in_the_status_line_and_leaves_again(explorer: explorers.Compression) -> None:
    before, working = explorer.png(), explorer.compute

    def broken(*_: Any) -> None:
        raise KeyError("<b>no such thing</b>")

    explorer.compute = broken
    explorer.controls["cost"].value = "macs"
    assert "&lt;b&gt;no such thing" in explorer._status.value
    assert explorer.png() == before
    explorer.compute = working
    explorer.controls["cost"].value = "bytes"
    assert explorer._status.value == ""


def test_unknown_values_are_refused(explorer: explorers.Compression) -> None:
    with pytest.raises(ValueError, match="cost cannot be 'seconds': choose one of bytes, zipped_bytes, macs"):
        explorer.set(cost="seconds")


def test_nothing_trains_when_a_control_moves(explorer: explorers.Compression, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network ran in a callback")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    explorer.set(**MOVES)


def test_without_rows_the_message_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    compression_results.load.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"course\.experiments\.compression_sweep"):
        explorers.Compression()
    compression_results.load.cache_clear()
