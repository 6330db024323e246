"""Measures against hand-made cases, published counts and plain loops; models stay as they were."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn
from torch.nn.utils import prune

from kdlib import compress, measure, models
from kdlib.devices import DeviceConfig

SHAPE = (3, 8, 8)


def tiny() -> nn.Sequential:
    """Conv 3 -> 4 (3x3, padded), batch norm, pooled to 4x4, linear 64 -> 5, with dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, 5),
    )


TINY_MACS = 8 * 8 * 4 * (3 * 3 * 3) + 64 * 5
TINY_PARAMETERS = (4 * 3 * 9 + 4) + (4 + 4) + (64 * 5 + 5)


def as_logits(*probabilities: list[float]) -> torch.Tensor:
    """Logits whose softmax is the given rows, with log 0 replaced by a value whose exponential is 0."""
    return torch.tensor(probabilities).log().clamp(min=-200)


def make_logits(count: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


# --- accuracy, agreement, confusion


def test_accuracy_by_hand():
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 3, 2, 1], [1, 0, 3, 2], [2, 1, 0, 3], [3, 2, 1, 0]])
    labels = torch.tensor([0, 2, 3, 1, 3])
    assert measure.accuracy(logits, labels) == 1 / 5
    assert measure.accuracy(logits, labels, top_k=2) == 3 / 5
    assert measure.accuracy(logits, labels, top_k=3) == 4 / 5
    assert measure.accuracy(logits, labels, top_k=4) == 1.0


def test_accuracy_is_over_examples_not_a_mean_over_classes():
    logits = torch.eye(3)[[0] * 10]
    assert measure.accuracy(logits, torch.tensor([0] * 9 + [1])) == 0.9


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 40), classes=st.integers(2, 7), seed=st.integers(0, 10_000), data=st.data())
def test_accuracy_and_confusion_against_plain_loops(count, classes, seed, data):
    logits, labels = make_logits(count, classes, seed)
    top_k = data.draw(st.integers(1, classes))
    ranked = [sorted(range(classes), key=lambda c: -row[c]) for row in logits.tolist()]
    hits = sum(label in order[:top_k] for order, label in zip(ranked, labels.tolist(), strict=True))
    assert measure.accuracy(logits, labels, top_k) == hits / count

    table = measure.confusion(logits, labels)
    expected = [[0] * classes for _ in range(classes)]
    for order, label in zip(ranked, labels.tolist(), strict=True):
        expected[label][order[0]] += 1
    assert table.dtype == torch.int64
    assert table.tolist() == expected


def test_accuracy_counts_the_rows_of_every_chunk(monkeypatch):
    logits, labels = make_logits(103, 6)
    whole = measure.accuracy(logits, labels, top_k=2)
    monkeypatch.setattr(measure, "CHUNK_SIZE", 10)
    assert measure.accuracy(logits, labels, top_k=2) == whole


def test_a_collapsed_model_is_not_right_on_every_tie():
    logits = torch.zeros(4, 4)
    assert measure.accuracy(logits, torch.arange(4)) == 0.25


def test_agreement_by_hand():
    student = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    teacher = torch.tensor([[9.0, 8, 7], [0, 2, 1], [3, 0, 1], [5, 6, 4]])
    assert measure.agreement(student, teacher) == 0.5
    assert measure.agreement(teacher, teacher) == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_of_any_precision_that_still_carry_a_gradient(dtype):
    logits = (2 * torch.eye(3)).to(dtype).requires_grad_()
    labels = torch.tensor([0, 1, 0], dtype=torch.uint8)
    assert measure.accuracy(logits, labels) == 2 / 3
    assert measure.agreement(logits, logits) == 1.0
    assert measure.confusion(logits, labels).trace() == 2
    confidence = math.exp(2) / (math.exp(2) + 2)
    assert measure.calibration_error(logits, labels) == pytest.approx(confidence - 2 / 3, abs=1e-6)


# --- calibration


def loop_calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int) -> float:
    """Expected calibration error in plain Python: bins [low, high), the last one closed."""
    groups: dict[int, list[tuple[float, float]]] = {}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        exponentials = [math.exp(value - max(row)) for value in row]
        confidence = max(exponentials) / sum(exponentials)
        right = float(row.index(max(row)) == label)
        groups.setdefault(min(int(confidence * bins), bins - 1), []).append((right, confidence))
    gaps = (abs(sum(right for right, _ in g) - sum(c for _, c in g)) for g in groups.values())
    return sum(gaps) / len(labels)


