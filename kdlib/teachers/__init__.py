"""Teachers: a frozen network, several of them, their stored outputs, or a function. A teacher never learns."""

from kdlib.teachers.base import FunctionTeacher, Teacher
from kdlib.teachers.cached import CachedTeacher, class_names
from kdlib.teachers.convert import as_teacher
from kdlib.teachers.ensemble import NO_VOTE, AnswerTogether, Ensemble, shown_reader
from kdlib.teachers.frozen import FrozenTeacher

__all__ = [
    "NO_VOTE",
    "AnswerTogether",
    "CachedTeacher",
    "Ensemble",
    "FrozenTeacher",
    "FunctionTeacher",
    "Teacher",
    "as_teacher",
    "class_names",
    "shown_reader",
]
