"""A search from beginning to end: `run`, and what it found."""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdlib import evaluation, files, models
from kdlib.data import DataModule
from kdlib.distiller import Distiller
from kdlib.errors import LARGEST_WHOLE, as_whole, check_flags, check_kind, check_whole, unknown_name
from kdlib.methods import Method
from kdlib.search import loop
from kdlib.search.limits import CostTable, Limits, largest_allowed
from kdlib.search.space import (
    Choice,
    Distribution,
    Space,
    check_space,
    default_space,
    find_method,
    settings_of,
    students_of,
)
from kdlib.search.storage import Storage, load_optuna, open_storage
from kdlib.search.task import Task, TaskRunner, build_student, teacher_fingerprint
from kdlib.search.trials import (
    COMPLETE,
    DIVERGED,
    INFEASIBLE,
    PRUNED,
    PRUNERS,
    SAMPLERS,
    Strategy,
    Trials,
    check_identity,
)
from kdlib.search.workers import Runner, open_runners
from kdlib.study.method_specs import Settings, TeacherKind
from kdlib.workers import refuse_without_main_guard

if TYPE_CHECKING:
    import pandas as pd

TUNING_SEED = 1000  # of the trainings, plus the search's own seed: far from the seeds that judge
FEWEST_FOR_IMPORTANCE = 4
STUDY = "search"  # its name in the storage, where `search` is given no other
GOOD_TRIALS = 5  # that optuna's importance should rest on at least


@dataclass(frozen=True)
class Best:
    """The complete trial with the highest validation accuracy, which the choice flatters: see `judge`."""

    trial: int
    validation_accuracy: float
    student: str
    settings: Settings
    params: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.student}: {self.settings}"


@dataclass(frozen=True)
class Found:
    """What a search found.

    rows: one dictionary a trial. importance: of each setting, summing to 1; empty for too few complete trials, and
    where the space has one setting alone.
    seconds: of this call, with what it resumed not counted.
    """

    task: Task
    space: dict[str, Distribution]
    strategy: Strategy
    limits: Limits
    rows: tuple[dict[str, Any], ...]
    importance: dict[str, float]
    latencies: dict[str, float]
    storage: Storage
    seconds: float
    workers: int = 1

    @cached_property
    def best(self) -> Best:
        """The best trial; ValueError if none was trained to its end."""
        complete = [row for row in self.rows if row["state"] == COMPLETE]
        if not complete:
            states = {state: self.count(state) for state in (PRUNED, DIVERGED, INFEASIBLE)}
            told = ", ".join(f"{count} {state}" for state, count in states.items() if count)
            raise ValueError(f"No trial was trained to its end ({told or 'none at all'}). Give the search more trials.")
        row = max(complete, key=lambda one: (one["validation_accuracy"], -one["trial"]))
        params = {name: row[name] for name in self.space}
        settings = settings_of(params, self.task.spec)
        return Best(row["trial"], row["validation_accuracy"], row["student"], settings, params)

    @property
    def trials(self) -> pd.DataFrame:
        """All trials as a table, by number."""
        import pandas as pd

        return pd.DataFrame(list(self.rows)).set_index("trial")

    @property
    def cost(self) -> float:
        """Epochs that were trained; of another network, as many of the default student as have the same MACs."""
        return sum(row["cost"] for row in self.rows)

    @property
    def tuning_seed(self) -> int:
        """The seed of all trials: of their images, order, views and initial weights."""
        return TUNING_SEED + self.strategy.seed

    def count(self, state: str) -> int:
        """How many trials are in a state."""
        return sum(row["state"] == state for row in self.rows)

    def build_student(self, seed: int = 0) -> nn.Module:
        """A student of the best architecture with fresh weights."""
        return build_student(self.task.data, self.best.student, seed, self.task.stem)

    def make_method(self, student: nn.Module) -> Method:
        """The method with the best settings, for `train.fit`."""
        return self.task.spec.make_method(self.best.settings, student, self.task.teacher)  # type: ignore[arg-type]

    def save(self, folder: str | Path) -> None:
        """Write report.md, trials.csv, search.json and search.png."""
        from kdlib.search.report import write

        write(Path(folder), self)

    def __str__(self) -> str:
        states = {state: self.count(state) for state in (COMPLETE, PRUNED, DIVERGED, INFEASIBLE)}
        told = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        return (
            f"{self.best}, validation accuracy {self.best.validation_accuracy:.2%} in trial {self.best.trial} "
            f"({told}; {self.cost:,.0f} epochs). One run, and the best of many: judge it with fresh seeds."
        )


