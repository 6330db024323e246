"""Reading intermediate layers: the right values, with their gradients, and every way in which they could be wrong."""

from __future__ import annotations

import re
import shutil
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


def test_a_layer_that_runs_twice_is_named_and_a_call_can_be_chosen(net: Net, images: torch.Tensor):
    names = ["block.conv#0", "block.conv#1", "block.conv#-1", "block"]
    with FeatureExtractor(net, names) as extractor:
        output = extractor(images)
    assert list(output.features) == names
    first, second, last, block = output.features.values()
    assert torch.equal(second, block)
    assert torch.equal(last, block)
    assert torch.equal(first, net.block.conv(net.relu(net.stem(images))))
    message = "'block.conv' ran 2 times in one forward pass. Choose one of its calls: 'block.conv#0' is the first"
    with FeatureExtractor(net, ["block.conv"]) as extractor, pytest.raises(ValueError, match=message):
        extractor(images)
    with (
        FeatureExtractor(net, ["block.conv#2"]) as extractor,
        pytest.raises(ValueError, match=r"asks for call 2 of a layer that ran 2 time"),
    ):
        extractor(images)


@pytest.mark.parametrize("name", ["stem#", "stem#first", "stem[", "stem[]", "stem[0]x", "stem[0]#1"])
def test_a_name_that_cannot_be_read_says_how_names_are_written(net: Net, name: str):
    with pytest.raises(ValueError, match="names no layer. A layer is written as named_modules"):
        FeatureExtractor(net, [name])


def test_a_module_that_was_replaced_since_is_read_all_the_same(net: Net, images: torch.Tensor):
    extractor = FeatureExtractor(net, ["stem"])
    net.stem = nn.Conv2d(1, 3, 3, padding=1)
    with extractor:
        assert torch.equal(extractor(images).features["stem"], net.stem(images))


def test_a_shared_module_answers_to_each_of_its_names():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.randn(2, 3)
    with FeatureExtractor(model, ["0#0", "2#1"]) as extractor:
        features = extractor(x).features
    assert torch.equal(features["0#0"], shared(x))
    assert torch.equal(features["2#1"], model(x))
    with FeatureExtractor(model, ["2"]) as extractor, pytest.raises(ValueError, match="'2' ran 2 times"):
        extractor(x)


