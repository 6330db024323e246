"""Faults that once gave a wrong result without a word: each must now be said, or cannot happen."""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlib import devices, measure, train, verdict
from kdlib.adapters import Adapter
from kdlib.data import DataModule, InMemoryDataset
from kdlib.data.augment import NO_AUGMENTATION
from kdlib.distill import Job, distill
from kdlib.distiller import Distiller
from kdlib.evaluation import evaluate
from kdlib.hooks import ModelOutput
from kdlib.methods import Feature, HardLabels, Logit, Method, Relation
from kdlib.recipes import Recipe
from kdlib.teachers import CachedTeacher, FrozenTeacher

COUNT, CLASSES = 24, 4
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(COUNT, 1, 8, 8, generator=GENERATOR)
LABELS = torch.arange(COUNT) % CLASSES
ORDER = list(range(CLASSES))
LOG: list[float] = []
ARGUMENTS = argparse.Namespace(rate=1e-3)
CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)
    )


def loader(count: int = COUNT) -> DataLoader:
    return DataLoader(TensorDataset(IMAGES[:count], LABELS[:count]), 8)


def split(first: int, last: int, shift: int = 0) -> InMemoryDataset:
    numbers = torch.arange(first, last)
    images = torch.randint(0, 256, (last - first, 1, 8, 8), generator=torch.Generator().manual_seed(first + shift))
    return InMemoryDataset(images.byte(), numbers % CLASSES, numbers, (0.5,), (0.5,))


def module(shift: int = 0) -> DataModule:
    parts = {"train": split(0, 32), "validation": split(32, 44, shift), "test": split(44, 56)}
    return DataModule("own", tuple("abcd"), **parts, augmentation=NO_AUGMENTATION, image_size=8)


def fit(student: nn.Module, data: Any = None, **options: Any) -> train.Result:
    settings: dict[str, Any] = {"epochs": 1, "progress": False, "recipe": Recipe(batch_size=8), **CPU}
    return train.fit(student, loader() if data is None else data, **{**settings, **options})


# -------------------- answers that are no numbers


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("data", ["split", "loader"])
def test_logits_that_are_not_finite_have_no_accuracy(bad: float, data: str) -> None:
    broken = net()
    with torch.no_grad():
        broken[-1].bias.fill_(bad)
    given = split(0, 12) if data == "split" else loader(12)
    with pytest.raises(FloatingPointError, match=r"model's logits are not finite for 12 of 12 .*precision='fp32'"):
        evaluate(broken, given, **CPU)


def test_one_broken_answer_is_found_among_good_ones() -> None:
    class Fragile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :CLASSES].clone()
            return logits.masked_fill((logits == IMAGES.flatten(1)[3, 0])[:, :1], math.nan)

    with pytest.raises(FloatingPointError, match="teacher's logits are not finite for 1 of 24 samples"):
        evaluate(Fragile(), loader(), role="teacher", **CPU)


class Masking(nn.Module):
    """A network that rules out the last class where the first pixel is positive, as of positions that are padding."""

    def __init__(self, mask: float = -math.inf, seed: int = 0) -> None:
        super().__init__()
        self.inner, self.mask = net(seed), mask

    def forward(self, x: Tensor) -> Tensor:
        last = torch.arange(CLASSES) == CLASSES - 1
        return self.inner(x).masked_fill((x[:, 0, 0, :1] > 0) & last, self.mask)


NOT_MASKED = DataLoader(TensorDataset(IMAGES, LABELS.clamp(max=CLASSES - 2)), 8)  # no label is


def test_masked_classes_are_no_damage() -> None:
    """One was said to be, also of a student that had trained well for an epoch."""
    found, finite = (evaluate(Masking(mask), NOT_MASKED, **CPU) for mask in (-math.inf, -6e4))
    assert (found.accuracy, found.loss) == (finite.accuracy, finite.loss)
    assert math.isfinite(fit(Masking(), NOT_MASKED, validation=NOT_MASKED, method=HardLabels()).rows[-1]["loss"])
    images = split(0, 12)
    images.labels.clamp_(max=CLASSES - 2)
    assert evaluate(Masking(), images, **CPU).loss == evaluate(Masking(-6e4), images, **CPU).loss


