"""`fit` with loaders, datasets and lists of batches: the same rules as with kdlib's own datasets."""

from __future__ import annotations

import copy
import math
import pickle
import re
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from kdlib import devices, distributed, models, train
from kdlib.adapters import Adapter
from kdlib.batches import LoaderBatches, count_samples
from kdlib.data import NO_AUGMENTATION, DataModule, InMemoryDataset, epoch_order
from kdlib.ensembles import ConfidenceEnsemble
from kdlib.hooks import FeatureExtractor, ModelOutput
from kdlib.methods import Feature, HardLabels, Logit, Method, Terms
from kdlib.recipes import Recipe
from kdlib.tasks import Classification
from kdlib.teachers import FrozenTeacher, Teacher

Batches = list[tuple[Tensor, Tensor]]
RECIPE = Recipe(learning_rate=0.05, batch_size=8)


class Locked(HardLabels):
    """A method that holds what no copy can have."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def net(width: int = 6, seed: int = 0, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d(width) if norm else nn.Identity()
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), middle, nn.ReLU(), nn.Linear(width, 3))


def samples(count: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    return TensorDataset(torch.randn(count, 16, generator=generator) + labels[:, None], labels)


def batches(size: int = 8) -> Batches:
    return list(DataLoader(samples(), size))


def fit(student: nn.Module, given: Any, **options: Any) -> train.Result:
    defaults: dict[str, Any] = {"epochs": 2, "recipe": RECIPE, "device": "cpu", "precision": "fp32", "progress": False}
    return train.fit(student, given, **{**defaults, **options})


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def loader_batches(given: Any, validation: Any = None, *, device: str = "cpu", batch_size: int = 8) -> LoaderBatches:
    options: dict[str, Any] = {"config": devices.DeviceConfig(torch.device(device), False), "task": Classification()}
    return LoaderBatches(
        given, validation, batch_size=batch_size, steps_per_epoch=None, seed=0, adapter=Adapter(), **options
    )


@pytest.fixture
def no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For a config that names one: its random state is not read, and torch does not warn that there is none."""
    states = {"cpu": torch.get_rng_state()}
    monkeypatch.setattr(devices, "get_rng_states", lambda device: states)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*pin_memory.*")
        yield


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("mps", False), ("cuda", True), ("cuda:1", True)])
@pytest.mark.usefixtures("no_gpu_needed")
def test_a_dataset_for_cuda_is_read_into_memory_from_which_copies_do_not_block(device: str, pinned: bool) -> None:
    made = loader_batches(samples(), samples(), device=device)
    assert [loader.pin_memory for loader in (made.loader, made.validation)] == [pinned, pinned]


class Listed(Dataset):
    """A Dataset of given samples."""

    def __init__(self, given: list) -> None:
        self.given = given

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, number: int) -> Any:
        return self.given[number]


class OnGpu(Tensor):
    """As a tensor on a GPU, which torch refuses to pin."""

    device = torch.device("cuda")


@pytest.mark.usefixtures("no_gpu_needed")
def test_only_what_is_on_the_cpu_is_pinned() -> None:
    x, labels = samples().tensors
    made = loader_batches(TensorDataset(x, labels.as_subclass(OnGpu)), samples(), device="cuda")
    assert [loader.pin_memory for loader in (made.loader, made.validation)] == [False, True]
    nested = Listed([{"inputs": (one, one.as_subclass(OnGpu)), "label": label} for one, label in samples()])
    assert not loader_batches(samples(), nested, device="cuda").validation.pin_memory


@pytest.mark.usefixtures("no_gpu_needed")
def test_a_loader_of_the_callers_is_pinned_or_not_as_it_was() -> None:
    given, validation = DataLoader(samples(), 8), DataLoader(samples(), 8, pin_memory=True)
    loader_batches(given, validation, device="cuda")
    assert (given.pin_memory, validation.pin_memory) == (False, True)


