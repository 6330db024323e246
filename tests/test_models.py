"""Models by name: sizes against published and hand-made counts, weights that come back, errors that say what to do."""

from __future__ import annotations

import copy
import os
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from kdlib import files, models, train
from kdlib.data import sources
from kdlib.models import STEMS

THIN = (8, 20, 32, 56)


def empty(name: str, num_classes: int = 10, **options) -> nn.Module:
    """A model without weights: enough to count and to name, and quick."""
    with torch.device("meta"):
        return models.build(name, num_classes=num_classes, **options)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def trained(seed: int = 0, num_classes: int = 10, name: str = "resnet8") -> nn.Module:
    """A small model whose running statistics are no longer those of a fresh one; in train mode."""
    model = models.build(name, num_classes=num_classes, in_channels=1, seed=seed)
    model(torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(seed)))
    return model


# --- build


def test_names():
    assert models.list_models() == [
        *("resnet18", "resnet34", "resnet50", "resnet8", "resnet14", "resnet20", "resnet32"),
        *("resnet56", "resnet20x2", "resnet8x4", "resnet20x4", "resnet32x4"),
        *("article-teacher", "article-student", "mobilenet-v3-small"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 28), (3, 32)], ids=["grey 28", "colour 32"])
@pytest.mark.parametrize("name", models.list_models())
def test_every_model_runs_forward_and_backward(name: str, size: tuple[int, int]):
    channels, side = size
    model = models.build(name, num_classes=7, in_channels=channels, image_size=side, seed=0)
    assert model.training
    logits = model(torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    assert model.config == {
        "architecture": name,
        "num_classes": 7,
        "in_channels": channels,
        "stem": "stride2",
        "image_size": side,
    }


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("mobilenet-v3-small", 2_542_856)],
)
def test_torchvisions_sizes(name: str, published: int):
    assert count(empty(name, 1_000, stem="imagenet")) == published
    if name.startswith("resnet"):
        assert count(empty(name, 1_000)) == published - 64 * 3 * (49 - 9)
        assert count(empty(name, 1_000, stem="stride1", in_channels=1)) == published - 64 * (3 * 49 - 9)
    else:  # its own stem is 3 x 3 already
        assert count(empty(name, 1_000, stem="stride1")) == published
        assert count(empty(name, 1_000, in_channels=1)) == published - 16 * 2 * 9


def thin_count(depth: int, channels: int, classes: int) -> int:
    total, inputs = channels * 9 * 16 + 2 * 16, 16
    for width in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            total += 9 * inputs * width + 9 * width * width + 4 * width
            total += inputs * width + 2 * width if inputs != width else 0
            inputs = width
    return total + 64 * classes + classes


@pytest.mark.parametrize(("depth", "pinned"), [(8, 78_042), (20, 272_474), (32, 466_906), (56, 855_770)])
def test_thin_resnets_have_the_sizes_of_the_benchmarks(depth: int, pinned: int):
    assert thin_count(depth, 3, 10) == pinned
    assert count(empty(f"resnet{depth}")) == pinned
    assert count(empty(f"resnet{depth}", 100, in_channels=1)) == thin_count(depth, 1, 100)


def test_thin_resnets_have_as_many_layers_as_they_say():
    for depth in THIN:
        layers = [
            name
            for name, module in empty(f"resnet{depth}").named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear)) and "shortcut" not in name
        ]
        assert len(layers) == depth


