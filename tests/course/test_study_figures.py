"""Figures of the study: what is drawn is what the rows say, everything can be read, and nothing is left out."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from synthetic import score, write

from course import plots, readme_images
from kdlib import study
from kdlib.study.analysis import Results
from kdlib.study.history import HistoryFile
from kdlib.study.plans import RunConfig
from kdlib.verdict import Verdict

pytestmark = pytest.mark.slow  # it draws

LOST = "seed 3 diverged (The loss is nan (not a number) at step 7.)"


def troubled(config: RunConfig, chance: random.Random) -> float | None:
    """Plausible scores, one method that diverges once, one that hardly learns, and one seed for all of dist."""
    if (config.method, config.seed) == ("fsp", 3) or (config.method, config.seed) == ("kd alpha=0 T=16", 3):
        return None
    if config.method == "layer-information":
        return score(config, chance) - 0.3 * chance.random()
    if config.method in ("hint", "hard", "kd alpha=1"):
        return 0.885 + 0.001 * config.seed
    return score(config, chance)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write(folder, ("full", "controls"), score=troubled, skip=lambda c: (c.method, c.seed) == ("own-size", 4))
    write(folder, "grid", score=troubled)
    for images, shift in ((1_000, -0.08), (55_000, 0.03)):
        write(folder, "short", images=images, score=lambda config, chance, s=shift: score(config, chance) + s)
    keep_epochs(study.results(images=55_000, folder=folder))
    return folder


def keep_epochs(results: Results) -> None:
    """Three epochs for each run of hard labels and logits, but not for the seed 0."""
    file = HistoryFile(results.sources[0])
    for method, gain in (("hard", 0.0), ("kd", 0.01)):
        for seed, row in results.runs(method).items():
            accuracies = [0.8 + gain, 0.85 + 2 * gain, 0.9 + 0.001 * seed + gain]
            epochs = [{"loss": 0.5, "validation_loss": 0.4, "validation_accuracy": value} for value in accuracies]
            if seed > 0:
                file.add(row["fingerprint"], epochs)


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return study.results(folder=folder)


@pytest.fixture(scope="module")
def grid(folder: Path) -> Results:
    return study.results("grid", folder=folder)


@pytest.fixture(scope="module")
def several(folder: Path) -> list[Results]:
    return [study.results(images=images, folder=folder) for images in (55_000, 1_000, 10_000)]


def test_the_readmes_picture_is_drawn_from_the_results(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "results", partial(study.results, folder=folder))
    for name in ("one.png", "two.png"):
        readme_images.main(["study", str(tmp_path / name)])
    output = capsys.readouterr().out
    assert "Gain over hard labels in points of test accuracy" in output
    assert "distances and angles (RKD)" in output
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width > 900
    with pytest.raises(FileNotFoundError, match="kdlib study"):
        readme_images.main(["study", str(tmp_path / "x.png"), "--images", "77"])
    assert not (tmp_path / "x.png").exists()


def draw_map(grid: Results, metric: str = "gain over hard labels") -> Any:
    """The map of alpha and temperature as the explorer draws it, alone."""
    fig, axes = plots.figure(7.4, 4.8)
    heatmap = plots.AnnotatedHeatmap(axes, grid.alphas, grid.temperatures)
    heatmap.fill(plots.heatmap_cells(grid, metric), diverging=plots.MAP_METRICS[metric][1])
    return fig


FIGURES = {
    "forest": lambda results, grid, several: plots.forest(results),
    "forest of a few": lambda results, grid, several: plots.forest(results, ["kd", "shuffled"]),
    "epochs": lambda results, grid, several: plots.accuracy_by_epoch(several[0], ["kd"]),
    "images": lambda results, grid, several: plots.accuracy_against_images(several),
    **{f"map of {m}": lambda results, grid, several, m=m: draw_map(grid, m) for m in plots.MAP_METRICS},
}


@pytest.fixture(params=FIGURES.values(), ids=FIGURES.keys(), scope="module")
def figure(request: pytest.FixtureRequest, results: Results, grid: Results, several: list[Results]) -> Any:
    return request.param(results, grid, several)


# What all have in common.


def test_every_axis_is_labelled_and_the_file_is_small(figure: Any) -> None:
    plots.check_labels(figure)
    assert len(plots.png(figure)) < 150_000


def shown_texts(fig: Any) -> list[Any]:
    """All texts that are drawn; matplotlib also keeps labels of ticks beyond the ends of an axis."""
    from matplotlib.text import Text

    axes = [axis for one in fig.axes if one.axison for axis in (one.xaxis, one.yaxis)]
    kept = {text for axis in axes for tick in axis.get_major_ticks() for text in (tick.label1, tick.label2)}
    drawn = {text for axis in axes for tick in axis._update_ticks() for text in (tick.label1, tick.label2)}
    texts = {text for text in fig.findobj(Text) if text not in kept - drawn}
    hidden = {
        text for one in fig.axes if not one.axison for axis in (one.xaxis, one.yaxis) for text in axis.findobj(Text)
    }
    return [text for text in texts - hidden if text.get_visible() and text.get_text().strip()]


def test_no_text_is_cut_or_lies_on_another(figure: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with plots.style():
        canvas.draw()
    renderer = canvas.get_renderer()
    boxes = {text: text.get_window_extent(renderer) for text in shown_texts(figure)}
    for text, box in boxes.items():
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert inside, text.get_text()
    for (one, box), (other, beside) in combinations(boxes.items(), 2):
        apart = box.x1 <= beside.x0 or beside.x1 <= box.x0 or box.y1 <= beside.y0 + 1 or beside.y1 <= box.y0 + 1
        assert apart, (one.get_text(), other.get_text())


def test_the_same_numbers_give_the_same_picture(results: Results) -> None:
    assert plots.png(plots.forest(results)) == plots.png(plots.forest(results))


# Forest and gap.


def words(fig: Any) -> list[str]:
    return [text.get_text() for text in fig.axes[1].texts]


def labels(fig: Any) -> list[str]:
    return [label.get_text() for label in fig.axes[0].get_yticklabels()]


def marks(fig: Any, title: str) -> dict[str, tuple[float, str]]:
    """The markers on the line of a method: x and colour by marker."""
    row_number = labels(fig).index(title)
    return {
        line.get_marker(): (line.get_xdata()[0], to_hex(line.get_color()).upper())
        for line in fig.axes[0].lines
        if len(line.get_ydata()) and line.get_ydata()[0] == row_number
    }


def test_all_methods_are_there_by_family_and_the_controls_come_last(results: Results) -> None:
    fig = plots.forest(results)
    titles = labels(fig)
    assert {results.title(name) for name in results.methods} <= set(titles)
    headings = [title for title in titles if title in ("Logits", "Features", "Relations", "Combinations", "Controls")]
    assert headings == ["Logits", "Features", "Relations", "Combinations", "Controls"]
    assert titles.index("Controls") < titles.index("logits of another image")
    logits = [results.gain(name).mean for name in ("kd", "dkd", "dist", "standardized")]
    drawn = [marks(fig, title).get("o", marks(fig, title).get("D"))[0] for title in titles[1:5]]
    assert drawn == pytest.approx([100 * mean for mean in sorted(logits, reverse=True)])


def test_marker_colour_and_word_say_the_same_verdict(results: Results) -> None:
    fig = plots.forest(results)
    for name in ("kd", "shuffled", "attention"):
        found = results.gain(name)
        role = {Verdict.BEATS: plots.DISTILLED, Verdict.LOSES: plots.BASELINE, Verdict.INCONCLUSIVE: plots.NEUTRAL}
        role = role[found.verdict]
        assert marks(fig, found.title)[role.marker] == (pytest.approx(100 * found.mean), role.colour.upper())
        row = words(fig).index(f"{100 * found.mean:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})")
        assert words(fig)[row + 1] == str(found.verdict)
    assert {results.gain(name).verdict for name in ("kd", "shuffled")} == {Verdict.BEATS, Verdict.LOSES}


def test_the_interval_is_drawn_from_end_to_end(results: Results) -> None:
    fig, found = plots.forest(results), results.gain("kd")
    row_number = labels(fig).index(found.title)
    (whisker,) = [x for x in fig.axes[0].lines if x.get_linestyle() == "-" and list(x.get_ydata()) == [row_number] * 2]
    assert list(whisker.get_xdata()) == pytest.approx([100 * found.low, 100 * found.high])


def test_each_seed_is_a_dot(results: Results) -> None:
    fig = plots.forest(results)
    row_number = labels(fig).index("logits (KD)")
    (dots,) = [x for x in fig.axes[0].lines if x.get_marker() == "." and list(x.get_ydata()) == [row_number + 0.32] * 5]
    assert list(dots.get_xdata()) == pytest.approx([100 * value for value in results.gain("kd").by_seed.values()])


def test_a_method_without_a_verdict_keeps_its_place_and_says_why(results: Results) -> None:
    fig, text = plots.forest(results), plots.forest_alt(results)
    assert labels(fig)[-1] == "teacher of the student's size"
    assert "no verdict: seed 3 diverged" in words(fig)
    assert "no verdict: seed 4 not run" in words(fig)
    assert set(marks(fig, "flow between layers (FSP)")) == set()  # no mean
    assert f"flow between layers (FSP) ({LOST})" in text
    assert "teacher of the student's size (seed 4 not run)" in text


def test_what_lies_beyond_the_axis_becomes_an_arrow(results: Results) -> None:
    fig, found = plots.forest(results), results.gain("layer-information")
    left, right = fig.axes[0].get_xlim()
    assert 100 * found.low < left
    arrow, _ = marks(fig, found.title)["<"]
    assert left < arrow < left + 0.05 * (right - left)
    assert f"{100 * found.mean:+.2f}" in " ".join(words(fig))  # the number is not lost
    assert right < 10  # and the others are not pressed together


def test_every_seed_is_drawn_those_beyond_the_axis_at_its_end(results: Results) -> None:
    fig = plots.forest(results)
    axes, found = fig.axes[0], results.gain("layer-information")
    left, _ = axes.get_xlim()
    assert 100 * min(found.by_seed.values()) < left
    for row_number, title in zip(axes.get_yticks(), labels(fig), strict=True):
        lines = [line for line in axes.lines if len(line.get_ydata()) and line.get_ydata()[0] == row_number + 0.32]
        drawn = [value for line in lines for value in line.get_xdata()]
        measured = [results.gain(name) for name in results.methods if results.title(name) == title]
        finite = [value for one in measured for value in one.by_seed.values() if np.isfinite(value)]
        assert len(drawn) == len(finite)  # one seed of FSP diverged
        if title == found.title:
            ends = {line.get_marker(): len(line.get_xdata()) for line in lines}
            assert ends["<"] == sum(100 * value < left for value in found.by_seed.values())


def test_equal_seeds_have_no_interval_to_draw(results: Results) -> None:
    fig = plots.forest(results)
    assert "+0.00 (all seeds equal)" in words(fig)
    assert marks(fig, "hint (FitNets)")["D"][0] == 0


def test_a_choice_of_methods_keeps_the_intervals_of_all(results: Results) -> None:
    few = plots.forest(results, ["kd"])
    assert labels(few) == ["Logits", "logits (KD)"]
    assert words(few)[:2] == words(plots.forest(results))[2:4] or words(few)[0] in words(plots.forest(results))
    assert "all 19 comparisons" in few.axes[0].get_xlabel()
    with pytest.raises(ValueError, match="Did you mean 'attention'"):
        plots.forest(results, ["attentoin"])


def test_the_text_of_the_forest_says_what_is_drawn(results: Results) -> None:
    text = plots.forest_alt(results)
    beaten = text[text.index("BEATS:") : text.index("LOSES:")]
    assert f"logits (KD) {results.gain('kd').format()}" in beaten
    assert "logits of another image" not in beaten
    assert "resnet8 taught by resnet20-fashion, 10,000 images, 5 paired seeds" in text
    assert "all 19 comparisons" in text
    for name in results.methods:
        assert results.title(name) in text
    assert len(plots.forest_alt(results, ["kd"])) < 300


def test_the_excluded_class_can_be_drawn_too(tmp_path: Path) -> None:
    write(tmp_path, "missing-class")
    results = study.results("missing-class", folder=tmp_path)
    fig = plots.forest(results, value="excluded_class_accuracy")
    assert "points of test accuracy on the excluded class" in fig.axes[0].get_xlabel()
    assert "BEATS: " in plots.forest_alt(results, value="excluded_class_accuracy")
    with pytest.raises(ValueError, match="no metric named 'excluded'"):
        plots.forest(results, value="excluded")


def test_nothing_but_trouble_can_be_drawn(tmp_path: Path) -> None:
    write(tmp_path, score=lambda config, chance: None if config.method != "hard" else 0.9)
    results = study.results(folder=tmp_path)
    plots.png(plots.forest(results))
    assert plots.forest_alt(results).count("diverged") == 16 * 5


# Accuracy against images.


def test_accuracies_and_gains_against_images(several: list[Results]) -> None:
    fig = plots.accuracy_against_images(several)
    left, right = fig.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["1,000", "10,000", "55,000"]
    by_size = sorted(several, key=lambda one: one.images)
    handles, names = left.get_legend_handles_labels()
    lines = dict(zip(names, handles, strict=True))
    assert set(lines) == {"teacher", *(several[0].title(name) for name in ("hard", *several[0].methods))}
    means = lines["logits (KD)"].lines[0].get_ydata()
    assert list(means) == pytest.approx([100 * one.score("kd").mean for one in by_size])
    assert np.isnan(lines["flow between layers (FSP)"].lines[0].get_ydata()[1])  # it diverged at 10,000
    assert "no mean where a seed diverged" in fig.get_suptitle()
    assert lines["teacher"].get_ydata()[0] == pytest.approx(93.74)
    assert len({(line.get_color(), line.get_marker()) for line in right.lines}) >= len(several[0].methods)


def test_a_choice_of_methods_against_images(several: list[Results]) -> None:
    fig = plots.accuracy_against_images(several, ["kd"])
    assert fig.axes[0].get_legend_handles_labels()[1] == ["teacher", "hard labels", "logits (KD)"]
    assert "95 % intervals" in fig.get_suptitle()
    text = plots.accuracy_against_images_alt(several, ["kd"])
    smallest = min(several, key=lambda one: one.images)
    assert f"1,000 images: hard labels {100 * smallest.score('hard').mean:.2f}; logits (KD) " in text
    assert f"BEATS with a gain of {smallest.gain('kd').format()}" in text
    assert LOST in plots.accuracy_against_images_alt(several)


def test_epochs_that_differ_are_said_below_the_images(several: list[Results]) -> None:
    fig = plots.accuracy_against_images(several, ["kd"])
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == ["1,000", "10,000", "55,000"]
    short = [
        replace(one, rows=tuple(row | {"epochs": "3"} for row in one.rows)) if one.images == 55_000 else one
        for one in several
    ]
    fig = plots.accuracy_against_images(short, ["kd"])
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()][1:] == ["10,000\n15 epochs", "55,000\n3 epochs"]
    assert "55,000 images, 3 epochs: hard labels" in plots.accuracy_against_images_alt(short, ["kd"])


def test_results_that_do_not_fit_one_axis_are_refused(several: list[Results], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="results of different numbers of images"):
        plots.accuracy_against_images([several[0], several[0]])
    with pytest.raises(ValueError, match="results of different numbers of images"):
        plots.accuracy_against_images([])
    write(tmp_path, "short", images=500, student="resnet14")
    other = study.results(images=500, student="resnet14", folder=tmp_path)
    with pytest.raises(ValueError, match="different students"):
        plots.accuracy_against_images([several[0], other])
    with pytest.raises(ValueError, match="no method in methods-.* named 'attention'"):
        plots.accuracy_against_images(several, ["attention"])
    full = min(several, key=lambda one: -len(one.methods))
    with pytest.raises(ValueError, match="19 methods are too many lines to distinguish: choose at most 8"):
        plots.accuracy_against_images([full])


# Accuracy by epoch.


def test_epochs_are_drawn_seed_by_seed(several: list[Results]) -> None:
    fig = plots.accuracy_by_epoch(several[0], ["kd"])
    (axes,) = fig.axes
    assert len(axes.lines) == 8  # four seeds have epochs
    assert axes.get_legend_handles_labels()[1] == ["hard labels", "logits (KD)"]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([80.0, 85.0, 90.1])
    assert list(axes.lines[-1].get_ydata()) == pytest.approx([81.0, 87.0, 91.4])
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3]
    assert "seeds 1, 2, 3, 4" in fig.get_suptitle()
    text = plots.accuracy_by_epoch_alt(several[0], ["kd"])
    assert "logits (KD), seed 4: 81.0, 87.0, 91.4" in text
    assert "seed 0" not in text


def test_results_without_epochs_are_refused(several: list[Results]) -> None:
    with pytest.raises(ValueError, match="methods-.* has no epochs of hard"):
        plots.accuracy_by_epoch(several[1])
    with pytest.raises(ValueError, match="no method in methods-.* named 'attention'"):
        plots.accuracy_by_epoch(several[0], ["attention"])


# The map of alpha and temperature.


def cell_texts(fig: Any) -> list[str]:
    return [text.get_text() for text in fig.axes[0].texts]


def frames(fig: Any) -> list[bool]:
    return [patch.get_visible() for patch in fig.axes[0].patches]


def test_cells_hold_mean_and_half_width_and_are_framed_where_sure(grid: Results) -> None:
    fig = draw_map(grid)
    gains = {setting: grid.gain(name) for setting, name in grid.grid.items()}
    best = gains[0.1, 4.0]
    text = f"{100 * best.mean:+.2f}\n±{100 * best.half_width:.2f}"
    assert best.verdict is Verdict.BEATS
    assert f"▲ {text}" in cell_texts(fig)
    assert sum(frames(fig)) == sum(one.verdict in (Verdict.BEATS, Verdict.LOSES) for one in gains.values())
    assert sum(text.startswith(("▲", "▼")) for text in cell_texts(fig)) == sum(frames(fig))
    values = fig.axes[0].images[0].get_array()
    assert values.shape == (5, 5)
    assert values[1, 2] == pytest.approx(100 * best.mean)  # the second alpha from below, the third T
    assert values.mask.sum() == 1


def test_white_is_zero_and_both_sides_reach_equally_far(grid: Results) -> None:
    image = draw_map(grid).axes[0].images[0]
    low, high = image.get_clim()
    assert low == -high
    assert to_hex(image.cmap(0.5)).lower() in ("#ffffff", "#fefeff", "#fffefe")
    assert to_hex(image.cmap(1.0)).upper() == plots.DISTILLED.colour
    assert to_hex(image.cmap(0.0)).upper() == plots.BASELINE.colour


def test_a_cell_that_diverged_or_is_equal_says_so(grid: Results) -> None:
    texts = cell_texts(draw_map(grid))
    assert "diverged" in texts
    assert "+0.00\nall equal" in texts


def test_a_cell_below_hard_labels_gets_the_other_arrow(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "grid", score=lambda config, chance: score(config, chance) - 0.05, skip=lambda c: c.seed == 3)
    grid = study.results("grid", folder=tmp_path)
    texts = cell_texts(draw_map(grid))
    assert sum(text.startswith("▼ -") for text in texts) == 25
    errors = cell_texts(draw_map(grid, "calibration error"))
    assert not any("+" in text for text in errors)


def test_the_map_of_a_score_marks_its_difference_from_hard_labels(grid: Results) -> None:
    gains = {setting: grid.gain(name, "agreement") for setting, name in grid.grid.items()}
    cells = plots.heatmap_cells(grid, "agreement with the teacher")
    best = max((setting for setting in gains if not gains[setting].problem), key=lambda setting: gains[setting].mean)
    shown = grid.score(grid.grid[best], "agreement")
    assert cells[best].text == f"▲ {100 * shown.mean:.2f}\n±{100 * shown.half_width:.2f}"


def test_the_map_refuses_other_results_and_metrics(results: Results, grid: Results) -> None:
    with pytest.raises(ValueError, match="holds no grid"):
        draw_map(results)
    with pytest.raises(ValueError, match="no metric of the map named 'agreement'. Did you mean"):
        plots.heatmap_cells(grid, "agreement")
