"""The distiller: the formula by hand, a teacher that never changes, and nothing left behind in the networks."""

from __future__ import annotations

import copy
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import answers, data, losses, models
from kdlib.adapters import Adapter
from kdlib.distiller import Distiller
from kdlib.ensembles import ConfidenceEnsemble, Specialists
from kdlib.hooks import ModelOutput
from kdlib.methods import Feature, HardLabels, Logit, Method, Relation
from kdlib.teachers import CachedTeacher, Ensemble, FrozenTeacher, Teacher

Pair = tuple[Tensor, Tensor]


class Net(nn.Module):
    """With batch norm and dropout, which show in which mode it ran."""

    def __init__(self, width: int, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.stem(x).mean(dim=(2, 3))))


@pytest.fixture
def student() -> Net:
    return Net(4)


@pytest.fixture
def teacher() -> Net:
    return Net(6, seed=1)


@pytest.fixture
def batch() -> Pair:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 1, 6, 6, generator=generator), torch.arange(8) % 3


def both() -> Method:
    return Logit(temperature=3, alpha=0.3) + 10 * Feature({"stem": "stem"})


def test_the_losses_are_the_formula_by_hand(student: Net, teacher: Net, batch: Pair) -> None:
    distiller = Distiller(student.eval(), teacher, both(), example=batch)
    found = distiller(batch)
    x, labels = batch
    wanted, answer = teacher.eval()(x).detach(), student(x)
    project = distiller.method.parts[1].projectors[0].conv
    expected = {
        "hard": 0.3 * F.cross_entropy(answer, labels),
        "soft": 0.7 * 9 * F.kl_div((answer / 3).log_softmax(1), (wanted / 3).softmax(1), reduction="batchmean"),
        "hint stem": 10 * F.mse_loss(project(student.stem(x)), teacher.stem(x).detach()),
    }
    assert list(found.terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name], value)
    torch.testing.assert_close(found.total, sum(expected.values()))
    assert torch.equal(found.student.logits, answer)
    assert torch.equal(found.rows, answer)
    assert torch.equal(found.labels, labels)
    assert found[0] is found.total  # which is where transformers' Trainer looks


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_gradient_carries_the_square_of_the_temperature(
    student: Net, teacher: Net, batch: Pair, temperature: float, alpha: float
) -> None:
    found = Distiller(student.eval(), teacher, Logit(temperature, alpha))(batch)
    (gradient,) = torch.autograd.grad(found.terms["soft"], found.student.logits)
    p, q = (x.detach().div(temperature).softmax(1) for x in (found.student.logits, teacher(batch[0])))
    torch.testing.assert_close(gradient, (1 - alpha) * temperature * (p - q) / len(p))


def test_it_holds_the_student_and_the_projectors_and_nothing_of_the_teacher(
    student: Net, teacher: Net, batch: Pair
) -> None:
    distiller = Distiller(student, teacher, both(), example=batch)
    held = {id(p) for p in distiller.parameters()}
    assert held == {id(p) for p in (*student.parameters(), *distiller.method.parameters())}
    assert not held & {id(p) for p in teacher.parameters()}
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"student", "method"}
    assert sum(p.numel() for p in distiller.method.parameters()) == 4 * 6


def test_the_teacher_never_learns_whatever_is_called(student: Net, teacher: Net, batch: Pair) -> None:
    distiller = Distiller(student, teacher, both(), example=batch)
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(distiller.parameters(), 0.1, weight_decay=0.1)
    for action in (distiller.train, teacher.train, student.train):
        action()
        distiller(batch).total.backward()
        optimizer.step()
        assert not any(module.training for module in teacher.modules())
        assert student.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_an_example_changes_nothing_in_the_networks(student: Net, teacher: Net, batch: Pair) -> None:
    student.drop.eval()
    before = copy.deepcopy(student.state_dict())
    state = torch.random.get_rng_state()
    Distiller(student, teacher, Logit(), example=batch)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student.training
    assert not student.drop.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_is_left_in_the_networks_between_calls(student: Net, teacher: Net, batch: Pair) -> None:
    distiller = Distiller(student, teacher, both(), example=batch)
    distiller(batch)
    for network in (student, teacher):
        assert not any(module._forward_hooks for module in network.modules())
    copied = copy.deepcopy(student)
    copied(batch[0])  # of no account to the distiller
    assert bool(distiller(batch).total.isfinite())


def test_a_method_without_projectors_needs_no_example_and_one_with_them_says_so(student: Net, teacher: Net) -> None:
    Distiller(student, teacher, Logit() + Relation({"stem": "stem"}, "similarity"))
    Distiller(student, None, HardLabels())
    with pytest.raises(ValueError, match=r"sizes come from the layers stem -> stem: give one batch, Distiller"):
        Distiller(student, teacher, both())


def test_a_method_that_has_its_projectors_keeps_them(student: Net, teacher: Net, batch: Pair) -> None:
    method = both()
    first = Distiller(student, teacher, method, example=batch)
    weights = first.method.state_dict()
    second = Distiller(student, teacher, method)
    assert all(torch.equal(value, weights[name]) for name, value in second.method.state_dict().items())


