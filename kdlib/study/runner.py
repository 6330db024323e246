"""A whole study: tune the settings, then make the runs that are missing, one row at a time.

Started again after a kill, it goes on: finished runs are recognized by the fingerprint of everything that was set, and
the run that was under way goes on at its last epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from kdlib import files
from kdlib.batches import full_batches
from kdlib.data import data_dir
from kdlib.errors import check_whole
from kdlib.measure import clock
from kdlib.study import plans
from kdlib.study.experiment import Experiment, SeedRuns, WorkerPool, outputs_of
from kdlib.study.history import HistoryFile
from kdlib.study.method_specs import HARD, METHODS, TRIALS_PER_METHOD, MethodSpec, Settings
from kdlib.study.plans import PLANS, TRIALS, TUNING_SEEDS, Budget, Plan, Row, RunConfig, TunedSettings, row_key
from kdlib.study.predictions import PredictionsFile
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RUN_COLUMNS, TIME_COLUMNS, TRIAL_COLUMNS, RunsFile, SessionLog, read_rows, to_text
from kdlib.workers import refuse_without_main_guard, threads_of_a_worker, torch_threads

FEW_STEPS = 100  # of a run: in fewer a network hardly learns anything


@dataclass(frozen=True)
class StudyConfig:
    """What a study consists of; the command line has one option for each field.

    out: folder of the results, default data/results. cache: scratch folder for teacher outputs (some gigabytes for each
    seed under way: one, or at most as many as there are workers) and checkpoints of unfinished runs; they are removed
    when a seed is done. trials_file: trials to take the settings from, made for the same student, teacher, optimiser
    and batch size with other images or epochs (--choices); with `retune`, for the plan "short" alone, only the best of
    each family are taken from it, of any budget, and their settings are tuned anew. defaults: no trials, the start
    settings of each method.
    excluded_classes: for the plan "missing-class" (--left-out). workers: how many runs at a time, each in a process of
    its own that has its share of torch's threads.
    Raises TypeError for a plan by its name, ValueError for seeds that serve twice, options that contradict each other,
    or less than one worker.
    """

    plan: Plan = PLANS["full"]
    budget: Budget = field(default_factory=Budget)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    out: Path | None = None
    cache: Path = Path("runs/study")
    trials_file: Path | None = None
    retune: bool = False
    defaults: bool = False
    excluded_classes: Sequence[int] = (3,)
    tuning_seeds: Sequence[int] = TUNING_SEEDS
    workers: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.plan, Plan):
            raise TypeError(f"plan is a Plan, such as plans.find('full'); got {self.plan!r}.")
        seeds = [*self.seeds, *self.tuning_seeds]
        if not self.seeds or not self.tuning_seeds or len(set(seeds)) != len(seeds):
            raise ValueError(
                f"Seeds of the study ({list(self.seeds)}) and of the trials ({list(self.tuning_seeds)}) must be there, "
                "and all be different: settings tuned on a seed must not be judged on it."
            )
        if self.retune and self.trials_file is None:
            raise ValueError("--retune takes the best of each family from --choices FILE: name that file.")
        if self.retune and not self.plan.chooses_methods:
            raise ValueError(
                "--retune is for the plan short, which takes the best of each family from --choices; this plan has "
                "methods of its own. Leave out both options: their settings are then tuned anew."
            )
        excluded = self.excluded_classes
        if len(set(excluded)) != len(excluded):
            raise ValueError(f"--left-out names a class twice: {', '.join(map(str, excluded))}. Name each once.")
        check_whole(workers=self.workers)
        if self.defaults and self.trials_file is not None:
            raise ValueError("--defaults and --choices contradict each other: name one.")

    @property
    def results_dir(self) -> Path:
        """The folder of the results."""
        return self.out or data_dir() / "results"

    @property
    def needs_tuning(self) -> bool:
        """Whether it begins with trials of its own."""
        return not self.defaults and (self.trials_file is None or self.retune)


def run(
    config: StudyConfig,
    *,
    progress: bool = True,
    log: Callable[[str], object] = print,
    command: str = "kdlib.study.runner.run",
) -> Path:
    """Make all runs that are missing and return the CSV file of the results.

    command: what the JSON file beside it calls this session. Raises ValueError when files on disk belong to another
    study, RuntimeError in a worker that runs the caller's script anew, and what `data.load` and `models.load` raise.
    """
    refuse_without_main_guard("kdlib.study.runner.run")
    study = _Study(config)
    with ExitStack() as stack:
        runs = stack.enter_context(RunsFile(study.runs_path, RUN_COLUMNS, log).open())
        trials = None
        if config.needs_tuning:
            trials = stack.enter_context(RunsFile(study.trials_path, TRIAL_COLUMNS, log).open())
        trial_rows = [] if trials is None else trials.rows
        study.check_files(runs.rows, trial_rows)
        bar = stack.enter_context(tqdm(disable=not progress, unit="run", bar_format=_BAR_FORMAT))
        with WorkerPool(study.experiment, config.workers).open() as pool:
            estimate = TimeEstimate(study.experiment, [*trial_rows, *runs.rows], config.workers)
            executor = _Executor(study.experiment, pool, bar, estimate, command)
            if trials is not None:
                executor.set_remaining(study.runs_left(runs.rows) + study.trials_left(trials.rows))
                study.tune(executor, trials)
            configs = study.run_configs(runs.rows)
            executor.set_remaining(study.runs_left(runs.rows))
            executor.run(configs, runs, test=True)
        for file in filter(None, (trials, runs)):  # while their locks are held: no other study uses these outputs
            study.experiment.remove_outputs(file.path)
    update_readme(config.results_dir)
    return study.runs_path


def dry_run(config: StudyConfig) -> str:
    """How many runs there are and are left, of how many steps, and about how long they will take; nothing is written.

    Raises ValueError where `run` would refuse to begin.
    """
    study = _Study(config)
    rows = read_rows(study.runs_path, RUN_COLUMNS)
    trial_rows = read_rows(study.trials_path, TRIAL_COLUMNS) if config.needs_tuning else []
    study.check_files(rows, trial_rows)
    trials_left = study.trials_left(trial_rows) if config.needs_tuning else Counter[str]()
    if config.needs_tuning and not trials_left:
        study.take_best(trial_rows)
        study.run_configs(rows)
    parts = [("runs of the study", study.runs_path, study.num_runs, study.runs_left(rows))]
    if config.needs_tuning:
        parts.insert(0, ("trials on the validation split", study.trials_path, study.num_trials, trials_left))
    lines = [
        f"{total} {what}, {total - left.total()} of them finished, {left.total()} left  ({path})"
        for what, path, total, left in parts
    ]
    if trials_left and len(study.specs_to_tune) > len(study.variants):
        lines.append("Which methods are run, the trials decide: there may be some runs more.")
    lines.append(study.steps_of_a_run())
    remaining = sum((left for *_, left in parts), Counter[str]())
    if remaining:
        estimate = TimeEstimate(study.experiment, [*trial_rows, *rows], config.workers)
        duration = format_duration(estimate.total(remaining) / _at_once(config.workers, remaining))
        lines.append(f"About {duration} to go, {estimate.basis(remaining)}; plus the teachers' outputs.")
    return "\n".join(lines)


def reproduce(
    path: Path, number: int, *, cache: Path = Path("runs/study"), device: str = "auto", precision: str = "auto"
) -> dict[str, tuple[str, str]]:
    """Repeat the run in row `number` (1 is the first) and say in which columns it differs, old and new, times apart.

    It runs with as many threads as the row did, so on the CPU of the machine that made the row nothing differs; on a
    GPU sums may be rounded in another order. Raises ValueError for a row that is not there and for a file of another
    kind, FileNotFoundError for a missing file, OSError where another process repeats the row with the same cache.
    """
    kinds = ", ".join(f"{kind}-*.csv" for kind in dict.fromkeys(plan.kind for plan in PLANS.values()))
    rows = _read_existing(path, RUN_COLUMNS, "a study's runs", f"Give one that a study has written: {kinds}.")
    if not 1 <= number <= len(rows):
        raise ValueError(f"{path} has rows 1 to {len(rows)}; there is no row {number}.")
    old = rows[number - 1]
    experiment, config = Experiment(Budget.from_row(old, device, precision), cache), RunConfig.from_row(old)
    own = path.with_suffix(f".row-{number}.reproduced")  # other rows may be repeated at the same time
    busy = (
        f"Row {number} of {path} is being repeated by another process, with outputs in {cache}. Wait for it, or choose "
        "another folder with --cache."
    )
    with files.lock(cache / f".{outputs_of(own)}.lock", busy):
        experiment.remove_outputs(own)  # it goes on from nothing
        try:
            with experiment.seed_runner([config], own) as runner:
                runner.teacher(config.spec.teacher)  # with all threads, as in the study: only students share them out
                with torch_threads(int(old["threads"])):
                    new = runner.run(config, test=True)
        finally:
            experiment.remove_outputs(own)
    values = {name: (old[name], to_text(new.get(name))) for name in RUN_COLUMNS if name not in TIME_COLUMNS}
    return {name: (before, now) for name, (before, now) in values.items() if before != now}


def _read_existing(path: Path, columns: Sequence[str], what: str, advice: str) -> list[dict[str, str]]:
    """The rows of a file that is only read. what: it should hold; advice: for a file that holds anything else."""
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}. Check the path.")
    rows = read_rows(path)
    if rows and list(rows[0]) != list(columns):
        differ = sorted(rows[0].keys() ^ set(columns)) or ["their order"]
        raise ValueError(
            f"{path} is not a file of {what} as this kdlib writes it: its columns differ ({', '.join(differ[:5])}). "
            f"{advice}"
        )
    return rows


class _Study:
    """A config with what follows from it: experiment, files, settings and variants; shared by `run` and `dry_run`."""

    def __init__(self, config: StudyConfig) -> None:
        """Raises ValueError for trials that do not fit, and what `data.load` and `models.load` raise."""
        self.config, self.plan = config, config.plan
        self.experiment = Experiment(config.budget, config.cache)
        self.tuned: Mapping[str, TunedSettings] = _read_tuned(config, self.experiment.budget)
        self.variants = self.plan.variants(self.tuned)
        if not config.needs_tuning:
            self._check_tuned()  # now, as a dry run does not come to the runs
        budget, data = self.experiment.budget, self.experiment.data
        for label in {run.excluded_class for run in self._run_configs({})}:
            if label is not None:
                data.exclude_class(label)  # refuses now, rather than after all trials, a class that there is not
        files.refuse_unwritable(config.cache)
        self.runs_path = budget.path(self.plan.kind, config.results_dir)
        self.trials_path = budget.path(TRIALS, config.results_dir)

    @property
    def specs_to_tune(self) -> list[MethodSpec]:
        """The methods whose settings are tuned by trials of this study."""
        if self.config.retune:
            return list(dict.fromkeys(variant.spec for variant in self.variants))
        return list(self.plan.tuned)

    @property
    def num_trials(self) -> int:
        return len(self.specs_to_tune) * TRIALS_PER_METHOD * len(self.config.tuning_seeds)

    @property
    def num_runs(self) -> int:
        return len(self._run_configs({}))

    def steps_of_a_run(self) -> str:
        """How many training steps each run makes, in words, and what to do where they are few."""
        budget, data = self.experiment.budget, self.experiment.data.subset(self.experiment.num_images)
        excluded = self._run_configs({})[0].excluded_class
        images = len((data if excluded is None else data.exclude_class(excluded)).train)
        size, per_epoch = full_batches(images, budget.batch_size)
        steps = budget.epochs * per_epoch
        told = f"Training steps of a run: {steps:,}, {per_epoch:,} in an epoch, of {size} images each."
        few = " No network learns much in so few: take more --epochs or --images." if steps < FEW_STEPS else ""
        return told + few

    def trials_left(self, rows: Iterable[Row]) -> Counter[str]:
        """How many trials of each method are still to come."""
        finished = Counter(row["method"] for row in rows)
        each = TRIALS_PER_METHOD * len(self.config.tuning_seeds)
        left = {spec.name: each - finished[spec.name] for spec in self.specs_to_tune}
        return Counter({name: count for name, count in left.items() if count > 0})

    def runs_left(self, rows: Iterable[Row]) -> Counter[str]:
        """How many runs of each method are still to come, by name of its spec."""
        finished = {row_key(row) for row in rows}
        return Counter(config.spec.name for config in self._run_configs({}) if config.key not in finished)

    def check_files(self, rows: Sequence[Row], trial_rows: Sequence[Row]) -> None:
        """Raise ValueError, before hours of work, for rows, or files beside them, that this study cannot go on with."""
        self.experiment.check_rows(self.runs_path, rows)
        self.experiment.check_rows(self.trials_path, trial_rows)
        # A damaged one is refused now, and not when a finished run is to be added to it.
        self.experiment.check_test_set(PredictionsFile(self.runs_path))
        if self.experiment.keeps_history:
            for path in [self.runs_path, self.trials_path] if self.config.needs_tuning else [self.runs_path]:
                HistoryFile(path)
        if not self.config.needs_tuning:
            self.run_configs(rows)
            return
        seeds = self.config.tuning_seeds
        label = plans.tuning_label(asdict(self.experiment.budget), len(seeds))
        self._check_tuned_alike(rows, [label])
        names = {spec.name for spec in self.specs_to_tune}
        others = sorted({int(row["seed"]) for row in trial_rows if row["method"] in names} - set(seeds))
        if others:
            raise ValueError(
                f"{self.trials_path} holds trials with the tuning seeds {others}, which are not among {list(seeds)}. "
                "Give the options of the first command, or choose another folder with --out."
            )
        for spec in self.specs_to_tune:
            tried = {Settings.from_row(row) for row in trial_rows if row["method"] == spec.name}
            if tried and tried.isdisjoint(spec.first_settings(self.config.budget.optimizer)):
                raise ValueError(
                    f"{self.trials_path} holds trials of {spec.name} from another search, perhaps of another version "
                    "of kdlib. Move it and the runs away, or choose another folder with --out."
                )
            self._check_first_trials(spec, [row for row in trial_rows if row["method"] == spec.name])

    def _check_first_trials(self, spec: MethodSpec, trial_rows: Sequence[Row]) -> None:
        """Raise ValueError where the further trials were made before all of the first: around another best one."""
        tried = {(Settings.from_row(row), int(row["seed"])) for row in trial_rows}
        first = spec.first_settings(self.config.budget.optimizer)
        seeds = self.config.tuning_seeds
        missing = [seed for seed in seeds if any((settings, seed) not in tried for settings in first)]
        if missing and any(settings not in first for settings, _ in tried):
            raise ValueError(
                f"{self.trials_path} holds the whole search of {spec.name} by other tuning seeds: with the seeds "
                f"{missing} as well, others might have been tried. Give --tuning-seeds as in the first command, "
                "or choose another folder with --out."
            )

    def tune(self, executor: _Executor, trials: RunsFile) -> None:
        """Make the trials that are missing, and take the best settings of each method."""
        specs, seeds, optimizer = self.specs_to_tune, self.config.tuning_seeds, self.config.budget.optimizer
        executor.run(plans.first_trials(specs, seeds, optimizer), trials, test=False)
        executor.run(plans.further_trials(specs, seeds, trials.rows, optimizer), trials, test=False)
        self.take_best(trials.rows)
        executor.note_tuned(trials, self.tuned)

    def take_best(self, trial_rows: Sequence[Row]) -> None:
        """Take the best settings of each method, and with them the methods that the plan chooses by these."""
        self.tuned = plans.best_settings(trial_rows, self.specs_to_tune, self.config.tuning_seeds)
        if not self.config.retune:
            self.variants = self.plan.variants(self.tuned)

    def run_configs(self, rows: Sequence[Row]) -> list[RunConfig]:
        """All runs of the study; ValueError for methods that were not tuned, or finished runs with other settings."""
        self._check_tuned()
        configs = self._run_configs(self.tuned)
        self._check_tuned_alike(rows, [config.tuned_on for config in configs])
        finished = {row_key(row): row for row in rows}
        for config in configs:
            row = finished.get(config.key)
            if row is not None and row["fingerprint"] != self.experiment.run_fingerprint(config):
                raise ValueError(
                    f"{self.runs_path} holds a run of {config.method}, seed {config.seed}, made with "
                    f"{Settings.from_row(row)}; now {config.settings}. Move the file away, or choose another folder "
                    "with --out: one study has one setting a method."
                )
        return configs

    def _check_tuned(self) -> None:
        """Raise ValueError for methods that were not tuned."""
        untuned = sorted({variant.spec.name for variant in self.variants} - self.tuned.keys())
        if untuned and not self.config.defaults:
            raise ValueError(
                f"{self.config.trials_file} holds no trials of {', '.join(untuned)}, which this plan needs. Tune their "
                f"settings first (the plans full and controls do), or tune anew, {_tuning_anew(self.plan)}."
            )

    def _run_configs(self, tuned: Mapping[str, TunedSettings]) -> list[RunConfig]:
        config = self.config
        return self.plan.run_configs(
            self.variants, config.seeds, tuned, config.excluded_classes, config.budget.optimizer
        )

    def _check_tuned_alike(self, rows: Iterable[Row], labels: Iterable[str]) -> None:
        found = sorted({row["tuned_on"] for row in rows}.union(labels))
        if len(found) > 1:
            raise ValueError(
                f"{self.runs_path} would hold settings tuned on {' and on '.join(found)}: methods are compared only "
                "where all were tuned alike. Give the options of the first command, or choose another folder with "
                "--out."
            )


def _read_tuned(config: StudyConfig, budget: Budget) -> dict[str, TunedSettings]:
    """The best settings in the file of trials that was named, if one was, of the methods that the plan tunes.

    budget: with the number of images that there are, on which the batch size depends. Raises ValueError for a file
    without trials, and for settings tuned for another student, teacher, optimiser or batch size: these do not carry
    over.
    """
    if config.trials_file is None:
        return {}
    advice = f"Give --choices the file that a study writes as it tunes: {TRIALS}-*.csv."
    rows = _read_existing(config.trials_file, TRIAL_COLUMNS, "trials", advice)
    if not rows:
        raise ValueError(f"{config.trials_file} holds no trials, so there is nothing to take from it. {advice}")
    study = _pair(budget)
    for trial in () if config.retune else map(_pair, map(Budget.from_row, rows)):
        if trial != study:
            raise ValueError(
                f"{config.trials_file} holds settings of {trial}; this study has {study}, for which other learning "
                "rates and weights are best, and not equally so for all methods. Tune anew, "
                f"{_tuning_anew(config.plan)}."
            )
    tried = {row["method"] for row in rows}
    return plans.best_settings(rows, [spec for spec in config.plan.tuned if spec.name in tried])


def _tuning_anew(plan: Plan) -> str:
    """By which option a study that was given trials makes its own."""
    return "with --retune" if plan.chooses_methods else "without --choices"


def _pair(budget: Budget) -> str:
    how = f"{budget.optimizer} and batches of {budget.batch_size}"
    return f"{budget.student}, taught by {budget.teacher}, with {how}"


_BAR_FORMAT = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} runs{postfix}"  # tqdm's estimate knows no methods


class _Executor:
    """Makes runs and writes them to files, under one progress bar."""

    def __init__(
        self, experiment: Experiment, pool: WorkerPool, bar: Any, estimate: TimeEstimate, command: str
    ) -> None:
        self.experiment, self.pool, self.bar, self.estimate, self.command = experiment, pool, bar, estimate, command
        self.remaining: Counter[str] = Counter()
        self.logs: dict[Path, SessionLog] = {}
        self.histories: dict[Path, HistoryFile] = {}
        self.predictions: dict[Path, PredictionsFile] = {}

    def set_remaining(self, remaining: Counter[str]) -> None:
        """Set what is still to be run: how many runs of each method."""
        self.remaining = remaining
        self.bar.total = self.bar.n + remaining.total()
        self._show_time_left()

    def run(self, configs: Iterable[RunConfig], file: RunsFile, *, test: bool) -> None:
        """Make those runs that have no row yet."""
        for config, row in self.pool.run(self._seeds(configs, file), test=test):
            if "history" in row:  # before the row: a run that has a row has these two as well
                self._write_history(file, row)
            if "predicted" in row:
                self._write_predictions(file, row)
            file.append(row)
            row["checkpoint"].unlink(missing_ok=True)  # not before: on a full disk the run would be lost
            self._log(file).write(len(file.rows))
            self._count(config, row)

    def _seeds(self, configs: Iterable[RunConfig], file: RunsFile) -> Iterator[SeedRuns]:
        """Each seed with those of its runs that have no row yet; the bar names the last one that was begun."""
        finished = {row["fingerprint"] for row in file.rows}
        for _, group in groupby(configs, key=lambda config: (config.seed, config.excluded_class)):
            runs = list(group)
            missing = [config for config in runs if self.experiment.run_fingerprint(config) not in finished]
            if missing:
                self._log(file)
                self.bar.set_description(f"seed {runs[0].seed}: ", refresh=True)
                yield self.experiment.seed_runner(runs, file.path), missing

    def note_tuned(self, trials: RunsFile, tuned: Mapping[str, TunedSettings]) -> None:
        """Write the tuned settings to the log of the trials, if this session made any."""
        if trials.path in self.logs:
            log = self.logs[trials.path]
            facts = {
                name: {
                    "settings": str(best.settings),
                    "validation_accuracy": best.score,
                    "at_edge": list(best.at_edge),
                }
                for name, best in tuned.items()
            }
            log.facts["chosen"] = {**log.facts.get("chosen", {}), **facts}
            log.write(len(trials.rows))

    def _write_history(self, file: RunsFile, row: Mapping[str, Any]) -> None:
        if file.path not in self.histories:
            self.histories[file.path] = HistoryFile(file.path)
        self.histories[file.path].add(row["fingerprint"], row["history"])

    def _write_predictions(self, file: RunsFile, row: Mapping[str, Any]) -> None:
        if file.path not in self.predictions:
            self.predictions[file.path] = PredictionsFile(file.path)
        test = self.experiment.data.test
        predicted = torch.from_numpy(row["predicted"])
        self.predictions[file.path].add(row["fingerprint"], predicted, test.labels, test.fingerprint)

    def _log(self, file: RunsFile) -> SessionLog:
        """The log of this session, on the disk before the session's first row is."""
        if file.path not in self.logs:
            device = self.experiment.device_config.device
            self.logs[file.path] = SessionLog(file.path, self.command, len(file.rows), device)
            self.logs[file.path].write(len(file.rows))
        return self.logs[file.path]

    def _count(self, config: RunConfig, row: Mapping[str, Any]) -> None:
        if "seconds_per_epoch" in row:
            self.estimate.add(config.spec.name, row["seconds"])
        self.remaining[config.spec.name] -= 1
        self.bar.update()
        self._show_time_left()

    def _show_time_left(self) -> None:
        seconds = (
            0.0
            if self.bar.disable
            else self.estimate.total(self.remaining) / _at_once(self.pool.num_workers, self.remaining)
        )
        self.bar.set_postfix_str(f"about {format_duration(seconds)} left" if seconds else "")