@pytest.mark.parametrize(("processes", "batch_size"), [(3, 8), (4, 2), (64, 64)])
def test_samples_that_processes_cannot_share_equally_are_refused(
    processes: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    with pytest.raises(ValueError, match=f"{processes} processes cannot share batches of {batch_size} .* of data"):
        loader_batches(samples(), batch_size=batch_size)


def test_it_is_the_loop_by_hand() -> None:
    by_hand, teacher = net(), net(9, seed=1).eval()
    optimizer = RECIPE.make_optimizer(by_hand.parameters())
    step, total = 0, 2 * len(batches())
    for _ in range(2):
        for x, labels in batches():
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = RECIPE.learning_rate_at(step, total)
            z = by_hand(x)
            with torch.no_grad():
                wanted = teacher(x)
            soft = F.kl_div((z / 4).log_softmax(1), (wanted / 4).log_softmax(1), log_target=True, reduction="batchmean")
            optimizer.zero_grad()
            (0.1 * F.cross_entropy(z, labels) + 0.9 * 16 * soft).backward()
            optimizer.step()
            step += 1
    run = fit(net(), batches(), teacher=teacher, method=Logit(temperature=4, alpha=0.1))
    for name, value in run.student.state_dict().items():
        torch.testing.assert_close(value, by_hand.state_dict()[name], rtol=0, atol=1e-6)
    assert [row["epoch"] for row in run.rows] == [1, 2]
    assert set(run.rows[0]) == {"epoch", "seconds", "loss", "hard", "soft", "train_accuracy"}
    assert (run.validation_accuracy, run.test_accuracy) == (None, None)


def test_a_data_modules_own_batches_as_a_list_give_the_same_student(blobs: DataModule) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

    order = epoch_order(blobs.train, 0, 0)[: 8 * (len(blobs.train) // 8)]
    options: dict[str, Any] = {"augmentation": blobs.augmentation, "seed": 0, "view": 0}
    given = list(blobs.train.iter_batches(8, sampler=order, **options))
    assert same(
        weights(fit(build(), given, epochs=1).student), weights(fit(build(), blobs, epochs=1, test=False).student)
    )


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(samples())


class StreamOfBatches(IterableDataset):
    """As webdataset's WebLoader has them."""

    def __init__(self, count: int = 48) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(DataLoader(samples(self.count), 8))


class Named(Dataset):
    def __len__(self) -> int:
        return len(samples())

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        x, label = samples()[number]
        return {"x": x, "label": label}


class Anew:
    """Anything that gives its batches anew each time it is iterated."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(batches())


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (lambda: batches(), {}),
        (lambda: tuple(batches()), {}),
        (lambda: DataLoader(samples(), 8), {}),
        (lambda: DataLoader(Named(), 8), {}),
        (lambda: DataLoader(Stream(), 8), {"steps_per_epoch": 6}),
        (lambda: Stream(), {"steps_per_epoch": 6}),
        (lambda: DataLoader(StreamOfBatches(), batch_size=None), {"steps_per_epoch": 6}),
        (lambda: Anew(), {"steps_per_epoch": 6}),
    ],
    ids=["list", "tuple", "loader", "loader of dicts", "loader of a stream", "stream", "stream of batches", "iterable"],
)
def test_whatever_gives_the_same_batches_gives_the_same_student(given: Any, options: dict) -> None:
    expected = fit(net(), batches(), validation=batches())
    run = fit(net(), given(), validation=given(), **options)
    assert same(weights(run.student), weights(expected.student))
    assert run.rows[-1]["validation_loss"] == expected.rows[-1]["validation_loss"]


ADVICE = r"batches already.*DataLoader\(stream, batch_size=None\)"
STACKED: dict[str, tuple[Any, str]] = {
    "training": (lambda: fit(net(), StreamOfBatches(64), steps_per_epoch=1), r"\(8, 8, 16\) with labels of \(8, 8\)"),
    "their loader": (lambda: fit(net(), DataLoader(StreamOfBatches(), 2), steps_per_epoch=1), ADVICE),
    "validation": (lambda: fit(net(), batches(), validation=StreamOfBatches()), ADVICE),
    "evaluation": (lambda: train.evaluate(net(), StreamOfBatches(), device="cpu"), ADVICE),
    "of two sizes": (lambda: fit(net(), StreamOfBatches(60), steps_per_epoch=1), "differ in size.*" + ADVICE),
    "too few": (lambda: fit(net(), StreamOfBatches(), steps_per_epoch=1), "no batch.*" + ADVICE),
}


@pytest.mark.parametrize("name", STACKED)
def test_batches_of_a_stream_are_not_taken_for_samples(name: str) -> None:
    call, words = STACKED[name]
    with pytest.raises(ValueError, match=words):
        call()


def test_what_a_stream_may_give_is_no_batch() -> None:
    """Shares of classes, several labels, and images with as many channels as there are classes."""

    class Shares(Stream):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return ((x.view(1, 4, 4).expand(3, 4, 4), F.one_hot(y, 3).float()) for x, y in samples())

    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    for task in ("classification", "multilabel"):
        fit(network, Shares(), steps_per_epoch=6, validation=Shares(), task=task)

    class Several(Stream):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return ((x.view(1, 4, 4).expand(3, 4, 4), torch.stack([y, y, y])) for x, y in samples())

    method = HardLabels(hard=lambda z, y: F.cross_entropy(z, y[:, 0]))
    fit(network, Several(), steps_per_epoch=6, validation=Several(), method=method)


@pytest.mark.parametrize("given", [Stream(), DataLoader(Stream(), 4)], ids=["stream", "loader of a stream"])
def test_several_processes_cannot_share_a_stream(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="an IterableDataset cannot be shared"):
        fit(net(), given, steps_per_epoch=6)


# The ways in which a DataLoader takes a sampler.
SAMPLED: dict[str, Callable[[Dataset, Sampler], DataLoader]] = {
    "sampler": lambda dataset, sampler: DataLoader(dataset, 8, sampler=sampler),
    "batch_sampler": lambda dataset, sampler: DataLoader(dataset, batch_sampler=BatchSampler(sampler, 8, True)),
    "sampler of batches": lambda dataset, sampler: DataLoader(
        dataset, sampler=BatchSampler(sampler, 8, True), batch_size=None
    ),
}


@pytest.mark.parametrize("way", SAMPLED)
def test_each_process_trains_on_its_part_and_validates_on_the_whole_set(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = SAMPLED[way](samples(), DistributedSampler(samples(), num_replicas=2, rank=0))
    assert train.evaluate(net(), part, device="cpu").logits.shape == (24, 3)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert loader_batches(part).steps_per_epoch == 3
    with pytest.raises(ValueError, match="same batches"):
        loader_batches(SAMPLED[way](samples(), RandomSampler(samples())))
    with pytest.raises(ValueError, match="validation.*without a DistributedSampler"):
        fit(net(), part, validation=part)
    with pytest.raises(ValueError, match="dataset.*without a DistributedSampler"):
        train.evaluate(net(), part, device="cpu")


def test_the_last_batch_of_a_stream_is_left_out_if_it_is_not_full() -> None:
    class Longer(Stream):
        def __len__(self) -> int:
            return 17

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(samples(17))

    # It is a single sample, which has no batch statistics.
    expected = fit(net(), list(DataLoader(samples(17), 8, drop_last=True)))
    assert same(weights(fit(net(), Longer()).student), weights(expected.student))
    assert fit(net(), batches(), validation=Longer()).rows[-1]["validation_loss"] == pytest.approx(
        fit(net(), batches(), validation=samples(17)).rows[-1]["validation_loss"]
    )


def test_a_dataset_is_shuffled_by_the_seed_anew_in_each_epoch() -> None:
    seen: list[list[int]] = []

    class Watched(TensorDataset):
        def __getitem__(self, number: int) -> tuple:
            seen[-1].append(number)
            return super().__getitem__(number)

    def run(seed: int) -> dict[str, Tensor]:
        seen.append([])
        return weights(fit(net(), Watched(*samples().tensors), seed=seed).student)

    first, again, other = run(0), run(0), run(1)
    assert same(first, again)
    assert not same(first, other)
    assert seen[0] == seen[1] != seen[2]
    epochs = seen[0][-96:-48], seen[0][-48:]  # before them the first batch is read once
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(48))
    assert epochs[0] != epochs[1]


def test_each_epoch_sees_the_beginning_of_a_longer_stream_unless_it_goes_on_by_itself() -> None:
    class GoesOn(IterableDataset):
        def __init__(self) -> None:
            self.given = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                yield samples()[self.given % 48]
                self.given += 1

    with pytest.raises(ValueError, match=r"steps_per_epoch=.*beginning.*continues or shuffles by itself"):
        fit(net(), DataLoader(Stream(), 8))
    beginning = weights(fit(net(), batches()[:3], epochs=2).student)
    assert same(weights(fit(net(), DataLoader(Stream(), 8), steps_per_epoch=3, epochs=2).student), beginning)
    assert not same(weights(fit(net(), DataLoader(GoesOn(), 8), steps_per_epoch=3, epochs=2).student), beginning)


def test_steps_per_epoch_cuts_an_epoch_short_and_too_few_batches_are_an_error() -> None:
    run = fit(net(), batches(), steps_per_epoch=2, epochs=1)
    assert same(weights(run.student), weights(fit(net(), batches()[:2], epochs=1).student))
    student = net()
    before = weights(student)
    with pytest.raises(ValueError, match="gives 6 batches in an epoch; expected 7 by steps_per_epoch"):
        fit(student, batches(), steps_per_epoch=7)
    assert same(before, weights(student))  # and not after the six

    class Shrinking:
        """It does not say how many it gives."""

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(batches())

    with pytest.raises(ValueError, match="gave 6 batches in epoch 1; expected 7"):
        fit(net(), Shrinking(), steps_per_epoch=7)


SHUFFLED: dict[str, Callable[[torch.Generator], DataLoader]] = {
    "shuffle": lambda own: DataLoader(samples(), 8, shuffle=True, generator=own),
    "weighted": lambda own: DataLoader(samples(), 8, sampler=WeightedRandomSampler([1.0] * 48, 48, generator=own)),
    **{
        way: lambda own, make=make: make(samples(), RandomSampler(samples(), generator=own))
        for way, make in SAMPLED.items()
    },
}


@pytest.mark.parametrize("kind", SHUFFLED)
def test_the_callers_random_numbers_and_loader_stay_as_they_were(kind: str) -> None:
    loader = SHUFFLED[kind](torch.Generator().manual_seed(5))
    student = net()
    state = torch.random.get_rng_state()
    first = fit(student, loader, epochs=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    fresh = SHUFFLED[kind](torch.Generator().manual_seed(5))
    assert same(weights(first.student), weights(fit(net(), list(fresh), epochs=1).student))


class Noisy(Dataset):
    """Samples that are augmented at random."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        x, label = samples(8)[number]
        return x + torch.randn(16), label


def test_the_seed_and_the_process_decide_what_persistent_workers_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(before: int, seed: int, rank: int = 0) -> dict[str, Tensor]:
        loader = DataLoader(Noisy(), 8, num_workers=1, persistent_workers=True)
        student = net()
        torch.manual_seed(before)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        return weights(fit(student, loader, seed=seed, epochs=1).student)

    first = run(before=1, seed=0)
    assert same(first, run(before=2, seed=0))
    assert not same(first, run(before=1, seed=1))
    assert not same(first, run(before=1, seed=0, rank=1))


def test_the_teacher_is_the_same_to_the_bit_and_in_its_mode_afterwards() -> None:
    teacher = net(9, seed=1)
    teacher[2].eval()
    before, modes = weights(teacher), [module.training for module in teacher.modules()]
    fit(net(), batches(), teacher=teacher, method=Logit() + Feature({"1": "1"}))
    assert same(before, weights(teacher))
    assert modes == [module.training for module in teacher.modules()]
    assert not any(module._forward_hooks for module in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())


class Stop(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}, {"gradient_accumulation_steps": 4}], ids=str)
def test_stopped_after_an_epoch_and_resumed_is_never_stopped(tmp_path: Path, options: dict) -> None:
    def run(name: str, **more: Any) -> train.Result:
        settings = {"teacher": net(9, seed=1), "method": Logit() + Feature({"1": "1"}), "epochs": 3, **options}
        return fit(net(), samples(), validation=batches(), checkpoint=tmp_path / name, **settings, **more)

    def stop(epoch: int, student: nn.Module) -> None:
        if epoch == 2:
            raise Stop

    whole = run("whole")
    with pytest.raises(Stop):
        run("cut", on_epoch_end=stop)
    resumed = run("cut", resume=True)
    assert same(weights(whole.student), weights(resumed.student))
    assert same(weights(whole.method), weights(resumed.method))
    columns = ("loss", "validation_loss")
    assert [[row[c] for c in columns] for row in whole.rows] == [[row[c] for c in columns] for row in resumed.rows]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    fit(net(), samples(), checkpoint=tmp_path / "a", epochs=1)
    for options in ({"ema_decay": 0.9}, {"gradient_accumulation_steps": 2}, {"optimizer": torch.optim.Adam}):
        with pytest.raises(ValueError, match="belongs to another run"):
            fit(net(), samples(), checkpoint=tmp_path / "a", epochs=1, resume=True, **options)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_accumulated_gradients_are_those_of_one_large_batch(schedule: str) -> None:
    recipe = Recipe(learning_rate=0.05, schedule=schedule, momentum=0, weight_decay=0)
    small = fit(net(norm=False), batches(8), gradient_accumulation_steps=3, epochs=1, recipe=recipe)
    large = fit(net(norm=False), batches(24), epochs=1, recipe=recipe)
    for name, value in small.student.state_dict().items():
        torch.testing.assert_close(value, large.student.state_dict()[name])


def test_batches_left_over_at_the_end_of_an_epoch_make_a_step_of_their_own() -> None:
    steps = []

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, 0.1)
        step = made.step
        made.step = lambda: (steps.append(1), step())  # type: ignore[method-assign]
        return made

    run = fit(net(norm=False), batches(), gradient_accumulation_steps=4, optimizer=optimizer, epochs=2)
    assert len(steps) == 4  # of six batches: four and two
    recipe = Recipe(learning_rate=0.1, schedule="constant", momentum=0, weight_decay=0)
    halves = [batches(32)[0], batches(16)[2]]
    plain = fit(net(norm=False), halves, recipe=recipe, epochs=1)
    once = fit(net(norm=False), batches(), gradient_accumulation_steps=4, recipe=recipe, epochs=1)
    for name, value in once.student.state_dict().items():
        torch.testing.assert_close(value, plain.student.state_dict()[name])
    assert math.isfinite(run.rows[-1]["loss"])


