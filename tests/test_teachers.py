"""Teachers: rule 1 (never trained, never changed) and rule 3 (the output belongs to this view of this image)."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import math
import mmap
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdlib import devices, teachers
from kdlib.adapters import Adapter
from kdlib.data import NO_AUGMENTATION, Augmentation, Batch, DataModule, InMemoryDataset, epoch_order
from kdlib.devices import DeviceConfig
from kdlib.files import checksum
from kdlib.hooks import ModelOutput
from kdlib.teachers import CachedTeacher, FrozenTeacher, as_teacher

CPU = DeviceConfig(torch.device("cpu"), bfloat16=False)
SHIFTS = Augmentation(padding=2, flip=True)


class Net(nn.Module):
    """Everything that behaves otherwise in training: dropout and batch statistics."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.stem = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3, 4)
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return self.scale * self.fc(self.drop(self.stem(images).mean((2, 3))))


def make_net(seed: int = 0, scale: float = 1.0) -> Net:
    torch.manual_seed(seed)
    net = Net(scale)
    with torch.no_grad():  # statistics and affine parameters away from their defaults
        net.stem[1].running_mean.uniform_(-0.2, 0.2)
        net.stem[1].weight.uniform_(0.5, 2)
    return net


@pytest.fixture
def net() -> Net:
    return make_net()


def make_dataset(count: int = 11, seed: int = 0) -> InMemoryDataset:
    """Sample indices with gaps, out of order: not one of them is its position."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 2, 6, 5), generator=generator, dtype=torch.uint8)
    indices = 100 - 3 * torch.randperm(count, generator=generator) if count < 33 else torch.arange(count) + 7
    return InMemoryDataset(images, torch.arange(count) % 4, indices, (0.4, 0.6), (0.2, 0.3))


@pytest.fixture
def dataset() -> InMemoryDataset:
    return make_dataset()


def first(dataset: InMemoryDataset, size: int = 4, **options: Any) -> Batch:
    return next(dataset.iter_batches(size, **options))


def by_hand(net: Net, images: Tensor) -> dict[str, Tensor]:
    """The logits and the stem's output in eval mode; the model is left in eval mode."""
    net.eval()
    with torch.no_grad():
        return {"logits": net(images), "stem": net.stem(images)}


def build(net: Net, dataset: InMemoryDataset, **options: Any) -> CachedTeacher:
    settings = {"device": "cpu", "precision": "fp32", "progress": False, "batch_size": 4}
    return CachedTeacher.build(net, dataset, **{**settings, **options})


class Silent(Net):
    """Has the weights, and must be asked of no more than the four images by which a cache is compared."""

    asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        if self.asked > 4:
            raise AssertionError("the teacher was run again")
        return super().forward(images)


Silent.__name__ = "Net"


def silent(net: Net) -> Net:
    """A model equal to `net` in all that a cache compares."""
    model = Silent(net.scale)
    model.load_state_dict(net.state_dict())
    return model


# -------------------- a frozen teacher


def test_frozen_outputs_are_those_of_the_model_in_eval_mode(net: Net, dataset: InMemoryDataset):
    batch = first(dataset)
    with FrozenTeacher(net).activate(["stem", "fc"], CPU) as teacher:
        output = teacher(batch)
    expected = by_hand(net, batch.images)
    assert list(output.features) == ["stem", "fc"]
    torch.testing.assert_close(output.logits, expected["logits"], rtol=0, atol=1e-6)
    torch.testing.assert_close(output.features["stem"], expected["stem"], rtol=0, atol=1e-6)


