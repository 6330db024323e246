"""python -m course.detection: what distillation of a detector is worth, in paired seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from course.experiments.command import called, run_command


def detection(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ... Give more to add some.")] = 5,
    student_width: Annotated[int, typer.Option(min=1, help="Channels of the student's first convolution.")] = 8,
    teacher_width: Annotated[int, typer.Option(min=1, help="The same of the teacher's.")] = 28,
    scenes: Annotated[int, typer.Option(min=2, help="Training scenes.")] = 4_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of a student over them.")] = 12,
    teacher_scenes: Annotated[
        int, typer.Option(min=2, help="Training scenes of the teacher, these among them.")
    ] = 16_000,
    teacher_epochs: Annotated[int, typer.Option(min=1, help="Passes of the teacher over them.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
    cache: Annotated[Path, typer.Option(help="Scratch folder for the teacher.")] = Path("runs/detection"),
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")] = 1,
) -> None:
    """Train a teacher once, choose settings on validation scenes, then train students by four methods with each seed.

    Stopped at any moment, the same command goes on with what is missing.
    """
    from course.detection.experiment import Budget, Experiment, default_folder
    from course.detection.gains import describe

    budget = Budget(
        student_width=student_width,
        teacher_width=teacher_width,
        scenes=scenes,
        epochs=epochs,
        teacher_scenes=teacher_scenes,
        teacher_epochs=teacher_epochs,
    )
    command = called("course.detection")
    experiment = Experiment(budget, out or default_folder(), cache, workers)
    rows = experiment.run(seeds, command, log=lambda text: print(text, flush=True))
    print(describe(rows))
    print(f"All runs are in {experiment.runs_path}")


if __name__ == "__main__":
    run_command(detection=detection)
