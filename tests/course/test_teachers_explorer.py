"""The explorer of teachers: values, pictures that change, its error line, its text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_explorers import named
from test_teacher_study import write_students, write_teachers

from course import explorers, plots
from course.experiments import teacher_results
from course.experiments.teacher_results import REFERENCE, TeacherResults
from course.experiments.teacher_students import HARD
from course.experiments.teachers import TEACHERS

pytestmark = pytest.mark.slow  # it draws

widgets = pytest.importorskip("ipywidgets")

VIEW = "application/vnd.jupyter.widget-view+json"
MOVES = {"teacher": "ensemble", "student": "article-student", "measure": "size"}
START = {"teacher": "resnet20-fashion", "student": "resnet8", "measure": "accuracy"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> TeacherResults:
    folder = tmp_path_factory.mktemp("teachers")
    write_teachers(folder)
    write_students(folder)
    return teacher_results.load(folder)


@pytest.fixture
def explorer(results: TeacherResults) -> explorers.Teachers:
    return explorers.Teachers(results, **START)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_notebook_gets_a_view_a_picture_and_one_line(explorer: explorers.Teachers) -> None:
    bundle, metadata = explorer._repr_mimebundle_()
    assert set(bundle) == {VIEW, "image/png", "text/plain"}
    assert (
        bundle["text/plain"] == "Teachers explorer: teacher = resnet20-fashion, student = resnet8, measure = accuracy"
    )
    assert metadata == {"image/png": {"alt": explorer.alt}}
    assert len(bundle["image/png"]) < 100_000
    assert explorer.image.get_state()["tooltip"] == explorer.alt
    plots.check_labels(explorer.figure)


def test_controls_have_labels_and_work_with_a_keyboard(explorer: explorers.Teachers) -> None:
    kinds = {name: type(control).__name__ for name, control in explorer.controls.items()}
    assert kinds == {"teacher": "SelectionSlider", "student": "Dropdown", "measure": "Dropdown"}
    assert set(named(explorer)) == set(explorer.controls)


@pytest.mark.parametrize(("control", "value"), [("teacher", "resnet8 hard 0"), *list(MOVES.items())[1:]])
def test_moving_a_control_changes_picture_and_text_and_back_again(
    results: TeacherResults, control: str, value: str
) -> None:
    explorer = explorers.Teachers(results, **START)
    before, text, start = explorer.png(), explorer._text.value, explorer.state[control]
    explorer.controls[control].value = value
    assert explorer.error == ""
    assert (pixels(explorer.png()) != pixels(before)).any()
    assert explorer._text.value != text
    explorer.controls[control].value = start
    assert explorer.png() == before
    assert explorer._text.value == text


def test_the_same_state_gives_the_same_picture_however_it_was_reached(results: TeacherResults) -> None:
    there, fresh = explorers.Teachers(results, **START), explorers.Teachers(results)
    for one in (there, fresh):
        one.set(student="article-student", measure="size")
        one.set(teacher="ensemble")
    assert there.png() == fresh.png()
    assert there.describe() == fresh.describe()


def test_artists_are_changed_in_place(explorer: explorers.Teachers) -> None:
    children = [len(axes.get_children()) for axes in explorer.figure.axes]
    explorer.set(student="article-student", measure="size")
    explorer.set(teacher="resnet50-fashion")
    assert [len(axes.get_children()) for axes in explorer.figure.axes] == children


def test_the_blitted_picture_is_that_of_the_whole_figure(explorer: explorers.Teachers) -> None:
    explorer.set(student="article-student", measure="size")
    quick = pixels(explorer.png()).astype(int)
    for artist in (*explorer._cached_artists, *explorer._live_artists):
        artist.set_animated(False)
    explorer._canvas.draw()
    whole = np.asarray(explorer._canvas.buffer_rgba())[..., :3].astype(int)
    assert (np.abs(quick - whole).max(axis=2) > 40).mean() < 0.01


def test_the_values_are_those_of_the_rows(results: TeacherResults) -> None:
    found = explorers.Teachers.compute(results, "article-student", "ensemble", "accuracy")
    assert found.facts is results.facts["ensemble"]
    assert found.gain.arm is results.arms["article-student", "ensemble"]
    assert found.hard is results.arms["article-student", HARD]
    family = next(gain for gain in results.gains("article-student") if gain.arm.teacher == "ensemble")
    assert found.gain.comparison == family.comparison
    assert found.over_reference is not None
    assert found.over_reference.comparison.comparisons == len(TEACHERS) - 1
    better = [one for one in results.facts.values() if one.accuracy > found.facts.accuracy]
    assert (found.rank, found.count) == (1 + len(better), len(TEACHERS))
    assert explorers.Teachers.compute(results, "article-student", "ensemble", "accuracy") is found
    assert explorers.Teachers.compute(results, "article-student", REFERENCE, "accuracy").over_reference is None


def test_ring_and_seeds_are_drawn_where_they_are(results: TeacherResults) -> None:
    explorer = explorers.Teachers(results, **START)
    explorer.set(student="article-student", measure="size")
    explorer.set(teacher="ensemble")
    gain = results.gain("article-student", "ensemble").comparison
    where = [float(values[0]) for values in explorer._ring.get_data()]
    assert where == pytest.approx([1e6 * results.facts["ensemble"].size, gain.mean])
    assert explorer._map.get_xscale() == "log"
    taught = results.arms["article-student", "ensemble"].accuracies
    assert list(explorer._taught.get_ydata()) == [taught[seed] for seed in sorted(taught)]
    low, high = explorer._seeds.get_ylim()
    assert all(low < value < high for value in taught.values())
    (left, right), (bottom, top) = explorer._map.get_xlim(), explorer._map.get_ylim()
    assert left < where[0] < right
    assert bottom < gain.low < gain.high < top


def test_the_text_says_what_is_known_of_the_teacher_and_what_it_was_worth(explorer: explorers.Teachers) -> None:
    first, second, third = explorer.describe().splitlines()
    assert first.startswith("ResNet-20, shipped: 80.00 % of the validation images, 78 thousand parameters, mean conf")
    assert first.endswith("place 6 of 6 by accuracy, the largest first.")
    assert second.startswith("The student (ResNet-8, T = 4): ")
    gain = explorer.results.gains("resnet8")
    alone = explorer.results.gain("resnet8", "resnet20-fashion").comparison
    verdict = next(one for one in gain if one.arm.teacher == "resnet20-fashion").comparison
    assert second.endswith(
        f"gain {verdict.mean:+.2f} points ({verdict.low:+.2f} to {verdict.high:+.2f}, one of 6), {verdict.verdict}. "
        f"Its bar is the single interval, {alone.low:+.2f} to {alone.high:+.2f}."
    )
    bar = explorer._bars["resnet20-fashion"].get_ydata()
    assert list(bar) == pytest.approx([alone.low, alone.high])
    assert third == "This is the teacher that the others are compared with."
    explorer.set(teacher="resnet8 hard 0")
    assert explorer.describe().splitlines()[2].startswith("Over ResNet-20, shipped, as teacher: +")


def test_only_teachers_that_were_run_can_be_chosen(explorer: explorers.Teachers) -> None:
    with pytest.raises(ValueError, match="teacher cannot be 'ensemble': choose one of"):
        explorer.set(teacher="ensemble")
    explorer.controls["student"].value = "article-student"
    explorer.controls["teacher"].value = "ensemble"
    explorer.controls["student"].value = "resnet8"
    assert (explorer.state["teacher"], explorer.error) == (REFERENCE, "")
    assert named(explorer)["teacher"].options == explorer.controls["teacher"].options


def test_what_was_not_run_is_named(results: TeacherResults) -> None:
    with pytest.raises(ValueError, match="ResNet-8 of three ResNet-8, 10,000 was not run"):
        explorers.Teachers.compute(results, "resnet8", "ensemble", "accuracy")


def test_an_exception_appears_in_the_status_line_and_leaves_again(explorer: explorers.Teachers) -> None:
    before, working = explorer.png(), explorer.compute

    def broken(*_: Any) -> None:
        raise KeyError("<b>no such thing</b>")

    explorer.compute = broken
    explorer.controls["measure"].value = "size"
    assert "&lt;b&gt;no such thing" in explorer._status.value
    assert explorer.png() == before
    explorer.compute = working
    explorer.controls["measure"].value = "accuracy"
    assert explorer._status.value == ""


def test_nothing_trains_when_a_control_moves(explorer: explorers.Teachers, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network ran in a callback")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    explorer.set(student="article-student", measure="entropy")


def test_without_rows_the_message_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    teacher_results.load.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"course\.experiments\.teachers teachers"):
        explorers.Teachers()
    teacher_results.load.cache_clear()


def test_student_and_teacher_can_be_set_together() -> None:
    shown = explorers.Teachers()  # the shipped results
    with pytest.raises(ValueError, match="teacher cannot be"):
        shown.set(student="resnet8", teacher="resnet8 of resnet32")
    shown.set(student="resnet8")
    shown.set(student="article-student", teacher="resnet8 of resnet32")
    assert shown.state["teacher"] == "resnet8 of resnet32"


def test_any_number_of_measures_can_be_drawn() -> None:
    results = teacher_results.load()
    drawn = plots.gain_against(results, "article-student", ("accuracy", "size", "confidence"))
    assert [axes.axison for axes in drawn.axes] == [True, True, True, False]
