"""What stands between two layers: tokens, maps, volumes and vectors meet where their positions correspond."""

from __future__ import annotations

import math
import re
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from on_mps import MPS, Mps
from torch import Tensor, nn

from kdlib import losses
from kdlib.distiller import Distiller
from kdlib.hooks import ModelOutput
from kdlib.losses._common import averaged_to
from kdlib.methods import Feature, HardLabels
from kdlib.projectors import (
    Alignment,
    AttentionProjector,
    ConvProjector,
    GaussianProjector,
    PoolingProjector,
    WidthProjector,
)

B = 2
LOSSES = ["hint", "attention", "vid"]


def output(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def ready(student: Tensor, teacher: Tensor, loss: str = "hint") -> Feature:
    torch.manual_seed(0)
    method = Feature({"s": "t"}, loss)
    method.setup(*outputs(student, teacher))
    return method


def outputs(student: Tensor, teacher: Tensor) -> tuple[ModelOutput, ModelOutput]:
    logits = torch.zeros(B, 3)
    return ModelOutput(logits, {"s": student}), ModelOutput(logits, {"t": teacher})


def value(method: Feature, student: Tensor, teacher: Tensor) -> Tensor:
    (term,) = method(*outputs(student, teacher), None).values()
    return term


def pooled(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    return PoolingProjector("s -> t", student, teacher)(student, teacher)


# -------------------- tokens against tokens


def test_as_many_tokens_are_compared_one_by_one() -> None:
    student, teacher = output(7, 3), output(7, 5)  # no square: a sentence
    first, second = pooled(student, teacher)
    assert torch.equal(first[..., 0].mT, student)
    assert torch.equal(second[..., 0].mT, teacher)


@pytest.mark.parametrize("longer", ["student", "teacher"])
@pytest.mark.parametrize("count", [6, 9, 16])
def test_one_token_more_on_one_side_is_a_class_token_and_left_out(longer: str, count: int) -> None:
    student, teacher = output(count + (longer == "student"), 3), output(count + (longer == "teacher"), 5)
    first, second = pooled(student, teacher)
    assert torch.equal(first[..., 0].mT, student[:, -count:])
    assert torch.equal(second[..., 0].mT, teacher[:, -count:])


@pytest.mark.parametrize("class_tokens", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_square_grids_of_other_sizes_are_pooled_to_the_smaller(class_tokens: tuple[int, int]) -> None:
    fine, coarse = output(16, 3), output(4, 5)
    student = torch.cat([torch.full((B, class_tokens[0], 3), 99.0), fine], 1)
    teacher = torch.cat([torch.full((B, class_tokens[1], 5), -99.0), coarse], 1)
    first, second = pooled(student, teacher)
    # row by row: the upper left quarter of a 4 x 4 grid has the tokens 0, 1, 4 and 5
    quarters = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    expected = torch.stack([fine[:, quarter].mean(dim=1) for quarter in quarters], dim=2)
    torch.testing.assert_close(first.flatten(2), expected)
    torch.testing.assert_close(second.flatten(2), coarse.mT)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("length", [5, 9, 12, 31])
def test_a_batch_may_have_longer_or_shorter_sentences_than_the_example(loss: str, length: int) -> None:
    method = ready(output(9, 3), output(9, 5), loss)
    student, teacher = output(length, 3, seed=1), output(length, 5, seed=2)
    assert value(method, student, teacher).isfinite()
    changed = teacher.clone()
    changed[:, 0] += 1  # the first token counts, however long the sentence is
    assert value(method, student, changed) != value(method, student, teacher)
    if loss == "hint":
        expected = F.mse_loss(student @ method.projectors[0].conv.weight[..., 0, 0].T, teacher)
        torch.testing.assert_close(value(method, student, teacher), expected)


def test_sentences_of_different_lengths_in_one_batch_are_refused() -> None:
    method = ready(output(9, 3), output(9, 5))
    with pytest.raises(ValueError, match="In s -> t 7 tokens .*positions correspond"):
        value(method, output(7, 3), output(11, 5))


# -------------------- tokens against maps and vectors


@pytest.mark.parametrize("size", [(4, 4), (2, 6), (8, 2)])
@pytest.mark.parametrize("class_token", [0, 1])
@pytest.mark.parametrize("tokens_in", ["student", "teacher"])
def test_tokens_lie_as_a_map_with_as_many_positions(size: tuple[int, int], class_token: int, tokens_in: str) -> None:
    maps = output(5, *size)
    tokens = torch.cat([torch.full((B, class_token, 5), 99.0), maps.flatten(2).mT], dim=1)
    pair = (tokens, maps) if tokens_in == "student" else (maps, tokens)
    for found in pooled(*pair):
        assert torch.equal(found, maps)


@pytest.mark.parametrize("class_token", [0, 1])
def test_tokens_of_a_square_grid_meet_a_map_of_another_size(class_token: int) -> None:
    grid, large, small = output(3, 4, 4), output(5, 8, 8), output(5, 2, 2)
    tokens = torch.cat([torch.full((B, class_token, 3), 99.0), grid.flatten(2).mT], dim=1)
    first, second = pooled(tokens, large)
    torch.testing.assert_close(first, grid)
    torch.testing.assert_close(second, F.avg_pool2d(large, 2))
    first, second = pooled(tokens, small)
    torch.testing.assert_close(first, F.avg_pool2d(grid, 2))
    torch.testing.assert_close(second, small)


@pytest.mark.parametrize("class_token", [0, 1])
@pytest.mark.parametrize(
    ("grid", "size"), [((8, 32), (4, 16)), ((8, 32), (2, 8)), ((32, 8), (16, 4)), ((8, 32), (16, 64)), ((4, 6), (2, 3))]
)
def test_tokens_lie_in_the_proportions_of_a_map_of_another_size(
    grid: tuple[int, int], size: tuple[int, int], class_token: int
) -> None:
    """8 x 32 tokens could be a square of 16 x 16, too: of a picture that is not square they are none."""
    laid, maps = output(3, *grid), output(5, *size)
    tokens = torch.cat([torch.full((B, class_token, 3), 99.0), laid.flatten(2).mT], dim=1)
    smaller = min(grid, size)
    first, second = pooled(maps, tokens)
    torch.testing.assert_close(first, F.adaptive_avg_pool2d(maps, smaller))
    torch.testing.assert_close(second, F.adaptive_avg_pool2d(laid, smaller))


@pytest.mark.parametrize("count", [4, 7, 10, 17])
@pytest.mark.parametrize("other", [(5,), (5, 1, 1), (1, 5)])
def test_tokens_meet_one_position_in_their_mean_whatever_their_number(count: int, other: tuple[int, ...]) -> None:
    """Of sentences the number changes from batch to batch, and 10 and 17 are no square and a class token."""
    tokens, one = output(count, 3), output(*other)
    first, second = pooled(tokens, one)
    torch.testing.assert_close(first.flatten(1), tokens.mean(dim=1))
    assert torch.equal(second.flatten(1), one.flatten(1))


@pytest.mark.parametrize(
    ("length", "count"), [(50, 200), (25, 100), (40, 160), (50, 201), (10, 90), (50, 100), (100, 50)]
)
@pytest.mark.parametrize("lying", ["along", "down"])
def test_tokens_are_not_folded_onto_a_line_of_another_length(length: int, count: int, lying: str) -> None:
    line = output(3, 1, length) if lying == "along" else output(3, length, 1)
    for pair in ((line, output(count, 3)), (output(count, 3), line)):
        with pytest.raises(ValueError, match=r"s -> t .*nn\.Identity"):
            pooled(*pair)


@pytest.mark.parametrize("class_token", [0, 1])
def test_tokens_meet_a_line_as_long_as_they_are(class_token: int) -> None:
    line = output(3, 1, 50)
    tokens = torch.cat([torch.full((B, class_token, 3), 99.0), line[:, :, 0].mT], dim=1)
    for found in pooled(line, tokens):
        assert torch.equal(found, line)


def test_tokens_that_are_given_as_the_error_says_are_pooled_along_the_line() -> None:
    line, tokens = output(3, 1, 50), output(200, 5)
    with pytest.raises(ValueError, match=r"x\.mT\[:, :, None\]"):
        pooled(line, tokens)
    first, second = pooled(line, tokens.mT[:, :, None])
    assert torch.equal(first, line)
    torch.testing.assert_close(second[:, :, 0].mT, tokens.unflatten(1, (50, 4)).mean(dim=2))


# -------------------- volumes


def test_volumes_of_one_size_are_compared_position_by_position() -> None:
    student, teacher = output(3, 2, 4, 5), output(6, 2, 4, 5)
    first, second = pooled(student, teacher)
    assert torch.equal(first, student.flatten(2, 3))
    assert torch.equal(second, teacher.flatten(2, 3))


def test_the_larger_volume_is_pooled_in_each_direction() -> None:
    student, teacher = output(3, 4, 8, 6), output(6, 2, 4, 6)
    first, second = pooled(student, teacher)
    torch.testing.assert_close(first, F.avg_pool3d(student, (2, 2, 1)).flatten(2, 3))
    assert torch.equal(second, teacher.flatten(2, 3))


def test_on_mps_volumes_are_pooled_on_the_cpu() -> None:
    student, teacher = output(3, 4, 8, 6), output(6, 2, 4, 6)
    with Mps(F.adaptive_avg_pool3d) as mps:
        first, second = pooled(mps.put(student), mps.put(teacher))
        assert first.device == second.device == MPS
    assert torch.equal(first, pooled(student, teacher)[0])


def test_on_mps_maps_are_pooled_in_the_usual_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes maps that lie with channels last, as those of tokens do, for others."""
    seen, pool = [], F.adaptive_avg_pool2d

    def noting(maps: Tensor, size: tuple[int, int]) -> Tensor:
        seen.append(maps.is_contiguous())
        return pool(maps, size)

    tokens = torch.randn(2, 17, 3)[:, 1:]
    maps = tokens.mT.unflatten(2, (4, 4))
    monkeypatch.setattr(F, "adaptive_avg_pool2d", noting)
    with Mps() as mps:
        found = averaged_to(mps.put(maps), (2, 2))
    assert set(seen) == {True}
    torch.testing.assert_close(found.as_subclass(Tensor), pool(maps, (2, 2)))


@pytest.mark.parametrize("flat", [(5,), (5, 1, 1)])
@pytest.mark.parametrize("volume_in", ["student", "teacher"])
def test_a_volume_meets_a_vector_in_its_mean(flat: tuple[int, ...], volume_in: str) -> None:
    volume, vector = output(3, 2, 4, 5), output(*flat)
    pair = (volume, vector) if volume_in == "student" else (vector, volume)
    found = dict(zip(("student", "teacher"), pooled(*pair), strict=True))
    other = "teacher" if volume_in == "student" else "student"
    torch.testing.assert_close(found[volume_in][..., 0, 0], volume.mean(dim=(2, 3, 4)))
    assert torch.equal(found[other].flatten(1), vector.flatten(1))


# -------------------- the losses on them


PAIRS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "tokens": ((9, 3), (9, 5)),
    "tokens and a class token": ((10, 3), (9, 5)),
    "tokens of two grids": ((17, 3), (5, 5)),
    "tokens and a map": ((17, 3), (5, 4, 4)),
    "a map and tokens": ((3, 8, 8), (17, 5)),
    "tokens and a vector": ((9, 3), (5,)),
    "a vector and tokens": ((3,), (9, 5)),
    "volumes": ((3, 4, 4, 2), (5, 2, 4, 4)),
    "a volume and a vector": ((3, 2, 4, 4), (5,)),
}
POINTS = [name for name in PAIRS if "vector" in name]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", PAIRS)
def test_the_loss_is_that_of_what_is_paired_and_its_gradient_reaches_all_that_learns(name: str, loss: str) -> None:
    student, teacher = (output(*shape) for shape in PAIRS[name])
    if loss == "attention" and name in POINTS:
        with pytest.raises(ValueError, match="s -> t would be compared at 1 x 1"):
            ready(student, teacher, loss)
        return
    method = ready(student, teacher, loss)
    student.requires_grad_()
    first, second = pooled(student, teacher)
    (projector,) = method.projectors
    if isinstance(projector, ConvProjector):
        expected = losses.hint(torch.einsum("bchw,dc->bdhw", first, projector.conv.weight[..., 0, 0]), second)
    elif isinstance(projector, GaussianProjector):
        expected = losses.vid(projector.mean(first), projector.raw_variance, second)
    else:
        assert isinstance(projector, AttentionProjector)
        expected = losses.attention(first, second)
    found = value(method, student, teacher)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert student.grad is not None
    assert student.grad.any()
    for parameter in method.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_hint_on_tokens_worked_out_by_hand() -> None:
    student = torch.tensor([[[9.0], [1.0], [2.0], [3.0], [4.0]]])  # a class token before a 2 x 2 grid
    teacher = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    method = Feature({"s": "t"})
    method.setup(*outputs(student, teacher))
    with torch.no_grad():
        method.projectors[0].conv.weight.fill_(2.0)
    assert value(method, student, teacher).item() == pytest.approx((1**2 + 4**2 + 6**2 + 6**2) / 4)


def test_attention_on_tokens_worked_out_by_hand() -> None:
    student, teacher = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]), torch.tensor([[[3.0], [3.0]]])
    method = Feature({"s": "t"}, "attention")
    method.setup(*outputs(student, teacher))
    half = math.sqrt(0.5)  # one map looks at the first token, the other at both alike
    assert value(method, student, teacher).item() == pytest.approx(((1 - half) ** 2 + half**2) / 2, rel=1e-5)


def test_vid_on_a_volume_and_a_vector_worked_out_by_hand() -> None:
    student, teacher = torch.arange(8.0).reshape(1, 1, 2, 2, 2), torch.tensor([[1.0]])
    method = Feature({"s": "t"}, "vid")
    method.setup(*outputs(student, teacher))
    projector = method.projectors[0]
    with torch.no_grad():
        for layer in projector.mean:
            if isinstance(layer, nn.Conv2d):
                layer.weight.fill_(1.0)
                layer.bias.fill_(0.0)
    variance = 5 + 1e-5  # where it starts
    expected = (math.log(variance) + (1 - 3.5) ** 2 / variance) / 2
    assert value(method, student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "shown"),
    [
        ((17, 3), (5, 4, 4), "s -> t: 17 x 3 -> 5 x 4 x 4, compared at 4 x 4"),
        ((10, 3), (9, 5), "s -> t: 10 x 3 -> 9 x 5, compared at 9 x 1"),
        ((3, 4, 8, 8), (5, 2, 4, 4), "s -> t: 3 x 4 x 8 x 8 -> 5 x 2 x 4 x 4, compared at 2 x 4 x 4"),
        ((9, 3), (5,), "s -> t: 9 x 3 -> 5 x 1 x 1, compared at 1 x 1"),
        ((3, 2, 2, 2), (5,), r"s -> t: 3 x 2 x 2 x 2 -> 5 x 1 x 1, compared at 1"),
    ],
)
def test_print_shows_what_was_paired(student: tuple[int, ...], teacher: tuple[int, ...], shown: str) -> None:
    assert shown in repr(ready(output(*student), output(*teacher)))


# -------------------- in networks


class AverageAndClassify(nn.Module):
    """The mean over a line's positions, and a classifier with 3 classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=2))


class Transformer(nn.Module):
    """A small vision transformer: a class token before 4 x 4 patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.block = nn.TransformerEncoderLayer(width, 2, width, batch_first=True)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).mT
        return self.fc(self.block(torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1))[:, 0])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("student", ["map", "tokens"])
def test_a_convolutional_network_and_a_transformer_learn_from_each_other(loss: str, student: str) -> None:
    torch.manual_seed(0)
    convolutions = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    networks, layers = [convolutions, Transformer(4)], ["1", "block"]
    if student == "tokens":
        networks, layers = networks[::-1], layers[::-1]
    batch = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    method = HardLabels() + Feature({layers[0]: layers[1]}, loss)
    distiller = Distiller(networks[0], networks[1], method, example=batch)
    optimizer = torch.optim.Adam(distiller.parameters(), 0.01)
    values = []
    for _ in range(15):
        found = distiller(batch)
        found.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(found.terms[f"{loss} {layers[0]}"].item())
    assert values[-1] < values[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("wide", [9, 16, 17, 64])
@pytest.mark.parametrize("layer", ["0", "block"])
def test_one_dimensional_convolutions_are_compared_along_their_line(loss: str, wide: int, layer: str) -> None:
    def network(width: int, stride: int) -> nn.Module:
        block = nn.Sequential(nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width), nn.ReLU())
        first = nn.Conv1d(3, width, 3, stride, 1)
        return nn.Sequential(OrderedDict({"0": first, "block": block, "end": AverageAndClassify(width)}))

    torch.manual_seed(0)
    batch = torch.randn(4, 3, 100), torch.tensor([0, 1, 2, 0])
    method = HardLabels() + Feature({layer: layer}, loss)
    distiller = Distiller(network(16, 2), network(wide, 1), method, example=batch)
    (projector,) = method.parts[1].projectors
    assert projector.channels == (16, wide)
    assert projector.size == (1, 50)
    distiller(batch).total.backward()


def test_three_dimensional_convolutions_learn_from_each_other() -> None:
    def network(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv3d(1, width, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * width, 3))

    torch.manual_seed(0)
    batch = torch.randn(4, 1, 4, 4, 4), torch.tensor([0, 1, 2, 0])
    distiller = Distiller(network(2), network(3), HardLabels() + Feature({"1": "1"}), example=batch)
    distiller(batch).total.backward()
    assert all(parameter.grad is not None for parameter in distiller.parameters())


# -------------------- what does not correspond


NEVER: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "sentences of other lengths": ((7, 3), (11, 5), r"7 tokens .*\(2, 11, 5\).*Relation\(loss='similarity'\)"),
    "no square against a map": ((7, 3), (5, 4, 4), r"7 tokens .*no square grid.*positions correspond"),
    "a map against no square": ((3, 4, 4), (12, 5), "12 tokens .*no square grid"),
    "a square against a map that is none": ((17, 3), (5, 4, 6), "17 tokens .*no grid of the map's proportions"),
    "a square against a line": ((16, 3), (5, 1, 6), "16 tokens .*no grid of the map's proportions"),
    "channels last against a map": ((8, 8, 24), (5, 4, 4), r"\(2, 8, 8, 24\), which looks like B x H x W x C"),
    "a map against channels last": ((64, 8, 8), (4, 4, 24), r"\(2, 4, 4, 24\), which looks like B x H x W x C"),
    "channels last of a wide picture": ((5, 4, 8), (6, 12, 40), r"\(2, 6, 12, 40\), which looks like B x H x W x C"),
    "a vector against channels last": ((40,), (7, 7, 96), r"\(2, 7, 7, 96\), which looks like B x H x W x C"),
    "channels last against a vector": ((7, 7, 96), (40,), r"\(2, 7, 7, 96\), which looks like B x H x W x C"),
    "no square against a volume": ((7, 3), (5, 2, 2, 2), "7 tokens"),
    "two tokens before a grid": ((18, 3), (16, 5), "18 tokens .*no square grid"),
    "a volume against a map": ((3, 2, 2, 2), (5, 4, 4), r"volume .*map.*\(2, 3, 2, 2, 2\).*same kind"),
    "a volume against a grid of tokens": ((3, 2, 2, 2), (16, 5), "same kind"),
    "one number a sample": ((), (5,), r"\(2,\); expected maps .* Name another layer"),
    "six dimensions": ((3, 2, 2, 2, 2), (5,), r"\(2, 3, 2, 2, 2, 2\); expected maps"),
}


@pytest.mark.parametrize("name", NEVER)
@pytest.mark.parametrize("loss", LOSSES)
def test_positions_that_do_not_correspond_are_refused_by_name(name: str, loss: str) -> None:
    student, teacher, words = NEVER[name]
    with pytest.raises(ValueError, match=re.compile(f"^In s -> t .*{words}", re.DOTALL)):
        ready(torch.zeros(B, *student), torch.zeros(B, *teacher), loss)


def test_fsp_refuses_channels_last_too() -> None:
    with pytest.raises(ValueError, match=r"^In s -> t .*\(2, 4, 4, 24\), which looks like B x H x W x C"):
        WidthProjector("s -> t", output(64, 8, 8), output(4, 4, 24))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((8, 8, 8), (4, 4, 4)),  # as many channels as rows
        ((16, 8, 32), (32, 4, 16)),
        ((8, 8, 9), (16, 4, 4)),  # rounding of sides is no other proportion
        ((64, 8, 8), (4, 4, 4)),
        ((3, 5, 9), (7, 4, 4)),  # networks that see the picture in other proportions
        ((8, 8, 8), (5,)),
        ((96, 7, 7), (5,)),
        ((64, 5, 9), (5,)),
    ],
)
def test_maps_with_channels_first_are_not_taken_for_channels_last(
    student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    for pair in ((student, teacher), (teacher, student)):
        assert ready(*(output(*shape) for shape in pair)).projectors[0].channels == (pair[0][0], pair[1][0])


def test_an_alignment_says_in_which_grids_tokens_lie() -> None:
    assert Alignment.of("s -> t", output(17, 3), output(5, 2, 8)) == (((2, 8), None), (2, 8))
    assert Alignment.of("s -> t", output(3, 8, 8), output(50, 5)) == ((None, (7, 7)), (7, 7))
    assert Alignment.of("s -> t", output(3, 2, 3), output(5)) == ((None, None), (1, 1))
