"""Figures in one look: every colour has one meaning, and no figure is shown without an alt text.

    fig, axes = plots.figure()
    axes.plot(epochs, accuracy, **plots.DISTILLED.line())
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)")
    plots.show(fig, alt="The distilled student is ahead of the baseline from the third epoch on.")

theme           what each colour stands for, figures, alt texts
charts          bars of probabilities, class matrices, images in rows
diagram         teacher, student, data and losses, with the active parts lit
forest_plot     methods of a study below each other: gains over hard labels
claims          arms of the experiments on claims, and accuracy against passes
compression     accuracy against cost, and gains, for ways of compressing
mistakes        what mistakes in a loss cost, with labels and without
modalities      recordings in two modalities, and each person
language        two humps, ways of teaching a language model, and its letters one after the other
sentences       ways of teaching a tiny classifier of sentences, with few labels
learning_curve  accuracy against the number of training images
epochs          validation accuracy after each epoch of long runs
relations       matrices of relations and their differences, the triangle of three pictures
heatmap         cells over alpha and temperature, for the explorer of both
simplex         answers over three classes in a triangle, at several temperatures
several         ways of teaching by several teachers: teacher, student, gain over a baseline
searching       what a search promises and keeps, proxies against accuracy
teachers        what each teacher was worth to its students
same_length     what features of one length change, at the same settings
clinic          what each fault of the clinic did to accuracy
"""

from course.plots.charts import class_matrix, diverging_cmap, pictures, probability_bars, text_colours
from course.plots.claims import claim_arms, claim_arms_alt, claim_lengths, claim_lengths_alt
from course.plots.clinic import fault_effects, fault_effects_alt
from course.plots.compression import (
    COMPRESSION_ROLES,
    COST_LABELS,
    compression_gains,
    compression_gains_alt,
    compression_point,
    compression_role,
    pareto,
    pareto_alt,
    plain_log_ticks,
    stretch_accuracy,
)
from course.plots.diagram import FAMILIES, schematic, schematic_alt
from course.plots.epochs import accuracy_by_epoch, accuracy_by_epoch_alt
from course.plots.forest_plot import forest, forest_alt
from course.plots.heatmap import (
    MAP_METRICS,
    AnnotatedHeatmap,
    heatmap_caption,
    heatmap_cells,
)
from course.plots.language import (
    by_letter,
    by_letter_alt,
    covers_or_seeks,
    covers_or_seeks_alt,
    two_humps,
    two_humps_alt,
)
from course.plots.learning_curve import accuracy_against_images, accuracy_against_images_alt
from course.plots.mistakes import mistakes, mistakes_alt
from course.plots.modalities import by_person, by_person_alt, paired_windows, paired_windows_alt
from course.plots.relations import relation_maps, triangles, triangles_alt
from course.plots.same_length import normalized_trials, normalized_trials_alt
from course.plots.searching import (
    kept_promises,
    kept_promises_alt,
    promises,
    promises_alt,
    proxies_alt,
    proxies_figure,
    scores_alt,
    scores_figure,
)
from course.plots.sentences import sentence_ways, sentence_ways_alt
from course.plots.several import several_ways, several_ways_alt
from course.plots.simplex import shrinking_answers, shrinking_answers_alt
from course.plots.teachers import (
    KINDS,
    MEASURE_LABELS,
    axis_value,
    gain_against,
    gain_against_alt,
    kind_marker,
    log_size,
    teacher_gains,
    teacher_gains_alt,
)
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
    "FAMILIES",
    "FEATURES",
    "INK",
    "KINDS",
    "LOGITS",
    "MAP_METRICS",
    "MEASURE_LABELS",
    "NEUTRAL",
    "OTHER",
    "RELATIONS",
    "ROLES",
    "TEACHER",
    "AnnotatedHeatmap",
    "Role",
    "accuracy_against_images",
    "accuracy_against_images_alt",
    "accuracy_by_epoch",
    "accuracy_by_epoch_alt",
    "axis_value",
    "blank",
    "by_letter",
    "by_letter_alt",
    "by_person",
    "by_person_alt",
    "check_labels",
    "claim_arms",
    "claim_arms_alt",
    "claim_lengths",
    "claim_lengths_alt",
    "class_matrix",
    "compression_gains",
    "compression_gains_alt",
    "compression_point",
    "compression_role",
    "covers_or_seeks",
    "covers_or_seeks_alt",
    "diverging_cmap",
    "fault_effects",
    "fault_effects_alt",
    "figure",
    "forest",
    "forest_alt",
    "gain_against",
    "gain_against_alt",
    "heatmap_caption",
    "heatmap_cells",
    "kept_promises",
    "kept_promises_alt",
    "kind_marker",
    "legend",
    "log_size",
    "mistakes",
    "mistakes_alt",
    "normalize_alt",
    "normalized_trials",
    "normalized_trials_alt",
    "paired_windows",
    "paired_windows_alt",
    "pareto",
    "pareto_alt",
    "pictures",
    "plain_log_ticks",
    "png",
    "probability_bars",
    "promises",
    "promises_alt",
    "proxies_alt",
    "proxies_figure",
    "reduce_colours",
    "relation_maps",
    "roles_for",
    "schematic",
    "schematic_alt",
    "shrinking_answers",
    "shrinking_answers_alt",
    "sentence_ways",
    "sentence_ways_alt",
    "several_ways",
    "several_ways_alt",
    "scores_alt",
    "scores_figure",
    "show",
    "stretch_accuracy",
    "style",
    "teacher_gains",
    "teacher_gains_alt",
    "text_colours",
    "triangles",
    "triangles_alt",
    "two_humps",
    "two_humps_alt",
]
