"""The experiment on several teachers: what it trains, chooses and repeats, and what is read off its rows."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from second_device import run_on_second_device
from torch import nn

from course import plots
from course.experiments import several_common, several_mutual, several_own, several_results, several_same
from course.experiments import several_teachers as several
from course.experiments.several_common import TUNING_SEEDS, Outcome, Part, Setting, Way, train_split_of
from kdlib.study.runs_file import read_rows

SOFT = tuple(Setting(rate, t) for t in (1.0, 4.0) for rate in (0.1, 0.2))


class Right(nn.Module):
    """Says class 0 to everything."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.eye(10)[torch.zeros(len(images), dtype=torch.long)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[several.Run]:
    """The runs that would have been trained; each answers with an invented row."""
    runs: list[several.Run] = []

    def execute(run: several.Run, part: Part, chosen: dict[str, Setting], *, test: bool) -> dict[str, Any]:
        runs.append(run)
        t = run.setting.temperature or 1.0
        row = run.columns(part) | {"seconds": 1.0}
        better = {"first": 0.01, "second": 0.03, "variant": 0.02}[run.way]
        measured = {"test_accuracy": 0.8 + better * (1 + 0.1 * run.seed), "teacher_accuracy": 0.9}
        return row | (measured if test else {"validation_accuracy": 0.5 + run.setting.learning_rate + 0.01 * t})

    monkeypatch.setattr(several, "execute", execute)
    return runs


def none(*_: Any) -> Outcome:
    raise AssertionError("nothing is trained here")


PART = Part(
    "own",
    100,
    2,
    3,
    {"first": Way(none, SOFT), "variant": Way(none, as_in="second"), "second": Way(none, SOFT, trials_only=False)},
)


def run(folder: Path, seeds: int = 2, part: Part = PART) -> list[dict[str, str]]:
    return several.run_part(part, seeds, folder, "the command", log=lambda text: None)


def test_every_way_has_the_same_trials_and_a_variant_takes_over(made: list[several.Run], tmp_path: Path) -> None:
    rows = run(tmp_path)
    for seed in TUNING_SEEDS:
        tried = {way: {one.setting for one in made if one.way == way and one.seed == seed} for way in PART.ways}
        assert tried == {"first": set(SOFT), "second": set(SOFT), "variant": set()}
    assert {(row["way"], row["learning_rate"], row["temperature"]) for row in rows} == {
        (way, "0.2", "4.0") for way in PART.ways
    }
    trials = read_rows(several.path("own", tmp_path, trials=True))
    assert len(trials) == 2 * len(SOFT) * len(TUNING_SEEDS)
    assert not any("test" in column for column in trials[0])


@pytest.mark.slow
def test_what_is_finished_is_not_repeated(made: list[several.Run], tmp_path: Path) -> None:
    run(tmp_path, seeds=1)
    content = several.path("own", tmp_path).read_text()
    several.path("own", tmp_path).write_text(content[: content.rstrip().rfind("\n") + 5])  # as a kill leaves it
    made.clear()
    rows = run(tmp_path, seeds=2)
    assert [(one.way, one.seed) for one in made] == [("second", 0), ("first", 1), ("variant", 1), ("second", 1)]
    assert len(rows) == 6
    facts = json.loads(several.path("own", tmp_path).with_suffix(".json").read_text())
    assert facts["sessions"][-1]["command"] == "the command"


def test_files_of_another_budget_and_unknown_parts_are_refused(made: list[several.Run], tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ValueError, match="share one budget"):
        run(tmp_path, part=replace(PART, images=200))
    with pytest.raises(ValueError, match="no part named 'other'"):
        several_results.load("other", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"course\.experiments\.several_teachers --only same"):
        several_results.load("same", tmp_path)


def test_trials_that_all_diverged_leave_no_setting() -> None:
    row = {"way": "first", "learning_rate": "0.1", "temperature": "", "validation_accuracy": ""}
    good = row | {"validation_accuracy": "0.9"}
    with pytest.raises(ValueError, match="diverged"):
        several.best([row, good], "first", [Setting(0.1)])  # with one of its two seeds


