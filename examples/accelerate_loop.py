"""Distillation with Accelerate: the distiller is what is prepared, and its total loss is what goes backward.

python examples/accelerate_loop.py, or accelerate launch examples/accelerate_loop.py
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlib.devices import move_batch
from kdlib.distiller import Distiller
from kdlib.methods import Feature, Logit


def build_network(width: int) -> nn.Module:
    """A classifier of 16 numbers in 4 classes; methods find its layers by their names."""
    return nn.Sequential(OrderedDict(hidden=nn.Linear(16, width), relu=nn.ReLU(), head=nn.Linear(width, 4)))


def build_dataset(samples: int = 256) -> TensorDataset:
    """The class of a sample is the largest of its first four numbers."""
    inputs = torch.randn(samples, 16)
    return TensorDataset(inputs, inputs[:, :4].argmax(dim=1))


def build_distiller(example: list[Tensor]) -> Distiller:
    """A small student, a wider teacher. example: a batch, from which the projector gets its sizes."""
    student, teacher = build_network(width=8), build_network(width=32)  # load a trained teacher here
    method = Logit(temperature=4, alpha=0.1) + 10 * Feature({"hidden": "hidden"})
    return Distiller(student, teacher, method, example=example)


def distil(distiller: Distiller, loader: DataLoader, *, epochs: int = 1, learning_rate: float = 0.05) -> None:
    """Accelerate moves student, projectors and batches to its device; the teacher follows the batches by itself."""
    accelerator = Accelerator(cpu=True)  # leave out cpu=True to train on the GPUs that are there
    optimizer = torch.optim.SGD(distiller.parameters(), learning_rate)
    model, optimizer, loader = accelerator.prepare(distiller, optimizer, loader)
    model.train()
    for _ in range(epochs):
        for batch in loader:
            with accelerator.accumulate(model):
                losses = model(batch)
                accelerator.backward(losses.total)
                optimizer.step()
                optimizer.zero_grad()


@torch.no_grad()
def mean_loss(distiller: Distiller, loader: Iterable[list[Tensor]]) -> float:
    """The loss of these batches, without training."""
    distiller.eval()
    device = next(distiller.parameters()).device  # where Accelerate has left it
    return torch.stack([distiller(move_batch(batch, device)).total for batch in loader]).mean().item()


def main() -> None:
    """Train for five epochs."""
    torch.manual_seed(0)
    loader = DataLoader(build_dataset(), batch_size=32, shuffle=True)
    distiller = build_distiller(example=next(iter(loader)))
    print(f"loss before: {mean_loss(distiller, loader):.3f}")
    distil(distiller, loader, epochs=5)
    print(f"loss after: {mean_loss(distiller, loader):.3f}")


if __name__ == "__main__":
    main()
