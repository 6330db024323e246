"""The trainer: the rules it keeps, what it refuses, and that every family of methods trains a real student."""

from __future__ import annotations

import copy
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from memory_blocks import MemoryBlocks
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlib import evaluation, losses, measure, methods, models, train
from kdlib.checkpoints import Checkpointer, plain_groups, trained_seconds
from kdlib.data import NO_AUGMENTATION, Augmentation, DataModule, InMemoryDataset, LazyDataset, epoch_order
from kdlib.described import describe, parameters_of
from kdlib.errors import DivergedError, explain_shape_errors
from kdlib.files import load_tensors, save_tensors
from kdlib.hooks import ModelOutput
from kdlib.methods import Feature, HardLabels, Logit, Method, Relation
from kdlib.recipes import Recipe
from kdlib.teachers import CachedTeacher, FrozenTeacher
from kdlib.trainer import Trainer
from kdlib.training_log import TrainingLog

QUICK = Recipe(learning_rate=0.05, batch_size=32)


def small(seed: int = 0, classes: int = 3, width: int = 4) -> nn.Module:
    """A network with everything that has state or randomness: batch norm, dropout, two stages."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential()
        for name, layer in {
            "conv1": nn.Conv2d(1, width, 3, padding=1),
            "bn1": nn.BatchNorm2d(width),
            "layer1": nn.ReLU(),
            "conv2": nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            "layer2": nn.ReLU(),
            "pool": nn.AdaptiveAvgPool2d(2),
            "flatten": nn.Flatten(),
            "dropout": nn.Dropout(0.2),
            "fc": nn.Linear(8 * width, classes),
        }.items():
            model.add_module(name, layer)
    return model


def fit(student: nn.Module, data: DataModule, **options: Any) -> train.Result:
    settings = {"epochs": 2, "recipe": QUICK, "precision": "fp32", "device": "cpu", "progress": False}
    return train.fit(student, data, **{**settings, **options})


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


@dataclass(frozen=True)
class Watched:
    """A dataset that notes in a shared log when it is read."""

    dataset: Any
    name: str
    log: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def iter_batches(self, *args: Any, **options: Any) -> Any:
        self.log.append(self.name)
        return self.dataset.iter_batches(*args, **options)


# --- the rules ---------------------------------------------------------------------------------------------------


def test_rule_1_the_teacher_is_in_eval_mode_without_gradient_and_unchanged(blobs: DataModule) -> None:
    teacher = small(seed=1, width=6).train()
    before = copy.deepcopy(teacher.state_dict())
    seen = []
    teacher.register_forward_hook(lambda m, i, out: seen.append((m[1].training, m[7].training, out.requires_grad)))

    class Meddles(Logit):
        def forward(self, *args: Any) -> methods.Terms:
            teacher.train()  # as a method that holds its teacher as a submodule would
            return super().forward(*args)

    fit(small(), blobs, teacher=teacher, method=Meddles() + Feature({"layer2": "layer2"}))
    assert len(seen) == 1 + 2 * 3  # the sanity check, two epochs of three batches
    assert set(seen) == {(False, False, False)}
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_rule_2_t_squared_reaches_the_student_through_the_trainer(blobs: DataModule) -> None:
    teacher = small(seed=1)

    def undropped() -> nn.Module:
        student = small()
        student.dropout.p = 0.0
        return student

    whole = replace(QUICK, batch_size=96)
    batch = next(blobs.train.iter_batches(96, augmentation=blobs.augmentation))
    for alpha in (0.0, 0.5, 1.0):
        run = fit(undropped(), blobs, teacher=teacher, method=Logit(8.0, alpha), epochs=1, recipe=whole)
        # One step: the history holds the loss of the untouched student on the very first batch.
        with torch.no_grad():
            outputs = undropped().train()(batch.images), teacher.eval()(batch.images)
        logs = [F.log_softmax(logits / 8, 1) for logits in outputs]
        kl = F.kl_div(*logs, reduction="batchmean", log_target=True).item()
        assert run.rows[0]["soft"] == pytest.approx((1 - alpha) * 64 * kl, rel=1e-4)


def test_rule_3_the_teacher_sees_the_students_images(blobs: DataModule) -> None:
    images: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
    student, teacher = small(), small(seed=1)
    for name, model in {"student": student, "teacher": teacher}.items():
        model.register_forward_pre_hook(
            lambda m, i, name=name: images[name].append(i[0].clone()) if name == "teacher" or m.training else None
        )
    fit(student, blobs, teacher=teacher)
    steps = list(zip(images["student"], images["teacher"][1:], strict=True))
    assert len(steps) == 6
    assert all(torch.equal(a, b) for a, b in steps)
    first, second = (torch.cat([a for a, _ in steps[i : i + 3]]).flatten(1).sum(1).sort()[0] for i in (0, 3))
    assert not torch.equal(first, second)  # the second epoch is another view


@pytest.mark.parametrize("views", [1, 2])
def test_rule_3_cached_outputs_train_the_same_student_as_live_ones(blobs: DataModule, views: int) -> None:
    teacher = small(seed=1, width=6)
    method = Logit() + Feature({"layer2": "layer2"})
    stored = CachedTeacher.build(
        teacher, blobs.train, augmentation=blobs.augmentation, seed=5, views=views, layers=["layer2"], device="cpu",
        precision="fp32", progress=False,
    )  # fmt: skip
    cached, live = small(), small()
    fit(cached, blobs, teacher=stored, method=copy.deepcopy(method), seed=5, epochs=3)
    fit(live, blobs, teacher=teacher, method=method, seed=5, epochs=3, views=views)
    for name, value in live.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_more_views_than_the_cache_holds_are_refused_before_training(blobs: DataModule) -> None:
    stored = CachedTeacher.build(small(seed=1), blobs.train, augmentation=blobs.augmentation, views=2, progress=False)
    with pytest.raises(ValueError, match="3 views are asked for; the cache holds 2"):
        fit(small(), blobs, teacher=stored, views=3)


def test_equal_augmentations_are_the_same_to_a_cache(blobs: DataModule) -> None:
    stored = CachedTeacher.build(
        small(seed=1), blobs.train, augmentation=Augmentation(1, False, (1, 1)), progress=False
    )
    fit(small(), blobs, teacher=stored, augmentation=Augmentation(1, 0, [1.0, 1.0]), epochs=1)


def test_one_method_object_trains_two_students_alike(blobs: DataModule) -> None:
    method = HardLabels() + Feature({"layer2": "layer2"})
    runs = [fit(small(), blobs, teacher=small(seed=1, width=6), method=method) for _ in range(2)]
    assert same_weights(runs[0].student, runs[1].student)
    assert not list(method.parameters())
    fit(small(width=5), blobs, teacher=small(seed=1, width=6), method=method)  # and one of another width


def test_rule_3_a_cache_of_other_images_is_refused_before_training(blobs: DataModule) -> None:
    teacher = small(seed=1)
    stored = CachedTeacher.build(teacher, blobs.train, augmentation=blobs.augmentation, seed=0, progress=False)
    student = small()
    before = copy.deepcopy(student)
    with pytest.raises(ValueError, match="another seed"):
        fit(student, blobs, teacher=stored, seed=1)
    with pytest.raises(ValueError, match="another augmentation"):
        fit(student, blobs, teacher=stored, augmentation=Augmentation(padding=2))
    with pytest.raises(ValueError, match="another data"):
        fit(student, blobs.subset(60), teacher=stored)
    assert same_weights(student, before)


def test_a_network_of_ones_own_may_name_its_classes(blobs: DataModule) -> None:
    """As a file's network does, which has a description beside them."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    network.classes = blobs.classes  # type: ignore[assignment]
    fit = train.fit(network, blobs, epochs=1, device="cpu", precision="fp32", progress=False)
    assert fit.student.classes == blobs.classes
    evaluation.warn_of_other_images("student", network, blobs)


