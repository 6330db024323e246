"""What an examination says: findings, what passed, and what could not be looked at."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FAULT, DOUBT = "fault", "doubt"
GITHUB = "https://github.com/"
WIDTH = 100  # of the printed report, in characters


class Skip(Exception):  # noqa: N818
    """Raised by a check that cannot be made with what was given; its text says what is missing."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or may be.

    check: its name, as in `kdlib.doctor.CHECKS`. severity: "fault", or "doubt" where it may be meant. measured: what
    was seen. why: why it matters. change: what to do. confidence: in [0, 1]; 1 where it was read off or computed,
    below where it was concluded from a sample. story: a public thread on the same mistake.
    """

    check: str
    severity: str
    measured: str
    why: str
    change: str
    confidence: float = 1.0
    story: str | None = None

    def __str__(self) -> str:
        sure = "certain" if self.confidence >= 0.99995 else f"sure to {self.confidence:.2%}"
        lines = [f"{self.severity.upper()}  {self.check}  ({sure})"]
        parts = {"measured": self.measured, "why": self.why, "change": self.change, "story": self.story}
        for name, text in parts.items():
            if text:
                indent = f"  {name + ':':10}"
                lines.append(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent)))
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """All findings, faults first; printing it gives plain text.

    passed: the checks that found nothing. skipped: for each check that could not be made, the reason. samples: labelled
    samples on which the teacher was measured. seconds: what the examination took.
    """

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    samples: int = 0
    seconds: float = 0.0

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that are no matter of intent."""
        return tuple(one for one in self.findings if one.severity == FAULT)

    @property
    def sound(self) -> bool:
        """Whether no fault was found; a doubt may remain."""
        return not self.faults

    def find(self, check: str) -> tuple[Finding, ...]:
        """The findings of one check."""
        return tuple(one for one in self.findings if one.check == check)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self) | {"skipped": dict(self.skipped), "sound": self.sound}

    def __str__(self) -> str:
        parts = [str(one) for one in self.findings]
        if self.skipped:
            width = max(map(len, self.skipped))
            parts.append("\n".join(["Not looked at:", *(f"  {k:{width}}  {v}" for k, v in self.skipped.items())]))
        doubts = len(self.findings) - len(self.faults)
        counted = f"{len(self.faults)} fault(s), {doubts} doubt(s)" if self.findings else "Nothing found"
        parts.append(
            f"{counted}; {len(self.passed)} checks passed, {len(self.skipped)} could not be made; {self.samples:,} "
            f"labelled samples, {self.seconds:.1f} s."
        )
        return "\n\n".join(parts)
