"""Images for pages without a kernel, such as the README.

python -m course.readme_images playground images/playground.png
python -m course.readme_images study images/study.png
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from course import plots
from kdlib import files
from kdlib.errors import escape_unprintable

if TYPE_CHECKING:
    from course.explorers import Playground

PLAYGROUND_DPI, STUDY_DPI = 180, 140


def render_playground(playground: Playground) -> bytes:
    """The present figure of a playground as a PNG file, at twice the resolution of a notebook."""
    buffer = io.BytesIO()
    for legend in playground.figure.legends:  # the explorer draws it by itself, and a figure saves nothing of that kind
        legend.set_animated(False)
    with plots.style():
        playground.figure.savefig(buffer, format="png", dpi=PLAYGROUND_DPI)
    return plots.reduce_colours(buffer.getvalue())


def draw_playground(out: Path, steps: int) -> str:
    """Train the playground with its default settings and write its figure; returns what the figure shows."""
    from course.explorers import Playground

    playground = Playground()
    playground.step(steps)
    with files.atomic_write(out) as path:
        path.write_bytes(render_playground(playground))
    return "\n".join((playground.alt, playground.describe(), playground.table()))


def draw_study(out: Path, student: str, teacher: str, images: int) -> str:
    """Write the gains of all methods from the committed results; returns what the figure shows."""
    from kdlib import study

    results = study.results("methods", student=student, teacher=teacher, images=images)
    with plots.style(), files.atomic_write(out) as path:
        plots.forest(results).savefig(path, format="png", dpi=STUDY_DPI, metadata={"Software": None})
    return plots.forest_alt(results)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: write an image and print what it shows."""
    escape_unprintable()
    parser = argparse.ArgumentParser("python -m course.readme_images", description="Draw an image for the README.")
    commands = parser.add_subparsers(dest="command", required=True)
    playground = commands.add_parser("playground", help="the distillation playground after some steps")
    playground.add_argument("out", type=Path, help="the PNG file to write")
    playground.add_argument("--steps", type=int, default=600, help="steps of the students (default: 600)")
    study = commands.add_parser("study", help="the gains over hard labels of a study")
    study.add_argument("out", type=Path, help="the PNG file to write")
    study.add_argument("--student", default="resnet8")
    study.add_argument("--teacher", default="resnet20-fashion")
    study.add_argument("--images", type=int, default=10_000, help="training images (default: 10000)")
    options = parser.parse_args(arguments)
    if options.command == "playground":
        text = draw_playground(options.out, options.steps)
    else:
        text = draw_study(options.out, options.student, options.teacher, options.images)
    print(f"{options.out}: {text}")


if __name__ == "__main__":
    main()
