"""What is done is remembered in one local file, and nothing that happens to that file matters to a lesson."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from course import exercises, progress_file


def table(capsys: pytest.CaptureFixture[str], *lesson: str) -> str:
    capsys.readouterr()
    exercises.progress(*lesson)
    return capsys.readouterr().out


def test_nothing_attempted(progress_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = table(capsys)
    assert "tried" not in first
    assert first.count("not attempted") == sum(1 for n in exercises.list_lessons() for _ in exercises.load(n))
    assert first == table(capsys)
    assert not progress_file.exists()
    exercises.load("04").progress()
    assert capsys.readouterr().out == table(capsys, "04")


def test_an_unfilled_lesson_writes_nothing(progress_file: Path) -> None:
    for number in exercises.list_lessons():
        for exercise in exercises.load(number):
            exercise.check(...)
    assert not progress_file.exists()


def test_tried_then_done_and_never_back(progress_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    q = exercises.load("04")
    q.law.check("a")
    assert "tried, not right yet" in table(capsys, "04")
    q.law.check("b")
    done = table(capsys, "04")
    assert "1 of 5 done" in done
    q.law.check("a")
    q.law.check("not an answer")
    assert table(capsys, "04") == done
    assert json.loads(progress_file.read_text()) == {"version": 1, "exercises": {"04.law": "done"}}
    assert list(progress_file.parent.glob("*.tmp")) == []


def test_a_prediction_counts_when_it_was_compared(progress_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    q = exercises.load("04")
    q.gradient.predict(2)
    assert not progress_file.exists()
    q.gradient.check()
    assert json.loads(progress_file.read_text())["exercises"] == {"04.gradient": "done"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'{"exercises": [1]}',
        b'{"exercises": null}',
        b"[" * 100_000,
        b'{"version": 9}',
    ],
)
def test_a_corrupt_file_is_begun_anew(content: bytes, progress_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress_file.write_bytes(content)
    shown = table(capsys)
    assert f"The progress file {progress_file} cannot be read" in " ".join(shown.split())
    exercises.load("04").law.check("b")
    assert capsys.readouterr().out.startswith("Correct")
    assert "1 of 5 done" in table(capsys, "04")
    assert progress_file.with_name("progress.json.unreadable").read_bytes() == content


def test_unknown_entries_are_passed_over(progress_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress_file.write_text('{"exercises": {"04.law": "perfect", "99.x": "done", "04.limit": "done"}}')
    assert "1 of 5 done" in table(capsys, "04")


@pytest.mark.parametrize("where", ["a folder", "under a file", "no permission"])
def test_an_unwritable_place(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "progress"
    if where == "a folder":
        path.mkdir()
    elif where == "under a file":
        path.write_text("")
        path = path / "progress.json"
    else:
        if sys.platform == "win32" or os.geteuid() == 0:
            pytest.skip("permissions do not bind this user")
        path.mkdir()
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        path = path / "progress.json"
    monkeypatch.setenv("KDLIB_PROGRESS", str(path))
    exercises.load("04").law.check("b")
    out = capsys.readouterr().out
    assert out.startswith("Correct")
    assert "could not be saved" in " ".join(out.split())
    assert "Lesson 04" in table(capsys)


SAVE = """
import sys
from course import progress_file
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    assert progress_file.save(sys.argv[1], f"e{number}", "done") == ""
"""


@pytest.mark.slow
def test_two_kernels_keep_each_others_progress(progress_file: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    kernels = [subprocess.Popen([sys.executable, "-c", SAVE, lesson], **pipes) for lesson in ("04", "05")]
    for kernel in kernels:
        assert kernel.stdout.readline() == "ready\n"
    for kernel in kernels:
        kernel.stdin.write("\n")
        kernel.stdin.flush()
    for kernel in kernels:
        _, said = kernel.communicate(timeout=50)
        assert (kernel.returncode, said) == (0, "")  # to wait for the other is nothing to tell
    assert len(json.loads(progress_file.read_text())["exercises"]) == 80
    assert [path.name for path in progress_file.parent.iterdir()] == [progress_file.name]


def test_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    untouched = table(capsys)
    monkeypatch.setenv("KDLIB_PROGRESS", "off")
    assert progress_file.path() is None
    exercises.load("04").law.check("b")
    assert table(capsys) == untouched


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of one's own, with the course in it, and the home folder that the account has."""
    place = tmp_path / "clone"
    (place / "course").mkdir(parents=True)
    (place / "pyproject.toml").write_text("")
    monkeypatch.delenv("KDLIB_PROGRESS")
    monkeypatch.setattr(progress_file, "__file__", str(place / "course" / "progress_file.py"))
    monkeypatch.setattr(progress_file, "_account_home", Path.home)
    return place