def test_frozen_is_in_eval_mode_at_every_call(net: Net, dataset: InMemoryDataset):
    batch = first(dataset)
    expected = by_hand(net, batch.images)["logits"]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    teacher = FrozenTeacher(net)
    with teacher.activate([], CPU):
        for set_training in (net.train, net.stem.train, net.drop.train):
            set_training()
            torch.testing.assert_close(teacher(batch).logits, expected, rtol=0, atol=1e-6)
            assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_frozen_gives_no_gradient_and_no_graph_but_can_be_learned_from(net: Net, dataset: InMemoryDataset):
    batch = first(dataset)
    with FrozenTeacher(net).activate(["stem"], CPU) as teacher, torch.enable_grad():
        output = teacher(batch)
        assert torch.is_grad_enabled()
    for tensor in (output.logits, output.features["stem"]):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
        assert not tensor.is_inference()
    student = torch.ones_like(output.logits, requires_grad=True)
    (student * output.logits).sum().backward()
    torch.testing.assert_close(student.grad, output.logits)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_gives_modes_back_module_by_module(net: Net, dataset: InMemoryDataset, fails: bool):
    net.train()
    net.stem[1].eval()  # as people do who freeze batch statistics
    before = {name: module.training for name, module in net.named_modules()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    try:
        with FrozenTeacher(net).activate(["stem"], CPU) as teacher:
            teacher(first(dataset))
            assert not net.training
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert {name: module.training for name, module in net.named_modules()} == before
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_frozen_keeps_modes_when_a_layer_is_unknown(net: Net):
    with pytest.raises(ValueError, match="no layer in Net named 'stm'"), FrozenTeacher(net).activate(["stm"], CPU):
        pass
    assert net.training


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_moves_the_model_to_the_device_and_back(fails: bool):
    moves = []

    class Moved(nn.Linear):
        def to(self, device: torch.device, **options: Any) -> Moved:
            moves.append((device, options))
            return self

    model = Moved(2, 2, device="meta")  # another device than that of the config
    try:
        with FrozenTeacher(model).activate([], CPU):
            assert moves == [(torch.device("cpu"), {"memory_format": torch.channels_last})]
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert moves[1:] == [(torch.device("meta"), {})]


def test_frozen_takes_a_model_without_parameters(dataset: InMemoryDataset):
    with FrozenTeacher(nn.Flatten()).activate([], CPU) as teacher:
        assert teacher(first(dataset)).logits.shape == (4, 60)


def test_frozen_outside_its_block_gives_the_same_in_eval_mode_and_leaves_no_hook(net: Net, dataset: InMemoryDataset):
    teacher, batch = FrozenTeacher(net), first(dataset)
    with teacher.activate(["stem"], CPU) as same:
        assert same is teacher
        inside = teacher(batch)
        assert list(teacher(batch, ["fc"]).features) == ["fc"]  # other layers than those of the block
    assert net.training
    outside = teacher(batch, ["stem"])
    assert not net.training
    assert torch.equal(outside.logits, inside.logits)
    assert torch.equal(outside.features["stem"], inside.features["stem"])
    assert not outside.features["stem"].requires_grad
    assert not any(module._forward_hooks for module in net.modules())


def test_frozen_can_be_activated_again(net: Net, dataset: InMemoryDataset):
    teacher = FrozenTeacher(net)
    for layers in (["stem"], ["fc"], []):
        with teacher.activate(layers, CPU):
            assert list(teacher(first(dataset)).features) == layers


@pytest.mark.parametrize(("bfloat16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_frozen_computes_in_the_configs_precision(
    net: Net, dataset: InMemoryDataset, bfloat16: bool, dtype: torch.dtype
):
    with FrozenTeacher(net).activate(["stem.0"], DeviceConfig(torch.device("cpu"), bfloat16)) as teacher:
        output = teacher(first(dataset))
    assert output.logits.dtype == dtype
    assert output.features["stem.0"].dtype == dtype


class Tied(nn.Module):
    """Reads words and gives logits of words by the same weights, as language models do."""

    def __init__(self):
        super().__init__()
        self.words, self.middle, self.last = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
        self.norm = nn.LayerNorm(8)
        self.last.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.last(self.norm(self.words(words) + self.middle(self.words(words))))


def test_frozen_with_tied_weights_gives_what_autocast_gives():
    torch.manual_seed(0)
    net, config = Tied().eval(), DeviceConfig(torch.device("cpu"), bfloat16=True)
    words = torch.arange(18).view(6, 3) % 9
    with torch.no_grad(), config.autocast():
        expected = net(words)
    with FrozenTeacher(net).activate([], config) as teacher:
        assert torch.equal(teacher((words, None)).logits, expected)


def test_frozen_is_compatible_with_any_images_and_any_view(net: Net, dataset: InMemoryDataset):
    assert FrozenTeacher(net).check_compatible(dataset, SHIFTS, 3) is None
    assert FrozenTeacher(net).views is None
    assert FrozenTeacher(net).model is net


# -------------------- a cached teacher gives the same outputs


def test_cached_outputs_are_the_live_teachers_in_any_order(net: Net, dataset: InMemoryDataset):
    settings = {"augmentation": SHIFTS, "seed": 5}
    cached = build(net, dataset, views=3, layers=["stem", "fc"], **settings)
    assert cached.views == 3
    with FrozenTeacher(net).activate(["stem", "fc"], CPU) as live, cached.activate(["stem", "fc"], CPU) as stored:
        assert stored is cached
        for view in (2, 0, 1):
            order = epoch_order(dataset, seed=view, epoch=0)
            for batch in dataset.iter_batches(3, sampler=order, view=view, **settings):
                expected, output = live(batch), stored(batch)
                assert isinstance(output, ModelOutput)
                torch.testing.assert_close(output.logits, expected.logits, rtol=1e-5, atol=1e-6)
                assert list(output.features) == ["stem", "fc"]
                for name, feature in expected.features.items():
                    torch.testing.assert_close(output.features[name], feature, rtol=1e-5, atol=1e-6)


def test_views_differ_and_so_do_their_outputs(net: Net, dataset: InMemoryDataset):
    cached = build(net, dataset, views=2, augmentation=SHIFTS)
    outputs = [cached(first(dataset, 11, view=view, augmentation=SHIFTS)).logits for view in (0, 1)]
    assert not torch.allclose(*outputs)


def test_defaults_are_one_view_unaugmented_seed_zero_in_memory(net: Net, dataset: InMemoryDataset):
    cached = build(net, dataset)
    batch = first(dataset, 11)
    torch.testing.assert_close(cached(batch).logits, by_hand(net, batch.images)["logits"], rtol=1e-5, atol=1e-6)
    assert {name: cached.metadata[name] for name in ("views", "seed", "layers", "half", "precision")} == {
        "views": 1,
        "seed": 0,
        "layers": [],
        "half": False,
        "precision": "float32",
    }
    assert cached.metadata["augmentation"] == {"padding": 0, "flip": False, "scale": [1.0, 1.0]}
    assert cached.metadata["data"] == dataset.fingerprint
    assert list(cached.metadata) == [
        "view_fingerprint",
        "data",
        "augmentation",
        "seed",
        "views",
        "teacher",
        "layers",
        "half",
        "precision",
    ]


def test_the_teacher_is_run_once_on_each_view_in_batches_of_256(net: Net):
    dataset = make_dataset(257)
    CachedTeacher.build(net, dataset, views=2, device="cpu", precision="fp32", progress=False)
    assert net.calls == [256, 1, 256, 1]


@pytest.mark.parametrize(("side", "sizes"), [(224, [11]), (1120, [10, 1])])
def test_fewer_large_images_are_given_to_the_teacher_at_once(dataset: InMemoryDataset, side: int, sizes: list[int]):
    class Corner(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images[..., :4, :4].expand(-1, 2, -1, -1))

    net = Corner()
    black = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(11, 1, side, side)
    large = replace(dataset, images=black, mean=(0.5,), std=(0.5,))
    CachedTeacher.build(net, large, device="cpu", precision="fp32", progress=False)
    assert net.calls == sizes


def test_device_and_precision_are_resolved_from_the_arguments(
    net: Net, dataset: InMemoryDataset, monkeypatch: pytest.MonkeyPatch
):
    requested, resolve = [], devices.resolve
    monkeypatch.setattr(devices, "resolve", lambda *given: requested.append(given) or resolve("cpu", "bf16"))
    cached = CachedTeacher.build(net, dataset, progress=False)
    CachedTeacher.build(net, dataset, device="cuda", precision="fp32", progress=False)
    assert requested == [("auto", "auto"), ("cuda", "fp32")]
    assert cached.metadata["precision"] == "bfloat16"
    batch = first(dataset, 11)
    with FrozenTeacher(net).activate([], DeviceConfig(torch.device("cpu"), bfloat16=True)) as live:
        torch.testing.assert_close(cached(batch).logits, live(batch).logits.float(), rtol=0, atol=1e-2)
    assert not torch.equal(cached(batch).logits, by_hand(net, batch.images)["logits"])


def test_images_are_made_on_the_teachers_device(net: Net, dataset: InMemoryDataset, monkeypatch: pytest.MonkeyPatch):
    requested, iter_batches = [], InMemoryDataset.iter_batches

    def watch(self: InMemoryDataset, batch_size: int, **options: Any) -> Iterator[Batch]:
        assert torch.equal(options.pop("sampler"), torch.arange(len(dataset)))
        requested.append((batch_size, options))
        return iter_batches(self, batch_size, **options)

    monkeypatch.setattr(InMemoryDataset, "iter_batches", watch)
    build(net, dataset, views=2, augmentation=SHIFTS, seed=9)
    common = {"augmentation": SHIFTS, "seed": 9, "device": torch.device("cpu")}
    assert requested == [(4, {"view": view, **common}) for view in (0, 1)]


def test_building_leaves_the_teacher_as_it_was(net: Net, dataset: InMemoryDataset):
    net.stem.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    build(net, dataset, layers=["stem"])
    assert net.training
    assert not net.stem.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_progress_is_shown_unless_silenced(net: Net, dataset: InMemoryDataset, capfd: pytest.CaptureFixture[str]):
    build(net, dataset, views=2)
    assert capfd.readouterr() == ("", "")
    CachedTeacher.build(net, dataset, views=2, device="cpu", precision="fp32")
    shown = capfd.readouterr().err
    assert "teacher: 100%" in shown
    assert "22/22" in shown
    assert "img/s" in shown


def test_features_are_those_of_the_active_layers_and_only_in_the_block(net: Net, dataset: InMemoryDataset):
    cached = build(net, dataset, layers=["stem", "stem.1", "fc"])
    batch = first(dataset)
    assert cached(batch).features == {}
    with cached.activate(["fc"], CPU):
        assert list(cached(batch).features) == ["fc"]
    with cached.activate(["stem", "stem.1"], CPU):
        assert list(cached(batch).features) == ["stem", "stem.1"]
    with pytest.raises(ValueError, match="no output"), cached.activate(["stem"], CPU):
        cached(replace(batch, view=1))
    assert cached(batch).features == {}  # also after an exception


def test_outputs_come_to_the_device_in_float32(net: Net, dataset: InMemoryDataset, tmp_path: Path):
    cached = build(net, dataset, layers=["stem"], directory=tmp_path)
    batch = first(dataset)
    with cached.activate(["stem"], DeviceConfig(torch.device("meta"), bfloat16=True)):
        output = cached(batch)
        for tensor in (output.logits, output.features["stem"]):
            assert tensor.device.type == "meta"
            assert tensor.dtype == torch.float32
    assert cached(batch).logits.device.type == "cpu"
    assert cached(batch).logits.dtype == torch.float32


def test_an_output_can_be_written_to_without_harm(net: Net, dataset: InMemoryDataset, tmp_path: Path):
    batch = first(dataset)
    for directory in (None, tmp_path):
        cached = build(net, dataset, directory=directory)
        before = cached(batch).logits.clone()
        cached(batch).logits.zero_()
        assert torch.equal(cached(batch).logits, before)


# -------------------- and refuses what it has no outputs for


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"augmentation": Augmentation(padding=1, flip=True)}, "augmentation"),
        ({"augmentation": NO_AUGMENTATION}, "augmentation"),
        ({"seed": 6}, "seed"),
        ({"dataset": make_dataset(seed=1)}, "data"),
        ({"dataset": make_dataset().select(torch.arange(5))}, "data"),
        ({"dataset": replace(make_dataset(), mean=(0.4, 0.5))}, "data"),
        (
            {"dataset": make_dataset(seed=1), "seed": 6, "augmentation": NO_AUGMENTATION},
            "data and augmentation and seed",
        ),
    ],
)
def test_cached_refuses_other_images(net: Net, dataset: InMemoryDataset, other: dict[str, Any], named: str):
    cached = build(net, dataset, views=2, augmentation=SHIFTS, seed=5)
    given = {"dataset": dataset, "augmentation": SHIFTS, "seed": 5}
    cached.check_compatible(**given)
    cached(first(dataset, augmentation=SHIFTS, seed=5, view=1))
    given |= other
    message = f"^The cached outputs were stored for another {named}. A teacher's output belongs to the same view"
    with pytest.raises(ValueError, match=message):
        cached.check_compatible(**given)
    images = given.pop("dataset")
    message = (
        r"^The cache has no output for view 1 of these images \(it holds 2 views of one dataset under one "
        r"augmentation and seed\)\. Train with what it was built for\.$"
    )
    with pytest.raises(ValueError, match=message):
        cached(first(images, view=1, **given))


