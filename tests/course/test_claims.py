"""The experiments on claims: what is seen and said, what is chosen and repeated, and what is read off the rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from typer import Typer
from typer.testing import CliRunner

from course.experiments import (
    claims,
    claims_common,
    claims_faults,
    claims_length,
    claims_noise,
    claims_pictures,
    claims_results,
)
from course.experiments.claims_common import Arm, Part, Setting, images_of, other_images_of
from kdlib import data
from kdlib.study.runs_file import read_rows

BASE = 2_000


def none(*_: Any) -> nn.Module:
    raise AssertionError("nothing is trained here")


PART = Part(
    "faults",
    {
        "first": Arm(none, (Setting(0.1), Setting(0.2))),
        "second": Arm(none, (Setting(0.1, 1.0), Setting(0.1, 4.0))),
        "variant": Arm(none, as_in="second"),
        "given": Arm(none, (Setting(0.3),), epochs=2),
    },
    columns=("by_class", "sandals_as_sneakers"),
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[claims.Run]]:
    """The runs that would have been trained; each answers with an invented row."""
    runs: list[claims.Run] = []

    def execute(run: claims.Run, part: Part, chosen: dict[str, Setting], *, test: bool) -> dict[str, Any]:
        runs.append(run)
        row = run.columns(part) | {"seconds": 1.0}
        if not test:
            return row | {
                "validation_accuracy": 0.5 + 0.01 * (run.setting.temperature or 0) - run.setting.learning_rate
            }
        better = {"first": 0.0, "second": 0.02, "variant": 0.01, "given": -0.1}[run.arm] * (1 + 0.1 * run.seed)
        shares = " ".join(f"{0.1 * one:.4f}" for one in range(10))
        return row | {"test_accuracy": 0.8 + better, "by_class": shares, "sandals_as_sneakers": 0.2 + better}

    monkeypatch.setattr(claims, "execute", execute)
    monkeypatch.setitem(claims.PARTS, "faults", PART)
    claims_results.load.cache_clear()
    yield runs
    claims_results.load.cache_clear()


def run(folder: Path, seeds: int = 2) -> list[dict[str, str]]:
    return claims.run_part(PART, seeds, folder, "the command", log=lambda text: None)


def test_settings_are_chosen_on_validation_taken_over_or_given(made: list[claims.Run], tmp_path: Path) -> None:
    rows = run(tmp_path)
    tried = {(one.arm, one.setting) for one in made if one.seed == claims_common.TUNING_SEED}
    assert tried == {(name, setting) for name in ("first", "second") for setting in PART.arms[name].settings}
    assert {(row["arm"], row["learning_rate"], row["temperature"], row["epochs"]) for row in rows} == {
        ("first", "0.1", "", "8"),
        ("second", "0.1", "4.0", "8"),
        ("variant", "0.1", "4.0", "8"),
        ("given", "0.3", "", "2"),
    }
    trials = read_rows(claims.path("faults", tmp_path, trials=True))
    assert len(trials) == 4
    assert not any("test" in column or "sandals" in column for column in trials[0])


def test_what_is_finished_is_not_repeated_after_a_kill(made: list[claims.Run], tmp_path: Path) -> None:
    run(tmp_path, seeds=1)
    path = claims.path("faults", tmp_path)
    content = path.read_text()
    path.write_text(content[: content.rstrip().rfind("\n") + 5])  # as a kill leaves it
    made.clear()
    rows = run(tmp_path, seeds=2)
    assert [(one.arm, one.seed) for one in made] == [("given", 0), *((name, 1) for name in PART.arms)]
    assert len(rows) == 8
    assert json.loads(path.with_suffix(".json").read_text())["sessions"][-1]["command"] == "the command"


def test_rows_of_another_budget_are_refused(
    made: list[claims.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    monkeypatch.setitem(claims.NETWORKS, "student", "resnet8")
    with pytest.raises(ValueError, match="share one budget"):
        run(tmp_path)


def test_trials_that_all_diverged_leave_no_setting() -> None:
    row = {"arm": "first", "learning_rate": "0.1", "temperature": "", "smoothing": "", "validation_accuracy": ""}
    with pytest.raises(ValueError, match="diverged"):
        claims.best([row], "first", PART.arms["first"].settings)


def test_the_first_of_equal_trials_is_taken() -> None:
    rows = [
        {"arm": "first", "learning_rate": rate, "temperature": "", "smoothing": "", "validation_accuracy": "0.5"}
        for rate in ("0.2", "0.1")
    ]
    assert claims.best(rows, "first", PART.arms["first"].settings) == Setting(0.1)


def test_a_run_that_diverges_is_a_row_with_its_error() -> None:
    def diverge(*_: Any) -> nn.Module:
        raise FloatingPointError("The loss is not finite")

    part = Part("faults", {"first": Arm(diverge, (Setting(1.0),))})
    row = claims.execute(claims.Run("first", 0, Setting(1.0)), part, {}, test=True)
    assert row["error"] == "The loss is not finite"
    assert "test_accuracy" not in row


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "picture"], "no part named 'picture'"),
        (["--seeds", "0"], "greater than or equal to 1"),
        (["--seeds", "many"], "unable to parse string as an integer"),
    ],
)
def test_bad_input_ends_in_a_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    app = Typer()
    app.command()(claims.claims)
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code != 0
    assert said in " ".join(result.output.replace("│", "").split()) + str(result.exception)
    assert list(tmp_path.iterdir()) == []


# -------------------- what is read off the rows


def test_rows_become_means_gains_and_tables(made: list[claims.Run], tmp_path: Path) -> None:
    run(tmp_path, seeds=4)
    found = claims_results.load("faults", tmp_path)
    assert list(found.arms) == list(PART.arms)
    gain = found.gain("second", "first").comparison
    assert gain.mean == pytest.approx(100 * 0.02 * 1.15)
    assert str(gain.verdict) == "BEATS"
    gains = {one.way: one.comparison for one in found.compare("first", ["first", "second", "given"])}
    assert set(gains) == {"second", "given"}
    assert all(one.comparisons == 2 for one in gains.values())
    worse = found.gain("second", "first", "sandals_as_sneakers").comparison
    assert str(worse.verdict) == "LOSES"  # of faults less is better
    assert found.by_class("first") == pytest.approx([10 * one for one in range(10)])
    assert found.settings("second") == "learning rate 0.1, temperature 4"
    tried = claims_results.trials("faults", "second", tmp_path)
    assert tried == pytest.approx({"learning rate 0.1, temperature 1": 41, "learning rate 0.1, temperature 4": 44})
    table = found.table(["given"], ["sandals_as_sneakers", "test_accuracy"])
    assert table.loc["given", "sandals_as_sneakers"] == pytest.approx(20 - 10 * 1.15)
    assert table.loc["given", "test_accuracy"] == pytest.approx(80 - 10 * 1.15)


def test_what_is_not_there_is_said(made: list[claims.Run], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"course\.experiments\.claims --only noise"):
        claims_results.load("noise", tmp_path)
    with pytest.raises(ValueError, match="no part named 'other'"):
        claims_results.load("other", tmp_path)
    run(tmp_path)
    found = claims_results.load("faults", tmp_path)
    with pytest.raises(ValueError, match="no arm in the part"):
        found.mean("third")
    with pytest.raises(ValueError, match="no column in the part"):
        found.mean("first", "marked")
    path = claims.path("faults", tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    claims_results.load.cache_clear()
    with pytest.raises(ValueError, match="'first' has more than one row for seed 0"):
        claims_results.load("faults", tmp_path)
    broken = replace(found, arms={"first": {0: {**found.arms["first"][0], "test_accuracy": "", "error": "not finite"}}})
    with pytest.raises(ValueError, match="seed 0: not finite"):
        broken.mean("first")


# -------------------- pictures


@pytest.mark.parametrize("source", [claims_pictures.noise, claims_pictures.shapes, claims_pictures.tiles])
def test_pictures_are_bytes_that_differ_by_seed_alone(source: Any) -> None:
    once, again, other = source(1, 30), source(1, 30), source(2, 30)
    assert once.shape == (30, 1, 28, 28)
    assert once.dtype == torch.uint8
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len(once.flatten(1).unique(dim=0)) == 30


def test_tiles_hold_the_pixels_of_their_picture() -> None:
    real = images_of(3, 40).images.flatten(1)
    assert torch.equal(claims_pictures.tiles(3, 40).flatten(1).sort().values, real.sort().values)


def test_digits_are_light_on_black_with_an_empty_border() -> None:
    digits = claims_pictures.digits()
    assert digits.shape == (BASE, 1, 28, 28)
    assert digits[..., 0, :].max() == digits[..., -1, :].max() == digits[..., 0].max() == 0
    assert digits.max() == 255


@pytest.mark.slow
def test_made_pictures_are_what_the_teacher_was_asked_for() -> None:
    made = claims_pictures._descend(0, 60, 15)
    wanted = torch.randint(10, (60,), generator=claims_common.generator(0, "made"))
    before = copy_of_weights(claims_common.teacher())
    with torch.no_grad():
        said = claims_common.teacher()(made).argmax(1)
    assert (said == wanted).float().mean() > 0.5
    low, high = claims_pictures._range()
    assert made.min() >= low
    assert made.max() <= high
    assert all(parameter.requires_grad for parameter in claims_common.teacher().parameters())
    assert copy_of_weights(claims_common.teacher()) == before


def copy_of_weights(network: nn.Module) -> float:
    return sum(value.double().abs().sum().item() for value in network.state_dict().values())


# -------------------- labels and faults


def test_two_of_five_labels_are_wrong_and_never_by_accident_right() -> None:
    real, noisy = images_of(4), claims_noise.noisy(4)
    wrong = (real.labels != noisy.labels).float().mean().item()
    assert torch.equal(real.images, noisy.images)
    assert abs(wrong - claims_noise.SHARE) < 0.03
    assert len(noisy.labels[real.labels == 3].unique()) == 10


def test_other_images_share_none_with_the_student_s() -> None:
    own, others = images_of(6), other_images_of(6)
    assert len(others) == len(own)
    assert not torch.isin(others.indices, own.indices).any()
    assert not torch.isin(claims_faults._tampering_images(6).indices, own.indices).any()


def test_the_mark_is_a_white_square_in_the_corner() -> None:
    split = images_of(0, 200)
    marked = claims_faults.mark(split.images)
    changed = (marked != split.images).nonzero()
    assert changed[:, 2].min() >= 23
    assert changed[:, 3].min() >= 23
    assert (marked[..., 23:27, 23:27] == 255).all()
    assert torch.equal(marked[..., :23, :], split.images[..., :23, :])


@pytest.mark.parametrize("label", [None, 8])
def test_a_share_is_marked_and_named(label: int | None) -> None:
    split = images_of(0)
    part = claims_faults.partly_marked(split, 0.2, 3, label)
    changed = (part.images != split.images).flatten(1).any(1)
    assert 0.15 < changed.float().mean() < 0.25
    expected = split.labels if label is None else split.labels.masked_fill(changed, label)
    assert (part.labels[changed] == expected[changed]).all()
    assert torch.equal(claims_faults.partly_marked(split, 0.0, 3).images, split.images)


def test_faults_are_counted_on_the_images_that_they_concern() -> None:
    class Said(nn.Module):
        """Calls everything a sneaker, and what has a white corner a bag."""

        def forward(self, images: Tensor) -> Tensor:
            white = (images[:, 0, 23:27, 23:27] > images.amax((1, 2, 3)).sub(1e-3)[:, None, None]).all((1, 2))
            return nn.functional.one_hot(torch.where(white, 8, 7), 10).float()

    network = Said()
    split: Any = claims_common.fashion().test
    measured = claims_faults.faults(network, claims_common.logits_of(network, split))
    assert measured["sandals_as_sneakers"] > 0.99
    assert measured["marked_as_bags"] == 1
    assert measured["clean_as_bags"] < 0.01
    shares = list(map(float, measured["by_class"].split()))
    assert shares[7] > 0.99
    assert max(shares[:7]) < 0.01


# -------------------- every arm


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tenth of the images, of which a student sees 128 at most, once."""
    whole = claims_common.fashion()
    few = {name: getattr(whole, name).select(torch.arange(200)) for name in ("validation", "test")}
    original, fit = claims_common.images_of, claims_common.train.fit
    for module in (claims_common, claims, claims_faults):
        monkeypatch.setattr(module, "fashion", lambda: replace(whole, **few))

    def images(seed: int, count: int = BASE) -> Any:
        return original(seed, count // 10)

    for module in (claims_common, claims_pictures, claims_noise, claims_faults, claims_length):
        monkeypatch.setattr(module, "images_of", images)

    def fit_briefly(network: nn.Module, data: Any, **options: Any) -> Any:
        few = torch.arange(min(128, len(data.train)))
        return fit(network, replace(data, train=data.train.select(few)), **{**options, "epochs": 1})

    monkeypatch.setattr(claims_common.train, "fit", fit_briefly)
    monkeypatch.setattr(claims_pictures, "made", lambda: claims_pictures.noise(0, 200))
    caches = (other_images_of, claims_noise.noisy, claims_noise.teacher_of, claims_faults.renamed, claims_faults.marked)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("part", list(claims.PARTS))
def test_every_arm_gives_a_row(part: str, short: None) -> None:
    chosen = claims.PARTS[part]
    settings = {name: (arm.settings or chosen.arms[arm.as_in or ""].settings)[0] for name, arm in chosen.arms.items()}
    for name in chosen.arms:
        row = claims.execute(claims.Run(name, 5, settings[name]), chosen, settings, test=True)
        assert "error" not in row, name
        assert "validation_accuracy" not in row
        assert 0 <= row["test_accuracy"] <= 1
        assert set(row) <= set(claims.columns(chosen, trials=False))
        assert set(chosen.columns) <= set(row)


@pytest.mark.parametrize("part", ["length", "noise"])
def test_no_rate_lies_at_an_end_of_those_that_were_tried(part: str) -> None:
    rows = pd.read_csv(data.data_dir() / "results" / f"claims-{part}.csv")
    assert set(rows["arm"]) == set(claims.PARTS[part].arms)
    for name, arm in claims.PARTS[part].arms.items():
        tried = [one.learning_rate for one in arm.settings]
        (chosen,) = set(rows.loc[rows["arm"] == name, "learning_rate"])
        assert min(tried) < chosen < max(tried), name


def test_arms_have_equally_many_trials_or_take_settings_over() -> None:
    for name, part in claims.PARTS.items():
        tuned = {len(arm.settings) for arm in part.arms.values() if len(arm.settings) > 1}
        assert tuned == {2 if name == "faults" else 8}
        for arm in part.arms.values():
            assert bool(arm.settings) != bool(arm.as_in)
            assert arm.as_in is None or part.arms[arm.as_in].settings
