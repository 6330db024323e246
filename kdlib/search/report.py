"""What a search leaves in its folder: report.md for people, trials.csv, judged.csv, search.json and search.png."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from kdlib import files, looks, schemas
from kdlib.search.engine import Found, identity_of
from kdlib.search.judging import FOUND, RANDOM, SEEDS, START, Curse, Judged
from kdlib.search.space import Choice, Distribution, LogUniform, Whole
from kdlib.search.storage import FILE as DATABASE
from kdlib.search.trials import COMPLETE, DIVERGED, INFEASIBLE, PRUNED, differences
from kdlib.study.method_specs import BATCH_SIZE
from kdlib.study.runs_file import library_versions, machine_info
from kdlib.verdict import Comparison

REPORT, TRIALS, JUDGED, FACTS, PICTURE = "report.md", "trials.csv", "judged.csv", "search.json", "search.png"
FILES = (REPORT, TRIALS, JUDGED, FACTS, PICTURE)
FEW_TRIALS = 30  # complete ones, below which importance is a hint at best


def write(folder: Path, found: Found, judged: Judged | None = None, command: str | None = None) -> None:
    """Write all files of a search. command: that made it, for the notes."""
    files.ensure_writable(folder)
    identity = identity_of(found.task, found.space, found.strategy, found.limits)
    notes = {"identity": identity, "command": command, "machine": machine_info(), "versions": versions()}
    files.write_text(folder / FACTS, _to_json(notes))  # first: it says whose the other files are
    files.write_text(folder / TRIALS, found.trials.to_csv(lineterminator="\n"))
    if judged is not None:
        files.write_text(folder / JUDGED, judged.runs.to_csv(index=False, lineterminator="\n"))
    else:  # of an earlier report: its runs are in the storage
        (folder / JUDGED).unlink(missing_ok=True)
    with files.atomic_write(folder / PICTURE) as temporary:
        picture(found, judged.random if judged else None).savefig(temporary, format="png", dpi=110)
    files.write_text(folder / FACTS, _to_json(to_dict(found, judged) | notes))
    files.write_text(folder / REPORT, text(found, judged, command))


def _to_json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=1) + "\n"


def check_reports_of_a_search(folder: Path, *, stored_elsewhere: bool) -> None:
    """Raise ValueError for a folder with reports that no search has left which can go on there.

    stored_elsewhere: whether --storage keeps the trials; otherwise they are in the folder.
    """
    there = [name for name in FILES if (folder / name).exists()]
    if not there or (folder / (FACTS if stored_elsewhere else DATABASE)).exists():
        return
    if FACTS in there:
        raise ValueError(
            f"{folder} holds the reports of a search ({', '.join(there)}) and not its trials, which were kept "
            "elsewhere. Give the same --storage to go on with it, replace them with --overwrite, or choose another "
            "folder with --out."
        )
    raise ValueError(
        f"{folder} holds {', '.join(there)} and no search, so they are another command's. Replace them with "
        "--overwrite, or choose another folder with --out."
    )


def check_reports_of_this_search(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise ValueError for a folder with the reports of another search than the one with this identity."""
    path = folder / FACTS
    if not path.exists():
        return
    advice = "Replace it with --overwrite, or choose another folder with --out."
    try:
        facts = schemas.read_json(path.read_text("utf-8"))
        schemas.check("it", facts, schemas.SEARCH)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}). {advice}") from error
    # Older reports have no identity, and some of its settings among the facts.
    if differ := differences(facts | facts.get("identity", {}), identity):
        raise ValueError(f"The report in {folder} is of a search with {', '.join(differ)}. {advice}")


def versions() -> dict[str, str]:
    """Of the libraries that the numbers depend on."""
    return {**library_versions(), "optuna": metadata.version("optuna")}


def to_dict(found: Found, judged: Judged | None = None) -> dict[str, Any]:
    """What was found and judged, as plain values."""
    best = found.best
    facts: dict[str, Any] = {
        "best": {
            "trial": best.trial,
            "validation_accuracy": best.validation_accuracy,
            "student": best.student,
            "settings": {name: value for name, value in asdict(best.settings).items() if value is not None},
        },
        "trials": {state: found.count(state) for state in (COMPLETE, PRUNED, DIVERGED, INFEASIBLE)},
        "cost_epochs": found.cost,
        "importance": found.importance,
        "method": found.task.method,
        "images": found.task.num_images,
        "epochs": found.task.epochs,
        "views": found.task.views,
        "stem": found.task.stem,
        "batch_size": found.task.batch_size,
        "sampler": found.strategy.sampler,
        "pruner": found.strategy.pruner,
        "seed": found.strategy.seed,
        "tuning_seed": found.tuning_seed,
        "max_macs": found.limits.max_macs,
        "max_latency": found.limits.max_latency,
        "training_hours": sum(row["seconds"] for row in found.rows) / 3600,
    }
    if judged is not None:
        facts["judged"] = {
            "seeds": sorted({row["seed"] for row in judged.rows}),
            "arms": {
                arm.name: {
                    "student": arm.student,
                    "search_cost_epochs": arm.search_cost,
                    "test_accuracy": list(judged.accuracies(arm.name).values()),
                }
                for arm in judged.arms
            },
            "verdicts": {
                name: _finite(one) | {"verdict": str(one.verdict), "over": judged.over(name)}
                for name, one in judged.verdicts.items()
            },
            "winners_curse": {name: _finite(one) | {"excess": one.excess} for name, one in judged.curses.items()},
            "diverged": judged.diverged,
        }
    return facts


