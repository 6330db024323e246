"""Which images the experiments of the lessons read, with which seed they train, and what they store."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from course.clinic import ward
from course.experiments import (
    claims,
    claims_common,
    claims_noise,
    claims_pictures,
    compression,
    kept_students,
    logit_mistakes,
    missing_class,
    modalities,
    search_proxy,
    several_common,
    several_mutual,
    several_own,
    several_same,
    teacher_students,
    teachers,
)
from course.experiments import several_teachers as several
from course.experiments.several_common import Outcome, Setting
from kdlib import measure, models
from kdlib.data import DataModule


class Says(nn.Module):
    """Names one class, whatever it is shown."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, images: Tensor) -> Tensor:
        return 9 * torch.eye(10)[torch.full((len(images),), self.label)]


@pytest.fixture
def split_apart(fashion: DataModule) -> DataModule:
    """Every validation image is called 0, and every test image 1."""
    few = torch.arange(120)

    def called(name: str, label: int) -> Any:
        part = getattr(fashion, name).select(few)
        return replace(part, labels=torch.full_like(part.labels, label))

    return replace(fashion, train=fashion.train.select(few), validation=called("validation", 0), test=called("test", 1))


# --- trials read validation images


@pytest.mark.parametrize("module", [claims, several])
def test_a_trial_reads_validation_images_and_a_run_test_images(
    module: Any, split_apart: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fashion", lambda: split_apart)
    if module is claims:
        part: Any = claims_common.Part("length", {"one": claims_common.Arm(lambda *_: Says(0))})
        run: Any = claims.Run("one", 3, claims_common.Setting(0.1))
    else:
        part = several_common.Part("own", 10, 1, 1, {"one": several_common.Way(lambda *_: Outcome([Says(0)]))})
        run = several.Run("one", 3, Setting(0.1))
    assert module.execute(run, part, {}, test=False)["validation_accuracy"] == 1
    assert module.execute(run, part, {}, test=True)["test_accuracy"] == 0


@pytest.mark.slow
def test_a_students_trial_reads_validation_images_and_trains_with_its_seed(
    split_apart: DataModule, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(teacher_students.train, "fit", lambda *_, **options: given.update(options))
    monkeypatch.setattr(teacher_students.models, "build", lambda *_, **__: Says(0))
    run = teacher_students.Run("resnet8", teacher_students.HARD, 7, 0.1)
    row = teacher_students.execute(run, teacher_students.Budget(images=20), split_apart, tmp_path, test=True)
    assert (row["validation_accuracy"], row["test_accuracy"]) == (1, 0)
    assert given["seed"] == 7


def test_a_compressed_network_is_chosen_on_validation_images(split_apart: DataModule) -> None:
    row = compression._measured(Says(0), compression.TECHNIQUES["channels"], split_apart, test=False)
    assert row == {"validation_accuracy": 1}


def test_compression_trains_with_the_seed_and_the_method_of_the_study(
    split_apart: DataModule, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(compression.train, "fit", lambda *_, **options: given.update(options))
    monkeypatch.setattr(compression, "_teacher", lambda *_: None)
    images = compression.Images(split_apart, (), 7)
    run = compression.Run("int4", compression.KD, 7, 0.1)
    compression._train(Says(0), images, run, compression.Budget(20, 2), 2, tmp_path)
    assert (given["seed"], given["method"].temperature, given["method"].alpha) == (7, 4, 0.1)


def test_a_proxy_is_held_against_validation_accuracy(split_apart: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        search_proxy.train,
        "fit",
        lambda student, *_, **options: given.update(options) or SimpleNamespace(student=student),
    )
    none: Any = None
    runs = search_proxy.SeedRuns(search_proxy.Budget(), split_apart, 7, none, none, none, none)
    assert runs._accuracy(Says(0)) == 1
    assert given["seed"] == 7


@pytest.mark.slow
def test_the_constant_is_chosen_on_validation_images(split_apart: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing class is 0: on validation images alone a constant helps."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        missing_class.train, "fit",
        lambda student, *_, **options: given.update(options) or SimpleNamespace(student=student),
    )  # fmt: skip
    config = missing_class.small_configs(0, 8)[missing_class.HARD_RUN][7]
    budget = missing_class.BUDGETS[missing_class.SMALL]
    whole = SimpleNamespace(
        data=replace(split_apart, test=replace(split_apart.test, labels=torch.arange(120) % 2)), budget=budget,
        build_student=lambda seed: Says(1), make_method=lambda _: None, device_options={}, device_config="cpu",
    )  # fmt: skip
    runner: Any = SimpleNamespace(experiment=whole, data=split_apart)
    row = missing_class.execute(missing_class.HARD, runner, config)
    logits = Says(1)(torch.zeros(120))
    wanted = missing_class.best_constant(logits, split_apart.validation.labels, 0)
    assert wanted > missing_class.best_constant(logits, whole.data.test.labels, 0)
    assert row["constant"] == pytest.approx(wanted)
    assert (row["recognised"], row["recognised_with"], row["others_with"]) == (0, 1, 0)
    assert (given["seed"], given["recipe"].optimizer) == (7, "adamw")


# --- several teachers


def test_the_best_member_is_the_best_on_validation_images(
    split_apart: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (several_same, several_own):
        monkeypatch.setattr(module, "fashion", lambda: split_apart)
    monkeypatch.setattr(several_same, "members", lambda *_: (Says(1), Says(0)))
    monkeypatch.setattr(several_same, "_outcome", lambda seed, setting, teacher: Outcome([], teacher))
    outcome = several_same.taught_by_best(0, Setting(0.1), {})
    assert (outcome.teacher(split_apart.test).argmax(1) == 0).all()
    assert several_own._Answers((Says(1), Says(0))).scores == [0, 1]


def test_the_four_good_leave_out_the_last() -> None:
    logits = 9 * torch.eye(5, 10)[:, None]  # teacher k names class k
    said = several_own.COMBINE["mean of the four good"](logits, torch.zeros(1, dtype=torch.long), [1.0] * 5, 1.0)
    assert set(said[0].topk(4).indices.tolist()) == {0, 1, 2, 3}


def test_snapshots_are_three_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(network: nn.Module, *_: Any, **__: Any) -> nn.Module:
        with torch.no_grad():
            for one in network.parameters():
                one.add_(1)
        return network

    monkeypatch.setattr(several_same, "fit", fit)
    monkeypatch.setattr(several_same, "thin_resnet", lambda *_: nn.Linear(1, 1))
    monkeypatch.setattr(several_same, "images_of", lambda *_: None)
    several_same.snapshots.cache_clear()
    weights = [one.weight.item() for one in several_same.snapshots(0, Setting(0.1))]
    several_same.snapshots.cache_clear()
    assert np.diff(weights).tolist() == pytest.approx([1, 1])


def test_answers_are_given_in_eval_mode(split_apart: DataModule) -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Dropout(0.9), nn.Linear(784, 10)).train()
    once, again = (several_common.logits_of(network.train(), split_apart.test) for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.parametrize(("smoothing", "teachers_of_each"), [(0.0, 2), (0.3, 0)])
def test_the_loss_of_mutual_learning_by_hand(
    smoothing: float, teachers_of_each: int, split_apart: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first network at the first step: labels, and the mean over its teachers."""
    from kdlib import losses

    seen: list[float] = []
    backward = Tensor.backward
    monkeypatch.setattr(
        Tensor, "backward", lambda self, *a, **k: (seen.append(self.item()), backward(self, *a, **k))[1]
    )
    train = replace(split_apart.train, labels=torch.zeros_like(split_apart.train.labels))
    monkeypatch.setattr(several_mutual, "images_of", lambda *_: SimpleNamespace(train=train))
    monkeypatch.setattr(several_mutual, "BATCH", len(train))

    def made() -> list[nn.Module]:
        networks = [several_common.mlp(3, seed) for seed in range(1 + teachers_of_each)]
        for place, one in enumerate(networks):
            one[3].bias.data[place] += 4  # sure of one class, the first of the right one
        return networks

    several_mutual.train_together(made(), 0, Setting(0.1, 2.0), 1, smoothing=smoothing)
    batch = next(train.iter_batches(len(train)))
    answers = [one(batch.images).detach() for one in made()]
    expected = nn.functional.cross_entropy(answers[0], batch.labels, label_smoothing=smoothing)
    if teachers_of_each:
        expected = expected + sum(losses.kd(answers[0], one, 2.0) for one in answers[1:]) / teachers_of_each
    assert seen[0] == pytest.approx(expected.item(), rel=0.02)  # bfloat16 or not


# --- what is said of a teacher


class Remembers(nn.Module):
    """Gives the logits of each split in their order."""

    def __init__(self, **logits: Tensor) -> None:
        super().__init__()
        self.known = logits


def test_facts_of_a_teacher_by_hand(fashion: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(fashion, validation=fashion.validation.select(torch.arange(300)))
    truth = few.validation.labels
    logits = 3 * torch.randn(300, 10, generator=torch.Generator().manual_seed(0)) + 4 * torch.eye(10)[truth]
    found = SimpleNamespace(accuracy=0.5, loss=1.0, logits=logits)
    monkeypatch.setattr(teachers.train, "evaluate", lambda model, split: found)
    facts = teachers.facts_of(models.build("resnet8", num_classes=10, in_channels=1, seed=0), few)
    assert facts["confidence"] == pytest.approx(logits.softmax(1).max(1).values.mean().item())
    repaired = logits / facts["fitted_temperature"]
    assert facts["calibrated_error"] == pytest.approx(measure.calibration_error(repaired, truth))
    assert facts["calibrated_error"] < facts["calibration_error"]


def test_a_teacher_is_calibrated_on_validation_images_and_its_stored_answers_too(
    fashion: DataModule, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    few = replace(fashion, **{n: getattr(fashion, n).select(torch.arange(50)) for n in ("validation", "test")})
    monkeypatch.setattr(
        teachers.train, "evaluate", lambda model, split: asked.append(split) or SimpleNamespace(logits=logits)
    )
    model = teachers.load_teacher(teachers.TEACHERS["resnet20-fashion calibrated"], few, tmp_path)
    assert asked == [few.validation]
    assert model.temperature == pytest.approx(measure.fit_temperature(logits, few.validation.labels))
    stored: Any = lambda batch, layers=None: SimpleNamespace(logits=logits, features={})  # noqa: E731
    stored.views = 1
    torch.testing.assert_close(teacher_students.Divided(stored, 4.0)(None).logits, logits / 4)


# --- modalities


def test_each_persons_accuracy_is_that_of_this_person(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, arm = modalities.PAIRS[0], modalities.ARMS[0]
    test = modalities.described(pair.data, 0).test
    only = int(test.groups.unique()[0])
    monkeypatch.setattr(modalities, "best_of_trials", lambda *_: (None, 0.01, 1.0, 0.5))
    monkeypatch.setattr(modalities, "right", lambda *_: test.groups == only)  # right about one of the two persons
    row = modalities.execute(arm, pair, 0)
    assert dict(one.split(":") for one in row["by_person"].split())[str(only)] == "1.000000"


def test_self_training_is_taught_by_the_students_own_modality_and_features_are_the_hidden_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(modalities.train, "fit", lambda *_, **options: given.update(options))
    pair, by_name = modalities.PAIRS[0], {arm.name: arm for arm in modalities.ARMS}
    modalities.fit(by_name["self-training"], pair, 0, 0.01)
    assert given["adapter"].teacher_inputs == pair.student_field
    modalities.fit(by_name["features"], pair, 0, 0.01)
    assert list(given["method"].teacher_layers) == ["hidden"]


# --- mistakes


def test_the_agreement_is_that_with_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = object.__new__(logit_mistakes.Pictures)
    found.validation_labels = torch.tensor([0, 1, 2, 3])
    found.teacher = "teacher"
    found.learn = lambda *_: "student"
    found.loss_of = lambda *_: None
    found.predictions = {"student": torch.tensor([0, 1, 5, 5]), "teacher": torch.tensor([0, 7, 5, 5])}.__getitem__
    row = found.execute(logit_mistakes.Run("right loss", 0.5, 0))
    assert (row["validation_accuracy"], row["agreement"]) == (0.5, 0.75)


def test_the_resnet_answers_in_the_mode_that_its_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mode(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 10), float(self.training))

    found: Any = object.__new__(logit_mistakes.Pictures)
    found.labels, found.full = torch.zeros(40, dtype=torch.long), torch.zeros(40, 1, 2, 2)
    monkeypatch.setattr(logit_mistakes.models, "load", lambda _: Mode())
    assert [float(one[0, 0]) for one in found.resnet_answers.values()] == [0, 1]
    assert list(found.resnet_answers) == ["ResNet-20, eval", "ResNet-20, train"]


def test_a_student_of_mistakes_has_the_order_of_its_seed_and_is_judged_in_eval_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logit_mistakes, "EPOCHS", 1)
    found: Any = object.__new__(logit_mistakes.Pictures)
    found.images = torch.zeros(64, 1, 14, 14)
    orders: list[list[int]] = []

    def loss(logits: Tensor, indices: Tensor) -> Tensor:
        orders[-1].extend(indices.tolist())
        return logits.sum()

    for seed in (1, 2):
        orders.append([])
        assert not found.learn("article-student", loss, seed).training
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == list(range(64))


# --- claims


def test_claims_train_with_their_seed_temperature_and_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(claims_common.train, "fit", lambda *_, **options: given.update(options))
    split = claims_common.images_of(0)
    claims_common.fit(
        Says(0), split, claims_common.Setting(0.01, 4.0), 7, answers=torch.zeros(len(split), 10), alpha=0.1
    )
    assert (given["seed"], given["method"].temperature, given["method"].alpha) == (7, 4, 0.1)


def test_the_teacher_of_the_noise_learns_wrong_labels_and_its_students_what_they_are_named_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, Any]] = []
    monkeypatch.setattr(
        claims_noise, "taught", lambda seed, setting, split, *_, **__: seen.append((seed, split)) or Says(0)
    )
    monkeypatch.setattr(claims_noise, "logits_of", lambda *_: None)
    claims_noise.teacher_of.cache_clear()
    setting = claims_common.Setting(0.1)
    claims_noise.other_pictures(4, setting, {claims_noise.TEACHER: setting})
    claims_noise.teacher_of.cache_clear()
    (seed, of_teacher), (_, of_student) = seen
    assert seed != 4
    assert torch.equal(of_teacher.labels, claims_noise.noisy(4).labels)
    assert not torch.isin(of_student.indices, of_teacher.indices).any()


def test_the_best_class_alone_is_what_the_teacher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(claims_pictures, "taught", lambda seed, setting, split: seen.append(split))
    monkeypatch.setattr(claims_pictures, "logits_of", lambda network, split: torch.eye(10)[(split.labels + 1) % 10])
    claims_pictures.by_class_alone(4, claims_common.Setting(0.1), {})
    assert torch.equal(seen[0].labels, (claims_common.images_of(4).labels + 1) % 10)


# --- the clinic and the kept students


def test_a_patient_is_judged_by_validation_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = ward.pictures
    monkeypatch.setattr(ward, "pictures", lambda split, *rest: asked.append(split) or real(split, *rest))
    ward.accuracy(Says(0))
    assert asked == ["validation"]


def test_a_kept_student_has_its_validation_accuracy(fashion: DataModule) -> None:
    few = torch.arange(60)
    parts = {name: getattr(fashion, name).select(few) for name in ("validation", "test")}
    called = {name: replace(one, labels=torch.full_like(one.labels, n)) for n, (name, one) in enumerate(parts.items())}
    teacher: Any = SimpleNamespace(accuracy=0.5, logits=9 * torch.eye(10)[:6].repeat(10, 1))
    row = kept_students.measured(Says(0), SimpleNamespace(data=replace(fashion, **called)), teacher)  # type: ignore[arg-type]
    assert (row["validation_accuracy"], row["test_accuracy"]) == (1, 0)
