"""A teacher's answers that came from elsewhere, as logits: from a file, as probabilities, or a service's best few."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdlib.errors import INSTEAD_OF_MASKS, unknown_name
from kdlib.files import load_tensors

KINDS = ("logits", "probabilities", "log_probabilities")
SMALLEST = 1e-8  # a probability of 0, as a service rounds it, stands for some number below its last digit
ROUNDING = 0.01  # services give two digits or more
CHUNK = 1 << 22  # numbers that are converted at once: a table may take most of the memory
LARGE_TABLE = 4e9  # bytes of which a user is told


def read_file(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors, .npz or .npy file (there under the name "logits"); no file runs code.

    Raises FileNotFoundError, or ValueError for another kind of file or one that cannot be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"{path.name} is no .safetensors, .npz or .npy file. Save the answers with numpy.save.")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"logits": torch.from_numpy(loaded)}
        with loaded:  # an .npz stays open until it is closed
            return {name: torch.from_numpy(array) for name, array in loaded.items()}
    except MemoryError:
        raise
    except Exception as error:  # NumPy and zipfile trip over a damaged file in many ways
        raise ValueError(f"{path} cannot be read as NumPy arrays of numbers ({error}). Save it anew.") from error


def as_tensor(values: Any, what: str) -> Tensor:
    """A tensor, an array or lists of numbers as a tensor on the CPU, without gradient; TypeError for anything else."""
    try:
        return torch.as_tensor(values).detach().cpu()
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{what} are a tensor, a NumPy array or lists of numbers, equally many in each; got "
            f"{type(values).__name__} ({error})."
        ) from error


def to_logits(values: Tensor, kind: str) -> Tensor:
    """Answers N x C as logits, float32: as they are, or the logarithm of probabilities.

    A probability of 0 has no logarithm: it becomes 1e-8, or the smallest other one of its row where that is less, and a
    warning says how many there were.
    Raises ValueError for values that are not finite, not N x C, or no probabilities; TypeError for no floats.
    """
    if kind not in KINDS:
        raise unknown_name("kind of answers", kind, (*KINDS, "top_k"))
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"Answers are a tensor of floats, samples x classes; got {got}.")
    if values.ndim < 2 or values.shape[0] == 0 or values.shape[-1] < 2:
        raise ValueError(
            f"Answers have shape {tuple(values.shape)}; expected one row a sample and a column for each class, two or "
            "more. For a single number a sample, as in a regression, give a function from a batch to them as teacher."
        )
    values, rows = values.detach(), max(1, CHUNK // values[0].numel())
    if not all(_is_accepted(part.float(), kind) for part in values.split(rows)):
        raise ValueError(
            "Some answers are not finite numbers. Ask for them again, or leave these samples out. "
            f"{INSTEAD_OF_MASKS if kind == 'logits' else ''}".rstrip()
        )
    if kind == "logits":
        return values if values.dtype == torch.float32 else _new_table(values.shape, values.device).copy_(values)
    sums = torch.cat([_sum_of(part.float(), kind) for part in values.split(rows)])
    negative = kind == "probabilities" and any(bool((part.float() < 0).any()) for part in values.split(rows))
    if negative or bool(((sums - 1).abs() > 0.01).any()):
        if values.ndim > 2 and bool(((_sum_of(values[:1].float(), kind, 1) - 1).abs() <= 0.01).all()):
            advice = "p.clamp(min=1e-8).log()" if kind == "probabilities" else "log_p.clamp(min=-18)"
            raise ValueError(
                f"In {kind} the classes are last, and of shape {tuple(values.shape)} they seem to be second, as in "
                f"maps of pixels. Give {advice} with kind='logits', which may be of any shape."
            )
        raise ValueError(
            f"These are no {kind}: a row sums to between {sums.min():.4g} and {sums.max():.4g}, not to 1. If each is "
            "the probability of a label of its own (a sigmoid), give torch.logit(p, eps=1e-6) with kind='logits'; if "
            "these are the best few alone, kind='top_k'. Only numbers before a softmax are kind='logits'."
        )
    logits, zeros = _new_table(values.shape, values.device), 0
    for part, target in zip(values.split(rows), logits.split(rows), strict=True):
        logs = _logs_of(part.float(), kind)
        zeros += int((logs == -math.inf).sum())
        target.copy_(_without_zeros(logs))
    if zeros:
        warnings.warn(
            f"{zeros:,} of {values.numel():,} probabilities are 0, which has no logarithm: each becomes {SMALLEST:g}, "
            "or the smallest other one of its row where that is less.",
            stacklevel=3,
        )
    return logits


def _is_accepted(values: Tensor, kind: str) -> bool:
    accepted = values.isfinite()
    if kind == "log_probabilities":
        accepted |= values == -math.inf  # the logarithm of 0
    return bool(accepted.all())


def _sum_of(values: Tensor, kind: str, classes: int = -1) -> Tensor:
    """The sum of each row's probabilities."""
    return (values.exp() if kind == "log_probabilities" else values).sum(dim=classes)


def _logs_of(values: Tensor, kind: str) -> Tensor:
    """The logarithms of probabilities, -inf where one is 0."""
    return values if kind == "log_probabilities" else values.log()


