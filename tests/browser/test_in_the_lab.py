"""Explorers and exercises as a learner meets them: in JupyterLab, with a keyboard."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import ROOT, Live, Notebook, Workshop

from course import explorers

# All lessons are executed and compared by conftest.py; two of them, with and without training, run here too.
LESSONS = [path for number in ("00", "04") for path in (ROOT / "notebooks").glob(f"{number}_*.ipynb")]
IMPORT = "from course import explorers"
# Each explorer, the slider that is moved, a key, the key that goes back, and a text that comes below the picture.
EACH = {
    "Attention": ("Picture", "ArrowRight", "ArrowLeft", "number 2 of 20"),
    "Compression": ("Way", "ArrowRight", "ArrowLeft", "30 % zeros, no further training:"),
    "Cost": ("Depth", "ArrowRight", "ArrowLeft", "ResNet-32,"),
    "Ensemble": ("Picture", "ArrowRight", "ArrowLeft", "Number 2 of 20,"),
    "Planner": ("Seeds", "ArrowRight", "ArrowLeft", "spread 0.3; 6 seeds,"),
    "Modalities": ("Wrong pairs", "ArrowRight", "ArrowLeft", "2 labels a class, 25% of the pairs wrong, T 2:"),
    "Relations": ("Snapshot", "ArrowLeft", "ArrowRight", "the teacher and student, untrained."),
    "SearchReplay": ("Trials", "ArrowRight", "ArrowLeft", "order 1, 6 trials:"),
    "TeacherSees": ("Picture", "ArrowRight", "ArrowLeft", "number 2 of 5000"),
    "Teachers": ("Teacher", "ArrowRight", "ArrowLeft", "ResNet-50, shipped: 94.04 % of the validation images"),
    "Temperature": ("Temperature", "ArrowRight", "ArrowLeft", "at T = 4.76"),
    "TemperatureMap": ("Temperature T", "ArrowRight", "ArrowLeft", "alpha 0.1, T 8:"),
}
# Those that need something to show: what is run before them, and what they are given.
NETWORKS = """from kdlib import models
teacher = models.load("resnet20-fashion")
untrained, other = (models.build("resnet8", num_classes=10, in_channels=1, seed=seed) for seed in (0, 1))"""
INVENTED = f"""import sys, tempfile, pathlib
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import synthetic
from kdlib import study
folder = pathlib.Path(tempfile.mkdtemp())
synthetic.write(folder, ["full", "grid"])"""
RANDOM_TEACHERS = """import torch
from kdlib import data
fashion = data.load("fashion-mnist")
some, chance = fashion.test.select(torch.arange(20)), torch.Generator().manual_seed(0)
given = {name: torch.randn(20, 10, generator=chance) for name in ("first", "second", "third")}"""
WATCH = f"""import sys, tempfile, pathlib
sys.path.insert(0, {str(Path(__file__).parents[1] / "course")!r})
import test_modalities
from course.experiments import modalities_results
folder = pathlib.Path(tempfile.mkdtemp())
test_modalities.write_results(folder)"""
GIVEN = {
    "Attention": (NETWORKS, '{"teacher": teacher, "student": untrained}, per_class=2'),
    "Ensemble": (RANDOM_TEACHERS, "given, some, fashion.classes"),
    "Modalities": (WATCH, "modalities_results.load(folder)"),
    "Relations": (NETWORKS, 'teacher, {"untrained": untrained, "trained": other}, per_class=2'),
    "TemperatureMap": (INVENTED, 'study.results("grid", folder=folder)'),
}


def shown(name: str, opened: Callable[..., Notebook]) -> Live:
    """The explorer of this name in a notebook of its own."""
    before, given = GIVEN.get(name, ("", ""))
    return opened(f"{IMPORT}\n{before}", f"explorers.{name}({given})").explorer(1)


BROKEN = f"""{IMPORT}
class Broken(explorers.Temperature):
    @staticmethod
    def compute(logits, temperature):
        if temperature > 4:
            raise RuntimeError("injected")
        return explorers.Temperature.compute(logits, temperature)
