"""What distillation of a detector is worth: settings chosen on validation scenes, then paired seeds; a row a run.

The teacher is trained once and kept in a scratch folder. Each way of learning gets the same number of trials, which see
no test scene. Runs of one seed share training scenes, their order and the student's initial weights. The test scenes
are read once in a run, after its last epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import TensorDataset

from course.detection import centers, scenes
from course.detection.detector import FEATURE_LAYER, METHODS, TASK, Detector, adapter, method_named, normalise, predict
from course.detection.precision import AveragePrecision, average_precision
from course.detection.scenes import Scenes
from course.workers import in_processes
from kdlib import files, measure, train
from kdlib.data import data_dir, seed_for
from kdlib.data.augment import permutation
from kdlib.errors import check_whole
from kdlib.hooks import ModelOutput
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, SessionLog
from kdlib.teachers import FrozenTeacher

TUNING_SEED = 1000  # none of the runs'
TEACHER_RATE = 2e-3
RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2)
# The first of each is tried at every rate, the others at the best one: seven trials for each.
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "hard": tuple({"weight_decay": value} for value in (1e-3, 1e-4, 1e-2, 1e-1)),
    "heat map": tuple(
        {"alpha": alpha, "temperature": temperature, "focus": focus}
        for alpha, temperature, focus in ((0.5, 1.0, 1.0), (0.2, 1.0, 1.0), (0.5, 2.0, 1.0), (0.5, 1.0, 0.0))
    ),
    "features": tuple({"weight": value} for value in (1.0, 0.1, 3.0, 10.0)),
}
TUNED_BY = {"shuffled": "heat map"}  # a control has the settings of what it controls
TIMED = 0.2  # seconds of each of three measurements of a network's latency
CONFIG_COLUMNS = (
    *("student_width", "teacher_width", "scenes", "validation_scenes", "epochs", "batch_size"),
    *("teacher_scenes", "teacher_epochs", "teacher_seed", "method", "seed"),
    *("learning_rate", "weight_decay", "alpha", "temperature", "focus", "weight"),
)
PROCESS_COLUMNS = ("extra_parameters", "seconds", "device", "threads", "error", "fingerprint")
TRIAL_COLUMNS = (*CONFIG_COLUMNS, "validation_ap50", "validation_ap", *PROCESS_COLUMNS)  # nothing of the test scenes
RUN_COLUMNS = (
    *CONFIG_COLUMNS,
    *("validation_ap50", "validation_ap", "test_scenes", "test_ap50", "test_ap75", "test_ap"),
    *("teacher_test_ap50", "teacher_test_ap75", "teacher_test_ap"),
    *("student_parameters", "teacher_parameters", "student_macs", "teacher_macs", "latency_ratio"),
    *PROCESS_COLUMNS,
)


@dataclass(frozen=True)
class Budget:
    """What all runs of a file share.

    Widths: of `Detector`. scenes: for a student's training, the first of the teacher_scenes that the teacher has seen.
    Raises ValueError for what is no whole number, and for a teacher with fewer scenes than its students.
    """

    student_width: int = 8
    teacher_width: int = 28
    scenes: int = 4_000
    validation_scenes: int = 600
    test_scenes: int = 1_000
    epochs: int = 12
    batch_size: int = 64
    teacher_scenes: int = 16_000
    teacher_epochs: int = 5
    teacher_seed: int = 0

    def __post_init__(self) -> None:
        check_whole(0, teacher_seed=self.teacher_seed)
        check_whole(2, batch_size=self.batch_size)
        check_whole(1, **{name: value for name, value in asdict(self).items() if name != "teacher_seed"})
        if self.teacher_scenes < self.scenes:
            raise ValueError(
                f"The teacher's {self.teacher_scenes} scenes hold the student's {self.scenes}: give at least as many."
            )

    def draw(self, split: str) -> Scenes:
        """The scenes of a split."""
        return _draw(split, self.scenes if split == "train" else getattr(self, f"{split}_scenes"))


@dataclass(frozen=True)
class Run:
    """One student: what it is trained by, the seed of its initial weights and order, and its settings."""

    method: str
    seed: int
    learning_rate: float
    weight_decay: float = 1e-3
    alpha: float | None = None
    temperature: float | None = None
    focus: float | None = None
    weight: float | None = None


class TrainedTeacher(NamedTuple):
    """A teacher, its average precision on the test scenes, and a sha256 of its weights."""

    model: Detector
    test: AveragePrecision
    fingerprint: str


@lru_cache(maxsize=6)
def _draw(split: str, count: int) -> Scenes:
    return scenes.draw(split, count)


def as_dataset(drawn: Scenes) -> TensorDataset:
    """Canvases, the maps that a perfect detector would give, and the scenes' numbers: what `fit` trains on."""
    maps = centers.encode(drawn.boxes, drawn.classes, scenes.SIZE)
    return TensorDataset(drawn.canvases, maps, torch.arange(len(drawn)))


