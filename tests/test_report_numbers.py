"""Numbers of reports: each in its column and its unit, and drawn where its name stands."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from torch import nn

from kdlib import distill, evaluation, measure, models
from kdlib.compare import text
from kdlib.data import DataModule

ROW: dict[str, Any] = {
    "network": "kd", "measure": "accuracy", "value": 0.5, "value_low": 0.4, "value_high": 0.6, "std": 0.01, "gain": 0.1,
    "low": 0.05, "high": 0.15, "covers": "seeds", "family": 1, "better": "higher", "verdict": "BEATS",
}  # fmt: skip


def test_cells_of_a_comparison_stand_in_their_columns() -> None:
    header, (cells,) = text._accuracy([ROW])
    shown = dict(zip(header, cells, strict=True))
    assert (shown["accuracy"], shown["its interval"], shown["gain"]) == (
        "50.00",
        "40.00 to 60.00",
        "+10.00 (+5.00 to +15.00)",
    )
    pair = ROW | {"run": "0", "only_network": 12, "only_baseline": 3, "p": 0.03}
    header, (cells,) = text._pairs([pair], "hard labels")
    shown = dict(zip(header, cells, strict=True))
    assert (shown["only it is right"], shown["only hard labels is"]) == ("12", "3")
    base = ROW | {"network": "hard labels", "value": 0.4, "gain": math.nan, "verdict": ""}
    report: Any = SimpleNamespace(networks=["hard labels", "kd"], baseline="hard labels")
    header, (cells,) = text._beside_the_baseline([base, ROW], report)
    shown = dict(zip(header, cells, strict=True))
    assert (shown["hard labels"], shown["kd"]) == ("40.00", "50.00")


@pytest.fixture
def report(blobs: DataModule) -> tuple[distill.Report, nn.Module, nn.Module]:
    teacher, student = (
        models.build(name, num_classes=3, in_channels=1, image_size=8, seed=0).eval()
        for name in ("resnet14", "resnet8")
    )
    result: Any = SimpleNamespace(student=student, device="cpu, float32")
    job = distill.Job(teacher="resnet14", student="resnet8", device="cpu", precision="fp32")
    return distill._report(job, blobs, teacher, result, None, 0.0), teacher, student


def test_what_a_job_reports_of_each_network_is_its_own(report: Any, blobs: DataModule) -> None:
    found, teacher, student = report
    shape = (1, 8, 8)
    for name, network in (("teacher", teacher), ("student", student)):
        assert getattr(found, f"{name}_macs") == measure.macs(network, shape)
        assert getattr(found, f"{name}_bytes") == measure.bytes_in_memory(network)
    logits = evaluation.evaluate(student, blobs.test, device="cpu", precision="fp32").logits
    assert found.student_calibration_error == pytest.approx(measure.calibration_error(logits, blobs.test.labels))


def test_the_table_of_a_job_is_in_millions_and_megabytes(report: Any) -> None:
    found = replace(report[0], teacher_macs=41_000_000, teacher_bytes=4_200_000)
    line = next(one for one in distill.table(found).splitlines() if one.startswith("teacher"))
    assert "41.0 M " in line
    assert "4.2 MB" in line


def test_bars_of_importance_have_their_own_names_and_the_best_never_falls() -> None:
    from kdlib.search import report

    rows = [
        {"cost": 1.0, "state": "complete", "validation_accuracy": value, "trial": n}
        for n, value in enumerate((0.7, 0.9, 0.8))
    ]
    found: Any = SimpleNamespace(importance={"alpha": 0.7, "learning_rate": 0.3}, count=lambda _: 40, rows=rows)
    axes = Figure().subplots()
    report._draw_importance(axes, found)
    drawn = {tick.get_text(): bar.get_width() for tick, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)}
    assert drawn == pytest.approx({"alpha": 70, "learning rate": 30})
    assert report.best_so_far(found) == ([1, 2, 3], [70, 90, 90])


def test_calibration_and_classes_are_drawn_where_their_names_stand() -> None:
    from kdlib import looks
    from kdlib.compare import figure

    styles = {"hard": looks.BASELINE, "kd": looks.DISTILLED}
    calibration = pd.DataFrame(
        [
            {"network": "kd", "measure": "calibration error", "value": 0.09},
            {"network": "kd", "measure": "calibration error, temperature-scaled", "value": 0.02},
        ]
    )
    classes = pd.DataFrame(
        [{"network": "kd", "class": name, "gain": gain, "low": gain - 0.1, "high": gain + 0.1, "family": 2}
         for name, gain in (("shirt", -0.2), ("bag", 0.3))]
    )  # fmt: skip
    shown: Any = SimpleNamespace(
        calibration=calibration, classes=classes, networks=["hard", "kd"], baseline="hard", seeds=5
    )
    one, other = Figure().subplots(1, 2)
    figure._calibration(one, shown, styles)
    assert list(one.lines[0].get_ydata()) == pytest.approx([9, 2])
    figure._classes(other, shown, styles)
    names = {tick.get_text(): y for y, tick in zip(other.get_yticks(), other.get_yticklabels(), strict=True)}
    points = {
        float(line.get_xdata()[0]): float(line.get_ydata()[0]) for line in other.lines if line.get_marker() == "o"
    }
    assert points == pytest.approx({-20.0: names["shirt"], 30.0: names["bag"]})