def test_the_articles_networks_by_hand():
    teacher, student = empty("article-teacher", in_channels=1), empty("article-student", in_channels=1)
    # 28 -> 14 -> 7 -> 3 pixels; filters times (inputs times 9, and a bias)
    assert count(teacher) == 32 * (9 + 1) + 64 * (32 * 9 + 1) + 128 * (64 * 9 + 1) + 10 * (128 * 3 * 3 + 1) == 104_202
    assert count(student) == 16 * (9 + 1) + 32 * (16 * 9 + 1) + 10 * (32 * 7 * 7 + 1) == 20_490
    assert count(empty("article-student", 100, image_size=32)) == 16 * 28 + 32 * 145 + 100 * (32 * 64 + 1)
    assert [name for name, _ in teacher.named_children()] == [
        *("conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "conv3", "relu3", "pool3", "flatten", "fc")
    ]


@pytest.mark.parametrize("name", models.list_models())
def test_outputs_are_logits(name: str):
    model = empty(name)
    assert not [m for m in model.modules() if isinstance(m, (nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Sigmoid))]
    assert isinstance(list(model.modules())[-1], nn.Linear)


@pytest.mark.parametrize("name", ["article-teacher", "article-student", "resnet8"])
def test_outputs_are_linear_in_the_last_layer(name: str):
    model = models.build(name, num_classes=4, in_channels=1, seed=0).eval()
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(images)
        model.fc.weight.mul_(3)
        model.fc.bias.mul_(3)
        torch.testing.assert_close(model(images), 3 * before)


# --- stems


@pytest.mark.parametrize(("stem", "sides"), [("stride1", (28, 32)), ("stride2", (14, 16)), ("imagenet", (7, 8))])
def test_stems_set_the_resolution_of_the_first_block(stem: str, sides: tuple[int, int]):
    model, seen = empty("resnet18", stem=stem), []
    model.layer1.register_forward_hook(lambda module, given, made: seen.append(tuple(given[0].shape)))
    for side in (28, 32):
        model(torch.empty(2, 3, side, side, device="meta"))
    assert seen == [(2, 64, side, side) for side in sides]


@pytest.mark.parametrize(("stem", "side"), [("stride1", 28), ("stride2", 14), ("imagenet", 14)])
def test_mobilenets_stems(stem: str, side: int):
    model, seen = empty("mobilenet-v3-small", stem=stem), []
    model.features[0].register_forward_hook(lambda module, given, made: seen.append(tuple(made.shape)))
    model.eval()(torch.empty(1, 3, 28, 28, device="meta"))
    assert seen == [(1, 16, side, side)]


def test_the_default_stem_is_stride2():
    assert empty("resnet18").conv1.stride == (2, 2)
    assert isinstance(empty("resnet18").maxpool, nn.Identity)
    assert list(STEMS) == ["stride1", "stride2", "imagenet"]


def test_the_imagenet_stem_is_torchvisions_network():
    from torchvision import models as zoo

    original = zoo.resnet18(num_classes=5).eval()
    built = models.build("resnet18", num_classes=5, stem="imagenet").eval()
    built.load_state_dict(original.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(built(images), original(images))


def test_new_stems_are_initialised_as_torchvision_does():
    # He et al. 2015, fan out: variance 2 / (filters * kernel area)
    for name, weight in (
        ("resnet18", lambda m: m.conv1.weight),
        ("mobilenet-v3-small", lambda m: m.features[0][0].weight),
    ):
        drawn = weight(models.build(name, num_classes=2, seed=0))
        wanted = (2 / (drawn.shape[0] * 9)) ** 0.5
        assert drawn.std().item() == pytest.approx(wanted, rel=0.12)


# --- seeds


@pytest.mark.parametrize("name", ["resnet8", "article-student", "mobilenet-v3-small"])
def test_a_seed_gives_the_same_weights_and_draws_from_no_global_generator(name: str, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPU was seeded"))
    state = torch.get_rng_state()
    first, again, other = (models.build(name, num_classes=10, seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert files.fingerprint(first) == files.fingerprint(again)
    assert files.fingerprint(first) != files.fingerprint(other)


def test_without_a_seed_the_global_generator_decides():
    torch.manual_seed(5)
    first, second = (models.build("resnet8", num_classes=2).state_dict() for _ in range(2))
    torch.manual_seed(5)
    again = models.build("resnet8", num_classes=2).state_dict()
    assert files.fingerprint(first) == files.fingerprint(again)
    assert files.fingerprint(first) != files.fingerprint(second)
    assert files.fingerprint(again) == files.fingerprint(models.build("resnet8", num_classes=2, seed=5).state_dict())


# --- bad requests


@pytest.mark.parametrize(
    ("name", "near"), [("resnet19", "resnet18"), ("ResNet50", "resnet50"), ("mobilenet", "mobilenet-v3-small")]
)
def test_an_unknown_model_lists_near_matches(name: str, near: str):
    with pytest.raises(ValueError, match=f"no model named '{name}'. Did you mean .*'{near}'.*Known: resnet18"):
        models.build(name, num_classes=10)


def test_an_unknown_stem_lists_near_matches():
    with pytest.raises(ValueError, match="no stem named 'stride3'. Did you mean .*'stride2'"):
        models.build("resnet18", num_classes=10, stem="stride3")


@pytest.mark.parametrize("what", ["num_classes", "in_channels", "image_size"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "10", None])
def test_numbers_are_whole_and_positive(what: str, value: object):
    with pytest.raises(ValueError, match=f"{what} is a whole number of at least 1; got"):
        models.build("resnet8", **{"num_classes": 10, what: value})


def test_an_image_too_small_for_the_pooling():
    for name, least in (("article-teacher", 8), ("article-student", 4)):
        with pytest.raises(ValueError, match=f"at least {least} pixels of a side; got {least - 1}"):
            models.build(name, num_classes=10, image_size=least - 1)
        assert models.build(name, num_classes=10, image_size=least)(torch.zeros(1, 3, least, least)).shape == (1, 10)


# --- save and load


def test_weights_come_back_exactly(tmp_path: Path):
    model = trained()
    model.to(memory_format=torch.channels_last)
    models.save(model, tmp_path / "m.safetensors", accuracy=0.93)
    state = torch.get_rng_state()
    loaded = models.load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), state)  # opening a teacher must not change what the student draws
    assert files.fingerprint(loaded.state_dict()) == files.fingerprint(model.state_dict())
    assert int(loaded.bn1.num_batches_tracked) == 1
    assert not any(module.training for module in loaded.modules())
    assert model.training  # the saved one stays as it was
    assert loaded.config == model.config
    assert files.load_tensors(tmp_path / "m.safetensors")[1] == {**model.config, "accuracy": 0.93}


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "article-teacher", "article-student", "mobilenet-v3-small"])
def test_a_model_is_built_again_as_it_was(name: str, tmp_path: Path):
    model = models.build(name, num_classes=3, in_channels=1, stem="stride1", image_size=20, seed=1)
    models.save(model, tmp_path / "m.safetensors")
    loaded = models.load(str(tmp_path / "m.safetensors"))
    assert loaded.config == model.config
    images = torch.randn(2, 1, 20, 20)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))


