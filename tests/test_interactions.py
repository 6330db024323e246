"""What two features do to each other: a method's layers and fit's copy, resume and counters, order and validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlib import data, losses, measure, methods, models, train
from kdlib.data import InMemoryDataset
from kdlib.distiller import Distiller
from kdlib.doctor.preserve import preserved
from kdlib.hooks import FeatureExtractor
from kdlib.teachers import CachedTeacher, FrozenTeacher, FunctionTeacher

RECIPE = train.Recipe(learning_rate=0.1)


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def samples(count: int = 48, seed: int = 1) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    return TensorDataset(torch.randn(count, 3, 2, 2, generator=generator) + labels.view(-1, 1, 1, 1), labels)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fit(student: nn.Module, given: Any = None, **options: Any) -> train.Result:
    defaults = {"epochs": 3, "recipe": RECIPE, "progress": False, "device": "cpu", "precision": "fp32", "seed": 7}
    return train.fit(student, samples() if given is None else given, **{**defaults, **options})


# -------------------- fit's copy of a method, and the networks whose layers the method holds


class ThroughTheHead(methods.Method):
    """A cross-entropy through a layer of the student's own, which the distiller hooks before it."""

    layers = {"2": "2"}  # noqa: RUF012
    needs_teacher = False
    trains_logits = True

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, student: Any, teacher: Any, labels: Any) -> dict[str, Tensor]:
        return {"head": F.cross_entropy(self.head(student.features["2"].detach()), labels)}


def test_a_method_that_holds_a_layer_of_the_student_trains_it() -> None:
    student = network()
    before = student[4].weight.detach().clone()
    method = ThroughTheHead(student[4])
    result = fit(student, method=method)
    assert not torch.equal(student[4].weight, before)
    accuracies = result.history["train_accuracy"].tolist()
    assert accuracies[-1] > accuracies[0]
    assert method.head is student[4]


def test_a_method_that_would_train_the_teachers_layer_is_refused_by_fit_as_well() -> None:
    teacher = network(1)
    with pytest.raises(ValueError, match="would train the teacher's own weights"):
        fit(network(), teacher=teacher, method=ThroughTheHead(teacher[4]) + methods.Logit())


# -------------------- resume, and what a method counts


class Ramp(methods.Method):
    """The soft part falls with each step that the method has seen."""

    trains_logits = True

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, student: Any, teacher: Any, labels: Any) -> dict[str, Tensor]:
        self.steps += int(self.training)
        soft = losses.kd(student.logits, teacher.logits, 2.0)
        return {"hard": F.cross_entropy(student.logits, labels), "soft": max(0.0, 1 - self.steps / 15) * soft}


