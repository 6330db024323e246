"""Where to compute and with how many bits; learning rates over time, optimisers, and settings that make no sense."""

from __future__ import annotations

import contextlib
import json
import math
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_mps import MPS, Mps
from torch import Tensor, nn

from kdlib import devices, train
from kdlib.adapters import Adapter
from kdlib.data import Batch, DataModule
from kdlib.devices import DeviceConfig, resolve, supports_bfloat16
from kdlib.recipes import OPTIMIZERS, SCHEDULES, Recipe

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A machine with the given chips, whatever this one has."""
    monkeypatch.delenv("KDLIB_DEVICE", raising=False)

    def make(*, cuda: int = 0, mps: bool = False, cuda_bf16: bool = False, avx512: bool = False, amx: bool = False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: cuda_bf16)
        monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)

    make()
    return make


# --- devices


def test_auto_takes_cuda_then_mps_then_the_cpu(machine):
    assert resolve() == DeviceConfig(CPU, False)
    machine(mps=True)
    assert resolve() == DeviceConfig(torch.device("mps"), False)
    machine(mps=True, cuda=1, cuda_bf16=True)
    assert resolve() == DeviceConfig(torch.device("cuda"), True)
    assert resolve("mps") == DeviceConfig(torch.device("mps"), False)
    assert resolve("cpu", "bf16") == DeviceConfig(CPU, True)


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (True, True)])
def test_bfloat16_on_the_cpu_where_the_chip_has_it(machine, avx512: bool, amx: bool):
    assert not resolve("cpu").bfloat16
    machine(avx512=avx512, amx=amx)
    assert resolve("cpu").bfloat16
    assert not resolve("cpu", "fp32").bfloat16


def test_torch_without_these_functions_has_no_bfloat16(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not supports_bfloat16(CPU)


def test_bfloat16_on_cuda_is_not_the_emulated_one(monkeypatch):
    requested = []

    def supported(including_emulation: bool = True) -> bool:
        requested.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    assert not supports_bfloat16(torch.device("cuda"))
    assert requested == [False]
    assert not supports_bfloat16(torch.device("mps"))


def test_of_several_cards_the_one_that_is_used_is_asked(monkeypatch):
    used = [torch.device("cuda:0")]

    @contextlib.contextmanager
    def on(device: torch.device) -> Iterator[None]:
        used.append(device)
        yield
        used.pop()

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: used[-1].index == 1)
    assert not supports_bfloat16(torch.device("cuda:0"))
    assert supports_bfloat16(torch.device("cuda:1"))


def test_the_environment_says_what_auto_takes(machine, monkeypatch: pytest.MonkeyPatch):
    machine(cuda=1)
    monkeypatch.setenv("KDLIB_DEVICE", "cpu")
    assert resolve("auto").device == CPU
    assert resolve("cuda").device.type == "cuda"
    monkeypatch.setenv("KDLIB_DEVICE", "")  # as a shell unsets it
    assert resolve("auto").device.type == "cuda"
    monkeypatch.setenv("KDLIB_DEVICE", "gpu")
    with pytest.raises(ValueError, match=r"no device 'gpu' \(KDLIB_DEVICE\) that torch can use. It has: cuda:0, cpu"):
        resolve("auto")
    with pytest.raises(ValueError, match="no device 'xpu:7' that torch"):
        resolve("xpu:7")


def test_a_compiled_training_on_mps_is_warned_of(machine):
    machine(mps=True)
    with pytest.warns(UserWarning, match="prototype on MPS"):
        assert resolve("mps", compile=True).compile


def test_precision_is_obeyed_whatever_the_chip(machine):
    for chip in (True, False):
        machine(avx512=chip)
        assert resolve("cpu", "bf16").bfloat16
        assert not resolve("cpu", "fp32").bfloat16


def test_an_unknown_precision_lists_near_matches():
    with pytest.raises(ValueError, match="no precision named 'bfp16'. Did you mean 'bf16'.*Known: auto, fp32, bf16"):
        resolve(precision="bfp16")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", "gpu", "meta", "", "cpu:first"])
def test_a_device_that_is_not_there(device: str):
    with pytest.raises(ValueError, match=f"This machine has no device '{device}' that torch can use. It has: cpu"):
        resolve(device)


def test_a_gpu_that_is_not_there(machine):
    machine(cuda=2, mps=True)
    assert resolve("cuda:1").device == torch.device("cuda:1")
    with pytest.raises(ValueError, match="no device 'cuda:2' that torch can use. It has: cuda:0, cuda:1, mps, cpu"):
        resolve("cuda:2")


def test_a_torch_device_is_a_device():
    assert resolve(CPU).device == CPU
    assert resolve("cpu:0").device == torch.device("cpu:0")


@pytest.mark.parametrize(("bfloat16", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_decides_the_type_inside_the_network(bfloat16: bool, wanted: torch.dtype):
    config, seen = DeviceConfig(CPU, bfloat16), []
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    model[0].register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    with config.autocast():
        logits = model(torch.zeros(2, 1, 3, 3))
    assert seen == [wanted]
    assert logits.dtype == wanted
    assert model[0].weight.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")
    assert isinstance(config.autocast(), contextlib.nullcontext) is not bfloat16


def test_models_and_images_are_moved_in_channels_last():
    config = DeviceConfig(CPU, False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    assert config.move(model) is model
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    moved = config.move_images(images)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved, images)


def test_on_mps_nothing_is_brought_into_channels_last():
    """The gradients of batch normalisation and of average pooling are wrong there in that order."""

    class Network(nn.Conv2d):
        def to(self, *args: object, **options: object) -> dict[str, object]:  # type: ignore[override]
            return options

    config = DeviceConfig(MPS, False)
    with Mps():
        assert config.move(Network(1, 1, 1)) == {"memory_format": torch.contiguous_format}
        for channels in (1, 3):  # of one channel maps count as contiguous in either order
            plain = torch.arange(2 * channels * 4 * 5.0).view(2, channels, 4, 5)
            images = plain.to(memory_format=torch.channels_last)
            assert images.stride() != plain.stride()
            batch = Batch(images, torch.zeros(2).long(), torch.arange(2), 0, "")
            moved = [config.move_images(images), *devices.move_batch([images, batch], MPS)]
            strides = [one.images.stride() if isinstance(one, Batch) else one.stride() for one in moved]
            assert strides == [plain.stride()] * 3


def test_a_network_in_channels_last_comes_back_from_mps_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "memory_order", lambda device: torch.contiguous_format)
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    before = network.weight.stride()
    with DeviceConfig(CPU, False).borrow(network):
        assert network.weight.is_contiguous()
    assert network.weight.stride() == before


def test_an_expanded_buffer_is_given_back():
    network = nn.Conv2d(1, 2, 1)
    network.register_buffer("x", torch.linspace(-1, 1, 3).expand(1, 2, 3, 3))
    with DeviceConfig(CPU, False).borrow(network):
        pass
    assert torch.equal(network.x, torch.linspace(-1, 1, 3).expand(1, 2, 3, 3))


class Recorder:
    """Instead of a tensor: gives back the call that it gets."""

    dtype = torch.float32

    def to(self, device: torch.device, **options: object) -> tuple[torch.device, dict[str, object]]:
        return device, options


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), ("mps", True), ("cuda", False), ("cuda:1", False)])
def test_only_a_copy_to_cuda_may_still_be_under_way(device: str, waits: bool):
    """On MPS it would read from a source that is freed already."""
    assert devices.to_device(Recorder(), device) == (torch.device(device), {"non_blocking": not waits})


def test_several_processes_do_not_share_a_training_on_mps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KDLIB_DEVICE", raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve("auto").device.type == "mps"
    monkeypatch.setattr(devices.distributed, "world_size", lambda: 2)
    assert resolve("auto").device.type == "cpu"
    with pytest.raises(ValueError, match="cannot share a training on MPS: start one, or give --device cpu"):
        resolve("mps")


def test_several_processes_do_not_share_one_gpu(machine, monkeypatch: pytest.MonkeyPatch):
    machine(cuda=2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)  # as process_group sets it
    assert resolve("cuda:0").device == torch.device("cuda:0")
    monkeypatch.setattr(devices.distributed, "world_size", lambda: 2)
    assert resolve("cuda").device == resolve().device == torch.device("cuda")
    assert resolve("cuda:1").device == torch.device("cuda:1")
    assert resolve("cpu").device == CPU
    with pytest.raises(ValueError, match="each process takes a GPU of its own.*'cuda:0'.*give --device cuda"):
        resolve("cuda:0")


@pytest.mark.parametrize(
    ("device", "taken"), [("auto", [0, 1, 2, 0, 1]), ("cuda", [0, 1, 2, 0, 1]), ("cuda:1", []), ("cpu", [])]
)
def test_several_processes_take_one_gpu_after_the_other(
    machine, monkeypatch: pytest.MonkeyPatch, device: str, taken: list[int]
):
    machine(cuda=3)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: pytest.fail("asked of GPU 0, which takes memory"))
    found: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    for number in range(5):
        devices.take_gpu(device, number)
    assert found == taken


def test_without_a_gpu_none_is_taken(machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: pytest.fail("there is none"))
    devices.take_gpu("auto", 1)
    machine(cuda=2)
    monkeypatch.setenv("KDLIB_DEVICE", "cpu")
    devices.take_gpu("auto", 1)


def test_random_states_are_those_of_the_device_in_use(monkeypatch: pytest.MonkeyPatch):
    states = {"cuda:1": torch.tensor([1]), "mps": torch.tensor([2])}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[str(device)])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({str(device): state}))
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states["mps"])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: states.update(mps=state))
    before = torch.get_rng_state()
    for name in states:
        device, kept = torch.device(name), states[name]
        with devices.isolate_rng(device):
            states[name] = torch.tensor([9])
            torch.rand(3)
        assert states[name] is kept
        assert set(devices.get_rng_states(device)) == {"cpu", device.type}
        devices.set_rng_states({"cuda": torch.tensor([7]), "mps": torch.tensor([7])}, torch.device("cpu"))
        assert states[name] is kept
    assert torch.equal(torch.get_rng_state(), before)
    assert set(devices.get_rng_states(CPU)) == {"cpu"}


def test_tied_weights_stay_tied_in_bfloat16():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    config, images = DeviceConfig(CPU, True), torch.randn(3, 4)
    weights = config.cast_weights(model)
    assert weights["0.weight"] is weights["2.weight"]
    with config.autocast():
        assert torch.equal(torch.func.functional_call(model, weights, (images,)), model(images))


class Doubled(nn.Linear):
    """A layer that does more with its weights than multiply by them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, 2 * self.weight, self.bias)


