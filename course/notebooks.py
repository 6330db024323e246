"""Executes the lessons and writes them in canonical form; a notebook in notebooks/ is its own and only source.

    python -m course.notebooks              execute all lessons and write them: make notebooks
    python -m course.notebooks 04           one lesson, by its number, name or path
    python -m course.notebooks --check      list the notebooks that are not in canonical form
    python -m course.notebooks --text 04    print a lesson's cells as Markdown, to read, compare and edit
    python -m course.notebooks --from 04_what_does_temperature_do.md      the way back: cells from Markdown

A lesson is edited in JupyterLab or as Markdown. In Markdown a block fenced as `python` is a code cell, the text between
two of them is a Markdown cell, and two blank lines begin another Markdown cell. (jupytext reads this Markdown, too.)
Tags follow the fence, as in `python tags=["hide-output"]`:

    nbval-ignore-output   the outputs are not compared: for cells that train, measure time or show live widgets
    hide-output           the outputs are stored collapsed, and open by a click in JupyterLab: for cells that answer a
                          prediction. They are compared like all others. JupyterLab shows their first line, so a cell
                          prints a line first that reveals nothing, such as "Parameters of both networks:"

Canonical means: every cell executed, in order, in a fresh kernel with KDLIB_PROGRESS=off, on the CPU; ids that follow
from the sources of the cells, so that they are the same every time and a later edit is noticed; collapsed outputs
exactly where the tag says so; no widget state, no widget views, nothing on stderr, no times, no versions; keys sorted;
a newline at the end. Writing a lesson again changes nothing but the outputs of cells with the tag nbval-ignore-output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from kdlib.allocator import keep_freed_memory
from kdlib.errors import escape_unprintable, unknown_name

NOTEBOOKS_DIR = Path(__file__).resolve().parents[1] / "notebooks"
IGNORE_TAG, HIDE_TAG = "nbval-ignore-output", "hide-output"
HIDDEN_OUTPUTS = {"outputs_hidden": True}  # JupyterLab's own metadata, under "jupyter"; it reads nothing else for this
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_TIMEOUT = 120  # seconds
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
FENCE = re.compile(r"^```python(?: tags=(\[[^\n]*\]))?\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


class LessonError(RuntimeError):
    """A lesson that cannot be written; the stored notebook is unchanged."""


def find(name: str) -> Path:
    """The path of a lesson by its number ("04"), name or path.

    Raises ValueError for an unknown name, and for a number that two lessons have.
    """
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in list_notebooks()}
    matches = [path for stem, path in known.items() if name == stem or stem.startswith(f"{name.zfill(2)}_")]
    if len(matches) > 1:
        raise ValueError(f"Two lessons are numbered {name}: {', '.join(path.name for path in matches)}. Rename one.")
    if not matches:
        raise unknown_name("lesson", name, known)
    return matches[0]


def list_notebooks() -> list[Path]:
    """The paths of all lessons, ordered by number."""
    return sorted(NOTEBOOKS_DIR.glob("*.ipynb"))


def no_lessons() -> str:
    """What to say where `list_notebooks` finds none."""
    return (
        f"There are no lessons in {NOTEBOOKS_DIR}. They are in the repository, not in the package: clone it, and run "
        "make lab there."
    )


def read(path: Path) -> NotebookNode:
    """A stored notebook; raises ValueError for a file that is not one."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises errors of many types
        raise ValueError(f"{path.name} is not a readable notebook ({type(error).__name__}: {error}).") from error