def test_a_student_says_which_images_it_was_trained_on(blobs: DataModule) -> None:
    """Whatever its file said before, and if it was a checkpoint, which does not name classes."""
    network = models.build("resnet8", num_classes=3, in_channels=1, seed=0, image_size=5)
    train.fit(network, blobs, epochs=1, device="cpu", precision="fp32", progress=False)
    assert (network.classes, network.config["image_size"]) == (blobs.classes, blobs.image_size)


def trained_size_in_warning(network: nn.Module, blobs: DataModule) -> int | None:
    """The pixels of a side that a warning says the network was trained on; None without a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluation.warn_of_other_images("student", network, replace(blobs, image_size=9))
    found = [re.search(r"trained on images of (\d+) pixels", str(one.message)) for one in caught]
    assert None not in found
    return int(found[0][1]) if found and found[0] else None


def test_after_a_loop_of_ones_own_the_size_that_was_built_is_not_said_to_be_trained_on(
    blobs: DataModule, tmp_path: Path
) -> None:
    network = models.build("resnet8", num_classes=3, in_channels=1, seed=0)  # 28 pixels, which it depends on in nothing
    network.classes = blobs.classes  # type: ignore[assignment]
    for name in ("first", "second"):  # the second is a copy of a file
        assert trained_size_in_warning(network, blobs) is None
        models.save(network, tmp_path / name)
        network = models.load(tmp_path / name)
        assert network.classes == blobs.classes
    models.save(models.build("resnet8", num_classes=3, seed=0), tmp_path / "third", classes=["a", "b", "c"])
    assert trained_size_in_warning(models.load(tmp_path / "third"), blobs) is None


def test_the_size_that_fit_saw_is_said_to_be_trained_on(blobs: DataModule, tmp_path: Path) -> None:
    network = models.build("resnet8w2", num_classes=3, in_channels=1, seed=0)
    train.fit(network, blobs.subset(16), epochs=1, device="cpu", precision="fp32", progress=False)
    for name in ("first", "second"):
        assert trained_size_in_warning(network, blobs) == blobs.image_size
        assert trained_size_in_warning(copy.deepcopy(network), blobs) == blobs.image_size
        models.save(network, tmp_path / name)
        network = models.load(tmp_path / name)
    network.classes = ("other", "classes", "now")  # after a loop of one's own, which may have seen any size
    assert trained_size_in_warning(network, blobs) is None
    network = models.load(tmp_path / "first")
    train.fit(network, [(torch.zeros(4, 1, 9, 9), torch.arange(4) % 3)], epochs=1, device="cpu", progress=False)
    network.classes = blobs.classes
    assert trained_size_in_warning(network, blobs) is None


def test_an_older_file_that_names_classes_says_the_size_of_its_images(blobs: DataModule) -> None:
    assert trained_size_in_warning(models.load("resnet8-fashion"), blobs) == 28


class WithItsOwnNames(nn.Module):
    """A network that keeps something else under the names that a file of kdlib's uses."""

    def __init__(self, normalization: Any) -> None:
        super().__init__()
        self.normalization, self.fc = normalization, nn.Linear(64, 3)
        self.config = Settings(image_size=(8, 8), act=nn.GELU)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert self.config.image_size == (8, 8)
        values = self.normalization(images) if isinstance(self.normalization, nn.Module) else images
        return self.fc(self.config.act()(values).flatten(1))


