"""What `kdlib.doctor` says of what people write: weights of their own, loss modules, layers in outputs, odd batches."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from doctor_setups import case
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from kdlib import data, methods
from kdlib.adapters import Adapter
from kdlib.distiller import Distiller
from kdlib.doctor import Report, examine
from kdlib.ensembles import ConfidenceEnsemble
from kdlib.losses import kd
from kdlib.teachers import FrozenTeacher


def on_logits(loss: Callable[..., Any], **options: Any) -> Report:
    c = case(5)
    return examine(student=c.student, teacher=c.teacher, loss=loss, batches=c.batches[:2], **options)


# -------------------- a weight of one's own is not a power of T


CLASSES = case(5).student.fc.out_features
WEIGHTED: dict[str, Callable[..., Tensor]] = {
    "1/T": lambda s, t, y: F.cross_entropy(s, y) + 0.5 * kd(s, t, 2.0),
    "1/T^2": lambda s, t, y: F.cross_entropy(s, y) + 0.25 * kd(s, t, 2.0),
    "T^2": lambda s, t, y: F.cross_entropy(s, y) + 4 * kd(s, t, 2.0),
    "beside smoothed labels": lambda s, t, y: F.cross_entropy(s, y, label_smoothing=0.1) + 0.5 * kd(s, t, 2.0),
    "1/C beside class weights": lambda s, t, y: (
        F.cross_entropy(s, y, weight=torch.arange(1.0, CLASSES + 1)) + kd(s, t, 4.0) / CLASSES
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_that_may_be_meant_is_a_doubt(name: str) -> None:
    report = on_logits(WEIGHTED[name])
    assert report.sound
    (found,) = report.find("loss-reduction" if name.startswith("1/C") else "loss-temperature")
    assert (found.severity, "say alpha" in found.change) == ("doubt", True)


def test_a_weight_that_alpha_settles_is_a_fault() -> None:
    def loss(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return 0.5 * F.cross_entropy(s, y) + 0.5 * kd(s, t, 2.0) / 4

    assert on_logits(loss).find("loss-temperature")[0].severity == "fault"
    assert on_logits(loss, alpha=0.5).find("loss-temperature")[0].severity == "fault"


def test_the_weight_of_one_of_kdlibs_own_methods_is_a_doubt_at_most() -> None:
    c = case(5)
    distiller = Distiller(
        c.student, c.teacher, methods.HardLabels() + 0.5 * methods.Logit(2.0, 0.0), example=c.batches[0]
    )
    assert examine(distiller, c.batches[:2], optimizer=torch.optim.SGD(distiller.parameters(), 0.1)).sound


def over_the_batch(s: Tensor, t: Tensor) -> Tensor:
    return 16 * F.kl_div(F.log_softmax(s / 4, 0), F.softmax(t / 4, 0), reduction="batchmean")


@pytest.mark.parametrize(
    "loss",
    [over_the_batch, lambda s, t, y: 0.1 * F.cross_entropy(s, y) + 0.9 * over_the_batch(s, t)],
    ids=["alone", "beside labels"],
)
def test_a_softmax_over_the_batch_is_a_fault(loss: Callable[..., Any]) -> None:
    (found,) = on_logits(loss).find("loss-probabilities")
    assert found.severity == "fault"
    assert "over the batch" in found.measured
    assert "dim=1" in found.change


def test_a_mean_by_a_fixed_number_is_no_sum() -> None:
    c = case(5)
    size = len(c.batches[0][0])

    def fixed(s: Tensor, t: Tensor, divisor: float = size) -> Tensor:
        return 16 * F.kl_div(F.log_softmax(s / 4, 1), F.softmax(t / 4, 1), reduction="sum") / divisor

    report = on_logits(fixed, temperature=4)
    (found,) = report.find("loss-reduction")
    assert (found.severity, f"divided by a fixed number, {size}" in found.measured) == ("doubt", True)
    assert (report.sound, report.find("loss-temperature")) == (True, ())
    (found,) = on_logits(lambda s, t: fixed(s, t, 1.0), temperature=4).find("loss-reduction")
    assert (found.severity, f"{size} times that of a mean" in found.measured) == ("fault", True)
    (found,) = on_logits(lambda s, t: fixed(s, t, size / 3), temperature=4).find("loss-reduction")
    assert (found.severity, "3 times that of a mean" in found.measured) == ("fault", True)


def test_a_loss_that_reads_the_teachers_class_alone_has_no_place_of_rest() -> None:
    report = on_logits(lambda s, t: F.cross_entropy(s, t.argmax(1)))
    assert report.sound
    assert "the teacher's class alone" in report.skipped["loss-at-rest"]


def standardised(z: Tensor) -> Tensor:
    return (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True)


def test_a_loss_that_does_not_see_the_teachers_scale_reads_more_than_its_class() -> None:
    def without_log(s: Tensor, t: Tensor) -> Tensor:
        given, wanted = (F.softmax(standardised(one) / 2, dim=1) for one in (s, t))
        return F.kl_div(given, wanted, reduction="batchmean")

    (found,) = on_logits(without_log).find("loss-at-rest")
    assert found.severity == "fault"


def test_a_softmax_over_the_batch_of_one_score_each_is_right() -> None:
    c = case(5, size=32)
    student, teacher = (nn.Sequential(copy.deepcopy(one), nn.Linear(CLASSES, 1)) for one in (c.student, c.teacher))

    def ranking(s: Tensor, t: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(s, 0), F.softmax(t, 0), reduction="sum")

    report = examine(student=student, teacher=teacher.eval(), loss=ranking, batches=c.batches[:2])
    assert not report.find("loss-probabilities")


def test_what_fails_beside_the_loss_is_no_skip() -> None:
    class Broken(Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, number: int) -> Any:
            raise FileNotFoundError("test/0001.png is not there")

    images = TensorDataset(torch.randn(4, 1, 8, 8), torch.arange(4))
    with pytest.raises(FileNotFoundError, match="0001"):
        on_logits(lambda s, t: kd(s, t, 4.0), data={"train": images, "test": Broken()})


def test_a_teacher_with_more_classes_that_the_loss_selects() -> None:
    c = case(5)
    classes = c.student.fc.out_features

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(c.teacher)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.zeros(len(x), classes), self.inner(x)], dim=1)

    wanted = torch.arange(classes, 2 * classes)
    report = examine(
        student=c.student, teacher=Wide().eval(), loss=lambda s, t: kd(s, t[:, wanted], 4.0), batches=c.batches[:2]
    )
    assert report.sound, report
    for check in ("class-order", "teacher-accuracy", "loss-rows"):
        assert f"the teacher gives {2 * classes} logits and the student {classes}" in report.skipped[check]


def test_a_loss_that_fails_on_a_probe_is_examined_as_far_as_it_can_be() -> None:
    c = case(5, size=32)
    size = len(c.batches[0][0])
    assert size == 32

    def of_this_size(s: Tensor, t: Tensor) -> Tensor:
        return kd(s, t, 4.0) + F.cross_entropy(s @ t.T, torch.arange(size))

    report = examine(student=c.student, teacher=c.teacher, loss=of_this_size, batches=c.batches[:2])
    assert "cannot be computed with other logits (ValueError" in report.skipped["loss-rows"]
    assert "teacher-accuracy" not in report.skipped

    def in_terms(s: Tensor, t: Tensor) -> dict[str, Tensor]:
        return {"soft": kd(s, t, 4.0), "pairs": F.cross_entropy(s @ t.T, torch.arange(size))}

    report = examine(student=c.student, teacher=c.teacher, loss=in_terms, batches=c.batches[:2])
    assert "cannot be computed with other logits (ValueError" in report.skipped["term-names"]


def test_an_optimiser_that_asks_for_the_loss_again_is_told() -> None:
    c = case(5)
    with pytest.raises(ValueError, match="LBFGS asks for the loss of a batch again and again"):
        on_logits(lambda s, t: kd(s, t, 4.0), optimizer=torch.optim.LBFGS(c.student.parameters()))


class LossInside(nn.Module):
    """A network that computes the loss on its labels itself, as transformers' models do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        logits = self.network(x)
        return {"loss": F.cross_entropy(logits, y), "logits": logits}


