"""Part "length": does distillation make training cheaper, and does the gain last when training is long?

The student trains for 4, 8 and 16 passes over its 1,000 pictures, each a run of its own with a schedule of its own (a
curve of one long run would compare unfinished schedules), by labels and by logits (alpha = 0.1). Eight trials for each:
eight learning rates for labels, four learning rates at T = 1 and T = 4 for logits. (Of a first search of four trials
each, logits had taken the higher of only two rates at every length: both got more rates, and all was run anew.)

Expected before the first run: logits need about half as many passes for the accuracy that labels end with, and the gain
grows with length, because labels are learned by heart.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from course.experiments.claims_common import (
    Arm,
    Chosen,
    Part,
    Setting,
    hard_settings,
    images_of,
    logits_of,
    soft_settings,
    taught,
    teacher,
)

IMAGES = 1_000
LENGTHS = (4, 8, 16)
ALPHA = 0.1
LABELS, LOGITS = "labels", "logits"
HARD_RATES = (0.002, 0.003, 0.005, 0.007, 0.01, 0.014, 0.02, 0.04)
SOFT_RATES = (0.005, 0.01, 0.02, 0.04)  # each at two temperatures: as many trials


def by_labels(seed: int, setting: Setting, _: Chosen, epochs: int) -> nn.Module:
    """A student of labels, after so many passes."""
    return taught(seed, setting, images_of(seed, IMAGES), epochs=epochs)


def by_logits(seed: int, setting: Setting, _: Chosen, epochs: int) -> nn.Module:
    """A student of the teacher's logits and a few labels' worth, after so many passes."""
    split = images_of(seed, IMAGES)
    return taught(seed, setting, split, logits_of(teacher(), split), alpha=ALPHA, epochs=epochs)


def name(way: str, epochs: int) -> str:
    """The name of an arm."""
    return f"{way}, {epochs} passes"


def _arms(way: str) -> dict[str, Arm]:
    train = by_logits if way == LOGITS else by_labels
    settings = soft_settings(*SOFT_RATES) if way == LOGITS else hard_settings(*HARD_RATES)
    return {name(way, one): Arm(partial(train, epochs=one), settings, epochs=one) for one in LENGTHS}


LENGTH = Part("length", _arms(LABELS) | _arms(LOGITS), images=IMAGES)