# --- how long it will take


class TimeEstimate:
    """Expected seconds of runs by method: from finished runs of the same kind, and before there are any, from a probe.

    Methods go by the names of their specs. rows: of one budget and one machine only. workers: how many runs share the
    threads; the probe takes the share of one.
    """

    def __init__(self, experiment: Experiment, rows: Iterable[Row] = (), workers: int = 1) -> None:
        self._experiment, self._workers = experiment, workers
        self._seconds: dict[str, list[float]] = {}
        self._probe: float | None = None
        for row in rows:
            # A run that diverged stopped early: it says nothing about the others.
            if row["seconds"] and row["seconds_per_epoch"] and row["device"] == str(experiment.device_config):
                self.add(row["spec"], float(row["seconds"]))

    def add(self, method: str, seconds: float) -> None:
        """Take a finished run into account."""
        self._seconds.setdefault(method, []).append(seconds)

    def seconds_per_run(self, method: str) -> float:
        """Seconds of one run: the mean of its own kind, else of all kinds, else what a probe says."""
        found = self._seconds.get(method) or [value for values in self._seconds.values() for value in values]
        if found:
            return sum(found) / len(found)
        if self._probe is None:
            with torch_threads(threads_of_a_worker(self._workers)):
                self._probe = probe(self._experiment)
        return self._probe

    def total(self, remaining: Counter[str]) -> float:
        """Seconds of so many runs of each method."""
        return sum(self.seconds_per_run(method) * count for method, count in remaining.items() if count)

    def basis(self, remaining: Counter[str]) -> str:
        """What an estimate for these runs rests on, in words."""
        measured = sum(count for method, count in remaining.items() if method in self._seconds)
        if measured == sum(remaining.values()):
            return "from finished runs of the same methods"
        if self._seconds:
            return "from finished runs, partly of other methods"
        return "from a probe of three plain training steps; methods that look at layers take longer"