BESIDE = ("a loss inside the network", "a division for gradient accumulation", "a loss on features")


@pytest.mark.parametrize("name", BESIDE)
def test_a_weight_beside_a_loss_that_probes_do_not_show_is_a_doubt_at_most(name: str) -> None:
    c = case(5)
    student = LossInside(c.student)

    def step(batch: Any) -> Tensor:
        x, y = batch
        with torch.no_grad():
            t, theirs = c.teacher(x), c.teacher.blocks(x).mean((1, 2, 3))
        own = student(x, y)
        soft = kd(own["logits"], t, 2.0)
        if name == BESIDE[0]:
            return 0.5 * own["loss"] + 0.5 * soft
        if name == BESIDE[1]:
            return soft / 4
        features = F.mse_loss(c.student.blocks(x).mean((1, 2, 3)), theirs)
        return 0.5 * F.cross_entropy(own["logits"], y) + 0.25 * soft + 0.25 * features

    report = examine(student=student, teacher=c.teacher, step=step, batches=c.batches[:2])
    assert [one.severity for one in report.find("loss-temperature")] == ["doubt"]
    assert report.sound, str(report)


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
BY_ALPHA: dict[str, tuple[Loss, float, list[str]]] = {
    "divided as a whole, T = 4": (lambda s, t, y: (0.3 * F.cross_entropy(s, y) + 0.7 * kd(s, t, 4.0)) / 16, 0.0, []),
    "divided as a whole, T = 2": (lambda s, t, y: (0.3 * F.cross_entropy(s, y) + 0.7 * kd(s, t, 2.0)) / 4, 0.0, []),
    "a share for features": (lambda s, t, y: 0.5 * F.cross_entropy(s, y) + 0.25 * kd(s, t, 2.0), 0.25, ["doubt"]),
    "without T^2, and features": (
        lambda s, t, y: 0.5 * F.cross_entropy(s, y) + 0.5 * kd(s, t, 2.0) / 4,
        0.25,
        ["fault"],
    ),
}


@pytest.mark.parametrize("name", BY_ALPHA)
def test_alpha_is_compared_with_the_weight_that_the_hard_loss_has(name: str) -> None:
    c = case(5)
    loss, features, severities = BY_ALPHA[name]

    def step(batch: Any) -> Tensor:
        x, y = batch
        with torch.no_grad():
            t, theirs = c.teacher(x), c.teacher.blocks(x).mean((1, 2, 3))
        hint = features * F.mse_loss(c.student.blocks(x).mean((1, 2, 3)), theirs) if features else torch.tensor(0.0)
        return loss(c.student(x), t, y) + hint

    alpha = 0.3 if "whole" in name else 0.5
    report = examine(student=c.student, teacher=c.teacher, step=step, batches=c.batches[:2], alpha=alpha)
    found = report.find("loss-temperature")
    assert [one.severity for one in found] == severities, str(report)
    assert not any("say alpha" in one.change for one in found)


def test_a_loss_that_is_divided_by_the_number_of_classes_as_a_whole_is_what_alpha_says() -> None:
    def loss(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (0.3 * F.cross_entropy(s, y, weight=torch.ones(CLASSES)) + 0.7 * kd(s, t, 4.0)) / CLASSES

    assert on_logits(loss, alpha=0.3).sound


def test_a_small_weight_of_kdlibs_own_method_beside_features_is_a_doubt_at_most() -> None:
    c = case(5)
    method = 0.25 * methods.Logit(2.0, alpha=0.0) + methods.Feature({"blocks.1": "blocks.1"})
    distiller = Distiller(c.student, c.teacher, method, example=c.batches[0])
    assert examine(distiller, c.batches[:2], optimizer=torch.optim.SGD(distiller.parameters(), 0.1)).sound


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_another_temperature_than_was_said_is_a_fault(temperature: float) -> None:
    report = on_logits(lambda s, t, y: 0.1 * F.cross_entropy(s, y) + 0.9 * kd(s, t, temperature), temperature=4)
    (found,) = report.find("loss-temperature")
    assert "temperature = 4" in found.measured
    assert f"T = {temperature:g}" in found.measured


# -------------------- a loss that is a module


class OwnLoss(nn.Module):
    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return kd(student_logits, teacher_logits, 4.0)


class WithTemperature(nn.Module):
    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 4) -> Tensor:
        soft = F.kl_div(
            (student_logits / temperature).log_softmax(1),
            (teacher_logits / temperature).softmax(1),
            reduction="batchmean",
        )
        return 0.5 * F.cross_entropy(student_logits, labels) + 0.5 * soft


class OwnAlpha(nn.Module):
    """A loss whose attribute alpha is no weight of the labels."""

    def __init__(self, alpha: Any) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hard = F.cross_entropy(student_logits, labels)
        return {"hard": hard, "soft": F.cross_entropy(student_logits, labels) * 2}


@pytest.mark.parametrize("loss", [nn.MSELoss(), OwnLoss()])
def test_a_module_is_called_with_as_many_arguments_as_it_takes(loss: nn.Module) -> None:
    assert on_logits(loss).findings == ()


def test_the_temperature_argument_of_a_module_is_varied() -> None:
    (found,) = on_logits(WithTemperature()).find("loss-temperature")
    assert found.confidence == 1


@pytest.mark.parametrize("alpha", [1.0, torch.ones(3)])
def test_the_alpha_of_a_loss_of_ones_own_is_its_own_affair(alpha: Any) -> None:
    assert on_logits(OwnAlpha(alpha)).find("loss-ignores-teacher")


class OwnMethod(methods.Method):
    alpha = 0.9  # the weight of the teacher
    trains_logits = True

    def forward(self, student: Any, teacher: Any, labels: Any) -> dict[str, Tensor]:
        soft = kd(student.logits, teacher.logits, 4.0)
        return {"hard": 0.1 * F.cross_entropy(student.logits, labels), "soft": 0.9 * soft}


def test_the_alpha_of_a_method_of_ones_own_was_not_said() -> None:
    c = case(5)
    report = examine(Distiller(c.student, c.teacher, OwnMethod(), example=c.batches[0]), c.batches[:2])
    assert not report.find("alpha-roles")
    assert "alpha-roles" in report.skipped


# -------------------- terms


def test_a_hard_term_of_weight_nought_is_switched_off_under_the_name_it_has() -> None:
    c = case(5)
    method = methods.HardLabels() + methods.Logit(4.0, 0.0)
    distiller = Distiller(c.student, c.teacher, method, example=c.batches[0])
    report = examine(distiller, c.batches[:2], optimizer=torch.optim.SGD(distiller.parameters(), 0.1))
    assert not report.find("term-trivial")


