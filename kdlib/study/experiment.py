"""How runs are made: what all runs of a study share, what those of one seed share, and several runs at a time.

Each seed has a cache of teacher outputs of its own, shared by all methods of that seed. One cache for all seeds would
save little: a ResNet-20 processes 4,000 images/s on two cores, so 10,000 images in 5 views cost 13 s a seed beside
some 15 minutes of training (a ResNet-50 at 450 images/s: 2 minutes). It would cost much: outputs belong to the views
of one augmentation seed, and `fit` has one seed for order and views, so all seeds would see the same images in the
same order, and the spread between them would be too small for the claim that is made. A seed here stands for
everything that could have come out otherwise: which images, in which views and order, from which initial weights.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, NoReturn, TypedDict, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import data, devices, evaluation, files, measure, models, train
from kdlib.data import DataModule, IndexedDataset
from kdlib.errors import DivergedError
from kdlib.hooks import ModelOutput
from kdlib.methods import HardLabels, Method
from kdlib.study import method_specs
from kdlib.study.method_specs import HARD, TeacherKind
from kdlib.study.plans import Budget, Row, RunConfig
from kdlib.study.predictions import PredictionsFile
from kdlib.study.runs_file import BUDGET_COLUMNS, library_versions, machine_info, to_text
from kdlib.teachers import CachedTeacher
from kdlib.workers import (
    SPAWN,
    first_completed,
    process_pool,
    share_cores,
    start_worker,
    threads_of_a_worker,
    torch_threads,
)

QUICK_VALIDATION = 100  # images that `fit` evaluates after an epoch where all of them would take long beside it
LONG_EPOCH = 10  # training images for each validation image: from here on, to evaluate them all costs some 3 %
CONTROL_TEACHER_SEED = 2000  # of untrained and own-size teachers: one for all seeds, as there is one reference

T = TypeVar("T")


class DeviceOptions(TypedDict):
    """Device and precision as the functions of kdlib take them."""

    device: str
    precision: str


class Experiment:
    """What all runs of one study share: budget, data, device and the reference teacher."""

    def __init__(self, budget: Budget, cache: Path) -> None:
        """Load data and teacher. cache: scratch folder for teacher outputs, control teachers and checkpoints.

        Raises what `data.load`, `subset` and `models.load` raise, and ValueError for a teacher of other images or
        classes; the test set is not read.
        """
        self.data = data.load_images(budget.data)
        self.budget = replace(budget, images=budget.images or len(self.data.train))
        self.data.subset(self.num_images)  # raises now if there are not that many
        self.device_config = devices.resolve(budget.device, budget.precision)
        self.reference = models.load(budget.teacher)
        evaluation.check_teacher(self.reference, self.data, **self.device_options)
        self.cache = cache
        datasets = (self.data.train.fingerprint, self.data.validation.fingerprint)
        self.fingerprint = files.fingerprint(self.reference.state_dict(), repr(self.reference), datasets)
        self._example_student = self.build_student(0)

    @property
    def num_images(self) -> int:
        """Training images of each run."""
        return self.budget.images or len(self.data.train)

    @property
    def keeps_history(self) -> bool:
        """Whether each epoch ends with the whole validation split: only where that is cheap beside the epoch."""
        return self.num_images >= LONG_EPOCH * len(self.data.validation)

    @property
    def device_options(self) -> DeviceOptions:
        """Device and precision, the same for everything here."""
        return {"device": str(self.device_config.device), "precision": self.device_config.precision}

    def build_student(self, seed: int) -> nn.Module:
        """A student with the initial weights of this seed."""
        return models.build(
            self.budget.student,
            num_classes=self.data.num_classes,
            in_channels=self.data.in_channels,
            image_size=self.data.image_size,
            seed=seed,
        )

    def make_method(self, config: RunConfig) -> Method:
        """The method of a run; its projectors are not made yet."""
        return config.spec.make_method(config.settings, self._example_student, self.reference)

    @cached_property
    def reference_metrics(self) -> train.Metrics:
        """The reference teacher on the test set: evaluated once for a study, and not before it is needed."""
        return train.evaluate(self.reference, self.data.test, **self.device_options)

    def teacher_network(self, kind: TeacherKind) -> nn.Module:
        """The network of a kind of teacher."""
        if kind is TeacherKind.UNTRAINED:
            return self.untrained_teacher()
        if kind is TeacherKind.SAME_SIZE:
            return self.same_size_teacher()
        return self.reference

    def untrained_teacher(self) -> nn.Module:
        """The reference teacher's architecture with fresh weights."""
        config = dict(models.get_config(self.reference))
        return models.build(config.pop("architecture"), **config, seed=CONTROL_TEACHER_SEED).eval()

    def same_size_teacher(self) -> nn.Module:
        """A teacher of the student's architecture, trained by hard labels on all training images, with start settings.

        It is trained once and kept in the scratch folder; trained again, it has the same weights.
        """
        budget = self.budget
        key = files.fingerprint(
            [], self.fingerprint, budget.student, budget.epochs, budget.optimizer, self.device_options
        )
        path = self.cache / f"own-size-{key[:12]}.safetensors"
        if not path.exists():
            model = self.build_student(CONTROL_TEACHER_SEED)
            train.fit(
                model,
                self.data,
                method=HardLabels(),
                epochs=budget.epochs,
                recipe=method_specs.METHODS[HARD].start_with(budget.optimizer).recipe(optimizer=budget.optimizer),
                seed=CONTROL_TEACHER_SEED,
                test=False,
                progress=False,
                **self.device_options,
            )
            models.save(model, path)
        return models.load(path)

    def run_fingerprint(self, config: RunConfig) -> str:
        """What a finished run is recognized by: a hash of everything that was set, the data and the teacher."""
        return config.fingerprint(self.budget, self.fingerprint)

    def check_rows(self, path: Path, rows: Iterable[Row]) -> None:
        """Raise ValueError unless all rows of a file have this budget, precision, teacher and data."""
        expected = {name: to_text(getattr(self.budget, name)) for name in BUDGET_COLUMNS}
        expected["device"] = str(self.device_config)
        for row in rows:
            differ = [f"{name} {row[name]} (now {value})" for name, value in expected.items() if row[name] != value]
            if differ:
                raise ValueError(
                    f"The runs in {path} were made with {', '.join(differ)}; runs in one file share one budget. "
                    "Give the same options, or choose another folder with --out."
                )
            if row["fingerprint"] != self.run_fingerprint(RunConfig.from_row(row)):
                raise ValueError(
                    f"{path} holds a run of {row['method']}, seed {row['seed']}, made with another teacher or other "
                    "data of the same name. Move the file away, or choose another folder with --out."
                )

    def check_test_set(self, answers: PredictionsFile) -> None:
        """Raise ValueError where the answers of finished runs are for other test images, if these were noted.

        They are in no fingerprint of a run, as a trial must not read them; but the answers of two runs are compared
        image by image.
        """
        if answers.test_set and answers.test_set != self.data.test.fingerprint:
            raise ValueError(
                f"{answers.path} holds answers for other test images than {self.budget.data} has now; runs in one file "
                "share one test set. Restore the images, or choose another folder with --out."
            )

    @contextmanager
    def seed_runner(self, configs: Sequence[RunConfig], runs_path: Path) -> Iterator[SeedRunner]:
        """A runner for the runs of one seed; `configs` are all of them, finished ones too.

        runs_path: the file that the runs go to; with it in the name, no two studies use one folder of outputs. These,
        and checkpoints of unfinished runs, are removed in the end; after an interruption they are found and reused.
        """
        layers = sorted({name for config in configs for name in self.make_method(config).teacher_layers})
        seed, excluded_class = configs[0].seed, configs[0].excluded_class
        budget = replace(self.budget, **self.device_options)  # not "auto", which another machine may resolve otherwise
        key = files.fingerprint([], self.fingerprint, budget, seed, excluded_class, layers)
        folder = self.cache / f"{outputs_of(runs_path)}-seed{seed}-{key[:12]}"
        group = SeedGroup(seed, excluded_class, tuple(layers), folder)
        with closing(SeedRunner(self, group)) as runner:
            yield runner
        shutil.rmtree(group.outputs, ignore_errors=True)

    def remove_outputs(self, runs_path: Path) -> None:
        """Remove all that interrupted sessions left in the scratch folder for the runs of this file."""
        for folder in self.cache.glob(f"{outputs_of(runs_path)}-*"):
            shutil.rmtree(folder, ignore_errors=True)