Broken()"""


@pytest.mark.parametrize("name", EACH)
def test_an_explorer_is_driven_by_keys(
    name: str, opened: Callable[..., Notebook], page: Any, look: Callable[[str], None]
) -> None:
    label, key, back, expected = EACH[name]
    live = shown(name, opened)
    look(f"{name} at the start")
    before, text = live.pixels(), live.text()
    assert expected not in text
    live.press(label, key)
    live.until(lambda: expected in live.text(), expected)
    live.until(lambda: live.pixels() != before, "another picture")
    look(f"{name} after a key")
    assert live.status() == ""
    live.press(label, back)
    live.until(lambda: live.text() == text, "the first text")
    live.until(lambda: live.pixels() == before, "the first picture")
    the_picture_has_a_name(page, getattr(explorers, name).alt)
    every_slider_has_a_box_with_a_name(live)
    kinds = ".widget-hslider, .widget-dropdown, .widget-text"
    first = live.where.locator(".noUi-handle, select, input").first
    assert live.tabulator_reaches(kinds, first) == live.where.locator(kinds).count()


def the_picture_has_a_name(page: Any, alt: str) -> None:
    assert page.get_by_role("img", name=re.compile(re.escape(alt[:40]))).count() == 1


def every_slider_has_a_box_with_a_name(live: Live) -> None:
    sliders = live.where.locator(".widget-hslider").count()
    assert sliders == live.where.locator(".widget-hbox").count()
    for line in live.where.locator(".widget-hbox").all():
        name = line.locator(".widget-label").first.inner_text()
        boxes = [line.get_by_role(kind, name=name, exact=True).count() for kind in ("spinbutton", "combobox")]
        assert sum(boxes) == 1, name


def test_an_explorer_fits_on_a_telephone(
    opened: Callable[..., Notebook], page: Any, look: Callable[[str], None]
) -> None:
    live = opened(IMPORT, "explorers.Temperature()").explorer(1)
    page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
    page.set_viewport_size({"width": 380, "height": 1000})
    live.until(lambda: live.where.locator(".widget-gridbox").evaluate("grid => grid.clientWidth") < 352, "the page")
    look("Temperature on a telephone")
    assert live.where.locator(".widget-gridbox").evaluate("grid => grid.scrollWidth <= grid.clientWidth")
    for label in live.where.locator(".widget-label").all():
        assert label.evaluate("label => label.scrollWidth <= label.clientWidth"), label.inner_text()


def test_a_number_can_be_typed_beside_its_slider(opened: Callable[..., Notebook], page: Any) -> None:
    live = opened(IMPORT, "explorers.Temperature()").explorer(1)
    box = live.where.get_by_role("spinbutton", name="Temperature T")
    assert box.input_value() == "4"
    live.press("Temperature", "ArrowRight")
    live.until(lambda: box.input_value() == "4.76", "the slider's value in the box")
    box.fill("8")  # one of the slider's steps: the page moves any other number to the nearest
    box.press("Enter")
    live.until(lambda: "at T = 8;" in live.text(), "the value of the box")


def test_an_injected_error_shows_in_the_status_line_and_leaves(
    opened: Callable[..., Notebook], look: Callable[[str], None]
) -> None:
    live = opened(BROKEN).explorer(0)
    before = live.pixels()
    live.press("Temperature", "ArrowRight")
    live.until(lambda: "RuntimeError: injected" in live.status(), "the error")
    assert "still shows the settings before" in live.status()
    assert live.pixels() == before
    look("an error")
    live.press("Temperature", "ArrowLeft")
    live.until(lambda: live.status() == "", "an empty status line")


def test_logits_can_be_typed_and_a_slip_is_explained(
    opened: Callable[..., Notebook], look: Callable[[str], None]
) -> None:
    live = opened(IMPORT, "explorers.Temperature()").explorer(1)
    field = live.where.get_by_label("Logits")
    field.fill("4, two")
    field.press("Enter")
    live.until(lambda: '"two" is not a number' in live.status(), "the explanation")
    field.fill("4, 2, 0")
    field.press("Enter")
    live.until(lambda: live.text().startswith("Typed logits"), "the typed logits")
    live.until(lambda: live.status() == "", "an empty status line")  # it is sent last
    look("typed logits")


def test_a_choice_shortens_the_slider(opened: Callable[..., Notebook], look: Callable[[str], None]) -> None:
    live = opened(IMPORT, "explorers.TeacherSees()").explorer(1)
    live.where.locator("select").select_option("the teacher is wrong")
    live.until(lambda: "The teacher is wrong" in live.text(), "a mistake")
    look("the teacher is wrong")
    count = int(re.search(r"number 1 of (\d+)", live.text())[1])
    live.press("Picture", "End")
    live.until(lambda: f"number {count} of {count}" in live.text(), "the last mistake")


def test_an_exercise_goes_from_not_attempted_to_correct(opened: Callable[..., Notebook]) -> None:
    notebook = opened("from course import exercises\nq = exercises.load('04')", "q.law.check(...)")
    assert "Not attempted" in notebook.output(1)
    notebook.rewrite(1, 'q.law.check("a")')
    notebook.cell(1).locator(".jp-OutputArea-output", has_text="Not right yet").wait_for()
    notebook.rewrite(1, 'q.law.check("b")')
    notebook.cell(1).locator(".jp-OutputArea-output", has_text="Correct").wait_for()


def test_a_question_of_the_quiz_is_answered_by_keys(
    opened: Callable[..., Notebook], page: Any, look: Callable[[str], None]
) -> None:
    where = opened("from course import quiz\nquiz.load('09')").cell(0)
    where.locator("button.mod-primary").click()
    where.get_by_text("Choose a letter first.").wait_for()
    where.locator(".widget-toggle-buttons button").first.focus()
    page.keyboard.press("Tab")  # from a to b
    page.keyboard.press("Enter")
    where.get_by_role("button", name="Answer b").wait_for()
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    where.get_by_text("Wrong. Read again: lesson 09").wait_for()
    assert where.get_by_text("right:").count() == 1
    look("a question of the quiz")
    page.keyboard.press("Enter")  # the same button goes on
    where.get_by_text("Nineteen methods are compared").wait_for()
    assert where.get_by_text("0 of 2 right, 1 wrong, 1 open").count() == 1


@pytest.mark.parametrize("path", LESSONS, ids=[path.stem for path in LESSONS])
def test_a_lesson_runs_from_top_to_bottom(path: Path, page: Any, lab: Workshop, look: Callable[[str], None]) -> None:
    notebook = Notebook(page, lab, lab.copy(path))
    notebook.run_all()
    look(path.stem)


def test_kernels_end_with_the_test_that_started_them(opened: Callable[..., Notebook], page: Any, lab: Workshop) -> None:
    notebook = opened("import os\nos.getpid()")
    assert len(lab.ask("GET", "kernels")) == 1  # those of the tests before are gone
    kernel = int(notebook.output(0))
    os.kill(kernel, 0)
    page.close()
    lab.end_kernels()
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
