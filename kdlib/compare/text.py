"""The report as lines of text and as Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdlib.compare.networks import TEACHER
from kdlib.compare.tables import BOTH, ONE_NETWORK, SEEDS

if TYPE_CHECKING:
    import pandas as pd

    from kdlib.compare.report import Report

MOST_CLASSES = 20  # that are shown; the JSON has all
UNITS = {  # all else is given in hundredths
    "KL to the teacher": "nats",
    "NLL": "nats",
    "NLL, temperature-scaled": "nats",
    "temperature": "",
    "AUROC": "",
}
TITLES = {
    "accuracy": "Accuracy",
    "uncertainty": "The gain in accuracy, and what its interval covers",
    "pairs": "Network against network, with McNemar's exact test",
    "fidelity": "Fidelity to the teacher",
    "calibration": "Calibration, before and after temperature scaling",
    "classes": "Accuracy by class",
    "robustness": "Robustness",
    "outside": "Confidence in pictures of nothing",
    "each_run": "Each run",
}
ABOUT = {ONE_NETWORK: "the test images alone", SEEDS: "the seeds alone", BOTH: "seeds and test images together"}

Cells = tuple[list[str], list[list[str]]]  # the header and the rows


def plain(report: Report) -> str:
    """The report as aligned lines."""
    return "\n\n".join(_parts(report, _aligned, str.upper, ""))


def markdown(report: Report) -> str:
    """The report as Markdown."""
    title = f"# {' against '.join(map(_escaped, report.networks))}"
    return "\n\n".join([title, *_parts(report, _piped, "## {}".format, "- ")]) + "\n"


def _parts(report: Report, render: Callable[[Cells], str], heading: Callable[[str], str], bullet: str) -> list[str]:
    escape = _escaped if bullet else _wrapped
    parts = ["\n".join(f"{bullet}{escape(note)}" for note in report.notes)]
    parts += [heading("Verdicts"), "\n".join(f"{bullet}{escape(one)}" for one in report.verdicts)]
    for name, title in TITLES.items():
        table: pd.DataFrame = getattr(report, name)
        if len(table):
            parts += [heading(title), escape(_caption(name, table)), render(_cells(name, report))]
    return parts


def format_value(measure: str, value: float) -> str:
    """A value in hundredths, or as it is; a dash for none."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.4f}" if measure in UNITS else f"{100 * value:.2f}"


def format_gain(row: Mapping[str, Any]) -> str:
    """A gain and its interval, +0.42 (-0.10 to +0.94); a dash where there is none."""
    if not math.isfinite(row["gain"]):
        return "-"
    plain = row.get("measure") in UNITS
    gain, low, high = (f"{row[key]:+.4f}" if plain else f"{100 * row[key]:+.2f}" for key in ("gain", "low", "high"))
    if math.isfinite(row["low"]) and math.isfinite(row["high"]):
        return f"{gain} ({low} to {high})"
    return f"{gain} (no scatter)" if row["verdict"] else gain


# -------------------- tables as cells


def _cells(name: str, report: Report) -> Cells:
    rows = getattr(report, name).to_dict("records")
    if name == "accuracy":
        return _accuracy(rows)
    if name == "uncertainty":
        return _uncertainty(rows)
    if name == "pairs":
        return _pairs(rows, report.baseline)
    if name == "each_run":
        return _each_run(rows)
    if name == "classes" and len({row["class"] for row in rows}) > MOST_CLASSES:
        rows = extreme_classes(rows)
    return _beside_the_baseline(rows, report)


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> Cells:
    return ["network", "accuracy", "its interval", "std of seeds", "gain", "verdict"], [
        [
            row["network"],
            format_value("accuracy", row["value"]),
            f"{100 * row['value_low']:.2f} to {100 * row['value_high']:.2f}",
            format_value("accuracy", row["std"]),
            format_gain(row),
            row["verdict"] or "-",
        ]
        for row in rows
    ]


def _uncertainty(rows: Sequence[Mapping[str, Any]]) -> Cells:
    return ["network", "the interval covers", "gain", "verdict"], [
        [row["network"], ABOUT[row["covers"]], format_gain(row), row["verdict"]] for row in rows
    ]


def _pairs(rows: Sequence[Mapping[str, Any]], baseline: str) -> Cells:
    header = ["network", "run", "accuracy", "only it is right", f"only {baseline} is", "gain", "verdict", "McNemar's p"]
    return header, [
        [
            *(row["network"], row["run"], format_value("accuracy", row["value"])),
            *(f"{row['only_network']:,}", f"{row['only_baseline']:,}", format_gain(row), row["verdict"]),
            f"{row['p']:.2g}",
        ]
        for row in rows
    ]


def _each_run(rows: Sequence[Mapping[str, Any]]) -> Cells:
    measures = [column for column in rows[0] if column not in ("network", "run")]
    header = ["network", "run", *measures]
    return header, [
        [row["network"], row["run"] or "-", *(format_value(one, row[one]) for one in measures)] for row in rows
    ]


