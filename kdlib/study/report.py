"""The two tables in data/results/README.md: what was run, with which command, where, when and for how long; and what
each method was worth."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlib import files
from kdlib.data import data_dir
from kdlib.study.analysis import Estimate, Results, load
from kdlib.study.method_specs import SGD
from kdlib.study.runs_file import read_rows, read_sessions, session_of_each_row
from kdlib.verdict import LEAST_SEEDS, Verdict

RUNS_MARKER, GAINS_MARKER = "<!-- runs -->", "<!-- gains -->"  # two such lines; what is between them is replaced
COLUMNS = ("file", "runs", "command", "machine", "dates", "versions", "hours")
UNRELATED_OPTIONS = {"--out": 1, "--cache": 1, "--quiet": 0}  # say nothing about the runs; how many words follow each
EMPHASIS = {Verdict.BEATS: "**", Verdict.LOSES: "*", Verdict.INCONCLUSIVE: ""}  # bold, italic, plain


def update_readme(folder: str | Path) -> Path | None:
    """Bring both tables in `folder`/README.md up to date, from the CSV files and the JSON file beside each.

    A folder without a README, or with one that has none of the markers, is left as it is (None is returned), and so is
    a README that is up to date.
    Raises ValueError for a README with some of the markers, but not two for each table, or a file that cannot be read;
    OSError where nothing can be written.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        return None
    new = old = path.read_text("utf-8")
    if RUNS_MARKER not in old and GAINS_MARKER not in old:
        return None  # somebody else's README
    for marker, table in ((RUNS_MARKER, runs_table), (GAINS_MARKER, gains_table)):
        parts = new.split(marker)
        if len(parts) != 3:
            raise ValueError(
                f"{path} has {len(parts) - 1} lines {marker}, expected two. A table is written between them."
            )
        new = f"{parts[0]}{marker}\n\n{table(Path(folder))}\n\n{marker}{parts[2]}"
    if new != old:
        files.write_text(path, new)
    return path


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


# --- the table of runs


def runs_table(folder: Path) -> str:
    """What was run, in Markdown: a row for each file, command, machine and set of versions."""
    rows = [row for path in files.visible(folder, "*.csv") for row in _rows_of_file(path)]
    if not rows:
        return "No study has been run yet."
    rule = ["---"] * (len(COLUMNS) - 1) + ["--:"]
    return _markdown([COLUMNS, rule, *rows])


def _rows_of_file(path: Path) -> list[tuple[str, ...]]:
    """The rows of the table for one file; sessions that differ in their times alone share one."""
    runs = read_rows(path)
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for session in read_sessions(path):
        key = (f"`{_command(session, path.parent)}`", _machine(session), _versions(session))
        groups.setdefault(key, []).append(session)
    rows, session_of = [], session_of_each_row(path, len(runs))
    for (command, _, versions), sessions in groups.items():
        hours = f"{sum(session.get('hours', 0.0) for session in sessions):.1f}"
        made = [run for run, session in zip(runs, session_of, strict=True) if session in sessions]
        if made:  # else it was stopped before its first run was finished
            machine = _machine(sessions[0], made)
            rows.append((f"`{path.name}`", _count(made), command, machine, _dates(sessions), versions, hours))
    unknown = [run for run, session in zip(runs, session_of, strict=True) if session is None]
    if unknown or not rows:
        rows.append((f"`{path.name}`", _count(unknown), "not known", "", "", "", ""))
    return [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]


def _count(runs: Sequence[Mapping[str, str]]) -> str:
    diverged = sum(bool(run.get("error")) for run in runs)
    return f"{len(runs)}, {diverged} diverged" if diverged else str(len(runs))


def _command(session: Mapping[str, Any], folder: Path) -> str:
    """The command without folders of the one who ran it: files of `folder` are named as in the repository."""
    shipped, folder = data_dir().resolve(), folder.resolve()
    place = f"data/{folder.relative_to(shipped).as_posix()}" if shipped in folder.parents else "data/results"
    kept = []
    for word in without_options(shlex.split(session.get("command", "unknown")), UNRELATED_OPTIONS):
        option, is_option, value = word.rpartition("=")  # --choices=FILE
        known = word.endswith(".csv") and (folder / Path(value).name).is_file()
        kept.append(f"{option}{is_option}{place}/{Path(value).name}" if known else word)
    return shlex.join(kept)