def test_cast_weights_give_the_outputs_of_autocast_to_the_bit():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), Doubled(8, 3)
    ).eval()
    images, config = torch.randn(5, 1, 6, 6), DeviceConfig(CPU, True)
    weights = config.cast_weights(model)
    assert set(weights) == {"0.weight", "0.bias", "4.weight", "4.bias"}
    with torch.no_grad(), config.autocast():
        assert torch.equal(torch.func.functional_call(model, weights, (images,)), model(images))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert DeviceConfig(CPU, False).cast_weights(model) == {}
    assert set(config.cast_weights(nn.Linear(2, 2))) == {"weight", "bias"}
    normed = nn.Linear(2, 2, bias=False)
    normed.weight_g, normed.weight_v = normed.weight, nn.Parameter(torch.ones(2, 2))  # as weight_norm calls them
    del normed.weight
    assert config.cast_weights(normed) == {}


def test_a_device_config_as_text():
    assert str(DeviceConfig(CPU, True)) == "cpu, bfloat16"
    assert str(DeviceConfig(CPU, True, compile=True)) == "cpu, bfloat16, compiled"
    assert str(DeviceConfig(torch.device("cuda:1"), False)) == "cuda:1, float32"
    assert devices.PRECISIONS == ("auto", "fp32", "bf16")