def test_a_teacher_that_masks_classes_is_refused_where_the_loss_cannot_take_it() -> None:
    batch = next(iter(NOT_MASKED))
    found = Distiller(Masking(), Masking(seed=1), Logit(1.0, loss="dist"), example=batch)(batch)
    assert all(bool(term.isfinite()) for term in found.terms.values())
    student = Masking()
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match="-inf.*soft of the loss.*-6e4"):  # and not after a step
        fit(student, NOT_MASKED, teacher=Masking(seed=1), method=Logit())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    fit(Masking(-6e4), NOT_MASKED, teacher=Masking(-6e4, seed=1), method=Logit())  # what it advises


def test_a_batch_without_a_label_has_no_masked_one() -> None:
    batches = [(IMAGES, LABELS.clamp(max=CLASSES - 2)), (IMAGES, torch.full_like(LABELS, -1))]
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    found, alone = (evaluate(Masking(), given, loss=loss, **CPU) for given in (batches, batches[:1]))
    assert (found.accuracy, found.loss) == (alone.accuracy, pytest.approx(alone.loss))


def test_a_masked_class_has_no_share_in_a_label() -> None:
    masked = [(IMAGES, LABELS)]
    for given, method in ((masked, HardLabels()), (NOT_MASKED, HardLabels(0.1))):
        with pytest.raises(ValueError, match="-inf.*hard of the loss.*-6e4"):
            fit(Masking(), given, method=method)
    later = [*NOT_MASKED, *masked]
    with pytest.raises(FloatingPointError, match="Not finite in this batch: logits of classes that are masked.*-6e4"):
        fit(Masking(), later, method=HardLabels())
    with pytest.raises(FloatingPointError, match="model's logits are -inf.*loss is inf.*-6e4"):
        evaluate(Masking(), loader(), **CPU)
    with pytest.raises(FloatingPointError, match="model's logits are -inf.*loss is inf.*-6e4"):
        evaluate(Masking(), split(0, 12), **CPU)
    given = [(IMAGES, F.one_hot(LABELS.clamp(max=CLASSES - 2), CLASSES).float())]  # 0 times infinity
    with pytest.raises(FloatingPointError, match="model's logits are -inf.*loss is nan.*-6e4"):
        evaluate(Masking(), given, task="multilabel", **CPU)


def test_what_takes_no_masks_says_what_to_write_instead() -> None:
    logits = evaluate(Masking(), NOT_MASKED, **CPU).logits
    labels = LABELS.clamp(max=CLASSES - 2)
    with pytest.raises(ValueError, match="-inf.*-6e4"):
        measure.calibration_error(logits, labels)
    with pytest.raises(ValueError, match="-inf.*-6e4"):
        CachedTeacher.from_logits(logits)
    with pytest.raises(ValueError, match="teacher's logits are not finite.*-inf.*-6e4"):
        CachedTeacher.build(Masking(), split(0, 12), progress=False, **CPU)
    assert math.isfinite(measure.calibration_error(logits.clamp(min=-6e4), labels))
    assert CachedTeacher.from_logits(logits.clamp(min=-6e4)) is not None