def outputs_of(runs_path: Path) -> str:
    """How the names of the scratch folders for the runs of this file begin."""
    return f"outputs-{files.fingerprint([], str(runs_path.resolve()))[:8]}"


@dataclass(frozen=True)
class SeedGroup:
    """The runs of one seed: what they share beside the experiment.

    layers: of the reference teacher, those that any of the runs needs. outputs: folder of the teachers' outputs, and of
    the checkpoints.
    """

    seed: int
    excluded_class: int | None
    layers: tuple[str, ...]
    outputs: Path


class SeedRunner:
    """Makes the runs of one seed; they share its images and the outputs of its teachers."""

    def __init__(self, experiment: Experiment, group: SeedGroup) -> None:
        self.experiment, self.group = experiment, group
        subset = experiment.data.subset(experiment.num_images, seed=group.seed)
        excluded = group.excluded_class
        self.data: DataModule = subset if excluded is None else subset.exclude_class(excluded)
        self._teachers: dict[TeacherKind, CachedTeacher] = {}

    def close(self) -> None:
        """Let go of the teachers' outputs, since Windows removes no file that is mapped; `teacher` opens them anew."""
        self._teachers.clear()

    def run(self, config: RunConfig, *, test: bool) -> dict[str, Any]:
        """Train one student and return its row; the test set is read once, afterwards, if `test`, else not at all.

        A run that was interrupted goes on at its last epoch, on a CPU to the bit. Its checkpoint, named in the row, is
        left for whoever has written the row to remove: until then the run is nowhere else. One whose loss is not finite
        gives a row too, without accuracies and with the reason as its error: to leave out the seeds at which a method
        fails would be to choose seeds.
        """
        experiment, budget = self.experiment, self.experiment.budget
        self.teacher(config.spec.teacher)  # before the clock starts: its outputs are shared with other runs
        row = config.to_row(budget)
        row |= {"device": str(experiment.device_config), "threads": torch.get_num_threads()}
        row["fingerprint"] = experiment.run_fingerprint(config)
        started = time.perf_counter()
        row["checkpoint"] = self.checkpoint(config)  # no column
        try:
            result = self._resume(config, row["checkpoint"])
            trained = time.perf_counter()
            metrics = train.evaluate(result.student, self.data.validation, **experiment.device_options)
            row["validation_accuracy"] = metrics.accuracy
            row |= {"history": result.rows} if experiment.keeps_history else {}  # no column: in a file of its own
            row |= self._test_columns(result.student) if test else {}
        except FloatingPointError as error:
            reason = error.reason if isinstance(error, DivergedError) else str(error)
            return row | {"error": reason, "seconds": time.perf_counter() - started}
        row["extra_parameters"] = measure.count_parameters(result.method)
        row["seconds_per_epoch"] = result.seconds / budget.epochs
        return row | {"seconds": result.seconds + time.perf_counter() - trained}

    def checkpoint(self, config: RunConfig) -> Path:
        """Where a run is kept while it is trained; where sums are rounded otherwise, a run begins anew."""
        machine = machine_info(self.experiment.device_config.device)
        rounding = (machine["processor"], machine["gpu"], machine["threads"], library_versions())
        name = files.fingerprint([], self.experiment.run_fingerprint(config), *rounding)
        return self.group.outputs / f"{name[:16]}.checkpoint"

    def _resume(self, config: RunConfig, checkpoint: Path) -> train.Result:
        """Train the student, from the checkpoint if there is one; a checkpoint that is of no use is removed."""
        was_there = checkpoint.exists()
        try:
            return self.fit(config, checkpoint)
        except ValueError:
            if not was_there:
                raise
        checkpoint.unlink(missing_ok=True)
        return self.fit(config, checkpoint)

    def fit(self, config: RunConfig, checkpoint: Path | None = None) -> train.Result:
        """Train the student of a run, without a look at the test set, and go on from its checkpoint if there is one.

        Raises FloatingPointError if a loss is not finite.
        """
        experiment, budget = self.experiment, self.experiment.budget
        validation = self.data.validation
        if not experiment.keeps_history:
            validation = validation.select(torch.arange(min(QUICK_VALIDATION, len(validation))))
        return train.fit(
            experiment.build_student(config.seed),
            replace(self.data, validation=validation, test=cast(IndexedDataset, ForbiddenDataset())),
            teacher=self.teacher(config.spec.teacher),
            method=experiment.make_method(config),
            epochs=budget.epochs,
            recipe=config.settings.recipe(budget.batch_size, budget.optimizer),
            views=budget.views,
            seed=config.seed,
            test=False,  # whoever wants it evaluates the finished student, once
            checkpoint=checkpoint,
            resume=checkpoint is not None,
            progress=False,
            **experiment.device_options,
        )

    def _test_columns(self, student: nn.Module) -> dict[str, Any]:
        teacher, labels = self.experiment.reference_metrics, self.data.test.labels
        metrics = train.evaluate(student, self.data.test, **self.experiment.device_options)
        logits = metrics.logits
        if not torch.isfinite(logits).all():  # -inf, which `evaluate` takes for a mask: the study's networks have none
            raise FloatingPointError("The last step left weights that give no finite logits.")
        columns: dict[str, Any] = {
            "predicted": logits.argmax(1).numpy(),  # no column: it goes to a file of its own
            "test_accuracy": metrics.accuracy,
            "teacher_accuracy": teacher.accuracy,
            "agreement": measure.agreement(logits, teacher.logits),
            "calibration_error": measure.calibration_error(logits, labels),
        }
        if self.group.excluded_class is not None:
            excluded = labels == self.group.excluded_class
            columns["excluded_class_accuracy"] = measure.accuracy(logits[excluded], labels[excluded])
        return columns

    def teacher(self, kind: TeacherKind) -> CachedTeacher | None:
        """The cached outputs of a kind of teacher, computed when they are first needed; None for no teacher."""
        if kind is TeacherKind.NONE:
            return None
        if kind not in self._teachers:
            make = {TeacherKind.SHUFFLED: self._shuffled_teacher, TeacherKind.NORMALIZED: self._normalized_teacher}
            self._teachers[kind] = make[kind]() if kind in make else self._cache(kind)
        return self._teachers[kind]

    def _cache(self, kind: TeacherKind) -> CachedTeacher:
        return CachedTeacher.build(
            self.experiment.teacher_network(kind),
            self.data.train,
            augmentation=self.data.augmentation,
            seed=self.group.seed,
            views=self.experiment.budget.views,
            layers=self.group.layers if kind is TeacherKind.REFERENCE else (),
            directory=self.group.outputs / kind,
            progress=False,
            **self.experiment.device_options,
        )

    def _shuffled_teacher(self) -> CachedTeacher:
        """The reference teacher's outputs, each given for another image."""
        # A cache keeps the sample index of each of its rows: opened with other indices, it gives the outputs of others.
        indices = derangement(self.data.train.indices, self.group.seed)
        return CachedTeacher.open(self.group.outputs / TeacherKind.REFERENCE, self._reference_metadata(), indices)

    def _normalized_teacher(self) -> CachedTeacher:
        """The reference teacher's outputs, the features normalised."""
        folder, indices = self.group.outputs / TeacherKind.REFERENCE, self.data.train.indices
        return NormalizedTeacher.open(folder, self._reference_metadata(), indices)

    def _reference_metadata(self) -> dict[str, Any]:
        self.teacher(TeacherKind.REFERENCE)
        return self._teachers[TeacherKind.REFERENCE].metadata


