"""A network in C computes what its twin in PyTorch does, to the bit, and nearly what the float network does."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision import models as zoo

from kdlib import compress, data, models
from kdlib.data import DataModule
from kdlib.export.arena import ALIGNMENT, Lifetime, plan
from kdlib.export.c_code import lifetimes, load_c, to_c, write
from kdlib.export.integer import IntegerNetwork, fixed_point, quantize, rescale


class Net(nn.Module):
    """Layers by keyword and a forward that is given."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.rule = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.rule(self, x)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norm with statistics and weights as after a training, some of them negative."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2),
                (module.weight.data, -1.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model


def pictures(count: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def extremes(network: IntegerNetwork, count: int = 6) -> Tensor:
    """int8 images: noise, and all of them as low or as high as can be."""
    shape = network.shapes[network.image]
    noise = torch.randint(-128, 128, (count, *shape), generator=torch.Generator().manual_seed(2))
    return torch.cat([noise, torch.full((1, *shape), -128), torch.full((1, *shape), 127)]).to(torch.int8)


def head(channels: int, classes: int = 5) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def residual(self: Net, x: Tensor) -> Tensor:
    x = F.relu(self.bn(self.first(x)))
    y = F.relu(self.second(x) + self.shortcut(x))
    return self.fc(F.avg_pool2d(y, 5).flatten(1))


def in_place(self: Net, x: Tensor) -> Tensor:
    y = self.first(x)
    y += self.second(x)
    y = torch.relu_(y)
    return self.fc(y.view(y.size(0), -1))


def unused(self: Net, x: Tensor) -> Tensor:
    """A second head, as some networks have for the training alone."""
    y = self.fc(x.flatten(1))
    self.other(F.relu(y))
    return y


def shared(self: Net, x: Tensor) -> Tensor:
    """What a rash folding would break: a value before its batch norm and before its ReLU is used again."""
    y = self.conv(x)
    z = self.bn(y)
    return self.fc(torch.flatten(F.relu(z) + F.relu(self.same(y)) + y + z, 1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "strides and paddings": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, (3, 5), (2, 1), (0, 2)), nn.ReLU(), nn.Conv2d(5, 6, 2, (1, 3), 1), nn.ReLU(), *head(6)
        ),
        (3, 9, 11),
    ),
    "same, dilated, even kernel": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 4, padding="same"), nn.ReLU(), nn.Conv2d(4, 4, 3, dilation=2, padding="valid"), *head(4)
        ),
        (2, 8, 7),
    ),
    "depthwise and groups": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, 1, 1, groups=4, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, 2, 1, groups=8),
            nn.Conv2d(8, 6, 1, groups=2),
            nn.BatchNorm2d(6),
            *head(6),
        ),
        (4, 8, 8),
    ),
    "residual": (
        lambda: Net(
            residual,
            first=nn.Conv2d(1, 6, 3, 2, 1, bias=False),
            bn=nn.BatchNorm2d(6),
            second=nn.Conv2d(6, 6, 3, 1, 1),
            shortcut=nn.Identity(),
            fc=nn.Linear(6, 4),
        ),
        (1, 10, 10),
    ),
    "in place and view": (
        lambda: Net(in_place, first=nn.Conv2d(2, 3, 3), second=nn.Conv2d(2, 3, 3), fc=nn.Linear(48, 3)),
        (2, 6, 6),
    ),
    "values used twice": (
        lambda: Net(shared, conv=nn.Conv2d(2, 3, 3), bn=nn.BatchNorm2d(3), same=nn.Identity(), fc=nn.Linear(27, 3)),
        (2, 5, 5),
    ),
    "a head without use": (lambda: Net(unused, fc=nn.Linear(12, 3), other=nn.Linear(3, 2)), (3, 2, 2)),
    "max pools": (
        lambda: nn.Sequential(
            nn.MaxPool2d((3, 4), 2, (0, 2)), nn.Conv2d(2, 4, 3), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(), *head(4)
        ),
        (2, 14, 13),
    ),
    "average pools": (
        lambda: nn.Sequential(
            nn.AvgPool2d((2, 4), 2, (0, 2)),
            nn.Conv2d(2, 4, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((5, 2)),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(40, 3),
        ),
        (2, 10, 11),
    ),
    "multilayer perceptron": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4)),
        (2, 3, 3),
    ),
    "one linear layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (3, 2, 2)),
    "no linear layer": (
        lambda: nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (2, 6, 6),
    ),
    "ReLU at the end": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU()), (3, 2, 2)),
    "article-student": (lambda: models.build("article-student", num_classes=10, in_channels=1, seed=0), (1, 28, 28)),
    "resnet8": (lambda: models.build("resnet8", num_classes=10, in_channels=3, seed=0), (3, 16, 16)),
}


