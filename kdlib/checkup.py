"""Can this machine run the course? One call, a verdict, and what to do."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from kdlib import devices
from kdlib.data import folder


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its name, what was found, whether that will do, and the remedy if not."""

    what: str
    found: str
    good: bool
    remedy: str = ""


@dataclass(frozen=True)
class Checkup:
    """All findings; printing it gives a table and a verdict."""

    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        """Whether everything is as the course needs it."""
        return all(finding.good for finding in self.findings)

    def __str__(self) -> str:
        width = max(len(finding.what) for finding in self.findings)
        lines = []
        for finding in self.findings:
            lines.append(f"{'ok ' if finding.good else 'NO '} {finding.what:{width}}  {finding.found}")
            if not finding.good:
                lines.append(f"    {'':{width}}  -> {finding.remedy}")
        bad = sum(not finding.good for finding in self.findings)
        lines.append("")
        mend = f"mend the {bad} lines marked NO" if bad > 1 else "mend the line marked NO"
        lines.append("Ready: everything is in place." if self.ready else f"Not ready: {mend}.")
        return "\n".join(lines)


def check(course: bool = False) -> Checkup:
    """Look at versions, cores, precision, data and trained teachers; what is broken is found, not raised.

    course: look also for what the notebooks need beside the library.
    """
    return Checkup((*_versions("course" if course else ""), *_machine(), *_files()))


def _versions(extra: str) -> list[Finding]:
    findings = [Finding("python", platform.python_version(), True)]
    try:
        asked = importlib.metadata.requires("kdlib") or []
    except importlib.metadata.PackageNotFoundError:  # a clone on the path: nobody looked at its requirements
        return [*findings, Finding("kdlib", "not installed", False, "pip install -e . in the cloned repository")]
    for text in asked:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        remedy = f"pip install '{wanted}'"
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(wanted.name, "missing", False, remedy))
            continue
        fits = wanted.specifier.contains(found, prereleases=True)
        findings.append(Finding(wanted.name, f"{found} (asked: {wanted.specifier})", fits, remedy))
    return findings


def _machine() -> list[Finding]:
    place = devices.choose()
    note = "" if place.bfloat16 else "; no bfloat16 in this chip, so everything takes about twice as long"
    return [
        Finding("processor", f"{os.cpu_count()} cores, {platform.machine()}", True),
        Finding("computes on", f"{place}{note}", True),
    ]


def _files() -> list[Finding]:
    where = folder()
    sums = where / "SHA256SUMS"
    try:
        text = sums.read_text("utf-8", "replace")
    except OSError as error:
        remedy = "Clone the whole repository, or set KDLIB_DATA to its data folder."
        found = f"{where} holds no SHA256SUMS that can be read ({error.strerror or error})"
        return [Finding("data folder", found, False, remedy)]
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    if not lines or any(len(line) != 2 or len(line[0]) != 64 for line in lines):
        return [Finding("data folder", f"{sums} is not a list of sums", False, "git checkout -- data/SHA256SUMS")]
    findings = []
    for wanted, marked in lines:
        name = marked.removeprefix("*")  # sha256sum's mark for binary files
        found = _state(where / name, wanted)
        findings.append(Finding(name, found, found.startswith("intact"), f"git checkout -- data/{name}"))
    return findings


def _state(path: Path, wanted: str) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable ({error.strerror or error})"
    if hashlib.sha256(content).hexdigest() != wanted:
        return "truncated or altered"
    return f"intact, {len(content) / 1e6:,.1f} MB"
