"""What `kdlib.doctor` finds and what it leaves alone, in the random set-ups of benchmarks/doctor.py, fewer of each."""

from __future__ import annotations

import copy
import importlib
import json
import random
import shutil
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from doctor_faults import FAULTS, METHODS_OF_KDLIB, sound
from doctor_setups import Case, Net, case, world
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from kdlib import data, methods, models, train
from kdlib.adapters import Adapter
from kdlib.distiller import Distiller
from kdlib.doctor import CHECKS, Finding, Report, examine
from kdlib.doctor.data import _shared
from kdlib.doctor.report import Skip
from kdlib.hooks import ModelOutput
from kdlib.losses import kd
from kdlib.study import method_specs
from kdlib.study.method_specs import METHODS


def test_the_benchmark_writes_its_table_only_when_it_is_asked_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(data.__file__).parents[2] / "benchmarks")
    benchmark = importlib.import_module("doctor")
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(benchmark.rounds, "put_in_readme", lambda *given: written.append(given))
    monkeypatch.setattr(benchmark, "measure_sound", lambda number: (Counter(), Counter(), 0.0))
    monkeypatch.setattr(benchmark, "measure_fault", lambda name, number: (number, 0.0, Counter()))

    def run(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["doctor.py", *options])
        benchmark.main()

    run()
    assert written == []
    run("--write")
    ((name, table),) = written
    assert name == "doctor"
    assert table in capsys.readouterr().out
    for options in (["--faulty", "3"], ["--sound", "0"], ["--fault", next(iter(FAULTS))]):
        with pytest.raises(SystemExit):
            run("--write", *options)
        assert "--write" in capsys.readouterr().err
    assert len(written) == 1


def said(report: Report) -> set[str]:
    """The names of the findings."""
    return {one.check for one in report.findings}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str) -> None:
    """In one set-up each; the benchmark takes ten."""
    found = said(examine(**FAULTS[name].make(0)))
    assert found & set(FAULTS[name].checks)
    assert found <= set(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_sound_set_up_is_left_alone(seed: int) -> None:
    name, arguments = sound(seed)
    report = examine(**arguments)
    assert report.findings == (), (name, str(report))
    assert report.sound


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS_OF_KDLIB)
def test_methods_of_kdlib_are_sound(name: str) -> None:
    c = case(3, temperature=4.0, alpha=0.3)
    d = Distiller(c.student, c.teacher, METHODS_OF_KDLIB[name](c), example=c.batches[0])
    report = examine(d, c.batches, optimizer=torch.optim.SGD(d.parameters(), 0.1))
    assert report.findings == (), str(report)


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module, list[Any]]:
    """A student and a teacher of the course, and two batches."""
    fashion = data.load("fashion-mnist")
    batches = [batch for _, batch in zip(range(2), fashion.train.iter_batches(48), strict=False)]
    return models.build("resnet8", num_classes=10, in_channels=1).train(), models.load("resnet20-fashion"), batches


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_methods_of_the_study_are_sound(name: str, networks: tuple[nn.Module, nn.Module, list[Any]]) -> None:
    student, teacher, batches = networks
    spec = method_specs.find(name)
    student = copy.deepcopy(student)
    method = spec.make_method(spec.start, student, teacher)
    distiller = Distiller(student, teacher if method.needs_teacher else None, method, example=batches[0])
    report = examine(distiller, batches, optimizer=torch.optim.SGD(distiller.parameters(), 0.1))
    assert report.findings == (), str(report)


# -------------------- losses that are meant


def on_logits(loss: Callable[..., Any], **options: Any) -> Report:
    c = case(5)
    return examine(student=c.student, teacher=c.teacher, loss=loss, batches=c.batches[:2], **options)


