"""The whole job: a teacher, a student, the same student on hard labels, and a report of what came of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from kdlib import data as datasets
from kdlib import distributed, evaluation, files, looks, measure, method_parser, methods, models, train
from kdlib.checkpoints import trained_seconds
from kdlib.data import DataModule
from kdlib.recipes import Recipe
from kdlib.run_folder import claim, locate, set_aside
from kdlib.teachers import CachedTeacher, Ensemble

RESULTS = (
    *("student.safetensors", "history.csv", "curves.png", "report.json"),
    *("baseline.checkpoint", "student.checkpoint"),
)

DECODED = ("imagefolder", "imagenet")  # data whose images are decoded when they are needed
PLAIN = (  # a job's numbers, and what is on or off
    *("images", "epochs", "views", "temperature", "alpha", "image_size", "seed"),
    *("compile", "baseline", "half", "checkpoint_every", "other_threads"),
)


@dataclass(frozen=True)
class Job:
    """What `distill` is asked to do; the command line has one option for each field.

    teacher: a shipped name or a file; several of them teach together, by the mean of their probabilities. It, student
    and cache are strings once the job is made, whether they were paths or not.
    method: a sum of losses, see `method_parser.parse`, as are temperature, alpha (None: those of each loss) and layers.
    images: training images to use (None: all). views: augmented views of each image whose teacher outputs are
    stored in advance and that the epochs, of the baseline too, go through in turn; 0 runs the teacher live, with a new
    view every epoch. None: 1, but 0 without a cache for images that are decoded when they are needed, as of a folder.
    cache: a folder that keeps the teacher's outputs for the next run, in 16 bits; None: they stay in memory.
    image_size: pixels of a side, for image folders. stem: of the student, where torchvision made it. student: an
    architecture, or a file (a model or a checkpoint) whose weights it goes on from. compile: let torch.compile
    translate the networks first. half: write the student's weights in 16 bits, and measure it with these.
    checkpoint_every: steps between checkpoints, beside one an epoch. other_threads: resume also with another number of
    CPU threads than before.
    """

    data: str = "fashion-mnist"
    teacher: str | Path | tuple[str | Path, ...] = "resnet50-fashion"
    student: str | Path = "resnet18"
    method: str = "logit"
    images: int | None = None
    epochs: int = 10
    views: int | None = None
    temperature: float | None = None
    alpha: float | None = None
    layers: tuple[str, ...] = ()
    cache: str | Path | None = None
    image_size: int = 224
    stem: str = "stride2"
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    baseline: bool = True
    half: bool = False
    checkpoint_every: int | None = None
    other_threads: bool = False
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        # Paths and NumPy's numbers are taken, too, and come out again in report.json, which knows neither.
        given = self.teacher
        values: dict[str, Any] = {
            "teacher": str(given) if isinstance(given, str | os.PathLike) else tuple(map(os.fspath, given)),
            **{name: os.fspath(getattr(self, name)) for name in ("data", "student")},
            **{name: _plain(getattr(self, name)) for name in PLAIN},
            "cache": None if self.cache is None else os.path.expanduser(self.cache),  # --cache=~/outputs
            "layers": self.layers if isinstance(self.layers, str) else tuple(self.layers),
        }
        if self.views is None:  # of a large image one random part for all epochs would be little to learn from
            decoded = values["data"].startswith(DECODED) and self.cache is None
            values["views"] = 0 if decoded else 1
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of all teachers."""
        return tuple(map(str, self.teacher)) if isinstance(self.teacher, tuple) else (str(self.teacher),)


@dataclass(frozen=True)
class Report:
    """What came of a job. Accuracies lie in [0, 1], on the test set; baseline is None when it was left out.

    student_bytes, teacher_bytes: in memory, in 32 bits whatever `half` says, as `models.load` gives them back.
    seconds: of all sessions, if the training was interrupted; of those before the last only the training.
    """

    job: Job
    teacher_accuracy: float
    baseline_accuracy: float | None
    student_accuracy: float
    agreement: float
    student_calibration_error: float
    student_parameters: int
    teacher_parameters: int
    student_macs: int
    teacher_macs: int
    student_bytes: int
    teacher_bytes: int
    seconds: float
    device: str

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, the job's settings among them."""
        return asdict(self)