@pytest.mark.parametrize("bins", [1, 3, 15, 40])
@pytest.mark.parametrize(("scale", "shift"), [(0.3, 0), (1, 0), (30, 0), (1, 50)])
def test_calibration_error_against_an_independent_implementation(bins, scale, shift):
    logits, labels = make_logits(500, 6, seed=bins)
    logits = logits * scale + shift
    expected = loop_calibration_error(logits, labels, bins)
    assert measure.calibration_error(logits, labels, bins) == pytest.approx(expected, abs=1e-5)


def test_perfectly_calibrated_is_zero():
    logits = as_logits([0.75, 0.25]).repeat(4, 1)
    assert measure.calibration_error(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-6)
    assert measure.calibration_error(logits, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_always_confident(scale):
    logits = scale * (2 * torch.eye(3) - 1)
    assert measure.calibration_error(logits, torch.tensor([1, 2, 0])) == pytest.approx(1, abs=1e-6)
    assert measure.calibration_error(logits, torch.tensor([0, 1, 2])) == pytest.approx(0, abs=1e-6)


def test_logits_inside_zero_and_one_are_not_mistaken_for_probabilities():
    logits = torch.tensor([[1.0, 0.0, 0.5], [0.9, 0.1, 0.2]])
    expected = loop_calibration_error(logits, torch.tensor([0, 0]), 15)
    assert expected > 0.4
    assert measure.calibration_error(logits, torch.tensor([0, 0])) == pytest.approx(expected, abs=1e-6)


def test_a_confidence_on_a_boundary_belongs_to_the_upper_bin():
    logits = as_logits([0.5, 0.5, 0, 0], [0.4, 0.2, 0.2, 0.2])
    assert logits.softmax(1)[0, 0] == 0.5
    labels = torch.tensor([0, 1])  # right at 0.5, wrong at 0.4
    assert measure.calibration_error(logits, labels, bins=2) == pytest.approx((0.5 + 0.4) / 2, abs=1e-6)
    assert measure.calibration_error(logits, labels, bins=1) == pytest.approx(0.05, abs=1e-6)


def test_a_confidence_of_exactly_one_belongs_to_the_last_bin():
    logits = as_logits([1, 0], [0.95, 0.05])
    assert logits.softmax(1)[0, 0] == 1
    labels = torch.tensor([1, 0])  # wrong at 1, right at 0.95: together accuracy 0.5, confidence 0.975
    assert measure.calibration_error(logits, labels) == pytest.approx(0.475, abs=1e-6)


def test_probabilities_in_place_of_logits_are_warned_about():
    logits, labels = make_logits(20, 4)
    for probabilities in (logits.softmax(1), (5 * logits).softmax(1).bfloat16()):
        with pytest.warns(UserWarning, match="look like probabilities"):
            measure.calibration_error(probabilities, labels)


# --- repeated mistakes and one temperature


def test_repeated_mistakes_by_hand():
    labels = torch.tensor([0, 1, 2, 0, 1])
    teacher = torch.eye(3)[[0, 2, 1, 2, 0]]  # wrong on the last four
    student = torch.eye(3)[[1, 2, 2, 2, 1]]  # of these it repeats the first and the third
    assert measure.repeated_mistakes(student, teacher, labels) == 2 / 4
    assert measure.repeated_mistakes(teacher, teacher, labels) == 1
    assert math.isnan(measure.repeated_mistakes(student, torch.eye(3)[labels], labels))


def test_repeated_mistakes_do_not_depend_on_where_the_teacher_is_right():
    logits, labels = make_logits(200, 4)
    teacher, _ = make_logits(200, 4, seed=1)
    before = measure.repeated_mistakes(logits, teacher, labels)
    right = teacher.argmax(1) == labels
    changed = logits.clone()
    changed[right] = changed[right].flip(1)
    assert measure.repeated_mistakes(changed, teacher, labels) == before


def test_repeated_mistakes_need_one_shape():
    logits, labels = make_logits(6, 3)
    with pytest.raises(ValueError, match="evaluate both models on the same data"):
        measure.repeated_mistakes(logits, make_logits(6, 4)[0], labels)
    with pytest.raises(ValueError, match="labels have shape"):
        measure.repeated_mistakes(logits, logits, labels[:3])


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 3.0, 20.0])
def test_the_temperature_that_was_put_in_is_found(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert measure.fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.04)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_no_temperature_of_a_grid_is_better(seed, scale):
    logits, labels = make_logits(40, 3, seed)
    logits = logits * scale
    found = measure.fit_temperature(logits, labels)

    def cross_entropy(temperature):
        return nn.functional.cross_entropy(logits.double() / temperature, labels).item()

    assert 0.01 <= found <= 100
    assert cross_entropy(found) <= min(map(cross_entropy, torch.logspace(-2, 2, 401).tolist())) + 1e-6


