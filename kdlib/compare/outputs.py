"""What every network says of every picture: the test set is read once, and all networks see the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib import evaluation, measure
from kdlib.compare.networks import TEACHER
from kdlib.data import DataModule, IndexedDataset, InMemoryDataset, evenly_spaced
from kdlib.data.corruptions import DESTRUCTIONS, SEVERITIES, STRENGTHS, corrupt, destroy
from kdlib.errors import check_whole

CONDITIONS = tuple(product(STRENGTHS, SEVERITIES))
MOST_IMAGES = 1000  # of the test set at once
MOST_BYTES = 1 << 26  # of all pictures that are made of them

Key = tuple[str, Hashable]  # name and run


@dataclass(frozen=True)
class Outputs:
    """What one network said of N test images.

    logits: N x C, float32. temperature: fitted on validation images. corrupted: by corruption and severity, N, whether
    it was right. outside: by kind of picture, N x 3: the largest probability as it is and after the temperature, and
    the `log_odds` of the latter.
    """

    logits: Tensor
    temperature: float
    corrupted: Mapping[tuple[str, int], np.ndarray]
    outside: Mapping[str, np.ndarray]

    @cached_property
    def answers(self) -> Tensor:
        """The class that it chose for each image: N."""
        return self.logits.argmax(1)

    @property
    def temperature_scaled(self) -> Tensor:
        """The logits divided by the temperature."""
        return self.logits / self.temperature


def choose(test: IndexedDataset, images: int | None) -> IndexedDataset:
    """The test images, or so many of them, evenly spaced."""
    if images is None:
        return test
    check_whole(least=2, images=images)
    return test.select(evenly_spaced(len(test), images))


def collect(
    networks: Mapping[Key, nn.Module],
    data: DataModule,
    test: IndexedDataset,
    *,
    corruptions: bool,
    device: str,
    precision: str,
    progress: bool,
) -> dict[Key, Outputs]:
    """Run every network on the validation images, and then on every picture that is made of the test images.

    Raises ValueError for two runs of one entry that say the same of every validation image.
    """
    pictures = 1 + (len(CONDITIONS) + len(DESTRUCTIONS)) * corruptions
    total = len(networks) * (len(data.validation) + pictures * len(test))
    with tqdm(total=total, disable=not progress, unit="img", unit_scale=True) as bar:

        def logits_of(key: Key, dataset: IndexedDataset) -> Tensor:
            called = TEACHER if key[0] == TEACHER else f"network {key[0]!r}, run {key[1]}"
            bar.set_description(f"{key[0]} {key[1]}".strip(), refresh=False)
            found = evaluation.evaluate(networks[key], dataset, device=device, precision=precision, role=called)
            bar.update(len(dataset))
            return found.logits

        temperatures = _temperatures(networks, data.validation, logits_of)
        parts: dict[Key, list[dict]] = {key: [] for key in networks}
        for chunk in _chunks(test, pictures * data.in_channels * data.image_size**2):
            kinds, shown = _pictures(chunk, corruptions)
            for key in networks:
                logits = dict(zip(kinds, logits_of(key, shown).split(len(chunk)), strict=True))
                parts[key].append(_reduce(logits, chunk.labels, temperatures[key]))
    return {key: _joined(some, temperatures[key]) for key, some in parts.items()}


def find_same(students: Mapping[str, Mapping[Hashable, Outputs]]) -> tuple[tuple[str, str], ...]:
    """Pairs of students whose logits are equal at every run: the same networks under two names.

    Runs are paired by their keys, as everywhere; where each student has one run, its key does not matter.
    """
    keys = next(iter(students.values()))
    logits = {name: [runs[key].logits for key in (keys if len(runs) > 1 else runs)] for name, runs in students.items()}
    return tuple(
        (one, other) for one, other in combinations(logits, 2) if all(map(torch.equal, logits[one], logits[other]))
    )


def _temperatures(
    networks: Iterable[Key], validation: IndexedDataset, logits_of: Callable[[Key, IndexedDataset], Tensor]
) -> dict[Key, float]:
    """The temperature of each network, fitted on the validation images."""
    said = {key: logits_of(key, validation) for key in networks}
    for first, second in combinations(said, 2):
        if first[0] == second[0] and torch.equal(said[first], said[second]):
            raise ValueError(
                f"Runs {first[1]} and {second[1]} of {first[0]!r} give the same logits for every validation image: "
                "they are one network twice. Give one network for each seed."
            )
    return {key: measure.fit_temperature(logits, validation.labels) for key, logits in said.items()}


def _chunks(test: IndexedDataset, bytes_of_one: int) -> Iterator[InMemoryDataset]:
    """The test images as bytes, so many at once as fit into memory with all that is made of them."""
    size = max(1, min(MOST_IMAGES, MOST_BYTES // bytes_of_one))
    scale, shift = (torch.tensor(numbers).mul(255).view(1, -1, 1, 1) for numbers in (test.std, test.mean))
    for batch in test.iter_batches(size):
        # Every dataset gives normalized floats; of bytes that were normalized, rounding gives back the bytes.
        images = (batch.images.cpu() * scale + shift).round().clamp(0, 255).to(torch.uint8).contiguous()
        yield InMemoryDataset(images, batch.labels.cpu(), batch.indices.cpu(), test.mean, test.std)


def _pictures(chunk: InMemoryDataset, corruptions: bool) -> tuple[list[Hashable], InMemoryDataset]:
    """All pictures made of some test images, one kind after the other, and the kinds."""
    made: dict[Hashable, Tensor] = {"clean": chunk.images}
    if corruptions:
        made |= {one: corrupt(chunk.images, chunk.indices, *one) for one in CONDITIONS}
        made |= {kind: destroy(chunk.images, chunk.indices, kind) for kind in DESTRUCTIONS}
    images = torch.cat(list(made.values()))
    labels = chunk.labels.repeat(len(made))
    return list(made), InMemoryDataset(images, labels, torch.arange(len(images)), chunk.mean, chunk.std)


def _reduce(logits: Mapping[Hashable, Tensor], labels: Tensor, temperature: float) -> dict:
    """What is kept: all logits of clean images, and one or two numbers of the others."""
    kept: dict = {"clean": logits["clean"]}
    for kind, some in logits.items():
        if kind in DESTRUCTIONS:
            sure = [F.softmax(some.double() / t, 1).amax(1) for t in (1.0, temperature)]
            kept[kind] = torch.stack([*sure, log_odds(some / temperature)], 1)
        elif kind != "clean":
            kept[kind] = some.argmax(1) == labels
    return kept


def log_odds(logits: Tensor) -> Tensor:
    """The logarithm of p / (1 - p), p the largest probability: its order, and no ties where all of them round to 1.

    logits: N x C. Returns N, float64.
    """
    largest, at = logits.double().max(1)
    others = logits.double().scatter(1, at[:, None], -torch.inf)
    return largest - others.logsumexp(1)


def _joined(parts: list[dict], temperature: float) -> Outputs:
    whole = {kind: torch.cat([part[kind] for part in parts]) for kind in parts[0]}
    return Outputs(
        logits=whole["clean"],
        temperature=temperature,
        corrupted={kind: whole[kind].numpy() for kind in CONDITIONS if kind in whole},
        outside={kind: whole[kind].numpy() for kind in DESTRUCTIONS if kind in whole},
    )
