"""The whole job: a teacher, a student, the same student on hard labels, and a report of what came of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdlib import data as data_sets
from kdlib import distributed, evaluation, files, measure, methods, models, train
from kdlib._messages import unknown
from kdlib.data import DataSet
from kdlib.recipes import Recipe
from kdlib.teachers import Cached

METHODS = ("hard", "logit", "feature", "relation")
# Round numbers, not tuned: give a weight of your own, as in "logit+50*relation".
DEFAULT_WEIGHTS = {"feature": 10.0, "relation": 10.0}


@dataclass(frozen=True)
class Job:
    """What `distill` is asked to do; the command line has one option for each field.

    images: training images to use (None: all). views: augmented views of each image that the teacher is asked
    about in advance and the epochs go through in turn; 0 asks the teacher live, with a new view every epoch.
    layers: "student:teacher" pairs for feature and relation; none: the last stages for feature, all for relation.
    cache: a folder that keeps the teacher's answers for the next run, in 16 bits; None: they stay in memory. size:
    pixels of a side, for image folders. stem: of the student, where torchvision made it. student: an architecture, or
    a file (a model or a checkpoint) whose weights it goes on from. compile: let torch.compile translate the networks
    first. half: write the student's weights in 16 bits. every: steps between checkpoints, beside one an epoch.
    """

    data: str = "fashion-mnist"
    teacher: str = "resnet50-fashion"
    student: str = "resnet18"
    method: str = "logit"
    images: int | None = None
    epochs: int = 10
    views: int = 1
    temperature: float = 4.0
    alpha: float = 0.1
    layers: tuple[str, ...] = ()
    cache: str | None = None
    size: int = 224
    stem: str = "stride2"
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    baseline: bool = True
    half: bool = False
    every: int | None = None
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True)
class Report:
    """What came of a job. Accuracies lie in [0, 1], on the test set; baseline is None when it was left out."""

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
    place: str

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, the job's settings among them."""
        return asdict(self)


def build_method(text: str, student: nn.Module, teacher: nn.Module, job: Job) -> methods.Method:
    """The method that a text such as "logit", "logit+relation" or "hard + 50*feature" names.

    feature compares the last stages by hint, relation all stages by FSP (or the layers in `job.layers`). Without
    "hard" or "logit" in the sum, hard labels are added: the student learns from the true labels in every method.
    Raises ValueError for an unknown method, with near matches, or an unreadable weight.
    """
    total: methods.Method | None = None
    for part in text.split("+"):
        match = re.fullmatch(r"\s*(?:([0-9.eE-]+)\s*\*)?\s*([\w-]+)\s*", part)
        if match is None or match[2] not in METHODS:
            raise unknown("method", part.strip(), METHODS)
        name = match[2]
        try:
            weight = float(match[1]) if match[1] else DEFAULT_WEIGHTS.get(name, 1.0)
        except ValueError as error:
            raise ValueError(
                f"The weight {match[1]!r} in --method {text!r} is not a number; write 50*feature."
            ) from error
        term = _term(name, student, teacher, job)
        weighted = term if weight == 1.0 else weight * term
        total = weighted if total is None else total + weighted
    if job.layers and not {"feature", "relation"} & {part.rpartition("*")[2].strip() for part in text.split("+")}:
        raise ValueError(f"--layers serves feature and relation, and --method is {text}: leave it out, or add one.")
    if not total.trains_logits:
        total = methods.HardLabels() + total
    return total


def _term(name: str, student: nn.Module, teacher: nn.Module, job: Job) -> methods.Method:
    if name == "hard":
        return methods.HardLabels()
    if name == "logit":
        return methods.Logit(job.temperature, job.alpha)
    if job.layers:
        pairs = dict(layer.partition(":")[::2] for layer in job.layers)
        if not all(pairs.values()) or len(pairs) < len(job.layers):
            raise ValueError(
                f"--layers takes pairs STUDENT:TEACHER, as layer3:layer3, each student layer once; got "
                f"{', '.join(job.layers)}."
            )
    else:
        ours, theirs = models.stages(student), models.stages(teacher)
        # Networks of different depth are paired from the end, where the maps mean most.
        pairs = dict(list(zip(reversed(ours), reversed(theirs), strict=False))[::-1])
    if name == "feature":
        last = list(pairs.items())[-1:] if not job.layers else pairs.items()
        return methods.Feature(dict(last), loss="hint")
    return methods.Relation(pairs, loss="fsp")


