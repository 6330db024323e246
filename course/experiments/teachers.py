"""Which teacher is worth most to a small student: large and small ones, one and three, calibrated, stopped early, ...

    python -m course.experiments.teachers teachers
    python -m course.experiments.teachers students

Eight of the teachers are shipped or made of what is: those of data/, and students of lesson 09 in data/students, which
learned from 10,000 images. The first command trains the other nine, on all 55,000 images with one recipe (SGD, 0.1,
cosine, the recipe of the shipped ResNet-20, not tuned for any of them), and writes one row of facts a teacher. All
facts are read on the validation split: whoever chooses a teacher has no test set. The second trains students, see
`teacher_students`. Stopped at any moment, either goes on with what is missing.

What is trained stays in a scratch folder; the rows are what is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

from course.experiments.command import called, run_command
from course.experiments.rows import versions
from kdlib import data, devices, files, measure, models, train
from kdlib.data import DataModule, data_dir
from kdlib.errors import check_whole, unknown_name
from kdlib.methods import HardLabels, Logit, Method
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, SessionLog, read_rows
from kdlib.teachers import Ensemble, FrozenTeacher

DATA = "fashion-mnist"
SEED = 0  # of every teacher
SOFTENED = 4.0  # the temperature at which the entropy of the answers is read
TEACHER_COLUMNS = (
    *("data", "teacher", "kind", "epochs", "smoothing", "parameters", "macs"),
    *("validation_accuracy", "validation_loss", "calibration_error", "confidence", "entropy", "fitted_temperature"),
    "calibrated_error",
    *("fingerprint", "seconds", "device", "kdlib", "torch"),
)


# --- which teachers there are


@dataclass(frozen=True)
class Training:
    """A network that is trained here on all images.

    smoothing: of its labels. snapshots: after which epochs a copy is kept, which is a teacher of its own.
    teacher: of which other one it learns too (T 4, alpha 0.1): an assistant, in the words of Mirzadeh and others.
    """

    architecture: str
    smoothing: float = 0.0
    snapshots: tuple[int, ...] = ()
    teacher: str | None = None


ANEW = "Train it and its students in a folder of their own: give both commands --out FOLDER."
TRAININGS = {
    "resnet8": Training("resnet8"),
    "resnet14": Training("resnet14"),
    "resnet20": Training("resnet20", snapshots=(1,)),
    "resnet32": Training("resnet32"),
    "resnet20 smoothed": Training("resnet20", smoothing=0.1),
    "resnet8 of resnet32": Training("resnet8", teacher="resnet32"),
    "resnet56": Training("resnet56"),
    "resnet20x2": Training("resnet20x2"),
}


@dataclass(frozen=True)
class Teacher:
    """One teacher of the study.

    networks: names of trained networks, shipped or in the folder; several make an ensemble. kind: what it stands for
    in the figures. training: the training it comes from; None for shipped ones. epoch: of a snapshot.
    calibrated: its logits are divided by the temperature that fits the validation labels best.
    """

    name: str
    networks: tuple[str, ...]
    kind: str
    training: str | None = None
    epoch: int | None = None
    calibrated: bool = False


TEACHERS = {
    one.name: one
    for one in (
        Teacher("resnet20-fashion", ("resnet20-fashion",), "all images"),
        Teacher("resnet50-fashion", ("resnet50-fashion",), "all images"),
        Teacher("resnet8-fashion", ("resnet8-fashion",), "all images"),
        Teacher("resnet20-fashion calibrated", ("resnet20-fashion",), "calibrated", calibrated=True),
        Teacher("resnet8 hard 0", ("students/hard/seed-0",), "fewer images"),
        Teacher("resnet8 kd 0", ("students/kd/seed-0",), "assistant"),
        Teacher("resnet8 shuffled 0", ("students/shuffled/seed-0",), "badly taught"),
        Teacher("ensemble", tuple(f"students/hard/seed-{seed}" for seed in range(3)), "ensemble"),
        Teacher("resnet8", ("resnet8",), "all images", "resnet8"),
        Teacher("resnet20", ("resnet20",), "all images", "resnet20"),
        Teacher("resnet20, epoch 1", ("resnet20, epoch 1",), "stopped early", "resnet20", epoch=1),
        Teacher("resnet20 smoothed", ("resnet20 smoothed",), "smoothed", "resnet20 smoothed"),
        Teacher("resnet14", ("resnet14",), "all images", "resnet14"),
        Teacher("resnet32", ("resnet32",), "all images", "resnet32"),
        Teacher("resnet8 of resnet32", ("resnet8 of resnet32",), "assistant", "resnet8 of resnet32"),
        Teacher("resnet56", ("resnet56",), "all images", "resnet56"),
        Teacher("resnet20x2", ("resnet20x2",), "all images", "resnet20x2"),
    )
}


def teacher_named(name: str) -> Teacher:
    """The teacher of this name; ValueError for another one."""
    if name not in TEACHERS:
        raise unknown_name("teacher", name, TEACHERS)
    return TEACHERS[name]


# --- training and loading them


def path_of(network: str, folder: Path) -> Path:
    """Where a network that was trained here is kept."""
    return folder / f"{network.replace(', ', '-').replace(' ', '-')}.safetensors"


def train_network(name: str, fashion: DataModule, folder: Path, epochs: int) -> None:
    """Train one of TRAININGS and write it, with its snapshots, to the folder; what is there is not repeated.

    A run that was stopped goes on at the epoch that it was in.
    """
    plan = TRAININGS[name]
    snapshots = {epoch: path_of(f"{name}, epoch {epoch}", folder) for epoch in plan.snapshots if epoch <= epochs}
    final = path_of(name, folder)
    if final.exists():
        made = files.load_tensors(final)[1].get("epochs", epochs)
        if made != epochs:
            raise ValueError(f"{final} was trained for {made} epochs, not {epochs}. Choose another --cache.")
    if all(path.exists() for path in (final, *snapshots.values())):
        return

    def keep(epoch: int, model: nn.Module) -> None:
        if epoch in snapshots:
            models.save(model, snapshots[epoch], half=True, epochs=epoch)

    shape: dict[str, Any] = {
        "num_classes": fashion.num_classes,
        "in_channels": fashion.in_channels,
        "image_size": fashion.image_size,
    }
    method: Method = HardLabels(plan.smoothing) if plan.teacher is None else Logit(temperature=4, alpha=0.1)
    result = train.fit(
        models.build(plan.architecture, **shape, seed=SEED),
        fashion,
        teacher=None if plan.teacher is None else load_network(plan.teacher, folder).eval(),
        method=method,
        epochs=epochs,
        seed=SEED,
        test=False,
        progress=False,
        checkpoint=folder / "checkpoints" / f"{final.stem}.pt",
        resume=True,
        other_threads=True,
        on_epoch_end=keep,
    )
    models.save(result.student, final, half=True, epochs=epochs, seconds=round(result.seconds))


def load_network(name: str, folder: Path) -> nn.Module:
    """A network that was trained here, or a shipped one; its name may have a folder, as students/kd/seed-0.

    Raises ValueError for one that has to be trained first.
    """
    path = path_of(name, folder)
    if not path.exists() and name.partition(", ")[0] in TRAININGS:
        raise ValueError(f"{path} is not there, a network that is not shipped. {ANEW}")
    return models.load(path if path.exists() else name)


def refuse_another_network(teacher: Teacher, folder: Path, out: Path) -> None:
    """Raise ValueError where a teacher that was trained here is not the network of its row in `out`.

    The rows of its students know it by its name: those of two networks would be taken for students of one.
    """
    path = path_of(teacher.networks[0], folder)
    if teacher.training is None or not path.exists():
        return
    noted = [row["fingerprint"] for row in read_rows(teachers_path(out)) if row["teacher"] == teacher.name]
    if noted and noted != [FrozenTeacher(models.load(path)).fingerprint[:16]]:
        raise ValueError(f"{teacher.name!r} is another network than the one of its row in {teachers_path(out)}. {ANEW}")


class Calibrated(nn.Module):
    """A network whose logits are divided by a temperature, so that its confidence fits its accuracy (Guo 2017)."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) / self.temperature

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def load_teacher(teacher: Teacher, fashion: DataModule, folder: Path) -> nn.Module:
    """The teacher as one network, in eval mode."""
    members = [load_network(name, folder) for name in teacher.networks]
    model = members[0] if len(members) == 1 else Ensemble(members)
    if teacher.calibrated:
        answers = train.evaluate(model, fashion.validation).logits
        model = Calibrated(model, measure.fit_temperature(answers, fashion.validation.labels))
    return model.eval()


