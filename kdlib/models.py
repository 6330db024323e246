"""Models by name, for images of any size, and their weights in files that run no code.

student = models.build("resnet18", num_classes=10, in_channels=1)
teacher = models.load("resnet20-fashion")
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import schemas
from kdlib.data.paired import PAIRED_FILES
from kdlib.data.sources import data_dir
from kdlib.errors import LARGEST_WHOLE, as_whole, check_flags, check_whole, unknown_name
from kdlib.files import load_tensors, save_tensors, visible

LARGEST_SIZE = 100_000_000  # of classes, channels or pixels of a side
STEMS = {
    "stride1": (3, 1, False),
    "stride2": (3, 2, False),
    "imagenet": (7, 2, True),
}  # kernel, stride, max pooling after it
WIDE_RESNETS = ((20, 2), (8, 4), (20, 4), (32, 4))  # depth, times as many channels
NARROW_RESNET = re.compile(r"resnet([1-9]\d{0,2})w([1-9]\d{0,2})")  # any depth 6n + 2 and any width of the first stage


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """The thin ResNet of He et al. 2016, section 4.2: three stages of 16, 32 and 64 channels, 6n + 2 layers.

    widths: channels of the first convolution and of the three stages; the wide resnet8x4 and resnet32x4 are those of
    Tian et al. 2020; resnet20x2 and resnet20x4 are made in the same way. Shortcuts that change the width are 1 x 1
    convolutions, as in most distillation benchmarks. Initial weights are torch's own, smaller than those of Tian et
    al. 2020, who take He's.
    """

    def __init__(
        self, depth: int, num_classes: int, in_channels: int, widths: tuple[int, int, int, int] = (16, 16, 32, 64)
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[1], 1, blocks)
        self.layer2 = self._stage(widths[1], widths[2], 2, blocks)
        self.layer3 = self._stage(widths[2], widths[3], 2, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)

    @staticmethod
    def _stage(inputs: int, width: int, stride: int, blocks: int) -> nn.Sequential:
        first = BasicBlock(inputs, width, stride)
        return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def article_cnn(widths: tuple[int, ...], num_classes: int, in_channels: int, image_size: int) -> nn.Sequential:
    """The article's plain network: 3 x 3 convolutions, each followed by 2 x 2 max pooling, and one linear layer.

    The outputs are logits: a softmax inside the model would be applied twice by every loss.
    """
    if image_size < 2 ** len(widths):
        raise ValueError(f"{len(widths)} poolings need at least {2 ** len(widths)} pixels of a side; got {image_size}.")
    layers: list[tuple[str, nn.Module]] = []
    for number, width in enumerate(widths, start=1):
        layers += [
            (f"conv{number}", nn.Conv2d(in_channels, width, 3, padding=1)),
            (f"relu{number}", nn.ReLU()),
            (f"pool{number}", nn.MaxPool2d(2)),
        ]
        in_channels = width
    pixels = (image_size // 2 ** len(widths)) ** 2
    model = nn.Sequential()
    for name, layer in [*layers, ("flatten", nn.Flatten()), ("fc", nn.Linear(in_channels * pixels, num_classes))]:
        model.add_module(name, layer)
    return model


def _torchvision_resnet(name: str, num_classes: int, in_channels: int, stem: str) -> nn.Module:
    from torchvision import models as zoo

    model = getattr(zoo, name)(num_classes=num_classes)
    kernel, stride, pooled = STEMS[stem]
    model.conv1 = nn.Conv2d(in_channels, 64, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    if not pooled:
        model.maxpool = nn.Identity()
    return model


def _mobilenet(num_classes: int, in_channels: int, stem: str) -> nn.Module:
    from torchvision import models as zoo

    model = zoo.mobilenet_v3_small(num_classes=num_classes)
    stride = 1 if stem == "stride1" else 2
    model.features[0][0] = nn.Conv2d(in_channels, 16, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(model.features[0][0].weight, mode="fan_out")
    return model


def _cifar_resnet(depth: int, times: int, config: dict[str, Any]) -> nn.Module:
    widths = (16 if times == 1 else 32, 16 * times, 32 * times, 64 * times)
    return CifarResNet(depth, config["num_classes"], config["in_channels"], widths)


def _narrow_resnet(depth: int, width: int, config: dict[str, Any]) -> nn.Module:
    return CifarResNet(depth, config["num_classes"], config["in_channels"], (width, width, 2 * width, 4 * width))


def _resnet(name: str, config: dict[str, Any]) -> nn.Module:
    return _torchvision_resnet(name, config["num_classes"], config["in_channels"], config["stem"])


def _article(widths: tuple[int, ...], config: dict[str, Any]) -> nn.Module:
    return article_cnn(widths, config["num_classes"], config["in_channels"], config["image_size"])


def _small_mobilenet(config: dict[str, Any]) -> nn.Module:
    return _mobilenet(config["num_classes"], config["in_channels"], config["stem"])


def _from_timm(name: str, config: dict[str, Any]) -> nn.Module:
    return create(name, num_classes=config["num_classes"], in_channels=config["in_channels"])


_ARCHITECTURES: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    **{f"resnet{depth}": partial(_resnet, f"resnet{depth}") for depth in (18, 34, 50)},
    **{f"resnet{depth}": partial(_cifar_resnet, depth, 1) for depth in (8, 14, 20, 32, 56)},
    **{f"resnet{depth}x{times}": partial(_cifar_resnet, depth, times) for depth, times in WIDE_RESNETS},
    "article-teacher": partial(_article, (32, 64, 128)),
    "article-student": partial(_article, (16, 32)),
    "mobilenet-v3-small": _small_mobilenet,
}


def list_models() -> list[str]:
    """The architectures that `build` knows by name.

    Besides, "resnet14w6" is a thin ResNet of 14 layers (6n + 2) whose three stages have 6, 12 and 24 channels, and
    "timm:NAME" stands for those of timm.
    """
    return list(_ARCHITECTURES)


def _find_architecture(name: object) -> Callable[[dict[str, Any]], nn.Module] | None:
    """How a model of this name is made; None if the name is unknown."""
    if not isinstance(name, str):
        return None
    if name.startswith("timm:"):
        return partial(_from_timm, name)
    narrow = NARROW_RESNET.fullmatch(name)
    if narrow and (int(narrow[1]) >= 8 and int(narrow[1]) % 6 == 2):
        return partial(_narrow_resnet, int(narrow[1]), int(narrow[2]))
    return _ARCHITECTURES.get(name)


def create(name: str, *, pretrained: bool = False, num_classes: int | None = None, in_channels: int = 3) -> nn.Module:
    """A network of a model zoo: "timm:NAME" (extra `timm`) or "torchvision:NAME", its own way of input and all.

    pretrained: with the zoo's weights, downloaded on demand; else with random ones. num_classes: default, the zoo's.
    Raises ImportError without timm, ValueError for an unknown name, with near matches, OSError if a download fails.
    """
    zoo, _, architecture = str(name).partition(":")
    if not architecture or zoo not in ("timm", "torchvision"):
        raise ValueError(f'A network of a zoo is named "timm:NAME" or "torchvision:NAME"; got {name!r}.')
    # In timm no classes at all, 0, stand for the network without its classifier.
    check_whole(0, LARGEST_SIZE, num_classes=0 if num_classes is None else num_classes)
    check_whole(1, LARGEST_SIZE, in_channels=in_channels)
    check_flags(pretrained=pretrained)
    if zoo == "torchvision":
        return _create_torchvision(architecture, pretrained, num_classes, in_channels)
    try:
        import timm
    except ImportError as error:
        raise ImportError(f'{name} needs the package timm. Run: pip install "kdlib[timm]".') from error
    plain = architecture.partition(".")[0]
    if plain not in timm.list_models():
        raise unknown_name("timm model", architecture, timm.list_models())
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model = timm.create_model(architecture, pretrained=pretrained, in_chans=in_channels, **options)
    except (OSError, RuntimeError) as error:
        if "pretrained tag" in str(error):  # what stands after the dot
            raise unknown_name("timm model", architecture, [plain, *timm.list_pretrained(f"{plain}.*")]) from error
        if not pretrained:
            raise
        if "No pretrained weights" in str(error):  # timm has only its form
            near = difflib.get_close_matches(plain, timm.list_pretrained(), 3, 0)
            raise ValueError(
                f"timm has the architecture {architecture}, but no trained weights for it. Names that are like it and "
                f"have some: {', '.join(near)}."
            ) from error
        raise OSError(
            f"Could not get timm's weights for {architecture} ({str(error).splitlines()[0]}). They are downloaded once "
            "from huggingface.co: check the network, or fill its cache on another machine and copy it."
        ) from error
    model.config = {
        "architecture": name,
        "num_classes": model.num_classes,
        "in_channels": in_channels,
        "stem": "imagenet",
        "image_size": 224,
    }  # type: ignore[assignment]  # a plain attribute, which nn.Module allows
    if not pretrained:
        return model
    cfg = getattr(model, "pretrained_cfg", {})
    model.normalization = (tuple(cfg.get("mean", ())), tuple(cfg.get("std", ())))  # type: ignore[assignment]
    return model.eval()


def _create_torchvision(name: str, pretrained: bool, num_classes: int | None, in_channels: int) -> nn.Module:
    from torchvision import models as zoo

    if name not in zoo.list_models(module=zoo):
        raise unknown_name("classification model of torchvision", name, zoo.list_models(module=zoo))
    if in_channels != 3:
        raise ValueError(f"torchvision's networks take 3 channels; got in_channels={in_channels}. Take models.build.")
    if not pretrained:
        return zoo.get_model(name, **({} if num_classes is None else {"num_classes": num_classes}))
    if num_classes is not None:
        raise ValueError("Trained weights belong to the zoo's classes: leave out num_classes, or pretrained.")
    return _load_torchvision(name)


def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    stem: str = "stride2",
    image_size: int = 28,
    seed: int | None = None,
) -> nn.Module:
    """A new model with fresh weights.

    name: one of `list_models()`, "resnet14w6" and its like, or "timm:NAME". num_classes: number of logits.
    in_channels: 1 for grey, 3 for colour.
    stem: how torchvision's networks begin. "imagenet" is their own (7 x 7, stride 2, max pooling: 28 pixels become
        7 before the first block, and on images of 28 to 32 pixels that costs more accuracy than any distillation
        gives back); "stride2" (3 x 3, 28 become 14) and "stride1" (3 x 3, 28 stay 28, about three times the work of
        stride2) fit small images. mobilenet-v3-small's own is "stride2". The thin ResNets and the article's networks
        have stems that none of the three changes.
    image_size: pixels of a side; only the article's networks, which end in one linear layer, depend on it.
    seed: of the initial weights; None draws from the global generator.
    Raises ValueError for an unknown name or stem, or numbers below one.
    """
    make = _find_architecture(name)
    if make is None:
        raise unknown_name("model", name, [*list_models(), "resnet14w6 and its like", "timm:NAME"])
    if not isinstance(stem, str) or stem not in STEMS:
        raise unknown_name("stem", stem, STEMS)
    if seed is not None:
        seed = as_whole(-LARGEST_WHOLE, seed=seed)
    config = {
        "architecture": name,
        "num_classes": as_whole(1, LARGEST_SIZE, num_classes=num_classes),
        "in_channels": as_whole(1, LARGEST_SIZE, in_channels=in_channels),
        "stem": stem,
        "image_size": as_whole(1, LARGEST_SIZE, image_size=image_size),
    }
    if seed is None:
        model = make(config)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would set back the GPU's generator too
            model = make(config)
    model.config = config  # type: ignore[assignment]  # a plain attribute, which nn.Module allows
    return model


def save(model: nn.Module, path: str | Path, *, half: bool = False, **facts: Any) -> None:
    """Write a built model's weights and description to a safetensors file, completely or not at all.

    half: store floating-point weights in 16 bits (they come back as float32). facts: more to note in the file's
    header, such as the accuracy. The names of the classes are noted where `fit` or the model's file has said them;
    after a loop of your own with other classes set model.classes, a tuple; the file then says that no one has noted
    which size the images had.
    Raises ValueError for a model that `build` did not make and for weights beyond the range of 16 bits, OSError if the
    file cannot be written.
    """
    config, tensors = get_config(model), model.state_dict()
    _check_form(config, tensors)
    if half:
        tensors = {name: _in_half(name, t) if t.is_floating_point() else t for name, t in tensors.items()}
    facts = {**_class_names(model, config["num_classes"]), **facts}
    if "classes" in facts and find_trained_size(model) is None:
        facts["image_size_seen"] = False  # it is only what `build` was given
    save_tensors(path, tensors, {**config, **facts})


@torch.no_grad()
def round_to_half(model: nn.Module) -> None:
    """Round a network's weights to those of 16 bits in place, which `save(half=True)` writes; their dtype stays.

    Raises ValueError for weights beyond the range of 16 bits.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(_in_half(name, tensor))


