"""Calls a learner's function so that nothing it does can break the lesson.

The function runs in its own thread, with copies of its arguments made by the caller. Its output is captured (the first
2,000 characters), `exit()` and `sys.exit()` end only the call, and after `TIME_LIMIT` seconds an exception is raised
inside the thread.

What cannot be stopped: one long call into C, such as `time.sleep(1000)` or a huge matrix product, ends only when it
returns; until then its thread stays in the background, and the lesson goes on without it. A function that catches
every exception again and again may outlive the attempts to stop it. `os._exit()`, a crash inside C and a full memory
end the process. This protects against mistakes, not against malice.
"""

from __future__ import annotations

import ctypes
import inspect
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

TIME_LIMIT = 5.0  # seconds for one call
MAX_OUTPUT = 2000  # characters of what it prints
STOP_TIMEOUT = 1.0  # seconds in which a function that does not stop is interrupted again and again


class _Stop(SystemExit):
    """Raised inside a learner's thread that runs too long; a thread that ends with SystemExit prints nothing."""


@dataclass
class CallResult:
    """The result of one call.

    value: what was returned. error: what was raised. location: where in the learner's code ("line 3: ..."), if known.
    printed: the beginning of what was printed. timed_out: whether it reached the time limit; stopped: whether it could
    then be ended.
    """

    value: Any = None
    error: BaseException | None = None
    location: str = ""
    printed: str = ""
    timed_out: bool = False
    stopped: bool = True


def call(function: Callable[..., Any], arguments: Sequence[Any], limit: float | None = None) -> CallResult:
    """Call a function with a time limit (default `TIME_LIMIT`); an exception is part of the result and is not raised.

    Only KeyboardInterrupt, the learner's own press on Stop, is passed on, after the function was stopped.
    """
    result, done = CallResult(), threading.Event()

    def work() -> None:
        try:
            result.value = function(*arguments)
        except BaseException as error:
            result.error = error
        finally:
            done.set()

    worker = threading.Thread(target=work, name="kdlib exercise", daemon=True)
    learner_globals = getattr(inspect.unwrap(function), "__globals__", None)  # under @torch.no_grad(), say
    seconds = TIME_LIMIT if limit is None else limit
    with _capture_output(worker, result), _disable_exit(learner_globals):
        worker.start()
        deadline = time.monotonic() + seconds
        try:
            # Short waits: on Windows Ctrl+C does not interrupt a long one. No join: Python 3.11 takes a thread as ended
            # when its join was interrupted.
            while _is_running(worker, done) and time.monotonic() < deadline:
                done.wait(0.05)
        except KeyboardInterrupt:
            _stop(worker, done)
            raise
        if _is_running(worker, done):
            result.timed_out = True
            frame = sys._current_frames().get(worker.ident or 0)
            result.location = _location(reversed(list(traceback.walk_stack(frame))) if frame else (), learner_globals)
            result.stopped = _stop(worker, done)
    if result.timed_out:
        result.value = result.error = None
    elif result.error is not None:
        result.location = _location(traceback.walk_tb(result.error.__traceback__), learner_globals)
        result.error = result.error.with_traceback(None)  # its frames hold the learner's tensors
    return result


def _is_running(worker: threading.Thread, done: threading.Event) -> bool:
    return not done.is_set() and worker.is_alive()


def _stop(worker: threading.Thread, done: threading.Event) -> bool:
    """Raise `_Stop` inside the thread until it ends; False if it does not."""
    end = time.monotonic() + STOP_TIMEOUT
    while _is_running(worker, done) and time.monotonic() < end:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident or 0), ctypes.py_object(_Stop))
        done.wait(0.02)
    return not _is_running(worker, done)


def _location(frames: Iterable[tuple[FrameType, int]], learner_globals: dict[str, Any] | None) -> str:
    """The innermost frame in the learner's own code as "line 3: ...", or ""; frames: the outermost first."""
    found = None
    for frame, number in frames:
        if learner_globals is not None and frame.f_globals is learner_globals:
            found = (frame.f_code.co_filename, number)
    if found is None:
        return ""
    text = linecache.getline(*found).strip()
    return f"line {found[1]}: {text}" if text else f"line {found[1]}"


class _CapturedStream:
    """A stream that captures the beginning of what one thread writes, and passes on what other threads write."""

    def __init__(self, stream: Any, worker: threading.Thread, result: CallResult) -> None:
        self._stream, self._worker, self._result = stream, worker, result

    def write(self, text: str) -> int:
        if threading.current_thread() is not self._worker:
            return self._stream.write(text)
        remaining = MAX_OUTPUT - len(self._result.printed)
        if remaining > 0:
            self._result.printed += str(text)[:remaining]
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _capture_output(worker: threading.Thread, result: CallResult) -> Iterator[None]:
    out, err = (_CapturedStream(stream, worker, result) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield


def _raise_exit(*_: object, **__: object) -> NoReturn:
    raise SystemExit


def _refuse_input(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("input() does not work while an answer is checked")


@contextmanager
def _disable_exit(namespace: dict[str, Any] | None) -> Iterator[None]:
    """Replace exit(), quit() and input() in the learner's globals while the function runs.

    A notebook's own exit() would not raise anything: it tells the kernel to end.
    """
    if namespace is None:
        yield
        return
    saved = {}
    for name, replacement in {"exit": _raise_exit, "quit": _raise_exit, "input": _refuse_input}.items():
        # The learner's own variable of that name stays; IPython's exit is an "autocall".
        if name not in namespace or type(namespace[name]).__name__.endswith("Autocall"):
            saved[name] = namespace.get(name)
            namespace[name] = replacement
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del namespace[name]
            else:
                namespace[name] = value