def probe(experiment: Experiment) -> float:
    """Seconds that one run by hard labels will take, from three training steps on one batch."""
    steps = 3
    device_config, budget = experiment.device_config, experiment.budget
    recipe = METHODS[HARD].start_with(budget.optimizer).recipe(budget.batch_size, budget.optimizer)
    student = device_config.move(experiment.build_student(0)).train()
    optimizer = recipe.make_optimizer(student.parameters())
    batch = next(experiment.data.train.iter_batches(recipe.batch_size, device=device_config.device))
    now, started = clock(device_config.device), 0.0
    for step in range(steps + 1):
        if step == 1:  # the first one warms up
            started = now()
        with device_config.autocast():
            logits = student(batch.images)
        F.cross_entropy(logits.float(), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds_per_image = (now() - started) / (steps * len(batch))
    evaluated = 3 * len(experiment.data.validation)  # at the end, and the test set; without backward: about a third
    return seconds_per_image * (budget.epochs * experiment.num_images + evaluated / 3)


def _at_once(workers: int, remaining: Counter[str]) -> int:
    """How many of the remaining runs are made at a time."""
    return max(1, min(workers, remaining.total()))


def format_duration(seconds: float) -> str:
    """A time as 40 s, 12 min or 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


__all__ = ["StudyConfig", "TimeEstimate", "dry_run", "format_duration", "reproduce", "run"]