def test_the_setting_is_the_best_in_the_mean_of_its_trials() -> None:
    found = [("0.1", 0.5, 0.7), ("0.2", 0.9, 0.2), ("0.4", 0.6, 0.6)]
    rows = [
        {"way": "first", "learning_rate": rate, "temperature": "", "validation_accuracy": str(score)}
        for rate, *scores in found
        for score in scores
    ]
    settings = [Setting(rate) for rate in (0.1, 0.2, 0.4)]
    assert several.best(rows, "first", settings) == Setting(0.1)  # of two that are equal the smaller rate
    assert several.best(rows, "first", settings[1:]) == Setting(0.4)  # rows of an earlier search do not count


def test_rows_become_gains_tables_and_a_figure(made: list[several.Run], tmp_path: Path) -> None:
    run(tmp_path, seeds=4)
    several_results.load.cache_clear()
    found = several_results.load("own", tmp_path)
    gains = {gain.way: gain.comparison for gain in found.compare("first")}
    assert set(gains) == {"variant", "second"}
    assert gains["second"].mean == pytest.approx(100 * 0.02 * (1 + 0.1 * 1.5))
    assert gains["second"].comparisons == 2
    table = found.table(["second"])
    assert table.loc["second", "student"] == pytest.approx(100 * (0.8 + 0.03 * 1.15))
    assert table.loc["second", "teacher"] == pytest.approx(90)
    with pytest.raises(ValueError, match="no way in the part"):
        found["third"]
    figure = plots.several_ways(found, "first")
    plots.check_labels(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["first", "variant", "second"]
    notes = [text.get_text() for text in figure.axes[2].texts if " to " in text.get_text()]
    for note, name in zip(notes, ("variant", "second"), strict=True):
        assert f"{gains[name].low:+.2f} to {gains[name].high:+.2f}" in note
    assert "second: teacher 90.0 %, student 83.5 %, +2.30" in plots.several_ways_alt(found, "first")
    several_results.load.cache_clear()


def test_a_way_of_which_a_seed_diverged_is_not_judged_by_the_others(made: list[several.Run], tmp_path: Path) -> None:
    rows = run(tmp_path, seeds=4)
    for row in rows:
        if (row["way"], row["seed"]) == ("second", "2"):
            row |= {"test_accuracy": "", "teacher_accuracy": "", "error": "The loss is nan"}
    path = several.path("own", tmp_path)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, several.RUN_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    several_results.load.cache_clear()
    found = several_results.load("own", tmp_path)
    several_results.load.cache_clear()
    for judge in (lambda: found["second"].accuracy, lambda: found.compare("first"), found.table):
        with pytest.raises(ValueError, match=r"'second' .* seed 2: The loss is nan"):
            judge()
    (gain,) = found.compare("first", ["variant"])
    assert gain.comparison.n == 4


def test_a_seed_that_is_there_twice_is_not_counted_twice(made: list[several.Run], tmp_path: Path) -> None:
    run(tmp_path, seeds=2)
    path = several.path("own", tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, next(line for line in lines if ",second,1," in line)]))
    several_results.load.cache_clear()
    with pytest.raises(ValueError, match="'second' has more than one row for seed 1"):
        several_results.load("own", tmp_path)
    several_results.load.cache_clear()


# -------------------- what is trained


def test_own_images_are_apart_and_only_the_last_has_wrong_labels() -> None:
    whole = train_split_of(3, several_own.IMAGES)
    true = dict(zip(whole.indices.tolist(), whole.labels.tolist(), strict=True))
    for damage in (several_own.RANDOM, several_own.RENUMBERED):
        parts = several_own.own_images(3, damage)
        assert [len(part) for part in parts] == [1000] * 5
        assert len({index for part in parts for index in part.indices.tolist()}) == 5000
        wrong = [
            sum(true[index] != label for index, label in zip(part.indices.tolist(), part.labels.tolist(), strict=True))
            for part in parts
        ]
        assert wrong[:4] == [0] * 4
        assert wrong[4] == 1000 if damage == several_own.RENUMBERED else 650 < wrong[4] < 780


