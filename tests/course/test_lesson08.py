"""What the exercises of lesson 08 state, against the library and scipy; see also test_lessons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

from course import code_grading, notebooks, older_search
from course.experiments import layer_trials
from course.explorers.teacher_outputs import teacher_outputs
from course.grading import Outcome, grade_question
from course.lessons import lesson08
from course.specs import CodeSpec
from kdlib import data, losses, models, study, verdict
from kdlib.study.analysis import Results
from kdlib.study.experiment import CONTROL_TEACHER_SEED


def accuracies(seeds: int, seed: int) -> Tensor:
    return 84 + torch.randn(2, seeds, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("seeds", [2, 5, 30])
def test_the_interval_is_that_of_the_verdict_and_of_scipy(seeds: int) -> None:
    student, baseline = accuracies(seeds, seeds)
    found = verdict.compare(student.tolist(), baseline.tolist())
    assert lesson08.half_width(student, baseline) == pytest.approx((found.high - found.low) / 2)
    low, high = stats.ttest_rel(student, baseline).confidence_interval()
    assert lesson08.half_width(student, baseline) == pytest.approx((high - low) / 2)


ANSWERS: list[tuple[CodeSpec, Callable[..., Any]]] = [
    (lesson08.INTERVAL, lambda a, b: stats.sem(a - b) * stats.t(len(a) - 1).ppf(0.975)),
    (lesson08.INTERVAL, lambda a, b: (a - b).std() / math.sqrt(len(a)) * stats.t.isf(0.025, len(a) - 1)),
    (lesson08.PAYS, lambda c, t, s: -(-c // (t - s)) if t > s else float("inf")),
    (lesson08.PAYS, lambda c, t, s: math.inf if s >= t else math.ceil(c / (t - s))),
]


@pytest.mark.parametrize(("spec", "answer"), ANSWERS, ids=lambda one: getattr(one, "name", ""))
def test_other_right_answers_pass(spec: CodeSpec, answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(spec, answer)
    assert found.outcome is Outcome.CORRECT, found


def test_rounding_up_is_not_rounding_half_up() -> None:
    """Python rounds halves to the even number, so the half that is added shows only where the quotient is odd."""
    found = code_grading.grade_code(lesson08.PAYS, lambda c, t, s: round(c / (t - s) + 0.5) if t > s else math.inf)
    assert found.outcome is Outcome.WRONG


def test_the_first_whole_picture_that_pays() -> None:
    for training, teacher, student in ((1000, 30, 10), (1001, 30, 10), (7, 3, 2)):
        pictures = lesson08.pays_after(training, teacher, student)
        assert pictures * (teacher - student) >= training > (pictures - 1) * (teacher - student)
    assert lesson08.pays_after(1, 10, 10) == lesson08.pays_after(1, 10, 11) == math.inf


@pytest.mark.parametrize(("kind", "letter"), list(zip(lesson08.KINDS, "abcd", strict=True)))
def test_the_prediction_is_judged_by_the_largest_gain(kind: str, letter: str) -> None:
    gains = dict.fromkeys(lesson08.KINDS, -0.01) | {kind: 0.02}
    for answer in "abcd":
        outcome = grade_question(lesson08.AHEAD, answer, gains).outcome
        assert outcome is (Outcome.CORRECT if answer == letter else Outcome.WRONG)
    assert grade_question(lesson08.AHEAD, letter, ...).outcome is Outcome.ERROR
    assert grade_question(lesson08.AHEAD, letter, {"logits": 0.1}).outcome is Outcome.ERROR


def test_logarithms_of_probabilities_do_for_logits() -> None:
    """What the last exercise rests on: a teacher that gives probabilities can be softened afterwards."""
    student, teacher = (torch.randn(6, 10, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    by_logits = losses.kd(student, teacher, 4.0)
    torch.testing.assert_close(losses.kd(student, teacher.softmax(dim=1).log(), 4.0), by_logits)


def test_thirteen_seeds_halve_the_interval_of_five() -> None:
    width = {n: stats.t.ppf(0.975, n - 1) / math.sqrt(n) for n in (5, 12, 13)}
    assert width[13] <= width[5] / 2 < width[12]


def test_two_teachers_are_compared_seed_by_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """Not by two verdicts over hard labels. It rests on the same pictures, order and weights in both files."""
    wide = study.results("methods", student="resnet8", images=10_000)
    better = study.results("methods", student="resnet8", teacher="resnet50-fashion-v2", images=10_000)
    lines = run_cell("def hits(", capsys, wide=wide).splitlines()
    assert lines[: len(better.methods)] == [str(better.gain(name)) for name in better.methods]
    same = dict.fromkeys(("hard", "kd", "standardized", "kd+rkd"), "INCONCLUSIVE")
    words = same | dict.fromkeys(("vid", "similarity"), "LOSES")
    for name, word in words.items():
        ours = hits(better, name)
        theirs = {seed: hits(wide, name)[seed] for seed in ours}
        over = verdict.compare_samples(ours, theirs, comparisons=len(better.methods) + 1)
        assert over.verdict == word
        assert f"{name:15} {over}" in lines
    behind = [
        100 * np.mean([one.mean() for one in lost(better, wide, name).values()]) for name in ("vid", "similarity")
    ]
    assert f"VID loses {behind[0]:.1f} points to the ResNet-20's, similarity {behind[1]:.1f}" in prose()
    assert {better.gain(name).verdict for name in ("vid", "similarity")} == {"INCONCLUSIVE"}
    vid, similarity = (
        verdict.compare_samples(*(over_hard_labels(one, name, better.seeds) for one in (better, wide)))
        for name in ("vid", "similarity")
    )
    assert (vid.verdict, similarity.verdict) == ("LOSES", "INCONCLUSIVE")
    assert (
        f"VID has {-100 * vid.mean:.1f} less than with the ResNet-20 ({100 * vid.low:.1f} to {100 * vid.high:.2f}), "
        f"similarity {-100 * similarity.mean:.1f} less ({100 * similarity.low:.1f} to {100 * similarity.high:+.1f})"
    ) in prose()
    controls = better.gain("label-smoothing"), better.gain("shuffled")
    assert {gain.verdict for gain in controls} == {"INCONCLUSIVE"}
    first, second = (f"{100 * gain.mean:.1f}" for gain in controls)
    assert f"gain {first} and {second} over hard labels (INCONCLUSIVE)" in prose()
    gains = [over_hard_labels(one, "kd", better.seeds) for one in (better, wide)]
    there, further = 100 * np.mean([gain.mean() for gain in gains[1].values()]), verdict.compare_samples(*gains)
    assert further.verdict == "INCONCLUSIVE"
    assert f"is {100 * better.gain('kd').mean:.2f} here and {there:.2f} there, half a point of difference" in prose()
    assert f"({100 * further.low:+.1f} to {100 * further.high:+.1f})" in prose()


def lost(results: Results, to: Results, method: str) -> dict[int, np.ndarray]:
    """For each seed and test image: right by the other list, less right by this one."""
    return {seed: to.right(method)[seed].astype(float) - right for seed, right in results.right(method).items()}


def over_hard_labels(results: Results, method: str, seeds: Sequence[int]) -> dict[int, np.ndarray]:
    """For each seed and test image: right by the method, less right by hard labels."""
    return {seed: results.right(method)[seed].astype(float) - results.right("hard")[seed] for seed in seeds}


def test_with_the_same_settings_a_resnet50s_layers_are_followed_less_well_at_large_weights() -> None:
    """The trials that both lists have: what the lesson says of the search."""
    ends = []
    for method, strong_from, count in (("vid", 2.67, 4), ("similarity", 513, 7)):
        table = layer_trials.same_settings(method)
        strong = table["weight"] >= strong_from
        assert (strong.sum(), (~strong).sum()) == (count, 10 - count)
        ends.append([*table["ahead"][strong].agg(["min", "max"]), table["ahead"][~strong].max()])
    (low, high, vid), (lower, higher, similarity) = ends
    for sentence in (
        f"of VID the students of the ResNet-20 are ahead by {low:.1f} to {high:.1f} points",
        f"of similarity by {lower:.1f} to {higher:.0f}",
        f"at the smaller ones by less than {math.ceil(10 * vid) / 10} and {math.ceil(10 * similarity) / 10}",
    ):
        assert sentence in prose()


def test_the_settings_that_both_teachers_had_are_compared_by_the_mean_of_their_seeds() -> None:
    folder, names = data.data_dir() / "results", ["learning_rate", "weight_decay", "weight", "layers"]
    small, large = (
        pd.read_csv(folder / f"choose-resnet8-{teacher}-10000.csv").query("method == 'vid'").groupby(names)
        for teacher in layer_trials.TEACHERS.values()
    )
    accuracy = "validation_accuracy"
    sides = (one[accuracy].agg(["mean", "size"]) for one in (small, large))
    both = pd.merge(*sides, left_index=True, right_index=True, suffixes=("", " of the larger"))
    both = both.sort_index(level="weight")
    assert (both.filter(like="size") == 2).all().all()
    expected = 100 * (both["mean"] - both["mean of the larger"])
    assert layer_trials.same_settings("vid")["ahead"].tolist() == pytest.approx(expected.tolist())


def test_without_a_common_setting_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No settings were tried in all.*ResNet-20: .vid. in .*ResNet-50"):
        layer_trials.same_settings("vid", tmp_path)


def run_cell(beginning: str, capsys: pytest.CaptureFixture[str], **scope: Any) -> str:
    """What the cell of the lesson that begins so prints now."""
    cells = notebooks.read(notebooks.find("08")).cells
    (source,) = [cell.source for cell in cells if cell.source.startswith(beginning)]
    exec(source, {"study": study, "verdict": verdict, "teacher_outputs": teacher_outputs, **scope})
    return capsys.readouterr().out


def prose() -> str:
    return "\n".join(cell.source for cell in notebooks.read(notebooks.find("08")).cells if cell.cell_type == "markdown")


def test_which_methods_are_ahead_of_an_untrained_teacher_and_of_the_better_label_smoothing() -> None:
    wide = study.results("methods", student="resnet8", images=10_000, baseline="untrained")
    methods = [name for name in wide.methods if name != "hard" and wide.family(name) != "control"]
    ahead = {name for name in methods if wide.gain(name).verdict == verdict.Verdict.BEATS}
    assert set(methods) - ahead == {"standardized", "attention", "layer-correlation", "layer-information"}
    older = study.results("methods", student="resnet8", images=10_000, folder=older_search.folder())
    smoothed = older.score("label-smoothing").by_seed

    def against(name: str) -> verdict.Verdict:
        return verdict.compare(wide.score(name).by_seed, smoothed, comparisons=wide.comparisons).verdict

    assert {name for name in methods if against(name) == verdict.Verdict.BEATS} == ahead
    assert (against("hard"), against("untrained")) == (verdict.Verdict.LOSES, verdict.Verdict.INCONCLUSIVE)


def test_an_untrained_teacher_says_the_same_of_every_picture() -> None:
    config = dict(models.get_config(models.load("resnet20-fashion")))
    untrained = models.build(config.pop("architecture"), **config, seed=CONTROL_TEACHER_SEED).eval()
    pictures = data.normalized_images(data.load("fashion-mnist").validation.select(torch.arange(200)))
    with torch.no_grad():
        shares = untrained(pictures).softmax(1)
    assert (shares - 0.1).abs().max() < 0.04
    assert shares.std(0).max() < 0.005


def hits(of: Results, name: str) -> dict[int, np.ndarray]:
    """100 for each test image that is right, by seed: the lesson has it, too."""
    return {seed: 100.0 * right for seed, right in of.right(name).items()}


def percent(of: Results, name: str) -> dict[int, float]:
    """Test accuracy in per cent, by seed: the lesson has it, too."""
    return {seed: 100 * value for seed, value in of.score(name).by_seed.items()}


def test_what_sixty_epochs_leave_is_judged_over_seeds_and_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    folder = data.data_dir() / "results" / "long"
    long, sixty = (
        study.results("methods", student="resnet8", images=55_000, folder=one)
        for one in (folder, folder / "sixty-epochs")
    )
    outputs = teacher_outputs("test")
    of_teacher = (outputs.logits.argmax(dim=1) == outputs.labels).numpy()
    given = {"folder": folder, "long": long, "of_teacher": of_teacher, "hits": hits}
    printed = run_cell("sixty = study.results(", capsys, **given)
    after_twelve, after_sixty = (
        {seed: hits(one, "kd")[seed] - hits(one, "hard")[seed] for seed in one.seeds} for one in (long, sixty)
    )
    lost = verdict.compare_samples(after_twelve, after_sixty)
    assert str(lost) in printed
    assert f"{lost.mean:.2f} points of it ({lost.low:.2f} to {lost.high:.2f}" in prose()
    for name in ("hard", "kd", "kd+rkd", "vid"):
        its = dict.fromkeys(sixty.seeds, 100.0 * of_teacher)
        over = verdict.compare_samples(hits(sixty, name), its, comparisons=4)
        assert over.verdict == ("LOSES" if name == "vid" else "INCONCLUSIVE")
        assert str(over) in printed
    assert f"behind, by {-over.mean:.2f} points ({-over.high:.2f} to {-over.low:.2f})" in prose()  # VID, the last


def test_more_labels_are_judged_by_the_seeds_that_both_have(capsys: pytest.CaptureFixture[str]) -> None:
    counts = [study.results("methods", student="resnet8", images=count) for count in (1_000, 10_000, 55_000)]
    place = older_search.folder()  # with the settings of 55,000
    older = study.results("methods", student="resnet8", images=10_000, folder=place)
    few, many = (percent(one, "hard") for one in (older, counts[-1]))
    shared = sorted(set(few) & set(many))
    found = verdict.compare([many[seed] for seed in shared], [few[seed] for seed in shared])
    beginning = 'against = study.results("methods", student="resnet8", images=1_000'
    assert str(found) in run_cell(beginning, capsys, counts=counts, older=older, percent=percent)
    assert f"{found.mean:.1f} points ({found.low:.1f} to {found.high:.1f}" in prose()
