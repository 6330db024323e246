"""What `kdlib.compare` says of logits against hard labels, the kept students of each: a row for each of its lines.

    python -m course.experiments.kept_report

Two parts, each written when it is complete: 3,000 test images as they are (fidelity, calibration), and 300 in 21
damaged and 3 destroyed versions beside the whole ones (robustness, pictures of nothing; temperatures are fitted on
1,000 validation images there, on all 5,000 before). Images are evenly spaced. A row says how many runs and images it is
about. Accuracy over all test images, whole or by class, needs no network: `kept_results` has the answers.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import nn

from course.experiments import kept_results
from course.experiments.kept_results import KeptResults
from kdlib import compare, devices, models
from kdlib.data import DataModule, data_dir, load
from kdlib.errors import exit_in_a_sentence
from kdlib.study.plans import Budget
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, SessionLog, library_versions, read_frame

if TYPE_CHECKING:
    import pandas as pd

TEACHER = "resnet20-fashion"
METHODS = ("hard", "kd")
PARTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {  # tables, and options of compare
    "whole": (("fidelity", "calibration"), {"images": 3_000, "corruptions": False}),
    "damaged": (("accuracy", "robustness", "outside"), {"images": 300}),
}
FEW_VALIDATION_IMAGES = 1_000
VALUES = ("value", "std", "gain", "low", "high")
COLUMNS = (
    *("data", "teacher", "part", "images", "runs", "table", "network", "measure"),
    *("class", "pictures", "corruption", "severity"),
    *VALUES,
    *("covers", "family", "better", "verdict", "device", "threads", "kdlib", "torch", "seconds"),
)


def students(kept: KeptResults, methods: Sequence[str] = METHODS) -> dict[str, dict[int, nn.Module]]:
    """The kept students by method and seed, those of hard labels first: what `compare.compare` takes."""
    seeds = [seed for seed in kept.rows["hard"] if all(seed in kept.rows[name] for name in methods)]
    return {name: {seed: kept.model(name, seed) for seed in seeds} for name in methods}


def path_in(folder: Path) -> Path:
    """The file of the rows."""
    return Budget().path("compare", folder)


def read(folder: Path | None = None) -> pd.DataFrame:
    """The rows as a table of numbers; FileNotFoundError, if there are none."""
    return read_frame(path_in(folder or data_dir() / "results"))


def report_rows(part: str, kept: KeptResults, fashion: DataModule) -> list[dict[str, Any]]:
    """All rows of a part: this runs every network."""
    tables, options = PARTS[part]
    networks, started = students(kept), time.perf_counter()
    if part == "damaged":  # temperatures play a small part there
        count = min(FEW_VALIDATION_IMAGES, len(fashion.validation))
        fashion = replace(fashion, validation=fashion.validation.select(torch.arange(count)))
    report = compare.compare(
        networks, fashion, teacher=models.load(TEACHER), precision="fp32", progress=False, **options
    )
    versions = {name: version for name, version in library_versions().items() if name in ("kdlib", "torch")}
    shared = {"data": fashion.name, "teacher": TEACHER, "part": part, "runs": len(networks["hard"])}
    shared |= {"device": str(devices.resolve(precision="fp32")), "threads": torch.get_num_threads(), **versions}
    shared |= {"seconds": round(time.perf_counter() - started, 1), "images": report.images}
    made = []
    for table in tables:
        for row in getattr(report, table).to_dict("records"):
            kept_values = {name: value for name, value in row.items() if value == value}  # NaN: there is none
            made.append({**shared, "table": table, **kept_values, "images": row.get("images", report.images)})
    return made


def run(
    folder: Path, kept: KeptResults, fashion: DataModule, command: str, log: Callable[[str], object] = print
) -> list[dict[str, str]]:
    """Compute the parts that are missing in the file, and return all its rows.

    Raises ValueError while another process writes to the file, OSError where it cannot be written.
    """
    with RunsFile(path_in(folder), COLUMNS, log).open() as file:
        for part in PARTS:
            if any(row["part"] == part for row in file.rows):
                continue
            session = SessionLog(file.path, command, len(file.rows))
            for row in report_rows(part, kept, fashion):
                file.append(row)
            session.write(len(file.rows))
            log(f"{part}: {sum(row['part'] == part for row in file.rows)} rows")
        rows = file.rows
    update_readme(folder)
    return rows


def kept_report(
    out: Annotated[Path | None, typer.Option(help="Folder of the rows; default: data/results.")] = None,
) -> None:
    """Compare the kept students on whole and on damaged test images."""
    command = shlex.join(["python", "-m", "course.experiments.kept_report", *sys.argv[1:]])
    say: Callable[[str], object] = lambda text: print(text, flush=True)  # noqa: E731
    run(out or data_dir() / "results", kept_results.load(), load("fashion-mnist"), command, log=say)


def main() -> None:
    """Run the command; what a user can cause ends in one sentence and exit code 2, not in a traceback."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(kept_report)
    with exit_in_a_sentence():
        app()


if __name__ == "__main__":
    main()