def run(
    data: DataModule,
    *,
    teacher: nn.Module | str | None = None,
    student: str | None = "resnet8",
    method: str = "kd",
    space: Space | None = None,
    trials: int = 27,
    epochs: int = 15,
    images: int | None = None,
    views: int = 5,
    sampler: str = "tpe",
    pruner: str | None = "hyperband",
    max_macs: int | None = None,
    max_latency: float | None = None,
    seed: int = 0,
    storage: Storage = None,
    workers: int = 1,
    device: str = "auto",
    precision: str = "auto",
    stem: str = "stride2",
    progress: bool = True,
) -> Found:
    """Search the settings of a method, and the student's width and depth, by validation accuracy.

    teacher: a network or the name of one; it runs once on all views, and trials read its stored outputs. student: an
    architecture of `models.build`; None searches width and depth of a ResNet for small images. space: ranges by
    setting; default, `default_space`. trials: that are trained; networks beyond max_macs (for one image) or max_latency
    (seconds for one image, one thread, PyTorch, this machine) are not trained and not counted.
    images: training images, drawn by the seed; default, all of the data. sampler: "tpe" (Bergstra et al. 2011, in
    optuna's multivariate form) or "random". pruner: "hyperband" (Li et al. 2018) stops trials after 1, 3, 9, ...
    epochs; None.
    seed: the same one gives the same trials, with the same number of workers and threads; with more workers the sampler
    knows less when it chooses. storage: see `storage.open_storage`; the same call goes on with a search that was
    killed, or has fewer trials. workers: trainings at a time, each in a process of its own. stem: of students that
    torchvision made, "imagenet" for large images, see `models.build`.
    The test set is not read.
    Raises ImportError without optuna, ValueError for settings that make no sense or differ from those of a stored
    search, OSError for a storage that cannot be used, ChildProcessError when a worker is killed, RuntimeError in a
    worker that runs the caller's script anew.
    """
    refuse_without_main_guard("search.run")
    checked = check(
        data,
        teacher=teacher,
        student=student,
        method=method,
        space=space,
        trials=trials,
        epochs=epochs,
        images=images,
        views=views,
        sampler=sampler,
        pruner=pruner,
        max_macs=max_macs,
        max_latency=max_latency,
        seed=seed,
        device=device,
        precision=precision,
        stem=stem,
    )
    check_whole(workers=workers)
    check_flags(progress=progress)
    return search(*checked, storage, workers=workers, progress=progress)


def check(
    data: DataModule,
    *,
    teacher: nn.Module | str | None,
    student: str | None,
    method: str,
    space: Space | None = None,
    trials: int,
    epochs: int,
    images: int | None,
    views: int,
    sampler: str,
    pruner: str | None,
    max_macs: int | None,
    max_latency: float | None,
    seed: int,
    device: str,
    precision: str,
    stem: str = "stride2",
) -> tuple[Task, dict[str, Distribution], Strategy, Limits]:
    """What `search` is given, from the settings of `run`; raises as `run` does, before anything is written."""
    load_optuna()
    check_kind("a kdlib.data.DataModule, such as data.load('fashion-mnist')", DataModule, data=data)
    trials, epochs, views = as_whole(trials=trials), as_whole(epochs=epochs), as_whole(views=views)
    seed = as_whole(0, LARGEST_WHOLE - TUNING_SEED, seed=seed)
    images = images if images is None else as_whole(images=images)
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    if pruner is not None and (not isinstance(pruner, str) or pruner not in PRUNERS):
        raise unknown_name("pruner", pruner, (*PRUNERS, "None"))
    limits = Limits(max_macs, max_latency)
    space = _resolve_space(space, method, student)
    student = student or "resnet8"
    task = _make_task(data, teacher, method, student, space, images, epochs, views, device, precision, stem)
    strategy = Strategy(sampler, pruner, seed, epochs, count=trials)
    if max_macs is not None:
        largest_allowed(CostTable(data, False, stem).of(students_of(space) or [task.student]), Limits(max_macs))
    return task, space, strategy, limits


