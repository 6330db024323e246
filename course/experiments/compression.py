"""What distillation is worth after each way of compressing a network: paired seeds, a row a run.

    python -m course.experiments.compression --workers 2

Every network starts from the shipped ResNet-20 (or, for comparison, from fresh weights), is compressed, and is then
trained with the same budget, by hard labels or by logits (KD, T 4, alpha 0.1) of the network before compression. Runs
of one seed share images, their order and views, and initial weights where these are fresh. (Where a way trains twice,
as "quantize, prune, distil" does, the second training begins again with the order and the view of the first epoch.) The
learning rate of each way and each training is chosen by trials of the same grid on the validation split, with a seed of
their own. The test set is read once in a run, at the end.

Orders of the three ways end in the same form of network, half of the channels and 4 bits, after as many epochs.
One order cannot be had: to round first and then to distil as usual. The first step of an optimiser moves the weights
off the few values, so that the result is a float network again; only training that rounds at every step
(quantization-aware) keeps them, and that is what "quantize" means wherever training follows it.

Networks are trained in the precision of this machine and evaluated in float32, where simulated integers are exact.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save
from torch import Tensor, nn

from course.experiments.command import called, run_command
from course.experiments.rows import make_missing, refuse_other_budget, score, versions
from kdlib import compress, data, devices, measure, models, train
from kdlib.data import DataModule, data_dir
from kdlib.errors import check_whole, unknown_name
from kdlib.methods import HardLabels, Logit, Method
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, holds
from kdlib.teachers import CachedTeacher

NETWORK, DATA = "resnet20-fashion", "fashion-mnist"
TUNING_SEED = 1000  # none of the runs'
FIRST_RATES = (0.01, 0.03, 0.1)
RATES = (0.001, 0.003, *FIRST_RATES, 0.3, 1.0)  # the others are tried while the best lies at an edge of those tried
CALIBRATION_IMAGES = 512
RAW, HARD, KD = "raw", "hard labels", "kd"
BUDGET_COLUMNS = ("data", "network", "images", "epochs")
CONFIG_COLUMNS = (*BUDGET_COLUMNS, "technique", "amount", "bits", "training", "seed", "learning_rate")
PROCESS_COLUMNS = ("seconds", "device", "threads", "kdlib", "torch", "error")
TRIAL_COLUMNS = (*CONFIG_COLUMNS, "validation_accuracy", *PROCESS_COLUMNS)  # nothing of the test set
RUN_COLUMNS = (
    *CONFIG_COLUMNS,
    *("parameters", "nonzero", "bytes", "zipped_bytes", "macs", "validation_accuracy", "test_accuracy"),
    *PROCESS_COLUMNS,
)


# --- the ways of compressing


@dataclass(frozen=True)
class Images:
    """What one seed's runs see: the data, some images without labels to set limits by, and the seed."""

    data: DataModule
    calibration: tuple[Tensor, ...]
    seed: int


Step = Callable[[nn.Module, Images], nn.Module]


def zeros(model: nn.Module, images: Images, amount: float) -> nn.Module:
    """The smallest weights are zero."""
    return compress.prune_weights(model, amount)


def half_channels(model: nn.Module, images: Images) -> nn.Module:
    """Half of all channels are removed."""
    return compress.prune_channels(model, 0.5, images.calibration[0][:1])


def rounded(model: nn.Module, images: Images, bits: int) -> nn.Module:
    """Weights in so many bits and activations in 8, rounded at every step."""
    return compress.calibrate(compress.prepare_qat(model, bits), images.calibration)


def half_channels_rounded(model: nn.Module, images: Images, bits: int) -> nn.Module:
    """Half of the channels, rounded."""
    return rounded(half_channels(model, images), images, bits)


def rounded_half_channels(model: nn.Module, images: Images, bits: int) -> nn.Module:
    """Of a network that was trained with rounding: half of the channels, and rounding again."""
    return half_channels_rounded(compress.finalize(model, keep_activation_rounding=False), images, bits)


def small_from_scratch(model: nn.Module, images: Images) -> nn.Module:
    """The narrow network that removing half of the channels gives, with fresh weights."""
    small = half_channels(model, images)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(images.seed)
        for module in small.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return small