def evaluate(model: nn.Module, drawn: Scenes) -> AveragePrecision:
    """The average precision of a detector on these scenes."""
    return average_precision(centers.decode(predict(model, drawn.canvases)), drawn)


# --- the teacher


def trained_teacher(budget: Budget, cache: Path) -> TrainedTeacher:
    """The teacher of a budget, from the folder `cache` or else trained and stored there; a stopped training goes on.

    Its test scenes are read once, when it is stored.
    """
    facts = _teacher_facts(budget)
    path = cache / f"detector-{files.fingerprint([], facts)[:12]}.safetensors"
    with files.lock(path.with_suffix(".lock"), "Another process trains the teacher; this one waits for it.", wait=True):
        if not path.exists():
            _train_teacher(budget, path, facts)
    tensors, metadata = files.load_tensors(path)
    if metadata.get("facts") != facts or not isinstance(metadata.get("test"), list):
        raise ValueError(f"{path} holds another teacher than its name says. Delete it: it is trained again.")
    model = Detector(budget.teacher_width)
    model.load_state_dict(tensors)
    return TrainedTeacher(model.eval(), AveragePrecision(*metadata["test"]), files.fingerprint(tensors))


def _teacher_facts(budget: Budget) -> dict[str, Any]:
    names = ("teacher_width", "scenes", "test_scenes", "batch_size", "teacher_scenes", "teacher_epochs", "teacher_seed")
    drawn = {split: budget.draw(split).fingerprint for split in ("train", "test")}
    return {**{name: getattr(budget, name) for name in names}, **drawn, "rate": TEACHER_RATE}


def _train_teacher(budget: Budget, path: Path, facts: Mapping[str, Any]) -> None:
    model = _initial(budget.teacher_width, budget.teacher_seed)
    result = train.fit(
        model,
        as_dataset(scenes.draw("train", budget.teacher_scenes)),
        method=method_named("hard"),
        epochs=budget.teacher_epochs,
        recipe=_recipe(budget, TEACHER_RATE),
        seed=budget.teacher_seed,
        checkpoint=path.with_suffix(".checkpoint"),
        resume=True,
        progress=False,
        **_OPTIONS,
    )
    test = evaluate(model, budget.draw("test"))
    files.save_tensors(path, model.state_dict(), {"facts": facts, "test": astuple(test), "seconds": result.seconds})
    path.with_suffix(".checkpoint").unlink(missing_ok=True)


# --- a student

_OPTIONS: dict[str, Any] = {"task": TASK, "adapter": adapter(), "device": "cpu", "precision": "fp32"}


