"""Marks of figures and explorers stand where their numbers are: neither a reader of alt texts nor nbval sees them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from course import explorers, planning, plots
from course.experiments import (
    claims_length,
    claims_results,
    clinic,
    compression_results,
    logit_mistakes,
    modalities,
    modalities_results,
    search_proxy,
    search_replay,
    search_results,
    several_results,
    teacher_results,
)
from course.explorers.planner import SEEDS
from kdlib import distill, study
from kdlib.data import DataModule

pytestmark = pytest.mark.slow


def bars_and_points(axes: Any, y: float) -> tuple[list[list[float]], list[float]]:
    """The ends of the lines at a height, and the x of single points."""
    ours = [line for line in axes.lines if len(line.get_ydata()) and set(map(float, line.get_ydata())) == {float(y)}]
    return [list(one.get_xdata()) for one in ours if len(one.get_xdata()) == 2], [
        float(one.get_xdata()[0]) for one in ours if len(one.get_xdata()) == 1
    ]


def test_intervals_are_drawn_from_end_to_end() -> None:
    found = several_results.load("own")
    named, axes, _ = plots.several_ways(found, "best single").axes
    titles = [label.get_text() for label in named.get_yticklabels()]
    for gain in found.compare("best single"):
        lines, points = bars_and_points(axes, titles.index(gain.way))
        assert lines == [pytest.approx([gain.comparison.low, gain.comparison.high])]
        assert points == [pytest.approx(gain.comparison.mean)]
    results = teacher_results.load()
    fig = plots.teacher_gains(results)
    titles = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    for gain in results.gains(results.students[0]):
        lines, _ = bars_and_points(fig.axes[0], titles.index(gain.title))
        assert lines == [pytest.approx([gain.comparison.low, gain.comparison.high])]
    effects = [one for one in clinic.load() if one.harm is not None]
    fig = plots.fault_effects(effects)
    for place, one in enumerate(effects):
        lines, points = bars_and_points(fig.axes[0], place)
        assert (lines, points) == ([pytest.approx([one.harm.low, one.harm.high])], [pytest.approx(one.harm.mean)])


def test_the_mean_of_an_arm_is_drawn_at_the_mean() -> None:
    results = claims_results.load("pictures")
    fig = plots.claim_arms(results, "labels")
    for y, label in enumerate(fig.axes[0].get_yticklabels()):
        points = [one for one in fig.axes[0].lines if one.get_marker() != "|" and list(one.get_ydata()) == [y]]
        assert [float(one.get_xdata()[0]) for one in points] == [pytest.approx(results.mean(label.get_text()))]


def test_both_trainings_of_a_compression_have_their_colours() -> None:
    gains = compression_results.load(images=2_000).gains()
    axes = plots.compression_gains(gains).axes[0]
    for y, gain in enumerate(gains):
        drawn = {line.get_color(): float(line.get_xdata()[0]) for line in axes.lines
                 if len(line.get_xdata()) == 1 and list(line.get_ydata()) == [y]}  # fmt: skip
        assert drawn == {plots.BASELINE.colour: gain.baseline.accuracy, plots.DISTILLED.colour: gain.network.accuracy}


def test_a_search_promises_by_dashes_and_keeps_by_a_line() -> None:
    replay = search_replay.load()
    axes = plots.promises(replay, [1, 5, 20]).axes[0]
    for column, style in enumerate(("--", "-")):
        drawn = [
            list(line.get_ydata())
            for line in axes.lines
            if line.get_linestyle() == style and len(line.get_xdata()) == 3
        ]
        expected = [replay.mean_curve(name, [1, 5, 20])[:, column].tolist() for name in ("random search", "TPE")]
        assert drawn == [pytest.approx(one) for one in expected]


def test_the_bar_of_a_study_is_its_mean() -> None:
    choices = pd.DataFrame({"study": ["resnet8-resnet20-fashion-10"] * 3, "excess": [0.0, 1.0, 5.0]})
    axes = plots.kept_promises(choices).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "-"] == [[2.0, 2.0]]


def test_a_class_matrix_has_each_colour_at_its_number() -> None:
    _, axes = plots.figure()
    matrix = np.array([[0.8, 0.2], [0.1, 0.9]])
    image = plots.class_matrix(axes, matrix, ("Shirt", "Coat"), label="mean probability")
    assert np.array_equal(image.get_array(), matrix)


def test_the_teachers_line_is_the_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    results, pair = modalities_results.load(), modalities.PAIRS[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in plots.by_person(results, pair).axes[0].get_lines()}
    units = results.arm(pair, "teacher").units
    assert lines[f"teacher, {pair.teacher_field}"] == [units[person] for person in sorted(units)]


def test_dots_are_the_seeds_of_their_mistake() -> None:
    costs = logit_mistakes.costs(logit_mistakes.load())
    axes = plots.mistakes(costs).axes[0]
    for y, cost in enumerate(one for one in costs if one.alpha == costs[0].alpha):
        dots = [list(line.get_xdata()) for line in axes.lines if list(line.get_ydata()) == [y] * len(cost.by_seed)]
        assert list(cost.by_seed) in dots


def test_the_curves_of_a_job_are_accuracy_and_loss() -> None:
    history = pd.DataFrame({"validation_accuracy": [0.5, 0.6], "validation_loss": [1.5, 1.2]}, index=[1, 2])
    accuracy, loss = distill.curves(SimpleNamespace(history=history)).axes  # type: ignore[arg-type]
    assert [list(axes.lines[0].get_ydata()) for axes in (accuracy, loss)] == [[0.5, 0.6], [1.5, 1.2]]


def test_lines_of_lengths_go_through_the_means_of_their_own_length() -> None:
    results = claims_results.load("length")
    ways = {claims_length.LABELS: plots.BASELINE, claims_length.LOGITS: plots.DISTILLED}
    axes = plots.claim_lengths(results, ways, claims_length.LENGTHS).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    for way in ways:
        assert lines[way] == [results.mean(claims_length.name(way, one)) for one in claims_length.LENGTHS]


def test_the_front_goes_through_its_networks() -> None:
    results = compression_results.load(images=2_000)
    (axes,) = plots.pareto(results, ["bytes"]).axes
    (line,) = [one for one in axes.lines if one.get_label() == "best for its cost"]
    assert list(zip(*line.get_data(), strict=True)) == [(one.bytes, one.accuracy) for one in results.front("bytes")]


def test_points_of_proxies_are_networks_and_bars_of_scores_the_two_draws() -> None:
    proxies = search_results.load_proxies()
    axes = plots.proxies_figure(proxies).axes[0]
    drawn = {(round(x, 6), round(y, 6)) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}
    values = zip(proxies.values["macs"] / 1e6, proxies.accuracy, strict=True)
    assert drawn == {(round(float(x), 6), round(float(y), 6)) for x, y in values}
    forms = tuple(search_proxy.networks())
    random = np.random.default_rng(0)
    scores = search_proxy.Scores(forms, np.arange(1.0, 16), *(-random.random((2, 2, 15))))
    axes = plots.scores_figure(scores).axes[0]
    drawn_scores = sorted(float(y) for bars in axes.containers for y in bars.lines[0].get_ydata())
    assert drawn_scores == pytest.approx(sorted(scores.trained_teacher.mean(0)))


def test_intervals_against_images_have_their_width() -> None:
    results = study.results("methods", student="resnet8", images=10_000)
    axes = plots.accuracy_against_images([results], ["kd"]).axes[1]
    (bars,) = axes.containers
    ((segment,),) = [collection.get_segments() for collection in bars.lines[2]]
    gain = results.gain("kd")
    assert segment[1, 1] - segment[0, 1] == pytest.approx(100 * (gain.high - gain.low))


# --- explorers


def test_marks_and_points_of_the_ensemble_are_those_of_the_answers(fashion: DataModule) -> None:
    few = fashion.validation.select(torch.arange(40))
    teachers = {
        name: 3 * torch.randn(40, 10, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("ab")
    }
    explorer = explorers.Ensemble(teachers, few, fashion.classes)
    found = explorer.compute(*explorer.inputs())
    for marks, shares in zip(explorer._marks, found.each.tolist(), strict=True):
        assert list(marks.get_xdata()) == pytest.approx(shares)
    assert found.right.any()
    assert not found.right.all()
    for line, chosen in ((explorer._right, found.right), (explorer._wrong, ~found.right)):
        np.testing.assert_allclose(line.get_xdata(), found.uncertainty[chosen])
        np.testing.assert_allclose(line.get_ydata(), found.disagreement[chosen])


def test_bars_and_seeds_of_the_teachers_are_those_of_the_rows() -> None:
    explorer = explorers.Teachers()
    results, student, teacher, _ = explorer.inputs()
    gain = results.gain(student, teacher)
    hard = gain.baseline.accuracies
    assert list(explorer._hard.get_ydata()) == [hard[seed] for seed in sorted(hard)]
    assert list(explorer._bars[teacher].get_ydata()) == pytest.approx([gain.comparison.low, gain.comparison.high])


def test_the_power_rises_with_the_seeds() -> None:
    explorer = explorers.Planner()
    plan, _ = explorer.inputs()
    assert list(explorer._power.get_ydata()) == pytest.approx(planning.powers(plan, SEEDS))
