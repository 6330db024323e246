"""What distillation costs beside a plain training step: cached, live, with features and with relations."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from rounds import Row, at_least, at_most, beside, medians
from torch import Tensor, nn

from kdlib import data, devices, models, train
from kdlib.data import DataSet
from kdlib.methods import Feature, HardLabels, Logit, Method, Relation
from kdlib.recipes import Recipe
from kdlib.teachers import Cached

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


def batch(place: devices.Place) -> tuple[Tensor, Tensor]:
    """Pictures as the loop gives them to the network, made once."""
    generator = torch.Generator().manual_seed(0)
    images = place.put_images(torch.randn(BATCH, 1, 28, 28, generator=generator))
    return images, torch.randint(0, 10, (BATCH,), generator=generator)


def plain_step(place: devices.Place) -> Callable[[], float]:
    """The limit: forward, cross-entropy, backward, SGD; no pictures to prepare, nothing measured or shown."""
    network = place.put(student()).train()
    images, labels = batch(place)
    optimizer = Recipe().make_optimizer(network.parameters())

    def measure() -> float:
        started = time.perf_counter()
        for _ in range(STEPS):
            with place.autocast():
                logits = network(images)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
        return STEPS * BATCH / (time.perf_counter() - started)

    return measure


@torch.inference_mode()
def asked(network: nn.Module, place: devices.Place) -> float:
    """Images a second through a network in inference mode."""
    images, _ = batch(place)
    started = time.perf_counter()
    for _ in range(STEPS // 2):
        with place.autocast():
            network(images)
    return STEPS // 2 * BATCH / (time.perf_counter() - started)


def fitted(fashion: DataSet, method: Method, answers: nn.Module | Cached | None = None) -> float:
    """Images a second of train.fit's loop: augmentation, losses, metrics, progress bar, checks and all."""
    run = train.fit(student(), fashion, teacher=answers, method=method, epochs=1, test=False)
    return STEPS * BATCH / run.seconds


def built(fashion: DataSet, network: nn.Module) -> float:
    """Images a second of building a cache, in all its views."""
    started = time.perf_counter()
    Cached.build(network, fashion.train, augmentation=fashion.augmentation, views=VIEWS)
    return VIEWS * len(fashion.train) / (time.perf_counter() - started)


def run() -> list[Row]:
    """Logits from a cache and live, the cost of the cache, and each feature and relation method live."""
    place = devices.choose()
    fashion = data.load("fashion-mnist").take(STEPS * BATCH, seed=0)
    network = place.put(teacher())
    cache = Cached.build(network, fashion.train, augmentation=fashion.augmentation, progress=False)
    loops = {"hard": partial(fitted, fashion, HardLabels()), "cached": partial(fitted, fashion, Logit(), cache)}
    live = {
        "asked": partial(asked, network, place),
        "live": partial(fitted, fashion, Logit(), network),
        "built": partial(built, fashion, network),
    }
    rows = _logit_rows(
        medians({"plain": plain_step(place), **loops, **live}, rounds=5), beside(plain_step(place), loops, rounds=20)
    )
    contestants = {"plain": plain_step(place), "asked": partial(asked, network, place)}
    contestants |= {name: partial(fitted, fashion, HardLabels() + how, network) for name, how in METHODS.items()}
    seen = medians(contestants, rounds=3)
    limit = 1 / (1 / seen["plain"] + 1 / seen["asked"])
    for name in METHODS:
        rows.append(at_least(f"{name}, live", seen[name] / limit, 0.85, f"{seen[name]:,.0f} of {limit:,.0f} images/s"))
    return rows


def _logit_rows(seen: dict[str, float], ratios: dict[str, float]) -> list[Row]:
    limit = 1 / (1 / seen["plain"] + 1 / seen["asked"])
    words = {"hard": "hard labels", "cached": "cached logits"}
    return [
        *(at_least(words[name], ratios[name], 0.95, f"{seen[name]:,.0f} images/s, 20 pairs") for name in words),
        at_least("logits, live", seen["live"] / limit, 0.95, f"{seen['live']:,.0f} of {limit:,.0f} images/s"),
        at_most(
            "cache against forward passes",
            seen["asked"] / seen["built"],
            1.05,
            f"{seen['built']:,.0f} against {seen['asked']:,.0f} images/s",
        ),
    ]
