"""The experiment with a missing class: what each kind of labels changes, what is measured, what is not repeated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from course.experiments import missing_class as experiment
from course.experiments.missing_class import BUDGETS, LABELS, MEANS, SHUFFLED, SMALL, SOFT
from kdlib import losses
from kdlib.data import NO_AUGMENTATION, data_dir
from kdlib.study.experiment import Experiment
from kdlib.study.plans import RunConfig
from kdlib.study.runs_file import read_rows

LABELS_OF = torch.tensor([1, 2, 1, 2, 1, 2, 2])


@pytest.fixture
def logits() -> torch.Tensor:
    """Two views of seven images, four classes; class 0 is the missing one."""
    return 3 * torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))


def test_the_shuffled_logit_stays_in_its_class_and_nothing_else_moves(logits: torch.Tensor) -> None:
    changed = experiment.shuffle_logit(logits, LABELS_OF, missing=0, seed=3)
    assert torch.equal(changed[..., 1:], logits[..., 1:])
    assert not (changed[..., 0] == logits[..., 0]).any()  # every image gets another one's
    for label in (1, 2):
        for view in (0, 1):
            before, after = logits[view, label == LABELS_OF, 0], changed[view, label == LABELS_OF, 0]
            assert torch.equal(before.sort().values, after.sort().values)
    # The same image's logit in both views: a student cannot average the exchange away.
    sources = [[int((logits[view, :, 0] == value).nonzero()) for value in changed[view, :, 0]] for view in (0, 1)]
    assert sources[0] == sources[1]
    assert torch.equal(changed, experiment.shuffle_logit(logits, LABELS_OF, missing=0, seed=3))


def test_class_means_soften_to_the_mean_soft_label_of_the_class(logits: torch.Tensor) -> None:
    soft = losses.soften(experiment.class_means(logits, LABELS_OF, 4.0), 4.0)
    for label in (1, 2):
        own = soft[:, label == LABELS_OF].flatten(0, 1)
        torch.testing.assert_close(own, own[:1].expand_as(own))
        torch.testing.assert_close(own[0], losses.soften(logits, 4.0)[:, label == LABELS_OF].mean(dim=(0, 1)))


@pytest.mark.slow
def test_the_constant_is_the_smallest_of_the_best_and_shares_are_of_their_own_images() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    logits = torch.tensor([[1.0, 3.0], [1.0, 3.5], [0.0, 9.0], [0.0, 8.0]])
    found = experiment.best_constant(logits, labels, 0)
    assert found == pytest.approx(2.6)  # above 2.5 both are recognised, and up to 8 nothing is lost
    assert experiment.shares(logits, labels, 0) == (0.0, 1.0)
    assert experiment.shares(experiment.with_constant(logits, 0, found), labels, 0) == (1.0, 1.0)
    assert experiment.shares(experiment.with_constant(logits, 0, 8.5), labels, 0) == (1.0, 0.5)
    assert logits[0, 0] == 1.0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, RunConfig]]:
    """The runs that would have been trained; each answers with an invented row at once."""
    runs: list[tuple[str, RunConfig]] = []

    def execute(labels: str, runner: Any, config: RunConfig) -> dict[str, Any]:
        runs.append((labels, config))
        shares = {SOFT: 0.3, SHUFFLED: 0.0, MEANS: 0.0}
        found = {"recognised": shares.get(labels, 0.0), "recognised_with": 0.8 - 0.01 * config.seed, "constant": 1.0}
        found |= {"others": 0.9, "others_with": 0.85}
        return experiment.columns_of(labels, config, runner.experiment.budget) | found | {"seconds": 1.0}

    @contextmanager
    def seed_runner(found: Any, seed: int, missing: int) -> Iterator[Any]:
        yield SimpleNamespace(experiment=found)

    monkeypatch.setattr(experiment, "execute", execute)
    monkeypatch.setattr(experiment, "_seed_runner", seed_runner)
    monkeypatch.setattr(experiment, "Experiment", lambda budget, cache: SimpleNamespace(budget=budget))
    return runs


def run(folder: Path, student: str, seeds: int, labels: Any = LABELS, missing: int = 0) -> list[dict[str, str]]:
    source = data_dir() / "results"
    options: dict[str, Any] = {"source": source, "out": folder, "cache": folder / "cache", "command": "the command"}
    return experiment.run(BUDGETS[student], missing, seeds, labels, log=lambda text: None, **options)


@pytest.mark.parametrize("student", BUDGETS)
def test_what_is_finished_is_not_repeated_and_the_rest_is_added(
    made: list[tuple[str, RunConfig]], tmp_path: Path, student: str
) -> None:
    run(tmp_path, student, 1, [SHUFFLED])
    made.clear()
    rows = run(tmp_path, student, 2)
    assert [(labels, config.seed) for labels, config in made] == [
        *((labels, 0) for labels in LABELS if labels != SHUFFLED),
        *((labels, 1) for labels in LABELS),
    ]
    assert len(rows) == 8
    path = BUDGETS[student].path("missing-class-labels", tmp_path)
    assert [session["rows"] for session in json.loads(path.with_suffix(".json").read_text())["sessions"]] == [
        [1, 1],
        [2, 8],
    ]
    found = experiment.table(rows)
    assert list(found["seeds"]) == [2] * 4
    assert found.loc[SOFT, "as trained"] == "30.0"  # no spread, no interval
    assert found.loc[SOFT, "with a constant"].startswith("79.5 ± ")
    assert (found.loc[SOFT, "others, as trained"], found.loc[SOFT, "others, with it"]) == ("90.0", "85.0")


def test_runs_of_another_class_are_no_further_seeds(made: list[tuple[str, RunConfig]], tmp_path: Path) -> None:
    run(tmp_path, SMALL, 2)
    run(tmp_path, SMALL, 3, missing=1)
    for missing, seeds in {0: 2, 1: 3}.items():
        rows = experiment.load(folder=tmp_path, missing=missing)
        assert {row["excluded_class"] for row in rows} == {str(missing)}
        assert list(experiment.table(rows)["seeds"]) == [seeds] * 4
    assert experiment.load(folder=tmp_path) == experiment.load(folder=tmp_path, missing=0)
    with pytest.raises(FileNotFoundError, match="without class 7 .* --left-out 7"):
        experiment.load(folder=tmp_path, missing=7)


def test_the_larger_student_takes_over_the_settings_of_the_study(
    made: list[tuple[str, RunConfig]], tmp_path: Path
) -> None:
    run(tmp_path, "resnet8", 2)
    study = read_rows(BUDGETS["resnet8"].path("missing-class", data_dir() / "results"))
    for labels, config in made:
        method = "hard" if labels == experiment.HARD else "kd alpha=0 T=4"
        row = next(one for one in study if one["method"] == method and one["seed"] == str(config.seed))
        assert config == RunConfig.from_row(row)
    with pytest.raises(ValueError, match="no runs of class 3 with seed 0"):
        experiment.study_configs(BUDGETS["resnet8"].path("missing-class", data_dir() / "results"), 3, 1)
    with pytest.raises(ValueError, match="There are no labels 'softer'"):
        run(tmp_path, "resnet8", 1, ["softer"])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_no_outputs_are_mapped_any_more_when_they_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows removes no file that is mapped."""
    rmtree, removed = shutil.rmtree, []

    def remove(folder: Path, **options: Any) -> None:
        assert str(folder) not in Path("/proc/self/maps").read_text()
        removed.append(folder)
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", remove)
    budget = replace(BUDGETS[SMALL], images=40, views=1)
    with experiment._seed_runner(Experiment(budget, tmp_path / "cache"), 0, 0) as runner:
        assert experiment.teacher_for(SOFT, runner, experiment.small_configs(0, 1)[experiment.SOFT_RUN][0])
        assert "cache/" in Path("/proc/self/maps").read_text()
    assert removed


