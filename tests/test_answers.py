"""Answers of a teacher that came from elsewhere: files, probabilities, the best few, and which sample each is of."""

from __future__ import annotations

import itertools
import math
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from memory_blocks import MemoryBlocks
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from kdlib import answers, train
from kdlib.adapters import Adapter
from kdlib.data import NO_AUGMENTATION, DataModule, normalized_images
from kdlib.distiller import Distiller
from kdlib.methods import Feature, Logit
from kdlib.recipes import Recipe
from kdlib.teachers import CachedTeacher, FrozenTeacher

COUNT, CLASSES = 7, 3
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(COUNT, CLASSES, generator=GENERATOR)
NUMBERS = torch.tensor([30, 3, 12, 0, 25, 7, 18])  # not in order, and with gaps
INDEXED = Adapter(inputs=0, labels=1, indices=2)


def ask(cache: CachedTeacher, *numbers: int) -> Tensor:
    return cache({"index": torch.tensor(numbers)}).logits


def network(seed: int, width: int = 4, inputs: int = 64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, CLASSES))


# -------------------- where logits come from


def written(path: Path, form: str, indices: Tensor | None) -> Any:
    """The logits in this form, and where a file can say them, the indices."""
    more = {} if indices is None else {"indices": indices}
    if form == "tensor":
        return LOGITS
    if form == "array":
        return LOGITS.numpy()
    if form == "lists":
        return LOGITS.tolist()
    if form == "npy":
        np.save(path / "a.npy", LOGITS.numpy())
        return path / "a.npy"
    if form == "npz":
        np.savez(path / "a.npz", logits=LOGITS.numpy(), **{name: one.numpy() for name, one in more.items()})
        return path / "a.npz"
    save_file({"logits": LOGITS, **more}, path / "a.safetensors")
    return str(path / "a.safetensors")


@pytest.mark.parametrize("form", ["tensor", "array", "lists", "npy", "npz", "safetensors"])
def test_logits_come_from_memory_or_a_file_and_belong_to_the_samples_in_order(tmp_path: Path, form: str) -> None:
    cache = CachedTeacher.from_logits(written(tmp_path, form, None))
    torch.testing.assert_close(ask(cache, 6, 0, 3), LOGITS[[6, 0, 3]])
    assert ask(cache, 1).dtype == torch.float32


@pytest.mark.parametrize("form", ["tensor", "array", "npy", "npz", "safetensors"])
@pytest.mark.parametrize("kind", [Tensor, np.ndarray, list])
def test_indices_say_which_sample_each_answer_is_of(tmp_path: Path, form: str, kind: type) -> None:
    given = {Tensor: NUMBERS, np.ndarray: NUMBERS.numpy(), list: NUMBERS.tolist()}[kind]
    cache = CachedTeacher.from_logits(written(tmp_path, form, None), given)
    torch.testing.assert_close(ask(cache, 0, 30, 25), LOGITS[[3, 0, 4]])


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_a_file_may_hold_the_indices_and_those_that_are_given_win(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, form, NUMBERS)
    torch.testing.assert_close(ask(CachedTeacher.from_logits(path), 18), LOGITS[[6]])
    torch.testing.assert_close(ask(CachedTeacher.from_logits(path, range(COUNT)), 6), LOGITS[[6]])


def test_half_precision_and_double_become_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        found = ask(CachedTeacher.from_logits(LOGITS.to(dtype)), 2)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, LOGITS[[2]].to(dtype).float())


def test_answers_that_carry_a_gradient_are_constants_all_the_same() -> None:
    given = LOGITS.clone().requires_grad_()
    cache = CachedTeacher.from_logits(given)
    student = torch.zeros(2, CLASSES, requires_grad=True)
    for _ in range(2):
        F.mse_loss(student, ask(cache, 0, 1)).backward()
    assert given.grad is None


def test_the_fingerprint_tells_answers_and_their_order_apart() -> None:
    first, same = CachedTeacher.from_logits(LOGITS), CachedTeacher.from_logits(LOGITS.numpy())
    assert first.fingerprint == same.fingerprint
    others = CachedTeacher.from_logits(LOGITS + 1), CachedTeacher.from_logits(LOGITS, NUMBERS)
    assert len({first.fingerprint, *(one.fingerprint for one in others)}) == 3


# -------------------- probabilities


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_probabilities_teach_what_their_logits_teach(temperature: float) -> None:
    probabilities = LOGITS.softmax(dim=1)
    for given, kind in ((probabilities, "probabilities"), (probabilities.log(), "log_probabilities")):
        found = ask(CachedTeacher.from_logits(given, kind=kind), *range(COUNT))
        torch.testing.assert_close(found, probabilities.log())
        torch.testing.assert_close((found / temperature).softmax(1), (LOGITS / temperature).softmax(1))


