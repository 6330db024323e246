"""Reading intermediate layers: the right values, with their gradients, and every way in which they could be wrong."""

from __future__ import annotations

import dataclasses
import re
import shutil
import warnings
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from kdlib import models
from kdlib.hooks import FeatureExtractor, ModelOutput


class Block(nn.Module):
    """A convolution that runs twice, with a ReLU between."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.relu(self.conv(x)))


class Net(nn.Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)
        self.block = Block(inplace=False)
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block(self.relu(self.stem(images))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 1, 6, 4, generator=torch.Generator().manual_seed(1))


def count_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_values_are_those_of_a_forward_pass_by_hand(net: Net, images: torch.Tensor):
    stem = net.stem(images)
    relu = net.relu(stem)
    block = net.block(relu)
    with FeatureExtractor(net, ["block", "stem", "relu", "fc"]) as extractor:
        output = extractor(images)
    assert list(output.features) == ["block", "stem", "relu", "fc"]  # in the order in which they were named
    for name, expected in {"stem": stem, "relu": relu, "block": block, "fc": output.logits}.items():
        assert torch.equal(output.features[name], expected), name
    assert torch.equal(output.logits, net(images))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("gradient", [True, False])
def test_a_compiled_model_gives_the_same_output_and_gradient(net: Net, images: torch.Tensor, gradient: bool):
    with torch.set_grad_enabled(gradient), FeatureExtractor(net, ["stem", "block"]) as plain:
        wanted = plain(images)
    with torch.set_grad_enabled(gradient), FeatureExtractor(net, ["stem", "block"], compile=True) as extractor:
        output = extractor(images)
    torch.testing.assert_close(output.logits, wanted.logits)
    for name in ("stem", "block"):
        torch.testing.assert_close(output.features[name], wanted.features[name])
    if gradient:
        compiled, expected = (
            torch.autograd.grad(one.features["block"].square().sum(), net.stem.weight) for one in (output, wanted)
        )
        torch.testing.assert_close(compiled, expected)


def test_given_weights_are_used_in_place_of_the_models(net: Net, images: torch.Tensor):
    other = {"fc.weight": torch.zeros_like(net.fc.weight)}
    with FeatureExtractor(net, ["fc"], weights=other) as extractor:
        output = extractor(images)
    assert torch.equal(output.logits, net.fc.bias.expand(5, 4))
    assert torch.equal(output.features["fc"], output.logits)
    assert net.fc.weight.any()


def test_a_layer_that_runs_twice_gives_its_last_output(net: Net, images: torch.Tensor):
    with FeatureExtractor(net, ["block.conv", "block"]) as extractor:
        output = extractor(images)
    assert torch.equal(output.features["block.conv"], output.features["block"])
    assert not torch.equal(output.features["block.conv"], net.block.conv(net.relu(net.stem(images))))


def test_every_call_gives_the_output_of_its_own_batch(net: Net, images: torch.Tensor):
    with FeatureExtractor(net, ["stem"]) as extractor:
        first, second = extractor(images), extractor(2 * images[:2])
    assert torch.equal(first.features["stem"], net.stem(images))
    assert torch.equal(second.features["stem"], net.stem(2 * images[:2]))


def test_without_layers_there_are_only_logits_with_or_without_the_block(net: Net, images: torch.Tensor):
    extractor = FeatureExtractor(net)
    assert extractor.layers == ()
    assert torch.equal(extractor(images).logits, net(images))
    assert dict(extractor(images).features) == {}


def test_a_name_given_twice_is_read_once(net: Net, images: torch.Tensor):
    with FeatureExtractor(net, iter(["stem", "block", "stem"])) as extractor:
        assert extractor.layers == ("stem", "block")
        assert count_hooks(net) == 2
        assert list(extractor(images).features) == ["stem", "block"]


def test_the_models_own_forward_is_not_changed(net: Net, images: torch.Tensor):
    before, state = net(images), {name: value.clone() for name, value in net.state_dict().items()}
    with FeatureExtractor(net, ["stem", "block"]) as extractor:
        during = net(images)
        extractor(images)
    assert torch.equal(before, during)
    assert torch.equal(before, net(images))
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_hooks_go_when_the_block_ends(net: Net, images: torch.Tensor):
    with torch.no_grad(), FeatureExtractor(net, ["stem", "block"]) as extractor:
        feature = weakref.ref(extractor(images).features["stem"])
        assert count_hooks(net) == 2
    assert count_hooks(net) == 0
    assert feature() is None  # nor does it hold on to the last batch's maps
    with extractor:  # it can be entered again
        assert count_hooks(net) == 2
        assert torch.equal(extractor(images).features["stem"], net.stem(images))
    assert count_hooks(net) == 0


def test_hooks_go_after_an_exception(net: Net):
    with pytest.raises(RuntimeError, match="channels"), FeatureExtractor(net, ["stem"]) as extractor:
        extractor(torch.zeros(2, 5, 6, 6))
    assert count_hooks(net) == 0


def test_the_gradient_flows_through_a_hooked_layer_to_the_student(net: Net, images: torch.Tensor):
    expected = torch.autograd.grad(net.block(net.relu(net.stem(images))).square().mean(), net.stem.weight)[0]
    with FeatureExtractor(net, ["block"]) as extractor:
        extractor(images).features["block"].square().mean().backward()
    assert expected.abs().sum() > 0
    torch.testing.assert_close(net.stem.weight.grad, expected)
    assert net.fc.weight.grad is None  # it comes after the hooked layer


def test_calling_it_outside_the_block_is_an_error(net: Net, images: torch.Tensor):
    extractor = FeatureExtractor(net, ["stem"])
    with pytest.raises(
        RuntimeError,
        match=r"^A FeatureExtractor reads layers only inside its block: with FeatureExtractor\(model, layers\)",
    ):
        extractor(images)
    with extractor:
        extractor(images)
    with pytest.raises(RuntimeError, match="only inside its block"):
        extractor(images)


def test_an_unknown_layer_is_named_with_near_matches(net: Net):
    with pytest.raises(ValueError, match=r"^There is no layer in Net named 'blok'\. Did you mean 'block'") as error:
        FeatureExtractor(net, ["stem", "blok"])
    known = re.search(r"Known: (.*)\.$", str(error.value))[1].split(", ")
    assert known == ["stem", "relu", "block", "block.conv", "block.relu", "unused", "fc"]
    assert count_hooks(net) == 0


def test_the_empty_name_of_the_whole_model_is_no_layer(net: Net):
    with pytest.raises(ValueError, match="no layer in Net named ''"):
        FeatureExtractor(net, [""])


def test_a_layer_that_did_not_run(net: Net, images: torch.Tensor):
    with (
        FeatureExtractor(net, ["stem", "unused"]) as extractor,
        pytest.raises(ValueError, match="'unused' did not run in the forward"),
    ):
        extractor(images)


def test_a_layer_that_ran_only_in_an_earlier_call_did_not_run(net: Net, images: torch.Tensor):
    with FeatureExtractor(net, ["unused"]) as extractor:
        net.unused(torch.zeros(1, 2))  # its output is not part of the next forward pass
        with pytest.raises(ValueError, match="'unused' did not run"):
            extractor(images)


def test_a_layer_that_returns_a_tuple():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0][:, -1]

    model = Recurrent()
    with (
        FeatureExtractor(model, ["rnn"]) as extractor,
        pytest.raises(
            ValueError,
            match="^The layer 'rnn' returns a tuple, not a tensor. .* inside it, one that returns a single tensor.$",
        ),
    ):
        extractor(torch.zeros(2, 5, 4))
    assert count_hooks(model) == 0


@pytest.mark.parametrize("gradient", [True, False])
def test_an_output_overwritten_in_place_is_detected(images: torch.Tensor, gradient: bool):
    message = (
        r"^The output of 'stem' was overwritten in place by the layer after it \(an inplace ReLU, as a rule\)\. "
        r"Name that later layer, or set its inplace to False\.$"
    )
    overwritten = FeatureExtractor(Net(inplace=True), ["stem"])
    with torch.set_grad_enabled(gradient), overwritten as extractor, pytest.raises(ValueError, match=message):
        extractor(images)


def test_the_layer_that_overwrites_can_be_read_itself(images: torch.Tensor):
    net = Net(inplace=True)
    with FeatureExtractor(net, ["relu"]) as extractor:
        assert torch.equal(extractor(images).features["relu"], net.stem(images).relu())


def test_inference_mode_gives_the_values_too(net: Net, images: torch.Tensor):
    expected = net.stem(images).detach()
    with torch.inference_mode(), FeatureExtractor(net, ["stem"]) as extractor:
        assert torch.equal(extractor(images).features["stem"], expected)


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (lambda x: (x, x), "tuple"),
        (lambda x: {"logits": x}, "dict"),
        (lambda x: x[:, :, None], r"\(5, 4, 1\)"),
        (lambda x: x[:, 0], r"\(5,\)"),
    ],
)
def test_a_model_that_does_not_return_logits(net: Net, images: torch.Tensor, output, got: str):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> object:
            return output(self.net(x))

    message = f"^A Odd returned {got}; expected one tensor of logits, batch x classes. Wrap the model"
    with FeatureExtractor(Odd(), ["net.stem"]) as extractor, pytest.raises(ValueError, match=message):
        extractor(images)


def test_a_layer_of_a_real_network_by_its_dotted_name():
    model = models.build("resnet8", num_classes=3, in_channels=1).eval()
    images = torch.randn(2, 1, 16, 16)
    name = models.stage_layers(model)[-1]
    with FeatureExtractor(model, [name]) as extractor:
        output = extractor(images)
    assert torch.equal(output.logits, model(images))
    assert output.features[name].shape[:1] + output.features[name].shape[2:] == (2, 4, 4)


def test_a_model_output_without_layers():
    output = ModelOutput(torch.zeros(2, 3))
    assert output.features == {}
    assert ModelOutput(torch.zeros(2, 3)).features is not output.features
    with pytest.raises(dataclasses.FrozenInstanceError):
        output.logits = torch.ones(2, 3)


def test_float_gives_logits_and_features_in_float32_and_keeps_their_gradient():
    logits = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16, requires_grad=True)
    feature = torch.tensor([[0.25]], dtype=torch.float16)
    given = ModelOutput(2 * logits, {"a": feature, "b": feature.double()})
    output = given.float()
    assert output.logits.tolist() == [[3.0, -4.0]]
    assert {name: value.tolist() for name, value in output.features.items()} == {"a": [[0.25]], "b": [[0.25]]}
    assert {value.dtype for value in (output.logits, *output.features.values())} == {torch.float32}
    assert given.features["a"].dtype == torch.float16  # the given output stays as it is
    output.logits.sum().backward()
    assert logits.grad.tolist() == [[2.0, 2.0]]
    assert ModelOutput(torch.ones(1, 2)).float().features == {}


def test_a_compiled_model_can_be_read_again_at_other_layers(monkeypatch: pytest.MonkeyPatch):
    """Dynamo takes hooks for fixed: the program that was traced first would pass over new ones."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model, images = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    for layers in ((), ("0",), ("1",), ("0", "1"), ()):
        with FeatureExtractor(model, layers, compile=True) as extractor:
            found = extractor(images)
        torch.testing.assert_close(found.logits, model(images))
        assert set(found.features) == set(layers)
        if "1" in layers:
            torch.testing.assert_close(found.features["1"], model[0](images).relu())