def _resolve_space(space: Space | None, method: str, student: str | None) -> dict[str, Distribution]:
    """The space, checked; ValueError where it and `student` do not go together."""
    spec = find_method(method)
    given = default_space(method, student=student is None) if space is None else space
    check_space(given, spec)
    if student is None and not {"width", "depth"} & set(given):
        raise ValueError(
            "Without a student its width and depth are searched, and the space has neither. Name a student, or take "
            f"default_space({method!r}, student=True)."
        )
    if student is not None and {"width", "depth"} & set(given):
        raise ValueError(
            f"The student is {student!r}, and the space has width or depth too. Leave them out, or take student=None."
        )
    return dict(given)


def _make_task(
    data: DataModule,
    teacher: nn.Module | str | None,
    method: str,
    student: str,
    space: Space,
    images: int | None,
    epochs: int,
    views: int,
    device: str,
    precision: str,
    stem: str,
) -> Task:
    spec = find_method(method)
    if isinstance(teacher, str):
        teacher = models.load(teacher)
    check_kind("a network, or the name of a trained one", nn.Module | None, teacher=teacher)
    needs_teacher = spec.teacher is not TeacherKind.NONE
    if needs_teacher and teacher is None:
        raise ValueError(f"{method} needs a teacher: give one, or search the settings of 'hard'.")
    data.subset(images)  # raises now if there are not that many
    layers = space.get("layers")
    start = (spec.start.layers,) if spec.start.layers else ()
    words = tuple(dict.fromkeys([*start, *(layers.values if isinstance(layers, Choice) else ())]))
    if not needs_teacher:
        teacher = None
    task = Task(data, teacher, method, student, images, epochs, views, words, device, precision, stem)
    if teacher is not None:
        evaluation.check_teacher(teacher, data, device=device, precision=precision)
    network = build_student(data, student, 0, stem)  # raises now for an unknown one
    if teacher is not None:
        _check_layers(task, network, teacher)
    return task


def _check_layers(task: Task, student: nn.Module, teacher: nn.Module) -> None:
    """Raise ValueError for layers that the method cannot look at: a trial with them would fail each time anew."""
    example = next(task.data.train.select(torch.arange(2)).iter_batches(2))
    for word in task.layers:
        try:
            method = task.spec.make_method(replace(task.spec.start, layers=word), student, teacher)
            Distiller(student, teacher, method, example=example)
        except ValueError as error:
            raise ValueError(f"{task.method} cannot take the layers {word!r}: {error}") from error


def search(
    task: Task,
    space: dict[str, Distribution],
    strategy: Strategy,
    limits: Limits,
    storage: Storage,
    *,
    workers: int,
    progress: bool,
    name: str = STUDY,
    latencies: Mapping[str, float] | None = None,
) -> Found:
    """A search of this strategy, under this name in the storage; what `run` does when all is checked."""
    started = time.perf_counter()
    optuna = load_optuna()
    with open_storage(storage) as (store, shared), scratch_folder(storage) as cache:
        known = _stored_latencies(optuna, store, name) if latencies is None else latencies
        costs = CostTable(task.data, limits.max_latency is not None, task.stem, dict(known))
        students = students_of(space) or [task.student]
        reference = largest_allowed(costs.of(students), limits)  # raises if no network keeps to the limits
        task = replace(task, student=reference)
        identity = identity_of(task, space, strategy, limits)
        trials = Trials(name, store, strategy, space, reference, costs, limits, identity, shared=shared)
        if costs.latencies:
            trials.study.set_user_attr("latencies", costs.latencies)
        tuning_seed = TUNING_SEED + strategy.seed
        with open_runners(task, cache, workers) as runners, loop.progress_bar(trials, name, progress) as bar:
            prepare(task, cache, runners, tuning_seed)
            loop.work_off(trials, runners, bar, task.spec, tuning_seed)
        seconds = time.perf_counter() - started
        rows, shares = tuple(trials.rows), importance(trials)
    return Found(task, space, strategy, limits, rows, shares, costs.latencies, storage, seconds, workers)


