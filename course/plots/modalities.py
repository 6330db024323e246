"""Figures of the experiment on modalities: recordings in two modalities, arms, and each person.

shoulder = data.load("shoulder-exercises")
plots.show(plots.paired_windows(shoulder), alt=plots.paired_windows_alt(shoulder))
plots.show(plots.by_person(results, pair), alt=plots.by_person_alt(results, pair))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.plots.theme import BASELINE, DISTILLED, NEUTRAL, TEACHER, figure, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course.experiments.modalities import Pair
    from course.experiments.modalities_results import ModalityResults
    from kdlib.data import PairedData

AXES = (("x", "-"), ("y", "--"), ("z", ":"))
SHOWN = (1, 5)  # classes whose movements look different
HERTZ = 25  # of the shoulder exercises
PERSON_ARMS = (("few labels", BASELINE), ("pairs", DISTILLED), ("all labels", BASELINE.variant(1)))


def paired_windows(data: PairedData) -> Figure:
    """A training window of two classes, in both modalities: a row for each modality, a column for each class."""
    train = data.train
    fig, grid = figure(8.4, 4.2, len(train.fields), len(SHOWN), sharex=True, sharey="row")
    for column, label in enumerate(SHOWN):
        position = int((train.labels == label).nonzero()[0, 0])
        for row, field in enumerate(train.fields):
            axes, window = grid[row, column], train.inputs[field][position]
            for values, (name, style) in zip(window, AXES, strict=True):
                seconds = [step / HERTZ for step in range(len(values))]
                axes.plot(seconds, values, style, color=(TEACHER, DISTILLED)[row].colour, label=f"axis {name}")
            if row == 0:
                axes.set_title(data.classes[label])
            if column == 0:
                axes.set_ylabel(f"{field}\n(standard deviations)")
            if row == len(train.fields) - 1:
                axes.set_xlabel("time (s)")
    legend(grid[0, -1], loc="upper right", fontsize=8)
    return fig


def paired_windows_alt(data: PairedData) -> str:
    """What `paired_windows` shows, in words."""
    names = " and ".join(data.classes[label] for label in SHOWN)
    return (
        f"One window of four seconds of {names}, side by side: the three axes of the {data.fields[0]} above, of the "
        f"{data.fields[1]} below. Both swing with the same movement; the curves have different shapes."
    )


def by_person(results: ModalityResults, pair: Pair) -> Figure:
    """Test accuracy of each person: few labels, few labels and pairs, all labels, and the teacher."""
    fig, axes = figure(8.0, 3.6)
    persons = sorted(results.arm(pair, "pairs").units)
    for name, role in PERSON_ARMS:
        units = results.arm(pair, name).units
        label = {"few labels": "few labels alone", "pairs": "few labels and pairs"}.get(name, name)
        axes.plot(persons, [units[person] for person in persons], **role.line(label, linewidth=1))
    units = results.arm(pair, "teacher").units
    axes.plot(
        persons, [units[person] for person in persons], **TEACHER.line(f"teacher, {pair.teacher_field}", linewidth=1)
    )
    axes.axhline(100 / 7, color=NEUTRAL.colour, linestyle=":", label="guessing")
    axes.set(
        xlabel="person (each tested by networks that never saw this person)", ylabel="test accuracy (%)", ylim=(0, 100)
    )
    axes.set_xticks(persons)
    legend(axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return fig


def by_person_alt(results: ModalityResults, pair: Pair) -> str:
    """What `by_person` shows, in words."""
    few, paired = (results.arm(pair, name).units for name in ("few labels", "pairs"))
    gains = [paired[person] - few[person] for person in paired]
    better = sum(gain > 0 for gain in gains)
    return (
        f"Test accuracy of ten persons. With few labels and pairs the student is better than with few labels alone for "
        f"{better} of {len(gains)} persons; the difference runs from {min(gains):.0f} to {max(gains):.0f} points. "
        "Persons differ by tens of points in every curve."
    )
