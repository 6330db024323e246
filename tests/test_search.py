"""kdlib search: the same seed, the same trials; a kill loses none; honest judgement; bad inputs in a sentence."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
import weakref
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from scipy import stats
from torch import nn
from tqdm import tqdm

from course import plots
from kdlib import cli, data, files, measure, models, search, train, verdict
from kdlib.data import DataModule, LazyDataset
from kdlib.search import engine, judging, storage, task, workers
from kdlib.search import report as search_report
from kdlib.search.limits import CostTable, Limits
from kdlib.search.task import Outcome
from kdlib.search.trials import COMPLETE, DIVERGED, INFEASIBLE, PRUNED, Strategy, Trials
from kdlib.study.method_specs import Settings

pytest.importorskip("optuna")

TINY: dict[str, Any] = {"student": "resnet8w2", "views": 1, "precision": "fp32", "progress": False}
TRAINED = {"state", "validation_accuracy", "last_report", "epochs", "cost", "student"}


@pytest.fixture(scope="session")
def teacher() -> nn.Module:
    return models.build("resnet8w4", num_classes=3, in_channels=1, image_size=8, seed=5).eval()


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The seed of every training that is begun."""
    begun, fit = [], train.fit

    def counted(*args: Any, **options: Any) -> train.Result:
        begun.append(options["seed"])
        return fit(*args, **options)

    monkeypatch.setattr(train, "fit", counted)
    return begun


def evaluated_splits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whatever is evaluated from now on, except by `fit` itself."""
    evaluated, evaluate = [], train.evaluate

    def noted(model: nn.Module, split: Any, **options: Any) -> train.Metrics:
        evaluated.append(split)
        return evaluate(model, split, **options)

    monkeypatch.setattr(train, "evaluate", noted)
    return evaluated


def accuracy_of(settings: Any) -> float:
    """An invented accuracy: best at a learning rate of 0.2, with noise that is a function of the settings."""
    noise = random.Random(repr(settings)).random()
    return 0.9 - 0.1 * abs(torch.log10(torch.tensor(settings.learning_rate / 0.2)).item()) + 0.01 * noise


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Trainings that take no time, for tests of what stands around them; the settings of each."""
    made: list[Any] = []

    def run(self: Any, student: str, settings: Any, seed: int, *, reports: Any = (), report: Any = None,
            test: bool = False) -> task.Outcome:  # fmt: skip
        made.append(settings)
        for epoch in reports:
            if not report(epoch, accuracy_of(settings) - 0.3 / epoch):
                return task.Outcome(epoch, 0.0)
        accuracy = accuracy_of(settings) + 0.001 * random.Random(seed).random()
        # On test another scatter, which is not the same for two settings at one seed.
        tested = accuracy - 0.01 + 0.002 * random.Random(f"{settings} {seed}").random()
        return task.Outcome(self.task.epochs, 0.0, accuracy, tested if test else None)

    monkeypatch.setattr(task.TaskRunner, "run", run)
    monkeypatch.setattr(task.TaskRunner, "prepare", lambda self, seed: None)
    return made


def points(found: search.Found) -> list[dict[str, Any]]:
    """What is the same for the same trials: everything but times."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found.rows]


# --- the search itself


@pytest.mark.slow
def test_the_best_trial_is_the_complete_one_with_the_highest_validation_accuracy(
    blobs: DataModule, teacher: nn.Module, trainings: list[int]
) -> None:
    found = search.run(blobs, teacher=teacher, trials=6, epochs=4, **TINY)
    table = found.trials
    assert len(table) == len(trainings) == 6
    assert set(trainings) == {found.tuning_seed} == {1000}
    complete = table[table.state == COMPLETE]
    assert found.best.validation_accuracy == complete.validation_accuracy.max()
    assert found.best.trial == complete.validation_accuracy.idxmax()
    for name, one in found.space.items():
        assert table[name].between(one.low, one.high).all()
        assert getattr(found.best.settings, name) == table.loc[found.best.trial, name]
    assert found.cost == table.epochs.sum()
    assert str(found.best.trial) in str(found)


def test_what_was_found_trains_to_the_accuracy_that_was_reported(blobs: DataModule, teacher: nn.Module) -> None:
    """The search's training is the library's: the same settings and seed by `train.fit` give the same student."""
    found = search.run(blobs, teacher=teacher, trials=2, epochs=3, pruner=None, images=60, **TINY)
    few = blobs.subset(60, seed=found.tuning_seed)
    student = found.build_student(found.tuning_seed)
    result = train.fit(
        student,
        few,
        teacher=teacher,
        method=found.make_method(student),
        epochs=3,
        views=1,
        recipe=found.best.settings.recipe(found.task.batch_size),
        seed=found.tuning_seed,
        precision="fp32",
        progress=False,
        test=False,
    )
    # The stored outputs of the teacher have 16 bits, so single images may differ.
    assert result.validation_accuracy == pytest.approx(found.best.validation_accuracy, abs=0.07)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_and_another_seed_others(blobs: DataModule, teacher: nn.Module) -> None:
    first, again, other = (
        search.run(blobs, teacher=teacher, trials=7, epochs=4, seed=seed, **TINY) for seed in (3, 3, 4)
    )
    assert points(first) == points(again)
    assert first.tuning_seed == 1003
    assert all(a["learning_rate"] != b["learning_rate"] for a, b in zip(points(first), points(other), strict=True))


@pytest.mark.slow
def test_the_test_set_is_not_read_and_no_training_or_evaluation_is_made_that_is_not_counted(
    blobs: DataModule, teacher: nn.Module, trainings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = evaluated_splits(monkeypatch)
    monkeypatch.setattr(task, "LEAST_REPORT", 12)
    sealed = replace(blobs, test=_Sealed())
    found = search.run(sealed, teacher=teacher, trials=6, epochs=4, images=20, **TINY)
    assert len(trainings) == 6
    evaluated = [len(split) for split in splits]
    complete, reports = found.count(COMPLETE), len(found.rows) + sum(row["epochs"] >= 3 for row in found.rows)
    assert evaluated.count(30) == complete  # the whole validation split
    assert evaluated.count(12) == reports  # a part of it, after epochs 1 and 3
    assert len(evaluated) == complete + reports


def test_trials_are_stopped_by_images_of_every_class_and_judged_by_all(
    blobs: DataModule, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of a folder come class by class."""
    splits = evaluated_splits(monkeypatch)
    monkeypatch.setattr(task, "LEAST_REPORT", 6)
    monkeypatch.setattr(task, "EPOCH_VALIDATION", 6)
    by_class = replace(blobs, validation=blobs.validation.select(blobs.validation.labels.argsort()))
    search.run(by_class, teacher=teacher, trials=2, epochs=3, images=12, **TINY)
    reported = [split for split in splits if len(split) == 6]
    assert len(reported) >= 2
    assert all(split.labels.tolist() == [0, 0, 1, 1, 2, 2] for split in reported)
    assert len(splits) - len(reported) == sum(len(split) == 30 for split in splits) > 0


