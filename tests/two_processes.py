"""What test_distributed.py starts under torchrun: `python two_processes.py TASK FOLDER`, or `command` and its options.

Importing torch takes each process longer than any task, so tasks that can share a start do.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdlib import data, devices, distributed, files, models, train
from kdlib.adapters import Adapter
from kdlib.batches import LoaderBatches
from kdlib.methods import Feature, HardLabels, Logit, Terms
from kdlib.recipes import Recipe
from kdlib.tasks import Classification
from kdlib.teachers import CachedTeacher

IMAGES, BATCH = 320, 64
LOAD = data.load
METHODS = {
    "hard": HardLabels(),
    "logit": Logit(4, 0.1),
    "logit+feature": Logit(4, 0.1) + 0.1 * Feature({"pool1": "layer2"}),
    "cached": Logit(4, 0.1),
    "stored": Logit(4, 0.1),
    "feature": Feature({"pool1": "layer2"}),  # no term looks at the logits, so the classifier gets no gradient
}


def fashion_with_few_to_test_on(name: str = "fashion-mnist", **options: Any) -> data.DataModule:
    """Fashion-MNIST, but with 51 images to validate and to test on: an odd number, for two processes."""
    whole, few = LOAD(name, **options), torch.arange(51)
    return replace(whole, validation=whole.validation.select(few), test=whole.test.select(few))


def fit_all(folder: Path) -> None:
    """Train a student without batch statistics by each method; called by one process and by two."""
    fashion = fashion_with_few_to_test_on().subset(IMAGES, seed=0)
    teacher = models.load("resnet20-fashion")
    for name, method in METHODS.items():
        outputs: Any = teacher
        if name in ("cached", "stored"):
            outputs = CachedTeacher.build(
                teacher,
                fashion.train,
                augmentation=fashion.augmentation,
                seed=0,
                views=2,
                directory=folder / "outputs" if name == "stored" else None,
                half=False,
                precision="fp32",
                progress=False,
            )
        student = models.build("article-student", num_classes=10, in_channels=1, seed=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No term of this method looks at the logits")
            run = train.fit(
                student,
                fashion,
                teacher=outputs if method.needs_teacher else None,
                method=method,
                epochs=2,
                recipe=Recipe(learning_rate=0.05, batch_size=BATCH),
                precision="fp32",
                progress=False,
            )
        if distributed.rank() == 0:
            facts = {"rows": run.rows, "test_accuracy": run.test_accuracy}
            files.save_tensors(folder / f"{name}.safetensors", run.student.state_dict(), facts)


LEFT = {"steps": 0}  # no attribute of the method: it is the same run, whenever it dies


class Dies(HardLabels):
    """Hard labels, until the second process is killed."""

    def __init__(self, step: int) -> None:
        super().__init__()
        LEFT["steps"] = step

    def forward(self, *given: Any) -> Terms:
        LEFT["steps"] -= 1
        if LEFT["steps"] == 0 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(*given)


def fit_resumably(folder: Path, step: int) -> None:
    """Train a network with dropout, so that each process's random state matters; die at a step, if not 0."""
    torch.manual_seed(0)
    student = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)
    )
    run = train.fit(
        student,
        fashion_with_few_to_test_on().subset(IMAGES, seed=0),
        method=Dies(step),
        epochs=3,
        recipe=Recipe(learning_rate=0.05, batch_size=BATCH),
        checkpoint=folder / "checkpoint",
        checkpoint_every=2,
        resume=True,
        progress=False,
    )
    if distributed.rank() == 0:
        files.save_tensors(folder / "student.safetensors", run.student.state_dict(), {"rows": run.rows})


def shared_order(dataset: TensorDataset, seed: int) -> Iterator[int]:
    """The samples of this process in the first epoch of a run."""
    options: dict[str, Any] = {"config": devices.resolve(), "adapter": Adapter(), "task": Classification()}
    loader = LoaderBatches(dataset, None, batch_size=16, steps_per_epoch=None, seed=seed, **options).loader
    return iter(loader.sampler)  # type: ignore[attr-defined]


def fit_a_dataset() -> dict[str, Any]:
    """Train on a torch Dataset, whose samples the processes share, and on batches that they cannot share."""
    torch.manual_seed(0)
    images, labels = torch.randn(64, 8), torch.arange(64) % 3
    options: dict[str, Any] = {"epochs": 2, "recipe": Recipe(batch_size=16), "progress": False}
    run = train.fit(nn.Linear(8, 3), TensorDataset(images, labels), **options)
    facts: dict[str, Any] = {"weights": run.student.weight.tolist(), "loss": run.rows[-1]["loss"]}
    with_statistics = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
    averaged = train.fit(with_statistics, TensorDataset(images, labels), ema_decay=0.9, **options).student
    facts["averaged"] = {name: value.tolist() for name, value in averaged.state_dict().items()}
    facts["half used"] = {str(steps): fit_the_half_used(steps) for steps in (1, 3)}
    facts["sums"] = distributed.all_reduce_values(
        {"a": 1.0, "b": 2.0} if distributed.rank() == 0 else {"b": 5.0, "c": 3.0}
    )
    facts["orders"] = [list(shared_order(TensorDataset(images, labels), seed)) for seed in (0, 1)]
    try:
        train.fit(nn.Linear(8, 3), [(images, labels)], **options)
    except ValueError as error:
        facts["refused"] = str(error)
    return facts


class HalfUsed(nn.Module):
    """A student with a layer that nothing looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def fit_the_half_used(steps: int) -> dict[str, Any]:
    """Its weights after so many steps, each on the same samples; called by one process and by two."""
    torch.manual_seed(0)
    student, images, labels = HalfUsed(), torch.randn(16, 8), torch.arange(16) % 3
    options: dict[str, Any] = {"epochs": steps, "recipe": Recipe(batch_size=16, schedule="constant"), "progress": False}
    train.fit(student, TensorDataset(images, labels), device="cpu", precision="fp32", **options)
    return {name: value.tolist() for name, value in student.state_dict().items()}


def gloo_threads() -> list[str]:
    """The names of this process's threads that still work for gloo; none where there is no /proc."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def main(task: str, *given: str) -> None:
    if task == "command":
        data.load = fashion_with_few_to_test_on
        sys.argv = ["kdlib", *given]
        runpy.run_module("kdlib", run_name="__main__")
        return
    folder = Path(given[0])
    with distributed.process_group():
        if task == "methods":
            fit_all(folder)
        if task in ("methods", "whole"):
            fit_resumably(folder, step=0)
        if task == "dies":
            fit_resumably(folder, step=8)
        dataset = fit_a_dataset() if task == "methods" else None
        rank, inside, refusal = distributed.rank(), gloo_threads(), None
        if task == "methods":  # once more, from a disk that only the first process sees
            try:
                fit_resumably(folder if rank == 0 else folder / "elsewhere", step=0)
            except ValueError as error:
                refusal = str(error)
    facts = {"inside": inside, "after": gloo_threads(), "refusal": refusal, "dataset": dataset}
    (folder / f"process-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