def test_a_gradient_that_is_not_a_number_is_not_called_nought() -> None:
    def loss(s: Tensor, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        def distances(x: Tensor) -> Tensor:
            return (x[None] - x[:, None]).square().sum(-1).sqrt()

        return {"hard": F.cross_entropy(s, y), "rkd": F.smooth_l1_loss(distances(s), distances(t))}

    (found,) = on_logits(loss).find("term-reach")
    assert "not finite" in found.measured
    assert "detach" not in found.change


def test_a_gradient_that_is_infinite_does_not_reach_the_student() -> None:
    """A root at 0, of inputs above 0: no weight's gradient is the difference of two infinite ones, which is NaN."""
    student, teacher = nn.Linear(6, 3), nn.Linear(6, 3).eval().requires_grad_(False)

    def loss(s: Tensor, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"hard": F.cross_entropy(s, y), "root": (s - s.detach()).sum().sqrt()}

    batches = [(torch.rand(16, 6), torch.randint(3, (16,))) for _ in range(2)]
    (found,) = examine(student=student, teacher=teacher, loss=loss, batches=batches).find("term-reach")
    assert "'root'" in found.measured
    assert "not finite" in found.measured


def term_names(kind: str) -> list[str]:
    """How serious it is what these terms are called."""
    c = case(5)
    student = LossInside(c.student)

    def step(batch: Any) -> dict[str, Tensor]:
        x, y = batch
        with torch.no_grad():
            t, theirs = c.teacher(x), c.teacher.blocks(x).mean((1, 2, 3))
        own, ours = student(x, y), c.student.blocks(x).mean((1, 2, 3))
        s = own["logits"]
        hard, soft = F.cross_entropy(s, y), kd(s, t, 4.0)
        terms = {
            "layers": {"ce": hard, "distill": F.mse_loss(ours, theirs)},
            "swapped": {"ce": soft, "kd": hard},
            "one of them": {"ce": soft, "features": F.mse_loss(ours, theirs)},
            "swapped, hard inside": {"soft": own["loss"], "hard": soft},
            "layers called hard": {"hard": soft, "distill": F.mse_loss(ours, theirs)},
        }
        return terms[kind]

    report = examine(student=student, teacher=c.teacher, step=step, batches=c.batches[:2])
    return [one.severity for one in report.find("term-names")]


def test_terms_whose_names_are_swapped_are_a_fault_and_distillation_of_layers_is_none() -> None:
    assert term_names("layers") == []
    assert term_names("swapped") == ["fault"]
    assert term_names("one of them") == ["doubt"]


def test_a_soft_name_on_a_loss_that_the_network_computes_of_the_labels_is_swapped() -> None:
    assert term_names("swapped, hard inside") == ["fault"]
    assert term_names("layers called hard") == ["doubt"]


def with_terms(terms: Callable[[Tensor, Tensor], dict[str, Tensor]], **options: Any) -> Report:
    """Of a step that returns these terms of its student's logits and the labels."""
    torch.manual_seed(0)
    student = nn.Linear(6, 3)
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(2)]
    return examine(
        student=student, teacher=None, step=lambda batch: terms(student(batch[0]), batch[1]), batches=batches, **options
    )


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a count": lambda s, y: (s.argmax(1) == y).sum(),
    "a flag": lambda s, y: (s.argmax(1) == y).any(),
    "in float64": lambda s, y: (s.argmax(1) == y).double().mean(),
    "in float16": lambda s, y: (s.argmax(1) == y).half().mean(),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_beside_the_loss_is_no_term(name: str) -> None:
    report = with_terms(lambda s, y: {"loss": F.cross_entropy(s, y), "metric": METRICS[name](s, y)})
    assert report.findings == (), str(report)
    assert "no two named terms" in report.skipped["term-names"]