def test_a_temperature_is_finite_where_there_is_no_best_one():
    logits, labels = torch.eye(3) * 0.01, torch.arange(3)
    assert measure.fit_temperature(logits, labels) == pytest.approx(0.01)  # all right: the sharper the better
    assert measure.fit_temperature(logits, labels.roll(1)) == pytest.approx(100)  # all wrong: the flatter the better
    for margin in (1, 10):  # in float64 the cross-entropy is then 0 at many temperatures
        assert measure.fit_temperature(margin * torch.eye(3), labels) == pytest.approx(0.01)
    assert measure.fit_temperature(torch.zeros(3, 3), labels) == 1  # it changes nothing
    for extreme in (1e4 * torch.eye(3), -1e4 * torch.eye(3), 1e-6 * torch.eye(3)):
        assert 0.01 <= measure.fit_temperature(extreme, labels) <= 100


def test_a_temperature_takes_what_the_other_measures_take():
    logits, labels = make_logits(50, 4)
    assert measure.fit_temperature(logits.bfloat16(), labels.int()) > 0
    with pytest.raises(ValueError, match="NaN or infinite"):
        measure.fit_temperature(logits / 0, labels)
    with pytest.raises(TypeError, match="labels must be a tensor"):
        measure.fit_temperature(logits, labels.float())


# --- what a user can get wrong in logits and labels


@pytest.mark.parametrize("function", [measure.accuracy, measure.calibration_error, measure.confusion])
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "logits are empty"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), r"shape \(3,\), but N x C"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), "at least 2 classes"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), r"labels have shape \(3,\).*need \(2,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long), "not one-hot"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "from 0 to 3, .* allow 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([-1, 2]), "from -1 to 2"),
        (torch.tensor([[1, math.nan], [0, 1]]), torch.tensor([0, 1]), "NaN or infinite in 1 of 2 rows"),
        (torch.tensor([[1, math.inf], [0, 1]]), torch.tensor([0, 1]), "diverged"),
    ],
)
def test_logits_and_labels_that_do_not_fit(function, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        function(logits, labels)


def test_logits_and_labels_of_the_wrong_type():
    logits, labels = make_logits(4, 3)
    with pytest.raises(TypeError, match="logits must be a floating-point tensor N x C, not list"):
        measure.accuracy(logits.tolist(), labels)
    with pytest.raises(TypeError, match=r"not torch\.int64"):
        measure.accuracy(labels, labels)
    with pytest.raises(TypeError, match=r"labels must be .* integers .*, not torch\.float32"):
        measure.accuracy(logits, labels.float())
    with pytest.raises(TypeError, match="not list"):
        measure.confusion(logits, labels.tolist())


def test_settings_out_of_range():
    logits, labels = make_logits(4, 3)
    for top_k in (0, 4, 1.5, True):
        with pytest.raises(ValueError, match="top_k of 3 classes is .* whole number from 1 to 3"):
            measure.accuracy(logits, labels, top_k)
    for bins in (0, -3, 2.0):
        with pytest.raises(ValueError, match="bins is .* at least 1"):
            measure.calibration_error(logits, labels, bins)


def test_agreement_names_the_logits_at_fault():
    logits = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"student_logits have shape \(4, 3\) and teacher_logits \(4, 5\)"):
        measure.agreement(logits, torch.zeros(4, 5))
    with pytest.raises(ValueError, match="the same examples"):
        measure.agreement(logits, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="teacher_logits are NaN"):
        measure.agreement(logits, torch.full((4, 3), math.nan))
    with pytest.raises(ValueError, match="student_logits are empty"):
        measure.agreement(torch.zeros(0, 3), torch.zeros(0, 3))


