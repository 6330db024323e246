"""Part "own": five teachers with pictures of their own, one of them bad, and a student that has pictures and no labels.

Five networks (784-256-10) each learn 1,000 pictures; the student (784-64-10) learns their answers to all 6,000. The
fifth has wrong labels: in the ways of "random", 80 % of its labels are drawn at random; in those of "renumbered" it
counts the classes from another end (every label is the next class), so that it is sure and wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from course.experiments.several_common import (
    Chosen,
    Given,
    Outcome,
    Part,
    Setting,
    Way,
    fashion,
    fit,
    hard_settings,
    images_of,
    mlp,
    soft_settings,
    teacher_logits,
    train_split_of,
    with_train,
)
from kdlib.data import IndexedDataset, InMemoryDataset
from kdlib.ensembles import confidence_weights, weighted_mean
from kdlib.teachers import Ensemble

IMAGES, OWN, MEMBERS, EPOCHS, STUDENT_EPOCHS = 6_000, 1_000, 5, 20, 12
STUDENT_BATCH = 256
TEACHER_WIDTH, STUDENT_WIDTH = 256, 64
RANDOM, RENUMBERED = "random", "renumbered"
MEMBER, POOLED = "one member", "one teacher of all"


def own_images(seed: int, damage: str) -> list[InMemoryDataset]:
    """What each of the five learns: 1,000 images of its own; the labels of the last are damaged."""
    whole = train_split_of(seed, IMAGES)
    chance = torch.Generator().manual_seed(seed)
    order = torch.randperm(IMAGES, generator=chance)
    parts = [whole.select(order[OWN * k : OWN * (k + 1)].sort().values) for k in range(MEMBERS)]
    labels = parts[-1].labels.clone()
    if damage == RANDOM:
        some = torch.randperm(OWN, generator=chance)[: int(0.8 * OWN)]
        labels[some] = torch.randint(0, 10, (len(some),), generator=chance)
    else:
        labels = (labels + 1) % 10
    return [*parts[:-1], replace(parts[-1], labels=labels)]


@lru_cache(maxsize=2)
def members(seed: int, setting: Setting, damage: str) -> tuple[nn.Module, ...]:
    """The five teachers."""
    base = images_of(seed, IMAGES)
    return tuple(
        fit(mlp(TEACHER_WIDTH, 100 * seed + k), with_train(base, part), setting, EPOCHS, 100 * seed + k)
        for k, part in enumerate(own_images(seed, damage))
    )


class _Answers:
    """Logits K x N x C of several networks for a split, and what ways of combining them need to know."""

    def __init__(self, networks: tuple[nn.Module, ...]) -> None:
        self.networks = networks
        validation = fashion().validation
        # In float32, as they weighted the teachers of the rows that are stored.
        right = [teacher_logits(one, validation).argmax(dim=1) == validation.labels for one in networks]
        self.scores = [one.float().mean().item() for one in right]

    def __call__(self, split: IndexedDataset) -> Tensor:
        return torch.stack([teacher_logits(one, split) for one in self.networks])


@lru_cache(maxsize=2)
def answers(seed: int, setting: Setting, damage: str) -> _Answers:
    """The five teachers' answers."""
    return _Answers(members(seed, setting, damage))


Combine = Callable[[Tensor, Tensor, list[float], float], Tensor]  # logits, labels, validation scores, T


def _ensemble(logits: Tensor, _: Tensor, scores: list[float], t: float, mean: str, by_score: bool = False) -> Tensor:
    weights = [max(score - 0.1, 0.0) for score in scores] if by_score else None  # 0.1: chance
    return Ensemble([Given(one) for one in logits], weights, mean=mean)(logits)


def _best(logits: Tensor, _: Tensor, scores: list[float], t: float) -> Tensor:
    return logits[scores.index(max(scores))]


def _four(logits: Tensor, labels: Tensor, scores: list[float], t: float) -> Tensor:
    return _ensemble(logits[:-1], labels, scores[:-1], t, "arithmetic")


def _confidence(logits: Tensor, labels: Tensor, scores: list[float], t: float, by_labels: bool) -> Tensor:
    return weighted_mean(logits, confidence_weights(logits, labels if by_labels else None), t)


COMBINE: dict[str, Combine] = {
    "best single": _best,
    "vote": partial(_ensemble, mean="vote"),
    "mean of logits": partial(_ensemble, mean="geometric"),
    "mean of probabilities": partial(_ensemble, mean="arithmetic"),
    "weighted by validation": partial(_ensemble, mean="arithmetic", by_score=True),
    "confidence by entropy": partial(_confidence, by_labels=False),
    "confidence by labels": partial(_confidence, by_labels=True),
    "mean of the four good": _four,
}