def test_a_count_beside_terms_is_none_of_them() -> None:
    report = with_terms(lambda s, y: {"hard": F.cross_entropy(s, y), "correct": (s.argmax(1) == y).sum()})
    assert not report.find("term-reach"), str(report)
    with pytest.raises(TypeError, match="without a floating-point tensor"):
        with_terms(lambda s, y: {"correct": (s.argmax(1) == y).sum()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_terms_of_another_precision_than_their_sum_are_looked_at(dtype: torch.dtype) -> None:
    def terms(s: Tensor, y: Tensor) -> dict[str, Tensor]:
        hard, other = F.cross_entropy(s, y), s.detach().square().mean()
        return {"loss": hard + other, "hard": hard.to(dtype), "other": other.to(dtype)}

    (found,) = with_terms(terms).find("term-reach")
    assert "'other'" in found.measured


def test_terms_whose_sum_was_rounded_are_looked_at() -> None:
    def terms(s: Tensor, y: Tensor) -> dict[str, Tensor]:
        hard = F.cross_entropy(s, y)
        parts = {"hard": (hard + 2.3 - hard.detach()).bfloat16(), "other": torch.tensor(0.9).bfloat16()}
        return {"loss": sum(parts.values()), **parts}  # 3.1875 of 2.2969 and 0.8984

    (found,) = with_terms(terms).find("term-reach")
    assert "'other'" in found.measured


# -------------------- layers in the networks' outputs


class WithFeatures(nn.Module):
    """Gives its logits and its features, as transformers' models do with output_hidden_states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x).relu()
        return {"logits": self.head(features), "features": features}


def test_a_step_that_compares_features_from_the_outputs_does_not_ignore_its_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = WithFeatures(5), WithFeatures(5).eval().requires_grad_(False)
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(2)]

    def step(batch: Any) -> Tensor:
        x, y = batch
        ours, theirs = student(x), teacher(x)
        return F.cross_entropy(ours["logits"], y) + F.mse_loss(ours["features"], theirs["features"])

    report = examine(student=student, teacher=teacher, step=step, batches=batches)
    assert not report.find("loss-ignores-teacher")
    assert "loss-ignores-teacher" in report.skipped


# -------------------- labels that name no class


@pytest.mark.parametrize("label", [-1, 10_000])
def test_labels_that_name_no_class_end_no_examination(label: int) -> None:
    c = case(5)
    batches = [(x, torch.cat([torch.full((2,), label), y[2:]])) for x, y in c.batches[:2]]
    report = examine(student=c.student, teacher=c.teacher, loss=lambda s, t: kd(s, t, 4.0), batches=batches)
    assert report.sound, str(report)


def test_labels_that_name_no_class_do_not_hide_another_normalisation() -> None:
    c = case(5)
    labelled = [(x, torch.cat([torch.tensor([-100, 10_000]), y[2:]])) for x, y in c.task.batches(64, 4)]
    pixels = [(255 * (x * c.task.std + c.task.mean), y) for x, y in labelled]
    report = examine(student=c.student, teacher=c.teacher, loss=lambda s, t: kd(s, t, 4.0), batches=pixels)
    (found,) = report.find("normalisation")
    assert f"of {4 * 62} pictures" in found.measured


def test_unlabelled_samples_that_learn_from_the_teacher_are_a_doubt_at_most() -> None:
    c = case(5)
    batches = [(x, torch.cat([y[:-4], torch.full((4,), -1)])) for x, y in c.batches[:2]]

    def loss(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return 0.5 * F.cross_entropy(s, y, ignore_index=-1) + 0.5 * kd(s, t, 4.0)

    report = examine(student=c.student, teacher=c.teacher, loss=loss, batches=batches)
    assert report.sound, str(report)
    assert report.find("loss-padding")


@pytest.mark.parametrize(
    ("places", "label", "severity"),
    [((5,), -1, "doubt"), ((5,), -100, "fault"), ((), -1, "doubt"), ((), -100, "fault")],
)
def test_labels_with_one_logit_each_may_leave_places_out(places: tuple[int, ...], label: int, severity: str) -> None:
    """Several labels of a sample, or a single one: yes, no, or not known."""

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5)) if places else nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))

    def loss(s: Tensor, t: Tensor, y: Tensor, of_all: bool) -> Tensor:
        counts = y >= 0
        hard = F.binary_cross_entropy_with_logits(s[counts], y[counts].float())
        soft = F.binary_cross_entropy_with_logits(s, t.sigmoid(), reduction="none")
        return hard + (soft if of_all else soft[counts]).mean()

    batches = [(torch.randn(16, 6), torch.randint(2, (16, *places))) for _ in range(2)]
    for _, y in batches:
        y[:4] = label
    options: dict[str, Any] = {"student": network(), "teacher": network(), "batches": batches}
    assert "loss-padding" in examine(**options, loss=lambda s, t, y: loss(s, t, y, False)).passed
    (found,) = examine(**options, loss=lambda s, t, y: loss(s, t, y, True)).find("loss-padding")
    assert found.severity == severity


def test_one_logit_for_each_sample_is_not_compared_with_the_labels() -> None:
    x = torch.randn(256, 6)
    batches = list(zip(x.split(64), (x[:, 0] > 0).long().split(64), strict=True))
    student, teacher = nn.Linear(6, 1), nn.Linear(6, 1)
    nn.init.zeros_(teacher.weight)
    teacher.weight.data[0, 0] = 2.0
    report = examine(student=student, teacher=teacher, loss=lambda s, t: F.mse_loss(s, t), batches=batches)
    for check in ("teacher-accuracy", "teacher-pairing", "teacher-smoothing"):
        assert "one logit" in report.skipped[check]


def of_other_classes(method: methods.Method, task: str = "classification") -> Report:
    """Of a teacher whose class 1 is the student's class 0, and so on."""
    x = torch.randn(512, 4)
    student, teacher = (nn.Sequential(nn.Linear(4, 4), nn.Identity()) for _ in range(2))
    teacher[0].weight.data = 9 * torch.eye(4).roll(1, 0)
    batches = list(zip(x.split(128), x.argmax(1).split(128), strict=True))
    return examine(Distiller(student, teacher, method, task=task, example=batches[0]), batches)


@pytest.mark.parametrize(
    ("method", "task"),
    [
        (methods.HardLabels() + methods.Feature({"0": "0"}), "classification"),
        (methods.Relation({"1": "1"}, "rkd"), "classification"),
        (methods.Relation({"1": "1"}, "rkd"), "regression"),
        (methods.Logit(loss=F.mse_loss, hard=lambda z, y: z.square().mean()), "regression"),
    ],
)
def test_answers_that_nobody_takes_for_the_labels_classes_are_not_compared_with_them(
    method: methods.Method, task: str
) -> None:
    """A teacher of features has classes of its own; embeddings and numbers are no classes."""
    report = of_other_classes(method, task)
    assert report.sound, str(report)
    for check in ("class-order", "teacher-accuracy", "teacher-pairing", "teacher-worse", "teacher-smoothing"):
        assert check in report.skipped


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_loss_of_counts_need_not_be_finite_at_logits_of_ten_thousand(task: str) -> None:
    """exp(200) counts are none; a loss on the logits of classes that takes their exp is a fault as ever."""
    batches = [(torch.randn(32, 4), torch.rand(32, 2).softmax(1)) for _ in range(2)]
    student, teacher = nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2), nn.Identity())
    method = methods.Logit(alpha=0.5, loss=F.mse_loss, hard=F.poisson_nll_loss)
    report = examine(Distiller(student, teacher, method, task=task, example=batches[0]), batches)
    assert bool(report.find("loss-extremes")) == (task == "classification")
    assert ("loss-extremes" in report.skipped) == (task == "regression")


def test_answers_of_other_classes_are_found_where_the_method_reads_them() -> None:
    assert of_other_classes(methods.Logit() + methods.Feature({"0": "0"})).find("class-order")


@pytest.mark.parametrize("others", [0, 3])
def test_samples_of_hardly_more_than_one_class_say_nothing_of_a_teachers_accuracy(others: int) -> None:
    """As from folders that nobody shuffled; a teacher of many classes that is right about every other sample."""
    labels = (torch.arange(128) >= 128 - others).long()
    answers = 4.0 * F.one_hot(torch.where(torch.arange(128) % 2 == 0, labels, 7), 20)
    batches = [(torch.randn(128, 6), labels) for _ in range(4)]
    report = examine(
        student=nn.Linear(6, 20), teacher=lambda batch: answers, loss=lambda s, t: kd(s, t, 4.0), batches=batches
    )
    assert report.sound, str(report)
    assert "shuffled" in report.skipped["teacher-accuracy"]


def test_a_rare_class_of_two_does_not_hide_a_teacher_that_always_names_it() -> None:
    labels = (torch.arange(512) % 20 == 0).long()
    batches = [(torch.randn(128, 6), labels[i : i + 128]) for i in range(0, 512, 128)]
    answers = torch.tensor([-4.0, 4.0]).expand(128, 2)
    report = examine(
        student=nn.Linear(6, 2), teacher=lambda batch: answers, loss=lambda s, t: kd(s, t, 4.0), batches=batches
    )
    assert report.find("teacher-accuracy")


# -------------------- steps that make their own batches

BY_LABEL = ("teacher-accuracy", "teacher-pairing", "class-order", "normalisation", "teacher-worse")


def with_inputs(change: Callable[[Tensor], Tensor]) -> Report:
    """Of a step that changes its pictures, which have been mirrored at random, before both networks see them."""
    c = case(0)

    def step(batch: Any) -> Tensor:
        x, y = batch
        x = change(torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x))
        with torch.no_grad():
            t = c.teacher(x)
        return 0.5 * F.cross_entropy(c.student(x), y) + 0.5 * kd(c.student(x), t, 4.0)

    return examine(student=c.student, teacher=c.teacher, step=step, batches=c.batches)


def cut_and_mixed(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, :10] = x.roll(1, 0)[:, :, :10]
    return x


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "Mixup": lambda x: 0.1 * x + 0.9 * x[torch.randperm(len(x))],
    "CutMix": cut_and_mixed,
}


@pytest.mark.parametrize("name", MIXED)
def test_pictures_that_a_step_mixes_are_not_compared_with_labels(name: str) -> None:
    report = with_inputs(MIXED[name])
    assert not any(report.find(check) for check in BY_LABEL), str(report)
    assert all("Mixup" in report.skipped[check] for check in BY_LABEL)


def test_pictures_that_a_step_changes_one_by_one_are_compared_with_labels() -> None:
    assert "teacher-accuracy" in with_inputs(lambda x: x).passed
    assert any(with_inputs(lambda x: x[torch.randperm(len(x))]).find(check) for check in BY_LABEL)


