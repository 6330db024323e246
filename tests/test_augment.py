"""What happens to a sample is a function of (seed, view, sample index) alone, the same on every machine."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdlib.data import NO_AUGMENTATION, Augmentation, InMemoryDataset, augment, random_bits, seed_for
from kdlib.data.augment import permutation
from kdlib.files import fingerprint

MASK = 2**64 - 1
INT64 = st.integers(-(2**63), 2**63 - 1)


def mix(x: int) -> int:
    """splitmix64's output function (Steele, Lea and Flood 2014), in Python's unbounded integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def bits(index: int, *key: object) -> int:
    offset = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")
    return mix(mix((index * 0x9E3779B97F4A7C15 + offset) & MASK)) % 2**63


def augmented_slowly(image: list, index: int, padding: int, flip: bool, seed: int, view: int) -> list:
    """One image, C x H x W as nested lists: shift within a black border, then mirror."""
    height, width = len(image[0]), len(image[0][0])
    drawn = bits(index, "augment", seed, view)
    down, right = drawn % (2 * padding + 1) - padding, (drawn >> 20) % (2 * padding + 1) - padding
    mirrored = flip and (drawn >> 40) & 1

    def pixel(channel: list, row: int, column: int) -> int:
        row, column = row + down, (width - 1 - column if mirrored else column) + right
        return channel[row][column] if 0 <= row < height and 0 <= column < width else 0

    return [[[pixel(c, row, column) for column in range(width)] for row in range(height)] for c in image]


