"""The experiment on mistakes in the loss: which rows there are, what each is compared with, and its figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from course import plots
from course.experiments import logit_mistakes as experiment
from course.experiments.logit_mistakes import COMPARED_WITH, HARD, Pictures, Run, runs_of
from kdlib import losses

POINTS = {"right loss": 0.0, "T = 1": 0.2, "T = 20": -0.1, "no T²": 0.0, "probabilities": -3, "other pictures": -8}


def score(run: Run) -> float:
    """An invented accuracy: mistakes cost five times as much without labels."""
    known = POINTS.get(run.way, -2.0 if run.way == "ResNet-20, train" else 1.0)
    return 0.55 + 0.01 * known * (1 if run.alpha else 5) + 0.001 * ((3 * run.seed + len(run.way)) % 5)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that would have been trained; each answers with an invented row at once."""
    runs: list[Run] = []

    class Invented:
        def execute(self, run: Run) -> dict[str, Any]:
            runs.append(run)
            return run.columns() | {"validation_accuracy": score(run), "agreement": 0.8, "seconds": 1.0}

    monkeypatch.setattr(experiment, "Pictures", Invented)
    return runs


def test_what_is_finished_is_not_repeated(made: list[Run], tmp_path: Path) -> None:
    experiment.run(1, tmp_path, "the command", log=lambda text: None)
    assert made == runs_of(1)
    made.clear()
    rows = experiment.run(2, tmp_path, "the command", log=lambda text: None)
    assert {one.seed for one in made} == {1}
    assert len(rows) == 2 * (1 + 2 * len(COMPARED_WITH))
    with pytest.raises(FileNotFoundError, match="logit_mistakes"):
        experiment.load(tmp_path / "elsewhere")
    assert experiment.load(tmp_path) == rows


def test_students_that_ended_beside_one_that_failed_are_kept(
    made: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(run: Run) -> dict[str, Any]:
        if run.way == "T = 1":
            raise ValueError("planted")
        return experiment.Pictures().execute(run)

    def all_of_them(pending: Sequence[Future[Any]], **options: Any) -> Any:
        return wait(pending)  # so that they have ended at the same time

    monkeypatch.setattr(experiment, "_execute_in_worker", execute)
    monkeypatch.setattr("kdlib.workers.ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count))
    monkeypatch.setattr("kdlib.workers.wait", all_of_them)
    with pytest.raises(ValueError, match="planted"):
        experiment.run(1, tmp_path, "the command", workers=2, log=lambda text: None)
    assert len(experiment.load(tmp_path)) == len(made) == len(runs_of(1)) - 2


def test_every_mistake_is_compared_with_the_same_teaching_without_it(made: list[Run], tmp_path: Path) -> None:
    rows = experiment.run(4, tmp_path, "the command", log=lambda text: None)
    costs = {(cost.way, cost.alpha): cost for cost in experiment.costs(rows)}
    assert len(costs) == 2 * 6
    assert costs["other pictures", 0.5].comparison.mean == pytest.approx(-8, abs=0.5)
    assert costs["other pictures", 0.0].comparison.mean == pytest.approx(-40, abs=0.5)
    bad = costs["ResNet-20, train", 0.5]  # 3 points behind the good ResNet-20, 2 behind the small teacher
    assert bad.comparison.mean == pytest.approx(-3, abs=0.5)
    assert all(cost.comparison.comparisons == 12 for cost in costs.values())
    assert all(len(cost.by_seed) == 4 for cost in costs.values())
    assert experiment.table(rows).loc["other pictures", "alpha = 0"] == pytest.approx(15, abs=0.5)


def test_the_figure_has_a_panel_for_each_weight_and_an_interval_for_each_mistake(
    made: list[Run], tmp_path: Path
) -> None:
    costs = experiment.costs(experiment.run(4, tmp_path, "the command", log=lambda text: None))
    fig = plots.mistakes(costs)
    plots.check_labels(fig)
    left, right = fig.axes
    assert [text.get_text() for text in left.get_yticklabels()] == [cost.way for cost in costs if cost.alpha == 0.5]
    for axes in (left, right):
        assert len(axes.containers) == 6  # error bars
    assert right.get_xlim()[0] < -38 < left.get_xlim()[0]
    alt = plots.mistakes_alt(costs)
    for cost in costs:
        assert f"{cost.way} {cost.comparison.mean:+.1f}" in alt


@pytest.fixture
def pictures() -> Pictures:
    """Eight pictures with known answers, and nothing trained."""
    found = object.__new__(Pictures)
    generator = torch.Generator().manual_seed(0)
    found.labels = torch.randint(10, (8,), generator=generator)
    found.answers = 3 * torch.randn(8, 10, generator=generator)
    found.resnet_answers = {"ResNet-20, eval": torch.randn(8, 10), "ResNet-20, train": torch.randn(8, 10)}
    return found


def test_the_losses_are_those_of_the_lesson(pictures: Pictures) -> None:
    s, indices = torch.randn(4, 10, generator=torch.Generator().manual_seed(1)), torch.tensor([5, 0, 3, 6])
    hard, t = F.cross_entropy(s, pictures.labels[indices]), pictures.answers[indices]

    def mixed(soft: torch.Tensor) -> torch.Tensor:
        return 0.25 * hard + 0.75 * soft

    expected: dict[str, Callable[[], torch.Tensor]] = {
        HARD: lambda: hard,
        "right loss": lambda: mixed(losses.kd(s, t, 4.0)),
        "T = 1": lambda: mixed(losses.kd(s, t, 1.0)),
        "T = 20": lambda: mixed(losses.kd(s, t, 20.0)),
        "no T²": lambda: mixed(losses.kd(s, t, 4.0) / 16),
        "other pictures": lambda: mixed(losses.kd(s, t.roll(1, dims=0), 4.0)),
        "ResNet-20, train": lambda: mixed(losses.kd(s, pictures.resnet_answers["ResNet-20, train"][indices], 4.0)),
    }
    for way, value in expected.items():
        torch.testing.assert_close(pictures.loss_of(way, 0.25)(s, indices), value(), msg=way)
    given = pictures.loss_of("probabilities", 0.0)(s, indices)
    torch.testing.assert_close(given, losses.kd(s.softmax(dim=1), t.softmax(dim=1), 4.0))


@pytest.mark.slow
def test_a_whole_run_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "IMAGES", 128)
    monkeypatch.setattr(experiment, "EPOCHS", 1)
    first, second = (Pictures().execute(Run("right loss", 0.0, 1)) for _ in range(2))
    assert first["validation_accuracy"] == second["validation_accuracy"] > 0.1
    assert 0 <= first["agreement"] <= 1
