"""Whatever a user gives as a teacher, as a teacher."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdlib.adapters import Adapter
from kdlib.teachers.base import FunctionTeacher, Teacher
from kdlib.teachers.cached import CachedTeacher
from kdlib.teachers.frozen import FrozenTeacher


def as_teacher(teacher: Any, adapter: Adapter, *, needs_logits: bool = True) -> Teacher | None:
    """A network, a function or a teacher, as a teacher.

    needs_logits: whether its logits are read. Raises TypeError for anything else, and ValueError where the adapter says
    how to read the logits of a network and there is none.
    """
    if isinstance(teacher, nn.Module):
        return FrozenTeacher(teacher, needs_logits=needs_logits).with_adapter(adapter)
    if teacher is not None and needs_logits and adapter.teacher_logits is not None:
        _refuse_to_read(teacher, adapter)
    if isinstance(teacher, CachedTeacher) and not teacher.is_of_inputs(adapter):
        raise ValueError(
            "Adapter(teacher_inputs=...) says what the teacher is called with, and these outputs were stored for other "
            "inputs. Build the cache with it: CachedTeacher.build(..., adapter=...). Or leave teacher_inputs out, if "
            "the stored ones are meant."
        )
    if hasattr(type(teacher), "with_adapter"):
        return teacher.with_adapter(adapter)
    if teacher is None or _is_teacher(teacher):
        return teacher
    if callable(teacher) and not isinstance(teacher, type):
        return FunctionTeacher(teacher)
    raise TypeError(
        f"A teacher is a network (nn.Module), a kdlib.teachers.Teacher, or a function from a batch to logits; got "
        f"{teacher if isinstance(teacher, type) else type(teacher).__name__}."
    )


def _refuse_to_read(teacher: Any, adapter: Adapter) -> None:
    """Raise ValueError for a teacher that gives its logits itself, unless they were read by this adapter already."""
    if isinstance(teacher, CachedTeacher) and teacher.is_read_by(adapter):
        return
    if isinstance(teacher, FrozenTeacher) and not teacher.reads_logits_itself:
        return
    raise ValueError(
        "Adapter(teacher_logits=...) says how to read what a network returns, and this teacher gives its logits "
        "itself. Bring them to the student's classes and order where they come from, and leave teacher_logits out: "
        "CachedTeacher.from_logits(answers[:, order]), a function that returns answers[:, order], "
        "ConfidenceEnsemble(..., read_logits=...). Or build the cache with it: CachedTeacher.build(..., adapter=...)."
    )


def _is_teacher(teacher: Any) -> bool:
    # Not isinstance: of a protocol that reads every property, and a fingerprint takes seconds.
    return all(hasattr(type(teacher), name) for name in ("__call__", "activate", "check_compatible"))
