"""The job of `make distill`: the recipes that were tried for it, what five seeds of it give, and its controls.

    python -m course.experiments.headline trials [--teacher resnet50-fashion-v2]
    python -m course.experiments.headline seeds [--teacher resnet50-fashion-v2]
    python -m course.experiments.headline controls

In about five minutes on two cores a ResNet-50 teaches a ResNet-18. The first command tries each of CANDIDATES with
hard labels and with logits, on the validation split and with a seed that the job does not use, and the best of them
with a second one. The second command does the job itself with seeds 0 to 4. A seed gives the images, their order and
views, and the initial weights, the same for both students; the test set is read once for each network, when both are
trained, and once more for what it answers for each image. The third command trains the same students by two controls:
label smoothing, and the teacher's logits of another image. Neither had trials: nor had the job's temperature and alpha.

With another teacher the recipe is the job's. Its trials are by logits alone, at the job's temperature and a higher one:
hard labels have no teacher, and a better teacher may be a surer one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from course.experiments.command import called, run_command
from course.experiments.rows import versions
from kdlib import devices, files, models, train
from kdlib.data import data_dir, load_images
from kdlib.distill import Job, build, distill
from kdlib.errors import check_whole
from kdlib.methods import HardLabels, Logit
from kdlib.recipes import Recipe
from kdlib.study.experiment import derangement
from kdlib.study.predictions import PredictionsFile
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, SessionLog, read_frame, to_text
from kdlib.teachers import CachedTeacher
from kdlib.verdict import Comparison, compare, compare_samples

if TYPE_CHECKING:
    import pandas as pd

HARD, LOGITS, HIGHER = "hard labels", "logits", "logits, T = 8"
SMOOTHING, SHUFFLED = "label smoothing", "logits of another image"
CONTROLS = (SMOOTHING, SHUFFLED)
TRIALS, SEEDS, CONTROL_SEEDS = "headline-trials.csv", "headline.csv", "headline-controls.csv"
TUNING_SEEDS = (1_000, 1_001)  # none of the job's
FINALISTS = 3
STUDENTS = {HARD: "baseline.checkpoint", LOGITS: "student.safetensors"}  # what `distill` leaves of each


def _adamw(rate: float, batch_size: int = 64, schedule: str = "cosine") -> Recipe:
    return Recipe("adamw", rate, weight_decay=0.05, batch_size=batch_size, schedule=schedule)


_SMALL = partial(Job, images=5_000, epochs=5, views=3)
CANDIDATES = (
    _SMALL(recipe=_adamw(3e-3)),
    _SMALL(recipe=_adamw(3e-3, schedule="one-cycle")),
    _SMALL(recipe=_adamw(1e-3)),
    _SMALL(recipe=_adamw(6e-3, schedule="one-cycle")),
    _SMALL(recipe=_adamw(2e-3, 32, "one-cycle"), epochs=4),  # small batches take longer
    _SMALL(recipe=_adamw(1e-3, 32), epochs=4),
    _SMALL(recipe=Recipe(learning_rate=0.01, batch_size=64)),
    _SMALL(recipe=Recipe(learning_rate=0.03, batch_size=64)),
    Job(images=10_000, epochs=3, views=2, recipe=_adamw(3e-3)),  # more pictures, a fifth more steps: for comparison
    Job(images=10_000, epochs=3, views=3, recipe=Recipe(learning_rate=0.03)),  # the job before these trials
)
JOB = CANDIDATES[1]  # of those that take five minutes the best, with both seeds

JOB_COLUMNS = ("data", "teacher", "student", "images", "epochs", "views", "seed")
RECIPE_COLUMNS = ("optimizer", "learning_rate", "weight_decay", "batch_size", "schedule")
PROCESS_COLUMNS = ("seconds", "device", "threads", "kdlib", "torch")
TRIAL_COLUMNS = (*JOB_COLUMNS, *RECIPE_COLUMNS, "method", "validation_accuracy", *PROCESS_COLUMNS, "error")
SCORES = ("teacher_accuracy", "baseline_accuracy", "student_accuracy", "agreement")
SEED_COLUMNS = (*JOB_COLUMNS, *RECIPE_COLUMNS, *SCORES, *PROCESS_COLUMNS)
CONTROL_COLUMNS = (*JOB_COLUMNS, *RECIPE_COLUMNS, "method", "test_accuracy", *PROCESS_COLUMNS, "error")


def settings(job: Job) -> dict[str, Any]:
    """The columns that say which job a row is of."""
    recipe = {name: getattr(job.recipe, name) for name in RECIPE_COLUMNS}
    return {name: getattr(job, name) for name in JOB_COLUMNS} | recipe


def process() -> dict[str, Any]:
    """The columns that say where a row comes from, but for the time."""
    return {"device": str(devices.resolve()), "threads": torch.get_num_threads(), **versions()}


def rows_of(rows: Sequence[dict[str, str]], **values: Any) -> list[dict[str, str]]:
    """Those of a file's rows that have these values."""
    texts = {name: to_text(value) for name, value in values.items()}
    return [row for row in rows if texts.items() <= row.items()]