class Parts(nn.Module):
    """A layer that gives several tensors, and one that gives them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 3, batch_first=True)
        self.attend = nn.MultiheadAttention(3, 1, batch_first=True)
        self.named, self.single = Named(), Single()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.rnn(x)[0]
        x = self.attend(x, x, x)[0]
        return self.single(self.named(x)["hidden"])[0][:, 0]


class Named(nn.Module):
    def forward(self, x: torch.Tensor) -> dict:
        return {"hidden": 2 * x, "norm": x.norm(dim=2), "length": 5}


class Single(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple:
        return (3 * x,)


def test_one_part_of_an_output_is_chosen_by_position_or_key():
    model, x = Parts(), torch.randn(2, 5, 4)
    names = ["rnn[0]", "attend[0]", "attend[1]", "named[hidden]", "named[norm]", "single", "single[0]"]
    with FeatureExtractor(model, names) as extractor:
        features = extractor(x).features
    hidden = model.rnn(x)[0]
    attended, weights = model.attend(hidden, hidden, hidden)
    expected = [hidden, attended, weights, 2 * attended, attended.norm(dim=2), 6 * attended, 6 * attended]
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(features[name], value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rnn[1]", r"returns a tuple, not a tensor. Choose one of its tensors: 'rnn\[0\]'"),  # a pair of tensors
        ("attend", r"Choose one of its tensors: 'attend\[0\]', 'attend\[1\]'"),
        ("named", r"returns a dict, not a tensor. Choose one of its tensors: 'named\[hidden\]', 'named\[norm\]'"),
        ("named[length]", r"returns a dict"),
        ("named[other]", r"returns a dict"),
        ("rnn[out]", r"returns a tuple"),
    ],
)
def test_a_part_that_is_not_there_is_named_with_the_choices(name: str, said: str):
    with FeatureExtractor(Parts(), [name]) as extractor, pytest.raises(ValueError, match=said):
        extractor(torch.randn(2, 5, 4))


def test_a_part_of_a_plain_tensor_is_an_error(net: Net, images: torch.Tensor):
    with (
        FeatureExtractor(net, ["stem[0]"]) as extractor,
        pytest.raises(ValueError, match="returns a tensor, not a tuple"),
    ):
        extractor(images)


class Inputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)

    def forward(self, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return scale * self.first(a) + b


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.ones(2, 3), torch.ones(2, 2), 3.0),
        [torch.ones(2, 3), torch.ones(2, 2), 3.0],
        {"a": torch.ones(2, 3), "b": torch.ones(2, 2), "scale": 3.0},
    ],
)
@pytest.mark.parametrize("cast", [False, True])
def test_a_tuple_is_positional_and_a_dict_keyword_arguments(inputs, cast: bool):
    model = Inputs()
    weights = {"first.weight": 2 * model.first.weight.detach()} if cast else {}
    expected = 3 * F.linear(torch.ones(2, 3), (1 + cast) * model.first.weight, model.first.bias) + 1
    with FeatureExtractor(model, ["first"], weights=weights) as extractor:
        torch.testing.assert_close(extractor(inputs).logits, expected)


@pytest.mark.parametrize(
    "output",
    [
        lambda z: z,
        lambda z: (z, 1),
        lambda z: [z, z + 1],
        lambda z: {"loss": z.sum(), "logits": z},
        lambda z: {"out": z, "aux": z + 1},
        lambda z: types.SimpleNamespace(logits=z),
    ],
    ids=["tensor", "tuple", "list", "dict", "torchvision", "object"],
)
def test_logits_are_found_in_what_models_usually_return(net: Net, images: torch.Tensor, output):
    class Wrapped(nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return output(net(x))

    found = FeatureExtractor(Wrapped())(images)
    assert torch.equal(found.logits, net(images))
    assert type(found.raw) is type(output(net(images)))


class Several(nn.Module):
    """Returns several tensors, made from its input."""

    def __init__(self, output) -> None:
        super().__init__()
        self.output, self.layer = output, nn.Identity()

    def forward(self, x: torch.Tensor) -> object:
        return self.output(self.layer(x))


class Scores(NamedTuple):
    embedding: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    ("output", "shapes", "choices"),
    [
        (lambda x: (x @ torch.ones(4, 7), x), r"\(6, 7\), \(6, 4\)", [0, 1]),
        (lambda x: [x, x[:, :, None, None]][::-1] + [x[:, :3]], r"\(6, 4, 1, 1\), \(6, 4\), \(6, 3\)", [0, 1, 2]),
        (lambda x: (x[0, 0], x, x[:, :3]), r"\(6, 4\), \(6, 3\)", [1, 2]),
        (lambda x: (x[:, None].expand(6, 5, 4), x[:, None, :3].expand(6, 5, 3)), r"\(6, 5, 4\), \(6, 5, 3\)", [0, 1]),
    ],
    ids=["embedding and logits", "a map and two", "a loss before them", "tokens"],
)
def test_which_of_several_tensors_the_logits_are_must_be_said(output, shapes: str, choices: list[int]):
    x = torch.randn(6, 4)
    said = " or ".join(rf"Adapter\(logits={number}\)" for number in choices)
    with pytest.raises(ValueError, match=f"tensors {shapes}; which are the logits.*{said}"):
        FeatureExtractor(Several(output))(x)
    with FeatureExtractor(Several(output), ["layer"], needs_logits=False) as extractor:
        found = extractor(x)
    assert found.logits is None
    assert torch.equal(found.features["layer"], x)


@pytest.mark.parametrize(
    "output",
    [
        lambda x: (x, -x),
        lambda x: (x[:, :, None, None].expand(6, 4, 8, 8), x[:, :, None, None].expand(6, 4, 2, 3)),
        lambda x: (x, x[0]),
    ],
    ids=["of one width", "at two resolutions", "a vector beside them"],
)
def test_an_auxiliary_head_comes_after_the_logits(output):
    x = torch.randn(6, 4)
    assert torch.equal(FeatureExtractor(Several(output))(x).logits, output(x)[0])


def test_a_named_part_is_found_wherever_it_stands():
    x = torch.randn(6, 4)
    assert torch.equal(FeatureExtractor(Several(lambda x: Scores(x, x[:, :3])))(x).logits, x[:, :3])


def test_a_network_without_logits_may_give_features_alone():
    model = Parts()
    headless = nn.Module()
    headless.rnn, headless.forward = model.rnn, lambda x: {"hidden": model.rnn(x)[0]}
    x = torch.randn(2, 5, 4)
    with FeatureExtractor(headless, ["rnn[0]"], needs_logits=False) as extractor:
        output = extractor(x)
    assert output.logits is None
    assert output.float().logits is None
    assert output.features["rnn[0]"].shape == (2, 5, 3)
    with pytest.raises(ValueError, match="returned a dict; expected one tensor of logits"):
        FeatureExtractor(headless)(x)


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


class LayerDrop(nn.Sequential):
    """Leaves out its first layer while it trains, as Wav2Vec2 does at random."""

    def forward(self, x: Tensor) -> Tensor:
        return self[1](x if self.training else self[0](x))


def test_a_layer_that_is_left_out_while_training_is_told_as_such():
    x = torch.randn(2, 3)
    with FeatureExtractor(LayerDrop(nn.Linear(3, 3), nn.Linear(3, 4)), ["0"]) as extractor:
        extractor.model.eval()
        assert extractor(x).features["0"].shape == (2, 3)
        extractor.model.train()
        with pytest.raises(ValueError, match=r"'0' did not run.*at random.*layerdrop=0"):
            extractor(x)


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
            match=r"^The layer of 'rnn' returns a tuple, not a tensor. Choose one of its tensors: 'rnn\[0\]', ",
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
        (lambda x: (x[0, 0], x), "tuple"),
        (lambda x: {"scores": x}, "dict"),
        (lambda x: None, "NoneType"),
    ],
)
def test_a_model_that_does_not_return_logits(net: Net, images: torch.Tensor, output, got: str):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> object:
            return output(self.net(x))

    message = (
        f"^A Odd returned a {got}; expected one tensor of logits, or a dict or object with 'logits'. Wrap the model"
    )
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


@pytest.mark.slow
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


class Shapes:
    """A backend of torch.compile that changes nothing, and notes the inputs of each program."""

    def __init__(self) -> None:
        self.programs: list[list[object]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[object]) -> Callable:
        self.programs.append(inputs)
        return graph.forward

    def __deepcopy__(self, memo: object) -> Shapes:
        return self  # Lightning, once a test has imported it, copies what torch.compile is given

    @property
    def for_any_shape(self) -> bool:
        return any(isinstance(one, torch.SymInt) for inputs in self.programs for one in inputs)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [(), ("1",)])
def test_inputs_of_many_lengths_are_compiled_for_three_times(layers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    """Batches of text are padded to their longest; torch would make eight programs, and run the others without."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=(backend := Shapes())))
    model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 3), nn.Tanh())
    made = []
    with FeatureExtractor(model, layers, compile=True) as extractor:
        for samples, length in [*((5, length) for length in range(6, 17)), (2, 17)]:
            tokens = torch.arange(samples * length).view(samples, length) % 20
            torch.testing.assert_close(extractor(tokens).logits, model(tokens))
            made.append(len(backend.programs))
    assert 0 < made[0] < made[1] < made[2]
    assert made[2:] == made[2:3] * 10
    assert backend.for_any_shape


