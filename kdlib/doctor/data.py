"""Checks of the pairing: do picture, answer and label belong together, and are the splits apart?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import Dataset

from kdlib.adapters import LABEL_FIELDS, Adapter
from kdlib.data import DataModule
from kdlib.data.datasets import InMemoryDataset, LazyDataset, count_shared
from kdlib.data.sources import IMAGENET_MEAN, IMAGENET_STD
from kdlib.doctor.report import DOUBT, FAULT, GITHUB, Finding, Skip
from kdlib.doctor.samples import RARE, Samples, better, samples
from kdlib.doctor.setup import Setup
from kdlib.guards import keep_modes

# Of accuracy, over what was measured and over chance: a network that was trained for a few steps may gain six points by
# another normalisation than its own.
GAIN = 0.1
# The share of the start, mean 0 and variance 1, in a batch norm's running averages from which on they are not relied
# upon: with torch's momentum of 0.1 up to 50 batches.
START = 0.005


def pairing(setup: Setup) -> Finding | None:
    """Would the teacher be right oftener if its answers were moved by some samples?"""
    found = samples(setup, "teacher")
    best: tuple[float, str, Tensor] = (1.0, "", found.right)
    count = 0
    for name, right in _moved(found):
        count += 1
        chance = better(right, found.right)
        if chance < best[0] and float(right.double().mean()) >= max(found.accuracy, found.chance) + GAIN:
            best = chance, name, right
    if best[0] * max(count, 1) >= RARE:
        return None
    return Finding(
        "teacher-pairing",
        FAULT,
        f"The teacher is right about {found.accuracy:.1%} of {len(found.labels)} samples, and about "
        f"{float(best[2].double().mean()):.1%} if its answers are {best[1]}.",
        "The student is told what the teacher says of another picture. That still lowers the loss, as label smoothing "
        "does, and curves look fine.",
        "Store answers by the sample's index, not by its place in a loader that shuffles, and look them up by it.",
        1 - best[0],
        f"{GITHUB}haitongli/knowledge-distillation-pytorch/issues/9",
    )


def _moved(found: Samples) -> Iterable[tuple[str, Tensor]]:
    answers = found.logits.argmax(1)
    number = len(answers)
    sizes = torch.bincount(found.batches).tolist()
    starts = torch.tensor([sum(sizes[:i]) for i in range(len(sizes))])
    first, size = starts[found.batches], torch.tensor(sizes)[found.batches]
    place = torch.arange(number) - first
    for shift in range(1, min(max(sizes), 17)):
        for sign in (1, -1):
            moved = answers[first + (place + sign * shift) % size]
            yield f"moved by {sign * shift} place(s) within the batch", moved == found.labels
    yield "put in reverse order within the batch", answers[first + size - 1 - place] == found.labels
    for shift in [*range(1, min(17, number)), *(size for size in set(sizes) if 17 <= size < number)]:
        for sign in (1, -1):
            yield f"moved by {sign * shift} place(s)", answers.roll(sign * shift) == found.labels


def normalisation(setup: Setup) -> Finding | None:
    """Would the teacher be right oftener if the same pictures were normalised otherwise?"""
    found = samples(setup, "teacher")
    teacher = setup.teacher
    if teacher is None:
        raise Skip("no teacher's network was given")
    seen = [one for one in setup.observed if "teacher" in one.inputs]
    if not seen or any(
        one.inputs["teacher"].ndim != 4 or not one.inputs["teacher"].is_floating_point() for one in seen
    ):
        raise Skip("the teacher's inputs are no pictures of batch x channels x height x width")
    if len({one.inputs["teacher"].shape[1:] for one in seen}) > 1:
        raise Skip("the batches have pictures of different sizes")
    pictures = torch.cat([one.inputs["teacher"] for one in seen])
    if len(pictures) != len(found.named) or pictures.shape[1] > 4:
        raise Skip("the teacher does not answer once for each picture")
    sizes = [len(one.inputs["teacher"]) for one in seen]
    compared = False
    best: tuple[float, str, Samples] = (1.0, "", found)
    for name, changed in _normalised(pictures).items():
        answers = _ask(setup, changed, sizes)
        if answers.shape != (len(pictures), found.logits.shape[1]):
            continue
        other = replace(found, logits=answers[found.named])
        if not bool(other.logits.isfinite().all()):
            continue
        compared = True
        chance = better(other.right, found.right)
        if chance < best[0] and other.accuracy >= max(found.accuracy, other.chance) + GAIN:
            best = chance, name, other
    if not compared:
        raise Skip("the teacher's answers to the pictures in other normalisations are not finite, or of another shape")
    if best[0] >= RARE:
        return None
    if (lag := _lagging_averages(teacher)) is not None:
        raise Skip(
            f"a batch norm of the teacher has averaged over {lag} batches only, and its averages may be what is wrong: "
            "train the teacher longer, and examine it again"
        )
    lowest, highest = float(pictures.min()), float(pictures.max())
    return Finding(
        "normalisation",
        FAULT,
        f"The teacher is right about {found.accuracy:.1%} of {len(found.labels)} pictures with values from "
        f"{lowest:.3g} to {highest:.3g} as it gets them, and about {best[2].accuracy:.1%} if they are {best[1]}.",
        "The teacher was trained on pictures normalised otherwise; what it says of these is a distorted answer.",
        "Give each network pictures in its own normalisation: Adapter(teacher_inputs=...), or a first layer that "
        "normalises.",
        1 - best[0],
        f"{GITHUB}lightly-ai/lightly-train/pull/901",
    )


def _lagging_averages(network: nn.Module) -> int | None:
    """The fewest batches that a batch norm has seen whose averages still hold some of their start; None without one.

    Where no batch was counted (weights from elsewhere, from before torch counted) nothing can be said. Without a
    momentum an average is the plain mean, and nothing of its start is left after the first batch.
    """
    lagging = []
    for module in network.modules():
        if isinstance(module, _NormBase) and module.num_batches_tracked is not None and module.momentum:
            count = int(module.num_batches_tracked)
            if count > 0 and (1 - module.momentum) ** count > START:
                lagging.append(count)
    return min(lagging, default=None)


def _normalised(x: Tensor) -> dict[str, Tensor]:
    """The pictures in the usual normalisations."""
    dims = (0, 2, 3)
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    pixels = (x - low) / (high - low).clamp(min=1e-12)
    mean, std = x.mean(dims, keepdim=True), x.std(dims, keepdim=True).clamp(min=1e-12)
    found = {
        "brought to 0 .. 1": pixels,
        "brought to 0 .. 255": 255 * pixels,
        "brought to -1 .. 1": 2 * pixels - 1,
        "brought to mean 0 and standard deviation 1 in each channel": (x - mean) / std,
    }
    if x.shape[1] == 3:
        means, stds = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        found["normalised as for ImageNet"] = (pixels - means) / stds
    return found


@torch.no_grad()
def _ask(setup: Setup, pictures: Tensor, sizes: list[int]) -> Tensor:
    """The teacher's logits in eval mode, for batches of these sizes."""
    teacher = setup.teacher
    assert teacher is not None
    outputs = []
    with keep_modes(teacher):
        teacher.eval()
        try:
            for batch, part in zip(setup.batches, pictures.split(sizes), strict=False):  # not all may have been seen
                outputs.append(setup.answers(batch, part).float().cpu())
        except (TypeError, RuntimeError, ValueError, AttributeError) as error:
            raise Skip(f"the teacher takes more than pictures ({type(error).__name__})") from None
    return torch.cat(outputs)


