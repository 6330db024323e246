"""Methods: their algebra, the exact value of every term, what they learn, and what they refuse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import losses
from kdlib.hooks import FeatureExtractor, ModelOutput
from kdlib.loss_table import LOSSES, Family
from kdlib.methods import Feature, HardLabels, Logit, Method, Relation, WeightedSum, create
from kdlib.projectors import AttentionProjector, ConvProjector, GaussianProjector, WidthProjector

LABELS = torch.tensor([0, 3, 1, 4])


def lin(shape: tuple[int, ...], a: float, b: float) -> Tensor:
    """The inputs of losses.md: no two rows or channels alike, nothing symmetric."""
    return torch.sin(torch.arange(math.prod(shape)) * a + b).reshape(shape)


STUDENT = ModelOutput(
    2 * lin((4, 5), 0.7, 0.1),
    {
        "low": lin((4, 3, 6, 4), 0.11, 0.2),
        "mid": lin((4, 3, 4, 4), 0.17, 0.4).relu(),
        "high": lin((4, 2, 2, 3), 0.31, 0.9),
        "code": lin((4, 6), 0.41, 0.3),
        "sequence": lin((4, 5, 6), 0.41, 0.3),
    },
)
TEACHER = ModelOutput(
    3 * lin((4, 5), 1.3, 0.4),
    {
        "low": lin((4, 3, 8, 3), 0.23, 0.5),
        "mid": (1.5 * lin((4, 5, 4, 4), 0.29, 0.6)).relu(),
        "high": 2 * lin((4, 4, 4, 6), 0.37, 0.2),
        "code": lin((4, 8), 0.91, 0.7),
        "sequence": lin((4, 7, 6), 0.41, 0.3),
    },
)
SAME = {name: name for name in STUDENT.features}


def pairs(*names: str) -> dict[str, str]:
    return {name: SAME[name] for name in names}


def ready(method: Method) -> Method:
    """The method after its setup, with projections from a fixed seed."""
    torch.manual_seed(0)
    method.setup(STUDENT, TEACHER)
    return method


def terms(method: Method) -> dict[str, float]:
    return {name: term.item() for name, term in method(STUDENT, TEACHER, LABELS).items()}


def near(expected: dict[str, Tensor | float]) -> dict[str, object]:
    return {name: pytest.approx(torch.as_tensor(value).item(), rel=1e-5, abs=1e-7) for name, value in expected.items()}


def hard() -> Tensor:
    return F.cross_entropy(STUDENT.logits, LABELS)


def soft(temperature: float = 4.0) -> Tensor:
    return losses.kd(STUDENT.logits, TEACHER.logits, temperature)


# -------------------- the algebra


class Constant(Method):
    """Terms given in advance, so that weights show in the values."""

    def __init__(self, layers: dict[str, str] | None = None, **values: float) -> None:
        super().__init__()
        self.layers, self.values = layers or {}, values
        self.setups: list[tuple[ModelOutput, ModelOutput | None]] = []

    def setup(self, student: ModelOutput, teacher: ModelOutput | None) -> None:
        self.setups.append((student, teacher))

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor) -> dict[str, Tensor]:
        return {name.replace("_", " "): torch.tensor(value) for name, value in self.values.items()}


def test_a_sum_has_the_terms_of_both_in_order():
    total = Constant(b=2.0) + Constant(a=3.0, c=5.0)
    assert isinstance(total, WeightedSum)
    assert list(total(None, None, None)) == ["b", "a", "c"]
    assert terms(total) == {"b": 2.0, "a": 3.0, "c": 5.0}
    assert total.weights == [1.0, 1.0]


@pytest.mark.parametrize(
    "scaled", [lambda m: 50 * m, lambda m: m * 50, lambda m: 50.0 * m, lambda m: np.float32(50) * m]
)
def test_a_number_scales_every_term_from_either_side(scaled: Callable[[Method], Method]):
    total = scaled(Constant(a=3.0, b=0.5))
    assert isinstance(total, WeightedSum)
    assert terms(total) == {"a": 150.0, "b": 25.0}
    assert total.weights == [50.0]


def test_nested_sums_are_flat_and_their_weights_multiplied():
    a, b, c = Constant(a=1.0), Constant(b=1.0), Constant(c=1.0)
    total = 2 * (a + 3 * (b + c * 5)) + b
    assert total.weights == [2.0, 6.0, 30.0, 1.0]
    assert list(total.parts) == [a, b, c, b]
    assert terms(total) == {"a": 2.0, "b": 6.0, "c": 30.0, "b (4)": 1.0}


def test_a_sum_does_not_change_the_sums_that_it_is_made_of():
    inner = Constant(a=1.0) + Constant(b=1.0)
    assert terms(3 * inner) == {"a": 3.0, "b": 3.0}
    assert inner.weights == [1.0, 1.0]
    assert terms(inner) == {"a": 1.0, "b": 1.0}


def test_colliding_names_get_the_number_of_their_part():
    total = Constant(x=1.0) + Constant(y=2.0) + Constant(x=3.0, y=4.0) + Constant(x=5.0)
    assert terms(total) == {"x": 1.0, "y": 2.0, "x (3)": 3.0, "y (3)": 4.0, "x (4)": 5.0}


def test_no_term_is_lost_even_where_a_part_has_used_the_suffixed_name():
    class Two(Constant):
        def forward(self, *_: object) -> dict[str, Tensor]:
            return {"x": torch.tensor(1.0), "x (2)": torch.tensor(2.0)}

    assert terms(Two() + Constant(x=4.0)) == {"x": 1.0, "x (2)": 2.0, "x (2) (2)": 4.0}


def test_a_weight_of_zero_keeps_the_term_in_the_history():
    assert terms(0 * Constant(a=3.0) + Constant(b=1.0)) == {"a": 0.0, "b": 1.0}


@pytest.mark.parametrize("weight", [-1, -1e-9, math.nan, math.inf, -math.inf])
def test_a_weight_is_finite_and_not_negative(weight: float):
    with pytest.raises(ValueError, match=f"^A method's weight is a number of at least 0; got {weight}") as error:
        weight * HardLabels()
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("wrong", "operands"),
    [
        (lambda m: m * {}, "'HardLabels' and 'dict'"),
        (lambda m: None * m, "'NoneType' and 'HardLabels'"),
        (lambda m: m * m, "'HardLabels' and 'HardLabels'"),
        (lambda m: m * torch.tensor(2.0), "'HardLabels' and 'Tensor'"),
        (lambda m: m + 1, "'HardLabels' and 'int'"),
        (lambda m: 1 + m, "'int' and 'HardLabels'"),
        (lambda m: m + nn.ReLU(), "'HardLabels' and 'ReLU'"),
    ],
)
def test_what_is_neither_method_nor_number_is_refused(wrong: Callable[[Method], object], operands: str):
    with pytest.raises(TypeError, match=rf"unsupported operand type\(s\) for .*: {operands}"):
        wrong(HardLabels())


def test_a_weight_without_a_part_is_an_error():
    total = Constant(a=1.0) + Constant(b=1.0)
    total.weights.append(3.0)
    with pytest.raises(ValueError, match="argument"):
        total(None, None, None)
    with pytest.raises(ValueError, match="argument"):
        2 * total


def test_a_sum_has_the_layers_of_all_parts_once_in_order():
    total = Constant({"b": "t2", "a": "t1"}) + Constant({"a": "t2", "c": "t3"}) + HardLabels()
    assert total.student_layers == ("b", "a", "c")
    assert total.teacher_layers == ("t2", "t1", "t3")


def test_a_method_has_the_layers_of_its_mapping():
    assert (Method().student_layers, Method().teacher_layers) == ((), ())
    both = Constant({"x": "same", "y": "other", "z": "same"})
    assert both.student_layers == ("x", "y", "z")
    assert both.teacher_layers == ("same", "other")


def test_a_method_must_define_forward():
    assert Method().setup(STUDENT, TEACHER) is None
    with pytest.raises(NotImplementedError):
        Method()(STUDENT, TEACHER, LABELS)


@pytest.mark.parametrize(
    ("method", "needs_teacher", "trains_logits"),
    [
        (Method(), True, False),
        (HardLabels(), False, True),
        (Logit(), True, True),
        (Feature(pairs("low")), True, False),
        (Relation(pairs("low"), "rkd"), True, False),
        (2 * HardLabels(), False, True),
        (2 * Feature(pairs("low")), True, False),
        (HardLabels() + Feature(pairs("low")), True, True),
        (Feature(pairs("low")) + HardLabels(), True, True),
    ],
)
def test_what_a_method_needs_and_trains(method: Method, needs_teacher: bool, trains_logits: bool):
    assert method.needs_teacher is needs_teacher
    assert method.trains_logits is trains_logits


def test_setup_reaches_every_part_with_both_outputs():
    parts = [Constant(a=1.0), Constant(b=1.0)]
    (parts[0] + 2 * parts[1]).setup(STUDENT, TEACHER)
    assert [part.setups for part in parts] == [[(STUDENT, TEACHER)]] * 2


def test_every_part_gets_the_outputs_and_the_labels():
    class Combines(Method):
        def forward(self, student: ModelOutput, teacher: ModelOutput, labels: Tensor) -> dict[str, Tensor]:
            return {"x": student.logits[0, 0] + 10 * teacher.logits[0, 1] + 100 * labels[3]}

    expected = STUDENT.logits[0, 0] + 10 * TEACHER.logits[0, 1] + 400
    assert terms(HardLabels() + Combines()) == near({"hard": hard(), "x": expected})


def test_learned_parts_of_a_sum_are_parameters_of_the_sum():
    feature, vid = Feature(pairs("mid")), Feature(pairs("high"), "vid")
    total = ready(Logit() + 2 * (feature + 3 * vid))
    assert {id(p) for p in total.parameters()} == {id(p) for part in (feature, vid) for p in part.parameters()}
    assert len(list(total.parameters())) == 1 + 7
    assert "parts.1.projectors.0.conv.weight" in total.state_dict()
    assert "parts.2.projectors.0.raw_variance" in total.state_dict()


def test_print_shows_weights_projections_and_sizes():
    text = repr(ready(Logit(2, 0.3) + 50 * Feature(pairs("high")) + Relation(pairs("low", "mid"))))
    for part in (
        "weights=[1.0, 50.0, 1.0]",
        "temperature=2, alpha=0.3, loss=kd",
        "loss=hint",
        "high -> high: 2 x 2 x 3 -> 4 x 4 x 6, compared at 2 x 3",
        "(conv): Conv2d(2, 4, kernel_size=(1, 1), stride=(1, 1), bias=False)",
        "loss=fsp, layers={'low': 'low', 'mid': 'mid'}",
        "Conv2d(3, 5, kernel_size=(1, 1)",
    ):
        assert part in text
    assert repr(HardLabels(0.2)) == "HardLabels(smoothing=0.2)"
    assert repr(Logit(loss=F.mse_loss)) == "Logit(temperature=4.0, alpha=0.1, loss=mse_loss)"
    assert "loss=L1Loss" in repr(Feature(pairs("low"), nn.L1Loss()))


# -------------------- hard labels


def test_hard_labels_are_cross_entropy():
    assert terms(HardLabels()) == near({"hard": hard()})
    assert HardLabels().smoothing == 0.0


def test_hard_labels_can_be_smoothed_and_need_no_teacher():
    expected = F.cross_entropy(STUDENT.logits, LABELS, label_smoothing=0.3)
    assert HardLabels(0.3)(STUDENT, None, LABELS)["hard"] == pytest.approx(expected.item())
    assert HardLabels(smoothing=0.3).smoothing == 0.3


@pytest.mark.parametrize("smoothing", [-0.01, 1, 1.5, math.nan, math.inf])
def test_smoothing_out_of_range(smoothing: float):
    with pytest.raises(ValueError, match=rf"^smoothing lies in \[0, 1\); got {smoothing}\.$"):
        HardLabels(smoothing)


# -------------------- logits


@pytest.mark.parametrize("alpha", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("temperature", [0.5, 1, 4, 20])
def test_logit_is_alpha_hard_and_the_rest_soft_with_t_squared(temperature: float, alpha: float):
    log_student = F.log_softmax(STUDENT.logits / temperature, 1)
    teacher = F.softmax(TEACHER.logits / temperature, 1)
    divergence = (teacher * (teacher.log() - log_student)).sum(1).mean()
    expected = {"hard": alpha * hard(), "soft": (1 - alpha) * temperature**2 * divergence}
    assert terms(Logit(temperature, alpha)) == near(expected)


def test_logit_defaults():
    method = Logit()
    assert (method.temperature, method.alpha, method.loss) == (4.0, 0.1, "kd")
    assert terms(method) == near({"hard": 0.1 * hard(), "soft": 0.9 * soft(4)})
    assert sum(terms(method).values()) == pytest.approx(2.5769554230, rel=1e-5)  # losses.md


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
@pytest.mark.parametrize("temperature", [1, 4, 9])
def test_the_gradient_of_the_soft_term_carries_t_squared_at_every_alpha(temperature: float, alpha: float):
    student = STUDENT.logits.clone().requires_grad_()
    soft_term = Logit(temperature, alpha)(ModelOutput(student), TEACHER, LABELS)["soft"]
    (gradient,) = torch.autograd.grad(soft_term, student)
    gap = F.softmax(STUDENT.logits / temperature, 1) - F.softmax(TEACHER.logits / temperature, 1)
    torch.testing.assert_close(gradient, (1 - alpha) * temperature * gap / 4)


def test_the_gradient_hardly_depends_on_a_high_temperature():
    def size(temperature: float) -> float:
        student = STUDENT.logits.clone().requires_grad_()
        sum(Logit(temperature, 0)(ModelOutput(student), TEACHER, LABELS).values()).backward()
        return student.grad.norm().item()

    assert size(200) / size(50) == pytest.approx(1, abs=0.02)  # without T^2 it would be 1 / 16


@pytest.mark.parametrize("alpha", [0, 0.3])
def test_a_function_of_ones_own_is_neither_softened_nor_multiplied_by_t_squared(alpha: float):
    expected = (1 - alpha) * F.mse_loss(STUDENT.logits, TEACHER.logits).item()
    found = [terms(Logit(temperature, alpha, F.mse_loss))["soft"] for temperature in (1, 4, 20)]
    assert found == [pytest.approx(expected, rel=1e-6)] * 3


@pytest.mark.parametrize("loss", ["kd", "dkd", "standardized_kd"])
def test_a_batch_repeated_has_the_same_loss(loss: str):
    def twice(output: ModelOutput) -> ModelOutput:
        return ModelOutput(output.logits.repeat(2, 1))

    method = Logit(3, 0.2, loss)
    doubled = method(twice(STUDENT), twice(TEACHER), LABELS.repeat(2))
    assert {name: term.item() for name, term in doubled.items()} == near(terms(method))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Logit(3, 0.2, "kd"), lambda s, t: losses.kd(s, t, 3)),
        (Logit(3, 0.2, "dkd"), lambda s, t: losses.dkd(s, t, LABELS, 3)),
        (Logit(3, 0.2, "dkd", beta=2), lambda s, t: losses.dkd(s, t, LABELS, 3, 1, 2)),
        (Logit(3, 0.2, "dist"), lambda s, t: losses.dist(s, t, 3)),
        (Logit(3, 0.2, "dist", inter=2.0, intra=0.5), lambda s, t: losses.dist(s, t, 3, 2, 0.5)),
        (Logit(3, 0.2, "standardized_kd"), lambda s, t: losses.standardized_kd(s, t, 3)),
        (Logit(3, 0.2, F.l1_loss), F.l1_loss),
        (Logit(3, 0.2, F.l1_loss, reduction="sum"), lambda s, t: (s - t).abs().sum()),
        (Logit(3, 0.2, lambda s, t: (s - 2 * t).mean()), lambda s, t: (s - 2 * t).mean()),
    ],
)
def test_every_soft_loss(method: Logit, expected: Callable[[Tensor, Tensor], Tensor]):
    values = {"hard": 0.2 * hard(), "soft": 0.8 * expected(STUDENT.logits, TEACHER.logits)}
    assert terms(method) == near(values)
    assert list(method(STUDENT, TEACHER, LABELS)) == ["hard", "soft"]


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, -math.inf])
def test_temperature_out_of_range(temperature: float):
    message = rf"^temperature is a positive number, 1 or more as a rule; got {temperature}\.$"
    with pytest.raises(ValueError, match=message):
        Logit(temperature)


@pytest.mark.parametrize("alpha", [-0.1, 1.0001, 2, math.nan, math.inf])
def test_alpha_out_of_range(alpha: float):
    message = rf"^alpha is the weight of the hard-label loss and lies in \[0, 1\]; got {alpha}\.$"
    with pytest.raises(ValueError, match=message):
        Logit(alpha=alpha)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Logit(loss="kdd"),
            "^There is no loss named 'kdd'. Did you mean 'kd' or 'dkd'.* Known: kd, dkd, dist, st",
        ),
        (lambda: Feature(pairs("low"), "atention"), "no loss named 'atention'. Did you mean 'attention'"),
        (lambda: Relation(pairs("low"), "similarities"), "no loss named 'similarities'. Did you mean 'similarity'"),
        (lambda: Logit(loss="hint"), r"^'hint' is a loss of the family feature.*: Feature\(layers, 'hint'\)"),
        (lambda: Feature(pairs("low"), "fsp"), r"^'fsp' is a loss of the family relation.*: Relation\(layers, 'fsp'\)"),
        (
            lambda: Relation(pairs("low"), None),
            "no loss named None.*Known: fsp, layer_correlation, layer_information, rkd,",
        ),
    ],
)
def test_an_unknown_loss_is_named_with_near_matches(make: Callable[[], Method], message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logit(temprature=2), "^kd takes no option 'temprature'. Its options: temperature.$"),
        (
            lambda: Logit(loss="dist", inter=2, beta=8),
            "^dist takes no option 'beta'. Its options: temperature, inter, in",
        ),
        (lambda: Feature(pairs("low"), gamma=1), "^hint takes no option 'gamma'. Its options: none.$"),
        (lambda: Relation(pairs("low"), "rkd", gamma=1), "^rkd takes no option 'gamma'. Its options: none.$"),
    ],
)
def test_an_option_that_the_loss_does_not_take_is_refused_at_once(make: Callable[[], Method], message: str):
    with pytest.raises(TypeError, match=message):
        make()


# -------------------- features


def pooled(student: Tensor, teacher: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


# low: 3 x 6 x 4 and 3 x 8 x 3, each larger in one direction; mid: same size, other width; high: the teacher larger
@pytest.mark.parametrize(("layer", "size"), [("low", (6, 3)), ("mid", (4, 4)), ("high", (2, 3))])
def test_hint_compares_projected_and_pooled_maps(layer: str, size: tuple[int, int]):
    method = ready(Feature(pairs(layer)))
    projector = method.projectors[0]
    a, b = pooled(STUDENT.features[layer], TEACHER.features[layer], size)
    weight = projector.conv.weight
    assert weight.shape == (b.shape[1], a.shape[1], 1, 1)
    projected = torch.einsum("dc,bchw->bdhw", weight[:, :, 0, 0], a)
    assert terms(method) == near({f"hint {layer}": losses.hint(projected, b)})
    assert (projector.size, projector.channels) == (size, (a.shape[1], b.shape[1]))


def test_maps_of_the_same_size_are_passed_on_uncopied():
    projector = ready(Feature(pairs("mid"), "attention")).projectors[0]
    student, teacher = projector(STUDENT.features["mid"], TEACHER.features["mid"])
    assert student is STUDENT.features["mid"]
    assert teacher is TEACHER.features["mid"]


def test_a_larger_student_is_pooled_too():
    torch.manual_seed(0)
    method = Feature({"big": "small"})
    student = ModelOutput(STUDENT.logits, {"big": TEACHER.features["high"]})
    teacher = ModelOutput(TEACHER.logits, {"small": STUDENT.features["high"]})
    method.setup(student, teacher)
    a, b = pooled(student.features["big"], teacher.features["small"], (2, 3))
    expected = losses.hint(method.projectors[0].conv(a), b)
    assert method(student, teacher, LABELS)["hint big"].item() == pytest.approx(expected.item())


def test_vectors_are_features_too():
    method = ready(Feature(pairs("code")))
    weight = method.projectors[0].conv.weight[:, :, 0, 0]
    expected = F.mse_loss(STUDENT.features["code"] @ weight.T, TEACHER.features["code"])
    assert terms(method) == near({"hint code": expected})
    assert "code -> code: 6 x 1 x 1 -> 8 x 1 x 1, compared at 1 x 1" in repr(method)


def test_a_map_and_a_vector_meet_in_the_maps_mean():
    torch.manual_seed(0)
    method = Feature({"mid": "code"})
    method.setup(STUDENT, TEACHER)
    projected = method.projectors[0].conv(STUDENT.features["mid"].mean((2, 3), keepdim=True))
    expected = F.mse_loss(projected.flatten(1), TEACHER.features["code"])
    assert terms(method) == near({"hint mid": expected})


def test_attention_pools_and_learns_nothing():
    method = ready(Feature(pairs("low", "high"), "attention"))
    expected = {
        "attention low": losses.attention(*pooled(STUDENT.features["low"], TEACHER.features["low"], (6, 3))),
        "attention high": losses.attention(*pooled(STUDENT.features["high"], TEACHER.features["high"], (2, 3))),
    }
    assert terms(method) == near(expected)
    assert list(method.parameters()) == []
    assert "compared at 6 x 3" in repr(method)


@pytest.mark.parametrize("layers", [{"code": "code"}, {"low": "code"}])
def test_attention_of_maps_with_one_position_is_refused(layers: dict[str, str]):
    method = Feature(layers, "attention")
    pair = f"{next(iter(layers))} -> code"
    message = (
        f"^attention compares where two layers look, but {pair} would be compared at 1 x 1, and then its loss is "
        r"always 0\. Name layers with larger maps, or use loss='hint'\.$"
    )
    with pytest.raises(ValueError, match=message):
        method.setup(STUDENT, TEACHER)
    assert len(method.projectors) == 0
    ready(Feature({"code": "code"}, "hint"))
    narrow = ModelOutput(STUDENT.logits, {"row": torch.rand(4, 2, 1, 3), "column": torch.rand(4, 2, 3, 1)})
    Feature({"row": "row", "column": "column"}, "attention").setup(narrow, narrow)  # one line is enough


def test_vid_predicts_a_mean_and_a_variance_for_each_channel():
    method = ready(Feature(pairs("high"), "vid"))
    projector = method.projectors[0]
    a, b = pooled(STUDENT.features["high"], TEACHER.features["high"], (2, 3))
    expected = losses.vid(projector.mean(a), projector.raw_variance, b)
    assert terms(method) == near({"vid high": expected})
    assert [type(part).__name__ for part in projector.mean] == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d"]
    assert [tuple(p.shape) for p in projector.mean.parameters() if p.ndim == 4] == [
        (2, 2, 1, 1),
        (2, 2, 1, 1),
        (4, 2, 1, 1),
    ]


def test_the_variance_of_vid_is_a_parameter_that_starts_at_five_and_trains():
    method = ready(Feature(pairs("high"), "vid"))
    raw = dict(method.named_parameters())["projectors.0.raw_variance"]
    assert raw.shape == (4,)
    assert F.softplus(raw).tolist() == pytest.approx([5.0] * 4, rel=1e-5)
    before, first = raw.detach().clone(), terms(method)["vid high"]
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        method(STUDENT, TEACHER, LABELS)["vid high"].backward()
        optimizer.step()
    assert (raw != before).all()
    assert terms(method)["vid high"] < first


@pytest.mark.parametrize("kind", ["function", "module", "options"])
def test_any_function_of_two_maps_is_a_feature_loss(kind: str):
    loss = nn.L1Loss() if kind == "module" else F.l1_loss
    method = ready(Feature(pairs("mid"), loss, **({"reduction": "sum"} if kind == "options" else {})))
    projected = method.projectors[0].conv(STUDENT.features["mid"])
    gap = (projected - TEACHER.features["mid"]).abs()
    name = "L1Loss mid" if kind == "module" else "l1_loss mid"
    assert terms(method) == near({name: gap.sum() if kind == "options" else gap.mean()})


def test_a_loss_that_learns_is_trained_with_the_method():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            return F.mse_loss(self.scale * student, teacher)

    for method in (Feature(pairs("mid"), Scaled()), Relation(pairs("mid"), Scaled()), Logit(loss=Scaled())):
        assert [name for name in method.state_dict() if "scale" in name] == ["loss.scale"]


def test_several_layers_give_a_term_each_in_order():
    method = ready(Feature(pairs("high", "low", "mid")))
    assert list(terms(method)) == ["hint high", "hint low", "hint mid"]
    assert [projector.pair for projector in method.projectors] == ["high -> high", "low -> low", "mid -> mid"]
    alone = ready(Feature(pairs("high")))  # the same seed gives its projection the same weights
    assert terms(method)["hint high"] == terms(alone)["hint high"]


@pytest.mark.parametrize("loss", ["hint", "attention", "vid"])
def test_the_gradient_reaches_the_student_and_the_projection_but_not_the_teacher(loss: str):
    student = STUDENT.features["mid"].clone().requires_grad_()
    teacher = TEACHER.features["mid"].clone()
    method = ready(Feature(pairs("mid"), loss))
    before = [p.detach().clone() for p in method.parameters()]
    optimizer = torch.optim.SGD([student, *method.parameters()], lr=0.1)
    method(ModelOutput(STUDENT.logits, {"mid": student}), ModelOutput(TEACHER.logits, {"mid": teacher}), LABELS)[
        f"{loss} mid"
    ].backward()
    optimizer.step()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert all(not torch.equal(p, old) for p, old in zip(method.parameters(), before, strict=True))


def test_setup_reads_sizes_alone_and_a_call_refuses_other_numbers_of_samples():
    fewer = ModelOutput(STUDENT.logits[:2], {name: one[:2] for name, one in STUDENT.features.items()})
    method = Feature(pairs("mid"))
    method.setup(fewer, TEACHER)
    method(STUDENT, TEACHER, LABELS)
    with pytest.raises(ValueError, match="2 samples"):
        method(fewer, TEACHER, LABELS[:2])


def test_a_second_setup_keeps_what_was_learned():
    for method in (Feature(pairs("mid")), Relation(pairs("mid", "high"))):
        learned = ready(method).state_dict()
        learned = {name: value.clone() for name, value in learned.items()}
        projectors = list(method.projectors)
        torch.manual_seed(1)
        method.setup(STUDENT, TEACHER)
        assert list(method.projectors) == projectors
        assert all(torch.equal(value, learned[name]) for name, value in method.state_dict().items())


@pytest.mark.parametrize(
    "method", [Feature(pairs("mid")), Feature(pairs("mid"), "vid"), Relation(pairs("mid", "high"))]
)
def test_what_was_learned_for_other_widths_is_refused_and_kept(method: Method):
    learned = {name: value.clone() for name, value in ready(method).state_dict().items()}
    wider = ModelOutput(STUDENT.logits, STUDENT.features | {"mid": torch.rand(4, 9, 4, 4)})
    message = (
        r"^What this method has learned compares mid -> mid with 3 -> 5 channels; these networks have 9 -> 5\. "
        r"Take networks like those of its first run, or a new method\.$"
    )
    with pytest.raises(ValueError, match=message):
        method.setup(wider, TEACHER)
    deeper = ModelOutput(TEACHER.logits, TEACHER.features | {"mid": torch.rand(4, 6, 4, 4)})
    with pytest.raises(ValueError, match="these networks have 3 -> 6"):
        method.setup(STUDENT, deeper)
    method.setup(STUDENT, TEACHER)
    assert all(torch.equal(value, learned[name]) for name, value in method.state_dict().items())


def test_attention_learned_nothing_and_fits_other_networks():
    method = ready(Feature(pairs("mid"), "attention"))
    larger = {"mid": torch.rand(4, 9, 16, 16)}
    method.setup(ModelOutput(STUDENT.logits, larger), ModelOutput(TEACHER.logits, larger))
    assert method.projectors[0].size == (16, 16)


@pytest.mark.parametrize("loss", ["hint", "attention"])
def test_maps_of_another_size_than_the_examples_are_compared_at_their_own(loss: str):
    """Of a second fit on larger images, for instance: only the larger of two maps is pooled, to the smaller."""
    method = ready(Feature(pairs("mid"), loss))
    channels = STUDENT.features["mid"].shape[1], TEACHER.features["mid"].shape[1]
    for sizes in (((16, 16), (3, 5)), ((3, 5), (2, 16)), ((16, 16), (16, 16))):
        maps = [torch.rand(4, count, *size) for count, size in zip(channels, sizes, strict=True)]
        compared = method.projectors[0](*maps)
        assert {one.shape[2:] for one in compared} == {torch.Size(map(min, *sizes))}


def test_projections_made_without_gradient_learn_all_the_same():
    with torch.no_grad():
        method = ready(Feature(pairs("mid")) + Feature(pairs("mid"), "vid") + Relation(pairs("mid", "high")))
    assert all(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("loss", ["hint", "attention", "vid"])
@pytest.mark.parametrize("shape", [(4,), (4, 2, 2, 2, 2, 2)])
def test_what_is_no_map_token_or_vector_is_refused(loss: str, shape: tuple[int, ...]):
    odd = ModelOutput(STUDENT.logits, {"mid": torch.rand(shape)})
    message = f"^In mid -> mid a layer gives {re.escape(str(shape))}; expected maps .* Name another layer"
    with pytest.raises(ValueError, match=message):
        Feature(pairs("mid"), loss).setup(odd, TEACHER)
    with pytest.raises(ValueError, match=message):
        Feature(pairs("mid"), loss).setup(STUDENT, replace(TEACHER, features=odd.features))


@pytest.mark.parametrize("loss", ["hint", "attention", "vid"])
def test_tokens_whose_positions_do_not_correspond_are_refused(loss: str):
    with pytest.raises(ValueError, match=r"^In sequence -> sequence 7 tokens of one network are compared"):
        Feature(pairs("sequence"), loss).setup(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"In mid -> sequence 7 tokens .* a method without positions"):
        Feature({"mid": "sequence"}, loss).setup(STUDENT, TEACHER)


def test_a_layer_that_changes_its_kind_after_setup_is_refused():
    method = ready(Feature(pairs("mid")))
    for student, teacher in (
        (torch.rand(4, 3, 2), torch.rand(4, 5, 2, 2)),
        (torch.rand(4, 3, 2, 2), torch.rand(4, 5, 2)),
    ):
        with pytest.raises(ValueError, match=r"In mid -> mid a layer gives \(4, \d, 2\)"):
            method(ModelOutput(STUDENT.logits, {"mid": student}), ModelOutput(TEACHER.logits, {"mid": teacher}), LABELS)
    relation = ready(Relation(pairs("mid", "high")))
    odd = {"mid": torch.rand(4, 5, 2), "high": torch.rand(4, 5, 2)}
    with pytest.raises(ValueError, match=r"In mid a layer gives \(4, 5, 2\)"):
        relation(ModelOutput(STUDENT.logits, odd), TEACHER, LABELS)
    with pytest.raises(ValueError, match=r"In the teacher a layer gives \(4, 5, 2\)"):
        relation(STUDENT, ModelOutput(TEACHER.logits, odd), LABELS)


@pytest.mark.parametrize("method", [Feature(pairs("mid")), Relation(pairs("mid", "high"))])
def test_a_method_that_was_never_set_up_is_refused(method: Method):
    message = (
        r"^The method does not know the sizes of its layers yet\. Call method\.setup\(student_output, "
        r"teacher_output\) once before the first step, as train\.fit does\.$"
    )
    with pytest.raises(RuntimeError, match=message):
        method(STUDENT, TEACHER, LABELS)


@pytest.mark.parametrize("layers", ["layer3", {}, None, ["layer3"], [("layer3", "layer3")]])
@pytest.mark.parametrize("kind", [Feature, Relation])
def test_layers_is_a_mapping_that_is_not_empty(kind: type[Method], layers: object):
    message = r"^layers maps student layers to teacher layers, as \{'layer3': 'layer3'\}; got "
    with pytest.raises(ValueError, match=message + re.escape(f"{layers!r}.") + "$"):
        kind(layers)


def test_the_methods_own_a_copy_of_the_mapping():
    layers = pairs("mid", "high")
    methods = [Feature(layers), Relation(layers)]
    layers.clear()
    assert all(method.student_layers == ("mid", "high") for method in methods)


# -------------------- relations


def test_fsp_relates_neighbours_and_projects_only_where_widths_differ():
    method = ready(Relation(pairs("low", "mid", "high")))
    assert method.loss == "fsp"
    assert [type(projector.conv).__name__ for projector in method.projectors] == ["Identity", "Conv2d", "Conv2d"]
    mid, high = method.projectors[1].conv, method.projectors[2].conv
    assert (mid.weight.shape, high.weight.shape) == ((5, 3, 1, 1), (4, 2, 1, 1))
    assert mid.bias is None
    student = [STUDENT.features["low"], mid(STUDENT.features["mid"]), high(STUDENT.features["high"])]
    teacher = [TEACHER.features[name] for name in ("low", "mid", "high")]
    expected = {
        "fsp low-mid": losses.fsp(student[:2], teacher[:2]),
        "fsp mid-high": losses.fsp(student[1:], teacher[1:]),
    }
    assert terms(method) == near(expected)
    assert list(terms(method)) == ["fsp low-mid", "fsp mid-high"]


def test_fsp_trains_its_projections():
    method = ready(Relation(pairs("mid", "high")))
    optimizer = torch.optim.Adam(method.parameters(), lr=0.05)
    first = terms(method)["fsp mid-high"]
    for _ in range(5):
        optimizer.zero_grad()
        method(STUDENT, TEACHER, LABELS)["fsp mid-high"].backward()
        assert all(p.grad.abs().sum() > 0 for p in method.parameters())
        optimizer.step()
    assert terms(method)["fsp mid-high"] < first


def test_fsp_takes_a_vector_for_a_map_of_one_position():
    method = ready(Relation(pairs("mid", "code")))
    mid, code = method.projectors
    student = (mid(STUDENT.features["mid"]), code(STUDENT.features["code"][:, :, None, None]))
    teacher = (TEACHER.features["mid"], TEACHER.features["code"][:, :, None, None])
    assert terms(method) == near({"fsp mid-code": losses.fsp(student, teacher)})


@pytest.mark.parametrize("layers", [{"sequence": "mid", "mid": "mid"}, {"mid": "mid", "low": "sequence"}])
def test_fsp_refuses_what_is_neither_map_nor_vector(layers: dict[str, str]):
    method = Relation(layers)
    pair = next(f"{a} -> {b}" for a, b in layers.items() if "sequence" in (a, b))
    with pytest.raises(ValueError, match=rf"^In {pair} a layer gives \(4, \d, 6\)"):
        method.setup(STUDENT, TEACHER)
    assert len(method.projectors) == 0


@pytest.mark.parametrize("loss", ["layer_correlation", "layer_information"])
def test_relations_between_layers_give_one_term_and_need_no_setup(loss: str):
    layers = {"low": "high", "high": "code", "code": "low", "sequence": "mid"}
    method = Relation(layers, loss)
    student = [STUDENT.features[name] for name in layers]
    teacher = [TEACHER.features[name] for name in layers.values()]
    expected = getattr(losses, loss)(student, teacher)
    assert expected > 1e-4
    assert terms(method) == near({loss: expected})
    assert list(ready(method).parameters()) == []


@pytest.mark.parametrize("loss", ["fsp", "layer_correlation", "layer_information"])
def test_relations_between_layers_need_two_layers(loss: str):
    message = rf"^{loss} relates the layers of a network to each other: name at least two; got \{{'low': 'low'\}}\.$"
    with pytest.raises(ValueError, match=message):
        Relation(pairs("low"), loss)
    Relation(pairs("low", "mid"), loss)


def test_rkd_is_distance_plus_twice_the_angle_for_each_pair_of_layers():
    method = Relation({"low": "mid", "code": "code"}, "rkd")
    expected = {}
    for name, teacher_name in (("low", "mid"), ("code", "code")):
        a, b = STUDENT.features[name].flatten(1), TEACHER.features[teacher_name].flatten(1)
        expected[f"rkd_distance {name}"] = losses.rkd_distance(a, b)
        expected[f"rkd_angle {name}"] = 2 * losses.rkd_angle(a, b)
    assert terms(method) == near(expected)
    assert list(ready(method).parameters()) == []


@pytest.mark.parametrize("loss", ["rkd_distance", "rkd_angle", "similarity", "correlation_congruence"])
def test_relations_between_samples(loss: str):
    layers = {"low": "mid", "sequence": "code"}
    method, function = Relation(layers, loss), getattr(losses, loss)
    expected = {
        f"{loss} {a}": function(STUDENT.features[a].flatten(1), TEACHER.features[b].flatten(1))
        for a, b in layers.items()
    }
    assert all(value > 1e-6 for value in expected.values())
    assert terms(method) == near(expected)


def test_options_reach_the_loss():
    expected = losses.correlation_congruence(STUDENT.features["code"], TEACHER.features["code"], gamma=1.5, order=3)
    assert terms(Relation(pairs("code"), "correlation_congruence", gamma=1.5, order=3)) == near(
        {"correlation_congruence code": expected}
    )


def test_any_function_of_two_outputs_is_a_relation():
    def gap(student: Tensor, teacher: Tensor, power: int = 1) -> Tensor:
        assert student.shape == (4, 72)  # flattened
        assert teacher.shape == (4, 80)
        return (student.mean() - 3 * teacher.mean()).abs() ** power

    for options in ({}, {"power": 2}):
        expected = gap(STUDENT.features["low"].flatten(1), TEACHER.features["mid"].flatten(1), **options)
        assert terms(Relation({"low": "mid"}, gap, **options)) == near({"gap low": expected})


def test_a_function_named_like_a_relation_is_still_called_for_each_pair():
    seen = []

    def rkd(student: Tensor, teacher: Tensor) -> Tensor:
        seen.append((student.shape, teacher.shape))
        return torch.tensor(1.0)

    assert terms(Relation(pairs("low", "code"), rkd)) == {"rkd low": 1.0, "rkd code": 1.0}
    assert seen == [((4, 72), (4, 72)), ((4, 6), (4, 8))]


# -------------------- custom losses


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(images)).mean((2, 3)))


class SameNorm(Method):
    """Ten lines: the student's logits should be as large as the teacher's, and its maps as bright."""

    layers = {"relu": "relu"}
    trains_logits = True

    def forward(self, student: ModelOutput, teacher: ModelOutput, labels: Tensor) -> dict[str, Tensor]:
        norm = F.mse_loss(student.logits.norm(dim=1), teacher.logits.norm(dim=1))
        light = F.mse_loss(student.features["relu"].mean((1, 2, 3)), teacher.features["relu"].mean((1, 2, 3)))
        return {"norm": norm, "light": light}


def as_far(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).abs().pow(1.5).mean()


@pytest.mark.parametrize(
    "make",
    [SameNorm, lambda: Feature({"relu": "relu"}, as_far), lambda: 2 * Relation({"fc": "fc"}, as_far)],
    ids=["method", "feature", "relation"],
)
def test_a_custom_loss_trains_a_student(make: Callable[[], Method]):
    torch.manual_seed(0)
    student, teacher, method = Net(4), Net(6), make()
    images, labels = torch.randn(12, 1, 5, 5), torch.arange(12) % 3
    with (
        FeatureExtractor(student, method.student_layers) as run_student,
        FeatureExtractor(teacher, method.teacher_layers) as run_teacher,
    ):
        with torch.no_grad():
            output = run_teacher(images)
        method.setup(run_student(images), output)
        optimizer = torch.optim.Adam([*student.parameters(), *method.parameters()], lr=0.02)
        history = []
        for _ in range(15):
            values = method(run_student(images), output, labels)
            optimizer.zero_grad()
            sum(values.values()).backward()
            optimizer.step()
            history.append({name: value.item() for name, value in values.items()})
    assert all(history[-1][name] < 0.9 * value for name, value in history[0].items())


@pytest.mark.parametrize(
    ("method", "projector"),
    [
        (Feature(pairs("mid")), ConvProjector),
        (Feature(pairs("mid"), "attention"), AttentionProjector),
        (Feature(pairs("mid"), "vid"), GaussianProjector),
        (Relation(pairs("mid", "high")), WidthProjector),
    ],
)
def test_a_projector_is_shown_with_its_class(method: Method, projector: type[nn.Module]):
    assert type(ready(method).projectors[0]) is projector
    assert f"(0): {projector.__name__}(" in repr(method)


# -------------------- methods by the name of their loss


@pytest.mark.parametrize("name", LOSSES)
def test_create_makes_the_method_of_every_loss_with_the_settings_of_the_table(name: str):
    spec = LOSSES[name]
    kind = {Family.LOGIT: Logit, Family.FEATURE: Feature, Family.RELATION: Relation}[spec.family]
    if kind is Logit:
        method, expected = create(name), Logit(spec.temperature, spec.alpha, name, **spec.options)
        assert (method.temperature, method.alpha, method.options) == (spec.temperature, spec.alpha, dict(spec.options))
    else:
        method, expected = create(name, pairs("mid", "high")), kind(pairs("mid", "high"), name)
        assert method.student_layers == ("mid", "high")
    assert type(method) is kind
    assert repr(method) == repr(expected)
    assert terms(ready(method)) == terms(ready(expected))


def test_create_lets_temperature_alpha_and_options_be_given():
    method = create("dkd", temperature=2.0, alpha=0.25)
    assert terms(method) == near(
        {"hard": 0.25 * hard(), "soft": 0.75 * losses.dkd(STUDENT.logits, TEACHER.logits, LABELS, 2.0, 1.0, 4.0)}
    )
    assert create("dkd", beta=1.5).options == {"beta": 1.5}
    assert (create("kd", temperature=9).alpha, create("kd", alpha=0).temperature) == (0.1, 4.0)
    assert create("kd", alpha=0).alpha == 0  # a zero is a value, not a gap
    assert create("correlation_congruence", pairs("mid"), gamma=1.5).options == {"gamma": 1.5}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: create("rkdd", pairs("mid")), ValueError, "no loss named 'rkdd'. Did you mean 'rkd'"),
        (lambda: create("hint"), ValueError, "^layers maps student layers to teacher layers"),
        (lambda: create("fsp", pairs("mid")), ValueError, "^fsp relates .* name at least two"),
        (lambda: create("kd", temperature=0), ValueError, "^temperature is a positive number"),
        (lambda: create("kd", alpha=2), ValueError, "^alpha is the weight of the hard-label loss"),
        (lambda: create("kd", beta=1), TypeError, "^kd takes no option 'beta'"),
        (lambda: create("kd", pairs("mid")), ValueError, "^kd compares logits and takes no layers"),
        (lambda: create("hint", pairs("mid"), temperature=5), ValueError, "^temperature .* hint .*weight"),
        (lambda: create("rkd", pairs("mid"), alpha=0), ValueError, "^temperature and alpha .* rkd .*weight"),
    ],
)
def test_create_refuses_what_the_methods_refuse(call: Callable[[], Method], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()


class Sequences(nn.Module):
    """One recurrent layer over B x N numbers, which has samples or positions first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.batch_first = batch_first
        self.embed, self.rnn, self.head = nn.Embedding(9, 4), nn.GRU(4, 6, batch_first=batch_first), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        found, _ = self.rnn(x if self.batch_first else x.transpose(0, 1))
        return self.head(found[:, -1] if self.batch_first else found[-1])


@pytest.mark.parametrize("loss", ["rkd", "similarity"])
def test_relations_are_those_of_samples_also_where_positions_come_first(loss: str) -> None:
    x, method = torch.randint(0, 9, (5, 7), generator=torch.Generator().manual_seed(0)), Relation({"a": "a"}, loss)
    teacher = ModelOutput(torch.zeros(5, 3), {"a": lin((5, 7, 6), 0.37, 0.2)})
    found = []
    for batch_first in (True, False):
        with FeatureExtractor(Sequences(batch_first), ["rnn[0]"]) as extractor:
            student = ModelOutput(torch.zeros(5, 3), {"a": extractor(x).features["rnn[0]"]})
        found.append(torch.stack(list(method(student, teacher, None).values())))
    torch.testing.assert_close(found[0], found[1])