class FirstOfSeveral(nn.Module):
    """Takes a list of images that may differ in size."""

    def forward(self, images: list[Tensor]) -> Tensor:
        return torch.stack([image.mean((1, 2)) for image in images])


@pytest.mark.slow
def test_the_sizes_of_a_list_of_images_are_shapes_of_inputs_too(monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=(backend := Shapes())))
    made = []
    with FeatureExtractor(FirstOfSeveral(), [], compile=True) as extractor:
        for side in range(4, 10):
            images = [torch.rand(3, side, side), torch.rand(3, side + 1, side)]
            torch.testing.assert_close(extractor((images,)).logits, FirstOfSeveral()(images))
            made.append(len(backend.programs))
    assert made[2:] == made[2:3] * 4


class Stage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Stage(1), Stage(2), Stage(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x))).flatten(1)


@pytest.mark.slow
def test_each_of_two_sizes_of_batch_has_programs_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """Also where layers of one class differ in their sizes: convolutions for any shape would be slower."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=(backend := Shapes())))
    with FeatureExtractor(Stages(), ["a.conv", "b.conv", "c.conv"], compile=True) as extractor:
        for size in (6, 4, 6, 4):
            extractor(torch.randn(size, 1, 9, 9))
    assert backend.programs
    assert not backend.for_any_shape


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


class Folded(nn.Module):
    """Sees the series or frames of each sample as samples of their own, as PatchTST and TimeSformer do.

    kind: what one of them is, "vector", "tokens" or "map". The layer `whole` gets them by sample.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.whole = nn.Identity(), nn.Identity()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        parts = self.first(x.flatten(0, 1))
        if self.kind == "map":
            self.whole(parts.unflatten(0, (len(x), -1)).transpose(1, 2))
        else:
            self.whole(parts.reshape(len(x), -1, parts.shape[-1]))
        return parts.reshape(len(x), -1)


