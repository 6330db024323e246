"""What lesson 16 accepts, refuses and states: its exercises, the table of claims, and other libraries' losses."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from course import article_claims, code_grading, notebooks, peers, plots
from course.article_claims import CLAIMS, VERDICTS, Claim
from course.detection import gains
from course.experiments import claims, claims_length, claims_results
from course.grading import Outcome, grade_question
from course.lessons import lesson16
from kdlib import measure, models
from kdlib.data import data_dir

RESULTS = data_dir() / "results"


# -------------------- the exercises


def by_indexing(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    places = (teacher != labels).nonzero()[:, 0]
    if len(places) == 0:
        return 0.0
    same = (student[places] == teacher[places]).sum() - (control[places] == teacher[places]).sum()
    return same.item() / len(places)


def by_counting(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    mistakes = mine = theirs = 0
    for one, other, said, truth in zip(*(x.tolist() for x in (student, control, teacher, labels)), strict=True):
        if said != truth:
            mistakes += 1
            mine += one == said
            theirs += other == said
    return (mine - theirs) / mistakes if mistakes else 0.0


def by_weights(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    wrong = (teacher != labels).double()
    gap = (student == teacher).double() - (control == teacher).double()
    return (gap * wrong).sum() / wrong.sum().clamp_min(1)


@pytest.mark.parametrize("answer", [by_indexing, by_counting, by_weights])
def test_right_answers_pass_however_they_are_written(answer: Callable[..., Any]) -> None:
    found = code_grading.grade_code(lesson16.INHERITED, answer)
    assert found.outcome is Outcome.CORRECT, found


@pytest.mark.parametrize("mistake", lesson16.INHERITED.mistakes, ids=lambda one: one.name)
def test_known_mistakes_are_named(mistake: Any) -> None:
    found = code_grading.grade_code(lesson16.INHERITED, mistake.function)
    assert found.outcome is Outcome.WRONG
    assert mistake.message in " ".join(str(found).split())


def unguarded(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    wrong = teacher != labels
    return ((student == teacher)[wrong].double().mean() - (control == teacher)[wrong].double().mean()).item()


def never_negative(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    return max(lesson16.inherited(student, control, teacher, labels), 0.0)


def without_a_sign(student: Tensor, control: Tensor, teacher: Tensor, labels: Tensor) -> float:
    return abs(lesson16.inherited(student, control, teacher, labels))


@pytest.mark.parametrize(
    "answer",
    [unguarded, never_negative, without_a_sign, lambda *_: 0.0, lambda *_: None, lambda student, *_: student],
)
def test_other_wrong_answers_are_no_right_ones(answer: Callable[..., Any]) -> None:
    assert code_grading.grade_code(lesson16.INHERITED, answer).outcome is not Outcome.CORRECT


@pytest.mark.parametrize(
    ("accuracy", "letter"), [(0, "a"), (24.9, "a"), (25, "b"), (54, "b"), (55, "c"), (74.9, "c"), (75, "d"), (100, "d")]
)
def test_the_prediction_is_judged_by_what_was_measured(accuracy: float, letter: str) -> None:
    for answer in "abcd":
        outcome = grade_question(lesson16.SHAPES, answer, accuracy).outcome
        assert outcome is (Outcome.CORRECT if answer == letter else Outcome.WRONG)


@pytest.mark.parametrize("nonsense", [..., -1, 101, float("nan"), "much"])
def test_what_is_no_accuracy_is_not_judged(nonsense: Any) -> None:
    assert grade_question(lesson16.SHAPES, "b", nonsense).outcome is Outcome.ERROR


def test_the_bill_is_that_of_the_networks() -> None:
    shape = {"num_classes": 10, "in_channels": 1, "image_size": 28}
    student, teacher = (
        measure.macs(models.build(name, **shape), (1, 28, 28)) for name in ("article-student", "resnet8")
    )
    assert round(student / 1e6, 1) == 1.0
    assert round(teacher / 1e6, 1) == 9.3
    for right in (9.3 / (3 * 1.0), teacher / (3 * student), 3, 3.12):
        assert grade_question(lesson16.BILL, right).outcome is Outcome.CORRECT
    for wrong in (9.3, 27.9, 1 / 3.1, 4.65, 1, 0, 31):
        assert grade_question(lesson16.BILL, wrong).outcome is Outcome.WRONG
    assert "multiplied" in grade_question(lesson16.BILL, 9.3 * 3).text


def test_the_question_on_the_figure_has_one_answer() -> None:
    outcomes = [grade_question(lesson16.ROWS, letter).outcome for letter in "abcd"]
    assert outcomes == [Outcome.WRONG, Outcome.CORRECT, Outcome.WRONG, Outcome.WRONG]


# -------------------- the table of claims


def test_every_claim_names_lessons_and_rows_that_are_there() -> None:
    for claim in CLAIMS:
        assert claim.verdict in VERDICTS
        for number in claim.lessons:
            assert number == "16" or notebooks.find(number).is_file(), claim.claim
        for name in claim.rows:
            assert (RESULTS / f"{name}.csv").is_file(), name
        assert (claim.verdict == article_claims.UNTESTED) == (not claim.lessons)
    assert len({claim.claim for claim in CLAIMS}) == len(CLAIMS)
    assert {claim.verdict for claim in CLAIMS} == set(VERDICTS)


@pytest.mark.parametrize("kind", ["diverged", "not run"])
def test_a_detector_of_which_a_seed_is_missing_has_no_verdict(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To judge by the other seeds would be to choose them."""
    (claim,) = [claim for claim in CLAIMS if any(name.startswith("detection") for name in claim.rows)]
    rows = gains.read()
    assert claim.found()
    lost = next(row for row in rows if row["method"] == "features")
    changed = [row for row in rows if row is not lost]
    changed += [lost | dict.fromkeys(gains.METRICS, "")] if kind == "diverged" else []
    monkeypatch.setattr(gains, "read", lambda: changed)
    with pytest.raises(ValueError, match="features"):
        claim.found()