class Settings(dict[str, Any]):
    """A dictionary whose entries are attributes too, as libraries of settings have them."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("normalization", [nn.BatchNorm2d(1), "none"])
def test_what_a_network_of_ones_own_calls_so_is_left_alone(
    blobs: DataModule, tmp_path: Path, normalization: Any
) -> None:
    network = WithItsOwnNames(normalization)
    run = train.fit(
        network, blobs, epochs=1, device="cpu", precision="fp32", progress=False, checkpoint=tmp_path / "checkpoint"
    )
    assert run.test_accuracy is not None
    assert (network.normalization, network.config) == (normalization, Settings(image_size=(8, 8), act=nn.GELU))
    evaluation.warn_of_other_images("student", network, blobs)
    with pytest.raises(ValueError, match=r"not made by models\.build"):
        models.save(network, tmp_path / "student.safetensors")


def test_a_saved_student_names_the_classes_it_was_trained_with(blobs: DataModule, tmp_path: Path) -> None:
    network = models.build("resnet8", num_classes=3, in_channels=1, seed=0, image_size=8)
    train.fit(network, blobs, epochs=1, device="cpu", precision="fp32", progress=False)
    for name in ("first", "second"):  # the second is a copy of a file
        models.save(network, tmp_path / f"{name}.safetensors")
        network = models.load(tmp_path / f"{name}.safetensors")
        assert network.classes == blobs.classes
    train.fit(network, [(torch.zeros(4, 1, 8, 8), torch.arange(4) % 3)], epochs=1, device="cpu", progress=False)
    assert not hasattr(network, "classes")  # these may be others, and are not known
    network.classes = ("only", "two")  # of its own code: the file could not be opened
    models.save(network, tmp_path / "third.safetensors")
    assert not hasattr(models.load(tmp_path / "third.safetensors"), "classes")


def test_rule_4_the_test_set_is_read_once_after_all_else(blobs: DataModule) -> None:
    log: list[str] = []
    parts = {name: Watched(getattr(blobs, name), name, log) for name in ("train", "validation", "test")}
    watched = replace(blobs, **parts)
    run = fit(small(), watched, epochs=3)
    assert log.count("test") == 1
    assert log[-1] == "test"
    assert log.count("validation") == 3
    assert run.test_accuracy is not None
    log.clear()
    assert fit(small(), watched, test=False).test_accuracy is None
    assert "test" not in log


def test_a_callback_after_each_epoch_does_not_change_the_run(blobs: DataModule) -> None:
    seen: dict[int, nn.Module] = {}

    def keep(epoch: int, student: nn.Module) -> None:
        assert torch.rand(()) >= 0  # a callback that uses up random numbers
        seen[epoch] = small()
        seen[epoch].load_state_dict(student.state_dict())

    run = fit(small(), blobs, epochs=3, on_epoch_end=keep)
    assert same_weights(run.student, fit(small(), blobs, epochs=3).student)
    assert list(seen) == [1, 2, 3]
    assert same_weights(seen[3], run.student)
    assert not same_weights(seen[2], seen[3])


def test_rule_5_same_seed_same_bits_and_another_seed_other_ones(blobs: DataModule) -> None:
    runs = [fit(small(), blobs, seed=seed).student for seed in (3, 3, 4)]
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


def test_rule_5_training_leaves_the_global_random_state_alone(blobs: DataModule) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(small(), blobs, teacher=small(seed=1), method=HardLabels() + Feature({"layer2": "layer2"}))
    assert torch.equal(torch.rand(3), expected)


class Stop(Exception):
    pass


def fit_with_checkpoints(
    student: nn.Module, blobs: DataModule, path: Path, optimizer: str, resume: bool
) -> train.Result:
    """Nine steps in three epochs, with a checkpoint after every second step and every epoch."""
    method = Logit() + Feature({"layer2": "layer2"}) + Relation({"layer1": "layer1", "layer2": "layer2"})
    return fit(
        student,
        blobs,
        teacher=small(seed=1, width=6),
        method=method,
        recipe=Recipe(optimizer, 0.01, batch_size=32, clip=1.0),
        epochs=3,
        checkpoint=path,
        checkpoint_every=2,
        resume=resume,
    )


@pytest.fixture(scope="module")
def never_stopped(blobs: DataModule, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], train.Result]:
    """The run of `fit_with_checkpoints` by each optimiser that a test asks for, made once."""

    @cache
    def make(optimizer: str) -> train.Result:
        path = tmp_path_factory.mktemp("whole") / "checkpoint"
        return fit_with_checkpoints(small(), blobs, path, optimizer, resume=False)

    return make


def stop_at(step: int, blobs: DataModule, path: Path, optimizer: str) -> None:
    """Stop the run of `fit_with_checkpoints` just before this step."""
    train_step = Trainer.train_step

    def stopping(self: Any, batch: Any) -> Any:
        if self.step == step:
            raise Stop
        return train_step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopping)
        with pytest.raises(Stop):
            fit_with_checkpoints(small(), blobs, path, optimizer, resume=True)


# Each optimiser in mid-epoch and between epochs; one of them after every step.
STOPS = [*(("sgd", step) for step in range(2, 9)), *((kind, step) for kind in ("adamw", "rmsprop") for step in (3, 5))]


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "stop"), STOPS)
def test_rule_5_stopped_anywhere_and_resumed_is_never_stopped(
    blobs: DataModule, tmp_path: Path, never_stopped: Callable[[str], train.Result], optimizer: str, stop: int
) -> None:
    whole, path = never_stopped(optimizer), tmp_path / "checkpoint"
    stop_at(stop, blobs, path, optimizer)
    # other initial weights: everything must come from the checkpoint
    resumed = fit_with_checkpoints(small(seed=99), blobs, path, optimizer, resume=True)
    assert same_weights(resumed.student, whole.student)
    assert same_weights(resumed.method, whole.method)
    keep = [k for k in whole.rows[0] if k != "seconds"]
    assert [[row[k] for k in keep] for row in resumed.rows] == [[row[k] for k in keep] for row in whole.rows]
    assert resumed.test_accuracy == whole.test_accuracy


def test_stopped_before_the_first_checkpoint_it_starts_anew(
    blobs: DataModule, tmp_path: Path, never_stopped: Callable[[str], train.Result]
) -> None:
    path = tmp_path / "checkpoint"
    stop_at(1, blobs, path, "sgd")
    assert not path.exists()
    anew = fit_with_checkpoints(small(), blobs, path, "sgd", resume=True)
    assert same_weights(anew.student, never_stopped("sgd").student)
    assert path.exists()


def test_rule_6_a_non_finite_loss_names_step_terms_and_checkpoint(blobs: DataModule, tmp_path: Any) -> None:
    class Breaks(HardLabels):
        calls = 0

        def forward(self, *args: Any) -> methods.Terms:
            self.calls += 1
            terms = super().forward(*args)
            return terms if self.calls < 5 else {**terms, "odd": terms["hard"] * float("nan")}

    path = tmp_path / "checkpoint"
    student = small()
    with pytest.raises(
        FloatingPointError, match=r"step 4 of 6: hard = [\d.]+, odd = nan.*checkpoint is .*checkpoint\."
    ):
        fit(student, blobs, method=Breaks(), checkpoint=path)
    tensors, _ = load_tensors(path)
    assert all(torch.isfinite(value).all() for name, value in tensors.items() if value.is_floating_point())
    assert all(torch.isfinite(p).all() for p in student.parameters())
    with pytest.raises(DivergedError, match="No checkpoint was written") as caught:
        fit(small(), blobs, method=Breaks())
    again = pickle.loads(pickle.dumps(caught.value))  # as it comes from another process
    assert (str(again), again.reason) == (str(caught.value), caught.value.reason)
    assert again.reason.endswith("odd = nan.")


@pytest.fixture
def read_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of four steps are read at once, as on an accelerator (there it is fifty)."""
    make = TrainingLog.__init__

    def make_seldom(log: TrainingLog, *args: Any) -> None:
        make(log, *args)
        log.read_every, log.checks_every_step = 4, False

    monkeypatch.setattr(TrainingLog, "__init__", make_seldom)


