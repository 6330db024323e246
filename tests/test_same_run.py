"""What a resumed run is recognised by, and what it goes on with."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlib import train
from kdlib.adapters import Adapter
from kdlib.data import NO_AUGMENTATION, DataModule
from kdlib.methods import HardLabels, Logit
from kdlib.teachers import CachedTeacher
from kdlib.train import Recipe


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


def fit(blobs: Any, **options: Any) -> train.Result:
    given = {"epochs": 2, "recipe": Recipe(learning_rate=0.01, batch_size=32), "device": "cpu", "precision": "fp32"}
    return train.fit(net(), blobs, **{**given, "progress": False, **options})


def test_other_training_images_are_another_run(blobs: DataModule, tmp_path: Any) -> None:
    fit(blobs, checkpoint=tmp_path / "a")
    other = replace(blobs, train=blobs.train.select(torch.arange(96).roll(1)[:95]))
    with pytest.raises(ValueError, match="belongs to another run: it was {'data'"):
        fit(other, checkpoint=tmp_path / "a", resume=True)


@pytest.mark.parametrize(
    ("was", "now"), [({"ema_decay": 0.9}, {"ema_decay": 0.99}),
                     ({"gradient_accumulation_steps": 3}, {"gradient_accumulation_steps": 2})], ids=str,
)  # fmt: skip
def test_another_number_is_another_run_too(blobs: DataModule, tmp_path: Any, was: dict, now: dict) -> None:
    fit(blobs, checkpoint=tmp_path / "a", **was)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(blobs, checkpoint=tmp_path / "a", resume=True, **now)


def test_a_method_that_writes_a_log_belongs_to_the_same_run_when_it_goes_on(blobs: DataModule, tmp_path: Any) -> None:
    class Logged(HardLabels):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.log = logging.getLogger(name)

    fit(blobs, checkpoint=tmp_path / "a", method=Logged("kdlib.tests.run"))
    logging.getLogger("kdlib.tests.run.another").warning("which the first one does not know")
    logging.getLogger("kdlib.tests.run").isEnabledFor(logging.DEBUG)  # it keeps the answer
    fit(blobs, checkpoint=tmp_path / "a", method=Logged("kdlib.tests.run"), resume=True)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(blobs, checkpoint=tmp_path / "a", method=Logged("kdlib.tests.other"), resume=True)


class Scaled(nn.Module):
    """What it is given, times a number that is a buffer."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Asked:
    """A service that counts, and remembers what it has answered."""

    def __init__(self, scale: float = 1.0) -> None:
        self.network, self.asked, self.answers = nn.Sequential(net(), Scaled(scale)).eval(), 0, {}

    def __call__(self, batch: Any) -> Tensor:
        self.asked += 1
        key = float(batch.images.sum())
        if key not in self.answers:
            self.answers[key] = self.network(batch.images)
        return self.answers[key]


def remembering() -> Any:
    service, asked = Asked(), 0

    def ask(batch: Any) -> Tensor:
        nonlocal asked
        asked += 1
        return service(batch)

    return ask


@pytest.mark.parametrize("make", [Asked, remembering, lambda: Asked().__call__], ids=["object", "closure", "method"])
def test_a_teacher_that_remembers_its_answers_is_the_same_one(blobs: DataModule, tmp_path: Any, make: Any) -> None:
    options: dict[str, Any] = {"teacher": make(), "method": Logit(4, 0.1), "checkpoint": tmp_path / "a", "epochs": 3}

    def stop(epoch: int, student: nn.Module) -> None:
        if epoch == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(blobs, on_epoch_end=stop, **options)
    assert len(fit(blobs, resume=True, **options).history) == 3


def test_another_function_as_a_teacher_is_another_run(blobs: DataModule, tmp_path: Any) -> None:
    def teacher(scale: float) -> Any:
        network = net().eval()
        return lambda batch: scale * network(batch.images)

    options: dict[str, Any] = {"method": Logit(4, 0.1), "checkpoint": tmp_path / "a"}
    fit(blobs, teacher=teacher(1.0), **options)
    fit(blobs, teacher=teacher(1.0), resume=True, **options)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(blobs, teacher=teacher(-9.0), resume=True, **options)
    fit(blobs, teacher=Asked(1.0), checkpoint=tmp_path / "c", method=Logit(4, 0.1))
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(blobs, teacher=Asked(2.0), checkpoint=tmp_path / "c", method=Logit(4, 0.1), resume=True)
    fit(blobs, teacher=teacher(1.0), method=HardLabels(), checkpoint=tmp_path / "b")  # which asks none
    fit(blobs, teacher=teacher(-9.0), method=HardLabels(), checkpoint=tmp_path / "b", resume=True)