def test_without_augmentation_the_seed_does_not_matter(net: Net, dataset: InMemoryDataset):
    cached = build(net, dataset, seed=5)
    cached.check_compatible(dataset, NO_AUGMENTATION, 6)
    cached(first(dataset, seed=6))


@pytest.mark.parametrize("view", [-1, 2, 3])
def test_cached_refuses_a_view_out_of_range(net: Net, dataset: InMemoryDataset, view: int):
    cached = build(net, dataset, views=2, augmentation=SHIFTS)
    with pytest.raises(ValueError, match=f"no output for view {view} of these images .it holds 2 views"):
        cached(first(dataset, augmentation=SHIFTS, view=view))


@pytest.mark.parametrize("index", [0, 99, 101, 10**9])
def test_cached_refuses_a_sample_that_it_was_not_built_with(net: Net, dataset: InMemoryDataset, index: int):
    assert index not in dataset.indices
    batch = first(dataset, 3)
    stranger = replace(batch, indices=torch.tensor([*batch.indices[:2], index]))
    with pytest.raises(ValueError, match="no output for view 0 of these images"):
        build(net, dataset)(stranger)


def test_cached_refuses_layers_that_were_not_stored(net: Net, dataset: InMemoryDataset):
    cached = build(net, dataset, layers=["stem", "fc"])
    message = (
        r"^The cache holds no outputs of \['drop', 'stem\.0'\] \(stored layers: stem, fc\)\. "
        r"Build it with layers=\['drop', 'fc', 'stem\.0'\], or use the teacher itself\.$"
    )
    with pytest.raises(ValueError, match=message), cached.activate(["drop", "fc", "stem.0"], CPU):
        pass
    with pytest.raises(ValueError, match=r"stored layers: none"), build(net, dataset).activate(["fc"], CPU):
        pass


