"""The explorer of alpha and temperature: values, pictures that change, its error line, and seeds that diverged."""

from __future__ import annotations

import io
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import score, write
from test_explorers import named

from course import explorers, plots
from kdlib import study
from kdlib.study.analysis import Results
from kdlib.study.plans import RunConfig
from kdlib.verdict import Verdict

pytestmark = pytest.mark.slow  # it draws

widgets = pytest.importorskip("ipywidgets")

VIEW = "application/vnd.jupyter.widget-view+json"
MOVES = {"metric": "agreement with the teacher", "alpha": 0.5, "temperature": 16.0}


def some(config: RunConfig, chance: random.Random) -> float | None:
    if (config.method, config.seed) == ("kd alpha=0 T=16", 2):
        return None
    if config.method in ("hard", "kd alpha=1"):  # the same runs, where kd's settings are those of hard labels
        return 0.885 + 0.001 * config.seed
    return score(config, chance)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("results")
    write(folder, score=some)
    write(folder, "grid", score=some, skip=lambda config: config.method == "kd alpha=0.9 T=1")
    return study.results("grid", folder=folder)


@pytest.fixture
def explorer(grid: Results) -> explorers.TemperatureMap:
    return explorers.TemperatureMap(grid)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


# What it has in common with the others.


def test_a_notebook_gets_a_view_a_picture_and_one_line(explorer: explorers.TemperatureMap) -> None:
    bundle, metadata = explorer._repr_mimebundle_()
    assert set(bundle) == {VIEW, "image/png", "text/plain"}
    assert bundle["text/plain"] == (
        "Temperature map explorer: metric = gain over hard labels, alpha = 0.1, temperature = 4"
    )
    assert metadata == {"image/png": {"alt": explorer.alt}}
    assert bundle["image/png"] == plots.reduce_colours(bytes(explorer.image.value))
    assert len(bundle["image/png"]) < 100_000
    assert explorer.image.get_state()["tooltip"] == explorer.alt


def test_controls_have_labels_and_work_with_a_keyboard(explorer: explorers.TemperatureMap) -> None:
    kinds = {name: type(control).__name__ for name, control in explorer.controls.items()}
    assert kinds == {"metric": "Dropdown", "alpha": "SelectionSlider", "temperature": "SelectionSlider"}
    assert set(named(explorer)) == set(explorer.controls)


def test_all_axes_are_labelled(explorer: explorers.TemperatureMap) -> None:
    plots.check_labels(explorer.figure)


@pytest.mark.parametrize("control", MOVES)
def test_moving_a_control_changes_picture_and_text_and_back_again(grid: Results, control: str) -> None:
    explorer = explorers.TemperatureMap(grid)
    before, text, start = explorer.png(), explorer._text.value, explorer.state[control]
    explorer.controls[control].value = MOVES[control]
    assert explorer.error == ""
    assert (pixels(explorer.png()) != pixels(before)).any()
    assert explorer._text.value != text
    explorer.controls[control].value = start
    assert explorer.png() == before
    assert explorer._text.value == text


def test_the_same_state_gives_the_same_picture_however_it_was_reached(grid: Results) -> None:
    there, fresh = explorers.TemperatureMap(grid), explorers.TemperatureMap(grid, **MOVES)
    for control, value in MOVES.items():
        there.controls[control].value = value
    assert there.png() == fresh.png()
    assert there.describe() == fresh.describe()


def test_artists_are_changed_in_place(explorer: explorers.TemperatureMap) -> None:
    children = [len(axes.get_children()) for axes in explorer.figure.axes]
    explorer.set(**MOVES)
    assert [len(axes.get_children()) for axes in explorer.figure.axes] == children


def test_the_blitted_picture_is_that_of_the_whole_figure(explorer: explorers.TemperatureMap) -> None:
    explorer.set(**MOVES)
    quick = pixels(explorer.png()).astype(int)
    for artist in (*explorer._cached_artists, *explorer._live_artists):
        artist.set_animated(False)
    explorer._canvas.draw()
    whole = np.asarray(explorer._canvas.buffer_rgba())[..., :3].astype(int)
    assert (np.abs(quick - whole).max(axis=2) > 40).mean() < 0.01


