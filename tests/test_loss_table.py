"""The table of losses: rows that fit their functions, what it finds and refuses, and the settings of the study."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import losses, method_parser
from kdlib.loss_table import LOSSES, Family, custom, find
from kdlib.projectors import ConvProjector

OLDER = Path(__file__).parents[1] / "data" / "results" / "older-search"
CHOSEN = OLDER / "choose-resnet8-resnet20-fashion-10000.json"


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_fits_its_functions(name: str):
    spec = LOSSES[name]
    for term, weight, function in spec.terms:
        assert weight > 0
        assert term == ("soft" if spec.family is Family.LOGIT else function.__name__)
        parameters = inspect.signature(function).parameters
        assert spec.needs_labels is ("labels" in parameters)
        assert set(spec.options) <= set(parameters)
        if spec.family is Family.LOGIT:
            assert "temperature" in parameters
    assert len({function for *_, function in spec.terms}) == len(spec.terms)
    assert (spec.pairing is None) is (spec.family is Family.LOGIT)
    assert spec.layers in ("last", "late", "all", "embedding")
    assert spec.temperature > 0
    assert 0 <= spec.alpha <= 1
    if spec.between_layers:
        assert spec.family is Family.RELATION
        assert spec.layers == "all"


def test_which_losses_relate_layers_and_which_need_labels():
    assert {n for n, spec in LOSSES.items() if spec.between_layers} == {"fsp", "layer_correlation", "layer_information"}
    assert {name for name, spec in LOSSES.items() if spec.needs_labels} == {"dkd"}


def test_rkd_is_its_two_parts_with_the_shares_of_the_paper():
    parts = [(weight, function) for _, weight, function in LOSSES["rkd"].terms]
    assert parts == [(1.0, losses.rkd_distance), (2.0, losses.rkd_angle)]
    for name, (share, function) in zip(("rkd_distance", "rkd_angle"), parts, strict=True):
        assert LOSSES[name].terms == ((name, 1.0, function),)
        assert LOSSES[name].weight == share * LOSSES["rkd"].weight
        assert LOSSES[name].layers == LOSSES["rkd"].layers


# kd keeps the temperature of the lessons, 4, which the study found as good as its 16.
STUDY_NAMES = {"standardized_kd": "standardized"}
NOT_IN_THE_STUDY = {"rkd_distance", "rkd_angle", "correlation_congruence"}


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - NOT_IN_THE_STUDY))
def test_the_defaults_are_those_that_the_study_chose(name: str):
    chosen = json.loads(CHOSEN.read_text(encoding="utf-8"))["chosen"]
    text = chosen[STUDY_NAMES.get(name, name.replace("_", "-"))]["settings"]
    settings = dict(part.split(" ") for part in text.split(", "))
    spec = LOSSES[name]
    defaults = {"weight": spec.weight, "layers": spec.layers, "temperature": spec.temperature, "alpha": spec.alpha}
    compared = (settings.keys() & {*defaults, *spec.options}) - ({"temperature"} if name == "kd" else set())
    assert len(compared) >= (1 if name == "kd" else 2)
    for setting in compared:
        value = {**defaults, **spec.options}[setting]
        assert settings[setting] == (value if setting == "layers" else format(value, "g")), setting
    smoothing = chosen["label-smoothing"]["settings"].rpartition(" ")[2]
    assert float(smoothing) == method_parser.SMOOTHING


def test_find_gives_the_row_of_a_family_and_names_near_matches():
    assert find("hint") is LOSSES["hint"] is find("hint", Family.FEATURE)
    with pytest.raises(ValueError, match="^There is no loss named 'hnt'. Did you mean 'hint'.*Known: kd, dkd, "):
        find("hnt")
    with pytest.raises(ValueError, match=r"^There is no loss named 'hnt'\. .*Known: kd, dkd, dist, standardized_kd\.$"):
        find("hnt", Family.LOGIT)
    for name, family, call in (
        ("hint", Family.LOGIT, r"Feature\(layers, 'hint'\)"),
        ("rkd", Family.FEATURE, r"Relation\(layers, 'rkd'\)"),
        ("kd", Family.RELATION, r"Logit\(loss='kd'\)"),
    ):
        with pytest.raises(ValueError, match=f"^'{name}' is a loss of the family .*, and .* one of {family}: {call}.$"):
            find(name, family)


def test_options_are_bound_to_every_term_and_unknown_ones_are_refused():
    ((name, weight, function),) = LOSSES["dkd"].with_options("dkd", {"beta": 2.0})
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 0])
    assert (name, weight) == ("soft", 1.0)
    assert function(logits, 2 * logits, labels) == losses.dkd(logits, 2 * logits, labels, beta=2.0)
    with pytest.raises(TypeError, match="^dkd takes no option 'gamma'. Its options: temperature, beta.$"):
        LOSSES["dkd"].with_options("dkd", {"gamma": 2.0})
    with pytest.raises(TypeError, match="^rkd takes no option 'beta'. Its options: none.$"):
        LOSSES["rkd"].with_options("rkd", {"beta": 2.0})
    assert [term for term, *_ in LOSSES["rkd"].with_options("rkd", {})] == ["rkd_distance", "rkd_angle"]


def test_a_row_for_a_function_that_the_table_does_not_have():
    def gap(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).abs().mean()

    feature, relation, logit = (custom(gap, family) for family in (Family.FEATURE, Family.RELATION, Family.LOGIT))
    assert (feature.terms, feature.projector) == ((("gap", 1.0, gap),), ConvProjector)
    assert (relation.terms, relation.projector, relation.between_layers) == ((("gap", 1.0, gap),), None, False)
    assert logit.terms == (("soft", 1.0, gap),)
    assert custom(nn.L1Loss(), Family.FEATURE).terms[0][0] == "L1Loss"
    assert custom(F.l1_loss, Family.RELATION).terms[0][0] == "l1_loss"
    maps = torch.randn(3, 2, 4, 4)
    (((suffix, inputs),)) = relation.pairing(nn.ModuleList(), ["a"], [maps], [2 * maps])
    assert suffix == " a"
    assert [tuple(x.shape) for x in inputs] == [(3, 32), (3, 32)]
