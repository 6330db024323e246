"""The lessons keep the rules, and are written and compared as documented; each rule has examples that break it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from lesson_rules import RULES, Lesson, links, output_text
from nbformat import NotebookNode

from course import exercises, lab, notebooks
from course.notebooks import HIDE_TAG, IGNORE_TAG, WIDGET_VIEW, LessonError

LESSONS = notebooks.list_notebooks()
NAMES = [path.stem for path in LESSONS]
CONFTEST = notebooks.NOTEBOOKS_DIR.parent / "conftest.py"

# The stored lessons.


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])
@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_every_lesson_keeps_every_rule(path: Path, rule: Callable) -> None:
    assert list(rule(Lesson.read(path))) == []


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_every_lesson_was_written_by_make_notebooks(path: Path) -> None:
    assert notebooks.problems(path) == []


def test_lessons_have_numbers_of_their_own() -> None:
    assert all(re.fullmatch(r"\d\d_\w+", name) for name in NAMES)
    assert len({name[:2] for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize(
    "path", [path for path in LESSONS if path.stem[:2] in exercises.list_lessons()], ids=lambda p: p.stem
)
def test_a_lesson_has_its_exercises_and_they_are_unfilled(path: Path) -> None:
    lesson, tasks = Lesson.read(path), exercises.load(path.stem[:2])
    assert lesson.headings[0][1] == tasks._title
    for task in tasks:
        checks = [cell for cell in lesson.code if f".{task.name}.check(" in cell.source]
        assert len(checks) == 1, task.name
        assert "Not attempted yet" in checks[0].outputs[0].text, task.name
        if isinstance(task, exercises.CodeExercise):
            assert checks[0].source.startswith(f"{task.stub}\n\n\n"), task.name
        if isinstance(task, exercises.Prediction):
            predicted = [cell for cell in lesson.code if f".{task.name}.predict(...)" in cell.source]
            assert len(predicted) == 1
            assert lesson.code.index(predicted[0]) < lesson.code.index(checks[0])


def test_the_sections_that_the_page_for_teachers_names_are_headings_of_that_lesson() -> None:
    page = (notebooks.NOTEBOOKS_DIR / "for_teachers.md").read_text()
    rows = dict(re.findall(r"^\| \[?(\d\d)\b[^|]*\|(.*)$", page, re.MULTILINE))
    assert len(rows) == len(LESSONS)
    missing = []
    for number, row in rows.items():
        headings = [re.split("[:,]", text)[0] for _, text in Lesson.read(notebooks.find(number)).headings]
        named = [re.split("[:,]", name)[0] for name in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", row)]
        missing += [(number, name) for name in named if name not in headings]
    assert missing == []


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_no_output_has_a_verdict_of_fewer_than_five_seeds(path: Path) -> None:
    shown = [output_text(cell) for cell in Lesson.read(path).code]
    verdicts = r"(BEATS|LOSES)[^\n]{0,60}\b[2-4] (seeds|pairs)|\b[2-4] seeds[^\n|]{0,80}(BEATS|LOSES)"
    assert [text for text in shown if re.search(verdicts, text)] == []


# The rules, on small lessons.

GOOD = """\
# What is a half?

Two halves make a whole. That sounds easy, and it is: in this lesson nothing is difficult, and still it is complete.

## What you will be able to do

