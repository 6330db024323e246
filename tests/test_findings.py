"""What finished rows say: numbers by hand, verdicts of the whole family, and nothing that drops out silently."""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import TEACHER, write

from kdlib import study, verdict
from kdlib.study import analysis
from kdlib.study.analysis import Results
from kdlib.study.method_specs import FAMILIES, METHODS
from kdlib.study.plans import CONTROLS, FULL, PLANS, RunConfig, TunedSettings
from kdlib.study.predictions import PredictionsFile
from kdlib.study.runs_file import RUN_COLUMNS, RunsFile, machine_info, read_frame, read_rows
from kdlib.verdict import Verdict

BY_HAND = {  # three seeds
    "hard": (0.880, 0.884, 0.882),
    "kd": (0.890, 0.896, 0.893),
    "shuffled": (0.870, 0.871, 0.875),
}


def by_hand(config: RunConfig, chance: random.Random) -> float:
    if config.method in BY_HAND:
        return BY_HAND[config.method][config.seed]
    return BY_HAND["hard"][config.seed] + 0.0001 * chance.random()


def load(folder: Path, **options: Any) -> Results:
    return study.results(folder=folder, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write(folder, ("full", "controls"))
    write(folder, "grid")
    write(folder, "missing-class")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return load(folder)


def changed(folder: Path, source: Path, change: Mapping[int, Mapping[str, str]], extra: int | None = None) -> Path:
    """A copy of a file with other values in some rows, and perhaps one row twice."""
    found = read_rows(source, RUN_COLUMNS)
    with RunsFile(folder / source.name, RUN_COLUMNS).open() as file:
        for number, row in enumerate(found):
            file.append(row | change.get(number, {}))
        if extra is not None:
            file.append(found[extra])
    return folder


# --- what is there -----------------------------------------------------------------------------------------------


def test_methods_come_by_family_and_not_in_the_order_of_the_file(results: Results) -> None:
    families = [FAMILIES.index(results.family(name)) for name in results.methods]
    assert families == sorted(families)
    assert set(results.methods) == {spec.name for spec in (*FULL, *CONTROLS)} - {"hard"}
    assert (results.seeds, results.images, results.comparisons) == ((0, 1, 2, 3, 4), 10_000, 19)
    assert results.title("kd+rkd") == "logits + RKD"
    assert results.problems == {}
    assert repr(results).endswith("100 runs, 20 methods, 5 seeds")


def test_the_order_of_the_rows_does_not_matter(folder: Path, results: Results) -> None:
    shuffled = Results("methods", tuple(reversed(results.rows)), "hard", results.sources)
    assert shuffled.methods == results.methods
    assert shuffled.gain("kd") == results.gain("kd")


def test_settings_are_those_that_were_run(tmp_path: Path) -> None:
    chosen = replace(METHODS["kd"].start, learning_rate=0.3, alpha=0.5)
    other = {spec.name: TunedSettings(spec.start, "elsewhere") for spec in FULL}
    write(tmp_path, tuned=other | {"kd": TunedSettings(chosen, "elsewhere")})
    assert load(tmp_path).settings("kd") == chosen
    line = load(tmp_path).settings_table(["kd"]).set_index("method").loc["logits (KD)"]
    assert (line["learning_rate"], line["alpha"], line["tuned on"]) == (0.3, 0.5, "elsewhere")
    assert len(load(tmp_path).settings_table()) == 17


# --- gains -------------------------------------------------------------------------------------------------------


def test_a_gain_by_hand(tmp_path: Path) -> None:
    write(tmp_path, ("full", "controls"), seeds=range(3), score=by_hand)
    found = load(tmp_path).gain("kd")
    assert list(found.by_seed.values()) == pytest.approx([0.010, 0.012, 0.011])
    assert (found.mean, found.std) == (pytest.approx(0.011), pytest.approx(0.001))
    alone = verdict.compare(BY_HAND["kd"], BY_HAND["hard"], comparisons=19)
    assert (found.low, found.high, found.verdict) == (
        pytest.approx(alone.low),
        pytest.approx(alone.high),
        alone.verdict,
    )
    assert load(tmp_path).gain("shuffled").mean == pytest.approx(-0.010)


def test_gains_are_those_of_the_verdicts_table(folder: Path, results: Results) -> None:
    table = verdict.table(read_frame(folder / "methods-*.csv")).set_index("method")
    for name in results.methods:
        found, line = results.gain(name), table.loc[name]
        assert (found.mean, found.low, found.high) == pytest.approx((line.gain, line.low, line.high))
        assert (found.verdict, found.comparisons) == (line.verdict, 19)


def test_a_table_of_a_few_methods_keeps_the_family_of_all(results: Results) -> None:
    few = results.table(["kd", "shuffled"])
    assert list(few["method"]) == ["hard labels", "logits (KD)", "logits of another image"]
    assert few["low"][1] == pytest.approx(100 * results.gain("kd").low)
    assert results.gain("kd").comparisons == 19
    assert "one of 19 intervals" in str(results.gain("kd"))
    assert len(results.table()) == 20
    assert (results.table()["problem"] == "").all()


def test_the_gap_recovered_by_hand(tmp_path: Path) -> None:
    write(tmp_path, seeds=range(3), score=by_hand)
    found = load(tmp_path).gap_recovered("kd")
    shares = [(k - h) / (TEACHER - h) for k, h in zip(BY_HAND["kd"], BY_HAND["hard"], strict=True)]
    assert list(found.by_seed.values()) == pytest.approx(shares)
    assert found.mean == pytest.approx(sum(shares) / 3)
    assert found.low < found.mean < found.high
    assert found.comparisons == 16


@pytest.fixture
def right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[np.random.Generator, int], tuple[Results, Any]]:
    """Makes ten seeds of hard labels and kd, and a teacher, on freshly drawn test images, and what each got right.

    An image is as hard for all as it is, and harder or easier for one of the three, whatever the seed.
    """
    write(tmp_path, seeds=range(10), skip=lambda config: config.method not in ("hard", "kd"))
    written = load(tmp_path)

    def draw(chance: np.random.Generator, num_images: int) -> tuple[Results, Any]:
        easy = chance.normal(size=num_images)
        own = {name: easy + level + 0.5 * chance.normal(size=num_images) for name, level in LEVELS.items()}

        def run(name: str) -> np.ndarray:
            return own[name] + 0.02 * chance.normal() + 0.15 * chance.normal(size=num_images) > 0

        answers = {name: {seed: run(name) for seed in range(10)} for name in ("hard", "kd")}
        teacher = run("teacher")
        rows = []
        for one in written.rows:
            scores = answers[one["method"]][int(one["seed"])].mean(), teacher.mean()
            rows.append(one | dict(zip(("test_accuracy", "teacher_accuracy"), map(str, scores), strict=True)))
        monkeypatch.setattr(Results, "right", lambda self, method: answers[method])
        return Results("methods", tuple(rows), "hard", written.sources), teacher

    return draw


