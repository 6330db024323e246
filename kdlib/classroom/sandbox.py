"""Calls a learner's function so that nothing it does can break the lesson.

The function runs in a thread of its own, with copies of its arguments made by the caller. What it prints is kept
apart (the first 2,000 characters), `exit()` and `sys.exit()` end the call only, and after `LIMIT` seconds an
exception is raised inside the thread.

What cannot be stopped: one long call into C, such as `time.sleep(1000)` or a huge matrix product, is left only when it
returns; until then its thread lives on in the background, and the lesson goes on without it. A function that catches
every exception again and again may outlive a second of attempts. `os._exit()`, a crash inside C and a memory that
runs full end the process. This guards against mistakes, not against malice.
"""

from __future__ import annotations

import ctypes
import linecache
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

LIMIT = 5.0  # seconds for one call
KEPT = 2000  # characters of what it prints
PATIENCE = 1.0  # seconds in which a function that does not stop is asked again and again


class _Stop(SystemExit):
    """Raised inside a learner's thread that runs too long; threads pass over a SystemExit in silence."""


@dataclass
class Trial:
    """What came of one call.

    value: what was returned. error: what was raised. line: where in the learner's code ("line 3: ..."), if known.
    printed: the beginning of what was printed. late: it ran into the limit; stopped: and it could be ended.
    """

    value: Any = None
    error: BaseException | None = None
    line: str = ""
    printed: str = ""
    late: bool = False
    stopped: bool = True


def call(function: Callable[..., Any], arguments: Sequence[Any], limit: float | None = None) -> Trial:
    """Call a function with a time limit (default `LIMIT`); whatever it does is told by the Trial, not raised.

    Only KeyboardInterrupt, the learner's own press on Stop, is passed on, after the function was stopped.
    """
    trial, done = Trial(), threading.Event()

    def work() -> None:
        try:
            trial.value = function(*arguments)
        except BaseException as error:
            trial.error = error
        finally:
            done.set()

    worker = threading.Thread(target=work, name="kdlib exercise", daemon=True)
    ours = getattr(function, "__globals__", None)
    seconds = LIMIT if limit is None else limit
    with _overheard(worker, trial), _without_exit(ours):
        worker.start()
        deadline = time.monotonic() + seconds
        try:
            # In small portions: on Windows a long wait does not hear Ctrl+C. And no join: one that is interrupted takes
            # the thread for ended (Python 3.11).
            while _runs(worker, done) and time.monotonic() < deadline:
                done.wait(0.05)
        except KeyboardInterrupt:
            _stop(worker, done)
            raise
        if _runs(worker, done):
            trial.late = True
            frame = sys._current_frames().get(worker.ident or 0)
            trial.line = _line(reversed(list(traceback.walk_stack(frame))) if frame else (), ours)
            trial.stopped = _stop(worker, done)
    if trial.late:
        trial.value = trial.error = None
    elif trial.error is not None:
        trial.line = _line(traceback.walk_tb(trial.error.__traceback__), ours)
        trial.error = trial.error.with_traceback(None)  # the frames hold the learner's tensors
    return trial


def _runs(worker: threading.Thread, done: threading.Event) -> bool:
    return not done.is_set() and worker.is_alive()


def _stop(worker: threading.Thread, done: threading.Event) -> bool:
    """Raise `_Stop` inside the thread until it ends; False if it does not."""
    end = time.monotonic() + PATIENCE
    while _runs(worker, done) and time.monotonic() < end:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident or 0), ctypes.py_object(_Stop))
        done.wait(0.02)
    return not _runs(worker, done)


def _line(frames: Iterable[tuple[FrameType, int]], ours: dict[str, Any] | None) -> str:
    """The innermost of the frames, outermost first, that lies in the learner's own code; "" if none does."""
    place = None
    for frame, number in frames:
        if ours is not None and frame.f_globals is ours:
            place = (frame.f_code.co_filename, number)
    if place is None:
        return ""
    text = linecache.getline(*place).strip()
    return f"line {place[1]}: {text}" if text else f"line {place[1]}"


class _Overhearing:
    """A stream that keeps the beginning of what one thread writes, and passes on what others write."""

    def __init__(self, stream: Any, worker: threading.Thread, trial: Trial) -> None:
        self._stream, self._worker, self._trial = stream, worker, trial

    def write(self, text: str) -> int:
        if threading.current_thread() is not self._worker:
            return self._stream.write(text)
        room = KEPT - len(self._trial.printed)
        if room > 0:
            self._trial.printed += str(text)[:room]
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _overheard(worker: threading.Thread, trial: Trial) -> Iterator[None]:
    out, err = (_Overhearing(stream, worker, trial) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):  # type: ignore[type-var]
        yield


def _leave(*_: object, **__: object) -> NoReturn:
    raise SystemExit


def _refuse_input(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("input() cannot be answered while an answer is checked")


@contextmanager
def _without_exit(names: dict[str, Any] | None) -> Iterator[None]:
    """Take the sting out of exit(), quit() and input() as the learner's code sees them.

    A notebook's own exit() would not raise anything: it asks the kernel to end.
    """
    if names is None:
        yield
        return
    saved = {}
    for name, harmless in {"exit": _leave, "quit": _leave, "input": _refuse_input}.items():
        # A variable of that name that the learner made stays; IPython's own exit is an "autocall".
        if name not in names or type(names[name]).__name__.endswith("Autocall"):
            saved[name] = names.get(name)
            names[name] = harmless
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del names[name]
            else:
                names[name] = value
