"""The report: its tables, what may and may not be concluded from them, and the files it is written to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdlib
from kdlib import files
from kdlib.compare import text
from kdlib.compare.networks import TEACHER
from kdlib.compare.tables import ALL
from kdlib.data.corruptions import DESTRUCTIONS
from kdlib.errors import check_flags, check_path
from kdlib.run_folder import claim
from kdlib.verdict import Verdict, few_seeds

if TYPE_CHECKING:
    import pandas as pd

FILES = ("report.md", "report.json", "report.png")
HEADLINES: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("accuracy", "accuracy", "accuracy", {}),
    ("fidelity", "agreement", "agreement with the teacher", {}),
    ("fidelity", "KL to the teacher", "KL to the teacher", {}),
    ("fidelity", "repeated mistakes", "repeated mistakes of the teacher", {}),
    ("calibration", "calibration error", "calibration error", {}),
    ("calibration", "calibration error, temperature-scaled", "calibration error after the temperature", {}),
    ("calibration", "NLL, temperature-scaled", "NLL after the temperature", {}),
    ("robustness", "accuracy", "accuracy under corruptions, the mean", {"corruption": ALL}),
    ("robustness", "accuracy lost", "accuracy lost to corruptions, the mean", {"corruption": ALL}),
    *(("outside", "AUROC", f"AUROC of test images against {kind}", {"pictures": kind}) for kind in DESTRUCTIONS),
)  # table, measure, how the verdict calls it, other columns


@dataclass(frozen=True, eq=False)
class Report:
    """What several networks do on one test set, the first of them being the baseline.

    images, all_images: test images that were used, and that there are. runs: of each network, their keys. parameters:
    of each network, None where they cannot be counted (integers inside a program). same: pairs of names that gave the
    same logits at every run. The tables are those of `kdlib.compare.tables`; without a teacher `fidelity` is empty,
    without corruptions `robustness` and `outside`.
    """

    data: str
    images: int
    all_images: int
    runs: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, int | None]
    confidence: float
    has_teacher: bool
    same: tuple[tuple[str, str], ...]
    accuracy: pd.DataFrame
    uncertainty: pd.DataFrame
    pairs: pd.DataFrame
    fidelity: pd.DataFrame
    calibration: pd.DataFrame
    classes: pd.DataFrame
    robustness: pd.DataFrame
    outside: pd.DataFrame
    each_run: pd.DataFrame

    @property
    def baseline(self) -> str:
        """The network that the others are compared with."""
        return next(iter(self.runs))

    @property
    def seeds(self) -> int:
        """Runs of each network."""
        return len(self.runs[self.baseline])

    @property
    def networks(self) -> tuple[str, ...]:
        """The students' names, the baseline first."""
        return tuple(self.runs)

    @property
    def notes(self) -> list[str]:
        """What the numbers are about, in sentences."""
        used = f"{self.images:,} of {self.all_images:,}" if self.images < self.all_images else f"all {self.images:,}"
        notes = [f"{self.data}: {used} test images. Baseline: {self.baseline}."]
        notes += [
            f"{one} and {other} say the same of every image: they are the same networks." for one, other in self.same
        ]
        if self.seeds == 1:
            notes.append(
                "Every entry is ONE network. Intervals and McNemar's test cover the choice of the test images: they "
                "compare these NETWORKS on images such as these, and say nothing of the methods that made them. "
                "Another seed gives another network; give several of each to compare methods."
            )
        else:
            notes.append(
                f"Every entry has {self.seeds} runs, paired with the baseline's. Intervals cover seeds and test images "
                "together where every image has a value of its own, and seeds alone for calibration error and AUROC. "
                "Teacher, training images and settings stay as they were."
            )
            notes += [note] if (note := few_seeds(self.seeds)) else []
        notes.append(
            f"The intervals of one family hold together with {100 * self.confidence:g}% (Bonferroni); its size is "
            "given with each table. BEATS and LOSES are read off the interval: all of it is on the better or the worse "
            "side."
        )
        notes.append(
            "Temperatures were fitted on the validation images; 'temperature-scaled' means that the logits were "
            "divided by them, which changes no answer. Calibration error: expected calibration error with 15 bins."
        )
        if self.has_teacher:
            notes.append(
                "Repeated mistakes: of the images that the teacher gets wrong, the share with the same wrong class. "
                "Fewer is called better; more is what one who copies the teacher has."
            )
        return notes

    @property
    def verdicts(self) -> list[str]:
        """The headline of each table in a sentence, for each network beside the baseline."""
        return [
            f"{called}: {row['network']} {self._sentence(row)}"
            for table, measure, called, keys in HEADLINES
            for row in self._headline(table, measure, keys)
        ]

    def _headline(self, table: str, measure: str, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows = getattr(self, table).to_dict("records")
        chosen = [row for row in rows if row["measure"] == measure and all(row[k] == v for k, v in keys.items())]
        return [row for row in chosen if row["network"] not in (self.baseline, TEACHER)]

    def _sentence(self, row: Mapping[str, Any]) -> str:
        gain = text.format_gain(row)
        if not row["verdict"]:
            return f"against {self.baseline} {gain}, without an interval"
        between = {Verdict.BEATS: "", Verdict.LOSES: "to ", Verdict.INCONCLUSIVE: "against "}[Verdict(row["verdict"])]
        return f"{row['verdict']} {between}{self.baseline}: {gain}"

    def __str__(self) -> str:
        return text.plain(self)

    def to_markdown(self) -> str:
        """All tables as Markdown."""
        return text.markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON knows; what is not a finite number is None."""
        return {
            "kdlib": kdlib.__version__,
            "data": self.data,
            "images": self.images,
            "all_images": self.all_images,
            "baseline": self.baseline,
            "runs": {name: list(runs) for name, runs in self.runs.items()},
            "parameters": dict(self.parameters),
            "teacher": self.has_teacher,
            "confidence": self.confidence,
            "notes": self.notes,
            "verdicts": self.verdicts,
            "tables": {
                name: [
                    {key: _plain(value) for key, value in row.items()} for row in getattr(self, name).to_dict("records")
                ]
                for name in text.TITLES
            },
        }

    def figure(self) -> Any:
        """The report as one matplotlib Figure."""
        from kdlib.compare.figure import draw

        return draw(self)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write report.md, report.json and report.png, each completely or not at all.

        Raises ValueError for a folder that holds an earlier report, unless `overwrite`; OSError for one that cannot be
        written.
        """
        check_path(folder=folder)
        check_flags(overwrite=overwrite)
        with claim_folder(folder, overwrite) as out:
            self.write(out)

    def write(self, folder: Path) -> None:
        """Write the files to a folder that the caller has claimed."""
        files.write_text(folder / "report.md", self.to_markdown())
        files.write_text(folder / "report.json", json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        with files.atomic_write(folder / "report.png") as temporary:
            self.figure().savefig(temporary, format="png", dpi=110)


def claim_folder(folder: str | Path, overwrite: bool) -> AbstractContextManager[Path]:
    """Hold a folder for one report; what an earlier one left there stays until it is replaced.

    Raises ValueError for a folder that holds an earlier report, unless `overwrite`; OSError if it cannot be written.
    """
    return claim(folder, () if overwrite else FILES, resume=None, overwrite=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