def _finite(one: Comparison | Curse) -> dict[str, Any]:
    """Its fields; None for the ends of an interval that is the whole line, since JSON has no infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(one).items()
    }


# --- report.md


def text(found: Found, judged: Judged | None, command: str | None) -> str:
    """The report in Markdown."""
    parts = [f"# A search for {found.task.method}", _what(found, command)]
    if judged is not None:
        parts += ["## What it was worth", *_judgement(found, judged)]
    else:
        parts.append(
            "This search has not been judged: the best of many single runs is flattered by luck. "
            "`search.judge(found)` trains it anew with fresh seeds, beside the start settings and random search."
        )
    parts += ["## What was found", *_findings(found), f"![Best so far, importance and trials]({PICTURE})"]
    parts += ["## Trials", _trials_table(found), "## Where", _where(found)]
    return "\n\n".join(parts) + "\n"


def _what(found: Found, command: str | None) -> str:
    task, strategy = found.task, found.strategy
    who = "width and depth of a ResNet for small images" if "width" in found.space or "depth" in found.space else ""
    views = "1 augmented view of each image" if task.views == 1 else f"{task.views} augmented views of each in turn"
    stem = "" if task.stem == "stride2" else f" (stem {task.stem})"
    limits = []
    if found.limits.max_macs is not None:
        limits.append(f"at most {found.limits.max_macs:,} MACs for an image")
    if found.limits.max_latency is not None:
        limits.append(
            f"at most {found.limits.max_latency * 1e3:g} ms for an image (one thread, PyTorch, on this machine: on "
            "another one other networks keep to it)"
        )
    sentences = [
        f"{task.num_images:,} training images of {task.data.name}, {task.epochs} epochs at most, "
        f"student {who or task.student}{stem}{', ' + ' and '.join(limits) if limits else ''}.",
        f"SGD, batches of {task.batch_size}, {views}.",
        f"Sampler {strategy.sampler}, pruner {strategy.pruner or 'none'}, seed {strategy.seed}; all trials train with "
        f"seed {found.tuning_seed}. Choices are by validation accuracy; the test set is not read by the search.",
    ]
    ranges = [f"- {name}: {_range(one)}" for name, one in found.space.items()]
    shown = [f"`{command}`"] if command else []
    return "\n\n".join([*shown, " ".join(sentences), "\n".join(ranges)])


def _range(distribution: Distribution) -> str:
    if isinstance(distribution, Choice):
        return "one of " + ", ".join(map(str, distribution.values))
    if isinstance(distribution, Whole):
        return f"{distribution.low} to {distribution.high} in steps of {distribution.step}"
    scale = ", logarithmic" if isinstance(distribution, LogUniform) else ""
    return f"{distribution.low:g} to {distribution.high:g}{scale}"


def _verdict(judged: Judged, name: str, one: Comparison) -> str:
    """The found setting against another arm, in a sentence."""
    ours, theirs = (next(arm for arm in judged.arms if arm.name == which) for which in (FOUND, name))
    if (ours.student, ours.settings) == (theirs.student, theirs.settings):
        return f"**The found setting is that of {name}**: both have the same runs, and there is nothing to compare."
    interval = f"{one.confidence:.0%} interval over {judged.over(name)} {100 * one.low:+.2f} to {100 * one.high:+.2f}"
    if not math.isfinite(one.low):
        interval = "all differences are the same, so there is no interval"
    return (
        f"**The found setting against {name}: {one.verdict}**, {100 * one.mean:+.2f} points of test accuracy "
        f"({interval}; {one.n} paired seeds, {one.comparisons} comparison{'s' * (one.comparisons > 1)})."
    )


def _judgement(found: Found, judged: Judged) -> list[str]:
    seeds = sorted({row["seed"] for row in judged.rows})
    table = [["arm", "test accuracy, %", "search, epochs", "judging, epochs", "student", "settings"], ["---"] * 6]
    for arm in judged.arms:
        values = list(judged.accuracies(arm.name).values())
        runs = [row for row in judged.rows if row["arm"] == arm.name]
        mean = f"{100 * sum(values) / len(values):.2f}" if values else "diverged"
        cost = f"{arm.search_cost:,.0f}"
        table.append([arm.name, mean, cost, str(sum(row["epochs"] for row in runs)), arm.student, str(arm.settings)])
    parts = [
        f"Each arm was trained anew with the fresh seeds {', '.join(map(str, seeds))}, the same ones for all arms; the "
        "search knew none of them. The test set was read once by each run. Costs of searches are in epochs of "
        f"{found.task.student}.",
        _markdown(table),
    ]
    parts += [_verdict(judged, name, one) for name, one in judged.verdicts.items()]
    parts += [judged.caution] if judged.caution else []
    if any(judged.over(name) == SEEDS for name in judged.verdicts):
        parts.append(
            "Some of these runs are of an older kdlib, which did not keep which test images they had right, so an "
            "interval over seeds alone leaves out that another test set would give other accuracies. Fresh "
            "seeds, as in search.judge(found, range(100, 105)), have both."
        )
    lacking = {START, RANDOM} - {arm.name for arm in judged.arms}
    if RANDOM in lacking and judged.random is not None:
        parts.append("All trials of random search diverged: it found nothing to compare with.")
    elif RANDOM in lacking:
        parts.append("There is no arm of random search: it was left out, or the search was one itself.")
    for name, curse in judged.curses.items():
        whose = "The search" if name == FOUND else "Random search"
        known = math.isfinite(curse.low) and math.isfinite(curse.high)
        interval = f"95 % interval of the mean {100 * curse.low:.2f} to {100 * curse.high:.2f}"
        parts.append(
            f"{whose} reported {100 * curse.reported:.2f} % on the validation split for its best trial; fresh seeds "
            f"have {100 * curse.fresh:.2f} % there ({interval if known else 'no scatter between seeds'}). The "
            f"difference, {100 * curse.excess:+.2f} points, is the winner's curse and what another seed brings."
        )
    for name, seeds_lost in judged.diverged.items():
        lost = ", ".join(map(str, seeds_lost))
        parts.append(f"{name} diverged at seeds {lost}; these are in no mean, and there is no verdict.")
    if found.task.images is None:
        parts.append("All seeds share their training images: they differ by order, views and initial weights alone.")
    return parts


def _findings(found: Found) -> list[str]:
    best = found.best
    states = {state: found.count(state) for state in (COMPLETE, PRUNED, DIVERGED, INFEASIBLE)}
    told = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    parts = [
        f"Best trial: {best.trial}, {best.student}, {best.settings}; validation accuracy "
        f"{100 * best.validation_accuracy:.2f} % in one run. {len(found.rows)} trials: {told}. "
        f"Training cost: {found.cost:,.0f} epochs of {found.task.student}."
    ]
    if found.task.batch_size != BATCH_SIZE:
        rate = best.settings.recipe(found.task.batch_size).learning_rate
        parts.append(
            f"Learning rates are those of a batch of {BATCH_SIZE}: with batches of {found.task.batch_size} the best "
            f"trial was trained at {rate:g}."
        )
    if found.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found.importance.items())
        complete = states[COMPLETE]
        caveat = (
            f" They rest on {complete} complete trials, which is few: take them for a hint, and no setting for "
            "unimportant."
            if complete < FEW_TRIALS
            else f" They rest on {complete} complete trials."
        )
        parts.append(f"Importance (PED-ANOVA, the share in being among the best trials): {shares}.{caveat}")
    elif len(found.space) > 1:
        parts.append("Too few trials were trained to their end to say which setting is important.")
    return parts


def _trials_table(found: Found) -> str:
    head = ["trial", "state", "validation accuracy, %", "epochs", "student", *found.space]
    rows = [head, ["--:"] * len(head)]
    for row in found.rows:
        accuracy = row["validation_accuracy"]
        shown = f"{100 * accuracy:.2f}" if accuracy is not None else ""
        if accuracy is None and row["last_report"] is not None:
            shown = f"({100 * row['last_report']:.2f})"
        values = [_short(row.get(name)) for name in found.space]
        rows.append([str(row["trial"]), row["state"], shown, str(row["epochs"]), row["student"], *values])
    note = "In brackets: at the last report, on a part of the validation split, for trials that were stopped."
    return f"{_markdown(rows)}\n\n{note}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _where(found: Found) -> str:
    machine = machine_info()
    seconds = sum(row["seconds"] for row in found.rows)
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {found.workers} "
        f"worker{'s' * (found.workers > 1)}; {seconds / 3600:.2f} hours of training for the search. {libraries}."
    )


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


# --- search.png


def picture(found: Found, random: Found | None = None) -> Any:
    """A figure: the best so far against training cost, importance, and accuracy over the four most important settings.

    random: a random search, drawn beside it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 4)
    _draw_best(figure.add_subplot(grid[0, :2]), found, random)
    _draw_importance(figure.add_subplot(grid[0, 2:]), found)
    shown = (list(found.importance) or list(found.space))[:4]
    first: Any = None
    for column, name in enumerate(shown):
        axes = figure.add_subplot(grid[1, column], sharey=first)
        _draw_slice(axes, found, name)
        axes.tick_params(labelleft=first is None)
        first = axes if first is None else first
    first.set_ylabel("validation accuracy (%)")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def best_so_far(found: Found) -> tuple[list[float], list[float]]:
    """Cost in epochs and the best validation accuracy until then, after each trial that improved or ended."""
    cost, best = 0.0, 0.0
    costs, values = [], []
    for row in found.rows:
        cost += row["cost"]
        if row["state"] == COMPLETE:
            best = max(best, row["validation_accuracy"])
        if best:
            costs.append(cost)
            values.append(100 * best)
    return costs, values


