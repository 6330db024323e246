"""The playground as a picture for a page without a kernel.

python -m kdlib.classroom.explorers.playground_picture OUT.png
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdlib import files
from kdlib.classroom import plots

if TYPE_CHECKING:
    from kdlib.classroom.explorers.playground import Playground

DPI = 180  # twice as fine as in a notebook


def fine(playground: Playground) -> bytes:
    """What a playground shows, drawn anew with more pixels."""
    buffer = io.BytesIO()
    with plots.style():
        playground.figure.savefig(buffer, format="png", dpi=DPI)
    return plots.few_colours(buffer.getvalue())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in the default setting and write the picture; print what it shows."""
    from kdlib.classroom.explorers.playground import Playground

    parser = argparse.ArgumentParser(description="Draw the distillation playground after some steps.")
    parser.add_argument("out", type=Path, help="the PNG file to write")
    parser.add_argument("--steps", type=int, default=600, help="steps of the students (default: 600)")
    given = parser.parse_args(arguments)
    playground = Playground()
    playground.step(given.steps)
    with files.replacing(given.out) as path:
        path.write_bytes(fine(playground))
    print(f"{given.out}: {playground.alt}", playground.describe(), playground.table(), sep="\n")


if __name__ == "__main__":
    main()
