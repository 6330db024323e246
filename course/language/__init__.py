"""A language model that is small enough for a laptop: surnames, letter by letter, and what teacher and student say.

surnames    the names, in three splits, and batches of them
networks    the networks, names drawn from them, and the shipped teacher
measure     how far two of them are from each other, in nats a name and at each letter

    from course import language

    names = language.load_surnames()
    teacher = language.load_teacher()
    language.spell(language.draw(teacher, 5, seed=0))
"""

from course.language.measure import by_position, divergence, logits_of, nats, token_divergence
from course.language.networks import NameModel, build, draw, load_teacher
from course.language.surnames import HIDDEN, Surnames, batch_of, load_surnames, random_batches, spell

__all__ = [
    "HIDDEN",
    "NameModel",
    "Surnames",
    "batch_of",
    "build",
    "by_position",
    "divergence",
    "draw",
    "load_surnames",
    "load_teacher",
    "logits_of",
    "nats",
    "random_batches",
    "spell",
    "token_divergence",
]
