"""The examples: each loop trains as `fit` does, to the rounding, and each script runs and leaves nothing behind."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from kdlib import train
from kdlib.distiller import Distiller
from kdlib.recipes import Recipe

FOLDER = Path(__file__).resolve().parents[1] / "examples"
LIBRARIES = {
    "plain_pytorch": "torch",
    "accelerate_loop": "accelerate",
    "lightning_loop": "lightning",
    "transformers_trainer": "transformers",
}
LEARNING_RATE = 0.03
ROUNDING = 1e-6

Weights = dict[str, Tensor]


def example(name: str) -> Any:
    """An example as a module; the test is skipped where its library is missing."""
    pytest.importorskip(LIBRARIES[name])
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(distiller: Distiller) -> Weights:
    return copy.deepcopy(distiller.state_dict())


def fit(distiller: Distiller, batches: Sequence[Any], **options: Any) -> Weights:
    """The weights that `fit` makes of those of the distiller, which stays as it is; named as a distiller names them."""
    student, teacher = copy.deepcopy(distiller.student), copy.deepcopy(distiller.teacher.model)
    result = train.fit(
        student,
        batches,
        teacher=teacher,
        method=distiller.method,  # it has its projectors, and fit goes on with them
        optimizer=lambda parameters: torch.optim.SGD(parameters, LEARNING_RATE),
        recipe=Recipe(schedule="constant"),
        epochs=1,
        device="cpu",
        precision="fp32",
        progress=False,
        **options,
    )
    modules = {"student": result.student, "method": result.method}
    return {f"{prefix}.{name}": value for prefix, one in modules.items() for name, value in one.state_dict().items()}


def largest_difference(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def check(before: Weights, after: Weights, expected: Weights, distiller: Distiller, teacher: Weights) -> None:
    """The loop changed what it should as `fit` does, and left the teacher alone."""
    assert largest_difference(after, expected) <= ROUNDING
    projectors = [name for name in after if "projectors" in name]
    assert projectors
    matrices = [name for name, p in distiller.student.named_parameters(prefix="student") if p.ndim > 1]
    for name in projectors + matrices:
        assert not torch.equal(after[name], before[name]), f"{name} has its initial weights"
    network: nn.Module = distiller.teacher.model
    assert not network.training
    assert all(torch.equal(value, teacher[name]) for name, value in network.state_dict().items())


def compare_with_fit(module: Any, samples: int = 256, **options: int) -> None:
    """Train the example's distiller by its own loop and by `fit`. options: of both."""
    torch.manual_seed(0)
    loader = DataLoader(module.build_dataset(samples), batch_size=32)
    distiller = module.build_distiller(next(iter(loader)))
    before, teacher = weights(distiller), copy.deepcopy(distiller.teacher.model.state_dict())
    names = {"accumulate": "gradient_accumulation_steps"}
    expected = fit(distiller, list(loader), **{names[name]: value for name, value in options.items()})
    assert largest_difference(weights(distiller), before) == 0
    module.distil(distiller, loader, learning_rate=LEARNING_RATE, **options)
    check(before, weights(distiller), expected, distiller, teacher)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_plain_loop_is_that_of_fit(accumulate: int) -> None:
    compare_with_fit(example("plain_pytorch"), accumulate=accumulate)


def test_gradients_that_are_left_over_do_not_reach_the_next_epoch() -> None:
    module = example("plain_pytorch")
    torch.manual_seed(0)
    loader = list(DataLoader(module.build_dataset(96), batch_size=32))
    both, anew = (module.build_distiller(loader[0]) for _ in range(2))
    module.distil(both, loader, accumulate=2)  # the third batch makes no step
    anew.load_state_dict(both.state_dict())
    anew.teacher.model.load_state_dict(both.teacher.model.state_dict())
    for distiller in (both, anew):
        module.distil(distiller, loader, accumulate=2)
    assert largest_difference(weights(both), weights(anew)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accelerate_loop", "lightning_loop"])
def test_accelerate_and_lightning_train_as_fit_does(name: str) -> None:
    compare_with_fit(example(name))


class Recorded(Dataset):
    """A dataset that remembers which samples were asked for, in which order."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.order: list[int] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        self.order.append(index)
        return self.dataset[index]


def without_dropout(distiller: Distiller) -> Distiller:
    for module in distiller.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return distiller


@pytest.mark.slow
def test_transformers_trainer_trains_as_fit_does() -> None:
    """It shuffles by its own seed, so what it did is repeated by `fit`."""
    module = example("transformers_trainer")
    torch.manual_seed(0)
    dataset = Recorded(module.Sentences())
    distiller = without_dropout(module.build_distiller(default_collate([dataset[0], dataset[1]])))
    untrained = copy.deepcopy(distiller)
    before, teacher = weights(distiller), copy.deepcopy(distiller.teacher.model.state_dict())
    dataset.order.clear()
    module.distil(distiller, dataset, learning_rate=LEARNING_RATE)
    assert sorted(dataset.order) == list(range(len(dataset)))
    assert dataset.order != sorted(dataset.order)
    batches = [
        default_collate([dataset.dataset[index] for index in dataset.order[start : start + 16]])
        for start in range(0, len(dataset), 16)
    ]
    check(before, weights(distiller), fit(untrained, batches), distiller, teacher)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_script_runs_prints_its_losses_and_writes_nothing(name: str, tmp_path: Path) -> None:
    pytest.importorskip(LIBRARIES[name])
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    printed = dict(line.split(": ") for line in done.stdout.splitlines())
    assert list(printed) == ["loss before", "loss after"]
    assert float(printed["loss after"]) < 0.7 * float(printed["loss before"])
    assert list(tmp_path.iterdir()) == []


def test_every_example_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(LIBRARIES)