def test_a_file_of_probabilities_may_call_them_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", probabilities=LOGITS.softmax(dim=1).numpy())
    found = ask(CachedTeacher.from_logits(tmp_path / "a.npz", kind="probabilities"), 4)
    torch.testing.assert_close(found, LOGITS[[4]].log_softmax(dim=1))


def test_probabilities_of_zero_are_counted_and_become_finite() -> None:
    given = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    with pytest.warns(UserWarning, match="3 of 6 probabilities are 0"):
        found = ask(CachedTeacher.from_logits(given, kind="probabilities"), 0, 1)
    assert found.isfinite().all()
    torch.testing.assert_close(found.exp(), given, atol=1e-7, rtol=0)
    torch.testing.assert_close(found[0, 1].item(), math.log(1e-8))


def as_kind(probabilities: Tensor, kind: str) -> Tensor:
    return probabilities.log() if kind == "log_probabilities" else probabilities


@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities"])
def test_a_probability_that_is_not_zero_is_kept_however_small(kind: str) -> None:
    given = torch.tensor([[1.0, 1e-12, 1e-30]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ask(CachedTeacher.from_logits(as_kind(given, kind), kind=kind), 0)
    torch.testing.assert_close(found, given.log())


@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities"])
def test_a_probability_of_zero_becomes_no_larger_than_the_smallest_of_its_row(kind: str) -> None:
    given = torch.tensor([[1.0, 1e-12, 0.0], [0.5, 0.0, 0.5], [1.0, 1e-6, 0.0]])
    with pytest.warns(UserWarning, match="3 of 9 probabilities are 0"):
        found = ask(CachedTeacher.from_logits(as_kind(given, kind), kind=kind), 0, 1, 2)
    expected = torch.tensor([[1.0, 1e-12, 1e-12], [0.5, 1e-8, 0.5], [1.0, 1e-6, 1e-8]])
    torch.testing.assert_close(found, expected.log())


def test_rounded_probabilities_are_accepted_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CachedTeacher.from_logits(torch.tensor([[0.33, 0.33, 0.33]]), kind="probabilities")


# -------------------- the best few


def test_what_the_best_leave_is_spread_evenly_over_the_others() -> None:
    given = {"classes": [[2, 0], [1, 4]], "probabilities": [[0.7, 0.1], [0.5, 0.2]]}
    found = ask(CachedTeacher.from_logits(given, kind="top_k", num_classes=5), 0, 1).exp()
    expected = torch.tensor([[0.1, 0.2 / 3, 0.7, 0.2 / 3, 0.2 / 3], [0.1, 0.5, 0.1, 0.1, 0.2]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))


def test_the_best_of_all_classes_are_the_distribution_itself() -> None:
    probabilities = LOGITS.softmax(dim=1)
    best = probabilities.topk(CLASSES)
    given = {"classes": best.indices, "probabilities": best.values}
    found = CachedTeacher.from_logits(given, NUMBERS, kind="top_k", num_classes=CLASSES)
    torch.testing.assert_close(ask(found, 12).exp(), probabilities[[2]])


def test_the_best_may_be_logarithms_and_may_come_from_a_file(tmp_path: Path) -> None:
    best = {"classes": np.array([[1], [0]]), "log_probabilities": np.log([[0.8], [0.4]])}
    np.savez(tmp_path / "best.npz", **best, indices=np.array([5, 2]))
    for given, numbers in ((best, [0, 1]), (tmp_path / "best.npz", [5, 2])):
        found = ask(CachedTeacher.from_logits(given, kind="top_k", num_classes=3), *numbers)
        torch.testing.assert_close(found.exp(), torch.tensor([[0.1, 0.8, 0.1], [0.4, 0.3, 0.3]]))


def test_best_that_leave_each_other_class_more_than_they_have_are_refused() -> None:
    scores = {"classes": [[0, 1]], "probabilities": [[0.2, 0.1]]}  # of sigmoids: 0.7 would be left for class 2
    with pytest.raises(ValueError, match="leave 0.7 for each other class.*num_classes"):
        CachedTeacher.from_logits(scores, kind="top_k", num_classes=3)
    unsure = {"classes": [[0, 1], [3, 2]], "probabilities": [[0.3, 0.25], [0.25, 0.25]]}
    found = ask(CachedTeacher.from_logits(unsure, kind="top_k", num_classes=4), 0, 1).exp()
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.25, 0.225, 0.225], [0.25, 0.25, 0.25, 0.25]]))


