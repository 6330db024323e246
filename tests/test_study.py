"""The study: its methods and lists, rows that survive a kill, runs that repeat to the bit, honest choices."""

from __future__ import annotations

import errno
import importlib.metadata
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
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kdlib import cli, data, files, methods, models, study, train, verdict
from kdlib.checkpoints import Checkpointer
from kdlib.data import DataModule, LazyDataset
from kdlib.recipes import Recipe
from kdlib.study import analysis, command, experiment, history, method_specs, plans, runner, runs_file
from kdlib.study.experiment import Experiment, SeedRuns, WorkerPool, derangement
from kdlib.study.history import HistoryFile
from kdlib.study.method_specs import (
    FAMILIES,
    FIRST_TRIALS,
    METHODS,
    SETTING_NAMES,
    SHARED_SPACES,
    TRIALS_PER_METHOD,
    Settings,
    TeacherKind,
)
from kdlib.study.plans import CONTROLS, FULL, PLANS, Budget, RunConfig, TunedSettings, Variant
from kdlib.study.predictions import PredictionsFile
from kdlib.study.report import GAINS_MARKER, RUNS_MARKER, update_readme
from kdlib.study.runner import StudyConfig
from kdlib.study.runs_file import (
    RUN_COLUMNS,
    TIME_COLUMNS,
    TRIAL_COLUMNS,
    RunsFile,
    SessionLog,
    read_frame,
    read_rows,
    to_text,
)
from kdlib.workers import share_cores, torch_threads

FULL_NAMES = tuple(spec.name for spec in FULL)
CONTROL_NAMES = tuple(spec.name for spec in CONTROLS)

DIES_AFTER_ROW_4 = """
import os, signal, sys, torch
torch.set_num_threads(1)
from kdlib import data
from kdlib.data import Augmentation, DataModule, InMemoryDataset
parts = torch.load(sys.argv.pop(1), weights_only=True)
splits = {name: InMemoryDataset(*tensors, (0.3,), (0.15,)) for name, tensors in parts.items()}
options = {"augmentation": Augmentation(padding=1), "image_size": 8}
data.load = lambda name, **others: DataModule("blobs", ("a", "b", "c"), **splits, **options)
from kdlib.study import command
from kdlib.study.runs_file import RunsFile
append = RunsFile.append
def dying(self, row):
    append(self, row)
    if len(self.rows) == 4:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", 9))  # nothing is tidied up
RunsFile.append = dying
command.main()
"""


@pytest.fixture(scope="module")
def teacher(made_once: Callable[..., Path]) -> str:
    network = models.build("resnet8", num_classes=3, in_channels=1, seed=5)
    folder = made_once("teacher-of-the-study", lambda folder: models.save(network, folder / "small.safetensors"))
    return str(folder / "small.safetensors")