def test_pictures_that_a_step_changes_by_chance_of_its_own_are_compared_with_labels() -> None:
    own = torch.Generator()
    noisy = with_inputs(lambda x: x + 0.01 * torch.randn(x.shape, generator=own))
    assert "teacher-accuracy" in noisy.passed


TABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "standardised": lambda x: (x - x.mean(0)) / x.std(0),
    "Mixup": lambda x: 0.6 * x + 0.4 * x.roll(1, 0),
}


@pytest.mark.parametrize("name", TABLES)
def test_columns_that_a_step_standardises_over_the_batch_are_not_mixed(name: str) -> None:
    x = torch.randn(256, 3) * torch.tensor([1.0, 2.0, 4.0]) + torch.tensor([3.0, 0.0, -2.0])
    y = ((x - x.mean(0)) / x.std(0)).argmax(1)
    student, teacher = nn.Linear(3, 3), nn.Linear(3, 3).eval().requires_grad_(False)
    teacher.weight.copy_(5 * torch.eye(3))

    def step(batch: Any) -> Tensor:
        x, y = TABLES[name](batch[0]), batch[1]
        return F.cross_entropy(student(x), y) + kd(student(x), teacher(x), 4.0)

    report = examine(
        student=student, teacher=teacher, step=step, batches=list(zip(x.split(64), y.split(64), strict=True))
    )
    assert ("teacher-accuracy" in report.passed) == (name == "standardised"), str(report)


class Rated(nn.Module):
    """Of users and items; what is not a row for each sample may come first."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(9, 4), nn.Embedding(9, 4)

    def forward(self, first: Tensor, items: Tensor) -> Tensor:
        return self.users(first) + self.items(items)


@pytest.mark.parametrize("first", ["users", "a number"])
def test_a_network_whose_first_argument_has_no_rows_of_numbers_is_examined(first: str) -> None:
    student, teacher = Rated(), Rated().eval().requires_grad_(False)

    def step(batch: Any) -> Tensor:
        users, items, y = batch
        given = users if first == "users" else torch.tensor(3)
        s = student(given, items)
        return F.cross_entropy(s, y) + kd(s, teacher(given, items), 4.0)

    batches = [(*torch.randint(9, (2, 64)), torch.randint(4, (64,))) for _ in range(4)]
    report = examine(student=student, teacher=teacher, step=step, batches=batches, adapter=Adapter(labels=2))
    assert "teacher-accuracy" not in report.skipped


@pytest.mark.parametrize(("mixed", "severity"), [(True, "doubt"), (False, "fault")])
def test_a_teacher_whose_accuracy_is_hidden_by_mixing_is_called_fresh_with_doubt(mixed: bool, severity: str) -> None:
    c = case(2)
    norms = [module for module in c.teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
    assert norms

    def step(batch: Any) -> Tensor:
        x, y = batch
        x = 0.1 * x + 0.9 * x[torch.randperm(len(x))] if mixed else x.roll(1, 0)
        with torch.no_grad():
            t = c.teacher(x)
        return F.cross_entropy(c.student(x), y) + kd(c.student(x), t, 4.0)

    (found,) = examine(student=c.student, teacher=c.teacher, step=step, batches=c.batches).find("teacher-fresh")
    assert found.severity == severity


def two_views(c: Any, batch: Any) -> Tensor:
    x, y = batch
    s, t = c.student(torch.cat([x, x.flip(3)])), c.teacher(torch.cat([x, x.flip(3)]))
    return F.cross_entropy(s[: len(x)], y) + kd(s, t, 4.0)


def micro_batches(c: Any, batch: Any) -> Tensor:
    parts = list(zip(*(one.split(24) for one in batch), strict=True))
    return torch.stack([c.loss(c.student(x), c.teacher(x), y) for x, y in parts]).sum() / len(parts)


def without_some_labels(c: Any, batch: Any) -> Tensor:
    x, y = batch
    s, t = c.student(torch.cat([x, x.flip(3)])), c.teacher(x.flip(3))
    return F.cross_entropy(s[: len(x)], y) + kd(s[len(x) :], t, 4.0)


@pytest.mark.parametrize("step", [two_views, micro_batches, without_some_labels])
def test_a_step_that_calls_its_networks_with_other_numbers_of_rows_is_examined_as_far_as_it_goes(
    step: Callable[[Any, Any], Tensor],
) -> None:
    c = case(0, size=64)
    c.teacher.requires_grad_(False)
    report = examine(student=c.student, teacher=c.teacher, step=lambda batch: step(c, batch), batches=c.batches[:2])
    assert report.sound, str(report)
    assert "student-gradient" in report.passed
    for check in ("loss-ignores-teacher", "loss-rows", "loss-temperature", "loss-extremes"):
        assert "row" in report.skipped[check]


def of_probabilities(step: Callable[[Any, Any], Tensor], logarithm: bool) -> list[str]:
    """How serious it is that a student gives probabilities, of which the loss takes the logarithm or a softmax."""
    c = case(0, size=64)
    c.teacher.requires_grad_(False)
    c.student.last = nn.Softmax(1)

    class Seen:
        teacher = c.teacher
        loss = staticmethod(c.loss)

        @staticmethod
        def student(x: Tensor) -> Tensor:
            found = c.student(x)
            return found.clamp(min=1e-30).log() if logarithm else found

    report = examine(student=c.student, teacher=c.teacher, step=lambda batch: step(Seen, batch), batches=c.batches[:2])
    return [one.severity for one in report.find("probabilities")]


def test_probabilities_in_a_step_of_several_views_are_a_fault_only_where_their_softmax_was_seen() -> None:
    assert of_probabilities(two_views, logarithm=True) == []
    assert of_probabilities(two_views, logarithm=False) == ["fault"]
    assert "fault" not in of_probabilities(micro_batches, logarithm=True)
    assert of_probabilities(micro_batches, logarithm=False) == ["doubt"]


# -------------------- tensors that get a gradient and are no parameters


@pytest.mark.parametrize("made", ["by the batch", "in the step", "before the step"])
def test_only_a_tensor_that_outlives_the_step_belongs_in_an_optimiser(made: str) -> None:
    student, teacher = nn.Linear(6, 3), nn.Linear(6, 3).eval().requires_grad_(False)
    scale = torch.zeros(1, requires_grad=True)  # a temperature that learns

    def step(batch: Any) -> Tensor:
        x, y = batch
        if made == "by the batch":
            x.requires_grad_()
        elif made == "in the step":  # as with inputs of frozen embeddings: enable_input_require_grads() of transformers
            x = (2 * x).requires_grad_()
        s, t = student(x), teacher(x)
        return F.cross_entropy(s * scale.exp() if made == "before the step" else s, y) + kd(s, t, 4.0)

    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(2)]
    report = examine(
        student=student,
        teacher=teacher,
        step=step,
        batches=batches,
        optimizer=torch.optim.SGD(student.parameters(), 0.1),
        clipped=student.parameters(),
    )
    for check in ("optimizer-parameters", "clipping"):
        assert bool(report.find(check)) == (made == "before the step"), str(report)


# -------------------- modes of the student


def test_batch_norms_that_are_frozen_in_a_student_that_trains_are_a_doubt() -> None:
    c = case(2, norm="batch", dropout=0.0)

    def severities() -> list[str]:
        report = examine(student=c.student, teacher=c.teacher, loss=c.loss, batches=c.batches[:2])
        return [one.severity for one in report.find("student-mode")]

    for module in c.student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert severities() == ["doubt"]
    c.student.eval()
    assert severities() == ["fault"]


# -------------------- teachers that are more than their network


class Renamed(nn.Module):
    """A teacher whose classes have another order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).roll(1, dims=1)


