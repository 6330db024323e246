"""What each way of distilling a detector gained over hard labels, from the rows of paired runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

from kdlib import verdict
from kdlib.data import data_dir
from kdlib.study.runs_file import read_rows

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("test_ap50", "test_ap75", "test_ap")
TITLES = {"heat map": "heat map", "features": "features", "shuffled": "heat map of other scenes"}


def read(student_width: int = 8, teacher_width: int = 28, folder: Path | None = None) -> list[dict[str, str]]:
    """The finished runs of detectors of these widths, none where there is no file of them.

    folder: where the rows are, default data/results.
    """
    path = (folder or data_dir() / "results") / f"detection-{student_width}-{teacher_width}.csv"
    return read_rows(path) if path.is_file() else []


def complete(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The rows of those seeds with which every method has been run: a paired comparison needs all of them."""
    methods = {row["method"] for row in rows}
    by_seed: dict[str, set[str]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], set()).update([row["method"]] if row["test_ap50"] else [])  # else it diverged
    return [row for row in rows if by_seed[row["seed"]] == methods]


def gains(rows: Sequence[Mapping[str, str]], value: str = "test_ap50") -> pd.DataFrame:
    """Every method against hard labels, seed by seed: the table of `kdlib.verdict.table`, in points of 100.

    rows: finished runs of one budget, as they stand in the file. value: one of METRICS.
    Raises ValueError for runs that diverged or are missing, or fewer than two seeds.
    """
    import pandas as pd

    if value not in METRICS:
        raise ValueError(f"value is one of {', '.join(METRICS)}; got {value!r}.")
    diverged = [f"{row['method']}, seed {row['seed']}" for row in rows if not row[value]]
    if diverged:
        raise ValueError(
            f"Runs without a result cannot be compared: {'; '.join(diverged)}. Compare without these methods; to leave "
            "out the seeds would be to choose seeds."
        )
    frame = pd.DataFrame(
        [{"method": row["method"], "seed": int(row["seed"]), value: 100 * float(row[value])} for row in rows]
    )
    return verdict.table(frame, value=value, within=[], same_unit=True)  # all in points, however far apart


def _diverged(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for each run that diverged."""
    return [
        f"{row['method']}, seed {row['seed']}, diverged: the gains leave out that seed."
        for row in rows
        if not row["test_ap50"]
    ]


def describe(rows: Sequence[Mapping[str, str]]) -> str:
    """The gains in AP50 and AP as lines of text; with one seed the scores alone, as it says nothing about spread."""
    lines = _diverged(rows)
    if lines:
        rows = complete(rows)
    if len({row["seed"] for row in rows}) < 2:
        return "\n".join([*lines, *(f"{row['method']}: AP50 {100 * float(row['test_ap50']):.1f}" for row in rows)])
    for value in METRICS:
        table = gains(rows, value)
        lines.append(f"{value}: hard labels {table['baseline_score'][0]:.1f}")
        lines += [
            f"  {line.method:10} {line.score:5.1f}  {line.gain:+.1f} "
            f"({line.low:+.1f} to {line.high:+.1f})  {line.verdict}"
            for line in table.itertuples()
        ]
    return "\n".join(lines)


def summary(rows: Sequence[Mapping[str, str]]) -> str:
    """What the complete seeds say in AP50 and AP75, as lines of text: how many, the scores, the gains, the speed.

    Fewer than two seeds have no intervals, and the text says so; runs that diverged stand at its beginning.
    """
    lines = _diverged(rows)
    rows = complete(rows)
    if not rows:
        lines.append("No seed is complete yet: every method has to be run with it. Run: python -m course.detection.")
        return "\n".join(lines)
    seeds = {row["seed"] for row in rows}
    scores = {
        method: 100 * mean(float(row["test_ap50"]) for row in rows if row["method"] == method)
        for method in dict.fromkeys(row["method"] for row in rows)
    }
    teacher = 100 * float(rows[0]["teacher_test_ap50"])
    lines += [
        f"AP50 on {int(float(rows[0]['test_scenes'])):,} test scenes, {len(seeds)} seed{'s' * (len(seeds) > 1)}",
        f"{'teacher':26}{teacher:6.1f}",
        f"{'student, hard labels':26}{scores['hard']:6.1f}",
    ]
    if len(seeds) < 2:
        others = [(title, scores[method]) for method, title in TITLES.items() if method in scores]
        lines += [f"{title:26}{score:6.1f}" for title, score in others]
        return "\n".join([*lines, "One seed has no interval: nothing can be said about the gains."])
    lines += _lines(gains(rows))
    strict = gains(rows, "test_ap75")
    lines += ["AP75, for which a box must overlap by three quarters"]
    lines += [f"{'student, hard labels':26}{strict['baseline_score'][0]:6.1f}", *_lines(strict)]
    ratio = median(float(row["latency_ratio"]) for row in rows)
    return "\n".join([*lines, f"the teacher takes {ratio:.1f} times as long for a scene (median of the runs)"])


def _lines(table: pd.DataFrame) -> list[str]:
    """A line for each method: its score, its gain with an interval, the verdict."""
    lines = []
    for line in table.itertuples():
        gain = f"{line.gain:+5.1f} ({line.low:+.1f} to {line.high:+.1f})"
        lines.append(f"{TITLES[line.method]:26}{line.score:6.1f}  {gain:24}{line.verdict}")
    return lines