def _initial(width: int, seed: int) -> Detector:
    """A detector whose weights are a function of the seed; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "initial weights"))
        return Detector(width)


def _recipe(budget: Budget, rate: float, weight_decay: float = 1e-3) -> train.Recipe:
    return train.Recipe("adamw", rate, weight_decay=weight_decay, batch_size=budget.batch_size)


def stored_answers(
    teacher: nn.Module, drawn: Scenes, *, layers: Sequence[str] = (), shuffled: bool = False
) -> Callable[[Any], ModelOutput]:
    """A teacher that answers from memory: a function from a batch (canvases, maps, numbers) to its maps and layers.

    layers: whose outputs are stored too, in 16 bits. shuffled: the control; each scene gets the answer to another one,
    always the same, and none its own. Raises ValueError for a single scene that is to be shuffled.
    """
    frozen = FrozenTeacher(teacher, read_inputs=normalise)
    outputs = [frozen(part, layers) for part in drawn.canvases.split(250)]
    maps = torch.cat([one.logits for one in outputs])
    features = {name: torch.cat([one.features[name].half() for one in outputs]) for name in layers}
    order = torch.arange(len(drawn))
    if shuffled:
        if len(drawn) < 2:
            raise ValueError("One scene has no other scene whose answer it could get: draw at least 2.")
        mixed = permutation(order, "other scenes")
        order = torch.empty_like(mixed).index_copy_(0, mixed, mixed.roll(1))

    def answer(batch: Any) -> ModelOutput:
        numbers = order[batch[2]]
        return ModelOutput(maps[numbers], {name: outputs[numbers] for name, outputs in features.items()})

    return answer


def run_student(budget: Budget, run: Run, cache: Path, *, test: bool) -> dict[str, Any]:
    """Train one student and measure it; the row of a file, by column.

    test: whether the test scenes are read, once; a trial reads none. A run that diverges has a row with its error.
    """
    started = time.perf_counter()
    teacher = trained_teacher(budget, cache)
    row = {**asdict(budget), **asdict(run), "fingerprint": run_fingerprint(budget, run, teacher)}
    row |= {"device": "cpu, float32", "threads": torch.get_num_threads(), "extra_parameters": 0}
    try:
        result = train_student(budget, run, teacher)
    except FloatingPointError as error:
        return {**row, "seconds": time.perf_counter() - started, "error": str(error)}
    student = result.student
    row["extra_parameters"] = sum(p.numel() for p in result.method.parameters())
    validation = evaluate(student, budget.draw("validation"))
    row |= {"validation_ap50": validation.ap50, "validation_ap": validation.ap}
    if test:
        found = evaluate(student, budget.draw("test"))
        row |= {f"test_{name}": value for name, value in asdict(found).items()}
        row |= {f"teacher_test_{name}": value for name, value in asdict(teacher.test).items()}
        row |= costs(student, teacher.model)
    return {**row, "seconds": time.perf_counter() - started}


def train_student(budget: Budget, run: Run, teacher: TrainedTeacher) -> train.Result:
    """Train one student as its run says; a training that diverges raises FloatingPointError."""
    drawn = budget.draw("train")
    settings = {name: getattr(run, name) for name in ("alpha", "temperature", "focus", "weight")}
    return train.fit(
        _initial(budget.student_width, run.seed),
        as_dataset(drawn),
        teacher=_teacher_for(run.method, teacher.model, drawn),
        method=method_named(run.method, **{name: value for name, value in settings.items() if value is not None}),
        epochs=budget.epochs,
        recipe=_recipe(budget, run.learning_rate, run.weight_decay),
        seed=run.seed,
        progress=False,
        **_OPTIONS,
    )


def _teacher_for(method: str, teacher: nn.Module, drawn: Scenes) -> Callable[[Any], ModelOutput] | None:
    if method == "hard":
        return None
    layers = (FEATURE_LAYER,) if method == "features" else ()
    return stored_answers(teacher, drawn, layers=layers, shuffled=method == "shuffled")


def costs(student: nn.Module, teacher: nn.Module) -> dict[str, float]:
    """Parameters, multiply-accumulates, and by how many times the teacher's fastest pass takes longer.

    A pass is one canvas in one thread. The fastest of many, in turn, as other programs can only slow a pass down.
    """
    shape = (1, scenes.SIZE, scenes.SIZE)
    times: dict[str, list[float]] = {"student": [], "teacher": []}
    for _ in range(3):
        for name, model in {"student": student, "teacher": teacher}.items():
            times[name] += measure.latency(model, shape, threads=1, min_run_time=TIMED).runs
    counted = {
        f"{name}_{what}": float(value)
        for name, model in {"student": student, "teacher": teacher}.items()
        for what, value in {"parameters": measure.count_parameters(model), "macs": measure.macs(model, shape)}.items()
    }
    return {**counted, "latency_ratio": min(times["teacher"]) / min(times["student"])}


def run_fingerprint(budget: Budget, run: Run, teacher: TrainedTeacher) -> str:
    """By what a finished run is recognized: all settings, the scenes and the teacher's weights."""
    drawn = [budget.draw(split).fingerprint for split in ("train", "validation")]
    return files.fingerprint([], asdict(budget), asdict(run), drawn, teacher.fingerprint)[:16]


# --- all of them