def test_best_that_leave_nothing_make_the_others_tiny_and_finite() -> None:
    given = {"classes": [[1]], "probabilities": [[1.0]]}
    found = ask(CachedTeacher.from_logits(given, kind="top_k", num_classes=3), 0)
    assert found.isfinite().all()
    torch.testing.assert_close(found.exp(), torch.tensor([[0.0, 1.0, 0.0]]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities"])
def test_a_class_that_is_not_named_is_no_likelier_than_a_small_one_that_is(kind: str) -> None:
    best = torch.tensor([[1.0, 1e-12], [1.0, 1e-6], [1 - 6e-8, 1e-12]])  # the last as a float's sum may be rounded
    given = {"classes": [[1, 0]] * 3, kind: as_kind(best, kind)}
    found = ask(CachedTeacher.from_logits(given, kind="top_k", num_classes=4), 0, 1, 2)
    torch.testing.assert_close(found[0], torch.tensor([1e-12, 1.0, 1e-12, 1e-12]).log())
    torch.testing.assert_close(found[1], torch.tensor([1e-6, 1.0, 1e-8, 1e-8]).log())
    torch.testing.assert_close(found[2], found[0])


def test_logarithms_of_the_best_are_kept_where_their_probability_is_too_small_for_a_float() -> None:
    given = {"classes": [[0, 1]], "log_probabilities": [[0.0, -200.0]]}
    found = ask(CachedTeacher.from_logits(given, kind="top_k", num_classes=3), 0)
    torch.testing.assert_close(found, torch.tensor([[0.0, -200.0, -200.0]]))


def test_the_best_of_all_classes_may_be_rounded() -> None:
    given = {"classes": [[0, 1, 2]], "probabilities": [[0.33, 0.33, 0.33]]}
    found = ask(CachedTeacher.from_logits(given, kind="top_k", num_classes=3), 0)
    torch.testing.assert_close(found.exp(), torch.full((1, 3), 0.33))


# -------------------- large tables


def large(kind: str) -> tuple[Any, list[Tensor]]:
    """Answers of this kind for 100 samples of 200 classes, with zeros, and the tensors that hold them."""
    probabilities = torch.rand(100, 200, generator=torch.Generator().manual_seed(1))
    probabilities[::3, 1:5] = 0
    probabilities /= probabilities.sum(dim=1, keepdim=True)
    if kind == "top_k":
        best = probabilities.topk(3)
        return {"classes": best.indices, "probabilities": best.values * 20}, [best.indices]
    values = probabilities.half() if kind == "logits" else as_kind(probabilities, kind)
    return values, [values]


@pytest.mark.filterwarnings("ignore:.*probabilities are 0")
@pytest.mark.parametrize("kind", ["logits", "probabilities", "log_probabilities", "top_k"])
def test_a_table_is_made_once_and_a_few_rows_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, held = large(kind)
    whole = ask(CachedTeacher.from_logits(given, kind=kind, num_classes=200), *range(100))
    monkeypatch.setattr(answers, "CHUNK", 850)  # numbers: four rows
    with MemoryBlocks(*held) as memory:
        cache = CachedTeacher.from_logits(given, kind=kind, num_classes=200)
    assert sum(size > whole.nbytes / 10 for size in memory.sizes.values()) == 1
    assert torch.equal(ask(cache, *range(100)), whole)


@pytest.mark.filterwarnings("ignore:.*probabilities are 0")
@pytest.mark.parametrize("kind", ["logits", "probabilities", "log_probabilities", "top_k"])
def test_a_table_that_takes_much_memory_is_told(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, _ = large(kind)
    monkeypatch.setattr(answers, "LARGE_TABLE", 1.0)
    with pytest.warns(UserWarning, match="logits of 100 samples and 200 classes take .* GB of memory") as caught:
        CachedTeacher.from_logits(given, kind=kind, num_classes=200)
    assert all(one.filename == __file__ for one in caught)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_answers_that_carry_a_gradient_are_converted_without_it(kind: str) -> None:
    given = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    found = answers.to_logits(given.softmax(1) if kind == "probabilities" else given, kind)
    assert not found.requires_grad
    torch.testing.assert_close(found.softmax(1), given.detach().float().softmax(1))


def test_a_table_that_is_in_memory_already_needs_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LARGE_TABLE", 1.0)
    with warnings.catch_warnings(), MemoryBlocks(LOGITS) as memory:
        warnings.simplefilter("error")
        CachedTeacher.from_logits(LOGITS)
    assert LOGITS.nbytes not in memory.sizes.values()


# -------------------- in a training


def answers_of(teacher: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return teacher.eval()(images)


@pytest.mark.parametrize("shuffled", [False, True])
def test_fit_on_a_data_module_gives_the_live_teachers_student(blobs: DataModule, shuffled: bool) -> None:
    teacher, train_split = network(1), blobs.train
    order = torch.randperm(len(train_split)) if shuffled else torch.arange(len(train_split))
    cache = CachedTeacher.from_logits(
        answers_of(teacher, normalized_images(train_split))[order], train_split.indices[order]
    )
    runs = [
        train.fit(
            network(2),
            blobs,
            teacher=one,
            method=Logit(temperature=4, alpha=0.3),
            epochs=2,
            augmentation=NO_AUGMENTATION,
            recipe=Recipe(batch_size=32),
            device="cpu",
            precision="fp32",
            test=False,
            progress=False,
        )
        for one in (teacher, cache)
    ]
    for live, stored in zip(*(run.rows for run in runs), strict=True):
        for name in ("loss", "hard", "soft", "validation_loss"):
            assert live[name] == pytest.approx(stored[name], abs=1e-5)


def test_augmented_images_are_refused_unless_any_view_is_allowed(blobs: DataModule) -> None:
    logits = answers_of(network(1), normalized_images(blobs.train))
    options: dict[str, Any] = {"epochs": 1, "device": "cpu", "precision": "fp32", "test": False, "progress": False}
    with pytest.raises(ValueError, match="NO_AUGMENTATION.*any_view=True"):
        train.fit(network(2), blobs, teacher=CachedTeacher.from_logits(logits), **options)
    accepted = CachedTeacher.from_logits(logits, any_view=True)
    assert train.fit(network(2), blobs, teacher=accepted, **options).rows[0]["soft"] > 0


def test_answers_for_some_of_the_images_serve_a_subset_of_them(blobs: DataModule) -> None:
    small = blobs.subset(30)
    logits = answers_of(network(1), normalized_images(small.train))
    options: dict[str, Any] = {"epochs": 1, "device": "cpu", "precision": "fp32", "test": False, "progress": False}
    cache = CachedTeacher.from_logits(logits, small.train.indices)
    with pytest.raises(ValueError, match="no answers for 66 of the 96 training images"):
        train.fit(network(2), blobs, teacher=cache, augmentation=NO_AUGMENTATION, **options)
    train.fit(network(2), small, teacher=cache, augmentation=NO_AUGMENTATION, **options)


def indexed_loader(numbers: Tensor) -> DataLoader:
    images = torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(images, torch.arange(COUNT) % CLASSES, numbers), 4, shuffle=True)


@pytest.mark.parametrize("numbers", [torch.arange(COUNT), NUMBERS, NUMBERS.int()])
def test_a_loader_that_gives_indices_has_the_live_teachers_losses(numbers: Tensor) -> None:
    teacher, student, loader = network(1, inputs=5), network(2, inputs=5), indexed_loader(numbers)
    stored = answers_of(teacher, loader.dataset.tensors[0])
    cache = CachedTeacher.from_logits(stored, numbers.long())
    method = Logit(temperature=3, alpha=0.2)
    by = {
        name: Distiller(student, one, method, adapter=INDEXED) for name, one in {"live": teacher, "kept": cache}.items()
    }
    for batch in loader:
        live, kept = by["live"](batch), by["kept"](batch)
        torch.testing.assert_close(live.total, kept.total, atol=1e-5, rtol=0)
        assert list(live.terms) == list(kept.terms)


def test_fit_takes_them_with_a_loader() -> None:
    teacher, loader = network(1, inputs=5), indexed_loader(NUMBERS)
    stored = answers_of(teacher, loader.dataset.tensors[0])
    cache = CachedTeacher.from_logits(stored, NUMBERS)
    runs = [
        train.fit(
            network(2, inputs=5),
            loader,
            teacher=one,
            adapter=INDEXED,
            epochs=2,
            device="cpu",
            precision="fp32",
            progress=False,
        )
        for one in (FrozenTeacher(teacher, read_inputs=INDEXED.teacher_inputs_of), cache)
    ]
    assert runs[0].rows[-1]["loss"] == pytest.approx(runs[1].rows[-1]["loss"], abs=1e-5)


# -------------------- answers of samples as they are, in a loader that augments


def torch_noise(images: Tensor) -> Tensor:
    return images + torch.randn(images.shape)


def numpy_noise(images: Tensor) -> Tensor:
    return images + torch.from_numpy(np.random.randn(*images.shape)).float()


def python_noise(images: Tensor) -> Tensor:
    return images * random.random()


class Numbered(Dataset):
    """Pictures, labels, numbers, and a mark that no network is called with."""

    def __init__(
        self, change: Callable[[Tensor], Tensor] = torch.clone, mark: Callable[[int], float] = float, first: int = 0
    ) -> None:
        self.images = torch.randn(32, 5, generator=torch.Generator().manual_seed(1))
        self.change, self.mark, self.first = change, mark, first

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        if number < self.first:
            raise AssertionError(f"sample {number} is not read")
        return self.change(self.images[number]), number % CLASSES, number, self.mark(number)


class OwnNoise(Numbered):
    """Its generator is its own: each worker process begins with a copy of it."""

    def __init__(self) -> None:
        super().__init__(self.add_noise)
        self.random = np.random.default_rng(0)

    def add_noise(self, image: Tensor) -> Tensor:
        return image + torch.from_numpy(self.random.standard_normal(5, dtype=np.float32))


class WholeBatches(Numbered):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Any:
        return default_collate([super(WholeBatches, self).__getitem__(8 * number + one) for one in range(8)])


class Streamed(IterableDataset):
    def __iter__(self) -> Any:
        return map(Numbered(torch_noise).__getitem__, range(32))


def noisy_batch(samples: list[Any]) -> Any:
    images, *others = default_collate(samples)
    return torch_noise(images), *others


def fit_on(loader: Any, *, any_view: bool = False, **options: Any) -> Any:
    given = torch.randn(32, CLASSES, generator=torch.Generator().manual_seed(2))
    settings = {"teacher": CachedTeacher.from_logits(given, any_view=any_view), "adapter": INDEXED, "epochs": 1}
    on_cpu = {"device": "cpu", "precision": "fp32", "progress": False}
    return train.fit(network(2, inputs=5), loader, **(settings | on_cpu | options))


AT_RANDOM: dict[str, Callable[[], Any]] = {
    "by torch": lambda: DataLoader(Numbered(torch_noise), 8, shuffle=True),
    "by NumPy": lambda: DataLoader(Numbered(numpy_noise), 8),
    "by Python": lambda: DataLoader(Numbered(python_noise), 8),
    "a dataset": lambda: Numbered(torch_noise),
    "by a generator of its own": lambda: DataLoader(OwnNoise(), 8),
    "in worker processes": lambda: DataLoader(OwnNoise(), 8, num_workers=2),
    "in collate_fn": lambda: DataLoader(Numbered(), 8, collate_fn=noisy_batch),
    "with a sampler of batches": lambda: DataLoader(Numbered(torch_noise), batch_sampler=[[1, 2, 3], [4, 5, 6]]),
    "in whole batches": lambda: DataLoader(WholeBatches(torch_noise), batch_size=None),
}


@pytest.mark.parametrize("name", AT_RANDOM)
def test_a_loader_that_augments_is_refused_unless_any_view_is_allowed(name: str) -> None:
    with pytest.raises(ValueError, match="augment.*any_view=True"):
        fit_on(AT_RANDOM[name]())
    assert fit_on(AT_RANDOM[name](), any_view=True).rows


def test_an_adapter_that_augments_is_refused_as_a_dataset_is() -> None:
    adapter = Adapter(inputs=lambda batch: torch_noise(batch[0]), labels=1, indices=2)
    with pytest.raises(ValueError, match="augment.*any_view=True"):
        fit_on(Numbered(), adapter=adapter)
    assert fit_on(Numbered(), adapter=adapter, any_view=True).rows


def test_a_teacher_that_is_asked_live_takes_augmented_samples() -> None:
    assert fit_on(Numbered(torch_noise), teacher=network(1, inputs=5)).rows


def test_what_differs_may_be_what_the_teacher_was_not_asked_about() -> None:
    """A label, or the student's own view where the teacher's is named."""
    assert fit_on(Numbered(mark=lambda number: random.random())).rows

    class Views(Numbered):
        def __getitem__(self, number: int) -> Any:
            return torch_noise(self.images[number]), number % CLASSES, number, self.images[number]

    assert fit_on(Views(), adapter=Adapter(inputs=0, labels=1, indices=2, teacher_inputs=3)).rows


def test_samples_that_do_not_differ_leave_no_trace_of_having_been_read() -> None:
    def draw_three(number: int) -> float:
        return random.random() + float(np.random.rand()) + float(torch.rand(()))

    runs, states = [], []
    for any_view in (True, False):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        loader = DataLoader(Numbered(mark=draw_three), 8, shuffle=True, generator=torch.Generator().manual_seed(3))
        runs.append([row["loss"] for row in fit_on(loader, any_view=any_view, epochs=2).rows])
        states.append((random.random(), np.random.rand(), torch.rand(()).item(), loader.generator.get_state().tolist()))
    assert runs[0] == runs[1]
    assert states[0] == states[1]


def test_few_samples_are_read_before_the_training() -> None:
    read: list[int] = []

    def count(number: int) -> float:
        read.append(number)
        return 0.0

    fit_on(DataLoader(Numbered(mark=count), 8))
    assert len(read) <= 32 + 8 + 16  # an epoch, its first batch for the sizes, and four samples a few times


def test_a_dataset_that_cannot_be_read_so_is_left_alone() -> None:
    """Its own error, an AssertionError like that of a comparison, is no difference between two reads."""
    half = Numbered(first=16)
    assert fit_on(DataLoader(half, 8, sampler=range(16, 32))).rows
    assert fit_on(DataLoader(Streamed(), 8), steps_per_epoch=4).rows
    with pytest.raises(AssertionError, match="sample 15 is not read"):
        fit_on(DataLoader(half, 8, sampler=range(31, -1, -1)))


# -------------------- what is no answer


def with_value(row: int, column: int, value: float) -> Tensor:
    changed = LOGITS.softmax(dim=1)
    changed[row, column] = value
    return changed


def best(classes: Any, probabilities: Any, **more: Any) -> dict[str, Any]:
    return {"given": {"classes": classes, "probabilities": probabilities}, "kind": "top_k", "num_classes": 3, **more}


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one row": ({"given": LOGITS[0]}, ValueError, r"shape \(3,\).*row a sample"),
    "one class": (
        {"given": LOGITS[:, :1]},
        ValueError,
        r"shape \(7, 1\).*column for each class, two or more.*regression",
    ),
    "no sample": ({"given": LOGITS[:0]}, ValueError, r"shape \(0, 3\)"),
    "a number": ({"given": torch.tensor(1.0)}, ValueError, r"shape \(\)"),
    "nothing": ({"given": None}, TypeError, "tensor.*NoneType"),
    "a dict of logits": ({"given": {"logits": LOGITS}}, TypeError, "tensor.*dict"),
    "texts": ({"given": [["a", "b"]]}, TypeError, "lists of numbers.*list"),
    "rows of other lengths": ({"given": [[1.0, 2.0], [3.0]]}, TypeError, "equally many"),
    "objects": ({"given": np.array([[None, 1]], dtype=object)}, TypeError, "numbers"),
    "whole numbers": ({"given": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "floats.*int64"),
    "complex numbers": ({"given": torch.ones(2, 3, dtype=torch.complex64)}, TypeError, "floats.*complex64"),
    "not a number": ({"given": with_value(1, 1, math.nan)}, ValueError, "not finite"),
    "infinite": ({"given": with_value(1, 1, math.inf), "kind": "probabilities"}, ValueError, "not finite"),
    "unknown kind": ({"given": LOGITS, "kind": "logit"}, ValueError, "'logit'.*'logits'.*probabilities.*top_k"),
    "logits as probabilities": ({"given": LOGITS, "kind": "probabilities"}, ValueError, "sums to.*kind='logits'"),
    "sigmoids": (
        {"given": LOGITS.sigmoid(), "kind": "probabilities"},
        ValueError,
        r"sigmoid.*torch\.logit\(p, eps=1e-6\)",
    ),
    "percent": ({"given": 100 * LOGITS.softmax(1), "kind": "probabilities"}, ValueError, "100, not to 1"),
    "negative": (
        {"given": torch.tensor([[1.2, -0.2, 0.0]]), "kind": "probabilities"},
        ValueError,
        "no probabilities",
    ),
    "logits as logarithms": ({"given": LOGITS, "kind": "log_probabilities"}, ValueError, "no log_probabilities"),
    "other number of classes": ({"given": LOGITS, "num_classes": 4}, ValueError, "3 classes, not 4"),
    "indices twice": ({"given": LOGITS, "indices": [0, 1, 2, 3, 4, 5, 5]}, ValueError, "twice"),
    "negative indices": ({"given": LOGITS, "indices": [-1, 1, 2, 3, 4, 5, 6]}, ValueError, "0 or more"),
    "too few indices": ({"given": LOGITS, "indices": [0, 1]}, ValueError, r"7 whole numbers.*\(2,\)"),
    "indices that are floats": ({"given": LOGITS, "indices": LOGITS[:, 0]}, ValueError, "whole numbers.*float32"),
    "a mask": ({"given": LOGITS, "indices": [True] * 7}, ValueError, "whole numbers.*bool"),
    "names as indices": ({"given": LOGITS, "indices": list("abcdefg")}, TypeError, "indices are.*numbers"),
    "an enormous index": ({"given": LOGITS, "indices": [0, 1, 2, 3, 4, 5, 10**15]}, ValueError, "from 0 on"),
    "best without a dict": ({"given": LOGITS, "kind": "top_k", "num_classes": 3}, ValueError, 'dict of "classes"'),
    "best without classes": (
        {"given": {"probabilities": [[1.0]]}, "kind": "top_k", "num_classes": 3},
        ValueError,
        'dict of "classes"',
    ),
    "best, no number of classes": (best([[0]], [[0.5]], num_classes=None), ValueError, "give num_classes"),
    "best of another shape": (best([[0, 1]], [[0.5]]), ValueError, r"\(1, 2\).*\(1, 1\).*same shape"),
    "best of none": (best(torch.empty(2, 0).long(), torch.empty(2, 0)), ValueError, "at least one class"),
    "best of floats": (best([[1.7]], [[0.5]]), TypeError, "whole numbers.*float32"),
    "best by name": (best([["cat"]], [[0.5]]), TypeError, "classes are.*numbers"),
    "class out of range": (best([[3]], [[0.5]]), ValueError, r"to 3.*0 \.\. 2"),
    "negative class": (best([[-1]], [[0.5]]), ValueError, r"from -1.*0 \.\. 2"),
    "a class twice": (best([[0, 1], [2, 2]], [[0.5, 0.2], [0.5, 0.2]]), ValueError, "twice"),
    "best sum to more than one": (best([[0, 1]], [[0.7, 0.5]]), ValueError, "at most 1.*1.2"),
    "best of all classes sum to less than one": (
        best([[0, 1], [1, 0]], [[0.5, 0.5], [0.2, 0.1]], num_classes=2),
        ValueError,
        "of all 2 classes sum to 1; those of sample 1 sum to 0.3.*num_classes",
    ),
    "best negative": (best([[0, 1]], [[0.7, -0.5]]), ValueError, r"in \[0, 1\]"),
    "best not a number": (best([[0]], [[math.nan]]), ValueError, r"in \[0, 1\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_answer_is_refused_in_a_sentence(name: str) -> None:
    options, error, words = WRONG[name]
    with pytest.raises(error, match=words) as caught:
        CachedTeacher.from_logits(**options)
    assert re.search(r"^\S.{20,}[.]$", str(caught.value), re.DOTALL)


@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities"])
def test_what_probabilities_of_pixels_are_told_teaches_them(kind: str) -> None:
    """Not the advice for sigmoids, whose softmax is another."""
    p = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).softmax(1)
    logs = p.clamp(min=1e-8).log() if kind == "probabilities" else p.log().clamp(min=-18)
    advice = r"classes are last.*second.*(p\.clamp\(min=1e-8\)\.log\(\)|log_p\.clamp\(min=-18\)).*kind='logits'"
    with pytest.raises(ValueError, match=advice) as raised:
        CachedTeacher.from_logits(p if kind == "probabilities" else p.log(), kind=kind)
    assert "sigmoid" not in str(raised.value)
    teacher = CachedTeacher.from_logits(logs, kind="logits")
    found = teacher({"index": torch.arange(4)}).logits
    torch.testing.assert_close(found.softmax(1), p)
    with pytest.raises(ValueError, match="sigmoid"):
        CachedTeacher.from_logits(torch.rand(4, 3, 8, 8), kind="probabilities")


def test_what_sigmoids_are_told_to_do_works_where_a_service_has_rounded_them() -> None:
    given = torch.tensor([[1.0, 0.0, 0.5], [0.9, 0.2, 0.1]])
    with pytest.raises(ValueError, match="torch.logit") as caught:
        CachedTeacher.from_logits(given, kind="probabilities")
    advice = re.search(r"torch\.logit\(p, [^)]*\)", str(caught.value))
    assert advice is not None
    answers = eval(advice[0], {"torch": torch, "p": given})
    cache = CachedTeacher.from_logits(answers, kind="logits")
    torch.testing.assert_close(ask(cache, 0).sigmoid(), given[:1], rtol=0, atol=1e-5)


def pickled(path: Path) -> Path:
    np.save(path / "a.npy", np.array([{"logits": 1}], dtype=object), allow_pickle=True)
    return path / "a.npy"


def pickled_within(path: Path) -> Path:
    np.savez(path / "a.npz", logits=np.array([{"logits": 1}], dtype=object))
    return path / "a.npz"


def cut(form: str, keep: int) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        whole = Path(written(path, form, None))
        whole.write_bytes(whole.read_bytes()[:keep])
        return whole

    return write


def text(name: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        (path / name).write_text("0.1, 0.2, 0.7")
        return path / name

    return write


def unnamed(path: Path) -> Path:
    np.savez(path / "a.npz", LOGITS.numpy())
    return path / "a.npz"


WRONG_FILES: dict[str, tuple[Callable[[Path], Path], type[Exception], str]] = {
    "a pickle": (pickled, ValueError, "cannot be read.*Save it anew"),
    "a pickle in an archive": (pickled_within, ValueError, "cannot be read.*Save it anew"),
    "an .npy cut short": (cut("npy", 150), ValueError, "cannot be read.*Save it anew"),
    "an .npz cut short": (cut("npz", 150), ValueError, "cannot be read.*Save it anew"),
    "an empty file": (cut("npz", 0), ValueError, "cannot be read.*Save it anew"),
    "a .safetensors cut short": (cut("safetensors", 100), ValueError, "truncated"),
    "a text": (text("answers.csv"), ValueError, r"no \.safetensors, \.npz or \.npy.*numpy\.save"),
    "a text called .npy": (text("answers.npy"), ValueError, "cannot be read"),
    "a text called .npz": (text("answers.npz"), ValueError, "cannot be read"),
    "a text called .safetensors": (text("a.safetensors"), ValueError, "not a readable safetensors"),
    "no file": (lambda path: path / "none.npy", FileNotFoundError, "no file .*none.npy"),
    "a folder": (lambda path: path, FileNotFoundError, "no file"),
    "an array without a name": (unnamed, ValueError, "holds arr_0; expected 'logits'"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_file_that_holds_no_answers_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    write, error, words = WRONG_FILES[name]
    with pytest.raises(error, match=re.compile(words, re.DOTALL)):
        CachedTeacher.from_logits(write(tmp_path))


@pytest.mark.parametrize("compressed", [None, False, True], ids=["npy", "npz", "compressed npz"])
def test_a_file_with_a_wrong_byte_is_read_or_refused_in_a_sentence(tmp_path: Path, compressed: bool | None) -> None:
    path = tmp_path / ("a.npy" if compressed is None else "a.npz")
    if compressed is None:
        np.save(path, LOGITS[:4].numpy())
    else:
        (np.savez_compressed if compressed else np.savez)(path, logits=LOGITS[:4].numpy())
    whole, said = path.read_bytes(), []
    for position, bit in itertools.product(range(len(whole)), (0, 4, 6)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            answers.read_file(path)
        except ValueError as error:  # nothing else
            said.append(str(error))
    assert said
    assert all(str(path) in one for one in said)


def test_no_file_runs_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        answers.read_file(tmp_path / "bomb.npy")
    assert not (tmp_path / "exploded").exists()


def test_an_unknown_sample_in_a_batch_is_named() -> None:
    cache = CachedTeacher.from_logits(LOGITS, NUMBERS)
    for unknown in (1, 31, 10**9, -1):
        with pytest.raises(ValueError, match=rf"no answers for 1 of the 2 samples.*number {unknown}\."):
            ask(cache, 12, unknown)


@pytest.mark.parametrize("wrong", [torch.tensor([0.0, 1.0]), torch.tensor([True, False]), [0, 1], torch.tensor([[0]])])
def test_numbers_of_a_batch_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="whole numbers.*Adapter"):
        CachedTeacher.from_logits(LOGITS)({"index": wrong})


def test_numbers_of_few_bits_are_no_mask() -> None:
    few = torch.tensor([1, 0, 1], dtype=torch.uint8)
    torch.testing.assert_close(CachedTeacher.from_logits(LOGITS)({"index": few}).logits, LOGITS[[1, 0, 1]])


def test_a_batch_without_numbers_is_refused_with_the_way_to_give_them() -> None:
    distiller = Distiller(network(0, inputs=5), CachedTeacher.from_logits(LOGITS), Logit())
    with pytest.raises(ValueError, match=r"numbers.*Adapter\(inputs=0, labels=1, indices=2\)"):
        distiller((torch.randn(2, 5), torch.tensor([0, 1])))


def test_answers_have_no_layers() -> None:
    cache = CachedTeacher.from_logits(LOGITS)
    batch = {"x": torch.randn(2, 5), "labels": torch.tensor([0, 1]), "index": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match="holds no outputs of .'1'."):
        Distiller(network(0, inputs=5), cache, Feature({"1": "1"}), example=batch)


def test_a_number_of_classes_may_be_one_of_numpy() -> None:
    given = {"classes": [[0, 1]], "probabilities": [[0.5, 0.4]]}
    assert answers.from_top_k(given, np.int64(10)).shape == (1, 10)
    with pytest.raises(ValueError, match="a whole number; got True"):
        answers.from_top_k(given, True)


def test_logarithms_of_zero_are_counted_and_become_finite_as_zeros_do() -> None:
    given = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    with pytest.warns(UserWarning, match="3 of 6 probabilities are 0"):
        logits = answers.to_logits(given.log(), "log_probabilities")
    with pytest.warns(UserWarning, match="3 of 6"):
        torch.testing.assert_close(logits, answers.to_logits(given, "probabilities"))
    with pytest.raises(ValueError, match="not finite"):
        answers.to_logits(torch.tensor([[math.nan, 0.0]]), "log_probabilities")


def test_the_best_may_sum_to_a_little_more_than_one_by_rounding() -> None:
    given = {"classes": torch.tensor([[0, 1, 2]]), "probabilities": torch.tensor([[0.34, 0.34, 0.33]])}
    assert bool(answers.from_top_k(given, 4).isfinite().all())
    with pytest.raises(ValueError, match="at most 1; here a row sums to 1.02"):
        answers.from_top_k({**given, "probabilities": torch.tensor([[0.35, 0.34, 0.33]])}, 4)


def test_the_best_few_are_not_taken_for_all() -> None:
    with pytest.raises(ValueError, match="kind='top_k'"):
        answers.to_logits(torch.tensor([[0.5, 0.35, 0.0]]), "probabilities")
    assert answers.to_logits(torch.tensor([[0.33, 0.33, 0.33]]), "probabilities").shape == (1, 3)