LEVELS = {"hard": 1.2, "kd": 1.35, "teacher": 1.55}


def test_a_share_of_the_gap_is_judged_over_seeds_and_test_images(right: Any) -> None:
    """Its interval holds the share that many images would show as often as it says, and that of the seeds does not."""
    chance, deviation = np.random.default_rng(0), math.sqrt(1 + 0.5**2 + 0.15**2 + 0.02**2)
    hard, kd, teacher = (statistics.NormalDist().cdf(level / deviation) for level in LEVELS.values())
    held = {"seeds": 0, "seeds and test images": 0}
    for _ in range(200):
        results, of_teacher = right(chance, 1_000)
        for found in (results.gap_recovered("kd"), results.gap_recovered("kd", of_teacher)):
            assert found.mean == pytest.approx(results.gap_recovered("kd").mean)
            held[found.over] += found.low <= (kd - hard) / (teacher - hard) <= found.high
    assert held["seeds and test images"] >= 0.91 * 200
    assert held["seeds"] <= 0.6 * 200


def test_another_teacher_than_that_of_the_runs_is_refused(right: Any) -> None:
    results, of_teacher = right(np.random.default_rng(0), 1_000)
    with pytest.raises(ValueError, match="the shape .999,.; expected one value for each of the 1,000 test images"):
        results.gap_recovered("kd", of_teacher[1:])
    with pytest.raises(ValueError, match="has an accuracy of .* Give the answers of this teacher"):
        results.gap_recovered("kd", ~of_teacher)


def test_there_is_no_gap_where_the_teacher_is_not_ahead(tmp_path: Path) -> None:
    write(
        tmp_path,
        seeds=range(3),
        score=lambda config, chance: by_hand(config, chance) + (0.07 if config.seed == 1 else 0),
    )
    found = load(tmp_path).gap_recovered("kd")
    assert found.problem == "the teacher is not ahead of the baseline at seed 1"
    assert math.isnan(found.mean)
    assert found.verdict is None
    assert load(tmp_path).gain("kd").verdict is not None


