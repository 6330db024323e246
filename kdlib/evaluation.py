"""How a trained network does on a split."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import devices, distributed
from kdlib.data import Split
from kdlib.teachers import Frozen


@dataclass(frozen=True)
class Scores:
    """How a model does on a split: accuracy in [0, 1], mean cross-entropy in nats, and its logits (N x C)."""

    accuracy: float
    loss: float
    logits: Tensor = field(repr=False)


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, *, device: str = "auto", precision: str = "auto", batch_size: int = 500
) -> Scores:
    """Accuracy, loss and logits of a model on a whole split, unaugmented; the model comes back as it was.

    Under torchrun every process must call it: each looks at its part, all get the same scores.
    Raises ValueError for an empty split.
    """
    if len(split) == 0:
        raise ValueError("The split is empty: there is nothing to evaluate on.")
    place = devices.choose(device, precision)
    teacher = Frozen(model)  # the same promise is wanted here: eval mode, no gradient, given back unchanged
    mine = torch.arange(len(split))[distributed.part(len(split))]
    with teacher.opened((), place):
        batches = split.batches(batch_size, places=mine, device=place.device)
        answers = [teacher(batch).logits.float().cpu() for batch in batches]
    logits = distributed.whole(torch.cat(answers), len(split))
    accuracy = (logits.argmax(1) == split.labels).double().mean().item()
    return Scores(accuracy, F.cross_entropy(logits, split.labels).item(), logits)