def test_values_read_seldom_add_up_to_the_same_history(blobs: DataModule, request: pytest.FixtureRequest) -> None:
    often = fit(small(), blobs, epochs=3, recipe=replace(QUICK, batch_size=16))
    request.getfixturevalue("read_seldom")
    seldom = fit(small(), blobs, epochs=3, recipe=replace(QUICK, batch_size=16))
    assert same_weights(often.student, seldom.student)
    for a, b in zip(often.rows, seldom.rows, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


@pytest.mark.usefixtures("read_seldom")
def test_the_wait_for_an_accelerator_at_the_end_of_an_epoch_is_training_time(
    blobs: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = TrainingLog.read

    def waiting(log: TrainingLog) -> float | None:
        time.sleep(0.1)
        return read(log)

    monkeypatch.setattr(TrainingLog, "read", waiting)
    run = fit(small(), blobs, epochs=3)  # of three steps each: values are read after the last of them
    assert run.seconds >= 0.3
    assert [row["seconds"] >= 0.1 * row["epoch"] for row in run.rows] == [True] * 3


@pytest.mark.usefixtures("read_seldom")
def test_a_non_finite_loss_that_is_seen_late_is_named_by_its_own_step_and_never_saved(
    blobs: DataModule, tmp_path: Any
) -> None:
    class Breaks(HardLabels):
        calls = 0

        def forward(self, *args: Any) -> methods.Terms:
            self.calls += 1
            return {
                name: term * (float("inf") if self.calls == 8 else 1) for name, term in super().forward(*args).items()
            }

    path = tmp_path / "checkpoint"
    options = {"method": Breaks(), "checkpoint": path, "checkpoint_every": 2, "recipe": replace(QUICK, batch_size=16)}
    with pytest.raises(FloatingPointError, match="step 7 of 12: hard = inf"):
        fit(small(), blobs, **options)
    tensors, metadata = load_tensors(path)
    assert metadata["facts"]["step"] == 6
    assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())


def test_rule_7_a_checkpoint_is_safetensors_and_an_interrupted_write_keeps_the_last(
    blobs: DataModule, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint"
    fit(small(), blobs, checkpoint=path)
    first = path.read_bytes()
    load_tensors(path)  # would refuse a pickle

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdlib.files.save_file", full)
    with pytest.raises(OSError, match=r"Could not write .*checkpoint: No space left.*unchanged.*Free some space"):
        fit(small(), blobs, checkpoint=path)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_the_student_in_a_checkpoint_can_be_loaded(blobs: DataModule, tmp_path: Any) -> None:
    student = models.build("article-student", num_classes=3, in_channels=1, image_size=8, seed=0)
    fit(student, blobs, checkpoint=tmp_path / "checkpoint")
    loaded = models.load(tmp_path / "checkpoint")
    assert same_weights(loaded, student)
    assert loaded.config == student.config
    assert not loaded.training
    fit(small(), blobs, checkpoint=tmp_path / "unnamed")
    with pytest.raises(ValueError, match="does not say which architecture"):
        models.load(tmp_path / "unnamed")


# --- resuming from the wrong thing -------------------------------------------------------------------------------


def test_a_checkpoint_of_another_run_is_refused_and_says_what_differs(blobs: DataModule, tmp_path: Any) -> None:
    path = tmp_path / "checkpoint"
    fit(small(), blobs, checkpoint=path)
    content = path.read_bytes()
    for change, word in (
        ({"seed": 1}, "seed"),
        ({"epochs": 3}, "epochs"),
        ({"recipe": replace(QUICK, learning_rate=0.2)}, "recipe"),
        ({"method": HardLabels(0.1)}, "method"),
        ({"augmentation": Augmentation()}, "augmentation"),
        ({"views": 1}, "views"),
    ):
        with pytest.raises(ValueError, match=f"belongs to another run: it was {{'{word}'"):
            fit(small(), blobs, checkpoint=path, resume=True, **change)
    with pytest.raises(ValueError, match="belong to another architecture"):
        fit(small(width=5), blobs, checkpoint=path, resume=True)
    assert path.read_bytes() == content


def test_a_checkpoint_notes_its_teacher_its_strides_and_the_options_of_its_loss(
    blobs: DataModule, tmp_path: Any
) -> None:
    path = tmp_path / "checkpoint"
    options = {"checkpoint": path, "teacher": small(1), "method": Logit(loss="dkd", beta=8)}
    fit(small(), blobs, **options)
    strided = small()
    strided.conv2.stride = (1, 1)  # the weights have the same shapes
    for change, word in (({"teacher": small(2)}, "teacher"), ({"method": Logit(loss="dkd", beta=0.5)}, "method")):
        with pytest.raises(ValueError, match=f"belongs to another run: it was {{'{word}'"):
            fit(small(), blobs, **{**options, **change}, resume=True)
    with pytest.raises(ValueError, match="same weights but other strides"):
        fit(strided, blobs, **options, resume=True)
    stored = CachedTeacher.build(
        small(1), blobs.train, augmentation=blobs.augmentation, precision="fp32", progress=False
    )
    with pytest.raises(ValueError, match="it was {'views'"):  # the same teacher, but its outputs for one view
        fit(small(), blobs, **{**options, "teacher": stored}, resume=True)


@pytest.mark.filterwarnings("ignore:The training has changed dropout.p of its student")
def test_a_run_stays_the_same_when_only_irrelevant_settings_change(blobs: DataModule, tmp_path: Any) -> None:
    path = tmp_path / "checkpoint"

    def softer(epoch: int, student: nn.Module) -> None:
        student.dropout.p = 0.1 / epoch

    def weighed(student: torch.Tensor, teacher: torch.Tensor, weigh: Any) -> torch.Tensor:
        return weigh(student - teacher).square().mean()

    def method() -> Method:
        return Logit(loss=weighed, weigh=lambda gap: 2 * gap)  # another function object each time

    fit(small(), blobs, teacher=small(1), method=method(), checkpoint=path, on_epoch_end=softer)
    fit(small(), blobs, teacher=small(1), method=method(), checkpoint=path, on_epoch_end=softer, resume=True)
    fit(small(), blobs, teacher=small(1), method=HardLabels(), checkpoint=tmp_path / "hard")  # uses no teacher
    fit(small(), blobs, teacher=small(2), method=HardLabels(), checkpoint=tmp_path / "hard", resume=True)


def test_an_address_in_memory_is_no_part_of_a_run(blobs: DataModule, tmp_path: Any) -> None:
    class Applies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.function = lambda x: 2 * x  # another object, at another address, in each process

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.function(x)

        def extra_repr(self) -> str:
            return repr(self.function)

    def applying(seed: int) -> nn.Module:
        model = small(seed)
        model.add_module("last", Applies())
        return model

    first, second = applying(1), applying(1)
    assert repr(first) != repr(second)
    assert FrozenTeacher(first).fingerprint == FrozenTeacher(second).fingerprint
    path = tmp_path / "checkpoint"
    fit(applying(0), blobs, teacher=first, checkpoint=path)
    fit(applying(0), blobs, teacher=second, checkpoint=path, resume=True)


def test_a_checkpoint_of_an_older_version_notes_less_and_is_accepted(blobs: DataModule, tmp_path: Any) -> None:
    path = tmp_path / "checkpoint"
    fit(small(), blobs, checkpoint=path)
    tensors, metadata = load_tensors(path)
    for name in ("structure", "teacher"):
        del metadata["facts"]["run"][name]
    save_tensors(path, tensors, metadata)
    assert fit(small(), blobs, checkpoint=path, resume=True).rows[-1]["epoch"] == 2


@pytest.mark.parametrize(
    ("was", "now"),
    [("cuda", "cuda:0"), ("cuda:0", "cuda"), ("cuda:0", "cuda:1"), ("mps", "mps:0")],
)
def test_a_run_goes_on_on_another_gpu_of_the_machine(tmp_path: Path, was: str, now: str) -> None:
    checkpointer, cpu = Checkpointer(tmp_path / "checkpoint"), torch.device("cpu")
    modules = {"student": nn.Linear(2, 2)}
    optimizer = torch.optim.SGD(modules["student"].parameters(), 0.1)
    facts: dict[str, Any] = {"step": 1, "seconds": 1.0, "rows": [], "sums": {}}
    facts |= {"config": None, "run": {"precision": f"{was}, bfloat16"}}
    checkpointer.save(modules, optimizer, plain_groups(optimizer), facts, cpu)
    assert checkpointer.load(modules, optimizer, {"precision": f"{now}, bfloat16"}, cpu)["step"] == 1
    for other in (f"{now}, float32", "cpu, bfloat16"):
        with pytest.raises(ValueError, match=f"another run: it was .*'{was}, bfloat16'}}, now .*'{other}'"):
            checkpointer.load(modules, optimizer, {"precision": other}, cpu)


def test_a_teacher_may_keep_more_than_tensors(blobs: DataModule, tmp_path: Any) -> None:
    class Notes(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    teacher = nn.Sequential(nn.Flatten(), Notes(64, 3))
    fit(small(), blobs, teacher=teacher, method=Logit(), checkpoint=tmp_path / "checkpoint")


def test_what_a_checkpoint_says_is_read_without_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    save_tensors(path, {"student/weight": torch.zeros(1000)}, {"facts": {"seconds": 2.5}})
    with MemoryBlocks() as memory:
        assert trained_seconds(path) == 2.5
        Checkpointer(path).check(resume=False)
    assert max(memory.sizes.values(), default=0) < 1000


@pytest.mark.parametrize("damage", ["missing", "truncated", "pickle", "no text", "no description", "a folder"])
def test_a_file_that_is_no_checkpoint_has_no_seconds_and_is_not_replaced(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "run.checkpoint"
    if damage == "a folder":
        path.mkdir()
    elif damage == "pickle":
        torch.save({"facts": {"seconds": 2.5}}, path)
    elif damage in ("no text", "no description"):
        save_file({"a": torch.zeros(2)}, path, {"kdlib": "{" if damage == "no text" else "[]"})
    elif damage == "truncated":
        save_tensors(path, {"a": torch.zeros(1000)}, {"facts": {"seconds": 2.5}})
        path.write_bytes(path.read_bytes()[:-8])
    assert trained_seconds(path) == 0
    if damage not in ("missing", "a folder"):
        with pytest.raises(ValueError, match="is there and is no checkpoint of a run"):
            Checkpointer(path).check(resume=False)


def test_what_no_checkpoint_can_hold_is_said_before_the_training(blobs: DataModule, tmp_path: Path) -> None:
    class Counts(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += self.training
            return super().forward(x)

        def get_extra_state(self) -> dict[str, int]:
            return {"version": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    student = nn.Sequential(nn.Flatten(), Counts(64, 3))
    for ema_decay in (None, 0.9):
        options = {"ema_decay": ema_decay, "checkpoint": tmp_path / "checkpoint"}
        with pytest.raises(ValueError, match=r"student/1\._extra_state.*get_extra_state.*buffer"):
            fit(student, blobs, **options)
    for count in (measure.bytes_saved, measure.zipped_bytes):
        with pytest.raises(ValueError, match=r"1\._extra_state.*get_extra_state.*buffer"):
            count(student)
    assert student[1].calls == 0
    fit(student, blobs)  # without a checkpoint it need not be held


def test_a_constant_may_be_infinite_and_a_statistic_may_not(blobs: DataModule, tmp_path: Any) -> None:
    masked = small()
    masked.register_parameter("mask", nn.Parameter(torch.tensor([-torch.inf]), requires_grad=False))
    fit(masked, blobs)

    class Bursts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 1e25 if self.training else x

    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Bursts(), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(FloatingPointError, match="these are not finite: 3.running_var"):
        fit(student, blobs, checkpoint=tmp_path / "checkpoint", checkpoint_every=1)


CLIFF = {"left": 0}


class Cliff(HardLabels):
    """Hard labels and a finite term whose gradient is not finite in one call."""

    def __init__(self, call: int) -> None:
        super().__init__()
        CLIFF["left"] = call  # no attribute: by these a resumed run is recognized
        self.zero = nn.Parameter(torch.zeros(1))

    def forward(self, *args: Any) -> methods.Terms:
        CLIFF["left"] -= 1
        return super().forward(*args) | {"cliff": (self.zero.sqrt() if CLIFF["left"] == 0 else self.zero).sum()}


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("call", [4, 5, 6])  # of 6 steps: 4 and 6 are followed by a checkpoint
def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(
    blobs: DataModule, tmp_path: Any, call: int, every: int | None
) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(FloatingPointError, match=r"not finite.*last good checkpoint is .*checkpoint\."):
        fit(small(), blobs, method=Cliff(call), checkpoint=path, checkpoint_every=every)
    tensors, _ = load_tensors(path)
    assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())
    assert (
        fit(small(), blobs, method=Cliff(0), checkpoint=path, checkpoint_every=every, resume=True).rows[-1]["epoch"]
        == 2
    )


def test_a_run_that_diverges_at_once_does_not_name_the_checkpoint_of_another(blobs: DataModule, tmp_path: Any) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(FloatingPointError, match="last good checkpoint is"):
        fit(small(), blobs, method=Cliff(5), checkpoint=path)
    with pytest.raises(FloatingPointError, match="No checkpoint was written"):
        fit(small(), blobs, method=Cliff(2), checkpoint=path)
    with pytest.raises(FloatingPointError, match="last good checkpoint is"):
        fit(small(), blobs, method=Cliff(2), checkpoint=path, resume=True)


def test_logits_that_are_not_finite_end_a_run(blobs: DataModule) -> None:
    class Overflows(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if self.training else images * torch.inf

    student = small()
    student.add_module("last", Overflows())
    with pytest.raises(FloatingPointError, match="validation loss is not finite after epoch 1 of 2"):
        fit(student, blobs)


@pytest.mark.parametrize("damage", ["truncated", "pickle", "weights"])
def test_a_damaged_checkpoint_is_refused_and_kept(blobs: DataModule, tmp_path: Any, damage: str) -> None:
    path = tmp_path / "checkpoint"
    fit(small(), blobs, checkpoint=path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "pickle":
        torch.save({"student": 1}, path)
    else:
        models.save(models.build("resnet8", num_classes=3, in_channels=1), path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="not the state of a training run|not a readable safetensors file"):
        fit(small(), blobs, checkpoint=path, resume=True)
    assert path.read_bytes() == content


# --- what does not fit together ----------------------------------------------------------------------------------


def test_pieces_that_do_not_fit_are_refused_with_advice(blobs: DataModule) -> None:
    teacher = small(seed=1)
    with pytest.raises(ValueError, match="Logit needs a teacher"):
        fit(small(), blobs, method=Logit())
    with pytest.raises(ValueError, match="share weights.*second model"):
        fit(teacher, blobs, teacher=teacher)
    half_shared = small()
    half_shared.fc = teacher.fc
    with pytest.raises(ValueError, match="share weights"):
        fit(half_shared, blobs, teacher=FrozenTeacher(teacher))
    with pytest.raises(ValueError, match="student gives 4 logits, but blobs has 3 classes.*num_classes=3"):
        fit(small(classes=4), blobs)
    with pytest.raises(ValueError, match="teacher gives 5 logits"):
        fit(small(), blobs, teacher=small(classes=5))
    colour = nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten())
    with pytest.raises(ValueError, match=r"student cannot take images of 1 x 8 x 8.*in_channels=1"):
        fit(colour, blobs)
    with pytest.raises(ValueError, match=r"teacher cannot take images of 1 x 8 x 8.*in_channels=1"):
        fit(small(), blobs, teacher=copy.deepcopy(colour))
    with pytest.raises(ValueError, match="no layer in Sequential named 'layer9'. Did you mean 'layer"):
        fit(small(), blobs, teacher=teacher, method=HardLabels() + Feature({"layer9": "layer1"}))
    with pytest.raises(ValueError, match="no layer in Sequential named 'stage1'"):
        fit(small(), blobs, teacher=teacher, method=HardLabels() + Feature({"layer1": "stage1"}))
    with pytest.raises(ValueError, match="epochs is a whole number of at least 1; got 0"):
        fit(small(), blobs, epochs=0)
    with pytest.raises(ValueError, match="checkpoint_every is a whole number of at least 1; got 0"):
        fit(small(), blobs, checkpoint_every=0)
    with pytest.raises(ValueError, match="1 training images; at least 2"):
        fit(small(), blobs.subset(1))


def test_a_lack_of_memory_is_not_taken_for_a_wrong_shape(blobs: DataModule) -> None:
    class Greedy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    class Huge(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")

    class Whole(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1).long().softmax(1)

    with pytest.raises(torch.OutOfMemoryError):
        train.evaluate(Greedy(), blobs.test)
    with pytest.raises(RuntimeError, match="^DefaultCPUAllocator"):
        train.evaluate(Huge(), blobs.test)
    with pytest.raises(RuntimeError, match="not implemented for 'Long'"):
        train.evaluate(Whole(), blobs.test)
    with pytest.raises(ValueError, match="model cannot take images of 1 x 8 x 8"):
        train.evaluate(nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()), blobs.test)


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("The operator 'aten::im2col' is not currently implemented for the MPS device."),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_what_a_gpu_lacks_is_not_taken_for_a_wrong_shape(error: RuntimeError) -> None:
    with pytest.raises(type(error)) as caught, explain_shape_errors("student", torch.zeros(2, 3, 32, 32)):
        raise error
    assert caught.value is error


def test_a_network_whose_layers_do_not_fit_each_other_is_not_said_to_lack_batches() -> None:
    images = torch.zeros(2, 3, 8, 8)
    for network in (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Flatten(), nn.BatchNorm2d(4)),
    ):
        with pytest.raises(ValueError, match=r"^expected \dD"), explain_shape_errors("student", images):
            network(images)


TWO_DEVICES = {  # in torch's own words
    "CUDA": "Input type (torch.FloatTensor) and weight type (torch.cuda.FloatTensor) should be the same or input "
    "should be a MKLDNN tensor and weight is a dense tensor",
    "a CPU": "Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same",
    "MPS": "Input type (torch.FloatTensor) and weight type (MPSFloatType) should be the same",
    "an operator": "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "a linear layer on MPS": "Placeholder storage has not been allocated on MPS device!",
}


@pytest.mark.parametrize("text", TWO_DEVICES.values(), ids=TWO_DEVICES)
@pytest.mark.parametrize("inputs", [torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, dtype=torch.uint8), {"a": 1}])
def test_a_batch_on_another_device_is_not_taken_for_a_wrong_shape(text: str, inputs: Any) -> None:
    advice = r"student and what it was given lie on different devices.*move_batch\(batch, device\).*\.to\(device\)"
    with pytest.raises(ValueError, match=advice), explain_shape_errors("student", inputs):
        raise RuntimeError(text)


def test_bytes_on_a_gpu_are_not_taken_for_a_batch_on_another_device() -> None:
    with pytest.raises(ValueError, match=r"images\.float\(\)"), explain_shape_errors("student", torch.zeros(2).byte()):
        raise RuntimeError(TWO_DEVICES["CUDA"].replace("torch.FloatTensor", "torch.cuda.ByteTensor"))


def test_a_custom_loss_that_gives_no_scalar_is_refused(blobs: DataModule) -> None:
    for method in (
        Logit(loss=F.mse_loss, reduction="none"),
        HardLabels() + Feature({"layer2": "layer2"}, F.mse_loss, reduction="none"),
    ):
        with pytest.raises(ValueError, match=r"term '.*' of the loss has shape .* take its \.mean\(\)"):
            fit(small(), blobs, teacher=small(1), method=method)


def test_a_custom_loss_may_be_an_object_without_a_hash(blobs: DataModule) -> None:
    @dataclass
    class Squared:
        scale: float

        def __call__(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            return self.scale * (student - teacher).square().mean()

    run = fit(small(), blobs, teacher=small(1), method=HardLabels() + Feature({"layer2": "layer2"}, Squared(0.5)))
    assert run.rows[-1]["Squared layer2"] > 0


def test_a_feature_loss_on_the_logits_trains_the_classifier_and_is_not_warned_about(blobs: DataModule) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = fit(small(), blobs, teacher=small(1), method=Feature({"fc": "fc"}), epochs=1)
    assert not torch.equal(run.student.fc.weight, small().fc.weight)


def test_labels_that_torch_would_ignore_are_refused_by_logits_too() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, -100, 2])
    with pytest.raises(ValueError, match="labels must lie in"):
        Logit()(ModelOutput(logits), ModelOutput(logits), labels)


def test_refused_pieces_are_given_back_as_they_were(blobs: DataModule) -> None:
    teacher = small(seed=1).train()
    with pytest.raises(ValueError, match="layer9"):
        fit(small(), blobs, teacher=teacher, method=HardLabels() + Feature({"layer1": "layer9"}))
    assert teacher.training
    assert not any(module._forward_hooks for module in teacher.modules())


def test_probabilities_instead_of_logits_are_warned_about(blobs: DataModule) -> None:
    soft = small(seed=1)
    soft.add_module("softmax", nn.Softmax(1))
    with pytest.warns(UserWarning, match="probabilit"):
        fit(small(), blobs, teacher=soft, epochs=1)


def test_a_method_that_leaves_the_classifier_alone_is_warned_about(blobs: DataModule) -> None:
    student = small()
    before = student.fc.weight.clone()
    with pytest.warns(UserWarning, match="classifier keeps its initial weights"):
        fit(student, blobs, teacher=small(seed=1), method=Feature({"layer2": "layer2"}), epochs=1)
    assert torch.equal(student.fc.weight, before)


def test_a_dataset_smaller_than_a_batch_is_one_batch(blobs: DataModule) -> None:
    run = fit(small(), blobs.subset(5), epochs=3)
    assert len(run.rows) == 3


# --- what the trainer does ------------------------------------------------------------------------------------------


def test_defaults_are_hard_labels_without_and_logits_with_a_teacher(blobs: DataModule) -> None:
    assert isinstance(fit(small(), blobs).method, HardLabels)
    method = fit(small(), blobs, teacher=small(seed=1)).method
    assert isinstance(method, Logit)
    assert (method.temperature, method.alpha) == (4.0, 0.1)


def test_history_is_a_table_with_every_term(blobs: DataModule) -> None:
    run = fit(small(), blobs, teacher=small(seed=1), method=Logit() + Feature({"layer2": "layer2"}), epochs=3)
    table = run.history
    assert list(table.index) == [1, 2, 3]
    assert {"seconds", "loss", "hard", "soft", "hint layer2", "train_accuracy", "validation_accuracy"} <= set(table)
    torch.testing.assert_close(
        torch.tensor((table["hard"] + table["soft"] + table["hint layer2"]).values), torch.tensor(table["loss"].values)
    )
    assert table["seconds"].is_monotonic_increasing
    assert run.validation_accuracy == table["validation_accuracy"].iloc[-1]
    assert run.seconds == table["seconds"].iloc[-1]


def test_it_learns_and_the_student_comes_back_ready_to_use(blobs: DataModule) -> None:
    run = fit(small(), blobs, epochs=15)
    assert run.test_accuracy > 0.9
    assert not run.student.training
    metrics = train.evaluate(run.student, blobs.test, device="cpu", precision="fp32")
    assert metrics.accuracy == run.test_accuracy


def test_the_methods_parameters_are_trained_and_clipped_with_the_students(
    blobs: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    clipped = []
    clip = nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        nn.utils, "clip_grad_norm_", lambda p, norm: clipped.append((len(list(p)), norm)) or clip(p, norm)
    )
    student, method = small(), Feature({"layer2": "layer2"}) + HardLabels()
    run = fit(student, blobs, teacher=small(seed=1, width=6), method=method, recipe=replace(QUICK, clip=0.5), epochs=1)
    count = len(list(student.parameters())) + 1
    assert clipped == [(count, 0.5)] * 3
    torch.manual_seed(0)
    fresh = nn.Conv2d(8, 12, 1, bias=False).weight
    assert not torch.equal(run.method.parts[0].projectors[0].conv.weight, fresh)


def test_a_run_is_what_a_plain_loop_gives(blobs: DataModule) -> None:
    """Order, views, gradients of one batch alone, learning rate and clipping, written out."""
    recipe, students = replace(QUICK, clip=1.0), (small(), small())
    for student in students:
        student.dropout.p = 0.0
    student, expected = students
    fit(student, blobs, teacher=small(seed=1), method=Logit(2.0, 0.5), recipe=recipe, seed=3)
    teacher, optimizer = small(seed=1).eval(), recipe.make_optimizer(expected.parameters())
    for step in range(6):
        positions = epoch_order(blobs.train, 3, step // 3)[32 * (step % 3) :][:32]
        options = {"augmentation": blobs.augmentation, "seed": 3, "view": step // 3}
        (batch,) = blobs.train.iter_batches(32, sampler=positions, **options)
        with torch.no_grad():
            soft = F.softmax(teacher(batch.images) / 2, 1)
        logits = expected.train()(batch.images)
        loss = 0.5 * F.cross_entropy(logits, batch.labels)
        loss = loss + 0.5 * 4 * F.kl_div(F.log_softmax(logits / 2, 1), soft, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step, 6)
        optimizer.step()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_the_learning_rate_follows_the_recipe(blobs: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o, *a: rates.append(o.param_groups[1]["lr"]) or step(o, *a))
    fit(small(), blobs, recipe=replace(QUICK, schedule="one-cycle"))
    assert rates == [replace(QUICK, schedule="one-cycle").learning_rate_at(i, 6) for i in range(6)]


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_a_compiled_student_and_teacher_train_as_others_do(blobs: DataModule) -> None:
    method = Logit(4, 0.1) + Feature({"layer2": "layer2"})
    students = small(), small()
    for student in students:
        student.dropout.p = 0.0  # a compiled network draws other random numbers
    runs = [
        fit(student, blobs, teacher=small(7, width=6), method=method, compile=compiled)
        for student, compiled in zip(students, (False, True), strict=True)
    ]
    plain, compiled = runs
    assert compiled.device == "cpu, float32, compiled"
    for name, value in plain.student.state_dict().items():
        torch.testing.assert_close(compiled.student.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_the_sanity_check_changes_nothing_in_the_student(blobs: DataModule) -> None:
    class Checked(Exception):
        pass

    class Stops(HardLabels):
        def forward(self, *args: Any) -> methods.Terms:
            raise Checked

    student = small()
    before = copy.deepcopy(student)
    student.conv1.register_forward_hook(lambda m, i, o: None)
    method = Stops()
    with pytest.raises(Checked):
        fit(student, blobs, method=method, recipe=replace(QUICK, batch_size=96))
    # one training forward pass has run by then: batch statistics moved once, not twice, and no weight at all
    assert student.bn1.num_batches_tracked == before.bn1.num_batches_tracked + 1
    assert torch.equal(student.conv1.weight, before.conv1.weight)


def test_losses_are_computed_in_float32_when_the_networks_run_in_bfloat16(blobs: DataModule) -> None:
    types = set()

    class NotesTypes(Logit):
        layers = {"layer2": "layer2"}

        def forward(self, student: Any, teacher: Any, labels: torch.Tensor) -> methods.Terms:
            types.update({student.logits.dtype, teacher.logits.dtype, student.features["layer2"].dtype})
            return super().forward(student, teacher, labels)

    inner = []
    student = small()
    student.conv2.register_forward_hook(lambda m, i, out: inner.append(out.dtype))
    run = fit(student, blobs, teacher=small(seed=1), method=NotesTypes(), precision="bf16")
    assert types == {torch.float32}
    assert set(inner) == {torch.bfloat16}
    assert run.device == "cpu, bfloat16"
    assert all(p.dtype == torch.float32 for p in student.parameters())


def test_the_progress_bar_can_be_silenced(blobs: DataModule, capsys: pytest.CaptureFixture) -> None:
    fit(small(), blobs)
    assert capsys.readouterr().err == ""
    fit(small(), blobs, progress=True)
    assert "192/192" in capsys.readouterr().err  # two epochs of three batches of 32 images


def test_evaluate_agrees_with_a_plain_loop_and_leaves_the_model_alone(blobs: DataModule) -> None:
    model = small().train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    metrics = train.evaluate(model, blobs.test, device="cpu", precision="fp32", batch_size=7)
    assert [module.training for module in model.modules()] == modes
    images = blobs.test.images.float().div(255).sub(0.3).div(0.15)
    with torch.no_grad():
        logits = model.eval()(images)
    torch.testing.assert_close(metrics.logits, logits, rtol=1e-4, atol=1e-5)
    assert metrics.accuracy == (logits.argmax(1) == blobs.test.labels).double().mean().item()
    assert metrics.loss == pytest.approx(F.cross_entropy(logits, blobs.test.labels).item(), rel=1e-4)
    with pytest.raises(ValueError, match="empty"):
        train.evaluate(model, blobs.test.select(torch.arange(0)))


class Corner(nn.Module):
    """Looks at a corner of its images, and notes how many it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.calls: list[tuple[bool, int]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append((self.training, len(images)))
        return self.fc(images[:, 0, :2, :2].flatten(1))


def pictures(side: int, count: int, first: int = 0) -> InMemoryDataset:
    """Black ones, which take no memory."""
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, 1, side, side)
    numbers = torch.arange(count)
    return InMemoryDataset(images, numbers % 3, numbers + first, (0.5,), (0.5,))


@pytest.mark.parametrize(("side", "sizes"), [(8, [250, 1]), (224, [250, 1]), (1120, [10, 10, 2]), (3584, [1, 1])])
def test_larger_images_are_evaluated_in_smaller_batches(side: int, sizes: list[int]) -> None:
    network, split = Corner(), pictures(side, sum(sizes))
    train.evaluate(network, split, device="cpu", precision="fp32")
    assert [size for _, size in network.calls] == sizes
    network.calls.clear()
    train.evaluate(network, split.select(torch.arange(2)), batch_size=2, device="cpu", precision="fp32")
    assert [size for _, size in network.calls] == [2]  # a size that is given counts


@pytest.mark.parametrize(("batch_size", "sizes"), [(2, [10, 3]), (12, [12, 1])])
def test_what_is_trained_on_at_once_is_evaluated_at_once(batch_size: int, sizes: list[int]) -> None:
    parts = [pictures(1120, *numbers) for numbers in ((12, 0), (13, 12), (13, 25))]
    large = DataModule("large", tuple("abc"), *parts, augmentation=NO_AUGMENTATION, image_size=1120)
    network = Corner()
    fit(network, large, epochs=1, recipe=replace(QUICK, batch_size=batch_size))
    calls = [size for training, size in network.calls if not training]
    assert calls[-4:] == [*sizes, *sizes]  # validation and test


def test_large_images_that_workers_decode_are_evaluated_in_smaller_batches() -> None:
    class Source:
        """Images that are not in memory."""

        def __getitem__(self, number: int) -> tuple[Image.Image, int]:
            return Image.new("L", (1120, 1120)), 0

    def as_bytes(augmentation: Augmentation) -> Callable[[Image.Image], torch.Tensor]:
        return lambda image: torch.from_numpy(np.array(image))[None]

    network, numbers = Corner(), torch.arange(12)
    split = LazyDataset(Source(), numbers, numbers % 3, numbers, (0.5,), (0.5,), as_bytes, "black")
    train.evaluate(network, split, device="cpu", precision="fp32")
    assert [size for _, size in network.calls] == [10, 2]


# --- every family, on real images --------------------------------------------------------------------------------


def matching(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """A loss of the test's own: match the logits themselves, each row less its mean."""
    return F.mse_loss(student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True))


class Custom(Method):
    """A ten-line method of the test's own."""

    layers = {"avgpool": "avgpool"}

    def forward(self, student: Any, teacher: Any, labels: torch.Tensor) -> methods.Terms:
        return {"custom": F.smooth_l1_loss(student.features["avgpool"].mean(1), teacher.features["avgpool"].mean(1))}


LAYERS = {"layer1": "layer1", "layer2": "layer2", "layer3": "layer3"}
FAMILIES = {
    "logit": Logit(4, 0.1),
    "dkd": Logit(4, 0.1, loss="dkd"),
    "dist": Logit(1, 0.1, loss="dist"),
    "standardized": Logit(2, 0.1, loss="standardized_kd"),
    "own function": Logit(4, 0.1, loss=matching),
    "hint": HardLabels() + 5 * Feature({"layer3": "layer3"}),
    "attention": HardLabels() + 100 * Feature(LAYERS, loss="attention"),
    "vid": HardLabels() + 100 * Feature({"layer3": "layer3"}, loss="vid"),
    "fsp": HardLabels() + 10 * Relation(LAYERS),
    "layer correlation": HardLabels() + 10 * Relation(LAYERS, loss="layer_correlation"),
    "layer information": HardLabels() + 30 * Relation(LAYERS, loss="layer_information"),
    "rkd": HardLabels() + 10 * Relation({"avgpool": "avgpool"}, loss="rkd"),
    "similarity": HardLabels() + 1000 * Relation({"avgpool": "avgpool"}, loss="similarity"),
    "correlation congruence": HardLabels() + 10 * Relation({"avgpool": "avgpool"}, loss="correlation_congruence"),
    "own method": HardLabels() + 10 * Custom(),
    "logit + feature": Logit() + 5 * Feature({"layer3": "layer3"}),
    "logit + relation": Logit() + 10 * Relation({"avgpool": "avgpool"}, loss="rkd"),
    "all three": Logit() + 5 * Feature({"layer3": "layer3"}) + 10 * Relation({"avgpool": "avgpool"}, loss="rkd"),
}


@pytest.fixture(scope="module")
def few_images(fashion: DataModule) -> DataModule:
    """128 images to train on, without augmentation: each epoch sees the same ones, so their terms can be compared."""
    few = replace(fashion.subset(128), validation=fashion.validation.select(torch.arange(20)))
    return replace(few, augmentation=NO_AUGMENTATION)


@pytest.fixture(scope="module")
def real_teacher(few_images: DataModule) -> CachedTeacher:
    """The outputs of a trained ResNet-20 at all layers that a family looks at, computed once for all of them."""
    layers = [*LAYERS, "avgpool"]
    return CachedTeacher.build(models.load("resnet20-fashion"), few_images.train, layers=layers, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_trains_a_real_student_and_lowers_its_own_term(
    few_images: DataModule, real_teacher: CachedTeacher, name: str
) -> None:
    student = models.build("resnet8", num_classes=10, in_channels=1, seed=0)
    recipe = Recipe(learning_rate=0.02, batch_size=32, clip=5.0)
    options = {"method": FAMILIES[name], "recipe": recipe, "epochs": 4}
    run = train.fit(student, few_images, teacher=real_teacher, **options, test=False, progress=False)
    first, last = run.rows[0], run.rows[-1]
    known = {"epoch", "seconds", "loss", "train_accuracy", "validation_loss", "validation_accuracy"}
    own = [term for term in first if term not in {*known, "hard"}]  # the hard loss may rise at first, with dkd
    assert own
    for term in own:
        assert last[term] < first[term], term
    assert last["train_accuracy"] > first["train_accuracy"]


def test_the_logit_method_passes_student_and_teacher_in_order(fashion: DataModule) -> None:
    """Swapped, KL has another value."""
    batch = next(fashion.test.iter_batches(8))
    images = batch.images[:, :, ::3, ::3]
    student, teacher = small()(images).detach(), small(seed=1)(images).detach()
    terms = Logit(4, 0.0)(ModelOutput(student), ModelOutput(teacher), batch.labels % 3)
    assert terms["soft"].item() == pytest.approx(losses.kd(student, teacher, 4.0).item())
    assert terms["soft"].item() != pytest.approx(losses.kd(teacher, student, 4.0).item(), rel=1e-4)


def test_a_finished_run_holds_no_gradients(blobs: DataModule) -> None:
    run = fit(small(), blobs, teacher=small(seed=1, width=6), method=Logit() + Feature({"layer2": "layer2"}))
    assert run.method.state_dict()  # a projection, too
    assert all(p.grad is None for p in (*run.student.parameters(), *run.method.parameters()))


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_checkpoint_in_an_epoch_holds_no_half_made_gradient(blobs: DataModule, tmp_path: Path, stop: int) -> None:
    def run(path: Path, **options: Any) -> train.Result:  # three steps in each of three epochs: groups of two and one
        recipe = replace(QUICK, learning_rate=0.1)
        given: dict[str, Any] = {"gradient_accumulation_steps": 2, "checkpoint_every": 2, "epochs": 3, "recipe": recipe}
        return fit(small(), blobs, checkpoint=path, **given, **options)

    train_step = Trainer.train_step

    def stopping(self: Any, batch: Any) -> Any:
        if self.step == stop:
            raise Stop
        return train_step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopping)
        with pytest.raises(Stop):
            run(tmp_path / "stopped")
    resumed = run(tmp_path / "stopped", resume=True)
    assert same_weights(resumed.student, run(tmp_path / "whole").student)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.float32(0.3), np.float32(0.5)),
        (range(3), range(5)),
        (itemgetter(0), itemgetter(1)),
        (torch.relu, torch.tanh),
        (np.array(["a"]), np.array(["b"])),
        (lambda x: 2 * x + 1, lambda x: 2 * x + 3),
        (lambda x: x.sum(0, True), lambda x: x.sum(0, False)),
        (lambda x: x.sum(-1), lambda x: x.sum(-2)),
        (lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=1), lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0)),
    ],
)
def test_settings_without_attributes_are_told_apart(a: Any, b: Any) -> None:
    assert describe(a) != describe(b)
    assert describe(a) == describe(copy.deepcopy(a))


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Before Python 3.14 such a function cannot be made.")
def test_a_function_annotated_with_a_name_that_is_not_there_tells_its_arguments() -> None:
    space: dict[str, Any] = {}
    exec("def loss(student: Missing, teacher: Missing, T: float = 4.0) -> Missing: ...", space)
    assert [one.name for one in parameters_of(space["loss"])] == ["student", "teacher", "T"]


