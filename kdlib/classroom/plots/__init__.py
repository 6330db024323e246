"""One look for every figure: who is who never changes, and none is shown without a text for those who cannot see it.

    fig, axes = plots.figure()
    axes.plot(epochs, accuracy, **plots.DISTILLED.line())
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)")
    plots.show(fig, alt="The distilled student is ahead of its twin from the third epoch on.")

base    figures, roles, and what lessons draw
ladder  methods of the study below each other: gains over hard labels, gap recovered
images  accuracy against the number of training images
cells   the map of alpha and temperature
"""

from kdlib.classroom.plots.base import (
    CYCLE,
    DISTILLED,
    DPI,
    FIRST,
    INK,
    NEUTRAL,
    SECOND,
    STUDENT,
    STYLE,
    TEACHER,
    THIRD,
    Role,
    blank,
    class_matrix,
    described,
    few_colours,
    figure,
    legend,
    loglog,
    pictures,
    png,
    probability_bars,
    readable_on,
    show,
    style,
)
from kdlib.classroom.plots.base import _check_labels as _check_labels  # the tests look at every figure with it
from kdlib.classroom.plots.cells import METRICS, CellMap, explained, map_cells, temperature_map, temperature_map_alt
from kdlib.classroom.plots.images import accuracy_against_images, accuracy_against_images_alt
from kdlib.classroom.plots.ladder import forest, forest_alt, gap_recovered, gap_recovered_alt

__all__ = [
    "CYCLE",
    "DISTILLED",
    "DPI",
    "FIRST",
    "INK",
    "METRICS",
    "NEUTRAL",
    "SECOND",
    "STUDENT",
    "STYLE",
    "TEACHER",
    "THIRD",
    "CellMap",
    "Role",
    "accuracy_against_images",
    "accuracy_against_images_alt",
    "blank",
    "class_matrix",
    "described",
    "explained",
    "few_colours",
    "figure",
    "forest",
    "forest_alt",
    "gap_recovered",
    "gap_recovered_alt",
    "legend",
    "loglog",
    "map_cells",
    "pictures",
    "png",
    "probability_bars",
    "readable_on",
    "show",
    "style",
    "temperature_map",
    "temperature_map_alt",
]
