"""Compression: exact amounts, zeros and few values that last through training, and networks that stay as they were."""

from __future__ import annotations

import copy
import math
import os
import platform
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from on_mps import MPS, Mps
from safetensors.torch import save_file
from second_device import run_on_second_device
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from kdlib import compress, export, measure, models, train
from kdlib.data import DataModule
from kdlib.methods import HardLabels, Logit
from kdlib.train import Recipe


def big(*values: Any) -> Any:
    """A ResNet-18 with these values; its eleven million weights take a while."""
    return pytest.param("resnet18", *values, marks=pytest.mark.slow)


NAMES = ("resnet20", "article-student", big())
SHAPE = (1, 28, 28)
LAYERS = (nn.Conv2d, nn.Linear)
STEADY = {"device": "cpu", "precision": "fp32", "progress": False}


def build(name: str, seed: int = 0) -> nn.Module:
    return models.build(name, num_classes=10, in_channels=1, seed=seed)


def images(count: int = 4, size: int = 28, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.weight.detach() for name, one in model.named_modules() if isinstance(one, LAYERS)}


def values_per_channel(weight: torch.Tensor) -> int:
    return max(len(channel.unique()) for channel in weight.flatten(1))


def small(blobs: DataModule, seed: int = 0) -> nn.Module:
    """A network for the blobs."""
    shape = {"num_classes": blobs.num_classes, "in_channels": 1, "image_size": blobs.image_size}
    return models.build("article-student", **shape, seed=seed)


@pytest.fixture
def unchanged() -> Any:
    """Remember networks; at the end of the test each must be as it was, and still run."""
    kept: list[tuple[nn.Module, dict[str, torch.Tensor], str, list[bool], torch.Tensor]] = []

    def remember(model: nn.Module, size: int = 28) -> nn.Module:
        state = copy.deepcopy(model.state_dict())
        kept.append((model, state, repr(model), [m.training for m in model.modules()], answer(model, size)))
        return model

    yield remember
    for model, state, text, modes, logits in kept:
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert repr(model) == text
        assert [m.training for m in model.modules()] == modes
        assert torch.equal(answer(model, size=8 if logits.shape[1] == 3 else 28), logits)


def answer(model: nn.Module, size: int = 28) -> torch.Tensor:
    """The logits of a few images, in eval mode; the modes are restored."""
    modes = [(one, one.training) for one in model.modules()]
    with torch.no_grad():
        logits = model.eval()(images(size=size))
    for one, mode in modes:
        one.training = mode
    return logits


# --- zeros


@pytest.mark.parametrize(
    ("name", "amount"), [("article-student", 0.5), ("resnet20", 0.95), ("resnet20", 1 / 3), big(0.5)]
)
def test_exactly_the_smallest_weights_of_all_layers_together_are_zero(
    name: str, amount: float, unchanged: Callable[[nn.Module], nn.Module]
) -> None:
    model = unchanged(build(name))
    sparse = compress.prune_weights(model, amount)
    before = torch.cat([one.flatten() for one in weights(model).values()])
    after = torch.cat([one.flatten() for one in weights(sparse).values()])
    gone = after == 0
    assert int(gone.sum()) == round(amount * len(before))
    assert before[gone].abs().max() <= before[~gone].abs().min()
    assert torch.equal(before[~gone], after[~gone])


def test_zeros_are_zero_to_the_network_and_not_only_in_its_weights() -> None:
    model = build("article-student")
    sparse = compress.prune_weights(model, 0.7)
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in weights(sparse).items():
            plain.get_submodule(name).weight.copy_(weight)
    assert torch.equal(answer(sparse), answer(plain))
    assert not torch.equal(answer(sparse), answer(model))


