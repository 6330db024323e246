"""The command `kdlib search`."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from kdlib.paths import expand_user


def search(
    data: Annotated[str, typer.Option("--data", help="fashion-mnist, cifar10, cifar100, imagefolder:PATH")] = (
        "fashion-mnist"
    ),
    image_size: Annotated[int, typer.Option(min=8, help="Pixels of a side, for image folders.")] = 224,
    teacher: Annotated[str, typer.Option(help="A trained model: a shipped name or a file.")] = "resnet20-fashion",
    student: Annotated[str, typer.Option(help="Architecture of the student.")] = "resnet8",
    stem: Annotated[
        str, typer.Option(help="stride2, stride1 or imagenet: how torchvision's networks begin.")
    ] = "stride2",
    search_student: Annotated[
        bool,
        typer.Option("--search-student", help="Search width and depth of the student, too, in place of --student."),
    ] = False,
    method: Annotated[
        str, typer.Option(help="A method of the study, for instance kd, dkd, hint, rkd, kd+rkd or hard.")
    ] = "kd",
    images: Annotated[int | None, typer.Option(help="Training images, drawn by each seed; default: all.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of a trial that is not stopped early.")] = 15,
    views: Annotated[int, typer.Option(min=1, help="Augmented views of each image.")] = 5,
    trials: Annotated[int, typer.Option(help="Settings to train; more than before goes on with a search.")] = 27,
    sampler: Annotated[str, typer.Option(help="tpe or random.")] = "tpe",
    pruner: Annotated[str, typer.Option(help="hyperband, which stops bad trials early, or none.")] = "hyperband",
    max_macs: Annotated[int | None, typer.Option(help="Largest number of MACs for one image.")] = None,
    max_latency: Annotated[
        float | None, typer.Option(help="Largest latency in milliseconds: one image, one thread, this machine.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same one gives the same trials.")] = 0,
    workers: Annotated[
        int,
        typer.Option(help="Trainings at a time, each in a process of its own, on the next GPU if there are several."),
    ] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where optuna keeps the trials: sqlite:///PATH, journal:PATH or the URL of a database that several "
            "machines share; default: search.sqlite in --out."
        ),
    ] = None,
    judge_seeds: Annotated[
        int,
        typer.Option(
            help="Fresh seeds that judge what was found, against the start settings and random search; 0: none."
        ),
    ] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the trials and the report.", callback=expand_user)] = Path(
        "runs/search"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what an earlier search left in --out.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Search the settings of a method, and say with fresh seeds what they were worth.

    Stopped or killed at any moment, the same command without --overwrite goes on; with more --trials it goes further.
    """
    from kdlib import data as datasets
    from kdlib.errors import check_whole
    from kdlib.run_folder import claim, set_aside
    from kdlib.search import engine, judging, report
    from kdlib.search.storage import FILE, database_file, load_optuna

    load_optuna()  # before the data are read
    check_whole(0, judge_seeds=judge_seeds)
    check_whole(workers=workers)
    if max_latency is not None and not 0 < max_latency < math.inf:
        raise ValueError(f"--max-latency is a positive number of milliseconds; got {max_latency:g}.")
    if judge_seeds == 1:
        raise ValueError("One seed says nothing about spread: give --judge-seeds 2 at least, five as a rule, or 0.")
    try:
        results = (FILE, f"{FILE}-wal", f"{FILE}-shm", *report.FILES)
        # An earlier search stays until this one is known to be sound.
        with claim(out, results, resume=not overwrite, overwrite=overwrite, at_once=False,
                   echo=lambda line: None) as folder:  # fmt: skip
            if not overwrite:
                report.check_reports_of_a_search(folder, stored_elsewhere=bool(storage))
            checked = engine.check(
                datasets.load(data, image_size=image_size),
                teacher=teacher,
                student=None if search_student else student,
                method=method,
                trials=trials,
                epochs=epochs,
                images=images,
                views=views,
                sampler=sampler,
                pruner=None if pruner == "none" else pruner,
                max_macs=max_macs,
                max_latency=None if max_latency is None else max_latency / 1e3,
                seed=seed,
                device=device,
                precision=precision,
                stem=stem,
            )
            latencies = None
            if storage and not overwrite:
                report.check_reports_of_this_search(folder, engine.identity_of(*checked))
            if overwrite:
                task, space, strategy, limits = checked
                if storage and database_file(storage) != database_file(out):  # else it is removed
                    engine.check_same_search(task, space, strategy, limits, storage)
                latencies = engine.measure_latencies(task, space, strategy, limits, storage)
                set_aside(folder, results)
            found = engine.search(*checked, storage or out, workers=workers, progress=not quiet, latencies=latencies)
            command = report.command_line(_arguments())
            report.write(out, found, command=command)  # what was found is there if the judgement is interrupted
            judged = None
            if judge_seeds:
                judged = judging.judge(found, range(judge_seeds), progress=not quiet)
                report.write(out, found, judged, command=command)
    except KeyboardInterrupt:
        same = "The same command, without --overwrite," if overwrite else "The same command"
        print(f"\nkdlib: stopped. {same} goes on with what is missing.", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"\n{found}\n" + (f"\n{judged}\n" if judged else ""))
    print(f"Written to {out}: {', '.join(name for name in report.FILES if judged or name != report.JUDGED)}")
    if json_:
        print(json.dumps(report.to_dict(found, judged)))


def _arguments() -> list[str]:
    """What followed the command's name on the command line."""
    arguments = sys.argv[1:]
    return arguments[1:] if arguments[:1] == ["search"] else arguments