# --- what is known of a teacher


def entropy(logits: Tensor, temperature: float) -> float:
    """The mean entropy of the answers softened by a temperature, in nats; log C where all classes are equal."""
    softened = (logits.float() / temperature).log_softmax(1)
    return float(-(softened.exp() * softened).sum(1).mean())


def facts_of(model: nn.Module, fashion: DataModule) -> dict[str, Any]:
    """What a teacher costs, and how it answers on the validation split."""
    found, labels = train.evaluate(model, fashion.validation), fashion.validation.labels
    logits = found.logits
    temperature = measure.fit_temperature(logits, labels)
    return {
        "parameters": measure.count_parameters(model),
        "macs": measure.macs(model, (fashion.in_channels, fashion.image_size, fashion.image_size)),
        "validation_accuracy": found.accuracy,
        "validation_loss": found.loss,
        "calibration_error": measure.calibration_error(logits, labels),
        "confidence": float(logits.softmax(1).amax(1).mean()),
        "entropy": entropy(logits, SOFTENED),
        "fitted_temperature": temperature,
        "calibrated_error": measure.calibration_error(logits / temperature, labels),
    }


def row_of(teacher: Teacher, fashion: DataModule, folder: Path, epochs: int) -> dict[str, Any]:
    """A teacher's row; its network is trained first if it is not there."""
    started = time.perf_counter()
    plan = None if teacher.training is None else TRAININGS[teacher.training]
    if teacher.training is not None:
        train_network(teacher.training, fashion, folder, epochs)
    model = load_teacher(teacher, fashion, folder)
    return {
        **{"data": DATA, "teacher": teacher.name, "kind": teacher.kind},
        "epochs": None if plan is None else teacher.epoch or epochs,
        "smoothing": None if plan is None else plan.smoothing,
        **facts_of(model, fashion),
        "fingerprint": FrozenTeacher(model).fingerprint[:16],
        **{"seconds": round(time.perf_counter() - started, 1), "device": str(devices.resolve())},
        **versions(),
    }