def _plain(value: Any) -> Any:
    """Python's own number for one of NumPy's; anything else as it is, for those who use it to refuse."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def distill(
    job: Job,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    echo: Callable[[str], None] = print,
) -> Report:
    """Do the job and write student.safetensors, history.csv, curves.png and report.json to `out`.

    resume: go on from the checkpoints that a stopped run left in `out`. overwrite: replace what an earlier run left
    there, unless this one is refused. echo: receives a line before each stage.
    Under torchrun every process calls it, and the first one prints and writes.
    Raises what `data.load`, `models.load` and `train.fit` raise, before anything is trained where that is possible, and
    ValueError or OSError for an `out` that holds an earlier run or is in use.
    """
    if not isinstance(job, Job):
        raise TypeError(f"job is a kdlib.distill.Job, such as Job(student='resnet8'); got {type(job).__name__}.")
    if out is None and (resume or job.checkpoint_every is not None):
        raise ValueError("resume and checkpoint_every belong to a run with a folder: give out='runs/student'.")
    if out is None:
        return _distill(job, None, resume=resume, overwrite=False, progress=progress, echo=echo)
    # An earlier run is set aside when this one has read what it reads: its student may be what this one starts from.
    claimed = claim(
        out, RESULTS, resume=resume, overwrite=overwrite, at_once=False, checkpoints=RESULTS[-1:], echo=echo
    )
    with claimed as folder:
        return _distill(job, folder, resume=resume, overwrite=overwrite, progress=progress, echo=echo)


def _distill(
    job: Job, out: Path | None, *, resume: bool, overwrite: bool, progress: bool, echo: Callable[[str], None]
) -> Report:
    started = time.perf_counter()
    main = distributed.rank() == 0
    networks = job if out is None else _located(job, out, resume)
    data, teacher, student, method = build(networks)
    baseline_student = _build_student(networks, data)
    outputs: nn.Module | CachedTeacher = teacher
    if job.views and method.needs_teacher:
        if main:
            views = f"{job.views} view{'s' * (job.views > 1)}"
            several = len(job.teachers) > 1
            who = f"{'teachers' if several else 'teacher'}, {', '.join(job.teachers)}, {'are' if several else 'is'}"
            echo(f"The {who} run on {len(data.train):,} images in {views}. All epochs see these.")
        outputs = _cache_outputs(teacher, data, method, job, progress)
    if out is not None and overwrite:
        set_aside(out, RESULTS)

    fit = partial(_fit, job, data, outputs, out, resume=resume, progress=progress)
    if resume and out is not None:  # what earlier sessions have trained
        started -= sum(trained_seconds(out / f"{name}.checkpoint") for name in ("baseline", "student"))
    baseline = None
    if job.baseline:
        if main:
            echo(f"{job.student} learns from hard labels alone: the baseline, same budget, seed and initial weights.")
        baseline = fit(baseline_student, methods.HardLabels(), "baseline")
    if main:
        echo(f"{job.student} learns by {job.method}.")
    result = fit(student, method, "student")
    if job.half:
        models.round_to_half(result.student)  # what is reported is measured on the weights that are written
    if main:
        echo(f"The test set, {len(data.test):,} images, is read once for each network.")
    report = _report(job, data, teacher, result, baseline, started)
    if out is not None and main:
        _write(out, report, result, baseline, data)
    return report


def _located(job: Job, out: Path, resume: bool) -> Job:
    """The job with its files where they lie now: some may be of the earlier run that this one replaces."""
    find = partial(locate, out=out, resume=resume)
    return replace(job, teacher=tuple(str(find(name)) for name in job.teachers), student=str(find(job.student)))


def build(job: Job) -> tuple[DataModule, nn.Module, nn.Module, methods.Method]:
    """The data, the teacher, the student and the method of a job, before anything is trained; raises as `distill`."""
    if job.cache is not None and job.views == 0:
        raise ValueError("views=0 runs the teacher live, so there is nothing to keep: leave out the cache.")
    with distributed.local_main_process_first():
        data = datasets.load_images(job.data, image_size=job.image_size).subset(job.images, seed=job.seed)
        teacher = _load_teacher(job, data)
    student = _build_student(job, data)
    method = method_parser.parse(
        job.method, student, teacher, temperature=job.temperature, alpha=job.alpha, layers=job.layers
    )
    if models.is_file(job.student):
        evaluation.check_network("student", student, data, device=job.device, precision=job.precision)
    if job.cache is not None and not method.needs_teacher:
        raise ValueError(f"{job.method!r} needs no teacher, so there is nothing to keep: leave out the cache.")
    evaluation.check_teacher(teacher, data, device=job.device, precision=job.precision)
    return data, teacher, student, method


def _fit(
    job: Job,
    data: DataModule,
    outputs: nn.Module | CachedTeacher,
    out: Path | None,
    model: nn.Module,
    method: methods.Method,
    name: str,
    *,
    resume: bool,
    progress: bool,
) -> train.Result:
    return train.fit(
        model,
        data,
        teacher=outputs if method.needs_teacher else None,
        method=method,
        views=job.views or None,
        epochs=job.epochs,
        recipe=job.recipe,
        seed=job.seed,
        device=job.device,
        precision=job.precision,
        compile=job.compile,
        checkpoint=out / f"{name}.checkpoint" if out else None,
        checkpoint_every=job.checkpoint_every,
        resume=resume,
        other_threads=job.other_threads,
        test=False,
        progress=progress,
    )


def _load_teacher(job: Job, data: DataModule) -> nn.Module:
    """The teacher, or an ensemble of several; ValueError for one that was trained with other classes, or for none."""
    if not job.teachers:
        raise ValueError("A job has a teacher, or several: Job(teacher='resnet50-fashion').")
    networks = [models.load(name) for name in job.teachers]
    for network in networks:
        evaluation.check_class_names("teacher", network, data)
    return networks[0] if len(networks) == 1 else Ensemble(networks).eval()


def _build_student(job: Job, data: DataModule) -> nn.Module:
    if models.is_file(job.student):
        return models.load(job.student)
    shape = {"num_classes": data.num_classes, "in_channels": data.in_channels, "image_size": data.image_size}
    return models.build(str(job.student), **shape, stem=job.stem, seed=job.seed)


def _cache_outputs(
    teacher: nn.Module, data: DataModule, method: methods.Method, job: Job, progress: bool
) -> CachedTeacher:
    return CachedTeacher.build(
        teacher,
        data.train,
        augmentation=data.augmentation,
        seed=job.seed,
        views=job.views or 1,
        layers=method.teacher_layers,
        directory=job.cache,
        device=job.device,
        precision=job.precision,
        progress=progress,
    )


def _report(
    job: Job,
    data: DataModule,
    teacher: nn.Module,
    result: train.Result,
    baseline: train.Result | None,
    started: float,
) -> Report:
    def tested(model: nn.Module) -> train.Metrics:
        return train.evaluate(model, data.test, device=job.device, precision=job.precision)

    teacher_metrics, student_metrics = tested(teacher), tested(result.student)
    shape = (data.in_channels, data.image_size, data.image_size)
    return Report(
        job=job,
        teacher_accuracy=teacher_metrics.accuracy,
        baseline_accuracy=tested(baseline.student).accuracy if baseline else None,
        student_accuracy=student_metrics.accuracy,
        agreement=measure.agreement(student_metrics.logits, teacher_metrics.logits),
        student_calibration_error=measure.calibration_error(student_metrics.logits, data.test.labels),
        student_parameters=measure.count_parameters(result.student),
        teacher_parameters=measure.count_parameters(teacher),
        student_macs=measure.macs(result.student, shape),
        teacher_macs=measure.macs(teacher, shape),
        student_bytes=measure.bytes_in_memory(result.student),
        teacher_bytes=measure.bytes_in_memory(teacher),
        seconds=time.perf_counter() - started,
        device=result.device,
    )


def _write(out: Path, report: Report, result: train.Result, baseline: train.Result | None, data: DataModule) -> None:
    facts = {"test_accuracy": report.student_accuracy, "classes": list(data.classes)}
    facts |= {"mean": list(data.train.mean), "std": list(data.train.std)}
    models.save(result.student, out / "student.safetensors", half=report.job.half, **facts)
    history = result.history.add_prefix("student ")
    if baseline:
        history = history.join(baseline.history.add_prefix("baseline "))
    files.write_text(out / "history.csv", history.to_csv(lineterminator="\n"))
    with files.atomic_write(out / "curves.png") as temporary:
        curves(result, baseline).savefig(temporary, format="png", dpi=110)
    files.write_text(out / "report.json", json.dumps(report.to_dict(), indent=1))


def table(report: Report) -> str:
    """The report as a table of plain text, one row a network."""
    rows: list[tuple[str, float, int, int, int]] = []

    small = (report.student_parameters, report.student_macs, report.student_bytes)
    large = (report.teacher_parameters, report.teacher_macs, report.teacher_bytes)
    names = [Path(name).stem for name in report.job.teachers]
    teacher = f"teacher {names[0]}" if len(names) == 1 else f"{len(names)} teachers together"
    rows.append((teacher, report.teacher_accuracy, *large))
    if report.baseline_accuracy is not None:
        rows.append((f"{report.job.student}, hard labels", report.baseline_accuracy, *small))
    rows.append((f"{report.job.student}, {report.job.method}", report.student_accuracy, *small))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'':{width}}{'test accuracy':>15}{'parameters':>14}{'MACs an image':>15}{'memory':>12}"]
    for name, accuracy, parameters, macs, size in rows:
        cost = f"{parameters:>14,}{macs / 1e6:>13,.1f} M{size / 1e6:>9,.1f} MB"
        lines.append(f"{name:{width}}{accuracy:>15.2%}{cost}")
    lines.append("")
    if report.baseline_accuracy is not None:
        points = 100 * (report.student_accuracy - report.baseline_accuracy)
        lines.append(f"Distilled against hard labels: {points:+.2f} points. One run, one seed: a hint, not evidence.")
    lines.append(
        f"Student and teacher agree on {report.agreement:.2%} of the test images. "
        f"It took {report.seconds:,.0f} s on {report.device}."
    )
    return "\n".join(lines)


def curves(result: train.Result, baseline: train.Result | None = None) -> Any:
    """A figure of validation accuracy and training loss by epoch, without pyplot and its global state."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, ScalarFormatter

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    students = {"distilled": (result, looks.DISTILLED)}
    if baseline:
        students = {"hard labels": (baseline, looks.BASELINE), **students}
    for name, (one, (colour, line, marker)) in students.items():
        history = one.history
        style = {"color": colour, "linestyle": line, "marker": marker, "label": name}
        accuracy.plot(history.index, history["validation_accuracy"], **style)
        loss.plot(history.index, history["validation_loss"], **style)
    accuracy.set(xlabel="epoch", ylabel="validation accuracy (%)")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    loss.set(xlabel="epoch", ylabel="validation cross-entropy (nats)")
    # The first epoch's loss can be a hundred times the last one's, before the batch statistics have settled.
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter(ScalarFormatter())
    loss.yaxis.set_minor_formatter(NullFormatter())
    for axes in (accuracy, loss):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    accuracy.legend(frameon=False)
    return figure
