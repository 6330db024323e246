"""The rules for lessons; each is a function that yields a message for every violation."""

from __future__ import annotations

import ast
import builtins
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course.notebooks import HIDE_TAG, IGNORE_TAG, WIDGET_VIEW

FIRST_SECTIONS = ["What you will be able to do", "What you need first"]
LAST_SECTIONS = ["Exercises", "Summary", "References"]
VERBS = {
    *("Build", "Count", "Debug", "Distil", "Let", "Look", "Match", "Measure", "See", "Start", "Teach", "Train", "Try"),
}
FORBIDDEN_MODULES = {
    *("glob", "importlib", "io", "logging", "os", "pathlib", "pip", "requests", "shutil", "socket", "subprocess"),
    *("sys", "tempfile", "urllib", "warnings"),
}
FORBIDDEN_NAMES = {
    *("__import__", "Output", "Path", "catch_warnings", "clear_output", "filterwarnings", "get_ipython", "interact"),
    *("load_state_dict_from_url", "open", "simplefilter", "system", "urlretrieve"),
}
PATHS = re.compile(r"^(~|\.{1,2})?/\w|^[A-Za-z]:\\|^https?://|\w\.(csv|json|npy|npz|pt|pth|png|safetensors)$")
WORD = re.compile(r"[A-Za-zÀ-ž]+(?:['’-][A-Za-zÀ-ž]+)*|\d[\d.,]*")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(|<img (?![^>]*alt=\"\w)")


@dataclass
class Lesson:
    """A notebook and its path."""

    path: Path
    notebook: NotebookNode

    @classmethod
    def read(cls, path: Path) -> Lesson:
        return cls(path, nbformat.read(path, as_version=4))

    @cached_property
    def code(self) -> list[NotebookNode]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    @cached_property
    def prose(self) -> list[str]:
        return [cell.source for cell in self.notebook.cells if cell.cell_type == "markdown"]

    @cached_property
    def headings(self) -> list[tuple[int, str]]:
        """(level, text) of each heading, in order; a # inside a block of code is not one."""
        text = re.sub(r"^```.*?^```", "", "\n\n".join(self.prose), flags=re.MULTILINE | re.DOTALL)
        return [(len(marks), title.strip()) for marks, title in re.findall(r"^(#+) +(.*)$", text, re.MULTILINE)]

    @cached_property
    def lengths(self) -> list[int]:
        """The number of lines of each code cell that are not empty."""
        return [len([line for line in cell.source.splitlines() if line.strip()]) for cell in self.code]


def is_ignored(cell: NotebookNode) -> bool:
    return IGNORE_TAG in cell.metadata.get("tags", [])


def without_formulas(text: str) -> str:
    return re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$", " ", text, flags=re.DOTALL)


def output_text(cell: NotebookNode) -> str:
    """The outputs of a code cell as text."""
    plain = [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join([output.get("text", "") for output in cell.outputs] + plain)


def anatomy(lesson: Lesson) -> Iterator[str]:
    titles = [title for level, title in lesson.headings if level == 1]
    if len(titles) != 1 or lesson.headings[0][0] != 1:
        yield f"one heading of the first level opens a lesson; there are {len(titles)}"
    elif not (titles[0].endswith("?") or titles[0].split()[0] in VERBS):
        yield f"the title {titles[0]!r} is neither a question nor begins with a verb"
    sections = [title for level, title in lesson.headings if level == 2]
    if sections[:2] != FIRST_SECTIONS or sections[-3:] != LAST_SECTIONS:
        yield f"the sections are {FIRST_SECTIONS}, the lesson, {LAST_SECTIONS}; here they are {sections}"
    elif len(sections) < 6:
        yield "there is no lesson between what is needed and the exercises"
    needed = re.search(rf"^## {FIRST_SECTIONS[1]}$(.*?)(?=^## |\Z)", "\n\n".join(lesson.prose), re.M | re.S)
    if not (needed and re.search(r"\b\d+ minutes\b", needed[1])):
        yield f"the section {FIRST_SECTIONS[1]!r} does not say how many minutes the lesson takes"


def sentences_around_code(lesson: Lesson) -> Iterator[str]:
    kinds = [cell.cell_type for cell in lesson.notebook.cells]
    for place, (kind, after) in enumerate(zip(kinds, [*kinds[1:], "code"], strict=True), 1):
        if kind == after == "code":
            yield f"after the code in cell {place} there is no observation, or before the next no sentence"
    if kinds[:1] != ["markdown"]:
        yield "the lesson begins with code"


def execution(lesson: Lesson) -> Iterator[str]:
    counts = [cell.execution_count for cell in lesson.code]
    if counts != list(range(1, len(counts) + 1)):
        yield f"the code cells were not executed once each, in order: {counts}"
    for number, cell in enumerate(lesson.code, 1):
        kinds = {output.get("name", output.output_type) for output in cell.outputs}
        if "error" in kinds:
            yield f"code cell {number} ended with an error"
        if "stderr" in kinds:
            yield f"code cell {number} wrote to stderr"


def cell_lengths(lesson: Lesson) -> Iterator[str]:
    lengths = lesson.lengths
    if statistics.median(lengths) > 5:
        yield f"the median code cell has {statistics.median(lengths)} lines, more than 5"
    high = statistics.quantiles(lengths, n=10, method="inclusive")[-1] if len(lengths) > 1 else lengths[0]
    if high > 12:
        yield f"the 90th percentile of the code cells is {high} lines, more than 12"
    if max(lengths) > 25:
        yield f"a code cell has {max(lengths)} lines, more than 25"


def prose_per_line(lesson: Lesson) -> Iterator[str]:
    text = re.sub(r"\]\([^)]*\)|`[^`]*`", " ", without_formulas("\n".join(lesson.prose)))
    ratio = len(WORD.findall(text)) / sum(lesson.lengths)
    if not 10 <= ratio <= 25:
        yield f"there are {ratio:.1f} words of prose for a line of code, not 10 to 25"


def figures(lesson: Lesson) -> Iterator[str]:
    for number, cell in enumerate(lesson.code, 1):
        for output in cell.outputs:
            for kind in output.get("data", {}):
                alt = output.metadata.get(kind, {}).get("alt", "") if kind.startswith("image/") else "none needed"
                if len(alt.split()) < 2:
                    yield f"a figure of code cell {number} has no alt text: plots.show(fig, alt=...)"
    for text in lesson.prose:
        if any(not alt.strip() for alt in IMAGE.findall(text)):
            yield f"a picture in the prose has no alt text: {text[:40]!r}"


def widgets(lesson: Lesson) -> Iterator[str]:
    if "widgets" in lesson.notebook.metadata:
        yield "the notebook holds the state of widgets"
    for number, cell in enumerate(lesson.code, 1):
        if any(WIDGET_VIEW in output.get("data", {}) for output in cell.outputs):
            yield f"code cell {number} holds the view of a widget"


def size(lesson: Lesson) -> Iterator[str]:
    size = lesson.path.stat().st_size
    if size >= 500_000:
        yield f"the file has {size:,} bytes, not less than 500,000"


def anchors(lesson: Lesson) -> set[str]:
    """The anchors of the headings, as JupyterLab makes them."""
    return {title.replace(" ", "-") for _, title in lesson.headings}


def anchors_of(path: Path) -> set[str]:
    """The anchors of another lesson, or of a page in Markdown."""
    if path.suffix == ".md":
        return {title.strip().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)}
    return anchors(Lesson.read(path))


def links(lesson: Lesson) -> Iterator[str]:
    for target in (target for text in lesson.prose for target in LINK.findall(without_formulas(text))):
        if re.match(r"https?://", target):
            continue
        name, _, heading = target.partition("#")
        other = lesson.path.parent / name if name else lesson.path
        if not other.is_file():
            yield f"the link {target} leads to no file"
        elif heading and heading not in (anchors_of(other) if name else anchors(lesson)):
            yield f"the link {target} leads to no heading"


def tags(lesson: Lesson) -> Iterator[str]:
    for number, cell in enumerate(lesson.code, 1):
        others = set(cell.metadata.get("tags", [])) - {IGNORE_TAG, HIDE_TAG}
        if others or re.search(r"#\s*(NBVAL|PYTEST_VALIDATE)", cell.source):
            yield f"code cell {number} is marked with something other than the tags {IGNORE_TAG} and {HIDE_TAG}"
    count = sum(map(is_ignored, lesson.code))
    if count > len(lesson.code) / 5:
        yield f"{count} of {len(lesson.code)} code cells are not compared, more than a fifth"
    for number, (cell, after) in enumerate(zip(lesson.code, [*lesson.code[1:], None], strict=True), 1):
        compared = after is not None and not is_ignored(after)
        if is_ignored(cell) and not (compared and output_text(after).strip()):
            yield f"after code cell {number}, which is not compared, no compared cell prints what holds on all machines"


def preview(cell: NotebookNode) -> str:
    """What JupyterLab shows of collapsed outputs: the first line of the first one, as long as it is text."""
    for output in cell.outputs[:1]:
        data = output.get("data", {"text/plain": output.get("text", "")})
        text = next((data[kind] for kind in ("text/html", "text/markdown", "text/plain") if kind in data), "")
        return next((line for line in text.splitlines() if line), "")
    return ""


def collapsed_outputs(lesson: Lesson) -> Iterator[str]:
    for number, cell in enumerate(lesson.code, 1):
        if HIDE_TAG in cell.metadata.get("tags", []) and not preview(cell).endswith(":"):
            yield (
                f"the collapsed outputs of code cell {number} give the answer away by {preview(cell)!r}, which "
                "JupyterLab shows: print a line first that ends with a colon"
            )


def no_assertions(lesson: Lesson) -> Iterator[str]:
    """A learner reads a number or a sentence; whether something is True is for tests to say."""
    for number, cell in enumerate(lesson.code, 1):
        for line in re.findall(r"^(?:.*: )?(?:True|False)$", output_text(cell), re.MULTILINE):
            yield f"code cell {number} prints an assertion, {line!r}: print the number, or a sentence that says it"


def steady_timings(lesson: Lesson) -> Iterator[str]:
    """A time whose middle half is wider than itself was taken beside other work, and tells a learner nothing."""
    for number, cell in enumerate(lesson.code, 1):
        for time, spread in re.findall(r"([\d.,]+) ms \(IQR ([\d.,]+) ms", output_text(cell)):
            if float(spread.replace(",", "")) >= float(time.replace(",", "")):
                yield f"code cell {number} shows {time} ms with an IQR of {spread}: run it on a quiet machine"


def names(lesson: Lesson) -> Iterator[str]:
    """No built-in function is hidden, and an exercise's function hides nothing that earlier cells use again."""
    earlier: set[str] = set()
    for number, cell in enumerate(lesson.code, 1):
        try:
            assigned = set(_assigned(ast.parse(cell.source)))
        except SyntaxError:  # self_contained says so
            continue
        for name in sorted(assigned & set(dir(builtins))):
            yield f"code cell {number} gives the name of the built-in {name} to something else"
        exercises = set(re.findall(r"\.check\((\w+)\)$", cell.source, re.MULTILINE))
        for name in sorted(assigned & exercises & earlier):
            yield f"the exercise in code cell {number} gives the name {name} to something else than an earlier cell"
        earlier |= assigned


def _assigned(tree: ast.Module) -> Iterator[str]:
    """The names that a cell gives to something, at its top level or in its loops."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def self_contained(lesson: Lesson) -> Iterator[str]:
    """No installation, no download, no path, no silenced warning."""
    for number, cell in enumerate(lesson.code, 1):
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:
            yield f"code cell {number} is not plain Python: no magics, no shell"
            continue
        for found in sorted(set(filter(None, map(_forbidden, ast.walk(tree))))):
            yield f"code cell {number} uses {found}, which a lesson leaves to the library"


def _forbidden(node: ast.AST) -> str:
    """What does not belong in a lesson, or ""."""
    modules: list[str] = []
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    for module in modules:
        if FORBIDDEN_MODULES & set(module.split(".")[:1]) or module.startswith("torch.hub"):
            return module
    if isinstance(node, (ast.Name, ast.Attribute)):
        name = node.id if isinstance(node, ast.Name) else node.attr
        return name if name in FORBIDDEN_NAMES else ""
    if isinstance(node, ast.keyword) and node.arg == "download":
        return "download"
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and PATHS.search(node.value.strip()):
        return repr(node.value)
    return ""


RULES: list[Callable[[Lesson], Iterator[str]]] = [
    anatomy,
    sentences_around_code,
    execution,
    cell_lengths,
    prose_per_line,
    figures,
    widgets,
    size,
    links,
    tags,
    collapsed_outputs,
    no_assertions,
    steady_timings,
    names,
    self_contained,
]