@pytest.mark.parametrize("metric", plots.MAP_METRICS)
def test_no_text_of_the_picture_is_cut(grid: Results, metric: str) -> None:
    explorer = explorers.TemperatureMap(grid, metric=metric)
    renderer = explorer._canvas.get_renderer()
    for text in (explorer._title, explorer._right.yaxis.label, *explorer._heatmap.texts.values()):
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0, text.get_text()
        assert box.x1 <= explorer.figure.bbox.x1, text.get_text()
        assert box.y1 <= explorer.figure.bbox.y1, text.get_text()
    assert explorer._title.get_window_extent(renderer).x1 < explorer._right.get_tightbbox(renderer).x0


def test_describe_is_the_text_below_the_picture(explorer: explorers.TemperatureMap) -> None:
    assert len(explorer.describe().splitlines()) == 3
    assert explorer._text.value.count("<br>") == 2
    assert not set("<>") & set(explorer.describe())


def test_compute_is_pure_and_cached(grid: Results) -> None:
    arguments = (grid, "calibration error", 0.5, 4.0)
    compute = explorers.TemperatureMap.compute
    first = compute(*arguments)
    assert compute(*arguments) is first
    compute.cache_clear()
    assert compute(*arguments) == first


def test_nothing_trains_when_a_control_moves(
    explorer: explorers.TemperatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network ran in a callback")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    explorer.set(**MOVES)


# Errors.


def test_a_cell_that_was_not_run_appears_in_the_status_line(explorer: explorers.TemperatureMap) -> None:
    before = explorer.png()
    with pytest.raises(ValueError, match=r"alpha 0\.9 with T 1 was not run. Choose another cell"):
        explorer.set(alpha=0.9, temperature=1.0)
    assert "alpha 0.9 with T 1 was not run" in explorer._status.value
    assert "still shows the settings before" in explorer._status.value
    assert explorer.png() == before
    explorer.controls["temperature"].value = 4.0
    assert explorer._status.value == ""
    assert explorer.png() != before


def test_an_exception_appears_in_the_status_line_and_leaves_again(explorer: explorers.TemperatureMap) -> None:
    before, working = explorer.png(), explorer.compute

    def broken(*_: Any) -> None:
        raise KeyError("<b>no such thing</b>")

    explorer.compute = broken
    explorer.controls["alpha"].value = 0.5
    assert "KeyError" in explorer._status.value
    assert "&lt;b&gt;no such thing" in explorer._status.value
    assert explorer.png() == before
    explorer.compute = working
    explorer.controls["alpha"].value = 0.1
    assert explorer._status.value == ""


def test_values_that_the_study_does_not_have_are_refused(explorer: explorers.TemperatureMap) -> None:
    with pytest.raises(ValueError, match=r"alpha cannot be 0\.3: choose one of 0\.0, 0\.1, 0\.5, 0\.9, 1\.0"):
        explorer.set(alpha=0.3)
    with pytest.raises(ValueError, match="metric cannot be 'loss': choose one of gain over hard labels, accuracy"):
        explorer.set(metric="loss")


def test_without_a_study_the_message_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="kdlib study grid"):
        explorers.TemperatureMap()


def test_results_of_another_kind_are_refused(grid: Results) -> None:
    with pytest.raises(ValueError, match="holds no grid of alpha and T"):
        explorers.TemperatureMap(study.results(folder=grid.sources[0].parent))


def test_the_shipped_study_is_the_default(grid: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "older-search").symlink_to(grid.sources[0].parent)
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    assert explorers.TemperatureMap().describe() == explorers.TemperatureMap(grid).describe()


# Values.


def test_the_details_are_those_of_the_study(grid: Results) -> None:
    name = grid.grid[0.1, 4.0]
    relative = explorers.TemperatureMap.compute(grid, "gain over hard labels", 0.1, 4.0)
    assert relative.value == relative.gain == grid.gain(name)
    assert set(relative.baseline.by_seed.values()) == {0.0}
    plain = explorers.TemperatureMap.compute(grid, "calibration error", 0.1, 4.0)
    assert plain.value == grid.score(name, "calibration_error")
    assert plain.gain == grid.gain(name, "calibration_error")
    assert plain.baseline == grid.score("hard", "calibration_error")