def distill(
    job: Job,
    out: Path | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Report:
    """Do the job and write student.safetensors, history.csv, curves.png and report.json to `out`.

    resume: go on from the checkpoints that a stopped run left in `out`. say: receives a line before each stage.
    Under torchrun every process calls it, and the first one speaks and writes.
    Raises what `data.load`, `models.load` and `train.fit` raise, before anything is trained where that is possible.
    """
    started = time.perf_counter()
    if distributed.rank() > 0:
        say = _silent
    with distributed.first_then_others():
        data = data_sets.load(job.data, size=job.size).take(job.images, seed=job.seed)
        teacher = models.load(job.teacher)
    shape = {"num_classes": data.num_classes, "in_channels": data.in_channels, "image_size": data.size}
    student, twin = (_student(job, shape) for _ in range(2))
    method = build_method(job.method, student, teacher, job)
    if out is not None:
        files.require_folder(out)  # fails now rather than after the training
    _refuse_unfit(teacher, data, job)
    answers: nn.Module | Cached = teacher
    if job.views and method.needs_teacher:
        views = f"{job.views} view{'s' * (job.views > 1)}"
        say(f"The teacher, {job.teacher}, answers for {len(data.train):,} images in {views}.")
        answers = _answers(teacher, data, method, job, progress)

    fitted = partial(_fitted, job, data, answers, out, resume=resume, progress=progress)
    baseline = None
    if job.baseline:
        say(f"{job.student} learns from hard labels alone: the baseline, same budget, seed and initial weights.")
        baseline = fitted(twin, methods.HardLabels(), "baseline")
    say(f"{job.student} learns by {job.method}.")
    run = fitted(student, method, "student")
    say(f"The test set, {len(data.test):,} images, is read once for each network.")
    report = _report(job, data, teacher, run, baseline, started)
    if out is not None and distributed.rank() == 0:
        _write(out, report, run, baseline)
    return report


def _fitted(
    job: Job,
    data: DataSet,
    answers: nn.Module | Cached,
    out: Path | None,
    model: nn.Module,
    method: methods.Method,
    name: str,
    **options: bool,
) -> train.Run:
    return train.fit(
        model,
        data,
        teacher=answers if method.needs_teacher else None,
        method=method,
        views=job.views or None,
        epochs=job.epochs,
        recipe=job.recipe,
        seed=job.seed,
        device=job.device,
        precision=job.precision,
        compile=job.compile,
        checkpoint=out / f"{name}.checkpoint" if out else None,
        every=job.every,
        test=False,
        **options,
    )


def _refuse_unfit(teacher: nn.Module, data: DataSet, job: Job) -> None:
    """Raise ValueError for a teacher that was built for other images or classes, before it is asked about all."""
    few = data.validation.select(torch.arange(min(distributed.size(), len(data.validation))))
    scores = evaluation.evaluate(teacher, few, device=job.device, precision=job.precision, who="teacher")
    evaluation.refuse_other_classes("teacher", scores.logits, data)


def _silent(text: str) -> None:
    """What all processes but the first say."""


def _student(job: Job, shape: dict[str, int]) -> nn.Module:
    if models.is_file(job.student):
        return models.load(job.student)
    return models.build(job.student, **shape, stem=job.stem, seed=job.seed)


def _answers(teacher: nn.Module, data: DataSet, method: methods.Method, job: Job, progress: bool) -> Cached:
    return Cached.build(
        teacher,
        data.train,
        augmentation=data.augmentation,
        seed=job.seed,
        views=job.views,
        layers=method.teacher_layers,
        directory=job.cache,
        device=job.device,
        precision=job.precision,
        progress=progress,
    )


def _report(
    job: Job, data: DataSet, teacher: nn.Module, run: train.Run, baseline: train.Run | None, started: float
) -> Report:
    def scored(model: nn.Module) -> train.Scores:
        return train.evaluate(model, data.test, device=job.device, precision=job.precision)

    theirs, ours = scored(teacher), scored(run.student)
    shape = (data.in_channels, data.size, data.size)
    return Report(
        job=job,
        teacher_accuracy=theirs.accuracy,
        baseline_accuracy=scored(baseline.student).accuracy if baseline else None,
        student_accuracy=ours.accuracy,
        agreement=measure.agreement(ours.logits, theirs.logits),
        student_calibration_error=measure.calibration_error(ours.logits, data.test.labels),
        student_parameters=measure.parameters(run.student),
        teacher_parameters=measure.parameters(teacher),
        student_macs=measure.macs(run.student, shape),
        teacher_macs=measure.macs(teacher, shape),
        student_bytes=measure.bytes_in_memory(run.student),
        teacher_bytes=measure.bytes_in_memory(teacher),
        seconds=time.perf_counter() - started,
        place=run.place,
    )


def _write(out: Path, report: Report, run: train.Run, baseline: train.Run | None) -> None:
    models.save(run.student, out / "student.safetensors", half=report.job.half, test_accuracy=report.student_accuracy)
    history = run.history.add_prefix("student ")
    if baseline:
        history = history.join(baseline.history.add_prefix("baseline "))
    files.write_text(out / "history.csv", history.to_csv())
    with files.replacing(out / "curves.png") as temporary:
        curves(run, baseline).savefig(temporary, format="png", dpi=110)
    files.write_text(out / "report.json", json.dumps(report.to_json(), indent=1))


def table(report: Report) -> str:
    """The report as a table of plain text, one row a network."""
    rows: list[tuple[str, float, int, int, int]] = []

    small = (report.student_parameters, report.student_macs, report.student_bytes)
    large = (report.teacher_parameters, report.teacher_macs, report.teacher_bytes)
    rows.append((f"teacher {Path(report.job.teacher).stem}", report.teacher_accuracy, *large))
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
        f"It took {report.seconds:,.0f} s on {report.place}."
    )
    return "\n".join(lines)


def curves(run: train.Run, baseline: train.Run | None = None) -> Any:
    """A figure of validation accuracy and training loss by epoch, without pyplot and its global state."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, ScalarFormatter

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    students = {"distilled": (run, "#0072B2", "-", "o")}
    if baseline:
        students = {"hard labels": (baseline, "#D55E00", "--", "s"), **students}
    for name, (one, colour, line, marker) in students.items():
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