@pytest.mark.slow
def test_a_changed_teacher_is_found_by_image_and_view(tmp_path: Path) -> None:
    """With the changes undone, the student is the one that the stored answers themselves make."""
    budget = replace(BUDGETS["resnet8"], images=200, views=2, epochs=2)
    found = Experiment(budget, tmp_path / "cache")
    with experiment._seed_runner(found, 5, 0) as runner:
        config = experiment.small_configs(0, 6)[experiment.SOFT_RUN][5]
        stored = experiment.teacher_for(SOFT, runner, config)
        assert stored is not None
        options: dict[str, Any] = {"augmentation": runner.data.augmentation, "seed": 5}
        same = experiment.Changed(stored, runner.data.train, change=lambda logits, _: logits, **options)  # type: ignore[arg-type]
        for view in (0, 1):
            batch = next(runner.data.train.iter_batches(64, view=view, **options))
            torch.testing.assert_close(same(batch).logits, stored(batch).logits)
        means = experiment.teacher_for(MEANS, runner, config)
        assert means is not None
        answers = losses.soften(means(batch).logits, 4.0)
        for label in batch.labels.unique():
            own = answers[batch.labels == label]
            torch.testing.assert_close(own, own[:1].expand_as(own))
        assert experiment.teacher_for(experiment.HARD, runner, config) is None
    with experiment._seed_runner(Experiment(replace(BUDGETS[SMALL], images=200), tmp_path / "cache"), 0, 0) as runner:
        assert runner.data.augmentation == NO_AUGMENTATION
