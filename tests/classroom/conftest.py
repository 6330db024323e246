from __future__ import annotations

from pathlib import Path

import pytest

from kdlib.classroom import exercises, sandbox
from kdlib.classroom.questions import Choice, Code, Mistake


@pytest.fixture(autouse=True)
def progress_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the learner's own progress; each starts with lessons nobody has touched."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("KDLIB_PROGRESS", str(path))
    exercises._loaded.cache_clear()
    return path


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LIMIT", 0.3)
    monkeypatch.setattr(sandbox, "PATIENCE", 0.3)


LESSONS = [exercises.load(number) for number in exercises.numbers()]
SPECS = {f"{lesson._number}.{one.name}": one._spec for lesson in LESSONS for one in lesson}
CODE = {name: spec for name, spec in SPECS.items() if isinstance(spec, Code)}
CHOICES = {name: spec for name, spec in SPECS.items() if isinstance(spec, Choice)}
MISTAKES = {f"{name}: {mistake.name}": (spec, mistake) for name, spec in CODE.items() for mistake in spec.mistakes}


@pytest.fixture(params=CODE.values(), ids=CODE.keys())
def code(request: pytest.FixtureRequest) -> Code:
    return request.param


@pytest.fixture(params=CHOICES.values(), ids=CHOICES.keys())
def choice(request: pytest.FixtureRequest) -> Choice:
    return request.param


@pytest.fixture(params=MISTAKES.values(), ids=MISTAKES.keys())
def made(request: pytest.FixtureRequest) -> tuple[Code, Mistake]:
    return request.param