@pytest.mark.parametrize(
    ("kind", "part", "layout"),
    [("vector", (6,), (4, 3, 6)), ("tokens", (8, 6), (4, 24, 6)), ("map", (6, 8, 8), (4, 6, 3, 8, 8))],
)
def test_a_layer_that_sees_parts_of_samples_as_samples_is_refused(
    kind: str, part: tuple[int, ...], layout: tuple[int, ...]
) -> None:
    model, x = Folded(kind), torch.randn(4, 3, *part)
    advice = (
        r"x\.unflatten\(0, \(batch, -1\)\)\.transpose" if kind == "map" else r"x\.reshape\(batch, -1, x\.shape\[-1\]\)"
    )
    with (
        FeatureExtractor(model, ["first"]) as extractor,
        pytest.raises(ValueError, match=rf"'first'.*for 4 samples.*nn\.Identity.*{advice}"),
    ):
        extractor(x)
    with FeatureExtractor(model, ["whole"]) as extractor:  # as the error says
        found = extractor(x).features["whole"]
    assert found.shape == layout
    expected = x.transpose(1, 2) if kind == "map" else x.reshape(layout)
    assert torch.equal(found, expected)


def test_a_width_that_happens_to_be_the_number_of_samples_hides_no_part_of_the_batch() -> None:
    with FeatureExtractor(Folded("tokens"), ["first"]) as extractor, pytest.raises(ValueError, match="for 6 samples"):
        extractor(torch.randn(6, 3, 8, 6))


def test_samples_come_first_where_a_layer_has_positions_first():
    class Sequences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x.transpose(0, 1)).sum(dim=0)

    with FeatureExtractor(Sequences(), ["first"]) as extractor:
        x = torch.randn(8, 3, 2)
        assert torch.equal(extractor(x).features["first"], x)


class OnALine(nn.Module):
    """Tokens, through a block of 1-D convolutions: inside it channels come second, outside of it last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, width, 3, padding=1)
        self.norm = nn.GroupNorm(1, width)
        self.pool = nn.AvgPool1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.norm(self.conv(x.mT))).mT


@pytest.mark.parametrize("width", [6, 10])
def test_channels_of_a_one_dimensional_layer_come_second(width: int) -> None:
    model = nn.Sequential(OnALine(width), nn.Flatten(1), nn.Linear(5 * width, 2))
    x = torch.randn(3, 10, 4)
    with FeatureExtractor(model, ["0", "0.conv", "0.norm", "0.pool"]) as extractor:
        features = extractor(x).features
    assert torch.equal(features["0.conv"], model[0].conv(x.mT)[:, :, None])
    assert {name: tuple(output.shape) for name, output in features.items()} == {
        "0": (3, 5, width),  # the block gives tokens, though a layer of channels is its last
        "0.conv": (3, width, 1, 10),
        "0.norm": (3, width, 1, 10),
        "0.pool": (3, width, 1, 5),
    }


@pytest.mark.parametrize(
    "last",
    [
        nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3)),
        nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3, bias=False)),
        nn.utils.parametrizations.spectral_norm(nn.Conv1d(4, 6, 3)),
        nn.SyncBatchNorm(4),
    ],
    ids=["weight norm", "weight norm, no bias", "spectral norm", "synchronised batch norm"],
)
def test_a_block_of_one_dimensional_layers_has_its_channels_second(last: nn.Module) -> None:
    """Also where torch keeps their weights in modules of its own, or has put another normalisation in their place."""
    model = nn.Sequential(nn.Sequential(nn.Conv1d(3, 4, 1), last, nn.ReLU()), nn.Flatten(1), nn.LazyLinear(2)).eval()
    x = torch.randn(5, 3, 10)
    with FeatureExtractor(model, ["0"]) as extractor:
        feature = extractor(x).features["0"]
    assert torch.equal(feature, model[0](x)[:, :, None])


class NormalisedLine(nn.Module):
    """A convolution, then a layer norm of its channels between two transposes, as in wav2vec 2.0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x).mT).mT)