# --- parameters, bytes, MACs


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [("resnet18", 11_689_512, 1.81), ("resnet50", 25_557_032, 4.09), ("resnet152", 60_192_808, 11.51)],
)
def test_published_counts_on_the_meta_device(name, parameters, gmacs):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    assert measure.count_parameters(model) == parameters
    assert measure.macs(model, (3, 224, 224)) / 1e9 == pytest.approx(gmacs, abs=0.006)


def test_counts_by_hand():
    model = tiny()
    assert measure.count_parameters(model) == TINY_PARAMETERS
    assert measure.macs(model, SHAPE) == TINY_MACS
    # 4 + 4 + 8: batch norm's mean, variance and its count of batches
    assert measure.bytes_in_memory(model) == 4 * (TINY_PARAMETERS + 4 + 4) + 8
    assert measure.macs(nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4), (8, 10, 10)) == 5 * 5 * 16 * 2 * 9
    assert measure.macs(nn.ReLU(), SHAPE) == 0


def test_macs_counts_attention():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    assert measure.macs(model, (3, 224, 224)) / 1e9 == pytest.approx(17.56, abs=0.01)


def test_frozen_parameters_count_and_shared_ones_count_once():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    assert measure.count_parameters(model) == 40
    model[2].weight = model[1].weight
    assert measure.count_parameters(model) == 24
    assert measure.bytes_in_memory(model) == 24 * 4
    state = model.state_dict()
    del state["1.weight"]
    assert measure.bytes_saved(model) == len(save(state))
    assert measure.macs(model, (1, 2, 2)) == 2 * 16  # shared weights still work twice


def test_bytes_saved_is_the_size_of_the_file(tmp_path):
    model = tiny().to(memory_format=torch.channels_last)
    model.register_buffer("cache", torch.zeros(1000), persistent=False)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "full.safetensors")
    halved = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    save_file(halved, tmp_path / "half.safetensors")
    assert measure.bytes_saved(model) == (tmp_path / "full.safetensors").stat().st_size
    assert measure.bytes_saved(model, half=True) == (tmp_path / "half.safetensors").stat().st_size
    assert measure.bytes_saved(model.to("meta"), half=True) == (tmp_path / "half.safetensors").stat().st_size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_precisions(dtype):
    model = tiny().to(dtype)
    assert measure.macs(model, SHAPE) == TINY_MACS
    assert measure.bytes_in_memory(model) == dtype.itemsize * (TINY_PARAMETERS + 8) + 8
    assert measure.latency(model, SHAPE, min_run_time=0.001).median > 0