def _draw_best(axes: Any, found: Found, random: Found | None) -> None:
    blue, pruner = looks.DISTILLED.colour, found.strategy.pruner
    searches: Mapping[str, tuple[Found | None, str, str]] = {
        "random search": (random, looks.BROWN, "--"),
        f"{found.strategy.sampler}{' + ' + pruner if pruner else ''}": (found, blue, "-"),
    }
    for name, (one, colour, line) in searches.items():
        if one is not None:
            axes.step(*best_so_far(one), where="post", color=colour, linestyle=line, label=name)
    best = found.best
    cost = sum(row["cost"] for row in found.rows if row["trial"] <= best.trial)
    axes.plot([cost], [100 * best.validation_accuracy], "o", color=blue)
    axes.set(xlabel=f"training cost (epochs of {found.task.student})", ylabel="best validation accuracy (%)")
    axes.set_title("Best so far (single runs: flattered)", fontsize=10)
    axes.legend(frameon=False, loc="lower right")
    _plain(axes)


def _draw_importance(axes: Any, found: Found) -> None:
    complete = found.count(COMPLETE)
    axes.set_title(
        f"Importance, of {complete} complete trials{' (a hint)' if complete < FEW_TRIALS else ''}", fontsize=10
    )
    if not found.importance:
        reason = "too few complete trials" if len(found.space) > 1 else "the space has one setting alone"
        axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    names = list(found.importance)[::-1]
    shares = [100 * found.importance[name] for name in names]
    axes.barh([name.replace("_", " ") for name in names], shares, color=looks.GREY)
    for position, share in enumerate(shares):
        axes.text(share + 1, position, f"{share:.0f}", va="center", fontsize=9)
    axes.set(xlabel="share (%)", xlim=(0, max(shares) * 1.15))
    _plain(axes)


