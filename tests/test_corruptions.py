"""Damaged pictures and pictures of nothing: what each does, and that it depends on the sample's number alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.v2.functional import gaussian_blur

from kdlib import evaluation, models
from kdlib.data import DataModule, normalized_images
from kdlib.data.corruptions import DESTRUCTIONS, SEVERITIES, STRENGTHS, corrupt, destroy

CONDITIONS = [(kind, severity) for kind in STRENGTHS for severity in SEVERITIES]
MADE: dict[str, Any] = {f"{kind} {severity}": (corrupt, kind, severity) for kind, severity in CONDITIONS}
MADE |= {kind: (destroy, kind) for kind in DESTRUCTIONS}


def pictures(count: int = 6, channels: int = 1, height: int = 28, width: int = 28, seed: int = 0) -> Tensor:
    """Bright shapes with smooth shades on a black ground."""
    generator = torch.Generator().manual_seed(seed)
    shades = torch.rand(count, channels, 4, 4, generator=generator)
    images = F.interpolate(shades, (height, width), mode="bilinear")
    inner = torch.zeros(height, width)
    inner[height // 5 : height - height // 5, width // 4 : width - width // 4] = 1
    return (255 * images * inner).to(torch.uint8)


def make(name: str, images: Tensor, indices: Tensor) -> Tensor:
    function, *options = MADE[name]
    return function(images, indices, *options)


# --- all of them


@pytest.mark.parametrize("name", MADE)
def test_a_picture_depends_on_its_own_number_and_on_nothing_else(name: str) -> None:
    images, indices = pictures(600, height=8, width=8), torch.arange(100, 700)  # more than are made at once
    whole = make(name, images, indices)
    some = torch.tensor([599, 3, 17, 501])
    assert torch.equal(make(name, images[some], indices[some]), whole[some])
    assert torch.equal(make(name, images, indices), whole)


@pytest.mark.parametrize("name", [name for name in MADE if name.split()[0] in ("noise", "shift", "rotation")])
def test_another_number_gives_another_picture_of_the_same_image(name: str) -> None:
    images = pictures(1).expand(40, -1, -1, -1)
    assert len(make(name, images, torch.arange(40)).unique(dim=0)) > 1


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 5, 5), (3, 33, 47), (3, 1, 1), (1, 2, 40)])
def test_any_size_grey_or_in_colour(name: str, shape: tuple[int, int, int]) -> None:
    images = pictures(3, *shape)
    before = images.clone()
    made = make(name, images, torch.arange(3))
    assert made.shape == images.shape
    assert made.dtype == torch.uint8
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", STRENGTHS)
def test_each_severity_is_worse_than_the_last(kind: str, fashion: DataModule) -> None:
    few = fashion.validation.select(torch.arange(200))
    distances = [
        (corrupt(few.images, few.indices, kind, severity).float() - few.images).abs().mean() for severity in SEVERITIES
    ]
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.slow
def test_the_shipped_teacher_keeps_about_80_60_and_40_percent(fashion: DataModule) -> None:
    few = fashion.validation.select(torch.linspace(0, len(fashion.validation) - 1, 200).round().long())
    teacher = models.load("resnet20-fashion")
    for kind in STRENGTHS:
        for severity, expected in zip(SEVERITIES, EXPECTED.get(kind, (0.8, 0.6, 0.4)), strict=True):
            damaged = replace(few, images=corrupt(few.images, few.indices, kind, severity))
            found = evaluation.evaluate(teacher, damaged, device="cpu", precision="fp32").accuracy
            assert found == pytest.approx(expected, abs=0.1), (kind, severity)


EXPECTED = {"jpeg": (0.8, 0.78, 0.62), "shift": (0.91, 0.87, 0.81)}  # they go no lower


# --- each of them


def test_noise_is_gaussian_with_the_same_pattern_at_every_severity() -> None:
    grey = torch.full((50, 1, 28, 28), 128, dtype=torch.uint8)
    first, *others = ((corrupt(grey, torch.arange(50), "noise", s).double() - 128) / 255 for s in SEVERITIES)
    assert first.std().item() == pytest.approx(STRENGTHS["noise"][0], rel=0.02)
    assert first.mean().item() == pytest.approx(0, abs=0.001)
    for noise, strength in zip(others, STRENGTHS["noise"][1:], strict=True):
        ratio = strength / STRENGTHS["noise"][0]
        inside = noise.abs() < 0.49  # what is not cut off at black and white
        assert (noise - ratio * first)[inside].abs().max() < 0.01
    standard = (first / first.std()).flatten()
    assert (standard.abs() > 1.96).double().mean().item() == pytest.approx(0.05, abs=0.004)
    by_sample = first.flatten(1)
    correlations = torch.corrcoef(by_sample)[~torch.eye(50, dtype=torch.bool)]
    assert correlations.abs().max() < 0.2  # five times 1 / sqrt(784) and more
    assert torch.corrcoef(torch.stack([by_sample[:, :-1].flatten(), by_sample[:, 1:].flatten()]))[0, 1].abs() < 0.02


def test_a_blur_spreads_a_point_as_a_gaussian_of_its_width() -> None:
    point = torch.zeros(1, 1, 57, 57)
    point[..., 28, 28] = 1
    dots = (255 * F.max_pool2d(point, 7, 1, 3)).to(torch.uint8)
    for severity, sigma in zip(SEVERITIES, STRENGTHS["blur"], strict=True):
        before, after = (image[0, 0].double() for image in (dots, corrupt(dots, torch.tensor([0]), "blur", severity)))
        assert after.sum().item() == pytest.approx(before.sum().item(), rel=0.02)
        place = torch.arange(57.0).double()
        variances = [
            (image.sum(0) * (place - 28) ** 2).sum() / image.sum() for image in (before, after)
        ]  # variances add up
        assert (variances[1] - variances[0]).item() == pytest.approx((sigma * 57 / 28) ** 2, rel=0.1)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 28, 28), (2, 3, 64, 48), (1, 3, 20, 70), (1, 1, 224, 224)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_blur_is_torchvisions_but_for_rounding_in_large_images(shape: tuple[int, ...], severity: int) -> None:
    count, channels, height, width = shape
    images = pictures(*shape)
    sigma = STRENGTHS["blur"][severity - 1] * min(height, width) / 28
    kernel = [2 * min(math.ceil(3 * sigma), side - 1) + 1 for side in (width, height)]
    expected = gaussian_blur(images, kernel, [sigma, sigma])
    found = corrupt(images, torch.arange(count), "blur", severity)
    assert (found.int() - expected.int()).abs().max() <= (0 if height == width == 28 else 1)


def test_the_work_of_a_blur_grows_with_the_width_of_its_kernel_and_not_with_its_square() -> None:
    counter = FlopCounterMode(display=False)
    with counter:
        corrupt(pictures(1, 3, 224, 224), torch.arange(1), "blur", 3)
    width = 2 * math.ceil(3 * STRENGTHS["blur"][2] * 8) + 1
    assert counter.get_total_flops() < 4 * 3 * 224 * (224 + width) * width  # of the whole kernel 30 times as many


def test_a_shift_moves_up_down_left_or_right_and_leaves_black() -> None:
    image = pictures(1) + 1  # no pixel is black
    made = corrupt(image.expand(40, -1, -1, -1), torch.arange(40), "shift", 1)
    step, (picture,) = STRENGTHS["shift"][0], image[:, 0]
    step = int(step)
    expected = [torch.zeros_like(picture) for _ in range(4)]
    expected[0][step:] = picture[:-step]
    expected[1][:-step] = picture[step:]
    expected[2][:, step:] = picture[:, :-step]
    expected[3][:, :-step] = picture[:, step:]
    kinds = [[torch.equal(one, wanted) for wanted in expected].index(True) for one in made[:, 0]]
    assert set(kinds) == {0, 1, 2, 3}


def test_a_shift_beyond_the_image_leaves_nothing_and_grows_with_it() -> None:
    assert corrupt(pictures(4, height=2, width=60), torch.arange(4), "shift", 3).shape == (4, 1, 2, 60)
    large = torch.full((40, 1, 56, 56), 9, dtype=torch.uint8)
    black = (corrupt(large, torch.arange(40), "shift", 1) == 0).sum((1, 2, 3))
    assert (black == 2 * int(STRENGTHS["shift"][0]) * 56).all()


def test_a_rotation_turns_half_of_them_to_the_left() -> None:
    bar = torch.zeros(200, 1, 29, 29, dtype=torch.uint8)
    bar[:, :, 13:16, 3:26] = 255
    made = corrupt(bar, torch.arange(200), "rotation", 2)[:, 0].double()
    rows, columns = torch.meshgrid(torch.arange(29.0) - 14, torch.arange(29.0) - 14, indexing="ij")
    slope = (made * rows * columns).sum((1, 2)) / (made * columns**2).sum((1, 2))
    angles = torch.rad2deg(torch.atan(slope))
    assert angles.abs().numpy() == pytest.approx(np.full(200, STRENGTHS["rotation"][1]), abs=1)
    assert 70 < (angles > 0).sum() < 130


def test_pixels_are_blocks_of_one_value() -> None:
    side = int(STRENGTHS["pixelate"][0])
    made = corrupt(pictures(3), torch.arange(3), "pixelate", 1)
    blocks = made.unfold(2, 28 // side, 28 // side).unfold(3, 28 // side, 28 // side).flatten(4)
    assert torch.equal(blocks.amax(-1), blocks.amin(-1))
    assert blocks.shape[2:4] == (side, side)


def test_less_contrast_blends_with_the_mean_grey() -> None:
    images = pictures(3)
    for severity, share in zip(SEVERITIES, STRENGTHS["contrast"], strict=True):
        grey = images.double().mean((1, 2, 3), keepdim=True)
        expected = (1 - share) * images.double() + share * grey
        assert (corrupt(images, torch.arange(3), "contrast", severity) - expected).abs().max() <= 1


def test_jpeg_is_what_pillow_makes_of_it() -> None:
    import io

    from PIL import Image

    images = pictures(1, 3)
    for severity, quality in zip(SEVERITIES, STRENGTHS["jpeg"], strict=True):
        file = io.BytesIO()
        Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=int(quality))
        expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        found = corrupt(images, torch.tensor([0]), "jpeg", severity)[0]
        assert (found.double() - expected.double()).abs().mean() < 3


# --- pictures of nothing


def test_shuffled_pixels_are_the_same_pixels_elsewhere() -> None:
    images = pictures(5, 3)
    made = destroy(images, torch.arange(5), "shuffled pixels")
    for before, after in zip(images.flatten(2), made.flatten(2), strict=True):
        assert not torch.equal(before, after)
        pixels = [sorted(map(tuple, one.T.tolist())) for one in (before, after)]  # colours stay together
        assert pixels[0] == pixels[1]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 30, 30)])
def test_shuffled_tiles_are_the_same_tiles_elsewhere(shape: tuple[int, int, int]) -> None:
    images = torch.randint(0, 256, (5, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = destroy(images, torch.arange(5), "shuffled tiles")
    tiles = [one[..., :28, :28].unfold(2, 7, 7).unfold(3, 7, 7).permute(0, 2, 3, 1, 4, 5) for one in (images, made)]
    for before, after in zip(*(one.flatten(3).flatten(1, 2) for one in tiles), strict=True):
        assert not torch.equal(before, after)
        assert sorted(before.tolist()) == sorted(after.tolist())
    assert torch.equal(made[..., 28:, :], images[..., 28:, :])


def test_scrambled_phases_keep_the_spectrum_and_no_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    images = (128 + 12 * torch.randn(4, 1, 28, 28, generator=generator)).clamp(0, 255).to(torch.uint8)  # none is cut
    made = destroy(images, torch.arange(4), "scrambled phases")
    spectra = [torch.fft.fft2(one.double()).abs() for one in (images, made)]
    assert (spectra[0] - spectra[1]).abs().mean() / spectra[0].mean() < 0.03
    assert made.double().mean((1, 2, 3)).numpy() == pytest.approx(images.double().mean((1, 2, 3)).numpy(), abs=0.5)
    both = torch.stack([images.double().flatten(1), made.double().flatten(1)])
    assert all(torch.corrcoef(both[:, number])[0, 1].abs() < 0.2 for number in range(4))


def test_no_random_number_is_infinite() -> None:
    """Of these pictures one of 784 numbers was rounded to 1 before it was made normal, and all of the picture black."""
    made = destroy(pictures(3), torch.tensor([19_865, 35_919, 47_361]), "scrambled phases")
    assert made.double().mean((1, 2, 3)).tolist() == pytest.approx(
        pictures(3).double().mean((1, 2, 3)).tolist(), abs=15
    )


@pytest.mark.slow
def test_pictures_of_nothing_are_no_picture_of_a_class_to_the_shipped_teacher(fashion: DataModule) -> None:
    few = fashion.validation.select(torch.arange(200))
    teacher = models.load("resnet20-fashion")
    with torch.no_grad():
        clean = teacher(normalized_images(few)).softmax(1).amax(1).mean()
        for kind in DESTRUCTIONS:
            made = replace(few, images=destroy(few.images, few.indices, kind))
            outputs = teacher(normalized_images(made))
            assert outputs.softmax(1).amax(1).mean() < clean - 0.1, kind
            assert (outputs.argmax(1) == few.labels).double().mean() < 0.6, kind


# --- what is refused

IMAGES, INDICES = pictures(3), torch.arange(3)
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "an unknown corruption": (lambda: corrupt(IMAGES, INDICES, "blurr", 1), ValueError, "Did you mean 'blur'"),
    "a corruption that is a number": (lambda: corrupt(IMAGES, INDICES, 3, 1), ValueError, "no corruption named"),
    "a list as corruption": (lambda: corrupt(IMAGES, INDICES, [], 1), ValueError, "no corruption named"),
    "a severity of 0": (lambda: corrupt(IMAGES, INDICES, "blur", 0), ValueError, "severity .* at least 1"),
    "a severity of 4": (lambda: corrupt(IMAGES, INDICES, "blur", 4), ValueError, "severity .* at most 3"),
    "a severity of one half": (lambda: corrupt(IMAGES, INDICES, "blur", 0.5), ValueError, "severity"),
    "floats": (lambda: corrupt(IMAGES.float(), INDICES, "blur", 1), TypeError, "bytes.*got torch.float32"),
    "no tensor": (lambda: corrupt(IMAGES.numpy(), INDICES, "blur", 1), TypeError, "got ndarray"),
    "one image alone": (lambda: corrupt(IMAGES[0], INDICES, "blur", 1), ValueError, "expected B x C x H x W"),
    "two channels": (lambda: corrupt(IMAGES.repeat(1, 2, 1, 1), INDICES, "blur", 1), ValueError, "1 or 3 channels"),
    "no images": (lambda: corrupt(IMAGES[:0], INDICES[:0], "blur", 1), ValueError, "not empty"),
    "other indices": (lambda: corrupt(IMAGES, torch.arange(2), "blur", 1), ValueError, "one number for each"),
    "indices that are floats": (lambda: corrupt(IMAGES, INDICES / 2, "blur", 1), TypeError, "int64"),
    "indices in a list": (lambda: corrupt(IMAGES, [0, 1, 2], "blur", 1), TypeError, "got list"),
    "an unknown picture of nothing": (lambda: destroy(IMAGES, INDICES, "noise"), ValueError, "outside all classes"),
    "a picture of nothing of floats": (lambda: destroy(IMAGES / 2, INDICES, "shuffled tiles"), TypeError, "bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_damaged_is_refused(name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
