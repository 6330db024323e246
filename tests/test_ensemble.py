"""Several networks as one teacher: the mean that is meant, by hand, and members that stay as they were."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import train
from kdlib.data import NO_AUGMENTATION, DataModule, normalized_images
from kdlib.distiller import Distiller
from kdlib.ensembles import Specialists
from kdlib.evaluation import evaluate
from kdlib.methods import Feature, HardLabels, Logit
from kdlib.recipes import Recipe
from kdlib.tasks import TokenClassification
from kdlib.teachers import CachedTeacher, Ensemble

WEIGHTS, TEMPERATURES = [2.0, 1.0, 1.0], [1.0, 2.0, 0.5]
SHAPES = {"B x C": (4, 3), "B x L x C": (4, 5, 3), "B x C x H x W": (4, 3, 2, 5), "B x C x D x H x W": (4, 3, 2, 2, 5)}


class Fixed(nn.Module):
    """Gives what it was made with."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


class Net(nn.Module):
    """With batch norm and dropout, which show in which mode it ran."""

    def __init__(self, seed: int, width: int = 5, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.stem(x).mean(dim=(2, 3))))


class TwoHeads(nn.Module):
    """Gives two sorts of logits, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Net(1), Net(2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"one": self.one(x), "other": self.other(x)}


def logits_of(shape: tuple[int, ...], count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [4 * torch.randn(shape, generator=generator) for _ in range(count)]


def members() -> list[Net]:
    return [Net(1), Net(2, width=7)]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


# -------------------- the formula


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("temperatures", [None, TEMPERATURES])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_arithmetic_mean_is_that_of_the_probabilities(
    shape: tuple[int, ...], weights: list[float] | None, temperatures: list[float] | None
) -> None:
    logits, classes = logits_of(shape), 1 if len(shape) > 3 else len(shape) - 1
    found = Ensemble([Fixed(one) for one in logits], weights, temperatures)(torch.zeros(4))
    shares = [1 / 3] * 3 if weights is None else [0.5, 0.25, 0.25]
    expected = sum(
        share * (one / t).softmax(dim=classes)
        for share, one, t in zip(shares, logits, temperatures or [1.0] * 3, strict=True)
    )
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(found.softmax(dim=classes), expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_geometric_mean_is_that_of_the_logits(shape: tuple[int, ...]) -> None:
    first, second, third = logits_of(shape)
    found = Ensemble([Fixed(first), Fixed(second), Fixed(third)], WEIGHTS, TEMPERATURES, mean="geometric")
    torch.testing.assert_close(found(torch.zeros(4)), 0.5 * first + 0.25 * second / 2 + 0.25 * third / 0.5)


def test_two_members_worked_out_by_hand() -> None:
    rows = [torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[math.log(9.0), 0.0]])]  # 1/4, 3/4 and 9/10, 1/10
    arithmetic = Ensemble([Fixed(one) for one in rows])(torch.zeros(1))
    torch.testing.assert_close(arithmetic.exp(), torch.tensor([[0.575, 0.425]]))
    geometric = Ensemble([Fixed(one) for one in rows], mean="geometric")(torch.zeros(1))
    shares = torch.tensor([[math.sqrt(1 / 4 * 9 / 10), math.sqrt(3 / 4 * 1 / 10)]])
    torch.testing.assert_close(geometric.softmax(dim=1), shares / shares.sum())


def test_one_member_teaches_what_it_says_itself_and_a_weight_of_zero_leaves_one_out() -> None:
    first, second = logits_of((4, 3), 2)
    torch.testing.assert_close(Ensemble([Fixed(first)])(torch.zeros(4)), first.log_softmax(dim=1))
    for mean in ("arithmetic", "geometric"):
        found = Ensemble([Fixed(first), Fixed(second)], [0, 3], mean=mean)(torch.zeros(4))
        torch.testing.assert_close(found.softmax(dim=1), second.softmax(dim=1))


def test_members_that_are_sure_and_disagree_give_finite_logits() -> None:
    sure = [Fixed(torch.tensor([[300.0, 0.0]])), Fixed(torch.tensor([[0.0, 300.0]]))]
    torch.testing.assert_close(Ensemble(sure)(torch.zeros(1)).exp(), torch.tensor([[0.5, 0.5]]))


def test_members_in_half_precision_are_combined_in_float32() -> None:
    halves = [one.bfloat16() for one in logits_of((4, 3), 2)]
    found = Ensemble([Fixed(one) for one in halves])(torch.zeros(4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp(), sum(one.float().softmax(dim=1) for one in halves) / 2)


def test_where_the_logits_are_can_be_said() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"hidden": x, "answer": x[:, :3]}

    x = torch.randn(4, 6)
    ensemble = Ensemble([Pair(), Pair()], read_logits=lambda output: output["answer"])
    torch.testing.assert_close(ensemble(x).exp(), x[:, :3].softmax(dim=1))


def test_members_may_come_from_a_generator() -> None:
    logits = logits_of((4, 3), 2)
    found = Ensemble(Fixed(one) for one in logits)(torch.zeros(4))
    torch.testing.assert_close(found.exp(), sum(one.softmax(dim=1) for one in logits) / 2)


# -------------------- votes


def test_votes_are_counted_by_weight_and_stay_finite() -> None:
    answers = [Fixed(torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.1, 0.0]])) for _ in range(2)]
    answers += [Fixed(torch.tensor([[0.0, 9.0, 0.0], [0.0, 500.0, 0.0]]))]
    found = Ensemble(answers, mean="vote")(torch.zeros(2))
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(2))
    torch.testing.assert_close(found.exp(), torch.tensor([[2 / 3, 1 / 3, 0], [0, 1, 0]]), atol=1e-5, rtol=0)
    assert found.isfinite().all()
    weighted = Ensemble(answers, [1, 1, 4], mean="vote")(torch.zeros(2))
    torch.testing.assert_close(weighted[0].exp(), torch.tensor([1 / 3, 2 / 3, 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_vote_has_the_shape_of_the_logits(shape: tuple[int, ...]) -> None:
    logits, classes = logits_of(shape), 1 if len(shape) > 3 else len(shape) - 1
    found = Ensemble([Fixed(one) for one in logits], mean="vote")(torch.zeros(4)).softmax(dim=classes)
    expected = sum(F.one_hot(one.argmax(dim=classes), shape[classes]).movedim(-1, classes).float() for one in logits)
    torch.testing.assert_close(found, expected / 3, atol=1e-5, rtol=0)


def test_what_votes_forget_is_how_sure_they_were() -> None:
    """One that is sure is outvoted by two that hardly prefer another class; the mean of probabilities listens."""
    rows = [torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 0.1]]), torch.tensor([[0.0, 0.1]])]
    assert Ensemble([Fixed(one) for one in rows], mean="vote")(torch.zeros(1)).argmax() == 1
    assert Ensemble([Fixed(one) for one in rows])(torch.zeros(1)).argmax() == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_a_student_of_a_vote_gets_a_finite_loss_and_gradient(batch: tuple[Tensor, Tensor], temperature: float) -> None:
    student = Net(3)
    found = Distiller(student, Ensemble(members(), mean="vote"), Logit(temperature, alpha=0))(batch)
    found.total.backward()
    assert found.total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


# -------------------- as a teacher


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_a_distiller_softens_the_mean_once_more(batch: tuple[Tensor, Tensor], mean: str) -> None:
    first, second = members()
    student, temperature = Net(3).eval(), 4.0
    found = Distiller(student, Ensemble([first, second], mean=mean), Logit(temperature, alpha=0.0))(batch)
    with torch.no_grad():
        answers = [one.eval()(batch[0]) for one in (first, second)]
    probabilities = sum(one.softmax(dim=1) for one in answers) / 2
    target = probabilities.log() if mean == "arithmetic" else sum(answers) / 2
    expected = temperature**2 * F.kl_div(
        (student(batch[0]) / temperature).log_softmax(1), (target / temperature).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(found.terms["soft"], expected)


def test_members_stay_unchanged_to_the_bit_and_answer_in_eval_mode(batch: tuple[Tensor, Tensor]) -> None:
    networks = members()
    before = copy.deepcopy([one.state_dict() for one in networks])
    distiller = Distiller(Net(3), Ensemble(networks), Logit() + Feature({"stem": "members.0.stem"}), example=batch)
    optimizer = torch.optim.SGD(distiller.parameters(), 0.1)
    for _ in range(3):
        for one in networks:
            one.train()  # whoever holds a member may do so
        distiller.train()
        distiller(batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert not any(module.training for one in networks for module in one.modules())
    for one, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
        assert all(p.grad is None for p in one.parameters())
    assert not any(name.startswith("teacher") or "members" in name for name in distiller.state_dict())


def test_a_feature_is_that_of_the_member_that_is_named(batch: tuple[Tensor, Tensor]) -> None:
    networks, student = members(), Net(3, width=7).eval()
    method = HardLabels() + Feature({"stem": "members.1.stem"})
    distiller = Distiller(student, Ensemble(networks), method, example=batch)
    with torch.no_grad():
        target = networks[1].eval().stem(batch[0])
    project = method.parts[1].projectors[0].conv
    found = distiller(batch).terms["hint stem"]
    torch.testing.assert_close(found, F.mse_loss(project(student.stem(batch[0])), target))


@pytest.mark.parametrize("layer", ["stem", "members.2.stem", "members.0.stam"])
def test_a_layer_that_no_member_has_is_refused_with_those_there_are(batch: tuple[Tensor, Tensor], layer: str) -> None:
    with pytest.raises(ValueError, match=rf"no layer in Ensemble named '{layer}'.*members\.[01]\.stem"):
        Distiller(Net(3), Ensemble(members()), Feature({"stem": layer}), example=batch)


def fit(blobs: DataModule, teacher: Any, **options: Any) -> train.Result:
    settings: dict[str, Any] = {"epochs": 2, "recipe": Recipe(batch_size=32), "augmentation": NO_AUGMENTATION}
    settings |= {"device": "cpu", "precision": "fp32", "test": False, "progress": False}
    return train.fit(Net(3), blobs, teacher=teacher, method=Logit(3, 0.2), **{**settings, **options})


def test_fit_with_the_ensemble_its_cache_and_its_answers_gives_the_same_student(blobs: DataModule) -> None:
    ensemble = Ensemble(members(), WEIGHTS[:2], TEMPERATURES[:2])
    ensemble.train()
    live = fit(blobs, ensemble)
    assert all(module.training for module in ensemble.modules())  # given back as it was
    cache = CachedTeacher.build(ensemble, blobs.train, device="cpu", precision="fp32", progress=False)
    with torch.no_grad():
        given = ensemble.eval()(normalized_images(blobs.train))
    for stored in (cache, CachedTeacher.from_logits(given, blobs.train.indices)):
        rows = fit(blobs, stored).rows
        assert [row["soft"] for row in rows] == pytest.approx([row["soft"] for row in live.rows], abs=1e-5)


def test_a_cache_tells_weights_temperatures_and_means_apart(blobs: DataModule) -> None:
    networks = members()
    made = [
        Ensemble(networks),
        Ensemble(networks, [1, 2]),
        Ensemble(networks, temperatures=[1, 2]),
        Ensemble(networks, mean="geometric"),
        Ensemble(networks, mean="vote"),
    ]
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "progress": False}
    caches = [CachedTeacher.build(one, blobs.validation, **options).fingerprint for one in made]
    assert len(set(caches)) == len(made)


def test_a_cache_of_the_same_networks_with_other_logits_is_refused(blobs: DataModule, tmp_path: Path) -> None:
    heads = TwoHeads()
    of_one, of_other = ({"read_logits": itemgetter(name)} for name in ("one", "other"))
    made: list[tuple[nn.Module, nn.Module]] = [
        (Ensemble([heads], **of_one), Ensemble([heads], **of_other)),
        (Specialists([heads], [range(3)], **of_one), Specialists([heads], [range(3)], **of_other)),
    ]
    for number, (teacher, other) in enumerate(made):
        options: dict[str, Any] = {"directory": tmp_path / str(number), "device": "cpu", "progress": False}
        cache = CachedTeacher.build(teacher, blobs.validation, **options)
        again = CachedTeacher.build(copy.deepcopy(teacher), blobs.validation, **options)
        assert again.fingerprint == cache.fingerprint
        with pytest.raises(ValueError, match="built with another teacher"):
            CachedTeacher.build(other, blobs.validation, **options)


# -------------------- tasks whose outputs are no choice among classes


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_probabilities_of_one_choice_are_refused_where_there_is_none(task: str) -> None:
    x, targets = torch.randn(4, 6), torch.rand(4, 3)
    networks = [nn.Linear(6, 3) for _ in range(2)]
    method = Logit(alpha=0.5) if task == "multilabel" else Logit(alpha=0.5, loss=F.mse_loss, hard=F.mse_loss)
    with pytest.raises(ValueError, match="softmax.*mean='geometric'"):
        Distiller(nn.Linear(6, 3), Ensemble(networks), method, task=task)
    with pytest.raises(ValueError, match="votes for one class.*mean='geometric'"):
        Distiller(nn.Linear(6, 3), Ensemble(networks, mean="vote"), method, task=task)
    ensemble = Ensemble(networks, [3, 1], mean="geometric")
    found = Distiller(nn.Linear(6, 3), ensemble, method, task=task)((x, targets))
    assert found.terms["soft"] > 0
    Distiller(nn.Linear(6, 3), Ensemble(networks), HardLabels(), task="multilabel")  # nobody asks it


@pytest.mark.parametrize("mean", ["arithmetic", "vote"])
@pytest.mark.parametrize(("task", "classes"), [("segmentation", 1), ("token-classification", 2)])
def test_the_classes_of_three_dimensions_are_those_of_the_task(mean: str, task: str, classes: int) -> None:
    logits = logits_of((4, 3, 5), 1)[0]
    x, labels = torch.zeros(4), torch.zeros([n for d, n in enumerate(logits.shape) if d != classes]).long()
    alone = logits if mean == "arithmetic" else 1e6 * F.one_hot(logits.argmax(classes)).movedim(-1, classes).float()
    method, student = Logit(temperature=1, alpha=0), Fixed(torch.zeros_like(logits))
    ensemble = Ensemble([Fixed(logits), Fixed(logits)], mean=mean)
    found, wanted = (
        Distiller(student, teacher, method, task=task)((x, labels)).total for teacher in (ensemble, Fixed(alone))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_ensemble_is_evaluated_on_the_classes_of_the_task() -> None:
    member = nn.Conv1d(3, 4, 1)
    batches = [(torch.randn(6, 3, 5), torch.arange(30).view(6, 5) % 4)]
    options: dict[str, Any] = {"task": "segmentation", "device": "cpu", "precision": "fp32"}
    found, wanted = (train.evaluate(one, batches, **options) for one in (Ensemble([member, member]), member))
    assert (found.accuracy, found.loss) == pytest.approx((wanted.accuracy, wanted.loss))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mean", ["arithmetic", "vote"])
def test_an_ensemble_that_teaches_is_evaluated_in_another_task_and_teaches_on_as_before(mean: str, fails: bool) -> None:
    ensemble = Ensemble([nn.Conv1d(3, 4, 1), nn.Conv1d(3, 4, 1)], mean=mean)
    x, labels = torch.randn(6, 3, 5), torch.arange(30).view(6, 5) % 4
    distiller = Distiller(nn.Conv1d(3, 4, 1), ensemble, Logit(), task="segmentation")
    before = distiller((x, labels)).total
    tokens = [(x, torch.zeros(6, 7 if fails else 4).long())]  # the second dimension are positions here
    with pytest.raises(ValueError, match="labels") if fails else nullcontext():
        train.evaluate(ensemble, tokens, task="token-classification", device="cpu", precision="fp32")
    assert torch.equal(distiller((x, labels)).total, before)


@pytest.mark.parametrize("mean", ["arithmetic", "vote"])
def test_one_ensemble_does_not_teach_where_its_classes_lie_elsewhere(mean: str) -> None:
    networks = [nn.Conv1d(3, 4, 1), nn.Conv1d(3, 4, 1)]
    ensemble, student = Ensemble(networks, mean=mean), nn.Conv1d(3, 4, 1)
    distiller = Distiller(student, ensemble, Logit(), task="segmentation")
    x, labels = torch.randn(6, 3, 5), torch.arange(30).view(6, 5) % 4
    before = distiller((x, labels)).total
    with pytest.raises(ValueError, match="second Ensemble of the same members"):
        Distiller(student, ensemble, Logit(), task="token-classification")
    assert torch.equal(distiller((x, labels)).total, before)
    Distiller(student, ensemble, Logit(), task="segmentation")
    Distiller(student, Ensemble(networks, mean=mean), Logit(), task="token-classification")


# -------------------- what is no ensemble


def one() -> list[nn.Module]:
    return [nn.Linear(2, 2), nn.Linear(2, 2)]


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no members": (lambda: Ensemble([]), ValueError, r"at least one network"),
    "nothing": (lambda: Ensemble(None), ValueError, r"at least one network: Ensemble\("),  # type: ignore[arg-type]
    "a network": (lambda: Ensemble(nn.Sequential(*one())), ValueError, r"at least one network: Ensemble\("),  # type: ignore[arg-type]
    "a class": (lambda: Ensemble([nn.Linear]), ValueError, r"at least one network"),  # type: ignore[list-item]
    "names": (lambda: Ensemble(["resnet18"]), ValueError, r"at least one network"),  # type: ignore[list-item]
    "too few weights": (lambda: Ensemble(one(), [1.0]), ValueError, "weights are 2 numbers.*got 1"),
    "too many temperatures": (lambda: Ensemble(one(), None, [1, 1, 1]), ValueError, "temperatures are 2.*got 3"),
    "negative weight": (lambda: Ensemble(one(), [1, -1]), ValueError, "at least 0"),
    "no weight at all": (lambda: Ensemble(one(), [0, 0]), ValueError, "not all of them 0"),
    "weight not a number": (lambda: Ensemble(one(), [1, math.nan]), ValueError, "at least 0"),
    "weights in words": (lambda: Ensemble(one(), ["a", "b"]), TypeError, "weights are 2 numbers.*'a'"),  # type: ignore[list-item]
    "one weight": (lambda: Ensemble(one(), 0.5), TypeError, "weights are 2 numbers.*0.5"),  # type: ignore[arg-type]
    "temperature zero": (lambda: Ensemble(one(), None, [1, 0]), ValueError, "positive"),
    "temperature infinite": (lambda: Ensemble(one(), None, [1, math.inf]), ValueError, "positive"),
    "unknown mean": (lambda: Ensemble(one(), mean="harmonic"), ValueError, "no mean named 'harmonic'.*arithmetic"),
    "other classes": (
        lambda: Ensemble([nn.Linear(2, 2), nn.Linear(2, 3)])(torch.zeros(1, 2)),
        ValueError,
        r"one shape.*\(1, 2\), \(1, 3\)",
    ),
    "no logits": (lambda: Ensemble([Fixed({"a": 1})])(torch.zeros(1)), ValueError, "one shape.*NoneType.*read_logits"),  # type: ignore[arg-type]
    "one number a sample": (lambda: Ensemble([Fixed(torch.zeros(4))])(torch.zeros(4)), ValueError, "batch x classes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_ensemble_is_refused_in_a_sentence(name: str) -> None:
    call, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        call()


def test_a_member_that_is_the_student_is_refused() -> None:
    student = Net(1)
    with pytest.raises(ValueError, match="share weights"):
        Distiller(student, Ensemble([Net(2), student]), Logit())


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("mean", ["arithmetic", "geometric", "vote"])
def test_a_member_that_is_damaged_is_not_outvoted(batch: tuple[Tensor, Tensor], mean: str, broken: float) -> None:
    bad = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    bad(batch[0])
    with torch.no_grad():
        bad[1].bias[1] = broken
    good = copy.deepcopy(bad)
    with torch.no_grad():
        good[1].bias.zero_()
    ensemble = Ensemble([good, bad, copy.deepcopy(good)], mean=mean)
    with pytest.raises(FloatingPointError, match="teacher's logits are not finite"):
        Distiller(copy.deepcopy(good), ensemble, Logit(), example=batch)
    with pytest.raises(FloatingPointError, match="not finite for 8 of 8"):
        evaluate(ensemble, [batch], device="cpu", precision="fp32")


def test_classes_that_a_task_has_last_are_last_in_any_number_of_dimensions() -> None:
    """As of tokens of several sentences a sample; without a task four dimensions are a map, classes second."""
    members = [Fixed(torch.randn(2, 3, 4, 5)) for _ in range(2)]
    ensemble = Ensemble(members)
    ensemble.check_task(TokenClassification())
    expected = torch.stack([one(None).softmax(-1) for one in members]).mean(0)
    torch.testing.assert_close(ensemble(None).exp(), expected)
    torch.testing.assert_close(Ensemble(members)(None).exp().sum(1), torch.ones(2, 4, 5))