def test_points_mean_and_band_are_drawn_where_they_are(grid: Results) -> None:
    explorer = explorers.TemperatureMap(grid)
    found = grid.gain("kd alpha=0.1 T=4")
    assert list(explorer._seeds.get_ydata()) == pytest.approx([100 * value for value in found.by_seed.values()])
    assert list(explorer._baseline.get_ydata()) == [0] * 5
    assert explorer._mean.get_ydata() == pytest.approx([100 * found.mean] * 2)
    assert explorer._band.get_y() == pytest.approx(100 * found.low)
    assert explorer._band.get_y() + explorer._band.get_height() == pytest.approx(100 * found.high)
    assert explorer._selection.get_xy() == pytest.approx((2 - 0.49, 1 - 0.49))  # third T, second alpha from below
    low, high = explorer._right.get_ylim()
    explorer.set(alpha=0.5)
    assert explorer._right.get_ylim() == (low, high)  # cells can be compared


@pytest.mark.parametrize("metric", plots.MAP_METRICS)
def test_no_interval_is_cut_by_the_axis(grid: Results, metric: str) -> None:
    explorer = explorers.TemperatureMap(grid, metric=metric)
    low, high = explorer._right.get_ylim()
    found = [cell.value for cell in plots.heatmap_cells(grid, metric).values()]
    finite = [one for one in found if math.isfinite(one.half_width)]
    assert finite
    for one in finite:
        assert low <= 100 * one.low <= 100 * one.high <= high


def test_the_text_gives_mean_seeds_interval_and_verdict(grid: Results) -> None:
    explorer, found = explorers.TemperatureMap(grid), grid.gain("kd alpha=0.1 T=4")
    first, second, third = explorer.describe().splitlines()
    assert found.verdict is Verdict.BEATS
    assert first.startswith(
        f"alpha 0.1, T 4: gain over hard labels {found.format()} points, the mean (and interval) of 5"
    )
    assert f"0: {100 * found.by_seed[0]:+.2f}, 1: {100 * found.by_seed[1]:+.2f}" in second
    assert third.startswith("BEATS hard labels: the interval of the difference")
    assert "lies above zero." in third
    verdicts = [grid.gain(name).verdict for name in grid.grid.values()]
    assert f"{verdicts.count(Verdict.BEATS)} beat hard labels" in third
    assert "1 have no verdict of 24 cells (20 intervals that hold together with 95 %)" in third


def test_less_calibration_error_is_better_in_words_too(tmp_path: Path) -> None:
    write(tmp_path, score=lambda config, chance: score(config, chance) - 0.45)
    write(
        tmp_path, "grid", score=lambda config, chance: score(config, chance) + 0.05
    )  # which lowers the synthetic error
    explorer = explorers.TemperatureMap(study.results("grid", folder=tmp_path), metric="calibration error")
    assert "BEATS hard labels" in explorer.describe()
    assert "lies below zero, and less is better." in explorer.describe()


def test_an_inconclusive_cell_is_not_called_equal(grid: Results) -> None:
    explorer = explorers.TemperatureMap(grid)
    name = next(n for n in grid.grid.values() if grid.gain(n).verdict is Verdict.INCONCLUSIVE)
    alpha, temperature = next(setting for setting, other in grid.grid.items() if other == name)
    explorer.set(alpha=alpha, temperature=temperature)
    assert "INCONCLUSIVE" in explorer.describe()


def test_a_cell_with_a_diverged_seed_shows_the_others_and_no_mean(grid: Results) -> None:
    explorer = explorers.TemperatureMap(grid, alpha=0.0, temperature=16.0)
    assert explorer._heatmap.texts[0.0, 16.0].get_text() == "diverged"
    assert [math.isnan(value) for value in explorer._seeds.get_ydata()] == [False, False, True, False, False]
    assert not explorer._band.get_visible()
    first, second, third = explorer.describe().splitlines()
    assert "has no mean, as seed 2 diverged (The loss is nan" in first
    assert "2: none" in second
    assert third.startswith("No verdict: seed 2 diverged")


def test_alpha_1_is_described_as_hard_labels(grid: Results) -> None:
    explorer = explorers.TemperatureMap(grid, alpha=1.0, temperature=1.0)
    assert "Alpha 1 is hard labels alone" in explorer.describe()
    assert "INCONCLUSIVE: every seed differs from hard labels by the same +0.00 points" in explorer.describe()
    assert not explorer._band.get_visible()


def test_who_loses_loses_to_hard_labels() -> None:
    text = explorers.TemperatureMap(metric="calibration error", alpha=0, temperature=2).describe()
    assert "LOSES to hard labels: the interval" in text
