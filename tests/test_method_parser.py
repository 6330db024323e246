"""Methods from text: every loss by its name with the table's settings, sums and weights, and what is refused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from kdlib import losses, method_parser, models
from kdlib.hooks import FeatureExtractor
from kdlib.loss_table import LOSSES
from kdlib.method_parser import parse
from kdlib.methods import Feature, HardLabels, Logit, Method, Relation, WeightedSum

LABELS = torch.tensor([0, 3, 1, 2, 0])
LAST = {"layer3": "layer3"}
LATE = {"layer2": "layer2", "layer3": "layer3"}
ALL = {"layer1": "layer1", "layer2": "layer2", "layer3": "layer3"}
EMBEDDING = {"avgpool": "avgpool"}

# What each name stands for, written out: not read from the table that is tested.
EXPECTED: dict[str, Callable[[], Method]] = {
    "hard": lambda: HardLabels(),
    "label_smoothing": lambda: HardLabels(0.2),
    "logit": lambda: Logit(4.0, 0.1),
    "kd": lambda: Logit(4.0, 0.1),
    "dkd": lambda: Logit(4.0, 0.5, "dkd", beta=4.0),
    "dist": lambda: Logit(2.0, 0.3, "dist"),
    "standardized_kd": lambda: Logit(2.0, 0.0, "standardized_kd"),
    "feature": lambda: HardLabels() + 10.0 * Feature(LAST),
    "hint": lambda: HardLabels() + 10.0 * Feature(LAST),
    "attention": lambda: HardLabels() + 300.0 * Feature(ALL, "attention"),
    "vid": lambda: HardLabels() + 1.0 * Feature(LATE, "vid"),
    "relation": lambda: HardLabels() + 10.0 * Relation(ALL),
    "fsp": lambda: HardLabels() + 10.0 * Relation(ALL),
    "layer_correlation": lambda: HardLabels() + 3.0 * Relation(ALL, "layer_correlation"),
    "layer_information": lambda: HardLabels() + 0.3 * Relation(ALL, "layer_information"),
    "rkd": lambda: HardLabels() + 10.0 * Relation(EMBEDDING, "rkd"),
    "rkd_distance": lambda: HardLabels() + 10.0 * Relation(EMBEDDING, "rkd_distance"),
    "rkd_angle": lambda: HardLabels() + 20.0 * Relation(EMBEDDING, "rkd_angle"),
    "similarity": lambda: HardLabels() + 3000.0 * Relation(LAST, "similarity"),
    "correlation_congruence": lambda: HardLabels() + 100.0 * Relation(EMBEDDING, "correlation_congruence"),
}


@pytest.fixture(scope="module")
def student() -> nn.Module:
    return models.build("resnet8", num_classes=4, in_channels=1, seed=0).eval()


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return models.build("resnet20", num_classes=4, in_channels=1, seed=1).eval()


@pytest.fixture(scope="module")
def terms(student: nn.Module, teacher: nn.Module) -> Callable[[Method], dict[str, float]]:
    """The terms of a method after its setup, with projections from a fixed seed, on a few images."""
    images = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    layers = [*ALL, *EMBEDDING]
    with torch.no_grad(), FeatureExtractor(student, layers) as s, FeatureExtractor(teacher, layers) as t:
        outputs = s(images), t(images)

    def compute(method: Method) -> dict[str, float]:
        torch.manual_seed(0)
        method.setup(*outputs)
        with torch.no_grad():
            return {name: term.item() for name, term in method(*outputs, LABELS).items()}

    return compute


def test_every_name_is_tested_here():
    assert set(method_parser.NAMES) == set(EXPECTED)
    assert len(method_parser.NAMES) == len(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_name_gives_the_loss_with_its_weight_layers_temperature_and_alpha(
    name: str, student: nn.Module, teacher: nn.Module, terms: Callable[[Method], dict[str, float]]
):
    method, expected = parse(name, student, teacher), EXPECTED[name]()
    assert repr(method) == repr(expected)  # with the layers, temperature, alpha and weights
    assert repr(parse(name.replace("_", "-"), student, teacher)) == repr(expected)
    assert (method.student_layers, method.teacher_layers) == (expected.student_layers, expected.teacher_layers)
    assert terms(method) == terms(expected)


def test_every_loss_of_the_library_can_be_reached(student: nn.Module, teacher: nn.Module):
    """A function is a loss if it compares a student with something: its parameters say so."""
    functions = {name: getattr(losses, name) for name in losses.__all__}
    compare = re.compile("student|teacher")
    is_loss = {n: f for n, f in functions.items() if any(map(compare.match, inspect.signature(f).parameters))}
    assert len(is_loss) == 15  # and not fsp_matrix, linear_cka, soften, ...
    assert is_loss.keys() <= set(method_parser.NAMES)
    for name, function in is_loss.items():
        assert isinstance(parse(name, student, teacher), Method)
        if name in LOSSES:
            assert [term[2] for term in LOSSES[name].terms] == [function]


# -------------------- sums and weights


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("logit+rkd", lambda: Logit(4.0, 0.1) + 10.0 * Relation(EMBEDDING, "rkd")),
        ("kd+10*hint+fsp", lambda: Logit(4.0, 0.1) + 10.0 * Feature(LAST) + 10.0 * Relation(ALL)),
        ("hard+100*similarity", lambda: HardLabels() + 100.0 * Relation(LAST, "similarity")),
        ("100*similarity", lambda: HardLabels() + 100.0 * Relation(LAST, "similarity")),
        ("similarity + hard", lambda: 3000.0 * Relation(LAST, "similarity") + HardLabels()),
        ("label-smoothing+feature", lambda: HardLabels(0.2) + 10.0 * Feature(LAST)),
        ("0.5*dkd + 2*hard", lambda: 0.5 * Logit(4.0, 0.5, "dkd", beta=4.0) + 2.0 * HardLabels()),
        ("hard+1e+3*similarity", lambda: HardLabels() + 1000.0 * Relation(LAST, "similarity")),
        ("1E+1*hint+fsp", lambda: HardLabels() + 10.0 * Feature(LAST) + 10.0 * Relation(ALL)),
        (" 1e-2 *  hint ", lambda: HardLabels() + 0.01 * Feature(LAST)),
        ("0*hint+vid", lambda: HardLabels() + 0.0 * Feature(LAST) + 1.0 * Feature(LATE, "vid")),
        ("hint+attention", lambda: HardLabels() + 10.0 * Feature(LAST) + 300.0 * Feature(ALL, "attention")),
        ("1*hint", lambda: HardLabels() + 1.0 * Feature(LAST)),  # a weight of 1 is a weight, too
        ("1*kd", lambda: Logit(4.0, 0.1)),
        ("hard+hard", lambda: HardLabels() + HardLabels()),
    ],
)
def test_sums_and_weights(
    text: str,
    expected: Callable[[], Method],
    student: nn.Module,
    teacher: nn.Module,
    terms: Callable[[Method], dict[str, float]],
):
    method = parse(text, student, teacher)
    assert repr(method) == repr(expected())
    assert terms(method) == terms(expected())


def test_labels_are_added_only_where_no_term_sees_them(student: nn.Module, teacher: nn.Module):
    for name in method_parser.NAMES:
        method = parse(name, student, teacher)
        assert method.trains_logits
        assert method.needs_teacher is (name not in ("hard", "label_smoothing"))
        parts = list(method.parts) if isinstance(method, WeightedSum) else [method]
        assert len(parts) == 1 + (name in LOSSES and LOSSES[name].family != "logit" or name in ("feature", "relation"))
        for text in (f"hard+{name}", f"{name}+kd", f"label_smoothing+{name}"):
            assert len(parse(text, student, teacher).parts) == 2


# -------------------- layers, temperature and alpha


def test_given_layers_go_to_every_feature_and_relation_loss(student: nn.Module, teacher: nn.Module):
    layers = ["layer1:layer2", "layer3:layer3"]
    pairs = {"layer1": "layer2", "layer3": "layer3"}
    method = parse("logit+2*attention+fsp", student, teacher, layers=layers)
    expected = Logit(4.0, 0.1) + 2.0 * Feature(pairs, "attention") + 10.0 * Relation(pairs)
    assert repr(method) == repr(expected)
    assert (method.student_layers, method.teacher_layers) == (("layer1", "layer3"), ("layer2", "layer3"))


def test_networks_of_different_depth_are_paired_from_the_end():
    with torch.device("meta"):
        student, teacher = (models.build(name, num_classes=3) for name in ("resnet8", "resnet18"))
    feature = parse("feature", student, teacher)
    assert (feature.student_layers, feature.teacher_layers) == (("layer3",), ("layer4",))
    relation = parse("hard + 3*relation", student, teacher)
    assert relation.weights == [1.0, 3.0]
    assert relation.student_layers == ("layer1", "layer2", "layer3")
    assert relation.teacher_layers == ("layer2", "layer3", "layer4")


def test_networks_without_known_stages_need_layers_only_where_layers_are_compared(teacher: nn.Module):
    student = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))
    for name in ("hard", "kd", "dkd"):
        parse(name, student, teacher)
    with pytest.raises(ValueError, match="stages of a Sequential are not known. Name two layers"):
        parse("hint", student, teacher)
    assert parse("hint", student, teacher, layers=["1:fc"]).student_layers == ("1",)


def test_temperature_and_alpha_go_to_every_logit_loss(student: nn.Module, teacher: nn.Module):
    method = parse("kd+dkd+hint", student, teacher, temperature=3.0, alpha=0.25)
    expected = Logit(3.0, 0.25) + Logit(3.0, 0.25, "dkd", beta=4.0) + 10.0 * Feature(LAST)
    assert repr(method) == repr(expected)
    for name in ("kd", "dkd", "dist", "standardized_kd"):
        one = parse(name, student, teacher, temperature=7.0)
        assert (one.temperature, one.alpha) == (7.0, LOSSES[name].alpha)
        one = parse(name, student, teacher, alpha=0)  # a zero is a value
        assert (one.temperature, one.alpha) == (LOSSES[name].temperature, 0)


# -------------------- what is refused


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("logti", {}, "There is no method named 'logti'. Did you mean 'logit'"),
        ("similarty", {}, "There is no method named 'similarty'. Did you mean 'similarity'"),
        ("hard+100*similarty", {}, "There is no method named 'similarty'. Did you mean 'similarity'"),
        ("layer-corelation", {}, "There is no method named 'layer-corelation'. Did you mean 'layer_correlation'"),
        ("crd", {}, "There is no method named 'crd'. Did you mean"),
        ("", {}, "There is no method named ''. Known: hard, label_smoothing, logit"),
        ("hint+", {}, "There is no method named ''"),
        ("+hint", {}, "There is no method named ''"),
        ("50*", {}, "There is no method named '50*'"),
        ("*hint", {}, "There is no method named '*hint'. Did you mean 'hint'"),
        ("2*3*hint", {}, "There is no method named '2*3*hint'. Did you mean 'hint'"),
        ("hint*50", {}, "There is no method named '50'"),
        ("fsp_matrix", {}, "There is no method named 'fsp_matrix'"),  # a function of losses, but no loss
        ("x*hint", {}, "The weight 'x' in --method 'x*hint' is no number; write 50*hint."),
        ("hard+1,5*hint", {}, "The weight '1,5' in --method 'hard+1,5*hint' is no number"),
        ("-1*hint", {}, "A method's weight is a number of at least 0; got -1.0."),
        ("nan*hint", {}, "A method's weight is a number of at least 0; got nan."),
        ("inf*hint", {}, "A method's weight is a number of at least 0; got inf."),
        ("hint", {"layers": ["layer3"]}, "--layers takes pairs STUDENT:TEACHER, as layer3:layer3"),
        ("hint", {"layers": ["layer3:"]}, "--layers takes pairs STUDENT:TEACHER"),
        ("hint", {"layers": [":layer3"]}, "--layers takes pairs STUDENT:TEACHER"),
        ("hint", {"layers": [""]}, "--layers takes pairs STUDENT:TEACHER"),
        ("hint", {"layers": ["a:b", "a:c"]}, "each student layer once; got a:b, a:c."),
        ("fsp", {"layers": ["layer1:layer1"]}, "fsp relates the layers of a network to each other: name at least two"),
        ("logit", {"layers": ["a:b"]}, "--layers is for feature and relation losses, and --method is logit"),
        ("hard+kd", {"layers": ["a:b"]}, "--layers is for feature and relation losses"),
        ("label-smoothing", {"layers": ["a:b"]}, "--layers is for feature and relation losses"),
        ("hint", {"temperature": 2.0}, "--temperature and --alpha are for logit losses, and --method is hint"),
        ("hard", {"alpha": 0.0}, "--temperature and --alpha are for logit losses, and --method is hard"),
        ("label_smoothing+fsp", {"alpha": 0.5}, "--temperature and --alpha are for logit losses"),
        ("kd", {"temperature": 0.0}, "temperature is a positive number"),
        ("dkd+hint", {"alpha": 1.5}, "alpha is the weight of the hard-label loss and lies in [0, 1]"),
    ],
)
def test_what_is_refused_and_what_the_message_says(
    text: str, options: dict, message: str, student: nn.Module, teacher: nn.Module
):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse(text, student, teacher, **options)
    said = str(caught.value)
    assert said.endswith(".")
    assert "\n" not in said


def test_an_unknown_name_lists_every_known_one(student: nn.Module, teacher: nn.Module):
    with pytest.raises(ValueError, match="no method named") as caught:
        parse("contrastive", student, teacher)
    known = str(caught.value).partition("Known: ")[2].rstrip(".").split(", ")
    assert known == list(method_parser.NAMES)
