"""Descriptions that the figures of the study and their alt texts share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdlib.study.analysis import Results


def describe_setting(results: Results) -> str:
    """Student, teacher, images and seeds of a study."""
    return f"{describe_networks(results)}, {results.images:,} images, {len(results.seeds)} paired seeds"


def describe_networks(results: Results) -> str:
    """Student and teacher of a study."""
    budget = results.budget
    teacher = budget["teacher"].rsplit("/", 1)[-1].removesuffix(".safetensors")
    return f"{budget['student']} taught by {teacher}"


def describe_intervals(results: Results) -> str:
    """The confidence of a study's intervals, all together."""
    count = results.comparisons
    return f"95 % intervals that hold together for all {count} comparisons" if count > 1 else "95 % interval"
