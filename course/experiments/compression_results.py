"""What the rows of both experiments on compression say: networks, gains with intervals, and who is best for its cost.

    results = compression_results.load()
    print(results.table())
    for gain in results.gains():
        print(gain)

Networks that were not trained any further come from `compression_sweep`, all others from `compression`. Accuracies are
of the test images, in per cent; gains in points. What has not been run yet is left out. A network of which a seed
diverged is not: it has no mean and no gain, and to ask for them is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from course.experiments.compression import HARD, KD, RAW, Budget
from course.experiments.compression_sweep import BITS, WHOLE, ZEROS, path_in
from course.experiments.rows import refuse_diverged, refuse_twice
from kdlib import verdict
from kdlib.data import data_dir
from kdlib.errors import unknown_name
from kdlib.study.runs_file import read_rows

if TYPE_CHECKING:
    import pandas as pd

TITLES = {
    WHOLE: "ResNet-20, whole",
    **{f"zeros {100 * share:.0f}": f"{share:.0%} zeros".replace("%", " %") for share in ZEROS},
    "channels 25": "quarter of channels removed",
    "channels": "half of channels removed",
    **{f"int{bits}": f"{bits} bits" for bits in BITS},
    "small network": "half as wide, fresh weights",
    "resnet8": "ResNet-8, fresh weights",
    "prune, distil, quantize": "prune, distil, quantize",
    "prune, quantize, distil": "prune, quantize, distil",
    "quantize, prune, distil": "quantize, prune, distil",
}
TRAININGS = {RAW: "no further training", HARD: "hard labels", KD: "distilled"}
COSTS = {"bytes": "bytes of the file", "zipped_bytes": "bytes of the zipped file", "macs": "MACs for a picture"}

Key = tuple[str, str]  # technique, training


@dataclass(frozen=True)
class Network:
    """One way of compressing and one training of the result.

    accuracies: by seed, in per cent; one for what has no seed. parameters, nonzero, bytes, zipped_bytes, macs: of one
    network, the mean over these seeds, nan without any. bits: of each weight. diverged: other seeds, with their errors.
    """

    technique: str
    training: str
    accuracies: tuple[tuple[int, float], ...]
    bits: int
    parameters: float
    nonzero: float
    bytes: float
    zipped_bytes: float
    macs: float
    diverged: tuple[tuple[int, str], ...] = ()

    @property
    def title(self) -> str:
        """How figures and tables call it."""
        return TITLES[self.technique]

    @property
    def by_seed(self) -> dict[int, float]:
        """The accuracies by seed, in per cent. Raises ValueError where a seed diverged."""
        refuse_diverged(f"{self.title}, {TRAININGS[self.training]},", dict(self.diverged))
        return dict(self.accuracies)

    @property
    def accuracy(self) -> float:
        """The mean over the seeds, in per cent. Raises ValueError where one diverged."""
        return sum(self.by_seed.values()) / len(self.accuracies)

    def cost(self, name: str) -> float:
        """One of COSTS; ValueError for another name."""
        if name not in COSTS:
            raise unknown_name("cost", name, COSTS)
        return float(getattr(self, name))


@dataclass(frozen=True)
class Gain:
    """One network against another with the same seeds, in points of accuracy: a Comparison, and what it is about."""

    title: str
    network: Network
    baseline: Network
    comparison: verdict.Comparison

    def __str__(self) -> str:
        found = self.comparison
        interval = f"{found.low:+.2f} to {found.high:+.2f}; {found.n} seeds"
        return f"{self.title}: {found.mean:+.2f} ({interval}) {found.verdict}"


@dataclass(frozen=True)
class Question:
    """A comparison that a reader would ask for: the network, and the one that it should beat."""

    title: str
    network: Key
    baseline: Key


SMALL = (  # what inherited weights are worth, and whether another form of network is worth more
    Question("half of the channels, distilled, over the same network from fresh weights", ("channels", KD),
             ("small network", KD)),
    Question("the same on hard labels", ("channels", HARD), ("small network", HARD)),
    Question("ResNet-8, distilled, over half of the channels, distilled", ("resnet8", KD), ("channels", KD)),
)  # fmt: skip
ORDERS = (
    Question("distil before quantizing, over distilling last", ("prune, distil, quantize", KD),
             ("prune, quantize, distil", KD)),
    Question("prune first, over quantizing first", ("prune, quantize, distil", KD), ("quantize, prune, distil", KD)),
)  # fmt: skip


@dataclass(frozen=True)
class CompressionResults:
    """All finished runs, by technique and training, and the network before compression.

    networks: those of `compression`, then those of the sweep. budget: of the former.
    """

    networks: tuple[Network, ...]
    whole: Network
    budget: Budget

    @cached_property
    def by_key(self) -> dict[Key, Network]:
        """The networks by technique and training, the whole one among them."""
        return {(one.technique, one.training): one for one in (self.whole, *self.networks)}

    @property
    def techniques(self) -> list[str]:
        """The techniques that have runs, in the order of TITLES."""
        found = {one.technique for one in self.networks}
        return [name for name in TITLES if name in found]

    @property
    def trained(self) -> list[str]:
        """The techniques whose networks were trained further."""
        found = {one.technique for one in self.networks if one.training != RAW}
        return [name for name in TITLES if name in found]

    def untrained(self, technique: str) -> Network:
        """A technique's network without further training; raises ValueError where there is none."""
        if (technique, RAW) not in self.by_key:
            raise unknown_name(
                "network without further training", technique, [way for way, how in self.by_key if how == RAW]
            )
        return self.by_key[technique, RAW]

    def gains(self) -> list[Gain]:
        """What distillation adds to hard labels for each technique that has two seeds of both or more.

        The intervals hold together with 95 % (Bonferroni over the techniques). Raises ValueError where a seed diverged.
        """
        return self.answer([Question(TITLES[name], (name, KD), (name, HARD)) for name in self.trained])

    def answer(self, questions: Sequence[Question]) -> list[Gain]:
        """Those of these comparisons whose runs are there; their intervals hold together with 95 %.

        Raises ValueError for a network of which a seed diverged.
        """
        asked = []
        for question in questions:
            one, other = self.by_key.get(question.network), self.by_key.get(question.baseline)
            if one and other and len(_shared(one, other)[0]) > 1:
                asked.append((question, one, other))
        made = []
        for question, one, other in asked:
            sides = _shared(one, other)
            found = verdict.compare(*sides, comparisons=len(asked), same_unit=True)
            made.append(Gain(question.title, one, other, found))
        return made

    def front(self, cost: str) -> list[Network]:
        """The networks to which none is superior: none has at most their cost and a higher accuracy. Cheapest first.

        cost: one of COSTS. Raises ValueError for another name, and for a network of which a seed diverged.
        """
        best: list[Network] = []
        for one in sorted(self.by_key.values(), key=lambda one: (one.cost(cost), -one.accuracy)):
            if not best or one.accuracy > best[-1].accuracy:
                best.append(one)
        return best

    def table(self) -> pd.DataFrame:
        """One row a technique that was trained further: what a network costs, accuracies in %, and how many seeds.

        Columns: kB of the file, million MACs, accuracy raw (not trained further), on hard labels and distilled, seeds.
        Raises ValueError for a network of which a seed diverged.
        """
        import pandas as pd

        rows = {}
        for name in (WHOLE, *self.trained):
            found = {way: one for (technique, way), one in self.by_key.items() if technique == name}
            accuracies = {way: found[way].accuracy if way in found else None for way in (RAW, HARD, KD)}
            some, seeds = next(iter(found.values())), min(len(one.accuracies) for one in found.values())
            costs = {"kB": some.bytes / 1e3, "million MACs": some.macs / 1e6}
            names = dict(zip(("raw", "hard labels", "distilled"), accuracies.values(), strict=True))
            rows[TITLES[name]] = costs | names | {"seeds": seeds}
        return pd.DataFrame.from_dict(rows, orient="index")


