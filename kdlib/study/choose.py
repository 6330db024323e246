"""Hyper-parameters by trials on the validation split, equally many for each method; the test set is out of reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kdlib.study.entries import RATES, TRIALS, Settings, entry
from kdlib.study.grid import Cell, Choice

TUNING_SEEDS = (1000,)  # far from the seeds of the studies, whose images and weights they must not share


def first_trials(names: Iterable[str], seeds: Sequence[int]) -> list[Cell]:
    """Every learning rate with the starting values of each method."""
    tried = {name: [replace(entry(name).start, learning_rate=rate) for rate in RATES] for name in names}
    return _cells(tried, seeds)


def further_trials(names: Iterable[str], seeds: Sequence[int], rows: Iterable[Mapping[str, str]]) -> list[Cell]:
    """The other values of each method, at the learning rate that did best in the first trials in `rows`.

    Where all of these diverged, at the smallest: another weight may be what is needed.
    """
    rows = list(rows)
    tried = {}
    for name in names:
        first = [cell.settings for cell in first_trials([name], seeds[:1])]
        means = _means(name, first, seeds, rows)
        best = max(means, key=means.get) if means else first[0]
        tried[name] = [replace(best, **change) for change in entry(name).others]
    return _cells(tried, seeds)


def choices(
    rows: Sequence[Mapping[str, str]], names: Iterable[str] | None = None, seeds: Iterable[int] | None = None
) -> dict[str, Choice]:
    """The best settings of each method by mean validation accuracy over the tuning seeds.

    rows: finished trials. names: the methods wanted, default all in the rows. seeds: the tuning seeds, all of which and
    no others each method must have; default, those that it has. A trial that diverged counts as one
    and is never the best; of equal ones the first is taken.
    Raises ValueError for a method whose trials are not complete, or all diverged.
    """
    found = {}
    for name in dict.fromkeys(row["method"] for row in rows) if names is None else names:
        own = [row for row in rows if row["method"] == name]
        settings = list(dict.fromkeys(Settings.read(row) for row in own))
        made = sorted({int(row["seed"]) for row in own})
        wanted = made if seeds is None else sorted(seeds)
        # Two trials may coincide (a network of two stages has no third layer), but never settings.
        if len(settings) != TRIALS or len(own) != TRIALS * len(made) or made != wanted:
            raise ValueError(
                f"The trials of {name!r} are not complete: {len(own)} runs of {len(settings)} settings with "
                f"seeds {made}, expected {TRIALS} settings with each of the seeds {wanted}. Start the same command "
                "again to finish them; if they were made with other tuning seeds, choose another folder with --out."
            )
        means = _means(name, settings, made, own)
        if not means:
            raise ValueError(
                f"Every trial of {name!r} diverged; the notes in the trials' file say how. This student cannot be "
                "trained by it at these learning rates: leave the method out, or extend RATES."
            )
        best = max(means, key=means.get)
        found[name] = Choice(best, origin(own[0], len(made)), means[best])
    return found


def origin(budget: Mapping[str, object], seeds: int) -> str:
    """What trials of a budget, with so many tuning seeds, are called in the rows of the runs they serve."""
    said = f"{budget['student']}, {budget['images']} images, {budget['epochs']} epochs"
    return said + (f", {seeds} tuning seeds" if seeds > 1 else "")


def _cells(tried: Mapping[str, Sequence[Settings]], seeds: Sequence[int]) -> list[Cell]:
    made = []
    for seed in seeds:
        for name, settings in tried.items():
            made += [Cell("choose", name, name, one, seed, origin="trial") for one in settings]
    return made


def _means(
    name: str, tried: Sequence[Settings], seeds: Sequence[int], rows: Iterable[Mapping[str, str]]
) -> dict[Settings, float]:
    """The mean score of each setting that diverged with no seed."""
    scores = {
        (Settings.read(row), int(row["seed"])): row["validation_accuracy"] for row in rows if row["method"] == name
    }
    values = {settings: [scores[settings, seed] for seed in seeds] for settings in tried}
    # An empty text: that run diverged.
    return {settings: sum(map(float, some)) / len(some) for settings, some in values.items() if all(some)}