def in_right_order(network: nn.Module) -> FrozenTeacher:
    return FrozenTeacher(Renamed(network), read_logits=lambda output: output.roll(-1, dims=1))


def of_two(network: nn.Module) -> ConfidenceEnsemble:
    return ConfidenceEnsemble([network, copy.deepcopy(network)], temperature=4.0)


TEACHERS: dict[str, Callable[[nn.Module], FrozenTeacher]] = {"with readers": in_right_order, "an ensemble": of_two}


@pytest.mark.parametrize("form", ["loss", "distiller"])
@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_that_is_more_than_its_network_is_asked_itself(name: str, form: str) -> None:
    c = case(0, norm="batch", temperature=4.0)
    teacher = TEACHERS[name](c.teacher)

    def report(batches: list[Any]) -> Report:
        if form == "distiller":
            return examine(Distiller(c.student, teacher, methods.Logit(4.0, 0.5)), batches)
        return examine(student=c.student, teacher=teacher, loss=lambda s, t: kd(s, t, 4.0), batches=batches)

    found = report(c.batches[:4])
    assert found.findings == (), str(found)
    assert {"class-order", "normalisation"} <= set(found.passed)
    pixels = [(255 * (x * c.task.std + c.task.mean), y) for x, y in c.batches[:4]]
    assert report(pixels).find("normalisation")


def test_a_teacher_that_answers_to_no_other_pictures_is_not_said_to_know_their_normalisation() -> None:
    class Closed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.mean((2, 3))
            return logits if float(x.max()) == 7 else torch.full_like(logits, torch.nan)

    x = -torch.rand(2, 16, 3, 4, 4)
    x[..., 0, 0] = 7
    batches = [(one, torch.arange(16) % 3) for one in x]
    student = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    report = examine(student=student, teacher=Closed(), loss=lambda s, t: kd(s, t, 4.0), batches=batches)
    assert "normalisation" in report.skipped, str(report)


# -------------------- batches


class Encoding(UserDict):  # as transformers' BatchEncoding
    def to(self, device: str) -> Encoding:
        return Encoding({name: value.to(device) for name, value in self.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


class Shared(MutableMapping):
    """A mapping whose shallow copy has the same items."""

    def __init__(self, items: dict[str, Tensor]) -> None:
        self.items_ = items

    def __getitem__(self, name: str) -> Tensor:
        return self.items_[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.items_[name] = value

    def __delitem__(self, name: str) -> None:
        del self.items_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


def test_a_batch_of_any_mapping_stays_as_it_was() -> None:
    student, teacher = nn.Linear(6, 3), nn.Linear(6, 3).eval().requires_grad_(False)
    items = {"x": torch.randn(16, 6), "labels": torch.randint(3, (16,))}
    before = dict(items)

    def step(batch: Any) -> Tensor:
        s, t = student(batch["x"]), teacher(batch["x"])
        return 0.5 * F.cross_entropy(s, batch["labels"]) + 0.5 * kd(s, t, 4.0)

    assert examine(student=student, teacher=teacher, step=step, batches=[Shared(items), Shared(items)]).passed
    assert all(items[name] is before[name] for name in before)


@dataclass(frozen=True)
class Scaled:
    """A batch that makes numbers of its bytes when it is built."""

    x: Tensor
    labels: Tensor
    most: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "most", 255.0)
        object.__setattr__(self, "x", self.x / 255)


def test_a_batch_that_computes_when_it_is_built_is_examined_as_it_is() -> None:
    given = Scaled(torch.randint(256, (16, 6)), torch.randint(3, (16,)))
    student, teacher = nn.Linear(6, 3), nn.Linear(6, 3).eval().requires_grad_(False)
    seen = []

    def step(batch: Scaled) -> Tensor:
        seen.append((batch.most, float(batch.x.max())))
        s, t = student(batch.x), teacher(batch.x)
        return 0.5 * F.cross_entropy(s, batch.labels) + 0.5 * kd(s, t, 4.0)

    assert examine(student=student, teacher=teacher, step=step, batches=[given, given]).passed
    assert seen[0] == (255, float(given.x.max()))


def test_a_batch_keeps_its_class() -> None:
    student, teacher = nn.Linear(6, 3), nn.Linear(6, 3).eval().requires_grad_(False)
    batches = [Encoding({"x": torch.randn(16, 6), "labels": torch.randint(3, (16,))}) for _ in range(2)]

    def step(batch: Any) -> Tensor:
        batch = batch.to("cpu")
        s, t = student(batch.x), teacher(batch.x)
        return 0.5 * F.cross_entropy(s, batch.labels) + 0.5 * kd(s, t, 4.0)

    assert examine(student=student, teacher=teacher, step=step, batches=batches).passed


# -------------------- splits


def splits_of(adapter: Adapter | None = None, **splits: Any) -> Report:
    c = case(5)
    return examine(
        student=c.student, teacher=c.teacher, loss=c.loss, batches=c.batches[:2], data=splits, adapter=adapter
    )


def test_a_small_split_within_a_large_one_is_found_in_either_order() -> None:
    torch.manual_seed(0)
    train = torch.randn(2000, 4)
    for splits in ({"train": train, "test": train[:15]}, {"test": train[:15], "train": train}):
        assert splits_of(**splits).find("splits"), list(splits)


def test_splits_made_from_one_data_set_of_ones_own_are_compared_by_content() -> None:
    torch.manual_seed(0)
    whole = TensorDataset(torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8), torch.arange(300) % 10)
    train, validation, test = (Subset(whole, range(a, b)) for a, b in ((0, 200), (200, 220), (100, 300)))
    module = data.from_datasets(
        train, validation=validation, test=test, classes=list("abcdefghij"), image_size=8, in_channels=1
    )
    c = case(5)
    report = examine(student=c.student, teacher=c.teacher, loss=c.loss, batches=c.batches[:2], data=module)
    assert report.find("splits")


class Augmented(Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index] + 0.01 * torch.randn_like(self.images[index])


def test_samples_that_are_never_the_same_twice_are_not_said_to_differ() -> None:
    images = torch.randn(30, 4)
    report = splits_of(train=Augmented(images), test=Augmented(images))
    assert "splits" in report.skipped


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.zeros(30, 4))


class StreamOfKnownLength(Stream):
    def __len__(self) -> int:
        return 30


def test_streams_whose_samples_have_no_numbers_are_not_compared() -> None:
    report = splits_of(validation=StreamOfKnownLength(), test=StreamOfKnownLength())
    assert "cannot be read by their number" in report.skipped["splits"]


def test_one_stream_for_two_splits_is_found_where_its_length_is_known() -> None:
    stream, of_known_length = Stream(), StreamOfKnownLength()
    assert "splits" in splits_of(validation=stream, test=stream).skipped
    assert splits_of(validation=of_known_length, test=of_known_length).find("splits")