def test_the_average_of_the_weights_is_validated_and_given_back() -> None:
    recipe = Recipe(learning_rate=0.05, schedule="constant", momentum=0, weight_decay=0)
    seen: list[dict[str, Tensor]] = []
    run = fit(
        net(),
        batches(),
        validation=batches(),
        recipe=recipe,
        ema_decay=0.8,
        on_epoch_end=lambda _, student: seen.append(weights(student)),
    )
    by_hand, average = net(), None
    for x, labels in batches() * 2:
        by_hand.zero_grad()
        F.cross_entropy(by_hand(x), labels).backward()
        with torch.no_grad():
            for p in by_hand.parameters():
                p -= 0.05 * p.grad
        now = weights(by_hand)
        average = (
            now
            if average is None
            else {k: v.lerp(now[k], 0.2) if v.is_floating_point() else now[k] for k, v in average.items()}
        )
    for name, value in run.student.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name])
    assert same(seen[-1], weights(run.student))
    metrics = train.evaluate(run.student, batches(), device="cpu", precision="fp32")
    assert metrics.loss == pytest.approx(run.rows[-1]["validation_loss"])


def test_an_optimiser_of_ones_own_follows_the_recipes_schedule_from_its_own_peaks() -> None:
    rates = []

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.AdamW([{"params": parameters[:2], "lr": 1e-3}, {"params": parameters[2:], "lr": 1e-2}])
        step = made.step
        made.step = lambda: (rates.append([group["lr"] for group in made.param_groups]), step())  # type: ignore
        return made

    recipe = Recipe(schedule="cosine", warmup=0.5, learning_rate=123.0)
    fit(net(), batches(), optimizer=optimizer, recipe=recipe, epochs=1)
    assert rates == [
        [recipe.learning_rate_at(step, 6, 1e-3), recipe.learning_rate_at(step, 6, 1e-2)] for step in range(6)
    ]


def test_a_student_that_comes_in_eval_mode_is_trained_in_train_mode() -> None:
    loaded = net().eval()  # as models.load gives it
    assert same(weights(fit(loaded, batches()).student), weights(fit(net(), batches()).student))


def test_the_projectors_reach_the_optimiser_and_the_clipping() -> None:
    got = []
    fit(
        net(),
        batches(),
        teacher=net(9, seed=1),
        method=HardLabels() + Feature({"1": "1"}),
        optimizer=lambda parameters: (got.extend(parameters), torch.optim.SGD(parameters, 0.1))[1],
        epochs=1,
    )
    assert sum(p.numel() for p in got) == sum(p.numel() for p in net().parameters()) + 6 * 9