def make_images(count: int, channels: int = 3, height: int = 6, width: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # No black pixel, so that black is the border
    return torch.randint(1, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


# --- random_bits


def test_the_reference_is_splitmix64():
    # The widely published first outputs for the state 1234567.
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [mix((1234567 + n * 0x9E3779B97F4A7C15) & MASK) for n in range(1, 5)] == wanted


@settings(max_examples=60, deadline=None)
@given(index=INT64, word=st.text(max_size=5), seed=INT64, view=st.integers(0, 100))
@example(index=2**63 - 1, word="augment", seed=0, view=0)
@example(index=-(2**63), word="augment", seed=-1, view=0)
def test_random_bits_against_unbounded_integers(index: int, word: str, seed: int, view: int):
    found = random_bits(torch.tensor([index]), word, seed, view)
    assert found.dtype == torch.int64
    assert found.item() == bits(index, word, seed, view)


def test_random_bits_are_pinned():
    found = random_bits(torch.tensor([[0, 1], [59_999, -1]]), "augment", 0, 0)
    assert found.tolist() == [[544512307051101367, 601719486976729245], [8320659646517921497, 1008964999770034778]]
    assert random_bits(torch.tensor(0), "order", 3, 7).item() == bits(0, "order", 3, 7)


def test_any_whole_number_names_the_same_key():
    wanted = random_bits(torch.arange(5), "augment", 3, 1).tolist()
    for seed, view in ((np.int64(3), np.int32(1)), (torch.tensor(3), torch.tensor(1)), (3, True)):
        assert random_bits(torch.arange(5), "augment", seed, view).tolist() == wanted
    with pytest.raises(TypeError):
        random_bits(torch.arange(5), "augment", 3.5)


def test_every_bit_of_the_sixty_three_is_fair():
    drawn = random_bits(torch.arange(20_000), "augment", 0, 0)
    assert int(drawn.min()) >= 0
    ones = (drawn[:, None] >> torch.arange(63)) & 1
    assert (ones.double().mean(0) - 0.5).abs().max() < 4.5 * 0.5 / 20_000**0.5
    assert drawn.unique().numel() == 20_000


def test_the_permutation_depends_on_the_indices_alone():
    indices = torch.arange(100, 1_100)
    order = permutation(indices, 0, 1)
    assert order.sort().values.tolist() == list(range(1_000))
    assert order.tolist() == sorted(range(1_000), key=lambda i: bits(100 + i, "order", 0, 1))
    some = torch.arange(0, 1_000, 3)
    assert indices[some][permutation(indices[some], 0, 1)].tolist() == [
        i for i in indices[order].tolist() if (i - 100) % 3 == 0
    ]
    assert not torch.equal(order, permutation(indices, 0, 2))
    assert not torch.equal(order, permutation(indices, 1, 1))


# --- the slow reference


@settings(max_examples=60, deadline=None)
@given(
    padding=st.integers(0, 9),
    flip=st.booleans(),
    size=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    seed=st.integers(0, 1_000),
    view=st.integers(0, 3),
    first=st.integers(0, 60_000),
)
def test_augment_agrees_with_one_image_at_a_time(padding, flip, size, seed, view, first):
    images = make_images(*size, seed=seed)
    indices = first + torch.randperm(size[0] + 5)[: size[0]]
    found = augment(images, indices, Augmentation(padding, flip), seed, view)
    wanted = [
        augmented_slowly(image, index, padding, flip, seed, view)
        for image, index in zip(images.tolist(), indices.tolist(), strict=True)
    ]
    assert found.tolist() == wanted
    assert found.dtype == torch.uint8


def test_augmented_images_are_pinned():
    found = augment(make_images(64), torch.arange(64), Augmentation(padding=2, flip=True), seed=1, view=2)
    ramp = torch.arange(4 * 28 * 28).view(4, 1, 28, 28).to(torch.uint8)
    plain = augment(ramp, torch.tensor([0, 7, 59_999, 12]), Augmentation(padding=2, flip=True), seed=1, view=2)
    assert found.shape == (64, 3, 6, 7)
    assert fingerprint([plain])[:16] == "84b1b2d7c8a814c1"


@pytest.mark.slow
def test_another_process_gives_the_same_images():
    code = (
        "import torch; from kdlib.data import augment, Augmentation; torch.manual_seed(5);"
        "x = torch.arange(8 * 3 * 36).view(8, 3, 6, 6).to(torch.uint8);"
        "y = augment(x, torch.arange(7, 15), Augmentation(padding=2, flip=True), 3, 1);"
        "print(y.flatten().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    images = torch.arange(8 * 3 * 36).view(8, 3, 6, 6).to(torch.uint8)
    wanted = augment(images, torch.arange(7, 15), Augmentation(padding=2, flip=True), 3, 1)
    assert done.stdout.strip() == str(wanted.flatten().tolist())


# --- invariances


@pytest.fixture(scope="module")
def dataset() -> InMemoryDataset:
    return InMemoryDataset(
        make_images(90), torch.arange(90) % 3, torch.arange(500, 590), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    )


def by_index(batches) -> dict[int, list]:
    return {int(i): image.tolist() for b in batches for i, image in zip(b.indices, b.images, strict=True)}


def test_views_do_not_depend_on_order_batch_size_or_subset(dataset: InMemoryDataset):
    options = {"augmentation": Augmentation(padding=2, flip=True), "seed": 4, "view": 2}
    wanted = by_index(dataset.iter_batches(90, **options))
    order = torch.randperm(90)
    assert by_index(dataset.iter_batches(7, sampler=order, **options)) == wanted
    some = torch.tensor([80, 3, 41, 3])
    assert by_index(dataset.select(some).iter_batches(3, **options)) == {500 + i: wanted[500 + i] for i in (80, 3, 41)}
    torch.manual_seed(99)
    torch.rand(10)
    assert by_index(dataset.iter_batches(1, **options)) == wanted


def test_seeds_views_and_indices_differ(dataset: InMemoryDataset):
    images = make_images(1, 1, 8, 8).expand(300, 1, 8, 8)
    chosen, first = Augmentation(padding=4, flip=True), torch.arange(300)
    base = augment(images, first, chosen, 0, 0)

    def share_equal(other: torch.Tensor) -> float:
        return (base == other).flatten(1).all(1).double().mean().item()

    assert share_equal(augment(images, first, chosen, 0, 0)) == 1
    for other in (
        augment(images, first, chosen, 1, 0),
        augment(images, first, chosen, 0, 1),
        augment(images, first + 1, chosen, 0, 0),
        augment(images, first + 300, chosen, 0, 0),
    ):
        assert share_equal(other) < 0.04  # by chance 1 / (81 * 2)


def test_seed_and_view_are_not_interchangeable():
    indices = torch.arange(100)
    assert not torch.equal(random_bits(indices, "augment", 1, 2), random_bits(indices, "augment", 2, 1))
    assert not torch.equal(random_bits(indices, "augment", 1, 12), random_bits(indices, "augment", 11, 2))


# --- the distribution, read from the images


def offsets_and_flips(indices: torch.Tensor, seed: int, view: int) -> torch.Tensor:
    """How a padding of 2 moved and mirrored each image: a number from 0 to 49, seen in the pixels."""
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4], image[0, 0, 4, 5] = 255, 128
    found = augment(image.expand(len(indices), 1, 9, 9), indices, Augmentation(padding=2, flip=True), seed, view)
    position = found.flatten(1).argmax(1)
    row, column = position // 9, position % 9
    after = found.flatten(1).gather(1, (position + 1)[:, None])[:, 0]
    mirrored = (after != 128).long()
    assert set(row.tolist()) == set(column.tolist()) == {2, 3, 4, 5, 6}
    return ((row - 2) * 5 + column - 2) * 2 + mirrored


def test_offsets_are_uniform_and_independent_of_the_flip():
    cells = offsets_and_flips(torch.arange(20_000), seed=0, view=0)
    counts = torch.bincount(cells, minlength=50)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3  # all 25 x 2 together
    for axis in range(3):
        table = counts.view(5, 5, 2).sum(axis)
        assert scipy.stats.chi2_contingency(table.numpy()).pvalue > 1e-3
    flips = int(counts.view(25, 2)[:, 1].sum())
    assert abs(flips - 10_000) < 4 * 0.5 * 20_000**0.5


@pytest.mark.parametrize(("later", "seed", "view"), [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_neighbours_are_independent(later: int, seed: int, view: int):
    first = offsets_and_flips(torch.arange(20_000), 0, 0)
    second = offsets_and_flips(later + torch.arange(20_000), seed, view)
    agree = int((first == second).sum())
    assert abs(agree - 400) < 4 * (20_000 * 0.02 * 0.98) ** 0.5
    table = torch.bincount((first % 2) * 2 + second % 2, minlength=4).view(2, 2)
    assert scipy.stats.chi2_contingency(table.numpy()).pvalue > 1e-3


# --- corners


def test_nothing_to_do_returns_the_very_images():
    images = make_images(3)
    assert augment(images, torch.arange(3), NO_AUGMENTATION, 0, 0) is images
    assert augment(images, torch.arange(3), Augmentation(padding=0, flip=False), 1, 1) is images


def test_the_images_are_not_changed_in_place():
    images = make_images(5)
    before = images.clone()
    augment(images, torch.arange(5), Augmentation(padding=3, flip=True), 0, 0)
    assert torch.equal(images, before)


def test_only_a_flip_gives_each_image_or_its_mirror():
    images = make_images(200)
    found = augment(images, torch.arange(200), Augmentation(flip=True), 0, 0)
    same = (found == images).flatten(1).all(1)
    mirrored = (found == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 70 < int(same.sum()) < 130


def test_only_a_crop_does_not_mirror_and_borders_are_black():
    images = make_images(200, height=5, width=8)
    found = augment(images, torch.arange(200), Augmentation(padding=1), 0, 0)
    padded = torch.nn.functional.pad(images, [1] * 4)
    windows = torch.stack([padded[:, :, r : r + 5, c : c + 8] for r in range(3) for c in range(3)])
    fits = (windows == found).flatten(2).all(2)
    assert (fits.sum(0) == 1).all()
    assert (fits.sum(1) > 5).all()


def test_channels_move_together():
    grey = make_images(50, channels=1)
    colour = torch.cat([grey, 255 - grey, grey], 1)
    found = augment(colour, torch.arange(50), Augmentation(padding=2, flip=True), 0, 0)
    assert torch.equal(found[:, 0], found[:, 2])
    inside = found[:, 0] > 0  # the border is black in every channel
    assert (found[:, 0].int() + found[:, 1].int())[inside].unique().tolist() == [255]
    assert not found[:, 1][~inside].any()


def test_channels_last_and_expanded_images_and_an_empty_batch():
    images, chosen = make_images(4), Augmentation(padding=2, flip=True)
    wanted = augment(images, torch.arange(4), chosen, 0, 0)
    assert torch.equal(augment(images.to(memory_format=torch.channels_last), torch.arange(4), chosen, 0, 0), wanted)
    assert augment(images[:0], torch.arange(0), chosen, 0, 0).shape == (0, 3, 6, 7)


@pytest.mark.parametrize("padding", [-1, 1.5, "2", None])
def test_padding_is_a_number_of_pixels(padding: object):
    with pytest.raises(ValueError, match="padding is a whole number of at least 0; got"):
        Augmentation(padding=padding)


@pytest.mark.parametrize(
    "scale",
    [
        *((0, 1), (-0.1, 1), (0.5, 1.1), (0.8, 0.2), (math.nan, 1), (0.5, math.nan), (0.5, math.inf)),
        *(0.35, 1, None, "ab", (), (0.5,), (0.1, 0.5, 1)),
    ],
)
def test_scale_is_two_shares_of_the_area(scale: object):
    message = f"scale is two shares of the area, 0 < least <= greatest <= 1; got {scale!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Augmentation(scale=scale)


def test_scale_may_be_a_list_of_whole_numbers_and_one_share_twice():
    assert Augmentation(scale=[1, 1]) == NO_AUGMENTATION == Augmentation(0, 0, (1, 1))
    assert Augmentation(scale=[0.5, 1]) == Augmentation(scale=(0.5, 1.0)) != NO_AUGMENTATION
    same = Augmentation(scale=[0.5, 0.5])
    assert same.scale == (0.5, 0.5)
    assert (same.resizes, NO_AUGMENTATION.resizes, Augmentation(padding=2, flip=True).resizes) == (True, False, False)


def test_an_augmentation_as_a_dictionary_is_the_same_before_and_after_json():
    for one in (NO_AUGMENTATION, Augmentation(2, True, (0.35, 1.0))):
        found = one.to_dict()
        assert json.loads(json.dumps(found)) == found
        assert Augmentation(**found) == one


def test_images_in_memory_are_not_resized():
    with pytest.raises(ValueError, match="cropped and flipped, not resized"):
        augment(make_images(2), torch.arange(2), Augmentation(scale=(0.5, 1)), 0, 0)
    assert Augmentation() == NO_AUGMENTATION


def test_a_seed_differs_with_its_key_in_the_32_bits_that_a_generator_looks_at():
    keys = [(seed, name, number) for seed in (0, 1) for name in ("epoch", "process") for number in range(5)]
    first = [torch.rand(1, generator=torch.Generator().manual_seed(seed_for(*key))).item() for key in keys]
    assert len(set(first)) == len(keys)
    assert seed_for(3, "epoch", 1) == seed_for(3, "epoch", 1)


def test_large_images_are_not_prepared_a_thousand_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []

    def count(images: torch.Tensor, *options: object) -> torch.Tensor:
        prepared.append(len(images))
        return augment(images, *options)

    monkeypatch.setattr("kdlib.data.datasets.augment", count)
    for side, most in ((28, 1024), (256, 64)):
        images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1100, 1, side, side)
        dataset = InMemoryDataset(images, torch.zeros(1100).long(), torch.arange(1100), (0.0,), (1.0,))
        prepared.clear()
        assert sum(len(batch.labels) for batch in dataset.iter_batches(32)) == 1100
        assert max(prepared) == most
