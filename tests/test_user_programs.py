"""The programs of examples/README.md, each executed as it stands: something is learned, and no teacher changes."""

from __future__ import annotations

import ast
import re
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdlib import data, models

README = Path(__file__).resolve().parents[1] / "examples" / "README.md"
BLOCKS = re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", README.read_text(), re.MULTILINE | re.DOTALL)
CODE = {title: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for title, text in BLOCKS}
IMPORTS = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
LONGEST = 15  # lines of a program, imports left out


def resnet(classes: int = 10, seed: int = 0, name: str = "resnet8") -> nn.Module:
    return models.build(name, num_classes=classes, in_channels=3, seed=seed)


def images(count: int = 32, size: int = 16, classes: int = 10) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % classes)


class Pictures(Dataset):
    """Pairs of a PIL image and a label, as most people's datasets are."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        pixels = np.random.default_rng((self.seed, number)).integers(0, 255, (40, 36, 3), dtype=np.uint8)
        return Image.fromarray(pixels), number % 2


class Numbered(Dataset):
    def __init__(self, inner: TensorDataset) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, int]:
        return (*self.inner[number], number)


class Pixels(nn.Module):
    """A segmentation network in torchvision's manner: a dict with "out"."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.body(x))}


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.cell, self.head = width, nn.LSTMCell(4, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = (x.new_zeros(len(x), self.width), x.new_zeros(len(x), self.width))
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0])


def loop() -> dict[str, Any]:
    return {"student": resnet(), "teacher": resnet(seed=1, name="resnet20"), "loader": DataLoader(images(), 8)}


def loaders() -> dict[str, Any]:
    return {**loop(), "validation_loader": DataLoader(images(16), 8)}


def saved() -> dict[str, Any]:
    return {**loop(), "build_student": lambda: resnet(seed=2)}


def pictures() -> dict[str, Any]:
    return {"train_pictures": Pictures(40), "test_pictures": Pictures(10, seed=1)}


def mixing() -> dict[str, Any]:
    return {**loop(), "dataset": images()}


def timm() -> dict[str, Any]:
    return {"loader": DataLoader(images(2, 224, 1000), 2)}


def text() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "num_attention_heads": 2, "num_labels": 3, "max_position_embeddings": 16}

    def bert(layers: int, width: int) -> nn.Module:
        config = transformers.BertConfig(
            num_hidden_layers=layers, hidden_size=width, intermediate_size=2 * width, **sizes
        )
        return transformers.BertForSequenceClassification(config)

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 50, (4, 8, 12), generator=generator)
    batches = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 3} for ids in tokens.unbind()
    ]
    return {"student": bert(1, 16), "teacher": bert(3, 32), "batches": batches}


def answers() -> dict[str, Any]:
    whole = data.from_datasets(
        Pictures(40), validation=Pictures(10, 1), test=Pictures(10, 2), classes=("a", "b"), image_size=16
    )
    np.save("answers.npy", np.random.default_rng(0).normal(size=(40, 2)))
    numbered = DataLoader(Numbered(images(40, classes=2)), 8)
    return {"student": resnet(2), "pictures": whole, "numbered_loader": numbered}


def service() -> dict[str, Any]:
    return {**loop(), "service": resnet(seed=1).eval()}


def several() -> dict[str, Any]:
    return {**loop(), **{name: resnet(seed=seed) for seed, name in enumerate(("first", "second", "third"), 1)}}


def table() -> dict[str, Any]:
    batch = images(8)[:]
    table = torch.randn(8, 5)
    student = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 10))
    loader = [{"table": table, "image": batch[0], "species": batch[1]}] * 3
    return {"table_student": student, "teacher": resnet(seed=1), "dict_loader": loader}


def several_labels() -> dict[str, Any]:
    inputs, labels = images(16)[:]
    hot = (labels[:, None] + torch.arange(10)) % 3 == 0
    return {"student": resnet(), "teacher": resnet(seed=1), "multi_hot_loader": [(inputs, hot.float())] * 3}


