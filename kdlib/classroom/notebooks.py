"""Executes the lessons and writes them canonically: a notebook in notebooks/ is its own and only source.

    python -m kdlib.classroom.notebooks              execute all lessons and write them: make notebooks
    python -m kdlib.classroom.notebooks 04           one lesson, by its number, name or path
    python -m kdlib.classroom.notebooks --check      name the notebooks that were not written this way
    python -m kdlib.classroom.notebooks --text 04    print a lesson's cells as Markdown, to read, compare and edit
    python -m kdlib.classroom.notebooks --from 04_what_does_temperature_do.md      the way back: cells from Markdown

A lesson is edited in JupyterLab or as Markdown. In Markdown a block fenced as `python` is a code cell, what lies
between two of them is a cell of prose, and two blank lines begin another cell of prose. An ignored cell's fence reads
`python tags=["nbval-ignore-output"]`. (It is the Markdown that jupytext reads, too.)

Canonical means: every cell executed, in order, in a fresh kernel with KDLIB_PROGRESS=off; ids that follow from what the
cells say, so that they are the same every time, and a cell that was edited afterwards shows; no widget state, no widget
views, nothing on stderr, no times, no versions; keys sorted; a newline at the end. Writing a lesson again changes
nothing but the outputs of cells with the tag nbval-ignore-output.
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

from kdlib._messages import unknown

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
IGNORED = "nbval-ignore-output"  # the tag of cells that train, time or draw live widgets
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SECONDS = 120  # for one cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
FENCE = re.compile(r"^```python(?: tags=(\[[^\n]*\]))?\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


class LessonError(RuntimeError):
    """A lesson that cannot be written; the stored notebook is unchanged."""


def find(name: str) -> Path:
    """The notebook of a lesson, by number ("04"), by name or by path.

    Raises ValueError for a name that no lesson has, and for a number that two have.
    """
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in every()}
    found = [path for stem, path in known.items() if name == stem or stem.startswith(f"{name.zfill(2)}_")]
    if len(found) > 1:
        raise ValueError(f"Two lessons are numbered {name}: {', '.join(path.name for path in found)}. Rename one.")
    if not found:
        raise unknown("lesson", name, known)
    return found[0]


def every() -> list[Path]:
    """The notebooks of all lessons, ordered by number."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> NotebookNode:
    """A stored notebook; ValueError for a file that is none."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat has many ways to trip over a file
        raise ValueError(f"{path.name} is not a readable notebook ({type(error).__name__}: {error}).") from error


def execute(notebook: NotebookNode, name: str, folder: Path) -> None:
    """Run every cell in a fresh kernel and put what comes out in place of the outputs.

    Raises LessonError, saying which cell of which lesson it was and why, if a cell fails, takes longer than 120 s, or
    writes to stderr without being an ignored cell.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    environment = {**os.environ, "KDLIB_PROGRESS": "off"}
    environment.pop("MPLBACKEND", None)  # "Agg" would leave out pyplot's figures
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=SECONDS,
        startup_timeout=120,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # it warns that it can be heard on this very machine
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    with client.setup_kernel(env=environment):
        for index, cell in enumerate(notebook.cells):
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as error:
                raise _failed(name, notebook, index, f"{error.ename}: {error.evalue}") from None
            except CellTimeoutError:
                raise _failed(name, notebook, index, f"it takes longer than {SECONDS} s") from None
            except DeadKernelError:
                raise _failed(name, notebook, index, "the kernel died; was the memory used up?") from None
            if _on_stderr(cell):
                raise _failed(name, notebook, index, f"it wrote to stderr: {_on_stderr(cell)}")


def _failed(name: str, notebook: NotebookNode, index: int, why: str) -> LessonError:
    number = sum(cell.cell_type == "code" for cell in notebook.cells[: index + 1])
    source = "\n".join(f"    {line}" for line in notebook.cells[index].source.splitlines())
    text = f"{name}, code cell {number} (cell {index + 1} of {len(notebook.cells)}): {why}"
    return LessonError(f"{text}\n\n{source}\n\nThe stored notebook is unchanged.")


def _on_stderr(cell: NotebookNode) -> str:
    """What a compared cell wrote to stderr: a warning would be another one on another machine."""
    if cell.cell_type != "code" or IGNORED in _tags(cell):
        return ""
    return "".join(output.text for output in cell.outputs if output.get("name") == "stderr").strip()


def canonical(notebook: NotebookNode) -> NotebookNode:
    """The notebook in the one form that is stored; cells, their order and what they gave stay as they are."""
    cells = [_cell(cell) for cell in notebook.cells if cell.source.strip()]
    for cell, identity in zip(cells, _identities(cells), strict=True):
        cell["id"] = identity
    return nbformat.from_dict({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5})


def dumps(notebook: NotebookNode) -> str:
    """The text of the file in which the notebook is stored."""
    return nbformat.writes(canonical(notebook), version=4).rstrip("\n") + "\n"


def _tags(cell: NotebookNode) -> list[str]:
    return sorted(cell.metadata.get("tags", []))


def _cell(cell: NotebookNode) -> dict[str, Any]:
    kept: dict[str, Any] = {"cell_type": cell.cell_type, "source": cell.source.strip("\n"), "metadata": {}}
    if _tags(cell):
        kept["metadata"]["tags"] = _tags(cell)
    if "attachments" in cell:
        kept["attachments"] = cell.attachments
    if cell.cell_type == "code":
        kept["execution_count"] = cell.execution_count
        kept["outputs"] = list(_outputs(cell))
    return kept


def _outputs(cell: NotebookNode) -> Iterator[dict[str, Any]]:
    stream: dict[str, Any] = {}  # the kernel cuts what is printed into pieces as it pleases
    for output in cell.outputs:
        if output.output_type == "stream":
            if output.name == "stderr" and IGNORED in _tags(cell):
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
        kept = _without_view(output)
        if kept.get("data") != {}:
            yield kept
    if stream:
        yield stream