class Awkward(nn.Module):
    """Cannot run on meta: holds a plain tensor and looks at values."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.scale = torch.ones(4)

    def forward(self, images):
        features = images.flatten(1) * self.scale
        return self.layer(features) if features.sum().item() >= 0 else features


def test_macs_falls_back_to_the_models_own_device():
    model = Awkward()
    assert measure.macs(model, (1, 2, 2)) == 8
    assert model.training
    with pytest.raises(ValueError, match=r"\(1, 3, 2\).*size of tensor a \(6\)"):
        measure.macs(model, (1, 3, 2))
    with pytest.raises(ValueError, match="failed on an input"):
        measure.macs(Awkward().to("meta"), (1, 2, 2))


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 48)

    def forward(self, tokens):
        q, k, v = self.layer(tokens).view(*tokens.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v)


class Tokens(nn.Module):
    """A layer on the pixels of an image as tokens; awkward: it looks at a value, which the meta device has not."""

    def __init__(self, layer, awkward):
        super().__init__()
        self.layer, self.awkward = layer, awkward

    def forward(self, images):
        tokens = images.flatten(2).mT
        return self.layer(tokens * 2 if self.awkward and tokens.sum().item() > 1e9 else tokens)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [(Attends(), 20_480), (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 40_960)],
)
def test_macs_of_attention_are_the_same_where_the_meta_device_is_impossible(layer, expected):
    assert [measure.macs(Tokens(layer, awkward), (16, 4, 4)) for awkward in (False, True)] == [expected, expected]


class Recurrent(nn.Module):
    """The rows of an image one after another; its forward makes the first hidden state on the CPU, never on "meta"."""

    def __init__(self, kind, given):
        super().__init__()
        self.layer, self.given = kind(8, 16, num_layers=2, batch_first=True), given

    def forward(self, images):
        first = torch.zeros(2, len(images), 16)
        state = (first, first) if isinstance(self.layer, nn.LSTM) else first
        return self.layer(images.squeeze(1), state if self.given else None)[0][:, -1]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_macs_of_recurrent_layers_are_the_same_whoever_makes_their_state(kind, gates):
    libraries = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    counts = [measure.macs(Recurrent(kind, given), (1, 5, 8)) for given in (False, True)]
    assert counts == [5 * gates * 16 * (8 + 16 + 16 + 16)] * 2
    assert (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled) == libraries


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


def hidden() -> nn.Module:
    """As compress.quantize_pt2e gives it, without half a minute of compilation."""
    return nn.Sequential(compress.CompiledNetwork(flat()))


def packed() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(flat(), {nn.Linear})


COUNTED = [measure.count_parameters, measure.count_nonzero, measure.bytes_in_memory]
WRITTEN = [measure.bytes_saved, measure.zipped_bytes, lambda model: measure.macs(model, (1, 8, 8))]


@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization is deprecated, and used
@pytest.mark.parametrize("make", [hidden, packed])
def test_weights_inside_a_program_are_refused_and_are_nan_beside_a_network_that_is_counted(make) -> None:
    """They are no parameters: each of these gave 0, or a page of torch's."""
    model = make()
    for count in [*COUNTED, *WRITTEN]:
        with pytest.raises(ValueError, match=r"inside a program.* Take the network that it was made from"):
            count(model)
    table = measure.summary({"float": flat(), "integers": model}, (1, 8, 8), timed=True)
    assert table.loc["float", ["parameters", "MACs", "MB"]].tolist() == [2410, 2368, 0.00964]
    assert table.loc["integers", ["parameters", "MACs", "MB"]].isna().all()
    assert table.loc["integers", "latency ms"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_of_weights_that_torchao_quantizes_the_integers_and_scales_are_counted() -> None:
    """They call themselves float32, of four bytes a number."""
    quantization = pytest.importorskip("torchao.quantization")
    for config in (quantization.Int8WeightOnlyConfig(), quantization.Int8DynamicActivationInt8WeightConfig()):
        model = flat()
        quantization.quantize_(model, config)
        integers, scales, biases = 64 * 32 + 32 * 10, 4 * (32 + 10), 4 * (32 + 10)
        assert measure.count_parameters(model) == 2410
        assert measure.bytes_in_memory(model) == pytest.approx(integers + scales + biases, rel=0.05)
        for count in [measure.count_nonzero, *WRITTEN]:
            with pytest.raises(ValueError, match=r"1\.weight is a .*whose numbers lie in other tensors"):
                count(model)


def test_a_masked_network_is_counted_and_timed() -> None:
    """Its masked weight is a tensor that torch refuses to copy."""
    model = models.build("resnet8", num_classes=10, in_channels=1, seed=0)
    whole = measure.macs(model, (1, 28, 28))
    prune.l1_unstructured(model.conv1, "weight", amount=0.5)
    model(torch.zeros(2, 1, 28, 28)).sum().backward()
    assert measure.macs(model, (1, 28, 28)) == whole
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(measure.copy_without_hooks(model, "cpu", computed=True)(images), model.eval()(images))


def test_macs_does_not_run_the_models_forward_hooks():
    model, seen = tiny(), []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    measure.macs(model, SHAPE)
    assert seen == []
    model(torch.zeros(2, *SHAPE))
    assert len(seen) == 1


def test_macs_of_a_model_that_holds_activations():
    """Tensors with a graph cannot be deep-copied, so what a hook has kept must not be reached."""

    class Keeper:
        def hook(self, module, inputs, output):
            self.kept = output

    model, keeper = tiny(), Keeper()
    model[0].register_forward_hook(keeper.hook)
    model(torch.zeros(2, *SHAPE))
    assert keeper.kept.grad_fn is not None
    assert measure.macs(model, SHAPE) == TINY_MACS
    assert keeper.kept.shape == (2, 4, 8, 8)


# --- latency


def test_latency_reports_what_was_timed():
    result = measure.latency(tiny(), SHAPE, batch_size=3, threads=1, min_run_time=0.02)
    assert (result.batch_size, result.threads) == (3, 1)
    assert min(result.runs) <= result.median <= max(result.runs)
    assert 0 <= result.iqr <= max(result.runs) - min(result.runs)
    with pytest.raises(AttributeError):
        result.median = 0


def test_latency_is_the_time_of_one_pass():
    """A layer that sleeps 5 ms: the unit is seconds, a pass is not a block, and the batch is the given one."""

    passes = []

    class Slow(nn.Module):
        def forward(self, images):
            assert images.shape == (2, *SHAPE)
            assert not self.training
            assert not torch.is_grad_enabled()
            passes.append((torch.is_inference_mode_enabled(), torch.get_num_threads()))
            time.sleep(0.005)
            return images

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result = measure.latency(Slow(), SHAPE, batch_size=2, threads=1, min_run_time=0.05)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert 0.005 <= result.median < 0.05
    assert len(result.runs) >= 5
    assert set(passes[1:]) == {(True, 1)}  # the first one, which is not timed, may leave tensors in the network


def test_a_slow_model_is_timed_more_than_once():
    class Slow(nn.Module):
        def forward(self, images):
            time.sleep(0.02)
            return images

    result = measure.latency(Slow(), SHAPE, threads=1, min_run_time=0.001)
    assert len(result.runs) >= 3


def test_a_run_of_a_very_fast_model_is_one_pass_of_a_block():
    results = [measure.latency(nn.Identity(), SHAPE, threads=1, min_run_time=0.01) for _ in range(3)]
    assert all(min(one.runs) <= one.median <= max(one.runs) for one in results)
    # Each run stands for several passes, unless another program took the core while torch chose how many.
    assert min(sum(one.runs) for one in results) < 0.005


def test_latency_reads_well():
    text = str(measure.Latency(0.01234, 0.0005, (0.012, 0.013), batch_size=8, threads=2))
    assert text == "12.340 ms (IQR 0.500 ms over 2 runs, batch of 8, 2 threads)"
    text = str(measure.Latency(1.25, 0, (1.25,), batch_size=1, threads=1))
    assert text == "1250.000 ms (IQR 0.000 ms over 1 run, batch of 1, 1 thread)"


def test_latency_on_the_given_device():
    model = tiny()
    assert measure.latency(model, SHAPE, min_run_time=0.001, device="cpu").median > 0
    with pytest.raises(ValueError, match="meta device has shapes but no weights"):
        measure.latency(model, SHAPE, device="meta")
    with pytest.raises(ValueError, match="meta device has shapes but no weights"):
        measure.latency(tiny().to("meta"), SHAPE)
    with pytest.raises(ValueError, match=r"could not be copied to device 'gpu'.* on 'cpu'"):
        measure.latency(model, SHAPE, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="could not be copied to device 'cuda'"):
            measure.latency(model, SHAPE, device="cuda")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"min_run_time": 0}, "min_run_time is 0"),
        ({"min_run_time": math.nan}, "min_run_time is nan"),
        ({"min_run_time": math.inf}, "min_run_time is inf"),
    ],
)
def test_latency_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        measure.latency(tiny(), SHAPE, **settings)