@pytest.fixture
def budget(teacher: str, blobs: DataModule, monkeypatch: pytest.MonkeyPatch) -> Budget:
    monkeypatch.setattr(data, "load", lambda name, **options: blobs)
    return Budget("blobs", "article-student", teacher, images=48, epochs=2, views=2, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def finished(
    teacher: str, blobs: DataModule, made_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a whole study: trials of all methods, then the full list with two seeds."""
    budget = Budget("blobs", "article-student", teacher, images=48, epochs=1, views=2, device="cpu", precision="fp32")

    def study(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data, "load", lambda name, **options: blobs)
            config = StudyConfig(PLANS["full"], budget, (0, 1), folder, folder / "cache", tuning_seeds=(1000,))
            runner.run(config, progress=False)

    own = tmp_path_factory.mktemp("finished")  # some tests go on with it
    return shutil.copytree(made_once("finished-study", study), own, dirs_exist_ok=True)


def content(path: Path, columns: tuple[str, ...] = RUN_COLUMNS) -> list[dict[str, str]]:
    return read_rows(path, columns)


def timeless(some: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name not in TIME_COLUMNS} for row in some]


def study_config(budget: Budget, folder: Path, plan: str = "controls", **options: Any) -> StudyConfig:
    defaults = {"plan": PLANS[plan], "seeds": (0, 1), "out": folder, "cache": folder / "cache", "defaults": True}
    return StudyConfig(budget=budget, **{**defaults, **options})


def run_config(name: str = "kd", seed: int = 0, excluded_class: int | None = None, **settings: Any) -> RunConfig:
    spec, kind = METHODS[name], "methods" if excluded_class is None else "missing-class"
    return RunConfig(kind, name, spec, replace(spec.start, **settings), seed, excluded_class)


# --- methods and plans -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", SHARED_SPACES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_same_number_of_different_trials(name: str, optimizer: str) -> None:
    spec = METHODS[name]
    trials = [*spec.first_settings(optimizer), *spec.further_settings(spec.start_with(optimizer), optimizer)]
    assert len(trials) == len(set(trials)) == TRIALS_PER_METHOD
    assert (spec.name, spec.family in FAMILIES) == (name, True)
    space = set(spec.search_space(optimizer))
    assert space <= set(SETTING_NAMES)
    unset = {setting for setting in SETTING_NAMES if getattr(spec.start, setting) is None}
    # What a method has is searched for, but for the one layer that RKD compares, and layers that are all compared.
    assert unset.isdisjoint(space)
    assert set(SETTING_NAMES) - unset - space <= {"layers"}


@pytest.mark.parametrize("optimizer", SHARED_SPACES)
def test_all_methods_try_the_same_learning_rates_and_weight_decays(optimizer: str) -> None:
    tried = {name: METHODS[name].first_settings(optimizer) for name in METHODS}
    pairs = {name: [(s.learning_rate, s.weight_decay) for s in settings] for name, settings in tried.items()}
    assert len({tuple(tried) for tried in pairs.values()}) == 1
    for position, distribution in enumerate(SHARED_SPACES[optimizer].values()):
        tried = sorted(pair[position] for pair in pairs["kd"])
        parts = [distribution.at(share / FIRST_TRIALS) for share in range(FIRST_TRIALS + 1)]
        assert all(low <= value <= high for low, value, high in zip(parts, tried, parts[1:], strict=False))


def test_the_plans_are_those_that_the_study_needs() -> None:
    assert set(FULL_NAMES) == {
        *("hard", "label-smoothing", "kd", "dkd", "dist", "standardized", "hint", "attention", "vid", "fsp"),
        *("layer-correlation", "layer-information", "rkd", "similarity", "kd+hint", "kd+fsp", "kd+rkd"),
    }
    assert set(CONTROL_NAMES) == {"shuffled", "untrained", "own-size"}
    assert set(METHODS) - {*FULL_NAMES, *CONTROL_NAMES} == {"vid-normalized", "similarity-normalized"}
    configs = PLANS["grid"].run_configs(PLANS["grid"].variants({}), range(5), {})
    assert len({(c.settings.alpha, c.settings.temperature, c.seed) for c in configs}) == (4 * 5 + 1) * 5
    assert {c.method for c in configs} >= {"kd alpha=0 T=1", "kd alpha=0.1 T=16", "kd alpha=1"}


def test_the_short_plan_takes_the_best_of_each_family_by_validation_score() -> None:
    scores = dict.fromkeys(FULL_NAMES, 0.8) | {"dist": 0.9, "vid": 0.9, "rkd": 0.9, "kd+fsp": 0.9}
    tuned = {name: TunedSettings(METHODS[name].start, "somewhere", score) for name, score in scores.items()}
    names = [variant.name for variant in PLANS["short"].variants(tuned)]
    assert names == ["hard", "label-smoothing", "kd", "dist", "vid", "rkd", "kd+fsp", "shuffled"]
    tuned["kd"] = replace(tuned["kd"], score=0.95)
    assert len(PLANS["short"].variants(tuned)) == 7  # kd is the best of its family itself


def test_the_missing_class_is_learned_from_soft_labels_alone_or_not_at_all() -> None:
    plan = PLANS["missing-class"]
    configs = plan.run_configs(plan.variants({}), (0, 1), {}, (3, 9))
    assert {(c.method, c.seed, c.excluded_class) for c in configs} == {
        (name, seed, label)
        for name in ("hard", "kd alpha=0 T=4", "kd alpha=0 T=16", "kd alpha=0.1 T=4")
        for seed in (0, 1)
        for label in (3, 9)
    }


def test_a_plan_takes_the_tuned_settings_and_changes_its_own() -> None:
    tuned = {"kd": TunedSettings(Settings(learning_rate=0.3, alpha=0.5, temperature=8), "elsewhere")}
    made = PLANS["grid"].run_configs(PLANS["grid"].variants(tuned), [7], tuned)
    assert {c.settings.learning_rate for c in made} == {0.3}
    assert made[0].settings.alpha == 0
    assert made[0].tuned_on == "elsewhere"


def test_unknown_names_are_answered_with_near_ones() -> None:
    for call, message in (
        (lambda: method_specs.find("attentoin"), "Did you mean 'attention'"),
        (lambda: plans.find("ful"), "Did you mean 'full'"),
        (lambda: plans.find("kontrols"), "Did you mean 'controls'"),
        (lambda: Budget(optimizer="adam"), "no optimizer of a study named 'adam'. Did you mean 'adamw'"),
        (lambda: models.pair_layers(*[models.build("resnet8", num_classes=3)] * 2, "lst"), "Did you mean 'last'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_layers_are_paired_from_the_end() -> None:
    student, teacher = models.build("article-student", num_classes=3), models.build("resnet8", num_classes=3)
    pairs = {where: models.pair_layers(student, teacher, where) for where in ("last", "late", "all", "embedding")}
    assert pairs["last"] == {"pool2": "layer3"}
    assert pairs["late"] == pairs["all"] == {"pool1": "layer2", "pool2": "layer3"}
    assert pairs["embedding"] == {"flatten": "avgpool"}
    assert models.pair_layers(teacher, teacher, "late") == {"layer2": "layer2", "layer3": "layer3"}


@pytest.mark.parametrize("optimizer", SHARED_SPACES)
def test_where_nothing_was_tuned_the_study_trains_as_a_recipe_does(optimizer: str) -> None:
    own = Recipe(optimizer)
    for spec in METHODS.values():
        start = spec.start_with(optimizer)
        assert (start.learning_rate, start.weight_decay) == (own.learning_rate, own.weight_decay)
        assert replace(start, learning_rate=0.1, weight_decay=5e-4) == spec.start


def test_few_images_come_in_small_batches_with_a_learning_rate_in_proportion() -> None:
    sizes = {images: Budget(images=images).batch_size for images in (1000, 5119, 5120, 10_000, None)}
    assert sizes == {1000: 32, 5119: 32, 5120: 128, 10_000: 128, None: 128}
    recipe = Settings(learning_rate=0.2, weight_decay=1e-3).recipe(32)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size) == (0.05, 1e-3, 32)
    recipe = Settings(learning_rate=0.02).recipe(32, "adamw")
    assert (recipe.optimizer, recipe.learning_rate) == ("adamw", 0.01)  # to the square root


def test_settings_survive_a_file_and_have_a_text() -> None:
    settings = Settings(weight=10, layers="last", learning_rate=0.1)
    assert Settings.from_row({name: to_text(getattr(settings, name)) for name in SETTING_NAMES}) == settings
    assert repr(Settings(weight=10)) == repr(Settings(weight=10.0))  # and so have one fingerprint
    assert str(settings) == "learning_rate 0.1, weight_decay 0.0005, weight 10, layers last"


@pytest.mark.parametrize("options", [{"images": 0}, {"epochs": 0}, {"views": 0}, {"images": 2.5}])
def test_a_budget_below_one_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="whole number of at least 1"):
        Budget(**options)


def test_a_file_of_results_has_a_name_that_windows_allows(tmp_path: Path) -> None:
    named = {("resnet8", "resnet20-fashion"): "methods-resnet8-resnet20-fashion-all.csv",
             ("timm:resnet18.a1_in1k", "timm:vgg11"): "methods-timm-resnet18.a1_in1k-timm-vgg11-all.csv"}  # fmt: skip
    for (student, teacher), name in named.items():
        budget = Budget(student=student, teacher=teacher, images=None)
        assert budget.path("methods", tmp_path) == tmp_path / name


@pytest.mark.skipif(sys.platform == "win32", reason="such a file is never made there")
def test_a_study_that_an_older_kdlib_has_begun_keeps_its_file(tmp_path: Path) -> None:
    budget, begun = Budget(student="timm:vgg11"), tmp_path / "methods-timm:vgg11-resnet20-fashion-10000.csv"
    begun.touch()
    assert budget.path("methods", tmp_path) == begun
    assert budget.path("choose", tmp_path).name == "choose-timm-vgg11-resnet20-fashion-10000.csv"


def test_contradicting_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="settings tuned on a seed must not be judged on it"):
        StudyConfig(seeds=(0, 1), tuning_seeds=(1,))
    with pytest.raises(ValueError, match="must be there"):
        StudyConfig(seeds=())
    with pytest.raises(ValueError, match="name that file"):
        StudyConfig(retune=True)
    for plan in (PLANS["missing-class"], plans.of_methods(["kd"])):
        with pytest.raises(ValueError, match="--retune .* short"):
            StudyConfig(plan, trials_file=tmp_path / "choose.csv", retune=True)
    with pytest.raises(TypeError, match=r"such as plans.find\('full'\); got 'full'"):
        StudyConfig(plan="full")
    with pytest.raises(ValueError, match="contradict each other"):
        StudyConfig(defaults=True, trials_file=tmp_path / "choose.csv")


# --- rows --------------------------------------------------------------------------------------------------------


def test_rows_come_back_to_the_last_bit(tmp_path: Path) -> None:
    values = {"a": 0.1 + 0.2, "b": "two\nlines, and a comma", "c": None, "d": 7}
    with RunsFile(tmp_path / "x.csv", ("a", "b", "c", "d")).open() as table:
        table.append(values)
    (row,) = content(tmp_path / "x.csv", ("a", "b", "c", "d"))
    assert float(row["a"]) == 0.1 + 0.2
    assert (row["b"], row["c"], row["d"]) == ("two lines, and a comma", "", "7")
    frame = read_frame(tmp_path / "x.csv")
    assert frame["a"][0] == 0.1 + 0.2
    assert list(frame.columns) == ["a", "b", "c", "d"]


def test_names_keep_their_spaces(tmp_path: Path) -> None:
    with RunsFile(tmp_path / "x.csv", ("a",)).open() as table:
        table.append({"a": "imagefolder:my  pictures\r\nand\ttwo "})
    assert content(tmp_path / "x.csv", ("a",)) == [{"a": "imagefolder:my  pictures and\ttwo "}]


@pytest.mark.parametrize("option", ["--data", "--teacher", "--student"])
def test_a_name_that_no_row_can_hold_is_refused_before_the_first_run(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(runner, "run", lambda *args, **options: pytest.fail("a study was begun"))
    options = ["short", option, "imagefolder:/bilder-\udcfc", "--out", str(tmp_path), "--quiet"]
    monkeypatch.setattr(sys, "argv", ["kdlib study", *options])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "UTF-8" in said
    assert "Rename" in said


def test_a_file_cut_anywhere_loses_no_whole_row(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with RunsFile(path, ("a", "b")).open() as table:
        for number in range(3):
            table.append({"a": number, "b": f"text {number}"})
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        kept = max(0, whole[:end].count(b"\n") - 1)
        messages: list[str] = []
        with RunsFile(path, ("a", "b"), messages.append).open() as table:
            assert len(table.rows) == kept
            for number in range(kept, 3):
                table.append({"a": number, "b": f"text {number}"})
        assert path.read_bytes() == whole
        assert bool(messages) == (end not in (0, *[i + 1 for i, byte in enumerate(whole) if byte == 10]))


RUN, OTHER_RUN = "hard,0,0123456789abcdef\n", "kd,0,fedcba9876543210\n"
NAMES = ("method", "seed", "fingerprint")


@pytest.mark.parametrize("before", ["", RUN], ids=["alone", "after another"])
def test_a_last_row_whose_line_break_an_editor_has_left_out_is_kept(before: str, tmp_path: Path) -> None:
    path, messages = tmp_path / "x.csv", []
    text = f"{','.join(NAMES)}\n{before}{OTHER_RUN}"
    path.write_text(text.removesuffix("\n"))
    assert read_rows(path)[-1] == {"method": "kd", "seed": "0", "fingerprint": "fedcba9876543210"}
    with RunsFile(path, NAMES, messages.append).open() as table:
        assert table.rows == read_rows(path)
        table.append({"method": "kd", "seed": 1, "fingerprint": "f" * 16})
    assert path.read_text() == f"{text}kd,1,{'f' * 16}\n"
    assert messages == []


def test_a_last_line_that_is_no_whole_row_is_never_kept(tmp_path: Path) -> None:
    path, start = tmp_path / "x.csv", f"{','.join(NAMES)}\n{RUN}"
    torn = [OTHER_RUN[:end] for end in range(1, len(OTHER_RUN) - 1)]
    for line in (*torn, "kd,many,fedcba9876543210", "kd,fedcba9876543210", 'kd,"0,fedcba9876543210'):
        path.write_text(start + line)
        with pytest.warns(UserWarning, match=re.escape(str(path))):
            assert len(read_rows(path)) == 1
        messages: list[str] = []
        with RunsFile(path, NAMES, messages.append).open() as table:
            assert len(table.rows) == 1
        assert path.read_text() == start
        assert len(messages) == 1


def test_reading_leaves_out_a_line_that_is_being_written_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "x-1.csv").write_text("a,b\n1,0.5\n2,0.2")
    (tmp_path / "x-2.csv").write_text("a,b\n3,\n")
    with pytest.warns(UserWarning, match="x-1.csv"):
        frame = read_frame(tmp_path / "x-*.csv")
    assert list(frame["a"]) == [1, 3]
    assert frame["b"].isna().tolist() == [False, True]
    with pytest.raises(FileNotFoundError, match="Run the study first"):
        read_frame(tmp_path / "y.csv")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n3\n4,5\n")
    with (
        pytest.raises(ValueError, match=r"Line 3 of .* has 1 values, expected 2\. Remove that line"),
        RunsFile(path, ("a", "b")).open(),
    ):
        pass
    with pytest.raises(ValueError, match=r"other columns \(b, c\)"), RunsFile(path, ("a", "c")).open():
        pass
    assert path.read_text() == "a,b\n1,2\n3\n4,5\n"


def test_two_studies_never_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    refused = pytest.raises(ValueError, match="Another study is writing")
    with RunsFile(path, ("a",)).open(), refused, RunsFile(path, ("a",)).open():
        pass
    with RunsFile(path, ("a",)).open():
        pass


def test_windows_locks_one_byte_far_behind_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def locking(handle: int, mode: int, count: int) -> None:
        assert (mode, count, os.lseek(handle, 0, os.SEEK_CUR)) == (3, 1, runs_file.LOCK_POSITION)
        if held:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        held.append(handle)

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=3, locking=locking))
    monkeypatch.setattr(runs_file, "sys", SimpleNamespace(platform="win32"))
    path = tmp_path / "x.csv"
    refused = pytest.raises(ValueError, match="Another study is writing")
    with RunsFile(path, ("a",)).open() as table:
        table.append({"a": 1})
        with refused, RunsFile(path, ("a",)).open():
            pass
    assert path.read_text() == "a\n1\n"


def test_a_full_disk_leaves_the_rows_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv"

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunsFile(path, ("a",)).open() as table:
        table.append({"a": 1})
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="1 finished runs are kept. Free some space"):
                table.append({"a": 2})
        assert path.read_bytes() == before
        table.append({"a": 2})
    assert path.read_text() == "a\n1\n2\n"


def test_the_session_log_adds_up_sessions_and_names_the_machine(tmp_path: Path) -> None:
    for name, count in (("first", 3), ("second", 5)):
        log = SessionLog(tmp_path / "x.csv", name)
        log.facts["chosen"] = {"kd": 0.5}
        log._started -= 3600  # an hour ago
        log.write(count)
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["runs"] == 5
    assert found["hours"] == pytest.approx(2.0, abs=0.01)
    assert [session["command"] for session in found["sessions"]] == ["first", "second"]
    assert found["chosen"] == {"kd": 0.5}
    session = found["sessions"][0]
    assert session["machine"]["cores"] == os.cpu_count()
    assert session["machine"]["processor"]
    assert session["versions"]["torch"] == importlib.metadata.version("torch")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="Restore it, or move it away"):
        SessionLog(tmp_path / "x.csv", "third")


def test_a_row_that_was_written_after_the_log_belongs_to_the_session_before(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    SessionLog(path, "killed", 0).write(2)  # a third row was written, and this no more
    SessionLog(path, "gone on", 3).write(5)
    for _ in range(2):
        sessions = runs_file.session_of_each_row(path, 5)
        assert [session["command"] for session in sessions] == ["killed"] * 3 + ["gone on"] * 2
        SessionLog(path, "nothing to do", 5).write(5)


def test_after_a_row_was_removed_no_run_is_given_to_another_session(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for name, before, after in (("first", 0, 2), ("second", 2, 5)):
        SessionLog(path, name, before).write(after)

    def commands(num_rows: int) -> list[str | None]:
        return [found and found["command"] for found in runs_file.session_of_each_row(path, num_rows)]

    assert commands(5) == ["first", "first", "second", "second", "second"]
    assert commands(4) == ["first", None, "second", "second"]  # which of the five was removed, nobody knows
    assert commands(3) == [None, None, "second"]
    SessionLog(path, "gone on", 4).write(6)
    assert commands(6) == ["first", None, "second", "second", "gone on", "gone on"]


def test_a_session_is_noted_before_its_first_run(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunsFile, "append", lambda table, row: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        runner.run(study_config(budget, tmp_path, seeds=(0,)), progress=False, command="killed")
    found = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert [(session["command"], session["rows"]) for session in found["sessions"]] == [("killed", [1, 0])]


# --- one run -----------------------------------------------------------------------------------------------------


def test_a_run_gives_every_column_and_repeats_to_the_bit(budget: Budget, tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        experiment = Experiment(budget, folder)
        with experiment.seed_runner([run_config("kd+hint")], tmp_path / "x.csv") as seed_runner:
            found.append(seed_runner.run(run_config("kd+hint"), test=True))
    empty = {"excluded_class", "excluded_class_accuracy", "error", "smoothing", "beta"}
    assert {name for name in RUN_COLUMNS if found[0].get(name) is None} == empty
    answers = [row.pop("predicted").tolist() for row in found]
    assert answers[0] == answers[1]
    aside = (*TIME_COLUMNS, "checkpoint")
    one, two = ({name: value for name, value in row.items() if name not in aside} for row in found)
    assert one == two
    assert one["extra_parameters"] == 32 * 64  # the projection of pool2 to the teacher's layer3
    assert not list((tmp_path / "a").iterdir())  # the teacher's answers are gone


def test_seeds_differ_in_images_and_weights_and_methods_of_a_seed_do_not(budget: Budget, tmp_path: Path) -> None:
    experiment = Experiment(budget, tmp_path)
    images = []
    for seed in (0, 1):
        with experiment.seed_runner([run_config(seed=seed)], tmp_path / "x.csv") as seed_runner:
            images.append(seed_runner.data.train.indices)
    assert not torch.equal(*images)
    weights = [experiment.build_student(seed).state_dict()["conv1.weight"] for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_fit_gets_the_seed_and_settings_of_the_run_and_no_test_set(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fit(student: torch.nn.Module, data: DataModule, **options: Any) -> None:
        calls.append({"weight": student.state_dict()["conv1.weight"].clone(), "data": data, **options})
        raise FloatingPointError("stopped here")

    monkeypatch.setattr("kdlib.study.experiment.train.fit", fit)
    experiment = Experiment(budget, tmp_path)
    for seed, test in ((4, False), (5, True)):
        one = run_config("kd", seed, learning_rate=0.3, weight_decay=1e-3, temperature=2.7, alpha=0.35)
        with experiment.seed_runner([one], tmp_path / "x.csv") as seed_runner:
            assert seed_runner.run(one, test=test)["error"] == "stopped here"
            assert calls[-1]["teacher"] is seed_runner.teacher(TeacherKind.REFERENCE)
        assert torch.equal(calls[-1]["weight"], experiment.build_student(seed).state_dict()["conv1.weight"])
        assert (calls[-1]["seed"], calls[-1]["views"], calls[-1]["epochs"], calls[-1]["test"]) == (seed, 2, 2, False)
        recipe, method = calls[-1]["recipe"], calls[-1]["method"]
        assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size) == (0.3 / 4, 1e-3, 32)
        assert (method.temperature, method.alpha) == (2.7, 0.35)
    for call in calls:  # a run of the study reads the test set after training, and a trial never
        with pytest.raises(RuntimeError, match="The labels of the test set were read before training was over"):
            _ = call["data"].test.labels
        with pytest.raises(RuntimeError, match="The length of the test set was read"):
            len(call["data"].test)


ODD = {"alpha": 0.35, "temperature": 2.7, "weight": 7.5}


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("hard", {}, "HardLabels(smoothing=0.0)"),
        ("label-smoothing", {"smoothing": 0.23}, "HardLabels(smoothing=0.23)"),
        ("kd", ODD, "Logit(temperature=2.7, alpha=0.35, loss=kd)"),
        ("dkd", {**ODD, "beta": 3.3}, "Logit(temperature=2.7, alpha=0.35, loss=dkd, beta=3.3)"),
        ("dist", ODD, "Logit(temperature=2.7, alpha=0.35, loss=dist)"),
    ],
)
def test_a_method_is_made_with_the_settings_of_its_run(name: str, settings: dict[str, float], expected: str) -> None:
    student, teacher = (models.build(name, num_classes=3, in_channels=1, image_size=8) for name in ("resnet8",) * 2)
    made = METHODS[name].make_method(replace(METHODS[name].start, **settings), student, teacher)
    assert repr(made) == expected


@pytest.mark.parametrize(("layers", "pairs"), [("last", 1), ("late", 2), ("all", 3)])
def test_weight_and_layers_of_a_run_reach_its_method(layers: str, pairs: int) -> None:
    student, teacher = (models.build(name, num_classes=3, in_channels=1, image_size=8) for name in ("resnet8",) * 2)
    spec = METHODS["kd+hint"]
    made = spec.make_method(replace(spec.start, **ODD, layers=layers), student, teacher)
    assert isinstance(made, methods.WeightedSum)
    (one, logit), (weight, hint) = made.weighted
    assert (one, logit.temperature, logit.alpha) == (1, 2.7, 0.35)
    assert (weight, hint.loss, len(hint.layers)) == (7.5, "hint", pairs)


def test_columns_of_the_test_images_are_what_they_are_called(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a student that names the first class, but for each third image the class that no image showed."""

    class Fixed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            classes = torch.zeros(len(images), dtype=torch.long)
            classes[::3] = 1
            return 5.0 * torch.nn.functional.one_hot(classes, 3)

    one = run_config("hard", excluded_class=1)
    with Experiment(budget, tmp_path).seed_runner([one], tmp_path / "x.csv") as seed_runner:
        labels = seed_runner.data.test.labels
        row = seed_runner._test_columns(Fixed())
        teacher = seed_runner.experiment.reference_metrics.logits.argmax(1)
    said = torch.arange(len(labels)).remainder(3).eq(0).long()
    assert row["predicted"].tolist() == said.tolist()
    assert row["test_accuracy"] == (said == labels).float().mean()
    assert row["agreement"] == (said == teacher).float().mean()
    assert row["agreement"] != row["test_accuracy"]
    assert row["excluded_class_accuracy"] == (said == labels)[labels == 1].float().mean()
    sure = math.exp(5.0) / (math.exp(5.0) + 2)  # of every image, so there is one bin
    assert row["calibration_error"] == pytest.approx(abs(sure - row["test_accuracy"]))


def test_a_run_of_the_study_is_measured_on_the_whole_validation_split(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "QUICK_VALIDATION", 10)
    evaluated, evaluate = [], train.evaluate

    def noted(model: torch.nn.Module, split: Any, **options: Any) -> train.Metrics:
        evaluated.append(len(split))
        return evaluate(model, split, **options)

    with Experiment(budget, tmp_path).seed_runner([run_config("hard")], tmp_path / "x.csv") as seed_runner:
        monkeypatch.setattr("kdlib.study.experiment.train.evaluate", noted)
        seed_runner.run(run_config("hard"), test=False)
    assert evaluated == [30]


def test_a_run_that_is_interrupted_goes_on_at_its_last_epoch_to_the_bit(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, saved, save = [], [], Checkpointer.save
    one = run_config("kd+hint")

    def interrupted(checkpointer: Checkpointer, *args: Any) -> None:
        save(checkpointer, *args)
        saved.append(checkpointer.path)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpointer, "save", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        Experiment(budget, tmp_path / "a").seed_runner([one], tmp_path / "x.csv") as seed_runner,
    ):
        seed_runner.run(one, test=True)
    assert saved[0].exists()
    for folder in (tmp_path / "a", tmp_path / "b"):
        with Experiment(budget, folder).seed_runner([one], tmp_path / "x.csv") as seed_runner:
            rows.append(timeless([seed_runner.run(one, test=True)]))
        assert not list(folder.iterdir())
    assert [path.parent.parent.name for path in saved] == ["a", "a", "b", "b"]  # one epoch was left of two
    predicted = [row.pop("predicted").tolist() for (row,) in rows]
    assert predicted[0] == predicted[1]
    assert len({row.pop("checkpoint").name for (row,) in rows}) == 1
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "lost", [(RunsFile, "append"), (PredictionsFile, "add"), (HistoryFile, "add")], ids=["row", "answers", "history"]
)
def test_a_run_whose_results_found_no_room_is_not_trained_again(
    lost: tuple[type, str], budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "LONG_EPOCH", 1)
    config = replace(study_config(budget, tmp_path), plan=plans.of_methods(["kd"]), seeds=(0,))
    saved, save, append = [], Checkpointer.save, RunsFile.append

    def noted(checkpointer: Checkpointer, *args: Any) -> None:
        save(checkpointer, *args)
        saved.append(checkpointer.path)

    def looked_at(file: RunsFile, row: dict[str, Any]) -> None:
        assert len(list(config.cache.rglob("*.checkpoint"))) == 1  # those of runs before are gone
        append(file, row)

    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Checkpointer, "save", noted)
    with monkeypatch.context() as patch:
        patch.setattr(*lost, full)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            runner.run(config, progress=False)
    assert len(saved) == budget.epochs
    monkeypatch.setattr(RunsFile, "append", looked_at)
    path = runner.run(config, progress=False)
    assert [row["method"] for row in content(path)] == ["hard", "kd"]
    assert len(saved) == 2 * budget.epochs
    assert not list(config.cache.iterdir())


