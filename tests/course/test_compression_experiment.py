"""The experiment on compression: what it chooses, what it repeats, and what a row says of a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from course.experiments import compression, compression_results
from course.experiments.compression import HARD, KD, RAW, TECHNIQUES, Budget, Experiment, Images, Run
from kdlib import verdict
from kdlib.data import DataModule
from kdlib.study.runs_file import read_rows

# Validation accuracies of trials, by training and learning rate: KD's best lies beyond the first three.
SCORES = {HARD: {0.01: 0.80, 0.03: 0.85, 0.1: 0.85}, KD: {0.01: 0.7, 0.03: 0.8, 0.1: 0.85, 0.3: 0.9, 1.0: 0.5}}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that would have been trained; each answers with an invented row at once."""
    runs: list[Run] = []

    def execute(run: Run, budget: Budget, cache: Path, *, test: bool) -> dict[str, Any]:
        runs.append(run)
        row = run.columns(budget) | {"seconds": 1.0}
        if test:
            sizes = dict.fromkeys(("parameters", "nonzero", "bytes", "zipped_bytes", "macs"), 1)
            return (
                row
                | sizes
                | {"test_accuracy": 0.9 + 0.01 * (run.training == KD) + 0.001 * run.seed * len(run.training)}
            )
        return row | {"validation_accuracy": SCORES[run.training][run.learning_rate]}

    monkeypatch.setattr(compression, "execute", execute)
    return runs


def run(folder: Path, technique: str = "int4", seeds: int = 2, images: int = 100) -> list[dict[str, str]]:
    experiment = Experiment(Budget(images, 2), folder, folder / "cache")
    return experiment.run([technique], seeds, "the command", log=lambda text: None)


def test_both_trainings_get_the_same_grid_which_grows_while_the_best_lies_at_its_edge(
    made: list[Run], tmp_path: Path
) -> None:
    rows = run(tmp_path)
    tried = {
        way: sorted(one.learning_rate for one in made if one.training == way and one.seed == 1000) for way in SCORES
    }
    assert tried == {HARD: [0.01, 0.03, 0.1], KD: [0.01, 0.03, 0.1, 0.3, 1.0]}
    chosen = {(row["training"], row["learning_rate"]) for row in rows}
    assert chosen == {(RAW, ""), (HARD, "0.03"), (KD, "0.3")}  # of equals the smaller one
    assert sorted(row["seed"] for row in rows) == ["0"] * 3 + ["1"] * 3
    trials = read_rows(tmp_path / "choose-compression-resnet20-fashion-100.csv")
    assert len(trials) == 8
    assert not any("test" in column for column in trials[0])


def test_what_is_finished_is_not_repeated(made: list[Run], tmp_path: Path) -> None:
    run(tmp_path, seeds=1)
    made.clear()
    rows = run(tmp_path, seeds=2)
    assert [(one.training, one.seed) for one in made] == [(RAW, 1), (HARD, 1), (KD, 1)]
    assert len(rows) == 6
    facts = json.loads((tmp_path / "compression-resnet20-fashion-100.json").read_text())
    assert [session["rows"] for session in facts["sessions"]] == [[1, 3], [4, 6]]
    assert facts["sessions"][0]["command"] == "the command"


