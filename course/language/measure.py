"""How far two language models are from each other.

Both say a probability for each next token, so the divergence of whole names is a sum over their letters:

    KL(P || Q) = E over names of P of the sum over k of KL(P(. | letters before k) || Q(. | letters before k))

The divergence at each letter is exact, a sum over the tokens. Only the letters before it have to be drawn, from P. The
mean of log P(name) - log Q(name) over the same names has the same expectation and scatters more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.language.surnames import HIDDEN, Batch

CHUNK = 1_000  # names at a time


@torch.no_grad()
def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """What a model says of each next token of a batch, B x L x tokens; at padding it says nothing of use."""
    return torch.cat([model(inputs) for inputs in batch["inputs"].split(CHUNK)])


def nats(logits: Tensor, labels: Tensor) -> Tensor:
    """-log probability of each name. Shapes: B x L x tokens, B x L -> B."""
    return F.cross_entropy(logits.mT, labels, ignore_index=HIDDEN, reduction="none").sum(1)


def token_divergence(p_logits: Tensor, q_logits: Tensor, labels: Tensor) -> Tensor:
    """KL(P || Q) at each token, 0 at padding. Shapes: both B x L x tokens, labels B x L -> B x L."""
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).masked_fill(labels == HIDDEN, 0)


def divergence(p_logits: Tensor, q_logits: Tensor, labels: Tensor) -> float:
    """KL(P || Q) of whole names, in nats, estimated from names that were drawn from P."""
    return token_divergence(p_logits, q_logits, labels).sum(1).double().mean().item()


def by_position(values: Tensor, labels: Tensor) -> Tensor:
    """The mean of such values at the first token, at the second, ..., over the names that reach it. Shape: L."""
    return values.double().sum(0) / (labels != HIDDEN).sum(0).clamp_min(1)