# --- learning rates


def learning_rates(total_steps: int, **settings: object) -> list[float]:
    recipe = Recipe(**settings)
    return [recipe.learning_rate_at(step, total_steps) for step in range(total_steps)]


def test_a_constant_rate():
    assert learning_rates(7, schedule="constant", learning_rate=0.3) == [0.3] * 7


def test_cosine_by_hand():
    found = learning_rates(100, schedule="cosine", learning_rate=2.0, warmup=0.1)
    assert found[0] == pytest.approx(2 * 0.005 / 0.1)
    assert found[4] == pytest.approx(2 * 0.045 / 0.1)
    assert found[9] == pytest.approx(2 * 0.095 / 0.1)
    assert found[10] == pytest.approx(1 + math.cos(math.pi * 0.005 / 0.9))
    assert found[54] == pytest.approx(1 + math.cos(math.pi * 0.445 / 0.9))
    assert found[99] == pytest.approx(1 + math.cos(math.pi * 0.895 / 0.9))
    assert found[99] < 2e-4 * 2
    assert max(found) == found[10]


def test_cosine_without_warm_up_starts_at_the_peak():
    found = learning_rates(50, schedule="cosine", learning_rate=1.0, warmup=0.0)
    assert found[0] == pytest.approx(1, abs=1e-3)
    assert found == sorted(found, reverse=True)
    assert found[12] + found[37] == pytest.approx(1)  # half a cosine is odd about its middle