# --- memory of a forward pass


class Stages(nn.Module):
    """Two linear stages of known width; `kept` holds every output until the pass has ended."""

    def __init__(self, kept: bool, *widths: int) -> None:
        super().__init__()
        self.kept = kept
        self.stages = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, images):
        x, all_of_them = images.flatten(1), []
        for stage in self.stages:
            x = stage(x)
            if self.kept:
                all_of_them.append(x)
        return x


def test_peak_memory_by_hand():
    """An output of w numbers takes 4 w bytes; that of the stage before lasts until the next one is there."""
    widths = (3 * 8 * 8, 5_000, 2_000, 10)
    assert measure.peak_memory(Stages(False, *widths), SHAPE) == 4 * (5_000 + 2_000)
    assert measure.peak_memory(Stages(True, *widths), SHAPE) == 4 * (5_000 + 2_000 + 10)
    assert measure.peak_memory(Stages(False, *widths), SHAPE, batch_size=3) == 3 * 4 * (5_000 + 2_000)
    assert measure.peak_memory(nn.Identity(), SHAPE) == 0


def test_peak_memory_counts_a_map_and_what_the_kernel_takes():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True))
    once = 4 * 16 * 32 * 32
    assert once <= measure.peak_memory(model, (3, 32, 32)) < 40 * once