def test_an_optimiser_that_leaves_out_the_projectors_is_refused() -> None:
    student, options = net(), {"teacher": net(9, seed=1), "method": HardLabels() + Feature({"1": "1"}), "epochs": 1}
    with pytest.raises(ValueError, match=r"leaves out .*projectors.*conv\.weight.*of the method.*requires_grad_"):
        fit(student, batches(), optimizer=lambda _: torch.optim.SGD(student.parameters(), 0.1), **options)

    def frozen(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        own = {id(p) for p in student.parameters()}
        for p in parameters:
            p.requires_grad_(id(p) in own)
        return torch.optim.SGD(student.parameters(), 0.1)

    assert fit(student, batches(), optimizer=frozen, **options).rows
    assert fit(net(), batches(), optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1), **options).rows


def test_a_teacher_of_ones_own_with_views_works_on_a_data_module(blobs: DataModule) -> None:
    class Mine(Teacher):
        views = 1

        def __call__(self, batch: Any, layers: Any = None) -> ModelOutput:
            return ModelOutput(F.one_hot(batch.labels, 3).float() * 5)

    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    run = fit(student, blobs, teacher=Mine(), augmentation=NO_AUGMENTATION)
    assert run.validation_accuracy is not None
    plain = lambda batch: F.one_hot(batch.labels, 3).float() * 5  # noqa: E731
    again = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert math.isfinite(fit(again, blobs, teacher=plain).rows[-1]["soft"])


def test_metrics_of_each_task() -> None:
    x = torch.randn(8, 16)
    hot = (torch.arange(24).view(8, 3) % 2).float()
    run = fit(net(), [(x, hot)] * 2, validation=[(x, hot)], task="multilabel")
    z = run.student(x)
    assert run.rows[-1]["validation_loss"] == pytest.approx(F.binary_cross_entropy_with_logits(z, hot).item(), rel=1e-5)
    assert run.validation_accuracy == pytest.approx(((z > 0) == hot.bool()).float().mean().item())
    run = fit(net(), [(x, hot)] * 2, validation=[(x, hot)], method=HardLabels(hard=F.mse_loss), task="regression")
    assert run.rows[-1]["validation_loss"] == pytest.approx(F.mse_loss(run.student(x), hot).item(), rel=1e-5)
    assert math.isnan(run.validation_accuracy)
    assert "train_accuracy" not in run.rows[-1]


def test_validation_is_weighted_by_samples() -> None:
    x, y = samples()[:]
    model = net().eval()
    found = train.evaluate(model, [(x[:7], y[:7]), (x[7:], y[7:])], device="cpu", precision="fp32")
    assert found.loss == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-5)
    assert found.accuracy == pytest.approx((model(x).argmax(1) == y).float().mean().item())
    torch.testing.assert_close(found.logits, model(x))


@pytest.mark.parametrize("kind", ["split", "loader", "loader with a loss", "samples as classes"])
def test_an_evaluation_without_logits_has_the_same_numbers(blobs: DataModule, kind: str) -> None:
    given: dict[str, tuple[nn.Module, Any, Any]] = {
        "split": (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), blobs.test, None),
        "loader": (net(), batches(), None),
        "loader with a loss": (net(), batches(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]))),
        "samples as classes": (Similarity(), [(x, torch.arange(len(x))) for x, _ in batches()], both_ways),
    }
    model, dataset, loss = given[kind]
    options: dict[str, Any] = {"batch_size": 7, "loss": loss, "device": "cpu", "precision": "fp32"}
    kept, found = (train.evaluate(model, dataset, keep_logits=keep, **options) for keep in (True, False))
    assert (found.accuracy, found.loss) == (kept.accuracy, kept.loss)
    assert kept.logits is not None
    assert found.logits is None


class Watched(nn.Module):
    """Notes how many of its outputs in an evaluation are still there when it gives the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 3)
        self.given: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.alive.append(sum(one() is not None for one in self.given))
        logits = self.fc(x.flatten(1)[:, :16])
        if not self.training:
            self.given.append(weakref.ref(logits))
        return logits


@pytest.mark.parametrize("kind", ["DataModule", "loader"])
def test_a_validation_holds_the_logits_of_one_batch(kind: str) -> None:
    """Those of all would take gigabytes where there are many classes."""
    student, options = Watched(), {"validation": batches()}
    given: Any = batches()
    if kind == "DataModule":
        images, numbers = torch.randint(0, 256, (1200, 1, 4, 4), dtype=torch.uint8), torch.arange(1200)
        whole = InMemoryDataset(images, numbers % 3, numbers, (0.5,), (0.5,))
        splits = (whole.select(part) for part in (numbers[:64], numbers[64:1100], numbers[1100:]))
        given, options = DataModule("noise", tuple("abc"), *splits, augmentation=NO_AUGMENTATION, image_size=4), {}
    fit(student, given, epochs=1, **options)
    assert len(student.given) > 5
    assert max(student.alive) == 1


class Similarity(nn.Module):
    """The similarity of each sample to each of its batch, B x B, as in contrastive learning."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = F.normalize(self.fc(x))
        return 5 * z @ z.T


def both_ways(z: Tensor, y: Tensor) -> Tensor:
    return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2


@pytest.mark.parametrize("count", [24, 22])
@pytest.mark.parametrize("hard", [None, both_ways])
def test_classes_that_are_the_samples_of_the_batch_are_evaluated_batch_by_batch(count: int, hard: Any) -> None:
    """The last of 22 has fewer."""
    given = [(x, torch.arange(len(x))) for x, _ in DataLoader(samples(count), 8)]
    run = fit(Similarity(), given[:2], validation=given, method=HardLabels(hard=hard))
    with torch.no_grad():
        found = [(run.student(x), y) for x, y in given]
    expected = sum((hard or F.cross_entropy)(z, y).item() * len(y) for z, y in found) / count
    assert run.rows[-1]["validation_loss"] == pytest.approx(expected, rel=1e-5)
    right = sum(int((z.argmax(1) == y).sum()) for z, y in found)
    assert run.validation_accuracy == pytest.approx(right / count)
    assert (train.evaluate(run.student, given, device="cpu").logits is None) == (count == 22)


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss()])
def test_another_number_of_classes_in_each_batch_is_evaluated(loss: Any) -> None:
    """Such as the places of a text's answer, which is padded in its batch."""
    given = [(torch.randn(count, width), torch.arange(count)) for count, width in ((4, 7), (3, 9))]
    found = train.evaluate(nn.Identity(), given, loss=loss, device="cpu", precision="fp32")
    expected = sum(F.cross_entropy(z, y, reduction="sum").item() for z, y in given) / 7
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.accuracy == pytest.approx(sum(int((z.argmax(1) == y).sum()) for z, y in given) / 7)
    assert found.logits is None