def test_a_zero_has_no_gradient_and_the_others_have_the_one_of_before() -> None:
    model = build("article-student")
    sparse = compress.prune_weights(model, 0.5)
    plain = compress.finalize(sparse)
    for one in (sparse, plain):
        one(images()).square().sum().backward()
    for name, weight in weights(sparse).items():
        masked = sparse.get_submodule(name).parametrizations.weight.original.grad
        free = plain.get_submodule(name).weight.grad
        assert (masked[weight == 0] == 0).all()
        assert torch.equal(masked[weight != 0], free[weight != 0])


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolutions_of_any_dimension_are_pruned_and_rounded(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(2, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(1, 2, *[4] * (model[0].weight.ndim - 2)))
    sparse = compress.finalize(compress.prune_weights(model, 0.5))
    assert (sparse[0].weight == 0).sum() + (sparse[2].weight == 0).sum() == sum(
        layer.weight.numel() // 2 for layer in (model[0], model[2])
    )
    assert (sparse[0].weight == 0).any()
    coarse = compress.quantize_weights(model, 2)[0].weight
    assert all(len(channel.unique()) <= 3 for channel in coarse)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_weights_may_lie_in_any_order_in_memory(memory: torch.memory_format) -> None:
    model = build("article-student")
    expected = compress.prune_weights(model, 0.5)
    found = compress.prune_weights(copy.deepcopy(model).to(memory_format=memory), 0.5)
    assert all(torch.equal(weight, weights(expected)[name]) for name, weight in weights(found).items())


@pytest.mark.slow
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_zeros_stay_zero_and_the_others_learn_while_fit_trains(blobs: DataModule, ema_decay: float | None) -> None:
    sparse = compress.prune_weights(small(blobs), 0.8)
    before = {name: weight.clone() for name, weight in weights(sparse).items()}
    recipe = Recipe("adamw", 1e-2, weight_decay=0.1, batch_size=32)
    result = train.fit(sparse, blobs, epochs=3, recipe=recipe, ema_decay=ema_decay, **STEADY)
    for name, weight in weights(result.student).items():
        assert (weight[before[name] == 0] == 0).all()
        assert (weight[before[name] != 0] != before[name][before[name] != 0]).any()
    final = compress.finalize(copy.deepcopy(result.student))  # a copy can be made after training, too
    assert measure.count_nonzero(final) < 0.5 * measure.count_parameters(final)


def test_made_permanent_a_masked_network_is_an_ordinary_one(
    tmp_path: Path, unchanged: Callable[[nn.Module], nn.Module]
) -> None:
    model = build("resnet20")
    sparse = unchanged(compress.prune_weights(model, 0.9))
    final = compress.finalize(sparse)
    assert final.state_dict().keys() == model.state_dict().keys()
    assert repr(final) == repr(model)
    assert torch.equal(answer(final), answer(sparse))
    models.save(final, tmp_path / "sparse.safetensors")
    assert torch.equal(answer(models.load(tmp_path / "sparse.safetensors")), answer(final))
    again = compress.prune_weights(final, 0.95)  # more zeros, those of before among them
    assert all((weights(again)[name][weight == 0] == 0).all() for name, weight in weights(final).items())


# --- channels


@pytest.mark.parametrize("name", NAMES)
def test_channels_are_removed_and_the_macs_fall_as_counted_by_hand(
    name: str, unchanged: Callable[[nn.Module], nn.Module]
) -> None:
    model = unchanged(build(name).train())
    narrow = compress.prune_channels(model, 0.5, images(1))
    assert narrow.training
    assert answer(narrow).shape == (4, 10)
    total = 0
    for layer_name, layer in narrow.named_modules():
        if isinstance(layer, nn.Conv2d):
            old = model.get_submodule(layer_name)
            assert layer.out_channels == old.out_channels // 2
            assert layer.out_channels % 8 == 0
            assert layer.in_channels == (old.in_channels // 2 or 1)
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels)
            total += layer.weight.numel() * pixels(narrow, layer)
        elif isinstance(layer, nn.Linear):
            assert layer.in_features == model.get_submodule(layer_name).in_features // 2
            total += layer.weight.numel()
    assert measure.macs(narrow, SHAPE) == total
    assert total < 0.35 * measure.macs(model, SHAPE)


def pixels(model: nn.Module, layer: nn.Module) -> int:
    """How many pixels a layer's output has."""
    found = []
    hook = layer.register_forward_hook(lambda module, inputs, output: found.append(output[0, 0].numel()))
    answer(model)
    hook.remove()
    return found[0]


@pytest.mark.parametrize(("ratio", "round_to", "widths"), [(0.25, 4, {12, 24, 48}), (0.5, 1, {8, 16, 32})])
def test_what_is_left_of_a_width_is_rounded_down(ratio: float, round_to: int, widths: set[int]) -> None:
    narrow = compress.prune_channels(build("resnet20"), ratio, images(1), round_to=round_to)
    assert {layer.out_channels for layer in narrow.modules() if isinstance(layer, nn.Conv2d)} == widths


@settings(max_examples=40)
@example(width=160, hundredths=80)
@example(width=240, hundredths=90)
@example(width=10, hundredths=80)
@given(width=st.integers(2, 400), hundredths=st.integers(1, 99))
def test_as_many_channels_stay_as_hundredths_say(width: int, hundredths: int) -> None:
    """In floats 160 * (1 - 0.8) is less than 32."""
    network = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 2))
    left = width * (100 - hundredths) // 100
    for ratio in (hundredths / 100, np.float32(hundredths / 100)):
        if left:
            narrow = compress.prune_channels(network, ratio, torch.ones(1, 1), round_to=1)
            assert narrow[0].out_features == left
        else:
            with pytest.raises(ValueError, match=f"leaves 0 of the {width} channels"):
                compress.prune_channels(network, ratio, torch.ones(1, 1), round_to=1)


@pytest.mark.parametrize(
    ("width", "ratio", "round_to", "left"),
    [(160, 0.8, 8, 32), (320, 0.8, 8, 64), (240, 0.9, 8, 24), (100, 0.8, 10, 20), (40, 0.8, 8, 8), (80, 0.9, 8, 8)],
)
def test_a_share_that_is_a_multiple_of_round_to_stays_whole(width: int, ratio: float, round_to: int, left: int) -> None:
    network = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 2))
    assert compress.prune_channels(network, ratio, torch.ones(1, 1), round_to=round_to)[0].out_features == left


def test_the_channels_with_the_smallest_weights_go() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        for channel, size in enumerate((0.1, 3.0, 0.2, 2.0)):
            model[0].weight[channel] = size
            model[2].weight[:, channel] = size
    narrow = compress.prune_channels(model, 0.5, images(1, size=6), round_to=1)
    assert sorted(narrow[0].weight.detach().flatten(1).mean(1).tolist()) == pytest.approx([2.0, 3.0])


def test_channels_are_removed_without_gradients_and_from_a_frozen_network_too() -> None:
    model = build("article-student").requires_grad_(False)
    model.fc.requires_grad_(True)
    with torch.no_grad():
        narrow = compress.prune_channels(model, 0.5, images(1))
    flags = {name: parameter.requires_grad for name, parameter in narrow.named_parameters()}
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert all(parameter.grad is None for parameter in narrow.parameters())


def test_a_network_without_channels_is_not_saved_as_what_it_was(tmp_path: Path) -> None:
    narrow = compress.prune_channels(build("article-student"), 0.5, images(1))
    with pytest.raises(ValueError, match="save_model"):
        models.save(narrow, tmp_path / "narrow.safetensors")


@pytest.mark.parametrize("keeps_activations", [None, True])
def test_a_network_that_rounds_or_masks_is_not_saved_as_what_load_could_not_open(
    keeps_activations: bool | None, tmp_path: Path
) -> None:
    ready = compress.prepare_qat(compress.prune_weights(build("article-student"), 0.5), 4)
    if keeps_activations:
        ready = compress.finalize(ready)
    with pytest.raises(ValueError, match="compress.finalize"):
        models.save(ready, tmp_path / "ready.safetensors")
    plain = compress.finalize(compress.prepare_qat(build("article-student"), 4), keep_activation_rounding=False)
    models.save(plain, tmp_path / "plain.safetensors")
    assert torch.equal(answer(models.load(tmp_path / "plain.safetensors")), answer(plain))
    assert not (tmp_path / "ready.safetensors").exists()


@pytest.mark.slow
def test_a_narrow_network_learns_from_the_wide_one(blobs: DataModule) -> None:
    teacher = small(blobs)
    train.fit(teacher, blobs, epochs=8, recipe=Recipe("adamw", 1e-2, batch_size=32), **STEADY)
    narrow = compress.prune_channels(teacher, 0.5, images(1, size=8))
    result = train.fit(narrow, blobs, teacher=teacher, epochs=4, recipe=Recipe("adamw", 1e-2, batch_size=32), **STEADY)
    losses = [row["soft"] for row in result.rows]
    assert losses[-1] < 0.5 * losses[0]


# --- few bits


