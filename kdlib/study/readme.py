"""The two tables in data/results/README.md: what each method was worth, and what was run, with which command, where,
when and for how long."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlib import files
from kdlib.study.gains import gains_table
from kdlib.study.rows import authors, parse, sessions

RUNS, GAINS = "<!-- runs -->", "<!-- gains -->"  # two lines like this; what stands between them is replaced
OWN = {"--out": 1, "--cache": 1, "--quiet": 0}  # options that say nothing about the runs, and how many words follow
COLUMNS = ("file", "runs", "command", "machine", "dates", "versions", "hours")


def write_readme(folder: str | Path) -> Path | None:
    """Bring both tables in `folder`/README.md up to date, from the CSV files and the JSON file beside each.

    A folder without a README is left as it is (None is returned), and so is a README that says it all already.
    Raises ValueError for a README without two marks for each table, or a file that cannot be read; OSError where
    nothing can be written.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        return None
    new = text = path.read_text("utf-8")
    for mark, table in ((RUNS, runs_table), (GAINS, gains_table)):
        parts = new.split(mark)
        if len(parts) != 3:
            raise ValueError(
                f"{path} has {len(parts) - 1} lines {mark}, expected two. A table is written between them."
            )
        new = f"{parts[0]}{mark}\n\n{table(Path(folder))}\n\n{mark}{parts[2]}"
    if new != text:
        files.write_text(path, new)
    return path


def runs_table(folder: Path) -> str:
    """What was run, in Markdown: a line for each file, command, machine and set of versions."""
    lines = [line for path in sorted(folder.glob("*.csv")) for line in _lines(path)]
    if not lines:
        return "No study has been run yet."
    rule = ["---"] * (len(COLUMNS) - 1) + ["--:"]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (COLUMNS, rule, *lines))


def _lines(path: Path) -> list[tuple[str, ...]]:
    """The lines of one file; sessions that differ in their times alone are one line."""
    rows = parse(path.read_bytes(), None, path)
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for session in sessions(path):
        said = (f"`{_command(session, path.parent)}`", _machine(session), _versions(session))
        groups.setdefault(said, []).append(session)
    made, by = [], authors(path, len(rows))
    for (command, machine, versions), group in groups.items():
        hours = f"{sum(session.get('hours', 0.0) for session in group):.1f}"
        own = [row for row, session in zip(rows, by, strict=True) if session in group]
        if own:  # else it was stopped before its first run was finished
            made.append((f"`{path.name}`", _count(own), command, machine, _dates(group), versions, hours))
    made = made or [(f"`{path.name}`", _count(rows), "not known", "", "", "", "")]
    return [tuple(cell.replace("|", "\\|") for cell in line) for line in made]


def _count(rows: Sequence[Mapping[str, str]]) -> str:
    lost = sum(bool(row.get("note")) for row in rows)
    return f"{len(rows)}, {lost} diverged" if lost else str(len(rows))


def _command(session: Mapping[str, Any], folder: Path) -> str:
    """The command without folders of the one who ran it: files of `folder` are named as in the repository."""
    words, kept = shlex.split(session.get("command", "unknown")), []
    while words:
        word = words.pop(0)
        if (name := word.partition("=")[0]) in OWN:
            del words[: OWN[name] if name == word else 0]
        else:
            known = word.endswith(".csv") and (folder / Path(word).name).is_file()
            kept.append(f"data/results/{Path(word).name}" if known else word)
    return shlex.join(kept)


def _machine(session: Mapping[str, Any]) -> str:
    machine = session.get("machine", {})
    parts = [machine.get("processor"), machine.get("gpu"), machine.get("system")]
    cores, threads = machine.get("cores"), machine.get("threads")
    parts.insert(1, f"{cores} cores, {threads} thread{'s' * (threads != 1)}" if cores else None)
    return ", ".join(part for part in parts if part) or "not known"


def _versions(session: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in session.get("versions", {}).items()) or "not known"


def _dates(group: list[Mapping[str, Any]]) -> str:
    first = min(session.get("started", "")[:10] for session in group)
    last = max(session.get("ended", session.get("started", ""))[:10] for session in group)
    return first if first == last else f"{first} to {last}"