def test_peak_memory_leaves_the_model_as_it_was_and_writes_nothing(capfd):
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    assert measure.peak_memory(model, SHAPE) > 0
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="batch_size is 0"):
        measure.peak_memory(model, SHAPE, batch_size=0)
    with pytest.raises(ValueError, match="meta device has shapes but no weights"):
        measure.peak_memory(tiny().to("meta"), SHAPE)


# --- what a user can get wrong in the model


@pytest.mark.parametrize("function", [measure.macs, measure.latency, measure.peak_memory])
@pytest.mark.parametrize(
    "shape", [(8, 8), (1, 3, 8, 8), (3, 0, 8), (3, -8, 8), (3, 8.0, 8), (3, 8, True), 8, "3x8", None]
)
def test_input_shape_must_be_channels_height_width(function, shape):
    with pytest.raises(ValueError, match=r"input_shape is .*\(channels, height, width\)"):
        function(tiny(), shape)


class Fails(nn.Linear):
    """A model that fails with this error, whatever it is given."""

    def __init__(self, error: Exception):
        super().__init__(2, 2)
        self.error = error

    def forward(self, images):
        raise self.error


@pytest.mark.parametrize("function", [measure.macs, measure.latency, measure.peak_memory])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes"),
        MemoryError(),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        NotImplementedError("The operator 'aten::im2col' is not currently implemented for the MPS device."),
    ],
)
def test_a_lack_of_memory_or_of_an_operator_is_not_taken_for_a_wrong_shape(function, error):
    with pytest.raises(type(error)) as caught:
        function(Fails(error), SHAPE)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


@pytest.mark.parametrize("function", [measure.macs, measure.latency, measure.peak_memory])
def test_a_shape_that_the_model_refuses(function):
    with pytest.raises(ValueError, match=r"(?s)expected input.* 3 channels.*takes 1 channel") as caught:
        function(tiny(), (1, 8, 8))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ValueError, match=r"(?s)cannot be multiplied.*16 x 16 pixels"):
        function(tiny(), (3, 16, 16))


@pytest.mark.parametrize(
    "function",
    [
        measure.count_parameters,
        measure.bytes_in_memory,
        measure.bytes_saved,
        lambda model: measure.macs(model, SHAPE),
        lambda model: measure.latency(model, SHAPE),
        lambda model: measure.peak_memory(model, SHAPE),
    ],
)
def test_not_a_model_or_not_one_yet(function):
    with pytest.raises(TypeError, match=r"torch\.nn\.Module is expected, not dict"):
        function({})
    with pytest.raises(ValueError, match="lazy layers"):
        function(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))


# --- models stay as they were