def same_view(setup: Setup) -> Finding | None:
    """Do student and teacher look at the same view of the same samples?"""
    pairs = [(one.inputs["student"], one.inputs["teacher"]) for one in setup.observed if len(one.inputs) == 2]
    if not pairs:
        raise Skip("the inputs of student and teacher are not both seen")
    if all(a is b or (a.shape == b.shape and torch.equal(a.cpu(), b.cpu())) for a, b in pairs):
        return None
    a, b = pairs[0]
    if a.shape != b.shape or a.ndim != 4 or not (a.is_floating_point() and b.is_floating_point()):
        raise Skip("student and teacher get inputs of different kinds, whose content is not compared")
    likeness = _likeness(a, b)
    own = likeness.diagonal()
    if float(own.min()) > 0.999:  # another mean and scale of each channel is all that differs
        return None
    others = likeness.argmax(1)
    elsewhere = others != torch.arange(len(others))
    if bool((likeness.amax(1)[elsewhere] > 0.999).all()) and float(elsewhere.float().mean()) > 0.5:
        return Finding(
            "same-view",
            FAULT,
            f"In a batch of {len(a)} the teacher gets the student's pictures in another order: the first of the "
            f"student is number {int((likeness[0]).argmax())} of the teacher.",
            "The student is told what the teacher says of another picture.",
            "Hand the same batch to both networks, or shuffle neither.",
            story=f"{GITHUB}haitongli/knowledge-distillation-pytorch/issues/9",
        )
    flipped = float(_likeness(a, b.flip(3)).diagonal().median())
    kind = " (the mirror image for most)" if flipped > 0.999 else ""
    return Finding(
        "same-view",
        DOUBT,
        f"Student and teacher get different views{kind}: over the pictures of a batch their values correlate by "
        f"{float(own.median()):.2f} (median), and an equal view would by 1.00.",
        "A teacher's answer belongs to the crop that it saw: a student that saw another one is asked for what it "
        "cannot see (Beyer et al. 2022, arXiv:2106.05237).",
        "Augment once and give both networks the result. Leave it if it is meant, as in noisy student.",
    )