@pytest.mark.parametrize(
    ("name", "bits"), [("article-student", 3), *(("resnet20", bits) for bits in (2, 4, 8)), big(4)]
)
def test_weights_take_few_values_half_a_step_away_at_most(
    name: str, bits: int, unchanged: Callable[[nn.Module], nn.Module]
) -> None:
    model = unchanged(build(name))
    coarse = compress.quantize_weights(model, bits)
    for layer, weight in weights(coarse).items():
        exact = weights(model)[layer]
        largest = exact.abs().flatten(1).amax(1)
        step = largest / (2 ** (bits - 1) - 1)
        error = (weight - exact).abs().flatten(1).amax(1)
        assert (error <= step / 2 + 1e-6 * largest).all()  # a quotient of floats is rounded
        assert torch.allclose(weight.abs().flatten(1).amax(1), largest)
        assert values_per_channel(weight) <= 2**bits - 1
    others = {key for key in model.state_dict() if key.removesuffix(".weight") not in weights(model)}
    assert all(torch.equal(coarse.state_dict()[key], model.state_dict()[key]) for key in others)


def test_weights_by_hand() -> None:
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -1.4, 0.6, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    found = compress.quantize_weights(model, 3).weight
    assert found.tolist() == [[3.0, -1.0, 1.0, 0.0], [0.0] * 4]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_gradient_passes_the_rounding_of_weights_unchanged(bits: int) -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    coarse = compress.prepare_qat(model, bits)
    factor = torch.arange(18.0).reshape(3, 6)
    (coarse[0].weight * factor).sum().backward()
    assert torch.equal(coarse[0].parametrizations.weight.original.grad, factor)


def test_a_channel_of_zeros_can_learn() -> None:
    coarse = compress.prepare_qat(nn.Sequential(nn.Linear(3, 2, bias=False)), 4)
    original = coarse[0].parametrizations.weight.original
    with torch.no_grad():
        original[0] = 0.0
    coarse[0].weight.sum().backward()
    assert torch.equal(original.grad, torch.ones(2, 3))


@pytest.mark.parametrize(("seen", "limits"), [((2.0, 3.0), (0.0, 3.0)), ((-3.0, -1.0), (-3.0, 0.0))])
def test_zero_stays_within_the_limits_of_activations(seen: tuple[float, ...], limits: tuple[float, float]) -> None:
    model = compress.prepare_qat(nn.Sequential(nn.Linear(1, 1, bias=False)), 8, activation_bits=2)
    with torch.no_grad():
        model[0].parametrizations.weight.original.fill_(1.0)
    values = torch.tensor(seen)[:, None]
    ready = compress.calibrate(model.eval(), [values])
    assert (float(ready[0].input_rounding.low), float(ready[0].input_rounding.high)) == limits
    assert torch.equal(ready(values), values)  # whole steps of 1


def test_activations_are_rounded_between_the_limits_that_were_seen() -> None:
    model = compress.prepare_qat(nn.Sequential(nn.Linear(1, 1, bias=False)), 8, activation_bits=2)
    with torch.no_grad():
        model[0].parametrizations.weight.original.fill_(1.0)
    free = torch.tensor([[-0.7], [0.3], [2.6]])
    assert torch.equal(model.eval()(free), free)  # nothing was seen yet
    ready = compress.calibrate(model, [torch.tensor([[-1.0], [2.0]])])
    assert ready(free).flatten().tolist() == pytest.approx([-1.0, 0.0, 2.0])
    assert torch.equal(model(free), free)
    follows = copy.deepcopy(ready).train()
    follows(torch.tensor([[-5.0], [12.0]]))  # a tenth of the way, Jacob's moving average
    assert float(follows[0].input_rounding.high) == pytest.approx(2.0 + 0.1 * 10.0)
    assert float(follows[0].input_rounding.low) == pytest.approx(-1.0 - 0.1 * 4.0)
    assert float(ready[0].input_rounding.high) == 2.0


def values_read(action: Callable[[], Any]) -> int:
    """How often the action asks for the value of a tensor; on a GPU each time waits for all that was computed."""

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # as measure.peak_memory has it: it is read once in a process
    with profile(activities=[ProfilerActivity.CPU]) as profiled:  # sees what an operation asks for inside, too
        action()

    def inside(event: Any) -> set[str]:
        return set() if event is None else {event.key} | inside(event.cpu_parent)

    # Of this operation the kernel for CPUs asks for its step and zero; that for CUDA reads them on the device.
    asked = [inside(one) for one in profiled.events() if one.key == "aten::_local_scalar_dense"]
    return sum("aten::fake_quantize_per_tensor_affine" not in names for names in asked)


def test_a_step_of_qat_asks_for_no_value_of_a_tensor() -> None:
    coarse = compress.prepare_qat(build("article-student"), 4).train()
    assert values_read(lambda: coarse(images()).sum().backward()) == 0
    assert values_read(lambda: compress.calibrate(coarse, [images()])) == 0
    assert values_read(lambda: coarse.eval()(images())) > 0  # it is counted


def test_limits_begin_anew_where_they_are_put_back_to_none() -> None:
    rounding = compress.prepare_qat(nn.Sequential(nn.Linear(1, 1)), 8)[0].input_rounding.train()
    nothing = copy.deepcopy(rounding.state_dict())
    rounding(torch.tensor([100.0]))
    rounding.load_state_dict(nothing)
    rounding(torch.tensor([0.0]))
    rounding(torch.tensor([2.0]))
    assert float(rounding.high) == 2.0


@pytest.mark.parametrize("rounding", [compress.WeightRounding(3), compress.ActivationRounding(3)], ids=str)
def test_on_mps_rounding_is_done_on_the_cpu(rounding: nn.Module) -> None:
    here = images().requires_grad_()
    there = here.detach().clone().requires_grad_()
    expected = copy.deepcopy(rounding)(here)
    expected.square().sum().backward()
    with Mps(torch.fake_quantize_per_channel_affine, torch.fake_quantize_per_tensor_affine) as mps:
        found = rounding(mps.put(there))
        assert found.device == MPS
        found.square().sum().backward()
    assert torch.equal(found, expected)
    assert torch.equal(there.grad, here.grad)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_for_qat_keeps_its_layers_names_and_is_near_the_network(
    name: str, unchanged: Callable[[nn.Module], nn.Module]
) -> None:
    model = unchanged(build(name))
    ready = compress.calibrate(compress.prepare_qat(model, 8), [images()])
    assert {n for n, _ in model.named_modules()} <= {n for n, _ in ready.named_modules()}
    exact, found = answer(model), answer(ready)
    assert 0 < (exact - found).abs().max() < 0.1 * exact.std()
    assert measure.macs(ready, SHAPE) == measure.macs(model, SHAPE)
    assert measure.count_parameters(ready) == measure.count_parameters(model)


