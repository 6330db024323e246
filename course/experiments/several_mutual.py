"""Part "mutual": networks that teach each other, or their own next generation, against the same compute alone.

One loop trains all of them: a network alone, with smoothed labels, two that are each other's teacher at every step
(deep mutual learning, Zhang and others 2018), and generations of one network, each taught by the one before (born-again
networks, Furlanello and others 2018). T is 1, and the soft loss has the weight of the hard one. A unit of compute is
one network for EPOCHS passes: the two together and the first generation cost two, the second generation three.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch.nn.functional as F
from torch import Tensor, nn

from course.experiments.several_common import (
    Chosen,
    Outcome,
    Part,
    Setting,
    Way,
    hard_settings,
    images_of,
    logits_of,
    soft_settings,
    thin_resnet,
)
from kdlib import devices, losses
from kdlib.data.datasets import epoch_order
from kdlib.train import Recipe

IMAGES, EPOCHS, BATCH, WIDTH = 2_000, 8, 64, 8
PARENT = "alone"


def train_together(
    networks: Sequence[nn.Module],
    seed: int,
    setting: Setting,
    epochs: int,
    logits: Tensor | None = None,
    smoothing: float = 0.0,
) -> list[nn.Module]:
    """Train networks side by side on the same batches, one step of each at a time.

    Each has the cross-entropy and, with setting.temperature, the mean of the KD losses of its teachers: the others as
    they are at this step, and the stored logits, if any. Raises FloatingPointError where a loss is not finite.
    """
    recipe, split, config = (
        Recipe(learning_rate=setting.learning_rate, batch_size=BATCH),
        images_of(seed, IMAGES).train,
        devices.resolve(),
    )
    for one in networks:
        config.move(one)
        one.train()
    logits = None if logits is None else logits.to(config.device)
    optimizers = [recipe.make_optimizer(one.parameters()) for one in networks]
    steps = epochs * -(-len(split) // recipe.batch_size)
    step = 0
    for epoch in range(epochs):
        order = epoch_order(split, seed, epoch)
        rows = order.split(recipe.batch_size)
        batches = split.iter_batches(recipe.batch_size, sampler=order, device=config.device)
        for batch, chosen in zip(batches, rows, strict=True):
            with config.autocast():
                answers = [one(batch.images) for one in networks]
            answers = [one.float() for one in answers]
            for number, (answer, optimizer) in enumerate(zip(answers, optimizers, strict=True)):
                loss = F.cross_entropy(answer, batch.labels, label_smoothing=smoothing)
                teachers = [one.detach() for other, one in enumerate(answers) if other != number]
                teachers += [] if logits is None else [logits[chosen]]
                if teachers and setting.temperature is not None:
                    soft = [losses.kd(answer, one, setting.temperature) for one in teachers]
                    loss = loss + sum(soft) / len(soft)
                if not loss.isfinite():
                    raise FloatingPointError(f"The loss of network {number} is {loss.item()} at step {step}.")
                loss.backward()
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate_at(step, steps)
                optimizer.step()
                optimizer.zero_grad()
            step += 1
    return [one.eval() for one in networks]


@lru_cache(maxsize=4)
def generation(seed: int, number: int, setting: Setting, first: Setting) -> nn.Module:
    """Generation 0 is trained alone, with `first`; each later one by the one before, with fresh weights."""
    network = thin_resnet(WIDTH, 100 * seed + number)
    if number == 0:
        return train_together([network], seed, first, EPOCHS)[0]
    logits = logits_of(generation(seed, number - 1, setting, first), images_of(seed, IMAGES).train)
    return train_together([network], seed, setting, EPOCHS, logits)[0]


def alone(seed: int, setting: Setting, chosen: Chosen, units: int = 1, smoothing: float = 0.0) -> Outcome:
    """One network by itself, for so many units."""
    network = thin_resnet(WIDTH, 100 * seed)
    return Outcome(train_together([network], seed, setting, units * EPOCHS, smoothing=smoothing))


def mutual(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """Two networks that teach each other; both count."""
    return Outcome(train_together([thin_resnet(WIDTH, 100 * seed + k) for k in range(2)], seed, setting, EPOCHS))


def born_again(seed: int, setting: Setting, chosen: Chosen, number: int) -> Outcome:
    """A later generation of the network that was trained alone."""
    return Outcome([generation(seed, number, setting, chosen[PARENT])])


def _units(units: int) -> Way:
    return Way(lambda seed, setting, chosen: alone(seed, setting, chosen, units), HARD)


def _born(number: int) -> Way:
    return Way(lambda seed, setting, chosen: born_again(seed, setting, chosen, number), SOFT)


RATES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
SOFT, HARD = soft_settings(*RATES, temperatures=(1.0,)), hard_settings(*RATES)
PART = Part(
    "mutual",
    IMAGES,
    EPOCHS,
    EPOCHS,
    {
        PARENT: _units(1),
        "label smoothing": Way(lambda seed, setting, chosen: alone(seed, setting, chosen, smoothing=0.1), HARD),
        "alone, twice as long": _units(2),
        "alone, three times as long": _units(3),
        "mutual learning": Way(mutual, SOFT),
        "born again": _born(1),
        "born again twice": _born(2),
    },
)
