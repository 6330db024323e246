"""Words that the figures of the study and their texts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdlib.study.findings import Results


def setting(results: Results) -> str:
    """Student, teacher, images and seeds of a study."""
    return f"{who(results)}, {results.images:,} images, {len(results.seeds)} paired seeds"


def who(results: Results) -> str:
    """Student and teacher of a study."""
    said = results.budget
    return f"{said['student']} taught by {said['teacher'].rsplit('/', 1)[-1].removesuffix('.safetensors')}"


def together(results: Results) -> str:
    """What the intervals of a study mean, all together."""
    count = results.comparisons
    return f"95 % intervals that hold together for all {count} comparisons" if count > 1 else "95 % interval"


def at(place: tuple[float, float]) -> str:
    """A cell of the map."""
    return f"alpha {place[0]:g}, T {place[1]:g}"


def listed(words: Sequence[str]) -> str:
    """Words in brackets, or nothing where there are none."""
    return f" ({'; '.join(words)})" if words else ""