@pytest.mark.slow
def test_qat_by_fit_with_a_teacher_lowers_the_loss_and_ends_in_few_values(
    blobs: DataModule, unchanged: Callable[..., nn.Module]
) -> None:
    teacher = small(blobs)
    train.fit(teacher, blobs, epochs=8, recipe=Recipe("adamw", 1e-2, batch_size=32), **STEADY)
    unchanged(teacher.eval(), 8)
    coarse = compress.prepare_qat(teacher, 2)
    options = {"epochs": 6, "recipe": Recipe("adamw", 3e-3, batch_size=32), **STEADY}
    result = train.fit(coarse, blobs, teacher=teacher, method=Logit(temperature=4, alpha=0.1), **options)
    assert result.rows[-1]["soft"] < 0.7 * result.rows[0]["soft"]
    rough = compress.calibrate(compress.prepare_qat(teacher, 2), [images(size=8)])
    tested = [train.evaluate(one, blobs.test, **{**STEADY_EVALUATION}).loss for one in (rough, result.student)]
    assert tested[1] < tested[0]
    final = compress.finalize(result.student)
    assert torch.equal(answer(final, 8), answer(result.student, 8))
    assert all(values_per_channel(weight) <= 3 for weight in weights(final).values())
    plain = compress.finalize(result.student, keep_activation_rounding=False)
    assert plain.state_dict().keys() == teacher.state_dict().keys()
    assert not any(module._forward_pre_hooks for module in plain.modules())


STEADY_EVALUATION = {"device": "cpu", "precision": "fp32"}


@pytest.mark.slow
def test_training_after_rounding_leaves_the_few_values(blobs: DataModule) -> None:
    """Why to quantize first and to distil then needs training that rounds at every step."""
    coarse = compress.quantize_weights(small(blobs), 3)
    train.fit(coarse, blobs, teacher=small(blobs, seed=1), epochs=1, **STEADY)
    assert max(values_per_channel(weight) for weight in weights(coarse).values()) > 2**3


@pytest.mark.slow
def test_zeros_and_few_bits_together_keep_both(blobs: DataModule) -> None:
    both = compress.prepare_qat(compress.prune_weights(small(blobs), 0.75), 4)
    before = {name: weight == 0 for name, weight in weights(compress.prune_weights(small(blobs), 0.75)).items()}
    train.fit(both, blobs, epochs=2, recipe=Recipe("adamw", 1e-2, batch_size=32), **STEADY)
    for name, weight in weights(compress.finalize(both)).items():
        assert (weight[before[name]] == 0).all()
        assert values_per_channel(weight) <= 15


COMPRESSED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "masks": lambda model: compress.prune_weights(model, 0.5),
    "channels": lambda model: compress.prune_channels(model, 0.5, images(1, size=8)),
    "bits": lambda model: compress.prepare_qat(model, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMPRESSED)
def test_a_stopped_training_goes_on_as_if_never_stopped(kind: str, blobs: DataModule, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": Recipe(learning_rate=0.01, batch_size=32), "epochs": 3, **STEADY}
    whole = train.fit(COMPRESSED[kind](small(blobs)), blobs, **options).student
    stopped, path = COMPRESSED[kind](small(blobs)), tmp_path / "run.safetensors"

    def stop(epoch: int, student: nn.Module) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit(stopped, blobs, checkpoint=path, on_epoch_end=stop, **options)
    resumed = train.fit(COMPRESSED[kind](small(blobs)), blobs, checkpoint=path, resume=True, **options).student
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


@pytest.mark.slow
def test_a_checkpoint_of_other_bits_is_refused(blobs: DataModule, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    options: dict[str, Any] = {"method": HardLabels(), "epochs": 1, "checkpoint": path, **STEADY}
    train.fit(compress.prepare_qat(small(blobs), 4), blobs, **options)
    with pytest.raises(ValueError, match="belongs to"):
        train.fit(compress.prepare_qat(small(blobs), 3), blobs, resume=True, **options)


# --- bytes


@pytest.mark.parametrize(
    ("name", "bits"), [("article-student", 3), *(("resnet20", bits) for bits in (2, 3, 4, 8)), big(4)]
)
def test_packed_weights_come_back_and_take_so_many_bits(name: str, bits: int, tmp_path: Path) -> None:
    coarse = compress.quantize_weights(build(name), bits)
    packed = compress.pack_weights(coarse, bits)
    for layer, weight in weights(coarse).items():
        assert packed[f"{layer}.weight.packed"].nbytes == math.ceil(weight.numel() * bits / 8)
    back = compress.unpack_weights(build(name, seed=1), packed, bits)
    for layer, weight in weights(back).items():
        assert torch.allclose(weight, weights(coarse)[layer], rtol=1e-5, atol=0)
    assert torch.allclose(answer(back), answer(coarse), rtol=1e-3, atol=1e-4)
    save_file(packed, tmp_path / "packed.safetensors")
    size = (tmp_path / "packed.safetensors").stat().st_size
    assert size < (bits + 6) / 32 * measure.bytes_saved(coarse)
    assert measure.zipped_bytes(packed) < size


@pytest.mark.parametrize("bits", [2, 8])
def test_unpacking_takes_little_more_memory_than_a_byte_for_each_bit(bits: int) -> None:
    layer = nn.Linear(300, 400)
    packed = compress.pack_weights(layer, bits)
    tracemalloc.start()  # of torch's own memory it knows nothing: what is measured are the integers
    try:
        compress.unpack_weights(layer, packed, bits)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < (bits + 4) * layer.weight.numel()


@pytest.mark.slow
def test_zeros_show_in_zipped_bytes_and_nowhere_else() -> None:
    model = build("resnet20")
    sparse = compress.finalize(compress.prune_weights(model, 0.9))
    assert measure.bytes_saved(sparse) == measure.bytes_saved(model)
    assert measure.macs(sparse, SHAPE) == measure.macs(model, SHAPE)
    assert measure.zipped_bytes(sparse) < 0.35 * measure.zipped_bytes(model)
    assert measure.zipped_bytes(sparse) == measure.zipped_bytes(sparse.state_dict())


def test_a_shared_tensor_is_zipped_once_also_in_a_state_dict() -> None:
    layer = nn.Linear(3, 20_000)  # beyond the 32 kB within which gzip itself finds a repetition
    once, tied = nn.Sequential(layer), nn.Sequential(layer, layer)
    for state in (lambda model: model, nn.Module.state_dict, lambda model: compress.pack_weights(model, 4)):
        assert measure.zipped_bytes(state(tied)) < 1.01 * measure.zipped_bytes(state(once))
    square = torch.randn(200, 200)
    size = measure.zipped_bytes({"whole": square})
    assert measure.zipped_bytes({"upper": square[:100], "lower": square[100:]}) > 0.99 * size
    assert measure.zipped_bytes({"whole": square, "transposed": square.T}) > 1.9 * size
    assert measure.zipped_bytes({"one": torch.empty(0), "other": torch.empty(0)}) > measure.zipped_bytes({})


def test_nonzero_parameters_are_counted_as_the_network_uses_them() -> None:
    model = build("article-student")
    layers = sum(weight.numel() for weight in weights(model).values())
    sparse = compress.prune_weights(model, 0.5)
    expected = measure.count_parameters(model) - round(0.5 * layers)
    assert measure.count_nonzero(model) == measure.count_parameters(model)
    assert measure.count_nonzero(sparse) == measure.count_nonzero(compress.finalize(sparse)) == expected
    assert measure.count_nonzero(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))) == 4 + 2 + 2
    masked: Any = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 3))
    nn.utils.prune.l1_unstructured(masked[0], "weight", 0.5)
    assert measure.count_nonzero(masked) == 50 + 33