def resnet8_from_scratch(model: nn.Module, images: Images) -> nn.Module:
    """A ResNet-8 with fresh weights."""
    shape = models.get_config(model)
    options = {name: shape[name] for name in ("num_classes", "in_channels", "image_size")}
    return models.build("resnet8", **options, seed=images.seed)


@dataclass(frozen=True)
class Technique:
    """One way to a small network.

    phases: what is done to the network, each followed by its share of the epochs. finish: done after all training.
    amount: of what was removed, for the table. bits: of the weights in the end. fresh: begins with fresh weights, so
    that a row without training would say nothing. rates_of: the technique whose learning rates it takes over, because
    both train the same network.
    """

    name: str
    phases: tuple[tuple[Step, float], ...]
    amount: float | None = None
    bits: int = 32
    finish: Step | None = None
    fresh: bool = False
    rates_of: str | None = None


TECHNIQUES = {
    one.name: one
    for one in (
        Technique("channels", ((half_channels, 1),), amount=0.5),
        Technique("zeros 95", ((partial(zeros, amount=0.95), 1),), amount=0.95),
        Technique("int2", ((partial(rounded, bits=2), 1),), bits=2),
        Technique("int4", ((partial(rounded, bits=4), 1),), bits=4),
        Technique("small network", ((small_from_scratch, 1),), amount=0.5, fresh=True),
        Technique("resnet8", ((resnet8_from_scratch, 1),), fresh=True),
        Technique("zeros 90", ((partial(zeros, amount=0.9), 1),), amount=0.9),
        Technique(
            "prune, distil, quantize",
            ((half_channels, 1),),
            amount=0.5,
            bits=4,
            finish=partial(rounded, bits=4),
            rates_of="channels",
        ),
        Technique("prune, quantize, distil", ((partial(half_channels_rounded, bits=4), 1),), amount=0.5, bits=4),
        Technique(
            "quantize, prune, distil",
            ((partial(rounded, bits=4), 0.4), (partial(rounded_half_channels, bits=4), 0.6)),
            amount=0.5,
            bits=4,
        ),
        Technique("int8", ((partial(rounded, bits=8), 1),), bits=8),
        Technique("int3", ((partial(rounded, bits=3), 1),), bits=3),
    )
}


# --- one run


@dataclass(frozen=True)
class Budget:
    """What all runs of a file share."""

    images: int = 10_000
    epochs: int = 5

    def __post_init__(self) -> None:
        check_whole(10, images=self.images)
        check_whole(2, 1000, epochs=self.epochs)  # one order trains in two phases

    @property
    def columns(self) -> dict[str, Any]:
        """What every row of a file says of it."""
        return {"data": DATA, "network": NETWORK, "images": self.images, "epochs": self.epochs}

    def path(self, kind: str, folder: Path) -> Path:
        """The file of the runs (kind "compression") or of the trials ("choose-compression")."""
        return folder / f"{kind}-{NETWORK}-{self.images}.csv"


@dataclass(frozen=True)
class Run:
    """One network: how it is made and trained, on which seed's images; raw networks have no learning rate."""

    technique: str
    training: str
    seed: int
    learning_rate: float | None = None

    def columns(self, budget: Budget) -> dict[str, Any]:
        """What the row says of the settings."""
        technique = TECHNIQUES[self.technique]
        return budget.columns | vars(self) | {"amount": technique.amount, "bits": technique.bits}

    def is_in(self, rows: Sequence[dict[str, str]]) -> bool:
        """Whether these rows of a file hold it."""
        return holds(rows, vars(self))


def execute(run: Run, budget: Budget, cache: Path, *, test: bool) -> dict[str, Any]:
    """Make one network and measure it; the row, with an error in place of accuracies where training diverged.

    test: whether the test set is read, once, at the end; a trial reads none.
    """
    started = time.perf_counter()
    technique, images, network = TECHNIQUES[run.technique], _images(run.seed, budget.images), _network()
    config = devices.resolve()
    row = run.columns(budget) | versions() | {"device": str(config), "threads": torch.get_num_threads()}
    model = copy.deepcopy(network)
    left = 0 if run.training == RAW else budget.epochs
    try:
        for position, (step, share) in enumerate(technique.phases):
            model = step(model, images)
            last = position == len(technique.phases) - 1
            epochs = left if last else round(share * left)
            left -= epochs
            if epochs:
                _train(model, images, run, budget, epochs, cache)
        model = technique.finish(model, images) if technique.finish else model
        row |= _measured(model.eval(), technique, images.data, test)
    except FloatingPointError as error:
        row["error"] = str(error)
    return row | {"seconds": round(time.perf_counter() - started, 1)}