def test_a_loss_that_keeps_what_it_gave_is_called_as_it_is() -> None:
    class Keeping(nn.Module):
        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            self.last = F.cross_entropy(z, y)
            return self.last

    run = fit(net(), batches(), validation=batches(), method=HardLabels(hard=Keeping()))
    assert math.isfinite(run.validation_accuracy)


UNREAD_LABELS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "class and group": (lambda y: torch.stack((y, y + 5), 1), lambda z, y: F.cross_entropy(z, y[:, 0])),
    "as many labels as classes": (lambda y: torch.stack((y, y, y), 1), lambda z, y: F.cross_entropy(z, y[:, 0])),
    "a column": (lambda y: y[:, None], lambda z, y: F.cross_entropy(z, y[:, 0])),
    "class and weight": (
        lambda y: torch.stack((y.float(), y / 10 + 1), 1),
        lambda z, y: (F.cross_entropy(z, y[:, 0].long(), reduction="none") * y[:, 1]).mean(),
    ),
}


@pytest.mark.parametrize("name", UNREAD_LABELS)
def test_labels_that_only_the_loss_can_read_have_no_accuracy(name: str) -> None:
    form, hard = UNREAD_LABELS[name]
    given = [(x, form(y)) for x, y in batches()]
    run = fit(net(), given, validation=given, method=HardLabels(hard=hard))
    assert math.isnan(run.validation_accuracy)
    assert "train_accuracy" not in run.rows[-1]
    whole = [torch.cat(parts) for parts in zip(*given, strict=True)]
    assert run.rows[-1]["validation_loss"] == pytest.approx(hard(run.student(whole[0]), whole[1]).item(), rel=1e-5)