def _shared(one: Network, other: Network) -> tuple[dict[int, float], dict[int, float]]:
    sides = one.by_seed, other.by_seed
    seeds = [seed for seed in sides[0] if seed in sides[1]]
    return {seed: sides[0][seed] for seed in seeds}, {seed: sides[1][seed] for seed in seeds}


def summarize(rows: Iterable[dict[str, str]]) -> tuple[Network, ...]:
    """The networks behind rows of either experiment, in the order of the rows."""
    groups: dict[Key, list[dict[str, str]]] = {}
    for row in rows:
        if row["technique"] in TITLES:
            groups.setdefault((row["technique"], row.get("training", RAW)), []).append(row)
    return tuple(_network(*key, group) for key, group in groups.items())


def _network(technique: str, training: str, rows: Sequence[dict[str, str]]) -> Network:
    refuse_twice(f"{TITLES[technique]}, {TRAININGS[training]},", [int(row.get("seed", 0)) for row in rows])
    finished = [row for row in rows if row["test_accuracy"]]
    diverged = sorted((int(row["seed"]), row["error"]) for row in rows if not row["test_accuracy"])
    accuracies = sorted((int(row.get("seed", 0)), 100 * float(row["test_accuracy"])) for row in finished)
    sizes = ("parameters", "nonzero", "bytes", "zipped_bytes", "macs")
    means = {
        name: sum(float(row[name]) for row in finished) / len(finished) if finished else math.nan for name in sizes
    }
    return Network(technique, training, tuple(accuracies), int(rows[0]["bits"]), **means, diverged=tuple(diverged))


@lru_cache(maxsize=4)
def load(folder: Path | None = None, images: int = 2_000) -> CompressionResults:
    """What the experiments have found so far; there may be no trained networks yet.

    folder: default data/results. images: the budget of the runs. Raises FileNotFoundError, with the command that makes
    the file, without the network before compression.
    """
    folder = folder or data_dir() / "results"
    runs = read_rows(Budget(images).path("compression", folder))
    swept = {one.technique: one for one in summarize(read_rows(path_in(folder)))}
    if WHOLE not in swept:
        raise FileNotFoundError(
            f"{path_in(folder)} holds no finished runs. Make them: python -m course.experiments.compression_sweep"
        )
    trained = summarize(runs)
    there_already = {(one.technique, one.training) for one in trained}
    whole = swept.pop(WHOLE)
    further = tuple(one for one in swept.values() if (one.technique, RAW) not in there_already)
    return CompressionResults((*trained, *further), whole, Budget(images, int(runs[0]["epochs"]) if runs else 5))