class NormalizedTeacher(CachedTeacher):
    """Stored outputs whose features are divided by their root mean square, each layer of each sample by its own.

    Features of one class may be several times as long as all others (bags, in the shipped ResNet-50): they then decide
    what is learned. The logits are as they were.
    """

    def __call__(self, batch: Any, layers: Sequence[str] | None = None) -> ModelOutput:
        output = super().__call__(batch, layers)
        features = {name: F.rms_norm(one.float(), one.shape[1:]) for name, one in output.features.items()}
        return replace(output, features=features)


def derangement(indices: Tensor, seed: int) -> Tensor:
    """The same indices in an order in which none keeps its position, a function of the seed.

    Raises ValueError for fewer than two.
    """
    if len(indices) < 2:
        raise ValueError("One image has no other to be exchanged with.")
    cycle = torch.argsort(data.random_bits(indices, "another image", seed))
    deranged = torch.empty_like(indices)
    deranged[cycle] = indices[cycle.roll(1)]  # each position gets the index of the one before it in a cycle
    return deranged


class ForbiddenDataset:
    """Stands for the test set where it must not be read: whatever is read of it is an error."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(f"The {name} of the test set were read before training was over.")

    def __len__(self) -> NoReturn:
        raise RuntimeError("The length of the test set was read before training was over.")


# --- several runs at a time
#
# Small networks gain little from several threads, and on a busy machine these mostly wait for each other. On two quiet
# cores two processes of one thread trained as many students as one of two; with other work beside them, far more. Rows
# are written by one process only, the one that was started.


SeedRuns = tuple[AbstractContextManager["SeedRunner"], Sequence[RunConfig]]  # what opens a seed, and its runs


class WorkerPool:
    """Makes runs, `num_workers` at a time; with one, in this process and with all of its threads.

    Several share threads and cores, and take one GPU after the other unless the device has a number.
    """

    def __init__(self, experiment: Experiment, num_workers: int = 1) -> None:
        self.experiment, self.num_workers = experiment, num_workers
        self._executor: ProcessPoolExecutor | None = None

    @contextmanager
    def open(self) -> Iterator[WorkerPool]:
        """The processes live inside the block; when it is left by an error or Ctrl-C, their unfinished runs end."""
        if self.num_workers == 1:
            yield self
            return
        threads = threads_of_a_worker(self.num_workers)
        numbers: SimpleQueue[int] = SPAWN.SimpleQueue()
        for number in range(self.num_workers):
            numbers.put(number)
        arguments = self.experiment.budget, self.experiment.cache, threads, self.num_workers, numbers
        with process_pool(self.num_workers, _start_worker, *arguments) as self._executor:
            yield self

    def run(self, seeds: Iterable[SeedRuns], *, test: bool) -> Iterator[tuple[RunConfig, dict[str, Any]]]:
        """Yield each run with its row, as they are finished; ChildProcessError when a process was killed.

        seeds: of each seed what opens its runner, and the runs to make; the next one is taken when a process has
        nothing to do. A seed's outputs are removed when all its rows were yielded; after an error they stay, for the
        next session.
        """
        if self._executor is None:
            for opening, configs in seeds:
                with opening as runner:
                    for config in configs:
                        yield config, runner.run(config, test=test)
            return
        try:
            yield from self._run_in_workers(self._executor, seeds, test)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "A process of the study was killed, perhaps because memory ran out. Finished runs are kept: start the "
                f"same command again, with fewer than --workers {self.num_workers} if it happens once more."
            ) from error

    def _run_in_workers(
        self, executor: ProcessPoolExecutor, seeds: Iterable[SeedRuns], test: bool
    ) -> Iterator[tuple[RunConfig, dict[str, Any]]]:
        waiting = (_OpenSeed(*seed) for seed in seeds)
        preparing: dict[Future[None], _OpenSeed] = {}  # one at a time: seeds share the teachers that are trained
        running: dict[Future[dict[str, Any]], tuple[RunConfig, _OpenSeed]] = {}
        postponed: _OpenSeed | None = None
        while True:
            if not preparing and len(running) < (self.num_workers if postponed is None else 1):
                following = postponed or next(waiting, None)
                if following is not None:
                    arguments = following.group, following.kinds, torch.get_num_threads()
                    preparing[executor.submit(prepare_in_worker, *arguments)] = following
            if not preparing and not running:
                return
            pending: list[Future[Any]] = [*preparing, *running]
            try:
                finished = first_completed(pending)
            except KeyboardInterrupt:  # which may come while a run ends: what is finished is to be kept
                for run in [run for run in running if run.done() and run.exception() is None]:
                    yield running[run][0], run.result()
                raise
            beside_others = bool(running)
            # Rows first, and of these the good ones: an error ends the study, and what is finished is to be kept.
            for run in sorted(finished & running.keys(), key=lambda future: future.exception() is not None):
                config, seed = running.pop(run)
                yield config, run.result()
                if not any(seed is other for _, other in running.values()):
                    seed.context.close()
            for preparation in finished & preparing.keys():
                seed = preparing.pop(preparation)
                if preparation.exception() is not None and beside_others:
                    postponed = seed  # perhaps the disk has no room for two seeds: once more, when the other has ended
                    continue
                preparation.result()  # raises what it raised there
                postponed = None
                for config in seed.configs:
                    running[executor.submit(run_in_worker, seed.group, config, test)] = config, seed


class _OpenSeed:
    """A seed whose runs are under way in the worker processes."""

    def __init__(self, opening: AbstractContextManager[SeedRunner], configs: Sequence[RunConfig]) -> None:
        self.context, self.configs = ExitStack(), configs
        self.group = self.context.enter_context(opening).group
        self.kinds = tuple(dict.fromkeys(config.spec.teacher for config in configs))


_worker_experiment: Experiment
_worker_runner: SeedRunner | None = None


def _start_worker(budget: Budget, cache: Path, threads: int, num_workers: int, numbers: SimpleQueue[int]) -> None:
    """Set up a worker process. numbers: from which each of the `num_workers` takes its own."""
    global _worker_experiment
    start_worker(threads)
    devices.take_gpu(budget.device, numbers.get())
    _worker_experiment = Experiment(budget, cache)
    _worker_experiment.data = share_cores(_worker_experiment.data, num_workers)


def prepare_in_worker(group: SeedGroup, kinds: Sequence[TeacherKind], threads: int) -> None:
    """Compute the outputs of a seed's teachers; the other workers find them on the disk.

    threads: those of the process that was started, so that sums are rounded as with one worker.
    """
    with torch_threads(threads), _open_runner(group) as runner:
        for kind in kinds:
            runner.teacher(kind)


def run_in_worker(group: SeedGroup, config: RunConfig, test: bool) -> dict[str, Any]:
    """Make a run in a worker process, and return its row."""
    with _open_runner(group) as runner:
        return runner.run(config, test=test)


def _open_runner(group: SeedGroup) -> closing[SeedRunner]:
    """This worker's runner of a seed; it is closed after each task, as nobody says when the outputs are removed."""
    global _worker_runner
    if _worker_runner is None or _worker_runner.group != group:
        _worker_runner = SeedRunner(_worker_experiment, group)
    return closing(_worker_runner)