LEGITIMATE: dict[str, Callable[..., Tensor]] = {
    "mse of logits": lambda s, t: F.mse_loss(s, t),
    "huber": lambda s, t: F.smooth_l1_loss(s, t),
    "soft cross-entropy": lambda s, t: F.cross_entropy(s, t.softmax(1)),
    "squared Hellinger distance": lambda s, t: (
        (0.5 * s.log_softmax(1)).exp() - (0.5 * t.log_softmax(1)).exp()
    ).square().sum(1).mean(),
    "mse of probabilities": lambda s, t: F.mse_loss(s.softmax(1), t.softmax(1)),
    "cosine": lambda s, t: 1 - F.cosine_similarity(s, t, dim=1).mean(),
    "kd and a hard loss of another kind": lambda s, t, y: (
        F.multi_margin_loss(s, y) + F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LEGITIMATE)
def test_other_losses_are_no_fault(name: str) -> None:
    assert on_logits(LEGITIMATE[name]).faults == ()


@pytest.mark.parametrize("seed", range(3))
def test_what_rounding_leaves_of_a_teacher_is_no_loss(seed: int) -> None:
    """The z-scores of two numbers are -1 and 1: nothing of the teacher reaches the student but rounding."""

    def z_scores(x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / (1e-7 + x.std(1, keepdim=True))

    def loss(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        a, b = (F.log_softmax(z_scores(x) / 2, 1) for x in (s, t))
        return 0.1 * F.cross_entropy(s, y) + 3.6 * F.kl_div(a, b, reduction="batchmean", log_target=True)

    torch.manual_seed(seed)
    x, y = torch.randn(128, 6), torch.arange(128) % 2
    given: dict[str, Any] = {"student": nn.Linear(6, 2), "batches": [(x, y)] * 2}
    assert said(examine(**given, teacher=lambda batch: 4.0 * F.one_hot(batch[1], 2) - 2, loss=loss)) == {
        "loss-ignores-teacher"
    }


def test_a_function_is_asked_as_a_distiller_asks_it() -> None:
    """It gives its logits itself: an adapter that should bring them to another order is refused, and not left out."""
    x, y = torch.randn(64, 6), torch.arange(64) % 2
    given: dict[str, Any] = {"student": nn.Linear(6, 2), "batches": [(x, y)] * 2, "loss": lambda s, t: kd(s, t, 4.0)}
    adapter = Adapter(inputs=0, labels=1, teacher_logits=lambda logits: logits.flip(1))
    answers = 4.0 * F.one_hot(y, 2) - 2
    with pytest.raises(ValueError, match=r"this teacher gives its logits\s+itself"):
        examine(**given, teacher=lambda batch: answers, adapter=adapter)
    plain = Adapter(inputs=0, labels=1)
    assert examine(**given, teacher=lambda batch: ModelOutput(answers), adapter=plain).faults == ()
    with pytest.raises(ValueError, match="returned a dict; expected a tensor of logits"):
        examine(**given, teacher=lambda batch: {"logits": answers}, adapter=plain)


@pytest.mark.parametrize("weight", [1e-3, 1e-4])
def test_a_small_weight_is_no_fault(weight: float) -> None:
    report = on_logits(lambda s, t, y: F.cross_entropy(s, y) + weight * kd(s, t, 4.0))
    assert report.findings == (), str(report)


def reversed_kl(s: Tensor, t: Tensor) -> Tensor:
    return F.kl_div(t.log_softmax(1), s.log_softmax(1), reduction="batchmean", log_target=True)


def test_a_reversed_divergence_is_a_doubt_and_a_fault_only_where_kd_is_meant() -> None:
    (doubt,) = on_logits(reversed_kl).findings
    assert (doubt.check, doubt.severity) == ("loss-direction", "doubt")
    (fault,) = on_logits(reversed_kl, meant="kd").findings
    assert fault.severity == "fault"


@pytest.mark.parametrize(("classes", "temperature"), [(4, 4.0), (10, 2.0), (16, 4.0)])
def test_one_sixteenth_is_told_from_one_class_in_sixteen(classes: int, temperature: float) -> None:
    """1/C and 1/T^2 may be the same number; what is wrong shows when one of them changes."""
    x, y = torch.randn(32, 6), torch.arange(32) % classes
    student, teacher = nn.Linear(6, classes), nn.Linear(6, classes)

    def kd(s: Tensor, t: Tensor, T: float = temperature, over: int = 1) -> Tensor:  # noqa: N803
        return F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean") * T**2

    given: dict[str, Any] = {"student": student, "teacher": teacher, "batches": [(x, y)] * 2}
    mean = examine(**given, loss=lambda s, t, T=temperature: kd(s, t, T) / s.shape[1])  # noqa: N803
    assert said(mean) & {"loss-reduction", "loss-temperature"} == {"loss-reduction"}
    without = examine(**given, loss=lambda s, t, T=temperature: kd(s, t, T) / T**2)  # noqa: N803
    assert said(without) & {"loss-reduction", "loss-temperature"} == {"loss-temperature"}


def test_a_batch_without_labels_is_examined_as_far_as_it_goes() -> None:
    c = case(5)
    adapter = Adapter(inputs=lambda batch: batch)
    report = examine(
        student=c.student,
        teacher=c.teacher,
        loss=lambda s, t: c.soft(s, t),
        batches=[x for x, _ in c.batches[:2]],
        adapter=adapter,
    )
    assert report.findings == ()
    assert "labels" in report.skipped["teacher-accuracy"]
    assert "loss-direction" in report.passed


class Pixels(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


@pytest.mark.parametrize("task", ["segmentation", "token-classification", "multilabel"])
def test_tasks_of_many_rows_a_sample_are_examined(task: str) -> None:
    torch.manual_seed(0)
    if task == "segmentation":
        x = torch.randn(64, 3, 6, 6)
        y = x.argmax(1)
        y[:, :2] = 255
        networks: list[nn.Module] = [Pixels(4), Pixels(16)]
    elif task == "token-classification":
        x = torch.randint(0, 20, (64, 10))
        y = x % 4
        y[:, 7:] = -100
        networks = [nn.Sequential(nn.Embedding(20, width), nn.Linear(width, 4)) for width in (4, 16)]
    else:
        x = torch.randn(64, 8)
        y = (x[:, :5] > 0).float()
        y[:, 4] = -100
        networks = [nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 5)) for width in (4, 16)]
    batches = list(zip(x.split(16), y.split(16), strict=True))
    options: dict[str, Any] = {"task": task, "epochs": 20, "device": "cpu", "precision": "fp32", "progress": False}
    train.fit(networks[1], batches, recipe=train.Recipe("adamw", 1e-2), **options)  # a teacher that knows something
    d = Distiller(networks[0], networks[1], methods.Logit(temperature=2, alpha=0.5), task=task).train()
    report = examine(d, batches, optimizer=torch.optim.AdamW(d.parameters(), 1e-3))
    assert report.findings == (), str(report)
    assert "loss-padding" in report.passed  # what does not count never reaches the loss


def test_few_samples_accuse_nobody() -> None:
    """A teacher that is right about 1 of 6 samples may have had bad luck."""
    c = case(0)
    c.teacher.fc.weight.data.normal_()
    report = examine(
        student=c.student, teacher=c.teacher, loss=c.loss, batches=[(x[:3], y[:3]) for x, y in c.batches[:2]]
    )
    assert not said(report) & {"teacher-accuracy", "class-order", "teacher-pairing", "normalisation"}


def after_a_few_batches(batches: int, momentum: float) -> Report:
    """The normalisation of a teacher whose batch norm has hardly begun to average; its pictures are those it knows."""
    torch.manual_seed(5)
    task = world(5)
    teacher = Net(task.channels, task.classes, (16, 24))
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    optimizer = torch.optim.Adam(teacher.parameters(), 1e-2)
    for x, y in task.batches(64, batches, seed=1):
        optimizer.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        optimizer.step()
    student = Net(task.channels, task.classes, (8, 8))
    return examine(
        student=student, teacher=teacher.eval(), loss=lambda s, t: kd(s, t, 4.0), batches=task.batches(64, 8)
    )


@pytest.mark.parametrize(("batches", "momentum"), [(12, 0.1), (60, 0.01)])
def test_averages_that_lag_are_not_taken_for_another_normalisation(batches: int, momentum: float) -> None:
    report = after_a_few_batches(batches, momentum)
    assert "normalisation" not in said(report)
    assert f"{batches} batches" in report.skipped["normalisation"]


def test_pictures_of_another_normalisation_are_found_where_batches_are_not_counted() -> None:
    c = case(0, norm="batch")
    bare = {name: tensor for name, tensor in c.teacher.state_dict().items() if "num_batches" not in name}
    fresh = copy.deepcopy(c.teacher)
    for module in fresh.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    fresh.load_state_dict(bare, strict=False)
    pixels = [(255 * (x * c.task.std + c.task.mean), y) for x, y in c.batches]
    assert "normalisation" in said(examine(student=c.student, teacher=fresh, loss=c.loss, batches=pixels))


# -------------------- everything comes back


def state(c: Case, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that an examination could change."""
    found: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1],
    }
    for role, network in (("student", c.student), ("teacher", c.teacher)):
        found |= {f"{role} {k}": v.clone() for k, v in network.state_dict().items()}
        found |= {f"{role} mode {k}": m.training for k, m in network.named_modules()}
        found |= {
            f"{role} hooks {k}": len(m._forward_hooks) + len(m._forward_pre_hooks) for k, m in network.named_modules()
        }
        for k, p in network.named_parameters():
            found[f"{role} grad {k}"] = None if p.grad is None else p.grad.clone()
            found[f"{role} requires {k}"] = p.requires_grad
    found["optimizer"] = copy.deepcopy(optimizer.state_dict())
    return found


def assert_same(before: Any, after: Any, name: str = "") -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key], f"{name}.{key}")
    elif isinstance(before, Tensor | np.ndarray):
        assert bool((torch.as_tensor(before) == torch.as_tensor(after)).all()), name
    else:
        assert before == after, name


@pytest.mark.slow
@pytest.mark.parametrize("form", ["distiller", "loss", "step"])
def test_networks_optimiser_batches_and_chance_come_back(form: str) -> None:
    c = case(2, norm="batch", dropout=0.3)
    c.teacher.requires_grad_(False)
    optimizer = torch.optim.Adam([*c.student.parameters(), *c.teacher.parameters()], 0.01)
    c.student(c.batches[0][0]).sum().backward()  # gradients that somebody accumulates
    optimizer.step()
    batches = c.batches[:3]
    copies = copy.deepcopy(batches)
    given: dict[str, Any] = {"student": c.student, "teacher": c.teacher, form: getattr(c, form, None)}
    if form == "step":

        def step(batch: Any) -> Tensor:
            batch[0].add_(1.0)  # a step that writes into its batch and its teacher
            with torch.no_grad():
                c.teacher.fc.bias.add_(1.0)
            random.random(), np.random.rand()
            return c.step(batch)

        given["step"] = step
    if form == "distiller":
        given = {"distiller": Distiller(c.student, c.teacher, methods.Logit())}
    before = state(c, optimizer)
    parameters = dict(c.student.named_parameters())
    examine(**given, batches=batches, optimizer=optimizer)
    assert_same(before, state(c, optimizer))
    assert all(p is parameters[name] for name, p in c.student.named_parameters())
    for (x, y), (a, b) in zip(batches, copies, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)


@pytest.mark.parametrize("held", [True, False])
def test_what_learns_beside_the_networks_comes_back(held: bool) -> None:
    """A projector of the step's own, also one that the optimiser does not hold."""
    student, teacher = (nn.Sequential(nn.Linear(6, width), nn.Linear(width, 3)) for width in (4, 5))
    teacher.requires_grad_(False)
    projector = nn.Linear(4, 5)
    projector(torch.randn(2, 4)).sum().backward()  # gradients that somebody accumulates
    gradients = [p.grad for p in projector.parameters()]
    before = copy.deepcopy([(p.detach(), p.grad) for p in projector.parameters()])
    parts = [student, projector] if held else [student]
    optimizer = torch.optim.SGD([p for part in parts for p in part.parameters()], 0.1)

    def step(batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(student(x), y) + F.mse_loss(projector(student[0](x)), teacher[0](x))

    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(2)]
    report = examine(student=student, teacher=teacher, step=step, batches=batches, optimizer=optimizer)
    assert bool(report.find("optimizer-parameters")) != held
    for p, gradient, (values, old) in zip(projector.parameters(), gradients, before, strict=True):
        assert torch.equal(p, values)
        assert p.grad is gradient
        assert torch.equal(gradient, old)


def test_the_random_numbers_of_mps_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor calls torch.manual_seed, which seeds MPS too."""
    c, seeded, state = case(2), [], {"mps": torch.tensor([1])}
    kept = state["mps"]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state["mps"])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda before: state.update(mps=before))
    monkeypatch.setattr(
        torch.mps, "manual_seed", lambda seed: (seeded.append(seed), state.update(mps=torch.tensor([9])))
    )
    examine(student=c.student, teacher=c.teacher, loss=c.loss, batches=c.batches[:2])
    assert seeded
    assert state["mps"] is kept


@pytest.mark.parametrize("owner", ["torch", "loader", "sampler", "batch sampler"])
def test_a_shuffling_loader_gives_the_same_order_afterwards(owner: str) -> None:
    x, y = torch.randn(64, 6), torch.arange(64)
    samples, own = TensorDataset(x, y % 3), torch.Generator()
    order = RandomSampler(samples, generator=own)
    options: dict[str, dict[str, Any]] = {
        "torch": {"batch_size": 16, "shuffle": True},
        "loader": {"batch_size": 16, "shuffle": True, "generator": own},
        "sampler": {"batch_size": 16, "sampler": order},
        "batch sampler": {"batch_sampler": BatchSampler(order, 16, drop_last=False)},
    }
    loader, student, teacher = DataLoader(samples, **options[owner]), nn.Linear(6, 3), nn.Linear(6, 3)
    torch.manual_seed(5), own.manual_seed(5)
    expected = next(iter(loader))[0]
    torch.manual_seed(5), own.manual_seed(5)
    examine(student=student, teacher=teacher, loss=lambda s, t: kd(s, t, 4.0), batches=loader)
    assert torch.equal(next(iter(loader))[0], expected)


# -------------------- no more memory than a step needs


class Copied(TorchDispatchMode):
    """Counts the copies of tensors, by their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.clone.default:
            self.shapes[tuple(args[0].shape)] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_weights_and_what_an_optimiser_remembers_of_them_are_copied_once(training: bool) -> None:
    """In train mode the teacher is asked again in eval mode, to see whether that makes a difference."""
    student = nn.Linear(6, 3)
    teacher = nn.Sequential(nn.Linear(6, 23), nn.Linear(23, 3)).train(training)
    optimizer = torch.optim.Adam(student.parameters(), 0.01)
    student(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(2)]
    with Copied() as copied:
        examine(student=student, teacher=teacher, loss=lambda s, t: kd(s, t, 4.0), batches=batches, optimizer=optimizer)
    assert (copied.shapes[23, 6], copied.shapes[3, 6]) == (1, 3)


@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("form", ["distiller", "loss", "step"])
def test_the_graph_of_a_batch_is_gone_when_the_next_one_is_computed(form: str, layers: bool) -> None:
    kept: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Recorded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            alive.append(sum(one() is not None for one in kept))
            hidden = self.body(x).relu()
            kept.append(weakref.ref(hidden))  # which the graph holds, for the gradient of the head's weights
            return self.head(hidden)

    student, teacher = Recorded(), nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)).requires_grad_(False)
    given: dict[str, Any] = {"student": student, "teacher": teacher}
    given |= {
        "distiller": {"distiller": Distiller(student, teacher, methods.Logit())},
        "loss": {"loss": lambda s, t: kd(s, t, 4.0)},
        "step": {"step": lambda batch: kd(student(batch[0]), teacher(batch[0]), 4.0)},
    }[form]
    if form == "distiller":
        del given["student"], given["teacher"]
    if layers:
        student.body.register_forward_hook(lambda module, args, output: None)
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(3)]
    examine(**given, batches=batches, optimizer=torch.optim.SGD(student.parameters(), 0.1))
    assert len(alive) > len(batches)  # the step, too
    assert not any(alive)


