"""Language on a laptop: a model of surnames, letter by letter, and a tiny classifier of sentences.

surnames    the names, in three splits, and batches of them
networks    the networks, names drawn from them, and the shipped teacher
measure     how far two of them are from each other, in nats a name and at each letter
definitions sentences of ten kinds, in three splits, and what a pretrained encoder says of them
classifier  a student that reads a bag of pieces of words, and the head of its teacher

    from course import language

    names = language.load_surnames()
    teacher = language.load_teacher()
    language.spell(language.draw(teacher, 5, seed=0))
"""

from course.language.classifier import TinyClassifier, bags, build_classifier, fit_head, pieces
from course.language.definitions import KINDS, Definitions, Part, load_definitions
from course.language.measure import by_position, divergence, logits_of, nats, token_divergence
from course.language.networks import NameModel, build, draw, load_teacher
from course.language.surnames import HIDDEN, Surnames, batch_of, load_surnames, random_batches, spell

__all__ = [
    "HIDDEN",
    "KINDS",
    "Definitions",
    "NameModel",
    "Part",
    "Surnames",
    "TinyClassifier",
    "bags",
    "batch_of",
    "build",
    "build_classifier",
    "by_position",
    "divergence",
    "draw",
    "fit_head",
    "load_definitions",
    "load_surnames",
    "load_teacher",
    "logits_of",
    "nats",
    "pieces",
    "random_batches",
    "spell",
    "token_divergence",
]
