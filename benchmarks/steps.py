"""What distillation costs beside a plain training step: cached, live, with features and with relations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from rounds import Row, at_least, at_most, medians, ratios_to
from torch import Tensor, nn

from kdlib import data, devices, models, train
from kdlib.data import DataModule
from kdlib.measure import clock
from kdlib.methods import Feature, HardLabels, Logit, Method, Relation
from kdlib.recipes import Recipe
from kdlib.teachers import CachedTeacher

BATCH, STEPS, VIEWS = 128, 40, 2
PAIRS = {"layer1": "layer1", "layer2": "layer2", "layer3": "layer3"}
LAST = {"layer3": "layer3"}
METHODS: dict[str, Method] = {
    "hint": Feature(LAST),
    "attention": Feature(PAIRS, loss="attention"),
    "vid": Feature(LAST, loss="vid"),
    "fsp": Relation(PAIRS, loss="fsp"),
    "layer correlation": Relation(PAIRS, loss="layer_correlation"),
    "layer information": Relation(PAIRS, loss="layer_information"),
    "rkd": Relation({"avgpool": "avgpool"}, loss="rkd"),
    "similarity": Relation(LAST, loss="similarity"),
    "correlation congruence": Relation({"avgpool": "avgpool"}, loss="correlation_congruence"),
}


def student() -> nn.Module:
    """The student of every measurement."""
    return models.build("resnet8", num_classes=10, in_channels=1, seed=0)


def teacher() -> nn.Module:
    """Its teacher; untrained, which costs the same."""
    return models.build("resnet18", num_classes=10, in_channels=1, seed=1).eval()


def batch(config: devices.DeviceConfig) -> tuple[Tensor, Tensor]:
    """Images as the loop gives them to the network, made once."""
    generator = torch.Generator().manual_seed(0)
    images = config.move_images(torch.randn(BATCH, 1, 28, 28, generator=generator))
    return images, devices.to_device(torch.randint(0, 10, (BATCH,), generator=generator), config.device)


def plain_step(config: devices.DeviceConfig) -> Callable[[], float]:
    """The limit: forward, cross-entropy, backward, SGD; no images to prepare, nothing measured or shown."""
    network = config.move(student()).train()
    images, labels = batch(config)
    optimizer = Recipe().make_optimizer(network.parameters())
    now = clock(config.device)

    def measure() -> float:
        started = now()
        for _ in range(STEPS):
            with config.autocast():
                logits = network(images)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
        return STEPS * BATCH / (now() - started)

    return measure


@torch.inference_mode()
def inference(network: nn.Module, config: devices.DeviceConfig) -> float:
    """Images a second through a network in inference mode."""
    images, _ = batch(config)
    now = clock(config.device)
    started = now()
    for _ in range(STEPS // 2):
        with config.autocast():
            network(images)
    return STEPS // 2 * BATCH / (now() - started)


def fit_rate(fashion: DataModule, method: Method, outputs: nn.Module | CachedTeacher | None = None) -> float:
    """Images a second of train.fit's loop: augmentation, losses, metrics, progress bar, checks and all."""
    result = train.fit(student(), fashion, teacher=outputs, method=method, epochs=1, test=False)
    return STEPS * BATCH / result.seconds


def cache_rate(fashion: DataModule, network: nn.Module) -> float:
    """Images a second of building a cache, in all its views."""
    started = time.perf_counter()
    CachedTeacher.build(network, fashion.train, augmentation=fashion.augmentation, views=VIEWS)
    return VIEWS * len(fashion.train) / (time.perf_counter() - started)


def run(full: bool) -> Iterator[Row]:
    """Logits from a cache and live, the cost of the cache, and each feature and relation method live."""
    config = devices.resolve()
    fashion = data.load("fashion-mnist").subset(STEPS * BATCH, seed=0)
    network = config.move(teacher())
    cache = CachedTeacher.build(network, fashion.train, augmentation=fashion.augmentation, progress=False)
    loops = {
        "hard labels": partial(fit_rate, fashion, HardLabels()),
        "cached logits": partial(fit_rate, fashion, Logit(), cache),
    }
    pairs = 20 if full else 4
    ratios = ratios_to(plain_step(config), loops, rounds=pairs)
    for name in loops:
        yield at_least(name, ratios[name], 0.95, f"{pairs} pairs with a plain step")
    plain = {"plain": plain_step(config), "inference": partial(inference, network, config)}
    live = {"live": partial(fit_rate, fashion, Logit(), network), "built": partial(cache_rate, fashion, network)}
    rates = medians(plain | live, rounds=5 if full else 1)
    limit = _limit(rates)
    yield at_least("logits, live", rates["live"] / limit, 0.95, f"{rates['live']:,.0f} of {limit:,.0f} images/s")
    built = f"{rates['built']:,.0f} against {rates['inference']:,.0f} images/s"
    yield at_most("cache against forward passes", rates["inference"] / rates["built"], 1.05, built)
    for name, method in METHODS.items():
        contestants = plain | {name: partial(fit_rate, fashion, HardLabels() + method, network)}
        rates = medians(contestants, rounds=3 if full else 1)
        limit = _limit(rates)
        yield at_least(f"{name}, live", rates[name] / limit, 0.85, f"{rates[name]:,.0f} of {limit:,.0f} images/s")


def _limit(rates: dict[str, float]) -> float:
    """Images a second of a plain step and a forward pass of the teacher after one another."""
    return 1 / (1 / rates["plain"] + 1 / rates["inference"])
