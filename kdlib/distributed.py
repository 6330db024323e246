"""Several processes that train one model: the few lines that torchrun needs.

    torchrun --nproc-per-node=2 -m kdlib distill --student resnet8

Every process holds the whole model and sees its share of each batch. Gradients are averaged, so a batch of 128 stays
a batch of 128, however many processes share it. In a process that torchrun did not start, nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def size() -> int:
    """How many processes work together: 1 unless inside `together` under torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; 0 is the one that writes and speaks."""
    return dist.get_rank() if size() > 1 else 0


@contextmanager
def together() -> Iterator[None]:
    """Inside the block the processes that torchrun started work as one: gloo between CPUs, NCCL between GPUs.

    Raises ValueError when a machine has GPUs, but fewer than torchrun started processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        mine, cards = _local_rank(), torch.cuda.device_count()
        if mine >= cards:
            raise ValueError(f"torchrun started more processes here than there are GPUs: --nproc-per-node={cards}.")
        torch.cuda.set_device(mine)
        backend = "cpu:gloo,cuda:nccl"  # what is on a CPU, random states and totals, travels too
    # DistributedDataParallel imports this, too. Imported after the start, its functions keep the group as a default:
    # then gloo's threads outlive it, and now and then abort a process that has finished.
    import_module("torch.distributed.nn")
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def first_then_others() -> Iterator[None]:
    """One process of each machine runs the block before the others do: what it downloads, they find."""
    if size() > 1 and _local_rank() > 0:
        dist.barrier()
    yield
    if size() > 1 and _local_rank() == 0:
        dist.barrier()


def wait() -> None:
    """Until every process has come here."""
    if size() > 1:
        dist.barrier()


def in_step(module: nn.Module, *, all_used: bool = True) -> nn.Module:
    """The module, its gradients averaged over the processes in every backward pass; its weights start as rank 0's.

    all_used: False when some parameters get no gradient, which is slower.
    """
    if size() == 1:
        return module
    return DistributedDataParallel(module, find_unused_parameters=not all_used, gradient_as_bucket_view=True)


def share(places: Tensor, batch_size: int) -> Tensor:
    """This process's samples of every global batch: each `size()`-th, so that all have equally many."""
    return places.view(-1, batch_size)[:, rank() :: size()].flatten()


def part(count: int) -> slice:
    """This process's stretch of `count` samples that are looked at once; ValueError for fewer than processes."""
    if count < size():
        raise ValueError(f"{count} samples cannot be shared by {size()} processes. Start fewer processes.")
    return slice(rank() * count // size(), (rank() + 1) * count // size())


def whole(rows: Tensor, count: int) -> Tensor:
    """From each process's part of `count` rows, all rows, on every process; the tensors are on the CPU."""
    if size() == 1:
        return rows
    full = torch.zeros(count, *rows.shape[1:], dtype=rows.dtype)
    full[part(count)] = rows
    add(full)
    return full


def add(rows: Tensor) -> None:
    """Every process's numbers, added up in place, on the CPU."""
    if size() > 1:
        dist.all_reduce(rows)


def total(values: dict[str, float]) -> dict[str, float]:
    """The sums of these values over the processes."""
    if size() == 1:
        return dict(values)
    sums = torch.tensor(list(values.values()), dtype=torch.float64)
    add(sums)
    return dict(zip(values, sums.tolist(), strict=True))


def gather(tensor: Tensor) -> list[Tensor]:
    """Every process's tensor of this shape, on the CPU, by rank."""
    if size() == 1:
        return [tensor]
    found = [torch.empty_like(tensor) for _ in range(size())]
    dist.all_gather(found, tensor)
    return found


def align_buffers(module: nn.Module) -> None:
    """Rank 0's batch statistics everywhere: each process has seen its own share of the last batch."""
    if size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