def test_a_checkpoint_of_other_threads_is_not_gone_on_with(budget: Budget, tmp_path: Path) -> None:
    with Experiment(budget, tmp_path).seed_runner([run_config()], tmp_path / "x.csv") as seed_runner:
        names, threads = set(), torch.get_num_threads()
        for count in (threads, threads + 1):
            torch.set_num_threads(count)
            names.add(seed_runner.checkpoint(run_config()))
        torch.set_num_threads(threads)
    assert len(names) == 2


def test_a_damaged_checkpoint_does_not_stop_a_study(budget: Budget, tmp_path: Path) -> None:
    with Experiment(budget, tmp_path).seed_runner([run_config("hard")], tmp_path / "x.csv") as seed_runner:
        path = seed_runner.checkpoint(run_config("hard"))
        path.parent.mkdir()
        path.write_bytes(b"cut off")
        assert seed_runner.run(run_config("hard"), test=False)["validation_accuracy"] > 0
        files.load_tensors(path)  # it is one of this run now
        with pytest.raises(ValueError, match="needs a weight and layers"):  # other errors are not hidden
            seed_runner.run(run_config("hint", weight=None), test=False)


@given(st.sets(st.integers(0, 10_000), min_size=2, max_size=30), st.integers(0, 5))
def test_a_shuffle_leaves_nothing_in_its_place(some: set[int], seed: int) -> None:
    indices = torch.tensor(sorted(some))
    mixed = derangement(indices, seed)
    assert not (mixed == indices).any()
    assert torch.equal(mixed.sort().values, indices)
    assert torch.equal(mixed, derangement(indices, seed))


def test_one_image_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match="no other"):
        derangement(torch.tensor([4]), 0)


def test_the_shuffled_teacher_answers_for_another_image(budget: Budget, tmp_path: Path) -> None:
    experiment = Experiment(budget, tmp_path)
    with experiment.seed_runner([run_config("shuffled")], tmp_path / "x.csv") as seed_runner:
        honest, shuffled = seed_runner.teacher(TeacherKind.REFERENCE), seed_runner.teacher(TeacherKind.SHUFFLED)
        split = seed_runner.data.train
        partners = dict(zip(derangement(split.indices, 0).tolist(), split.indices.tolist(), strict=True))
        for view in (0, 1):
            batch = next(split.iter_batches(48, augmentation=seed_runner.data.augmentation, seed=0, view=view))
            other = replace(batch, indices=torch.tensor([partners[index] for index in batch.indices.tolist()]))
            assert torch.equal(shuffled(batch).logits, honest(other).logits)
            assert not torch.equal(shuffled(batch).logits, honest(batch).logits)


def test_the_normalized_teacher_has_features_of_one_length_and_the_same_logits(budget: Budget, tmp_path: Path) -> None:
    experiment = Experiment(budget, tmp_path)
    with experiment.seed_runner([run_config("vid-normalized")], tmp_path / "x.csv") as seed_runner:
        plain, normalized = (seed_runner.teacher(kind) for kind in (TeacherKind.REFERENCE, TeacherKind.NORMALIZED))
        batch = next(
            seed_runner.data.train.iter_batches(24, augmentation=seed_runner.data.augmentation, seed=0, view=1)
        )
        one, other = plain(batch, plain.metadata["layers"]), normalized(batch, plain.metadata["layers"])
        assert torch.equal(one.logits, other.logits)
        assert one.features.keys() == other.features.keys() != set()
        for name, features in other.features.items():
            flat, before = features.flatten(1), one.features[name].flatten(1).float()
            torch.testing.assert_close(flat.square().mean(dim=1), torch.ones(24), rtol=1e-4, atol=0)
            torch.testing.assert_close(
                torch.nn.functional.cosine_similarity(flat, before), torch.ones(24), rtol=1e-4, atol=0
            )
            assert before.norm(dim=1).std() > 0.01 * before.norm(dim=1).mean()
        assert len(list(tmp_path.rglob("cache.json"))) == 1  # which both read


def test_control_teachers_are_made_once_and_made_again_the_same(budget: Budget, tmp_path: Path) -> None:
    made = [Experiment(budget, tmp_path / folder).same_size_teacher() for folder in ("a", "a", "b")]
    assert all(torch.equal(m.fc.weight, made[0].fc.weight) for m in made)
    assert type(made[0]).__name__ == "Sequential"  # the student's architecture
    assert len(list((tmp_path / "a").iterdir())) == 1
    experiment = Experiment(budget, tmp_path / "a")
    untrained = experiment.untrained_teacher()
    assert type(untrained) is type(experiment.reference)
    assert not torch.equal(untrained.fc.weight, experiment.reference.fc.weight)
    assert torch.equal(untrained.fc.weight, experiment.untrained_teacher().fc.weight)


def test_the_missing_class_is_in_no_training_image_and_is_tested_by_itself(budget: Budget, tmp_path: Path) -> None:
    one = run_config("hard", excluded_class=1)
    with Experiment(budget, tmp_path).seed_runner([one], tmp_path / "x.csv") as seed_runner:
        assert set(seed_runner.data.train.labels.tolist()) == {0, 2}
        row = seed_runner.run(one, test=True)
    assert row["excluded_class"] == 1
    assert row["excluded_class_accuracy"] == 0  # hard labels never name it
    assert 0 < row["test_accuracy"] < 0.7


def test_a_run_that_diverges_is_a_row_with_an_error(budget: Budget, tmp_path: Path) -> None:
    wild = run_config("hint", learning_rate=1e30)
    with (
        Experiment(budget, tmp_path).seed_runner([wild], tmp_path / "x.csv") as seed_runner,
        RunsFile(tmp_path / "x.csv", RUN_COLUMNS).open() as t,
    ):
        t.append(seed_runner.run(wild, test=True))
    (row,) = content(tmp_path / "x.csv")
    assert "not finite" in row["error"]
    assert "checkpoint" not in row["error"]  # it lies in scratch, and is gone
    assert row["test_accuracy"] == row["validation_accuracy"] == ""
    assert row["fingerprint"]


# --- tuning ------------------------------------------------------------------------------------------------------


class Sealed:
    """A test set that must not be opened."""

    def __getattr__(self, name: str) -> None:
        raise RuntimeError(f"{name} of the test set was read")

    def __len__(self) -> int:
        raise RuntimeError("the length of the test set was read")


@pytest.mark.slow
def test_tuning_never_touches_the_test_set(
    budget: Budget, blobs: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "load", lambda name, **options: replace(blobs, test=Sealed()))
    options = {"defaults": False, "tuning_seeds": (1000,), "seeds": (0,)}
    with pytest.raises(RuntimeError, match="of the test set was read"):
        runner.run(study_config(budget, tmp_path, **options), progress=False)
    trials = content(budget.path("choose", tmp_path), TRIAL_COLUMNS)
    assert len(trials) == 3 * TRIALS_PER_METHOD  # all of them were made; only then, for the first run, was it read
    assert content(budget.path("methods", tmp_path)) == []
    assert not [name for name in TRIAL_COLUMNS if "test" in name or name == "agreement"]