@lru_cache(maxsize=1)
def _network() -> nn.Module:
    return models.load(NETWORK)


@lru_cache(maxsize=2)
def _images(seed: int, count: int) -> Images:
    subset = data.load(DATA).subset(count, seed=seed)
    few = subset.train.select(torch.arange(min(CALIBRATION_IMAGES, count)))
    return Images(subset, tuple(batch.images for batch in few.iter_batches(128)), seed)


def _train(model: nn.Module, images: Images, run: Run, budget: Budget, epochs: int, cache: Path) -> None:
    teacher, method = _training(run.training, images, budget, cache)
    few = images.data.validation.select(torch.arange(100))  # what counts is evaluated at the end
    assert run.learning_rate is not None
    train.fit(
        model,
        replace(images.data, validation=few),
        teacher=teacher,
        method=method,
        epochs=epochs,
        recipe=train.Recipe(learning_rate=run.learning_rate),
        views=budget.epochs,
        seed=run.seed,
        test=False,
        progress=False,
    )


def _training(name: str, images: Images, budget: Budget, cache: Path) -> tuple[CachedTeacher | None, Method]:
    if name == HARD:
        return None, HardLabels()
    return _teacher(images.seed, budget, cache), Logit(temperature=4, alpha=0.1)


@lru_cache(maxsize=2)
def _teacher(seed: int, budget: Budget, cache: Path) -> CachedTeacher:
    images = _images(seed, budget.images)
    return CachedTeacher.build(
        _network(),
        images.data.train,
        augmentation=images.data.augmentation,
        seed=seed,
        views=budget.epochs,
        directory=cache / f"outputs-{budget.images}-{budget.epochs}-seed{seed}",
        progress=False,
    )


def _measured(model: nn.Module, technique: Technique, images: DataModule, test: bool) -> dict[str, Any]:
    """Accuracies, and what the network weighs when masks and rounding are gone and its weights are packed."""
    row = {"validation_accuracy": train.evaluate(model, images.validation, precision="fp32").accuracy}
    if not test:
        return row
    plain = model
    if technique.bits < 32 or technique.name.startswith("zeros"):
        plain = compress.finalize(model, keep_activation_rounding=False)
    state = plain.state_dict() if technique.bits == 32 else compress.pack_weights(plain, technique.bits)
    return {
        "parameters": measure.count_parameters(plain),
        "nonzero": measure.count_nonzero(plain),
        "bytes": len(save({name: tensor.contiguous() for name, tensor in state.items()})),
        "zipped_bytes": measure.zipped_bytes(state),
        "macs": measure.macs(plain, (images.in_channels, images.image_size, images.image_size)),
        **row,
        "test_accuracy": train.evaluate(model, images.test, precision="fp32").accuracy,
    }


# --- all of them


