"""The command line, `kdlib COMMAND`: `kdlib --help` names the commands, each one's `--help` its options."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlib.allocator import keep_freed_memory
from kdlib.errors import exit_in_a_sentence
from kdlib.paths import expand_user
from kdlib.search.command import search
from kdlib.study.command import study

if TYPE_CHECKING:
    from kdlib.recipes import Recipe

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Knowledge distillation: teach small networks by large ones, measure what it is worth.",
)

Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="fashion-mnist, cifar10, cifar100, imagefolder:PATH, imagenet:PATH; imagefolder@32:PATH: with a size.",
    ),
]
Images = Annotated[int | None, typer.Option(help="Training images to use, balanced over classes; default: all.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training images.")]
Seed = Annotated[
    int, typer.Option(help="Of the initial weights, the order, the augmentation and the choice of images.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]
Out = Annotated[Path, typer.Option(help="Folder for what the run writes.", callback=expand_user)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in --out.")]
OtherThreads = Annotated[
    bool, typer.Option("--other-threads", help="--resume also with another number of CPU threads than before.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left in --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Optimizer = Annotated[str, typer.Option(help="sgd, adamw or rmsprop.")]
Rate = Annotated[
    float | None,
    typer.Option(
        "--learning-rate",
        help="The peak of the learning rate; default: 0.1 for sgd, 0.002 for adamw, 0.001 for rmsprop.",
    ),
]
Decay = Annotated[
    float | None,
    typer.Option(help="Weight decay of matrices and filters; default: 0.0005 for sgd and rmsprop, 0.05 for adamw."),
]
BatchSize = Annotated[int, typer.Option(help="Images in a batch.")]
Schedule = Annotated[str, typer.Option(help="cosine, one-cycle or constant.")]
Clip = Annotated[float | None, typer.Option(help="Largest norm of the gradient; default: no clipping.")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the networks first; pays on GPUs.")]
Half = Annotated[
    bool,
    typer.Option("--half", help="Write the weights in 16 bits; distill measures the student with these, train before."),
]
CheckpointEvery = Annotated[int | None, typer.Option(min=1, help="Steps between checkpoints; default: one an epoch.")]
ImageSize = Annotated[int, typer.Option(min=8, help="Pixels of a side, for image folders.")]
STEM_HELP = "stride2, stride1 or imagenet: how torchvision's networks begin."
Stem = Annotated[str, typer.Option(help=STEM_HELP)]

Teachers = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        help="A trained model: resnet50-fashion (the default), a file, resnet50-imagenet, timm:NAME; repeat it for "
        "several that teach together.",
    ),
]
Student = Annotated[
    str,
    typer.Option(
        help="Architecture of the student (resnet18, timm:NAME), or a model or checkpoint file to go on from."
    ),
]
MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        help="A loss, or a sum such as logit+rkd or hard+100*similarity. Losses: hard, label_smoothing; logit (kd), "
        "dkd, dist, standardized_kd; feature (hint), attention, vid; relation (fsp), layer_correlation, "
        "layer_information, rkd, rkd_distance, rkd_angle, similarity, correlation_congruence. Weights and layers that "
        "are not given are those of the study's older search, see the README.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="Softens both networks' probabilities; default: 4 for kd, dkd; 2 for the others."),
]
Alpha = Annotated[
    float | None,
    typer.Option(help="Weight of the hard-label loss, in [0, 1]; default: 0.1 for kd, else by the loss."),
]
Layers = Annotated[
    list[str] | None, typer.Option(help="STUDENT:TEACHER pair for feature and relation losses; repeat it for more.")
]


@app.command()
def train(
    data: Data = "fashion-mnist",
    model: Annotated[
        str | None, typer.Option(help="Architecture, resnet20 or timm:NAME for instance.", show_default="resnet20")
    ] = None,
    stem: Annotated[str | None, typer.Option(help=STEM_HELP, show_default="stride2")] = None,
    start: Annotated[
        str | None, typer.Option(help="Trained weights to go on from: a shipped name or a file; default: fresh ones.")
    ] = None,
    images: Images = None,
    epochs: Epochs = 10,
    optimizer: Optimizer = "sgd",
    learning_rate: Rate = None,
    weight_decay: Decay = None,
    batch_size: BatchSize = 128,
    schedule: Schedule = "cosine",
    clip: Clip = None,
    smoothing: Annotated[float, typer.Option(help="Label smoothing.")] = 0.0,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    compile_: Compile = False,
    half: Half = False,
    checkpoint_every: CheckpointEvery = None,
    image_size: ImageSize = 224,
    out: Out = Path("runs/train"),
    resume: Resume = False,
    other_threads: OtherThreads = False,
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train one network on hard labels, a teacher for instance, and write model.safetensors."""
    from kdlib import data as datasets
    from kdlib import distributed, files, methods, models
    from kdlib import train as training
    from kdlib.run_folder import claim, locate

    recipe = _recipe(optimizer, learning_rate, weight_decay, batch_size, schedule, clip)
    with _interruptible(out, overwrite):
        with distributed.local_main_process_first():
            loaded = datasets.load_images(data, image_size=image_size).subset(images, seed=seed)
        shape = {"num_classes": loaded.num_classes, "in_channels": loaded.in_channels, "image_size": loaded.image_size}
        if start and (model or stem):
            raise ValueError(
                f"--start gives the network with its weights, and {'--model' if model else '--stem'} asks for a fresh "
                "one: leave out one of the two."
            )
        fresh = partial(models.build, model or "resnet20", **shape, stem=stem or "stride2", seed=seed)
        network = models.load(locate(start, out, resume=resume)) if start else fresh()
        models.get_config(network)  # refuses now, rather than after the training, what could not be saved
        results = ("model.safetensors", "history.csv", "checkpoint")
        with claim(out, results, resume=resume, overwrite=overwrite, checkpoints=results[-1:]):
            result = training.fit(
                network,
                loaded,
                method=methods.HardLabels(smoothing),
                epochs=epochs,
                recipe=recipe,
                seed=seed,
                device=device,
                precision=precision,
                compile=compile_,
                checkpoint=out / "checkpoint",
                checkpoint_every=checkpoint_every,
                resume=resume,
                other_threads=other_threads,
                progress=not quiet,
            )
            if distributed.rank() > 0:
                return
            facts = {
                "data": data,
                "classes": list(loaded.classes),
                "mean": list(loaded.train.mean),
                "std": list(loaded.train.std),
                "validation_accuracy": result.validation_accuracy,
                "test_accuracy": result.test_accuracy,
            }
            models.save(result.student, out / "model.safetensors", half=half, **facts)
            files.write_text(out / "history.csv", result.history.to_csv(lineterminator="\n"))
        shown = {name: facts[name] for name in ("data", "validation_accuracy", "test_accuracy")}
        _print(shown | {"seconds": result.seconds, "model": str(out / "model.safetensors")}, json_)


