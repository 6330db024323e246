from __future__ import annotations

from pathlib import Path

import pytest

from course import exercises, sandbox
from course.specs import CodeSpec, Mistake, QuestionSpec


@pytest.fixture(autouse=True)
def progress_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the learner's own progress; each starts with unattempted lessons."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("KDLIB_PROGRESS", str(path))
    exercises._load.cache_clear()
    return path


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
