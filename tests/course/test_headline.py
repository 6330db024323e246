"""The job of `make distill`: what is tried for it, what its rows say, and that rows, command and README agree."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from course.experiments import headline
from course.experiments.headline import CANDIDATES, HARD, JOB, LOGITS, SEEDS, TRIALS, TUNING_SEEDS
from kdlib import cli, train, verdict
from kdlib import distill as jobs
from kdlib.data import data_dir
from kdlib.distill import Job
from kdlib.methods import HardLabels
from kdlib.recipes import Recipe
from kdlib.study.predictions import PredictionsFile
from kdlib.study.runs_file import read_rows, to_text

ROOT = Path(__file__).parents[2]
SMALL = Job(teacher="resnet8-fashion", student="article-student", images=200, epochs=2, recipe=Recipe(batch_size=50))


def seeds_of_the_course() -> list[dict[str, str]]:
    return read_rows(data_dir() / "results" / SEEDS, headline.SEED_COLUMNS)


def trials_of_the_course() -> list[dict[str, str]]:
    return read_rows(data_dir() / "results" / TRIALS, headline.TRIAL_COLUMNS)


# --- what is shipped


def test_make_distill_does_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Job] = []

    def refuse(job: Job, *args: Any, **kwargs: Any) -> None:
        asked.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "distill", refuse)
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    command = re.search(r"-m kdlib (distill .*)", makefile)[1].replace("$(call quoted,$(OUT))", "somewhere")
    CliRunner().invoke(cli.app, shlex.split(command))
    assert asked == [JOB]


def test_every_candidate_was_tried_with_both_methods_and_the_job_is_the_best_of_five_minutes() -> None:
    rows = trials_of_the_course()
    assert not any(row["error"] for row in rows)
    order = headline.best(rows)
    assert set(order) == set(CANDIDATES)
    again = headline.best(rows, TUNING_SEEDS[1])
    assert set(again) == set(order[: headline.FINALISTS])
    assert next(job for job in order if job.images == 5_000) == JOB
    assert next(job for job in again if job.images == 5_000) == JOB


def test_the_readme_has_the_table_of_the_seeds() -> None:
    rows = headline.rows_of(seeds_of_the_course(), teacher=JOB.teacher)
    assert [row["seed"] for row in rows] == ["0", "1", "2", "3", "4"]
    for row in rows:
        assert headline.rows_of([row], **headline.settings(replace(JOB, seed=int(row["seed"]))))
    assert headline.table(rows) in (ROOT / "README.md").read_text()


def test_the_readme_says_what_the_controls_gave() -> None:
    scores = headline.scores()
    assert list(scores) == [HARD, LOGITS, *headline.CONTROLS]
    assert scores.index.tolist() == [0, 1, 2, 3, 4]
    for row in read_rows(data_dir() / "results" / headline.CONTROL_SEEDS, headline.CONTROL_COLUMNS):
        assert scores.loc[int(row["seed"]), row["method"]] == pytest.approx(100 * float(row["test_accuracy"]))
        assert headline.rows_of([row], **headline.settings(replace(JOB, seed=int(row["seed"]))))
    smoothed, over_it = (
        verdict.compare(scores[method], scores[baseline], comparisons=3)
        for method, baseline in ((headline.SMOOTHING, HARD), (LOGITS, headline.SMOOTHING))
    )
    assert [str(found.verdict) for found in (smoothed, over_it)] == ["INCONCLUSIVE", "BEATS"]
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert (
        f"is {smoothed.mean:.1f} ahead of hard labels without any teacher ({smoothed.low:.1f} to {smoothed.high:.1f};"
        in text
    )
    assert f"logits are {over_it.mean:.1f} ahead of it ({over_it.low:.1f} to {over_it.high:.1f};" in text
    assert f"nine tenths of the loss, leave {scores[headline.SHUFFLED].mean():.0f} % right" in text


# --- how rows come about


@pytest.mark.slow
def test_trials_read_the_validation_split_alone_and_go_on_where_they_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    taught: list[bool] = []
    fit = headline.train.fit

    def guarded(*args: Any, **kwargs: Any) -> Any:
        assert kwargs["test"] is False
        taught.append(kwargs["teacher"] is not None)
        result = fit(*args, **kwargs)
        assert result.test_accuracy is None
        return result

    monkeypatch.setattr(headline.train, "fit", guarded)
    run = [SMALL, replace(SMALL, seed=1)]
    headline.run_trials(run[:1], tmp_path, tmp_path / "cache", "the command", told.append)
    rows = headline.run_trials(run, tmp_path, tmp_path / "cache", "the command", told.append)
    assert [(row["seed"], row["method"]) for row in rows] == [(s, m) for s in "01" for m in (HARD, LOGITS)]
    assert all(0 < float(row["validation_accuracy"]) < 1 for row in rows)
    assert taught == [False, True] * 2
    assert headline.run_trials(run, tmp_path, tmp_path / "cache", "the command", told.append) == rows
    assert len(told) == 4


@pytest.mark.slow
def test_a_seed_of_the_job_is_what_kdlib_distill_gives(tmp_path: Path) -> None:
    headline.run_seeds(SMALL, 1, tmp_path, "the command", lambda line: None)
    rows = headline.run_seeds(SMALL, 2, tmp_path, "the command", lambda line: None)
    assert [row["seed"] for row in rows] == ["0", "1"]
    report = jobs.distill(replace(SMALL, seed=1), progress=False, echo=lambda line: None)
    assert float(rows[1]["student_accuracy"]) == report.student_accuracy
    assert float(rows[1]["baseline_accuracy"]) == report.baseline_accuracy
    found, over = headline.gain(rows, tmp_path)
    assert over == "seeds and test images"
    assert found.mean == pytest.approx(
        sum(float(row["student_accuracy"]) - float(row["baseline_accuracy"]) for row in rows) / 2
    )
    (tmp_path / SEEDS).with_suffix(".predictions.safetensors").unlink()
    alone, over = headline.gain(rows, tmp_path)
    assert alone.mean == pytest.approx(found.mean)
    assert over.startswith("seeds (")
    assert headline.run_seeds(replace(SMALL, epochs=1), 1, tmp_path, "the command", lambda line: None) != rows[:1]
    assert headline.run_seeds(SMALL, 2, tmp_path, "the command", lambda line: None) == rows  # those of this job alone


@pytest.mark.slow
def test_a_trial_trains_as_the_job_does(tmp_path: Path) -> None:
    rows = headline.run_trials([SMALL], tmp_path, tmp_path / "cache", "the command", lambda line: None)
    jobs.distill(SMALL, tmp_path / "job", progress=False, echo=lambda line: None)
    last = pd.read_csv(tmp_path / "job" / "history.csv").iloc[-1]
    hard, logits = (float(row["validation_accuracy"]) for row in rows)
    assert hard == last["baseline validation_accuracy"]
    assert logits == pytest.approx(last["student validation_accuracy"], abs=0.02)  # its outputs are stored in 16 bits


@pytest.mark.slow
def test_what_diverges_is_a_row_and_no_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: Any, **kwargs: Any) -> None:
        raise FloatingPointError("The loss is nan.")

    monkeypatch.setattr(headline.train, "fit", diverge)
    job = replace(CANDIDATES[0], seed=TUNING_SEEDS[0])
    monkeypatch.setattr(headline.CachedTeacher, "build", lambda *args, **kwargs: None)
    rows = headline.run_trials([job], tmp_path, tmp_path / "cache", "the command", lambda line: None)
    assert [row["error"] for row in rows] == ["The loss is nan."] * 2
    assert headline.best(rows) == []


@pytest.mark.slow
def test_controls_are_trained_as_the_job_is_and_go_on_where_they_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[torch.Tensor] = []
    read = headline.CachedTeacher.open

    def watched(directory: Path, metadata: Any, indices: torch.Tensor) -> Any:
        opened.append(indices)
        return read(directory, metadata, indices)

    monkeypatch.setattr(headline.CachedTeacher, "open", watched)
    for seeds in (1, 2, 2):
        headline.run_controls(SMALL, seeds, tmp_path, tmp_path / "cache", "the command", lambda line: None)
    rows = read_rows(tmp_path / headline.CONTROL_SEEDS, headline.CONTROL_COLUMNS)
    assert [(row["seed"], row["method"]) for row in rows] == [(s, m) for s in "01" for m in headline.CONTROLS]
    images, _, student, _ = jobs.build(SMALL)
    smoothed = train.fit(
        student,
        images,
        method=HardLabels(smoothing=0.1),
        epochs=SMALL.epochs,
        recipe=SMALL.recipe,
        views=SMALL.views,
        progress=False,
    )
    assert float(rows[0]["test_accuracy"]) == smoothed.test_accuracy
    own = images.train.indices
    of_the_seed = [indices for indices in opened if indices.sort().values.equal(own.sort().values)]
    assert any((indices != own).all() for indices in of_the_seed)


# --- what they say


def test_candidates_are_ordered_by_the_sum_of_both_methods() -> None:
    scores = {0: (0.80, 0.90), 1: (0.86, 0.86), 3: (0.88, 0.87)}
    rows = [
        {
            name: str(value)
            for name, value in headline.settings(replace(CANDIDATES[place], seed=TUNING_SEEDS[0])).items()
        }
        | {"method": method, "validation_accuracy": str(score)}
        for place, both in scores.items()
        for method, score in zip((HARD, LOGITS), both, strict=True)
    ]
    assert headline.best(rows) == [CANDIDATES[3], CANDIDATES[1], CANDIDATES[0]]
    assert headline.best(rows[1:]) == [CANDIDATES[3], CANDIDATES[1]]  # one trial alone says nothing of the other


def test_the_table_has_a_line_for_each_seed_and_the_means() -> None:
    rows = [
        {"seed": "0", "baseline_accuracy": "0.86", "student_accuracy": "0.88", "seconds": "300.2"},
        {"seed": "1", "baseline_accuracy": "0.84", "student_accuracy": "0.88", "seconds": "310.2"},
    ]
    assert headline.table(rows).splitlines()[2:] == [
        "| 0 | 86.00 | 88.00 | +2.00 | 300 |",
        "| 1 | 84.00 | 88.00 | +4.00 | 310 |",
        "| mean | 85.00 | 88.00 | +3.00 | 305 |",
    ]


def test_the_interval_covers_test_images_only_where_all_answers_are_known(tmp_path: Path) -> None:
    truth = torch.arange(100) % 10
    rows, answers = [], PredictionsFile(tmp_path / SEEDS)
    for seed in range(3):
        of_the_job = headline.settings(replace(SMALL, seed=seed))
        rows.append({name: to_text(value) for name, value in of_the_job.items()})
        for method, wrong, column in ((HARD, 20 + seed, "baseline_accuracy"), (LOGITS, 10, "student_accuracy")):
            predicted = truth.clone()
            predicted[:wrong] += 1
            rows[-1][column] = str(1 - wrong / 100)
            if (seed, method) != (2, LOGITS):
                answers.add(headline._key(of_the_job, method), predicted, truth)
    found, over = headline.gain(rows, tmp_path)
    assert found.mean == pytest.approx(0.11)
    assert over.startswith("seeds (of some")
    answers.add(headline._key(rows[2], LOGITS), predicted, truth)
    wider, over = headline.gain(rows, tmp_path)
    assert (wider.mean, over) == (pytest.approx(0.11), "seeds and test images")
    assert wider.high - wider.low > found.high - found.low


def test_the_lesson_is_given_every_candidate_the_worst_baseline_first() -> None:
    table = headline.tried()
    assert len(table) == len(CANDIDATES)
    assert table[HARD].is_monotonic_increasing
    best = table.iloc[(table[HARD] + table[LOGITS]).argmax()]
    assert best["images"] == headline.best(trials_of_the_course())[0].images
    assert (table["gain"] - (table[LOGITS] - table[HARD])).abs().max() < 1e-9
    text = next((ROOT / "notebooks").glob("08_*.ipynb")).read_text()
    for job in CANDIDATES:  # the page shows the recipe whole
        rate, batch = f"{job.recipe.learning_rate:.3f}", job.recipe.batch_size
        assert re.search(
            rf"{job.images} +{job.epochs} +{batch} +{job.recipe.optimizer} +{rate} +{job.recipe.schedule}", text
        )
    for teacher in {row["teacher"] for row in seeds_of_the_course()}:
        own = [float(row["student_accuracy"]) for row in seeds_of_the_course() if row["teacher"] == teacher]
        assert headline.done(teacher)["student_accuracy"].tolist() == own


def test_another_teacher_is_tried_and_taught_by_in_rows_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        headline, "run_trials", lambda jobs, methods=(HARD, LOGITS), **given: asked.append((jobs, methods)) or []
    )
    monkeypatch.setattr(headline, "run_seeds", lambda job, *given: asked.append((job,)) or [])
    monkeypatch.setattr(headline, "table", lambda rows: "")
    headline.trials(out=tmp_path, teacher="resnet20-fashion")
    headline.seeds(count=2, out=tmp_path, teacher="resnet20-fashion")
    other = replace(JOB, teacher="resnet20-fashion")
    assert asked == [
        ([replace(other, seed=seed) for seed in TUNING_SEEDS], (LOGITS, headline.HIGHER)),
        (other,),
    ]


def test_trials_of_another_teacher_or_temperature_do_not_count_for_the_choice() -> None:
    job = replace(CANDIDATES[0], seed=TUNING_SEEDS[0])

    def row(job: Job, method: str, score: float) -> dict[str, str]:
        texts = {name: to_text(value) for name, value in headline.settings(job).items()}
        return texts | {"method": method, "validation_accuracy": str(score)}

    rows = [row(job, HARD, 0.8), row(job, LOGITS, 0.9), row(job, headline.HIGHER, 0.99)]
    rows.append(row(replace(job, teacher="resnet20-fashion"), LOGITS, 0.99))
    assert headline.best(rows) == [CANDIDATES[0]]


@pytest.mark.slow
def test_a_higher_temperature_is_another_training(tmp_path: Path) -> None:
    given = [SMALL], tmp_path, tmp_path / "cache", "the command", lambda line: None
    rows = headline.run_trials(*given, methods=(LOGITS, headline.HIGHER))
    assert [row["method"] for row in rows] == [LOGITS, headline.HIGHER]
    assert rows[0]["validation_accuracy"] != rows[1]["validation_accuracy"]
