"""How a trained network does on a split."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import devices, distributed
from kdlib._messages import explained
from kdlib.data import DataSet, Split
from kdlib.teachers import Frozen


@dataclass(frozen=True)
class Scores:
    """How a model does on a split: accuracy in [0, 1], mean cross-entropy in nats, and its logits (N x C)."""

    accuracy: float
    loss: float
    logits: Tensor = field(repr=False)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 500,
    who: str = "model",
) -> Scores:
    """Accuracy, loss and logits of a model on a whole split, unaugmented; the model comes back as it was.

    Under torchrun every process must call it: each looks at its part, all get the same scores. who: what an error
    calls the model.
    Raises ValueError for an empty split, images that the model cannot take, or labels of classes that it has not.
    """
    if len(split) == 0:
        raise ValueError("The split is empty: there is nothing to evaluate on.")
    place = devices.choose(device, precision)
    teacher = Frozen(model)  # the same promise is wanted here: eval mode, no gradient, given back unchanged
    mine = torch.arange(len(split))[distributed.part(len(split))]
    with teacher.opened((), place):
        answers = []
        for batch in split.batches(batch_size, places=mine, device=place.device):
            with explained(who, batch.images):
                answers.append(teacher(batch).logits.float().cpu())
    logits = distributed.whole(torch.cat(answers), len(split))
    if int(split.labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"The {who} gives {logits.shape[1]} logits, but there are labels up to {int(split.labels.max())}: it was "
            "built for other classes."
        )
    accuracy = (logits.argmax(1) == split.labels).double().mean().item()
    return Scores(accuracy, F.cross_entropy(logits, split.labels).item(), logits)


def refuse_other_classes(who: str, logits: Tensor, data: DataSet) -> None:
    """Raise ValueError unless these logits have a column for each class of the data."""
    if logits.shape[1] != data.num_classes:
        raise ValueError(
            f"The {who} gives {logits.shape[1]} logits, but {data.name} has {data.num_classes} classes. "
            f"Build it with num_classes={data.num_classes}."
        )