def test_one_cycle_by_hand():
    found = learning_rates(100, schedule="one-cycle", learning_rate=0.7)
    assert found[0] == pytest.approx(0.7 * 0.005 / 0.3)
    assert found[29] == pytest.approx(0.7 * 0.295 / 0.3)
    assert found[30] == pytest.approx(0.695)
    assert found[64] == pytest.approx(0.7 * 0.355 / 0.7)
    assert found[99] == pytest.approx(0.005)
    assert found[:30] == sorted(found[:30])
    assert found[30:] == sorted(found[30:], reverse=True)
    assert (
        learning_rates(100, schedule="one-cycle", learning_rate=0.7, warmup=0.5) == found
    )  # it has a warm-up of its own


@settings(max_examples=60, deadline=None)
@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.floats(0, 0.9),
    steps=st.integers(200, 2_000),
    peak=st.floats(1e-4, 10),
)
def test_rates_are_positive_never_above_the_peak_and_have_no_jumps(schedule, warmup, steps, peak):
    found = learning_rates(steps, schedule=schedule, warmup=warmup, learning_rate=peak)
    assert min(found) > 0
    assert max(found) <= peak * (1 + 1e-12)
    assert max(found) > 0.97 * peak
    rise = peak / steps / (0.3 if schedule == "one-cycle" else max(warmup, 1 / steps))
    fall = peak / steps / (0.7 if schedule == "one-cycle" else (1 - warmup) * 2 / math.pi)
    for before, after in zip(found, found[1:], strict=False):
        assert -1.001 * fall <= after - before <= 1.001 * rise


def test_a_rate_depends_on_the_step_alone():
    recipe = Recipe()
    forwards = [recipe.learning_rate_at(step, 30) for step in range(30)]
    assert [recipe.learning_rate_at(step, 30) for step in reversed(range(30))] == forwards[::-1]
    assert recipe.learning_rate_at(0, 1) > 0


# --- optimisers


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def test_biases_and_norms_are_not_decayed():
    model = network()
    for kind in OPTIMIZERS:
        optimizer = Recipe(optimizer=kind, weight_decay=0.02).make_optimizer(model.parameters())
        decayed, free = optimizer.param_groups
        assert [p is q for p, q in zip(decayed["params"], (model[0].weight, model[3].weight), strict=True)] == [
            True
        ] * 2
        rest = (model[0].bias, model[1].weight, model[1].bias, model[3].bias)
        assert [p is q for p, q in zip(free["params"], rest, strict=True)] == [True] * 4
        assert (decayed["weight_decay"], free["weight_decay"]) == (0.02, 0.0)


def test_norms_over_maps_are_decayed_and_norms_of_channels_are_not():
    model = nn.ModuleList([nn.LayerNorm((3, 8, 8)), nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.BatchNorm2d(8)])
    decayed, free = Recipe(weight_decay=0.02).make_optimizer(model.parameters()).param_groups
    assert [id(p) for p in decayed["params"]] == [id(p) for p in model[0].parameters()]
    assert [id(p) for p in free["params"]] == [id(p) for p in model[1:].parameters()]


def test_frozen_parameters_are_left_out_and_an_iterator_is_read_once():
    model = network()
    model[0].requires_grad_(False)
    optimizer = Recipe().make_optimizer(p for p in model.parameters())
    kept = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in kept] == [id(model[3].weight), id(model[1].weight), id(model[1].bias), id(model[3].bias)]


def test_kinds_and_settings():
    parameters = list(network().parameters())
    sgd = Recipe(learning_rate=0.2, momentum=0.8).make_optimizer(parameters)
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.2, 0.8, True)
    plain = Recipe(momentum=0.0).make_optimizer(parameters)
    assert (plain.defaults["momentum"], plain.defaults["nesterov"]) == (0.0, False)
    adamw = Recipe(optimizer="adamw", learning_rate=1e-3).make_optimizer(parameters)
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["lr"], adamw.defaults["betas"]) == (1e-3, (0.9, 0.999))
    rmsprop = Recipe(optimizer="rmsprop", learning_rate=1e-3).make_optimizer(parameters)
    assert type(rmsprop) is torch.optim.RMSprop
    assert (rmsprop.defaults["lr"], rmsprop.defaults["alpha"]) == (1e-3, 0.9)


