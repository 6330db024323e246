"""Was the teacher trained with smoothed labels?"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from kdlib.doctor.report import DOUBT, Finding, Skip
from kdlib.doctor.samples import samples
from kdlib.doctor.setup import Setup

# A network that has learned labels smoothed by e to the end gives the right class 1 - e + e / C. Of twenty teachers of
# tests/doctor_setups.py, trained so with e = 0.1 and 0.2, the medians lay between 0.027 below it and 0.007 above, and
# the upper 95 % of the log-odds 0.4 to 1.5 higher. Trained without, the one teacher whose median lay there had 5.4; two
# that were stopped early came nearest, 0.026 above. Stopped early, a teacher looks the same either way.
USUAL = (0.1, 0.2)
BELOW, ABOVE = 0.03, 0.012
WIDEST = 1.6
MOST_SPREAD = 0.25  # of the wrong classes' logits, as a share of their distance: 0.19 was measured
LEAST_RIGHT = 60  # right answers, for a quantile of 95 %
MOST_RIGHT = 1_000  # that are looked at: a few pictures have millions of pixels
LEAST_ACCURACY = 0.9  # of a teacher trained to the end, so that doubt is no reason for its low confidence


def smoothing(setup: Setup) -> Finding | None:
    """Is the teacher never surer than a ceiling, and does it hold all wrong classes for equally wrong?"""
    found = samples(setup, "teacher")
    right = found.logits[found.right]
    if len(right) < LEAST_RIGHT or found.accuracy < LEAST_ACCURACY:
        raise Skip(
            f"this takes {LEAST_RIGHT} right answers of a teacher that is right about {LEAST_ACCURACY:.0%}; there are "
            f"{len(right)} of {len(found.labels)}"
        )
    some = right[:: math.ceil(len(right) / MOST_RIGHT)]
    log_p = F.log_softmax(some.double(), dim=1)
    top = log_p.amax(1)
    odds = top - torch.log1p(-top.exp().clamp(max=1 - 1e-12))
    median, high = odds.quantile(0.5).item(), odds.quantile(0.95).item()
    p, classes = torch.sigmoid(torch.tensor([median, high])).tolist(), log_p.shape[1]
    ceilings = {amount: 1 - amount + amount / classes for amount in USUAL}
    amount = next((one for one, ceiling in ceilings.items() if ceiling - BELOW <= p[0] <= ceiling + ABOVE), None)
    if amount is None:
        return None
    if high - median > WIDEST or _spread_of_wrong(log_p) > MOST_SPREAD:
        return None
    return Finding(
        "teacher-smoothing",
        DOUBT,
        f"The teacher is right about {found.accuracy:.1%} of {len(found.labels)} samples, and yet gives "
        "the right class "
        f"{p[0]:.3f} (median), hardly ever more than {p[1]:.3f}: a ceiling, where labels smoothed by {amount} put it.",
        "Smoothed labels make the wrong classes more alike, so a teacher may hand on less about them (Mueller et al. "
        "2019, arXiv:1906.02629; Shen et al. 2021, arXiv:2104.00676, disagree).",
        "Train the teacher without label smoothing, or measure a student of each before you decide.",
        0.9,
    )


def _spread_of_wrong(log_p: torch.Tensor) -> float:
    """The standard deviation of the other classes' logits, as a share of their mean distance from the largest one."""
    ordered = log_p.sort(dim=1, descending=True).values
    wrong = ordered[:, 1:]
    if wrong.shape[1] < 2:
        return 0.0
    return float((wrong.std(1) / (ordered[:, 0] - wrong.mean(1)).clamp(min=1e-9)).mean())
