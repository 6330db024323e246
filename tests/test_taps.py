"""Reading intermediate layers: the right values, with their gradients, and every way in which they could be wrong."""

from __future__ import annotations

import dataclasses
import re
import shutil
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from kdlib import models
from kdlib.taps import Answer, Taps


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


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_values_are_those_of_a_forward_pass_by_hand(net: Net, images: torch.Tensor):
    stem = net.stem(images)
    relu = net.relu(stem)
    block = net.block(relu)
    with Taps(net, ["block", "stem", "relu", "fc"]) as taps:
        answer = taps(images)
    assert list(answer.layers) == ["block", "stem", "relu", "fc"]  # in the order they were asked for
    for name, expected in {"stem": stem, "relu": relu, "block": block, "fc": answer.logits}.items():
        assert torch.equal(answer.layers[name], expected), name
    assert torch.equal(answer.logits, net(images))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("gradient", [True, False])
def test_a_compiled_model_gives_the_same_answer_and_gradient(net: Net, images: torch.Tensor, gradient: bool):
    with torch.set_grad_enabled(gradient), Taps(net, ["stem", "block"]) as plain:
        wanted = plain(images)
    with torch.set_grad_enabled(gradient), Taps(net, ["stem", "block"], compiled=True) as taps:
        answer = taps(images)
    torch.testing.assert_close(answer.logits, wanted.logits)
    for name in ("stem", "block"):
        torch.testing.assert_close(answer.layers[name], wanted.layers[name])
    if gradient:
        ours, theirs = (
            torch.autograd.grad(a.layers["block"].square().sum(), net.stem.weight) for a in (answer, wanted)
        )
        torch.testing.assert_close(ours, theirs)


def test_weights_of_its_own_take_the_place_of_the_models(net: Net, images: torch.Tensor):
    other = {"fc.weight": torch.zeros_like(net.fc.weight)}
    with Taps(net, ["fc"], weights=other) as taps:
        answer = taps(images)
    assert torch.equal(answer.logits, net.fc.bias.expand(5, 4))
    assert torch.equal(answer.layers["fc"], answer.logits)
    assert net.fc.weight.any()


def test_a_layer_that_runs_twice_gives_its_last_output(net: Net, images: torch.Tensor):
    with Taps(net, ["block.conv", "block"]) as taps:
        answer = taps(images)
    assert torch.equal(answer.layers["block.conv"], answer.layers["block"])
    assert not torch.equal(answer.layers["block.conv"], net.block.conv(net.relu(net.stem(images))))


def test_every_call_gives_the_answer_to_its_own_batch(net: Net, images: torch.Tensor):
    with Taps(net, ["stem"]) as taps:
        first, second = taps(images), taps(2 * images[:2])
    assert torch.equal(first.layers["stem"], net.stem(images))
    assert torch.equal(second.layers["stem"], net.stem(2 * images[:2]))


def test_without_layers_there_are_only_logits_with_or_without_the_block(net: Net, images: torch.Tensor):
    taps = Taps(net)
    assert taps.names == ()
    assert torch.equal(taps(images).logits, net(images))
    assert dict(taps(images).layers) == {}


def test_a_name_given_twice_is_read_once(net: Net, images: torch.Tensor):
    with Taps(net, iter(["stem", "block", "stem"])) as taps:
        assert taps.names == ("stem", "block")
        assert hooks(net) == 2
        assert list(taps(images).layers) == ["stem", "block"]


def test_the_models_own_forward_is_not_changed(net: Net, images: torch.Tensor):
    before, state = net(images), {name: value.clone() for name, value in net.state_dict().items()}
    with Taps(net, ["stem", "block"]) as taps:
        during = net(images)
        taps(images)
    assert torch.equal(before, during)
    assert torch.equal(before, net(images))
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_hooks_go_when_the_block_ends(net: Net, images: torch.Tensor):
    with Taps(net, ["stem", "block"]) as taps:
        taps(images)
        assert hooks(net) == 2
    assert hooks(net) == 0
    assert not taps._seen  # nor does it hold on to the last batch's maps
    with taps:  # it can be opened again
        assert hooks(net) == 2
        assert torch.equal(taps(images).layers["stem"], net.stem(images))
    assert hooks(net) == 0


def test_hooks_go_after_an_exception(net: Net):
    with pytest.raises(RuntimeError, match="channels"), Taps(net, ["stem"]) as taps:
        taps(torch.zeros(2, 5, 6, 6))
    assert hooks(net) == 0


def test_the_gradient_flows_through_a_tapped_layer_to_the_student(net: Net, images: torch.Tensor):
    expected = torch.autograd.grad(net.block(net.relu(net.stem(images))).square().mean(), net.stem.weight)[0]
    with Taps(net, ["block"]) as taps:
        taps(images).layers["block"].square().mean().backward()
    assert expected.abs().sum() > 0
    torch.testing.assert_close(net.stem.weight.grad, expected)
    assert net.fc.weight.grad is None  # it comes after the tapped layer


def test_calling_it_outside_the_block_is_an_error(net: Net, images: torch.Tensor):
    taps = Taps(net, ["stem"])
    with pytest.raises(
        RuntimeError, match=r"^Taps read layers only inside their block: with Taps\(model, layers\) as taps: ...$"
    ):
        taps(images)
    with taps:
        taps(images)
    with pytest.raises(RuntimeError, match="only inside their block"):
        taps(images)