def without_options(words: Sequence[str], options: Mapping[str, int]) -> list[str]:
    """The words of a command but these options, written `--option value` or `--option=value`.

    options: how many words follow each.
    """
    rest, kept = list(words), []
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if name not in options:
            kept.append(word)
        elif not equals:
            del rest[: options[name]]
    return kept


def _machine(session: Mapping[str, Any], runs: Sequence[Mapping[str, str]] = ()) -> str:
    """The machine in words. runs: those made there; a worker has only a share of the session's threads."""
    machine = session.get("machine", {})
    parts = [machine.get("processor"), machine.get("gpu"), machine.get("system")]
    counts = sorted({int(run["threads"]) for run in runs if run.get("threads")}) or [machine.get("threads")]
    cores, threads = machine.get("cores"), " and ".join(map(str, counts))
    parts.insert(1, f"{cores} cores, {threads} thread{'s' * (counts != [1])}" if cores else None)
    return ", ".join(part for part in parts if part) or "not known"


def _versions(session: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in session.get("versions", {}).items()) or "not known"


def _dates(sessions: Sequence[Mapping[str, Any]]) -> str:
    first = min(session.get("started", "")[:10] for session in sessions)
    last = max(session.get("ended", session.get("started", ""))[:10] for session in sessions)
    return first if first == last else f"{first} to {last}"


# --- the table of gains


def gains_table(folder: Path) -> str:
    """A column for each budget, a row for each method that any of them has, in Markdown.

    Gains over hard labels in points of test accuracy, with half of the interval, in bold where they BEAT hard labels
    and in italics where they LOSE to them; a column of fewer than five seeds has no verdicts. Raises ValueError for a
    file that cannot be read.
    """
    budgets = _load_all(folder)
    if not budgets and any(read_rows(path) for path in folder.glob("methods-*.csv")):
        return "No runs of hard labels are in this folder, so there are no gains over them."
    if not budgets:
        return "No method has been run yet."
    groups = {name: results.group(name) for results in budgets for name in results.methods}
    rows = [
        ["student", *(results.budget["student"] for results in budgets)],
        ["---", *["--:"] * len(budgets)],
        ["teacher", *(results.budget["teacher"] for results in budgets)],
        ["training images", *(f"{results.images:,}" for results in budgets)],
        ["epochs", *(results.budget["epochs"] for results in budgets)],
        ["optimizer", *(results.budget["optimizer"] for results in budgets)],
        ["seeds", *(str(len(results.seeds)) for results in budgets)],
        ["hard labels, %", *(_score(results.score(results.baseline)) for results in budgets)],
    ]
    for group in sorted(groups.values(), key=lambda group: group.order):
        rows.append([group.title, *(_gain(results, group.name) for results in budgets)])
    return _markdown(rows)


def _load_all(folder: Path) -> list[Results]:
    """The finished runs of every file of methods, by student, teacher, number of images and optimiser."""
    found = []
    for path in folder.glob("methods-*.csv"):
        rows = read_rows(path)
        if any(row["method"] == "hard" for row in rows):  # else there is nothing yet to compare with
            student, teacher = rows[0]["student"], rows[0]["teacher"]
            optimizer = rows[0].get("optimizer", SGD)  # `load` refuses a file without this column, by name
            images = int(rows[0]["images"])
            found.append(
                load("methods", student=student, teacher=teacher, images=images, optimizer=optimizer, folder=folder)
            )
    return sorted(found, key=_budget_order)


def _budget_order(results: Results) -> tuple[Any, ...]:
    budget = results.budget
    return _natural_order(budget["student"]), _natural_order(budget["teacher"]), results.images, budget["optimizer"]


def _natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts resnet8 before resnet18."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _score(estimate: Estimate) -> str:
    return "no mean" if estimate.problem else f"{100 * estimate.mean:.2f}"


def _gain(results: Results, name: str) -> str:
    if name not in results.methods:
        return ""
    gain = results.gain(name)
    if gain.problem or gain.verdict is None:
        return "no mean"
    if not math.isfinite(gain.half_width):
        return f"{100 * gain.mean:+.2f}, the same in all runs"
    mark = EMPHASIS[gain.verdict] if len(results.seeds) >= LEAST_SEEDS else ""
    return f"{mark}{100 * gain.mean:+.2f} ± {100 * gain.half_width:.2f}{mark}"