# --- integers that really run


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_integers_by_pt2e_agree_with_the_network(fashion: DataModule) -> None:
    pytest.importorskip("torchao")
    model = models.load("resnet20-fashion")
    some = fashion.test.select(torch.arange(500))
    batches = [batch.images for batch in fashion.train.select(torch.arange(256)).iter_batches(64)]
    quantized = compress.quantize_pt2e(model, batches)
    (inputs,) = (batch.images for batch in some.iter_batches(500))
    with torch.no_grad():
        exact, found = model(inputs), quantized(inputs)
    assert measure.agreement(found, exact) > 0.98
    assert 0 < float((found - exact).abs().mean()) < 0.1 * float(exact.std())
    assert torch.allclose(quantized(inputs[:1]), found[:1], atol=1e-3)  # any number of samples
    assert train.evaluate(quantized.train(), some, batch_size=500, **STEADY_EVALUATION).accuracy > 0.9


class LargestByte(TorchDispatchMode):
    """The largest activation of 8 bits that is computed inside."""

    found = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.uint8:
            self.found = max(self.found, int(result.max()))
        return result


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler is asked for first")
@pytest.mark.parametrize(
    ("machine", "vnni", "largest"), [("x86_64", True, 255), ("AMD64", False, 127), ("aarch64", False, 255)]
)
def test_a_processor_whose_sums_overflow_gets_activations_of_seven_bits(
    machine: str, vnni: bool, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao")
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(torch, "compile", lambda program, **_: program)  # which takes half a minute
    quantized = compress.quantize_pt2e(model, [images(size=3)])
    with LargestByte() as seen:
        quantized(images(size=3))
    assert seen.found == largest


def test_without_a_compiler_pt2e_says_so_and_names_the_way_that_needs_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(OSError, match=r"C\+\+ compiler.*ONNX"):
        compress.quantize_pt2e(build("article-student"), [images()])


# --- a network on a GPU, and images on the CPU


ON_GPU = """
import torch
from kdlib import compress, models, train
from kdlib.data import InMemoryDataset

images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
there, here = (models.build("article-student", num_classes=10, in_channels=1, seed=0) for _ in range(2))
there.to(DEVICE)
"""


@pytest.mark.slow
def test_a_network_on_a_gpu_is_compressed_there_by_images_from_the_cpu() -> None:
    found = run_on_second_device(
        ON_GPU
        + """
for compressed in (
    lambda network: compress.prune_channels(network, 0.5, images[:1]),
    lambda network: compress.calibrate(compress.prepare_qat(network, 4), [images]),
):
    made, expected = compressed(there), compressed(here)
    made.train(), expected.train()
    answer = made(images.to(DEVICE))
    answer.square().sum().backward()
    print(answer.device, torch.equal(answer.cpu(), expected(images)), {one.device for one in made.parameters()})
"""
    )
    assert found.splitlines() == ["gpu:0 True {device(type='gpu', index=0)}"] * 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_integers_are_made_of_a_network_on_a_gpu_and_evaluated_where_there_is_one() -> None:
    found = run_on_second_device(
        ON_GPU
        + """
integers = compress.quantize_pt2e(there, [images.to(DEVICE)])
print({one.device for one in there.parameters()}, torch.allclose(integers(images), here(images), atol=0.05))
numbers = torch.arange(10)  # each class once
split = InMemoryDataset(torch.zeros(10, 1, 28, 28).byte(), numbers, numbers, (0.3,), (0.15,))
print(integers(images.to(DEVICE)).device, train.evaluate(integers, split).accuracy)
"""
    )
    assert found.splitlines() == ["{device(type='gpu', index=0)} True", "gpu:0 0.1"]


# --- what a user may get wrong


def masked() -> nn.Module:
    return compress.prune_weights(build("article-student"), 0.5)


def rounding() -> nn.Module:
    return compress.prepare_qat(build("article-student"), 4)


def pruned_by_torch() -> nn.Module:
    model = build("article-student")
    prune.l1_unstructured(model.conv1, "weight", 0.5)
    return model


def normalised() -> nn.Module:
    model = build("article-student")
    parametrize.register_parametrization(model.conv1, "weight", nn.Identity())
    return model


def tied() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, second)


def not_finite() -> nn.Module:
    model = build("article-student")
    with torch.no_grad():
        model.conv1.weight[0] = math.nan
    return model


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Conv2d(1, 16, 3), nn.Linear(16, 10), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.body(x).mean((2, 3))
        return self.one(mean), self.two(mean)