def made(name: str) -> tuple[nn.Module, IntegerNetwork]:
    build, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = randomized(build()).eval()
    return model, quantize(model, pictures(32, *shape))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_c_computes_what_its_twin_does_to_the_bit_and_nearly_what_the_float_network_does(
    name: str, tmp_path: Path
) -> None:
    model, network = made(name)
    loaded = load_c(write(network, tmp_path / "net.c"))
    images = extremes(network)
    assert torch.equal(loaded.integer_logits(images.permute(0, 2, 3, 1)), network.integer_logits(images))
    images = pictures(32, *network.shapes[network.image])
    with torch.no_grad():
        float_logits = model(images)
    assert torch.equal(loaded(images), network(images))
    spread = float_logits.std()
    assert (loaded(images) - float_logits).abs().mean() < 0.05 * spread
    assert loaded(images).shape == float_logits.shape


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_convolutions_and_pools_are_equal_to_the_bit(data: st.DataObject, tmp_path_factory: Any) -> None:
    small = st.integers(1, 3)
    groups = data.draw(small)
    channels, out = groups * data.draw(small), groups * data.draw(small)
    kernel, stride = (data.draw(small), data.draw(small)), (data.draw(small), data.draw(small))
    padding = (data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
    dilation = data.draw(st.integers(1, 2))
    pools: list[nn.Module] = []
    size = data.draw(st.integers(0, 2))
    if size:
        kind = data.draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))
        pools.append(kind(size, data.draw(small), size // 2))
    shape = (channels, data.draw(st.integers(6, 9)), data.draw(st.integers(6, 9)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        convolution = nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups)
        features = nn.Sequential(convolution, nn.ReLU(), *pools)
        width = features(torch.zeros(1, *shape)).numel()
        network = quantize(nn.Sequential(features, nn.Flatten(), nn.Linear(width, 3)), pictures(8, *shape))
    loaded = load_c(write(network, tmp_path_factory.mktemp("net") / "net.c"))
    images = extremes(network)
    assert torch.equal(loaded.integer_logits(images.permute(0, 2, 3, 1)), network.integer_logits(images))


@pytest.mark.slow
def test_a_layer_that_gives_only_zeros_is_written_too(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        dead, alive = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)
        nn.init.constant_(dead.bias, -50.0)
        classifier = nn.Linear(2, 3)

    def forward(self: Net, x: Tensor) -> Tensor:
        return self.fc(F.avg_pool2d(F.relu(self.dead(x)) + self.alive(x), 6).flatten(1))

    model = Net(forward, dead=dead, alive=alive, fc=classifier).eval()
    images = pictures(32, 1, 6, 6)
    network = quantize(model, images)
    loaded = load_c(write(network, tmp_path / "net.c"))
    far = extremes(network)
    assert torch.equal(loaded.integer_logits(far.permute(0, 2, 3, 1)), network.integer_logits(far))
    with torch.no_grad():
        assert (loaded(images) - model(images)).abs().mean() < 0.05 * model(images).std()


@pytest.fixture(scope="module")
def teacher_in_c(fashion: DataModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    calibration = data.normalized_images(fashion.subset(256, seed=0).train)
    return to_c(models.load("resnet20-fashion"), tmp_path_factory.mktemp("c") / "resnet20.c", calibration)


@pytest.mark.slow
def test_the_shipped_teacher_keeps_its_accuracy(teacher_in_c: Path, fashion: DataModule) -> None:
    images, labels = next(iter(fashion.test.iter_batches(500))).images, fashion.test.labels[:500]
    with torch.no_grad():
        float_logits = models.load("resnet20-fashion")(images)
    logits = load_c(teacher_in_c)(images)
    accuracies = [(answer.argmax(1) == labels).double().mean() for answer in (float_logits, logits)]
    assert accuracies[0] > 0.9
    assert abs(accuracies[0] - accuracies[1]) <= 0.005
    assert (float_logits.argmax(1) == logits.argmax(1)).double().mean() > 0.98


@pytest.mark.slow
def test_torchvisions_resnet18_and_mobilenet_v2_can_be_written(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [zoo.resnet18(num_classes=7), zoo.mobilenet_v2(num_classes=7, width_mult=0.25)]
    for network in networks:
        twin = quantize(network, pictures(4, 3, 32, 32))
        kinds = {step.kind for step in twin.steps}
        assert kinds == {"convolution", "addition", "average", "linear"} | (
            {"max"} if network is networks[0] else set()
        )
        assert (twin(pictures(4, 3, 32, 32)) - network.eval()(pictures(4, 3, 32, 32))).abs().mean() < 0.1
    loaded = load_c(write(twin, tmp_path / "net.c"))
    assert torch.equal(loaded(pictures(2, 3, 32, 32)), twin(pictures(2, 3, 32, 32)))


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    model = models.build("resnet8", num_classes=3, in_channels=1, seed=0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    to_c(model, tmp_path / "net.c", pictures(4, 1, 8, 8))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_batch_norm_without_a_bias_shifts_by_its_mean_alone(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(2)
    norm.register_parameter("bias", None)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.ReLU(), *head(2)).eval()
    norm.running_mean.fill_(0.3)
    other = copy.deepcopy(network)
    other[1].bias = nn.Parameter(torch.zeros(2))
    images = pictures(4, 1, 6, 6)
    files = [to_c(one, tmp_path / f"{number}.c", images) for number, one in enumerate((network, other))]
    assert files[0].read_text() == files[1].read_text()


def test_the_file_needs_no_library_and_has_no_floating_point_arithmetic(tmp_path: Path) -> None:
    _, network = made("residual")
    text = write(network, tmp_path / "net.c").read_text()
    code = re.sub(r"/\*.*?\*/|^#define [^\n]*_SCALE [^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "int8_t" in code
    assert set(re.findall(r"#include <(.*)>", code)) <= {"stdint.h", "arm_acle.h"}  # the compiler's own
    assert not re.search(r"\bfloat\b|\bdouble\b|\d\.\d|malloc", code)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no cc on this machine")
@pytest.mark.parametrize("name", ["residual", "depthwise and groups", "max pools", "average pools", "no linear layer"])
def test_no_undefined_behaviour_and_no_warning(name: str, tmp_path: Path) -> None:
    """By the sanitizers of a compiler, on noise and on the extremes, with the same answers."""
    _, network = made(name)
    path = write(network, tmp_path / "net.c")
    images = extremes(network)
    (tmp_path / "images").write_bytes(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    (tmp_path / "main.c").write_text(
        f'#include "{path.name}"\n#include <stdio.h>\n#include <stdlib.h>\n'
        "int main(void) {\n"
        "    const int size = IMAGE_HEIGHT * IMAGE_WIDTH * IMAGE_CHANNELS;\n"
        "    int8_t *image = malloc(size);\n"  # on the heap, so that reading past its end is noticed
        "    int32_t *logits = malloc(CLASSES * sizeof *logits);\n"
        "    while (fread(image, 1, size, stdin) == (size_t)size) {\n"
        "        predict(image, logits);\n"
        '        for (int i = 0; i < CLASSES; i++) printf("%d ", (int)logits[i]);\n'
        "    }\n    free(image); free(logits);\n    return self_check();\n}\n"
    )
    options = ["-fsanitize=undefined,address", "-fno-sanitize-recover=all", "-DKDLIB_SELF_CHECK", "-O1", "-g"]
    warnings = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wno-unused-function"]
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    if subprocess.run(["cc", *options, "empty.c", "-o", "empty"], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("This compiler comes without its sanitizers.")
    command = ["cc", "-std=c99", *options, *warnings, "main.c", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with (tmp_path / "images").open("rb") as file:
        done = subprocess.run([tmp_path / "main"], stdin=file, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [int(word) for word in done.stdout.split()] == network.integer_logits(images).flatten().tolist()


@pytest.mark.slow
@pytest.mark.parametrize("array", ["weights0", "biases0", "multipliers0", "weights4"])
def test_one_number_that_was_altered_is_noticed(array: str, tmp_path: Path) -> None:
    _, network = made("residual")
    path = write(network, tmp_path / "net.c")
    altered = re.sub(
        rf"({array}\[\d+\] = {{\s+(?:-?\d+, ){{2}})(-?\d+),", lambda m: f"{m[1]}{int(m[2]) // 2 + 1},", path.read_text()
    )
    assert altered != path.read_text()
    path.write_text(altered)
    with pytest.raises(ValueError, match="does not compute what it did"):
        load_c(path)


@pytest.mark.slow
def test_one_line_of_code_that_was_altered_is_noticed(tmp_path: Path) -> None:
    _, network = made("residual")
    path = write(network, tmp_path / "net.c")
    path.write_text(path.read_text().replace("(int8_t)w->zero_in", "0"))  # padding that stands for another number
    with pytest.raises(ValueError, match="does not compute what it did"):
        load_c(path)


# --- the arena


@given(
    st.lists(
        st.builds(
            lambda size, first, length: Lifetime(size, first, first + length),
            st.integers(1, 50),
            st.integers(0, 8),
            st.integers(0, 4),
        ),
        max_size=12,
    )
)
@settings(deadline=None)
def test_buffers_that_live_at_the_same_time_never_share_bytes(buffers: list[Lifetime]) -> None:
    named = {str(number): buffer for number, buffer in enumerate(buffers)}
    offsets, total = plan(named)
    for name, buffer in named.items():
        assert offsets[name] >= 0
        assert offsets[name] % ALIGNMENT == 0
        assert offsets[name] + buffer.size <= total
        for other, its in named.items():
            if other != name and set(range(buffer.first, buffer.last + 1)) & set(range(its.first, its.last + 1)):
                assert offsets[name] + buffer.size <= offsets[other] or offsets[other] + its.size <= offsets[name]
    most = max((sum(b.size for b in buffers if b.first <= step <= b.last) for step in range(13)), default=0)
    assert most <= total <= sum(b.size + ALIGNMENT for b in buffers)


def test_buffers_that_follow_each_other_share_their_bytes() -> None:
    chain = {str(step): Lifetime(100, step, step + 1) for step in range(10)}
    assert plan(chain)[1] == 200


@pytest.mark.parametrize("name", ["residual", "in place and view", "no linear layer"])
def test_a_value_lives_from_its_step_to_its_last_reader(name: str) -> None:
    _, network = made(name)
    living = lifetimes(network)
    for number, step in enumerate(network.steps):
        for value in step.inputs:
            if value != network.image:
                assert living[value].first < number <= living[value].last
        if step.kind != "linear":
            assert living[step.output].first == number
    if network.steps[-1].kind != "linear":
        assert living[network.logits].last >= len(network.steps)


# --- fixed-point numbers


@given(st.floats(1e-12, 1e6), st.integers(-(2**31), 2**31 - 1))
def test_a_factor_in_fixed_point_is_exact_to_half_a_unit_and_30_bits(factor: float, number: int) -> None:
    multiplier, shift = fixed_point(factor)
    assert 0 <= multiplier < 2**31
    scaled = rescale(torch.tensor(number), torch.tensor(multiplier), torch.tensor(shift)).item()
    assert abs(scaled - number * factor) <= 0.5 + abs(number) * max(factor * 2**-30, 2**-62) + 1e-6


def test_channels_that_are_zero_or_all_bias_keep_their_value() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), *head(3, classes=3))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[2] = 1e-12  # beside a bias that is as large as the others
        model[0].bias.copy_(torch.tensor([0.0, 2.0, 3.0]))
        model[4].weight.copy_(torch.eye(3))
        model[4].bias.zero_()
    logits = quantize(model, pictures(4, 1, 3, 3))(pictures(2, 1, 3, 3))
    assert torch.allclose(logits, torch.tensor([0.0, 2.0, 3.0]).expand(2, 3), atol=0.03)


# --- what cannot be written


def two_inputs() -> nn.Module:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    return Two()


def branching(self: Net, x: Tensor) -> Tensor:
    return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))


def deciding_by_shape(self: Net, x: Tensor) -> Tensor:
    return self.fc(x.flatten(1)) if x.shape[-1] > 2 else self.fc(-x.flatten(1))


def overwriting_behind_a_dropout(self: Net, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = F.relu(self.drop(y), inplace=True)
    return self.fc((z + y).flatten(1))


def overwriting(self: Net, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = F.relu(y, inplace=True)
    return self.fc((z + y).flatten(1))


def adding_in_place(self: Net, x: Tensor) -> Tensor:
    y = z = self.conv(x)
    y += x
    return self.fc((y + z).flatten(1))


FC = nn.Linear(16, 3)
UNWRITABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "activation": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), *head(2)), r"'1' \(SiLU\).*Supported are Conv"),
    "norm": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), *head(2)), "GroupNorm"),
    "function": (lambda: Net(lambda s, x: s.fc(torch.sigmoid(x).flatten(1)), fc=FC), "sigmoid"),
    "method": (lambda: Net(lambda s, x: s.fc(x.flatten(1).abs()), fc=FC), "abs"),
    "two inputs": (two_inputs, "one input.*has 2"),
    "two outputs": (lambda: Net(lambda s, x: (s.fc(x.flatten(1)), x), fc=FC), "one output"),
    "control flow": (lambda: Net(branching, fc=FC), "cannot trace.*decide by the values or the shapes of tensors"),
    "shapes": (lambda: Net(deciding_by_shape, fc=FC), "cannot trace.*decide by the values or the shapes of tensors"),
    "padding": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), *head(2)), "reflect"),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 3), *head(2)), "ConvTranspose2d"),
    "uneven pool": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9, 3)), "4 x 4 to 3 x 3"),
    "average": (lambda: nn.Sequential(nn.AvgPool2d(2, 2, 1, count_include_pad=False), *head(1)), "count_include_pad"),
    "map as output": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3)), "N x classes"),
    "no layer": (lambda: nn.Sequential(nn.Flatten()), "no layer|One logit"),
    "broadcast": (lambda: Net(lambda s, x: s.fc((x + s.pool(x)).flatten(1)), pool=nn.AdaptiveAvgPool2d(1), fc=FC),
                  "different shapes"),
    "scalar": (lambda: Net(lambda s, x: s.fc((x + 1).flatten(1)), fc=FC), "addition 'add'"),
    "unflattened": (lambda: Net(lambda s, x: s.fc(x), fc=nn.Linear(4, 3)), "4 dimensions"),
    "overwritten": (lambda: Net(overwriting, conv=nn.Conv2d(1, 1, 1), fc=FC), "overwrites"),
    "added in place": (lambda: Net(adding_in_place, conv=nn.Conv2d(1, 1, 1), fc=FC), r"overwritten.*x \+= y"),
    "overwritten behind": (lambda: Net(overwriting_behind_a_dropout, conv=nn.Conv2d(1, 1, 1), drop=nn.Dropout(), fc=FC),
                           "overwrites"),
    "always dropping": (lambda: Net(lambda s, x: s.fc(F.dropout(x, 0.5).flatten(1)), fc=FC), "on in eval mode"),
    "too wide": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), "cannot take images of 1 x 5 x 5"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "lazy"),
    "not finite": (lambda: nn.Sequential(nn.Flatten(), _filled(nn.Linear(16, 3), float("nan"))), "not finite"),
}  # fmt: skip