@app.command()
def distill(
    data: Data = "fashion-mnist",
    teacher: Teachers = None,
    student: Student = "resnet18",
    method: MethodName = "logit",
    images: Images = None,
    epochs: Epochs = 10,
    views: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Augmented views of each image whose teacher outputs are stored in advance, and which all epochs see "
            "in turn; 0 runs the teacher live, with a new view every epoch. Default: 1; of a folder 0, with --cache 1.",
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Folder that keeps the teacher's outputs for the next run; default: memory only.")
    ] = None,
    temperature: Temperature = None,
    alpha: Alpha = None,
    layers: Layers = None,
    image_size: ImageSize = 224,
    stem: Stem = "stride2",
    optimizer: Optimizer = "sgd",
    learning_rate: Rate = None,
    weight_decay: Decay = None,
    batch_size: BatchSize = 128,
    schedule: Schedule = "cosine",
    clip: Clip = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    compile_: Compile = False,
    no_baseline: Annotated[bool, typer.Option("--no-baseline", help="Leave out the student on hard labels.")] = False,
    half: Half = False,
    checkpoint_every: CheckpointEvery = None,
    out: Out = Path("runs/distill"),
    resume: Resume = False,
    other_threads: OtherThreads = False,
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Distil a teacher into a student, compare it with its twin on hard labels, and write a report."""
    from kdlib import distill as jobs
    from kdlib import distributed

    teachers = tuple(teacher) if teacher else jobs.Job().teachers
    job = jobs.Job(
        data=data,
        teacher=teachers[0] if len(teachers) == 1 else teachers,
        student=student,
        method=method,
        images=images,
        epochs=epochs,
        views=views,
        cache=cache,
        temperature=temperature,
        alpha=alpha,
        layers=tuple(layers or ()),
        image_size=image_size,
        stem=stem,
        seed=seed,
        device=device,
        precision=precision,
        compile=compile_,
        baseline=not no_baseline,
        half=half,
        checkpoint_every=checkpoint_every,
        other_threads=other_threads,
        recipe=_recipe(optimizer, learning_rate, weight_decay, batch_size, schedule, clip),
    )
    with _interruptible(out, overwrite):
        report = jobs.distill(job, out, resume=resume, overwrite=overwrite, progress=not quiet)
        if distributed.rank() > 0:
            return
    print(f"\n{jobs.table(report)}\nWritten to {out}: student.safetensors, history.csv, curves.png, report.json")
    if json_:
        print(json.dumps(report.to_dict()))


@app.command()
def doctor(
    data: Data = "fashion-mnist",
    teacher: Teachers = None,
    student: Student = "resnet18",
    method: MethodName = "logit",
    images: Images = None,
    temperature: Temperature = None,
    alpha: Alpha = None,
    layers: Layers = None,
    image_size: ImageSize = 224,
    stem: Stem = "stride2",
    optimizer: Optimizer = "sgd",
    learning_rate: Rate = None,
    weight_decay: Decay = None,
    batch_size: BatchSize = 128,
    schedule: Schedule = "cosine",
    clip: Clip = None,
    seed: Seed = 0,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Examine the set-up of a distillation for mistakes that let its loss fall and mean nothing; nothing is trained."""
    from kdlib import distill as jobs
    from kdlib.doctor.job import examine_job

    teachers = tuple(teacher) if teacher else jobs.Job().teachers
    job = jobs.Job(
        data=data,
        teacher=teachers[0] if len(teachers) == 1 else teachers,
        student=student,
        method=method,
        images=images,
        temperature=temperature,
        alpha=alpha,
        layers=tuple(layers or ()),
        image_size=image_size,
        stem=stem,
        seed=seed,
        device=device,
        recipe=_recipe(optimizer, learning_rate, weight_decay, batch_size, schedule, clip),
    )
    report = examine_job(job)
    print(json.dumps(report.to_dict()) if json_ else report)
    raise typer.Exit(0 if report.sound else 1)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a .safetensors file.")],
    data: Data = "fashion-mnist",
    image_size: ImageSize = 224,
    teacher: Annotated[str | None, typer.Option(help="Another model; the agreement with it is measured too.")] = None,
    validation: Annotated[bool, typer.Option("--validation", help="On the validation split, for choices.")] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    json_: Json = False,
) -> None:
    """Measure a trained model on the test set."""
    from kdlib import data as datasets
    from kdlib import evaluation, measure, models

    loaded = datasets.load_images(data, image_size=image_size)
    split = loaded.validation if validation else loaded.test

    def judge(network: Any, role: str) -> evaluation.Metrics:
        evaluation.check_class_names(role, network, loaded)
        evaluation.warn_of_other_images(role, network, loaded)
        metrics = evaluation.evaluate(network, split, device=device, precision=precision, role=role)
        evaluation.check_classes(role, metrics.logits, loaded)
        return metrics

    network = models.load(model)
    metrics = judge(network, "model")
    values = {
        "accuracy": metrics.accuracy,
        "loss": metrics.loss,
        "calibration_error": measure.calibration_error(metrics.logits, split.labels),
        "parameters": measure.count_parameters(network),
    }
    if teacher:
        teacher_metrics = judge(models.load(teacher), "teacher")
        values |= {
            "teacher_accuracy": teacher_metrics.accuracy,
            "agreement": measure.agreement(metrics.logits, teacher_metrics.logits),
        }
    _print(values, json_)