def _student(seed: int, setting: Setting, logits: Tensor) -> nn.Module:
    return fit(
        mlp(STUDENT_WIDTH, seed),
        images_of(seed, IMAGES),
        setting,
        STUDENT_EPOCHS,
        seed,
        logits,
        batch_size=STUDENT_BATCH,
    )


def taught(seed: int, setting: Setting, chosen: Chosen, combine: Combine, damage: str) -> Outcome:
    """A student of one combination."""
    known, t = answers(seed, chosen[MEMBER], damage), setting.temperature or 1.0

    def combined(split: IndexedDataset) -> Tensor:
        return combine(known(split), split.labels, known.scores, t)

    return Outcome([_student(seed, setting, combined(train_split_of(seed, IMAGES)))], combined)


def taught_by_majority(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """A student of the class with the most votes, as a hard label."""
    known, split = answers(seed, chosen[MEMBER], RANDOM), train_split_of(seed, IMAGES)
    vote = COMBINE["vote"]
    labels = vote(known(split), split.labels, known.scores, 1.0).argmax(dim=1)
    student = fit(
        mlp(STUDENT_WIDTH, seed),
        with_train(images_of(seed, IMAGES), replace(split, labels=labels)),
        setting,
        STUDENT_EPOCHS,
        seed,
        batch_size=STUDENT_BATCH,
    )
    return Outcome([student], lambda split: vote(known(split), split.labels, known.scores, 1.0))


def taught_by_each(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """Five students, each of one teacher."""
    logits = answers(seed, chosen[MEMBER], RANDOM)(train_split_of(seed, IMAGES))
    return Outcome([_student(seed, setting, one) for one in logits])


def one_member(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """A good member itself."""
    part = own_images(seed, RANDOM)[0]
    images = with_train(images_of(seed, IMAGES), part)
    return Outcome([fit(mlp(TEACHER_WIDTH, 100 * seed), images, setting, EPOCHS, 100 * seed)])


@lru_cache(maxsize=2)
def pooled(seed: int, setting: Setting) -> nn.Module:
    """One network for all 5,000 labelled images, as many steps as the five together."""
    parts = own_images(seed, RANDOM)
    joined: dict[str, Any] = {
        name: torch.cat([getattr(one, name) for one in parts]) for name in ("images", "labels", "indices")
    }
    whole = replace(parts[0], **joined)
    return fit(mlp(TEACHER_WIDTH, 100 * seed), with_train(images_of(seed, IMAGES), whole), setting, EPOCHS, 100 * seed)


def one_of_all(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """That network itself."""
    return Outcome([pooled(seed, setting)])


def taught_by_pooled(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """A student of that network."""
    network = pooled(seed, chosen[POOLED])
    logits = partial(teacher_logits, network)
    return Outcome([_student(seed, setting, logits(train_split_of(seed, IMAGES)))], logits)


def true_labels(seed: int, setting: Setting, chosen: Chosen) -> Outcome:
    """The student with the true labels of all its images."""
    images = images_of(seed, IMAGES)
    return Outcome([fit(mlp(STUDENT_WIDTH, seed), images, setting, STUDENT_EPOCHS, seed, batch_size=STUDENT_BATCH)])


SOFT = soft_settings(0.05, 0.1, 0.2, 0.4, temperatures=(1.0, 3.0))
HARD = hard_settings(0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)
OF_TEACHERS = hard_settings(0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2)
PART = Part(
    "own",
    IMAGES,
    EPOCHS,
    STUDENT_EPOCHS,
    {
        MEMBER: Way(one_member, OF_TEACHERS, trials_only=True),
        POOLED: Way(one_of_all, OF_TEACHERS, trials_only=True),
        **{name: Way(partial(taught, combine=one, damage=RANDOM), SOFT) for name, one in COMBINE.items()},
        "average single": Way(taught_by_each, as_in="best single"),
        "majority": Way(taught_by_majority, HARD),
        "one teacher of all images": Way(taught_by_pooled, SOFT),
        "true labels": Way(true_labels, HARD),
        **{
            f"{name}, renumbered": Way(partial(taught, combine=COMBINE[name], damage=RENUMBERED), as_in=name)
            for name in COMBINE
            if name != "mean of the four good"
        },
    },
)