def test_an_example_shows_mistakes_before_the_first_step(student: Net, teacher: Net, batch: Pair) -> None:
    with pytest.raises(ValueError, match="The student cannot take images of 3 x 6 x 6"):
        Distiller(student, teacher, Logit(), example=(torch.zeros(2, 3, 6, 6), batch[1][:2]))
    with pytest.raises(ValueError, match=r"student gives logits of \(8, 3\), the teacher of \(8, 5\)"):
        Distiller(student, Net(6, classes=5), Logit(), example=batch)
    with pytest.raises(ValueError, match="no layer in Net named 'stm'. Did you mean 'stem'"):
        Distiller(student, teacher, Feature({"stem": "stm"}), example=batch)
    with pytest.warns(UserWarning, match="No term of this method looks at the logits"):
        Distiller(student, teacher, Feature({"stem": "stem"}), example=batch)
    softmaxed = nn.Sequential(student, nn.Softmax(dim=1))
    with pytest.warns(UserWarning, match="student look like probabilities"):
        Distiller(softmaxed, teacher, Logit(), example=batch)


def test_a_teacher_whose_weights_are_damaged_is_refused_with_the_example(
    student: Net, teacher: Net, batch: Pair
) -> None:
    with torch.no_grad():
        teacher.fc.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="The teacher's logits are not finite: its weights may be damaged"):
        Distiller(student, teacher, Logit(), example=batch)


def test_a_teacher_with_other_classes_may_serve_features(student: Net, batch: Pair) -> None:
    method = HardLabels() + Feature({"stem": "stem"})
    found = Distiller(student, Net(6, classes=5), method, example=batch)(batch)
    assert list(found.terms) == ["hard", "hint stem"]


def test_a_teacher_without_logits_may_serve_features(student: Net, teacher: Net, batch: Pair) -> None:
    class Headless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = teacher.stem

        def forward(self, x: Tensor) -> None:
            self.stem(x)

    found = Distiller(student, Headless(), HardLabels() + Feature({"stem": "stem"}), example=batch)(batch)
    assert bool(found.terms["hint stem"].isfinite())
    with pytest.raises(ValueError, match="returned a NoneType; expected one tensor of logits"):
        Distiller(student, Headless(), Logit())(batch)


def test_student_and_teacher_may_see_different_inputs(student: Net, batch: Pair) -> None:
    table = nn.Linear(5, 3)
    given = {"image": batch[0], "table": torch.randn(8, 5), "y": batch[1]}
    adapter = Adapter(inputs="image", teacher_inputs="table", labels="y")
    found = Distiller(student.eval(), table, Logit(2, 0.5), adapter=adapter)(given)
    expected = losses.kd(student(batch[0]), table(given["table"]), 2.0)
    torch.testing.assert_close(found.terms["soft"], 0.5 * expected)


@pytest.mark.parametrize(
    ("given", "adapter"),
    [
        (lambda x, y: (x, y), Adapter()),
        (lambda x, y: [x, y], Adapter()),
        (lambda x, y: {"image": x, "labels": y}, Adapter()),
        (lambda x, y: {"x": x, "label": y, "index": y}, Adapter()),
        (lambda x, y: {"x": x, "name": "a", "y": y}, Adapter(inputs="x", labels="y")),
        (lambda x, y: (y, "name", x), Adapter(inputs=2, labels=0)),
        (lambda x, y: (y, {"x": x}), Adapter(labels=0, inputs=1)),
        (lambda x, y: {"both": (x, y)}, Adapter(inputs=lambda b: b["both"][0], labels=lambda b: b["both"][1])),
    ],
)
def test_a_batch_is_what_the_adapter_says(
    student: Net, teacher: Net, batch: Pair, given: Any, adapter: Adapter
) -> None:
    student.eval()
    expected = Distiller(student, teacher, Logit())(batch)
    found = Distiller(student, teacher, Logit(), adapter=adapter)(given(*batch))
    assert torch.equal(found.total, expected.total)


CHANGING: dict[str, Any] = {
    "noise": lambda pair: pair[0] + torch.randn_like(pair[0]),
    "noise in a part of them": lambda pair: {"x": pair[0], "more": [torch.rand(2)]},
    "another size": lambda pair: pair[0][..., : int(torch.randint(1, 6, ()))],
    "all flipped or none": lambda pair: pair[0].flip(-1) if torch.rand(()) < 0.5 else pair[0],
    "in place": lambda pair: pair[0].mul_(0.5),
}


@pytest.mark.parametrize("name", CHANGING)
def test_inputs_that_change_from_call_to_call_are_refused(student: Net, teacher: Net, batch: Pair, name: str) -> None:
    torch.manual_seed(0)
    adapter = Adapter(inputs=CHANGING[name], labels=1)
    with pytest.raises(ValueError, match="inputs.*different views.*collate_fn"):
        Distiller(student, teacher, Logit(), example=batch, adapter=adapter)


@dataclass
class Pixels:
    values: Tensor


class OfPixels(Net):
    """Takes its inputs as a dataclass."""

    def forward(self, pixels: Pixels) -> Tensor:
        return super().forward(pixels.values)


def test_inputs_in_a_dataclass_that_change_from_call_to_call_are_refused(batch: Pair) -> None:
    student, teacher = OfPixels(4), OfPixels(5)
    Distiller(student, teacher, Logit(), example=batch, adapter=Adapter(inputs=lambda p: Pixels(p[0]), labels=1))
    noisy = Adapter(inputs=lambda pair: Pixels(CHANGING["noise"](pair)), labels=1)
    with pytest.raises(ValueError, match="inputs.*different views.*collate_fn"):
        Distiller(student, teacher, Logit(), example=batch, adapter=noisy)


