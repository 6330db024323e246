"""torchvision's ImageFolder without what is hidden: the ._IMG.jpg of a Mac beside each picture, .ipynb_checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import has_file_allowed_extension, make_dataset


def is_hidden(path: str, root: str | Path) -> bool:
    """Whether the name of a file, or of a folder between it and the root, begins with a dot; path begins with root."""
    # By its text: to make a Path of each file took longer than to find it.
    return f"{os.sep}." in f"{os.sep}{path.removeprefix(os.fspath(root))}"


class VisibleImageFolder(ImageFolder):
    """The images in class folders, but for hidden files and folders. Raises FileNotFoundError as ImageFolder does."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
        if not classes:
            raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
        return classes, {name: index for index, name in enumerate(classes)}

    @staticmethod
    def make_dataset(
        directory: str | Path,
        class_to_idx: dict[str, int],
        extensions: tuple[str, ...] | None = None,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> list[tuple[str, int]]:
        def is_read(path: str) -> bool:
            known = is_valid_file(path) if is_valid_file else has_file_allowed_extension(path, extensions or ())
            return known and not is_hidden(path, directory)

        try:
            return make_dataset(directory, class_to_idx, None, is_read, allow_empty)
        except FileNotFoundError as error:  # torchvision names the endings only where it is given them
            endings = f"Supported extensions are: {', '.join(extensions)}" if extensions else ""
            raise FileNotFoundError(f"{error}{endings}") from None
