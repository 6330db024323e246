"""How a trained network does on a dataset."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import devices, distributed
from kdlib.data import DataModule, IndexedDataset
from kdlib.errors import explain_shape_errors
from kdlib.teachers import FrozenTeacher


@dataclass(frozen=True)
class Metrics:
    """How a model does on a dataset: accuracy in [0, 1], mean cross-entropy in nats, and its logits (N x C)."""

    accuracy: float
    loss: float
    logits: Tensor = field(repr=False)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: IndexedDataset,
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 500,
    role: str = "model",
) -> Metrics:
    """Accuracy, loss and logits of a model on a whole dataset, not augmented; the model comes back as it was.

    Under torchrun every process must call it: each computes its shard, all get the same metrics. role: what an error
    calls the model.
    Raises ValueError for an empty dataset, images that the model cannot take, or labels of classes that it has not.
    """
    count = len(dataset)
    if count == 0:
        raise ValueError("The split is empty: there is nothing to evaluate on.")
    config = devices.resolve(device, precision)
    frozen = FrozenTeacher(model)  # the same promise is wanted here: eval mode, no gradient, given back unchanged
    shard = torch.arange(count)[distributed.shard(count)]
    with frozen.activate((), config):
        outputs = []
        for batch in dataset.iter_batches(batch_size, sampler=shard, device=config.device):
            with explain_shape_errors(role, batch.images):
                outputs.append(frozen(batch).logits.float().cpu())
    logits = distributed.all_gather_rows(torch.cat(outputs), count)
    highest = int(dataset.labels.max())
    if highest >= logits.shape[1]:
        raise ValueError(
            f"The {role} gives {logits.shape[1]} logits, but there are labels up to {highest}: it was built for other "
            "classes."
        )
    accuracy = (logits.argmax(1) == dataset.labels).double().mean().item()
    return Metrics(accuracy, F.cross_entropy(logits, dataset.labels).item(), logits)


def check_classes(role: str, logits: Tensor, data: DataModule) -> None:
    """Raise ValueError unless these logits have a column for each class of the data."""
    if logits.shape[1] != data.num_classes:
        raise ValueError(
            f"The {role} gives {logits.shape[1]} logits, but {data.name} has {data.num_classes} classes. "
            f"Build it with num_classes={data.num_classes}."
        )