@pytest.mark.slow
def test_the_table_in_the_lesson_is_what_the_rows_say_now() -> None:
    stored = [
        output.data
        for cell in cells()
        for output in cell.get("outputs", [])
        if "text/markdown" in output.get("data", {})
    ]
    (shown,) = [data["text/markdown"] for data in stored if "| claim |" in data["text/markdown"]]
    assert shown == article_claims.table()._repr_markdown_()


def cells() -> list[Any]:
    return notebooks.read(notebooks.find("16")).cells


def accuracies(name: str, **wanted: str) -> dict[int, float]:
    """Test accuracies by seed, read without the course's readers."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]
    return {int(row["seed"]): float(row["test_accuracy"]) for row in rows}


def found(text: str) -> str:
    (claim,) = [one for one in CLAIMS if text in one.claim]
    return claim.found()


def test_numbers_of_the_study_agree_with_the_rows() -> None:
    main = "methods-resnet8-resnet20-fashion-10000"
    own, large = (accuracies(main, method=method) for method in ("own-size", "kd"))
    gain = 100 * statistics.mean(own[seed] - large[seed] for seed in large)
    assert f"both of all images: {gain:+.1f} points" in found("A larger teacher")
    hard, *taught = (
        accuracies("teachers-students-2000", student="resnet8", teacher=name)
        for name in ("hard labels", "resnet8", "resnet14", "resnet20", "resnet32", "resnet56")
    )
    gains = [100 * statistics.mean(one[seed] - hard[seed] for seed in hard) for one in taught]
    assert ", ".join(f"{gain:+.1f}" for gain in gains) in found("A larger teacher")
    means = []
    for name in article_claims.METHODS:
        logits, labels = (accuracies(name, method=method) for method in ("kd", "hard"))
        means.append(100 * statistics.mean(logits[seed] - labels[seed] for seed in labels))
    assert f"means from {min(means):+.1f} to {max(means):+.1f} points" in found("A student with a teacher")


def test_numbers_of_the_experiments_on_claims_agree_with_the_rows() -> None:
    for part, arm in (("pictures", "drawn shapes"), ("noise", "teacher"), ("faults", "labels")):
        scores = accuracies(f"claims-{part}", arm=arm)
        shared = claims_results.load(part).values(arm)
        assert np.mean(list(shared.values())) == pytest.approx(100 * np.mean([scores[seed] for seed in shared]))
    shapes = 100 * statistics.mean(accuracies("claims-pictures", arm="drawn shapes").values())
    assert f"drawn shapes {shapes:.0f} %" in found("The data of the teacher")


def test_the_gain_at_sixteen_passes_is_larger_than_at_eight_and_not_shown_to_be_larger_than_at_four() -> None:
    length = claims_results.load("length")
    pairs = {n: [claims_length.name(way, n) for way in ("logits", "labels")] for n in claims_length.LENGTHS}
    eight, four = (length.gain_over_gain(pairs[16], pairs[n], comparisons=2).comparison for n in (8, 4))
    assert (eight.verdict, four.verdict) == ("BEATS", "INCONCLUSIVE")
    assert [round(value, 1) for value in (eight.mean, eight.low, eight.high)] == [1.6, 0.8, 2.4]
    assert [round(value, 1) for value in (four.mean, four.low, four.high)] == [1.1, -0.6, 2.9]
    gains = {n: length.gain(*pair).comparison.mean for n, pair in pairs.items()}
    assert eight.mean == pytest.approx(gains[16] - gains[8])
    assert "gain_over_gain(both[16], both[fewer], comparisons=2)" in "".join(cell.source for cell in cells())


@pytest.mark.parametrize(
    ("method", "word", "before"), [("kd", "INCONCLUSIVE", "(93.7): logits"), ("vid", "LOSES", ", VID")]
)
def test_a_more_accurate_teacher_is_compared_with_the_smaller_one_by_the_same_seeds(
    method: str, word: str, before: str
) -> None:
    found_of = article_claims.better_teacher(method)
    better, smaller = (accuracies(name, method=method) for name in (article_claims.BETTER, article_claims.MAIN))
    gain = 100 * statistics.mean(better[seed] - smaller[seed] for seed in better)
    assert (found_of.verdict, found_of.n, found_of.comparisons) == (word, 5, 8)
    assert found_of.mean == pytest.approx(gain)
    assert f"{before} {gain:+.1f} points" in found("A larger teacher").partition("right on 95.0")[2]


def test_the_sentence_on_larger_teachers_reads_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    family = replace(article_claims.better_teacher("kd"), comparisons=9)
    monkeypatch.setattr(article_claims, "better_teacher", lambda method: family)
    smaller = article_claims.main()
    monkeypatch.setattr(article_claims, "of_teacher", lambda results: 12.3 if results is smaller else 45.6)
    text = found("A larger teacher")
    assert "is right on 45.6 % against it (12.3): logits" in text
    assert text.endswith("each one of 9.")


def test_no_student_of_the_study_is_ahead_of_its_teacher() -> None:
    pairs = article_claims.best_against_teacher()
    assert len(pairs) == len(article_claims.BUDGETS)
    assert all(70 < student < teacher for student, teacher in pairs)


def long_trainings() -> dict[str, tuple[float, float]]:
    """Of each file with long runs by logits: the best method's mean accuracy, and the teacher's."""
    pairs = {}
    for path in sorted((RESULTS / "long").rglob("methods-*.csv")):
        name = path.relative_to(RESULTS).with_suffix("").as_posix()
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        taught = {row["method"] for row in rows} - {"hard"}
        if "kd" in taught:
            student = max(statistics.mean(accuracies(name, method=method).values()) for method in taught)
            pairs[name] = (student, float(rows[0]["teacher_accuracy"]))
    return pairs


def test_students_ahead_of_their_teachers_are_counted_at_every_length() -> None:
    pairs = long_trainings()
    assert "long/sixty-epochs/methods-resnet8-resnet20-fashion-55000" in pairs
    everywhere = [*article_claims.best_against_teacher(), *pairs.values()]
    ahead = sum(student > teacher for student, teacher in everywhere)
    (claim,) = [one for one in CLAIMS if "A student may beat its teacher" in one.claim]
    assert f"{ahead} of the study's {len(everywhere)} best students" in claim.found()
    assert set(pairs) <= set(claim.rows)
    nearest = max(pairs, key=lambda name: pairs[name][0] - pairs[name][1])
    assert nearest == "long/sixty-epochs/methods-resnet8-resnet20-fashion-55000"  # the one the sentence speaks of
    over = article_claims.over_its_teacher()
    assert over.mean == pytest.approx(100 * (pairs[nearest][0] - pairs[nearest][1]), abs=0.02)
    assert (over.n, over.comparisons, over.verdict) == (5, len(everywhere), "INCONCLUSIVE")
    assert f"{over.mean:+.1f} points ({over.low:+.1f} to {over.high:+.1f}), INCONCLUSIVE" in claim.found()


def test_gains_of_long_trainings_belong_to_the_first_claim() -> None:
    (claim,) = [one for one in CLAIMS if "A student with a teacher" in one.claim]
    for folder in ("long", "long/sixty-epochs"):
        name = f"{folder}/methods-resnet8-resnet20-fashion-55000"
        assert name in claim.rows
        logits, labels = (accuracies(name, method=method) for method in ("kd", "hard"))
        gain = 100 * statistics.mean(logits[seed] - labels[seed] for seed in labels)
        assert f"{gain:+.1f} points" in claim.found()
    assert "sixty" in claim.found()


def test_a_gain_of_few_seeds_has_no_verdict() -> None:
    for results, method in (
        (article_claims.long_runs("resnet18", "resnet50-fashion-v2", "adamw"), "kd"),
        (article_claims.main(), "kd"),
    ):
        words = article_claims.points(results.gain(method))
        assert (len(results.seeds) >= 5) == any(verdict in words for verdict in ("BEATS", "LOSES", "INCONCLUSIVE"))


def test_rows_of_the_table_are_of_one_line_and_four_cells() -> None:
    one = Claim("It works.", article_claims.HOLDS, lambda: "It did.", ("05",), article_claims.METHODS)
    text = article_claims.Table([one])._repr_markdown_().splitlines()[2]
    assert text.count(" | ") == 3
    assert "[lesson 05](05_how_do_logits_teach.ipynb); `methods-*`" in text
    assert repr(article_claims.Table([one])).startswith("1 claims: 1 holds")


# -------------------- figures and other libraries


def made_up(part: str) -> claims_results.ClaimResults:
    names = claims.PARTS[part].arms
    arms = {
        name: {seed: {"test_accuracy": str(0.5 + 0.02 * place + 0.001 * seed * (place % 3))} for seed in range(5)}
        for place, name in enumerate(names)
    }
    return claims_results.ClaimResults(part, arms)


def test_a_figure_shows_every_arm_and_says_it_in_words() -> None:
    results = made_up("pictures")
    figure = plots.claim_arms(results, "labels", ["noise", "real pictures"])
    plots.check_labels(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["labels", "noise", "real pictures"]
    assert "real pictures: 52.2 %, +2.20 (" in plots.claim_arms_alt(results, "labels", ["noise", "real pictures"])


def test_a_figure_of_lengths_has_a_line_for_each_way() -> None:
    ways = {claims_length.LABELS: plots.BASELINE, claims_length.LOGITS: plots.DISTILLED}
    figure = plots.claim_lengths(made_up("length"), ways, claims_length.LENGTHS)
    plots.check_labels(figure)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(ways)
    assert "labels: 50.0 % after 4" in plots.claim_lengths_alt(made_up("length"), ways, claims_length.LENGTHS)


def test_the_count_of_equal_losses_is_that_of_the_benchmark() -> None:
    table = peers.parity()
    text = (Path(peers.FILE).parent / "README.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    for library in peers.LIBRARIES:
        own = [line for line in lines if line.count("|") == 7 and line.split("|")[2].strip().startswith(library)]
        words = [line.split("|")[5].strip() for line in own]
        assert (words.count("equal"), words.count("different")) == tuple(table.loc[library])


def test_without_the_benchmark_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make bench-peers"):
        peers.read(tmp_path / "peers.json")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    claims_results.load.cache_clear()
    yield
    claims_results.load.cache_clear()
