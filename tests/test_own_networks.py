"""What an engineer's own networks and data may be: layers under two names, 16 bits, frozen parts, wrappers, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdlib import data, devices, methods, models, train
from kdlib.adapters import Adapter
from kdlib.distiller import Distiller
from kdlib.teachers import FrozenTeacher

QUICK: dict[str, Any] = {"progress": False, "device": "cpu", "precision": "fp32"}
RECIPE = train.Recipe("adamw", 1e-2, batch_size=16)
X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.tensor([[1.0, -1, 0], [0, 1, -1], [1, 1, 1], [0, -1, 1]])).argmax(1)
SAMPLES = TensorDataset(X, Y)


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Repeated(nn.Module):
    """One layer three times, as networks with shared blocks have it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layers, self.last = nn.Linear(4, 8), nn.ModuleList([nn.Linear(8, 8)] * 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.last(x)


class Aliased(nn.Module):
    """A network inside another that also names one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.base = mlp()
        self.head = self.base[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x)


# -------------------- layers under two names, in bfloat16


@pytest.mark.parametrize("network", [Repeated, Aliased])
def test_evaluation_in_bfloat16_leaves_a_layer_under_two_names_as_it_is(network: Callable[[], nn.Module]) -> None:
    model = network()
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters(remove_duplicate=False)}
    exact = model(X)
    found = train.evaluate(model, DataLoader(SAMPLES, 16), device="cpu", precision="bf16")
    torch.testing.assert_close(found.logits, exact, rtol=0.05, atol=0.02)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    for name, (parameter, value) in before.items():
        assert after[name] is parameter, name
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize("network", [Repeated, Aliased])
def test_a_teacher_with_a_layer_under_two_names_answers_as_under_autocast(network: Callable[[], nn.Module]) -> None:
    model = network().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(X)
    teacher = FrozenTeacher(model, read_inputs=lambda batch: batch)
    with teacher.activate((), devices.resolve("cpu", "bf16")):
        for _ in range(3):  # from the second on with weights that are cast once
            assert torch.equal(teacher(X).logits, expected)


def test_a_layer_under_two_names_goes_on_learning_in_bfloat16() -> None:
    student, seen = Repeated(), []
    train.fit(
        student,
        DataLoader(SAMPLES, 16),
        validation=DataLoader(SAMPLES, 16),
        epochs=3,
        recipe=RECIPE,
        on_epoch_end=lambda epoch, model: seen.append(model.layers[0].weight.detach().clone()),
        **{**QUICK, "precision": "bf16"},
    )
    assert isinstance(student.layers[0].weight, nn.Parameter)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_method_that_occurs_twice_keeps_its_projectors_in_bfloat16() -> None:
    class Maps(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, width, 3), nn.Linear(width, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).mean((2, 3)))

    torch.manual_seed(0)
    part = methods.Feature({"stem": "stem"})
    batch = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    distiller = Distiller(Maps(2), Maps(4), methods.HardLabels() + part + 2 * part, example=batch)
    distiller.method.to(torch.bfloat16)
    before = dict(distiller.method.named_parameters(remove_duplicate=False))
    distiller.train()
    distiller(batch)
    after = dict(distiller.method.named_parameters(remove_duplicate=False))
    assert all(after[name] is before[name] for name in before)


def test_a_teacher_in_float64_teaches_under_bfloat16() -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp().double()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.double())

    teacher = FrozenTeacher(Double(), read_inputs=lambda batch: batch)
    with teacher.activate((), devices.resolve("cpu", "bf16")):
        first, second = teacher(X).logits, teacher(X).logits
    assert torch.equal(first, second)
    assert first.dtype == torch.float64


# -------------------- numbers that bfloat16 would round


def test_numbers_are_measured_in_float32_unless_bfloat16_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "supports_bfloat16", lambda device: True)
    exact = nn.Linear(4, 1)
    prices = 250_000 + 1000 * X[:, :1]
    with torch.no_grad():
        exact.weight.copy_(torch.tensor([[1000.0, 0, 0, 0]]))
        exact.bias.fill_(250_000)
    options: dict[str, Any] = {"task": "regression", "loss": F.l1_loss, "device": "cpu"}
    loader = DataLoader(TensorDataset(X, prices), 16)
    assert train.evaluate(exact, loader, **options).loss < 0.1
    assert train.evaluate(exact, loader, precision="bf16", **options).loss > 50
    method = methods.HardLabels(hard=F.mse_loss)
    run = train.fit(exact, loader, method=method, task="regression", epochs=1, device="cpu", progress=False)
    assert run.device == "cpu, float32"


@pytest.mark.parametrize("normalised", [False, True])
def test_a_table_whose_values_bfloat16_does_not_tell_apart(normalised: bool, recwarn: pytest.WarningsRecorder) -> None:
    years = torch.randint(1990, 2000, (64, 2)).float()

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x - 1995) / 3 if normalised else x)

    torch.manual_seed(0)
    options = {**QUICK, "precision": "bf16"}
    train.fit(Student(), TensorDataset(years, Y), epochs=1, recipe=RECIPE, **options)
    said = [str(one.message) for one in recwarn if "does not tell apart" in str(one.message)]
    assert len(said) == (not normalised)
    assert all("precision='fp32'" in one for one in said)


def test_a_student_in_sixteen_bits_is_told_what_happens_to_small_steps() -> None:
    with pytest.warns(UserWarning, match=r"weights have 16 bits \(0\.weight.*Call student\.float\(\)"):
        train.fit(mlp().bfloat16(), TensorDataset(X.bfloat16(), Y), epochs=1, recipe=RECIPE, **QUICK)


# -------------------- language models


def tokens(labels: Tensor, ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "labels": labels}


def test_a_language_model_is_not_trained_or_judged_to_copy_its_input() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head(self.embed(input_ids))

    ids = torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    padded = ids.clone()
    padded[:, 4:] = -100
    options: dict[str, Any] = {"task": "token-classification", "epochs": 1, **QUICK}
    for labels in (ids.clone(), padded):
        with pytest.raises(ValueError, match=r"label of each token is the token itself.*Adapter\(labels=lambda batch"):
            train.fit(Model(), [tokens(labels, ids)], **options)
        # Of a text without errors, which is to be corrected, it may be meant.
        with pytest.warns(UserWarning, match="label of each token is the token itself"):
            train.evaluate(Model(), [tokens(labels, ids)], task="token-classification")
    shifted = Adapter(inputs="input_ids", labels=lambda batch: F.pad(batch["labels"][:, 1:], (0, 1), value=-100))
    train.fit(Model(), [tokens(ids.clone(), ids)], adapter=shifted, **options)
    train.fit(Model(), [tokens(ids.flip(1), ids)], adapter=Adapter(inputs="input_ids"), **options)


# -------------------- averages, frozen parts, other optimisers


def test_an_average_that_is_still_the_initial_student_is_called_so() -> None:
    with pytest.warns(UserWarning, match=r"ema_decay=0\.999 and 8 updates .* still 99% .* at most 0\.652"):
        train.fit(mlp(), SAMPLES, epochs=2, ema_decay=0.999, recipe=RECIPE, **QUICK)


def test_an_average_of_one_update_is_the_student(recwarn: pytest.WarningsRecorder) -> None:
    train.fit(mlp(), TensorDataset(X[:16], Y[:16]), epochs=1, ema_decay=0.9, recipe=RECIPE, **QUICK)
    assert not [one for one in recwarn if "ema_decay" in str(one.message)]


def test_an_average_that_is_long_enough_is_not(recwarn: pytest.WarningsRecorder) -> None:
    train.fit(mlp(), SAMPLES, epochs=2, ema_decay=0.6, recipe=RECIPE, **QUICK)
    assert not [one for one in recwarn if "ema_decay" in str(one.message)]


def test_a_layer_that_is_unfrozen_in_the_middle_is_named() -> None:
    student = mlp()
    student[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"0\.weight, 0\.bias got requires_grad .* the optimiser does not hold them"):
        train.fit(
            student,
            SAMPLES,
            epochs=3,
            recipe=RECIPE,
            on_epoch_end=lambda epoch, model: student[0].requires_grad_(True),
            **QUICK,
        )


def test_what_a_training_cannot_work_with_is_said_before_it() -> None:
    pruned = mlp()
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    with pytest.raises(ValueError, match=r"ema_decay needs a copy of the student.*prune\.remove"):
        train.fit(pruned, SAMPLES, epochs=1, ema_decay=0.01, **QUICK)
    with pytest.raises(ValueError, match="lazy layers.*run one through it"):
        train.fit(nn.Sequential(nn.LazyLinear(3)), SAMPLES, epochs=1, **QUICK)
    with pytest.raises(ValueError, match="LBFGS asks for the loss"):
        train.fit(mlp(), SAMPLES, epochs=1, optimizer=lambda parameters: torch.optim.LBFGS(parameters), **QUICK)


def test_a_last_batch_of_one_sample_before_a_batch_norm() -> None:
    student = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="A batch of one sample .* drop_last=True"):
        train.fit(student, DataLoader(TensorDataset(X[:17], Y[:17]), 8), epochs=1, **QUICK)


# -------------------- what belongs together


@pytest.mark.parametrize("part", ["student", "teacher", "method"])
def test_no_part_of_a_distiller_is_replaced(part: str) -> None:
    distiller = Distiller(mlp(), mlp(1), methods.Logit())
    other = methods.HardLabels() if part == "method" else mlp(2)
    with pytest.raises(AttributeError, match=f"The {part} of a Distiller is not replaced.*Make a new Distiller"):
        setattr(distiller, part, other)
    setattr(distiller, part, getattr(distiller, part))


def test_a_student_that_writes_into_its_inputs() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.sub_(10))

    with pytest.raises(ValueError, match=r"The student writes into its inputs.*x = x - mean"):
        train.fit(Writes(), [(X.clone(), Y)], epochs=1, **QUICK)


def test_a_student_that_writes_into_its_inputs_while_it_trains_leaves_the_batches_as_they_are() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.mul_(0.5) if self.training else x)

    class Fresh(list):
        """Other tensors with the same numbers in each epoch."""

        def __iter__(self) -> Iterator[Any]:
            return (tuple(part.clone() for part in batch) for batch in super().__iter__())

    batches, options = [(X.clone(), Y)], {**QUICK, "epochs": 3}
    kept = train.fit(Noisy(), batches, **options)
    assert torch.equal(batches[0][0], X)
    fresh = train.fit(Noisy(), Fresh([(X.clone(), Y)]), **options)
    weights = zip(kept.student.parameters(), fresh.student.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


# -------------------- files


def test_a_checkpoint_replaces_no_file_of_another_kind(tmp_path: Path) -> None:
    file, calls = tmp_path / "teacher.safetensors", []
    models.save(models.build("resnet8", num_classes=3), file)
    before = file.read_bytes()
    options: dict[str, Any] = {"epochs": 1, "on_epoch_end": lambda *given: calls.append(given), **QUICK}
    with pytest.raises(ValueError, match=r"teacher\.safetensors is there and is no checkpoint.*Name another file"):
        train.fit(mlp(), SAMPLES, checkpoint=file, **options)
    assert file.read_bytes() == before
    with pytest.raises(IsADirectoryError, match="it is a folder. Name a file in it"):
        train.fit(mlp(), SAMPLES, checkpoint=tmp_path, **options)
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        train.fit(mlp(), SAMPLES, checkpoint=file / "run.checkpoint", **options)
    assert calls == []
    for _ in range(2):  # a checkpoint is replaced by that of the next run
        train.fit(mlp(), SAMPLES, checkpoint=tmp_path / "run.checkpoint", **options)


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel])
def test_the_checkpoint_of_a_wrapped_student_opens_in_the_plain_one(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    file = tmp_path / "run.checkpoint"
    student = mlp()
    train.fit(wrap(student), SAMPLES, teacher=mlp(1), epochs=1, checkpoint=file, **QUICK)
    again = mlp(2)
    models.load_weights(again, models.read_weights(file))
    assert torch.equal(again(X), student(X))


def test_a_network_whose_only_part_is_called_module(tmp_path: Path) -> None:
    student = nn.Sequential()
    student.add_module("module", mlp())
    file = tmp_path / "run.checkpoint"
    train.fit(student, SAMPLES, epochs=1, checkpoint=file, **QUICK)
    models.load_weights(student, models.read_weights(file))


def test_a_damaged_picture_is_named(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    from PIL import Image

    class Pictures(Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return Image.open(tmp_path / f"{index}.png"), index % 2

    for index in range(4):
        Image.effect_noise((64, 64), 90).save(tmp_path / f"{index}.png")
    broken = tmp_path / "2.png"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(OSError, match=r"^train\[2\] cannot be read as an image .* Copy it again or remove it\.$"):
        data.from_datasets(Pictures(), classes=("a", "b"), image_size=16)
    assert not [one for one in recwarn if "EXIF" in str(one.message)]


# -------------------- pictures


@pytest.mark.parametrize("size", [0, -1, "32", 32.5, True, 5000])
def test_a_size_of_pictures_that_is_none(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size is a whole number"):
        data.load(f"imagefolder:{tmp_path}", image_size=size)
    with pytest.raises(ValueError, match="num_workers is a whole number"):
        data.load(f"imagefolder:{tmp_path}", num_workers=-1)


def test_a_folder_of_one_class_is_no_classifier(tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / part / "cat" / f"{number}.png")
    pictures = data.load(f"imagefolder@8:{tmp_path}", num_workers=0)
    with pytest.raises(ValueError, match="The data have one class, 'cat', and a classifier needs two"):
        train.fit(models.build("resnet8", num_classes=2), pictures, **QUICK)


@pytest.mark.parametrize("what", ["mean", "std"])
@pytest.mark.parametrize("given", [(float("nan"),), (float("inf"),), "a", iter((0.5,)), (0.5, 0.5)])
def test_statistics_that_are_no_numbers(what: str, given: Any) -> None:
    pictures = [(torch.zeros(1, 8, 8, dtype=torch.uint8), index % 2) for index in range(30)]
    statistics = {"mean": (0.5,), "std": (0.5,), what: given}
    with pytest.raises(ValueError, match=f"{what} has (finite numbers|a number for each channel, 1)"):
        data.from_datasets(pictures, classes=("a", "b"), image_size=8, in_channels=1, **statistics)