@pytest.mark.parametrize("views", [0, -1])
def test_a_cache_needs_a_view(net: Net, dataset: InMemoryDataset, views: int):
    message = f"^A cache needs at least one view of one sample; got {views} views of 11.$"
    with pytest.raises(ValueError, match=message):
        build(net, dataset, views=views)
    assert net.calls == []


def test_a_cache_needs_a_sample(net: Net, dataset: InMemoryDataset):
    with pytest.raises(ValueError, match=r"^A cache needs at least one view of one sample; got 2 views of 0\.$"):
        build(net, dataset.select(torch.arange(0)), views=2)


def test_one_sample_is_enough(net: Net, dataset: InMemoryDataset):
    one = dataset.select(torch.tensor([3]))
    cached = build(net, one)
    batch = first(one)
    torch.testing.assert_close(cached(batch).logits, by_hand(net, batch.images)["logits"], rtol=1e-5, atol=1e-6)


def test_layers_are_checked_before_anything_is_run_or_written(net: Net, dataset: InMemoryDataset, tmp_path: Path):
    with pytest.raises(ValueError, match="no layer in Net named 'stm'. Did you mean 'stem'"):
        build(net, dataset, layers=["stm"], directory=tmp_path)
    assert net.calls == []
    assert list(tmp_path.iterdir()) == []


# -------------------- in a directory