@pytest.mark.parametrize("own", [HardLabels(), 0.3], ids=["a method", "a number"])
def test_an_attribute_hard_of_a_method_of_ones_own_is_no_loss(own: Any) -> None:
    class Mine(Method):
        needs_teacher = needs_teacher_logits = False
        trains_logits = True

        def __init__(self) -> None:
            super().__init__()
            self.hard = own

        def forward(self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None) -> Terms:
            return {"mine": F.cross_entropy(student.logits, labels)}

    run = fit(net(), batches(), validation=batches(), method=Mine())
    x, y = samples()[:]
    assert run.rows[-1]["validation_loss"] == pytest.approx(F.cross_entropy(run.student(x), y).item(), rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    bad = copy.deepcopy(batches())
    bad[3][0][0] = float("nan")
    with pytest.raises(FloatingPointError, match="Not finite in this batch: inputs[.]"):
        fit(net(), bad)
    with pytest.raises(FloatingPointError, match=r"not finite at step 3 of 12.*inputs and labels.*isfinite\(\)"):
        fit(net(), bad)


def test_each_process_has_a_dropout_of_its_own(blobs: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                drawn.append(torch.rand(1).item())
            return self.fc(x)

    for rank in (0, 1, 2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        fit(Drawing(), batches()[:1], epochs=1)
    assert len(set(drawn)) == 3


# --- terms and batches of many kinds


class TermOf(Method):
    """A term of a given name, always 5."""

    needs_teacher = needs_teacher_logits = False

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None) -> Terms:
        return {self.name: 0 * student.logits.sum() + 5.0}


@pytest.mark.parametrize("name", ["loss", "images", "epoch", "seconds", "train_accuracy", "validation_loss"])
def test_a_term_cannot_take_the_place_of_a_column(name: str) -> None:
    with pytest.raises(ValueError, match=f"called '{name}', and so is a column of the history"):
        fit(net(), batches(), method=HardLabels() + TermOf(name))


def test_a_term_of_ones_own_has_a_column() -> None:
    assert fit(net(), batches(), method=HardLabels() + TermOf("mine")).rows[0]["mine"] == 5.0


@pytest.mark.parametrize("unlabelled_first", [False, True])
def test_batches_with_labels_and_without_mix(unlabelled_first: bool) -> None:
    labelled = batches()
    bare = [(x, None) for x, _ in labelled]
    given = [one for pair in zip(labelled, bare, strict=True) for one in pair][:: -1 if unlabelled_first else 1]
    teacher, method = net(9, seed=1), Logit(temperature=2, alpha=0)
    run = fit(net(norm=False), given, teacher=teacher, method=method, epochs=1)
    assert {"soft", "train_accuracy"} <= set(run.rows[0])
    assert run.rows[0]["loss"] == pytest.approx(run.rows[0]["soft"])
    assert run.rows[0]["train_accuracy"] > 0.3  # of the labelled ones alone: a sample without a label is not wrong


class OfLists(nn.Module):
    """A network whose one argument is a list of images, as those that detect objects have it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = net(norm=False)

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.inside(torch.stack(images))


@pytest.mark.parametrize(
    ("kind", "pack"), [("tensor", list), ("list", list), ("list", tuple), ("dict", list), ("targets", tuple)]
)
def test_a_list_of_images_has_as_many_as_it_has_labels(kind: str, pack: Callable[[Any], Any]) -> None:
    """A batch of two counts less in the history than one of eight."""
    wrapped, read = {
        "tensor": (lambda y: y, lambda y: y),
        "list": (pack, torch.stack),
        "dict": (lambda y: {"class": y}, lambda y: y["class"]),
        "targets": (lambda y: (y, y[:, None]), lambda y: y[0]),
    }[kind]
    method = HardLabels(hard=lambda z, y: F.cross_entropy(z, read(y)))
    given = [(x[:count], y[:count]) for (x, y), count in zip(batches(), (8, 2, 5, 8, 1, 8), strict=True)]
    lists = [(pack(x), wrapped(y)) for x, y in given]
    adapter = Adapter(inputs=lambda batch: (batch[0],))
    found = fit(OfLists(), lists, adapter=adapter, method=method).rows[-1]
    assert found["loss"] == pytest.approx(fit(net(norm=False), given).rows[-1]["loss"])


def test_a_list_of_views_has_as_many_samples_as_labels() -> None:
    adapter = Adapter(inputs=lambda batch: (batch[0],))
    assert count_samples(([torch.zeros(5, 3), torch.zeros(5, 7)], torch.zeros(5)), adapter) == 5


class TwoHeads(nn.Module):
    """Logits, and a number beside them."""

    def __init__(self, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.fc, self.number = nn.Linear(16, width), nn.Linear(width, 3), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x).relu()
        return {"logits": self.fc(hidden), "age": self.number(hidden)[:, 0]}


class Age(Method):
    """The number of the second head against a label of its own."""

    needs_teacher = False

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, labels: Any) -> Terms:
        return {"age": F.mse_loss(student.raw["age"].float(), labels["age"])}


def test_labels_in_a_dict_are_for_losses_of_ones_own() -> None:
    given = [{"x": x, "labels": {"kind": labels, "age": x.mean(1)}} for x, labels in batches()]

    def hard(logits: Tensor, labels: Any) -> Tensor:
        return F.cross_entropy(logits, labels["kind"])

    options: dict[str, Any] = {"teacher": TwoHeads(9, 1), "epochs": 1}
    run = fit(TwoHeads(), given, validation=given[:1], method=Logit(hard=hard) + Age(), **options)
    row = run.rows[0]
    assert set(row) == {"epoch", "seconds", "loss", "hard", "soft", "age", "validation_loss", "validation_accuracy"}
    assert row["loss"] == pytest.approx(row["hard"] + row["soft"] + row["age"])
    assert row["validation_loss"] == pytest.approx(
        hard(run.student(given[0]["x"])["logits"], given[0]["labels"]).item()
    )
    assert math.isnan(row["validation_accuracy"])
    for refused in (
        lambda: fit(TwoHeads(), given, method=Logit(), **options),
        lambda: train.evaluate(TwoHeads(), given, device="cpu"),
    ):
        with pytest.raises(TypeError, match=r"labels .*got dict.*Adapter\(labels=.*y\['name'\]"):
            refused()


def test_volumes_are_trained_and_evaluated() -> None:
    student = nn.Sequential(nn.Conv3d(1, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    volumes = [(torch.randn(8, 1, 4, 4, 4), torch.arange(8) % 3)]
    run = fit(student, volumes, validation=volumes, epochs=1)
    assert run.validation_accuracy is not None


def test_numbers_of_numpy_reach_the_checkpoint(tmp_path: Path) -> None:
    recipe = Recipe(learning_rate=np.float32(0.05), batch_size=8)
    run = fit(net(), batches(), seed=np.int64(3), recipe=recipe, checkpoint=tmp_path / "a")
    plain = Recipe(learning_rate=float(np.float32(0.05)), batch_size=8)
    assert same(weights(run.student), weights(fit(net(), batches(), seed=3, recipe=plain).student))


def test_adafactor_is_resumed(tmp_path: Path) -> None:
    def resumable(epochs: int, resume: bool) -> train.Result:
        def stop(epoch: int, student: nn.Module) -> None:
            if epoch == epochs:
                raise InterruptedError

        options: dict[str, Any] = {"optimizer": lambda p: torch.optim.Adafactor(p), "checkpoint": tmp_path / "a"}
        return fit(net(), batches(), on_epoch_end=stop, resume=resume, **options)

    with pytest.raises(InterruptedError):
        resumable(2, resume=False)
    whole = fit(net(), batches(), optimizer=lambda p: torch.optim.Adafactor(p))
    assert same(weights(resumable(3, resume=True).student), weights(whole.student))


class Fourier(nn.Module):
    """A network with a complex weight, as neural operators have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(0.1 * torch.randn(9, 9, dtype=torch.cfloat))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.irfft(torch.fft.rfft(x) @ self.weight, n=16))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_network_with_complex_weights_is_resumed(tmp_path: Path, name: str) -> None:
    def run(last: int, **options: Any) -> train.Result:
        def stop(epoch: int, student: nn.Module) -> None:
            if epoch == last:
                raise InterruptedError

        return fit(Fourier(), batches(), recipe=Recipe(name, 0.01), on_epoch_end=stop, **options)

    with pytest.raises(InterruptedError):
        run(2, checkpoint=tmp_path / "a")
    resumed = run(3, checkpoint=tmp_path / "a", resume=True)
    assert same(weights(resumed.student), weights(run(3).student))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_epoch_end": lambda epoch: None}, "on_epoch_end is called with two arguments"),
        ({"on_epoch_end": lambda epoch, student, more: None}, "on_epoch_end is called with two arguments"),
        ({"method": Locked()}, "Locked, cannot be copied.*lock"),
    ],
    ids=["one argument", "three arguments", "a lock"],
)
def test_slips_are_told_before_the_first_step(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fit(net(), batches(), **options)


@pytest.mark.parametrize("function", [lambda *given: None, lambda epoch, student=None: None, print])
def test_functions_that_take_two_arguments_are_called(function: Callable[..., Any]) -> None:
    fit(net(), batches(), epochs=1, on_epoch_end=function)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_can_be_trained(mode: Any) -> None:
    with mode(), pytest.raises(ValueError, match=r"Gradients are switched off.*torch\.set_grad_enabled\(True\)"):
        fit(net(), batches())


@pytest.mark.parametrize(
    "method", [Logit(loss=F.mse_loss), HardLabels() + Feature({"3": "3"}, "hint")], ids=["logits", "features"]
)
def test_answers_of_inference_mode_may_teach(method: Method) -> None:
    teacher = net(seed=1).eval()

    class Inferring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = teacher
            self.add_module("3", teacher[3])

        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    found = fit(net(), batches(), teacher=Inferring().eval(), method=method)
    assert same(weights(found.student), weights(fit(net(), batches(), teacher=teacher, method=method).student))


def test_a_function_in_inference_mode_may_teach() -> None:
    teacher = net(seed=1).eval()

    @torch.inference_mode()
    def ask(batch: Any) -> Tensor:
        return teacher(batch[0])

    method = Logit(loss=F.mse_loss)
    found = fit(net(), batches(), teacher=ask, method=method)
    assert same(weights(found.student), weights(fit(net(), batches(), teacher=teacher, method=method).student))


@pytest.mark.parametrize("loss", [lambda logits, labels: 0.5, torch.nn.CrossEntropyLoss(reduction="none")])
def test_a_loss_that_gives_no_single_tensor_is_told(loss: Any) -> None:
    with pytest.raises(ValueError, match="loss gives a tensor of one number"):
        train.evaluate(net(), batches(), loss=loss, device="cpu", precision="fp32")


class RowsAndColumns(torch.optim.Optimizer):
    """A factored second moment, as transformers' Adafactor keeps it: sums without the dimension that they are over."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            square = p.grad.square()
            state["row"] = square.mean(-1) if p.ndim > 1 else square
            state["bits"] = (255 * square / square.max().clamp(min=1e-9)).byte()
            p -= self.param_groups[0]["lr"] * p.grad / (state["row"].mean().sqrt() + 1)


class PerDimension(torch.optim.Optimizer):
    """A sum of squares for each dimension, in a list, as Shampoo and SOAP keep their matrices."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state.setdefault("sums", [torch.zeros(size) for size in p.shape])
            state.setdefault("unused", [None, []])
            for number, total in enumerate(state["sums"]):
                total += p.grad.square().movedim(number, 0).reshape(len(total), -1).mean(1)
                p -= self.param_groups[0]["lr"] * p.grad / (total.mean().sqrt() + 1)


def _stop_after_one(epoch: int, student: nn.Module) -> None:
    if epoch == 2:
        raise InterruptedError


@pytest.mark.parametrize("optimizer", [RowsAndColumns, PerDimension])
def test_an_optimizer_of_others_is_resumed_whatever_it_keeps(
    tmp_path: Path, optimizer: type[torch.optim.Optimizer]
) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "epochs": 3}
    with pytest.raises(InterruptedError):
        fit(net(), batches(), checkpoint=tmp_path / "a", on_epoch_end=_stop_after_one, **options)
    resumed = fit(net(), batches(), checkpoint=tmp_path / "a", resume=True, **options)
    assert same(weights(resumed.student), weights(fit(net(), batches(), **options).student))


