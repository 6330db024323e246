"""Networks as ONNX, ExecuTorch and C files: the same answers, nothing printed, and what differs is not kept."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlib import cli, compress, data, export, measure, models, train
from kdlib.data import DataModule, InMemoryDataset
from kdlib.export import executorch as pte
from kdlib.export._common import refuse_changing_hooks
from kdlib.recipes import Recipe

pytest.importorskip("onnxscript")  # of the extra `export`
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[1]
FLOAT, INT8 = ("onnx", "executorch"), ("onnx-int8", "executorch-int8")


def call(*arguments: Any) -> int:
    """Run the command as a shell would, in this process; the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kdlib", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code or 0


@pytest.fixture(scope="module")
def network(blobs: DataModule) -> nn.Module:
    """A small trained network: two convolutions and a linear layer."""
    model = models.build("article-student", num_classes=3, in_channels=1, image_size=8, seed=0)
    recipe = Recipe("adamw", 1e-2, batch_size=16)
    train.fit(model, blobs, epochs=4, recipe=recipe, device="cpu", precision="fp32", progress=False)
    return model.eval()


@pytest.fixture(scope="module")
def images(blobs: DataModule) -> Tensor:
    return data.normalized_images(blobs.train)


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    return copy.deepcopy(model).eval()(images)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


# The files give the network's answers