def _filled(layer: nn.Linear, value: float) -> nn.Linear:
    nn.init.constant_(layer.weight, value)
    return layer


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_cannot_be_written_is_named_in_a_sentence(name: str, tmp_path: Path) -> None:
    build, words = UNWRITABLE[name]
    size = 5 if name == "too wide" else 4
    with pytest.raises(ValueError, match=words) as caught:
        to_c(build(), tmp_path / "net.c", pictures(2, 1, size, size))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "drop", [lambda net, x: F.dropout(x, 0.5, net.training), lambda net, x: F.dropout(x, 0.0)], ids=["training", "p"]
)
def test_a_dropout_function_that_does_nothing_in_eval_mode_is_left_out(
    drop: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    images = pictures(2, 1, 4, 4)
    plain = quantize(Net(lambda s, x: s.fc(x.flatten(1)), fc=FC), images)
    dropping = quantize(Net(lambda s, x: s.fc(drop(s, x).flatten(1)), fc=FC), images)
    assert torch.equal(dropping(images), plain(images))


def test_arguments_that_have_a_default_may_be_decided_by() -> None:
    class WithFeatures(Net):
        def forward(self, x: Tensor, is_feat: bool = False, scales: tuple = (1,), *more: Any, **named: Any) -> Any:
            if is_feat or len(scales) > 1 or more or named:
                return [x], self.fc(x.flatten(1))
            return self.rule(self, x)

    class Wrapped(Net):
        def forward(self, *inputs: Any, **named: Any) -> Any:
            return self.rule(self, *inputs, **named)

    images = pictures(2, 1, 4, 4)
    networks = (kind(lambda s, x: s.fc(x.flatten(1)), fc=FC) for kind in (Net, WithFeatures, Wrapped))
    plain, *others = (quantize(one, images)(images) for one in networks)
    for found in others:
        assert torch.equal(found, plain)


def test_rounded_activations_are_made_plain_first(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *head(4))
    rounded = compress.prepare_qat(model, 4, 2).train()
    rounded(pictures(4, 1, 4, 4))
    for refused in (rounded, compress.finalize(rounded)):
        with pytest.raises(ValueError, match="rounds its activations already: call compress.finalize"):
            to_c(refused.eval(), tmp_path / "net.c", pictures(2, 1, 4, 4))
    to_c(compress.finalize(rounded, keep_activation_rounding=False).eval(), tmp_path / "net.c", pictures(2, 1, 4, 4))


def test_a_hook_that_changes_an_input_is_refused_and_torchs_own_are_not(tmp_path: Path) -> None:
    torch.manual_seed(0)  # of some weights the logits are large, and with them what 8 bits leave of them
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *head(4)).eval()
    called = []
    model[1].register_forward_hook(lambda module, given, output: called.append(1))
    quantize(model, pictures(4, 1, 4, 4))
    assert called == [1]  # to learn whether it changes the answers; the copy has none
    handle = model[0].register_forward_pre_hook(lambda module, given: (3 * given[0],))
    with pytest.raises(ValueError, match="0 has a forward pre-hook"):
        quantize(model, pictures(4, 1, 4, 4))
    handle.remove()
    nn.utils.spectral_norm(model[0])
    given = pictures(20, 1, 4, 4)
    with torch.no_grad():
        assert (quantize(model, given)(given) - model(given)).abs().max() < 0.05