@pytest.mark.filterwarnings("ignore:The training has changed validations of its student")
def test_a_validation_that_is_not_finite_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Late(nn.Module):
        """Its answers outside of training break after the first epoch, its weights do not."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.validations = net(), 0

        def train(self, mode: bool = True) -> Late:
            self.validations += mode is False
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.inner(x)
            return logits * math.nan if not self.training and self.validations > 5 else logits

    path = tmp_path / "checkpoint"
    with pytest.raises(
        FloatingPointError, match=r"validation.*not finite after epoch \d of 9.*The last good checkpoint is"
    ):
        fit(Late(), module(), epochs=9, checkpoint=path)
    assert path.exists()


# -------------------- comparisons of what is not measured alike


FRACTIONS = [0.89, 0.9, 0.91]
PERCENT = [89.0, 90.0, 91.5]


@pytest.mark.parametrize(
    ("method", "baseline"),
    [
        (PERCENT, FRACTIONS),
        (FRACTIONS, PERCENT),
        (PERCENT, [0.1, 0.1, 0.11]),  # against chance
        ([0.9, 91.0, 0.92], FRACTIONS),  # one seed in percent
        ([55.0, 56.0, 57.5], [1.0, 0.98, 0.99]),
        ([9.1, 9.9, 10.2], [0.091, 0.1, 0.099]),  # errors
    ],
)
def test_percent_are_not_compared_with_fractions(method: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match="fractions and percent.*one unit.*same_unit=True"):
        verdict.compare(method, baseline)
    assert verdict.compare(method, baseline, same_unit=True).n == 3


@pytest.mark.parametrize(
    ("method", "baseline"),
    [
        (FRACTIONS, [1.0, 1.0, 0.99]),
        (PERCENT, [2.0, 50.0, 99.0]),
        ([0.9, 1.0, 1.1], [1.2, 0.8, 1.4]),  # losses
        ([0.05, 0.06, 0.04], [2.3, 2.2, 2.31]),  # a loss of a network against one at chance
        ([0.02, 0.03, 0.04], [2.3, 2.2, 2.31]),
        ([0.4, 0.5, 0.6], [4.0, 5.0, 6.5]),  # seconds
        ([1e6, 2e6, 3e6], [0.4, 0.5, 0.6]),
        ([-0.5, 0.1, 0.2], PERCENT),  # correlations are no fractions
        ([0.0, 0.0, 0.1], [0.0, 0.2, 0.3]),
    ],
)
def test_other_values_may_differ_as_much_as_they_like(method: list[float], baseline: list[float]) -> None:
    assert verdict.compare(method, baseline).n == 3


def test_a_table_names_the_method_in_percent() -> None:
    rows = [{"method": "hard", "seed": s, "test_accuracy": v} for s, v in enumerate(FRACTIONS)]
    rows += [{"method": "kd", "seed": s, "test_accuracy": v} for s, v in enumerate(PERCENT)]
    with pytest.raises(ValueError, match="kd cannot be compared with hard: .*percent"):
        verdict.table(pd.DataFrame(rows))
    assert len(verdict.table(pd.DataFrame(rows), same_unit=True)) == 1


@pytest.mark.parametrize("bad", [1e300, -1e300, 1e31, math.inf, math.nan])
def test_huge_values_are_no_results(bad: float) -> None:
    with pytest.raises(ValueError, match=r"baseline's result.*for 1.*diverge"):
        verdict.compare([0.5, 0.6, 0.7], [0.5, bad, 0.7])


# -------------------- a teacher that changes


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_shared_buffer_is_a_shared_network() -> None:
    student, teacher = net(0), net(1)
    student[1].running_mean = teacher[1].running_mean
    before = state(teacher)
    with pytest.raises(ValueError, match=r"share.*1\.running_mean.*copy\.deepcopy"):
        fit(student, teacher=teacher)
    with pytest.raises(ValueError, match="share"):
        Distiller(student, teacher, Logit())
    assert same(teacher, before)


def test_a_slice_of_the_students_weight_is_shared() -> None:
    student, teacher = net(0), net(1)
    teacher[1].register_buffer("extra", student[-1].weight.detach()[1:])
    with pytest.raises(ValueError, match=r"share.*1\.extra"):
        fit(student, teacher=teacher)


class CallsTrain(nn.Module):
    """A teacher as one finds it: its forward sets a mode."""

    def __init__(self, back: bool = False, dropout: bool = False) -> None:
        super().__init__()
        self.inner: nn.Module = (
            nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, CLASSES)) if dropout else net(1)
        )
        self.back = back

    def forward(self, x: Tensor) -> Tensor:
        self.inner.train()
        logits = self.inner(x)
        if self.back:
            self.inner.eval()
        return logits


@pytest.mark.parametrize("back", [False, True])
def test_a_teacher_whose_forward_trains_is_refused_and_given_back(back: bool) -> None:
    teacher = CallsTrain(back)
    before = state(teacher)
    for call in (
        lambda: fit(net(), teacher=teacher),
        lambda: fit(net(), module(), teacher=teacher),
        lambda: Distiller(net(), teacher, Logit())((IMAGES[:4], LABELS[:4])),
        lambda: CachedTeacher.build(teacher, split(0, 12), progress=False, **CPU),
    ):
        with pytest.raises(ValueError, match=r"(?s)teacher.*train mode.*inner.*eval mode"):
            call()
        assert same(teacher, before)


def test_a_teacher_with_dropout_at_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher.*train mode.*inner"):
        fit(net(), teacher=CallsTrain(dropout=True))


def test_a_model_whose_forward_trains_is_not_evaluated() -> None:
    model = CallsTrain(back=True)
    before = state(model)
    with pytest.raises(ValueError, match="model.*train mode"):
        evaluate(model, loader(), **CPU)
    assert same(model, before)


class Counts(nn.Module):
    """Writes to a buffer of its own at every call, by assignment or in place."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.inner, self.in_place = net(1), in_place
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        self.cache = torch.zeros(len(x))  # what is no part of its state may change
        return self.inner(x)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_teacher_that_counts_is_given_back_as_it_was_and_that_is_said(in_place: bool) -> None:
    teacher = Counts(in_place)
    before = state(teacher)
    with pytest.warns(UserWarning, match="teacher.*calls.*restored"):
        fit(net(), teacher=teacher)
    assert same(teacher, before)


