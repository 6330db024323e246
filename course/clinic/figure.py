"""A training as a figure: the terms of the loss, and accuracies beside those of hard labels and of the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from course import plots
from course.clinic.ward import Course

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TERMS = {"hard": plots.BASELINE, "soft": plots.LOGITS, "hint": plots.FEATURES}
AXIS = {"hard": "labels", "soft": "teacher's answers", "hint": "teacher's layer"}


def draw(course: Course, control: Course, before: Course | None = None) -> Figure:
    """course: what is looked at; control: hard labels alone; before: the same patient as it came, if it was treated."""
    fig, (left, right) = plots.figure(7.6, 3.1, 1, 2)
    epochs = range(1, len(course.accuracies) + 1)
    for name, values in course.terms.items():
        role = TERMS.get(name, plots.NEUTRAL)  # a learner may name a term otherwise
        left.plot(epochs, values, **role.line(label=AXIS.get(name, name), marker=""))
    left.axhline(0, color=plots.INK, linewidth=0.8)
    left.set(xlabel="epoch", ylabel="terms of the loss, weighted", title="what is minimised")
    lines = [(control.accuracies, plots.BASELINE.line(label="hard labels alone", marker=""))]
    if course.teacher:
        lines.insert(0, (course.teacher, plots.TEACHER.line(label="its teacher", marker="")))
    if before is not None:
        lines.append((before.accuracies, plots.NEUTRAL.line(label="before", marker="")))
    label = "this patient" if before is None else "treated"
    for values, look in [*lines, (course.accuracies, plots.DISTILLED.line(label=label, marker=""))]:
        right.plot(epochs, [100 * one for one in values], **look)
    right.set(xlabel="epoch", ylabel="validation accuracy (%)", title="what it is worth", ylim=(0, 100))
    right.set_xticks(range(0, len(epochs) + 1, 5))
    left.set_xticks(range(0, len(epochs) + 1, 5))
    for axes in (left, right):  # below, where no curve can be
        plots.legend(axes, loc="upper left", bbox_to_anchor=(-0.02, -0.22), ncols=2, columnspacing=1.2)
    return fig
