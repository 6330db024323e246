"""Figures in one look: every colour has one meaning, and no figure is shown without an alt text.

    fig, axes = plots.figure()
    axes.plot(epochs, accuracy, **plots.DISTILLED.line())
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)")
    plots.show(fig, alt="The distilled student is ahead of the baseline from the third epoch on.")

theme           what each colour stands for, figures, alt texts
charts          bars of probabilities, class matrices, images, lines on log axes
diagram         teacher, student, data and losses, with the active parts lit
forest_plot     methods of a study below each other: gains over hard labels, gap recovered
compression     accuracy against cost, and gains, for ways of compressing
learning_curve  accuracy against the number of training images
heatmap         a study over alpha and temperature
"""

from course.plots.charts import class_matrix, loglog, pictures, probability_bars, text_colours
from course.plots.compression import (
    COMPRESSION_ROLES,
    COST_LABELS,
    compression_gains,
    compression_gains_alt,
    compression_role,
    pareto,
    pareto_alt,
    plain_log_ticks,
    stretch_accuracy,
)
from course.plots.diagram import PARTS, schematic, schematic_alt
from course.plots.forest_plot import forest, forest_alt, gap_recovered, gap_recovered_alt
from course.plots.heatmap import (
    MAP_METRICS,
    AnnotatedHeatmap,
    heatmap_caption,
    heatmap_cells,
    temperature_map,
    temperature_map_alt,
)
from course.plots.learning_curve import accuracy_against_images, accuracy_against_images_alt
from course.plots.theme import (
    ALERT,
    BASELINE,
    DISTILLED,
    DPI,
    FEATURES,
    INK,
    LOGITS,
    NEUTRAL,
    OTHER,
    RELATIONS,
    ROLES,
    STYLE,
    TEACHER,
    Role,
    blank,
    check_labels,
    figure,
    legend,
    normalize_alt,
    png,
    reduce_colours,
    roles_for,
    show,
    style,
)

__all__ = [
    "ALERT",
    "BASELINE",
    "COMPRESSION_ROLES",
    "COST_LABELS",
    "DISTILLED",
    "DPI",
    "FEATURES",
    "INK",
    "LOGITS",
    "MAP_METRICS",
    "NEUTRAL",
    "OTHER",
    "PARTS",
    "RELATIONS",
    "ROLES",
    "STYLE",
    "TEACHER",
    "AnnotatedHeatmap",
    "Role",
    "accuracy_against_images",
    "accuracy_against_images_alt",
    "blank",
    "check_labels",
    "class_matrix",
    "compression_gains",
    "compression_gains_alt",
    "compression_role",
    "figure",
    "forest",
    "forest_alt",
    "gap_recovered",
    "gap_recovered_alt",
    "heatmap_caption",
    "heatmap_cells",
    "legend",
    "loglog",
    "normalize_alt",
    "pareto",
    "pareto_alt",
    "pictures",
    "plain_log_ticks",
    "png",
    "probability_bars",
    "reduce_colours",
    "roles_for",
    "schematic",
    "schematic_alt",
    "show",
    "stretch_accuracy",
    "style",
    "temperature_map",
    "temperature_map_alt",
    "text_colours",
]
