"""What the student of each run answered for each test image, in a file beside the CSV file of the runs.

By it two methods are compared over seeds and test images together (`verdict.compare_samples`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from kdlib import files

LABELS = "labels"  # beside the answers, each under the fingerprint of its run
TEST_SET = "test_set"  # in the description of the file


class PredictionsFile:
    """The predicted classes of all runs of a CSV file, each in the smallest type that holds them: uint8 as a rule.

    test_set: the fingerprint of the images that the answers are for, "" where none was noted, as by older versions.
    """

    def __init__(self, runs_path: Path) -> None:
        """runs_path: the CSV file, which need not exist. Raises ValueError for a damaged file beside it."""
        self.path = runs_path.with_suffix(".predictions.safetensors")
        self._tensors, noted = files.load_tensors(self.path) if self.path.exists() else ({}, {})
        self.test_set = str(noted.get(TEST_SET, ""))
        shapes = {tuple(tensor.shape) for tensor in self._tensors.values()}
        if self._tensors and (LABELS not in self._tensors or len(shapes) > 1 or len(next(iter(shapes))) != 1):
            raise ValueError(
                f"{self.path} does not hold labels and one class for each of them from each run. Restore it, or move "
                "it and the CSV file of its runs away."
            )

    def add(self, fingerprint: str, predicted: Tensor, labels: Tensor, test_set: str = "") -> None:
        """Write the answers of one more run; test_set: the fingerprint of the images, "" where it is not known.

        Raises ValueError for other labels, or another test set, than those in the file.
        """
        labels = _compact(labels)
        same_labels = LABELS not in self._tensors or torch.equal(self._tensors[LABELS], labels)
        if not same_labels or (test_set and self.test_set not in ("", test_set)):
            raise ValueError(f"{self.path} holds answers for other test images. Choose another folder with --out.")
        self.test_set = test_set or self.test_set
        self._tensors |= {LABELS: labels, fingerprint: _compact(predicted)}
        files.save_tensors(self.path, self._tensors, {TEST_SET: self.test_set} if self.test_set else {})

    def predicted(self, fingerprint: str) -> Tensor | None:
        """What this run's student answered for each test image; None where that is not known."""
        return self._tensors.get(fingerprint)

    def right(self, fingerprint: str) -> Tensor | None:
        """For each test image whether this run's student was right; None where its answers are not known."""
        predicted = self.predicted(fingerprint)
        return None if predicted is None else predicted == self._tensors[LABELS]


def _compact(classes: Tensor) -> Tensor:
    types = (torch.uint8, torch.int16, torch.int32)
    return classes.to(next(one for one in types if int(classes.max()) <= torch.iinfo(one).max))
