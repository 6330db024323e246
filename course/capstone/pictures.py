"""A folder of pictures to practise with: some of Fashion-MNIST, as files in folders of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COUNTS = {"train": 3_000, "val": 1_000, "test": 2_000}


def write(folder: Path, scale: int = 1) -> dict[str, int]:
    """Write the first pictures of each class as PNG files, and return how many for each part.

    scale: divides the numbers of pictures, down to one of each class. Pictures of one part stay in it: those for test
    are test pictures of Fashion-MNIST. Raises ValueError for a folder that holds something, or a scale below 1.
    """
    from kdlib import data
    from kdlib.errors import check_whole

    check_whole(scale=scale)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already. Name a new folder.")
    fashion = data.load("fashion-mnist")
    splits = {"train": fashion.train, "val": fashion.validation, "test": fashion.test}
    names = [name.lower().replace("/", "-").replace(" ", "-") for name in fashion.classes]
    return {part: _write_part(splits[part], folder / part, names, count // scale) for part, count in COUNTS.items()}


def _write_part(split: Any, folder: Path, names: list[str], count: int) -> int:
    from PIL import Image

    each = max(1, count // len(names))
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        chosen = (split.labels == label).nonzero()[:each, 0].tolist()
        for number, position in enumerate(chosen):
            Image.fromarray(split.images[position, 0].numpy()).save(folder / name / f"{number:04}.png")
    return each * len(names)
