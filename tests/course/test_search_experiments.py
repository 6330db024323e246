"""The experiments of lesson 13 on tiny data, and what is read of their rows: proxies, choices, a judged search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from course import plots
from course.experiments import kept_results, search_proxy, search_results, search_rows
from course.experiments.search_proxy import Network
from course.experiments.search_results import JudgedSearch, Proxies, kendall
from course.experiments.search_rows import CONTROL, DEFAULTS, FOUND, RANDOM
from kdlib import data, models
from kdlib.data import DataModule
from kdlib.study.method_specs import SETTING_NAMES
from kdlib.study.runs_file import RunsFile, SessionLog, read_rows


@pytest.fixture(scope="module")
def tiny() -> DataModule:
    whole = data.load("fashion-mnist")
    first = torch.arange(60)
    return replace(whole, validation=whole.validation.select(first), test=whole.test.select(first))


# --- the score


def test_the_score_of_relations_is_zero_for_the_same_and_for_rescaled_features() -> None:
    features = torch.randn(12, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    assert search_proxy.relation_score(features, features) == pytest.approx(0, abs=1e-5)
    assert search_proxy.relation_score(3 * features, features) == pytest.approx(0, abs=1e-5)
    other = torch.randn(12, 7, generator=torch.Generator().manual_seed(1))
    assert search_proxy.relation_score(other, features) < -0.5


def test_the_score_is_the_distance_of_the_matrices_as_in_the_lesson() -> None:
    chance = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(9, 4, 3, 3, generator=chance), torch.randn(9, 8, 3, 3, generator=chance)
    units = [nn.functional.normalize(one.flatten(1) @ one.flatten(1).T, dim=1) for one in (student, teacher)]
    assert search_proxy.relation_score(student, teacher) == pytest.approx(
        -(units[0] - units[1]).norm().item(), rel=1e-5
    )


def test_to_look_at_a_network_changes_nothing_in_it(tiny: DataModule) -> None:
    network = models.build("resnet8w4", num_classes=10, in_channels=1, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    maps = search_proxy.features(network, data.normalized_images(tiny.validation), trained=False)
    assert maps.shape == (60, 16, 7, 7)
    assert network.training
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_there_are_fifteen_networks_the_smallest_first() -> None:
    networks = search_proxy.networks()
    assert len({one.name for one in networks}) == 15
    assert networks[0] == Network(4, 8)
    assert networks[-1] == Network(16, 20)


@pytest.mark.slow
def test_all_networks_are_scored_with_two_kinds_of_teacher(tiny: DataModule) -> None:
    teacher = models.load("resnet20-fashion")
    scores = search_proxy.score_all(teacher, tiny, batch=8, seeds=1)
    assert scores.trained_teacher.shape == scores.untrained_teacher.shape == (1, 15)
    assert (scores.trained_teacher < 0).all()
    assert not np.allclose(scores.trained_teacher, scores.untrained_teacher)
    assert scores.macs.max() / scores.macs.min() > 40
    place = [one.name for one in scores.networks].index("resnet8w6")
    pictures = data.normalized_images(tiny.train.select(torch.arange(8)))
    own = search_proxy.features(scores.networks[place].build(tiny, 100), pictures, trained=False)
    wanted = search_proxy.features(teacher, pictures, trained=True)
    assert scores.trained_teacher[0, place] == pytest.approx(search_proxy.relation_score(own, wanted))
    plots.check_labels(plots.scores_figure(scores))
    mean = scores.untrained_teacher[0, scores.depth == 20].mean()
    assert f"20 layers {mean:.1f}." in plots.scores_alt(scores)


@pytest.mark.slow
def test_proxies_are_made_once_and_go_on(tiny: DataModule, tmp_path: Path) -> None:
    budget = search_proxy.Budget(20, 1, 1, batch=16)
    wanted, told = [Network(4, 8), Network(16, 20)], []
    search_proxy.make(budget, tmp_path, 1, "command", wanted=wanted[:1], images=tiny, log=told.append)
    rows = search_proxy.make(budget, tmp_path, 1, "command", wanted=wanted, images=tiny, log=told.append)
    assert [row["student"] for row in rows] == ["resnet8w4", "resnet20w16"]
    assert len(told) == 2
    assert float(rows[1]["relation_score_untrained"]) < -0.1  # the untrained teacher of its form is another network
    assert all(float(row["relation_score"]) < 0 < float(row["validation_accuracy"]) for row in rows)
    assert int(rows[0]["macs"]) < int(rows[1]["macs"])
    again = search_proxy.make(budget, tmp_path / "again", 1, "command", wanted=wanted[1:], images=tiny, log=told.append)
    assert again[0]["validation_accuracy"] == rows[1]["validation_accuracy"]
    with pytest.raises(ValueError, match="share one budget"):
        search_proxy.make(replace(budget, epochs=2), tmp_path, 1, "command", wanted=wanted, images=tiny)


@pytest.mark.slow
def test_a_search_is_judged_and_its_rows_are_written_once(tiny: DataModule, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    budget = search_rows.Budget(20, 1, 1, trials=2)

    def make() -> list[list[dict[str, str]]]:
        search_rows.make(budget, tmp_path, tmp_path / "cache", 2, "command", images=tiny, log=lambda _: None)
        return [read_rows(budget.path(kind, tmp_path)) for kind in ("search-trials", "search-judged")]

    trials, runs = make()
    assert [row["search"] for row in trials].count(FOUND) == 2
    assert {(row["arm"], row["seed"]) for row in runs} == {
        (arm, seed) for arm in (FOUND, DEFAULTS, RANDOM, CONTROL) for seed in ("0", "1")
    }
    by_arm = {row["arm"]: row for row in runs}
    assert by_arm[CONTROL]["learning_rate"] == by_arm[FOUND]["learning_rate"]
    assert (by_arm[CONTROL]["alpha"], by_arm[CONTROL]["temperature"]) == ("0.1", "4.0")
    assert by_arm[DEFAULTS]["learning_rate"] == "0.1"
    spent = [(row["search"], float(row["trained_epochs"])) for row in trials]
    epochs = {arm: sum(count for search, count in spent if search == arm) for arm in (FOUND, RANDOM)}
    epochs |= {DEFAULTS: 0, CONTROL: epochs[FOUND]}  # the control takes its learning rate from the search
    assert all(float(row["search_cost"]) == epochs[row["arm"]] for row in runs)
    judged = search_results.load_judged(tmp_path, 20)
    assert judged.cost(RANDOM) >= judged.cost(FOUND)  # the baseline gets no less
    for kind in ("search-trials", "search-judged"):  # of both searches and all that judges them
        hours = json.loads(budget.path(kind, tmp_path).with_suffix(".json").read_text())["hours"]
        assert hours >= sum(float(row["seconds"]) for row in (*trials, *runs)) / 3600 - 1e-4
    assert make() == [trials, runs]


# --- Kendall's tau and proxies


def test_tau_is_that_of_scipy_also_with_ties() -> None:
    chance = np.random.default_rng(3)
    for _ in range(20):
        x, y = chance.integers(6, size=12), chance.normal(size=12)
        assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert kendall(np.ones(4), np.arange(4)) == 0


def test_a_complete_order_with_ties_ends_before_one() -> None:
    """What lesson 13 says of three depths of five networks, and of five widths of three."""
    depth, width = np.repeat([8.0, 14.0, 20.0], 5), np.repeat([4.0, 6.0, 8.0, 12.0, 16.0], 3)
    assert kendall(-depth + 1e-6 * np.arange(15), depth) == pytest.approx(-0.845, abs=5e-4)
    assert kendall(width + 1e-6 * np.arange(15), width) == pytest.approx(0.926, abs=5e-4)
    assert kendall(np.arange(15), np.arange(15)) == 1


def made_proxies() -> Proxies:
    width, depth = (side.ravel().astype(float) for side in np.meshgrid((4, 6, 8, 12, 16), (8, 14, 20)))
    macs = width**2 * (depth - 2)
    chance = np.random.default_rng(4)
    accuracy = 70 + 3 * np.log(width)
    values = {"macs": macs, "parameters": macs / 9, "depth": depth, "width": width}
    values |= {"relation_score": -1 / macs, "relation_score_untrained": chance.normal(size=15)}
    seeds = {seed: accuracy + 0.1 * chance.normal(size=15) for seed in (0, 1)}
    return Proxies(tuple(f"r{one}" for one in range(15)), values, seeds, 10, 1)


def test_a_proxy_that_is_size_in_disguise_has_the_tau_of_size() -> None:
    proxies = made_proxies()
    assert proxies.tau("relation_score").value == pytest.approx(proxies.tau("macs").value)
    assert proxies.difference("relation_score") == pytest.approx((0, 0, 0))
    assert proxies.tau("macs").low > 0.3
    noise = proxies.tau("relation_score_untrained")
    assert noise.low < 0 < noise.high
    assert proxies.reliability() > 0.7


def test_the_figure_of_proxies_names_every_tau() -> None:
    proxies = made_proxies()
    figure = plots.proxies_figure(proxies)
    plots.check_labels(figure)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0].startswith(f"tau {proxies.tau('macs').value:+.2f} (")
    assert f"tau {proxies.tau('relation_score').value:+.2f}" in plots.proxies_alt(proxies)


def test_missing_rows_are_told_with_their_commands(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"course\.experiments\.search_proxy"):
        search_results.load_proxies(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"course\.experiments\.search_rows"):
        search_results.load_judged(tmp_path)
    with pytest.raises(FileNotFoundError, match="kdlib study"):
        search_results.stored_choices(tmp_path)


# --- choices and their promises


def write(path: Path, rows: list[dict[str, object]]) -> None:
    columns = ("method", "seed", *SETTING_NAMES, "validation_accuracy", "error")
    with RunsFile(path, columns).open() as file:
        for row in rows:
            file.append(row)


def test_a_choice_is_compared_with_fresh_seeds_of_the_same_setting(tmp_path: Path) -> None:
    good, bad = {"method": "kd", "learning_rate": 0.1}, {"method": "kd", "learning_rate": 1.0}
    moved = {"method": "hard", "learning_rate": 0.3}
    trials = [
        {**good, "seed": 1000, "validation_accuracy": 0.92},
        {**bad, "seed": 1000, "validation_accuracy": 0.90},
        {**bad, "seed": 1000, "error": "diverged"},
        {**moved, "seed": 1000, "validation_accuracy": 0.91},
    ]
    runs = [{**good, "seed": seed, "validation_accuracy": 0.90 + 0.01 * seed} for seed in (0, 1)]
    runs += [{"method": "hard", "learning_rate": 0.5, "seed": 0, "validation_accuracy": 0.9}]
    trials += [{"method": "dkd", "learning_rate": 0.1, "seed": 1000, "validation_accuracy": 0.92}]
    diverged = {"method": "dkd", "learning_rate": 0.1, "seed": 1, "error": "diverged"}
    runs += [{"method": "dkd", "learning_rate": 0.1, "seed": 0, "validation_accuracy": 0.9}, diverged]
    write(tmp_path / "choose-resnet8-resnet20-fashion-10.csv", trials)
    write(tmp_path / "methods-resnet8-resnet20-fashion-10.csv", runs)
    choices = search_results.stored_choices(tmp_path)
    # Hard labels were run with another setting, and of dkd a seed has no accuracy.
    assert choices["method"].tolist() == ["kd"]
    row = choices.iloc[0]
    assert (row["trials"], row["seeds"]) == (2, 2)
    assert (row["promised"], row["kept"], row["excess"]) == pytest.approx((92, 90.5, 1.5))
    assert "mean +1.50" in plots.kept_promises_alt(choices)
    plots.check_labels(plots.kept_promises(choices))


def test_studies_with_another_optimiser_have_a_title_of_their_own(tmp_path: Path) -> None:
    row = {"method": "kd", "learning_rate": 0.1, "seed": 0, "validation_accuracy": 0.9}
    for ending in ("10000", "10000-adamw"):
        for kind in ("choose", "methods"):
            write(tmp_path / f"{kind}-article-student-resnet50-fashion-v2-{ending}.csv", [row])
    figure = plots.kept_promises(search_results.stored_choices(tmp_path))
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    plain = "ResNet-50 v2 to article's student, 10,000"
    assert sorted(names) == [plain, f"{plain}, adamw"]


# --- the judged search


def made_judged() -> JudgedSearch:
    levels = {FOUND: 0.82, RANDOM: 0.82, CONTROL: 0.80, DEFAULTS: 0.70}
    settings = {"learning_rate": "1.0", "weight_decay": "0.001", "alpha": "0.3", "temperature": "5.0"}
    chance = np.random.default_rng(6)
    runs = [
        {"arm": arm, "seed": str(seed), **settings, "validation_accuracy": str(level + 0.01)}
        | {"test_accuracy": str(level + 0.002 * chance.normal())}
        for arm, level in levels.items()
        for seed in range(5)
    ]
    trials = [
        {"search": FOUND, "trained_epochs": "9", "validation_accuracy": "0.84"},
        {"search": FOUND, "trained_epochs": "1", "validation_accuracy": ""},
        {"search": RANDOM, "trained_epochs": "9", "validation_accuracy": "0.85"},
    ]
    return JudgedSearch(tuple(trials), tuple(runs))


def test_the_verdicts_are_read_off_paired_seeds_and_hold_together() -> None:
    judged = made_judged()
    assert str(judged.gain(DEFAULTS).verdict) == "BEATS"
    assert str(judged.gain(RANDOM).verdict) == "INCONCLUSIVE"
    assert judged.gain(DEFAULTS).comparisons == 3
    lines = judged.verdicts().splitlines()
    assert len(lines) == 3
    assert lines[-1].endswith("BEATS")
    assert (judged.cost(FOUND), judged.count(FOUND)) == (10, 2)
    assert judged.promised(RANDOM) == pytest.approx(85)
    with pytest.raises(ValueError, match="promises nothing"):
        judged.promised(DEFAULTS)


def test_the_name_of_the_control_says_what_it_has_of_the_found_setting() -> None:
    judged = search_results.load_judged()
    of_arm = {arm: judged.settings(arm) for arm in judged.arms}
    same = [name for name, value in of_arm[CONTROL].items() if value == of_arm[FOUND][name]]
    assert same == ["learning_rate", "weight_decay"]
    for text in (judged.summary(), judged.verdicts()):
        assert text.count("found rate and decay ") == 1


def test_an_arm_that_lost_a_seed_has_no_mean_and_no_verdict() -> None:
    judged = made_judged()
    lost = [{**row, "test_accuracy": "", "error": "inf"} if row["arm"] == RANDOM else row for row in judged.runs]
    found = JudgedSearch(judged.trials, tuple(lost))
    assert RANDOM in found.arms
    for ask in (found.summary, found.verdicts, lambda: found.accuracies(RANDOM)):
        with pytest.raises(ValueError, match="'?random search'? diverged at seeds 0, 1, 2, 3, 4: inf"):
            ask()
    assert str(found.gain(DEFAULTS).verdict) == "BEATS"


def test_with_two_tuning_seeds_a_choice_is_of_their_mean(tmp_path: Path) -> None:
    pairs = {0.1: (0.80, 0.60), 0.2: (0.75, 0.75), 0.3: (0.99, None)}  # the last one diverged with a seed
    trials = [
        {"method": "kd", "learning_rate": rate, "seed": seed}
        | ({"validation_accuracy": value} if value else {"error": "diverged"})
        for rate, values in pairs.items()
        for seed, value in zip((1000, 1001), values, strict=True)
    ]
    runs = [{"method": "kd", "learning_rate": 0.2, "seed": seed, "validation_accuracy": 0.7} for seed in (0, 1)]
    write(tmp_path / "choose-resnet8-resnet20-fashion-10000.csv", trials)
    write(tmp_path / "methods-resnet8-resnet20-fashion-10000.csv", runs)
    assert kept_results.best_trial("kd", tmp_path) == 0.75
    (row,) = search_results.stored_choices(tmp_path).to_dict("records")
    assert (row["trials"], row["promised"], row["kept"]) == (2, 75.0, pytest.approx(70.0))


def test_rows_of_another_budget_are_refused(tmp_path: Path) -> None:
    def add(**values: object) -> None:
        row = {"search": "found", "trial": 0, "state": "complete", "learning_rate": 0.1, **values}
        with RunsFile(tmp_path / "t.csv", search_rows.TRIAL_COLUMNS, lambda line: None).open() as file:
            session = SessionLog(file.path, "the command", len(file.rows))
            search_rows._append(file, session, ("search", "trial"), [row])

    add(epochs=6)
    add(epochs=6)  # once more: nothing to add
    with pytest.raises(ValueError, match="found 0 with epochs 6, not 12. Choose another folder"):
        add(epochs=12)
    with pytest.raises(ValueError, match=r"learning_rate 0\.1, not 0\.2"):
        add(epochs=6, learning_rate=0.2)
