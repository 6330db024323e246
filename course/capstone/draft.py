"""A report with all numbers and without the words, and the command that trains a student of the study again."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING

from course.capstone.document import PLACEHOLDER
from course.capstone.evidence import Evidence

if TYPE_CHECKING:
    from kdlib.study.analysis import Results

# The methods whose settings `kdlib distill` takes as options, and what it calls them.
LOGIT_METHODS = {"kd": "logit", "dist": "dist", "standardized": "standardized_kd"}
ALL_EQUAL = "all seeds equal"  # in place of an interval


def write(evidence: Evidence, files: dict[str, str]) -> str:
    """The text of a report in which words are to be put; files: the front matter's paths by name."""
    results, budget = evidence.results, evidence.results.budget
    front = "\n".join(f"{name}: {path}" for name, path in files.items())
    seeds, settings = len(results.seeds), results.rows[0]["tuned_on"]
    chosen = "the defaults, none was tuned" if settings == "defaults" else f"tuned on validation pictures ({settings})"
    commands = "\n".join(evidence.commands)
    gains = [results.gain(name) for name in results.methods]
    gain = next((one for one in gains if not one.problem), gains[0])
    test = "" if evidence.test_images is None else f", {evidence.test_images:,} for testing"
    return f"""---
title: {PLACEHOLDER}
{front}
---

# {PLACEHOLDER}: the same title

## Question

{PLACEHOLDER}: what is the student for, on which device, and what would make it good enough? One or two sentences.

## Data

- origin: {PLACEHOLDER}
- licence: {PLACEHOLDER}
- split: {PLACEHOLDER}
- pictures: {results.images:,} for training{test}; {PLACEHOLDER}: how many for validation, how many classes

## Method

- teacher: {budget["teacher"]}, {PLACEHOLDER}: what was it trained on?
- student: {budget["student"]}
- budget: {budget["epochs"]} epochs, {budget["views"]} views, {seeds} seeds, the same for every method
- optimizer: {budget["optimizer"]}
- settings: {chosen}
- test set: read once for each run, after everything was chosen

## Results

{_results_table(results)}

Gains over hard labels, in points. {gain.comparisons} intervals that hold together with 95 %, over {gain.over}.

## Cost

{_cost_tables(evidence)}

## Conclusion

{PLACEHOLDER}: for each method the verdict, with gain and interval. What do the controls say?

## Limits

{PLACEHOLDER}: what do these rows not cover?

## Repeat

```sh
{commands}
```
"""


def _results_table(results: Results) -> str:
    lines = ["| method | seeds | accuracy % | gain | interval | verdict |", "|---|--:|--:|--:|---|---|"]
    for name in (results.baseline, *results.methods):
        score, gain = results.score(name), None if name == results.baseline else results.gain(name)
        accuracy = f"{PLACEHOLDER}: {score.problem}" if score.problem else f"{100 * score.mean:.2f}"
        cells = [name, str(len(results.seeds)), accuracy]
        if gain is None:
            cells += ["", "", ""]
        elif gain.problem:
            cells += [f"{PLACEHOLDER}: {gain.problem}", "", ""]
        else:
            interval = f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f}" if math.isfinite(gain.low) else ALL_EQUAL
            cells += [f"{100 * gain.mean:+.2f}", interval, str(gain.verdict)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cost_tables(evidence: Evidence) -> str:
    lines = ["| network | parameters | MACs | bytes | ms |", "|---|--:|--:|--:|--:|"]
    for role in ("teacher", "student"):
        one = evidence.cost[role]
        counts = [f"{one[name]:,}" for name in ("parameters", "macs", "bytes")]
        lines.append(f"| {role} | {' | '.join(counts)} | {one['milliseconds']:.2f} |")
    lines += [
        "",
        f"Milliseconds of processor time, one picture, one thread, on {evidence.cost['machine'].get('processor')}.",
        "",
    ]
    lines += ["| format | bytes | agreement % |", "|---|--:|--:|"]
    for one in evidence.export["formats"]:
        lines.append(f"| {one['format']} | {one['bytes']:,} | {100 * one['agreement']:.2f} |")
    return "\n".join(lines)


def repeat_command(results: Results, method: str, seed: int) -> str:
    """The `kdlib distill` command that trains the student of a row again and keeps it.

    Raises ValueError for a method or a seed that the study did not run, or a method that the command has no options
    for.
    """
    from kdlib.study.plans import Budget

    group = results.group(method)
    if method not in LOGIT_METHODS:
        raise ValueError(
            f"The settings of {method} cannot be given to kdlib distill; those of "
            f"{', '.join(LOGIT_METHODS)} can. Train it in Python, by train.fit with the settings of the row."
        )
    if seed not in group.by_seed:
        raise ValueError(f"The study has no seed {seed}; it has {', '.join(map(str, group.by_seed))}.")
    row, settings = group.by_seed[seed], group.settings
    batch = Budget.from_row(row).batch_size
    device, _, bits = row["device"].partition(", ")  # as "cpu, bfloat16"
    precision = {"precision": {"bfloat16": "bf16", "float32": "fp32"}[bits]} if bits else {}
    options = {
        "data": row["data"],
        "teacher": row["teacher"],
        "student": row["student"],
        "method": LOGIT_METHODS[method],
        "temperature": f"{settings.temperature:g}",
        "alpha": f"{settings.alpha:g}",
        "images": row["images"],
        "epochs": row["epochs"],
        "views": row["views"],
        "batch-size": str(batch),
        "optimizer": row["optimizer"],
        "learning-rate": repr(settings.recipe(batch, row["optimizer"]).learning_rate),
        "weight-decay": repr(settings.weight_decay),
        "seed": str(seed),
        "device": device,
        **precision,
        "cache": "runs/capstone/outputs",  # as the study keeps them, in 16 bits
        "out": "runs/capstone/student",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return shlex.join(["kdlib", "distill", *words, "--no-baseline"])
