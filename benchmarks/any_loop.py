"""What kdlib costs beside the same loop written by hand: `fit` with a DataLoader, and `Distiller`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import steps
import torch
import torch.nn.functional as F
from rounds import Row, at_least, ratios_to
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlib import devices, train
from kdlib.distiller import Distiller
from kdlib.measure import clock
from kdlib.methods import Feature, Logit
from kdlib.recipes import Recipe

RECIPE = Recipe(schedule="constant")


def _loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(steps.STEPS * steps.BATCH, 1, 28, 28, generator=generator)
    labels = torch.randint(0, 10, (len(images),), generator=generator)
    return DataLoader(TensorDataset(images, labels), steps.BATCH)


def _rate(seconds: float) -> float:
    return steps.STEPS * steps.BATCH / seconds


def _kd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    soft = F.kl_div((student / 4).log_softmax(1), (teacher / 4).log_softmax(1), reduction="batchmean", log_target=True)
    return 0.1 * F.cross_entropy(student, labels) + 0.9 * 16 * soft


def loop_by_hand(config: devices.DeviceConfig, teacher: nn.Module) -> Callable[[], float]:
    """Batches from a DataLoader, a live teacher, the two losses, SGD; nothing is measured or shown."""
    loader, now = _loader(), clock(config.device)

    def measure() -> float:
        student = config.move(steps.student()).train()
        optimizer = RECIPE.make_optimizer(student.parameters())
        started = now()
        for images, labels in loader:
            images, labels = config.move_images(images), devices.to_device(labels, config.device)
            with torch.no_grad(), config.autocast():
                wanted = teacher(images)
            with config.autocast():
                logits = student(images)
            optimizer.zero_grad(set_to_none=True)
            _kd(logits.float(), wanted.float(), labels).backward()
            optimizer.step()
        return _rate(now() - started)

    return measure


def fit_with_a_loader(teacher: nn.Module) -> Callable[[], float]:
    """The same by `train.fit`, with its log, checks and progress bar."""
    loader = _loader()

    def measure() -> float:
        student = steps.student()
        return _rate(train.fit(student, loader, teacher=teacher, method=Logit(), recipe=RECIPE, epochs=1).seconds)

    return measure


def formula_by_hand(config: devices.DeviceConfig, teacher: nn.Module) -> Callable[[], float]:
    """Steps on one batch: logits and a hint on layer3, whose maps two hooks that were written by hand bring out."""
    student = config.move(steps.student()).train()
    project = config.move(nn.Conv2d(64, 256, 1, bias=False))
    optimizer = RECIPE.make_optimizer([*student.parameters(), *project.parameters()])
    images, labels = steps.batch(config)
    maps: dict[str, Tensor] = {}
    now = clock(config.device)
    student.layer3.register_forward_hook(lambda *given: maps.update(student=given[2]))
    teacher.layer3.register_forward_hook(lambda *given: maps.update(teacher=given[2]))

    def measure() -> float:
        started = now()
        for _ in range(steps.STEPS):
            with torch.no_grad(), config.autocast():
                wanted = teacher(images)
            with config.autocast():
                logits = student(images)
            mine, target = maps["student"].float(), maps["teacher"].float()
            mine = F.adaptive_avg_pool2d(mine, target.shape[2:])
            loss = _kd(logits.float(), wanted.float(), labels) + 10 * F.mse_loss(project(mine), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return _rate(now() - started)

    return measure


def distiller_in_a_loop(config: devices.DeviceConfig, teacher: nn.Module) -> Callable[[], float]:
    """The same by `Distiller`."""
    student = config.move(steps.student())
    method = Logit() + 10 * Feature(steps.LAST)
    distiller = Distiller(student, teacher, method, example=steps.batch(config)).train()
    optimizer = RECIPE.make_optimizer(distiller.parameters())
    batch, now = steps.batch(config), clock(config.device)

    def measure() -> float:
        started = now()
        for _ in range(steps.STEPS):
            with config.autocast():
                losses = distiller(batch)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            optimizer.step()
        return _rate(now() - started)

    return measure


def run(full: bool) -> Iterator[Row]:
    """`fit` with a DataLoader against the same loop, and `Distiller` against the same formula."""
    config = devices.resolve()
    pairs = 20 if full else 4
    detail = f"{pairs} pairs with the same by hand"
    teachers = [config.move(steps.teacher()) for _ in range(2)]
    limit, loop = loop_by_hand(config, teachers[0]), fit_with_a_loader(teachers[0])
    yield at_least("fit with a DataLoader", ratios_to(limit, {"": loop}, pairs)[""], 0.97, detail)
    limit, loop = formula_by_hand(config, teachers[0]), distiller_in_a_loop(config, teachers[1])
    yield at_least("Distiller in a loop", ratios_to(limit, {"": loop}, pairs)[""], 0.97, detail)
