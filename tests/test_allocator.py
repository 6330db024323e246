"""Freed memory stays with the process: counted in page faults, which are what it costs to get it back."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from kdlib.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="Another C library has no such settings.")

# Three blocks of 16 MiB, written and freed, thirty times: without the settings all their pages each time.
STEPS = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: where huge pages are always used, a fault brings 2 MiB
def step():
    blocks = [libc.malloc(ctypes.c_size_t(2**24)) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, 2**24)
    for block in blocks:
        libc.free(ctypes.c_void_p(block))
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 30)
"""
KEEP = "from kdlib.allocator import keep_freed_memory\nkeep_freed_memory()\n"
MANY, FEW = 2**24 // mmap.PAGESIZE, 100  # a page has 4, 16 or 64 KiB


def faults(code: str, **environment: str) -> int:
    """Page faults in each step of a process without settings of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean | environment
    )
    return int(found.stdout)


def test_it_is_kept_in_this_process() -> None:
    assert faults(STEPS) > MANY
    assert faults(KEEP + STEPS) < FEW


def test_it_is_kept_in_those_that_it_starts() -> None:
    start = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {STEPS!r}], check=True)\n"
    assert faults(start) > MANY
    assert faults(KEEP + start) < FEW


@pytest.mark.parametrize(
    "chosen",
    [
        {"MALLOC_TRIM_THRESHOLD_": "1000000", "MALLOC_MMAP_THRESHOLD_": "1000000"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000000:glibc.malloc.mmap_threshold=1000000"},
    ],
    ids=["variables", "tunables"],
)
def test_what_the_user_has_set_stays(chosen: dict[str, str]) -> None:
    assert faults(KEEP + STEPS, **chosen) > MANY


def test_an_older_library_is_asked_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """glibc before 2.35 or so refuses to map only blocks of 64 MiB, and would then map every large tensor."""
    taken: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        accepted = parameter != -3 or value <= 32 * 2**20
        taken.update({parameter: value} if accepted else {})
        return int(accepted)

    variables = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    for name in variables:
        monkeypatch.setenv(name, "")  # so that what is set below goes with the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert taken == {-3: 32 * 2**20, -1: 512 * 2**20}
    assert [os.environ[name] for name in variables[:2]] == [str(taken[-3]), str(taken[-1])]


def test_another_system_is_not_asked_for_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_opened() -> tuple[str, str]:
        raise OSError("Invalid argument")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(platform, "libc_ver", not_opened)
    keep_freed_memory()


@pytest.mark.parametrize("command", ["kdlib.cli", "kdlib.study.command", "course.lab", "course.notebooks"])
def test_the_commands_ask_for_it(command: str) -> None:
    code = (
        f"import contextlib, io, os, sys\nfrom {command} import main\nsys.argv = ['command', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n    main()\n"
    )
    assert faults(code + STEPS) < FEW