def test_a_function_of_several_globals_is_described_alike_in_every_process(tmp_path: Path) -> None:
    """Python orders sets of texts by a number that is drawn for each process."""
    program = tmp_path / "own.py"
    program.write_text(
        "from kdlib.described import describe\n"
        "ALPHA, BETA, GAMMA, DELTA, T = 0.5, 0.1, 0.2, 0.3, 4.0\n"
        "def loss(s, t):\n"
        "    return ALPHA * s + BETA * t + GAMMA + DELTA / T\n"
        "print(describe(loss))\n"
    )
    said = {
        subprocess.run(
            [sys.executable, str(program)],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(said) == 1
    assert "ALPHA" in said.pop()


def test_what_a_network_asserts_of_an_image_is_told_as_its_size() -> None:
    """timm's transformers do."""

    class OfOneSize(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            torch._assert(images.shape[2] == 224, "Input height doesn't match model (224).")
            return images

    images = torch.zeros(2, 1, 28, 28)
    with (
        pytest.raises(ValueError, match=r"student cannot take images of 1 x 28 x 28 \(Input height doesn't match"),
        explain_shape_errors("student", images),
    ):
        OfOneSize()(images)


def test_an_accuracy_over_batches_of_a_loader_is_a_whole_number_of_images() -> None:
    labels = torch.arange(300) % 3
    for right in (1, 222, 223, 258, 299):
        said = labels.clone()
        said[right:] = (said[right:] + 1) % 3
        loader = DataLoader(TensorDataset(nn.functional.one_hot(said, 3).float(), labels), 64)
        assert train.evaluate(nn.Identity(), loader, device="cpu", precision="fp32").accuracy == right / 300