def test_half_precision_keeps_three_digits_in_half_the_bytes(tmp_path: Path):
    model = trained()
    before = copy.deepcopy(model.state_dict())
    models.save(model, tmp_path / "full.safetensors")
    models.save(model, tmp_path / "half.safetensors", half=True)
    assert files.fingerprint(model.state_dict()) == files.fingerprint(before)
    loaded = models.load(tmp_path / "half.safetensors").state_dict()
    for name, tensor in before.items():
        assert loaded[name].dtype == tensor.dtype, name
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-6, msg=name)
    assert files.fingerprint(loaded) != files.fingerprint(before)
    full, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full


@pytest.mark.slow
@pytest.mark.parametrize("value", [70_000.0, -70_000.0])
def test_half_precision_refuses_what_it_cannot_hold(tmp_path: Path, value: float):
    model = trained()
    path = tmp_path / "m.safetensors"
    models.save(model, path, half=True)
    before = path.read_bytes()
    model.layer1[0].bn1.weight.data[0] = value  # would come back as infinity
    with pytest.raises(ValueError, match="layer1.0.bn1.weight .* too large for 16 bits. Save it without half"):
        models.save(model, path, half=True)
    assert path.read_bytes() == before
    models.save(model, path)
    assert models.load(path).layer1[0].bn1.weight[0] == value


