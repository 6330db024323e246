"""What a learner has done so far, in one small local file; a lesson goes on whatever happens to that file.

The file is `$KDLIB_PROGRESS` if that is set ("off": nothing is read or written), else `.kdlib-progress.json` in the
cloned repository, else in the home folder: never in the current folder, which changes. It holds the names of
exercises and "done" or "tried", no answers, and it leaves the machine only if somebody copies it. A file that cannot be
read is kept beside the new one, with the ending .unreadable.

Whoever executes a notebook to compare its outputs sets KDLIB_PROGRESS=off: what `progress()` prints is then the same on
every machine.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from kdlib.files import write_text

NAME = ".kdlib-progress.json"
STATES = ("tried", "done")


def place() -> Path | None:
    """Where the record lies, or None if it was switched off."""
    asked = os.environ.get("KDLIB_PROGRESS", "").strip()
    if asked:
        return None if asked.lower() == "off" else Path(asked)
    clone = Path(__file__).resolve().parents[2]
    try:
        return (clone if (clone / "pyproject.toml").is_file() else Path.home()) / NAME
    except RuntimeError:  # a user without a home
        return None


def read() -> tuple[dict[str, str], str]:
    """The record ("04.soften" -> "done") and, if the file is there but cannot be read, a sentence that says so."""
    path = place()
    try:
        if path is None or not path.exists():
            return {}, ""
        entries = json.loads(path.read_text(encoding="utf-8"))["exercises"]
        return {str(name): state for name, state in entries.items() if state in STATES}, ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}, f"The progress file {path} cannot be read; it is begun anew with your next answer."


def note(lesson: str, exercise: str, state: str) -> str:
    """Remember that an exercise was "tried" or "done"; the answer is "", or a sentence if it could not be saved."""
    path = place()
    if path is None:
        return ""
    entries, trouble = read()
    name = f"{lesson}.{exercise}"
    if entries.get(name) in ("done", state):  # what was done once stays done
        return ""
    try:
        if trouble and path.is_file():
            path.replace(path.with_name(f"{path.name}.unreadable"))
        entries[name] = state
        write_text(path, json.dumps({"version": 1, "exercises": dict(sorted(entries.items()))}, indent=1) + "\n")
    except (OSError, ValueError) as error:
        reason = getattr(error.__cause__, "strerror", None) or getattr(error, "strerror", None) or error
        return f"(Your progress could not be saved: {reason}. The exercises work without it.)"
    return ""