def test_less_is_better_for_the_calibration_error(results: Results) -> None:
    found = results.gain("shuffled", "calibration_error")
    alike = verdict.compare(
        results.score("shuffled", "calibration_error").by_seed,
        results.score("hard", "calibration_error").by_seed,
        comparisons=19,
        better="lower",
    )
    assert (found.mean, found.verdict) == (pytest.approx(alike.mean), alike.verdict)


def test_a_score_has_an_interval_of_its_own_and_no_verdict(results: Results) -> None:
    found = results.score("kd")
    alone = verdict.compare(found.by_seed, dict.fromkeys(found.by_seed, 0.0))
    assert (found.low, found.high, found.verdict) == (alone.low, alone.high, None)
    assert str(found) == f"logits (KD): {found.format(signed=False)}"


def test_equal_seeds_give_no_verdict_in_favour(tmp_path: Path) -> None:
    write(tmp_path, score=lambda config, chance: 0.9 if config.method == "kd" else 0.88 + 0.001 * config.seed)
    found = load(tmp_path).gain("dist")  # every seed equals hard labels
    assert (found.mean, found.verdict) == (0.0, Verdict.INCONCLUSIVE)
    assert found.half_width == math.inf
    assert found.format() == "+0.00 (all seeds equal)"


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_gains_that_are_equal_but_for_rounding_give_no_verdict(tmp_path: Path, seeds: int) -> None:
    def score(config: RunConfig, chance: random.Random) -> float:
        return round(0.8989 + 0.0029 * config.seed + (0.0109 if config.method == "kd" else 0.0), 4)

    write(tmp_path, score=score, seeds=range(seeds))
    found = load(tmp_path).gain("kd")
    assert len(set(found.by_seed.values())) > 1  # differences of floats
    assert (found.verdict, found.half_width, found.format()) == (
        Verdict.INCONCLUSIVE,
        math.inf,
        "+1.09 (all seeds equal)",
    )


def test_costs_are_relative_to_hard_labels_seed_by_seed(results: Results) -> None:
    cost = results.cost("hint")
    hint, hard = ([float(row["seconds_per_epoch"]) for row in results.runs(m).values()] for m in ("hint", "hard"))
    ratios = sorted(own / base for own, base in zip(hint, hard, strict=True))
    assert cost.relative_time == pytest.approx(ratios[2])
    assert (cost.extra_parameters, cost.num_pairs) == (4096, 5)
    assert results.cost("hard").relative_time == 1
    assert results.cost("kd").extra_parameters == 0


def test_times_of_different_threads_are_not_compared(tmp_path: Path, folder: Path) -> None:
    path = next(folder.glob("methods-*.csv"))
    found = read_rows(path, RUN_COLUMNS)
    mine = [number for number, row in enumerate(found) if row["method"] == "kd"]
    some = load(changed(tmp_path / "a", path, {number: {"threads": "2"} for number in mine[:2]}))
    assert some.cost("kd").num_pairs == 3
    none = load(changed(tmp_path / "b", path, {number: {"threads": "2"} for number in mine})).cost("kd")
    assert none.num_pairs == 0
    assert math.isnan(none.relative_time)


def test_times_of_different_machines_are_not_compared(tmp_path: Path) -> None:
    path = write(tmp_path, "full")
    write(tmp_path, "controls")
    parts = (([1, 85], "A"), ([86, 100], "B"))
    first, second = ({"rows": span, "machine": {"processor": name}} for span, name in parts)
    path.with_suffix(".json").write_text(json.dumps({"sessions": [first, second]}))
    found = load(tmp_path)
    assert (found.cost("kd").num_pairs, found.cost("shuffled").num_pairs) == (5, 0)
    assert math.isnan(found.cost("shuffled").relative_time)
    assert found.cost("shuffled").seconds_per_epoch > 0
    path.with_suffix(".json").write_text(json.dumps({"sessions": [first | {"rows": [1, 100]}]}))
    assert load(tmp_path).cost("shuffled").num_pairs == 5