def execute(notebook: NotebookNode, name: str, folder: Path) -> None:
    """Run every cell in a fresh kernel and replace its outputs; folder: the kernel's working directory.

    Raises LessonError, with the lesson, the cell and the reason, if a cell fails, takes longer than 120 s, or writes to
    stderr without the tag nbval-ignore-output.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    environment = {"KDLIB_DEVICE": "cpu", **os.environ, "KDLIB_PROGRESS": "off"}
    environment.pop("MPLBACKEND", None)  # "Agg" would leave out pyplot's figures
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=CELL_TIMEOUT,
        startup_timeout=120,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else it warns about unencrypted local ports
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    with client.setup_kernel(env=environment):
        for index, cell in enumerate(notebook.cells):
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as error:
                raise _lesson_error(name, notebook, index, f"{error.ename}: {error.evalue}") from None
            except CellTimeoutError:
                raise _lesson_error(name, notebook, index, f"it takes longer than {CELL_TIMEOUT} s") from None
            except DeadKernelError:
                raise _lesson_error(name, notebook, index, "the kernel died; was the memory used up?") from None
            if _stderr_of(cell):
                raise _lesson_error(name, notebook, index, f"it wrote to stderr: {_stderr_of(cell)}")


def _lesson_error(name: str, notebook: NotebookNode, index: int, reason: str) -> LessonError:
    number = sum(cell.cell_type == "code" for cell in notebook.cells[: index + 1])
    source = "\n".join(f"    {line}" for line in notebook.cells[index].source.splitlines())
    text = f"{name}, code cell {number} (cell {index + 1} of {len(notebook.cells)}): {reason}"
    return LessonError(f"{text}\n\n{source}\n\nThe stored notebook is unchanged.")


def _stderr_of(cell: NotebookNode) -> str:
    """What a compared cell wrote to stderr: warnings differ from machine to machine."""
    if cell.cell_type != "code" or IGNORE_TAG in _tags(cell):
        return ""
    return "".join(output.text for output in cell.outputs if output.get("name") == "stderr").strip()


def canonicalize(notebook: NotebookNode) -> NotebookNode:
    """The notebook in the form that is stored: the same cells, order and outputs."""
    cells = [_canonical_cell(cell) for cell in notebook.cells if cell.source.strip()]
    for cell, cell_id in zip(cells, _cell_ids(cells), strict=True):
        cell["id"] = cell_id
    return nbformat.from_dict({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5})


def dumps(notebook: NotebookNode) -> str:
    """The text of the stored file."""
    return nbformat.writes(canonicalize(notebook), version=4).rstrip("\n") + "\n"


def _tags(cell: NotebookNode) -> list[str]:
    return sorted(cell.metadata.get("tags", []))


def _canonical_cell(cell: NotebookNode) -> dict[str, Any]:
    kept: dict[str, Any] = {"cell_type": cell.cell_type, "source": cell.source.strip("\n"), "metadata": {}}
    if _tags(cell):
        kept["metadata"]["tags"] = _tags(cell)
    if cell.cell_type == "code" and HIDE_TAG in _tags(cell):
        kept["metadata"]["jupyter"] = dict(HIDDEN_OUTPUTS)
    if "attachments" in cell:
        kept["attachments"] = cell.attachments
    if cell.cell_type == "code":
        kept["execution_count"] = cell.execution_count
        kept["outputs"] = list(_canonical_outputs(cell))
    return kept


def _canonical_outputs(cell: NotebookNode) -> Iterator[dict[str, Any]]:
    stream: dict[str, Any] = {}  # the kernel may send printed text in any number of pieces
    for output in cell.outputs:
        if output.output_type == "stream":
            if output.name == "stderr" and IGNORE_TAG in _tags(cell):
                continue
            if stream.get("name") == output.name:
                stream["text"] += output.text
                continue
            if stream:
                yield stream
            stream = dict(output)
            continue
        if stream:
            yield stream
            stream = {}
        kept = _without_widget_view(output)
        if kept.get("data") != {}:
            yield kept
    if stream:
        yield stream


def _without_widget_view(output: NotebookNode) -> dict[str, Any]:
    kept = dict(output)
    for part in ("data", "metadata"):
        if part in kept:
            kept[part] = {kind: value for kind, value in kept[part].items() if kind != WIDGET_VIEW}
    return kept


def _cell_ids(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """An id for each cell that depends only on its type, its source and the number of equal cells before it."""
    seen: Counter[str] = Counter()
    for cell in cells:
        digest = hashlib.sha256(f"{cell['cell_type']}\n{cell['source']}".encode()).hexdigest()[:12]
        seen[digest] += 1
        yield digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def write(path: Path, notebook: NotebookNode | None = None) -> bool:
    """Execute a lesson (the stored one, or the given notebook) and store it; returns whether the file changed.

    Raises LessonError, ValueError or OSError; the stored notebook is then unchanged.
    """
    from kdlib.files import write_text  # imports torch

    notebook = canonicalize(read(path) if notebook is None else notebook)
    execute(notebook, path.stem, path.parent)
    text = dumps(notebook)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def problems(path: Path) -> list[str]:
    """The differences between a stored notebook and what `write` would have stored; nothing is executed."""
    try:
        notebook = read(path)
    except ValueError as error:
        return [str(error)]
    found = list(_execution_problems(notebook))
    pairs = enumerate(zip(notebook.cells, canonicalize(notebook).cells, strict=False), 1)
    edited = [number for number, (cell, wanted) in pairs if cell.get("id") != wanted.id]
    if edited:
        found.append(f"cell {edited[0]} was changed after the lesson was executed")
    stored, wanted = path.read_text(encoding="utf-8"), dumps(notebook)
    if not found and stored != wanted:
        lines = enumerate(zip(stored.splitlines(), wanted.splitlines(), strict=False), 1)
        line = next((number for number, (a, b) in lines if a != b), "the last")
        found.append(f"the file is not in canonical form, from line {line} on")
    return found


def _execution_problems(notebook: NotebookNode) -> Iterator[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "its code cells were not executed once each, in order"
    for number, cell in enumerate(code, 1):
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"code cell {number} ended with an error"
        if any(output.get("name") == "stderr" for output in cell.outputs):
            yield f"code cell {number} wrote to stderr"


def to_text(notebook: NotebookNode) -> str:
    """The cells as Markdown, without outputs; raises ValueError for cells that could not be read back."""
    text, previous = "", ""
    for number, cell in enumerate(canonicalize(notebook).cells, 1):
        if cell.get("attachments") or cell.cell_type == "raw":
            kind = "is a raw one" if cell.cell_type == "raw" else "holds a pasted picture"
            raise ValueError(f"Cell {number} {kind}, which Markdown cannot carry. Edit this notebook in JupyterLab.")
        part = cell.source
        if cell.cell_type == "code":
            tags = f" tags={json.dumps(_tags(cell))}" if _tags(cell) else ""
            part = f"```python{tags}\n{part}\n```"
        text += "\n" * (previous == cell.cell_type == "markdown") + part + "\n\n"
        previous = cell.cell_type
    text = text.rstrip("\n") + "\n"
    if [cell.id for cell in from_text(text).cells] != [cell.id for cell in canonicalize(notebook).cells]:
        raise ValueError(
            "As Markdown the cells of this notebook cannot be separated: a Markdown cell has two blank lines in a row, "
            "or a block fenced as python. Leave one blank line, or fence the block without a language."
        )
    return text


def from_text(text: str) -> NotebookNode:
    """The notebook, not yet executed, with the cells that the Markdown describes."""
    cells: list[NotebookNode] = []
    position = 0
    for block in FENCE.finditer(text):
        cells += _markdown_cells(text[position : block.start()])
        cell = nbformat.v4.new_code_cell(block[2])
        cell.metadata["tags"] = json.loads(block[1] or "[]")
        cells.append(cell)
        position = block.end()
    return canonicalize(nbformat.v4.new_notebook(cells=[*cells, *_markdown_cells(text[position:])]))


def _markdown_cells(text: str) -> list[NotebookNode]:
    parts = (part.strip("\n") for part in re.split(r"\n{3,}", text))
    return [nbformat.v4.new_markdown_cell(part) for part in parts if part.strip()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 1 after an error."""
    escape_unprintable()
    keep_freed_memory()  # its kernels as well
    usage, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m course.notebooks",
        description=f"{usage}\n\n{rest}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("lessons", nargs="*", help="numbers, names or paths; all lessons if there are none")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="only check whether the notebooks are in canonical form")
    how.add_argument("--text", action="store_true", help="print the cells as Markdown")
    how.add_argument("--from", dest="source", type=Path, metavar="FILE.md", help="take the cells from this file")
    options = parser.parse_args(arguments)
    try:
        if not list_notebooks():
            raise LessonError(no_lessons())
        if options.source:
            return _write_all(
                [NOTEBOOKS_DIR / f"{options.source.stem}.ipynb"], from_text(options.source.read_text(encoding="utf-8"))
            )
        chosen = [find(name) for name in options.lessons] or list_notebooks()
        if options.text:
            if hasattr(sys.stdout, "reconfigure"):
                sys.stdout.reconfigure(encoding="utf-8")  # in which --from reads, whatever the console's encoding is
            print("\n".join(to_text(read(path)) for path in chosen), end="")
            return 0
        return _check(chosen) if options.check else _write_all(chosen)
    except (LessonError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _check(paths: Sequence[Path]) -> int:
    found = [f"{path.name}: {problem}" for path in paths for problem in problems(path)]
    fix = ["To fix this, run: make notebooks (or python -m course.notebooks NUMBER)"] if found else []
    count = f"{len(paths)} notebooks" if len(paths) != 1 else "1 notebook"
    print("\n".join([*found, *fix] or [f"{count} in canonical form"]))
    return int(bool(found))


def _write_all(paths: Sequence[Path], notebook: NotebookNode | None = None) -> int:
    for path in paths:
        start = time.perf_counter()
        changed = "written" if write(path, notebook) else "unchanged"
        size = path.stat().st_size / 1000
        print(f"{path.name}: {changed}, {time.perf_counter() - start:.0f} s, {size:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