def test_a_trial_is_trained_with_the_settings_of_its_row(
    blobs: DataModule, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, fit = [], train.fit

    def noted(*args: Any, **options: Any) -> train.Result:
        trained.append((options["method"], options["recipe"]))
        return fit(*args, **options)

    monkeypatch.setattr(train, "fit", noted)
    found = search.run(blobs, teacher=teacher, trials=3, epochs=1, pruner=None, **TINY)
    assert len({row["alpha"] for row in found.rows}) == 3
    for row, (method, recipe) in zip(found.rows, trained, strict=True):
        assert (method.alpha, method.temperature) == (row["alpha"], row["temperature"])
        assert recipe.learning_rate == row["learning_rate"] * recipe.batch_size / 128
        assert recipe.weight_decay == row["weight_decay"]
    best = found.make_method(found.build_student())
    assert (best.alpha, best.temperature) == (found.best.settings.alpha, found.best.settings.temperature)


class _Sealed:
    """A test set that may not be looked at."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"The test set's {name} were read.")


@pytest.mark.slow
def test_hyperband_stops_trials_after_epochs_1_3_and_9_and_only_such_that_are_behind(
    blobs: DataModule, teacher: nn.Module, invented: list[Any]
) -> None:
    found = search.run(blobs, teacher=teacher, trials=30, epochs=15, **TINY)
    stopped = [row for row in found.rows if row["state"] == PRUNED]
    assert {row["epochs"] for row in stopped} <= {1, 3, 9}
    assert len(stopped) > 15
    assert found.cost < 0.6 * 30 * 15
    best = max(accuracy_of(settings) for settings in invented)
    assert best - found.best.validation_accuracy < 0.03


def test_without_a_pruner_every_trial_is_trained_to_its_end(
    blobs: DataModule, teacher: nn.Module, invented: list[Any]
) -> None:
    found = search.run(blobs, teacher=teacher, trials=9, epochs=15, pruner=None, **TINY)
    assert [row["epochs"] for row in found.rows] == [15] * 9
    assert found.count(COMPLETE) == 9


def test_magnitudes_are_searched_by_their_logarithm(blobs: DataModule, teacher: nn.Module, invented: list[Any]) -> None:
    space = {"learning_rate": search.LogUniform(1e-4, 1.0)}
    found = search.run(blobs, teacher=teacher, space=space, trials=40, epochs=1, pruner=None, sampler="random", **TINY)
    assert 10 <= sum(row["learning_rate"] < 1e-2 for row in found.rows) <= 30  # drawn evenly, one in a hundred


def test_tpe_looks_where_it_was_good_and_random_search_everywhere(
    blobs: DataModule, teacher: nn.Module, invented: list[Any]
) -> None:
    spread = {}
    for sampler in ("tpe", "random"):
        found = search.run(blobs, teacher=teacher, trials=60, epochs=1, pruner=None, sampler=sampler, **TINY)
        rates = torch.tensor([row["learning_rate"] for row in found.rows[30:]])
        spread[sampler] = (rates / 0.2).log10().abs().mean().item()
    assert spread["tpe"] < 0.6 * spread["random"]


def test_importance_finds_the_one_setting_that_matters(
    blobs: DataModule, teacher: nn.Module, invented: list[Any]
) -> None:
    found = search.run(blobs, teacher=teacher, trials=60, epochs=1, pruner=None, sampler="random", **TINY)
    assert max(found.importance, key=lambda name: found.importance[name]) == "learning_rate"
    assert sum(found.importance.values()) == pytest.approx(1)
    few = search.run(blobs, teacher=teacher, trials=3, epochs=1, pruner=None, **TINY)
    assert few.importance == {}


def test_no_colour_of_the_picture_means_something_else_in_the_course(
    blobs: DataModule, teacher: nn.Module, invented: list[Any]
) -> None:
    options: dict[str, Any] = {"teacher": teacher, "trials": 20, "epochs": 9, **TINY}
    found, other = search.run(blobs, **options), search.run(blobs, **options, sampler="random")
    best, importance, *_ = search_report.picture(found, other).axes
    lines = {line.get_label(): line for line in best.lines}
    assert len(importance.patches) == len(found.importance) > 0
    assert {to_hex(bar.get_facecolor()).upper() for bar in importance.patches} == {plots.NEUTRAL.colour}
    assert to_hex(lines["random search"].get_color()).upper() not in {role.colour for role in plots.ROLES}
    assert lines["random search"].get_linestyle() != lines["tpe + hyperband"].get_linestyle()
    assert to_hex(lines["tpe + hyperband"].get_color()).upper() == plots.DISTILLED.colour


def test_a_space_of_one_setting_is_not_told_that_its_trials_were_too_few(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    space = {"learning_rate": search.LogUniform(0.01, 1.0)}
    found = search.run(blobs, teacher=teacher, space=space, trials=8, epochs=1, pruner=None, **TINY)
    assert found.importance == {}
    found.save(tmp_path)
    report = (tmp_path / "report.md").read_text("utf-8")
    assert "Too few trials" not in report
    assert "Best trial:" in report
    drawn = [text.get_text() for axes in search_report.picture(found).axes for text in axes.texts]
    assert any("one setting" in text for text in drawn)
    assert not any("too few" in text for text in drawn)


def test_a_trial_that_diverges_is_said_and_the_search_goes_on(blobs: DataModule, teacher: nn.Module) -> None:
    space = {"learning_rate": search.Choice((0.05, 1e30))}
    found = search.run(blobs, teacher=teacher, space=space, trials=6, epochs=2, pruner=None, **TINY)
    assert found.count(DIVERGED) + found.count(COMPLETE) == 6
    for row in found.rows:
        assert (row["learning_rate"] > 1) == (row["state"] == DIVERGED) == bool(row["error"])
    assert 0 < found.count(DIVERGED) < 6
    assert found.best.settings.learning_rate == 0.05


def test_to_tpe_a_diverged_trial_is_infeasible_and_so_worse_than_any_other(blobs: DataModule) -> None:
    import optuna

    trials = Trials(
        "search",
        optuna.storages.InMemoryStorage(),
        Strategy("tpe", "hyperband", seed=0, epochs=9, count=2),
        {"learning_rate": search.LogUniform(0.01, 1.0)},
        "resnet8w2",
        CostTable(blobs, timed=False),
        Limits(),
        {},
    )
    trials.resume(1)
    for outcome in (Outcome(2, 1.0, error="The loss is not finite"), Outcome(9, 1.0, 0.2)):
        assignment = trials.take(0, 0.0)
        assert assignment is not None
        assert trials.report(assignment, 1, 0.3, 1.0)
        trials.finish(assignment, outcome)
    assert [row["state"] for row in trials.rows] == [DIVERGED, COMPLETE]
    diverged, complete = trials.study.get_trials()
    assert max(diverged.constraints.values(), default=0) > 0
    assert max(complete.constraints.values(), default=0) <= 0


def test_two_machines_that_begin_a_trial_at_once_draw_other_settings(
    blobs: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one shared storage: both see as many trials before either has made its own."""
    import optuna

    store = optuna.storages.InMemoryStorage()
    strategy = Strategy("random", None, seed=0, epochs=1, count=4)
    space = {"learning_rate": search.LogUniform(0.01, 1.0)}
    common = ("search", store, strategy, space, "resnet8w2", CostTable(blobs, timed=False), Limits(), {})
    one, other = Trials(*common), Trials(*common)
    drawn = []
    ask = one.study.ask

    def ask_after_the_other() -> optuna.Trial:
        monkeypatch.setattr(one.study, "ask", ask)
        drawn.append(other.take(0, 0.0))
        return ask()

    monkeypatch.setattr(one.study, "ask", ask_after_the_other)
    drawn.append(one.take(0, 0.0))
    assert [assignment.trial.number for assignment in drawn if assignment] == [0, 1]
    assert len({assignment.params["learning_rate"] for assignment in drawn if assignment}) == 2


def test_a_search_that_goes_on_has_its_clocks_where_they_stood(blobs: DataModule) -> None:
    """A diverged trial is ended at the turn of its next report, when the other worker had its own turns before."""
    import optuna

    store = optuna.storages.InMemoryStorage()
    strategy = Strategy("tpe", "hyperband", seed=0, epochs=9, count=4)
    space = {"learning_rate": search.LogUniform(0.01, 1.0)}
    common = ("search", store, strategy, space, "resnet8w2", CostTable(blobs, timed=False), Limits(), {})
    trials = Trials(*common)
    assert trials.resume(2) == [0.0, 0.0]
    for slot, reports in ((0, [1]), (1, [])):
        assignment = trials.take(slot, 0.0)
        assert assignment is not None
        for epoch in reports:
            assert trials.report(assignment, epoch, 0.3, 1.0)
        trials.finish(assignment, Outcome(2 if reports else 1, 1.0, error="The loss is not finite"))
    assert Trials(*common).resume(2) == [3.0, 1.0]  # the reports are after epochs 1 and 3
    assert Trials(*common).resume(3) == [3.0, 1.0, 1.0]  # one worker more, which the others do not wait for


def test_a_search_in_which_all_diverge_has_no_best_and_says_so(blobs: DataModule, teacher: nn.Module) -> None:
    space = {"learning_rate": search.LogUniform(1e30, 1e31)}
    found = search.run(blobs, teacher=teacher, space=space, trials=2, epochs=1, pruner=None, **TINY)
    with pytest.raises(ValueError, match=r"No trial was trained to its end \(2 diverged\)"):
        found.best  # noqa: B018


def test_hard_labels_are_searched_without_a_teacher(blobs: DataModule) -> None:
    found = search.run(blobs, method="hard", trials=2, epochs=1, **TINY)
    assert set(found.space) == {"learning_rate", "weight_decay"}


def test_weight_and_layers_of_a_feature_loss_are_searched(blobs: DataModule, teacher: nn.Module) -> None:
    found = search.run(blobs, teacher=teacher, method="hint", trials=5, epochs=1, **TINY)
    assert {"weight", "layers"} <= set(found.space)
    assert len({row["layers"] for row in found.rows}) > 1
    assert all(0.3 <= row["weight"] <= 300 for row in found.rows)


# --- width and depth within limits


@pytest.mark.slow
def test_networks_beyond_the_limit_are_never_trained_and_do_not_count(
    blobs: DataModule, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import optuna

    built: list[str] = []
    real = task.TaskRunner.run

    def run(self: Any, student: str, *args: Any, **options: Any) -> task.Outcome:
        built.append(student)
        return real(self, student, *args, **options)

    monkeypatch.setattr(task.TaskRunner, "run", run)
    space = {"width": search.Whole(2, 8, 2), "depth": search.Whole(8, 14, 6), "alpha": search.Uniform(0, 0.5)}
    limit = 250_000
    options = {"teacher": teacher, "space": space, "max_macs": limit, **TINY, "student": None}
    found = search.run(blobs, trials=5, epochs=1, storage=tmp_path, **options)
    assert found.count(COMPLETE) + found.count(PRUNED) == len(built) == 5
    assert built == [row["student"] for row in found.rows if row["state"] != INFEASIBLE]
    assert len(set(built)) > 1
    assert found.count(INFEASIBLE) > 0
    for row in found.rows:
        network = models.build(row["student"], num_classes=3, in_channels=1, image_size=8, seed=0)
        assert row["macs"] == measure.macs(network, (1, 8, 8))
        assert (row["macs"] > limit) == (row["state"] == INFEASIBLE) == (row["epochs"] == 0)
    stored = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / storage.FILE}").trials
    for trial, row in zip(stored, found.rows, strict=True):
        assert trial.constraints["macs"] == pytest.approx(row["macs"] / limit - 1)
    assert found.best.student == found.rows[found.best.trial]["student"]
    assert measure.macs(found.build_student(), (1, 8, 8)) <= limit


def test_a_student_for_large_images_begins_as_it_is_asked_to(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {**TINY, "teacher": teacher, "student": "resnet18", "trials": 1, "epochs": 1}
    found = search.run(blobs, stem="imagenet", storage=tmp_path, **options)
    student = found.build_student()
    assert student.conv1.kernel_size == (7, 7)  # type: ignore[union-attr]
    assert found.rows[0]["macs"] == measure.macs(student, (1, 8, 8))
    found.save(tmp_path / "report")
    assert "student resnet18 (stem imagenet)" in (tmp_path / "report" / "report.md").read_text()
    with pytest.raises(ValueError, match="made with stem imagenet"):
        search.run(blobs, storage=tmp_path, **options)


def test_the_cost_of_a_smaller_network_is_counted_by_its_macs(
    blobs: DataModule, teacher: nn.Module, invented: list[Any]
) -> None:
    space = {"width": search.Whole(2, 4, 2)}
    found = search.run(
        blobs, teacher=teacher, space=space, trials=8, epochs=2, pruner=None, **{**TINY, "student": None}
    )
    largest = max(row["macs"] for row in found.rows)
    assert found.task.student == "resnet8w4"
    for row in found.rows:
        assert row["cost"] == pytest.approx(2 * row["macs"] / largest)


@pytest.mark.slow
def test_latency_is_measured_once_and_kept_for_a_search_that_goes_on(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[int] = []

    def latency(model: nn.Module, shape: Any, threads: int, **options: Any) -> measure.Latency:
        assert threads == 1
        width = model.conv1.out_channels
        measured.append(width)
        return measure.Latency(width * 1e-3, 0.0, (width * 1e-3,), 1, 1)

    monkeypatch.setattr(measure, "latency", latency)
    space = {"width": search.Whole(2, 8, 2), "learning_rate": search.LogUniform(0.01, 1)}
    options = {"teacher": teacher, "space": space, "max_latency": 5e-3, "epochs": 1, "storage": tmp_path}
    found = search.run(blobs, trials=6, **options, **{**TINY, "student": None})
    assert sorted(measured) == [2, 4, 6, 8]
    assert {row["width"] for row in found.rows if row["state"] != INFEASIBLE} == {2, 4}
    assert all(row["latency"] == pytest.approx(row["width"] * 1e-3) for row in found.rows)
    search_report.write(tmp_path, found)
    assert "at most 5 ms for an image" in (tmp_path / "report.md").read_text()
    search.run(blobs, trials=8, **options, **{**TINY, "student": None})
    assert len(measured) == 4
    # A search that replaces it, on other images, measures anew.
    fixed = {"method": "kd", "images": None, "views": 1, "sampler": "tpe", "pruner": "hyperband", "max_macs": None}
    fixed |= {"device": "cpu", "precision": "fp32"}
    given = {**fixed, **options, **TINY, "student": None, "trials": 6, "seed": 0}
    given = {name: value for name, value in given.items() if name not in ("storage", "progress")}
    other = replace(blobs, train=blobs.train.select(torch.arange(20)))
    for module, count in ((blobs, 4), (other, 8)):
        engine.measure_latencies(*engine.check(module, **given), tmp_path)
        assert len(measured) == count


def test_a_network_of_any_width_has_a_name_and_its_weights_a_file(tmp_path: Path) -> None:
    shape = {"num_classes": 10, "in_channels": 1, "seed": 0}
    network = models.build("resnet14w6", **shape)
    widths = [getattr(network, f"layer{stage}")[0].conv1.out_channels for stage in (1, 2, 3)]
    assert widths == [6, 12, 24]
    assert len([one for one in network.modules() if isinstance(one, nn.Conv2d) and one.kernel_size == (3, 3)]) == 13
    models.save(network, tmp_path / "x.safetensors")
    again = models.load(tmp_path / "x.safetensors").state_dict()
    assert all(torch.equal(again[name], value) for name, value in network.state_dict().items())
    same = models.build("resnet8w16", **shape).state_dict(), models.build("resnet8", **shape).state_dict()
    assert all(torch.equal(same[0][name], value) for name, value in same[1].items())


@pytest.mark.parametrize("name", ["resnet9w6", "resnet2w6", "resnet14w0", "resnet14w", "resnet014w6", "resnet9998w6"])
def test_a_network_of_an_impossible_depth_or_width_is_unknown(name: str) -> None:
    with pytest.raises(ValueError, match=f"There is no model named '{name}'"):
        models.build(name, num_classes=10)


# --- stopped, killed, gone on with


@pytest.mark.slow
def test_called_again_it_trains_nothing_and_with_more_trials_what_is_missing(
    blobs: DataModule, teacher: nn.Module, trainings: list[int], tmp_path: Path
) -> None:
    options = {"teacher": teacher, "epochs": 3, **TINY}
    whole = search.run(blobs, trials=7, **options)
    assert len(trainings) == 7
    search.run(blobs, trials=4, storage=tmp_path, **options)
    again = search.run(blobs, trials=4, storage=tmp_path, **options)
    assert len(trainings) == 11
    assert points(again) == points(whole)[:4]
    more = search.run(blobs, trials=7, storage=tmp_path, **options)
    assert len(trainings) == 14
    assert points(more) == points(whole)


@pytest.mark.slow
def test_a_search_stopped_within_a_trial_goes_on_with_that_trial(
    blobs: DataModule, teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"teacher": teacher, "epochs": 4, "trials": 5, **TINY}
    whole = search.run(blobs, **options)
    real, calls = train.evaluate, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search.run(blobs, storage=tmp_path, **options)
    assert points(search.run(blobs, storage=tmp_path, **options)) == points(whole)


KILLED = """
    import os, signal, sys, torch
    from kdlib.search import run, trials
    sys.path.insert(0, {tests!r})
    import test_search

    if __name__ == "__main__":
        torch.set_num_threads({threads})
        told = []
        real = trials.Trials.report

        def report(self, *args):
            told.append(1)
            answer = real(self, *args)
            if len(told) == {after}:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        trials.Trials.report = report
        run(test_search.make_blobs(), teacher=test_search.make_teacher(), storage={storage!r}, workers={workers},
            trials=8, epochs=4, **test_search.TINY)
"""


def make_teacher() -> nn.Module:
    return models.build("resnet8w4", num_classes=3, in_channels=1, image_size=8, seed=5).eval()


def make_blobs() -> DataModule:
    """As the fixture of this name."""
    import conftest

    return conftest.blobs.__wrapped__()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_search_loses_no_trial(
    blobs: DataModule, teacher: nn.Module, tmp_path: Path, num_workers: int
) -> None:
    """SIGKILL in the middle of a trial; the same call goes on, and has the trials of a search that was never killed."""
    threads = torch.get_num_threads()
    folder = tmp_path / "killed"
    code = KILLED.format(
        tests=str(Path(__file__).parent), threads=threads, after=6, storage=str(folder), workers=num_workers
    )
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(code))
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    options = {"teacher": teacher, "trials": 8, "epochs": 4, "workers": num_workers, **TINY}
    before = _stored_states(folder)
    assert "RUNNING" in before
    assert len(before) < 8
    resumed = search.run(blobs, storage=folder, **options)
    assert "RUNNING" not in _stored_states(folder)
    whole = search.run(blobs, **options)
    assert points(resumed) == points(whole)


def _stored_states(folder: Path) -> list[str]:
    import optuna

    return [trial.state.name for trial in
            optuna.load_study(study_name="search", storage=f"sqlite:///{folder / storage.FILE}").trials]  # fmt: skip


@pytest.mark.slow
def test_another_search_in_the_same_place_is_refused_and_says_what_differs(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    options = {"teacher": teacher, "trials": 2, "epochs": 2, "storage": tmp_path, **TINY}
    search.run(blobs, **options)
    moved = replace(blobs, augmentation=data.Augmentation(padding=2))
    others: dict[str, tuple[dict[str, Any], str]] = {
        "epochs": ({"epochs": 3}, r"epochs 2 \(now 3\)"),
        "seed": ({"seed": 1}, r"seed 0 \(now 1\)"),
        "space": ({"space": {"alpha": search.Uniform(0, 1)}}, "space"),
        "images": ({"images": 30}, r"num_images 96 \(now 30\)"),
        "augmentation": ({"data": moved}, "augmentation .*'padding': 1.*now .*'padding': 2"),
        "pruner": ({"pruner": None}, r"pruner hyperband \(now None\)"),
        "student": ({"student": "resnet8w4"}, "student resnet8w2"),
        "teacher": ({"teacher": models.build("resnet8w4", num_classes=3, in_channels=1, seed=6)}, "teacher"),
        "limit": ({"max_macs": 10_000_000}, r"max_macs None \(now 10000000\)"),
    }
    for change, message in others.values():
        with pytest.raises(ValueError, match=f"The search in this place was made with {message}"):
            search.run(**{"data": blobs, **options, **change})


@pytest.mark.slow
def test_what_a_killed_search_has_left_of_its_teacher_does_not_hinder_another_one(
    blobs: DataModule, teacher: nn.Module, tmp_path: Path
) -> None:
    options = {"teacher": teacher, "trials": 1, "epochs": 1, "storage": tmp_path, **TINY}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "fit", None)  # what calls it ends there, after the teacher has run
        patch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
        with pytest.raises(TypeError):
            search.run(blobs, images=60, **options)
    assert list(tmp_path.glob(".outputs/*/cache.json"))
    (tmp_path / storage.FILE).unlink()
    assert search.run(blobs, images=90, **options).count(COMPLETE) == 1
    assert not (tmp_path / ".outputs").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
@pytest.mark.parametrize("in_folder", [False, True])
def test_no_outputs_are_mapped_any_more_when_they_are_removed(
    blobs: DataModule, teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_folder: bool
) -> None:
    """Windows removes no file that is mapped."""
    rmtree, removed = shutil.rmtree, []

    def remove(folder: Any, *args: Any, **options: Any) -> None:  # TemporaryDirectory calls it too
        assert str(folder) not in Path("/proc/self/maps").read_text()
        removed.append(Path(folder).name)
        rmtree(folder, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", remove)
    place = tmp_path if in_folder else None
    found = search.run(blobs, teacher=teacher, trials=1, epochs=1, storage=place, **TINY)
    search.judge(found, (0, 1), random_search=False, progress=False)
    assert [name.partition("-")[0] for name in removed if not name.startswith("pymp-")] == (
        [".outputs", "seed0", "seed1", ".outputs"] if in_folder else ["kdlib", "seed0", "seed1", "kdlib"]
    )


def test_a_folder_in_use_is_refused(blobs: DataModule, teacher: nn.Module, tmp_path: Path) -> None:
    with storage.open_storage(tmp_path), pytest.raises(OSError, match="in use by another search"):
        search.run(blobs, teacher=teacher, storage=tmp_path, trials=1, epochs=1, **TINY)


def test_a_journal_on_a_shared_disk_holds_a_search_too(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    options = {"teacher": teacher, "epochs": 9, **TINY}
    path = f"journal:{tmp_path / 'search.log'}"
    search.run(blobs, trials=3, storage=path, **options)
    assert points(search.run(blobs, trials=6, storage=path, **options)) == points(
        search.run(blobs, trials=6, **options)
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no limit to the size of a file")
def test_a_full_disk_costs_a_journal_no_trial(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    import resource

    options = {"teacher": teacher, "epochs": 9, "trials": 6, "storage": f"journal:{tmp_path / 'search.log'}", **TINY}
    before, (soft, hard) = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, hard))  # in the middle of a line
    try:
        with pytest.raises(OSError, match=r"could not be written to .*search.log .* the same command goes on"):
            search.run(blobs, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert (tmp_path / "search.log").read_bytes().endswith(b"\n")
    made = len(invented)
    assert 0 < made < 6
    assert len(search.run(blobs, **options).rows) == 6
    assert len(invented) <= 7  # none of the whole ones is made again


def test_a_journal_with_half_a_line_of_a_killed_process_goes_on(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    options = {"teacher": teacher, "epochs": 9, "storage": f"journal:{tmp_path / 'search.log'}", **TINY}
    search.run(blobs, trials=3, **options)
    with (tmp_path / "search.log").open("ab") as file:
        file.write(b'{"op_code": 4, "worker_id')
    for count in (4, 5):
        assert len(search.run(blobs, trials=count, **options).rows) == count


@pytest.mark.parametrize("left_by_a_log", [False, True])
def test_a_disk_without_shared_memory_keeps_the_usual_journal(left_by_a_log: bool, tmp_path: Path) -> None:
    """As Windows' disks in WSL, exFAT and network mounts: SQLite cannot open what its log ahead shares there."""
    from optuna.study import StudyDirection

    if left_by_a_log:
        with storage.open_storage(tmp_path):
            pass
    (tmp_path / f"{storage.FILE}-shm").mkdir()
    for name in ("first", "second"):
        with storage.open_storage(tmp_path) as (trials, _):
            trials.create_new_study([StudyDirection.MAXIMIZE], name)
    with storage.open_storage(tmp_path) as (trials, _):
        assert [study.study_name for study in trials.get_all_studies()] == ["first", "second"]


def test_a_file_that_sqlite_cannot_open_asks_for_another_folder(tmp_path: Path) -> None:
    (tmp_path / storage.FILE).mkdir()
    with pytest.raises(OSError, match="Choose a folder on a local disk"), storage.open_storage(tmp_path):
        pass


@pytest.mark.parametrize("name", ["p{q}", "{}", "p%41q", "with space", "#1", "why?1"])
def test_a_folder_may_have_any_name(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path, name: str
) -> None:
    search.run(blobs, teacher=teacher, trials=1, epochs=1, storage=tmp_path / name, **TINY)
    assert (tmp_path / name / storage.FILE).is_file()


def test_a_damaged_file_of_trials_is_called_damaged(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    options = {"teacher": teacher, "epochs": 1, "storage": tmp_path, **TINY}
    search.run(blobs, trials=4, **options)
    path = tmp_path / storage.FILE
    for rest in tmp_path.glob(f"{storage.FILE}-*"):
        rest.unlink()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(OSError, match=r"is damaged \(.*\)\. Restore its file of trials"):
        search.run(blobs, trials=5, **options)


def test_numpy_numbers_are_taken_everywhere(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    numbers = {"trials": 2, "epochs": 3, "images": 48, "seed": 1, "max_macs": 10**9}
    options = {name: np.int64(number) for name, number in numbers.items()}
    plain = search.run(blobs, teacher=teacher, **numbers, **TINY)
    assert points(search.run(blobs, teacher=teacher, **options, **TINY)) == points(plain)
    search.judge(plain, np.arange(2), progress=False, random_search=False).save(tmp_path)
    assert json.loads((tmp_path / "search.json").read_text())["judged"]["seeds"] == [0, 1]


def test_runs_on_another_test_set_are_not_paired_with_those_on_this_one(
    blobs: DataModule, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(self: Any, student: str, settings: Any, seed: int, *, test: bool = False, **more: Any) -> task.Outcome:
        size = len(self.task.data.test) / 1_000
        return task.Outcome(self.task.epochs, 0.0, accuracy_of(settings), size if test else None)

    monkeypatch.setattr(task.TaskRunner, "run", run)
    monkeypatch.setattr(task.TaskRunner, "prepare", lambda self, seed: None)
    options = {"teacher": teacher, "trials": 2, "epochs": 1, "pruner": None, "storage": tmp_path, **TINY}
    fewer = replace(blobs, test=blobs.test.select(torch.arange(10)))
    search.judge(search.run(fewer, **options), range(2), random_search=False, progress=False)
    judged = search.judge(search.run(blobs, **options), range(3), random_search=False, progress=False)
    assert set(judged.runs.test_accuracy) == {len(blobs.test) / 1_000}


def test_a_script_without_its_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from kdlib import data, models, search\n"
        "teacher = models.build('resnet8w4', num_classes=10, in_channels=1, seed=5).eval()\n"
        "options = dict(student='resnet8w2', views=1, images=64, trials=2, epochs=1, progress=False)\n"
        f"search.run(data.load('fashion-mnist'), teacher=teacher, workers=2, storage={str(tmp_path)!r}, **options)\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode != 0
    assert 'Put the call of search.run below a line `if __name__ == "__main__":`' in ended.stderr


def test_a_process_that_runs_the_script_anew_neither_searches_nor_judges(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"teacher": teacher, "epochs": 1, "trials": 1, **TINY}
    found = search.run(blobs, **options)
    made = len(invented)
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)  # while Python starts it
    # The search as well, though it has one worker: the script's judge would wait for it.
    for call in (lambda: search.run(blobs, **options), lambda: search.judge(found, workers=2, progress=False)):
        with pytest.raises(
            RuntimeError, match=r'Put the call of search\.\w+ below a line `if __name__ == "__main__":`'
        ):
            call()
    assert len(invented) == made


@pytest.mark.skipif(sys.platform == "win32", reason="there the lock is no link")
def test_the_lock_of_a_journal_in_a_folder_leads_to_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that leads nowhere has no age: left by a killed process, it would never be taken away."""
    import optuna

    found, link = [], os.symlink

    def noted(target: str, place: str) -> None:
        link(target, place)
        found.append(Path(place).resolve())

    monkeypatch.setattr(os, "symlink", noted)
    monkeypatch.chdir(tmp_path)
    for folder in ("runs", "."):
        with storage.open_storage(f"journal:{folder}/search.log") as (store, _):
            optuna.create_study(study_name="search", storage=store)
        assert set(found) == {tmp_path / folder / "search.log"}
        found.clear()


def test_a_journal_needs_no_right_to_make_links_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    def refuse(*given: Any, **options: Any) -> None:
        raise OSError(errno.EINVAL, "A required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(storage, "sys", SimpleNamespace(platform="win32"), raising=False)
    path = f"journal:{tmp_path / 'search.log'}"
    with storage.open_storage(path) as (store, _):
        optuna.create_study(study_name="search", storage=store)
    with storage.open_storage(path) as (store, _):
        assert optuna.get_all_study_names(store) == ["search"]


def test_a_trial_that_runs_on_another_machine_is_left_to_it(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    import optuna

    path = f"journal:{tmp_path / 'search.log'}"
    options = {"teacher": teacher, "epochs": 9, "storage": path, **TINY}
    search.run(blobs, trials=2, **options)
    with storage.open_storage(path) as (store, _):
        study = optuna.load_study(study_name="search", storage=store)
        for host, started in (("elsewhere", time.time()), ("elsewhere", 0.0)):  # at work; lost long ago
            study.ask().set_user_attr("start", [0, 0.0, started, host, 1])
    found = search.run(blobs, trials=5, **options)
    assert [row["state"] for row in found.rows].count("running") == 1
    assert found.rows[2]["state"] == "running"
    assert len(found.rows) == 5


def test_a_trial_that_this_very_process_left_is_gone_on_with(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    import optuna

    path = f"journal:{tmp_path / 'search.log'}"
    options = {"teacher": teacher, "epochs": 9, "storage": path, **TINY}
    search.run(blobs, trials=1, **options)
    with storage.open_storage(path) as (store, _):  # a notebook that was interrupted, and calls again
        study = optuna.load_study(study_name="search", storage=store)
        study.ask().set_user_attr("start", [0, 0.0, time.time(), files.HOST, os.getpid()])
    found = search.run(blobs, trials=2, **options)
    assert [row["state"] for row in found.rows].count("running") == 0
    assert len(found.rows) == 2


def test_a_search_goes_on_alike_whatever_the_order_of_its_space(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    space = {"temperature": search.LogUniform(1, 16), "alpha": search.Uniform(0, 0.9)}
    options: dict[str, Any] = {"teacher": teacher, "epochs": 1, "pruner": None, "sampler": "random", **TINY}
    whole = search.run(blobs, space=space, trials=4, **options)
    search.run(blobs, space=space, trials=2, storage=tmp_path, **options)
    turned = dict(reversed(space.items()))
    assert points(search.run(blobs, space=turned, trials=4, storage=tmp_path, **options)) == points(whole)


# --- several workers


class Remote(workers.RemoteRunner):
    """A worker whose trainings go on until it is ended; its thread may take a Ctrl-C.

    Windows interrupts no wait of the main thread, nor does such a signal.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.sends_signal = self.came_to_its_end = False

    def run(self, *given: Any, **options: Any) -> Outcome:
        if self.sends_signal:
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        if not self.ended.wait(3):
            self.came_to_its_end = True
            return Outcome(1, 0.0, 0.5, 0.5)
        raise ChildProcessError("ended")

    def end(self, *, now: bool = True) -> None:
        self.ended.set()


@pytest.fixture
def remotes(monkeypatch: pytest.MonkeyPatch) -> list[Remote]:
    """The two workers of any search."""
    if not hasattr(signal, "pthread_kill"):
        pytest.skip("Windows sends no signal to a thread")
    made = [Remote(), Remote()]
    made[1].sends_signal = True  # when both are at work

    @contextmanager
    def open_runners(*given: Any) -> Iterator[list[Remote]]:
        yield made

    monkeypatch.setattr(engine, "open_runners", open_runners)
    monkeypatch.setattr(engine, "prepare", lambda *given: None)
    return made


def test_ctrl_c_is_heard_while_trials_are_trained(blobs: DataModule, teacher: nn.Module, remotes: list[Remote]) -> None:
    with pytest.raises(KeyboardInterrupt):
        search.run(blobs, teacher=teacher, trials=2, epochs=1, workers=2, **TINY)
    assert all(remote.ended.is_set() for remote in remotes)
    assert not any(remote.came_to_its_end for remote in remotes)


class Kept(dict):
    """Stands for the runs in the storage."""

    def add(self, arm: judging.Arm, seed: int, result: Any) -> None:
        self[arm.name] = result


def test_ctrl_c_is_heard_while_arms_are_judged(remotes: list[Remote]) -> None:
    arms, kept = [judging.Arm(name, "s", Settings(), 0.0) for name in "ab"], Kept()
    with pytest.raises(KeyboardInterrupt):
        judging._train(arms, 0, remotes, kept, tqdm(disable=True))  # type: ignore[arg-type]
    assert not kept
    assert all(remote.ended.is_set() for remote in remotes)


def test_an_arm_that_is_trained_as_ctrl_c_arrives_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(pending: Any, **options: Any) -> Any:
        wait(pending)
        raise KeyboardInterrupt

    class Done:
        def run(self, student: str, *given: Any, **options: Any) -> Outcome:
            if student == "damaged":
                raise ValueError("a damaged layer")
            return Outcome(1, 0.0, 0.5, 0.5)

    monkeypatch.setattr("kdlib.workers.wait", interrupted)
    students = {"a": "s", "b": "damaged", "c": "s"}
    arms, kept = [judging.Arm(name, student, Settings(), 0.0) for name, student in students.items()], Kept()
    with pytest.raises(KeyboardInterrupt):
        judging._train(arms, 0, [Done(), Done()], kept, tqdm(disable=True))  # type: ignore[arg-type, list-item]
    assert set(kept) == {"a", "c"}


@pytest.mark.slow
def test_ctrl_c_while_arms_are_judged_does_not_wait_for_those_that_have_not_begun() -> None:
    class Slow:
        def run(self, *given: Any, **options: Any) -> Outcome:
            time.sleep(1)
            return Outcome(1, 1.0, 0.5, 0.5)

    class Done:
        def add(self, *given: Any) -> None: ...

    arms = [judging.Arm(name, "s", Settings(), 0.0) for name in "abcdef"]
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judging._train(arms, 0, [Slow(), Slow()], Done(), tqdm(disable=True))  # type: ignore[arg-type, list-item]
    assert time.monotonic() - started < 2.5  # all six take three seconds


def test_turns_are_taken_in_the_order_of_the_clocks_however_long_each_thread_takes() -> None:
    def order(delays: list[float]) -> list[tuple[int, float]]:
        turns, taken = workers.Turns([0.0, 0.0, 0.0]), []
        steps = [1.0, 1.5, 0.7]

        def work(number: int) -> None:
            for _ in range(8):
                with turns.turn(number):
                    taken.append((number, round(turns.clock(number), 6)))
                    turns.set_clock(number, turns.clock(number) + steps[number])
                time.sleep(delays[number])
            with turns.turn(number):
                turns.leave(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return taken

    first = order([0.0, 0.01, 0.002])
    assert first == order([0.01, 0.0, 0.0])
    assert [clock for _, clock in first] == sorted(clock for _, clock in first)


@pytest.fixture
def threaded(invented: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many runners as workers in this process: what stands around processes, without them."""
    from kdlib.search import engine, judging

    @contextmanager
    def open_runners(one: Any, cache: Path, count: int) -> Iterator[list[Any]]:
        yield [task.TaskRunner(one, cache) for _ in range(count)]

    monkeypatch.setattr(engine, "open_runners", open_runners)
    monkeypatch.setattr(judging, "open_runners", open_runners)


@pytest.mark.slow
def test_two_workers_are_at_work_at_the_same_time_and_share_the_trials_evenly(
    blobs: DataModule, teacher: nn.Module, threaded: None, tmp_path: Path
) -> None:
    """By the clock of what is trained: where each core trains as fast as one alone, two are 1.7 times as fast."""
    import optuna

    found = search.run(blobs, teacher=teacher, trials=40, epochs=9, workers=2, storage=tmp_path, **TINY)
    stored = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / storage.FILE}").trials
    ends = [trial.user_attrs["start"][1] + row["cost"] for trial, row in zip(stored, found.rows, strict=True)]
    assert {trial.user_attrs["start"][0] for trial in stored} == {0, 1}
    assert found.cost / max(ends) > 1.7


def test_two_workers_give_the_same_trials_again(blobs: DataModule, teacher: nn.Module, threaded: None) -> None:
    found = [search.run(blobs, teacher=teacher, trials=24, epochs=9, workers=2, **TINY) for _ in range(2)]
    assert points(found[0]) == points(found[1])


@pytest.mark.slow
def test_two_processes_train_what_they_are_given_and_the_judges_runs_are_those_of_one(
    blobs: DataModule, teacher: nn.Module
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each worker has; other numbers of threads round otherwise
    try:
        found = search.run(blobs, teacher=teacher, trials=4, epochs=2, workers=2, pruner=None, sampler="random", **TINY)
        alone = search.run(blobs, teacher=teacher, trials=4, epochs=2, pruner=None, sampler="random", **TINY)
        judged = [search.judge(found, range(2), workers=number, progress=False) for number in (1, 2)]
    finally:
        torch.set_num_threads(threads)
    assert points(found) == points(alone)  # random search asks nothing of what was found before
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in one.rows] for one in judged]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_images_of_a_folder_are_decoded_by_processes_of_each_worker(tmp_path: Path, teacher: nn.Module) -> None:
    for number, name in enumerate("abc"):
        for split in ("train", "val", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            for place in range(8):
                grey = np.full((8, 8, 3), 60 * number + 3 * place + len(split), dtype=np.uint8)
                Image.fromarray(grey).save(tmp_path / split / name / f"{place}.png")
    pictures = data.load(f"imagefolder@8:{tmp_path}", num_workers=1)
    network = models.build("resnet8w4", num_classes=3, in_channels=3, image_size=8, seed=5).eval()
    found = search.run(pictures, teacher=network, trials=2, epochs=1, workers=2, **TINY)
    assert found.count(COMPLETE) == 2


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_search_in_a_sentence_and_its_trial_is_not_lost(
    blobs: DataModule, teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"teacher": teacher, "trials": 4, "epochs": 2, "workers": 2, "storage": tmp_path, **TINY}
    real = workers.RemoteRunner.run

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        os.kill(self.process.pid, signal.SIGKILL)
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(workers.RemoteRunner, "run", killed)
        with pytest.raises(ChildProcessError, match="Finished trials are kept"):
            search.run(blobs, **options)
    found = search.run(blobs, **{**options, "workers": 1})
    assert len(found.rows) == 4
    assert found.count("running") == 0


class Thread(threading.Thread):
    """Stands for a process that a search starts."""

    def terminate(self) -> None: ...


def pipe() -> tuple[Any, Any]:
    """Whose other end stays open in a thread, when the one that started it has closed it."""
    here, there = multiprocessing.Pipe()
    there.close = lambda: None  # type: ignore[method-assign]
    return here, there


def test_each_process_of_a_search_has_a_gpu_and_a_share_of_the_cores(
    blobs: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    lazy = LazyDataset([], nothing, nothing, nothing, (0.3,), (0.1,), min, "", num_workers=8)
    given = task.Task(replace(blobs, train=lazy), None, "hard", "resnet8w2", None, 1, 1)
    gpus: list[int] = []

    class Runner:
        def __init__(self, one: task.Task, cache: Path) -> None:
            self.decoding = one.data.train.num_workers

        def run(self, *given: Any, **options: Any) -> int:
            return self.decoding

    context = SimpleNamespace(Pipe=pipe, Process=Thread)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr("kdlib.workers.exit_with_parent", lambda: None)
    monkeypatch.setattr(workers, "TaskRunner", Runner)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", gpus.append)
    monkeypatch.delenv("KDLIB_DEVICE", raising=False)
    with workers.open_runners(given, tmp_path, 3) as runners:
        decoding = [runner.run("resnet8w2", Settings(), 0) for runner in runners]
    assert decoding == [3, 3, 3]
    assert sorted(gpus) == [0, 0, 1]


def test_what_was_sent_to_the_processes_is_not_kept_while_they_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Packed:
        """Stands for the bytes of a task."""

    sent: list[weakref.ref[Packed]] = []

    def runner(packed: Packed, *others: Any) -> SimpleNamespace:
        sent.append(weakref.ref(packed))
        return SimpleNamespace(end=lambda **options: None)

    monkeypatch.setattr(workers, "RemoteRunner", runner)
    monkeypatch.setattr(workers.pickle, "dumps", lambda one: Packed())
    with workers.open_runners(None, tmp_path, 2):  # type: ignore[arg-type]
        assert [one() for one in sent] == [None, None]


def test_ctrl_c_while_a_worker_is_sent_the_task_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that reaches this process alone: Python would wait for the other one when the script ends."""
    spawn, made = multiprocessing.get_context("spawn"), []

    class Interrupted:
        def send_bytes(self, sent: bytes) -> None:
            raise KeyboardInterrupt

        def close(self) -> None: ...

    def process(**given: Any) -> Any:
        made.append(spawn.Process(target=time.sleep, args=(60,)))
        return made[-1]

    context = SimpleNamespace(Pipe=lambda: (Interrupted(), Interrupted()), Process=process)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    sent: Any = "a task"
    try:
        with pytest.raises(KeyboardInterrupt), workers.open_runners(sent, tmp_path, 2):
            pass
        assert [one.is_alive() for one in made] == [False]
    finally:
        for one in made:
            one.terminate()
            one.join()


def test_a_worker_that_is_killed_while_it_starts_ends_the_search_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process that has ended nobody holds the other end of the connection."""

    def process(**given: Any) -> SimpleNamespace:
        return SimpleNamespace(**dict.fromkeys(("start", "join", "terminate"), lambda: None))

    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=process)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    sent: Any = "a task"
    with pytest.raises(ChildProcessError, match="Finished trials are kept"), workers.open_runners(sent, tmp_path, 2):
        pass


# --- the honest part


@pytest.fixture
def judged(blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path) -> search.Judged:
    found = search.run(blobs, teacher=teacher, trials=12, epochs=9, storage=tmp_path, **TINY)
    return search.judge(found, range(4), progress=False)


@pytest.mark.slow
def test_random_search_gets_the_same_cost_and_a_little_more_rather_than_less(judged: search.Judged) -> None:
    assert judged.random is not None
    assert judged.found.cost <= judged.random.cost < judged.found.cost + 9
    assert {row["epochs"] for row in judged.random.rows} == {9}
    tried = {row["learning_rate"] for row in judged.random.rows}
    assert tried.isdisjoint(row["learning_rate"] for row in judged.found.rows)


@pytest.mark.slow
def test_the_verdicts_are_those_of_paired_fresh_seeds_on_the_test_set(judged: search.Judged) -> None:
    arms = {arm.name: arm for arm in judged.arms}
    assert list(arms) == ["found", "start settings", "random search"]
    assert arms["start settings"].settings == judged.found.task.spec.start
    assert (arms["start settings"].settings.temperature, arms["start settings"].settings.alpha) == (4, 0.1)
    assert list(judged.accuracies("found")) == [0, 1, 2, 3]
    tested = {name: {row["seed"]: row["test_accuracy"] for row in judged.rows if row["arm"] == name} for name in arms}
    for name in ("start settings", "random search"):
        assert judged.verdicts[name] == verdict.compare(tested["found"], tested[name], comparisons=2)
        assert judged.verdicts[name].std > 0


@pytest.mark.slow
def test_the_winners_curse_is_the_report_beside_the_mean_of_fresh_seeds_on_validation(judged: search.Judged) -> None:
    curse = judged.curses["found"]
    fresh = list(judged.accuracies("found", "validation_accuracy").values())
    assert curse.reported == judged.found.best.validation_accuracy
    assert curse.fresh == pytest.approx(sum(fresh) / 4)
    interval = stats.t.interval(0.95, 3, loc=curse.fresh, scale=stats.sem(fresh))
    assert (curse.low, curse.high) == pytest.approx(interval)
    assert curse.excess == pytest.approx(curse.reported - curse.fresh)
    assert set(judged.curses) == {"found", "random search"}


@pytest.mark.slow
def test_a_judgement_that_was_made_is_not_made_again_and_more_seeds_are_added(
    judged: search.Judged, invented: list[Any]
) -> None:
    made = len(invented)
    again = search.judge(judged.found, range(4), progress=False)
    assert again.rows == judged.rows
    assert len(invented) == made
    search.judge(judged.found, range(6), progress=False)
    assert len(invented) == made + 3 * 2


def test_random_search_is_not_compared_with_itself(blobs: DataModule, teacher: nn.Module, invented: list[Any]) -> None:
    found = search.run(blobs, teacher=teacher, trials=3, epochs=2, sampler="random", pruner=None, **TINY)
    judged = search.judge(found, range(2), progress=False)
    assert [arm.name for arm in judged.arms] == ["found", "start settings"]
    assert judged.random is None


def test_random_search_with_a_pruner_is_compared_with_other_draws(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    found = search.run(blobs, teacher=teacher, trials=5, epochs=3, sampler="random", storage=tmp_path, **TINY)
    # An older kdlib compared it with its own draws, and has left these in the storage.
    same = replace(found.strategy, pruner=None, count=None, budget=found.cost)
    options: dict[str, Any] = {"workers": 1, "progress": False, "name": "random search"}
    engine.search(found.task, found.space, same, found.limits, tmp_path, **options)
    judged = search.judge(found, range(2), progress=False)
    assert judged.random is not None
    drawn = {row["learning_rate"] for row in found.rows}
    assert drawn.isdisjoint(row["learning_rate"] for row in judged.random.rows)
    assert judged.verdicts["random search"].std > 0


def test_random_search_beside_tpe_draws_as_it_always_did(
    blobs: DataModule, teacher: nn.Module, invented: list[Any]
) -> None:
    """One that an older kdlib has begun goes on as it would have."""
    options = {"teacher": teacher, "trials": 3, "epochs": 3, **TINY}
    alone = search.run(blobs, sampler="random", pruner=None, **options)
    judged = search.judge(search.run(blobs, **options), range(2), progress=False)
    assert judged.random is not None
    assert points(judged.random)[:2] == points(alone)[:2]


def test_the_judge_trains_each_arms_own_network_with_its_own_settings(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def noted(self: Any, student: str, settings: Any, seed: int, **options: Any) -> Outcome:
        trained.append((student, settings, seed))
        accuracy = 0.5 if student == "resnet8w8" else 0.9  # else the found student may be the default one
        return Outcome(1, 0.0, accuracy, accuracy - 0.01 * seed if "test" in options else None)

    monkeypatch.setattr(task.TaskRunner, "run", noted)
    space = {"width": search.Whole(2, 8, 2), "alpha": search.Uniform(0, 0.9)}
    found = search.run(blobs, teacher=teacher, space=space, trials=4, epochs=1, **{**TINY, "student": None})
    trained.clear()
    judged = search.judge(found, range(2), random_search=False, progress=False)
    assert len({arm.student for arm in judged.arms}) == 2
    assert set(trained) == {(arm.student, arm.settings, seed) for arm in judged.arms for seed in range(2)}
    assert len(trained) == 4


@pytest.mark.slow
def test_the_default_student_is_the_largest_one_within_the_limits(
    blobs: DataModule, teacher: nn.Module, invented: list[Any]
) -> None:
    space = {"width": search.Whole(2, 8, 2), "depth": search.Whole(8, 14, 6)}
    found = search.run(
        blobs, teacher=teacher, space=space, max_macs=250_000, trials=4, epochs=1, **{**TINY, "student": None}
    )
    shape = {"num_classes": 3, "in_channels": 1, "image_size": 8, "seed": 0}
    names = [f"resnet{depth}w{width}" for depth in (8, 14) for width in (2, 4, 6, 8)]
    macs = {name: measure.macs(models.build(name, **shape), (1, 8, 8)) for name in names}
    wanted = max((name for name in names if macs[name] <= 250_000), key=lambda name: macs[name])
    judged = search.judge(found, range(2), random_search=False, progress=False)
    assert next(arm.student for arm in judged.arms if arm.name == "start settings") == wanted


def test_each_run_of_the_judge_reads_the_test_set_once_and_the_seeds_draw_their_own_images(
    blobs: DataModule, teacher: nn.Module, trainings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = search.run(blobs, teacher=teacher, trials=2, epochs=1, images=30, **TINY)
    splits, fit, drawn = evaluated_splits(monkeypatch), train.fit, []

    def noted(student: nn.Module, few: DataModule, **options: Any) -> train.Result:
        drawn.append(few.train.indices.tolist())
        return fit(student, few, **options)

    monkeypatch.setattr(train, "fit", noted)
    trainings.clear()
    judged = search.judge(found, (7, 8), random_search=False, progress=False)
    assert trainings == [7, 7, 8, 8]
    assert sum(split is blobs.test for split in splits) == 4
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]
    assert all(0 <= row["test_accuracy"] <= 1 for row in judged.rows)
    for arm in judged.arms:
        right = judged.right(arm.name)
        assert {seed: one.mean() for seed, one in right.items()} == pytest.approx(judged.accuracies(arm.name))
        assert {len(one) for one in right.values()} == {len(blobs.test)}


@pytest.mark.slow
def test_a_diverged_run_is_said_and_is_in_no_mean(judged: search.Judged) -> None:
    rows = tuple({**row, "error": "The loss is nan", "test_accuracy": None} if (row["arm"], row["seed"]) ==
                 ("start settings", 1) else row for row in judged.rows)  # fmt: skip
    partly = replace(judged, rows=rows)
    assert partly.diverged == {"start settings": [1]}
    assert list(partly.verdicts) == ["random search"]
    assert partly.verdicts["random search"] == judged.verdicts["random search"]  # of two comparisons, as before
    assert "start settings diverged at seeds 1" in str(partly)


def runs(arm: str, accuracies: list[float | None]) -> list[dict[str, Any]]:
    """Rows of an arm with these accuracies by seed, None where it diverged."""
    return [
        {"arm": arm, "seed": seed, "test_accuracy": one, "validation_accuracy": one, "error": "" if one else "nan"}
        for seed, one in enumerate(accuracies)
    ]


@pytest.fixture
def judged_by_images(blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path) -> search.Judged:
    """A judgement whose students are right about three quarters of the test images, each about its own."""
    plain = task.TaskRunner.run

    def run(self: Any, student: str, settings: Any, seed: int, **options: Any) -> Outcome:
        outcome = plain(self, student, settings, seed, **options)
        luck = torch.Generator().manual_seed(random.Random(f"{settings} {seed}").getrandbits(32))
        right = torch.rand(len(blobs.test), generator=luck) < 0.75
        kept = {"test_accuracy": right.float().mean().item(), "right": task.pack(right)}
        return replace(outcome, **kept) if outcome.test_accuracy else outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task.TaskRunner, "run", run)
        found = search.run(blobs, teacher=teacher, trials=2, epochs=1, storage=tmp_path, **TINY)
        return search.judge(found, range(3), random_search=False, progress=False)


def test_the_verdicts_hold_the_scatter_of_the_test_images_too(
    judged_by_images: search.Judged, blobs: DataModule, tmp_path: Path
) -> None:
    sides = {
        arm.name: {row["seed"]: task.unpack(row["right"], len(blobs.test)) for row in judged_by_images.rows
                   if row["arm"] == arm.name}
        for arm in judged_by_images.arms
    }  # fmt: skip
    assert judged_by_images.verdicts == {
        "start settings": verdict.compare_samples(sides["found"], sides["start settings"])
    }
    judged_by_images.save(tmp_path / "report")
    assert "interval over seeds and test images" in (tmp_path / "report" / "report.md").read_text()
    assert "over seeds and test images: " in str(judged_by_images)
    facts = json.loads((tmp_path / "report" / "search.json").read_text())
    assert facts["judged"]["verdicts"]["start settings"]["over"] == "seeds and test images"
    assert "right" not in pd.read_csv(tmp_path / "report" / "judged.csv")


def test_a_judgement_on_fewer_seeds_than_the_study_has_for_a_verdict_says_so(
    judged_by_images: search.Judged, tmp_path: Path
) -> None:
    judged_by_images.save(tmp_path / "report")
    for shown in (str(judged_by_images), (tmp_path / "report" / "report.md").read_text()):
        assert shown.count("3 paired seeds are few") == 1
    enough = search.judge(judged_by_images.found, range(5), random_search=False, progress=False)
    assert "seeds are few" not in str(enough)


def test_runs_of_an_older_kdlib_are_judged_by_their_accuracies_over_seeds_alone(
    judged_by_images: search.Judged, tmp_path: Path
) -> None:
    """They are in the storage without what their students had right; the same judgement goes on with them."""
    import optuna

    with storage.open_storage(judged_by_images.found.storage) as (store, _):
        study = optuna.load_study(study_name="judged", storage=store)
        for key, kept in study.user_attrs.items():
            if key.startswith("seed 1,"):
                study.set_user_attr(key, {name: kept[name] for name in kept if name != "right"})
    judged = search.judge(judged_by_images.found, range(3), random_search=False, progress=False)
    accuracies = [judged.accuracies(name) for name in ("found", "start settings")]
    assert accuracies == [judged_by_images.accuracies(name) for name in ("found", "start settings")]
    assert judged.verdicts == {"start settings": verdict.compare(*accuracies)}
    judged.save(tmp_path / "report")
    assert "interval over seeds alone" in (tmp_path / "report" / "report.md").read_text()
    assert "over seeds alone: " in str(judged)


@pytest.mark.parametrize("count", [1, 8, 9, 10_000])
def test_what_was_right_is_stored_in_a_bit_an_image(count: int) -> None:
    right = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.9
    assert task.unpack(task.pack(right), count).tolist() == right.int().tolist()
    assert len(task.pack(right)) < 40 + count / 5


@pytest.mark.parametrize("text", ["", "nonsense!", "AAAA", task.pack(torch.ones(990, dtype=torch.bool))])
def test_what_was_right_of_other_images_or_damaged_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="[Rr]estore the file"):
        task.unpack(text, 1000)


def test_seeds_that_agree_give_the_winners_curse_no_interval() -> None:
    arms = (judging.Arm("found", "resnet8", Settings(), 9.0, 0.73),)
    judged = search.Judged(None, arms, tuple(runs("found", [0.7142, 0.7142])), None, 1.0)  # type: ignore[arg-type]
    curse = judged.curses["found"]
    assert (curse.fresh, curse.excess) == pytest.approx((0.7142, 0.0158))
    assert not math.isfinite(curse.low)
    assert not math.isfinite(curse.high)
    assert "no scatter between seeds" in str(judged)
    assert "inf" not in str(judged)


def test_there_is_no_verdict_by_the_seeds_at_which_a_setting_survived() -> None:
    arms = tuple(
        judging.Arm(name, "resnet8", Settings(), 9.0, 0.9) for name in ("found", "start settings", "random search")
    )
    good, broken = [0.88, 0.881, 0.882, 0.883], [0.89, 0.8912, 0.8919, None]
    found_diverged = [*runs("found", broken), *runs("start settings", good), *runs("random search", good)]
    judged = search.Judged(None, arms, tuple(found_diverged), None, 1.0)  # type: ignore[arg-type]
    assert judged.verdicts == {}
    assert set(judged.curses) == {"start settings", "random search"}
    assert judged.diverged == {"found": [3]}
    other_diverged = [*runs("found", good), *runs("start settings", good[::-1]), *runs("random search", broken)]
    judged = replace(judged, rows=tuple(other_diverged))
    assert set(judged.verdicts) == {"start settings"}
    assert set(judged.curses) == {"found", "start settings"}


# --- what it writes


@pytest.mark.slow
def test_report_tables_facts_and_picture(judged: search.Judged, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    judged.save(folder)
    assert {path.name for path in folder.iterdir()} == {
        "report.md", "trials.csv", "judged.csv", "search.json", "search.png",
    }  # fmt: skip
    assert len(pd.read_csv(folder / "trials.csv")) == len(judged.found.rows)
    assert len(pd.read_csv(folder / "judged.csv")) == 12
    facts = json.loads((folder / "search.json").read_text())
    assert facts["cost_epochs"] == judged.found.cost
    assert facts["best"]["validation_accuracy"] == judged.found.best.validation_accuracy
    assert facts["judged"]["verdicts"]["start settings"]["mean"] == pytest.approx(
        judged.verdicts["start settings"].mean
    )
    assert set(facts["versions"]) >= {"torch", "optuna", "kdlib"}
    assert facts["machine"]["cores"]
    report = (folder / "report.md").read_text()
    task = judged.found.task
    assert f"batches of {task.batch_size}, 1 augmented view of each image." in report
    rate = judged.found.best.settings.learning_rate * task.batch_size / 128
    assert f"with batches of {task.batch_size} the best trial was trained at {rate:g}" in report
    for name, comparison in judged.verdicts.items():
        assert f"against {name}: {comparison.verdict}" in report
    assert f"{100 * judged.curses['found'].excess:+.2f} points" in report
    with Image.open(folder / "search.png") as image:
        assert image.width > 900
        assert len(image.convert("RGB").getcolors(1_000_000)) > 20


def test_the_report_says_where_the_seeds_of_the_winners_curse_agree(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    found = search.run(blobs, teacher=teacher, trials=2, epochs=1, **TINY)
    arms = (judging.Arm("found", found.best.student, found.best.settings, 2.0, 0.73),)
    rows = tuple(row | {"epochs": 1, "seconds": 1.0} for row in runs("found", [0.7142, 0.7142]))
    search.Judged(found, arms, rows, None, 1.0).save(tmp_path)
    assert "71.42 % there (no scatter between seeds)" in (tmp_path / "report.md").read_text()
    facts = json.loads((tmp_path / "search.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert facts["judged"]["winners_curse"]["found"]["low"] is None


def test_the_report_says_where_another_arm_is_the_found_setting_and_where_nothing_scatters(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    found = search.run(blobs, teacher=teacher, trials=2, epochs=1, **TINY)
    first = judging.Arm("found", found.best.student, found.best.settings, 2.0, 0.73)
    settings = {
        "random search": first.settings,
        "start settings": replace(first.settings, learning_rate=2 * first.settings.learning_rate),
    }
    arms = (first, *(replace(first, name=name, settings=one) for name, one in settings.items()))
    rows = tuple(
        row | {"epochs": 1, "seconds": 1.0}
        for name, accuracy in (("found", 0.72), ("random search", 0.72), ("start settings", 0.71))
        for row in runs(name, [accuracy, accuracy])
    )
    judged = search.Judged(found, arms, rows, None, 1.0)
    judged.save(tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "The found setting is that of random search**: both have the same runs" in report
    assert "+1.00 points of test accuracy (all differences are the same, so there is no interval; 2 paired" in report
    assert "inf" not in str(judged)


@pytest.mark.slow
def test_its_tables_have_no_empty_lines_on_windows(judged: search.Judged, tmp_path: Path, windows_lines: None) -> None:
    judged.save(tmp_path / "report")
    for name, rows in {"trials.csv": len(judged.found.rows), "judged.csv": len(judged.rows)}.items():
        written = (tmp_path / "report" / name).read_bytes()
        assert b"\r" not in written
        assert written.count(b"\n") == rows + 1


def test_a_report_without_a_judgement_says_that_nothing_is_proved(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path
) -> None:
    found = search.run(blobs, teacher=teacher, method="hint", trials=3, epochs=2, **TINY)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "judged.csv").write_text("of an earlier report\n")
    found.save(tmp_path / "report")
    assert "has not been judged" in (tmp_path / "report" / "report.md").read_text()
    assert not (tmp_path / "report" / "judged.csv").exists()


# --- the command


def call(*arguments: Any) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kdlib", "search", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code or 0


@pytest.fixture
def command_data(blobs: DataModule, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The command on blobs; the options that they need."""
    monkeypatch.setattr(data, "load", lambda name, **options: blobs)
    models.save(teacher, tmp_path / "teacher.safetensors")
    return [
        "--teacher",
        tmp_path / "teacher.safetensors",
        "--student",
        "resnet8w2",
        "--epochs",
        2,
        "--views",
        1,
        "--quiet",
    ]


@pytest.mark.slow
def test_the_command_searches_judges_and_writes(
    command_data: list[Any], invented: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    options = [*command_data, "--trials", 4, "--judge-seeds", 2, "--json", "--out", out]
    assert call(*options) == 0
    printed = capsys.readouterr().out
    facts = json.loads(printed.splitlines()[-1])
    assert facts["judged"]["seeds"] == [0, 1]
    assert facts["best"]["student"] == "resnet8w2"
    assert "found against start settings" in printed
    assert "kdlib search --teacher" in (out / "report.md").read_text()
    made = len(invented)
    assert call(*options) == 0  # again: nothing is left to do
    assert len(invented) == made
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["best"] == facts["best"]
    assert call(*options, "--seed", 1) == 2
    assert "seed 0 (now 1)" in capsys.readouterr().err
    assert call(*options, "--seed", 1, "--overwrite") == 0
    assert len(invented) > made
    assert not list(out.glob(".outputs*"))


def test_the_command_takes_milliseconds(
    command_data: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(engine, "check", lambda *given, **options: found.update(options) or sys.exit(0))
    assert call(*command_data, "--max-latency", 5, "--max-macs", 7_000, "--out", tmp_path / "out") == 0
    assert (found["max_latency"], found["max_macs"]) == (0.005, 7_000)


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_said_after_ctrl_c_keeps_the_trials(
    overwrite: bool,
    command_data: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(task.TaskRunner, "run", interrupted)
    assert call(*command_data, "--trials", 2, "--out", tmp_path, *["--overwrite"] * overwrite) == 130
    assert ("without --overwrite" in capsys.readouterr().err) is overwrite


@pytest.mark.slow
def test_overwrite_with_a_storage_of_another_search_leaves_the_report(
    command_data: list[Any], invented: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    options = [*command_data, "--trials", 2, "--judge-seeds", 0, "--out", out]
    stored = ["--storage", f"sqlite:///{tmp_path / 'trials.db'}"]
    assert call(*options, *stored) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert "report.md" in before
    assert call(*options, *stored, "--seed", 1, "--overwrite") == 2
    assert "another storage" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    # In the folder itself the earlier search is what --overwrite replaces.
    inside = ["--storage", f"sqlite:///{out / storage.FILE}"]
    assert call(*options, *inside, "--overwrite") == 0
    assert call(*options, *inside, "--seed", 1, "--overwrite") == 0


@pytest.mark.slow
def test_the_report_of_another_command_is_replaced_only_when_that_is_asked_for(
    command_data: list[Any], invented: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.md").write_text("of kdlib compare")
    options = [*command_data, "--trials", 2, "--judge-seeds", 0, "--out", out]
    assert call(*options) == 2
    assert "holds report.md and no search" in capsys.readouterr().err
    assert call(*options, "--storage", tmp_path / "trials") == 2
    assert "holds report.md and no search" in capsys.readouterr().err
    assert invented == []
    assert (out / "report.md").read_text() == "of kdlib compare"
    assert call(*options, "--overwrite") == 0


@pytest.fixture
def stored_elsewhere(command_data: list[Any], invented: list[Any], tmp_path: Path) -> list[Any]:
    """A search with a storage of its own, judged; the options without the storage."""
    options = [*command_data, "--trials", 2, "--judge-seeds", 2, "--out", tmp_path / "out"]
    assert call(*options, "--storage", tmp_path / "trials") == 0
    return options


def reports(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}


OTHER_SEARCHES: dict[str, list[Any]] = {
    r"seed 0 \(now 1\)": ["--seed", 1],
    r"epochs 2 \(now 3\)": ["--epochs", 3],
    r"method kd \(now hint\)": ["--method", "hint"],
    r"num_images 96 \(now 30\)": ["--images", 30],
    r"student resnet8w2 \(now resnet8w4\)": ["--student", "resnet8w4"],
}


@pytest.mark.slow
def test_the_report_of_another_search_is_replaced_only_when_that_is_asked_for(
    stored_elsewhere: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = reports(tmp_path)
    for told, change in OTHER_SEARCHES.items():
        another = [*stored_elsewhere, "--judge-seeds", 0, *change, "--storage", tmp_path / "others"]
        assert call(*another) == 2
        assert re.search(f"{told}.*--overwrite.*--out", capsys.readouterr().err)
        assert reports(tmp_path) == before
    assert call(*another, "--overwrite") == 0


@pytest.mark.slow
def test_a_search_with_a_storage_goes_on_and_without_it_is_told_so(
    stored_elsewhere: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = reports(tmp_path)
    assert call(*stored_elsewhere) == 2
    said = capsys.readouterr().err
    assert "same --storage" in said
    assert "another command" not in said
    assert reports(tmp_path) == before
    further = [*stored_elsewhere, "--trials", 4, "--storage", tmp_path / "trials"]
    assert call(*further) == 0
    assert len(pd.read_csv(tmp_path / "out" / "trials.csv")) == 4
    facts = tmp_path / "out" / "search.json"
    older = json.loads(facts.read_text())
    del older["identity"]  # as an older kdlib wrote it
    facts.write_text(json.dumps(older))
    assert call(*further, "--seed", 1) == 2
    assert call(*further) == 0
    facts.write_text("{")
    assert call(*further) == 2
    assert re.search(f"{facts} cannot be read .*--overwrite", capsys.readouterr().err)


@pytest.mark.slow
def test_a_search_in_which_all_diverge_leaves_its_trials_and_goes_on(
    command_data: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    diverged = Outcome(1, 0.0, error="the loss is not finite")
    options = [*command_data, "--judge-seeds", 0, "--out", tmp_path / "out", "--storage", tmp_path / "trials"]
    for trials, outcome in ((2, diverged), (3, Outcome(2, 0.0, 0.5))):
        monkeypatch.setattr(task.TaskRunner, "run", lambda *args, outcome=outcome, **others: outcome)
        assert call(*options, "--trials", trials) == (2 if outcome.error else 0)
        assert ("No trial was trained to its end" in capsys.readouterr().err) == bool(outcome.error)
        assert len(pd.read_csv(tmp_path / "out" / "trials.csv")) == trials


@pytest.mark.slow
def test_a_search_killed_while_it_writes_its_report_is_not_taken_for_another_command(
    command_data: list[Any], invented: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*command_data, "--trials", 2, "--judge-seeds", 0, "--out", tmp_path / "out"]
    write, written = files.write_text, []

    def killed(path: Path, text: str) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_text", killed)
        assert call(*options, "--storage", tmp_path / "trials") == 130
    assert len(reports(tmp_path)) > 0
    assert call(*options, "--storage", tmp_path / "trials") == 0


@pytest.mark.slow
def test_the_command_searches_the_student_within_a_limit_and_without_a_judge(
    command_data: list[Any], invented: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--search-student", "--max-macs", 500_000, "--trials", 3, "--judge-seeds", 0, "--pruner", "none"]
    assert call(*command_data, *options, "--json", "--out", tmp_path / "out") == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "judged" not in facts
    assert facts["max_macs"] == 500_000
    assert facts["best"]["student"].startswith("resnet")
    assert pd.read_csv(tmp_path / "out" / "trials.csv").macs[lambda macs: macs <= 500_000].count() == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        ["--method", "kdd"],
        ["--teacher", "no-such"],
        ["--student", "no-such"],
        ["--sampler", "tpee"],
        ["--workers", 0],
        ["--max-macs", 10],
        ["--max-latency", 1e-6],
        ["--storage", "no-such://server/search"],
    ],
)
def test_a_refused_search_leaves_the_one_that_it_should_replace(
    wrong: list[Any], command_data: list[Any], invented: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    for name in (storage.FILE, "report.md", "trials.csv"):
        (tmp_path / "out" / name).write_text("of the earlier search")
    assert call(*command_data, *wrong, "--out", tmp_path / "out", "--overwrite") == 2
    for name in (storage.FILE, "report.md", "trials.csv"):
        assert (tmp_path / "out" / name).read_text() == "of the earlier search"


def fill_the_disk(database: Any) -> None:
    """From now on SQLite says that the disk is full, as it does when it cannot grow its file."""
    from sqlalchemy import event

    @event.listens_for(database.engine, "connect")
    def no_page_more(connection: Any, _: Any) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")

    database.engine.dispose()


def test_a_disk_that_fills_up_during_a_search_is_said_and_the_same_call_goes_on(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"teacher": teacher, "epochs": 2, "storage": tmp_path, **TINY}
    made = len(search.run(blobs, trials=2, **options).rows)
    opened = storage._database
    with monkeypatch.context() as patch:

        def small(*arguments: Any) -> Any:
            database = opened(*arguments)
            fill_the_disk(database)
            return database

        patch.setattr(storage, "_database", small)
        with pytest.raises(OSError, match="disk is full") as caught:
            search.run(blobs, trials=300, **options)
    assert "invalid data" not in str(caught.value)
    assert "same command" in str(caught.value)
    assert len(search.run(blobs, trials=made + 1, **options).rows) > made


def test_a_disk_that_is_full_at_the_beginning_is_not_a_wrong_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    import optuna
    from sqlalchemy import exc

    def full(url: str) -> None:
        cause = sqlite3.OperationalError("database or disk is full")
        raise exc.OperationalError("CREATE TABLE studies", {}, cause) from cause

    monkeypatch.setattr(optuna.storages, "RDBStorage", full)
    with pytest.raises(OSError, match="disk is full") as caught, storage.open_storage(tmp_path):
        pass
    assert "space" in str(caught.value)
    assert "address" not in str(caught.value)


BAD_COMMANDS: dict[str, tuple[list[Any], str]] = {
    "no trials": (["--trials", 0], "trials is a whole number of at least 1"),
    "unknown sampler": (["--sampler", "tpee"], "There is no sampler named 'tpee'. Did you mean 'tpe'"),
    "unknown pruner": (["--pruner", "median"], "There is no pruner named 'median'"),
    "unknown method": (["--method", "kdd"], "Did you mean 'kd' or 'rkd'"),
    "unknown student": (["--student", "resnet9"], "There is no model named 'resnet9'"),
    "unknown teacher": (["--teacher", "resnet20-fashoin"], "Did you mean 'resnet20-fashion'"),
    "one judging seed": (["--judge-seeds", 1], "One seed says nothing about spread"),
    "negative judging seeds": (["--judge-seeds", -1], "judge_seeds is a whole number of at least 0"),
    "too few MACs": (["--search-student", "--max-macs", 10], "Not even the smallest network"),
    "too fast": (["--search-student", "--max-latency", 1e-9], "on this machine"),
    "negative latency": (["--max-latency", -1], "--max-latency is a positive number of milliseconds; got -1"),
    "an endless latency": (["--max-latency", "inf"], "--max-latency is a positive number of milliseconds; got inf"),
    "no latency": (["--max-latency", "nan"], "--max-latency is a positive number of milliseconds; got nan"),
    "no workers": (["--workers", 0], "workers is a whole number of at least 1"),
    "negative seed": (["--seed", -1], "seed is a whole number of at least 0"),
    "too many images": (["--images", 1_000_000], "there is no subset of 1,000,000"),
    "a storage that nobody reaches": (
        ["--storage", "sqlite:////proc/no/such.sqlite"],
        "Could not write",
    ),
    "a storage of no kind": (["--storage", "nonsense://x"], "nonsense"),
    "a storage without its driver": (["--storage", "oracle+none://user:secret@nowhere/x"], "oracle"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_what_the_command_cannot_do_is_said_in_a_sentence(
    name: str, command_data: list[Any], invented: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options, message = BAD_COMMANDS[name]
    code = call(*command_data, "--trials", 2, "--judge-seeds", 0, "--out", tmp_path / "out", *options)
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert said.startswith("kdlib: ")
    assert said.count("\n") == 1
    assert "secret" not in said
    assert "not expected" not in said


BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "no teacher": ({"teacher": None}, "kd needs a teacher"),
    "a teacher of another kind": ({"teacher": 3}, "teacher is a network"),
    "a teacher of other classes": (
        {"teacher": models.build("resnet8w4", num_classes=10, in_channels=1, seed=0)}, "gives 10 logits"),
    "a teacher of other channels": (
        {"teacher": models.build("resnet8w4", num_classes=3, in_channels=3, seed=0)}, "cannot take images of 1 x"),
    "a control": ({"method": "shuffled"}, "There is no method to search the settings of named 'shuffled'"),
    "no epochs": ({"epochs": 0}, "epochs is a whole number"),
    "no views": ({"views": 0}, "views is a whole number"),
    "half a trial": ({"trials": 2.5}, "trials is a whole number"),
    "an empty space": ({"space": {}}, "The space is empty"),
    "a space that is a list": ({"space": ["alpha"]}, "space is a mapping"),
    "a setting that the method lacks": ({"space": {"weight": search.Uniform(0, 1)}}, "setting of kd named 'weight'"),
    "a setting of a typo": ({"space": {"tempreature": search.Uniform(1, 9)}}, "Did you mean 'temperature'"),
    "a pair for a range": ({"space": {"alpha": (0, 1)}}, "alpha is a range"),
    "a range upside down": ({"space": {"alpha": search.Uniform(0.9, 0.1)}}, "from low to high"),
    "an alpha above 1": ({"space": {"alpha": search.Uniform(0, 2)}}, "alpha is a number from 0 to 1"),
    "a temperature of 0": ({"space": {"temperature": search.Uniform(0, 2)}}, "temperature lies between 0.001 and 1000"),
    "a temperature of 5,000": (
        {"space": {"temperature": search.LogUniform(1, 5000)}}, "temperature lies between 0.001 and 1000.*got 5000"),
    "layers with maps of one position": (
        {"method": "attention", "space": {"layers": search.Choice(("all", "embedding"))}},
        "attention cannot take the layers 'embedding'"),
    "one layer for a matrix of layers": (
        {"method": "fsp", "space": {"layers": search.Choice(("all", "last"))}}, "fsp cannot take the layers 'last'"),
    "a logarithm of 0": ({"space": {"weight_decay": search.LogUniform(0, 2)}}, "begins above 0"),
    "steps of nothing": ({"space": {"temperature": search.Whole(1, 8, 0)}}, "step is a whole number of at least 1"),
    "whole numbers from a half": ({"space": {"temperature": search.Whole(0.5, 4)}}, "low is a whole number"),
    "an infinite range": ({"space": {"learning_rate": search.Uniform(1, float("inf"))}}, "learning_rate is a number"),
    "nothing to choose from": ({"space": {"alpha": search.Choice(())}}, "nothing to choose from"),
    "layers of no kind": (
        {"method": "hint", "space": {"layers": search.Choice(("first",))}}, "choice of layers named 'first'"),
    "a width in fractions": ({"student": None, "space": {"width": search.Uniform(4, 8)}}, "whole numbers"),
    "an impossible depth": ({"student": None, "space": {"depth": search.Whole(8, 10, 1)}}, "6n \\+ 2"),
    "steps that miss the end": ({"student": None, "space": {"width": search.Whole(4, 9, 2)}}, "in whole steps"),
    "a student and a width": ({"space": {"width": search.Whole(4, 8, 2)}}, "Leave them out"),
    "no student and no width": ({"student": None, "space": {"alpha": search.Uniform(0, 1)}}, "has neither"),
    "a limit below the student": ({"max_macs": 5}, "Not even the smallest network, resnet8w2"),
    "a limit in words": ({"max_macs": "1M"}, "max_macs is a whole number"),
    "an infinite latency": ({"max_latency": float("inf")}, "max_latency is a positive number"),
    "progress in words": ({"progress": "no"}, "progress is True or False"),
    "a storage of no kind": ({"storage": 7}, "storage is the path"),
    "data of another kind": ({"data": [1, 2]}, "data is a kdlib.data.DataModule"),
}  # fmt: skip


def test_a_latency_that_may_be_meant_in_milliseconds_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="5 seconds .*give max_latency=0.005 in Python"):
        assert Limits(max_latency=5).max_latency == 5


@pytest.mark.parametrize("name", BAD_CALLS)
def test_what_cannot_be_searched_is_said_before_anything_is_trained(
    name: str, blobs: DataModule, teacher: nn.Module, trainings: list[int]
) -> None:
    change, message = BAD_CALLS[name]
    options: dict[str, Any] = {"data": blobs, "teacher": teacher, "trials": 2, "epochs": 1, **TINY, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        search.run(options.pop("data"), **options)
    assert trainings == []


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((0,), "at least two different seeds"),
        ((1, 1), "at least two different seeds"),
        ((0, 1000), "Seed 1000 is the one that the search has chosen by"),
        ((0, -1), "seed is a whole number"),
        ("01", "seeds are whole numbers"),
        (5, "seeds are whole numbers"),
    ],
)
def test_seeds_that_are_not_fresh_do_not_judge(
    blobs: DataModule, teacher: nn.Module, invented: list[Any], seeds: Any, message: str
) -> None:
    found = search.run(blobs, teacher=teacher, trials=2, epochs=1, **TINY)
    with pytest.raises((ValueError, TypeError), match=message):
        search.judge(found, seeds, progress=False)


def test_only_what_was_found_is_judged() -> None:
    with pytest.raises(TypeError, match="found is what search.run has returned"):
        search.judge("found")  # type: ignore[arg-type]


def test_a_file_that_is_no_storage_is_refused_and_kept(blobs: DataModule, teacher: nn.Module, tmp_path: Path) -> None:
    (tmp_path / storage.FILE).write_text("not a database, and long enough to look like one " * 30)
    with pytest.raises(ValueError, match="is not a SQLite file"):
        search.run(blobs, teacher=teacher, storage=tmp_path, trials=1, epochs=1, **TINY)
    assert (tmp_path / storage.FILE).read_text().startswith("not a database")


def test_without_optuna_the_extra_is_named(
    blobs: DataModule, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r'pip install "kdlib\[search\]"'):
        search.run(blobs, teacher=teacher, trials=1, epochs=1, **TINY)


def test_importing_the_search_loads_neither_optuna_nor_torch() -> None:
    code = "import sys; from kdlib import search, cli; print([m for m in ('optuna', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_what_cannot_be_sent_to_another_process_is_said(blobs: DataModule) -> None:
    class Local(nn.Module):  # a class of a function, which pickle does not find
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3]

    with pytest.raises(ValueError, match="cannot be sent to other processes"):
        search.run(blobs, teacher=Local(), trials=1, epochs=1, workers=2, **TINY)


class OfACell(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3]


@pytest.mark.slow
def test_what_only_the_other_process_finds_missing_is_said(blobs: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of a notebook's cell is named by pickle, and is in no module that another process could import."""
    cell = types.ModuleType("a_cell_of_a_notebook")
    cell.OfACell = OfACell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_cell_of_a_notebook", cell)
    monkeypatch.setattr(OfACell, "__module__", "a_cell_of_a_notebook")
    with pytest.raises(ValueError, match="cannot be sent to other processes.*a_cell_of_a_notebook"):
        search.run(blobs, teacher=OfACell(), trials=1, epochs=1, workers=2, **TINY)


@pytest.mark.parametrize("text", ["journal:~/a/s.journal", "sqlite:///~/a/s.db", "~/a"])
def test_a_storage_in_the_home_folder_is_there(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands the ~ behind "journal:"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    with storage.open_storage(text) as (store, _):
        store.create_new_study([storage.load_optuna().study.StudyDirection.MAXIMIZE], "search")
    assert any((tmp_path / "a").iterdir())
    assert not (tmp_path / "~").exists()