@pytest.mark.parametrize("kind", ["optimizer", "list", "adapter"])
def test_a_function_that_holds_the_student_belongs_to_the_same_run_when_it_goes_on(tmp_path: Path, kind: str) -> None:
    """Its weights are others then: fresh ones in a new process, trained ones in the same."""

    def options(student: nn.Sequential) -> dict[str, Any]:
        head = list(student[4].parameters())
        return {
            "optimizer": {"optimizer": lambda ps: torch.optim.SGD(student.parameters(), 0.05)},
            "list": {"optimizer": lambda ps: torch.optim.SGD([{"params": head, "lr": 0.1}, {"params": ps[:4]}], 0.05)},
            "adapter": {"adapter": Adapter(inputs=lambda batch: batch[0][:, : student[1].in_features])},
        }[kind]

    first = net()
    with pytest.raises(InterruptedError):
        fit(first, batches(), checkpoint=tmp_path / "a", on_epoch_end=_stop_after_one, epochs=3, **options(first))
    second = net(seed=7)
    resumed = fit(second, batches(), checkpoint=tmp_path / "a", resume=True, epochs=3, **options(second))
    whole = net()
    assert same(weights(resumed.student), weights(fit(whole, batches(), epochs=3, **options(whole)).student))


class Nothing(IterableDataset):
    """A stream that ends before its first sample, and does not say so."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(())


UNFIT: dict[str, tuple[Any, str]] = {
    "no batch": ([], "validation data gives no batch"),
    "no batch of a stream": (Nothing(), "validation data gives no batch.*already"),
    "no labels": ([(torch.randn(4, 16),)], "label"),
    "other classes": ([(torch.randn(4, 16), torch.tensor([0, 1, 2, 3]))], r"labels must lie in 0 \.\. 2"),
    "other inputs": ([(torch.randn(4, 5), torch.arange(4) % 3)], "cannot take"),
    "of several sizes": (DataLoader([(torch.zeros(16), 0), (torch.zeros(8), 1)], 2), "differ in size"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_validation_data_that_cannot_be_evaluated_are_refused_before_the_first_step(name: str) -> None:
    validation, words = UNFIT[name]
    student = net()
    before = weights(student)
    with pytest.raises(ValueError, match=words):
        fit(student, batches(), validation=validation)
    assert same(before, weights(student))


def test_a_first_validation_batch_without_a_label_says_nothing_of_the_others() -> None:
    unlabelled = (torch.randn(4, 16), torch.full((4,), -1))
    hard = lambda z, y: F.cross_entropy(z, y, ignore_index=-1)  # noqa: E731
    run = fit(net(), batches(), validation=[unlabelled, *batches()], method=HardLabels(hard=hard))
    assert math.isfinite(run.validation_accuracy or math.nan)


def test_the_look_at_the_validation_data_changes_no_training() -> None:
    def trained(validation: Any) -> dict[str, Tensor]:
        torch.manual_seed(3)
        loader = DataLoader(samples(), 8, shuffle=True)  # draws from the global generator
        return weights(fit(nn.Sequential(net(), nn.Dropout(0.5)), loader, validation=validation).student)

    assert same(trained(None), trained(DataLoader(samples(), 8, shuffle=True)))


class Sentences(nn.Module):
    """A network of tokens, B x N, whose layer `inside` gives B x N x C."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inside, self.fc = nn.Embedding(10, width), nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.inside(tokens).mean(1))


def test_sentences_of_another_length_may_come_first_when_a_run_goes_on(tmp_path: Path) -> None:
    given = [(torch.arange(4 * n).view(4, n) % 10, torch.arange(4) % 3) for n in (5, 7, 6)]
    options: dict[str, Any] = {"teacher": Sentences(8, 1), "method": HardLabels() + Feature({"inside": "inside"})}

    def stop(epoch: int, student: nn.Module) -> None:
        if epoch == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(Sentences(6, 0), given, checkpoint=tmp_path / "a", epochs=3, on_epoch_end=stop, **options)
    resumed = fit(Sentences(6, 0), given[::-1], checkpoint=tmp_path / "a", epochs=3, resume=True, **options)
    assert [row["epoch"] for row in resumed.rows] == [1, 2, 3]


def test_another_weighting_of_the_same_teachers_is_another_run(tmp_path: Path) -> None:
    members = [net(9, seed=1), net(9, seed=2)]
    options: dict[str, Any] = {"method": Logit(), "checkpoint": tmp_path / "a", "epochs": 1}
    fit(net(), batches(), teacher=ConfidenceEnsemble(members, temperature=4), **options)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(net(), batches(), teacher=ConfidenceEnsemble(members, temperature=1), resume=True, **options)


def test_a_validation_label_that_torch_would_leave_out_is_refused(blobs: DataModule) -> None:
    split = blobs.validation
    labels = split.labels.clone()
    labels[0] = -100
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="labels down to -100; expected 0 to 2"):
        train.evaluate(student, replace(split, labels=labels), device="cpu", precision="fp32")


