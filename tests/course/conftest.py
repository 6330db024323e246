from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from course import exercises, notebooks, sandbox
from course.specs import CodeSpec, Mistake, QuestionSpec


@pytest.fixture(autouse=True)
def progress_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the learner's own progress; each starts with unattempted lessons."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("KDLIB_PROGRESS", str(path))
    exercises._load.cache_clear()
    return path


def _functions_of(number: str, *names: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"torch": torch, "F": F}
    for cell in notebooks.read(notebooks.find(number)).cells:
        if cell.cell_type == "code" and "tasks" not in cell.source:
            functions = [node for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]
            functions = [node for node in functions if not names or node.name in names]
            exec(compile(ast.Module(functions, []), f"lesson {number}", "exec"), namespace)
    return namespace


@pytest.fixture(scope="session")
def functions_of() -> Callable[..., dict[str, Any]]:
    """functions_of("06") has the functions that a lesson defines, by name, without those of its exercises.

    functions_of("05", "distillation_loss") has this one alone: others may need what earlier cells have computed.
    """
    return _functions_of


@pytest.fixture
def short_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "TIME_LIMIT", 0.3)
    monkeypatch.setattr(sandbox, "STOP_TIMEOUT", 0.3)


LESSONS = [exercises.load(number) for number in exercises.list_lessons()]
SPECS = {f"{lesson._number}.{one.name}": one._spec for lesson in LESSONS for one in lesson}
CODE = {name: spec for name, spec in SPECS.items() if isinstance(spec, CodeSpec)}
QUESTIONS = {name: spec for name, spec in SPECS.items() if isinstance(spec, QuestionSpec)}
MISTAKES = {f"{name}: {mistake.name}": (spec, mistake) for name, spec in CODE.items() for mistake in spec.mistakes}


@pytest.fixture(params=CODE.values(), ids=CODE.keys())
def code(request: pytest.FixtureRequest) -> CodeSpec:
    return request.param


@pytest.fixture(params=QUESTIONS.values(), ids=QUESTIONS.keys())
def question(request: pytest.FixtureRequest) -> QuestionSpec:
    return request.param


@pytest.fixture(params=MISTAKES.values(), ids=MISTAKES.keys())
def made(request: pytest.FixtureRequest) -> tuple[CodeSpec, Mistake]:
    return request.param
