"""How long it will take: from finished runs of the same kind, and before there are any, from a probe."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping

import torch.nn.functional as F

from kdlib.study.bench import Bench
from kdlib.study.entries import Settings


class Clock:
    """Expected seconds of runs, by their entry; rows of one budget and one machine only."""

    def __init__(self, bench: Bench, rows: Iterable[Mapping[str, str]] = ()) -> None:
        self._bench = bench
        self._seen: dict[str, list[float]] = {}
        self._probe: float | None = None
        for row in rows:
            # A run that diverged stopped early: it says nothing about the others.
            if row["seconds"] and row["seconds_per_epoch"] and row["place"] == str(bench.place):
                self.note(row["entry"], float(row["seconds"]))

    def note(self, entry: str, seconds: float) -> None:
        """Remember a finished run."""
        self._seen.setdefault(entry, []).append(seconds)

    def expected(self, entry: str) -> float:
        """Seconds of one run: the mean of its own kind, else of all kinds, else what a probe says."""
        seen = self._seen.get(entry) or [value for values in self._seen.values() for value in values]
        if seen:
            return sum(seen) / len(seen)
        if self._probe is None:
            self._probe = probe(self._bench)
        return self._probe

    def total(self, ahead: Counter[str]) -> float:
        """Seconds of so many runs of each entry."""
        return sum(self.expected(entry) * count for entry, count in ahead.items() if count)

    def basis(self, ahead: Counter[str]) -> str:
        """What an estimate for these runs rests on, in words."""
        measured = sum(count for entry, count in ahead.items() if entry in self._seen)
        if measured == sum(ahead.values()):
            return "from finished runs of the same methods"
        if self._seen:
            return "from finished runs, partly of other methods"
        return "from a probe of three plain training steps; methods that look at layers take longer"


def probe(bench: Bench, steps: int = 3) -> float:
    """Seconds that one run by hard labels will take, from a few training steps on one batch."""
    recipe = Settings().recipe(bench.budget.batch_size)
    student = bench.place.put(bench.student(0)).train()
    optimizer = recipe.make_optimizer(student.parameters())
    batch = next(bench.whole.train.batches(recipe.batch_size, device=bench.place.device))
    started = 0.0
    for step in range(steps + 1):
        if step == 1:  # the first one warms up
            started = time.perf_counter()
        with bench.place.autocast():
            logits = student(batch.images)
        F.cross_entropy(logits.float(), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    an_image = (time.perf_counter() - started) / (steps * len(batch))
    budget = bench.budget
    looked_at = 3 * len(bench.whole.validation)  # at the end, and the test set; without backward: about a third
    return an_image * (budget.epochs * budget.images + looked_at / 3)


def spoken(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
