"""Can this machine run the course? One call, a verdict, and what to do."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from packaging.requirements import Requirement

from kdlib import devices
from kdlib.data import data_dir
from kdlib.errors import unknown_name

EXTRAS = {  # what pip installs for an extra, by the names under which Python imports it
    "compress": ("torch_pruning", "torchao"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "deploy": ("executorch",),
    "device": ("ziglang", "unicorn"),
    "search": ("optuna",),
    "timm": ("timm",),
}
INTACT = "intact"
OF_THE_LESSONS = ("course", "compress", "export", "search")  # without one of these some lesson stops


def as_command(program: str, windows: bool = os.name == "nt") -> str:
    """How a shell is told to run a program whose path may hold a blank; on Windows it is PowerShell."""
    if " " not in program:
        return program
    return f'& "{program}"' if windows else f'"{program}"'  # by itself PowerShell takes it for a text


_PYTHON = as_command(sys.executable)
_PIP = f"{_PYTHON} -m pip install"  # into this Python, whichever pip is first on the path


@dataclass(frozen=True)
class Check:
    """One check: its name, what was found, whether that is good enough, and how to fix it if not."""

    name: str
    found: str
    ok: bool
    fix: str = ""


@dataclass(frozen=True)
class Extra:
    """Whether the packages of an extra are there; printing it gives a sentence. missing: those that are not."""

    name: str
    missing: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether all of them are there."""
        return not self.missing

    def __str__(self) -> str:
        if self.ready:
            return f"The extra {self.name} is installed."
        return (
            f"The extra {self.name} is not installed ({', '.join(self.missing)}), so what needs it is left out here; "
            f"{_pip_install(f'kdlib[{self.name}]')} adds it."
        )


@dataclass(frozen=True)
class EnvironmentReport:
    """All checks; printing it gives a table and a verdict."""

    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        """Whether everything is as the course needs it."""
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{'ok ' if check.ok else 'NO '} {check.name:{width}}  {check.found}")
            if not check.ok:
                lines.append(f"    {'':{width}}  -> {check.fix}")
        bad = sum(not check.ok for check in self.checks)
        lines.append("")
        fix = f"fix the {bad} lines marked NO" if bad > 1 else "fix the line marked NO"
        lines.append("Ready: everything is in place." if self.ready else f"Not ready: {fix}.")
        return "\n".join(lines)


def check(course: bool = False) -> EnvironmentReport:
    """Look at versions, cores, precision, data and trained teachers; what is broken is found, not raised.

    course: look also for what the notebooks need beside the library.
    """
    return EnvironmentReport((*_versions(OF_THE_LESSONS if course else ("",)), *_machine(), *_files()))


def extra(name: str) -> Extra:
    """Whether an extra of kdlib is installed, such as "device"; nothing is imported. ValueError for an unknown one."""
    if not isinstance(name, str) or name not in EXTRAS:
        raise unknown_name("extra", name, EXTRAS)
    return Extra(name, tuple(package for package in EXTRAS[name] if importlib.util.find_spec(package) is None))


def _pip_install(requirement: str) -> str:
    return f'{_PIP} "{requirement}"'


def _versions(extras: Sequence[str]) -> list[Check]:
    checks = [Check("python", platform.python_version(), True)]
    try:
        requirements = importlib.metadata.requires("kdlib") or []
    except importlib.metadata.PackageNotFoundError:  # a clone on the path: nobody looked at its requirements
        return [*checks, Check("kdlib", "not installed", False, f"{_PIP} -e . in the cloned repository")]
    for text in requirements:
        wanted = Requirement(text)
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        requirement = text.partition(";")[0].strip()  # with its marker pip would ignore it
        fix = _pip_install(requirement)
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(wanted.name, "missing", False, fix))
            continue
        fits = wanted.specifier.contains(found, prereleases=True)
        checks.append(Check(wanted.name, f"{found} (asked: {wanted.specifier})", fits, fix))
    return checks


def _machine() -> list[Check]:
    processor = Check("processor", f"{os.cpu_count()} cores, {platform.machine()}", True)
    try:
        config = devices.resolve()
    except ValueError as error:  # KDLIB_DEVICE of another machine
        return [processor, Check("computes on", str(error), False, "Leave KDLIB_DEVICE unset, or name one of these.")]
    # Not "this chip has none": of MPS and of Arm chips nobody asked.
    note = "" if config.bfloat16 else "; without bfloat16, so training takes longer"
    return [processor, Check("computes on", f"{config}{note}", True)]


def _files() -> list[Check]:
    where = data_dir()
    sums = where / "SHA256SUMS"
    try:
        text = _read(sums).decode("utf-8", "replace")
    except OSError as error:
        fix = "Clone the whole repository, or set KDLIB_DATA to its data folder."
        found = f"{where} holds no SHA256SUMS that can be read ({error.strerror or error})"
        return [Check("data folder", found, False, fix)]
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    if not lines or any(len(line) != 2 or len(line[0]) != 64 for line in lines):
        return [Check("data folder", f"{sums} is not a list of sums", False, "git checkout -- data/SHA256SUMS")]
    checks = []
    for wanted, marked in lines:
        name = marked.removeprefix("*")  # sha256sum's mark for binary files
        found = _state(where / name, wanted)
        checks.append(Check(name, found, found.startswith(INTACT), f"git checkout -- data/{name}"))
    return list(_folders_in_one_line(checks))


def _folders_in_one_line(checks: Sequence[Check]) -> Iterator[Check]:
    """The checks of files, those of a folder with several files as one where all are intact."""
    for folder, group in groupby(checks, key=lambda one: one.name.partition("/")[0]):
        files = list(group)
        if len(files) > 1 and all(one.ok for one in files):
            yield Check(f"{folder}/", f"{INTACT}, {len(files)} files", True)
        else:
            yield from files


def _read(path: Path) -> bytes:
    """A file's content; OSError also for a pipe or a device, which would keep who reads it waiting without end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no regular file")
    return path.read_bytes()


def _state(path: Path, wanted: str) -> str:
    try:
        content = _read(path)
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"unreadable ({getattr(error, 'strerror', None) or error})"
    if hashlib.sha256(content).hexdigest() != wanted:
        return "truncated or altered"
    return f"{INTACT}, {len(content) / 1e6:,.1f} MB"