def test_a_group_has_its_own_numbers() -> None:
    group = (5, 7, 9)
    few = several_same._only(2, group)
    assert few.classes == ("Sandal", "Sneaker", "Ankle boot")
    whole = train_split_of(2, several_same.IMAGES)
    true = dict(zip(whole.indices.tolist(), whole.labels.tolist(), strict=True))
    assert [true[index] for index in few.train.indices.tolist()] == [group[one] for one in few.train.labels.tolist()]
    assert sorted(sum(several_same.GROUPS, ())) == list(range(10))


def test_units_of_compute_are_what_they_are_said_to_be() -> None:
    assert several_same.MEMBERS == 3
    ways = several_mutual.PART.ways
    assert [len(way.settings) for way in ways.values()] == [6] * len(ways)
    counts = {len(way.settings) for way in several_own.PART.ways.values() if way.as_in is None}
    assert counts == {8}
    assert {len(way.settings) for way in several_same.PART.ways.values() if way.as_in is None} == {3, 10}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (several_own, several_same, several_mutual):
        monkeypatch.setattr(module, "EPOCHS", 1)
    for module in (several_own, several_same):
        monkeypatch.setattr(module, "STUDENT_EPOCHS", 1)
    small = several_common.fashion()
    few = {name: getattr(small, name).select(torch.arange(300)) for name in ("validation", "test")}
    monkeypatch.setattr(several_common, "fashion", lambda: replace(small, **few))
    monkeypatch.setattr(several, "fashion", lambda: replace(small, **few))
    monkeypatch.setattr(several_own, "IMAGES", 5_100)
    for module in (several_same, several_mutual):
        monkeypatch.setattr(module, "IMAGES", 300)


@pytest.mark.slow
@pytest.mark.parametrize("part", several.PARTS)
def test_every_way_gives_a_row(part: str, short: None) -> None:
    chosen = several.PARTS[part]
    settings = {name: (way.settings or chosen.ways[way.as_in or ""].settings)[0] for name, way in chosen.ways.items()}
    for name, way in chosen.ways.items():
        row = several.execute(several.Run(name, 5, settings[name]), chosen, settings, test=True)
        assert "error" not in row
        assert "validation_accuracy" not in row
        assert 0 <= row["test_accuracy"] <= 1
        taught = not way.trials_only and name not in ("true labels", "hard labels", "average single")
        assert ("teacher_accuracy" in row) == (taught and part != "mutual")


def test_a_pair_that_diverges_is_no_result(short: None) -> None:
    pair = [several_common.thin_resnet(2, seed) for seed in (0, 1)]
    with torch.no_grad():
        next(pair[1].parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="network 1 is nan at step 0"):
        several_mutual.train_together(pair, 5, Setting(0.05), 1)


@pytest.mark.slow
def test_networks_that_learn_together_run_on_an_accelerator() -> None:
    found = run_on_second_device("""
        import torch
        from course.experiments import several_common, several_mutual
        from course.experiments.several_common import Setting

        several_mutual.IMAGES = 100
        pair = [several_common.thin_resnet(2, seed) for seed in (0, 1)]
        several_mutual.train_together(pair, 5, Setting(0.05, 1.0), 1, torch.zeros(100, 10))
        print(next(pair[0].parameters()).device == DEVICE)
    """)
    assert found == "True\n"


@pytest.mark.slow
def test_two_that_learn_together_differ_from_two_that_learn_alone(short: None) -> None:
    def pair() -> list[nn.Module]:
        return [several_common.thin_resnet(2, seed) for seed in (0, 1)]

    alone = several_mutual.train_together(pair()[:1], 5, Setting(0.05), 1)
    apart = several_mutual.train_together(pair(), 5, Setting(0.05), 1)
    together = several_mutual.train_together(pair(), 5, Setting(0.05, 1.0), 1)
    split = train_split_of(5, several_mutual.IMAGES)

    def logits(network: nn.Module) -> torch.Tensor:
        return several_common.logits_of(network, split)

    torch.testing.assert_close(logits(apart[0]), logits(alone[0]))  # without a temperature they ignore each other

    def distance(networks: list[nn.Module]) -> float:
        first, second = (logits(one).softmax(dim=1) for one in networks)
        return float((first - second).abs().mean())

    assert distance(together) < distance(apart)