def measure_latencies(
    task: Task, space: dict[str, Distribution], strategy: Strategy, limits: Limits, storage: Storage
) -> dict[str, float] | None:
    """The latencies that `search` is given, before it is begun; None where there is no limit to them.

    Raises as `search` does, for limits that no network keeps to and for a storage that cannot be used: a search that
    replaces an earlier one is refused while that is still there.
    """
    with open_storage(storage) as (store, _):
        if limits.max_latency is None:
            return None
        known = _stored_latencies(load_optuna(), store, STUDY, identity_of(task, space, strategy, limits))
        costs = CostTable(task.data, True, task.stem, dict(known))
        largest_allowed(costs.of(students_of(space) or [task.student]), limits)
    return costs.latencies


def check_same_search(
    task: Task, space: dict[str, Distribution], strategy: Strategy, limits: Limits, storage: Storage
) -> None:
    """Raise ValueError where the storage holds another search; what `search` would do when it is begun."""
    optuna = load_optuna()
    with open_storage(storage) as (store, _):
        if STUDY in optuna.get_all_study_names(store):
            stored = optuna.load_study(study_name=STUDY, storage=store).user_attrs.get("identity")
            check_identity(stored, identity_of(task, space, strategy, limits))


def _stored_latencies(
    optuna: Any, store: Any, name: str, identity: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Those that a search has measured; none where it was on other images than the one with this identity."""
    if name not in optuna.get_all_study_names(store):
        return {}
    stored = optuna.load_study(study_name=name, storage=store).user_attrs
    if identity is not None and any(stored.get("identity", {}).get(one) != identity[one] for one in ("data", "stem")):
        return {}
    return stored.get("latencies", {})


def identity_of(task: Task, space: Space, strategy: Strategy, limits: Limits) -> dict[str, Any]:
    """What makes a search the one that it is; more trials may be added, by other workers."""
    data = task.data
    return {
        "data": files.fingerprint([], data.train.fingerprint, data.validation.fingerprint)[:12],
        "augmentation": data.augmentation.to_dict(),
        "teacher": teacher_fingerprint(task.teacher),
        "student": "searched" if students_of(space) else task.student,
        "method": task.method,
        "space": {setting: repr(space[setting]) for setting in sorted(space)},
        **{name: getattr(task, name) for name in ("num_images", "epochs", "views", "device", "precision", "stem")},
        **{setting: getattr(strategy, setting) for setting in ("sampler", "pruner", "seed")},
        "max_macs": limits.max_macs,
        "max_latency": limits.max_latency,
    }


def prepare(task: Task, cache: Path, runners: list[Runner], seed: int) -> None:
    """Store the teacher's outputs for a seed; runners in other processes find them on the disk."""
    here = next((one for one in runners if isinstance(one, TaskRunner)), None)
    if here is not None:
        here.prepare(seed)
    else:
        with closing(TaskRunner(task, cache)) as passing:
            passing.prepare(seed)


@contextmanager
def scratch_folder(storage: Storage) -> Iterator[Path]:
    """A folder for the teacher's outputs: beside the storage, where that is a folder; it is removed in the end."""
    if storage is None or "://" in str(storage) or str(storage).startswith("journal:"):
        # Windows removes no file that is still mapped: it stays, and what was found is given back all the same.
        with tempfile.TemporaryDirectory(prefix="kdlib-search-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    folder = Path(storage) / ".outputs"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def importance(trials: Trials) -> dict[str, float]:
    """The share of each setting in being among the best complete trials, by PED-ANOVA (Watanabe et al. 2023).

    Empty for fewer than 4 complete trials, and for a space of one setting.
    """
    optuna = load_optuna()
    complete = sum(row["state"] == COMPLETE for row in trials.rows)
    if complete < FEWEST_FOR_IMPORTANCE or len(trials.space) < 2:
        return {}
    best = min(0.5, max(0.1, GOOD_TRIALS / complete))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few trials, which the report says itself
        return optuna.importance.get_param_importances(trials.study, evaluator=evaluator, params=list(trials.space))