IMAGES = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
IN_PARTS: dict[str, list[Any]] = {
    "user, item, rating": [(n % 7, n, 1.0 + n % 5) for n in range(60)],
    "two texts": [(f"premise {n % 7}", f"hypothesis {n}", n % 3) for n in range(60)],
    "image and text": [(IMAGES[n % 7], f"question {n}", n % 3) for n in range(60)],
    "a number first": [(n % 30, image, 0) for n, image in enumerate(IMAGES)],
    "a list of several shapes": [(IMAGES[n % 7], [IMAGES[n], IMAGES[n, :2]], n) for n in range(60)],
}


@pytest.mark.parametrize("kind", IN_PARTS)
def test_samples_with_one_part_in_common_are_not_the_same(kind: str) -> None:
    samples = IN_PARTS[kind]
    (found,) = splits_of(train=samples[:30], apart=samples[30:], test=samples[15:30]).find("splits")
    assert "15 of the 15 samples of test" in found.measured


NUMBERED = [[(image, n % 3, n + at) for n, image in enumerate(IMAGES)] for at in (0, 1000)]


def test_numbers_beside_an_input_make_a_doubt() -> None:
    first, second = NUMBERED
    (found,) = splits_of(train=first, test=second).find("splits")
    assert (found.severity, "adapter" in found.change) == ("doubt", True)
    # A pair that is certain is said before one that is not.
    tensors = [sample[0] for sample in second]
    (found,) = splits_of(train=first, test=second, again=tensors, once_more=tensors).find("splits")
    assert (found.severity, "once_more are in again" in found.measured) == ("fault", True)


def test_an_adapter_says_which_parts_of_a_sample_are_inputs() -> None:
    first, second = NUMBERED
    (found,) = splits_of(Adapter(inputs=0, labels=1), train=first, test=second).find("splits")
    assert found.severity == "fault"


def test_what_the_teacher_is_given_is_an_input_too() -> None:
    """Many people have one row of a table, and each has an image of their own."""
    people = [{"table": IMAGES[n % 5], "image": image, "label": n % 3} for n, image in enumerate(IMAGES)]
    torch.manual_seed(0)
    batch = {"table": torch.randn(8, 4), "image": torch.randn(8, 4), "label": torch.arange(8) % 3}
    setup: dict[str, Any] = {"student": nn.Linear(4, 3), "teacher": nn.Linear(4, 3), "loss": case(5).loss}
    setup |= {"batches": [batch], "adapter": Adapter(inputs="table", teacher_inputs="image")}
    assert "splits" in examine(**setup, data={"train": people[:30], "test": people[30:]}).passed
    (found,) = examine(**setup, data={"train": people[:30], "test": people[10:30]}).find("splits")
    assert found.severity == "fault"


def test_samples_of_single_numbers_are_compared_without_label_and_number() -> None:
    first, second = ([{"age": n % 7, "hours": n, "label": 0, "index": n + at} for n in range(30)] for at in (0, 1000))
    (found,) = splits_of(train=first, test=second).find("splits")
    assert "30 of the 30 samples" in found.measured


def test_a_function_for_batches_is_not_called_on_a_sample() -> None:
    """Of a picture, not a batch of them, this one reads the first rows, which may all be black."""
    pictures = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures[:, :, 0] = 0
    samples = [(one, n % 3) for n, one in enumerate(pictures)]
    adapter = Adapter(inputs=lambda batch: batch[0][:, [0, 0, 0]], labels=1)
    assert "splits" in splits_of(adapter, train=samples[:30], test=samples[30:]).passed


def test_a_label_in_front_is_no_input_where_a_function_reads_the_inputs() -> None:
    samples = [(n % 3, one) for n, one in enumerate(torch.rand(60, 3, 8, 8))]
    c = case(5)
    batches = [(labels, inputs) for inputs, labels in c.batches[:2]]
    adapter = Adapter(inputs=lambda batch: 1 * batch[1], labels=0)
    setup: dict[str, Any] = {"student": c.student, "teacher": c.teacher, "loss": c.loss, "batches": batches}
    report = examine(**setup, adapter=adapter, data={"train": samples[:30], "test": samples[30:]})
    assert "splits" in report.passed
    (found,) = examine(**setup, adapter=adapter, data={"train": samples, "test": samples[30:]}).find("splits")
    assert found.severity == "fault"


def test_an_adapter_that_reads_only_batches_hides_no_shared_sample() -> None:
    images = torch.randn(30, 4)
    samples = [(image, n % 3) for n, image in enumerate(images)]

    def inputs(batch: Any) -> Tensor:
        assert batch[0].ndim == 4
        return batch[0]

    (found,) = splits_of(Adapter(inputs=inputs, labels=1), train=samples, test=samples[:20]).find("splits")
    assert found.severity == "fault"


def test_the_number_of_a_sample_is_no_part_of_its_content() -> None:
    images = torch.randn(30, 4)
    first, second = ([{"id": n + at, "x": image} for n, image in enumerate(images)] for at in (0, 1000))
    assert splits_of(train=first, test=second).find("splits")


# -------------------- many classes


def test_the_order_of_very_many_classes_is_not_searched() -> None:
    torch.manual_seed(0)
    student, teacher = nn.Linear(6, 8000), nn.Linear(6, 8000).eval().requires_grad_(False)
    batches = [(torch.randn(16, 6), torch.randint(8000, (16,))) for _ in range(2)]
    report = examine(student=student, teacher=teacher, loss=lambda s, t: kd(s, t, 4.0), batches=batches)
    assert "class" in report.skipped["class-order"]


# -------------------- the order of findings


def test_faults_come_before_doubts() -> None:
    c = case(5)

    def loss(s: Tensor, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"hard": 1e-6 * F.cross_entropy(s, y), "soft": kd(s, t, 4.0)}

    clipped = [next(c.student.parameters())]
    report = examine(
        student=c.student, teacher=c.teacher, loss=loss, batches=c.batches[:2], temperature=2, clipped=clipped
    )
    severities = [one.severity for one in report.findings]
    assert {"fault", "doubt"} <= set(severities)
    assert severities == sorted(severities, key=lambda one: one == "doubt")


def test_a_student_that_says_one_class_for_everything_has_no_other_order() -> None:
    """Two classes of which one is rare: renaming the rare one to the other is right more often, and means nothing."""
    images = torch.randn(8, 64, 1, 6, 6)
    batches = [(x, torch.where(torch.rand(64) < 0.7, 0, 1)) for x in images]
    constant = nn.Sequential(nn.Flatten(), nn.Linear(batches[0][0][0].numel(), 2))
    nn.init.zeros_(constant[1].weight)
    constant[1].bias.data = torch.tensor([-1.0, 1.0])
    report = examine(
        student=constant, teacher=copy.deepcopy(constant), loss=lambda s, t: kd(s, t, 4.0), batches=batches
    )
    assert not report.find("class-order")


def test_labels_in_a_dict_are_left_alone() -> None:
    c = case(0)
    batches = [(x, {"kind": y}) for x, y in c.batches]
    method = methods.Logit(4.0, 0.5, hard=lambda z, y: F.cross_entropy(z, y["kind"]))
    report = examine(Distiller(c.student, c.teacher, method), batches)
    assert "class-order" in report.skipped
    assert not report.find("loss-padding")