@dataclass(frozen=True)
class Experiment:
    """A budget, where rows are written (out), where the teacher's outputs are kept (cache), and how many at a time."""

    budget: Budget
    out: Path
    cache: Path
    workers: int = 1

    def __post_init__(self) -> None:
        check_whole(1, 64, workers=self.workers)

    def run(
        self, techniques: Sequence[str], seeds: int, command: str, log: Callable[[str], object] = print
    ) -> list[dict[str, str]]:
        """Each technique in turn: its trials, then its runs with these many seeds; what is there is not repeated.

        Returns all rows of the file. Raises ValueError for an unknown technique, for files of another budget, and while
        another process writes to them.
        """
        check_whole(1, TUNING_SEED, seeds=seeds)
        for name in techniques:
            if name not in TECHNIQUES:
                raise unknown_name("technique", name, TECHNIQUES)
        trials = RunsFile(self.budget.path("choose-compression", self.out), TRIAL_COLUMNS, log)
        runs = RunsFile(self.budget.path("compression", self.out), RUN_COLUMNS, log)
        for name in techniques:
            try:
                self._run_technique(TECHNIQUES[name], seeds, trials, runs, command, log)
            finally:
                update_readme(self.out)
        return runs.rows

    def _run_technique(
        self,
        technique: Technique,
        seeds: int,
        trials: RunsFile,
        runs: RunsFile,
        command: str,
        log: Callable[[str], object],
    ) -> None:
        tuned = TECHNIQUES[technique.rates_of or technique.name]
        with trials.open():
            refuse_other_budget(trials, self.budget.columns)
            rates = self._choose(tuned, trials, command, log)
        trainings = (HARD, KD) if technique.fresh else (RAW, HARD, KD)
        wanted = [Run(technique.name, way, seed, rates.get(way)) for seed in range(seeds) for way in trainings]
        with runs.open():
            refuse_other_budget(runs, self.budget.columns)
            self._execute(wanted, runs, command, log, test=True)

    def _choose(
        self, technique: Technique, trials: RunsFile, command: str, log: Callable[[str], object]
    ) -> dict[str, float]:
        """The learning rate of each training with the best validation accuracy, of equals the smaller one."""
        rates = {HARD: list(FIRST_RATES), KD: list(FIRST_RATES)}
        while True:
            wanted = [Run(technique.name, way, TUNING_SEED, rate) for way, tried in rates.items() for rate in tried]
            self._execute(wanted, trials, command, log, test=False)
            best = {way: best_rate(trials.rows, technique.name, way) for way in rates}
            further = {way: [rate for rate in _neighbours(best[way]) if rate not in rates[way]] for way in rates}
            if not any(further.values()):
                return best
            rates = {way: [*tried, *further[way]] for way, tried in rates.items()}

    def _execute(
        self, wanted: Sequence[Run], file: RunsFile, command: str, log: Callable[[str], object], *, test: bool
    ) -> None:
        def describe(run: Run, row: dict[str, Any]) -> str:
            rate = "" if run.learning_rate is None else f", rate {run.learning_rate:g}"
            name = f"{run.technique}, {run.training}, seed {run.seed}{rate}"
            return f"{name}: {score(row):.2%} in {row['seconds']:.0f} s"

        missing = [run for run in wanted if not run.is_in(file.rows)]
        make = partial(execute, budget=self.budget, cache=self.cache, test=test)
        make_missing(file, missing, make, describe, command, log, workers=self.workers)


def best_rate(rows: Sequence[dict[str, str]], technique: str, training: str) -> float:
    """The learning rate of the best finished trial on the validation split; of equals, the smallest.

    Raises ValueError where all of them diverged.
    """
    scores = {
        float(row["learning_rate"]): float(row["validation_accuracy"])
        for row in rows
        if (row["technique"], row["training"]) == (technique, training) and row["validation_accuracy"]
    }
    if not scores:
        raise ValueError(f"All trials of {technique} with {training} diverged. Give it smaller learning rates.")
    return min(scores, key=lambda rate: (-scores[rate], rate))


def _neighbours(rate: float) -> tuple[float, ...]:
    position = RATES.index(rate)
    return RATES[max(0, position - 1) : position + 2]


def compression(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ... Give more to add some.")] = 5,
    only: Annotated[list[str] | None, typer.Option(help="One technique; repeat it for more. Default: all.")] = None,
    images: Annotated[int, typer.Option(min=10, help="Training images of each run.")] = 10_000,
    epochs: Annotated[int, typer.Option(min=2, help="Passes over them.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: data/results.")] = None,
    cache: Annotated[Path, typer.Option(help="Scratch folder for the teacher's outputs.")] = Path("runs/compression"),
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")] = 1,
) -> None:
    """Compress the shipped ResNet-20 in several ways and train each result by hard labels and by its teacher.

    Stopped at any moment, the same command goes on with what is missing.
    """
    from course.experiments import compression_results  # which imports this module

    command = called("course.experiments.compression")
    experiment = Experiment(Budget(images, epochs), out or data_dir() / "results", cache, workers)
    rows = experiment.run(only or list(TECHNIQUES), seeds, command, log=partial(print, flush=True))
    try:
        networks = compression_results.summarize(rows)
        gains = compression_results.CompressionResults(networks, networks[0], experiment.budget).gains()
        print("\n".join(str(gain) for gain in gains) or "A verdict needs two seeds or more.")
    except ValueError as error:  # a seed diverged: without it the others would be a choice of seeds
        print(error)


if __name__ == "__main__":
    run_command(compression=compression)
