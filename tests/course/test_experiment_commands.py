"""The command around every experiment: its options, one sentence for what goes wrong, and Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from course.experiments import compression_sweep, paired_data, teachers
from course.experiments.command import called, run_command

COURSE = Path(teachers.__file__).parents[1]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The exit code of commands that were called with these words."""

    def call(*words: str, **commands: Any) -> Any:
        monkeypatch.setattr(sys, "argv", ["experiment", *words])
        with pytest.raises(SystemExit) as ended:
            run_command(**commands)
        return ended.value.code

    return call


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_single_command_takes_options_alone_and_several_are_named(ends: Callable[..., Any]) -> None:
    given: list[Any] = []

    def one(seeds: Annotated[int, typer.Option(min=1)] = 5) -> None:
        given.append((seeds, called("the.module")))

    def other() -> None:
        given.append("other")

    assert ends("--seeds", "3", one=one) == 0
    assert ends("one", one=one, other=other) == 0
    assert ends("other", one=one, other=other) == 0
    assert given == [(3, "python -m the.module --seeds 3"), (5, "python -m the.module one"), "other"]
    assert ends("--seeds", "0", one=one) == 2


def test_what_a_user_can_cause_is_one_sentence(ends: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise ValueError("Give another folder.")

    assert ends(wrong=wrong) == 2
    assert capsys.readouterr().err.strip().endswith("Give another folder.")


def test_ctrl_c_says_what_the_same_command_would_do(
    ends: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "run_teachers", interrupted)
    assert ends("teachers", teachers=teachers.teachers_command, students=teachers.students_command) == 130
    assert "Stopped. The same command goes on with what is missing." in capsys.readouterr().err
    monkeypatch.setattr(compression_sweep, "run", interrupted)
    assert ends(sweep=compression_sweep.sweep) == 130
    assert "Stopped." in capsys.readouterr().err
    monkeypatch.setattr(paired_data, "write", interrupted)
    assert ends("some.whl", paired_data=paired_data.paired_data, stopped="It begins anew.") == 130
    assert "Stopped. It begins anew." in capsys.readouterr().err


def test_every_experiment_runs_that_way() -> None:
    files = [*(COURSE / "experiments").glob("*.py"), COURSE / "detection" / "__main__.py"]
    commands = [file for file in files if "typer.Option(" in file.read_text(encoding="utf-8")]
    assert len(commands) > 10
    assert [file.name for file in commands if "run_command(" not in file.read_text(encoding="utf-8")] == []
