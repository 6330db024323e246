"""What the student may cost: a limit on its MACs or on its latency, looked up before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kdlib import measure
from kdlib.data import DataModule
from kdlib.errors import as_whole, check_real
from kdlib.search.task import build_student

LATENCY_SECONDS = 0.2  # for which each network is timed
LARGE_LATENCY = 1.0  # seconds, beyond most networks that are searched: whoever gives more may mean milliseconds


@dataclass(frozen=True)
class Limits:
    """max_macs: multiply-accumulates for one image. max_latency: seconds for one image in one thread of this machine.

    None: no limit. Raises ValueError or TypeError for numbers that are not positive; warns of a latency of more than a
    second, which may be meant in milliseconds.
    """

    max_macs: int | None = None
    max_latency: float | None = None

    def __post_init__(self) -> None:
        if self.max_macs is not None:
            object.__setattr__(self, "max_macs", as_whole(max_macs=self.max_macs))
        if self.max_latency is not None:
            check_real(max_latency=self.max_latency)
            object.__setattr__(self, "max_latency", float(self.max_latency))
            if not 0 < self.max_latency < float("inf"):
                raise ValueError(f"max_latency is a positive number of seconds; got {self.max_latency}.")
            if self.max_latency > LARGE_LATENCY:
                given = f"{self.max_latency:g}"
                warnings.warn(
                    f"A latency of {given} seconds for one image limits few networks. For {given} milliseconds give "
                    f"max_latency={self.max_latency / 1e3:g} in Python, where it is in seconds, or --max-latency "
                    f"{given} on the command line, where it is in milliseconds.",
                    stacklevel=3,
                )

    def violations(self, cost: Cost) -> dict[str, float]:
        """By which share a network is beyond each limit; 0 or less where it keeps to it."""
        found = {}
        if self.max_macs is not None:
            found["macs"] = cost.macs / self.max_macs - 1
        if self.max_latency is not None and cost.latency is not None:
            found["latency"] = cost.latency / self.max_latency - 1
        return found

    def allows(self, cost: Cost) -> bool:
        """Whether a network keeps to all limits."""
        return all(violation <= 0 for violation in self.violations(cost).values())


@dataclass(frozen=True)
class Cost:
    """Of a network for one image: MACs, and its latency in seconds where that was measured."""

    macs: int
    latency: float | None = None


@dataclass
class CostTable:
    """The costs of networks by name, each counted or measured once.

    latencies: those that an earlier part of the search has measured; another measurement would give other numbers, and
    a network would be allowed at one time and not at another. stem: see `models.build`.
    """

    data: DataModule
    timed: bool
    stem: str = "stride2"
    latencies: dict[str, float] = field(default_factory=dict)
    _costs: dict[str, Cost] = field(default_factory=dict)

    def __getitem__(self, student: str) -> Cost:
        if student not in self._costs:
            shape = (self.data.in_channels, self.data.image_size, self.data.image_size)
            network = build_student(self.data, student, 0, self.stem)
            if self.timed and student not in self.latencies:
                timed = measure.latency(network, shape, threads=1, min_run_time=LATENCY_SECONDS, device="cpu")
                self.latencies[student] = timed.median
            self._costs[student] = Cost(measure.macs(network, shape), self.latencies.get(student))
        return self._costs[student]

    def of(self, students: Iterable[str]) -> Mapping[str, Cost]:
        """The costs of several networks."""
        return {student: self[student] for student in students}


def largest_allowed(costs: Mapping[str, Cost], limits: Limits) -> str:
    """The network with the most MACs within the limits; ValueError if none of them is."""
    allowed = {name: cost.macs for name, cost in costs.items() if limits.allows(cost)}
    if allowed:
        return max(allowed, key=lambda name: allowed[name])
    smallest = min(costs, key=lambda name: (costs[name].macs, costs[name].latency or 0.0))
    cost, wanted = costs[smallest], []
    if limits.max_macs is not None:
        wanted.append(f"{limits.max_macs:,} MACs (it has {cost.macs:,})")
    if limits.max_latency is not None and cost.latency is not None:
        wanted.append(f"{limits.max_latency * 1e3:.3g} ms (it takes {cost.latency * 1e3:.3g} ms on this machine)")
    raise ValueError(
        f"Not even the smallest network, {smallest}, keeps to {' and '.join(wanted)}. Allow more, or search "
        "smaller ones."
    )