def _draw_slice(axes: Any, found: Found, name: str) -> None:
    complete = [row for row in found.rows if row["state"] == COMPLETE]
    stopped = [row for row in found.rows if row["state"] == PRUNED and row["last_report"] is not None]
    best = [row for row in complete if row["trial"] == found.best.trial]
    marks: dict[str, tuple[list[dict[str, Any]], str, dict[str, Any]]] = {
        "stopped early, at its last report": (stopped, "last_report", {"marker": "x", "color": looks.GREY}),
        "complete": (complete, "validation_accuracy", {"marker": "o", "color": looks.DISTILLED.colour}),
        "best": (best, "validation_accuracy",
                 {"marker": "o", "color": "none", "markeredgecolor": "black", "markersize": 11}),
    }  # fmt: skip
    for label, (rows, column, style) in marks.items():
        values = [row[name] for row in rows], [100 * row[column] for row in rows]
        axes.plot(*values, linestyle="none", label=label, **{"markersize": 5, **style})
    axes.set_xlabel(name.replace("_", " "))
    _set_range(axes, found.space[name])
    _plain(axes)


def _set_range(axes: Any, distribution: Distribution) -> None:
    """The whole range of a setting, so that a corner without trials shows."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if isinstance(distribution, Choice):
        axes.margins(x=0.2)
        return
    if isinstance(distribution, LogUniform):
        axes.set_xscale("log")
        low, high = distribution.low / 1.2, distribution.high * 1.2
        decades = math.log10(high / low)
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if decades > 1.5 else (1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = 0.05 * (distribution.high - distribution.low)
        low, high = distribution.low - room, distribution.high + room
        if isinstance(distribution, Whole):
            axes.set_xticks(distribution.values if len(distribution.values) < 9 else distribution.values[::4])
    if low < high:
        axes.set_xlim(low, high)


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def command_line(arguments: Sequence[str]) -> str:
    """The command that was given, as a shell takes it."""
    return shlex.join(["kdlib", "search", *arguments])