def run_teachers(
    names: Sequence[str], epochs: int, folder: Path, out: Path, command: str, log: Callable[[str], object] = print
) -> list[dict[str, str]]:
    """Train what is missing and write a row for each of these teachers; returns all rows of the file.

    Raises ValueError for an unknown teacher, for a file of another budget, and while another process writes to it.
    """
    check_whole(1, 1000, epochs=epochs)
    teachers = [teacher_named(name) for name in names]
    fashion = data.load(DATA)
    file = RunsFile(teachers_path(out), TEACHER_COLUMNS, log)
    with file.open():
        _refuse_other_epochs(file, epochs)
        session = SessionLog(file.path, command, len(file.rows))
        for teacher in teachers:
            if any(row["teacher"] == teacher.name for row in file.rows):
                continue
            row = row_of(teacher, fashion, folder, epochs)
            file.append(row)
            session.write(len(file.rows))
            log(f"{teacher.name}: {row['validation_accuracy']:.2%} on validation, {row['seconds']:.0f} s")
    update_readme(out)
    return file.rows


def teachers_path(out: Path) -> Path:
    """The file of the teachers' rows."""
    return out / "teachers-fashion.csv"


def _refuse_other_epochs(file: RunsFile, epochs: int) -> None:
    for row in file.rows:
        if row["teacher"] in TRAININGS and row["epochs"] != str(epochs):
            raise ValueError(
                f"{file.path} holds teachers of {row['epochs']} epochs, not {epochs}. Give the same --epochs, or "
                "choose another folder with --out."
            )


# --- the command

Out = Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")]
Cache = Annotated[Path, typer.Option(help="Scratch folder for trained teachers and their answers.")]
Only = Annotated[list[str] | None, typer.Option(help="One teacher; repeat it for more. Default: all.")]


def teachers_command(
    only: Only = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 55,000 images.")] = 4,
    out: Out = None,
    cache: Cache = Path("runs/teachers"),
) -> None:
    """Train the teachers that are not shipped and write what is known of each."""
    command = called("course.experiments.teachers")
    run_teachers(
        only or list(TEACHERS), epochs, cache, out or data_dir() / "results", command, partial(print, flush=True)
    )


def students_command(
    only: Only = None,
    student: Annotated[list[str] | None, typer.Option(help="One student; repeat it for more. Default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ... Give more to add some.")] = 10,
    images: Annotated[int, typer.Option(min=10, help="Training images of each student.")] = 2_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over them.")] = 8,
    out: Out = None,
    cache: Cache = Path("runs/teachers"),
) -> None:
    """Train students of labels, hard and smoothed, and of each teacher; the teachers must have been trained before."""
    from course.experiments.teacher_students import SMOOTHED, STUDENTS, Budget, Experiment  # it imports this module

    command = called("course.experiments.teachers")
    experiment = Experiment(Budget(images, epochs), out or data_dir() / "results", cache)
    experiment.run(only or [SMOOTHED, *TEACHERS], student or STUDENTS, seeds, command, log=partial(print, flush=True))


if __name__ == "__main__":
    run_command(teachers=teachers_command, students=students_command)
