"""With this file `pytest` executes every lesson again, compares what its cells give, and fails where they differ.

It is strict whatever the command line says: every cell is compared but those with the tag nbval-ignore-output. Three
more tests follow the cells of a lesson: that they ran without a network, in time, and in little memory. A lesson that
asks torch for one thread is marked one_thread: on two cores two of them run side by side and are hardly slower.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdlib.allocator import keep_freed_memory

MISSING = "nbval is missing, so no lesson would be tested. Run: make test"
try:
    from jupyter_client.manager import KernelManager
    from nbval import kernel
    from nbval.plugin import IPyNbFile
except ImportError as error:
    raise pytest.UsageError(MISSING) from error

SECONDS = 120  # for one cell, and for a lesson
LONGER = {"08": 180}  # lesson 08 trains four ResNet-18
SLOW_MACHINE = 1.5  # machines with two cores differ by a factor of two; a lesson is written on a middling one
GIGABYTES = 1.27  # for the kernel of a lesson, beyond what torch takes: 1.5 with the build for CPUs
OUTPUT_SECONDS = 60  # nbval gives an output 5 s to arrive, which a busy machine exceeds
WITH_LOOPBACK = ["sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh"]  # as on any machine without a network


def pytest_configure(config: pytest.Config) -> None:
    """Ask nbval for the strict comparison, in the environment of pytest itself."""
    keep_freed_memory()  # the kernels and the workers of xdist as well
    if not config.pluginmanager.hasplugin("nbval"):
        raise pytest.UsageError(MISSING)
    config.option.nbval, config.option.nbval_lax = True, False
    config.option.nbval_current_env = True
    config.option.nbval_cell_timeout = SECONDS
    config.option.nbval_kernel_startup_timeout = SECONDS
    os.environ["KDLIB_PROGRESS"] = "off"  # what this learner has done would be another output
    os.environ.setdefault("KDLIB_DEVICE", "cpu")  # whose numbers the lessons hold; another device has others
    os.environ.pop("MPLBACKEND", None)  # "Agg" would leave out pyplot's figures


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Iterator[None]:
    """Take notebooks as lessons."""
    found = yield
    return [Lesson.from_parent(parent, path=file_path) if isinstance(one, IPyNbFile) else one for one in found]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the outputs more time."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = OUTPUT_SECONDS


@functools.cache
def cut_off() -> list[str]:
    """What to put before a command so that it has no network; nothing where this machine does not permit that."""
    for how in ("-rn", "-n"):  # for any user where that is allowed; for root
        command = ["unshare", how, *WITH_LOOPBACK]
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return []


class Offline(KernelManager):
    """A kernel without a network, spoken to through files because it has none."""

    def __init__(self, **given: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kernel-")
        super().__init__(transport="ipc", ip=str(Path(self._folder.name) / "kernel"), **given)

    def format_kernel_cmd(self, *given: Any, **named: Any) -> list[str]:
        """The command that starts the kernel."""
        return [*cut_off(), *super().format_kernel_cmd(*given, **named)]


class Lesson(IPyNbFile):
    """A notebook whose cells are executed and compared, and after them the limits of every lesson."""

    start = 0.0

    def setup(self) -> None:
        """Start the clock and the kernel."""
        self.start = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            if cut_off():
                patch.setattr(kernel, "KernelManager", Offline)
            super().setup()

    def collect(self) -> Iterator[pytest.Item]:
        """The cells, and then the limits, while the kernel still runs."""
        if "torch.set_num_threads(1)" in self.path.read_text(encoding="utf-8"):
            self.add_marker("one_thread")
        yield from super().collect()
        for name, test in LIMITS.items():
            yield Limit.from_parent(self, name=name, test=test)

    def about_kernel(self, what: str) -> str:
        """A file in which Linux describes the kernel's process."""
        path = Path(f"/proc/{self.kernel.km.provisioner.pid}/{what}")
        if not path.is_file():
            pytest.skip(f"Only Linux tells this, in {path}.")
        return path.read_text()


class Limit(pytest.Item):
    """What must be true of a lesson after its cells were run."""

    def __init__(self, *, test: Callable[[Lesson], None], **given: Any) -> None:
        super().__init__(**given)
        self.test = test

    def runtest(self) -> None:
        """Look whether it is true."""
        self.test(self.parent)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where it is, and its name."""
        return self.path, 0, f"{self.path.name}::{self.name}"


def without_network(lesson: Lesson) -> None:
    """Nothing that the lesson did can have reached another machine."""
    if not cut_off():
        pytest.skip("This machine does not let us take the network away: unshare -n is missing or not permitted.")
    routes = lesson.about_kernel("net/route").splitlines()[1:]
    if routes:
        pytest.fail(f"The kernel should have had no network, but it has routes: {routes}", pytrace=False)


def in_time(lesson: Lesson) -> None:
    """The lesson ended in time, its kernel's start included; a machine that was busy otherwise cannot tell."""
    seconds, allowed = time.monotonic() - lesson.start, SLOW_MACHINE * LONGER.get(lesson.path.name[:2], SECONDS)
    if seconds <= allowed:
        return
    said = f"{lesson.name} took {seconds:.0f} s; at most {allowed:.0f} s are allowed."
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores + 1:
        ticks = lesson.about_kernel("stat").rpartition(")")[2].split()[11:13]  # in its own code, and in the system's
        worked = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        said += f" Its kernel was at work for {worked:.0f} s, and {load:.1f} processes shared {cores} cores."
        if worked <= allowed:
            pytest.skip(f"{said} Run it again when the machine is quiet.")
    pytest.fail(said, pytrace=False)


def in_little_memory(lesson: Lesson) -> None:
    """The kernel never needed more memory than the smallest machine in the room has to spare."""
    # Not getrusage: there, a new process begins with the peak of the one that started it.
    peak, allowed = peak_gigabytes(lesson.about_kernel("status")), gigabytes_of_torch() + GIGABYTES
    if peak > allowed:
        pytest.fail(f"{lesson.name} needed {peak:.2f} GB; at most {allowed:.2f} GB are allowed.", pytrace=False)


def peak_gigabytes(status: str) -> float:
    """The most memory that a process had, from its file `status`."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9


@functools.cache
def gigabytes_of_torch() -> float:
    """What `import torch` takes by itself: 0.23 GB in the build for CPUs, 0.67 in one with CUDA's libraries."""
    command = [sys.executable, "-c", "import torch; print(open('/proc/self/status').read())"]
    return peak_gigabytes(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


LIMITS = {"without a network": without_network, "in time": in_time, "in little memory": in_little_memory}