@pytest.mark.slow
def test_every_method_gets_equally_many_trials_and_its_best_is_used(finished: Path) -> None:
    (path,) = finished.glob("choose-*.csv")
    trials = content(path, TRIAL_COLUMNS)
    assert Counter(row["method"] for row in trials) == dict.fromkeys(FULL_NAMES, TRIALS_PER_METHOD)
    assert {row["seed"] for row in trials} == {"1000"}
    (results,) = finished.glob("methods-*.csv")
    for row in content(results):
        own = [trial for trial in trials if trial["method"] == row["method"]]
        best = max(own, key=lambda trial: float(trial["validation_accuracy"]))
        assert Settings.from_row(row) == Settings.from_row(best)
        assert row["tuned_on"] == "article-student, 48 images, 1 epochs"
    log = json.loads(path.with_suffix(".json").read_text())
    assert set(log["chosen"]) == set(FULL_NAMES)
    assert log["runs"] == len(trials)


def trial(name: str, settings: Settings, score: float | None, seed: int = 1000) -> dict[str, str]:
    budget = Budget(student="resnet8", images=500, epochs=3)
    values = RunConfig("choose", name, METHODS[name], settings, seed).to_row(budget) | {"validation_accuracy": score}
    return {column: to_text(values.get(column)) for column in TRIAL_COLUMNS}


def trials(name: str, scores: dict[int, list[float | None]], others: float, rest: float = 0.2) -> list[dict[str, str]]:
    """All trials of a method with two seeds: scores of first ones, by their number, and of all others, and further."""
    seeds = (1000, 1001)
    tried = METHODS[name].first_settings()
    first = plans.first_trials([METHODS[name]], seeds)
    by_settings = {settings: scores.get(number, [rest, rest]) for number, settings in enumerate(tried)}
    made = [trial(name, c.settings, by_settings[c.settings][seeds.index(c.seed)], c.seed) for c in first]
    further = plans.further_trials([METHODS[name]], seeds, made)
    return made + [trial(name, c.settings, others, c.seed) for c in further]


def test_the_choice_is_the_best_mean_over_its_seeds() -> None:
    tried = METHODS["kd"].first_settings()
    scores = {0: [0.5, 0.9], 1: [0.75, 0.75], 2: [0.95, 0.1]}
    found = plans.best_settings(trials("kd", scores, others=0.6))["kd"]
    assert found.settings == tried[1]
    assert found.score == pytest.approx(0.75)
    assert found.tuned_on == "resnet8, 500 images, 3 epochs, 2 tuning seeds"
    better = plans.best_settings(trials("kd", scores, others=0.8))["kd"]
    assert better.settings == METHODS["kd"].further_settings(tried[1])[0]  # the first of equals


@pytest.mark.parametrize("others", [0.5, 0.75, 0.9])
def test_of_equal_trials_the_first_is_taken_whichever_ended_first(others: float) -> None:
    """With several workers, rows are in the order in which their processes ended."""
    tried = METHODS["kd"].first_settings()
    made = trials("kd", {2: [0.75, 0.75], 4: [0.75, 0.75]}, others=others)
    expected = METHODS["kd"].further_settings(tried[2])[0] if others == 0.9 else tried[2]
    for seed in range(8):
        shuffled = random.Random(seed).sample(made, len(made))
        assert plans.best_settings(shuffled)["kd"].settings == expected


def test_the_mean_over_seeds_does_not_depend_on_the_order_of_the_rows() -> None:
    """Otherwise the last bit would choose between equal ones."""
    made = [trial("kd", METHODS["kd"].start, score, seed) for seed, score in enumerate([0.1, 0.2, 0.3])]
    assert plans.mean_trial_scores(made) == plans.mean_trial_scores(made[::-1])


@pytest.mark.parametrize("name", ["hint", "hard", "rkd"])
@pytest.mark.parametrize("number", range(FIRST_TRIALS))
def test_further_trials_surround_the_best_of_the_first(name: str, number: int) -> None:
    best = METHODS[name].first_settings()[number]
    made = trials(name, {number: [0.9, 0.9]}, others=0.1)
    assert len(made) == 2 * TRIALS_PER_METHOD
    further = [Settings.from_row(row) for row in made[2 * FIRST_TRIALS :]]
    for setting in ("learning_rate", "weight_decay"):  # beyond the range as well, where the best is its end
        values = [getattr(settings, setting) for settings in further]
        assert min(values) < getattr(best, setting) < max(values)
        assert max(values) / min(values) < SHARED_SPACES["sgd"][setting].high / SHARED_SPACES["sgd"][setting].low
    assert {settings.layers for settings in further} == {best.layers}


def test_a_choice_at_the_end_of_what_was_tried_is_named() -> None:
    spec = METHODS["similarity"]
    tried = spec.first_settings()
    rates = [settings.learning_rate for settings in tried]
    last = rates.index(max(rates))
    made = trials("similarity", {last: [0.9, 0.9]}, others=0.1)
    assert "learning_rate" not in plans.best_settings(made)["similarity"].at_edge  # larger ones were tried then
    further = [row | {"validation_accuracy": row["learning_rate"]} for row in made[2 * FIRST_TRIALS :]]
    widest = plans.best_settings(made[: 2 * FIRST_TRIALS] + further)["similarity"]
    assert widest.settings.learning_rate > max(rates)
    assert "learning_rate" in widest.at_edge
    smooth = METHODS["label-smoothing"]
    assert "smoothing" not in smooth.at_edge(replace(smooth.start, smoothing=0.9), [smooth.start])  # nothing beyond


def test_a_trial_that_diverged_counts_and_is_never_chosen() -> None:
    tried = METHODS["kd"].first_settings()
    made = trials("kd", {0: [0.4, 0.4], 1: [0.5, 0.5], 2: [0.99, None]}, others=0.3)
    assert plans.best_settings(made)["kd"].settings == tried[1]
    first = [row | {"validation_accuracy": ""} for row in made[: 2 * FIRST_TRIALS]]
    further = {config.settings for config in plans.further_trials([METHODS["kd"]], (1000, 1001), first)}
    slowest = min(tried, key=lambda settings: settings.learning_rate)
    assert further == set(METHODS["kd"].further_settings(slowest))
    nothing = [row | {"validation_accuracy": ""} for row in made]
    with pytest.raises(ValueError, match="Every trial of 'kd' diverged"):
        plans.best_settings(nothing)


def test_incomplete_trials_are_refused() -> None:
    made = trials("kd", {}, others=0.3)
    message = f"trials of 'kd' are not complete: {2 * TRIALS_PER_METHOD - 1} runs of {TRIALS_PER_METHOD} settings"
    with pytest.raises(ValueError, match=rf"{message} with seeds \[1000, 1001\]"):
        plans.best_settings(made[:-1])
    assert plans.best_settings(made, seeds=(1001, 1000)).keys() == {"kd"}
    with pytest.raises(ValueError, match=r"expected 15 settings with each of the seeds \[1000, 1001, 1002\]"):
        plans.best_settings(made, seeds=(1000, 1001, 1002))
    with pytest.raises(ValueError, match="trials of 'dkd' are not complete: 0 runs"):
        plans.best_settings(made, [METHODS["dkd"]])
    for unfinished in (made[:1], made[:-1]):  # by --choices these may come from another command than the present one
        with pytest.raises(ValueError, match="Start the command that made them again"):
            plans.best_settings(unfinished)


def test_trials_of_an_older_kdlib_are_not_called_unfinished() -> None:
    older = read_rows(
        data.data_dir() / "results" / "older-search" / "choose-resnet8-resnet20-fashion-10000.csv", TRIAL_COLUMNS
    )
    message = "trials of 'hard' .* another search .* older kdlib: 11 runs of 11 settings.* `kdlib study full --out"
    with pytest.raises(ValueError, match=message) as refusal:
        plans.best_settings(older)
    assert "again to finish them" not in str(refusal.value)