def train_students(job: Job, names: Sequence[str], cache: Path, *, test: bool = False) -> Iterator[dict[str, Any]]:
    """Train a student by each of the methods that are named; a row for each, with its accuracy on one split.

    test: read the test set, and not the validation split. cache: a folder for the teacher's outputs, which jobs with
    the same images, views and seed share.
    """
    images, teacher, student, logit = build(job)
    methods = {HARD: HardLabels(), SMOOTHING: HardLabels(smoothing=0.1), LOGITS: logit, SHUFFLED: logit}
    methods[HIGHER] = Logit(temperature=8, alpha=0.1)
    outputs = others = None
    directory = cache / f"{Path(str(job.teacher)).stem}-{len(images.train)}-{job.views}-{job.seed}"
    if set(names) - {HARD, SMOOTHING}:
        outputs = CachedTeacher.build(
            teacher,
            images.train,
            augmentation=images.augmentation,
            seed=job.seed,
            views=job.views or 1,
            directory=directory,
            progress=False,
        )
    if SHUFFLED in names and outputs is not None:
        others = CachedTeacher.open(directory, outputs.metadata, derangement(images.train.indices, job.seed))
    teachers = {HARD: None, SMOOTHING: None, SHUFFLED: others}
    for name in names:
        started = time.perf_counter()
        row = settings(job) | process() | {"method": name}
        try:
            result = train.fit(
                copy.deepcopy(student),  # both begin with the same weights
                images,
                teacher=teachers.get(name, outputs),
                method=methods[name],
                epochs=job.epochs,
                recipe=job.recipe,
                views=job.views,
                seed=job.seed,
                test=test,
                progress=False,
            )
            split = "test" if test else "validation"
            row[f"{split}_accuracy"] = getattr(result, f"{split}_accuracy")
        except FloatingPointError as error:
            row["error"] = str(error)
        yield row | {"seconds": round(time.perf_counter() - started, 1)}


# --- the trials


def run_trials(
    jobs: Sequence[Job],
    out: Path,
    cache: Path,
    command: str,
    log: Callable[[str], object] = print,
    methods: Sequence[str] = (HARD, LOGITS),
) -> list[dict[str, str]]:
    """Try what is missing of these jobs, with each of the methods, and return all rows of the file.

    Raises ValueError while another process writes to the file, OSError where a file cannot be written.
    """
    with _rows(out / TRIALS, TRIAL_COLUMNS, command, log) as (file, session):
        for job in jobs:
            missing = [one for one in methods if not rows_of(file.rows, **settings(job), method=one)]
            for row in train_students(job, missing, cache) if missing else ():
                file.append(row)
                session.write(len(file.rows))
                score = row.get("error") or f"{row['validation_accuracy']:.2%}"
                log(f"{_describe(job)}: {row['method']} {score} on validation in {row['seconds']:.0f} s")
    return file.rows


def best(rows: Sequence[dict[str, str]], seed: int = TUNING_SEEDS[0]) -> list[Job]:
    """The candidates by the sum of both accuracies in the trials of a seed, without those of which one diverged."""
    sums = {}
    for job in CANDIDATES:
        trials = rows_of(rows, **settings(replace(job, seed=seed)))
        found = [row["validation_accuracy"] for row in trials if row["method"] in (HARD, LOGITS)]
        if len(found) == 2 and all(found):
            sums[job] = sum(map(float, found))
    return sorted(sums, key=lambda job: -sums[job])


def _describe(job: Job) -> str:
    recipe = job.recipe
    steps = f"{job.images:,} images, {job.epochs} epochs in batches of {recipe.batch_size}"
    return f"{steps}, {recipe.optimizer} at {recipe.learning_rate:g}, seed {job.seed}"


# --- the seeds


