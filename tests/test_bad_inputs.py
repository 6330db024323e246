"""Bad calls: each says in a sentence what was wrong and what to do, before anything is trained by it."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from kdlib import data, models, train
from kdlib.adapters import Adapter
from kdlib.data import NO_AUGMENTATION, DataModule, LazyDataset
from kdlib.distiller import Distiller
from kdlib.hooks import ModelOutput
from kdlib.methods import Feature, HardLabels, Logit, Method, Relation
from kdlib.recipes import Recipe
from kdlib.tasks import Segmentation
from kdlib.teachers import CachedTeacher, Teacher

COUNT, CLASSES = 12, 3
IMAGES = torch.randn(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % CLASSES
BATCH = (IMAGES[:4], LABELS[:4])
SAMPLES = TensorDataset(IMAGES, LABELS)
BATCHES_ADVICE = r"DataLoader\(dataset, batch_size=\.\.\.\)"
BOTH = HardLabels() + Feature({"0": "0"})


def net(seed: int = 0, classes: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def loader(*tensors: Tensor, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(*(tensors or (IMAGES, LABELS))), **{"batch_size": 4, **options})


def distil(student: Any = None, teacher: Any = None, method: Any = None, batch: Any = BATCH, **options: Any) -> Any:
    """One call of a distiller."""
    student, teacher = student or net(0), net(1) if teacher is None else teacher
    return Distiller(student, teacher, Logit() if method is None else method, **options)(batch)


def fit(given: Any = None, student: Any = None, **options: Any) -> train.Result:
    settings: dict[str, Any] = {"epochs": 1, "device": "cpu", "precision": "fp32", "progress": False}
    return train.fit(student or net(0), loader() if given is None else given, **{**settings, **options})


class Pictures(Dataset):
    """PIL images, as a folder gives them without a transform."""

    def __init__(self, mode: str = "L", size: Callable[[int], int] = lambda number: 8) -> None:
        self.mode, self.size = mode, size

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: int) -> tuple[Any, int]:
        side = self.size(number)
        return Image.new(self.mode, (side, side)), number % CLASSES


class Sizes(Pictures):
    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return torch.zeros(1, 8 + number, 8), 0


class Shrinking(Pictures):
    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return torch.zeros(1, 20 - number, 8), 0


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(IMAGES, LABELS, strict=True)


class StreamOfKnownLength(Stream):
    def __len__(self) -> int:
        return COUNT


class Fewer:
    """Says more batches than it gives."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Any]:
        return iter([BATCH, BATCH])


class Once:
    """Gives its batches to the first who asks, and no length."""

    def __init__(self) -> None:
        self.left = [BATCH] * 2

    def __iter__(self) -> Iterator[Any]:
        while self.left:
            yield self.left.pop()


class Blunt(Teacher):
    """Returns a tensor where a ModelOutput belongs."""

    def __call__(self, batch: Any, layers: Any = None) -> Any:
        return torch.zeros(4, CLASSES)