def _class_names(model: nn.Module, count: int) -> dict[str, list[str]]:
    """The entry of a file that names the classes, where the model knows them."""
    classes = getattr(model, "classes", None)  # its own code may call something else so
    if not isinstance(classes, tuple) or len(classes) != count or not all(isinstance(one, str) for one in classes):
        return {}
    return {"classes": list(classes)}


def _check_form(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raise ValueError for tensors that `load` would not know: of a compressed or otherwise rebuilt network."""
    shape = {name: config[name] for name in ("num_classes", "in_channels", "stem", "image_size")}
    wanted = _form_of(config["architecture"], shape)
    differ = sorted(wanted.keys() ^ tensors.keys())
    differ += [name for name in wanted if name in tensors and wanted[name].shape != tensors[name].shape]
    if differ:
        raise ValueError(
            f"This network is no {config['architecture']} any more ({differ[0]}), so load could not open the file. "
            "Make masks and rounding permanent by compress.finalize(model, keep_activation_rounding=False), or save "
            "its weights with safetensors.torch.save_model(model, path)."
        )


def _form_of(architecture: str, shape: dict[str, Any]) -> dict[str, Tensor]:
    """The names and shapes of an architecture's tensors, without memory where it can be built so."""
    try:
        with torch.device("meta"):
            return build(architecture, **shape, seed=0).state_dict()
    except RuntimeError:  # networks of older versions of timm read numbers from tensors while they are built
        if not architecture.startswith("timm:"):
            raise
        return build(architecture, **shape, seed=0).state_dict()


def get_config(model: nn.Module) -> dict[str, Any]:
    """What `save` notes of a model's architecture; ValueError for one that `build` could not make again."""
    config = find_config(model)
    if config is None:
        raise ValueError(
            "This model was not made by models.build, so its architecture has no name to store. Save its weights "
            "with safetensors.torch.save_model(model, path)."
        )
    return config


def find_config(model: Any) -> dict[str, Any] | None:
    """The description of a model that `build` made; None of others, which may keep something else as `config`."""
    config = getattr(model, "config", None)
    return config if isinstance(config, dict) and "architecture" in config else None


def find_trained_size(model: Any) -> int | None:
    """Pixels of a side of the images that a model was trained on, where `fit` or its file noted them.

    None after a loop of one's own that named other classes: `build` knows only the size that it was given.
    """
    config, noted = find_config(model), getattr(model, "image_size_noted_for", None)
    if config is None or not isinstance(noted, tuple) or noted != getattr(model, "classes", None):
        return None
    return config["image_size"]


def find_normalization(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of the images that a model was trained on, where `load` or `create` noted them."""
    found = getattr(model, "normalization", None)  # others have a layer or a word under this name
    if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(one, tuple) for one in found):
        return None
    return found


def _in_half(name: str, tensor: Tensor) -> Tensor:
    if (tensor.abs() > torch.finfo(torch.float16).max).any():
        raise ValueError(f"{name} holds values that are too large for 16 bits. Save it without half.")
    return tensor.half()


def load(name: str | Path) -> nn.Module:
    """A trained model: from the shipped ones by name, from a file written by `save`, or torchvision's.

    name: for instance "resnet20-fashion", "path/to/student.safetensors", the checkpoint of a run (its student as it
    was then; with ema_decay the average, as `fit` gives it back), "resnet50-imagenet" for torchvision's ImageNet
    weights (downloaded once; for 3 x 224 x 224 images; the latest of several: of a ResNet-50 those called V2, where
    published tables have V1), or "timm:NAME" for timm's.
    The model is in eval mode.
    Raises FileNotFoundError, OSError if a download fails, or ValueError for an unknown name, a truncated file, a
    pickle or weights that do not fit.
    """
    text = str(name)
    if text.startswith("timm:"):
        return create(text, pretrained=True)
    if text.endswith("-imagenet") and not is_file(text):
        return _load_torchvision(text.removesuffix("-imagenet"))
    path = Path(text) if is_file(text) else data_dir() / f"{text}.safetensors"
    if not is_file(text) and not path.is_file():
        options = [*list_pretrained(), "resnet50-imagenet", "timm:NAME", "PATH.safetensors"]
        raise ValueError(
            f"{unknown_name('trained model', text, options)} Shipped ones are looked for in {data_dir()}. If the data "
            "folder lies elsewhere, set KDLIB_DATA to it."
        )
    tensors, config = _read(path)
    if not isinstance(config, dict) or "architecture" not in config:
        raise ValueError(
            f"{path} does not say which architecture it holds. Build that model and call models.load_weights(model, "
            "models.read_weights(path))."
        )
    shape: dict[str, Any] = {key: config.get(key) for key in ("num_classes", "in_channels", "stem", "image_size")}
    missing = [key for key, value in shape.items() if value is None]
    if missing:
        raise ValueError(f"{path} names its architecture but does not say its {', '.join(missing)}. Save it again.")
    _check_description(config, shape, tensors, path)
    model = build(config["architecture"], **shape, seed=0)  # a seed, to leave the global generator alone
    load_weights(model, tensors, path)
    classes = config.get("classes")
    if classes is not None:
        model.classes = tuple(classes)  # type: ignore[assignment]  # whose logits these are, in their order
        if config.get("image_size_seen", True):  # older files do not say; as a rule `fit` made them
            model.image_size_noted_for = model.classes
    return model.eval()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights in a safetensors file, by their names in the model; of a run's checkpoint those of its student.

    For a network that `build` did not make: models.load_weights(model, models.read_weights(path)). With ema_decay they
    are the average, as `fit` gives it back.
    Raises FileNotFoundError, or ValueError for a truncated file or a pickle.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The weights in a model's file or a checkpoint, and the description of the model."""
    tensors, config = load_tensors(path)
    if "facts" not in config:
        return tensors, config
    # A checkpoint, which holds more than the student.
    prefix = "average/module." if "average/n_averaged" in tensors else "student/"
    tensors = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    facts = config["facts"]
    return tensors, (facts.get("config") if isinstance(facts, dict) else facts) or {}


def _check_description(
    config: dict[str, Any], shape: dict[str, Any], tensors: dict[str, Tensor], path: str | Path
) -> None:
    """Raise ValueError for a description of another form, or of other sizes than the weights beside it."""
    try:
        schemas.check("its description", config, schemas.MODEL)
        if "classes" in config and len(config["classes"]) != shape["num_classes"]:
            raise ValueError(f"it names {len(config['classes'])} classes, not {shape['num_classes']}")
        schemas.check_finite(tensors)
        wanted = _form_of(config["architecture"], shape)  # a file may say that it has any number of classes
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{path} is not a model that can be opened: {reason}. Copy it again, or save it anew."
        ) from error
    check_fit(wanted, tensors, path)


def is_file(name: str | Path) -> bool:
    """Whether `load` takes this for a file and not for a shipped model's name.

    Any file that is there is one, so that a pickle is called a pickle and not an unknown name.
    """
    return str(name).endswith(".safetensors") or Path(name).is_file()


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: str | Path = "the checkpoint") -> None:
    """Put weights into a model; ValueError, the model unchanged, unless every name, shape and kind of number fits.

    Of weights that the model ties, one of their names is enough.
    """
    wanted = model.state_dict(keep_vars=True)  # in which a tied weight is the same tensor under each of its names
    tensors = _unwrapped(tensors, wanted)
    # safetensors' save_model and transformers' save_pretrained write a tied weight once.
    given = {id(wanted[name]): tensor for name, tensor in tensors.items() if name in wanted}
    tied = {name: given[id(one)] for name, one in wanted.items() if name not in tensors and id(one) in given}
    tensors = {**tensors, **tied}
    check_fit(wanted, tensors, path)
    model.load_state_dict(tensors)