@app.command()
def compare(
    students: Annotated[
        list[str],
        typer.Argument(
            help="Two or more, the baseline first: a shipped model's name, a .safetensors file, or a folder with one "
            "for each seed, paired by file name; NAME=PATH to say how it is called."
        ),
    ],
    teacher: Annotated[
        str | None, typer.Option(help="A shipped model's name or a file: how faithful are they?")
    ] = None,
    data: Data = "fashion-mnist",
    image_size: ImageSize = 224,
    images: Annotated[int | None, typer.Option(min=2, help="Test images to compare on; default: all.")] = None,
    no_corruptions: Annotated[
        bool, typer.Option("--no-corruptions", help="No damaged pictures: a 25th of the pictures.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.md, report.json and report.png.", callback=expand_user)
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    precision: Precision = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare trained students on the test set: accuracy, fidelity, calibration, classes, robustness; with verdicts."""
    from contextlib import nullcontext

    from kdlib import compare as comparison
    from kdlib import data as datasets
    from kdlib import models
    from kdlib.compare import report as reports
    from kdlib.compare import sources

    if overwrite and out is None:
        raise ValueError("--overwrite replaces what is in --out: give a folder, too, or leave it out.")
    networks = sources.read(students)
    taught_by = models.load(teacher) if teacher else None
    loaded = datasets.load_images(data, image_size=image_size)
    with reports.claim_folder(out, overwrite) if out else nullcontext():
        report = comparison.compare(
            networks,
            loaded,
            teacher=taught_by,
            images=images,
            corruptions=not no_corruptions,
            device=device,
            precision=precision,
            progress=not quiet,
        )
        if out:
            report.write(out)
    if not json_:
        print(report)
    if out:
        print(f"{'' if json_ else chr(10)}Written to {out}: {', '.join(comparison.FILES)}")
    if json_:
        print(json.dumps(report.to_dict(), allow_nan=False))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a .safetensors file.")],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="onnx, onnx-int8, executorch, executorch-int8 or c; repeat it for more. Default: onnx, onnx-int8.",
        ),
    ] = None,
    data: Data = "fashion-mnist",
    image_size: ImageSize = 224,
    images: Annotated[int | None, typer.Option(min=1, help="Images to compare on; default: all of the split.")] = None,
    validation: Annotated[bool, typer.Option("--validation", help="Compare on the validation split.")] = False,
    least_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share of images for which an int8 file must choose the model's class.")
    ] = 0.95,
    out: Out = Path("runs/export"),
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Write a classifier of images as files for other programs, each compared with the model before it is kept."""
    from kdlib import data as datasets
    from kdlib import export as exports
    from kdlib import models

    reports = exports.export_all(
        models.load(model),
        out,
        formats or ["onnx", "onnx-int8"],
        datasets.load_images(data, image_size=image_size),
        images=images,
        validation=validation,
        least_agreement=least_agreement,
        overwrite=overwrite,
    )
    print(f"{exports.table(reports)}\n\nThe model itself, on the same {reports[0].images:,} images: accuracy", end=" ")
    print(f"{reports[0].float_accuracy:.4f}. Latency is that of one image in one thread, divided by PyTorch's.")
    print(f"Written to {out}: {', '.join(Path(one.path).name for one in reports)}, report.json")
    if json_:
        print(json.dumps(json.loads((out / "report.json").read_text())))


@app.command()
def device(
    file: Annotated[Path, typer.Argument(help="A C file that kdlib export --format c wrote.")],
    images: Annotated[int, typer.Option(min=1, help="Images of the test split to run; about a second each.")] = 100,
    flash: Annotated[int | None, typer.Option(min=1, help="Bytes of flash of a board: does the network fit?")] = None,
    ram: Annotated[int | None, typer.Option(min=1, help="Bytes of RAM of a board: does the network fit?")] = None,
    data: Data = "fashion-mnist",
    image_size: ImageSize = 224,
    json_: Json = False,
) -> None:
    """Compile a network's C file for a Cortex-M4, run it there, emulated, and count bytes and instructions.

    The file is compiled and run on this machine, too, to compare the answers: give no file of a stranger.
    """
    from kdlib import data as datasets
    from kdlib.microcontroller import run_on_cortex_m4

    test = datasets.load_images(data, image_size=image_size).test
    batch = next(iter(test.iter_batches(images, sampler=datasets.evenly_spaced(len(test), images))))
    report = run_on_cortex_m4(file, batch.images, batch.labels)
    fits = {} if flash is None and ram is None else {"fits": report.fits(flash=flash, ram=ram)}
    if json_:
        print(json.dumps(report.to_dict() | fits))
        return
    print(report)
    for kind, given, needed in (("flash", flash, report.flash_bytes), ("RAM", ram, report.ram_bytes)):
        if given is not None:
            verdict = "fits into" if needed <= given else "does not fit into"
            print(f"The network {verdict} {given:,} bytes of {kind}: it needs {needed:,}.")


@app.command()
def check(
    course: Annotated[
        bool, typer.Option("--course", help="Look also for what the lessons need, such as JupyterLab.")
    ] = False,
    json_: Json = False,
) -> None:
    """Say whether kdlib, its data and its teachers are in order here, with --course the lessons' packages, too."""
    from kdlib import environment

    report = environment.check(course)
    if json_:
        print(json.dumps({"ready": report.ready, "checks": [vars(one) for one in report.checks]}))
    else:
        print(report)
    raise typer.Exit(0 if report.ready else 1)


def _recipe(
    optimizer: str,
    learning_rate: float | None,
    weight_decay: float | None,
    batch_size: int,
    schedule: str,
    clip: float | None,
) -> Recipe:
    """The recipe of these options; None: not given."""
    from kdlib.recipes import Recipe

    numbers = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    given: dict[str, Any] = {name: number for name, number in numbers.items() if number is not None}
    return Recipe(optimizer, batch_size=batch_size, schedule=schedule, clip=clip, **given)


@contextmanager
def _interruptible(out: Path, overwrite: bool) -> Iterator[None]:
    """Under torchrun, work as one of its processes; when interrupted, say that nothing is lost."""
    from kdlib import distributed
    from kdlib.run_folder import find_checkpoints

    earlier, main = find_checkpoints(out), True
    try:
        with distributed.process_group():
            main = distributed.rank() == 0
            yield
    except KeyboardInterrupt:
        told = "The same command with --resume (in place of --overwrite) goes on from the last checkpoint."
        if main:  # it has brought the earlier run back; the others may look while it does
            if overwrite and find_checkpoints(out) <= earlier:
                held = f"This run had written no checkpoint, so {out} holds what it held before."
                told = f"{held} The same command, with --overwrite, starts again."
            print(f"\nkdlib: stopped. {told}", file=sys.stderr)
        raise typer.Exit(130) from None


def _print(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))
        return
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name.replace('_', ' '):{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")


app.command()(study)
app.command()(search)


def main() -> None:
    """Run a command; what a user can cause ends in one sentence and exit code 2, not in a traceback."""
    keep_freed_memory()
    with exit_in_a_sentence():
        app()


if __name__ == "__main__":
    main()