def test_masks_of_pruning_are_to_be_removed_first(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    prune.random_unstructured(model[1], "weight", amount=0.5)
    with pytest.raises(ValueError, match=r"prune\.remove"):
        to_c(model, tmp_path / "net.c", pictures(2, 1, 4, 4))
    prune.remove(model[1], "weight")
    to_c(model, tmp_path / "net.c", pictures(2, 1, 4, 4))


@pytest.mark.parametrize(
    ("model", "path", "calibration", "error", "words"),
    [
        (FC, "net.h", pictures(1, 1, 4, 4), ValueError, "ending .c"),
        (FC, 3, pictures(1, 1, 4, 4), TypeError, "path"),
        ("resnet8", "net.c", pictures(1, 1, 4, 4), TypeError, "Module; got str"),
        (FC, "net.c", [1, 2], TypeError, "got list"),
        (FC, "net.c", torch.zeros(1, 1, 4, 4, dtype=torch.uint8), TypeError, "uint8"),
        (FC, "net.c", pictures(0, 1, 4, 4), ValueError, "at least one image"),
        (FC, "net.c", pictures(4, 4), ValueError, "N x C x H x W"),
    ],
)
def test_wrong_arguments_are_refused(
    model: Any, path: Any, calibration: Any, error: type, words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        to_c(model, tmp_path / path if isinstance(path, str) else path, calibration)


# --- what cannot be loaded


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a small network's file."""
    return write(made("one linear layer")[1], tmp_path_factory.mktemp("small") / "net.c").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "int main(void) { return 0; }", "no C file that kdlib wrote"),
        (lambda text: "\x00\xff" * 100, "no C file that kdlib wrote"),
        (lambda text: text.replace("#define KDLIB_NETWORK 1", "#define KDLIB_NETWORK 9"), "format 9"),
        (lambda text: text.replace("#define CLASSES 3", "#define CLASSES -3"), "not positive"),
        (lambda text: text.replace("#define CLASSES 3", "#define CLASSES 3.5"), "no C file that kdlib wrote"),
        (
            lambda text: text.replace("void predict(const int8_t *image, int32_t *logits) {", "{"),
            "could not be compiled",
        ),
        (lambda text: text[: len(text) // 2], "could not be compiled"),
    ],
)
def test_other_files_are_refused(change: Callable[[str], str], words: str, small: str, tmp_path: Path) -> None:
    path = tmp_path / "net.c"
    path.write_text(change(small), encoding="latin-1")
    with pytest.raises(ValueError, match=words) as caught:
        load_c(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.c"):
        load_c(tmp_path / "none.c")


def test_images_that_do_not_fit_are_refused(small: str, tmp_path: Path) -> None:
    (tmp_path / "net.c").write_text(small)
    loaded = load_c(tmp_path / "net.c")
    for images, error in (
        (pictures(2, 3, 3, 2), ValueError),
        (pictures(3, 2, 2), ValueError),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), TypeError),
        ([0.0], TypeError),
        (torch.full((1, 3, 2, 2), float("nan")), ValueError),
    ):
        with pytest.raises(error, match="images|Images|pixels"):
            loaded(images)
    assert loaded(pictures(0, 3, 2, 2)).shape == (0, 3)


