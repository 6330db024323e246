"""The command `kdlib study`, which is also `python -m kdlib.study`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from kdlib.allocator import keep_freed_memory
from kdlib.errors import exit_in_a_sentence
from kdlib.paths import expand_user

WITH_AGAIN = ("again", "row", "cache", "device", "precision", "quiet")  # all else stands in the row that is repeated


def study(
    context: typer.Context,
    plan: Annotated[str, typer.Argument(help="full, short, controls, grid or missing-class.")] = "full",
    data: Annotated[
        str, typer.Option(help="fashion-mnist, cifar10, cifar100, imagefolder:PATH, imagefolder@PIXELS:PATH.")
    ] = "fashion-mnist",
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help="Instead of a plan: hard labels and this method; repeat it for more."),
    ] = None,
    student: Annotated[
        list[str] | None, typer.Option(help="Architecture; repeat it for more; default: resnet8.")
    ] = None,
    teacher: Annotated[str, typer.Option(help="A trained model: a shipped name or a file.")] = "resnet20-fashion",
    images: Annotated[
        list[int] | None, typer.Option(help="Training images, others for each seed; repeat it; default: 10000.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images, for every method.")] = 15,
    views: Annotated[int, typer.Option(min=1, help="Augmented views of each image.")] = 5,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw, the same for every method.")] = "sgd",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ... Give more to add some.")] = 5,
    tuning_seeds: Annotated[int, typer.Option(min=1, help="How many seeds each trial is made with.")] = 2,
    trials_file: Annotated[
        Path | None,
        typer.Option(
            "--choices",
            help="Take the settings from this file of trials, made with other images or epochs.",
            callback=expand_user,
        ),
    ] = None,
    retune: Annotated[
        bool,
        typer.Option("--retune", help="short: take only the best of each family from --choices; tune settings anew."),
    ] = False,
    defaults: Annotated[bool, typer.Option("--defaults", help="No trials: the start settings of each method.")] = False,
    excluded_classes: Annotated[
        list[int] | None, typer.Option("--left-out", help="missing-class: the class; repeat it for more; default: 3.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; default: data/results.", callback=expand_user)
    ] = None,
    cache: Annotated[
        Path,
        typer.Option(
            help="Scratch folder: unfinished runs, teachers' outputs of up to --workers seeds.", callback=expand_user
        ),
    ] = Path("runs/study"),
    workers: Annotated[
        int,
        typer.Option(min=1, help="Runs at a time, each in a process of its own, on the next GPU if there are several."),
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    again: Annotated[
        Path | None,
        typer.Option(help="Repeat one run of this file of results and compare; see --row.", callback=expand_user),
    ] = None,
    row: Annotated[int, typer.Option(min=1, help="The row that --again repeats.")] = 1,
    dry: Annotated[
        bool, typer.Option("--dry", help="Only say how many runs there are, of how many steps, and how long they take.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Measure what each method is worth: paired seeds, settings tuned on validation, a row a run.

    Stopped at any moment, the same command goes on with what is missing.
    """
    from kdlib.study import plans, runner
    from kdlib.study.runs_file import check_encodable

    _check_given(context)
    if again is not None:
        raise typer.Exit(_reproduce(again, row, cache, device, precision))
    architectures = student or ["resnet8"]
    for architecture in architectures:
        check_encodable(data=data, teacher=teacher, student=architecture)
    first = plans.TUNING_SEEDS[0]
    chosen = plans.of_methods(methods) if methods else plans.find(plan)
    if excluded_classes and not chosen.excludes_classes:
        raise ValueError(
            "--left-out names the class of the plan missing-class; other runs see all classes. Give that plan, or no "
            "--left-out."
        )
    configs = [
        runner.StudyConfig(
            plan=chosen,
            budget=plans.Budget(data, architecture, teacher, count, epochs, views, optimizer, device, precision),
            seeds=range(seeds),
            out=out,
            cache=cache,
            trials_file=trials_file,
            retune=retune,
            defaults=defaults,
            excluded_classes=tuple(excluded_classes or (3,)),
            tuning_seeds=range(first, first + tuning_seeds),
            workers=workers,
        )
        for architecture in architectures
        for count in images or [10_000]
    ]
    try:
        for config in configs[1:]:
            runner.dry_run(config)  # a mistake in the last one shows before hours of the first
        for config in configs:
            if dry:
                print(runner.dry_run(config))
            else:
                path = runner.run(config, progress=not quiet, command=shlex.join(["kdlib", "study", *_arguments()]))
                print(f"All runs are in {path}")
    except KeyboardInterrupt:
        told = f"The same command goes on with what is missing, and uses what this one has left in {cache}"
        print(f"\nkdlib: stopped. {told} (a scratch folder; empty it only while no study runs).", file=sys.stderr)
        raise typer.Exit(130) from None


def _check_given(context: typer.Context) -> None:
    """Raise ValueError for what --again or --method would pass over, and for --row without --again."""
    sources = {param: context.get_parameter_source(param.name or "") for param in context.command.params}
    given = {param.name: param.opts[0] for param, source in sources.items() if source and source.name == "COMMANDLINE"}
    others = [f"the {option}" if option == name else option for name, option in given.items() if name not in WITH_AGAIN]
    if "again" in given and others:
        raise ValueError(
            f"--again repeats one run as its row says, and does not take {', '.join(others)}. Leave that out; --row, "
            "--cache, --device and --precision go with it."
        )
    if "row" in given and "again" not in given:
        raise ValueError("--row says which row is repeated, and no file is named. Give --again FILE, or no --row.")
    if "plan" in given and "methods" in given:
        raise ValueError(
            "--method names the methods in place of a plan, and a plan is given as well. Leave one of the two out."
        )


def _reproduce(file: Path, row: int, cache: Path, device: str, precision: str) -> int:
    """Repeat one run and print in what it differs; the exit code."""
    from kdlib.study import runner

    differ = runner.reproduce(file, row, cache=cache, device=device, precision=precision)
    for name, (old, new) in differ.items():
        print(f"{name}: {old} in the file, {new} now")
    print(f"Row {row} of {file}: {'repeated with differences.' if differ else 'the same to the bit.'}")
    return 1 if differ else 0


def _arguments() -> list[str]:
    """What followed the command's name on the command line."""
    arguments = sys.argv[1:]
    return arguments[1:] if arguments[:1] == ["study"] else arguments


def main() -> None:
    """Run the command; what a user can cause ends in one sentence and exit code 2, not in a traceback."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(study)
    keep_freed_memory()
    with exit_in_a_sentence():
        app()
