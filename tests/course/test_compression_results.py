"""What lesson 02 reads of the experiments on compression: networks, gains, the front, figures, and the sweep itself."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from course import plots
from course.experiments import compression_results as results_module
from course.experiments import compression_sweep
from course.experiments.compression import HARD, KD, RAW, RUN_COLUMNS, TECHNIQUES, Budget
from course.experiments.compression_results import CompressionResults
from kdlib import compress, data, measure, models, verdict
from kdlib.data import DataModule

SIZES = {"channels": (70e3, 7.8e6), "small network": (70e3, 7.8e6), "resnet8": (78e3, 9.3e6)}
GAIN = {"channels": 0.5, "int2": 1.0, "zeros 95": 0.0}  # points that KD adds on average


def write_trained(folder: Path, names: Sequence[str], seeds: int = 5) -> None:
    """Rows as the experiment writes them, with accuracies near 90 % that share most of their scatter within a seed."""
    chance = random.Random(3)
    rows = []
    for name in names:
        parameters, macs = SIZES.get(name, (272e3, 31e6))
        bits = TECHNIQUES[name].bits
        for seed in range(seeds):
            shared = chance.gauss(90, 0.5)
            for way in (HARD, KD) if TECHNIQUES[name].fresh else (RAW, HARD, KD):
                accuracy = 10 if way == RAW else shared + chance.gauss(0, 0.05) + GAIN.get(name, 0) * (way == KD)
                row = dict.fromkeys(RUN_COLUMNS, "") | {"technique": name, "training": way, "seed": seed, "bits": bits}
                row |= {"epochs": 5, "images": 2_000, "parameters": parameters, "nonzero": parameters, "macs": macs}
                row |= {
                    "bytes": parameters * bits / 8 + 1000,
                    "zipped_bytes": parameters,
                    "test_accuracy": accuracy / 100,
                }
                rows.append(row)
    _write(Budget(2_000).path("compression", folder), RUN_COLUMNS, rows)


def write_sweep(folder: Path) -> None:
    rows = []
    for name, amount, bits in compression_sweep.settings():
        parameters, macs = SIZES.get(name, (272e3, 31e6))
        kept = 0.94 - 0.8 * (amount or 0) ** 4 - 3 / 2**bits
        row = {"technique": name, "amount": amount or "", "bits": bits, "parameters": parameters, "macs": macs}
        row |= {"nonzero": parameters, "bytes": parameters * bits / 8 + 1000, "zipped_bytes": parameters}
        rows.append(dict.fromkeys(compression_sweep.COLUMNS, "") | row | {"test_accuracy": kept})
    _write(compression_sweep.path_in(folder), compression_sweep.COLUMNS, rows)


def _write(path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results")
    write_sweep(path)
    write_trained(path, list(TECHNIQUES))
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> CompressionResults:
    return results_module.load(folder)


def test_a_network_is_the_mean_of_its_seeds(results: CompressionResults, folder: Path) -> None:
    with Budget(2_000).path("compression", folder).open() as file:
        rows = [row for row in csv.DictReader(file) if (row["technique"], row["training"]) == ("int2", KD)]
    one = results.by_key["int2", KD]
    assert one.accuracy == pytest.approx(sum(100 * float(row["test_accuracy"]) for row in rows) / 5)
    assert [seed for seed, _ in one.accuracies] == [0, 1, 2, 3, 4]
    assert (one.bits, one.cost("bytes")) == (2, 272e3 * 2 / 8 + 1000)
    with pytest.raises(ValueError, match="no cost named 'seconds'"):
        one.cost("seconds")


def test_gains_are_those_of_verdict_and_corrected_for_what_is_shown(results: CompressionResults) -> None:
    gains = {gain.network.technique: gain for gain in results.gains()}
    assert set(gains) == set(TECHNIQUES)
    found = gains["int2"].comparison
    sides = [dict(results.by_key["int2", way].accuracies) for way in (KD, HARD)]
    assert found == verdict.compare(*sides, comparisons=len(TECHNIQUES), same_unit=True)
    assert found.verdict is verdict.Verdict.BEATS
    assert f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f}; 5 seeds) BEATS" in str(gains["int2"])


def test_fewer_ways_have_narrower_intervals_and_one_seed_has_none(tmp_path: Path, results: CompressionResults) -> None:
    write_sweep(tmp_path)
    write_trained(tmp_path, list(TECHNIQUES)[:1])
    (alone,) = results_module.load(tmp_path).gains()
    among = next(gain for gain in results.gains() if gain.title == alone.title)
    assert alone.comparison.mean == pytest.approx(among.comparison.mean)
    assert alone.comparison.high < among.comparison.high
    assert alone.comparison.comparisons == 1
    single = tmp_path / "single"
    single.mkdir()
    write_sweep(single)
    write_trained(single, ["channels"], seeds=1)
    assert results_module.load(single).gains() == []
    assert results_module.load(single).table().loc["half of channels removed", "seeds"] == 1


def test_only_what_was_run_is_answered(tmp_path: Path, results: CompressionResults) -> None:
    assert len(results.answer(results_module.SMALL)) == len(results_module.SMALL)
    assert len(results.answer(results_module.ORDERS)) == len(results_module.ORDERS)
    write_sweep(tmp_path)
    write_trained(tmp_path, ["channels", "resnet8"])
    some = results_module.load(tmp_path)
    (found,) = some.answer(results_module.SMALL)
    assert found.comparison.comparisons == 1
    assert (found.network.technique, found.baseline.technique) == ("resnet8", "channels")
    assert some.answer(results_module.ORDERS) == []
    assert some.trained == ["channels", "resnet8"]


def test_before_anything_was_trained_there_is_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m course\.experiments\.compression_sweep"):
        results_module.load(tmp_path)
    write_sweep(tmp_path)
    results_module.load.cache_clear()
    found = results_module.load(tmp_path)
    assert (found.gains(), found.trained) == ([], [])
    assert found.untrained("zeros 50").accuracy == pytest.approx(89, abs=0.01)
    with pytest.raises(ValueError, match="no network without further training named 'zeros 51'"):
        found.untrained("zeros 51")


def test_a_way_of_which_a_seed_diverged_is_not_judged_by_the_others(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    write_trained(tmp_path, ["int2", "int4"])
    path = Budget(2_000).path("compression", tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if (row["technique"], row["training"]) == ("int2", KD) and row["seed"] in "124":
            row |= dict.fromkeys(("parameters", "nonzero", "bytes", "zipped_bytes", "macs", "test_accuracy"), "")
            row["error"] = "The loss is nan"
    _write(path, RUN_COLUMNS, rows)
    found = results_module.load(tmp_path)
    with pytest.raises(ValueError, match=r"2 bits, distilled, .* seeds 1, 2, 4: The loss is nan"):
        _ = found.by_key["int2", KD].accuracy
    for judge in (found.gains, found.table):
        with pytest.raises(ValueError, match="seeds 1, 2, 4"):
            judge()
    question = results_module.Question("4 bits, distilled, over hard labels", ("int4", KD), ("int4", HARD))
    (gain,) = found.answer([question])
    assert gain.comparison.n == 5
    assert found.by_key["int2", KD].bytes == found.by_key["int2", HARD].bytes


def test_a_seed_that_is_there_twice_is_not_counted_twice(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    write_trained(tmp_path, ["int2"])
    path = Budget(2_000).path("compression", tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))
    with pytest.raises(ValueError, match="2 bits, .* has more than one row for seed 4"):
        results_module.load(tmp_path)


@pytest.mark.parametrize("cost", results_module.COSTS)
def test_nothing_beats_the_front_and_the_front_beats_all_else(results: CompressionResults, cost: str) -> None:
    front = results.front(cost)
    for one in results.by_key.values():
        superior = [o for o in results.by_key.values() if o.cost(cost) <= one.cost(cost) and o.accuracy > one.accuracy]
        cheaper = [o for o in results.by_key.values() if o.cost(cost) < one.cost(cost) and o.accuracy >= one.accuracy]
        assert (one in front) == (not superior and not cheaper)
    assert [one.cost(cost) for one in front] == sorted(one.cost(cost) for one in front)
    assert results.front(cost)[-1].accuracy == max(one.accuracy for one in results.by_key.values())


@pytest.mark.slow
def test_the_figures_say_in_words_what_they_show(results: CompressionResults) -> None:
    plots.check_labels(plots.pareto(results, tuple(results_module.COSTS)))
    gains = results.gains()
    figure = plots.compression_gains(gains)
    plots.check_labels(figure)
    notes = [text.get_text() for text in figure.axes[2].texts if " to " in text.get_text()]
    for note, gain in zip(notes, gains, strict=True):
        assert f"{gain.comparison.low:+.2f} to {gain.comparison.high:+.2f}" in note
    text = plots.compression_gains_alt(gains)
    assert all(f"{gain.title}: hard labels {gain.baseline.accuracy:.1f} %" in text for gain in gains)
    assert all(f"{one.accuracy:.1f} %" in plots.pareto_alt(results) for one in results.front("macs"))


def test_every_network_is_drawn_where_it_is(results: CompressionResults) -> None:
    fig = plots.pareto(results, ["bytes"])
    (axes,) = fig.axes
    drawn = {
        (x, y) for line in axes.lines if line.get_marker() != "None" for x, y in zip(*line.get_data(), strict=True)
    }
    assert {(one.bytes, one.accuracy) for one in results.by_key.values()} <= drawn
    low, high = axes.get_ylim()
    assert all(low < one.accuracy < high for one in results.by_key.values())
    names = [text.get_text() for text in axes.texts]
    assert len(names) == len(set(names))
    assert {"half of channels removed", "2 bits", "ResNet-8, fresh weights"} <= set(names)


@pytest.mark.slow
def test_texts_of_the_map_do_not_cover_each_other(results: CompressionResults) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    fig = plots.pareto(results)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    for axes in fig.axes:
        renderer = canvas.get_renderer()  # an annotation's own extent has its line in it
        boxes = [Text.get_window_extent(text, renderer).shrunk(0.95, 0.8) for text in axes.texts]
        assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])


# The sweep.


@pytest.mark.slow
def test_the_sweep_measures_what_the_library_counts(fashion: DataModule, tmp_path: Path, monkeypatch) -> None:
    few = replace(fashion, train=fashion.train.select(torch.arange(64)), test=fashion.test.select(torch.arange(40)))
    chosen = [("resnet20", None, 32), ("zeros 50", 0.5, 32), ("channels", 0.5, 32), ("int4", None, 4)]
    monkeypatch.setattr(compression_sweep, "settings", lambda: chosen)
    rows = {row["technique"]: row for row in compression_sweep.run(tmp_path, few, "the command", log=lambda text: None)}
    network = models.load("resnet20-fashion")
    assert int(rows["resnet20"]["bytes"]) == int(rows["zeros 50"]["bytes"]) == measure.bytes_saved(network)
    assert int(rows["zeros 50"]["nonzero"]) < 0.51 * int(rows["resnet20"]["nonzero"])
    assert int(rows["zeros 50"]["zipped_bytes"]) < int(rows["resnet20"]["zipped_bytes"])
    narrow = compress.prune_channels(network, 0.5, data.normalized_images(few.train)[:1])
    assert int(rows["channels"]["macs"]) == measure.macs(narrow, (1, 28, 28))
    assert int(rows["int4"]["bytes"]) < 0.16 * int(rows["resnet20"]["bytes"])
    assert float(rows["resnet20"]["test_accuracy"]) > 0.8
    again = compression_sweep.run(tmp_path, few, "the command", log=lambda text: pytest.fail(f"repeated: {text}"))
    assert again == list(rows.values())


@pytest.mark.slow
def test_the_shipped_rows_are_there_and_agree_with_the_shipped_network() -> None:
    found = results_module.load()
    network = models.load("resnet20-fashion")
    assert found.whole.bytes == measure.bytes_saved(network)
    assert found.whole.macs == measure.macs(network, (1, 28, 28))
    assert {name for name, _, _ in compression_sweep.settings()} <= {name for name, _ in found.by_key}
    assert all(math.isfinite(one.accuracy) for one in found.by_key.values())