class Named(nn.Module):
    """Its logits have a name of their own."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"answer": x.flatten(1)}


class Returns(Method):
    """A method whose forward gives what it was made with."""

    needs_teacher = False

    def __init__(self, terms: Any) -> None:
        super().__init__()
        self.terms = terms

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor | None) -> Any:
        return self.terms


def own(train_split: Any = None, **options: Any) -> DataModule:
    settings: dict[str, Any] = {"classes": "abc", "image_size": 8, "in_channels": 1}
    settings["classes"] = list("abc")
    return data.from_datasets(Pictures() if train_split is None else train_split, **{**settings, **options})


def pairs(image: Any, label: Any = 0) -> list[tuple[Any, Any]]:
    return [(image, label)] * COUNT


BYTES = torch.zeros(1, 8, 8, dtype=torch.uint8)
GIVEN = CachedTeacher.from_logits(torch.randn(COUNT, CLASSES))
DICT = {"image": BATCH[0], "labels": BATCH[1]}
THREE = (*BATCH, torch.arange(4))

Case = tuple[Callable[[], Any], type[Exception], str]
DISTILLER: dict[str, Case] = {
    "no student": (lambda: Distiller(None, net(), Logit()), TypeError, "student is an nn.Module; got NoneType"),  # type: ignore[arg-type]
    "a class of student": (lambda: Distiller(nn.Linear, net(), Logit()), TypeError, "student is.*got Linear"),  # type: ignore[arg-type]
    "a method by name": (lambda: distil(method="kd"), TypeError, r"method is.*Logit\(.*got str"),
    "a class of method": (lambda: distil(method=Logit), TypeError, r"method is.*Logit\(.*got Logit"),
    "a function as method": (lambda: distil(method=F.mse_loss), TypeError, "method is.*got function"),
    "no teacher": (lambda: Distiller(net(), None, Logit()), ValueError, "Logit needs a teacher"),
    "a class of teacher": (lambda: distil(teacher=nn.Linear), TypeError, r"teacher is a network.*Linear"),
    "a class of own teacher": (lambda: distil(teacher=Blunt), TypeError, "teacher is a network.*Blunt"),
    "a teacher by name": (lambda: distil(teacher="resnet18"), TypeError, "teacher is a network.*got str"),
    "logits as teacher": (lambda: distil(teacher=torch.zeros(4, 3)), TypeError, "teacher is a network.*got Tensor"),
    "a list of teachers": (lambda: distil(teacher=[net(), net()]), TypeError, "teacher is a network.*got list"),
    "the student as teacher": (lambda: Distiller(student := net(), student, Logit()), ValueError, "share weights"),
    "a shared layer": (
        lambda: Distiller(nn.Sequential(*(student := net())[:3], net()[3:]), student, Logit()),
        ValueError,
        "share weights.*second model",
    ),
    "an adapter that is a dict": (lambda: distil(adapter={"inputs": 0}), TypeError, r"Adapter\(.*got dict"),
    "an unknown task": (lambda: distil(task="multi-label"), ValueError, "no task named.*'multilabel'"),
    "no example": (lambda: Distiller(net(), net(1), Feature({"0": "0"})), ValueError, "0 -> 0.*example=next"),
    "an unknown layer": (
        lambda: distil(method=Feature({"layer": "0"}), example=BATCH),
        ValueError,
        "no layer in Sequential named 'layer'.*Known: 0, 1",
    ),
    "an unknown layer of the teacher": (
        lambda: distil(method=Feature({"0": "9"}), example=BATCH),
        ValueError,
        "no layer in Sequential named '9'",
    ),
    "a layer of a function": (
        lambda: distil(teacher=lambda batch: torch.zeros(4, 3), method=BOTH, example=BATCH),
        ValueError,
        "no features of.*'0'.*ModelOutput",
    ),
    "a function that returns a list": (
        lambda: distil(teacher=lambda batch: [[0.0] * 3] * 4),
        ValueError,
        "returned a list; expected a tensor of logits",
    ),
    "a function that returns nothing": (lambda: distil(teacher=lambda batch: None), ValueError, "returned a NoneType"),
    "a teacher that returns a tensor": (
        lambda: distil(teacher=Blunt()),
        ValueError,
        "Blunt gave a Tensor.*ModelOutput",
    ),
    "a teacher with other classes": (
        lambda: distil(teacher=net(1, 5), example=BATCH),
        ValueError,
        r"student gives.*\(4, 3\).*teacher.*\(4, 5\).*same classes",
    ),
    "a teacher with other classes, no example": (
        lambda: distil(teacher=net(1, 5)),
        ValueError,
        r"\(4, 3\).*\(4, 5\).*same classes",
    ),
    "a method that gives a tensor": (
        lambda: distil(method=Returns(torch.tensor(1.0))),
        TypeError,
        "Returns gave a Tensor.*dict of named terms",
    ),
    "a method that gives nothing": (lambda: distil(method=Returns({})), ValueError, "Returns gave no terms.*at least"),
    "a method that gives a number": (lambda: distil(method=Returns({"a": 1.0})), TypeError, "'a'.*float.*a tensor"),
    "a term for each sample": (
        lambda: distil(method=Returns({"a": torch.zeros(4)})),
        ValueError,
        r"'a'.*shape \(4,\).*mean",
    ),
    "no labels": (lambda: distil(batch=BATCH[0]), ValueError, r"batch has none.*Logit\(alpha=0\)"),
    "labels of other classes": (lambda: distil(batch=(BATCH[0], BATCH[1] + 9)), ValueError, r"0 \.\. 2.*from 9"),
    "images for another network": (
        lambda: distil(batch=(torch.zeros(4, 3, 8, 8), BATCH[1]), example=(torch.zeros(4, 3, 8, 8), BATCH[1])),
        ValueError,
        "student cannot take images of 3 x 8 x 8.*in_channels=3",
    ),
    "logits for each position": (
        lambda: Distiller(nn.Linear(8, 3), None, HardLabels())((torch.zeros(2, 4, 8), LABELS[:2])),
        ValueError,
        r"\(2, 4, 3\); expected batch x classes.*'token-classification'",
    ),
    "a network that gives no logits": (
        lambda: Distiller(Named(), None, HardLabels())(BATCH),
        ValueError,
        r"Named returned a dict; expected one tensor of logits.*Adapter\(logits=...\).*teacher.*teacher_logits",
    ),
}
ADAPTER: dict[str, Case] = {
    "three parts": (lambda: distil(batch=THREE), ValueError, r"3 parts; expected a pair.*Adapter\(inputs=..., labels"),
    "no parts": (lambda: distil(batch=()), ValueError, "0 parts; expected a pair"),
    "no batch": (lambda: Distiller(net(), net(1), Logit())(), ValueError, "none of them is an input"),
    "a dict without inputs": (
        lambda: distil(batch={"labels": LABELS, "index": LABELS}),
        ValueError,
        r"fields \['labels', 'index'\] and none.*Adapter\(",
    ),
    "a key that is not there": (
        lambda: distil(batch=DICT, adapter=Adapter(inputs="pixels")),
        ValueError,
        r"Adapter\(inputs='pixels'\).*'image', 'labels'",
    ),
    "a label that is not there": (
        lambda: distil(batch=DICT, adapter=Adapter(labels="species")),
        ValueError,
        r"Adapter\(labels='species'\).*dict with",
    ),
    "a position that is not there": (
        lambda: distil(batch=BATCH, adapter=Adapter(labels=2)),
        ValueError,
        r"Adapter\(labels=2\).*tuple of 2",
    ),
    "a key of a pair": (lambda: distil(adapter=Adapter(inputs="image")), ValueError, "inputs='image'.*tuple of 2"),
    "a pair's own method": (lambda: distil(adapter=Adapter(labels="index")), ValueError, "labels='index'.*tuple of 2"),
    "a position in a tensor": (
        lambda: distil(batch=BATCH[0], method=Logit(alpha=0), adapter=Adapter(inputs=0)),
        ValueError,
        r"Adapter\(inputs=0\).*a Tensor",
    ),
    "a position in logits": (lambda: distil(adapter=Adapter(logits=0)), ValueError, r"Adapter\(logits=0\).*a Tensor"),
    "several keys": (lambda: Adapter(inputs=["image", "mask"]), TypeError, r"Adapter\(inputs=...\) is a key.*function"),  # type: ignore[arg-type]
    "yes": (lambda: Adapter(labels=True), TypeError, r"Adapter\(labels=...\) is a key, a position or a function"),
    "fields that the network does not know": (
        lambda: distil(batch=DICT | {"path": 1}, example=DICT | {"path": 1}),
        ValueError,
        "student cannot take the fields image, path.*Adapter",
    ),
    "answers without numbers": (lambda: distil(teacher=GIVEN), ValueError, "samples' numbers.*Adapter"),
    "answers for other numbers": (
        lambda: distil(teacher=GIVEN, batch=DICT | {"index": torch.tensor([0, 1, 2, 99])}),
        ValueError,
        "no answers for 1 of the 4 samples.*number 99",
    ),
}
FIT: dict[str, Case] = {
    "no student": (lambda: train.fit(None, loader(), progress=False), TypeError, "student is an nn.Module"),  # type: ignore[arg-type]
    "a method by name": (lambda: fit(teacher=net(1), method="kd"), TypeError, "method is a kdlib.methods.Method"),
    "a generator": (lambda: fit(batch for batch in loader()), TypeError, "generator.*used up.*DataLoader"),
    "an iterator": (lambda: fit(iter([BATCH])), TypeError, "list_iterator.*used up"),
    "a tensor": (lambda: fit(IMAGES), TypeError, "got Tensor.*TensorDataset"),
    "an array": (lambda: fit(np.zeros((4, 1, 8, 8))), TypeError, "got ndarray.*TensorDataset"),
    "a name": (lambda: fit("fashion-mnist"), TypeError, "got str.*TensorDataset"),
    "a dict": (lambda: fit(dict(enumerate([BATCH]))), TypeError, "got dict"),
    "a number": (lambda: fit(3), TypeError, "got int"),
    "no batches": (lambda: fit([]), ValueError, "no batch.*at least one"),
    "an empty dataset": (lambda: fit(TensorDataset(IMAGES[:0], LABELS[:0])), ValueError, "data is an empty dataset"),
    "a last batch left out": (lambda: fit(loader(batch_size=50, drop_last=True)), ValueError, "no batch.*drop_last"),
    "pictures": (lambda: fit(Pictures()), TypeError, r"transform.*tensors.*from_datasets"),
    "pictures in a loader": (lambda: fit(DataLoader(Pictures(), 4)), TypeError, "transform.*tensors.*from_datasets"),
    "images of several sizes": (lambda: fit(Sizes()), ValueError, "differ in size.*Resize"),
    "images of several sizes from a worker": (
        lambda: fit(DataLoader(Shrinking(), 4, num_workers=1)),
        ValueError,
        r"^The samples of a batch differ in size \([^\n]*\)\. Bring them.*Resize",
    ),
    "samples in dicts": (
        lambda: fit([{"label": y, "x": x.flatten()} for x, y in SAMPLES], student=nn.Linear(64, CLASSES)),
        ValueError,
        BATCHES_ADVICE,
    ),
    "an evaluation of samples": (
        lambda: train.evaluate(nn.Linear(64, CLASSES), [(x.flatten(), y[None]) for x, y in SAMPLES], device="cpu"),
        ValueError,
        r"\(3,\); expected batch x classes.*" + BATCHES_ADVICE,
    ),
    "an evaluation of samples by batch statistics": (
        lambda: train.evaluate(nn.BatchNorm2d(1), [(x, y[None]) for x, y in SAMPLES], device="cpu"),
        ValueError,
        r"model cannot take a tensor of \(1, 8, 8\).*4D.*3D.*" + BATCHES_ADVICE,
    ),
    "a stream without length": (lambda: fit(DataLoader(Stream(), 4)), ValueError, "how many.*steps_per_epoch"),
    "steps of zero": (lambda: fit(DataLoader(Stream(), 4), steps_per_epoch=0), ValueError, "at least 1; got 0"),
    "fewer batches than said": (lambda: fit(Fewer()), ValueError, "gave 2 batches in epoch 1; expected 5"),
    "batches for one epoch": (lambda: fit(Once(), steps_per_epoch=2), ValueError, "gave 1 batches.*again and again"),
    "three parts": (lambda: fit(loader(IMAGES, LABELS, LABELS)), ValueError, "3 parts; expected a pair.*Adapter"),
    "no labels": (lambda: fit(loader(IMAGES)), ValueError, "HardLabels has a loss on the labels.*Give labels"),
    "labels that are floats": (lambda: fit(loader(IMAGES, LABELS.float())), TypeError, r"int64.*float32.*\.long"),
    "labels of other classes": (lambda: fit(loader(IMAGES, LABELS + 1)), ValueError, r"0 \.\. 2.*to 3"),
    "a validation without labels": (lambda: fit(validation=loader(IMAGES)), ValueError, "without labels.*evaluated"),
    "a validation by a generator": (lambda: fit(validation=iter([BATCH])), TypeError, "validation is a.*used up"),
    "a validation on another kind of data": (
        lambda: fit(validation=own()),
        TypeError,
        "^validation is a DataLoader, a torch Dataset.*got DataModule",
    ),
    "validation labels of other classes": (
        lambda: fit(validation=loader(IMAGES, LABELS + 5)),
        ValueError,
        r"labels must lie in 0 \.\. 2.*to",
    ),
    "validation labels to be left out": (
        lambda: fit(validation=loader(IMAGES, LABELS - 100)),
        ValueError,
        r"labels must lie in 0 \.\. 2.*from -100",
    ),
    "validation labels that are floats": (
        lambda: fit(validation=loader(IMAGES, LABELS.float())),
        TypeError,
        r"int64.*float32.*\.long",
    ),
    "images and labels": (lambda: fit((IMAGES, LABELS)), TypeError, "got tuple.*TensorDataset"),
    "bytes for floats": (
        lambda: fit(loader((IMAGES * 9).to(torch.uint8), LABELS)),
        ValueError,
        r"student cannot take.*uint8.*\.float\(\).*ToDtype",
    ),
    "double precision": (
        lambda: fit(loader(IMAGES.double(), LABELS)),
        ValueError,
        r"student cannot take.*float64.*\.float\(\)",
    ),
    "double precision for a linear layer": (
        lambda: fit(loader(IMAGES.flatten(1).double(), LABELS), student=nn.Linear(64, CLASSES)),
        ValueError,
        r"student cannot take a tensor of.*float64.*\.float\(\)",
    ),
    "a frozen student": (lambda: fit(student=net().requires_grad_(False)), ValueError, "can learn.*requires_grad_"),
    "a student without weights": (lambda: fit(student=nn.Flatten()), ValueError, "Nothing of this Flatten can learn"),
    "an optimiser of other parameters": (
        lambda: fit(optimizer=lambda parameters: torch.optim.SGD(net().parameters(), 0.1)),
        ValueError,
        "other parameters, so that nothing",
    ),
    "a recipe that is a dict": (lambda: fit(recipe={"learning_rate": 0.1}), TypeError, r"Recipe\(.*got dict"),
    "an average in words": (lambda: fit(ema_decay="0.9"), ValueError, "ema_decay lies between 0 and 1.*'0.9'"),
    "a callback that is none": (lambda: fit(on_epoch_end="print"), TypeError, "on_epoch_end is a function.*got str"),
    "an evaluation of all splits": (lambda: train.evaluate(net(), own()), TypeError, "data.test.*got DataModule"),  # type: ignore[arg-type]
    "an evaluation of a tensor": (lambda: train.evaluate(net(), IMAGES), TypeError, "loader or Dataset; got Tensor"),
    "an evaluation of nothing": (lambda: train.evaluate(net(), None), TypeError, "got NoneType"),  # type: ignore[arg-type]
    "an empty validation": (lambda: fit(validation=[]), ValueError, "validation.*no batch"),
    "views of a loader": (lambda: fit(views=2), ValueError, "views works on a DataModule.*from_datasets"),
    "no views": (lambda: fit(views=0), ValueError, "views is a whole number of at least 1; got 0"),
    "augmentation of a loader": (lambda: fit(augmentation=NO_AUGMENTATION), ValueError, "augmentation works on a Data"),
    "steps between checkpoints": (
        lambda: fit(checkpoint_every=2),
        ValueError,
        "checkpoint_every works on a DataModule",
    ),
    "test of a loader": (lambda: fit(test=True), ValueError, "Only a DataModule has a test split.*train.evaluate"),
    "an average of one": (lambda: fit(ema_decay=1), ValueError, "ema_decay lies between 0 and 1.*got 1"),
    "an average of zero": (lambda: fit(ema_decay=0), ValueError, "ema_decay lies between 0 and 1.*got 0"),
    "no accumulation": (lambda: fit(gradient_accumulation_steps=0), ValueError, "from 1 to the 3 steps.*got 0"),
    "too much accumulation": (lambda: fit(gradient_accumulation_steps=9), ValueError, "from 1 to the 3 steps.*got 9"),
    "half an accumulation": (lambda: fit(gradient_accumulation_steps=1.5), ValueError, "whole number.*got 1.5"),
    "no epochs": (lambda: fit(epochs=0), ValueError, "epochs is a whole number of at least 1; got 0"),
    "half an epoch": (lambda: fit(epochs=0.5), ValueError, "epochs is a whole number of at least 1; got 0.5"),
    "a factory that returns nothing": (lambda: fit(optimizer=lambda p: None), TypeError, "AdamW.*it gave NoneType"),
    "an optimiser itself": (
        lambda: fit(student=(s := net()), optimizer=torch.optim.SGD(s.parameters(), 0.1)),
        TypeError,
        "function from a list of parameters.*got SGD",
    ),
    "an optimiser by name": (lambda: fit(optimizer="adamw"), TypeError, "function from a list.*got str"),
    "a class of teacher": (lambda: fit(teacher=nn.Linear), TypeError, "teacher is a network.*Linear"),
    "a teacher by name": (lambda: fit(teacher="resnet18"), TypeError, "teacher is a network.*got str"),
    "a teacher with other classes": (lambda: fit(teacher=net(1, 5)), ValueError, r"\(4, 3\).*\(4, 5\).*same classes"),
    "an unknown layer": (lambda: fit(teacher=net(1), method=Feature({"0": "x"})), ValueError, "no layer.*'x'"),
    "a task for numbers": (lambda: fit(task="regression"), ValueError, r"HardLabels\(hard=F\.mse_loss\)"),
    "an adapter that is a dict": (lambda: fit(adapter={"inputs": 0}), TypeError, "adapter is a.*got dict"),
}
OWN: dict[str, Case] = {
    "floats": (lambda: own(pairs(torch.zeros(1, 8, 8))), TypeError, r"train\[0\] is torch.float32.*bytes.*uint8"),
    "arrays": (lambda: own(pairs(np.zeros((8, 8, 1), np.uint8))), TypeError, r"train\[0\] is ndarray.*PIL image"),
    "colours last": (lambda: own(pairs(torch.zeros(8, 8, 3, dtype=torch.uint8))), ValueError, r"permute\(2, 0, 1\)"),
    "four channels": (lambda: own(pairs(torch.zeros(4, 8, 8, dtype=torch.uint8))), ValueError, "1 channel.*or 3"),
    "no channels": (lambda: own(pairs(torch.zeros(8, 8, dtype=torch.uint8))), ValueError, "expected C x H x W"),
    "pixels of floats": (lambda: own(Pictures("F")), ValueError, "mode F.*range is not known. Save it with 8 or 16"),
    "samples of three": (lambda: own([(BYTES, 0, 1)] * COUNT), ValueError, r"train\[0\].*pair \(image, label\)"),
    "samples that are dicts": (lambda: own([{"image": BYTES}] * COUNT), ValueError, "is a dict; expected a pair"),
    "a name as label": (lambda: own(pairs(BYTES, "cat")), TypeError, r"label of train\[0\] is 'cat'.*number"),
    "a float as label": (lambda: own(pairs(BYTES, 1.0)), TypeError, "label.*1.0.*number"),
    "a tensor of floats as label": (lambda: own(pairs(BYTES, torch.tensor(1.0))), TypeError, "label.*number"),
    "shares as label": (lambda: own(pairs(BYTES, torch.tensor([0, 1]))), TypeError, "label.*class's number"),
    "a label without a class": (lambda: own(pairs(BYTES, 3)), ValueError, "run from 3 to 3.*0 to 2"),
    "a negative label": (lambda: own(pairs(BYTES, -1)), ValueError, "run from -1.*0 to 2"),
    "a validation label without a class": (lambda: own(validation=pairs(BYTES, 7)), ValueError, "validation labels.*7"),
    "no samples": (lambda: own([]), ValueError, "train dataset is empty"),
    "too few to hold some out": (
        lambda: own(pairs(BYTES)[:5]),
        ValueError,
        "no test and no validation.*5 sam.*give both",
    ),
    "a stream": (lambda: own(Stream()), TypeError, "train is a dataset with a length.*Stream"),
    "a stream of known length": (
        lambda: own(StreamOfKnownLength()),
        TypeError,
        "train is a dataset with a length.*by its number; got a StreamOfKnownLength",
    ),
    "a loader": (lambda: own(loader()), TypeError, "gives a sample by its number.*DataLoader"),
    "a tensor": (lambda: own(IMAGES), ValueError, r"train\[0\] is a Tensor; expected a pair"),
    "classes as a number": (lambda: own(classes=3), ValueError, "classes are the names of at least 2.*got 3"),
    "classes as a word": (lambda: own(classes="abc"), ValueError, "names of at least 2 classes; got 'abc'"),
    "one class": (lambda: own(classes=["a"]), ValueError, "names of at least 2 classes"),
    "two channels": (lambda: own(in_channels=2), ValueError, "in_channels is 1.*or 3"),
    "a side of zero": (lambda: own(image_size=0), ValueError, "image_size is a whole number.*got 0"),
    "height and width": (lambda: own(image_size=(8, 8)), ValueError, r"side of a square; got \(8, 8\)"),
    "a mean for all channels": (lambda: own(mean=0.5), ValueError, "mean has a number for each channel, 1; got 0.5"),
    "a std too many": (lambda: own(std=(1, 1)), ValueError, r"std has a number for each channel, 1; got \(1, 1\)"),
    "a std of zero": (lambda: own(std=(0.0,)), ValueError, r"std.*above 0.*got \(0.0,\)"),
    "too many for the memory": (lambda: own(Pictures(), image_size=100_000), ValueError, "GB in memory.*imagefolder"),
}
CREATE: dict[str, Case] = {
    "no zoo": (lambda: models.create("resnet18"), ValueError, '"timm:NAME" or "torchvision:NAME"; got'),
    "another zoo": (lambda: models.create("hub:resnet18"), ValueError, '"timm:NAME".*hub:resnet18'),
    "no name": (lambda: models.create("timm:"), ValueError, "named.*got 'timm:'"),
    "nothing": (lambda: models.create(None), ValueError, "named.*got None"),  # type: ignore[arg-type]
    "unknown to torchvision": (lambda: models.create("torchvision:resnt18"), ValueError, "Did you mean 'resnet18'"),
    "grey for torchvision": (lambda: models.create("torchvision:resnet18", in_channels=1), ValueError, "3 channels"),
    "trained for other classes": (
        lambda: models.create("torchvision:resnet18", pretrained=True, num_classes=3),
        ValueError,
        "leave out num_classes, or pretrained",
    ),
    "unknown to timm": (lambda: models.create("timm:resnt18"), ValueError, "no timm model.*Did you mean 'resnet18'"),
    "an unknown training": (lambda: models.create("timm:resnet18.a9_in1k"), ValueError, "a9_in1k.*resnet18.a1_in1k"),
    "unknown to build": (lambda: models.build("timm:resnt18", num_classes=3), ValueError, "Did you mean 'resnet18'"),
    "channels in words": (lambda: models.create("timm:resnet18", in_channels="3"), ValueError, "whole number.*'3'"),  # type: ignore[arg-type]
    "no channels": (
        lambda: models.create("timm:resnet18", in_channels=0),
        ValueError,
        "in_channels.*at least 1; got 0",
    ),
    "negative classes": (lambda: models.create("timm:resnet18", num_classes=-1), ValueError, "num_classes.*got -1"),
}
CASES = {
    f"{part}: {name}": case
    for part, cases in {"distiller": DISTILLER, "adapter": ADAPTER, "fit": FIT, "own": OWN, "create": CREATE}.items()
    for name, case in cases.items()
}
ALLOWED = (ValueError, TypeError, FileNotFoundError, ImportError)


def check(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    """It raises this very type, in sentences that hold these words."""
    with pytest.raises(error, match=re.compile(words, re.DOTALL)) as caught:
        call()
    assert type(caught.value) in ALLOWED
    assert re.search(r"^\S+ .{15,}[.\w)]$", str(caught.value), re.DOTALL), "no sentence"


@pytest.mark.parametrize("name", CASES)
def test_a_bad_call_is_refused_in_a_sentence(name: str) -> None:
    if name.startswith("create") and "timm" in name:
        pytest.importorskip("timm")
    check(*CASES[name])


# -------------------- with a DataModule

RAGGED = {"checkpoint_every": 3, "gradient_accumulation_steps": 2, "recipe": Recipe(batch_size=32)}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"validation": [BATCH]}, ValueError, "its own validation split.*leave out validation"),
        ({"steps_per_epoch": 2}, ValueError, "own validation split and length"),
        ({"task": "segmentation"}, ValueError, "task is 'classification'. Give a DataLoader"),
        ({"task": Segmentation()}, ValueError, "task is 'classification'. Give a DataLoader"),
        ({"views": 0}, ValueError, "views is a whole number of at least 1; got 0"),
        ({"views": -1}, ValueError, "views is a whole number of at least 1; got -1"),
        (RAGGED, ValueError, "checkpoint_every=3 is no multiple"),
        ({"teacher": GIVEN}, ValueError, "NO_AUGMENTATION.*any_view"),
        ({"teacher": GIVEN, "augmentation": NO_AUGMENTATION}, ValueError, "no answers for 84 of the 96"),
    ],
)
def test_a_data_module_refuses_what_belongs_to_loaders(
    blobs: DataModule, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    check(lambda: fit(blobs, **options), error, words)


def test_a_cache_of_images_cannot_serve_a_loader(blobs: DataModule) -> None:
    cache = CachedTeacher.build(net(1), blobs.train, device="cpu", precision="fp32", progress=False)
    check(lambda: fit(teacher=cache), ValueError, "by dataset and view.*DataModule.*from_logits")
    check(lambda: distil(teacher=cache), ValueError, "by dataset and view.*DataModule.*from_logits")


def test_floats_of_a_lazy_dataset_are_refused() -> None:
    from torchvision.transforms import v2

    def to_floats(augmentation: data.Augmentation) -> v2.Transform:
        return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    numbers = torch.arange(COUNT)
    lazy = LazyDataset(Pictures(), numbers, LABELS, numbers, (0.5,), (0.5,), to_floats, "pictures")
    check(lambda: next(lazy.iter_batches(4)), TypeError, "torch.float32; expected bytes.*uint8")


# -------------------- what is allowed beside it


def test_a_dataset_is_evaluated_like_its_loader() -> None:
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
    found = train.evaluate(net(), TensorDataset(IMAGES, LABELS), batch_size=5, **options)
    expected = train.evaluate(net(), loader(), **options)
    assert found.accuracy == pytest.approx(expected.accuracy)
    assert found.loss == pytest.approx(expected.loss)
    assert found.loss == pytest.approx(F.cross_entropy(net()(IMAGES), LABELS).item())


def test_a_teacher_with_other_classes_may_serve_features_and_relations() -> None:
    for method in (BOTH, HardLabels() + Relation({"0": "0"}, "similarity")):
        assert torch.isfinite(distil(teacher=net(1, 5), method=method, example=BATCH).total)
        assert fit(teacher=net(1, 5), method=method).rows


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA", "YCbCr", "HSV"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_a_picture_of_any_mode_has_the_colours_that_it_shows(mode: str, in_channels: int) -> None:
    picture = Image.new("RGB", (8, 8), (250, 40, 10)).convert(mode)
    found = own([(picture, number % CLASSES) for number in range(COUNT)], in_channels=in_channels).train
    shown = torch.from_numpy(np.array(picture.convert("RGB" if in_channels == 3 else "L"))).view(8, 8, in_channels)
    assert all(torch.equal(image, shown.permute(2, 0, 1)) for image in found.images)


@pytest.mark.parametrize(("mode", "colour"), [("LA", (100, 128)), ("RGBA", (100, 100, 100, 128))])
def test_a_picture_with_premultiplied_transparency_is_as_one_without(mode: str, colour: tuple[int, ...]) -> None:
    plain = Image.new(mode, (8, 8), colour)
    first, second = (
        own([(picture, number % CLASSES) for number in range(COUNT)]).train
        for picture in (plain, plain.convert(mode[:-1] + "a"))
    )
    assert (first.images.int() - second.images.int()).abs().max() <= 1


def test_timm_that_is_not_installed_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for call in (
        lambda: models.create("timm:resnet18"),
        lambda: models.build("timm:resnet18", num_classes=3),
        lambda: models.load("timm:resnet18"),
    ):
        check(call, ImportError, r'timm:resnet18 needs the package timm.*pip install "kdlib\[timm\]"')


def test_a_loss_that_is_not_finite_ends_the_training_by_name() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1)) * float("nan")

    with pytest.raises(FloatingPointError, match="(?s)loss is.*step.*Lower the learning rate"):
        fit(student=Broken())


def test_refused_pieces_are_given_back_as_they_were() -> None:
    student, teacher = net(0), net(1, 5)
    before = copy.deepcopy((student.state_dict(), teacher.state_dict()))
    with pytest.raises(ValueError, match="same classes"):
        fit(student=student, teacher=teacher)
    for network, state in zip((student, teacher), before, strict=True):
        assert network.training
        assert not any(module._forward_hooks for module in network.modules())
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