@pytest.mark.slow
@pytest.mark.parametrize("given", [1, 5])
def test_an_onnx_file_gives_the_networks_logits_for_batches_of_any_size(
    given: int, network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    predict = export.load_onnx(export.to_onnx(network, tmp_path / "net.onnx", images[:given]))
    for count in (1, 2, 7):
        torch.testing.assert_close(predict(images[:count]), logits(network, images[:count]), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet8"])
def test_residual_networks_of_colour_images_become_onnx_files(name: str, tmp_path: Path) -> None:
    model = models.build(name, num_classes=5, in_channels=3, stem="imagenet", seed=0)
    pictures = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    predict = export.load_onnx(export.to_onnx(model, tmp_path / "net.onnx", pictures))
    torch.testing.assert_close(predict(pictures), logits(model, pictures), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FLOAT, *INT8])
def test_every_format_is_compared_and_measured(
    name: str, network: nn.Module, blobs: DataModule, tmp_path: Path
) -> None:
    if name.startswith("executorch"):
        pytest.importorskip("executorch")
    path = tmp_path / "net.bin"
    report = export.export(network, path, name, blobs)
    expected = train.evaluate(network, blobs.test, device="cpu", precision="fp32")
    predict = export.FORMATS[name].load(path)
    answers = predict(data.normalized_images(blobs.test))
    assert left_in(tmp_path) == ["net.bin"]
    assert (report.format, report.path, report.images) == (name, str(path), 30)
    assert report.bytes == path.stat().st_size > report.zipped_bytes > 0
    assert report.float_accuracy == expected.accuracy > 0.8
    assert report.accuracy == measure.accuracy(answers, blobs.test.labels)
    assert report.agreement == measure.agreement(answers, expected.logits) >= 0.95
    assert report.largest_difference == pytest.approx((answers - expected.logits).abs().max().item(), rel=1e-5)
    assert report.largest_difference < 1e-3 or name in INT8
    assert report.largest_difference > 1e-3 or name in FLOAT
    assert 0 < report.latency_ratio < 1000
    assert type(report)(**report.to_dict()) == report


@pytest.mark.slow
def test_int8_makes_a_file_of_matrices_about_four_times_smaller(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
    pictures = torch.randn(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = export.to_onnx(model, tmp_path / "plain.onnx", pictures)
    small = export.to_onnx_int8(model, tmp_path / "small.onnx", pictures)
    assert 2.5 < plain.stat().st_size / small.stat().st_size < 4


@pytest.mark.slow
def test_executorch_takes_images_and_networks_in_the_memory_order_that_training_leaves(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    """One channel in channels_last counts as contiguous, and makes a file that fails when it is run."""
    pytest.importorskip("executorch")
    model = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given = images.to(memory_format=torch.channels_last)
    assert given.stride()[1] == 1
    path = export.to_executorch(model, tmp_path / "net.pte", given)
    predict = export.load_executorch(path, threads=2)
    torch.testing.assert_close(predict(given[:5]), logits(network, images[:5]), atol=1e-4, rtol=1e-4)
    refused = pytest.raises(ValueError, match="takes float32 images N x 1 x 8 x 8; got torch.float32 of shape")
    with refused:
        predict(torch.zeros(2, 3, 8, 8))


@pytest.mark.slow
def test_c_is_reached_through_its_module(network: nn.Module, blobs: DataModule, tmp_path: Path) -> None:
    pytest.importorskip("kdlib.export.c_code")
    report = export.export(network, tmp_path / "net.c", "c", blobs)
    assert report.agreement >= 0.95
    assert left_in(tmp_path) == ["net.c"]


@pytest.mark.slow
def test_an_onnx_file_is_the_same_every_time_and_does_not_say_where_it_was_made(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    first, second = (export.to_onnx(network, tmp_path / name, images).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second
    assert b".py" not in first
    assert str(ROOT).encode() not in first


# The network is left as it was, and nothing is printed


@pytest.mark.slow
def test_the_network_is_left_as_it_was(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    model = copy.deepcopy(network).train()
    next(model.children()).eval()  # frozen by hand
    seen: list[str] = []
    model.register_forward_hook(lambda *_: seen.append("run"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    export.to_onnx_int8(model, tmp_path / "net.onnx", images)
    assert [module.training for module in model.modules()] == modes
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert seen == ["run"]  # to learn whether it changes the answers


def swap(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.roll(1, dims=1)


def test_a_forward_hook_that_changes_the_answers_is_refused(
    network: nn.Module, images: Tensor, blobs: DataModule, tmp_path: Path
) -> None:
    """The file and the network it is compared with are both made without hooks: they would agree, and be wrong."""
    model = copy.deepcopy(network).train()
    (tmp_path / "net").write_bytes(b"file")
    predict = lambda given: logits(network, given)  # noqa: E731
    calls: dict[str, Callable[[], Any]] = {
        "onnx": lambda: export.to_onnx(model, tmp_path / "net.onnx", images),
        "c": lambda: export.to_c(model, tmp_path / "net.c", images),
        "check": lambda: compare(predict, model, blobs, tmp_path / "net"),
    }
    for layer in (model, list(model.modules())[-1]):
        hook = layer.register_forward_hook(swap)
        for call_it in calls.values():
            with pytest.raises(ValueError, match="forward hook on .* changes the answers") as raised:
                call_it()
            assert "\n" not in str(raised.value)
        hook.remove()
    assert left_in(tmp_path) == ["net"]
    assert model.training


def test_a_hook_that_only_observes_is_allowed_whatever_the_precision(
    network: nn.Module, images: Tensor, blobs: DataModule, tmp_path: Path
) -> None:
    model = copy.deepcopy(network).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[torch.dtype] = []
    (tmp_path / "net").write_bytes(b"file")
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    compare(lambda given: logits(network, given), model, blobs, tmp_path / "net")
    export.to_c(model, tmp_path / "net.c", images)
    assert set(seen) == {torch.float64}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_nothing_is_written_to_the_screen(tmp_path: Path) -> None:
    """In a process of its own, where every import and every first warning happens."""
    program = (
        "import torch; from kdlib import export, models\n"
        "model = models.build('resnet8', num_classes=3, in_channels=1, seed=0); images = torch.randn(4, 1, 8, 8)\n"
        f"path = {str(tmp_path / 'net.onnx')!r}\n"
        "export.to_onnx(model, path, images); export.to_onnx_int8(model, path, images)\n"
        "export.load_onnx(path)(images); print('said after')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr, done.returncode) == ("said after\n", "", 0)


@pytest.mark.slow
def test_executorch_writes_nothing_to_the_screen(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    program = (
        "import torch; from torch import nn; from kdlib import export\n"
        "model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))\n"
        f"images, path = torch.randn(4, 1, 8, 8), {str(tmp_path / 'net.pte')!r}\n"
        "export.to_executorch(model, path, images, images); export.load_executorch(path)(images); print('said after')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr, done.returncode) == ("said after\n", "", 0)


@pytest.mark.slow
def test_to_import_it_loads_none_of_the_heavy_packages() -> None:
    heavy = ("onnx", "onnxscript", "onnxruntime", "torchao", "executorch", "pandas", "torchmetrics")
    program = f"import sys, kdlib.export; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


# What differs is refused


def tampered(write: Callable[..., Path], amount: float) -> Callable[..., Path]:
    """The same writer, of a network whose weights were changed."""

    def altered(model: nn.Module, path: Path, images: Tensor) -> Path:
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(amount * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        return write(other, path, images)

    return altered


@pytest.mark.slow
@pytest.mark.parametrize(("name", "amount"), [("onnx", 0.02), ("onnx-int8", 2.0)])
def test_a_tampered_export_is_refused_and_nothing_is_left(
    name: str, amount: float, network: nn.Module, blobs: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = export.FORMATS[name]
    monkeypatch.setitem(export.FORMATS, name, replace(known, write=tampered(known.write, amount)))
    (tmp_path / "before.onnx").write_text("stood here")
    for target in ("before.onnx", "folder/new.onnx"):
        with pytest.raises(ValueError, match=f"The {name} export was refused and not kept"):
            export.export(network, tmp_path / target, name, blobs)
    assert left_in(tmp_path) == ["before.onnx"]
    assert (tmp_path / "before.onnx").read_text() == "stood here"


@pytest.mark.slow
def test_int8_that_was_calibrated_on_nothing_is_refused(
    network: nn.Module, images: Tensor, blobs: DataModule, tmp_path: Path
) -> None:
    path = export.to_onnx_int8(network, tmp_path / "net.onnx", torch.zeros_like(images))
    with pytest.raises(ValueError, match=r"chooses the network's class for .* and 95.0% is asked for"):
        compare(export.load_onnx(path), network, blobs, path, quantized=True)


def compare(predict: export.Predict, model: nn.Module, blobs: DataModule, path: Path, **how: Any) -> Any:
    how = {"format": "onnx", "quantized": False, "seconds": 0.001} | how
    return export.check(predict, model, blobs.validation, path=path, **how)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda right: right[:, :2], "it gives logits of"),
        (lambda right: right[:1], "it gives logits of"),
        (lambda right: right / 0, "its logits are not finite for 30 of 30 images"),
        (lambda right: right.index_fill(0, torch.tensor([7]), float("nan")), "not finite for 1 of 30"),
        (lambda right: right + 0.5, "its logits differ by up to 0.5"),
        (lambda right: right.reshape(1, 2, 3, 4, 5), "it fails on images that the network takes"),
    ],
)
def test_what_an_export_must_not_give(
    wrong: Callable[[Tensor], Tensor], said: str, network: nn.Module, blobs: DataModule, tmp_path: Path
) -> None:
    (tmp_path / "net").write_bytes(b"x")
    with pytest.raises(ValueError, match=said):
        compare(lambda images: wrong(logits(network, images)), network, blobs, tmp_path / "net")


def test_the_threshold_of_agreement_is_the_callers(network: nn.Module, blobs: DataModule, tmp_path: Path) -> None:
    """Three of 30 validation images get another class: an agreement of 0.9."""
    (tmp_path / "net").write_bytes(bytes(1000))

    def predict(images: Tensor) -> Tensor:
        right = logits(network, images)
        return torch.cat([right[:3].roll(1, dims=1), right[3:]]) if len(images) == 30 else right

    with pytest.raises(ValueError, match="90.0% of 30 images, and 95.0% is asked for"):
        compare(predict, network, blobs, tmp_path / "net", quantized=True)
    report = compare(predict, network, blobs, tmp_path / "net", quantized=True, least_agreement=0.9)
    assert report.agreement == 0.9
    assert (report.bytes, report.zipped_bytes < 100) == (1000, True)


@pytest.mark.parametrize(
    ("format", "overflow", "named"), [("onnx-int8", True, True), ("onnx-int8", False, False), ("c", True, False)]
)
def test_a_processor_that_adds_int8_products_wrongly_is_named(
    format: str, overflow: bool, named: bool, network: nn.Module, blobs: DataModule, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(compress, "sums_overflow", lambda: overflow)
    (tmp_path / "net").write_bytes(b"x")
    with pytest.raises(ValueError, match="95.0% is asked for") as raised:
        compare(
            lambda images: -logits(network, images), network, blobs, tmp_path / "net", quantized=True, format=format
        )
    assert ("VNNI" in str(raised.value)) is named


def test_the_latency_ratio_tells_slow_from_fast(network: nn.Module, images: Tensor) -> None:
    def slow(batch: Tensor) -> Tensor:
        time.sleep(0.02)
        return batch

    assert export.latency_ratio(slow, network, images[:1], 0.001) > 2
    assert export.latency_ratio(lambda batch: batch, network, images[:1], 0.001) < 0.5


def test_timing_leaves_a_network_in_train_mode_as_it_was() -> None:
    """In train mode a batch norm would take the one image that is timed for its data."""
    networks = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).train() for _ in range(2)]
    networks[0][0].eval()
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in networks]
    export.latency_ratio(*networks, X[:1], 0.001)
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert network.training
        assert network[1].training
    assert not networks[0][0].training


@pytest.mark.parametrize("made", ["frozen TorchScript", "torch.export"])
def test_a_program_whose_mode_is_fixed_is_timed_as_it_is(made: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    if made == "torch.export":
        program = torch.export.export(network, (X[:1],)).module()
    else:
        program = torch.jit.freeze(torch.jit.trace(network, X[:1]))
    assert export.latency_ratio(program, network, X[:1], 0.001) > 0


def test_a_hook_is_found_out_though_a_class_is_masked() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x).masked_fill(torch.arange(3) == 2, -math.inf)

    network, images = Masked().eval(), torch.randn(2, 4)
    with network.fc.register_forward_hook(lambda *given: None):
        refuse_changing_hooks(network, images)
    with (
        network.fc.register_forward_hook(lambda module, inputs, output: 2 * output),
        pytest.raises(ValueError, match="fc changes the answers"),
    ):
        refuse_changing_hooks(network, images)


# Bad input, each in a sentence


class Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Eigenvalues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[:, 0]).real


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def diverged() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.constant_(model[1].weight, float("nan"))
    return model


class Masked(nn.Module):
    """Its mask leaves out the last class, as a mask of attention leaves out positions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 3)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, float("-inf")]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) + self.mask.softmax(0)


def test_a_network_with_a_mask_is_exported(tmp_path: Path) -> None:
    network = Masked()
    export.to_onnx(network, tmp_path / "net.onnx", X)
    assert torch.allclose(export.load_onnx(tmp_path / "net.onnx")(X), network(X), atol=1e-5)
    network.mask[0] = float("nan")
    with pytest.raises(ValueError, match="mask is not finite"):
        export.to_onnx(network, tmp_path / "again.onnx", X)


@pytest.mark.slow
def test_zeros_that_masks_hold_are_written_as_plain_weights(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 3))
    sparse = compress.prune_weights(network, 0.5)
    path = export.to_onnx(sparse, tmp_path / "net.onnx", X)
    assert path.stat().st_size < 1.05 * export.to_onnx(network, tmp_path / "plain.onnx", X).stat().st_size
    assert torch.allclose(export.load_onnx(path)(X), sparse(X), atol=1e-5)
    assert isinstance(network[1].weight, nn.Parameter)
    assert "1.parametrizations.weight.original" in sparse.state_dict()  # the caller's goes on with its masks


X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
NET = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
BAD = {
    "no network": (lambda path: export.to_onnx("resnet8", path, X), TypeError, "model is an nn.Module; got str"),
    "class": (lambda path: export.to_onnx(nn.ReLU, path, X), TypeError, "model is an nn.Module"),
    "no path": (lambda path: export.to_onnx(NET, None, X), TypeError, "path is the path of a file"),
    "a folder": (lambda path: export.to_onnx(NET, path.parent, X), OSError, "Could not write"),
    "below a file": (lambda path: export.to_onnx(NET, Path(__file__) / "x.onnx", X), OSError, "is not a folder"),
    "array": (lambda path: export.to_onnx(NET, path, X.numpy()), TypeError, "example is a tensor of normalized images"),
    "bytes": (lambda path: export.to_onnx(NET, path, X.byte()), TypeError, "torch.float32; got torch.uint8"),
    "one image": (lambda path: export.to_onnx(NET, path, X[0]), ValueError, r"expected N x C x H x W"),
    "no image": (lambda path: export.to_onnx(NET, path, X[:0]), ValueError, "example are empty"),
    "infinite image": (lambda path: export.to_onnx(NET, path, X / 0), ValueError, "NaN or infinite"),
    "other size": (lambda path: export.to_onnx(NET, path, X[..., :5]), ValueError, "cannot take images of 1 x 8 x 5"),
    "diverged": (lambda path: export.to_onnx(diverged(), path, X), ValueError, "1.weight is not finite"),
    "meta": (lambda path: export.to_onnx(copy.deepcopy(NET).to("meta"), path, X), ValueError, "real device"),
    "lazy": (lambda path: export.to_onnx(nn.LazyLinear(3), path, X), ValueError, "lazy"),
    "pair": (lambda path: export.to_onnx(Pair(), path, X), ValueError, "gives a tuple .* expected one tensor"),
    "maps": (lambda path: export.to_onnx(Maps(), path, X), ValueError, "expected one tensor of logits N x classes"),
    "undecided": (lambda path: export.to_onnx(Undecided(), path, X), ValueError, "Undecided cannot be traced"),
    "unknown layer": (lambda path: export.to_onnx(Eigenvalues(), path, X), ValueError, "written as ONNX .*linalg_eig"),
    "empty calibration": (lambda path: export.to_onnx_int8(NET, path, X[:0]), ValueError, "calibration are empty"),
    "NaN calibration": (lambda path: export.to_onnx_int8(NET, path, X * float("nan")), ValueError, "NaN or infinite"),
    "calibration": (lambda path: export.to_onnx_int8(NET, path, [X]), TypeError, "calibration is a tensor"),
    "nothing there": (lambda path: export.load_onnx(path), FileNotFoundError, "There is no file"),
    "no ONNX": (lambda path: export.load_onnx(__file__), ValueError, "is not an ONNX file that can be run"),
    "no threads": (lambda path: export.load_onnx(__file__, threads=0), ValueError, "threads is a whole number"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("call", "kind", "said"), BAD.values(), ids=BAD)
def test_bad_input_ends_in_a_sentence(call: Callable, kind: type[Exception], said: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=said) as raised:
        call(tmp_path / "net.onnx")
    assert "\n" not in str(raised.value)
    assert left_in(tmp_path) == []


BAD_EXPORTS = {
    "near match": ({"format": "onx-int8"}, ValueError, "no format named 'onx-int8'. Did you mean 'onnx-int8'"),
    "no format": ({"format": None}, ValueError, "no format named None"),
    "data by name": ({"data": "fashion-mnist"}, TypeError, "data is a DataModule"),
    "no images": ({"images": 0}, ValueError, "images is a whole number of at least 1"),
    "threshold": ({"least_agreement": 1.5}, ValueError, "least_agreement is a share"),
    "validation": ({"validation": "yes"}, TypeError, "validation is True or False"),
    "other images": ({"model": nn.Sequential(nn.Flatten(), nn.Linear(9, 3))}, ValueError, "cannot take images"),
    "other classes": ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 4))}, ValueError, "gives 4 logits"),
    "a folder": ({"path": Path(__file__).parent}, IsADirectoryError, "Give the name of a file in it"),
    "below a file": ({"path": Path(__file__) / "x.onnx"}, OSError, "is not a folder"),
}


@pytest.mark.parametrize(("given", "kind", "said"), BAD_EXPORTS.values(), ids=BAD_EXPORTS)
def test_a_bad_export_ends_in_a_sentence(
    given: dict[str, Any], kind: type[Exception], said: str, blobs: DataModule, tmp_path: Path
) -> None:
    call = {"model": NET, "path": tmp_path / "net.onnx", "format": "onnx", "data": blobs} | given
    with pytest.raises(kind, match=said) as raised:
        export.export(**call)
    assert "\n" not in str(raised.value)
    assert left_in(tmp_path) == []


def test_classes_in_another_order_are_noticed(blobs: DataModule, tmp_path: Path) -> None:
    model = copy.deepcopy(NET)
    model.classes = ("b", "a", "c")  # type: ignore[assignment]  # as models.load notes them
    with pytest.raises(ValueError, match="the same classes in another order"):
        export.export(model, tmp_path / "net.onnx", "onnx", blobs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("onnx", "onnx", "export"),
        ("onnxscript", "onnx-int8", "export"),
        ("onnxruntime", "onnx-int8", "export"),
        ("onnxruntime", "onnx", "export"),
        (pte.PARTITIONER, "executorch", "deploy"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    package: str, name: str, extra: str, blobs: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it now raises ImportError
    with pytest.raises(ImportError, match=rf"package {package.partition('.')[0]}, .*pip install \"kdlib\[{extra}\]\""):
        export.export(NET, tmp_path / "net", name, blobs)
    assert left_in(tmp_path) == []


@pytest.mark.slow
def test_a_file_that_is_no_executorch_network_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    for content in (b"", b"no network" * 100, b"<\0\0\0ET12eh00" + bytes(500)):
        (tmp_path / "net.pte").write_bytes(content)
        with pytest.raises(ValueError, match="is not an ExecuTorch file that can be run"):
            export.load_executorch(tmp_path / "net.pte")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        export.load_executorch(tmp_path / "absent.pte")


def test_an_onnx_file_of_other_inputs_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    number = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info(name, number, [2]) for name in ("a", "b")]
    output = onnx.helper.make_tensor_value_info("sum", number, [2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["a", "b"], ["sum"])], "g", inputs, [output])
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "sum.onnx")
    with pytest.raises(ValueError, match="expected one batch of images"):
        export.load_onnx(tmp_path / "sum.onnx")


@pytest.mark.slow
def test_a_truncated_onnx_file_and_images_of_another_shape_are_refused(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    path = export.to_onnx(network, tmp_path / "net.onnx", images)
    predict = export.load_onnx(path)
    wrong = (images[:0], images[0], images[:, :, 1:], images.repeat(1, 3, 1, 1), images.double())
    for given in wrong:
        with pytest.raises(ValueError, match="takes float32 images N x 1 x 8 x 8; got"):
            predict(given)
    with pytest.raises(TypeError, match="images is a tensor"):
        predict(images.numpy())  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not an ONNX file that can be run"):
        export.load_onnx(path)


# The command


@pytest.fixture
def model_file(
    network: nn.Module, blobs: DataModule, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The trained network's file; the command's --data blobs are what it was trained on."""
    real = data.load
    monkeypatch.setattr(data, "load", lambda name, **how: blobs if name == "blobs" else real(name, **how))
    path = tmp_path_factory.mktemp("model") / "net.safetensors"
    models.save(network, path, classes=list(blobs.classes))
    return path


@pytest.mark.slow
def test_the_command_writes_files_a_table_and_a_report(
    model_file: Path, blobs: DataModule, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "er"
    assert call("export", model_file, "--data", "blobs", "--out", out, "--json") == 0
    printed, errors = capfd.readouterr()
    assert errors == ""
    lines = printed.splitlines()
    assert lines[0].split() == ["format", "bytes", "zipped", "accuracy", "agreement", "latency", "ratio"]
    assert left_in(out) == ["model-int8.onnx", "model.onnx", "report.json"]
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads(lines[-1])
    for row, one in zip(lines[1:3], report["formats"], strict=True):
        assert row.split()[:2] == [one["format"], f"{one['bytes']:,}"]
        assert f"{one['accuracy']:.4f}" in row
        assert one["bytes"] == Path(one["path"]).stat().st_size
        assert one["images"] == 30
    predict = export.load_onnx(out / "model-int8.onnx")
    answers = predict(data.normalized_images(blobs.test))
    assert report["formats"][1]["accuracy"] == measure.accuracy(answers, blobs.test.labels) > 0.8

    before = (out / "model.onnx").stat().st_mtime_ns
    assert call("export", model_file, "--data", "blobs", "--format", "onnx", "--out", out) == 2
    said = capfd.readouterr().err
    assert "holds an earlier run" in said
    assert "--overwrite" in said
    assert "--resume" not in said  # an option that this command does not have
    assert (out / "model.onnx").stat().st_mtime_ns == before
    options = ("--format", "onnx", "--format", "onnx", "--images", 10, "--validation", "--overwrite")
    assert call("export", model_file, "--data", "blobs", *options, "--out", out) == 0
    assert left_in(out) == ["model.onnx", "report.json"]  # what the earlier run left is gone
    assert [one["images"] for one in json.loads((out / "report.json").read_text())["formats"]] == [10]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "onnx-8"], "Did you mean 'onnx-int8'"),
        (["--format", "onnx", "--format", "tflite"], "no format named 'tflite'"),
        (["--out", __file__], "it is not a folder"),
        (["--data", "blob"], "no dataset named 'blob'"),
        (["--data", "fashion-mnist"], "was trained with other classes"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    options: list[str], said: str, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("export", model_file, "--data", "blobs", "--out", tmp_path / "out", *options) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert len(errors.splitlines()) == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.slow
def test_what_was_refused_is_not_in_the_folder_and_what_was_kept_is_reported(
    network: nn.Module, blobs: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = export.FORMATS["onnx-int8"]
    monkeypatch.setitem(export.FORMATS, "onnx-int8", replace(known, write=tampered(known.write, 2.0)))
    with pytest.raises(ValueError, match="The onnx-int8 export was refused"):
        export.export_all(network, tmp_path, ["onnx", "onnx-int8"], blobs)
    assert left_in(tmp_path) == ["model.onnx", "report.json"]
    assert [one["format"] for one in json.loads((tmp_path / "report.json").read_text())["formats"]] == ["onnx"]
    with pytest.raises(ValueError, match="formats are empty"):
        export.export_all(network, tmp_path, [], blobs, overwrite=True)
    with pytest.raises(TypeError, match=r"list of names; got the text 'onnx': give \['onnx'\]"):
        export.export_all(network, tmp_path, "onnx", blobs, overwrite=True)
    assert (tmp_path / "model.onnx").exists()


@pytest.mark.slow
def test_a_refused_export_leaves_the_files_that_it_should_replace(
    network: nn.Module, blobs: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export.export_all(network, tmp_path, ["onnx", "onnx-int8"], blobs)
    before = {name: (tmp_path / name).read_bytes() for name in left_in(tmp_path)}
    known = export.FORMATS["onnx"]
    monkeypatch.setitem(export.FORMATS, "onnx", replace(known, write=tampered(known.write, 2.0)))
    with pytest.raises(ValueError, match="The onnx export was refused"):
        export.export_all(network, tmp_path, ["onnx"], blobs, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in left_in(tmp_path)} == before
    strange = models.build("resnet8", num_classes=7, in_channels=1, seed=0)
    with pytest.raises(ValueError, match="7"):
        export.export_all(strange, tmp_path, ["onnx-int8"], blobs, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in left_in(tmp_path)} == before


@pytest.mark.slow
def test_images_are_compared_in_an_even_spread(blobs: DataModule, network: nn.Module, tmp_path: Path) -> None:
    """Of images in the order of their classes the first would be of one class alone."""
    order = blobs.test.labels.argsort(stable=True)
    ordered = replace(blobs, test=blobs.test.select(order))
    assert isinstance(ordered.test, InMemoryDataset)
    report = export.export(network, tmp_path / "net.onnx", "onnx", ordered, images=3)
    chosen = ordered.test.select(torch.tensor([0, 14, 29]))
    assert chosen.labels.tolist() == [0, 1, 2]
    expected = train.evaluate(network, chosen, device="cpu", precision="fp32")
    assert (report.images, report.float_accuracy) == (3, expected.accuracy)


@pytest.mark.slow
def test_calibration_images_of_bytes_are_a_matter_of_the_images(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(4, 1, 4, 4)
    with pytest.raises(TypeError, match="calibration are normalized images"):
        export.to_executorch(net, tmp_path / "net.pte", images, (255 * images).byte())


def test_float_logits_may_differ_by_a_thousandth_of_the_largest(
    network: nn.Module, blobs: DataModule, tmp_path: Path
) -> None:
    large = copy.deepcopy(network)
    large.fc.weight.data *= 1000
    large.fc.bias.data *= 1000
    largest = logits(large, data.normalized_images(blobs.validation)).abs().max().item()
    assert largest > 500
    (tmp_path / "net").write_bytes(b"x")
    compare(lambda images: logits(large, images) + 0.0005 * largest, large, blobs, tmp_path / "net")
    with pytest.raises(ValueError, match="its logits differ"):
        compare(lambda images: logits(large, images) + 0.002 * largest, large, blobs, tmp_path / "net")


def test_integers_are_calibrated_on_images_of_all_classes_in_whatever_order(images: Tensor) -> None:
    from kdlib.export._common import CALIBRATION_IMAGES, calibration_sample

    numbered = torch.arange(2 * CALIBRATION_IMAGES, dtype=torch.float32)[:, None, None, None]
    found = calibration_sample(numbered).flatten()
    assert (len(found), found[0], found[-1]) == (CALIBRATION_IMAGES, 0, 2 * CALIBRATION_IMAGES - 1)
    assert set(found.diff().tolist()) <= {2.0, 3.0}
    assert torch.equal(calibration_sample(numbered[:5]), numbered[:5])


def test_a_report_says_what_the_files_are_called_with_and_the_agreement_asked_for_reaches_each(
    network: nn.Module, blobs: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def made(model: nn.Module, path: Path, format: str, data: DataModule, **options: Any) -> export.ExportReport:
        asked.append(options["least_agreement"])
        return export.ExportReport(format, str(path), 1, 1, 0.5, 0.5, 1.0, 0.0, 1.0, 1)

    monkeypatch.setattr(export, "export", made)
    export.export_all(network, tmp_path, ["onnx", "onnx-int8"], blobs, least_agreement=0.8)
    assert asked == [0.8, 0.8]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == {"image_size": 8, "mean": [0.3], "std": [0.15]}
