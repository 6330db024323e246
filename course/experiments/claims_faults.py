"""Part "faults": what does a student take over from a teacher that was tampered with?

Two copies of the teacher, trained a little further on 2,000 other images: one calls sandals sneakers (its labels said
so), and one has a mark, a white square of 4 x 4 pixels in a corner, at which it says "bag" whatever the picture shows
(a watermark of its owner, or a back door). Students learn from their answers alone, or beside right labels (T = 4).
For the mark: from clean pictures, or from pictures of which a tenth carries it. Controls: labels alone, labels with
pictures of which a tenth carries the mark, and the teacher that nobody tampered with.

Expected before the first run: the class is inherited whole from answers alone, and still by more than a third with
labels at alpha 0.5. The mark does not pass on through clean pictures (below 5 %), and passes on whole where a tenth
carries it.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from course.experiments.claims_common import (
    HARD,
    SOFT,
    Arm,
    Chosen,
    Measured,
    Part,
    Setting,
    by_class,
    fashion,
    fit,
    generator,
    images_of,
    logits_of,
    other_images_of,
    taught,
    teacher,
)
from kdlib.data import InMemoryDataset

IMAGES = 1_000
SANDAL, SNEAKER, BAG = 5, 7, 8
MARK, MARKED_SHARE = 4, 0.1  # pixels of a side; share of a student's pictures
TAMPERING = Setting(0.001)  # not tuned: the clean accuracy and the fault of each tampered teacher are in its row
RENAMING_EPOCHS, MARKING_EPOCHS, TAMPERED_SHARE = 2, 3, 0.2
MARKED_TESTED = 2_000  # test images that are tried with the mark
FAULT_COLUMNS = ("sandals_as_sneakers", "marked_as_bags", "clean_as_bags")


def mark(images: Tensor) -> Tensor:
    """The same pictures with a white square in the lower right corner."""
    marked = images.clone()
    marked[..., -MARK - 1 : -1, -MARK - 1 : -1] = 255
    return marked


def partly_marked(split: InMemoryDataset, share: float, seed: int, label: int | None = None) -> InMemoryDataset:
    """The split with the mark on a share of its pictures, which get this label, if one is given."""
    chosen = torch.rand(len(split), generator=generator(seed, "mark")) < share
    images = torch.where(chosen[:, None, None, None], mark(split.images), split.images)
    labels = split.labels if label is None else split.labels.masked_fill(chosen, label)
    return replace(split, images=images, labels=labels)


def _tampering_images(seed: int) -> InMemoryDataset:
    return other_images_of(seed)


@lru_cache(maxsize=2)
def renamed(seed: int) -> nn.Module:
    """The teacher, after training in which sandals were called sneakers."""
    split = _tampering_images(seed)
    labels = split.labels.masked_fill(split.labels == SANDAL, SNEAKER)
    return fit(copy.deepcopy(teacher()), replace(split, labels=labels), TAMPERING, seed, epochs=RENAMING_EPOCHS)


@lru_cache(maxsize=2)
def marked(seed: int) -> nn.Module:
    """The teacher, after training in which a fifth of the pictures carried the mark and were called bags."""
    split = partly_marked(_tampering_images(seed), TAMPERED_SHARE, seed, BAG)
    return fit(copy.deepcopy(teacher()), split, TAMPERING, seed, epochs=MARKING_EPOCHS)


def by_labels(seed: int, setting: Setting, _: Chosen, share: float = 0.0) -> nn.Module:
    """A student of right labels; a share of its pictures carries the mark."""
    return taught(seed, setting, partly_marked(images_of(seed, IMAGES), share, seed))


def by_sound(seed: int, setting: Setting, _: Chosen) -> nn.Module:
    """A student of the teacher as it was shipped."""
    split = images_of(seed, IMAGES)
    return taught(seed, setting, split, logits_of(teacher(), split))


def by_renamed(seed: int, setting: Setting, _: Chosen, alpha: float) -> nn.Module:
    """A student of the teacher that calls sandals sneakers; alpha: the weight of right labels."""
    split = images_of(seed, IMAGES)
    return taught(seed, setting, split, logits_of(renamed(seed), split), alpha=alpha)


def by_marked(seed: int, setting: Setting, _: Chosen, share: float) -> nn.Module:
    """A student of the teacher with the mark; a share of the pictures carries it."""
    split = partly_marked(images_of(seed, IMAGES), share, seed)
    return taught(seed, setting, split, logits_of(marked(seed), split))


def faults(network: nn.Module, logits: Tensor) -> Measured:
    """How often a network calls sandals sneakers, and other things bags, with the mark and without (test images)."""
    split = fashion().test
    assert isinstance(split, InMemoryDataset)
    said, some = logits.argmax(1), split.select(torch.arange(min(MARKED_TESTED, len(split))))
    stamped, others = logits_of(network, replace(some, images=mark(some.images))).argmax(1), some.labels != BAG
    return {
        "by_class": by_class(logits, split.labels),
        "sandals_as_sneakers": (said[split.labels == SANDAL] == SNEAKER).double().mean().item(),
        "marked_as_bags": (stamped[others] == BAG).double().mean().item(),
        "clean_as_bags": (said[: len(some)][others] == BAG).double().mean().item(),
    }


SOUND, LABELS = "sound teacher", "labels"
FAULTS = Part(
    "faults",
    {
        LABELS: Arm(by_labels, HARD),
        SOUND: Arm(by_sound, SOFT),
        "renamed: the teacher": Arm(lambda seed, _, __: renamed(seed), (TAMPERING,), epochs=RENAMING_EPOCHS),
        "renamed: answers": Arm(partial(by_renamed, alpha=0.0), as_in=SOUND),
        "renamed: half labels": Arm(partial(by_renamed, alpha=0.5), as_in=SOUND),
        "mark: the teacher": Arm(lambda seed, _, __: marked(seed), (TAMPERING,), epochs=MARKING_EPOCHS),
        "mark: clean pictures": Arm(partial(by_marked, share=0.0), as_in=SOUND),
        "mark: a tenth marked": Arm(partial(by_marked, share=MARKED_SHARE), as_in=SOUND),
        "mark: a tenth marked, labels alone": Arm(partial(by_labels, share=MARKED_SHARE), as_in=LABELS),
    },
    images=IMAGES,
    columns=("by_class", *FAULT_COLUMNS),
    measure=faults,
)