def test_a_foreign_model_has_no_name_to_store(tmp_path: Path):
    with pytest.raises(ValueError, match="not made by models.build.*safetensors.torch.save_model"):
        models.save(nn.Linear(2, 2), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_path(tmp_path: Path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(OSError, match="Could not write .*m.safetensors"):
        models.save(trained(), tmp_path / "file" / "m.safetensors")


def test_every_shipped_model_that_is_listed_loads():
    shipped = {"resnet8-fashion", "resnet20-fashion", "resnet20-fashion-v2", "resnet50-fashion", "resnet50-fashion-v2"}
    assert shipped <= set(models.list_pretrained())
    for name in models.list_pretrained():
        assert models.load(name).config["architecture"]


def test_shipped_models_are_found_by_name(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    for name in ("resnet8-fashion", "article-fashion"):
        models.save(trained(), tmp_path / f"{name}.safetensors")
        (tmp_path / f"._{name}.safetensors").write_bytes(b"what macOS writes beside it")
    assert models.list_pretrained() == ["article-fashion", "resnet8-fashion"]
    assert models.load("resnet8-fashion").config["architecture"] == "resnet8"
    with pytest.raises(ValueError, match="no trained model named 'resnet8-fasion'. Did you mean 'resnet8-fashion'"):
        models.load("resnet8-fasion")
    with pytest.raises(
        ValueError, match="no trained model named 'xyz'. Known: .*resnet50-imagenet, timm:NAME, PATH.safetensors"
    ):
        models.load("xyz")


def test_a_wheel_says_where_shipped_models_are_looked_for(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("KDLIB_DATA", raising=False)
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "site" / "kdlib" / "data" / "sources.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="resnet20-fashion.*looked for in .*set KDLIB_DATA"):
        models.load("resnet20-fashion")


def test_a_missing_path(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="There is no file .*none.safetensors. Check the path"):
        models.load(tmp_path / "none.safetensors")


def test_a_truncated_checkpoint(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    models.save(trained(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="m.safetensors is not a readable safetensors file .*truncated"):
        models.load(path)


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth"])
def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path, ending: str):
    path = tmp_path / f"m{ending}"
    torch.save({**trained().state_dict(), "trap": Trap(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match="pickles are not opened because they can run code") as caught:
        models.load(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_weights_without_a_config(tmp_path: Path):
    save_file(trained().state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="does not say which architecture.*models.load_weights"):
        models.load(tmp_path / "m.safetensors")


def test_a_config_that_does_not_fit_the_weights(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    config = models.build("resnet20", num_classes=10, in_channels=1).config
    files.save_tensors(path, trained().state_dict(), config)
    with pytest.raises(ValueError, match="m.safetensors belong to another architecture: .* are missing"):
        models.load(path)
    files.save_tensors(path, trained().state_dict(), {**config, "architecture": "resnet21"})
    with pytest.raises(ValueError, match="no model named 'resnet21'"):
        models.load(path)
    files.save_tensors(path, trained().state_dict(), {"architecture": "resnet8", "num_classes": 10})
    with pytest.raises(ValueError, match="m.safetensors .*does not say.* in_channels"):
        models.load(path)


# --- load_weights


def test_load_weights_sets_every_tensor():
    source, target = trained(0), trained(1)
    models.load_weights(
        target,
        {name: t.half() for name, t in source.state_dict().items() if t.is_floating_point()}
        | {name: t for name, t in source.state_dict().items() if not t.is_floating_point()},
    )
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_checkpoint_gives_back_the_student_of_the_run(tmp_path: Path, ema_decay: float | None):
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 1, 28, 28, generator=generator), torch.arange(8)) for _ in range(3)]
    options = {"epochs": 2, "ema_decay": ema_decay, "device": "cpu", "precision": "fp32", "progress": False}
    run = train.fit(trained(), batches, checkpoint=tmp_path / "built.safetensors", **options)
    loaded = models.load(tmp_path / "built.safetensors")
    assert files.fingerprint(loaded.state_dict()) == files.fingerprint(run.student.state_dict())

    own, again = (nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10)) for _ in range(2))
    path = tmp_path / "own.safetensors"
    run = train.fit(own, batches, checkpoint=path, **options)
    with pytest.raises(ValueError, match="models.read_weights"):
        models.load(path)
    models.load_weights(again, models.read_weights(path))
    assert torch.equal(again(batches[0][0]), run.student(batches[0][0]))


def test_weights_are_read_from_a_models_file(tmp_path: Path):
    source, target = trained(0), trained(1)
    models.save(source, tmp_path / "m.safetensors")
    models.load_weights(target, models.read_weights(tmp_path / "m.safetensors"))
    assert files.fingerprint(target.state_dict()) == files.fingerprint(source.state_dict())


class Words(nn.Module):
    """A language model: its classifier has the weights of its embedding, unless it is not tied."""

    def __init__(self, seed: int, *, tied: bool = True) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
        nn.init.normal_(self.embedding.weight, generator=torch.Generator().manual_seed(seed))
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids))


def test_tied_weights_come_back_from_a_file_that_holds_one_of_their_names(tmp_path: Path):
    source, target, ids = Words(0), Words(1), torch.arange(11)
    save_model(source, tmp_path / "m.safetensors")
    tensors = models.read_weights(tmp_path / "m.safetensors")
    assert len(tensors) == 1
    models.load_weights(target, tensors)
    assert torch.equal(target(ids), source(ids))
    assert target.head.weight is target.embedding.weight
    with pytest.raises(ValueError, match="belong to another architecture: 1 are missing"):
        models.load_weights(Words(2, tied=False), tensors)


@pytest.mark.slow
def test_a_tied_model_that_transformers_saved_comes_back(tmp_path: Path):
    transformers = pytest.importorskip("transformers")

    def network() -> nn.Module:
        config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=1)
        return transformers.GPT2LMHeadModel(config).eval()

    source, target, ids = network(), network(), torch.arange(8)[None]
    source.save_pretrained(tmp_path)
    models.load_weights(target, models.read_weights(tmp_path / "model.safetensors"))
    assert torch.equal(target(ids).logits, source(ids).logits)


def broken_weights() -> dict[str, dict[str, torch.Tensor]]:
    good = trained(1).state_dict()
    missing = {name: t for name, t in good.items() if name != "layer2.0.conv1.weight"}
    return {
        "1 are missing ['layer2.0.conv1.weight']": missing,
        "1 are unknown ['more']": {**good, "more": torch.zeros(1)},
        "2 have another shape; fc.bias is (100,), expected (10,)": trained(1, num_classes=100).state_dict(),
        "72 are missing": {},
        "are unknown ['layer1.1.": trained(1, name="resnet20").state_dict(),
    }


@pytest.mark.parametrize("text", list(broken_weights()))
def test_weights_that_do_not_fit_leave_the_model_unchanged(text: str):
    if text.startswith("72"):
        text = f"{len(trained().state_dict())} are missing"
        tensors = {}
    else:
        tensors = broken_weights()[text]
    model = trained()
    before = files.fingerprint(model.state_dict())
    with pytest.raises(ValueError, match="The weights in run.ckpt belong to another architecture") as caught:
        models.load_weights(model, tensors, "run.ckpt")
    assert text in str(caught.value)
    assert "the same number of classes and channels" in str(caught.value)
    assert files.fingerprint(model.state_dict()) == before


# --- stages and embedding


@pytest.mark.parametrize("name", models.list_models())
def test_stages_and_embedding_are_layers_in_forward_order(name: str):
    model, order = empty(name).eval(), []
    sizes: dict[str, torch.Size] = {}

    def note(layer: str):
        def hook(module: nn.Module, given: tuple, made: torch.Tensor) -> None:
            order.append(layer)
            sizes[layer] = made.shape

        return hook

    wanted = [*models.stage_layers(model), models.embedding_layer(model)]
    assert len(wanted) >= 3
    assert len(set(wanted)) == len(wanted)
    for layer in wanted:
        dict(model.named_modules())[layer].register_forward_hook(note(layer))
    model(torch.empty(2, 3, 28, 28, device="meta"))
    assert order == wanted
    sides = [sizes[layer][-1] for layer in models.stage_layers(model)]
    assert sides == sorted(set(sides), reverse=True)  # each stage has a resolution of its own
    first_linear = next(
        m for m in model.modules() if isinstance(m, nn.Linear) and m.in_features == sizes[wanted[-1]][1:].numel()
    )
    assert first_linear.out_features in (10, 1_024)  # the embedding is what the classifier reads


def test_stages_are_the_last_layer_of_each_resolution():
    model, sides = empty("mobilenet-v3-small").eval(), []
    for block in model.features:
        block.register_forward_hook(lambda module, given, made: sides.append(made.shape[-1]))
    model(torch.empty(1, 3, 224, 224, device="meta"))
    last = [i for i in range(len(sides)) if sides[i] < 112 and (i + 1 == len(sides) or sides[i + 1] < sides[i])]
    assert models.stage_layers(model) == [f"features.{i}" for i in last]
    assert models.stage_layers(empty("resnet20")) == ["layer1", "layer2", "layer3"]
    assert models.stage_layers(empty("resnet50")) == ["layer1", "layer2", "layer3", "layer4"]
    assert models.stage_layers(empty("article-teacher")) == ["pool1", "pool2", "pool3"]


@pytest.mark.parametrize("foreign", ["efficientnet_b0", "vgg11", "densenet121", "vit_b_16", "mobilenet_v3_large"])
def test_unknown_stages_are_not_guessed(foreign: str):
    from torchvision import models as zoo

    with torch.device("meta"):
        model = getattr(zoo, foreign)()
    with pytest.raises(ValueError, match="stages of a .* are not known. Name two layers from named_modules"):
        models.stage_layers(model)


def test_a_container_of_stages_is_no_stage():
    model = nn.Module()
    model.layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.pooling = nn.Identity()
    with pytest.raises(ValueError, match="stages of a Module are not known"):
        models.stage_layers(model)
    model.feature_info = [{"module": f"layers.{number}"} for number in range(2)]  # as timm's Swin has it
    assert models.stage_layers(model) == ["layers.0", "layers.1"]


def test_an_unknown_embedding():
    with pytest.raises(ValueError, match="embedding of a Linear is not known"):
        models.embedding_layer(nn.Linear(2, 2))


# --- pairs of layers

PAIRS = {
    ("resnet8", "resnet20", "last"): {"layer3": "layer3"},
    ("resnet8", "resnet20", "late"): {"layer2": "layer2", "layer3": "layer3"},
    ("resnet8", "resnet20", "all"): {"layer1": "layer1", "layer2": "layer2", "layer3": "layer3"},
    ("resnet8", "resnet20", "embedding"): {"avgpool": "avgpool"},
    # networks of different depth are paired from the end
    ("resnet8", "resnet50", "last"): {"layer3": "layer4"},
    ("resnet8", "resnet50", "late"): {"layer2": "layer3", "layer3": "layer4"},
    ("resnet8", "resnet50", "all"): {"layer1": "layer2", "layer2": "layer3", "layer3": "layer4"},
    ("resnet18", "resnet8", "all"): {"layer2": "layer1", "layer3": "layer2", "layer4": "layer3"},
    ("article-student", "resnet20", "all"): {"pool1": "layer2", "pool2": "layer3"},
    ("article-student", "resnet20", "late"): {"pool1": "layer2", "pool2": "layer3"},
    ("article-student", "resnet20", "embedding"): {"flatten": "avgpool"},
    ("mobilenet-v3-small", "resnet18", "late"): {"features.8": "layer3", "features.12": "layer4"},
}


@pytest.mark.parametrize(("student", "teacher", "which"), PAIRS)
def test_layers_are_paired_in_the_order_of_the_networks(student: str, teacher: str, which: str):
    pairs = models.pair_layers(empty(student), empty(teacher), which)
    assert list(pairs.items()) == list(PAIRS[student, teacher, which].items())


def test_an_unknown_choice_of_layers_lists_near_matches():
    student, teacher = empty("resnet8"), empty("resnet20")
    with pytest.raises(
        ValueError, match="no choice of layers named 'lst'. Did you mean 'last'.* Known: last, late, al"
    ):
        models.pair_layers(student, teacher, "lst")
    with pytest.raises(ValueError, match="stages of a Linear are not known. Name two layers"):
        models.pair_layers(nn.Linear(2, 2), teacher, "last")


# --- torchvision's weights, without a network


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache of torch.hub, and no network."""

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def cached_file(hub: Path, name: str) -> Path:
    from torchvision import models as zoo

    return hub / Path(zoo.get_model_weights(name).DEFAULT.url).name


def test_offline_imagenet_weights_say_what_to_fetch_and_where_to_put_it(hub: Path):
    with pytest.raises(OSError, match="Could not download .*resnet50.*no route to host") as caught:
        models.load("resnet50-imagenet")
    assert str(cached_file(hub, "resnet50")) in str(caught.value)
    assert "https://download.pytorch.org/models/resnet50-" in str(caught.value)


def test_cached_imagenet_weights_are_used(hub: Path):
    from torchvision import models as zoo

    torch.manual_seed(0)
    source = zoo.mobilenet_v3_small()
    torch.save(source.state_dict(), cached_file(hub, "mobilenet_v3_small"))
    loaded = models.load("mobilenet_v3_small-imagenet")
    assert files.fingerprint(loaded.state_dict()) == files.fingerprint(source.state_dict())
    assert not any(module.training for module in loaded.modules())
    assert loaded(torch.zeros(1, 3, 64, 64)).shape == (1, 1_000)
    assert loaded.normalization == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_file_whose_name_ends_like_torchvisions_weights_is_that_file(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    models.save(models.build("resnet8", num_classes=3, in_channels=1, seed=0), tmp_path / "mine.safetensors")
    (tmp_path / "mine.safetensors").rename(tmp_path / "mine-imagenet")
    assert models.load(tmp_path / "mine-imagenet").config["num_classes"] == 3
    monkeypatch.chdir(tmp_path)
    assert models.load("mine-imagenet").config["architecture"] == "resnet8"


@pytest.mark.slow
def test_torchvisions_resnet_can_be_trained_on_and_saved(hub: Path, tmp_path: Path):
    from torchvision import models as zoo

    torch.save(zoo.resnet18().state_dict(), cached_file(hub, "resnet18"))
    loaded = models.load("resnet18-imagenet")
    models.save(loaded, tmp_path / "again.safetensors")
    again = models.load(tmp_path / "again.safetensors")
    assert files.fingerprint(again.state_dict()) == files.fingerprint(loaded.state_dict())
    assert again.config["num_classes"] == 1_000
    torch.save(zoo.mobilenet_v3_small().state_dict(), cached_file(hub, "mobilenet_v3_small"))
    with pytest.raises(ValueError, match="not made by models.build"):  # whose architecture has no name here
        models.get_config(models.load("mobilenet_v3_small-imagenet"))


def test_a_pickle_in_the_cache_runs_no_code(hub: Path, tmp_path: Path):
    path = cached_file(hub, "resnet50")
    torch.save({"conv1.weight": torch.zeros(1), "trap": Trap(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match="not a readable file of weights.*Delete it") as caught:
        models.load("resnet50-imagenet")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"text", "half"])
def test_a_truncated_file_in_the_cache(hub: Path, content: bytes | str):
    path = cached_file(hub, "mobilenet_v3_small")
    torch.save({"a": torch.zeros(1_000)}, path)
    path.write_bytes(path.read_bytes()[:2_000] if content == "half" else content)
    with pytest.raises(ValueError, match="not a readable file of weights.*Delete it") as caught:
        models.load("mobilenet_v3_small-imagenet")
    assert str(path) in str(caught.value)


def test_an_unknown_torchvision_model_lists_near_matches():
    with pytest.raises(
        ValueError, match="no classification model of torchvision named 'resnet51'. Did you mean .*'resnet50'"
    ):
        models.load("resnet51-imagenet")