def test_a_callback_that_writes_to_the_teacher_is_found() -> None:
    teacher = net(1)
    before = state(teacher)
    with pytest.warns(UserWarning, match=r"teacher.*1\.running_mean.*restored"):
        fit(net(), teacher=teacher, on_epoch_end=lambda epoch, student: teacher[1].running_mean.add_(1))
    assert same(teacher, before)


def test_a_callback_that_writes_to_the_teachers_weights_is_found() -> None:
    teacher = net(1)

    def write(epoch: int, student: nn.Module) -> None:
        with torch.no_grad():
            teacher[-1].bias.add_(1)

    with pytest.warns(UserWarning, match=r"teacher.*5\.bias.*cannot be restored"):
        fit(net(), teacher=teacher, on_epoch_end=write)


def test_an_honest_teacher_is_not_suspected() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for teacher in (net(1), FrozenTeacher(net(1))):
            fit(net(), module(), teacher=teacher, epochs=2)


# -------------------- a resumed run is the same run


class Stop(Exception):
    pass


def stopped(path: Path, **options: Any) -> None:
    """A run of two epochs that ended after its first."""

    def stop(epoch: int, student: nn.Module) -> None:
        if epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(net(), **{"data": module(), "epochs": 2, "checkpoint": path, "on_epoch_end": stop, **options})


def resume(path: Path, **options: Any) -> train.Result:
    return fit(net(), **{"data": module(), "epochs": 2, "checkpoint": path, "resume": True, **options})


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_another_number_of_threads_is_said(tmp_path: Path, two_threads: None) -> None:
    path = tmp_path / "checkpoint"
    stopped(path)
    torch.set_num_threads(1)
    with pytest.raises(ValueError, match=r"2 threads.*now.*1.*torch\.set_num_threads\(2\).*other_threads=True"):
        resume(path)
    assert len(resume(path, other_threads=True).rows) == 2


@pytest.mark.slow
def test_the_same_number_of_threads_goes_on(tmp_path: Path, two_threads: None) -> None:
    path = tmp_path / "checkpoint"
    stopped(path)
    whole = fit(net(), module(), epochs=2)
    assert resume(path).rows[-1]["loss"] == whole.rows[-1]["loss"]


def test_another_validation_split_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    stopped(path)
    with pytest.raises(ValueError, match="another run.*validation"):
        resume(path, data=module(shift=1))
    few = module()
    with pytest.raises(ValueError, match="another run.*validation"):
        resume(path, data=replace(few, validation=few.validation.select(torch.arange(5))))


def test_another_validation_loader_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    stopped(path, data=loader(), validation=loader(8))
    for other in (loader(16), loader(7), None):
        with pytest.raises(ValueError, match="another run.*validation"):
            resume(path, data=loader(), validation=other)
    assert len(resume(path, data=loader(), validation=loader(8)).rows) == 2


class Own(Method):
    """A method of a user, whose repr says nothing of its attributes."""

    needs_teacher, trains_logits = False, True

    def __init__(self, weight: float = 1.0, labels: Any = None) -> None:
        super().__init__()
        self._weight, self.table = weight, labels

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None) -> dict[str, Tensor]:
        return {"own": self._weight * F.cross_entropy(student.logits, labels)}


def weighted_mse(a: Tensor, b: Tensor, weight: float = 1.0) -> Tensor:
    return weight * F.mse_loss(a, b)


def one_hot_mse(logits: Tensor, labels: Tensor, weight: float = 1.0) -> Tensor:
    return weight * F.mse_loss(logits, F.one_hot(labels, CLASSES).float())