def _unwrapped(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """By their names in the model, where torch.compile or DataParallel put a prefix before each of them."""
    for wrapper in ("_orig_mod.", "module.", "_orig_mod."):  # either may lie within the other
        inside = tensors and all(name.startswith(wrapper) for name in tensors)
        if inside and not any(name.startswith(wrapper) for name in wanted):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def check_fit(wanted: dict[str, Tensor], tensors: dict[str, Tensor], path: str | Path) -> None:
    """Raise ValueError unless these weights are those that a model wants, by name, shape and kind of number."""
    missing = sorted(wanted.keys() - tensors.keys())
    extra = sorted(tensors.keys() - wanted.keys())
    differ = sorted(k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape)
    if missing or extra or differ:
        example = (
            f"; {differ[0]} is {tuple(tensors[differ[0]].shape)}, expected {tuple(wanted[differ[0]].shape)}"
            if differ
            else ""
        )
        raise ValueError(
            f"The weights in {path} belong to another architecture: {len(missing)} are missing {missing[:3]}, "
            f"{len(extra)} are unknown {extra[:3]}, {len(differ)} have another shape{example}. Build the model that "
            "was saved, with the same number of classes and channels."
        )
    try:
        schemas.check_weights(wanted, tensors)
    except ValueError as error:
        raise ValueError(f"The weights in {path} are of another kind: {error}. Save them as floats again.") from error


def list_pretrained() -> list[str]:
    """The trained models in the data folder, where data sets of pairs lie as well."""
    return [path.stem for path in visible(data_dir(), "*.safetensors") if path.name not in PAIRED_FILES]


def _load_torchvision(name: str) -> nn.Module:
    from torchvision import models as zoo

    if name not in zoo.list_models(module=zoo):
        raise unknown_name("classification model of torchvision", name, zoo.list_models(module=zoo))
    weights = zoo.get_model_weights(name).DEFAULT
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        # torchvision unpickles without a guard, and checks the hash of a download only: look at the file first.
        weights.get_state_dict(check_hash=True, weights_only=True)
        model = zoo.get_model(name, weights=weights)
    except OSError as error:
        raise OSError(
            f"Could not download torchvision's weights for {name} ({error}). Check the network, or fetch {weights.url} "
            f"on another machine and copy it to {place} on this one."
        ) from error
    except Exception as error:  # torch's unpickler trips over a broken file in many ways
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{place} is not a readable file of weights for {name} ({reason}). Delete it: it is downloaded anew."
        ) from error
    if name in list_models():
        classes = len(weights.meta["categories"])
        shape = {"num_classes": classes, "in_channels": 3, "stem": "imagenet", "image_size": 224}
        model.config = {"architecture": name, **shape}
    images = weights.transforms()
    model.normalization = (tuple(images.mean), tuple(images.std))
    return model.eval()