def test_an_unknown_layer_is_named_with_near_matches(net: Net):
    with pytest.raises(ValueError, match=r"^There is no layer in Net named 'blok'\. Did you mean 'block'") as error:
        Taps(net, ["stem", "blok"])
    known = re.search(r"Known: (.*)\.$", str(error.value))[1].split(", ")
    assert known == ["stem", "relu", "block", "block.conv", "block.relu", "unused", "fc"]
    assert hooks(net) == 0


def test_the_empty_name_of_the_whole_model_is_no_layer(net: Net):
    with pytest.raises(ValueError, match="no layer in Net named ''"):
        Taps(net, [""])


def test_a_layer_that_did_not_run(net: Net, images: torch.Tensor):
    with Taps(net, ["stem", "unused"]) as taps, pytest.raises(ValueError, match="'unused' did not run in the forward"):
        taps(images)


def test_a_layer_that_ran_only_in_an_earlier_call_did_not_run(net: Net, images: torch.Tensor):
    with Taps(net, ["unused"]) as taps:
        net.unused(torch.zeros(1, 2))  # its output is not part of the next forward pass
        with pytest.raises(ValueError, match="'unused' did not run"):
            taps(images)


def test_a_layer_that_returns_a_tuple():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0][:, -1]

    model = Recurrent()
    with (
        Taps(model, ["rnn"]) as taps,
        pytest.raises(
            ValueError,
            match="^The layer 'rnn' returns a tuple, not a tensor. .* inside it, one that returns a single tensor.$",
        ),
    ):
        taps(torch.zeros(2, 5, 4))
    assert hooks(model) == 0


@pytest.mark.parametrize("gradient", [True, False])
def test_an_output_overwritten_in_place_is_detected(images: torch.Tensor, gradient: bool):
    message = (
        r"^The output of 'stem' was overwritten in place by the layer after it \(an inplace ReLU, as a rule\)\. "
        r"Tap that later layer, or set its inplace to False\.$"
    )
    tapped = Taps(Net(inplace=True), ["stem"])
    with torch.set_grad_enabled(gradient), tapped as taps, pytest.raises(ValueError, match=message):
        taps(images)


def test_the_layer_that_overwrites_can_be_tapped_itself(images: torch.Tensor):
    net = Net(inplace=True)
    with Taps(net, ["relu"]) as taps:
        assert torch.equal(taps(images).layers["relu"], net.stem(images).relu())


def test_inference_mode_gives_the_values_too(net: Net, images: torch.Tensor):
    expected = net.stem(images).detach()
    with torch.inference_mode(), Taps(net, ["stem"]) as taps:
        assert torch.equal(taps(images).layers["stem"], expected)


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
    with Taps(Odd(), ["net.stem"]) as taps, pytest.raises(ValueError, match=message):
        taps(images)


def test_a_layer_of_a_real_network_by_its_dotted_name():
    model = models.build("resnet8", num_classes=3, in_channels=1).eval()
    images = torch.randn(2, 1, 16, 16)
    name = models.stages(model)[-1]
    with Taps(model, [name]) as taps:
        answer = taps(images)
    assert torch.equal(answer.logits, model(images))
    assert answer.layers[name].shape[:1] + answer.layers[name].shape[2:] == (2, 4, 4)


def test_an_answer_without_layers():
    answer = Answer(torch.zeros(2, 3))
    assert answer.layers == {}
    assert Answer(torch.zeros(2, 3)).layers is not answer.layers
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.logits = torch.ones(2, 3)


def test_a_compiled_model_can_be_asked_again_for_other_layers(monkeypatch: pytest.MonkeyPatch):
    """Dynamo takes hooks for fixed: the program that was traced first would pass over new ones."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model, images = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    for layers in ((), ("0",), ("1",), ("0", "1"), ()):
        with Taps(model, layers, compiled=True) as taps:
            found = taps(images)
        torch.testing.assert_close(found.logits, model(images))
        assert set(found.layers) == set(layers)
        if "1" in layers:
            torch.testing.assert_close(found.layers["1"], model[0](images).relu())


def test_a_model_that_was_compiled_before_is_refused():
    inside = nn.Sequential(nn.Linear(3, 2))
    outside = torch.compile(inside, backend="eager")
    with pytest.raises(ValueError, match="is compiled already.*compile=True"):
        Taps(outside, ["_orig_mod.0"])
    inside.compile(backend="eager")
    with pytest.raises(ValueError, match="Sequential is compiled already"):
        Taps(inside, ["0"])
    assert Taps(outside)(torch.zeros(1, 3)).logits.shape == (1, 2)  # logits can be had


class InParts(nn.Module):
    """Runs its first layer on halves of the batch, as DataParallel does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.first(part) for part in x.chunk(2)]))


def test_a_layer_that_saw_a_part_of_the_batch_is_refused():
    with (
        Taps(InParts(), ["first"]) as taps,
        pytest.raises(ValueError, match=r"'first' gave an output of shape \(4, 4\) for 8 samples.*Use torchrun"),
    ):
        taps(torch.zeros(8, 3))


def test_a_layer_may_have_the_batch_in_another_place():
    class Sequences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x.transpose(0, 1)).sum(dim=0)

    with Taps(Sequences(), ["first"]) as taps:
        assert taps(torch.zeros(8, 3, 2)).layers["first"].shape == (3, 8, 2)


def test_a_layer_without_a_gradient_is_warned_about():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    with Taps(model, ["0"]) as taps:
        with pytest.warns(UserWarning, match="No gradient comes from the layer '0'"):
            taps(torch.zeros(2, 3))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            taps(torch.zeros(2, 3))