def model() -> nn.Module:
    return build("article-student")


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: compress.prune_weights(model(), 1), ValueError, "between 0 and 1"),
    (lambda: compress.prune_weights(model(), 0), ValueError, "between 0 and 1"),
    (lambda: compress.prune_weights(model(), -0.1), ValueError, "between 0 and 1"),
    (lambda: compress.prune_weights(model(), math.nan), ValueError, "between 0 and 1"),
    (lambda: compress.prune_weights(model(), "half"), TypeError, "amount is a number"),
    (lambda: compress.prune_weights(model(), True), TypeError, "amount is a number"),
    (lambda: compress.prune_weights(model(), 1e-9), ValueError, "some must go"),
    (lambda: compress.prune_weights(nn.Sequential(nn.ReLU()), 0.5), ValueError, "no convolution"),
    (lambda: compress.prune_weights("resnet20", 0.5), TypeError, "torch.nn.Module"),  # type: ignore[arg-type]
    (lambda: compress.prune_weights(masked(), 0.5), ValueError, "masked already"),
    (lambda: compress.prune_weights(pruned_by_torch(), 0.5), ValueError, "prune.remove"),
    (lambda: compress.prune_weights(normalised(), 0.5), ValueError, "remove_parametrizations"),
    (lambda: compress.prune_weights(tied(), 0.5), ValueError, "share their weights"),
    (lambda: compress.prune_weights(not_finite(), 0.5), ValueError, "not finite"),
    (lambda: compress.prune_weights(nn.Sequential(nn.LazyLinear(3)), 0.5), ValueError, "not there yet"),
    (lambda: compress.prune_channels(model(), 0.9, images(1)), ValueError, "leaves 1 of the 16 channels of conv1"),
    (lambda: compress.prune_channels(model(), 0.5, images(1), round_to=64), ValueError, "takes no channel away"),
    (lambda: compress.prune_channels(model(), 1.5, images(1)), ValueError, "between 0 and 1"),
    (lambda: compress.prune_channels(model(), 0.5, images(1), round_to=0), ValueError, "at least 1"),
    (lambda: compress.prune_channels(model(), 0.5, torch.zeros(1, 3, 28, 28)), ValueError, "cannot take images"),
    (lambda: compress.prune_channels(model(), 0.5, None), TypeError, "batch of inputs"),
    (lambda: compress.prune_channels(masked(), 0.5, images(1)), ValueError, "masked already"),
    (lambda: compress.prune_channels(TwoHeads(), 0.5, images(1)), TypeError, "one tensor"),
    (lambda: compress.quantize_weights(model(), 1), ValueError, "at least 2"),
    (lambda: compress.quantize_weights(model(), 40), ValueError, "at most 8"),
    (lambda: compress.quantize_weights(model(), 4.5), ValueError, "whole number"),  # type: ignore[arg-type]
    (lambda: compress.quantize_weights(rounding(), 4), ValueError, "rounded already"),
    (lambda: compress.prepare_qat(model(), 1), ValueError, "at least 2"),
    (lambda: compress.prepare_qat(model(), 4, activation_bits=16), ValueError, "at most 8"),
    (lambda: compress.prepare_qat(rounding(), 4), ValueError, "rounds its activations already"),
    (lambda: compress.calibrate(model(), [images()]), ValueError, "rounds no activations"),
    (lambda: compress.calibrate(rounding(), []), ValueError, "no batch"),
    (lambda: compress.calibrate(rounding(), [torch.zeros(1, 3, 28, 28)]), ValueError, "cannot take images"),
    (lambda: compress.finalize(model()), ValueError, "nothing to make permanent"),
    (lambda: compress.finalize(rounding(), keep_activation_rounding="no"), TypeError, "True or False"),
    (lambda: compress.pack_weights(rounding(), 4), ValueError, "rounded already"),
    (lambda: compress.unpack_weights(model(), compress.pack_weights(model(), 4), 3), ValueError, "number of bits"),
    (lambda: compress.unpack_weights(model(), model().state_dict(), 4), ValueError, "packed from another"),
    (
        lambda: compress.unpack_weights(nn.Linear(4, 6), compress.pack_weights(nn.Linear(6, 4), 4), 4),
        ValueError,
        r"no \(6, 4\) weights of 4 bits .* packed from another",
    ),
    (lambda: measure.zipped_bytes([1, 2]), TypeError, "dict of tensors"),  # type: ignore[arg-type]
    (lambda: measure.count_nonzero(3), TypeError, "torch.nn.Module"),  # type: ignore[arg-type]
    (lambda: compress.quantize_pt2e(masked(), [images()]), ValueError, "masked already"),
]


@pytest.mark.parametrize(("call", "kind", "text"), BAD, ids=[f"{n}: {text}" for n, (_, _, text) in enumerate(BAD)])
def test_a_mistake_is_answered_in_a_sentence_or_two(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        call()
    message = str(caught.value)
    assert message.endswith(".")
    assert len(message) < 500


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler is asked for first")
@pytest.mark.parametrize(
    ("calibration", "text"), [([], "no batch"), ([torch.zeros(2, 3, 28, 28)], "cannot take images")]
)
def test_pt2e_refuses_what_it_cannot_calibrate_with(calibration: list[torch.Tensor], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        compress.quantize_pt2e(model(), calibration)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler is asked for first")
@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("torch_pruning", lambda: compress.prune_channels(model(), 0.5, images(1))),
        ("torchao", lambda: compress.quantize_pt2e(model(), [images()])),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "kdlib\[compress\]"'):
        call()


def test_what_a_finalized_network_is_told_to_do_works(tmp_path: Path) -> None:
    coarse = compress.prepare_qat(models.build("article-student", num_classes=10, in_channels=1, seed=0), 4)
    images = torch.randn(4, 1, 28, 28)
    kept = compress.finalize(coarse)
    for network in (coarse, kept):  # either is told what really helps
        for refused in (
            lambda network=network: compress.prepare_qat(network, 4),
            lambda network=network: compress.quantize_pt2e(network, [images]),
            lambda network=network: export.to_onnx(network, tmp_path / "kept.onnx", images),
        ):
            with pytest.raises(ValueError, match=r"already.*keep_activation_rounding=False"):
                refused()
    with pytest.raises(ValueError, match=r"keep_activation_rounding=False"):
        models.save(kept, tmp_path / "kept.safetensors")
    with pytest.raises(ValueError, match=r"already.*keep_activation_rounding=False"):
        compress.prepare_qat(kept, 4)
    plain = compress.finalize(kept, keep_activation_rounding=False)
    models.save(plain, tmp_path / "plain.safetensors")
    compress.prepare_qat(plain, 4)
    export.to_onnx(plain, tmp_path / "plain.onnx", images)
    with pytest.raises(ValueError, match="nothing to make permanent"):
        compress.finalize(plain, keep_activation_rounding=False)


def test_limits_come_from_the_latest_calibration_alone() -> None:
    ready = compress.prepare_qat(nn.Sequential(nn.Linear(1, 1)), 8)
    first = compress.calibrate(ready, [torch.tensor([[-100.0], [100.0]])])
    second = compress.calibrate(first, [torch.tensor([[-1.0], [1.0]])])
    assert float(second[0].input_rounding.high) == 1.0
    assert float(first[0].input_rounding.high) == 100.0


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_layer_alone_is_packed_and_comes_back(device: str) -> None:
    layer = compress.quantize_weights(nn.Linear(4, 2), 4).to(device)
    back = compress.unpack_weights(nn.Linear(4, 2).to(device), compress.pack_weights(layer, 4), 4)
    torch.testing.assert_close(back.weight, layer.weight)


def test_channels_go_by_the_square_of_their_weights() -> None:
    pytest.importorskip("torch_pruning")
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Conv2d(2, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 2)
    )
    with torch.no_grad():
        for one in (model[0].weight, model[2].weight):
            one.fill_(0.01)
        model[0].weight[0, 0, 1, 1] = 3.0  # a norm of 3, and a sum of 3
        model[0].weight[1] = 0.8  # a norm of 2.4, and a sum of 7.2
    narrow = compress.prune_channels(model, 0.5, torch.randn(1, 1, 6, 6), round_to=1)
    assert narrow[0].weight.max().item() == 3


class Tied(nn.Module):
    """A small language model: its last layer has the weights of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(self.embedding(words))).mean(1))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: compress.prune_weights(model, 0.5),
        lambda model: compress.quantize_weights(model, 3),
        lambda model: compress.prepare_qat(model, 3),
        lambda model: compress.pack_weights(model, 3),
    ],
)
def test_a_layer_that_shares_its_weights_with_an_embedding_is_refused(change: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(ValueError, match="head and another layer, an embedding perhaps, share their weights"):
        change(Tied())


def test_a_layer_that_is_called_by_two_names_is_packed_once() -> None:
    torch.manual_seed(0)
    model: Any = nn.Module()
    model.first = nn.Linear(8, 8)
    model.second = model.first
    state = compress.pack_weights(model, 3)
    assert sorted(state) == ["first.bias", "first.weight.packed", "first.weight.step", "second.bias"]
    again: Any = compress.unpack_weights(model, state, 3)
    rounded: Any = compress.quantize_weights(model, 3)
    assert torch.equal(again.first.weight, rounded.first.weight)


class PaddedShortcut(nn.Module):
    """The shortcut of the first ResNets for CIFAR: channels of zeros, which no layer has made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        return self.head(torch.relu(self.second(x) + shortcut).mean((2, 3)))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 1, 1, groups=16)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(x))).mean((2, 3)))


