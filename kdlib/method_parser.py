"""Methods from text, as the command line gives them: "logit+rkd", "hard+100*similarity", "dkd"."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from functools import reduce

from torch import nn

from kdlib import methods, models
from kdlib.errors import unknown_name
from kdlib.loss_table import LOSSES, Family

FAMILY_DEFAULTS = {"logit": "kd", "feature": "hint", "relation": "fsp"}  # what the name of a family stands for
SMOOTHING = 0.2  # of label_smoothing, as the study's older search chose it
NAMES = ("hard", "label_smoothing", *FAMILY_DEFAULTS, *LOSSES)
_TERM = re.compile(r"\s*(?:(?P<weight>[^*\s]+)\s*\*)?\s*(?P<name>[\w-]+)\s*")


def parse(
    text: str,
    student: nn.Module,
    teacher: nn.Module,
    *,
    temperature: float | None = None,
    alpha: float | None = None,
    layers: Sequence[str] = (),
) -> methods.Method:
    """The method that a sum of terms names; a term is a name of NAMES, with a weight and * before it or without.

    Weights, layers, temperature and alpha that are not given are those of each loss alone in `loss_table`: the choices
    of the study's older search, but for the plain logit loss, with T = 4, and for the three losses that it left out.
    The name of a family stands for its plainest loss. Where no term sees the labels (hard labels, or a logit loss,
    which has them beside it), hard labels are added.
    temperature, alpha: of logit losses. layers: "student:teacher" pairs, for all feature and relation losses.
    Raises ValueError for an unknown name, with near matches, an unreadable weight or pair, and settings that no term
    uses.
    """
    terms = [_split(part, text) for part in re.split(r"(?<![\d.]e)(?<![\d.]E)\+", text)]  # not at that of 1e+3
    given = _layer_pairs(layers)
    families = {LOSSES[name].family for _, name in terms if name in LOSSES}
    if given and not families & {Family.FEATURE, Family.RELATION}:
        raise ValueError(
            f"--layers is for feature and relation losses, and --method is {text}: leave it out, or add one."
        )
    if (temperature, alpha) != (None, None) and Family.LOGIT not in families:
        raise ValueError(
            f"--temperature and --alpha are for logit losses, and --method is {text}: leave them out, or add one."
        )
    parts: list[methods.Method] = []
    for weight, name in terms:
        method = _create(name, student, teacher, temperature, alpha, given)
        if weight is None:
            weight = LOSSES[name].weight if name in LOSSES else 1.0
        parts.append(method if weight == 1.0 else weight * method)
    total = reduce(operator.add, parts)
    return total if total.trains_logits else methods.HardLabels() + total


def _split(part: str, text: str) -> tuple[float | None, str]:
    """Weight (None: not given) and the name of a loss in one term of the sum."""
    match = _TERM.fullmatch(part)
    name = match["name"].replace("-", "_") if match else part.strip()
    if match is None or name not in NAMES:
        raise unknown_name("method", part.strip() if match is None else match["name"], NAMES)
    name = FAMILY_DEFAULTS.get(name, name)
    if match["weight"] is None:
        return None, name
    try:
        return float(match["weight"]), name
    except ValueError as error:
        raise ValueError(f"The weight {match['weight']!r} in --method {text!r} is no number; write 50*hint.") from error


def _layer_pairs(layers: Sequence[str]) -> dict[str, str]:
    pairs = dict(layer.partition(":")[::2] for layer in layers)
    if not all(pairs.values()) or "" in pairs or len(pairs) < len(layers):
        raise ValueError(
            f"--layers takes pairs STUDENT:TEACHER, as layer3:layer3, each student layer once; got {', '.join(layers)}."
        )
    return pairs


def _create(
    name: str,
    student: nn.Module,
    teacher: nn.Module,
    temperature: float | None,
    alpha: float | None,
    layers: Mapping[str, str],
) -> methods.Method:
    if name == "hard":
        return methods.HardLabels()
    if name == "label_smoothing":
        return methods.HardLabels(SMOOTHING)
    if LOSSES[name].family is Family.LOGIT:
        return methods.create(name, temperature=temperature, alpha=alpha)
    return methods.create(name, layers or models.pair_layers(student, teacher, LOSSES[name].layers))