def snapshot(model: nn.Module) -> tuple:
    """State, gradients, devices, modes and requires_grad of a model, for comparison to the bit."""
    tensors = {name: (t.device, t.stride(), t.tolist()) for name, t in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return tensors, grads, flags, hooks, [id(t) for t in model.parameters()]


def half_trained() -> nn.Module:
    """A model in training with gradients, a frozen parameter, a shared batch norm in eval mode and a spectral norm."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5)
    model = nn.Sequential(tiny(), norm, nn.Sequential(norm), nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5)))
    model(torch.randn(4, *SHAPE)).square().sum().backward()
    model[0][6].bias.requires_grad_(False)
    norm.eval()
    return model


@pytest.mark.parametrize(
    "function",
    [
        measure.count_parameters,
        measure.count_nonzero,
        measure.bytes_in_memory,
        measure.bytes_saved,
        measure.zipped_bytes,
        lambda model: measure.macs(model, SHAPE),
        lambda model: measure.latency(model, SHAPE, batch_size=2, min_run_time=0.001),
        lambda model: measure.latency(model, SHAPE, min_run_time=0.001, device="cpu:0"),
        lambda model: measure.summary({"it": model}, SHAPE),
    ],
)
def test_a_model_is_unchanged_by_a_measure(function):
    model = half_trained()
    before = copy.deepcopy(snapshot(model))
    seed = torch.get_rng_state()
    function(model)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), seed)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("function", [measure.macs, measure.latency, measure.peak_memory])
def test_a_model_is_unchanged_by_a_measure_that_fails(function):
    model = half_trained()
    before = copy.deepcopy(snapshot(model))
    with pytest.raises(ValueError, match="failed on an input"):
        function(model, (1, 8, 8))
    assert snapshot(model) == before
    assert not torch.is_inference_mode_enabled()


def test_the_fallback_of_macs_leaves_the_model_alone():
    model = nn.Sequential(Awkward(), nn.BatchNorm1d(2))
    before = copy.deepcopy(snapshot(model))
    assert measure.macs(model, (1, 2, 2)) == 8
    assert snapshot(model) == before


# --- summary


def test_summary():
    table = measure.summary({"student": tiny(), "teacher": nn.Sequential(tiny(), nn.Linear(5, 5))}, SHAPE)
    assert list(table.index) == ["student", "teacher"]
    assert list(table.columns) == ["parameters", "MACs", "MB"]
    assert table.loc["student", "parameters"] == TINY_PARAMETERS
    assert table.loc["teacher", "MACs"] == TINY_MACS + 25
    assert table.loc["student", "MB"] == measure.bytes_in_memory(tiny()) / 1e6
    assert [str(table[column].dtype) for column in table] == ["int64", "int64", "float64"]


def test_summary_with_latency(monkeypatch):
    fixed = measure.Latency(0.002, 0, (0.002,), 1, 1)
    monkeypatch.setattr(measure, "latency", lambda model, shape: fixed)
    assert measure.summary({"it": tiny()}, SHAPE, timed=True).loc["it", "latency ms"] == 2


@pytest.mark.parametrize("models", [{}, [], tiny()])
def test_summary_needs_a_dict(models):
    with pytest.raises(ValueError, match="non-empty dict"):
        measure.summary(models, SHAPE)


def test_the_benchmarks_work_where_the_networks_are(monkeypatch):
    monkeypatch.syspath_prepend(Path(measure.__file__).parents[1] / "benchmarks")
    import steps

    images, labels = steps.batch(DeviceConfig(torch.device("meta"), False))
    assert images.device.type == labels.device.type == "meta"


@pytest.mark.slow
def test_importing_measure_is_cheap():
    root = Path(measure.__file__).parents[1]
    code = "import sys, kdlib.measure; print([m for m in ('torchmetrics', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_that_is_very_slow_is_not_timed_longer_for_the_sake_of_more_runs(monkeypatch):
    class Slow(nn.Module):
        def forward(self, images):
            time.sleep(0.03)
            return images

    monkeypatch.setattr(measure, "MAX_SECONDS", 0.05)
    result = measure.latency(Slow(), SHAPE, threads=1, min_run_time=0.001)
    assert len(result.runs) < measure.MIN_RUNS


def scripted(frozen: bool) -> tuple[nn.Module, Any]:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval()
    program = torch.jit.script(network)
    if frozen:
        return network, torch.jit.freeze(program)
    file = io.BytesIO()
    torch.jit.save(program, file)
    file.seek(0)
    return network, torch.jit.load(file)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_parameters_of_a_loaded_torchscript_network_are_counted() -> None:
    network, loaded = scripted(frozen=False)
    assert measure.count_parameters(loaded) == measure.count_parameters(network)
    assert measure.bytes_in_memory(loaded) == measure.bytes_in_memory(network)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_weights_inside_a_frozen_program_are_not_counted_as_none() -> None:
    frozen = scripted(frozen=True)[1]
    for count in (measure.count_parameters, measure.count_nonzero, measure.bytes_in_memory, measure.bytes_saved):
        with pytest.raises(measure.UncountableError, match="whose weights are inside a program"):
            count(frozen)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["frozen", "exported"])
def test_programs_without_modes_are_timed(kind: str) -> None:
    network, program = scripted(frozen=True)
    if kind == "exported":
        program = torch.export.export(network, (torch.randn(1, 3, 12, 12),)).module()
    assert measure.latency(program, (3, 12, 12), min_run_time=0.01).median > 0
    assert measure.peak_memory(program, (3, 12, 12)) > 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["frozen", "exported"])
def test_a_network_with_such_a_part_is_timed_in_eval_mode(kind: str) -> None:
    first = nn.Conv2d(3, 4, 3).eval()
    exported = torch.export.export(first, (torch.randn(1, 3, 12, 12),)).module()
    part = torch.jit.freeze(torch.jit.script(first)) if kind == "frozen" else exported
    norm = nn.BatchNorm2d(4)
    network = nn.Sequential(part, norm, nn.Flatten(), nn.Linear(400, 3))
    norm.train()
    measure.latency(network, (3, 12, 12), min_run_time=0.01)
    assert (int(norm.num_batches_tracked), norm.training) == (0, True)