def stage_layers(model: nn.Module) -> list[str]:
    """The layers after which a known model's maps are usually compared, from the input to the output.

    Raises ValueError for a model whose stages are not known: name the layers from `named_modules()` yourself.
    """
    # Not "layers": that is a container of the stages.
    found = [name for name, _ in model.named_children() if re.fullmatch(r"(layer|pool)\d+", name)]
    if found:
        return found
    stages = getattr(model, "feature_info", None)  # timm's networks know theirs
    if stages:
        return [stage["module"] for stage in stages]
    blocks = getattr(model, "features", ())
    if type(model).__name__ == "MobileNetV3" and len(blocks) == 13:  # the small one
        return [f"features.{i}" for i in (1, 3, 8, 12)]  # the last block of each resolution
    raise ValueError(
        f"The stages of a {type(model).__name__} are not known. Name two layers from named_modules(), "
        "for instance Feature({'student.layer': 'teacher.layer'})."
    )


def pair_layers(student: nn.Module, teacher: nn.Module, which: str) -> dict[str, str]:
    """Student layer -> teacher layer, for the layers that are usually compared.

    which: "last" stage, "late" (the last two), "all" stages, or "embedding" (the vector before the classifier).
    Networks of different depth are paired from the end, where the maps mean most.
    Raises ValueError for another word, with near matches, and for networks whose stages are not known.
    """
    stages = list(zip(reversed(stage_layers(student)), reversed(stage_layers(teacher)), strict=False))[::-1]
    known = {
        "last": lambda: stages[-1:],
        "late": lambda: stages[-2:],
        "all": lambda: stages,
        "embedding": lambda: [(embedding_layer(student), embedding_layer(teacher))],
    }
    if which not in known:
        raise unknown_name("choice of layers", which, known)
    return dict(known[which]())


def embedding_layer(model: nn.Module) -> str:
    """The layer whose output is one vector a sample, just before the classifier."""
    for name in ("avgpool", "flatten", "global_pool"):
        if name in dict(model.named_children()):
            return name
    raise ValueError(f"The embedding of a {type(model).__name__} is not known. Name a layer from named_modules().")
