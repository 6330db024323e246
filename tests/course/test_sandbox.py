"""A learner's function may loop, print, exit or raise: the lesson goes on."""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
import time
from typing import Any

import pytest
import torch

from course import sandbox


def learner_threads() -> list[threading.Thread]:
    """The learner's threads that still run half a second from now."""
    threads = [thread for thread in threading.enumerate() if thread.name == "kdlib exercise"]
    for thread in threads:
        thread.join(0.5)
    return [thread for thread in threads if thread.ident in sys._current_frames()]


def forever() -> None:
    while True:
        pass


RELEASED = threading.Event()


def stubborn() -> None:
    while not RELEASED.is_set():
        with contextlib.suppress(BaseException):
            while not RELEASED.is_set():
                pass


def chatty() -> None:
    while True:
        print("again")


def test_a_value_comes_back() -> None:
    result = sandbox.call(lambda a, b: a + b, (1, 2))
    assert (result.value, result.error, result.timed_out, result.printed) == (3, None, False, "")


@pytest.mark.slow
@pytest.mark.parametrize("function", [forever, chatty])
def test_an_endless_function_is_stopped(
    function: Any, short_time_limit: None, capsys: pytest.CaptureFixture[str]
) -> None:
    result = sandbox.call(function, ())
    assert result.timed_out
    assert result.stopped
    assert not learner_threads()
    assert result.value is result.error is None
    assert "line" in result.location
    assert len(result.printed) <= sandbox.MAX_OUTPUT
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.slow
def test_what_cannot_be_stopped_is_left_behind(short_time_limit: None) -> None:
    for function, arguments in ((time.sleep, (4,)), (stubborn, ())):
        began = time.monotonic()
        result = sandbox.call(function, arguments)
        assert result.timed_out
        assert time.monotonic() - began < 3.5  # not as long as it sleeps, also where two workers share a slow core
        assert sandbox.call(int, (), limit=60).value == 0  # the next check works beside it
    RELEASED.set()
    for thread in learner_threads():
        thread.join()


def test_a_quick_function_is_not_kept_waiting() -> None:
    """Not until the next look at the clock, 0.05 s later: on a busy machine some calls of many are quick."""
    seconds = []
    for _ in range(20):
        began = time.monotonic()
        sandbox.call(int, ())
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.03


@pytest.mark.parametrize("leave", [sys.exit, exit, quit])  # noqa: PLR1722
def test_exit_ends_the_call_only(leave: Any) -> None:
    assert isinstance(sandbox.call(lambda: leave(), ()).error, SystemExit)


class ZMQExitAutocall:
    """Stands for a notebook's own exit(), which asks the kernel to end and raises nothing."""

    called = 0

    def __call__(self, keep_kernel: bool = False) -> None:
        type(self).called += 1


def test_a_notebooks_exit_does_not_reach_the_kernel() -> None:
    cell: dict[str, Any] = {"exit": ZMQExitAutocall(), "quit": 5}
    before = dict(cell)
    exec("def f():\n    exit()\n\ndef g():\n    return quit\n\ndef h():\n    return input()", cell)
    assert isinstance(sandbox.call(cell["f"], ()).error, SystemExit)
    assert ZMQExitAutocall.called == 0
    assert sandbox.call(cell["g"], ()).value == 5  # a variable of the learner's own stays what it is
    assert "input()" in str(sandbox.call(cell["h"], ()).error)
    assert {name: cell.get(name) for name in before} == before
    assert "input" not in cell


def test_prints_are_kept_apart_and_other_threads_keep_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    def talk() -> None:
        other = threading.Thread(target=print, args=("from elsewhere",))
        other.start()
        other.join()
        print("x" * 10_000)
        print("warned", file=sys.stderr)
        sys.stdout.flush()

    result = sandbox.call(talk, ())
    assert result.error is None
    assert result.printed == "x" * sandbox.MAX_OUTPUT
    assert capsys.readouterr().out == "from elsewhere\n"


def test_the_line_is_the_learners_own() -> None:
    def inner(x: int) -> float:
        return 1 / x

    result = sandbox.call(lambda: inner(0), ())
    assert "return 1 / x" in result.location
    assert result.error.__traceback__ is None
    assert sandbox.call(int, ("no",)).location == ""


def test_the_learners_own_stop_is_passed_on() -> None:
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        sandbox.call(forever, (), limit=20)
    assert not learner_threads()


def test_a_decorated_function_is_the_learners() -> None:
    ZMQExitAutocall.called = 0
    cell: dict[str, Any] = {"exit": ZMQExitAutocall(), "torch": torch}
    exec("@torch.no_grad()\ndef answer():\n    exit()", cell)
    assert isinstance(sandbox.call(cell["answer"], ()).error, SystemExit)
    assert ZMQExitAutocall.called == 0


def test_after_the_learners_own_stop_the_notebook_is_as_before() -> None:
    cell: dict[str, Any] = {"exit": ZMQExitAutocall()}
    before = dict(cell)
    exec("def answer():\n    while True:\n        pass", cell)
    streams = sys.stdout, sys.stderr
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        sandbox.call(cell["answer"], (), limit=20)
    assert (sys.stdout, sys.stderr) == streams
    assert "input" not in cell
    assert "quit" not in cell
    assert {name: cell[name] for name in before} == before
