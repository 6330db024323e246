"""Teachers whose weights differ from sample to sample, and specialists: by hand, and against the paper's loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from second_device import run_on_second_device
from test_ensemble import Fixed, Net, TwoHeads, members
from torch import Tensor, nn

from kdlib import losses, train
from kdlib.adapters import Adapter
from kdlib.data import NO_AUGMENTATION, DataModule
from kdlib.distiller import Distiller
from kdlib.ensembles import ConfidenceEnsemble, Specialists, confidence_weights, weighted_mean
from kdlib.methods import Feature, HardLabels, Logit
from kdlib.recipes import Recipe

GROUPS = [(0, 2), (1, 3)]


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


# -------------------- weights


def test_weights_of_three_networks_worked_out_by_hand() -> None:
    probabilities = torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]], [[0.125, 0.875]]])  # of the label: 1/2, 1/4, 1/8
    found = confidence_weights(probabilities.log(), torch.tensor([0]))
    # exp of the cross-entropies: 2, 4, 8; their shares: 1/7, 2/7, 4/7
    torch.testing.assert_close(found[:, 0], torch.tensor([6 / 7, 5 / 7, 3 / 7]) / 2)
    other = confidence_weights(probabilities.log(), torch.tensor([1]))
    assert other[:, 0].argmax() == 2


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 2, 1, 1])])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_weights_sum_to_one_and_none_exceeds_its_share(count: int, labels: Tensor | None) -> None:
    found = confidence_weights(random_logits(count, 4, 3), labels)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(4))
    assert found.min() >= 0
    assert found.max() <= 1 / (count - 1) + 1e-6
    same = confidence_weights(random_logits(1, 4, 3).expand(count, -1, -1), labels)
    torch.testing.assert_close(same, torch.full((count, 4), 1 / count))


def test_by_entropy_the_surer_one_weighs_more_right_or_wrong() -> None:
    sure_and_wrong, unsure_and_right = torch.tensor([[0.0, 8.0]]), torch.tensor([[0.5, 0.0]])
    logits, label = torch.stack([sure_and_wrong, unsure_and_right]), torch.tensor([0])
    assert confidence_weights(logits)[:, 0].argmax() == 0
    assert confidence_weights(logits, label)[:, 0].argmax() == 1


def test_a_class_that_a_network_leaves_out_adds_nothing_to_its_entropy() -> None:
    logits = random_logits(2, 3, 4)
    logits[0, :, 3] = -math.inf
    barely = logits.clone()
    barely[0, :, 3] = -1e4
    torch.testing.assert_close(confidence_weights(logits), confidence_weights(barely))


def test_a_network_that_leaves_out_the_label_has_no_weight() -> None:
    logits = random_logits(3, 2, 4)
    logits[0, :, 3] = -math.inf
    labels = torch.tensor([3, 1])
    found = confidence_weights(logits, labels)
    torch.testing.assert_close(found[:, 0], torch.tensor([0.0, 0.5, 0.5]))
    torch.testing.assert_close(found[:, 1], confidence_weights(logits[:, 1:], labels[1:])[:, 0])
    assert weighted_mean(logits, found, 4.0).isfinite().all()
    logits[:, :, 3] = -math.inf
    torch.testing.assert_close(confidence_weights(logits, labels)[:, 0], torch.full((3,), 1 / 3))


def test_networks_that_are_as_wrong_as_can_be_leave_finite_answers() -> None:
    logits = torch.tensor([[[1e4, 0.0]], [[0.0, 1e4]], [[0.0, 1e4]]])
    for labels in (None, torch.tensor([0]), torch.tensor([1])):
        weights = confidence_weights(logits, labels)
        found = weighted_mean(logits, weights, 4.0)
        assert weights.isfinite().all()
        assert found.isfinite().all()
        torch.testing.assert_close((found / 4).softmax(dim=1).sum(), torch.tensor(1.0))


# -------------------- as a teacher


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_its_loss_has_the_gradient_of_ca_mkd(batch: tuple[Tensor, Tensor], temperature: float) -> None:
    """sum_k w_k KL(teacher k || student), each softened at T, as the paper writes it; the sums differ by a constant."""
    networks = [*members(), Net(5, width=4)]
    student = Net(3).eval()
    teacher = ConfidenceEnsemble(networks, temperature=temperature)
    Distiller(student, teacher, Logit(temperature, alpha=0))(batch).total.backward()
    found = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    with torch.no_grad():
        logits = torch.stack([one.eval()(batch[0]) for one in networks])
        costs = torch.stack([F.cross_entropy(one, batch[1], reduction="none") for one in logits])
        weights = (1 - costs.softmax(dim=0)) / 2
    own = (student(batch[0]) / temperature).log_softmax(dim=1)
    each = [F.kl_div(own, (one / temperature).softmax(dim=1), reduction="none").sum(dim=1) for one in logits]
    (temperature**2 * sum(w * one for w, one in zip(weights, each, strict=True)).mean()).backward()
    for a, b in zip(found, (p.grad for p in student.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_weights_follow_the_labels_of_the_batch(batch: tuple[Tensor, Tensor]) -> None:
    teacher, (images, labels) = ConfidenceEnsemble(members()), batch
    one, other = teacher.weights_of((images, labels)), teacher.weights_of((images, (labels + 1) % 3))
    assert one.shape == (2, 8)
    assert (one - other).abs().max() > 0.05
    named = ConfidenceEnsemble(members(), adapter=Adapter(inputs="x", labels="y"))
    torch.testing.assert_close(named.weights_of({"x": images, "y": labels, "z": 0}), one)
    by_entropy = ConfidenceEnsemble(members(), by="entropy")
    torch.testing.assert_close(by_entropy.weights_of(images), by_entropy.weights_of((images, labels)))


def test_members_stay_unchanged_and_answer_in_eval_mode(batch: tuple[Tensor, Tensor]) -> None:
    networks = members()
    before = copy.deepcopy([one.state_dict() for one in networks])
    method = Logit() + Feature({"stem": "members.0.stem"})
    distiller = Distiller(Net(3), ConfidenceEnsemble(networks), method, example=batch)
    optimizer = torch.optim.SGD(distiller.parameters(), 0.1)
    for _ in range(2):
        for one in networks:
            one.train()
        distiller(batch).total.backward()
        optimizer.step()
    for one, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
        assert all(p.grad is None for p in one.parameters())


def test_specialists_teach_named_classes(blobs: DataModule) -> None:
    """Their own classes are numbers: which of all the classes each of them knows."""
    parts = [nn.Sequential(nn.Flatten(), nn.Linear(64, count)) for count in (2, 1)]
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    teacher = Specialists(parts, [(0, 2), (1,)])
    options = {"epochs": 1, "device": "cpu", "precision": "fp32", "progress": False}
    assert train.fit(student, blobs, teacher=teacher, method=Logit(), **options).test_accuracy is not None
    train.fit(teacher, blobs, method=HardLabels(), **options)
    assert teacher.classes == ((0, 2), (1,))


def test_fit_passes_the_labels(blobs: DataModule) -> None:
    options: dict[str, Any] = {"epochs": 1, "recipe": Recipe(batch_size=32), "augmentation": NO_AUGMENTATION}
    options |= {"device": "cpu", "precision": "fp32", "test": False, "progress": False}

    def soft(by: str) -> float:
        teacher = ConfidenceEnsemble(members(), temperature=3, by=by)
        return train.fit(Net(3), blobs, teacher=teacher, method=Logit(3, 0.2), **options).rows[-1]["soft"]

    first = soft("labels")
    assert first == soft("labels")
    assert math.isfinite(first)
    assert first != soft("entropy")


def test_what_its_answers_depend_on_is_in_its_fingerprint() -> None:
    networks = members()
    made = [
        ConfidenceEnsemble(networks),
        ConfidenceEnsemble(networks, by="entropy"),
        ConfidenceEnsemble(networks, temperature=4),
        ConfidenceEnsemble(networks[::-1]),
    ]
    assert len({one.fingerprint for one in made}) == len(made)
    assert made[0].fingerprint == ConfidenceEnsemble(networks).fingerprint


def test_the_same_networks_with_other_logits_have_another_fingerprint() -> None:
    heads = [TwoHeads(), TwoHeads()]
    teacher, again, other = (
        ConfidenceEnsemble(heads, by="entropy", read_logits=itemgetter(name)) for name in ("one", "one", "other")
    )
    assert teacher.fingerprint == again.fingerprint != other.fingerprint


def test_a_member_that_is_the_student_is_refused() -> None:
    student = Net(1)
    with pytest.raises(ValueError, match="share weights"):
        Distiller(student, ConfidenceEnsemble([Net(2), student]), Logit())


# -------------------- on a GPU


def test_labels_are_looked_at_on_the_cpu_only() -> None:
    logits, labels = random_logits(2, 4, 3), torch.tensor([0, 2, 1, 3])  # there are no more than three classes
    with pytest.raises(ValueError, match="from 0 to 2"):
        confidence_weights(logits, labels)
    assert confidence_weights(logits.to("meta"), labels.to("meta")).shape == (2, 4)  # which has no values to look at


@pytest.mark.slow
def test_specialists_copy_no_numbers_of_classes_to_the_device_at_each_step() -> None:
    found = run_on_second_device("""
        from torch import nn
        from kdlib.ensembles import Specialists

        images = torch.ones(6, 3)
        for gate in (None, nn.Linear(3, 4)):
            together = Specialists([nn.Linear(3, 2), nn.Linear(3, 2)], [(0, 2), (3, 1)], gate=gate)
            expected = together(images)
            together.to(DEVICE)
            there = images.to(DEVICE)
            waits.clear()
            answer = together(there)
            print(sum(waits.values()), torch.equal(answer.cpu(), expected))
    """)
    assert found.splitlines() == ["0 True", "0 True"]


# -------------------- specialists


def test_specialists_have_the_state_of_their_members_and_the_gate() -> None:
    parts, gate = [nn.Linear(2, 2), nn.Linear(2, 2)], nn.Linear(2, 4)
    names = {name.rpartition(".")[0] for name in Specialists(parts, GROUPS, gate=gate).state_dict()}
    assert names == {"members.0", "members.1", "gate"}


def test_joined_logits_stand_where_their_classes_are() -> None:
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    found = Specialists([Fixed(first), Fixed(second)], GROUPS)(torch.zeros(1))
    assert found.tolist() == [[1.0, 3.0, 2.0, 4.0]]
    turned = Specialists([Fixed(first), Fixed(second)], [(2, 0), (3, 1)])(torch.zeros(1))
    assert turned.tolist() == [[2.0, 4.0, 1.0, 3.0]]


def test_a_gate_says_which_group_and_the_specialist_which_class() -> None:
    gate = torch.tensor([[0.3, 0.1, 0.2, 0.1, 0.3]]).log()  # classes 0 and 2 together: 1/2; 1 and 3: 1/5; 4 alone: 0.3
    first, second = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    found = Specialists([Fixed(first), Fixed(second)], GROUPS, gate=Fixed(gate), num_classes=5)(torch.zeros(1)).exp()
    torch.testing.assert_close(found, torch.tensor([[0.45, 0.1, 0.05, 0.1, 0.3]]))


def test_a_gate_takes_away_what_joined_logits_leave_to_chance() -> None:
    """A specialist that is loud about a sample of another group wins without a gate, and not with one."""
    loud, right = torch.tensor([[40.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    gate = torch.tensor([[0.0, 6.0, 0.0, 6.0]])  # the sample is of classes 1 or 3
    networks = [Fixed(loud), Fixed(right)]
    assert Specialists(networks, GROUPS)(torch.zeros(1)).argmax() == 0
    assert Specialists(networks, GROUPS, gate=Fixed(gate))(torch.zeros(1)).argmax() == 1


def test_a_gate_that_knows_nothing_and_specialists_that_are_the_gate() -> None:
    gate = random_logits(6, 4)
    parts = [Fixed(gate[:, list(group)]) for group in GROUPS]
    found = Specialists(parts, GROUPS, gate=Fixed(gate))(torch.zeros(6))
    torch.testing.assert_close(found, gate.log_softmax(dim=1))
    torch.testing.assert_close(Specialists(parts, GROUPS)(torch.zeros(6)), gate)


def test_specialists_teach_a_student_of_all_classes(batch: tuple[Tensor, Tensor]) -> None:
    networks, gate, student = [Net(1, classes=2), Net(2, classes=2)], Net(4, classes=4), Net(3, classes=4).eval()
    teacher = Specialists(networks, GROUPS, gate=gate)
    found = Distiller(student, teacher, Logit(2.0, alpha=0))(batch)
    with torch.no_grad():
        answer = teacher.eval()(batch[0])
    torch.testing.assert_close(found.total, losses.kd(student(batch[0]), answer, 2.0))
    found.total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    Distiller(student, teacher, HardLabels() + Feature({"stem": "members.1.stem"}), example=batch)


# -------------------- what is refused


def two() -> list[nn.Module]:
    return [nn.Linear(2, 2), nn.Linear(2, 2)]


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "one network": (lambda: ConfidenceEnsemble(two()[:1]), ValueError, r"at least two networks: ConfidenceEnsemble\("),
    "a network": (lambda: ConfidenceEnsemble(nn.Sequential(*two())), ValueError, "at least two networks"),
    "temperature zero": (lambda: ConfidenceEnsemble(two(), temperature=0), ValueError, "temperature is a positive"),
    "temperature in words": (
        lambda: ConfidenceEnsemble(two(), temperature="hot"),
        TypeError,
        "temperature is a number",
    ),  # type: ignore[arg-type]
    "unknown basis": (lambda: ConfidenceEnsemble(two(), by="label"), ValueError, "no basis of weights.*'labels'"),
    "no labels": (
        lambda: ConfidenceEnsemble(two())(torch.zeros(3, 2)),
        ValueError,
        "this batch has none.*by='entropy'",
    ),
    "labels of another kind": (
        lambda: ConfidenceEnsemble(two())((torch.zeros(3, 2), torch.zeros(3, 2))),
        ValueError,
        "one for each sample",
    ),
    "labels beyond": (
        lambda: ConfidenceEnsemble(two())((torch.zeros(2, 2), torch.tensor([0, 2]))),
        ValueError,
        "from 0 to 1; these run from 0 to 2",
    ),
    "other classes": (
        lambda: ConfidenceEnsemble([nn.Linear(2, 2), nn.Linear(2, 3)], by="entropy")(torch.zeros(1, 2)),
        ValueError,
        r"one shape.*\(1, 2\), \(1, 3\)",
    ),
    "maps": (
        lambda: ConfidenceEnsemble([Fixed(torch.zeros(1, 2, 3, 3))] * 2, by="entropy")(torch.zeros(1)),
        ValueError,
        "batch x classes",
    ),
    "one answer": (lambda: confidence_weights(torch.zeros(1, 4, 3)), ValueError, "at least two networks"),
    "no batch": (lambda: confidence_weights(torch.zeros(4, 3)), ValueError, "K x B x C"),
    "no specialist": (lambda: Specialists([], []), ValueError, "at least one network"),
    "a group too few": (lambda: Specialists(two(), [(0, 1)]), ValueError, "for each of 2 members"),
    "an empty group": (lambda: Specialists(two(), [(0, 1), ()]), ValueError, "at least one"),
    "a class twice": (lambda: Specialists(two(), [(0, 1), (1, 2)]), ValueError, "1 is named more than once"),
    "no groups": (lambda: Specialists(two(), [0, 1]), TypeError, "classes are those of each member"),  # type: ignore[list-item]
    "names": (lambda: Specialists(two(), [("a",), ("b",)]), ValueError, "classes is a whole number"),  # type: ignore[list-item]
    "nobody knows it": (lambda: Specialists(two(), [(0, 1), (3, 4)]), ValueError, "knows the classes 2.*a gate"),
    "too few classes": (lambda: Specialists(two(), GROUPS, num_classes=3), ValueError, "num_classes.*at least 4"),
    "other logits": (
        lambda: Specialists(two(), [(0, 1, 2), (3, 4)])(torch.zeros(1, 2)),
        ValueError,
        r"Member 0 gives \(1, 2\); it was said to know 3",
    ),
    "a gate of other classes": (
        lambda: Specialists(two(), GROUPS, gate=nn.Linear(2, 3))(torch.zeros(1, 2)),
        ValueError,
        r"gate gives \(1, 3\); expected logits of 4 classes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_teach_is_refused_in_a_sentence(name: str) -> None:
    call, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("task", ["multilabel", "regression"])
@pytest.mark.parametrize("kind", ["confidence", "gate"])
def test_softmaxes_are_for_one_class_a_sample(task: str, kind: str) -> None:
    method = Logit() if task == "multilabel" else Logit(loss=F.mse_loss, hard=F.mse_loss)
    members = [nn.Linear(4, 3), nn.Linear(4, 3)]
    gated = Specialists([nn.Linear(4, 2), nn.Linear(4, 1)], [(0, 2), (1,)], gate=nn.Linear(4, 3))
    teacher = gated if kind == "gate" else ConfidenceEnsemble(members, by="entropy")
    with pytest.raises(ValueError, match="softmax.*geometric"):
        Distiller(nn.Linear(4, 3), teacher, method, task=task)


def test_weights_for_each_sample_come_from_the_inputs_and_labels_that_the_distiller_reads(
    batch: tuple[Tensor, Tensor],
) -> None:
    networks, (images, labels) = members(), batch
    student = Net(3).eval()
    given = {"small": images, "large": images.flip(3), "y": labels}
    adapter = Adapter(inputs="small", teacher_inputs="large", labels="y")
    teacher = ConfidenceEnsemble(networks)
    found = Distiller(student, teacher, Logit(alpha=0), adapter=adapter, example=given).eval()(given).total
    expected = Distiller(
        student, teacher, Logit(alpha=0), adapter=Adapter(inputs=0, teacher_inputs=2, labels=1)
    ).eval()((images, labels, images.flip(3)))
    by_hand = ConfidenceEnsemble(networks)((images.flip(3), labels)).logits
    torch.testing.assert_close(found, expected.total)
    torch.testing.assert_close(found.detach(), losses.kd(student(images).detach(), by_hand, 4.0))
    own = ConfidenceEnsemble(networks, adapter=Adapter(inputs="small", labels="y"))  # its own wins
    found = Distiller(student, own, Logit(alpha=0), adapter=adapter).eval()(given).total
    by_hand = ConfidenceEnsemble(networks)((images, labels)).logits
    torch.testing.assert_close(found.detach(), losses.kd(student(images).detach(), by_hand, 4.0))


def test_an_adapter_that_says_where_logits_are_is_refused() -> None:
    with pytest.raises(ValueError, match="read_logits"):
        ConfidenceEnsemble(members(), adapter=Adapter(teacher_logits=lambda output: output.flip(1)))
