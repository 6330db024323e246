"""What do the mistakes of lesson 05 cost, with labels beside the teacher and without? A row a student.

    python -m course.experiments.logit_mistakes

The article's pair on 2,048 Fashion-MNIST images of 14 x 14 pixels, RMSprop, batches of 32, ten epochs, as in lesson 05.
Students of one seed share initial weights and the order of the images; only the loss differs. Every way is trained with
alpha = 0.5, where labels can hide a mistake, and with alpha = 0, where they cannot. Teachers are the article's, trained
here on the same images, and the shipped ResNet-20, whose answers are computed in batches of 32 sorted by class: once in
eval mode, once in training mode. Nothing is chosen here: the validation split is enough, and the test set is not read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from course.experiments.command import called, run_command
from course.experiments.rows import versions
from course.workers import in_processes
from kdlib import data, losses, models, verdict
from kdlib.data import data_dir
from kdlib.errors import check_whole
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, SessionLog, holds, read_rows

if TYPE_CHECKING:
    import pandas as pd

SHAPE: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "image_size": 14}
IMAGES, EPOCHS, BATCH_SIZE, TEMPERATURE = 2_048, 10, 32, 4.0
HARD = "hard labels"
COMPARED_WITH = {  # each way, and the one that it is to be compared with at the same alpha
    "right loss": "",
    "T = 1": "right loss",
    "T = 20": "right loss",
    "no T²": "right loss",
    "probabilities": "right loss",
    "other pictures": "right loss",
    "ResNet-20, eval": "",
    "ResNet-20, train": "ResNet-20, eval",
}
ALPHAS = (0.5, 0.0)
COLUMNS = (
    *("data", "images", "image_size", "epochs", "student", "way", "alpha", "temperature", "seed"),
    *("validation_accuracy", "agreement", "seconds", "threads", "kdlib", "torch"),
)

Loss = Callable[[Tensor, Tensor], Tensor]  # the logits of a batch and the indices of its images


@dataclass(frozen=True)
class Run:
    """One student: which way of teaching, with which weight of the labels (1 for hard labels), which seed."""

    way: str
    alpha: float
    seed: int

    def columns(self) -> dict[str, Any]:
        """What the row says of the settings."""
        temperature = {"T = 1": 1.0, "T = 20": 20.0, HARD: None}.get(self.way, TEMPERATURE)
        shared = {"data": "fashion-mnist", "images": IMAGES, "image_size": SHAPE["image_size"], "epochs": EPOCHS}
        return {**shared, "student": "article-student", **vars(self), "temperature": temperature}

    def is_in(self, rows: Sequence[Mapping[str, str]]) -> bool:
        """Whether these rows of a file hold it."""
        return holds(rows, self.columns())


class Pictures:
    """What all runs share: the images in both sizes, the teachers' answers, and the losses."""

    def __init__(self) -> None:
        fashion = data.load("fashion-mnist")
        few = fashion.subset(IMAGES)
        self.full, self.labels = data.normalized_images(few.train), few.train.labels
        self.images = F.avg_pool2d(self.full, 2)
        self.validation = F.avg_pool2d(data.normalized_images(fashion.validation), 2)
        self.validation_labels = fashion.validation.labels

    @cached_property
    def teacher(self) -> nn.Module:
        """The article's teacher, trained on the labels of the same images."""
        return self.learn("article-teacher", self.hard, 0)

    @cached_property
    def answers(self) -> Tensor:
        """Its logits for the training images."""
        teacher = self.teacher  # trained before gradients are switched off
        with torch.no_grad():
            return teacher(self.images)

    @cached_property
    def resnet_answers(self) -> dict[str, Tensor]:
        """The ResNet-20's logits in both modes, computed in batches that are sorted by class."""
        order, found = self.labels.argsort(stable=True), {}
        for name, training in (("ResNet-20, eval", False), ("ResNet-20, train", True)):
            network = models.load("resnet20-fashion").train(training)
            found[name] = torch.empty(len(order), 10)
            with torch.no_grad():
                for indices in order.split(BATCH_SIZE):
                    found[name][indices] = network(self.full[indices])
        return found

    def hard(self, logits: Tensor, indices: Tensor) -> Tensor:
        """Labels alone."""
        return F.cross_entropy(logits, self.labels[indices])

    def loss_of(self, way: str, alpha: float) -> Loss:
        """The loss of a way of teaching."""
        if way == HARD:
            return self.hard
        answers = self.resnet_answers.get(way, self.answers) if way.startswith("ResNet") else self.answers
        temperature = {"T = 1": 1.0, "T = 20": 20.0}.get(way, TEMPERATURE)

        def loss(logits: Tensor, indices: Tensor) -> Tensor:
            given = answers[indices.roll(1) if way == "other pictures" else indices]
            if way == "probabilities":
                logits, given = logits.softmax(dim=1), given.softmax(dim=1)
            soft = losses.kd(logits, given, temperature)
            soft = soft / temperature**2 if way == "no T²" else soft
            return alpha * F.cross_entropy(logits, self.labels[indices]) + (1 - alpha) * soft

        return loss

    def learn(self, architecture: str, loss: Loss, seed: int) -> nn.Module:
        """Train a network with the article's settings."""
        model = models.build(architecture, **SHAPE, seed=seed)
        optimizer = torch.optim.RMSprop(model.parameters(), lr=0.001, alpha=0.9)
        lots = torch.Generator().manual_seed(seed)
        for _ in range(EPOCHS):
            for indices in torch.randperm(len(self.images), generator=lots).split(BATCH_SIZE):
                value = loss(model(self.images[indices]), indices)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
        return model.eval()

    @torch.no_grad()
    def predictions(self, model: nn.Module) -> Tensor:
        """The class that a network names for each validation image."""
        return torch.cat([model(part).argmax(dim=1) for part in self.validation.split(500)])

    def execute(self, run: Run) -> dict[str, Any]:
        """Train one student and measure it."""
        started = time.perf_counter()
        found = self.predictions(self.learn("article-student", self.loss_of(run.way, run.alpha), run.seed))
        return run.columns() | {
            "validation_accuracy": (found == self.validation_labels).double().mean().item(),
            "agreement": (found == self.predictions(self.teacher)).double().mean().item(),
            "seconds": round(time.perf_counter() - started, 1),
            "threads": torch.get_num_threads(),
            **versions(),
        }