@dataclass(frozen=True)
class Experiment:
    """A budget, where rows are written (out), where the teacher is kept (cache), and how many runs at a time."""

    budget: Budget
    out: Path
    cache: Path
    workers: int = 1

    @property
    def runs_path(self) -> Path:
        """The file of the runs."""
        return self.out / f"detection-{self.budget.student_width}-{self.budget.teacher_width}.csv"

    @property
    def trials_path(self) -> Path:
        """The file of the trials."""
        return self.out / f"detection-trials-{self.budget.student_width}-{self.budget.teacher_width}.csv"

    def run(self, seeds: int, command: str, log: Callable[[str], object] = print) -> list[dict[str, str]]:
        """Choose the settings, then run all methods with these many seeds; what is finished is not repeated.

        Returns the rows of this budget. Raises ValueError where another process writes to the same files.
        """
        check_whole(1, 1_000, seeds=seeds, workers=self.workers)
        files.ensure_writable(self.cache)
        teacher = trained_teacher(self.budget, self.cache)
        log(f"teacher: AP50 {teacher.test.ap50:.1%} on the test scenes")
        with RunsFile(self.trials_path, TRIAL_COLUMNS, log).open() as trials:
            chosen = self._choose(trials, teacher, command, log)
        planned = [
            replace(chosen[TUNED_BY.get(method, method)], method=method, seed=seed)
            for seed in range(seeds)
            for method in METHODS
        ]
        with RunsFile(self.runs_path, RUN_COLUMNS, log).open() as runs:
            finished = self._execute(planned, runs, teacher, command, log, test=True)
        update_readme(self.out)
        return finished

    def _choose(
        self, trials: RunsFile, teacher: TrainedTeacher, command: str, log: Callable[[str], object]
    ) -> dict[str, Run]:
        """The best of the trials of each method, by AP50 on the validation scenes."""
        first = [Run(name, TUNING_SEED, rate, **settings[0]) for name, settings in SETTINGS.items() for rate in RATES]
        rows = self._execute(first, trials, teacher, command, log, test=False)
        best = _best_by_method(first, rows)
        second = [replace(best[name], **other) for name, settings in SETTINGS.items() for other in settings[1:]]
        rows += self._execute(second, trials, teacher, command, log, test=False)
        chosen = _best_by_method([*first, *second], rows)
        for run in chosen.values():
            log(f"chosen: {run}")
        return chosen

    def _execute(
        self,
        planned: Sequence[Run],
        file: RunsFile,
        teacher: TrainedTeacher,
        command: str,
        log: Callable[[str], object],
        *,
        test: bool,
    ) -> list[dict[str, str]]:
        """Do what is missing in a file, and return its rows for these runs, in their order."""
        names = [run_fingerprint(self.budget, run, teacher) for run in planned]
        done = {row["fingerprint"] for row in file.rows}
        missing = [run for run, name in zip(planned, names, strict=True) if name not in done]
        if missing:
            session = SessionLog(file.path, command, len(file.rows))
            for row in self._rows(missing, test):
                file.append(row)
                session.write(len(file.rows))
                score = row.get("test_ap50" if test else "validation_ap50")
                shown = row.get("error") if score is None else f"AP50 {score:.1%}"
                log(f"{row['method']}, seed {row['seed']}, rate {row['learning_rate']:g}: {shown}")
        rows = {row["fingerprint"]: row for row in file.rows}
        return [rows[name] for name in names]

    def _rows(self, runs: Iterable[Run], test: bool) -> Iterator[dict[str, Any]]:
        if self.workers == 1:
            for run in runs:
                yield run_student(self.budget, run, self.cache, test=test)
            return
        train_one = partial(run_student, self.budget, cache=self.cache, test=test)
        for _, row in in_processes(train_one, runs, self.workers):
            yield row


def _best_by_method(runs: Sequence[Run], rows: Sequence[Mapping[str, str]]) -> dict[str, Run]:
    """Of each method the run with the highest AP50 on validation; the first of equals. ValueError if all diverged."""
    best: dict[str, tuple[float, Run]] = {}
    for run, row in zip(runs, rows, strict=True):
        score = float(row["validation_ap50"] or -1)
        if score > best.get(run.method, (-1.0, run))[0]:
            best[run.method] = (score, run)
    missing = {run.method for run in runs} - best.keys()
    if missing:
        raise ValueError(f"All trials of {', '.join(sorted(missing))} diverged. Try lower learning rates.")
    return {method: run for method, (_, run) in best.items()}


def default_folder() -> Path:
    """Where results are kept: data/results."""
    return data_dir() / "results"
