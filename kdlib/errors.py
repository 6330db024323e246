"""Error messages that name what was wrong, what was expected and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


def unknown_name(kind: str, name: object, options: Iterable[str]) -> ValueError:
    """The error for a name that is not among `options`; near matches come first."""
    options = list(options)
    near = get_close_matches(str(name), options, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    shown = ", ".join(options[:40]) + (f", ... ({len(options)} in all)" if len(options) > 40 else "")
    return ValueError(f"There is no {kind} named {name!r}. {hint}Known: {shown}.")


@contextmanager
def explain_shape_errors(role: str, inputs: Any) -> Iterator[None]:
    """Say what torch's complaint about a shape means here; role: the student, say, that was given these inputs."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        # These are no matter of shape: they say themselves what is wrong.
        if any(text in str(error) for text in ("memory", "CUDA error", "not implemented")):
            raise
        other_kind = str(getattr(inputs, "dtype", "torch.float32")) != "torch.float32"
        if other_kind and re.search(r"\bsame dtype\b|\btype .*\bthe same\b", str(error)):
            raise ValueError(
                f"The {role} cannot take {_described(inputs)} ({error}). Give it numbers of its own kind, as a rule by "
                "images.float(), or for bytes by v2.ToDtype(torch.float32, scale=True)."
            ) from error
        if getattr(inputs, "ndim", 0) == 4 and isinstance(error, RuntimeError):
            channels, height, width = inputs.shape[1:]
            raise ValueError(
                f"The {role} cannot take images of {channels} x {height} x {width} ({error}). Build it with "
                f"in_channels={channels} and a stem for this size."
            ) from error
        raise ValueError(
            f"The {role} cannot take {_described(inputs)} ({error}). Say what it is called with: Adapter(inputs=..., "
            "teacher_inputs=...)."
        ) from error


def _described(inputs: Any) -> str:
    """What a network was called with, in a few words."""
    if hasattr(inputs, "shape"):
        return f"a tensor of {tuple(inputs.shape)}, {inputs.dtype}"
    if isinstance(inputs, Mapping):
        return f"the fields {', '.join(map(str, inputs))}"
    return f"{len(inputs)} arguments" if isinstance(inputs, tuple | list) else f"a {type(inputs).__name__}"