class Encoder(nn.Module):
    """Two layers of torch's encoder over padded tokens, at their default settings."""

    def __init__(self, width: int, seed: int, batch_first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.batch_first = batch_first
        self.embed = nn.Embedding(20, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=batch_first)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.enc(x if self.batch_first else x.transpose(0, 1), src_key_padding_mask=~mask)
        x = x if self.batch_first else x.transpose(0, 1)
        return self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def padded_batches() -> list[dict[str, Tensor]]:
    """Batches of 6 sentences of 3 to 8 tokens, in 9 places."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 20, (4, 6, 9), generator=generator)
    mask = torch.arange(9) < torch.randint(3, 9, (4, 6, 1), generator=generator)
    return [{"ids": i, "mask": m, "labels": i[:, 0] % 3} for i, m in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layer", [None, "enc.layers.0", "enc.layers.0.linear1"])
def test_an_encoder_with_a_padding_mask_is_trained_and_evaluated(precision: str, layer: str | None) -> None:
    given, method = padded_batches(), Logit() if layer is None else Logit() + Feature({layer: layer})
    options: dict[str, Any] = {"teacher": Encoder(8, seed=1), "method": method, "precision": precision, "epochs": 1}
    run = fit(Encoder(4, seed=0), given, validation=given, **options)
    assert run.validation_accuracy == train.evaluate(run.student, given, device="cpu", precision=precision).accuracy


def test_features_at_padded_positions_are_what_the_layer_computes_there() -> None:
    teacher, batch = Encoder(8, seed=1), padded_batches()[0]
    with torch.enable_grad():  # with a gradient torch takes the plain path
        wanted = teacher.eval().enc(teacher.embed(batch["ids"]), src_key_padding_mask=~batch["mask"])
    features = FrozenTeacher(teacher)(batch, ["enc"]).features["enc"]
    torch.testing.assert_close(features, wanted)
    assert torch.backends.mha.get_fastpath_enabled()  # the caller's own networks keep it


def test_a_copy_made_in_the_callback_is_a_plain_network() -> None:
    """And to copy, run and save it changes nothing."""
    options: dict[str, Any] = {"teacher": net(9, seed=1), "method": Logit() + Feature({"1": "1"}), "epochs": 3}
    options |= {"validation": batches(), "recipe": RECIPE}
    kept: list[nn.Module] = []

    def keep(epoch: int, student: nn.Module) -> None:
        kept.append(copy.deepcopy(student))
        student.eval()(batches()[0][0])

    student = net()
    with_copies, without = fit(student, batches(), on_epoch_end=keep, **options), fit(net(), batches(), **options)
    assert [row["loss"] for row in with_copies.rows] == [row["loss"] for row in without.rows]
    for one in (*kept, student):
        assert not any(module._forward_hooks for module in one.modules())
    pickle.dumps(kept)
    assert same(weights(kept[-1]), weights(with_copies.student))


def test_an_exception_in_the_callback_stops_the_training(tmp_path: Path) -> None:
    """The checkpoint is that of the epoch before; the average is the network that the callback was given."""
    student, kept = net(), {}

    def stop(epoch: int, average: nn.Module) -> None:
        kept[epoch] = copy.deepcopy(average)
        if epoch == 3:
            raise InterruptedError

    options: dict[str, Any] = {"epochs": 5, "ema_decay": 0.9, "checkpoint": tmp_path / "a"}
    with pytest.raises(InterruptedError):
        fit(student, batches(), on_epoch_end=stop, **options)
    assert student.training
    assert not same(weights(student), weights(kept[3]))
    assert same(models.read_weights(tmp_path / "a"), weights(kept[2]))
    assert not any(module._forward_hooks for module in student.modules())


def test_an_evaluation_in_the_callback_may_read_layers_too() -> None:
    student, teacher, seen = net(), net(9, seed=1), []

    def read(epoch: int, student: nn.Module) -> None:
        with FeatureExtractor(student, ["1"]) as extractor:
            seen.append(extractor(batches()[0][0]).features["1"].shape)

    run = fit(student, batches(), teacher=teacher, method=Logit() + Feature({"1": "1"}), on_epoch_end=read)
    assert seen == [(8, 6), (8, 6)]
    assert len(run.rows) == 2


@pytest.mark.parametrize("mark", [-1, -100])
def test_samples_without_a_label_do_not_count_in_an_accuracy(mark: int) -> None:
    """Of half of the samples the label is not known; one batch has none."""
    whole = samples()
    labels = torch.where(torch.arange(48) % 4 < 2, whole.tensors[1], mark)
    labels[:8] = mark
    known = labels >= 0
    given = list(DataLoader(TensorDataset(whole.tensors[0], labels), 8))
    loss = nn.CrossEntropyLoss(ignore_index=mark)
    student, options = net(norm=False), {"device": "cpu", "precision": "fp32"}
    found = train.evaluate(student, given, loss=loss, **options)
    wanted = train.evaluate(student, [(whole.tensors[0][known], labels[known])], **options)
    assert (found.accuracy, found.loss) == pytest.approx((wanted.accuracy, wanted.loss))
    with pytest.raises(ValueError, match=f"ignore_index={mark}"):
        train.evaluate(student, given, **options)
    with pytest.raises(ValueError, match="without a label"):
        train.evaluate(student, given[:1], loss=loss, **options)

    teacher = net(9, seed=1)
    method = Logit(alpha=0.5, hard=lambda z, y: F.cross_entropy(z, y, ignore_index=mark, reduction="sum") / len(z))
    still = Recipe(learning_rate=1e-30, batch_size=8)
    row = fit(student, given, teacher=teacher, method=method, epochs=1, recipe=still, validation=given).rows[0]
    assert row["train_accuracy"] == pytest.approx(wanted.accuracy)
    assert row["validation_accuracy"] == pytest.approx(wanted.accuracy)
    bare = fit(student, given[:1], teacher=teacher, method=method, epochs=1)
    assert "train_accuracy" not in bare.rows[0]


@pytest.mark.parametrize("mark", [-1, -100])
def test_the_loss_that_is_advised_for_labels_below_0_bears_a_batch_without_labels(mark: int) -> None:
    inputs, labels = samples().tensors
    labels = torch.where(torch.arange(48) % 4 < 2, labels, mark)
    labels[:8] = mark
    given = list(DataLoader(TensorDataset(inputs, labels), 8))
    with pytest.raises(ValueError, match=f"from {mark} to") as refused:
        fit(net(norm=False), given, teacher=net(9, seed=1), method=Logit(alpha=0.5), epochs=1)
    advised = re.search(r"hard=(lambda .*?) for a method", str(refused.value))
    assert advised is not None
    hard = eval(advised[1], {"F": F})
    known = labels >= 0
    logits = torch.randn(48, 3)
    torch.testing.assert_close(hard(logits, labels), F.cross_entropy(logits[known], labels[known]))
    run = fit(net(norm=False), given, teacher=net(9, seed=1), method=Logit(alpha=0.5, hard=hard), epochs=2)
    assert all(math.isfinite(row["loss"]) for row in run.rows)
    found = train.evaluate(net(norm=False), given, loss=hard, device="cpu", precision="fp32")
    assert math.isfinite(found.loss)


def test_a_loss_that_needs_every_label_advises_what_helps_it() -> None:
    inputs, labels = samples(8).tensors
    unlabelled = [(inputs, torch.where(labels == 2, -1, labels))]
    ignoring = lambda z, y: F.cross_entropy(z, y, ignore_index=-1)  # noqa: E731
    for hard in (None, ignoring):
        with pytest.raises(ValueError, match="leave them out: dkd needs the label of every sample.*take kd") as refused:
            fit(net(norm=False), unlabelled, teacher=net(9, seed=1), method=Logit(loss="dkd", hard=hard))
        assert "ignore_index" not in str(refused.value)  # which a hard= of dkd cannot bring about
    fit(net(norm=False), unlabelled, teacher=net(9, seed=1), method=Logit(loss="kd", hard=ignoring))


def test_a_teacher_is_evaluated_on_its_own_inputs() -> None:
    adapter = Adapter(inputs="table", teacher_inputs="image", labels="species", teacher_logits="answer")

    class Teacher(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"answer": net(seed=1).eval()(x)}

    given = [{"table": torch.zeros(8, 5), "image": x, "species": labels} for x, labels in batches()]
    options = {"device": "cpu", "precision": "fp32"}
    found = train.evaluate(Teacher(), given, adapter=adapter, role="teacher", **options)
    assert found.accuracy == train.evaluate(net(seed=1), batches(), **options).accuracy


@pytest.mark.parametrize("way", SAMPLED)
def test_a_distributed_sampler_shuffles_anew_in_each_epoch(way: str) -> None:
    seen: list[int] = []

    class Watched(TensorDataset):
        def __getitem__(self, number: Any) -> tuple:
            seen.extend(np.atleast_1d(number).tolist())
            return super().__getitem__(number)

    watched = Watched(*samples().tensors)
    fit(net(), SAMPLED[way](watched, DistributedSampler(watched, num_replicas=1, rank=0)), epochs=2)
    first, second = seen[-96:-48], seen[-48:]
    assert sorted(first) == sorted(second)
    assert first != second
