"""A learner's progress, in one small local file; lessons work whatever happens to that file.

The file is `$KDLIB_PROGRESS` if that is set ("off": nothing is read or written; a relative name begins in the same
folder as the default), else `.kdlib-progress.json` in the cloned repository if that is the learner's own, else in the
home folder: never in the current folder, which changes. A repository is not one's own if it cannot be written, if it
belongs to another user, or if $HOME names another folder than the account's: then several learners may share it, each
with a home. The file holds the names of exercises and "done" or "tried", no answers, and it leaves the machine only if
somebody copies it. A file that cannot be read is kept beside the new one, with the suffix .unreadable.

When notebooks are executed to compare their outputs, KDLIB_PROGRESS is "off": what `progress()` prints is then the same
on every machine.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdlib.files import lock, write_text

FILE_NAME = ".kdlib-progress.json"
STATES = ("tried", "done")


def path() -> Path | None:
    """The path of the progress file, or None if it is switched off; ValueError for one in the home of nobody."""
    setting = os.environ.get("KDLIB_PROGRESS", "").strip()
    if setting.lower() == "off":
        return None
    if os.path.isabs(setting):
        return Path(setting)
    clone = Path(__file__).resolve().parents[1]
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home folder
        return clone / (setting or FILE_NAME) if (clone / "pyproject.toml").is_file() else None
    try:
        name = Path(setting or FILE_NAME).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"KDLIB_PROGRESS is {setting}, and there is no such user: set it to the path of a file, or to off"
        ) from error
    # Not in the current folder: the kernels of lessons and `python -m course.quiz` run in different ones.
    return (clone if _is_own(clone, home) else home) / name


def _is_own(clone: Path, home: Path) -> bool:
    """Whether a folder is a cloned repository that this learner has alone, as far as can be told."""
    try:
        if not (clone / "pyproject.toml").is_file() or not os.access(clone, os.W_OK):
            return False
        if hasattr(os, "geteuid") and clone.stat().st_uid != os.geteuid():
            return False
        account = _account_home()
        return account is None or account == home or account.resolve() == home.resolve()
    except OSError:
        return False


def _account_home() -> Path | None:
    """The home folder that the system has noted for this account, whatever $HOME says; None if there is none."""
    if sys.platform == "win32":
        return None
    import pwd

    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:  # an account that only has a number, as in containers
        return None


def read() -> tuple[dict[str, str], str]:
    """The states by exercise ("04.soften" -> "done"), and a sentence if the file exists but cannot be read, else ""."""
    try:
        file = path()
    except ValueError as error:
        return {}, f"{error}."
    try:
        if file is None or not file.exists():
            return {}, ""
        if not file.is_file():  # a device or a pipe, which might never end, or be replaced by the file
            raise OSError("it is no regular file")
        entries = json.loads(file.read_text(encoding="utf-8"))["exercises"]
        return {str(name): state for name, state in entries.items() if state in STATES}, ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}, f"The progress file {file} cannot be read; your next answer starts a new one."


def forget(lesson: str, exercises: Collection[str] | None = None) -> str:
    """Forget exercises of one lesson, such as the quiz, default all; returns "", or a sentence if that failed."""
    try:
        with _alone() as file:
            return _forget(file, lesson, exercises)
    except (OSError, ValueError) as error:
        return f"(Nothing could be forgotten: {_reason(error)}.)"


def _forget(file: Path | None, lesson: str, exercises: Collection[str] | None) -> str:
    entries, problem = read()
    of_lesson = {name for name in entries if name.startswith(f"{lesson}.")}
    gone = of_lesson if exercises is None else of_lesson & {f"{lesson}.{one}" for one in exercises}
    kept = {name: state for name, state in entries.items() if name not in gone}
    if file is not None and not problem and kept != entries:
        _write(file, kept)
    return problem


def save(lesson: str, exercise: str, state: str) -> str:
    """Store that an exercise was "tried" or "done"; returns "", or a sentence if that failed."""
    try:
        with _alone() as file:
            if file is not None:
                _save(file, lesson, exercise, state)
    except (OSError, ValueError) as error:
        return f"(Your progress could not be saved: {_reason(error)}. The exercises work without it.)"
    return ""


def _save(file: Path, lesson: str, exercise: str, state: str) -> None:
    entries, problem = read()
    name = f"{lesson}.{exercise}"
    if entries.get(name) in ("done", state):  # an exercise that was done once stays done
        return
    if file.exists() and not file.is_file():
        raise OSError("it is no regular file")
    if problem and file.is_file():
        file.replace(file.with_name(f"{file.name}.unreadable"))
    entries[name] = state
    _write(file, entries)


@contextmanager
def _alone() -> Iterator[Path | None]:
    """The progress file, which no other process changes inside the block: each writes all that it has read."""
    file = path()
    if file is None or (os.path.exists(file) and not os.path.isfile(file)):  # no lock in /dev: nothing is written
        yield file
        return
    with lock(file.with_name(f"{file.name}.lock"), "", wait=True):
        yield file


def _write(file: Path, entries: dict[str, str]) -> None:
    write_text(file, json.dumps({"version": 1, "exercises": dict(sorted(entries.items()))}, indent=1) + "\n")


def _reason(error: OSError | ValueError) -> object:
    return getattr(error.__cause__, "strerror", None) or getattr(error, "strerror", None) or error