@pytest.mark.parametrize(("kind", "own"), {"sgd": (0.1, 5e-4), "adamw": (2e-3, 0.05), "rmsprop": (1e-3, 5e-4)}.items())
def test_each_optimizer_has_a_rate_and_a_decay_of_its_own_where_none_is_given(kind: str, own: tuple[float, float]):
    recipe = Recipe(kind)
    assert (recipe.learning_rate, recipe.weight_decay) == own
    assert recipe == Recipe(kind, None, weight_decay=None) == Recipe(**json.loads(json.dumps(asdict(recipe))))  # type: ignore[arg-type]
    optimizer = recipe.make_optimizer(network().parameters())
    assert (optimizer.defaults["lr"], optimizer.param_groups[0]["weight_decay"]) == own
    given = Recipe(kind, 0.01, weight_decay=0.0)
    assert (given.learning_rate, given.weight_decay) == (0.01, 0.0)


def test_a_recipe_that_is_changed_keeps_its_numbers_and_warns_of_those_of_sgd_with_another_optimizer():
    assert replace(Recipe("adamw"), batch_size=64) == Recipe("adamw", 2e-3, weight_decay=0.05, batch_size=64)
    with pytest.warns(UserWarning, match="of SGD, 0.1 and 0.0005, with adamw"):
        assert replace(Recipe(), optimizer="adamw").learning_rate == 0.1
    assert replace(Recipe(), optimizer="adamw", learning_rate=None, weight_decay=None) == Recipe("adamw")


def test_one_step_of_nesterov_sgd_by_hand():
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = Recipe(learning_rate=0.5, momentum=0.9, weight_decay=0.1).make_optimizer([weight])
    weight.grad = torch.tensor([[1.0]])
    optimizer.step()
    gradient = 1 + 0.1 * 2
    assert weight.item() == pytest.approx(2 - 0.5 * (gradient + 0.9 * gradient))


# --- settings that make no sense


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"optimizer": "adam"}, "no optimizer named 'adam'. Did you mean 'adamw'"),
        ({"optimizer": "SGD"}, "no optimizer named 'SGD'"),
        ({"schedule": "cosinus"}, "no schedule named 'cosinus'. Did you mean 'cosine'"),
        ({"learning_rate": 0.0}, "learning_rate is a positive number; got 0.0"),
        ({"learning_rate": -0.1}, "learning_rate is a positive number; got -0.1"),
        ({"learning_rate": math.nan}, "learning_rate is a positive number; got nan"),
        ({"learning_rate": math.inf}, "learning_rate is a positive number; got inf"),
        ({"batch_size": 1}, "batch_size is a whole number of at least 2 .*; got 1"),
        ({"batch_size": 0}, "batch_size is a whole number of at least 2 .*; got 0"),
        ({"batch_size": 64.0}, "batch_size is a whole number of at least 2 .*; got 64.0"),
        ({"warmup": 1.0}, r"warmup lies in \[0, 1\); got 1.0"),
        ({"warmup": -0.1}, r"warmup lies in \[0, 1\); got -0.1"),
        ({"warmup": math.nan}, r"warmup lies in \[0, 1\); got nan"),
        ({"momentum": 1.0}, r"momentum lies in \[0, 1\); got 1.0"),
        ({"momentum": -0.9}, r"momentum lies in \[0, 1\); got -0.9"),
        ({"momentum": math.nan}, r"momentum lies in \[0, 1\); got nan"),
        ({"weight_decay": -1e-4}, "weight_decay is a number of at least 0; got -0.0001"),
        ({"weight_decay": math.nan}, "weight_decay is a number of at least 0; got nan"),
        ({"weight_decay": math.inf}, "weight_decay is a number of at least 0; got inf"),
        ({"clip": 0.0}, "clip is a positive norm, or None; got 0.0"),
        ({"clip": -1.0}, "clip is a positive norm, or None; got -1.0"),
        ({"clip": math.nan}, "clip is a positive norm, or None; got nan"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, text: str):
    with pytest.raises(ValueError, match=text):
        Recipe(**settings)


