"""Figures of lesson 17: two humps and a student with one, the ways of teaching, and letters one after the other.

plots.show(plots.two_humps(teacher, students), alt=plots.two_humps_alt(teacher, students))
results = language_results.load()
plots.show(plots.covers_or_seeks(results), alt=plots.covers_or_seeks_alt(results))
plots.show(plots.by_letter(results), alt=plots.by_letter_alt(results))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from course.plots.theme import BASELINE, DISTILLED, TEACHER, Role, figure, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course.experiments.language_results import LanguageResults

LETTER_WAYS = ("forward KL, real names", "forward KL, own names")
AFTER_TEACHER, AFTER_OWN = ("forward", "teacher"), ("forward", "own")  # KL(T||S), and who drew the letters before


def two_humps(teacher: Tensor, students: Mapping[str, Tensor]) -> Figure:
    """Probabilities of each token: the teacher's as bars, those of students as lines. Shapes: tokens."""
    fig, axes = figure(7.6, 3.2)
    tokens = range(len(teacher))
    axes.bar(tokens, teacher.tolist(), **TEACHER.bar("teacher", alpha=0.5))
    for number, (name, probabilities) in enumerate(students.items()):
        axes.plot(tokens, probabilities.tolist(), **DISTILLED.variant(number).line(name, linewidth=1.5))
    axes.set(xlabel="token (its number)", ylabel="probability", xticks=tokens[::2])
    legend(axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return fig


def two_humps_alt(teacher: Tensor, students: Mapping[str, Tensor]) -> str:
    """What `two_humps` shows, in words."""
    peaks = [
        token
        for token in range(1, len(teacher) - 1)
        if teacher[token] > teacher[token - 1] and teacher[token] > teacher[token + 1]
    ]
    said = "; ".join(f"{name} at token {int(one.argmax())}" for name, one in students.items())
    return (
        f"Probabilities over {len(teacher)} tokens. The teacher has humps at tokens {peaks[0]} and {peaks[-1]}. Each "
        f"student has one hump, whose top lies: {said}."
    )


def role_of(way: str) -> Role:
    """How a way is drawn: hard labels in their colour, what learns from the teacher in that of distilled students."""
    from course.experiments.language import HARD, WAYS

    if way == HARD:
        return BASELINE
    return DISTILLED.variant(list(WAYS).index(way) - 1)


def covers_or_seeks(results: LanguageResults) -> Figure:
    """Each student as a point: test names in nats, against the teacher's nats of the names that it draws."""
    fig, axes = figure(7.6, 4.2)
    for way, one in results.ways.items():
        x, y = (list(one.by_seed[measure].values()) for measure in ("test_nats", "teacher_nats"))
        axes.plot(x, y, **role_of(way).line(way, linestyle="", markersize=6))
    axes.set(
        xlabel="nats that the student needs for a test name\n(fewer: it covers what there is)",
        ylabel="nats that the teacher needs\nfor a name of the student's\n(fewer: more plausible to it)",
    )
    legend(axes, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1)
    return fig


def covers_or_seeks_alt(results: LanguageResults) -> str:
    """What `covers_or_seeks` shows, in words."""
    parts = [
        f"{way}: {one.mean('test_nats'):.2f} and {one.mean('teacher_nats'):.2f}" for way, one in results.ways.items()
    ]
    return (
        "A point for each student: nats of a test name to the right, the teacher's nats of the student's own names "
        f"upwards; fewer are better in both. Means: {'; '.join(parts)}."
    )


def by_letter(results: LanguageResults) -> Figure:
    """KL(T||S) at each token, after letters of the teacher's and after the student's own: a panel for each way."""
    fig, panels = figure(8.4, 3.3, columns=2, sharey=True)
    for axes, way in zip(panels, LETTER_WAYS, strict=True):
        one = results[way]
        tokens = range(1, 1 + len(one.after[AFTER_OWN]))
        axes.plot(tokens, one.after[AFTER_TEACHER], **TEACHER.line("after the teacher's letters", linewidth=1.5))
        axes.plot(tokens, one.after[AFTER_OWN], **DISTILLED.line("after the student's own", linewidth=1.5))
        axes.set_title(f"taught by {way}")
        axes.set(xlabel="token of the name (1: first letter)")
        axes.set_xticks(tokens)
    panels[0].set(ylabel="KL(T||S) at this token (nats)", ylim=(0, None))
    legend(panels[0], loc="lower right")
    return fig


def by_letter_alt(results: LanguageResults) -> str:
    """What `by_letter` shows, in words."""
    parts = []
    for way in LETTER_WAYS:
        one = results[way]
        parts.append(
            f"taught by {way}, it is {one.after[AFTER_TEACHER][-1]:.2f} nats at the last of them after the teacher's "
            f"letters, and {one.after[AFTER_OWN][-1]:.2f} after the student's own"
        )
    return (
        f"KL(T||S) at each of the first {len(results[LETTER_WAYS[0]].after[AFTER_OWN])} tokens of a name, rising from "
        f"nearly 0 at the first: {'; '.join(parts)}."
    )
