"""How `python -m course.lab` passes options on to Jupyter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from course import lab, notebooks


class Stop(Exception):
    pass


@pytest.mark.slow
def test_a_terminal_of_jupyterlab_finds_the_commands_of_the_lessons(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server started as `.venv/bin/python -m course.lab` gives its terminals the path that it has itself."""
    found: dict[str, str | None] = {}

    def initialize(argv: list[str]) -> None:
        found.update({name: shutil.which(name) for name in ("python", "kdlib")})
        raise Stop

    monkeypatch.setattr("jupyterlab.labapp.LabApp.initialize_server", initialize)
    monkeypatch.setenv("PATH", os.defpath)
    with pytest.raises(Stop):
        lab.launch(notebooks.list_notebooks()[0], [], tmp_path)
    folder = Path(sys.executable).parent
    assert found == {name: str(folder / name) for name in ("python", "kdlib")}


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--ip=0.0.0.0"], ["--ServerApp.ip=0.0.0.0"], ["--ServerApp.ip", "0.0.0.0"]])
def test_an_option_overrides_what_the_course_sets(
    options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    def initialize(argv: list[str]) -> None:
        seen.extend(argv)
        raise Stop

    monkeypatch.setattr("jupyterlab.labapp.LabApp.initialize_server", initialize)
    with pytest.raises(Stop):
        lab.launch(notebooks.list_notebooks()[0], options, tmp_path)
    assert not any(one.startswith("--ServerApp.ip=127") for one in seen)
    assert any(one.startswith("--ServerApp.root_dir=") for one in seen)
    assert seen[-len(options) :] == options


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_says_what_the_command_does(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.main([option]) == 0
    printed = capsys.readouterr().out
    assert "--no-browser" in printed
    assert "jupyter lab --help-all" in printed


def test_without_jupyterlab_a_sentence_says_how_to_install_it() -> None:
    # As after `make distill`: nothing that comes with JupyterLab alone is there either.
    code = "import sys; sys.modules.update(dict.fromkeys(('jupyterlab', 'nbformat', 'nbclient'))); "
    code += "from course import lab; sys.exit(lab.main([]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "make lab" in done.stderr
    assert len(done.stderr.splitlines()) == 1
