"""What `make lab` starts, in a copy of the course and without a learner's settings: the first lesson, no more."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from lab import ROOT, Lab

from course import notebooks

FIRST = notebooks.list_notebooks()[0]
POP_UPS = ".Toastify__toast, .jp-Dialog"
SILENCE = 5_000  # ms; without the launcher's settings Jupyter's question about news comes within one second


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("course")
    for name in ("kdlib", "course", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    (folder / "data").symlink_to(ROOT / "data")
    return folder


@pytest.fixture(scope="module")
def twins(chromium: Any, copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Lab]]:
    """Two that run at the same time, as when `make lab` is called twice."""
    home = tmp_path_factory.mktemp("learner")
    both = [Lab(home / name, course=copy) for name in ("one", "two")]
    yield both
    for server in both:
        server.close()


def test_make_lab_starts_what_is_tested_here() -> None:
    # Inside `make test` a second make would tell which directory it enters and leaves.
    command = ["make", "--no-print-directory", "-n", "lab"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == ".venv/bin/python -m course.lab"


def test_the_first_lesson_is_shown_and_nothing_pops_up(
    twins: list[Lab], page: Any, look: Callable[[str], None]
) -> None:
    lab = twins[0]
    title = next(cell.source for cell in nbformat.read(FIRST, 4).cells if cell.source.startswith("# "))
    page.goto(f"{lab.address}{lab.lesson}?token={lab.token}")
    page.locator(".jp-Notebook h1", has_text=title.splitlines()[0].removeprefix("# ")).wait_for()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    page.wait_for_timeout(SILENCE)
    look("make lab")
    assert page.locator(POP_UPS).all_inner_texts() == []
    assert page.locator(".lm-DockPanel-tabBar .lm-TabBar-tabLabel").all_inner_texts() == [FIRST.name]


@pytest.mark.parametrize("number", [0, 1])
def test_all_that_the_terminal_shows_is_the_address(twins: list[Lab], number: int) -> None:
    """Also after a page was open and its kernel ran: this test comes after the one above."""
    path = f"/lab/tree/notebooks/{FIRST.name}"
    expected = rf"JupyterLab \(Ctrl-C stops it\): http://127\.0\.0\.1:\d+{re.escape(path)}\?token=\w{{32,}}\n"
    assert re.fullmatch(expected, twins[number].log.read_text())


def test_a_second_one_takes_another_port(twins: list[Lab]) -> None:
    one, two = twins
    assert one.address != two.address
    assert one.token != two.token
    for server in twins:
        assert server.process.poll() is None
        assert server.ask("GET", "contents/notebooks")["type"] == "directory"
