"""Students as the command line names them: shipped models, files, or folders with a file for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from kdlib import files, models
from kdlib.compare.networks import LONGEST_NAME


def read(arguments: Sequence[str]) -> dict[str, dict[str, nn.Module]]:
    """Load students: each is a shipped name, a .safetensors file or a folder of such files, or NAME=one of these.

    Returns networks by name and file name, as `compare` takes them. A file that is not named otherwise is called as it
    is, with its folder before it where two would have one name.
    Raises what `models.load` raises, and ValueError for fewer than two, two of one name, or a folder without such
    files.
    """
    if len(arguments) < 2:
        raise ValueError(
            f"{len(arguments)} student cannot be compared: give two or more, the baseline first, each a shipped name, "
            "a .safetensors file, a folder of them, or NAME=one of these."
        )
    split = [_split(argument) for argument in arguments]
    stems = [name or Path(source).absolute().name.removesuffix(".safetensors") for name, source in split]
    names = []
    for (name, source), stem in zip(split, stems, strict=True):
        again = not name and stems.count(stem) > 1
        names.append(name or (f"{Path(source).absolute().parent.name}/{stem}" if again else stem)[-LONGEST_NAME:])
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two students are called {name!r}. Give each a name of its own: NAME=PATH.")
    return {name: _load(source) for name, (_, source) in zip(names, split, strict=True)}


def _split(argument: str) -> tuple[str | None, str]:
    """NAME and PATH; a path that is there may have the sign = in it."""
    name, equals, source = argument.partition("=")
    if not equals or Path(argument).exists():
        name, source = "", argument
    if not source or (equals and not name and source != argument):
        raise ValueError(f"A student is named as NAME=PATH, as distilled=runs/a/student.safetensors; got {argument!r}.")
    return name or None, source


def _load(source: str) -> dict[str, nn.Module]:
    folder = Path(source).expanduser()  # no shell does it behind NAME=
    if not folder.is_dir():
        return {folder.stem: models.load(folder if folder.is_file() else source)}
    paths = [path for path in files.visible(folder, "*.safetensors") if path.is_file()]
    if not paths:
        raise ValueError(f"{source} holds no .safetensors file: a folder is one student, with a file for each seed.")
    return {path.stem: models.load(path) for path in paths}