def test_pairs_without_labels_are_a_doubt_at_most() -> None:
    """As kdlib's own pairs of sensors mark them: a label of -100 for each that lacks one."""
    c = case(0)
    batches = [(x, torch.cat([y[:-4], torch.full((4,), -100)])) for x, y in c.batches[:2]]
    method = methods.Logit(2, 0.5, hard=lambda z, y: F.cross_entropy(z, y, ignore_index=-100))
    report = examine(Distiller(c.student, c.teacher, method), batches)
    assert report.find("loss-padding")
    assert all(one.severity == "doubt" for one in report.find("loss-padding"))


class Tokens(nn.Module):
    """Logits for each of some numbers."""

    def __init__(self, classes: int, softmax: bool = False) -> None:
        super().__init__()
        self.table, self.softmax = nn.Embedding(7, classes), softmax

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).softmax(-1) if self.softmax else self.table(x)


def texts(left: int = 0, right: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Two batches of ten tokens; some at either end do not count."""
    tokens = torch.randint(0, 7, (2, 16, 10), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[:, :, :left] = labels[:, :, 10 - right :] = -100
    return list(zip(tokens, labels, strict=True))


@pytest.mark.parametrize("ends", [(3, 0), (0, 3), (2, 2)])
def test_a_loss_on_the_next_token_may_shift_its_mask(ends: tuple[int, int]) -> None:
    def of_the_next(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        s, t, y = s[:, :-1], t[:, :-1], y[:, 1:]
        return kd(s[y >= 0], t[y >= 0], 2.0)

    def of_all(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return kd(s.flatten(0, 1), t.flatten(0, 1), 2.0)

    options = {"student": Tokens(7), "teacher": Tokens(7), "batches": texts(*ends)}
    assert "loss-padding" in examine(**options, loss=of_the_next).passed
    assert examine(**options, loss=of_all).find("loss-padding")


@pytest.mark.parametrize(("ends", "severity"), [((0, 3), "fault"), ((2, 3), "doubt")])
def test_tokens_without_a_label_are_padding_only_at_the_end(ends: tuple[int, int], severity: str) -> None:
    def of_all(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return kd(s.flatten(0, 1), t.flatten(0, 1), 2.0)

    (found,) = examine(student=Tokens(7), teacher=Tokens(7), batches=texts(*ends), loss=of_all).find("loss-padding")
    assert found.severity == severity


@pytest.mark.parametrize(
    ("masked", "over", "severities"),
    [(True, "real tokens", []), (True, "all tokens", ["fault"]), (False, "all tokens", ["doubt"])],
)
def test_tokens_that_a_masked_language_model_does_not_guess_may_learn_from_the_teacher(
    masked: bool, over: str, severities: list[str]
) -> None:
    """Labels are -100 but for some tokens, and what is padding only the attention mask says."""
    student, teacher, batches = Tokens(7), Tokens(7).eval().requires_grad_(False), []
    for ids, labels in texts():
        mask = (torch.arange(10) < 7).long().expand_as(ids)
        guessed = (torch.arange(10) % 3 == 1) & (mask > 0)
        batch = {"input_ids": ids, "labels": torch.where(guessed, labels, -100)}
        batches.append(batch | ({"attention_mask": mask} if masked else {}))

    def step(batch: Any) -> Tensor:
        s, t, y = student(batch["input_ids"]), teacher(batch["input_ids"]), batch["labels"]
        real = batch["attention_mask"] > 0 if over == "real tokens" else torch.ones_like(y).bool()
        return F.cross_entropy(s[y >= 0], y[y >= 0]) + kd(s[real], t[real], 2.0)

    report = examine(student=student, teacher=teacher, step=step, batches=batches)
    assert [one.severity for one in report.find("loss-padding")] == severities
    assert "loss-padding" not in report.skipped


MASKS = {  # how many tokens are no padding, of two kinds of samples: by the attention mask, and by the labels
    "of another text": ((7, 5), (5, 7)),
    "of a shorter text": ((9, 9), (7, 5)),
    "of ones": ((10, 10), (7, 5)),
    "alone": ((7, 5), (10, 10)),
}


@pytest.mark.parametrize("over", ["labels", "all tokens"])
@pytest.mark.parametrize("name", MASKS)
def test_an_attention_mask_says_what_counts_only_where_it_is_that_of_the_labels(name: str, over: str) -> None:
    student, teacher, batches = Tokens(7), Tokens(7).eval().requires_grad_(False), []
    for ids, labels in texts():
        given, answered = (torch.tensor(part).repeat(len(ids) // 2)[:, None] for part in MASKS[name])
        mask = (torch.arange(10) < given).long()
        labels = torch.where(torch.arange(10) < answered, labels, -100)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})

    def step(batch: Any) -> Tensor:
        s, t, y = student(batch["input_ids"]), teacher(batch["input_ids"]), batch["labels"]
        real = y >= 0 if name != "alone" else batch["attention_mask"] > 0
        which = real if over == "labels" else torch.ones_like(real)
        return F.cross_entropy(s[real], y[real]) + kd(s[which], t[which], 2.0)

    report = examine(student=student, teacher=teacher, step=step, batches=batches)
    assert [one.severity for one in report.find("loss-padding")] == ([] if over == "labels" else ["fault"])
    assert "loss-padding" not in report.skipped


@pytest.mark.parametrize("of", ["the labels", "an encoder's text"])
@pytest.mark.parametrize("padding", [0, -100])
def test_padding_with_a_label_of_a_class_is_learned_by_a_distiller(padding: int, of: str) -> None:
    """A task leaves out what its labels leave out; an attention mask it reads in a batch without labels only."""
    batches: list[dict[str, Tensor]] = []
    for ids, labels in texts():
        mask = (torch.arange(10) < torch.tensor((7, 5)).repeat(len(ids) // 2)[:, None]).long()
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask > 0, labels, padding)})
        if of == "an encoder's text":
            batches[-1] |= {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(mask)}
    adapter = Adapter(inputs="input_ids")
    distiller = Distiller(Tokens(7), Tokens(7), methods.Logit(), adapter=adapter, task="token-classification")
    report = examine(distiller, batches)
    found = report.find("loss-padding")
    if padding == 0 and of == "the labels":
        assert [one.severity for one in found] == ["fault"]
        assert "-100" in found[0].change
    else:
        assert not found
    assert ("loss-padding" in report.skipped) == (padding == 0 and of != "the labels")


def test_a_task_that_leaves_no_label_out_is_not_advised_one() -> None:
    def hard(s: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(s.transpose(1, 2), y)

    def soft(s: Tensor, t: Tensor) -> Tensor:
        return kd(s.flatten(0, 1), t.flatten(0, 1), 2.0)

    mask = (torch.arange(10) < 7).long()
    batches = [
        {"input_ids": ids, "attention_mask": mask.expand_as(ids), "labels": y.clamp(min=0)} for ids, y in texts()
    ]
    own = methods.Logit(loss=soft, hard=hard)
    distiller = Distiller(Tokens(7), Tokens(7), own, adapter=Adapter(inputs="input_ids"), task="regression")
    (found,) = examine(distiller, batches).find("loss-padding")
    assert "logits[mask > 0]" in found.change
    assert "None" not in found.change


def test_probabilities_of_tokens_are_found() -> None:
    def of_all(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return kd(s.flatten(0, 1), t.flatten(0, 1), 2.0)

    report = examine(student=Tokens(7), teacher=Tokens(7, softmax=True), batches=texts(), loss=of_all)
    assert report.find("probabilities")