def _without_view(output: NotebookNode) -> dict[str, Any]:
    kept = dict(output)
    for part in ("data", "metadata"):
        if part in kept:
            kept[part] = {kind: value for kind, value in kept[part].items() if kind != WIDGET_VIEW}
    return kept


def _identities(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """An id for each cell that depends on nothing but its kind, its source and how often that stood before."""
    seen: Counter[str] = Counter()
    for cell in cells:
        digest = hashlib.sha256(f"{cell['cell_type']}\n{cell['source']}".encode()).hexdigest()[:12]
        seen[digest] += 1
        yield digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def write(path: Path, notebook: NotebookNode | None = None) -> bool:
    """Execute a lesson (the stored one, or these cells) and store it; whether that changed the file.

    Raises LessonError, ValueError or OSError, and has then changed nothing.
    """
    from kdlib.files import write_text  # imports torch

    notebook = canonical(read(path) if notebook is None else notebook)
    execute(notebook, path.stem, path.parent)
    text = dumps(notebook)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def problems(path: Path) -> list[str]:
    """In which ways a stored notebook is not what `write` would have stored; nothing is executed."""
    try:
        notebook = read(path)
    except ValueError as error:
        return [str(error)]
    found = list(_not_executed(notebook))
    pairs = enumerate(zip(notebook.cells, canonical(notebook).cells, strict=False), 1)
    edited = [number for number, (cell, wanted) in pairs if cell.get("id") != wanted.id]
    if edited:
        found.append(f"cell {edited[0]} was changed after the lesson was executed")
    stored, wanted = path.read_text(encoding="utf-8"), dumps(notebook)
    if not found and stored != wanted:
        lines = enumerate(zip(stored.splitlines(), wanted.splitlines(), strict=False), 1)
        line = next((number for number, (a, b) in lines if a != b), "the last")
        found.append(f"the file has another form than the one written here, from line {line} on")
    return found


def _not_executed(notebook: NotebookNode) -> Iterator[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "its code cells were not executed once each, in order"
    for number, cell in enumerate(code, 1):
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"code cell {number} ended with an error"
        if any(output.get("name") == "stderr" for output in cell.outputs):
            yield f"code cell {number} wrote to stderr"


def to_text(notebook: NotebookNode) -> str:
    """The cells as Markdown, without outputs."""
    text, before = "", ""
    for cell in canonical(notebook).cells:
        part = cell.source
        if cell.cell_type == "code":
            tags = f" tags={json.dumps(_tags(cell))}" if _tags(cell) else ""
            part = f"```python{tags}\n{part}\n```"
        text += "\n" * (before == cell.cell_type == "markdown") + part + "\n\n"
        before = cell.cell_type
    text = text.rstrip("\n") + "\n"
    if [cell.id for cell in from_text(text).cells] != [cell.id for cell in canonical(notebook).cells]:
        raise ValueError(
            "As Markdown the cells of this notebook cannot be told apart: a cell of prose has two blank lines in a "
            "row, or a block fenced as python. Leave one blank line, or fence the block without a language."
        )
    return text


def from_text(text: str) -> NotebookNode:
    """The notebook, not yet executed, whose cells are written as Markdown."""
    cells: list[NotebookNode] = []
    position = 0
    for block in FENCE.finditer(text):
        cells += _prose(text[position : block.start()])
        cell = nbformat.v4.new_code_cell(block[2])
        cell.metadata["tags"] = json.loads(block[1] or "[]")
        cells.append(cell)
        position = block.end()
    return canonical(nbformat.v4.new_notebook(cells=[*cells, *_prose(text[position:])]))


def _prose(text: str) -> list[NotebookNode]:
    parts = (part.strip("\n") for part in re.split(r"\n{3,}", text))
    return [nbformat.v4.new_markdown_cell(part) for part in parts if part.strip()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 if all is well, 1 if not."""
    usage, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m kdlib.classroom.notebooks",
        description=f"{usage}\n\n{rest}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("lessons", nargs="*", help="numbers, names or paths; all lessons if there are none")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--check", action="store_true", help="only look whether the notebooks were written by this command"
    )
    how.add_argument("--text", action="store_true", help="print the cells as Markdown")
    how.add_argument("--from", dest="source", type=Path, metavar="FILE.md", help="take the cells from this file")
    asked = parser.parse_args(arguments)
    try:
        if asked.source:
            return _rewrite(
                [FOLDER / f"{asked.source.stem}.ipynb"], from_text(asked.source.read_text(encoding="utf-8"))
            )
        chosen = [find(name) for name in asked.lessons] or every()
        if asked.text:
            print("\n".join(to_text(read(path)) for path in chosen), end="")
            return 0
        return _check(chosen) if asked.check else _rewrite(chosen)
    except (LessonError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _check(paths: Sequence[Path]) -> int:
    found = [f"{path.name}: {problem}" for path in paths for problem in problems(path)]
    mend = ["Mend with: make notebooks (or python -m kdlib.classroom.notebooks NUMBER)"] if found else []
    well = f"{len(paths)} notebooks, all as" if len(paths) != 1 else "1 notebook, as"
    print("\n".join([*found, *mend] or [f"{well} written by make notebooks"]))
    return int(bool(found))


def _rewrite(paths: Sequence[Path], notebook: NotebookNode | None = None) -> int:
    for path in paths:
        start = time.perf_counter()
        changed = "written" if write(path, notebook) else "unchanged"
        size = path.stat().st_size / 1000
        print(f"{path.name}: {changed}, {time.perf_counter() - start:.0f} s, {size:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