def test_a_directory_is_opened_again_without_running_the_teacher(net: Net, dataset: InMemoryDataset, tmp_path: Path):
    options = {"views": 2, "augmentation": SHIFTS, "seed": 5, "layers": ["stem", "stem.1"]}
    built = build(net, dataset, directory=tmp_path / "new" / "cache", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = build(silent(net), dataset, directory=str(tmp_path / "new" / "cache"), **options)
    assert opened.metadata == built.metadata
    assert opened.views == 2
    batch = first(dataset, view=1, augmentation=SHIFTS, seed=5)
    for cached in (built, opened):
        with cached.activate(["stem", "stem.1"], CPU), FrozenTeacher(net).activate(["stem", "stem.1"], CPU) as live:
            expected, output = live(batch), cached(batch)
        # half precision keeps 11 binary digits
        torch.testing.assert_close(output.logits, expected.logits, rtol=1e-3, atol=1e-4)
        for name in ("stem", "stem.1"):
            torch.testing.assert_close(output.features[name], expected.features[name], rtol=1e-3, atol=1e-4)
    assert not torch.equal(output.logits, expected.logits)


def test_outputs_are_stored_in_half_precision_only_in_a_directory_by_default(
    net: Net, dataset: InMemoryDataset, tmp_path: Path
):
    batch = first(dataset, 11)
    exact = by_hand(net, batch.images)["logits"]
    rounded = exact.half().float()
    for half, directory, expected in (
        (None, None, exact),
        (True, None, rounded),
        (None, tmp_path / "a", rounded),
        (True, tmp_path / "b", rounded),
        (False, tmp_path / "c", exact),
    ):
        cached = build(net, dataset, half=half, directory=directory, batch_size=11)
        torch.testing.assert_close(cached(batch).logits, expected, rtol=1e-6, atol=1e-7)
        assert cached.metadata["half"] is (expected is rounded)
    dtypes = [np.load(tmp_path / name / "logits.npy", mmap_mode="r").dtype for name in "abc"]
    assert dtypes == [np.float16, np.float16, np.float32]


def test_what_lies_in_the_directory(net: Net, dataset: InMemoryDataset, tmp_path: Path):
    cached = build(net, dataset, views=2, layers=["stem.1"], directory=tmp_path, half=False, augmentation=SHIFTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.json", "layer-stem.1.npy", "logits.npy"]
    assert np.load(tmp_path / "logits.npy").shape == (2, 11, 4)
    assert np.load(tmp_path / "layer-stem.1.npy").shape == (2, 11, 3, 6, 5)
    text = (tmp_path / "cache.json").read_text()
    found = json.loads(text)
    assert list(found.pop("files")) == ["logits.npy", "layer-stem.1.npy"]
    assert found == cached.metadata
    assert '\n "seed": 0' in text  # a line each, to be read by people


def test_a_layer_called_logits_does_not_overwrite_the_logits(dataset: InMemoryDataset, tmp_path: Path):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Linear(60, 3)

        def forward(self, images: Tensor) -> Tensor:
            return 2 * self.logits(images.flatten(1))

    cached = build(Named(), dataset, layers=["logits"], directory=tmp_path)
    with cached.activate(["logits"], CPU):
        output = cached(first(dataset))
    torch.testing.assert_close(output.logits, 2 * output.features["logits"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("half", [False, True])
def test_the_files_are_not_altered_by_what_is_done_with_an_opened_cache(
    net: Net, dataset: InMemoryDataset, tmp_path: Path, half: bool
):
    options = {"layers": ["stem"], "directory": tmp_path, "half": half}
    build(net, dataset, **options)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.npy")}
    opened, batch = build(silent(net), dataset, **options), first(dataset, 11)
    kept = opened(batch, ["stem"])
    for adapted in (opened, opened.with_adapter(Adapter(indices=0)), copy.deepcopy(opened)):
        for size in (1, 11):  # also all of it, in the order of the file
            output = adapted(first(dataset, size), ["stem"])
            output.logits.zero_()
            output.features["stem"].zero_()
    again = opened(batch, ["stem"])
    assert torch.equal(again.logits, kept.logits)
    assert torch.equal(again.features["stem"], kept.features["stem"])
    assert {path: path.read_bytes() for path in tmp_path.glob("*.npy")} == before


def test_a_cache_larger_than_the_memory_can_be_opened(net: Net, dataset: InMemoryDataset, tmp_path: Path):
    views, size = 2**42 // (11 * 4 * 2), 11 * 4 * 2  # 4 TB: a hole in the file, which takes no space on the disk
    metadata = {**build(net, dataset, directory=tmp_path).metadata, "views": views}
    path = tmp_path / "logits.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": (views, 11, 4)})
        end = file.tell() + views * size
        try:
            file.truncate(end - size)
            file.seek(end - size)
            file.write(np.arange(44, dtype=np.float16).tobytes())
        except OSError as error:
            pytest.skip(f"this disk has no files of that size: {error}")
    (tmp_path / "cache.json").write_text(json.dumps({**metadata, "files": {path.name: checksum(path)}}))
    cached = CachedTeacher.open(tmp_path, metadata, dataset.indices)
    assert torch.equal(cached(first(dataset, 11, view=views - 1)).logits, torch.arange(44.0).view(11, 4))
    assert not cached(first(dataset, 11)).logits.any()


def test_a_cache_that_takes_much_memory_is_told(
    net: Net, dataset: InMemoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(teachers.cached, "LARGE_CACHE", 1.0)
    with pytest.warns(UserWarning, match=r"outputs take .* GB of memory.*\(--cache\).*\(--views 0\)"):
        CachedTeacher.build(net, dataset, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CachedTeacher.build(net, dataset, directory=tmp_path / "cache", progress=False)


def test_a_lack_of_memory_is_no_reason_to_delete_a_cache(
    net: Net, dataset: InMemoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_room(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    build(net, dataset, directory=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", no_room)
        with pytest.raises(MemoryError, match="cannot be mapped.*ulimit") as error:
            build(silent(net), dataset, directory=tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "Delete" not in str(error.value)
    build(silent(net), dataset, directory=tmp_path)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"augmentation": Augmentation(padding=1)}, "augmentation"),
        ({"seed": 6}, "seed"),
        ({"views": 3}, "views"),
        ({"dataset": make_dataset(seed=1)}, "data"),
        ({"dataset": make_dataset().select(torch.arange(5))}, "data"),
        ({"net": make_net(seed=1)}, "teacher"),
        ({"net": nn.Sequential(nn.Flatten(), nn.Linear(60, 4))}, "teacher"),
        ({"layers": ["stem", "fc"]}, "layers"),
        ({"layers": []}, "layers"),
        ({"half": False}, "half"),
        ({"precision": "bf16"}, "precision"),
        ({"seed": 6, "views": 1, "half": False}, "seed, views, half"),
    ],
)
def test_a_directory_of_something_else_is_refused(
    net: Net, dataset: InMemoryDataset, tmp_path: Path, other: dict[str, Any], named: str
):
    settings = {"net": net, "dataset": dataset, "views": 2, "augmentation": SHIFTS, "seed": 5, "layers": ["stem"]}
    build(**settings, directory=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    same = named in ("layers", "half", "precision")
    why = "It holds them in another form" if same else "Its outputs belong to other images or another teacher"
    message = (
        f"^The cache in {re.escape(str(tmp_path))} was built with another {named}\\. {why}: "
        "name a new folder, or delete this one if nothing else reads it.$"
    )
    settings["net"] = silent(net)
    with pytest.raises(ValueError, match=message):
        build(**{**settings, **other}, directory=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    build(**settings, directory=tmp_path)  # and it still opens with its own settings


def test_a_teacher_with_other_activations_is_another_teacher(dataset: InMemoryDataset, tmp_path: Path):
    torch.manual_seed(0)
    one = nn.Sequential(nn.Flatten(), nn.Linear(60, 4), nn.ReLU())
    other = nn.Sequential(*one[:2], nn.Tanh())  # with the very same weights
    build(one, dataset, directory=tmp_path)
    with pytest.raises(ValueError, match="built with another teacher"):
        build(other, dataset, directory=tmp_path)


def test_an_interrupted_build_is_done_again(net: Net, dataset: InMemoryDataset, tmp_path: Path):
    class Stops(Net):
        def forward(self, images: Tensor) -> Tensor:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        build(Stops(), dataset, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "unfinished-layer-stem.npy").touch()  # a build that was killed leaves what it had
    cached = build(net, dataset, directory=tmp_path)
    assert net.calls == [4, 4, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.json", "logits.npy"]
    batch = first(dataset, 11)
    expected = by_hand(net, batch.images)["logits"]
    torch.testing.assert_close(cached(batch).logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_a_build_that_fails_keeps_no_file_mapped(
    dataset: InMemoryDataset, tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
):
    """A notebook keeps the last error; a file that is mapped keeps its space on the disk, and on Windows its name."""

    class Fails(Net):
        def forward(self, images: Tensor) -> Tensor:
            if error is KeyboardInterrupt and len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().forward(images) / (0 if error is ValueError else 1)  # refused when it is stored

    def reserve(handle: int, start: int, size: int) -> None:
        if error is OSError:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    with pytest.raises(error) as kept:
        build(Fails(), dataset, layers=["stem"], directory=tmp_path)
    assert kept.traceback
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"views": 2', "\xff"])
def test_damaged_metadata_is_refused(net: Net, dataset: InMemoryDataset, tmp_path: Path, text: str):
    build(net, dataset, directory=tmp_path)
    (tmp_path / "cache.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        ValueError, match=rf"^The cache in {re.escape(str(tmp_path))} cannot be read \(.*Delete the folder\.$"
    ):
        build(net, dataset, directory=tmp_path)
    if text == "[]":
        with pytest.raises(ValueError, match=r"\(cache.json describes no cache\)"):
            build(net, dataset, directory=tmp_path)


def test_metadata_without_an_entry_is_of_another_cache(net: Net, dataset: InMemoryDataset, tmp_path: Path):
    build(net, dataset, directory=tmp_path)
    (tmp_path / "cache.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ValueError, match="with another data, augmentation, seed, views, teacher, layers, half, precision"
    ):
        build(net, dataset, directory=tmp_path)


@pytest.mark.parametrize("name", ["logits.npy", "layer-stem.npy"])
@pytest.mark.parametrize("damage", ["missing", "empty", "header", "short", "shape", "views", "text", "pickle"])
def test_missing_or_damaged_outputs_are_refused(
    net: Net, dataset: InMemoryDataset, tmp_path: Path, name: str, damage: str
):
    options = {"layers": ["stem"], "directory": tmp_path, "views": 2, "augmentation": SHIFTS}
    build(net, dataset, **options)
    path = tmp_path / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage in ("shape", "views"):
        np.save(path, np.zeros((2, 10, 4) if damage == "shape" else (3, 11, 4), np.float16))
    elif damage == "pickle":
        np.save(path, np.array([print], dtype=object), allow_pickle=True)
    else:
        path.write_bytes({"empty": b"", "header": whole[:50], "short": whole[:-1], "text": b"no numbers"}[damage])
    with pytest.raises(
        ValueError, match=rf"^The cache in {re.escape(str(tmp_path))} cannot be read \(.*Delete"
    ) as error:
        build(net, dataset, **options)
    if damage == "shape":
        assert f"{name} holds (2, 10, 4) of float16, not 2 views of 11 samples in 16 bits" in str(error.value)


def test_outputs_with_a_wrong_byte_in_their_header_are_refused(net: Net, dataset: InMemoryDataset, tmp_path: Path):
    cache = build(net, dataset, directory=tmp_path)
    path = tmp_path / "logits.npy"
    whole = path.read_bytes()
    path.unlink()  # the cache maps it
    for position, bit in itertools.product(range(128), (0, 4, 6)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=rf"^The cache in {re.escape(str(tmp_path))} cannot be read \([\s\S]*Delete the folder\.$"
        ):
            CachedTeacher.open(tmp_path, cache.metadata, dataset.indices)


def test_outputs_that_were_altered_are_refused(net: Net, dataset: InMemoryDataset, tmp_path: Path):
    build(net, dataset, directory=tmp_path)
    stored = np.load(tmp_path / "logits.npy")
    np.save(tmp_path / "logits.npy", stored[:, ::-1])  # the same numbers, in another order
    with pytest.raises(ValueError, match=r"logits.npy is not what was written: its checksum differs"):
        build(net, dataset, directory=tmp_path)


BUILDER = """
import sys, time, torch
from torch import nn
from kdlib.data import InMemoryDataset
from kdlib.teachers import CachedTeacher

class Slow(nn.Module):
    def forward(self, images):
        time.sleep(float(sys.argv[2]))
        return images.flatten(1)

labels = torch.arange(40)
images = labels.to(torch.uint8).view(40, 1, 1, 1).expand(40, 1, 2, 2).contiguous()
dataset = InMemoryDataset(images, labels, labels, (0.5,), (0.5,))
print("ready", flush=True)
sys.stdin.readline()
teacher = CachedTeacher.build(Slow(), dataset, directory=sys.argv[1], batch_size=2, progress=False)
for batch in dataset.iter_batches(40):
    assert torch.allclose(teacher(batch).logits, batch.images.flatten(1), rtol=1e-3), "another image's answer"
time.sleep(0.5)
for batch in dataset.iter_batches(40):
    assert torch.allclose(teacher(batch).logits, batch.images.flatten(1), rtol=1e-3), "changed while it was used"
"""


def await_build(folder: Path, builder: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "unfinished-logits.npy").exists() and time.monotonic() < deadline:
        assert builder.poll() is None, "it ended before it had begun to build"
        time.sleep(0.02)


@pytest.mark.slow
def test_two_runs_that_share_a_directory_both_get_the_right_outputs(tmp_path: Path):
    folder = tmp_path / "cache"
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    runs = [
        subprocess.Popen([sys.executable, "-c", BUILDER, str(folder), pace], text=True, **pipes)
        for pace in ("0.3", "0.2")
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    errors = []
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
        await_build(folder, run)  # the second begins while the first builds, which takes six seconds
    for run in runs:
        _, error = run.communicate(timeout=120)
        errors.append(error)
        assert run.returncode == 0, error
    assert sum("Another run is building the cache" in error for error in errors) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["cache.json", "logits.npy"]


@pytest.mark.slow
def test_a_build_that_was_killed_leaves_no_lock(tmp_path: Path):
    command = [sys.executable, "-c", BUILDER, str(tmp_path), "0.05"]
    killed = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert killed.stdin is not None
    killed.stdin.write("\n")
    killed.stdin.flush()
    await_build(tmp_path, killed)
    killed.kill()
    killed.wait()
    done = subprocess.run(command, input="\n", capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.json", "logits.npy"]


# -------------------- what cannot be stored


@pytest.mark.parametrize("where", ["memory", "directory"])
def test_logits_too_large_for_16_bits(dataset: InMemoryDataset, tmp_path: Path, where: str):
    net = make_net(scale=1e6)
    options = {"half": True} if where == "memory" else {"directory": tmp_path}
    with pytest.raises(ValueError, match=r"^The teacher's logits are too large for 16 bits\. Build .* half=False\.$"):
        build(net, dataset, **options)
    assert list(tmp_path.iterdir()) == []
    cached = build(net, dataset, **{**options, "half": False})
    batch = first(dataset)
    expected = by_hand(net, batch.images)["logits"]
    assert expected.abs().max() > 65504
    torch.testing.assert_close(cached(batch).logits, expected, rtol=1e-5, atol=1)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_teacher_that_is_not_finite(net: Net, dataset: InMemoryDataset, half: bool, value: float):
    with torch.no_grad():
        net.fc.bias[2] = value
    message = r"^The teacher's logits are not finite\. Evaluate the teacher: its weights may be damaged\.$"
    with pytest.raises(ValueError, match=message):
        build(net, dataset, half=half)


def test_a_layer_that_is_not_finite_is_named(net: Net, dataset: InMemoryDataset):
    with torch.no_grad():
        net.stem[0].bias.fill_(math.inf)
    net.fc = nn.Identity()
    net.drop.forward = lambda x: torch.zeros(len(x), 4)
    with pytest.raises(ValueError, match=r"^The teacher's outputs of 'stem' are not finite\."):
        build(net, dataset, layers=["stem"])


class Big(nn.Module):
    """So many logits that a cache of ten samples takes exactly 21.5 MB in 32 bits."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(1, 1).expand(len(images), 537_500)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("half", "size"), [(True, "11"), (False, "22")])
def test_a_full_disk_is_named_with_size_and_path(
    dataset: InMemoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool, size: str
):
    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    path = re.escape(str(tmp_path / "cache" / "logits.npy"))
    message = (
        rf"Could not write {path} \({size} MB\): No space left on device\. Free some space or choose another folder"
    )
    with pytest.raises(OSError, match=message) as error:
        build(Big(), dataset.select(torch.arange(10)), directory=tmp_path / "cache", half=half)
    assert error.value.errno == errno.ENOSPC


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve space on a disk")
def test_the_space_is_reserved_before_it_is_filled(
    net: Net, dataset: InMemoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reserved = []
    monkeypatch.setattr(os, "posix_fallocate", lambda file, *part: reserved.append(part))
    build(net, dataset, directory=tmp_path / "watched", layers=["stem"])
    files = [tmp_path / "watched" / name for name in ("logits.npy", "layer-stem.npy")]
    assert reserved == [(0, path.stat().st_size) for path in files]
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"Could not write .*logits\.npy \(0 MB\): No space left on device\. Free some"):
        build(net, dataset, directory=tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


def test_a_system_that_cannot_reserve_space_writes_all_the_same(
    net: Net, dataset: InMemoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    cached = build(net, dataset, directory=tmp_path)
    assert cached(first(dataset)).logits.shape == (4, 4)


def test_a_file_in_place_of_the_directory(net: Net, dataset: InMemoryDataset, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"Could not write .*file.logits\.npy .*: .*choose another folder"):
        build(net, dataset, directory=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_both_teachers_follow_the_protocol(net: Net, dataset: InMemoryDataset):
    assert FrozenTeacher(net).fingerprint == build(net, dataset).fingerprint != FrozenTeacher(make_net(1)).fingerprint
    for name in ("activate", "check_compatible"):
        assert callable(getattr(teachers.Teacher, name))
        assert all(callable(getattr(kind, name)) for kind in (FrozenTeacher, CachedTeacher))


def test_a_cache_takes_the_numbers_of_numpy(blobs: DataModule, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    options: dict[str, Any] = {"augmentation": blobs.augmentation, "device": "cpu", "progress": False}
    built = CachedTeacher.build(
        model, blobs.train, seed=np.int64(0), views=np.int64(2), directory=tmp_path / "c", **options
    )
    again = CachedTeacher.build(model, blobs.train, seed=0, views=2, directory=tmp_path / "c", **options)
    assert built.fingerprint == again.fingerprint


# -------------------- weights that are cast once


class HalfOut(nn.Module):
    """Leaves autocast for its last layer, as networks do whose logits are to be exact; `by_weight`: calls no layer."""

    def __init__(self, by_weight: bool):
        super().__init__()
        self.body, self.head, self.by_weight = nn.Linear(12, 16), nn.Linear(16, 4), by_weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        with torch.autocast(x.device.type, enabled=False):
            if self.by_weight:
                return nn.functional.linear(hidden.float(), self.head.weight.float(), self.head.bias)
            return self.head(hidden.float())


@pytest.mark.parametrize("by_weight", [False, True])
def test_a_teacher_that_leaves_autocast_gives_what_it_gives_under_autocast(by_weight: bool) -> None:
    torch.manual_seed(0)
    net, config, inputs = (
        HalfOut(by_weight).eval(),
        DeviceConfig(torch.device("cpu"), bfloat16=True),
        torch.randn(8, 12),
    )
    with torch.no_grad(), config.autocast():
        expected, layer = net(inputs), net.body(inputs)
    with FrozenTeacher(net).activate(["body"], config) as teacher:
        for _ in range(3):
            output = teacher((inputs, None))
            assert torch.equal(output.logits, expected)
            assert torch.equal(output.features["body"], layer)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@torch.no_grad()
def _in_place(net: nn.Linear, new: Tensor) -> None:
    net.weight.copy_(new)


def _its_data(net: nn.Linear, new: Tensor) -> None:
    net.weight.data = new


def _another(net: nn.Linear, new: Tensor) -> None:
    net.weight = nn.Parameter(new)


@pytest.mark.parametrize("write", [_in_place, _its_data, _another])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.filterwarnings("ignore:While the teacher was used")
def test_the_answers_follow_weights_that_are_written_between_the_calls(write: Any, bfloat16: bool) -> None:
    torch.manual_seed(0)
    net, config, inputs = nn.Linear(12, 4), DeviceConfig(torch.device("cpu"), bfloat16), torch.randn(8, 12)
    with FrozenTeacher(net).activate([], config) as teacher:
        for _ in range(4):
            write(net, torch.randn(4, 12))
            with torch.no_grad(), config.autocast():
                expected = net(inputs)
            for _ in range(2):
                assert torch.equal(teacher((inputs, None)).logits, expected)


# -------------------- what the network returned, read as an adapter says


def backwards(output: Tensor) -> Tensor:
    return output.flip(1)


def test_a_cache_is_built_as_the_adapter_reads_the_network(net: Net, dataset: InMemoryDataset, tmp_path: Path) -> None:
    adapter = Adapter(teacher_logits=backwards)
    plain = build(net, dataset)
    cache = build(net, dataset, adapter=adapter, directory=tmp_path, half=False)
    batch = first(dataset)
    assert torch.equal(cache(batch).logits, plain(batch).logits.flip(1))
    assert cache.fingerprint != plain.fingerprint
    assert torch.equal(as_teacher(cache, adapter)(batch).logits, cache(batch).logits)  # not a second time
    with pytest.raises(ValueError, match="built with another teacher"):
        build(net, dataset, directory=tmp_path, half=False)
    again = build(net, dataset, adapter=adapter, directory=tmp_path, half=False)
    assert torch.equal(again(batch).logits, cache(batch).logits)
    for other in (plain, build(net, dataset, adapter=Adapter(teacher_logits=lambda o: o))):
        with pytest.raises(ValueError, match="teacher_logits.*order"):
            as_teacher(other, adapter)
        assert as_teacher(other, adapter, needs_logits=False) is other  # nobody reads them


def test_a_cache_is_built_on_the_inputs_that_the_adapter_gives_the_teacher(net: Net, dataset: InMemoryDataset) -> None:
    adapter = Adapter(teacher_inputs=lambda batch: batch.images.flip(3))
    cache = build(net, dataset, adapter=adapter)
    batch = first(dataset)
    torch.testing.assert_close(cache(batch).logits, by_hand(net, batch.images.flip(3))["logits"], rtol=0, atol=1e-5)
    with pytest.raises(TypeError, match=r"kdlib\.adapters\.Adapter.*got str"):
        build(net, dataset, adapter="logits")


def test_a_cache_of_other_inputs_is_refused(net: Net, dataset: InMemoryDataset) -> None:
    mirrored = Adapter(teacher_inputs=lambda batch: batch.images.flip(3))
    plain, of_mirrored = build(net, dataset), build(net, dataset, adapter=mirrored)
    both = replace(mirrored, teacher_logits=backwards)
    of_both = build(net, dataset, adapter=both)
    for given, adapter in ((of_mirrored, mirrored), (of_both, both), (plain, Adapter()), (of_mirrored, Adapter())):
        assert as_teacher(given, adapter) is given
    for given, adapter in ((plain, mirrored), (of_mirrored, Adapter(teacher_inputs=lambda batch: batch.images + 1))):
        for needs_logits in (True, False):  # its features are of other inputs, too
            with pytest.raises(ValueError, match="teacher_inputs.*stored for other inputs.*adapter="):
                as_teacher(given, adapter, needs_logits=needs_logits)
    with pytest.raises(ValueError, match="teacher_logits"):  # the same logits, of other inputs
        as_teacher(of_both, Adapter(teacher_logits=backwards))