def test_the_place_does_not_depend_on_the_current_folder(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert progress_file.path() == clone / ".kdlib-progress.json"
    monkeypatch.chdir(tmp_path)
    assert progress_file.path() == clone / ".kdlib-progress.json"
    root = Path(__file__).resolve().parents[2]
    assert ".kdlib-progress.json*" in (root / ".gitignore").read_text().split()


def test_a_relative_name_is_one_file_for_all_processes(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels run in the folder of the notebook, `python -m course.quiz` in the clone."""
    monkeypatch.setenv("KDLIB_PROGRESS", "anna.json")
    for folder in (clone, tmp_path):
        monkeypatch.chdir(folder)
        assert progress_file.path() == clone / "anna.json"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # one clone for several learners
    assert progress_file.path() == Path.home() / "anna.json"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here")
def test_a_checkout_of_somebody_else_leaves_it_to_the_home_folder(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it can be written: else all learners would share one file."""
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert progress_file.path() == Path.home() / ".kdlib-progress.json"


def test_a_checkout_that_cannot_be_written_leaves_it_to_the_home_folder(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert progress_file.path() == Path.home() / ".kdlib-progress.json"


@pytest.mark.skipif(sys.platform == "win32", reason="HOME is not where Windows looks")
def test_home_alone_redirects_it(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("KDLIB_PROGRESS", raising=False)
    monkeypatch.setattr(progress_file, "__file__", str(clone / "course" / "progress_file.py"))
    for learner in ("a", "b"):  # of one account and one checkout
        home = tmp_path / learner
        home.mkdir()
        monkeypatch.setenv("HOME", str(home))
        assert progress_file.path() == home / ".kdlib-progress.json"
        exercises._load.cache_clear()
        exercises.load("04").law.check("a" if learner == "a" else "b")
    states = [(tmp_path / learner / ".kdlib-progress.json").read_text() for learner in ("a", "b")]
    assert ["tried" in states[0], "done" in states[1]] == [True, True]


def test_no_home_folder_at_all(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", none)
    assert progress_file.path() == clone / ".kdlib-progress.json"
    (clone / "pyproject.toml").unlink()
    assert progress_file.path() is None
    monkeypatch.setenv("KDLIB_PROGRESS", str(clone / "mine.json"))
    assert progress_file.path() == clone / "mine.json"


def test_off_may_be_written_in_capitals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDLIB_PROGRESS", " OFF ")
    exercises.load("04").law.check("b")
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_a_try_and_a_prediction_counts_only_when_it_could_be_compared(progress_file: Path) -> None:
    q = exercises.load("00")
    q.twin.predict("a")
    q.twin.check()  # nothing was measured
    assert not progress_file.exists()
    exercises.load("04").soften.check(lambda logits, temperature: 1 / 0)
    assert json.loads(progress_file.read_text())["exercises"] == {"04.soften": "tried"}


def test_all_lessons_are_added_up(progress_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress_file.write_text('{"exercises": {"03.shirt": "done", "04.law": "done", "04.limit": "done"}}')
    count = sum(1 for number in exercises.list_lessons() for _ in exercises.load(number))
    assert table(capsys).splitlines()[-1] == f"All lessons: 3 of {count} done"


def test_the_list_of_a_lesson_adds_up_its_minutes() -> None:
    q = exercises.load("04")
    assert f"5 exercises, about {sum(one.minutes for one in q)} minutes" in repr(q)


@pytest.mark.skipif(sys.platform == "win32", reason="no accounts here")
def test_an_account_that_only_has_a_number_is_no_error(
    clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container that was started with --user 12345."""
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.undo()
    monkeypatch.delenv("KDLIB_PROGRESS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(progress_file, "__file__", str(clone / "course" / "progress_file.py"))
    assert progress_file.path() == clone / ".kdlib-progress.json"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("KDLIB_PROGRESS", "~/mine.json")
    assert progress_file.path() == tmp_path / "mine.json"


@pytest.mark.skipif(sys.platform == "win32", reason="there the home of a user is not looked up")
def test_the_home_folder_of_nobody_is_said_and_lessons_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KDLIB_PROGRESS", "~no-such-user/mine.json")
    exercises.load("04").law.check("b")
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("Correct")
    assert "could not be saved" in out
    assert "KDLIB_PROGRESS" in out
    assert "~no-such-user" in " ".join(table(capsys, "04").split())
    assert "~no-such-user" in progress_file.forget("04")