@pytest.mark.parametrize("network", [PaddedShortcut, Shuffled])
def test_a_form_that_torch_pruning_cannot_follow_is_refused_in_a_sentence(network: Callable[[], nn.Module]) -> None:
    pytest.importorskip("torch_pruning")
    with pytest.raises(ValueError, match=r"No channels can be removed \(.*\): the network has a form that torch-prun"):
        compress.prune_channels(network(), 0.5, torch.randn(1, 3, 16, 16))


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "zeros": lambda net: compress.prune_weights(net, 0.5),
    "rounded": lambda net: compress.quantize_weights(net, 2),
    "trained rounded": lambda net: compress.prepare_qat(net, 2),
    "packed": lambda net: compress.pack_weights(net, 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_transposed_convolutions_stay_as_they_are_and_are_named(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 1, 3))
    with pytest.warns(UserWarning, match="The transposed convolutions 2 stay as they are") as caught:
        changed = CHANGES[name](network)
    assert [one.filename for one in caught] == [__file__]
    state = changed if isinstance(changed, dict) else changed.state_dict()
    assert torch.equal(state["2.weight"], network[2].weight)
    assert "0.weight" not in state or not torch.equal(state["0.weight"], network[0].weight)


class Then(nn.Module):
    """A convolution of 16 channels, a function of their maps, and layers that read its result."""

    def __init__(self, between: Callable[[Tensor], Tensor], *after: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.after = nn.Conv2d(3, 16, 3, padding=1), between, nn.Sequential(*after)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.between(torch.relu(self.first(x))))


def shuffled(x: Tensor) -> Tensor:
    """The channels of ShuffleNet: those of two groups in turn."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def pooled(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


REORDERED: dict[str, Callable[[], nn.Module]] = {
    "flattened channels last": lambda: Then(lambda x: channels_last(x).flatten(1), nn.Linear(16 * 16, 5)),
    "shuffled": lambda: Then(shuffled, nn.Conv2d(16, 32, 3), *pooled(32)),
    "turned round": lambda: Then(lambda x: x.flip(1), nn.Conv2d(16, 32, 3), *pooled(32)),
    "rolled": lambda: Then(lambda x: x.roll(2, 1), nn.Conv2d(16, 32, 3), *pooled(32)),
}


@pytest.mark.parametrize("name", REORDERED)
@pytest.mark.parametrize("example", [torch.zeros(1, 3, 4, 4), torch.ones(2, 3, 4, 4)], ids=["zeros", "ones"])
def test_channels_that_stand_in_another_order_where_they_are_read_are_refused(name: str, example: Tensor) -> None:
    """torch-pruning would remove one channel of the convolution, and weights of another one of what reads it."""
    pytest.importorskip("torch_pruning")
    for _ in range(5):  # of one network a mistake may not show
        with pytest.raises(ValueError, match="^The channels of first are put in another order before they are read"):
            compress.prune_channels(REORDERED[name](), 0.5, example)


FOLLOWED: dict[str, Callable[[], nn.Module]] = {
    "flattened": lambda: Then(nn.Flatten(), nn.Linear(16 * 16, 5)),
    "one pixel": lambda: Then(lambda x: channels_last(x.mean((2, 3), keepdim=True)).flatten(1), nn.Linear(16, 5)),
    "channels last": lambda: Then(channels_last, nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 5)),
    "groups": lambda: Then(nn.PReLU(), nn.Conv2d(16, 32, 3, groups=4), nn.BatchNorm2d(32), nn.PReLU(32), *pooled(32)),
    "odd groups": lambda: Then(nn.Conv2d(16, 24, 3), nn.GroupNorm(8, 24), nn.Conv2d(24, 24, 1), *pooled(24)),
    "transposed": lambda: Then(nn.ConvTranspose2d(16, 32, 2, 2), nn.BatchNorm2d(32), *pooled(32)),
}


class Masked(nn.Conv2d):
    """A convolution with a buffer that is of all its channels."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("mask", torch.ones(1, 1, *self.kernel_size).triu())

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * self.mask, self.bias)


