"""The study on teachers: what is trained, chosen and repeated, what a row says, and what the rows say together."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from course import plots
from course.experiments import teacher_results, teacher_students, teachers
from course.experiments.teacher_results import REFERENCE, TITLES, TeacherResults, mean_tau
from course.experiments.teacher_students import HARD, RUN_COLUMNS, SMOOTHED, Budget, Experiment, Run
from course.experiments.teachers import TEACHER_COLUMNS, TEACHERS, TRAININGS
from kdlib import models
from kdlib.data import DataModule, data_dir
from kdlib.search.task import pack, unpack
from kdlib.study.runs_file import RunsFile, read_rows
from kdlib.teachers import FrozenTeacher
from kdlib.verdict import Verdict

# --- invented rows

GAINS = {name: place / 400 for place, name in enumerate(TEACHERS)}  # the more, the later in TEACHERS
SEEDS = 5


def write_teachers(folder: Path) -> None:
    """A row for each teacher: validation accuracy grows with the invented gain, confidence falls."""
    file = RunsFile(teachers.teachers_path(folder), TEACHER_COLUMNS, log=lambda text: None)
    with file.open():
        for place, (name, one) in enumerate(TEACHERS.items()):
            file.append(
                {
                    **{"data": "fashion-mnist", "teacher": name, "kind": one.kind, "images": 55_000, "epochs": 2},
                    **{"parameters": 78_000 * (1 + place % 4), "macs": 9_000_000},
                    **{"validation_accuracy": 0.8 + place / 100, "confidence": 0.95 - place / 100},
                    **{"calibration_error": 0.01 + (place % 3) / 100},
                    **{"entropy": 1.5 + place / 10, "fitted_temperature": 1.2, "calibrated_error": 0.01},
                    **{"validation_loss": 0.2, "seconds": 1.0},
                }
            )  # fmt: skip


def write_students(folder: Path, students: tuple[str, ...] = ("resnet8", "article-student")) -> None:
    """Five seeds of hard labels and of each teacher; ResNet-8 was run with half of the teachers."""
    generator = np.random.default_rng(0)
    hardness = generator.random(teacher_results.TEST_IMAGES)
    budget = Budget()
    file = RunsFile(budget.path("teachers-students", folder), RUN_COLUMNS, log=lambda text: None)
    with file.open():
        for student in students:
            few = list(TEACHERS)[:6] if student == "resnet8" else list(TEACHERS)
            for teacher in (HARD, *few):
                for seed in range(SEEDS):
                    skill = 0.82 + GAINS.get(teacher, 0) + 0.004 * (seed % 3) + 0.003 * generator.standard_normal()
                    right = hardness + 0.05 * generator.standard_normal(len(hardness)) < skill
                    file.append(
                        {
                            **budget.columns(),
                            **{"student": student, "teacher": teacher, "seed": seed, "learning_rate": 0.1},
                            **({} if teacher == HARD else {"temperature": 4.0, "alpha": 0.1}),
                            **{"test_accuracy": float(right.mean()), "validation_accuracy": 0.8},
                            **{"right": pack(torch.from_numpy(right)), "seconds": 1.0},
                        }
                    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> TeacherResults:
    folder = tmp_path_factory.mktemp("teachers")
    write_teachers(folder)
    write_students(folder)
    return teacher_results.load(folder)


# --- the rows of students, without training


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, fashion: DataModule) -> list[Run]:
    """The runs that would have been trained; each answers with an invented row at once."""
    runs: list[Run] = []

    def execute(run: Run, budget: Budget, fashion: DataModule, folder: Path, *, test: bool) -> dict[str, Any]:
        runs.append(run)
        row = budget.columns() | vars(run) | {"seconds": 1.0}
        if test:
            return row | {"test_accuracy": 0.9}
        rates = {0.01: 0.8, 0.03: 0.85, 0.1: 0.85, 0.3: 0.8}
        temperatures = {None: 0.0, 1.0: 0.01, 2.0: 0.01, 4.0: 0.02, 8.0: 0.0}
        softened = {None: 0.0, 0.1: 0.0, 0.2: 0.01, 0.4: 0.02, 0.8: 0.01}[run.smoothing]
        return row | {"validation_accuracy": rates[run.learning_rate] + temperatures[run.temperature] + softened}

    monkeypatch.setattr(teacher_students, "execute", execute)
    monkeypatch.setattr(teacher_students.data, "load", lambda name: fashion)
    return runs


def run(folder: Path, names: list[str], seeds: int = 2, images: int = 100) -> list[dict[str, str]]:
    experiment = Experiment(Budget(images), folder, folder / "networks")
    return experiment.run(names, ["article-student"], seeds, "the command", log=lambda text: None)


def test_hard_labels_choose_the_rate_and_each_teacher_its_temperature(made: list[Run], tmp_path: Path) -> None:
    rows = run(tmp_path, ["resnet20-fashion", "ensemble"])
    trials = [one for one in made if one.seed == teacher_students.TUNING_SEED]
    tried = [(one.teacher, one.learning_rate, one.temperature) for one in trials]
    assert tried[:4] == [(HARD, rate, None) for rate in (0.01, 0.03, 0.1, 0.3)]
    assert tried[4:] == [
        (name, 0.03, t) for name in ("resnet20-fashion", "ensemble") for t in (1.0, 2.0, 4.0, 8.0)
    ]  # of equals, smaller
    chosen = {(row["teacher"], row["learning_rate"], row["temperature"], row["alpha"]) for row in rows}
    assert chosen == {
        (HARD, "0.03", "", ""),
        *((name, "0.03", "4.0", "0.1") for name in ("resnet20-fashion", "ensemble")),
    }
    assert sorted(row["seed"] for row in rows) == ["0"] * 3 + ["1"] * 3
    assert not any("test" in column or column == "right" for column in teacher_students.TRIAL_COLUMNS)


def test_label_smoothing_has_no_teacher_and_chooses_how_much(made: list[Run], tmp_path: Path) -> None:
    rows = run(tmp_path, [SMOOTHED])
    tried = [one for one in made if one.teacher == SMOOTHED and one.seed == teacher_students.TUNING_SEED]
    assert [one.smoothing for one in tried] == [0.1, 0.2, 0.4, 0.8]
    assert {one.temperature for one in tried} == {None}
    chosen = [row for row in rows if row["teacher"] == SMOOTHED]
    assert [(row["seed"], row["smoothing"], row["learning_rate"]) for row in chosen] == [
        ("0", "0.4", "0.03"),
        ("1", "0.4", "0.03"),
    ]


def test_a_teachers_trials_at_an_earlier_rate_do_not_choose(made: list[Run], tmp_path: Path) -> None:
    run(tmp_path, ["ensemble"])
    path = Budget(100).path("choose-teachers-students", tmp_path)
    lines = path.read_text().replace(",0.85", ",0.99").splitlines(keepends=True)  # hard labels at 0.03, and at 0.1
    path.write_text("".join(line for line in lines if ",0.03,,," not in line))  # made anew, and now behind
    rows = run(tmp_path, ["ensemble"])
    assert {(row["teacher"], row["learning_rate"]) for row in rows[-4:]} == {(HARD, "0.1"), ("ensemble", "0.1")}


def test_a_seed_that_is_there_with_two_settings_is_refused(tmp_path: Path) -> None:
    write_teachers(tmp_path)
    write_students(tmp_path, ("article-student",))
    path = Budget().path("teachers-students", tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1].replace(",4.0,", ",2.0,")]))
    with pytest.raises(ValueError, match="has more than one row for seed"):
        teacher_results.load(tmp_path)


def test_what_is_finished_is_not_repeated(made: list[Run], tmp_path: Path) -> None:
    run(tmp_path, ["resnet8"], seeds=1)
    made.clear()
    rows = run(tmp_path, ["resnet8", "ensemble"], seeds=2)
    assert [(one.teacher, one.seed) for one in made if one.seed < 1000] == [
        *((HARD, 1), ("resnet8", 1)),
        *(("ensemble", 0), ("ensemble", 1)),
    ]
    assert len(rows) == 6
    facts = json.loads((tmp_path / "teachers-students-100.json").read_text())
    assert facts["sessions"][0]["command"] == "the command"


def test_a_line_that_was_being_written_when_it_was_killed_is_repeated(made: list[Run], tmp_path: Path) -> None:
    run(tmp_path, ["resnet8"])
    path = tmp_path / "teachers-students-100.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    made.clear()
    run(tmp_path, ["resnet8"])
    assert [(one.teacher, one.seed) for one in made] == [("resnet8", 1)]
    assert path.read_bytes() == whole


def test_other_budgets_and_unknown_names_are_refused(made: list[Run], tmp_path: Path) -> None:
    run(tmp_path, ["resnet8"])
    path = tmp_path / "teachers-students-100.csv"
    path.write_text(path.read_text().replace("fashion-mnist,100,8", "fashion-mnist,100,9"))
    with pytest.raises(ValueError, match="epochs 9: runs in one file share one budget"):
        run(tmp_path, ["resnet8"])
    with pytest.raises(ValueError, match="resnet200"):
        run(tmp_path, ["resnet200"])
    with pytest.raises(ValueError, match="student"):
        Experiment(Budget(), tmp_path, tmp_path).run([], ["resnet9"], 1, "the command")


def test_trials_that_all_diverged_leave_no_setting() -> None:
    row = {"student": "resnet8", "teacher": HARD, "learning_rate": "0.1", "temperature": "", "validation_accuracy": ""}
    with pytest.raises(ValueError, match="diverged"):
        teacher_students.best([row], [Run("resnet8", HARD, teacher_students.TUNING_SEED, 0.1)])


# --- networks


@pytest.fixture
def few(fashion: DataModule, monkeypatch: pytest.MonkeyPatch) -> DataModule:
    some = {name: getattr(fashion, name).select(torch.arange(160)) for name in ("train", "validation", "test")}
    small = replace(fashion, **some)
    for module in (teachers, teacher_students):
        monkeypatch.setattr(module.data, "load", lambda name: small)
    teacher_students._network.cache_clear()
    yield small
    teacher_students._network.cache_clear()


@pytest.mark.slow
def test_a_teacher_leaves_its_snapshots_and_goes_on_where_it_was_stopped(
    few: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRAININGS, "resnet8", replace(TRAININGS["resnet8"], snapshots=(1, 2)))
    teachers.train_network("resnet8", few, tmp_path, epochs=3)
    found = [
        models.load(teachers.path_of(name, tmp_path)) for name in ("resnet8, epoch 1", "resnet8, epoch 2", "resnet8")
    ]
    weights = [one.fc.weight for one in found]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    monkeypatch.setattr(teachers.train, "fit", lambda *a, **k: pytest.fail("it was trained again"))
    teachers.train_network("resnet8", few, tmp_path, epochs=3)
    monkeypatch.undo()

    class Stopped(Exception):
        pass

    other, fit = tmp_path / "other", teachers.train.fit

    def stop(epoch: int, model: torch.nn.Module) -> None:
        if epoch == 2:
            raise Stopped

    monkeypatch.setitem(TRAININGS, "resnet8", replace(TRAININGS["resnet8"], snapshots=(1, 2)))
    with monkeypatch.context() as patch:
        patch.setattr(teachers.train, "fit", lambda *a, **k: fit(*a, **{**k, "on_epoch_end": stop}))
        with pytest.raises(Stopped):
            teachers.train_network("resnet8", few, other, epochs=3)
    teachers.train_network("resnet8", few, other, epochs=3)
    assert torch.equal(models.load(teachers.path_of("resnet8", other)).fc.weight, weights[2])


@pytest.mark.slow
def test_a_training_of_one_epoch_leaves_its_snapshot(
    few: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRAININGS, "resnet8", replace(TRAININGS["resnet8"], snapshots=(1,)))
    teachers.train_network("resnet8", few, tmp_path, epochs=1)
    snapshot, final = (models.load(teachers.path_of(name, tmp_path)) for name in ("resnet8, epoch 1", "resnet8"))
    assert torch.equal(snapshot.fc.weight, final.fc.weight)


@pytest.mark.slow
def test_an_assistant_learns_from_its_teacher(few: DataModule, tmp_path: Path) -> None:
    teacher = models.build("resnet32", num_classes=10, in_channels=1, seed=0)
    models.save(teacher, teachers.path_of("resnet32", tmp_path), half=True)
    teachers.train_network("resnet8 of resnet32", few, tmp_path, epochs=1)
    teachers.train_network("resnet8", few, tmp_path, epochs=1)
    plain, assistant = (models.load(teachers.path_of(name, tmp_path)) for name in ("resnet8", "resnet8 of resnet32"))
    wanted = teachers.train.evaluate(teacher, few.train).logits.softmax(1)
    far = [
        float((teachers.train.evaluate(one, few.train).logits.softmax(1) - wanted).abs().mean())
        for one in (assistant, plain)
    ]
    assert far[0] < far[1]


@pytest.mark.slow
def test_rows_of_teachers_say_what_they_are(few: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("resnet8", "resnet8, epoch 1"):
        model = models.build("resnet8", num_classes=10, in_channels=1, seed=0)
        models.save(model, teachers.path_of(name, tmp_path), half=True)
    trio = replace(TEACHERS["ensemble"], networks=("resnet8", "resnet8-fashion"))
    monkeypatch.setitem(TEACHERS, "ensemble", trio)
    names = ["resnet8-fashion", "ensemble", "resnet8"]
    rows = teachers.run_teachers(names, 2, tmp_path, tmp_path, "the command", log=lambda text: None)
    shipped, ensemble, plain = rows
    assert [row["epochs"] for row in rows] == ["", "", "2"]
    assert int(ensemble["parameters"]) == int(plain["parameters"]) + int(shipped["parameters"]) == 2 * 77_754
    assert float(ensemble["macs"]) == 2 * float(plain["macs"])
    assert float(plain["entropy"]) <= math.log(10) + 1e-6
    assert float(shipped["validation_accuracy"]) > 0.85 > float(plain["validation_accuracy"])
    assert not any("test" in name for name in shipped)  # a teacher is chosen without the test set
    assert len({row["fingerprint"] for row in rows}) == 3
    monkeypatch.setattr(teachers, "row_of", lambda *a: pytest.fail("it was measured again"))
    assert teachers.run_teachers(names, 2, tmp_path, tmp_path, "the command") == rows
    with pytest.raises(ValueError, match="holds teachers of 2 epochs, not 4"):
        teachers.run_teachers(names, 4, tmp_path, tmp_path, "the command")


def test_a_calibrated_teacher_gives_the_same_answers_less_surely(few: DataModule, tmp_path: Path) -> None:
    plain, calibrated = (
        teachers.load_teacher(TEACHERS[name], few, tmp_path)
        for name in ("resnet20-fashion", "resnet20-fashion calibrated")
    )
    images = next(few.test.iter_batches(50)).images
    with torch.no_grad():
        first, second = plain(images), calibrated(images)
    assert isinstance(calibrated, teachers.Calibrated)
    torch.testing.assert_close(second * calibrated.temperature, first)
    assert not calibrated.training


def test_the_entropy_of_answers_lies_between_a_certain_one_and_none() -> None:
    certain, none = torch.eye(10) * 1000, torch.zeros(3, 10)
    assert teachers.entropy(certain, 1.0) == pytest.approx(0, abs=1e-6)
    assert teachers.entropy(none, 4.0) == pytest.approx(math.log(10))
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)) * 5
    assert teachers.entropy(logits, 1.0) < teachers.entropy(logits, 4.0)


@pytest.mark.slow
def test_a_student_reads_the_test_set_only_in_a_run_and_its_teacher_once(few: DataModule, tmp_path: Path) -> None:
    budget = Budget(images=100, epochs=2, views=2)
    one = Run("article-student", "resnet8-fashion", 0, 0.1, 4.0, 0.1)
    trial = teacher_students.execute(one, budget, few, tmp_path, test=False)
    assert not {"test_accuracy", "right"} & trial.keys()
    (stored,) = (tmp_path / "answers").iterdir()
    before = (stored / "logits.npy").stat().st_mtime_ns
    row = teacher_students.execute(one, budget, few, tmp_path, test=True)
    assert (stored / "logits.npy").stat().st_mtime_ns == before
    assert row["validation_accuracy"] == trial["validation_accuracy"]
    assert unpack(row["right"], len(few.test)).mean() == pytest.approx(row["test_accuracy"])
    hard = teacher_students.execute(
        replace(one, teacher=HARD, temperature=None, alpha=None), budget, few, tmp_path, test=True
    )
    assert hard["right"] != row["right"]


# --- what the rows say together


def shipped(network: str) -> Path:
    return data_dir() / f"{network}.safetensors"


def test_every_teacher_has_a_title_and_only_they() -> None:
    assert TITLES.keys() == {HARD, SMOOTHED, *TEACHERS}
    assert {one.training for one in TEACHERS.values() if one.training} == TRAININGS.keys()
    asked = {name for _, *both in teacher_results.QUESTIONS for name in both}
    assert asked < TEACHERS.keys()
    assert {one.kind for one in TEACHERS.values()} == plots.KINDS.keys()


def test_what_is_shipped_can_be_loaded_as_a_teacher() -> None:
    missing = [n for one in TEACHERS.values() if not one.training for n in one.networks if not shipped(n).is_file()]
    assert missing == []


def test_gains_are_paired_one_family_and_sorted(results: TeacherResults) -> None:
    gains = results.gains("article-student")
    assert {gain.arm.teacher for gain in gains[:3]} <= set(list(TEACHERS)[-5:])
    assert [gain.comparison.mean for gain in gains] == sorted((gain.comparison.mean for gain in gains), reverse=True)
    assert {gain.comparison.comparisons for gain in gains} == {len(TEACHERS)}
    assert all(gain.comparison.n == SEEDS for gain in gains)
    best = gains[0]
    alone = results.gain("article-student", best.arm.teacher)
    assert alone.comparison.mean == best.comparison.mean
    assert alone.comparison.high - alone.comparison.low < best.comparison.high - best.comparison.low
    assert best.comparison.mean == pytest.approx(best.arm.mean - best.baseline.mean, abs=1e-4)
    assert best.comparison.verdict is Verdict.BEATS
    assert best.comparison.mean == pytest.approx(100 * GAINS[best.arm.teacher], abs=0.7)


def test_a_teacher_with_a_seed_less_makes_no_interval_narrower(results: TeacherResults) -> None:
    name, count = next(iter(results.run("resnet8"))), len(results.run("resnet8"))
    arm = results.arms["resnet8", name]
    short = replace(arm, accuracies=dict(list(arm.accuracies.items())[:-1]))
    found = replace(results, arms={**results.arms, ("resnet8", name): short}).gains("resnet8")
    assert len(found) == count - 1
    assert {one.comparison.comparisons for one in found} == {count}


def test_gains_over_a_reference_leave_it_out(results: TeacherResults) -> None:
    gains = results.gains("resnet8", over=REFERENCE)
    assert REFERENCE not in {gain.arm.teacher for gain in gains}
    assert {gain.comparison.comparisons for gain in gains} == {5}  # ResNet-8 was run with six
    assert str(gains[0]).startswith(TITLES[gains[0].arm.teacher])


def test_questions_are_one_family_and_those_without_runs_are_left_out(results: TeacherResults) -> None:
    found = results.answers("article-student")
    assert len(found) == len(teacher_results.QUESTIONS)
    assert {comparison.comparisons for _, comparison in found} == {len(found)}
    first = results.gain("article-student", "resnet20", "resnet8").comparison
    assert found[0][1].mean == pytest.approx(first.mean, abs=1e-6)
    few = results.answers("resnet8")
    assert 0 < len(few) < len(found)
    assert {comparison.comparisons for _, comparison in few} == {len(few)}


def test_the_order_by_accuracy_is_found_and_the_opposite_one(results: TeacherResults) -> None:
    up, down = results.tau("article-student", "accuracy"), results.tau("article-student", "confidence")
    assert up.value > 0.6
    assert down.value == pytest.approx(-up.value)
    assert up.low <= up.value <= up.high
    assert (up.teachers, results.tau("article-student", "accuracy", ["resnet8"]).teachers) == (
        len(TEACHERS),
        len(TEACHERS) - 1,
    )
    assert results.tau("resnet8", "accuracy").teachers == 6
    assert 0.5 < results.reliability("article-student") <= 1


def test_the_yardstick_holds_each_seed_against_the_mean_of_the_others() -> None:
    from scipy.stats import kendalltau

    shipped = teacher_results.load()
    names = shipped.teachers("article-student")
    seeds = shipped.arms["article-student", names[0]].accuracies
    taus = []
    for seed in seeds:
        one = [shipped.arms["article-student", name].accuracies[seed] for name in names]
        others = [
            round(
                math.fsum(v for other, v in shipped.arms["article-student", name].accuracies.items() if other != seed),
                6,
            )
            for name in names
        ]
        taus.append(kendalltau(one, others).statistic)
    assert shipped.reliability("article-student") == pytest.approx(sum(taus) / len(taus))


def test_tau_is_the_mean_of_scipys_over_the_seeds() -> None:
    from scipy.stats import kendalltau, ttest_1samp

    chance = np.random.default_rng(3)
    x, rows = list(chance.random(12)), chance.random((5, 12))
    value, low, high = mean_tau(x, rows)
    each = [kendalltau(x, row).statistic for row in rows]
    interval = ttest_1samp(each, 0).confidence_interval(0.95)
    assert (value, low, high) == pytest.approx((np.mean(each), interval.low, interval.high))
    assert mean_tau(x, np.array([x, x])) == pytest.approx((1, 1, 1))
    assert mean_tau(x, np.ones((3, 12))) == (0, 0, 0)


def test_what_was_not_run_is_named_with_the_command(results: TeacherResults, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ResNet-8 of ResNet-20, smoothed was not run.*teachers students"):
        results.gain("resnet8", "resnet20 smoothed")
    with pytest.raises(ValueError, match="measure"):
        results.tau("resnet8", "colour")
    with pytest.raises(ValueError, match="at least four"):
        results.tau("resnet8", "size", without=list(TEACHERS)[:4])
    with pytest.raises(FileNotFoundError, match=r"course\.experiments\.teachers teachers"):
        teacher_results.load(tmp_path)
    write_teachers(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"course\.experiments\.teachers students"):
        teacher_results.load(tmp_path)


def test_a_teacher_that_lacks_a_seed_is_left_out(tmp_path: Path) -> None:
    write_teachers(tmp_path)
    write_students(tmp_path, ("article-student",))
    path = Budget().path("teachers-students", tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    found = teacher_results.load(tmp_path)
    assert found.teachers("article-student") == [
        name for name in TITLES if name in TEACHERS and name != list(TEACHERS)[-1]
    ]
    assert found.students == ["article-student"]


def let_diverge(folder: Path, student: str, teacher: str, seed: int) -> TeacherResults:
    """The shipped form of rows, one of which says what a run that diverged says."""
    write_teachers(folder)
    write_students(folder)
    path = Budget().path("teachers-students", folder)
    rows = read_rows(path, RUN_COLUMNS)
    for row in rows:
        if (row["student"], row["teacher"], row["seed"]) == (student, teacher, str(seed)):
            row.update(test_accuracy="", validation_accuracy="", right="", error="The loss is nan.")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, RUN_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return teacher_results.load(folder)


def test_hard_labels_that_diverged_are_said(tmp_path: Path) -> None:
    found = let_diverge(tmp_path, "resnet8", HARD, 3)
    with pytest.raises(ValueError, match=r"resnet8 of 'hard labels' diverged at seed 3: The loss is nan\. The other"):
        found.gains("resnet8")


def test_a_teacher_whose_student_diverged_has_no_gain_and_is_in_the_picture(tmp_path: Path) -> None:
    last = list(TEACHERS)[-1]
    found = let_diverge(tmp_path, "article-student", last, 3)
    assert len(found.gains("article-student")) == len(TEACHERS) - 1
    with pytest.raises(ValueError, match=rf"article-student of '{last}' diverged at seed 3"):
        found.gain("article-student", last)
    student, other = plots.teacher_gains(found).axes  # as in teacher_students.STUDENTS
    assert [text.get_text() for text in student.texts] == ["diverged"]
    assert {text.get_text() for text in other.texts} == {"not run"}
    assert f"for all {len(TEACHERS)}" in student.get_xlabel()


def test_the_table_has_all_teachers_by_accuracy(results: TeacherResults) -> None:
    table = results.table()
    assert list(table["accuracy"]) == sorted(table["accuracy"])
    assert len(table) == len(TEACHERS)
    assert table["gain, ResNet-8"].notna().sum() == 6


@pytest.mark.slow
def test_figures_have_labels_alt_texts_and_a_line_for_each_teacher(results: TeacherResults) -> None:
    for over in (HARD, REFERENCE):
        fig = plots.teacher_gains(results, over)
        plots.check_labels(fig)
        assert len(fig.axes[0].get_yticks()) == len(TEACHERS) - (over != HARD)
        assert plots.teacher_gains_alt(results, over).count("BEATS") >= 1
    fig = plots.gain_against(results, "article-student")
    plots.check_labels(fig)
    assert [axes.get_xscale() for axes in fig.axes] == ["linear", "log", "linear", "linear"]
    assert plots.gain_against_alt(results, "article-student").count(f"{len(TEACHERS)} teachers") == 4


def test_unread_files_of_rows(tmp_path: Path) -> None:
    write_teachers(tmp_path)
    write_students(tmp_path, ("article-student",))
    rows = read_rows(Budget().path("teachers-students", tmp_path))
    assert len(rows) == SEEDS * (1 + len(TEACHERS))


def test_students_of_another_network_of_the_same_name_are_refused(made: list[Run], tmp_path: Path) -> None:
    """To train a teacher anew, on another machine for instance, gives another network: its students are others, too."""
    path = teachers.path_of("resnet8", tmp_path / "networks")
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is not there.*--out FOLDER"):
        teachers.load_network("resnet8", path.parent)
    networks = [models.build("resnet8", num_classes=10, in_channels=1, seed=seed) for seed in (0, 1)]
    path.parent.mkdir()
    models.save(networks[0], path, half=True)
    fingerprint = FrozenTeacher(models.load(path)).fingerprint[:16]
    file = RunsFile(teachers.teachers_path(tmp_path), teachers.TEACHER_COLUMNS, log=lambda text: None)
    with file.open():
        file.append({"teacher": "resnet8", "fingerprint": fingerprint})
    assert len(run(tmp_path, ["resnet8"], seeds=1)) == 2
    models.save(networks[1], path, half=True)
    with pytest.raises(ValueError, match="'resnet8' is another network than the one of its row"):
        run(tmp_path, ["resnet8"], seeds=2)
    assert {row["seed"] for row in read_rows(Budget(100).path("teachers-students", tmp_path))} == {"0"}


def test_a_network_that_was_trained_for_other_epochs_is_refused(fashion: DataModule, tmp_path: Path) -> None:
    network = models.build("resnet8", num_classes=10, in_channels=1, seed=0)
    models.save(network, teachers.path_of("resnet8", tmp_path), half=True, epochs=4)
    with pytest.raises(ValueError, match="trained for 4 epochs, not 8. Choose another --cache"):
        teachers.train_network("resnet8", fashion, tmp_path, epochs=8)
    teachers.train_network("resnet8", fashion, tmp_path, epochs=4)  # is there