def test_a_model_that_was_compiled_before_is_refused():
    inside = nn.Sequential(nn.Linear(3, 2))
    outside = torch.compile(inside, backend="eager")
    with pytest.raises(ValueError, match="is compiled already.*compile=True"):
        FeatureExtractor(outside, ["_orig_mod.0"])
    inside.compile(backend="eager")
    with pytest.raises(ValueError, match="Sequential is compiled already"):
        FeatureExtractor(inside, ["0"])
    assert FeatureExtractor(outside)(torch.zeros(1, 3)).logits.shape == (1, 2)  # logits can be had


class InParts(nn.Module):
    """Runs its first layer on halves of the batch, as DataParallel does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.first(part) for part in x.chunk(2)]))


def test_a_layer_that_saw_a_part_of_the_batch_is_refused():
    with (
        FeatureExtractor(InParts(), ["first"]) as extractor,
        pytest.raises(ValueError, match=r"'first' gave an output of shape \(4, 4\) for 8 samples.*Use torchrun"),
    ):
        extractor(torch.zeros(8, 3))


def test_a_layer_may_have_the_batch_in_another_place():
    class Sequences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x.transpose(0, 1)).sum(dim=0)

    with FeatureExtractor(Sequences(), ["first"]) as extractor:
        assert extractor(torch.zeros(8, 3, 2)).features["first"].shape == (3, 8, 2)


def test_a_layer_without_a_gradient_is_warned_about():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    with FeatureExtractor(model, ["0"]) as extractor:
        with pytest.warns(UserWarning, match="No gradient comes from the layer '0'"):
            extractor(torch.zeros(2, 3))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            extractor(torch.zeros(2, 3))