def test_without_a_compiler_the_extra_is_named(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.c").write_text(small)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(ImportError, match=r'pip install "kdlib\[device\]"'):
        load_c(tmp_path / "net.c")


@pytest.mark.slow
def test_zig_takes_the_place_of_cc(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    (tmp_path / "net.c").write_text(small)
    by_cc = load_c(tmp_path / "net.c")(pictures(4, 3, 2, 2))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert torch.equal(load_c(tmp_path / "net.c")(pictures(4, 3, 2, 2)), by_cc)


@pytest.mark.parametrize("between", [nn.ReLU(), nn.BatchNorm1d(9), nn.BatchNorm1d(27)])
def test_a_layer_on_a_flattened_map_is_named(between: nn.Module, tmp_path: Path) -> None:
    channels = 3 if isinstance(between, nn.BatchNorm1d) and between.num_features == 27 else 1
    net = nn.Sequential(nn.Conv2d(1, channels, 3), nn.Flatten(), between, nn.Linear(9 * channels, 4))
    with pytest.raises(ValueError, match="'2'.* after flattening"):
        to_c(net, tmp_path / "net.c", pictures(8, 1, 5, 5))


@pytest.mark.slow
def test_a_compiled_network_is_written_as_the_network_itself(tmp_path: Path) -> None:
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), pictures(4, 1, 4, 4)
    for name, model in (("plain", net), ("compiled", torch.compile(net))):
        to_c(model, tmp_path / name / "net.c", images)
    assert (tmp_path / "plain" / "net.c").read_text() == (tmp_path / "compiled" / "net.c").read_text()