def test_choices_without_a_method_of_the_plan_are_refused_by_the_dry_run_too(budget: Budget, tmp_path: Path) -> None:
    tried = [row for spec in FULL for row in trials(spec.name, {}, others=0.3)]
    file = tmp_path / "choose.csv"
    with RunsFile(file, TRIAL_COLUMNS).open() as table:
        for row in tried:
            table.append(row | {"student": budget.student, "teacher": budget.teacher, "data": budget.data})
    config = study_config(budget, tmp_path / "out", "short", defaults=False, trials_file=file)
    for attempt in (runner.dry_run, partial(runner.run, progress=False)):
        with pytest.raises(ValueError, match="holds no trials of shuffled, which this plan needs"):
            attempt(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("retune", [False, True])
def test_choices_without_a_trial_are_refused_before_anything_runs(
    retune: bool, budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "choose.csv"
    with RunsFile(file, TRIAL_COLUMNS).open():
        pass
    monkeypatch.setattr(WorkerPool, "run", lambda *args, **options: pytest.fail("a run was begun"))
    config = study_config(budget, tmp_path / "out", "short", defaults=False, trials_file=file, retune=retune)
    for attempt in (runner.dry_run, partial(runner.run, progress=False)):
        with pytest.raises(ValueError, match=f"{re.escape(str(file))} holds no trials.*--choices"):
            attempt(config)
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_kind_is_not_to_be_moved_away(budget: Budget, tmp_path: Path) -> None:
    """It is sound, and only read here: moved away, its results would be lost to those who look for them."""
    runs, students = tmp_path / "methods-resnet8.csv", tmp_path / "students.csv"
    with RunsFile(runs, RUN_COLUMNS).open() as table:
        table.append(run_config().to_row(budget))
    students.write_text("student,seed,test_accuracy\nresnet8,0,0.9\n")
    trials = tmp_path / "choose.csv"
    with RunsFile(trials, TRIAL_COLUMNS).open() as table:
        table.append(run_config().to_row(budget))
    for file in (runs, students):
        config = study_config(budget, tmp_path / "out", "short", defaults=False, trials_file=file)
        for attempt in (runner.dry_run, partial(runner.run, progress=False)):
            with pytest.raises(ValueError, match=r"is not a file of trials.*choose-.*\.csv") as refusal:
                attempt(config)
            assert str(file) in str(refusal.value)
            assert "ove it away" not in str(refusal.value)
            assert "--out" not in str(refusal.value)
    for file in (trials, students):
        with pytest.raises(ValueError, match=r"is not a file of a study's runs.*methods-.*\.csv") as refusal:
            runner.reproduce(file, 1)
        assert str(file) in str(refusal.value)
        assert "ove it away" not in str(refusal.value)
        assert "--out" not in str(refusal.value)


def test_the_best_of_a_family_without_trials_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="no trials of the feature methods .*--choices, or --defaults"):
        PLANS["short"].variants({"kd": TunedSettings(METHODS["kd"].start, "somewhere", 0.9)})


@pytest.mark.slow
def test_methods_tuned_alike_share_a_file(finished: Path, budget: Budget) -> None:
    more = {"seeds": (0,), "tuning_seeds": (1000,)}
    config = study_config(replace(budget, epochs=1), finished, "controls", defaults=True, **more)
    for attempt in (runner.dry_run, partial(runner.run, progress=False)):
        with pytest.raises(ValueError, match="settings tuned on article-student.* and on defaults: .*only where"):
            attempt(config)
    with pytest.raises(ValueError, match="names a class twice: 3, 3"):
        study_config(budget, finished, "missing-class", excluded_classes=(3, 3))


@pytest.mark.slow
def test_a_plan_whose_trials_are_made_counts_the_methods_that_they_chose(
    finished: Path, budget: Budget, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    options = {"defaults": False, "tuning_seeds": (1000,)}
    short = study_config(replace(budget, epochs=1), tmp_path, "short", **options)
    assert "the trials decide" in runner.dry_run(short)
    # The last trials that it needs.
    runner.run(replace(short, plan=plans.of_methods(["shuffled"]), seeds=(0,)), progress=False)
    trials = content(next(tmp_path.glob("choose-*.csv")), TRIAL_COLUMNS)
    chosen = short.plan.variants(plans.best_settings(trials, short.plan.tuned, (1000,)))
    assert chosen != short.plan.variants({})
    text, runs = runner.dry_run(short), 2 * len(chosen)
    assert "the trials decide" not in text
    assert f"{runs} runs of the study, {runs - 1} of them finished, 1 left" in text


@pytest.mark.parametrize("label", [3, 10, -1])
def test_a_class_that_there_is_not_is_refused_before_anything_runs(budget: Budget, tmp_path: Path, label: int) -> None:
    config = study_config(budget, tmp_path / "out", "missing-class", defaults=False, excluded_classes=(label,))
    for attempt in (runner.dry_run, partial(runner.run, progress=False)):
        with pytest.raises(ValueError, match=f"blobs has classes 0 to 2; there is no class {label}"):
            attempt(config)
    assert not (tmp_path / "out").exists()


def test_a_scratch_folder_that_cannot_be_written_is_refused_before_anything_runs(
    budget: Budget, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        config = study_config(budget, tmp_path / "out", defaults=False, cache=cache)
        for attempt in (runner.dry_run, partial(runner.run, progress=False)):
            with pytest.raises(OSError, match="file is not a folder. Choose another"):
                attempt(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(1001,), (1000, 1001)])
def test_other_tuning_seeds_are_refused_before_any_trial(
    finished: Path, budget: Budget, seeds: tuple[int, ...]
) -> None:
    trials = next(finished.glob("choose-*.csv"))
    before = trials.read_bytes()
    config = study_config(replace(budget, epochs=1), finished, "full", defaults=False, tuning_seeds=seeds)
    for attempt in (runner.dry_run, partial(runner.run, progress=False)):
        with pytest.raises(ValueError, match=r"tuning seeds|with each of the seeds|settings tuned on"):
            attempt(config)
    assert trials.read_bytes() == before


def test_more_tuning_seeds_than_a_finished_search_had_are_refused(budget: Budget, tmp_path: Path) -> None:
    """Its further trials lie around the best by fewer seeds: with more there would be a mixture of two searches."""
    config = partial(study_config, budget, tmp_path, defaults=False, plan="full")
    tuned = list(PLANS["full"].tuned)
    with RunsFile(budget.path("choose", tmp_path), TRIAL_COLUMNS).open() as table:
        for spec in tuned:
            first = plans.first_trials([spec], (1000,))
            rows = [trial(spec.name, one.settings, 0.5 + 0.01 * number) for number, one in enumerate(first)]
            further = plans.further_trials([spec], (1000,), rows)
            for row in [*rows, *(trial(spec.name, one.settings, 0.4) for one in further)]:
                table.append(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "check_rows", lambda *args: None)  # invented rows have other fingerprints
        for attempt in (runner.dry_run, partial(runner.run, progress=False)):
            with pytest.raises(
                ValueError, match=r"whole search of \w+ by other tuning seeds.*\[1001\].*--tuning-seeds"
            ):
                attempt(config(tuning_seeds=(1000, 1001)))
        assert "0 left" in runner.dry_run(config(tuning_seeds=(1000,)))


@pytest.mark.parametrize("made", [{"classes": ["c", "b", "a"]}, {"num_classes": 5}])
def test_a_teacher_of_other_classes_is_refused_before_anything_runs(
    blobs: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: dict[str, Any]
) -> None:
    monkeypatch.setattr(data, "load", lambda name, **options: blobs)
    path = tmp_path / "teacher.safetensors"
    count = made.pop("num_classes", 3)
    models.save(models.build("resnet8", num_classes=count, in_channels=1, seed=5), path, **made)
    budget = Budget("blobs", "article-student", str(path), images=48, epochs=1, views=1, device="cpu", precision="fp32")
    for attempt in (runner.dry_run, partial(runner.run, progress=False)):
        with pytest.raises(ValueError, match=r"teacher was trained with the same classes in another order|5 logits"):
            attempt(study_config(budget, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_mistake_in_the_second_student_shows_before_the_first_study(
    budget: Budget, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = []
    monkeypatch.setattr(runner, "run", lambda config, **options: began.append(config))
    options = [
        "--method",
        "kd",
        "--defaults",
        "--teacher",
        budget.teacher,
        "--images",
        "48",
        "--epochs",
        "1",
        "--seeds",
    ]
    students = ["--student", "article-student", "--student", "resnett8"]
    monkeypatch.setattr("sys.argv", ["kdlib", "study", *students, *options, "2", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "resnett8" in capsys.readouterr().err
    assert began == []


@pytest.mark.slow
def test_trials_of_another_search_are_refused_before_anything_runs(
    finished: Path, budget: Budget, tmp_path: Path
) -> None:
    made = content(next(finished.glob("choose-*.csv")), TRIAL_COLUMNS)
    budget = replace(budget, epochs=1)
    with RunsFile(budget.path("choose", tmp_path), TRIAL_COLUMNS).open() as table:
        for row in made:
            table.append(row | {"learning_rate": "0.5"} if row["method"] == "dkd" else row)
    config = study_config(budget, tmp_path, "full", defaults=False, tuning_seeds=(1000,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "check_rows", lambda *args: None)  # a row altered by hand has another fingerprint
        for attempt in (runner.dry_run, partial(runner.run, progress=False)):
            with pytest.raises(ValueError, match="holds trials of dkd from another search.*--out"):
                attempt(config)


@pytest.mark.slow
def test_choices_of_another_budget_are_taken_or_made_anew(finished: Path, budget: Budget, tmp_path: Path) -> None:
    (file,) = finished.glob("choose-*.csv")
    options = {"trials_file": file, "defaults": False, "seeds": (0,), "tuning_seeds": (1000,)}
    with pytest.raises(ValueError, match="holds no trials of shuffled, which this plan needs"):
        runner.run(study_config(budget, tmp_path, "short", **options), progress=False)
    path = runner.run(study_config(budget, tmp_path, "grid", **options), progress=False)
    assert len(content(path)) == 4 * 5 + 1  # with alpha 1 the temperature plays no part
    assert {row["tuned_on"] for row in content(path)} == {"article-student, 48 images, 1 epochs"}
    other = replace(budget, images=30)
    config = study_config(other, tmp_path, "short", **options, retune=True)
    chosen = config.plan.variants(plans.best_settings(content(file, TRIAL_COLUMNS)))
    assert f"{len(chosen) * TRIALS_PER_METHOD} trials" in runner.dry_run(config)
    two = replace(config.plan, variants=lambda tuned: chosen[:2])  # less to train
    path = runner.run(replace(config, plan=two), progress=False)
    assert Counter(row["method"] for row in content(other.path("choose", tmp_path), TRIAL_COLUMNS)) == {
        variant.name: TRIALS_PER_METHOD for variant in chosen[:2]
    }
    assert {row["tuned_on"] for row in content(path)} == {"article-student, 30 images, 2 epochs"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"student": "resnet8"}, {"teacher": "another"}, {"images": 6000}, {"optimizer": "adamw"}]
)
def test_choices_made_with_another_student_teacher_or_batch_are_refused(
    finished: Path, budget: Budget, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Hard labels at a ResNet-18 lost three points by a learning rate that was chosen with batches of 32."""
    made = content(next(finished.glob("choose-*.csv")), TRIAL_COLUMNS)
    file = tmp_path / "choose.csv"
    with RunsFile(file, TRIAL_COLUMNS).open() as table:
        for row in made:
            table.append(row | change)
    options = {"trials_file": file, "defaults": False, "seeds": (0,), "excluded_classes": (1,), "tuning_seeds": (1000,)}
    other = replace(budget, **change)
    found, expected = (
        re.escape(f"{one.student}, taught by {one.teacher}, with {one.optimizer} and batches of {one.batch_size}")
        for one in (other, budget)
    )
    for plan, advice in (("missing-class", "without --choices"), ("short", "with --retune")):
        config = study_config(budget, tmp_path, plan, **options)
        for attempt in (runner.dry_run, partial(runner.run, progress=False)):
            with pytest.raises(ValueError, match=f"holds settings of {found}; this study has {expected}.*{advice}"):
                attempt(config)
    assert "trials on the validation split" in runner.dry_run(
        replace(config, retune=True)
    )  # then none of the settings is taken


def test_choices_made_with_all_images_are_those_of_a_study_with_all_images(
    finished: Path, budget: Budget, tmp_path: Path, blobs: DataModule
) -> None:
    """The batch size depends on how many that are."""
    whole = replace(budget, images=None)
    assert whole.batch_size != replace(budget, images=len(blobs.train)).batch_size
    file = tmp_path / "choose.csv"
    with RunsFile(file, TRIAL_COLUMNS).open() as table:
        for row in content(next(finished.glob("choose-*.csv")), TRIAL_COLUMNS):
            table.append(row | {"images": len(blobs.train)})
    options = {"trials_file": file, "defaults": False, "seeds": (0,), "excluded_classes": (1,), "tuning_seeds": (1000,)}
    assert "4 runs of the study" in runner.dry_run(study_config(whole, tmp_path, "missing-class", **options))


# --- whole studies -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_gives_rows_that_a_verdict_can_be_made_of(finished: Path) -> None:
    found = verdict.table(read_frame(finished / "methods-*.csv"))
    assert set(found["method"]) == set(FULL_NAMES) - {"hard"}
    assert set(found["n"]) == {2}
    assert set(found["comparisons"]) == {16}


@pytest.mark.slow
def test_killed_and_started_again_it_comes_to_the_same_rows(
    budget: Budget, blobs: DataModule, tmp_path: Path, teacher: str
) -> None:
    parts = {name: getattr(blobs, name) for name in ("train", "validation", "test")}
    torch.save({name: [s.images, s.labels, s.indices] for name, s in parts.items()}, tmp_path / "blobs.pt")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    options = f"full --data blobs --student article-student --teacher {teacher} --images 48 --epochs 2 --views 2"
    options += f" --seeds 1 --defaults --quiet --device cpu --precision fp32 --out {killed} --cache {tmp_path / 'c'}"
    path = budget.path("methods", killed)
    arguments = [sys.executable, "-c", DIES_AFTER_ROW_4, str(tmp_path / "blobs.pt"), *options.split()]
    process = subprocess.run(arguments, check=False)
    assert process.returncode == (-signal.SIGKILL if os.name == "posix" else 9)
    before = content(path)
    assert len(before) == 4
    with path.open("ab") as file:
        file.write(b"methods,blobs,article-stu")  # as if it had hit in the middle of a line
    again = study_config(budget, killed, "full", seeds=(0,), cache=tmp_path / "c")
    runner.run(again, progress=False, log=lambda text: None)
    assert content(path)[: len(before)] == before
    runner.run(study_config(budget, whole, "full", seeds=(0,)), progress=False)
    assert timeless(content(path)) == timeless(content(budget.path("methods", whole)))
    assert not list((tmp_path / "c").iterdir())  # also the answers that the kill had left


@dataclass(frozen=True)
class Watched:
    """A dataset that counts how often it is read."""

    dataset: Any
    reads: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def iter_batches(self, *args: Any, **options: Any) -> Any:
        self.reads.append(1)
        return self.dataset.iter_batches(*args, **options)


def test_the_test_set_is_read_once_a_run_and_once_for_the_teacher(
    budget: Budget, blobs: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = Watched(blobs.test)
    monkeypatch.setattr(data, "load", lambda name, **options: replace(blobs, test=test))
    runner.run(study_config(budget, tmp_path), progress=False)
    assert len(test.reads) == 3 * 2 + 1
    runner.run(study_config(budget, tmp_path), progress=False)  # nothing is missing
    assert len(test.reads) == 7


def test_more_seeds_and_plans_are_added_to_the_file_and_the_rest_is_kept(budget: Budget, tmp_path: Path) -> None:
    path = runner.run(study_config(budget, tmp_path, seeds=(0,)), progress=False)
    before = path.read_bytes()
    runner.run(study_config(budget, tmp_path, seeds=(0, 1)), progress=False)
    assert path.read_bytes().startswith(before)
    assert [(row["method"], row["seed"]) for row in content(path)[3:]] == [(name, "1") for name in CONTROL_NAMES]
    assert len(json.loads(path.with_suffix(".json").read_text())["sessions"]) == 2


def test_runs_of_another_budget_or_other_settings_do_not_get_into_a_file(budget: Budget, tmp_path: Path) -> None:
    path = runner.run(study_config(budget, tmp_path, seeds=(0,)), progress=False)
    with pytest.raises(ValueError, match=r"were made with epochs 2 \(now 3\); runs in one file share one budget"):
        runner.run(study_config(replace(budget, epochs=3), tmp_path), progress=False)
    with pytest.raises(ValueError, match=r"device cpu, float32 \(now cpu, bfloat16\)"):
        runner.run(study_config(replace(budget, precision="bf16"), tmp_path), progress=False)
    with pytest.raises(ValueError, match=r"made with epochs 2 \(now 3\)"):
        runner.dry_run(study_config(replace(budget, epochs=3), tmp_path))
    made = content(path)
    assert made[0]["learning_rate"] == "0.1"
    with RunsFile(tmp_path / "changed" / path.name, RUN_COLUMNS).open() as table:
        row = made[0] | {"learning_rate": "0.3"}
        fingerprint = Experiment(budget, tmp_path).run_fingerprint(RunConfig.from_row(row))
        table.append(row | {"fingerprint": fingerprint})
    with pytest.raises(
        ValueError, match=r"run of shuffled, seed 0, made with learning_rate 0.3.*; now learning_rate 0.1"
    ):
        runner.run(study_config(budget, tmp_path / "changed"), progress=False)


@pytest.mark.slow
def test_another_teacher_of_the_same_name_is_refused_before_any_trial(
    finished: Path, budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of trials with two teachers would be of no use to any list."""
    before = {path.name: path.read_bytes() for path in finished.glob("*.*")}
    for name, found in before.items():
        (tmp_path / name).write_bytes(found)
    models.save(models.build("resnet8", num_classes=3, in_channels=1, seed=6), tmp_path / "other.safetensors")
    other = models.load(tmp_path / "other.safetensors")
    monkeypatch.setattr(models, "load", lambda name: other)
    options = {"defaults": False, "seeds": (0, 1, 2), "tuning_seeds": (1000,)}
    config = study_config(replace(budget, epochs=1), tmp_path, "full", **options)
    for path in sorted(tmp_path.glob("methods-*")):  # with the runs, and with the trials alone
        for attempt in (runner.dry_run, partial(runner.run, progress=False)):
            with pytest.raises(ValueError, match="made with another teacher or other data of the same name"):
                attempt(config)
        if path.suffix == ".csv":
            assert path.read_bytes() == before[path.name]
        path.unlink()
    trials = next(tmp_path.glob("choose-*.csv"))
    assert trials.read_bytes() == before[trials.name]


@pytest.mark.slow
def test_one_row_is_repeated_to_the_bit_and_an_altered_one_is_found(
    finished: Path, blobs: DataModule, tmp_path: Path
) -> None:
    (path,) = finished.glob("methods-*.csv")
    made = content(path)
    number = next(i for i, row in enumerate(made, start=1) if row["method"] == "kd+hint" and row["seed"] == "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name, **options: blobs)
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)  # the repeated run takes those of the row
        try:
            assert runner.reproduce(path, number, cache=tmp_path, precision="fp32") == {}
            assert torch.get_num_threads() == threads + 1
        finally:
            torch.set_num_threads(threads)
        with RunsFile(tmp_path / "x.csv", RUN_COLUMNS).open() as table:
            table.append(made[number - 1] | {"test_accuracy": "0.125"})
        differ = runner.reproduce(tmp_path / "x.csv", 1, cache=tmp_path, precision="fp32")
        assert differ == {"test_accuracy": ("0.125", made[number - 1]["test_accuracy"])}
        with pytest.raises(ValueError, match="rows 1 to 1; there is no row 2"):
            runner.reproduce(tmp_path / "x.csv", 2)
        with pytest.raises(FileNotFoundError, match="Check the path"):
            runner.reproduce(tmp_path / "y.csv", 1)
        with pytest.raises(ValueError, match="is not a file of a study's runs"):
            runner.reproduce(next(finished.glob("choose-*.csv")), 1)


def test_a_repeated_run_has_its_threads_and_its_teacher_those_of_a_study(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = runner.run(study_config(budget, tmp_path, seeds=(0,)), progress=False)
    number = next(i for i, row in enumerate(content(path), start=1) if row["method"] == "own-size")
    seen, made, trained = [], Experiment.same_size_teacher, train.fit

    def same_size_teacher(experiment: Experiment) -> torch.nn.Module:
        seen.append(("teacher", torch.get_num_threads()))
        return made(experiment)

    def fit(student: torch.nn.Module, *args: Any, teacher: Any = None, **options: Any) -> train.Result:
        if teacher is not None:
            seen.append(("student", torch.get_num_threads()))
        return trained(student, *args, teacher=teacher, **options)

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(Experiment, "same_size_teacher", same_size_teacher)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        runner.reproduce(path, number, cache=tmp_path / "again", precision="fp32")
    finally:
        torch.set_num_threads(threads)
    assert seen == [("teacher", threads + 1), ("student", threads)]


def test_two_rows_are_repeated_at_the_same_time(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study_config(replace(budget, epochs=1), tmp_path, seeds=(0,), defaults=True)
    path = runner.run(replace(config, plan=plans.of_methods(["kd"])), progress=False)
    cache, save = tmp_path / "again", Checkpointer.save
    again = partial(runner.reproduce, path, cache=cache, precision="fp32")
    repeated = []

    def meanwhile(checkpointer: Checkpointer, *args: Any) -> None:
        save(checkpointer, *args)
        if repeated:
            return
        repeated.append("begun")
        outputs = sorted(cache.rglob("*"))
        assert again(1) == {}  # another row of the same seed
        assert sorted(cache.rglob("*")) == outputs
        with pytest.raises(OSError, match="Row 2 of .* is being repeated by another process.*--cache"):
            again(2)
        assert sorted(cache.rglob("*")) == outputs
        repeated.append("ended")

    monkeypatch.setattr(Checkpointer, "save", meanwhile)
    assert again(2) == {}
    assert repeated == ["begun", "ended"]
    assert list(cache.iterdir()) == []


# --- time and the command ----------------------------------------------------------------------------------------


def test_the_time_left_comes_from_finished_runs_of_the_same_kind(budget: Budget, tmp_path: Path) -> None:
    experiment = Experiment(budget, tmp_path)
    device = str(experiment.device_config)
    measured = [
        {"spec": "kd", "seconds": "10", "seconds_per_epoch": "1", "device": device},
        {"spec": "kd", "seconds": "14", "seconds_per_epoch": "1", "device": device},
        {"spec": "hard", "seconds": "6", "seconds_per_epoch": "1", "device": device},
        {"spec": "hard", "seconds": "500", "seconds_per_epoch": "1", "device": "another machine"},
        {"spec": "hard", "seconds": "0.1", "seconds_per_epoch": "", "device": device},  # it diverged
    ]
    found = runner.TimeEstimate(experiment, measured)
    assert (found.seconds_per_run("kd"), found.seconds_per_run("hard"), found.seconds_per_run("fsp")) == (12, 6, 10)
    ahead = Counter({"kd": 2, "hard": 1, "fsp": 0})
    assert found.total(ahead) == 30
    assert found.basis(ahead) == "from finished runs of the same methods"
    assert "partly of other methods" in found.basis(Counter(fsp=1))
    fresh = runner.TimeEstimate(experiment)
    assert 0 < fresh.seconds_per_run("kd") < 60
    assert "probe" in fresh.basis(ahead)


def test_a_probe_has_the_threads_of_a_worker(budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = study_config(budget, tmp_path, seeds=(0, 1))
    seen: list[int] = []
    monkeypatch.setattr(runner, "probe", lambda _: seen.append(torch.get_num_threads()) or 1.0)
    with torch_threads(4):
        for workers in (1, 2, 8):
            runner.dry_run(replace(config, workers=workers))
        assert torch.get_num_threads() == 4
    assert seen == [4, 2, 1]


def test_durations_have_a_short_text() -> None:
    assert [runner.format_duration(s) for s in (8.2, 89, 754, 3_600, 11_123)] == [
        "8 s",
        "89 s",
        "13 min",
        "1 h 00 min",
        "3 h 05 min",
    ]


@pytest.mark.slow
def test_the_time_left_is_not_shared_by_more_workers_than_there_are_runs(budget: Budget, tmp_path: Path) -> None:
    config = replace(study_config(budget, tmp_path, seeds=(0,)), plan=plans.of_methods(["hard"]))
    runner.run(config, progress=False)
    one, four = (runner.dry_run(replace(config, seeds=(0, 1), workers=workers)) for workers in (1, 4))
    assert "1 left" in one
    assert one == four


def test_the_plan_counts_what_is_left_and_writes_nothing(budget: Budget, tmp_path: Path) -> None:
    config = study_config(budget, tmp_path / "new", "full", defaults=False)
    text = runner.dry_run(config)
    trials = 17 * TRIALS_PER_METHOD * 2  # tuning seeds
    assert f"{trials} trials on the validation split, 0 of them finished, {trials} left" in text
    assert "34 runs of the study, 0 of them finished, 34 left" in text
    assert "from a probe" in text
    assert not (tmp_path / "new").exists()
    runner.run(study_config(budget, tmp_path, seeds=(0,)), progress=False)
    text = runner.dry_run(study_config(budget, tmp_path))
    assert "6 runs of the study, 3 of them finished, 3 left" in text
    assert "trials" not in text
    assert "from finished runs of the same methods" in text


@pytest.mark.parametrize(
    ("images", "epochs", "plan", "told"),
    [
        (48, 150, "controls", "of a run: 150, 1 in an epoch, of 32 images each"),
        (20, 8, "controls", "of a run: 8, 1 in an epoch, of 20 images each"),
        (30, 200, "missing-class", "of a run: 200, 1 in an epoch, of 20 images each"),
        (90, 60, "controls", "of a run: 120, 2 in an epoch, of 32 images each"),
        (1, 8, "missing-class", "of a run: 0, 0 in an epoch"),
    ],
)
def test_the_plan_says_how_many_steps_a_run_makes(
    budget: Budget, tmp_path: Path, images: int, epochs: int, plan: str, told: str
) -> None:
    changed = replace(budget, images=images, epochs=epochs)
    text = runner.dry_run(study_config(changed, tmp_path, plan, excluded_classes=(0,)))
    assert told in text
    assert ("more --epochs" in text) == (epochs == 8)


def test_the_plan_counts_the_steps_that_training_makes(budget: Budget, tmp_path: Path) -> None:
    config = study_config(replace(budget, images=72), tmp_path, seeds=(0,))
    told = runner.dry_run(config)
    experiment, run = Experiment(config.budget, tmp_path), run_config("hard")
    checkpoint = tmp_path / "one.checkpoint"
    with experiment.seed_runner([run], tmp_path / "runs.csv") as seed_runner:
        seed_runner.fit(run, checkpoint)
    _, metadata = files.load_tensors(checkpoint)
    assert f"Training steps of a run: {metadata['facts']['step']}, " in told


def options(budget: Budget, folder: Path) -> list[str]:
    named = {"data": "blobs", "student": budget.student, "teacher": budget.teacher, "images": 48, "epochs": 2}
    named |= {"views": 2, "seeds": 1, "out": folder, "cache": folder / "cache", "device": "cpu", "precision": "fp32"}
    return ["--defaults", *(str(part) for name, value in named.items() for part in (f"--{name}", value))]


def test_the_command_runs_plans_and_repeats(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kdlib", *arguments])
        with pytest.raises(SystemExit) as stop:
            command.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    assert "3 runs of the study, 0 of them finished" in call("controls", *options(budget, tmp_path), "--dry")[1]
    code, out, err = call("controls", *options(budget, tmp_path))
    path = budget.path("methods", tmp_path)
    assert (code, out) == (0, f"All runs are in {path}\n")
    assert "3/3 runs" in err  # the bar
    assert "3 of them finished" in call("controls", *options(budget, tmp_path), "--dry")[1]
    noted = json.loads(path.with_suffix(".json").read_text())["sessions"][0]["command"]
    assert noted.startswith("kdlib study controls --defaults --data blobs")
    repeat = ("--again", str(path), "--row", "2", "--precision", "fp32", "--cache", str(tmp_path / "cache"))
    code, out, _ = call(*repeat)
    assert (code, out) == (0, f"Row 2 of {path}: the same to the bit.\n")
    both = call("controls", *options(budget, tmp_path), "--images", "30", "--dry")[1]
    assert both.count("runs of the study") == 2
    unseen = call("missing-class", *options(budget, tmp_path), "--left-out", "0", "--left-out", "1", "--dry")[1]
    assert "8 runs of the study" in unseen
    code, _, err = call("kontrols")
    assert code == 2
    assert err.startswith("kdlib: There is no plan of runs named 'kontrols'. Did you mean 'controls'?")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--again", "x.csv", "--dry"], "--again .* does not take --dry"),
        (["--again", "x.csv", "--row", "2", "--quiet", "--dry"], "--again .* does not take --dry"),
        (["--again", "x.csv", "--images", "30", "--epochs", "2"], "does not take --images, --epochs"),
        (["short", "--again", "x.csv"], "does not take the plan"),
        (["--row", "2"], "--row .* --again FILE"),
        (["missing-class", "--method", "kd"], "--method .* plan"),
        (["full", "--method", "kd"], "--method .* plan"),
        (["kontrols", "--method", "kd"], "--method .* plan"),
        (["--left-out", "0"], "--left-out .* missing-class"),
        (["grid", "--left-out", "0"], "--left-out .* missing-class"),
        (["--method", "kd", "--left-out", "0"], "--left-out .* missing-class"),
        (["--choices", "x.csv", "--retune"], "--retune .* short"),
        (["grid", "--choices", "x.csv", "--retune"], "--retune .* short"),
        (["--method", "kd", "--choices", "x.csv", "--retune"], "--retune .* short"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(
    given: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def trained(*args: Any, **options: Any) -> Any:
        raise AssertionError("something was run")

    monkeypatch.setattr(runner, "reproduce", trained)
    monkeypatch.setattr(runner, "run", trained)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kdlib", *given])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_command_says_how_to_go_on(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    app = typer.Typer()
    app.command()(command.study)
    result = CliRunner().invoke(app, ["controls", *options(budget, tmp_path)])
    assert result.exit_code == 130
    assert "The same command goes on" in result.output
    assert str(tmp_path / "cache") in result.output.replace("\n", "")


def test_the_commands_help_costs_no_torch() -> None:
    code = "import sys, kdlib.study.command; print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_scores_lie_where_they_must(finished: Path) -> None:
    frame = read_frame(finished / "methods-*.csv")
    assert len(frame) == 2 * len(FULL_NAMES)
    for name in ("validation_accuracy", "test_accuracy", "agreement", "calibration_error", "teacher_accuracy"):
        assert frame[name].between(0, 1).all(), name
    assert frame["teacher_accuracy"].nunique() == 1
    assert (frame.set_index("method").loc["hard", "extra_parameters"] == 0).all()
    assert frame.set_index("method").loc["vid", "extra_parameters"].min() > 0
    assert math.isfinite(frame["seconds"].sum())
    assert frame["error"].isna().all()


@pytest.mark.slow
def test_another_optimizer_has_files_trials_and_start_settings_of_its_own(budget: Budget, tmp_path: Path) -> None:
    other = replace(budget, epochs=1, optimizer="adamw")
    plan = plans.of_methods(["kd"])
    config = replace(study_config(other, tmp_path), plan=plan, seeds=(0,))
    path = runner.run(replace(config, defaults=False, tuning_seeds=(1000,)), progress=False)
    assert path.name.endswith("-48-adamw.csv")
    made = content(next(tmp_path.glob("choose-*-adamw.csv")), TRIAL_COLUMNS)
    assert len(made) == 2 * TRIALS_PER_METHOD
    assert {row["optimizer"] for row in [*made, *content(path)]} == {"adamw"}
    rates = [float(row["learning_rate"]) for row in made[:FIRST_TRIALS]]
    assert max(rates) < SHARED_SPACES["adamw"]["learning_rate"].high
    found = analysis.load(
        "methods", student=other.student, teacher=other.teacher, images=48, optimizer="adamw", folder=tmp_path
    )
    assert found.budget["optimizer"] == "adamw"
    app = typer.Typer()
    app.command()(command.study)
    asked = [*options(budget, tmp_path / "start"), "--optimizer", "adamw", "--dry", "--method", "kd"]
    assert "-48-adamw.csv" in CliRunner().invoke(app, asked).output.replace("\n", "")
    assert "--optimizer adamw" in str(
        pytest.raises(FileNotFoundError, study.results, optimizer="adamw", folder=tmp_path).value
    )
    assert runner.reproduce(path, 1, cache=tmp_path / "again", device="cpu", precision="fp32") == {}
    start = runner.run(replace(config, out=tmp_path / "start"), progress=False)
    assert {(row["learning_rate"], row["weight_decay"]) for row in content(start)} == {("0.002", "0.05")}


@pytest.mark.parametrize("other", ["adamw", "adam", ""])
def test_trials_of_an_optimizer_that_does_not_fit_are_refused(other: str) -> None:
    made = trials("kd", {}, others=0.3)
    with pytest.raises(ValueError, match="with the optimizer '.*'; expected one of sgd, adamw for all"):
        plans.best_settings([*made[:-1], made[-1] | {"optimizer": other}])


@pytest.mark.slow
def test_results_of_before_there_was_a_choice_of_optimizer_are_refused_by_name(finished: Path, tmp_path: Path) -> None:
    (path,) = finished.glob("methods-*.csv")
    read_frame(path).drop(columns="optimizer").to_csv(tmp_path / path.name, index=False)
    (tmp_path / "README.md").write_text("".join(f"{marker}\n" * 2 for marker in (RUNS_MARKER, GAINS_MARKER)))
    with pytest.raises(ValueError, match="no column optimizer: .*put it behind views, with sgd in each row"):
        update_readme(tmp_path)


def test_what_interrupted_sessions_left_is_removed_in_the_end(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(study_config(budget, tmp_path), plan=plans.of_methods(["kd"]), seeds=(0,))
    save = Checkpointer.save

    def interrupted(checkpointer: Checkpointer, *args: Any) -> None:
        save(checkpointer, *args)
        raise KeyboardInterrupt

    other_layers = replace(config, plan=plans.of_methods(["hint"]))  # and so another folder
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run(other_layers, progress=False)
    (left,) = config.cache.iterdir()
    (config.cache / "outputs-of another study").mkdir()
    runner.run(config, progress=False)
    assert not left.exists()
    assert [path.name for path in config.cache.iterdir()] == ["outputs-of another study"]


# --- what each student answered ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_answers_of_every_run_are_kept_and_give_its_accuracy(finished: Path) -> None:
    (path,) = finished.glob("methods-*.csv")
    answers = PredictionsFile(path)
    for row in content(path):
        right = answers.right(row["fingerprint"])
        assert right.float().mean().item() == pytest.approx(float(row["test_accuracy"]))
    assert answers.right("no such run") is None
    assert not list(finished.glob("choose-*.predictions.*"))  # trials never see the test set


@pytest.mark.slow
def test_a_gain_is_judged_over_seeds_and_test_images(finished: Path, teacher: str, tmp_path: Path) -> None:
    options = {"student": "article-student", "teacher": teacher, "images": 48}
    results = analysis.load("methods", **options, folder=finished)
    gain = results.gain("kd")
    assert gain.over == "seeds and test images"
    path = results.sources[0]
    answers = PredictionsFile(path)
    rights = [
        {row["seed"]: answers.right(row["fingerprint"]).numpy() for row in content(path) if row["method"] == method}
        for method in ("kd", "hard")
    ]
    found = verdict.compare_samples(*rights, comparisons=results.comparisons)
    assert (gain.low, gain.high, gain.verdict) == (found.low, found.high, found.verdict)
    assert gain.mean == pytest.approx(found.mean)
    assert results.gain("kd", "agreement").over == "seeds"
    (tmp_path / path.name).write_bytes(path.read_bytes())  # an older file, without answers
    older = analysis.load("methods", **options, folder=tmp_path).gain("kd")
    assert (older.over, older.mean) == ("seeds", gain.mean)


@pytest.mark.slow
def test_answers_of_which_one_seed_lacks_are_not_those_of_fewer_seeds(
    finished: Path, budget: Budget, blobs: DataModule, tmp_path: Path
) -> None:
    options = {"student": budget.student, "teacher": budget.teacher, "images": budget.images}
    path = analysis.load("methods", **options, folder=finished).sources[0]
    (tmp_path / path.name).write_bytes(path.read_bytes())
    known, some = PredictionsFile(path), PredictionsFile(tmp_path / path.name)
    rows = [row for row in content(path) if not (row["method"] == "kd" and row["seed"] == "1")]
    for row in rows:
        some.add(row["fingerprint"], known.predicted(row["fingerprint"]), blobs.test.labels)
    found = analysis.load("methods", **options, folder=tmp_path)
    assert found.right("kd") == {}
    assert len(found.right("hard")) == 2
    assert found.gain("kd").over == "seeds"


def test_other_test_images_of_the_same_name_are_refused_before_anything_runs(
    budget: Budget, blobs: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their answers would be paired, image by image, with those of the runs that are there."""
    config = replace(study_config(budget, tmp_path), plan=plans.of_methods(["kd"]), seeds=(0,))
    path = runner.run(config, progress=False)
    test = replace(blobs.test, images=blobs.test.images.flip(0))  # with the same labels
    monkeypatch.setattr(data, "load", lambda name, **options: replace(blobs, test=test))
    more = replace(config, seeds=(0, 1))
    for attempt in (runner.dry_run, partial(runner.run, progress=False)):
        with pytest.raises(ValueError, match="other test images.*choose another folder with --out"):
            attempt(more)
    assert len(content(path)) == 2
    answers = PredictionsFile(path).path
    tensors, _ = files.load_tensors(answers)
    files.save_tensors(answers, tensors, {})  # an older version noted no test set
    runner.run(more, progress=False)
    assert len(content(path)) == 4
    monkeypatch.setattr(data, "load", lambda name, **options: blobs)
    with pytest.raises(ValueError, match="other test images"):
        runner.dry_run(more)


def test_an_answer_beyond_all_labels_is_kept_as_it_was(tmp_path: Path) -> None:
    """A test split of few classes, and a network that has many: 300 is not 44, which one byte would make of it."""
    file = PredictionsFile(tmp_path / "methods.csv")
    file.add("a", torch.tensor([0, 300]), torch.tensor([0, 44]))
    file.add("b", torch.tensor([0, 44]), torch.tensor([0, 44]))
    again = PredictionsFile(tmp_path / "methods.csv")
    assert again.predicted("a").tolist() == [0, 300]
    assert (again.right("a").tolist(), again.right("b").tolist()) == ([True, False], [True, True])


def test_answers_for_other_images_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path, labels = tmp_path / "methods-x.csv", torch.tensor([0, 2, 1])
    file = PredictionsFile(path)
    file.add("a", torch.tensor([0, 1, 1]), labels)
    assert PredictionsFile(path).right("a").tolist() == [True, False, True]
    with pytest.raises(ValueError, match="answers for other test images. Choose another folder"):
        PredictionsFile(path).add("b", torch.tensor([0, 1]), labels[:2])
    file.add("c", labels, labels, "one test set")
    with pytest.raises(ValueError, match="answers for other test images"):
        PredictionsFile(path).add("d", labels, labels, "another")
    many = PredictionsFile(tmp_path / "methods-many.csv")
    many.add("a", torch.tensor([300, 2]), torch.tensor([300, 999]))
    assert PredictionsFile(tmp_path / "methods-many.csv").right("a").tolist() == [True, False]
    files.save_tensors(file.path, {"a": labels}, {})
    with pytest.raises(ValueError, match="does not hold labels and one class.*Restore it"):
        PredictionsFile(path)
    file.path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        PredictionsFile(path)


# --- what each epoch measured ------------------------------------------------------------------------------------


def test_epochs_are_kept_where_validation_is_cheap_and_change_no_run(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(study_config(budget, tmp_path), plan=plans.of_methods(["kd"]))
    path = runner.run(config, progress=False)
    assert not list(tmp_path.glob("*.history.*"))  # 48 training images for 30 of validation
    monkeypatch.setattr(experiment, "LONG_EPOCH", 1)
    kept = runner.run(replace(config, out=tmp_path / "kept"), progress=False)
    assert timeless(content(kept)) == timeless(content(path))
    options = {"student": budget.student, "teacher": budget.teacher, "images": 48}
    results = analysis.load("methods", **options, folder=kept.parent)
    for method in ("hard", "kd"):
        accuracies = results.history(method)
        assert {seed: len(values) for seed, values in accuracies.items()} == {0: budget.epochs, 1: budget.epochs}
        last = {seed: values[-1] for seed, values in accuracies.items()}
        assert last == {seed: float(row["validation_accuracy"]) for seed, row in results.runs(method).items()}
        assert all(map(math.isfinite, sum(results.history(method, "loss").values(), [])))
    assert analysis.load("methods", **options, folder=tmp_path).history("kd") == {}  # an older file


def test_a_resumed_run_keeps_all_of_its_epochs(budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "LONG_EPOCH", 1)
    config = replace(study_config(budget, tmp_path), plan=plans.of_methods(["kd"]), seeds=(0,))
    whole = runner.run(replace(config, out=tmp_path / "whole"), progress=False)
    save = Checkpointer.save

    def interrupted(checkpointer: Checkpointer, *args: Any) -> None:
        save(checkpointer, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run(config, progress=False)
    path = runner.run(config, progress=False)
    for row in content(path):
        for column in history.COLUMNS:
            values = HistoryFile(path).values(row["fingerprint"], column)
            assert values == HistoryFile(whole).values(row["fingerprint"], column)


def test_an_unknown_column_and_a_damaged_history_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "methods-x.csv"
    epochs = [{"loss": 2.0, "validation_loss": 1.5, "validation_accuracy": 0.25, "epoch": 1}]
    HistoryFile(path).add("a", epochs)
    HistoryFile(path).add("b", epochs * 3)  # another run keeps the first
    assert HistoryFile(path).values("a", "validation_accuracy") == [0.25]
    assert HistoryFile(path).values("b", "loss") == [2.0] * 3
    assert HistoryFile(path).values("no such run", "loss") is None
    with pytest.raises(ValueError, match="validation_accuracy"):
        HistoryFile(path).values("a", "accuracy")
    files.save_tensors(HistoryFile(path).path, {"a": torch.zeros(3)}, {})
    with pytest.raises(ValueError, match="does not hold loss, .*Restore it, or move it away"):
        HistoryFile(path)


@pytest.mark.parametrize(
    ("beside", "kind"), [(HistoryFile, "methods"), (HistoryFile, "choose"), (PredictionsFile, "methods")]
)
def test_a_damaged_file_beside_the_rows_is_refused_before_anything_runs(
    beside: type[HistoryFile | PredictionsFile],
    kind: str,
    budget: Budget,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not when the answers or epochs of the first run are to be added, hours later."""
    monkeypatch.setattr(experiment, "LONG_EPOCH", 1)
    monkeypatch.setattr(WorkerPool, "run", lambda *args, **options: pytest.fail("a run was begun"))
    path = beside(budget.path(kind, tmp_path)).path
    path.write_bytes(b"")
    config = study_config(budget, tmp_path, defaults=kind == "methods")
    for attempt in (runner.dry_run, partial(runner.run, progress=False)):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            attempt(config)


# --- several processes -------------------------------------------------------------------------------------------


@pytest.fixture
def real(made_once: Callable[..., Path]) -> Budget:
    """A budget on data that other processes find as well; all of them ask the teacher for its answers to 15,000."""
    network = models.build("resnet8w2", num_classes=10, in_channels=1, seed=5)
    folder = made_once("small-teacher", lambda folder: models.save(network, folder / "small.safetensors"))
    return Budget(images=40, student="article-student", teacher=str(folder / "small.safetensors"), epochs=1, views=1,
                  device="cpu", precision="fp32")  # fmt: skip


@pytest.mark.slow
def test_two_processes_come_to_the_rows_of_one(real: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [Variant(name, METHODS[name]) for name in ("shuffled", "untrained", "kd")]
    plan = replace(PLANS["controls"], variants=lambda tuned: variants)
    torch.set_num_threads(1)
    for workers, name in ((1, "one"), (2, "two")):
        config = replace(study_config(real, tmp_path / name, seeds=(0, 1), workers=workers), plan=plan)
        runner.run(config, progress=False)
    one, two = (content(real.path("methods", tmp_path / name)) for name in ("one", "two"))
    assert len(one) == 2 * len(variants)
    assert sorted(timeless(one), key=str) == sorted(timeless(two), key=str)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_study_with_what_to_do(
    real: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = set(multiprocessing.active_children())  # workers of loaders that earlier tests have left half read
    with WorkerPool(Experiment(real, tmp_path), 2).open() as pool:
        configs = [run_config("hard", 0), run_config("label-smoothing", 0)]
        seeds = [(pool.experiment.seed_runner(configs, tmp_path / "x.csv"), configs)]
        found = pool.run(seeds, test=False)
        next(found)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        with pytest.raises(ChildProcessError, match="Finished runs are kept: start the same command again"):
            list(pool.run([(pool.experiment.seed_runner(configs, tmp_path / "x.csv"), configs)], test=False))


@pytest.mark.slow
def test_a_process_without_work_begins_with_the_next_seed(real: Budget, tmp_path: Path) -> None:
    experiment, begun = Experiment(real, tmp_path / "cache"), []

    def seeds() -> Iterator[SeedRuns]:
        for seed in (0, 1, 2):
            begun.append(seed)
            yield experiment.seed_runner([run_config(seed=seed)], tmp_path / "x.csv"), [run_config(seed=seed)]

    with WorkerPool(experiment, 2).open() as pool:
        found = pool.run(seeds(), test=False)
        first, _ = next(found)
        assert begun == [0, 1]
        assert {config.seed for config, _ in found} | {first.seed} == {0, 1, 2}
    assert not list((tmp_path / "cache").glob("outputs-*"))


class Threads:
    """A pool whose workers are threads of this process, with preparations and runs that a test gives."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        prepare: Callable[[int], None],
        make: Callable[[RunConfig], dict[str, Any]],
        workers: int = 2,
    ) -> None:
        monkeypatch.setattr("kdlib.workers.ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))
        monkeypatch.setattr(experiment, "prepare_in_worker", lambda group, kinds, threads: prepare(group))
        monkeypatch.setattr(experiment, "run_in_worker", lambda group, config, test: make(config))
        self.pool = WorkerPool(cast(Experiment, SimpleNamespace(budget=None, cache=None)), workers)
        self.left: list[int] = []

    @contextmanager
    def seed(self, number: int) -> Iterator[Any]:
        yield SimpleNamespace(group=number)
        self.left.append(number)

    def run(self, *seeds: Sequence[RunConfig]) -> Iterator[tuple[RunConfig, dict[str, Any]]]:
        with self.pool.open():
            openings = [(self.seed(number), configs) for number, configs in enumerate(seeds)]
            yield from self.pool.run(openings, test=False)


def test_outputs_without_room_wait_for_the_end_of_the_runs_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    failed = threading.Event()

    def prepare(seed: int) -> None:
        tried.append(seed)
        if seed == 1 and not pool.left:
            failed.set()
            raise OSError(errno.ENOSPC, "No space left on device")

    def make(config: RunConfig) -> dict[str, Any]:
        assert failed.wait(60)
        return {}

    pool = Threads(monkeypatch, prepare, make)
    rows = [config.seed for config, _ in pool.run([run_config(seed=0)], [run_config(seed=1)])]
    assert (rows, tried, pool.left) == ([0, 1], [0, 1, 1], [0, 1])


def test_outputs_that_never_find_room_end_the_study_after_the_runs_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(seed: int) -> None:
        if seed == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    pool, rows = Threads(monkeypatch, prepare, lambda config: {}), []
    with pytest.raises(OSError, match="No space left"):
        rows.extend(pool.run([run_config(seed=0)], [run_config(seed=1)]))
    assert (rows, pool.left) == ([(run_config(seed=0), {})], [0])


def test_a_run_that_is_finished_is_kept_when_others_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(9)
    configs = [run_config(seed=seed) for seed in range(9)]

    def make(config: RunConfig) -> dict[str, Any]:
        together.wait(60)
        if config.seed < 8:
            raise ValueError("a damaged layer")
        return {}

    def all_of_them(pending: Sequence[Future[Any]], **options: Any) -> Any:
        return wait(pending)  # so that they are finished at the same time

    monkeypatch.setattr("kdlib.workers.wait", all_of_them)
    found = Threads(monkeypatch, lambda seed: None, make, workers=9).run(configs)
    assert next(found) == (configs[8], {})
    with pytest.raises(ValueError, match="a damaged layer"):
        next(found)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="Windows sends no signal to a thread")
def test_ctrl_c_is_heard_while_runs_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows interrupts no wait of the main thread, nor does a signal that another thread takes."""
    ended, go_on = [], threading.Event()

    def make(config: RunConfig) -> dict[str, Any]:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        go_on.wait(3)
        ended.append(config)
        return {}

    pool = Threads(monkeypatch, lambda seed: None, make)
    with pool.pool.open():
        with pytest.raises(KeyboardInterrupt):
            next(pool.pool.run([(pool.seed(0), [run_config()])], test=False))
        assert not ended
        go_on.set()


def test_a_run_that_ends_as_ctrl_c_arrives_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [run_config(seed=seed) for seed in range(3)]
    made: list[RunConfig] = []

    def make(config: RunConfig) -> dict[str, Any]:
        made.append(config)
        if config.seed == 1:
            raise ValueError("a damaged layer")
        return {}

    def interrupted(pending: Sequence[Future[Any]], **options: Any) -> Any:
        found = wait(pending)
        if made:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr("kdlib.workers.wait", interrupted)
    found, kept = Threads(monkeypatch, lambda seed: None, make).run(configs), []
    with pytest.raises(KeyboardInterrupt):
        kept.extend(found)
    assert sorted(config.seed for config, _ in kept) == [0, 2]


def assert_not_mapped(folder: Path) -> None:
    """In no process of the study; Windows removes no file that is mapped."""
    for process in ("self", *(child.pid for child in multiprocessing.active_children())):
        assert str(folder) not in Path(f"/proc/{process}/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_no_outputs_are_mapped_any_more_when_they_are_removed(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree, removed = shutil.rmtree, []

    def remove(folder: Path, **options: Any) -> None:
        assert_not_mapped(folder)
        removed.append(folder)
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", remove)
    with Experiment(budget, tmp_path / "cache").seed_runner([run_config()], tmp_path / "x.csv") as seed_runner:
        assert seed_runner.teacher(TeacherKind.SHUFFLED)
        assert str(seed_runner.group.outputs) in Path("/proc/self/maps").read_text()
    assert removed == [seed_runner.group.outputs]


@pytest.mark.slow
def test_outputs_are_computed_again_by_a_process_that_had_them(
    real: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and the further trials of a seed share a folder, which is removed in between."""
    rmtree = shutil.rmtree

    def remove(folder: Path, **options: Any) -> None:
        if Path("/proc/self/maps").exists():
            assert_not_mapped(folder)
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", remove)
    with WorkerPool(Experiment(real, tmp_path / "cache"), 2).open() as pool:
        for _ in range(2):
            opening = pool.experiment.seed_runner([run_config()], tmp_path / "x.csv")
            found = pool.run([(opening, [run_config()])], test=False)
            next(found)
            assert list((tmp_path / "cache").rglob("cache.json"))
            assert next(found, None) is None


def undecoded(num_workers: int) -> LazyDataset:
    """A split without images that workers would decode."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return LazyDataset([], nothing, nothing, nothing, (0.3,), (0.1,), min, "", num_workers)


def have_cores(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(count)), raising=False)


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "decoding"),
    [(8, 2, 7, 3), (64, 4, 8, 8), (2, 2, 1, 1), (8, 2, 0, 0), (8, 2, 2, 2)],
)
def test_processes_share_the_cores_that_decode(
    blobs: DataModule, monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, asked: int, decoding: int
) -> None:
    have_cores(monkeypatch, cores)
    module = replace(blobs, train=undecoded(asked), test=undecoded(asked))
    shared = share_cores(module, processes)
    assert [split.num_workers for split in (shared.train, shared.test)] == [decoding, decoding]  # type: ignore[attr-defined]
    assert shared.validation is blobs.validation
    assert shared.train.fingerprint == module.train.fingerprint


def test_each_process_of_a_study_has_a_gpu_and_a_share_of_the_cores(
    real: Budget, blobs: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What starts a process, called in this one."""
    made = SimpleNamespace(data=replace(blobs, train=undecoded(8)))
    starts: list[Callable[[], None]] = []

    def executor(count: int, mp_context: Any, initializer: Any, initargs: Any) -> ThreadPoolExecutor:
        starts.extend([partial(initializer, *initargs)] * count)
        return ThreadPoolExecutor(count)

    gpus: list[int] = []
    have_cores(monkeypatch, 12)
    monkeypatch.setattr("kdlib.workers.ProcessPoolExecutor", executor)
    monkeypatch.setattr("kdlib.workers.exit_with_parent", lambda: None)
    monkeypatch.setattr(experiment, "Experiment", lambda budget, cache: made)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", gpus.append)
    monkeypatch.delenv("KDLIB_DEVICE", raising=False)
    config = cast(Experiment, SimpleNamespace(budget=replace(real, device="auto"), cache=None))
    with WorkerPool(config, 3).open():
        for start in starts:
            start()
    assert gpus == [0, 1, 0]
    assert made.data.train.num_workers == 3


def test_processes_of_the_caller_are_left_alone(real: Budget, tmp_path: Path) -> None:
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()
    try:
        with WorkerPool(Experiment(real, tmp_path), 2).open():
            pass
        other.join(0.5)
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


def test_a_process_that_runs_the_script_anew_begins_no_study(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)  # while Python starts it
    with pytest.raises(RuntimeError, match='kdlib.study.runner.run below a line `if __name__ == "__main__":`'):
        runner.run(study_config(budget, tmp_path, workers=2), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_less_than_one_process_is_refused(budget: Budget, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1; got 0"):
        study_config(budget, tmp_path, workers=0)