def test_the_extremes_of_what_makes_sense():
    Recipe(warmup=0, momentum=0, weight_decay=0, batch_size=2, clip=1e-9, learning_rate=1e-12)
    with pytest.raises(AttributeError):
        Recipe().learning_rate = 1.0


def test_a_batch_of_the_librarys_own_is_moved(blobs: DataModule) -> None:
    moved = devices.move_batch(next(blobs.train.iter_batches(2)), "meta")
    assert (moved.images.device.type, moved.labels.device.type) == ("meta", "meta")
    assert moved.indices.device.type == "cpu"


def test_a_packed_sequence_is_moved_by_its_own_rule():
    """It is a tuple, and its sizes stay on the CPU."""
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(3, 2), torch.randn(1, 2)])
    moved, label = devices.move_batch((packed, torch.zeros(2)), "meta")
    assert (moved.data.device.type, moved.batch_sizes.device.type, label.device.type) == ("meta", "cpu", "meta")


@dataclass(frozen=True)
class Pair:
    """A batch as a class of one's own, which computes when it is built."""

    images: Any
    labels: Any
    name: str = "a batch"
    count: Tensor = field(init=False)
    later: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", self.images + 1)
        object.__setattr__(self, "count", torch.tensor(len(self.labels)))


@dataclass(frozen=True, slots=True)
class Slotted:
    images: Tensor


def test_the_fields_of_a_dataclass_are_moved() -> None:
    given = Pair(torch.zeros(2, 1, 4, 4), [torch.zeros(2)])
    moved = devices.move_batch(given, "meta")
    assert (type(moved), moved.name) == (Pair, "a batch")
    assert {one.device.type for one in (moved.images, moved.labels[0], moved.count)} == {"meta"}
    assert {one.device.type for one in (given.images, given.labels[0], given.count)} == {"cpu"}
    assert torch.equal(devices.move_batch(given, "cpu").images, torch.ones(2, 1, 4, 4))
    assert devices.move_batch(Slotted(torch.zeros(2)), "meta").images.device.type == "meta"
    assert devices.move_batch(Pair, "meta") is Pair


@dataclass
class Masked:
    ids: Tensor

    def __post_init__(self) -> None:
        self.mask = self.ids != 0

    @cached_property
    def doubled(self) -> Tensor:
        return 2 * self.ids


def test_what_a_dataclass_has_computed_is_moved_with_its_fields() -> None:
    given = Masked(torch.tensor([3, 0]))
    assert given.doubled.device.type == "cpu"
    moved = devices.move_batch(given, "meta")
    assert {one.device.type for one in (moved.ids, moved.mask, moved.doubled)} == {"meta"}
    assert given.doubled.tolist() == [6, 0]


class Encoding(UserDict):
    """As transformers' BatchEncoding."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


class Counted(dict):
    def how_many(self) -> int:
        return len(self["x"])


class WithAttributes(dict):
    """A dict whose items are its attributes."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__ = self


class ReadOnly(Mapping):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __getitem__(self, name: str) -> Tensor:
        return {"x": self.x}[name]

    def __iter__(self) -> Iterator[str]:
        return iter(["x"])

    def __len__(self) -> int:
        return 1


MAPPINGS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "attributes": (Encoding(x=torch.zeros(2)), lambda batch: batch.x),
    "attributes of a dict": (WithAttributes(x=torch.zeros(2)), lambda batch: batch.x),
    "a method": (Counted(x=torch.zeros(2)), lambda batch: batch["x"][: batch.how_many()]),
    "nothing that can be copied": (ReadOnly(torch.zeros(2)), lambda batch: batch["x"]),
}


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_mapping_with_more_than_items_keeps_it_when_it_is_moved(name: str) -> None:
    given, read = MAPPINGS[name]
    assert read(devices.move_batch(given, "meta")).device.type == "meta"
    assert read(given).device.type == given["x"].device.type == "cpu"


def test_attributes_of_a_batch_are_read_in_a_training(blobs: DataModule) -> None:
    batches = [Encoding(x=one.images, labels=one.labels) for one in blobs.train.iter_batches(30)]
    adapter = Adapter(inputs=lambda batch: batch.x, labels="labels")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    train.fit(network, batches, validation=batches, adapter=adapter, epochs=1, device="cpu", progress=False)