def test_trials_that_have_ended_as_ctrl_c_arrives_are_kept(
    made: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(pending: Sequence[Future[Any]], **options: Any) -> Any:
        wait(pending)
        raise KeyboardInterrupt

    monkeypatch.setattr("kdlib.workers.ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count))
    monkeypatch.setattr("kdlib.workers.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Experiment(Budget(100, 2), tmp_path, tmp_path / "cache", workers=2).run(["int4"], 1, "", log=lambda text: None)
    assert len(made) == len(read_rows(tmp_path / "choose-compression-resnet20-fashion-100.csv")) == 6


def test_the_same_network_takes_over_the_rates_and_fresh_weights_have_no_raw_row(
    made: list[Run], tmp_path: Path
) -> None:
    run(tmp_path, "prune, distil, quantize", seeds=1)
    assert {one.technique for one in made if one.seed == 1000} == {"channels"}
    rows = run(tmp_path, "resnet8", seeds=1)
    assert [row["training"] for row in rows if row["technique"] == "resnet8"] == [HARD, KD]


def test_files_of_another_budget_and_unknown_techniques_are_refused(made: list[Run], tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ValueError, match="share one budget"):
        Experiment(Budget(100, 3), tmp_path, tmp_path).run(["int4"], 1, "", log=print)
    with pytest.raises(ValueError, match="no technique named 'int5'"):
        run(tmp_path, "int5")
    with pytest.raises(ValueError, match="at least 2"):
        Budget(100, 1)


def print_verdicts(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the command says of two techniques after its runs."""
    compression.compression(5, ["int4", "channels"], 100, 2, folder, folder / "cache", 1)
    return [line for line in capsys.readouterr().out.splitlines() if ", seed " not in line.split(":")[0]]


def test_the_verdicts_of_the_command_are_those_of_the_lesson(
    made: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = print_verdicts(tmp_path, capsys)
    budget = Budget(100, 2)
    networks = compression_results.summarize(read_rows(budget.path("compression", tmp_path)))
    gains = compression_results.CompressionResults(networks, networks[0], budget).gains()
    assert printed == [str(gain) for gain in gains]
    hard, kd = ({seed: 90 + (way == KD) + 0.1 * seed * len(way) for seed in range(5)} for way in (HARD, KD))
    both = verdict.compare(kd, hard, comparisons=2, same_unit=True)
    for gain in gains:
        assert (gain.comparison.low, gain.comparison.high) == pytest.approx((both.low, both.high))


def test_a_seed_that_diverged_leaves_no_verdict(
    made: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    invent = compression.execute

    def execute(run: Run, budget: Budget, cache: Path, *, test: bool) -> dict[str, Any]:
        row = invent(run, budget, cache, test=test)
        diverged = (run.training, run.seed) == (KD, 3)
        if not diverged:
            return row
        return {name: row[name] for name in row if name != "test_accuracy"} | {"error": "The loss is nan"}

    monkeypatch.setattr(compression, "execute", execute)
    (line,) = print_verdicts(tmp_path, capsys)
    assert "seed 3" in line
    assert "The loss is nan" in line


def test_trials_that_all_diverged_leave_no_rate() -> None:
    row = {"technique": "int4", "training": KD, "learning_rate": "0.1", "validation_accuracy": ""}
    with pytest.raises(ValueError, match="diverged"):
        compression.best_rate([row], "int4", KD)


@pytest.fixture
def few_images(fashion: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: getattr(fashion, name).select(torch.arange(120)) for name in ("train", "validation", "test")}
    some = replace(fashion, **few)
    batches = tuple(batch.images for batch in some.train.iter_batches(60))
    monkeypatch.setattr(compression, "_images", lambda seed, count: Images(some, batches, seed))
    compression._teacher.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "training"),
    [
        ("channels", 68_642, KD),
        ("small network", 68_642, HARD),
        ("zeros 90", 272_186, HARD),
        ("int4", 272_186, RAW),
        ("int2", 272_186, KD),
        ("prune, distil, quantize", 68_642, HARD),
        ("quantize, prune, distil", 68_642, KD),
    ],
)
def test_a_row_says_what_the_network_weighs(
    name: str, parameters: int, training: str, few_images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    fit: Callable[..., Any] = compression.train.fit
    monkeypatch.setattr(compression.train, "fit", lambda *a, **k: (epochs.append(k["epochs"]), fit(*a, **k))[1])
    one = Run(name, training, 0, None if training == RAW else 0.01)
    row = compression.execute(one, Budget(120, 2), tmp_path, test=True)
    technique = TECHNIQUES[name]
    assert sum(epochs) == (0 if training == RAW else 2)
    assert row["parameters"] == parameters
    assert 0.8 * technique.bits / 32 < row["bytes"] / (4 * parameters) < 1.3 * technique.bits / 32 + 0.06
    if name != "int2":  # whose three values are zero, as a rule
        assert (row["nonzero"] < 0.11 * parameters) == (name == "zeros 90")
    assert 0 <= row["test_accuracy"] <= 1
    assert row["macs"] == (7_783_872 if parameters == 68_642 else 31_021_952)
    trial = compression.execute(one, Budget(120, 2), tmp_path, test=False)
    assert not {"test_accuracy", "bytes"} & trial.keys()
    assert trial["validation_accuracy"] == row["validation_accuracy"]