class Joined(nn.Module):
    """Two layers side by side, whose channels are added to those of a third."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, sum(widths), 1)
        self.sides = nn.ModuleList(nn.Conv2d(sum(widths), width, 3, padding=1) for width in widths)
        self.end = nn.Linear(sum(widths), 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.end((x + torch.cat([side(x) for side in self.sides], 1)).mean((2, 3)))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.end = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.first(x).chunk(2, 1)
        return self.end(self.second(values * gates.sigmoid()).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


KEPT: dict[str, Callable[[], nn.Module]] = {
    "maps as outputs": lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.ConvTranspose2d(16, 3, 3)),
    "each colour alone": lambda: nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 16, 1), *pooled(16)),
    "colours added": lambda: nn.Sequential(Residual(), nn.Conv2d(3, 16, 3), *pooled(16)),
    "noise": lambda: Then(lambda x: functional.dropout(x, 0.2), *pooled(16)),
    "depthwise": lambda: Then(nn.Conv2d(16, 16, 3, groups=16), *pooled(16)),
    "depthwise and transposed": lambda: Then(nn.ConvTranspose2d(16, 16, 2, 2, groups=16), *pooled(16)),
    "a mask of all": lambda: Then(Masked(16, 32, 3), *pooled(32)),
    "joined": lambda: Joined(16, 16),
    "joined in odd places": lambda: Joined(15, 17),
    "gated": Gated,
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_what_torch_pruning_couples_rightly_is_not_refused(name: str, ratio: float) -> None:
    """Layers of at most round_to channels keep them all; and not every tensor of a layer has channels."""
    pytest.importorskip("torch_pruning")
    network = KEPT[name]()
    narrow = compress.prune_channels(network, ratio, torch.zeros(1, 3, 8, 8), round_to=4)
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in network.parameters())


class OwnHead(nn.Module):
    """A second head that runs in train mode only, as those of GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.aux = nn.Conv2d(3, 16, 3), nn.Linear(16, 10), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.first(x)).mean((2, 3))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


@pytest.mark.parametrize("round_to", [1, 8])
def test_layers_that_only_train_mode_calls_are_refused_by_name(round_to: int) -> None:
    """Nothing tells that they belong to the others: they would not fit these any more."""
    pytest.importorskip("torch_pruning")
    with pytest.raises(ValueError, match="aux .*Remove them first"):
        compress.prune_channels(OwnHead(), 0.5, torch.randn(1, 3, 8, 8), round_to=round_to)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = nn.Linear(4, 16), nn.Linear(16, 10), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.one(x) + self.other(x)


def test_outputs_that_are_added_to_those_of_the_last_layer_stay_and_are_not_counted() -> None:
    pytest.importorskip("torch_pruning")
    narrow: Any = compress.prune_channels(Sum(), 0.5, torch.randn(1, 4))
    assert (narrow.first.out_features, narrow.one.out_features, narrow.other.out_features) == (8, 10, 10)


@pytest.mark.parametrize("name", FOLLOWED)
def test_channels_that_are_read_in_their_order_are_removed(name: str) -> None:
    pytest.importorskip("torch_pruning")
    network = FOLLOWED[name]()
    before = copy.deepcopy(network.state_dict())
    narrow: Any = compress.prune_channels(network, 0.5, torch.zeros(1, 3, 4, 4), round_to=1)
    assert narrow.first.out_channels == 8
    kept = [weight for weight in before["first.weight"] if any(torch.equal(weight, one) for one in narrow.first.weight)]
    assert len(kept) == 8  # what was tried with them has left no trace


ATTENTION: dict[str, Callable[[nn.Module], Any]] = {
    "weights": lambda net: compress.prune_weights(net, 0.9),
    "channels": lambda net: compress.prune_channels(net, 0.5, torch.randn(1, 4, 16)),
    "rounded": lambda net: compress.quantize_weights(net, 4),
    "trained rounded": lambda net: compress.prepare_qat(net, 4),
    "packed": lambda net: compress.pack_weights(net, 4),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_with_its_layers_in_one_parameter_is_refused(name: str) -> None:
    """in_proj_weight would stay as it is, and channels would go from anywhere in the heads."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 3)).eval()
    with pytest.raises(ValueError, match=r"0\.self_attn is an nn\.MultiheadAttention"):
        ATTENTION[name](network)


class Gated(nn.Module):
    """A convolution whose channels are read in two halves, one of which gates the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 3)
        self.c = nn.Conv2d(width // 2, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.a(x).chunk(2, 1)
        return self.c(values * torch.sigmoid(gates)).mean((2, 3))


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("width", [32, 128])
def test_channels_that_are_read_in_parts_and_go_in_a_larger_number_than_said_are_told(width: int, ratio: float) -> None:
    with pytest.warns(UserWarning, match=rf"of the {width} channels of a are left, and not {int(width * (1 - ratio))}"):
        compress.prune_channels(Gated(width).eval(), ratio, torch.randn(2, 3, 12, 12))


def in_groups() -> nn.Module:
    layers = (nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(64, 3)).eval()


@pytest.mark.parametrize("name", ["resnet8", "mobilenet-v3-small", "in groups"])
@pytest.mark.filterwarnings("error")
def test_a_network_that_is_pruned_as_said_is_no_cause_for_a_warning(name: str) -> None:
    model = in_groups() if name == "in groups" else models.build(name, num_classes=3, in_channels=3, seed=0)
    compress.prune_channels(model, 0.3, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("change", [
    lambda m: compress.quantize_weights(m, 2), lambda m: compress.prune_weights(m, 0.5),
    lambda m: compress.prepare_qat(m, 4), lambda m: compress.pack_weights(m, 4),
], ids=["round", "prune", "qat", "pack"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_of_the_older_weight_norm_are_computed_from_others_too(change: Callable[[nn.Module], Any]) -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model(torch.randn(2, 4))
    with pytest.raises(ValueError, match="computed from others.*remove_weight_norm"):
        change(model)


def test_a_layer_that_is_called_by_keyword_is_rounded_too() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=x)

    model, x = ByKeyword(), torch.randn(5, 4)
    rounded = compress.prepare_qat(model, 4)
    plain = compress.prepare_qat(nn.Sequential(model.fc), 4)
    assert torch.equal(rounded(x), plain(x))
    done = compress.finalize(rounded, keep_activation_rounding=False)
    assert torch.equal(done(x), compress.finalize(plain, keep_activation_rounding=False)(x))