- Halve a number, [as shown below](#Halving-a-number), without looking anything up.

## What you need first

Numbers, and nothing else. **Time:** 5 minutes.

## Halving a number

We divide one by two, and give the result a name, so that it can be used again.

```python
whole = 1
half = 1 / 2
double = 2
```

Nothing is shown yet. To look at the number we name it in the last line.

```python
half
```

As expected, it is five tenths. Is it exact? We add it to itself.

```python
print("two halves make a whole:", "yes" if half + half == 1 else "no")
```

It is exact. Where the number lies in memory is another one each time, so it is not compared.

```python tags=["nbval-ignore-output"]
print(id(half))
```

Whatever was shown there, this holds:

```python
print("it lies at a positive address:", "yes" if id(half) > 0 else "no")
```

A number has its place.

## Exercises

Halve another number.

## Summary

Half of one is five tenths.

## References

Euclid: *Elements*, see <https://example.org>.
"""


def made(text: str = GOOD) -> NotebookNode:
    """The lesson as if it had been executed: each print("so and so:", ...) has given yes."""
    notebook = notebooks.from_text(text)
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
        claims = [f"{claim} yes\n" for claim in re.findall(r'print\("([^"]*:)"', cell.source)]
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="".join(claims))] if claims else []
    return notebook


def stored(folder: Path, notebook: NotebookNode) -> Lesson:
    path = folder / "01_halves.ipynb"
    nbformat.write(notebook, path)
    return Lesson.read(path)


def code(notebook: NotebookNode, number: int) -> NotebookNode:
    return [cell for cell in notebook.cells if cell.cell_type == "code"][number - 1]


def prints(number: int, text: str, name: str = "stdout") -> Callable[[NotebookNode], None]:
    """A change of a notebook: a code cell gave this text."""
    output = nbformat.v4.new_output("stream", name=name, text=text)
    return lambda notebook: code(notebook, number).outputs.append(output)


def shows(number: int, kind: str, **metadata: dict) -> Callable[[NotebookNode], None]:
    """A change of a notebook: a code cell gave something of this kind."""
    output = nbformat.v4.new_output("display_data", {kind: "iVBORw0KGgo=", "text/plain": "a"}, metadata=metadata)
    return lambda notebook: code(notebook, number).outputs.append(output)


def shows_text(number: int, text: str) -> Callable[[NotebookNode], None]:
    """A change of a notebook: the last line of a code cell gave something that is shown as this text."""
    output = nbformat.v4.new_output("execute_result", {"text/plain": text})
    return lambda notebook: code(notebook, number).outputs.append(output)


def without_claim(notebook: NotebookNode) -> None:
    code(notebook, 5).outputs = []


def collapsed(number: int, *outputs: str) -> Callable[[NotebookNode], None]:
    """A change of a notebook: a code cell has collapsed outputs that print these texts."""

    def change(notebook: NotebookNode) -> None:
        code(notebook, number).metadata.tags = [HIDE_TAG]
        for text in outputs:
            prints(number, text)(notebook)

    return change


def out_of_order(notebook: NotebookNode) -> None:
    code(notebook, 1).execution_count = 9


def with_state(notebook: NotebookNode) -> None:
    notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {}}


def failed(notebook: NotebookNode) -> None:
    code(notebook, 1).outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])]


def lines(*counts: int) -> Callable[[NotebookNode], None]:
    """A change of a notebook: its code cells have so many lines."""

    def change(notebook: NotebookNode) -> None:
        for number, count in enumerate(counts, 1):
            code(notebook, number).source = "\n".join(["half"] * count)

    return change


HALF = "half = 1 / 2"
LOOK = "```python\nhalf\n```"
LINK = "[as shown below](#Halving-a-number)"
LAST = "A number has its place.\n\n"
# A rule, a way to break it - (old, new) in the text, or a change of the notebook - and what is said about it.
BROKEN: list[tuple[str, tuple[str, str] | Callable[[NotebookNode], None], str]] = [
    ("anatomy", ("# What is a half?", "# Halves"), "neither a question nor begins with a verb"),
    ("anatomy", ("# What is a half?", "## What is a half?"), "there are 0"),
    ("anatomy", ("## Halving a number", "# Halving a number"), "there are 2"),
    ("anatomy", ("5 minutes", "not long"), "how many minutes"),
    ("anatomy", ("## Summary", "## Conclusion"), "the sections are"),
    ("anatomy", ("## Exercises\n\nHalve another number.\n\n", ""), "the sections are"),
    ("anatomy", ("## What you need first", "## Requirements"), "the sections are"),
    ("anatomy", ("## Halving a number\n\n", ""), "there is no lesson"),
    (
        "sentences_around_code",
        ("Nothing is shown yet. To look at the number we name it in the last line.\n", ""),
        "cell 2",
    ),
    ("sentences_around_code", (LAST + GOOD.partition(LAST)[2], ""), "cell 10"),
    ("execution", out_of_order, "once each, in order"),
    ("execution", failed, "code cell 1 ended with an error"),
    ("execution", prints(1, "UserWarning: careful", "stderr"), "code cell 1 wrote to stderr"),
    ("cell_lengths", lines(6, 6, 6, 1, 1), "the median code cell has 6 lines"),
    ("cell_lengths", lines(1, 1, 1, 24, 1), "the 90th percentile"),
    ("cell_lengths", lines(26), "a code cell has 26 lines"),
    ("prose_per_line", lines(20), "words of prose"),
    ("prose_per_line", ("Halve another number.", "Halve another number. " * 60), "words of prose"),
    ("figures", shows(2, "image/png"), "code cell 2 has no alt text"),
    ("figures", shows(2, "image/png", **{"image/png": {"alt": " "}}), "code cell 2 has no alt text"),
    ("figures", (LAST, "![](https://example.org/place.png)\n\n"), "in the prose has no alt text"),
    ("figures", (LAST, '<img src="https://example.org/place.png">\n\n'), "in the prose has no alt text"),
    ("widgets", with_state, "the state of widgets"),
    ("widgets", shows(2, WIDGET_VIEW), "the view of a widget"),
    ("size", prints(4, "x" * 500_000), "bytes"),
    ("links", (LINK, "[below](#Doubling)"), "#Doubling leads to no heading"),
    ("links", (LINK, "[next](02_doubles.ipynb)"), "02_doubles.ipynb leads to no file"),
    ("links", (LINK, "[here](01_halves.ipynb#Doubling)"), "#Doubling leads to no heading"),
    ("tags", without_claim, "after code cell 4"),
    ("tags", (f"```python\nwhole = 1\n{HALF}", f"```python\n# NBVAL_IGNORE_OUTPUT\n{HALF}"), "code cell 1 is marked"),
    ("tags", ('tags=["nbval-ignore-output"]', 'tags=["nbval-skip"]'), "code cell 4 is marked"),
    ("tags", ('tags=["nbval-ignore-output"]', 'tags=["hide-cell"]'), "code cell 4 is marked"),
    ("tags", (LOOK, LOOK.replace("python", f'python tags=["{IGNORE_TAG}"]')), "more than a fifth"),
    ("collapsed_outputs", collapsed(2, "0.5\n"), "by '0.5', which JupyterLab shows"),
    ("collapsed_outputs", collapsed(2, "\nIt is 0.5.\nIs that so:\n"), "by 'It is 0.5.'"),
    ("collapsed_outputs", collapsed(2), "by ''"),
    ("no_assertions", prints(2, "half is a half: True\n"), "code cell 2 prints an assertion, 'half is a half: True'"),
    ("no_assertions", prints(2, "True\n"), "'True'"),
    ("no_assertions", shows_text(2, "it fits: False"), "'it fits: False'"),
    ("steady_timings", prints(2, "student: 22.2 ms (IQR 32.1 ms over 85 runs)\n"), "22.2 ms with an IQR of 32.1"),
    ("names", (HALF, "map = 1 / 2"), "the built-in map"),
    ("names", (LOOK, "```python\ndef double(): ...\n\n\ntasks.double.check(double)\n```"), "the name double"),
    ("self_contained", (HALF, "%pip install halves"), "not plain Python"),
    ("self_contained", (HALF, "!wget https://example.org"), "not plain Python"),
    ("self_contained", (HALF, "import os"), "uses os"),
    ("self_contained", (HALF, "from pathlib import Path"), "uses pathlib"),
    ("self_contained", (HALF, "import warnings"), "uses warnings"),
    ("self_contained", (HALF, "from torch import hub"), "uses torch.hub"),
    ("self_contained", (HALF, 'half = data.load("cifar10", download=True)'), "uses download"),
    ("self_contained", (HALF, 'half = open("halves")'), "uses open"),
    ("self_contained", (HALF, 'half = models.load("../data/half.safetensors")'), "uses '../data"),
    ("self_contained", (HALF, 'half = models.load("/tmp/half")'), "uses '/tmp/half'"),
    ("self_contained", (HALF, "half = torch.utils.load_state_dict_from_url(url)"), "uses load_state_dict_from_url"),
    ("self_contained", (HALF, "w.simplefilter(1)"), "uses simplefilter"),
]


@pytest.mark.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])
def test_a_good_lesson_keeps_the_rule_and_the_rule_has_examples_that_break_it(tmp_path: Path, rule: Callable) -> None:
    assert list(rule(stored(tmp_path, made()))) == []
    assert rule.__name__ in [name for name, _, _ in BROKEN]


@pytest.mark.parametrize("number", range(len(BROKEN)), ids=[f"{name}-{said}" for name, _, said in BROKEN])
def test_the_rule_finds_what_breaks_it(tmp_path: Path, number: int) -> None:
    name, change, said = BROKEN[number]
    rule = next(rule for rule in RULES if rule.__name__ == name)
    if callable(change):
        notebook = made()
        change(notebook)
    else:
        assert GOOD.count(change[0]) == 1, change[0]
        notebook = made(GOOD.replace(*change))
    assert said in "; ".join(rule(stored(tmp_path, notebook)))


def test_what_only_looks_forbidden_is_allowed(tmp_path: Path) -> None:
    lines = ["losses = model.eval()", 'name = "T-shirt/top"', "explorers.Temperature()", 'plots.show(fig, alt="a/b.")']
    lesson = stored(tmp_path, made(GOOD.replace("half = 1 / 2", "\n".join(lines))))
    assert [found for rule in RULES if rule.__name__ == "self_contained" for found in rule(lesson)] == []
    notebook = made()
    collapsed(2, "One half:\n0.5\n")(notebook)
    assert [found for rule in RULES for found in rule(stored(tmp_path, notebook))] == []


# The command that writes lessons.

TINY = """\
Some cells that give outputs of several kinds.

```python
import os
import time

from IPython.display import display

print(os.environ["KDLIB_PROGRESS"], "inline" in os.environ["MPLBACKEND"])
print("flushed", flush=True)
print("and more")
```

A picture, as `plots.show` makes it, and a widget.

```python
display({"image/png": "iVBORw0KGgo=", "text/plain": "a dot"}, metadata={"image/png": {"alt": "A dot."}}, raw=True)
display({"application/vnd.jupyter.widget-view+json": {"model_id": str(time.time())}, "text/plain": "w"}, raw=True)
```

Something that is never the same.

```python tags=["nbval-ignore-output"]
import sys

print(time.time(), file=sys.stderr)
time.time()
```

Two cells of prose


in a row, and the answer to a prediction.

```python tags=["hide-output"]
1 + 1
```
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small notebook, written by the command, with the conftest of the lessons beside it."""
    path = tmp_path_factory.mktemp("notebooks") / "01_tiny.ipynb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")
        assert notebooks.write(path, notebooks.from_text(TINY))
    shutil.copy(CONFTEST, path.parent)
    return path


def test_links_to_a_page_in_markdown_are_followed(tmp_path: Path) -> None:
    (tmp_path / "glossary.md").write_text("# Words\n\n### Winner's curse\nToo good.\n")
    for heading, problems in (("Winner's-curse", []), ("Twin", ["the link glossary.md#Twin leads to no heading"])):
        lesson = stored(
            tmp_path, made(GOOD.replace("Half of one is", f"See [it](glossary.md#{heading}). Half of one is"))
        )
        assert list(links(lesson)) == problems


@pytest.mark.slow
def test_a_written_notebook_is_canonical(tiny: Path) -> None:
    assert notebooks.problems(tiny) == []
    text = tiny.read_text()
    assert text.endswith("}\n")
    assert not text.endswith("\n\n")
    content = json.loads(text)
    assert text == json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    assert content["metadata"] == notebooks.METADATA
    first, second, third, hidden = (cell for cell in content["cells"] if cell["cell_type"] == "code")
    assert [output["text"] for output in first["outputs"]] == [["off True\n", "flushed\n", "and more\n"]]
    assert [sorted(output["data"]) for output in second["outputs"]] == [["image/png", "text/plain"], ["text/plain"]]
    assert second["outputs"][0]["data"]["image/png"] == "iVBORw0KGgo="
    assert second["outputs"][0]["metadata"] == {"image/png": {"alt": "A dot."}}
    assert [output["output_type"] for output in third["outputs"]] == ["execute_result"]
    assert [cell["metadata"] for cell in content["cells"] if cell["metadata"]] == [
        {"tags": [IGNORE_TAG]},
        {"tags": [HIDE_TAG], "jupyter": {"outputs_hidden": True}},
    ]
    assert hidden["outputs"][0]["data"] == {"text/plain": ["2"]}  # collapsed, but there


@pytest.mark.slow
def test_collapsed_outputs_follow_from_the_tag_alone(tiny: Path, tmp_path: Path) -> None:
    notebook, path = notebooks.read(tiny), tmp_path / tiny.name
    hidden = code(notebook, 4)
    hidden.metadata = {
        "tags": [HIDE_TAG],
        "collapsed": True,
        "jupyter": {"outputs_hidden": True},
    }  # as JupyterLab saves
    assert notebooks.dumps(notebook) == tiny.read_text()
    hidden.metadata = {"tags": [HIDE_TAG]}  # as it was opened and saved by hand
    assert notebooks.dumps(notebook) == tiny.read_text()
    path.write_text(nbformat.writes(notebook) + "\n")
    assert "not in canonical form" in "; ".join(notebooks.problems(path))
    hidden.metadata = {"jupyter": {"outputs_hidden": True}}
    assert code(notebooks.canonicalize(notebook), 4).metadata == {}
    prose = nbformat.v4.new_markdown_cell("Prose.", metadata={"tags": [HIDE_TAG]})
    (kept,) = notebooks.canonicalize(nbformat.v4.new_notebook(cells=[prose])).cells
    assert "jupyter" not in kept.metadata  # nbformat permits it for code


@pytest.mark.slow
def test_a_notebook_with_collapsed_outputs_becomes_a_page(tiny: Path) -> None:
    nbconvert = pytest.importorskip("nbconvert")
    notebook = notebooks.read(tiny)
    nbformat.validate(notebook)
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    assert "<pre>2</pre>" in page
    assert "A dot." in page


@pytest.mark.slow
def test_writing_again_changes_only_cells_that_are_not_compared(tiny: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny, tmp_path))
    assert notebooks.write(path)  # the time is another one
    before, after = notebooks.read(tiny), notebooks.read(path)
    assert before != after
    for cell in [*before.cells, *after.cells]:
        if IGNORE_TAG in cell.metadata.get("tags", []):
            cell.outputs = []
    assert before == after


@pytest.mark.slow
def test_writing_a_notebook_that_gives_the_same_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "01_sum.ipynb"
    assert notebooks.write(path, notebooks.from_text("A sum.\n\n```python\n1 + 1\n```\n"))
    written = path.stat().st_mtime_ns
    assert not notebooks.write(path)
    assert path.stat().st_mtime_ns == written
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('raise KeyError("left out")', "KeyError: 'left out'"),
        ("import sys\nprint('careful', file=sys.stderr)", "it wrote to stderr: careful"),
        pytest.param("while True: pass", "it takes longer than 5 s", marks=pytest.mark.slow),
        ("import os\nos._exit(1)", "the kernel died"),
    ],
    ids=["error", "stderr", "endless", "dead"],
)
def test_a_cell_that_fails_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    if source.startswith("while"):
        monkeypatch.setattr(notebooks, "CELL_TIMEOUT", 5)
    path = tmp_path / "07_broken.ipynb"
    path.write_text("what stood there")
    text = f"Fine.\n\n```python\n1 + 1\n```\n\nNot fine.\n\n```python\n{source}\n```\n"
    with pytest.raises(LessonError) as error:
        notebooks.write(path, notebooks.from_text(text))
    assert "07_broken, code cell 2 (cell 4 of 4): " in str(error.value)
    assert said in str(error.value)
    assert source.splitlines()[0] in str(error.value)
    assert path.read_text() == "what stood there"


def edited(notebook: NotebookNode) -> None:
    code(notebook, 4).source = "1 + 2"


def not_run(notebook: NotebookNode) -> None:
    code(notebook, 4).execution_count = None


def with_time(notebook: NotebookNode) -> None:
    code(notebook, 4).metadata.execution = {"iopub.status.idle": "2026-11-24T12:00:00Z"}


def with_version(notebook: NotebookNode) -> None:
    notebook.metadata.language_info.version = "3.11.2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edited, "was changed after the lesson was executed"),
        (not_run, "were not executed once each, in order"),
        (failed, "code cell 1 ended with an error"),
        (prints(1, "careful", "stderr"), "code cell 1 wrote to stderr"),
        (shows(2, WIDGET_VIEW), "not in canonical form"),
        (with_state, "not in canonical form"),
        (with_time, "not in canonical form"),
        (with_version, "not in canonical form"),
    ],
)
def test_the_check_finds_what_was_not_written_by_the_command(
    tiny: Path, tmp_path: Path, change: Callable, said: str
) -> None:
    notebook, path = notebooks.read(tiny), tmp_path / tiny.name
    change(notebook)
    path.write_text(nbformat.writes(notebook) + "\n")
    assert said in "; ".join(notebooks.problems(path))


@pytest.mark.slow
def test_the_check_finds_another_form_of_the_same(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / tiny.name
    for text in (tiny.read_text().rstrip(), tiny.read_text() + "\n", json.dumps(json.loads(tiny.read_text()))):
        path.write_text(text)
        assert "not in canonical form" in notebooks.problems(path)[0]
    path.write_text("{")
    assert "01_tiny.ipynb is not a readable notebook" in notebooks.problems(path)[0]


@pytest.mark.slow
def test_as_text_and_back(tiny: Path) -> None:
    assert notebooks.to_text(notebooks.read(tiny)) == TINY
    assert notebooks.to_text(made()) == GOOD
    hidden = code(notebooks.from_text(TINY), 4)
    assert hidden.metadata == {"tags": [HIDE_TAG], "jupyter": {"outputs_hidden": True}}
    for path in LESSONS:
        notebook = notebooks.read(path)
        back = notebooks.from_text(notebooks.to_text(notebook))
        assert [cell.id for cell in back.cells] == [cell.id for cell in notebook.cells]
    fenced = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("Write:\n```python\n1 + 1\n```")])
    with pytest.raises(ValueError, match="cannot be separated"):
        notebooks.to_text(fenced)


def test_ids_depend_on_what_the_cells_say() -> None:
    cells = notebooks.from_text("One.\n\n\nTwo.\n\n\nOne.\n").cells
    assert len({cell.id for cell in cells}) == 3
    assert notebooks.from_text("Zero.\n\n\nTwo.\n").cells[1].id == cells[1].id


@pytest.mark.slow
def test_lessons_are_found_by_number_name_and_path(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "NOTEBOOKS_DIR", tiny.parent)
    assert notebooks.find("01") == notebooks.find("1") == notebooks.find("01_tiny") == notebooks.find(str(tiny)) == tiny
    with pytest.raises(ValueError, match="no lesson named '02'.*01_tiny"):
        notebooks.find("02")
    monkeypatch.setattr(notebooks, "NOTEBOOKS_DIR", tmp_path)
    for name in ("01_a", "01_b"):
        shutil.copy(tiny, tmp_path / f"{name}.ipynb")
    with pytest.raises(ValueError, match="Two lessons are numbered 01"):
        notebooks.find("01")


@pytest.mark.slow
def test_the_command_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebooks, "NOTEBOOKS_DIR", tmp_path)
    shutil.copy(tiny, tmp_path)
    assert notebooks.main(["--text", "01"]) == 0
    assert capsys.readouterr().out == TINY
    assert notebooks.main(["--check"]) == 0
    assert capsys.readouterr().out == "1 notebook in canonical form\n"
    (tmp_path / tiny.name).write_text(tiny.read_text() + "\n")
    assert notebooks.main(["--check"]) == 1
    assert "To fix this, run: make notebooks" in capsys.readouterr().out
    assert notebooks.main(["03"]) == 1
    assert "There is no lesson named '03'" in capsys.readouterr().err
    (tmp_path / "02_new.md").write_text("New.\n\n```python\n1 + 1\n```\n")
    assert notebooks.main(["--from", str(tmp_path / "02_new.md")]) == 0
    assert "02_new.ipynb: written" in capsys.readouterr().out
    assert notebooks.problems(tmp_path / "02_new.ipynb") == []
    shutil.copy(tiny, tmp_path)
    assert notebooks.main(["--check"]) == 0
    assert capsys.readouterr().out == "2 notebooks in canonical form\n"


@pytest.mark.slow
def test_the_text_of_a_lesson_is_utf_8_whatever_the_console_is(tmp_path: Path) -> None:
    text = "ResNet \u2265 \u03b1\n\n```python\n1 + 1\n```\n"
    (tmp_path / "01_a.ipynb").write_text(notebooks.dumps(notebooks.from_text(text)), encoding="utf-8")
    command = [sys.executable, "-m", "course.notebooks", "--text", str(tmp_path / "01_a.ipynb")]
    environ = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environ, timeout=300)
    assert done.stdout.decode("utf-8").replace("\r\n", "\n") == text


@pytest.mark.parametrize("options", [["--check"], ["--text", "01"], ["01"]])
def test_without_lessons_the_command_says_where_they_are(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebooks, "NOTEBOOKS_DIR", tmp_path)
    assert notebooks.main(options) == 1
    assert "There are no lessons in" in capsys.readouterr().err
    assert lab.main([]) == 1
    assert "There are no lessons in" in capsys.readouterr().err


# The comparison.


@pytest.mark.slow
def test_a_corrupted_output_makes_the_comparison_fail(tiny: Path) -> None:
    """Also when the command line asks nbval to be lax; what is not compared may be anything."""
    for name, number, old, new in (("02_other_sum", 4, "2", "3"), ("03_other_time", 3, "", "other times")):
        notebook = notebooks.read(tiny)
        data = code(notebook, number).outputs[0].data
        assert old in data["text/plain"]
        data["text/plain"] = new
        (tiny.parent / f"{name}.ipynb").write_text(notebooks.dumps(notebook))
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--nbval-lax", "."]
    run = subprocess.run(command, cwd=tiny.parent, capture_output=True, text=True, timeout=600)
    assert run.returncode == 1, run.stdout + run.stderr
    # The corrupted output is a collapsed one.
    assert re.findall(r"^FAILED (.*?)(?: - .*)?$", run.stdout, re.MULTILINE) == ["02_other_sum.ipynb::Cell 3"]
    assert len(re.findall("^PASSED .*::Cell", run.stdout, re.MULTILINE)) == 11
    assert "Cell outputs differ" in run.stdout


GREEDY = """\
Some text.

```python
import socket, time
reached = socket.socket().connect_ex(("192.0.2.1", 80))  # no such machine: it is refused, or the time is up
time.sleep(2)
print("the network is unreachable:", "yes" if reached == 101 else "no", flush=True)
```

More text.

```python
held = b"x" * 900_000_000
```
"""


@pytest.mark.slow
def test_a_lesson_has_no_network_and_its_time_and_memory_are_limited(tmp_path: Path) -> None:
    """The limits are lowered here, so that a small lesson exceeds them."""
    text = CONFTEST.read_text()
    for old, new in (("SECONDS = 120", "SECONDS = 1"), ("GIGABYTES = 1.27", "GIGABYTES = 0.1")):
        assert text.count(f"\n{old} ") == 1
        text = text.replace(f"\n{old} ", f"\n{new} ")
    text = text.replace("cell_timeout = SECONDS", "cell_timeout = 120").replace("_timeout = SECONDS", "_timeout = 120")
    (tmp_path / "conftest.py").write_text(text)
    (tmp_path / "01_greedy.ipynb").write_text(notebooks.dumps(made(GREEDY)))
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "."]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    outcomes = dict(re.findall(r"^(?:PASSED|FAILED) 01_greedy.ipynb::(.*?)(?: - (.*))?$", run.stdout, re.MULTILINE))
    if "unshare -n is missing" in run.stdout:
        pytest.skip("Without unshare -n a lesson keeps its network.")
    assert outcomes.pop("Cell 0") == outcomes.pop("Cell 1") == outcomes.pop("without a network") == "", run.stdout
    assert re.search(r"needed [01]\.\d+ GB; at most 0\.\d+ GB", run.stdout)
    assert re.search(r"took \d+ s; at most 2 s are allowed", run.stdout)
    assert outcomes.keys() == {"in little memory", "in time"} or "when the machine is quiet" in run.stdout


@pytest.fixture
def conftest(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("lessons_conftest", CONFTEST)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_outputs_have_more_than_five_seconds_to_arrive(conftest: ModuleType) -> None:
    cell, test = SimpleNamespace(output_timeout=5), SimpleNamespace()
    conftest.pytest_collection_modifyitems([cell, test])
    assert cell.output_timeout >= 30
    assert vars(test) == {}


def test_lessons_are_never_silently_left_out(conftest: ModuleType, pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.hasplugin("nbval")
    missing = SimpleNamespace(pluginmanager=SimpleNamespace(hasplugin=lambda name: False))
    with pytest.raises(pytest.UsageError, match="nbval is missing"):
        conftest.pytest_configure(missing)


def test_pictures_that_are_pasted_into_prose_stay() -> None:
    cell = nbformat.v4.new_markdown_cell("![a dot](attachment:dot.png)")
    cell.attachments = {"dot.png": {"image/png": "iVBORw0KGgo="}}
    (kept,) = notebooks.canonicalize(nbformat.v4.new_notebook(cells=[cell])).cells
    assert kept.attachments == cell.attachments


def test_what_markdown_cannot_carry_is_refused_by_its_number() -> None:
    words, raw = nbformat.v4.new_markdown_cell("Words."), nbformat.v4.new_raw_cell("Raw.")
    pasted = nbformat.v4.new_markdown_cell("![a dot](attachment:dot.png)")
    pasted.attachments = {"dot.png": {"image/png": "iVBORw0KGgo="}}
    for cell, kind in ((pasted, "holds a pasted picture"), (raw, "is a raw one")):
        with pytest.raises(ValueError, match=f"^Cell 2 {kind}, which Markdown cannot carry"):
            notebooks.to_text(nbformat.v4.new_notebook(cells=[words, cell]))


def test_the_check_says_which_cell_and_which_line(tmp_path: Path) -> None:
    notebook, path = notebooks.from_text("One.\n\n\nTwo.\n\n\nThree.\n"), tmp_path / "01_prose.ipynb"
    text = notebooks.dumps(notebook)
    path.write_text(text)
    assert notebooks.problems(path) == []
    path.write_text(text.replace("Two.", "Another."))
    assert notebooks.problems(path) == ["cell 2 was changed after the lesson was executed"]
    lines = text.splitlines()
    lines[4] = f" {lines[4]}"
    path.write_text("\n".join(lines) + "\n")
    assert notebooks.problems(path) == ["the file is not in canonical form, from line 5 on"]


def test_a_lesson_is_executed_in_the_folder_of_its_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []

    class Client:
        def __init__(self, notebook: NotebookNode, **options: object) -> None:
            given.append(options)
            raise LessonError("no kernel is needed here")

    monkeypatch.setattr("nbclient.NotebookClient", Client)
    with pytest.raises(LessonError, match="no kernel"):
        notebooks.write(tmp_path / "01_sum.ipynb", notebooks.from_text("```python\n1 + 1\n```\n"))
    assert given[0]["resources"] == {"metadata": {"path": str(tmp_path)}}
    assert given[0]["timeout"] == notebooks.CELL_TIMEOUT