def masks() -> dict[str, Any]:
    inputs, labels = images(8)[:]
    mask = (labels[:, None, None] + torch.arange(16) // 4) % 4 + torch.zeros(8, 16, 1, dtype=torch.int64)
    mask[:, :2] = 255
    return {"small": Pixels(4, 4), "large": Pixels(16, 4), "mask_loader": [(inputs, mask)] * 3}


def heat() -> dict[str, Any]:
    inputs, _ = images(8)[:]
    return {"small": Pixels(4, 1), "large": Pixels(16, 1), "heat_loader": [(inputs, torch.rand(8, 1, 16, 16))] * 3}


def other() -> dict[str, Any]:
    others = {"other_classes": resnet(7, seed=1, name="resnet20"), "other_order": resnet(12, seed=2, name="resnet20")}
    return {**loop(), **others, "order": [3, 1, 0, 2, 11, 4, 5, 6, 10, 7]}


class TwoHeads(nn.Module):
    """A class and an age."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.species, self.age = nn.Linear(5, width), nn.Linear(width, 3), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x).relu()
        return {"logits": self.species(hidden), "age": self.age(hidden)[:, 0]}


def two_heads() -> dict[str, Any]:
    batch = {"x": torch.randn(8, 5), "labels": {"species": torch.arange(8) % 3, "age": torch.rand(8)}}
    return {"student": TwoHeads(6), "teacher": TwoHeads(12), "loader": [batch] * 3}


def sequences() -> dict[str, Any]:
    loader = [(torch.randn(8, 5, 4), torch.arange(8) % 3)] * 3
    return {"recurrent": Recurrent(6), "recurrent_teacher": Recurrent(12), "sequence_loader": loader}


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "A loop of your own": loop,
    "A DataLoader, and `fit`": loaders,
    "Save and load the student": saved,
    "A Dataset of (PIL image, label)": pictures,
    "A DataLoader with mixup": mixing,
    "A teacher from timm": timm,
    "Two encoders of transformers, on text": text,
    "Answers in a file": answers,
    "A service": service,
    "Several teachers, each with its temperature": several,
    "A teacher of images, a student of tables": table,
    "Several labels at once": several_labels,
    "Segmentation": masks,
    "A heat map": heat,
    "A teacher with other classes, or without any": other,
    "A second head, with labels of its own": two_heads,
    "A layer that runs several times, or returns more than a tensor": sequences,
}
LEARNERS = ("student", "table_student", "small", "recurrent")


@pytest.fixture
def random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's networks without the download of their weights."""
    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(), torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_every_case_has_its_data() -> None:
    assert list(CODE) == list(GIVEN)


@pytest.mark.parametrize("title", CODE)
def test_a_program_is_short(title: str) -> None:
    for block in CODE[title]:
        lines = [line for line in block.splitlines() if line.strip() and not re.match(r"(from|import) ", line)]
        assert 0 < len(lines) < LONGEST
        ast.parse(block)


@pytest.mark.slow
@pytest.mark.parametrize("title", CODE)
def test_a_program_trains_the_student_and_nothing_else(
    title: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture
) -> None:
    if "timm" in title:
        request.getfixturevalue("random_weights")
    namespace = GIVEN[title]()
    networks = {name: value for name, value in namespace.items() if isinstance(value, nn.Module)}
    before = {name: {key: t.clone() for key, t in one.state_dict().items()} for name, one in networks.items()}
    for block in CODE[title]:
        exec(IMPORTS, namespace)
        exec(block, namespace)
    for name, network in networks.items():
        same = all(torch.equal(value, before[name][key]) for key, value in network.state_dict().items())
        assert same == (name not in LEARNERS), name
    run = namespace.get("run")
    if run is not None:
        assert all(np.isfinite(row["loss"]) for row in run.rows)
    else:
        losses = namespace["losses"]
        assert isinstance(losses.terms, dict)
        assert bool(losses.total.isfinite())
    assert isinstance(namespace["data"], types.ModuleType)
