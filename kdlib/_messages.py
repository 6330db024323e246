"""Error messages that name what was wrong, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, name: object, options: Iterable[str]) -> ValueError:
    """The error for a name that is not among `options`; near matches come first."""
    options = list(options)
    near = get_close_matches(str(name), options, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    shown = ", ".join(options[:40]) + (f", ... ({len(options)} in all)" if len(options) > 40 else "")
    return ValueError(f"There is no {kind} named {name!r}. {hint}Known: {shown}.")