def test_inputs_may_change_where_student_and_teacher_need_not_see_the_same(
    student: Net, teacher: Net, batch: Pair
) -> None:
    noise = CHANGING["noise"]
    Distiller(student, None, HardLabels(), example=batch, adapter=Adapter(inputs=noise, labels=1))
    asked = Adapter(inputs=noise, teacher_inputs=lambda pair: pair[0], labels=1)  # a noisy student
    Distiller(student, teacher, Logit(), example=batch, adapter=asked)
    asked_by_name = Adapter(inputs=noise, labels=1)
    Distiller(student, lambda pair: teacher(pair[0]), Logit(), example=batch, adapter=asked_by_name)


def test_inputs_with_gaps_are_the_same_each_time(teacher: Net, batch: Pair) -> None:
    class Filled(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.nan_to_num())

    batch[0][0] = float("nan")
    adapter = Adapter(inputs=lambda pair: pair[0] + 1, labels=1)
    assert bool(Distiller(Filled(4), Filled(6), Logit(), example=batch, adapter=adapter)(batch).total.isfinite())


def test_fields_are_the_batch_of_transformers_trainer(student: Net, teacher: Net, batch: Pair) -> None:
    distiller = Distiller(student.eval(), teacher, Logit())
    assert torch.equal(distiller(x=batch[0], labels=batch[1]).total, distiller(batch).total)


def test_where_logits_are_can_be_said_for_each_network(student: Net, teacher: Net, batch: Pair) -> None:
    class Odd(nn.Module):
        def __init__(self, inner: nn.Module, key: Any) -> None:
            super().__init__()
            self.inner, self.key = inner, key

        def forward(self, x: Tensor) -> Any:
            return {"a": x, self.key: self.inner(x)}

    adapter = Adapter(logits="scores", teacher_logits=lambda output: output["z"])
    distiller = Distiller(Odd(student.eval(), "scores"), Odd(teacher, "z"), Logit(), adapter=adapter)
    assert torch.equal(distiller(batch).total, Distiller(student, teacher, Logit())(batch).total)


def test_the_embedding_is_not_taken_for_the_logits(student: Net, teacher: Net, batch: Pair) -> None:
    class Embedded(nn.Module):
        def __init__(self, inner: Net) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner.stem(x), self.inner(x)

    pair = Embedded(student.eval()), Embedded(teacher)
    with pytest.raises(ValueError, match=r"which are the logits.*Adapter\(logits=1\).*teacher_logits"):
        Distiller(*pair, Logit())(batch)
    adapter = Adapter(logits=1, teacher_logits=1)
    assert torch.equal(
        Distiller(*pair, Logit(), adapter=adapter)(batch).total, Distiller(student, teacher, Logit())(batch).total
    )


def test_a_batch_without_labels_is_distilled_by_the_teacher_alone(student: Net, teacher: Net, batch: Pair) -> None:
    student.eval()
    found = Distiller(student, teacher, Logit(alpha=0))(batch[0])
    assert torch.equal(found.terms["soft"], Distiller(student, teacher, Logit(alpha=0))(batch).terms["soft"])
    assert list(found.terms) == ["soft"]
    with pytest.raises(ValueError, match="Logit has a loss on the labels, and this batch has none"):
        Distiller(student, teacher, Logit(alpha=0.1))(batch[0])


def test_a_function_is_a_teacher(student: Net, teacher: Net, batch: Pair) -> None:
    student.eval(), teacher.eval()
    expected = Distiller(student, teacher, both(), example=batch)

    def ask(given: Pair) -> ModelOutput:
        return ModelOutput(teacher(given[0]), {"stem": teacher.stem(given[0])})

    distiller = Distiller(student, ask, expected.method)
    assert torch.equal(distiller(batch).total, expected(batch).total)
    with pytest.raises(ValueError, match=r"function gives no features of \['stem'\]"):
        Distiller(student, lambda given: teacher(given[0]), expected.method)(batch)


def test_a_teacher_of_ones_own_needs_only_a_call(student: Net, teacher: Net, batch: Pair) -> None:
    class Stored(Teacher):
        views = 1

        def __call__(self, given: Any, layers: Any = None) -> ModelOutput:
            return ModelOutput(torch.zeros(8, 3))

    found = Distiller(student.eval(), Stored(), Logit(1, 0))(batch)
    torch.testing.assert_close(found.terms["soft"], losses.kd(student(batch[0]), torch.zeros(8, 3), 1.0))


def test_a_term_that_is_no_scalar_and_no_term_at_all_are_errors(student: Net, batch: Pair) -> None:
    class Odd(Method):
        needs_teacher = False

        def __init__(self, terms: dict) -> None:
            super().__init__()
            self.terms = terms

        def forward(self, student: ModelOutput, teacher: Any, labels: Any) -> dict:
            return self.terms

    with pytest.raises(ValueError, match=r"term 'each' of the loss has shape \(8,\)"):
        Distiller(student, None, Odd({"each": torch.zeros(8)}))(batch)
    with pytest.raises(ValueError, match="Odd gave no terms"):
        Distiller(student, None, Odd({}))(batch)