def _new_table(shape: Sequence[int], device: torch.device) -> Tensor:
    """An empty table of logits, float32; UserWarning for a large one."""
    size = 4 * math.prod(shape)  # the system grants more than there is, and kills who fills it
    if size > LARGE_TABLE:
        warnings.warn(
            f"The logits of {shape[0]:,} samples and {shape[-1]:,} classes take {size / 1e9:,.0f} GB of memory, in "
            "each process. If there is less, give the answers of fewer samples; or as teacher a function from a batch "
            "to its logits.",
            stacklevel=4,
        )
    return torch.empty(*shape, dtype=torch.float32, device=device)


def _without_zeros(logs: Tensor) -> Tensor:
    """Logarithms of probabilities, finite: an impossible class is never likelier than another one of its row."""
    replaced = logs.where(logs != -math.inf, math.log(SMALLEST))
    return logs.where(logs != -math.inf, replaced.amin(dim=-1, keepdim=True))


def from_top_k(given: Any, num_classes: int | None) -> Tensor:
    """Logits N x C from the k best classes of each sample; what they leave is spread evenly over the others.

    given: a dict of "classes" (int64, N x k) and "probabilities" or "log_probabilities" (N x k), as services give them.
    A probability of 0 is replaced as in `to_logits`, and so is less than 1e-8 that is left for each other class.
    Raises ValueError for a class out of range or named twice, and for probabilities that sum to more than 1, leave
    more for each other class than the least of the best has, or sum to less than 1 though no other class is there.
    """
    names = ("probabilities", "log_probabilities")
    found = [name for name in names if isinstance(given, Mapping) and name in given]
    if not found or "classes" not in given:
        raise ValueError(
            'kind="top_k" takes a dict of "classes" (N x k) and "probabilities" or "log_probabilities" (N x k).'
        )
    classes, best = as_tensor(given["classes"], "classes"), as_tensor(given[found[0]], found[0]).float()
    if classes.is_floating_point() or classes.dtype == torch.bool:  # 1.7 would become class 1
        raise TypeError(f"classes are whole numbers, from 0 on; got {classes.dtype}.")
    classes = classes.long()
    if classes.ndim != 2 or classes.shape != best.shape or not classes.numel():
        raise ValueError(
            f"classes {tuple(classes.shape)} and {found[0]} {tuple(best.shape)} must have the same shape, N x k, "
            "with at least one class of at least one sample."
        )
    if not isinstance(num_classes, Integral) or isinstance(num_classes, bool):
        raise ValueError(
            f"The best few do not say how many classes there are: give num_classes, a whole number; got {num_classes}."
        )
    num_classes = int(num_classes)
    if classes.min() < 0 or classes.max() >= num_classes or classes.shape[1] > num_classes:
        raise ValueError(
            f"The classes run from {int(classes.min())} to {int(classes.max())}; with num_classes={num_classes} they "
            f"lie in 0 .. {num_classes - 1}."
        )
    if classes.shape[1] > 1 and bool((classes.sort(dim=1).values.diff(dim=1) == 0).any()):
        raise ValueError("A sample names a class twice among its best. Give each class once.")
    logs = best if found[0] == "log_probabilities" else best.log()
    best = best.exp() if found[0] == "log_probabilities" else best
    total = best.sum(dim=1, keepdim=True)
    if not bool(best.isfinite().all()) or best.min() < 0 or total.max() > 1 + ROUNDING + 1e-6:
        raise ValueError(
            f"The probabilities of the best lie in [0, 1] and sum to at most 1; here a row sums to {total.max():.4g}."
        )
    others = num_classes - classes.shape[1]
    if not others and total.min() < 1 - ROUNDING - 1e-6:
        row = int(total.argmin())
        raise ValueError(
            f"The probabilities of all {num_classes} classes sum to 1; those of sample {row} sum to {total.min():.4g}. "
            "Look at num_classes, and whether these are probabilities of a softmax."
        )
    left = 1 - total
    left = left.where(left > 1e-7 * classes.shape[1], 0)  # less than that may be the rounding of the sum
    rest = left / max(others, 1)
    too_much = (rest > best.amin(dim=1, keepdim=True) + ROUNDING).any(dim=1)
    if others and bool(too_much.any()):
        row = int(too_much.nonzero()[0])
        raise ValueError(
            f"The best of sample {row} leave {float(rest[row]):.3g} for each other class, more than one of them has: "
            "they are not the best of one softmax over num_classes. Look at num_classes, and whether these are "
            "probabilities of a softmax."
        )
    rest = rest.where(rest >= SMALLEST, 0)
    logits, rows = _new_table((len(classes), num_classes), logs.device), max(1, CHUNK // num_classes)
    parts = zip(*(one.split(rows) for one in (logits, rest.log(), classes, logs)), strict=True)
    for target, other, named, known in parts:
        target.copy_(_without_zeros(other.expand(-1, num_classes).scatter(1, named, known)))
    return logits


def check_indices(indices: Any, count: int) -> Tensor:
    """The samples' numbers, 0 .. count - 1 if none are given; ValueError unless there is one for each, none twice."""
    if indices is None:
        return torch.arange(count)
    indices = as_tensor(indices, "indices")
    if indices.is_floating_point() or indices.dtype == torch.bool or tuple(indices.shape) != (count,):
        raise ValueError(
            f"indices are {count} whole numbers, one for each answer; got {tuple(indices.shape)} of {indices.dtype}."
        )
    indices = indices.long()
    if indices.min() < 0 or len(indices.unique()) < count:
        raise ValueError("indices are the samples' numbers: 0 or more, and none of them twice.")
    if int(indices.max()) > 100 * count + 1_000_000:
        raise ValueError(
            f"The largest index is {int(indices.max()):,} for {count:,} answers. Number the samples from 0 on."
        )
    return indices
