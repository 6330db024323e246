"""Several processes that train one model: the few lines that torchrun needs.

    torchrun --nproc-per-node=2 -m kdlib distill --student resnet8

Every process holds the whole model and sees its shard of each batch. Gradients are averaged, so a batch of 128 stays
a batch of 128, however many processes share it. A mean over labelled samples, tokens or pixels is taken in each process
and then averaged: a shard with few of them weighs as much as one with many. One without a labelled sample lowers the
term; of tokens and pixels at least one has to count in each process. In a process that torchrun did not start, nothing
here does anything.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    """How many processes work together: 1 unless inside `process_group` under torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; 0 is the one that writes files and prints."""
    return dist.get_rank() if world_size() > 1 else 0


def warn_if_alone() -> None:
    """UserWarning in a process that torchrun started with others, outside of `process_group`: each works for itself."""
    started = os.environ.get("WORLD_SIZE", "1")
    if world_size() == 1 and "RANK" in os.environ and started.isdigit() and int(started) > 1:
        warnings.warn(
            f"torchrun started {started} processes, and this one trains by itself, as do the others: all would write "
            "the same files. Let them share the training: with kdlib.distributed.process_group(): fit(...).",
            stacklevel=3,
        )


@contextmanager
def process_group() -> Iterator[None]:
    """Inside the block the processes that torchrun started work as one: gloo between CPUs, NCCL between GPUs.

    Raises ValueError when a machine has fewer GPUs than torchrun started processes there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if _local_rank() >= gpus:
            raise ValueError(
                f"torchrun started more processes here than there are GPUs: give --nproc-per-node={gpus}, or set "
                "CUDA_VISIBLE_DEVICES= (empty) to train on the CPU."
            )
        torch.cuda.set_device(_local_rank())
        backend = "cpu:gloo,cuda:nccl"  # what is on a CPU, random states and sums, is exchanged too
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
def local_main_process_first() -> Iterator[None]:
    """One process of each machine runs the block before the others do: what it downloads, they find."""
    if world_size() > 1 and _local_rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and _local_rank() == 0:
        dist.barrier()


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()


def data_parallel(module: nn.Module) -> nn.Module:
    """The module in DistributedDataParallel: gradients averaged in every backward pass, weights from rank 0.

    Some parameters may get no gradient, the same ones in every step. One process gets the module itself.
    """
    if world_size() == 1:
        return module
    # A static graph is one in which the same parameters get a gradient in every step: the first tells which. Not
    # find_unused_parameters: that takes for used what leads to the student's output, which no term may look at.
    return DistributedDataParallel(module, static_graph=True, gradient_as_bucket_view=True)


def shard_batches(positions: Tensor, batch_size: int) -> Tensor:
    """This process's samples of every global batch: each `world_size()`-th, so that all have equally many."""
    return positions.view(-1, batch_size)[:, rank() :: world_size()].flatten()


def shard(count: int) -> slice:
    """This process's contiguous shard of `count` samples; ValueError for fewer than processes."""
    if count < world_size():
        raise ValueError(f"{count} samples cannot be shared by {world_size()} processes. Start fewer processes.")
    return slice(rank() * count // world_size(), (rank() + 1) * count // world_size())


def all_gather_rows(rows: Tensor, count: int) -> Tensor:
    """From each process's `shard` of `count` rows, all rows, on every process; the tensors are on the CPU."""
    if world_size() == 1:
        return rows
    full = torch.zeros(count, *rows.shape[1:], dtype=rows.dtype)
    full[shard(count)] = rows
    all_reduce(full)
    return full


def all_reduce(tensor: Tensor) -> None:
    """Add up every process's tensor, in place, on the CPU."""
    if world_size() > 1:
        dist.all_reduce(tensor)


def all_reduce_values(values: dict[str, float]) -> dict[str, float]:
    """The sums of these values over the processes, by name; a process may lack some, or have them in another order."""
    if world_size() == 1:
        return dict(values)
    names: list[list[str]] = [[] for _ in range(world_size())]
    dist.all_gather_object(names, list(values))
    every = list(dict.fromkeys(chain.from_iterable(names)))
    sums = torch.tensor([values.get(name, 0.0) for name in every], dtype=torch.float64)
    all_reduce(sums)
    return dict(zip(every, sums.tolist(), strict=True))


def all_gather(tensor: Tensor) -> list[Tensor]:
    """Every process's tensor of this shape, on the CPU, by rank."""
    if world_size() == 1:
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(gathered, tensor)
    return gathered


def broadcast_buffers(module: nn.Module) -> None:
    """Rank 0's batch statistics everywhere: each process has seen its own shard of the last batch."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