@pytest.mark.parametrize(("most", "batches"), [(1, 1), (64 * 3 * 4 * 2, 1), (64 * 3 * 4 * 2 + 1, 2), (2**29, 5)])
def test_batches_are_looked_at_until_their_logits_fill_the_memory_for_them(
    most: int, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes, of both networks: 64 samples of three classes, in float32."""
    monkeypatch.setattr(importlib.import_module("kdlib.doctor.examine"), "MOST_BYTES", most, raising=False)
    given = [(torch.randn(64, 6), torch.randint(3, (64,))) for _ in range(5)]
    report = examine(student=nn.Linear(6, 3), teacher=nn.Linear(6, 3), loss=lambda s, t: kd(s, t, 4.0), batches=given)
    assert report.samples == 64 * batches
    assert "teacher-accuracy" not in report.skipped


class LargestDouble(TorchDispatchMode):
    """The most numbers in a tensor of float64."""

    found = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            self.found = max(self.found, result.numel())
        return result


def test_the_logits_of_many_pixels_are_not_all_copied_in_float64() -> None:
    """Of so many torch computes no quantile either: the limit is 16 million."""
    x = torch.randn(8, 1, 40, 40)

    def answers(batch: Any) -> Tensor:
        return 4 * torch.cat([-batch[0], batch[0]], 1)

    distiller = Distiller(nn.Conv2d(1, 2, 1), answers, methods.Logit(), task="segmentation")
    with LargestDouble() as largest:
        report = examine(distiller, list(zip(x.split(4), (x[:, 0] > 0).long().split(4), strict=True)))
    assert "teacher-smoothing" in report.passed
    assert largest.found <= report.samples  # the right answers themselves, as numbers


def test_a_teacher_with_normalisations_is_told_from_a_fresh_one_by_them_alone() -> None:
    teacher = nn.Sequential(nn.Linear(6, 4_000), nn.LayerNorm(4_000), nn.Linear(4_000, 3))
    nn.init.normal_(teacher[1].weight)
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(2)]
    with LargestDouble() as largest:
        report = examine(student=nn.Linear(6, 3), teacher=teacher, loss=lambda s, t: kd(s, t, 4.0), batches=batches)
    assert "teacher-fresh" in report.passed
    assert largest.found < teacher[2].weight.numel()  # in float64 the largest weight takes twice its memory


# -------------------- the report


@pytest.fixture(scope="module")
def faulty() -> Report:
    return examine(**FAULTS["teacher in the optimiser"].make(1))


def test_a_report_prints_what_was_measured_why_and_what_to_do(faulty: Report) -> None:
    (finding,) = faulty.find("teacher-gradient")
    text = " ".join(str(faulty).split())
    for part in (finding.measured, finding.why, finding.change, finding.story):
        assert " ".join(str(part).split()) in text
    assert not faulty.sound


def test_a_report_is_plain_values(faulty: Report) -> None:
    values = json.loads(json.dumps(faulty.to_dict()))
    assert values["sound"] is False
    assert values["findings"][0]["severity"] == "fault"
    assert 0 < values["findings"][0]["confidence"] <= 1


def test_every_check_is_accounted_for(faulty: Report) -> None:
    """Passed, skipped with a reason, or it says something."""
    explained = {"teacher-gradient"}
    assert set(faulty.passed) | set(faulty.skipped) | explained == set(CHECKS)
    assert all(faulty.skipped.values())


def test_a_doubt_is_no_fault() -> None:
    doubt, fault = Finding("a", "doubt", "", "", ""), Finding("b", "fault", "", "", "")
    report = Report((doubt, fault), ())
    assert report.faults == (fault,)
    assert not report.sound
    assert Report((doubt,), ()).sound


# -------------------- what is no set-up


def good() -> dict[str, Any]:
    c = case(1)
    return {"student": c.student, "teacher": c.teacher, "loss": c.loss, "batches": c.batches[:2]}


net = Net(1, 3, (4, 4))
BAD: dict[str, dict[str, Any]] = {
    "nothing": {"loss": None},
    "two forms": {"step": lambda batch: None},
    "a loss that is a text": {"loss": "kd"},
    "a loss that is a class": {"loss": nn.KLDivLoss},
    "no student": {"student": None},
    "a student that is a function": {"student": lambda x: x},
    "no teacher": {"teacher": None},
    "a teacher that is a text": {"teacher": "resnet50"},
    "a teacher that is a class": {"teacher": Net},
    "one network twice": {"student": net, "teacher": net},
    "no batches": {"batches": None},
    "an empty list of batches": {"batches": []},
    "an iterator": {"batches": iter([1])},
    "a tensor as batches": {"batches": torch.zeros(2, 3)},
    "a dict as batches": {"batches": {"image": 1}},
    "a name as optimiser": {"optimizer": "sgd"},
    "parameters as optimiser": {"optimizer": [torch.zeros(1)]},
    "a temperature of zero": {"temperature": 0.0},
    "a temperature that is a text": {"temperature": "4"},
    "a temperature that is NaN": {"temperature": float("nan")},
    "an alpha of two": {"alpha": 2.0},
    "an unknown meaning": {"meant": "kdd"},
    "clipped names": {"clipped": ["fc.weight"]},
    "splits that are a list": {"data": [1, 2]},
    "a single split": {"data": {"test": [1]}},
    "an adapter that is a dict": {"adapter": {"inputs": 0}},
    "a loss of several numbers": {"loss": lambda s, t: (s - t).square().mean(1)},
    "a loss that is a number": {"loss": lambda s, t: 1.0},
    "a loss without terms": {"loss": lambda s, t: {}},
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_examined_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        examine(**{**good(), **BAD[name]})
    text = str(raised.value)
    assert 20 < len(text) < 300
    assert text[-1] in ".)]"


@pytest.mark.parametrize("detached", [True, False])
def test_a_step_that_does_its_own_backward_is_refused(detached: bool) -> None:
    c = case(1)
    before = [p.grad for p in c.student.parameters()]

    def step(batch: Any) -> Tensor:
        loss = c.step(batch)
        loss.backward()
        return loss.detach() if detached else loss

    with pytest.raises(ValueError, match="backward"):
        examine(student=c.student, teacher=c.teacher, step=step, batches=c.batches)
    assert all(p.grad is one for p, one in zip(c.student.parameters(), before, strict=True))


def test_a_distiller_has_its_networks() -> None:
    c = case(1)
    d = Distiller(c.student, c.teacher, methods.Logit())
    with pytest.raises(ValueError, match="leave out"):
        examine(d, c.batches, student=c.student)
    with pytest.raises(TypeError, match="Distiller"):
        examine(c.student, c.batches)  # type: ignore[arg-type]


class Holder(nn.Module):
    """A student that holds its teacher, as modelopt's does."""

    def __init__(self, own: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.own, self.teacher = own, teacher

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.answer = self.teacher.eval()(x)
        return self.own(x)


def test_a_student_that_holds_its_teacher_shares_nothing_with_it() -> None:
    """The teacher's weights are among the student's, and its modules run in eval mode inside."""
    c = case(2, norm="batch", alpha=0.5)
    holder = Holder(c.student, c.teacher)

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        return c.loss(holder(batch[0]), holder.answer, batch[1])

    optimizer = torch.optim.SGD(holder.own.parameters(), 0.1)
    report = examine(student=holder, teacher=holder.teacher, step=step, batches=c.batches, optimizer=optimizer)
    assert not report.find("teacher-changes")
    assert not report.find("student-mode")
    holder.own.eval()
    report = examine(student=holder, teacher=holder.teacher, step=step, batches=c.batches, optimizer=optimizer)
    assert report.find("student-mode")[0].severity == "fault"


@pytest.mark.parametrize("where", ["nowhere", "teacher"])
def test_layers_of_a_teacher_within_the_student_are_read_by_the_users_hooks_alone(where: str) -> None:
    """Each batch norm is followed by an in-place ReLU, which does no harm where nobody reads it."""
    options: dict[str, Any] = {"norm": "batch", "inplace": True}
    holder = Holder(Net(1, 3, (4, 4), **options), Net(1, 3, (8, 8), **options).requires_grad_(False))
    if where == "teacher":
        holder.teacher.blocks[0].norm.register_forward_hook(lambda module, args, output: None)

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(holder(batch[0]), batch[1])

    batches = [(torch.randn(16, 1, 12, 12), torch.randint(3, (16,))) for _ in range(2)]
    report = examine(student=holder, teacher=holder.teacher, step=step, batches=batches)
    if where == "nowhere":
        assert "feature-overwritten" in report.skipped
        assert report.find("loss-ignores-teacher")
    else:
        (found,) = report.find("feature-overwritten")
        assert "teacher's layer 'blocks.0.norm'" in found.measured


class Pictures(Dataset):
    """Fifty pictures with a black border, as PIL gives them, as arrays, or in a dict."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind = kind
        self.pixels = np.zeros((50, 32, 32, 3), dtype=np.uint8)
        self.pixels[:, 8:24, 8:24] = np.random.default_rng(seed).integers(0, 255, (50, 16, 16, 3))

    def __len__(self) -> int:
        return 50

    def __getitem__(self, number: int) -> Any:
        pixels = self.pixels[number]
        given = {"pil": Image.fromarray, "array": np.array, "dict": lambda x: {"image": torch.from_numpy(x.copy())}}
        return given[self.kind](pixels), 0


@pytest.mark.parametrize("kind", ["pil", "array", "dict"])
def test_pictures_are_shared_if_their_pixels_are_the_same(kind: str) -> None:
    one = Pictures(kind, 0)
    assert _shared(one, Pictures(kind, 1), Adapter()) == (0, 50, True)
    assert _shared(one, Pictures(kind, 0), Adapter()) == (50, 50, True)


def test_a_leak_far_behind_is_found_or_the_check_is_skipped() -> None:
    everything = torch.arange(40_000.0)[:, None]
    assert _shared(everything, everything[-5_000:], Adapter()) == (5_000, 5_000, True)
    with pytest.raises(Skip, match="40,000 samples"):
        _shared(TensorDataset(everything), TensorDataset(everything[-5_000:]), Adapter())


def test_batches_with_pictures_of_two_sizes_are_examined() -> None:
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    batches = [(torch.randn(16, 3, size, size), torch.randint(0, 4, (16,))) for size in (16, 24)]
    report = examine(student=net(0), teacher=net(1).eval(), loss=lambda s, t: kd(s, t, 4.0), batches=batches)
    assert "normalisation" in report.skipped


def pictures_of(root: Path, part: str, numbers: range) -> None:
    for number in numbers:
        parent = root / part / ("cat", "dog")[number % 2]
        parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(parent / f"{part}{number:03}.png")


def examined_with(splits: Any) -> Report:
    c = case(0)
    return examine(**c.arguments(data=splits))


def test_pictures_of_folders_that_are_copies_of_each_other_are_found(tmp_path: Path) -> None:
    pictures_of(tmp_path, "train", range(24))
    pictures_of(tmp_path, "val", range(100, 124))
    pictures_of(tmp_path, "test", range(200, 224))
    assert "splits" in examined_with(data.load(f"imagefolder:{tmp_path}", image_size=8, num_workers=0)).passed
    shutil.rmtree(tmp_path / "test")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    next((tmp_path / "test").rglob("*.png")).unlink()
    found = examined_with(data.load(f"imagefolder:{tmp_path}", image_size=8, num_workers=0)).find("splits")
    assert found[0].severity == "fault"
    assert "23 of the 23 samples of test are in train" in found[0].measured


def test_pictures_that_are_no_files_or_too_many_are_not_said_to_be_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, first in (("train", 0), ("val", 100), ("test", 200)):
        pictures_of(tmp_path, part, range(first, first + 12))
    found = data.load(f"imagefolder:{tmp_path}", image_size=8, num_workers=0)
    unnamed = {part: replace(getattr(found, part), source=Pictures("pil", 0)) for part in ("train", "test")}
    unnamed["test"] = replace(unnamed["test"], source=Pictures("pil", 0))
    assert "no files" in examined_with(unnamed).skipped["splits"]
    monkeypatch.setattr("kdlib.doctor.data.MOST_HASHED", 10)
    assert "12 samples" in examined_with(found).skipped["splits"]
    # A pair that cannot be compared does not hide another.
    both = {"train": found.train, "validation": found.validation, "again": found.validation}
    assert "splits" in said(examined_with(both))