def run_seeds(
    job: Job, seeds: int, out: Path, command: str, log: Callable[[str], object] = print
) -> list[dict[str, str]]:
    """Do the job with the seeds that are missing of 0, 1, ... and return its rows; raises as the trials.

    What both students of a seed answer for each test image is kept beside the rows.
    """
    check_whole(1, 100, seeds=seeds)
    with _rows(out / SEEDS, SEED_COLUMNS, command, log) as (file, session):
        answers = PredictionsFile(out / SEEDS)
        for seed in range(seeds):
            own = replace(job, seed=seed)
            if rows_of(file.rows, **settings(own)):
                continue
            with TemporaryDirectory() as scratch:
                report = distill(own, Path(scratch), progress=False, echo=lambda line: None)
                _keep_answers(answers, own, Path(scratch))
            scores = {name: getattr(report, name) for name in SCORES}
            file.append(settings(own) | process() | scores | {"seconds": round(report.seconds, 1)})
            session.write(len(file.rows))
            hard, distilled = scores["baseline_accuracy"], scores["student_accuracy"]
            log(f"seed {seed}: {hard:.2%} by hard labels, {distilled:.2%} distilled")
    of_the_job = {name: value for name, value in settings(job).items() if name != "seed"}
    return rows_of(file.rows, **of_the_job)


def _keep_answers(answers: PredictionsFile, job: Job, run: Path) -> None:
    """Add what the two students that a job left in the folder `run` answer for each test image."""
    test = load_images(job.data).test
    for method, name in STUDENTS.items():
        logits = train.evaluate(models.load(run / name), test, device=job.device, precision=job.precision).logits
        answers.add(_key(settings(job), method), logits.argmax(1), test.labels)


def _key(of_the_job: Mapping[str, Any], method: str) -> str:
    """Under which the answers of a job's student are kept; the values as they are, or as a row has them."""
    texts = {name: to_text(of_the_job[name]) for name in (*JOB_COLUMNS, *RECIPE_COLUMNS)}
    return files.fingerprint([], texts, method)[:16]


def run_controls(
    job: Job, seeds: int, out: Path, cache: Path, command: str, log: Callable[[str], object] = print
) -> None:
    """Train what is missing of the job's controls with seeds 0, 1, ..., and read the test set; raises as the trials."""
    check_whole(1, 100, seeds=seeds)
    with _rows(out / CONTROL_SEEDS, CONTROL_COLUMNS, command, log) as (file, session):
        for own in (replace(job, seed=seed) for seed in range(seeds)):
            missing = [one for one in CONTROLS if not rows_of(file.rows, **settings(own), method=one)]
            for row in train_students(own, missing, cache, test=True) if missing else ():
                file.append(row)
                session.write(len(file.rows))
                log(f"seed {own.seed}: {row['method']} {row.get('error') or format(row['test_accuracy'], '.2%')}")


def gain(rows: Sequence[dict[str, str]], folder: Path) -> tuple[Comparison, str]:
    """The gain in test accuracy over hard labels, paired by seed, and what its interval covers.

    folder: of the rows. Where it has the students' answers, the interval covers test images beside seeds.
    """
    answers = PredictionsFile(folder / SEEDS)
    right = {
        method: {row["seed"]: one.numpy() for row in rows if (one := answers.right(_key(row, method))) is not None}
        for method in STUDENTS
    }
    if all(len(of_seeds) == len(rows) for of_seeds in right.values()):
        return compare_samples(right[LOGITS], right[HARD]), "seeds and test images"
    scores = ({row["seed"]: float(row[name]) for row in rows} for name in ("student_accuracy", "baseline_accuracy"))
    return compare(*scores), "seeds (of some, the students' answers were not kept)"


def table(rows: Sequence[dict[str, str]]) -> str:
    """A line in Markdown for each seed, and one for the means."""
    numbers = [[100 * float(row[name]) for name in SCORES[1:3]] + [float(row["seconds"])] for row in rows]
    named = [(row["seed"], *values) for row, values in zip(rows, numbers, strict=True)]
    means = ("mean", *(sum(values) / len(rows) for values in zip(*numbers, strict=True)))
    lines = ["| seed | hard labels, % | distilled, % | gain, points | seconds |", "| --: | --: | --: | --: | --: |"]
    for name, hard, distilled, seconds in [*named, means]:
        lines.append(f"| {name} | {hard:.2f} | {distilled:.2f} | {distilled - hard:+.2f} | {seconds:.0f} |")
    return "\n".join(lines)


# --- for the lesson