def test_teacher_outputs_in_other_bits_are_another_run(blobs: DataModule, tmp_path: Any) -> None:
    def teacher(half: bool) -> CachedTeacher:
        options: dict[str, Any] = {"augmentation": blobs.augmentation, "views": 1, "precision": "fp32"}
        return CachedTeacher.build(net(), blobs.train, half=half, progress=False, **options)

    options: dict[str, Any] = {"method": Logit(4, 0.1), "checkpoint": tmp_path / "a", "views": 1}
    fit(blobs, teacher=teacher(half=False), **options)
    fit(blobs, teacher=teacher(half=False), resume=True, **options)
    with pytest.raises(ValueError, match="'teacher outputs': 'in 32 bits'.*'in 16 bits'"):
        fit(blobs, teacher=teacher(half=True), resume=True, **options)


def test_answers_from_elsewhere_can_be_resumed_with(blobs: DataModule, tmp_path: Any) -> None:
    answers = CachedTeacher.from_logits(torch.randn(len(blobs.train), 3), blobs.train.indices)
    options: dict[str, Any] = {"teacher": answers, "method": Logit(4, 0.1), "augmentation": NO_AUGMENTATION}
    options["checkpoint"] = tmp_path / "a"
    fit(blobs, **options)
    assert fit(blobs, resume=True, **options).rows[-1]["epoch"] == 2


def test_seconds_are_of_all_resumptions(blobs: DataModule, tmp_path: Any) -> None:
    first = fit(blobs, checkpoint=tmp_path / "a")
    again = fit(blobs, checkpoint=tmp_path / "a", resume=True)  # nothing is left to do
    assert again.seconds == first.seconds > 0


def test_the_loss_of_an_epoch_is_weighted_by_samples() -> None:
    x, y = torch.randn(12, 64, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    frozen = Recipe(learning_rate=1e-12, schedule="constant", momentum=0, weight_decay=0)
    run = train.fit(net(), [(x[:2], y[:2]), (x[2:], y[2:])], epochs=1, recipe=frozen, device="cpu", precision="fp32",
                    progress=False)  # fmt: skip
    assert run.rows[0]["loss"] == pytest.approx(nn.functional.cross_entropy(net()(x), y).item(), rel=1e-4)


@pytest.mark.slow
def test_other_views_are_another_search(blobs: DataModule, tmp_path: Any) -> None:
    pytest.importorskip("optuna")
    from kdlib import search

    options: dict[str, Any] = {
        "method": "hard", "student": "resnet8w2", "trials": 1, "epochs": 1, "images": 30, "storage": tmp_path,
        "device": "cpu", "precision": "fp32", "progress": False,
    }  # fmt: skip
    search.run(blobs, views=1, **options)
    with pytest.raises(ValueError, match=r"views 1 \(now 2\)"):
        search.run(blobs, views=2, **options)


def test_what_a_function_of_the_users_holds_is_read_once_and_only_for_a_checkpoint(tmp_path: Any) -> None:
    read = 0

    class Inputs:
        """A function that holds, say, a whole data set, which its text stands for."""

        __slots__ = ()

        def __call__(self, batch: Any) -> Tensor:
            return batch[0]

        def __repr__(self) -> str:
            nonlocal read
            read += 1
            return "Inputs()"

    batches = [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))] * 2
    adapter = Adapter(inputs=Inputs(), labels=1)
    fit(batches, adapter=adapter)
    assert read == 0
    fit(batches, adapter=adapter, checkpoint=tmp_path / "a", epochs=3)
    assert read == 1


class Counting(nn.Module):
    """A network whose output depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = net(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.inner(x) / (1 + self.calls)


def freeze(epoch: int, student: nn.Module) -> None:
    student[1].requires_grad_(False)


def drop_more(epoch: int, student: nn.Module) -> None:
    student[2].p = 0.6


@pytest.mark.parametrize(
    ("student", "change", "name"),
    [
        (Counting, None, "calls"),
        (net, freeze, "1.weight.requires_grad"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.1), nn.Linear(8, 3)), drop_more, "2.p"),
    ],
    ids=["a counter", "frozen", "dropout"],
)
def test_what_a_training_changes_in_its_student_beside_weights_is_told(
    blobs: DataModule, tmp_path: Any, student: Any, change: Any, name: str
) -> None:
    """No checkpoint keeps it, so a resumed run would go another way."""
    options: dict[str, Any] = {"epochs": 3, "device": "cpu", "precision": "fp32", "progress": False}
    options |= {"on_epoch_end": change, "recipe": Recipe(learning_rate=0.01, batch_size=32), "method": HardLabels()}
    with pytest.warns(
        UserWarning, match=rf"has changed {re.escape(name)}.*of its student, which a checkpoint does not"
    ):
        train.fit(student(), blobs, checkpoint=tmp_path / "a", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train.fit(student(), blobs, **options)
        train.fit(net(), blobs, checkpoint=tmp_path / "b", **(options | {"on_epoch_end": None}))