@pytest.mark.parametrize(("device", "pairs"), [("cuda, bfloat16", 0), ("cpu, bfloat16", 5)])
def test_times_of_different_gpus_are_not_compared(tmp_path: Path, device: str, pairs: int) -> None:
    path = write(tmp_path, "full")
    write(tmp_path, "controls")
    rows = read_rows(path, RUN_COLUMNS)
    changed(tmp_path / "a", path, {number: {"device": device} for number in range(len(rows))})
    machines = ([1, 85], "NVIDIA T4"), ([86, 100], "NVIDIA H100")
    sessions = [{"rows": span, "machine": {"processor": "A", "gpu": name}} for span, name in machines]
    (tmp_path / "a" / path.with_suffix(".json").name).write_text(json.dumps({"sessions": sessions}))
    found = load(tmp_path / "a")
    assert (found.cost("kd").num_pairs, found.cost("shuffled").num_pairs) == (5, pairs)


@pytest.mark.parametrize(
    ("device", "name"), [(None, "card None"), ("cpu", None), ("cuda:1", "card cuda:1")], ids=["any", "cpu", "second"]
)
def test_the_gpu_that_is_noted_is_the_one_that_was_used(
    monkeypatch: pytest.MonkeyPatch, device: str | None, name: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"card {device}")
    assert machine_info(None if device is None else torch.device(device))["gpu"] == name


def test_times_are_not_compared_when_a_removed_row_leaves_the_machine_unknown(tmp_path: Path) -> None:
    path = write(tmp_path, "full")
    seeds = [(row["method"], row["seed"]) for row in read_rows(path, RUN_COLUMNS)]
    assert seeds[0] == ("hard", "0")  # the row that goes
    first = seeds.index(("kd", "1")) + 1  # the first row of the second machine, to which hard labels do not belong
    spans = ([1, first - 1], "A"), ([first, 85], "B")
    sessions = [{"rows": span, "machine": {"processor": name}} for span, name in spans]
    path.with_suffix(".json").write_text(json.dumps({"sessions": sessions}))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))
    # In the place where kd of seed 1 stands now stood a row of the first machine, as hard labels of that seed are.
    assert load(tmp_path).cost("kd").num_pairs == 3
    path.with_suffix(".json").write_text(json.dumps({"sessions": [sessions[0] | {"rows": [1, 85]}]}))
    assert load(tmp_path).cost("kd").num_pairs == 4  # of five seeds; there was no other machine