def tried(folder: Path | None = None) -> pd.DataFrame:
    """What every candidate gave with the first tuning seed, in per cent of the validation images, the worst first."""
    rows = read_frame((folder or data_dir() / "results") / TRIALS)
    recipe = ["images", "epochs", "batch_size", "optimizer", "learning_rate", "schedule"]
    first = rows[
        (rows["seed"] == TUNING_SEEDS[0]) & (rows["teacher"] == JOB.teacher) & rows["method"].isin((HARD, LOGITS))
    ]
    both = 100 * first.pivot(index=recipe, columns="method", values="validation_accuracy")
    both["gain"] = both[LOGITS] - both[HARD]
    return both.sort_values(HARD).reset_index().rename_axis(columns=None)


def done(teacher: str = str(JOB.teacher), folder: Path | None = None) -> pd.DataFrame:
    """The job with its seeds, by this teacher, a row each; accuracies, of the test images, lie in [0, 1]."""
    rows = read_frame((folder or data_dir() / "results") / SEEDS)
    return rows[rows["teacher"] == teacher].sort_values("seed", ignore_index=True)


def scores(folder: Path | None = None) -> pd.DataFrame:
    """Test accuracies of the job's students in per cent: a row for each seed, a column for each method and control."""
    job = done(folder=folder).set_index("seed")
    controls = read_frame((folder or data_dir() / "results") / CONTROL_SEEDS)
    by_method = controls[controls["teacher"] == JOB.teacher].pivot(
        index="seed", columns="method", values="test_accuracy"
    )
    table = by_method[list(CONTROLS)]
    table.insert(0, LOGITS, job["student_accuracy"])
    table.insert(0, HARD, job["baseline_accuracy"])
    return (100 * table).rename_axis(columns=None)


# --- the command

Out = Annotated[Path | None, typer.Option(help="Folder of the rows; default: data/results.")]
Other = Annotated[str | None, typer.Option("--teacher", help="Another teacher, by name, for the job's recipe.")]


@contextmanager
def _rows(
    path: Path, names: Sequence[str], command: str, log: Callable[[str], object]
) -> Iterator[tuple[RunsFile, SessionLog]]:
    """The open file of rows, with the log of this call; the folder's README is brought up to date afterwards."""
    file = RunsFile(path, names, log)
    with file.open():
        yield file, SessionLog(path, command, len(file.rows))
    update_readme(path.parent)


def trials(
    out: Out = None,
    cache: Annotated[Path, typer.Option(help="Scratch folder for the teacher's outputs.")] = Path("runs/headline"),
    teacher: Other = None,
) -> None:
    """Try every candidate by hard labels and by logits, on the validation split; or the job with another teacher."""
    run = partial(
        run_trials,
        out=out or data_dir() / "results",
        cache=cache,
        command=called("course.experiments.headline"),
        log=partial(print, flush=True),
    )
    if teacher is not None:
        run([replace(JOB, teacher=teacher, seed=seed) for seed in TUNING_SEEDS], methods=(LOGITS, HIGHER))
        return
    rows = run([replace(job, seed=TUNING_SEEDS[0]) for job in CANDIDATES])
    run([replace(job, seed=TUNING_SEEDS[1]) for job in best(rows)[:FINALISTS]])


def seeds(
    count: Annotated[int, typer.Option("--seeds", min=1, help="How many: 0, 1, ...")] = 5,
    out: Out = None,
    teacher: Other = None,
) -> None:
    """Do the job of `make distill` with several seeds, and print a table."""
    folder = out or data_dir() / "results"
    job = JOB if teacher is None else replace(JOB, teacher=teacher)
    rows = run_seeds(job, count, folder, called("course.experiments.headline"), partial(print, flush=True))
    print(f"\n{table(rows)}")
    if len(rows) > 1:
        found, over = gain(rows, folder)
        print(f"\n{found}, over {over}")


def controls(
    count: Annotated[int, typer.Option("--seeds", min=1, help="How many: 0, 1, ...")] = 5,
    out: Out = None,
    cache: Annotated[Path, typer.Option(help="Scratch folder for the teacher's outputs.")] = Path("runs/headline"),
) -> None:
    """Train the job's students by label smoothing and by the logits of another image, and print their accuracies."""
    folder = out or data_dir() / "results"
    run_controls(JOB, count, folder, cache, called("course.experiments.headline"), partial(print, flush=True))


if __name__ == "__main__":
    run_command(trials=trials, seeds=seeds, controls=controls)