class Listed(Ramp):
    """It keeps its terms in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def forward(self, student: Any, teacher: Any, labels: Any) -> dict[str, Tensor]:
        terms = super().forward(student, teacher, labels)
        self.seen.append(terms["soft"].item())
        return terms


class Stop(Exception):
    pass


def stop_after_two(epoch: int, student: nn.Module) -> None:
    if epoch == 3:
        raise Stop


def test_a_resumed_run_goes_on_with_what_its_method_has_counted(tmp_path: Path) -> None:
    whole = fit(network(), teacher=network(1), method=Ramp(), checkpoint=tmp_path / "whole")
    path = tmp_path / "parts"
    with pytest.raises(Stop):
        fit(network(), teacher=network(1), method=Ramp(), checkpoint=path, on_epoch_end=stop_after_two)
    resumed = fit(network(), teacher=network(1), method=Ramp(), checkpoint=path, resume=True)
    assert resumed.history["soft"].tolist() == whole.history["soft"].tolist()


def test_what_a_checkpoint_cannot_keep_of_a_method_is_said_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="seen of its method.*register_buffer") as caught:
        fit(network(), teacher=network(1), method=Listed(), checkpoint=tmp_path / "listed")
    assert len(caught) == 1


# -------------------- one seed, one order


@pytest.mark.parametrize("loader", [False, True])
def test_looking_at_validation_data_changes_no_training(loader: bool) -> None:
    results = []
    for validation in (None, samples(9, 2)):
        given = DataLoader(samples(), batch_size=8, shuffle=True) if loader else samples()
        held = DataLoader(validation, batch_size=4) if loader and validation is not None else validation
        results.append(weights(fit(network(dropout=0.5), given, validation=held).student))
    assert torch.equal(*results)


def test_runs_of_one_seed_see_one_order_whatever_the_method() -> None:
    orders = []

    class Watched(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            orders[-1].append(index)
            return super().__getitem__(index)

    for method in (methods.HardLabels(), methods.Logit() + methods.Feature({"2": "2"})):
        orders.append([])
        loader = DataLoader(Watched(*samples().tensors), batch_size=8, shuffle=True)
        fit(network(), loader, teacher=network(1), method=method, epochs=1)
    assert orders[0][-48:] == orders[1][-48:]


# -------------------- means over what is counted


def test_the_training_accuracy_of_tokens_is_a_mean_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    few, many = (torch.full((4, 10), -100) for _ in range(2))
    few[:, 0], many[:] = 0, 1
    inputs = torch.randn(4, 10, 5, generator=generator)

    class First(nn.Module):
        """Says class 0 whatever it sees."""

        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((x[..., 0] * 0 + 9 + 0 * self.shift, x[..., 1] * 0 - 9), dim=-1)

    batches = [(inputs, few), (inputs, many)]
    result = fit(
        First(), batches, method=methods.HardLabels(), task="token-classification", validation=batches, epochs=1
    )
    for column in ("train_accuracy", "validation_accuracy"):
        assert result.history[column].tolist() == pytest.approx([4 / 44])


@pytest.mark.parametrize("batch_size", [1, 5, 48])
def test_a_loss_with_weights_of_classes_is_evaluated_on_all_samples_at_once(batch_size: int) -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0, 3.0]))
    images, labels = samples().tensors
    model = network().eval()
    found = train.evaluate(
        model, DataLoader(samples(), batch_size=batch_size), loss=loss, device="cpu", precision="fp32"
    )
    assert found.loss == pytest.approx(loss(model(images), labels).item(), rel=1e-5)


# -------------------- what a network leaves behind


class Shifts(nn.Module):
    """Takes five from its input, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.sub_(5.0))


def test_a_teacher_that_writes_into_its_input_is_refused() -> None:
    batch = tuple(one[:4].clone() for one in samples().tensors)
    with pytest.raises(ValueError, match=r"teacher writes into its inputs.*x\.clone\(\)"):
        Distiller(network(), Shifts(), methods.Logit())(batch)


class Ask:
    """A function as a teacher; it remembers whether autocast would have kept casts of its weights."""

    kept: bool | None = None

    def __call__(self, batch: Any) -> Tensor:
        self.kept = torch.is_autocast_cache_enabled()
        return torch.zeros(len(batch[0]), 3)


def test_autocast_keeps_no_casts_of_a_teachers_weights() -> None:
    """With torch 2.6 the same network as a student would get these, which have no gradient."""
    ask, seen = Ask(), []
    model = network()
    model.register_forward_hook(lambda *_: seen.append(torch.is_autocast_cache_enabled()))
    batch = samples().tensors
    with torch.autocast("cpu", torch.bfloat16):
        FunctionTeacher(ask)(batch)
        FrozenTeacher(model)(batch)
        assert torch.is_autocast_cache_enabled()
    assert ask.kept is False
    assert seen == [False]


class Normalised(nn.Module):
    """Subtracts a number that no state_dict holds."""

    def __init__(self, mean: float, body: nn.Module) -> None:
        super().__init__()
        self.mean, self.body = mean, body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x - self.mean)


def test_a_cache_of_a_teacher_that_computes_with_another_number_is_refused(tmp_path: Path) -> None:
    pixels = torch.randint(256, (20, 3, 2, 2), dtype=torch.uint8)
    images = InMemoryDataset(pixels, torch.arange(20) % 3, torch.arange(20), (0.0,) * 3, (1.0,) * 3)
    options: dict[str, Any] = {"directory": tmp_path, "device": "cpu", "precision": "fp32", "progress": False}
    body = network()
    CachedTeacher.build(Normalised(0.5, body), images, **options)
    CachedTeacher.build(Normalised(0.5, body), images, **options)
    with pytest.raises(ValueError, match="holds other outputs than this teacher gives"):
        CachedTeacher.build(Normalised(0.0, body), images, **options)