def loss_of(weight: float) -> Any:
    return lambda a, b: weight * F.mse_loss(a, b)


class Module(nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.weight * F.mse_loss(a, b)


OTHERS: dict[str, tuple[Any, Any]] = {
    "a weight": (2 * (HardLabels() + Feature({"0": "0"})), 3 * (HardLabels() + Feature({"0": "0"}))),
    "a weight of a part": (HardLabels() + 2 * Feature({"0": "0"}), HardLabels() + 3 * Feature({"0": "0"})),
    "a layer": (
        HardLabels() + Feature({"0": "0"}, "attention"),
        HardLabels() + Feature({"1": "0"}, "attention"),
    ),
    "a layer of a relation": (
        HardLabels() + Relation({"0": "0"}, "similarity"),
        HardLabels() + Relation({"0": "2"}, "similarity"),
    ),
    "a bound argument": (
        Logit(loss=partial(weighted_mse, weight=1.0)),
        Logit(loss=partial(weighted_mse, weight=2.0)),
    ),
    "a constant of a lambda": (
        Logit(loss=lambda a, b: 2.5 * F.mse_loss(a, b)),
        Logit(loss=lambda a, b: 3.5 * F.mse_loss(a, b)),
    ),
    "what a lambda has kept": (Logit(loss=loss_of(2.0)), Logit(loss=loss_of(3.0))),
    "a default": (
        Logit(loss=lambda a, b, w=1.5: w * F.mse_loss(a, b)),
        Logit(loss=lambda a, b, w=2.5: w * F.mse_loss(a, b)),
    ),
    "a module as loss": (Logit(loss=Module(1.0)), Logit(loss=Module(2.0))),
    "an attribute": (Own(1.0), Own(2.0)),
    "a tensor": (Own(1.0, torch.zeros(2000)), Own(1.0, torch.ones(2000))),
    "a dict": (Own(1.0, {"a": [1, 2]}), Own(1.0, {"a": [1, 3]})),
    "an option": (Logit(loss="dkd", beta=4.0), Logit(loss="dkd", beta=4.000001)),
    "a hard loss": (
        Logit(hard=partial(one_hot_mse, weight=1.0)),
        Logit(hard=partial(one_hot_mse, weight=2.0)),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_setting_of_a_method_is_another_run(tmp_path: Path, name: str) -> None:
    first, other = OTHERS[name]
    path, teacher = tmp_path / "checkpoint", net(1)
    stopped(path, method=first, teacher=teacher)
    with pytest.raises(ValueError, match="another run"):
        resume(path, method=other, teacher=teacher)
    assert len(resume(path, method=copy.deepcopy(first), teacher=teacher).rows) == 2


def test_another_rate_of_an_optimiser_of_ones_own_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    stopped(path, optimizer=lambda p: torch.optim.AdamW(p, 1e-3))
    with pytest.raises(ValueError, match="another run"):
        resume(path, optimizer=lambda p: torch.optim.AdamW(p, 1e-2))
    assert len(resume(path, optimizer=lambda p: torch.optim.AdamW(p, 1e-3)).rows) == 2


def test_another_rate_among_a_scripts_arguments_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, optimizer = tmp_path / "checkpoint", lambda p: torch.optim.AdamW(p, ARGUMENTS.rate)
    stopped(path, optimizer=optimizer)
    monkeypatch.setattr(ARGUMENTS, "rate", 1e-2)
    with pytest.raises(ValueError, match=r"learning rate began as 0\.001, not 0\.01"):
        resume(path, optimizer=optimizer)
    monkeypatch.undo()
    assert len(resume(path, optimizer=optimizer).rows) == 2


def test_another_order_in_a_global_list_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, teacher = tmp_path / "checkpoint", net(1)
    adapter = Adapter(teacher_logits=lambda logits: logits[:, ORDER])
    stopped(path, adapter=adapter, method=Logit(), teacher=teacher)
    monkeypatch.setattr(sys.modules[__name__], "ORDER", ORDER[::-1])
    with pytest.raises(ValueError, match="another run"):
        resume(path, adapter=adapter, method=Logit(), teacher=teacher)
    monkeypatch.undo()
    assert len(resume(path, adapter=adapter, method=Logit(), teacher=teacher).rows) == 2


def logged(logits: Tensor) -> Tensor:
    LOG.append(float(logits.mean()))
    return logits


def test_a_list_that_a_function_fills_is_none_of_the_runs_settings(tmp_path: Path) -> None:
    path, teacher, adapter = tmp_path / "checkpoint", net(1), Adapter(teacher_logits=logged)
    stopped(path, adapter=adapter, method=Logit(), teacher=teacher)
    assert LOG
    assert len(resume(path, adapter=adapter, method=Logit(), teacher=teacher).rows) == 2


def test_a_checkpoint_of_an_older_version_that_says_less_is_resumed(tmp_path: Path) -> None:
    from kdlib import files

    path = tmp_path / "checkpoint"
    stopped(path)
    tensors, metadata = files.load_tensors(path)
    for name in ("threads", "validation", "settings"):
        metadata["facts"]["run"].pop(name, None)
    files.save_tensors(path, tensors, metadata)
    assert len(resume(path, data=module(shift=1)).rows) == 2


# -------------------- what a run leaves alone


class Masked(nn.Module):
    """Its buffers are indices and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm2d(1), nn.Linear(64, CLASSES)
        self.register_buffer("order", torch.arange(64))
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, float("-inf")]))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(images).flatten(1)[:, self.order]) + self.mask.softmax(0)


def test_an_average_of_weights_leaves_indices_and_masks_as_they_are() -> None:
    torch.manual_seed(0)
    student = Masked()
    before = {name: value.clone() for name, value in student.named_buffers()}
    run = fit(student, loader(), validation=loader(), ema_decay=0.9, epochs=3)
    assert torch.equal(student.order, before["order"])
    assert torch.equal(student.mask, before["mask"])
    assert math.isfinite(run.rows[-1]["validation_loss"])
    assert student.norm.num_batches_tracked == 9
    assert not torch.equal(student.norm.running_mean, before["norm.running_mean"])


def norms_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The norms of the gradients that the clip is given, step by step."""
    norms, clip = [], nn.utils.clip_grad_norm_

    def noting(*args: Any) -> Tensor:
        norms.append(float(clip(*args)))
        return torch.tensor(norms[-1])

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", noting)
    return norms


def test_gradients_of_weights_that_are_not_trained_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = norms_of_steps(monkeypatch)
    torch.manual_seed(0)
    recipe = Recipe(batch_size=8, schedule="constant", clip=1e9)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    last = student[3]

    def of_the_last_layer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(last.parameters(), 1e-6)  # so slow that every epoch has nearly the same gradients

    fit(student, list(loader()), recipe=recipe, optimizer=of_the_last_layer, epochs=5)
    assert len(norms) == 15
    assert norms[-3:] == pytest.approx(norms[:3], rel=1e-2)


class Counting(torch.optim.SGD):
    """Counts its steps in its groups, as Prodigy and Lookahead do, and takes half a step at every second one."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        for group in self.param_groups:
            group["k"] = 0

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] += 1
            group["lr"] *= 0.5 if group["k"] % 2 == 0 else 1.0
        return super().step(closure)


OPTIMIZERS: dict[str, Any] = {
    "a tensor for a rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2), foreach=False),
    "one that counts": lambda p: Counting(p, 0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_with_more_than_constants_in_its_groups_is_resumed(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"data": list(loader()), "optimizer": OPTIMIZERS[name], "epochs": 4}
    whole = fit(net(), **options)
    for last in (2, 3):  # stopped, resumed and stopped again

        def stop(epoch: int, student: nn.Module, last: int = last) -> None:
            if epoch == last:
                raise Stop

        with pytest.raises(Stop):
            fit(net(), checkpoint=tmp_path / "a", resume=True, on_epoch_end=stop, **options)
    resumed = fit(net(), checkpoint=tmp_path / "a", resume=True, **options)
    assert same(resumed.student, state(whole.student))


@pytest.mark.parametrize(("value", "kind"), [(torch.float32, "dtype"), (torch.ones(2), "Tensor")])
def test_an_option_that_no_checkpoint_can_hold_is_told_before_the_first_epoch(
    tmp_path: Path, value: Any, kind: str
) -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": parameters, "kind": value}], 0.1)

    epochs: list[int] = []
    options: dict[str, Any] = {"optimizer": optimizer, "on_epoch_end": lambda epoch, student: epochs.append(epoch)}
    with pytest.raises(TypeError, match=f"The optimiser's option 'kind' is a {kind}, which no checkpoint can hold"):
        fit(net(), data=list(loader()), checkpoint=tmp_path / "a", **options)
    assert epochs == []
    fit(net(), data=list(loader()), **options)


def test_frozen_layers_in_eval_mode_keep_their_statistics() -> None:
    student = net()
    student[1].eval().requires_grad_(False)
    before = state(student[1])
    fit(student)
    assert same(student[1], before)


def test_a_student_in_eval_mode_is_trained() -> None:
    student = net().eval()
    before = state(student[1])
    fit(student)
    assert not torch.equal(student[1].running_mean, before["running_mean"])


@pytest.mark.parametrize("option", [{"checkpoint_every": 2}, {"resume": True}, {"resume": True, "other_threads": True}])
def test_settings_of_a_checkpoint_need_one(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="belong to a checkpoint"):
        fit(net(), module(), **option)


@pytest.mark.parametrize(("changes", "resume"), [({"checkpoint_every": 2}, False), ({}, True)])
def test_settings_of_a_checkpoint_need_a_folder(changes: dict[str, Any], resume: bool) -> None:
    with pytest.raises(ValueError, match="belong to a run with a folder"):
        distill(Job(student="resnet8", **changes), resume=resume)


def test_a_run_on_the_cpu_leaves_the_seeds_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    student = net()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    fit(student, seed=5)
    assert seeded == []


# -------------------- the order of weights in memory


def strides(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: value.stride() for name, value in model.state_dict().items()}


def pointwise() -> nn.Sequential:
    """With kernels of one pixel and of one channel, which count as contiguous in either order."""
    return nn.Sequential(net()[0], nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(96, 4))


USES: dict[str, Any] = {
    "evaluated": lambda model: evaluate(model, loader(), **CPU),
    "a teacher": lambda model: fit(net(1), teacher=model),
    "a student that is refused": lambda model: fit(model, [(IMAGES, LABELS + CLASSES)]),
}


@pytest.mark.parametrize("use", USES)
def test_a_network_is_given_back_with_its_weights_in_their_order(use: str) -> None:
    model = pointwise().eval()
    before = strides(model), model(IMAGES)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    with contextlib.suppress(ValueError):
        USES[use](model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places  # copies would leave holes in memory
    assert strides(model) == before[0]
    assert torch.equal(model(IMAGES), before[1])
    nn.utils.parameters_to_vector(model.parameters())


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_student_is_given_back_with_its_weights_in_their_order(memory: torch.memory_format) -> None:
    student = pointwise().to(memory_format=memory)  # type: ignore[call-overload]  # torch's stub lacks it
    before = strides(student)
    fit(student, ema_decay=0.9)
    assert strides(student) == before


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).view(len(images), -1))


@pytest.mark.parametrize("call", [lambda: fit(LeNet()), lambda: evaluate(LeNet(), loader(), **CPU)])
def test_a_view_of_maps_is_said_to_be_one(call: Any) -> None:
    with pytest.raises(ValueError, match=r"calls \.view\(\).*flatten"):
        call()


def test_a_checkpoint_of_another_run_says_what_it_was_and_what_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    stopped(path)
    with pytest.raises(ValueError, match=r"it was \{'seed': 0\}, now it is \{'seed': 7\}"):
        resume(path, seed=7)


def test_random_numbers_are_given_back_after_an_error() -> None:
    before = torch.get_rng_state()

    def draw() -> None:
        with devices.isolate_rng(torch.device("cpu")):
            torch.rand(3)
            raise Stop

    with pytest.raises(Stop):
        draw()
    assert torch.equal(torch.get_rng_state(), before)


class Pair(NamedTuple):
    """A batch with names, as some datasets give it."""

    images: Tensor
    labels: Tensor


def test_a_batch_with_names_keeps_them_when_it_is_moved() -> None:
    moved = devices.move_batch(Pair(IMAGES[:2], [LABELS[:2]]), "cpu")
    assert type(moved) is Pair
    assert torch.equal(moved.images, IMAGES[:2])


def test_no_hook_is_left_by_looking_which_layers_run_in_autocast() -> None:
    model = net()
    with pytest.raises(Stop), devices.DeviceConfig(torch.device("cpu"), True).layers_in_autocast(model):
        raise Stop
    assert not any(layer._forward_pre_hooks for layer in model.modules())