def test_methods_that_were_tuned_otherwise_are_not_compared(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    found = read_rows(path, RUN_COLUMNS)
    mine = {number: {"tuned_on": "elsewhere"} for number, row in enumerate(found) if row["method"] == "kd"}
    with pytest.raises(ValueError, match="tuned on .*elsewhere"):
        load(changed(tmp_path / "b", path, mine))


# --- seeds that diverged or are missing --------------------------------------------------------------------------


def diverging(config: RunConfig, chance: random.Random) -> float | None:
    return None if (config.method, config.seed) == ("fsp", 2) else 0.88 + 0.01 * chance.random()


def test_a_diverged_seed_is_seen_and_leaves_no_mean(tmp_path: Path) -> None:
    write(tmp_path, score=diverging)
    results = load(tmp_path)
    problem = "seed 2 diverged (The loss is nan (not a number) at step 7.)"
    assert results.problems == {"fsp": problem}
    found = results.gain("fsp")
    assert (found.problem, found.verdict) == (problem, None)
    assert math.isnan(found.mean)
    assert [seed for seed, value in found.by_seed.items() if math.isnan(value)] == [2]
    assert problem in str(found)
    line = results.table().set_index("method").loc["flow between layers (FSP)"]
    assert (line["verdict"], line["problem"]) == ("none", problem)
    assert math.isnan(line["accuracy"])
    assert results.gain("kd").verdict is not None
    assert results.comparisons == 16  # it still counts


def test_a_missing_seed_is_seen_and_leaves_no_mean(tmp_path: Path) -> None:
    write(tmp_path, skip=lambda config: config.method == "kd" and config.seed in (1, 4))
    found = load(tmp_path).gain("kd")
    assert found.problem == "seed 1, 4 not run"
    assert list(found.by_seed) == [0, 1, 2, 3, 4]
    assert math.isnan(load(tmp_path).score("kd").mean)


def test_a_problem_of_the_baseline_is_one_of_every_method(tmp_path: Path) -> None:
    write(tmp_path, score=lambda config, chance: None if config.method == "hard" and config.seed == 0 else 0.9)
    results = load(tmp_path)
    assert results.gain("kd").problem.startswith("hard labels: seed 0 diverged")
    assert results.gap_recovered("kd").verdict is None
    assert results.score("kd").problem == ""


def test_a_run_that_diverged_at_its_last_step_has_no_validation_accuracy_either(tmp_path: Path, folder: Path) -> None:
    path = next(folder.glob("methods-*.csv"))
    results = load(changed(tmp_path, path, {0: {"test_accuracy": "", "error": "no finite logits"}}))
    assert math.isnan(results.score("hard", "validation_accuracy").by_seed[0])


def test_one_seed_is_no_evidence(tmp_path: Path) -> None:
    write(tmp_path, seeds=[0])
    found = load(tmp_path).gain("kd")
    assert found.problem == "one seed says nothing about spread"
    assert found.verdict is None


# --- the grid and the missing class ------------------------------------------------------------------------------


def test_the_temperature_that_was_tuned_is_no_column_of_the_grid(folder: Path, tmp_path: Path) -> None:
    """Where alpha is 1 it is in the rows, and does nothing."""
    whole = load(folder, kind="grid")
    found = {number: {"temperature": "3.85"} for number, row in enumerate(whole.rows) if row["method"] == "kd alpha=1"}
    changed(tmp_path, whole.sources[0], found)
    shutil.copy(whole.sources[1], tmp_path)
    grid = load(tmp_path, kind="grid")
    assert found
    assert (grid.grid, grid.temperatures) == (whole.grid, (1, 2, 4, 8, 16))


def test_the_grid_is_compared_with_the_tuned_hard_labels(folder: Path, results: Results) -> None:
    grid = load(folder, kind="grid")
    assert (len(grid.grid), grid.comparisons, grid.baseline) == (25, 21, "hard")
    assert {grid.grid[1.0, temperature] for temperature in grid.temperatures} == {"kd alpha=1"}  # T plays no part
    assert grid.alphas == (0, 0.1, 0.5, 0.9, 1)
    assert grid.temperatures == (1, 2, 4, 8, 16)
    assert grid.grid[0.1, 4.0] == "kd alpha=0.1 T=4"
    assert grid.title("kd alpha=0.1 T=4") == "logits (KD) alpha=0.1 T=4"
    expected = [
        grid.score("kd alpha=0.1 T=4").by_seed[seed] - results.score("hard").by_seed[seed] for seed in grid.seeds
    ]
    assert list(grid.gain("kd alpha=0.1 T=4").by_seed.values()) == pytest.approx(expected)
    assert len(grid.sources) == 2


def test_the_grid_may_be_compared_with_its_own_alpha_1(folder: Path) -> None:
    grid = load(folder, kind="grid", baseline="kd alpha=1")
    assert (len(grid.grid), grid.comparisons) == (25, 20)
    assert "hard" not in grid.methods


def test_more_seeds_of_the_methods_do_not_spoil_the_grid(tmp_path: Path) -> None:
    write(tmp_path, seeds=range(7))
    write(tmp_path, "grid", seeds=range(5))
    assert load(tmp_path, kind="grid").problems == {}


def test_answers_for_different_test_images_are_not_compared(tmp_path: Path) -> None:
    paths, answer = [write(tmp_path, plan, seeds=range(2)) for plan in ("full", "grid")], torch.tensor([0, 1])
    for path, images in zip(paths, ("some images", "others"), strict=True):
        for one in read_rows(path):
            PredictionsFile(path).add(one["fingerprint"], answer, answer, images)
    assert load(tmp_path).gain("kd").over == "seeds and test images"
    with pytest.raises(ValueError, match="grid-.* and .*methods-.* hold answers for different test images"):
        load(tmp_path, kind="grid").gain("kd alpha=1")


def test_the_grid_needs_the_methods_of_its_own_budget(tmp_path: Path) -> None:
    write(tmp_path, "grid")
    with pytest.raises(FileNotFoundError, match=r"methods-resnet8.*kdlib study full --student resnet8"):
        load(tmp_path, kind="grid")
    write(tmp_path, "full", epochs=3)
    with pytest.raises(ValueError, match="hold runs of epochs 15 and 3, which cannot be compared"):
        load(tmp_path, kind="grid")
    with pytest.raises(ValueError, match="holds no grid of alpha and T"):
        _ = load(tmp_path).grid


def test_the_class_that_was_excluded(folder: Path, tmp_path: Path) -> None:
    results = load(folder, kind="missing-class")
    found = results.gain("kd alpha=0 T=4", "excluded_class_accuracy")
    assert found.verdict is Verdict.BEATS
    assert results.score("hard", "excluded_class_accuracy").mean == 0
    path = next(folder.glob("missing-class-*.csv"))
    two = changed(tmp_path, path, {number: {"excluded_class": "9"} for number in range(10)})
    with pytest.raises(ValueError, match=r"excludes classes \[3, 9\]: name one of them, as excluded_class=3"):
        load(two, kind="missing-class")
    assert len(load(two, kind="missing-class", excluded_class=9).rows) == 10


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_missing_file_says_which_command_makes_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"kdlib study grid --student resnet8 --teacher t --images 500 --out {tmp_path}$"
    ):
        study.results("grid", images=500, teacher="t", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Of this kind there are: methods-resnet8-resnet20-fashion-10000\.csv"):
        load(folder, images=1_000)
    for excluded, option in ((0, " --left-out 0"), (None, "")):  # by itself the command excludes class 3
        with pytest.raises(FileNotFoundError, match=f"kdlib study missing-class .* --out {tmp_path}{option}$"):
            load(tmp_path, kind="missing-class", excluded_class=excluded)


def test_the_folder_of_the_data_is_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    (tmp_path / "results").symlink_to(folder)
    assert study.results().comparisons == 19


def test_unknown_names_are_answered_with_near_ones(folder: Path, results: Results) -> None:
    for ask, message in (
        (lambda: study.results("method", folder=folder), "Did you mean 'methods'"),
        (lambda: results.gain("attentoin"), "Did you mean 'attention'"),
        (lambda: results.gain("kd", "accuracy"), "no metric named 'accuracy'. Did you mean 'test_accuracy'"),
        (lambda: results.label("agrement"), "Did you mean 'agreement'"),
        (lambda: load(folder, baseline="hart"), "no baseline .* named 'hart'. Did you mean 'hard'"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


def test_a_file_without_the_quantity_is_not_a_zero(results: Results) -> None:
    with pytest.raises(ValueError, match=r"The runs of 'kd' in methods-.* hold no excluded_class_accuracy"):
        results.score("kd", "excluded_class_accuracy")


def test_a_file_without_runs_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, skip=lambda config: True)
    with pytest.raises(ValueError, match="no finished run yet. This goes on with it: kdlib study full") as caught:
        load(tmp_path)
    assert f"--out {tmp_path}" in str(caught.value)  # without it the command writes to data/results
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no column data, student.*not a file of finished runs"):
        load(tmp_path)


def test_a_file_without_hard_labels_is_refused(tmp_path: Path) -> None:
    write(tmp_path, skip=lambda config: config.method == "hard")
    with pytest.raises(ValueError, match="There is no baseline in .* named 'hard'"):
        load(tmp_path)


def test_rows_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path) -> None:
    path = next(folder.glob("methods-*.csv"))
    for name, change, message in (
        ("views", {0: {"views": "1"}}, "hold runs of views 1 and 5"),
        ("device", {0: {"device": "cpu, float32"}}, "hold runs of device cpu, bfloat16 and cpu, float32"),
        ("settings", {0: {"weight_decay": "0.1"}}, "hard was run with learning_rate 0.1, weight_decay 0.1 and with"),
    ):
        with pytest.raises(ValueError, match=message):
            load(changed(tmp_path / name, path, change))
    with pytest.raises(ValueError, match="several runs of hard, seed 0. Keep one of them"):
        load(changed(tmp_path / "twice", path, {}, extra=0))


def test_a_line_that_is_being_written_is_left_out(folder: Path, tmp_path: Path) -> None:
    path = next(folder.glob("methods-*.csv"))
    (tmp_path / path.name).write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="left out"):
        assert load(tmp_path).problem("own-size") == "seed 4 not run"


def test_asking_for_results_costs_nothing_before() -> None:
    code = "import sys; from kdlib import study; study.results; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_each_kind_of_results_is_made_by_a_plan_of_the_study(tmp_path: Path) -> None:
    assert {kind: PLANS[name].kind for kind, name in analysis.PLAN_OF_KIND.items()} == {
        kind: kind for kind in ("methods", "grid", "missing-class")
    }
    for kind, name in (("methods", "full"), ("grid", "grid"), ("missing-class", "missing-class")):
        with pytest.raises(FileNotFoundError, match=f"This makes it, in hours: kdlib study {name} --student"):
            load(tmp_path, kind=kind)
