"""What the study found, as a picture for a page without a kernel.

python -m kdlib.classroom.plots.study_picture OUT.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from kdlib import files, study
from kdlib.classroom import plots

DPI = 140


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the gains of all methods over hard labels from the committed results; print what the picture shows."""
    parser = argparse.ArgumentParser(description="Draw the gains over hard labels from the results of a study.")
    parser.add_argument("out", type=Path, help="the PNG file to write")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--teacher", default="resnet20-fashion")
    parser.add_argument("--images", type=int, default=10_000, help="training images (default: 10000)")
    given = parser.parse_args(arguments)
    results = study.results("methods", student=given.student, teacher=given.teacher, images=given.images)
    with plots.style(), files.replacing(given.out) as path:
        plots.forest(results).savefig(path, format="png", dpi=DPI, metadata={"Software": None})
    print(f"{given.out}: {plots.forest_alt(results)}")


if __name__ == "__main__":
    main()