def test_a_method_of_ones_own_sees_what_the_network_returned(batch: Pair) -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x.flatten(1)[:, :3], "boxes": x.flatten(1)[:, 3:7]}

    class Boxes(Method):
        def forward(self, student: ModelOutput, teacher: ModelOutput, labels: Any) -> dict:
            return {"boxes": F.l1_loss(student.raw["boxes"], teacher.raw["boxes"] + 1)}

    assert Distiller(Both(), Both(), Boxes())(batch).total.item() == pytest.approx(1)


def test_under_autocast_the_losses_are_computed_in_float32(student: Net, teacher: Net, batch: Pair) -> None:
    distiller = Distiller(student.eval(), teacher, both(), example=batch)
    plain = distiller(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = distiller(batch)
    assert found.student.logits.dtype == torch.bfloat16
    assert {term.dtype for term in found.terms.values()} == {torch.float32}
    for name, term in found.terms.items():
        torch.testing.assert_close(term, plain.terms[name], rtol=0.05, atol=0.02)


def test_under_autocast_projectors_work_in_float32_too(student: Net, teacher: Net, batch: Pair) -> None:
    distiller = Distiller(student.eval(), teacher, both(), example=batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = distiller(batch)
        wanted = teacher.stem(batch[0]).detach().float()
    given = found.student.features["stem"]
    assert given.dtype == torch.bfloat16
    expected = 10 * F.mse_loss(distiller.method.parts[1].projectors[0].conv(given.float()), wanted)
    torch.testing.assert_close(found.terms["hint stem"], expected, rtol=1e-6, atol=0)


def test_the_pairs_that_need_an_example_are_named_as_they_are() -> None:
    student = models.build("resnet8", num_classes=3, in_channels=1, seed=0)
    teacher = models.build("resnet20", num_classes=3, in_channels=1, seed=1)
    hints = Feature({"layer1": "layer2", "layer2": "layer2", "layer3": "layer3"})
    with pytest.raises(ValueError, match="the layers layer1 -> layer2, layer2 -> layer2, layer3 -> layer3: give one"):
        Distiller(student, teacher, hints)
    method = (
        Relation({"avgpool": "avgpool"}, "rkd") + Feature({"layer3": "layer3"}) + Feature({"layer3": "layer2"}, "vid")
    )
    with pytest.raises(ValueError, match="the layers layer3 -> layer3, layer3 -> layer2: give one"):
        Distiller(student, teacher, method)


def test_two_known_networks_need_nothing_but_their_names() -> None:
    student = models.build("resnet8", num_classes=3, in_channels=1, seed=0)
    teacher = models.build("resnet20", num_classes=3, in_channels=1, seed=1)
    batch = torch.randn(4, 1, 16, 16), torch.arange(4) % 3
    method = Logit() + Feature(models.pair_layers(student, teacher, "all"))
    distiller = Distiller(student, teacher, method, example=batch)
    optimizer = torch.optim.SGD(distiller.parameters(), 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = []
        for _ in range(5):
            optimizer.zero_grad()
            total = distiller(batch).total
            total.backward()
            optimizer.step()
            values.append(total.item())
    assert values[-1] < values[0]


def test_a_backbone_without_classes_may_teach_features() -> None:
    student = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    batch = torch.randn(4, 1, 4, 4), torch.arange(4)
    distiller = Distiller(student, backbone, HardLabels() + Feature({"1": "1"}), example=batch)
    assert distiller(batch).total.isfinite()


def test_a_teacher_of_other_labels_may_teach_features() -> None:
    def network(labels: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, labels))

    batch = torch.randn(4, 6), (torch.rand(4, 5) > 0.5).float()
    method = HardLabels() + Feature({"1": "1"})
    assert Distiller(network(5), network(9), method, task="multilabel", example=batch)(batch).total.isfinite()
    with pytest.raises(ValueError, match="9"):  # logits of other labels are not compared
        Distiller(network(5), network(9), Logit(), task="multilabel", example=batch)


def test_a_method_that_would_train_the_teacher_is_refused(student: Net, teacher: Net, batch: Pair) -> None:
    class ReusedClassifier(Method):
        """The student's features through the teacher's classifier (SimKD, Chen et al. 2022)."""

        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(
            self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None
        ) -> dict[str, Tensor]:
            return {"mine": self.head(torch.ones(1, 6)).square().mean() + student.logits.square().mean()}

    with pytest.raises(ValueError, match=r"train the teacher's own weights \(head\.weight, head\.bias\).*deepcopy"):
        Distiller(student, teacher, ReusedClassifier(teacher.fc), example=batch)
    copied = HardLabels() + ReusedClassifier(copy.deepcopy(teacher.fc))
    distiller = Distiller(student, teacher, copied, example=batch)
    assert len(list(distiller.method.parameters())) == 2
    teacher.fc.requires_grad_(False)
    Distiller(student, teacher, HardLabels() + ReusedClassifier(teacher.fc), example=batch)


def test_several_labels_at_once_after_a_sigmoid_are_warned_about(recwarn: pytest.WarningsRecorder) -> None:
    def network(*more: nn.Module, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), *more)

    batch = torch.randn(8, 6), (torch.rand(8, 5) > 0.5).float()
    untrained = network(seed=0)
    nn.init.zeros_(untrained[0].weight)
    nn.init.zeros_(untrained[0].bias)
    for student in (network(seed=1), untrained):
        Distiller(student, network(seed=2), Logit(), task="multilabel", example=batch)
    assert not recwarn
    with pytest.warns(UserWarning, match="teacher look like probabilities.*before the sigmoid"):
        Distiller(network(seed=1), network(nn.Sigmoid(), seed=2), Logit(), task="multilabel", example=batch)
    with pytest.warns(UserWarning, match="student look like probabilities.*before the sigmoid"):
        Distiller(network(nn.Sigmoid(), seed=1), network(seed=2), Logit(), task="multilabel", example=batch)


class Holder(Tensor):
    """A tensor that holds another one, as torchao's quantized weights do: it has no memory of its own."""

    @staticmethod
    def __new__(cls, held: Tensor) -> Holder:
        made = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = [one.held if isinstance(one, Holder) else one for one in args]
        return Holder(function(*held, **(kwargs or {})))


def test_quantized_networks_share_weights_where_their_tensors_are_the_same() -> None:
    student, teacher = nn.Linear(3, 3), nn.Linear(3, 3)
    student.weight, teacher.weight = (nn.Parameter(Holder(torch.zeros(3, 3))) for _ in range(2))
    assert Distiller(student, teacher, Logit()).teacher.model is teacher
    teacher.weight = student.weight
    with pytest.raises(ValueError, match=r"share weights or buffers \(weight\)"):
        Distiller(student, teacher, Logit())


@pytest.mark.parametrize("kind", ["stored", "function", "own", "confidence"])
def test_an_order_of_classes_is_not_ignored_for_a_teacher_that_is_no_network(
    student: Net, batch: Pair, kind: str
) -> None:
    answers = torch.randn(8, 3)

    class Own(Teacher):
        def __call__(self, batch: Any, layers: Any = None) -> ModelOutput:
            return ModelOutput(answers)

    teachers: dict[str, Any] = {
        "stored": CachedTeacher.from_logits(answers),
        "function": lambda batch: answers,
        "own": Own(),
        "confidence": ConfidenceEnsemble([Net(4), Net(5)]),
    }
    adapter = Adapter(teacher_logits=lambda output: output[:, [2, 1, 0]])
    with pytest.raises(ValueError, match=r"teacher_logits.*from_logits\(answers\[:, order\]\)"):
        Distiller(student, teachers[kind], Logit(), adapter=adapter)
    Distiller(student, teachers[kind], HardLabels(), adapter=adapter)  # reads no answer


@pytest.mark.parametrize("kind", ["network", "ensemble", "specialists"])
def test_the_order_of_the_classes_is_that_of_the_adapter(student: Net, batch: Pair, kind: str) -> None:
    networks: dict[str, nn.Module] = {
        "network": Net(4, seed=1),
        "ensemble": Ensemble([Net(4, seed=1), Net(5, seed=2)]),
        "specialists": Specialists([Net(4, classes=2, seed=1), Net(5, classes=1, seed=2)], [(0, 2), (1,)]),
    }
    teacher, order = networks[kind].eval(), [2, 0, 1]
    adapter = Adapter(teacher_logits=lambda output: output[:, order])
    found = Distiller(student, teacher, Logit(2, alpha=0), adapter=adapter, example=batch).eval()(batch).total
    with torch.no_grad():
        expected = losses.kd(student(batch[0]), teacher(batch[0])[:, order], 2)
    torch.testing.assert_close(found.detach(), expected)


class Tagger(nn.Module):
    """A class for each of the tokens; `form` makes what it returns of its logits, B x L x C."""

    def __init__(self, classes: int, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.words, self.form = nn.Embedding(20, classes), form

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.form(self.words(input_ids))


class Attributes(OrderedDict):
    """A dict whose fields are attributes, too, as transformers' networks return it."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


FORMS: dict[str, tuple[Callable[[Tensor], Any], str, str]] = {
    "a tensor of tokens": (lambda z: z, "token-classification", "output[..., order]"),
    "transformers": (lambda z: Attributes(logits=z), "token-classification", "output.logits[..., order]"),
    "a dict": (lambda z: {"logits": z}, "token-classification", "output['logits'][..., order]"),
    "a dict with an empty field": (lambda z: {"logits": None, "out": z.mT}, "segmentation", "output['out'][:, order]"),
    "an object": (lambda z: SimpleNamespace(logits=z), "token-classification", "output.logits[..., order]"),
    "a tuple with an auxiliary head": (lambda z: (z, 2 * z), "token-classification", "output[0][..., order]"),
    "torchvision": (lambda z: {"out": z.mT}, "segmentation", "output['out'][:, order]"),
    "a tensor of pixels": (lambda z: z.mT, "segmentation", "output[:, order]"),
}


@pytest.mark.parametrize("name", FORMS)
def test_how_to_choose_among_the_classes_of_the_teacher_fits_what_it_returns(name: str) -> None:
    form, task, advice = FORMS[name]
    student, teacher, order = Tagger(3, form), Tagger(5, form), [4, 0, 2]
    ids = torch.arange(24).view(2, 12) % 20
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids % 3}
    with pytest.raises(ValueError, match=re.escape(f"Adapter(teacher_logits=lambda output: {advice})")):
        Distiller(student, teacher, Logit(2, alpha=0), task=task, example=batch)
    chosen = Adapter(teacher_logits=eval(f"lambda output: {advice}", {"order": order}))
    found = Distiller(student, teacher, Logit(2, alpha=0), task=task, adapter=chosen, example=batch)(batch).total
    z, t = (one.words.weight.detach()[ids].flatten(0, 1) for one in (student, teacher))
    torch.testing.assert_close(found.detach(), losses.kd(z, t[:, order], 2))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a tensor of tokens", "output[..., :3]"),
        ("transformers", "output.logits[..., :3]"),
        ("torchvision", "output['out'][:, :3]"),
    ],
)
def test_of_a_student_with_more_classes_those_of_the_teacher_are_to_be_taken(name: str, advice: str) -> None:
    """As of a vocabulary that was padded; of the teacher none can be chosen."""
    form, task, _ = FORMS[name]
    student, teacher = Tagger(5, form), Tagger(3, form)
    ids = torch.arange(24).view(2, 12) % 20
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids % 3}
    with pytest.raises(ValueError, match=re.escape(f"Adapter(logits=lambda output: {advice})")) as refused:
        Distiller(student, teacher, Logit(2, alpha=0), task=task, example=batch)
    assert "order" not in str(refused.value)
    adapter = Adapter(logits=eval(f"lambda output: {advice}"))
    found = Distiller(student, teacher, Logit(2, alpha=0), task=task, adapter=adapter, example=batch)(batch).total
    z, t = (one.words.weight.detach()[ids].flatten(0, 1) for one in (student, teacher))
    torch.testing.assert_close(found.detach(), losses.kd(z[:, :3], t, 2))


TOP_2 = {"classes": torch.tensor([[4, 0], [1, 3]] * 4), "probabilities": torch.tensor([[0.5, 0.3]] * 8)}
CHOSEN: dict[str, tuple[Callable[[Tensor], Any], str, Callable[[Tensor], Any]]] = {
    "answers": (
        CachedTeacher.from_logits,
        r"CachedTeacher.from_logits\(logits\[..., order\]\), where kdlib.answers.to_logits or from_top_k",
        lambda logits: CachedTeacher.from_logits(logits[..., [4, 0, 2]]),
    ),
    "the best answers": (
        lambda logits: CachedTeacher.from_logits(TOP_2, kind="top_k", num_classes=5),
        "from_top_k makes logits",
        lambda logits: CachedTeacher.from_logits(answers.from_top_k(TOP_2, 5)[..., [4, 0, 2]]),
    ),
    "a function": (
        lambda logits: lambda batch: logits,
        r"return answers\[..., order\]",
        lambda logits: lambda batch: logits[..., [4, 0, 2]],
    ),
    "a network that is read by itself": (
        lambda logits: FrozenTeacher(Net(4, classes=5), read_logits=lambda output: output),
        r"FrozenTeacher\(..., read_logits=lambda output: output\[..., order\]\)",
        lambda logits: FrozenTeacher(Net(4, classes=5), read_logits=lambda output: output[..., [4, 0, 2]]),
    ),
    "an ensemble": (
        lambda logits: ConfidenceEnsemble([Net(4, classes=5), Net(5, classes=5)]),
        r"ConfidenceEnsemble\(..., read_logits=lambda output: output\[..., order\]\)",
        lambda logits: ConfidenceEnsemble(
            [Net(4, classes=5), Net(5, classes=5)], read_logits=lambda output: output[..., [4, 0, 2]]
        ),
    ),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_how_to_choose_among_the_classes_fits_a_teacher_that_is_no_network(
    student: Net, batch: Pair, name: str
) -> None:
    """Such a one refuses Adapter(teacher_logits=...)."""
    made, advice, chosen = CHOSEN[name]
    logits, given = torch.randn(8, 5), dict(zip(("image", "label"), batch, strict=True)) | {"index": torch.arange(8)}
    with pytest.raises(ValueError, match=advice) as refused:
        Distiller(student, made(logits), Logit(), example=given)
    assert "teacher_logits" not in str(refused.value)
    assert Distiller(student, chosen(logits), Logit(), example=given)(given).total.isfinite()


def test_how_to_choose_among_the_classes_of_stored_outputs_is_to_build_them_so(student: Net) -> None:
    split = data.InMemoryDataset(
        torch.zeros(8, 1, 6, 6, dtype=torch.uint8), torch.arange(8) % 3, torch.arange(8), (0.5,), (0.5,)
    )
    (given,), order = split.iter_batches(8), [4, 0, 2]
    cached = CachedTeacher.build(Net(4, classes=5), split, device="cpu", progress=False)
    with pytest.raises(ValueError, match=r"adapter=(Adapter\(teacher_logits=lambda output: .*?\))\)") as refused:
        Distiller(student, cached, Logit(), example=given)
    (advice,) = re.findall(r"adapter=(Adapter\(.*?\))\)", str(refused.value))
    adapter = eval(advice, {"Adapter": Adapter, "order": order})
    chosen = CachedTeacher.build(Net(4, classes=5), split, device="cpu", progress=False, adapter=adapter)
    assert Distiller(student, chosen, Logit(), example=given)(given).total.isfinite()


class Predicts(nn.Module):
    """Numbers of the given shape for each sample, in what `form` makes of them."""

    def __init__(self, shape: tuple[int, ...], form: Callable[[Tensor], Any] = lambda z: z) -> None:
        super().__init__()
        self.fc, self.shape, self.form = nn.Linear(4, 1), shape, form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.fc(x).view(-1, *self.shape))


@pytest.mark.parametrize(
    ("student", "teacher", "form", "advice"),
    [
        ((1,), (), lambda z: z, "output.reshape(-1, 1)"),
        ((), (1,), lambda z: z, "output.reshape(-1)"),
        ((1,), (), lambda z: {"logits": z}, "output['logits'].reshape(-1, 1)"),
    ],
)
def test_numbers_of_two_networks_in_two_shapes_are_to_be_reshaped(
    student: tuple[int, ...], teacher: tuple[int, ...], form: Callable[[Tensor], Any], advice: str
) -> None:
    x = torch.randn(6, 4)
    networks, batch = (Predicts(student), Predicts(teacher, form)), (x, torch.randn(6, *student))
    options: dict[str, Any] = {"task": "regression", "example": batch}
    method = Logit(loss=F.mse_loss, hard=F.mse_loss, alpha=0)
    said = rf"every pair of samples.*{re.escape(f'Adapter(teacher_logits=lambda output: {advice})')}"
    with pytest.raises(ValueError, match=said) as refused:
        Distiller(*networks, method, **options)
    assert "classes" not in str(refused.value)
    found = Distiller(*networks, method, adapter=Adapter(teacher_logits=eval(f"lambda output: {advice}")), **options)
    wanted = F.mse_loss(networks[0].fc(x), networks[1].fc(x))
    torch.testing.assert_close(found(batch).total, wanted)


def test_numbers_whose_axes_have_another_order_are_not_told_to_be_reshaped() -> None:
    student, batch = nn.Conv2d(1, 5, 1), (torch.randn(2, 1, 3, 3), torch.randn(2, 5, 3, 3))
    method = Logit(loss=F.mse_loss, hard=F.mse_loss)
    with pytest.raises(ValueError, match="axes in the order of the student's") as refused:
        Distiller(student, lambda batch: batch[1].movedim(1, -1), method, task="regression", example=batch)
    assert "reshape" not in str(refused.value)


@pytest.mark.parametrize("role", ["logits", "teacher_logits"])
@pytest.mark.parametrize("wrong", ["output[:, [1, 0]]", "output.logits[[9]]", "output.scores", "output['scores']"])
def test_a_function_of_the_adapter_that_fails_is_told_as_such(role: str, wrong: str) -> None:
    networks = [Tagger(3, lambda z: Attributes(logits=z)) for _ in range(2)]
    ids = torch.arange(24).view(2, 12) % 20
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids % 3}
    adapter = Adapter(**{role: eval(f"lambda output: {wrong}")})
    said = rf"^The function of Adapter\({role}=.*returned, a Attributes; its logits are output\.logits"
    with pytest.raises(ValueError, match=said):
        Distiller(*networks, Logit(), adapter=adapter, task="token-classification", example=batch)


def _mutual(student: Net, teacher: Net, batch: Pair, *, each: bool) -> None:
    """Three steps of two networks that teach each other."""
    first, second = Distiller(student, teacher, Logit()), Distiller(teacher, student, Logit())
    for _ in range(3):
        first.train()
        if not each:
            second.train()
        one = first(batch).total
        if each:
            second.train()
        (one + second(batch).total).backward()


def test_two_that_teach_each_other_are_in_train_mode_when_each_is_set_before_its_call(
    student: Net, teacher: Net, batch: Pair
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _mutual(student, teacher, batch, each=True)
    assert [int(net.stem[1].num_batches_tracked) for net in (student, teacher)] == [3, 3]


def test_a_student_that_another_call_has_left_in_eval_mode_is_said_once(
    student: Net, teacher: Net, batch: Pair
) -> None:
    with pytest.warns(UserWarning, match=r"student is in eval mode.*train\(\)") as caught:
        _mutual(student, teacher, batch, each=False)
    assert len(caught) == 1


def test_a_student_in_eval_mode_is_said_after_a_validation_and_not_where_it_is_meant(
    student: Net, teacher: Net, batch: Pair
) -> None:
    distiller = Distiller(student, teacher, both(), example=batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller.train()(batch)
        student.eval()
        with torch.no_grad():
            distiller(batch)  # the loss of a validation
        distiller.eval()(batch)
        frozen = copy.deepcopy(student).requires_grad_(False).eval()
        Distiller(frozen, teacher, both(), example=batch)(batch)  # projectors alone learn
    distiller.train()
    student.eval()
    with pytest.warns(UserWarning, match="student is in eval mode"):
        distiller(batch)


def test_a_function_of_labels_keeps_them_from_the_networks(batch: Pair) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(7, 7)

        def forward(self, ids: Tensor) -> Tensor:
            return self.words(ids)

    ids = torch.arange(12).view(2, 6) % 7
    adapter = Adapter(labels=lambda batch: F.pad(batch["labels"][:, 1:], (0, 1), value=-100))
    found = Distiller(Words(), Words(), Logit(), adapter=adapter, task="token-classification")
    given = {"ids": ids, "labels": ids}
    assert torch.equal(found(given).labels, ids[:, 1:].flatten())
    assert adapter.student_inputs_of(given) is ids
    assert adapter.student_inputs_of({**given, "label": ids, "mask": ids}).keys() == {"ids", "mask"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_is_the_output_trains_it_in_every_precision(
    batch: Pair, dtype: torch.dtype, recwarn: pytest.WarningsRecorder
) -> None:
    class Embedding(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.flat, self.proj = nn.Flatten(), nn.Linear(36, width)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(self.flat(x))

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        Distiller(Embedding(4), Embedding(6), Relation({"proj": "proj"}, "rkd"), example=batch)
        assert [str(one.message) for one in recwarn] == []
        with pytest.warns(UserWarning, match="keeps its initial weights"):
            Distiller(Net(4), Net(6), Relation({"stem": "stem"}, "similarity"), example=batch)


def test_a_frozen_part_in_both_networks_is_refused_for_what_would_happen(student: Net, batch: Pair) -> None:
    teacher = Net(4, seed=1)
    teacher.stem = student.stem.requires_grad_(False)
    with pytest.raises(ValueError, match=r"share.*stem.*eval mode.*deepcopy"):
        Distiller(student, teacher, Logit(), example=batch)


def test_a_frozen_teacher_reads_what_the_adapter_says_and_its_own_readers_win(
    student: Net, teacher: Net, batch: Pair
) -> None:
    fields = {"image": batch[0], "mirrored": batch[0].flip(3), "y": batch[1]}
    adapter = Adapter(inputs="image", teacher_inputs="mirrored", labels="y", teacher_logits=lambda z: z.flip(1))

    def soft(given: Any, adapter: Adapter) -> Tensor:
        return Distiller(student.eval(), given, Logit(2, alpha=0), adapter=adapter)(fields).total.detach()

    assert torch.equal(soft(FrozenTeacher(teacher), adapter), soft(teacher, adapter))
    own = FrozenTeacher(teacher, read_inputs=lambda fields: fields["image"])
    plain = Adapter(inputs="image", labels="y")
    assert torch.equal(soft(own, Adapter(inputs="image", teacher_inputs="mirrored", labels="y")), soft(teacher, plain))
    with pytest.raises(ValueError, match="teacher_logits"):
        soft(FrozenTeacher(teacher, read_logits=lambda z: z), adapter)


def test_an_ensemble_in_a_frozen_teacher_is_held_to_its_task(student: Net, batch: Pair) -> None:
    both = Ensemble([Net(4, seed=1), Net(5, seed=2)])
    for given in (both, FrozenTeacher(both)):
        with pytest.raises(ValueError, match="softmax probabilities"):
            Distiller(student, given, Logit(), task="multilabel")


def test_a_term_on_another_device_is_named(student: Net, batch: Pair) -> None:
    class Lost(Method):
        needs_teacher = needs_teacher_logits = False
        trains_logits = True

        def forward(self, student: ModelOutput, teacher: Any, labels: Any) -> dict[str, Tensor]:
            return {"good": student.logits.sum(), "lost": torch.zeros((), device="meta")}

    with pytest.raises(ValueError, match="'lost' of the loss lies on meta.*device=student.logits.device"):
        Distiller(student, None, Lost())(batch)


def test_a_network_in_16_bits_is_told_so_and_not_to_take_other_images(student: Net, batch: Pair) -> None:
    with pytest.raises(ValueError, match=r"teacher computes in another kind of number.*float32.*network\.float\(\)"):
        Distiller(student, Net(4, seed=1).half(), Logit(), example=batch)


# -------------------- what other libraries do with it


def test_torchs_data_parallel_is_told_what_to_take_instead(student: Net, teacher: Net) -> None:
    replica = Distiller(student, teacher, Logit())._replicate_for_data_parallel()  # as torch does for each GPU
    with pytest.raises(RuntimeError, match=r"DataParallel.* cannot copy a Distiller.*torchrun"):
        replica.student = copy.deepcopy(student)


def test_a_scripted_teacher_teaches(student: Net, teacher: Net, batch: Pair) -> None:
    scripted = torch.jit.script(teacher.eval())
    found = [Distiller(student.eval(), one, Logit(2, 0.5)).eval()(batch).total for one in (scripted, teacher)]
    torch.testing.assert_close(*found)


def test_what_a_function_raises_is_its_own(student: Net, batch: Pair) -> None:
    def service(_: Any) -> Tensor:
        raise RuntimeError("503")

    with pytest.raises(RuntimeError, match="^503"):
        Distiller(student, service, Logit(2, 0.5), example=batch)
    with pytest.raises(TypeError) as caught:
        Distiller(student, lambda x: F.conv2d(x, torch.ones(3, 1, 6, 6)), Logit(2, 0.5), example=batch)
    assert "with the whole batch, a tuple" in caught.value.__notes__[0]


def test_weights_that_accelerate_keeps_elsewhere_are_no_network_without_weights(
    student: Net, teacher: Net, batch: Pair
) -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    expected = Distiller(student.eval(), teacher, Logit(2, 0.5)).eval()(batch).total
    weights = {name: value.clone() for name, value in teacher.stem[0].state_dict().items()}
    align = hooks.AlignDevicesHook(execution_device="cpu", offload=True, weights_map=weights)
    hooks.add_hook_to_module(teacher.stem[0], align)
    assert teacher.stem[0].weight.is_meta
    torch.testing.assert_close(Distiller(student, teacher, Logit(2, 0.5)).eval()(batch).total, expected)


def test_a_batch_and_fields_beside_it_are_refused(student: Net, teacher: Net, batch: Pair) -> None:
    with pytest.raises(TypeError, match=r"with a batch, or with its fields by name; got a Tensor and labels"):
        Distiller(student, teacher, Logit(2, 0.5))(batch[0], labels=batch[1])