class PointwiseLine(nn.Module):
    """A block of ConvNeXt on a line, as in Vocos: its last layer is a linear one of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(self.conv(x).mT)))).mT


@pytest.mark.parametrize("kind", [NormalisedLine, PointwiseLine])
def test_a_block_that_turns_a_line_for_its_last_layer_alone_has_its_channels_second(
    kind: Callable[[int], nn.Module],
) -> None:
    model = nn.Sequential(kind(6), nn.Flatten(2))
    with FeatureExtractor(model, ["0"], needs_logits=False) as extractor:
        for length in (10, 6):  # of 6 places and 6 channels, which a shape alone would not tell
            x = torch.randn(5, 3, length)
            assert torch.equal(extractor(x).features["0"], model[0](x)[:, :, None])


class ConvolvedTokens(nn.Module):
    """A convolution over tokens and a layer norm of what it gives, as in a Conformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(F.glu(self.up(x.mT), dim=1)).mT)


class MixedTokens(nn.Module):
    """A linear layer over the channels and one over the tokens, as in an MLP-Mixer."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.channels, self.tokens = nn.Linear(width, width), nn.Linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.channels(x).mT).mT


@pytest.mark.parametrize(
    ("block", "tokens"),
    [
        (ConvolvedTokens(6), 10),
        (ConvolvedTokens(6), 12),  # as many as a convolution within has channels
        (ConvolvedTokens(6), 6),
        (MixedTokens(10, 6), 10),
        (nn.Sequential(nn.Conv1d(10, 8, 1), MixedTokens(8, 6)), 10),  # that convolution is over the tokens, too
    ],
    ids=["a convolution", "as many tokens as hidden channels", "as many tokens as channels", "mixed", "pooled"],
)
def test_a_block_that_gives_tokens_is_read_so_whatever_is_inside_it(block: nn.Module, tokens: int) -> None:
    x = torch.randn(5, tokens, 6)
    with FeatureExtractor(nn.Sequential(block, nn.Flatten(2)), ["0"], needs_logits=False) as extractor:
        assert torch.equal(extractor(x).features["0"], block(x))


def test_the_modules_of_a_layer_are_looked_through_once_for_each_size() -> None:
    class Counted(nn.Sequential):
        looks = 0

        def named_modules(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Module]]:
            Counted.looks += 1
            return super().named_modules(*args, **options)

    model = nn.Sequential(Counted(nn.Linear(6, 6), nn.ReLU()), nn.Flatten(2))
    with FeatureExtractor(model, ["0"], needs_logits=False) as extractor:
        before = Counted.looks
        for batch, tokens in ((5, 10), (5, 10), (3, 10), (5, 12), (5, 10)):
            extractor(torch.randn(batch, tokens, 6))
        assert Counted.looks - before == 2


def test_a_layer_that_was_replaced_between_two_blocks_is_looked_at_anew() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(10, 10)), nn.Flatten(2))
    x = torch.randn(5, 6, 10)
    extractor = FeatureExtractor(model, ["0"], needs_logits=False)
    with extractor:
        assert torch.equal(extractor(x).features["0"], model[0](x))
    model[0] = nn.Sequential(nn.Conv1d(6, 6, 1))
    with extractor:
        assert torch.equal(extractor(x).features["0"], model[0](x)[:, :, None])


def test_a_layer_without_a_gradient_is_warned_about():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    with FeatureExtractor(model, ["0"]) as extractor:
        with pytest.warns(UserWarning, match="No gradient comes from the layer '0'"):
            extractor(torch.zeros(2, 3))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            extractor(torch.zeros(2, 3))


def test_a_network_that_gives_a_single_number_is_told() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean()

    with FeatureExtractor(Mean(), []) as extractor, pytest.raises(ValueError, match="single number; expected one tens"):
        extractor(torch.ones(2, 3))