class Positions(nn.Module):
    """Makes a table at its first call, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(0, 1, 12)
        return self.head(x.flatten(1) * self.table)


@pytest.mark.parametrize("look", [measure.latency, measure.peak_memory])
def test_a_measured_network_can_still_be_trained(look: Any) -> None:
    model = Positions()
    look(model, (3, 2, 2), **({"min_run_time": 0.01} if look is measure.latency else {}))
    model(torch.ones(2, 3, 2, 2, requires_grad=True)).sum().backward()
    assert model.head.weight.grad is not None


def test_gradients_of_two_modules_that_share_a_layer_come_back() -> None:
    layer = nn.Linear(2, 2)
    both = nn.ModuleList([layer, nn.Linear(2, 2)])
    layer(torch.ones(1, 2)).sum().backward()
    with preserved([layer, both], []):
        assert layer.weight.grad is None
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]


class Uncopied:
    """A part of an optimiser's state that cannot be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("not enough memory")


def test_gradients_come_back_where_the_state_of_an_optimizer_cannot_be_copied() -> None:
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer = torch.optim.Adam(layer.parameters())
    optimizer.state[layer.weight]["own"] = Uncopied()
    with pytest.raises(RuntimeError, match="not enough memory"), preserved([layer], [optimizer]):
        pytest.fail("the block is not reached")
    assert layer.weight.grad is not None


# -------------------- three dimensions


class Encoder(nn.Module):
    """A layer of a transformer; positions_first as torch has it by default."""

    def __init__(self, positions_first: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=not positions_first)
        self.head = nn.Linear(4, 3)
        self.first = positions_first

    def forward(self, x: Tensor) -> Tensor:
        found = self.block(x.transpose(0, 1) if self.first else x)
        return self.head(found.mean(0 if self.first else 1))


def test_a_batch_of_as_many_samples_as_positions_is_read_as_those_before_it() -> None:
    student, teacher = Encoder(False), Encoder(True)
    distiller = Distiller(student, teacher, methods.Logit(2, 0.5) + methods.Relation({"block": "block"}, "similarity"))
    for count in (32, 7, 6, 5):  # of 6 positions each
        x = torch.randn(count, 6, 4, generator=torch.Generator().manual_seed(count))
        terms = distiller((x, torch.zeros(count, dtype=torch.long))).terms
        assert terms["similarity block"].item() == pytest.approx(0.0, abs=1e-6)


def test_a_line_of_as_many_places_as_channels_is_read_as_those_before_it() -> None:
    block = nn.Sequential(nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU()), nn.Flatten(2))
    with FeatureExtractor(block, ["0"], needs_logits=False) as extractor:
        shapes = [tuple(extractor(torch.randn(4, 3, length)).features["0"].shape) for length in (12, 8)]
    assert shapes == [(4, 8, 1, 12), (4, 8, 1, 8)]


def test_a_line_of_as_many_places_as_channels_is_one_from_the_first_call_on() -> None:
    block = nn.Sequential(nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU()), nn.Flatten(2))
    with FeatureExtractor(block, ["0"], needs_logits=False) as extractor:
        shapes = [tuple(extractor(torch.randn(4, 3, length)).features["0"].shape) for length in (8, 12)]
    assert shapes == [(4, 8, 1, 8), (4, 8, 1, 12)]


# -------------------- names of classes


def test_a_network_that_was_trained_on_other_classes_has_their_names(blobs: data.DataModule, tmp_path: Path) -> None:
    build = {"num_classes": 3, "in_channels": blobs.train.images.shape[1]}
    path = tmp_path / "first.safetensors"
    models.save(models.build("resnet8", **build, seed=0), path, classes=["x", "y", "z"])
    tuned = fit(models.load(path), blobs, epochs=1).student
    assert tuned.classes == blobs.classes
    fit(models.build("resnet8", **build, seed=1), blobs, teacher=tuned, epochs=1)