def runs_of(seeds: int) -> list[Run]:
    """All runs, those of one seed together."""
    ways = [(HARD, 1.0), *((way, alpha) for alpha in ALPHAS for way in COMPARED_WITH)]
    return [Run(way, alpha, seed) for seed in range(seeds) for way, alpha in ways]


def run(
    seeds: int, out: Path, command: str, workers: int = 1, log: Callable[[str], object] = print
) -> list[dict[str, str]]:
    """Make all runs that are missing, so many at a time; returns all rows of the file."""
    check_whole(seeds=seeds, workers=workers)
    file = RunsFile(path_in(out), COLUMNS, log)
    with file.open():
        missing = [one for one in runs_of(seeds) if not one.is_in(file.rows)]
        session = SessionLog(file.path, command, len(file.rows)) if missing else None
        for one, row in _results(missing, workers):
            assert session is not None
            file.append(row)
            session.write(len(file.rows))
            score = f"{row['validation_accuracy']:.1%} in {row['seconds']:.1f} s"
            log(f"seed {one.seed}, {one.way}, alpha {one.alpha:g}: {score}")
    update_readme(out)
    return file.rows


def _results(runs: Sequence[Run], workers: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    if not runs:
        return
    if workers == 1:
        pictures = Pictures()
        for one in runs:
            yield one, pictures.execute(one)
        return
    yield from in_processes(_execute_in_worker, runs, workers)


@lru_cache(maxsize=1)
def _pictures() -> Pictures:
    return Pictures()


def _execute_in_worker(run: Run) -> dict[str, Any]:
    return _pictures().execute(run)


def path_in(folder: Path) -> Path:
    """The file of the rows."""
    return folder / f"logit-mistakes-{IMAGES}.csv"


# --- what the rows say


@dataclass(frozen=True)
class Cost:
    """What a mistake changes: points of validation accuracy against the same without it, by seed and as an interval."""

    way: str
    alpha: float
    accuracy: float
    comparison: verdict.Comparison
    by_seed: tuple[float, ...]


def load(folder: Path | None = None) -> list[dict[str, str]]:
    """The finished runs; FileNotFoundError if there are none."""
    path = path_in(folder or data_dir() / "results")
    rows = read_rows(path)
    if not rows:
        raise FileNotFoundError(f"There are no runs in {path}. This makes them: python -m {__name__}")
    return rows


def scores(rows: Sequence[Mapping[str, str]], way: str, alpha: float) -> dict[str, float]:
    """Validation accuracy in per cent, by seed."""
    own = [row for row in rows if row["way"] == way and float(row["alpha"]) == alpha]
    return {row["seed"]: 100 * float(row["validation_accuracy"]) for row in own}


def costs(rows: Sequence[Mapping[str, str]]) -> list[Cost]:
    """Every mistake at both alphas against the same teaching without it; all intervals hold together."""
    wanted = [(way, other, alpha) for alpha in ALPHAS for way, other in COMPARED_WITH.items() if other]
    made = []
    for way, other, alpha in wanted:
        method, baseline = scores(rows, way, alpha), scores(rows, other, alpha)
        compared = verdict.compare(method, baseline, comparisons=len(wanted), same_unit=True)
        mean = sum(method.values()) / len(method)
        made.append(Cost(way, alpha, mean, compared, tuple(method[seed] - baseline[seed] for seed in method)))
    return made


def table(rows: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """Mean validation accuracy in per cent of every way, at both alphas."""
    import pandas as pd

    means = {
        way: {f"alpha = {alpha:g}": pd.Series(scores(rows, way, alpha)).mean().round(1) for alpha in ALPHAS}
        for way in COMPARED_WITH
    }
    return pd.DataFrame(means).T


def logit_mistakes(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ...")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Students at a time, each in a process.")] = 1,
) -> None:
    """Train students with every mistake of lesson 05; started again, it goes on."""
    torch.set_num_threads(1)  # for networks this small, several threads mostly wait for each other
    command = called("course.experiments.logit_mistakes")
    rows = run(seeds, out or data_dir() / "results", command, workers, log=lambda text: print(text, flush=True))
    print(table(rows))


if __name__ == "__main__":
    run_command(logit_mistakes=logit_mistakes)