def _beside_the_baseline(rows: Sequence[Mapping[str, Any]], report: Report) -> Cells:
    """A row for each measure and network; the values of the baseline and the teacher stand in columns."""
    others = report.networks[1:]
    columns = list(rows[0])
    keys = columns[: columns.index("network")]
    by_place: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_place.setdefault((*(row[key] for key in keys), row["measure"]), {})[row["network"]] = row
    with_measure = len({row["measure"] for row in rows}) > 1
    with_teacher = any(row["network"] == TEACHER for row in rows)
    with_covers = len({row["covers"] for row in rows if row["verdict"]}) > 1
    header = [*keys, *["measure"] * with_measure, *["network"] * (len(others) > 1), report.baseline]
    header += ["value" if len(others) > 1 else others[0], *[TEACHER] * with_teacher, "gain"]
    header += [*["over"] * with_covers, "verdict"]
    made = []
    for place, of in by_place.items():
        *values, measure = place
        first = [_key(key, value) for key, value in zip(keys, values, strict=True)] + [measure] * with_measure
        shown = {name: format_value(measure, row["value"]) for name, row in of.items()}
        for name in others:
            row = of[name]
            values = [*[name] * (len(others) > 1), shown[report.baseline], shown[name]]
            values += [shown.get(TEACHER, "-")] * with_teacher
            about = [row["covers"] or "-"] * with_covers
            made.append([*first, *values, format_gain(row), *about, row["verdict"] or "-"])
    return header, made


def _key(key: str, value: Any) -> str:
    if key == "severity" and value == 0:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def extreme_classes(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The classes with the largest losses and gains of any network."""
    gains: dict[str, float] = {}
    for row in rows:
        if math.isfinite(row["gain"]) and abs(row["gain"]) >= abs(gains.get(row["class"], 0.0)):
            gains[row["class"]] = row["gain"]
    order = sorted(gains, key=lambda name: gains[name])
    kept = {*order[: MOST_CLASSES // 2], *order[-MOST_CLASSES // 2 :]}
    return [row for row in rows if row["class"] in kept]


# -------------------- what stands above a table


def _caption(name: str, table: pd.DataFrame) -> str:
    if name == "each_run":
        return "In hundredths; NLL in nats, and temperatures as they are."
    family = table["family"].max()
    if name == "uncertainty":
        return f"In points; {_of_family(family)} An interval over one of the two takes the other as it is."
    if name == "pairs":
        return (
            f"Intervals cover the test images alone; {_of_family(family, where=' at each run')} p is that of one test, "
            "not corrected. A network that wins here need not come from the better method."
        )
    measures = [one for one in dict.fromkeys(table["measure"]) if one in UNITS]
    in_nats, bare = ([one for one in measures if UNITS[one] == unit] for unit in ("nats", ""))
    units = ["In hundredths" if len(measures) < table["measure"].nunique() else ""]
    units += [f"{' and '.join(in_nats)} in nats"] * bool(in_nats) + [f"{' and '.join(bare)} as it is"] * bool(bare)
    parts = ["; ".join(filter(None, units)) + "."]
    families: dict[str, dict[int, None]] = {}
    for row in table.to_dict("records"):
        if row["verdict"]:
            families.setdefault(row["covers"], {})[row["family"]] = None
    if len(families) == 1:
        parts += [f"Intervals cover {ABOUT[covers]}; {_of_family(*sizes)}" for covers, sizes in families.items()]
    elif families:
        sizes = {size: None for some in families.values() for size in some}
        parts.append(f"What an interval covers stands in its row; {_of_family(*sizes)}")
    if name == "accuracy":
        parts.append("What stands under 'its interval' belongs to no family: each holds alone.")
    if name == "robustness":
        parts.append("The first rows, over all corruptions, are a family of their own.")
    if name == "classes" and table["class"].nunique() > MOST_CLASSES:
        parts.append(f"The {MOST_CLASSES} classes with the largest losses and gains; report.json has all.")
    if (table["gain"].notna() & (table["verdict"] == "")).any():
        parts.append("What only a whole test set has, has no interval for one network.")
    return " ".join(parts)


def _of_family(*sizes: int, where: str = "") -> str:
    return f"each is one of a family of {' or '.join(map(str, sizes))}{where}."


# -------------------- cells as text


def _piped(cells: Cells) -> str:
    header, rows = ([_escaped(cell) for cell in cells[0]], cells[1])
    lines = [header, ["---"] * len(header), *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _escaped(text: str) -> str:
    """Text as Markdown shows it unchanged: names come from users."""
    for sign in "\\`*_{}[]<>#|":
        text = text.replace(sign, f"\\{sign}")
    return text


def _aligned(cells: Cells) -> str:
    header, rows = cells
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)