def _likeness(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of each sample of a with each of b, after each channel was brought to mean 0 and spread 1."""

    def standard(x: Tensor) -> Tensor:
        x = x.detach().cpu().double()  # in this order: MPS has no float64
        x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True).clamp(min=1e-12)
        flat = x.flatten(1)
        return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)

    return standard(a) @ standard(b).mT


def splits(setup: Setup) -> Finding | None:
    """Do the samples that choices are made on, or that are trained on, stand in the test split as well?"""
    if setup.splits is None:
        raise Skip("no splits were given: examine(..., data=...)")
    doubt = skipped = None
    for (first, a), (second, b) in combinations(setup.splits.items(), 2):
        try:
            shared, number, known = _shared(a, b, setup.adapter)
            within = min(len(a), len(b))
        except Skip as reason:  # another pair may still be found to share samples
            skipped = skipped or reason
            continue
        # Fashion-MNIST has 3 test pictures in a thousand that are in the training set too, CIFAR-10 far more that are
        # nearly so: a few twins are no mistake of the set-up.
        if shared > 0.01 * within:
            finding = Finding(
                "splits",
                FAULT if known else DOUBT,
                f"{shared:,} of the {number:,} samples of {second} are in {first} as well"
                f"{'' if known else ', if those of their parts that are single numbers are no inputs'}.",
                "What is chosen or learned on the samples that the result is measured on says too much for itself: "
                "the best of 30 epochs chosen on the test set gains what no other data set will give.",
                "Cut a validation split out of the training set, choose on it, and read the test set once."
                f"{'' if known else ' If a single number is an input, name the inputs by keys or positions: '}"
                f"{'' if known else 'adapter=Adapter(inputs=...).'}",
            )
            if known:
                return finding
            doubt = doubt or finding
    if doubt is None and skipped is not None:
        raise skipped
    return doubt


def as_splits(data: Any) -> Mapping[str, Any]:
    """Data sets by name; TypeError for what is neither a `DataModule` nor a mapping of two or more."""
    if isinstance(data, DataModule):
        return {"train": data.train, "validation": data.validation, "test": data.test}
    if isinstance(data, Mapping) and len(data) > 1:
        return {str(name): one for name, one in data.items()}
    raise TypeError(
        "data is a kdlib.data.DataModule, or data sets by name, {'validation': ..., 'test': ...}; got "
        f"{type(data).__name__}."
    )


def _shared(a: Any, b: Any, adapter: Adapter) -> tuple[int, int, bool]:
    """How many samples of b are in a, how many b has, and whether it is known what of a sample the inputs are."""
    if a is b and hasattr(b, "__len__"):
        return len(b), len(b), True
    if isinstance(a, InMemoryDataset) and isinstance(b, InMemoryDataset):
        # Splits that were made one by one number their samples alike, so only the pictures tell.
        pictures = set(_picture_hashes(a))
        return sum(one in pictures for one in _picture_hashes(b)), len(b), True
    if hasattr(a, "iter_batches") and hasattr(b, "iter_batches"):
        if isinstance(a, LazyDataset) and isinstance(b, LazyDataset) and a.source is not b.source:
            seen_files = set(_file_hashes(a))
            files = _file_hashes(b)
            return sum(one in seen_files for one in files), len(files), True
        same = getattr(a, "fingerprint", 1) == getattr(b, "fingerprint", 2)
        return len(b) if same else count_shared(a, b), len(b), True
    (first, known), (hashes, also_known) = _hashes(a, adapter), _hashes(b, adapter)
    seen = set(first)
    return sum(one in seen for one in hashes), len(hashes), known and also_known


def _picture_hashes(split: InMemoryDataset) -> Iterator[int]:
    return (hash(picture.numpy().tobytes()) for picture in split.images)


MOST_HASHED = 20_000  # samples of a data set that are read one by one: more of a folder of pictures takes minutes


def _hashes(split: Any, adapter: Adapter) -> tuple[list[int], bool]:
    """A number for each sample, by its inputs, and whether it is known what these are."""
    if isinstance(split, Tensor):
        return [hash(_content(row)) for row in split.detach().cpu()], True
    stream = getattr(type(split), "__getitem__", None) is Dataset.__getitem__  # which only raises
    if stream or not hasattr(split, "__getitem__") or not hasattr(split, "__len__"):
        raise Skip(f"the samples of a {type(split).__name__} cannot be read by their number")
    _refuse_many(split)
    found, all_known = [], True
    for number in range(len(split)):
        inputs, known = _inputs(split[number], adapter)
        found.append(hash(_content(inputs)))
        all_known = all_known and known
    if found and hash(_content(_inputs(split[0], adapter)[0])) != found[0]:
        raise Skip("a sample of a data set is another each time that it is read, as with random augmentation")
    return found, all_known


def _inputs(sample: Any, adapter: Adapter) -> tuple[Any, bool]:
    """What a network is given of a sample, and whether that is known.

    It is not where single numbers were left out that may be labels, numbers of the sample or inputs.
    """
    named = [one for one in (adapter.inputs, adapter.teacher_inputs) if one is not None]
    if adapter.inputs is not None and not any(callable(one) for one in named):  # a function is made for batches
        with suppress(ValueError):  # of a sample that has no such field
            return (adapter.student_inputs_of(sample), adapter.teacher_inputs_of(sample)), True
    if isinstance(sample, tuple | list) and len(sample) <= 2 and adapter.inputs is None:
        return sample[0], True
    if not isinstance(sample, tuple | list | Mapping):
        return sample, True
    fields = sample if isinstance(sample, Mapping) else dict(enumerate(sample))
    others = ("index", *LABEL_FIELDS, adapter.labels, adapter.indices)
    fields = {name: one for name, one in fields.items() if name not in others}
    parts = {name: one for name, one in fields.items() if not _is_number(one)}
    return parts or fields, len(parts) in (0, len(fields))


def _is_number(part: Any) -> bool:
    return not isinstance(part, str | bytes | Mapping | tuple | list) and np.ndim(part) == 0


def _file_hashes(split: LazyDataset) -> list[bytes]:
    """A hash of the file of each picture."""
    samples = getattr(split.source, "samples", None)
    if samples is None:
        raise Skip("the pictures of the splits come from different sources and are no files that can be compared")
    _refuse_many(split)
    try:
        paths = [Path(samples[position][0]) for position in split.source_positions.tolist()]
        return [hashlib.blake2b(path.read_bytes()).digest() for path in paths]
    except (TypeError, LookupError, OSError) as error:
        raise Skip(f"the files of the pictures cannot be read ({error})") from None


def _refuse_many(split: Any) -> None:
    if len(split) > MOST_HASHED:
        raise Skip(f"a data set has {len(split):,} samples, and more than {MOST_HASHED:,} are not read one by one")


def _content(value: Any) -> bytes:
    """The bytes of a tensor, an array, a picture, a number or a text, or of a mapping, tuple or list of them."""
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, Mapping):
        return b"".join(map(_content, value.values()))
    # A long list of numbers is read at once; with a float in it large integers would be rounded.
    if isinstance(value, tuple | list) and set(map(type, value)) not in ({int}, {float}):
        return b"".join(map(_content, value))
    array = np.asarray(value)
    if array.dtype == object:
        raise Skip(f"a sample that is a {type(value).__name__} cannot be compared")
    return array.tobytes()
